//! Whole transfers: hostile keys, sizes, metadata, second runs.

use crate::support::{bytes, contents, ministacks, open_uploads, pair, put, put_multipart, venv};
use dth_core::{
    object::Attributes,
    sink::{Body, PutOptions, Sink},
    state::{RecordQuery, StateStore, Status},
};
use dth_examples::servers::Server;

/// T18: bytes that people chose.
const HOSTILE: [&str; 30] = [
    "a",
    "a/b",
    "a/",
    "dir/",
    "k",
    "k/",
    "k/x",
    "//",
    "//lead",
    "/lead",
    "a//b",
    "..",
    ".",
    "./x",
    "a/../b",
    "a/./b",
    "sp ace",
    "plus+plus",
    "per%2Fcent",
    "pct%41",
    "quote\"s",
    "apos'",
    "back\\slash",
    "new\nline",
    "ctl\u{1}x",
    "q?versionId=1",
    "h#sh",
    "é",
    "e\u{301}",
    "😀/🦀 ",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn hostile_keys_sizes_and_metadata_arrive_exactly() {
    let pair = ministacks().await;
    for (i, key) in HOSTILE.iter().enumerate() {
        put(&pair.source, key, bytes(i * 37, i as u64)).await;
    }
    put(&pair.source, &"x".repeat(1024), bytes(5, 5)).await;
    let mib = 1 << 20;
    for size in [0, 1, 5 * mib - 1, 5 * mib, 5 * mib + 1, 13 * mib] {
        put(&pair.source, &format!("size/{size}"), bytes(size, size as u64)).await;
    }
    let mut attributes = Attributes {
        content_type: Some("text/plain; charset=utf-8".into()),
        content_encoding: Some("identity".into()),
        content_language: Some("de, fr".into()),
        content_disposition: Some("attachment; filename=\"a b.txt\"".into()),
        cache_control: Some("max-age=1".into()),
        expires: Some("Wed, 21 Oct 2026 07:28:00 GMT".into()),
        ..Attributes::default()
    };
    attributes.user.insert("owner".into(), "Ann  B.".into());
    let options =
        PutOptions { attributes, tags: vec![("k 1".into(), "v+/=".into()), ("z".into(), String::new())], ..PutOptions::default() };
    pair.source.put(&"meta/small".into(), Body::Bytes(vec!["text".into()]), &options).await.unwrap();
    put_multipart(&pair.source, "meta/parts", &bytes(17 * mib, 3), 6 * mib, &options).await;

    let task = pair.settings.task().await.unwrap();
    let report = task.run().await.unwrap();
    assert!(report.is_success(), "{report}");
    let (here, there) = (contents(&pair.source, true).await, contents(&pair.sink, true).await);
    assert_eq!(here.len(), HOSTILE.len() + 1 + 6 + 2);
    // Every one was checked against what the source said of it: none by transport alone.
    let proven = report.run.outcomes_like("copied").objects - report.run.outcomes_like("copied:transport_only").objects;
    assert_eq!(proven, here.len() as u64, "{report}");
    for (key, object) in &here {
        assert_eq!(there.get(key), Some(object), "{key}");
    }
    assert_eq!(here.len(), there.len());
    assert_eq!(open_uploads(&pair.sink).await, 0);

    // A second run finds nothing to do, and what changed with the same size is found (T8).
    let again = pair.settings.task().await.unwrap().run().await.unwrap();
    assert_eq!((again.run.totals.queued.objects, again.run.totals.unchanged.objects), (0, here.len() as u64), "{again}");
    put(&pair.source, "sp ace", bytes(16 * 37, 999)).await;
    let changed = pair.settings.task().await.unwrap().run().await.unwrap();
    assert_eq!(changed.run.outcomes_like("copied").objects, 1, "{changed}");
    assert_eq!(contents(&pair.source, true).await, contents(&pair.sink, true).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn between_servers_of_different_make() {
    let folder = tempfile::tempdir().unwrap();
    let from = Server::ministack(&venv()).await.unwrap();
    let to = Server::s3s_fs(folder.path()).await.unwrap();
    let pair = pair(from, to).await;
    for i in 0..300 {
        put(&pair.source, &format!("d{}/o{i}", i % 7), bytes(i * 31, i as u64)).await;
    }
    put_multipart(&pair.source, "large", &bytes(14 << 20, 8), 5 << 20, &PutOptions::default()).await;
    put(&pair.source, "plain", bytes(9 << 20, 9)).await;
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    let strip = |all: std::collections::BTreeMap<_, (String, Attributes, _)>| -> Vec<_> {
        all.into_iter().map(|(k, (hash, _, _))| (k, hash)).collect()
    };
    assert_eq!(strip(contents(&pair.source, false).await), strip(contents(&pair.sink, false).await));
    let state = pair.settings.open_state().unwrap();
    let done = state.query(&RecordQuery { status: Some(Status::Done), ..RecordQuery::default() }, 1000).await.unwrap();
    assert_eq!(done.len(), 302);
}

/// Deletions happen only when asked for, and none when they are more than the guard allows.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn deletes_are_guarded() {
    let mut pair = ministacks().await;
    for i in 0..5 {
        put(&pair.sink, &format!("extra{i}"), bytes(3, i)).await;
    }
    put(&pair.source, "kept", bytes(3, 9)).await;
    assert!(pair.settings.task().await.unwrap().run().await.unwrap().is_success());
    assert_eq!(contents(&pair.sink, false).await.len(), 6, "nothing is deleted unasked");
    pair.settings.finder.delete_extra = true;
    pair.settings.finder.max_delete = 4;
    let withheld = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(!withheld.is_success() && withheld.closed, "{withheld}");
    assert_eq!(contents(&pair.sink, false).await.len(), 6, "the guard holds");
    pair.settings.finder.max_delete = 5;
    assert!(pair.settings.task().await.unwrap().run().await.unwrap().is_success());
    assert_eq!(contents(&pair.sink, false).await.keys().map(dth_core::object::ObjectKey::as_str).collect::<Vec<_>>(), ["kept"]);
}

/// Wrong credentials and a missing bucket end with an error that names them, and nothing is done.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn wrong_settings_are_named() {
    let pair = ministacks().await;
    let mut missing = pair.settings.clone();
    missing.source.bucket = "no-such-bucket".into();
    let error = missing.task().await.unwrap().run().await.unwrap_err();
    assert!(error.chain().contains("no-such-bucket"), "{}", error.chain());
    let mut wrong = pair.settings.clone();
    wrong.state = None;
    wrong.source.credentials = dth_s3::CredentialsConfig::Static {
        access_key_id: "AKIDNOBODY".into(),
        secret_access_key: dth_s3::Secret::new("canary-secret"),
        session_token: None,
    };
    let error = wrong.task().await.unwrap().run().await.unwrap_err();
    assert_eq!(error.kind(), dth_core::error::ErrorKind::CredentialsExpired, "{}", error.chain());
    assert!(!format!("{error:?} {}", error.chain()).contains("canary"));
}
