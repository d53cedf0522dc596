//! Compares a source with a destination and queues what differs: two ordered listings, merged as streams, in constant memory.
//!
//! The key space is cut into ranges `(a, b]`, never prefixes, so that every key lies in exactly one. Each step (position,
//! totals, packs to send) is one atomic write of the state store; packs are sent after it. A finder that died goes on where
//! it was, and sends again at most packs whose duplicates are harmless.

mod lister;
mod shard;
mod spool;

pub use crate::job::Overwrite;
use crate::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    events::{Event, Events},
    filter::{Filter, FilterSettings},
    index::{Index, ListOrder},
    key_map::KeyMap,
    limit::AdaptiveLimit,
    manifest::Spool,
    notify::{Alarms, Happened},
    plan::{
        compare::{Compare, CompareBy},
        cost::{Plan, Prices, Requests},
    },
    prefixes::{PrefixList, Within},
    proof::{Branch, Bug, reached, wrong},
    queue::{Message, Queue},
    retry::RetryPolicy,
    source::Restore,
    state::{Advance, OutboxPack, PackId, Run, RunId, RunState, Shard, StateStore},
    versions::{Histories, Versions, must_keep_versions},
    worker::Worker,
};
use serde::{Deserialize, Serialize};
pub(crate) use spool::Sorter;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// What to do with an object of the same size and another etag that was never recorded: another tool may have put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownPolicy {
    /// Compare checksums of both sides and record; copy when they differ or cannot be compared.
    #[default]
    Adopt,
    /// Copy.
    Copy,
    /// Believe the size.
    TrustSize,
}

/// How a finder finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinderSettings {
    /// A plain string prefix of source keys, not a folder.
    pub prefix: String,
    /// Only keys that begin with one of these, instead of a prefix.
    #[serde(skip)]
    pub prefixes: Option<PrefixList>,
    /// When two objects are equal.
    pub compare: CompareBy,
    /// What to do with same size, other etag, no record.
    pub unknown: UnknownPolicy,
    /// When the destination may be replaced.
    pub overwrite: Overwrite,
    /// Which source objects take part.
    pub filter: FilterSettings,
    /// Delete at the destination what the source does not hold.
    pub delete_extra: bool,
    /// When more would be deleted, nothing is.
    pub max_delete: u64,
    /// Which versions are copied.
    pub versions: Versions,
    /// Ask the store to restore archived objects, which a later run (or the event of their return) copies, instead of leaving them.
    pub restore: Option<Restore>,
    /// Key ranges listed at once.
    pub shards: usize,
    /// Pages after which a range may be cut in two.
    pub split_after_pages: u64,
    /// Most bytes of a message. SQS bills each 64 KiB as one request.
    pub pack_bytes: usize,
    /// Most jobs of a message.
    pub pack_jobs: usize,
    /// Wait while the queue holds more messages.
    pub max_ready: u64,
    /// Tries of a request.
    pub retry: RetryPolicy,
}

impl Default for FinderSettings {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            prefixes: None,
            compare: CompareBy::default(),
            unknown: UnknownPolicy::default(),
            overwrite: Overwrite::default(),
            filter: FilterSettings::default(),
            delete_extra: false,
            max_delete: 1000,
            versions: Versions::default(),
            restore: None,
            shards: 8,
            split_after_pages: 8,
            pack_bytes: 60 << 10,
            pack_jobs: 250,
            max_ready: 10_000,
            retry: RetryPolicy { tries: 8, ..RetryPolicy::default() },
        }
    }
}

impl FinderSettings {
    /// The same for a task with such keys. `Invalid` when some of it does not go together.
    pub(crate) fn of_task(mut self, keys: &KeyMap) -> Result<Self> {
        let invalid = |text: &str, why: &str| Err(Error::new(ErrorKind::Invalid, Op::Configure, text).with_source(why));
        match &self.prefixes {
            Some(_) if !self.prefix.is_empty() => {
                return invalid(&format!("finder.prefix = {}", self.prefix), "a list of prefixes replaces it: leave one out");
            }
            Some(prefixes) => {
                if let Some(outside) = prefixes.outside(keys.strip())? {
                    let why = format!("the prefix `{outside}` of the list does not begin so");
                    return invalid(&format!("keys.strip = {}", keys.strip()), &why);
                }
            }
            None => self.prefix = keys.task_prefix(&self.prefix)?,
        }
        if self.delete_extra && !keys.is_ordered() {
            let why = "with keys.pattern nobody knows which source key a destination key is of: leave one of them out";
            return invalid("finder.delete_extra", why);
        }
        if self.versions == Versions::All {
            let why = match () {
                () if self.delete_extra => "with delete_extra: what only the destination has keeps its versions",
                () if self.overwrite != Overwrite::Always => {
                    "with finder.overwrite: versions are put behind what is there, and replace nothing"
                }
                () if !matches!(self.compare, CompareBy::Record | CompareBy::Etag | CompareBy::Always) => {
                    "with finder.compare: histories are compared by `record`, `etag` or `always`"
                }
                () if self.filter.asks_for_more_than_keys() => "with sizes or times in finder.filter: an object has many",
                () => return Ok(self),
            };
            return invalid("finder.versions = all", &format!("does not go {why}"));
        }
        Ok(self)
    }
}

