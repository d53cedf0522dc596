//! Queue and state as the engine uses them: what fails for a while is tried again.

use async_trait::async_trait;
use dth_core::{
    env::SystemEnv,
    error::{ErrorKind, Result},
    object::ObjectKey,
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
    retry::RetryPolicy,
    sink::{Part, UploadId},
    state::{
        Advance, Claim, Committed, Fence, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite, Run, RunId, RunState, Shard,
        StateStore,
    },
};
use jiff::Timestamp;
use std::{ops::RangeInclusive, time::Duration};

#[derive(Debug)]
pub(crate) struct Patient<T>(pub(crate) T);

const POLICY: RetryPolicy = RetryPolicy { tries: 40, base_ms: 5, cap_ms: 50 };

/// Again what was throttled or could not be done just then, and nothing else: other errors are answers that the promises look at.
macro_rules! again {
    ($call:expr) => {{
        let mut tried = 0;
        loop {
            tried += 1;
            match $call.await {
                Err(error) if matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable) && tried < POLICY.tries => {
                    tokio::time::sleep(POLICY.jittered(tried, &SystemEnv)).await;
                }
                answer => break answer,
            }
        }
    }};
}

#[async_trait]
impl<Q: Queue> Queue for Patient<Q> {
    fn capability(&self) -> QueueCapability {
        self.0.capability()
    }
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let mut results: Vec<Option<Result<()>>> = messages.iter().map(|_| None).collect();
        for tried in 1.. {
            let open: Vec<usize> = (0..messages.len()).filter(|i| results[*i].is_none()).collect();
            let asked: Vec<Message> = open.iter().map(|i| messages[*i].clone()).collect();
            let answers = again!(self.0.send(&asked))?;
            for (i, answer) in open.into_iter().zip(answers) {
                let passes = answer.as_ref().is_err_and(|e| POLICY.pause(e, tried, &SystemEnv).is_some());
                results[i] = (!passes).then_some(answer);
            }
            if results.iter().all(Option::is_some) {
                break;
            }
        }
        Ok(results.into_iter().flatten().collect())
    }
    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        again!(self.0.receive(max, lease, wait))
    }
    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        again!(self.0.extend(receipt, lease))
    }
    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        again!(self.0.ack(receipt))
    }
    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        again!(self.0.release(receipt, delay))
    }
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        again!(self.0.dead_letter(delivery, reason))
    }
    async fn depth(&self) -> Result<Depth> {
        again!(self.0.depth())
    }
    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        again!(self.0.dead_letters(after, max))
    }
    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        again!(self.0.redrive(id, body))
    }
}

#[async_trait]
impl<S: StateStore> StateStore for Patient<S> {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        again!(self.0.records(keys))
    }
    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        again!(self.0.query(query, max))
    }
    async fn may_have_begun_uploads(&self) -> Result<bool> {
        again!(self.0.may_have_begun_uploads())
    }
    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        again!(self.0.claim(pack, run, incarnation, jobs))
    }
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        again!(self.0.commit(fence, writes))
    }
    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        again!(self.0.save_parts(upload, parts))
    }
    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        again!(self.0.parts(upload, numbers.clone()))
    }
    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool> {
        again!(self.0.parts_complete(upload, saved, total))
    }
    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        again!(self.0.forget_parts(upload))
    }
    async fn note(&self, name: &str) -> Result<Option<Note>> {
        again!(self.0.note(name))
    }
    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        again!(self.0.save_note(name, text, replaces))
    }
    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        again!(self.0.start_run(run, shards))
    }
    async fn run(&self, run: &RunId) -> Result<Run> {
        again!(self.0.run(run))
    }
    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        again!(self.0.runs(max))
    }
    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        again!(self.0.move_run(run, from, to, now))
    }
    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        again!(self.0.shards(run))
    }
    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        again!(self.0.advance(run, step))
    }
    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        again!(self.0.outbox(run, max))
    }
    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        again!(self.0.release_held(run, go))
    }
    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        again!(self.0.forget_runs(ended_before))
    }
}
