//! Objects so large that their parts are jobs of their own, for any worker.
//!
//! ```text
//! job of the object ─ begin the upload, record it, part 1 ─ send the other parts as jobs ─ ack
//! job of some parts ─ fill ─ note them ─┬─ others are missing ─ ack
//!                                       └─ all are in ─ become the closer ─ judge ─ complete ─ record, count ─ ack
//! ```
//!
//! Nobody polls: whoever notes the last parts goes on. The closer is written into the record, which its version keeps to one,
//! under the id of the message, so that whoever receives that message again goes on in its place. A worker that finds the
//! source changed, or the parts wrong, becomes the closer in the same way, strikes the upload from the record, and sends the
//! object's own job again before it acknowledges its own. The last try of an object is made by one worker alone.

use super::{
    Attempt, Ended, Journal, Transfer, Work,
    multipart::{From, Layout, fits, parts_etag},
};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    job::{Job, JobParts, Overwrite},
    object::{ETag, Entry, ObjectInfo, ObjectKey},
    plan::parts::PartPlan,
    proof::{Branch, Bug, reached, wrong},
    sink::{Condition, UploadId},
    state::{Outcome, PackId, Record, SharedUpload, SkipReason, SourceVersion, Status, UploadRecord},
};
use std::collections::BTreeMap;

/// Which objects are handed out in parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Giants {
    /// Those of at least so many bytes.
    pub(crate) least: u64,
    /// Parts of one job.
    pub(crate) parts_a_job: u32,
}

/// Tries to complete an upload whose destination or parts change under it.
const CLOSINGS: u32 = 4;

impl Transfer {
    /// Does the job of some parts, which came in this message.
    pub(crate) async fn parts_of(&self, job: &Job, parts: &JobParts, message: &PackId, journal: &mut Journal<'_>) -> Result<Work> {
        let key = self.keys.to_destination(&job.key);
        let Some((upload, shared)) = shared_upload(journal.record(), parts) else {
            return self.obsolete(&key, parts, message, journal).await;
        };
        let plan = PartPlan { size: upload.source.size, part_size: upload.part_size };
        let layout = Layout { plan, checks: shared.checks.clone() };
        match &shared.closer {
            Some(closer) if closer == message => {
                reached(Branch::ClosedByAnother);
                return self.close(job, &key, parts, message, &layout, journal).await;
            }
            Some(_) if !wrong(Bug::ManyClosers) => return Ok(Work::Passed),
            _ => {}
        }
        let info = ObjectInfo::of(entry_of(&job.key, &upload.source));
        let retry = self.settings.retry;
        let mine = parts.first..=parts.last.min(plan.count());
        let known = journal.parts(&parts.upload, mine.clone(), &retry, &self.env).await?;
        let have: BTreeMap<_, _> = known.into_iter().filter(|p| fits(p, &layout)).map(|p| (p.number, p)).collect();
        let from = From::nothing_yet();
        if let Err(error) = self.fill(job, &key, &info, &layout, &parts.upload, mine.clone(), have, &from, journal).await {
            return self.not_brought(job, &key, parts, message, error, journal).await;
        }
        let saved: Vec<u32> = mine.collect();
        if !journal.parts_complete(&parts.upload, &saved, plan.count(), &retry, &self.env).await? {
            return Ok(Work::Passed);
        }
        self.close(job, &key, parts, message, &layout, journal).await
    }

    /// Gives up the parts of a job: the object's own job is to try once more, alone.
    pub(crate) async fn give_up_parts(&self, job: &Job, parts: &JobParts, message: &PackId, journal: &mut Journal<'_>) -> Result<Work> {
        let key = self.keys.to_destination(&job.key);
        if shared_upload(journal.record(), parts).is_none() {
            return self.obsolete(&key, parts, message, journal).await;
        }
        self.begin_again(&key, parts, message, None, journal).await
    }

