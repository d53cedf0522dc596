//! E1 to E5: whatever the order in which events come, and however often, the destination ends as the source.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    env::{Env, SeededEnv, SystemEnv, random_below},
    error::Op,
    filter::FilterSettings,
    finder::{FinderSettings, Overwrite},
    job::{EventSettings, Intake, Job, Pack},
    memory::{Change, MemoryQueue, MemoryState, MemoryStore},
    object::{ETag, ObjectKey, Sequencer},
    queue::{Message, Queue},
    retry::RetryPolicy,
    runs,
    scope::TaskScope,
    sink::{Body, PutOptions, Sink},
    source::Source,
    state::{PackId, Record, RecordWrite, RunId, SourceVersion, StateStore, Status, UploadRecord},
    transfer::TransferSettings,
    worker::{Worker, WorkerSettings},
    wrap::chaos::{Chaos, Faults, Strike, Weather},
};
use futures_util::FutureExt;
use proptest::prelude::*;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

struct Bench {
    source: MemoryStore,
    sink: MemoryStore,
    queue: Arc<MemoryQueue>,
    state: Arc<MemoryState>,
}

impl Bench {
    fn new() -> Self {
        Self {
            source: MemoryStore::default(),
            sink: MemoryStore::default(),
            queue: Arc::new(MemoryQueue::new()),
            state: Arc::new(MemoryState::new()),
        }
    }

    fn workers(&self, number: u32) -> TaskScope {
        let mut scope = TaskScope::new();
        for _ in 0..number {
            let (source, sink) = (Arc::new(self.source.clone()), Arc::new(self.sink.clone()));
            scope.spawn(self.worker(source, sink, FinderSettings::default()));
        }
        scope
    }

    fn worker(&self, source: Arc<dyn Source>, sink: Arc<dyn Sink>, selection: FinderSettings) -> impl Future<Output = ()> + use<> {
        let settings = WorkerSettings { events: EventSettings { deletes: true, bucket: None }, packs: 8, ..WorkerSettings::default() };
        let worker = Worker::builder(source, sink, self.queue.clone(), self.state.clone()).with_settings(settings);
        let worker = worker.with_selection(selection).build().unwrap();
        async move { worker.run(CancellationToken::new()).await }
    }

    /// The same, of one that hands objects of more than 1,000 bytes out in parts of so many.
    fn giant_worker(&self, source: Arc<dyn Source>, sink: Arc<dyn Sink>, selection: FinderSettings) -> impl Future<Output = ()> + use<> {
        let transfer = TransferSettings { hold_max: 1000, single_max: 1000, part_size: 1000, ..TransferSettings::default() };
        let settings = WorkerSettings { giant_threshold: 1000, giant_parts: 1, transfer, ..WorkerSettings::default() };
        let worker = Worker::builder(source, sink, self.queue.clone(), self.state.clone());
        let worker = worker.with_settings(settings).with_selection(selection).build().unwrap();
        async move { worker.run(CancellationToken::new()).await }
    }

