//! A reverse proxy before an emulated AWS endpoint: counts calls by their names, and throttles when asked to, as the
//! emulators never do. Requests go on as they are, `Host` included, so that signatures stay valid.

use bytes::Bytes;
use dth_core::scope::TaskScope;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::net::{TcpListener, TcpStream};

/// How the endpoint is to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Not at all.
    Light,
    /// About every third call is refused with the service's own throttling answer; of the batches that pass, every second one is
    /// answered in part.
    Heavy,
}

/// A metered endpoint. It ends when it is dropped.
pub(crate) struct Meter {
    pub(crate) endpoint: String,
    seen: Arc<Seen>,
    _tasks: TaskScope,
}

struct Seen {
    upstream: String,
    load: Load,
    calls: Mutex<BTreeMap<String, u64>>,
    answers: Mutex<BTreeMap<String, u64>>,
    throttled: AtomicU64,
    cut: AtomicU64,
    number: AtomicU64,
}

impl Meter {
    pub(crate) async fn start(upstream: &str, load: Load) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen {
            upstream: upstream.trim_start_matches("http://").to_owned(),
            load,
            calls: Mutex::default(),
            answers: Mutex::default(),
            throttled: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            number: AtomicU64::new(0),
        });
        let mut tasks = TaskScope::new();
        let shared = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = TaskScope::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let seen = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(|request| pass(Arc::clone(&seen), request));
                    let server =
                        hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
                    let _ = server.await;
                });
            }
        });
        Self { endpoint, seen, _tasks: tasks }
    }

    /// Calls that went on to the service, by name.
    pub(crate) fn calls(&self) -> BTreeMap<String, u64> {
        self.seen.calls.lock().unwrap().clone()
    }

    /// Completions of uploads, by key and status.
    pub(crate) fn answers(&self) -> BTreeMap<String, u64> {
        self.seen.answers.lock().unwrap().clone()
    }

    /// Calls refused, and batches answered in part.
    pub(crate) fn trouble(&self) -> (u64, u64) {
        (self.seen.throttled.load(Relaxed), self.seen.cut.load(Relaxed))
    }
}

/// `DynamoDB_20120810.GetItem` and `AmazonSQS.SendMessage` as `GetItem` and `SendMessage`.
fn name_of(request: &Request<Incoming>) -> String {
    let target = request.headers().get("x-amz-target").and_then(|t| t.to_str().ok()).unwrap_or("?");
    target.rsplit('.').next().unwrap_or(target).to_owned()
}

async fn pass(seen: Arc<Seen>, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let name = name_of(&request);
    let of_queue = request.headers().get("x-amz-target").is_some_and(|t| t.as_bytes().starts_with(b"AmazonSQS"));
    // Scattered: calls that are tried again must not meet the same answer for ever.
    let number = seen.number.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    if seen.load == Load::Heavy && number % 3 == 1 {
        seen.throttled.fetch_add(1, Relaxed);
        let code = if of_queue { "com.amazonaws.sqs#RequestThrottled" } else { "com.amazonaws.dynamodb.v20120810#ThrottlingException" };
        let body = json!({"__type": code, "message": "slow down"}).to_string();
        let answer = Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
        return Ok(answer.body(Full::from(body))?);
    }
    *seen.calls.lock().unwrap().entry(name.clone()).or_default() += 1;
    let completes = request.method() == "POST" && request.uri().query().is_some_and(|q| q.starts_with("uploadId="));
    let completed = completes.then(|| request.uri().path().splitn(3, '/').nth(2).unwrap_or_default().to_owned());
    let (head, body) = request.into_parts();
    let asked = body.collect().await?.to_bytes();
    let socket = TcpStream::connect(&seen.upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let mut task = TaskScope::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    let answer = sender.send_request(Request::from_parts(head, Full::new(asked.clone()))).await?;
    let (mut head, body) = answer.into_parts();
    if let Some(key) = completed {
        *seen.answers.lock().unwrap().entry(format!("CompleteMultipartUpload {key} {}", head.status.as_u16())).or_default() += 1;
    }
    let mut body = body.collect().await?.to_bytes();
    if seen.load == Load::Heavy
        && number.is_multiple_of(2)
        && head.status.is_success()
        && let Some(cut) = in_part(&name, &asked, &body)
    {
        seen.cut.fetch_add(1, Relaxed);
        body = cut.to_string().into();
        head.headers.remove("content-length");
        head.headers.remove("x-amz-crc32");
    }
    Ok(Response::from_parts(head, Full::new(body)))
}

/// The answer to a batch as if a part of it had not been done. That part is done all the same: what is asked for again is
/// harmless to do again.
fn in_part(name: &str, asked: &[u8], answered: &[u8]) -> Option<Value> {
    let asked: Value = serde_json::from_slice(asked).ok()?;
    let mut answer: Value = serde_json::from_slice(answered).ok()?;
    match name {
        "BatchGetItem" => {
            let (table, items) = answer.get_mut("Responses")?.as_object_mut()?.iter_mut().next()?;
            let (table, items) = (table.clone(), items.as_array_mut()?);
            let left = items.split_off(items.len() / 2);
            let keys: Vec<Value> = left.iter().map(|item| json!({"pk": item["pk"], "sk": item["sk"]})).collect();
            if keys.is_empty() {
                return None;
            }
            answer["UnprocessedKeys"] = json!({ table: {"Keys": keys, "ConsistentRead": true} });
        }
        "BatchWriteItem" => {
            let (table, requests) = asked.get("RequestItems")?.as_object()?.iter().next()?;
            let requests = requests.as_array()?;
            if requests.len() < 2 {
                return None;
            }
            answer["UnprocessedItems"] = json!({ table: requests[requests.len() / 2..] });
        }
        "DeleteMessageBatch" | "ChangeMessageVisibilityBatch" => {
            let one = answer.get_mut("Successful")?.as_array_mut()?.pop()?;
            answer["Failed"] = json!([{"Id": one["Id"], "SenderFault": false, "Code": "InternalError", "Message": "not now"}]);
        }
        _ => return None,
    }
    Some(answer)
}