    /// All parts are in: exactly one message goes on.
    async fn close(
        &self,
        job: &Job,
        key: &ObjectKey,
        parts: &JobParts,
        message: &PackId,
        layout: &Layout,
        journal: &mut Journal<'_>,
    ) -> Result<Work> {
        let retry = self.settings.retry;
        let mut record = journal.next(Status::Started, self.env.now());
        if let Some(shared) = record.upload.as_mut().and_then(|u| u.shared.as_mut())
            && shared.closer.as_ref() != Some(message)
            && !wrong(Bug::ManyClosers)
        {
            shared.closer = Some(message.clone());
            journal.save(record, &retry, &self.env).await?;
        }
        let count = layout.plan.count();
        let known = journal.parts(&parts.upload, 1..=count, &retry, &self.env).await?;
        let mut all: Vec<_> = known.into_iter().filter(|p| fits(p, layout)).map(|p| (p.clone(), p.checksum)).collect();
        if all.len() != count as usize {
            return self.begin_again(key, parts, message, None, journal).await;
        }
        let mut listed = job.destination.condition();
        for closing in 1..=CLOSINGS {
            // Before the look at the source: what is written between the two may be newer, and is not replaced.
            let (held, found) = match listed.take() {
                Some(condition) => (condition, None),
                None => {
                    let found = self.look(key).await?;
                    (Condition::still(found.as_ref().and_then(|i| i.entry.etag.as_ref())), found)
                }
            };
            let info = match retry.run(&*self.env, || self.source.head(&job.key, None)).await {
                Ok(info) => info,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.confirm_gone(&job.key, &error).await?;
                    return self.end_without(job, key, parts, Outcome::Cancelled, journal).await;
                }
                Err(error) => return Err(error),
            };
            if journal.record().source.as_ref() != Some(&SourceVersion::of(&info.entry)) {
                reached(Branch::SourceChanged);
                return self.begin_again(key, parts, message, None, journal).await;
            }
            let options = self.put_options(&info, journal, true).await?;
            let (expected, verified) = match self.judge_parts(&info, layout, &all) {
                Ok(judged) => judged,
                Err(_) => {
                    let made = parts_etag(layout, &all).unwrap_or_else(|| ETag::new("none"));
                    return self.begin_again(key, parts, message, Some(made), journal).await;
                }
            };
            // An earlier delivery may have completed it already.
            if let Some(found) = found.filter(|found| job.overwrite != Overwrite::Always && !expected.matches(found))
                && let Some(reason) = self.kept(job, &found, journal.record()).await?
            {
                return self.end_without(job, key, parts, Outcome::Skipped(reason), journal).await;
            }
            let to_complete = all.iter().map(|(part, _)| part.clone()).collect();
            match self.finish(key, &info, &parts.upload, to_complete, options, &held, expected, verified, journal).await? {
                Attempt::Ended(ended) => {
                    reached(Branch::GiantClosed);
                    return Ok(Work::Ended(ended));
                }
                Attempt::Changed if job.overwrite != Overwrite::Always && self.look(key).await?.is_some() => {
                    let reason = if job.overwrite == Overwrite::Never { SkipReason::Exists } else { SkipReason::Newer };
                    return self.end_without(job, key, parts, Outcome::Skipped(reason), journal).await;
                }
                _ if closing == CLOSINGS => {}
                // Somebody wrote the destination since it was listed, or brought a part once more under another etag. While the
                // upload lives, that costs a look and that part, not all of them.
                _ => {
                    let Some(have) = self.resumable(key, &parts.upload, layout, journal).await? else { break };
                    reached(Branch::GiantClosedAgain);
                    let from = From::nothing_yet();
                    all = match self.fill(job, key, &info, layout, &parts.upload, 1..=count, have, &from, journal).await {
                        Ok(all) => all,
                        Err(error) => return self.not_brought(job, key, parts, message, error, journal).await,
                    };
                }
            }
        }
        self.begin_again(key, parts, message, None, journal).await
    }

    /// Parts of a giant could not be brought in: what that means for the object.
    async fn not_brought(
        &self,
        job: &Job,
        key: &ObjectKey,
        parts: &JobParts,
        message: &PackId,
        error: Error,
        journal: &mut Journal<'_>,
    ) -> Result<Work> {
        match error.kind() {
            ErrorKind::Precondition => {
                reached(Branch::SourceChanged);
                self.begin_again(key, parts, message, None, journal).await
            }
            ErrorKind::NotFound if error.op() == Op::Read => self.end_without(job, key, parts, Outcome::Cancelled, journal).await,
            ErrorKind::NotFound => {
                reached(Branch::UploadEnded);
                self.begin_again(key, parts, message, None, journal).await
            }
            _ => Err(error),
        }
    }

    /// Ends the object without its upload. It is aborted before the record says so, which strikes it: whoever dies in between
    /// is followed by somebody who finds the same.
    async fn end_without(&self, job: &Job, key: &ObjectKey, parts: &JobParts, outcome: Outcome, journal: &mut Journal<'_>) -> Result<Work> {
        self.abort(key, &parts.upload).await?;
        let status = if outcome == Outcome::Cancelled { Status::Cancelled } else { Status::Skipped };
        let record = Record { source: None, destination: None, upload: None, ..journal.next(status, self.env.now()) };
        Ok(Work::Ended(Box::new(Ended { outcome, bytes: job.size.unwrap_or(0), record, filled: Some(parts.upload.clone()) })))
    }

    /// Strikes the upload from the record, in the name of this message, and aborts it.
    async fn begin_again(
        &self,
        key: &ObjectKey,
        parts: &JobParts,
        message: &PackId,
        made: Option<ETag>,
        journal: &mut Journal<'_>,
    ) -> Result<Work> {
        let retry = self.settings.retry;
        let mut record = journal.next(Status::Started, self.env.now());
        if let Some(upload) = &mut record.upload {
            upload.id = None;
            if let Some(shared) = &mut upload.shared {
                shared.closer = Some(message.clone());
                shared.wrong.extend(made);
            }
        }
        journal.save(record, &retry, &self.env).await?;
        self.abort(key, &parts.upload).await?;
        journal.forget_parts(&parts.upload, &retry, &self.env).await?;
        reached(Branch::GiantBegunAgain);
        Ok(Work::Again)
    }

    /// The upload is not the recorded one any more: somebody else has ended it, or an earlier delivery of this message has
    /// struck it and may have died before it sent the object's job.
    async fn obsolete(&self, key: &ObjectKey, parts: &JobParts, message: &PackId, journal: &Journal<'_>) -> Result<Work> {
        let record = journal.record();
        let struck_by_us = record.status == Status::Started
            && record
                .upload
                .as_ref()
                .is_some_and(|u| u.id.is_none() && u.shared.as_ref().is_some_and(|s| s.closer.as_ref() == Some(message)));
        if !struck_by_us {
            return Ok(Work::Passed);
        }
        self.abort(key, &parts.upload).await?;
        Ok(Work::Again)
    }
}

