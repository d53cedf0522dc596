//! Promises of finder and worker on memory backends, each by its name.

use dth_core::{
    checksum::Algorithm,
    env::SeededEnv,
    error::{ErrorKind, Op, Result},
    filter::FilterSettings,
    finder::{Finder, FinderSettings, Overwrite},
    index::{Index, IndexCapability, ListOrder, ListPage, ListRequest},
    job::{EventSettings, Intake, Job, JobParts, Pack, Seen},
    key_map::KeyMap,
    manifest::{self, Line, Spool, Verification},
    memory::{MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::{Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    prefixes::PrefixList,
    queue::{Message, Queue},
    retry::RetryPolicy,
    runs,
    scope::TaskScope,
    sink::{PutOptions, Sink, UploadId},
    source::{Read, ReadOptions, Source, SourceCapability},
    state::{Outcome, RunId, RunState, StateStore, Verified},
    sync::Sync,
    transfer::TransferSettings,
    worker::WorkerSettings,
    wrap::chaos::{Chaos, Faults, Strike, Weather},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

fn task(source: &MemoryStore, sink: &MemoryStore) -> Sync {
    Sync::new(Arc::new(source.clone()), Arc::new(sink.clone()))
}

fn bodies(store: &MemoryStore) -> BTreeMap<ObjectKey, bytes::Bytes> {
    store.snapshot().into_iter().map(|(key, object)| (key, object.body.clone())).collect()
}

/// A content-addressed store in which an entry's lines that name keys are its children.
fn graph(links: bool) -> MemoryStore {
    let children = |body: &[u8]| -> Vec<ObjectKey> {
        let text = String::from_utf8_lossy(body);
        text.lines().filter(|line| line.contains('/')).map(ObjectKey::from).collect()
    };
    MemoryStore::new(MemoryStoreSettings { children: Some(children), etag: EtagKind::Digest, links, ..MemoryStoreSettings::default() })
}

/// Leaves first, each only if the sink lacks it, the entry itself last.
#[tokio::test]
async fn children_arrive_before_their_entry() {
    let (source, sink) = (graph(false), graph(false));
    source.insert("index", "manifest/1\nmanifest/2");
    source.insert("manifest/1", "blob/a\nblob/shared");
    source.insert("manifest/2", "blob/shared\nblob/known");
    for (name, body) in [("blob/a", "a"), ("blob/shared", "shared"), ("blob/known", "known")] {
        source.insert(name, body);
    }
    sink.insert("blob/known", "known");
    let order: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&order);
    sink.watch(Box::new(move |key, _| seen.lock().unwrap().push(key.as_str().to_owned())));
    let ended = task(&source, &sink).copy_one(&"index".into()).await.unwrap();
    assert_eq!((ended.outcome, ended.bytes), (Outcome::COPIED, 21 + 18 + 22 + 1 + 6));
    let order = order.lock().unwrap();
    let at = |name: &str| order.iter().position(|n| n == name).unwrap();
    assert_eq!(order.len(), 5, "each once: {order:?}");
    assert!(at("blob/a") < at("manifest/1") && at("blob/shared") < at("manifest/1").min(at("manifest/2")) && at("index") == 4, "{order:?}");
    assert_eq!(bodies(&source), bodies(&sink));
}

/// R6: however many need it at once, a blob is brought once, and linked for the others.
#[tokio::test(start_paused = true)]
async fn a_blob_that_many_need_is_brought_once() {
    let (source, sink) = (graph(false), graph(true));
    for n in 0..20 {
        // The same bytes under a key of each repository's own.
        source.insert(format!("app{n}"), format!("app{n}/base\napp{n}/own"));
        source.insert(format!("app{n}/base"), vec![7; 20_000]);
        source.insert(format!("app{n}/own"), format!("own {n}"));
    }
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults { latency: 200, ..Faults::default() }));
    weather.keep_log();
    let counted = Chaos::new(Arc::new(sink.clone()), Arc::clone(&weather), 0);
    let filter = FilterSettings { include: vec!["*".into()], ..FilterSettings::default() };
    let finder = FinderSettings { filter, ..FinderSettings::default() };
    let report = Sync::new(Arc::new(source.clone()), Arc::new(counted)).with_finder(finder).run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 20, "{report}");
    let puts = weather.log().iter().filter(|line| line.contains("Put")).count();
    assert_eq!(puts, 20 + 20 + 1, "roots, blobs of their own, and the base once: {:#?}", weather.log());
    assert_eq!(bodies(&source), bodies(&sink));
}

/// R10: an entry that moves while its children are on their way is published with its own, or not at all.
#[tokio::test]
async fn a_root_that_moves_is_published_with_its_own_children() {
    let (source, sink) = (graph(false), graph(false));
    source.insert("tag", "old/layer");
    source.insert("old/layer", "old");
    source.insert("new/layer", "new");
    let moving = source.clone();
    sink.watch(Box::new(move |key, _| {
        if key.as_str() == "old/layer" {
            moving.insert("tag", "new/layer");
        }
    }));
    let ended = task(&source, &sink).copy_one(&"tag".into()).await.unwrap();
    assert_eq!(ended.bytes, 3 + 3 + 9, "what the first try brought counts, too");
    let held = sink.get(&"tag".into()).unwrap();
    assert_eq!(held.body, "new/layer");
    assert!(sink.get(&"new/layer".into()).is_some());
}

