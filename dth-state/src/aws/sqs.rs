//! The queue in Amazon SQS: a standard queue and its dead-letter queue.

use super::{
    PATIENCE,
    batch::{Batch, Change},
    client_config,
    error::{classify, service},
    is_fifo, seconds,
};
use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_sqs::{
    Client,
    operation::send_message_batch::SendMessageBatchOutput,
    types::{
        BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message as SqsMessage,
        MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry,
    },
};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
};
use futures_util::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// Entries of a batch request.
const BATCH: usize = 10;
/// Bytes of all messages of one batch request, where the queue takes no larger message.
const BATCH_BYTES: usize = 256 << 10;
/// Longest delay of a message.
const MAX_DELAY: Duration = Duration::from_secs(900);
/// For so long a queue that was made may not be known everywhere.
const QUEUE_KNOWN: Duration = Duration::from_secs(10);
/// Longest long poll of one request.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// Longest time for which a message can be hidden.
const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);
/// For so long a dead letter that was listed is hidden from other listers.
const LISTED: Duration = Duration::from_secs(120);
/// Pages in a row with nothing but what was seen already, after which all is seen: letters show again while a long list is read.
const SEEN_PAGES: u32 = 10;
/// For so long a message is hidden while its dead letter is sent.
const LETTER: Duration = Duration::from_secs(120);
/// For so long a sent letter is remembered whose message could not be deleted.
const LETTERED: Duration = Duration::from_secs(3600);
/// Deliveries after which SQS itself gives a message up. The engine gives up earlier, with the reason: this is for messages
/// that no worker lives to answer.
const NATIVE_RECEIVES: u32 = 100;
/// Fewer than these, and SQS may give up messages that the engine still counts on, without a reason.
const LEAST_NATIVE_RECEIVES: u64 = 30;
/// Why a message was given up, and after how many deliveries.
const REASON: &str = "dth-reason";
const RECEIVES: &str = "dth-receives";
/// Leases remembered before those that are over are forgotten.
const MAX_LEASES: usize = 1024;
/// Bytes of a reason.
const MAX_REASON: usize = 8 << 10;

/// A queue in Amazon SQS. Clones share it.
///
/// Delivery is at least once and in any order, so a FIFO queue is refused: it would only be slower. Dead letters lie in the
/// queue that the redrive policy names, with the reason as message attribute `dth-reason`.
#[derive(Clone)]
pub struct SqsQueue {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    url: String,
    dead: String,
    max_body: usize,
    /// The same of the dead-letter queue.
    max_letter: usize,
    deletes: Batch,
    changes: Batch,
    /// When the leases of messages that are handed out here end. SQS may take a receipt for good although its message has been
    /// handed to somebody else since.
    leases: Mutex<HashMap<Receipt, Instant>>,
    /// Dead letters that this process has listed since it last began at the front, by message id.
    listed: Mutex<BTreeMap<String, Listed>>,
    /// Messages whose dead letter is sent, and which are not deleted yet.
    lettered: Mutex<HashMap<Receipt, Instant>>,
}

/// What removes a dead letter, and until when nobody else sees it.
#[derive(Clone)]
struct Listed {
    receipt: Receipt,
    until: Instant,
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqsQueue({})", self.inner.url)
    }
}

/// What a queue says of itself.
type Attributes = HashMap<QueueAttributeName, String>;

