//! What one job writes down while it runs: the record of its key, each write fenced and by version.

use super::{Giants, children::Brought};
use crate::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, Entry, ObjectKey, Sequencer},
    proof::{Branch, Bug, reached, wrong},
    retry::RetryPolicy,
    sink::{Part, UploadId},
    state::{Committed, Fence, Origin, Record, RecordWrite, RunId, SourceVersion, StateStore, Status, Waiting, WriteResult},
};
use jiff::Timestamp;
use std::{
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// Whether the source's parts can be told from the size of its first one.
///
/// Parts of the source's layout that do not give its etag were either read wrong, or are not equal in size there. Reading
/// wrong does not give the same wrong etag twice; unequal parts do.
#[derive(Debug, Default)]
pub(super) struct Parity {
    wrong: Option<ETag>,
    hopeless: bool,
}

impl Parity {
    pub(super) fn failed(&mut self, etag: Option<ETag>) {
        self.hopeless |= etag.is_none() || self.wrong == etag;
        self.wrong = etag;
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.hopeless
    }
}

/// One delivery's right to publish and commit, shared by its jobs.
#[derive(Debug)]
pub struct Tenure<'a> {
    store: &'a dyn StateStore,
    fence: &'a Fence,
    /// When the fence was last known to hold.
    held: Mutex<Instant>,
}

/// After so long, a worker asks whether its message is still its own before it makes anything visible: it may have been
/// frozen, and somebody else may have done (and recorded, and acknowledged) the work meanwhile.
const TRUST: Duration = Duration::from_secs(5);

impl<'a> Tenure<'a> {
    /// The right that a claim gave just now.
    pub fn new(store: &'a dyn StateStore, fence: &'a Fence) -> Self {
        Self { store, fence, held: Mutex::new(Instant::now()) }
    }

    fn held(&self) -> MutexGuard<'_, Instant> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The record of one key during one delivery.
#[derive(Debug)]
pub struct Journal<'a> {
    store: Option<&'a Tenure<'a>>,
    record: Record,
    run: RunId,
    attempts: u32,
    pub(super) parity: Parity,
    not_carried: Vec<String>,
    /// The entry is brought for another one.
    pub(super) child: bool,
    /// For the entry, by all tries at it.
    pub(super) brought: Brought,
    /// Which objects may be handed out in parts.
    giants: Option<Giants>,
    /// The job itself.
    waiting: Option<Waiting>,
    sequencer: Option<Sequencer>,
}

impl<'a> Journal<'a> {
    /// A journal under a fence, from the record that the claim answered.
    pub fn new(tenure: &'a Tenure<'a>, run: RunId, key: &ObjectKey, known: Option<Record>, attempts: u32, now: Timestamp) -> Self {
        let record = known.unwrap_or_else(|| Record::new(key.clone(), run.clone(), Status::Started, now));
        let mut parity = Parity::default();
        for wrong in record.upload.iter().filter_map(|u| u.shared.as_ref()).flat_map(|s| &s.wrong) {
            parity.failed(Some(wrong.clone()));
        }
        Self { store: Some(tenure), attempts, parity, ..Self::of_record(record, run) }
    }

    /// A journal that keeps nothing, of a first try.
    fn of_record(record: Record, run: RunId) -> Self {
        Self {
            store: None,
            record,
            run,
            attempts: 1,
            parity: Parity::default(),
            not_carried: Vec::new(),
            child: false,
            brought: Brought::default(),
            giants: None,
            waiting: None,
            sequencer: None,
        }
    }

    /// Lets these objects be handed out in parts; the job, which counts there, ends with the object then.
    pub(crate) fn with_giants(mut self, giants: Option<Giants>, origin: Option<Origin>) -> Self {
        self.giants = giants;
        // An event waits as well, so that nobody takes the upload for one that nobody wants.
        self.waiting = Some(origin.map_or_else(Waiting::events, |origin| Waiting { run: self.run.clone(), origin }));
        self
    }

