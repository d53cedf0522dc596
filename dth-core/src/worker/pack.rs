//! One delivery of a pack, from claim to acknowledgement.

use super::{Inner, lease};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    events::Event,
    job::{Action, Job, JobParts, Overwrite, Pack, Seen},
    object::{ObjectKey, Sequencer},
    proof::{Branch, Bug, reached, wrong},
    queue::{Delivery, Message},
    state::{Claim, Committed, EVENTS, JobEnd, Origin, Outcome, Record, RecordWrite, RunId, Status, Waiting, WriteResult},
    transfer::{Ended, Giants, Journal, Tenure, Work, is_same},
};
use futures_util::{FutureExt, StreamExt, stream};
use std::{collections::VecDeque, panic::AssertUnwindSafe, time::Duration};
use tokio_util::sync::CancellationToken;

/// Deliveries after which a pack is taken apart, so that one poisonous job cannot take its neighbours along.
const SPLIT_AFTER: u32 = 3;

/// Pieces into which it is taken apart, those again into single jobs: where workers die for other reasons, hundreds of messages of
/// one job each would only be slow.
const PIECES: usize = 16;

/// A delivery that ends without an answer says little about its job: workers are stopped, moved, killed. Nor does a store that cannot
/// be reached. So many times the tries of a job that fails are granted before it is held responsible.
const FORBEARANCE: u32 = 4;

/// What it costs, in tries, to begin an upload anew, besides the delivery that does: nothing is wrong with the store, so it is held
/// against the object as any failure is.
const ANEW: u32 = FORBEARANCE - 1;

/// What is to be done with the message itself.
enum Close {
    Ack,
    /// Give it back.
    Release(Duration),
    /// Give it up.
    Dead(Option<ObjectKey>, String),
    /// Somebody else has it now: leave it alone.
    Leave,
}

/// How one job of the pack went.
enum Went {
    Ended(Box<Ended>),
    Again(Error),
    /// Not begun, because the worker drains.
    NotBegun,
    /// Other messages go on with it: these, if any, are to be sent before this one is acknowledged.
    Passed(Vec<Job>),
}

impl Inner {
    pub(super) async fn handle(&self, delivery: Delivery, lease: Duration, stop: &CancellationToken) {
        if wrong(Bug::EarlyAck) {
            let _ = self.queue.ack(&delivery.receipt).await;
        }
        let work = self.work(&delivery, stop);
        let close = tokio::select! {
            biased;
            close = work => close,
            () = lease::keep(&*self.queue, &delivery.receipt, lease) => {
                reached(Branch::LeaseLost);
                tracing::warn!("the lease of a message was lost; another worker goes on with it");
                metrics::counter!("dth_leases_lost_total").increment(1);
                return;
            }
        };
        let close = close.unwrap_or_else(|error| {
            tracing::warn!(error = %error.chain(), "message goes back to the queue");
            Close::Release(self.delay(delivery.receives))
        });
        let retry = self.settings.transfer.retry;
        let closed = match close {
            Close::Leave => Ok(()),
            Close::Ack => retry.run(&*self.env, || self.queue.ack(&delivery.receipt)).await,
            Close::Release(delay) => retry.run(&*self.env, || self.queue.release(&delivery.receipt, delay)).await,
            Close::Dead(key, reason) => {
                tracing::error!(%reason, "dead letter");
                metrics::counter!("dth_dead_letters_total").increment(1);
                let given_up = retry.run(&*self.env, || self.queue.dead_letter(&delivery, &reason)).await;
                if given_up.is_ok() {
                    self.alarms.dead_letter(key.as_ref(), &reason);
                }
                given_up
            }
        };
        if let Err(error) = closed {
            // The lease ends by itself; the work is recorded, so that the next delivery finds nothing to do.
            tracing::warn!(error = %error.chain(), "could not close a message");
        }
    }

