//! Where objects are read from.

use crate::{
    attribute::AttributeSet,
    checksum::Algorithm,
    error::{Error, ErrorKind, Op, Result},
    index::Index,
    object::{ETag, Entry, ObjectInfo, ObjectKey, Tags, VersionId},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range, pin::Pin};

/// Bytes as they arrive. Ends with an error when the connection broke or the length was not the announced one.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'static>>;

/// The same bytes, the last of which are passed on once `check` says that what was read still is what was opened: for stores whose reads
/// cannot be pinned.
pub fn checked_at_the_end<F>(body: ByteStream, check: impl FnOnce() -> F + Send + 'static) -> ByteStream
where
    F: Future<Output = Result<()>> + Send,
{
    stream::try_unfold((body, None::<Bytes>, Some(check)), |(mut body, mut kept, mut check)| async move {
        loop {
            match body.next().await {
                Some(chunk) => {
                    if let Some(before) = kept.replace(chunk?) {
                        return Ok(Some((before, (body, kept, check))));
                    }
                }
                None => {
                    if let Some(check) = check.take() {
                        check().await?;
                    }
                    return Ok(kept.take().map(|last| (last, (body, None, None))));
                }
            }
        }
    })
    .boxed()
}

/// Which bytes to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ReadRange {
    /// The whole object.
    #[default]
    Full,
    /// These bytes. An end past the object is an error of the backend's making, never a shorter answer.
    Bytes(Range<u64>),
    /// The first part of a multipart object, as it was uploaded: tells the part layout, metadata and first bytes in one
    /// request. The whole object where it has no parts.
    FirstPart,
}

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Which bytes.
    pub range: ReadRange,
    /// Only if the object still is this one; otherwise `Precondition`.
    pub if_match: Option<ETag>,
    /// Of this version.
    pub version: Option<VersionId>,
}

/// What a read answers: what was really read, and the bytes.
pub struct Read {
    /// Entry (the size is that of the whole object), attributes, checksum of the whole object.
    pub info: ObjectInfo,
    /// The bytes of the object that `body` carries.
    pub range: Range<u64>,
    /// Exactly `range.end - range.start` bytes, or an error.
    pub body: ByteStream,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("info", &self.info).field("range", &self.range).finish_non_exhaustive()
    }
}

/// An entry with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The entry, with the etag of the version that these are the children of.
    pub entry: Entry,
    /// They come first. Each has an etag; those that are content-addressed ([`EtagKind::Digest`]) are brought once, whoever needs
    /// them.
    ///
    /// [`EtagKind::Digest`]: crate::object::EtagKind::Digest
    pub children: Vec<Entry>,
}

/// How archived objects are restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restore {
    /// For so many days they can be read then.
    pub days: u32,
    /// How fast, and at what price, in the store's own word (`Bulk`, `Standard`, `Expedited`); the store's default where nothing is said.
    pub tier: Option<String>,
}

impl Default for Restore {
    fn default() -> Self {
        Self { days: 7, tier: None }
    }
}

/// What became of a request to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoring {
    /// It can be read now.
    Ready,
    /// It will be, in minutes to days.
    UnderWay,
}

/// What a source can do.
#[derive(Debug, Clone)]
pub struct SourceCapability {
    /// Whether `if_match` is honoured by the server. The engine compares the etag of every answer in any case.
    pub conditional_read: bool,
    /// Whether ranges can be read.
    pub ranged: bool,
    /// Whether [`ReadRange::FirstPart`] works.
    pub first_part: bool,
    /// Checksums of whole objects that answers may carry.
    pub checksums: &'static [Algorithm],
    /// What it tells of objects; of what every store has (checksum, time, version, ACL, class) nothing need be said.
    pub gives: AttributeSet,
    /// Whether objects have tags that [`Source::tags`] reads.
    pub tags: bool,
    /// Whether entries have [`children`](Source::children).
    pub children: bool,
}

/// A store to read from.
///
/// Every call is safe to drop at any await.
#[async_trait]
pub trait Source: Index {
    /// What it can do.
    fn source_capability(&self) -> SourceCapability;

    /// Reads an object or a part of it, pinned by `options` to one version.
    ///
    /// The answer says what was read; the caller believes it and not the listing. `NotFound` when it is gone,
    /// `Precondition` when it is another version, `Archived` when it must be restored first, `Corrupt` when the server
    /// answered another range than the one asked for.
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read>;

    /// The version of an entry that is there now, and what must be at the destination before it. Objects have none.
    ///
    /// What is [read](Self::read) afterwards is pinned to the entry of the answer: its children are those of these bytes.
    async fn children(&self, entry: &Entry) -> Result<Family> {
        Ok(Family { entry: entry.clone(), children: Vec::new() })
    }

    /// Asks for an archived object to be made readable for some days. `Unsupported` where there is no such thing.
    ///
    /// Asked again, it does no harm.
    async fn restore(&self, key: &ObjectKey, _version: Option<&VersionId>, _restore: &Restore) -> Result<Restoring> {
        Err(Error::new(ErrorKind::Unsupported, Op::Restore, key.to_string()))
    }

    /// The tags of an object.
    async fn tags(&self, key: &ObjectKey, _version: Option<&VersionId>) -> Result<Tags> {
        Err(Error::new(ErrorKind::Unsupported, Op::Tags, key.to_string()))
    }

    /// Where a sink of the same store can copy this object from without moving bytes through us.
    fn copy_origin(&self, _key: &ObjectKey, _version: Option<&VersionId>) -> Option<CopyOrigin> {
        None
    }
}

/// The place of an object inside its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOrigin {
    /// The store's endpoint; a sink copies only from its own.
    pub endpoint: String,
    /// Bucket or repository.
    pub container: String,
    /// The key.
    pub key: ObjectKey,
    /// The version.
    pub version: Option<VersionId>,
    /// Whose rights read it: a sink copies only what its own identity can read.
    pub identity: String,
}
