//! A directory of images, as the image specification lays it out: what a registry has, on a disk.
//!
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

use crate::{
    images,
    key::{ImageKey, is_name, is_tag},
    manifest::{MAX_MANIFEST, Manifest, empty_index, manifests_of},
};
use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum, Digester},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    object::{ETag, Entry, ObjectInfo, ObjectKey, VersionId},
    sink::{Body, Condition, Placed, PutOptions, Sink, SinkCapability, Written},
    source::{Family, Read, ReadOptions, Source, SourceCapability},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    io::SeekFrom,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// What names a manifest of the index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Files that are being written begin so.
const PARTIAL: &str = ".dth-";

/// Bytes of a body on its way to the disk.
const STREAM_WINDOW: u64 = 2 << 20;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// An OCI image layout. Clones share it; other processes must not write to it at the same time.
///
/// A manifest is called by the name that `index.json` gives it: `name:tag` is the key itself; a name that is a tag only is one of
/// the repository that the layout is opened with. What is written is named by its whole key. Blobs of deleted images stay.
#[derive(Clone)]
pub struct OciLayout {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    repository: String,
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Repositories that the index named when it was last read.
    names: Mutex<Option<HashSet<String>>>,
}

impl fmt::Debug for OciLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OciLayout({})", self.inner.root.display())
    }
}

/// A manifest of the index.
#[derive(Debug, Clone)]
struct Listed {
    digest: String,
    media_type: Option<String>,
    size: Option<u64>,
}

