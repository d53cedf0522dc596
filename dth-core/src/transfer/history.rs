//! An object with all that it was: versions and delete markers, in their order, each as an object of its own.
//!
//! Nothing is remembered of the way: what stands at the destination is looked at, what lacks behind it is written, version by version,
//! each over the one before, and the whole is looked at again. Whoever goes on after a death, or beside another worker, sees where it is.
//! A version that was written twice stands there twice; the order is that of the source all the same.

use super::{Attempt, Ended, FRESH_STARTS, Journal, Transfer, Work, note};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListPage, ListRequest},
    job::{Action, Job, Seen},
    object::{ETag, Entry, ObjectInfo, ObjectKey, Tags, VersionId},
    proof::{Branch, reached},
    sink::Condition,
    source::{CopyOrigin, Family, Read, ReadOptions, Restore, Restoring, Source, SourceCapability},
    state::{Appended, Outcome, Record, SkipReason, SourceVersion, Status, Verified},
    versions::{Version, VersionsPage, aligned, history, is_archived, must_keep_versions, summary},
};
use async_trait::async_trait;
use std::sync::Arc;

/// What one try at a history came to.
enum Tried {
    /// Nothing lacked: this is what stands there.
    Stands(Vec<Version>),
    /// What lacked was put there.
    Put,
    /// One of its versions stays behind, and so do those after it.
    Skipped(SkipReason),
    /// Somebody else wrote, or the source has changed: look again.
    Changed,
}

/// The etag of what stands at the destination now, none of a marker; or why it does not.
type Put = std::result::Result<Option<ETag>, Tried>;

/// What was moved for a history, by all tries at it.
struct Moved {
    proven: bool,
    verified: Option<Verified>,
    losses: Vec<String>,
    any: bool,
}

impl Transfer {
    /// Brings all versions of an object, by whatever event or job it was named.
    pub(super) async fn history(&self, job: &Job, key: &ObjectKey, journal: &mut Journal<'_>) -> Result<Work> {
        self.sink_must_keep_versions().await?;
        let mut moved = Moved { proven: true, verified: None, losses: Vec::new(), any: false };
        let mut starts = 0;
        loop {
            let here = self.versions_of(&*self.source, &job.key).await?;
            let Some(now) = summary(&here, &[]) else {
                reached(Branch::Vanished);
                self.drop_upload(job, journal).await?;
                let record = Record { source: None, destination: None, ..journal.next(Status::Cancelled, self.env.now()) };
                return Ok(Work::Ended(Box::new(Ended { outcome: Outcome::Cancelled, bytes: 0, record, filled: None })));
            };
            let there = match self.append(key, &here, &mut moved, journal).await? {
                Tried::Stands(there) => Some(there),
                Tried::Put => Some(self.versions_of(&*self.sink, key).await?),
                Tried::Changed => None,
                Tried::Skipped(reason) => {
                    self.drop_upload(job, journal).await?;
                    return Ok(Work::Ended(Box::new(self.skipped(journal, reason, now.size.unwrap_or(0)))));
                }
            };
            if let Some(there) = there.filter(|there| self.stand(&here, there, journal.record()) == here.len()) {
                self.drop_upload(job, journal).await?;
                return Ok(Work::Ended(Box::new(self.whole_history(&now, &here, &there, &moved, journal))));
            }
            starts += 1;
            if starts >= FRESH_STARTS {
                return Err(Error::new(ErrorKind::Conflict, Op::Transfer, self.name_of(key))
                    .with_source("source or destination kept changing while versions were moved"));
            }
            journal.still_ours(&self.settings.retry, &self.env).await?;
        }
    }

    fn whole_history(&self, now: &Entry, here: &[Version], there: &[Version], moved: &Moved, journal: &mut Journal<'_>) -> Ended {
        journal.begin_losses();
        let known = journal.record().not_carried.clone();
        let losses = if moved.any { &moved.losses } else { &known };
        for name in losses {
            journal.not_carried(name);
        }
        let verified = moved.verified.or(journal.record().verified);
        let mut record = journal.next(Status::Done, self.env.now());
        record.source = Some(SourceVersion::of(now));
        record.destination = summary(there, &[]).and_then(|entry| entry.etag);
        record.checksum = None;
        record.verified = verified;
        record.upload = None;
        record.failure = None;
        record.appended = link(here.last(), there.last());
        let copied = Outcome::Copied { proven: moved.proven, whole: record.not_carried.is_empty() };
        let outcome = if moved.any { copied } else { Outcome::AlreadyCurrent };
        Ended { outcome, bytes: now.size.unwrap_or(0), record, filled: None }
    }

