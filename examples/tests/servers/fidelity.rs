//! All that an object was, what is archived, and other names: versions, restores, key mappings.

use crate::support::{Pair, bytes, contents, enable_versioning, ministacks, open_uploads, pair, put, put_multipart, venv};
use dth_core::{
    index::Index,
    key_map::KeyRules,
    object::ObjectKey,
    sink::{Condition, PutOptions, Sink},
    source::{ReadOptions, Restore},
    state::{RecordQuery, StateStore},
    versions::{Versions, history},
};
use dth_examples::servers::Server;
use dth_s3::{S3Config, S3Store};
use std::time::Duration;

/// What a bucket's keys held by another client's word, the oldest first: the bytes' MD5, or `-` for a delete marker. In the order of the
/// answer, which boto3 itself loses.
const HISTORY: &str = r#"
import hashlib, urllib.request, xml.etree.ElementTree as tree
s3 = client("s3")
for key in sys.argv[2:]:
    told, more = [], {}
    while True:
        asked = dict(more, Bucket=sys.argv[1], Prefix=key)
        page = tree.fromstring(urllib.request.urlopen(s3.generate_presigned_url("list_object_versions", asked)).read())
        for entry in page:
            kind = entry.tag.split("}")[1]
            if kind not in ("Version", "DeleteMarker") or entry.find("{*}Key").text != key:
                continue
            id, body = entry.find("{*}VersionId").text, None
            if kind == "Version":
                body = s3.get_object(Bucket=sys.argv[1], Key=key, VersionId=id)["Body"].read()
            told.append("-" if body is None else hashlib.md5(body).hexdigest())
        if page.find("{*}IsTruncated").text != "true":
            break
        more = {"KeyMarker": page.find("{*}NextKeyMarker").text, "VersionIdMarker": page.find("{*}NextVersionIdMarker").text}
    print(key, *reversed(told))
"#;

async fn versioned(from: Server, to: Server) -> Pair {
    let mut pair = pair(from, to).await;
    pair.settings.finder.versions = Versions::All;
    enable_versioning(pair.source_server(), "source").await;
    enable_versioning(pair.sink_server(), "destination").await;
    pair
}

async fn delete(store: &S3Store, key: &str) {
    store.delete(&key.into(), &Condition::None).await.unwrap();
}

/// Histories with markers, equal neighbours and odd keys, by the word of boto3; again, nothing is written; what came since follows.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn all_versions_arrive_in_their_order() {
    let venv = venv();
    let (from, to) = tokio::try_join!(Server::ministack(&venv), Server::ministack(&venv)).unwrap();
    let pair = versioned(from, to).await;
    let odd = "a b+é/../x";
    for (key, seeds) in [("plain", vec![1, 2, 2, 0, 3]), ("gone", vec![4, 0]), (odd, vec![5, 0, 5, 6])] {
        for seed in seeds {
            if seed == 0 { delete(&pair.source, key).await } else { put(&pair.source, key, bytes(1000 + seed, seed as u64)).await }
        }
    }
    let refused = dth_core::sync::Sync::new(
        std::sync::Arc::new(pair.source.clone()),
        std::sync::Arc::new({
            let plain = S3Store::new(S3Config { bucket: "plain".into(), ..pair.settings.destination.clone() }).unwrap();
            plain.create_bucket().await.unwrap();
            plain
        }),
    );
    let error = refused.with_finder(pair.settings.finder.clone()).run().await.unwrap_err();
    assert!(error.chain().contains("keeps no versions"), "{}", error.chain());

    let told = |server, bucket| {
        let venv = crate::support::venv();
        async move { Server::python(server, &venv, HISTORY, &[bucket, "plain", "gone", odd]).await.unwrap() }
    };
    for _ in 0..2 {
        let report = pair.settings.task().await.unwrap().run().await.unwrap();
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == 3, "{report}");
        assert_eq!(told(pair.source_server(), "source").await, told(pair.sink_server(), "destination").await);
        let again = pair.settings.task().await.unwrap().run().await.unwrap();
        assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (3, 0), "{again}");
        delete(&pair.source, "plain").await;
        put(&pair.source, "gone", bytes(10, 9)).await;
        delete(&pair.source, odd).await;
    }
    let state = pair.settings.open_state().unwrap();
    let mut out = Vec::new();
    let lines = dth_core::manifest::export(&state, &pair.settings.key_map().unwrap(), &mut out).await.unwrap();
    assert_eq!(lines, 3);
    let mut result = dth_core::manifest::Verification::default();
    for line in out.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line = serde_json::from_slice(line).unwrap();
        let keys = pair.settings.key_map().unwrap();
        dth_core::manifest::verify(&line, &pair.source, &pair.sink, &keys, &mut result).await.unwrap();
    }
    assert_eq!((result.checked, result.source_moved_on, result.wrong.len()), (3, 3, 0), "{result:?}");
}