    async fn work(&self, delivery: &Delivery, stop: &CancellationToken) -> Result<Close> {
        let pack = match Pack::read(&delivery.body, &self.intake, &*self.env) {
            Ok(pack) => pack,
            // Q4, E3: a message that nobody can read is given up with the reason.
            Err(error) => {
                assert!(!wrong(Bug::PoisonPanics), "{error}");
                return Ok(Close::Dead(None, error.chain()));
            }
        };
        if pack.jobs.is_empty() {
            // Events that are none of this task's.
            return Ok(Close::Ack);
        }
        if !pack.refused.is_empty() {
            // What is understood goes on as a message of its own.
            let jobs = self.pack(&pack, pack.jobs.clone());
            let reason = pack.refused.join("; ");
            return Ok(if self.resend(vec![jobs], Duration::ZERO).await? { Close::Dead(None, reason) } else { Close::Leave });
        }
        let retry = self.settings.transfer.retry;
        let asked: Vec<_> = pack.jobs.iter().enumerate().map(|(i, j)| (j.key.clone(), pack.origin(i))).collect();
        // Stores keep it as a signed number.
        let incarnation = self.env.random() >> 1;
        let claim = retry.run(&*self.env, || self.state.claim(&pack.id, pack.run.as_ref(), incarnation, &asked)).await?;
        let mut open: Vec<usize> = (0..pack.jobs.len()).filter(|i| !claim.ended[*i]).collect();
        if let ([_], []) = (pack.jobs.as_slice(), open.as_slice()) {
            // The object's own message is the one that is given up.
            return Ok(if pack.jobs[0].parts.is_some() { Close::Ack } else { closing(claim.records[0].as_ref()) });
        }
        if let Some(run) = &pack.run
            && self.is_cancelled(run).await
        {
            // Jobs of other runs may wait for what this message goes on with.
            let mut waited_for = Vec::new();
            for index in open {
                let waiting = claim.records[index].iter().flat_map(|record| &record.waiting).map(|job| &job.run);
                for other in waiting.filter(|other| *other != run) {
                    if !self.is_cancelled(other).await {
                        waited_for.push(index);
                        break;
                    }
                }
            }
            open = waited_for;
        }
        if open.is_empty() {
            return Ok(Close::Ack);
        }
        if pack.jobs.len() > 1 && delivery.receives >= SPLIT_AFTER {
            reached(Branch::PackSplit);
            // The deaths are held against none of them, but each may have been begun.
            let jobs: Vec<Job> = open.iter().map(|i| again(&pack, *i, pack.jobs[*i].attempts.max(1))).collect();
            let pieces = jobs.chunks(jobs.len().div_ceil(PIECES)).map(|jobs| self.pack(&pack, jobs.to_vec())).collect();
            return Ok(if self.resend(pieces, Duration::ZERO).await? { Close::Ack } else { Close::Leave });
        }
        self.jobs(&pack, &claim, &open, delivery, stop).await
    }