    /// The event that the job comes from.
    pub(crate) fn with_sequencer(mut self, sequencer: Option<Sequencer>) -> Self {
        self.sequencer = sequencer;
        self
    }

    /// Writes down that the job ends with the object.
    pub(super) fn wait(&self, record: &mut Record) {
        let waiting = self.waiting.iter().filter(|_| !wrong(Bug::WaitingForgotten));
        for job in waiting.filter(|job| !self.record.waiting.contains(job)) {
            record.waiting.push(job.clone());
        }
    }

    /// Whether the job waits already for an upload that its own run brings.
    pub(super) fn is_waiting(&self) -> bool {
        self.record.run == self.run && self.waiting.as_ref().is_some_and(|job| self.record.waiting.contains(job))
    }

    /// Whether an object of this size is to be handed out, and how.
    pub(super) fn giant(&self, size: u64) -> Option<Giants> {
        self.giants.filter(|giants| size >= giants.least)
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A journal that keeps nothing: an interrupted upload cannot be resumed.
    pub fn detached(key: &ObjectKey, now: Timestamp) -> Self {
        let run = RunId::new("");
        Self::of_record(Record::new(key.clone(), run.clone(), Status::Started, now), run)
    }

    /// The same for what is brought for another entry.
    pub(super) fn of_child(key: &ObjectKey, now: Timestamp) -> Self {
        Self { child: true, ..Self::detached(key, now) }
    }

    /// The record as it is known to be stored.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether an earlier delivery may have published already.
    pub(super) fn is_redelivery(&self) -> bool {
        self.store.is_some_and(|tenure| tenure.fence.epoch > 1) || self.attempts > 1
    }

    /// The record that replaces the stored one.
    pub fn next(&self, status: Status, now: Timestamp) -> Record {
        let mut record = self.record.clone();
        record.status = status;
        record.run = self.run.clone();
        record.attempts = self.attempts;
        // Stores keep milliseconds.
        record.updated = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        record.not_carried.clone_from(&self.not_carried);
        // Q2: a job without an event knows nothing of events, and leaves them as they are.
        record.sequencer = record.sequencer.max(self.sequencer.clone());
        record
    }

    /// The record of an object that stays as it is.
    pub(super) fn again(&self, status: Status, now: Timestamp) -> Record {
        Record { not_carried: self.record.not_carried.clone(), ..self.next(status, now) }
    }

    /// Begins to note what an object loses: an earlier try was perhaps at another version of it.
    pub(super) fn begin_losses(&mut self) {
        self.not_carried.clear();
        for name in self.brought.losses().to_vec() {
            self.not_carried(&name);
        }
    }

    /// Notes an attribute that the pair of stores cannot carry.
    pub(super) fn not_carried(&mut self, attribute: &str) {
        if !self.not_carried.iter().any(|a| a == attribute) {
            self.not_carried.push(attribute.to_owned());
        }
    }

    /// The attributes noted so far.
    pub(super) fn losses(&self) -> &[String] {
        &self.not_carried
    }

    /// Writes a record that does not end the job. `Conflict` when another delivery or another job wrote in between.
    pub(super) async fn save(&mut self, record: Record, retry: &RetryPolicy, env: &SharedEnv) -> Result<()> {
        let Some(Tenure { store, fence, .. }) = self.store else {
            self.record = record;
            return Ok(());
        };
        let write = [RecordWrite { record: record.clone(), ends: Vec::new() }];
        let committed = retry.run(&**env, || store.commit(fence, &write)).await?;
        let lost = || Error::new(ErrorKind::Conflict, Op::SaveState, record.key.to_string());
        match committed {
            Committed::Fenced => Err(lost().with_source("another worker has taken this message over")),
            Committed::Written(results) => match results.into_iter().next() {
                Some(WriteResult::Applied(version)) => {
                    self.record = Record { version, ..record };
                    Ok(())
                }
                // A repeated write whose first answer was lost conflicts with itself.
                Some(WriteResult::Conflict(Some(stored))) if is_same(&stored, &record) => {
                    reached(Branch::OwnCommitSeen);
                    self.record = *stored;
                    Ok(())
                }
                Some(WriteResult::Conflict(_)) | None => Err(lost().with_source("another job wrote the record of this key")),
            },
        }
    }

    /// To be called before anything becomes visible. `Conflict` when a later delivery has taken the message over.
    ///
    /// A redelivered message may be gone already (another delivery of it was acknowledged): if this worker died between
    /// publishing and recording, nobody would ever correct a record that says `done`. So it is taken back first.
    pub(super) async fn about_to_publish(&mut self, source: &Entry, retry: &RetryPolicy, env: &SharedEnv) -> Result<()> {
        if self.store.is_some() && self.is_redelivery() && self.record.status == Status::Done && !wrong(Bug::DoneLeftStanding) {
            reached(Branch::DoneTakenBack);
            let mut record = self.next(Status::Started, env.now());
            record.source = Some(SourceVersion::of(source));
            return self.save(record, retry, env).await;
        }
        if self.store.is_some_and(|tenure| tenure.held().elapsed() < TRUST) {
            return Ok(());
        }
        self.still_ours(retry, env).await
    }

    /// Asks whether a later delivery has taken the message over, which is a `Conflict`: what is found anew is that one's to
    /// publish.
    pub(super) async fn still_ours(&self, retry: &RetryPolicy, env: &SharedEnv) -> Result<()> {
        let Some(tenure) = self.store else { return Ok(()) };
        if wrong(Bug::SleeperPublishes) {
            return Ok(());
        }
        let asked = Instant::now();
        match retry.run(&**env, || tenure.store.commit(tenure.fence, &[])).await? {
            Committed::Written(_) => {
                *tenure.held() = asked;
                Ok(())
            }
            Committed::Fenced => {
                reached(Branch::NotOursAnyMore);
                Err(Error::new(ErrorKind::Conflict, Op::SaveState, self.record.key.to_string())
                    .with_source("another worker has taken this message over"))
            }
        }
    }

    pub(super) async fn save_part(&self, upload: &UploadId, part: Part, retry: &RetryPolicy, env: &SharedEnv) -> Result<()> {
        let Some(Tenure { store, .. }) = self.store else { return Ok(()) };
        let parts = [part];
        retry.run(&**env, || store.save_parts(upload, &parts)).await
    }

    pub(super) async fn parts(
        &self,
        upload: &UploadId,
        numbers: RangeInclusive<u32>,
        retry: &RetryPolicy,
        env: &SharedEnv,
    ) -> Result<Vec<Part>> {
        let Some(Tenure { store, .. }) = self.store else { return Ok(Vec::new()) };
        retry.run(&**env, || store.parts(upload, numbers.clone())).await
    }

    /// Notes saved parts; whether all are.
    pub(super) async fn parts_complete(
        &self,
        upload: &UploadId,
        saved: &[u32],
        total: u32,
        retry: &RetryPolicy,
        env: &SharedEnv,
    ) -> Result<bool> {
        let Some(Tenure { store, .. }) = self.store else { return Ok(false) };
        retry.run(&**env, || store.parts_complete(upload, saved, total)).await
    }

    pub(super) async fn forget_parts(&self, upload: &UploadId, retry: &RetryPolicy, env: &SharedEnv) -> Result<()> {
        let Some(Tenure { store, .. }) = self.store else { return Ok(()) };
        retry.run(&**env, || store.forget_parts(upload)).await
    }
}

/// Whether the stored record is the one that was to be written, one version on.
pub(crate) fn is_same(stored: &Record, written: &Record) -> bool {
    stored.version == written.version + 1 && Record { version: written.version, ..stored.clone() } == *written
}
