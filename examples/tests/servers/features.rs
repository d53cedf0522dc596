//! What a bucket can be told and asked: encryption, classes, copies inside, versions, regions, identities, proxies.

use crate::support::{bytes, contents, enable_versioning, ministacks, pair, put, put_multipart, venv};
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::ErrorKind,
    index::Index,
    object::ObjectKey,
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, ReadRange, Source},
    state::{StateStore, Verified},
};
use dth_examples::{
    servers::{Server, reserve_ports},
    settings::PrefixListSettings,
};
use dth_s3::{CredentialsConfig, Encryption, Profile, Proxy, S3Config, S3Store, Secret};
use futures_lite::StreamExt;
use std::process::{Child, Command, Stdio};

pub(crate) async fn read(store: &S3Store, key: &str, options: ReadOptions) -> Vec<u8> {
    let mut read = store.read(&key.into(), &options).await.unwrap();
    let mut body = Vec::new();
    while let Some(chunk) = read.body.next().await {
        body.extend_from_slice(&chunk.unwrap());
    }
    body
}

/// Storage class, ACL and encryption are asked for and stored; etags under KMS are taken for opaque, and a second run knows
/// them by their record.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn what_is_written_is_as_asked_for() {
    for (encryption, kind) in
        [(Encryption::Aes256, "AES256"), (Encryption::Kms { key_id: Some("arn:aws:kms:us-east-1:000000000000:key/k".into()) }, "aws:kms")]
    {
        let mut pair = ministacks().await;
        put(&pair.source, "small", bytes(1000, 1)).await;
        put_multipart(&pair.source, "large", &bytes(11 << 20, 2), 5 << 20, &PutOptions::default()).await;
        pair.settings.destination.encryption = encryption;
        pair.settings.destination.storage_class = Some("STANDARD_IA".into());
        pair.settings.destination.acl = Some("bucket-owner-full-control".into());
        let report = pair.settings.task().await.unwrap().run().await.unwrap();
        assert!(report.is_success(), "{report}");
        let venv = venv();
        let asked = pair.sink_server().python(
            &venv,
            r#"
for key in ["large", "small"]:
    head = client("s3").head_object(Bucket="destination", Key=key)
    print(key, head["StorageClass"], head["ServerSideEncryption"])
"#,
            &[],
        );
        assert_eq!(asked.await.unwrap(), format!("large STANDARD_IA {kind}\nsmall STANDARD_IA {kind}\n"));
        let again = pair.settings.task().await.unwrap().run().await.unwrap();
        assert_eq!(again.run.totals.unchanged.objects, 2, "{again}");
        assert_eq!(contents(&pair.source, false).await, contents(&pair.sink, false).await);
    }
}

/// F5: a list of prefixes is read from the source, from another bucket and from a file; what is missing or empty is an error, and not
/// a run that finds nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_list_of_prefixes_lies_in_a_bucket_or_a_file() {
    let mut pair = ministacks().await;
    let text = b"logs/2026/\r\n\r\nimages/a\nlogs/2026/01/\n".to_vec();
    for key in ["logs/2025/x", "logs/2026/01/x", "logs/2026/y", "images/a", "images/ab", "images/b", "lists/prefixes.txt"] {
        put(&pair.source, key, if key.starts_with("lists") { text.clone() } else { bytes(100, 1) }).await;
    }
    let third = S3Store::new(S3Config { bucket: "third".into(), ..pair.settings.source.clone() }).unwrap();
    third.create_bucket().await.unwrap();
    put(&third, "elsewhere.txt", text.clone()).await;
    put(&third, "empty.txt", b"\n\n".to_vec()).await;
    let file = pair.folder.path().join("prefixes.txt");
    std::fs::write(&file, &text).unwrap();
    let key = |key: &str, bucket: Option<&str>| PrefixListSettings { file: None, key: Some(key.into()), bucket: bucket.map(Into::into) };
    let lists = [
        key("lists/prefixes.txt", None),
        key("elsewhere.txt", Some("third")),
        PrefixListSettings { file: Some(file), ..PrefixListSettings::default() },
    ];
    for (n, list) in lists.into_iter().enumerate() {
        pair.settings.prefix_list = Some(list);
        let report = pair.settings.task().await.unwrap().run().await.unwrap();
        assert!(report.is_success() && report.run.totals.listed.objects == 4, "{report}");
        assert_eq!(report.run.outcomes_like("copied").objects, if n == 0 { 4 } else { 0 }, "{report}");
    }
    let found: Vec<String> = contents(&pair.sink, false).await.into_keys().map(|k| k.as_str().to_owned()).collect();
    assert_eq!(found, ["images/a", "images/ab", "logs/2026/01/x", "logs/2026/y"]);
    for (list, told) in [(key("missing.txt", None), "missing.txt"), (key("empty.txt", Some("third")), "no prefix")] {
        pair.settings.prefix_list = Some(list);
        let error = format!("{:#}", pair.settings.task().await.unwrap_err());
        assert!(error.contains(told) && error.contains("prefix_list"), "{error}");
    }
}

