//! What happens, as a typed stream for progress bars, logs and user interfaces.

use crate::{
    object::ObjectKey,
    state::{Outcome, RunId},
};
use tokio::sync::broadcast;

/// One thing that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The finder dealt with so many source objects, of which so many (and so many bytes) were queued.
    Found {
        /// The run.
        run: RunId,
        /// Objects listed.
        listed: u64,
        /// Of these, sent to the workers.
        queued: u64,
        /// Bytes of those sent.
        bytes: u64,
    },
    /// The finder has seen everything.
    Listed {
        /// The run.
        run: RunId,
    },
    /// A job ended, and its record is durable.
    Ended {
        /// The source key.
        key: ObjectKey,
        /// How.
        outcome: Outcome,
        /// Bytes of the object.
        bytes: u64,
    },
    /// A job failed and will be tried again.
    Again {
        /// The source key.
        key: ObjectKey,
        /// Why.
        cause: String,
    },
}

/// Sends events to whoever listens; without listeners it costs nothing.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(4096) }
    }
}

impl Events {
    /// Listens from now on. A listener that lags far behind misses events (and is told so); the ledger misses none.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        if self.sender.receiver_count() > 0 {
            let _ = self.sender.send(event());
        }
    }
}