/// What a finder is made of.
#[derive(Debug, Clone)]
pub struct FinderBuilder {
    source: Arc<dyn Index>,
    sink: Arc<dyn Index>,
    queue: Arc<dyn Queue>,
    state: Arc<dyn StateStore>,
    keys: KeyMap,
    env: SharedEnv,
    settings: FinderSettings,
    events: Events,
    spool: Option<Spool>,
    alarms: Alarms,
    limits: Option<(AdaptiveLimit, AdaptiveLimit)>,
}

impl FinderBuilder {
    /// Lets a worker in this process know, by the listings, how long the paths are on which it will work.
    pub(crate) fn beside(mut self, worker: &Worker) -> Self {
        self.limits = Some(worker.limits());
        self
    }

    /// Sets who is told when it fails.
    pub fn with_alarms(mut self, alarms: Alarms) -> Self {
        self.alarms = alarms;
        self
    }

    /// Keeps a line of the manifest for each object that is found equal.
    pub fn with_spool(mut self, spool: Option<Spool>) -> Self {
        self.spool = spool;
        self
    }

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

    /// Sets how it finds.
    pub fn with_settings(mut self, settings: FinderSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets where events go.
    pub fn with_events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// The finder. `Invalid` when a setting is.
    pub fn build(self) -> Result<Finder> {
        let filter = Filter::new(self.settings.filter.clone())?;
        let most = self.queue.capability().max_body;
        if self.settings.pack_bytes > most {
            let text = format!("finder.pack_bytes = {}", self.settings.pack_bytes);
            return Err(Error::new(ErrorKind::Invalid, Op::Configure, text).with_source(format!("the queue takes at most {most} bytes")));
        }
        let settings = self.settings.of_task(&self.keys)?;
        let (mut source, mut sink) = (self.source, self.sink);
        if settings.versions == Versions::All {
            source = Arc::new(Histories::of_source(source));
            sink = Arc::new(Histories::of_destination(sink));
        }
        if let Some(prefixes) = &settings.prefixes {
            source = Arc::new(Within::new(source, prefixes.clone(), KeyMap::default()));
            // What a pattern makes of a prefix, nobody knows.
            if self.keys.is_ordered() {
                sink = Arc::new(Within::new(sink, prefixes.clone(), self.keys.clone()));
            }
        }
        let compare = settings.compare.strategy(source.index_capability().etag, sink.index_capability().etag);
        Ok(Finder {
            inner: Arc::new(Inner {
                source,
                sink,
                queue: self.queue,
                state: self.state,
                keys: self.keys,
                env: self.env,
                settings,
                events: self.events,
                spool: self.spool,
                alarms: self.alarms,
                filter,
                compare,
                room: AtomicU64::new(0),
                limits: self.limits,
            }),
        })
    }
}

/// Finds what differs.
#[derive(Debug, Clone)]
pub struct Finder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Arc<dyn Index>,
    sink: Arc<dyn Index>,
    queue: Arc<dyn Queue>,
    state: Arc<dyn StateStore>,
    keys: KeyMap,
    env: SharedEnv,
    settings: FinderSettings,
    events: Events,
    spool: Option<Spool>,
    alarms: Alarms,
    filter: Filter,
    compare: Box<dyn Compare>,
    /// Messages that the queue may take before it is asked again how many it holds.
    room: AtomicU64,
    /// Of a worker in this process, which learn from the listings how long the paths are.
    limits: Option<(AdaptiveLimit, AdaptiveLimit)>,
}

/// Where the steps of a shard go.
#[derive(Debug, Clone)]
enum Output {
    /// To the state store and the queue.
    Run(RunId),
    /// Nowhere: only counted.
    Plan { plan: Arc<Mutex<Plan>>, single_max: u64, part_size: u64 },
}

/// What the shards of one run share.
#[derive(Debug)]
struct Shared {
    output: Output,
    idle: AtomicUsize,
    next_shard: AtomicUsize,
    new_shards: mpsc::UnboundedSender<Shard>,
}