/// T20: an archived object is skipped with its reason, by the listing and by the answer to a read.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn archived_objects_are_skipped() {
    let pair = ministacks().await;
    let archive = S3Config { storage_class: Some("GLACIER".into()), ..pair.settings.source.clone() };
    put(&S3Store::new(archive).unwrap(), "cold", bytes(10, 1)).await;
    put(&pair.source, "warm", bytes(10, 2)).await;
    let error = pair.source.read(&"cold".into(), &ReadOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Archived);
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.totals.skipped["archived"].objects == 1, "{report}");
    assert_eq!(report.run.outcomes_like("copied").objects, 1);
}

/// Both sides on one store: no byte passes through us; metadata and tags arrive; parts are copied by their ranges.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn one_store_copies_inside() {
    let mut pair = ministacks().await;
    let odd = "a b+c/é//x";
    let mut options = PutOptions { tags: vec![("k".into(), "v".into())], ..PutOptions::default() };
    options.attributes.content_type = Some("text/odd".into());
    pair.source.put(&odd.into(), Body::Bytes(vec!["odd".into()]), &options).await.unwrap();
    put_multipart(&pair.source, "parts", &bytes(11 << 20, 2), 5 << 20, &options).await;
    pair.settings.destination = S3Config { bucket: "inside".into(), ..pair.settings.source.clone() };
    let sink = pair.settings.destination_bucket().unwrap();
    sink.create_bucket().await.unwrap();
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    assert_eq!(contents(&pair.source, true).await, contents(&sink, true).await);
    let records = pair.settings.open_state().unwrap().records(&[odd.into(), "parts".into()]).await.unwrap();
    assert!(records.iter().flatten().all(|r| r.verified == Some(Verified::Store)) && records.len() == 2, "{records:?}");

    // T19: what is too large for one copy is copied in parts.
    let origin = pair.source.copy_origin(&"parts".into(), None).unwrap();
    let etag = pair.source.head(&"parts".into(), None).await.unwrap().entry.etag.unwrap();
    let key = ObjectKey::from("by parts");
    let upload = sink.create_upload(&key, &PutOptions::default()).await.unwrap();
    let mut parts = Vec::new();
    for (number, range) in [(1, 0..6 << 20), (2, 6 << 20..11 << 20)] {
        parts.push(sink.copy_part(&origin, &etag, range, &key, &upload, number).await.unwrap());
    }
    let other = dth_core::object::ETag::new("other");
    let refused = sink.copy_part(&origin, &other, 0..6 << 20, &key, &upload, 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Precondition);
    sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await.unwrap();
    assert_eq!(read(&sink, "by parts", ReadOptions::default()).await, bytes(11 << 20, 2));
}

