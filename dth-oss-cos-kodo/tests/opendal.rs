//! The promises of the conformance suite on operators of OpenDAL, and its guards.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    conformance::{StoreBench, Verdict, store},
    error::ErrorKind,
    index::{Index, ListRequest},
    memory::MemoryStore,
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, Source},
    sync::Sync,
};
use dth_oss_cos_kodo::{OpendalSink, OpendalSource};
use dth_s3::LocalDirectory;
use futures_util::TryStreamExt;
use opendal::{
    Operator,
    services::{Fs, Memory},
};
use std::sync::Arc;

fn memory() -> Operator {
    Operator::new(Memory::default()).unwrap()
}

fn directory(folder: &std::path::Path) -> Operator {
    Operator::new(Fs::default().root(folder.to_str().unwrap())).unwrap()
}

/// Reads by OpenDAL what is written into a directory. (As a source and a sink on a real store: `examples/tests/servers/clouds`.)
#[tokio::test]
async fn a_directory_keeps_the_promises_of_reading() {
    let folder = tempfile::tempdir().unwrap();
    let source = OpendalSource::new(directory(folder.path())).unwrap();
    let bench = StoreBench::new(Arc::new(source), Arc::new(LocalDirectory::open(folder.path()).unwrap()));
    let reading = [
        "a_missing_key_is_not_found",
        "a_listing_is_whole_and_in_order",
        "a_listing_starts_behind_a_key",
        "a_listing_keeps_to_its_prefix",
        "a_range_is_that_range",
        "a_range_that_is_not_there_is_an_error",
        "an_overwrite_replaces_the_whole",
    ];
    let promises: Vec<_> = store::PROMISES.iter().filter(|(name, _)| reading.contains(name)).collect();
    assert_eq!(promises.len(), reading.len());
    for (name, promise) in promises {
        assert_eq!(promise(&bench.anew()).await, Ok(Verdict::Held), "{name}");
    }
}

/// T18: OpenDAL lists `k ` as `k`. What it shows under another name is told, and not taken for gone or for its neighbour.
#[tokio::test]
async fn names_that_opendal_changes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let odd = tempfile::tempdir().unwrap();
    std::fs::create_dir(odd.path().join(" led")).unwrap();
    std::fs::write(odd.path().join(" led/x"), "x").unwrap();
    let error = OpendalSource::new(directory(odd.path())).unwrap().list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unrepresentable, "a folder: {}", error.chain());
    for name in ["plain", "end ", "sub/x"] {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, name).unwrap();
    }
    let source = OpendalSource::new(directory(folder.path())).unwrap();
    let report = Sync::new(Arc::new(source.clone()), Arc::new(MemoryStore::default())).run().await.unwrap();
    assert_eq!(report.run.totals.listed.objects, 3, "{report}");
    assert_eq!(report.run.outcome("skipped:unrepresentable").objects, 1, "{report}");
    assert_eq!(report.run.outcomes_like("copied").objects, 2, "{report}");
    let error = source.head(&"end".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unrepresentable, "{}", error.chain());
    std::fs::write(folder.path().join("end"), "another").unwrap();
    let error = source.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unrepresentable);
    assert!(error.chain().contains("/end`"), "{}", error.chain());
}

/// Of a service that tells no version nothing is read: a change could not be seen.
#[tokio::test]
async fn a_service_without_versions_is_refused() {
    let operator = memory();
    operator.write("k", "bytes").await.unwrap();
    let source = OpendalSource::new(operator).unwrap();
    let errors = [
        source.head(&"k".into(), None).await.unwrap_err(),
        source.list(&ListRequest::default()).await.unwrap_err(),
        source.read(&"k".into(), &ReadOptions::default()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.chain().contains("neither etag nor time"), "{}", error.chain());
    }
}

