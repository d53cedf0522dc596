//! Headers to values and back.

use crate::{
    profile::{Facts, NonAscii},
    wire::{words, xml::http_date},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    object::{Attributes, ETag, Entry, ObjectInfo, ObjectKey, VersionId},
    sink::{Condition, Written},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::ops::Range;

const META: &str = "x-amz-meta-";
/// A decimal number, as OSS and COS tell it.
const ECMA: &str = "x-amz-hash-crc64ecma";

/// The header of each checksum that stores give and take.
const CHECKSUMS: [(Algorithm, &str); 3] = [
    (Algorithm::Crc64Nvme, "x-amz-checksum-crc64nvme"),
    (Algorithm::Crc32c, "x-amz-checksum-crc32c"),
    (Algorithm::Sha256, "x-amz-checksum-sha256"),
];

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    // Bytes that are no UTF-8 are Latin-1, as HTTP has it.
    let latin = |bytes: &[u8]| bytes.iter().map(|b| char::from(*b)).collect();
    headers.get(name).map(|v| std::str::from_utf8(v.as_bytes()).map_or_else(|_| latin(v.as_bytes()), str::to_owned))
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

pub(crate) fn etag(headers: &HeaderMap, facts: &Facts) -> Option<ETag> {
    facts.etag(&text(headers, "etag")?)
}

/// What a GET or HEAD answer says of an object of `size` bytes.
pub(crate) fn info(key: &ObjectKey, size: u64, headers: &HeaderMap, facts: &Facts) -> ObjectInfo {
    let etag = etag(headers, facts);
    let opaque_etag = is_opaque(headers, facts, etag.as_ref());
    let said = |value: &HeaderValue| match (facts.metadata.non_ascii, value.to_str()) {
        (NonAscii::Encoded, Ok(text)) => Bytes::from(words::decode(text)),
        _ => Bytes::copy_from_slice(value.as_bytes()),
    };
    let user = headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix(META)?.to_owned(), said(value)))).collect();
    ObjectInfo {
        entry: Entry {
            key: key.clone(),
            size: Some(size),
            etag,
            modified: text(headers, "last-modified").and_then(|t| http_date(&t)),
            version: text(headers, "x-amz-version-id").filter(|v| v != "null").map(VersionId::new),
            storage_class: text(headers, "x-amz-storage-class").map(Into::into),
        },
        attributes: Attributes {
            content_type: text(headers, "content-type"),
            content_encoding: text(headers, "content-encoding"),
            content_language: text(headers, "content-language"),
            content_disposition: text(headers, "content-disposition"),
            cache_control: text(headers, "cache-control"),
            expires: text(headers, "expires"),
            website_redirect: text(headers, "x-amz-website-redirect-location"),
            object_lock: object_lock(headers),
            user,
        },
        opaque_etag,
        checksum: full_checksum(headers),
        parts: number(headers, "x-amz-mp-parts-count"),
        tag_count: number(headers, "x-amz-tagging-count"),
    }
}

/// Retention and legal hold, of whoever may see them (Amazon S3 API Reference, "GetObject").
fn object_lock(headers: &HeaderMap) -> Option<String> {
    let mode = text(headers, "x-amz-object-lock-mode");
    let until = text(headers, "x-amz-object-lock-retain-until-date");
    let hold = text(headers, "x-amz-object-lock-legal-hold").filter(|hold| hold == "ON").map(|_| "legal hold".to_owned());
    let said: Vec<String> = [mode, until, hold].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(" "))
}

/// Encrypted with KMS or with the customer's key, an object has an etag that is no MD5 (Amazon S3 API Reference, "Object").
/// OSS says of what kind an object is: only those that were put at once have an MD5.
pub(crate) fn is_opaque(headers: &HeaderMap, facts: &Facts, etag: Option<&ETag>) -> bool {
    // COS: the etag "differs if the uploaded object is encrypted", however it is.
    let managed = text(headers, "x-amz-server-side-encryption").is_some_and(|kind| kind != "AES256" || facts.vouches_for_puts_only());
    let made_otherwise = text(headers, "x-amz-object-type").is_some_and(|kind| !kind.eq_ignore_ascii_case("normal"));
    managed || made_otherwise || headers.contains_key("x-amz-server-side-encryption-customer-algorithm") || facts.is_opaque(etag)
}

/// The checksum of the whole object. Composite ones (`…-N`) are of their parts' checksums and compare with nothing of ours.
pub(crate) fn full_checksum(headers: &HeaderMap) -> Option<Checksum> {
    if text(headers, "x-amz-checksum-type").is_some_and(|t| t != "FULL_OBJECT") {
        return None;
    }
    let found = CHECKSUMS.iter().find_map(|(algorithm, name)| {
        let value = text(headers, name).filter(|v| !v.contains('-'))?;
        Some(Checksum { algorithm: *algorithm, value: STANDARD.decode(value).ok()? })
    });
    let ecma = || number::<u64>(headers, ECMA).map(|n| Checksum { algorithm: Algorithm::Crc64Ecma, value: n.to_be_bytes().to_vec() });
    found.or_else(ecma)
}

/// `bytes a-b/total` of a 206 answer.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = text(headers, "content-range")?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    (end >= start).then_some((start..end.checked_add(1)?, total.parse().ok()?))
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    number(headers, "content-length")
}