impl Finder {
    /// Begins to put a finder together.
    pub fn builder(source: Arc<dyn Index>, sink: Arc<dyn Index>, queue: Arc<dyn Queue>, state: Arc<dyn StateStore>) -> FinderBuilder {
        FinderBuilder {
            source,
            sink,
            queue,
            state,
            keys: KeyMap::default(),
            env: Arc::new(SystemEnv),
            settings: FinderSettings::default(),
            events: Events::default(),
            spool: None,
            alarms: Alarms::default(),
            limits: None,
        }
    }

    /// Begins a run; [`resume`](Self::resume) does its work.
    ///
    /// `Invalid` when all versions are to be copied and the destination keeps none.
    pub async fn start(&self) -> Result<RunId> {
        let inner = &self.inner;
        inner.check_versions().await?;
        let now = inner.env.now();
        let id = RunId::fresh(&*inner.env);
        let run = Run::new(id.clone(), now);
        let shards = [Shard::all()];
        let retry = inner.settings.retry;
        match retry.run(&*inner.env, || inner.state.start_run(&run, &shards)).await {
            // The first answer was lost: the run with our random id is ours.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                retry.run(&*inner.env, || inner.state.run(&id)).await?;
            }
            started => started?,
        }
        Ok(id)
    }

    /// Starts a run and finds everything.
    pub async fn run(&self, stop: &CancellationToken) -> Result<Run> {
        let id = self.start().await?;
        self.resume(&id, stop).await
    }

    /// Finds what a run has not found yet, from its cursors. `Precondition` when another finder works on the same run, or when the run
    /// was called off: nobody is told of that.
    ///
    /// Stopped, it leaves the run to be resumed.
    pub async fn resume(&self, id: &RunId, stop: &CancellationToken) -> Result<Run> {
        let inner = &self.inner;
        let work = inner.find_rest(id);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            done = work => if let Err(error) = done {
                if (error.kind(), error.op()) == (ErrorKind::Precondition, Op::SaveState) {
                    return Err(error);
                }
                inner.alarms.tell(Happened::FinderFailed { run: id.clone(), cause: error.chain() }).await;
                return Err(error);
            },
        }
        inner.settings.retry.run(&*inner.env, || inner.state.run(id)).await
    }

    /// Lists both sides and tells what a run would do, without doing it.
    pub async fn plan(&self, single_max: u64, part_size: u64, prices: &Prices) -> Result<Plan> {
        self.inner.check_versions().await?;
        let plan = Arc::new(Mutex::new(Plan::default()));
        let output = Output::Plan { plan: Arc::clone(&plan), single_max, part_size };
        self.inner.all_shards(vec![Shard::all()], output).await?;
        let mut plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        plan.requests.source_list = plan.totals.source_pages;
        plan.requests.destination_list = plan.totals.destination_pages;
        plan.cost = plan.requests.cost(plan.totals.queued.bytes, prices);
        Ok(plan)
    }
}

impl Inner {
    async fn check_versions(&self) -> Result<()> {
        if self.settings.versions == Versions::Current {
            return Ok(());
        }
        self.settings.retry.run(&*self.env, || must_keep_versions(&*self.sink)).await
    }

    async fn find_rest(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let retry = self.settings.retry;
        let run = retry.run(&*self.env, || self.state.run(id)).await?;
        if run.state.is_over() {
            return Ok(());
        }
        self.send_outbox(id).await?;
        if run.state == RunState::Transferring {
            return Ok(());
        }
        let shards = retry.run(&*self.env, || self.state.shards(id)).await?;
        match self.all_shards(shards, Output::Run(id.clone())).await {
            // Called off meanwhile: its steps are refused.
            Err(error) if error.kind() == ErrorKind::Precondition => {
                let now = retry.run(&*self.env, || self.state.run(id)).await?;
                return if now.state == RunState::Cancelled { Ok(()) } else { Err(error) };
            }
            done => done?,
        }
        self.decide_deletes(id).await?;
        self.send_outbox(id).await?;
        match retry.run(&*self.env, || self.state.move_run(id, RunState::Finding, RunState::Transferring, self.env.now())).await {
            Err(error) if error.kind() != ErrorKind::Precondition => return Err(error),
            _ => {}
        }
        self.events.emit(|| Event::Listed { run: id.clone() });
        Ok(())
    }