    /// Waits until nothing is left to do.
    async fn rest(&self) {
        while self.queue.depth().await.unwrap().pending() > 0 {
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Changes the source, and tells what an event says of it, in one of the forms.
    fn change(&self, number: u64, key: &str, delete: bool) -> String {
        let key: ObjectKey = key.into();
        if delete {
            self.source.remove(&key);
        } else {
            self.source.insert(key.clone(), format!("{number}"));
        }
        // Sequencers differ in length, and are to be compared as if they ended with zeros.
        let sequencer = format!("{:X}", 0x0055_AED6_0000_0000u64 + number).trim_end_matches('0').to_owned();
        let size = 1;
        let encoded = key.as_str().bytes().fold(String::new(), |text, b| format!("{text}%{b:02X}"));
        let record = |name: &str| {
            json!({"Records": [{"eventName": name, "s3": {"bucket": {"name": "b"},
                "object": {"key": encoded, "size": size, "eTag": "ignored", "sequencer": sequencer}}}]})
        };
        let s3 = record(if delete { "ObjectRemoved:Delete" } else { "ObjectCreated:Put" });
        match number % 4 {
            0 => json!({"detail-type": if delete { "Object Deleted" } else { "Object Created" },
                "detail": {"bucket": {"name": "b"}, "object": {"key": key, "size": size, "sequencer": sequencer}}}),
            1 => json!({"Type": "Notification", "TopicArn": "t", "Message": s3.to_string()}),
            2 => json!({"key": key, "size": size, "sequencer": sequencer, "event": if delete { "delete" } else { "create" }}),
            _ => s3,
        }
        .to_string()
    }

    async fn send(&self, body: String, delay: Duration) {
        self.queue.send(&[Message { body, delay }]).await.unwrap().pop().unwrap().unwrap();
    }

    async fn settle(&self) {
        self.rest().await;
        assert!(self.queue.dead_letters(None, 10).await.unwrap().is_empty());
        let bodies = |store: &MemoryStore| store.snapshot().into_iter().map(|(k, o)| (k, o.body.clone())).collect::<Vec<_>>();
        assert_eq!(bodies(&self.sink), bodies(&self.source));
    }
}

/// 10,000 messages about creates and deletes of 500 keys, shuffled and duplicated, while the source goes on changing.
#[tokio::test(start_paused = true)]
async fn ten_thousand_shuffled_events_converge() {
    let bench = Bench::new();
    let env = SeededEnv::new(11);
    let workers = bench.workers(4);
    let (changes, messages) = (6_000, 10_000);
    let mut sent = 0;
    for number in 0..changes {
        let key = format!("k/{}", random_below(&env, 500));
        let body = bench.change(number, &key, random_below(&env, 3) == 0);
        let left = changes - number;
        let copies = if messages - sent > left && random_below(&env, 3) < 2 { 2 } else { 1 }.min(messages - sent);
        let copies = if left == 1 { messages - sent } else { copies };
        for _ in 0..copies {
            // Up to ten minutes late: most events overtake others.
            bench.send(body.clone(), Duration::from_millis(random_below(&env, 600_000))).await;
        }
        sent += copies;
        if env.random().is_multiple_of(8) {
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(sent, messages);
    bench.settle().await;
    assert!(bench.source.snapshot().len() > 100);
    drop(workers);
}

/// An object that comes back at the source while it is deleted is copied again: another worker may have found it equal.
#[tokio::test(start_paused = true)]
async fn what_comes_back_while_it_is_deleted_is_copied() {
    let bench = Bench::new();
    bench.sink.insert("k", "bytes");
    let source = bench.source.clone();
    bench.sink.watch(Box::new(move |key, change| {
        if matches!(change, Change::Removed(_)) {
            source.insert(key.clone(), "bytes");
        }
    }));
    let workers = bench.workers(1);
    bench.send(json!({"key": "k", "event": "delete"}).to_string(), Duration::ZERO).await;
    bench.settle().await;
    assert!(bench.sink.get(&"k".into()).is_some());
    drop(workers);
}

/// A worker that had read an object before it was deleted brings it back late: the next one that finds it gone at the source
/// removes it again.
#[tokio::test(start_paused = true)]
async fn what_was_deleted_does_not_stay_back() {
    let bench = Bench::new();
    let workers = bench.workers(1);
    for (number, delete) in [(1, false), (2, true)] {
        let event = bench.change(number, "k", delete);
        bench.send(event, Duration::ZERO).await;
        bench.settle().await;
    }
    bench.sink.insert("k", "late");
    // The late worker's own message, or the look that it sends when it cannot record.
    bench.send(json!({"key": "k"}).to_string(), Duration::ZERO).await;
    bench.settle().await;
    assert!(bench.sink.get(&"k".into()).is_none());
    drop(workers);
}

/// A later event that was dealt with saves the look for an earlier one; one that comes again by another way looks for itself.
#[tokio::test(start_paused = true)]
async fn an_older_event_costs_no_look() {
    let bench = Bench::new();
    let workers = bench.workers(1);
    let [first, second] = [3, 7].map(|number| bench.change(number, "k", false));
    bench.send(second, Duration::ZERO).await;
    bench.settle().await;
    // Whoever looks now would find the source gone.
    bench.source.remove(&"k".into());
    bench.send(first, Duration::ZERO).await;
    bench.rest().await;
    let record = bench.state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.status, Status::Done, "nobody looked");
    drop(workers);
}

/// A worker that had read the object before it was deleted writes it between the deletion's look and its request: no later event will
/// tell of it.
#[tokio::test(start_paused = true)]
async fn what_is_written_while_it_is_deleted_is_deleted_too() {
    let bench = Bench::new();
    bench.sink.insert("k", "old");
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults::default()));
    weather.script_op(Op::Delete, 1, Strike::Freeze);
    let sink = Arc::new(Chaos::new(Arc::new(bench.sink.clone()), weather, 1));
    let mut scope = TaskScope::new();
    scope.spawn(bench.worker(Arc::new(bench.source.clone()), sink, FinderSettings::default()));
    bench.send(json!({"key": "k", "event": "delete"}).to_string(), Duration::ZERO).await;
    sleep(Duration::from_secs(60)).await;
    bench.sink.insert("k", "read before it was gone");
    bench.settle().await;
    let record = bench.state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.status, Status::Deleted);
}

