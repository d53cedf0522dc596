//! The wire format of the queue: packs of jobs, and the messages of the original system.
//!
//! A message is ASCII JSON (`\uXXXX` for the rest), because SQS carries XML 1.0 characters only. Numbers of version 1 are
//! never reused: a reader refuses a version that it does not know, and the message becomes a dead letter with that reason.

mod notification;

pub use notification::EventSettings;

use crate::{
    env::{Env, random_id},
    error::{Error, ErrorKind, Op, Result},
    filter::Filter,
    finder::FinderSettings,
    object::{ETag, Entry, ObjectKey, Sequencer},
    prefixes::PrefixList,
    sink::{Condition, UploadId},
    state::{Origin, PackId, RunId, SourceVersion},
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::fmt::Write as _;

/// What a job is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Action {
    /// Bring the destination up to the source.
    #[default]
    #[serde(rename = "copy")]
    Copy,
    /// Remove the key from the destination, if the source still lacks it.
    #[serde(rename = "delete")]
    Delete,
    /// Same size, other etag, no record: compare checksums and record; copy when they differ or cannot be compared.
    #[serde(rename = "adopt")]
    Adopt,
}

impl Action {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_copy(&self) -> bool {
        *self == Self::Copy
    }
}

/// When an object at the destination may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overwrite {
    /// When it differs.
    #[default]
    Always,
    /// When it differs and the source is newer.
    IfNewer,
    /// Never.
    Never,
}

impl Overwrite {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_always(&self) -> bool {
        *self == Self::Always
    }
}

/// What the finder saw at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seen {
    /// It did not look.
    #[default]
    Unknown,
    /// Nothing.
    Absent,
    /// An object with this etag.
    Present(ETag),
}

impl Seen {
    /// The condition for publishing over what was seen; `None` when nobody looked.
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Self::Unknown => None,
            Self::Absent => Some(Condition::Absent),
            Self::Present(etag) => Some(Condition::Match(etag.clone())),
        }
    }
}

// A missing field is unknown, null is absent, text is an etag.
impl Serialize for Seen {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Present(etag) => s.serialize_some(etag),
            Self::Absent | Self::Unknown => s.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Option::<ETag>::deserialize(d)?.map_or(Self::Absent, Self::Present))
    }
}

impl Seen {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// Some parts of an upload under way, which any worker may fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobParts {
    /// The upload; the record of the key says what it is made of.
    #[serde(rename = "u")]
    pub upload: UploadId,
    /// The first part, from 1.
    #[serde(rename = "f")]
    pub first: u32,
    /// The last part.
    #[serde(rename = "l")]
    pub last: u32,
    /// Tries of the object's own job, the one that began the upload included.
    #[serde(rename = "n", default)]
    pub attempts: u32,
}

/// One object to deal with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The source key.
    #[serde(rename = "k")]
    pub key: ObjectKey,
    /// Size when listed: a hint for planning, the answer to the read decides.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Source etag when listed.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<ETag>,
    /// What the finder saw at the destination.
    #[serde(rename = "d", default, skip_serializing_if = "Seen::is_unknown")]
    pub destination: Seen,
    /// What to do.
    #[serde(rename = "a", default, skip_serializing_if = "Action::is_copy")]
    pub action: Action,
    /// Whether what is found at the destination by now may be replaced.
    #[serde(rename = "w", default, skip_serializing_if = "Overwrite::is_always")]
    pub overwrite: Overwrite,
    /// Tries before this message.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Where it counts, when this message is not the one that the finder made.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The event that it comes from: one that is known to be older changes nothing any more.
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<Sequencer>,
    /// Only these parts of it; they count with the object, once all are in.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<JobParts>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Job {
    /// A job to copy a listed entry.
    pub fn copy(entry: &Entry, destination: Seen) -> Self {
        Self {
            key: entry.key.clone(),
            size: entry.size,
            etag: entry.etag.clone(),
            destination,
            action: Action::Copy,
            overwrite: Overwrite::Always,
            attempts: 0,
            origin: None,
            sequencer: None,
            parts: None,
        }
    }

    /// The job of the object itself, to be done from the beginning.
    pub fn anew(&self) -> Self {
        let destination = if self.overwrite == Overwrite::Always { Seen::Unknown } else { self.destination.clone() };
        Self { etag: None, destination, parts: None, ..self.clone() }
    }

    /// The source version that the finder listed.
    pub fn listed(&self) -> SourceVersion {
        SourceVersion { etag: self.etag.clone(), size: self.size.unwrap_or(0), version: None }
    }
}