/// What is its own child is refused, and does not wait for itself.
#[tokio::test]
async fn a_graph_without_an_end_is_refused() {
    let children: fn(&[u8]) -> Vec<ObjectKey> = |_| vec!["a".into(), "b".into()];
    for etag in [EtagKind::Digest, EtagKind::Opaque] {
        let source = MemoryStore::new(MemoryStoreSettings { children: Some(children), etag, ..MemoryStoreSettings::default() });
        source.insert("a", "1");
        source.insert("b", "2");
        let sink = graph(false);
        let copying = Sync::new(Arc::new(source), Arc::new(sink.clone()));
        let error = copying.copy_one(&"a".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.chain());
        assert!(sink.snapshot().is_empty());
    }
}

/// A child that is gone fails its root, and the root is not published.
#[tokio::test]
async fn a_root_without_its_child_is_not_published() {
    let (source, sink) = (graph(false), graph(false));
    source.insert("root", "it/is/gone");
    assert!(task(&source, &sink).copy_one(&"root".into()).await.is_err());
    assert!(sink.snapshot().is_empty());
}

/// T19: sizes around every boundary, single and in parts, whatever the etags are made of.
#[tokio::test]
async fn sizes_around_every_boundary() {
    for (from, to) in [(EtagKind::Md5, EtagKind::Md5), (EtagKind::Md5, EtagKind::Opaque), (EtagKind::Opaque, EtagKind::Md5)] {
        let store = |etag| MemoryStore::new(MemoryStoreSettings { etag, chunk: 700, ..MemoryStoreSettings::default() });
        let (source, sink) = (store(from), store(to));
        for size in [0, 1, 999, 1000, 1001, 1999, 2000, 2001, 4000, 9_999, 10_000, 10_001] {
            let body: Vec<u8> = (0..size).map(|i: u32| (i * 7 + i / 256) as u8).collect();
            source.insert(format!("single/{size}"), body.clone());
            source.insert_parts(format!("parts/{size}"), body, 1500);
        }
        let transfer = TransferSettings { hold_max: 1000, single_max: 2000, part_size: 1000, ..TransferSettings::default() };
        let report = task(&source, &sink).with_worker(WorkerSettings { transfer, ..WorkerSettings::default() }).run().await.unwrap();
        assert!(report.is_success(), "{report}");
        assert_eq!(bodies(&source), bodies(&sink));
        assert_eq!(sink.open_uploads(), 0);
    }
}

/// Where both sides build etags from MD5, a copy has the etag of its source: a second run reads listings only.
#[tokio::test]
async fn etags_come_out_the_same() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("a", vec![1; 100]);
    source.insert_parts("b", vec![2; 5000], 700);
    let transfer = TransferSettings { hold_max: 200, ..TransferSettings::default() };
    let settings = WorkerSettings { transfer, ..WorkerSettings::default() };
    assert!(task(&source, &sink).with_worker(settings).run().await.unwrap().is_success());
    for key in ["a", "b"] {
        assert_eq!(source.get(&key.into()).unwrap().etag, sink.get(&key.into()).unwrap().etag, "{key}");
    }
    let again = task(&source, &sink).run().await.unwrap();
    assert_eq!(again.run.totals.unchanged.objects, 2);
}

/// R13: what the source offers is used, and said.
#[tokio::test]
async fn the_strongest_check_is_taken_and_recorded() {
    let opaque = || MemoryStoreSettings { etag: EtagKind::Opaque, checksums: &[], ..MemoryStoreSettings::default() };
    let (md5, bare) = (MemoryStore::default(), MemoryStore::new(opaque()));
    for source in [&md5, &bare] {
        source.insert("k", "bytes");
    }
    let verified = |source: MemoryStore| async move {
        task(&source, &MemoryStore::default()).copy_one(&"k".into()).await.unwrap().record.verified.unwrap()
    };
    assert!(matches!(verified(md5).await, Verified::Source(_)));
    assert!(matches!(verified(bare).await, Verified::Transport(_)), "nothing was offered: said, not hidden");
}

/// Q4: poison becomes a dead letter with its reason; its neighbours are done.
#[tokio::test(start_paused = true)]
async fn poison_is_given_up_with_the_reason() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("good", "good");
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let poison = Message { body: "{broken".into(), delay: Duration::ZERO };
    queue.send(&[poison]).await.unwrap().pop().unwrap().unwrap();
    let report = task(&source, &sink).with_state(queue.clone(), state).run().await.unwrap();
    assert!(report.is_success(), "{report}");
    while queue.depth().await.unwrap().dead == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(queue.dead_letters(None, 9).await.unwrap()[0].reason.contains("invalid request"));
}

/// An object too large for the sink is skipped with the reason, and the ledger closes.
#[tokio::test(start_paused = true)]
async fn what_the_sink_cannot_carry_is_skipped_with_the_reason() {
    let (source, sink) =
        (MemoryStore::default(), MemoryStore::new(MemoryStoreSettings { max_put: 3, multipart: None, ..MemoryStoreSettings::default() }));
    source.insert("ok", "ok");
    source.insert("too large", "too large");
    let report = task(&source, &sink).run().await.unwrap();
    assert!(report.closed, "{report}");
    assert_eq!(report.run.outcome("skipped:unrepresentable").objects, 1, "{report}");
    assert_eq!(report.run.outcomes_like("copied").objects, 1);
}

#[tokio::test]
async fn overwrite_policies_hold() {
    for (overwrite, expected) in [(Overwrite::Never, "old"), (Overwrite::Always, "new")] {
        let (source, sink) = (MemoryStore::default(), MemoryStore::default());
        source.insert("k", "new");
        sink.insert("k", "old");
        let settings = FinderSettings { overwrite, ..FinderSettings::default() };
        let report = task(&source, &sink).with_finder(settings).run().await.unwrap();
        assert!(report.closed);
        assert_eq!(sink.get(&"k".into()).unwrap().body, expected);
    }
}

