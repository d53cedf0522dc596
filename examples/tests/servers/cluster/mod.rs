//! Queue and state in (emulated) Amazon SQS and DynamoDB, on two emulators of different make.

mod meter;
mod patient;
mod processes;

use crate::support::venv;
use dth_core::{
    conformance::{QueueBench, StateBench, Verdict, queue, state},
    error::ErrorKind,
    memory::MemoryStore,
    sync::Sync,
};
use dth_examples::servers::Server;
use dth_state::{DynamoStore, SqsQueue, aws::SdkConfig};
use futures_util::{StreamExt, stream};
use meter::{Load, Meter};
use patient::Patient;
use std::{sync::Arc, time::Duration};

/// The shortest lease of SQS.
const TICK: Duration = Duration::from_secs(1);

async fn hold_queue(config: &SdkConfig, name: &str) {
    let checked = stream::iter(queue::PROMISES).map(async |(promise, hold)| {
        let name = format!("{name}-{}", promise.replace('_', "-"));
        let queue = SqsQueue::create(config, &name[..name.len().min(60)]).await.unwrap();
        (promise, hold(&QueueBench::new(Arc::new(Patient(queue)), TICK)).await)
    });
    report(&checked.buffer_unordered(14).collect::<Vec<_>>().await);
}

async fn hold_state(config: &SdkConfig, at_once: usize) {
    let table = "state";
    DynamoStore::create(config, table, "first").await.unwrap();
    // One table for all: tasks do not see each other.
    let checked = stream::iter(state::PROMISES).map(async |(promise, hold)| {
        let store = DynamoStore::open(config, table, promise).await.unwrap();
        (promise, hold(&StateBench::new(Arc::new(Patient(store)))).await)
    });
    report(&checked.buffer_unordered(at_once).collect::<Vec<_>>().await);
}

fn report(checked: &[(&&str, dth_core::conformance::Checked)]) {
    let broken: Vec<String> = checked.iter().filter_map(|(name, c)| c.as_ref().err().map(|b| format!("{name}: {b}"))).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let held = checked.iter().filter(|(_, c)| *c == Ok(Verdict::Held)).count();
    assert_eq!(held, checked.len(), "promises that are not made");
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

#[tokio::test]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn queue_and_state_keep_their_promises_while_throttled() {
    let server = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&server.endpoint, Load::Heavy).await;
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
    let (queues, states) = tokio::join!(queues.buffer_unordered(14).collect::<Vec<_>>(), states.buffer_unordered(4).collect::<Vec<_>>());
    report(&queues);
    report(&states);
    let (throttled, cut) = meter.trouble();
    println!("{throttled} calls throttled, {cut} batches answered in part");
    assert!(throttled > 100 && cut > 10, "{throttled} calls were throttled, {cut} batches cut");
}

/// What a small object costs in calls to queue and state, counted before the services.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_small_object_costs_few_calls() {
    let server = Server::ministack(&venv()).await.unwrap();
    let meter = Meter::start(&server.endpoint, Load::Light).await;
    let config = server.aws(Some(&meter.endpoint)).await;
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    let objects = 5_000;
    for n in 0..objects {
        source.insert(format!("photos/2024/{n:06}.jpg"), format!("object {n}"));
    }
    let queue = SqsQueue::create(&config, "jobs").await.unwrap();
    let state = DynamoStore::create(&config, "state", "photos").await.unwrap();
    let task = Sync::new(Arc::new(source), Arc::new(sink)).with_state(Arc::new(queue), Arc::new(state));
    let before: u64 = meter.calls().values().sum();
    let report = task.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == objects, "{report}");
    let calls: u64 = meter.calls().values().sum::<u64>() - before;
    let each = calls as f64 / objects as f64;
    println!("{each:.4} calls an object: {:?}", meter.calls());
    assert!(each <= 0.06, "{each:.4} calls an object: {:?}", meter.calls());
    let before: u64 = meter.calls().values().sum();
    let again = task.run().await.unwrap();
    assert!(again.is_success() && again.run.totals.unchanged.objects == objects, "{again}");
    let calls: u64 = meter.calls().values().sum::<u64>() - before;
    println!("a second run: {calls} calls");
    assert!(calls <= 40, "{calls} calls where nothing is to be done: {:?}", meter.calls());
}