impl OciLayout {
    /// A layout that is there. `repository` names what has no name of its own in it.
    ///
    /// `Invalid` when the directory is none, or the name is not one of a repository.
    pub fn open(root: impl AsRef<Path>, repository: &str) -> Result<Self> {
        let root = root.as_ref();
        let invalid = |why: String| Error::new(ErrorKind::Invalid, Op::Configure, root.display().to_string()).with_source(why);
        let text = std::fs::read(root.join("oci-layout")).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => invalid("no OCI layout: it has no file `oci-layout`".into()),
            _ => invalid(e.to_string()),
        })?;
        let version = serde_json::from_slice::<Value>(&text).ok().and_then(|v| v.get("imageLayoutVersion")?.as_str().map(str::to_owned));
        if version.as_deref() != Some("1.0.0") {
            return Err(invalid(format!("`oci-layout` names the version {version:?}, and 1.0.0 is known here")));
        }
        if !is_name(repository) {
            return Err(invalid(format!("`{repository}` is no name of a repository")));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                repository: repository.to_owned(),
                writing: Arc::default(),
                names: Mutex::default(),
            }),
        })
    }

    /// As [`open`](Self::open); makes one where the directory is empty or not there. `Invalid` when it holds something else.
    pub fn create(root: impl AsRef<Path>, repository: &str) -> Result<Self> {
        let root = root.as_ref();
        let invalid = |why: String| Error::new(ErrorKind::Invalid, Op::Configure, root.display().to_string()).with_source(why);
        let io = |e: std::io::Error| invalid(e.to_string());
        if !root.join("oci-layout").try_exists().map_err(io)? {
            if has_files(root).map_err(io)? {
                return Err(invalid("the directory is not empty, and no OCI layout".into()));
            }
            std::fs::create_dir_all(root).map_err(io)?;
            write_whole(root, "oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(io)?;
        }
        // New, or whoever began it was interrupted. Where there are blobs, an index was lost, and that is not made good by an empty one.
        if !root.join("index.json").try_exists().map_err(io)? && !has_files(&root.join("blobs/sha256")).map_err(io)? {
            std::fs::create_dir_all(root.join("blobs/sha256")).map_err(io)?;
            write_whole(root, "index.json", &empty_index().to_string()).map_err(io)?;
        }
        Self::open(root, repository)
    }

    fn target(&self, what: impl fmt::Display) -> String {
        format!("{}: {what}", self.inner.root.display())
    }

    /// The file of a digest; its form was checked, so that it leads nowhere else.
    fn path(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        self.inner.root.join("blobs").join(algorithm).join(hex)
    }

    fn failed(&self, op: Op, what: &str, error: std::io::Error) -> Error {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, op, self.target(what)).with_source(error)
    }

    async fn index(&self, op: Op) -> Result<Value> {
        let bytes = tokio::fs::read(self.inner.root.join("index.json")).await.map_err(|e| self.failed(op, "index.json", e))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::new(ErrorKind::Invalid, op, self.target("index.json")).with_source(e))
    }

    fn key_of(&self, descriptor: &Value) -> Option<ImageKey> {
        let digest = descriptor.get("digest")?.as_str()?;
        let repository = &self.inner.repository;
        let name = descriptor.pointer(&format!("/annotations/{REF_NAME}")).and_then(Value::as_str);
        let named = name
            .and_then(|name| ImageKey::parse(&name.into()).filter(|key| !matches!(key, ImageKey::Blob { .. } | ImageKey::Unlisted { .. })));
        let tag = name.filter(|name| is_tag(name)).map(|tag| ImageKey::Tag { name: repository.clone(), tag: tag.to_owned() });
        let plain = format!("{repository}@{digest}");
        named.or(tag).or_else(|| ImageKey::parse(&plain.into()))
    }

    fn names_of(&self, index: &Value) -> HashSet<String> {
        let manifests = index.get("manifests").and_then(Value::as_array).into_iter().flatten();
        manifests.filter_map(|descriptor| self.key_of(descriptor)).map(|key| key.name().to_owned()).collect()
    }

    async fn listed(&self, op: Op) -> Result<BTreeMap<ObjectKey, Listed>> {
        let index = self.index(op).await?;
        *lock(&self.inner.names) = Some(self.names_of(&index));
        let manifests = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
        let listed = manifests.iter().filter_map(|descriptor| {
            let key = self.key_of(descriptor)?;
            let listed = Listed {
                digest: descriptor.get("digest")?.as_str().filter(|d| crate::key::is_digest(d))?.to_owned(),
                media_type: descriptor.get("mediaType").and_then(Value::as_str).map(str::to_owned),
                size: descriptor.get("size").and_then(Value::as_u64),
            };
            Some((key.to_key(), listed))
        });
        let mut all: BTreeMap<ObjectKey, Listed> = BTreeMap::new();
        for (key, one) in listed {
            if let Some(other) = all.get(&key).filter(|other| other.digest != one.digest) {
                let why = format!("index.json gives the name `{key}` to {} and to {}", other.digest, one.digest);
                return Err(Error::new(ErrorKind::Invalid, op, self.target("index.json")).with_source(why));
            }
            all.insert(key, one);
        }
        Ok(all)
    }

    /// The digest that a key has now, and its media type where the index tells.
    async fn digest_of(&self, key: &ObjectKey, image: &ImageKey, op: Op) -> Result<(String, Option<String>)> {
        if let Some(digest) = image.digest() {
            return Ok((digest.to_owned(), None));
        }
        let listed = self.listed(op).await?.remove(key);
        let listed = listed.ok_or_else(|| Error::new(ErrorKind::NotFound, op, self.target(key)))?;
        Ok((listed.digest, listed.media_type))
    }

    async fn manifest(&self, digest: &str, media_type: Option<&str>, op: Op) -> Result<Manifest> {
        let path = self.path(digest);
        let len = tokio::fs::metadata(&path).await.map_err(|e| self.failed(op, digest, e))?.len();
        if len > MAX_MANIFEST {
            let why = format!("a manifest has at most {MAX_MANIFEST} bytes");
            return Err(Error::new(ErrorKind::Invalid, op, self.target(digest)).with_source(why));
        }
        let bytes = tokio::fs::read(&path).await.map_err(|e| self.failed(op, digest, e))?;
        Manifest::new(bytes.into(), media_type, Some(digest), &self.target(digest))
    }

    /// What a manifest needs, itself or for one under it, and is not there.
    async fn lacking(&self, of: &Manifest, op: Op) -> Result<Option<String>> {
        let (mut open, mut seen) = (of.children()?, HashSet::new());
        while let Some(child) = open.pop() {
            if !seen.insert(child.digest.clone()) {
                continue;
            }
            match tokio::fs::metadata(self.path(&child.digest)).await {
                Ok(file) if child.size.is_none_or(|size| size == file.len()) => {}
                Ok(_) => return Ok(Some(child.digest)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(child.digest)),
                Err(error) => return Err(self.failed(op, &child.digest, error)),
            }
            if child.is_manifest {
                open.extend(self.manifest(&child.digest, None, op).await?.children()?);
            }
        }
        Ok(None)
    }

    /// Whether a child is there, with all that it needs: others may have written here, and have been interrupted.
    async fn is_whole(&self, key: &ObjectKey, child: &Entry, image: &ImageKey) -> Result<bool> {
        let info = match self.head(key, None).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            info => info?,
        };
        if child.size.is_some_and(|size| info.entry.size != Some(size)) {
            return Ok(false);
        }
        let ImageKey::Manifest { digest, .. } = image else { return Ok(true) };
        let whole = async {
            let manifest = self.manifest(digest, None, Op::Place).await?;
            // What refers to another is found by the index, too.
            let found = manifest.subject().is_none() || self.listed(Op::Place).await?.contains_key(key);
            Ok::<_, Error>(found && self.lacking(&manifest, Op::Place).await?.is_none())
        };
        match whole.await {
            Ok(whole) => Ok(whole),
            // What lies there is sent again.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the file of a digest: whole and checked, or not at all.
    async fn write(&self, digest: &str, body: Body) -> Result<()> {
        let path = self.path(digest);
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let io = |e: std::io::Error| self.failed(Op::Put, digest, e);
        tokio::fs::create_dir_all(&folder).await.map_err(io)?;
        let temporary = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(&folder).map_err(io)?;
        let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(io)?);
        let mut digester = digest.starts_with("sha256:").then(|| Digester::new(Algorithm::Sha256));
        let len = body.len();
        let mut chunks = match body {
            Body::Bytes(chunks) => stream::iter(chunks.into_iter().map(Ok)).boxed(),
            Body::Stream { stream, .. } => stream,
        };
        let mut at = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk: Bytes = chunk?;
            at += chunk.len() as u64;
            if let Some(digester) = &mut digester {
                digester.update(&chunk);
            }
            file.write_all(&chunk).await.map_err(io)?;
        }
        let made: Option<Checksum> = digester.map(Digester::finish);
        if at != len || (made.is_some() && made != images::checksum_of(digest)) {
            let why = format!("{at} of {len} bytes came, with the digest {made:?}");
            return Err(Error::new(ErrorKind::Corrupt, Op::Put, self.target(digest)).with_source(why));
        }
        // Without it, what becomes of the last write is told to nobody.
        file.flush().await.map_err(io)?;
        file.sync_all().await.map_err(io)?;
        drop(file);
        temporary.persist(&path).map_err(|e| self.failed(Op::Put, digest, e.error))?;
        // So that the name is as durable as the bytes.
        tokio::fs::File::open(&folder).await.map_err(io)?.sync_all().await.map_err(io)
    }

    /// Changes the index: whole, or not at all.
    async fn change(&self, op: Op, change: impl FnOnce(&mut Vec<Value>) + Send) -> Result<()> {
        let alone = Arc::clone(&self.inner.writing).lock_owned().await;
        let mut index = self.index(op).await?;
        change(manifests_of(&mut index));
        let root = self.inner.root.clone();
        let text = index.to_string();
        let written = tokio::task::spawn_blocking(move || {
            // Until it is done, whoever has given up on it.
            let _alone = alone;
            write_whole(&root, "index.json", &text)
        });
        match written.await {
            Ok(written) => written.map_err(|e| self.failed(op, "index.json", e)),
            Err(error) => Err(Error::new(ErrorKind::Internal, op, self.target("index.json")).with_source(error)),
        }
    }
}

