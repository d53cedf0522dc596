//! Any `object_store::ObjectStore` as source and sink, and local directories by the same crate's `LocalFileSystem`.
//!
//! Its paths cannot hold every key (`a//b`, `/lead`, `dir/`, `..`, control characters): such keys are refused by name,
//! never changed.

mod local;

pub use local::LocalDirectory;

use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    attribute::{Attribute, AttributeSet},
    checksum::Algorithm,
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest, must_carry},
    object::{Attributes, ETag, Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    sink::{Body, BodyCheck, Condition, Conditions, PutOptions, Sink, SinkCapability, Written},
    source::{Read, ReadOptions, ReadRange, Source, SourceCapability},
    walk::{Folders, Item, Walker},
};
use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    Attribute as Named, AttributeValue, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutPayload,
    path::Path,
};
use std::{borrow::Cow, fmt, sync::Arc};

/// The least that S3 takes as a part is 5 MiB.
const CHUNK: usize = 8 << 20;
/// Stores take 10,000 parts.
const PARTS: u64 = 9_000;
/// Entries of a page.
const PAGE: u32 = 1000;
/// Checksums that are verified here, before the store is told to make the object visible.
const VERIFIES: &[Algorithm] = &[Algorithm::Md5, Algorithm::Crc64Nvme, Algorithm::Crc32c, Algorithm::Sha256];

/// What the crate has names for.
const KEEPS: AttributeSet = AttributeSet::CONTENT.without(Attribute::Expires);

/// Any `object_store::ObjectStore` as source and sink.
///
/// - Listings are walked folder by folder, in byte order; memory for the names of the folders on the way.
/// - Reads are pinned by the etag of each answer. Checksums given to a write are verified before it becomes visible.
/// - Writes are not conditional: the engine looks at the destination afterwards where that matters.
/// - `Expires`, website redirects and metadata that is no text are noted as not carried.
#[derive(Clone)]
pub struct ObjectStoreAdapter {
    store: Arc<dyn ObjectStore>,
    name: Arc<str>,
    walker: Arc<Walker>,
    /// Bytes that are handed to the store at once when a body is streamed.
    chunk: usize,
}

impl fmt::Debug for ObjectStoreAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStoreAdapter({})", self.name)
    }
}

impl ObjectStoreAdapter {
    /// Wraps a store; `name` is for reports and errors. The store should not retry by itself: the engine does.
    pub fn new(store: Arc<dyn ObjectStore>, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let folders = StoreFolders { store: Arc::clone(&store), name: Arc::clone(&name) };
        Self::with_folders(store, name, Arc::new(folders), CHUNK)
    }

    fn with_folders(store: Arc<dyn ObjectStore>, name: Arc<str>, folders: Arc<dyn Folders>, chunk: usize) -> Self {
        Self { store, name, walker: Arc::new(Walker::new(folders)), chunk }
    }

    fn target(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.name)
    }

    /// The path of a key. `Unrepresentable` for a key that a path cannot hold byte by byte.
    fn path(&self, key: &ObjectKey, op: Op) -> Result<Path> {
        exact_path(key.as_str()).ok_or_else(|| {
            Error::new(ErrorKind::Unrepresentable, op, self.target(key))
                .with_source("a path cannot hold this key (empty, `.` or `..` segments, control characters, a slash at an end)")
        })
    }

    /// Writes a body under a path, checked; nothing is visible before all of it has the checksum.
    async fn write(&self, key: &ObjectKey, path: &Path, body: Body, options: &PutOptions) -> Result<Written> {
        let failed = |e| classify(Op::Put, self.target(key), e);
        let target = self.target(key);
        let mut check = BodyCheck::new(body.len(), options.checksum.as_ref());
        let attributes = to_attributes(&options.attributes);
        let written = match body {
            Body::Bytes(chunks) => {
                for chunk in &chunks {
                    check.update(chunk);
                }
                check.finish(&target)?;
                let put = object_store::PutOptions { attributes, ..object_store::PutOptions::default() };
                self.store.put_opts(path, PutPayload::from_iter(chunks), put).await.map_err(failed)?
            }
            Body::Stream { len, mut stream } => {
                let begin = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
                let mut upload = self.store.put_multipart_opts(path, begin).await.map_err(failed)?;
                let chunk_size = self.chunk.max((len / PARTS) as usize);
                let filled = async {
                    let (mut held, mut chunks) = (0, Vec::new());
                    while let Some(chunk) = stream.next().await {
                        let chunk: Bytes = chunk?;
                        held += chunk.len();
                        check.update(&chunk);
                        chunks.push(chunk);
                        if held >= chunk_size {
                            held = 0;
                            upload.put_part(std::mem::take(&mut chunks).into_iter().collect()).await.map_err(failed)?;
                        }
                    }
                    check.finish(&target)?;
                    if held > 0 || len == 0 {
                        upload.put_part(chunks.into_iter().collect()).await.map_err(failed)?;
                    }
                    Ok(())
                };
                if let Err(error) = filled.await {
                    // What is left of it is invisible; the error that matters is the first one.
                    let _ = upload.abort().await;
                    return Err(error);
                }
                upload.complete().await.map_err(failed)?
            }
        };
        Ok(Written {
            etag: written.e_tag.as_deref().map(ETag::new),
            version: written.version.map(VersionId::new),
            opaque_etag: true,
            checksum: None,
        })
    }
}

