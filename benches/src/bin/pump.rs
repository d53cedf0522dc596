//! The floor that copiers are measured against: list, GET, PUT, streamed, and nothing else. No signature, no check, no state, no retry.
//!
//! `pump copy SOURCE DESTINATION BUCKET CONCURRENCY [PART_MIB]`, or `pump compare SOURCE DESTINATION BUCKET`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dth_benches::between;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::Semaphore, task::JoinSet};

type Body = BoxBody<Bytes, hyper::Error>;

#[derive(Clone)]
struct Pump {
    client: Client<HttpConnector, Body>,
    source: Arc<str>,
    destination: Arc<str>,
    bucket: Arc<str>,
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never: Infallible| match never {}).boxed()
}

impl Pump {
    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Body,
        len: Option<u64>,
        range: Option<(u64, u64)>,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(len) = len {
            request = request.header("content-length", len);
        }
        if let Some((from, to)) = range {
            request = request.header("range", format!("bytes={from}-{}", to - 1));
        }
        let answer = self.client.request(request.body(body)?).await?;
        ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        Ok(answer)
    }

    async fn text(&self, method: Method, url: &str, len: Option<u64>) -> anyhow::Result<String> {
        let bytes = self.send(method, url, empty(), len, None).await?.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn list(&self, endpoint: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let url = format!("{endpoint}/{}?list-type=2{token}", self.bucket);
            let page = self.text(Method::GET, &url, None).await?;
            for entry in page.split("<Contents>").skip(1) {
                let key = between(entry, "Key").context("an entry without a key")?;
                let size = between(entry, "Size").and_then(|size| size.parse().ok()).context("an entry without a size")?;
                found.push((key.to_owned(), size));
            }
            match between(&page, "NextContinuationToken") {
                Some(next) => token = format!("&continuation-token={next}"),
                None => return Ok(found),
            }
        }
    }

    async fn whole(self, key: String, size: u64) -> anyhow::Result<()> {
        let body = self.send(Method::GET, &format!("{}/{}/{key}", self.source, self.bucket), empty(), None, None).await?.into_body();
        let url = format!("{}/{}/{key}", self.destination, self.bucket);
        self.send(Method::PUT, &url, body.boxed(), Some(size), None).await?.into_body().collect().await?;
        Ok(())
    }

    async fn part(self, key: String, upload: Arc<Upload>, number: u64, range: (u64, u64)) -> anyhow::Result<()> {
        let from = format!("{}/{}/{key}", self.source, self.bucket);
        let to = format!("{}/{}/{key}", self.destination, self.bucket);
        let body = self.send(Method::GET, &from, empty(), None, Some(range)).await?.into_body();
        let url = format!("{to}?partNumber={number}&uploadId={}", upload.id);
        let put = self.send(Method::PUT, &url, body.boxed(), Some(range.1 - range.0), None).await?;
        // Its etag goes into the document of the completion.
        let etag = put.headers().get("etag").and_then(|etag| etag.to_str().ok()).unwrap_or_default().to_owned();
        put.into_body().collect().await?;
        let etags = {
            let mut etags = upload.etags.lock().unwrap_or_else(PoisonError::into_inner);
            etags.push((number, etag));
            if etags.len() < upload.parts { Vec::new() } else { std::mem::take(&mut *etags) }
        };
        if !etags.is_empty() {
            let document = completion(etags);
            let len = document.len() as u64;
            let body = Full::new(Bytes::from(document)).map_err(|never: Infallible| match never {}).boxed();
            let url = format!("{to}?uploadId={}", upload.id);
            self.send(Method::POST, &url, body, Some(len), None).await?.into_body().collect().await?;
        }
        Ok(())
    }
}

/// An upload under way.
struct Upload {
    id: String,
    parts: usize,
    etags: Mutex<Vec<(u64, String)>>,
}

fn completion(mut etags: Vec<(u64, String)>) -> String {
    etags.sort();
    let mut document = String::from("<CompleteMultipartUpload>");
    for (number, etag) in etags {
        let _ = write!(document, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    document + "</CompleteMultipartUpload>"
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, source, destination, bucket, rest @ ..] = arguments.as_slice() else {
        bail!("usage: pump copy|compare SOURCE DESTINATION BUCKET [CONCURRENCY [PART_MIB]]")
    };
    let number = |at: usize, otherwise: u64| rest.get(at).and_then(|n: &String| n.parse().ok()).unwrap_or(otherwise);
    let (concurrency, part) = (number(0, 32) as usize, number(1, 16) << 20);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(concurrency * 2).build(connector);
    let pump = Pump { client, source: source.as_str().into(), destination: destination.as_str().into(), bucket: bucket.as_str().into() };
    if mode == "compare" {
        let (here, there) = tokio::try_join!(pump.list(source), pump.list(destination))?;
        let there: HashMap<_, _> = there.into_iter().collect();
        println!("{} differ", here.iter().filter(|(key, size)| there.get(key) != Some(size)).count());
        return Ok(());
    }
    let slots = Arc::new(Semaphore::new(concurrency));
    let mut running: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for (key, size) in pump.list(source).await? {
        if size <= part {
            let slot = Arc::clone(&slots).acquire_owned().await?;
            let pump = pump.clone();
            running.spawn(async move {
                let _slot = slot;
                pump.whole(key, size).await
            });
            continue;
        }
        let begun = pump.text(Method::POST, &format!("{destination}/{bucket}/{key}?uploads"), Some(0)).await?;
        let id = between(&begun, "UploadId").context("no upload id")?.to_owned();
        let upload = Arc::new(Upload { id, parts: size.div_ceil(part) as usize, etags: Mutex::default() });
        for (number, from) in (1..).zip((0..size).step_by(part as usize)) {
            let slot = Arc::clone(&slots).acquire_owned().await?;
            let (pump, key, upload) = (pump.clone(), key.clone(), Arc::clone(&upload));
            running.spawn(async move {
                let _slot = slot;
                pump.part(key, upload, number, (from, (from + part).min(size))).await
            });
        }
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}
