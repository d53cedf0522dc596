//! A store in memory: ordered listings, conditions, multipart uploads, checksums; each ability can be taken away, so that
//! tests see the engine on weaker stores too.

use crate::{
    attribute::{Attribute, AttributeSet},
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest, must_carry},
    object::{Attributes, ETag, Entry, EtagKind, ObjectInfo, ObjectKey, Tags, VersionId},
    sink::{Body, Condition, Conditions, MultipartLimits, OpenUpload, Part, Placed, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::{CopyOrigin, Family, Read, ReadOptions, ReadRange, Source, SourceCapability},
    versions::{Version, VersionsPage},
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard},
};

/// Tells by the bytes of an entry which others it needs.
pub type TellChildren = fn(&[u8]) -> Vec<ObjectKey>;

/// What a [`MemoryStore`] is like.
#[derive(Debug, Clone)]
pub struct MemoryStoreSettings {
    /// Its name in reports.
    pub name: String,
    /// Entries in a page.
    pub page: u32,
    /// What its etags are made of.
    pub etag: EtagKind,
    /// Whether conditions on writes are honoured (ignored otherwise).
    pub conditions: bool,
    /// Whether reads may be pinned to an etag (ignored otherwise).
    pub read_conditions: bool,
    /// What it keeps of objects besides their bytes.
    pub keeps: AttributeSet,
    /// Checksums that it gives for whole objects and verifies on writes.
    pub checksums: &'static [Algorithm],
    /// Limits of multipart uploads; `None` for none.
    pub multipart: Option<MultipartLimits>,
    /// Most bytes of a single put.
    pub max_put: u64,
    /// Most bytes that it copies at once from its neighbour ([`MemoryStore::beside`]); 0 to refuse all copies, as a store does
    /// when a right is lacking.
    pub max_copy: u64,
    /// Bytes of one chunk of a body.
    pub chunk: usize,
    /// Which entries must be at the destination before an entry; its bytes tell.
    pub children: Option<TellChildren>,
    /// Whether its listings tell nothing but keys, so that, as a destination, it is rather asked for those of the source.
    pub looked_up: bool,
    /// Whether it keeps versions and delete markers.
    pub versions: bool,
    /// Whether a child without children whose bytes lie under another key is linked from there ([`Sink::place`]).
    pub links: bool,
}

impl Default for MemoryStoreSettings {
    fn default() -> Self {
        Self {
            name: "memory".into(),
            page: 1000,
            etag: EtagKind::Md5,
            conditions: true,
            read_conditions: true,
            keeps: AttributeSet::CONTENT.with(Attribute::Tags, true).with(Attribute::WebsiteRedirect, true),
            checksums: &[Algorithm::Md5, Algorithm::Crc64Nvme],
            multipart: Some(MultipartLimits { min_part: 1, max_part: 1 << 30, max_parts: 10_000, list_parts: true, list_uploads: true }),
            max_put: 5 << 30,
            max_copy: 5 << 30,
            chunk: 64 << 10,
            children: None,
            looked_up: false,
            versions: false,
            links: false,
        }
    }
}

/// An object as the store holds it.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// Its bytes.
    pub body: Bytes,
    /// Its entity tag.
    pub etag: ETag,
    /// Content headers and metadata.
    pub attributes: Attributes,
    /// Tags.
    pub tags: Tags,
    /// Sizes of its parts, when it came of a multipart upload.
    pub parts: Vec<u64>,
    modified: Timestamp,
    version: Option<VersionId>,
}

/// What a key held once.
#[derive(Debug)]
struct Past {
    id: VersionId,
    /// `None` of a delete marker.
    object: Option<Arc<StoredObject>>,
}

#[derive(Debug)]
struct Upload {
    key: ObjectKey,
    parts: BTreeMap<u32, (Bytes, Part)>,
    options: PutOptions,
    begun: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Arc<StoredObject>>,
    /// The oldest first, the current one included; nothing where no versions are kept.
    past: BTreeMap<ObjectKey, Vec<Past>>,
    uploads: BTreeMap<UploadId, Upload>,
    last: u64,
    watcher: Option<Watcher>,
}

