//! A queue in memory.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// A queue that lives as long as the process. Receipts of ended leases do nothing.
#[derive(Debug)]
pub struct MemoryQueue {
    max_body: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    messages: BTreeMap<u64, Stored>,
    /// Messages by the time at which they may be received.
    visible: BTreeSet<(Instant, u64)>,
    dead: BTreeMap<u64, DeadLetter>,
}

#[derive(Debug)]
struct Stored {
    body: Arc<str>,
    visible_at: Instant,
    receives: u32,
    leased: bool,
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self { max_body: 256 << 10, state: Mutex::default(), changed: Notify::new() }
    }
}

impl MemoryQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the size of a message.
    pub fn with_max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn show_at(&mut self, id: u64, at: Instant, leased: bool) {
        if let Some(message) = self.messages.get_mut(&id) {
            self.visible.remove(&(message.visible_at, id));
            message.visible_at = at;
            message.leased = leased;
            self.visible.insert((at, id));
        }
    }

    fn remove(&mut self, id: u64) -> Option<Stored> {
        let message = self.messages.remove(&id)?;
        self.visible.remove(&(message.visible_at, id));
        Some(message)
    }

    fn add(&mut self, body: &str, at: Instant) {
        self.last_id += 1;
        let id = self.last_id;
        self.messages.insert(id, Stored { body: body.into(), visible_at: at, receives: 0, leased: false });
        self.visible.insert((at, id));
    }

    /// The message of a receipt whose lease still runs.
    fn live(&self, receipt: &Receipt) -> Option<u64> {
        let (id, receives) = receipt.0.split_once('.')?;
        let id = id.parse().ok()?;
        let message = self.messages.get(&id)?;
        (message.leased && message.visible_at > Instant::now() && receives == message.receives.to_string()).then_some(id)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    fn capability(&self) -> QueueCapability {
        QueueCapability { max_body: self.max_body, max_lease: Duration::from_secs(12 * 3600), receive_is_cancel_safe: true }
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let mut state = self.lock();
        let now = Instant::now();
        let results = messages
            .iter()
            .map(|message| {
                if message.body.len() > self.max_body {
                    let text = format!("message of {} bytes", message.body.len());
                    return Err(Error::new(ErrorKind::Invalid, Op::Send, text));
                }
                state.add(&message.body, now + message.delay);
                Ok(())
            })
            .collect();
        drop(state);
        self.changed.notify_waiters();
        Ok(results)
    }

    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        let give_up = Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.lock();
                let now = Instant::now();
                let ready: Vec<u64> = state.visible.range(..=(now, u64::MAX)).take(max).map(|(_, id)| *id).collect();
                if !ready.is_empty() {
                    return Ok(ready
                        .into_iter()
                        .filter_map(|id| {
                            state.show_at(id, now + lease, true);
                            let message = state.messages.get_mut(&id)?;
                            message.receives += 1;
                            let receipt = Receipt(format!("{id}.{}", message.receives).into());
                            Some(Delivery { body: message.body.to_string(), receives: message.receives, receipt })
                        })
                        .collect());
                }
                state.visible.first().map(|(at, _)| *at)
            };
            if Instant::now() >= give_up {
                return Ok(Vec::new());
            }
            let until = next.map_or(give_up, |at| at.min(give_up));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        let mut state = self.lock();
        let id = state.live(receipt).ok_or_else(|| Error::new(ErrorKind::NotFound, Op::Extend, "memory queue"))?;
        state.show_at(id, Instant::now() + lease, true);
        Ok(())
    }

    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        let mut state = self.lock();
        if let Some(id) = state.live(receipt) {
            state.remove(id);
        }
        Ok(())
    }

    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        let mut state = self.lock();
        if let Some(id) = state.live(receipt) {
            state.show_at(id, Instant::now() + delay, false);
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let mut state = self.lock();
        if let Some(id) = state.live(&delivery.receipt)
            && let Some(message) = state.remove(id)
        {
            let dead =
                DeadLetter { id: id.to_string(), body: message.body.to_string(), reason: reason.to_owned(), receives: message.receives };
            state.dead.insert(id, dead);
        }
        Ok(())
    }

    async fn depth(&self) -> Result<Depth> {
        let state = self.lock();
        let now = Instant::now();
        let ready = state.visible.range(..=(now, u64::MAX)).count() as u64;
        let leased = state.messages.values().filter(|m| m.leased && m.visible_at > now).count() as u64;
        let delayed = state.messages.len() as u64 - ready - leased;
        Ok(Depth { ready, leased, delayed, dead: state.dead.len() as u64 })
    }

    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        let after: u64 = after.and_then(|id| id.parse().ok()).unwrap_or(0);
        Ok(self.lock().dead.range(after + 1..).take(max).map(|(_, dead)| dead.clone()).collect())
    }

    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        let mut state = self.lock();
        let found = id.parse().ok().and_then(|id: u64| state.dead.remove(&id));
        if found.is_none() {
            return Err(Error::new(ErrorKind::NotFound, Op::DeadLetter, format!("dead letter {id}")));
        }
        state.add(body, Instant::now());
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }
}
