//! Where objects are written to.

use crate::{
    attribute::AttributeSet,
    checksum::{Algorithm, Checksum, Digester},
    error::{Error, ErrorKind, Op, Result},
    index::Index,
    object::{Attributes, ETag, Entry, ObjectKey, Tags, VersionId},
    source::{ByteStream, CopyOrigin},
};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range, sync::Arc, time::Duration};

/// What must hold at the destination for a write to take effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// Nothing is stored under the key (`If-None-Match: *`).
    Absent,
    /// Exactly this object is stored under the key (`If-Match`).
    Match(ETag),
}

impl Condition {
    /// The object that the condition names.
    pub fn etag(&self) -> Option<&ETag> {
        if let Self::Match(etag) = self { Some(etag) } else { None }
    }

    /// The condition that the destination still is what a look showed.
    pub fn still(found: Option<&ETag>) -> Self {
        found.map_or(Self::Absent, |etag| Self::Match(etag.clone()))
    }
}

/// What to store.
pub enum Body {
    /// Bytes in memory, which can be sent again.
    Bytes(Vec<Bytes>),
    /// A stream of known length, which cannot.
    Stream {
        /// Its exact length in bytes.
        len: u64,
        /// The bytes.
        stream: ByteStream,
    },
}

impl Body {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(chunks) => chunks.iter().map(|c| c.len() as u64).sum(),
            Self::Stream { len, .. } => *len,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

/// Judges a body on its way, for a sink whose store judges nothing: before the object becomes visible, it is known to have the length and
/// the checksum that were announced.
#[derive(Debug)]
pub struct BodyCheck<'a> {
    len: u64,
    came: u64,
    digester: Option<Digester>,
    expected: Option<&'a Checksum>,
}

impl<'a> BodyCheck<'a> {
    /// Of a body of `len` bytes.
    pub fn new(len: u64, expected: Option<&'a Checksum>) -> Self {
        Self { len, came: 0, digester: expected.map(|sum| Digester::new(sum.algorithm)), expected }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.came += bytes.len() as u64;
        if let Some(digester) = &mut self.digester {
            digester.update(bytes);
        }
    }

    /// At the end: `Unavailable` when these were not exactly so many bytes, `Corrupt` when they have another checksum.
    pub fn finish(self, target: &str) -> Result<()> {
        let Self { len, came, .. } = self;
        if came != len {
            let why = format!("the body ended after {came} of {len} bytes");
            return Err(Error::new(ErrorKind::Unavailable, Op::Put, target).with_source(why));
        }
        match (self.digester.map(Digester::finish), self.expected) {
            (Some(taken), Some(expected)) if taken != *expected => {
                Err(Error::new(ErrorKind::Corrupt, Op::Put, target)
                    .with_source(format!("the bytes have {taken}, {expected} was announced")))
            }
            _ => Ok(()),
        }
    }
}

/// How to store it.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Content headers and metadata.
    pub attributes: Attributes,
    /// Tags.
    pub tags: Tags,
    /// What must hold for the write to take effect.
    pub condition: Condition,
    /// The store refuses bytes that do not have this checksum, where it knows the algorithm.
    pub checksum: Option<Checksum>,
    /// It is brought for an entry that needs it, by which it is found ([`Source::children`](crate::source::Source::children)).
    pub child: bool,
}

/// What a write answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The entity tag of what was stored.
    pub etag: Option<ETag>,
    /// Its version.
    pub version: Option<VersionId>,
    /// The etag is no MD5, whatever the store's etags are otherwise.
    pub opaque_etag: bool,
    /// A checksum that the store itself took, where the answer carries one.
    pub checksum: Option<Checksum>,
}

/// The id of an unfinished upload; valid in any process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(Arc<str>);

impl UploadId {
    /// Wraps an id as it is.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A part that the store holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Bytes.
    pub size: u64,
    /// Its entity tag.
    pub etag: ETag,
    /// The etag is no MD5, whatever the store's etags are otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque_etag: bool,
    /// A checksum of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

/// An unfinished upload, as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// The key that it would become.
    pub key: ObjectKey,
    /// Its id.
    pub id: UploadId,
    /// When it was begun, by the store's clock.
    pub begun: Option<Timestamp>,
}

/// What a sink's multipart uploads can do.
#[derive(Debug, Clone, Copy)]
pub struct MultipartLimits {
    /// Least bytes of every part but the last.
    pub min_part: u64,
    /// Most bytes of a part.
    pub max_part: u64,
    /// Most parts.
    pub max_parts: u32,
    /// Whether [`Sink::list_parts`] works: without it nothing can be resumed.
    pub list_parts: bool,
    /// Whether [`Sink::list_uploads`] works: without it nothing can be swept.
    pub list_uploads: bool,
}

/// Which conditions the sink honours. One that is ignored cannot be told from its answer, so a provider profile says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// `Absent` on put and complete.
    pub absent: bool,
    /// `Match` on put and complete.
    pub unchanged: bool,
    /// `Match` on delete.
    pub delete: bool,
}

impl Conditions {
    /// All of them.
    pub const ALL: Self = Self { absent: true, unchanged: true, delete: true };
    /// None of them.
    pub const NONE: Self = Self { absent: false, unchanged: false, delete: false };

    /// Whether this one is honoured by put and complete.
    pub fn honours(self, condition: &Condition) -> bool {
        match condition {
            Condition::None => true,
            Condition::Absent => self.absent,
            Condition::Match(_) => self.unchanged,
        }
    }
}

