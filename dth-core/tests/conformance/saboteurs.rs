//! Backends that are wrong on purpose: each breaks one promise, and the suite must say so.

use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    conformance::{Checked, GraphBench, QueueBench, StateBench, StoreBench, Verdict, graph, queue, state, store},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    memory::{MemoryQueue, MemoryState, MemoryStore},
    object::{ETag, Entry, ObjectInfo, ObjectKey, Tags, VersionId},
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
    sink::{Body, Condition, OpenUpload, Part, Placed, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::{CopyOrigin, Family, Read, ReadOptions, ReadRange, Source, SourceCapability},
    state::{
        Advance, Claim, Committed, Fence, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite, Run, RunId, RunState, Shard,
        StateStore,
    },
    versions::VersionsPage,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// A backend that breaks the promise of this name.
#[derive(Debug)]
struct Saboteur<T> {
    inner: T,
    breaks: &'static str,
    fence: Mutex<Option<Fence>>,
    count: AtomicU32,
}

impl<T> Saboteur<T> {
    fn new(inner: T, breaks: &'static str) -> Arc<Self> {
        Arc::new(Self { inner, breaks, fence: Mutex::default(), count: AtomicU32::new(1000) })
    }

    fn breaks(&self, promise: &str) -> bool {
        self.breaks == promise
    }
}

async fn gathered(body: Body) -> Vec<Bytes> {
    match body {
        Body::Bytes(chunks) => chunks,
        Body::Stream { mut stream, .. } => {
            let mut chunks = Vec::new();
            while let Some(Ok(chunk)) = stream.next().await {
                chunks.push(chunk);
            }
            chunks
        }
    }
}

#[async_trait]
impl Index for Saboteur<MemoryStore> {
    fn name(&self) -> String {
        "saboteur".into()
    }
    fn index_capability(&self) -> IndexCapability {
        self.inner.index_capability()
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let mut request = request.clone();
        if self.breaks("a_listing_keeps_to_its_prefix") {
            request.prefix.truncate(request.prefix.find('/').map_or(0, |at| at + 1));
        }
        let mut page = self.inner.list(&request).await?;
        let skips = self.breaks("a_listing_starts_behind_a_key") && matches!(request.from, ListFrom::After(_));
        if skips && !page.entries.is_empty() {
            page.entries.remove(0);
        }
        if self.breaks("a_listing_is_whole_and_in_order") && page.next.is_some() {
            page.entries.pop();
        }
        for entry in &mut page.entries {
            if self.breaks("keys_stay_themselves") {
                entry.key = entry.key.as_str().replace('+', " ").into();
            }
            if self.breaks("what_is_written_is_read") {
                entry.size = entry.size.map(|n| n + 1);
            }
        }
        Ok(page)
    }
    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        let info = self.inner.head(key, version).await;
        if self.breaks("a_missing_key_is_not_found") && info.is_err() {
            return Err(Error::new(ErrorKind::Denied, Op::Head, "saboteur"));
        }
        info
    }
    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        let mut page = self.inner.versions(request).await?;
        if self.breaks("versions_keep_their_order") {
            page.versions.sort_by(|a, b| (&a.entry.key, a.entry.modified).cmp(&(&b.entry.key, b.entry.modified)));
        }
        Ok(page)
    }
    async fn keeps_versions(&self) -> Result<bool> {
        self.inner.keeps_versions().await
    }
    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        let mut found = self.inner.find(keys).await?;
        if self.breaks("looks_are_in_their_order") {
            found.rotate_left(1);
        }
        Ok(found)
    }
}