/// Which messages are jobs of a task, and what they may do. Finders select by the same settings.
#[derive(Debug, Clone, Default)]
pub struct Intake {
    /// Keys of the task begin so.
    pub prefix: String,
    /// And with one of these, where there is a list.
    pub prefixes: Option<PrefixList>,
    /// Which source objects take part.
    pub filter: Filter,
    /// When the destination may be replaced.
    pub overwrite: Overwrite,
    /// Events of the source.
    pub events: EventSettings,
}

impl Intake {
    /// What a finder with these settings would find, and these events. `Invalid` when a glob is not one.
    pub fn new(finder: &FinderSettings, events: &EventSettings) -> Result<Self> {
        let filter = Filter::new(finder.filter.clone())?;
        Ok(Self {
            prefix: finder.prefix.clone(),
            prefixes: finder.prefixes.clone(),
            filter,
            overwrite: finder.overwrite,
            events: events.clone(),
        })
    }

    /// Whether a key is of the task, by its prefix or list of prefixes.
    pub fn covers(&self, key: &ObjectKey) -> Result<bool> {
        match &self.prefixes {
            Some(prefixes) => prefixes.covers(key.as_str()),
            None => Ok(key.starts_with(&self.prefix)),
        }
    }

    /// Why a key that is not covered is not of the task.
    pub(crate) fn outside(&self) -> String {
        match &self.prefixes {
            Some(_) => "with none of the task's prefixes".into(),
            None => format!("not with the task's prefix `{}`", self.prefix),
        }
    }

    /// Every message that can be read.
    pub fn everything() -> Self {
        Self { events: EventSettings { deletes: true, bucket: None }, ..Self::default() }
    }
}

/// A message full of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Format version.
    v: u32,
    /// Its id; duplicates share it.
    pub id: PackId,
    /// The run; `None` for an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The jobs.
    pub jobs: Vec<Job>,
    /// What else the message says, and why that cannot be done: it is given up, and the jobs go on as a message of their own.
    #[serde(skip)]
    pub refused: Vec<String>,
}

/// Longest id of a pack: ours have 32 characters, and stores keep ids in keys.
const MAX_ID: usize = 128;

/// Most jobs of a pack: stores keep a bit for each.
const MAX_JOBS: u32 = 1 << 20;

/// Bytes of a message around its jobs, generously.
const ENVELOPE: usize = 160;

impl Pack {
    const VERSION: u32 = 1;

    /// A pack with a fresh id.
    pub fn new(env: &dyn Env, run: Option<RunId>, jobs: Vec<Job>) -> Self {
        Self { v: Self::VERSION, id: PackId::new(random_id(env)), run, jobs, refused: Vec::new() }
    }

    /// Where job `index` counts.
    pub fn origin(&self, index: usize) -> Option<Origin> {
        let job = &self.jobs[index];
        job.origin.clone().or_else(|| self.run.is_some().then(|| Origin(self.id.clone(), index as u32)))
    }

    /// The message.
    pub fn to_body(&self) -> String {
        to_ascii(&serde_json::to_string(self).expect("a pack is plain data"))
    }

    /// Reads a message of any task; see [`read`](Self::read).
    pub fn parse(body: &str, env: &dyn Env) -> Result<Self> {
        Self::read(body, &Intake::everything(), env)
    }

