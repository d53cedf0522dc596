//! One side's entries in byte order, a page ahead.

use crate::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
    index::{Index, ListFrom, ListOrder, ListPage, ListRequest},
    object::{Entry, ObjectKey},
    retry::RetryPolicy,
};
use std::{collections::VecDeque, sync::Arc};
use tokio::task::JoinSet;

/// An ordered stream of entries. Fetches the next page while this one is worked on; memory for two pages.
#[derive(Debug)]
pub(super) struct Lister {
    index: Arc<dyn Index>,
    env: SharedEnv,
    retry: RetryPolicy,
    prefix: String,
    page: VecDeque<Entry>,
    /// The page under way; dropping the lister stops it.
    fetch: JoinSet<Result<ListPage>>,
    last: Option<ObjectKey>,
    ended: bool,
    pub(super) pages: u64,
}

impl Lister {
    pub(super) fn new(index: Arc<dyn Index>, env: SharedEnv, retry: RetryPolicy, prefix: String, after: Option<ObjectKey>) -> Self {
        let mut lister =
            Self { index, env, retry, prefix, page: VecDeque::new(), fetch: JoinSet::new(), last: after.clone(), ended: false, pages: 0 };
        let capability = lister.index.index_capability();
        let from = match after {
            Some(key) if capability.start_after && capability.order == ListOrder::Bytes => ListFrom::After(key),
            _ => ListFrom::Beginning,
        };
        lister.fetch(from);
        lister
    }

    fn fetch(&mut self, from: ListFrom) {
        let (index, env, retry) = (Arc::clone(&self.index), Arc::clone(&self.env), self.retry);
        let unordered = self.index.index_capability().order == ListOrder::Unordered;
        let mut request = ListRequest { prefix: self.prefix.clone(), from, max: None };
        self.fetch.spawn(async move {
            let first = retry.run(&*env, || index.list(&request)).await?;
            if !unordered {
                return Ok(first);
            }
            // F8: a listing in another order is brought into ours, at the price of holding it (some 200 bytes a key).
            let mut all = first;
            while let Some(token) = all.next.take() {
                request.from = ListFrom::Token(token);
                let page = retry.run(&*env, || index.list(&request)).await?;
                all.entries.extend(page.entries);
                all.next = page.next;
            }
            all.entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(all)
        });
    }

    /// The next entry, left in place.
    pub(super) async fn peek(&mut self) -> Result<Option<&Entry>> {
        while self.page.is_empty() && !self.ended {
            let page = match self.fetch.join_next().await {
                Some(Ok(page)) => page?,
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(Err(_)) | None => return Err(Error::new(ErrorKind::Internal, Op::List, self.index.name())),
            };
            self.pages += 1;
            match page.next {
                Some(token) => self.fetch(ListFrom::Token(token)),
                None => self.ended = true,
            }
            self.page.reserve(page.entries.len());
            for entry in page.entries {
                if self.last.as_ref().is_some_and(|last| entry.key <= *last) {
                    // A store without start-after begins at the beginning: what is behind us is passed over.
                    if self.pages > 0 && self.page.is_empty() && !self.index.index_capability().start_after {
                        continue;
                    }
                    return Err(Error::new(ErrorKind::Invalid, Op::List, self.index.name()).with_source(format!(
                        "the listing is not in byte order: `{}` came after `{}`; set the order of this store to `unordered`",
                        entry.key,
                        self.last.as_ref().map(ToString::to_string).unwrap_or_default()
                    )));
                }
                self.last = Some(entry.key.clone());
                self.page.push_back(entry);
            }
        }
        Ok(self.page.front())
    }

    /// Takes the entry that was peeked at.
    pub(super) fn take(&mut self) -> Option<Entry> {
        self.page.pop_front()
    }

    /// Whether the page at hand is used up.
    pub(super) fn at_page_end(&self) -> bool {
        self.page.is_empty()
    }

    /// Whether more pages follow the one at hand.
    pub(super) fn has_more(&self) -> bool {
        !self.ended
    }
}
