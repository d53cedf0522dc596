//! An S3 server in memory that counts requests, for measuring: fast, without signatures, and strict in all that a copier relies on
//! (conditions, checksums, ranges, part numbers), so that what is measured against it is correct as well. `benches/tests/mems3.rs` runs
//! the conformance suite on it.
//!
//! It can be far away, slow, throttling and unreliable ([`Weather`]), and can tamper with what it sends ([`Tamper`]).

mod answer;
mod body;
mod store;

pub use store::{Etags, Seed};

use answer::{Answer, error, text};
use body::receive;
use bytes::Bytes;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{Method, Request, StatusCode, body::Incoming, header::HeaderValue, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use store::{Bucket, Store};
use tokio::{net::TcpListener, task::JoinSet};

/// What an answer is made of.
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What lies between the server and its clients.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weather {
    /// Milliseconds before each answer.
    pub latency: u64,
    /// Bytes a second of each body; 0 for no limit.
    pub rate: u64,
    /// Requests of a thousand that are answered with 503 SlowDown.
    pub throttled: f64,
    /// Requests of a thousand whose connection is cut.
    pub resets: f64,
    /// From which chance comes.
    pub seed: u64,
}

/// What becomes of an object on its way, behind the server's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tamper {
    /// In every answer to a read one bit is another one.
    Flip,
    /// Once something was read of it, it is another object of the same size.
    Overwrite,
}

/// A server. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct MemS3(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    store: Store,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    received: AtomicU64,
    sent: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    weather: Mutex<Weather>,
    drawn: AtomicU64,
    tampered: Mutex<BTreeMap<String, Tamper>>,
}

/// A request, taken apart.
struct Asked {
    method: Method,
    bucket: String,
    key: String,
    query: BTreeMap<String, String>,
    request: Request<Incoming>,
}