/// What a sink can do.
#[derive(Debug, Clone)]
pub struct SinkCapability {
    /// Most bytes of a single put.
    pub max_put: u64,
    /// Most bytes of an object.
    pub max_object: u64,
    /// Bytes that a streamed body holds inside the sink, besides those of a connection.
    pub stream_window: u64,
    /// Multipart uploads.
    pub multipart: Option<MultipartLimits>,
    /// Conditional writes.
    pub conditions: Conditions,
    /// Checksums that the store verifies on put and on each part when they are given; MD5 stands for `Content-MD5`.
    pub verifies: &'static [Algorithm],
    /// Checksums that the store takes by itself, and tells of every part and object.
    pub checksums: &'static [Algorithm],
    /// What it keeps of objects as it is given.
    pub keeps: AttributeSet,
    /// Whether tags can be stored with an object.
    pub tags: bool,
    /// Whether the tags of an object in parts must follow its completion ([`Sink::put_tags`]).
    pub tags_follow: bool,
    /// Most bytes of a server-side copy in one call; `None` where there is none.
    pub max_copy: Option<u64>,
}

/// Where a child stands at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// It is there.
    There,
    /// Its bytes must be sent.
    Absent,
    /// Something else has its key.
    Other(ETag),
    /// Nobody knows.
    Unknown,
    /// Another worker sends its bytes: ask again after this time.
    Awaited(Duration),
}

/// A store to write to.
///
/// A call that is dropped, or that fails with `maybe_applied`, may have taken effect, and may take effect later: only
/// conditions and looks decide. Nothing becomes visible before `put` or `complete_upload`.
#[async_trait]
pub trait Sink: Index {
    /// What it can do.
    fn sink_capability(&self) -> SinkCapability;

    /// Which of these attributes would be lost, by the rule of [`keeps`](SinkCapability::keeps): the caller notes them in the object's
    /// record. They are passed nonetheless.
    fn not_carried(&self, attributes: &Attributes) -> Vec<String> {
        attributes.lost_in(self.sink_capability().keeps)
    }

    /// Stores an object in one request. `Precondition` when the condition does not hold, `Corrupt` when the bytes did not
    /// have the checksum.
    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written>;

    /// Removes an object; one that is not there is no error. `Precondition` when the condition does not hold.
    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()>;

    /// Begins an upload. The condition and the checksum of `options` are for [`complete_upload`](Self::complete_upload);
    /// the checksum's algorithm says which one parts will carry.
    async fn create_upload(&self, key: &ObjectKey, _options: &PutOptions) -> Result<UploadId> {
        Err(unsupported(Op::CreateUpload, key))
    }

    /// Stores one part. The same number may be stored again; the last one counts.
    async fn put_part(&self, key: &ObjectKey, _upload: &UploadId, _number: u32, _body: Body, _checksum: Option<&Checksum>) -> Result<Part> {
        Err(unsupported(Op::PutPart, key))
    }

    /// All parts that an upload holds, by number. `NotFound` when the upload ended.
    async fn list_parts(&self, key: &ObjectKey, _upload: &UploadId) -> Result<Vec<Part>> {
        Err(unsupported(Op::ListParts, key))
    }

    /// A page of unfinished uploads whose keys begin with `prefix`; the second value goes on.
    async fn list_uploads(&self, prefix: &str, _token: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        Err(Error::new(ErrorKind::Unsupported, Op::ListUploads, prefix))
    }

    /// Makes the object of the parts. `NotFound` when the upload ended: perhaps by an earlier call whose answer was lost.
    async fn complete_upload(&self, key: &ObjectKey, _upload: &UploadId, _parts: &[Part], _options: &PutOptions) -> Result<Written> {
        Err(unsupported(Op::CompleteUpload, key))
    }

    /// Throws an upload away. One that is not there is no error.
    async fn abort_upload(&self, key: &ObjectKey, _upload: &UploadId) -> Result<()> {
        Err(unsupported(Op::AbortUpload, key))
    }

    /// Sets the tags of an object.
    async fn put_tags(&self, key: &ObjectKey, _tags: &Tags) -> Result<()> {
        Err(unsupported(Op::Tags, key))
    }

    /// Makes a child be there without its bytes, where that is possible: it is there already, or the store links it from
    /// elsewhere within itself. A child with children of its own is there only with them. Called again, it does no harm.
    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        match self.head(key, None).await {
            Ok(info)
                if info.entry.etag.is_some() && info.entry.etag == child.etag && child.size.is_none_or(|s| info.entry.size == Some(s)) =>
            {
                Ok(Placed::There)
            }
            Ok(info) => Ok(info.entry.etag.map_or(Placed::Unknown, Placed::Other)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Placed::Absent),
            Err(error) => Err(error),
        }
    }

    /// Does what belongs to a write and may be lacking behind it, where a worker finds what it was to write there already, as
    /// `etag`: the one who wrote it may have died. Called again, it does no harm.
    async fn settle(&self, _key: &ObjectKey, _etag: &ETag) -> Result<()> {
        Ok(())
    }

    /// Whether objects can be copied from there inside the store.
    fn can_copy(&self, _origin: &CopyOrigin) -> bool {
        false
    }

    /// Copies an object inside the store, if it still is `source`.
    async fn copy(&self, _origin: &CopyOrigin, _source: &ETag, key: &ObjectKey, _options: &PutOptions) -> Result<Written> {
        Err(unsupported(Op::Copy, key))
    }

    /// Copies a range into a part inside the store, if the object still is `source`.
    async fn copy_part(
        &self,
        _origin: &CopyOrigin,
        _source: &ETag,
        _range: Range<u64>,
        key: &ObjectKey,
        _upload: &UploadId,
        _number: u32,
    ) -> Result<Part> {
        Err(unsupported(Op::CopyPart, key))
    }
}

fn unsupported(op: Op, key: &ObjectKey) -> Error {
    Error::new(ErrorKind::Unsupported, op, key.to_string())
}