/// Adds content headers and user metadata, but for what the store does not keep ([`not_kept`]). `Unrepresentable`, naming it, for a
/// value that no header can carry.
pub(crate) fn put_attributes(headers: &mut HeaderMap, attributes: &Attributes, facts: &Facts, op: Op) -> Result<()> {
    let a = attributes;
    let plain: [(&'static str, &Option<String>); 7] = [
        ("content-type", &a.content_type),
        ("content-encoding", &a.content_encoding),
        ("content-language", &a.content_language),
        ("content-disposition", &a.content_disposition),
        ("cache-control", &a.cache_control),
        ("expires", &a.expires),
        ("x-amz-website-redirect-location", if facts.website_redirect { &a.website_redirect } else { &None }),
    ];
    let bad = |name: &str| Error::new(ErrorKind::Unrepresentable, op, format!("attribute {name}"));
    for (name, value) in plain {
        if let Some(value) = value {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|e| bad(name).with_source(e))?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let kept = || a.user.iter().filter(|(name, value)| facts.keeps_metadata(name, value));
    let (size, most) = (kept().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>(), facts.metadata.max);
    if size > most {
        return Err(
            Error::new(ErrorKind::Unrepresentable, op, "user metadata").with_source(format!("{size} bytes; the store keeps {most}"))
        );
    }
    for (name, value) in kept() {
        let header: HeaderName = format!("{META}{name}").parse().map_err(|_| bad(name).with_source("not a header name"))?;
        // Signatures are over text: bytes that are none are read as Latin-1, as HTTP has it.
        let text = std::str::from_utf8(value).map_or_else(|_| value.iter().map(|b| char::from(*b)).collect(), str::to_owned);
        let text = if facts.metadata.non_ascii == NonAscii::Encoded { words::encode(&text) } else { text };
        headers.insert(header, HeaderValue::from_bytes(text.as_bytes()).map_err(|e| bad(name).with_source(e))?);
    }
    Ok(())
}

/// The names of those that the store does not keep.
pub(crate) fn not_kept(attributes: &Attributes, facts: &Facts) -> Vec<String> {
    let bad_name = |name: &&String| !facts.metadata.underscores && name.contains('_');
    let mut lost = attributes.lost_in(facts.attributes());
    for name in attributes.user.keys().filter(bad_name).map(|name| format!("metadata {name}")) {
        if !lost.contains(&name) {
            lost.push(name);
        }
    }
    lost
}

pub(crate) fn put_checksum(headers: &mut HeaderMap, checksum: &Checksum) {
    let name = match checksum.algorithm {
        Algorithm::Md5 => Some("content-md5"),
        other => CHECKSUMS.iter().find(|(a, _)| *a == other).map(|(_, name)| *name),
    };
    if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(&STANDARD.encode(&checksum.value))) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

pub(crate) fn put_condition(headers: &mut HeaderMap, condition: &Condition, facts: &Facts, op: Op) -> Result<()> {
    match condition {
        Condition::None => {}
        Condition::Absent => {
            headers.insert("if-none-match", HeaderValue::from_static("*"));
        }
        Condition::Match(etag) => {
            headers.insert("if-match", quoted(etag, facts, op)?);
        }
    }
    Ok(())
}

pub(crate) fn quoted(etag: &ETag, facts: &Facts, op: Op) -> Result<HeaderValue> {
    HeaderValue::from_str(&format!("\"{}\"", facts.etag_text(etag))).map_err(|e| Error::new(ErrorKind::Invalid, op, "etag").with_source(e))
}

/// What the answer to a PUT says.
pub(crate) fn written(headers: &HeaderMap, facts: &Facts) -> Written {
    let etag = etag(headers, facts);
    Written {
        opaque_etag: is_opaque(headers, facts, etag.as_ref()),
        etag,
        version: text(headers, "x-amz-version-id").filter(|v| v != "null").map(VersionId::new),
        checksum: full_checksum(headers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_bytes(v.as_bytes()).unwrap())).collect()
    }

    #[test]
    fn ranges_are_read_strictly() {
        let range = |v| content_range(&map(&[("content-range", v)]));
        assert_eq!(range("bytes 0-9/100"), Some((0..10, 100)));
        for bad in ["bytes */100", "bytes 9-0/100", "items 0-9/100", "bytes 0-9/*", "bytes 0--1/0", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn composite_checksums_are_not_taken_for_full_ones() {
        assert_eq!(full_checksum(&map(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=-2")])), None);
        assert_eq!(full_checksum(&map(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), ("x-amz-checksum-type", "COMPOSITE")])), None);
        let full = full_checksum(&map(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), ("x-amz-checksum-type", "FULL_OBJECT")]));
        assert_eq!(full.map(|c| c.value.len()), Some(8));
    }

    #[test]
    fn attributes_round_trip() {
        let mut attributes = Attributes { content_type: Some("text/plain".into()), expires: Some("never".into()), ..Attributes::default() };
        attributes.user.insert("name".into(), Bytes::from("日本 café"));
        let mut headers = HeaderMap::new();
        let facts = Profile::Compatible.facts();
        for facts in [Profile::Aws.facts(), facts] {
            put_attributes(&mut headers, &attributes, facts, Op::Put).unwrap();
            assert_eq!(info(&"k".into(), 1, &headers, facts).attributes, attributes);
        }
        attributes.user.insert("bad".into(), Bytes::from("a\nb"));
        let error = put_attributes(&mut headers, &attributes, facts, Op::Put).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unrepresentable);
        assert!(error.to_string().contains("bad"), "{error}");
    }
}
