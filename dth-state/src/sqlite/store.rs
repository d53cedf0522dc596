//! Records, packs, runs and cursors in the file.

use super::{Failure, Sqlite};
use crate::row::{More, run_state, status};
use async_trait::async_trait;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, ObjectKey},
    sink::{Part, UploadId},
    state::{
        Advance, Claim, Committed, EVENTS_KNOWN, Fence, JobEnd, NOTES_KEPT, Note, Origin, OutboxPack, PackId, Record, RecordQuery,
        RecordWrite, Run, RunId, RunState, Shard, SourceVersion, StateStore, Tally, WriteResult,
    },
};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params, params_from_iter};
use std::ops::RangeInclusive;

const COLUMNS: &str = "key, version, status, run, source_etag, source_size, destination_etag, attempts, updated, more";

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<ObjectKey>> {
    Ok(row.get::<_, Option<String>>(column)?.map(ObjectKey::new))
}

fn record(row: &Row<'_>) -> Result<Record, Failure> {
    let more = More::parse(row.get::<_, Option<String>>(9)?.as_deref())?;
    let size: Option<i64> = row.get(5)?;
    let etag = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(column)?.map(|e| ETag::new(&e)));
    let source_etag = etag(4)?;
    Ok(Record {
        key: ObjectKey::new(row.get::<_, String>(0)?),
        version: row.get::<_, i64>(1)? as u64,
        status: status(&row.get::<_, String>(2)?)?,
        run: RunId::new(row.get::<_, String>(3)?),
        source: size.map(|size| SourceVersion { etag: source_etag, size: size as u64, version: more.source_version }),
        destination: etag(6)?,
        checksum: more.checksum,
        verified: more.verified,
        upload: more.upload,
        uploads_since: more.uploads_since,
        attempts: row.get(7)?,
        failure: more.failure,
        not_carried: more.not_carried,
        appended: more.appended,
        sequencer: more.sequencer,
        waiting: more.waiting,
        updated: time(row.get(8)?),
    })
}

fn load(t: &Transaction<'_>, key: &ObjectKey) -> Result<Option<Record>, Failure> {
    let mut select = t.prepare_cached(&format!("SELECT {COLUMNS} FROM record WHERE key = ?1"))?;
    let mut rows = select.query([key.as_str()])?;
    rows.next()?.map(record).transpose()
}

fn save(t: &Transaction<'_>, record: &Record) -> Result<(), Failure> {
    let more = More::of(record);
    t.prepare_cached(
        "INSERT INTO record (key, version, status, run, source_etag, source_size, destination_etag, attempts, updated, error, more)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (key) DO UPDATE SET version = excluded.version, status = excluded.status, run = excluded.run,
           source_etag = excluded.source_etag, source_size = excluded.source_size, destination_etag = excluded.destination_etag,
           attempts = excluded.attempts, updated = excluded.updated, error = excluded.error, more = excluded.more",
    )?
    .execute(params![
        record.key.as_str(),
        record.version as i64,
        record.status.as_str(),
        record.run.as_str(),
        record.source.as_ref().and_then(|s| s.etag.as_ref()).map(ETag::as_str),
        record.source.as_ref().map(|s| s.size as i64),
        record.destination.as_ref().map(ETag::as_str),
        record.attempts,
        record.updated.as_millisecond(),
        record.failure.as_ref().map(|f| f.text.as_str()),
        more.to_json(),
    ])?;
    Ok(())
}

fn has_ended(t: &Transaction<'_>, origin: Option<&Origin>) -> Result<bool, Failure> {
    let Some(Origin(pack, index)) = origin else { return Ok(false) };
    let bits: Option<Vec<u8>> =
        t.prepare_cached("SELECT ended FROM pack WHERE id = ?1")?.query_row([pack.as_str()], |row| row.get(0)).optional()?;
    Ok(bits.is_some_and(|bits| bit(&bits, *index)))
}

