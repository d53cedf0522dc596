//! The state in one DynamoDB table.
//!
//! | item | `pk` | `sk` |
//! |---|---|---|
//! | record of an object | `TASK#KEY` | `r` |
//! | pack: epoch, and a bit for each job that was counted | `TASK#PACK` | `p` |
//! | part of an upload | `TASK#UPLOAD` | `u#00001` |
//! | … the numbers of those that are saved, by 256 | `TASK#UPLOAD` | `n#0000` |
//! | note of a backend | `TASK#NAME` | `note` |
//! | run | `TASK#RUN` | `run` |
//! | … its outcomes, counted in one of 16 places | `TASK#RUN` | `c#07` |
//! | … its shards, with the totals of their pages | `TASK#RUN` | `s#0000000001` |
//! | … packs that were not sent yet | `TASK#RUN` | `z#PACK` |
//! | list of runs, the youngest first | `TASK` | `MILLISECONDS#RUN`, counted down from the end of time |
//!
//! No partition is hot: records and packs lie under hashes of their own, and outcomes are counted in 16 places of a run. A
//! partition key takes 2,048 bytes, a sort key 1,024: so keys of objects are partition keys. The index `status` holds the
//! records that are not `done`, spread over 16 partitions a status.

mod calls;
mod commit;

use super::item::{
    self, Expression, Item, bytes, get_bytes, get_number, get_text, key, need_number, need_text, number, tallies_of, text, totals_of,
    totals_to_numbers,
};
use super::{client_config, error::classify};
use crate::row::{More, corrupt, run_state, status};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::{
    Client,
    error::ProvideErrorMetadata as _,
    operation::{create_table::CreateTableError, update_item::UpdateItemError},
    types::{
        AttributeDefinition, AttributeValue, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
        ReturnValue, ScalarAttributeType, TableStatus, TimeToLiveSpecification, TimeToLiveStatus, WriteRequest,
    },
};
use calls::Transacted;
use commit::PackState;
use dth_core::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, ObjectKey},
    sink::{Part, UploadId},
    state::{
        Advance, Claim, Committed, Fence, FinderTotals, NOTES_KEPT, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite,
        Run, RunId, RunState, Shard, SourceVersion, StateStore, Status,
    },
};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::Hasher as _,
    io::{Read as _, Write as _},
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The index of records that are not done.
const STATUS_INDEX: &str = "status";
/// Partitions of a status in the index, and places of a run where outcomes are counted.
const SPREAD: u64 = 16;
/// Bytes of a partition key, by the service's limit.
const MAX_PK: usize = 2048;
/// Bytes of a sort key, by the service's limit.
const MAX_SK: usize = 1024;
/// Items of one transaction, by the service's limit.
const MAX_TRANSACTION: usize = 100;
/// Milliseconds since 1970 that no run begins after: fourteen digits.
const END_OF_TIME: i64 = 99_999_999_999_999;
/// Parts noted in one item: a set of so many numbers takes about a kilobyte.
const PARTS_A_SET: u32 = 256;
/// Packs of an outbox that are changed or deleted at once.
const OUTBOX_PAGE: usize = 500;
/// For so long a table may be in the making.
const TABLE_MADE: Duration = Duration::from_secs(120);
/// Packs and parts are forgotten so long after they were last needed: no message lives as long.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// A cancelled run is remembered while messages of it may be left: SQS keeps them for 14 days.
const MESSAGES_LIVE: Duration = Duration::from_secs(15 * 24 * 3600);

/// The state of one task in a DynamoDB table, which other tasks may share. Clones share it.
#[derive(Clone)]
pub struct DynamoStore {
    client: Client,
    table: Arc<str>,
    task: Arc<str>,
    env: SharedEnv,
    record_ttl: Option<Duration>,
    /// What this process knows of the packs that it works on.
    packs: Arc<Mutex<HashMap<PackId, PackState>>>,
}

impl fmt::Debug for DynamoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DynamoStore({}/{})", self.table, self.task)
    }
}

