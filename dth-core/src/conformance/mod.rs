//! What the engine relies on in a backend, promise by promise, as tests that anybody can run on a backend of their own.
//!
//! ```
//! # #![allow(clippy::needless_doctest_main)]
//! mod memory {
//!     use dth_core::{conformance::StoreBench, memory::MemoryStore};
//!     use std::sync::Arc;
//!
//!     async fn bench() -> StoreBench {
//!         let store = MemoryStore::default();
//!         StoreBench::new(Arc::new(store.clone()), Arc::new(store))
//!     }
//!     dth_core::conformance_store!(bench);
//! }
//! # fn main() {}
//! ```
//!
//! The macros write one test a promise: [`conformance_store!`](crate::conformance_store) for a [`Source`] and a [`Sink`] on one
//! container, and the pair of them, [`conformance_graph!`](crate::conformance_graph) for one whose entries have children,
//! [`conformance_queue!`](crate::conformance_queue), [`conformance_state!`](crate::conformance_state).
//! Where starting a backend takes long, [`hold_all`] and [`hold_graph`] run all promises of a table on one. A promise that a backend does not make,
//! by its capabilities, is not run, and that is printed.

pub mod graph;
pub mod queue;
pub mod state;
pub mod store;

use crate::{queue::Queue, sink::Sink, source::Source, state::StateStore};
use futures_util::future::BoxFuture;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What came of a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was kept.
    Held,
    /// This backend does not make it, for this reason.
    NotMade(&'static str),
}

/// The verdict on a promise, or how it was broken.
pub type Checked = Result<Verdict, Broken>;

/// How a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<crate::error::Error> for Broken {
    fn from(error: crate::error::Error) -> Self {
        Self(error.chain())
    }
}

/// A promise by its name.
pub type Promise<Bench> = (&'static str, for<'a> fn(&'a Bench) -> BoxFuture<'a, Checked>);

/// Breaks the promise unless something holds.
macro_rules! hold {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Broken(format!($($text)+)));
        }
    };
}
pub(crate) use hold;

/// A store under test: both traits on one container, which other tests may use at the same time.
#[derive(Debug, Clone)]
pub struct StoreBench {
    /// Reads what `sink` wrote.
    pub source: Arc<dyn Source>,
    /// Writes what `source` reads.
    pub sink: Arc<dyn Sink>,
    prefix: String,
}

static BENCHES: AtomicU64 = AtomicU64::new(0);

impl StoreBench {
    /// A bench on a container. All keys begin with a prefix of this bench.
    pub fn new(source: Arc<dyn Source>, sink: Arc<dyn Sink>) -> Self {
        Self { source, sink, prefix: format!("conformance-{}/", BENCHES.fetch_add(1, Relaxed)) }
    }

    /// The same store, under another prefix: promises do not see each other's keys.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.source), Arc::clone(&self.sink))
    }
}

/// A store of entries with children under test.
#[derive(Debug, Clone)]
pub struct GraphBench {
    /// Reads what `sink` wrote.
    pub source: Arc<dyn Source>,
    /// Writes what `source` reads.
    pub sink: Arc<dyn Sink>,
    /// How entries say which their children are.
    pub shape: Arc<dyn graph::Shape>,
    prefix: String,
}

impl GraphBench {
    /// A bench on a container. All places begin with a prefix of this bench.
    pub fn new(source: Arc<dyn Source>, sink: Arc<dyn Sink>, shape: Arc<dyn graph::Shape>) -> Self {
        Self { source, sink, shape, prefix: format!("graph-{}/", BENCHES.fetch_add(1, Relaxed)) }
    }

    /// The same store, under another prefix: promises do not see each other's entries.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.source), Arc::clone(&self.sink), Arc::clone(&self.shape))
    }
}

/// A queue under test, empty.
#[derive(Debug, Clone)]
pub struct QueueBench {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// The shortest lease or delay that it keeps well; tests wait several of it.
    pub tick: Duration,
}

impl QueueBench {
    /// A bench on an empty queue.
    pub fn new(queue: Arc<dyn Queue>, tick: Duration) -> Self {
        Self { queue, tick }
    }
}

/// A state store under test, empty.
#[derive(Debug, Clone)]
pub struct StateBench {
    /// The store.
    pub state: Arc<dyn StateStore>,
}

impl StateBench {
    /// A bench on an empty store.
    pub fn new(state: Arc<dyn StateStore>) -> Self {
        Self { state }
    }
}

/// Runs one promise as a test: panics when it is broken, prints when it is not made.
pub async fn hold_one(name: &str, checked: impl Future<Output = Checked>) {
    match checked.await {
        Ok(Verdict::Held) => {}
        #[expect(clippy::print_stdout, reason = "what is not run is told")]
        Ok(Verdict::NotMade(why)) => println!("{name}: not run: {why}"),
        Err(broken) => panic!("{name}: {broken}"),
    }
}

/// Runs all promises of a table on one store, one after the other. Answers how many held; panics with all that are broken.
pub async fn hold_all(bench: &StoreBench) -> usize {
    hold_each(&bench.sink.name(), store::PROMISES, || bench.anew()).await
}

/// The same for a store of entries with children.
pub async fn hold_graph(bench: &GraphBench) -> usize {
    hold_each(&bench.sink.name(), graph::PROMISES, || bench.anew()).await
}

async fn hold_each<Bench>(of: &str, promises: &[Promise<Bench>], bench: impl Fn() -> Bench) -> usize {
    let mut broken = Vec::new();
    let mut held = 0;
    for (name, promise) in promises {
        match promise(&bench()).await {
            Ok(Verdict::Held) => held += 1,
            #[expect(clippy::print_stdout, reason = "what is not run is told")]
            Ok(Verdict::NotMade(why)) => println!("{of}: {name}: not run: {why}"),
            Err(b) => broken.push(format!("{name}: {b}")),
        }
    }
    assert!(broken.is_empty(), "{of}: {} promises are broken:\n{}", broken.len(), broken.join("\n"));
    held
}

/// Writes the table of promises of a module, and the macro that makes a test of each.
macro_rules! promises {
    ($dollar:tt $module:ident, $bench:ty, $tests:ident: $($name:ident)+) => {
        /// All promises.
        pub const PROMISES: &[$crate::conformance::Promise<$bench>] = &[$((stringify!($name), |bench| Box::pin($name(bench)))),+];

        /// One test for each promise. Takes the name of an async function that makes a bench.
        #[macro_export]
        macro_rules! $tests {
            ($dollar bench:path) => {
                $(
                    #[tokio::test]
                    async fn $name() {
                        let bench = $dollar bench().await;
                        $dollar crate::conformance::hold_one(stringify!($name), $dollar crate::conformance::$module::$name(&bench)).await;
                    }
                )+
            };
        }
    };
}
pub(crate) use promises;
