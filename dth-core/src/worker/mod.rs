//! Takes packs of jobs from the queue and does them; any number of workers, on any number of machines.
//!
//! ```text
//! receive ─ extend lease ─ claim (epoch) ─┬─ job: read pinned → verify → publish ─┬─ commit (fenced) ─ send again what failed ─ ack
//!                                         └─ job: …                               ┘
//! ```

mod lease;
mod pack;

use crate::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    events::Events,
    finder::FinderSettings,
    job::{EventSettings, Intake},
    key_map::KeyMap,
    limit::AdaptiveLimit,
    notify::Alarms,
    queue::Queue,
    scope::TaskScope,
    sink::Sink,
    source::Source,
    state::{RunId, RunState, StateStore},
    transfer::{Transfer, TransferSettings},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Longest time to tell of dead letters after a stop.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a worker works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// Messages worked on at once.
    pub packs: usize,
    /// Jobs of one message worked on at once.
    pub jobs_per_pack: usize,
    /// Seconds for which a message is hidden; extended at every third while work goes on.
    pub lease_seconds: u64,
    /// Deliveries of a job before it becomes a dead letter; four times as many where a store cannot be reached, or is too busy.
    pub max_attempts: u32,
    /// Longest pause, in seconds, before a failed job is tried again.
    pub max_delay_seconds: u64,
    /// Records written in one transaction.
    pub commit_batch: usize,
    /// Seconds to finish what was begun, after a stop.
    pub grace_seconds: u64,
    /// The parts of objects of at least so many bytes are jobs of their own, for any worker; 0: never.
    pub giant_threshold: u64,
    /// Parts of one such job.
    pub giant_parts: u32,
    /// Events of the source.
    pub events: EventSettings,
    /// Moving objects.
    pub transfer: TransferSettings,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            packs: 8,
            jobs_per_pack: 64,
            lease_seconds: 60,
            max_attempts: 5,
            max_delay_seconds: 300,
            commit_batch: 90,
            grace_seconds: 25,
            giant_threshold: 4 << 30,
            giant_parts: 16,
            events: EventSettings::default(),
            transfer: TransferSettings::default(),
        }
    }
}

impl WorkerSettings {
    /// Checks what serde cannot.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("worker.packs", self.packs as u64),
            ("worker.jobs_per_pack", self.jobs_per_pack as u64),
            ("worker.lease_seconds", self.lease_seconds),
            ("worker.max_attempts", u64::from(self.max_attempts)),
            ("worker.giant_parts", u64::from(self.giant_parts)),
            ("worker.commit_batch", self.commit_batch as u64),
            ("worker.transfer.part_size", self.transfer.part_size),
            ("worker.transfer.parts_in_flight", self.transfer.parts_in_flight as u64),
            ("worker.transfer.retry.tries", u64::from(self.transfer.retry.tries)),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::new(ErrorKind::Invalid, Op::Configure, format!("{name} = 0")).with_source("must be at least 1"));
            }
        }
        if self.transfer.strict && !self.transfer.metadata {
            let error = Error::new(ErrorKind::Invalid, Op::Configure, "worker.transfer.strict");
            return Err(error.with_source("with `metadata = false` all attributes are left behind: leave one of them out"));
        }
        if self.transfer.hold_max > self.transfer.memory {
            let text = format!("worker.transfer.hold_max = {}", self.transfer.hold_max);
            return Err(Error::new(ErrorKind::Invalid, Op::Configure, text)
                .with_source(format!("is more than worker.transfer.memory = {}", self.transfer.memory)));
        }
        Ok(())
    }
}

/// What a worker is made of.
#[derive(Debug, Clone)]
pub struct WorkerBuilder {
    source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    queue: Arc<dyn Queue>,
    state: Arc<dyn StateStore>,
    keys: KeyMap,
    env: SharedEnv,
    settings: WorkerSettings,
    selection: FinderSettings,
    events: Events,
    alarms: Alarms,
}

impl WorkerBuilder {
    /// Sets how source keys become destination keys.
    pub fn with_keys(mut self, keys: KeyMap) -> Self {
        self.keys = keys;
        self
    }

    /// Sets clock and randomness.
    pub fn with_env(mut self, env: SharedEnv) -> Self {
        self.env = env;
        self
    }

    /// Sets how it works.
    pub fn with_settings(mut self, settings: WorkerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Takes prefix, filter, versions and overwrite policy of the task's finder: they hold for events too. A job of another prefix is a dead
    /// letter, because no finder of the task sent it.
    pub fn with_selection(mut self, finder: FinderSettings) -> Self {
        self.selection = finder;
        self
    }

    /// Sets where events go.
    pub fn with_events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// Sets who is told of dead letters.
    pub fn with_alarms(mut self, alarms: Alarms) -> Self {
        self.alarms = alarms;
        self
    }

    /// The worker. `Invalid` when a setting is.
    pub fn build(self) -> Result<Worker> {
        self.settings.validate()?;
        let selection = self.selection.of_task(&self.keys)?;
        let intake = Intake::new(&selection, &self.settings.events)?;
        let transfer = Transfer::new(self.source, self.sink, self.keys, Arc::clone(&self.env), self.settings.transfer.clone())
            .with_selection(&selection);
        Ok(Worker {
            inner: Arc::new(Inner {
                transfer,
                queue: self.queue,
                state: self.state,
                env: self.env,
                settings: self.settings,
                intake,
                events: self.events,
                alarms: self.alarms,
                cancelled: Mutex::default(),
                in_hand: AtomicUsize::new(0),
                idle: Notify::new(),
            }),
        })
    }
}

/// Does the jobs of a queue.
#[derive(Debug, Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transfer: Transfer,
    queue: Arc<dyn Queue>,
    state: Arc<dyn StateStore>,
    env: SharedEnv,
    settings: WorkerSettings,
    intake: Intake,
    events: Events,
    alarms: Alarms,
    /// Whether a run is called off, as of when we asked.
    cancelled: Mutex<BTreeMap<RunId, (Instant, bool)>>,
    /// Messages that are worked on.
    in_hand: AtomicUsize,
    /// There are none any more.
    idle: Notify,
}

