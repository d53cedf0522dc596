//! The job table of the original system (Data Transfer Hub): read, so that one can go on from it, and written, so that what
//! looks at it goes on to work.

use super::{
    client_config,
    error::classify,
    item::{Item, get_number, get_text, number, text},
};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::{
    Client,
    types::{KeyType, PutRequest, WriteRequest},
};
use dth_core::{
    env::{Env, SystemEnv, random_below},
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, ObjectKey, Sequencer},
    retry::RetryPolicy,
    sink::{Part, UploadId},
    state::{
        Advance, Claim, Committed, Failure, Fence, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite, Run, RunId,
        RunState, Shard, SourceVersion, StateStore, Status, WriteResult,
    },
};
use jiff::{Timestamp, tz::TimeZone};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// Its only key.
const KEY: &str = "ObjectKey";
/// Items of one BatchWriteItem.
const WRITES: usize = 25;
/// Rounds for what a batch leaves unprocessed.
const ROUNDS: u32 = 8;
/// The form of StartTime and EndTime.
const TIME: &str = "%Y/%m/%d %H:%M:%S";
/// The run that imported records name.
const IMPORTED: &str = "imported";
/// Keys whose start is remembered.
const MAX_STARTS: usize = 100_000;

/// Names of states in the original table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// `STARTED`
    Started,
    /// `DONE`
    Done,
    /// `ERROR`
    Error,
    /// `CANCEL`: the source was gone.
    Cancel,
    /// `SPLIT_DONE`: a giant object is cut into parts.
    SplitDone,
    /// `PART_DONE`: a part of a giant object.
    PartDone,
    /// `PART_ERROR`: a part of a giant object.
    PartError,
}

impl JobStatus {
    const ALL: [Self; 7] = [Self::Started, Self::Done, Self::Error, Self::Cancel, Self::SplitDone, Self::PartDone, Self::PartError];

    /// Its name in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "STARTED",
            Self::Done => "DONE",
            Self::Error => "ERROR",
            Self::Cancel => "CANCEL",
            Self::SplitDone => "SPLIT_DONE",
            Self::PartDone => "PART_DONE",
            Self::PartError => "PART_ERROR",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// What it is among ours. The parts of a giant object are a matter of its upload: the object itself has been started.
    pub fn status(self) -> Status {
        match self {
            Self::Started | Self::SplitDone | Self::PartDone | Self::PartError => Status::Started,
            Self::Done => Status::Done,
            Self::Error => Status::Failed,
            Self::Cancel => Status::Cancelled,
        }
    }

