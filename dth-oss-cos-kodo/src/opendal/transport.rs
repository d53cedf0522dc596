//! The HTTP client of the family for services of OpenDAL: one stack, with its proxies, certificates and time-outs.

use ::opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport, HttpTransporter, OperationContext, Operator, Result};
use dth_core::{
    error::Op,
    http::{
        Http,
        body::{self, Patience},
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, Method, Request, Response, header};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Time without a byte after which an answer is given up.
const IDLE: Duration = Duration::from_secs(60);

/// An operator whose service speaks HTTP by this client. Redirects are answers, and not followed.
pub fn over_http(operator: Operator, http: Http) -> Operator {
    operator.with_context(OperationContext::new().with_http_transport(HttpTransporter::new(OverHttp(http))))
}

struct OverHttp(Http);

fn lost(error: dth_core::error::Error) -> Error {
    let temporary = error.is_retryable();
    Error::new(ErrorKind::Unexpected, error.to_string()).with_temporary(temporary).set_source(error)
}

impl HttpTransport for OverHttp {
    async fn fetch(&self, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        let (mut parts, buffer) = request.into_parts();
        let (uri, is_head) = (parts.uri.clone(), parts.method == Method::HEAD);
        let host = uri.authority().ok_or_else(|| Error::new(ErrorKind::Unexpected, "the request names no host"))?;
        let host = HeaderValue::from_str(host.as_str()).map_err(|e| Error::new(ErrorKind::Unexpected, "host").set_source(e))?;
        parts.headers.entry(header::HOST).or_insert(host);
        let len = buffer.len() as u64;
        if parts.method == Method::PUT || parts.method == Method::POST {
            // hyper leaves it out for an empty body.
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        }
        let request = Request::from_parts(parts, body::chunks(Iterator::collect(buffer)));
        // Neither name is seen by anybody: the service tells what it did to what.
        let answer = self.0.answer(request, Op::Read, "service", body::time_to_send(len, IDLE)).await.map_err(lost)?;
        let (mut parts, incoming) = answer.into_parts();
        let has_length = !is_head && !parts.headers.contains_key(header::CONTENT_ENCODING);
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).filter(|_| has_length);
        parts.extensions.insert(uri);
        let bytes = body::read(incoming, Op::Read, "service".into(), Patience::idle(IDLE)).map_ok(Buffer::from).map_err(lost);
        // Asked by one at a time, which OpenDAL wants to see in the type.
        let mut alone = Mutex::new(bytes);
        let stream = stream::poll_fn(move |cx| alone.get_mut().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx));
        Ok(Response::from_parts(parts, HttpBody::new(stream, length)))
    }
}
