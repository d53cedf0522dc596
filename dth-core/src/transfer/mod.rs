//! One object from source to destination, so that the destination never holds anything but one whole, verified version.
//!
//! The steps are those of the protocol: read pinned, verify, publish under a condition, look when the answer was lost.
//! Nothing here knows queues or packs; [`Transfer`] serves the worker and `copy_one` alike.

mod check;
mod children;
mod giant;
mod history;
mod journal;
mod multipart;
mod publish;
mod single;
mod tee;

use children::Flights;
pub(crate) use giant::Giants;
pub(crate) use journal::is_same;
pub use journal::{Journal, Tenure};

use crate::{
    attribute::Attribute,
    checksum::Algorithm,
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result, Retry},
    filter::Filter,
    finder::FinderSettings,
    index::ListRequest,
    job::{Action, Job, JobParts, Overwrite, Seen},
    key_map::KeyMap,
    limit::{AdaptiveLimit, AdaptivePermit, AdaptiveSettings, BudgetPermit, MemoryBudget, RateLimit},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey, Tags},
    proof::{Branch, Bug, reached, wrong},
    retry::RetryPolicy,
    sink::{Condition, PutOptions, Sink, UploadId},
    source::{Read, ReadOptions, ReadRange, Restore, Source},
    state::{Failure, Outcome, Record, SkipReason, SourceVersion, Status, Verified},
    versions::Versions,
};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};
use tokio::sync::OnceCell;

/// How objects are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferSettings {
    /// Objects up to so many bytes are held in memory, verified, and written by one request.
    pub hold_max: u64,
    /// Objects of at least so many bytes are streamed instead of held, where the destination refuses a body without the checksum that the
    /// source gives.
    pub stream_min: u64,
    /// Objects up to so many bytes are written by one request where their checksum is known beforehand.
    pub single_max: u64,
    /// Bytes of a part in our own layout.
    pub part_size: u64,
    /// Parts of one object in flight.
    pub parts_in_flight: usize,
    /// Bytes in memory, over all transfers.
    pub memory: u64,
    /// Write multipart objects in the part layout of their source, so that etags can be compared.
    pub etag_parity: bool,
    /// Carry content headers, user metadata and tags.
    pub metadata: bool,
    /// An object with an attribute that the destination does not keep is not copied, but a failure.
    pub strict: bool,
    /// Copy inside the store where both sides are the same one.
    pub server_copy: bool,
    /// At most so many bytes a second leave the source.
    pub bytes_per_second: Option<u64>,
    /// At most so many requests a second to each side.
    pub requests_per_second: Option<u64>,
    /// Requests at once to the source.
    pub source_concurrency: AdaptiveSettings,
    /// Requests at once to the destination.
    pub sink_concurrency: AdaptiveSettings,
    /// Tries of a request, or of a part, before the job goes back to the queue.
    pub retry: RetryPolicy,
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self {
            hold_max: 4 << 20,
            stream_min: 256 << 10,
            single_max: 64 << 20,
            part_size: 16 << 20,
            parts_in_flight: 32,
            memory: 64 << 20,
            etag_parity: true,
            metadata: true,
            strict: false,
            server_copy: true,
            bytes_per_second: None,
            requests_per_second: None,
            source_concurrency: AdaptiveSettings::default(),
            sink_concurrency: AdaptiveSettings::default(),
            retry: RetryPolicy::default(),
        }
    }
}

/// Moves objects from one source to one sink.
#[derive(Clone)]
pub struct Transfer {
    source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    keys: KeyMap,
    env: SharedEnv,
    settings: Arc<TransferSettings>,
    budget: MemoryBudget,
    arriving: MemoryBudget,
    source_limit: AdaptiveLimit,
    sink_limit: AdaptiveLimit,
    bytes: Option<RateLimit>,
    source_requests: Option<RateLimit>,
    sink_requests: Option<RateLimit>,
    flights: Flights,
    versions: Versions,
    restore: Option<Restore>,
    /// What stands at the destination is left there, and something put behind it, be it the same.
    appends: bool,
    /// That the sink keeps versions, once it has said so.
    keeps_versions: Arc<OnceCell<()>>,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("source", &self.source).field("sink", &self.sink).finish_non_exhaustive()
    }
}

/// The right to a read under way, and room for what arrives of it.
struct ReadPermit {
    _permit: AdaptivePermit,
    _arriving: BudgetPermit,
}

/// Bytes of an answer that may have arrived before anybody asks for them: in the HTTP client, and in the TLS layer.
const READ_WINDOW: u64 = 192 << 10;

/// The part of the memory that answers may take before they are passed on.
const ARRIVING: u64 = 3;

