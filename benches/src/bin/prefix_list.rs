//! A list of prefixes as it is read, sorted and used by a finder: time, requests, and memory at its highest.
//!
//! `cargo run --release -p dth-benches --bin prefix_list -- 10000000 [MOST_MIB]`

#![expect(clippy::print_stdout, reason = "a measurement for people")]

use bytes::Bytes;
use dth_benches::{at_most, peak_memory};
use dth_core::{
    env::{Env, SystemEnv},
    finder::{Finder, FinderSettings},
    memory::{MemoryQueue, MemoryState, MemoryStore},
    prefixes::PrefixList,
    report::human_bytes,
};
use futures_util::{StreamExt, stream};
use std::{fmt::Write as _, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Lines in no order, each of two other folders; every tenth is blank or part of the one before it.
fn lines(from: u64, to: u64) -> Bytes {
    let mut text = String::new();
    for n in from..to {
        let folder = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let _ = match n % 10 {
            0 => writeln!(text, "\r"),
            1 => writeln!(text, "data/{folder:010}/day/{n}\r\ndata/{folder:010}/"),
            _ => writeln!(text, "data/{folder:010}/day/{n}/"),
        };
    }
    text.into()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(10_000_000), |n| n.parse())?;
    let begun = SystemEnv.now();
    let chunk = 1000;
    let chunks = stream::iter((0..count.div_ceil(chunk)).map(move |n| Ok(lines(n * chunk, (n * chunk + chunk).min(count)))));
    let prefixes = PrefixList::read("generated", chunks.boxed()).await?;
    let read = SystemEnv.now();
    // Every ten-thousandth line has an object, and as many objects lie between.
    let source = MemoryStore::default();
    let mut covered = 0;
    for n in (0..count).step_by(10_000) {
        let n = n + 2;
        let folder = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        source.insert(format!("data/{folder:010}/day/{n}/object"), "x");
        source.insert(format!("data/{folder:010}/day/{n}-not"), "x");
        covered += 1;
    }
    let settings = FinderSettings { prefixes: Some(prefixes.clone()), ..FinderSettings::default() };
    let finder =
        Finder::builder(Arc::new(source), Arc::new(MemoryStore::default()), Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new()));
    let run = finder.with_settings(settings).build()?.run(&CancellationToken::new()).await?;
    let found = SystemEnv.now();
    anyhow::ensure!(run.totals.listed.objects == covered, "{} of {covered} objects were found", run.totals.listed.objects);
    println!(
        "{count} lines, {} prefixes, read in {:.1} s; {covered} objects found in {:.1} s by {} LIST; peak memory {}",
        prefixes.count(),
        read.duration_since(begun).as_secs_f64(),
        found.duration_since(read).as_secs_f64(),
        run.totals.source_pages,
        human_bytes(peak_memory()),
    );
    at_most(std::env::args().nth(2).map(|n| n.parse()).transpose()?)
}
