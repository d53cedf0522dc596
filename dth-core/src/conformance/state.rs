//! What the engine relies on in a state store.

use super::{Broken, Checked, StateBench, Verdict, hold, promises};
use crate::{
    checksum::{Algorithm, Checksum},
    error::ErrorKind,
    object::{ETag, ObjectKey, Sequencer, VersionId},
    sink::{Part, UploadId},
    state::{
        Advance, Appended, Claim, Committed, Failure, Fence, FinderTotals, JobEnd, Origin, OutboxPack, Outcome, PackId, PartChecks, Record,
        RecordQuery, RecordWrite, Run, RunId, RunState, Shard, SharedUpload, SourceVersion, Status, Tally, UploadRecord, Verified, Waiting,
        WriteResult,
    },
};
use jiff::Timestamp;

promises! { $ state, StateBench, conformance_state:
    a_record_comes_back_as_written
    a_commit_of_an_older_delivery_is_refused_whole
    records_are_replaced_by_version
    a_claim_tells_what_is_known
    a_job_counts_once
    records_are_listed_in_pages
    uploads_once_begun_are_known
    parts_are_kept_and_forgotten
    the_last_parts_are_known_as_such
    notes_are_replaced_by_version
    a_run_starts_once
    runs_are_listed_youngest_first
    a_run_moves_from_where_it_is
    finder_steps_are_all_or_nothing
    totals_add_up
    the_outbox_keeps_what_was_not_sent
    held_packs_wait_for_a_decision
    a_run_that_is_over_takes_no_steps
    old_runs_are_forgotten_and_others_are_not
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap_or(Timestamp::MAX)
}

fn run(name: &str) -> Run {
    Run::new(RunId::new(name), at(0))
}

fn pack(name: &str) -> PackId {
    PackId::new(name)
}

fn record(key: &str) -> Record {
    Record::new(key.into(), RunId::new("run"), Status::Done, at(5))
}

fn out(name: &str, held: bool) -> OutboxPack {
    OutboxPack { pack: pack(name), body: format!("body of {name}"), held }
}

impl StateBench {
    async fn claim(&self, name: &str, key: &str) -> Result<Claim, Broken> {
        let jobs = [(ObjectKey::new(key), Some(Origin(pack(name), 0)))];
        Ok(self.state.claim(&pack(name), Some(&RunId::new("run")), 77, &jobs).await?)
    }

    async fn write(&self, fence: &Fence, record: Record, end: Option<JobEnd>) -> Result<WriteResult, Broken> {
        match self.state.commit(fence, &[RecordWrite { record, ends: end.into_iter().collect() }]).await? {
            Committed::Written(mut results) if results.len() == 1 => Ok(results.remove(0)),
            other => Err(Broken(format!("one write was answered by {other:?}"))),
        }
    }

    async fn record(&self, key: &str) -> Result<Option<Record>, Broken> {
        let mut records = self.state.records(&[key.into()]).await?;
        hold!(records.len() == 1, "{} records for one key", records.len());
        Ok(records.remove(0))
    }

    async fn started(&self) -> Result<RunId, Broken> {
        let run = run("run");
        self.state.start_run(&run, &[Shard::all()]).await?;
        Ok(run.id)
    }
}

/// That an upload was begun is known from then on, be it ended or not.
pub async fn uploads_once_begun_are_known(bench: &StateBench) -> Checked {
    let claim = bench.claim("p", "k").await?;
    bench.write(&claim.fence, record("k"), None).await?;
    let begun = Record { status: Status::Started, uploads_since: Some(at(1)), ..record("begun") };
    bench.write(&claim.fence, begun.clone(), None).await?;
    hold!(bench.state.may_have_begun_uploads().await?, "an upload that was begun is not known");
    bench.write(&claim.fence, Record { version: 1, status: Status::Done, ..begun }, None).await?;
    hold!(bench.state.may_have_begun_uploads().await?, "once its object is done, an upload is not known");
    Ok(Verdict::Held)
}

