//! Objects with all that they were: versions and delete markers, as one entry a key.
//!
//! A history is whole at the destination when the source's versions stand there in their order, the youngest last. There may be older
//! ones between and before them: what the source has dropped since, the destination keeps.

use crate::{
    checksum::{hex, unhex},
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    object::{ETag, Entry, ObjectInfo, ObjectKey, VersionId},
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Which versions of an object are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Versions {
    /// The current one.
    #[default]
    Current,
    /// All, and delete markers, in their order; both stores keep versions.
    All,
}

/// One version of an object, or the mark that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What was stored, with its version's id.
    pub entry: Entry,
    /// Nothing was: from here on the object is deleted.
    pub marker: bool,
}

/// One answer of [`Index::versions`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// Versions and markers.
    pub versions: Vec<Version>,
    /// How to go on; `None` at the end.
    pub next: Option<String>,
}

/// What etags of histories begin with.
const HISTORY: &str = "history:";

/// What is known of a history of which a part was seen. Each further version is older.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    key: ObjectKey,
    /// A hash of sizes and etags so far.
    sum: String,
    size: u64,
    /// Of the youngest version.
    modified: Option<jiff::Timestamp>,
    version: Option<VersionId>,
    class: Option<Arc<str>>,
    archived: bool,
}

impl Seen {
    fn begin(key: ObjectKey) -> Self {
        Self { key, sum: String::new(), size: 0, modified: None, version: None, class: None, archived: false }
    }

    fn push(&mut self, version: &Version, archived: &[&str]) {
        let Version { entry, marker } = version;
        let first = self.sum.is_empty();
        let mut sum = Sha256::new();
        sum.update(unhex(&self.sum).unwrap_or_default());
        let etag = entry.etag.as_ref().map(ETag::as_str);
        sum.update(format!("{marker} {:?} {etag:?}", entry.size));
        self.sum = hex(&sum.finalize());
        self.size += entry.size.unwrap_or(0);
        let is_archived = is_archived(entry, archived);
        if first {
            self.modified = entry.modified;
            self.version.clone_from(&entry.version);
        }
        if first || is_archived && !self.archived {
            self.class.clone_from(&entry.storage_class);
        }
        self.archived |= is_archived;
    }

    fn entry(self) -> Entry {
        Entry {
            etag: Some(ETag::new(&format!("{HISTORY}{}", self.sum))),
            size: Some(self.size),
            modified: self.modified,
            version: self.version,
            storage_class: self.class,
            key: self.key,
        }
    }
}

/// Whether an entry is of a class whose objects must be restored before they can be read.
pub(crate) fn is_archived(entry: &Entry, archived: &[&str]) -> bool {
    entry.storage_class.as_deref().is_some_and(|of| archived.iter().any(|class| class.eq_ignore_ascii_case(of)))
}

/// Where a listing of histories goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    /// The store's own token, or, without one, behind this key.
    token: Option<String>,
    after: Option<ObjectKey>,
    seen: Option<Seen>,
}

/// A store of which each key is listed once, with an etag that stands for all its versions: equal where and only where the sizes and etags
/// of all are. So a finder compares histories as it does objects.
#[derive(Debug)]
pub(crate) struct Histories {
    index: Arc<dyn Index>,
    /// A destination may hold more, of which the source's size says nothing.
    sized: bool,
}

impl Histories {
    pub(crate) fn of_source(index: Arc<dyn Index>) -> Self {
        Self { index, sized: true }
    }

    pub(crate) fn of_destination(index: Arc<dyn Index>) -> Self {
        Self { index, sized: false }
    }
}

/// Whether an etag stands for a history.
pub(crate) fn is_history(etag: Option<&ETag>) -> bool {
    etag.is_some_and(|etag| etag.as_str().starts_with(HISTORY))
}

/// `Invalid` where a store keeps none of what is written now.
pub(crate) async fn must_keep_versions(sink: &dyn Index) -> Result<()> {
    if sink.keeps_versions().await? {
        return Ok(());
    }
    let why = "the destination keeps no versions: enable versioning there, or set `finder.versions = \"current\"`";
    Err(Error::new(ErrorKind::Invalid, Op::Configure, sink.name()).with_source(why))
}

