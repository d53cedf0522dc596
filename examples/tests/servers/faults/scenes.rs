//! For each operation: a direct call of it, and a run of the engine in which it matters.

use super::proxy::{
    Fault,
    Operation::{self, *},
    Proxy,
};
use crate::support::{bytes, contents, open_uploads, put, put_multipart};
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::Result,
    finder::FinderSettings,
    index::{Index, ListRequest},
    memory::{MemoryQueue, MemoryState},
    object::{ObjectKey, Tags},
    report::Report,
    retry::RetryPolicy,
    sink::{Body, Condition, PutOptions, Sink},
    source::{ReadOptions, ReadRange, Source},
    state::{RecordQuery, StateStore, Status},
    sync::Sync,
    transfer::TransferSettings,
    worker::WorkerSettings,
};
use dth_examples::servers::Server;
use dth_s3::S3Store;
use futures_lite::StreamExt;
use std::{sync::Arc, time::Duration};

const MIB: usize = 1 << 20;
const PART: usize = 5 * MIB;

/// A bucket of the server, straight or through a proxy.
fn store(server: &Server, bucket: &str, through: Option<&Proxy>) -> S3Store {
    let mut config = server.bucket(bucket);
    if let Some(proxy) = through {
        config.endpoint = Some(proxy.endpoint());
        config.idle_timeout_seconds = Some(1);
        config.connect_timeout_seconds = Some(1);
    }
    S3Store::new(config).unwrap()
}

fn whole(body: &[u8]) -> Body {
    Body::Bytes(vec![body.to_vec().into()])
}

fn md5(body: &[u8]) -> Checksum {
    Checksum::of(Algorithm::Md5, &[body.to_vec().into()])
}

/// One call of the operation, struck.
pub(super) async fn ask(server: &Server, operation: Operation, fault: Fault, elsewhere: &str, number: usize) -> Result<()> {
    let bucket = format!("ask-{number}");
    let straight = store(server, &bucket, None);
    straight.create_bucket().await.unwrap();
    let proxy = Proxy::start(&server.endpoint, elsewhere);
    let store = store(server, &bucket, Some(&proxy));
    let key: ObjectKey = "k".into();
    let body = bytes(1000, 1);
    let tags: Tags = [("t".to_owned(), "v".to_owned())].into();
    straight.put(&key, whole(&body), &PutOptions { tags: tags.clone(), ..PutOptions::default() }).await.unwrap();
    let etag = straight.head(&key, None).await.unwrap().entry.etag.unwrap();
    let upload = straight.create_upload(&"u".into(), &PutOptions::default()).await.unwrap();
    let part = straight.put_part(&"u".into(), &upload, 1, whole(&body), None).await.unwrap();
    if fault == Fault::Refuse {
        // For as long as the proxy lives.
        proxy.refuse(Duration::from_hours(1)).await;
    } else {
        proxy.strike(operation, 0, fault);
    }
    let read = async |range| {
        let mut read = store.read(&key, &ReadOptions { range, if_match: Some(etag.clone()), version: None }).await?;
        while let Some(chunk) = read.body.next().await {
            chunk?;
        }
        Ok(())
    };
    let sum = Some(md5(&body));
    let options = PutOptions { checksum: sum.clone(), ..PutOptions::default() };
    let answer = match operation {
        ListObjectsV2 => store.list(&ListRequest::default()).await.map(drop),
        HeadObject => store.head(&key, None).await.map(drop),
        GetObject => read(ReadRange::Full).await,
        GetObjectRange => read(ReadRange::Bytes(0..500)).await,
        GetObjectTagging => store.tags(&key, None).await.map(drop),
        PutObject => store.put(&"new".into(), whole(&body), &options).await.map(drop),
        CreateMultipartUpload => store.create_upload(&"v".into(), &PutOptions::default()).await.map(drop),
        UploadPart => store.put_part(&"u".into(), &upload, 2, whole(&body), sum.as_ref()).await.map(drop),
        CompleteMultipartUpload => {
            store.complete_upload(&"u".into(), &upload, std::slice::from_ref(&part), &PutOptions::default()).await.map(drop)
        }
        AbortMultipartUpload => store.abort_upload(&"u".into(), &upload).await,
        ListParts => store.list_parts(&"u".into(), &upload).await.map(drop),
        ListMultipartUploads => store.list_uploads("", None).await.map(drop),
        DeleteObject => store.delete(&key, &Condition::None).await,
        CopyObject => {
            let origin = store.copy_origin(&key, None).unwrap();
            store.copy(&origin, &etag, &"copy".into(), &PutOptions::default()).await.map(drop)
        }
    };
    if fault != Fault::Refuse {
        assert_eq!(proxy.struck(), 1, "{operation:?} {fault:?} did not strike");
    }
    answer
}

