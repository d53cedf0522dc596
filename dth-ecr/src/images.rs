//! What all stores of images are like, registries and layouts: entries are known by their digests, and bytes are kept.

use crate::{
    key::ImageKey,
    manifest::{self, Manifest},
};
use dth_core::{
    attribute::{Attribute, AttributeSet},
    checksum::{Algorithm, Checksum, unhex},
    error::{Error, ErrorKind, Op, Result},
    index::IndexCapability,
    object::{Attributes, ETag, Entry, EtagKind, ObjectInfo, ObjectKey},
    sink::{Body, Conditions, PutOptions, SinkCapability, Written},
    source::{Family, ReadRange, SourceCapability},
};
use std::ops::Range;

pub(crate) fn index_capability() -> IndexCapability {
    // A name, and the longest of a digest's forms.
    IndexCapability { max_key: 255 + 1 + 7 + 128, looked_up: true, ..IndexCapability::like_s3(EtagKind::Digest) }
}

/// A manifest keeps its type; of a blob, whoever names it says what it is.
const TYPE: AttributeSet = AttributeSet::of(&[Attribute::ContentType]);

pub(crate) fn source_capability() -> SourceCapability {
    SourceCapability {
        conditional_read: true,
        ranged: true,
        first_part: false,
        checksums: &[Algorithm::Sha256],
        gives: TYPE,
        tags: false,
        children: true,
    }
}

pub(crate) fn sink_capability(stream_window: u64) -> SinkCapability {
    SinkCapability {
        max_put: u64::MAX,
        max_object: u64::MAX,
        stream_window,
        multipart: None,
        conditions: Conditions::NONE,
        // Stores may check digests, too; what is promised is checked here.
        verifies: &[],
        checksums: &[],
        keeps: TYPE,
        tags: false,
        tags_follow: false,
        max_copy: None,
    }
}

/// The image that a key names; `Unrepresentable` for what names none.
pub(crate) fn image_of(key: &ObjectKey, op: Op) -> Result<ImageKey> {
    let why = "keys of images are name:tag, name@digest and name#digest";
    ImageKey::parse(key).ok_or_else(|| Error::new(ErrorKind::Unrepresentable, op, key.to_string()).with_source(why))
}

/// Refuses a child that is to be placed under another digest than its own.
pub(crate) fn must_be_its_own(digest: &str, child: &Entry, target: impl FnOnce() -> String) -> Result<()> {
    match &child.etag {
        Some(etag) if etag.as_str() != digest => {
            Err(Error::new(ErrorKind::Invalid, Op::Place, target()).with_source("a child under another digest than its own"))
        }
        _ => Ok(()),
    }
}

/// The checksum that a digest is.
pub(crate) fn checksum_of(digest: &str) -> Option<Checksum> {
    let value = unhex(digest.strip_prefix("sha256:")?)?;
    Some(Checksum { algorithm: Algorithm::Sha256, value })
}

/// The same of bytes of this type: the digest of what is signed is that of its payload, and says nothing of the bytes.
fn checksum_of_bytes(digest: &str, media_type: Option<&str>) -> Option<Checksum> {
    checksum_of(digest).filter(|_| !media_type.is_some_and(manifest::is_signed))
}

/// What is known of an image with this digest.
pub(crate) fn info(key: &ObjectKey, digest: &str, size: Option<u64>, media_type: Option<String>) -> ObjectInfo {
    let entry = Entry { size, ..Entry::new(key.clone(), 0, Some(ETag::new(digest))) };
    let checksum = checksum_of_bytes(digest, media_type.as_deref());
    let attributes = Attributes { content_type: media_type, ..Attributes::default() };
    ObjectInfo { attributes, checksum, ..ObjectInfo::of(entry) }
}

/// The answer to a write of what has this digest.
pub(crate) fn written(digest: &str, media_type: Option<&str>) -> Written {
    Written { etag: Some(ETag::new(digest)), checksum: checksum_of_bytes(digest, media_type), ..Written::default() }
}

/// A blob needs nothing.
pub(crate) fn without_children(entry: &Entry, digest: &str) -> Family {
    Family { entry: Entry { etag: Some(ETag::new(digest)), ..entry.clone() }, children: Vec::new() }
}

/// A manifest, under a key of repository `name`, with what it needs.
pub(crate) fn with_children(key: &ObjectKey, name: &str, manifest: &Manifest) -> Result<Family> {
    let entry = Entry::new(key.clone(), manifest.bytes.len() as u64, Some(ETag::new(&manifest.digest)));
    Ok(Family { entry, children: manifest::entries(name, manifest.children()?) })
}

/// The bytes that are asked for, of so many. `Corrupt` when they are not there.
pub(crate) fn range_of(asked: &ReadRange, size: u64, target: impl FnOnce() -> String) -> Result<Range<u64>> {
    match asked {
        ReadRange::Bytes(range) if range.end <= size && range.start < range.end => Ok(range.clone()),
        ReadRange::Bytes(range) => {
            Err(Error::new(ErrorKind::Corrupt, Op::Read, target()).with_source(format!("bytes {range:?} of {size}")))
        }
        ReadRange::Full | ReadRange::FirstPart => Ok(0..size),
    }
}

/// The manifest that is to be stored under this key. `Invalid` when it is none, or has another digest.
pub(crate) async fn manifest_to_store(image: &ImageKey, body: Body, options: &PutOptions, target: &str) -> Result<Manifest> {
    let bytes = manifest::gather(body, target).await?;
    let manifest = Manifest::new(bytes, options.attributes.content_type.as_deref(), image.digest(), target);
    // What is sent is wrong, and will be.
    manifest.map_err(|e| Error::new(ErrorKind::Invalid, Op::Put, target).with_source(e))
}
