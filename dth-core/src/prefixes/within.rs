//! A store of which only what begins with one of many prefixes is listed.

use super::PrefixList;
use crate::{
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListOrder, ListPage, ListRequest},
    key_map::KeyMap,
    object::{Entry, ObjectInfo, ObjectKey, VersionId},
    versions::VersionsPage,
};
use async_trait::async_trait;
use std::sync::Arc;

/// Leaps of one probe.
const PROBED: usize = 8;

/// An index that shows what the prefixes cover, in its order. Between two prefixes it leaps: the store is asked for what lies behind, and
/// its answer shows which prefix is next. So it costs a page for each stretch of covered keys, however many prefixes cover nothing.
///
/// A store that cannot begin anywhere, or is rather asked for single keys, is listed as a whole.
#[derive(Debug)]
pub(crate) struct Within {
    index: Arc<dyn Index>,
    prefixes: PrefixList,
    /// From the keys that the prefixes are of to those of this store.
    keys: KeyMap,
}

impl Within {
    pub(crate) fn new(index: Arc<dyn Index>, prefixes: PrefixList, keys: KeyMap) -> Self {
        Self { index, prefixes, keys }
    }

    fn shows(&self, key: &ObjectKey) -> Result<bool> {
        self.keys.to_source(key).map_or(Ok(false), |key| self.prefixes.covers(key.as_str()))
    }

    fn leaps(&self) -> bool {
        let capability = self.index.index_capability();
        capability.order == ListOrder::Bytes && capability.start_after && !capability.looked_up
    }

    /// Where to go on behind a key: behind itself, where more of its prefix may follow, or short of the next prefix. `None` where nothing
    /// more is covered.
    fn behind(&self, key: &ObjectKey) -> Result<Option<ObjectKey>> {
        let Some(ours) = self.keys.to_source(key) else { return Ok(None) };
        let Some(prefix) = self.prefixes.next(ours.as_str())? else { return Ok(None) };
        if ours.starts_with(&prefix) {
            return Ok(Some(key.clone()));
        }
        let mut before = self.keys.to_destination(&ObjectKey::new(just_before(&prefix))).as_str().to_owned();
        // No store takes longer ones; a shorter text lies before as well.
        before.truncate(before.floor_char_boundary(self.index.index_capability().max_key));
        Ok(Some(ObjectKey::new(before).max(key.clone())))
    }

    /// A listing that is not in byte order, or did not begin where it was to, could be leapt over without end, or in part.
    fn check(&self, page: &ListPage, after: &ObjectKey) -> Result<()> {
        let mut last = after;
        for entry in &page.entries {
            if entry.key <= *last && !last.as_str().is_empty() {
                let why = format!(
                    "the listing is not in byte order: `{}` came after `{last}`; set `unordered_listing` for this store",
                    entry.key
                );
                return Err(Error::new(ErrorKind::Invalid, Op::List, self.index.name()).with_source(why));
            }
            last = &entry.key;
        }
        Ok(())
    }

    async fn one(&self, request: &ListRequest) -> Result<ListPage> {
        // Where the store is to begin, and the key that its answer is to be behind.
        let (from, after) = match &request.from {
            ListFrom::Token(token) => match Token::read(token) {
                Some(Token::Behind(key)) => (ListFrom::After(key.clone()), key),
                Some(Token::OfStore(token, key)) => (ListFrom::Token(token), key),
                None => return Err(Error::new(ErrorKind::Invalid, Op::List, self.index.name()).with_source("a token of another listing")),
            },
            from => {
                let begin = match from {
                    ListFrom::After(key) => key.clone(),
                    _ => self.keys.to_destination(&ObjectKey::new("")),
                };
                match self.behind(&begin)? {
                    Some(key) if key.as_str().is_empty() => (ListFrom::Beginning, key),
                    Some(key) => (ListFrom::After(key.clone()), key),
                    None => return Ok(ListPage::default()),
                }
            }
        };
        let page = self.index.list(&ListRequest { from, ..request.clone() }).await?;
        self.check(&page, &after)?;
        let last = page.entries.last().map_or(after, |entry| entry.key.clone());
        let next = match page.next {
            None => None,
            Some(token) => match self.behind(&last)? {
                Some(key) if key == last => Some(Token::OfStore(token, last)),
                Some(key) => Some(Token::Behind(key)),
                None => None,
            },
        };
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            if self.shows(&entry.key)? {
                entries.push(entry);
            }
        }
        Ok(ListPage { entries, next: next.map(Token::text) })
    }
}

/// How a listing goes on: no key holds a NUL.
enum Token {
    Behind(ObjectKey),
    /// By the store's own token, behind a key.
    OfStore(String, ObjectKey),
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Behind(key) => format!("k\0{}", key.as_str()),
            Self::OfStore(token, key) => format!("t\0{}\0{token}", key.as_str()),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('\0')?;
        match kind {
            "k" => Some(Self::Behind(ObjectKey::new(rest))),
            "t" => rest.split_once('\0').map(|(key, token)| Self::OfStore(token.to_owned(), ObjectKey::new(key))),
            _ => None,
        }
    }
}

/// A text that lies before another one, as near as can easily be had.
fn just_before(text: &str) -> String {
    let mut before = text.to_owned();
    if let Some(last) = before.pop()
        && let Some(lower) = (1..=u32::from(last).saturating_sub(1)).rev().take(0x900).find_map(char::from_u32)
    {
        before.push(lower);
        before.push(char::MAX);
    }
    before
}

