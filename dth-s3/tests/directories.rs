//! Local directories and other stores of the `object_store` crate, through the engine.

#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::ErrorKind,
    index::{Index, ListFrom, ListRequest},
    memory::{MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::{Attributes, ETag, ObjectKey},
    report::Report,
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, ReadRange, Source},
    state::StateStore,
    sync::Sync,
};
use dth_s3::{LocalDirectory, ObjectStoreAdapter};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, sync::Arc};
use tempfile::TempDir;

fn directory() -> (TempDir, LocalDirectory) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalDirectory::open(folder.path()).unwrap();
    (folder, store)
}

fn write(root: &Path, name: &str, body: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, body).unwrap();
}

async fn listed(store: &impl Index) -> Vec<String> {
    let mut request = ListRequest::default();
    let mut keys = Vec::new();
    loop {
        let page = store.list(&request).await.unwrap();
        keys.extend(page.entries.into_iter().map(|e| e.key.as_str().to_owned()));
        let Some(token) = page.next else { return keys };
        request.from = ListFrom::Token(token);
    }
}

async fn contents(store: &impl Source) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for key in listed(store).await {
        let read = store.read(&key.as_str().into(), &ReadOptions::default()).await.unwrap();
        let body: Vec<Bytes> = read.body.try_collect().await.unwrap();
        found.insert(key, body.concat());
    }
    found
}

fn bytes(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 7) ^ (i >> 15)) as u8).collect()
}

async fn run(source: impl Source, sink: impl Sink) -> (Report, Arc<MemoryState>) {
    let state = Arc::new(MemoryState::new());
    let task = Sync::new(Arc::new(source), Arc::new(sink)).with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _);
    (task.run().await.unwrap(), state)
}

#[tokio::test]
async fn a_directory_goes_there_and_back() {
    let (from, source) = directory();
    for (i, name) in ["a.txt", "a/b", "a/b.c", "a!", "é/日本 😀", "plus+%2F", "deep/er/and/deeper/x", "zero"].iter().enumerate() {
        write(from.path(), name, &bytes(i as u32 * 100));
    }
    write(from.path(), "large", &bytes(9 << 20));
    let memory = MemoryStore::default();
    let task = Sync::new(Arc::new(source.clone()), Arc::new(memory.clone()));
    let state = Arc::new(MemoryState::new());
    let task = task.with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _);
    let report = task.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 9, "{report}");
    let keys = listed(&source).await;
    assert!(keys.is_sorted() && keys.len() == 9, "{keys:?}");

    // Unchanged files are not moved again; one that changed with its size is.
    let again = task.run().await.unwrap();
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (9, 0), "{again}");
    write(from.path(), "a/b", &[7; 100]);
    assert_eq!(task.run().await.unwrap().run.outcomes_like("copied").objects, 1);

    let (to, sink) = directory();
    let (report, _) = run(memory, sink.clone()).await;
    assert!(report.is_success(), "{report}");
    assert_eq!(contents(&source).await, contents(&sink).await);
    assert_eq!(fs::read_dir(to.path().join(".dth-staging")).unwrap().count(), 0, "nothing stays in the staging folder");
    assert_eq!(fs::read(to.path().join("large")).unwrap(), bytes(9 << 20));
}

/// Keys that no file can have are skipped by name, never changed; `a` beside `a/b` fails for one of the two, with a reason.
#[tokio::test]
async fn keys_that_no_file_can_have_are_refused() {
    let memory = MemoryStore::default();
    let bad = ["a//b", "/lead", "dir/", "..", "x/../y", "./z", "new\nline", "ctl\u{1}", "name#1", ".dth-staging/x"];
    for key in bad {
        memory.insert(key, "body");
    }
    memory.insert("x".repeat(256), "long");
    memory.insert("good", "body");
    let (folder, sink) = directory();
    let (report, _) = run(memory, sink.clone()).await;
    assert_eq!(report.run.totals.skipped["unrepresentable"].objects, 11, "{report}");
    assert_eq!(listed(&sink).await, ["good"]);

    let memory = MemoryStore::default();
    memory.insert("a", "1");
    memory.insert("a/b", "2");
    let (report, state) = run(memory, sink).await;
    assert_eq!(report.run.outcomes_like("copied").objects, 1, "{report}");
    assert_eq!(report.run.outcome("failed:unrepresentable").objects, 1, "{report}");
    let records = state.records(&["a".into(), "a/b".into()]).await.unwrap();
    let failure = records.into_iter().flatten().find_map(|r| r.failure).unwrap();
    assert_eq!(failure.kind, ErrorKind::Unrepresentable);
    drop(folder);
}