impl DynamoStore {
    /// Opens the state of `task` in a table. The name of a task has 1 to 64 letters, digits, `-`, `_` and `.`.
    ///
    /// `NotFound` when there is no such table, `Invalid` when it is not one of ours or the name of the task is not possible.
    pub async fn open(config: &SdkConfig, table: &str, task: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if task.is_empty() || task.len() > 64 || !task.chars().all(good) {
            return Err(Error::new(ErrorKind::Invalid, Op::Configure, format!("task `{task}`"))
                .with_source("a task's name has 1 to 64 letters, digits, `-`, `_` and `.`"));
        }
        let client = client(config);
        let described = client.describe_table().table_name(table).send().await.map_err(|e| classify(Op::Connect, table, e))?;
        let described = described.table.unwrap_or_else(|| aws_sdk_dynamodb::types::TableDescription::builder().build());
        let keys: Vec<&str> = described.key_schema().iter().map(KeySchemaElement::attribute_name).collect();
        let indexed = described.global_secondary_indexes().iter().any(|i| i.index_name() == Some(STATUS_INDEX));
        if keys != ["pk", "sk"] || !indexed {
            return Err(Error::new(ErrorKind::Invalid, Op::Connect, table).with_source(format!(
                "its keys are {keys:?}, ours are `pk` and `sk`, with an index `{STATUS_INDEX}`: let `DynamoStore::create` make a table"
            )));
        }
        Ok(Self { client, table: table.into(), task: task.into(), env: Arc::new(SystemEnv), record_ttl: None, packs: Arc::default() })
    }

    /// Makes the table where it does not exist (paid per request, with its index and time to live), and opens it.
    pub async fn create(config: &SdkConfig, table: &str, task: &str) -> Result<Self> {
        let client = client(config);
        let invalid = |e: aws_sdk_dynamodb::error::BuildError| Error::new(ErrorKind::Internal, Op::Configure, table).with_source(e);
        let attribute = |name: &str| AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build();
        let element = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        let index = GlobalSecondaryIndex::builder()
            .index_name(STATUS_INDEX)
            .key_schema(element("gpk", KeyType::Hash).map_err(invalid)?)
            .key_schema(element("gsk", KeyType::Range).map_err(invalid)?)
            .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
            .build()
            .map_err(invalid)?;
        let mut call = client
            .create_table()
            .table_name(table)
            .billing_mode(BillingMode::PayPerRequest)
            .key_schema(element("pk", KeyType::Hash).map_err(invalid)?)
            .key_schema(element("sk", KeyType::Range).map_err(invalid)?)
            .global_secondary_indexes(index);
        for name in ["pk", "sk", "gpk", "gsk"] {
            call = call.attribute_definitions(attribute(name).map_err(invalid)?);
        }
        let begun = tokio::time::Instant::now();
        let mut asked = false;
        loop {
            let described = client.describe_table().table_name(table).send().await.map_err(|e| classify(Op::Connect, table, e));
            let waited = begun.elapsed();
            match described.map(|d| d.table.and_then(|t| t.table_status)) {
                Ok(Some(TableStatus::Active | TableStatus::Updating)) => break,
                Err(error) if error.kind() == ErrorKind::NotFound && !asked => {
                    asked = true;
                    match call.clone().send().await {
                        // Somebody else was faster.
                        Err(error) if matches!(error.as_service_error(), Some(CreateTableError::ResourceInUseException(_))) => {}
                        made => drop(made.map_err(|e| classify(Op::Configure, table, e))?),
                    }
                }
                // A table that was just made may not be known everywhere.
                Err(error) if error.kind() != ErrorKind::NotFound || waited > TABLE_MADE => return Err(error),
                Ok(status) if waited > TABLE_MADE => {
                    let status = status.map_or_else(String::new, |s| s.as_str().to_owned());
                    let text = format!("it is {status} after {} s", waited.as_secs());
                    return Err(Error::new(ErrorKind::Unavailable, Op::Configure, table).with_source(text));
                }
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
        // Whoever made the table may have died before this.
        let described = client.describe_time_to_live().table_name(table).send().await.map_err(|e| classify(Op::Connect, table, e))?;
        let status = described.time_to_live_description.and_then(|d| d.time_to_live_status);
        if !matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)) {
            let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name("ttl").build().map_err(invalid)?;
            let call = client.update_time_to_live().table_name(table).time_to_live_specification(ttl);
            match call.send().await {
                // Somebody else is enabling it.
                Err(error) if error.as_service_error().is_some_and(|e| e.code() == Some("ValidationException")) => {
                    tracing::debug!(error = %error, "time to live is not enabled by this process");
                }
                enabled => drop(enabled.map_err(|e| classify(Op::Configure, table, e))?),
            }
        }
        Self::open(config, table, task).await
    }

    /// Sets clock and randomness.
    pub fn with_env(mut self, env: SharedEnv) -> Self {
        self.env = env;
        self
    }

    /// Forgets records of objects that are done after so long; without it they are kept. A finder that does not know a
    /// record any more compares by etags alone.
    pub fn with_record_ttl(mut self, ttl: Duration) -> Self {
        self.record_ttl = Some(ttl);
        self
    }