/// The same by whoever was completing an upload, and died of it: its message finds the upload struck and goes.
#[tokio::test(start_paused = true)]
async fn what_is_completed_while_it_is_deleted_is_deleted_too() {
    let bench = Bench::new();
    let key: ObjectKey = "k".into();
    let upload = bench.sink.create_upload(&key, &PutOptions::default()).await.unwrap();
    let part = bench.sink.put_part(&key, &upload, 1, Body::Bytes(vec!["giant".into()]), None).await.unwrap();
    let source = SourceVersion { etag: None, size: 5, version: None };
    let mut record = Record::new(key.clone(), RunId::new("events"), Status::Started, SystemEnv.now());
    record.uploads_since = Some(record.updated);
    record.upload = Some(UploadRecord { id: Some(upload.clone()), source, part_size: 5, shared: None });
    let claim = bench.state.claim(&PackId::new("other"), None, 1, &[]).await.unwrap();
    bench.state.commit(&claim.fence, &[RecordWrite { record, ends: Vec::new() }]).await.unwrap();
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults::default()));
    // Between the deletion's look at the destination and its look at the source.
    weather.script_op(Op::Head, 1, Strike::Freeze);
    let slow = Arc::new(Chaos::new(Arc::new(bench.source.clone()), weather, 1));
    let mut scope = TaskScope::new();
    scope.spawn(bench.worker(slow, Arc::new(bench.sink.clone()), FinderSettings::default()));
    bench.send(json!({"key": "k", "event": "delete"}).to_string(), Duration::ZERO).await;
    sleep(Duration::from_secs(60)).await;
    bench.sink.complete_upload(&key, &upload, &[part], &PutOptions::default()).await.unwrap();
    bench.settle().await;
}

/// An event brings no more than a finder of the task would.
#[tokio::test(start_paused = true)]
async fn events_keep_to_the_policy_of_the_task() {
    let small = FilterSettings { max_size: Some(3), ..FilterSettings::default() };
    let policy = |overwrite| FinderSettings { overwrite, ..FinderSettings::default() };
    let cases = [
        (FinderSettings::default(), Some("old"), "new", Some("new")),
        (policy(Overwrite::Never), Some("old"), "new", Some("old")),
        (policy(Overwrite::Never), None, "new", Some("new")),
        // Stores in memory take the number of a write for its time.
        (policy(Overwrite::IfNewer), Some("old"), "new", Some("old")),
        (policy(Overwrite::IfNewer), Some("old"), "newer", Some("newer")),
        (policy(Overwrite::IfNewer), None, "new", Some("new")),
        (FinderSettings { filter: small.clone(), ..FinderSettings::default() }, None, "larger", None),
        (FinderSettings { filter: small, ..FinderSettings::default() }, None, "new", Some("new")),
    ];
    for (selection, there, here, expected) in cases {
        let bench = Bench::new();
        if here == "newer" {
            bench.source.insert("k", "at first");
        }
        bench.source.insert("k", here);
        if let Some(there) = there {
            bench.sink.insert("k", there);
        }
        let mut scope = TaskScope::new();
        let told = format!("{selection:?}");
        scope.spawn(bench.worker(Arc::new(bench.source.clone()), Arc::new(bench.sink.clone()), selection));
        // What it says of the size is wrong.
        bench.send(json!({"key": "k", "size": 3}).to_string(), Duration::ZERO).await;
        bench.rest().await;
        assert_eq!(bench.sink.get(&"k".into()).map(|o| o.body.clone()), expected.map(bytes::Bytes::from), "{told}");
    }
}

