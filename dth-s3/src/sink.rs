//! Writing to a bucket.

use crate::{
    config::Encryption,
    headers,
    profile::Dialect,
    store::{S3Store, set},
    wire::{Request, RequestBody, uri, xml},
};
use async_trait::async_trait;
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, must_carry},
    object::{Attributes, ETag, ObjectKey, Tags},
    sink::{Body, Condition, MultipartLimits, OpenUpload, Part, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::CopyOrigin,
};
use http::{HeaderMap, Method};
use std::{fmt::Write as _, ops::Range};

impl S3Store {
    /// Headers of what is created: attributes, class, ACL, encryption, tags.
    fn create_headers(&self, headers: &mut HeaderMap, options: &PutOptions, tags: bool, op: Op) -> Result<()> {
        headers::put_attributes(headers, &options.attributes, &self.facts, op)?;
        let config = &self.config;
        if let Some(class) = &config.storage_class {
            set(headers, "x-amz-storage-class", class, op)?;
        }
        if op != Op::CreateUpload || !self.facts.acl_on_complete {
            self.acl_header(headers, op)?;
        }
        match &config.encryption {
            Encryption::None => {}
            Encryption::Aes256 => set(headers, "x-amz-server-side-encryption", "AES256", op)?,
            Encryption::Kms { key_id } => {
                set(headers, "x-amz-server-side-encryption", "aws:kms", op)?;
                if let Some(key) = key_id {
                    set(headers, "x-amz-server-side-encryption-aws-kms-key-id", key, op)?;
                }
            }
        }
        if tags && !options.tags.is_empty() {
            set(headers, "x-amz-tagging", &tag_query(&options.tags), op)?;
        }
        Ok(())
    }

    fn acl_header(&self, headers: &mut HeaderMap, op: Op) -> Result<()> {
        self.config.acl.as_ref().map_or(Ok(()), |acl| set(headers, "x-amz-acl", acl, op))
    }

    fn condition(&self, headers: &mut HeaderMap, condition: &Condition, op: Op) -> Result<()> {
        let honoured = self.facts.conditions.honours(condition);
        if honoured { headers::put_condition(headers, condition, &self.facts, op) } else { Ok(()) }
    }

    fn copy_source(&self, origin: &CopyOrigin) -> String {
        let version = origin.version.as_ref().map(|v| format!("?versionId={}", v.as_str())).unwrap_or_default();
        let key = uri::path(origin.key.as_str());
        match self.facts.dialect {
            Dialect::Amazon | Dialect::Oss => format!("/{}/{key}{version}", origin.container),
            // The whole name of the bucket's host, in its region, whichever way leads there.
            Dialect::Cos => {
                let region = Some(&self.config.region).filter(|region| !region.is_empty());
                let host = self.facts.hosts.public.zip(region).map(|(host, region)| host.replace("{region}", region));
                let of_endpoint = || origin.endpoint.split_once("://").map_or(&*origin.endpoint, |(_, host)| host).to_owned();
                format!("{}.{}/{key}{version}", origin.container, host.unwrap_or_else(of_endpoint))
            }
        }
    }

    fn etag_text(&self, etag: &ETag) -> String {
        xml::escape(&self.facts.etag_text(etag))
    }

    /// What Amazon's documents are in; others have no name for it.
    pub(crate) fn namespace(&self) -> &'static str {
        match self.facts.dialect {
            Dialect::Amazon => " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"",
            Dialect::Oss | Dialect::Cos => "",
        }
    }
}

fn tag_query(tags: &Tags) -> String {
    let encode = |text: &str| uri::query(&[("", text.to_owned())])[1..].to_owned();
    tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}

fn request_body(body: Body) -> RequestBody {
    match body {
        Body::Bytes(chunks) => RequestBody::Chunks(chunks),
        Body::Stream { len, stream } => RequestBody::Stream(len, stream),
    }
}

