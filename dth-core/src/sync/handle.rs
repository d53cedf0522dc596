//! A run in the background.

use super::Sync;
use crate::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
    events::Events,
    report::Report,
    retry::RetryPolicy,
    runs,
    scope::TaskScope,
    state::{Run, RunId, StateStore},
};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Go,
    Pause,
}

/// A run in the background. Dropped, it stops at once as a crash would; the run can be resumed from its state.
#[derive(Debug)]
pub struct RunHandle {
    id: RunId,
    state: Arc<dyn StateStore>,
    env: SharedEnv,
    retry: RetryPolicy,
    events: Events,
    wish: watch::Sender<Wish>,
    /// Whether nothing is being worked on.
    idle: watch::Receiver<bool>,
    report: oneshot::Receiver<Result<Report>>,
    _tasks: TaskScope,
}

impl RunHandle {
    pub(super) async fn start(task: Sync) -> Result<Self> {
        let id = task.begin().await?;
        let (wish, wishes) = watch::channel(Wish::Go);
        let (idling, idle) = watch::channel(false);
        let (done, report) = oneshot::channel();
        let (state, env, events, retry) = (Arc::clone(&task.state), Arc::clone(&task.env), task.events.clone(), task.finder.retry);
        let mut tasks = TaskScope::new();
        let run = id.clone();
        tasks.spawn(async move {
            let report = carry_on(task, run, wishes, &idling).await;
            let _ = idling.send(true);
            let _ = done.send(report);
        });
        Ok(Self { id, state, env, retry, events, wish, idle, report, _tasks: tasks })
    }

    /// The run.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// What happens, as it happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The ledger as it stands.
    pub async fn progress(&self) -> Result<Run> {
        self.state.run(&self.id).await
    }

    /// Pauses: what was begun is finished within the worker's grace time, then this returns. No effect on a run that ended.
    pub async fn pause(&self) {
        let _ = self.wish.send(Wish::Pause);
        let mut idle = self.idle.clone();
        // An error means that the task is gone, and with it all work.
        let _ = idle.wait_for(|idle| *idle).await;
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        let _ = self.wish.send(Wish::Go);
    }

    /// Calls the run off: its jobs are acknowledged without work. What was copied stays. `Invalid` when it is finished.
    pub async fn cancel(&self) -> Result<()> {
        runs::cancel(&*self.state, &self.id, &*self.env, &self.retry).await?;
        self.resume();
        Ok(())
    }

    /// Waits for the end, by itself, by [`cancel`](Self::cancel) or by the task's stop token.
    pub async fn wait(self) -> Result<Report> {
        // Paused, it would never end, and nobody can resume it any more.
        self.resume();
        let lost = || Error::new(ErrorKind::Internal, Op::Transfer, format!("run {}", self.id)).with_source("its task panicked");
        self.report.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// Returns when this is wished, or when nobody can wish any more.
async fn wished(wishes: &mut watch::Receiver<Wish>, wanted: Wish) {
    let _ = wishes.wait_for(|wish| *wish == wanted).await;
}

async fn carry_on(task: Sync, id: RunId, mut wishes: watch::Receiver<Wish>, idling: &watch::Sender<bool>) -> Result<Report> {
    loop {
        let _ = idling.send(false);
        let round = task.stop.child_token();
        let working = Sync { stop: round.clone(), ..task.clone() };
        let work = working.carry_on(&id);
        tokio::pin!(work);
        let report = tokio::select! {
            biased;
            report = &mut work => report?,
            () = wished(&mut wishes, Wish::Pause) => {
                round.cancel();
                // Drained, it answers with the ledger as it stands.
                work.await?
            }
        };
        if report.run.state.is_over() || task.stop.is_cancelled() {
            return Ok(report);
        }
        let _ = idling.send(true);
        tokio::select! {
            biased;
            () = task.stop.cancelled() => return Ok(report),
            () = wished(&mut wishes, Wish::Go) => {}
        }
    }
}