/// What a filter refuses by now, and was begun before it did, leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn an_upload_that_the_filter_overtakes_is_thrown_away() {
    let bench = Bench::new();
    let filter = FilterSettings { max_size: Some(5000), ..FilterSettings::default() };
    let selection = FinderSettings { filter, ..FinderSettings::default() };
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults { latency: 2_000, ..Faults::default() }));
    let slow = Arc::new(Chaos::new(Arc::new(bench.source.clone()), weather, 1));
    let mut scope = TaskScope::new();
    scope.spawn(bench.giant_worker(slow, Arc::new(bench.sink.clone()), selection));
    bench.source.insert("k", vec![1; 5000]);
    bench.send(json!({"key": "k", "size": 5000}).to_string(), Duration::ZERO).await;
    while bench.sink.open_uploads() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    bench.source.insert("k", vec![2; 9000]);
    bench.rest().await;
    assert_eq!((bench.sink.open_uploads(), bench.sink.snapshot().len()), (0, 0));
    let record = bench.state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!((record.status, record.upload), (Status::Skipped, None));
}

/// What a finder would not delete because it is not the task's, an event does not delete.
#[tokio::test(start_paused = true)]
async fn what_the_filter_leaves_out_is_not_deleted() {
    for (there, stays) in [("large", true), ("s", false)] {
        let bench = Bench::new();
        bench.sink.insert("k", there);
        let filter = FilterSettings { max_size: Some(3), ..FilterSettings::default() };
        let selection = FinderSettings { filter, ..FinderSettings::default() };
        let mut scope = TaskScope::new();
        scope.spawn(bench.worker(Arc::new(bench.source.clone()), Arc::new(bench.sink.clone()), selection));
        bench.send(json!({"key": "k", "event": "delete"}).to_string(), Duration::ZERO).await;
        bench.rest().await;
        assert_eq!(bench.sink.get(&"k".into()).is_some(), stays, "{there}");
    }
}

/// When we wrote a copy says nothing of how old it is: a later version replaces it under `if_newer`, too, in one piece and in parts, and
/// where the first try fails.
#[tokio::test(start_paused = true)]
async fn our_own_copy_is_no_newer_object() {
    for (size, fails) in [(5, Op::Put), (5000, Op::CompleteUpload)] {
        let bench = Bench::new();
        for n in 0..9 {
            // Stores in memory take the number of a write for its time.
            bench.sink.insert(format!("other{n}"), "x");
            bench.sink.remove(&format!("other{n}").as_str().into());
        }
        let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults::default()));
        let sink = Arc::new(Chaos::new(Arc::new(bench.sink.clone()), Arc::clone(&weather), 1));
        let selection = FinderSettings { overwrite: Overwrite::IfNewer, ..FinderSettings::default() };
        let mut scope = TaskScope::new();
        scope.spawn(bench.giant_worker(Arc::new(bench.source.clone()), sink, selection));
        for (version, calls) in [(1, 1), (2, 2), (2, 2)] {
            bench.source.insert("k", vec![version; size]);
            // The worker does not repeat the call by itself so often.
            for nth in calls..calls + 4 {
                weather.script_op(fails, nth, Strike::Before);
            }
            bench.send(json!({"key": "k"}).to_string(), Duration::ZERO).await;
            bench.settle().await;
            let record = bench.state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
            assert_eq!(record.status, Status::Done, "version {version} of {size} bytes");
        }
    }
}

/// However many events tell of a giant while it is on its way, its record stays as small as with one.
#[tokio::test(start_paused = true)]
async fn many_events_wait_as_one() {
    let bench = Bench::new();
    let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults { latency: 3_000, ..Faults::default() }));
    let source = Arc::new(Chaos::new(Arc::new(bench.source.clone()), weather, 1));
    let mut scope = TaskScope::new();
    scope.spawn(bench.giant_worker(source, Arc::new(bench.sink.clone()), FinderSettings::default()));
    bench.source.insert("k", vec![7; 9000]);
    for n in 0..120 {
        bench.send(json!({"key": "k", "size": 9000, "sequencer": format!("{n:04X}")}).to_string(), Duration::from_millis(n * 50)).await;
    }
    let mut most = 0;
    while bench.queue.depth().await.unwrap().pending() > 0 {
        let record = bench.state.records(&["k".into()]).await.unwrap().remove(0);
        most = most.max(record.map_or(0, |record| record.waiting.len()));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(most, 1);
    bench.settle().await;
}

