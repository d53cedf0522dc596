//! One key range: merge the two listings, decide, pack, record.

use super::{
    Inner, Output, Overwrite, Shared, UnknownPolicy,
    lister::Lister,
    spool::{self, Found},
};
use crate::{
    error::Result,
    events::Event,
    index::{Index, ListFrom, ListRequest},
    job::{Action, Job, Pack, Packer, Seen},
    key_map::KeyMap,
    manifest::Line,
    object::{Entry, ObjectKey},
    plan::compare::Verdict,
    proof::{Branch, Bug, reached, wrong},
    state::{Advance, FinderTotals, OutboxPack, PackId, Record, Shard, SkipReason, Status, Tally},
    versions::is_archived,
};
use std::{
    cmp::Ordering,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Pages between two steps when nothing differs; a finder that died lists at most so many again.
const STEP_PAGES: u64 = 8;

/// Packs gathered before a step is made within a page: keys that only the destination has can follow each other without end,
/// and no page of the source ends between them.
const STEP_PACKS: usize = 8;

/// Most requests, each for one key, to find the middle of a range.
const PROBES: u64 = 24;

/// Keys that are looked at by one call.
const LOOKS: usize = 32;

/// Pages listed for each of these requests.
const PAGES_A_PROBE: u64 = 4;

struct Walk {
    shard: Shard,
    packer: Packer,
    ready: Ready,
    held_packer: Packer,
    totals: FinderTotals,
    sent: Vec<PackId>,
    /// What the listings do not tell enough of: looked at together.
    unseen: Vec<(Entry, There)>,
    /// Keys that only the destination has, of which its listing tells no more.
    extras: Vec<ObjectKey>,
    /// Same size, other etag: looked up together.
    ask: Vec<(Entry, Entry)>,
    /// For the manifest, where one of all objects is wanted.
    equal: Vec<Line>,
    spools: bool,
    counted_pages: (u64, u64),
    pages: u64,
    pages_at_step: u64,
    split_at: u64,
    /// No key of the range lies behind it, as far as probes found out.
    end: Option<String>,
}

impl Inner {
    pub(super) async fn shard(self: Arc<Self>, shard: Shard, shared: Arc<Shared>) -> Result<()> {
        let from = shard.position.clone().or_else(|| shard.after.clone());
        if shard.position.is_some() {
            reached(Branch::ShardResumed);
        }
        let lister = |index, prefix: String, after, keys: &KeyMap, limit| {
            Lister::new(index, Arc::clone(&self.env), self.settings.retry, prefix, after, keys, limit)
        };
        let (source_limit, sink_limit) = self.limits.clone().unzip();
        let prefix = &self.settings.prefix;
        let mut source = lister(Arc::clone(&self.source), prefix.clone(), from.clone(), &self.keys, source_limit);
        let after = from.map(|place| if self.keys.is_ordered() { self.keys.to_destination(&place) } else { spool::at(&place) });
        let s = &self.settings;
        // A listing of what else is there is worth nothing but for deletions.
        let looks = self.sink.index_capability().looked_up && !s.delete_extra;
        let there = self.keys.destination_prefix(prefix);
        let mut sink = (!looks).then(|| lister(Arc::clone(&self.sink), there, after, &KeyMap::default(), sink_limit));
        let packer = || Packer::new(s.pack_bytes, s.pack_jobs);
        let mut walk = Walk {
            shard,
            packer: packer(),
            ready: Ready::default(),
            held_packer: packer(),
            totals: FinderTotals::default(),
            sent: Vec::new(),
            unseen: Vec::new(),
            extras: Vec::new(),
            ask: Vec::new(),
            equal: Vec::new(),
            spools: self.spool.is_some() && matches!(shared.output, Output::Run(_)),
            counted_pages: (0, 0),
            pages: 0,
            pages_at_step: 0,
            split_at: s.split_after_pages,
            end: None,
        };
        loop {
            let ours = source.peek().await?.filter(|f| within(&f.place, walk.shard.until.as_ref())).map(|f| f.at.clone());
            let theirs = match (&ours, s.delete_extra, &mut sink) {
                // Without deletions nobody needs to know what else the destination holds.
                (None, false, _) | (_, _, None) => None,
                (_, _, Some(sink)) => self.peek_sink(sink, walk.shard.until.as_ref()).await?,
            };
            let mut take_there = || sink.as_mut().and_then(Lister::take).map(|found| found.entry);
            let position = match (&ours, &theirs) {
                (None, None) => break,
                (Some(key), Some(there)) => match key.cmp(there) {
                    Ordering::Less => self.only_source(&mut walk, source.take(), &shared),
                    Ordering::Equal => self.both(&mut walk, source.take(), take_there(), &shared),
                    Ordering::Greater => self.only_sink(&mut walk, take_there(), there),
                },
                (Some(_), None) if looks => self.unseen(&mut walk, source.take()),
                (Some(_), None) => self.only_source(&mut walk, source.take(), &shared),
                (None, Some(there)) => self.only_sink(&mut walk, take_there(), there),
            };
            let page_end = if ours.is_some() { source.at_page_end() } else { sink.as_ref().is_some_and(Lister::at_page_end) };
            let full = walk.packs(self.settings.pack_jobs) >= STEP_PACKS;
            if (page_end || full)
                && let Some(position) = position
            {
                walk.pages += u64::from(page_end);
                self.answer(&mut walk, &shared).await?;
                walk.count_pages(source.pages, sink.as_ref().map_or(0, |s| s.pages));
                if full || !walk.ready.jobs.is_empty() || walk.pages - walk.pages_at_step >= STEP_PAGES {
                    walk.shard.position = Some(position.clone());
                    self.step(&mut walk, &shared, None).await?;
                }
                if page_end && walk.pages >= walk.split_at && source.has_more() && shared.idle.load(Relaxed) > 0 && self.splittable() {
                    self.split(&mut walk, &shared, &position).await?;
                }
            }
        }
        self.answer(&mut walk, &shared).await?;
        walk.count_pages(source.pages, sink.as_ref().map_or(0, |s| s.pages));
        walk.shard.done = true;
        self.step(&mut walk, &shared, None).await?;
        self.mark_sent(&mut walk, &shared).await
    }

    /// What the next entry of the destination is compared by.
    async fn peek_sink(&self, sink: &mut Lister, until: Option<&ObjectKey>) -> Result<Option<ObjectKey>> {
        let there = sink.peek().await?.map(|found| &found.entry.key);
        // The listing is restricted to the mapped prefix, so that every key of a map that can be undone maps back.
        let at = there.and_then(|key| if self.keys.is_ordered() { self.keys.to_source(key) } else { Some(key.clone()) });
        Ok(at.filter(|key| within(key, until)))
    }

    fn only_source(&self, walk: &mut Walk, found: Option<Found>, shared: &Shared) -> Option<ObjectKey> {
        let Found { place, entry, collides, .. } = found?;
        walk.totals.listed += tally(&entry);
        match self.skip(&entry, collides) {
            Some(reason) => walk.skip(reason, &entry),
            None => self.queue(walk, &entry, Seen::Absent, Action::Copy, shared),
        }
        Some(place)
    }

    fn both(&self, walk: &mut Walk, found: Option<Found>, there: Option<Entry>, shared: &Shared) -> Option<ObjectKey> {
        let (Found { place, entry, collides, .. }, there) = (found?, there?);
        walk.totals.listed += tally(&entry);
        match self.skip(&entry, collides) {
            Some(reason) => walk.skip(reason, &entry),
            None if entry.etag.is_none() || there.etag.is_none() => walk.unseen.push((entry, There::Listed(there))),
            None => self.judge(walk, entry, there, shared),
        }
        Some(place)
    }

    fn judge(&self, walk: &mut Walk, entry: Entry, there: Entry, shared: &Shared) {
        match self.compare.judge(&entry, &there) {
            _ if wrong(Bug::SizeOnlyCompare) && entry.size == there.size => self.unchanged(walk, &entry, &there),
            Verdict::Equal => self.unchanged(walk, &entry, &there),
            Verdict::Differs => self.differs(walk, &entry, &there, Action::Copy, shared),
            Verdict::AskRecord => walk.ask.push((entry, there)),
        }
    }

    /// Of a destination that is not listed.
    fn unseen(&self, walk: &mut Walk, found: Option<Found>) -> Option<ObjectKey> {
        let Found { place, entry, collides, .. } = found?;
        walk.totals.listed += tally(&entry);
        match self.skip(&entry, collides) {
            Some(reason) => walk.skip(reason, &entry),
            None => walk.unseen.push((entry, There::Unseen)),
        }
        Some(place)
    }

    /// Looks at many keys, some at a time: what was found is not asked for again because another answer was lost.
    async fn find(&self, index: &dyn Index, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(LOOKS) {
            found.extend(self.settings.retry.run(&*self.env, || index.find(some)).await?);
        }
        Ok(found)
    }

    /// What only the destination has, and its listing does not tell which it is: nothing is deleted that was not seen.
    async fn look_at_extras(&self, walk: &mut Walk) -> Result<()> {
        let extras = std::mem::take(&mut walk.extras);
        let keys: Vec<ObjectKey> = extras.iter().map(|key| self.keys.to_destination(key)).collect();
        for (key, there) in extras.into_iter().zip(self.find(&*self.sink, &keys).await?) {
            if let Some(there) = there.filter(|there| there.etag.is_some()) {
                self.extra(walk, &key, &there);
            }
        }
        Ok(())
    }

    /// Looks at what the listings did not tell: at the destination first, and at the source only what is at both.
    async fn look(&self, walk: &mut Walk, shared: &Shared) -> Result<()> {
        self.look_at_extras(walk).await?;
        if walk.unseen.is_empty() {
            return Ok(());
        }
        reached(Branch::Looked);
        let mut pairs = std::mem::take(&mut walk.unseen);
        let lacks = |there: &There| matches!(there, There::Unseen) || matches!(there, There::Listed(entry) if entry.etag.is_none());
        let keys: Vec<ObjectKey> = pairs.iter().filter(|(_, t)| lacks(t)).map(|(e, _)| self.keys.to_destination(&e.key)).collect();
        let mut found = self.find(&*self.sink, &keys).await?.into_iter();
        for (_, there) in pairs.iter_mut().filter(|(_, there)| lacks(there)) {
            *there = found.next().flatten().map_or(There::Nothing, There::Listed);
        }
        let both = |(entry, there): &(Entry, There)| entry.etag.is_none() && matches!(there, There::Listed(_));
        let keys: Vec<ObjectKey> = pairs.iter().filter(|pair| both(pair)).map(|(e, _)| e.key.clone()).collect();
        let mut found = self.find(&*self.source, &keys).await?.into_iter();
        for pair in pairs.iter_mut().filter(|pair| both(pair)) {
            // What is gone meanwhile is listed all the same: its job will find out.
            if let Some(now) = found.next().flatten() {
                walk.totals.listed.bytes += now.size.unwrap_or(0).saturating_sub(pair.0.size.unwrap_or(0));
                pair.0 = Entry { key: pair.0.key.clone(), ..now };
            }
        }
        for (entry, there) in pairs {
            match there {
                There::Listed(there) => self.judge(walk, entry, there, shared),
                There::Unseen | There::Nothing => {
                    // Where nothing may be replaced, the job looks itself: a destination without conditions would not refuse.
                    let seen = if self.settings.overwrite == Overwrite::Always { Seen::Absent } else { Seen::Unknown };
                    self.queue(walk, &entry, seen, Action::Copy, shared);
                }
            }
        }
        Ok(())
    }

    fn only_sink(&self, walk: &mut Walk, entry: Option<Entry>, key: &ObjectKey) -> Option<ObjectKey> {
        let entry = entry?;
        if self.settings.delete_extra && self.source.covers(key) && self.filter.takes(&Entry { key: key.clone(), ..entry.clone() }) {
            if entry.etag.is_none() {
                walk.extras.push(key.clone());
            } else {
                self.extra(walk, key, &entry);
            }
        }
        Some(if self.keys.is_ordered() { key.clone() } else { spool::place(key, "") })
    }

    fn extra(&self, walk: &mut Walk, key: &ObjectKey, there: &Entry) {
        walk.totals.extra += tally(there);
        walk.totals.extra_queued += tally(there);
        let job = Job {
            key: key.clone(),
            etag: None,
            action: Action::Delete,
            ..Job::copy(there, there.etag.clone().map_or(Seen::Unknown, Seen::Present))
        };
        if let Some(jobs) = walk.held_packer.push(job) {
            walk.ready.held.push(jobs);
        }
    }

    fn skip(&self, entry: &Entry, collides: bool) -> Option<SkipReason> {
        if !self.filter.takes(entry) {
            return Some(SkipReason::Filtered);
        }
        if collides {
            tracing::warn!(key = %entry.key, destination = %self.keys.to_destination(&entry.key), "several keys would become this one: skipped");
            return Some(SkipReason::Collision);
        }
        if !self.sink.carries(&self.keys.to_destination(&entry.key)) {
            return Some(SkipReason::Unrepresentable);
        }
        let archived = is_archived(entry, self.source.index_capability().archived);
        (archived && self.settings.restore.is_none()).then_some(SkipReason::Archived)
    }

    fn unchanged(&self, walk: &mut Walk, entry: &Entry, there: &Entry) {
        walk.totals.unchanged += tally(entry);
        if walk.spools {
            walk.equal.push(Line::unchanged(entry, there));
        }
    }

    fn differs(&self, walk: &mut Walk, entry: &Entry, there: &Entry, action: Action, shared: &Shared) {
        let newer = matches!((entry.modified, there.modified), (Some(s), Some(d)) if s > d);
        match self.settings.overwrite {
            Overwrite::Never => walk.skip(SkipReason::Exists, entry),
            Overwrite::IfNewer if !newer => walk.skip(SkipReason::Newer, entry),
            _ => {
                let seen = there.etag.clone().map_or(Seen::Unknown, Seen::Present);
                self.queue(walk, entry, seen, action, shared);
            }
        }
    }

    fn queue(&self, walk: &mut Walk, entry: &Entry, seen: Seen, action: Action, shared: &Shared) {
        walk.totals.queued += tally(entry);
        match &shared.output {
            Output::Run(_) => {
                let job = Job { action, overwrite: self.settings.overwrite, ..Job::copy(entry, seen) };
                if let Some(jobs) = walk.packer.push(job) {
                    walk.ready.jobs.push(jobs);
                }
            }
            Output::Plan { plan, single_max, part_size } => {
                let mut plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                plan.count(entry.size.unwrap_or(0), *single_max, *part_size);
            }
        }
    }

    /// Decides about same size, other etag, by the recorded pairs of a page.
    async fn answer(&self, walk: &mut Walk, shared: &Shared) -> Result<()> {
        self.look(walk, shared).await?;
        if walk.ask.is_empty() {
            return Ok(());
        }
        let ask = std::mem::take(&mut walk.ask);
        let keys: Vec<ObjectKey> = ask.iter().map(|(entry, _)| entry.key.clone()).collect();
        let records = self.settings.retry.run(&*self.env, || self.state.records(&keys)).await?;
        for ((entry, there), record) in ask.into_iter().zip(records) {
            match record.filter(|r| r.status == Status::Done) {
                Some(record) if holds(&record, &entry, &there) => {
                    reached(Branch::AskedRecord);
                    self.unchanged(walk, &entry, &there);
                }
                Some(_) => self.differs(walk, &entry, &there, Action::Copy, shared),
                None => {
                    walk.totals.unknown += tally(&entry);
                    match self.settings.unknown {
                        // Where there are no sizes, there is nothing to trust.
                        UnknownPolicy::TrustSize if entry.size.is_none() || entry.size != there.size => {
                            self.differs(walk, &entry, &there, Action::Copy, shared);
                        }
                        UnknownPolicy::TrustSize => walk.skip(SkipReason::TrustedSize, &entry),
                        UnknownPolicy::Copy => self.differs(walk, &entry, &there, Action::Copy, shared),
                        UnknownPolicy::Adopt => self.differs(walk, &entry, &there, Action::Adopt, shared),
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes everything up to the position durable, then sends.
    async fn step(&self, walk: &mut Walk, shared: &Shared, new: Option<Shard>) -> Result<()> {
        walk.pages_at_step = walk.pages;
        let totals = std::mem::take(&mut walk.totals);
        let run = match &shared.output {
            Output::Run(run) => run,
            Output::Plan { plan, .. } => {
                plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).totals.add(&totals);
                return Ok(());
            }
        };
        if let Some(spool) = self.spool.as_ref().filter(|_| !walk.equal.is_empty()) {
            spool.write(run, &walk.shard, std::mem::take(&mut walk.equal)).await?;
        }
        if walk.shard.done || !wrong(Bug::CursorAhead) {
            walk.ready.jobs.extend(walk.packer.take());
        }
        walk.ready.held.extend(walk.held_packer.take());
        let pack = |jobs, held| {
            let pack = Pack::new(&*self.env, Some(run.clone()), jobs);
            OutboxPack { pack: pack.id.clone(), body: pack.to_body(), held }
        };
        let ready = std::mem::take(&mut walk.ready);
        let mut packs: Vec<OutboxPack> = ready.jobs.into_iter().map(|jobs| pack(jobs, false)).collect();
        let to_send = packs.len();
        packs.extend(ready.held.into_iter().map(|jobs| pack(jobs, true)));
        let mut shards = vec![walk.shard.clone()];
        shards.extend(new);
        let step = Advance { shards, totals, packs, sent: std::mem::take(&mut walk.sent) };
        let ours = if wrong(Bug::OutboxForgotten) {
            // Nothing is kept of them: a finder that dies before it has sent them has lost them.
            self.advance(run, &Advance { packs: step.packs[to_send..].to_vec(), ..step.clone() }).await?
        } else {
            self.advance(run, &step).await?
        };
        walk.shard.version += 1;
        let totals = &step.totals;
        self.events.emit(|| Event::Found {
            run: run.clone(),
            listed: totals.listed.objects,
            queued: totals.queued.objects,
            bytes: totals.queued.bytes,
        });
        if wrong(Bug::SentMarkedEarly) {
            walk.sent.extend(step.packs[..to_send].iter().map(|p| p.pack.clone()));
            self.mark_sent(walk, shared).await?;
        }
        if to_send > 0 && ours {
            walk.sent.extend(self.send(&step.packs[..to_send]).await?);
        }
        Ok(())
    }

    /// One step; a lost answer is cleared up by looking at the shard's version. `false` when the step that was found is not
    /// ours: a finder that died has made the same one, late, and its packs are in the outbox instead of ours.
    async fn advance(&self, run: &crate::state::RunId, step: &Advance) -> Result<bool> {
        let retry = self.settings.retry;
        let mut tried = 0;
        loop {
            tried += 1;
            let Err(error) = self.state.advance(run, step).await else { return Ok(true) };
            if error.maybe_applied() {
                let stored = retry.run(&*self.env, || self.state.shards(run)).await?;
                let applied = |shard: &Shard| stored.iter().any(|s| *s == Shard { version: shard.version + 1, ..shard.clone() });
                if !step.shards.is_empty() && step.shards.iter().all(applied) {
                    let Some(ours) = step.packs.iter().find(|p| !p.held) else { return Ok(true) };
                    let kept = retry.run(&*self.env, || self.state.outbox(run, usize::MAX >> 1)).await?;
                    return Ok(kept.iter().any(|p| p.pack == ours.pack));
                }
            }
            let Some(pause) = retry.pause(&error, tried, &*self.env).filter(|_| error.kind() != crate::error::ErrorKind::Precondition)
            else {
                return Err(error);
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn mark_sent(&self, walk: &mut Walk, shared: &Shared) -> Result<()> {
        let Output::Run(run) = &shared.output else { return Ok(()) };
        if walk.sent.is_empty() {
            return Ok(());
        }
        let step = Advance { sent: std::mem::take(&mut walk.sent), ..Advance::default() };
        self.settings.retry.run(&*self.env, || self.state.advance(run, &step)).await
    }

    /// A key that exists, somewhere between the position and the end of the range, by bisection: a probe that finds nothing
    /// more has found a nearer end.
    async fn middle_key(&self, walk: &mut Walk, position: &ObjectKey) -> Result<Option<ObjectKey>> {
        let prefix = &self.settings.prefix;
        // Looking for a place to cut must not cost more than a part of what was listed already; what a probe has found out is
        // kept for the next time.
        for _ in 0..(walk.pages / PAGES_A_PROBE).clamp(2, PROBES) {
            let end = walk.end.as_deref().or(walk.shard.until.as_ref().map(ObjectKey::as_str));
            let Some(middle) = midpoint(position.as_str(), end, prefix.len()) else { return Ok(None) };
            let request = ListRequest { prefix: prefix.clone(), from: ListFrom::After(ObjectKey::new(middle.as_str())), max: Some(1) };
            let probe = self.settings.retry.run(&*self.env, || self.source.list(&request)).await?;
            walk.totals.source_pages += 1;
            match probe.entries.into_iter().next().map(|e| e.key) {
                Some(key) if walk.shard.until.as_ref().is_none_or(|until| key < *until) => {
                    return Ok((key > *position).then_some(key));
                }
                _ => walk.end = Some(middle),
            }
        }
        Ok(None)
    }

    /// Cuts the rest of a range in two.
    async fn split(&self, walk: &mut Walk, shared: &Shared, position: &ObjectKey) -> Result<()> {
        walk.split_at = walk.pages * 2;
        let Some(cut) = self.middle_key(walk, position).await? else { return Ok(()) };
        let id = shared.next_shard.fetch_add(1, Relaxed) as u32;
        reached(Branch::ShardSplit);
        let new = Shard { id, after: Some(cut.clone()), until: walk.shard.until.clone(), position: None, done: false, version: 0 };
        walk.shard.position = Some(position.clone());
        walk.shard.until = Some(cut);
        walk.end = None;
        self.step(walk, shared, Some(new.clone())).await?;
        tracing::debug!(shard = walk.shard.id, new = id, "range cut in two");
        walk.split_at = walk.pages + self.settings.split_after_pages;
        let version = u64::from(matches!(shared.output, Output::Run(_)));
        // The receiver lives as long as any shard runs.
        let _ = shared.new_shards.send(Shard { version, ..new });
        Ok(())
    }
}

/// What is known of the destination's side of a key.
#[derive(Debug)]
enum There {
    /// Nothing yet.
    Unseen,
    /// That there is nothing.
    Nothing,
    /// An entry, perhaps without an etag.
    Listed(Entry),
}

/// Jobs gathered for the next step.
#[derive(Debug, Default)]
struct Ready {
    jobs: Vec<Vec<Job>>,
    held: Vec<Vec<Job>>,
}

impl Walk {
    /// Packs of the next step, those included that the looked-up keys may come to.
    fn packs(&self, pack_jobs: usize) -> usize {
        self.ready.jobs.len() + self.ready.held.len() + (self.ask.len() + self.unseen.len() + self.extras.len()) / pack_jobs.max(1)
    }

    fn skip(&mut self, reason: SkipReason, entry: &Entry) {
        *self.totals.skipped.entry(reason.as_str().to_owned()).or_default() += tally(entry);
    }

    fn count_pages(&mut self, source: u64, sink: u64) {
        self.totals.source_pages += source - self.counted_pages.0;
        self.totals.destination_pages += sink - self.counted_pages.1;
        self.counted_pages = (source, sink);
    }
}

/// Whether the recorded pair of etags is the one that both listings show.
fn holds(record: &Record, entry: &Entry, there: &Entry) -> bool {
    record.source.as_ref().is_some_and(|s| s.etag.is_some() && s.etag == entry.etag && Some(s.size) == entry.size)
        && record.destination.is_some()
        && record.destination == there.etag
}

fn within(key: &ObjectKey, until: Option<&ObjectKey>) -> bool {
    until.is_none_or(|until| key < until || key == until && !wrong(Bug::SplitGap))
}

fn tally(entry: &Entry) -> Tally {
    Tally::one(entry.size.unwrap_or(0))
}

/// A string about half-way between two keys that begin with the same `shared` bytes. `None` when there is none to be had.
fn midpoint(low: &str, high: Option<&str>, shared: usize) -> Option<String> {
    let mut common: usize = match high {
        Some(high) => low.chars().zip(high.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum(),
        None => shared.min(low.len()),
    };
    let next = |at: usize| low[at..].chars().next();
    let mut from = next(common).map_or(0x1f, u32::from);
    // Most keys are ASCII: without an upper bound, its end is the better guess.
    let top = |from: u32| if from < 0x7d { 0x7e } else { 0x0010_FFFF };
    let mut to = match high {
        Some(high) => u32::from(high[common..].chars().next()?),
        None => top(from),
    };
    while to.saturating_sub(from) < 2 {
        // Neighbours: everything between them begins like the lower one.
        common += next(common)?.len_utf8();
        from = next(common).map_or(0x1f, u32::from);
        to = top(from);
    }
    let middle = from + (to - from) / 2;
    let middle = (middle..to).chain(from + 1..middle).find_map(char::from_u32)?;
    Some(format!("{}{middle}", &low[..common]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_midpoint_lies_between(shared in "\\PC{0,4}", a in "\\PC{0,6}", b in proptest::option::of("\\PC{1,6}")) {
            let (a, b) = (shared.clone() + &a, b.map(|b| shared.clone() + &b));
            if b.as_ref().is_none_or(|b| a < *b) && let Some(middle) = midpoint(&a, b.as_deref(), shared.len()) {
                prop_assert!(middle > a, "{middle:?} > {a:?}");
                prop_assert!(middle.starts_with(&shared));
                prop_assert!(b.as_ref().is_none_or(|b| middle < *b), "{middle:?} < {b:?}");
            }
        }
    }

    #[test]
    fn bisection_finds_keys_behind_a_long_prefix_that_all_share() {
        let keys: Vec<String> = (0..1000).map(|n| format!("data/2024/{n:03}")).collect();
        let (low, mut high) = (&keys[10], None::<String>);
        for probes in 1.. {
            let middle = midpoint(low, high.as_deref(), 0).unwrap();
            if let Some(found) = keys.iter().find(|k| **k > middle) {
                assert!(probes <= PROBES * 3 && found > low, "{found} after {probes}");
                break;
            }
            high = Some(middle);
        }
    }
}