    /// What ours is called there, which knows nothing of deletions and of objects that were left out on purpose.
    fn of(status: Status) -> Self {
        match status {
            Status::Started => Self::Started,
            Status::Failed => Self::Error,
            Status::Cancelled => Self::Cancel,
            _ => Self::Done,
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// `ObjectKey`
    pub key: ObjectKey,
    /// `JobStatus`
    pub status: JobStatus,
    /// `Etag`, of the destination.
    pub etag: Option<ETag>,
    /// `Sequencer` of the event that asked for it.
    pub sequencer: Option<Sequencer>,
    /// `Size` in bytes.
    pub size: Option<u64>,
    /// `StartTimestamp` (seconds since 1970) and `StartTime`.
    pub started: Option<Timestamp>,
    /// `EndTimestamp` and `EndTime`; `SpentTime` is the difference in seconds.
    pub ended: Option<Timestamp>,
}

impl JobRow {
    /// A record as a row; `started` is when a worker took its job.
    pub fn of(record: &Record, started: Option<Timestamp>) -> Self {
        let over = record.status != Status::Started;
        Self {
            key: record.key.clone(),
            status: JobStatus::of(record.status),
            etag: record.destination.clone().filter(|_| record.status == Status::Done),
            sequencer: record.sequencer.clone(),
            size: record.source.as_ref().map(|s| s.size),
            started: Some(started.unwrap_or(record.updated)),
            ended: over.then_some(record.updated),
        }
    }

    fn from_item(item: &Item) -> Result<Self> {
        let key = get_text(item, KEY).unwrap_or_default();
        let wrong = |why: String| Error::new(ErrorKind::Invalid, Op::LoadState, format!("row `{key}`")).with_source(why);
        if key.is_empty() {
            return Err(wrong("it has no key".into()));
        }
        let name = get_text(item, "JobStatus").unwrap_or_default();
        let status = JobStatus::parse(name).ok_or_else(|| wrong(format!("JobStatus is `{name}`")))?;
        let filled = |name| get_text(item, name).map(str::trim).filter(|text| !text.is_empty());
        let time = |name| get_number::<i64>(item, name).filter(|s| *s > 0).and_then(|s| Timestamp::from_second(s).ok());
        Ok(Self {
            key: ObjectKey::new(key),
            status,
            etag: filled("Etag").map(|etag| ETag::new(etag.trim_matches('"'))),
            sequencer: filled("Sequencer").and_then(Sequencer::new),
            size: get_number(item, "Size"),
            started: time("StartTimestamp"),
            ended: time("EndTimestamp"),
        })
    }

    fn to_item(&self) -> Item {
        let mut item: Item = [(KEY.to_owned(), text(self.key.as_str())), ("JobStatus".to_owned(), text(self.status.as_str()))].into();
        let mut set = |name: &str, value| item.insert(name.to_owned(), value);
        if let Some(etag) = &self.etag {
            set("Etag", text(etag.as_str()));
        }
        if let Some(sequencer) = &self.sequencer {
            set("Sequencer", text(sequencer.as_str()));
        }
        if let Some(size) = self.size {
            set("Size", number(size));
        }
        let shown = |at: Timestamp| text(at.to_zoned(TimeZone::UTC).strftime(TIME).to_string());
        if let Some(at) = self.started {
            set("StartTimestamp", number(at.as_second()));
            set("StartTime", shown(at));
        }
        if let Some(at) = self.ended {
            set("EndTimestamp", number(at.as_second()));
            set("EndTime", shown(at));
        }
        if let (Some(from), Some(to)) = (self.started, self.ended) {
            set("SpentTime", number((to.as_second() - from.as_second()).max(0)));
        }
        item
    }

    /// As a record that a later write replaces. The etag of the source is not in the table, so that a record of an object that is
    /// done proves nothing by itself; its sequencer keeps older events from being done again.
    fn to_record(&self, now: Timestamp) -> Record {
        let mut record =
            Record::new(self.key.clone(), RunId::new(IMPORTED), self.status.status(), self.ended.or(self.started).unwrap_or(now));
        record.source = self.size.map(|size| SourceVersion { etag: None, size, version: None });
        record.destination = self.etag.clone().filter(|_| self.status == JobStatus::Done);
        record.sequencer.clone_from(&self.sequencer);
        if self.status == JobStatus::Error {
            record.failure =
                Some(Failure { kind: ErrorKind::Internal, text: "it failed in the original system, which kept no cause".into() });
        }
        record
    }
}

/// What became of the rows of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Rows that are records now.
    pub imported: u64,
    /// Rows of objects that had a record, which stays.
    pub known: u64,
    /// Rows that cannot be read.
    pub not_read: u64,
    /// Which, and why; the first hundred.
    pub unreadable: Vec<String>,
}

/// The job table of the original system: partition key `ObjectKey`, no sort key.
#[derive(Clone)]
pub struct JobTable {
    client: Client,
    table: Arc<str>,
}

impl fmt::Debug for JobTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobTable({})", self.table)
    }
}

impl JobTable {
    /// Opens the table. `NotFound` when there is none, `Invalid` when its key is another one.
    pub async fn open(config: &SdkConfig, table: &str) -> Result<Self> {
        let client = Client::from_conf(client_config!(aws_sdk_dynamodb, config));
        let described = client.describe_table().table_name(table).send().await.map_err(|e| classify(Op::Connect, table, e))?;
        let schema = described.table.map(|t| t.key_schema.unwrap_or_default()).unwrap_or_default();
        let keys: Vec<(&str, &KeyType)> = schema.iter().map(|k| (k.attribute_name(), k.key_type())).collect();
        if keys != [(KEY, &KeyType::Hash)] {
            let why = format!("its key is {keys:?}, that of the original job table is `{KEY}` alone");
            return Err(Error::new(ErrorKind::Invalid, Op::Connect, table).with_source(why));
        }
        Ok(Self { client, table: table.into() })
    }

