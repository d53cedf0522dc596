//! Any operator of Apache OpenDAL as source, and, where its service writes all or nothing, as sink.
//!
//! OpenDAL changes paths on their way (white space, slashes), has no page tokens and no part numbers: what its paths cannot hold byte by
//! byte is refused by name, and folders are walked in byte order.

mod transport;

pub use transport::over_http;

use ::opendal::{
    Entry as Found, ErrorKind as Kind, Metadata, Operator,
    options::{ReaderOptions, StatOptions, WriteOptions},
    raw::normalize_path,
};
use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    attribute::{Attribute, AttributeSet},
    checksum::Algorithm,
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest, must_carry},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    sink::{Body, BodyCheck, Condition, Conditions, PutOptions, Sink, SinkCapability, Written},
    source::{ByteStream, Read, ReadOptions, ReadRange, Source, SourceCapability, checked_at_the_end},
    walk::{Folders, Item, Walker},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{collections::HashSet, fmt, path::Path, sync::Arc};

/// Entries of a page.
const PAGE: u32 = 1000;
/// Looks at once, where a listing tells too little.
const LOOKS: usize = 16;
/// The least that S3 takes as a part is 5 MiB.
const CHUNK: usize = 8 << 20;
/// Stores take 10,000 parts.
const PARTS: u64 = 9_000;
/// Verified here, before the service is told to make the object visible.
const VERIFIES: &[Algorithm] = &[Algorithm::Md5, Algorithm::Crc64Nvme, Algorithm::Crc64Ecma, Algorithm::Crc32c, Algorithm::Sha256];
/// Services whose objects are there as a whole or not at all. Others (file systems, WebDAV, FTP, `azdls`) show what is half written.
const WHOLE: [&str; 8] = ["s3", "gcs", "azblob", "oss", "cos", "obs", "b2", "memory"];

/// Any operator of OpenDAL as a source.
///
/// - Listings are walked folder by folder, in byte order; memory for the names of the folders on the way. Objects whose keys end with a
///   slash look like folders, and are not listed.
/// - Reads are pinned by the etag of the service, or by time and size where it has none: looked at before, and again before the last
///   bytes are passed on. A service that tells neither is refused.
/// - The operator should have no `RetryLayer`: the engine retries.
#[derive(Clone)]
pub struct OpendalSource {
    operator: Operator,
    name: Arc<str>,
    folders: Arc<OperatorFolders>,
    walker: Arc<Walker>,
}

/// An operator of OpenDAL as a sink, and as the source that it is, too.
///
/// Bodies are verified before the object becomes visible. Writes are conditional as far as the service can: the engine looks at the
/// destination afterwards where that matters.
#[derive(Clone)]
pub struct OpendalSink(OpendalSource);

impl fmt::Debug for OpendalSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpendalSource({})", self.name)
    }
}

impl fmt::Debug for OpendalSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpendalSink({})", self.0.name)
    }
}

impl OpendalSource {
    /// Wraps an operator. `Unsupported`, naming the capability, where the service cannot list, look or read.
    pub fn new(operator: Operator) -> Result<Self> {
        let info = operator.info();
        let name: Arc<str> = format!("{}://{}{}", info.scheme(), info.name(), info.root()).into();
        let can = info.capability();
        for (has, what) in [(can.list, "list"), (can.stat, "stat"), (can.read, "read")] {
            if !has {
                return Err(unsupported(&name, format!("service `{}` has no `{what}`", info.scheme())));
            }
        }
        let folders = Arc::new(OperatorFolders { operator: operator.clone(), name: Arc::clone(&name) });
        let walker = Arc::new(Walker::new(Arc::clone(&folders) as _));
        Ok(Self { operator, name, folders, walker })
    }

