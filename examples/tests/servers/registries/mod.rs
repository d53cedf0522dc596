//! Images between real registries: the CNCF's distribution registry, with skopeo and the registry's own API as referees.

mod ecr;
mod faults;
mod images;
mod promises;
mod rig;
mod server;
mod workers;

use crate::support::bytes;
use bytes::Bytes;
use dth_core::{report::Report, state::Outcome};
use dth_ecr::{CredentialsConfig, RegistryConfig, Rename, Selection, TagFilter};
use dth_examples::Settings;
use images::{Client, OCI_INDEX, digest, must_be_equal, push_set};
use rig::Rig;
use server::{Auth, DockerRegistry, skopeo, sum};
use std::collections::BTreeSet;

/// A task between two registries that remembers what it did in a file.
struct Copying {
    settings: Settings,
    _folder: tempfile::TempDir,
}

impl Copying {
    fn new(source: RegistryConfig, destination: RegistryConfig, images: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let select = Selection { images: images.iter().map(|i| (*i).to_owned()).collect(), ..source.select.clone() };
        let settings = Settings {
            source_registry: Some(RegistryConfig { select, ..source }),
            destination_registry: Some(destination),
            state: Some(folder.path().join("state.db")),
            ..Settings::default()
        };
        Self { settings, _folder: folder }
    }

    fn selecting(mut self, change: impl FnOnce(&mut Selection)) -> Self {
        change(&mut self.settings.source_registry.as_mut().unwrap().select);
        self
    }

    async fn run(&self) -> Report {
        self.settings.task().await.unwrap().run().await.unwrap()
    }

    async fn succeeds(&self) -> Report {
        let report = self.run().await;
        let failed = self.failures().await;
        assert!(report.is_success(), "{report}{failed:?}");
        report
    }

    async fn failures_if_any(&self) -> Vec<String> {
        if self.settings.state.as_ref().is_some_and(|file| file.exists()) { self.failures().await } else { Vec::new() }
    }

    /// What failed, and why.
    async fn failures(&self) -> Vec<String> {
        let query = dth_core::state::RecordQuery { status: Some(dth_core::state::Status::Failed), ..Default::default() };
        let records = self.settings.stores().await.unwrap().state.query(&query, 100).await.unwrap();
        records.into_iter().map(|r| format!("{}: {}", r.key, r.failure.map(|f| f.text).unwrap_or_default())).collect()
    }
}

async fn two() -> (DockerRegistry, DockerRegistry) {
    tokio::join!(DockerRegistry::start(Auth::Open), DockerRegistry::start(Auth::Open))
}

/// The set of the issue, smaller: every digest the same by skopeo and by the API, each blob hashed again, each sent once, and
/// requests counted by the registries. Again: one HEAD a tag and side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn images_arrive_with_their_digests() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let set = push_set(&source, 20_000).await;
    from.requests().await;
    let list: Vec<&str> = set.list.iter().map(String::as_str).collect();
    let copying = Copying::new(from.config(), to.config(), &list);
    let report = copying.succeeds().await;
    assert_eq!(report.run.outcome(&Outcome::COPIED.label()).objects, 27, "{report}");
    let (asked, written) = (from.requests().await, to.requests().await);
    println!("27 images, fresh: source {} {asked:?}, destination {} {written:?}", sum(&asked, ""), sum(&written, ""));
    assert!(sum(&asked, "") <= 130 && sum(&written, "") <= 280, "{asked:?} {written:?}");
    assert_eq!((sum(&written, "PUT upload 201"), sum(&asked, "GET blob 200")), (set.blobs as u64, set.blobs as u64), "each blob once");
    must_be_equal(&source, &there, &set.list).await;
    from.requests().await;
    to.requests().await;
    let again = copying.succeeds().await;
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (27, 0), "{again}");
    let (asked, written) = (from.requests().await, to.requests().await);
    println!("27 images, again: source {asked:?}, destination {written:?}");
    for side in [&asked, &written] {
        assert_eq!((sum(side, "HEAD manifest 200"), sum(side, "GET manifest"), sum(side, "GET blob")), (27, 0, 0), "{side:?}");
        assert!(sum(side, "") <= 29, "{side:?}");
    }
    // One that changed: its own blobs only.
    let layers = [bytes(30 * 20_000 + 1000 % 7, 1001), bytes(50_000, 777)];
    source.push_image("app01", Some("v1"), false, &layers, "amd64").await;
    from.requests().await;
    copying.succeeds().await;
    let written = to.requests().await;
    assert_eq!((sum(&written, "PUT upload"), sum(&written, "PUT manifest")), (2, 1), "{written:?}");
    must_be_equal(&source, &there, &["app01:v1".into()]).await;
}