/// Keys that OpenDAL would change are refused by name, never changed.
#[tokio::test]
async fn keys_that_paths_would_change_are_refused() {
    let operator = memory();
    let sink = OpendalSink::new(operator.clone()).unwrap();
    for key in ["a//b", "/lead", "dir/", " a", "a ", "a/../b", "./a", "a\\b", ""] {
        assert!(!sink.carries(&key.into()), "{key:?}");
        let error = sink.put(&key.into(), Body::Bytes(Vec::new()), &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unrepresentable, "{key:?}");
    }
    assert!(sink.list(&ListRequest::default()).await.unwrap().entries.is_empty(), "nothing was written under another key");
    for key in ["a", "a/b", "é", "e\u{301}", "a b", "+%2F", "new\nline", "日本/🦀"] {
        assert!(sink.carries(&key.into()), "{key:?}");
    }
}

/// A root that is not there is an error, and not a source without objects; a folder that is gone is empty.
#[tokio::test]
async fn a_root_that_is_not_there_is_no_empty_source() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("a")).unwrap();
    std::fs::write(root.join("a/b"), "x").unwrap();
    let source = OpendalSource::new(directory(&root)).unwrap();
    let below = |prefix: &str| ListRequest { prefix: prefix.into(), ..ListRequest::default() };
    assert_eq!(source.list(&below("a/")).await.unwrap().entries.len(), 1);
    assert!(source.list(&below("nothing/here/")).await.unwrap().entries.is_empty());
    std::fs::remove_dir_all(&root).unwrap();
    for prefix in ["", "a/", "nothing/here/"] {
        let error = source.list(&below(prefix)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{prefix}: {}", error.chain());
    }
}

/// A service that shows what is half written is no destination.
#[test]
fn a_file_system_is_no_sink() {
    let folder = tempfile::tempdir().unwrap();
    let error = OpendalSink::new(directory(folder.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.chain().contains("LocalDirectory"), "{}", error.chain());
}

/// T1: what is overwritten while it is read ends in an error before its last byte, also where the service has no etags.
#[tokio::test]
async fn a_torn_read_is_no_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("torn");
    std::fs::write(&file, vec![1u8; 8 << 20]).unwrap();
    let source = OpendalSource::new(directory(folder.path())).unwrap();
    let mut read = source.read(&"torn".into(), &ReadOptions::default()).await.unwrap();
    let first = read.body.try_next().await.unwrap().unwrap();
    assert!(first.len() < 8 << 20);
    std::fs::write(&file, vec![2u8; 8 << 20]).unwrap();
    let mut taken = first.len();
    let error = loop {
        match read.body.try_next().await {
            Ok(Some(chunk)) => taken += chunk.len(),
            Ok(None) => panic!("a mix of two versions was passed on as a whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Precondition, "{}", error.chain());
    assert!(taken < 8 << 20, "its last chunk is kept back");
    let pinned = ReadOptions { if_match: read.info.entry.etag.clone(), ..ReadOptions::default() };
    assert_eq!(source.read(&"torn".into(), &pinned).await.unwrap_err().kind(), ErrorKind::Precondition);
}

/// A directory, by OpenDAL, to a store; and again with nothing to do.
#[tokio::test]
async fn a_directory_is_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a!", "a/b", "a/b c", "a/é/f", "a0", "z", "dir/sub/x"];
    for (n, name) in names.iter().enumerate() {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, vec![n as u8; n * 1000]).unwrap();
    }
    let (source, sink) = (OpendalSource::new(directory(folder.path())).unwrap(), MemoryStore::default());
    let task = Sync::new(Arc::new(source), Arc::new(sink.clone()));
    let report = task.run().await.unwrap();
    assert!(report.is_success(), "{report}");
    for (n, name) in names.iter().enumerate() {
        assert_eq!(sink.get(&(*name).into()).unwrap().body, vec![n as u8; n * 1000], "{name}");
    }
    assert_eq!(report.run.totals.listed.objects, names.len() as u64);
}
