//! A reverse proxy that makes one answer, or one request, go wrong. It passes on requests as they are, `Host` included, so that
//! signatures stay valid at the server behind it.

use dth_core::scope::TaskScope;
use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};

/// What can be asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    ListObjectsV2,
    HeadObject,
    GetObject,
    GetObjectRange,
    GetObjectTagging,
    PutObject,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    ListMultipartUploads,
    DeleteObject,
    CopyObject,
}

impl Operation {
    pub(crate) const ALL: [Self; 14] = [
        Self::ListObjectsV2,
        Self::HeadObject,
        Self::GetObject,
        Self::GetObjectRange,
        Self::GetObjectTagging,
        Self::PutObject,
        Self::CreateMultipartUpload,
        Self::UploadPart,
        Self::CompleteMultipartUpload,
        Self::AbortMultipartUpload,
        Self::ListParts,
        Self::ListMultipartUploads,
        Self::DeleteObject,
        Self::CopyObject,
    ];

    /// Answers with an XML document when all is well.
    pub(crate) fn answers_a_document(self) -> bool {
        use Operation::*;
        matches!(self, ListObjectsV2 | GetObjectTagging | CreateMultipartUpload | CompleteMultipartUpload | ListParts)
            || matches!(self, ListMultipartUploads | CopyObject)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Refuse,
    ResetBeforeSend,
    ResetAfterApplied,
    ResetInAnswer,
    TruncateAndClose,
    Stall,
    OneByteASecond,
    RequestTimeout,
    ExpiredToken,
    ClockSkewed,
    NotFoundOnce,
    Conflict,
    Precondition,
    TooManyRequests,
    InternalError,
    SlowDown,
    ErrorIn200,
    MalformedDocument,
    WrongLength,
    BitFlip,
    WrongEtag,
    Duplicate,
    DelayedApply,
    Redirect,
    /// No fault: S3 answers 200 at once, and drips white space while it assembles or copies.
    LongWork,
    /// 200 with the page of some gateway; nothing is done.
    ForeignPage,
}

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::Refuse,
        Self::ResetBeforeSend,
        Self::ResetAfterApplied,
        Self::ResetInAnswer,
        Self::TruncateAndClose,
        Self::Stall,
        Self::OneByteASecond,
        Self::RequestTimeout,
        Self::ExpiredToken,
        Self::ClockSkewed,
        Self::NotFoundOnce,
        Self::Conflict,
        Self::Precondition,
        Self::TooManyRequests,
        Self::InternalError,
        Self::SlowDown,
        Self::ErrorIn200,
        Self::MalformedDocument,
        Self::WrongLength,
        Self::BitFlip,
        Self::WrongEtag,
        Self::Duplicate,
        Self::DelayedApply,
        Self::Redirect,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Refuse => "connection refused",
            Self::ResetBeforeSend => "reset before the request went on",
            Self::ResetAfterApplied => "reset after it was applied",
            Self::ResetInAnswer => "reset in the middle of the answer",
            Self::TruncateAndClose => "answer cut, connection closed",
            Self::Stall => "answer stalls in the middle",
            Self::OneByteASecond => "one byte a second, for half a minute",
            Self::RequestTimeout => "400 RequestTimeout",
            Self::ExpiredToken => "403 ExpiredToken",
            Self::ClockSkewed => "403 RequestTimeTooSkewed",
            Self::NotFoundOnce => "404",
            Self::Conflict => "409 ConditionalRequestConflict",
            Self::Precondition => "412 PreconditionFailed",
            Self::TooManyRequests => "429, Retry-After: 1",
            Self::InternalError => "500 InternalError",
            Self::SlowDown => "503 SlowDown",
            Self::ErrorIn200 => "200 with an <Error>",
            Self::MalformedDocument => "malformed XML",
            Self::WrongLength => "wrong Content-Length",
            Self::BitFlip => "bit flipped",
            Self::WrongEtag => "wrong etag",
            Self::Duplicate => "request delivered twice",
            Self::DelayedApply => "reset, applied three seconds later",
            Self::Redirect => "redirect to another host",
            Self::LongWork => "white space for some seconds, then the answer",
            Self::ForeignPage => "200 with a page of a gateway",
        }
    }

    /// The answer that stands for the store's, with nothing done.
    fn refusal(self, operation: Operation, elsewhere: &str) -> Option<Answer> {
        let upload = matches!(operation, Operation::UploadPart | Operation::CompleteMultipartUpload)
            || matches!(operation, Operation::AbortMultipartUpload | Operation::ListParts);
        let (status, code) = match self {
            Self::RequestTimeout => ("400 Bad Request", "RequestTimeout"),
            Self::ExpiredToken => ("403 Forbidden", "ExpiredToken"),
            Self::ClockSkewed => ("403 Forbidden", "RequestTimeTooSkewed"),
            Self::NotFoundOnce if upload => ("404 Not Found", "NoSuchUpload"),
            Self::NotFoundOnce => ("404 Not Found", "NoSuchKey"),
            Self::Conflict => ("409 Conflict", "ConditionalRequestConflict"),
            Self::Precondition => ("412 Precondition Failed", "PreconditionFailed"),
            Self::TooManyRequests => ("429 Too Many Requests", "TooManyRequests"),
            Self::InternalError => ("500 Internal Server Error", "InternalError"),
            Self::SlowDown => ("503 Service Unavailable", "SlowDown"),
            Self::ErrorIn200 => ("200 OK", "InternalError"),
            Self::Redirect => ("307 Temporary Redirect", "TemporaryRedirect"),
            Self::ForeignPage => ("200 OK", ""),
            _ => return None,
        };
        let body = if operation == Operation::HeadObject {
            String::new()
        } else if self == Self::ForeignPage {
            "<!DOCTYPE html><html><p>Sign in & go on<br></html>".to_owned()
        } else {
            format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>")
        };
        let mut answer = Answer { status: status.into(), headers: Vec::new(), body: body.into_bytes() };
        answer.set("content-type", "application/xml");
        if self == Self::TooManyRequests {
            answer.set("retry-after", "1");
        }
        if self == Self::Redirect {
            answer.set("location", elsewhere);
        }
        answer.set("content-length", &answer.body.len().to_string());
        Some(answer)
    }
}