/// The same set with all that hangs on it, a signature and an SBOM of the index and what no tag names, between registries with the
/// referrers API (of ours). `DTH_IMAGES_UNIT=1048576` makes it 1 GB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_set_arrives_with_all_that_hangs_on_it() {
    let unit = std::env::var("DTH_IMAGES_UNIT").ok().map_or(10_000, |unit| unit.parse().unwrap());
    let (from, to) = two().await;
    let (source, there) = (Rig::with_referrers(&from).await, Rig::with_referrers(&to).await);
    let (from, to) = (Client::new(&source.host), Client::new(&there.host));
    let set = push_set(&from, unit).await;
    let text = |descriptor: &serde_json::Value| descriptor["digest"].as_str().unwrap().to_owned();
    let signature = from.push_referrer("app26", &set.index, "application/vnd.example.signature", b"signed").await;
    let sbom = from.push_referrer("app26", &set.index, "application/spdx+json", &bytes(unit, 7)).await;
    let untagged = from.push_image("app01", None, true, &[bytes(unit, 8)], "amd64").await;
    let mut list = set.list.clone();
    list.push(format!("app01@{}", text(&untagged)));
    let images: Vec<&str> = list.iter().map(String::as_str).collect();
    let copying = Copying::new(source.config(), there.config(), &images).selecting(|s| s.referrers = true);
    source.asked();
    let report = copying.succeeds().await;
    assert_eq!(report.run.outcome(&Outcome::COPIED.label()).objects, 30, "{report}");
    let (asked, written) = (source.asked(), there.asked());
    let count = |all: &[String], method: &str, what: &str| all.iter().filter(|a| a.starts_with(method) && a.contains(what)).count();
    let kinds = ["manifests", "blobs", "referrers", "tags"].map(|what| format!("{what} {}", count(&asked, "", what)));
    println!("30 entries, fresh: source {} ({kinds:?}), destination {}", asked.len(), written.len());
    // Two of the image without a tag, three of the referrers; each manifest is asked once what refers to it, that of platforms and
    // the referrers included, and one answer has two pages.
    let (blobs, manifests) = (set.blobs + 2 + 3, 27 + 3 + 1 + 2);
    assert_eq!((count(&asked, "GET", "/blobs/"), count(&asked, "GET", "/referrers/")), (blobs, manifests + 1), "{asked:#?}");
    assert_eq!((count(&written, "PUT", "/blobs/"), count(&written, "PUT", "/manifests/")), (blobs, manifests), "{written:#?}");
    list.extend([&signature, &sbom].map(|referrer| format!("app26@{}", text(referrer))));
    must_be_equal(&from, &to, &list).await;
    assert_eq!(pages(&to, "app26", &text(&set.index)).await, BTreeSet::from([text(&signature), text(&sbom)]));
    source.asked();
    there.asked();
    let unchanged = copying.succeeds().await;
    assert_eq!((unchanged.run.totals.unchanged.objects, unchanged.run.totals.queued.objects), (30, 0), "{unchanged}");
    println!("30 entries, again: source {}, destination {}", source.asked().len(), there.asked().len());
}

