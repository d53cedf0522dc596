//! One HTTP client: hyper over rustls, with the system's certificates and our own.

use bytes::Bytes;
use dth_core::error::{Error, ErrorKind, Op, Result};
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_service::Service;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type HttpBody = UnsyncBoxBody<Bytes, BoxError>;
pub(super) type Http = Client<Deadline<HttpsConnector<HttpConnector>>, HttpBody>;

/// A client that trusts the system's certificates and those of `ca_file`.
pub(super) fn client(ca_file: Option<&str>, connect_timeout: Duration) -> Result<Http> {
    let invalid = |why: BoxError| Error::new(ErrorKind::Invalid, Op::Configure, "TLS").with_source(why);
    let tls = tls(ca_file).map_err(invalid)?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        // Without a timer the idle timeout has no effect.
        .pool_timer(TokioTimer::new())
        // Below the 60 s and more at which servers close.
        .pool_idle_timeout(Duration::from_secs(20))
        .set_host(false)
        .build(Deadline { inner: https, time: connect_timeout }))
}

fn tls(ca_file: Option<&str>) -> Result<rustls::ClientConfig, BoxError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
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

/// A deadline for name resolution, TCP and TLS together.
#[derive(Clone)]
pub(super) struct Deadline<C> {
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
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

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
