//! Runs as things: wait for one, cancel it, try its failures again.

use crate::{
    env::Env,
    error::{Error, ErrorKind, Op, Result},
    job::{Job, Pack},
    queue::Queue,
    retry::RetryPolicy,
    state::{Advance, FinderTotals, OutboxPack, Run, RunId, RunState, StateStore, Tally},
};
use std::time::Duration;

/// Closes the ledger of a run whose jobs have all ended; answers the run as it is.
pub async fn settle(state: &dyn StateStore, id: &RunId, env: &dyn Env, retry: &RetryPolicy) -> Result<Run> {
    let run = retry.run(env, || state.run(id)).await?;
    if run.state != RunState::Transferring || !run.is_settled() {
        return Ok(run);
    }
    retry.run(env, || state.move_run(id, RunState::Transferring, RunState::Finished, env.now())).await?;
    retry.run(env, || state.run(id)).await
}

/// Waits until a run is finished or cancelled. Cancel safe.
pub async fn wait(state: &dyn StateStore, id: &RunId, env: &dyn Env, retry: &RetryPolicy) -> Result<Run> {
    let mut pause = Duration::from_millis(5);
    loop {
        let run = settle(state, id, env, retry).await?;
        if run.state.is_over() {
            return Ok(run);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Calls a run off: its finder stops at its next step, its jobs are acknowledged without work.
pub async fn cancel(state: &dyn StateStore, id: &RunId, env: &dyn Env) -> Result<()> {
    let run = state.run(id).await?;
    match run.state {
        RunState::Cancelled => Ok(()),
        RunState::Finished => Err(Error::new(ErrorKind::Invalid, Op::SaveState, format!("run {id}")).with_source("it is finished")),
        from => state.move_run(id, from, RunState::Cancelled, env.now()).await,
    }
}

/// Sends dead letters again as a run of its own, with a ledger of its own; `only` picks by reason text.
///
/// Messages that were never jobs (poison) stay where they are. Answers the new run, `None` when there was nothing to send.
pub async fn redrive(
    state: &dyn StateStore,
    queue: &dyn Queue,
    only: Option<&str>,
    env: &dyn Env,
    retry: &RetryPolicy,
) -> Result<Option<Run>> {
    let mut jobs: Vec<(String, Vec<Job>)> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = retry.run(env, || queue.dead_letters(after.as_deref(), 100)).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        for dead in page {
            if only.is_some_and(|text| !dead.reason.contains(text)) {
                continue;
            }
            if let Ok(pack) = Pack::parse(&dead.body, env) {
                let fresh = pack.jobs.into_iter().map(|job| Job { attempts: 0, origin: None, ..job }).collect();
                jobs.push((dead.id, fresh));
            }
        }
    }
    if jobs.is_empty() {
        return Ok(None);
    }
    let now = env.now();
    let id = RunId::new(format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), &crate::env::random_id(env)[..8]));
    let tally: Tally = jobs.iter().flat_map(|(_, jobs)| jobs).map(|j| Tally::one(j.size.unwrap_or(0))).sum();
    state.start_run(&Run::new(id.clone(), now), &[]).await?;
    let totals = FinderTotals { listed: tally, queued: tally, ..FinderTotals::default() };
    let mut packs = Vec::new();
    for (_, jobs) in &jobs {
        let pack = Pack::new(env, Some(id.clone()), jobs.clone());
        packs.push(OutboxPack { pack: pack.id.clone(), body: pack.to_body(), held: false });
    }
    state.advance(&id, &Advance { totals, packs: packs.clone(), ..Advance::default() }).await?;
    for ((dead, _), pack) in jobs.iter().zip(&packs) {
        match retry.run(env, || queue.redrive(dead, &pack.body)).await {
            // Somebody else redrove it: its own pack is sent nonetheless, so that the ledger can close.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = [crate::queue::Message { body: pack.body.clone(), delay: Duration::ZERO }];
                for sent in retry.run(env, || queue.send(&message)).await? {
                    sent?;
                }
            }
            redriven => redriven?,
        }
        state.advance(&id, &Advance { sent: vec![pack.pack.clone()], ..Advance::default() }).await?;
    }
    state.move_run(&id, RunState::Finding, RunState::Transferring, env.now()).await?;
    state.run(&id).await.map(Some)
}