/// R8, R9: what no tag names, by digest; ALL_TAGS; names with slashes; another prefix and other names at the destination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn selections_bring_what_they_name() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let untagged = source.push_image("lib/base", None, true, &[bytes(9_000, 5)], "amd64").await;
    let untagged = untagged["digest"].as_str().unwrap().to_owned();
    for (n, tag) in ["1.0", "1.1", "v1.2.0", "2.0-rc.1", "latest", "dev"].into_iter().enumerate() {
        source.push_image("lib/app", Some(tag), false, &[bytes(5_000, n as u64)], "amd64").await;
        source.push_image("other", Some(tag), false, &[bytes(5_000, n as u64)], "amd64").await;
    }
    let by_digest = format!("lib/base@{untagged}");
    let mut copying = Copying::new(from.config(), to.config(), &[&by_digest, &format!("{}/other:latest,", from.host), "lib/app:dev"]);
    copying = copying.selecting(|select| {
        select.repositories = vec!["lib/app".into()];
        select.tags = TagFilter { semver: Some(">=1.1, <2".into()), ..TagFilter::default() };
    });
    copying.settings.destination_prefix = "mirror".into();
    let rename = Rename { from: "mirror/lib/".into(), to: "library/".into() };
    copying.settings.destination_registry.as_mut().unwrap().rename = vec![rename];
    copying.succeeds().await;
    let tags = |tags: &[&str]| tags.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(there.tags("library/app").await, tags(&["1.1", "v1.2.0", "dev"]));
    assert_eq!(there.tags("mirror/other").await, tags(&["latest"]));
    assert_eq!(there.graph("library/base", &untagged).await, source.graph("lib/base", &untagged).await);
    // All of the registry, and what it does not have is deleted, among what is selected.
    let mut all = Copying::new(from.config(), to.config(), &["other:ALL_TAGS"]);
    all.settings.destination_prefix = "mirror".into();
    all.settings.finder.delete_extra = true;
    there.push_image("mirror/other", Some("extra"), false, &[bytes(10, 1)], "amd64").await;
    there.push_image("mirror/unselected", Some("kept"), false, &[bytes(10, 1)], "amd64").await;
    all.succeeds().await;
    assert_eq!(there.tags("mirror/other").await, source.tags("other").await);
    assert_eq!(there.tags("mirror/unselected").await, tags(&["kept"]));
    // A name that is none there is a mistake, and no reason to delete all that it had.
    let mut mistaken =
        Copying::new(from.config(), to.config(), &["mirror/other:ALL_TAGS"]).selecting(|s| s.repositories = vec!["gone".into()]);
    mistaken.settings.finder.delete_extra = true;
    assert!(!mistaken.run().await.is_success());
    let failures = mistaken.failures().await;
    assert!(failures.len() == 2 && failures.iter().all(|f| f.contains("named in the selection")), "{failures:?}");
    assert_eq!(there.tags("mirror/other").await, source.tags("other").await);
    let whole = Copying::new(from.config(), to.config(), &[]);
    whole.succeeds().await;
    for name in ["lib/app", "other"] {
        assert_eq!(there.tags(name).await, source.tags(name).await, "{name}");
    }
}

/// A tag is deleted alone, also where the registry deletes digests only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_deletion_takes_no_other_tag_along() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    source.push_image("app", Some("kept"), false, &[bytes(100, 1)], "amd64").await;
    for tag in ["kept", "same", "extra"] {
        let layer = if tag == "extra" { 2 } else { 1 };
        there.push_image("app", Some(tag), false, &[bytes(100, layer)], "amd64").await;
    }
    let mut copying = Copying::new(from.config(), to.config(), &["app:ALL_TAGS"]);
    copying.settings.finder.delete_extra = true;
    let report = copying.run().await;
    assert_eq!(there.tags("app").await, BTreeSet::from(["kept".to_owned(), "same".to_owned()]), "{report}");
    let failures = copying.failures().await;
    assert!(failures.len() == 1 && failures[0].contains("the tag `kept` has the same one"), "{failures:?}");
}

