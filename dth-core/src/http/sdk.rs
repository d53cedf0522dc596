//! The family's client as that of the AWS SDKs: one set of proxies and certificates serves all.

use super::{Body, BoxError, Http};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    shared::IntoShared,
};
use aws_smithy_types::body::SdkBody;
use http::{HeaderValue, Request, header::HOST};
use http_body_util::BodyExt;
use std::time::Duration;

impl Http {
    /// A client for `aws_config::ConfigLoader::http_client`. The connect timeout is that of this client, not the SDK's.
    pub fn for_sdk(&self) -> SharedHttpClient {
        Sdk(self.clone()).into_shared()
    }
}

#[derive(Debug)]
struct Sdk(Http);

impl HttpClient for Sdk {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        Caller { http: self.0.clone(), patience: settings.read_timeout() }.into_shared()
    }
}

#[derive(Debug)]
struct Caller {
    http: Http,
    /// From the request to the head of its answer.
    patience: Option<Duration>,
}

impl HttpConnector for Caller {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (http, patience) = (self.http.clone(), self.patience);
        HttpConnectorFuture::new(async move {
            let answer = http.request(ours(request).map_err(ConnectorError::user)?);
            let answer = match patience {
                Some(patience) => tokio::time::timeout(patience, answer).await.map_err(|late| ConnectorError::timeout(late.into()))?,
                None => answer.await,
            };
            // Whether it was sent or not, nobody looks closer: what fails here is tried again.
            let answer = answer.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x)).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn ours(request: HttpRequest) -> Result<Request<Body>, BoxError> {
    let mut request = request.try_into_http1x()?;
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
    {
        let host = HeaderValue::from_str(authority.as_str())?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(request.map(BodyExt::boxed_unsync))
}
