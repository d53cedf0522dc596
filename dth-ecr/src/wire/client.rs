//! One request: allow, send, follow, classify.

use super::auth::{Auth, Scope, is_inside};
use crate::{
    config::RegistryConfig,
    credentials::{Configured, LoginSource, Logins},
    error,
};
use bytes::Bytes;
use dth_core::{
    error::{Error, ErrorKind, Op, Result, Retry},
    http::{
        Body, Http, HttpSettings,
        body::{self, Patience},
    },
    limit::{AdaptiveLimit, AdaptiveSettings},
    source::ByteStream,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Incoming;
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

pub(super) const USER_AGENT: &str = concat!("dth/", env!("CARGO_PKG_VERSION"));

/// Most hops from a registry to where it keeps its blobs.
const MAX_HOPS: u32 = 5;

/// Most bytes of a refusal.
const MAX_REFUSAL: u64 = 1 << 20;

/// Kinds of requests that registries limit apart from each other (Amazon ECR each by name, Docker Hub those of manifests).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    List,
    GetManifest,
    GetBlob,
    Look,
    StartUpload,
    Upload,
    PutManifest,
    Delete,
}

impl Action {
    const COUNT: usize = 8;

    const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::GetManifest => "get_manifest",
            Self::GetBlob => "get_blob",
            Self::Look => "look",
            Self::StartUpload => "start_upload",
            Self::Upload => "upload",
            Self::PutManifest => "put_manifest",
            Self::Delete => "delete",
        }
    }
}

/// What to send.
pub(crate) enum CallBody {
    Empty,
    /// Bytes that can be sent again.
    Chunks(Vec<Bytes>),
    /// A stream of known length, sent once.
    Stream(u64, ByteStream),
}

/// A request.
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) action: Action,
    pub(crate) method: Method,
    /// Behind the host, or a whole URL that the registry gave.
    pub(crate) to: String,
    pub(crate) scopes: BTreeSet<Scope>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallBody,
    /// What errors call it.
    pub(crate) target: String,
}