/// Links are followed, loops are not; a dangling link and a name that is no UTF-8 are counted, not hidden.
#[tokio::test]
async fn links_and_odd_names_are_accounted_for() {
    use std::os::unix::ffi::OsStrExt;
    let (from, source) = directory();
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "o", b"outside");
    write(from.path(), "d/file", b"file");
    symlink(from.path().join("d/file"), from.path().join("link")).unwrap();
    symlink(outside.path(), from.path().join("out")).unwrap();
    symlink(from.path(), from.path().join("d/loop")).unwrap();
    symlink("nowhere", from.path().join("dangling")).unwrap();
    fs::write(from.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), b"x").unwrap();
    write(from.path(), "kept#2", b"x");
    assert_eq!(listed(&source).await, ["bad\\xFF", "d/file", "dangling", "kept#2", "link", "out/o"]);
    let memory = MemoryStore::default();
    let (report, _) = run(source, memory.clone()).await;
    let outcome = |label: &str| report.run.outcomes_like(label).objects;
    assert_eq!((outcome("copied"), outcome("cancelled"), outcome("skipped:unrepresentable")), (3, 1, 2), "{report}");
    assert_eq!(memory.get(&"link".into()).unwrap().body, "file");
    assert_eq!(memory.get(&"out/o".into()).unwrap().body, "outside");
}

/// What could be taken for something else: names that look escaped, prefixes that no path can hold, links that lead out.
#[tokio::test]
async fn nothing_is_taken_for_something_else() {
    let (from, source) = directory();
    write(from.path(), "caf\\xE9/menu\\xE9.txt", b"literal");
    write(from.path(), "data/x", b"x");
    assert_eq!(listed(&source).await, ["caf\\xE9/menu\\xE9.txt", "data/x"]);
    assert_eq!(contents(&source).await["caf\\xE9/menu\\xE9.txt"], b"literal");
    let adapter = ObjectStoreAdapter::new(Arc::new(InMemory::new()), "memory");
    adapter.put(&"x".into(), Body::Bytes(vec!["x".into()]), &PutOptions::default()).await.unwrap();
    for prefix in ["/data/", "a//", "../", "/", "data//"] {
        let request = ListRequest { prefix: prefix.into(), ..ListRequest::default() };
        assert!(source.list(&request).await.unwrap().entries.is_empty(), "{prefix}");
        assert!(adapter.list(&request).await.unwrap().entries.is_empty(), "{prefix}");
    }
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "kept", b"kept");
    let (to, sink) = directory();
    symlink(outside.path(), to.path().join("out")).unwrap();
    let written = sink.put(&"out/new".into(), Body::Bytes(vec!["x".into()]), &PutOptions::default()).await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Denied);
    let deleted = sink.delete(&"out/kept".into(), &dth_core::sink::Condition::None).await;
    assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    // A root that is gone is an error, never an empty source.
    drop(from);
    assert!(source.list(&ListRequest::default()).await.is_err());
}