impl SqsQueue {
    /// Opens a queue by its name, URL or ARN; reads its size limit and finds its dead-letter queue. URL and ARN also say the
    /// region, a name means that of the configuration.
    ///
    /// `NotFound` when it does not exist, `Invalid` when it is a FIFO queue or has no dead-letter queue.
    pub async fn open(config: &SdkConfig, queue: &str) -> Result<Self> {
        refuse_fifo(queue)?;
        let client = client(config, region_of(queue));
        let url = url_of(&client, queue).await?;
        let attributes = attributes_of(&client, &url, &[QueueAttributeName::All]).await?;
        let get = |name| attributes.get(&name).map(String::as_str);
        let invalid = |why: &str| Err(Error::new(ErrorKind::Invalid, Op::Connect, queue).with_source(why.to_owned()));
        let policy = get(QueueAttributeName::RedrivePolicy).and_then(|p| serde_json::from_str::<serde_json::Value>(p).ok());
        let policy = policy.unwrap_or_default();
        let Some(dead) = policy["deadLetterTargetArn"].as_str() else {
            return invalid(
                "it has no dead-letter queue: give it a redrive policy, or let `SqsQueue::create` make a queue of another name with one",
            );
        };
        // Both forms are in use: 5 and "5".
        let native = policy["maxReceiveCount"].as_u64().or_else(|| policy["maxReceiveCount"].as_str()?.parse().ok());
        if let Some(native) = native.filter(|n| *n < LEAST_NATIVE_RECEIVES) {
            tracing::warn!(
                queue,
                "its redrive policy gives messages up after {native} deliveries, before the engine has recorded why: \
                 set maxReceiveCount to {NATIVE_RECEIVES}"
            );
        }
        let dead = url_of(&client, dead).await?;
        let size = |of: &Attributes| of.get(&QueueAttributeName::MaximumMessageSize).and_then(|n| n.parse().ok()).unwrap_or(BATCH_BYTES);
        let max_letter = size(&attributes_of(&client, &dead, &[QueueAttributeName::MaximumMessageSize]).await?);
        let max_body = size(&attributes);
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                url,
                dead,
                max_body,
                max_letter,
                deletes: Batch::default(),
                changes: Batch::default(),
                leases: Mutex::default(),
                listed: Mutex::default(),
                lettered: Mutex::default(),
            }),
        })
    }

    /// Makes the queue `name` and its dead-letter queue `name-dead-letters` where they do not exist, and opens the queue.
    ///
    /// Both keep messages for 14 days, encrypted with a key of SQS. What exists is left as it is. `Invalid` when it is to be made by
    /// an ARN or URL, or as a FIFO queue.
    pub async fn create(config: &SdkConfig, name: &str) -> Result<Self> {
        match Self::open(config, name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
        if name.contains([':', '/']) {
            let why = "there is no such queue, and one is made by its name alone: give the name, and its region beside it";
            return Err(Error::new(ErrorKind::Invalid, Op::Configure, name).with_source(why));
        }
        let client = client(config, None);
        let retention = (14 * 24 * 3600).to_string();
        let make = async |name: &str, more: Vec<(QueueAttributeName, String)>| {
            match url_of(&client, name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                found => return found,
            }
            let attributes = [
                (QueueAttributeName::MessageRetentionPeriod, retention.clone()),
                (QueueAttributeName::SqsManagedSseEnabled, "true".to_owned()),
            ];
            let call = client.create_queue().queue_name(name).set_attributes(Some(attributes.into_iter().chain(more).collect()));
            let made = call.send().await.map_err(|e| classify(Op::Configure, name, e))?;
            Ok(made.queue_url.unwrap_or_default())
        };
        let dead = make(&format!("{name}-dead-letters"), Vec::new()).await?;
        let unknown = [ErrorKind::NotFound];
        let arn = once_known(&unknown, || attributes_of(&client, &dead, &[QueueAttributeName::QueueArn])).await?;
        let arn = arn.get(&QueueAttributeName::QueueArn).map_or("", String::as_str);
        let policy = serde_json::json!({ "deadLetterTargetArn": arn, "maxReceiveCount": NATIVE_RECEIVES }).to_string();
        let policy = || vec![(QueueAttributeName::RedrivePolicy, policy.clone())];
        once_known(&[ErrorKind::NotFound, ErrorKind::Invalid], || make(name, policy())).await?;
        once_known(&unknown, || Self::open(config, name)).await
    }

    /// The URL of the queue.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The URL of its dead-letter queue.
    pub fn dead_letter_url(&self) -> &str {
        &self.inner.dead
    }
}

fn client(config: &SdkConfig, region: Option<Region>) -> Client {
    match region {
        Some(region) => Client::from_conf(client_config!(aws_sdk_sqs, &config.clone().into_builder().region(region).build())),
        None => Client::from_conf(client_config!(aws_sdk_sqs, config)),
    }
}

/// A queue that was just made is not known everywhere for some seconds, as itself or as the dead-letter queue of another one.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
async fn once_known<T, F: Future<Output = Result<T>>>(unknown: &[ErrorKind], call: impl Fn() -> F) -> Result<T> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(error) if unknown.contains(&error.kind()) && begun.elapsed() < QUEUE_KNOWN => {
                tracing::debug!(error = %error.chain(), "a queue that was just made is not known yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            answer => return answer,
        }
    }
}