#[async_trait]
impl Source for Saboteur<MemoryStore> {
    fn source_capability(&self) -> SourceCapability {
        self.inner.source_capability()
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let mut options = options.clone();
        let asked = options.range.clone();
        match &asked {
            ReadRange::Bytes(_) if self.breaks("a_range_is_that_range") => options.range = ReadRange::Full,
            ReadRange::FirstPart if self.breaks("the_first_part_tells_the_layout") => options.range = ReadRange::Full,
            _ => {}
        }
        if self.breaks("a_pinned_read_is_of_that_version") || self.breaks("children_are_those_of_what_is_read") {
            options.if_match = None;
        }
        let mut read = match self.inner.read(key, &options).await {
            Err(_) if self.breaks("a_range_that_is_not_there_is_an_error") && asked != ReadRange::Full => {
                self.inner.read(key, &ReadOptions::default()).await?
            }
            read => read?,
        };
        if let ReadRange::Bytes(range) = asked
            && (self.breaks("a_range_is_that_range") || self.breaks("a_range_that_is_not_there_is_an_error"))
        {
            read.range = range;
        }
        Ok(read)
    }
    async fn children(&self, entry: &Entry) -> Result<Family> {
        let mut family = match self.inner.children(entry).await {
            // Parent or child, what is missing is left out.
            Err(_) if self.breaks("the_family_of_nothing_is_not_found") || self.breaks("a_graph_that_lacks_a_child_does_not_arrive") => {
                let entry = self.inner.head(&entry.key, None).await.map_or_else(|_| entry.clone(), |info| info.entry);
                Family { entry, children: Vec::new() }
            }
            family => family?,
        };
        if self.breaks("children_are_told_with_their_parent") {
            family.children.pop();
        }
        Ok(family)
    }
    async fn tags(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Tags> {
        let mut tags = self.inner.tags(key, version).await?;
        if self.breaks("tags_come_back") {
            tags.pop();
        }
        Ok(tags)
    }
    fn copy_origin(&self, key: &ObjectKey, version: Option<&VersionId>) -> Option<CopyOrigin> {
        self.inner.copy_origin(key, version)
    }
}

#[async_trait]
impl Sink for Saboteur<MemoryStore> {
    fn sink_capability(&self) -> SinkCapability {
        self.inner.sink_capability()
    }
    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let mut key = key.clone();
        let mut options = options.clone();
        let mut body = body;
        if self.breaks("an_overwrite_replaces_the_whole")
            && let Some(old) = self.inner.get(&key)
        {
            options.attributes = old.attributes.clone();
        }
        if self.breaks("a_key_that_is_not_carried_is_refused") && !self.carries(&key) {
            key = ObjectKey::new(&key.as_str()[..100]);
        }
        if self.breaks("metadata_comes_back") {
            options.attributes.cache_control = None;
        }
        if self.breaks("a_write_honours_its_condition") {
            options.condition = Condition::None;
        }
        if self.breaks("a_wrong_checksum_is_refused") {
            options.checksum = None;
        }
        if self.breaks("a_body_that_breaks_shows_nothing") {
            body = Body::Bytes(gathered(body).await);
        }
        if self.breaks("a_write_that_is_given_up_shows_nothing") {
            self.inner.put(&key, Body::Bytes(Vec::new()), &PutOptions::default()).await?;
        }
        if self.breaks("hostile_keys_travel_exactly") && key.as_str().contains("copy/") {
            key = key.as_str().replace("%00", "\0").into();
        }
        if self.breaks("a_task_arrives_whole_and_does_nothing_twice") && key.as_str().contains("copy/") {
            body = Body::Bytes(Vec::new());
            options.checksum = None;
        }
        let mut written = self.inner.put(&key, body, &options).await?;
        if self.breaks("checksums_that_are_told_are_right") {
            written.checksum = None;
        }
        Ok(written)
    }
    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        let placed = self.inner.place(key, child).await?;
        let lies = match &placed {
            Placed::Absent if self.breaks("a_graph_arrives_whole_and_does_nothing_twice") => key.as_str().contains("copy/"),
            Placed::Absent => self.breaks("a_child_is_placed_once_it_is_there"),
            Placed::Other(_) => self.breaks("another_child_is_not_taken_for_it"),
            _ => false,
        };
        Ok(if lies { Placed::There } else { placed })
    }
    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        if self.breaks("a_deleted_key_is_gone") {
            return Ok(());
        }
        let ignored = self.breaks("a_delete_honours_its_condition");
        self.inner.delete(key, if ignored { &Condition::None } else { condition }).await
    }
    async fn create_upload(&self, key: &ObjectKey, options: &PutOptions) -> Result<UploadId> {
        self.inner.create_upload(key, options).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Body,
        sum: Option<&dth_core::checksum::Checksum>,
    ) -> Result<Part> {
        let body = Body::Bytes(gathered(body).await);
        if self.breaks("nothing_shows_before_completion") {
            self.inner.put(key, Body::Bytes(Vec::new()), &PutOptions::default()).await?;
        }
        let held = self.inner.list_parts(key, upload).await?.into_iter().find(|p| p.number == number);
        if self.breaks("a_part_sent_again_replaces_the_first")
            && let Some(held) = held
        {
            return Ok(Part { size: body.len(), ..held });
        }
        self.inner.put_part(key, upload, number, body, sum).await
    }
    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<Part>> {
        let mut parts = self.inner.list_parts(key, upload).await?;
        if self.breaks("parts_are_listed") {
            parts.pop();
        }
        Ok(parts)
    }
    async fn list_uploads(&self, prefix: &str, token: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        let (mut uploads, next) = self.inner.list_uploads(prefix, token).await?;
        if self.breaks("uploads_are_listed_by_prefix") {
            for upload in &mut uploads {
                upload.key = prefix.into();
            }
        }
        Ok((uploads, next))
    }
    async fn complete_upload(&self, key: &ObjectKey, upload: &UploadId, parts: &[Part], options: &PutOptions) -> Result<Written> {
        let mut parts = parts.to_vec();
        let mut options = options.clone();
        if self.breaks("parts_make_the_whole") {
            parts.reverse();
        }
        if self.breaks("a_wrong_part_is_refused") {
            parts = self.inner.list_parts(key, upload).await?;
        }
        if self.breaks("a_completion_honours_its_condition") {
            options.condition = Condition::None;
        }
        self.inner.complete_upload(key, upload, &parts, &options).await
    }
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        if self.breaks("an_upload_that_ended_is_not_found") {
            return Ok(());
        }
        self.inner.abort_upload(key, upload).await
    }
    fn can_copy(&self, origin: &CopyOrigin) -> bool {
        self.inner.can_copy(origin)
    }
    async fn copy(&self, origin: &CopyOrigin, source: &ETag, key: &ObjectKey, options: &PutOptions) -> Result<Written> {
        let now = self.inner.get(&origin.key).filter(|_| self.breaks("a_copy_is_the_same")).map(|o| o.etag.clone());
        self.inner.copy(origin, now.as_ref().unwrap_or(source), key, options).await
    }
}