/// An answer as it goes over the wire.
struct Answer {
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = head_end(bytes)?;
        let head = std::str::from_utf8(&bytes[..end - 4]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split_once(' ')?.1.to_owned();
        let mut answer = Self { status, headers: Vec::new(), body: bytes[end..].to_vec() };
        for line in lines {
            let (name, value) = line.split_once(':')?;
            answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        // An answer to HEAD tells of a body that is not there.
        if !answer.body.is_empty() && answer.get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            answer.body = dechunk(&answer.body)?;
            answer.headers.retain(|(name, _)| name != "transfer-encoding");
            answer.set("content-length", &answer.body.len().to_string());
        }
        Some(answer)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.into(), value.into()));
    }

    fn head(&self) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {}\r\n", self.status);
        for (name, value) in self.headers.iter().filter(|(name, _)| name != "connection") {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        out.push_str("connection: close\r\n\r\n");
        out.into_bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head(), self.body.clone()].concat()
    }
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

struct Request {
    head: String,
    operation: Option<Operation>,
    body: Vec<u8>,
}

impl Request {
    async fn read(socket: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = head_end(&bytes) {
                break end;
            }
            if socket.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end - 4].to_vec()).ok()?;
        let mut body = bytes[end..].to_vec();
        let len: usize = header(&head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        while body.len() < len {
            if socket.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
        Some(Self { operation: operation(&head), head, body })
    }

    /// Asks the server, on a connection of its own.
    async fn forward(&self, to: &str, body: &[u8]) -> std::io::Result<Answer> {
        let mut server = TcpStream::connect(to).await?;
        let head = format!("{}\r\nconnection: close\r\n\r\n", self.head);
        server.write_all(head.as_bytes()).await?;
        server.write_all(body).await?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await?;
        Answer::parse(&answer).ok_or_else(|| std::io::Error::other("the server gave no whole answer"))
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).filter_map(|l| l.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

fn operation(head: &str) -> Option<Operation> {
    use Operation::*;
    let mut line = head.split("\r\n").next()?.split(' ');
    let (method, target) = (line.next()?, line.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let on_key = path.trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
    Some(match (method, on_key) {
        ("GET", false) if has("list-type") => ListObjectsV2,
        ("GET", false) if has("uploads") => ListMultipartUploads,
        ("GET", true) if has("uploadId") => ListParts,
        ("GET", true) if has("tagging") => GetObjectTagging,
        ("GET", true) if has("partNumber") || header(head, "range").is_some() => GetObjectRange,
        ("GET", true) => GetObject,
        ("HEAD", true) => HeadObject,
        ("PUT", true) if has("partNumber") && header(head, "x-amz-copy-source").is_none() => UploadPart,
        ("PUT", true) if has("tagging") || has("partNumber") => return None,
        ("PUT", true) if header(head, "x-amz-copy-source").is_some() => CopyObject,
        ("PUT", true) => PutObject,
        ("POST", true) if has("uploads") => CreateMultipartUpload,
        ("POST", true) if has("uploadId") => CompleteMultipartUpload,
        ("DELETE", true) if has("uploadId") => AbortMultipartUpload,
        ("DELETE", true) => DeleteObject,
        _ => return None,
    })
}

#[derive(Default)]
struct Plan {
    /// Strikes this operation, once so many more of it have passed.
    fault: Option<(Operation, u32, Fault)>,
    /// Applies requests of this operation, once so many have passed, and never answers.
    hold: Option<(Operation, u32)>,
    /// Adds a header to each answer to a read.
    read_header: Option<(&'static str, &'static str)>,
}

struct Shared {
    server: String,
    address: SocketAddr,
    plan: Mutex<Plan>,
    struck: AtomicU32,
    /// Requests that are still to be applied.
    late: AtomicU32,
    held: Notify,
    refuse: mpsc::UnboundedSender<(Duration, oneshot::Sender<()>)>,
    /// Where redirects lead.
    elsewhere: String,
}

/// A proxy before one server; it stops when this is dropped.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    _tasks: TaskScope,
    /// Keeps the port ours while nobody listens.
    _reserved: TcpSocket,
}

fn socket(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Proxy {
    /// In front of `server` (`http://host:port`); redirects lead to `elsewhere`.
    pub(crate) fn start(server: &str, elsewhere: &str) -> Self {
        let reserved = socket(([127, 0, 0, 1], 0).into()).unwrap();
        let (refuse, refusals) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            server: server.trim_start_matches("http://").to_owned(),
            address: reserved.local_addr().unwrap(),
            plan: Mutex::default(),
            struck: AtomicU32::new(0),
            late: AtomicU32::new(0),
            held: Notify::new(),
            refuse,
            elsewhere: elsewhere.to_owned(),
        });
        let mut tasks = TaskScope::new();
        tasks.spawn(accept(Arc::clone(&shared), refusals));
        Self { shared, _tasks: tasks, _reserved: reserved }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Lets the request of this kind that comes after `after` others be struck, once.
    pub(crate) fn strike(&self, operation: Operation, after: u32, fault: Fault) {
        self.shared.plan.lock().unwrap().fault = Some((operation, after, fault));
    }

    /// Lets the request of this kind that comes after `after` others, and all later ones, be applied but not answered.
    pub(crate) fn hold(&self, operation: Operation, after: u32) {
        self.shared.plan.lock().unwrap().hold = Some((operation, after));
    }

    /// Waits until a request is held, and holds no more.
    pub(crate) async fn held(&self) {
        self.shared.held.notified().await;
        self.shared.plan.lock().unwrap().hold = None;
    }

    /// Adds a header to each answer to a read.
    pub(crate) fn add_to_reads(&self, name: &'static str, value: &'static str) {
        self.shared.plan.lock().unwrap().read_header = Some((name, value));
    }

    /// Refuses connections for a while; returns once it does.
    pub(crate) async fn refuse(&self, time: Duration) {
        let (done, refuses) = oneshot::channel();
        self.shared.refuse.send((time, done)).unwrap();
        refuses.await.unwrap();
    }

    /// Waits for what is applied late.
    pub(crate) async fn settled(&self) {
        while self.shared.late.load(SeqCst) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often it struck.
    pub(crate) fn struck(&self) -> u32 {
        self.shared.struck.load(SeqCst)
    }
}

async fn accept(shared: Arc<Shared>, mut refusals: mpsc::UnboundedReceiver<(Duration, oneshot::Sender<()>)>) {
    let mut connections = TaskScope::new();
    loop {
        let listener = socket(shared.address).and_then(|s| s.listen(64)).unwrap();
        let (refused, done) = loop {
            tokio::select! {
                Some(refusal) = refusals.recv() => break refusal,
                Ok((socket, _)) = listener.accept() => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move { shared.serve(socket).await });
                }
            }
        };
        drop(listener);
        let _ = done.send(());
        sleep(refused).await;
    }
}

fn reset(socket: TcpStream) {
    // A FIN would look like an orderly end.
    let _ = socket.set_zero_linger();
    drop(socket);
}

/// The connection is of no use once the client has closed its end, or has been quiet for long.
async fn wait_for_the_client(socket: &mut TcpStream) {
    let mut byte = [0];
    let _ = timeout(Duration::from_secs(30), socket.read(&mut byte)).await;
}

impl Shared {
    /// One request a connection.
    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let _ = client.set_nodelay(true);
        let Some(request) = Request::read(&mut client).await else { return };
        let (fault, hold, read_header) = self.decide(request.operation);
        let reads = matches!(request.operation, Some(Operation::GetObject | Operation::GetObjectRange | Operation::HeadObject));
        let forward = async |body: &[u8]| {
            let mut answer = request.forward(&self.server, body).await.ok()?;
            if let Some((name, value)) = read_header.filter(|_| reads) {
                answer.set(name, value);
            }
            Some(answer)
        };
        if hold {
            let _ = forward(&request.body).await;
            self.held.notify_one();
            wait_for_the_client(&mut client).await;
            return;
        }
        let (Some(fault), Some(operation)) = (fault, request.operation) else {
            if let Some(answer) = forward(&request.body).await {
                let _ = client.write_all(&answer.bytes()).await;
            }
            return;
        };
        self.struck.fetch_add(1, SeqCst);
        if let Some(answer) = fault.refusal(operation, &self.elsewhere) {
            let _ = client.write_all(&answer.bytes()).await;
            return;
        }
        let flips_request = fault == Fault::BitFlip && !request.body.is_empty() && operation != Operation::CompleteMultipartUpload;
        let mut body = request.body.clone();
        if flips_request {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        match fault {
            Fault::Refuse => {
                let _ = self.refuse.send((Duration::from_millis(300), oneshot::channel().0));
                return reset(client);
            }
            Fault::ResetBeforeSend => return reset(client),
            Fault::DelayedApply => {
                self.late.fetch_add(1, SeqCst);
                reset(client);
                // When the run is over.
                sleep(Duration::from_secs(3)).await;
                let _ = forward(&body).await;
                self.late.fetch_sub(1, SeqCst);
                return;
            }
            Fault::Duplicate => {
                let _ = forward(&body).await;
            }
            _ => {}
        }
        let Some(mut answer) = forward(&body).await else { return };
        match fault {
            Fault::ResetAfterApplied => return reset(client),
            Fault::WrongLength => {
                let len: usize = answer.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
                answer.set("content-length", &if len == 0 { 10 } else { len - 1 }.to_string());
                let _ = client.write_all(&answer.bytes()).await;
                return;
            }
            Fault::MalformedDocument => {
                // The end of some element, which makes it another one's.
                let at = answer.body.windows(2).rposition(|w| w == b"</").unwrap_or(0);
                answer.body[at + 2] = b'?';
            }
            Fault::BitFlip if !flips_request => flip(&mut answer, operation),
            Fault::WrongEtag => wrong_etag(&mut answer),
            _ => {}
        }
        let (head, body) = (answer.head(), &answer.body);
        // Where there is no body, the head is what can be cut.
        let cut = if body.is_empty() { head.len() / 2 } else { head.len() + body.len() / 2 };
        let whole = answer.bytes();
        match fault {
            Fault::ResetInAnswer => {
                let _ = client.write_all(&whole[..cut]).await;
                // What was written is not to be lost by the reset.
                sleep(Duration::from_millis(50)).await;
                reset(client);
            }
            Fault::TruncateAndClose => {
                let _ = client.write_all(&whole[..cut]).await;
            }
            Fault::Stall => {
                let _ = client.write_all(&whole[..cut]).await;
                wait_for_the_client(&mut client).await;
            }
            Fault::LongWork => {
                answer.headers.retain(|(name, _)| name != "content-length");
                let declared = answer.body.windows(2).position(|w| w == b"?>").map_or(0, |at| at + 2);
                let (declaration, rest) = answer.body.split_at(declared);
                let _ = client.write_all(&[&answer.head(), declaration].concat()).await;
                for _ in 0..10 {
                    let _ = client.write_all(b"  ").await;
                    sleep(Duration::from_millis(400)).await;
                }
                let _ = client.write_all(rest).await;
            }
            Fault::OneByteASecond => {
                let at_once = if body.is_empty() { 0 } else { head.len() };
                let _ = client.write_all(&whole[..at_once]).await;
                for byte in whole[at_once..].iter().take(30) {
                    if client.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
            _ => {
                let _ = client.write_all(&whole).await;
            }
        }
    }

    fn decide(&self, operation: Option<Operation>) -> (Option<Fault>, bool, Option<(&'static str, &'static str)>) {
        let mut plan = self.plan.lock().unwrap();
        let mut fault = None;
        let mut hold = false;
        if let Some(operation) = operation {
            match &mut plan.fault {
                Some((struck, 0, kind)) if *struck == operation => {
                    fault = Some(*kind);
                    plan.fault = None;
                }
                Some((struck, after, _)) if *struck == operation => *after -= 1,
                _ => {}
            }
            match &mut plan.hold {
                Some((held, 0)) if *held == operation => hold = true,
                Some((held, after)) if *held == operation => *after -= 1,
                _ => {}
            }
        }
        (fault, hold, plan.read_header)
    }
}

/// One bit of the object's bytes, or of what a document says.
fn flip(answer: &mut Answer, operation: Operation) {
    let value = |tag: &str| answer.body.windows(tag.len()).position(|w| w == tag.as_bytes()).map(|at| at + tag.len());
    let at = if operation.answers_a_document() {
        // The first character of an id, or the second of an etag, which may stand in quotes.
        value("<UploadId>").or_else(|| value("<ETag>").map(|at| at + 8)).expect("the document has an id or an etag")
    } else {
        answer.body.len() / 2
    };
    answer.body[at] ^= 1;
}

fn wrong_etag(answer: &mut Answer) {
    if let Some(etag) = answer.get("etag").map(str::to_owned) {
        answer.set("etag", &reversed(&etag));
    }
    let text = String::from_utf8(answer.body.clone()).unwrap_or_default();
    if let (Some(start), Some(end)) = (text.find("<ETag>"), text.find("</ETag>")) {
        let etag = &text[start + 6..end];
        answer.body = [&text[..start + 6], &reversed(etag), &text[end..]].concat().into_bytes();
    }
    answer.set("content-length", &answer.body.len().to_string());
}

/// Another etag of the same form.
fn reversed(etag: &str) -> String {
    let hex: String = etag.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    let other: String = hex.chars().rev().collect();
    etag.replacen(&hex, &other, 1)
}