fn refuse_fifo(queue: &str) -> Result<()> {
    if !is_fifo(queue) {
        return Ok(());
    }
    let why = "it is a FIFO queue: take a standard one, the engine needs no order and bears duplicates";
    Err(Error::new(ErrorKind::Invalid, Op::Connect, queue).with_source(why))
}

/// The region in an ARN (`arn:aws:sqs:REGION:ACCOUNT:NAME`) or in a URL of Amazon's (`https://sqs.REGION.amazonaws.com/…`).
fn region_of(queue: &str) -> Option<Region> {
    let region = match queue.split_once("://") {
        Some((_, rest)) => rest.split('/').next()?.strip_prefix("sqs.")?.split_once(".amazonaws.")?.0,
        None => queue.strip_prefix("arn:")?.split(':').nth(2)?,
    };
    Some(Region::new(region.to_owned())).filter(|_| !region.is_empty())
}

/// The timeouts of a request that waits for messages.
fn long_poll() -> aws_sdk_sqs::config::Builder {
    let timeouts = aws_sdk_sqs::config::timeout::TimeoutConfig::builder().operation_attempt_timeout(PATIENCE + MAX_WAIT);
    aws_sdk_sqs::Config::builder().timeout_config(timeouts.build())
}

/// The URL of a queue by its name, URL or ARN.
async fn url_of(client: &Client, queue: &str) -> Result<String> {
    if queue.starts_with("https://") || queue.starts_with("http://") {
        return Ok(queue.to_owned());
    }
    let mut call = client.get_queue_url();
    call = match queue.strip_prefix("arn:").map(|arn| arn.split(':').collect::<Vec<_>>()).as_deref() {
        Some([_, "sqs", _, account, name]) => call.queue_name(*name).queue_owner_aws_account_id(*account),
        Some(_) => return Err(Error::new(ErrorKind::Invalid, Op::Connect, queue).with_source("this is no ARN of an SQS queue")),
        None => call.queue_name(queue),
    };
    let found = call.send().await.map_err(|e| classify(Op::Connect, queue, e))?;
    Ok(found.queue_url.unwrap_or_default())
}

async fn attributes_of(client: &Client, url: &str, names: &[QueueAttributeName]) -> Result<Attributes> {
    let call = client.get_queue_attributes().queue_url(url).set_attribute_names(Some(names.to_vec()));
    let answer = call.send().await.map_err(|e| classify(Op::Depth, url, e))?;
    Ok(answer.attributes.unwrap_or_default())
}