/// All versions of one key, the oldest first; none where there is nothing.
pub async fn history(index: &dyn Index, key: &ObjectKey) -> Result<Vec<Version>> {
    let mut all = Vec::new();
    let mut request = ListRequest { prefix: key.as_str().to_owned(), ..ListRequest::default() };
    loop {
        let page = index.versions(&request).await?;
        // The key is the first of all that begin with it.
        let others = page.versions.iter().any(|version| version.entry.key != *key);
        all.extend(page.versions.into_iter().filter(|version| version.entry.key == *key));
        match page.next.filter(|_| !others) {
            Some(token) => request.from = ListFrom::Token(token),
            None => break,
        }
    }
    all.reverse();
    Ok(all)
}

/// The entry that stands for a history, as listings show it. `None` of an empty one.
pub(crate) fn summary(versions: &[Version], archived: &[&str]) -> Option<Entry> {
    let mut seen = Seen::begin(versions.last()?.entry.key.clone());
    versions.iter().rev().for_each(|version| seen.push(version, archived));
    Some(seen.entry())
}

/// The entry that stands for a key's history now.
pub(crate) async fn head(index: &dyn Index, key: &ObjectKey) -> Result<ObjectInfo> {
    let entry = summary(&history(index, key).await?, index.index_capability().archived);
    entry.map(ObjectInfo::of).ok_or_else(|| Error::new(ErrorKind::NotFound, Op::Head, key.to_string()))
}

/// How many of the source's versions, the oldest first, stand at the destination in their order, with nothing behind them.
pub(crate) fn aligned(source: &[Version], destination: &[Version], same: impl Fn(&Version, &Version) -> bool) -> usize {
    let Some((last, before)) = destination.split_last() else { return 0 };
    // How many of the source's first versions stand before the last one.
    let stand = before.iter().fold(0, |n, there| n + usize::from(source.get(n).is_some_and(|here| same(here, there))));
    (0..source.len().min(stand + 1)).rev().find(|n| same(&source[*n], last)).map_or(0, |n| n + 1)
}

#[async_trait]
impl Index for Histories {
    fn name(&self) -> String {
        self.index.name()
    }

    fn index_capability(&self) -> IndexCapability {
        self.index.index_capability()
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        self.index.carries(key)
    }