impl Asked {
    fn new(request: Request<Incoming>) -> Option<Self> {
        let decode = |text: &str| percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned).ok();
        let (bucket, key) =
            request.uri().path().trim_start_matches('/').split_once('/').unwrap_or((request.uri().path().trim_start_matches('/'), ""));
        let (bucket, key) = (decode(bucket)?, decode(key)?);
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(&value.replace('+', " "))?))
        };
        Some(Self { method: request.method().clone(), bucket, key, query: pairs.map(pair).collect::<Option<_>>()?, request })
    }

    fn has(&self, name: &str) -> bool {
        self.query.contains_key(name)
    }

    fn asked(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// The name of the operation, by which it is counted.
    fn operation(&self) -> &'static str {
        let copies = self.request.headers().contains_key("x-amz-copy-source");
        match (self.method.as_str(), self.key.is_empty()) {
            ("GET", true) if self.has("uploads") => "ListMultipartUploads",
            ("GET", true) if self.has("location") => "GetBucketLocation",
            ("GET", true) if self.has("versioning") => "GetBucketVersioning",
            ("GET", true) if self.bucket.is_empty() => "ListBuckets",
            ("GET", true) if self.asked("list-type") == Some("2") => "ListObjectsV2",
            ("GET", true) => "ListObjects",
            ("HEAD", true) => "HeadBucket",
            ("PUT", true) => "CreateBucket",
            ("POST", true) if self.has("delete") => "DeleteObjects",
            ("GET", false) if self.has("uploadId") => "ListParts",
            ("GET", false) if self.has("tagging") => "GetObjectTagging",
            ("GET", false) => "GetObject",
            ("HEAD", false) => "HeadObject",
            ("PUT", false) if self.has("tagging") => "PutObjectTagging",
            ("PUT", false) if self.has("uploadId") && copies => "UploadPartCopy",
            ("PUT", false) if self.has("uploadId") => "UploadPart",
            ("PUT", false) if copies => "CopyObject",
            ("PUT", false) => "PutObject",
            ("POST", false) if self.has("uploads") => "CreateMultipartUpload",
            ("POST", false) if self.has("uploadId") => "CompleteMultipartUpload",
            ("DELETE", false) if self.has("uploadId") => "AbortMultipartUpload",
            ("DELETE", false) => "DeleteObject",
            _ => "Other",
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemS3 {
    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let server = self.clone();
            connections.spawn(async move {
                let answer = service_fn(move |request| {
                    let server = server.clone();
                    async move { server.handle(request).await }
                });
                // A client that went away is nothing to tell.
                let _ = http1::Builder::new().max_buf_size(1 << 20).serve_connection(TokioIo::new(socket), answer).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }

    /// Makes objects.
    pub fn seed(&self, seed: &Seed) {
        self.0.store.create(&seed.bucket).seed(seed);
    }

    /// Sets what lies between it and its clients.
    pub fn set_weather(&self, weather: Weather) {
        *lock(&self.0.weather) = weather;
        self.0.drawn.store(0, Relaxed);
    }

    async fn handle(self, request: Request<Incoming>) -> io::Result<Answer> {
        let inner = &*self.0;
        let Some(asked) = Asked::new(request) else { return Ok(error(StatusCode::BAD_REQUEST, "InvalidURI")) };
        if let Some(command) = asked.bucket.strip_prefix("__") {
            return Ok(self.command(command, &asked));
        }
        let weather = *lock(&inner.weather);
        let now = inner.in_flight.fetch_add(1, Relaxed) + 1;
        inner.most_in_flight.fetch_max(now, Relaxed);
        let answer = async {
            if weather.latency > 0 {
                tokio::time::sleep(Duration::from_millis(weather.latency)).await;
            }
            let operation = asked.operation();
            *lock(&inner.counts).entry(operation).or_default() += 1;
            let chance = self.draw(weather.seed);
            if chance < weather.resets {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if chance < weather.resets + weather.throttled {
                return Ok(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
            }
            Ok(self.answer(operation, asked, weather).await)
        };
        let answer = answer.await;
        inner.in_flight.fetch_sub(1, Relaxed);
        answer
    }

    /// A number below 1,000; the same ones for a seed, in the order of requests.
    fn draw(&self, seed: u64) -> f64 {
        let mut state = (seed << 32) ^ self.0.drawn.fetch_add(1, Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((state ^ (state >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 1000.0
    }

    async fn answer(&self, operation: &str, asked: Asked, weather: Weather) -> Answer {
        let store = &self.0.store;
        match operation {
            "CreateBucket" => {
                store.create(&asked.bucket);
                return text(StatusCode::OK, "");
            }
            "ListBuckets" => return answer::buckets(&store.buckets()),
            _ => {}
        }
        let Some(bucket) = store.bucket(&asked.bucket) else { return error(StatusCode::NOT_FOUND, "NoSuchBucket") };
        let names_object = !asked.key.is_empty();
        let mut answer = self.of_bucket(operation, asked, weather, &bucket).await;
        if !bucket.hashes() && names_object {
            // That is why the etags are no MD5.
            answer.headers_mut().insert("x-amz-server-side-encryption", HeaderValue::from_static("aws:kms"));
        }
        answer
    }

    async fn of_bucket(&self, operation: &str, asked: Asked, weather: Weather, bucket: &Bucket) -> Answer {
        match operation {
            "HeadBucket" => text(StatusCode::OK, ""),
            "GetBucketLocation" => answer::xml("LocationConstraint", "us-east-1"),
            "GetBucketVersioning" => answer::xml("VersioningConfiguration", ""),
            "ListObjectsV2" | "ListObjects" => answer::listing(bucket, &asked),
            "ListMultipartUploads" => answer::uploads(bucket, &asked),
            "ListParts" => answer::parts(bucket, &asked),
            "GetObjectTagging" => answer::tagging(bucket, &asked.key),
            "GetObject" | "HeadObject" => {
                let tamper = lock(&self.0.tampered).get(&asked.key).copied();
                let (answer, sent) = answer::object(bucket, &asked, weather.rate, tamper);
                self.0.sent.fetch_add(sent, Relaxed);
                if tamper == Some(Tamper::Overwrite) && sent > 0 && lock(&self.0.tampered).remove(&asked.key).is_some() {
                    bucket.overwrite(&asked.key);
                }
                answer
            }
            "DeleteObject" => answer::delete(bucket, &asked),
            "AbortMultipartUpload" => answer::abort(bucket, &asked),
            "CreateMultipartUpload" => answer::create_upload(bucket, &asked),
            "CopyObject" | "UploadPartCopy" => answer::copy(&self.0.store, bucket, &asked),
            "PutObject" | "UploadPart" | "CompleteMultipartUpload" | "PutObjectTagging" | "DeleteObjects" => {
                let (parts, body) = asked.request.into_parts();
                let received =
                    match receive(&parts.headers, body, &self.0.received, operation != "CompleteMultipartUpload", bucket.hashes()).await {
                        Ok(received) => received,
                        Err(code) => return error(StatusCode::BAD_REQUEST, code),
                    };
                let call = answer::Call { bucket, key: &asked.key, query: &asked.query, headers: &parts.headers };
                match operation {
                    "PutObject" => call.put(received),
                    "UploadPart" => call.put_part(received),
                    "PutObjectTagging" => call.put_tags(&received),
                    "DeleteObjects" => call.delete_many(&received),
                    _ => call.complete(&received),
                }
            }
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    /// What the harness asks: `/__stats`, `/__reset`, `/__clear`, `/__seed`, `/__sums`, `/__weather`, `/__tamper`.
    fn command(&self, command: &str, asked: &Asked) -> Answer {
        let inner = &*self.0;
        let query = serde_json::Value::Object(asked.query.iter().map(|(name, value)| (name.clone(), number_or_text(value))).collect());
        let bucket = asked.asked("bucket").unwrap_or_default();
        match command {
            "stats" => {
                let counts = lock(&inner.counts).clone();
                let told = serde_json::json!({
                    "requests": counts,
                    "received": inner.received.load(Relaxed),
                    "sent": inner.sent.load(Relaxed),
                    "most_in_flight": inner.most_in_flight.load(Relaxed),
                    "open_uploads": inner.store.open_uploads(),
                });
                text(StatusCode::OK, told.to_string())
            }
            "reset" => {
                lock(&inner.counts).clear();
                for counter in [&inner.received, &inner.sent, &inner.most_in_flight, &inner.drawn] {
                    counter.store(0, Relaxed);
                }
                text(StatusCode::OK, "")
            }
            "clear" => {
                inner.store.clear(bucket);
                lock(&inner.tampered).clear();
                text(StatusCode::OK, "")
            }
            "seed" => match serde_json::from_value::<Seed>(query) {
                Ok(seed) => {
                    self.seed(&seed);
                    text(StatusCode::OK, "")
                }
                Err(why) => text(StatusCode::BAD_REQUEST, why.to_string()),
            },
            "sums" => match inner.store.bucket(bucket) {
                Some(bucket) => text(StatusCode::OK, serde_json::to_string(&bucket.sums()).unwrap_or_default()),
                None => error(StatusCode::NOT_FOUND, "NoSuchBucket"),
            },
            "weather" => match serde_json::from_value(query) {
                Ok(weather) => {
                    self.set_weather(weather);
                    text(StatusCode::OK, "")
                }
                Err(why) => text(StatusCode::BAD_REQUEST, why.to_string()),
            },
            "tamper" => match serde_json::from_value(query["how"].clone()) {
                Ok(how) => {
                    lock(&inner.tampered).insert(asked.asked("key").unwrap_or_default().to_owned(), how);
                    text(StatusCode::OK, "")
                }
                Err(why) => text(StatusCode::BAD_REQUEST, why.to_string()),
            },
            _ => error(StatusCode::NOT_FOUND, "NoSuchCommand"),
        }
    }
}

fn number_or_text(text: &str) -> serde_json::Value {
    let number = || text.parse::<serde_json::Number>().ok().map(serde_json::Value::Number);
    number().unwrap_or_else(|| serde_json::Value::String(text.to_owned()))
}

/// A body that is there.
fn whole(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}
