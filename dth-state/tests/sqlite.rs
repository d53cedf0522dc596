//! Queue and state in one file: what the engine relies on, with two handles as two processes would have them.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    env::{Env, SystemEnv},
    error::ErrorKind,
    job::Intake,
    memory::{MemoryStore, MemoryStoreSettings},
    object::{ETag, EtagKind, ObjectKey},
    queue::{Message, Queue},
    retry::RetryPolicy,
    runs,
    sink::{Part, UploadId},
    state::{
        Advance, Committed, Failure, FinderTotals, JobEnd, Origin, OutboxPack, Outcome, PackId, Record, RecordQuery, RecordWrite, Run,
        RunId, RunState, Shard, StateStore, Status, Tally, WriteResult,
    },
    sync::Sync,
};
use dth_state::Sqlite;
use std::{path::PathBuf, sync::Arc, time::Duration};

struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("dth-state-{name}-{}.db", std::process::id())));
        file.remove();
        file
    }

    fn open(&self) -> Sqlite {
        Sqlite::open(&self.0).unwrap()
    }

    fn remove(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.remove();
    }
}

const LEASE: Duration = Duration::from_millis(80);

async fn send(queue: &Sqlite, body: &str) {
    queue.send(&[Message { body: body.into(), delay: Duration::ZERO }]).await.unwrap().pop().unwrap().unwrap();
}

/// A slow worker whose lease ended cannot extend, release or remove the next worker's message.
#[tokio::test]
async fn a_stale_receipt_does_nothing() {
    let file = File::new("stale");
    let (a, b) = (file.open(), file.open());
    send(&a, "m").await;
    let stale = a.receive(1, LEASE, Duration::ZERO).await.unwrap().pop().unwrap();
    tokio::time::sleep(LEASE * 2).await;
    let fresh = b.receive(1, Duration::from_secs(60), Duration::from_secs(5)).await.unwrap().pop().unwrap();
    assert_eq!((fresh.body.as_str(), fresh.receives), ("m", 2));
    assert_eq!(a.extend(&stale.receipt, LEASE).await.unwrap_err().kind(), ErrorKind::NotFound);
    a.ack(&stale.receipt).await.unwrap();
    a.release(&stale.receipt, Duration::ZERO).await.unwrap();
    a.dead_letter(&stale, "no").await.unwrap();
    let depth = b.depth().await.unwrap();
    assert_eq!((depth.leased, depth.ready, depth.dead), (1, 0, 0));
    b.ack(&fresh.receipt).await.unwrap();
    assert_eq!(b.depth().await.unwrap().pending(), 0);
}

/// A waiting receiver sees what another process sends.
#[tokio::test]
async fn receivers_wait_for_other_processes() {
    let file = File::new("wait");
    let (a, b) = (file.open(), file.open());
    let receive = b.receive(1, LEASE, Duration::from_secs(10));
    let (received, ()) = tokio::join!(receive, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        send(&a, "late").await;
    });
    assert_eq!(received.unwrap().len(), 1);
}

fn end(pack: &PackId, index: u32) -> JobEnd {
    JobEnd { run: RunId::new("r"), origin: Origin(pack.clone(), index), outcome: Outcome::COPIED, bytes: 10 }
}

/// An older epoch writes nothing, a wrong version conflicts, and a job counts once.
#[tokio::test]
async fn commits_are_fenced_versioned_and_counted_once() {
    let file = File::new("fence");
    let (a, b) = (file.open(), file.open());
    let (run, pack, key) = (RunId::new("r"), PackId::new("p"), ObjectKey::from("k\n日"));
    a.start_run(&Run::new(run.clone(), SystemEnv.now()), &[Shard::all()]).await.unwrap();
    let jobs = [(key.clone(), Some(Origin(pack.clone(), 9)))];
    let first = a.claim(&pack, None, 7, &jobs).await.unwrap();
    let second = b.claim(&pack, None, 8, &jobs).await.unwrap();
    assert_eq!((first.fence.incarnation, second.fence.epoch), (second.fence.incarnation, 2));
    let mut record = Record::new(key.clone(), run.clone(), Status::Done, SystemEnv.now());
    record.destination = Some(ETag::new("e"));
    let write = |record: &Record| [RecordWrite { record: record.clone(), ends: vec![end(&pack, 9)] }];
    assert_eq!(a.commit(&first.fence, &write(&record)).await.unwrap(), Committed::Fenced);
    assert_eq!(b.records(std::slice::from_ref(&key)).await.unwrap(), [None]);
    assert_eq!(b.commit(&second.fence, &write(&record)).await.unwrap(), Committed::Written(vec![WriteResult::Applied(1)]));
    let again = b.commit(&second.fence, &write(&record)).await.unwrap();
    assert!(matches!(again, Committed::Written(results) if matches!(results[0], WriteResult::Conflict(Some(_)))));
    record.version = 1;
    b.commit(&second.fence, &write(&record)).await.unwrap();
    assert_eq!(a.run(&run).await.unwrap().outcome("copied"), Tally { objects: 1, bytes: 10 }, "counted once");
    assert_eq!(a.claim(&pack, None, 9, &jobs).await.unwrap().ended, [true]);
}

