//! State in memory.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::ObjectKey,
    proof::{Bug, wrong},
    sink::{Part, UploadId},
    state::{
        Advance, Claim, Committed, EVENTS_KNOWN, Fence, JobEnd, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite, Run,
        RunId, RunState, Shard, StateStore, Status, Tally, WriteResult,
    },
};
use async_trait::async_trait;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::{Bound, RangeInclusive},
    sync::{Mutex, MutexGuard},
};
use tokio::time::Instant;

/// State that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryState {
    forget_done: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<ObjectKey, Record>,
    packs: BTreeMap<PackId, Pack>,
    /// Claims of packs without a run, in their order.
    events: VecDeque<(Instant, PackId)>,
    parts: BTreeMap<UploadId, BTreeMap<u32, Part>>,
    runs: BTreeMap<RunId, RunRow>,
    notes: BTreeMap<String, Note>,
}

#[derive(Debug, Default)]
struct Pack {
    run: Option<RunId>,
    incarnation: u64,
    epoch: u64,
    ended: BTreeSet<u32>,
    claimed: Option<Instant>,
}

#[derive(Debug)]
struct RunRow {
    run: Run,
    shards: BTreeMap<u32, Shard>,
    outbox: BTreeMap<PackId, OutboxPack>,
}

impl MemoryState {
    /// Empty state that keeps a record of every object (some 400 bytes each).
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty state that forgets objects once they are done, so that it stays small. A later comparison by record then knows
    /// nothing: good for one run between stores whose etags are comparable.
    pub fn forgetting_done() -> Self {
        Self { forget_done: true, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Forgets packs of events that nobody has claimed for long.
    fn forget_events(&mut self, now: Instant) {
        while let Some((claimed, pack)) = self.events.front()
            && now.duration_since(*claimed) > EVENTS_KNOWN
        {
            if self.packs.get(pack).is_some_and(|p| p.claimed == Some(*claimed)) {
                self.packs.remove(pack);
            }
            self.events.pop_front();
        }
    }

    fn row(&mut self, run: &RunId, op: Op) -> Result<&mut RunRow> {
        self.runs.get_mut(run).ok_or_else(|| no_run(run, op))
    }

    fn has_ended(&self, origin: Option<&Origin>) -> bool {
        origin.is_some_and(|Origin(pack, index)| self.packs.get(pack).is_some_and(|p| p.ended.contains(index)))
    }

    fn count(&mut self, end: &JobEnd) {
        let Origin(pack, index) = &end.origin;
        let events = &mut self.events;
        let row = self.packs.entry(pack.clone()).or_insert_with(|| {
            // The end of a job that came alone, such as those of the original system: it has no run to be forgotten with.
            let claimed = Instant::now();
            events.push_back((claimed, pack.clone()));
            Pack { claimed: Some(claimed), ..Pack::default() }
        });
        let first = row.ended.insert(*index);
        if (first || wrong(Bug::OutcomeCountedTwice))
            && let Some(row) = self.runs.get_mut(&end.run)
        {
            *row.run.outcomes.entry(end.outcome.label()).or_default() += Tally::one(end.bytes);
        }
    }
}

fn no_run(run: &RunId, op: Op) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("run {run}"))
}