    fn target(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.name)
    }

    fn failed(&self, op: Op, key: &ObjectKey) -> impl Fn(::opendal::Error) -> Error + Send + 'static {
        let target = self.target(key);
        move |error| classify(op, target.clone(), error)
    }

    async fn stat(&self, key: &ObjectKey, version: Option<&VersionId>, op: Op) -> Result<ObjectInfo> {
        let options = StatOptions { version: version.map(|v| v.as_str().to_owned()), ..StatOptions::default() };
        let found = match self.operator.stat_options(key.as_str(), options).await.map_err(self.failed(op, key)) {
            Err(error) if error.kind() == ErrorKind::NotFound && version.is_none() && self.folders.lists(key).await? => {
                let why = "it is listed, and not found by its key: OpenDAL has changed its name (white space at an end)";
                return Err(Error::new(ErrorKind::Unrepresentable, op, self.target(key)).with_source(why));
            }
            found => found?,
        };
        if found.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, op, self.target(key)).with_source("a folder has this name"));
        }
        info(key, &found).ok_or_else(|| Error::new(ErrorKind::Unsupported, op, self.target(key)).with_source(NO_VERSION))
    }
}

const NO_VERSION: &str = "the service tells neither etag nor time: a change could not be seen";

impl OpendalSink {
    /// Wraps an operator. `Unsupported` where the service cannot write, or shows objects that are half written.
    pub fn new(operator: Operator) -> Result<Self> {
        let scheme = operator.info().scheme();
        let source = OpendalSource::new(operator)?;
        let can = source.operator.info().capability();
        if !can.write || !can.delete {
            return Err(unsupported(&source.name, format!("service `{scheme}` cannot write or delete")));
        }
        if !WHOLE.contains(&scheme) {
            let why = format!("service `{scheme}` may show what is half written; for a directory there is dth_s3::LocalDirectory");
            return Err(unsupported(&source.name, why));
        }
        Ok(Self(source))
    }
}

fn unsupported(name: &str, why: String) -> Error {
    Error::new(ErrorKind::Unsupported, Op::Configure, name).with_source(why)
}

/// Whether a path holds this key byte by byte.
fn is_exact(key: &str) -> bool {
    let plain = |segment: &str| !matches!(segment, "." | "..") && !segment.contains(['\0', '\\']);
    !key.is_empty() && !key.ends_with('/') && normalize_path(key) == key && key.split('/').all(plain)
}

#[async_trait]
impl Index for OpendalSource {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_capability(&self) -> IndexCapability {
        IndexCapability { page_max: PAGE, ..IndexCapability::like_s3(EtagKind::Opaque) }
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        key.as_str().len() <= self.index_capability().max_key && is_exact(key.as_str())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.walker.page(request, PAGE as usize).await
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        must_carry(self, key, Op::Head)?;
        self.stat(key, version, Op::Head).await
    }
}

