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