#[async_trait]
impl Queue for Saboteur<MemoryQueue> {
    fn capability(&self) -> QueueCapability {
        self.inner.capability()
    }
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let mut messages = messages.to_vec();
        if self.breaks("what_is_sent_is_received") && messages.len() > 1 {
            let lost = messages.pop();
            let mut sent = self.inner.send(&messages).await?;
            sent.extend(lost.map(|_| Ok(())));
            return Ok(sent);
        }
        let too_large = messages.iter().any(|m| m.body.len() > self.capability().max_body);
        if self.breaks("a_message_that_is_too_large_is_refused_alone") && too_large {
            return Err(Error::new(ErrorKind::Invalid, Op::Send, "saboteur"));
        }
        for message in &mut messages {
            if self.breaks("bodies_stay_themselves") {
                message.body = message.body.trim().to_owned();
            }
            if self.breaks("a_delayed_message_waits") {
                message.delay = Duration::ZERO;
            }
        }
        self.inner.send(&messages).await
    }
    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        if self.breaks("a_receiver_is_woken") {
            tokio::time::sleep(wait).await;
        }
        let mut deliveries = self.inner.receive(max, lease, wait).await?;
        if self.breaks("a_dropped_receive_hands_nothing_out") {
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        for delivery in &mut deliveries {
            if self.breaks("a_leased_message_is_hidden") {
                self.inner.release(&delivery.receipt, Duration::ZERO).await?;
            }
            if self.breaks("an_ended_lease_shows_it_again") {
                delivery.receives = 1;
            }
        }
        Ok(deliveries)
    }
    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        if self.breaks("an_extended_lease_holds") {
            return Ok(());
        }
        match self.inner.extend(receipt, lease).await {
            Err(_) if self.breaks("a_stale_receipt_does_nothing") => Ok(()),
            extended => extended,
        }
    }
    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        if self.breaks("an_acknowledged_message_is_gone") {
            return Ok(());
        }
        self.inner.ack(receipt).await
    }
    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        self.inner.release(receipt, if self.breaks("a_released_message_comes_back") { Duration::ZERO } else { delay }).await
    }
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let reason = if self.breaks("a_dead_letter_keeps_body_and_reason") { "why" } else { reason };
        self.inner.dead_letter(delivery, reason).await
    }
    async fn depth(&self) -> Result<Depth> {
        let depth = self.inner.depth().await?;
        let wrong = self.breaks("depth_is_counted");
        Ok(if wrong { Depth { ready: depth.pending(), leased: 0, ..depth } } else { depth })
    }
    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        self.inner.dead_letters(after, max).await
    }
    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        match self.inner.redrive(id, body).await {
            Err(_) if self.breaks("a_dead_letter_can_be_sent_again") => Ok(()),
            redriven => redriven,
        }
    }
}