    /// Reads a message: a pack; a notification of Amazon S3, directly, by EventBridge or by SNS; `{"key","size"}` of the original
    /// system and of other clouds' bridge functions. A notification that is none of this task's makes a pack without jobs.
    ///
    /// `Invalid`, with the reason, for anything else, and for a key that was sent to this task and does not begin with its prefix. The
    /// jobs of a pack are judged one by one, by whoever does them.
    pub fn read(body: &str, intake: &Intake, env: &dyn Env) -> Result<Self> {
        let invalid =
            |why: Box<dyn std::error::Error + Send + Sync>| Error::new(ErrorKind::Invalid, Op::Receive, excerpt(body)).with_source(why);
        let value: serde_json::Value = serde_json::from_str(body).map_err(|e| invalid(e.into()))?;
        match value.get("v") {
            None => {
                let told = notification::read(body, &value, intake)?;
                for why in &told.left_alone {
                    tracing::debug!(%why, "an event is left alone");
                }
                metrics::counter!("dth_events_left_alone_total").increment(told.left_alone.len() as u64);
                // Duplicates of the message share the id, and so the fence.
                let id = crate::checksum::hex(&sha2::Sha256::digest(told.text)[..16]);
                Ok(Self { id: PackId::new(id), refused: told.refused, ..Self::new(env, None, told.jobs) })
            }
            Some(v) if v.as_u64() == Some(u64::from(Self::VERSION)) => {
                let pack: Self = serde_json::from_value(value).map_err(|e| invalid(e.into()))?;
                match pack.wrong() {
                    Some(why) => Err(invalid(why.into())),
                    None => Ok(pack),
                }
            }
            Some(v) => Err(invalid(
                format!("message version {v} is not known to this worker (it knows {}): update the worker", Self::VERSION).into(),
            )),
        }
    }

    /// What no finder and no worker can have written.
    fn wrong(&self) -> Option<String> {
        let sensible = |parts: &JobParts| self.jobs.len() == 1 && parts.first >= 1 && parts.first <= parts.last;
        let counts = |Origin(pack, job): &Origin| pack.as_str().len() <= MAX_ID && *job < MAX_JOBS;
        if self.jobs.is_empty() || self.jobs.iter().any(|j| j.key.as_str().is_empty()) {
            return Some("a job without a key".into());
        }
        if !self.jobs.iter().filter_map(|j| j.parts.as_ref()).all(sensible) {
            return Some("these are no parts of one object".into());
        }
        if self.id.as_str().len() > MAX_ID || self.jobs.len() > MAX_JOBS as usize {
            return Some(format!("an id has at most {MAX_ID} characters, and a pack {MAX_JOBS} jobs"));
        }
        let strange = !self.jobs.iter().filter_map(|j| j.origin.as_ref()).all(counts);
        strange.then(|| "a job that counts where no pack can be".into())
    }
}

/// Gathers jobs into packs that fit a message.
#[derive(Debug)]
pub struct Packer {
    limit_bytes: usize,
    limit_jobs: usize,
    jobs: Vec<Job>,
    bytes: usize,
}

impl Packer {
    /// A packer for messages of at most `limit_bytes` with at most `limit_jobs` jobs.
    pub fn new(limit_bytes: usize, limit_jobs: usize) -> Self {
        Self { limit_bytes, limit_jobs: limit_jobs.max(1), jobs: Vec::new(), bytes: ENVELOPE }
    }

    /// Takes a job; answers the jobs of a pack when one is full.
    pub fn push(&mut self, job: Job) -> Option<Vec<Job>> {
        let bytes = estimate(&job);
        let ready = if self.bytes + bytes > self.limit_bytes { self.take() } else { None };
        self.bytes += bytes;
        self.jobs.push(job);
        if self.jobs.len() >= self.limit_jobs { ready.or_else(|| self.take()) } else { ready }
    }

    /// The jobs gathered so far.
    pub fn take(&mut self) -> Option<Vec<Job>> {
        self.bytes = ENVELOPE;
        (!self.jobs.is_empty()).then(|| std::mem::take(&mut self.jobs))
    }
}