/// Every field of a record survives.
pub async fn a_record_comes_back_as_written(bench: &StateBench) -> Checked {
    let source = SourceVersion { etag: Some(ETag::new("e-2")), size: 1 << 40, version: Some(VersionId::new("v1")) };
    let checks = PartChecks { parity: true, algorithms: vec![Algorithm::Md5], judge: Some(Algorithm::Md5) };
    let shared = SharedUpload { checks, closer: Some(pack("closer")), wrong: vec![ETag::new("w")] };
    let written = Record {
        source: Some(source.clone()),
        destination: Some(ETag::new("d")),
        checksum: Some(Checksum { algorithm: Algorithm::Crc64Nvme, value: vec![1, 2, 3, 4, 5, 6, 7, 8] }),
        verified: Some(Verified::Source(Algorithm::Md5)),
        upload: Some(UploadRecord { id: Some(UploadId::new("u")), part_size: 5 << 20, source, shared: Some(shared) }),
        uploads_since: Some(at(1)),
        attempts: 3,
        failure: Some(Failure { kind: ErrorKind::Denied, text: "no\nway 🦀".into() }),
        not_carried: vec!["tags".into()],
        sequencer: Sequencer::new("0055AED6DCD90281E5"),
        appended: Some(Appended { source: VersionId::new("v2"), destination: VersionId::new("d/+=") }),
        waiting: vec![Waiting { run: RunId::new("r"), origin: Origin(pack("w"), 7) }],
        ..record("é\n%2F+ \u{1}🦀")
    };
    let claim = bench.claim("p", "k").await?;
    let result = bench.write(&claim.fence, written.clone(), None).await?;
    hold!(result == WriteResult::Applied(1), "the first write of a record: {result:?}");
    let read = bench.record(written.key.as_str()).await?;
    let expected = Record { version: 1, ..written };
    hold!(read.as_ref() == Some(&expected), "written {expected:?}, read {read:?}");
    hold!(bench.record("another").await?.is_none(), "a record of a key that was never written");
    Ok(Verdict::Held)
}

/// Once a later delivery has claimed a pack, an earlier one writes nothing.
pub async fn a_commit_of_an_older_delivery_is_refused_whole(bench: &StateBench) -> Checked {
    let first = bench.claim("p", "k").await?;
    let second = bench.claim("p", "k").await?;
    hold!(second.fence.epoch > first.fence.epoch, "epochs {} and {}", first.fence.epoch, second.fence.epoch);
    let late = bench.state.commit(&first.fence, &[RecordWrite { record: record("k"), ends: Vec::new() }]).await?;
    hold!(late == Committed::Fenced, "a superseded delivery was answered {late:?}");
    hold!(bench.record("k").await?.is_none(), "and it wrote");
    let empty = bench.state.commit(&first.fence, &[]).await?;
    hold!(empty == Committed::Fenced, "its question whether it still holds was answered {empty:?}");
    hold!(bench.write(&second.fence, record("k"), None).await? == WriteResult::Applied(1), "the later one was refused");
    let other = Fence { incarnation: first.fence.incarnation + 1, ..second.fence };
    let other = bench.state.commit(&other, &[]).await?;
    hold!(other == Committed::Fenced, "another incarnation was answered {other:?}");
    Ok(Verdict::Held)
}

