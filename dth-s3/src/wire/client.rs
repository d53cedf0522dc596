//! One request: sign, send, time out, classify. Nothing here retries, but for what cannot have reached the store: a refused
//! identity or clock.

use super::{sign::ToSign, uri, xml};
use crate::{
    config::{Endpoint, S3Config},
    credentials::{Current, Identities},
    error::{ErrorBody, from_answer, is_of_clock, only_reads},
    profile::Facts,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use dth_core::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result, Retry},
    http::{
        Body, Connector, Http, HttpSettings,
        body::{self, Patience},
    },
    object::{ObjectKey, VersionId},
    source::ByteStream,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Answers are read whole only where they are documents; none of ours is larger.
const MAX_DOCUMENT: u64 = 64 << 20;
/// Assembling and copying take a store minutes. S3 answers 200 at once and then drips white space; so long at most.
const LONG_WORK: Duration = Duration::from_secs(30 * 60);
/// Others say nothing until then: so many idle times are granted for the first word.
const SILENT_WORK: u32 = 5;

/// Whether the store works for long before it tells how that ended.
fn works_long(op: Op) -> bool {
    matches!(op, Op::CompleteUpload | Op::Copy | Op::CopyPart)
}

/// What to send.
pub(crate) enum RequestBody {
    Empty,
    /// An XML document, whose hash is signed.
    Document(String),
    /// Bytes that can be sent again.
    Chunks(Vec<Bytes>),
    /// A stream of known length, sent once.
    Stream(u64, ByteStream),
}

/// A request to the bucket or to a key of it.
pub(crate) struct Request<'a> {
    pub(crate) op: Op,
    pub(crate) method: Method,
    pub(crate) key: Option<&'a ObjectKey>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
}

impl<'a> Request<'a> {
    pub(crate) fn new(op: Op, method: Method, key: Option<&'a ObjectKey>) -> Self {
        Self { op, method, key, query: Vec::new(), headers: HeaderMap::new(), body: RequestBody::Empty }
    }

    /// Of this version, where one is named.
    pub(crate) fn of_version(self, version: Option<&VersionId>) -> Self {
        match version {
            Some(version) => self.query("versionId", version.as_str()),
            None => self,
        }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Adds a header. `Invalid` when the value cannot be one.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|e| Error::new(ErrorKind::Unrepresentable, self.op, format!("header {name}")).with_source(e))?;
        self.headers.append(HeaderName::from_static(name), value);
        Ok(self)
    }
}

/// A good answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    op: Op,
    target: String,
    idle: Duration,
}

/// What stands behind the bucket in a URL, encoded.
struct Behind {
    key: String,
    query: String,
}

/// Where a bucket is.
#[derive(Debug)]
struct Place {
    endpoint: Endpoint,
    region: String,
}

