//! Runs as things: wait for one, cancel it, try its failures again.

use crate::{
    env::Env,
    error::{Error, ErrorKind, Op, Result},
    job::{Intake, Job, Overwrite, Pack, Seen},
    object::{Entry, ObjectKey},
    queue::{DeadLetter, Message, Queue},
    retry::RetryPolicy,
    state::{Advance, FinderTotals, OutboxPack, RecordQuery, Run, RunId, RunState, StateStore, Status, Tally},
};
use std::{collections::BTreeMap, time::Duration};

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
    wait_with(state, id, env, retry, std::future::pending).await
}

/// As [`wait`]; looks as well each time that `hint` says that it may be over.
pub(crate) async fn wait_with<F: Future<Output = ()>>(
    state: &dyn StateStore,
    id: &RunId,
    env: &dyn Env,
    retry: &RetryPolicy,
    hint: impl Fn() -> F,
) -> Result<Run> {
    let begun = tokio::time::Instant::now();
    loop {
        let run = settle(state, id, env, retry).await?;
        if run.state.is_over() {
            return Ok(run);
        }
        // In the cloud each look is paid for: the longer it takes, the rarer, be there hints or not.
        let pause = (begun.elapsed() / 25).clamp(Duration::from_millis(5), Duration::from_secs(5));
        let (asked, hinted) = (tokio::time::Instant::now(), hint());
        tokio::select! {
            () = async { hinted.await; tokio::time::sleep_until(asked + pause / 10).await } => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Calls a run off: its finder stops at its next step, its jobs are acknowledged without work.
pub async fn cancel(state: &dyn StateStore, id: &RunId, env: &dyn Env, retry: &RetryPolicy) -> Result<()> {
    let run = retry.run(env, || state.run(id)).await?;
    match run.state {
        RunState::Cancelled => Ok(()),
        RunState::Finished => Err(Error::new(ErrorKind::Invalid, Op::SaveState, format!("run {id}")).with_source("it is finished")),
        from => retry.run(env, || state.move_run(id, from, RunState::Cancelled, env.now())).await,
    }
}

/// Sends dead letters again as a run of its own, with a ledger of its own; `only` picks by reason text.
///
/// Messages that are no jobs of the task (poison, strays) stay where they are. Answers the new run, `None` when there was nothing to
/// send.
pub async fn redrive(
    state: &dyn StateStore,
    queue: &dyn Queue,
    only: Option<&str>,
    intake: &Intake,
    env: &dyn Env,
    retry: &RetryPolicy,
) -> Result<Option<Run>> {
    let dead = dead_jobs(queue, intake, env, retry, |dead, _| only.is_none_or(|text| dead.reason.contains(text))).await?;
    send_as_run(state, queue, dead, env, retry).await
}

/// Tries the objects again whose record says that they failed, in `run` or in any, as a run of its own: their dead letters
/// where those are still there, new jobs otherwise (only under [`Overwrite::Always`]; other policies need a finder's look).
pub async fn retry_failed(
    state: &dyn StateStore,
    queue: &dyn Queue,
    run: Option<&RunId>,
    intake: &Intake,
    env: &dyn Env,
    retry: &RetryPolicy,
) -> Result<Option<Run>> {
    let mut failed: BTreeMap<ObjectKey, u64> = BTreeMap::new();
    let mut query = RecordQuery { status: Some(Status::Failed), run: run.cloned(), after: None };
    loop {
        let page = retry.run(env, || state.query(&query, 1000)).await?;
        let Some(last) = page.last() else { break };
        query.after = Some(last.key.clone());
        failed.extend(page.into_iter().map(|r| (r.key, r.source.map_or(0, |s| s.size))));
    }
    let mut jobs = dead_jobs(queue, intake, env, retry, |_, jobs| jobs.iter().any(|job| failed.contains_key(&job.key))).await?;
    for job in jobs.iter().flat_map(|(_, jobs)| jobs) {
        failed.remove(&job.key);
    }
    // A new job does not know what the finder saw: where the destination may be kept, the next finder's run decides.
    let mut anew = if intake.overwrite == Overwrite::Always { failed } else { BTreeMap::new() };
    // What cannot be looked up is not sent.
    anew.retain(|key, _| intake.covers(key).unwrap_or(false) && intake.filter.takes_key(key));
    jobs.extend(anew.into_iter().map(|(key, size)| {
        let job = Job { size: (size > 0).then_some(size), ..Job::copy(&Entry::new(key, size, None), Seen::Unknown) };
        (None, vec![job])
    }));
    send_as_run(state, queue, jobs, env, retry).await
}

/// Packs of one step: some stores take no more.
const PACKS_A_STEP: usize = 50;

/// Jobs of dead letters that are to be tried again, with the letter's id.
type Again = Vec<(Option<String>, Vec<Job>)>;

async fn dead_jobs(
    queue: &dyn Queue,
    intake: &Intake,
    env: &dyn Env,
    retry: &RetryPolicy,
    mut wanted: impl FnMut(&DeadLetter, &[Job]) -> bool,
) -> Result<Again> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = retry.run(env, || queue.dead_letters(after.as_deref(), 100)).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.id.clone());
        for dead in page {
            // What a message says besides, and nobody understands, is the reason why it lies here: its jobs went on without it.
            if let Ok(pack) = Pack::read(&dead.body, intake, env)
                && pack.refused.is_empty()
                && !pack.jobs.is_empty()
                && pack.jobs.iter().all(|job| intake.covers(&job.key).unwrap_or(false))
                && wanted(&dead, &pack.jobs)
            {
                // The parts of an object that a queue has given up by itself: only the object's own job has a place in a ledger.
                let whole = |job: Job| if job.parts.is_some() { job.anew() } else { job };
                let fresh = |job| Job { attempts: 0, origin: None, ..whole(job) };
                let fresh = pack.jobs.into_iter().map(fresh).collect();
                found.push((Some(dead.id), fresh));
            }
        }
    }
}

async fn send_as_run(state: &dyn StateStore, queue: &dyn Queue, jobs: Again, env: &dyn Env, retry: &RetryPolicy) -> Result<Option<Run>> {
    if jobs.is_empty() {
        return Ok(None);
    }
    let id = RunId::fresh(env);
    let tally: Tally = jobs.iter().flat_map(|(_, jobs)| jobs).map(|j| Tally::one(j.size.unwrap_or(0))).sum();
    state.start_run(&Run::new(id.clone(), env.now()), &[]).await?;
    let totals = FinderTotals { listed: tally, queued: tally, ..FinderTotals::default() };
    let mut packs = Vec::new();
    for (_, jobs) in &jobs {
        let pack = Pack::new(env, Some(id.clone()), jobs.clone());
        packs.push(OutboxPack { pack: pack.id.clone(), body: pack.to_body(), held: false });
    }
    state.advance(&id, &Advance { totals, ..Advance::default() }).await?;
    for packs in packs.chunks(PACKS_A_STEP) {
        state.advance(&id, &Advance { packs: packs.to_vec(), ..Advance::default() }).await?;
    }
    for ((dead, _), pack) in jobs.iter().zip(&packs) {
        let redriven = match dead {
            Some(dead) => retry.run(env, || queue.redrive(dead, &pack.body)).await,
            None => Err(Error::new(ErrorKind::NotFound, Op::Send, "no dead letter")),
        };
        match redriven {
            // There is none, or somebody else redrove it: its own pack is sent nonetheless, so that the ledger can close.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = [Message { body: pack.body.clone(), delay: Duration::ZERO }];
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
