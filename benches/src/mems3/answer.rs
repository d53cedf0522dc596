//! Answers, as Amazon S3 has them.

use super::{
    Asked, Body, Tamper,
    body::Received,
    lock,
    store::{Bucket, Object, Part, Store, Upload, md5_of},
    whole,
};
use crate::between;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use dth_core::checksum::{Algorithm, Checksum};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Response, StatusCode, body::Frame, header::HeaderValue};
use md5::{Digest, Md5};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::{borrow::Cow, collections::BTreeMap, fmt::Write, io, ops::Bound, sync::Arc, time::Duration};

pub(super) type Answer = Response<Body>;

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Bytes of a piece of a body that is sent at a rate.
const PIECE: usize = 64 << 10;

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(whole(text));
    *answer.status_mut() = status;
    answer
}

fn document(status: StatusCode, document: &str) -> Answer {
    let mut answer = text(status, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}"));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/xml"));
    answer
}

pub(super) fn xml(root: &str, inner: &str) -> Answer {
    document(StatusCode::OK, &format!("<{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{inner}</{root}>"))
}

pub(super) fn error(status: StatusCode, code: &str) -> Answer {
    document(status, &format!("<Error><Code>{code}</Code><Message>{code}</Message><RequestId>1</RequestId></Error>"))
}

fn not_found() -> Answer {
    error(StatusCode::NOT_FOUND, "NoSuchKey")
}

fn escaped(text: &str, encoded: bool) -> Cow<'_, str> {
    if encoded { utf8_percent_encode(text, UNRESERVED).into() } else { quick_xml::escape::escape(text) }
}

fn time(at: jiff::Timestamp) -> impl std::fmt::Display {
    at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
}

pub(super) fn buckets(names: &[String]) -> Answer {
    let all = names.join("</Name></Bucket><Bucket><Name>");
    xml("ListAllMyBucketsResult", &format!("<Buckets><Bucket><Name>{all}</Name></Bucket></Buckets>"))
}

pub(super) fn listing(bucket: &Bucket, asked: &Asked) -> Answer {
    let v2 = asked.asked("list-type") == Some("2");
    let prefix = asked.asked("prefix").unwrap_or_default();
    let delimiter = asked.asked("delimiter").filter(|d| !d.is_empty());
    let encoded = asked.asked("encoding-type") == Some("url");
    let max = asked.asked("max-keys").and_then(|n| n.parse().ok()).unwrap_or(1000).min(1000);
    let after = if v2 { asked.asked("continuation-token").or(asked.asked("start-after")) } else { asked.asked("marker") };
    let objects = lock(&bucket.objects);
    let mut from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
        _ => Bound::Included(prefix.to_owned()),
    };
    let (mut entries, mut folders, mut count, mut last) = (String::with_capacity(256 * max), String::new(), 0, String::new());
    let mut truncated = false;
    'listing: loop {
        for (key, object) in objects.range((from.clone(), Bound::Unbounded)) {
            if !key.starts_with(prefix) {
                break 'listing;
            }
            if count >= max {
                truncated = true;
                break 'listing;
            }
            count += 1;
            let folder = delimiter.and_then(|d| key[prefix.len()..].find(d).map(|at| &key[..prefix.len() + at + d.len()]));
            if let Some(folder) = folder {
                let _ = write!(folders, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(folder, encoded));
                last = format!("{folder}{}", char::MAX);
                from = Bound::Excluded(last.clone());
                continue 'listing;
            }
            let _ = write!(
                entries,
                "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                escaped(key, encoded),
                time(object.modified),
                object.etag,
                object.len
            );
            last.clone_from(key);
        }
        break;
    }
    drop(objects);
    let mut inner = format!("<Prefix>{}</Prefix><MaxKeys>{max}</MaxKeys><IsTruncated>{truncated}</IsTruncated>", escaped(prefix, encoded));
    if encoded {
        inner.push_str("<EncodingType>url</EncodingType>");
    }
    if v2 {
        let _ = write!(inner, "<KeyCount>{count}</KeyCount>");
    }
    if truncated && v2 {
        let _ = write!(inner, "<NextContinuationToken>{}</NextContinuationToken>", escaped(&last, false));
    } else if truncated {
        let _ = write!(inner, "<NextMarker>{}</NextMarker>", escaped(&last, encoded));
    }
    inner.push_str(&entries);
    inner.push_str(&folders);
    xml("ListBucketResult", &inner)
}

