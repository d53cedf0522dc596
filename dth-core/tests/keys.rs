//! Key mappings: what is stripped, what a pattern makes of a key, and keys that would become one.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    env::SeededEnv,
    error::{ErrorKind, Op},
    finder::{Finder, FinderSettings},
    job::EventSettings,
    key_map::{KeyMap, KeyRules},
    memory::{MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::ObjectKey,
    prefixes::PrefixList,
    queue::{Message, Queue},
    retry::RetryPolicy,
    scope::TaskScope,
    sink::{PutOptions, Sink},
    state::StateStore,
    sync::Sync,
    worker::WorkerSettings,
    wrap::chaos::{Chaos, Faults, Strike, Weather},
};
use futures_util::StreamExt;
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

fn rules(strip: &str, pattern: &str, replacement: &str) -> KeyRules {
    let pattern = (!pattern.is_empty()).then(|| pattern.to_owned());
    KeyRules { strip: strip.into(), pattern, replacement: replacement.into() }
}

fn map(prefix: &str, rules: &KeyRules) -> KeyMap {
    KeyMap::new(prefix).with_rules(rules).unwrap()
}

fn keys_of(store: &MemoryStore) -> Vec<String> {
    store.snapshot().into_keys().map(|key| key.as_str().to_owned()).collect()
}

