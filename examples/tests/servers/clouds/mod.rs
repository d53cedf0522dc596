//! OSS, COS and Kodo, before servers that judge every request by the code of the vendor's own SDK (`server.py`).

mod bridges;
mod opendal;

use crate::support::{bytes, contents, open_uploads, put, put_multipart, venv};
use dth_core::{
    checksum::{Algorithm, Checksum, hex},
    conformance::{StoreBench, Verdict, hold_all},
    error::ErrorKind,
    finder::FinderSettings,
    index::Index,
    object::Attributes,
    sink::{Body, PutOptions, Sink},
    source::Restore,
    sync::Sync,
    transfer::TransferSettings,
    versions::{Version, Versions, history},
    worker::WorkerSettings,
};
use dth_examples::servers::Server;
use dth_oss_cos_kodo::{Cos, Kodo, Oss};
use dth_s3::{CredentialsConfig, Encryption, Network, Profile, Proxy, S3Config, S3Store, Secret};
use dth_state::Sqlite;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

const CLOUDS: [Profile; 3] = [Profile::Oss, Profile::Cos, Profile::Kodo];
const BUCKET: &str = "bucket-1250000000";
/// Anybody may read buckets whose names begin so.
const PUBLIC: &str = "public-1250000000";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/clouds")
}

/// What a script of this folder prints.
fn script(name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(venv().join("bin/python"));
    command.arg(folder().join(name)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
}

/// A cloud on loopback, and where it would be.
struct Cloud {
    server: Server,
    profile: Profile,
    region: &'static str,
}

impl Cloud {
    async fn start(profile: Profile) -> Self {
        let region = match profile {
            Profile::Oss => "cn-hangzhou",
            Profile::Cos => "ap-guangzhou",
            _ => "cn-east-1",
        };
        let server = Server::cloud(&venv(), &folder().join("server.py"), profile, region).await.unwrap();
        Self { server, profile, region }
    }

    fn host(&self) -> &'static str {
        match self.profile {
            Profile::Oss => "oss-cn-hangzhou.aliyuncs.com",
            Profile::Cos => "cos.ap-guangzhou.myqcloud.com",
            _ => "s3.cn-east-1.qiniucs.com",
        }
    }

    /// Settings as a user would write them, but for plain HTTP: the endpoint is the one of the vendor's documents.
    fn config(&self, bucket: &str) -> S3Config {
        let (access, secret) = self.server.keys();
        S3Config {
            bucket: bucket.into(),
            region: self.region.into(),
            endpoint: Some(format!("http://{}", self.host())),
            profile: self.profile,
            credentials: CredentialsConfig::Static {
                access_key_id: access.into(),
                secret_access_key: Secret::new(secret),
                session_token: None,
            },
            proxy: Proxy::Url { url: self.server.endpoint.clone(), user: None, password: None, no_proxy: None },
            // Kodo's documents ask for nothing; its bucket's own host is what its SDK samples use.
            style: dth_s3::Style::VirtualHost,
            ..S3Config::default()
        }
    }

    async fn bucket(&self, bucket: &str) -> S3Store {
        let store = S3Store::new(self.config(bucket)).unwrap();
        store.create_bucket().await.unwrap();
        store
    }
}

