//! Claims and commits: records by version, the epoch of the pack, and the counters, in one transaction.
//!
//! A transaction that is refused says which item it failed at. The members that conflict are taken out and judged one by
//! one; the rest is written by the next try.

use super::{DynamoStore, FORGET_AFTER, MAX_TRANSACTION, SPREAD, Transacted};
use crate::aws::error::classify;
use crate::aws::item::{Expression, Item, bytes, get_bytes, get_number, key, number, tally_to_numbers, text};
use aws_sdk_dynamodb::types::{ReturnValue, TransactWriteItem};
use dth_core::{
    env::random_below,
    error::{Error, ErrorKind, Op, Result},
    object::ObjectKey,
    state::{Claim, Committed, Fence, JobEnd, Origin, PackId, Record, RecordWrite, RunId, Tally, WriteResult},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::MutexGuard,
};

/// Records of one transaction; the other places are for packs and counters.
const RECORDS: usize = 90;
/// Packs whose state is remembered.
const KNOWN_PACKS: usize = 4096;
/// Tries of a commit that others get in the way of, before the engine is told to slow down.
const TRIES: u32 = 8;

/// What is known of a pack.
#[derive(Debug, Clone, Default)]
pub(super) struct PackState {
    incarnation: u64,
    epoch: u64,
    /// Grows with each change of the bits; 0 when none was written yet.
    revision: u64,
    /// A bit for each job that was counted.
    ended: Vec<u8>,
}

impl PackState {
    fn of(item: &Item) -> Self {
        Self {
            incarnation: get_number(item, "inc").unwrap_or(0),
            epoch: get_number(item, "ep").unwrap_or(0),
            revision: get_number(item, "rev").unwrap_or(0),
            ended: get_bytes(item, "ended").unwrap_or_default().to_vec(),
        }
    }

    fn has_ended(&self, job: u32) -> bool {
        self.ended.get(job as usize / 8).is_some_and(|byte| byte >> (job % 8) & 1 == 1)
    }

    /// Sets a job's bit; `true` when it was not set.
    fn end(&mut self, job: u32) -> bool {
        let byte = job as usize / 8;
        if self.ended.len() <= byte {
            self.ended.resize(byte + 1, 0);
        }
        let first = !self.has_ended(job);
        self.ended[byte] |= 1 << (job % 8);
        first
    }

    fn allows(&self, fence: &Fence) -> bool {
        self.epoch == fence.epoch && self.incarnation == fence.incarnation
    }
}

/// What one transaction does to packs and counters besides writing records.
#[derive(Debug, Default)]
struct Counted {
    /// With the bits that are to be set, and whether any is new.
    packs: BTreeMap<PackId, (PackState, bool)>,
    tallies: BTreeMap<RunId, BTreeMap<String, Tally>>,
}

impl DynamoStore {
    fn known_packs(&self) -> MutexGuard<'_, HashMap<PackId, PackState>> {
        self.packs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remember(&self, pack: &PackId, state: PackState) {
        let mut known = self.known_packs();
        if known.len() >= KNOWN_PACKS {
            // Whatever is needed again is read again.
            known.clear();
        }
        known.insert(pack.clone(), state);
    }

    fn pack_key(&self, pack: &PackId) -> Item {
        key(self.pk(pack.as_str()), "p")
    }

