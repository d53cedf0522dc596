//! Tries what a transfer needs, before the first object: `doctor --config task.toml`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use bytes::Bytes;
use clap::Parser;
use dth_core::{
    checksum::{Algorithm, Checksum},
    env::{Env, SystemEnv},
    error::{Error, ErrorKind, Result},
    index::ListRequest,
    key_map::KeyMap,
    object::{ETag, ObjectKey},
    queue::{Message, Queue},
    sink::{Body, Condition, Part, PutOptions, Sink, UploadId},
    source::{ReadOptions, Source},
    state::{PackId, Record, RecordWrite, RunId, Status},
    versions::Versions,
};
use dth_examples::Settings;
use dth_s3::{BucketFacts, Profile};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Checks rights, region, clock and conditional writes of both sides, and names the missing IAM action.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Also write: a probe object at the destination (`.dth-doctor-…`, deleted again), a test message, a test notice; and make queue
    /// and table where the settings say so.
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = Settings::load(&args.config)?;
    let (source, sink) = (settings.source().await?, settings.sink(None).await?);
    let keys = settings.key_map()?;
    let mut doctor = Doctor::default();
    for (side, is_bucket) in ["source", "destination"].into_iter().zip(settings.between_buckets()) {
        if is_bucket {
            let bucket = if side == "source" { settings.source_bucket()? } else { settings.destination_bucket()? };
            if let Some(facts) =
                doctor.tell(&format!("{side}: credentials, clock, region"), "a valid key pair", bucket.bucket_facts().await)
            {
                describe(&facts);
                let profile = settings.destination.profile;
                if side == "destination" && facts.versioning.as_deref() == Some("Enabled") && matches!(profile, Profile::Oss | Profile::Cos)
                {
                    println!("warn  destination: with versioning, {} ignores conditions on writes", profile.as_str());
                }
            }
        }
    }
    if settings.moves_images() {
        images(&mut doctor, &settings, &keys, &*source, &*sink, args.write).await;
    } else {
        objects(&mut doctor, &settings, &keys, &*source, &*sink, args.write).await;
    }
    if settings.cluster.is_some() {
        cluster(&settings, &mut doctor, args.write).await;
    }
    alarms(&settings, &mut doctor, args.write).await;
    Ok(ExitCode::from(if doctor.failed { dth_examples::INCOMPLETE } else { dth_examples::OK }))
}

/// Buckets and directories.
async fn objects(doctor: &mut Doctor, settings: &Settings, keys: &KeyMap, source: &dyn Source, sink: &dyn Sink, write: bool) {
    let task_prefix = match keys.task_prefix(&settings.finder.prefix) {
        Ok(prefix) => prefix,
        Err(error) => {
            doctor.tell::<()>("prefix and keys", "rules that go together", Err(error));
            return;
        }
    };
    let task_prefix = task_prefix.as_str();
    let request = ListRequest { prefix: task_prefix.to_owned(), max: Some(10), ..ListRequest::default() };
    let page = doctor.tell("source: list", "s3:ListBucket", source.list(&request).await);
    let readable = page.and_then(|p| p.entries.into_iter().find(|e| e.size.is_some_and(|s| s > 0)));
    if let Some(entry) = readable {
        doctor.tell("source: read", "s3:GetObject", source.read(&entry.key, &ReadOptions::default()).await.map(drop));
    }
    // As the task asks: the rights may be for its prefix alone.
    let prefix = keys.destination_prefix(task_prefix);
    let request = ListRequest { prefix: prefix.clone(), max: Some(1), ..ListRequest::default() };
    doctor.tell("destination: list", "s3:ListBucket", sink.list(&request).await);
    doctor.tell("destination: list uploads", "s3:ListBucketMultipartUploads", sink.list_uploads(&prefix, None).await);
    if settings.finder.versions == Versions::All {
        let of = |prefix: &str| ListRequest { prefix: prefix.to_owned(), max: Some(1), ..ListRequest::default() };
        doctor.tell("source: list versions", "s3:ListBucketVersions", source.versions(&of(task_prefix)).await);
        doctor.tell("destination: list versions", "s3:ListBucketVersions", sink.versions(&of(&prefix)).await);
        if doctor.tell("destination: ask for versioning", "s3:GetBucketVersioning", sink.keeps_versions().await) == Some(false) {
            doctor.failed = true;
            println!("FAIL  destination: keeps no versions: enable versioning there, or set `finder.versions = \"current\"`");
        }
    }
    if write {
        let key = ObjectKey::new(format!("{prefix}.dth-doctor-{}", std::process::id()));
        let absent = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
        let put = || sink.put(&key, Body::Bytes(vec!["probe".into()]), &absent);
        if doctor.tell("destination: write", "s3:PutObject", put().await).is_some() {
            doctor.tell("destination: look", "s3:GetObject", sink.head(&key, None).await);
            let again = put().await;
            println!(
                "{}  destination: conditional writes {}",
                if again.is_err() { "ok  " } else { "warn" },
                if again.is_err() { "are honoured" } else { "are ignored: set `profile = \"unconditional\"`" }
            );
            doctor.tell("destination: delete", "s3:DeleteObject", sink.delete(&key, &Condition::None).await);
        }
    }
}

