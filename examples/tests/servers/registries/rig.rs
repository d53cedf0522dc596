//! What stands before a real registry: faults, and a **referrers API of ours**, because no registry that has one can be installed
//! here. It is made by the distribution specification 1.1, section "Listing Referrers"; everything else is the registry behind it.

use super::{
    images::{OCI_INDEX, digest},
    server::{Certificate, DockerRegistry},
};
use bytes::Bytes;
use dth_core::{
    http::{Body, Http, HttpSettings, Proxy, body},
    scope::TaskScope,
};
use dth_ecr::RegistryConfig;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The registry of the account that ministack has.
pub(crate) const ECR_HOST: &str = "000000000000.dkr.ecr.us-east-1.amazonaws.com";

/// `AWS:ministack-auth-token`, which its API gives out.
pub(crate) const ECR_LOGIN: &str = "Basic QVdTOm1pbmlzdGFjay1hdXRoLXRva2Vu";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request as it came.
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// Which bytes it says that it brings.
    pub(crate) content_range: Option<String>,
    /// What it wants of an API of AWS.
    pub(crate) target: String,
}

/// What happens to it, instead of being passed on and answered.
pub(crate) enum Act {
    Pass,
    /// Answered here.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// The answer breaks off behind so many bytes.
    Cut(usize),
    /// The request breaks off behind so many bytes, on either side.
    CutRequest(usize),
    /// A bit of the answer's body is another one.
    Flip(usize),
    /// Something happens first.
    After(BoxFuture<'static, ()>),
    /// The answer comes in pieces of 64 KiB with this pause before each.
    Slowly(Duration),
    /// It is done, and the answer is lost.
    Lose,
    /// The body of the answer is another one.
    Edit(fn(&mut Value)),
}

type Hook = dyn Fn(&Asked) -> Act + Send + Sync;

struct State {
    to: String,
    http: Http,
    referrers: bool,
    known: Mutex<BTreeMap<(String, String), Vec<Value>>>,
    log: Mutex<Vec<String>>,
    hook: Box<Hook>,
}

/// A proxy before a registry; it stops when this is dropped.
pub(crate) struct Rig {
    pub(crate) host: String,
    state: Arc<State>,
    _tasks: TaskScope,
}

impl Rig {
    pub(crate) async fn before(registry: &DockerRegistry, hook: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::before_host(&registry.host, hook).await
    }

    pub(crate) async fn before_host(host: &str, hook: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::start(host, false, Box::new(hook), None).await
    }

    /// With the API.
    pub(crate) async fn with_referrers(registry: &DockerRegistry) -> Self {
        Self::start(&registry.host, true, Box::new(|_| Act::Pass), None).await
    }

    /// What stands before the registry of an emulated Amazon ECR, so that it is reached as that of Amazon is: by its own name
    /// (this is a proxy that leads there and nowhere else), over TLS, and with a login.
    pub(crate) async fn as_ecr(emulator: &str) -> (Self, Certificate) {
        Self::as_ecr_that(emulator, |_| Act::Pass).await
    }

    pub(crate) async fn as_ecr_that(emulator: &str, hook: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Self, Certificate) {
        let certificate = Certificate::of(&[ECR_HOST]);
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(certificate.of_server()));
        let hook = move |asked: &Asked| {
            if asked.authorization.as_deref() == Some(ECR_LOGIN) {
                return hook(asked);
            }
            let challenge = format!("Basic realm=\"https://{ECR_HOST}/\",service=\"ecr.amazonaws.com\"");
            Act::Answer(401, vec![("www-authenticate", challenge)], "Not Authorized\n")
        };
        (Self::start(emulator, false, Box::new(hook), Some(tls)).await, certificate)
    }

