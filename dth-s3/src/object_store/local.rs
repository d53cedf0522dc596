//! A local directory.

use super::{ObjectStoreAdapter, classify, exact_path, io_kind};
use async_trait::async_trait;
use dth_core::{
    attribute::AttributeSet,
    env::{SharedEnv, SystemEnv, random_id},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest},
    object::{ETag, Entry, ObjectInfo, ObjectKey, VersionId},
    sink::{Body, Condition, PutOptions, Sink, SinkCapability, Written},
    source::{Read, ReadOptions, Source, SourceCapability, checked_at_the_end},
    walk::{Folders, Item},
};
use object_store::{ObjectStore, ObjectStoreExt, RenameOptions, local::LocalFileSystem, path::Path};
use std::{
    ffi::OsString,
    fmt,
    fmt::Write as _,
    fs,
    io::ErrorKind as Io,
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
/// **Reading**: pinned by inode, times and size; a file that changes while it is read is read again, never mixed, as far as
/// the times of its file system tell (two writes within one tick of its clock look like one).
///
/// **Keys** that no file can have (`a//b`, `dir/`, `..`, control characters, a segment over 255 bytes, `name#1`) are skipped
/// with that reason; `a` beside `a/b` fails for the second to come; on a disk that ignores case, a key that would replace
/// one of other case fails.
///
/// **Symbolic links** to files and folders are followed in reading, also out of the directory; nothing is written or deleted
/// behind one that leads out. A link that leads back to a folder on
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
        let inner = ObjectStoreAdapter::with_folders(Arc::new(store), name.into(), folders, 1 << 20);
        Ok(Self { inner, root, env, ignores_case: Arc::default() })
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// What changes with every write to a file, also with one that sets its time back.
    async fn stamp(&self, key: &ObjectKey) -> Option<(u64, u64, i64, i64)> {
        let path = self.file(key);
        let asked = tokio::task::spawn_blocking(move || fs::metadata(path).ok());
        asked.await.ok().flatten().map(|m| (m.ino(), m.len(), m.ctime(), m.ctime_nsec()))
    }

    /// `Denied` when a link on the way leads out of the directory: nothing is written or deleted there.
    fn stays_inside(&self, key: &ObjectKey, op: Op) -> Result<()> {
        let file = self.file(key);
        let there = file.ancestors().skip(1).find_map(|folder| fs::canonicalize(folder).ok());
        if there.is_some_and(|folder| folder.starts_with(&*self.root)) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Denied, op, self.inner.target(key));
        Err(error.with_source("a symbolic link on its way leads out of the directory"))
    }

    fn refused(&self, key: &ObjectKey, op: Op) -> Error {
        Error::new(ErrorKind::Unrepresentable, op, self.inner.target(key)).with_source("no file of ours can have this name")
    }

    /// The lock for a disk that ignores case; `None` on others. Asked once, by a probe.
    async fn case_lock(&self) -> Result<Option<&Mutex<()>>> {
        let probe = self.root.join(STAGING).join(format!("{}-case", random_id(&*self.env)));
        let now = SystemTime::from(self.env.now());
        let asked = self.ignores_case.get_or_try_init(|| async move {
            on_thread(move || {
                let failed = |error| unreadable(&probe, error);
                let staging = probe.parent().unwrap_or(&probe);
                fs::create_dir_all(staging).map_err(failed)?;
                remove_stale(staging, now);
                fs::write(&probe, b"").map_err(failed)?;
                let other = probe.file_name().unwrap_or_default().to_ascii_uppercase();
                let ignores = probe.with_file_name(other).exists();
                let _ = fs::remove_file(&probe);
                Ok(ignores.then(Mutex::default))
            })
            .await
        });
        Ok(asked.await?.as_ref())
    }

    /// `Unrepresentable` when a file or folder on the way is there under a name of other case or other normal form.
    fn same_case(&self, key: &ObjectKey) -> Result<()> {
        let mut at = self.root.to_path_buf();
        for segment in key.as_str().split('/') {
            let next = at.join(segment);
            if next.symlink_metadata().is_err() {
                return Ok(());
            }
            let exact = fs::read_dir(&at).map_err(|e| unreadable(&at, e))?.flatten().any(|found| found.file_name() == segment);
            if !exact {
                return Err(Error::new(ErrorKind::Unrepresentable, Op::Put, self.inner.target(key))
                    .with_source(format!("this disk takes `{segment}` for another name that is there")));
            }
            at = next;
        }
        Ok(())
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
        let staged = text.split('/').next().is_some_and(|first| first.eq_ignore_ascii_case(STAGING));
        // `LocalFileSystem` keeps `name#1` to itself.
        let own = text.rsplit('/').next().and_then(|name| name.split_once('#'));
        let own = own.is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit()));
        // A letter and a colon (or a bar) at the end become a folder on their way through a `file:` URL.
        let drive = text
            .as_bytes()
            .last_chunk()
            .is_some_and(|[letter, colon]: &[u8; 2]| letter.is_ascii_alphabetic() && matches!(colon, b':' | b'|'));
        let fits = text.len() <= self.index_capability().max_key && text.split('/').all(|segment| segment.len() <= 255);
        fits && !staged && !own && !drive && exact_path(text).is_some()
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
        SourceCapability { gives: AttributeSet::NONE, ..self.inner.source_capability() }
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        if !self.carries(key) {
            return Err(self.refused(key, Op::Read));
        }
        let before = self.stamp(key).await;
        let mut read = match self.inner.read(key, options).await {
            Err(error) if error.kind() == ErrorKind::NotFound && resolve(&self.root, key.as_str()).exists() => {
                return Err(Error::new(ErrorKind::Unrepresentable, Op::Read, self.inner.target(key))
                    .with_source("the name of this file is no UTF-8: rename it"));
            }
            read => read?,
        };
        // A file can be overwritten in place: what was read counts only when it still is what was opened.
        let (directory, key, etag) = (self.clone(), key.clone(), read.info.entry.etag.clone());
        read.body = checked_at_the_end(read.body, move || async move {
            let now = directory.inner.head(&key, None).await?;
            if now.entry.etag == etag && before.is_some() && directory.stamp(&key).await == before {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Precondition, Op::Read, directory.inner.target(&key)).with_source("it changed while it was read"))
        });
        Ok(read)
    }
}