/// T1: a file that is overwritten in place while it is read never arrives mixed.
#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_believed() {
    let (from, source) = directory();
    write(from.path(), "f", &vec![1; 1 << 20]);
    let mut read = source.read(&"f".into(), &ReadOptions::default()).await.unwrap();
    let first = read.body.try_next().await.unwrap().unwrap();
    assert!(!first.is_empty());
    fs::write(from.path().join("f"), vec![2; 1 << 20]).unwrap();
    let rest: Result<Vec<Bytes>, _> = read.body.try_collect().await;
    assert_eq!(rest.unwrap_err().kind(), ErrorKind::Precondition);
    let pinned = ReadOptions { if_match: Some(ETag::new("other")), ..ReadOptions::default() };
    assert_eq!(source.read(&"f".into(), &pinned).await.unwrap_err().kind(), ErrorKind::Precondition);
    let past = ReadOptions { range: ReadRange::Bytes(0..2 << 20), ..ReadOptions::default() };
    assert_eq!(source.read(&"f".into(), &past).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A wrong or short body leaves the old file, and nothing in the staging folder.
#[tokio::test]
async fn a_wrong_body_is_never_visible() {
    let (folder, sink) = directory();
    write(folder.path(), "f", b"old");
    let checksum = Some(Checksum::of(Algorithm::Md5, &[Bytes::from("announced")]));
    let options = PutOptions { checksum, ..PutOptions::default() };
    let wrong = sink.put(&"f".into(), Body::Bytes(vec!["other".into()]), &options).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Corrupt);
    let short = futures_util::stream::iter([Ok(Bytes::from("new"))]);
    let body = Body::Stream { len: 4, stream: Box::pin(short) };
    assert!(sink.put(&"f".into(), body, &PutOptions::default()).await.is_err());
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path().join(".dth-staging")).unwrap().count(), 0);
    assert!(LocalDirectory::open(folder.path().join("f")).unwrap_err().to_string().contains('f'));
}

/// What a directory cannot hold is in the record of the object.
#[tokio::test]
async fn lost_attributes_are_noted() {
    let source = MemoryStore::default();
    let mut attributes = Attributes { content_type: Some("text/plain".into()), expires: Some("never".into()), ..Attributes::default() };
    attributes.user.insert("owner".into(), Bytes::from("Ann"));
    source.insert_with("k", "body", &PutOptions { attributes: attributes.clone(), ..PutOptions::default() });
    let (_folder, sink) = directory();
    let (_, state) = run(source.clone(), sink).await;
    let record = state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.not_carried, ["content-type", "expires", "metadata owner"]);

    // Another store of that crate holds most of them.
    let sink = ObjectStoreAdapter::new(Arc::new(InMemory::new()), "memory");
    let (report, state) = run(source, sink.clone()).await;
    assert!(report.is_success(), "{report}");
    let record = state.records(&["k".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.not_carried, ["expires"]);
    let found = sink.head(&"k".into(), None).await.unwrap().attributes;
    assert_eq!(found, Attributes { expires: None, ..attributes });
}

/// Any other store of the crate: keys it cannot hold are refused, the rest goes there and back, large ones in a stream.
#[tokio::test]
async fn other_stores_go_there_and_back() {
    let source = MemoryStore::new(MemoryStoreSettings { checksums: &[], ..MemoryStoreSettings::default() });
    for key in ["a", "a/b", "a.b", "é"] {
        source.insert(key, key.to_owned());
    }
    source.insert("large", bytes(20 << 20));
    source.insert_parts("parts", bytes(11 << 20), 5 << 20);
    source.insert("a//b", "refused");
    let store = ObjectStoreAdapter::new(Arc::new(InMemory::new()), "memory");
    let (report, _) = run(source.clone(), store.clone()).await;
    assert!(report.is_success() && report.run.totals.skipped["unrepresentable"].objects == 1, "{report}");
    let back = MemoryStore::default();
    let (report, _) = run(store, back.clone()).await;
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 6, "{report}");
    for (key, object) in back.snapshot() {
        assert_eq!(object.body, source.get(&key).unwrap().body, "{key}");
    }
    let refused = ObjectStoreAdapter::new(Arc::new(InMemory::new()), "memory").head(&ObjectKey::from("a//b"), None).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unrepresentable);
}
