//! Queue and state in (emulated) Amazon SQS and DynamoDB, on two emulators of different make.

mod cloud;
mod meter;
mod patient;
mod processes;
mod rights;

use crate::{
    chaos::referee,
    features::read,
    support::{bytes, ministacks, put, venv},
};
use dth_core::{
    conformance::{QueueBench, StateBench, Verdict, queue, state},
    env::{Env, SystemEnv},
    error::ErrorKind,
    finder::FinderSettings,
    index::Index,
    object::{ETag, ObjectKey},
    plan::cost::{Prices, Requests},
    queue::{Message, Queue},
    scope::TaskScope,
    sink::{Body, Part, PutOptions, Sink, UploadId},
    source::ReadOptions,
    state::{Committed, PackId, Record, RecordWrite, RunId, StateStore, Status},
    sync::Sync,
};
use dth_examples::{servers::Server, settings::Stores};
use dth_s3::{S3Config, S3Store};
use dth_state::{DynamoStore, SqsQueue, aws::SdkConfig};
use futures_util::{StreamExt, stream};
use meter::{Load, Meter};
use patient::Patient;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The shortest lease of SQS.
const TICK: Duration = Duration::from_secs(1);

async fn hold_queue(config: &SdkConfig, name: &str) {
    let checked = stream::iter(queue::PROMISES).map(async |(promise, hold)| {
        let name = format!("{name}-{}", promise.replace('_', "-"));
        let queue = SqsQueue::create(config, &name[..name.len().min(60)]).await.unwrap();
        (promise, hold(&QueueBench::new(Arc::new(Patient(queue)), TICK)).await)
    });
    report(&checked.buffer_unordered(14).collect::<Vec<_>>().await, NOT_MADE_BY_SQS);
}

async fn hold_state(config: &SdkConfig, at_once: usize) {
    let table = "state";
    DynamoStore::create(config, table, "first").await.unwrap();
    // One table for all: tasks do not see each other.
    let checked = stream::iter(state::PROMISES).map(async |(promise, hold)| {
        let store = DynamoStore::open(config, table, promise).await.unwrap();
        (promise, hold(&StateBench::new(Arc::new(Patient(store)))).await)
    });
    report(&checked.buffer_unordered(at_once).collect::<Vec<_>>().await, &[]);
}

/// What SQS does not promise: a request that was sent takes effect.
const NOT_MADE_BY_SQS: &[&str] = &["a_dropped_receive_hands_nothing_out"];

fn report(checked: &[(&&str, dth_core::conformance::Checked)], not_made: &[&str]) {
    let broken: Vec<String> = checked.iter().filter_map(|(name, c)| c.as_ref().err().map(|b| format!("{name}: {b}"))).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let found: Vec<&str> = checked.iter().filter(|(_, c)| *c != Ok(Verdict::Held)).map(|(name, _)| **name).collect();
    assert_eq!(found, not_made, "promises that are not made");
}

#[tokio::test]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn ministack_queue_and_state_keep_their_promises() {
    let server = Server::ministack(&venv()).await.unwrap();
    let config = server.aws(None).await;
    tokio::join!(hold_queue(&config, "q"), hold_state(&config, 4));
}

#[tokio::test]
#[ignore = "needs moto: run `cargo xtask test`"]
async fn moto_queue_and_state_keep_their_promises() {
    let server = Server::moto(&venv()).await.unwrap();
    let config = server.aws(None).await;
    tokio::join!(hold_queue(&config, "q"), hold_state(&config, 1));
}