    /// Rows by key; those that do not exist are left out.
    pub async fn rows(&self, keys: &[ObjectKey]) -> Result<Vec<JobRow>> {
        let mut found = Vec::new();
        for key in keys {
            let asked = [(KEY.to_owned(), text(key.as_str()))].into();
            let call = self.client.get_item().table_name(&*self.table).set_key(Some(asked)).consistent_read(true);
            let answer = call.send().await.map_err(|e| classify(Op::LoadState, &*self.table, e))?;
            found.extend(answer.item.as_ref().map(JobRow::from_item).transpose()?);
        }
        Ok(found)
    }

    /// Makes records of all rows whose objects have none. Done again, it goes on where it was.
    ///
    /// What it gives: events older than those that the original system dealt with stay undone, and its failures are known to
    /// `retry_failed`. To be run before the first worker.
    pub async fn import(&self, state: &dyn StateStore, env: &dyn Env) -> Result<Imported> {
        let retry = RetryPolicy::default();
        let mut told = Imported::default();
        let mut after: Option<Item> = None;
        loop {
            let page = retry
                .run(env, || async {
                    let call = self.client.scan().table_name(&*self.table).set_exclusive_start_key(after.clone());
                    call.send().await.map_err(|e| classify(Op::LoadState, &*self.table, e))
                })
                .await?;
            let mut rows = Vec::new();
            for item in page.items() {
                match JobRow::from_item(item) {
                    Ok(row) => rows.push(row),
                    Err(error) => {
                        told.not_read += 1;
                        if told.unreadable.len() < 100 {
                            told.unreadable.push(error.chain());
                        }
                    }
                }
            }
            for rows in rows.chunks(WRITES) {
                self.import_some(rows, state, env, &retry, &mut told).await?;
            }
            after = page.last_evaluated_key;
            if after.is_none() {
                return Ok(told);
            }
        }
    }

    async fn import_some(
        &self,
        rows: &[JobRow],
        state: &dyn StateStore,
        env: &dyn Env,
        retry: &RetryPolicy,
        told: &mut Imported,
    ) -> Result<()> {
        // Nobody else has a pack of this name.
        let pack = PackId::new(format!("import-{:016x}{:016x}", env.random(), env.random()));
        let jobs: Vec<(ObjectKey, Option<Origin>)> = rows.iter().map(|row| (row.key.clone(), None)).collect();
        let claim = retry.run(env, || state.claim(&pack, None, env.random() >> 1, &jobs)).await?;
        let unknown = rows.iter().zip(&claim.records).filter(|(_, known)| known.is_none()).map(|(row, _)| row);
        let writes: Vec<RecordWrite> = unknown.map(|row| RecordWrite { record: row.to_record(env.now()), ends: Vec::new() }).collect();
        told.known += (rows.len() - writes.len()) as u64;
        match retry.run(env, || state.commit(&claim.fence, &writes)).await? {
            Committed::Written(results) => {
                let imported = results.iter().filter(|r| matches!(r, WriteResult::Applied(_))).count() as u64;
                told.imported += imported;
                told.known += results.len() as u64 - imported;
                Ok(())
            }
            Committed::Fenced => Err(Error::new(ErrorKind::Conflict, Op::SaveState, pack.as_str())),
        }
    }

    /// Writes rows over those that are there.
    pub async fn write(&self, rows: &[JobRow]) -> Result<()> {
        // No key twice in one request: the last one stands.
        let rows: BTreeMap<&ObjectKey, &JobRow> = rows.iter().map(|row| (&row.key, row)).collect();
        let rows: Vec<&JobRow> = rows.into_values().collect();
        for chunk in rows.chunks(WRITES) {
            let put = |row: &&JobRow| {
                let put = PutRequest::builder().set_item(Some(row.to_item())).build();
                let put = put.map_err(|e| Error::new(ErrorKind::Internal, Op::SaveState, &*self.table).with_source(e))?;
                Ok(WriteRequest::builder().put_request(put).build())
            };
            let mut left = chunk.iter().map(put).collect::<Result<Vec<_>>>()?;
            for round in 0.. {
                let call = self.client.batch_write_item().request_items(&*self.table, left.clone());
                match call.send().await.map_err(|e| classify(Op::SaveState, &*self.table, e)) {
                    Ok(answer) => left = answer.unprocessed_items.and_then(|mut u| u.remove(&*self.table)).unwrap_or_default(),
                    Err(error) if error.is_retryable() && round < ROUNDS => {}
                    Err(error) => return Err(error),
                }
                if left.is_empty() {
                    break;
                }
                if round >= ROUNDS {
                    let why = format!("{} rows were left unwritten", left.len());
                    return Err(Error::new(ErrorKind::Throttled, Op::SaveState, &*self.table).with_source(why));
                }
                tokio::time::sleep(Duration::from_millis(random_below(&SystemEnv, 50 << round.min(6)))).await;
            }
        }
        Ok(())
    }

