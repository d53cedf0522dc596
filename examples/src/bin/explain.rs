//! Everything that is known about one key: `explain --config task.toml KEY`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use clap::Parser;
use dth_core::{
    object::{ObjectInfo, ObjectKey},
    versions::{Versions, history},
};
use dth_examples::Settings;
use std::path::PathBuf;

/// Shows both sides of a key and what the state knows of it.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// The source key.
    key: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = Settings::load(&args.config)?;
    let key = ObjectKey::new(args.key);
    let there = settings.key_map()?.to_destination(&key);
    let (source, sink) = (settings.source().await?, settings.sink(None).await?);
    println!("source       {}", describe(source.head(&key, None).await));
    println!("destination  {}", describe(sink.head(&there, None).await));
    if settings.finder.versions == Versions::All {
        for (side, versions) in [("source", history(&*source, &key).await), ("destination", history(&*sink, &there).await)] {
            for version in versions? {
                let what = if version.marker { "delete marker".into() } else { describe(Ok(ObjectInfo::of(version.entry.clone()))) };
                let id = version.entry.version.map_or("-".into(), |id| id.as_str().to_owned());
                println!("{side:<12} {id}: {what}");
            }
        }
    }
    match settings.stores_as_they_are().await?.state.records(std::slice::from_ref(&key)).await?.into_iter().flatten().next() {
        Some(record) => println!("record       {}", serde_json::to_string_pretty(&record)?),
        None => println!("record       none: no worker has dealt with this key"),
    }
    Ok(())
}

fn describe(info: dth_core::error::Result<ObjectInfo>) -> String {
    match info {
        Ok(info) => {
            let e = info.entry;
            let text = |what: Option<String>| what.unwrap_or_else(|| "-".into());
            format!(
                "{} bytes, etag {}, modified {}, version {}, class {}, checksum {}",
                text(e.size.map(|s| s.to_string())),
                text(e.etag.map(|t| t.to_string())),
                text(e.modified.map(|t| t.to_string())),
                text(e.version.map(|v| v.as_str().to_owned())),
                text(e.storage_class.map(|c| c.to_string())),
                text(info.checksum.map(|c| c.to_string())),
            )
        }
        Err(error) => error.chain(),
    }
}