/// The path that is this key, if there is one.
fn exact_path(key: &str) -> Option<Path> {
    Path::parse(key).ok().filter(|path| !key.is_empty() && path.as_ref() == key)
}

#[async_trait]
impl Index for ObjectStoreAdapter {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_capability(&self) -> IndexCapability {
        IndexCapability { page_max: PAGE, ..IndexCapability::like_s3(EtagKind::Opaque) }
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        key.as_str().len() <= self.index_capability().max_key && exact_path(key.as_str()).is_some()
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.walker.page(request, PAGE as usize).await
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        let path = self.path(key, Op::Head)?;
        let get = GetOptions { head: true, version: version.map(|v| v.as_str().to_owned()), ..GetOptions::default() };
        let found = self.store.get_opts(&path, get).await.map_err(|e| classify(Op::Head, self.target(key), e))?;
        Ok(info(key, &found.meta, &found.attributes))
    }
}

#[async_trait]
impl Source for ObjectStoreAdapter {
    fn source_capability(&self) -> SourceCapability {
        SourceCapability {
            conditional_read: false,
            ranged: true,
            first_part: false,
            checksums: &[],
            gives: KEEPS,
            tags: false,
            children: false,
        }
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let path = self.path(key, Op::Read)?;
        let mut get = GetOptions { version: options.version.as_ref().map(|v| v.as_str().to_owned()), ..GetOptions::default() };
        if let ReadRange::Bytes(range) = &options.range {
            get.range = Some(GetRange::Bounded(range.clone()));
        }
        let result = match self.store.get_opts(&path, get).await {
            Ok(result) => result,
            Err(error) => {
                let error = classify(Op::Read, self.target(key), error);
                // A range past the end has no kind of its own there.
                if let ReadRange::Bytes(range) = &options.range
                    && error.kind() == ErrorKind::Unavailable
                    && self.head(key, None).await.is_ok_and(|now| now.entry.size < Some(range.end))
                {
                    return Err(Error::new(ErrorKind::Corrupt, Op::Read, self.target(key)).with_source("the object is shorter than that"));
                }
                return Err(error);
            }
        };
        let info = info(key, &result.meta, &result.attributes);
        if options.if_match.is_some() && options.if_match != info.entry.etag {
            return Err(Error::new(ErrorKind::Precondition, Op::Read, self.target(key)));
        }
        let range = result.range.clone();
        let asked = match &options.range {
            ReadRange::Bytes(range) => range.clone(),
            ReadRange::Full | ReadRange::FirstPart => 0..result.meta.size,
        };
        if range != asked {
            let error = Error::new(ErrorKind::Corrupt, Op::Read, self.target(key));
            return Err(error.with_source(format!("bytes {range:?} for {asked:?}")));
        }
        let target = self.target(key);
        let body = result.into_stream().map_err(move |e| classify(Op::Read, target.clone(), e)).boxed();
        Ok(Read { info, range, body })
    }
}

#[async_trait]
impl Sink for ObjectStoreAdapter {
    fn sink_capability(&self) -> SinkCapability {
        SinkCapability {
            // 50 TB, the most that any store takes: chunks of 5.6 GB at most, one at a time.
            max_put: 50_000_000_000_000,
            max_object: 50_000_000_000_000,
            stream_window: self.chunk as u64,
            multipart: None,
            conditions: Conditions::NONE,
            verifies: VERIFIES,
            checksums: &[],
            keeps: KEEPS,
            tags: false,
            tags_follow: false,
            max_copy: None,
        }
    }