#[async_trait]
impl StateStore for Saboteur<MemoryState> {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        let mut records = self.inner.records(keys).await?;
        if self.breaks("a_record_comes_back_as_written") {
            records.iter_mut().flatten().for_each(|r| r.uploads_since = None);
        }
        Ok(records)
    }
    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let mut query = query.clone();
        if self.breaks("records_are_listed_in_pages") {
            query.status = None;
        }
        self.inner.query(&query, max).await
    }
    async fn may_have_begun_uploads(&self) -> Result<bool> {
        Ok(!self.breaks("uploads_once_begun_are_known") && self.inner.may_have_begun_uploads().await?)
    }
    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        let mut claim = self.inner.claim(pack, run, incarnation, jobs).await?;
        *self.fence.lock().unwrap() = Some(claim.fence.clone());
        if self.breaks("a_claim_tells_what_is_known") {
            claim.ended.iter_mut().for_each(|ended| *ended = false);
        }
        Ok(claim)
    }
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        let mut fence = fence.clone();
        let mut writes = writes.to_vec();
        if self.breaks("a_commit_of_an_older_delivery_is_refused_whole") {
            fence = self.fence.lock().unwrap().clone().unwrap();
        }
        for write in &mut writes {
            if self.breaks("records_are_replaced_by_version") {
                let stored = self.inner.records(std::slice::from_ref(&write.record.key)).await?;
                write.record.version = stored[0].as_ref().map_or(0, |r| r.version);
            }
            if self.breaks("a_job_counts_once") {
                for end in &mut write.ends {
                    end.origin.1 = self.count.fetch_add(1, Relaxed);
                }
            }
        }
        self.inner.commit(&fence, &writes).await
    }
    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        self.inner.save_parts(upload, parts).await
    }
    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        self.inner.parts(upload, numbers).await
    }
    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool> {
        if self.breaks("the_last_parts_are_known_as_such") {
            return Ok(saved.contains(&total));
        }
        self.inner.parts_complete(upload, saved, total).await
    }
    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        if self.breaks("parts_are_kept_and_forgotten") {
            return Ok(());
        }
        self.inner.forget_parts(upload).await
    }
    async fn note(&self, name: &str) -> Result<Option<Note>> {
        self.inner.note(name).await
    }
    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        if self.breaks("notes_are_replaced_by_version") {
            let stands = self.inner.note(name).await?.map_or(0, |note| note.version);
            return self.inner.save_note(name, text, stands).await;
        }
        self.inner.save_note(name, text, replaces).await
    }
    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        match self.inner.start_run(run, shards).await {
            Err(_) if self.breaks("a_run_starts_once") => Ok(()),
            started => started,
        }
    }
    async fn run(&self, run: &RunId) -> Result<Run> {
        self.inner.run(run).await
    }
    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        let mut runs = self.inner.runs(max).await?;
        if self.breaks("runs_are_listed_youngest_first") {
            runs.reverse();
        }
        Ok(runs)
    }
    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        match self.inner.move_run(run, from, to, now).await {
            Err(_) if self.breaks("a_run_moves_from_where_it_is") => Ok(()),
            moved => moved,
        }
    }
    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        self.inner.shards(run).await
    }
    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        let mut step = step.clone();
        if self.breaks("the_outbox_keeps_what_was_not_sent") {
            step.sent.truncate(1);
        }
        if self.breaks("held_packs_wait_for_a_decision") {
            step.packs.iter_mut().for_each(|p| p.held = false);
        }
        if self.breaks("totals_add_up") {
            step.totals.skipped.clear();
        }
        match self.inner.advance(run, &step).await {
            Err(error) if self.breaks("finder_steps_are_all_or_nothing") => {
                self.inner.advance(run, &Advance { packs: step.packs, ..Advance::default() }).await?;
                Err(error)
            }
            Err(_) if self.breaks("a_run_that_is_over_takes_no_steps") => Ok(()),
            advanced => advanced,
        }
    }
    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        self.inner.outbox(run, max).await
    }
    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        self.inner.release_held(run, go).await
    }
    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        let later = Timestamp::from_second(ended_before.as_second() + 3600).unwrap();
        let wrong = self.breaks("old_runs_are_forgotten_and_others_are_not");
        self.inner.forget_runs(if wrong { later } else { ended_before }).await
    }
}