    async fn versions_of(&self, index: &dyn Index, key: &ObjectKey) -> Result<Vec<Version>> {
        self.settings.retry.run(&*self.env, || history(index, key)).await
    }

    /// Asked once: what is written to a store that keeps no versions replaces what was written before it.
    async fn sink_must_keep_versions(&self) -> Result<()> {
        let ask = || self.settings.retry.run(&*self.env, || must_keep_versions(&*self.sink));
        self.keeps_versions.get_or_try_init(ask).await.copied()
    }

    fn compares_etags(&self) -> bool {
        self.source.index_capability().etag.is_comparable_with(self.sink.index_capability().etag)
    }

    /// How many of the source's versions stand at the destination. Where etags say nothing, the pair that was recorded last does.
    fn stand(&self, here: &[Version], there: &[Version], record: &Record) -> usize {
        let comparable = self.compares_etags();
        let same = |here: &Version, there: &Version| {
            let (a, b) = (&here.entry, &there.entry);
            here.marker == there.marker && (here.marker || a.size == b.size && comparable && a.etag.is_some() && a.etag == b.etag)
        };
        let recorded = record.appended.as_ref().and_then(|pair| {
            let of = |versions: &[Version], id: &VersionId| versions.iter().position(|v| v.entry.version.as_ref() == Some(id));
            Some((of(here, &pair.source)?, of(there, &pair.destination)?))
        });
        let by_record = recorded.map_or(0, |(i, j)| match &there[j + 1..] {
            [] => i + 1,
            behind => match aligned(&here[i + 1..], behind, same) {
                0 => 0,
                n => i + 1 + n,
            },
        });
        by_record.max(aligned(here, there, same))
    }

    /// Writes what lacks behind what stands there.
    async fn append(&self, key: &ObjectKey, here: &[Version], moved: &mut Moved, journal: &mut Journal<'_>) -> Result<Tried> {
        let there = self.versions_of(&*self.sink, key).await?;
        let lacking = &here[self.stand(here, &there, journal.record())..];
        if lacking.is_empty() {
            return Ok(Tried::Stands(there));
        }
        // Before anything is written: a history that ends in its middle would show an old version as the current one.
        let archived = self.source.index_capability().archived;
        for version in lacking.iter().filter(|version| !version.marker && is_archived(&version.entry, archived)) {
            if let Some(reason) = self.ask_back(&version.entry.key, version.entry.version.as_ref()).await? {
                return Ok(Tried::Skipped(reason));
            }
        }
        let mut last = there.last().cloned();
        for version in lacking {
            let held = match last.as_ref().filter(|last| !last.marker) {
                None => Condition::Absent,
                Some(last) => Condition::still(last.entry.etag.as_ref()),
            };
            let put = if version.marker { self.mark(key, &held).await? } else { self.one(version, key, &held, moved, journal).await? };
            let etag = match put {
                Ok(etag) => etag,
                Err(tried) => return Ok(tried),
            };
            moved.any = true;
            if !version.marker && (!self.compares_etags() || etag != version.entry.etag) {
                // Only the record tells the next worker what it is.
                let there = self.versions_of(&*self.sink, key).await?;
                let Some(there) = there.last().filter(|there| there.entry.etag == etag) else { return Ok(Tried::Changed) };
                let record = Record { appended: link(Some(version), Some(there)), ..journal.next(Status::Started, self.env.now()) };
                journal.save(record, &self.settings.retry, &self.env).await?;
            }
            last = Some(Version { entry: Entry { etag, ..version.entry.clone() }, marker: version.marker });
        }
        Ok(Tried::Put)
    }

    /// Marks the object as deleted.
    async fn mark(&self, key: &ObjectKey, held: &Condition) -> Result<Put> {
        let honoured = self.sink.sink_capability().conditions.delete && *held != Condition::Absent;
        let condition = if honoured { held.clone() } else { Condition::None };
        let marked = self.settings.retry.run(&*self.env, || async {
            let permit = self.sink_permit().await;
            match note(&permit, self.sink.delete(key, &condition).await) {
                // An answer, and no reason to try the same again.
                Err(error) if error.kind() == ErrorKind::Precondition => Ok(Err(Tried::Changed)),
                marked => marked.map(|()| Ok(None)),
            }
        });
        marked.await
    }

