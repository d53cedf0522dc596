//! What goes wrong between registries, each by its name.

use super::{
    Copying,
    images::Client,
    rig::{Act, Asked, Rig},
    server::{Auth, DockerRegistry, ecr_and_registry, host, sum},
    two,
};
use crate::support::{bytes, venv};
use dth_core::{index::Index, sink::Sink};
use dth_ecr::{Login, LoginSource, Registry, RegistryConfig};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

fn is_blob(asked: &Asked) -> bool {
    asked.method == "GET" && asked.path.contains("/blobs/sha256:")
}

fn is_upload(asked: &Asked) -> bool {
    matches!(asked.method.as_str(), "PUT" | "PATCH") && asked.path.contains("/blobs/uploads/")
}

/// R10: the digest that was resolved first is what is copied; the next run brings the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_tag_that_moves_is_copied_as_it_was() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let first = source.push_image("app", Some("v1"), false, &[bytes(50_000, 1), bytes(50_000, 2)], "amd64").await;
    let moved = Arc::new(AtomicU32::new(0));
    let (mover, once) = (source.clone(), Arc::clone(&moved));
    let rig = Rig::before(&from, move |asked| {
        if !is_blob(asked) || once.fetch_add(1, SeqCst) > 0 {
            return Act::Pass;
        }
        let mover = mover.clone();
        Act::After(Box::pin(async move {
            mover.push_image("app", Some("v1"), false, &[bytes(50_000, 3)], "amd64").await;
        }))
    })
    .await;
    let copying = Copying::new(rig.config(), to.config(), &["app:v1"]);
    copying.succeeds().await;
    let (digest, _) = there.manifest("app", "v1").await.unwrap();
    assert_eq!(digest, first["digest"].as_str().unwrap());
    there.graph("app", "v1").await;
    copying.succeeds().await;
    assert_eq!(there.graph("app", "v1").await, source.graph("app", "v1").await);
}

/// R1: a blob that is not what its digest says fails its image, which gets no tag; the next image is none the worse. One that was
/// broken on its way is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_corrupt_blob_makes_no_image() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    // One that is held in memory, and one that is streamed.
    for (name, size) in [("small", 50_000), ("large", 6_000_000), ("good", 1000)] {
        source.push_image(name, Some("v1"), false, &[bytes(size, size as u64)], "amd64").await;
    }
    let lasting = Rig::before(&from, |asked| {
        let bad = is_blob(asked) && (asked.path.contains("/small/") || asked.path.contains("/large/"));
        if bad { Act::Flip(123) } else { Act::Pass }
    })
    .await;
    let mut copying = Copying::new(lasting.config(), to.config(), &["small:v1", "large:v1", "good:v1"]);
    copying.settings.worker.max_attempts = 2;
    let report = copying.run().await;
    assert_eq!((report.failed.objects, report.run.outcomes_like("copied").objects), (2, 1), "{report}");
    let failures = copying.failures().await;
    assert!(failures.iter().all(|f| f.contains("corrupt data")), "{failures:?}");
    for name in ["small", "large"] {
        assert!(there.manifest(name, "v1").await.is_none(), "{name}");
    }
    there.graph("good", "v1").await;
    let struck = Mutex::new(BTreeSet::new());
    let once = Rig::before(&from, move |asked| {
        let first = is_blob(asked) && struck.lock().unwrap().insert(asked.path.clone());
        if first { Act::Flip(1) } else { Act::Pass }
    })
    .await;
    Copying::new(once.config(), to.config(), &["small:v1", "large:v1", "good:v1"]).succeeds().await;
    for name in ["small", "large"] {
        assert_eq!(there.graph(name, "v1").await, source.graph(name, "v1").await);
    }
}

/// Connections that break: reads go on where they were, uploads go on or begin again, and the digest comes out right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn broken_connections_are_gone_on_from() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    // In one request, and in pieces.
    source.push_image("app", Some("v1"), false, &[bytes(9_000_000, 1), bytes(80 << 20, 2)], "amd64").await;
    let (reads, writes) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
    let cuts = Arc::clone(&reads);
    let reading = Rig::before(&from, move |asked| {
        let nth = if is_blob(asked) { cuts.fetch_add(1, SeqCst) } else { u32::MAX };
        if nth < 8 { Act::Cut(1_000_000 + 300_000 * nth as usize) } else { Act::Pass }
    })
    .await;
    let writing = Rig::before(&to, move |asked| {
        let nth = if is_upload(asked) { writes.fetch_add(1, SeqCst) } else { u32::MAX };
        if matches!(nth, 1 | 5) { Act::CutRequest(700_000) } else { Act::Pass }
    })
    .await;
    Copying::new(reading.config(), writing.config(), &["app:v1"]).succeeds().await;
    assert_eq!(there.graph("app", "v1").await, source.graph("app", "v1").await);
    assert!(reads.load(SeqCst) >= 9, "each cut was gone on from");
}

