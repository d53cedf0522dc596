//! What is known about objects, packs and runs: the memory of a task.
//!
//! Three rules make it truthful. Every write knows what it may replace (a record's version). Every delivery of a pack
//! takes a new epoch, and a commit of an older epoch is refused whole. A job counts in the ledger of its run exactly once:
//! by a bit of its pack, set in the same transaction as its record.

use crate::{
    checksum::{Algorithm, Checksum},
    env::{Env, random_id},
    error::{ErrorKind, Result},
    object::{ETag, Entry, ObjectKey, Sequencer, VersionId},
    sink::{Part, UploadId},
};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, AddAssign, RangeInclusive},
    sync::Arc,
    time::Duration,
};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);
        impl $name {
            /// Wraps an id as it is.
            pub fn new(id: impl Into<Arc<str>>) -> Self {
                Self(id.into())
            }
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Names one run of the finder and all jobs that came of it.
    RunId
);
impl RunId {
    /// An id that nobody has: the time, for people, and chance.
    pub fn fresh(env: &dyn Env) -> Self {
        Self::new(format!("{}-{}", env.now().strftime("%Y%m%dT%H%M%SZ"), &random_id(env)[..8]))
    }
}

id!(
    /// Names one message full of jobs; duplicates of the message share it.
    PackId
);

/// Where an object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// A multipart upload is under way.
    Started,
    /// The destination holds what the record says.
    Done,
    /// Given up, with a cause; its message is a dead letter.
    Failed,
    /// The source object was gone when it was to be read.
    Cancelled,
    /// Left alone, with a reason.
    Skipped,
    /// Removed from the destination because the source does not hold it.
    Deleted,
}

impl Status {
    /// All states, in the order of a life.
    pub const ALL: [Self; 6] = [Self::Started, Self::Done, Self::Failed, Self::Cancelled, Self::Skipped, Self::Deleted];

    /// The stable lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Deleted => "deleted",
        }
    }
}

/// Why an object was left alone on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// A filter excludes it.
    Filtered,
    /// It is archived and must be restored before it can be read.
    Archived,
    /// The sink cannot carry its key or its size.
    Unrepresentable,
    /// The destination holds something newer, and the overwrite policy keeps it.
    Newer,
    /// The destination holds something, and the overwrite policy never overwrites.
    Exists,
    /// Same size, other etag, never recorded, and the policy trusts sizes.
    TrustedSize,
    /// The source holds the key again.
    SourceExists,
    /// More deletions than the guard allows.
    DeleteGuard,
    /// Another source key would become the same destination key.
    Collision,
    /// It is archived, and the store was asked to restore it: a later run, or the event of its return, copies it.
    Restoring,
}

impl SkipReason {
    /// The stable lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filtered => "filtered",
            Self::Archived => "archived",
            Self::Unrepresentable => "unrepresentable",
            Self::Newer => "newer",
            Self::Exists => "exists",
            Self::TrustedSize => "trusted_size",
            Self::SourceExists => "source_exists",
            Self::DeleteGuard => "delete_guard",
            Self::Collision => "collision",
            Self::Restoring => "restoring",
        }
    }
}

/// How a job ended, as the ledger counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Moved.
    Copied {
        /// Verified from end to end against a checksum or etag of the source, or copied inside the store by the store. Otherwise one
        /// of the two sides shows nothing of what it holds.
        proven: bool,
        /// With all its attributes. Otherwise its record names those that the destination does not keep.
        whole: bool,
    },
    /// The destination already held it.
    AlreadyCurrent,
    /// Gone from the source.
    Cancelled,
    /// Removed from the destination.
    Deleted,
    /// Left alone.
    Skipped(SkipReason),
    /// Given up.
    Failed(ErrorKind),
}

impl Outcome {
    /// Moved, verified, with all its attributes.
    pub const COPIED: Self = Self::Copied { proven: true, whole: true };

    /// The ledger's name for it: `copied`, `skipped:archived`, `failed:denied`.
    pub fn label(self) -> String {
        match self {
            Self::Copied { proven: true, whole: true } => "copied".into(),
            Self::Copied { proven: false, whole: true } => "copied:transport_only".into(),
            Self::Copied { proven: true, whole: false } => "copied:attributes_lost".into(),
            Self::Copied { proven: false, whole: false } => "copied:transport_only,attributes_lost".into(),
            Self::AlreadyCurrent => "already_current".into(),
            Self::Cancelled => "cancelled".into(),
            Self::Deleted => "deleted".into(),
            Self::Skipped(reason) => format!("skipped:{}", reason.as_str()),
            Self::Failed(kind) => format!("failed:{}", kind.as_str()),
        }
    }
}