impl Inner {
    fn listed(&self) -> MutexGuard<'_, BTreeMap<String, Listed>> {
        self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Receipt, Instant>> {
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn leased(&self, receipts: impl Iterator<Item = Receipt>, lease: Duration) {
        let now = Instant::now();
        let mut leases = self.leases();
        if leases.len() >= MAX_LEASES {
            leases.retain(|_, until| *until > now);
        }
        leases.extend(receipts.map(|receipt| (receipt, now + lease)));
    }

    fn lettered(&self) -> MutexGuard<'_, HashMap<Receipt, Instant>> {
        self.lettered.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn send_batch(&self, entries: Vec<(usize, Message)>) -> Vec<(usize, Result<()>)> {
        let numbers: Vec<usize> = entries.iter().map(|(n, _)| *n).collect();
        let built = entries.into_iter().map(|(number, message)| {
            SendMessageBatchRequestEntry::builder()
                .id(number.to_string())
                .message_body(message.body)
                .delay_seconds(seconds(message.delay.min(MAX_DELAY)))
                .build()
        });
        let entries = match built.collect::<Result<Vec<_>, _>>() {
            Ok(entries) => entries,
            Err(error) => {
                let invalid = Error::new(ErrorKind::Invalid, Op::Send, &self.url).with_source(error);
                return numbers.into_iter().map(|n| (n, Err(copy(&invalid)))).collect();
            }
        };
        let sent = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await;
        match sent {
            Ok(SendMessageBatchOutput { successful, failed, .. }) => {
                let good = successful.into_iter().map(|entry| (entry.id, Ok(())));
                let bad = failed.into_iter().map(|entry| (entry.id.clone(), Err(refused(Op::Send, &self.url, &entry))));
                let told: HashMap<String, Result<()>> = good.chain(bad).collect();
                by_number(numbers, told, Op::Send, &self.url)
            }
            Err(error) => {
                let error = classify(Op::Send, &self.url, error);
                numbers.into_iter().map(|n| (n, Err(copy(&error)))).collect()
            }
        }
    }

    /// Deletes from a queue, or hides there, what has gathered.
    async fn change(&self, op: Op, url: &str, changes: Vec<(Change, usize)>) -> Vec<(usize, Result<()>)> {
        let numbers: Vec<usize> = changes.iter().map(|(_, n)| *n).collect();
        let whole = |error: Error, numbers: Vec<usize>| numbers.into_iter().map(|n| (n, Err(copy(&error)))).collect();
        let answer = if op == Op::Ack {
            let entry = |(change, n): (Change, usize)| {
                DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(&*change.receipt.0).build()
            };
            match changes.into_iter().map(entry).collect::<Result<Vec<_>, _>>() {
                Ok(entries) => {
                    let call = self.client.delete_message_batch().queue_url(url).set_entries(Some(entries));
                    call.send()
                        .await
                        .map(|o| (o.successful.into_iter().map(|e| e.id).collect(), o.failed))
                        .map_err(|e| classify(op, url, e))
                }
                Err(error) => Err(Error::new(ErrorKind::Invalid, op, url).with_source(error)),
            }
        } else {
            let entry = |(change, n): (Change, usize)| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(n.to_string())
                    .receipt_handle(&*change.receipt.0)
                    .visibility_timeout(seconds(change.hide.min(MAX_LEASE)))
                    .build()
            };
            match changes.into_iter().map(entry).collect::<Result<Vec<_>, _>>() {
                Ok(entries) => {
                    let call = self.client.change_message_visibility_batch().queue_url(url).set_entries(Some(entries));
                    call.send()
                        .await
                        .map(|o| (o.successful.into_iter().map(|e| e.id).collect(), o.failed))
                        .map_err(|e| classify(op, url, e))
                }
                Err(error) => Err(Error::new(ErrorKind::Invalid, op, url).with_source(error)),
            }
        };
        let (good, bad): (Vec<String>, Vec<BatchResultErrorEntry>) = match answer {
            Ok(answer) => answer,
            Err(error) => return whole(error, numbers),
        };
        let good = good.into_iter().map(|id| (id, Ok(())));
        let bad = bad.into_iter().map(|entry| (entry.id.clone(), Err(stale_or_refused(op, url, &entry))));
        let told: HashMap<String, Result<()>> = good.chain(bad).collect();
        by_number(numbers, told, op, url)
    }

    /// Hides a message for so long; `NotFound` when the receipt is stale.
    async fn hide(&self, op: Op, receipt: &Receipt, hide: Duration) -> Result<()> {
        let over = self.leases().get(receipt).is_some_and(|until| *until <= Instant::now());
        if over {
            return Err(Error::new(ErrorKind::NotFound, op, &self.url).with_source("the lease is over"));
        }
        let change = Change { receipt: receipt.clone(), hide };
        self.changes.run(change, |changes| self.change(op, &self.url, changes)).await?;
        self.leased([receipt.clone()].into_iter(), hide);
        Ok(())
    }