/// An event that failed, and that a later one has overtaken, counts when it is sent again: its run ends.
#[tokio::test(start_paused = true)]
async fn an_overtaken_event_can_be_sent_again() {
    let bench = Bench::new();
    let event = bench.change(3, "k", false);
    bench.send(event, Duration::ZERO).await;
    let delivery = bench.queue.receive(1, Duration::from_secs(9), Duration::ZERO).await.unwrap().remove(0);
    bench.queue.dead_letter(&delivery, "why").await.unwrap();
    let workers = bench.workers(1);
    let event = bench.change(7, "k", false);
    bench.send(event, Duration::ZERO).await;
    bench.rest().await;
    let (env, retry) = (SystemEnv, RetryPolicy::default());
    let run = runs::redrive(&*bench.state, &*bench.queue, None, &Intake::everything(), &env, &retry).await.unwrap().unwrap();
    let wait = runs::wait(&*bench.state, &run.id, &env, &retry);
    let run = tokio::time::timeout(Duration::from_secs(600), wait).await.expect("its ledger closes").unwrap();
    assert_eq!(run.outcomes_like("already_current").objects, 1, "{run:?}");
    drop(workers);
}

/// An older version of an object is removed for good, or a marker of its deletion: what is current stays.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_older_version_deletes_nothing() {
    let bench = Bench::new();
    let workers = bench.workers(1);
    bench.source.insert("k", "current");
    bench.sink.insert("k", "current");
    for name in ["ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated", "LifecycleExpiration:Delete"] {
        let object = json!({"key": "k", "versionId": "an-older-one", "sequencer": "00FF"});
        let event = json!({"Records": [{"eventName": name, "s3": {"bucket": {"name": "b"}, "object": object}}]});
        bench.send(event.to_string(), Duration::ZERO).await;
        bench.settle().await;
        assert!(bench.sink.get(&"k".into()).is_some(), "{name}");
    }
    drop(workers);
}