/// An upper bound of the bytes of a job in a message.
fn estimate(job: &Job) -> usize {
    let escaped = |text: &str| -> usize {
        let bytes = |c| match c {
            '"' | '\\' => 2,
            ' '..='~' => 1,
            c => 6 * char::len_utf16(c),
        };
        text.chars().map(bytes).sum()
    };
    let there = match &job.destination {
        Seen::Present(etag) => escaped(etag.as_str()),
        _ => 0,
    };
    // Field names, quotes, numbers, action and an origin of 32 digits.
    escaped(job.key.as_str()) + job.etag.as_ref().map_or(0, |e| escaped(e.as_str())) + there + 170
}

/// The same JSON in ASCII.
fn to_ascii(json: &str) -> String {
    if json.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return json.to_owned();
    }
    let mut ascii = String::with_capacity(json.len() + json.len() / 4);
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    ascii
}

/// Enough of a bad message to find it, no more.
pub(crate) fn excerpt(body: &str) -> String {
    body.chars().take(120).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemEnv;

    fn job(key: &str) -> Job {
        Job::copy(&Entry::new(key, 7, Some(ETag::new("e"))), Seen::Absent)
    }

    #[test]
    fn packs_round_trip_in_ascii() {
        let keys = ["a b", "\"\\\n\u{1}", "日本/é", "😀", "//..", "%2F+", "\u{7f}\u{85}"];
        let mut jobs: Vec<_> = keys.iter().map(|k| job(k)).collect();
        jobs[1].destination = Seen::Present(ETag::new("\"x-3\""));
        jobs[2].destination = Seen::Unknown;
        jobs[3].action = Action::Delete;
        jobs[4].origin = Some(Origin(PackId::new("p"), 4));
        jobs[4].attempts = 3;
        let pack = Pack::new(&SystemEnv, Some(RunId::new("r")), jobs);
        let body = pack.to_body();
        assert!(body.bytes().all(|b| (b' '..=b'~').contains(&b)), "{body}");
        assert_eq!(Pack::parse(&body, &SystemEnv).unwrap(), pack);
        assert!(body.len() <= ENVELOPE + pack.jobs.iter().map(estimate).sum::<usize>());
    }

    #[test]
    fn minimal_form_of_the_original_is_read() {
        let pack = Pack::parse(r#"{"key":"a/b","size":123}"#, &SystemEnv).unwrap();
        assert_eq!((pack.jobs[0].key.as_str(), pack.jobs[0].size), ("a/b", Some(123)));
        assert_eq!(pack.jobs[0].destination, Seen::Unknown);
        assert_eq!(pack.origin(0), None);
    }

    #[test]
    fn bad_messages_are_refused_with_the_reason() {
        for bad in ["", "{not json", "[]", "{}", r#"{"key":""}"#, r#"{"v":1,"id":"x","jobs":[]}"#, r#"{"v":9}"#, "\"x\""] {
            let error = Pack::parse(bad, &SystemEnv).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        }
        let newer = Pack::parse(r#"{"v":9,"id":"x"}"#, &SystemEnv).unwrap_err();
        assert!(newer.chain().contains("update the worker"), "{}", newer.chain());
    }

    #[test]
    fn packer_never_exceeds_its_limits() {
        let mut packer = Packer::new(2_000, 5);
        let mut packs = Vec::new();
        for i in 0..23 {
            packs.extend(packer.push(job(&"é\"".repeat(i * 3 + 1))));
        }
        packs.extend(packer.take());
        assert_eq!(packs.iter().map(Vec::len).sum::<usize>(), 23);
        for jobs in packs {
            assert!(jobs.len() <= 5);
            let alone = jobs.len() == 1;
            let body = Pack::new(&SystemEnv, Some(RunId::new("0".repeat(32))), jobs).to_body();
            assert!(alone || body.len() <= 2_000, "{}", body.len());
        }
    }
}