#[async_trait]
impl Index for Within {
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
        // What cannot be looked up is not covered: nothing is deleted for it.
        self.index.covers(key) && self.shows(key).unwrap_or(false)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        if !self.leaps() {
            let mut page = self.index.list(request).await?;
            let shown = page.entries.iter().map(|entry| self.shows(&entry.key)).collect::<Result<Vec<_>>>()?;
            let mut shown = shown.into_iter();
            page.entries.retain(|_| shown.next().unwrap_or(false));
            return Ok(page);
        }
        let mut page = self.one(request).await?;
        // A probe for one key wants to know whether there is one.
        for _ in 0..PROBED {
            match &page.next {
                Some(token) if request.max == Some(1) && page.entries.is_empty() => {
                    page = self.one(&ListRequest { from: ListFrom::Token(token.clone()), ..request.clone() }).await?;
                }
                _ => break,
            }
        }
        Ok(page)
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.index.head(key, version).await
    }

    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        self.index.versions(request).await
    }

    async fn keeps_versions(&self) -> Result<bool> {
        self.index.keeps_versions().await
    }

    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        self.index.find(keys).await
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::list, *};
    use crate::memory::{MemoryStore, MemoryStoreSettings};
    use proptest::prelude::*;

    /// A store that answers every request with an empty page first, or one that does not begin where it is told to.
    #[derive(Debug)]
    struct Odd {
        store: MemoryStore,
        gaps: bool,
        deaf: bool,
    }

    #[async_trait]
    impl Index for Odd {
        fn name(&self) -> String {
            "odd".into()
        }
        fn index_capability(&self) -> IndexCapability {
            self.store.index_capability()
        }
        async fn list(&self, request: &ListRequest) -> Result<ListPage> {
            let from = match &request.from {
                ListFrom::Token(token) => match token.split_once('|') {
                    Some(("after", key)) => ListFrom::After(key.into()),
                    Some(("token", token)) => ListFrom::Token(token.to_owned()),
                    _ => ListFrom::Beginning,
                },
                from if self.gaps => {
                    let next = if let ListFrom::After(key) = from { format!("after|{}", key.as_str()) } else { "begin|".into() };
                    return Ok(ListPage { entries: Vec::new(), next: Some(next) });
                }
                ListFrom::After(_) if self.deaf => ListFrom::Beginning,
                from => from.clone(),
            };
            let page = self.store.list(&ListRequest { from, ..request.clone() }).await?;
            Ok(ListPage { next: page.next.map(|token| format!("token|{token}")), ..page })
        }
        async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
            self.store.head(key, version).await
        }
    }

    /// A listing that does not begin where it is to would be leapt over for ever: it is refused by name.
    #[tokio::test]
    async fn a_store_that_does_not_seek_is_refused_by_name() {
        let store = MemoryStore::new(MemoryStoreSettings { page: 3, ..MemoryStoreSettings::default() });
        for key in ["a1", "a2", "a3", "a4", "m1", "z1"] {
            store.insert(key, "1");
        }
        let odd = Odd { store, gaps: false, deaf: true };
        let within = Within::new(Arc::new(odd), list(b"m\nz\n", 9).await.unwrap(), KeyMap::default());
        let error = within.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.chain().contains("not in byte order"), "{}", error.chain());
    }

    proptest! {
        /// The listing is what a listing of everything would show of the prefixes, whatever the pages, from wherever it begins.
        #[test]
        fn a_listing_within_prefixes_is_whole(
            keys in proptest::collection::btree_set("[ab/\u{e9}\u{1}]{1,4}", 0..60),
            lines in proptest::collection::vec("[ab/\u{e9}\u{1}]{1,3}", 1..8),
            after in proptest::option::of("[ab/]{0,3}"),
            mapped in any::<bool>(),
            gaps in any::<bool>(),
            page in 1u32..7,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let map = KeyMap::new(if mapped { "to" } else { "" });
            let store = MemoryStore::new(MemoryStoreSettings { page, ..MemoryStoreSettings::default() });
            store.insert("other/x", "1");
            for key in &keys {
                store.insert(map.to_destination(&key.as_str().into()), "1");
            }
            let expected: Vec<String> = keys
                .into_iter()
                .filter(|k| lines.iter().any(|line| k.starts_with(line.as_str())) && after.as_ref().is_none_or(|a| k > a))
                .collect();
            let found = runtime.block_on(async {
                let odd = Odd { store, gaps, deaf: false };
                let within = Within::new(Arc::new(odd), list(lines.join("\n").as_bytes(), 9).await.unwrap(), map.clone());
                let from = after.map_or(ListFrom::Beginning, |a| ListFrom::After(map.to_destination(&a.into())));
                let mut request = ListRequest { prefix: map.destination_prefix(""), from, max: None };
                let mut found = Vec::new();
                loop {
                    let listed = within.list(&request).await.unwrap();
                    found.extend(listed.entries.into_iter().map(|e| map.to_source(&e.key).unwrap().as_str().to_owned()));
                    let Some(token) = listed.next else { return found };
                    request.from = ListFrom::Token(token);
                }
            });
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn what_is_just_before_lies_before(text in "\\PC{1,5}") {
            prop_assert!(just_before(&text) < text);
        }
    }
}