/// Signatures and SBOMs follow their images, between registries with the API (of ours), and with the tags that stand for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn referrers_follow_their_images() {
    let (from, to) = two().await;
    let (third, fourth) = two().await;
    let (behind, before) = (Client::new(&from.host), Client::new(&to.host));
    let rigs = (Rig::with_referrers(&from).await, Rig::with_referrers(&to).await);
    let source = Client::new(&rigs.0.host);
    let one = source.push_image("app", None, false, &[bytes(4_000, 1)], "amd64").await;
    let two = source.push_image("app", None, false, &[bytes(4_000, 2)], "arm64").await;
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one, two] });
    let index = source.push_manifest("app", None, OCI_INDEX, &index).await;
    // An index of indexes.
    let outer = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index] });
    source.push_manifest("app", Some("v1"), OCI_INDEX, &outer).await;
    let signature = source.push_referrer("app", &index, "application/vnd.example.signature", b"signed").await;
    let sbom = source.push_referrer("app", &index, "application/spdx+json", b"{\"spdx\":1}").await;
    let of_one = source.push_referrer("app", &one, "application/spdx+json", b"{\"of\":\"one\"}").await;
    let of_signature = source.push_referrer("app", &signature, "application/vnd.example.timestamp", b"at noon").await;
    let text = |descriptor: &serde_json::Value| descriptor["digest"].as_str().unwrap().to_owned();
    let all = [(&index, vec![&signature, &sbom]), (&one, vec![&of_one]), (&signature, vec![&of_signature])];

    let with_api = Copying::new(rigs.0.config(), rigs.1.config(), &["app:v1"]).selecting(|s| s.referrers = true);
    with_api.succeeds().await;
    let there = Client::new(&rigs.1.host);
    for (subject, referrers) in &all {
        let wanted: BTreeSet<String> = referrers.iter().map(|r| text(r)).collect();
        let found: BTreeSet<String> = pages(&there, "app", &text(subject)).await;
        assert_eq!(found, wanted);
        for referrer in referrers {
            assert_eq!(behind.graph("app", &text(referrer)).await, before.graph("app", &text(referrer)).await);
        }
    }
    assert_eq!(before.tags("app").await, BTreeSet::from(["v1".to_owned()]), "where there is an API, no tag stands for it");
    let again = with_api.succeeds().await;
    assert_eq!((again.run.totals.unchanged.objects, again.run.totals.queued.objects), (5, 0), "{again}");

    // To one without: tags stand for the API, and from there they go on as they are.
    let to_tags = Copying::new(rigs.0.config(), third.config(), &["app:v1"]).selecting(|s| s.referrers = true);
    to_tags.succeeds().await;
    let on = Copying::new(third.config(), fourth.config(), &["app:v1"]).selecting(|s| s.referrers = true);
    on.succeeds().await;
    for registry in [&third, &fourth] {
        let client = Client::new(&registry.host);
        for (subject, referrers) in &all {
            let (_, list) = client.manifest("app", &text(subject).replace(':', "-")).await.unwrap();
            let found: BTreeSet<String> = list["manifests"].as_array().unwrap().iter().map(text).collect();
            assert_eq!(found, referrers.iter().map(|r| text(r)).collect(), "{}", registry.host);
            for listed in list["manifests"].as_array().unwrap() {
                assert!(listed["artifactType"].is_string() && listed["annotations"]["made.by"] == "test", "{listed}");
                client.graph("app", &text(listed)).await;
            }
        }
    }
    // Cosign's tags.
    let cosign = format!("{}.sig", text(&index).replace(':', "-"));
    Client::new(&third.host).push_image("app", Some(&cosign), false, &[b"cosign".to_vec()], "amd64").await;
    on.succeeds().await;
    assert!(Client::new(&fourth.host).tags("app").await.contains(&cosign));
    // Without being asked, they stay behind.
    let (fifth, plain) = (DockerRegistry::start(Auth::Open).await, third.config());
    Copying::new(plain, fifth.config(), &["app:v1"]).succeeds().await;
    assert_eq!(Client::new(&fifth.host).tags("app").await, BTreeSet::from(["v1".to_owned()]));
}