/// A write names the version that it replaces; another one is not written, the rest of the batch is.
pub async fn records_are_replaced_by_version(bench: &StateBench) -> Checked {
    let claim = bench.claim("p", "k").await?;
    hold!(bench.write(&claim.fence, record("k"), None).await? == WriteResult::Applied(1), "the first write");
    let stale = RecordWrite { record: Record { attempts: 9, ..record("k") }, ends: Vec::new() };
    let fresh = RecordWrite { record: record("other"), ends: Vec::new() };
    let Committed::Written(results) = bench.state.commit(&claim.fence, &[stale, fresh]).await? else {
        return Err(Broken("the delivery was refused".into()));
    };
    let conflict = matches!(&results[0], WriteResult::Conflict(Some(stored)) if stored.version == 1 && stored.attempts == 0);
    hold!(conflict, "a stale version was answered {:?}", results[0]);
    hold!(results[1] == WriteResult::Applied(1), "its neighbour was answered {:?}", results[1]);
    hold!(bench.record("k").await?.is_some_and(|r| r.attempts == 0), "a stale write was written");
    let next = Record { version: 1, attempts: 2, ..record("k") };
    hold!(bench.write(&claim.fence, next, None).await? == WriteResult::Applied(2), "the write of the right version");
    Ok(Verdict::Held)
}

/// A claim answers, for each job, whether it ended, and the record of its key.
pub async fn a_claim_tells_what_is_known(bench: &StateBench) -> Checked {
    bench.started().await?;
    let jobs: Vec<_> = ["a", "b", "c"].iter().enumerate().map(|(i, k)| (ObjectKey::new(*k), Some(Origin(pack("p"), i as u32)))).collect();
    let claim = bench.state.claim(&pack("p"), Some(&RunId::new("run")), 1, &jobs).await?;
    hold!(claim.ended == [false; 3] && claim.records.iter().all(Option::is_none), "of new jobs it knows {claim:?}");
    let end = JobEnd { run: RunId::new("run"), origin: Origin(pack("p"), 1), outcome: Outcome::COPIED, bytes: 1 };
    bench.write(&claim.fence, record("b"), Some(end)).await?;
    let claim = bench.state.claim(&pack("p"), Some(&RunId::new("run")), 2, &jobs).await?;
    hold!(claim.ended == [false, true, false], "ended: {:?}", claim.ended);
    hold!(claim.records[1].as_ref().is_some_and(|r| r.version == 1), "the record: {:?}", claim.records[1]);
    Ok(Verdict::Held)
}

/// However often the end of a job is written, by whichever message, its run counts it once.
pub async fn a_job_counts_once(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let end = || Some(JobEnd { run: RunId::new("run"), origin: Origin(pack("p"), 0), outcome: Outcome::COPIED, bytes: 10 });
    let first = bench.claim("p", "k").await?;
    bench.write(&first.fence, record("k"), end()).await?;
    let again = bench.claim("p", "k").await?;
    bench.write(&again.fence, Record { version: 1, ..record("k") }, end()).await?;
    // The job left its pack as a message of its own.
    let alone = bench.claim("q", "k").await?;
    bench.write(&alone.fence, Record { version: 2, ..record("k") }, end()).await?;
    let counted = bench.state.run(&id).await?.outcomes;
    hold!(counted.len() == 1 && counted.get("copied") == Some(&Tally { objects: 1, bytes: 10 }), "counted {counted:?}");
    // One write may end several jobs, of several runs.
    let other = Run::new(RunId::new("other"), at(0));
    bench.state.start_run(&other, &[Shard::all()]).await?;
    let both = bench.claim("both", "k").await?;
    let end = |run: &RunId, index| JobEnd { run: run.clone(), origin: Origin(pack("both"), index), outcome: Outcome::Deleted, bytes: 3 };
    let write = RecordWrite { record: Record { version: 3, ..record("k") }, ends: vec![end(&id, 1), end(&other.id, 2)] };
    bench.state.commit(&both.fence, &[write]).await?;
    for run in [&id, &other.id] {
        let counted = bench.state.run(run).await?.outcome("deleted");
        hold!(counted == Tally { objects: 1, bytes: 3 }, "run {run} counted {counted:?}");
    }
    // What was not written does not count either.
    let lost = JobEnd { run: RunId::new("run"), origin: Origin(pack("q"), 5), outcome: Outcome::COPIED, bytes: 10 };
    let conflict = bench.write(&alone.fence, record("k"), Some(lost)).await?;
    hold!(matches!(conflict, WriteResult::Conflict(_)), "a stale version was answered {conflict:?}");
    hold!(bench.state.run(&id).await?.ended_jobs() == 2, "a write that was refused was counted");
    Ok(Verdict::Held)
}

