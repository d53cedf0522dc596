//! A mix of sizes through finder and worker, from objects that are made as they are read to a store that forgets them: memory
//! at its highest, against the budget.
//!
//! `cargo run --release -p dth-benches --bin move_mix -- GIB [BUDGET_MIB] [MOST_MIB]`

#![expect(clippy::print_stdout, reason = "a measurement for people")]

use async_trait::async_trait;
use bytes::Bytes;
use dth_benches::{at_most, peak_memory};
use dth_core::{
    attribute::AttributeSet,
    checksum::{Algorithm, Checksum},
    env::{Env, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    memory::{MemoryQueue, MemoryState},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    report::human_bytes,
    retry::RetryPolicy,
    runs,
    scope::TaskScope,
    sink::{Body, Condition, Conditions, MultipartLimits, Part, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::{Read, ReadOptions, ReadRange, Source, SourceCapability},
    state::StateStore,
    sync::Sync,
    transfer::TransferSettings,
    worker::WorkerSettings,
};
use futures_util::{StreamExt, stream};
use std::{ops::Range, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;

/// Sizes around all boundaries of the engine, again and again until they are so many bytes.
fn sizes(total: u64) -> Vec<u64> {
    let large = (total / 8).max(100 * MIB);
    let mix = [1, 10 << 10, 100 << 10, MIB, 4 * MIB, 4 * MIB + 1, 16 * MIB, 17 * MIB, 64 * MIB, 65 * MIB, 300 * MIB];
    let mut sizes = vec![large];
    while sizes.iter().sum::<u64>() < total {
        sizes.push(mix[(sizes.len() - 1) % mix.len()]);
    }
    sizes
}

#[derive(Debug)]
struct Made(Vec<u64>);

impl Made {
    fn entry(&self, number: usize) -> Entry {
        Entry::new(format!("object-{number:08}"), self.0[number], Some(ETag::new(&format!("version-{number}"))))
    }

    fn find(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let number = key.as_str().rsplit('-').next().and_then(|n| n.parse().ok()).filter(|n: &usize| *n < self.0.len());
        let number = number.ok_or_else(|| Error::new(ErrorKind::NotFound, Op::Head, key.to_string()))?;
        Ok(ObjectInfo::of(self.entry(number)))
    }
}

/// Memory of its own, as a chunk from the network is.
fn chunk(len: u64) -> Bytes {
    Bytes::from(vec![7; len as usize])
}

#[async_trait]
impl Index for Made {
    fn name(&self) -> String {
        "made".into()
    }
    fn index_capability(&self) -> IndexCapability {
        IndexCapability::like_s3(EtagKind::Opaque)
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let entries = (0..self.0.len()).map(|n| self.entry(n)).filter(|entry| match &request.from {
            ListFrom::Beginning => true,
            ListFrom::After(key) => entry.key > *key,
            ListFrom::Token(token) => entry.key.as_str() > token.as_str(),
        });
        let entries: Vec<Entry> = entries.take(1001).collect();
        let next = (entries.len() > 1000).then(|| entries[999].key.as_str().to_owned());
        Ok(ListPage { entries: entries.into_iter().take(1000).collect(), next })
    }
    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        self.find(key)
    }
}

#[async_trait]
impl Source for Made {
    fn source_capability(&self) -> SourceCapability {
        SourceCapability {
            conditional_read: true,
            ranged: true,
            first_part: false,
            checksums: &[],
            gives: AttributeSet::NONE,
            tags: false,
            children: false,
        }
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let info = self.find(key)?;
        let size = info.entry.size.unwrap_or(0);
        let range = match &options.range {
            ReadRange::Bytes(range) => range.start..range.end.min(size),
            _ => 0..size,
        };
        let Range { start, end } = range.clone();
        let chunks = (0..(end - start).div_ceil(CHUNK)).map(move |n| Ok(chunk(CHUNK.min(end - start - n * CHUNK))));
        Ok(Read { info, range, body: stream::iter(chunks).boxed() })
    }
}

/// Takes everything, and keeps nothing.
#[derive(Debug)]
struct Nowhere;

async fn swallowed(body: Body) -> Result<u64> {
    // An answer takes its time, so that much is in flight.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let len = body.len();
    let mut got = 0;
    match body {
        Body::Bytes(chunks) => got = chunks.iter().map(|c| c.len() as u64).sum(),
        Body::Stream { mut stream, .. } => {
            while let Some(chunk) = stream.next().await {
                got += chunk?.len() as u64;
            }
        }
    }
    if got == len { Ok(len) } else { Err(Error::new(ErrorKind::Corrupt, Op::Put, format!("{got} of {len} bytes"))) }
}

fn stored() -> Written {
    Written { etag: Some(ETag::new("stored")), version: None, opaque_etag: true, checksum: None }
}

#[async_trait]
impl Index for Nowhere {
    fn name(&self) -> String {
        "nowhere".into()
    }
    fn index_capability(&self) -> IndexCapability {
        IndexCapability::like_s3(EtagKind::Opaque)
    }
    async fn list(&self, _: &ListRequest) -> Result<ListPage> {
        Ok(ListPage::default())
    }
    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        Err(Error::new(ErrorKind::NotFound, Op::Head, key.to_string()))
    }
}

#[async_trait]
impl Sink for Nowhere {
    fn sink_capability(&self) -> SinkCapability {
        let limits = MultipartLimits { min_part: 5 * MIB, max_part: 5 << 30, max_parts: 10_000, list_parts: true, list_uploads: true };
        SinkCapability {
            max_put: 5 << 30,
            max_object: 50 << 40,
            stream_window: 0,
            multipart: Some(limits),
            conditions: Conditions::ALL,
            verifies: &[Algorithm::Crc64Nvme],
            checksums: &[],
            keeps: AttributeSet::NONE,
            tags: false,
            tags_follow: false,
            max_copy: None,
        }
    }
    async fn put(&self, _: &ObjectKey, body: Body, _: &PutOptions) -> Result<Written> {
        swallowed(body).await?;
        Ok(stored())
    }
    async fn delete(&self, _: &ObjectKey, _: &Condition) -> Result<()> {
        Ok(())
    }
    async fn create_upload(&self, key: &ObjectKey, _: &PutOptions) -> Result<UploadId> {
        Ok(UploadId::new(key.as_str()))
    }
    async fn put_part(&self, _: &ObjectKey, _: &UploadId, number: u32, body: Body, _: Option<&Checksum>) -> Result<Part> {
        let size = swallowed(body).await?;
        Ok(Part { number, size, etag: ETag::new(&format!("part-{number}")), opaque_etag: true, checksum: None })
    }
    async fn complete_upload(&self, _: &ObjectKey, _: &UploadId, _: &[Part], _: &PutOptions) -> Result<Written> {
        Ok(stored())
    }
    async fn abort_upload(&self, _: &ObjectKey, _: &UploadId) -> Result<()> {
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let argument = |n| std::env::args().nth(n).map(|text| text.parse::<u64>()).transpose();
    let total = argument(1)?.unwrap_or(200) << 30;
    let budget = argument(2)?.unwrap_or(256);
    let sizes = sizes(total);
    let (objects, bytes) = (sizes.len() as u64, sizes.iter().sum::<u64>());
    let state = Arc::new(MemoryState::new());
    let transfer = TransferSettings { memory: budget << 20, ..TransferSettings::default() };
    let task = Sync::new(Arc::new(Made(sizes)), Arc::new(Nowhere))
        .with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _)
        .with_worker(WorkerSettings { transfer, ..WorkerSettings::default() });
    let worker = task.worker()?;
    let stop = CancellationToken::new();
    let begun = SystemEnv.now();
    let mut scope = TaskScope::new();
    let (working, until) = (worker.clone(), stop.clone());
    scope.spawn(async move { working.run(until).await });
    let run = task.finder()?.run(&stop).await?;
    runs::wait(&*state, &run.id, &SystemEnv, &RetryPolicy::default()).await?;
    stop.cancel();
    scope.join_all().await;
    let run = state.run(&run.id).await?;
    let seconds = SystemEnv.now().duration_since(begun).as_secs_f64();
    let copied = run.outcomes_like("copied");
    anyhow::ensure!(copied.objects == objects && copied.bytes == bytes, "not everything was moved: {run:?}");
    anyhow::ensure!(worker.memory_in_flight() == 0, "{} bytes are still accounted for", worker.memory_in_flight());
    println!(
        "{objects} objects, {} in {seconds:.1} s: {}/s; budget {budget} MiB, peak memory {}, 0 in flight at the end",
        human_bytes(bytes),
        human_bytes((bytes as f64 / seconds) as u64),
        human_bytes(peak_memory()),
    );
    at_most(argument(3)?)
}