fn bit(bits: &[u8], index: u32) -> bool {
    bits.get(index as usize / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// Sets a job's bit; `true` when it was not set. Commits of one pack change its bits in memory and write them once.
fn set_bit(bits: &mut Vec<u8>, index: u32) -> bool {
    let byte = index as usize / 8;
    if bits.len() <= byte {
        bits.resize(byte + 1, 0);
    }
    let first = !bit(bits, index);
    bits[byte] |= 1 << (index % 8);
    first
}

/// Counts the jobs that ended, each once.
fn count(t: &Transaction<'_>, ends: &[&JobEnd], now: i64) -> Result<(), Failure> {
    let mut packs: std::collections::BTreeMap<&PackId, Vec<u8>> = std::collections::BTreeMap::new();
    let mut tallies: std::collections::BTreeMap<(&RunId, String), Tally> = std::collections::BTreeMap::new();
    for JobEnd { run, origin: Origin(pack, index), outcome, bytes } in ends {
        let bits = match packs.entry(pack) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let bits =
                    t.prepare_cached("SELECT ended FROM pack WHERE id = ?1")?.query_row([pack.as_str()], |row| row.get(0)).optional()?;
                new.insert(bits.unwrap_or_default())
            }
        };
        if set_bit(bits, *index) {
            *tallies.entry((run, outcome.label())).or_default() += Tally::one(*bytes);
        }
    }
    for (pack, bits) in packs {
        t.prepare_cached(
            "INSERT INTO pack (id, incarnation, epoch, ended, claimed) VALUES (?1, 0, 0, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET ended = excluded.ended",
        )?
        .execute(params![pack.as_str(), bits, now])?;
    }
    for ((run, label), tally) in tallies {
        t.prepare_cached(
            "INSERT INTO outcome (run, outcome, objects, bytes) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (run, outcome) DO UPDATE SET objects = objects + excluded.objects, bytes = bytes + excluded.bytes",
        )?
        .execute(params![run.as_str(), label, tally.objects as i64, tally.bytes as i64])?;
    }
    Ok(())
}

fn no_run(run: &RunId, op: Op) -> Failure {
    Error::new(ErrorKind::NotFound, op, format!("run {run}")).into()
}

fn load_run(t: &Transaction<'_>, id: &RunId, op: Op) -> Result<Run, Failure> {
    let mut select = t.prepare_cached("SELECT state, started, ended, totals FROM run WHERE id = ?1")?;
    let row = select
        .query_row([id.as_str()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?, row.get::<_, String>(3)?))
        })
        .optional()?;
    let (state, started, ended, totals) = row.ok_or_else(|| no_run(id, op))?;
    let mut select = t.prepare_cached("SELECT outcome, objects, bytes FROM outcome WHERE run = ?1")?;
    let outcomes = select.query_map([id.as_str()], |row| {
        Ok((row.get::<_, String>(0)?, Tally { objects: row.get::<_, i64>(1)? as u64, bytes: row.get::<_, i64>(2)? as u64 }))
    })?;
    Ok(Run {
        id: id.clone(),
        state: run_state(&state)?,
        started: time(started),
        ended: ended.map(time),
        totals: serde_json::from_str(&totals)?,
        outcomes: outcomes.collect::<Result<_, _>>()?,
    })
}

fn save_shard(t: &Transaction<'_>, run: &RunId, shard: &Shard) -> Result<(), Failure> {
    t.prepare_cached(
        "INSERT OR REPLACE INTO shard (run, id, after_key, until_key, position, done, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        run.as_str(),
        shard.id,
        shard.after.as_ref().map(ObjectKey::as_str),
        shard.until.as_ref().map(ObjectKey::as_str),
        shard.position.as_ref().map(ObjectKey::as_str),
        shard.done,
        shard.version as i64 + 1,
    ])?;
    Ok(())
}

