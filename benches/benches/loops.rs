//! The inner loops: `cargo bench -p dth-benches`. Time a thousand of what each does.

#![expect(clippy::unwrap_used, reason = "a measurement")]

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dth_core::{
    env::SystemEnv,
    error::{Error, ErrorKind, Op, Result},
    finder::Finder,
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    job::{Job, Pack, Packer, Seen},
    memory::{MemoryQueue, MemoryState},
    object::{ETag, Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    plan::{cost::Prices, parts::PartPlan},
    queue::{Message, Queue},
    sink::{Body, MultipartLimits, PutOptions, Sink},
};
use dth_s3::{Connector, CredentialsConfig, S3Config, S3Store, Secret, Transport};
use dth_state::Sqlite;
use std::{fmt::Write, hint::black_box, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
};

const THOUSAND: usize = 1000;

fn entry(number: usize) -> Entry {
    let key = format!("data/{:03}/object-{number:08}.parquet", number / 1000);
    Entry::new(key, 10_240, Some(ETag::new(&format!("{number:032x}"))))
}

/// A listing of a number of keys, made beforehand.
#[derive(Debug)]
struct Listing(Vec<Entry>);

#[async_trait]
impl Index for Listing {
    fn name(&self) -> String {
        "listing".into()
    }
    fn index_capability(&self) -> IndexCapability {
        IndexCapability::like_s3(EtagKind::Md5)
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let from = match &request.from {
            ListFrom::Beginning => 0,
            ListFrom::After(key) => self.0.partition_point(|entry| entry.key <= *key),
            ListFrom::Token(token) => token.parse().unwrap(),
        };
        let to = (from + THOUSAND).min(self.0.len());
        Ok(ListPage { entries: self.0[from..to].to_vec(), next: (to < self.0.len()).then(|| to.to_string()) })
    }
    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        Err(Error::new(ErrorKind::Unsupported, Op::Head, key.to_string()))
    }
}

fn merge_join(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let listing = || Arc::new(Listing((0..100_000).map(entry).collect()));
    let finder = Finder::builder(listing(), listing(), Arc::new(MemoryQueue::new()), Arc::new(MemoryState::new())).build().unwrap();
    let mut group = c.benchmark_group("merge_join");
    group.throughput(Throughput::Elements(100_000)).sample_size(20);
    group.bench_function("100,000 equal keys", |b| {
        b.to_async(&runtime).iter(|| async { finder.plan(64 << 20, 16 << 20, &Prices::default()).await.unwrap() });
    });
    group.finish();
}

fn part_planning(c: &mut Criterion) {
    let limits = MultipartLimits { min_part: 5 << 20, max_part: 5 << 30, max_parts: 10_000, list_parts: true, list_uploads: true };
    c.bench_function("part planning, 5 TiB in 10,000 parts", |b| {
        b.iter(|| PartPlan::own(black_box(5 << 40), 16 << 20, &limits).unwrap().parts().map(|(_, range)| range.end).max());
    });
}

fn packing(c: &mut Criterion) {
    let jobs: Vec<Job> = (0..THOUSAND).map(|n| Job::copy(&entry(n), Seen::Absent)).collect();
    let pack_all = |jobs: Vec<Job>| {
        let mut packer = Packer::new(60 << 10, 250);
        let mut packs: Vec<Vec<Job>> = jobs.into_iter().filter_map(|job| packer.push(job)).collect();
        packs.extend(packer.take());
        packs.into_iter().map(|jobs| Pack::new(&SystemEnv, None, jobs).to_body()).collect::<Vec<_>>()
    };
    let bodies = pack_all(jobs.clone());
    let mut group = c.benchmark_group("jobs");
    group.throughput(Throughput::Elements(THOUSAND as u64));
    group.bench_function("pack 1,000", |b| b.iter_batched(|| jobs.clone(), pack_all, BatchSize::SmallInput));
    group.bench_function("read 1,000", |b| {
        b.iter(|| bodies.iter().map(|body| Pack::parse(body, &SystemEnv).unwrap().jobs.len()).sum::<usize>());
    });
    group.finish();
}

/// Answers every request with the same text, over connections in memory.
#[derive(Debug)]
struct Canned(Bytes);

#[async_trait]
impl Connector for Canned {
    async fn connect(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Transport>> {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let answer = self.0.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with its connection")]
        tokio::spawn(async move {
            let mut heard = Vec::with_capacity(64 << 10);
            loop {
                let mut piece = [0; 16 << 10];
                match server.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(len) => heard.extend_from_slice(&piece[..len]),
                }
                // Requests of these measurements have no body, or one that ends so.
                if heard.ends_with(b"\r\n\r\n") || heard.ends_with(b"the end") {
                    heard.clear();
                    if server.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Box::new(client))
    }
}

fn store(answer: String) -> S3Store {
    let config = S3Config {
        bucket: "b".into(),
        region: "us-east-1".into(),
        endpoint: Some("http://store.example".into()),
        credentials: CredentialsConfig::Static { access_key_id: "a".into(), secret_access_key: Secret::new("b"), session_token: None },
        ..S3Config::default()
    };
    S3Store::with_connector(config, Arc::new(SystemEnv), Arc::new(Canned(answer.into()))).unwrap()
}

fn wire(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut page = String::from("<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>");
    for number in 0..THOUSAND {
        let Entry { key, etag, .. } = entry(number);
        let etag = etag.unwrap();
        let _ = write!(
            page,
            "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag>\
             <Size>10240</Size><StorageClass>STANDARD</StorageClass></Contents>",
            key.as_str()
        );
    }
    page.push_str("</ListBucketResult>");
    let listing = store(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len()));
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Elements(THOUSAND as u64));
    group.bench_function("list a page of 1,000 keys", |b| {
        b.to_async(&runtime).iter(|| async { assert_eq!(listing.list(&ListRequest::default()).await.unwrap().entries.len(), THOUSAND) });
    });
    group.throughput(Throughput::Elements(1));
    let sink = store("HTTP/1.1 200 OK\r\netag: \"25f9e794323b453885f5181f1b624d0b\"\r\ncontent-length: 0\r\n\r\n".into());
    let key = ObjectKey::from("data/000/object-00000001.parquet");
    group.bench_function("sign and send a small object", |b| {
        let body = || Body::Bytes(vec![Bytes::from_static(b"the end")]);
        b.to_async(&runtime).iter(|| async { sink.put(&key, body(), &PutOptions::default()).await.unwrap() });
    });
    group.finish();
}

fn sqlite_queue(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let queue = Sqlite::open(folder.path().join("queue.db")).unwrap();
    let jobs: Vec<Job> = (0..250).map(|n| Job::copy(&entry(n), Seen::Absent)).collect();
    let body = Pack::new(&SystemEnv, None, jobs).to_body();
    let mut group = c.benchmark_group("sqlite_queue");
    group.throughput(Throughput::Elements(10 * 250)).sample_size(30);
    group.bench_function("send, receive, acknowledge 10 packs of 250 jobs", |b| {
        b.to_async(&runtime).iter(|| async {
            let messages: Vec<Message> = (0..10).map(|_| Message { body: body.clone(), delay: Duration::ZERO }).collect();
            queue.send(&messages).await.unwrap();
            for delivery in queue.receive(10, Duration::from_secs(60), Duration::ZERO).await.unwrap() {
                queue.ack(&delivery.receipt).await.unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(loops, merge_join, part_planning, packing, wire, sqlite_queue);
criterion_main!(loops);
