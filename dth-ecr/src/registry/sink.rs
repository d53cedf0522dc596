//! Writing.

use super::{
    Registry,
    blobs::{AGAIN, CLAIM, Turn},
};
use crate::{
    error::LONGEST,
    hosts::{of_ecr, takes_no_pieces},
    images,
    key::ImageKey,
    manifest::{Manifest, OCI_INDEX, manifests_of},
    wire::{Action, Answer, Call, CallBody, Scope},
};
use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    error::{Error, ErrorKind, Op, Result, Retry},
    object::{ETag, Entry, ObjectKey},
    retry::RetryPolicy,
    sink::{Body, Condition, Placed, PutOptions, Sink, SinkCapability, Written},
    source::ByteStream,
};
use futures_util::StreamExt;
use http::{Method, StatusCode, header};
use serde_json::Value;
use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed, time::Duration};

/// Blobs up to so many bytes are sent by one request, after that which begins the upload.
const AT_ONCE_MAX: u64 = 64 << 20;

/// Larger ones go in pieces of so many bytes, held until the registry has them: a broken connection costs a piece, not the blob.
/// Amazon ECR takes no smaller ones than 5 MiB.
const PIECE: usize = 8 << 20;

/// Amazon ECR takes no more than 4,200 (<https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html>): beyond 31 GiB,
/// pieces are larger.
const MOST_PIECES: u64 = 4_000;

/// Tries of an entry in a list of referrers, the last of which sees that it is there.
const REFERS: u32 = 8;

/// Tries of a look at a session.
const LOOKS: RetryPolicy = RetryPolicy { tries: 3, base_ms: 400, cap_ms: LONGEST.as_millis() as u64 };

/// Tries of a piece.
const PIECES: RetryPolicy = RetryPolicy { tries: 6, base_ms: 400, cap_ms: LONGEST.as_millis() as u64 };

#[async_trait]
impl Sink for Registry {
    fn sink_capability(&self) -> SinkCapability {
        images::sink_capability(PIECE as u64)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let image = self.image(key, Op::Put)?;
        self.ensure(image.name()).await?;
        match &image {
            ImageKey::Blob { digest, .. } => self.put_blob(&image, digest, body).await,
            ImageKey::Unlisted { .. } => Err(Error::new(ErrorKind::Unrepresentable, Op::Put, self.target(&image))),
            ImageKey::Tag { .. } | ImageKey::Manifest { .. } => {
                let manifest = images::manifest_to_store(&image, body, options, &self.target(&image)).await?;
                self.put_manifest(&image, &manifest).await
            }
        }
    }