/// What lies between a source and a destination of one cell.
struct Scene<'a> {
    server: &'a Server,
    source: S3Store,
    destination: S3Store,
    at_source: Proxy,
    at_destination: Proxy,
    names: (String, String),
    queue: Arc<MemoryQueue>,
    state: Arc<MemoryState>,
}

impl Scene<'_> {
    fn task(&self, struck: bool) -> Sync {
        let (source, sink) = if struck {
            (store(self.server, &self.names.0, Some(&self.at_source)), store(self.server, &self.names.1, Some(&self.at_destination)))
        } else {
            (self.source.clone(), self.destination.clone())
        };
        self.between(source, sink)
    }

    /// Both sides as one store, which copies inside.
    fn inside(&self, struck: bool) -> Sync {
        let proxy = struck.then_some(&self.at_source);
        self.between(store(self.server, &self.names.0, proxy), store(self.server, &self.names.1, proxy))
    }

    fn between(&self, source: S3Store, sink: S3Store) -> Sync {
        let retry = RetryPolicy { tries: 6, base_ms: 200, cap_ms: 2_000 };
        let worker = WorkerSettings {
            lease_seconds: 2,
            max_delay_seconds: 1,
            transfer: TransferSettings {
                hold_max: 64 << 10,
                single_max: 1 << 20,
                part_size: PART as u64,
                parts_in_flight: 1,
                retry,
                ..TransferSettings::default()
            },
            ..WorkerSettings::default()
        };
        Sync::new(Arc::new(source), Arc::new(sink))
            .with_state(Arc::clone(&self.queue) as _, Arc::clone(&self.state) as _)
            .with_finder(FinderSettings { delete_extra: true, retry, ..FinderSettings::default() })
            .with_worker(worker)
    }

    /// A run whose worker dies while the destination holds a request back.
    async fn cut(&self, operation: Operation, after: u32) {
        self.at_destination.hold(operation, after);
        let task = self.task(true);
        tokio::select! {
            biased;
            () = self.at_destination.held() => {}
            report = task.run() => panic!("it ended before it was cut: {report:?}"),
        }
    }

    async fn is_equal(&self) -> bool {
        contents(&self.source, true).await == contents(&self.destination, true).await
    }
}