/// A version by its id, beside the current one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn versions_are_read_by_their_id() {
    let pair = ministacks().await;
    enable_versioning(pair.source_server(), "source").await;
    let key = ObjectKey::from("k");
    let body = |text: &'static str| Body::Bytes(vec![text.into()]);
    let old = pair.source.put(&key, body("old"), &PutOptions::default()).await.unwrap().version.unwrap();
    pair.source.put(&key, body("newer"), &PutOptions::default()).await.unwrap();
    let of_old = ReadOptions { version: Some(old.clone()), ..ReadOptions::default() };
    assert_eq!(read(&pair.source, "k", of_old).await, b"old");
    assert_eq!(pair.source.head(&key, Some(&old)).await.unwrap().entry.size, Some(3));
    // T5: this server ignores the range of a version, and answers 200 with all of it: never taken for the range.
    let part = ReadOptions { version: Some(old), range: ReadRange::Bytes(0..2), ..ReadOptions::default() };
    assert_eq!(pair.source.read(&key, &part).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(read(&pair.source, "k", ReadOptions::default()).await, b"newer");
}

/// The region of a bucket is found out where none is set; where a wrong one is set, the error names the right one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn the_region_is_found_out() {
    let pair = ministacks().await;
    let make =
        r#"client("s3", "eu-west-1").create_bucket(Bucket="european", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})"#;
    pair.source_server().python(&venv(), make, &[]).await.unwrap();
    let at =
        |region: &str| S3Store::new(S3Config { bucket: "european".into(), region: region.into(), ..pair.settings.source.clone() }).unwrap();
    let found = at("");
    put(&found, "k", bytes(100, 1)).await;
    assert_eq!(read(&found, "k", ReadOptions::default()).await, bytes(100, 1));
    assert_eq!(found.head(&"k".into(), None).await.unwrap().entry.size, Some(100));
    assert_eq!(at("").head(&"k".into(), None).await.unwrap().entry.size, Some(100), "by a HEAD, too");
    let error = at("us-east-1").head(&"k".into(), None).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.chain().contains("eu-west-1"), "{}", error.chain());
}

/// The default chain of the AWS SDKs, and T14: an identity that the store no longer takes is asked for again, once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn the_default_chain_is_asked_again_when_refused() {
    let mut pair = ministacks().await;
    put(&pair.source, "k", bytes(10, 1)).await;
    let [(access, secret), _] = pair.keys();
    let folder = pair.folder.path().to_owned();
    let (script, count) = (folder.join("credentials.sh"), folder.join("count"));
    let json = |access: &str, secret: &str| format!(r#"{{"Version":1,"AccessKeyId":"{access}","SecretAccessKey":"{secret}"}}"#);
    let text = format!(
        "#!/bin/sh\necho x >> {count}\nif [ $(wc -l < {count}) -eq 1 ]; then echo '{}'; else echo '{}'; fi\n",
        json("AKIAREVOKED", "canary-old"),
        json(&access, &secret),
        count = count.display()
    );
    std::fs::write(&script, text).unwrap();
    let config = folder.join("aws-config");
    std::fs::write(&config, format!("[profile mover]\ncredential_process = sh {}\n", script.display())).unwrap();
    let chain = CredentialsConfig::DefaultChain { profile: Some("mover".into()) };
    pair.settings.source.credentials = chain.clone();
    pair.settings.destination = pair.settings.source.clone();
    let task = folder.join("task.toml");
    std::fs::write(&task, toml::to_string(&pair.settings).unwrap()).unwrap();
    let doctor = |profile: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doctor"));
        command.arg("--config").arg(&task).env("AWS_CONFIG_FILE", &config).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null").env("AWS_PROFILE", profile).env("RUST_LOG", "trace");
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    };
    let out = doctor("mover");
    let told = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(!told.contains(&secret) && !told.contains("canary-old"), "a secret was printed at TRACE");
    let asked = std::fs::read_to_string(&count).unwrap().lines().count();
    assert_eq!(asked, 5, "once by each of the doctor's four clients, once more after the refusal");
}

/// Temporary credentials with their token; expired, the error says so and names what to do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn session_tokens_are_sent() {
    let pair = ministacks().await;
    put(&pair.source, "k", bytes(10, 1)).await;
    let session = r#"