    async fn delete(&self, receipt: &Receipt) -> Result<()> {
        self.leases().remove(receipt);
        let change = Change { receipt: receipt.clone(), hide: Duration::ZERO };
        match self.deletes.run(change, |changes| self.change(Op::Ack, &self.url, changes)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    async fn send_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let value = |kind: &str, text: String| {
            let built = MessageAttributeValue::builder().data_type(kind).string_value(text).build();
            built.map_err(|e| Error::new(ErrorKind::Invalid, Op::DeadLetter, &self.dead).with_source(e))
        };
        let mut call = self.client.send_message().queue_url(&self.dead).message_body(&delivery.body);
        if delivery.body.len() + 64 <= self.max_letter {
            call = call.message_attributes(RECEIVES, value("Number", delivery.receives.to_string())?);
        }
        // Names, types and the number count as well.
        let room = self.max_letter.saturating_sub(delivery.body.len() + 128).min(MAX_REASON);
        let reason = printable(reason, room);
        if !reason.is_empty() {
            call = call.message_attributes(REASON, value("String", reason)?);
        }
        call.send().await.map_err(|e| classify(Op::DeadLetter, &self.dead, e))?;
        Ok(())
    }

    /// Dead letters that nobody else is looking at just now.
    async fn receive_dead(&self, max: usize) -> Result<Vec<SqsMessage>> {
        let call = self
            .client
            .receive_message()
            .queue_url(&self.dead)
            .max_number_of_messages(max.clamp(1, BATCH) as i32)
            .visibility_timeout(seconds(LISTED))
            // A short poll asks some of the servers only, and finds nothing where there is something.
            .wait_time_seconds(1)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let answer = call.send().await.map_err(|e| classify(Op::DeadLetter, &self.dead, e))?;
        let messages = answer.messages.unwrap_or_default();
        let until = Instant::now() + LISTED;
        for message in &messages {
            if let (Some(id), Some(receipt)) = (&message.message_id, &message.receipt_handle) {
                self.listed().insert(id.clone(), Listed { receipt: Receipt(receipt.as_str().into()), until });
            }
        }
        Ok(messages)
    }

    /// Shows what this process has listed again, to itself and to others, and forgets the list.
    async fn show_listed(&self) -> Result<()> {
        // Forgotten when all of them show, so that a second try begins again.
        let listed = self.listed().clone();
        let now = Instant::now();
        let hidden: Vec<(Change, usize)> = listed
            .into_values()
            .filter(|letter| letter.until > now)
            .enumerate()
            .map(|(n, letter)| (Change { receipt: letter.receipt, hide: Duration::ZERO }, n))
            .collect();
        let batches: Vec<_> = hidden.chunks(BATCH).map(<[_]>::to_vec).collect();
        let mut showing = stream::iter(batches).map(|batch| self.change(Op::Release, &self.dead, batch)).buffer_unordered(4);
        while let Some(shown) = showing.next().await {
            for (_, shown) in shown {
                match shown {
                    // Its time is over: it shows again by itself.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    shown => shown?,
                }
            }
        }
        self.listed().clear();
        Ok(())
    }

    /// The receipt of a dead letter; looks through the whole dead-letter queue when it was not listed by this process lately.
    async fn find_dead(&self, id: &str) -> Result<Option<Receipt>> {
        let known = self.listed().get(id).cloned();
        if let Some(known) = known {
            if known.until > Instant::now() + LISTED / 4 {
                return Ok(Some(known.receipt));
            }
            let again = vec![(Change { receipt: known.receipt.clone(), hide: LISTED }, 0)];
            match self.change(Op::DeadLetter, &self.dead, again).await.pop().map_or(Ok(()), |(_, held)| held) {
                Ok(()) => return Ok(Some(known.receipt)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // What is found on the way is known afterwards: the next letter needs no search.
        let (mut seen, mut old_pages) = (BTreeSet::new(), 0);
        while old_pages < SEEN_PAGES {
            let page = self.receive_dead(BATCH).await?;
            if let Some(found) = page.iter().find(|m| m.message_id.as_deref() == Some(id)).and_then(|m| m.receipt_handle.as_deref()) {
                return Ok(Some(Receipt(found.into())));
            }
            if page.is_empty() {
                break;
            }
            let before = seen.len();
            seen.extend(page.into_iter().filter_map(|m| m.message_id));
            old_pages = if seen.len() > before { 0 } else { old_pages + 1 };
        }
        Ok(None)
    }
}

#[async_trait]
impl Queue for SqsQueue {
    fn capability(&self) -> QueueCapability {
        QueueCapability { max_body: self.inner.max_body, max_lease: MAX_DELAY, receive_is_cancel_safe: false }
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let inner = &self.inner;
        let mut results: Vec<Result<()>> = messages.iter().map(|_| Ok(())).collect();
        let batch_bytes = inner.max_body.max(BATCH_BYTES);
        let mut batches: Vec<Vec<(usize, Message)>> = Vec::new();
        let mut bytes = 0;
        for (number, message) in messages.iter().enumerate() {
            let len = message.body.len();
            if len > inner.max_body || len == 0 {
                let text = format!("message of {len} bytes");
                let why = format!("the queue takes 1 to {} bytes", inner.max_body);
                results[number] = Err(Error::new(ErrorKind::Invalid, Op::Send, text).with_source(why));
                continue;
            }
            match batches.last_mut() {
                Some(batch) if batch.len() < BATCH && bytes + len <= batch_bytes => batch.push((number, message.clone())),
                _ => {
                    bytes = 0;
                    batches.push(vec![(number, message.clone())]);
                }
            }
            bytes += len;
        }
        let mut sending = stream::iter(batches).map(|batch| inner.send_batch(batch)).buffer_unordered(4);
        while let Some(sent) = sending.next().await {
            for (number, result) in sent {
                results[number] = result;
            }
        }
        Ok(results)
    }

    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        let inner = &self.inner;
        let give_up = Instant::now() + wait;
        loop {
            let left = give_up.saturating_duration_since(Instant::now()).min(MAX_WAIT);
            let call = inner
                .client
                .receive_message()
                .queue_url(&inner.url)
                .max_number_of_messages(max.clamp(1, BATCH) as i32)
                .visibility_timeout(seconds(lease.min(MAX_LEASE)))
                .wait_time_seconds(left.as_secs() as i32)
                .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
            let answer = call.customize().config_override(long_poll()).send().await.map_err(|e| classify(Op::Receive, &inner.url, e))?;
            let messages = answer.messages.unwrap_or_default();
            if !messages.is_empty() || give_up.saturating_duration_since(Instant::now()) < Duration::from_secs(1) {
                let deliveries: Vec<Delivery> = messages.into_iter().filter_map(delivery).collect();
                inner.leased(deliveries.iter().map(|d| d.receipt.clone()), lease);
                return Ok(deliveries);
            }
        }
    }

    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        self.inner.hide(Op::Extend, receipt, lease).await
    }

    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        self.inner.delete(receipt).await
    }

    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        match self.inner.hide(Op::Release, receipt, delay).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let inner = &self.inner;
        // A second try after the letter was sent must not send another one.
        if !inner.lettered().contains_key(&delivery.receipt) {
            // Asks whether it is still ours, and leaves the time for the rest.
            match inner.hide(Op::DeadLetter, &delivery.receipt, LETTER).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                held => held?,
            }
            inner.send_letter(delivery, reason).await?;
            let now = Instant::now();
            let mut lettered = inner.lettered();
            lettered.retain(|_, until| *until > now);
            lettered.insert(delivery.receipt.clone(), now + LETTERED);
        }
        inner.delete(&delivery.receipt).await?;
        inner.lettered().remove(&delivery.receipt);
        Ok(())
    }

    async fn depth(&self) -> Result<Depth> {
        let inner = &self.inner;
        let (ready, leased, delayed) = (
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        );
        let (names, dead_names) = ([ready.clone(), leased.clone(), delayed.clone()], [ready.clone(), leased.clone()]);
        let (here, dead) =
            tokio::try_join!(attributes_of(&inner.client, &inner.url, &names), attributes_of(&inner.client, &inner.dead, &dead_names))?;
        let number = |of: &Attributes, name: &QueueAttributeName| of.get(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Depth {
            ready: number(&here, &ready),
            leased: number(&here, &leased),
            delayed: number(&here, &delayed),
            dead: number(&dead, &ready) + number(&dead, &leased),
        })
    }

    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        let inner = &self.inner;
        if after.is_none() {
            inner.show_listed().await?;
        }
        let (mut letters, mut old_pages) = (Vec::new(), 0);
        while letters.len() < max && old_pages < SEEN_PAGES {
            let known: BTreeSet<String> = inner.listed().keys().cloned().collect();
            match inner.receive_dead(max - letters.len()).await {
                Ok(page) if page.is_empty() => break,
                Ok(page) => {
                    let before = letters.len();
                    letters.extend(page.into_iter().filter_map(dead_letter).filter(|letter| !known.contains(&letter.id)));
                    old_pages = if letters.len() > before { 0 } else { old_pages + 1 };
                }
                // Those that were received are hidden now: they must not be lost to the caller.
                Err(_) if !letters.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(letters)
    }

    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        let inner = &self.inner;
        let missing = || Error::new(ErrorKind::NotFound, Op::DeadLetter, format!("dead letter {id}"));
        let receipt = inner.find_dead(id).await?.ok_or_else(missing)?;
        let message = [Message { body: body.to_owned(), delay: Duration::ZERO }];
        for sent in self.send(&message).await? {
            sent?;
        }
        // A crash here leaves both: the job is done again, which does nothing.
        let call = inner.client.delete_message().queue_url(&inner.dead).receipt_handle(&*receipt.0);
        call.send().await.map_err(|e| classify(Op::DeadLetter, &inner.dead, e))?;
        inner.listed().remove(id);
        Ok(())
    }
}