impl Call {
    pub(crate) fn new(op: Op, action: Action, method: Method, to: impl Into<String>, scope: Scope, target: impl Into<String>) -> Self {
        Self {
            op,
            action,
            method,
            to: to.into(),
            scopes: BTreeSet::from([scope]),
            headers: HeaderMap::new(),
            body: CallBody::Empty,
            target: target.into(),
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value)
            .map_err(|e| Error::new(ErrorKind::Unrepresentable, self.op, format!("{}: header {name}", self.target)).with_source(e))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn body(mut self, body: CallBody) -> Self {
        self.body = body;
        self
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

/// The connection to one registry.
pub(crate) struct Wire {
    http: Http,
    base: Uri,
    insecure: bool,
    auth: Auth,
    limits: [AdaptiveLimit; Action::COUNT],
    idle: Duration,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Wire {
    pub(crate) fn new(config: &RegistryConfig, logins: Option<Arc<dyn LoginSource>>) -> Result<Self> {
        let connect_timeout = Duration::from_secs(config.connect_timeout_seconds.unwrap_or(10));
        let settings = HttpSettings { ca_file: config.ca_file.clone(), proxy: config.proxy.clone(), connect_timeout, connector: None };
        let http = Http::new(settings)?;
        let authority = config.authority();
        let idle = Duration::from_secs(config.idle_timeout_seconds.unwrap_or(60));
        let configured = || Arc::new(Configured { config: config.credentials.clone(), registry: config.registry.clone() });
        let logins = Logins::new(logins.unwrap_or_else(|| configured()));
        let scheme = if config.insecure { "http" } else { "https" };
        let base = format!("{scheme}://{authority}/");
        let base: Uri =
            base.parse().map_err(|e| Error::new(ErrorKind::Invalid, Op::Configure, format!("registry = {authority}")).with_source(e))?;
        Ok(Self {
            auth: Auth::new(http.clone(), authority, config.insecure, config.token_hosts.clone(), logins, idle),
            http,
            base,
            insecure: config.insecure,
            limits: std::array::from_fn(|_| AdaptiveLimit::new(AdaptiveSettings::default())),
            idle,
        })
    }

    /// Sends a request; anything but a 2xx answer is an error.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer> {
        let Call { op, action, method, to, scopes, headers, body, target } = call;
        let replay = match &body {
            CallBody::Empty => Some(Vec::new()),
            CallBody::Chunks(chunks) => Some(chunks.clone()),
            CallBody::Stream(..) => None,
        };
        let first = self.resolve(&self.base, &to, op, &target)?;
        let mut next = Some(body);
        let mut renewed = false;
        loop {
            let body = next.take().unwrap_or_else(|| CallBody::Chunks(replay.clone().unwrap_or_default()));
            let permit = self.limits[action as usize].acquire().await;
            // A session may be led elsewhere; whoever that is, is shown no password.
            let authorization = if self.is_own(&first) { self.auth.header(&scopes).await? } else { None };
            let mut last = first.clone();
            let mut answer = self.once((op, action, &target), &method, &first, &headers, body, authorization.clone()).await;
            if let Ok(good) = &answer
                && good.status.is_redirection()
                && (method == Method::GET || method == Method::HEAD)
            {
                answer = self.follow((op, action, &target), &method, &mut last, &headers, &scopes, answer?).await;
            }
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    permit.throttled();
                    return Err(error);
                }
            };
            if answer.status.is_success() {
                permit.answered();
                return Ok(answer);
            }
            let (status, answered) = (answer.status, answer.headers.clone());
            let page = answer.page().await.map_err(|e| e.with_code(status.as_u16().to_string()))?;
            let reads = method == Method::GET || method == Method::HEAD;
            let mut error = error::of_answer(op, target.clone(), status, &answered, &page);
            // Go and nginx say so in words of their own.
            if self.insecure && status == StatusCode::BAD_REQUEST && page.windows(5).any(|w| w == b"HTTPS") {
                error = error.with_source("the registry speaks TLS: take `insecure` out of its settings");
            }
            let error = error.with_maybe_applied(status.is_server_error() && !reads);
            if matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable) {
                permit.throttled();
            } else {
                permit.answered();
            }
            drop(permit);
            // What somebody else wants to see says nothing of the registry.
            if !self.is_own(&last) {
                return Err(error);
            }
            let expired = error::is_expiry(status, &page)
                // The answer to HEAD has no room for it.
                || (status == StatusCode::FORBIDDEN && method == Method::HEAD && !renewed && self.auth.has_expired(authorization.as_ref()).await?);
            if !expired && status != StatusCode::UNAUTHORIZED {
                return Err(error);
            }
            if renewed || !self.auth.refused(&answered, &scopes, authorization.as_ref()).await? {
                // With a token that is good, it is a right that is lacking.
                let granted = authorization.is_some() && self.auth.gives_tokens();
                let kind = if granted { ErrorKind::Denied } else { ErrorKind::CredentialsExpired };
                return Err(Error::new(kind, op, target).with_code("401").with_source(error));
            }
            if replay.is_none() {
                // The body is gone; the engine reads it anew.
                return Err(error.with_retry(Retry::Backoff));
            }
            renewed = true;
        }
    }

    /// Goes where a registry keeps what was asked for (R2): the login stays behind where that is another host.
    async fn follow(
        &self,
        (op, action, target): (Op, Action, &str),
        method: &Method,
        at: &mut Uri,
        headers: &HeaderMap,
        scopes: &BTreeSet<Scope>,
        mut answer: Answer,
    ) -> Result<Answer> {
        for _ in 0..MAX_HOPS {
            let Some(location) = answer.headers.get(header::LOCATION).and_then(|v| v.to_str().ok()) else {
                return Err(Error::new(ErrorKind::Unavailable, op, target).with_source("a redirection to nowhere"));
            };
            let to = self.resolve(at, location, op, target)?;
            let authorization = if self.is_own(&to) { self.auth.header(scopes).await? } else { None };
            answer = self.once((op, action, target), method, &to, headers, CallBody::Empty, authorization).await?;
            *at = to;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
        }
        Err(Error::new(ErrorKind::Unavailable, op, target).with_source(format!("more than {MAX_HOPS} redirections")))
    }

    /// Whether a URL is the registry's own, so that its login may be shown.
    fn is_own(&self, uri: &Uri) -> bool {
        let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let same_host = uri.host().is_some_and(|host| self.base.host().is_some_and(|own| own.eq_ignore_ascii_case(host)));
        same_host && uri.scheme() == self.base.scheme() && port(uri) == port(&self.base)
    }