    async fn jobs(&self, pack: &Pack, claim: &Claim, open: &[usize], delivery: &Delivery, stop: &CancellationToken) -> Result<Close> {
        let tenure = Tenure::new(&*self.state, &claim.fence);
        let tenure = &tenure;
        let mut running = stream::iter(open.iter().copied())
            .map(|index| async move { (index, self.job(pack, claim, tenure, index, delivery, stop).await) })
            .buffer_unordered(self.settings.jobs_per_pack);
        let mut pending: Vec<(usize, Ended)> = Vec::new();
        let mut failed: Vec<(usize, Error)> = Vec::new();
        let mut not_begun = false;
        let mut last = None;
        while let Some((index, went)) = running.next().await {
            match went {
                Went::Ended(ended) => pending.push((index, *ended)),
                Went::Again(error) => failed.push((index, error)),
                Went::NotBegun => not_begun = true,
                Went::Passed(jobs) => {
                    let messages = jobs.into_iter().map(|job| self.pack(pack, vec![job])).collect();
                    if !self.resend(messages, Duration::ZERO).await? {
                        return Ok(Close::Leave);
                    }
                }
            }
            if pending.len() >= self.settings.commit_batch
                && !self.commit(pack, claim, std::mem::take(&mut pending), &mut failed, &mut last).await?
            {
                return Ok(Close::Leave);
            }
        }
        if wrong(Bug::LastBatchDropped) && pack.jobs.len() > 1 {
            pending.clear();
        }
        if !self.commit(pack, claim, pending, &mut failed, &mut last).await? {
            return Ok(Close::Leave);
        }
        if pack.jobs.len() == 1 {
            return Ok(match failed.pop() {
                Some(_) => Close::Release(self.delay(pack.jobs[0].attempts.saturating_add(delivery.receives))),
                None if not_begun => Close::Release(Duration::ZERO),
                None => closing(last.as_ref()),
            });
        }
        if !failed.is_empty() {
            // Those that failed leave the pack as messages of their own, before it is acknowledged.
            reached(Branch::SingleResent);
            let attempts = |i: usize| pack.jobs[i].attempts.saturating_add(delivery.receives);
            let longest = failed.iter().map(|(i, _)| attempts(*i)).max().unwrap_or(1);
            let singles = failed.iter().map(|(i, _)| self.pack(pack, vec![again(pack, *i, attempts(*i))])).collect();
            if !self.resend(singles, self.delay(longest)).await? && !wrong(Bug::ResendIgnored) {
                return Ok(Close::Leave);
            }
        }
        Ok(if not_begun { Close::Release(Duration::ZERO) } else { Close::Ack })
    }

    /// Does one job; a panic is a failure of this job alone.
    async fn job(
        &self,
        pack: &Pack,
        claim: &Claim,
        tenure: &Tenure<'_>,
        index: usize,
        delivery: &Delivery,
        stop: &CancellationToken,
    ) -> Went {
        if stop.is_cancelled() {
            return Went::NotBegun;
        }
        let job = &pack.jobs[index];
        let attempts = job.attempts.saturating_add(delivery.receives);
        let run = pack.run.clone().unwrap_or_else(|| RunId::new(EVENTS));
        let known = claim.records[index].clone();
        if let Some(event) = &job.sequencer
            && known.as_ref().is_some_and(|record| has_dealt_with(record, event))
            && claim.fence.epoch == 1
            && attempts == 1
            && pack.origin(index).is_none()
        {
            // E1: whoever dealt with a later one looked at the source after this one. A message that was received before may have
            // died half-way, and looks for itself; one that was sent again as a run counts there.
            reached(Branch::EventKnown);
            return Went::Passed(Vec::new());
        }
        // The last tries of an object are made by one worker alone.
        let giants = Giants { least: self.settings.giant_threshold, parts_a_job: self.settings.giant_parts };
        // Of many versions, one waits for the other.
        let in_turn = self.transfer.moves_histories();
        let giants = Some(giants).filter(|g| g.least > 0 && !in_turn && attempts <= self.shared_tries());
        let mut journal = Journal::new(tenure, run.clone(), &job.key, known, attempts, self.env.now())
            .with_giants(giants, pack.origin(index))
            .with_sequencer(job.sequencer.clone());
        if wrong(Bug::StateWrittenEarly) && job.action == Action::Copy {
            let mut record = journal.next(Status::Done, self.env.now());
            record.source = Some(job.listed());
            let end = pack.origin(index).map(|origin| JobEnd { run: run.clone(), origin, outcome: Outcome::COPIED, bytes: 0 });
            let early = RecordWrite { record: record.clone(), ends: end.into_iter().collect() };
            if self.state.commit(&claim.fence, &[early]).await.is_ok() {
                record.version += 1;
                journal = Journal::new(tenure, run, &job.key, Some(record), attempts, self.env.now());
            }
        }
        let alone = pack.jobs.len() == 1;
        if alone && attempts > self.patience() {
            let error = Error::new(ErrorKind::Internal, Op::Transfer, job.key.to_string())
                .with_source(format!("{} deliveries ended without an answer: the worker died or hung each time", attempts - 1));
            return Box::pin(self.give_up(pack, index, &mut journal, error)).await;
        }
        // In a box: what is moved into the guard against panics would take its room twice.
        let work = Box::pin(async {
            if !self.intake.covers(&job.key)? {
                // E5: it was made for another task, or for this one with other settings.
                let why = format!("the key begins {}", self.intake.outside());
                return Err(Error::new(ErrorKind::Invalid, Op::Receive, job.key.to_string()).with_source(why));
            }
            match &job.parts {
                // No finder has looked whether it is the task's.
                None if job.destination == Seen::Unknown && !self.transfer.takes(&self.intake.filter, &job.key).await? => {
                    self.transfer.leave_out(job, pack.origin(index).is_some(), &mut journal).await
                }
                None => self.transfer.work(job, &mut journal).await,
                Some(parts) => Box::pin(self.transfer.parts_of(job, parts, &pack.id, &mut journal)).await,
            }
        });
        let done = AssertUnwindSafe(work).catch_unwind().await;
        let error = match done {
            Ok(Ok(work)) => return went(job, pack.origin(index), work),
            Ok(Err(error)) => error,
            Err(panic) => Error::new(ErrorKind::Internal, Op::Transfer, job.key.to_string()).with_source(panic_text(&*panic)),
        };
        self.events.emit(|| Event::Again { key: job.key.clone(), cause: error.chain() });
        tracing::warn!(key = %job.key, error = %error.chain(), attempts, "job failed");
        let last = attempts
            >= match error.kind() {
                // No fault of the object: the store is away, or too busy, or the keys have expired and may be renewed.
                ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::CredentialsExpired => self.patience(),
                _ if error.is_retryable() => self.settings.max_attempts,
                _ => 0,
            };
        if alone && last { Box::pin(self.give_up(pack, index, &mut journal, error)).await } else { Went::Again(error) }
    }