/// Each record comes once, a page at a time, by status and by run.
pub async fn records_are_listed_in_pages(bench: &StateBench) -> Checked {
    let claim = bench.claim("p", "k").await?;
    let keys = ["a", "a/b", "ab", "b", "z", "é", "🦀"];
    for (i, key) in keys.iter().enumerate() {
        let status = if i % 2 == 0 { Status::Done } else { Status::Failed };
        let run = RunId::new(if i < 3 { "early" } else { "late" });
        bench.write(&claim.fence, Record { status, run, ..record(key) }, None).await?;
    }
    let mut found = Vec::new();
    let mut query = RecordQuery::default();
    loop {
        let page = bench.state.query(&query, 2).await?;
        hold!(page.len() <= 2, "a page of {}", page.len());
        let Some(last) = page.last() else { break };
        query.after = Some(last.key.clone());
        found.extend(page.into_iter().map(|r| r.key.as_str().to_owned()));
    }
    // Pages come in an order of the store's own.
    found.sort_unstable();
    hold!(found == keys, "listed {found:?}");
    let mut failed = Vec::new();
    let mut query = RecordQuery { status: Some(Status::Failed), ..RecordQuery::default() };
    while let page = bench.state.query(&query, 2).await?
        && let Some(last) = page.last()
    {
        query.after = Some(last.key.clone());
        failed.extend(page);
    }
    hold!(failed.len() == 3 && failed.iter().all(|r| r.status == Status::Failed), "failed ones: {failed:?}");
    let early = bench.state.query(&RecordQuery { run: Some(RunId::new("early")), ..RecordQuery::default() }, 100).await?;
    hold!(early.len() == 3, "those of a run: {early:?}");
    Ok(Verdict::Held)
}

/// Parts of an upload are remembered until they are forgotten; those of another upload are another matter.
pub async fn parts_are_kept_and_forgotten(bench: &StateBench) -> Checked {
    let part = |number, etag: &str| Part { number, size: 7, etag: ETag::new(etag), opaque_etag: number == 2, checksum: None };
    let (ours, other) = (UploadId::new("ours"), UploadId::new("other"));
    bench.state.save_parts(&ours, &[part(2, "b"), part(10, "c")]).await?;
    bench.state.save_parts(&ours, &[part(1, "a"), part(2, "again")]).await?;
    bench.state.save_parts(&other, &[part(3, "x")]).await?;
    let parts = bench.state.parts(&ours, 1..=10_000).await?;
    hold!(parts == [part(1, "a"), part(2, "again"), part(10, "c")], "kept {parts:?}");
    let some = bench.state.parts(&ours, 2..=9).await?;
    hold!(some == [part(2, "again")], "of those from 2 to 9: {some:?}");
    bench.state.forget_parts(&ours).await?;
    hold!(bench.state.parts(&ours, 1..=10_000).await?.is_empty(), "forgotten parts are there");
    hold!(bench.state.parts(&other, 1..=10_000).await?.len() == 1, "the parts of another upload were forgotten");
    Ok(Verdict::Held)
}

