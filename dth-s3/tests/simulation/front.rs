//! The S3 protocol, as the `s3s` crate speaks it, in front of a store in memory.

use dth_core::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind},
    index::{Index, ListFrom, ListRequest},
    memory::MemoryStore,
    object::{ETag, EtagKind, ObjectInfo, ObjectKey},
    sink::{Body, Condition, Part, PutOptions, Sink, UploadId},
    source::{ReadOptions, ReadRange, Source},
};
use futures_util::{StreamExt, stream};
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{self, *},
};
use std::time::SystemTime;

#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) store: MemoryStore,
}

fn refused(error: &Error) -> S3Error {
    use dth_core::error::Op;
    let upload = matches!(error.op(), Op::PutPart | Op::ListParts | Op::CompleteUpload);
    let code = match error.kind() {
        ErrorKind::NotFound if upload => S3ErrorCode::NoSuchUpload,
        ErrorKind::NotFound => S3ErrorCode::NoSuchKey,
        ErrorKind::Precondition => S3ErrorCode::PreconditionFailed,
        ErrorKind::Conflict => S3ErrorCode::InvalidPart,
        ErrorKind::Corrupt if error.op() == Op::Read => S3ErrorCode::InvalidRange,
        ErrorKind::Corrupt => S3ErrorCode::BadDigest,
        ErrorKind::Unrepresentable => S3ErrorCode::KeyTooLongError,
        _ => S3ErrorCode::InternalError,
    };
    S3Error::with_message(code, error.chain())
}

fn told(etag: &ETag) -> dto::ETag {
    dto::ETag::Strong(etag.as_str().to_owned())
}

fn encoded(key: &ObjectKey) -> String {
    // As S3 does: all but these, and a slash.
    key.as_str()
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-_.*/".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn crc(sum: Option<&Checksum>) -> Option<String> {
    let sum = sum.filter(|s| s.algorithm == Algorithm::Crc64Nvme)?;
    Some(base64_of(&sum.value))
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn sum(md5: Option<&String>, crc: Option<&String>) -> Option<Checksum> {
    use base64::Engine;
    let value = |text: &String| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    md5.map(|text| Checksum { algorithm: Algorithm::Md5, value: value(text) })
        .or_else(|| crc.map(|text| Checksum { algorithm: Algorithm::Crc64Nvme, value: value(text) }))
}

fn condition(matching: Option<IfMatch>, none_matching: Option<IfNoneMatch>) -> Condition {
    match (matching, none_matching) {
        (Some(etag), _) => etag.as_etag().map_or(Condition::None, |e| Condition::Match(ETag::new(e.value()))),
        (None, Some(_)) => Condition::Absent,
        (None, None) => Condition::None,
    }
}

async fn gathered(body: Option<StreamingBlob>) -> S3Result<Body> {
    let mut chunks = Vec::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            chunks.push(chunk.map_err(|e| S3Error::with_message(S3ErrorCode::IncompleteBody, e.to_string()))?);
        }
    }
    Ok(Body::Bytes(chunks))
}

impl Front {
    fn kms(&self) -> Option<ServerSideEncryption> {
        let opaque = self.store.index_capability().etag == EtagKind::Opaque;
        opaque.then(|| ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS))
    }

    fn modified(info: &ObjectInfo) -> Option<Timestamp> {
        info.entry.modified.map(|at| SystemTime::from(at).into())
    }
}

