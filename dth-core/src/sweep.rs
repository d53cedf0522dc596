//! Unfinished uploads cost money for ever: finds our own that nobody will finish, and aborts them.
//!
//! Ours is an upload of a key for which our records say that we began one, no older than that, and not the one under way.
//! Uploads of other tools on other keys are left alone.

use crate::{
    env::Env,
    error::{ErrorKind, Result},
    key_map::KeyMap,
    object::ObjectKey,
    proof::{Branch, Bug, reached, wrong},
    retry::RetryPolicy,
    sink::{OpenUpload, Sink},
    state::{Record, RecordQuery, RunId, StateStore, Status},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Uploads listed.
    pub listed: u64,
    /// Ours and dead: aborted.
    pub aborted: u64,
    /// Ours and under way.
    pub under_way: u64,
    /// Not ours, or too young to tell.
    pub left_alone: u64,
    /// The store cannot list uploads: nothing could be swept.
    pub unsupported: bool,
}

async fn is_over(state: &dyn StateStore, run: &RunId, env: &dyn Env, retry: &RetryPolicy) -> Result<bool> {
    match retry.run(env, || state.run(run)).await {
        Ok(run) => Ok(run.state.is_over()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The records of uploaded keys, by the destination's: those of all keys are looked through where a map cannot be undone.
async fn records_of(
    uploads: &[OpenUpload],
    state: &dyn StateStore,
    keys: &KeyMap,
    env: &dyn Env,
    retry: &RetryPolicy,
) -> Result<HashMap<ObjectKey, Record>> {
    let wanted: HashSet<&ObjectKey> = uploads.iter().map(|upload| &upload.key).collect();
    let mut found = HashMap::new();
    let mut query = RecordQuery::default();
    while !wanted.is_empty() {
        let page = retry.run(env, || state.query(&query, 1000)).await?;
        let Some(last) = page.last() else { break };
        query.after = Some(last.key.clone());
        for record in page.into_iter().filter(|record| record.uploads_since.is_some()) {
            let key = keys.to_destination(&record.key);
            if wanted.contains(&key) {
                found.insert(key, record);
            }
        }
    }
    Ok(found)
}

/// Store clocks may differ from ours by so much.
const SKEW: Duration = Duration::from_secs(900);

/// Aborts our own uploads under `prefix` (a source prefix) that are older than `age` and not under way.
pub async fn sweep(
    sink: &dyn Sink,
    state: &dyn StateStore,
    keys: &KeyMap,
    prefix: &str,
    age: Duration,
    env: &dyn Env,
    retry: &RetryPolicy,
) -> Result<SweepReport> {
    let mut report = SweepReport::default();
    let prefix = keys.destination_prefix(prefix);
    let mut token: Option<String> = None;
    while !wrong(Bug::NoSweep) {
        let listed = retry.run(env, || sink.list_uploads(&prefix, token.as_deref())).await;
        let (uploads, next) = match listed {
            Ok(page) => page,
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                report.unsupported = true;
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        let by_destination = if keys.is_ordered() { HashMap::new() } else { records_of(&uploads, state, keys, env, retry).await? };
        for upload in uploads {
            report.listed += 1;
            let record = match keys.to_source(&upload.key) {
                Some(key) => {
                    let asked = [key];
                    retry.run(env, || state.records(&asked)).await?.into_iter().next().flatten()
                }
                None => by_destination.get(&upload.key).cloned(),
            };
            let Some(record) = record.filter(|r| r.uploads_since.is_some()) else {
                report.left_alone += 1;
                continue;
            };
            let recorded = record.status == Status::Started && record.upload.as_ref().is_some_and(|u| u.id.as_ref() == Some(&upload.id));
            // Nobody continues an upload of a run that is over.
            let under_way = recorded && !is_over(state, &record.run, env, retry).await?;
            let since = record.uploads_since.unwrap_or_else(|| env.now());
            let too_young = |at: Timestamp| !age.is_zero() && at.saturating_add(age).unwrap_or(at) > env.now();
            let before_ours = |at: Timestamp| at.saturating_add(SKEW).unwrap_or(at) < since;
            let young = upload.begun.is_some_and(|at| too_young(at) || before_ours(at));
            if under_way {
                report.under_way += 1;
            } else if young {
                report.left_alone += 1;
            } else {
                retry.run(env, || sink.abort_upload(&upload.key, &upload.id)).await?;
                reached(Branch::SweptUpload);
                report.aborted += 1;
            }
        }
        let stuck = next == token;
        token = next;
        if token.is_none() || stuck {
            break;
        }
    }
    Ok(report)
}
