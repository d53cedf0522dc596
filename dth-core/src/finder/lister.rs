//! One side's entries in byte order, a page ahead.

use super::spool::{Found, Sorted, Sorter};
use crate::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
    index::{Index, ListFrom, ListOrder, ListRequest},
    key_map::KeyMap,
    limit::AdaptiveLimit,
    object::ObjectKey,
    retry::RetryPolicy,
};
use std::{collections::VecDeque, sync::Arc};
use tokio::{task::JoinSet, time::Instant};

/// Entries of a page that comes from the disk.
const SORTED_PAGE: usize = 1000;

/// What a fetch brings.
struct Fetched {
    page: Vec<Found>,
    next: Next,
    /// What it took.
    requests: u64,
}

/// How a listing goes on.
enum Next {
    Token(String),
    /// What is left of a listing that was sorted on disk.
    Sorted(Sorted),
    End,
}

/// A stream of entries in the order of both sides. Fetches the next page while this one is worked on; memory for two pages.
#[derive(Debug)]
pub(super) struct Lister {
    index: Arc<dyn Index>,
    env: SharedEnv,
    retry: RetryPolicy,
    prefix: String,
    /// Learns how long the first page takes.
    limit: Option<AdaptiveLimit>,
    page: VecDeque<Found>,
    /// The page under way; dropping the lister stops it.
    fetch: JoinSet<Result<Fetched>>,
    last: Option<ObjectKey>,
    /// The listing began before `last`: what is not behind it is passed over.
    passing: bool,
    ended: bool,
    pub(super) pages: u64,
}

impl Lister {
    /// Behind a place, by a map whose order is that of both sides.
    pub(super) fn new(
        index: Arc<dyn Index>,
        env: SharedEnv,
        retry: RetryPolicy,
        prefix: String,
        after: Option<ObjectKey>,
        keys: &KeyMap,
        limit: Option<AdaptiveLimit>,
    ) -> Self {
        let capability = index.index_capability();
        let ordered = capability.order == ListOrder::Bytes && keys.is_ordered();
        let seeks = ordered && capability.start_after;
        let from = after.clone().filter(|_| seeks).map_or(ListFrom::Beginning, ListFrom::After);
        let passing = after.is_some() && !seeks;
        let (page, fetch) = (VecDeque::new(), JoinSet::new());
        let mut lister = Self { index, env, retry, prefix, limit, page, fetch, last: after, passing, ended: false, pages: 0 };
        if ordered {
            lister.fetch(from);
        } else {
            lister.fetch_all(keys.clone());
        }
        lister
    }

    fn fetch(&mut self, from: ListFrom) {
        let (index, env, retry) = (Arc::clone(&self.index), Arc::clone(&self.env), self.retry);
        let request = ListRequest { prefix: self.prefix.clone(), from, max: None };
        let limit = self.limit.take();
        self.fetch.spawn(async move {
            let timed = async || {
                let begun = Instant::now();
                index.list(&request).await.map(|page| (page, begun.elapsed()))
            };
            let (page, took) = retry.run(&*env, timed).await?;
            if let Some(limit) = limit {
                limit.expect(took);
            }
            let next = page.next.map_or(Next::End, Next::Token);
            Ok(Fetched { page: page.entries.into_iter().map(Found::in_order).collect(), next, requests: 1 })
        });
    }

    /// F8: a listing in another order is brought into ours, on disk.
    fn fetch_all(&mut self, keys: KeyMap) {
        let (index, env, retry) = (Arc::clone(&self.index), Arc::clone(&self.env), self.retry);
        let mut request = ListRequest { prefix: self.prefix.clone(), ..ListRequest::default() };
        self.fetch.spawn(async move {
            let mut sorter = Sorter::by(keys);
            let mut requests = 0;
            loop {
                let page = retry.run(&*env, || index.list(&request)).await?;
                requests += 1;
                sorter = on_thread(move || sorter.push(page.entries).map(|()| sorter)).await?;
                match page.next {
                    Some(token) => request.from = ListFrom::Token(token),
                    None => break,
                }
            }
            sorted_page(on_thread(move || sorter.finish()).await?, requests).await
        });
    }

    /// The next entry, left in place.
    pub(super) async fn peek(&mut self) -> Result<Option<&Found>> {
        while self.page.is_empty() && !self.ended {
            let Fetched { page, next, requests } = match self.fetch.join_next().await {
                Some(Ok(fetched)) => fetched?,
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(Err(_)) | None => return Err(Error::new(ErrorKind::Internal, Op::List, self.index.name())),
            };
            self.pages += requests;
            match next {
                Next::Sorted(sorted) => {
                    self.fetch.spawn(sorted_page(sorted, 0));
                }
                Next::Token(token) => self.fetch(ListFrom::Token(token)),
                Next::End => self.ended = true,
            }
            self.page.reserve(page.len());
            for found in page {
                if self.last.as_ref().is_some_and(|last| found.place <= *last) {
                    if self.passing {
                        continue;
                    }
                    return Err(Error::new(ErrorKind::Invalid, Op::List, self.index.name()).with_source(format!(
                        "the listing is not in byte order: `{}` came after `{}`; set `unordered_listing` for this store",
                        found.place,
                        self.last.as_ref().map(ToString::to_string).unwrap_or_default()
                    )));
                }
                self.passing = false;
                self.last = Some(found.place.clone());
                self.page.push_back(found);
            }
        }
        Ok(self.page.front())
    }

    /// Takes the entry that was peeked at.
    pub(super) fn take(&mut self) -> Option<Found> {
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

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(ErrorKind::Internal, Op::List, "sorting").with_source(error)),
    }
}

async fn sorted_page(mut sorted: Sorted, requests: u64) -> Result<Fetched> {
    let (page, sorted) = on_thread(move || Ok((sorted.page(SORTED_PAGE)?, sorted))).await?;
    let next = if page.is_empty() { Next::End } else { Next::Sorted(sorted) };
    Ok(Fetched { page, next, requests })
}