/// Between servers of two makes, with an object in parts, hundreds of versions over several pages, and KMS-like etags that never match.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SeaweedFS: run `cargo xtask test`"]
async fn versions_move_between_makes() {
    let venv = venv();
    let (from, to) = tokio::try_join!(Server::seaweedfs(&venv), Server::ministack(&venv)).unwrap();
    let mut pair = versioned(from, to).await;
    put_multipart(&pair.source, "parts", &bytes(11 << 20, 1), 5 << 20, &PutOptions::default()).await;
    put(&pair.source, "parts", bytes(100, 2)).await;
    put_multipart(&pair.source, "parts", &bytes(12 << 20, 3), 5 << 20, &PutOptions::default()).await;
    for seed in 0..30 {
        put(&pair.source, "often", bytes(10, seed)).await;
    }
    pair.settings.destination.encryption = dth_s3::Encryption::Kms { key_id: Some("arn:aws:kms:us-east-1:000000000000:key/k".into()) };
    for (run, copied) in [(1, 2), (2, 0), (3, 1)] {
        if run == 3 {
            delete(&pair.source, "often").await;
            put(&pair.source, "often", bytes(10, 99)).await;
        }
        let report = pair.settings.task().await.unwrap().run().await.unwrap();
        let failed = pair.settings.open_state().unwrap().query(&RecordQuery::default(), 10).await.unwrap();
        let causes: Vec<_> = failed.into_iter().filter_map(|record| record.failure).map(|failure| failure.text).collect();
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == copied, "run {run}: {report}\n{causes:?}");
    }
    let sink = pair.settings.destination_bucket().unwrap();
    for (key, expected) in [("parts", 3), ("often", 32)] {
        let sizes = |versions: Vec<dth_core::versions::Version>| versions.into_iter().map(|v| v.entry.size).collect::<Vec<_>>();
        let (here, there) = (history(&pair.source, &key.into()).await.unwrap(), history(&sink, &key.into()).await.unwrap());
        assert_eq!(sizes(here), sizes(there.clone()), "{key}");
        assert_eq!(there.len(), expected, "{key}");
    }
    assert_eq!(contents(&pair.source, false).await, contents(&sink, false).await);
    assert_eq!(open_uploads(&sink).await, 0);
}

/// What is archived is asked for once, told as such, and copied when it is back: by a later run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn archived_objects_are_restored_and_copied() {
    let mut pair = ministacks().await;
    let archive = S3Config { storage_class: Some("GLACIER".into()), ..pair.settings.source.clone() };
    put(&S3Store::new(archive).unwrap(), "cold", bytes(1000, 1)).await;
    put(&pair.source, "warm", bytes(10, 2)).await;
    pair.settings.finder.restore = Some(Restore { days: 2, tier: Some("Standard".into()) });
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.outcome("skipped:restoring").objects == 1, "{report}");
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert_eq!(report.run.outcome("skipped:restoring").objects, 1, "asked again while it is under way: {report}");
    // This server takes two seconds.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1, "{report}");
    let body = crate::features::read(&pair.sink, "cold", ReadOptions::default()).await;
    assert_eq!(body, bytes(1000, 1));
    let again = pair.settings.task().await.unwrap().run().await.unwrap();
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (2, 0), "{again}");
}

/// Keys are stripped, rewritten and put below a prefix; those that would become one are left alone and counted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn keys_are_mapped_by_rules() {
    let mut pair = ministacks().await;
    for key in ["old/2024-05-a.txt", "old/2024-05-b c.txt", "old/é", "old/x", "old/X", "other/z"] {
        put(&pair.source, key, key.as_bytes().to_vec()).await;
    }
    pair.settings.destination_prefix = "new".into();
    pair.settings.keys =
        KeyRules { strip: "old/".into(), pattern: Some(r"^(\d{4})-(\d\d)-(.*)$|^(?i:x)$".into()), replacement: "$1/$2/$3".into() };
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.totals.listed.objects == 5, "{report}");
    assert_eq!(report.run.totals.skipped.get("collision").map(|t| t.objects), Some(2), "{report}");
    let found = contents(&pair.sink, false).await;
    let keys: Vec<&str> = found.keys().map(ObjectKey::as_str).collect();
    assert_eq!(keys, ["new/2024/05/a.txt", "new/2024/05/b c.txt", "new/é"]);
    assert_eq!(crate::features::read(&pair.sink, "new/2024/05/b c.txt", ReadOptions::default()).await, b"old/2024-05-b c.txt");
    let again = pair.settings.task().await.unwrap().run().await.unwrap();
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (3, 0), "{again}");
    assert!(pair.sink.head(&"old/x".into(), None).await.is_err());
}