/// A message that says something nobody understands besides is dealt with as far as it goes, and given up with the reason.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_message_with_an_unknown_event_is_done() {
    let bench = Bench::new();
    let workers = bench.workers(1);
    bench.source.insert("k", "bytes");
    let record = |name: &str, key: &str| json!({"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key}}});
    let body = json!({"Records": [record("ObjectExploded:Put", "x"), record("ObjectCreated:Put", "k")]}).to_string();
    bench.send(body.clone(), Duration::ZERO).await;
    bench.rest().await;
    assert!(bench.sink.get(&"k".into()).is_some());
    let dead = bench.queue.dead_letters(None, 10).await.unwrap();
    assert!(dead.len() == 1 && dead[0].body == body && dead[0].reason.contains("ObjectExploded"), "{dead:?}");
    let (everything, retry) = (Intake::everything(), RetryPolicy::default());
    let again = runs::redrive(&*bench.state, &*bench.queue, None, &everything, &SystemEnv, &retry).await.unwrap();
    assert!(again.is_none(), "what it said that could be done is done");
    drop(workers);
}

/// Another job has found the same while ours was at it, and its record knows that uploads were begun for the key, and of an event:
/// ours, which replaces it to be counted, must not forget that, or they are never swept, and older events are dealt with again.
#[tokio::test(start_paused = true)]
async fn a_record_of_the_same_fact_keeps_what_the_sweep_must_know() {
    let bench = Bench::new();
    let etag = bench.source.insert("k", "bytes");
    let (state, since) = (bench.state.clone(), SystemEnv.now());
    bench.sink.watch(Box::new(move |_, change| {
        let Change::Published(object) = change else { return };
        let mut record = Record::new("k".into(), RunId::new("events"), Status::Done, since);
        record.source = Some(SourceVersion { etag: Some(etag.clone()), size: 5, version: None });
        (record.destination, record.uploads_since) = (Some(object.etag.clone()), Some(since));
        record.sequencer = Sequencer::new("00AA");
        // The memory's state never waits.
        let claim = state.claim(&PackId::new("other"), None, 1, &[]).now_or_never().unwrap().unwrap();
        let write = RecordWrite { record, ends: Vec::new() };
        state.commit(&claim.fence, &[write]).now_or_never().unwrap().unwrap();
    }));
    let workers = bench.workers(1);
    bench.send(json!({"key": "k", "size": 5}).to_string(), Duration::ZERO).await;
    bench.settle().await;
    let record = bench.state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!((record.version, record.uploads_since), (2, Some(since)), "ours over theirs");
    assert_eq!(record.sequencer, Sequencer::new("00AA"));
    drop(workers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any permutation of any events, any of them any number of times, while the source goes on changing.
    #[test]
    fn any_order_converges(
        changes in proptest::collection::vec((0u8..3, any::<bool>(), 0u64..4, proptest::collection::vec(0u64..30, 1..4)), 1..14),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let env = Arc::new(SeededEnv::new(5));
            // Answers take their time, so that changes fall between the steps of a job.
            let weather = Arc::new(Weather::new(env, Faults { latency: 1_500, ..Faults::default() }));
            let mut workers = TaskScope::new();
            for actor in 0..2 {
                let source = Arc::new(Chaos::new(Arc::new(bench.source.clone()), Arc::clone(&weather), actor));
                let sink = Arc::new(Chaos::new(Arc::new(bench.sink.clone()), Arc::clone(&weather), actor));
                workers.spawn(bench.worker(source, sink, FinderSettings::default()));
            }
            for ((key, delete, pause, copies), number) in changes.iter().zip(1..) {
                let event = bench.change(number, &format!("k{key}"), *delete);
                // None comes before its change; each comes after any of the others.
                for delay in copies {
                    bench.send(event.clone(), Duration::from_secs(*delay)).await;
                }
                sleep(Duration::from_secs(*pause)).await;
            }
            bench.settle().await;
            drop(workers);
        });
    }
}

/// Each form that arrives in a queue, from files as the services and the original system write them.
#[test]
fn every_form_of_a_message_is_read() {
    let read = |body: &str| {
        let events = EventSettings { deletes: true, bucket: Some("source".into()) };
        let pack = Pack::read(body, &Intake { events, ..Intake::default() }, &SystemEnv).unwrap();
        let told = |job: &Job| {
            let size = job.size.map_or("?".to_owned(), |n| n.to_string());
            let etag = job.etag.as_ref().map_or("-", ETag::as_str);
            let sequencer = job.sequencer.as_ref().map_or("-", Sequencer::as_str);
            format!("{:?} {} {size} {etag} {sequencer}", job.action, job.key)
        };
        pack.jobs.iter().map(told).collect::<Vec<_>>()
    };
    macro_rules! form {
        ($name:literal) => {
            read(include_str!(concat!("../fixtures/messages/", $name, ".json")))
        };
    }
    let created = ["Copy photos/2022/a b+c é.jpg 1024 d41d8cd98f00b204e9800998ecf8427e 0055AED6DCD90281E5"];
    assert_eq!(form!("original-object"), ["Copy photos/2022/a b.jpg 10240 - -"]);
    // A part of another system's upload: the object is looked at as a whole.
    assert_eq!(form!("original-part"), ["Copy videos/giant.mov ? - -"]);
    assert_eq!(form!("bridge-delete"), ["Delete photos/2022/a b.jpg ? - 0055AED6DCD90281E5"]);
    assert_eq!(form!("s3-created"), created);
    assert_eq!(form!("s3-many"), ["Copy photos/1 8 b 0C", "Delete photos/2 ? - 0B"]);
    assert!(form!("s3-test").is_empty());
    assert_eq!(form!("eventbridge-created"), ["Copy photos/a+b c.jpg 5 b1946ac92492d2347c6235b4d2611184 617F08299329D189"]);
    assert_eq!(form!("eventbridge-deleted"), ["Delete photos/gone.jpg ? d41d8cd98f00b204e9800998ecf8427e 617F0837B476E463"]);
    assert_eq!(form!("sns-created"), created);
}