async fn pages(client: &Client, name: &str, subject: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for at in 0..10 {
        found.extend(client.referrers(name, &format!("{subject}?at={at}")).await.unwrap());
    }
    found
}

/// R7: platforms are left out only when that is asked for, and then by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn platforms_are_left_out_on_request_only() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    push_set(&source, 100).await;
    let copying = Copying::new(from.config(), to.config(), &["app26:v1"]).selecting(|s| s.platforms = vec!["linux/arm64".into()]);
    copying.succeeds().await;
    let (_, index) = there.manifest("app26", "v1").await.unwrap();
    let kept = index["manifests"].as_array().unwrap();
    assert!(kept.len() == 1 && kept[0]["platform"]["architecture"] == "arm64", "{index}");
    let again = copying.succeeds().await;
    assert_eq!(again.run.totals.unchanged.objects, 1, "{again}");
    let none = Copying::new(from.config(), to.config(), &["app26:v1"]).selecting(|s| s.platforms = vec!["plan9/vax".into()]);
    assert!(!none.run().await.is_success());
    assert!(none.failures().await[0].contains("plan9/vax"), "{:?}", none.failures().await);
}

/// Basic and bearer; a refresh token; anonymous; the wrong password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn logins_of_every_kind_are_understood() {
    let (from, to) = tokio::join!(DockerRegistry::start(Auth::Basic), DockerRegistry::start(Auth::Token(300)));
    let source = Client::of_user(&from.host);
    let layers = [bytes(300_000, 1), bytes(10, 2)];
    source.push_image("app", Some("v1"), true, &layers, "amd64").await;
    source.push_image("app2", Some("v1"), true, &layers, "amd64").await;
    from.requests().await;
    // As docker login leaves it, for one of the two.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh+me/="}}}}}}"#, to.host)).unwrap();
    let docker = CredentialsConfig::DockerConfig { path: Some(file) };
    let of_docker = RegistryConfig { credentials: docker, ..to.config() };
    let copying = Copying::new(from.config_of_user(), of_docker.clone(), &["app:v1", "app2:v1"]);
    copying.succeeds().await;
    let (asked, written) = (from.requests().await, to.requests().await);
    assert_eq!(sum(&asked, "GET other 401"), 1, "asked once what is wanted: {asked:?}");
    assert_eq!((sum(&written, "GET other 401"), sum(&written, "POST mount 201")), (1, 2), "mounts have the scope of both: {written:?}");
    let refused: Vec<&String> = written.keys().chain(asked.keys()).filter(|k| k.ends_with("401") && !k.starts_with("GET other")).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(to.asked_for_tokens().iter().all(|line| line.starts_with("POST")), "{:?}", to.asked_for_tokens());
    // From there, anonymously, and back into the one with a password.
    let back = Copying::new(to.config(), from.config_of_user(), &["app:v1"]);
    back.succeeds().await;
    assert_eq!(source.graph("app", "v1").await.len(), 4);
    // Nobody may write, and that is said.
    let nobody = Copying::new(from.config_of_user(), to.config(), &["app:v1"]);
    let mut worker = nobody.settings.clone();
    worker.worker.max_attempts = 1;
    let nobody = Copying { settings: Settings { destination_prefix: "x".into(), ..worker }, ..nobody };
    assert!(!nobody.run().await.is_success());
    assert!(nobody.failures().await[0].contains("access denied"), "{:?}", nobody.failures().await);
    let password = dth_core::secret::Secret::new("wrong canary");
    let wrong = RegistryConfig { credentials: CredentialsConfig::Static { username: "user".into(), password }, ..from.config() };
    let error = Copying::new(wrong, to.config(), &["app:ALL_TAGS"]).settings.task().await.unwrap().run().await.unwrap_err().chain();
    assert!(error.contains("credentials not valid") && !error.contains("canary"), "{error}");
}

