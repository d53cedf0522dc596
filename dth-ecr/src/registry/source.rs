//! Reading.

use super::Registry;
use crate::{
    images,
    key::ImageKey,
    wire::{Action, Answer, Call, Scope},
};
use async_trait::async_trait;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, Entry, ObjectKey},
    source::{ByteStream, Family, Read, ReadOptions, ReadRange, Source, SourceCapability},
};
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode, header};
use std::{ops::Range, time::Duration};

/// Times that a blob is gone on with without a byte in between.
const STALLS: u32 = 5;

#[async_trait]
impl Source for Registry {
    fn source_capability(&self) -> SourceCapability {
        images::source_capability()
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let image = self.image(key, Op::Read)?;
        let pinned = options.if_match.as_ref().map(ETag::as_str);
        if let ImageKey::Blob { digest, .. } = &image {
            if pinned.is_some_and(|pinned| pinned != digest) {
                return Err(Error::new(ErrorKind::Precondition, Op::Read, self.target(&image)));
            }
            return self.read_blob(key, &image, digest, options).await;
        }
        let manifest = self.manifest(&image, pinned, Op::Read).await?;
        let size = manifest.bytes.len() as u64;
        let range = images::range_of(&options.range, size, || self.target(&image))?;
        let bytes = manifest.bytes.slice(range.start as usize..range.end as usize);
        let info = images::info(key, &manifest.digest, Some(size), Some(manifest.media_type));
        Ok(Read { info, range, body: stream::iter([Ok(bytes)]).boxed() })
    }

    async fn children(&self, entry: &Entry) -> Result<Family> {
        let image = self.image(&entry.key, Op::Children)?;
        let key = &entry.key;
        match &image {
            ImageKey::Blob { digest, .. } => return Ok(images::without_children(entry, digest)),
            ImageKey::Unlisted { .. } => {
                // The error is what there is to tell.
                self.listed_of(&self.asked(&image)).await?;
                return Err(
                    Error::new(ErrorKind::Conflict, Op::List, self.target(&image)).with_source("its tags can be listed now: run again")
                );
            }
            _ => {}
        }
        // What is there now; of a digest there is but one version.
        let manifest = match self.manifest(&image, None, Op::Children).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_archived(&image).await? => {
                return Err(Error::new(ErrorKind::Archived, Op::Children, self.target(&image)).with_source("it must be restored first"));
            }
            // What somebody names, and is not there, is a mistake, and not something that went.
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_named(&image) => {
                return Err(
                    Error::new(ErrorKind::Invalid, Op::Children, self.target(&image)).with_source("it is named in `images`, and not there")
                );
            }
            manifest => manifest?,
        };
        images::with_children(key, &self.asked(&image), &manifest)
    }
}

impl Registry {
    /// Whether the registry keeps an image that it does not give out.
    async fn is_archived(&self, image: &ImageKey) -> Result<bool> {
        match &self.inner.control {
            Some(control) => control.is_archived(image.name(), image.reference()).await,
            None => Ok(false),
        }
    }

    /// Whether somebody names just this image.
    fn is_named(&self, image: &ImageKey) -> bool {
        let reference = image.reference();
        let named = self.inner.selected.named.get(&self.asked(image));
        named.is_some_and(|named| named.tags.contains(reference) || named.digests.contains(reference))
    }

    fn get_blob(&self, image: &ImageKey, range: Option<String>) -> Result<Call> {
        let call = self.call(Op::Read, Action::GetBlob, Method::GET, image, Scope::Pull(image.name().to_owned()));
        match range {
            Some(range) => call.header(header::RANGE, &range),
            None => Ok(call),
        }
    }