/// Whoever saves the last parts of an upload is told so, nobody is told too early, and all 10,000 parts can be counted.
pub async fn the_last_parts_are_known_as_such(bench: &StateBench) -> Checked {
    let part = |number| Part { number, size: 7, etag: ETag::new("e"), opaque_etag: false, checksum: None };
    for (name, total, orders) in [("few", 5, [vec![5], vec![2, 3], vec![1, 2], vec![4]]), ("many", 10_000, many_parts())] {
        let upload = UploadId::new(name);
        let last = orders.len() - 1;
        for (n, numbers) in orders.into_iter().enumerate() {
            for some in numbers.chunks(2000) {
                bench.state.save_parts(&upload, &some.iter().map(|n| part(*n)).collect::<Vec<_>>()).await?;
            }
            // Answers get lost: it is asked twice.
            for _ in 0..2 {
                let complete = bench.state.parts_complete(&upload, &numbers, total).await?;
                hold!(complete == (n == last), "{name}: with step {n} of {last} it is said to be complete: {complete}");
            }
        }
        hold!(bench.state.parts(&upload, 1..=10_000).await?.len() == total as usize, "{name}: not all parts are kept");
        bench.state.forget_parts(&upload).await?;
        hold!(!bench.state.parts_complete(&upload, &[1], total).await?, "{name}: complete after it was forgotten");
    }
    // Two at once, each with what the other one lacks: not both may be told that parts are missing.
    let (upload, total) = (UploadId::new("at once"), 600);
    let numbers = |rest: u32| (1..=total).filter(|n| n % 2 == rest).collect::<Vec<_>>();
    for some in (1..=total).collect::<Vec<_>>().chunks(200) {
        bench.state.save_parts(&upload, &some.iter().map(|n| part(*n)).collect::<Vec<_>>()).await?;
    }
    let (odd, even) = (numbers(1), numbers(0));
    let (one, other) =
        tokio::try_join!(bench.state.parts_complete(&upload, &odd, total), bench.state.parts_complete(&upload, &even, total))?;
    hold!(one || other, "both were told that parts are missing");
    bench.state.forget_parts(&upload).await?;
    Ok(Verdict::Held)
}

/// A note comes back as written, and is replaced by those who know it only.
pub async fn notes_are_replaced_by_version(bench: &StateBench) -> Checked {
    let (state, name) = (&bench.state, "blob sha256:0123 é");
    hold!(state.note(name).await?.is_none(), "a note that nobody wrote");
    hold!(state.save_note(name, "first \"é\"", 0).await?, "the first note is refused");
    let first = state.note(name).await?;
    let Some(first) = first.filter(|note| note.text == "first \"é\"" && note.version > 0) else {
        return Err(Broken("the note is not what was written".into()));
    };
    for wrong in [0, first.version + 1] {
        hold!(!state.save_note(name, "other", wrong).await?, "a note is replaced by version {wrong}, and it has {}", first.version);
    }
    hold!(state.save_note(name, "second", first.version).await?, "the next note is refused");
    let second = state.note(name).await?;
    hold!(second.as_ref().is_some_and(|n| n.text == "second" && n.version > first.version), "{second:?} after {first:?}");
    hold!(!state.save_note(name, "late", first.version).await?, "a note is replaced that was not seen");
    hold!(state.note("blob sha256:0124 é").await?.is_none(), "one note is under two names");
    Ok(Verdict::Held)
}

/// Every number up to 10,000 in four steps.
fn many_parts() -> [Vec<u32>; 4] {
    let all = |rest: u32| (1..=10_000).filter(|n| n % 4 == rest).collect();
    [all(3), all(0), all(2), all(1)]
}

/// A run's id is taken once; a run that was never begun is not found.
pub async fn a_run_starts_once(bench: &StateBench) -> Checked {
    let unknown = bench.state.run(&RunId::new("nobody")).await;
    hold!(matches!(&unknown, Err(error) if error.kind() == ErrorKind::NotFound), "an unknown run: {unknown:?}");
    let id = bench.started().await?;
    let again = bench.state.start_run(&run("run"), &[Shard::all()]).await;
    hold!(matches!(&again, Err(error) if error.kind() == ErrorKind::Conflict), "the same id again: {again:?}");
    let stored = bench.state.run(&id).await?;
    hold!(stored == run("run"), "begun {:?}, stored {stored:?}", run("run"));
    let shards = bench.state.shards(&id).await?;
    hold!(shards == [Shard { version: 1, ..Shard::all() }], "its shards: {shards:?}");
    Ok(Verdict::Held)
}

