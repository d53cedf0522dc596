//! Notices as HTTP requests.

use super::{Notice, Notifier};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    http::{Http, body},
    secret::Secret,
};
use async_trait::async_trait;
use http::{
    Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST},
};
use std::fmt;

/// Posts the JSON form of each notice to a URL. `text` is in it, which is what chat services show.
///
/// Redirects are not followed. The URL is a secret: of many services it is all that one needs to write there.
#[derive(Clone)]
pub struct Webhook {
    http: Http,
    url: Secret,
    /// Scheme and host, for errors.
    place: String,
    bearer: Option<Secret>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({})", self.place)
    }
}

impl Webhook {
    /// Posts to this URL. `Invalid` when it is none.
    pub fn new(url: Secret, http: Http) -> Result<Self> {
        let invalid =
            || Error::new(ErrorKind::Invalid, Op::Configure, "webhook").with_source("its URL is not of the form http(s)://host/…");
        let uri: Uri = url.expose().parse().map_err(|_| invalid())?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(invalid()) };
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(
                Error::new(ErrorKind::Invalid, Op::Configure, "webhook").with_source("a user or password does not belong into its URL")
            );
        }
        let place = format!("{scheme}://{host}");
        Ok(Self { http, url, place, bearer: None })
    }

    /// Sends `Authorization: Bearer …`.
    pub fn with_bearer(mut self, token: Secret) -> Self {
        self.bearer = Some(token);
        self
    }
}

#[async_trait]
impl Notifier for Webhook {
    async fn notify(&self, notice: &Notice) -> Result<()> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, Op::Notify, &self.place).with_source(why);
        let body = serde_json::to_vec(notice).map_err(|e| invalid(e.to_string()))?;
        let uri: Uri = self.url.expose().parse().map_err(|_| invalid("not a URL".into()))?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::post(uri).header(HOST, host).header(CONTENT_TYPE, "application/json").header(CONTENT_LENGTH, body.len());
        if let Some(token) = &self.bearer {
            let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| invalid("its token is no header value".into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(body::full(body.into())).map_err(|e| invalid(e.to_string()))?;
        let answer = self
            .http
            .request(request)
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, Op::Notify, &self.place).with_maybe_applied(true).with_source(e))?;
        let status = answer.status();
        let kind = match status {
            s if s.is_success() => return Ok(()),
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Throttled,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
            StatusCode::REQUEST_TIMEOUT => ErrorKind::Unavailable,
            s if s.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        let why = if status.is_redirection() { "redirects are not followed: name the place itself" } else { "it refused the notice" };
        Err(Error::new(kind, Op::Notify, &self.place).with_code(status.as_u16().to_string()).with_source(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::HttpSettings, notify::Happened, scope::TaskScope, state::RunId};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers each connection with the next of these, and keeps what was asked.
    async fn server(answers: &'static [&'static str]) -> (String, TaskScope, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/hook/canary", listener.local_addr().unwrap());
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let (mut scope, kept) = (TaskScope::new(), seen.clone());
        scope.spawn(async move {
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"}") {
                    let mut some = [0; 4096];
                    let n = socket.read(&mut some).await.unwrap();
                    asked.extend_from_slice(&some[..n]);
                }
                kept.lock().unwrap().push(String::from_utf8(asked).unwrap());
                let text = format!("HTTP/1.1 {answer}\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                socket.write_all(text.as_bytes()).await.unwrap();
            }
        });
        (url, scope, seen)
    }

    #[tokio::test]
    async fn a_notice_is_posted_and_refusals_are_told_apart() {
        let (url, _scope, seen) = server(&["204 No Content", "429 Too Many Requests", "503 Busy", "302 Found", "403 Forbidden"]).await;
        let http = Http::new(HttpSettings { proxy: crate::http::Proxy::None, ..HttpSettings::default() }).unwrap();
        let hook = Webhook::new(Secret::new(url), http).unwrap().with_bearer(Secret::new("canary-token"));
        let happened = Happened::FinderFailed { run: RunId::new("r"), cause: "denied".into() };
        let notice = Notice::new("photos", jiff::Timestamp::UNIX_EPOCH, happened);
        hook.notify(&notice).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..4 {
            let error = hook.notify(&notice).await.unwrap_err();
            let told = format!("{} {hook:?}", error.chain());
            assert!(!told.contains("canary"), "{told}");
            kinds.push(error.kind());
        }
        assert_eq!(kinds, [ErrorKind::Throttled, ErrorKind::Unavailable, ErrorKind::Invalid, ErrorKind::Denied]);
        let seen = seen.lock().unwrap();
        assert!(seen[0].starts_with("POST /hook/canary HTTP/1.1") && seen[0].contains("Bearer canary-token"), "{}", seen[0]);
        let body: serde_json::Value = serde_json::from_str(seen[0].split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((body["task"].as_str(), body["kind"].as_str()), (Some("photos"), Some("finder_failed")));
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_being_told() {
        let http = Http::new(HttpSettings::default()).unwrap();
        for bad in ["", "canary", "ftp://host/canary", "http://user:canary@host/", "/canary"] {
            let error = Webhook::new(Secret::new(bad), http.clone()).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && !error.chain().contains("canary"), "{}", error.chain());
        }
    }
}