    /// Deliveries of a job that is not held responsible for how they ended.
    fn patience(&self) -> u32 {
        self.settings.max_attempts.saturating_mul(FORBEARANCE)
    }

    /// Deliveries of a giant's own job in which others may bring its parts.
    fn shared_tries(&self) -> u32 {
        self.patience() - self.settings.max_attempts
    }

    async fn give_up(&self, pack: &Pack, index: usize, journal: &mut Journal<'_>, error: Error) -> Went {
        let job = &pack.jobs[index];
        if let Some(parts) = &job.parts {
            let attempts = parts.attempts.max(self.shared_tries().saturating_sub(ANEW));
            let last = Job { parts: Some(JobParts { attempts, ..parts.clone() }), ..job.clone() };
            return match self.transfer.give_up_parts(job, parts, &pack.id, journal).await {
                Ok(work) => went(&last, pack.origin(index), work),
                Err(error) => Went::Again(error),
            };
        }
        match self.transfer.abandon(job, journal).await {
            Ok(()) => Went::Ended(Box::new(self.transfer.failed(job, &error, journal))),
            Err(error) => Went::Again(error),
        }
    }

    /// Makes results durable. `false` when a later delivery has taken the pack over: this one must stop without harm.
    async fn commit(
        &self,
        pack: &Pack,
        claim: &Claim,
        ended: Vec<(usize, Ended)>,
        failed: &mut Vec<(usize, Error)>,
        last: &mut Option<Record>,
    ) -> Result<bool> {
        let retry = self.settings.transfer.retry;
        let mut open: VecDeque<(usize, Ended)> = ended.into();
        for round in 0.. {
            if open.is_empty() && (round > 0 || failed.is_empty()) {
                break;
            }
            let writes: Vec<RecordWrite> = open.iter().map(|(index, ended)| ending(pack.origin(*index), ended)).collect();
            let results = match retry.run(&*self.env, || self.state.commit(&claim.fence, &writes)).await? {
                Committed::Fenced => {
                    reached(Branch::CommitFenced);
                    self.tell_of_published(pack, open.iter().map(|(index, ended)| (*index, ended))).await?;
                    return Ok(false);
                }
                Committed::Written(results) => results,
            };
            let mut next = VecDeque::new();
            for (((index, mut done), result), write) in open.into_iter().zip(results).zip(writes) {
                match result {
                    WriteResult::Applied(_) => self.durable(pack, index, &done).await,
                    // Our own write, whose answer was lost.
                    WriteResult::Conflict(Some(stored)) if is_same(&stored, &write.record) => {
                        reached(Branch::OwnCommitSeen);
                        self.durable(pack, index, &done).await;
                    }
                    // Another job found the same: count ours over it.
                    WriteResult::Conflict(Some(stored)) if says_the_same(&stored, &done.record) && round < 3 => {
                        reached(Branch::SameFactFound);
                        done.record.version = stored.version;
                        // What the sweep and later events must know does not get lost with the overwritten record (Q2).
                        done.record.uploads_since = stored.uploads_since.or(done.record.uploads_since);
                        done.record.sequencer = done.record.sequencer.max(stored.sequencer);
                        next.push_back((index, done));
                        continue;
                    }
                    WriteResult::Conflict(_) => {
                        // Giving our message back may come to nothing: an earlier delivery may have acknowledged it.
                        self.tell_of_published(pack, [(index, &done)]).await?;
                        let error = Error::new(ErrorKind::Conflict, Op::SaveState, done.record.key.to_string());
                        failed.push((index, error.with_source("another job wrote the record of this key")));
                        continue;
                    }
                }
                *last = Some(done.record);
            }
            open = next;
        }
        Ok(true)
    }