    /// The partition key of a thing of this task.
    fn pk(&self, name: &str) -> String {
        format!("{}#{name}", self.task)
    }

    fn record_key(&self, key: &ObjectKey) -> Result<Item> {
        let pk = self.pk(key.as_str());
        if pk.len() > MAX_PK {
            return Err(Error::new(ErrorKind::Unrepresentable, Op::SaveState, key.to_string())
                .with_source(format!("a key in DynamoDB has at most {MAX_PK} bytes, the task's name included: keep the state elsewhere")));
        }
        Ok(item::key(pk, "r"))
    }

    fn run_key(&self, run: &RunId) -> Item {
        key(self.pk(run.as_str()), "run")
    }

    /// Where a run is listed: later ones before earlier ones.
    fn listed_key(&self, run: &RunId, started: i64) -> Item {
        key(&*self.task, format!("{:014}#{run}", END_OF_TIME - started))
    }

    fn outbox_key(&self, run: &RunId, pack: &PackId) -> Item {
        key(self.pk(run.as_str()), format!("z#{}", pack.as_str()))
    }

    /// Seconds since 1970 at which an item may be forgotten.
    fn expiry(&self, after: Duration) -> aws_sdk_dynamodb::types::AttributeValue {
        number(self.env.now().as_second() + i64::try_from(after.as_secs()).unwrap_or(i64::MAX / 2))
    }

    /// Where a key lies in the status index.
    fn status_partition(&self, status: Status, key: &ObjectKey) -> String {
        // Any fixed spread will do; it must be the same in every process and version.
        let mut hash = Fnv::default();
        hash.write(key.as_str().as_bytes());
        format!("{}#{}#{:02}", self.task, status.as_str(), hash.finish() % SPREAD)
    }

    fn record_to_item(&self, record: &Record) -> Result<Item> {
        let mut item = self.record_key(&record.key)?;
        item.insert("v".into(), number(record.version));
        item.insert("st".into(), text(record.status.as_str()));
        item.insert("run".into(), text(record.run.as_str()));
        item.insert("n".into(), number(record.attempts));
        item.insert("at".into(), number(record.updated.as_millisecond()));
        if let Some(source) = &record.source {
            item.insert("size".into(), number(source.size));
            if let Some(etag) = &source.etag {
                item.insert("etag".into(), text(etag.as_str()));
            }
        }
        if let Some(etag) = &record.destination {
            item.insert("there".into(), text(etag.as_str()));
        }
        if let Some(more) = More::of(record).to_json() {
            item.insert("more".into(), text(more));
        }
        match (record.status, self.record_ttl) {
            // A sweep must know that uploads were begun.
            (Status::Done, Some(ttl)) if record.uploads_since.is_none() => {
                item.insert("ttl".into(), self.expiry(ttl));
            }
            (Status::Done, _) => {}
            (status, _) => {
                item.insert("gpk".into(), text(self.status_partition(status, &record.key)));
                item.insert("gsk".into(), text(sort_key(&record.key)));
            }
        }
        Ok(item)
    }

    fn record_of(&self, item: &Item) -> Result<Record> {
        let key = self.key_of(item)?;
        let more = More::parse(get_text(item, "more"))?;
        let source = get_number(item, "size").map(|size| SourceVersion {
            etag: get_text(item, "etag").map(ETag::new),
            size,
            version: more.source_version,
        });
        Ok(Record {
            key,
            version: need_number(item, "v")?,
            status: status(need_text(item, "st")?)?,
            run: RunId::new(need_text(item, "run")?),
            source,
            destination: get_text(item, "there").map(ETag::new),
            checksum: more.checksum,
            verified: more.verified,
            upload: more.upload,
            uploads_since: more.uploads_since,
            attempts: need_number(item, "n")?,
            failure: more.failure,
            not_carried: more.not_carried,
            appended: more.appended,
            sequencer: more.sequencer,
            waiting: more.waiting,
            updated: time(need_number(item, "at")?),
        })
    }

    fn key_of(&self, item: &Item) -> Result<ObjectKey> {
        let pk = need_text(item, "pk")?;
        let key = pk.strip_prefix(&*self.task).and_then(|rest| rest.strip_prefix('#'));
        key.map(ObjectKey::new).ok_or_else(|| corrupt(&format!("item `{pk}`")))
    }

