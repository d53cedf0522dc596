//! Starts two real S3 servers, fills one, transfers everything to the other, and reads both sides back to check it. With `--from`, a local
//! directory is the source.

#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::ensure;
use clap::Parser;
use dth_core::{
    env::{Env, SystemEnv},
    index::{ListFrom, ListRequest},
    object::{Attributes, ObjectKey},
    scope::TaskScope,
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, Source},
};
use dth_examples::{Settings, servers::Server};
use dth_s3::{S3Config, S3Store};
use futures_lite::StreamExt as _;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

/// Two S3 servers on loopback, one transfer, one independent check. No arguments are needed.
#[derive(Parser)]
struct Args {
    /// Objects to make and move.
    #[arg(long, default_value_t = 2_000)]
    objects: usize,
    /// Move the files of this directory instead.
    #[arg(long, value_name = "DIRECTORY")]
    from: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let folder = tempfile::tempdir()?;
    let (from, to) = (Server::s3s_fs(&folder.path().join("a")).await?, Server::s3s_fs(&folder.path().join("b")).await?);
    let settings = Settings {
        source: if args.from.is_some() { S3Config::default() } else { from.bucket("photos") },
        source_directory: args.from.clone(),
        destination: to.bucket("backup"),
        state: Some(folder.path().join("state.db")),
        ..Settings::default()
    };
    let sink = settings.destination_bucket()?;
    sink.create_bucket().await?;
    let made = match &args.from {
        Some(directory) => {
            println!("an S3 server: {}; moving `{}` to it", to.endpoint, directory.display());
            None
        }
        None => {
            let source = settings.source_bucket()?;
            source.create_bucket().await?;
            println!("two S3 servers: {} and {}", from.endpoint, to.endpoint);
            let made = fill(&source, args.objects).await?;
            println!("made {made} objects of 0 bytes to 24 MiB, with odd keys and metadata; moving them");
            Some(made)
        }
    };
    let source = settings.source().await?;

    let task = settings.task().await?;
    let mut scope = TaskScope::new();
    dth_examples::show_progress(&mut scope, task.events());
    let begun = SystemEnv.now();
    let report = task.run().await?;
    let took = SystemEnv.now().duration_since(begun).as_secs_f64();
    drop(scope);
    print!("{report}");
    println!("moved in {took:.1} s; now both sides are read back, past the engine");

    let (here, mut there) = tokio::try_join!(digests(&*source), digests(&sink))?;
    if let Some(made) = made {
        ensure!(here.len() == made, "{} objects at the source, {made} were made", here.len());
    } else {
        // A server gives types to what has none.
        for (_, attributes) in there.values_mut() {
            *attributes = Attributes::default();
        }
    }
    ensure!(here == there, "the two sides differ");
    let what = if made.is_some() { "bytes (SHA-256), content types and metadata" } else { "bytes (SHA-256)" };
    println!("all {} objects are equal: {what}", here.len());
    Ok(dth_examples::exit_code(&report))
}

const ODD_KEYS: [&str; 10] = [
    "odd/with space",
    "odd/plus+plus",
    "odd/per%2Fcent",
    "odd/quote\"s'",
    "odd/日本/é",
    "odd/é",
    "odd/e\u{301}",
    "odd/back\\slash",
    "odd/😀",
    "odd/a=b&c?d#e",
];

async fn fill(store: &S3Store, objects: usize) -> anyhow::Result<usize> {
    let mut sizes: Vec<(String, usize)> = ODD_KEYS.iter().enumerate().map(|(i, key)| ((*key).to_owned(), i * 1000)).collect();
    sizes.extend([("large/24MiB".to_owned(), 24 << 20), ("large/5MiB".to_owned(), 5 << 20), ("large/empty".to_owned(), 0)]);
    let more = objects.saturating_sub(sizes.len());
    sizes.extend((0..more).map(|i| (format!("photos/{:03}/{i:06}.jpg", i % 40), (i * 7919) % 60_000)));
    for (key, size) in &sizes {
        let body: Vec<u8> = (0..*size).map(|i| (i ^ (i >> 8) ^ key.len()) as u8).collect();
        let mut attributes =
            Attributes { content_type: Some("image/jpeg".into()), cache_control: Some("max-age=60".into()), ..Attributes::default() };
        attributes.user.insert("camera".into(), format!("no. {size}").into());
        let options = PutOptions { attributes, ..PutOptions::default() };
        store.put(&ObjectKey::from(key.as_str()), Body::Bytes(vec![body.into()]), &options).await?;
    }
    Ok(sizes.len())
}

async fn digests(store: &dyn Source) -> anyhow::Result<BTreeMap<ObjectKey, (String, Attributes)>> {
    let mut found = BTreeMap::new();
    let mut request = ListRequest::default();
    loop {
        let page = store.list(&request).await?;
        for entry in page.entries {
            let mut read = store.read(&entry.key, &ReadOptions::default()).await?;
            let mut hash = Sha256::new();
            while let Some(chunk) = read.body.next().await {
                hash.update(chunk?);
            }
            found.insert(entry.key, (dth_core::checksum::hex(&hash.finalize()), read.info.attributes));
        }
        match page.next {
            Some(token) => request.from = ListFrom::Token(token),
            None => return Ok(found),
        }
    }
}