/// Metadata and tags come with the object.
#[tokio::test]
async fn metadata_and_tags_are_carried() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    let mut options = PutOptions::default();
    options.attributes.content_type = Some("text/plain".into());
    options.attributes.user.insert("who".into(), "日本".into());
    options.tags.push(("a".into(), "b".into()));
    source.insert_with("k", "v", &options);
    assert!(task(&source, &sink).run().await.unwrap().is_success());
    let there = sink.get(&"k".into()).unwrap();
    assert_eq!((&there.attributes, &there.tags), (&options.attributes, &options.tags));
}

/// T11: an object that vanished after it was listed is cancelled, not failed.
#[tokio::test]
async fn a_vanished_object_is_cancelled() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("k", "v");
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let task = task(&source, &sink).with_state(queue, state.clone());
    let run = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    source.remove(&"k".into());
    let report = task.run().await.unwrap();
    assert_eq!(report.run.id, run.id, "the run is resumed");
    assert_eq!((report.run.outcome("cancelled").objects, report.run.state), (1, RunState::Finished));
    assert!(report.is_success());
}

/// A store that lists each page backwards, and says so or not.
#[derive(Debug)]
struct Backwards {
    store: MemoryStore,
    order: ListOrder,
}

#[async_trait::async_trait]
impl Index for Backwards {
    fn name(&self) -> String {
        "backwards".into()
    }
    fn index_capability(&self) -> IndexCapability {
        IndexCapability { order: self.order, ..self.store.index_capability() }
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let mut page = self.store.list(request).await?;
        page.entries.reverse();
        Ok(page)
    }
    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.store.head(key, version).await
    }
}

/// F8: a listing that is in no order, and says so, is brought into byte order before it is compared.
#[tokio::test]
async fn an_unordered_listing_is_sorted() {
    let settings = || MemoryStoreSettings { page: 7, ..MemoryStoreSettings::default() };
    let (source, sink) = (MemoryStore::new(settings()), MemoryStore::new(settings()));
    for i in 0..100 {
        source.insert(format!("k{i}"), "same");
        if i % 3 > 0 {
            sink.insert(format!("k{i}"), if i % 3 == 1 { "same" } else { "else" });
        }
    }
    let queue = Arc::new(MemoryQueue::new());
    let unordered = |store: &MemoryStore| Arc::new(Backwards { store: store.clone(), order: ListOrder::Unordered });
    let finder = Finder::builder(unordered(&source), unordered(&sink), Arc::clone(&queue) as _, Arc::new(MemoryState::new()));
    let run = finder.build().unwrap().run(&CancellationToken::new()).await.unwrap();
    let t = run.totals;
    assert_eq!((t.listed.objects, t.unchanged.objects, t.queued.objects), (100, 33, 67));
    assert_eq!((t.source_pages, t.destination_pages), (15, 10), "each page is asked for once");
}

/// F5: only what a list of prefixes names is moved, and only such keys are extra at the destination.
#[tokio::test]
async fn a_list_of_prefixes_selects_what_is_moved() {
    let text: &[u8] = b"logs/2026/\r\n\r\nb\nlogs/2026/01/\nzz\n";
    let prefixes = PrefixList::read("list", Box::pin(futures_util::stream::iter([Ok(bytes::Bytes::from_static(text))]))).await.unwrap();
    assert_eq!(prefixes.count(), 3);
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for key in ["a", "b", "b/c", "bc", "c", "logs/2025/x", "logs/2026/01/x", "logs/2026/y", "logs/2027", "z", "zz"] {
        source.insert(key, key);
    }
    for key in ["to/b/extra", "to/c/stays", "to/logs/2026/extra", "elsewhere"] {
        sink.insert(key, "x");
    }
    let finder = FinderSettings { prefixes: Some(prefixes.clone()), delete_extra: true, ..FinderSettings::default() };
    let task = task(&source, &sink).with_keys(KeyMap::new("to")).with_finder(finder);
    let report = task.run().await.unwrap();
    assert!(report.is_success(), "{report}");
    let found: Vec<String> = bodies(&sink).into_keys().map(|k| k.as_str().to_owned()).collect();
    let expected =
        ["elsewhere", "to/b", "to/b/c", "to/bc", "to/c/stays", "to/logs/2026/01/x", "to/logs/2026/y", "to/zz"].map(str::to_owned);
    assert_eq!(found, expected);
    let both = FinderSettings { prefix: "logs/".into(), prefixes: Some(prefixes), ..FinderSettings::default() };
    let error = self::task(&source, &sink).with_finder(both).run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.chain().contains("finder.prefix"), "{}", error.chain());
}

/// F8: a listing that is not in byte order is noticed, never compared wrongly.
#[tokio::test]
async fn an_unordered_listing_is_refused_by_name() {
    let source = MemoryStore::default();
    source.insert("a", "1");
    source.insert("b", "2");
    let finder = Finder::builder(
        Arc::new(Backwards { store: source, order: ListOrder::Bytes }),
        Arc::new(MemoryStore::default()),
        Arc::new(MemoryQueue::new()),
        Arc::new(MemoryState::new()),
    );
    let error = finder.build().unwrap().run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.chain().contains("not in byte order"), "{}", error.chain());
}