    /// Records by key; a key may be asked for twice.
    async fn records_by_key(&self, keys: impl Iterator<Item = &ObjectKey>) -> Result<BTreeMap<ObjectKey, Record>> {
        let distinct: BTreeSet<&ObjectKey> = keys.collect();
        // A key that no record can have has none.
        let asked = distinct.into_iter().filter_map(|key| self.record_key(key).ok()).collect();
        let records = self.get_all(asked).await?.into_iter().map(|item| self.record_of(&item));
        records.map(|record| record.map(|r| (r.key.clone(), r))).collect()
    }

    async fn query_index(&self, status: Status, after: Option<&ObjectKey>, max: usize) -> Result<Vec<ObjectKey>> {
        let from = after.map(sort_key);
        let partitions = (0..SPREAD).map(|n| format!("{}#{}#{n:02}", self.task, status.as_str()));
        let pages =
            partitions.map(|partition| {
                let mut call = self.client.query().table_name(&*self.table).index_name(STATUS_INDEX).limit(max.min(1000) as i32);
                call = call.expression_attribute_names("#p", "gpk").expression_attribute_values(":p", text(partition));
                call = match &from {
                    Some(from) => call
                        .key_condition_expression("#p = :p AND #s > :after")
                        .expression_attribute_names("#s", "gsk")
                        .expression_attribute_values(":after", text(from)),
                    None => call.key_condition_expression("#p = :p"),
                };
                async move {
                    self.one_of_many(|| async { call.clone().send().await.map_err(|e| classify(Op::LoadState, &*self.table, e)) }).await
                }
            });
        let mut found = Vec::new();
        for page in futures_util::future::try_join_all(pages).await? {
            let keys = page.items().iter().map(|item| self.key_of(item)).collect::<Result<Vec<_>>>()?;
            found.push((keys, page.last_evaluated_key.is_some()));
        }
        Ok(in_order(found, max))
    }

    async fn scan(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let mut filter = Expression::default();
        let (pk, task) = (filter.name("pk"), filter.value(text(self.pk(""))));
        filter.when(format!("begins_with({pk}, {task})"));
        filter.when_equal("sk", text("r"));
        if let Some(status) = query.status {
            filter.when_equal("st", text(status.as_str()));
        }
        if let Some(run) = &query.run {
            filter.when_equal("run", text(run.as_str()));
        }
        let mut after = query.after.as_ref().map(|key| self.record_key(key)).transpose()?;
        let mut found = Vec::new();
        loop {
            let call = self
                .client
                .scan()
                .table_name(&*self.table)
                .set_filter_expression(filter.condition())
                .set_expression_attribute_names(filter.names())
                .set_expression_attribute_values(filter.values())
                .set_exclusive_start_key(after)
                .consistent_read(true);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::LoadState, &*self.table, e)) };
            let page = self.one_of_many(call).await?;
            for item in page.items() {
                found.push(self.record_of(item)?);
                if found.len() == max {
                    return Ok(found);
                }
            }
            after = page.last_evaluated_key;
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// Writes what becomes of each pack in the outbox of a run, a few at a time: there may be millions.
    async fn change_outbox(&self, run: &RunId, filter: &Expression, change: impl Fn(Item) -> Result<WriteRequest>) -> Result<u64> {
        let pk = self.pk(run.as_str());
        let mut from = "z#".to_owned();
        let mut count = 0;
        loop {
            let items = self.range(&pk, &from, "z#~", filter, OUTBOX_PAGE).await?;
            let full = items.len() == OUTBOX_PAGE;
            if let Some(last) = items.last() {
                // None of these is found again once it is changed.
                need_text(last, "sk")?.clone_into(&mut from);
            }
            count += items.len() as u64;
            self.write_all(items.into_iter().map(&change).collect::<Result<_>>()?).await?;
            if !full {
                return Ok(count);
            }
        }
    }

    /// Deletes what lies in the outbox of a run, held or not.
    async fn clear_outbox(&self, run: &RunId, filter: &Expression) -> Result<u64> {
        self.change_outbox(run, filter, |item| self.delete_request(only_key(&item))).await
    }

    fn held() -> Expression {
        let mut held = Expression::default();
        held.when_equal("held", number(1));
        held
    }
}

fn client(config: &SdkConfig) -> Client {
    Client::from_conf(client_config!(aws_sdk_dynamodb, config))
}