/// What is stripped is the task's prefix: other keys are not the task's, by finder and by event.
#[tokio::test(start_paused = true)]
async fn what_is_stripped_is_the_prefix_of_the_task() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    for key in ["old/a", "old/b/c", "older", "new/x", "old"] {
        source.insert(key, key);
    }
    sink.insert("to/extra", "x");
    let finder = FinderSettings { delete_extra: true, ..FinderSettings::default() };
    let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone()))
        .with_keys(map("to", &rules("old/", "", "")))
        .with_finder(finder.clone());
    let report = task.run().await.unwrap();
    assert!(report.is_success() && report.run.totals.listed.objects == 2, "{report}");
    assert_eq!(keys_of(&sink), ["to/a", "to/b/c"]);
    assert_eq!(sink.get(&"to/b/c".into()).unwrap().body, "old/b/c");
    for (settings, told) in [
        (FinderSettings { prefix: "new/".into(), ..finder.clone() }, "finder.prefix = new/"),
        (FinderSettings { prefixes: Some(list("old/a\nother/\n").await), ..finder.clone() }, "`other/`"),
        (FinderSettings { prefixes: Some(list("before\nold/a\n").await), ..finder.clone() }, "`before`"),
    ] {
        let error = task.clone().with_finder(settings.clone()).finder().unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(told), "{}", error.chain());
        let error = task.clone().with_finder(settings).worker().unwrap_err();
        assert!(error.chain().contains(told), "{}", error.chain());
    }
    // A list within it, merged with a destination that has other names.
    source.insert("old/b/d", "d");
    source.insert("old/c", "c");
    let listed = FinderSettings { prefixes: Some(list("old/b/\n").await), ..FinderSettings::default() };
    assert!(task.clone().with_finder(listed).run().await.unwrap().is_success());
    assert_eq!(keys_of(&sink), ["to/a", "to/b/c", "to/b/d"]);
    // An event of another key.
    let events = EventSettings { deletes: true, ..EventSettings::default() };
    let queue = Arc::new(MemoryQueue::new());
    let task = task
        .with_worker(WorkerSettings { events, ..WorkerSettings::default() })
        .with_state(Arc::clone(&queue) as _, Arc::new(MemoryState::new()));
    for key in ["older", "old/c"] {
        queue.send(&[Message { body: format!(r#"{{"key":"{key}","size":1}}"#), delay: Duration::ZERO }]).await.unwrap();
    }
    let stop = CancellationToken::new();
    let mut working = TaskScope::new();
    working.spawn({
        let (worker, stop) = (task.worker().unwrap(), stop.clone());
        async move { worker.run(stop).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.cancel();
    working.join_all().await;
    assert_eq!(keys_of(&sink), ["to/a", "to/b/c", "to/b/d", "to/c"]);
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}

async fn list(text: &str) -> PrefixList {
    PrefixList::read("list", futures_util::stream::iter([Ok(text.to_owned().into())]).boxed()).await.unwrap()
}

/// With a pattern nobody knows what is extra.
#[test]
fn deletions_need_a_map_that_can_be_undone() {
    let finder = FinderSettings { delete_extra: true, ..FinderSettings::default() };
    let task = Sync::new(Arc::new(MemoryStore::default()), Arc::new(MemoryStore::default()));
    let error = task.with_keys(map("", &rules("", "a", "b"))).with_finder(finder).finder().unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.chain().contains("keys.pattern"), "{}", error.chain());
}

/// An upload of ours that nobody finishes is swept, under a key that cannot be mapped back.
#[tokio::test]
async fn uploads_under_patterns_are_swept() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("2024-a", "x");
    let (queue, state) = (Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let map = map("to", &rules("", r"^(\d+)-", "$1/"));
    let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_keys(map).with_state(queue, Arc::clone(&state) as _);
    assert!(task.run().await.unwrap().is_success());
    let ours = sink.create_upload(&"to/2024/a".into(), &PutOptions::default()).await.unwrap();
    let other = sink.create_upload(&"to/2024/b".into(), &PutOptions::default()).await.unwrap();
    assert_eq!(task.sweep(Duration::ZERO).await.unwrap().left_alone, 2, "no record says that we began one");
    let record = state.records(&["2024-a".into()]).await.unwrap().remove(0).unwrap();
    let claim = state.claim(&dth_core::state::PackId::new("p"), None, 1, &[("2024-a".into(), None)]).await.unwrap();
    let begun = dth_core::state::Record { uploads_since: Some("2023-11-14T22:13:20Z".parse().unwrap()), ..record };
    let write = dth_core::state::RecordWrite { record: begun, ends: Vec::new() };
    state.commit(&claim.fence, &[write]).await.unwrap();
    let swept = task.sweep(Duration::ZERO).await.unwrap();
    assert_eq!((swept.aborted, swept.left_alone), (1, 1));
    assert!(sink.list_parts(&"to/2024/a".into(), &ours).await.is_err() && sink.list_parts(&"to/2024/b".into(), &other).await.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever the pages, and however often the finder dies: each source key is decided on once, keys that would become one are left alone
    /// and counted, and all others arrive under the key that the pattern makes.
    #[test]
    fn patterns_are_merged_by_destination_keys(
        left in prop::collection::btree_map("[ab]{1,2}[x\u{e9}]?[0-3]", 0..3u8, 0..40),
        right in prop::collection::btree_map("[ab]{1,2}[x\u{e9}]?[0-3]", 0..3u8, 0..20),
        rule in 0..4usize,
        page in 1..4u32,
        deaths in prop::collection::vec(1..12u64, 0..4),
    ) {
        let rules = [rules("", "a", "z"), rules("a", r"(\w)(\d)$", "$2/$1"), rules("", "[ab]+", ""), rules("", "x|\u{e9}", "")][rule].clone();
        let map = map("to", &rules);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = || MemoryStore::new(MemoryStoreSettings { page, ..MemoryStoreSettings::default() });
            let (source, sink) = (store(), store());
            let mut by_destination: BTreeMap<ObjectKey, Vec<(&String, u8)>> = BTreeMap::new();
            for (key, version) in &left {
                source.insert(key.as_str(), vec![*version; 3]);
                if key.starts_with(&rules.strip) {
                    by_destination.entry(map.to_destination(&key.as_str().into())).or_default().push((key, *version));
                }
            }
            for (key, version) in &right {
                sink.insert(map.to_destination(&key.as_str().into()), vec![*version; 3]);
            }
            let before = sink.snapshot();
            let weather = Arc::new(Weather::new(Arc::new(SeededEnv::new(1)), Faults::default()));
            let state = Arc::new(MemoryState::new());
            let mortal = Arc::new(Chaos::new(Arc::clone(&state), Arc::clone(&weather), 0));
            let queue = Arc::new(MemoryQueue::new());
            let once = RetryPolicy { tries: 1, ..RetryPolicy::default() };
            let settings = FinderSettings { pack_jobs: 2, retry: once, ..FinderSettings::default() };
            let finder = |state: Arc<dyn StateStore>| {
                let finder = Finder::builder(Arc::new(source.clone()), Arc::new(sink.clone()), queue.clone(), state);
                finder.with_keys(map.clone()).with_settings(settings.clone()).build().unwrap()
            };
            let id = finder(state.clone()).start().await.unwrap();
            let stop = CancellationToken::new();
            for (nth, death) in deaths.iter().enumerate() {
                weather.script_op(Op::SaveState, *death, if nth % 2 == 0 { Strike::Before } else { Strike::After });
                drop(finder(mortal.clone()).resume(&id, &stop).await);
            }
            let run = finder(state.clone()).resume(&id, &stop).await.unwrap();
            let collisions: usize = by_destination.values().filter(|keys| keys.len() > 1).map(Vec::len).sum();
            let all: usize = by_destination.values().map(Vec::len).sum();
            let empty = by_destination.iter().filter(|(key, from)| key.as_str().is_empty() && from.len() == 1).count();
            prop_assert_eq!(run.totals.listed.objects as usize, all);
            prop_assert_eq!(run.totals.skipped.get("collision").map_or(0, |t| t.objects) as usize, collisions);
            let skipped: u64 = run.totals.skipped.values().map(|t| t.objects).sum();
            prop_assert_eq!(run.totals.unchanged.objects + run.totals.queued.objects + skipped, all as u64);
            let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_keys(map.clone()).with_finder(settings);
            let report = task.with_state(queue.clone(), state.clone()).carry_on(&id).await.unwrap();
            prop_assert!(report.is_success(), "{}", report);
            for (there, from) in by_destination {
                let held = sink.get(&there).map(|o| o.body.to_vec());
                match from.as_slice() {
                    [(_, version)] if empty == 0 => prop_assert_eq!(held, Some(vec![*version; 3]), "{}", there),
                    _ => prop_assert_eq!(held, before.get(&there).map(|o| o.body.to_vec()), "{}", there),
                }
            }
            Ok(())
        })?;
    }
}

/// A key of which a pattern leaves nothing.
#[tokio::test]
async fn an_empty_destination_key_is_skipped() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("gone", "x");
    let keys = map("", &rules("", "^gone$", ""));
    let task = Sync::new(Arc::new(source), Arc::new(sink.clone())).with_keys(keys);
    let report = task.run().await.unwrap();
    assert_eq!(report.run.totals.skipped.get("unrepresentable").map(|t| t.objects), Some(1), "{report}");
    assert!(sink.snapshot().is_empty());
}