/// The promises, while calls are refused and batches done in part.
async fn hold_under(server: &Server, load: Load, at_once: usize) {
    let meter = Meter::start(&server.endpoint, load).await;
    // What makes queues and tables is not under test here.
    let calm = server.aws(None).await;
    let config = server.aws(Some(&meter.endpoint)).await;
    for (promise, _) in queue::PROMISES {
        let name = format!("q-{}", promise.replace('_', "-"));
        SqsQueue::create(&calm, &name[..name.len().min(60)]).await.unwrap();
    }
    DynamoStore::create(&calm, "state", "first").await.unwrap();
    let queues = stream::iter(queue::PROMISES).map(async |(promise, hold)| {
        let name = format!("q-{}", promise.replace('_', "-"));
        let queue = loop {
            match SqsQueue::open(&config, &name[..name.len().min(60)]).await {
                Err(error) if error.kind() == ErrorKind::Throttled => {}
                opened => break opened.unwrap(),
            }
        };
        (promise, hold(&QueueBench::new(Arc::new(Patient(queue)), TICK)).await)
    });
    let states = stream::iter(state::PROMISES).map(async |(promise, hold)| {
        let store = loop {
            match DynamoStore::open(&config, "state", promise).await {
                Err(error) if error.kind() == ErrorKind::Throttled => {}
                opened => break opened.unwrap(),
            }
        };
        (promise, hold(&StateBench::new(Arc::new(Patient(store)))).await)
    });
    let (queues, states) =
        tokio::join!(queues.buffer_unordered(14).collect::<Vec<_>>(), states.buffer_unordered(at_once).collect::<Vec<_>>());
    report(&queues, NOT_MADE_BY_SQS);
    report(&states, &[]);
    let (throttled, cut) = meter.trouble();
    println!("{throttled} calls throttled, {cut} batches done in part");
    assert!(throttled > 100 && (cut > 10) == (load == Load::Cut), "{throttled} calls were throttled, {cut} batches cut");
}

#[tokio::test]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn queue_and_state_keep_their_promises_while_throttled() {
    hold_under(&Server::ministack(&venv()).await.unwrap(), Load::Throttled, 4).await;
}

#[tokio::test]
#[ignore = "needs moto: run `cargo xtask test`"]
async fn queue_and_state_keep_their_promises_while_batches_are_done_in_part() {
    hold_under(&Server::moto(&venv()).await.unwrap(), Load::Cut, 1).await;
}

/// What `create` makes is as the documents say, what cannot be used is refused by name, and limits are those of the queue.
#[tokio::test]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn what_is_made_is_as_it_should_be() {
    const MAKE: &str = r#"
sqs = client("sqs")
dead = sqs.create_queue(QueueName="small-dead")["QueueUrl"]
arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "50"})
sqs.create_queue(QueueName="small", Attributes={"RedrivePolicy": policy, "MaximumMessageSize": "4096"})
sqs.create_queue(QueueName="ordered.fifo", Attributes={"FifoQueue": "true"})
sqs.create_queue(QueueName="alone")
print(sqs.get_queue_attributes(QueueUrl=sqs.get_queue_url(QueueName="small")["QueueUrl"], AttributeNames=["QueueArn"])["Attributes"]["QueueArn"])
"#;
    const LOOK: &str = r#"