fn judge(promise: &str, right: &Checked, wrong: &Checked, missed: &mut Vec<String>) {
    assert_eq!(*right, Ok(Verdict::Held), "{promise} without sabotage");
    if wrong.is_ok() {
        missed.push(promise.to_owned());
    }
}

#[tokio::test(start_paused = true)]
async fn every_saboteur_is_caught() {
    let mut missed = Vec::new();
    for (promise, check) in store::PROMISES {
        let bench = |breaks| {
            let store = crate::versioned_store();
            let store = Saboteur::new(store.clone().beside(&store), breaks);
            StoreBench::new(store.clone(), store)
        };
        judge(promise, &check(&bench("")).await, &check(&bench(promise)).await, &mut missed);
    }
    for (promise, check) in graph::PROMISES {
        let bench = |breaks| {
            let store = Saboteur::new(crate::graph_store(false), breaks);
            GraphBench::new(store.clone(), store, Arc::new(graph::Lines))
        };
        judge(promise, &check(&bench("")).await, &check(&bench(promise)).await, &mut missed);
    }
    for (promise, check) in queue::PROMISES {
        let bench = |breaks| QueueBench::new(Saboteur::new(MemoryQueue::new(), breaks), Duration::from_millis(20));
        judge(promise, &check(&bench("")).await, &check(&bench(promise)).await, &mut missed);
    }
    for (promise, check) in state::PROMISES {
        let bench = |breaks| StateBench::new(Saboteur::new(MemoryState::new(), breaks));
        judge(promise, &check(&bench("")).await, &check(&bench(promise)).await, &mut missed);
    }
    assert!(missed.is_empty(), "the suite accepts backends that break: {missed:?}");
}