/// The connection to one bucket.
pub(crate) struct Wire {
    http: Http,
    config: S3Config,
    facts: &'static Facts,
    place: RwLock<Arc<Place>>,
    pub(crate) bucket: String,
    identities: Identities,
    env: SharedEnv,
    requester_pays: bool,
    idle: Duration,
    /// Seconds by which the store's clock is ahead of ours.
    skew: AtomicI64,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl Wire {
    pub(crate) fn new(config: &S3Config, env: SharedEnv, connector: Option<Arc<dyn Connector>>) -> Result<Self> {
        let connect_timeout = Duration::from_secs(config.connect_timeout_seconds.unwrap_or(10));
        let region = config.region().to_owned();
        let way = HttpSettings { ca_file: config.ca_file.clone(), proxy: config.proxy.clone(), connect_timeout, connector: None };
        Ok(Self {
            http: Http::new(HttpSettings { connector, ..way.clone() })?,
            place: RwLock::new(Arc::new(Place { endpoint: config.endpoint(&region)?, region })),
            config: config.clone(),
            facts: config.profile.facts(),
            bucket: config.bucket.clone(),
            identities: Identities::new(config.credentials.clone(), config.region(), way, SharedEnv::clone(&env)),
            env,
            requester_pays: config.requester_pays,
            idle: Duration::from_secs(config.idle_timeout_seconds.unwrap_or(60)),
            skew: AtomicI64::new(0),
        })
    }

    fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The store without the bucket: two of the same can copy between themselves.
    pub(crate) fn store(&self) -> String {
        self.place().endpoint.store.clone()
    }

    /// Goes where the store says that the bucket is, when no region was set.
    fn follow(&self, from: &Place, status: StatusCode, headers: &HeaderMap, body: &ErrorBody) -> Result<bool> {
        let named = headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok()).or(body.region.as_deref());
        let Some(region) = named.filter(|r| self.config.finds_region() && *r != from.region) else { return Ok(false) };
        if !status.is_redirection() && !status.is_client_error() {
            return Ok(false);
        }
        let place = Place { endpoint: self.config.endpoint(region)?, region: region.to_owned() };
        tracing::debug!(bucket = self.bucket, region, "the bucket is in another region");
        *self.place.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(place);
        Ok(true)
    }

    /// What errors call a key.
    pub(crate) fn target(&self, key: Option<&ObjectKey>) -> String {
        key.map_or_else(|| self.bucket.clone(), |key| format!("{}/{key}", self.bucket))
    }

    /// Sends a request; anything but a 2xx answer is an error.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Answer> {
        let Request { op, method, key, query, mut headers, body } = request;
        let target = self.target(key);
        let behind = Behind { key: key.map(|k| uri::path(k.as_str())).unwrap_or_default(), query: uri::query(&query) };
        if self.requester_pays {
            headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        let mut headers = self.facts.dialect.speak(headers);
        let (len, replay) = match &body {
            RequestBody::Empty => (0, true),
            RequestBody::Document(text) => (text.len() as u64, true),
            RequestBody::Chunks(chunks) => (chunks.iter().map(|c| c.len() as u64).sum(), true),
            RequestBody::Stream(len, _) => (*len, false),
        };
        let hash = match &body {
            RequestBody::Document(text) => Some(dth_core::checksum::hex(&Sha256::digest(text))),
            _ => None,
        };
        let kept = match &body {
            RequestBody::Empty | RequestBody::Stream(..) => RequestBody::Empty,
            RequestBody::Document(text) => RequestBody::Document(text.clone()),
            RequestBody::Chunks(chunks) => RequestBody::Chunks(chunks.clone()),
        };
        let mut next = Some(body);
        let mut renewed_once = false;
        loop {
            let body = next.take().unwrap_or(RequestBody::Empty);
            let used_skew = self.skew.load(Relaxed);
            let place = self.place();
            headers.insert("host", HeaderValue::from_str(&place.endpoint.host).map_err(|e| invalid(op, &target, e))?);
            let identity = self.identities.current().await?;
            let generation = identity.as_ref().map_or(0, |i| i.generation);
            let sent = self.once(op, &method, &target, &place, &behind, &headers, body, len, identity, hash.as_deref()).await?;
            if sent.status.is_success() {
                return Ok(sent);
            }
            let status = sent.status;
            let answered = sent.headers.clone();
            // A refusal whose reason is lost on the way is none: by its status alone, what passes would look final.
            let document = sent.page().await.map_err(|e| e.with_code(status.as_u16().to_string()))?;
            let parsed = xml::error(&document).or_else(|| self.error_of_head(&answered)).unwrap_or_default();
            let error = from_answer(op, target.clone(), status, &answered, &parsed);
            // A refused region, identity or clock: nothing was done, so that it can be tried once with another one.
            let renewed = self.follow(&place, status, &answered, &parsed)?
                || match error.kind() {
                    ErrorKind::CredentialsExpired if is_of_clock(&parsed) => self.learn_clock(&answered, used_skew),
                    ErrorKind::CredentialsExpired => self.identities.refused(generation).await,
                    _ => false,
                };
            if !renewed || renewed_once {
                return Err(error);
            }
            if !replay {
                // The body is gone; the engine reads it anew.
                return Err(error.with_retry(Retry::Backoff));
            }
            renewed_once = true;
            next = Some(match &kept {
                RequestBody::Document(text) => RequestBody::Document(text.clone()),
                RequestBody::Chunks(chunks) => RequestBody::Chunks(chunks.clone()),
                _ => RequestBody::Empty,
            });
        }
    }