/// How strongly the bytes at the destination were checked against the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Against a checksum that the source store itself gave.
    Source(Algorithm),
    /// Not from end to end: the source offered nothing to check the reading against, or the destination shows nothing of what it stored.
    Transport(Algorithm),
    /// The store copied inside itself.
    Store,
}

/// One version of a source object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceVersion {
    /// Its entity tag.
    pub etag: Option<ETag>,
    /// Its size in bytes.
    pub size: u64,
    /// Its version id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionId>,
}

impl SourceVersion {
    /// The version that an entry shows; size 0 where the entry has none.
    pub fn of(entry: &Entry) -> Self {
        Self { etag: entry.etag.clone(), size: entry.size.unwrap_or(0), version: entry.version.clone() }
    }
}

/// An upload that was begun; it is continued only for the same source version in the same layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// Its id; `None` while the answer to its creation is awaited (or was lost).
    pub id: Option<UploadId>,
    /// Bytes of every part but the last.
    pub part_size: u64,
    /// The version that it is made of.
    pub source: SourceVersion,
    /// Its parts are jobs of their own, for any worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedUpload>,
}

/// What the workers that fill one upload together must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedUpload {
    /// How its parts are checked.
    pub checks: PartChecks,
    /// The message whose worker alone does what comes next: completes it once all parts are in, or, when the upload has no id
    /// any more, sends the object's own job again. Whoever receives that message again goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closer: Option<PackId>,
    /// The etags that its parts had together in earlier tries, which were not the source's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<ETag>,
}

/// How the parts of an upload are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartChecks {
    /// Parts are those of the source, and both stores build etags from MD5: the etag of the whole must come out the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parity: bool,
    /// What is taken over each part on its way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<Algorithm>,
    /// Which of these is remembered with a part, to judge the whole: MD5 where the source's etag is the MD5 of its parts'
    /// MD5 values and nothing else shows whether we read right; otherwise one that combines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Algorithm>,
}

/// A version of the source, and what it is at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// The source's id of it.
    pub source: VersionId,
    /// The destination's id of it.
    pub destination: VersionId,
}

/// A job that ends with another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The run that counts it.
    pub run: RunId,
    /// Where it counts.
    pub origin: Origin,
}

impl Waiting {
    /// Events, which count nowhere; one for all of them: there may be many of one object.
    pub(crate) fn events() -> Self {
        Self { run: RunId::new(EVENTS), origin: Origin(PackId::new(EVENTS), 0) }
    }
}

/// What stands for a run where there is none.
pub(crate) const EVENTS: &str = "events";

/// The cause of a failure, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: ErrorKind,
    /// The error and its causes.
    pub text: String,
}

/// What is known about one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The source key.
    pub key: ObjectKey,
    /// Grows with each write; a write names the version that it replaces, 0 for none.
    pub version: u64,
    /// Where it stands.
    pub status: Status,
    /// The run that wrote it.
    pub run: RunId,
    /// The source version that the destination holds (done), or that is being moved.
    pub source: Option<SourceVersion>,
    /// The destination's etag.
    pub destination: Option<ETag>,
    /// A checksum of the whole object, where one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// How strongly it was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// The upload under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadRecord>,
    /// When we first began an upload for this key: uploads of it that are younger, and not under way, are ours to sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploads_since: Option<Timestamp>,
    /// Tries so far.
    pub attempts: u32,
    /// Why it failed or was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Attributes that the pair of stores could not carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_carried: Vec<String>,
    /// The latest event that was dealt with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<Sequencer>,
    /// Where all versions are moved: the youngest one that stands at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appended: Option<Appended>,
    /// Jobs whose messages are done with, because the parts of the object are jobs now: they end when this record next says
    /// how the object ended, whoever writes that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// When it was written.
    pub updated: Timestamp,
}

impl Record {
    /// A record of nothing yet.
    pub fn new(key: ObjectKey, run: RunId, status: Status, now: Timestamp) -> Self {
        Self {
            key,
            version: 0,
            status,
            run,
            source: None,
            destination: None,
            checksum: None,
            verified: None,
            upload: None,
            uploads_since: None,
            attempts: 0,
            failure: None,
            not_carried: Vec::new(),
            sequencer: None,
            appended: None,
            waiting: Vec::new(),
            updated: now,
        }
    }
}

/// A number of objects and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    /// One object of so many bytes.
    pub const fn one(bytes: u64) -> Self {
        Self { objects: 1, bytes }
    }
}

