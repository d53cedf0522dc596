//! The promises of the conformance suite, on a directory and on another store of the `object_store` crate.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::unused_async, reason = "a bench may take an await to make; these do not")]

use dth_core::conformance::StoreBench;
use dth_s3::{LocalDirectory, ObjectStoreAdapter};
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

mod directory {
    use super::*;

    /// One folder for all tests: each has keys of its own in it.
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

    async fn bench() -> StoreBench {
        let store = Arc::new(LocalDirectory::open(FOLDER.path()).unwrap());
        StoreBench::new(store.clone(), store)
    }
    dth_core::conformance_store!(bench);
}

mod in_memory {
    use super::*;

    async fn bench() -> StoreBench {
        let store = Arc::new(ObjectStoreAdapter::new(Arc::new(object_store::memory::InMemory::new()), "memory"));
        StoreBench::new(store.clone(), store)
    }
    dth_core::conformance_store!(bench);
}