fn delivery(message: SqsMessage) -> Option<Delivery> {
    let receives = receive_count(&message);
    Some(Delivery { body: message.body.unwrap_or_default(), receives, receipt: Receipt(message.receipt_handle?.into()) })
}

fn receive_count(message: &SqsMessage) -> u32 {
    let counted = message.attributes.as_ref().and_then(|a| a.get(&MessageSystemAttributeName::ApproximateReceiveCount));
    counted.and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn dead_letter(message: SqsMessage) -> Option<DeadLetter> {
    let text = |name: &str| message.message_attributes.as_ref()?.get(name)?.string_value.clone();
    let receives = text(RECEIVES).and_then(|n| n.parse().ok());
    let reason = text(REASON).unwrap_or_else(|| match receives {
        Some(_) => "the reason did not fit beside the message: see its record".to_owned(),
        None => "given up by SQS: too many deliveries ended without an answer".to_owned(),
    });
    let receives = receives.unwrap_or_else(|| receive_count(&message));
    Some(DeadLetter { id: message.message_id?, body: message.body.unwrap_or_default(), reason, receives })
}

/// A result for each entry; one that the answer does not name may or may not have been done.
fn by_number(numbers: Vec<usize>, mut told: HashMap<String, Result<()>>, op: Op, url: &str) -> Vec<(usize, Result<()>)> {
    let silent = || Error::new(ErrorKind::Unavailable, op, url).with_maybe_applied(true).with_source("the answer does not name this entry");
    numbers.into_iter().map(|n| (n, told.remove(&n.to_string()).unwrap_or_else(|| Err(silent())))).collect()
}

fn refused(op: Op, url: &str, entry: &BatchResultErrorEntry) -> Error {
    let kind = service(&entry.code, if entry.sender_fault { 400 } else { 500 });
    let text = entry.message.clone().unwrap_or_default();
    Error::new(kind, op, url).with_code(&entry.code).with_maybe_applied(kind == ErrorKind::Unavailable).with_source(text)
}

/// All that can be wrong with an entry of ours is its receipt.
fn stale_or_refused(op: Op, url: &str, entry: &BatchResultErrorEntry) -> Error {
    let error = refused(op, url, entry);
    if error.kind() == ErrorKind::Invalid {
        return Error::new(ErrorKind::NotFound, op, url).with_code(&entry.code).with_source(entry.message.clone().unwrap_or_default());
    }
    error
}

/// The same error for each entry of a batch.
fn copy(error: &Error) -> Error {
    let same = Error::new(error.kind(), error.op(), error.target()).with_retry(error.retry()).with_maybe_applied(error.maybe_applied());
    let same = if let Some(code) = error.code() { same.with_code(code) } else { same };
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let causes = causes.map(ToString::to_string).collect::<Vec<_>>();
    if causes.is_empty() { same } else { same.with_source(causes.join(": ")) }
}

/// What SQS carries in an attribute (the characters of XML 1.0), at most `room` bytes of it.
fn printable(text: &str, room: usize) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        let legal = matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        let piece = if legal { c.to_string() } else { c.escape_default().to_string() };
        if kept.len() + piece.len() > room {
            break;
        }
        kept.push_str(&piece);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_made_fit_for_an_attribute() {
        assert_eq!(printable("a\u{1}é\n\u{fffe}🦀", 100), "a\\u{1}é\n\\u{fffe}🦀");
        assert_eq!(printable("ééé", 5), "éé");
    }

    #[test]
    fn arns_and_urls_say_the_region() {
        let region = |queue| region_of(queue).map(|r| r.as_ref().to_owned());
        assert_eq!(region("arn:aws-cn:sqs:cn-north-1:123456789012:jobs").as_deref(), Some("cn-north-1"));
        assert_eq!(region("https://sqs.eu-west-1.amazonaws.com/123456789012/jobs").as_deref(), Some("eu-west-1"));
        assert_eq!(region("https://sqs.cn-north-1.amazonaws.com.cn/1/jobs").as_deref(), Some("cn-north-1"));
        for other in ["jobs", "http://127.0.0.1:4566/000000000000/jobs", "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/1/jobs"] {
            assert_eq!(region(other), None, "{other}");
        }
    }

    #[test]
    fn an_entry_that_the_answer_does_not_name_may_have_been_done() {
        let told = [("1".to_owned(), Ok(()))].into();
        let results = by_number(vec![1, 2], told, Op::Send, "q");
        assert!(results[0].1.is_ok());
        assert!(results[1].1.as_ref().is_err_and(|e| e.maybe_applied() && e.is_retryable()));
    }
}
