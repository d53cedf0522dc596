//! What is said of a store, as data.

use crate::wire::uri;
use dth_core::{
    attribute::{Attribute, AttributeSet},
    checksum::Algorithm,
    object::{ETag, EtagKind},
    sink::Conditions,
};
use std::borrow::Cow;

/// How header names and values read, and how requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `x-amz-…`, AWS Signature Version 4.
    Amazon,
    /// `x-oss-…`, `OSS4-HMAC-SHA256`.
    Oss,
    /// `x-cos-…`, `q-sign-algorithm=sha1`.
    Cos,
}

/// Which call lists objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// ListObjectsV2: `start-after`, `continuation-token`.
    V2,
    /// ListObjects: `marker`, `NextMarker`.
    V1,
}

/// What etags are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Etags {
    /// As Amazon builds them: MD5, or MD5 of the MD5 values of the parts.
    Md5,
    /// MD5 of what was put at once; nobody has said what those of objects in parts are.
    Md5OfPuts,
    /// The same in upper case.
    UpperMd5OfPuts,
    /// Anything.
    Opaque,
}

/// Which keys can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All.
    Any,
    /// Paths: no empty, `.` or `..` segments, no backslash.
    Paths,
    /// None with a control character.
    Visible,
    /// None that begins with a slash or a backslash.
    NoLeadingSlashes,
    /// None that begins with a slash, and none with a segment `.` or `..`.
    NoDots,
}

/// What a plus sign in a percent-encoded listing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plus {
    Space,
    Itself,
}

/// How the document of RestoreObject names the speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestoreForm {
    /// `GlacierJobParameters`.
    Glacier,
    /// `JobParameters`.
    Oss,
    /// `CASJobParameters`.
    Cos,
}

/// What user metadata may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Most bytes, names and values together.
    pub(crate) max: u64,
    /// Names with `_`.
    pub(crate) underscores: bool,
    pub(crate) non_ascii: NonAscii,
}

/// What becomes of values with other characters than those of ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NonAscii {
    /// They travel as UTF-8.
    Raw,
    /// They travel as encoded words of RFC 2047 (Amazon S3 User Guide, "User-defined object metadata").
    Encoded,
    /// Nobody has said.
    Lost,
}

/// Host names of a store by region, with `{region}` in them; `None` where there is no such way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// Over the internet.
    pub(crate) public: Option<&'static str>,
    /// Inside the cloud.
    pub(crate) internal: Option<&'static str>,
    /// By the nearest edge.
    pub(crate) accelerate: Option<&'static str>,
    /// IPv4 and IPv6.
    pub(crate) dual_stack: Option<&'static str>,
    /// The region that signatures name where none is set.
    pub(crate) region: Option<&'static str>,
}

impl Hosts {
    /// Of software that everybody runs on hosts of their own.
    pub(crate) const NONE: Self = Self { public: None, internal: None, accelerate: None, dual_stack: None, region: None };
}

/// The facts of a profile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// What the bucket's name begins with in reports.
    pub(crate) scheme: &'static str,
    pub(crate) dialect: Dialect,
    pub(crate) hosts: Hosts,
    /// Whether the bucket belongs into the host name of the store's own hosts.
    pub(crate) virtual_host: bool,
    pub(crate) listing: Listing,
    /// Entries to ask for, where a page would hold fewer otherwise.
    pub(crate) page: Option<u32>,
    pub(crate) plus: Plus,
    pub(crate) etags: Etags,
    /// `If-Match` on reads.
    pub(crate) conditional_read: bool,
    /// Ranges past the end are answered with the whole object unless `range-behavior` is `standard`.
    pub(crate) strict_ranges: bool,
    /// `If-None-Match: *` (or its like) and `If-Match` on PutObject and CompleteMultipartUpload, `If-Match` on DeleteObject.
    pub(crate) conditions: Conditions,
    /// A listing can begin behind any key.
    pub(crate) seeks: bool,
    pub(crate) keys: Keys,
    /// Most bytes of a key.
    pub(crate) max_key: usize,
    /// Keys in listings are percent-encoded when asked for.
    pub(crate) encoded_lists: bool,
    /// The same in listings of uploads.
    pub(crate) encoded_uploads: bool,
    pub(crate) list_parts: bool,
    pub(crate) list_uploads: bool,
    /// `partNumber` on reads.
    pub(crate) part_reads: bool,
    /// `x-amz-copy-source-if-match`: without it, nobody knows what version a copy inside the store is of.
    pub(crate) pinned_copies: bool,
    /// Most bytes of a copy inside the store by one request.
    pub(crate) max_copy: u64,
    /// Tags are read and written.
    pub(crate) tags: bool,
    /// Tags with CreateMultipartUpload; otherwise they follow Complete in a request of their own.
    pub(crate) tags_on_create: bool,
    pub(crate) metadata: Metadata,
    /// An object can redirect who asks for it by a website.
    pub(crate) website_redirect: bool,
    /// Checksums that the store verifies when given; MD5 is `Content-MD5`.
    pub(crate) verifies: &'static [Algorithm],
    /// Checksums that the store takes by itself, and tells of every part and object.
    pub(crate) tells: &'static [Algorithm],
    /// Checksums of whole objects that answers to reads may carry.
    pub(crate) offers: &'static [Algorithm],
    /// Answers carry them when they are asked for by `x-amz-checksum-mode`.
    pub(crate) checksum_mode: bool,
    /// Parts may carry CRC64NVME, and Complete one of the full object.
    pub(crate) full_object_crc: bool,
    /// Bytes of a part, and how many there may be.
    pub(crate) min_part: u64,
    pub(crate) max_part: u64,
    pub(crate) max_parts: u32,
    /// Most bytes of an object put at once, and of any object.
    pub(crate) max_put: u64,
    pub(crate) max_object: u64,
    /// Storage classes that can be asked for; empty where nobody has listed them.
    pub(crate) classes: &'static [&'static str],
    /// Classes whose objects must be restored before they can be read.
    pub(crate) archived: &'static [&'static str],
    /// RestoreObject; `None` where there is none.
    pub(crate) restore: Option<RestoreForm>,
    /// ListObjectVersions, reads of versions, GetBucketVersioning.
    pub(crate) versions: bool,
    /// Canned ACLs that can be asked for; empty where there are none.
    pub(crate) acls: &'static [&'static str],
    /// The ACL of an object in parts goes with Complete, not with Create.
    pub(crate) acl_on_complete: bool,
    /// Objects can be paid for by who asks.
    pub(crate) requester_pays: bool,
    /// `AES256` and KMS keys.
    pub(crate) encryption: bool,
    /// What is stored compressed comes so only to who accepts that; otherwise it is another one on the way.
    pub(crate) accepts_gzip: bool,
}

