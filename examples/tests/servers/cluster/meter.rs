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
    /// About every third call is refused with the service's own throttling answer, and some transactions because of one of their
    /// items.
    Throttled,
    /// The same; and of the batches that pass, about every second one is done in part. For endpoints that check no signatures.
    Cut,
}

/// What the services would bill, by their documented rules.
/// <https://aws.amazon.com/sqs/pricing/>,
/// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html>
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Bill {
    /// Requests to SQS: every 64 KiB of messages count as one.
    pub(crate) queue: f64,
    /// Write units of DynamoDB.
    pub(crate) writes: f64,
    /// Read units of DynamoDB.
    pub(crate) reads: f64,
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
    bill: Mutex<Bill>,
    /// Messages handed out, and those of them that had been handed out before.
    received: AtomicU64,
    redelivered: AtomicU64,
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
            bill: Mutex::default(),
            received: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
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

    /// What has been used so far.
    pub(crate) fn bill(&self) -> Bill {
        *self.seen.bill.lock().unwrap()
    }

    /// Messages handed out, and those of them that had been handed out before.
    pub(crate) fn deliveries(&self) -> (u64, u64) {
        (self.seen.received.load(Relaxed), self.seen.redelivered.load(Relaxed))
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

/// `DynamoDB_20120810.GetItem` and `AmazonSQS.SendMessage` as `GetItem` and `SendMessage`; requests to S3 by method and the first
/// parameter of their query.
fn name_of(request: &Request<Incoming>) -> String {
    if let Some(target) = request.headers().get("x-amz-target").and_then(|t| t.to_str().ok()) {
        return target.rsplit('.').next().unwrap_or(target).to_owned();
    }
    let query = request.uri().query().unwrap_or_default();
    format!("{} {}", request.method(), query.split(['=', '&']).next().unwrap_or_default()).trim_end().to_owned()
}

async fn pass(seen: Arc<Seen>, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let name = name_of(&request);
    let of_queue = request.headers().get("x-amz-target").is_some_and(|t| t.as_bytes().starts_with(b"AmazonSQS"));
    // Scattered: calls that are tried again must not meet the same answer for ever.
    let number = seen.number.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let json = |status: u16, body: Value| {
        let answer = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
        Ok(answer.body(Full::from(body.to_string()))?)
    };
    if seen.load != Load::Light && number % 3 == 1 {
        seen.throttled.fetch_add(1, Relaxed);
        let dynamo = "com.amazonaws.dynamodb.v20120810#";
        if name == "TransactWriteItems" && number.is_multiple_of(2) {
            let code = if number.is_multiple_of(4) { "TransactionConflict" } else { "ThrottlingError" };
            let reasons = json!([{"Code": "None"}, {"Code": code, "Message": "not now"}]);
            let text = "Transaction cancelled, please refer cancellation reasons for specific reasons";
            let kind = format!("{dynamo}TransactionCanceledException");
            return json(400, json!({"__type": kind, "Message": text, "CancellationReasons": reasons}));
        }
        let code = if of_queue { "com.amazonaws.sqs#RequestThrottled".to_owned() } else { format!("{dynamo}ThrottlingException") };
        return json(400, json!({"__type": code, "message": "slow down"}));
    }
    *seen.calls.lock().unwrap().entry(name.clone()).or_default() += 1;
    let completes = request.method() == "POST" && request.uri().query().is_some_and(|q| q.starts_with("uploadId="));
    let completed = completes.then(|| request.uri().path().splitn(3, '/').nth(2).unwrap_or_default().to_owned());
    let (mut head, body) = request.into_parts();
    let mut asked = body.collect().await?.to_bytes();
    let mut left = None;
    if seen.load == Load::Cut
        && number.is_multiple_of(2)
        && let Some((rest, undone)) = cut(&name, &asked)
    {
        seen.cut.fetch_add(1, Relaxed);
        if rest.is_null() {
            return json(200, json!({"Successful": [], "Failed": undone.1}));
        }
        asked = rest.to_string().into();
        head.headers.remove("content-length");
        left = Some(undone);
    }
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
    if let (Ok(asked), Ok(answered)) = (serde_json::from_slice(&asked), serde_json::from_slice(&body)) {
        seen.account(of_queue, &name, &asked, &answered);
    }
    if head.status.is_success()
        && let Some((field, undone)) = left
    {
        let mut answer: Value = serde_json::from_slice(&body)?;
        match (answer.get_mut(field).and_then(Value::as_array_mut), undone.as_array()) {
            (Some(failed), Some(more)) => failed.extend(more.iter().cloned()),
            _ => answer[field] = undone,
        }
        body = answer.to_string().into();
        head.headers.remove("content-length");
        head.headers.remove("x-amz-crc32");
    }
    Ok(Response::from_parts(head, Full::new(body)))
}

/// A batch without a part of it, null where nothing is left, and what the answer is to say of that part, under this name. The part is
/// not done: whoever does not ask for it again has lost it.
fn cut(name: &str, asked: &[u8]) -> Option<(Value, (&'static str, Value))> {
    let mut asked: Value = serde_json::from_slice(asked).ok()?;
    match name {
        "BatchGetItem" => {
            let (table, of_table) = asked.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
            let (table, keys) = (table.clone(), of_table.get_mut("Keys")?.as_array_mut()?);
            let left = keys.split_off(keys.len().div_ceil(2));
            (!left.is_empty()).then(|| (asked, ("UnprocessedKeys", json!({ table: {"Keys": left, "ConsistentRead": true} }))))
        }
        "BatchWriteItem" => {
            let (table, requests) = asked.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
            let (table, requests) = (table.clone(), requests.as_array_mut()?);
            let left = requests.split_off(requests.len().div_ceil(2));
            (!left.is_empty()).then(|| (asked, ("UnprocessedItems", json!({ table: left }))))
        }
        "SendMessageBatch" | "DeleteMessageBatch" | "ChangeMessageVisibilityBatch" => {
            let entries = asked.get_mut("Entries")?.as_array_mut()?;
            let one = entries.pop()?;
            let rest = if entries.is_empty() { Value::Null } else { asked };
            let refused = json!([{"Id": one["Id"], "SenderFault": false, "Code": "InternalError", "Message": "not now"}]);
            Some((rest, ("Failed", refused)))
        }
        _ => None,
    }
}

impl Seen {
    fn account(&self, of_queue: bool, name: &str, asked: &Value, answered: &Value) {
        let used = if of_queue {
            if name == "ReceiveMessage" {
                let messages = list(&answered["Messages"]);
                let again = messages.iter().filter(|m| m["Attributes"]["ApproximateReceiveCount"].as_str().is_some_and(|n| n != "1"));
                self.redelivered.fetch_add(again.count() as u64, Relaxed);
                self.received.fetch_add(messages.len() as u64, Relaxed);
            }
            Bill { queue: queue_requests(asked, answered), ..Bill::default() }
        } else {
            let (writes, reads) = capacity(name, asked, answered);
            Bill { writes, reads, ..Bill::default() }
        };
        let mut bill = self.bill.lock().unwrap();
        bill.queue += used.queue;
        bill.writes += used.writes;
        bill.reads += used.reads;
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn queue_requests(asked: &Value, answered: &Value) -> f64 {
    let sent = list(&asked["Entries"]).iter().map(|e| &e["MessageBody"]).chain([&asked["MessageBody"]]);
    let bodies = sent.chain(list(&answered["Messages"]).iter().map(|m| &m["Body"]));
    let bytes: usize = bodies.filter_map(Value::as_str).map(str::len).sum();
    bytes.div_ceil(64 << 10).max(1) as f64
}

/// Write and read units of a call. What a call changes or deletes without showing it is taken for an item of a KiB.
fn capacity(name: &str, asked: &Value, answered: &Value) -> (f64, f64) {
    let written = |item: &Value| {
        // A record that is in the index is written there too.
        let index = if item.get("gpk").is_some() { 1.0 } else { 0.0 };
        size(item).div_ceil(1 << 10).max(1) as f64 + index
    };
    let read = |item: &Value| size(item).div_ceil(4 << 10).max(1) as f64;
    match name {
        "PutItem" => (written(&asked["Item"]), 0.0),
        "UpdateItem" | "DeleteItem" => (1.0, 0.0),
        "BatchWriteItem" => {
            let requests = asked["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values()).flat_map(list);
            (requests.map(|r| r.get("PutRequest").map_or(1.0, |put| written(&put["Item"]))).sum(), 0.0)
        }
        "TransactWriteItems" => {
            let items = list(&asked["TransactItems"]).iter();
            (items.map(|i| 2.0 * i.get("Put").map_or(1.0, |put| written(&put["Item"]))).sum(), 0.0)
        }
        "GetItem" => (0.0, read(&answered["Item"])),
        "BatchGetItem" => {
            let keys = asked["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values());
            let asked: usize = keys.map(|table| list(&table["Keys"]).len()).sum();
            let found = answered["Responses"].as_object().into_iter().flat_map(|tables| tables.values()).flat_map(list);
            let (number, units) = found.fold((0, 0.0), |(number, units), item| (number + 1, units + read(item)));
            // An item that does not exist is paid for, too.
            (0.0, units + (asked - number) as f64)
        }
        "Query" | "Scan" => {
            let bytes: usize = list(&answered["Items"]).iter().map(size).sum();
            (0.0, bytes.div_ceil(4 << 10).max(1) as f64)
        }
        _ => (0.0, 0.0),
    }
}

/// Bytes of an item: names and values; a number takes about half its digits.
fn size(item: &Value) -> usize {
    let value = |value: &Value| -> usize {
        let Some((kind, value)) = value.as_object().and_then(|v| v.iter().next()) else { return 1 };
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        match kind.as_str() {
            "N" => text(value) / 2 + 1,
            "B" => text(value) / 4 * 3,
            "NS" => list(value).iter().map(|n| text(n) / 2 + 1).sum(),
            _ => text(value).max(1),
        }
    };
    item.as_object().map_or(0, |item| item.iter().map(|(name, attribute)| name.len() + value(attribute)).sum())
}
