//! All versions of objects, with delete markers, in their order.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    env::SeededEnv,
    error::ErrorKind,
    finder::{FinderSettings, Overwrite},
    index::Index,
    job::{EventSettings, Job, Pack, Seen},
    memory::{Change, MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::{Entry, EtagKind, ObjectKey},
    plan::compare::CompareBy,
    queue::{Message, Queue},
    retry::RetryPolicy,
    scope::TaskScope,
    sink::{Condition, Sink},
    state::{Outcome, StateStore, Status},
    sync::Sync,
    transfer::TransferSettings,
    versions::Versions,
    worker::WorkerSettings,
    wrap::chaos::{Chaos, Faults, Weather},
};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};

fn store(settings: MemoryStoreSettings) -> MemoryStore {
    MemoryStore::new(MemoryStoreSettings { versions: true, ..settings })
}

fn all() -> FinderSettings {
    FinderSettings { versions: Versions::All, ..FinderSettings::default() }
}

/// What a key held, the oldest first, as text; `-` is a delete marker.
fn past(store: &MemoryStore, key: &str) -> Vec<String> {
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    store.past(&key.into()).into_iter().map(|past| past.map_or("-".into(), |object| text(&object.body))).collect()
}

async fn delete(store: &MemoryStore, key: &str) {
    store.delete(&key.into(), &Condition::None).await.unwrap();
}

/// In their order, markers and equal neighbours included; what came since follows; what is whole costs no write.
#[tokio::test]
async fn histories_arrive_in_order() {
    let (source, sink) = (store(MemoryStoreSettings::default()), store(MemoryStoreSettings::default()));
    let state = Arc::new(MemoryState::new());
    let task = || {
        let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone()));
        task.with_finder(all()).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _)
    };
    for body in ["one", "two", "two", "three"] {
        source.insert("a", body);
    }
    source.insert("b", "was");
    delete(&source, "b").await;
    source.insert("c", "x");
    delete(&source, "c").await;
    source.insert("c", "x");
    let report = task().run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 3, "{report}");
    for (key, expected) in [("a", vec!["one", "two", "two", "three"]), ("b", vec!["was", "-"]), ("c", vec!["x", "-", "x"])] {
        assert_eq!(past(&sink, key), expected, "{key}");
    }
    assert!(sink.get(&"b".into()).is_none());

    let again = task().run().await.unwrap();
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (3, 0), "{again}");

    delete(&source, "a").await;
    source.insert("a", "four");
    // The source's rules have dropped what is old; the destination keeps it.
    source.forget_version(&"a".into(), 0);
    source.forget_version(&"a".into(), 0);
    let later = task().run().await.unwrap();
    assert!(later.is_success() && later.run.totals.queued.objects == 1, "{later}");
    assert_eq!(past(&sink, "a"), ["one", "two", "two", "three", "-", "four"]);
    assert_eq!(task().run().await.unwrap().run.totals.queued.objects, 0, "another history is recorded as whole");

    // Somebody wrote at the destination: what is current there is not the source's.
    sink.insert("c", "foreign");
    assert!(task().run().await.unwrap().is_success());
    assert_eq!(past(&sink, "c").last().unwrap(), "x");
    assert_eq!(sink.get(&"c".into()).unwrap().body, "x");
}

/// Etags that say nothing: the record links versions, and nothing is written twice.
#[tokio::test]
async fn opaque_histories_are_linked_by_the_record() {
    let opaque = |name: &str| store(MemoryStoreSettings { etag: EtagKind::Opaque, name: name.into(), ..MemoryStoreSettings::default() });
    let (source, sink) = (opaque("from"), opaque("to"));
    let state = Arc::new(MemoryState::new());
    let task = || {
        let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone()));
        task.with_finder(all()).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _)
    };
    source.insert("a", "one");
    source.insert("a", "two");
    assert!(task().run().await.unwrap().is_success());
    let record = state.records(&["a".into()]).await.unwrap().remove(0).unwrap();
    assert!(record.status == Status::Done && record.appended.is_some(), "{record:?}");
    delete(&source, "a").await;
    source.insert("a", "six");
    assert!(task().run().await.unwrap().is_success());
    assert_eq!(past(&sink, "a"), ["one", "two", "-", "six"]);
    assert_eq!(task().run().await.unwrap().run.totals.queued.objects, 0);
}

