//! Entries with children: leaves first, each only if the sink lacks it, the entry itself last.
//!
//! Children have no jobs of their own: they count with their root. What is content-addressed is brought once in a process,
//! whoever needs it; the others wait for it, and have it linked.

use super::{Attempt, Ended, Journal, Transfer, note, whole};
use crate::{
    checksum::Algorithm,
    error::{Error, ErrorKind, Op, Result},
    job::{Job, Seen},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey},
    proof::{Branch, Bug, reached, wrong},
    sink::{Condition, Placed},
    source::Family,
    state::{Outcome, Verified},
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::sync::OwnedMutexGuard;

/// Children of one entry under way at once.
const AT_ONCE: usize = 8;

/// Deepest nesting: an index of indexes of manifests of layers is four.
const DEEPEST: usize = 8;

/// What was brought.
#[derive(Debug, Default)]
pub(super) struct Brought {
    bytes: u64,
    /// Of those that nothing shows to have been read right.
    unproven: Option<Verified>,
    not_carried: Vec<String>,
}

impl Brought {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.unproven = self.unproven.or(other.unproven);
        self.not_carried.extend(other.not_carried);
    }

    /// What the children lost.
    pub(super) fn losses(&self) -> &[String] {
        &self.not_carried
    }

    fn count_in(&self, ended: &mut Ended) {
        ended.bytes += self.bytes;
        if self.unproven.is_some() {
            ended.record.verified = self.unproven;
            if let Outcome::Copied { proven, .. } = &mut ended.outcome {
                *proven = false;
            }
        }
    }
}

impl Transfer {
    /// One try at an entry with its children.
    pub(super) async fn with_children(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        journal: &mut Journal<'_>,
        line: &[ETag],
    ) -> Result<Attempt> {
        let asked = Entry { size: job.size, ..Entry::new(job.key.clone(), 0, job.etag.clone()) };
        let family = self.settings.retry.run(&*self.env, || async {
            let permit = self.source_limit.acquire().await;
            note(&permit, self.source.children(&asked).await)
        });
        let family = match family.await {
            Ok(family) => family,
            Err(mut error) => {
                // Gone is the entry, or one of its children: only the first ends it.
                if error.kind() == ErrorKind::NotFound {
                    error = match self.settings.retry.run(&*self.env, || self.source.head(&job.key, None)).await {
                        Ok(_) => return Err(Error::new(ErrorKind::Conflict, Op::Children, job.key.to_string()).with_source(error)),
                        Err(of_entry) => of_entry,
                    };
                }
                return self.unreadable(job, error, journal).await.map(|ended| Attempt::Ended(Box::new(ended)));
            }
        };
        if let Some(mut ended) = self.already_there(job, key, &ObjectInfo::of(family.entry.clone()), held, journal).await? {
            journal.brought.count_in(&mut ended);
            return Ok(Attempt::Ended(Box::new(ended)));
        }
        let brought = if wrong(Bug::ChildrenLast) { Ok(Brought::default()) } else { self.children_first(&family, line).await };
        let brought = match brought {
            Ok(brought) => brought,
            Err(error) => return Ok(Attempt::Failed(error)),
        };
        let Family { entry, .. } = &family;
        let job = Job { size: entry.size, etag: entry.etag.clone(), ..job.clone() };
        for name in &brought.not_carried {
            journal.not_carried(name);
        }
        // The next try finds them there.
        journal.brought.add(brought);
        let pinned = entry.etag.as_ref().filter(|_| !wrong(Bug::ChildrenOfAnother));
        let mut attempt = self.alone(&job, key, held, journal, pinned).await?;
        if wrong(Bug::ChildrenLast) {
            self.children_first(&family, line).await?;
        }
        if let Attempt::Ended(ended) = &mut attempt {
            journal.brought.count_in(ended);
        }
        Ok(attempt)
    }