#[async_trait::async_trait]
impl S3 for Front {
    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let from = match (input.continuation_token, input.start_after) {
            (Some(token), _) => ListFrom::Token(token),
            (None, Some(key)) => ListFrom::After(key.into()),
            (None, None) => ListFrom::Beginning,
        };
        let request = ListRequest { prefix: input.prefix.unwrap_or_default(), from, max: input.max_keys.map(|n| n as u32) };
        let page = self.store.list(&request).await.map_err(|e| refused(&e))?;
        let url = input.encoding_type.is_some();
        let contents = page.entries.iter().map(|entry| Object {
            key: Some(if url { encoded(&entry.key) } else { entry.key.as_str().to_owned() }),
            size: entry.size.map(|n| n as i64),
            e_tag: entry.etag.as_ref().map(told),
            last_modified: entry.modified.map(|at| SystemTime::from(at).into()),
            ..Object::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(contents.collect()),
            encoding_type: input.encoding_type,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let info = self.store.head(&req.input.key.into(), None).await.map_err(|e| refused(&e))?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: info.entry.size.map(|n| n as i64),
            e_tag: info.entry.etag.as_ref().map(told),
            last_modified: Self::modified(&info),
            checksum_crc64nvme: crc(info.checksum.as_ref()),
            checksum_type: info.checksum.as_ref().map(|_| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            server_side_encryption: self.kms(),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let key: ObjectKey = input.key.into();
        let size = self.store.head(&key, None).await.map_err(|e| refused(&e))?.entry.size.unwrap_or(0);
        let range = match (input.part_number, input.range) {
            (Some(_), _) => ReadRange::FirstPart,
            (None, Some(range)) => ReadRange::Bytes(range.check(size)?),
            (None, None) => ReadRange::Full,
        };
        let if_match = input.if_match.and_then(|c| c.as_etag().map(|e| ETag::new(e.value())));
        let partial = range != ReadRange::Full;
        let options = ReadOptions { range, if_match, version: None };
        let read = self.store.read(&key, &options).await.map_err(|e| refused(&e))?;
        let (info, range) = (read.info, read.range);
        let chunks: Vec<_> = read.body.collect().await;
        let whole = range == (0..size);
        let shown = info.checksum.as_ref().filter(|_| !partial || whole);
        let output = GetObjectOutput {
            body: Some(StreamingBlob::wrap(stream::iter(chunks))),
            content_length: Some((range.end - range.start) as i64),
            // An empty object has no range.
            content_range: (partial && size > 0).then(|| format!("bytes {}-{}/{size}", range.start, range.end - 1)),
            e_tag: info.entry.etag.as_ref().map(told),
            last_modified: Self::modified(&info),
            checksum_crc64nvme: crc(shown),
            checksum_type: shown.map(|_| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            parts_count: info.parts.map(|n| n as i32),
            tag_count: info.tag_count.filter(|n| *n > 0).map(|n| n as i32),
            server_side_encryption: self.kms(),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn get_object_tagging(&self, req: S3Request<GetObjectTaggingInput>) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let tags = self.store.tags(&req.input.key.into(), None).await.map_err(|e| refused(&e))?;
        let tag_set = tags.into_iter().map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect();
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set, version_id: None }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let options = PutOptions {
            condition: condition(input.if_match, input.if_none_match),
            checksum: sum(input.content_md5.as_ref(), input.checksum_crc64nvme.as_ref()),
            ..PutOptions::default()
        };
        let body = gathered(input.body).await?;
        let written = self.store.put(&input.key.into(), body, &options).await.map_err(|e| refused(&e))?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: written.etag.as_ref().map(told),
            checksum_crc64nvme: crc(written.checksum.as_ref()),
            server_side_encryption: self.kms(),
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let condition = condition(req.input.if_match, None);
        self.store.delete(&req.input.key.into(), &condition).await.map_err(|e| refused(&e))?;
        Ok(S3Response::with_status(DeleteObjectOutput::default(), http::StatusCode::NO_CONTENT))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let id = self.store.create_upload(&req.input.key.into(), &PutOptions::default()).await.map_err(|e| refused(&e))?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id.as_str().to_owned()),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        let checksum = sum(input.content_md5.as_ref(), input.checksum_crc64nvme.as_ref());
        let body = gathered(input.body).await?;
        let (key, upload) = (input.key.into(), UploadId::new(input.upload_id));
        let part = self.store.put_part(&key, &upload, input.part_number as u32, body, checksum.as_ref()).await.map_err(|e| refused(&e))?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(told(&part.etag)),
            checksum_crc64nvme: crc(part.checksum.as_ref()),
            server_side_encryption: self.kms(),
            ..UploadPartOutput::default()
        }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let parts = self.store.list_parts(&req.input.key.into(), &UploadId::new(req.input.upload_id)).await.map_err(|e| refused(&e))?;
        let parts = parts.iter().map(|part| dto::Part {
            part_number: Some(part.number as i32),
            size: Some(part.size as i64),
            e_tag: Some(told(&part.etag)),
            ..dto::Part::default()
        });
        Ok(S3Response::new(ListPartsOutput { parts: Some(parts.collect()), is_truncated: Some(false), ..ListPartsOutput::default() }))
    }

    async fn list_multipart_uploads(&self, req: S3Request<ListMultipartUploadsInput>) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let (uploads, _) = self.store.list_uploads(&input.prefix.unwrap_or_default(), None).await.map_err(|e| refused(&e))?;
        let url = input.encoding_type.is_some();
        let uploads = uploads.iter().map(|upload| MultipartUpload {
            key: Some(if url { encoded(&upload.key) } else { upload.key.as_str().to_owned() }),
            upload_id: Some(upload.id.as_str().to_owned()),
            initiated: upload.begun.map(|at| SystemTime::from(at).into()),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            encoding_type: input.encoding_type,
            is_truncated: Some(false),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let options = PutOptions {
            condition: condition(input.if_match, input.if_none_match),
            checksum: sum(None, input.checksum_crc64nvme.as_ref()),
            ..PutOptions::default()
        };
        let named = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let parts: Vec<Part> = named
            .into_iter()
            .map(|part| Part {
                number: part.part_number.unwrap_or_default() as u32,
                size: 0,
                etag: ETag::new(part.e_tag.as_ref().map_or("", |e| e.value())),
                opaque_etag: false,
                checksum: None,
            })
            .collect();
        let (key, upload): (ObjectKey, _) = (input.key.into(), UploadId::new(input.upload_id));
        let written = self.store.complete_upload(&key, &upload, &parts, &options).await.map_err(|e| refused(&e))?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: written.etag.as_ref().map(told),
            checksum_crc64nvme: crc(written.checksum.as_ref()),
            server_side_encryption: self.kms(),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(&self, req: S3Request<AbortMultipartUploadInput>) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let upload = UploadId::new(req.input.upload_id);
        self.store.abort_upload(&req.input.key.into(), &upload).await.map_err(|e| refused(&e))?;
        Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
    }
}