    fn not_carried(&self, attributes: &Attributes) -> Vec<String> {
        let binary = attributes.user.iter().filter(|(_, value)| std::str::from_utf8(value).is_err());
        let binary = binary.map(|(name, _)| format!("metadata {name}"));
        attributes.lost_in(KEEPS).into_iter().chain(binary).collect()
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Put)?;
        let path = self.path(key, Op::Put)?;
        self.write(key, &path, body, options).await
    }

    async fn delete(&self, key: &ObjectKey, _condition: &Condition) -> Result<()> {
        let path = self.path(key, Op::Delete)?;
        match self.store.delete(&path).await.map_err(|e| classify(Op::Delete, self.target(key), e)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

fn entry(key: ObjectKey, meta: &ObjectMeta) -> Entry {
    Entry {
        key,
        size: Some(meta.size),
        etag: meta.e_tag.as_deref().map(ETag::new),
        modified: jiff::Timestamp::from_microsecond(meta.last_modified.timestamp_micros()).ok(),
        version: meta.version.clone().map(VersionId::new),
        storage_class: None,
    }
}

fn info(key: &ObjectKey, meta: &ObjectMeta, attributes: &object_store::Attributes) -> ObjectInfo {
    let mut info = ObjectInfo::of(entry(key.clone(), meta));
    let a = &mut info.attributes;
    for (name, value) in attributes {
        let text = || Some(value.as_ref().to_owned());
        match name {
            Named::ContentDisposition => a.content_disposition = text(),
            Named::ContentEncoding => a.content_encoding = text(),
            Named::ContentLanguage => a.content_language = text(),
            Named::ContentType => a.content_type = text(),
            Named::CacheControl => a.cache_control = text(),
            Named::Metadata(name) => {
                a.user.insert(name.to_string(), Bytes::copy_from_slice(value.as_ref().as_bytes()));
            }
            _ => {}
        }
    }
    info.opaque_etag = true;
    info
}

fn to_attributes(attributes: &Attributes) -> object_store::Attributes {
    let a = attributes;
    let mut all = object_store::Attributes::new();
    let plain = [
        (Named::ContentDisposition, &a.content_disposition),
        (Named::ContentEncoding, &a.content_encoding),
        (Named::ContentLanguage, &a.content_language),
        (Named::ContentType, &a.content_type),
        (Named::CacheControl, &a.cache_control),
    ];
    for (name, value) in plain {
        if let Some(value) = value {
            all.insert(name, AttributeValue::from(value.clone()));
        }
    }
    for (name, value) in &a.user {
        if let Ok(text) = std::str::from_utf8(value) {
            all.insert(Named::Metadata(Cow::Owned(name.clone())), AttributeValue::from(text.to_owned()));
        }
    }
    all
}

/// Errors of the crate to errors of the family: by kind, and by the operating system's error where there is one.
fn classify(op: Op, target: String, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let write = matches!(op, Op::Put | Op::Delete);
    let kind = match &error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => ErrorKind::Precondition,
        E::InvalidPath { .. } => ErrorKind::Unrepresentable,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::PermissionDenied { .. } => ErrorKind::Denied,
        E::Unauthenticated { .. } => ErrorKind::CredentialsExpired,
        E::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
        E::JoinError { .. } => ErrorKind::Internal,
        _ => match io_error(&error) {
            Some(io) => io_kind(io),
            None => ErrorKind::Unavailable,
        },
    };
    Error::new(kind, op, target).with_maybe_applied(write && kind == ErrorKind::Unavailable).with_source(error)
}

fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        at = error.source();
    }
    None
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
        // A file where a folder is needed, or the other way round: `a` beside `a/b`.
        Io::NotADirectory | Io::IsADirectory | Io::DirectoryNotEmpty | Io::InvalidFilename | Io::InvalidInput => ErrorKind::Unrepresentable,
        _ => ErrorKind::Unavailable,
    }
}

/// Folders of any store, by listings with a delimiter.
#[derive(Debug)]
struct StoreFolders {
    store: Arc<dyn ObjectStore>,
    name: Arc<str>,
}

#[async_trait]
impl Folders for StoreFolders {
    async fn items(&self, folder: &str) -> Result<Vec<Item>> {
        let prefix = match folder.strip_suffix('/') {
            None => None,
            Some(path) => match exact_path(path) {
                // No key of this store can lie there; without a path it would list its root.
                None => return Ok(Vec::new()),
                path => path,
            },
        };
        let failed = |e| classify(Op::List, self.name.to_string(), e);
        let listed = self.store.list_with_delimiter(prefix.as_ref()).await.map_err(failed)?;
        let folders = listed.common_prefixes.iter().filter_map(|p| p.filename()).map(|name| Item::Folder(name.to_owned()));
        let objects = listed.objects.iter().map(|meta| {
            let key = ObjectKey::new(meta.location.as_ref());
            let name = key.as_str().strip_prefix(folder).unwrap_or(key.as_str()).to_owned();
            Item::Object(name, Some(entry(key, meta)))
        });
        Ok(folders.chain(objects).collect())
    }

    async fn entries(&self, _folder: &str, items: Vec<Item>) -> Result<Vec<Entry>> {
        Ok(items.into_iter().filter_map(|item| if let Item::Object(_, entry) = item { entry } else { None }).collect())
    }
}