/// TLS with an authority of its own: known by `ca_file`, and by nothing else; never without TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn registries_are_trusted_by_their_own_authority() {
    let (from, to) = tokio::join!(DockerRegistry::start_tls(Auth::Open), DockerRegistry::start_tls(Auth::Basic));
    let source = Client::at(&from);
    // In one request, and in pieces.
    source.push_image("app", Some("v1"), false, &[bytes(6 << 20, 1), bytes(70 << 20, 2)], "amd64").await;
    Copying::new(from.config(), to.config_of_user(), &["app:v1"]).succeeds().await;
    let (back, plain) = tokio::join!(DockerRegistry::start_tls(Auth::Open), DockerRegistry::start(Auth::Open));
    Copying::new(to.config_of_user(), back.config(), &["app:v1"]).succeeds().await;
    must_be_equal(&source, &Client::at(&back), &["app:v1".into()]).await;
    let port = from.host.split(':').nth(1).unwrap();
    for (wrong, told) in [
        (RegistryConfig { ca_file: None, ..from.config() }, "with `ca_file`"),
        (RegistryConfig { ca_file: to.config().ca_file, ..from.config() }, "with `ca_file`"),
        (RegistryConfig { insecure: false, ..plain.config() }, "does not speak TLS"),
        (RegistryConfig { registry: format!("localhost:{port}"), ..from.config() }, "not valid for name"),
        (RegistryConfig { insecure: true, ..from.config() }, "take `insecure` out"),
        (RegistryConfig { ca_file: Some("/nowhere/ca.pem".into()), ..from.config() }, "/nowhere/ca.pem"),
    ] {
        let mut copying = Copying::new(wrong, back.config(), &["app:v1"]);
        copying.settings.worker.max_attempts = 1;
        copying.settings.worker.transfer.retry.tries = 1;
        copying.settings.destination_prefix = "wrong".into();
        let failed = match copying.settings.task().await {
            Ok(task) => task.run().await.map(|report| assert!(!report.is_success(), "{report}")).err().map(|e| e.chain()),
            Err(error) => Some(format!("{error:#}")),
        };
        let failures = failed.into_iter().chain(copying.failures_if_any().await).collect::<String>();
        println!("{failures}");
        assert!(failures.contains(told), "{told}: {failures}");
    }
}

/// Signed manifests of schema 1 are read, and have the digest of their payload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn manifests_of_the_first_form_are_copied() {
    let (from, to) = two().await;
    let source = Client::new(&from.host);
    source.push_image("new", Some("v1"), true, &[gzip_of_an_empty_tar()], "amd64").await;
    let at = |host: &str, name: &str| format!("docker://{host}/{name}:v1");
    let flags = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    skopeo(&["copy", "-q", "--format", "v2s1", flags[0], flags[1], &at(&from.host, "new"), &at(&from.host, "old")]);
    Copying::new(from.config(), to.config(), &["old:v1"]).succeeds().await;
    let digest_of = |host: &str| skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &at(host, "old")]);
    assert_eq!(digest_of(&from.host), digest_of(&to.host));
    let again = Copying::new(from.config(), to.config(), &["old:v1"]).succeeds().await;
    assert_eq!(again.run.totals.unchanged.objects, 1);
}