from botocore.config import Config
sts = client("sts", config=Config(parameter_validation=False))
c = sts.get_session_token(DurationSeconds=int(sys.argv[1]))["Credentials"]
print(c["AccessKeyId"], c["SecretAccessKey"], c["SessionToken"])
"#;
    for (seconds, expired) in [("3600", false), ("1", true)] {
        let keys = pair.source_server().python(&venv(), session, &[seconds]).await.unwrap();
        let mut keys = keys.split_whitespace().map(str::to_owned);
        let credentials = CredentialsConfig::Static {
            access_key_id: keys.next().unwrap(),
            secret_access_key: Secret::new(keys.next().unwrap()),
            session_token: keys.next().map(Secret::new),
        };
        let store = S3Store::new(S3Config { credentials, ..pair.settings.source.clone() }).unwrap();
        if expired {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            let error = store.list(&dth_core::index::ListRequest::default()).await.unwrap_err();
            assert!(error.kind() == ErrorKind::CredentialsExpired && error.chain().contains("ExpiredToken"), "{}", error.chain());
        } else {
            assert_eq!(read(&store, "k", ReadOptions::default()).await, bytes(10, 1));
        }
    }
}

pub(crate) struct Tinyproxy {
    child: Child,
    log: std::path::PathBuf,
}