async fn keeps_its_promises(profile: Profile, least: usize) {
    let cloud = Cloud::start(profile).await;
    let store = Arc::new(cloud.bucket(BUCKET).await);
    let held = hold_all(&StoreBench::new(store.clone(), store)).await;
    assert!(held >= least, "only {held} promises are made");
    if profile != Profile::Kodo {
        let store = Arc::new(cloud.bucket("versioned-1250000000").await);
        let bench = StoreBench::new(store.clone(), store);
        assert_eq!(dth_core::conformance::store::versions_keep_their_order(&bench).await, Ok(Verdict::Held));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn oss_keeps_its_promises() {
    keeps_its_promises(Profile::Oss, 29).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn cos_keeps_its_promises() {
    keeps_its_promises(Profile::Cos, 29).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn kodo_keeps_its_promises() {
    keeps_its_promises(Profile::Kodo, 22).await;
}

/// The golden requests of every profile have the signatures that the vendors' SDKs and botocore compute; one that was touched has not.
#[test]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
fn golden_requests_are_signed_as_vendors_do() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dth-s3/tests/golden");
    let out = script("golden.py", &[golden.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told = String::from_utf8(out.stdout).unwrap();
    let counts: BTreeMap<&str, usize> =
        told.trim().split(", ").map(|pair| pair.split_once(' ').unwrap()).map(|(name, n)| (name, n.parse().unwrap())).collect();
    assert_eq!(counts.len(), Profile::ALL.len(), "{told}");
    assert!(counts.values().all(|n| *n >= 26), "{told}");
    let touched = tempfile::tempdir().unwrap();
    for profile in ["oss", "cos", "kodo"] {
        let text = std::fs::read_to_string(golden.join(format!("{profile}.txt"))).unwrap();
        let other = text.replacen("max-age=60", "max-age=61", 1).replacen("x-oss-meta-name: value", "x-oss-meta-name: other", 1);
        std::fs::write(touched.path().join(format!("{profile}.txt")), other).unwrap();
    }
    let out = script("golden.py", &[touched.path().to_str().unwrap()]);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(["oss.txt", "cos.txt", "kodo.txt"].iter().all(|file| wrong.contains(file)), "{wrong}");
}

/// What the vendor's SDK finds of what we wrote, and we of what it wrote: bytes, metadata, tags, checksums.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn vendors_sdks_and_we_read_each_other() {
    for profile in CLOUDS {
        let cloud = Cloud::start(profile).await;
        let store = cloud.bucket(BUCKET).await;
        let user = [("name".to_owned(), "a value".into())].into();
        let attributes = Attributes { content_type: Some("text/x-dth".into()), user, ..Attributes::default() };
        let tags = if profile == Profile::Kodo { vec![] } else { vec![("k".to_owned(), "v w".to_owned())] };
        let options = PutOptions { attributes, tags, ..PutOptions::default() };
        let (small, large) = (bytes(1000, 1), bytes(12 << 20, 2));
        store.put(&"by-dth/日本 +&".into(), Body::Bytes(vec![small.clone().into()]), &options).await.unwrap();
        put_multipart(&store, "by-dth/parts", &large, 5 << 20, &options).await;

        let (access, secret) = cloud.server.keys();
        let out = script("sdk.py", &[profile.as_str(), &cloud.server.endpoint, access, secret, cloud.region, BUCKET]);
        assert!(out.status.success(), "{}: {}", profile.as_str(), String::from_utf8_lossy(&out.stderr));
        let found: BTreeMap<String, Value> = serde_json::from_slice(&out.stdout).unwrap();
        for (key, body) in [("by-dth/日本 +&", small), ("by-dth/parts", large)] {
            let crc = Checksum::of(Algorithm::Crc64Ecma, &[body.clone().into()]).value;
            let crc = u64::from_be_bytes(crc.try_into().unwrap()).to_string();
            let tells = profile != Profile::Kodo;
            let expected = json!({
                "sha256": hex(&Sha256::digest(&body)),
                "type": "text/x-dth",
                "meta": {"name": "a value"},
                "tags": if tells { json!([["k", "v w"]]) } else { json!([]) },
                "crc": if tells { json!(crc) } else { json!(null) },
            });
            assert_eq!(found[key], expected, "{}: {key}", profile.as_str());
        }
        let ours = contents(&store, profile != Profile::Kodo).await;
        assert_eq!(ours.keys().map(|k| k.as_str().to_owned()).collect::<Vec<_>>(), found.keys().cloned().collect::<Vec<_>>());
        for (key, (sha256, attributes, tags)) in ours {
            let theirs = &found[key.as_str()];
            assert_eq!(theirs["sha256"], sha256, "{key}");
            assert_eq!(theirs["type"], json!(attributes.content_type), "{key}");
            let user: BTreeMap<&str, &str> =
                attributes.user.iter().map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap())).collect();
            assert_eq!(theirs["meta"], json!(user), "{key}");
            assert_eq!(theirs["tags"], json!(tags), "{key}");
        }
        assert_eq!(open_uploads(&store).await, 0);
    }
}

/// Another secret, another key id and no signature are refused for what they are, and do nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn wrong_secrets_are_refused_by_the_vendors_code() {
    for profile in CLOUDS {
        let cloud = Cloud::start(profile).await;
        let store = cloud.bucket(BUCKET).await;
        put(&store, "there", bytes(10, 1)).await;
        let pair = |access: &str, secret: &str| CredentialsConfig::Static {
            access_key_id: access.into(),
            secret_access_key: Secret::new(secret),
            session_token: None,
        };
        let (access, secret) = cloud.server.keys();
        for (credentials, kind) in [
            (pair(access, "canary-secret"), ErrorKind::CredentialsExpired),
            (pair("AKIDNOBODY", secret), ErrorKind::CredentialsExpired),
            (CredentialsConfig::Anonymous, ErrorKind::Denied),
        ] {
            let wrong = S3Store::new(S3Config { credentials: credentials.clone(), ..cloud.config(BUCKET) }).unwrap();
            let key = "there".into();
            let errors = [
                wrong.put(&key, Body::Bytes(vec![bytes(5, 2).into()]), &PutOptions::default()).await.unwrap_err(),
                wrong.head(&key, None).await.unwrap_err(),
                wrong.list(&dth_core::index::ListRequest::default()).await.unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), kind, "{}: {credentials:?}: {}", profile.as_str(), error.chain());
                assert!(!error.chain().contains("canary"), "{}", error.chain());
            }
        }
        assert_eq!(contents(&store, false).await.len(), 1);
    }
}