/// A step of the finder happens whole, once, and not after the run was called off.
#[tokio::test]
async fn finder_steps_are_all_or_nothing() {
    let file = File::new("step");
    let state = file.open();
    let run = RunId::new("r");
    state.start_run(&Run::new(run.clone(), SystemEnv.now()), &[Shard::all()]).await.unwrap();
    let shard = state.shards(&run).await.unwrap().pop().unwrap();
    let totals = FinderTotals { listed: Tally::one(5), ..FinderTotals::default() };
    let pack = OutboxPack { pack: PackId::new("p"), body: "b".into(), held: false };
    let step = Advance { shards: vec![shard], totals, packs: vec![pack], sent: Vec::new() };
    state.advance(&run, &step).await.unwrap();
    assert_eq!(state.advance(&run, &step).await.unwrap_err().kind(), ErrorKind::Precondition, "the shard moved on");
    assert_eq!(state.run(&run).await.unwrap().totals.listed, Tally::one(5));
    assert_eq!(state.outbox(&run, 9).await.unwrap().len(), 1);
    state.move_run(&run, RunState::Finding, RunState::Cancelled, SystemEnv.now()).await.unwrap();
    assert!(state.outbox(&run, 9).await.unwrap().is_empty());
    let late = Advance { shards: state.shards(&run).await.unwrap(), ..Advance::default() };
    assert_eq!(state.advance(&run, &late).await.unwrap_err().kind(), ErrorKind::Precondition);
}

#[tokio::test]
async fn records_and_parts_round_trip() {
    let file = File::new("round");
    let state = file.open();
    let pack = PackId::new("p");
    let keys = ["", "a", "a\n", "a\u{1}", "é", "e\u{301}", "😀"].map(ObjectKey::from);
    let jobs: Vec<_> = keys.iter().map(|k| (k.clone(), None)).collect();
    let claim = state.claim(&pack, None, 1, &jobs).await.unwrap();
    let writes: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut record = Record::new(key.clone(), RunId::new("r"), Status::Skipped, SystemEnv.now());
            record.not_carried = vec!["tags".into()];
            record.updated = jiff_ms(record.updated);
            RecordWrite { record, ends: Vec::new() }
        })
        .collect();
    state.commit(&claim.fence, &writes).await.unwrap();
    let mut expected: Vec<Record> = writes.into_iter().map(|w| Record { version: 1, ..w.record }).collect();
    expected.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(state.query(&RecordQuery::default(), 100).await.unwrap(), expected, "in byte order");
    let upload = UploadId::new("u");
    let part = Part { number: 2, size: 7, etag: ETag::new("e"), opaque_etag: true, checksum: None };
    state.save_parts(&upload, std::slice::from_ref(&part)).await.unwrap();
    assert_eq!(state.parts(&upload, 1..=10).await.unwrap(), [part]);
    state.forget_parts(&upload).await.unwrap();
    assert!(state.parts(&upload, 1..=10).await.unwrap().is_empty());
}

fn jiff_ms(at: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(at.as_millisecond()).unwrap()
}

/// Etags that say nothing about each other: a second run knows by the record, and finds a change of the same size (T8).
#[tokio::test]
async fn recorded_pairs_of_etags_spare_the_second_copy() {
    let file = File::new("pairs");
    let opaque =
        |name: &str| MemoryStore::new(MemoryStoreSettings { name: name.into(), etag: EtagKind::Opaque, ..MemoryStoreSettings::default() });
    let (source, sink) = (opaque("a"), opaque("b"));
    for i in 0..300 {
        source.insert(format!("k{i}"), format!("body {i}"));
    }
    let task = || {
        let state = Arc::new(file.open());
        let (queue, store): (Arc<dyn Queue>, Arc<dyn StateStore>) = (state.clone(), state);
        Sync::new(Arc::new(source.clone()), Arc::new(sink.clone())).with_state(queue, store)
    };
    let first = task().run().await.unwrap();
    assert_eq!(first.run.outcomes_like("copied").objects, 300, "{first}");
    let second = task().run().await.unwrap();
    assert_eq!((second.run.totals.unchanged.objects, second.run.totals.queued.objects), (300, 0), "{second}");
    source.insert("k7", "BODY 7");
    let third = task().run().await.unwrap();
    assert_eq!(third.run.outcomes_like("copied").objects, 1, "{third}");
    assert_eq!(sink.get(&"k7".into()).unwrap().body, "BODY 7");
}