/// A sink without parts gets an object in one stream, proven by the source's etag of parts before its last byte.
#[tokio::test]
async fn a_sink_without_parts_gets_proven_streams() {
    let bare = || MemoryStoreSettings { checksums: &[], ..MemoryStoreSettings::default() };
    let source = MemoryStore::new(bare());
    let sink = MemoryStore::new(MemoryStoreSettings { multipart: None, etag: EtagKind::Opaque, ..bare() });
    let body: Vec<u8> = (0..9_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    source.insert_parts("parts", body.clone(), 5 << 20);
    source.insert("plain", body.clone());
    let state = Arc::new(MemoryState::new());
    let task = task(&source, &sink).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _);
    assert!(task.run().await.unwrap().is_success());
    assert_eq!(bodies(&source), bodies(&sink));
    for record in state.records(&["parts".into(), "plain".into()]).await.unwrap() {
        // The reading was proven; of what it stored, this sink shows nothing.
        assert_eq!(record.unwrap().verified, Some(Verified::Transport(Algorithm::Md5)));
    }
}

/// Paused, a run moves nothing; resumed, it goes on to its end; cancelled, it ends without the rest.
#[tokio::test(start_paused = true)]
async fn a_run_can_be_paused_resumed_and_cancelled() {
    for cancelled in [false, true] {
        let (source, sink) = (MemoryStore::default(), MemoryStore::default());
        for i in 0..2000 {
            source.insert(format!("k{i:04}"), "body");
        }
        let slow = TransferSettings { requests_per_second: Some(100), ..TransferSettings::default() };
        let worker = WorkerSettings { transfer: slow, ..WorkerSettings::default() };
        let run = task(&source, &sink).with_worker(worker).start().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        run.pause().await;
        let held = sink.snapshot().len();
        assert!(held > 0 && held < 2000, "{held}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(sink.snapshot().len(), held, "nothing moves while it is paused");
        assert_eq!(run.progress().await.unwrap().outcomes_like("copied").objects, held as u64);
        if cancelled {
            run.cancel().await.unwrap();
            let report = run.wait().await.unwrap();
            assert_eq!((report.run.state, sink.snapshot().len()), (RunState::Cancelled, held));
        } else {
            run.resume();
            let report = run.wait().await.unwrap();
            assert!(report.is_success(), "{report}");
            assert_eq!(bodies(&source), bodies(&sink));
        }
    }
}

/// What failed is tried again, with and without its dead letters; each in a run whose ledger closes.
#[tokio::test(start_paused = true)]
async fn failed_objects_are_retried() {
    let (source, sink) = (graph(false), graph(false));
    for key in ["a", "b", "c"] {
        source.insert(key, "a/child");
    }
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let task = task(&source, &sink).with_state(Arc::clone(&queue) as _, Arc::clone(&state) as _);
    let report = task.run().await.unwrap();
    assert_eq!(report.failed.objects, 3, "{report}");
    // One dead letter is gone: the record alone tells.
    let dead = queue.dead_letters(None, 10).await.unwrap();
    assert_eq!(dead.len(), 3);
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    queue.redrive(&dead[0].id, "{}").await.unwrap();
    let run = runs::retry_failed(&*state, &*queue, None, &Intake::everything(), &env, &retry).await.unwrap().unwrap();
    assert_eq!(run.totals.queued.objects, 3);
    source.insert("a/child", "late");
    let healed = task.run().await.unwrap();
    assert_eq!((healed.run.id.clone(), healed.run.outcomes_like("copied").objects), (run.id, 3), "{healed}");
    assert_eq!(bodies(&source), bodies(&sink));
    assert_eq!(runs::retry_failed(&*state, &*queue, None, &Intake::everything(), &env, &retry).await.unwrap(), None);
}

/// A queue, a state, and tasks on them that hand objects of more than 1,000 bytes out in parts of so many, one a job.
#[derive(Default)]
struct Handed {
    queue: Arc<MemoryQueue>,
    state: Arc<MemoryState>,
}

impl Handed {
    fn task(&self, source: Arc<dyn Source>, sink: Arc<dyn Sink>) -> Sync {
        let transfer = TransferSettings { hold_max: 1000, single_max: 1000, part_size: 1000, ..TransferSettings::default() };
        // One message at a time, so that what it leaves in the queue can be looked at.
        let settings = WorkerSettings { packs: 1, giant_threshold: 1000, giant_parts: 1, transfer, ..WorkerSettings::default() };
        Sync::new(source, sink).with_state(Arc::clone(&self.queue) as _, Arc::clone(&self.state) as _).with_worker(settings)
    }
}

/// A store's weather, and the store in it.
fn in_weather(store: &MemoryStore, faults: Faults) -> (Arc<Weather>, Arc<Chaos<MemoryStore>>) {
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), faults));
    weather.keep_log();
    (Arc::clone(&weather), Arc::new(Chaos::new(Arc::new(store.clone()), weather, 1)))
}

/// Works until it is dropped.
fn working(task: &Sync) -> TaskScope {
    let worker = task.worker().expect("its settings are good");
    let mut scope = TaskScope::new();
    scope.spawn(async move { worker.run(CancellationToken::new()).await });
    scope
}

/// A store that is away for ten minutes costs time, and neither objects nor the parts of a giant that were brought before.
#[tokio::test(start_paused = true)]
async fn an_outage_of_ten_minutes_is_waited_for() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for n in 0..20 {
        source.insert(format!("k{n:02}"), "body");
    }
    source.insert("giant", vec![7; 9000]);
    let (weather, away) = in_weather(&sink, Faults { latency: 4_000, ..Faults::default() });
    let handed = Handed::default();
    let (queue, state) = (&handed.queue, &handed.state);
    let found = handed.task(Arc::new(source.clone()), Arc::new(sink.clone())).finder().unwrap();
    let run = found.run(&CancellationToken::new()).await.unwrap();
    let workers = [(); 2].map(|()| working(&handed.task(Arc::new(source.clone()), Arc::clone(&away) as _)));
    let done = |op: &str| weather.log().iter().filter(|line| line.ends_with(&format!("{op}: done"))).count();
    while done("PutPart") < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(done("PutPart") < 9, "parts are missing when it goes away");
    weather.set(Faults { before: 1000, ..Faults::default() });
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(queue.dead_letters(None, 10).await.unwrap().is_empty());
    weather.set(Faults::default());
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    let wait = runs::wait(&**state, &run.id, &env, &retry);
    let run = tokio::time::timeout(Duration::from_secs(1200), wait).await.expect("it ends").unwrap();
    assert_eq!(run.outcomes_like("copied").objects, 21);
    assert_eq!(bodies(&source), bodies(&sink));
    assert_eq!((done("CreateUpload"), done("PutPart")), (1, 9), "no part twice");
    drop(workers);
}