/// Public data needs no signature, and a bucket of another region says where it is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn public_buckets_are_read_without_a_signature() {
    for profile in [Profile::Oss, Profile::Cos] {
        let cloud = Cloud::start(profile).await;
        let owner = cloud.bucket(PUBLIC).await;
        put(&owner, "a/b", bytes(100, 1)).await;
        let S3Config { endpoint, proxy, style, .. } = cloud.config(PUBLIC);
        let plain = |config: &mut S3Config| (config.endpoint, config.proxy, config.style) = (endpoint.clone(), proxy.clone(), style);
        let anybody = match profile {
            Profile::Oss => Oss::new(PUBLIC, cloud.region).with(plain).open(),
            _ => Cos::new(PUBLIC, cloud.region).with(plain).open(),
        };
        assert_eq!(contents(&anybody.unwrap(), false).await, contents(&owner, false).await);
    }
    let cloud = Cloud::start(Profile::Oss).await;
    let elsewhere = S3Config { endpoint: Some("http://oss-cn-beijing.aliyuncs.com".into()), ..cloud.config(BUCKET) };
    let store = S3Store::new(elsewhere).unwrap();
    for error in [
        store.list(&dth_core::index::ListRequest::default()).await.unwrap_err(),
        // Its answer has no body: a header tells.
        store.head(&"k".into(), None).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.chain());
        assert!(error.chain().contains("oss-cn-hangzhou.aliyuncs.com"), "{}", error.chain());
    }
}