    /// The state of packs, as it is known here or in the table.
    async fn pack_states<'a>(&self, packs: impl Iterator<Item = &'a PackId>) -> Result<BTreeMap<PackId, PackState>> {
        let mut states = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for pack in packs {
            match self.known_packs().get(pack) {
                Some(state) => drop(states.insert(pack.clone(), state.clone())),
                None => drop(unknown.insert(pack)),
            }
        }
        let keys = unknown.iter().map(|pack| self.pack_key(pack)).collect();
        for item in self.get_all(keys).await? {
            let pack = PackId::new(self.key_of(&item)?.as_str());
            states.insert(pack, PackState::of(&item));
        }
        for pack in unknown {
            let state = states.entry(pack.clone()).or_default();
            self.remember(pack, state.clone());
        }
        Ok(states)
    }

    pub(super) async fn claim_pack(
        &self,
        pack: &PackId,
        run: Option<&RunId>,
        incarnation: u64,
        jobs: &[(ObjectKey, Option<Origin>)],
    ) -> Result<Claim> {
        let mut update = Expression::default();
        update.add("ep", 1);
        // Another delivery, or the end of one of its jobs that went out alone, may have made the item.
        update.set_first("inc", number(incarnation));
        update.set("ttl", self.expiry(FORGET_AFTER));
        if let Some(run) = run {
            update.set("run", text(run.as_str()));
        }
        let call = self
            .client
            .update_item()
            .table_name(&*self.table)
            .set_key(Some(self.pack_key(pack)))
            .update_expression(update.update())
            .set_expression_attribute_names(update.names())
            .set_expression_attribute_values(update.values())
            .return_values(ReturnValue::AllNew);
        let answer = call.send().await.map_err(|e| classify(Op::SaveState, &*self.table, e))?;
        let ours = PackState::of(&answer.attributes.unwrap_or_default());
        let fence = Fence { pack: pack.clone(), incarnation: ours.incarnation, epoch: ours.epoch };
        self.remember(pack, ours);
        let origins = jobs.iter().filter_map(|(_, origin)| origin.as_ref());
        // Bits of other packs may have been set by anybody since they were read here.
        self.known_packs().retain(|known, _| known == pack || !jobs.iter().any(|(_, o)| o.as_ref().is_some_and(|o| o.0 == *known)));
        let (states, records) =
            tokio::try_join!(self.pack_states(origins.map(|o| &o.0)), self.records_by_key(jobs.iter().map(|(key, _)| key)))?;
        let ended = |origin: &Option<Origin>| origin.as_ref().is_some_and(|o| states.get(&o.0).is_some_and(|s| s.has_ended(o.1)));
        Ok(Claim {
            fence,
            ended: jobs.iter().map(|(_, origin)| ended(origin)).collect(),
            records: jobs.iter().map(|(key, _)| records.get(key).cloned()).collect(),
        })
    }

    pub(super) async fn commit_writes(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        if writes.is_empty() {
            let found = self.get(Op::SaveState, self.pack_key(&fence.pack)).await?;
            let state = found.as_ref().map(PackState::of).unwrap_or_default();
            return Ok(if state.allows(fence) { Committed::Written(Vec::new()) } else { Committed::Fenced });
        }
        let mut results: Vec<Option<WriteResult>> = writes.iter().map(|_| None).collect();
        loop {
            let open = next_of(fence, writes, &results);
            if open.is_empty() {
                return Ok(Committed::Written(results.into_iter().flatten().collect()));
            }
            if !self.commit_some(fence, writes, open, &mut results).await? {
                return Ok(Committed::Fenced);
            }
        }
    }

    /// Finds a result for each of these writes. `false` when a later delivery has claimed the pack.
    async fn commit_some(
        &self,
        fence: &Fence,
        writes: &[RecordWrite],
        mut open: Vec<usize>,
        results: &mut [Option<WriteResult>],
    ) -> Result<bool> {
        for tried in 0..TRIES {
            self.pause(tried).await;
            let counted = self.count(fence, open.iter().map(|i| &writes[*i])).await?;
            let packs: Vec<&PackId> = counted.packs.keys().collect();
            let refused = match self.transact(|| self.transaction(fence, writes, &open, &counted)).await? {
                Transacted::Done => {
                    for (pack, (state, _)) in counted.packs.iter().filter(|(_, (_, changed))| *changed) {
                        self.remember(pack, PackState { revision: state.revision + 1, ..state.clone() });
                    }
                    for i in open {
                        results[i] = Some(WriteResult::Applied(writes[i].record.version + 1));
                    }
                    return Ok(true);
                }
                Transacted::Refused(refused) => refused,
            };
            // The order is that of `transaction`: packs, records, counters.
            for at in refused.iter().filter(|at| **at < packs.len()) {
                self.known_packs().remove(packs[*at]);
            }
            // The fence is judged by the table: what is remembered may be of an epoch before the last claim.
            self.known_packs().remove(&fence.pack);
            if !refused.is_empty() && !self.pack_states([&fence.pack].into_iter()).await?[&fence.pack].allows(fence) {
                self.known_packs().remove(&fence.pack);
                return Ok(false);
            }
            let conflicts: Vec<usize> = refused.iter().filter_map(|at| open.get(at.checked_sub(packs.len())?).copied()).collect();
            let mut stored = self.records_by_key(conflicts.iter().map(|i| &writes[*i].record.key)).await?;
            for i in &conflicts {
                let record: Option<Record> = stored.remove(&writes[*i].record.key);
                results[*i] = Some(WriteResult::Conflict(record.map(Box::new)));
            }
            open.retain(|i| !conflicts.contains(i));
            if open.is_empty() {
                return Ok(true);
            }
        }
        Err(Error::new(ErrorKind::Throttled, Op::SaveState, &*self.table).with_source("others kept changing the same packs"))
    }

    /// The bits that these writes set, and what they add to the ledgers; each job once.
    async fn count<'a>(&self, fence: &Fence, writes: impl Iterator<Item = &'a RecordWrite> + Clone) -> Result<Counted> {
        let ends = writes.flat_map(|write| &write.ends);
        let packs: BTreeSet<&PackId> = ends.clone().map(|end| &end.origin.0).chain([&fence.pack]).collect();
        let packs = self.pack_states(packs.into_iter()).await?;
        let packs = packs.into_iter().map(|(pack, state)| (pack, (state, false))).collect();
        let mut counted = Counted { packs, tallies: BTreeMap::new() };
        for JobEnd { run, origin: Origin(pack, job), outcome, bytes } in ends {
            let (state, changed) = counted.packs.entry(pack.clone()).or_default();
            if state.end(*job) {
                *changed = true;
                let of_run = counted.tallies.entry(run.clone()).or_default();
                *of_run.entry(outcome.label()).or_default() += Tally::one(*bytes);
            }
        }
        // The fence's own pack is looked at in any case; others are left alone where nothing is new.
        counted.packs.retain(|pack, (_, changed)| *changed || *pack == fence.pack);
        Ok(counted)
    }

    fn transaction(&self, fence: &Fence, writes: &[RecordWrite], open: &[usize], counted: &Counted) -> Result<Vec<TransactWriteItem>> {
        let mut items = Vec::new();
        for (pack, (state, changed)) in &counted.packs {
            let mut update = Expression::default();
            if *pack == fence.pack {
                update.when_equal("ep", number(fence.epoch));
                update.when_equal("inc", number(fence.incarnation));
            }
            if !changed {
                // Jobs of one pack that only note how far they are do not get in each other's way.
                items.push(self.check(self.pack_key(pack), &update)?);
                continue;
            }
            if state.revision == 0 {
                update.when_missing("rev");
            } else {
                update.when_equal("rev", number(state.revision));
            }
            update.set("ended", bytes(state.ended.clone()));
            update.set("rev", number(state.revision + 1));
            update.set_first("ttl", self.expiry(FORGET_AFTER));
            items.push(self.update(self.pack_key(pack), &update)?);
        }
        for write in open.iter().map(|i| &writes[*i]) {
            let mut expected = Expression::default();
            match write.record.version {
                0 => expected.when_missing("v"),
                version => expected.when_equal("v", number(version)),
            }
            let record = Record { version: write.record.version + 1, ..write.record.clone() };
            items.push(self.put(self.record_to_item(&record)?, &expected)?);
        }
        for (run, tallies) in &counted.tallies {
            // Another place each time: a transaction that met another one there goes elsewhere.
            let place = random_below(&*self.env, SPREAD);
            let mut update = Expression::default();
            for (label, tally) in tallies {
                for (name, by) in tally_to_numbers(&format!("o:{label}"), *tally) {
                    update.add(&name, by);
                }
            }
            items.push(self.update(key(self.pk(run.as_str()), format!("c#{place:02}")), &update)?);
        }
        Ok(items)
    }
}

