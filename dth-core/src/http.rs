//! One HTTP client for all protocols of the family: hyper over rustls, with the system's certificates and our own, through a proxy
//! where one is set.

pub mod body;
#[cfg(feature = "aws-http")]
mod sdk;

use crate::{
    error::{Error, ErrorKind, Op, Result},
    secret::Secret,
    settings::no_more_fields,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::{
            Client, ResponseFuture,
            connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Which proxy requests go through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Proxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in either case.
    #[default]
    #[serde(deserialize_with = "no_more_fields")]
    Environment,
    /// None, whatever the environment says.
    #[serde(deserialize_with = "no_more_fields")]
    None,
    /// This one.
    Url {
        /// `http(s)://host:port`.
        url: String,
        /// User for basic authentication.
        #[serde(default)]
        user: Option<String>,
        /// Its password.
        #[serde(default)]
        password: Option<Secret>,
        /// Hosts that are reached directly, as in `NO_PROXY`.
        #[serde(default)]
        no_proxy: Option<String>,
    },
}

/// A connection of a [`Connector`].
pub trait Transport: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Transport for T {}

/// Where connections come from, instead of TCP: a Unix socket, a tunnel, a simulated network.
#[async_trait]
pub trait Connector: fmt::Debug + Send + Sync {
    /// A connection to this host (an IPv6 address without brackets) and port; TLS, where the endpoint is `https`, is spoken over
    /// it. Proxies are not asked. Dropped when `connect_timeout_seconds` have passed.
    ///
    /// Those who are asked for credentials are not reached over it.
    async fn connect(&self, host: &str, port: u16) -> std::io::Result<Box<dyn Transport>>;
}

type Pool = Client<Deadline<HttpsConnector<Proxied>>, Body>;

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<String>,
    /// Which proxy requests go through.
    pub proxy: Proxy,
    /// Time for name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Where connections come from, if not from TCP.
    pub connector: Option<Arc<dyn Connector>>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { ca_file: None, proxy: Proxy::default(), connect_timeout: Duration::from_secs(10), connector: None }
    }
}

/// A client with a pool of connections. Clones share it. Redirects are answers, and not followed.
#[derive(Clone)]
pub struct Http {
    pool: Pool,
    proxies: Arc<Matcher>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// Makes a client; nothing is sent yet. `Invalid` when the certificates or the proxy cannot be used.
    pub fn new(settings: HttpSettings) -> Result<Self> {
        let HttpSettings { ca_file, proxy, connect_timeout, connector } = settings;
        let invalid = |why: BoxError| Error::new(ErrorKind::Invalid, Op::Configure, "TLS").with_source(why);
        let tls = tls(ca_file.as_deref()).map_err(invalid)?;
        let proxies = Arc::new(if connector.is_some() { Matcher::builder().build() } else { matcher(&proxy)? });
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let over_tls = |tls| hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let proxied =
            Proxied { to_proxy: over_tls(tls.clone()).wrap_connector(tcp.clone()), tcp, connector, proxies: Arc::clone(&proxies) };
        let https = over_tls(tls).wrap_connector(proxied);
        let pool = Client::builder(TokioExecutor::new())
            // Without a timer the idle timeout has no effect.
            .pool_timer(TokioTimer::new())
            // Below the 60 s and more at which servers close.
            .pool_idle_timeout(Duration::from_secs(20))
            .set_host(false)
            // Idle connections keep their buffers, 400 KiB each otherwise, in either direction; smaller ones make more calls of the kernel.
            .http1_max_buf_size(128 << 10)
            .build(Deadline { inner: https, time: connect_timeout });
        Ok(Self { pool, proxies })
    }

    /// Sends a request. Its `Host` header is the caller's to set; how long to wait for the answer, too.
    pub fn request(&self, mut request: http::Request<Body>) -> ResponseFuture {
        if let Some(login) = self.proxy_authorization(request.uri()) {
            request.headers_mut().insert("proxy-authorization", login);
        }
        self.pool.request(request)
    }