    async fn read_blob(&self, key: &ObjectKey, image: &ImageKey, digest: &str, options: &ReadOptions) -> Result<Read> {
        let asked = match &options.range {
            ReadRange::Bytes(range) => Some(range.clone()),
            ReadRange::Full | ReadRange::FirstPart => None,
        };
        let range = asked.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let answer = match self.inner.wire.send(self.get_blob(image, range)?).await {
            Err(error) if asked.is_some() && error.code() == Some("416") => {
                return Err(Error::new(ErrorKind::Corrupt, Op::Read, self.target(image)).with_source(error));
            }
            answer => answer?,
        };
        let corrupt = |why: &str| Error::new(ErrorKind::Corrupt, Op::Read, self.target(image)).with_source(why.to_owned());
        let (whole, sent) = match (&asked, answer.status) {
            (Some(range), StatusCode::PARTIAL_CONTENT) => {
                let (sent, size) = content_range(&answer).ok_or_else(|| corrupt("a part without Content-Range"))?;
                if sent != *range {
                    return Err(corrupt("another range than the one that was asked for"));
                }
                (size, sent)
            }
            (Some(_), _) => return Err(corrupt("the registry ignores ranges")),
            (None, _) => {
                let size = answer.length().ok_or_else(|| corrupt("the registry does not tell the size of the blob"))?;
                (size, 0..size)
            }
        };
        let media_type = answer.text("content-type").map(str::to_owned);
        let body = self.resuming(image.clone(), answer.stream(), sent.clone());
        Ok(Read { info: images::info(key, digest, Some(whole), media_type), range: sent, body })
    }

    /// The bytes of a blob, gone on with where the connection broke: a digest is of the same bytes for ever.
    fn resuming(&self, image: ImageKey, first: ByteStream, range: Range<u64>) -> ByteStream {
        struct State {
            registry: Registry,
            image: ImageKey,
            body: ByteStream,
            at: u64,
            end: u64,
            stalls: u32,
        }
        let state = State { registry: self.clone(), image, body: first, at: range.start, end: range.end, stalls: 0 };
        stream::try_unfold(state, |mut state| async move {
            loop {
                let broken = match state.body.next().await {
                    Some(Ok(chunk)) => {
                        state.at += chunk.len() as u64;
                        state.stalls = 0;
                        return Ok(Some((chunk, state)));
                    }
                    None if state.at >= state.end => return Ok(None),
                    None => Error::new(ErrorKind::Unavailable, Op::Read, state.registry.target(&state.image))
                        .with_source("the body ended early"),
                    Some(Err(error)) => error,
                };
                state.stalls += 1;
                if state.stalls > STALLS || state.at >= state.end {
                    return Err(broken);
                }
                tracing::debug!(image = %state.image, at = state.at, error = %broken.chain(), "going on with a blob");
                metrics::counter!("dth_registry_resumed_reads_total").increment(1);
                tokio::time::sleep(Duration::from_millis(50 << state.stalls)).await;
                match state.registry.rest_of(&state.image, state.at, state.end).await {
                    Ok(body) => state.body = body,
                    Err(error) if error.is_retryable() && error.kind() != ErrorKind::Corrupt => {
                        state.body = stream::iter([Err(error)]).boxed();
                    }
                    Err(_) => return Err(broken),
                }
            }
        })
        .boxed()
    }

    async fn rest_of(&self, image: &ImageKey, at: u64, end: u64) -> Result<ByteStream> {
        let answer = self.inner.wire.send(self.get_blob(image, Some(format!("bytes={at}-{}", end - 1)))?).await?;
        match content_range(&answer) {
            Some((range, _)) if answer.status == StatusCode::PARTIAL_CONTENT && range == (at..end) => Ok(answer.stream()),
            _ => Err(Error::new(ErrorKind::Corrupt, Op::Read, self.target(image)).with_source("the registry ignores ranges")),
        }
    }
}

/// `bytes 5-49/50`: which bytes, and of how many.
fn content_range(answer: &Answer) -> Option<(Range<u64>, u64)> {
    let (range, size) = answer.text("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?, size.parse().ok()?))
}
