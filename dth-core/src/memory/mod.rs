//! Reference backends in memory: for tests, and for embedding where nothing must outlive the process.

mod queue;
mod state;
mod store;

pub use queue::MemoryQueue;
pub use state::MemoryState;
pub use store::{Change, MemoryStore, MemoryStoreSettings, StoredObject, TellChildren, Watch};