/// How a job ended, and the record that says so.
#[derive(Debug, Clone)]
pub struct Ended {
    /// For the ledger.
    pub outcome: Outcome,
    /// Bytes of the object.
    pub bytes: u64,
    /// What to record.
    pub record: Record,
    /// An upload that is complete: its parts may be forgotten once the record is durable.
    pub(crate) filled: Option<UploadId>,
}

/// What one delivery of a job came to.
#[derive(Debug)]
pub(crate) enum Work {
    Ended(Box<Ended>),
    /// The object goes on as jobs of its parts, to be sent before the message is acknowledged.
    HandedOut(Vec<JobParts>),
    /// Another message goes on with the object, or there is nothing left to do.
    Passed,
    /// The object's own job is to be sent again before the message is acknowledged.
    Again,
}

/// One try at an object.
enum Attempt {
    Ended(Box<Ended>),
    /// The source is another version now, or the destination another object: start again from fresh looks.
    Changed,
    /// Its parts are jobs now.
    HandedOut(Vec<JobParts>),
    /// One of its children failed, which has been tried as often as anything is.
    Failed(Error),
}

/// Fresh starts on a moving object before the job goes back to the queue.
const FRESH_STARTS: u32 = 6;

impl Transfer {
    /// A transfer between two stores. Budget and limits are shared by its clones.
    pub fn new(source: Arc<dyn Source>, sink: Arc<dyn Sink>, keys: KeyMap, env: SharedEnv, settings: TransferSettings) -> Self {
        Self {
            budget: MemoryBudget::new(settings.memory),
            arriving: MemoryBudget::new(settings.memory / ARRIVING),
            source_limit: AdaptiveLimit::new(settings.source_concurrency),
            sink_limit: AdaptiveLimit::new(settings.sink_concurrency),
            bytes: settings.bytes_per_second.map(RateLimit::new),
            source_requests: settings.requests_per_second.map(RateLimit::new),
            sink_requests: settings.requests_per_second.map(RateLimit::new),
            source,
            sink,
            keys,
            env,
            settings: Arc::new(settings),
            flights: Flights::default(),
            versions: Versions::default(),
            restore: None,
            appends: false,
            keeps_versions: Arc::default(),
        }
    }

    /// Takes from the task's finder which versions are moved, and whether archived objects are restored.
    pub fn with_selection(mut self, finder: &FinderSettings) -> Self {
        self.versions = finder.versions;
        self.restore.clone_from(&finder.restore);
        self
    }

    /// Whether objects are moved with all that they were.
    pub(crate) fn moves_histories(&self) -> bool {
        self.versions == Versions::All
    }

    /// The settings.
    pub fn settings(&self) -> &TransferSettings {
        &self.settings
    }

    /// The sink.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Requests at once to source and sink.
    pub(crate) fn limits(&self) -> (AdaptiveLimit, AdaptiveLimit) {
        (self.source_limit.clone(), self.sink_limit.clone())
    }

    /// Bytes held in memory now.
    pub fn memory_in_flight(&self) -> u64 {
        self.budget.in_flight()
    }

