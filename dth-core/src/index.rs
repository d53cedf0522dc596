//! What both sides can be asked: ordered listings and single headers. The finder compares two of these.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::{Entry, EtagKind, ObjectInfo, ObjectKey, VersionId},
    versions::VersionsPage,
};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListFrom {
    /// At the first key of the prefix.
    #[default]
    Beginning,
    /// Behind this key, which need not exist.
    After(ObjectKey),
    /// Where an earlier page ended, in the store's own words.
    Token(String),
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// A plain string prefix, not a folder.
    pub prefix: String,
    /// Where to begin.
    pub from: ListFrom,
    /// At most so many entries; `None` for the store's page size.
    pub max: Option<u32>,
}

/// One answer of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// The entries, in the order of [`ListOrder`].
    pub entries: Vec<Entry>,
    /// How to go on; `None` at the end.
    pub next: Option<String>,
}

/// The order of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListOrder {
    /// By the bytes of the UTF-8 key, as Amazon S3 does.
    Bytes,
    /// Any other, or none.
    Unordered,
}

/// What a listing of this store can do.
#[derive(Debug, Clone)]
pub struct IndexCapability {
    /// The order of entries, over all pages.
    pub order: ListOrder,
    /// Whether [`ListFrom::After`] works.
    pub start_after: bool,
    /// Entries in a full page.
    pub page_max: u32,
    /// What the etags of this store are made of.
    pub etag: EtagKind,
    /// Most bytes of a key.
    pub max_key: usize,
    /// As a destination, it is asked for the source's keys ([`Index::find`]) rather than listed: it holds much else, or its
    /// listing tells little. Where deletions are wanted it is listed all the same.
    pub looked_up: bool,
    /// Storage classes, as listings name them, whose objects must be restored before they can be read.
    pub archived: &'static [&'static str],
}

impl IndexCapability {
    /// As Amazon S3 has it: pages of 1,000 keys of at most 1,024 bytes, in byte order, from any key on.
    pub const fn like_s3(etag: EtagKind) -> Self {
        Self { order: ListOrder::Bytes, start_after: true, page_max: 1000, etag, max_key: 1024, looked_up: false, archived: &[] }
    }
}

/// A store that can be listed and looked at.
///
/// Both calls are safe to drop at any await: they change nothing.
#[async_trait]
pub trait Index: fmt::Debug + Send + Sync + 'static {
    /// A name for reports and errors, such as `s3://bucket`; no secrets.
    fn name(&self) -> String;

    /// What the listing can do.
    fn index_capability(&self) -> IndexCapability;

    /// Whether an object can be stored under this key. What cannot is counted as skipped, with that reason, when it is found.
    fn carries(&self, key: &ObjectKey) -> bool {
        (1..=self.index_capability().max_key).contains(&key.as_str().len())
    }

    /// Whether a key that this store does not list would be listed if it were there: only such keys are extra at a destination.
    /// A store that shows a selection says no to the rest.
    fn covers(&self, _key: &ObjectKey) -> bool {
        true
    }

    /// One page, one request. A page with a `next` may be empty. What it does not tell of an entry ([`Entry::etag`],
    /// [`Entry::size`]) is asked by [`find`](Self::find), where it matters.
    async fn list(&self, request: &ListRequest) -> Result<ListPage>;

    /// Looks at one object. `NotFound` where there is none.
    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo>;

    /// One page of all versions and delete markers, one request: keys in byte order, of each the youngest version first.
    /// `Unsupported` where there are none.
    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        Err(Error::new(ErrorKind::Unsupported, Op::List, self.name())
            .with_source(format!("no versions are listed below `{}`", request.prefix)))
    }

    /// Whether versions are kept of what is written now.
    async fn keeps_versions(&self) -> Result<bool> {
        Ok(false)
    }

    /// Looks at several objects, in their order; `None` where there is none.
    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        let look = |key: ObjectKey| async move {
            match self.head(&key, None).await {
                Ok(info) => Ok(Some(info.entry)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        stream::iter(keys.to_vec()).map(look).buffered(LOOKS_AT_ONCE).try_collect().await
    }
}

/// Requests at once of [`Index::find`].
const LOOKS_AT_ONCE: usize = 16;

/// `Unrepresentable` when the store does not [carry](Index::carries) a key; for sinks to begin a write with.
pub fn must_carry(index: &dyn Index, key: &ObjectKey, op: Op) -> Result<()> {
    if index.carries(key) {
        return Ok(());
    }
    let text = format!("{} does not carry a key of {} bytes that reads so", index.name(), key.as_str().len());
    Err(Error::new(ErrorKind::Unrepresentable, op, key.to_string()).with_source(text))
}