#[async_trait]
impl Sink for LocalDirectory {
    fn sink_capability(&self) -> SinkCapability {
        SinkCapability { keeps: AttributeSet::NONE, ..self.inner.sink_capability() }
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let path = self.inner.path(key, Op::Put)?;
        if !self.carries(key) {
            return Err(self.refused(key, Op::Put));
        }
        self.stays_inside(key, Op::Put)?;
        let lock = self.case_lock().await?;
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
        self.stays_inside(key, Op::Delete)?;
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
        let plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if !folder.is_empty() && !folder.strip_suffix('/').is_some_and(|f| f.split('/').all(plain)) {
            // No folder of ours can have this name; the file system would take it for another one.
            return Ok(Vec::new());
        }
        let here = resolve(root, folder);
        let failed = |error: std::io::Error| unreadable(&here, error);
        let read = match fs::read_dir(&here) {
            // Gone since its parent was read, or a prefix that names a file. The root itself must be there.
            Err(error) if !folder.is_empty() && matches!(error.kind(), Io::NotFound | Io::NotADirectory) => return Ok(Vec::new()),
            read => read.map_err(failed)?,
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

    /// `None` for a file that is gone since its folder was read; any other failure is one.
    fn entry_now(root: &FilePath, key: String) -> Result<Option<Entry>> {
        let path = resolve(root, &key);
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            // A dangling link is somebody's object: reading tells that it is gone.
            Err(error) if error.kind() == Io::NotFound && path.symlink_metadata().is_ok() => return Ok(Some(Entry::new(key, 0, None))),
            Err(error) if error.kind() == Io::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, error)),
        };
        let modified = meta.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        // The etag of `LocalFileSystem`, so that listings and reads speak of the same.
        let etag = ETag::new(&format!("{:x}-{:x}-{:x}", meta.ino(), modified.as_micros(), meta.len()));
        let mut entry = Entry::new(key, meta.len(), Some(etag));
        entry.modified = meta.modified().ok().and_then(|at| jiff::Timestamp::try_from(at).ok());
        Ok(Some(entry))
    }
}

/// Whether a link leads to one of the folders on the way to it.
fn leads_back(root: &FilePath, folder: &str, link: &FilePath) -> bool {
    let Ok(target) = fs::canonicalize(link) else { return false };
    let ends = std::iter::once(0).chain(folder.match_indices('/').map(|(at, _)| at + 1));
    ends.filter_map(|end| fs::canonicalize(resolve(root, &folder[..end])).ok()).any(|way| way == target)
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
            names.filter_map(|name| Self::entry_now(&root, format!("{folder}{name}")).transpose()).collect()
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

fn unreadable(path: &FilePath, error: std::io::Error) -> Error {
    Error::new(io_kind(&error), Op::List, path.display().to_string()).with_source(error)
}

/// The path that a listed key stands for: a segment is itself where it is there, else what it was escaped from.
fn resolve(root: &FilePath, key: &str) -> PathBuf {
    if !key.contains("\\x") {
        return root.join(key);
    }
    key.split('/').fold(root.to_owned(), |at, segment| {
        let literal = at.join(segment);
        if literal.symlink_metadata().is_ok() { literal } else { at.join(unescape(segment)) }
    })
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