impl Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { objects: self.objects + other.objects, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What the finder found, each page counted once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinderTotals {
    /// Source objects listed.
    pub listed: Tally,
    /// Equal at the destination.
    pub unchanged: Tally,
    /// Sent to the workers.
    pub queued: Tally,
    /// Left alone by the finder, by reason.
    pub skipped: BTreeMap<String, Tally>,
    /// Same size, other etag, never recorded: what the policy decided about is counted elsewhere too.
    pub unknown: Tally,
    /// At the destination only.
    pub extra: Tally,
    /// Of these, to be deleted by the workers.
    pub extra_queued: Tally,
    /// The deletions were more than the guard allows: none was sent.
    #[serde(default)]
    pub deletes_withheld: bool,
    /// LIST requests to the source.
    pub source_pages: u64,
    /// LIST requests to the destination.
    pub destination_pages: u64,
}

impl FinderTotals {
    /// Adds what one more page brought.
    pub fn add(&mut self, delta: &Self) {
        self.listed += delta.listed;
        self.unchanged += delta.unchanged;
        self.queued += delta.queued;
        for (reason, tally) in &delta.skipped {
            *self.skipped.entry(reason.clone()).or_default() += *tally;
        }
        self.unknown += delta.unknown;
        self.extra += delta.extra;
        self.extra_queued += delta.extra_queued;
        self.deletes_withheld |= delta.deletes_withheld;
        self.source_pages += delta.source_pages;
        self.destination_pages += delta.destination_pages;
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The finder still lists.
    Finding,
    /// Everything is queued; workers work.
    Transferring,
    /// Every job has ended: the ledger is closed.
    Finished,
    /// Called off; its jobs are acknowledged without work.
    Cancelled,
}

impl RunState {
    /// Whether nothing more will happen in it.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled)
    }

    /// The stable lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finding => "finding",
            Self::Transferring => "transferring",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One run and its ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Where it stands.
    pub state: RunState,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The finder's side of the ledger.
    pub totals: FinderTotals,
    /// The workers' side: outcome label to tally, each job once.
    pub outcomes: BTreeMap<String, Tally>,
}

impl Run {
    /// A run that begins now.
    pub fn new(id: RunId, now: Timestamp) -> Self {
        Self { id, state: RunState::Finding, started: now, ended: None, totals: FinderTotals::default(), outcomes: BTreeMap::new() }
    }

    /// Jobs that have ended.
    pub fn ended_jobs(&self) -> u64 {
        self.outcomes.values().map(|t| t.objects).sum()
    }

    /// Jobs that the finder sent.
    pub fn sent_jobs(&self) -> u64 {
        let deletes = if self.totals.deletes_withheld { 0 } else { self.totals.extra_queued.objects };
        self.totals.queued.objects + deletes
    }

    /// Whether every job that was sent has ended.
    pub fn is_settled(&self) -> bool {
        self.state != RunState::Finding && self.ended_jobs() == self.sent_jobs()
    }

    /// The tally of an outcome.
    pub fn outcome(&self, label: &str) -> Tally {
        self.outcomes.get(label).copied().unwrap_or_default()
    }

    /// All jobs whose outcome label begins so.
    pub fn outcomes_like(&self, prefix: &str) -> Tally {
        self.outcomes.iter().filter(|(label, _)| label.starts_with(prefix)).map(|(_, t)| *t).sum()
    }
}

/// A key range of the finder, `(after, until]`, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its number within the run.
    pub id: u32,
    /// Keys behind this one belong to it.
    pub after: Option<ObjectKey>,
    /// Keys up to this one, included, belong to it.
    pub until: Option<ObjectKey>,
    /// Every key up to this one, included, is dealt with.
    pub position: Option<ObjectKey>,
    /// Whether all of it is dealt with.
    pub done: bool,
    /// Grows with each write; 0 when it is not stored yet.
    pub version: u64,
}

impl Shard {
    /// The shard that covers everything.
    pub fn all() -> Self {
        Self { id: 0, after: None, until: None, position: None, done: false, version: 0 }
    }
}

/// A pack that the finder decided on; it is stored before it is sent, so that a crash in between loses and doubles nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxPack {
    /// Its id.
    pub pack: PackId,
    /// The message.
    pub body: String,
    /// Kept back until the whole listing is known (deletions).
    pub held: bool,
}

/// One step of the finder, all or nothing; at most [`Advance::MAX_PACKS`] packs.
#[derive(Debug, Clone, Default)]
pub struct Advance {
    /// Shards as they are to be; each names in `version` what it replaces.
    pub shards: Vec<Shard>,
    /// What this step adds to the totals.
    pub totals: FinderTotals,
    /// Packs to be sent.
    pub packs: Vec<OutboxPack>,
    /// Packs of earlier steps that were sent.
    pub sent: Vec<PackId>,
}

impl Advance {
    /// Stores may refuse more packs in one step (a transaction of DynamoDB takes 100 items).
    pub const MAX_PACKS: usize = 90;
}

/// Where a job counts: its place in the pack that the finder made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin(pub PackId, pub u32);