/// Tries that an outage has used up do not leave a giant to one worker alone.
#[tokio::test(start_paused = true)]
async fn a_giant_is_handed_out_after_an_outage() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("giant", vec![7; 9000]);
    let (weather, away) = in_weather(&sink, Faults { before: 1000, ..Faults::default() });
    let handed = Handed::default();
    let queue = &handed.queue;
    let found = handed.task(Arc::new(source.clone()), Arc::new(sink.clone())).finder().unwrap();
    found.run(&CancellationToken::new()).await.unwrap();
    let _worker = working(&handed.task(Arc::new(source.clone()), away));
    tokio::time::sleep(Duration::from_secs(600)).await;
    weather.set(Faults { latency: 2_000, ..Faults::default() });
    let mut most = 0;
    while queue.depth().await.unwrap().pending() > 0 {
        most = most.max(queue.depth().await.unwrap().pending());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(most > 4, "{most} messages at once: its parts were no jobs");
    assert_eq!(bodies(&source), bodies(&sink));
}

/// Parts that were given up leave their object to one worker, which may die of it several times.
#[tokio::test(start_paused = true)]
async fn the_lone_worker_of_a_giant_may_die() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("giant", vec![7; 9000]);
    let calm = Faults { latency: 4_000, ..Faults::default() };
    let (weather, away) = in_weather(&sink, calm);
    let handed = Handed::default();
    let found = handed.task(Arc::new(source.clone()), Arc::new(sink.clone())).finder().unwrap();
    found.run(&CancellationToken::new()).await.unwrap();
    let task = handed.task(Arc::new(source.clone()), away);
    let mut worker = working(&task);
    let log = |op: &str| weather.log().iter().filter(|line| line.ends_with(&format!("{op}: done"))).count();
    let reach = async |op: &str, times: usize| {
        while log(op) < times {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    reach("PutPart", 3).await;
    weather.set(Faults { before: 1000, ..Faults::default() });
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    weather.set(calm);
    reach("CreateUpload", 2).await;
    for _ in 0..3 {
        reach("PutPart", log("PutPart") + 1).await;
        drop(std::mem::replace(&mut worker, working(&task)));
    }
    while handed.queue.depth().await.unwrap().pending() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(handed.queue.dead_letters(None, 10).await.unwrap().is_empty());
    assert_eq!((log("CreateUpload"), bodies(&source)), (2, bodies(&sink)));
}

/// An object that kills whoever reads it.
#[derive(Debug)]
struct Deadly {
    store: MemoryStore,
    deaths: Arc<Notify>,
}

#[async_trait::async_trait]
impl Index for Deadly {
    fn name(&self) -> String {
        "deadly".into()
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

#[async_trait::async_trait]
impl Source for Deadly {
    fn source_capability(&self) -> SourceCapability {
        self.store.source_capability()
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        if key.as_str() == "deadly" {
            self.deaths.notify_one();
            return std::future::pending().await;
        }
        self.store.read(key, options).await
    }
}

/// Q4: one object that kills its worker each time takes none of its neighbours along, and becomes a dead letter of its own.
#[tokio::test(start_paused = true)]
async fn an_object_that_kills_workers_is_given_up_alone() {
    let (store, sink) = (MemoryStore::default(), MemoryStore::default());
    for n in 0..40 {
        store.insert(format!("k{n:02}"), "body");
    }
    store.insert("deadly", "body");
    let deaths = Arc::new(Notify::new());
    let source = Arc::new(Deadly { store: store.clone(), deaths: Arc::clone(&deaths) });
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let settings = WorkerSettings { max_attempts: 2, ..WorkerSettings::default() };
    let task = Sync::new(source, Arc::new(sink.clone())).with_state(Arc::clone(&queue) as _, Arc::clone(&state) as _).with_worker(settings);
    let run = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    let mut wait = Box::pin(runs::wait(&*state, &run.id, &env, &retry));
    let mut died = 0;
    let run = loop {
        let worker = task.worker().unwrap();
        let mut scope = TaskScope::new();
        scope.spawn(async move { worker.run(CancellationToken::new()).await });
        tokio::select! {
            run = &mut wait => break run.unwrap(),
            () = deaths.notified() => died += 1,
        }
        assert!(died < 30, "it goes on killing");
        drop(scope);
    };
    assert_eq!((run.outcomes_like("copied").objects, run.outcomes_like("failed").objects), (40, 1));
    let dead = queue.dead_letters(None, 10).await.unwrap();
    assert!(dead.len() == 1 && dead[0].body.contains("deadly") && dead[0].reason.contains("died or hung"), "{dead:?}");
    store.remove(&"deadly".into());
    assert_eq!(bodies(&store), bodies(&sink));
}

/// The destination of a giant is written by somebody else while its parts are brought: that costs a look, and no part twice.
#[tokio::test(start_paused = true)]
async fn a_giant_is_completed_over_what_was_written_meanwhile() {
    let store = || MemoryStore::new(MemoryStoreSettings { etag: EtagKind::Opaque, ..MemoryStoreSettings::default() });
    let (source, sink) = (store(), store());
    source.insert("giant", vec![7; 5000]);
    let (weather, slow) = in_weather(&sink, Faults::default());
    weather.script_op(Op::CompleteUpload, 1, Strike::Freeze);
    let task = Handed::default().task(Arc::new(source.clone()), slow);
    let others = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        sink.insert("giant", "somebody else's");
    };
    let (report, ()) = tokio::join!(task.run(), others);
    let report = report.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1, "{report}");
    assert_eq!(bodies(&source), bodies(&sink));
    let log = weather.log();
    let calls = |op: &str| log.iter().filter(|line| line.contains(op)).count();
    assert_eq!((calls("PutPart"), calls("CreateUpload"), calls("CompleteUpload")), (5, 1, 2), "{log:#?}");
}

/// Does the message that lies in the queue, and leaves what comes of it there.
async fn one_message(task: &Sync, queue: &MemoryQueue) {
    let (worker, stop) = (task.worker().expect("its settings are good"), CancellationToken::new());
    let drain = async {
        while queue.depth().await.is_ok_and(|depth| depth.leased == 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.cancel();
    };
    tokio::join!(worker.run(stop.clone()), drain);
}

/// A giant that jobs of two runs wait for: when the run that brings it is called off, the other one's ledger must close.
#[tokio::test(start_paused = true)]
async fn a_run_does_not_wait_for_one_that_was_called_off() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("giant", vec![1; 5000]);
    let (_, slow) = in_weather(&source, Faults { latency: 1_000, ..Faults::default() });
    let handed = Handed::default();
    let (queue, state) = (&handed.queue, &handed.state);
    let task = handed.task(slow, Arc::new(sink.clone()));
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    let first = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    one_message(&task, queue).await;
    // The first run's parts, of a version that is not any more.
    assert_eq!(queue.depth().await.unwrap().ready, 4);
    while let Some(part) = queue.receive(1, Duration::from_secs(9), Duration::ZERO).await.unwrap().pop() {
        queue.ack(&part.receipt).await.unwrap();
    }
    source.insert("giant", vec![2; 5000]);
    let second = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    one_message(&task, queue).await;
    assert_eq!(queue.depth().await.unwrap().ready, 4, "the second run's parts");
    runs::cancel(&**state, &second.id, &env, &retry).await.unwrap();
    let _worker = working(&task);
    let wait = runs::wait(&**state, &first.id, &env, &retry);
    let first = tokio::time::timeout(Duration::from_secs(600), wait).await.expect("its ledger closes").unwrap();
    assert_eq!((first.state, first.outcomes_like("copied").objects), (RunState::Finished, 1));
    assert_eq!(bodies(&source), bodies(&sink));
}

/// The same where an event wants the giant, too.
#[tokio::test(start_paused = true)]
async fn an_event_does_not_end_with_a_run_that_was_called_off() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("giant", vec![1; 5000]);
    let (_, slow) = in_weather(&source, Faults { latency: 1_000, ..Faults::default() });
    let handed = Handed::default();
    let (queue, state) = (&handed.queue, &handed.state);
    let task = handed.task(slow, Arc::new(sink.clone()));
    let run = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    one_message(&task, queue).await;
    let mut parts = Vec::new();
    while let Some(part) = queue.receive(1, Duration::from_secs(900), Duration::ZERO).await.unwrap().pop() {
        parts.push(part);
    }
    assert_eq!(parts.len(), 4, "the run's");
    queue.send(&[Message { body: r#"{"key":"giant","size":5000}"#.into(), delay: Duration::ZERO }]).await.unwrap();
    one_message(&task, queue).await;
    // What the event has handed out finds a closer, and passes.
    while let Some(part) = queue.receive(1, Duration::from_secs(9), Duration::ZERO).await.unwrap().pop() {
        queue.ack(&part.receipt).await.unwrap();
    }
    for part in parts {
        queue.release(&part.receipt, Duration::ZERO).await.unwrap();
    }
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    runs::cancel(&**state, &run.id, &env, &retry).await.unwrap();
    let _worker = working(&task);
    while queue.depth().await.unwrap().pending() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(bodies(&source), bodies(&sink));
}

/// A prefix that is narrowed while a run goes on: jobs of other keys fail by themselves, and the run ends.
#[tokio::test(start_paused = true)]
async fn strays_of_a_pack_fail_alone() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for key in ["a/1", "a/2", "b/1"] {
        source.insert(key, "body");
    }
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let task = task(&source, &sink).with_state(Arc::clone(&queue) as _, Arc::clone(&state) as _);
    let run = task.finder().unwrap().run(&CancellationToken::new()).await.unwrap();
    let narrow = task.with_finder(FinderSettings { prefix: "a/".into(), ..FinderSettings::default() });
    let report = narrow.carry_on(&run.id).await.unwrap();
    assert_eq!((report.run.outcomes_like("copied").objects, report.failed.objects, report.closed), (2, 1, true), "{report}");
    let dead = queue.dead_letters(None, 10).await.unwrap();
    assert!(dead.len() == 1 && dead[0].body.contains("b/1") && dead[0].reason.contains("prefix"), "{dead:?}");
    assert_eq!(sink.snapshot().len(), 2);
}

/// Dead letters of another task, or that this one was told to leave alone, do not come to life by being sent again.
#[tokio::test(start_paused = true)]
async fn only_jobs_of_the_task_are_redriven() {
    let (queue, state) = (MemoryQueue::new(), MemoryState::new());
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    let finder = FinderSettings { prefix: "photos/".into(), ..FinderSettings::default() };
    let intake = Intake::new(&finder, &EventSettings { deletes: false, bucket: Some("ours".into()) }).unwrap();
    let record = |bucket: &str, key: &str| {
        format!(r#"{{"Records":[{{"eventName":"ObjectCreated:Put","s3":{{"bucket":{{"name":"{bucket}"}},"object":{{"key":"{key}"}}}}}}]}}"#)
    };
    let pack = |key: &str| {
        let job = Job::copy(&Entry::new(key, 1, None), Seen::Unknown);
        Pack::new(&env, Some(RunId::new("r")), vec![job]).to_body()
    };
    let strays = [
        r#"{"key":"outside/x","event":"delete"}"#.to_owned(),
        r#"{"key":"photos/x","event":"delete"}"#.to_owned(),
        record("another", "photos/y"),
        pack("outside/z"),
    ];
    let ours = [record("ours", "photos/a"), pack("photos/b")];
    for body in strays.iter().chain(&ours) {
        queue.send(&[Message { body: body.clone(), delay: Duration::ZERO }]).await.unwrap();
        let delivery = queue.receive(1, Duration::from_secs(9), Duration::ZERO).await.unwrap().remove(0);
        queue.dead_letter(&delivery, "why").await.unwrap();
    }
    let run = runs::redrive(&state, &queue, None, &intake, &env, &retry).await.unwrap().unwrap();
    assert_eq!(run.totals.queued.objects, 2);
    let left: Vec<String> = queue.dead_letters(None, 10).await.unwrap().into_iter().map(|letter| letter.body).collect();
    assert_eq!(left, strays);
}

/// A queue may give the message of some parts up by itself; sent again, it is the object's, and its run ends.
#[tokio::test(start_paused = true)]
async fn parts_that_the_queue_gave_up_are_redriven_as_their_object() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("giant", vec![7; 5000]);
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let entry = source.head(&"giant".into(), None).await.unwrap().entry;
    let parts = JobParts { upload: UploadId::new("gone"), first: 2, last: 3, attempts: 1 };
    let job = Job { parts: Some(parts), ..Job::copy(&entry, Seen::Absent) };
    let body = Pack::new(&SeededEnv::new(1), Some(RunId::new("old")), vec![job]).to_body();
    queue.send(&[Message { body, delay: Duration::ZERO }]).await.unwrap();
    let delivery = queue.receive(1, Duration::from_secs(9), Duration::ZERO).await.unwrap().remove(0);
    queue.dead_letter(&delivery, "a hundred deliveries").await.unwrap();
    let (env, retry) = (SeededEnv::new(2), RetryPolicy::default());
    let run = runs::redrive(&*state, &*queue, None, &Intake::everything(), &env, &retry).await.unwrap().unwrap();
    let task = task(&source, &sink).with_state(queue, state.clone());
    let worker = task.worker().unwrap();
    let mut scope = TaskScope::new();
    scope.spawn(async move { worker.run(CancellationToken::new()).await });
    let wait = runs::wait(&*state, &run.id, &env, &retry);
    let run = tokio::time::timeout(Duration::from_secs(60), wait).await.expect("its ledger closes").unwrap();
    assert_eq!((run.state, run.outcomes_like("copied").objects), (RunState::Finished, 1));
    assert_eq!(bodies(&source), bodies(&sink));
}

/// A manifest of all: copied objects by their records, equal ones by the finder's spool, each key once, also after a finder
/// that died and did a step again.
#[tokio::test]
async fn the_manifest_names_every_object_once() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for i in 0..2500 {
        source.insert(format!("k{i:04}"), "same");
        if i % 2 == 0 {
            sink.insert(format!("k{i:04}"), "same");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path());
    let state = Arc::new(MemoryState::new());
    let task = task(&source, &sink).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _).with_spool(spool.clone());
    let id = task.begin().await.unwrap();
    // A step of an earlier finder that died before it was recorded.
    std::fs::create_dir_all(folder.path().join(id.as_str())).unwrap();
    std::fs::write(folder.path().join(id.as_str()).join("000000-0000000001.jsonl"), "{\"torn\"").unwrap();
    assert!(task.carry_on(&id).await.unwrap().is_success());
    let mut out = Vec::new();
    let copied = manifest::export(&*state, &KeyMap::default(), &mut out).await.unwrap();
    let equal = spool.export(&id, &*state, &mut out).await.unwrap();
    assert_eq!((copied, equal), (1250, 1250));
    let lines = String::from_utf8(out).unwrap();
    let mut checked = Verification::default();
    let mut keys = BTreeSet::new();
    for line in lines.lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        manifest::verify(&line, &source, &sink, &KeyMap::default(), &mut checked).await.unwrap();
        keys.insert(line.key);
    }
    assert_eq!((keys.len(), checked.good), (2500, 2500));
}