/// As many of the writes that have no result yet as one transaction takes, which writes a key once: their records, the packs in which
/// their jobs end, and a counter a run. At least one.
fn next_of(fence: &Fence, writes: &[RecordWrite], results: &[Option<WriteResult>]) -> Vec<usize> {
    let (mut keys, mut packs, mut runs) = (BTreeSet::new(), BTreeSet::from([&fence.pack]), BTreeSet::new());
    let mut open = Vec::new();
    for (i, write) in writes.iter().enumerate().filter(|(i, _)| results[*i].is_none()) {
        if keys.contains(&write.record.key) {
            continue;
        }
        let more_packs: BTreeSet<&PackId> = write.ends.iter().map(|end| &end.origin.0).filter(|pack| !packs.contains(pack)).collect();
        let more_runs: BTreeSet<&RunId> = write.ends.iter().map(|end| &end.run).filter(|run| !runs.contains(run)).collect();
        let items = keys.len() + packs.len() + runs.len() + 1 + more_packs.len() + more_runs.len();
        if open.len() == RECORDS || (items > MAX_TRANSACTION && !open.is_empty()) {
            break;
        }
        keys.insert(&write.record.key);
        packs.extend(more_packs);
        runs.extend(more_runs);
        open.push(i);
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;
    use dth_core::{
        env::{Env, SystemEnv},
        state::{Outcome, Status},
    };

    #[test]
    fn a_transaction_takes_no_more_than_the_service_does() {
        let fence = Fence { pack: PackId::new("fence"), incarnation: 1, epoch: 1 };
        // Each ends a job of its own pack, and of another run.
        let write = |n: usize| {
            let record = Record::new(format!("k{n}").as_str().into(), RunId::new("r"), Status::Done, SystemEnv.now());
            let origin = Origin(PackId::new(format!("pack{n}")), 0);
            let end = JobEnd { run: RunId::new(format!("run{}", n % 7)), origin, outcome: Outcome::COPIED, bytes: 1 };
            RecordWrite { record, ends: vec![end] }
        };
        let writes: Vec<RecordWrite> = (0..200).map(write).collect();
        let mut results: Vec<Option<WriteResult>> = writes.iter().map(|_| None).collect();
        let mut transactions = 0;
        loop {
            let open = next_of(&fence, &writes, &results);
            if open.is_empty() {
                break;
            }
            // A record and a pack each, the fence's pack, seven counters at most.
            assert!(2 * open.len() + 1 + open.len().min(7) <= MAX_TRANSACTION, "{}", open.len());
            for i in open {
                results[i] = Some(WriteResult::Applied(1));
            }
            transactions += 1;
        }
        assert_eq!(transactions, 5);
    }

    #[test]
    fn a_job_ends_once() {
        let mut pack = PackState::default();
        assert!(pack.end(300) && !pack.end(300) && pack.end(0));
        assert!(pack.has_ended(300) && pack.has_ended(0) && !pack.has_ended(299) && !pack.has_ended(9000));
    }
}