#[async_trait]
impl StateStore for Sqlite {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        let keys = keys.to_vec();
        self.read(Op::LoadState, move |t| keys.iter().map(|key| load(t, key)).collect()).await
    }

    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let mut sql = format!("SELECT {COLUMNS} FROM record WHERE TRUE");
        let mut values: Vec<String> = Vec::new();
        for (clause, value) in [
            ("status = ?", query.status.map(|s| s.as_str().to_owned())),
            ("run = ?", query.run.as_ref().map(|r| r.as_str().to_owned())),
            ("key > ?", query.after.as_ref().map(|k| k.as_str().to_owned())),
        ] {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(clause);
                values.push(value);
            }
        }
        let sql = format!("{sql} ORDER BY key LIMIT {max}");
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached(&sql)?;
            let mut rows = select.query(params_from_iter(values))?;
            let mut records = Vec::new();
            while let Some(row) = rows.next()? {
                records.push(record(row)?);
            }
            Ok(records)
        })
        .await
    }

    async fn may_have_begun_uploads(&self) -> Result<bool> {
        self.read(Op::LoadState, |t| {
            // By the index, whose words these are: the table is long.
            let select = "SELECT 1 FROM record INDEXED BY record_uploads WHERE instr(more, '\"uploads_since\":') > 0 LIMIT 1";
            Ok(t.prepare_cached(select)?.exists([])?)
        })
        .await
    }

    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        let (pack, run, jobs, now) = (pack.clone(), run.cloned(), jobs.to_vec(), self.now());
        self.write(Op::SaveState, move |t| {
            let (incarnation, epoch): (i64, i64) = t
                .prepare_cached(
                    "INSERT INTO pack (id, run, incarnation, epoch, ended, claimed) VALUES (?1, ?3, ?2, 1, x'', ?4)
                     ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1, incarnation = iif(epoch = 0, excluded.incarnation, incarnation),
                       claimed = excluded.claimed
                     RETURNING incarnation, epoch",
                )?
                .query_row(params![pack.as_str(), incarnation as i64, run.as_ref().map(RunId::as_str), now], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            if run.is_none() {
                // A few at each claim: more than one comes in at a claim never.
                let before = now - i64::try_from(EVENTS_KNOWN.as_millis()).unwrap_or(i64::MAX);
                t.prepare_cached("DELETE FROM pack WHERE id IN (SELECT id FROM pack WHERE run IS NULL AND claimed < ?1 LIMIT 4)")?
                    .execute([before])?;
            }
            let fence = Fence { pack, incarnation: incarnation as u64, epoch: epoch as u64 };
            let ended = jobs.iter().map(|(_, origin)| has_ended(t, origin.as_ref())).collect::<Result<_, _>>()?;
            let records = jobs.iter().map(|(key, _)| load(t, key)).collect::<Result<_, _>>()?;
            Ok(Claim { fence, ended, records })
        })
        .await
    }

    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        let (fence, writes, now) = (fence.clone(), writes.to_vec(), self.now());
        self.write(Op::SaveState, move |t| {
            let current = t.prepare_cached("SELECT 1 FROM pack WHERE id = ?1 AND incarnation = ?2 AND epoch = ?3")?.exists(params![
                fence.pack.as_str(),
                fence.incarnation as i64,
                fence.epoch as i64
            ])?;
            if !current {
                return Ok(Committed::Fenced);
            }
            let mut results = Vec::with_capacity(writes.len());
            let mut ends = Vec::new();
            for write in &writes {
                let stored: Option<i64> = t
                    .prepare_cached("SELECT version FROM record WHERE key = ?1")?
                    .query_row([write.record.key.as_str()], |row| row.get(0))
                    .optional()?;
                if stored.unwrap_or(0) as u64 != write.record.version {
                    results.push(WriteResult::Conflict(load(t, &write.record.key)?.map(Box::new)));
                    continue;
                }
                let version = write.record.version + 1;
                save(t, &Record { version, ..write.record.clone() })?;
                results.push(WriteResult::Applied(version));
                ends.extend(&write.ends);
            }
            count(t, &ends, now)?;
            Ok(Committed::Written(results))
        })
        .await
    }

    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        let (upload, parts) = (upload.clone(), parts.to_vec());
        self.write(Op::SaveState, move |t| {
            for part in &parts {
                t.prepare_cached("INSERT OR REPLACE INTO part (upload, number, part) VALUES (?1, ?2, ?3)")?.execute(params![
                    upload.as_str(),
                    part.number,
                    serde_json::to_string(part)?
                ])?;
            }
            Ok(())
        })
        .await
    }

    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        let upload = upload.clone();
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached("SELECT part FROM part WHERE upload = ?1 AND number BETWEEN ?2 AND ?3 ORDER BY number")?;
            let rows = select.query_map(params![upload.as_str(), numbers.start(), numbers.end()], |row| row.get::<_, String>(0))?;
            rows.map(|json| Ok(serde_json::from_str(&json?)?)).collect()
        })
        .await
    }

    async fn parts_complete(&self, upload: &UploadId, _: &[u32], total: u32) -> Result<bool> {
        let upload = upload.clone();
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached("SELECT count(*) FROM part WHERE upload = ?1 AND number BETWEEN 1 AND ?2")?;
            Ok(select.query_row(params![upload.as_str(), total], |row| row.get::<_, u32>(0))? == total)
        })
        .await
    }

    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        let upload = upload.clone();
        self.write(Op::SaveState, move |t| {
            t.prepare_cached("DELETE FROM part WHERE upload = ?1")?.execute([upload.as_str()])?;
            Ok(())
        })
        .await
    }

    async fn note(&self, name: &str) -> Result<Option<Note>> {
        let name = name.to_owned();
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached("SELECT text, version FROM note WHERE name = ?1")?;
            let note = |row: &Row<'_>| Ok(Note { text: row.get(0)?, version: row.get::<_, i64>(1)? as u64 });
            Ok(select.query_row([&name], note).optional()?)
        })
        .await
    }

    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        let (name, text, now) = (name.to_owned(), text.to_owned(), self.now());
        self.write(Op::SaveState, move |t| {
            let written = if replaces == 0 {
                t.prepare_cached("INSERT INTO note (name, text, version, written) VALUES (?1, ?2, 1, ?3) ON CONFLICT DO NOTHING")?
                    .execute(params![name, text, now])?
            } else {
                t.prepare_cached("UPDATE note SET text = ?2, version = version + 1, written = ?3 WHERE name = ?1 AND version = ?4")?
                    .execute(params![name, text, now, replaces as i64])?
            };
            let old = now - NOTES_KEPT.as_millis() as i64;
            t.prepare_cached("DELETE FROM note WHERE name IN (SELECT name FROM note WHERE written < ?1 LIMIT 16)")?.execute([old])?;
            Ok(written > 0)
        })
        .await
    }

    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        let (run, shards) = (run.clone(), shards.to_vec());
        self.write(Op::SaveState, move |t| {
            let added = t
                .prepare_cached("INSERT OR IGNORE INTO run (id, state, started, ended, totals) VALUES (?1, ?2, ?3, NULL, ?4)")?
                .execute(params![run.id.as_str(), run.state.as_str(), run.started.as_millisecond(), serde_json::to_string(&run.totals)?])?;
            if added == 0 {
                return Err(Error::new(ErrorKind::Conflict, Op::SaveState, format!("run {}", run.id)).into());
            }
            shards.iter().try_for_each(|shard| save_shard(t, &run.id, shard))
        })
        .await
    }

    async fn run(&self, run: &RunId) -> Result<Run> {
        let run = run.clone();
        self.read(Op::LoadState, move |t| load_run(t, &run, Op::LoadState)).await
    }

    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        let max = max as i64;
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached("SELECT id FROM run ORDER BY started DESC, id DESC LIMIT ?1")?;
            let ids = select.query_map([max], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
            ids.into_iter().map(|id| load_run(t, &RunId::new(id), Op::LoadState)).collect()
        })
        .await
    }

    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        let run = run.clone();
        self.write(Op::SaveState, move |t| {
            let held = load_run(t, &run, Op::SaveState)?.state;
            if held == to {
                return Ok(());
            }
            if held != from {
                let text = format!("run {run} is {}, not {}", held.as_str(), from.as_str());
                return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text).into());
            }
            let over = to.is_over();
            t.prepare_cached("UPDATE run SET state = ?2, ended = ?3 WHERE id = ?1")?.execute(params![
                run.as_str(),
                to.as_str(),
                over.then(|| now.as_millisecond())
            ])?;
            if over {
                t.prepare_cached("DELETE FROM outbox WHERE run = ?1")?.execute([run.as_str()])?;
            }
            Ok(())
        })
        .await
    }

    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        let run = run.clone();
        self.read(Op::LoadState, move |t| {
            load_run(t, &run, Op::LoadState)?;
            let mut select =
                t.prepare_cached("SELECT id, after_key, until_key, position, done, version FROM shard WHERE run = ?1 ORDER BY id")?;
            let rows = select.query_map([run.as_str()], |row| {
                Ok(Shard {
                    id: row.get(0)?,
                    after: key(row, 1)?,
                    until: key(row, 2)?,
                    position: key(row, 3)?,
                    done: row.get(4)?,
                    version: row.get::<_, i64>(5)? as u64,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        let (run, step) = (run.clone(), step.clone());
        self.write(Op::SaveState, move |t| {
            let Run { mut totals, state, .. } = load_run(t, &run, Op::SaveState)?;
            if state.is_over() && !(step.shards.is_empty() && step.packs.is_empty()) {
                let text = format!("run {run} is {}", state.as_str());
                return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text).into());
            }
            for shard in &step.shards {
                let held: Option<i64> = t
                    .prepare_cached("SELECT version FROM shard WHERE run = ?1 AND id = ?2")?
                    .query_row(params![run.as_str(), shard.id], |row| row.get(0))
                    .optional()?;
                if held.unwrap_or(0) as u64 != shard.version {
                    let text = format!("shard {} of run {run}", shard.id);
                    return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text)
                        .with_source("another finder works on this run")
                        .into());
                }
                save_shard(t, &run, shard)?;
            }
            totals.add(&step.totals);
            t.prepare_cached("UPDATE run SET totals = ?2 WHERE id = ?1")?
                .execute(params![run.as_str(), serde_json::to_string(&totals)?])?;
            for pack in &step.sent {
                t.prepare_cached("DELETE FROM outbox WHERE run = ?1 AND pack = ?2")?.execute(params![run.as_str(), pack.as_str()])?;
            }
            for pack in &step.packs {
                t.prepare_cached("INSERT OR REPLACE INTO outbox (run, pack, body, held) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                    run.as_str(),
                    pack.pack.as_str(),
                    pack.body,
                    pack.held
                ])?;
            }
            Ok(())
        })
        .await
    }

    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        let (run, max) = (run.clone(), max as i64);
        self.read(Op::LoadState, move |t| {
            let mut select = t.prepare_cached("SELECT pack, body FROM outbox WHERE run = ?1 AND held = 0 LIMIT ?2")?;
            let rows = select.query_map(params![run.as_str(), max], |row| {
                Ok(OutboxPack { pack: PackId::new(row.get::<_, String>(0)?), body: row.get(1)?, held: false })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        let run = run.clone();
        self.write(Op::SaveState, move |t| {
            let sql = if go {
                "UPDATE outbox SET held = 0 WHERE run = ?1 AND held = 1"
            } else {
                "DELETE FROM outbox WHERE run = ?1 AND held = 1"
            };
            Ok(t.prepare_cached(sql)?.execute([run.as_str()])? as u64)
        })
        .await
    }

    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        self.write(Op::SaveState, move |t| {
            // A worker that meets a message of a run that it does not know takes it for work.
            let over = "ended < ?1 AND (state <> 'cancelled' OR NOT EXISTS (SELECT 1 FROM message))";
            let runs = format!("(SELECT id FROM run WHERE {over})");
            let before = ended_before.as_millisecond();
            for table in ["pack", "shard", "outcome", "outbox"] {
                t.execute(&format!("DELETE FROM {table} WHERE run IN {runs}"), [before])?;
            }
            Ok(t.execute(&format!("DELETE FROM run WHERE {over}"), [before])? as u64)
        })
        .await
    }
}