/// What happens to a key.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// This object becomes visible.
    Published(&'a StoredObject),
    /// This object is removed.
    Removed(&'a StoredObject),
}

/// Sees every change at the moment at which it becomes visible.
pub type Watch = dyn Fn(&ObjectKey, Change<'_>) + Send + Sync;

struct Watcher(Box<Watch>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

/// A store in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    settings: Arc<MemoryStoreSettings>,
    state: Arc<Mutex<State>>,
    neighbour: Option<Box<MemoryStore>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(settings: MemoryStoreSettings) -> Self {
        Self { settings: Arc::new(settings), state: Arc::default(), neighbour: None }
    }

    /// The same store, which copies objects of `neighbour` (or of itself) without a way through the caller.
    #[must_use]
    pub fn beside(self, neighbour: &Self) -> Self {
        Self { neighbour: Some(Box::new(neighbour.clone())), ..self }
    }

    /// The object that is to be copied, if it is still of this version.
    fn origin(&self, origin: &CopyOrigin, source: &ETag, op: Op) -> Result<Arc<StoredObject>> {
        let fail = |kind| Error::new(kind, op, origin.key.to_string());
        let neighbour = self.neighbour.as_ref().filter(|_| self.settings.max_copy > 0).ok_or_else(|| fail(ErrorKind::Denied))?;
        let object = neighbour.stored(&origin.key, origin.version.as_ref(), op)?;
        if object.etag == *source { Ok(object) } else { Err(fail(ErrorKind::Precondition)) }
    }

    fn store_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes, op: Op) -> Result<Part> {
        let mut state = self.lock();
        state.last += 1;
        let etag = match self.settings.etag {
            EtagKind::Md5 => ETag::of_md5(&md5(&body)),
            EtagKind::Digest => digest(&body),
            EtagKind::Opaque => ETag::new(&format!("{}-part{}", self.settings.name, state.last)),
        };
        let part = Part { number, size: body.len() as u64, etag, opaque_etag: false, checksum: self.own_sum(&body) };
        let upload = state.uploads.get_mut(upload).filter(|u| u.key == *key);
        let upload = upload.ok_or_else(|| Error::new(ErrorKind::NotFound, op, self.target(key)))?;
        upload.parts.insert(number, (body, part.clone()));
        Ok(part)
    }

    /// Stores an object as one PUT would.
    pub fn insert(&self, key: impl Into<ObjectKey>, body: impl Into<Bytes>) -> ETag {
        let options = PutOptions::default();
        self.publish(&mut self.lock(), &key.into(), body.into(), Vec::new(), &options)
    }

    /// Stores an object as one PUT with these options would.
    pub fn insert_with(&self, key: impl Into<ObjectKey>, body: impl Into<Bytes>, options: &PutOptions) -> ETag {
        self.publish(&mut self.lock(), &key.into(), body.into(), Vec::new(), options)
    }

    /// Stores an object as a multipart upload in parts of `part` bytes would.
    pub fn insert_parts(&self, key: impl Into<ObjectKey>, body: impl Into<Bytes>, part: usize) -> ETag {
        let body = body.into();
        let parts = body.chunks(part.max(1)).map(<[u8]>::len).map(|n| n as u64).collect();
        self.publish(&mut self.lock(), &key.into(), body, parts, &PutOptions::default())
    }

    /// Removes an object.
    pub fn remove(&self, key: &ObjectKey) -> bool {
        self.take_away(&mut self.lock(), key).is_some()
    }

    /// All that a key held, the oldest first; `None` stands for a delete marker. Nothing where no versions are kept.
    pub fn past(&self, key: &ObjectKey) -> Vec<Option<Arc<StoredObject>>> {
        self.lock().past.get(key).into_iter().flatten().map(|past| past.object.clone()).collect()
    }

    /// Forgets a version that is not the current one, as a rule of the store's life cycle does.
    pub fn forget_version(&self, key: &ObjectKey, at: usize) {
        if let Some(past) = self.lock().past.get_mut(key).filter(|past| at + 1 < past.len()) {
            past.remove(at);
        }
    }

    fn take_away(&self, state: &mut State, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        if self.settings.versions {
            state.last += 1;
            let id = version_id(state.last);
            state.past.entry(key.clone()).or_default().push(Past { id, object: None });
        }
        state.objects.remove(key)
    }

    /// The object, or that version of it.
    fn stored(&self, key: &ObjectKey, version: Option<&VersionId>, op: Op) -> Result<Arc<StoredObject>> {
        let object = match version {
            None => self.get(key),
            Some(id) => self.lock().past.get(key).into_iter().flatten().find(|past| past.id == *id).and_then(|past| past.object.clone()),
        };
        object.ok_or_else(|| Error::new(ErrorKind::NotFound, op, self.target(key)))
    }

    /// An object as it is.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects.
    pub fn snapshot(&self) -> BTreeMap<ObjectKey, Arc<StoredObject>> {
        self.lock().objects.clone()
    }

    /// Shows every change by a call of [`Sink`] from now on to `watcher`, which must not call the store.
    pub fn watch(&self, watcher: Box<Watch>) {
        self.lock().watcher = Some(Watcher(watcher));
    }

    /// Number of unfinished uploads.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn publish(&self, state: &mut State, key: &ObjectKey, body: Bytes, parts: Vec<u64>, options: &PutOptions) -> ETag {
        state.last += 1;
        let etag = match self.settings.etag {
            EtagKind::Opaque => ETag::new(&format!("{}-object{}", self.settings.name, state.last)),
            EtagKind::Digest => digest(&body),
            EtagKind::Md5 if parts.is_empty() => ETag::of_md5(&md5(&body)),
            EtagKind::Md5 => {
                let mut at = 0;
                let sums: Vec<_> = parts
                    .iter()
                    .map(|len| {
                        at += *len as usize;
                        md5(&body[at - *len as usize..at])
                    })
                    .collect();
                ETag::of_parts(&sums)
            }
        };
        let object = StoredObject {
            body,
            etag: etag.clone(),
            attributes: options.attributes.clone(),
            tags: options.tags.clone(),
            parts,
            modified: Timestamp::from_millisecond(1_700_000_000_000 + state.last as i64).unwrap_or(Timestamp::MAX),
            version: self.settings.versions.then(|| version_id(state.last)),
        };
        if let Some(watcher) = &state.watcher {
            (watcher.0)(key, Change::Published(&object));
        }
        let object = Arc::new(object);
        if let Some(id) = object.version.clone() {
            state.past.entry(key.clone()).or_default().push(Past { id, object: Some(Arc::clone(&object)) });
        }
        state.objects.insert(key.clone(), object);
        etag
    }

    fn check(&self, state: &State, key: &ObjectKey, condition: &Condition, op: Op) -> Result<()> {
        let held = state.objects.get(key).map(|o| &o.etag);
        let holds = match condition {
            Condition::None => true,
            Condition::Absent => held.is_none(),
            Condition::Match(etag) => held == Some(etag),
        };
        if holds || !self.settings.conditions { Ok(()) } else { Err(Error::new(ErrorKind::Precondition, op, self.target(key))) }
    }

    fn check_sum(&self, key: &ObjectKey, body: &Bytes, checksum: Option<&Checksum>, op: Op) -> Result<()> {
        match checksum {
            Some(c) if self.settings.checksums.contains(&c.algorithm) && Checksum::of(c.algorithm, std::slice::from_ref(body)) != *c => {
                Err(Error::new(ErrorKind::Corrupt, op, self.target(key)))
            }
            _ => Ok(()),
        }
    }

    fn own_sum(&self, body: &Bytes) -> Option<Checksum> {
        Some(Checksum::of(*self.own_algorithm().first()?, std::slice::from_ref(body)))
    }

    fn own_algorithm(&self) -> &'static [Algorithm] {
        let sums = self.settings.checksums;
        sums.iter().position(|a| *a != Algorithm::Md5).map_or(&[], |at| &sums[at..=at])
    }

    fn info(&self, key: &ObjectKey, object: &StoredObject) -> ObjectInfo {
        ObjectInfo {
            entry: entry(key, object),
            attributes: object.attributes.clone(),
            opaque_etag: false,
            checksum: self.own_sum(&object.body),
            parts: (!object.parts.is_empty()).then_some(object.parts.len() as u32),
            tag_count: Some(object.tags.len() as u32),
        }
    }

    fn target(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.settings.name)
    }
}