    /// A store that writes each record into this table too, after it is durable. The table is for those who look at it: a row that
    /// could not be written is logged, and nothing waits for it but its batch. One write an object more.
    pub fn mirror(self, state: Arc<dyn StateStore>) -> MirroredState {
        MirroredState { state, table: self, started: Arc::default() }
    }
}

/// A [`StateStore`] that keeps the job table of the original system up to date. Made by [`JobTable::mirror`].
#[derive(Debug, Clone)]
pub struct MirroredState {
    state: Arc<dyn StateStore>,
    table: JobTable,
    /// When this process took the job of a key.
    started: Arc<Mutex<HashMap<ObjectKey, Timestamp>>>,
}

impl MirroredState {
    fn started(&self) -> MutexGuard<'_, HashMap<ObjectKey, Timestamp>> {
        self.started.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl StateStore for MirroredState {
    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        let claim = self.state.claim(pack, run, incarnation, jobs).await?;
        let now = SystemEnv.now();
        let mut started = self.started();
        if started.len() + jobs.len() > MAX_STARTS {
            started.clear();
        }
        started.extend(jobs.iter().zip(&claim.ended).filter(|(_, ended)| !**ended).map(|((key, _), _)| (key.clone(), now)));
        drop(started);
        Ok(claim)
    }
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        let committed = self.state.commit(fence, writes).await?;
        if let Committed::Written(results) = &committed {
            // What is stored now: what was written, or, where that was refused, what stands in its way.
            let stored = writes.iter().zip(results).filter_map(|(write, result)| match result {
                WriteResult::Applied(_) => Some(&write.record),
                WriteResult::Conflict(stored) => stored.as_deref(),
            });
            let rows: Vec<JobRow> = {
                let mut started = self.started();
                stored
                    .map(|record| {
                        let at =
                            if record.status == Status::Started { started.get(&record.key).copied() } else { started.remove(&record.key) };
                        JobRow::of(record, at)
                    })
                    .collect()
            };
            if let Err(error) = self.table.write(&rows).await {
                tracing::error!(table = ?self.table, rows = rows.len(), error = %error.chain(), "rows of the old job table were not written");
            }
        }
        Ok(committed)
    }
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        self.state.records(keys).await
    }
    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        self.state.query(query, max).await
    }
    async fn may_have_begun_uploads(&self) -> Result<bool> {
        self.state.may_have_begun_uploads().await
    }
    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        self.state.save_parts(upload, parts).await
    }
    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        self.state.parts(upload, numbers).await
    }
    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool> {
        self.state.parts_complete(upload, saved, total).await
    }
    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        self.state.forget_parts(upload).await
    }
    async fn note(&self, name: &str) -> Result<Option<Note>> {
        self.state.note(name).await
    }
    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        self.state.save_note(name, text, replaces).await
    }

    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        self.state.start_run(run, shards).await
    }
    async fn run(&self, run: &RunId) -> Result<Run> {
        self.state.run(run).await
    }
    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        self.state.runs(max).await
    }
    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        self.state.move_run(run, from, to, now).await
    }
    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        self.state.shards(run).await
    }
    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        self.state.advance(run, step).await
    }
    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        self.state.outbox(run, max).await
    }
    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        self.state.release_held(run, go).await
    }
    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        self.state.forget_runs(ended_before).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as the original system leaves them, in DynamoDB's own JSON; each form by its file.
    fn fixture(text: &str) -> Item {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let attribute = |value: &serde_json::Value| match (value["S"].as_str(), value["N"].as_str()) {
            (Some(text), _) => super::text(text),
            (_, Some(digits)) => aws_sdk_dynamodb::types::AttributeValue::N(digits.to_owned()),
            _ => panic!("{value}"),
        };
        json.as_object().unwrap().iter().map(|(name, value)| (name.clone(), attribute(value))).collect()
    }

    #[test]
    fn rows_of_the_original_table_are_read_and_written() {
        let done = fixture(include_str!("../../fixtures/job-table/done.json"));
        let row = JobRow::from_item(&done).unwrap();
        assert_eq!((row.key.as_str(), row.status, row.size), ("photos/2022/a b+c é.jpg", JobStatus::Done, Some(10_240)));
        assert_eq!(row.etag.as_ref().map(ETag::as_str), Some("7ac66c0f148de9519b8bd264312c4d64"));
        assert_eq!(row.sequencer.as_ref().map(Sequencer::as_str), Some("0055AED6DCD90281E5"));
        // Attribute for attribute what was read.
        assert_eq!(row.to_item(), done);
        let record = row.to_record(Timestamp::UNIX_EPOCH);
        assert_eq!((record.status, record.sequencer, record.updated), (Status::Done, row.sequencer.clone(), row.ended.unwrap()));
        assert!(record.source.is_some_and(|s| s.etag.is_none() && s.size == 10_240), "nobody knows the source's etag");
    }

    #[test]
    fn every_state_of_the_original_table_is_known() {
        for (text, status) in [
            (include_str!("../../fixtures/job-table/started.json"), Status::Started),
            (include_str!("../../fixtures/job-table/error.json"), Status::Failed),
            (include_str!("../../fixtures/job-table/cancel.json"), Status::Cancelled),
            (include_str!("../../fixtures/job-table/split-done.json"), Status::Started),
            (include_str!("../../fixtures/job-table/part-done.json"), Status::Started),
            (include_str!("../../fixtures/job-table/part-error.json"), Status::Started),
        ] {
            let row = JobRow::from_item(&fixture(text)).unwrap();
            assert_eq!(row.status.status(), status);
            assert_eq!(row.to_record(Timestamp::UNIX_EPOCH).failure.is_some(), status == Status::Failed);
        }
        let mut odd = fixture(include_str!("../../fixtures/job-table/started.json"));
        odd.insert("JobStatus".into(), text("WHATEVER"));
        let error = JobRow::from_item(&odd).unwrap_err().chain();
        assert!(error.contains("WHATEVER") && error.contains("photos/"), "{error}");
    }

    /// What our records say in its words, attribute for attribute.
    #[test]
    fn records_are_written_as_the_original_writes_them() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let record = |key: &str, status, size, ended| {
            let mut record = Record::new(key.into(), RunId::new("r"), status, at(ended));
            record.source = Some(SourceVersion { etag: Some(ETag::new("of the source")), size, version: None });
            record
        };
        let written = |record: &Record| JobRow::of(record, Some(at(1_642_582_800))).to_item();
        let without = |mut item: Item, name: &str| {
            item.remove(name);
            item
        };
        let failed = record("photos/2022/c.jpg", Status::Failed, 7, 1_642_583_700);
        assert_eq!(written(&failed), fixture(include_str!("../../fixtures/job-table/error.json")));
        // Empty texts, and sequencers that say nothing, are left out.
        let cancelled = record("photos/2022/d.jpg", Status::Cancelled, 0, 1_642_582_801);
        assert_eq!(written(&cancelled), without(fixture(include_str!("../../fixtures/job-table/cancel.json")), "Etag"));
        let started = record("photos/2022/b.jpg", Status::Started, 52_428_800, 1_642_582_999);
        assert_eq!(written(&started), without(fixture(include_str!("../../fixtures/job-table/started.json")), "Sequencer"));
        let mut done = record("photos/2022/a b+c é.jpg", Status::Done, 10_240, 1_642_582_803);
        done.destination = Some(ETag::new("7ac66c0f148de9519b8bd264312c4d64"));
        done.sequencer = Sequencer::new("0055AED6DCD90281E5");
        assert_eq!(written(&done), fixture(include_str!("../../fixtures/job-table/done.json")));
    }
}