    async fn once(
        &self,
        op: Op,
        method: &Method,
        target: &str,
        place: &Place,
        behind: &Behind,
        headers: &HeaderMap,
        body: RequestBody,
        len: u64,
        identity: Option<Current>,
        hash: Option<&str>,
    ) -> Result<Answer> {
        let path = format!("{}/{}{}{}", place.endpoint.path, behind.key, if behind.query.is_empty() { "" } else { "?" }, behind.query);
        let mut builder = http::Request::builder().method(method).uri(format!("{}{path}", place.endpoint.base));
        let out = builder.headers_mut().ok_or_else(|| invalid(op, target, "the request line is too long"))?;
        out.clone_from(headers);
        if let Some(identity) = identity {
            let request = ToSign {
                op,
                target,
                method,
                path: &path,
                bucket: &self.bucket,
                key: &behind.key,
                query: &behind.query,
                region: &place.region,
                hash,
                time: self.time(),
            };
            request.sign(self.facts.dialect, &identity.identity, out)?;
        }
        if self.facts.accepts_gzip {
            // Behind the signature: it is changed on its way.
            out.insert("accept-encoding", HeaderValue::from_static("gzip"));
        }
        if method == Method::PUT || method == Method::POST {
            // hyper leaves it out for an empty body, and S3 answers 411.
            out.insert("content-length", HeaderValue::from(len));
        }
        let request = builder.body(into_http(body)).map_err(|e| invalid(op, target, e))?;
        let patience = if works_long(op) { self.idle * SILENT_WORK } else { body::time_to_send(len, self.idle) };
        metrics::counter!("dth_s3_requests_total", "op" => op_name(op)).increment(1);
        let (parts, body) = self.http.answer(request, op, target, patience).await?.into_parts();
        let headers = self.facts.dialect.hear(parts.headers);
        Ok(Answer { status: parts.status, headers, body, op, target: target.to_owned(), idle: self.idle })
    }

    /// An answer to HEAD has no body: OSS puts the document into a header.
    fn error_of_head(&self, headers: &HeaderMap) -> Option<ErrorBody> {
        let document = STANDARD.decode(headers.get("x-amz-err")?).ok()?;
        xml::error(std::str::from_utf8(&document).ok()?)
    }

    /// What the store's clock shows now, as far as is known.
    fn time(&self) -> Timestamp {
        let skew = SignedDuration::from_secs(self.skew.load(Relaxed));
        let now = self.env.now();
        now.checked_add(skew).unwrap_or(now)
    }

    /// Seconds by which the store's clock, as an answer shows it, is ahead of ours.
    pub(crate) fn clock_ahead(&self, headers: &HeaderMap) -> Option<i64> {
        let theirs = headers.get("date").and_then(|v| v.to_str().ok()).and_then(super::xml::http_date)?;
        Some(theirs.as_second() - self.env.now().as_second())
    }

    pub(crate) fn region(&self) -> String {
        self.place().region.clone()
    }

    /// Learns how far the store's clock is from ours.
    fn learn_clock(&self, headers: &HeaderMap, used: i64) -> bool {
        let Some(skew) = self.clock_ahead(headers) else { return false };
        // Below what any store refuses, it was something else.
        if (skew - used).abs() < 60 {
            return false;
        }
        self.skew.store(skew, Relaxed);
        true
    }
}