    fn children_first<'a>(&'a self, family: &'a Family, line: &'a [ETag]) -> BoxFuture<'a, Result<Brought>> {
        Box::pin(async move {
            let invalid = |why: &str| Error::new(ErrorKind::Invalid, Op::Children, family.entry.key.to_string()).with_source(why);
            if line.len() >= DEEPEST && !family.children.is_empty() {
                return Err(invalid("children nest deeper than 8"));
            }
            let line: Vec<ETag> = line.iter().chain(family.entry.etag.as_ref()).cloned().collect();
            let mut waiting = family.children.iter();
            let mut under_way = FuturesUnordered::new();
            let (mut brought, mut failed) = (Brought::default(), None);
            loop {
                while failed.is_none()
                    && under_way.len() < AT_ONCE
                    && let Some(child) = waiting.next()
                {
                    under_way.push(self.bring(child, &line));
                }
                match under_way.next().await {
                    Some(Ok(more)) => brought.add(more),
                    // What is under way is not thrown away.
                    Some(Err(error)) => failed = failed.or(Some(error)),
                    None => return failed.map_or(Ok(brought), Err),
                }
            }
        })
    }

    /// Whether etags are digests, so that equal ones are of equal bytes, whoever needs them.
    fn is_by_content(&self) -> bool {
        self.source.index_capability().etag == EtagKind::Digest
    }

    async fn bring(&self, child: &Entry, line: &[ETag]) -> Result<Brought> {
        let by_content = self.is_by_content();
        if by_content && child.etag.as_ref().is_some_and(|etag| line.contains(etag)) {
            return Err(Error::new(ErrorKind::Invalid, Op::Children, child.key.to_string()).with_source("it is among its own children"));
        }
        let turn = match child.etag.as_ref().filter(|_| by_content) {
            Some(etag) => Some(self.flights.turn(etag).await),
            None => None,
        };
        let brought = self.bring_in_turn(child, line).await?;
        if let Some(turn) = turn {
            turn.landed();
        }
        Ok(brought)
    }

    async fn bring_in_turn(&self, child: &Entry, line: &[ETag]) -> Result<Brought> {
        let key = self.keys.to_destination(&child.key);
        let seen = loop {
            let placed = self.settings.retry.run(&*self.env, || async {
                let permit = self.sink_permit().await;
                note(&permit, self.sink.place(&key, child).await)
            });
            match placed.await? {
                Placed::There => {
                    reached(Branch::ChildThere);
                    // Known by its name to be right; by a name that is not checked here, to be there.
                    let checked = child.etag.as_ref().is_some_and(|etag| etag.as_str().starts_with("sha256:"));
                    let unproven = (self.is_by_content() && !checked).then_some(Verified::Transport(Algorithm::Crc64Nvme));
                    return Ok(Brought { unproven, ..Brought::default() });
                }
                Placed::Absent => break Seen::Absent,
                Placed::Other(etag) => break Seen::Present(etag),
                Placed::Unknown => break Seen::Unknown,
                Placed::Awaited(time) => tokio::time::sleep(time).await,
            }
        };
        let job = Job::copy(child, seen);
        let mut journal = Journal::of_child(&child.key, self.env.now());
        let ended = match self.copy(&job, &key, &mut journal, line).await.and_then(|work| whole(&job, work)) {
            Ok(ended) => ended,
            Err(error) => {
                self.drop_upload(&job, &mut journal).await?;
                return Err(error);
            }
        };
        if matches!(ended.outcome, Outcome::Cancelled | Outcome::Skipped(_)) {
            let why = if ended.outcome == Outcome::Cancelled { "a child is gone" } else { "a child cannot be carried" };
            return Err(Error::new(ErrorKind::Conflict, Op::Children, child.key.to_string()).with_source(why));
        }
        let unproven = ended.record.verified.filter(|_| matches!(ended.outcome, Outcome::Copied { proven: false, .. }));
        Ok(Brought { bytes: ended.bytes, unproven, not_carried: ended.record.not_carried })
    }
}

/// Who brings which content: one at a time, until somebody has.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights {
    all: Arc<Mutex<HashMap<ETag, Weak<Flight>>>>,
}

#[derive(Debug, Default)]
struct Flight {
    turn: Arc<tokio::sync::Mutex<()>>,
    landed: AtomicBool,
}

/// The right to bring, or, where it has been brought, to have it linked.
pub(super) struct Turn {
    flights: Flights,
    etag: ETag,
    flight: Option<Arc<Flight>>,
    /// Given back when the turn ends.
    alone: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    async fn turn(&self, etag: &ETag) -> Turn {
        let flight = {
            let mut all = self.lock();
            let known = all.get(etag).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let flight = Arc::new(Flight::default());
                all.insert(etag.clone(), Arc::downgrade(&flight));
                flight
            })
        };
        let queue = Arc::clone(&flight.turn);
        let mut turn = Turn { flights: self.clone(), etag: etag.clone(), flight: Some(flight), alone: None };
        if !turn.has_landed() {
            let alone = queue.lock_owned().await;
            // Linking needs no turn.
            turn.alone = Some(alone).filter(|_| !turn.has_landed());
        }
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ETag, Weak<Flight>>> {
        self.all.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Turn {
    fn has_landed(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.landed.load(Relaxed))
    }

    fn landed(&self) {
        if let Some(flight) = &self.flight {
            flight.landed.store(true, Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.flights.lock();
        drop(self.flight.take());
        // Nobody else waits for it: forgotten.
        if all.get(&self.etag).is_some_and(|flight| flight.strong_count() == 0) {
            all.remove(&self.etag);
        }
    }
}