    fn covers(&self, key: &ObjectKey) -> bool {
        self.index.covers(key)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let archived = self.index.index_capability().archived;
        let (from, mut seen) = match &request.from {
            ListFrom::Token(token) => {
                let place: Place =
                    serde_json::from_str(token).map_err(|e| Error::new(ErrorKind::Invalid, Op::List, self.name()).with_source(e))?;
                let from = match (place.token, place.after) {
                    (Some(token), _) => ListFrom::Token(token),
                    (None, Some(key)) => ListFrom::After(key),
                    (None, None) => ListFrom::Beginning,
                };
                (from, place.seen)
            }
            from => (from.clone(), None),
        };
        let page = self.index.versions(&ListRequest { prefix: request.prefix.clone(), from, max: None }).await?;
        let max = request.max.map_or(usize::MAX, |max| max as usize);
        let mut entries = Vec::new();
        let mut next = None;
        for version in &page.versions {
            match &mut seen {
                Some(seen) if seen.key == version.entry.key => seen.push(version, archived),
                _ => {
                    if let Some(whole) = seen.take() {
                        next = Some(whole.key.clone());
                        entries.push(whole.entry());
                        if entries.len() >= max {
                            break;
                        }
                    }
                    seen.insert(Seen::begin(version.entry.key.clone())).push(version, archived);
                }
            }
        }
        let place = match page.next {
            _ if entries.len() >= max => Some(Place { token: None, after: next, seen: None }),
            Some(token) => Some(Place { token: Some(token), after: None, seen }),
            None => {
                entries.extend(seen.map(Seen::entry));
                None
            }
        };
        if !self.sized {
            for entry in &mut entries {
                entry.size = None;
            }
        }
        Ok(ListPage { entries, next: place.map(|place| serde_json::to_string(&place).expect("plain data")) })
    }

    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        head(&*self.index, key).await
    }

    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        self.index.versions(request).await
    }

    async fn keeps_versions(&self) -> Result<bool> {
        self.index.keeps_versions().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::{MemoryStore, MemoryStoreSettings},
        sink::{Condition, Sink},
    };
    use proptest::prelude::*;

    fn versions(text: &str) -> Vec<Version> {
        let one = |letter: char| Version {
            entry: Entry { size: Some(1), ..Entry::new("k", 1, Some(ETag::new(&letter.to_string()))) },
            marker: letter == 'x',
        };
        text.chars().map(one).collect()
    }

    fn same(a: &Version, b: &Version) -> bool {
        a.marker == b.marker && a.entry.etag == b.entry.etag
    }

    /// All of it, by trying every way to leave versions of the destination out.
    fn slowly(source: &str, destination: &str) -> usize {
        let (source, destination): (Vec<char>, Vec<char>) = (source.chars().collect(), destination.chars().collect());
        let stands = |n: usize| {
            let mut at = destination.len();
            // From the back: the last must be the last.
            source[..n].iter().rev().enumerate().all(|(i, c)| {
                let found = destination[..at].iter().rposition(|d| d == c).filter(|found| i > 0 || found + 1 == destination.len());
                found.inspect(|found| at = *found).is_some()
            })
        };
        (1..=source.len()).rev().find(|n| stands(*n)).unwrap_or(0)
    }

    proptest! {
        #[test]
        fn as_many_as_stand_in_order_with_nothing_behind(source in "[abx]{0,6}", destination in "[abcx]{0,8}") {
            prop_assert_eq!(aligned(&versions(&source), &versions(&destination), same), slowly(&source, &destination));
        }

        /// A listing of histories shows each key once, whatever the pages, and an equal etag where and only where all versions are equal.
        #[test]
        fn histories_are_listed_once_and_whole(
            writes in proptest::collection::vec(("[ab]{1,2}", proptest::option::of("[12]")), 0..30),
            others in proptest::collection::vec(("[ab]{1,2}", proptest::option::of("[12]")), 0..6),
            page in 1u32..5,
            max in proptest::option::of(1u32..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let store = |page| MemoryStore::new(MemoryStoreSettings { versions: true, page, ..MemoryStoreSettings::default() });
                let (left, right) = (store(page), store(1000));
                for (store, writes) in [(&left, vec![&writes]), (&right, vec![&writes, &others])] {
                    for (key, body) in writes.into_iter().flatten() {
                        match body {
                            Some(body) => drop(store.insert(key.as_str(), body.clone())),
                            None => store.delete(&key.as_str().into(), &Condition::None).await.unwrap(),
                        }
                    }
                }
                let mut listed = Vec::new();
                let histories = Histories::of_source(Arc::new(left.clone()));
                let mut request = ListRequest { max, ..ListRequest::default() };
                loop {
                    let page = histories.list(&request).await.unwrap();
                    listed.extend(page.entries);
                    let Some(token) = page.next else { break };
                    request.from = ListFrom::Token(token);
                }
                let keys: std::collections::BTreeSet<&str> = writes.iter().map(|(key, _)| key.as_str()).collect();
                assert_eq!(listed.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), keys.into_iter().collect::<Vec<_>>());
                for entry in listed {
                    let (here, there) = (history(&left, &entry.key).await.unwrap(), history(&right, &entry.key).await.unwrap());
                    assert_eq!(head(&left, &entry.key).await.unwrap().entry, entry);
                    let equal = here.len() == there.len() && here.iter().zip(&there).all(|(a, b)| same(a, b));
                    let other = summary(&there, &[]).unwrap();
                    assert_eq!(entry.etag == other.etag, equal, "{here:?} {there:?}");
                    assert!(is_history(entry.etag.as_ref()));
                }
            });
        }
    }
}