/// From each cloud to the next: all that both can hold arrives, what one cannot is named, and nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn tasks_between_clouds_arrive_whole() {
    let files = tempfile::tempdir().unwrap();
    for (from, to) in [(Profile::Oss, Profile::Cos), (Profile::Cos, Profile::Kodo), (Profile::Kodo, Profile::Oss)] {
        let name = format!("{} to {}", from.as_str(), to.as_str());
        let (here, there) = tokio::join!(Cloud::start(from), Cloud::start(to));
        let (source, sink) = (here.bucket("source-1250000000").await, there.bucket("sink-1250000000").await);
        let keys = ["plain", "dir/", "a//b", "é +&%2F", "e\u{301}", "日本/🦀", "back\\slash", "dots/../x", "\\first", "quote\"'"];
        let mut lost = 0;
        for (seed, key) in (0..).zip(keys).filter(|(_, key)| source.carries(&(*key).into())) {
            put(&source, key, bytes(1000 + seed as usize, seed)).await;
            lost += u64::from(!sink.carries(&key.into()));
        }
        let text = |t: &str| Some(t.to_owned());
        let attributes = Attributes {
            content_type: text("text/css"),
            content_encoding: text("identity"),
            content_language: text("zh"),
            content_disposition: text("inline"),
            cache_control: text("no-store"),
            expires: text("Thu, 01 Jan 2099 00:00:00 GMT"),
            user: [("name".to_owned(), "value".into())].into(),
            ..Attributes::default()
        };
        let tags = if from == Profile::Kodo { vec![] } else { vec![("k".to_owned(), "v".to_owned())] };
        put_multipart(&source, "large", &bytes(23 << 20, 99), 5 << 20, &PutOptions { attributes, tags, ..PutOptions::default() }).await;
        let archive =
            S3Config { storage_class: Some(if from == Profile::Oss { "Archive" } else { "DEEP_ARCHIVE" }.into()), ..source_config(&here) };
        put(&S3Store::new(archive).unwrap(), "archived", bytes(10, 7)).await;

        let worker = WorkerSettings {
            transfer: TransferSettings { single_max: 8 << 20, part_size: 6 << 20, ..TransferSettings::default() },
            ..WorkerSettings::default()
        };
        let state = Arc::new(Sqlite::open(files.path().join(format!("{}.db", from.as_str()))).unwrap());
        let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_worker(worker).with_state(state.clone(), state);
        let report = task.run().await.unwrap();
        assert!(report.is_success(), "{name}: {report}");
        let skipped = &report.run.totals.skipped;
        assert_eq!(skipped.get("archived").map(|t| t.objects), Some(1), "{name}: {report}");
        assert_eq!(skipped.get("unrepresentable").map_or(0, |t| t.objects), lost, "{name}: {report}");
        // Kodo shows nothing of what it holds: the report says so.
        let weak = report.run.outcome("copied:transport_only").objects;
        assert_eq!(weak > 0, from == Profile::Kodo || to == Profile::Kodo, "{name}: {report}");
        let with_tags = from != Profile::Kodo && to != Profile::Kodo;
        let mut expected = BTreeMap::new();
        for (key, what) in contents_but(&source, "archived", with_tags).await {
            if sink.carries(&key) {
                expected.insert(key, what);
            }
        }
        assert_eq!(contents(&sink, with_tags).await, expected, "{name}");
        assert_eq!(open_uploads(&sink).await, 0);
        let again = task.run().await.unwrap();
        assert_eq!(again.run.totals.queued.objects, 0, "{name}: {again}");
    }
}

/// Versions with delete markers from one cloud to another, and what is archived there restored first.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn histories_move_between_clouds_and_archives_come_back() {
    let files = tempfile::tempdir().unwrap();
    for (from, to) in [(Profile::Oss, Profile::Cos), (Profile::Cos, Profile::Oss)] {
        let name = format!("{} to {}", from.as_str(), to.as_str());
        let (here, there) = tokio::join!(Cloud::start(from), Cloud::start(to));
        let (source, sink) = (here.bucket("versioned-1250000000").await, there.bucket("versioned-1250000001").await);
        let class = if from == Profile::Oss { "Archive" } else { "DEEP_ARCHIVE" };
        let archive = S3Store::new(S3Config { storage_class: Some(class.into()), ..here.config("versioned-1250000000") }).unwrap();
        put(&source, "日本 +&", bytes(100, 1)).await;
        put(&archive, "日本 +&", bytes(200, 2)).await;
        source.delete(&"日本 +&".into(), &dth_core::sink::Condition::None).await.unwrap();
        put_multipart(&source, "日本 +&", &bytes(6 << 20, 3), 5 << 20, &PutOptions::default()).await;
        for seed in 0..120 {
            put(&source, "often", bytes(10, seed)).await;
        }
        let finder = FinderSettings { versions: Versions::All, ..FinderSettings::default() };
        let restoring = FinderSettings { restore: Some(Restore { days: 1, tier: Some("Standard".into()) }), ..finder.clone() };
        let state = Arc::new(Sqlite::open(files.path().join(format!("{}.db", from.as_str()))).unwrap());
        let task = |finder: &FinderSettings| {
            let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_finder(finder.clone());
            task.with_state(state.clone(), state.clone())
        };
        let left = task(&finder).run().await.unwrap();
        assert!(left.is_success() && left.run.totals.skipped["archived"].objects == 1, "{name}: {left}");
        let asked = task(&restoring).run().await.unwrap();
        assert!(asked.is_success() && asked.run.outcome("skipped:restoring").objects == 1, "{name}: {asked}");
        assert_eq!(history(&sink, &"日本 +&".into()).await.unwrap(), [], "{name}: nothing of a history that cannot be whole");
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let report = task(&restoring).run().await.unwrap();
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1, "{name}: {report}");
        for key in ["日本 +&", "often"] {
            let sizes = |versions: Vec<Version>| versions.into_iter().map(|v| (v.marker, v.entry.size)).collect::<Vec<_>>();
            let (here, there) = (history(&source, &key.into()).await.unwrap(), history(&sink, &key.into()).await.unwrap());
            assert_eq!(sizes(here), sizes(there), "{name}: {key}");
        }
        assert_eq!(open_uploads(&sink).await, 0);
        let again = task(&restoring).run().await.unwrap();
        assert_eq!(again.run.totals.queued.objects, 0, "{name}: {again}");
    }
}