/// A message that is worked on.
struct InHand(Arc<Inner>);

impl InHand {
    fn one(inner: &Arc<Inner>) -> Self {
        inner.in_hand.fetch_add(1, Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if self.0.in_hand.fetch_sub(1, Relaxed) == 1 {
            self.0.idle.notify_one();
        }
    }
}

impl Worker {
    /// Begins to put a worker together.
    pub fn builder(source: Arc<dyn Source>, sink: Arc<dyn Sink>, queue: Arc<dyn Queue>, state: Arc<dyn StateStore>) -> WorkerBuilder {
        WorkerBuilder {
            source,
            sink,
            queue,
            state,
            keys: KeyMap::default(),
            env: Arc::new(SystemEnv),
            settings: WorkerSettings::default(),
            selection: FinderSettings::default(),
            events: Events::default(),
            alarms: Alarms::default(),
        }
    }

    /// Works until stopped, then drains: jobs under way are finished, the rest goes back to the queue.
    ///
    /// Dropping the future stops everything at once, as a crash would; nothing is lost by it.
    pub async fn run(&self, stop: CancellationToken) {
        let inner = &self.inner;
        let lease = Duration::from_secs(inner.settings.lease_seconds);
        let mut telling = TaskScope::new();
        let alarms = inner.alarms.clone();
        telling.spawn(async move { alarms.watch().await });
        let mut scope = TaskScope::new();
        let mut failures = 0;
        while !stop.is_cancelled() {
            if scope.len() >= inner.settings.packs {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    _ = scope.join_next() => continue,
                }
            }
            let received = {
                let free = inner.settings.packs - scope.len();
                let receive = inner.queue.receive(free, lease, Duration::from_secs(20));
                tokio::pin!(receive);
                tokio::select! {
                    biased;
                    answer = &mut receive => answer,
                    () = stop.cancelled() => {
                        if inner.queue.capability().receive_is_cancel_safe {
                            break;
                        }
                        // A message that is just being handed out is better taken than left hidden for a lease.
                        match tokio::time::timeout(Duration::from_millis(50), receive).await {
                            Ok(answer) => answer,
                            Err(_) => break,
                        }
                    }
                }
            };
            match received {
                Ok(deliveries) => {
                    failures = 0;
                    for delivery in deliveries {
                        let (in_hand, stop) = (InHand::one(inner), stop.clone());
                        scope.spawn(async move { in_hand.0.handle(delivery, lease, &stop).await });
                    }
                }
                Err(error) => {
                    // Q6: a queue that cannot answer now is waited for.
                    failures += 1;
                    tracing::warn!(error = %error.chain(), failures, "cannot receive");
                    let pause = inner.settings.transfer.retry.jittered(failures, &*inner.env) + Duration::from_millis(50);
                    tokio::select! { biased; () = stop.cancelled() => break, () = tokio::time::sleep(pause) => {} }
                }
            }
        }
        let grace = Duration::from_secs(inner.settings.grace_seconds);
        if tokio::time::timeout(grace, scope.join_all()).await.is_err() {
            tracing::warn!(unfinished = scope.len(), "grace time is over; the queue hands unfinished work to others");
        }
        drop(telling);
        if tokio::time::timeout(LAST_WORDS, inner.alarms.flush()).await.is_err() {
            tracing::warn!("a notice of dead letters could not be sent in time");
        }
    }

    /// Requests at once to source and destination.
    pub(crate) fn limits(&self) -> (AdaptiveLimit, AdaptiveLimit) {
        self.inner.transfer.limits()
    }

    /// Returns each time the last message in hand is done with, once for any number of times since it was asked. For one caller.
    pub(crate) async fn idle(&self) {
        self.inner.idle.notified().await;
    }

    /// Bytes held in memory now.
    pub fn memory_in_flight(&self) -> u64 {
        self.inner.transfer.memory_in_flight()
    }
}

impl Inner {
    /// Whether a run is called off; asked at most every few seconds.
    async fn is_cancelled(&self, run: &RunId) -> bool {
        let fresh = Instant::now();
        let known = self.lock_cancelled().get(run).copied();
        if let Some((asked, cancelled)) = known
            && (cancelled || fresh.duration_since(asked) < Duration::from_secs(5))
        {
            return cancelled;
        }
        let cancelled = match self.state.run(run).await {
            Ok(found) => found.state == RunState::Cancelled,
            // A run that is not known is an event's or a test's; one that cannot be asked for goes on.
            Err(_) => false,
        };
        let mut known = self.lock_cancelled();
        known.retain(|_, (asked, _)| fresh.duration_since(*asked) < Duration::from_secs(600));
        known.insert(run.clone(), (fresh, cancelled));
        cancelled
    }

    fn lock_cancelled(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, (Instant, bool)>> {
        self.cancelled.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