pub(super) fn uploads(bucket: &Bucket, asked: &Asked) -> Answer {
    let prefix = asked.asked("prefix").unwrap_or_default();
    let encoded = asked.asked("encoding-type") == Some("url");
    let mut found: Vec<(String, String)> =
        lock(&bucket.uploads).iter().filter(|(_, u)| u.key.starts_with(prefix)).map(|(id, u)| (u.key.clone(), id.clone())).collect();
    found.sort();
    let mut inner = String::from("<IsTruncated>false</IsTruncated>");
    if encoded {
        inner.push_str("<EncodingType>url</EncodingType>");
    }
    for (key, id) in found {
        let _ = write!(inner, "<Upload><Key>{}</Key><UploadId>{id}</UploadId></Upload>", escaped(&key, encoded));
    }
    xml("ListMultipartUploadsResult", &inner)
}

pub(super) fn parts(bucket: &Bucket, asked: &Asked) -> Answer {
    let uploads = lock(&bucket.uploads);
    let upload = asked.asked("uploadId").and_then(|id| uploads.get(id)).filter(|u| u.key == asked.key);
    let Some(upload) = upload else { return error(StatusCode::NOT_FOUND, "NoSuchUpload") };
    let after: u32 = asked.asked("part-number-marker").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut listed = upload.parts.range(after + 1..).peekable();
    let (mut inner, mut last) = (String::new(), after);
    for (number, part) in listed.by_ref().take(1000) {
        last = *number;
        let _ = write!(inner, "<Part><PartNumber>{number}</PartNumber><ETag>\"{}\"</ETag><Size>{}</Size></Part>", part.etag, part.len);
    }
    let truncated = listed.peek().is_some();
    let _ = write!(inner, "<IsTruncated>{truncated}</IsTruncated><NextPartNumberMarker>{last}</NextPartNumberMarker>");
    xml("ListPartsResult", &inner)
}

pub(super) fn tagging(bucket: &Bucket, key: &str) -> Answer {
    let Some(object) = bucket.get(key) else { return not_found() };
    let mut inner = String::from("<TagSet>");
    for (name, value) in &object.tags {
        let _ = write!(inner, "<Tag><Key>{}</Key><Value>{}</Value></Tag>", escaped(name, false), escaped(value, false));
    }
    inner.push_str("</TagSet>");
    xml("Tagging", &inner)
}

/// Whether the object is the one that the headers name.
fn holds(headers: &HeaderMap, prefix: &str, there: Option<&Object>) -> bool {
    let header = |name: &str| headers.get(format!("{prefix}{name}")).and_then(|v| v.to_str().ok()).map(|v| v.trim_matches('"').to_owned());
    let matches = header("if-match").is_none_or(|etag| there.is_some_and(|o| etag == "*" || o.etag == etag));
    matches && header("if-none-match").is_none_or(|etag| there.is_none_or(|o| etag != "*" && o.etag != etag))
}

fn refused() -> Answer {
    error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed")
}