/// Registries and layouts.
async fn images(doctor: &mut Doctor, settings: &Settings, keys: &KeyMap, source: &dyn Source, sink: &dyn Sink, write: bool) {
    let pull =
        "the right to pull; in ECR ecr:GetAuthorizationToken, DescribeRepositories, DescribeImages, BatchGetImage, GetDownloadUrlForLayer";
    let push = "the right to push; in ECR ecr:InitiateLayerUpload, UploadLayerPart, CompleteLayerUpload, PutImage, BatchCheckLayerAvailability, \
                and CreateRepository where repositories are made";
    let request = ListRequest { prefix: settings.finder.prefix.clone(), max: Some(10), ..ListRequest::default() };
    let page = doctor.tell("source: list what is selected", pull, source.list(&request).await);
    let Some(first) = page.and_then(|page| page.entries.into_iter().next()) else {
        println!("-     source: no image is selected: nothing else is tried");
        return;
    };
    let family = doctor.tell(&format!("source: manifest of {}", first.key), pull, source.children(&first).await);
    let blob = family.and_then(|family| family.children.into_iter().min_by_key(|child| child.size));
    if let Some(blob) = blob {
        doctor.tell(&format!("source: read {}", blob.key), pull, source.read(&blob.key, &ReadOptions::default()).await.map(drop));
    }
    let there = keys.to_destination(&first.key);
    doctor.tell(&format!("destination: look for {there}"), pull, sink.find(std::slice::from_ref(&there)).await);
    if write {
        // In no manifest, so that the registry clears it away by itself.
        let body = Bytes::from_static(b"probe of dth doctor");
        let sum = Checksum::of(Algorithm::Sha256, std::slice::from_ref(&body)).to_hex();
        let name = there.as_str().split([':', '@']).next().unwrap_or_default();
        let key = ObjectKey::new(format!("{name}#sha256:{sum}"));
        let put = sink.put(&key, Body::Bytes(vec![body]), &PutOptions::default()).await;
        doctor.tell(&format!("destination: write a blob to {name}"), push, put);
    }
}

/// Queue and table in AWS.
async fn cluster(settings: &Settings, doctor: &mut Doctor, write: bool) {
    let opened = if write { settings.stores().await } else { settings.stores_as_they_are().await };
    let stores = match opened {
        Ok(stores) => stores,
        Err(error) => {
            doctor.failed = true;
            println!("FAIL  queue and table (needs sqs:GetQueueUrl, sqs:GetQueueAttributes, dynamodb:DescribeTable): {error:#}");
            let missing = error.chain().filter_map(|e| e.downcast_ref::<Error>()).any(|e| e.kind() == ErrorKind::NotFound);
            if missing && settings.cluster.as_ref().is_some_and(|c| c.create) && !write {
                println!("      `create = true` makes them: by `doctor --write`, or by whatever is started first");
            }
            return;
        }
    };
    println!("ok    queue and table: found");
    let depth = doctor.tell("queue: depth", "sqs:GetQueueAttributes on both queues", stores.queue.depth().await);
    if let Some(depth) = &depth {
        println!("      {} messages wait, {} dead letters", depth.pending(), depth.dead);
    }
    let many = depth.is_none_or(|depth| depth.pending() > FEW);
    let probe = ObjectKey::new(".dth-doctor");
    doctor.tell("table: read records", "dynamodb:BatchGetItem", stores.state.records(std::slice::from_ref(&probe)).await);
    doctor.tell("table: read runs", "dynamodb:Query", stores.state.runs(1).await);
    if !write {
        return;
    }
    let test = r#"{"Event":"s3:TestEvent"}"#;
    let message = [Message { body: test.into(), delay: Duration::ZERO }];
    let sent = stores.queue.send(&message).await.and_then(|sent| sent.into_iter().collect::<Result<Vec<()>>>());
    doctor.tell("queue: send (a test message)", "sqs:SendMessage", sent);
    if many {
        println!("-     queue: receive, extend, delete: not tried where more than {FEW} messages wait: they are others' to take");
    } else {
        own_message(&*stores.queue, test, doctor).await;
    }
    let pack = PackId::new(format!("doctor-{:016x}", SystemEnv.random()));
    let claim = stores.state.claim(&pack, None, SystemEnv.random() >> 1, &[(probe.clone(), None)]).await;
    if let Some(claim) = doctor.tell("table: claim", "dynamodb:UpdateItem, dynamodb:BatchGetItem", claim) {
        // Over a record that is not there: the rights are asked for, and nothing is written.
        let record = Record::new(probe, RunId::new("doctor"), Status::Skipped, SystemEnv.now());
        let write = RecordWrite { record: Record { version: u64::from(u32::MAX), ..record }, ends: Vec::new() };
        let written = stores.state.commit(&claim.fence, &[write]).await;
        doctor.tell("table: write a record", "dynamodb:PutItem, dynamodb:UpdateItem, dynamodb:ConditionCheckItem", written);
    }
    let upload = UploadId::new(pack.as_str());
    let part = Part { number: 1, size: 1, etag: ETag::new("doctor"), opaque_etag: false, checksum: None };
    let saved = stores.state.save_parts(&upload, &[part]).await;
    doctor.tell("table: save parts", "dynamodb:BatchWriteItem, dynamodb:PutItem", saved);
    doctor.tell("table: forget parts", "dynamodb:Query, dynamodb:DeleteItem", stores.state.forget_parts(&upload).await);
}