/// A run in which the operation is struck, and what comes of it.
pub(super) async fn play(
    server: &Server,
    operation: Operation,
    fault: Fault,
    elsewhere: &str,
    number: usize,
    violations: &mut Vec<String>,
) -> String {
    let names = (format!("from-{number}"), format!("to-{number}"));
    let scene = Scene {
        server,
        source: store(server, &names.0, None),
        destination: store(server, &names.1, None),
        at_source: Proxy::start(&server.endpoint, elsewhere),
        at_destination: Proxy::start(&server.endpoint, elsewhere),
        names,
        queue: Arc::new(MemoryQueue::new()),
        state: Arc::new(MemoryState::new()),
    };
    scene.source.create_bucket().await.unwrap();
    scene.destination.create_bucket().await.unwrap();
    let large = bytes(PART + 1000, 3);
    let put_large = async || put_multipart(&scene.source, "large", &large, PART, &PutOptions::default()).await;
    match operation {
        ListObjectsV2 | GetObject | PutObject => {
            for (n, key) in (0..).zip(["a", "b/c", "c"]) {
                put(&scene.source, key, bytes(1000, n)).await;
            }
            // What a listing gone wrong must not delete.
            put(&scene.destination, "a", bytes(1000, 0)).await;
        }
        GetObjectTagging => {
            let tags = [("name".to_owned(), "välue &".to_owned())].into();
            scene.source.put(&"tagged".into(), whole(&bytes(10, 1)), &PutOptions { tags, ..PutOptions::default() }).await.unwrap();
        }
        HeadObject | CopyObject => put(&scene.source, "inside", bytes(1000, 1)).await,
        GetObjectRange | CreateMultipartUpload | UploadPart | CompleteMultipartUpload => put_large().await,
        ListParts => {
            put_large().await;
            scene.cut(UploadPart, 1).await;
        }
        AbortMultipartUpload => {
            put_large().await;
            scene.cut(UploadPart, 1).await;
            put(&scene.source, "large", bytes(1000, 7)).await;
        }
        ListMultipartUploads => {
            put_large().await;
            // Its id is never learned: only a sweep finds it.
            scene.cut(CreateMultipartUpload, 0).await;
        }
        DeleteObject => {
            put(&scene.source, "kept", bytes(10, 1)).await;
            put(&scene.destination, "extra", bytes(10, 2)).await;
        }
    }
    let inside = matches!(operation, HeadObject | CopyObject);
    if inside && !scene.source.copy_origin(&"inside".into(), None).is_some_and(|origin| scene.source.can_copy(&origin)) {
        return "not asked for by the engine: this store's copies cannot be pinned".into();
    }
    let before = contents(&scene.destination, false).await;
    let struck = if matches!(operation, ListObjectsV2 | GetObject | GetObjectRange | GetObjectTagging) || inside {
        &scene.at_source
    } else {
        &scene.at_destination
    };
    // The second of two ranges: the first one tells the layout.
    struck.strike(operation, u32::from(operation == GetObjectRange), fault);
    let task = if inside { scene.inside(true) } else { scene.task(true) };
    let first = tokio::time::timeout(Duration::from_secs(60), task.run()).await;
    drop(task);
    if struck.struck() != 1 {
        violations.push(format!("it struck {} times: {first:?}", struck.struck()));
    }
    let Ok(first) = first else {
        violations.push("it hangs".into());
        return "hangs".into();
    };
    let told = told(&first);
    struck.settled().await;
    let source = contents(&scene.source, false).await;
    for (key, found) in contents(&scene.destination, false).await {
        if source.get(&key).is_none_or(|s| s.0 != found.0) && before.get(&key).is_none_or(|b| b.0 != found.0) {
            violations.push(format!("{key} holds what no version of the source was"));
        }
    }
    let equal = scene.is_equal().await;
    let open = open_uploads(&scene.destination).await;
    let end = match (&told, equal, open) {
        (None, true, 0) => return "done".into(),
        (None, true, _) => "done, but for an upload".to_owned(),
        (None, false, _) => {
            violations.push(format!("success is reported over a wrong destination: {first:?}"));
            return "wrong".into();
        }
        (Some(told), ..) => format!("told: {told}"),
    };
    let task = if inside { scene.inside(false) } else { scene.task(false) };
    let second = task.run().await;
    let open = open_uploads(&scene.destination).await;
    if self::told(&second).is_some() || !scene.is_equal().await || open > 0 {
        let failed = RecordQuery { status: Some(Status::Failed), ..RecordQuery::default() };
        let causes: Vec<_> = scene.state.query(&failed, 10).await.unwrap().into_iter().map(|r| r.failure).collect();
        violations.push(format!("the next run does not heal it ({open} uploads are open, {causes:?}): {second:?} after {first:?}"));
    }
    end
}

/// What a report says that is not done; `None` for a full success.
fn told(report: &Result<Report>) -> Option<String> {
    let report = match report {
        Ok(report) => report,
        Err(error) => return Some(format!("the run stops ({})", error.kind())),
    };
    let missing: Vec<&str> =
        report.run.outcomes.keys().map(String::as_str).filter(|o| !matches!(*o, "copied" | "already_current" | "deleted")).collect();
    if !missing.is_empty() {
        return Some(missing.join(", "));
    }
    (!report.is_success()).then(|| "the ledger does not close".to_owned())
}

/// Moves one object of whose first read a bit flips; whether the destination holds the right bytes.
pub(super) async fn flipped(server: &Server, opaque: bool) -> (Report, bool) {
    let (from, to) = (format!("flipped-{opaque}"), format!("copied-{opaque}"));
    let (source, sink) = (store(server, &from, None), store(server, &to, None));
    source.create_bucket().await.unwrap();
    sink.create_bucket().await.unwrap();
    put(&source, "k", bytes(1000, 1)).await;
    let proxy = Proxy::start(&server.endpoint, "");
    if opaque {
        proxy.add_to_reads("x-amz-server-side-encryption", "aws:kms");
    }
    proxy.strike(GetObject, 0, Fault::BitFlip);
    let report = Sync::new(Arc::new(store(server, &from, Some(&proxy))), Arc::new(sink.clone())).run().await.unwrap();
    assert_eq!(proxy.struck(), 1);
    (report, contents(&source, false).await == contents(&sink, false).await)
}