sqs, db = client("sqs"), client("dynamodb")
of = lambda name: sqs.get_queue_attributes(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"], AttributeNames=["All"])["Attributes"]
items = db.scan(TableName="state")["Items"]
print(json.dumps({"queue": of("jobs"), "dead": of("jobs-dead-letters"), "table": db.describe_table(TableName="state")["Table"],
                  "ttl": db.describe_time_to_live(TableName="state")["TimeToLiveDescription"], "items": items}, default=str))
"#;
    let server = Server::ministack(&venv()).await.unwrap();
    let config = server.aws(None).await;
    let arn = server.python(&venv(), MAKE, &[]).await.unwrap();
    for (name, told) in [("ordered.fifo", "FIFO"), ("alone", "dead-letter queue"), ("arn:aws:sns:us-east-1:1:x", "ARN")] {
        let error = SqsQueue::open(&config, name).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(told), "{name}: {}", error.chain());
    }
    for (name, told) in [("new.fifo", "FIFO"), ("arn:aws:sqs:us-east-1:000000000000:new", "by its name alone")] {
        let error = SqsQueue::create(&config, name).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(told), "{name}: {}", error.chain());
    }
    // The region stands in the ARN: the one of the configuration is another.
    let elsewhere = config.clone().into_builder().region(dth_state::aws::aws_config::Region::new("eu-west-1")).build();
    assert_eq!(SqsQueue::open(&elsewhere, "small").await.unwrap_err().kind(), ErrorKind::NotFound);
    let small = SqsQueue::open(&elsewhere, arn.trim()).await.unwrap();
    assert_eq!(small.capability().max_body, 4096);
    let body = |len: usize| Message { body: "x".repeat(len), delay: Duration::ZERO };
    let sent = small.send(&[body(4096), body(4097), body(1)]).await.unwrap();
    assert!(sent[0].is_ok() && sent[2].is_ok());
    assert!(sent[1].as_ref().is_err_and(|e| e.chain().contains("4096")), "{sent:?}");
    assert_eq!(SqsQueue::open(&config, small.url()).await.unwrap().capability().max_body, 4096);

    SqsQueue::create(&config, "jobs").await.unwrap();
    let kept = DynamoStore::create(&config, "state", "kept").await.unwrap();
    let passing = DynamoStore::open(&config, "state", "passing").await.unwrap().with_record_ttl(Duration::from_secs(86_400));
    for store in [&kept, &passing] {
        let claim = store.claim(&PackId::new("pack"), None, 1, &[]).await.unwrap();
        let record = |key: &str, status| Record::new(key.into(), RunId::new("r"), status, SystemEnv.now());
        let swept = Record { uploads_since: Some(SystemEnv.now()), ..record("to be swept", Status::Done) };
        let records = [record("done", Status::Done), record("failed", Status::Failed), swept];
        let writes = records.map(|record| RecordWrite { record, ends: Vec::new() });
        assert!(matches!(store.commit(&claim.fence, &writes).await.unwrap(), Committed::Written(_)));
        let part = Part { number: 1, size: 7, etag: ETag::new("e"), opaque_etag: false, checksum: None };
        store.save_parts(&UploadId::new("upload"), &[part]).await.unwrap();
        store.parts_complete(&UploadId::new("upload"), &[1], 2).await.unwrap();
    }
    let made: serde_json::Value = serde_json::from_str(&server.python(&venv(), LOOK, &[]).await.unwrap()).unwrap();
    let policy: serde_json::Value = serde_json::from_str(made["queue"]["RedrivePolicy"].as_str().unwrap()).unwrap();
    assert_eq!(
        (policy["maxReceiveCount"].to_string().trim_matches('"'), &policy["deadLetterTargetArn"]),
        ("100", &made["dead"]["QueueArn"])
    );
    for queue in ["queue", "dead"] {
        assert_eq!(made[queue]["MessageRetentionPeriod"], "1209600");
        assert_eq!(made[queue]["SqsManagedSseEnabled"], "true", "{made}");
    }
    assert_eq!((&made["ttl"]["TimeToLiveStatus"], &made["ttl"]["AttributeName"]), (&"ENABLED".into(), &"ttl".into()));
    assert_eq!(made["table"]["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST");
    assert_eq!(made["table"]["GlobalSecondaryIndexes"][0]["IndexName"], "status");
    let mut expiring: Vec<String> = Vec::new();
    for item in made["items"].as_array().unwrap().iter().filter(|item| item.get("ttl").is_some()) {
        expiring.push(format!("{} {}", item["pk"]["S"].as_str().unwrap(), item["sk"]["S"].as_str().unwrap()));
    }
    expiring.sort_unstable();
    let of = |task: &str| [("pack", "p"), ("upload", "n#0000"), ("upload", "u#00001")].map(|(name, sk)| format!("{task}#{name} {sk}"));
    let mut expected: Vec<String> = of("kept").into_iter().chain(of("passing")).chain(["passing#done r".to_owned()]).collect();
    expected.sort_unstable();
    assert_eq!(expiring, expected, "packs and parts, and the record that may go; not one that failed, or that the sweep needs");
}