/// Events of any kind about a key bring its history up to the source's: a marker, and nothing for a version that was removed.
#[tokio::test(start_paused = true)]
async fn events_bring_histories_up() {
    let (source, sink) = (store(MemoryStoreSettings::default()), store(MemoryStoreSettings::default()));
    source.insert("a", "one");
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let events = EventSettings { deletes: true, ..EventSettings::default() };
    let worker = WorkerSettings { events, ..WorkerSettings::default() };
    let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone()));
    let task = task.with_finder(all()).with_worker(worker).with_state(Arc::clone(&queue) as _, state);
    let stop = tokio_util::sync::CancellationToken::new();
    let mut working = TaskScope::new();
    working.spawn({
        let (worker, stop) = (task.worker().unwrap(), stop.clone());
        async move { worker.run(stop).await }
    });
    let event = |name: &str| {
        let name = format!(r#"{{"Records":[{{"eventName":"{name}","s3":{{"bucket":{{"name":"b"}},"object":{{"key":"a"}}}}}}]}}"#);
        [Message { body: name, delay: Duration::ZERO }]
    };
    for (step, expected) in [
        ("ObjectCreated:Put", vec!["one"]),
        ("ObjectRemoved:DeleteMarkerCreated", vec!["one", "-"]),
        ("ObjectRemoved:Delete", vec!["one", "-"]),
    ] {
        if step.ends_with("MarkerCreated") {
            delete(&source, "a").await;
        }
        queue.send(&event(step)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(past(&sink, "a"), expected, "{step}");
    }
    stop.cancel();
    working.join_all().await;
}

/// What somebody else writes behind the last version before the whole is looked at again is not taken for the source's; where the
/// destination has conditions, not even in the middle of a history.
#[tokio::test(start_paused = true)]
async fn a_foreign_version_is_no_end_of_a_history() {
    for conditions in [true, false] {
        let source = store(MemoryStoreSettings::default());
        let sink = store(MemoryStoreSettings { conditions, ..MemoryStoreSettings::default() });
        source.insert("a", "one");
        source.insert("a", "two");
        let (seen, mut written) = tokio::sync::mpsc::unbounded_channel();
        sink.watch(Box::new(move |_, change| {
            if let Change::Published(object) = change {
                let _ = seen.send(object.body.clone());
            }
        }));
        let mut meddling = TaskScope::new();
        let meddled = sink.clone();
        meddling.spawn(async move {
            for (ours, foreign) in [("one", "x"), ("two", "y")] {
                while written.recv().await.is_some_and(|body| body != ours) {}
                meddled.insert("a", foreign);
            }
        });
        // So that the other one comes in between.
        let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults { latency: 200, ..Faults::default() }));
        let slow = Arc::new(Chaos::new(Arc::new(sink.clone()), weather, 0));
        let report = Sync::new(Arc::new(source.clone()), slow).with_finder(all()).run().await.unwrap();
        assert!(report.is_success(), "{report}");
        let there = past(&sink, "a");
        assert_eq!(there.last().unwrap(), "two", "{there:?}");
        let after_x: Vec<&String> = there.iter().skip_while(|body| *body != "x").collect();
        // Seen at once where there are conditions: nothing is put on a version that is not ours.
        assert_eq!(after_x[1], if conditions { "one" } else { "two" }, "{there:?}");
    }
}

/// What cannot be done is told before anything is written.
#[tokio::test]
async fn a_destination_that_keeps_no_versions_is_refused() {
    let source = store(MemoryStoreSettings::default());
    source.insert("a", "one");
    let sink = MemoryStore::default();
    let task = Sync::new(Arc::new(source), Arc::new(sink.clone())).with_finder(all());
    let error = task.run().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.chain().contains("keeps no versions"), "{}", error.chain());
    let error = task.copy_one(&"a".into()).await.unwrap_err();
    assert!(error.chain().contains("keeps no versions"), "{}", error.chain());
    assert!(sink.snapshot().is_empty());
    for (settings, told) in [
        (FinderSettings { delete_extra: true, ..all() }, "delete_extra"),
        (FinderSettings { overwrite: Overwrite::Never, ..all() }, "overwrite"),
        (FinderSettings { compare: CompareBy::Size, ..all() }, "compare"),
        (FinderSettings { filter: dth_core::filter::FilterSettings { min_size: Some(1), ..Default::default() }, ..all() }, "filter"),
    ] {
        let task = Sync::new(Arc::new(store(MemoryStoreSettings::default())), Arc::new(store(MemoryStoreSettings::default())));
        let error = task.with_finder(settings).finder().unwrap_err();
        assert!(error.chain().contains(told), "{}", error.chain());
    }
}