/// An entry that lacks a child, or a child of a child, is wrong, whoever else needs it.
#[tokio::test]
async fn what_lacks_a_child_is_told() {
    let (source, sink) = (graph(false), graph(false));
    for (key, body) in [
        ("one", "m/1"),
        ("two", "m/1\nm/2"),
        ("m/1", "blob/a\nblob/b"),
        ("m/2", "blob/b"),
        ("blob/a", "a"),
        ("blob/b", "b"),
        ("alone", "x"),
    ] {
        source.insert(key, body);
    }
    let state = Arc::new(MemoryState::new());
    let sync = task(&source, &sink).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _);
    assert!(sync.run().await.unwrap().is_success());
    let check = async || {
        let (mut out, mut result) = (Vec::new(), Verification::default());
        manifest::export(&*state, &KeyMap::default(), &mut out).await.unwrap();
        for line in String::from_utf8(out).unwrap().lines() {
            let line: Line = serde_json::from_str(line).unwrap();
            manifest::verify(&line, &source, &sink, &KeyMap::default(), &mut result).await.unwrap();
        }
        result
    };
    let whole = check().await;
    assert_eq!((whole.checked, whole.good, whole.children), (7, 7, 4), "{whole:?}");
    sink.delete(&"blob/a".into(), &dth_core::sink::Condition::None).await.unwrap();
    let lacking = check().await;
    assert_eq!(lacking.wrong, ["blob/a", "m/1", "one", "two"].map(ObjectKey::from), "{lacking:?}");
}