    /// Whether the filter takes what the source holds under this key now, or, where it holds nothing, the destination.
    pub(crate) async fn takes(&self, filter: &Filter, key: &ObjectKey) -> Result<bool> {
        if !filter.asks_for_more_than_keys() {
            return Ok(true);
        }
        match self.settings.retry.run(&*self.env, || self.source.head(key, None)).await {
            Ok(info) => Ok(filter.takes(&info.entry)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let there = self.look(&self.keys.to_destination(key)).await?;
                Ok(there.is_none_or(|found| filter.takes(&Entry { key: key.clone(), ..found.entry })))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a job whose object the filter refuses, with what was begun for it; there may be nothing to end.
    pub(crate) async fn leave_out(&self, job: &Job, counts: bool, journal: &mut Journal<'_>) -> Result<Work> {
        if !counts && journal.record().upload.is_none() && journal.record().waiting.is_empty() {
            return Ok(Work::Passed);
        }
        self.drop_upload(job, journal).await?;
        Ok(Work::Ended(Box::new(self.skipped(journal, SkipReason::Filtered, job.size.unwrap_or(0)))))
    }

    /// Does one job to its end. An error leaves nothing visible that was not whole; the job may be tried again.
    ///
    /// Dropping it at any await is safe: what was published is whole, and an upload under way is in the journal.
    pub async fn run(&self, job: &Job, journal: &mut Journal<'_>) -> Result<Ended> {
        whole(job, self.work(job, journal).await?)
    }

    /// As [`run`](Self::run); where the journal allows it, a giant goes out in parts.
    pub(crate) async fn work(&self, job: &Job, journal: &mut Journal<'_>) -> Result<Work> {
        let key = self.keys.to_destination(&job.key);
        if !self.sink.carries(&key) {
            return Ok(Work::Ended(Box::new(self.skipped(journal, SkipReason::Unrepresentable, job.size.unwrap_or(0)))));
        }
        if self.moves_histories() {
            return Box::pin(self.history(job, &key, journal)).await;
        }
        match job.action {
            Action::Delete => Box::pin(self.delete(job, &key, journal)).await,
            Action::Copy | Action::Adopt => {
                let done = self.copy(job, &key, journal, &[]).await?;
                let gone = matches!(&done, Work::Ended(ended) if ended.outcome == Outcome::Cancelled);
                if gone && journal.record().status == Status::Deleted {
                    // Somebody removed it because the source does not hold it; a worker that had read it before may have brought
                    // it back since.
                    let again = Job { action: Action::Delete, destination: Seen::Unknown, ..job.anew() };
                    return Box::pin(self.delete(&again, &key, journal)).await;
                }
                Ok(done)
            }
        }
    }

    async fn copy(&self, job: &Job, key: &ObjectKey, journal: &mut Journal<'_>, line: &[ETag]) -> Result<Work> {
        if let Some(ended) = self.already_recorded(job, key, journal).await? {
            return Ok(Work::Ended(Box::new(ended)));
        }
        if job.action == Action::Adopt
            && let Some(ended) = self.adopt(job, key, journal).await?
        {
            return Ok(Work::Ended(Box::new(ended)));
        }
        let mut condition = job.destination.condition();
        let mut tries = 0;
        let mut starts = 0;
        loop {
            let held = match &condition {
                Some(condition) => condition.clone(),
                None => {
                    let found = self.look(key).await?;
                    if let Some(found) = found.as_ref().filter(|_| job.overwrite != Overwrite::Always)
                        && let Some(reason) = self.kept(job, found, journal.record()).await?
                    {
                        self.drop_upload(job, journal).await?;
                        return Ok(Work::Ended(Box::new(self.skipped(journal, reason, job.size.unwrap_or(0)))));
                    }
                    Condition::still(found.as_ref().and_then(|i| i.entry.etag.as_ref()))
                }
            };
            match self.attempt(job, key, &held, journal, line).await {
                Ok(Attempt::Ended(ended)) => return Ok(Work::Ended(ended)),
                Ok(Attempt::HandedOut(parts)) => return Ok(Work::HandedOut(parts)),
                Ok(Attempt::Failed(error)) => return Err(error),
                // Somebody else wrote the destination since it was listed.
                Ok(Attempt::Changed) if job.overwrite != Overwrite::Always && self.look(key).await?.is_some() => {
                    self.drop_upload(job, journal).await?;
                    let reason = if job.overwrite == Overwrite::Never { SkipReason::Exists } else { SkipReason::Newer };
                    return Ok(Work::Ended(Box::new(self.skipped(journal, reason, job.size.unwrap_or(0)))));
                }
                Ok(Attempt::Changed) => {
                    reached(Branch::DestinationChanged);
                    starts += 1;
                    if starts >= FRESH_STARTS {
                        return Err(Error::new(ErrorKind::Conflict, Op::Transfer, self.name_of(key))
                            .with_source("source or destination kept changing while it was moved"));
                    }
                    journal.still_ours(&self.settings.retry, &self.env).await?;
                    condition = None;
                }
                Err(error) => {
                    tries += 1;
                    let Some(pause) = self.settings.retry.pause(&error, tries, &*self.env) else { return Err(error) };
                    tracing::debug!(key = %job.key, error = %error.chain(), tries, "trying again");
                    metrics::counter!("dth_retries_total", "op" => "Transfer").increment(1);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Why the destination's object is to stay, by the policy of a job whose finder did not see it.
    async fn kept(&self, job: &Job, found: &ObjectInfo, record: &Record) -> Result<Option<SkipReason>> {
        if job.overwrite == Overwrite::Never {
            return Ok(Some(SkipReason::Exists));
        }
        if is_ours(record, found) {
            // When we wrote it says nothing of how old it is.
            return Ok(None);
        }
        match self.settings.retry.run(&*self.env, || self.source.head(&job.key, None)).await {
            Ok(info) => {
                let newer = matches!((info.entry.modified, found.entry.modified), (Some(s), Some(d)) if s > d);
                Ok((!newer).then_some(SkipReason::Newer))
            }
            // The read decides what it means.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn attempt(&self, job: &Job, key: &ObjectKey, held: &Condition, journal: &mut Journal<'_>, line: &[ETag]) -> Result<Attempt> {
        if self.source.source_capability().children {
            Box::pin(self.with_children(job, key, held, journal, line)).await
        } else {
            self.alone(job, key, held, journal, None).await
        }
    }

    /// One try at an object whose children, if it has some, are there. `pinned` is the version that they are the children of.
    async fn alone(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        journal: &mut Journal<'_>,
        pinned: Option<&ETag>,
    ) -> Result<Attempt> {
        let origin = (self.settings.server_copy && pinned.is_none()).then(|| self.source.copy_origin(&job.key, None)).flatten();
        if let Some(origin) = origin.filter(|o| self.sink.can_copy(o)) {
            match Box::pin(self.copy_inside(job, key, held, &origin, journal)).await {
                // What the store does not copy, or not for us, can still go through us.
                Err(error) if matches!(error.op(), Op::Copy | Op::CopyPart) && is_refusal(error.kind()) => {
                    reached(Branch::CopyRefused);
                    tracing::debug!(key = %job.key, error = %error.chain(), "not copied inside the store");
                }
                done => return done,
            }
        }
        let options = ReadOptions { range: self.first_range(job), if_match: pinned.cloned(), version: None };
        let mut first = self.read(job, &options).await;
        if matches!((&first, &options.range), (Err(e), ReadRange::Bytes(_)) if e.kind() == ErrorKind::Corrupt) {
            // T4: it shrank below what the listing said.
            first = self.read(job, &ReadOptions { range: ReadRange::Full, ..options.clone() }).await;
        }
        let (read, permit) = match first {
            Ok(read) => read,
            // Another version, or none: whoever asks for its children again will see.
            Err(error) if pinned.is_some() && error.kind() == ErrorKind::Precondition => return Ok(Attempt::Changed),
            Err(error) if pinned.is_some() && error.kind() == ErrorKind::NotFound && self.source.head(&job.key, None).await.is_ok() => {
                return Ok(Attempt::Changed);
            }
            Err(error) => return self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e))),
        };
        if let Some(ended) = self.already_there(job, key, &read.info, held, journal).await? {
            return Ok(Attempt::Ended(Box::new(ended)));
        }
        let size = read.info.entry.size.unwrap_or(read.range.end);
        let whole = read.range == (0..size);
        if !whole && matches!(options.range, ReadRange::Bytes(_)) && self.goes_whole(&read.info, size) {
            // It is smaller than the listing (or an event) said: read as one, it can be checked as one.
            let pinned = ReadOptions { range: ReadRange::Full, if_match: read.info.entry.etag.clone(), version: None };
            drop((read, permit));
            return match self.read(job, &pinned).await {
                Ok((read, permit)) => {
                    self.drop_upload(job, journal).await?;
                    if self.goes_held_or_streamed(&read.info, size).0 {
                        Box::pin(self.single(key, held, read, permit, journal)).await
                    } else {
                        Box::pin(self.streamed(key, held, read, permit, None, journal)).await
                    }
                }
                Err(error) if error.kind() == ErrorKind::Precondition => Ok(Attempt::Changed),
                Err(error) => self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e))),
            };
        }
        let (held_whole, streamed_whole) = if whole { self.goes_held_or_streamed(&read.info, size) } else { (false, false) };
        let capability = self.sink.sink_capability();
        let one_request = capability.multipart.is_none() && size <= capability.max_put;
        if held_whole || streamed_whole || one_request {
            // T2: an upload of an earlier version is of no use to this one.
            self.drop_upload(job, journal).await?;
        }
        // Each in a box of its own: hundreds of jobs wait for their turn, and none of them needs room for all of this.
        if held_whole {
            Box::pin(self.single(key, held, read, permit, journal)).await
        } else if one_request {
            let first_part = (options.range == ReadRange::FirstPart && !whole).then_some(read.range.end);
            Box::pin(self.in_one_request(job, key, held, read, permit, first_part, journal)).await
        } else if streamed_whole {
            Box::pin(self.streamed(key, held, read, permit, None, journal)).await
        } else {
            let parts = read.info.entry.etag.as_ref().and_then(ETag::part_count).unwrap_or(1);
            let layout_unknown = parts > 1 && options.range != ReadRange::FirstPart && self.source.source_capability().first_part;
            if layout_unknown {
                // The listing (or an event) said too little: the part layout comes with the first part.
                let pinned = ReadOptions { range: ReadRange::FirstPart, if_match: read.info.entry.etag.clone(), version: None };
                drop((read, permit));
                return match self.read(job, &pinned).await {
                    Ok((read, permit)) => Box::pin(self.multipart(job, key, held, read, permit, journal)).await,
                    Err(error) if error.kind() == ErrorKind::Precondition => Ok(Attempt::Changed),
                    Err(error) => self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e))),
                };
            }
            Box::pin(self.multipart(job, key, held, read, permit, journal)).await
        }
    }

    /// Whether an object is written by one request where parts would do as well.
    fn goes_whole(&self, info: &ObjectInfo, size: u64) -> bool {
        let (held, streamed) = self.goes_held_or_streamed(info, size);
        self.sink.sink_capability().multipart.is_some() && (held || streamed)
    }

    /// Whether an object is held in memory, or streamed, into one request.
    fn goes_held_or_streamed(&self, info: &ObjectInfo, size: u64) -> (bool, bool) {
        let may_be_held = size <= self.settings.hold_max.min(self.sink.sink_capability().max_put);
        let streams = self.streams_whole(info, size);
        // What the sink judges by itself need not be held to be judged.
        let held = may_be_held && !(streams && size >= self.settings.stream_min && self.known_sum(info).is_some());
        (held, streams && !held)
    }

    /// To a sink without parts: one stream, proven by the strongest thing that the source says of the object. Of an etag of
    /// parts that is the size of its first part, which is asked for where it is not known yet.
    async fn in_one_request(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        read: Read,
        permit: ReadPermit,
        mut part_size: Option<u64>,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let info = &read.info;
        let size = info.entry.size.unwrap_or(0);
        let parts =
            info.entry.etag.as_ref().and_then(ETag::part_count).filter(|_| info.checksum.is_none() && !journal.parity.is_hopeless());
        let whole = read.range == (0..size);
        if parts == Some(1) {
            part_size = Some(size);
        }
        let asks = parts.is_some() && part_size.is_none() && self.source.source_capability().first_part;
        if whole && !asks {
            return self.streamed(key, held, read, permit, part_size, journal).await;
        }
        let pinned = |range| ReadOptions { range, if_match: info.entry.etag.clone(), version: None };
        let (first, all) = (pinned(ReadRange::FirstPart), pinned(ReadRange::Full));
        drop((read, permit));
        let read = async {
            if asks {
                let (read, _permit) = self.read(job, &first).await?;
                part_size = Some(read.range.end);
            }
            self.read(job, &all).await
        };
        match read.await {
            Ok((read, permit)) => self.streamed(key, held, read, permit, part_size, journal).await,
            Err(error) if error.kind() == ErrorKind::Precondition => Ok(Attempt::Changed),
            Err(error) => self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e))),
        }
    }

    /// What to ask for first, by what the listing said; the answer decides what is done.
    fn first_range(&self, job: &Job) -> ReadRange {
        let capability = self.source.source_capability();
        let size = job.size.unwrap_or(0);
        let parts = job.etag.as_ref().and_then(ETag::part_count).unwrap_or(1);
        let single = if parts > 1 { self.settings.hold_max } else { self.settings.single_max };
        let in_parts = self.sink.sink_capability().multipart.is_some();
        if size <= single || !capability.ranged {
            ReadRange::Full
        } else if parts > 1 && capability.first_part && self.source.index_capability().etag == EtagKind::Md5 {
            ReadRange::FirstPart
        } else if !in_parts {
            ReadRange::Full
        } else {
            ReadRange::Bytes(0..self.settings.part_size.min(size))
        }
    }

    /// A duplicate of a message whose work is done costs one look.
    async fn already_recorded(&self, job: &Job, key: &ObjectKey, journal: &Journal<'_>) -> Result<Option<Ended>> {
        let record = journal.record();
        let same = record.status == Status::Done
            && job.etag.is_some()
            && record.source.as_ref().is_some_and(|s| s.etag == job.etag && Some(s.size) == job.size)
            && record.destination.as_ref().is_some_and(|d| job.destination != Seen::Present(d.clone()));
        if !same {
            return Ok(None);
        }
        let found = self.look(key).await?;
        let holds = wrong(Bug::RecordTrusted) || found.is_some_and(|info| info.entry.etag == record.destination);
        if holds {
            reached(Branch::RecordedAlready);
        }
        Ok(holds.then(|| Ended {
            outcome: Outcome::AlreadyCurrent,
            bytes: job.size.unwrap_or(0),
            record: journal.again(Status::Done, self.env.now()),
            filled: None,
        }))
    }

    /// Takes over what another tool put at the destination, if a checksum of the whole object shows that it is the same.
    async fn adopt(&self, job: &Job, key: &ObjectKey, journal: &Journal<'_>) -> Result<Option<Ended>> {
        let source = match self.settings.retry.run(&*self.env, || self.source.head(&job.key, None)).await {
            Ok(info) => info,
            // The read decides what it means.
            Err(_) => return Ok(None),
        };
        let Some(found) = self.look(key).await? else { return Ok(None) };
        let expected =
            check::Expected { size: source.entry.size.unwrap_or(0), checksum: source.checksum.clone(), ..check::Expected::default() };
        let (true, Some(sum), Some(etag)) = (expected.matches(&found), source.checksum.clone(), found.entry.etag) else {
            return Ok(None);
        };
        let algorithm = sum.algorithm;
        let mut ended = self.done(journal, &source.entry, etag, Some(sum), Verified::Source(algorithm));
        ended.outcome = Outcome::AlreadyCurrent;
        Ok(Some(ended))
    }

    /// Whether the destination, as it was seen, is what the source holds.
    async fn already_there(
        &self,
        job: &Job,
        key: &ObjectKey,
        info: &ObjectInfo,
        held: &Condition,
        journal: &mut Journal<'_>,
    ) -> Result<Option<Ended>> {
        let Condition::Match(etag) = held else { return Ok(None) };
        if self.appends {
            return Ok(None);
        }
        let kind = self.source.index_capability().etag;
        if !kind.is_comparable_with(self.sink.index_capability().etag) || info.opaque_etag || info.entry.etag.as_ref() != Some(etag) {
            return Ok(None);
        }
        // What was seen may be long ago: the listing is older than this message.
        if self.look(key).await?.is_none_or(|found| found.entry.etag.as_ref() != Some(etag)) {
            return Ok(None);
        }
        reached(Branch::AlreadyThere);
        self.drop_upload(job, journal).await?;
        self.settings.retry.run(&*self.env, || self.sink.settle(key, etag)).await?;
        if self.sink.sink_capability().tags_follow && journal.is_redelivery() {
            // A worker may have died between the completion and the tags.
            let tags = self.tags_of(info, false).await?;
            if !tags.is_empty() {
                self.settings.retry.run(&*self.env, || self.sink.put_tags(key, &tags)).await?;
            }
        }
        let verified = Verified::Source(if kind == EtagKind::Digest { Algorithm::Sha256 } else { Algorithm::Md5 });
        let mut ended = self.done(journal, &info.entry, etag.clone(), None, verified);
        ended.outcome = Outcome::AlreadyCurrent;
        let known = journal.record();
        if (&known.source, &known.destination) == (&ended.record.source, &ended.record.destination) {
            // What was lost when it was brought is lost still.
            ended.record.not_carried.clone_from(&known.not_carried);
        }
        Ok(Some(ended))
    }

    /// A header answer has no body: whether the key is gone, or the bucket, or a gateway had nothing to say, a listing tells.
    async fn confirm_gone(&self, key: &ObjectKey, error: &Error) -> Result<()> {
        if error.kind() != ErrorKind::NotFound {
            return Ok(());
        }
        let request = ListRequest { prefix: key.as_str().to_owned(), max: Some(1), ..ListRequest::default() };
        let page = self.settings.retry.run(&*self.env, || self.source.list(&request)).await?;
        if page.entries.first().is_some_and(|entry| entry.key == *key) {
            return Err(Error::new(ErrorKind::Unavailable, Op::Head, key.to_string()).with_source("listed, but not found by its key"));
        }
        Ok(())
    }

    /// The end of an object that cannot be read; errors that may pass go on.
    async fn unreadable(&self, job: &Job, error: Error, journal: &mut Journal<'_>) -> Result<Ended> {
        match error.kind() {
            kind if kind == ErrorKind::NotFound || wrong(Bug::AnyErrorIsGone) => {
                reached(Branch::Vanished);
                self.drop_upload(job, journal).await?;
                let record = Record { source: None, destination: None, ..journal.next(Status::Cancelled, self.env.now()) };
                Ok(Ended { outcome: Outcome::Cancelled, bytes: job.size.unwrap_or(0), record, filled: None })
            }
            ErrorKind::Archived | ErrorKind::Unrepresentable => {
                self.drop_upload(job, journal).await?;
                let reason = match error.kind() {
                    ErrorKind::Archived => match self.ask_back(&job.key, None).await? {
                        Some(reason) => reason,
                        // It came back, or went, just now.
                        None => return Err(error.with_retry(Retry::Backoff)),
                    },
                    _ => SkipReason::Unrepresentable,
                };
                Ok(self.skipped(journal, reason, job.size.unwrap_or(0)))
            }
            _ => Err(error),
        }
    }

    fn skipped(&self, journal: &Journal<'_>, reason: SkipReason, bytes: u64) -> Ended {
        // An upload of another job may be under way, or what stands there may be our own: this one has nothing to say about it.
        let status = match journal.record() {
            record if record.upload.is_some() => Status::Started,
            record if record.status == Status::Done && reason == SkipReason::Exists => Status::Done,
            _ => Status::Skipped,
        };
        Ended { outcome: Outcome::Skipped(reason), bytes, record: journal.again(status, self.env.now()), filled: None }
    }

    fn done(
        &self,
        journal: &Journal<'_>,
        source: &Entry,
        destination: ETag,
        checksum: Option<crate::checksum::Checksum>,
        verified: Verified,
    ) -> Ended {
        let verified = match verified {
            Verified::Source(algorithm) if !self.sink_shows() => Verified::Transport(algorithm),
            verified => verified,
        };
        let mut record = journal.next(Status::Done, self.env.now());
        let outcome = Outcome::Copied { proven: !matches!(verified, Verified::Transport(_)), whole: record.not_carried.is_empty() };
        record.source = Some(SourceVersion::of(source));
        record.destination = Some(destination);
        record.checksum = checksum;
        record.verified = Some(verified);
        record.upload = None;
        record.failure = None;
        Ended { outcome, bytes: source.size.unwrap_or(0), record, filled: None }
    }

    /// The record of a job that is given up.
    pub fn failed(&self, job: &Job, error: &Error, journal: &Journal<'_>) -> Ended {
        let mut record = journal.next(Status::Failed, self.env.now());
        record.failure = Some(Failure { kind: error.kind(), text: error.chain() });
        Ended { outcome: Outcome::Failed(error.kind()), bytes: job.size.unwrap_or(0), record, filled: None }
    }

    async fn delete(&self, job: &Job, key: &ObjectKey, journal: &mut Journal<'_>) -> Result<Work> {
        let retry = self.settings.retry;
        let by_event = job.destination == Seen::Unknown;
        let mut starts = 0;
        let outcome = loop {
            // Before the look at the source: what is written between the two is not what is deleted.
            let seen = match job.destination.condition() {
                Some(condition) => condition,
                None => match self.look(key).await? {
                    None => Condition::Absent,
                    Some(found) => found.entry.etag.map_or(Condition::None, Condition::Match),
                },
            };
            // I5: never delete what the source holds.
            match retry.run(&*self.env, || self.source.head(&job.key, None)).await {
                _ if wrong(Bug::DeleteUnseen) => {}
                Ok(info) => {
                    reached(Branch::DeleteRefused);
                    // An event is a hint to look. And where an earlier delivery has thrown the upload away that jobs wait for, it is
                    // for us now to bring the object.
                    if by_event || (journal.record().upload.is_none() && !journal.record().waiting.is_empty()) {
                        return self.copy(&held_now(job, &info.entry), key, journal, &[]).await;
                    }
                    return Ok(Work::Ended(Box::new(self.skipped(journal, SkipReason::SourceExists, info.entry.size.unwrap_or(0)))));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => self.confirm_gone(&job.key, &error).await?,
                Err(error) => return Err(error),
            }
            if by_event && journal.record().upload.is_some() {
                // Whoever was completing it may have done so since the look, and have died: from here on nobody can.
                self.drop_upload(job, journal).await?;
                continue;
            }
            self.drop_upload(job, journal).await?;
            let conditional = self.sink.sink_capability().conditions.delete && !wrong(Bug::UnconditionalDelete);
            let condition = if conditional { seen.clone() } else { Condition::None };
            // For an event, a condition that does not hold is an answer: it looks again at once.
            let delete = || async {
                match self.sink.delete(key, &condition).await {
                    Err(error) if by_event && error.kind() == ErrorKind::Precondition => Ok(false),
                    deleted => deleted.map(|()| true),
                }
            };
            let deleted = match &seen {
                Condition::Absent => Ok(true),
                _ => retry.run(&*self.env, delete).await,
            };
            match deleted {
                Ok(true) => break Outcome::Deleted,
                Ok(false) => {
                    reached(Branch::DeleteConflict);
                    // Perhaps by a worker that had read the object before it was deleted: no later event tells of it.
                    starts += 1;
                    if starts >= FRESH_STARTS {
                        return Err(Error::new(ErrorKind::Conflict, Op::Delete, self.name_of(key))
                            .with_source("the destination kept changing while it was deleted"));
                    }
                    journal.still_ours(&self.settings.retry, &self.env).await?;
                }
                // Somebody wrote it since it was listed: a later run looks again.
                Err(error) if error.kind() == ErrorKind::Precondition => {
                    reached(Branch::DeleteConflict);
                    break Outcome::Skipped(SkipReason::Newer);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => break Outcome::Deleted,
                Err(error) => return Err(error),
            }
        };
        // It may have come back since, and have been found equal, or copied, by somebody else: the deletion undid that.
        match retry.run(&*self.env, || self.source.head(&job.key, None)).await {
            Ok(info) => {
                reached(Branch::CameBack);
                return self.copy(&held_now(job, &info.entry), key, journal, &[]).await;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let status = if outcome == Outcome::Deleted { Status::Deleted } else { Status::Skipped };
        let record = Record { source: None, destination: None, ..journal.next(status, self.env.now()) };
        Ok(Work::Ended(Box::new(Ended { outcome, bytes: job.size.unwrap_or(0), record, filled: None })))
    }

    /// Looks at the destination; `None` where nothing is.
    async fn look(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let looked = self.settings.retry.run(&*self.env, || async {
            let permit = self.sink_permit().await;
            note(&permit, self.sink.head(key, None).await)
        });
        match looked.await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads, once there is room for what arrives before anybody asks for it: answers come sooner than their bodies are passed on.
    async fn read(&self, job: &Job, options: &ReadOptions) -> Result<(Read, ReadPermit)> {
        let key = &job.key;
        let expected = match &options.range {
            ReadRange::Bytes(range) => range.end - range.start,
            ReadRange::Full | ReadRange::FirstPart => job.size.unwrap_or(READ_WINDOW),
        };
        let arriving = self.arriving.acquire(expected.min(READ_WINDOW)).await;
        if let Some(rate) = &self.source_requests {
            rate.pass(1).await;
        }
        let permit = self.source_limit.acquire().await;
        let read = note(&permit, self.source.read(key, options).await)?;
        if options.if_match.is_some() && options.if_match != read.info.entry.etag && !wrong(Bug::AnswerNotCompared) {
            // The server ignored If-Match; the answer tells.
            return Err(Error::new(ErrorKind::Precondition, Op::Read, key.to_string()));
        }
        Ok((read, ReadPermit { _permit: permit, _arriving: arriving }))
    }

    async fn sink_permit(&self) -> AdaptivePermit {
        if let Some(rate) = &self.sink_requests {
            rate.pass(1).await;
        }
        self.sink_limit.acquire().await
    }

    /// Content headers, metadata and tags for the destination; what that does not keep is noted anew.
    async fn put_options(&self, info: &ObjectInfo, journal: &mut Journal<'_>, from_head: bool) -> Result<PutOptions> {
        let mut options = PutOptions { child: journal.child, ..PutOptions::default() };
        if !self.settings.metadata {
            return Ok(options);
        }
        options.attributes = info.attributes.clone();
        journal.begin_losses();
        for name in self.sink.not_carried(&info.attributes) {
            journal.not_carried(&name);
        }
        let keeps_tags = self.sink.sink_capability().tags;
        // Of how many there are, nothing more need be known where none is kept.
        let known_to_be_lost = !keeps_tags && info.tag_count.is_some_and(|n| n > 0);
        let tags = if known_to_be_lost { Tags::new() } else { self.tags_of(info, from_head).await? };
        if known_to_be_lost || !keeps_tags && !tags.is_empty() {
            journal.not_carried(Attribute::Tags.as_str());
        } else {
            options.tags = tags;
        }
        if self.settings.strict && !journal.losses().is_empty() {
            let why = format!("the destination does not keep {} (worker.transfer.strict)", journal.losses().join(", "));
            return Err(Error::new(ErrorKind::Unrepresentable, Op::Transfer, info.entry.key.to_string()).with_source(why));
        }
        Ok(options)
    }

    /// The tags of a source object, which is asked for them only where it may have some.
    async fn tags_of(&self, info: &ObjectInfo, from_head: bool) -> Result<Tags> {
        // A GET names the number of tags where there are some; a HEAD need not.
        let may_have = self.source.source_capability().tags && info.tag_count.map_or(from_head, |n| n > 0);
        if !self.settings.metadata || !may_have {
            return Ok(Tags::new());
        }
        let entry = &info.entry;
        let tags = self.settings.retry.run(&*self.env, || self.source.tags(&entry.key, entry.version.as_ref()));
        tags.await.map_err(|error| match error.kind() {
            // It was there a moment ago: the next try finds out what became of it.
            ErrorKind::NotFound => Error::new(ErrorKind::Conflict, Op::Tags, entry.key.to_string()).with_source(error),
            _ => error,
        })
    }

    /// Whether the sink refuses wrong bytes, or tells something of those that it stored.
    fn sink_shows(&self) -> bool {
        let capability = self.sink.sink_capability();
        !capability.verifies.is_empty() || !capability.checksums.is_empty() || self.sink.index_capability().etag != EtagKind::Opaque
    }

    fn name_of(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.sink.name())
    }
}

/// Whether what was found at the destination is what we recorded there last, whatever has been begun since.
fn is_ours(record: &Record, found: &ObjectInfo) -> bool {
    record.destination.is_some() && record.destination == found.entry.etag
}

/// The job to bring what the source holds now.
fn held_now(job: &Job, entry: &Entry) -> Job {
    Job { action: Action::Copy, size: entry.size, etag: entry.etag.clone(), destination: Seen::Unknown, parts: None, ..job.clone() }
}

/// Of an object that was not to be handed out.
fn whole(job: &Job, work: Work) -> Result<Ended> {
    match work {
        Work::Ended(ended) => Ok(*ended),
        _ => Err(Error::new(ErrorKind::Internal, Op::Transfer, job.key.to_string()).with_source("handed out without leave")),
    }
}

/// Whether an operation is not to be had, whatever the object's state.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::Unsupported)
}

/// Tells the limit how the endpoint answered.
fn note<T>(permit: &AdaptivePermit, answer: Result<T>) -> Result<T> {
    match &answer {
        Ok(_) => permit.answered(),
        Err(error) if matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable) => permit.throttled(),
        Err(_) => {}
    }
    answer
}