/// The right to commit for one delivery of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The pack.
    pub pack: PackId,
    /// Keeps an epoch from being used again after the store lost its last commits (power loss).
    pub incarnation: u64,
    /// Grows with each delivery; an older one is refused.
    pub epoch: u64,
}

/// The answer to a claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The right to commit.
    pub fence: Fence,
    /// For each job, whether it has ended already.
    pub ended: Vec<bool>,
    /// For each job, the record of its key as of the claim.
    pub records: Vec<Option<Record>>,
}

/// One record to write.
#[derive(Debug, Clone)]
pub struct RecordWrite {
    /// The record; its `version` is that of the record it replaces, 0 for none.
    pub record: Record,
    /// Jobs that end with it.
    pub ends: Vec<JobEnd>,
}

/// The end of a job.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// The run that counts it, once.
    pub run: RunId,
    /// Where it counts.
    pub origin: Origin,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of the object.
    pub bytes: u64,
}

/// What became of one [`RecordWrite`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// Written; this is its version now.
    Applied(u64),
    /// Not written (and not counted): the stored record is this one.
    Conflict(Option<Box<Record>>),
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// A later delivery of the pack has claimed it: nothing was written.
    Fenced,
    /// A result for each write.
    Written(Vec<WriteResult>),
}

/// Which records to list.
#[derive(Debug, Clone, Default)]
pub struct RecordQuery {
    /// Only of this status.
    pub status: Option<Status>,
    /// Only those last written by this run.
    pub run: Option<RunId>,
    /// Behind this key, the last one of the page before.
    pub after: Option<ObjectKey>,
}

/// For so long a store knows packs of events that nobody claims any more. A message that comes again after that is dealt with as if it
/// were new, which costs a look.
pub const EVENTS_KNOWN: Duration = Duration::from_secs(3 * 24 * 3600);

/// Something that a backend remembers between runs. A hint: whoever relies on it makes sure first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What is noted.
    pub text: String,
    /// Grows with each write; a write names the version that it replaces, 0 for none.
    pub version: u64,
}

/// A note that nobody has written for so long may be forgotten.
pub const NOTES_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// The memory of one task.
///
/// Each call is atomic and durable when it returns (up to the store's documented power-loss window). A call that fails
/// with `maybe_applied` may be repeated: repeated reads are harmless, and a repeated write conflicts with itself, which the
/// caller sees by looking at the record.
#[async_trait]
pub trait StateStore: fmt::Debug + Send + Sync + 'static {
    /// The records of these keys, in their order.
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>>;

    /// A page of at most `max` records behind the one named, in an order of the store's own, the same for each page. An empty page
    /// is the end.
    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>>;

    /// Whether a record may say that an upload was begun: where none does, there is nothing to sweep, and the destination is not
    /// asked. `true` where that cannot be told at once.
    async fn may_have_begun_uploads(&self) -> Result<bool> {
        Ok(true)
    }

    /// Takes the next epoch of a pack for this delivery. The pack is of `run`, with which it will be forgotten; one of no run, which
    /// events are, may be forgotten [`EVENTS_KNOWN`] after its last claim.
    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim>;

    /// Writes records under a fence, each by its version, and counts the jobs that ended.
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed>;

    /// Remembers parts of an upload.
    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()>;

    /// The remembered parts of an upload among these, by number.
    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>>;

    /// Notes that these parts are saved, and tells whether all of `1..=total` are. Whoever notes the last one is told so;
    /// others may be, too.
    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool>;

    /// Forgets the parts of an upload that ended.
    async fn forget_parts(&self, upload: &UploadId) -> Result<()>;

    /// What is noted under a name of at most 200 bytes.
    async fn note(&self, name: &str) -> Result<Option<Note>>;

    /// Notes something under a name, over the version that it replaces, 0 for none. `false`, and nothing written, where another
    /// stands there.
    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool>;

    /// Begins a run with its first shard. `Conflict` when the id is taken.
    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()>;

    /// A run and its ledger. `NotFound` when there is none.
    async fn run(&self, run: &RunId) -> Result<Run>;

    /// All runs, the youngest first.
    async fn runs(&self, max: usize) -> Result<Vec<Run>>;

    /// Moves a run from one state to another. `Precondition` when it is in neither.
    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()>;

    /// The shards of a run.
    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>>;

    /// One step of the finder, all or nothing. `Precondition` when a shard is not what the step replaces.
    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()>;

    /// Packs of a run that were not marked as sent and are not held back, at most `max`.
    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>>;

    /// Decides about the packs held back: `true` lets them go, `false` drops them. Answers how many.
    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64>;

    /// Forgets runs that ended before this time, with their cursors, ledgers and packs; records of objects stay, and so do
    /// cancelled runs of which messages may be left. Answers how many runs.
    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64>;
}