/// What a small object costs in requests to both stores, to the queue and to the state, counted before the services.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_small_object_costs_few_calls() {
    let pair = ministacks().await;
    let server = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&server.endpoint, Load::Light).await;
    let config = server.aws(Some(&meter.endpoint)).await;
    let objects = 5_000;
    let keys = stream::iter(0..objects).map(|n| format!("photos/2024/{n:06}.jpg"));
    keys.for_each_concurrent(16, async |key| put(&pair.source, &key, key.clone().into_bytes()).await).await;
    let from = Meter::start(&pair.source_server().endpoint, Load::Light).await;
    let to = Meter::start(&pair.sink_server().endpoint, Load::Light).await;
    let store = |side: &S3Config, meter: &Meter| S3Store::new(S3Config { endpoint: Some(meter.endpoint.clone()), ..side.clone() }).unwrap();
    let (source, sink) = (store(&pair.settings.source, &from), store(&pair.settings.destination, &to));
    let queue = SqsQueue::create(&config, "jobs").await.unwrap();
    let state = DynamoStore::create(&config, "state", "photos").await.unwrap();
    let task = Sync::new(Arc::new(source), Arc::new(sink)).with_state(Arc::new(queue), Arc::new(state));
    let before: u64 = meter.calls().values().sum();
    let report = task.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == objects, "{report}");
    let calls: u64 = meter.calls().values().sum::<u64>() - before;
    let each = calls as f64 / objects as f64;
    let used = meter.bill();
    println!(
        "{each:.4} calls an object; {:.3} billed requests to the queue, {:.2} write units and {:.2} read units: {:?}",
        used.queue / objects as f64,
        used.writes / objects as f64,
        used.reads / objects as f64,
        meter.calls()
    );
    assert!(each <= 0.06, "{each:.4} calls an object: {:?}", meter.calls());
    let single = ["DeleteMessage", "ChangeMessageVisibility", "SendMessage", "PutItem"];
    assert!(single.iter().all(|name| !meter.calls().contains_key(*name)), "{:?}", meter.calls());
    println!("source: {:?}; destination: {:?}", from.calls(), to.calls());
    // One GET and one PUT an object; beside them listings alone, of objects and of uploads that nobody went on with.
    let listings = |n: u64| -> BTreeMap<String, u64> { [("GET list-type".to_owned(), n)].into() };
    let (mut read, mut written) = (from.calls(), to.calls());
    assert_eq!((read.remove("GET"), written.remove("PUT"), written.remove("GET uploads")), (Some(objects), Some(objects), Some(1)));
    assert!(read <= listings(objects / 1000 + 1) && written == listings(1), "{read:?}, {written:?}");
    let verdict = referee(&pair);
    assert!(verdict.is_green() && verdict.compared as u64 == objects, "{verdict:?}");
    let before: u64 = meter.calls().values().sum();
    let again = task.run().await.unwrap();
    assert!(again.is_success() && again.run.totals.unchanged.objects == objects, "{again}");
    let calls: u64 = meter.calls().values().sum::<u64>() - before;
    println!("a second run: {calls} calls");
    assert!(calls <= 40, "{calls} calls where nothing is to be done: {:?}", meter.calls());
}

/// Puts an object in many parts, many at once.
async fn put_parts_at_once(store: &S3Store, key: &str, body: &[u8], part: usize) {
    let key: ObjectKey = key.into();
    let upload = store.create_upload(&key, &PutOptions::default()).await.unwrap();
    let chunks = (1..).zip(body.chunks(part).map(<[u8]>::to_vec));
    let parts: Vec<Part> = stream::iter(chunks)
        .map(async |(number, chunk)| store.put_part(&key, &upload, number, Body::Bytes(vec![chunk.into()]), None).await.unwrap())
        .buffered(32)
        .collect()
        .await;
    store.complete_upload(&key, &upload, &parts, &PutOptions::default()).await.unwrap();
}