    async fn start(to: &str, referrers: bool, hook: Box<Hook>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let http = Http::new(HttpSettings { proxy: Proxy::None, ..HttpSettings::default() }).unwrap();
        let state = Arc::new(State { to: to.to_owned(), http, referrers, known: Mutex::default(), log: Mutex::default(), hook });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let mut tasks = TaskScope::new();
        let serving = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = TaskScope::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let state = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let state = Arc::clone(&state);
                    async move { state.serve(request).await.map_err(std::io::Error::other) }
                });
                let tls = tls.clone();
                connections.spawn(async move {
                    let server = http1::Builder::new().timer(TokioTimer::new()).clone();
                    match tls {
                        None => drop(server.serve_connection(TokioIo::new(socket), service).await),
                        Some(tls) => {
                            if let Some(tunnel) = tunnel(socket).await
                                && let Ok(inner) = tls.accept(tunnel).await
                            {
                                drop(server.serve_connection(TokioIo::new(inner), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { host, state, _tasks: tasks }
    }

    /// Method and path of all that was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.log.lock().unwrap())
    }

    pub(crate) fn config(&self) -> RegistryConfig {
        RegistryConfig { registry: self.host.clone(), insecure: true, ..RegistryConfig::default() }
    }
}

/// Answers the request for a tunnel, if it is to where this one leads.
async fn tunnel(mut socket: TcpStream) -> Option<TcpStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok().filter(|_| head.len() < 4096)?);
    }
    let known = head.starts_with(format!("CONNECT {ECR_HOST}:443 ").as_bytes());
    let answer: &[u8] = if known { b"HTTP/1.1 200 OK\r\n\r\n" } else { b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n" };
    socket.write_all(answer).await.ok()?;
    Some(socket).filter(|_| known)
}

impl State {
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap_or_default().to_owned());
        let target = header("x-amz-target").and_then(|target| target.rsplit('.').next().map(str::to_owned)).unwrap_or_default();
        let (authorization, content_range) = (header("authorization"), header("content-range"));
        let asked = Asked { method: request.method().to_string(), path: path.clone(), authorization, content_range, target };
        self.log.lock().unwrap().push(format!("{} {}", asked.method, asked.path));
        let act = (self.hook)(&asked);
        if let Act::Answer(status, headers, text) = act {
            // Read first: whoever answers before that may break the connection under its answer.
            let mut body = request.into_body().into_data_stream();
            while let Some(Ok(_)) = body.next().await {}
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(name, value);
            }
            return Ok(answer.body(body::full(Bytes::from_static(text.as_bytes())))?);
        }
        if let Act::After(first) = act {
            first.await;
            return self.pass(request, &path, Act::Pass).await;
        }
        let names = path.split_once("/referrers/").filter(|_| self.referrers);
        if let Some((name, subject)) = names {
            return self.list(name.trim_start_matches("/v2/"), subject);
        }
        if self.referrers && asked.method == "PUT" && path.contains("/manifests/") {
            return self.put_manifest(request, &path).await;
        }
        self.pass(request, &path, act).await
    }

    /// One in a page, so that pages are followed.
    fn list(&self, name: &str, subject: &str) -> Result<Response<Body>, BoxError> {
        let (subject, query) = subject.split_once('?').unwrap_or((subject, ""));
        let at: usize = query.strip_prefix("at=").and_then(|n| n.parse().ok()).unwrap_or(0);
        let all = self.known.lock().unwrap().get(&(name.to_owned(), subject.to_owned())).cloned().unwrap_or_default();
        let page: Vec<&Value> = all.iter().skip(at).take(1).collect();
        let mut answer = Response::builder().header("content-type", OCI_INDEX);
        if at + 1 < all.len() {
            answer = answer.header("link", format!("</v2/{name}/referrers/{subject}?at={}>; rel=\"next\"", at + 1));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page });
        Ok(answer.body(body::full(index.to_string().into()))?)
    }

    async fn put_manifest(&self, request: Request<Incoming>, path: &str) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let mut answer = self.forward(Request::from_parts(parts, body::full(bytes.clone())), path).await?.map(into_body);
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if let Some(subject) = manifest["subject"]["digest"].as_str().filter(|_| answer.status() == StatusCode::CREATED) {
            let name = path.split_once("/manifests/").map(|(name, _)| name.trim_start_matches("/v2/").to_owned()).unwrap_or_default();
            let mut descriptor = json!({ "mediaType": manifest["mediaType"], "digest": digest(&bytes), "size": bytes.len() });
            for field in ["artifactType", "annotations"] {
                if !manifest[field].is_null() {
                    descriptor[field] = manifest[field].clone();
                }
            }
            let mut known = self.known.lock().unwrap();
            let list = known.entry((name, subject.to_owned())).or_default();
            if list.iter().all(|other| other["digest"] != descriptor["digest"]) {
                list.push(descriptor);
            }
            answer.headers_mut().insert("oci-subject", subject.parse()?);
        }
        Ok(answer)
    }

    async fn forward(&self, mut request: Request<Body>, path: &str) -> Result<Response<Incoming>, BoxError> {
        *request.uri_mut() = format!("http://{}{path}", self.to).parse()?;
        // The registry makes its locations of the host that it was asked by: that stays this one.
        Ok(self.http.request(request).await?)
    }

    async fn pass(&self, request: Request<Incoming>, path: &str, act: Act) -> Result<Response<Body>, BoxError> {
        let (parts, incoming) = request.into_parts();
        let cut = matches!(act, Act::CutRequest(_));
        let sent: Body = match act {
            Act::CutRequest(at) => {
                let frames = cut_after(incoming, at);
                http_body_util::StreamBody::new(frames).boxed_unsync()
            }
            _ => into_body(incoming),
        };
        let answer = self.forward(Request::from_parts(parts, sent), path).await?;
        if cut || matches!(act, Act::Lose) {
            return Err("cut".into());
        }
        let (mut parts, incoming) = answer.into_parts();
        let body: Body = match act {
            Act::Edit(edit) => {
                let mut all: Value = serde_json::from_slice(&incoming.collect().await?.to_bytes())?;
                edit(&mut all);
                parts.headers.remove("content-length");
                body::full(all.to_string().into())
            }
            Act::Cut(at) => http_body_util::StreamBody::new(cut_after(incoming, at)).boxed_unsync(),
            Act::Flip(at) => {
                let mut left = at;
                let frames = incoming.into_data_stream().map(move |chunk| {
                    let mut chunk = chunk.map_err(BoxError::from)?.to_vec();
                    if left < chunk.len() {
                        chunk[left] ^= 1;
                        left = usize::MAX;
                    } else if left != usize::MAX {
                        left -= chunk.len();
                    }
                    Ok::<_, BoxError>(hyper::body::Frame::data(Bytes::from(chunk)))
                });
                http_body_util::StreamBody::new(frames).boxed_unsync()
            }
            Act::Slowly(pause) => {
                let pieces = incoming.into_data_stream().flat_map(|chunk| match chunk {
                    Ok(chunk) => stream::iter(
                        (0..chunk.len())
                            .step_by(64 << 10)
                            .map(|at| Ok(chunk.slice(at..chunk.len().min(at + (64 << 10)))))
                            .collect::<Vec<_>>(),
                    ),
                    Err(error) => stream::iter(vec![Err(BoxError::from(error))]),
                });
                let frames = pieces.then(move |piece| async move {
                    tokio::time::sleep(pause).await;
                    piece.map(hyper::body::Frame::data)
                });
                http_body_util::StreamBody::new(frames).boxed_unsync()
            }
            _ => into_body(incoming),
        };
        Ok(Response::from_parts(parts, body))
    }
}

fn into_body(incoming: Incoming) -> Body {
    incoming.map_err(BoxError::from).boxed_unsync()
}

fn cut_after(incoming: Incoming, at: usize) -> impl futures_util::Stream<Item = Result<hyper::body::Frame<Bytes>, BoxError>> {
    let mut left = at;
    incoming.into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(BoxError::from)?;
        if left == 0 {
            return Err("cut".into());
        }
        let chunk = chunk.slice(..chunk.len().min(left));
        left -= chunk.len();
        Ok(hyper::body::Frame::data(chunk))
    })
}