    /// Another delivery, or another job, has recorded something else, and perhaps an older version than the one that we published
    /// (the source was overwritten in between): whoever takes this message looks, and makes the record true. It counts nowhere.
    async fn tell_of_published(&self, pack: &Pack, ended: impl IntoIterator<Item = (usize, &Ended)>) -> Result<()> {
        let published = ended.into_iter().filter(|(_, e)| matches!(e.outcome, Outcome::Copied { .. }));
        let looks: Vec<_> = published
            .map(|(index, ended)| {
                let job = &pack.jobs[index];
                // What stands there is ours: no policy keeps it from being made right.
                let ours = ended.record.destination.clone().filter(|_| job.overwrite != Overwrite::Always);
                let destination = ours.map_or(Seen::Unknown, Seen::Present);
                // It is to look whatever events were dealt with: that is what is in doubt.
                let look = Job { destination, action: Action::Copy, attempts: 0, origin: None, sequencer: None, ..job.anew() };
                Pack::new(&*self.env, None, vec![look])
            })
            .collect();
        if !looks.is_empty() && !wrong(Bug::PublishedUntold) {
            reached(Branch::PublishedUnrecorded);
            if !self.resend(looks, Duration::ZERO).await? {
                let unsent = Error::new(ErrorKind::Unavailable, Op::Send, pack.id.as_str());
                return Err(unsent.with_source("what was published and could not be recorded could not be told of"));
            }
        }
        Ok(())
    }

    /// The end of a job is recorded.
    async fn durable(&self, pack: &Pack, index: usize, ended: &Ended) {
        self.tell(pack, index, ended);
        let retry = self.settings.transfer.retry;
        if let Some(upload) = &ended.filled
            && let Err(error) = retry.run(&*self.env, || self.state.forget_parts(upload)).await
        {
            // They are of no use to anybody any more.
            tracing::debug!(error = %error.chain(), "parts of a complete upload stay remembered");
        }
    }

    fn tell(&self, pack: &Pack, index: usize, ended: &Ended) {
        let label = ended.outcome.label();
        metrics::counter!("dth_objects_total", "outcome" => label.clone()).increment(1);
        metrics::counter!("dth_bytes_total", "outcome" => label).increment(ended.bytes);
        self.events.emit(|| Event::Ended { key: pack.jobs[index].key.clone(), outcome: ended.outcome, bytes: ended.bytes });
    }