/// Runs are listed, the youngest first.
pub async fn runs_are_listed_youngest_first(bench: &StateBench) -> Checked {
    for (name, begun) in [("middle", 20), ("old", 10), ("young", 30)] {
        let run = Run::new(RunId::new(name), at(begun));
        bench.state.start_run(&run, &[Shard::all()]).await?;
    }
    let names: Vec<_> = bench.state.runs(2).await?.into_iter().map(|r| r.id.as_str().to_owned()).collect();
    hold!(names == ["young", "middle"], "listed {names:?}");
    Ok(Verdict::Held)
}

/// A run moves only from the state in which it is thought to be; a repeated move is no error.
pub async fn a_run_moves_from_where_it_is(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let wrong = bench.state.move_run(&id, RunState::Transferring, RunState::Finished, at(1)).await;
    hold!(matches!(&wrong, Err(error) if error.kind() == ErrorKind::Precondition), "from another state: {wrong:?}");
    for _ in 0..2 {
        bench.state.move_run(&id, RunState::Finding, RunState::Transferring, at(2)).await?;
    }
    hold!(bench.state.run(&id).await?.ended.is_none(), "it ended while it goes on");
    bench.state.move_run(&id, RunState::Transferring, RunState::Finished, at(3)).await?;
    let stored = bench.state.run(&id).await?;
    hold!(stored.state == RunState::Finished && stored.ended == Some(at(3)), "it is {stored:?}");
    Ok(Verdict::Held)
}

/// A step whose shard was moved by somebody else changes nothing at all.
pub async fn finder_steps_are_all_or_nothing(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let moved = Shard { position: Some("m".into()), version: 1, ..Shard::all() };
    let totals = FinderTotals { listed: Tally::one(5), ..FinderTotals::default() };
    let step = Advance { shards: vec![moved.clone()], totals: totals.clone(), packs: vec![out("p", false)], sent: vec![] };
    bench.state.advance(&id, &step).await?;
    let new = Shard { id: 1, after: Some("m".into()), ..Shard::all() };
    let stale = Advance { shards: vec![new.clone(), moved.clone()], totals, packs: vec![out("q", false)], sent: vec![pack("p")] };
    let refused = bench.state.advance(&id, &stale).await;
    hold!(matches!(&refused, Err(error) if error.kind() == ErrorKind::Precondition), "a stale step: {refused:?}");
    let shards = bench.state.shards(&id).await?;
    hold!(shards == [Shard { version: 2, ..moved.clone() }], "a refused step left {shards:?}");
    hold!(bench.state.run(&id).await?.totals.listed.objects == 1, "a refused step was counted");
    let outbox = bench.state.outbox(&id, 10).await?;
    hold!(outbox == [out("p", false)], "a refused step left the outbox {outbox:?}");
    let split = Advance { shards: vec![Shard { version: 2, until: Some("m".into()), ..moved }, new], ..Advance::default() };
    bench.state.advance(&id, &split).await?;
    let versions: Vec<_> = bench.state.shards(&id).await?.into_iter().map(|s| (s.id, s.version)).collect();
    hold!(versions == [(0, 3), (1, 1)], "shrinking one range and making another: {versions:?}");
    Ok(Verdict::Held)
}

/// What each step adds is added once.
pub async fn totals_add_up(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let step = Advance {
        totals: FinderTotals {
            listed: Tally { objects: 3, bytes: 30 },
            queued: Tally::one(10),
            skipped: [("archived".to_owned(), Tally::one(9))].into(),
            source_pages: 2,
            ..FinderTotals::default()
        },
        ..Advance::default()
    };
    bench.state.advance(&id, &step).await?;
    bench.state.advance(&id, &step).await?;
    let totals = bench.state.run(&id).await?.totals;
    let expected = FinderTotals {
        listed: Tally { objects: 6, bytes: 60 },
        queued: Tally { objects: 2, bytes: 20 },
        skipped: [("archived".to_owned(), Tally { objects: 2, bytes: 18 })].into(),
        source_pages: 4,
        ..FinderTotals::default()
    };
    hold!(totals == expected, "they are {totals:?}");
    Ok(Verdict::Held)
}