/// What is encrypted may have any etag: it is judged by the checksum that the store tells, and known again by its record.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
async fn etags_of_what_is_encrypted_are_not_believed() {
    let files = tempfile::tempdir().unwrap();
    for profile in [Profile::Oss, Profile::Cos] {
        for encryption in [Encryption::Aes256, Encryption::Kms { key_id: Some("k".into()) }] {
            let cloud = Cloud::start(profile).await;
            let source = cloud.bucket("source-1250000000").await;
            let sink = S3Store::new(S3Config { encryption: encryption.clone(), ..cloud.config("sink-1250000000") }).unwrap();
            sink.create_bucket().await.unwrap();
            put(&source, "small", bytes(1000, 1)).await;
            put_multipart(&source, "large", &bytes(13 << 20, 2), 5 << 20, &PutOptions::default()).await;
            let transfer = TransferSettings { single_max: 8 << 20, server_copy: false, ..TransferSettings::default() };
            let worker = WorkerSettings { transfer, ..WorkerSettings::default() };
            let file = files.path().join(format!("{}-{}.db", profile.as_str(), matches!(encryption, Encryption::Aes256)));
            let state = Arc::new(Sqlite::open(file).unwrap());
            let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_worker(worker).with_state(state.clone(), state);
            let report = task.run().await.unwrap();
            assert!(report.is_success() && report.run.outcome("copied").objects == 2, "{profile:?} {encryption:?}: {report}");
            assert_eq!(contents(&sink, false).await, contents(&source, false).await);
            let again = task.run().await.unwrap();
            assert_eq!(again.run.totals.unchanged.objects, 2, "{profile:?} {encryption:?}: {again}");
        }
    }
}

fn source_config(cloud: &Cloud) -> S3Config {
    cloud.config("source-1250000000")
}

/// As [`contents`], of a bucket with one object that cannot be read, and is removed.
async fn contents_but(
    store: &S3Store,
    unreadable: &str,
    tags: bool,
) -> BTreeMap<dth_core::object::ObjectKey, (String, Attributes, dth_core::object::Tags)> {
    let key = unreadable.into();
    let error = dth_core::source::Source::read(store, &key, &dth_core::source::ReadOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Archived, "{}", error.chain());
    store.delete(&key, &dth_core::sink::Condition::None).await.unwrap();
    contents(store, tags).await
}

/// Hosts by region and network, as the vendors' SDKs make them.
#[test]
#[ignore = "needs the vendor's SDK: run `cargo xtask test`"]
fn endpoints_are_those_of_the_vendors_sdks() {
    let out = script("endpoints.py", &[]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told: Vec<(String, String, String, String)> = serde_json::from_slice(&out.stdout).unwrap();
    assert!(told.len() >= 16, "{told:?}");
    for (cloud, region, way, host) in told {
        let network = match way.as_str() {
            "internal" => Network::Internal,
            "accelerate" => Network::Accelerate,
            _ => Network::Public,
        };
        let dual = |config: &mut S3Config| config.dual_stack = way == "dual_stack";
        let config = match cloud.as_str() {
            "oss" => Oss::new("b", &region).with_network(network).with(dual).into_config(),
            "cos" => Cos::new("b", &region).with_network(network).with(dual).into_config(),
            _ => Kodo::new("b", &region).with_network(network).with(dual).into_config(),
        };
        let store = S3Store::new(config).unwrap();
        let told = format!("{store:?}");
        let found = [")", " ("].iter().any(|end| told.contains(&format!("https://{host}{end}")));
        assert!(found, "{cloud} {region} {way}: {store:?}, not {host}");
    }
}