/// A session that outlives its connections is gone on with: after a piece that broke off, and after one that arrived whole while its
/// answer was lost. (The registry of the other tests drops a session whose request breaks off; that of ministack keeps it.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn upload_sessions_are_gone_on_with() {
    let (ecr, from) = ecr_and_registry().await;
    let emulator = host(&ecr);
    ecr.python(&venv(), "client('ecr').create_repository(repositoryName='app')", &[]).await.unwrap();
    let (source, there) = (Client::new(&from.host), Client::new(emulator));
    source.push_image("app", Some("v1"), false, &[bytes(70 << 20, 1)], "amd64").await;
    let pieces = AtomicU32::new(0);
    let rig = Rig::before_host(emulator, move |asked| {
        let nth = if asked.method == "PATCH" { pieces.fetch_add(1, SeqCst) } else { u32::MAX };
        match nth {
            0 | 4 => Act::CutRequest(3_000_000),
            2 | 7 => Act::Lose,
            _ => Act::Pass,
        }
    })
    .await;
    Copying::new(from.config(), rig.config(), &["app:v1"]).succeeds().await;
    assert_eq!(there.graph("app", "v1").await, source.graph("app", "v1").await);
    let asked = rig.asked();
    let count = |method: &str| asked.iter().filter(|m| m.starts_with(method) && m.contains("/blobs/uploads/")).count();
    // Nine pieces and the two that broke off; the session was asked four times where it stands, and was never begun anew.
    assert_eq!((count("PATCH"), count("GET"), count("POST"), count("PUT")), (9 + 2, 4, 2, 2), "{asked:?}");
}

/// Tokens that are good for five seconds, and a layer that takes longer (R4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn tokens_are_renewed_on_the_way() {
    let (from, to) = tokio::join!(DockerRegistry::start(Auth::Open), DockerRegistry::start(Auth::Token(5)));
    let source = Client::new(&from.host);
    source.push_image("app", Some("v1"), false, &[bytes(1 << 20, 1), bytes(2 << 20, 2)], "amd64").await;
    let slow = Rig::before(&from, |asked| if is_blob(asked) { Act::Slowly(Duration::from_millis(350)) } else { Act::Pass }).await;
    Copying::new(slow.config(), to.config_of_user(), &["app:v1"]).succeeds().await;
    let asked: Vec<String> = to.asked_for_tokens().into_iter().filter(|line| line.contains("app:pull,push")).collect();
    assert!(asked.len() >= 2, "{:?}", to.asked_for_tokens());
    let written = to.requests().await;
    assert!(written.keys().all(|kind| !kind.ends_with("401") || kind == "GET other 401"), "none was refused: {written:?}");
}