    /// As [`request`](Self::request), waited for: `Unavailable` where no answer comes in time, or the connection breaks; with
    /// `maybe_applied` where a change may have reached the server.
    pub async fn answer(
        &self,
        request: http::Request<Body>,
        op: Op,
        target: &str,
        patience: Duration,
    ) -> Result<http::Response<hyper::body::Incoming>> {
        let reads = request.method() == http::Method::GET || request.method() == http::Method::HEAD;
        let lost = |sent: bool| Error::new(ErrorKind::Unavailable, op, target).with_maybe_applied(sent && !reads);
        match tokio::time::timeout(patience, self.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let lost = lost(body::maybe_sent(&error));
                Err(match advice(&error) {
                    Some(advice) => lost.with_source(Advised { error, advice }),
                    None => lost.with_source(error),
                })
            }
            Err(_) => Err(lost(true).with_code("timeout").with_source(format!("no answer within {patience:?}"))),
        }
    }

    /// What a proxy wants to see on each request that it forwards; a tunnel is authorized when it is opened.
    fn proxy_authorization(&self, to: &http::Uri) -> Option<HeaderValue> {
        if to.scheme_str() != Some("http") {
            return None;
        }
        intercept(&self.proxies, to)?.basic_auth().cloned()
    }
}

/// The proxy for this destination. What is only on this machine's own link, as the metadata services of clouds are, is never
/// behind one.
fn intercept(proxies: &Matcher, to: &http::Uri) -> Option<Intercept> {
    let host = to.host()?.trim_start_matches('[').trim_end_matches(']');
    if host.parse().is_ok_and(is_link_local) { None } else { proxies.intercept(to) }
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>: 169.254.169.254 and fd00:ec2::254.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0x0ec2],
    }
}

fn matcher(proxy: &Proxy) -> Result<Matcher> {
    let (url, user, password, no_proxy) = match proxy {
        Proxy::Environment => return Ok(Matcher::from_env()),
        Proxy::None => return Ok(Matcher::builder().build()),
        Proxy::Url { url, user, password, no_proxy } => (url, user, password, no_proxy),
    };
    let invalid = |why: String| Error::new(ErrorKind::Invalid, Op::Configure, "proxy.url").with_source(why);
    if url.contains('@') {
        // Not repeated: there may be a password in it.
        return Err(invalid("user and password belong into `proxy.user` and `proxy.password`".into()));
    }
    let uri: http::Uri = url.parse().map_err(|e| invalid(format!("`{url}`: {e}")))?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid(format!("`{url}` is not of the form http(s)://host:port")));
    };
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let login = user.as_ref().map(|user| format!("{}:{}@", encode(user), encode(password.as_ref().map_or("", Secret::expose))));
    let all = format!("{scheme}://{}{authority}", login.unwrap_or_default());
    let builder = Matcher::builder().all(all);
    Ok(match no_proxy {
        Some(hosts) => builder.no(hosts.clone()).build(),
        None => builder.build(),
    })
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Connects directly, or to a proxy, as the destination wants it.
#[derive(Clone)]
struct Proxied {
    connector: Option<Arc<dyn Connector>>,
    tcp: HttpConnector,
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Arc<Matcher>,
}

/// A connection; over a forwarding proxy, requests name the whole URL.
struct MaybeProxied {
    io: Io,
    forwarded: bool,
}

#[expect(clippy::large_enum_variant, reason = "the large one is the common one")]
enum Io {
    Tcp(MaybeHttpsStream<TokioIo<tokio::net::TcpStream>>),
    Custom(TokioIo<Box<dyn Transport>>),
}

impl Service<http::Uri> for Proxied {
    type Response = MaybeProxied;
    type Error = BoxError;
    type Future = Connecting<MaybeProxied>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: http::Uri) -> Self::Future {
        if let Some(connector) = self.connector.clone() {
            return Box::pin(async move {
                let port = to.port_u16().unwrap_or(if to.scheme_str() == Some("https") { 443 } else { 80 });
                let host = to.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
                let io = connector.connect(host, port).await?;
                Ok(MaybeProxied { io: Io::Custom(TokioIo::new(io)), forwarded: false })
            });
        }
        let tcp = |io, forwarded| MaybeProxied { io: Io::Tcp(io), forwarded };
        let Some(proxy) = intercept(&self.proxies, &to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { Ok(tcp(MaybeHttpsStream::Http(connecting.await?), false)) });
        };
        if !matches!(proxy.uri().scheme_str(), Some("http" | "https")) {
            return Box::pin(async { Err("only http and https proxies are supported".into()) });
        }
        if to.scheme_str() == Some("https") {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy.clone());
            if let Some(login) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(login.clone());
            }
            let connecting = tunnel.call(to);
            Box::pin(async move { Ok(tcp(connecting.await?, false)) })
        } else {
            let connecting = self.to_proxy.call(proxy.uri().clone());
            Box::pin(async move { Ok(tcp(connecting.await?, true)) })
        }
    }
}