    async fn all_shards(self: &Arc<Self>, shards: Vec<Shard>, output: Output) -> Result<()> {
        let (new_shards, mut arriving) = mpsc::unbounded_channel();
        let slots = self.settings.shards.max(1);
        let next = shards.iter().map(|s| s.id as usize + 1).max().unwrap_or(0);
        let shared = Arc::new(Shared { output, idle: AtomicUsize::new(slots), next_shard: AtomicUsize::new(next), new_shards });
        let mut waiting: Vec<Shard> = shards.into_iter().filter(|s| !s.done).rev().collect();
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        loop {
            while let Ok(shard) = arriving.try_recv() {
                waiting.push(shard);
            }
            while running.len() < slots
                && let Some(shard) = waiting.pop()
            {
                let (inner, shared) = (Arc::clone(self), Arc::clone(&shared));
                running.spawn(async move { inner.shard(shard, shared).await });
            }
            shared.idle.store(slots - running.len(), std::sync::atomic::Ordering::Relaxed);
            tokio::select! {
                biased;
                Some(shard) = arriving.recv() => waiting.push(shard),
                ended = running.join_next() => match ended {
                    Some(Ok(result)) => result?,
                    Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Some(Err(_)) => {}
                    None if arriving.is_empty() => return Ok(()),
                    None => {}
                },
            }
        }
    }

    /// Deletions wait until the whole listing is known; too many of them, and none happens.
    async fn decide_deletes(&self, id: &RunId) -> Result<()> {
        let retry = self.settings.retry;
        let run = retry.run(&*self.env, || self.state.run(id)).await?;
        if run.totals.extra_queued.objects == 0 {
            return Ok(());
        }
        let go = self.settings.delete_extra && run.totals.extra_queued.objects <= self.settings.max_delete;
        if !go && !run.totals.deletes_withheld {
            tracing::error!(
                extra = run.totals.extra_queued.objects,
                max_delete = self.settings.max_delete,
                "too many deletions: none is done"
            );
            let mut step = Advance::default();
            step.totals.deletes_withheld = true;
            retry.run(&*self.env, || self.state.advance(id, &step)).await?;
        }
        retry.run(&*self.env, || self.state.release_held(id, go)).await?;
        Ok(())
    }

    /// Sends packs that were decided on and not marked as sent.
    async fn send_outbox(&self, id: &RunId) -> Result<()> {
        loop {
            let packs = self.settings.retry.run(&*self.env, || self.state.outbox(id, 64)).await?;
            if packs.is_empty() {
                return Ok(());
            }
            reached(Branch::OutboxResent);
            let sent = self.send(&packs).await?;
            let step = Advance { sent, ..Advance::default() };
            self.settings.retry.run(&*self.env, || self.state.advance(id, &step)).await?;
        }
    }

    /// Sends packs; a failed entry is sent again, the others are not (F3).
    async fn send(&self, packs: &[OutboxPack]) -> Result<Vec<PackId>> {
        let retry = self.settings.retry;
        self.wait_for_room(packs.len() as u64).await?;
        let mut open: Vec<Message> = packs.iter().map(|p| Message { body: p.body.clone(), delay: Duration::ZERO }).collect();
        for tried in 1..=retry.tries {
            let results = retry.run(&*self.env, || self.queue.send(&open)).await?;
            let mut last = None;
            let mut left = Vec::new();
            for (message, result) in open.into_iter().zip(results) {
                if let Err(error) = result {
                    last = Some(error);
                    left.push(message);
                }
            }
            open = left;
            match last.filter(|_| !wrong(Bug::BatchFailuresIgnored)) {
                None => return Ok(packs.iter().map(|p| p.pack.clone()).collect()),
                Some(error) if tried == retry.tries || !error.is_retryable() => return Err(error),
                Some(_) => tokio::time::sleep(retry.jittered(tried, &*self.env)).await,
            }
        }
        Err(Error::new(ErrorKind::Unavailable, Op::Send, "queue"))
    }

    /// Waits while the queue is full. It is asked again only when what was sent since may have filled it.
    async fn wait_for_room(&self, packs: u64) -> Result<()> {
        loop {
            if self.room.fetch_update(Relaxed, Relaxed, |room| room.checked_sub(packs)).is_ok() {
                return Ok(());
            }
            let depth = self.settings.retry.run(&*self.env, || self.queue.depth()).await?;
            if depth.ready <= self.settings.max_ready {
                self.room.store((self.settings.max_ready - depth.ready).max(packs), Relaxed);
                continue;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn splittable(&self) -> bool {
        let ordered = |index: &dyn Index| {
            let capability = index.index_capability();
            capability.order == ListOrder::Bytes && capability.start_after
        };
        self.keys.is_ordered() && ordered(&*self.source) && ordered(&*self.sink)
    }
}

impl Plan {
    fn count(&mut self, size: u64, single_max: u64, part_size: u64) {
        let mut requests = Requests::default();
        requests.add_object(size, single_max, part_size);
        self.requests.get += requests.get;
        self.requests.put += requests.put;
    }
}