/// Writes a file: whole and lasting, or not at all.
fn write_whole(root: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let mut temporary = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(root)?;
    std::io::Write::write_all(&mut temporary, text.as_bytes())?;
    temporary.as_file().sync_all()?;
    temporary.persist(root.join(name)).map_err(|e| e.error)?;
    std::fs::File::open(root)?.sync_all()
}

/// Whether there is anything in a directory but files that we were interrupted in writing.
fn has_files(folder: &Path) -> std::io::Result<bool> {
    let all = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        all => all?,
    };
    for file in all {
        if !file?.file_name().to_string_lossy().starts_with(PARTIAL) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Index for OciLayout {
    fn name(&self) -> String {
        format!("layout {}", self.inner.root.display())
    }

    fn index_capability(&self) -> IndexCapability {
        images::index_capability()
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        ImageKey::parse(key).is_some()
    }

    fn covers(&self, key: &ObjectKey) -> bool {
        // Asked for each key that only the destination has: the index was read for the listing.
        let mut names = lock(&self.inner.names);
        let names = names.get_or_insert_with(|| {
            let index = std::fs::read(self.inner.root.join("index.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
            self.names_of(&index.unwrap_or_default())
        });
        ImageKey::parse(key).is_some_and(|image| names.contains(image.name()))
    }

    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        // By the index: a file alone is some other image's.
        let listed = self.listed(Op::Head).await?;
        let entry = |key: &ObjectKey| {
            let found = listed.get(key)?;
            Some(Entry { size: found.size, ..Entry::new(key.clone(), 0, Some(ETag::new(&found.digest))) })
        };
        Ok(keys.iter().map(entry).collect())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let after = match &request.from {
            ListFrom::Beginning => None,
            ListFrom::After(key) => Some(key.clone()),
            ListFrom::Token(token) => Some(ObjectKey::new(token.clone())),
        };
        let max = request.max.unwrap_or(1000).clamp(1, 1000) as usize;
        let listed = self.listed(Op::List).await?.into_iter();
        let wanted = listed.filter(|(key, _)| key.as_str().starts_with(&request.prefix) && after.as_ref().is_none_or(|after| key > after));
        let mut entries: Vec<Entry> = wanted
            .take(max + 1)
            .map(|(key, listed)| Entry { size: listed.size, ..Entry::new(key, 0, Some(ETag::new(&listed.digest))) })
            .collect();
        let more = entries.len() > max;
        entries.truncate(max);
        let next = entries.last().filter(|_| more).map(|entry| entry.key.as_str().to_owned());
        Ok(ListPage { entries, next })
    }

    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        let image = images::image_of(key, Op::Head)?;
        let (digest, media_type) = self.digest_of(key, &image, Op::Head).await?;
        let size = tokio::fs::metadata(self.path(&digest)).await.map_err(|e| self.failed(Op::Head, key.as_str(), e))?.len();
        Ok(images::info(key, &digest, Some(size), media_type))
    }
}

#[async_trait]
impl Source for OciLayout {
    fn source_capability(&self) -> SourceCapability {
        images::source_capability()
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let image = images::image_of(key, Op::Read)?;
        let (mut digest, mut media_type) = self.digest_of(key, &image, Op::Read).await?;
        if let Some(pinned) = options.if_match.as_ref().filter(|pinned| pinned.as_str() != digest) {
            // A tag that moved: the bytes of what it was are still there.
            if image.digest().is_some() || !crate::key::is_digest(pinned.as_str()) {
                return Err(Error::new(ErrorKind::Precondition, Op::Read, self.target(key)));
            }
            (digest, media_type) = (pinned.as_str().to_owned(), None);
        }
        if !matches!(image, ImageKey::Blob { .. }) && media_type.is_none() {
            media_type = Some(self.manifest(&digest, None, Op::Read).await?.media_type);
        }
        let failed = |e| self.failed(Op::Read, key.as_str(), e);
        let mut file = tokio::fs::File::open(self.path(&digest)).await.map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        let range = images::range_of(&options.range, size, || self.target(key))?;
        file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
        let target = self.target(key);
        let body = stream::try_unfold((file, range.end - range.start), move |(mut file, left)| {
            let target = target.clone();
            async move {
                let broken = |why: String| Error::new(ErrorKind::Unavailable, Op::Read, &*target).with_source(why);
                if left == 0 {
                    return Ok(None);
                }
                let mut chunk = bytes::BytesMut::with_capacity(CHUNK.min(left as usize));
                let read = (&mut file).take(left).read_buf(&mut chunk).await.map_err(|e| broken(e.to_string()))?;
                if read == 0 {
                    return Err(broken("the file became shorter".into()));
                }
                Ok(Some((chunk.freeze(), (file, left - read as u64))))
            }
        });
        Ok(Read { info: images::info(key, &digest, Some(size), media_type), range, body: body.boxed() })
    }

    async fn children(&self, entry: &Entry) -> Result<Family> {
        let (key, image) = (&entry.key, images::image_of(&entry.key, Op::Children)?);
        let (digest, media_type) = self.digest_of(key, &image, Op::Children).await?;
        if matches!(image, ImageKey::Blob { .. }) {
            return Ok(images::without_children(entry, &digest));
        }
        let manifest = self.manifest(&digest, media_type.as_deref(), Op::Children).await?;
        images::with_children(key, image.name(), &manifest)
    }
}

#[async_trait]
impl Sink for OciLayout {
    fn sink_capability(&self) -> SinkCapability {
        images::sink_capability(STREAM_WINDOW)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let image = images::image_of(key, Op::Put)?;
        if let ImageKey::Blob { digest, .. } = &image {
            self.write(digest, body).await?;
            return Ok(images::written(digest, None));
        }
        let manifest = images::manifest_to_store(&image, body, options, &self.target(key)).await?;
        // What is signed has the digest of its payload: there is no file for it in a layout.
        if crate::manifest::digest_of(&manifest.bytes) != manifest.digest {
            let why = "a signed manifest of schema 1 cannot lie in an OCI layout";
            return Err(Error::new(ErrorKind::Unrepresentable, Op::Put, self.target(key)).with_source(why));
        }
        if let Some(lacking) = self.lacking(&manifest, Op::Put).await? {
            let why = format!("it needs {lacking}, which is not there");
            return Err(Error::new(ErrorKind::Conflict, Op::Put, self.target(key)).with_source(why));
        }
        self.write(&manifest.digest, Body::Bytes(vec![manifest.bytes.clone()])).await?;
        // What refers to another is found by the index, too; a child is found by its parent, unless it comes for its own sake.
        let tagged = matches!(image, ImageKey::Tag { .. });
        if !options.child || manifest.subject().is_some() {
            let mut descriptor = manifest.as_referrer();
            if tagged {
                descriptor["annotations"] = json!({ REF_NAME: key.as_str() });
            } else {
                descriptor["annotations"][REF_NAME] = json!(key.as_str());
            }
            self.change(Op::Put, |manifests| {
                manifests.retain(|other| self.key_of(other).is_none_or(|other| other != image));
                manifests.push(descriptor);
            })
            .await?;
        }
        Ok(images::written(&manifest.digest, Some(&manifest.media_type)))
    }

    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        let image = images::image_of(key, Op::Place)?;
        if let Some(digest) = image.digest() {
            images::must_be_its_own(digest, child, || self.target(key))?;
        }
        if self.is_whole(key, child, &image).await? {
            return Ok(Placed::There);
        }
        Ok(Placed::Absent)
    }

    async fn delete(&self, key: &ObjectKey, _: &Condition) -> Result<()> {
        let image = images::image_of(key, Op::Delete)?;
        self.change(Op::Delete, |manifests| manifests.retain(|other| self.key_of(other).is_none_or(|other| other != image))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a crash leaves of a new layout is one again; what is somebody else's is left alone.
    #[tokio::test]
    async fn what_was_begun_is_opened_and_what_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| OciLayout::create(folder.path().join(name), "image");
        let whole = async |name: &str| open(name).unwrap().listed(Op::List).await.unwrap().is_empty();
        // A source that is not there is not an empty one.
        assert!(OciLayout::open(folder.path().join("new"), "image").unwrap_err().chain().contains("no OCI layout"));
        assert!(whole("new").await && whole("new").await);
        for (name, files) in [("marker", &["oci-layout"][..]), ("partial", &[".dth-x"]), ("both", &["oci-layout", ".dth-x"])] {
            let root = folder.path().join(name);
            std::fs::create_dir(&root).unwrap();
            for file in files {
                std::fs::write(root.join(file), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            }
            assert!(whole(name).await, "{name}");
        }
        for (name, file) in [("other", "index.json"), ("else", "readme")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join(file), "{}").unwrap();
            assert!(open(name).unwrap_err().chain().contains("not empty"), "{name}");
        }
        // Blobs without an index are not an empty layout.
        std::fs::write(folder.path().join("new/blobs/sha256/00"), "x").unwrap();
        std::fs::remove_file(folder.path().join("new/index.json")).unwrap();
        assert_eq!(open("new").unwrap().listed(Op::List).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