    /// Writes one version.
    async fn one(&self, version: &Version, key: &ObjectKey, held: &Condition, moved: &mut Moved, journal: &mut Journal<'_>) -> Result<Put> {
        let entry = &version.entry;
        let source = Arc::new(AtVersion { source: Arc::clone(&self.source), version: entry.version.clone() });
        let of_version = Self { source, appends: true, ..self.clone() };
        let job = Job { action: Action::Copy, ..Job::copy(entry, Seen::Unknown) };
        let mut tries = 0;
        loop {
            match of_version.alone(&job, key, held, journal, None).await {
                Ok(Attempt::Ended(ended)) => {
                    let Ended { outcome, record, filled, .. } = *ended;
                    return match outcome {
                        Outcome::Copied { proven, .. } => {
                            moved.proven &= proven;
                            moved.verified = weaker(moved.verified, record.verified);
                            moved.losses.extend(record.not_carried);
                            let etag = record.destination;
                            if let Some(upload) = filled {
                                // The next version has nothing to do with it.
                                let done = Record { upload: None, ..journal.next(Status::Started, self.env.now()) };
                                journal.save(done, &self.settings.retry, &self.env).await?;
                                journal.forget_parts(&upload, &self.settings.retry, &self.env).await?;
                            }
                            Ok(Ok(etag))
                        }
                        Outcome::Skipped(reason) => Ok(Err(Tried::Skipped(reason))),
                        // The source has dropped it since.
                        _ => Ok(Err(Tried::Changed)),
                    };
                }
                Ok(Attempt::Failed(error)) => return Err(error),
                Ok(Attempt::Changed | Attempt::HandedOut(_)) => return Ok(Err(Tried::Changed)),
                Err(error) => {
                    tries += 1;
                    let Some(pause) = self.settings.retry.pause(&error, tries, &*self.env) else { return Err(error) };
                    tracing::debug!(key = %job.key, version = ?entry.version, error = %error.chain(), tries, "trying again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Asks for what is archived, where that is wanted. `None` when it can be read now; otherwise why it stays behind.
    pub(super) async fn ask_back(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Option<SkipReason>> {
        let Some(restore) = &self.restore else { return Ok(Some(SkipReason::Archived)) };
        match self.settings.retry.run(&*self.env, || self.source.restore(key, version, restore)).await {
            Ok(Restoring::Ready) => Ok(None),
            Ok(Restoring::UnderWay) => Ok(Some(SkipReason::Restoring)),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Some(SkipReason::Archived)),
            // It is gone: the read tells.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Which version of the source is which of the destination.
fn link(here: Option<&Version>, there: Option<&Version>) -> Option<Appended> {
    Some(Appended { source: here?.entry.version.clone()?, destination: there?.entry.version.clone()? })
}

fn weaker(one: Option<Verified>, other: Option<Verified>) -> Option<Verified> {
    match (one, other) {
        (Some(Verified::Transport(_)), _) | (_, None) => one,
        _ => other,
    }
}

/// A source of which every object is one version.
#[derive(Debug)]
struct AtVersion {
    source: Arc<dyn Source>,
    version: Option<VersionId>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Index for AtVersion {
    fn name(&self) -> String {
        self.source.name()
    }
    fn index_capability(&self) -> IndexCapability {
        self.source.index_capability()
    }
    fn carries(&self, key: &ObjectKey) -> bool {
        self.source.carries(key)
    }
    fn covers(&self, key: &ObjectKey) -> bool {
        self.source.covers(key)
    }
    /// Listings show what is current, which says nothing of this version.
    async fn list(&self, _: &ListRequest) -> Result<ListPage> {
        Ok(ListPage::default())
    }
    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        self.source.head(key, self.version.as_ref()).await
    }
    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        self.source.find(keys).await
    }
    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        self.source.versions(request).await
    }
    async fn keeps_versions(&self) -> Result<bool> {
        self.source.keeps_versions().await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Source for AtVersion {
    fn source_capability(&self) -> SourceCapability {
        self.source.source_capability()
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        self.source.read(key, &ReadOptions { version: self.version.clone(), ..options.clone() }).await
    }
    async fn children(&self, entry: &Entry) -> Result<Family> {
        self.source.children(entry).await
    }
    async fn restore(&self, key: &ObjectKey, _: Option<&VersionId>, restore: &Restore) -> Result<Restoring> {
        self.source.restore(key, self.version.as_ref(), restore).await
    }
    async fn tags(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<Tags> {
        self.source.tags(key, self.version.as_ref()).await
    }
    fn copy_origin(&self, key: &ObjectKey, _: Option<&VersionId>) -> Option<CopyOrigin> {
        self.source.copy_origin(key, self.version.as_ref())
    }
}