/// A pack stays in the outbox until it is marked as sent.
pub async fn the_outbox_keeps_what_was_not_sent(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let packs = vec![out("a", false), out("b", false), out("c", false)];
    bench.state.advance(&id, &Advance { packs, ..Advance::default() }).await?;
    hold!(bench.state.outbox(&id, 2).await?.len() == 2, "a page of the outbox");
    bench.state.advance(&id, &Advance { sent: vec![pack("a"), pack("c")], ..Advance::default() }).await?;
    let left = bench.state.outbox(&id, 10).await?;
    hold!(left == [out("b", false)], "left: {left:?}");
    Ok(Verdict::Held)
}

/// Packs that are held back are not sent before it is decided that they go.
pub async fn held_packs_wait_for_a_decision(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    let packs = vec![out("now", false), out("later", true)];
    bench.state.advance(&id, &Advance { packs: packs.clone(), ..Advance::default() }).await?;
    hold!(bench.state.outbox(&id, 10).await? == [out("now", false)], "a pack that is held back was handed out");
    hold!(bench.state.release_held(&id, true).await? == 1, "one pack was held back");
    hold!(bench.state.outbox(&id, 10).await?.len() == 2, "a pack that was let go is not handed out");
    bench.state.advance(&id, &Advance { packs: vec![out("never", true)], ..Advance::default() }).await?;
    hold!(bench.state.release_held(&id, false).await? == 1, "one more was held back");
    hold!(bench.state.release_held(&id, true).await? == 0, "a pack that was dropped is there");
    hold!(bench.state.outbox(&id, 10).await?.len() == 2, "a pack that was dropped is handed out");
    Ok(Verdict::Held)
}

/// A finder that does not know yet that its run was called off cannot go on.
pub async fn a_run_that_is_over_takes_no_steps(bench: &StateBench) -> Checked {
    let id = bench.started().await?;
    bench.state.advance(&id, &Advance { packs: vec![out("a", false)], ..Advance::default() }).await?;
    bench.state.move_run(&id, RunState::Finding, RunState::Cancelled, at(1)).await?;
    hold!(bench.state.outbox(&id, 10).await?.is_empty(), "a run that was called off has packs to send");
    let step = Advance { shards: vec![Shard { version: 1, ..Shard::all() }], ..Advance::default() };
    let refused = bench.state.advance(&id, &step).await;
    hold!(matches!(&refused, Err(error) if error.kind() == ErrorKind::Precondition), "a step of it: {refused:?}");
    Ok(Verdict::Held)
}

/// Runs that ended long ago are forgotten; those that go on, ended lately, or were called off are not.
pub async fn old_runs_are_forgotten_and_others_are_not(bench: &StateBench) -> Checked {
    let moves = [
        ("old", Some((RunState::Finished, 10))),
        ("young", Some((RunState::Finished, 90))),
        ("going", None),
        ("off", Some((RunState::Cancelled, 10))),
    ];
    for (name, ended) in moves {
        let run = run(name);
        bench.state.start_run(&run, &[Shard::all()]).await?;
        if let Some((to, when)) = ended {
            bench.state.move_run(&run.id, RunState::Finding, to, at(when)).await?;
        }
    }
    let forgotten = bench.state.forget_runs(at(50)).await?;
    let mut left: Vec<_> = bench.state.runs(10).await?.into_iter().map(|r| r.id.as_str().to_owned()).collect();
    left.sort_unstable();
    // Messages of the one that was called off may be left, as far as some stores know.
    let right = (forgotten == 1 && left == ["going", "off", "young"]) || (forgotten == 2 && left == ["going", "young"]);
    hold!(right, "{forgotten} were forgotten, left: {left:?}");
    Ok(Verdict::Held)
}