#[async_trait]
impl Source for OpendalSource {
    fn source_capability(&self) -> SourceCapability {
        let conditional_read = self.operator.info().capability().read_with_if_match;
        SourceCapability {
            conditional_read,
            ranged: true,
            first_part: false,
            checksums: &[],
            gives: self.attributes(),
            tags: false,
            children: false,
        }
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        must_carry(self, key, Op::Read)?;
        let info = self.stat(key, options.version.as_ref(), Op::Read).await?;
        let size = info.entry.size.unwrap_or(0);
        if options.if_match.is_some() && options.if_match != info.entry.etag {
            return Err(Error::new(ErrorKind::Precondition, Op::Read, self.target(key)));
        }
        let range = match &options.range {
            ReadRange::Bytes(range) => range.clone(),
            ReadRange::Full | ReadRange::FirstPart => 0..size,
        };
        if range.end > size {
            let why = format!("bytes {range:?} of an object of {size}");
            return Err(Error::new(ErrorKind::Corrupt, Op::Read, self.target(key)).with_source(why));
        }
        let can = self.operator.info().capability();
        let reader = ReaderOptions {
            version: options.version.as_ref().map(|v| v.as_str().to_owned()),
            if_match: self.real_etag(&info).filter(|_| can.read_with_if_match),
            ..ReaderOptions::default()
        };
        let pinned = reader.if_match.is_some() || options.version.is_some();
        let body: ByteStream = if range.is_empty() {
            stream::empty().boxed()
        } else {
            let reader = self.operator.reader_options(key.as_str(), reader).await.map_err(self.failed(Op::Read, key))?;
            let bytes = reader.into_bytes_stream(range.clone()).await.map_err(self.failed(Op::Read, key))?;
            let target = self.target(key);
            bytes.map_err(move |error| from_io(Op::Read, target.clone(), error)).boxed()
        };
        let body = exact(body, range.end - range.start, self.target(key));
        if pinned {
            return Ok(Read { info, range, body });
        }
        let (source, key, etag) = (self.clone(), key.clone(), info.entry.etag.clone());
        let body = checked_at_the_end(body, move || async move {
            if source.stat(&key, None, Op::Read).await?.entry.etag == etag {
                return Ok(());
            }
            let error = Error::new(ErrorKind::Precondition, Op::Read, source.target(&key));
            Err(error.with_source("it was overwritten while it was read"))
        });
        Ok(Read { info, range, body })
    }
}

impl OpendalSource {
    /// What the service writes, and reads back.
    fn attributes(&self) -> AttributeSet {
        let can = self.operator.info().capability();
        AttributeSet::NONE
            .with(Attribute::ContentType, can.write_with_content_type)
            .with(Attribute::ContentEncoding, can.write_with_content_encoding)
            .with(Attribute::ContentDisposition, can.write_with_content_disposition)
            .with(Attribute::CacheControl, can.write_with_cache_control)
            .with(Attribute::Metadata, can.write_with_user_metadata)
    }

    /// The etag as the service gave it, where it gave one.
    fn real_etag(&self, info: &ObjectInfo) -> Option<String> {
        info.entry.etag.as_ref().filter(|e| !e.as_str().starts_with(MADE)).map(|e| format!("\"{e}\""))
    }
}

/// The body, which is an error where it has not exactly so many bytes.
fn exact(body: ByteStream, len: u64, target: String) -> ByteStream {
    stream::try_unfold((body, 0u64), move |(mut body, at)| {
        let target = target.clone();
        async move {
            let wrong =
                |at: u64| Error::new(ErrorKind::Unavailable, Op::Read, target.clone()).with_source(format!("{at} bytes, not {len}"));
            match body.try_next().await? {
                Some(chunk) if at + chunk.len() as u64 > len => Err(wrong(at + chunk.len() as u64)),
                Some(chunk) => {
                    let at = at + chunk.len() as u64;
                    Ok(Some((chunk, (body, at))))
                }
                None if at == len => Ok(None),
                None => Err(wrong(at)),
            }
        }
    })
    .boxed()
}

#[async_trait]
impl Index for OpendalSink {
    fn name(&self) -> String {
        self.0.name()
    }

    fn index_capability(&self) -> IndexCapability {
        self.0.index_capability()
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        self.0.carries(key)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.0.list(request).await
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.0.head(key, version).await
    }
}