#[async_trait]
impl StateStore for MemoryState {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        let state = self.lock();
        Ok(keys.iter().map(|key| state.records.get(key).cloned()).collect())
    }

    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let state = self.lock();
        let from = query.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        Ok(state
            .records
            .range((from, Bound::Unbounded))
            .map(|(_, record)| record)
            .filter(|r| query.status.is_none_or(|s| s == r.status) && query.run.as_ref().is_none_or(|run| *run == r.run))
            .take(max)
            .cloned()
            .collect())
    }

    async fn may_have_begun_uploads(&self) -> Result<bool> {
        Ok(self.lock().records.values().any(|record| record.uploads_since.is_some()))
    }

    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        let mut state = self.lock();
        let now = Instant::now();
        let row = state.packs.entry(pack.clone()).or_default();
        if row.epoch == 0 {
            row.incarnation = incarnation;
            row.run = run.cloned();
        }
        row.claimed = Some(now);
        if row.epoch == 0 || !wrong(Bug::NoClaim) {
            row.epoch += 1;
        }
        let fence = Fence { pack: pack.clone(), incarnation: row.incarnation, epoch: row.epoch };
        if run.is_none() {
            state.events.push_back((now, pack.clone()));
            state.forget_events(now);
        }
        let ended = jobs.iter().map(|(_, origin)| state.has_ended(origin.as_ref())).collect();
        let records = jobs.iter().map(|(key, _)| state.records.get(key).cloned()).collect();
        Ok(Claim { fence, ended, records })
    }

    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        let mut state = self.lock();
        let current = state.packs.get(&fence.pack).is_some_and(|p| p.incarnation == fence.incarnation && p.epoch == fence.epoch);
        if !current && !wrong(Bug::UnfencedState) {
            return Ok(Committed::Fenced);
        }
        let mut results = Vec::with_capacity(writes.len());
        for write in writes {
            let stored = state.records.get(&write.record.key);
            if stored.map_or(0, |r| r.version) != write.record.version && !wrong(Bug::UnversionedRecords) && !wrong(Bug::UnfencedState) {
                results.push(WriteResult::Conflict(stored.cloned().map(Box::new)));
                continue;
            }
            let mut record = write.record.clone();
            record.version += 1;
            results.push(WriteResult::Applied(record.version));
            for end in &write.ends {
                state.count(end);
            }
            let forget = self.forget_done && matches!(record.status, Status::Done | Status::Deleted) && record.uploads_since.is_none();
            if forget {
                state.records.remove(&record.key)
            } else {
                state.records.insert(record.key.clone(), record)
            };
        }
        Ok(Committed::Written(results))
    }

    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        let mut state = self.lock();
        let known = state.parts.entry(upload.clone()).or_default();
        known.extend(parts.iter().map(|part| (part.number, part.clone())));
        Ok(())
    }

    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        Ok(self.lock().parts.get(upload).map(|p| p.range(numbers).map(|(_, part)| part.clone()).collect()).unwrap_or_default())
    }

    async fn parts_complete(&self, upload: &UploadId, _: &[u32], total: u32) -> Result<bool> {
        Ok(self.lock().parts.get(upload).is_some_and(|p| p.range(1..=total).count() == total as usize))
    }

    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        self.lock().parts.remove(upload);
        Ok(())
    }

    async fn note(&self, name: &str) -> Result<Option<Note>> {
        Ok(self.lock().notes.get(name).cloned())
    }

    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        let mut state = self.lock();
        let stands = state.notes.get(name).map_or(0, |note| note.version);
        if stands == replaces {
            state.notes.insert(name.to_owned(), Note { text: text.to_owned(), version: stands + 1 });
        }
        Ok(stands == replaces)
    }

    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        let mut state = self.lock();
        if state.runs.contains_key(&run.id) {
            return Err(Error::new(ErrorKind::Conflict, Op::SaveState, format!("run {}", run.id)));
        }
        let shards = shards.iter().map(|s| (s.id, Shard { version: 1, ..s.clone() })).collect();
        state.runs.insert(run.id.clone(), RunRow { run: run.clone(), shards, outbox: BTreeMap::new() });
        Ok(())
    }

    async fn run(&self, run: &RunId) -> Result<Run> {
        Ok(self.lock().row(run, Op::LoadState)?.run.clone())
    }

    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        let state = self.lock();
        let mut runs: Vec<Run> = state.runs.values().map(|row| row.run.clone()).collect();
        runs.sort_by(|a, b| b.started.cmp(&a.started).then_with(|| b.id.cmp(&a.id)));
        runs.truncate(max);
        Ok(runs)
    }

    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        let mut state = self.lock();
        let row = state.row(run, Op::SaveState)?;
        if row.run.state == to {
            return Ok(());
        }
        if row.run.state != from {
            let text = format!("run {run} is {}, not {}", row.run.state.as_str(), from.as_str());
            return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text));
        }
        row.run.state = to;
        if to.is_over() {
            row.run.ended = Some(now);
            row.outbox.clear();
        }
        Ok(())
    }

    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        Ok(self.lock().row(run, Op::LoadState)?.shards.values().cloned().collect())
    }

    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        if step.packs.len() > Advance::MAX_PACKS {
            return Err(Error::new(ErrorKind::Invalid, Op::SaveState, format!("a step with {} packs", step.packs.len())));
        }
        let mut state = self.lock();
        let row = state.row(run, Op::SaveState)?;
        if row.run.state.is_over() && !(step.shards.is_empty() && step.packs.is_empty()) {
            return Err(Error::new(ErrorKind::Precondition, Op::SaveState, format!("run {run} is {}", row.run.state.as_str())));
        }
        for shard in &step.shards {
            if row.shards.get(&shard.id).map_or(0, |s| s.version) != shard.version && !wrong(Bug::UnversionedCursor) {
                let text = format!("shard {} of run {run}", shard.id);
                return Err(Error::new(ErrorKind::Precondition, Op::SaveState, text));
            }
        }
        for shard in &step.shards {
            row.shards.insert(shard.id, Shard { version: shard.version + 1, ..shard.clone() });
        }
        row.run.totals.add(&step.totals);
        for pack in &step.sent {
            row.outbox.remove(pack);
        }
        row.outbox.extend(step.packs.iter().map(|pack| (pack.pack.clone(), pack.clone())));
        Ok(())
    }

    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        let mut state = self.lock();
        Ok(state.row(run, Op::LoadState)?.outbox.values().filter(|p| !p.held).take(max).cloned().collect())
    }

    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        let mut state = self.lock();
        let row = state.row(run, Op::SaveState)?;
        let held = row.outbox.values().filter(|p| p.held).count() as u64;
        if go {
            row.outbox.values_mut().for_each(|p| p.held = false);
        } else {
            row.outbox.retain(|_, p| !p.held);
        }
        Ok(held)
    }

    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        let mut state = self.lock();
        let before = state.runs.len();
        // Messages of a cancelled run may still be in the queue, and must be known for what they are.
        state.runs.retain(|_, row| row.run.state == RunState::Cancelled || row.run.ended.is_none_or(|at| at >= ended_before));
        let State { packs, runs, .. } = &mut *state;
        packs.retain(|_, pack| pack.run.as_ref().is_none_or(|run| runs.contains_key(run)));
        Ok((before - state.runs.len()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A task that lives on events stays as small as what is under way.
    #[tokio::test(start_paused = true)]
    async fn packs_of_events_are_forgotten_after_days() {
        let state = MemoryState::new();
        let claim = async |name: &str, run: Option<&RunId>| state.claim(&PackId::new(name), run, 1, &[]).await.unwrap().fence.epoch;
        for n in 0..100 {
            claim(&format!("event {n}"), None).await;
        }
        claim("of a run", Some(&RunId::new("r"))).await;
        tokio::time::advance(EVENTS_KNOWN.saturating_sub(Duration::from_secs(60))).await;
        assert_eq!(claim("event 7", None).await, 2);
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_eq!(
            (claim("event 7", None).await, claim("event 8", None).await, claim("of a run", Some(&RunId::new("r"))).await),
            (3, 1, 2)
        );
        assert_eq!(state.lock().packs.len(), 3);
    }
}
