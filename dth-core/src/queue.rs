//! Messages between finder and workers.

use crate::error::Result;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc, time::Duration};

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The body; ASCII, because some queues carry XML 1.0 characters only.
    pub body: String,
    /// Hidden for this long.
    pub delay: Duration,
}

/// Proof of one delivery. It goes stale when the lease ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt(pub Arc<str>);

/// A message handed to one receiver for the time of its lease.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The body as sent.
    pub body: String,
    /// How often it was handed out, this time included.
    pub receives: u32,
    /// Proof of this delivery.
    pub receipt: Receipt,
}

/// Limits of a queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueCapability {
    /// Most bytes of a body.
    pub max_body: usize,
    /// Longest lease and delay.
    pub max_lease: Duration,
    /// A receive that is dropped lets go what it has taken, at once as a rule, and at the latest when the lease ends: a worker that stops
    /// need not wait for one under way.
    pub receive_is_cancel_safe: bool,
}

/// How much a queue holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// Ready to be received.
    pub ready: u64,
    /// Handed out, lease running.
    pub leased: u64,
    /// Hidden until their delay ends.
    pub delayed: u64,
    /// Dead-lettered.
    pub dead: u64,
}

impl Depth {
    /// Messages that will be delivered some time.
    pub fn pending(&self) -> u64 {
        self.ready + self.leased + self.delayed
    }
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Names it for [`Queue::redrive`].
    pub id: String,
    /// The body as sent.
    pub body: String,
    /// Why it was given up.
    pub reason: String,
    /// How often it was handed out.
    pub receives: u32,
}

/// A queue with at-least-once delivery: duplicates at any time, in any order.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync + 'static {
    /// Limits of this queue.
    fn capability(&self) -> QueueCapability;

    /// Sends messages, a result for each. A failed one with `maybe_applied` may have been sent.
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>>;

    /// Takes at most `max` messages and hides each for `lease`; waits up to `wait` for the first.
    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>>;

    /// Hides a message for `lease` from now. `NotFound` when the receipt is stale.
    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()>;

    /// Removes a message for good. A stale receipt is not an error; whether it removes something is up to the queue.
    async fn ack(&self, receipt: &Receipt) -> Result<()>;

    /// Gives a message back after `delay`. A stale receipt is not an error and does nothing.
    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()>;

    /// Gives a message up, with the reason. A stale receipt is not an error and does nothing.
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()>;

    /// How much it holds; approximate in some queues.
    async fn depth(&self) -> Result<Depth>;

    /// A page of dead letters behind the one named.
    ///
    /// A queue in the cloud hides what it lists from other listers for a while; listing from the front (with `max` 0 and nothing
    /// else) shows it again.
    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>>;

    /// Sends a dead letter again, with this body, as a new message. `NotFound` when it is not there.
    async fn redrive(&self, id: &str, body: &str) -> Result<()>;
}
