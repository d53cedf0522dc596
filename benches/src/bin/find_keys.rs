//! The finder over synthetic listings that are made as they are read: keys a second, and memory at its highest.
//!
//! `cargo run --release -p dth-benches --bin find_keys -- 10000000 [MOST_MIB]`

#![expect(clippy::print_stdout, reason = "a measurement for people")]

use async_trait::async_trait;
use dth_benches::{at_most, peak_memory};
use dth_core::{
    env::{Env, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    finder::Finder,
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    memory::{MemoryQueue, MemoryState},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    report::human_bytes,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// `keys` objects, of which every ten-thousandth differs from the other side's.
#[derive(Debug)]
struct Synthetic {
    keys: u64,
    odd: bool,
}

impl Synthetic {
    fn entry(&self, number: u64) -> Entry {
        let version = if self.odd && number.is_multiple_of(10_000) { number + 1 } else { number };
        let key = format!("data/{:04}/object-{number:010}.parquet", number / 10_000);
        Entry::new(key, 10_240, Some(ETag::new(&format!("{version:032x}"))))
    }

    /// The first number whose key lies behind `key`.
    fn behind(&self, key: &str) -> u64 {
        let (mut low, mut high) = (0, self.keys);
        while low < high {
            let middle = u64::midpoint(low, high);
            if self.entry(middle).key.as_str() > key { high = middle } else { low = middle + 1 }
        }
        low
    }
}

#[async_trait]
impl Index for Synthetic {
    fn name(&self) -> String {
        "synthetic".into()
    }

    fn index_capability(&self) -> IndexCapability {
        IndexCapability::like_s3(EtagKind::Md5)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let from = match &request.from {
            ListFrom::Beginning => 0,
            ListFrom::After(key) => self.behind(key.as_str()),
            ListFrom::Token(token) => token.parse().map_err(|e| Error::new(ErrorKind::Invalid, Op::List, "token").with_source(e))?,
        };
        let to = (from + u64::from(request.max.unwrap_or(1000))).min(self.keys);
        Ok(ListPage { entries: (from..to).map(|n| self.entry(n)).collect(), next: (to < self.keys).then(|| to.to_string()) })
    }

    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        Err(Error::new(ErrorKind::Unsupported, Op::Head, key.to_string()))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let keys: u64 = std::env::args().nth(1).map_or(Ok(10_000_000), |n| n.parse())?;
    let finder = Finder::builder(
        Arc::new(Synthetic { keys, odd: false }),
        Arc::new(Synthetic { keys, odd: true }),
        Arc::new(MemoryQueue::new()),
        Arc::new(MemoryState::new()),
    )
    .build()?;
    let begun = SystemEnv.now();
    let run = finder.run(&CancellationToken::new()).await?;
    let seconds = SystemEnv.now().duration_since(begun).as_secs_f64();
    let t = &run.totals;
    anyhow::ensure!(t.listed.objects == keys && t.unchanged.objects + t.queued.objects == keys, "the ledger does not close: {t:?}");
    anyhow::ensure!(t.queued.objects == keys.div_ceil(10_000), "{} of {} differences found", t.queued.objects, keys.div_ceil(10_000));
    println!(
        "{keys} keys a side in {seconds:.1} s: {:.0} keys/s; peak memory {}; {} + {} pages",
        keys as f64 / seconds,
        human_bytes(peak_memory()),
        t.source_pages,
        t.destination_pages
    );
    at_most(std::env::args().nth(2).map(|n| n.parse()).transpose()?)
}