/// One object alone.
#[tokio::test]
async fn one_history_is_copied_alone() {
    let (source, sink) = (store(MemoryStoreSettings::default()), store(MemoryStoreSettings::default()));
    source.insert("a", "one");
    delete(&source, "a").await;
    let task = Sync::new(Arc::new(source), Arc::new(sink.clone())).with_finder(all());
    assert_eq!(task.copy_one(&"a".into()).await.unwrap().outcome, Outcome::COPIED);
    assert_eq!(past(&sink, "a"), ["one", "-"]);
    assert_eq!(task.copy_one(&"a".into()).await.unwrap().outcome, Outcome::AlreadyCurrent);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Two workers, lost answers, late writes, duplicates, broken reads, while the source goes on: at the end each history stands at the
    /// destination in its order with nothing behind it, of whole versions only, and nothing is left open.
    #[test]
    fn histories_converge_under_faults(
        writes in prop::collection::vec(("[ab]", prop::option::of("[12345]{1,6}"), any::<bool>()), 1..14),
        later in prop::collection::vec(("[ab]", prop::option::of("[12345]{1,6}"), any::<bool>()), 0..6),
        opaque in any::<bool>(),
        conditions in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let kind = if opaque { EtagKind::Opaque } else { EtagKind::Md5 };
            let source = store(MemoryStoreSettings { name: "from".into(), page: 3, etag: kind, ..MemoryStoreSettings::default() });
            let sink = store(MemoryStoreSettings { name: "to".into(), page: 2, etag: kind, conditions, ..MemoryStoreSettings::default() });
            let write = |(key, body, parts): &(String, Option<String>, bool)| match body {
                Some(body) if *parts => drop(source.insert_parts(key.as_str(), body.clone(), 2)),
                Some(body) => drop(source.insert(key.as_str(), body.clone())),
                None => drop(source.remove(&key.as_str().into())),
            };
            writes.iter().for_each(write);
            let faults = Faults { before: 60, after: 60, late: 40, truncate: 40, flip: 20, duplicate: 100, latency: 50, ..Faults::default() };
            let env = Arc::new(SeededEnv::new(seed));
            let weather = Arc::new(Weather::new(env.clone(), faults));
            let queue = Arc::new(Chaos::new(Arc::new(MemoryQueue::new()), Arc::clone(&weather), 0));
            let state = Arc::new(Chaos::new(Arc::new(MemoryState::new()), Arc::clone(&weather), 0));
            let retry = RetryPolicy { tries: 3, ..RetryPolicy::default() };
            // Small limits, so that a body of some bytes goes in parts.
            let transfer = TransferSettings { hold_max: 2, single_max: 3, part_size: 2, retry, ..TransferSettings::default() };
            let worker = WorkerSettings { transfer, max_attempts: 50, ..WorkerSettings::default() };
            let task = |actor| {
                let source = Arc::new(Chaos::new(Arc::new(source.clone()), Arc::clone(&weather), actor));
                let sink = Arc::new(Chaos::new(Arc::new(sink.clone()), Arc::clone(&weather), actor));
                let task = Sync::new(source, sink).with_finder(all()).with_worker(worker.clone()).with_env(env.clone());
                task.with_state(Arc::clone(&queue) as _, Arc::clone(&state) as _)
            };
            let stop = tokio_util::sync::CancellationToken::new();
            let mut beside = TaskScope::new();
            beside.spawn({
                let (worker, stop) = (task(1).worker().unwrap(), stop.clone());
                async move { worker.run(stop).await }
            });
            let job = Job::copy(&Entry::new("a", 1, None), Seen::Unknown);
            let pack = Pack::new(&*env, None, vec![job]).to_body();
            queue.send(&[Message { body: pack, delay: Duration::ZERO }]).await.ok();
            drop(tokio::time::timeout(Duration::from_secs(600), task(0).run()).await);
            later.iter().for_each(write);
            drop(tokio::time::timeout(Duration::from_secs(600), task(0).run()).await);
            weather.set(Faults::default());
            // Late writes land.
            tokio::time::sleep(Duration::from_secs(200)).await;
            let mut report = task(0).run().await.unwrap();
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_secs(120)).await;
                report = task(0).run().await.unwrap();
            }
            stop.cancel();
            beside.join_all().await;
            assert!(report.is_success(), "{report}");
            for key in ["a", "b"] {
                let (here, there) = (past(&source, key), past(&sink, key));
                let mut left = here.iter();
                let mut next = left.next();
                for version in &there {
                    assert!(here.contains(version), "{key}: {version} is nothing that the source held: {here:?}");
                    if Some(version) == next {
                        next = left.next();
                    }
                }
                assert_eq!(here.last(), there.last(), "{key}: {here:?} {there:?}");
                assert!(next.is_none(), "{key}: {here:?} is not in {there:?}");
                assert_eq!(source.get(&ObjectKey::new(key)).map(|o| o.body.clone()), sink.get(&ObjectKey::new(key)).map(|o| o.body.clone()));
            }
            assert_eq!(sink.open_uploads(), 0);
            assert!(sink.keeps_versions().await.unwrap());
        });
    }
}