/// A read, and how many bytes it sends.
pub(super) fn object(bucket: &Bucket, asked: &Asked, rate: u64, tamper: Option<Tamper>) -> (Answer, u64) {
    let head = asked.method == hyper::Method::HEAD;
    let Some(object) = bucket.get(&asked.key) else {
        return (if head { text(StatusCode::NOT_FOUND, "") } else { not_found() }, 0);
    };
    if !holds(asked.request.headers(), "", Some(&object)) {
        return (if head { text(StatusCode::PRECONDITION_FAILED, "") } else { refused() }, 0);
    }
    let len = object.len;
    let mut status = StatusCode::OK;
    let (mut from, mut to) = (0, len);
    if let Some(number) = asked.asked("partNumber").and_then(|n| n.parse::<usize>().ok()) {
        let sizes = if object.parts.is_empty() { std::slice::from_ref(&len) } else { object.parts.as_slice() };
        if number == 0 || number > sizes.len() {
            return (error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidPartNumber"), 0);
        }
        from = sizes[..number - 1].iter().sum();
        to = from + sizes[number - 1];
        status = StatusCode::PARTIAL_CONTENT;
    } else if let Some((first, last)) = asked.header("range").and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-')) {
        (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => (first, (last + 1).min(len)),
            (Ok(first), Err(_)) => (first, len),
            (Err(_), Ok(suffix)) => (len.saturating_sub(suffix), len),
            (Err(_), Err(_)) => (0, len),
        };
        if from >= len {
            return (error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"), 0);
        }
        status = StatusCode::PARTIAL_CONTENT;
    }
    let mut answer = Response::new(if head { whole("") } else { content(&object, from, to, rate, tamper) });
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.extend(object.headers.clone());
    headers.entry("content-type").or_insert(HeaderValue::from_static("binary/octet-stream"));
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    set("etag", format!("\"{}\"", object.etag));
    set("last-modified", object.modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    set("accept-ranges", "bytes".into());
    set("content-length", (to - from).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set("content-range", if len == 0 { "bytes */0".into() } else { format!("bytes {from}-{}/{len}", to - 1) });
        if asked.has("partNumber") && !object.parts.is_empty() {
            set("x-amz-mp-parts-count", object.parts.len().to_string());
        }
    }
    if status == StatusCode::OK && asked.header("x-amz-checksum-mode") == Some("ENABLED") {
        // As Amazon S3 has it of every object since December 2024.
        set("x-amz-checksum-crc64nvme", STANDARD.encode(&object.crc().value));
        set("x-amz-checksum-type", "FULL_OBJECT".into());
    }
    if !object.tags.is_empty() {
        set("x-amz-tagging-count", object.tags.len().to_string());
    }
    if status == StatusCode::PARTIAL_CONTENT && len == 0 {
        answer.headers_mut().remove("content-range");
        *answer.status_mut() = StatusCode::OK;
    }
    (answer, if head { 0 } else { to - from })
}

fn content(object: &Object, from: u64, to: u64, rate: u64, tamper: Option<Tamper>) -> Body {
    let mut segments = object.slice(from, to);
    if tamper == Some(Tamper::Flip)
        && let Some(first) = segments.first_mut()
    {
        let mut flipped = BytesMut::from(&**first);
        let middle = flipped.len() / 2;
        if let Some(byte) = flipped.get_mut(middle) {
            *byte ^= 1;
        }
        *first = flipped.freeze();
    }
    if rate > 0 {
        let pieces: Vec<Bytes> = segments
            .into_iter()
            .flat_map(|mut segment| std::iter::from_fn(move || (!segment.is_empty()).then(|| segment.split_to(PIECE.min(segment.len())))))
            .collect();
        let begun = tokio::time::Instant::now();
        let paced = stream::unfold((pieces.into_iter(), 0u64), move |(mut pieces, sent)| async move {
            let piece = pieces.next()?;
            tokio::time::sleep_until(begun + Duration::from_micros(sent * 1_000_000 / rate)).await;
            let sent = sent + piece.len() as u64;
            Some((Ok::<_, io::Error>(Frame::data(piece)), (pieces, sent)))
        });
        return StreamBody::new(paced.boxed()).boxed_unsync();
    }
    match segments.len() {
        0 | 1 => whole(segments.pop().unwrap_or_default()),
        _ => StreamBody::new(stream::iter(segments.into_iter().map(|segment| Ok::<_, io::Error>(Frame::data(segment))))).boxed_unsync(),
    }
}

pub(super) fn delete(bucket: &Bucket, asked: &Asked) -> Answer {
    let mut objects = lock(&bucket.objects);
    if !holds(asked.request.headers(), "", objects.get(&asked.key).map(|o| &**o)) {
        return refused();
    }
    objects.remove(&asked.key);
    text(StatusCode::NO_CONTENT, "")
}

pub(super) fn abort(bucket: &Bucket, asked: &Asked) -> Answer {
    let mut uploads = lock(&bucket.uploads);
    let id = asked.asked("uploadId").unwrap_or_default();
    match uploads.get(id).filter(|upload| upload.key == asked.key) {
        Some(_) => {
            uploads.remove(id);
            text(StatusCode::NO_CONTENT, "")
        }
        None => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
    }
}

pub(super) fn create_upload(bucket: &Bucket, asked: &Asked) -> Answer {
    let headers = asked.request.headers();
    let id = format!("upload-{}", bucket.next());
    let upload = Upload { key: asked.key.clone(), headers: kept(headers), tags: tags(headers), parts: BTreeMap::new() };
    lock(&bucket.uploads).insert(id.clone(), upload);
    xml("InitiateMultipartUploadResult", &format!("<UploadId>{id}</UploadId>"))
}

/// The headers that travel with an object.
fn kept(headers: &HeaderMap) -> HeaderMap {
    const CONTENT: [&str; 6] = ["content-type", "content-encoding", "content-language", "content-disposition", "cache-control", "expires"];
    let keeps = |name: &str| name.starts_with("x-amz-meta-") || name == "x-amz-website-redirect-location" || CONTENT.contains(&name);
    let mut kept: HeaderMap =
        headers.iter().filter(|(name, _)| keeps(name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect();
    // Of how it was sent, and no attribute.
    if kept.get("content-encoding").is_some_and(|value| value == "aws-chunked") {
        kept.remove("content-encoding");
    }
    kept
}

fn tags(headers: &HeaderMap) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let text = headers.get("x-amz-tagging").and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decode(name), decode(value))).collect()
}

pub(super) fn copy(store: &Store, bucket: &Bucket, asked: &Asked) -> Answer {
    let source = asked.header("x-amz-copy-source").unwrap_or_default();
    let source = percent_decode_str(source.trim_start_matches('/')).decode_utf8_lossy();
    let (from, key) = source.split_once('/').unwrap_or_default();
    let Some(origin) = store.bucket(from).and_then(|bucket| bucket.get(key)) else { return not_found() };
    if !holds(asked.request.headers(), "x-amz-copy-source-", Some(&origin)) {
        return refused();
    }
    if asked.has("uploadId") {
        let range = asked.header("x-amz-copy-source-range").and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-'));
        let range = range.and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()? + 1)));
        let (from, to) = range.unwrap_or((0, origin.len));
        if to > origin.len || from >= to {
            return error(StatusCode::BAD_REQUEST, "InvalidArgument");
        }
        let segments = origin.slice(from, to);
        let md5 = md5_of(&segments);
        let call = Call { bucket, key: &asked.key, query: &asked.query, headers: asked.request.headers() };
        return match call.keep_part(Received { segments, len: to - from, md5 }) {
            Ok(etag) => xml("CopyPartResult", &format!("<ETag>\"{etag}\"</ETag>")),
            Err((status, code)) => error(status, code),
        };
    }
    let headers = asked.request.headers();
    let replaces = |name: &str| asked.header(name) == Some("REPLACE");
    let md5 = md5_of(&origin.segments);
    let metadata = if replaces("x-amz-metadata-directive") { kept(headers) } else { origin.headers.clone() };
    let mut made = Object::new(origin.segments.clone(), origin.len, bucket.etag(&md5, None), metadata);
    made.tags = if replaces("x-amz-tagging-directive") { tags(headers) } else { origin.tags.clone() };
    let etag = made.etag.clone();
    let mut objects = lock(&bucket.objects);
    if !holds(headers, "", objects.get(&asked.key).map(|o| &**o)) {
        return refused();
    }
    objects.insert(asked.key.clone(), Arc::new(made));
    xml("CopyObjectResult", &format!("<ETag>\"{etag}\"</ETag>"))
}