#[async_trait]
impl Sink for S3Store {
    fn sink_capability(&self) -> SinkCapability {
        let facts = &self.facts;
        SinkCapability {
            max_put: facts.max_put,
            max_object: facts.max_object,
            stream_window: 0,
            multipart: Some(MultipartLimits {
                min_part: facts.min_part,
                max_part: facts.max_part,
                max_parts: facts.max_parts,
                list_parts: facts.list_parts,
                list_uploads: facts.list_uploads,
            }),
            conditions: facts.conditions,
            verifies: facts.verifies,
            checksums: facts.tells,
            keeps: facts.attributes(),
            tags: facts.tags,
            tags_follow: facts.tags && !facts.tags_on_create,
            max_copy: Some(facts.max_copy),
        }
    }

    fn not_carried(&self, attributes: &Attributes) -> Vec<String> {
        headers::not_kept(attributes, &self.facts)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Put)?;
        let mut request = Request::new(Op::Put, Method::PUT, Some(key));
        self.create_headers(&mut request.headers, options, true, Op::Put)?;
        self.condition(&mut request.headers, &options.condition, Op::Put)?;
        if let Some(checksum) = &options.checksum {
            headers::put_checksum(&mut request.headers, checksum);
        }
        request.body = request_body(body);
        let answer = self.wire.send(request).await?;
        let written = headers::written(&answer.headers, &self.facts);
        answer.done().await?;
        Ok(written)
    }

    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        let mut request = Request::new(Op::Delete, Method::DELETE, Some(key));
        if self.facts.conditions.delete {
            headers::put_condition(&mut request.headers, condition, &self.facts, Op::Delete)?;
        }
        let deleted = match self.wire.send(request).await {
            Ok(answer) => answer.done().await,
            Err(error) => Err(error),
        };
        match deleted {
            // Not the answer of a store that has deleted (204): whether it is gone, a look tells.
            Err(error) if error.kind() == ErrorKind::NotFound => match self.head(key, None).await {
                Ok(_) => Err(Error::new(ErrorKind::Unavailable, Op::Delete, self.wire.target(Some(key))).with_source(error)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            },
            deleted => deleted,
        }
    }

    async fn create_upload(&self, key: &ObjectKey, options: &PutOptions) -> Result<UploadId> {
        must_carry(self, key, Op::CreateUpload)?;
        let mut request = Request::new(Op::CreateUpload, Method::POST, Some(key)).query("uploads", "");
        self.create_headers(&mut request.headers, options, self.facts.tags_on_create, Op::CreateUpload)?;
        let crc = options.checksum.as_ref().is_some_and(|c| c.algorithm == Algorithm::Crc64Nvme);
        if self.facts.full_object_crc && crc {
            request = request.header("x-amz-checksum-algorithm", "CRC64NVME")?.header("x-amz-checksum-type", "FULL_OBJECT")?;
        }
        let answer = self.wire.send(request).await?;
        let document = answer.result("InitiateMultipartUploadResult").await?;
        let root = document.root();
        let id = root.filled("UploadId").map(UploadId::new);
        id.ok_or_else(|| Error::new(ErrorKind::Corrupt, Op::CreateUpload, self.wire.target(Some(key))).with_source("no upload id"))
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Body, sum: Option<&Checksum>) -> Result<Part> {
        let size = body.len();
        let mut request =
            Request::new(Op::PutPart, Method::PUT, Some(key)).query("partNumber", number.to_string()).query("uploadId", upload.as_str());
        if let Some(sum) = sum {
            headers::put_checksum(&mut request.headers, sum);
        }
        request.body = request_body(body);
        let answer = self.wire.send(request).await?;
        let etag = headers::etag(&answer.headers, &self.facts);
        let etag = etag.ok_or_else(|| answer.error(ErrorKind::Corrupt, "the answer names no etag"))?;
        let opaque_etag = headers::is_opaque(&answer.headers, &self.facts, Some(&etag));
        let checksum = headers::full_checksum(&answer.headers);
        answer.done().await?;
        Ok(Part { number, size, etag, opaque_etag, checksum })
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut marker = String::from("0");
        loop {
            let request = Request::new(Op::ListParts, Method::GET, Some(key))
                .query("uploadId", upload.as_str())
                .query("max-parts", "1000")
                .query("part-number-marker", marker.clone());
            let document = self.wire.send(request).await?.document().await?;
            let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::ListParts, self.wire.target(Some(key))).with_source(why);
            let document = xml::parse(&document).map_err(broken)?;
            let root = document.root();
            if !root.is("ListPartsResult") {
                return Err(broken("the answer is no list of parts".into()));
            }
            for part in root.all("Part") {
                let number = part.text("PartNumber").and_then(|n| n.parse().ok());
                let size = part.text("Size").and_then(|n| n.parse().ok());
                let (Some(number), Some(size), Some(etag)) = (number, size, part.etag("ETag", &self.facts)) else {
                    return Err(broken("a part without number, size or etag".into()));
                };
                parts.push(Part { number, size, etag, opaque_etag: false, checksum: None });
            }
            let next = root.filled("NextPartNumberMarker").map(str::to_owned);
            match next.filter(|_| root.is_truncated()) {
                Some(next) if next != marker => marker = next,
                _ => return Ok(parts),
            }
        }
    }

    async fn list_uploads(&self, prefix: &str, token: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        if !self.facts.list_uploads {
            return Err(Error::new(ErrorKind::Unsupported, Op::ListUploads, self.wire.target(None)));
        }
        let mut request = Request::new(Op::ListUploads, Method::GET, None).query("uploads", "").query("prefix", prefix);
        if self.facts.encoded_uploads {
            request = request.query("encoding-type", "url");
        }
        // Our token is the pair of markers; no key holds a NUL.
        if let Some((key, upload)) = token.and_then(|t| t.split_once('\0')) {
            request = request.query("key-marker", key).query("upload-id-marker", upload);
        }
        let document = self.wire.send(request).await?.document().await?;
        let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::ListUploads, self.wire.target(None)).with_source(why);
        let document = xml::parse(&document).map_err(broken)?;
        let root = document.root();
        if !root.is("ListMultipartUploadsResult") {
            return Err(broken("the answer is no list of uploads".into()));
        }
        let encoded = self.facts.encoded_uploads && root.is_encoded();
        let listed = |text| self.facts.listed(text, encoded).map(ObjectKey::new);
        let mut uploads = Vec::new();
        for upload in root.all("Upload") {
            let key = upload.text("Key").and_then(listed);
            // COS writes it in two ways.
            let id = upload.filled("UploadId").or_else(|| upload.filled("UploadID"));
            let (Some(key), Some(id)) = (key, id) else {
                return Err(broken("an upload without key or id".into()));
            };
            uploads.push(OpenUpload { key, id: UploadId::new(id), begun: upload.time("Initiated") });
        }
        let marker = root.text("NextKeyMarker").and_then(listed);
        let next = marker.map(|key| format!("{}\0{}", key.as_str(), root.text("NextUploadIdMarker").unwrap_or_default()));
        Ok((uploads, next.filter(|_| root.is_truncated())))
    }

    async fn complete_upload(&self, key: &ObjectKey, upload: &UploadId, parts: &[Part], options: &PutOptions) -> Result<Written> {
        let mut document = format!("<CompleteMultipartUpload{}>", self.namespace());
        for part in parts {
            let etag = self.etag_text(&part.etag);
            let _ = write!(document, "<Part><PartNumber>{}</PartNumber><ETag>\"{etag}\"</ETag></Part>", part.number);
        }
        document.push_str("</CompleteMultipartUpload>");
        let mut request = Request::new(Op::CompleteUpload, Method::POST, Some(key)).query("uploadId", upload.as_str());
        self.condition(&mut request.headers, &options.condition, Op::CompleteUpload)?;
        if self.facts.acl_on_complete {
            self.acl_header(&mut request.headers, Op::CompleteUpload)?;
        }
        if let Some(sum) = options.checksum.as_ref().filter(|c| self.facts.full_object_crc && c.algorithm == Algorithm::Crc64Nvme) {
            headers::put_checksum(&mut request.headers, sum);
            request = request.header("x-amz-checksum-type", "FULL_OBJECT")?;
        }
        request.body = RequestBody::Document(document);
        let answer = self.wire.send(request).await?;
        let mut written = headers::written(&answer.headers, &self.facts);
        let document = answer.result("CompleteMultipartUploadResult").await?;
        let root = document.root();
        written.etag = root.etag("ETag", &self.facts);
        // Nobody has said what the etag of parts is.
        written.opaque_etag |= self.facts.vouches_for_puts_only();
        Ok(written)
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let request = Request::new(Op::AbortUpload, Method::DELETE, Some(key)).query("uploadId", upload.as_str());
        let aborted = match self.wire.send(request).await {
            Ok(answer) => answer.done().await,
            Err(error) => Err(error),
        };
        aborted.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
    }

    async fn put_tags(&self, key: &ObjectKey, tags: &Tags) -> Result<()> {
        let mut document = format!("<Tagging{}><TagSet>", self.namespace());
        for (name, value) in tags {
            let _ = write!(document, "<Tag><Key>{}</Key><Value>{}</Value></Tag>", xml::escape(name), xml::escape(value));
        }
        document.push_str("</TagSet></Tagging>");
        let mut request = Request::new(Op::Tags, Method::PUT, Some(key)).query("tagging", "");
        request.body = RequestBody::Document(document);
        let answer = self.wire.send(request).await?;
        answer.done().await
    }

    fn can_copy(&self, origin: &CopyOrigin) -> bool {
        self.facts.pinned_copies && origin.endpoint == self.wire.store() && origin.identity == self.identity()
    }

    async fn copy(&self, origin: &CopyOrigin, source: &ETag, key: &ObjectKey, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Copy)?;
        let mut request = Request::new(Op::Copy, Method::PUT, Some(key))
            .header("x-amz-copy-source", &self.copy_source(origin))?
            .header("x-amz-metadata-directive", "REPLACE")?
            .header("x-amz-tagging-directive", "REPLACE")?;
        request.headers.insert("x-amz-copy-source-if-match", headers::quoted(source, &self.facts, Op::Copy)?);
        self.create_headers(&mut request.headers, options, true, Op::Copy)?;
        self.condition(&mut request.headers, &options.condition, Op::Copy)?;
        let answer = self.wire.send(request).await?;
        let mut written = headers::written(&answer.headers, &self.facts);
        let document = answer.result("CopyObjectResult").await?;
        let root = document.root();
        written.etag = root.etag("ETag", &self.facts);
        // Only those of puts are said to be an MD5.
        written.opaque_etag |= self.facts.vouches_for_puts_only();
        Ok(written)
    }

    async fn copy_part(
        &self,
        origin: &CopyOrigin,
        source: &ETag,
        range: Range<u64>,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
    ) -> Result<Part> {
        let mut request = Request::new(Op::CopyPart, Method::PUT, Some(key))
            .query("partNumber", number.to_string())
            .query("uploadId", upload.as_str())
            .header("x-amz-copy-source", &self.copy_source(origin))?
            .header("x-amz-copy-source-range", &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))?;
        request.headers.insert("x-amz-copy-source-if-match", headers::quoted(source, &self.facts, Op::CopyPart)?);
        let answer = self.wire.send(request).await?;
        let headers = answer.headers.clone();
        let document = answer.result("CopyPartResult").await?;
        let root = document.root();
        let etag = root.etag("ETag", &self.facts);
        let etag = etag.ok_or_else(|| Error::new(ErrorKind::Corrupt, Op::CopyPart, self.wire.target(Some(key))).with_source("no etag"))?;
        let opaque_etag = headers::is_opaque(&headers, &self.facts, Some(&etag)) || self.facts.vouches_for_puts_only();
        Ok(Part { number, size: range.end - range.start, etag, opaque_etag, checksum: None })
    }
}