/// A login that ends in the middle, as Amazon ECR says it: 403 with a text, and without one where headers are asked for (R4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn logins_that_end_are_renewed() {
    /// Gives out the login of the day.
    #[derive(Debug)]
    struct Cloud(Arc<AtomicU32>);
    #[async_trait::async_trait]
    impl LoginSource for Cloud {
        async fn login(&self) -> dth_core::error::Result<(Option<Login>, Option<Duration>)> {
            let password = dth_core::secret::Secret::new(format!("day {}", self.0.load(SeqCst)));
            Ok((Some(Login::Basic { username: "AWS".into(), password }), Some(Duration::from_secs(12 * 3600))))
        }
    }
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    for n in 0..6 {
        source.push_image(&format!("app{n}"), Some("v1"), false, &[bytes(1000, n), bytes(1000, 100 + n)], "amd64").await;
    }
    let day = Arc::new(AtomicU32::new(0));
    let ending = |day: &Arc<AtomicU32>| {
        let (day, count) = (Arc::clone(day), AtomicU32::new(0));
        move |asked: &Asked| {
            use base64::Engine as _;
            let Some(authorization) = &asked.authorization else {
                return Act::Answer(401, vec![("www-authenticate", "Basic realm=\"r\"".into())], "Not Authorized");
            };
            let pair = base64::engine::general_purpose::STANDARD.decode(authorization.trim_start_matches("Basic ")).unwrap();
            // Each day has seven requests.
            if pair == format!("AWS:day {}", day.load(SeqCst)).as_bytes() {
                if count.fetch_add(1, SeqCst) % 7 == 6 {
                    day.fetch_add(1, SeqCst);
                }
                return Act::Pass;
            }
            let text = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
            Act::Answer(403, vec![], if asked.method == "HEAD" { "" } else { text })
        }
    };
    let (reading, writing) = (Rig::before(&from, ending(&day)).await, Rig::before(&to, ending(&day)).await);
    let open = |rig: &Rig, select: &[&str]| {
        let mut config = rig.config();
        config.select.images = select.iter().map(|image| (*image).to_owned()).collect();
        Arc::new(Registry::builder(config).with_logins(Arc::new(Cloud(Arc::clone(&day)))).build().unwrap())
    };
    let images = ["app0:v1", "app1:v1", "app2:v1", "app3:v1", "app4:v1", "app5:v1"];
    let task = || dth_core::sync::Sync::new(open(&reading, &images), open(&writing, &[]));
    for _ in 0..2 {
        let report = task().run().await.unwrap();
        assert!(report.is_success(), "{report}");
    }
    assert!(day.load(SeqCst) > 6, "it ended often");
    for n in 0..6 {
        let name = format!("app{n}");
        assert_eq!(there.graph(&name, "v1").await, source.graph(&name, "v1").await);
    }
}

/// R8: where a tag stands for the referrers API, a referrer is in it, whatever answer was lost, whoever was interrupted between the
/// manifest and the tag, and however many workers change it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn referrers_are_found_whatever_was_interrupted() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let subject = source.push_image("app", Some("v1"), false, &[bytes(1000, 1)], "amd64").await;
    let mut referrers = Vec::new();
    for n in 0..16 {
        let pushed = source.push_referrer("app", &subject, "application/spdx+json", format!("number {n}").as_bytes()).await;
        referrers.push(pushed["digest"].as_str().unwrap().to_owned());
    }
    let tag = subject["digest"].as_str().unwrap().replace(':', "-");
    let listed = async |there: &Client| -> BTreeSet<String> {
        let found = there.manifest("app", &tag).await.map(|(_, list)| list).unwrap_or_default();
        found["manifests"].as_array().into_iter().flatten().map(|m| m["digest"].as_str().unwrap().to_owned()).collect()
    };
    let all = |referrers: &[String]| referrers.iter().cloned().collect::<BTreeSet<_>>();
    let state = Arc::new(dth_core::memory::MemoryState::new());
    let open = |config| Arc::new(Registry::builder(config).with_notes(Arc::clone(&state) as _).build().unwrap());
    let reading = open(from.config());
    let task = |sink: Arc<Registry>| dth_core::sync::Sync::new(Arc::clone(&reading) as _, sink);
    let key = |digest: &String| dth_core::object::ObjectKey::new(format!("app@{digest}"));
    task(open(to.config())).copy_one(&"app:v1".into()).await.unwrap();

    // The answer to the manifest is lost, and the tag is refused once.
    let (lost, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let losing = Rig::before(&to, move |asked| match asked.method.as_str() {
        "PUT" if asked.path.contains("/manifests/sha256:") && lost.fetch_add(1, SeqCst) == 0 => Act::Lose,
        "PUT" if asked.path.contains("/manifests/sha256-") && refused.fetch_add(1, SeqCst) == 0 => Act::Answer(503, vec![], ""),
        _ => Act::Pass,
    })
    .await;
    task(open(losing.config())).copy_one(&key(&referrers[0])).await.unwrap();
    assert_eq!(listed(&there).await, all(&referrers[..1]));

    // One that was written without its tag is settled by whoever finds it: as what it was to write, and as a child.
    let dying = Rig::before(&to, |asked| {
        let dies = asked.method == "PUT" && asked.path.contains("/manifests/sha256-");
        if dies { Act::Answer(503, vec![], "") } else { Act::Pass }
    })
    .await;
    for digest in &referrers[1..3] {
        let mut impatient = task(open(dying.config()));
        let settings = dth_core::worker::WorkerSettings::default();
        let retry = dth_core::retry::RetryPolicy { tries: 1, ..settings.transfer.retry };
        impatient = impatient.with_worker(dth_core::worker::WorkerSettings {
            transfer: dth_core::transfer::TransferSettings { retry, ..settings.transfer },
            ..settings
        });
        assert!(impatient.copy_one(&key(digest)).await.is_err());
        assert!(there.manifest("app", digest).await.is_some(), "the manifest was written");
    }
    assert_eq!(listed(&there).await, all(&referrers[..1]));
    let found = task(open(to.config())).copy_one(&key(&referrers[1])).await.unwrap();
    assert_eq!(found.outcome, dth_core::state::Outcome::AlreadyCurrent);
    let child = reading.head(&key(&referrers[2]), None).await.unwrap().entry;
    assert_eq!(open(to.config()).place(&child.key, &child).await.unwrap(), dth_core::sink::Placed::There);
    assert_eq!(listed(&there).await, all(&referrers[..3]));

    // What somebody deleted, and left in the list, keeps nobody out.
    let gone = referrers[0].clone();
    assert_eq!(there.call("DELETE", &format!("/v2/app/manifests/{gone}"), &[], bytes::Bytes::new()).await.status, 202);
    task(open(to.config())).copy_one(&key(&referrers[3])).await.unwrap();
    assert!(listed(&there).await.contains(&referrers[3]));

    // Two workers, where changes take their time, one more than another: the list that was read is an older one by then.
    let changes = AtomicU32::new(0);
    let slowly = move |asked: &Asked| {
        let changes = || changes.fetch_add(1, SeqCst) % 3;
        let wait = if asked.method == "PUT" && asked.path.contains("/manifests/sha256-") { 60 * u64::from(changes()) } else { 0 };
        Act::After(Box::pin(tokio::time::sleep(Duration::from_millis(wait))))
    };
    let slow = Rig::before(&to, slowly).await;
    let workers = [open(slow.config()), open(slow.config())];
    let copies = referrers[4..].iter().enumerate().map(|(n, digest)| {
        let task = task(Arc::clone(&workers[n % 2]));
        async move { task.copy_one(&key(digest)).await.unwrap() }
    });
    futures_util::future::join_all(copies).await;
    assert!(listed(&there).await.is_superset(&all(&referrers[1..])), "{:?}", listed(&there).await);
}