/// Why a write is refused.
type Refusal = (StatusCode, &'static str);

/// A write whose body has come.
pub(super) struct Call<'a> {
    pub(super) bucket: &'a Bucket,
    pub(super) key: &'a str,
    pub(super) query: &'a BTreeMap<String, String>,
    pub(super) headers: &'a HeaderMap,
}

impl Call<'_> {
    fn stored(&self, etag: &str) -> Answer {
        let mut answer = text(StatusCode::OK, "");
        if let Ok(value) = HeaderValue::try_from(format!("\"{etag}\"")) {
            answer.headers_mut().insert("etag", value);
        }
        if let Some(sum) = self.headers.get("x-amz-checksum-crc64nvme") {
            answer.headers_mut().insert("x-amz-checksum-crc64nvme", sum.clone());
        }
        answer
    }

    fn publish(&self, object: Object) -> Result<String, Refusal> {
        let etag = object.etag.clone();
        let mut objects = lock(&self.bucket.objects);
        if !holds(self.headers, "", objects.get(self.key).map(|o| &**o)) {
            return Err((StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
        }
        objects.insert(self.key.to_owned(), Arc::new(object));
        Ok(etag)
    }

    pub(super) fn put(&self, received: Received) -> Answer {
        let etag = self.bucket.etag(&received.md5, None);
        let mut object = Object::new(received.segments, received.len, etag, kept(self.headers));
        object.tags = tags(self.headers);
        match self.publish(object) {
            Ok(etag) => self.stored(&etag),
            Err((status, code)) => error(status, code),
        }
    }

    fn keep_part(&self, received: Received) -> Result<String, Refusal> {
        let number = self.query.get("partNumber").and_then(|n| n.parse().ok()).filter(|n| (1..=10_000).contains(n));
        let number = number.ok_or((StatusCode::BAD_REQUEST, "InvalidArgument"))?;
        let etag = self.bucket.etag(&received.md5, None);
        let Received { segments, len, md5 } = received;
        let mut uploads = lock(&self.bucket.uploads);
        let upload = self.query.get("uploadId").and_then(|id| uploads.get_mut(id)).filter(|upload| upload.key == self.key);
        let upload = upload.ok_or((StatusCode::NOT_FOUND, "NoSuchUpload"))?;
        upload.parts.insert(number, Part { segments, len, md5, etag: etag.clone() });
        Ok(etag)
    }

    pub(super) fn put_part(&self, received: Received) -> Answer {
        match self.keep_part(received) {
            Ok(etag) => self.stored(&etag),
            Err((status, code)) => error(status, code),
        }
    }

    pub(super) fn put_tags(&self, received: &Received) -> Answer {
        let document = received.text();
        let tags = document.split("<Tag>").skip(1).filter_map(|tag| Some((unescaped(tag, "Key")?, unescaped(tag, "Value")?))).collect();
        let mut objects = lock(&self.bucket.objects);
        let Some(object) = objects.get_mut(self.key) else { return not_found() };
        Arc::make_mut(object).tags = tags;
        text(StatusCode::OK, "")
    }

    pub(super) fn delete_many(&self, received: &Received) -> Answer {
        let document = received.text();
        let mut objects = lock(&self.bucket.objects);
        for key in document.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            if let Ok(key) = quick_xml::escape::unescape(key) {
                objects.remove(&*key);
            }
        }
        xml("DeleteResult", "")
    }

    pub(super) fn complete(&self, received: &Received) -> Answer {
        let document = received.text();
        let id = self.query.get("uploadId").map(String::as_str).unwrap_or_default();
        let named = named_parts(&document);
        let object = {
            let uploads = lock(&self.bucket.uploads);
            let Some(upload) = uploads.get(id).filter(|upload| upload.key == self.key) else {
                return error(StatusCode::NOT_FOUND, "NoSuchUpload");
            };
            if named.is_empty() || !named.is_sorted_by(|a, b| a.0 < b.0) {
                return error(StatusCode::BAD_REQUEST, "InvalidPartOrder");
            }
            let (mut segments, mut sizes, mut md5) = (Vec::new(), Vec::new(), Md5::new());
            for (number, etag) in &named {
                let Some(part) = upload.parts.get(number).filter(|part| part.etag == *etag) else {
                    return error(StatusCode::BAD_REQUEST, "InvalidPart");
                };
                segments.extend(part.segments.iter().cloned());
                sizes.push(part.len);
                md5.update(part.md5);
            }
            let etag = self.bucket.etag(&md5.finalize(), Some(sizes.len()));
            let mut object = Object::new(segments, sizes.iter().sum(), etag, upload.headers.clone());
            object.parts = sizes;
            object.tags.clone_from(&upload.tags);
            object
        };
        let wanted = self.headers.get("x-amz-checksum-crc64nvme").and_then(|value| value.to_str().ok());
        if let Some(wanted) = wanted
            && STANDARD.encode(&Checksum::of(Algorithm::Crc64Nvme, &object.segments).value) != wanted
        {
            return error(StatusCode::BAD_REQUEST, "BadDigest");
        }
        match self.publish(object) {
            Ok(etag) => {
                lock(&self.bucket.uploads).remove(id);
                xml("CompleteMultipartUploadResult", &format!("<ETag>\"{etag}\"</ETag>"))
            }
            Err((status, code)) => error(status, code),
        }
    }
}

/// Numbers and etags of the parts in a document of CompleteMultipartUpload.
fn named_parts(document: &str) -> Vec<(u32, String)> {
    let part = |part| Some((between(part, "PartNumber")?.trim().parse().ok()?, unescaped(part, "ETag")?.trim_matches('"').to_owned()));
    document.split("<Part>").skip(1).filter_map(part).collect()
}

/// The text of the first element of this name, as it is meant.
fn unescaped(document: &str, name: &str) -> Option<String> {
    quick_xml::escape::unescape(between(document, name)?).ok().map(Cow::into_owned)
}