/// The least keys of pages of several partitions, each in order, and whether it goes on: at most `max`, and as far as all are known.
fn in_order(pages: Vec<(Vec<ObjectKey>, bool)>, max: usize) -> Vec<ObjectKey> {
    // Behind the last key of a page that goes on there may be more: nothing of the others may be told before it.
    let known_to = pages.iter().filter(|(_, goes_on)| *goes_on).filter_map(|(keys, _)| keys.last()).min().cloned();
    let mut found: Vec<ObjectKey> = pages.into_iter().flat_map(|(keys, _)| keys).collect();
    found.sort_unstable();
    if let Some(end) = known_to {
        found.retain(|key| *key <= end);
    }
    found.truncate(max);
    found
}

fn only_key(item: &Item) -> Item {
    item.iter().filter(|(name, _)| matches!(name.as_str(), "pk" | "sk")).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The numbers in a set of parts.
fn saved_of(item: &Item) -> impl Iterator<Item = u32> {
    let numbers = item.get("saved").and_then(|set| set.as_ns().ok());
    numbers.into_iter().flatten().filter_map(|n| n.parse().ok())
}

/// The key as far as a sort key goes: records that begin alike so far come in any order.
fn sort_key(key: &ObjectKey) -> String {
    let key = key.as_str();
    key[..key.floor_char_boundary(MAX_SK)].to_owned()
}

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

fn deflate(body: &str) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish()).expect("memory takes what is written")
}

fn inflate(body: &[u8]) -> Result<String> {
    let mut text = String::new();
    DeflateDecoder::new(body).read_to_string(&mut text).map_err(|e| corrupt("a pack that was not sent yet").with_source(e))?;
    Ok(text)
}

/// FNV-1a, which stays the same for ever.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn shard_sk(id: u32) -> String {
    format!("s#{id:010}")
}

fn shard_of(item: &Item) -> Result<Shard> {
    let place = |name| get_text(item, name).map(ObjectKey::new);
    let id = need_text(item, "sk")?.strip_prefix("s#").and_then(|id| id.parse().ok());
    Ok(Shard {
        id: id.ok_or_else(|| corrupt("a shard without a number"))?,
        after: place("after"),
        until: place("until"),
        position: place("position"),
        done: need_number::<u8>(item, "done")? == 1,
        version: need_number(item, "v")?,
    })
}

fn shard_update(shard: &Shard) -> Expression {
    let mut update = Expression::default();
    let place = |key: &Option<ObjectKey>| key.as_ref().map(|k| text(k.as_str()));
    update.set_or_remove("after", place(&shard.after));
    update.set_or_remove("until", place(&shard.until));
    update.set_or_remove("position", place(&shard.position));
    update.set("done", number(u8::from(shard.done)));
    update.set("v", number(shard.version + 1));
    if shard.version == 0 {
        update.when_missing("v");
    } else {
        update.when_equal("v", number(shard.version));
    }
    update
}

fn add_totals(update: &mut Expression, totals: &FinderTotals) {
    for (name, by) in totals_to_numbers(totals) {
        update.add(&name, by);
    }
}