/// In the order of writes.
fn version_id(number: u64) -> VersionId {
    VersionId::new(format!("{number:08}"))
}

fn entry(key: &ObjectKey, object: &StoredObject) -> Entry {
    let (modified, version) = (Some(object.modified), object.version.clone());
    Entry { modified, version, ..Entry::new(key.clone(), object.body.len() as u64, Some(object.etag.clone())) }
}

fn digest(bytes: &Bytes) -> ETag {
    ETag::of_sha256(&Checksum::of(Algorithm::Sha256, std::slice::from_ref(bytes)).value)
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    use md5::Digest;
    md5::Md5::digest(bytes).into()
}

async fn gather(body: Body) -> Result<Bytes> {
    let mut all = BytesMut::new();
    match body {
        Body::Bytes(chunks) => chunks.iter().for_each(|c| all.extend_from_slice(c)),
        Body::Stream { len, mut stream } => {
            while let Some(chunk) = stream.next().await {
                all.extend_from_slice(&chunk?);
            }
            if all.len() as u64 != len {
                return Err(Error::new(ErrorKind::Corrupt, Op::Put, format!("{} of {len} bytes", all.len())));
            }
        }
    }
    Ok(all.freeze())
}

#[async_trait]
impl Index for MemoryStore {
    fn name(&self) -> String {
        self.settings.name.clone()
    }

