//! Finder and workers as processes over (emulated) SQS and DynamoDB, between two S3 servers; workers are killed all the time.

use super::{
    cloud::{MAKE_TOPIC, PUT_SECRET, RECEIVE_ALL, in_secret, key_secret, own_rights},
    meter::{Load, Meter},
};
use crate::{
    chaos::{Processes, referee},
    support::{bytes, pair, put, put_multipart, venv},
};
use dth_core::{
    env::{SystemEnv, random_below},
    object::{ETag, ObjectKey},
    plan::parts::PartPlan,
    queue::Message,
    report::Report,
    sink::PutOptions,
    state::{RecordQuery, Status},
};
use dth_examples::{
    servers::Server,
    settings::{Cluster, Stores},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

const MIB: usize = 1 << 20;

/// `DTH_CLUSTER_SMALL`, `_LARGE`, `_GIANTS`, `_GIANT_MIB`: how many of each; `_KILL_MS`, `_REQUESTS_PER_SECOND` of a worker. The test
/// run has a small mix.
fn number(name: &str, default: usize) -> usize {
    std::env::var(format!("DTH_CLUSTER_{name}")).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name}: `{n}`")))
}

/// Every object arrives, the ledger closes, giants are completed once, dead letters are the poison, no upload is left.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack and SeaweedFS: run `cargo xtask test`"]
async fn killed_workers_of_a_cluster_lose_and_double_nothing() {
    let (small, large, giants, giant_mib) = (number("SMALL", 800), number("LARGE", 3), number("GIANTS", 1), number("GIANT_MIB", 96));
    // Two stores of different make, and a cloud of its own for the rest.
    let mut pair = pair(Server::seaweedfs(&venv()).await.unwrap(), Server::ministack(&venv()).await.unwrap()).await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&cloud.endpoint, Load::Light).await;
    let front = Meter::start(&pair.sink_server().endpoint, Load::Light).await;
    for n in 0..small {
        put(&pair.source, &format!("d{:02}/{n:06}", n % 50), bytes(1 + n % 9000, n as u64)).await;
    }
    for n in 0..large {
        put_multipart(&pair.source, &format!("size/large{n}"), &bytes(20 * MIB + n, n as u64), 8 * MIB, &PutOptions::default()).await;
    }
    let size = giant_mib * MIB;
    for n in 0..giants {
        put_multipart(&pair.source, &format!("big/giant{n}"), &bytes(size, 77 + n as u64), 8 * MIB, &PutOptions::default()).await;
    }
    let made = small + large + giants;

    // The keys of both sides lie in secrets, and notices go to a topic.
    for (name, server) in [("dth/from", pair.source_server()), ("dth/to", pair.sink_server())] {
        cloud.python(&venv(), PUT_SECRET, &[name, &key_secret(server.keys())]).await.unwrap();
    }
    let topic = cloud.python(&venv(), MAKE_TOPIC, &["alarms"]).await.unwrap();
    let settings = &mut pair.settings;
    settings.source.credentials = in_secret(&cloud, "dth/from");
    settings.destination.credentials = in_secret(&cloud, "dth/to");
    settings.alarms.task = "e2e".into();
    settings.alarms.sns = Some(topic.trim().to_owned());
    settings.alarms.endpoint = Some(cloud.endpoint.clone());
    settings.alarms.every_seconds = 1;
    settings.state = None;
    settings.cluster = Some(Cluster {
        queue: "jobs".into(),
        table: "state".into(),
        task: "e2e".into(),
        create: true,
        region: Some("us-east-1".into()),
        endpoint: Some(meter.endpoint.clone()),
        ..Cluster::default()
    });
    settings.destination.endpoint = Some(front.endpoint.clone());
    settings.worker.lease_seconds = 4;
    settings.worker.max_delay_seconds = 1;
    settings.worker.giant_threshold = 64 << 20;
    settings.worker.giant_parts = 3;
    settings.worker.transfer.part_size = 8 << 20;
    settings.worker.transfer.requests_per_second = Some(number("REQUESTS_PER_SECOND", 80) as u64);
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, toml::to_string(&pair.settings).unwrap()).unwrap();

    // The referee's own look at queue and table: not through the meter.
    let sdk = cloud.aws(None).await;
    let stores = Stores {
        queue: Arc::new(dth_state::SqsQueue::create(&sdk, "jobs").await.unwrap()),
        state: Arc::new(dth_state::DynamoStore::create(&sdk, "state", "e2e").await.unwrap()),
    };
    let poison = [
        ("{not json", "key must be a string"),
        (r#"{"v":99}"#, "update the worker"),
        (r#"{"Records":[{"eventName":"ObjectExploded:Now","s3":{"bucket":{"name":"b"},"object":{"key":"k"}}}]}"#, "ObjectExploded"),
    ];
    let messages = poison.map(|(body, _)| Message { body: body.into(), delay: Duration::ZERO });
    for sent in stores.queue.send(&messages).await.unwrap() {
        sent.unwrap();
    }

    let begun = Instant::now();
    let mut processes = Processes::new(&config, own_rights(), &["finder --wait", "worker", "worker", "worker", "worker"]);
    let most = Duration::from_secs(240 + (small / 20 + giants * giant_mib / 4) as u64);
    let mut kills = 0;
    let run = loop {
        sleep(Duration::from_millis(number("KILL_MS", 1500) as u64)).await;
        let runs = stores.state.runs(10).await.unwrap();
        if let Some(run) = runs.iter().find(|run| run.is_settled()) {
            break run.clone();
        }
        assert!(begun.elapsed() < most, "not settled after {kills} kills: {runs:?}, {:?}", stores.queue.depth().await);
        processes.kill(1 + random_below(&SystemEnv, 4) as usize);
        kills += 1;
    };
    let settled = begun.elapsed();
    while stores.queue.depth().await.unwrap().pending() > 0 {
        assert!(begun.elapsed() < most, "messages stay: {:?}", stores.queue.depth().await);
        sleep(Duration::from_millis(500)).await;
    }
    // Whoever gave the first ones up may have been killed before it could tell of it; this one is told of.
    let last = (r#"{"v":98}"#, "update the worker");
    for sent in stores.queue.send(&[Message { body: last.0.into(), delay: Duration::ZERO }]).await.unwrap() {
        sent.unwrap();
    }
    // The finder has waited all the time: it sweeps what killed workers had begun, tells of the end, and ends well.
    let mut told: Vec<String> = Vec::new();
    let kind = |told: &[String], kind: &str| told.iter().filter(|notice| notice.contains(kind)).count();
    while kind(&told, "dead_letters") == 0 || processes.ended(0).is_none() || stores.queue.depth().await.unwrap().pending() > 0 {
        assert!(begun.elapsed() < most + Duration::from_secs(60), "nobody is told of dead letters, or the finder goes on: {told:?}");
        sleep(Duration::from_millis(500)).await;
        told.extend(serde_json::from_str::<Vec<String>>(&cloud.python(&venv(), RECEIVE_ALL, &["alarms"]).await.unwrap()).unwrap());
    }
    told.extend(serde_json::from_str::<Vec<String>>(&cloud.python(&venv(), RECEIVE_ALL, &["alarms"]).await.unwrap()).unwrap());
    assert_eq!(processes.ended(0), Some(true), "the finder's end");
    assert_eq!((kind(&told, "run_ended"), kind(&told, "finder_failed")), (1, 0), "{told:?}");
    assert_eq!(kind(&told, "run_ended") + kind(&told, "dead_letters"), told.len(), "{told:?}");
    drop(processes);
    let report = Report::new(run);
    assert!(kills >= 3, "it was over before anybody was killed");
    println!("{made} objects, {kills} kills of workers, {settled:?}\n{report}");
    assert!(report.is_success() && report.run.totals.listed.objects as usize == made, "{report}");
    let calls: u64 = meter.calls().values().sum();
    let ((received, again), used) = (meter.deliveries(), meter.bill());
    println!(
        "{:.3} calls to queue and state an object, kills included; {:.2} write units an object; of {received} messages {again} came again: {:?}",
        calls as f64 / made as f64,
        used.writes / made as f64,
        meter.calls()
    );

    let verdict = referee(&pair);
    println!("referee: {} compared, {verdict:?}", verdict.compared);
    assert!(verdict.is_green() && verdict.compared == made, "{verdict:?}");
    let mut dead = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = stores.queue.dead_letters(after.as_deref(), 10).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        dead.extend(page.into_iter().map(|letter| (letter.body, letter.reason)));
    }
    // A worker that is killed between the letter and the deletion leaves a second letter.
    let why: BTreeMap<&str, &str> = poison.into_iter().chain([last]).collect();
    let bodies: BTreeSet<&str> = dead.iter().map(|(body, _)| body.as_str()).collect();
    assert_eq!(bodies, why.keys().copied().collect(), "dead letters are the poison");
    for (body, reason) in &dead {
        assert!(reason.contains(why[body.as_str()]), "{body}: {reason}");
    }
    let completed = |key: &str| front.answers().get(&format!("CompleteMultipartUpload {key} 200")).copied().unwrap_or(0);
    for n in 0..giants {
        assert_eq!(completed(&format!("big/giant{n}")), 1, "{:?}", front.answers());
    }
    let done = RecordQuery { status: Some(Status::Done), ..RecordQuery::default() };
    assert_eq!(stores.state.query(&done, 1_000_000).await.unwrap().len(), made, "one terminal record a key");
    // Etags came out as those of the source, parts by any worker or not.
    let key = ObjectKey::from("big/giant0");
    let record = stores.state.records(&[key]).await.unwrap().remove(0).unwrap();
    let parts = PartPlan { size: size as u64, part_size: 8 << 20 }.count();
    assert_eq!(record.destination.as_ref().and_then(ETag::part_count), Some(parts));
    assert_eq!(record.destination, record.source.and_then(|s| s.etag));
    assert!(record.waiting.is_empty() && record.upload.is_none());
}