#[async_trait]
impl StateStore for DynamoStore {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        let found = self.records_by_key(keys.iter()).await?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let Some(status) = query.status.filter(|s| *s != Status::Done) else { return self.scan(query, max).await };
        let mut after = query.after.clone();
        let mut records = Vec::new();
        while records.len() < max {
            let keys = self.query_index(status, after.as_ref(), max).await?;
            let Some(last) = keys.last() else { break };
            after = Some(last.clone());
            let mut found = self.records_by_key(keys.iter()).await?;
            // The index is a moment behind.
            let wanted = |r: &Record| r.status == status && query.run.as_ref().is_none_or(|run| r.run == *run);
            records.extend(keys.iter().filter_map(|key| found.remove(key)).filter(wanted));
        }
        records.truncate(max);
        Ok(records)
    }

    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        self.claim_pack(pack, run, incarnation, jobs).await
    }

    /// Atomic up to 90 writes: more are written 90 at a time.
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        self.commit_writes(fence, writes).await
    }

    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        let requests = parts.iter().map(|part| {
            let mut item = key(self.pk(upload.as_str()), format!("u#{:05}", part.number));
            item.insert("part".into(), text(serde_json::to_string(part).expect("plain data")));
            item.insert("ttl".into(), self.expiry(FORGET_AFTER));
            self.put_request(item)
        });
        self.write_all(requests.collect::<Result<_>>()?).await
    }

    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        let [from, to] = [numbers.start(), numbers.end()].map(|number| format!("u#{number:05}"));
        let items = self.range(&self.pk(upload.as_str()), &from, &to, &Expression::default(), usize::MAX).await?;
        let part = |item| serde_json::from_str(need_text(item, "part")?).map_err(|e| corrupt("a part").with_source(e));
        items.iter().map(part).collect()
    }

    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool> {
        let mut groups: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for number in saved {
            groups.entry(number / PARTS_A_SET).or_default().push(number.to_string());
        }
        let pk = self.pk(upload.as_str());
        // Whichever update comes last of all fills its own set, whatever this caller saw of the other one before.
        let mut full = groups.is_empty();
        for (group, numbers) in groups {
            let (name, values) = ("#s", ":s");
            let call = self
                .client
                .update_item()
                .table_name(&*self.table)
                .set_key(Some(key(&*pk, format!("n#{group:04}"))))
                .update_expression(format!("ADD {name} {values} SET #t = :t"))
                .expression_attribute_names(name, "saved")
                .expression_attribute_names("#t", "ttl")
                .expression_attribute_values(values, AttributeValue::Ns(numbers))
                .expression_attribute_values(":t", self.expiry(FORGET_AFTER))
                .return_values(ReturnValue::AllNew);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::SaveState, &*self.table, e)) };
            let answer = self.one_of_many(call).await?;
            let of_group = (group * PARTS_A_SET).max(1)..=(group * PARTS_A_SET + PARTS_A_SET - 1).min(total);
            full |= answer.attributes.is_some_and(|item| saved_of(&item).filter(|n| of_group.contains(n)).count() == of_group.count());
        }
        // Only who fills a set up looks at the others.
        if !full {
            return Ok(false);
        }
        let sets = self.range(&pk, "n#", "n#~", &Expression::default(), usize::MAX).await?;
        Ok(sets.iter().flat_map(saved_of).filter(|n| (1..=total).contains(n)).count() == total as usize)
    }

    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        let items = self.range(&self.pk(upload.as_str()), "n#", "u#~", &Expression::default(), usize::MAX).await?;
        self.write_all(items.iter().map(|item| self.delete_request(only_key(item))).collect::<Result<_>>()?).await
    }

    async fn note(&self, name: &str) -> Result<Option<Note>> {
        let items = self.range(&self.pk(name), "note", "note", &Expression::default(), 1).await?;
        let note = |item: &Item| Ok(Note { text: need_text(item, "note")?.to_owned(), version: need_number(item, "v")? });
        items.first().map(note).transpose()
    }

    async fn save_note(&self, name: &str, noted: &str, replaces: u64) -> Result<bool> {
        let items = || {
            let mut item = key(self.pk(name), "note");
            item.insert("note".into(), text(noted));
            item.insert("v".into(), number(replaces + 1));
            item.insert("ttl".into(), self.expiry(NOTES_KEPT));
            let mut still = Expression::default();
            if replaces == 0 {
                still.when_missing("v");
            } else {
                still.when_equal("v", number(replaces));
            }
            Ok(vec![self.put(item, &still)?])
        };
        Ok(matches!(self.transact(items).await?, Transacted::Done))
    }

    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        if shards.len() + 2 > MAX_TRANSACTION {
            let text = format!("run {} with {} shards", run.id, shards.len());
            return Err(Error::new(ErrorKind::Invalid, Op::SaveState, text).with_source("begin with at most 98"));
        }
        let started = run.started.as_millisecond();
        let items = || {
            let mut item = self.run_key(&run.id);
            item.insert("st".into(), text(run.state.as_str()));
            item.insert("started".into(), number(started));
            item.extend(totals_to_numbers(&run.totals).into_iter().map(|(name, n)| (name, number(n))));
            let mut first = Expression::default();
            first.when_missing("st");
            let mut items = vec![self.put(item, &first)?, self.put(self.listed_key(&run.id, started), &Expression::default())?];
            for shard in shards {
                items.push(self.update(key(self.pk(run.id.as_str()), shard_sk(shard.id)), &shard_update(shard))?);
            }
            Ok(items)
        };
        match self.transact(items).await? {
            Transacted::Done => Ok(()),
            Transacted::Refused(_) => Err(Error::new(ErrorKind::Conflict, Op::SaveState, format!("run {}", run.id))),
        }
    }

    async fn run(&self, run: &RunId) -> Result<Run> {
        let items = self.range(&self.pk(run.as_str()), "c#", "s#~", &Expression::default(), usize::MAX).await?;
        let Some(base) = items.iter().find(|item| get_text(item, "sk") == Some("run")) else {
            return Err(Error::new(ErrorKind::NotFound, Op::LoadState, format!("run {run}")));
        };
        let mut found = Run {
            id: run.clone(),
            state: run_state(need_text(base, "st")?)?,
            started: time(need_number(base, "started")?),
            ended: get_number(base, "ended").map(time),
            totals: FinderTotals::default(),
            outcomes: BTreeMap::new(),
        };
        for item in &items {
            found.totals.add(&totals_of(item));
            for (label, tally) in tallies_of(item, "o:") {
                *found.outcomes.entry(label).or_default() += tally;
            }
        }
        Ok(found)
    }

    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        let mut after: Option<Item> = None;
        loop {
            let call = self
                .client
                .query()
                .table_name(&*self.table)
                .key_condition_expression("#pk = :pk")
                .expression_attribute_names("#pk", "pk")
                .expression_attribute_values(":pk", text(&*self.task))
                .consistent_read(true)
                .set_limit(i32::try_from(max - runs.len()).ok())
                .set_exclusive_start_key(after);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::LoadState, &*self.table, e)) };
            let page = self.one_of_many(call).await?;
            for item in page.items() {
                let id = need_text(item, "sk")?.split_once('#').map(|(_, id)| RunId::new(id));
                match self.run(&id.ok_or_else(|| corrupt("a run without an id"))?).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    run => runs.push(run?),
                }
            }
            after = page.last_evaluated_key;
            if after.is_none() || runs.len() >= max {
                return Ok(runs);
            }
        }
    }

    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        let mut update = Expression::default();
        update.when_equal("st", text(from.as_str()));
        update.set("st", text(to.as_str()));
        update.set_or_remove("ended", to.is_over().then(|| number(now.as_millisecond())));
        let call = self
            .client
            .update_item()
            .table_name(&*self.table)
            .set_key(Some(self.run_key(run)))
            .update_expression(update.update())
            .set_condition_expression(update.condition())
            .set_expression_attribute_names(update.names())
            .set_expression_attribute_values(update.values());
        // A finder's steps look at this item all the time, and get in its way.
        let moved = self.one_of_many(|| async {
            match call.clone().send().await {
                Err(error) if matches!(error.as_service_error(), Some(UpdateItemError::ConditionalCheckFailedException(_))) => Ok(false),
                moved => moved.map(|_| true).map_err(|e| classify(Op::SaveState, &*self.table, e)),
            }
        });
        if !moved.await? {
            let held = self.run(run).await?.state;
            if held != to {
                let text = format!("run {run} is {}, not {}", held.as_str(), from.as_str());
                return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text));
            }
        }
        if to.is_over() {
            self.clear_outbox(run, &Expression::default()).await?;
        }
        Ok(())
    }

    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        let items = self.range(&self.pk(run.as_str()), "run", "s#~", &Expression::default(), usize::MAX).await?;
        if items.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, Op::LoadState, format!("run {run}")));
        }
        items.iter().filter(|item| get_text(item, "sk") != Some("run")).map(shard_of).collect()
    }

    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        if 1 + step.shards.len() + step.packs.len() > MAX_TRANSACTION {
            let text = format!("a step with {} packs", step.packs.len());
            return Err(Error::new(ErrorKind::Invalid, Op::SaveState, text)
                .with_source("DynamoDB takes 100 items in a transaction: raise `finder.pack_bytes`"));
        }
        let late = step.shards.is_empty() && step.packs.is_empty();
        let bodies: Vec<Vec<u8>> = step.packs.iter().map(|p| deflate(&p.body)).collect();
        let items = || {
            let mut of_run = Expression::default();
            let st = of_run.name("st");
            if late {
                of_run.when(format!("attribute_exists({st})"));
            } else {
                let going = [RunState::Finding, RunState::Transferring].map(|state| of_run.value(text(state.as_str())));
                of_run.when(format!("{st} IN ({})", going.join(", ")));
            }
            let mut items = Vec::new();
            // The totals of a step go to its first shard, which is written anyway: the run is not.
            if step.shards.is_empty() && !totals_to_numbers(&step.totals).is_empty() {
                add_totals(&mut of_run, &step.totals);
                items.push(self.update(self.run_key(run), &of_run)?);
            } else {
                items.push(self.check(self.run_key(run), &of_run)?);
            }
            for (n, shard) in step.shards.iter().enumerate() {
                let mut update = shard_update(shard);
                if n == 0 {
                    add_totals(&mut update, &step.totals);
                }
                items.push(self.update(key(self.pk(run.as_str()), shard_sk(shard.id)), &update)?);
            }
            for (pack, body) in step.packs.iter().zip(&bodies) {
                let mut item = self.outbox_key(run, &pack.pack);
                item.insert("body".into(), bytes(body.clone()));
                item.insert("held".into(), number(u8::from(pack.held)));
                items.push(self.put(item, &Expression::default())?);
            }
            Ok(items)
        };
        let nothing = late && totals_to_numbers(&step.totals).is_empty();
        if !nothing && let Transacted::Refused(which) = self.transact(items).await? {
            let shard = which.iter().find_map(|at| step.shards.get(at.checked_sub(1)?));
            let Some(shard) = shard else {
                let state = self.run(run).await?.state.as_str();
                return Err(Error::new(ErrorKind::Precondition, Op::SaveState, format!("run {run} is {state}")));
            };
            return Err(Error::new(ErrorKind::Precondition, Op::SaveState, format!("shard {} of run {run}", shard.id))
                .with_source("another finder works on this run"));
        }
        let sent = step.sent.iter().map(|pack| self.delete_request(self.outbox_key(run, pack))).collect::<Result<Vec<_>>>()?;
        if let Err(error) = self.write_all(sent).await {
            if nothing {
                return Err(error);
            }
            // The step is done; what stays in the outbox is sent once more, which does no harm.
            tracing::warn!(error = %error.chain(), "packs that were sent stay in the outbox");
        }
        Ok(())
    }

    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        let mut free = Expression::default();
        free.when_equal("held", number(0));
        let items = self.range(&self.pk(run.as_str()), "z#", "z#~", &free, max).await?;
        let pack = |item: &Item| {
            let id = need_text(item, "sk")?.strip_prefix("z#").unwrap_or_default();
            let body = inflate(get_bytes(item, "body").unwrap_or_default())?;
            Ok(OutboxPack { pack: PackId::new(id), body, held: false })
        };
        items.iter().map(pack).collect()
    }

    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        if !go {
            return self.clear_outbox(run, &Self::held()).await;
        }
        let free = |mut item: Item| {
            item.insert("held".into(), number(0));
            self.put_request(item)
        };
        self.change_outbox(run, &Self::held(), free).await
    }

    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        let mut forgotten = 0;
        let now = self.env.now();
        for run in self.runs(usize::MAX).await? {
            let Some(ended) = run.ended.filter(|ended| *ended < ended_before) else { continue };
            let quiet = ended.saturating_add(MESSAGES_LIVE).is_ok_and(|end| end < now);
            if run.state == RunState::Cancelled && !quiet {
                continue;
            }
            let items = self.range(&self.pk(run.id.as_str()), "c#", "z#~", &Expression::default(), usize::MAX).await?;
            // While the run itself and its line in the list are there, whatever is left over is found again.
            let rest = items.iter().filter(|item| get_text(item, "sk") != Some("run"));
            self.write_all(rest.map(|item| self.delete_request(only_key(item))).collect::<Result<_>>()?).await?;
            let listed = self.listed_key(&run.id, run.started.as_millisecond());
            let last = || [self.run_key(&run.id), listed.clone()].into_iter().map(|key| self.delete(key)).collect();
            if let Transacted::Refused(_) = self.one_of_many(|| self.transact(last)).await? {
                return Err(Error::new(ErrorKind::Internal, Op::SaveState, format!("run {}", run.id)));
            }
            forgotten += 1;
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever lies in which partition, and however short their pages are, page by page all come out, in order.
        #[test]
        fn pages_of_partitions_are_one_list(
            partitions in proptest::collection::vec(proptest::collection::btree_set("[a-d]{1,3}", 0..12), 1..5),
            page in 1usize..4,
            max in 1usize..6,
        ) {
            let of = |keys: &BTreeSet<String>| keys.iter().map(|k| ObjectKey::new(k.as_str())).collect::<BTreeSet<_>>();
            let mut all: Vec<ObjectKey> = Vec::new();
            // A key lies in one partition.
            let mut seen = BTreeSet::new();
            let partitions: Vec<Vec<ObjectKey>> =
                partitions.iter().map(|keys| of(keys).into_iter().filter(|k| seen.insert(k.clone())).collect()).collect();
            let mut after: Option<ObjectKey> = None;
            loop {
                let pages = partitions.iter().map(|keys| {
                    let rest: Vec<ObjectKey> = keys.iter().filter(|k| after.as_ref().is_none_or(|a| *k > a)).cloned().collect();
                    (rest.iter().take(page).cloned().collect(), rest.len() > page)
                });
                let found = in_order(pages.collect(), max);
                prop_assert!(found.len() <= max);
                let Some(last) = found.last() else { break };
                after = Some(last.clone());
                all.extend(found);
            }
            prop_assert_eq!(all, seen.into_iter().collect::<Vec<_>>());
        }
    }
}