impl Tinyproxy {
    pub(crate) async fn start(folder: &std::path::Path, port: u16) -> Self {
        let (config, log) = (folder.join("tinyproxy.conf"), folder.join("tinyproxy.log"));
        let text = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 60\nLogFile \"{}\"\nLogLevel Connect\nMaxClients 100\nBasicAuth mover secret1\nAllow 127.0.0.1\n",
            log.display()
        );
        std::fs::write(&config, text).unwrap();
        let command = Command::new("tinyproxy").arg("-d").arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = command.expect("tinyproxy of Debian's tinyproxy-bin: `cargo xtask test` installs it");
        let proxy = Self { child, log };
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return proxy;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("tinyproxy did not answer");
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Through a proxy with a password: http is forwarded, https goes through a tunnel to a server whose certificate only
/// `ca_file` knows; a wrong password is an error that names the answer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack and tinyproxy: run `cargo xtask test`"]
async fn requests_go_through_a_proxy() {
    let venv = venv();
    let (from, to) = tokio::try_join!(Server::ministack_tls(&venv), Server::ministack(&venv)).unwrap();
    let mut pair = pair(from, to).await;
    put(&pair.source, "odd/a//b/../ %2F+é", bytes(1000, 1)).await;
    put_multipart(&pair.source, "large", &bytes(11 << 20, 2), 5 << 20, &PutOptions::default()).await;
    let [port] = reserve_ports().unwrap();
    let proxy = Tinyproxy::start(pair.folder.path(), port).await;
    let through = |password: &str, no_proxy: Option<&str>| Proxy::Url {
        url: format!("http://127.0.0.1:{port}"),
        user: Some("mover".into()),
        password: Some(Secret::new(password)),
        no_proxy: no_proxy.map(Into::into),
    };
    for side in [&mut pair.settings.source, &mut pair.settings.destination] {
        side.proxy = through("secret1", None);
    }
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    assert_eq!(contents(&pair.source, false).await, contents(&pair.sink, false).await);
    let log = proxy.log();
    assert!(log.contains("CONNECT 127.0.0.1:") && log.contains("PUT http://127.0.0.1:"), "{log}");

    let with = |proxy| S3Store::new(S3Config { proxy, ..pair.settings.destination.clone() }).unwrap();
    let error = with(through("wrong", None)).head(&"large".into(), None).await.unwrap_err();
    assert!(error.chain().contains("401") || error.chain().contains("407"), "{}", error.chain());
    let lines = proxy.log().lines().count();
    with(through("wrong", Some("127.0.0.1"))).head(&"large".into(), None).await.unwrap();
    with(Proxy::None).head(&"large".into(), None).await.unwrap();
    assert_eq!(proxy.log().lines().count(), lines, "these went around it");
}

/// A store that knows CRC64NVME of whole multipart objects: the checksum is sent with every part and with Complete, verified
/// there, read back; wrong ones are refused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack and SeaweedFS: run `cargo xtask test`"]
async fn full_object_checksums_are_verified_by_the_store() {
    let venv = venv();
    let (from, to) = tokio::try_join!(Server::ministack(&venv), Server::seaweedfs(&venv)).unwrap();
    let mut pair = pair(from, to).await;
    assert_eq!(pair.settings.destination.profile, Profile::SeaweedFs);
    let body = bytes(23 << 20, 5);
    put(&pair.source, "plain", body.clone()).await;
    put(&pair.source, "small", bytes(100, 6)).await;
    // A source whose etags say nothing: CRC64NVME is all there is.
    pair.settings.source.encryption = Encryption::Kms { key_id: None };
    pair.settings.worker.transfer.single_max = 1 << 20;
    pair.settings.worker.transfer.hold_max = 1 << 20;
    let report = pair.settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    assert_eq!(read(&pair.sink, "plain", ReadOptions::default()).await, body);
    let crc = Checksum::of(Algorithm::Crc64Nvme, &[body.clone().into()]);
    assert_eq!(pair.sink.head(&"plain".into(), None).await.unwrap().checksum, Some(crc.clone()));
    let record = pair.settings.open_state().unwrap().records(&["plain".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!((record.checksum, record.verified), (Some(crc.clone()), Some(Verified::Transport(Algorithm::Crc64Nvme))));

    // Read from there, the store's own checksum is what every byte is checked against.
    let back = pair.settings.source.clone();
    let mut reversed = pair.settings.clone();
    (reversed.source, reversed.destination) =
        (reversed.destination, S3Config { bucket: "back".into(), encryption: Encryption::None, ..back });
    reversed.state = Some(pair.folder.path().join("back.db"));
    reversed.source.encryption = Encryption::Kms { key_id: None };
    reversed.destination_bucket().unwrap().create_bucket().await.unwrap();
    let report = reversed.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    let record = reversed.open_state().unwrap().records(&["plain".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.verified, Some(Verified::Source(Algorithm::Crc64Nvme)));

    let key = ObjectKey::from("refused");
    let wrong = Checksum { value: vec![1; 8], ..crc };
    let options = PutOptions { checksum: Some(wrong.clone()), ..PutOptions::default() };
    let upload = pair.sink.create_upload(&key, &options).await.unwrap();
    let part = || Body::Bytes(vec![bytes(100, 7).into()]);
    let refused = pair.sink.put_part(&key, &upload, 1, part(), Some(&wrong)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{}", refused.chain());
    let right = Checksum::of(Algorithm::Crc64Nvme, &[bytes(100, 7).into()]);
    let stored = pair.sink.put_part(&key, &upload, 1, part(), Some(&right)).await.unwrap();
    let refused = pair.sink.complete_upload(&key, &upload, &[stored], &options).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{}", refused.chain());
    pair.sink.abort_upload(&key, &upload).await.unwrap();
    assert_eq!(pair.sink.put(&key, part(), &options).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// The quick way from a local directory into a bucket and back, by the settings of the binaries.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn directories_go_into_buckets_and_back() {
    let pair = ministacks().await;
    let (from, to) = (pair.folder.path().join("from"), pair.folder.path().join("to"));
    for folder in [from.join("d/e"), to.clone()] {
        std::fs::create_dir_all(folder).unwrap();
    }
    for (name, size) in [("a", 10), ("d/b.txt", 5 << 20), ("d/e/é 日", 21 << 20)] {
        std::fs::write(from.join(name), bytes(size, size as u64)).unwrap();
    }
    let mut up = pair.settings.clone();
    (up.source, up.source_directory) = (S3Config::default(), Some(from.clone()));
    let report = up.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 3, "{report}");
    let again = up.task().await.unwrap().run().await.unwrap();
    assert_eq!(again.run.totals.unchanged.objects, 3, "{again}");
    let mut down = pair.settings.clone();
    down.state = Some(pair.folder.path().join("down.db"));
    down.source = down.destination.clone();
    (down.destination, down.destination_directory) = (S3Config::default(), Some(to.clone()));
    let report = down.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success(), "{report}");
    for name in ["a", "d/b.txt", "d/e/é 日"] {
        assert_eq!(std::fs::read(from.join(name)).unwrap(), std::fs::read(to.join(name)).unwrap(), "{name}");
    }
    let both = dth_examples::Settings { source_directory: Some(from), ..pair.settings.clone() };
    assert!(format!("{:#}", both.source().await.unwrap_err()).contains("leave one of them out"));
}
