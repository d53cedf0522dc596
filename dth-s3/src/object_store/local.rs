//! A local directory.

use super::{
    ObjectStoreAdapter, checked_at_the_end, classify, exact_path, io_kind,
    walk::{Folders, Item},
};
use async_trait::async_trait;
use dth_core::{
    env::{SharedEnv, SystemEnv, random_id},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest},
    object::{Attributes, ETag, Entry, ObjectInfo, ObjectKey, VersionId},
    sink::{Body, Condition, PutOptions, Sink, SinkCapability, Written},
    source::{Read, ReadOptions, Source, SourceCapability},
};
use object_store::{ObjectStore, ObjectStoreExt, RenameOptions, local::LocalFileSystem, path::Path};
use std::{
    ffi::OsString,
    fmt,
    fmt::Write as _,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{Mutex, OnceCell};

/// Where files are written before they are renamed; never listed.
const STAGING: &str = ".dth-staging";
/// Staged files older than this are of processes that died.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A local directory as source and sink; keys are paths below it.
///
/// **Writing**: into a temporary file in `.dth-staging`, synced, checksum verified, then renamed: a file is the old one or
/// the whole new one. Folders are made as needed; an empty one left behind by a deletion stays.
///
/// **Reading**: pinned by inode, time and size; a file that changes while it is read is read again, never mixed.
///
/// **Keys** that no file can have (`a//b`, `dir/`, `..`, control characters, a segment over 255 bytes, `name#1`) are skipped
/// with that reason; `a` beside `a/b` fails for the second to come; on a disk that ignores case, a key that would replace
/// one of other case fails.
///
/// **Symbolic links** to files and folders are followed, also out of the directory; a link that leads back to a folder on
/// its own way is passed over with a warning, a dangling one ends as `cancelled`. Pipes, sockets and devices are passed over
/// with a warning. A name that is no UTF-8 is listed with `\xNN` and skipped with a reason.
///
/// Attributes and tags cannot be stored and are noted as not carried; permissions, owners and times are not copied.
#[derive(Clone)]
pub struct LocalDirectory {
    inner: ObjectStoreAdapter,
    root: Arc<PathBuf>,
    env: SharedEnv,
    /// Held from the look to the rename on a disk that ignores case.
    ignores_case: Arc<OnceCell<Option<Mutex<()>>>>,
}

impl fmt::Debug for LocalDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalDirectory({})", self.root.display())
    }
}

impl LocalDirectory {
    /// A directory that is there. `Invalid` when it is not.
    pub fn open(root: impl AsRef<FilePath>) -> Result<Self> {
        Self::open_with_env(root, Arc::new(SystemEnv))
    }

    /// As [`open`](Self::open), with clock and randomness from outside.
    pub fn open_with_env(root: impl AsRef<FilePath>, env: SharedEnv) -> Result<Self> {
        let root = root.as_ref();
        let invalid = |why: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Invalid, Op::Configure, format!("directory `{}`", root.display())).with_source(why)
        };
        let root = fs::canonicalize(root).map_err(|e| invalid(e.into()))?;
        if !root.is_dir() {
            return Err(invalid("is no directory".into()));
        }
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| invalid(e.into()))?.with_fsync(true);
        let name = format!("file://{}", root.display());
        let root = Arc::new(root);
        let folders = Arc::new(Files { root: Arc::clone(&root) });
        let inner = ObjectStoreAdapter::with_folders(Arc::new(store), name.into(), folders);
        Ok(Self { inner, root, env, ignores_case: Arc::default() })
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn refused(&self, key: &ObjectKey, op: Op) -> Error {
        Error::new(ErrorKind::Unrepresentable, op, self.inner.target(key)).with_source("no file of ours can have this name")
    }

    /// The lock for a disk that ignores case; `None` on others. Asked once, by a probe.
    async fn case_lock(&self) -> Option<&Mutex<()>> {
        let probe = self.root.join(STAGING).join(format!("{}-case", random_id(&*self.env)));
        let now = SystemTime::from(self.env.now());
        let asked = self.ignores_case.get_or_init(|| async move {
            let probed = tokio::task::spawn_blocking(move || {
                let staging = probe.parent()?;
                fs::create_dir_all(staging).ok()?;
                remove_stale(staging, now);
                fs::write(&probe, b"").ok()?;
                let other = probe.with_file_name(probe.file_name()?.to_str()?.to_uppercase());
                let ignores = other.exists();
                let _ = fs::remove_file(&probe);
                Some(ignores)
            });
            probed.await.ok().flatten().unwrap_or(false).then(Mutex::default)
        });
        asked.await.as_ref()
    }

    /// `Unrepresentable` when a file of the same name in other case is there.
    fn same_case(&self, key: &ObjectKey) -> Result<()> {
        match fs::canonicalize(self.file(key)) {
            Ok(found) if found.as_os_str().len() == self.file(key).as_os_str().len() && found != self.file(key) => {
                let there = found.strip_prefix(&*self.root).unwrap_or(&found).display().to_string();
                Err(Error::new(ErrorKind::Unrepresentable, Op::Put, self.inner.target(key))
                    .with_source(format!("this disk ignores case, and `{there}` is there")))
            }
            _ => Ok(()),
        }
    }
}