#[async_trait]
impl Sink for OpendalSink {
    fn sink_capability(&self) -> SinkCapability {
        let can = self.0.operator.info().capability();
        // Without parts the service takes one request.
        let most = if can.write_can_multi { 50_000_000_000_000 } else { can.write_total_max_size.map_or(5 << 30, |n| n as u64) };
        SinkCapability {
            max_put: most,
            max_object: most,
            stream_window: CHUNK as u64,
            multipart: None,
            conditions: Conditions { absent: can.write_with_if_not_exists, unchanged: false, delete: false },
            verifies: VERIFIES,
            checksums: &[],
            keeps: self.0.attributes(),
            tags: false,
            tags_follow: false,
            max_copy: None,
        }
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        must_carry(self, key, Op::Put)?;
        let can = self.0.operator.info().capability();
        let failed = self.0.failed(Op::Put, key);
        let a = &options.attributes;
        let kept = |value: &Option<String>, has: bool| value.clone().filter(|_| has);
        // What is no ASCII, services drop or choke on.
        let ascii = a.user.iter().filter(|(_, value)| value.is_ascii());
        let user = ascii.filter_map(|(name, value)| Some((name.clone(), std::str::from_utf8(value).ok()?.to_owned()))).collect();
        let len = body.len();
        let chunk = CHUNK.max((len / PARTS) as usize);
        let write = WriteOptions {
            content_type: kept(&a.content_type, can.write_with_content_type),
            content_encoding: kept(&a.content_encoding, can.write_with_content_encoding),
            content_disposition: kept(&a.content_disposition, can.write_with_content_disposition),
            cache_control: kept(&a.cache_control, can.write_with_cache_control),
            user_metadata: (can.write_with_user_metadata && !a.user.is_empty()).then_some(user),
            // Some stores want parts of one size.
            chunk: can.write_can_multi.then_some(chunk),
            if_not_exists: options.condition == Condition::Absent && can.write_with_if_not_exists,
            ..WriteOptions::default()
        };
        let mut body = match body {
            Body::Bytes(chunks) => stream::iter(chunks.into_iter().map(Ok)).boxed(),
            Body::Stream { stream, .. } => stream,
        };
        let mut writer = self.0.operator.writer_options(key.as_str(), write).await.map_err(&failed)?;
        let mut check = BodyCheck::new(len, options.checksum.as_ref());
        let filled = async {
            let (mut held, mut size) = (Vec::<Bytes>::new(), 0);
            while let Some(bytes) = body.try_next().await? {
                size += bytes.len();
                check.update(&bytes);
                held.push(bytes);
                // A service without parts takes everything at once.
                if size >= chunk && can.write_can_multi {
                    size = 0;
                    writer.write(std::mem::take(&mut held)).await.map_err(&failed)?;
                }
            }
            check.finish(&self.0.target(key))?;
            writer.write(held).await.map_err(&failed)
        };
        if let Err(error) = filled.await {
            // What is left of it is invisible; the error that matters is the first one.
            let _ = writer.abort().await;
            return Err(error);
        }
        let written = writer.close().await.map_err(&failed)?;
        let told = info(key, &written).filter(|_| written.etag().is_some());
        let told = match told {
            Some(told) => told,
            // What a service without etags stored, a look tells.
            None => self.0.stat(key, None, Op::Put).await.map_err(|e| e.with_maybe_applied(true))?,
        };
        Ok(Written { etag: told.entry.etag, version: told.entry.version, opaque_etag: true, checksum: None })
    }