impl Connection for MaybeProxied {
    fn connected(&self) -> Connected {
        match &self.io {
            Io::Tcp(io) => io.connected().proxy(self.forwarded),
            Io::Custom(_) => Connected::new(),
        }
    }
}

/// Does the same with either kind of connection.
macro_rules! io {
    ($self:ident, $io:ident => $does:expr) => {
        match &mut $self.io {
            Io::Tcp($io) => $does,
            Io::Custom($io) => $does,
        }
    };
}

impl hyper::rt::Read for MaybeProxied {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: hyper::rt::ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        io!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl hyper::rt::Write for MaybeProxied {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        io!(self, io => Pin::new(io).poll_write(cx, bytes))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        io!(self, io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        io!(self, io => Pin::new(io).poll_shutdown(cx))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Custom(io) => io.is_write_vectored(),
        }
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, all: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        io!(self, io => Pin::new(io).poll_write_vectored(cx, all))
    }
}

/// An error of TLS, and the way out.
#[derive(Debug)]
struct Advised {
    error: hyper_util::client::legacy::Error,
    advice: &'static str,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.advice)
    }
}

impl std::error::Error for Advised {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(next) = cause {
        match next.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                return Some("name the authority that its certificate is of with `ca_file`");
            }
            Some(rustls::Error::InvalidMessage(_)) => return Some("the server does not speak TLS"),
            _ => {}
        }
        // The source of an `io::Error` is that of what it carries.
        let carried = next.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = carried.map(|e| e as _).or_else(|| next.source());
    }
    None
}

fn tls(ca_file: Option<&str>) -> Result<rustls::ClientConfig, BoxError> {
    let mut roots = system_roots();
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(|e| format!("ca_file = {path}: {e}"))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.map_err(|e| format!("ca_file = {path}: {e}"))?)?;
            found += 1;
        }
        if found == 0 {
            return Err(format!("ca_file = {path}: no certificate in it").into());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The certificates that the system trusts, read once: a service may make a client for each of many buckets.
fn system_roots() -> rustls::RootCertStore {
    static SYSTEM: OnceLock<rustls::RootCertStore> = OnceLock::new();
    if let Some(known) = SYSTEM.get() {
        return known.clone();
    }
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if loaded.errors.is_empty() && !roots.is_empty() {
        return SYSTEM.get_or_init(|| roots).clone();
    }
    // The next client may find them whole.
    for error in loaded.errors {
        tracing::warn!(%error, "cannot read a certificate of the system");
    }
    roots
}

/// A deadline for name resolution, TCP and TLS together.
#[derive(Clone)]
struct Deadline<C> {
    inner: C,
    time: Duration,
}

impl<C> Service<http::Uri> for Deadline<C>
where
    C: Service<http::Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Connecting<C::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let (connecting, time) = (self.inner.call(uri), self.time);
        Box::pin(async move {
            match tokio::time::timeout(time, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time").into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_are_never_behind_a_proxy() {
        let proxies = Matcher::builder().all("http://proxy:3128").build();
        for direct in
            ["http://169.254.169.254/latest/meta-data", "http://169.254.170.2/v2", "http://[fd00:ec2::254]/", "http://[fe80::1]:80/"]
        {
            assert!(intercept(&proxies, &direct.parse().unwrap()).is_none(), "{direct}");
        }
        for proxied in ["http://169.255.0.1/", "https://sqs.eu-west-1.amazonaws.com/", "http://[2001:db8::1]/", "http://127.0.0.1:9000/"] {
            assert!(intercept(&proxies, &proxied.parse().unwrap()).is_some(), "{proxied}");
        }
    }
}