/// Removes what processes that died left in the staging folder.
fn remove_stale(staging: &FilePath, now: SystemTime) {
    for file in fs::read_dir(staging).into_iter().flatten().flatten() {
        let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| now.duration_since(at).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(file.path());
        }
    }
}

#[async_trait]
impl Index for LocalDirectory {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn index_capability(&self) -> IndexCapability {
        IndexCapability { max_key: 4096usize.saturating_sub(self.root.as_os_str().len() + 2), ..self.inner.index_capability() }
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        let text = key.as_str();
        let staged = text.strip_prefix(STAGING).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // `LocalFileSystem` keeps `name#1` to itself.
        let own = text.rsplit('/').next().and_then(|name| name.split_once('#'));
        let own = own.is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit()));
        let fits = text.len() <= self.index_capability().max_key && text.split('/').all(|segment| segment.len() <= 255);
        fits && !staged && !own && exact_path(text).is_some()
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.inner.list(request).await
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.inner.head(key, version).await
    }
}

#[async_trait]
impl Source for LocalDirectory {
    fn source_capability(&self) -> SourceCapability {
        self.inner.source_capability()
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        if !self.carries(key) {
            return Err(self.refused(key, Op::Read));
        }
        let mut read = match self.inner.read(key, options).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.root.join(unescape(key.as_str())).exists() => {
                return Err(Error::new(ErrorKind::Unrepresentable, Op::Read, self.inner.target(key))
                    .with_source("the name of this file is no UTF-8: rename it"));
            }
            read => read?,
        };
        // A file can be overwritten in place: what was read counts only when it still is what was opened.
        let (store, key, etag) = (self.inner.clone(), key.clone(), read.info.entry.etag.clone());
        read.body = checked_at_the_end(read.body, move || async move {
            match store.head(&key, None).await {
                Ok(now) if now.entry.etag == etag => Ok(()),
                Ok(_) => Err(Error::new(ErrorKind::Precondition, Op::Read, store.target(&key)).with_source("it changed while it was read")),
                Err(error) => Err(error),
            }
        });
        Ok(read)
    }
}

#[async_trait]
impl Sink for LocalDirectory {
    fn sink_capability(&self) -> SinkCapability {
        self.inner.sink_capability()
    }

    fn not_carried(&self, attributes: &Attributes) -> Vec<String> {
        attributes.names()
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let path = self.inner.path(key, Op::Put)?;
        if !self.carries(key) {
            return Err(self.refused(key, Op::Put));
        }
        let lock = self.case_lock().await;
        let store = &self.inner.store;
        let staged = Path::from(format!("{STAGING}/{}", random_id(&*self.env)));
        let options = PutOptions { checksum: options.checksum.clone(), ..PutOptions::default() };
        let stored = async {
            let written = self.inner.write(key, &staged, body, &options).await?;
            let _held = match lock {
                Some(lock) => Some(lock.lock().await),
                None => None,
            };
            if lock.is_some() {
                self.same_case(key)?;
            }
            let renamed = store.rename_opts(&staged, &path, RenameOptions::new()).await;
            renamed.map_err(|e| match classify(Op::Put, self.inner.target(key), e) {
                // A segment of the way is a file.
                error if error.kind() == ErrorKind::NotFound => {
                    Error::new(ErrorKind::Unavailable, Op::Put, self.inner.target(key)).with_source(error)
                }
                error => error,
            })?;
            Ok(written)
        };
        let stored = stored.await;
        if stored.is_err() {
            let _ = store.delete(&staged).await;
        }
        stored
    }

    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        self.inner.delete(key, condition).await
    }
}