    fn index_capability(&self) -> IndexCapability {
        let Self { settings, .. } = self;
        IndexCapability { page_max: settings.page, looked_up: settings.looked_up, ..IndexCapability::like_s3(settings.etag) }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let state = self.lock();
        let prefix = ObjectKey::new(request.prefix.clone());
        let after = match &request.from {
            ListFrom::Beginning => None,
            ListFrom::After(key) => Some(key.clone()),
            ListFrom::Token(token) => Some(ObjectKey::new(token.clone())),
        };
        let from = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let max = request.max.unwrap_or(self.settings.page).min(self.settings.page) as usize;
        let mut entries: Vec<Entry> = state
            .objects
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&request.prefix))
            .take(max + 1)
            .map(|(key, object)| entry(key, object))
            .map(
                |entry| {
                    if self.settings.looked_up { Entry { size: None, modified: None, ..Entry::new(entry.key, 0, None) } } else { entry }
                },
            )
            .collect();
        let more = entries.len() > max;
        entries.truncate(max);
        let next = more.then(|| entries.last().map(|e| e.key.as_str().to_owned())).flatten();
        Ok(ListPage { entries, next })
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        let object = self.stored(key, version, Op::Head)?;
        Ok(self.info(key, &object))
    }

    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        if !self.settings.versions {
            return Err(Error::new(ErrorKind::Unsupported, Op::List, self.name()));
        }
        let state = self.lock();
        let (after, behind) = match &request.from {
            ListFrom::Beginning => (String::new(), None),
            // Behind all of its versions.
            ListFrom::After(key) => (key.as_str().to_owned(), Some(String::new())),
            ListFrom::Token(token) => {
                let (id, key) = token.split_once(' ').unwrap_or_default();
                (key.to_owned(), Some(id.to_owned()))
            }
        };
        let max = request.max.unwrap_or(self.settings.page).min(self.settings.page) as usize;
        let mut versions: Vec<Version> = Vec::new();
        for (key, past) in state.past.range(ObjectKey::new(after.as_str())..).filter(|(key, _)| key.starts_with(&request.prefix)) {
            for Past { id, object } in past.iter().rev() {
                if *key.as_str() == *after && behind.as_ref().is_some_and(|behind| id.as_str() >= behind.as_str() || behind.is_empty()) {
                    continue;
                }
                let entry =
                    object.as_ref().map_or_else(|| Entry { size: None, ..Entry::new(key.clone(), 0, None) }, |object| entry(key, object));
                versions.push(Version { entry: Entry { version: Some(id.clone()), ..entry }, marker: object.is_none() });
            }
            if versions.len() > max {
                break;
            }
        }
        let more = versions.len() > max;
        versions.truncate(max);
        let last = versions.last().filter(|_| more).map(|v| &v.entry);
        let next = last.map(|e| format!("{} {}", e.version.as_ref().map_or("", VersionId::as_str), e.key.as_str()));
        Ok(VersionsPage { versions, next })
    }

    async fn keeps_versions(&self) -> Result<bool> {
        Ok(self.settings.versions)
    }
}