/// A tar of nothing, compressed: skopeo unpacks layers to convert them.
fn gzip_of_an_empty_tar() -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .arg("-cn")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &[0; 1024]).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// To a directory and back: skopeo reads what is written, and what it writes is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn layouts_of_images_are_read_and_written() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let set = push_set(&source, 300).await;
    let folder = tempfile::tempdir().unwrap();
    let list: Vec<&str> = set.list.iter().map(String::as_str).collect();
    let layout = folder.path().join("layout");
    let mut out = Copying::new(from.config(), to.config(), &list);
    (out.settings.destination_registry, out.settings.destination_layout) = (None, Some(layout.clone()));
    out.succeeds().await;
    assert_eq!(out.succeeds().await.run.totals.unchanged.objects, 27);
    let raw = skopeo(&["inspect", "--raw", &format!("oci:{}:app26:v1", layout.display())]);
    assert_eq!(digest(raw.as_bytes()), set.index["digest"].as_str().unwrap());
    // Somebody was interrupted there: the manifests of platforms are there, without a layer of them, and nothing names them.
    let (_, index) = source.manifest("app26", "v1").await.unwrap();
    let (_, platform) = source.manifest("app26", index["manifests"][0]["digest"].as_str().unwrap()).await.unwrap();
    let lost = platform["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
    std::fs::remove_file(layout.join("blobs").join(lost)).unwrap();
    std::fs::write(layout.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    out.succeeds().await;
    let mut back = Copying::new(from.config(), to.config(), &[]);
    (back.settings.source_registry, back.settings.source_layout) = (None, Some(layout));
    back.succeeds().await;
    must_be_equal(&source, &there, &set.list).await;
    // One of skopeo's.
    let of_skopeo = folder.path().join("skopeo");
    let copied = format!("oci:{}:v9", of_skopeo.display());
    skopeo(&["copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", &format!("docker://{}/app26:v1", from.host), &copied]);
    back.settings.source_layout = Some(of_skopeo);
    back.succeeds().await;
    assert_eq!(source.graph("app26", "v1").await, there.graph("image", "v9").await);
    // A wrong file does not become an image.
    let layer = folder.path().join("layout/blobs/sha256");
    let victim = std::fs::read_dir(&layer).unwrap().map(|f| f.unwrap().path()).find(|p| p.metadata().unwrap().len() > 5_000).unwrap();
    std::fs::write(&victim, vec![0; victim.metadata().unwrap().len() as usize]).unwrap();
    let third = DockerRegistry::start(Auth::Open).await;
    let mut torn = Copying::new(third.config(), third.config(), &[]);
    (torn.settings.source_registry, torn.settings.source_layout) = (None, Some(folder.path().join("layout")));
    torn.settings.worker.max_attempts = 1;
    let report = torn.run().await;
    assert!(report.failed.objects > 0 && !report.is_success(), "{report}");
    let victims = torn.failures().await;
    assert!(victims.iter().all(|f| f.contains("corrupt")), "{victims:?}");
}

/// One tag cannot take others along: the tag list of a repository that may not be read fails alone (R6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_repository_that_cannot_be_listed_fails_alone() {
    let (from, to) = two().await;
    let source = Client::new(&from.host);
    for name in ["a", "denied", "z"] {
        source.push_image(name, Some("v1"), false, &[bytes(100, 1)], "amd64").await;
    }
    let rig = Rig::before(&from, |asked| {
        let denied = asked.path.starts_with("/v2/denied/tags");
        if denied { rig::Act::Answer(403, vec![], r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#) } else { rig::Act::Pass }
    });
    let rig = rig.await;
    // What it does not have nobody knows, therefore; of the others it is.
    let there = Client::new(&to.host);
    for name in ["denied", "z"] {
        there.push_image(name, Some("extra"), false, &[bytes(100, 2)], "amd64").await;
    }
    let mut copying = Copying::new(rig.config(), to.config(), &[]);
    copying.settings.finder.delete_extra = true;
    let report = copying.run().await;
    assert_eq!((report.failed.objects, report.run.outcomes_like("copied").objects), (1, 2), "{report}");
    assert_eq!((there.tags("denied").await, there.tags("z").await), (["extra".to_owned()].into(), ["v1".to_owned()].into()));
    assert!(copying.failures().await[0].contains("not yours"), "{:?}", copying.failures().await);
    let call = Client::new(&to.host).call("GET", "/v2/a/tags/list", &[], Bytes::new()).await;
    assert_eq!(call.status, 200);
}