    /// Jobs of a pack, as a message of their own.
    fn pack(&self, of: &Pack, jobs: Vec<Job>) -> Pack {
        Pack::new(&*self.env, of.run.clone(), jobs)
    }

    /// Sends packs; `false` when some could not be sent.
    async fn resend(&self, packs: Vec<Pack>, delay: Duration) -> Result<bool> {
        let mut open: Vec<Message> = packs.iter().map(|pack| Message { body: pack.to_body(), delay }).collect();
        let retry = self.settings.transfer.retry;
        for tried in 1..=retry.tries {
            // F3: a failed entry is sent again, the others are not.
            let results = retry.run(&*self.env, || self.queue.send(&open)).await?;
            open = open.into_iter().zip(results).filter(|(_, sent)| sent.is_err()).map(|(message, _)| message).collect();
            if open.is_empty() {
                return Ok(true);
            }
            tokio::time::sleep(retry.jittered(tried, &*self.env)).await;
        }
        Ok(false)
    }

    /// The pause before the next try of a job.
    fn delay(&self, attempts: u32) -> Duration {
        let cap = self.settings.max_delay_seconds.saturating_mul(1000).max(1);
        let most = 1000u64.saturating_mul(1 << attempts.min(16)).min(cap);
        Duration::from_millis(most / 2 + crate::env::random_below(&*self.env, most / 2 + 1))
    }
}

/// What becomes of a job, which counts there, after this work.
fn went(job: &Job, origin: Option<Origin>, work: Work) -> Went {
    let job = Job { origin, ..job.clone() };
    match work {
        Work::Ended(ended) => Went::Ended(ended),
        Work::HandedOut(parts) => {
            Went::Passed(parts.into_iter().map(|parts| Job { parts: Some(parts), attempts: 0, ..job.clone() }).collect())
        }
        Work::Passed => Went::Passed(Vec::new()),
        Work::Again => {
            let attempts = job.parts.as_ref().map_or(job.attempts, |parts| parts.attempts).saturating_add(ANEW);
            Went::Passed(vec![Job { attempts, ..job.anew() }])
        }
    }
}

/// The record of the end of a job, which counts there, with all the jobs that wait for it. They wait on while an upload is
/// under way.
fn ending(origin: Option<Origin>, ended: &Ended) -> RecordWrite {
    let mut record = ended.record.clone();
    let waiting = if record.upload.is_none() { std::mem::take(&mut record.waiting) } else { Vec::new() };
    let waiting = waiting.into_iter().filter(|job| *job != Waiting::events()).map(|job| (job.run, job.origin));
    let own = origin.map(|origin| (record.run.clone(), origin));
    let end = |(run, origin)| JobEnd { run, origin, outcome: ended.outcome, bytes: ended.bytes };
    let ends = own.into_iter().chain(waiting).map(end).collect();
    RecordWrite { record, ends }
}

/// How a message of a single job is closed, by the record of its end.
fn closing(record: Option<&Record>) -> Close {
    match record.filter(|r| r.status == Status::Failed).and_then(|r| r.failure.as_ref()) {
        Some(failure) => Close::Dead(record.map(|r| r.key.clone()), failure.text.clone()),
        None => Close::Ack,
    }
}

/// A job of a pack, on its own.
fn again(pack: &Pack, index: usize, attempts: u32) -> Job {
    Job { attempts, origin: pack.origin(index), ..pack.jobs[index].clone() }
}

/// Whether the object was dealt with to an end after this event.
fn has_dealt_with(record: &Record, event: &Sequencer) -> bool {
    !matches!(record.status, Status::Started | Status::Failed) && record.sequencer.as_ref().is_some_and(|known| known >= event)
}

/// Two records that state the same fact, whoever found it.
fn says_the_same(stored: &Record, ours: &Record) -> bool {
    stored.status == ours.status
        && stored.source == ours.source
        && stored.destination == ours.destination
        && matches!(ours.status, Status::Done | Status::Cancelled | Status::Deleted | Status::Skipped)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "without a message".into()))
}
