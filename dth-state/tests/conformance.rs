//! The promises of the conformance suite, on queue and state in one file.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::unused_async, reason = "a bench may take an await to make; these do not")]

use dth_core::conformance::{QueueBench, StateBench};
use dth_state::Sqlite;
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
static FILES: AtomicU64 = AtomicU64::new(0);

fn fresh() -> Arc<Sqlite> {
    Arc::new(Sqlite::open(FOLDER.path().join(format!("{}.db", FILES.fetch_add(1, Relaxed)))).unwrap())
}

mod queue {
    use super::*;

    async fn bench() -> QueueBench {
        QueueBench::new(fresh(), Duration::from_millis(200))
    }
    dth_core::conformance_queue!(bench);
}

mod state {
    use super::*;

    async fn bench() -> StateBench {
        StateBench::new(fresh())
    }
    dth_core::conformance_state!(bench);
}

/// Keys through queue and state in a file, and out of them again.
#[tokio::test]
async fn hostile_keys_are_kept_exactly() {
    use dth_core::{
        conformance::store::hostile_keys,
        memory::MemoryStore,
        state::{RecordQuery, StateStore},
        sync::Sync,
    };
    let (source, sink, store) = (MemoryStore::default(), MemoryStore::default(), fresh());
    let mut keys = hostile_keys(2000, 11);
    keys.sort_unstable();
    for key in &keys {
        source.insert(key.as_str(), key.clone().into_bytes());
    }
    let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_state(store.clone(), store.clone());
    let report = task.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == keys.len() as u64, "{report}");
    let recorded = store.query(&RecordQuery::default(), 10_000).await.unwrap();
    let recorded: Vec<String> = recorded.into_iter().map(|r| r.key.as_str().to_owned()).collect();
    assert_eq!(recorded, keys);
    for key in keys {
        assert_eq!(sink.get(&key.as_str().into()).unwrap().body, key.as_bytes());
    }
}