    async fn delete(&self, key: &ObjectKey, _condition: &Condition) -> Result<()> {
        must_carry(self, key, Op::Delete)?;
        match self.0.operator.delete(key.as_str()).await.map_err(self.0.failed(Op::Delete, key)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

#[derive(Debug)]
struct OperatorFolders {
    operator: Operator,
    name: Arc<str>,
}

impl OperatorFolders {
    /// A folder that is not found holds nothing, unless it is the root, or its parent shows it: a bucket that is not there is no empty one.
    async fn missing(&self, folder: &str, error: Error) -> Result<Vec<Item>> {
        let Some(bare) = folder.strip_suffix('/') else {
            return Err(Error::new(ErrorKind::Invalid, Op::List, &*self.name).with_source(error));
        };
        if WHOLE.contains(&self.operator.info().scheme()) {
            // It has no folders but those that keys make.
            return Ok(Vec::new());
        }
        let (parent, name) = bare.rfind('/').map_or(("", bare), |at| bare.split_at(at + 1));
        let shown = self.items(parent).await?.iter().any(|item| matches!(item, Item::Folder(inner) if inner == name));
        if shown {
            Err(Error::new(ErrorKind::Unrepresentable, Op::List, format!("{}/{folder}", self.name)).with_source(error))
        } else {
            Ok(Vec::new())
        }
    }

    /// Whether the folder of a key shows an object of this name.
    async fn lists(&self, key: &ObjectKey) -> Result<bool> {
        let (folder, name) = key.as_str().rsplit_once('/').map_or(("", key.as_str()), |(folder, name)| (folder, name));
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(self.items(&folder).await?.iter().any(|item| matches!(item, Item::Object(found, _) if found == name)))
    }
}

#[async_trait]
impl Folders for OperatorFolders {
    async fn items(&self, folder: &str) -> Result<Vec<Item>> {
        let failed = |error| classify(Op::List, format!("{}/{folder}", self.name), error);
        let changed = |path: &str| {
            let why = "OpenDAL has changed its name (white space at an end, or two slashes)";
            Error::new(ErrorKind::Unrepresentable, Op::List, format!("{}/{path}", self.name)).with_source(why)
        };
        if !folder.is_empty() && normalize_path(folder) != folder {
            return Err(changed(folder));
        }
        let path = if folder.is_empty() { "/" } else { folder };
        let mut lister = match self.operator.lister(path).await.map_err(failed) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.missing(folder, error).await,
            lister => lister?,
        };
        let (mut items, mut names) = (Vec::new(), HashSet::new());
        loop {
            let found: Found = match lister.try_next().await.map_err(failed) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::NotFound && items.is_empty() => return self.missing(folder, error).await,
                Err(error) => return Err(error),
            };
            // The folder itself is among what it holds, at some services.
            if found.path() == folder || folder.is_empty() && found.path() == "/" {
                continue;
            }
            let Some(name) = found.path().strip_prefix(folder).filter(|name| !name.starts_with('/')) else {
                return Err(changed(found.path()));
            };
            if let Some(inner) = name.strip_suffix('/') {
                items.push(Item::Folder(inner.to_owned()));
                continue;
            }
            let key = ObjectKey::new(format!("{folder}{name}"));
            // Listings of some services tell nothing but names.
            let known = found.metadata().is_file() && (found.metadata().etag().is_some() || found.metadata().last_modified().is_some());
            let entry = if known { info(&key, found.metadata()).map(|info| info.entry) } else { None };
            if !names.insert(name.to_owned()) {
                let why = "two objects are listed under this name: OpenDAL has changed one of them (white space at an end)";
                return Err(Error::new(ErrorKind::Unrepresentable, Op::List, format!("{}/{key}", self.name)).with_source(why));
            }
            items.push(Item::Object(name.to_owned(), entry));
        }
        // Some services list nothing where there is nothing to list; of its root, none is asked.
        let info = self.operator.info();
        if items.is_empty() && folder.is_empty() && info.scheme() == "fs" && !Path::new(&info.root()).is_dir() {
            return self.missing(folder, Error::new(ErrorKind::NotFound, Op::List, info.root())).await;
        }
        if items.is_empty()
            && let Err(error) = self.operator.stat(path).await.map_err(failed)
        {
            return if error.kind() == ErrorKind::NotFound { self.missing(folder, error).await } else { Err(error) };
        }
        Ok(items)
    }

    async fn entries(&self, folder: &str, items: Vec<Item>) -> Result<Vec<Entry>> {
        let look = |item: Item| async move {
            let Item::Object(name, entry) = item else { return Ok(None) };
            if let Some(entry) = entry {
                return Ok(Some(entry));
            }
            let key = ObjectKey::new(format!("{folder}{name}"));
            let target = format!("{}/{key}", self.name);
            match self.operator.stat(key.as_str()).await.map_err(|e| classify(Op::Head, target.clone(), e)) {
                // Whoever reads it is told.
                Err(error) if error.kind() == ErrorKind::NotFound && self.lists(&key).await? => {
                    Ok(Some(Entry { size: None, ..Entry::new(key, 0, None) }))
                }
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
                Ok(found) => match info(&key, &found) {
                    Some(info) => Ok(Some(info.entry)),
                    None => Err(Error::new(ErrorKind::Unsupported, Op::Head, target).with_source(NO_VERSION)),
                },
            }
        };
        let found: Vec<Option<Entry>> = stream::iter(items).map(look).buffered(LOOKS).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// What an etag begins with that was made of time and size.
const MADE: &str = "at-";

/// `None` where nothing tells one version from the next.
fn info(key: &ObjectKey, found: &Metadata) -> Option<ObjectInfo> {
    let modified = found.last_modified().and_then(|at| jiff::Timestamp::from_nanosecond(at.into_inner().as_nanosecond()).ok());
    let size = found.content_length();
    let etag = match (found.etag().filter(|e| !e.is_empty()), modified) {
        (Some(etag), _) => ETag::new(etag),
        (None, Some(at)) => ETag::new(&format!("{MADE}{}-{size}", at.as_nanosecond())),
        (None, None) => return None,
    };
    let mut info = ObjectInfo::of(Entry {
        key: key.clone(),
        size: Some(size),
        etag: Some(etag),
        modified,
        version: found.version().map(VersionId::new),
        storage_class: None,
    });
    let text = |value: Option<&str>| value.map(str::to_owned);
    let a = &mut info.attributes;
    a.content_type = text(found.content_type());
    a.content_encoding = text(found.content_encoding());
    a.content_disposition = text(found.content_disposition());
    a.cache_control = text(found.cache_control());
    a.user = found.user_metadata().into_iter().flatten().map(|(k, v)| (k.to_owned(), Bytes::copy_from_slice(v.as_bytes()))).collect();
    info.opaque_etag = true;
    Some(info)
}

/// Errors of OpenDAL to errors of the family.
fn classify(op: Op, target: String, error: ::opendal::Error) -> Error {
    let write = matches!(op, Op::Put | Op::Delete);
    let kind = match error.kind() {
        Kind::NotFound => ErrorKind::NotFound,
        Kind::PermissionDenied => ErrorKind::Denied,
        Kind::RateLimited => ErrorKind::Throttled,
        Kind::ConditionNotMatch | Kind::AlreadyExists => ErrorKind::Precondition,
        Kind::Conflict => ErrorKind::Conflict,
        Kind::Unsupported => ErrorKind::Unsupported,
        Kind::ConfigInvalid => ErrorKind::Invalid,
        Kind::RangeNotSatisfied => ErrorKind::Corrupt,
        Kind::IsADirectory | Kind::NotADirectory => ErrorKind::Unrepresentable,
        _ => ErrorKind::Unavailable,
    };
    let kind = match kind {
        // In the way of a look is a folder, and no object.
        ErrorKind::Unrepresentable if !write => ErrorKind::NotFound,
        kind => kind,
    };
    Error::new(kind, op, target).with_maybe_applied(write && kind == ErrorKind::Unavailable).with_source(error)
}

/// Streams give errors of the standard library, with one of OpenDAL inside.
fn from_io(op: Op, target: String, error: std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<::opendal::Error>()).map(::opendal::Error::kind);
    let kind = match (inner, error.kind()) {
        (Some(Kind::NotFound), _) | (None, std::io::ErrorKind::NotFound) => ErrorKind::NotFound,
        (Some(Kind::ConditionNotMatch), _) => ErrorKind::Precondition,
        (Some(Kind::PermissionDenied), _) | (None, std::io::ErrorKind::PermissionDenied) => ErrorKind::Denied,
        (Some(Kind::RateLimited), _) => ErrorKind::Throttled,
        (Some(Kind::RangeNotSatisfied), _) => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, op, target).with_source(error)
}