#[async_trait]
impl Source for MemoryStore {
    fn source_capability(&self) -> SourceCapability {
        SourceCapability {
            conditional_read: self.settings.read_conditions,
            ranged: true,
            first_part: true,
            checksums: self.settings.checksums,
            gives: self.settings.keeps,
            tags: true,
            children: self.settings.children.is_some(),
        }
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let object = self.stored(key, options.version.as_ref(), Op::Read)?;
        if self.settings.read_conditions && options.if_match.as_ref().is_some_and(|etag| *etag != object.etag) {
            return Err(Error::new(ErrorKind::Precondition, Op::Read, self.target(key)));
        }
        let size = object.body.len() as u64;
        let range = match &options.range {
            ReadRange::Full => 0..size,
            ReadRange::FirstPart => 0..object.parts.first().copied().unwrap_or(size),
            ReadRange::Bytes(range) if range.end <= size && range.start < range.end => range.clone(),
            ReadRange::Bytes(range) => {
                let text = format!("{} bytes {range:?}", self.target(key));
                return Err(Error::new(ErrorKind::Corrupt, Op::Read, text));
            }
        };
        let body = object.body.slice(range.start as usize..range.end as usize);
        let step = self.settings.chunk.max(1);
        let chunks: Vec<Result<Bytes>> = (0..body.len()).step_by(step).map(|at| Ok(body.slice(at..(at + step).min(body.len())))).collect();
        Ok(Read { info: self.info(key, &object), range, body: futures_util::stream::iter(chunks).boxed() })
    }

    async fn children(&self, of: &Entry) -> Result<Family> {
        let known = |key: &ObjectKey| self.get(key).ok_or_else(|| Error::new(ErrorKind::NotFound, Op::Children, self.target(key)));
        let parent = known(&of.key)?;
        let children = self.settings.children.map(|tell| tell(&parent.body)).unwrap_or_default();
        let children = children.iter().map(|key| Ok(entry(key, &*known(key)?))).collect::<Result<_>>()?;
        Ok(Family { entry: entry(&of.key, &parent), children })
    }