fn keys() -> impl Strategy<Value = Vec<(String, u8)>> {
    prop::collection::vec(("[a-c/é😀]{1,5}", 0..3u8), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// F2: whatever the pages, shards and splits, each key is decided on exactly once, as a model of two maps decides.
    #[test]
    fn finder_agrees_with_its_model(left in keys(), right in keys(), page in 1..5u32, shards in 1..5usize, jobs in 1..7usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = || MemoryStore::new(MemoryStoreSettings { page, ..MemoryStoreSettings::default() });
            let (source, sink) = (store(), store());
            let map = KeyMap::new("p");
            for (key, version) in &left {
                source.insert(key.as_str(), vec![*version; 3]);
            }
            for (key, version) in &right {
                sink.insert(map.to_destination(&key.as_str().into()), vec![*version; 3]);
            }
            let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
            let settings =
                FinderSettings { shards, pack_jobs: jobs, split_after_pages: 1, delete_extra: true, ..FinderSettings::default() };
            let finder = Finder::builder(Arc::new(source.clone()), Arc::new(sink.clone()), queue.clone(), state.clone());
            let finder = finder.with_keys(map.clone()).with_settings(settings).build().unwrap();
            let run = finder.run(&CancellationToken::new()).await.unwrap();
            let (here, there) = (bodies(&source), bodies(&sink));
            let mut expected: Vec<ObjectKey> =
                here.iter().filter(|(k, b)| there.get(&map.to_destination(k)) != Some(*b)).map(|(k, _)| k.clone()).collect();
            expected.extend(there.keys().filter_map(|k| map.to_source(k)).filter(|k| !here.contains_key(k)));
            expected.sort();
            let mut found = Vec::new();
            loop {
                let deliveries = queue.receive(100, Duration::from_secs(1000), Duration::ZERO).await.unwrap();
                if deliveries.is_empty() {
                    break;
                }
                for delivery in deliveries {
                    let pack = dth_core::job::Pack::parse(&delivery.body, &dth_core::env::SystemEnv).unwrap();
                    found.extend(pack.jobs.into_iter().map(|job| job.key));
                }
            }
            found.sort();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(run.totals.listed.objects, here.len() as u64);
            prop_assert_eq!(run.totals.unchanged.objects + run.totals.queued.objects, here.len() as u64);
            prop_assert!(state.outbox(&run.id, 10).await.unwrap().is_empty());
            Ok(())
        })?;
    }
}