/// The folders of a directory, as the file system shows them.
#[derive(Debug)]
struct Files {
    root: Arc<PathBuf>,
}

impl Files {
    fn items_now(root: &FilePath, folder: &str) -> Result<Vec<Item>> {
        let here = root.join(unescape(folder));
        let failed = |error: std::io::Error| {
            let kind = match io_kind(&error) {
                ErrorKind::Unrepresentable => ErrorKind::NotFound,
                kind => kind,
            };
            Error::new(kind, Op::List, here.display().to_string()).with_source(error)
        };
        let read = match fs::read_dir(&here).map_err(failed) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut items = Vec::new();
        for found in read {
            let found = found.map_err(failed)?;
            let name = escape(found.file_name());
            if folder.is_empty() && name == STAGING {
                continue;
            }
            let kind = found.file_type().map_err(failed)?;
            let path = found.path();
            let kind = if kind.is_symlink() { fs::metadata(&path).map_or(kind, |m| m.file_type()) } else { kind };
            if kind.is_dir() {
                if found.file_type().map_err(failed)?.is_symlink() && leads_back(root, folder, &path) {
                    tracing::warn!(link = %path.display(), "a symbolic link that leads back to a folder on its way is passed over");
                    continue;
                }
                items.push(Item::Folder(name));
            } else if kind.is_file() || kind.is_symlink() {
                items.push(Item::Object(name, None));
            } else {
                tracing::warn!(path = %path.display(), "neither file nor folder: passed over");
            }
        }
        Ok(items)
    }

    fn entry_now(root: &FilePath, key: String) -> Option<Entry> {
        let path = root.join(unescape(&key));
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            // A dangling link is somebody's object: reading tells that it is gone.
            Err(_) if path.symlink_metadata().is_ok() => return Some(Entry::new(key, 0, None)),
            Err(_) => return None,
        };
        let modified = meta.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        // The etag of `LocalFileSystem`, so that listings and reads speak of the same.
        let etag = ETag::new(&format!("{:x}-{:x}-{:x}", meta.ino(), modified.as_micros(), meta.len()));
        let mut entry = Entry::new(key, meta.len(), Some(etag));
        entry.modified = jiff::Timestamp::try_from(meta.modified().ok()?).ok();
        Some(entry)
    }
}

/// Whether a link leads to one of the folders on the way to it.
fn leads_back(root: &FilePath, folder: &str, link: &FilePath) -> bool {
    let Ok(target) = fs::canonicalize(link) else { return false };
    let ends = std::iter::once(0).chain(folder.match_indices('/').map(|(at, _)| at + 1));
    ends.filter_map(|end| fs::canonicalize(root.join(unescape(&folder[..end]))).ok()).any(|way| way == target)
}

#[async_trait]
impl Folders for Files {
    async fn items(&self, folder: &str) -> Result<Vec<Item>> {
        let (root, folder) = (Arc::clone(&self.root), folder.to_owned());
        on_thread(move || Self::items_now(&root, &folder)).await
    }

    async fn entries(&self, folder: &str, items: Vec<Item>) -> Result<Vec<Entry>> {
        let (root, folder) = (Arc::clone(&self.root), folder.to_owned());
        on_thread(move || {
            let names = items.into_iter().filter_map(|item| if let Item::Object(name, _) = item { Some(name) } else { None });
            Ok(names.filter_map(|name| Self::entry_now(&root, format!("{folder}{name}"))).collect())
        })
        .await
    }
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(ErrorKind::Internal, Op::List, "walking").with_source(error)),
    }
}

/// A file name as text: bytes that are no UTF-8 become `\xNN`.
fn escape(name: OsString) -> String {
    name.into_string().unwrap_or_else(|name| {
        let mut text = String::new();
        for chunk in name.as_bytes().utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02X}");
            }
        }
        text
    })
}

/// The file name that a listed text stands for: `\xNN` of bytes that are no ASCII are such bytes, everything else is itself.
fn unescape(text: &str) -> OsString {
    let byte = |at: usize| text.get(at..at + 4)?.strip_prefix("\\x").and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|b| *b >= 0x80);
    if !text.contains("\\x") {
        return text.into();
    }
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match byte(at) {
            Some(b) => {
                bytes.push(b);
                at += 4;
            }
            None => {
                bytes.push(text.as_bytes()[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(bytes)
}