impl Answer {
    pub(crate) fn error(&self, kind: ErrorKind, why: impl Into<BoxError>) -> Error {
        Error::new(kind, self.op, &*self.target).with_source(why)
    }

    /// The whole answer as text.
    pub(crate) async fn document(self) -> Result<String> {
        let (op, target) = (self.op, self.target.clone());
        String::from_utf8(self.whole().await?).map_err(|e| Error::new(ErrorKind::Corrupt, op, target).with_source(e))
    }

    /// The document of this name that the answer to a change is.
    pub(crate) async fn result(self, root: &str) -> Result<xml::Document<'static>> {
        let (op, target) = (self.op, self.target.clone());
        let lost = |why: String| Error::new(ErrorKind::Unavailable, op, &*target).with_maybe_applied(true).with_source(why);
        let document = xml::parse(&self.success().await?).map(xml::Document::into_owned).map_err(lost)?;
        if document.root().is(root) { Ok(document) } else { Err(lost(format!("the answer is no {root}"))) }
    }

    /// The end of an answer that should say nothing: a page that stands there is a gateway's, and nobody knows what became of the
    /// request.
    pub(crate) async fn done(self) -> Result<()> {
        let (op, target) = (self.op, self.target.clone());
        let page = self.success().await?;
        let page = page.trim();
        let is_nothing = page.is_empty() || page.starts_with("<?xml") && page.find("?>") == Some(page.len() - 2);
        if is_nothing || xml::parse(page).is_ok_and(|page| !page.root().is("html")) {
            return Ok(());
        }
        let start: String = page.chars().take(80).collect();
        Err(Error::new(ErrorKind::Unavailable, op, target).with_maybe_applied(true).with_source(format!("not an answer of S3: {start:?}")))
    }

    /// The whole answer, unless it is an error although the status was 200: S3 sends the status before the work is done.
    async fn success(self) -> Result<String> {
        let (op, target, headers) = (self.op, self.target.clone(), self.headers.clone());
        let page = self.page().await?;
        match xml::error(&page) {
            Some(body) => Err(from_answer(op, target, StatusCode::OK, &headers, &body)),
            None => Ok(page),
        }
    }

    /// The whole answer, from whoever it may be: a refusal, or what should have been nothing.
    async fn page(self) -> Result<String> {
        self.whole().await.map(|all| String::from_utf8_lossy(&all).into_owned())
    }

    async fn whole(self) -> Result<Vec<u8>> {
        let (op, target) = (self.op, self.target.clone());
        // The request was answered, but how is lost.
        let lost = |kind, why: BoxError| Error::new(kind, op, &*target).with_maybe_applied(!only_reads(op)).with_source(why);
        let all = body::gather(self.stream(), MAX_DOCUMENT).await.map_err(|e| lost(ErrorKind::Unavailable, e.into()))?;
        all.ok_or_else(|| lost(ErrorKind::Corrupt, "the answer is larger than any document of S3".into()))
    }

    /// The body as it arrives; given up when nothing, or next to nothing, comes for the idle time.
    pub(crate) fn stream(self) -> ByteStream {
        let Self { body, op, target, idle, .. } = self;
        // White space that drips while the store works is progress, up to a limit.
        let long = Patience { idle, window: LONG_WORK, least: u64::MAX };
        body::read(body, op, target, if works_long(op) { long } else { Patience::idle(idle) })
    }
}

fn invalid(op: Op, target: &str, why: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Invalid, op, target).with_source(why)
}

fn op_name(op: Op) -> String {
    format!("{op:?}")
}

fn into_http(body: RequestBody) -> Body {
    match body {
        RequestBody::Empty => body::full(Bytes::new()),
        RequestBody::Document(text) => body::full(text.into()),
        RequestBody::Chunks(chunks) => body::chunks(chunks),
        RequestBody::Stream(len, stream) => body::streamed(len, stream),
    }
}