/// As many parts as a store takes, as jobs for two workers, with queue and state in a file and in AWS: each is moved once, and
/// completed once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn ten_thousand_parts_are_one_object() {
    const PARTS: u32 = 10_000;
    let mut pair = ministacks().await;
    let server = Server::ministack(&venv()).await.unwrap();
    let body = bytes(PARTS as usize * 1024 - 7, 3);
    put_parts_at_once(&pair.source, "giant", &body, 1024).await;
    let etag = pair.source.head(&"giant".into(), None).await.unwrap().entry.etag;
    assert_eq!(etag.as_ref().and_then(ETag::part_count), Some(PARTS));
    let config = server.aws(None).await;
    let in_aws = Stores {
        queue: Arc::new(SqsQueue::create(&config, "jobs").await.unwrap()),
        state: Arc::new(DynamoStore::create(&config, "state", "giant").await.unwrap()),
    };
    let upstream = pair.sink_server().endpoint.clone();
    let settings = &mut pair.settings;
    settings.worker.giant_threshold = 1 << 20;
    settings.worker.giant_parts = 100;
    settings.worker.transfer.hold_max = 1 << 10;
    settings.worker.transfer.single_max = 1 << 10;
    settings.destination.min_part = Some(1);
    for (name, stores) in [("file", settings.stores().await.unwrap()), ("aws", in_aws)] {
        let [ours, theirs] = [Meter::start(&upstream, Load::Light).await, Meter::start(&upstream, Load::Light).await];
        settings.destination_prefix = name.into();
        let mut through = Vec::new();
        for front in [&ours, &theirs] {
            settings.destination.endpoint = Some(front.endpoint.clone());
            through.push(settings.task_on(&stores).await.unwrap());
        }
        let (other, task) = (through.pop().unwrap().worker().unwrap(), through.pop().unwrap());
        let (stop, mut scope) = (CancellationToken::new(), TaskScope::new());
        let stopped = stop.clone();
        scope.spawn(async move { other.run(stopped).await });
        let report = task.run().await.unwrap();
        stop.cancel();
        scope.join_all().await;
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1, "{report}");
        let key = format!("{name}/giant");
        let mut answers = ours.answers();
        answers.extend(theirs.answers());
        assert_eq!(answers, [(format!("CompleteMultipartUpload {key} 200"), 1)].into());
        let [moved, moved_there] = [&ours, &theirs].map(|front| front.calls().get("PUT partNumber").copied().unwrap_or(0) as u32);
        println!("{name}: {PARTS} parts by {moved} requests of one worker and {moved_there} of the other");
        assert!(moved > PARTS / 20 && moved_there > PARTS / 20, "one of them did nearly all");
        // A few more where the machine is so busy that one is tried again.
        assert!((PARTS..=PARTS + PARTS / 100).contains(&(moved + moved_there)));
        assert_eq!(pair.sink.head(&key.as_str().into(), None).await.unwrap().entry.etag, etag, "its parts give the etag of the source");
        assert!(read(&pair.sink, &key, ReadOptions::default()).await == body);
    }
}

