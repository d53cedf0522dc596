//! A store of which only what begins with one of many prefixes is listed.

use super::PrefixList;
use crate::{
    error::Result,
    index::{Index, IndexCapability, ListFrom, ListOrder, ListPage, ListRequest},
    key_map::KeyMap,
    object::{Entry, ObjectInfo, ObjectKey, VersionId},
};
use async_trait::async_trait;
use std::sync::Arc;

/// An index that shows what the prefixes cover, in its order. Between two prefixes it leaps: the store is asked for what lies behind, and
/// its answer shows which prefix is next. So it costs a page for each stretch of covered keys, however many prefixes cover nothing.
///
/// Tokens are keys, so that a store that cannot begin anywhere is listed as a whole.
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
        capability.order == ListOrder::Bytes && capability.start_after
    }

    /// Where to go on behind a key; `None` where nothing more is covered.
    fn behind(&self, key: &ObjectKey) -> Result<Option<ObjectKey>> {
        let Some(ours) = self.keys.to_source(key) else { return Ok(None) };
        let next = self.prefixes.next(ours.as_str())?;
        Ok(next.map(|prefix| {
            if ours.as_str().starts_with(&prefix) {
                return key.clone();
            }
            let before = ObjectKey::new(just_before(&prefix));
            self.keys.to_destination(&before.max(ours))
        }))
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
        let after = match &request.from {
            ListFrom::Beginning => self.keys.to_destination(&ObjectKey::new("")),
            ListFrom::After(key) => key.clone(),
            ListFrom::Token(key) => ObjectKey::new(key.as_str()),
        };
        let Some(from) = self.behind(&after)? else { return Ok(ListPage::default()) };
        let from = if from.as_str().is_empty() { ListFrom::Beginning } else { ListFrom::After(from) };
        let page = self.index.list(&ListRequest { from, ..request.clone() }).await?;
        let next = match page.entries.last().filter(|_| page.next.is_some()) {
            Some(last) => self.behind(&last.key)?.map(|key| key.as_str().to_owned()),
            None => None,
        };
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            if self.shows(&entry.key)? {
                entries.push(entry);
            }
        }
        Ok(ListPage { entries, next })
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.index.head(key, version).await
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

    proptest! {
        /// The listing is what a listing of everything would show of the prefixes, whatever the pages, from wherever it begins.
        #[test]
        fn a_listing_within_prefixes_is_whole(
            keys in proptest::collection::btree_set("[ab/\u{e9}\u{1}]{1,4}", 0..60),
            lines in proptest::collection::vec("[ab/\u{e9}\u{1}]{1,3}", 1..8),
            after in proptest::option::of("[ab/]{0,3}"),
            mapped in any::<bool>(),
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
                let within = Within::new(Arc::new(store), list(lines.join("\n").as_bytes(), 9).await.unwrap(), map.clone());
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
