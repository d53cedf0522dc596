//! Tries what a transfer needs, before the first object: `doctor --config task.toml`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use clap::Parser;
use dth_core::{
    env::{Env, SystemEnv},
    error::{Error, ErrorKind, Result},
    index::ListRequest,
    key_map::KeyMap,
    object::ObjectKey,
    queue::Message,
    sink::{Body, Condition, PutOptions},
    source::ReadOptions,
    state::PackId,
};
use dth_examples::Settings;
use dth_s3::BucketFacts;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Checks rights, region, clock and conditional writes of both sides, and names the missing IAM action.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Also write, read and delete a probe object at the destination (`.dth-doctor-…`).
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = Settings::load(&args.config)?;
    let (source, sink) = (settings.source()?, settings.sink()?);
    let mut doctor = Doctor::default();
    for (side, directory) in [("source", &settings.source_directory), ("destination", &settings.destination_directory)] {
        if directory.is_none() {
            let bucket = if side == "source" { settings.source_bucket()? } else { settings.destination_bucket()? };
            if let Some(facts) =
                doctor.tell(&format!("{side}: credentials, clock, region"), "a valid key pair", bucket.bucket_facts().await)
            {
                describe(&facts);
            }
        }
    }
    let request = ListRequest { prefix: settings.finder.prefix.clone(), max: Some(10), ..ListRequest::default() };
    let page = doctor.tell("source: list", "s3:ListBucket", source.list(&request).await);
    let readable = page.and_then(|p| p.entries.into_iter().find(|e| e.size.is_some_and(|s| s > 0)));
    if let Some(entry) = readable {
        doctor.tell("source: read", "s3:GetObject", source.read(&entry.key, &ReadOptions::default()).await.map(drop));
    }
    doctor.tell("destination: list", "s3:ListBucket", sink.list(&ListRequest { max: Some(1), ..ListRequest::default() }).await);
    doctor.tell("destination: list uploads", "s3:ListBucketMultipartUploads", sink.list_uploads("", None).await);
    if args.write {
        let probe = ObjectKey::new(format!(".dth-doctor-{}", std::process::id()));
        let key = KeyMap::new(&settings.destination_prefix).to_destination(&probe);
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
    if settings.cluster.is_some() {
        cluster(&settings, &mut doctor, args.write).await;
    }
    Ok(ExitCode::from(if doctor.failed { dth_examples::INCOMPLETE } else { dth_examples::OK }))
}

/// Queue and table in AWS.
async fn cluster(settings: &Settings, doctor: &mut Doctor, write: bool) {
    let stores = match settings.stores().await {
        Ok(stores) => stores,
        Err(error) => {
            doctor.failed = true;
            println!("FAIL  queue and table (needs sqs:GetQueueUrl, sqs:GetQueueAttributes, dynamodb:DescribeTable): {error:#}");
            return;
        }
    };
    println!("ok    queue and table: found");
    if let Some(depth) = doctor.tell("queue: depth", "sqs:GetQueueAttributes on both queues", stores.queue.depth().await) {
        println!("      {} messages wait, {} dead letters", depth.pending(), depth.dead);
    }
    let probe = ObjectKey::new(".dth-doctor");
    doctor.tell("table: read records", "dynamodb:BatchGetItem", stores.state.records(std::slice::from_ref(&probe)).await);
    doctor.tell("table: read runs", "dynamodb:Query", stores.state.runs(1).await);
    if write {
        let message = [Message { body: r#"{"Event":"s3:TestEvent"}"#.into(), delay: Duration::ZERO }];
        let sent = stores.queue.send(&message).await.and_then(|sent| sent.into_iter().collect::<Result<Vec<()>>>());
        doctor.tell("queue: send (a test message, which workers throw away)", "sqs:SendMessage", sent);
        let pack = PackId::new(format!("doctor-{:016x}", SystemEnv.random()));
        let claimed = stores.state.claim(&pack, None, SystemEnv.random() >> 1, &[(probe, None)]).await;
        doctor.tell("table: write", "dynamodb:UpdateItem, dynamodb:PutItem, dynamodb:DeleteItem", claimed);
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