/// R5: a storm of 429 is waited out, as long as it asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn storms_of_throttling_are_waited_out() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let mut list = Vec::new();
    for n in 0..8 {
        source.push_image(&format!("app{n}"), Some("v1"), false, &[bytes(20_000, 1), bytes(20_000, 10 + n)], "amd64").await;
        list.push(format!("app{n}:v1"));
    }
    let storm = |most: u32| {
        let count = AtomicU32::new(0);
        move |_: &Asked| {
            let nth = count.fetch_add(1, SeqCst);
            if nth < most && nth % 3 != 2 {
                let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
                return Act::Answer(429, vec![("retry-after", "1".into()), ("content-type", "application/json".into())], body);
            }
            Act::Pass
        }
    };
    let (reading, writing) = (Rig::before(&from, storm(60)).await, Rig::before(&to, storm(120)).await);
    let images: Vec<&str> = list.iter().map(String::as_str).collect();
    Copying::new(reading.config(), writing.config(), &images).succeeds().await;
    for n in 0..8 {
        let name = format!("app{n}");
        assert_eq!(there.graph(&name, "v1").await, source.graph(&name, "v1").await);
    }
}

/// R2: whoever a registry sends us to is shown no password, and is not asked at all where that is this machine's own link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn redirections_see_no_password() {
    let (from, to, store) =
        tokio::join!(DockerRegistry::start(Auth::Basic), DockerRegistry::start(Auth::Open), DockerRegistry::start(Auth::Open));
    let (source, behind) = (Client::of_user(&from.host), Client::new(&store.host));
    for client in [&source, &behind] {
        client.push_image("app", Some("v1"), false, &[bytes(50_000, 1)], "amd64").await;
    }
    let seen: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let elsewhere = Rig::before(&store, move |asked| {
        noted.lock().unwrap().push(asked.authorization.clone());
        Act::Pass
    })
    .await;
    let target = elsewhere.host.clone();
    let leading = Rig::before(&from, move |asked| {
        if is_blob(asked) { Act::Answer(307, vec![("location", format!("http://{target}{}", asked.path))], "") } else { Act::Pass }
    })
    .await;
    let user = |rig: &Rig| RegistryConfig { registry: rig.host.clone(), ..from.config_of_user() };
    Copying::new(user(&leading), to.config(), &["app:v1"]).succeeds().await;
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() >= 2 && seen.iter().all(Option::is_none), "{seen:?}");
    assert_eq!(source.graph("app", "v1").await, Client::new(&to.host).graph("app", "v1").await);
    for hostile in ["http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/", "ftp://x/y", "http://user:canary@127.0.0.1/", "%"]
    {
        let malicious =
            Rig::before(
                &from,
                move |asked| {
                    if is_blob(asked) { Act::Answer(307, vec![("location", hostile.into())], "") } else { Act::Pass }
                },
            )
            .await;
        let mut copying = Copying::new(user(&malicious), to.config(), &["app:v1"]);
        copying.settings.destination_prefix = "hostile".into();
        copying.settings.worker.max_attempts = 1;
        copying.settings.worker.transfer.retry.tries = 1;
        let report = copying.run().await;
        assert!(!report.is_success(), "{hostile}: {report}");
    }
}