    async fn tags(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Tags> {
        let object = self.stored(key, version, Op::Tags)?;
        Ok(object.tags.clone())
    }

    fn copy_origin(&self, key: &ObjectKey, version: Option<&VersionId>) -> Option<CopyOrigin> {
        Some(CopyOrigin {
            endpoint: "memory".into(),
            container: self.settings.name.clone(),
            key: key.clone(),
            version: version.cloned(),
            identity: String::new(),
        })
    }
}

#[async_trait]
impl Sink for MemoryStore {
    fn sink_capability(&self) -> SinkCapability {
        SinkCapability {
            max_put: self.settings.max_put,
            max_object: u64::MAX,
            stream_window: 0,
            multipart: self.settings.multipart,
            conditions: if self.settings.conditions { Conditions::ALL } else { Conditions::NONE },
            verifies: self.settings.checksums,
            keeps: self.settings.keeps,
            checksums: self.own_algorithm(),
            tags: true,
            tags_follow: false,
            max_copy: Some(self.settings.max_copy).filter(|n| *n > 0),
        }
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Put)?;
        let body = gather(body).await?;
        let mut state = self.lock();
        self.check(&state, key, &options.condition, Op::Put)?;
        self.check_sum(key, &body, options.checksum.as_ref(), Op::Put)?;
        let checksum = self.own_sum(&body);
        let etag = self.publish(&mut state, key, body, Vec::new(), options);
        Ok(Written { etag: Some(etag), version: None, opaque_etag: false, checksum })
    }

    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        let mut state = self.lock();
        let there = state.objects.get(key).map(|object| object.etag.clone());
        if there.is_some() && there == child.etag {
            return Ok(Placed::There);
        }
        // What has children of its own is there only when they are.
        let links = |o: &StoredObject| self.settings.links && self.settings.children.is_none_or(|tell| tell(&o.body).is_empty());
        let elsewhere = state.objects.values().find(|o| Some(&o.etag) == child.etag.as_ref() && links(o)).map(Arc::clone);
        match (elsewhere, there) {
            (Some(object), None) => {
                let options = PutOptions { attributes: object.attributes.clone(), ..PutOptions::default() };
                self.publish(&mut state, key, object.body.clone(), Vec::new(), &options);
                Ok(Placed::There)
            }
            (_, there) => Ok(there.map_or(Placed::Absent, Placed::Other)),
        }
    }

    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        let mut state = self.lock();
        self.check(&state, key, condition, Op::Delete)?;
        if let (Some(removed), Some(watcher)) = (self.take_away(&mut state, key), &state.watcher) {
            (watcher.0)(key, Change::Removed(&removed));
        }
        Ok(())
    }

    async fn create_upload(&self, key: &ObjectKey, options: &PutOptions) -> Result<UploadId> {
        must_carry(self, key, Op::CreateUpload)?;
        let mut state = self.lock();
        state.last += 1;
        let id = UploadId::new(format!("upload-{}", state.last));
        let begun = Timestamp::from_millisecond(1_700_000_000_000).unwrap_or(Timestamp::MAX);
        state.uploads.insert(id.clone(), Upload { key: key.clone(), parts: BTreeMap::new(), options: options.clone(), begun });
        Ok(id)
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Body, checksum: Option<&Checksum>) -> Result<Part> {
        let body = gather(body).await?;
        self.check_sum(key, &body, checksum, Op::PutPart)?;
        self.store_part(key, upload, number, body, Op::PutPart)
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<Part>> {
        let state = self.lock();
        let upload = state.uploads.get(upload).filter(|u| u.key == *key);
        let upload = upload.ok_or_else(|| Error::new(ErrorKind::NotFound, Op::ListParts, self.target(key)))?;
        Ok(upload.parts.values().map(|(_, part)| part.clone()).collect())
    }

    async fn list_uploads(&self, prefix: &str, _: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        let state = self.lock();
        let uploads = state.uploads.iter().filter(|(_, u)| u.key.starts_with(prefix));
        Ok((uploads.map(|(id, u)| OpenUpload { key: u.key.clone(), id: id.clone(), begun: Some(u.begun) }).collect(), None))
    }

    async fn complete_upload(&self, key: &ObjectKey, upload: &UploadId, parts: &[Part], options: &PutOptions) -> Result<Written> {
        let mut state = self.lock();
        let held = state.uploads.get(upload).filter(|u| u.key == *key);
        let held = held.ok_or_else(|| Error::new(ErrorKind::NotFound, Op::CompleteUpload, self.target(key)))?;
        let mut body = BytesMut::new();
        let mut sizes = Vec::new();
        for part in parts {
            match held.parts.get(&part.number) {
                Some((bytes, stored)) if stored.etag == part.etag => {
                    body.extend_from_slice(bytes);
                    sizes.push(bytes.len() as u64);
                }
                _ => return Err(Error::new(ErrorKind::Conflict, Op::CompleteUpload, format!("part {}", part.number))),
            }
        }
        let body = body.freeze();
        self.check(&state, key, &options.condition, Op::CompleteUpload)?;
        self.check_sum(key, &body, options.checksum.as_ref(), Op::CompleteUpload)?;
        let created = state.uploads.remove(upload).map(|u| u.options).unwrap_or_default();
        let checksum = self.own_sum(&body);
        let etag = self.publish(&mut state, key, body, sizes, &created);
        Ok(Written { etag: Some(etag), version: None, opaque_etag: false, checksum })
    }

    async fn abort_upload(&self, _: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.lock().uploads.remove(upload);
        Ok(())
    }

    fn can_copy(&self, origin: &CopyOrigin) -> bool {
        self.neighbour.as_ref().is_some_and(|n| origin.endpoint == "memory" && origin.container == n.settings.name)
    }

    async fn copy(&self, origin: &CopyOrigin, source: &ETag, key: &ObjectKey, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Copy)?;
        let body = self.origin(origin, source, Op::Copy)?.body.clone();
        let mut state = self.lock();
        self.check(&state, key, &options.condition, Op::Copy)?;
        let checksum = self.own_sum(&body);
        let etag = self.publish(&mut state, key, body, Vec::new(), options);
        Ok(Written { etag: Some(etag), version: None, opaque_etag: false, checksum })
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
        let body = self.origin(origin, source, Op::CopyPart)?.body.clone();
        if range.end > body.len() as u64 || range.start >= range.end {
            return Err(Error::new(ErrorKind::Corrupt, Op::CopyPart, format!("{} bytes {range:?}", self.target(key))));
        }
        self.store_part(key, upload, number, body.slice(range.start as usize..range.end as usize), Op::CopyPart)
    }
}
