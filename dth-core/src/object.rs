//! Values that both sides speak: keys, versions, entries, attributes.

use crate::{
    attribute::{Attribute, AttributeSet},
    checksum::{Checksum, hex, unhex},
};
use bytes::Bytes;
use jiff::Timestamp;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// An opaque, byte-exact UTF-8 key. Never normalised, never split into path segments; ordered by bytes, which is the order
/// of every S3 listing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// Wraps a key as it is.
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        Self(key.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins so.
    pub fn starts_with(&self, prefix: &str) -> bool {
        // To compare nothing with nothing is slow: glibc's memcmp loads masked what an empty `String` points at, which is no memory.
        prefix.is_empty() || self.0.starts_with(prefix)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Prints control characters escaped, so that a key with a newline cannot forge a log line.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { fmt::Write::write_char(f, c)? }
        }
        Ok(())
    }
}

impl From<&str> for ObjectKey {
    fn from(key: &str) -> Self {
        Self::new(key)
    }
}

impl From<String> for ObjectKey {
    fn from(key: String) -> Self {
        Self::new(key)
    }
}

/// An entity tag, without the quotes of its HTTP form. Opaque, unless the store says that it builds them from MD5
/// ([`EtagKind::Md5`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes the HTTP or XML form; quotes are dropped.
    pub fn new(etag: &str) -> Self {
        Self(etag.trim().trim_matches('"').into())
    }

    /// The etag of an object stored by one PUT, in a store of [`EtagKind::Md5`].
    pub fn of_md5(md5: &[u8]) -> Self {
        Self(hex(md5).into())
    }

    /// The etag of an object in a store of [`EtagKind::Digest`].
    pub fn of_sha256(sha256: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(sha256)).into())
    }

    /// The etag of a multipart object from the MD5 values of its parts, in a store of [`EtagKind::Md5`].
    pub fn of_parts(parts: &[[u8; 16]]) -> Self {
        let mut all = Md5::new();
        for part in parts {
            all.update(part);
        }
        Self(format!("{}-{}", hex(&all.finalize()), parts.len()).into())
    }

    /// The tag as text, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The MD5 that a plain etag looks like; whether it is one, only the store knows.
    pub fn as_md5(&self) -> Option<[u8; 16]> {
        (self.0.len() == 32).then(|| unhex(&self.0)).flatten()?.try_into().ok()
    }

    /// The number of parts that a multipart etag (`…-N`) names.
    pub fn part_count(&self) -> Option<u32> {
        let (digest, count) = self.0.split_once('-')?;
        (digest.len() == 32 && unhex(digest).is_some()).then(|| count.parse().ok()).flatten().filter(|n| *n > 0)
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a store builds its etags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EtagKind {
    /// MD5 of the body, or of the MD5 values of the parts with the count behind a dash.
    Md5,
    /// The digest of the bytes, as registries have it (`sha256:…`): equal where and only where the bytes are.
    Digest,
    /// Anything else (KMS encryption, other vendors): only equality with itself means something.
    Opaque,
}

impl EtagKind {
    /// Whether equal etags of two such stores mean equal objects.
    pub fn is_comparable_with(self, other: Self) -> bool {
        self == other && self != Self::Opaque
    }
}

/// The id of one version of an object, in a store that keeps versions.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionId(Arc<str>);

impl VersionId {
    /// Wraps an id as it is.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The place of an event among the events of its key.
///
/// A hexadecimal number of any length; the shorter of two is padded with zeros on the right before they are compared
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>). Those of different keys say
/// nothing of each other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sequencer(
    /// Upper case, without zeros at the end: so the order of texts is the order of what they say, and equal is equal.
    Arc<str>,
);

impl Sequencer {
    /// Takes the text of an event; `None` for what is not hexadecimal.
    pub fn new(text: &str) -> Option<Self> {
        let hexadecimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        hexadecimal.then(|| Self(text.trim_end_matches('0').to_ascii_uppercase().into()))
    }

    /// The text, without the zeros that it may have ended with.
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "0" } else { &self.0 }
    }
}

impl TryFrom<String> for Sequencer {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text).ok_or_else(|| format!("`{text}` is no sequencer: a hexadecimal number is expected"))
    }
}

impl From<Sequencer> for String {
    fn from(sequencer: Sequencer) -> Self {
        sequencer.as_str().to_owned()
    }
}

/// One object as a listing or a header shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: ObjectKey,
    /// Bytes; `None` where only reading tells (an image).
    pub size: Option<u64>,
    /// The entity tag.
    pub etag: Option<ETag>,
    /// When the store last wrote it.
    pub modified: Option<Timestamp>,
    /// The version, in a store that keeps them.
    pub version: Option<VersionId>,
    /// The storage class, as the store names it.
    pub storage_class: Option<Arc<str>>,
}

impl Entry {
    /// An entry of which only key, size and etag are known.
    pub fn new(key: impl Into<ObjectKey>, size: u64, etag: Option<ETag>) -> Self {
        Self { key: key.into(), size: Some(size), etag, modified: None, version: None, storage_class: None }
    }
}

