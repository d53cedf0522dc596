//! Source to sink inside one program: no queue to run, no process to start.
//!
//! ```
//! use dth_core::{memory::MemoryStore, sync::Sync};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dth_core::error::Result<()> {
//! let (source, sink) = (MemoryStore::default(), MemoryStore::default());
//! source.insert("a/b", "hello");
//! let report = Sync::new(Arc::new(source), Arc::new(sink.clone())).run().await?;
//! assert!(report.is_success());
//! assert_eq!(sink.get(&"a/b".into()).unwrap().body, "hello");
//! # Ok(())
//! # }
//! ```

mod handle;

pub use handle::RunHandle;

use crate::{
    env::{SharedEnv, SystemEnv},
    error::Result,
    events::Events,
    finder::{Finder, FinderBuilder, FinderSettings},
    job::{Job, Seen},
    key_map::KeyMap,
    manifest::Spool,
    memory::{MemoryQueue, MemoryState},
    notify::{Alarms, Happened},
    object::ObjectKey,
    plan::cost::{Plan, Prices},
    queue::Queue,
    report::Report,
    runs,
    scope::TaskScope,
    sink::Sink,
    source::Source,
    state::{RunId, RunState, StateStore},
    sweep::{SweepReport, sweep},
    transfer::{Ended, Journal, Transfer},
    versions::{self, Versions},
    worker::{Worker, WorkerSettings},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// One task: a source, a sink, and what lies between them.
#[derive(Debug, Clone)]
pub struct Sync {
    source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    queue: Arc<dyn Queue>,
    state: Arc<dyn StateStore>,
    keys: KeyMap,
    env: SharedEnv,
    finder: FinderSettings,
    worker: WorkerSettings,
    events: Events,
    spool: Option<Spool>,
    alarms: Alarms,
    stop: CancellationToken,
}

impl Sync {
    /// A task that remembers nothing after it: state and queue are in memory, and objects that are done are forgotten.
    pub fn new(source: Arc<dyn Source>, sink: Arc<dyn Sink>) -> Self {
        Self {
            source,
            sink,
            queue: Arc::new(MemoryQueue::new()),
            state: Arc::new(MemoryState::forgetting_done()),
            keys: KeyMap::default(),
            env: Arc::new(SystemEnv),
            finder: FinderSettings::default(),
            worker: WorkerSettings::default(),
            events: Events::default(),
            spool: None,
            alarms: Alarms::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Keeps queue and state elsewhere, so that an interrupted run is resumed and a later one knows what was copied.
    pub fn with_state(mut self, queue: Arc<dyn Queue>, state: Arc<dyn StateStore>) -> Self {
        self.queue = queue;
        self.state = state;
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
    pub fn with_finder(mut self, settings: FinderSettings) -> Self {
        self.finder = settings;
        self
    }

    /// Sets how it moves. Workers take the finder's prefix, filter and overwrite policy.
    pub fn with_worker(mut self, settings: WorkerSettings) -> Self {
        self.worker = settings;
        self
    }

    /// Keeps a line of the manifest for each object that is found equal; copied ones have records.
    pub fn with_spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Sets who is told of dead letters, of a finder that failed and of the end of a run.
    pub fn with_alarms(mut self, alarms: Alarms) -> Self {
        self.alarms = alarms;
        self
    }

    /// Stops, with draining, when this token is cancelled; the run can be resumed.
    pub fn with_stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// What happens, as it happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The finder of this task.
    pub fn finder(&self) -> Result<Finder> {
        self.finder_builder().build()
    }

    fn finder_builder(&self) -> FinderBuilder {
        let (source, sink): (Arc<dyn crate::index::Index>, Arc<dyn crate::index::Index>) =
            (Arc::clone(&self.source) as _, Arc::clone(&self.sink) as _);
        Finder::builder(source, sink, Arc::clone(&self.queue), Arc::clone(&self.state))
            .with_keys(self.keys.clone())
            .with_env(Arc::clone(&self.env))
            .with_settings(self.finder.clone())
            .with_events(self.events.clone())
            .with_spool(self.spool.clone())
            .with_alarms(self.alarms.clone())
    }

    /// A worker of this task.
    pub fn worker(&self) -> Result<Worker> {
        Worker::builder(Arc::clone(&self.source), Arc::clone(&self.sink), Arc::clone(&self.queue), Arc::clone(&self.state))
            .with_keys(self.keys.clone())
            .with_env(Arc::clone(&self.env))
            .with_settings(self.worker.clone())
            .with_selection(self.finder.clone())
            .with_events(self.events.clone())
            .with_alarms(self.alarms.clone())
            .build()
    }

    /// What a run would do and cost, without doing it.
    pub async fn plan(&self, prices: &Prices) -> Result<Plan> {
        let least = self.sink.sink_capability().multipart.map_or(0, |limits| limits.min_part);
        let transfer = &self.worker.transfer;
        self.finder()?.plan(transfer.single_max, transfer.part_size.max(least), prices).await
    }

    /// Finds and moves everything, then sweeps our own unfinished uploads. An interrupted run of this state is resumed.
    ///
    /// An error means that the run could not be carried on (its state is kept); objects that failed are in the report.
    pub async fn run(&self) -> Result<Report> {
        let id = self.begin().await?;
        self.carry_on(&id).await
    }

    /// The run to carry on: an interrupted one of this state, or a new one.
    pub async fn begin(&self) -> Result<RunId> {
        let runs = self.finder.retry.run(&*self.env, || self.state.runs(100)).await?;
        for run in runs.into_iter().rev().filter(|r| !r.state.is_over()) {
            // One whose jobs have all ended meanwhile only lacks its closing.
            let run = runs::settle(&*self.state, &run.id, &*self.env, &self.finder.retry).await?;
            if !run.state.is_over() {
                return Ok(run.id);
            }
            // Nobody was there when it ended.
            self.tell_of_end(&Report::new(run)).await;
        }
        self.finder()?.start().await
    }

    /// Waits until workers elsewhere have ended a run, or until stopped; then sweeps and tells of the end, as [`run`](Self::run) does.
    pub async fn wait(&self, id: &RunId) -> Result<Report> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            run = runs::wait(&*self.state, id, &*self.env, &self.finder.retry) => drop(run?),
        }
        self.conclude(id).await
    }

    /// Carries a run on to its end, or until it is stopped.
    pub async fn carry_on(&self, id: &RunId) -> Result<Report> {
        let worker = self.worker()?;
        let finder = self.finder_builder().beside(&worker).build()?;
        let drain = self.stop.child_token();
        let mut scope = TaskScope::new();
        let (working, at_work) = (drain.clone(), worker.clone());
        scope.spawn(async move { at_work.run(working).await });
        let found = finder.resume(id, &self.stop).await;
        let waited = match found {
            Ok(_) => {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => Ok(()),
                    // It ends only by a panic, which goes on here.
                    _ = scope.join_next() => Ok(()),
                    run = runs::wait_with(&*self.state, id, &*self.env, &self.finder.retry, || worker.idle()) => run.map(drop),
                }
            }
            Err(error) => Err(error),
        };
        drain.cancel();
        scope.join_all().await;
        waited?;
        self.conclude(id).await
    }

    async fn conclude(&self, id: &RunId) -> Result<Report> {
        let run = runs::settle(&*self.state, id, &*self.env, &self.finder.retry).await?;
        if run.is_settled()
            && let Err(error) = self.sweep_what_was_begun().await
        {
            tracing::warn!(error = %error.chain(), "unfinished uploads could not be swept");
        }
        let report = Report::new(run);
        self.tell_of_end(&report).await;
        Ok(report)
    }

    /// Where no upload was ever begun, the destination need not be asked for them.
    async fn sweep_what_was_begun(&self) -> Result<()> {
        if self.finder.retry.run(&*self.env, || self.state.may_have_begun_uploads()).await? {
            self.sweep(Duration::ZERO).await?;
        }
        Ok(())
    }

    /// Tells of the end of a run; of one that goes on there is nothing to tell.
    async fn tell_of_end(&self, report: &Report) {
        if report.run.state == RunState::Finished {
            self.alarms.tell(Happened::RunEnded { report: Box::new(report.clone()) }).await;
        }
    }

    /// Runs in the background, under a handle that can pause, resume, cancel and watch it.
    pub async fn start(self) -> Result<RunHandle> {
        RunHandle::start(self).await
    }

    /// Aborts our own unfinished uploads older than `age` that nobody will finish.
    pub async fn sweep(&self, age: Duration) -> Result<SweepReport> {
        let retry = self.finder.retry;
        sweep(&*self.sink, &*self.state, &self.keys, &self.finder.prefix, age, &*self.env, &retry).await
    }

    /// Moves one object now, without queue or record; the answer says how it ended and how strongly it was verified.
    pub async fn copy_one(&self, key: &ObjectKey) -> Result<Ended> {
        let transfer = Transfer::new(
            Arc::clone(&self.source),
            Arc::clone(&self.sink),
            self.keys.clone(),
            Arc::clone(&self.env),
            self.worker.transfer.clone(),
        )
        .with_selection(&self.finder);
        let entry = match self.finder.versions {
            Versions::Current => self.source.head(key, None).await?.entry,
            Versions::All => versions::head(&*self.source, key).await?.entry,
        };
        let mut journal = Journal::detached(key, self.env.now());
        let job = Job::copy(&entry, Seen::Unknown);
        match transfer.run(&job, &mut journal).await {
            Ok(ended) => Ok(ended),
            Err(error) => {
                transfer.abandon(&job, &mut journal).await?;
                Err(error)
            }
        }
    }
}
