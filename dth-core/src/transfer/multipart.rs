//! Objects in parts: each part streams from a pinned GET into UploadPart, never held whole; its answer is checked before
//! Complete makes anything visible. An upload is continued only for the same source version in the same layout, by the id
//! that we recorded.

use super::{
    Attempt, Journal, ReadPermit, Transfer,
    check::{Expected, corrupt},
    giant::hand_out,
    note,
    publish::Published,
    single::STREAM_WINDOW,
    tee::{Proof, tee},
};
use crate::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    job::Job,
    object::{ETag, EtagKind, ObjectInfo, ObjectKey},
    plan::parts::PartPlan,
    proof::{Branch, Bug, reached, wrong},
    sink::{Body, Condition, MultipartLimits, Part, PutOptions, UploadId},
    source::{ByteStream, CopyOrigin, Read, ReadOptions, ReadRange},
    state::{PartChecks, Record, SharedUpload, SkipReason, SourceVersion, Status, UploadRecord, Verified},
};
use futures_util::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    sync::Mutex,
};

/// How the parts of one object are made and checked.
pub(super) struct Layout {
    pub(super) plan: PartPlan,
    pub(super) checks: PartChecks,
}

/// Where part bytes come from.
pub(super) enum From<'a> {
    /// Through us, with what the first request already brought.
    Body { first: Mutex<Option<(Range<u64>, ByteStream, ReadPermit)>> },
    /// From inside the store.
    Inside(&'a CopyOrigin),
}

impl From<'_> {
    /// Through us, from requests that are still to be made.
    pub(super) const fn nothing_yet() -> Self {
        Self::Body { first: Mutex::new(None) }
    }
}

impl Transfer {
    /// Moves an object in parts. `read` is the first request's answer: it tells version, layout, metadata and first bytes.
    pub(super) async fn multipart(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        read: Read,
        permit: ReadPermit,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let Read { info, range, body } = read;
        let from = From::Body { first: Mutex::new(Some((range.clone(), body, permit))) };
        self.in_parts(job, key, held, &info, Some(range.end), from, journal).await
    }