/// Messages among which its own is looked for.
const FEW: u64 = 10;

/// Takes its own message; others are taken once at most, and given back at the end.
async fn own_message(queue: &dyn Queue, test: &str, doctor: &mut Doctor) {
    let begun = tokio::time::Instant::now();
    let mut others = Vec::new();
    let mut own = None;
    while own.is_none() && begun.elapsed() < Duration::from_secs(20) {
        match queue.receive(10, Duration::from_secs(60), Duration::from_secs(2)).await {
            Ok(received) => others.extend(received),
            Err(error) => {
                doctor.tell::<()>("queue: receive", "sqs:ReceiveMessage", Err(error));
                break;
            }
        }
        own = others.iter().position(|delivery| delivery.body == test).map(|at| others.swap_remove(at));
    }
    match own {
        Some(own) => {
            println!("ok    queue: receive");
            doctor.tell("queue: extend", "sqs:ChangeMessageVisibility", queue.extend(&own.receipt, Duration::from_secs(60)).await);
            doctor.tell("queue: delete", "sqs:DeleteMessage", queue.ack(&own.receipt).await);
        }
        None => println!("-     queue: extend, delete: not tried, because the test message did not come"),
    }
    for delivery in others {
        doctor.tell("queue: give back", "sqs:ChangeMessageVisibility", queue.release(&delivery.receipt, Duration::ZERO).await);
    }
}

/// Who is told.
async fn alarms(settings: &Settings, doctor: &mut Doctor, write: bool) {
    match settings.alarms().await {
        Ok(alarms) if write => {
            for (notifier, sent) in alarms.test().await {
                doctor.tell(&format!("alarms: a test notice by {notifier}"), "sns:Publish, or the webhook's token", sent);
            }
        }
        Ok(_) => {}
        Err(error) => {
            doctor.failed = true;
            println!("FAIL  alarms: {error:#}");
        }
    }
}

fn describe(facts: &BucketFacts) {
    let text = |what: &Option<String>| what.clone().unwrap_or_else(|| "unknown (needs s3:GetBucketVersioning and the like)".into());
    println!("      region {}, versioning {}", facts.region, text(&facts.versioning));
    if let Some(lock) = &facts.object_lock {
        println!("      Object Lock {lock}: writes need a checksum, which dth sends; deletions leave versions");
    }
    if let Some(kind) = facts.encryption.as_ref().filter(|kind| kind.starts_with("aws:kms")) {
        println!(
            "      encrypted by {kind}: needs kms:GenerateDataKey to write and kms:Decrypt to read; set `encryption` so that etags are taken for opaque"
        );
    }
    match facts.clock_ahead_seconds {
        Some(skew) if skew.abs() > 60 => {
            println!("warn  the store's clock is {skew} s ahead of this machine's: set the clock (dth makes up for it meanwhile)");
        }
        _ => {}
    }
}

#[derive(Default)]
struct Doctor {
    failed: bool,
}

impl Doctor {
    fn tell<T>(&mut self, what: &str, action: &str, tried: Result<T>) -> Option<T> {
        match tried {
            Ok(value) => {
                println!("ok    {what}");
                Some(value)
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                println!("-     {what}: this store has no such thing");
                None
            }
            Err(error) => {
                self.failed = true;
                println!("FAIL  {what} (needs {action}): {}", error.chain());
                println!("      {}", Error::kind(&error).remedy());
                None
            }
        }
    }
}