impl Facts {
    /// What the engine may think of etags.
    pub(crate) fn etag_kind(&self) -> EtagKind {
        if self.etags == Etags::Opaque { EtagKind::Opaque } else { EtagKind::Md5 }
    }

    /// Whether an etag is an MD5 at most where the object was put at once, and is not encrypted.
    pub(crate) fn vouches_for_puts_only(&self) -> bool {
        self.etags != Etags::Md5
    }

    /// An etag as the rest of the family knows it: MD5 values are compared in lower case.
    pub(crate) fn etag(&self, text: &str) -> Option<ETag> {
        let etag = ETag::new(text);
        let etag = if self.etags == Etags::UpperMd5OfPuts && is_md5(&etag) { ETag::new(&etag.as_str().to_ascii_lowercase()) } else { etag };
        Some(etag).filter(|e| !e.as_str().is_empty())
    }

    /// An etag as the store gave it.
    pub(crate) fn etag_text(&self, etag: &ETag) -> String {
        if self.etags == Etags::UpperMd5OfPuts && is_md5(etag) { etag.as_str().to_ascii_uppercase() } else { etag.as_str().to_owned() }
    }

    /// Whether nobody knows what this etag is made of.
    pub(crate) fn is_opaque(&self, etag: Option<&ETag>) -> bool {
        match self.etags {
            Etags::Md5 => false,
            Etags::Opaque => true,
            Etags::Md5OfPuts | Etags::UpperMd5OfPuts => etag.is_some_and(|e| e.as_md5().is_none()),
        }
    }

    /// A text of a listing as it really is: decoded only when the answer says that it is encoded (F7).
    pub(crate) fn listed<'a>(&self, text: &'a str, encoded: bool) -> Option<Cow<'a, str>> {
        if encoded { uri::decode_listed(text, self.plus == Plus::Space) } else { Some(text.into()) }
    }

    /// What the store keeps of objects, and tells of them.
    pub(crate) fn attributes(&self) -> AttributeSet {
        let set = AttributeSet::CONTENT.with(Attribute::Tags, self.tags).with(Attribute::WebsiteRedirect, self.website_redirect);
        if self.metadata.non_ascii == NonAscii::Lost { set.without(Attribute::NonAsciiMetadata) } else { set }
    }

    /// Whether user metadata of this name and value can be kept.
    pub(crate) fn keeps_metadata(&self, name: &str, value: &[u8]) -> bool {
        (self.metadata.underscores || !name.contains('_')) && (self.metadata.non_ascii != NonAscii::Lost || value.is_ascii())
    }

    /// Whether the store takes this key.
    pub(crate) fn carries(&self, key: &str) -> bool {
        let is_path = || key.split('/').all(|segment| !matches!(segment, "" | "." | "..") && !segment.contains('\\'));
        (1..=self.max_key).contains(&key.len())
            && match self.keys {
                Keys::Any => true,
                Keys::Paths => is_path(),
                Keys::Visible => !key.chars().any(char::is_control),
                Keys::NoLeadingSlashes => !key.starts_with(['/', '\\']),
                Keys::NoDots => !key.starts_with('/') && !key.split('/').any(|segment| matches!(segment, "." | "..")),
            }
    }
}

fn is_md5(etag: &ETag) -> bool {
    etag.as_md5().is_some() || etag.part_count().is_some()
}