/// The parts that are missing, as jobs.
pub(super) fn hand_out(upload: &UploadId, missing: impl Iterator<Item = u32>, attempts: u32, giants: Giants) -> Vec<JobParts> {
    let mut jobs: Vec<JobParts> = Vec::new();
    for number in missing {
        match jobs.last_mut() {
            Some(job) if job.last + 1 == number && number - job.first < giants.parts_a_job => job.last = number,
            _ => jobs.push(JobParts { upload: upload.clone(), first: number, last: number, attempts }),
        }
    }
    jobs
}

/// The recorded upload, when it is the one that the job is about.
fn shared_upload<'a>(record: &'a Record, parts: &JobParts) -> Option<(&'a UploadRecord, &'a SharedUpload)> {
    let upload = record.upload.as_ref().filter(|u| record.status == Status::Started && u.id.as_ref() == Some(&parts.upload))?;
    Some((upload, upload.shared.as_ref()?))
}

fn entry_of(key: &ObjectKey, source: &SourceVersion) -> Entry {
    Entry { version: source.version.clone(), ..Entry::new(key.clone(), source.size, source.etag.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_become_jobs_of_neighbours() {
        let missing = (2..=20).chain([22]).chain(30..=60);
        let jobs = hand_out(&UploadId::new("u"), missing.clone(), 3, Giants { least: 0, parts_a_job: 16 });
        let ranges: Vec<_> = jobs.iter().map(|j| (j.first, j.last)).collect();
        assert_eq!(ranges, [(2, 17), (18, 20), (22, 22), (30, 45), (46, 60)]);
        assert!(jobs.iter().flat_map(|j| j.first..=j.last).eq(missing));
    }
}
