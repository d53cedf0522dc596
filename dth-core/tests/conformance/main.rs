//! The promises of the conformance suite, on the backends and wrappers of this crate; and that the suite is not blind.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::unused_async, reason = "a bench may take an await to make; these do not")]

mod saboteurs;

use dth_core::{
    conformance::graph::children_named_in,
    memory::{MemoryStore, MemoryStoreSettings},
    object::EtagKind,
};

/// A content-addressed store whose entries name their children.
fn graph_store(links: bool) -> MemoryStore {
    let settings = MemoryStoreSettings { children: Some(children_named_in), etag: EtagKind::Digest, links, ..Default::default() };
    MemoryStore::new(settings)
}

/// A store that keeps versions and delete markers.
fn versioned_store() -> MemoryStore {
    MemoryStore::new(MemoryStoreSettings { versions: true, ..Default::default() })
}

mod memory {
    use dth_core::{
        conformance::{GraphBench, QueueBench, StateBench, StoreBench, graph::Lines},
        memory::{MemoryQueue, MemoryState, MemoryStore},
    };
    use std::{sync::Arc, time::Duration};

    mod store {
        use super::*;
        async fn bench() -> StoreBench {
            let store = MemoryStore::default();
            StoreBench::new(Arc::new(store.clone()), Arc::new(store.clone().beside(&store)))
        }
        dth_core::conformance_store!(bench);
    }

    mod versioned_store {
        use super::*;
        async fn bench() -> StoreBench {
            let store = crate::versioned_store();
            StoreBench::new(Arc::new(store.clone()), Arc::new(store.clone().beside(&store)))
        }
        dth_core::conformance_store!(bench);
    }

    mod graph {
        use super::*;
        async fn bench() -> GraphBench {
            let store = crate::graph_store(false);
            GraphBench::new(Arc::new(store.clone()), Arc::new(store), Arc::new(Lines))
        }
        dth_core::conformance_graph!(bench);
    }

    mod linked_graph {
        use super::*;
        async fn bench() -> GraphBench {
            let store = crate::graph_store(true);
            GraphBench::new(Arc::new(store.clone()), Arc::new(store), Arc::new(Lines))
        }
        dth_core::conformance_graph!(bench);
    }

    mod queue {
        use super::*;
        async fn bench() -> QueueBench {
            QueueBench::new(Arc::new(MemoryQueue::new()), Duration::from_millis(40))
        }
        dth_core::conformance_queue!(bench);
    }

    mod state {
        use super::*;
        async fn bench() -> StateBench {
            StateBench::new(Arc::new(MemoryState::new()))
        }
        dth_core::conformance_state!(bench);
    }
}

/// The wrapper that simulations use, in good weather.
mod chaos {
    use dth_core::{
        conformance::{GraphBench, QueueBench, StateBench, StoreBench, graph::Lines},
        env::SystemEnv,
        memory::{MemoryQueue, MemoryState, MemoryStore},
        wrap::chaos::{Chaos, Faults, Weather},
    };
    use std::{sync::Arc, time::Duration};

    fn weather() -> Arc<Weather> {
        Arc::new(Weather::new(Arc::new(SystemEnv), Faults::default()))
    }

    mod store {
        use super::*;
        async fn bench() -> StoreBench {
            let store = MemoryStore::default();
            let sink = Chaos::new(Arc::new(store.clone().beside(&store)), weather(), 0);
            StoreBench::new(Arc::new(Chaos::new(Arc::new(store), weather(), 0)), Arc::new(sink))
        }
        dth_core::conformance_store!(bench);
    }

    mod graph {
        use super::*;
        async fn bench() -> GraphBench {
            let store = crate::graph_store(true);
            let sink = Chaos::new(Arc::new(store.clone()), weather(), 0);
            GraphBench::new(Arc::new(Chaos::new(Arc::new(store), weather(), 0)), Arc::new(sink), Arc::new(Lines))
        }
        dth_core::conformance_graph!(bench);
    }

    mod queue {
        use super::*;
        async fn bench() -> QueueBench {
            QueueBench::new(Arc::new(Chaos::new(Arc::new(MemoryQueue::new()), weather(), 0)), Duration::from_millis(40))
        }
        dth_core::conformance_queue!(bench);
    }

    mod state {
        use super::*;
        async fn bench() -> StateBench {
            StateBench::new(Arc::new(Chaos::new(Arc::new(MemoryState::new()), weather(), 0)))
        }
        dth_core::conformance_state!(bench);
    }
}