/// Hundreds of dead letters are listed once each, and sent again without a search for each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn many_dead_letters_are_sent_again_in_few_calls() {
    let server = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&server.endpoint, Load::Light).await;
    let config = server.aws(Some(&meter.endpoint)).await;
    let queue = SqsQueue::create(&config, "jobs").await.unwrap();
    let letters = 300;
    let messages: Vec<Message> = (0..letters).map(|n| Message { body: format!("m{n}"), delay: Duration::ZERO }).collect();
    queue.send(&messages).await.unwrap().into_iter().for_each(|sent| sent.unwrap());
    loop {
        let page = queue.receive(10, Duration::from_secs(60), Duration::from_secs(1)).await.unwrap();
        if page.is_empty() {
            break;
        }
        futures_util::future::join_all(page.iter().map(|delivery| async { queue.dead_letter(delivery, "why").await.unwrap() })).await;
    }
    assert_eq!(queue.depth().await.unwrap().dead, letters);
    let before: u64 = meter.calls().values().sum();
    let mut listed = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = queue.dead_letters(after.as_deref(), 100).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        listed.extend(page.into_iter().map(|letter| (letter.id, letter.body)));
    }
    assert_eq!(listed.len() as u64, letters);
    for (id, body) in &listed {
        queue.redrive(id, body).await.unwrap();
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.dead), (letters, 0));
    let calls: u64 = meter.calls().values().sum::<u64>() - before;
    println!("{letters} dead letters listed and sent again: {calls} calls");
    assert!(calls <= 2 * letters + letters / 5, "{calls} calls: {:?}", meter.calls());
    assert_eq!(queue.redrive("no such letter", "m").await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// What an S3 server was asked for, in the classes that are billed.
fn asked_of_s3(meter: &Meter) -> Requests {
    let mut asked = Requests::default();
    for (name, n) in meter.calls() {
        match name.as_str() {
            "GET list-type" | "GET uploads" => asked.source_list += n,
            "GET" | "GET partNumber" | "HEAD" => asked.get += n,
            _ => asked.put += n,
        }
    }
    asked
}

/// What the examples of the original system's guide cost, by our price table and by the requests that are counted here, at both
/// stores, at the queue and at the table.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn the_examples_of_the_original_cost_less() {
    let pair = ministacks().await;
    let server = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&server.endpoint, Load::Light).await;
    let from = Meter::start(&pair.source_server().endpoint, Load::Light).await;
    let to = Meter::start(&pair.sink_server().endpoint, Load::Light).await;
    let config = server.aws(Some(&meter.endpoint)).await;
    let store = |side: &S3Config, meter: &Meter| S3Store::new(S3Config { endpoint: Some(meter.endpoint.clone()), ..side.clone() }).unwrap();
    let (source, sink) = (store(&pair.settings.source, &from), store(&pair.settings.destination, &to));
    // Per object: classes of S3, requests to the queue, write and read units.
    let used = || {
        let ([a, b], bill) = ([&from, &to].map(asked_of_s3), meter.bill());
        let s3 = [a.source_list + b.source_list, a.get + b.get, a.put + b.put].map(|n| n as f64);
        [s3[0], s3[1], s3[2], bill.queue, bill.writes, bill.reads]
    };
    // What one object more costs: two runs, and the difference.
    let run = async |task: &str, objects: usize, size: usize| {
        let body = bytes(size, 7);
        let keys = stream::iter(0..objects).map(|n| format!("{task}/2024/{n:06}.jpg"));
        keys.for_each_concurrent(16, async |key| put(&pair.source, &key, body.clone()).await).await;
        let queue = SqsQueue::create(&config, task).await.unwrap();
        let state = DynamoStore::create(&config, "state", task).await.unwrap();
        let before = used();
        let finder = FinderSettings { prefix: format!("{task}/"), ..FinderSettings::default() };
        let task = Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_state(Arc::new(queue), Arc::new(state));
        let report = task.with_finder(finder).run().await.unwrap();
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == objects as u64, "{report}");
        let after = used();
        [0, 1, 2, 3, 4, 5].map(|i| after[i] - before[i])
    };
    let marginal = async |name: &str, few: usize, many: usize, size: usize| {
        let less = run(&format!("{name}-few"), few, size).await;
        let more = run(&format!("{name}-many"), many, size).await;
        // Looks at the run while it goes on are not of an object: how many there are is up to time.
        [0, 1, 2, 3, 4, 5].map(|i| (more[i] - less[i]).max(0.0) / (many - few) as f64)
    };
    let (gib, prices) = (1u64 << 30, Prices::default());
    println!("example                       theirs: S3, table, queue; in all     ours: S3, table, queue; with the way out");
    for (name, few, many, size, objects, theirs, in_all) in [
        ("2,048 x 50 MB", 1, 5, 50_000_000, 2_048u64, [0.11, 0.01, 0.01], 93.43),
        ("107,400,000 x 10 KB", 1_000, 5_000, 10_000, 107_400_000, [622.34, 268.25, 85.92], 1113.87),
    ] {
        let large = size > 1 << 20;
        let [lists, gets, puts, queue, writes, reads] = marginal(if large { "large" } else { "small" }, few, many, size).await;
        assert_eq!((gets, puts), (1.0, 1.0), "requests to S3 an object");
        let times = |each: f64| (each * objects as f64).ceil() as u64;
        let s3 = Requests { source_list: times(lists), get: times(gets), put: times(puts), ..Requests::default() };
        let state = Requests { state_write: times(writes), state_read: times(reads), ..Requests::default() };
        let ours = [s3, state, Requests { queue: times(queue), ..Requests::default() }].map(|requests| requests.cost(0, &prices));
        let out = Requests::default().cost(1000 * gib, &Prices { egress_per_gb: 0.09 * 1.024 * 1e9 / gib as f64, ..prices.clone() });
        let (sum, theirs_sum): (f64, f64) = (ours.iter().sum(), theirs.iter().sum());
        println!(
            "{name:<28} {theirs:>8.2?} {in_all:>8.2}    {ours:>8.2?} {:>8.2}    ({writes:.2} write units, {reads:.2} read units, {lists:.4} lists an object)",
            sum + out
        );
        assert!(sum <= theirs_sum, "{name}: {sum:.2} dollars, theirs {theirs_sum:.2}");
        if !large {
            // An estimate until registries are here: an image as one job; ECR bills no requests. Theirs: Lambda, and state transitions.
            let times = |each: f64| (each * 27.0).ceil() as u64;
            let used = Requests { queue: times(queue), state_write: times(writes), state_read: times(reads), ..Requests::default() };
            let (ours, theirs) = (used.cost(0, &prices), 0.000_072 + 0.001_5);
            println!("27 images of 3 GB (estimated): theirs {theirs:.6}, ours {ours:.6}; the way out {:.2}", 3.0 * prices.egress_per_gb);
            assert!(ours <= theirs);
        }
    }
}