    /// A location as RFC 3986 resolves it, as far as registries use that: a whole URL, or a path from the root.
    fn resolve(&self, at: &Uri, location: &str, op: Op, target: &str) -> Result<Uri> {
        // Not the whole of it: there may be a signature in it.
        let start: String = location.split(['?', '@']).next().unwrap_or_default().chars().take(200).collect();
        let invalid = |why: String| Error::new(ErrorKind::Unavailable, op, target).with_source(format!("the location `{start}…` {why}"));
        let text = if location.starts_with("http://") || location.starts_with("https://") {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{}://{rest}", at.scheme_str().unwrap_or("https"))
        } else if location.starts_with('/') {
            let authority = at.authority().map(http::uri::Authority::as_str).unwrap_or_default();
            format!("{}://{authority}{location}", at.scheme_str().unwrap_or("https"))
        } else {
            return Err(invalid("is relative".into()));
        };
        let uri: Uri = text.parse().map_err(|e| invalid(format!("is no URL: {e}")))?;
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(invalid("names a user".into()));
        }
        let host = uri.host().unwrap_or_default();
        let refused = |why: &str| Err(Error::new(ErrorKind::Denied, op, target).with_source(format!("it sends us to `{host}`, and {why}")));
        if self.base.host().is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            let plain = uri.scheme_str() == Some("http") && !self.insecure;
            return if plain { refused("without TLS: that is for registries that are declared `insecure`") } else { Ok(uri) };
        }
        let loopback =
            |host: &str| host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()) || host.eq_ignore_ascii_case("localhost");
        let neighbour = self.insecure && loopback(host) && self.base.host().is_some_and(loopback);
        if uri.scheme_str() != Some("https") && !neighbour {
            return refused("that is reached without TLS");
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let inside = bare.parse().is_ok_and(is_inside) || bare.eq_ignore_ascii_case("localhost");
        // What is no address and no name, resolvers may take for an address: `127.1`, `2852039166`, `0x7f.1`.
        let last = bare.rsplit('.').next().unwrap_or_default();
        let disguised = bare.parse::<std::net::IpAddr>().is_err() && last.starts_with(|c: char| c.is_ascii_digit());
        if (inside || disguised) && !neighbour {
            return refused("that is an address of this machine or its link");
        }
        Ok(uri)
    }

    async fn once(
        &self,
        (op, action, target): (Op, Action, &str),
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: CallBody,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer> {
        let (len, body): (u64, Body) = match body {
            CallBody::Empty => (0, body::full(Bytes::new())),
            CallBody::Chunks(chunks) => (chunks.iter().map(|c| c.len() as u64).sum(), body::chunks(chunks)),
            CallBody::Stream(len, stream) => (len, body::streamed(len, stream)),
        };
        let invalid = |why: Box<dyn std::error::Error + Send + Sync>| Error::new(ErrorKind::Invalid, op, target).with_source(why);
        let mut request = http::Request::builder().method(method).uri(uri).body(body).map_err(|e| invalid(e.into()))?;
        let out = request.headers_mut();
        out.clone_from(headers);
        let host = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        out.insert(header::HOST, HeaderValue::from_str(host).map_err(|e| invalid(e.into()))?);
        out.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some(authorization) = authorization {
            out.insert(header::AUTHORIZATION, authorization);
        }
        if *method == Method::PUT || *method == Method::POST || *method == Method::PATCH {
            out.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        }
        metrics::counter!("dth_registry_requests_total", "action" => action.name()).increment(1);
        let patience = body::time_to_send(len, self.idle);
        let (parts, body) = self.http.answer(request, op, target, patience).await?.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body, op, target: target.to_owned(), idle: self.idle })
    }
}

impl Answer {
    /// A header's text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The length that the answer announces.
    pub(crate) fn length(&self) -> Option<u64> {
        self.text("content-length")?.parse().ok()
    }

    /// The whole answer. `Invalid` when it is longer than `most`.
    pub(crate) async fn whole(self, most: u64) -> Result<Bytes> {
        let (op, target) = (self.op, self.target.clone());
        let too_long = || Error::new(ErrorKind::Invalid, op, target).with_source(format!("the answer is longer than {most} bytes"));
        if self.length().is_some_and(|len| len > most) {
            return Err(too_long());
        }
        body::gather(self.stream(), most).await?.map(Bytes::from).ok_or_else(too_long)
    }

    /// Reads and drops what there is to read, so that the connection can be used again. What is lost of it does not matter: the status
    /// has said that all is well.
    pub(crate) async fn done(self) {
        let _ = self.page().await;
    }

    async fn page(self) -> Result<Bytes> {
        Ok(body::gather(self.stream(), MAX_REFUSAL).await?.unwrap_or_default().into())
    }

    /// The body as it arrives.
    pub(crate) fn stream(self) -> ByteStream {
        body::read(self.body, self.op, self.target, Patience::idle(self.idle))
    }
}