/// Whatever follows each other between two pages, a step stays small enough for every store.
#[tokio::test]
async fn a_step_of_the_finder_stays_small() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for n in 0..30_000 {
        sink.insert(format!("m/{n:06}"), "old");
    }
    source.insert("z", "new");
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let settings = FinderSettings { shards: 1, pack_jobs: 20, delete_extra: true, max_delete: 100_000, ..FinderSettings::default() };
    let finder = Finder::builder(Arc::new(source.clone()), Arc::new(sink), queue.clone(), state.clone());
    let finder = finder.with_settings(settings).build().unwrap();
    // The state refuses a step with more packs than a store has to take.
    let run = finder.run(&CancellationToken::new()).await.unwrap();
    assert_eq!((run.totals.extra_queued.objects, run.totals.queued.objects), (30_000, 1));
    assert_eq!(queue.depth().await.unwrap().ready, 1501);
}

/// Uploads of other tools are not ours to sweep.
#[tokio::test]
async fn a_sweep_leaves_other_uploads_alone() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("k", "v");
    sink.create_upload(&"k".into(), &PutOptions::default()).await.unwrap();
    let task = task(&source, &sink);
    assert!(task.run().await.unwrap().is_success());
    let swept = task.sweep(Duration::ZERO).await.unwrap();
    assert_eq!((swept.listed, swept.aborted, swept.left_alone), (1, 0, 1));
}

/// The destination is asked for open uploads where one was ever begun by us, and only there: it costs a request, a right, and on a long
/// path a round trip after the last object.
#[tokio::test]
async fn a_run_that_never_began_an_upload_asks_for_none() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("small", "v");
    let (weather, seen) = in_weather(&sink, Faults::default());
    let state = Arc::new(MemoryState::new());
    let transfer = TransferSettings { single_max: 10 << 20, hold_max: 1 << 20, part_size: 5 << 20, ..TransferSettings::default() };
    let run = async || {
        let settings = WorkerSettings { transfer: transfer.clone(), ..WorkerSettings::default() };
        let task =
            Sync::new(Arc::new(source.clone()), Arc::clone(&seen) as _).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _);
        let report = task.with_worker(settings).run().await.unwrap();
        assert!(report.is_success(), "{report}");
        weather.log().iter().filter(|line| line.contains("ListUploads")).count()
    };
    assert_eq!(run().await, 0, "{:#?}", weather.log());
    source.insert("large", vec![7; 11 << 20]);
    assert_eq!(run().await, 1, "{:#?}", weather.log());
    source.insert("small", "w");
    assert_eq!(run().await, 2, "once begun, a late one may still appear: {:#?}", weather.log());
    assert_eq!(bodies(&source), bodies(&sink));
}