/// R3: a challenge cannot make us send a password anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn challenges_cannot_ask_for_passwords_elsewhere() {
    let (from, to) = tokio::join!(DockerRegistry::start(Auth::Basic), DockerRegistry::start(Auth::Open));
    Client::of_user(&from.host).push_image("app", Some("v1"), false, &[bytes(100, 1)], "amd64").await;
    let thief = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = thief.local_addr().unwrap().port();
    for realm in
        [format!("http://localhost:{port}/token"), format!("https://localhost:{port}/token"), "http://169.254.169.254/token".into()]
    {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        let rig = Rig::before(&from, move |_| Act::Answer(401, vec![("www-authenticate", challenge.clone())], "")).await;
        let user = RegistryConfig { registry: rig.host.clone(), ..from.config_of_user() };
        let mut copying = Copying::new(user, to.config(), &["app:v1"]);
        copying.settings.worker.max_attempts = 1;
        let report = copying.run().await;
        assert!(!report.is_success(), "{report}");
        let failures = copying.failures().await;
        assert!(failures[0].contains("token_hosts"), "{failures:?}");
    }
    let came = tokio::time::timeout(Duration::from_millis(200), thief.accept()).await;
    assert!(came.is_err(), "somebody came");
}

/// R12: a manifest without an end is not read to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn hostile_manifests_are_refused() {
    let (from, to) = two().await;
    Client::new(&from.host).push_image("app", Some("v1"), false, &[bytes(100, 1)], "amd64").await;
    let long: &'static str = format!("{{{}}}", " ".repeat(5 << 20)).leak();
    for (text, told) in [(long, "longer than"), ("<html>", "corrupt data")] {
        let rig = Rig::before(&from, move |asked| {
            let hit = asked.method == "GET" && asked.path.contains("/manifests/");
            if hit { Act::Answer(200, vec![], text) } else { Act::Pass }
        })
        .await;
        let mut copying = Copying::new(rig.config(), to.config(), &["app:v1"]);
        (copying.settings.worker.max_attempts, copying.settings.worker.transfer.retry.tries) = (1, 1);
        let report = copying.run().await;
        assert!(!report.is_success(), "{report}");
        let failures = copying.failures().await;
        assert!(failures[0].contains(told), "{failures:?}");
    }
}

/// A blob that is gone from the destination, though it was known there, is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_blob_that_went_is_sent_again() {
    let (from, to) = two().await;
    let (source, there) = (Client::new(&from.host), Client::new(&to.host));
    let layers = [bytes(50_000, 1)];
    source.push_image("app", Some("v1"), false, &layers, "amd64").await;
    let copying = Copying::new(from.config(), to.config(), &["app:v1"]);
    copying.succeeds().await;
    let digest = super::digest(&layers[0]);
    assert_eq!(there.call("DELETE", &format!("/v2/app/blobs/{digest}"), &[], bytes::Bytes::new()).await.status, 202);
    source.push_image("app2", Some("v1"), false, &layers, "amd64").await;
    let mut other = Copying::new(from.config(), to.config(), &["app2:v1"]);
    other.settings.state.clone_from(&copying.settings.state);
    to.requests().await;
    other.succeeds().await;
    let written = to.requests().await;
    assert_eq!((sum(&written, "POST mount 202"), sum(&written, "POST mount 201")), (1, 0), "it was noted, and is not there: {written:?}");
    assert_eq!(there.graph("app2", "v1").await, source.graph("app2", "v1").await);
}
