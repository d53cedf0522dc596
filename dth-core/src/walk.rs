//! Listings in byte order, folder by folder: a folder sorts as its name with a slash, so that a walk in depth meets keys in
//! the order in which S3 lists them.

use crate::{
    error::Result,
    index::{ListFrom, ListPage, ListRequest},
    object::Entry,
};
use async_trait::async_trait;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

/// Walks that are kept between two pages; one that is not is begun again at its place.
const KEPT: usize = 32;

/// One thing in a folder.
#[derive(Debug, Clone)]
pub enum Item {
    /// A folder, by its name without a slash.
    Folder(String),
    /// An object, by its name; its entry where the listing of the folder brought it.
    Object(String, Option<Entry>),
}

impl Item {
    fn key(&self, folder: &str) -> String {
        match self {
            Self::Folder(name) => format!("{folder}{name}/"),
            Self::Object(name, _) => format!("{folder}{name}"),
        }
    }
}

/// What a walk needs to know of a store. A folder is its path with a slash behind, or empty for the root.
#[async_trait]
pub trait Folders: fmt::Debug + Send + Sync + 'static {
    /// What lies in a folder, in any order; nothing where there is none.
    async fn items(&self, folder: &str) -> Result<Vec<Item>>;

    /// The entries of some objects of one folder, in their order; one that is gone meanwhile may be left out.
    async fn entries(&self, folder: &str, items: Vec<Item>) -> Result<Vec<Entry>>;
}

/// Where a walk is: the folders on the way, each with what is left of it.
#[derive(Debug)]
struct Walk {
    prefix: String,
    after: Option<String>,
    way: Vec<(String, VecDeque<Item>)>,
}

impl Walk {
    /// Whether keys that begin so can be part of the listing.
    fn enters(&self, folder: &str) -> bool {
        let in_prefix = folder.starts_with(&self.prefix) || self.prefix.starts_with(folder);
        in_prefix && self.after.as_deref().is_none_or(|after| after < folder || after.starts_with(folder))
    }

    fn takes(&self, key: &str) -> bool {
        key.starts_with(&self.prefix) && self.after.as_deref().is_none_or(|after| key > after)
    }
}

/// Serves pages of walks.
#[derive(Debug)]
pub struct Walker {
    folders: Arc<dyn Folders>,
    /// Walks by the token of their next page.
    kept: Mutex<VecDeque<(String, Walk)>>,
}

impl Walker {
    /// Walks of this store.
    pub fn new(folders: Arc<dyn Folders>) -> Self {
        Self { folders, kept: Mutex::default() }
    }

    /// A page of at most `page` entries.
    pub async fn page(&self, request: &ListRequest, page: usize) -> Result<ListPage> {
        let max = request.max.map_or(page, |max| page.min(max as usize)).max(1);
        let (after, kept) = match &request.from {
            ListFrom::Beginning => (None, None),
            ListFrom::After(key) => (Some(key.as_str().to_owned()), None),
            // The token is the last key: the walk can be begun again from it.
            ListFrom::Token(last) => (Some(last.clone()), self.take(&request.prefix, last)),
        };
        let mut walk = match kept {
            Some(walk) => walk,
            None => {
                let root = request.prefix.rfind('/').map_or("", |slash| &request.prefix[..=slash]).to_owned();
                let mut walk = Walk { prefix: request.prefix.clone(), after, way: Vec::new() };
                self.enter(&mut walk, root).await?;
                walk
            }
        };
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < max
            && let Some((folder, left)) = walk.way.last_mut()
        {
            match left.front() {
                None => {
                    walk.way.pop();
                }
                Some(Item::Folder(_)) => {
                    let inner = left.pop_front().map(|item| item.key(folder)).unwrap_or_default();
                    self.enter(&mut walk, inner).await?;
                }
                Some(Item::Object(..)) => {
                    let folder = folder.clone();
                    let mut some = Vec::new();
                    while some.len() < max - entries.len()
                        && let Some(item) = left.pop_front_if(|item| matches!(item, Item::Object(..)))
                    {
                        some.push(item);
                    }
                    entries.extend(self.folders.entries(&folder, some).await?);
                }
            }
        }
        let next = match entries.last() {
            Some(last) if !walk.way.is_empty() => {
                let token = last.key.as_str().to_owned();
                self.keep(token.clone(), walk);
                Some(token)
            }
            _ => None,
        };
        Ok(ListPage { entries, next })
    }

    async fn enter(&self, walk: &mut Walk, folder: String) -> Result<()> {
        let mut items: Vec<(String, Item)> = self.folders.items(&folder).await?.into_iter().map(|item| (item.key(&folder), item)).collect();
        items.retain(|(key, item)| if matches!(item, Item::Folder(_)) { walk.enters(key) } else { walk.takes(key) });
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        walk.way.push((folder, items.into_iter().map(|(_, item)| item).collect()));
        Ok(())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, Walk)>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take(&self, prefix: &str, token: &str) -> Option<Walk> {
        let mut kept = self.kept();
        let at = kept.iter().position(|(t, walk)| t == token && walk.prefix == prefix)?;
        kept.remove(at).map(|(_, walk)| walk)
    }

    fn keep(&self, token: String, walk: Walk) {
        let mut kept = self.kept();
        kept.push_back((token, walk));
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Keys that may lie beside and below each other, as an object store has them.
    #[derive(Debug)]
    struct Keys(BTreeSet<String>);

    #[async_trait]
    impl Folders for Keys {
        async fn items(&self, folder: &str) -> Result<Vec<Item>> {
            let mut folders = BTreeSet::new();
            let mut items = Vec::new();
            for rest in self.0.iter().filter_map(|key| key.strip_prefix(folder)) {
                match rest.split_once('/') {
                    Some((name, _)) => {
                        folders.insert(name.to_owned());
                    }
                    None => items.push(Item::Object(rest.to_owned(), None)),
                }
            }
            Ok(folders.into_iter().map(Item::Folder).chain(items).collect())
        }

        async fn entries(&self, folder: &str, items: Vec<Item>) -> Result<Vec<Entry>> {
            Ok(items.into_iter().map(|item| Entry::new(item.key(folder), 0, None)).collect())
        }
    }

    proptest! {
        /// A walk lists exactly the keys of the prefix behind the start, in byte order, whatever the pages, with and without
        /// the walks that were kept.
        #[test]
        fn a_walk_is_a_listing(
            keys in proptest::collection::btree_set("[ab.!\u{e9}]{1,2}(/[ab.!\u{e9}]{1,2}){0,3}", 0..40),
            prefix in "([ab.]{1,2}/?){0,2}",
            after in proptest::option::of("[ab.]{1,2}(/[ab.]{0,2}){0,2}"),
            page in 1usize..6,
            forget in any::<bool>(),
        ) {
            let expected: Vec<String> =
                keys.iter().filter(|k| k.starts_with(&prefix) && after.as_ref().is_none_or(|a| *k > a)).cloned().collect();
            let walker = Walker::new(Arc::new(Keys(keys)));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let from = after.map_or(ListFrom::Beginning, |a| ListFrom::After(a.into()));
                let mut request = ListRequest { prefix, from, max: None };
                let mut found = Vec::new();
                loop {
                    let listed = walker.page(&request, page).await.unwrap();
                    assert!(listed.entries.len() <= page);
                    found.extend(listed.entries.into_iter().map(|e| e.key.as_str().to_owned()));
                    let Some(token) = listed.next else { return found };
                    request.from = ListFrom::Token(token);
                    if forget {
                        walker.kept().clear();
                    }
                }
            });
            prop_assert_eq!(found, expected);
        }
    }
}