/// Content headers and metadata that travel with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Expires`, as the store gave it.
    pub expires: Option<String>,
    /// Where a website request is redirected to.
    pub website_redirect: Option<String>,
    /// Retention or legal hold, as the store words it. No destination takes it over.
    pub object_lock: Option<String>,
    /// User metadata; bytes, because names of people are not ASCII and must survive.
    pub user: BTreeMap<String, Bytes>,
}

impl Attributes {
    /// The names of those that say something (a store's default content type does not) and are not among these.
    pub fn lost_in(&self, keeps: AttributeSet) -> Vec<String> {
        let said = [
            (Attribute::ContentType, self.content_type.as_ref().filter(|t| !t.ends_with("/octet-stream"))),
            (Attribute::ContentEncoding, self.content_encoding.as_ref()),
            (Attribute::ContentLanguage, self.content_language.as_ref()),
            (Attribute::ContentDisposition, self.content_disposition.as_ref()),
            (Attribute::CacheControl, self.cache_control.as_ref()),
            (Attribute::Expires, self.expires.as_ref()),
            (Attribute::WebsiteRedirect, self.website_redirect.as_ref()),
            (Attribute::ObjectLock, self.object_lock.as_ref()),
        ];
        let lost = said.into_iter().filter(|(attribute, value)| value.is_some() && !keeps.contains(*attribute));
        let lost = lost.map(|(attribute, _)| attribute.as_str().to_owned());
        let of = |value: &Bytes| if value.is_ascii() { Attribute::Metadata } else { Attribute::NonAsciiMetadata };
        let user = self.user.iter().filter(|(_, value)| !keeps.contains(of(value)));
        lost.chain(user.map(|(name, _)| format!("metadata {name}"))).collect()
    }
}

/// An object's tags, in the store's order.
pub type Tags = Vec<(String, String)>;

/// What a header request tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key, size, etag, version.
    pub entry: Entry,
    /// Content headers and metadata.
    pub attributes: Attributes,
    /// Its etag is no MD5, whatever the store's etags are otherwise (it is encrypted with KMS, say).
    pub opaque_etag: bool,
    /// A checksum of the whole object, where the store offers one.
    pub checksum: Option<Checksum>,
    /// Parts of a multipart object, where the store tells.
    pub parts: Option<u32>,
    /// How many tags it has; `None` where the store does not tell.
    pub tag_count: Option<u32>,
}

impl ObjectInfo {
    /// Info with nothing known but the entry.
    pub fn of(entry: Entry) -> Self {
        Self { entry, attributes: Attributes::default(), opaque_etag: false, checksum: None, parts: None, tag_count: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// E4: by the definition, in which the shorter one is padded; in any case of letters; through the wire and back.
        #[test]
        fn sequencers_compare_padded(a in "[0-9a-fA-F]{1,20}", b in "[0-9a-fA-F]{1,20}", zeros in 0..5usize) {
            let (left, right) = (Sequencer::new(&a).unwrap(), Sequencer::new(&b).unwrap());
            let width = a.len().max(b.len());
            let padded = |text: &str| format!("{text:0<width$}").to_ascii_uppercase();
            prop_assert_eq!(left.cmp(&right), padded(&a).cmp(&padded(&b)));
            prop_assert_eq!(left == right, left.cmp(&right).is_eq());
            prop_assert_eq!(&Sequencer::new(&(a.clone() + &"0".repeat(zeros))).unwrap(), &left);
            let wire = serde_json::to_string(&left).unwrap();
            prop_assert_eq!(serde_json::from_str::<Sequencer>(&wire).unwrap(), left);
        }
    }

    #[test]
    fn sequencers_are_hexadecimal() {
        assert!(Sequencer::new("0055AED6DCD90281E5") < Sequencer::new("0055AED6DCD90281E6"));
        assert!(Sequencer::new("00").is_some_and(|s| s.as_str() == "0"));
        for bad in ["", "0x1", "g", " 1", "é"] {
            assert_eq!(Sequencer::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn etags_say_what_they_look_like() {
        assert!(ETag::new("\"25f9e794323b453885f5181f1b624d0b\"").as_md5().is_some());
        assert_eq!(ETag::new("25f9e794323b453885f5181f1b624d0b-7").part_count(), Some(7));
        for odd in ["25f9e794323b453885f5181f1b624d0b-0", "x-1", "W/\"abc\"", "", "-3", "25f9e794323b453885f5181f1b624d0b-x"] {
            assert_eq!(ETag::new(odd).part_count(), None, "{odd}");
            assert_eq!(ETag::new(odd).as_md5(), None, "{odd}");
        }
    }

    #[test]
    fn multipart_etag_is_md5_of_md5s() {
        // Two parts of one byte each, `a` and `b`, as S3 computes it.
        let parts = [Md5::digest(b"a").into(), Md5::digest(b"b").into()];
        assert_eq!(ETag::of_parts(&parts).as_str(), "96e024ba2074fe77e8e965ba43a704be-2");
    }

    #[test]
    fn a_key_cannot_forge_a_log_line() {
        assert_eq!(ObjectKey::new("a\nb").to_string(), "a\\nb");
    }
}