    async fn delete(&self, key: &ObjectKey, _: &Condition) -> Result<()> {
        let image = self.image(key, Op::Delete)?;
        if matches!(image, ImageKey::Blob { .. } | ImageKey::Unlisted { .. }) {
            return Err(Error::new(ErrorKind::Unsupported, Op::Delete, self.target(&image)).with_source("blobs go with their manifests"));
        }
        if let Some(control) = &self.inner.control {
            return control.delete(image.name(), image.reference()).await;
        }
        match self.delete_as(&image, &image).await {
            // Some know tags only to read: there a digest goes, with all its tags.
            Err(error)
                if matches!(image, ImageKey::Tag { .. })
                    && matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Invalid | ErrorKind::Corrupt) =>
            {
                self.delete_by_digest(key, &image, error).await
            }
            done => done,
        }
    }

    async fn settle(&self, key: &ObjectKey, _: &ETag) -> Result<()> {
        let image = self.image(key, Op::Put)?;
        if matches!(image, ImageKey::Blob { .. } | ImageKey::Unlisted { .. }) { Ok(()) } else { self.settle_manifest(&image).await }
    }

    /// A link to where the registry has it, or a look.
    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        let image = self.image(key, Op::Place)?;
        let (name, digest) = match &image {
            ImageKey::Blob { name, digest } | ImageKey::Manifest { name, digest } => (name.as_str(), digest.as_str()),
            _ => return Ok(Placed::Unknown),
        };
        images::must_be_its_own(digest, child, || self.target(&image))?;
        let blobs = &self.inner.blobs;
        if blobs.is_at(name, digest) {
            return Ok(Placed::There);
        }
        let is_blob = matches!(image, ImageKey::Blob { .. });
        // Where a repository is known to have it, that is tried even where the repository is said to be new.
        let mut looks = false;
        if is_blob {
            let known = blobs.elsewhere(digest);
            let from = match &known {
                Some(from) => Some(from.clone()),
                None => blobs.noted_at(digest).await?,
            };
            looks = from.as_deref() == Some(name);
            if let Some(from) = from.filter(|from| from != name && blobs.are_linked()) {
                self.ensure(name).await?;
                let linked = self.link(&image, name, digest, &from).await?;
                if linked || known.is_some() {
                    blobs.was_linked(linked);
                }
                if linked {
                    drop(blobs.take_begun(name, digest));
                    blobs.landed(name, digest).await;
                    return Ok(Placed::There);
                }
                blobs.not_at(&from, digest).await;
            }
        }
        if looks || !self.is_new(name).await? {
            match self.look(key, &image).await {
                Ok(_) if is_blob => {
                    drop(blobs.take_begun(name, digest));
                    blobs.landed(name, digest).await;
                    return Ok(Placed::There);
                }
                Ok(_) => {
                    self.settle_manifest(&image).await?;
                    blobs.seen(name, digest);
                    return Ok(Placed::There);
                }
                // Who may not look may write: ECR Public tells nobody.
                Err(error) if error.kind() == ErrorKind::NotFound || (is_blob && error.kind() == ErrorKind::Denied) => {
                    if looks {
                        blobs.not_at(name, digest).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if is_blob { self.claimed(digest).await } else { Ok(Placed::Absent) }
    }
}

impl Registry {
    async fn claimed(&self, digest: &str) -> Result<Placed> {
        Ok(match self.inner.blobs.claim(digest).await? {
            Turn::Ours(None) => Placed::Absent,
            // Noted or claimed meanwhile.
            Turn::Ours(Some(_)) => Placed::Awaited(Duration::from_millis(100)),
            Turn::Theirs => Placed::Awaited(AGAIN),
        })
    }

    /// Has a blob linked from another repository of the registry; where that fails, an upload has begun.
    async fn link(&self, image: &ImageKey, name: &str, digest: &str, from: &str) -> Result<bool> {
        let to = format!("/v2/{name}/blobs/uploads/?mount={digest}&from={from}");
        let mut call = Call::new(Op::Place, Action::StartUpload, Method::POST, to, Scope::Push(name.to_owned()), self.target(image));
        if from != name {
            call.scopes.insert(Scope::Pull(from.to_owned()));
        }
        let answer = match self.inner.wire.send(call).await {
            Ok(answer) => answer,
            // Not to be had from there: it is sent.
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Invalid) => {
                tracing::debug!(%image, from, error = %error.chain(), "not linked");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let linked = answer.status == StatusCode::CREATED;
        if let Some(location) = answer.text("location").filter(|_| !linked) {
            self.inner.blobs.begun(name, digest, location.to_owned());
        }
        answer.done().await;
        Ok(linked)
    }

    /// Makes the repository where registries want that, once.
    async fn ensure(&self, name: &str) -> Result<()> {
        match &self.inner.control {
            Some(control) => self.inner.repositories.ensure(name, &**control).await,
            None => Ok(()),
        }
    }

    /// A repository that takes no upload, because it is not there.
    fn no_repository(&self, image: &ImageKey, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        self.inner.blobs.forget(image.name());
        self.inner.repositories.is_missing(image.name());
        let target = format!("{}/{}", self.inner.config.registry, image.name());
        let why = match &self.inner.control {
            // Made, and not everywhere yet, or removed by somebody: it is ensured again.
            Some(control) if control.makes_repositories() => return Error::new(ErrorKind::Conflict, Op::Put, target).with_source(error),
            Some(_) => "the repository does not exist: make it, or set `create` for this registry",
            None => "the registry makes no such repository: make it, or its project, there",
        };
        Error::new(ErrorKind::Denied, Op::Put, target).with_source(format!("{why} ({})", error.chain()))
    }

    async fn send_manifest(&self, image: &ImageKey, media_type: &str, bytes: Bytes) -> Result<Answer> {
        let scope = Scope::Push(image.name().to_owned());
        let call = self.call(Op::Put, Action::PutManifest, Method::PUT, image, scope).header(header::CONTENT_TYPE, media_type)?;
        self.inner.wire.send(call.body(CallBody::Chunks(vec![bytes]))).await
    }

    async fn put_manifest(&self, image: &ImageKey, manifest: &Manifest) -> Result<Written> {
        let (name, blobs) = (image.name(), &self.inner.blobs);
        let answer = match self.send_manifest(image, &manifest.media_type, manifest.bytes.clone()).await {
            Ok(answer) => answer,
            // Amazon ECR refuses an immutable tag also when it is what it is to be: the answer to an earlier request was lost.
            Err(error) if error.code() == Some("TAG_INVALID") => {
                let found = self.look(&image.to_key(), image).await.ok().and_then(|info| info.entry.etag);
                return if found.is_some_and(|etag| etag.as_str() == manifest.digest) {
                    Ok(images::written(&manifest.digest, Some(&manifest.media_type)))
                } else {
                    Err(error)
                };
            }
            // That it is there would say nothing of whether it is found: it is sent again.
            Err(error) if error.maybe_applied() && manifest.subject().is_some() => return Err(self.not_yet_found(image, error)),
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Invalid) {
                    // Something that was there is not: everything of this repository is looked at again.
                    blobs.forget(name);
                    self.inner.repositories.is_missing(name);
                }
                if error.kind() == ErrorKind::NotFound {
                    return Err(Error::new(ErrorKind::Conflict, Op::Put, self.target(image)).with_source(error));
                }
                return Err(error);
            }
        };
        let stored = answer.text("docker-content-digest").map(str::to_owned);
        let referred = answer.headers.contains_key("oci-subject");
        answer.done().await;
        if let Some(stored) = stored.filter(|stored| *stored != manifest.digest) {
            let why = format!("the registry stored it as {stored}, and it is {}", manifest.digest);
            return Err(Error::new(ErrorKind::Corrupt, Op::Put, self.target(image)).with_source(why));
        }
        self.exists(name).await;
        if let Some(subject) = manifest.subject().filter(|_| !referred) {
            self.refer(name, &subject, manifest).await.map_err(|e| self.not_yet_found(image, e))?;
        }
        blobs.seen(name, &manifest.digest);
        Ok(images::written(&manifest.digest, Some(&manifest.media_type)))
    }

    /// What must not be taken for done because the manifest is there.
    fn not_yet_found(&self, image: &ImageKey, error: Error) -> Error {
        let kind =
            if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Precondition) { ErrorKind::Unavailable } else { error.kind() };
        Error::new(kind, Op::Put, self.target(image)).with_retry(error.retry()).with_source(error)
    }

    /// Has a manifest that is there found by what it refers to, where that takes a tag: whoever sent it may have died in between.
    async fn settle_manifest(&self, image: &ImageKey) -> Result<()> {
        let manifest = match self.fetch(image, Op::Place).await {
            // It is sent, therefore.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            manifest => manifest?,
        };
        let Some(subject) = manifest.subject() else { return Ok(()) };
        // Tells whether there is an API, too.
        let listed = self.referrers_of(image.name(), &subject).await?;
        if listed.is_some() {
            return Ok(());
        }
        self.refer(image.name(), &subject, &manifest).await.map_err(|e| self.not_yet_found(image, e))
    }

    /// A registry that knows nothing of subjects has tags for that, which clients keep up to date
    /// (<https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema>).
    async fn refer(&self, name: &str, subject: &str, manifest: &Manifest) -> Result<()> {
        self.inner.without_referrers.store(true, Relaxed);
        let image = ImageKey::Tag { name: name.to_owned(), tag: subject.replace(':', "-") };
        // One change at a time: in this process, and, by a note, among all workers.
        let _alone = self.inner.referrers.lock().await;
        let lease = self.inner.blobs.lease(&image.to_string()).await?;
        let referred = self.refer_alone(&image, manifest).await;
        self.inner.blobs.release(&image.to_string(), lease).await;
        referred
    }

    async fn refer_alone(&self, image: &ImageKey, manifest: &Manifest) -> Result<()> {
        let mut gone: BTreeSet<String> = BTreeSet::new();
        let digest_of = |entry: &Value| entry.get("digest").and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
        // Somebody else's tool may write it at the same time: until ours is in it.
        for _ in 0..REFERS {
            let mut index = match self.fetch(image, Op::Put).await {
                Ok(found) => serde_json::from_slice(&found.bytes).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
                Err(error) => return Err(error),
            };
            let manifests = manifests_of(&mut index);
            if manifests.iter().any(|listed| digest_of(listed) == manifest.digest) {
                return Ok(());
            }
            manifests.retain(|listed| !gone.contains(&digest_of(listed)));
            manifests.push(manifest.as_referrer());
            let listed: Vec<String> = manifests.iter().map(digest_of).collect();
            match self.send_manifest(image, OCI_INDEX, index.to_string().into()).await {
                Ok(answer) => answer.done().await,
                // What somebody removed is listed still, and a registry that checks lists refuses it.
                Err(error) if error.code() == Some("MANIFEST_BLOB_UNKNOWN") && gone.is_empty() => {
                    for digest in listed {
                        let one = ImageKey::Manifest { name: image.name().to_owned(), digest: digest.clone() };
                        match self.look(&one.to_key(), &one).await {
                            Err(other) if other.kind() == ErrorKind::NotFound => drop(gone.insert(digest)),
                            looked => drop(looked?),
                        }
                    }
                    if gone.is_empty() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Conflict, Op::Put, self.target(image)).with_source("others keep changing the list of referrers"))
    }

    async fn put_blob(&self, image: &ImageKey, digest: &str, body: Body) -> Result<Written> {
        let (name, blobs) = (image.name(), &self.inner.blobs);
        let sending = self.send_blob(image, digest, body);
        tokio::pin!(sending);
        let sent = loop {
            tokio::select! {
                biased;
                sent = &mut sending => break sent,
                () = tokio::time::sleep(CLAIM / 3) => blobs.claim_again(digest).await,
            }
        };
        if let Err(error) = sent {
            blobs.given_up(digest).await;
            return Err(error);
        }
        blobs.landed(name, digest).await;
        Ok(images::written(digest, None))
    }

    async fn send_blob(&self, image: &ImageKey, digest: &str, body: Body) -> Result<()> {
        let location = match self.inner.blobs.take_begun(image.name(), digest) {
            Some(location) => location,
            None => self.begin(image).await?,
        };
        match body {
            Body::Bytes(chunks) => self.finish(image, &location, digest, CallBody::Chunks(chunks)).await,
            Body::Stream { len, stream } if len <= AT_ONCE_MAX || takes_no_pieces(&self.inner.config.registry) => {
                self.finish(image, &location, digest, CallBody::Stream(len, stream)).await
            }
            Body::Stream { len, stream } => self.in_pieces(image, location, digest, len, stream).await,
        }
    }

    fn upload(&self, image: &ImageKey, method: Method, to: &str) -> Call {
        Call::new(Op::Put, Action::Upload, method, to, Scope::Push(image.name().to_owned()), self.target(image))
    }

    async fn begin(&self, image: &ImageKey) -> Result<String> {
        let call =
            Call { action: Action::StartUpload, ..self.upload(image, Method::POST, &format!("/v2/{}/blobs/uploads/", image.name())) };
        let answer = self.inner.wire.send(call).await.map_err(|error| self.no_repository(image, error))?;
        let location = answer.text("location").map(str::to_owned);
        answer.done().await;
        location.ok_or_else(|| Error::new(ErrorKind::Unavailable, Op::Put, self.target(image)).with_source("an upload without a location"))
    }

    /// The last request of an upload, or all of it.
    async fn finish(&self, image: &ImageKey, location: &str, digest: &str, body: CallBody) -> Result<()> {
        let to = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
        let call = self.upload(image, Method::PUT, &to).header(header::CONTENT_TYPE, "application/octet-stream")?;
        let answer = self.inner.wire.send(call.body(body)).await?;
        let (status, stored) = (answer.status, answer.text("docker-content-digest").map(str::to_owned));
        answer.done().await;
        if status != StatusCode::CREATED {
            let why = format!("an upload ended with {status} instead of 201");
            return Err(Error::new(ErrorKind::Unavailable, Op::Put, self.target(image)).with_maybe_applied(true).with_source(why));
        }
        // One that was sent under sha512 may be told under sha256.
        match stored {
            Some(stored) if digest.starts_with("sha256:") && stored != digest => {
                let why = format!("the registry stored it as {stored}");
                Err(Error::new(ErrorKind::Corrupt, Op::Put, self.target(image)).with_source(why))
            }
            _ => Ok(()),
        }
    }

    async fn in_pieces(&self, image: &ImageKey, mut location: String, digest: &str, len: u64, mut stream: ByteStream) -> Result<()> {
        let size = PIECE.max(len.div_ceil(MOST_PIECES) as usize);
        let mut at = 0;
        while at < len {
            let (mut piece, mut bytes) = (Vec::new(), 0);
            while bytes < size
                && let Some(chunk) = stream.next().await
            {
                let chunk = chunk?;
                bytes += chunk.len();
                piece.push(chunk);
            }
            if bytes == 0 {
                return Err(Error::new(ErrorKind::Corrupt, Op::Put, self.target(image)).with_source(format!("{at} of {len} bytes came")));
            }
            location = self.send_piece(image, location, at, piece).await?;
            at += bytes as u64;
        }
        self.finish(image, &location, digest, CallBody::Empty).await
    }

    /// Sends a piece; where the connection breaks, the session is asked how much of it has arrived.
    async fn send_piece(&self, image: &ImageKey, mut location: String, from: u64, mut piece: Vec<Bytes>) -> Result<String> {
        let is_ecr = of_ecr(&self.inner.config.registry).is_some();
        let mut at = from;
        for tried in 1.. {
            let bytes: u64 = piece.iter().map(|c| c.len() as u64).sum();
            if bytes == 0 {
                return Ok(location);
            }
            let call = self
                .upload(image, Method::PATCH, &location)
                .header(header::CONTENT_TYPE, "application/octet-stream")?
                .header(header::CONTENT_RANGE, &format!("{at}-{}", at + bytes - 1))?
                .body(CallBody::Chunks(piece.clone()));
            let error = match self.inner.wire.send(call).await {
                Ok(answer) => {
                    location = answer.text("location").map_or(location, str::to_owned);
                    answer.done().await;
                    return Ok(location);
                }
                Err(error) => error,
            };
            let Some(pause) = PIECES.pause(&error, tried, &*self.inner.env) else { return Err(error) };
            // Amazon ECR's word on a session stays that of its first piece; which byte it waits for it says when another one comes.
            if let Some(wanted) = wanted_byte(&error).filter(|_| is_ecr) {
                if !(at + 1..=at + bytes).contains(&wanted) {
                    return Err(error);
                }
                drop_front(&mut piece, (wanted - at) as usize);
                at = wanted;
                continue;
            }
            tracing::debug!(%image, at, error = %error.chain(), "going on with an upload");
            metrics::counter!("dth_registry_resumed_uploads_total").increment(1);
            tokio::time::sleep(pause).await;
            if is_ecr {
                continue;
            }
            let answer = self.session(image, &location).await?;
            let arrived = answer.text("range").and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok()).map_or(0, |last| last + 1);
            // `0-0` is what many say of a session without a byte.
            let arrived = if arrived == 1 && at == 0 { 0 } else { arrived };
            location = answer.text("location").map_or(location, str::to_owned);
            answer.done().await;
            if !(at..=at + bytes).contains(&arrived) {
                let why = format!("the upload has {arrived} bytes, and {at} were sent");
                return Err(Error::new(ErrorKind::Conflict, Op::Put, self.target(image)).with_source(why));
            }
            drop_front(&mut piece, (arrived - at) as usize);
            at = arrived;
        }
        unreachable!("tried without end")
    }

    /// What a session says of itself.
    async fn session(&self, image: &ImageKey, location: &str) -> Result<Answer> {
        let look = || async {
            let answer = self.inner.wire.send(Call { action: Action::Look, ..self.upload(image, Method::GET, location) }).await;
            let may_pass = |error: &Error| matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled);
            answer.map_err(|error| if may_pass(&error) { error } else { error.with_retry(Retry::Never) })
        };
        // One that ended, or never took part of a piece: the blob is sent anew.
        let answer = LOOKS.run(&*self.inner.env, look).await;
        answer.map_err(|error| Error::new(ErrorKind::Conflict, Op::Put, self.target(image)).with_source(error))
    }

    async fn delete_as(&self, image: &ImageKey, asked: &ImageKey) -> Result<()> {
        let scope = Scope::Delete(image.name().to_owned());
        let call = self.call(Op::Delete, Action::Delete, Method::DELETE, image, scope);
        match self.inner.wire.send(Call { target: self.target(asked), ..call }).await {
            Ok(answer) => {
                answer.done().await;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete_by_digest(&self, key: &ObjectKey, image: &ImageKey, why: Error) -> Result<()> {
        let digest = match self.look(key, image).await {
            Ok(info) => info.entry.etag.map(|etag| etag.as_str().to_owned()).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let tags = match self.tags_of(image.name()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            tags => tags?,
        };
        let others = tags.into_iter().filter(|tag| tag != image.reference());
        for tag in others {
            let other = ImageKey::Tag { name: image.name().to_owned(), tag: tag.clone() };
            let same = match self.look(&other.to_key(), &other).await {
                Ok(info) if info.attributes.content_type.as_deref().is_none_or(crate::manifest::is_index) => {
                    info.entry.etag.is_some_and(|etag| etag.as_str() == digest) || self.lists(&other, &digest).await?
                }
                Ok(info) => info.entry.etag.is_some_and(|etag| etag.as_str() == digest),
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if same {
                let text = format!("the registry deletes digests only, and the tag `{tag}` has the same one, or needs it: {}", why.chain());
                return Err(Error::new(ErrorKind::Unsupported, Op::Delete, self.target(image)).with_source(text));
            }
        }
        self.inner.blobs.forget(image.name());
        self.delete_as(&ImageKey::Manifest { name: image.name().to_owned(), digest }, image).await
    }

    /// Whether an index, or one under it, lists a manifest.
    async fn lists(&self, index: &ImageKey, digest: &str) -> Result<bool> {
        let mut open = vec![index.clone()];
        let mut seen = BTreeSet::new();
        while let Some(image) = open.pop() {
            let manifest = match self.fetch(&image, Op::Delete).await {
                Ok(manifest) => manifest,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for child in manifest.children()?.into_iter().filter(|child| child.is_manifest && manifest.is_index()) {
                if child.digest == digest {
                    return Ok(true);
                }
                if seen.insert(child.digest.clone()) {
                    open.push(ImageKey::Manifest { name: image.name().to_owned(), digest: child.digest });
                }
            }
        }
        Ok(false)
    }
}

/// `First byte of the layer part is 0 instead of 11304960`: which byte a session waits for, in Amazon ECR's words
/// (<https://github.com/apple/containerization/issues/790>).
fn wanted_byte(error: &Error) -> Option<u64> {
    let text = error.chain();
    let (_, rest) = text.split_once("First byte of the layer part is ")?.1.split_once(" instead of ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn drop_front(piece: &mut Vec<Bytes>, mut bytes: usize) {
    while let Some(first) = piece.first_mut().filter(|_| bytes > 0) {
        if first.len() > bytes {
            let _ = first.split_to(bytes);
            return;
        }
        bytes -= first.len();
        piece.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_is_not_sent_again() {
        let piece = || vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")];
        for arrived in 0..=6 {
            let mut rest = piece();
            drop_front(&mut rest, arrived);
            assert_eq!(rest.concat(), b"abcdef"[arrived..]);
        }
    }

    #[test]
    fn ecr_says_which_byte_it_waits_for() {
        let told = |text: &str| wanted_byte(&Error::new(ErrorKind::Conflict, Op::Put, "r").with_source(text.to_owned()));
        assert_eq!(told("First byte of the layer part is 0 instead of 11304960, and so on"), Some(11_304_960));
        for other in ["", "First byte of the layer part is 0", "First byte of the layer part is 0 instead of x", "instead of 5"] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