    /// Copies inside the store, when both sides are the same one.
    pub(super) async fn copy_inside(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        origin: &CopyOrigin,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let looked = self.settings.retry.run(&*self.env, || self.source.head(&job.key, None)).await;
        let info = match looked {
            Ok(info) => info,
            Err(error) => {
                self.confirm_gone(&job.key, &error).await?;
                return self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e)));
            }
        };
        if let Some(ended) = self.already_there(job, key, &info, held, journal).await? {
            return Ok(Attempt::Ended(Box::new(ended)));
        }
        let size = info.entry.size.unwrap_or(0);
        let Some(etag) = info.entry.etag.clone() else {
            return Err(Error::new(ErrorKind::Unsupported, Op::Copy, job.key.to_string()).with_source("the source shows no etag"));
        };
        if size > self.sink.sink_capability().max_copy.unwrap_or(u64::MAX) {
            return self.in_parts(job, key, held, &info, None, From::Inside(origin), journal).await;
        }
        let mut options = self.put_options(&info, journal, true).await?;
        options.condition = self.effective(held);
        let md5 = self.source_md5(&info);
        let expected =
            Expected { size, etag: self.etag_from(md5.as_ref(), None), checksum: info.checksum.clone(), replaces: held.etag().cloned() };
        journal.about_to_publish(&info.entry, &self.settings.retry, &self.env).await?;
        let etag = self.pin(&job.key, etag).await;
        let copied = self.publish(key, &expected, || self.sink.copy(origin, &etag, key, &options)).await;
        match copied {
            Ok(published) => self.ended(key, &info, expected, Verified::Store, published, journal).await,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e)))
            }
            Err(error) => Err(error),
        }
    }

    /// The version that a copy inside the store is of.
    async fn pin(&self, key: &ObjectKey, seen: ETag) -> ETag {
        if wrong(Bug::CopyNotPinned) {
            return self.source.head(key, None).await.ok().and_then(|now| now.entry.etag).unwrap_or(seen);
        }
        seen
    }

    async fn in_parts(
        &self,
        job: &Job,
        key: &ObjectKey,
        held: &Condition,
        info: &ObjectInfo,
        first_len: Option<u64>,
        from: From<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        if info.entry.etag.is_none() && info.entry.version.is_none() {
            // T1: nothing would show that two parts are of one version.
            return Err(Error::new(ErrorKind::Unsupported, Op::Read, job.key.to_string())
                .with_source("the source shows neither etag nor version: it cannot be read in parts; raise `worker.transfer.single_max`"));
        }
        let capability = self.sink.sink_capability();
        let size = info.entry.size.unwrap_or(0);
        let Some(limits) = capability.multipart.filter(|_| size <= capability.max_object) else {
            self.drop_upload(job, journal).await?;
            return Ok(Attempt::Ended(Box::new(self.skipped(journal, SkipReason::Unrepresentable, size))));
        };
        let asked;
        let mut info = info;
        let mut layout = self.layout(info, first_len, &limits, journal);
        if layout.as_ref().is_ok_and(|l| !l.checks.parity && l.checks.judge != Some(Algorithm::Md5)) && matches!(from, From::Body { .. }) {
            match self.ask_for_checksum(info).await? {
                Some(now) if now.entry.etag != info.entry.etag => return Ok(Attempt::Changed),
                Some(now) => {
                    asked = ObjectInfo { checksum: now.checksum, ..info.clone() };
                    info = &asked;
                    layout = self.layout(info, first_len, &limits, journal);
                }
                None => {}
            }
        }
        let Ok(layout) = layout else {
            self.drop_upload(job, journal).await?;
            return Ok(Attempt::Ended(Box::new(self.skipped(journal, SkipReason::Unrepresentable, size))));
        };
        let options = self.put_options(info, journal, matches!(from, From::Inside(_))).await?;
        let shareable = limits.list_parts && layout.plan.count() > 1 && matches!(from, From::Body { .. });
        let giant = journal.giant(size).filter(|_| shareable);
        if giant.is_some() && self.is_being_closed(info, &layout, journal) {
            reached(Branch::CloserAwaited);
            return Ok(Attempt::HandedOut(Vec::new()));
        }
        let (upload, mut have) = self.upload(key, info, &layout, &limits, &options, giant.is_some(), journal).await?;
        let numbers = 1..=layout.plan.count();
        if let Some(giants) = giant {
            // The first part is being read already.
            let first = self.fill(job, key, info, &layout, &upload, 1..=1, have.clone(), &from, journal).await;
            match first {
                Ok(parts) => have.extend(parts.into_iter().map(|(part, _)| (part.number, part))),
                Err(error) => return self.not_filled(job, error, journal).await,
            }
            let saved: Vec<u32> = have.keys().copied().collect();
            let complete = journal.parts_complete(&upload, &saved, layout.plan.count(), &self.settings.retry, &self.env).await?;
            if !complete {
                reached(Branch::GiantHandedOut);
                let missing = numbers.filter(|number| !have.contains_key(number));
                return Ok(Attempt::HandedOut(hand_out(&upload, missing, journal.attempts(), giants)));
            }
        }
        let all_inside = have.is_empty() && matches!(from, From::Inside(_));
        let parts = match self.fill(job, key, info, &layout, &upload, numbers, have, &from, journal).await {
            Ok(parts) => parts,
            Err(error) => return self.not_filled(job, error, journal).await,
        };
        let (expected, verified) = match self.judge_parts(info, &layout, &parts) {
            // Nothing came through us that could have been read wrong.
            Ok((expected, Verified::Transport(_))) if all_inside => (expected, Verified::Store),
            Ok(judged) => judged,
            Err(error) => {
                // Only once its parts are gone: the same parts again would show the same wrong etag again.
                self.drop_upload(job, journal).await?;
                if layout.checks.parity || layout.checks.judge == Some(Algorithm::Md5) {
                    journal.parity.failed(parts_etag(&layout, &parts));
                }
                return Err(error);
            }
        };
        let parts: Vec<Part> = parts.into_iter().map(|(part, _)| part).collect();
        let finished = self.finish(key, info, &upload, parts, options, held, expected, verified, journal).await?;
        if matches!(finished, Attempt::Changed) {
            self.drop_upload(job, journal).await?;
        }
        Ok(finished)
    }

    /// Parts could not be brought in: what that means for the object.
    async fn not_filled(&self, job: &Job, error: Error, journal: &mut Journal<'_>) -> Result<Attempt> {
        match error.kind() {
            ErrorKind::Precondition => {
                // T1: the source was overwritten while its parts were read.
                reached(Branch::SourceChanged);
                self.drop_upload(job, journal).await?;
                Ok(Attempt::Changed)
            }
            ErrorKind::NotFound if error.op() == Op::Read => {
                self.unreadable(job, error, journal).await.map(|e| Attempt::Ended(Box::new(e)))
            }
            ErrorKind::NotFound => {
                // The upload ended under us: another worker completed or aborted it. If it did not, it does now.
                reached(Branch::UploadEnded);
                self.drop_upload(job, journal).await?;
                Ok(Attempt::Changed)
            }
            _ => Err(error),
        }
    }

    /// Makes an upload visible whose parts are in and judged. `Changed` leaves it as it is.
    pub(super) async fn finish(
        &self,
        key: &ObjectKey,
        info: &ObjectInfo,
        upload: &UploadId,
        parts: Vec<Part>,
        mut options: PutOptions,
        held: &Condition,
        expected: Expected,
        verified: Verified,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let capability = self.sink.sink_capability();
        options.condition = self.effective(held);
        options.checksum =
            expected.checksum.clone().filter(|c| capability.verifies.contains(&c.algorithm) && !wrong(Bug::NoUploadChecksum));
        journal.about_to_publish(&info.entry, &self.settings.retry, &self.env).await?;
        let expected = Expected { replaces: held.etag().cloned(), ..expected };
        let Published::Ours(etag) = self.complete(key, upload, &parts, &options, &expected).await? else {
            return Ok(Attempt::Changed);
        };
        if capability.tags_follow && !options.tags.is_empty() {
            self.settings.retry.run(&*self.env, || self.sink.put_tags(key, &options.tags)).await?;
        }
        let mut finished = self.ended(key, info, expected, verified, Published::Ours(etag), journal).await?;
        if let Attempt::Ended(ended) = &mut finished {
            ended.filled = Some(upload.clone());
        }
        Ok(finished)
    }

    /// Answers to ranged reads carry no checksum of the whole object; a header request brings it where the store has one.
    async fn ask_for_checksum(&self, info: &ObjectInfo) -> Result<Option<ObjectInfo>> {
        if info.checksum.is_some() || self.source.source_capability().checksums.is_empty() {
            return Ok(None);
        }
        let entry = &info.entry;
        // Without the version, whose reading is a right of its own: the etag tells whether it is the same.
        match self.settings.retry.run(&*self.env, || self.source.head(&entry.key, None)).await {
            // The next read tells what that means; what may not be asked for is not offered.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied) => Ok(None),
            asked => asked.map(Some),
        }
    }

    fn layout(&self, info: &ObjectInfo, first_len: Option<u64>, limits: &MultipartLimits, journal: &Journal<'_>) -> Result<Layout> {
        let size = info.entry.size.unwrap_or(0);
        let source_md5 = !info.opaque_etag && self.source.index_capability().etag == EtagKind::Md5;
        let sink_md5 = self.sink.index_capability().etag == EtagKind::Md5;
        let count = info.entry.etag.as_ref().and_then(ETag::part_count);
        let like = (source_md5 && !journal.parity.is_hopeless()).then(|| PartPlan::like_source(size, first_len?, count?, limits)).flatten();
        let parity = sink_md5 && like.is_some() && self.settings.etag_parity;
        let judged_by_md5 = !parity && like.is_some() && info.checksum.is_none();
        let plan = match like.filter(|_| parity || judged_by_md5) {
            Some(plan) => plan,
            None => PartPlan::own(size, self.settings.part_size, limits)?,
        };
        let mut algorithms = Vec::new();
        let mut judge = None;
        if !parity {
            let offered = info.checksum.as_ref().map(|c| c.algorithm).filter(|a| a.combines());
            let capability = self.sink.sink_capability();
            let verified = capability.verifies.contains(&Algorithm::Crc64Nvme).then_some(Algorithm::Crc64Nvme);
            let told = capability.checksums.iter().copied().find(|a| a.combines());
            judge = if judged_by_md5 { Some(Algorithm::Md5) } else { offered.or(verified).or(told) };
            algorithms.extend(judge);
            algorithms.extend(verified);
            algorithms.extend(sink_md5.then_some(Algorithm::Md5));
            algorithms.sort_unstable();
            algorithms.dedup();
        }
        Ok(Layout { plan, checks: PartChecks { parity, algorithms, judge } })
    }

    /// Whether this job waits for the recorded upload already, and somebody of its own run is about to complete it. Its message has come
    /// again: whoever closes goes on until the end is recorded, or sends the job anew, and completes it once.
    fn is_being_closed(&self, info: &ObjectInfo, layout: &Layout, journal: &Journal<'_>) -> bool {
        let Some(upload) = &journal.record().upload else { return false };
        let same = upload.id.is_some() && upload.part_size == layout.plan.part_size && upload.source == SourceVersion::of(&info.entry);
        let closed = upload.shared.as_ref().is_some_and(|shared| shared.closer.is_some() && shared.checks == layout.checks);
        same && closed && journal.is_waiting() && !wrong(Bug::ManyClosers)
    }

    /// The upload to fill: the recorded one when it is of this source version in this layout, else a new one.
    async fn upload(
        &self,
        key: &ObjectKey,
        info: &ObjectInfo,
        layout: &Layout,
        limits: &MultipartLimits,
        options: &PutOptions,
        giant: bool,
        journal: &mut Journal<'_>,
    ) -> Result<(UploadId, BTreeMap<u32, Part>)> {
        let retry = self.settings.retry;
        let source = SourceVersion::of(&info.entry);
        let now = self.env.now();
        let known = journal.record().upload.clone();
        let mut record = journal.next(Status::Started, now);
        record.source = Some(source.clone());
        if giant {
            journal.wait(&mut record);
        }
        if !wrong(Bug::UploadsUnnoted) {
            record.uploads_since = record.uploads_since.or(Some(now));
        }
        let wrong_etags = known.iter().filter_map(|u| u.shared.as_ref()).flat_map(|s| s.wrong.clone()).collect();
        let shared = giant.then(|| SharedUpload { checks: layout.checks.clone(), closer: None, wrong: wrong_etags });
        if let Some(UploadRecord { id: Some(id), part_size, source: of, shared: agreed }) = &known {
            let alike = *part_size == layout.plan.part_size && agreed.as_ref().is_none_or(|s| s.checks == layout.checks);
            let same = limits.list_parts && alike && (*of == source || wrong(Bug::StaleUpload));
            if !same {
                reached(Branch::UploadOfOtherVersion);
            }
            if same {
                if let Some(upload) = record.upload.as_mut() {
                    // Whoever was to close it has lost it to us.
                    let agreed = upload.shared.take().map(|shared| SharedUpload { closer: None, ..shared });
                    upload.shared = agreed.or_else(|| shared.clone());
                }
                // Taking the record over stops an earlier owner at its next write (T10).
                journal.save(record.clone(), &retry, &self.env).await?;
                if let Some(have) = self.resumable(key, id, layout, journal).await? {
                    if !have.is_empty() {
                        reached(Branch::UploadContinued);
                    }
                    tracing::info!(%key, upload = id.as_str(), parts = have.len(), of = layout.plan.count(), "resuming upload");
                    return Ok((id.clone(), have));
                }
                record = journal.next(Status::Started, now);
            }
        }
        // T2: anything else is thrown away, after the record says that nobody may continue it.
        let mut upload = UploadRecord { id: None, part_size: layout.plan.part_size, source, shared };
        record.upload = Some(upload.clone());
        journal.save(record, &retry, &self.env).await?;
        if let Some(id) = known.and_then(|u| u.id)
            && !wrong(Bug::UploadByPrefix)
        {
            self.abort(key, &id).await?;
            journal.forget_parts(&id, &retry, &self.env).await?;
        }
        if wrong(Bug::UploadByPrefix)
            && let Some(found) = self.sink.list_uploads(key.as_str(), None).await?.0.into_iter().find(|u| u.key == *key)
        {
            let have = self.sink.list_parts(key, &found.id).await?;
            let fits =
                |p: &Part| p.number <= layout.plan.count() && p.size == layout.plan.range(p.number).end - layout.plan.range(p.number).start;
            return Ok((found.id, have.into_iter().filter(fits).map(|p| (p.number, p)).collect()));
        }
        let mut options = options.clone();
        options.checksum = layout.checks.algorithms.iter().find(|a| a.combines()).map(|a| Checksum { algorithm: *a, value: Vec::new() });
        let id = retry
            .run(&*self.env, || async {
                let permit = self.sink_permit().await;
                note(&permit, self.sink.create_upload(key, &options).await)
            })
            .await?;
        let mut record = journal.next(Status::Started, now);
        upload.id = Some(id.clone());
        record.upload = Some(upload);
        if let Err(error) = journal.save(record, &retry, &self.env).await {
            // Nobody knows this id but us.
            self.abort(key, &id).await?;
            return Err(error);
        }
        Ok((id, BTreeMap::new()))
    }

    /// Parts that both the store and our state hold, alike; `None` when the upload ended.
    pub(super) async fn resumable(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        layout: &Layout,
        journal: &Journal<'_>,
    ) -> Result<Option<BTreeMap<u32, Part>>> {
        let retry = self.settings.retry;
        let recorded = journal.parts(id, 1..=layout.plan.count(), &retry, &self.env).await?;
        let listed = match retry.run(&*self.env, || self.sink.list_parts(key, id)).await {
            Ok(parts) => parts,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let held: BTreeMap<u32, Part> = listed.into_iter().map(|p| (p.number, p)).collect();
        let alike = |p: &Part| held.get(&p.number).is_some_and(|h| h.etag == p.etag && h.size == p.size);
        Ok(Some(recorded.into_iter().filter(|p| fits(p, layout) && alike(p)).map(|p| (p.number, p)).collect()))
    }

    /// Brings these parts in, several at a time. Answers them, and those that were there, with the checksum taken on the way.
    pub(super) async fn fill(
        &self,
        job: &Job,
        key: &ObjectKey,
        info: &ObjectInfo,
        layout: &Layout,
        upload: &UploadId,
        numbers: RangeInclusive<u32>,
        have: BTreeMap<u32, Part>,
        from: &From<'_>,
        journal: &Journal<'_>,
    ) -> Result<Vec<(Part, Option<Checksum>)>> {
        let missing = numbers.filter(|number| !have.contains_key(number)).map(|number| (number, layout.plan.range(number)));
        let mut done: Vec<(Part, Option<Checksum>)> = have.values().map(|p| (p.clone(), p.checksum.clone())).collect();
        if let From::Body { first } = from
            && have.contains_key(&1)
        {
            first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        }
        let mut running = stream::iter(missing)
            .map(|(number, range)| async move {
                let part = self.part(job, key, info, layout, upload, number, range, from).await?;
                // What is remembered can be combined after a resume.
                let sum = part.1.clone();
                let remembered = Part { checksum: sum.clone(), ..part.0 };
                journal.save_part(upload, remembered.clone(), &self.settings.retry, &self.env).await?;
                Ok::<_, Error>((remembered, sum))
            })
            .buffer_unordered(self.settings.parts_in_flight.max(1));
        while let Some(part) = running.next().await {
            done.push(part?);
        }
        done.sort_by_key(|(part, _)| part.number);
        Ok(done)
    }

    async fn part(
        &self,
        job: &Job,
        key: &ObjectKey,
        info: &ObjectInfo,
        layout: &Layout,
        upload: &UploadId,
        number: u32,
        range: Range<u64>,
        from: &From<'_>,
    ) -> Result<(Part, Option<Checksum>)> {
        let mut tried = 0;
        loop {
            tried += 1;
            let answer = match from {
                From::Inside(origin) => {
                    let etag = self.pin(&job.key, info.entry.etag.clone().unwrap_or_else(|| ETag::new(""))).await;
                    let permit = self.sink_permit().await;
                    note(&permit, self.sink.copy_part(origin, &etag, range.clone(), key, upload, number).await).map(|p| (p, None))
                }
                From::Body { first } => {
                    let ready = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take_if(|_| number == 1);
                    self.stream_part(job, key, info, layout, upload, number, &range, ready).await
                }
            };
            let error = match answer {
                Ok(part) => return Ok(part),
                Err(error) => error,
            };
            if error.kind() == ErrorKind::Precondition {
                return Err(error);
            }
            let Some(pause) = self.settings.retry.pause(&error, tried, &*self.env) else { return Err(error) };
            tracing::debug!(%key, number, error = %error.chain(), tried, "reading a part again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn stream_part(
        &self,
        job: &Job,
        key: &ObjectKey,
        info: &ObjectInfo,
        layout: &Layout,
        upload: &UploadId,
        number: u32,
        range: &Range<u64>,
        ready: Option<(Range<u64>, ByteStream, ReadPermit)>,
    ) -> Result<(Part, Option<Checksum>)> {
        let len = range.end - range.start;
        let (body, permit) = match ready.filter(|(of, _, _)| of == range) {
            Some((_, body, permit)) => (body, permit),
            None => {
                let options = ReadOptions {
                    range: ReadRange::Bytes(range.clone()),
                    if_match: info.entry.etag.clone().filter(|_| !wrong(Bug::NoIfMatch)),
                    // The etag pins as well, and needs no right to read versions.
                    version: info.entry.version.clone().filter(|_| info.entry.etag.is_none()),
                };
                let (read, permit) = self.read(job, &options).await?;
                if read.range != *range || read.info.entry.size != info.entry.size {
                    return Err(Error::new(ErrorKind::Corrupt, Op::Read, job.key.to_string())
                        .with_source(format!("asked for bytes {range:?}, answered {:?}", read.range)));
                }
                (read.body, permit)
            }
        };
        let _bytes = self.budget.acquire(if wrong(Bug::NoBudget) { 0 } else { STREAM_WINDOW.min(len) }).await;
        let (stream, seen) = tee(body, len, &layout.checks.algorithms, Proof::None, self.bytes.clone());
        let answer = {
            let sink = self.sink_permit().await;
            note(&sink, self.sink.put_part(key, upload, number, Body::Stream { len, stream }, None).await)
        };
        drop(permit);
        let part = match answer {
            Ok(part) => part,
            Err(error) => return Err(seen.broken().unwrap_or(error)),
        };
        if part.opaque_etag && self.sink.index_capability().etag == EtagKind::Md5 {
            // Without MD5 in its etags nothing would show what it stored, where the layout counts on them.
            return Err(Error::new(ErrorKind::Invalid, Op::PutPart, self.name_of(key))
                .with_source("the destination encrypts by its own default: set `encryption` accordingly (`kms`, say)"));
        }
        let md5 = seen.sum(Algorithm::Md5).and_then(|c| self.etag_from(Some(&c), None));
        let other_sum = part.checksum.as_ref().is_some_and(|stored| seen.sum(stored.algorithm).is_some_and(|sent| sent != *stored));
        if wrong(Bug::NoUploadChecksum) {
            return Ok((part, layout.checks.judge.and_then(|a| seen.sum(a))));
        }
        if part.size != len || md5.is_some_and(|md5| md5 != part.etag) || other_sum {
            return Err(Error::new(ErrorKind::Corrupt, Op::PutPart, self.name_of(key))
                .with_source(format!("the destination stored other bytes of part {number} than were sent")));
        }
        let sum = layout.checks.judge.and_then(|a| seen.sum(a));
        Ok((part, sum))
    }

    /// Judges the whole before anything becomes visible.
    pub(super) fn judge_parts(
        &self,
        info: &ObjectInfo,
        layout: &Layout,
        parts: &[(Part, Option<Checksum>)],
    ) -> Result<(Expected, Verified)> {
        let size = info.entry.size.unwrap_or(0);
        let stored = parts.iter().map(|(p, _)| p.etag.as_md5()).collect::<Option<Vec<_>>>().map(|md5s| ETag::of_parts(&md5s));
        let etag = stored.filter(|_| self.sink.index_capability().etag == EtagKind::Md5);
        if layout.checks.parity || layout.checks.judge == Some(Algorithm::Md5) {
            if parts_etag(layout, parts) != info.entry.etag && !wrong(Bug::NoProofOfParts) {
                reached(Branch::WrongPartsEtag);
                return Err(corrupt(info));
            }
            return Ok((Expected { size, etag, ..Expected::default() }, Verified::Source(Algorithm::Md5)));
        }
        let mut whole: Option<Checksum> = None;
        for (part, sum) in parts {
            whole = match (whole, sum) {
                (None, Some(sum)) if part.number == 1 => Some(sum.clone()),
                (Some(whole), Some(sum)) => whole.combine(sum, part.size),
                _ => None,
            };
        }
        let offered = info.checksum.as_ref().filter(|c| whole.as_ref().is_some_and(|w| w.algorithm == c.algorithm));
        let verified = match (offered, &whole) {
            (Some(offered), Some(whole)) if offered != whole && !wrong(Bug::NoProofOfParts) => {
                reached(Branch::Refused);
                return Err(corrupt(info));
            }
            (Some(offered), _) => Verified::Source(offered.algorithm),
            (None, Some(whole)) => Verified::Transport(whole.algorithm),
            (None, None) => Verified::Transport(Algorithm::Md5),
        };
        Ok((Expected { size, etag, checksum: whole, replaces: None }, verified))
    }

    /// Completes; looks before repeating (T9).
    async fn complete(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[Part],
        options: &PutOptions,
        expected: &Expected,
    ) -> Result<Published> {
        let call = || async {
            match self.sink.complete_upload(key, upload, parts, options).await {
                // The upload ended: by an earlier call of ours whose answer was lost, or by another worker.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    Err(Error::new(ErrorKind::Conflict, Op::CompleteUpload, self.name_of(key)).with_source(error))
                }
                Ok(written) => Ok(written),
                Err(error) => Err(error),
            }
        };
        self.publish(key, expected, call).await
    }

    pub(super) async fn abort(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let aborted = self.settings.retry.run(&*self.env, || self.sink.abort_upload(key, upload)).await;
        match aborted {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Strikes the upload from the record first, so that nobody continues it, then aborts it.
    pub(super) async fn drop_upload(&self, job: &Job, journal: &mut Journal<'_>) -> Result<()> {
        let Some(upload) = journal.record().upload.clone() else { return Ok(()) };
        // In a box: nearly always there is none, and whoever asks would have room for all of this.
        Box::pin(async {
            let record = Record { upload: None, ..journal.next(Status::Started, self.env.now()) };
            journal.save(record, &self.settings.retry, &self.env).await?;
            if let Some(id) = upload.id {
                self.abort(&self.keys.to_destination(&job.key), &id).await?;
                journal.forget_parts(&id, &self.settings.retry, &self.env).await?;
            }
            Ok(())
        })
        .await
    }

    /// Throws away what a job that is given up has begun.
    pub async fn abandon(&self, job: &Job, journal: &mut Journal<'_>) -> Result<()> {
        self.drop_upload(job, journal).await
    }
}

/// Whether a remembered part is one of this layout, with what judges the whole.
pub(super) fn fits(part: &Part, layout: &Layout) -> bool {
    if part.number < 1 || part.number > layout.plan.count() {
        return false;
    }
    let range = layout.plan.range(part.number);
    let judged = layout.checks.judge.is_none_or(|a| part.checksum.as_ref().is_some_and(|c| c.algorithm == a));
    part.size == range.end - range.start && judged
}

/// The etag that the parts would have together: as the sink names them, or as they were read.
pub(super) fn parts_etag(layout: &Layout, parts: &[(Part, Option<Checksum>)]) -> Option<ETag> {
    let md5 = |(part, sum): &(Part, Option<Checksum>)| {
        if layout.checks.parity { part.etag.as_md5() } else { sum.as_ref()?.value.as_slice().try_into().ok() }
    };
    parts.iter().map(md5).collect::<Option<Vec<_>>>().map(|md5s| ETag::of_parts(&md5s))
}
