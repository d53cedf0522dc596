//! T1, T2: a source that is overwritten while it is read, and an upload that is begun of an older version.

use crate::support::{bytes, contents, ministacks, open_uploads, put, put_multipart};
use async_trait::async_trait;
use dth_core::{
    checksum::Checksum,
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest},
    object::{ETag, ObjectInfo, ObjectKey, Tags, VersionId},
    sink::{Body, Condition, OpenUpload, Part, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::{Read, ReadOptions, ReadRange, Source, SourceCapability},
    state::StateStore,
    sync::Sync,
};
use dth_s3::S3Store;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

/// A real store behind, and a hand that does something at the n-th read or part.
#[derive(Debug)]
struct Meddler {
    store: S3Store,
    /// Overwrites `key` with this before the n-th ranged read.
    overwrite: Option<(u32, Vec<u8>)>,
    /// Fails every part from the n-th on.
    fail_parts_from: u32,
    reads: AtomicU32,
    parts: AtomicU32,
}

impl Meddler {
    fn new(store: &S3Store) -> Self {
        Self { store: store.clone(), overwrite: None, fail_parts_from: u32::MAX, reads: AtomicU32::new(0), parts: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Index for Meddler {
    fn name(&self) -> String {
        self.store.name()
    }
    fn index_capability(&self) -> IndexCapability {
        self.store.index_capability()
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.store.list(request).await
    }
    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.store.head(key, version).await
    }
}

#[async_trait]
impl Source for Meddler {
    fn source_capability(&self) -> SourceCapability {
        self.store.source_capability()
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        if matches!(options.range, ReadRange::Bytes(_)) {
            let n = self.reads.fetch_add(1, SeqCst) + 1;
            if let Some((at, body)) = &self.overwrite
                && *at == n
            {
                put(&self.store, key.as_str(), body.clone()).await;
            }
        }
        self.store.read(key, options).await
    }
    async fn tags(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Tags> {
        self.store.tags(key, version).await
    }
}

#[async_trait]
impl Sink for Meddler {
    fn sink_capability(&self) -> SinkCapability {
        self.store.sink_capability()
    }
    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        self.store.put(key, body, options).await
    }
    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        self.store.delete(key, condition).await
    }
    async fn create_upload(&self, key: &ObjectKey, options: &PutOptions) -> Result<UploadId> {
        self.store.create_upload(key, options).await
    }
    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Body, sum: Option<&Checksum>) -> Result<Part> {
        if self.parts.fetch_add(1, SeqCst) + 1 >= self.fail_parts_from {
            return Err(Error::new(ErrorKind::Denied, Op::PutPart, "meddler"));
        }
        self.store.put_part(key, upload, number, body, sum).await
    }
    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<Part>> {
        self.store.list_parts(key, upload).await
    }
    async fn list_uploads(&self, prefix: &str, token: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        self.store.list_uploads(prefix, token).await
    }
    async fn complete_upload(&self, key: &ObjectKey, upload: &UploadId, parts: &[Part], options: &PutOptions) -> Result<Written> {
        self.store.complete_upload(key, upload, parts, options).await
    }
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.store.abort_upload(key, upload).await
    }
    async fn copy(&self, _: &dth_core::source::CopyOrigin, _: &ETag, key: &ObjectKey, _: &PutOptions) -> Result<Written> {
        Err(Error::new(ErrorKind::Unsupported, Op::Copy, key.to_string()))
    }
}

const MIB: usize = 1 << 20;

/// T1 over HTTP: the object changes, with the same size, after its first parts were read. The destination holds the new
/// version, whole; the mixture is never visible and never reported.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn an_overwrite_in_the_middle_is_never_mixed() {
    for at in [1, 2, 3] {
        let pair = ministacks().await;
        let (old, new) = (bytes(20 * MIB, 1), bytes(20 * MIB, 2));
        put_multipart(&pair.source, "torn", &old, 5 * MIB, &PutOptions::default()).await;
        let mut source = Meddler::new(&pair.source);
        source.overwrite = Some((at, new.clone()));
        let mut settings = pair.settings.clone();
        settings.worker.transfer.single_max = 8 << 20;
        settings.worker.transfer.part_size = 6 << 20;
        settings.worker.transfer.parts_in_flight = 1;
        let report = Sync::new(Arc::new(source), Arc::new(pair.sink.clone())).with_worker(settings.worker).run().await.unwrap();
        assert!(report.is_success(), "overwritten at read {at}: {report}");
        assert_eq!(contents(&pair.source, false).await, contents(&pair.sink, false).await, "overwritten at read {at}");
        assert_eq!(open_uploads(&pair.sink).await, 0, "overwritten at read {at}");
    }
}

/// T2 over HTTP: an upload is begun, its worker fails, the source changes; the old parts are not continued.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn an_upload_of_an_older_version_is_not_continued() {
    for changed in [true, false] {
        let pair = ministacks().await;
        put_multipart(&pair.source, "big", &bytes(20 * MIB, 1), 5 * MIB, &PutOptions::default()).await;
        let mut settings = pair.settings.clone();
        settings.worker.transfer.parts_in_flight = 1;
        settings.worker.lease_seconds = 3;
        let state = Arc::new(settings.open_state().unwrap());
        let task = |sink: Meddler| {
            let queue: Arc<dyn dth_core::queue::Queue> = Arc::clone(&state) as _;
            Sync::new(Arc::new(Meddler::new(&pair.source)), Arc::new(sink))
                .with_worker(settings.worker.clone())
                .with_state(queue, Arc::clone(&state) as Arc<dyn StateStore>)
        };
        // The worker dies (its future is dropped) once two parts are in.
        let mut failing = Meddler::new(&pair.sink);
        failing.fail_parts_from = u32::MAX;
        let failing = task(failing);
        let crash = async {
            loop {
                let uploads = pair.sink.list_uploads("", None).await.unwrap().0;
                if let Some(upload) = uploads.first()
                    && pair.sink.list_parts(&upload.key, &upload.id).await.unwrap_or_default().len() >= 2
                {
                    return;
                }
            }
        };
        tokio::select! { biased; () = crash => {}, _ = failing.run() => {} }
        if changed {
            put_multipart(&pair.source, "big", &bytes(20 * MIB, 2), 5 * MIB, &PutOptions::default()).await;
        }
        // The message comes back when its lease ends; a worker that is started meanwhile waits for it.
        let report = task(Meddler::new(&pair.sink)).run().await.unwrap();
        assert!(report.is_success(), "{report}");
        assert_eq!(contents(&pair.source, false).await, contents(&pair.sink, false).await, "changed: {changed}");
        assert_eq!(open_uploads(&pair.sink).await, 0);
    }
}