/// Dead letters are sent again as a run of their own, whose ledger closes.
#[tokio::test]
async fn dead_letters_are_redriven_as_a_run() {
    let file = File::new("redrive");
    let state = file.open();
    send(&state, r#"{"key":"a","size":3}"#).await;
    let delivery = state.receive(1, Duration::from_secs(60), Duration::ZERO).await.unwrap().pop().unwrap();
    state.dead_letter(&delivery, "access denied").await.unwrap();
    let retry = RetryPolicy::default();
    assert!(runs::redrive(&state, &state, Some("something else"), &Intake::everything(), &SystemEnv, &retry).await.unwrap().is_none());
    let run = runs::redrive(&state, &state, Some("denied"), &Intake::everything(), &SystemEnv, &retry).await.unwrap().unwrap();
    assert_eq!((run.sent_jobs(), state.depth().await.unwrap().dead), (1, 0));
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("a", "abc");
    let shared = Arc::new(state);
    let report = Sync::new(Arc::new(source), Arc::new(sink)).with_state(shared.clone(), shared).run().await.unwrap();
    assert_eq!(report.run.id, run.id);
    assert!(report.is_success(), "{report}");
}

/// A file of the first version is brought up when it is opened, with what is in it.
#[tokio::test]
async fn an_older_file_is_brought_up() {
    let file = File::new("migrate");
    drop(file.open());
    let old = rusqlite::Connection::open(&file.0).unwrap();
    old.execute_batch(
        "DROP INDEX record_uploads; DROP TABLE note; DROP INDEX pack_of_event; ALTER TABLE pack DROP COLUMN claimed; DROP INDEX pack_run; ALTER TABLE pack DROP COLUMN run;
         DROP INDEX message_visible; CREATE INDEX message_visible ON message (visible_at);
         INSERT INTO message (body, visible_at) VALUES ('kept', 0);
         INSERT INTO record (key, version, status, run, attempts, updated, more)
           VALUES ('old', 1, 'started', 'r', 1, 0, '{\"uploads_since\":\"2026-01-02T03:04:05Z\"}');
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let state = file.open();
    assert_eq!(state.depth().await.unwrap().ready, 1);
    let fence = state.claim(&PackId::new("p"), Some(&RunId::new("r")), 1, &[]).await.unwrap().fence;
    assert!(state.may_have_begun_uploads().await.unwrap());
    rusqlite::Connection::open(&file.0).unwrap().execute_batch("DELETE FROM record").unwrap();
    assert!(!state.may_have_begun_uploads().await.unwrap());
    let record = |key: &str| Record::new(key.into(), RunId::new("r"), Status::Started, jiff::Timestamp::UNIX_EPOCH);
    let told = Some(Failure { kind: ErrorKind::Denied, text: "\"uploads_since\":".into() });
    let write = async |record| state.commit(&fence, &[RecordWrite { record, ends: Vec::new() }]).await.unwrap();
    write(Record { failure: told, ..record("a") }).await;
    assert!(!state.may_have_begun_uploads().await.unwrap(), "that is a text");
    write(Record { uploads_since: Some(jiff::Timestamp::UNIX_EPOCH), ..record("b") }).await;
    assert!(state.may_have_begun_uploads().await.unwrap());
}

/// A task that lives on events stays as small as what is under way.
#[tokio::test]
async fn packs_of_events_are_forgotten_after_days() {
    let file = File::new("events");
    let state = file.open();
    let claim = async |name: &str, run: Option<&RunId>| state.claim(&PackId::new(name), run, 1, &[]).await.unwrap().fence.epoch;
    for n in 0..12 {
        claim(&format!("event {n}"), None).await;
    }
    claim("of a run", Some(&RunId::new("r"))).await;
    let database = || rusqlite::Connection::open(&file.0).unwrap();
    let earlier = "UPDATE pack SET claimed = claimed - 73 * 3600 * 1000 WHERE id <> 'event 3'";
    database().execute_batch(earlier).unwrap();
    for _ in 0..3 {
        claim("another", None).await;
    }
    let left = |sql: &str| -> i64 { database().query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(left("SELECT count(*) FROM pack"), 3, "one of a run, one of today, one that is new");
    assert_eq!((claim("event 3", None).await, claim("of a run", Some(&RunId::new("r"))).await), (2, 2));
}

/// Retention: a run that ended goes with its packs; records, and runs that are open, stay.
#[tokio::test]
async fn runs_are_forgotten_with_their_packs() {
    let (source, sink) = (MemoryStore::default(), MemoryStore::default());
    source.insert("k", "body");
    let file = File::new("forget");
    let state = Arc::new(file.open());
    let task = Sync::new(Arc::new(source), Arc::new(sink)).with_state(Arc::clone(&state) as _, Arc::clone(&state) as _);
    let done = task.run().await.unwrap().run;
    let open = Run::new(RunId::new("open"), SystemEnv.now());
    state.start_run(&open, &[Shard::all()]).await.unwrap();
    assert_eq!(state.forget_runs(done.started).await.unwrap(), 0, "it ended later");
    let tomorrow = SystemEnv.now().saturating_add(Duration::from_secs(86_400)).unwrap();
    assert_eq!(state.forget_runs(tomorrow).await.unwrap(), 1);
    assert_eq!(state.runs(10).await.unwrap().iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["open"]);
    let rows = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        rusqlite::Connection::open(&file.0).unwrap().query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(["pack", "outcome", "outbox", "record", "shard"].map(rows), [0, 0, 0, 1, 1]);
}
