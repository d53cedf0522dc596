//! Listing and looking.

use super::{ControlPlane, Registry};
use crate::{
    error::LONGEST,
    images,
    key::{ImageKey, is_digest, is_name, is_tag},
    manifest::{ACCEPT, OCI_INDEX, is_index},
    wire::{Action, Call, Scope},
};
use async_trait::async_trait;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    index::{Index, IndexCapability, ListFrom, ListPage, ListRequest},
    object::{ETag, Entry, ObjectInfo, ObjectKey, VersionId},
    retry::RetryPolicy,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, header};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{sync::OnceCell, time::Instant};

/// Most bytes of a page of a list.
const MAX_PAGE: u64 = 32 << 20;
/// Entries asked for in a page of repositories or tags.
const PAGE: usize = 1000;
/// Pages of one list, before a registry is taken to go round in circles.
const MAX_PAGES: usize = 100_000;
/// Repositories, and looks, that are asked for at once.
const AT_ONCE: usize = 16;
/// Tries of one look among many.
const PATIENCE: RetryPolicy = RetryPolicy { tries: 4, base_ms: 800, cap_ms: LONGEST.as_millis() as u64 };
/// For so long what is known of a registry's repositories is not asked again.
const KNOWN: Duration = Duration::from_secs(600);

/// A list of the registry.
struct Listed {
    path: String,
    accept: Option<&'static str>,
    scope: Scope,
    /// What errors call it.
    called: String,
    /// It is left there.
    most_pages: usize,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Referrer {
    media_type: String,
    digest: String,
}

/// A manifest that others may refer to.
struct Subject {
    digest: String,
    /// There are manifests under it.
    index: bool,
}

/// The answer to which repositories there are, and when it was given; `None` where the registry does not tell.
#[derive(Debug)]
struct Present {
    asked: Instant,
    names: Option<HashSet<String>>,
}

/// What is known of which repositories there are.
#[derive(Debug, Default)]
pub(super) struct Repositories {
    /// All of them, by the listing under way.
    listed: Mutex<Option<Arc<Vec<String>>>>,
    /// Those that could not be listed, by the names that the engine has for them.
    unlisted: Mutex<HashSet<String>>,
    /// Those that were made, or found, by this process.
    ensured: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    /// Those that are there, where that is known.
    present: tokio::sync::Mutex<Option<Present>>,
}

impl Repositories {
    /// Makes one where registries want that, once.
    pub(super) async fn ensure(&self, name: &str, control: &dyn ControlPlane) -> Result<()> {
        let cell = Arc::clone(self.ensured().entry(name.to_owned()).or_default());
        cell.get_or_try_init(|| control.ensure(name)).await.map(|&()| ())
    }

    /// It is not there after all.
    pub(super) fn is_missing(&self, name: &str) {
        self.ensured().remove(name);
    }

    fn ensured(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<()>>>> {
        self.ensured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlisted(&self) -> MutexGuard<'_, HashSet<String>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Index for Registry {
    fn name(&self) -> String {
        format!("registry {}", self.inner.config.registry)
    }

    fn index_capability(&self) -> IndexCapability {
        images::index_capability()
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        self.carries_key(key)
    }

    fn covers(&self, key: &ObjectKey) -> bool {
        // Of a repository that could not be listed, nobody knows what it does not have.
        let told = |image: &ImageKey| !self.inner.repositories.unlisted().contains(image.name());
        ImageKey::parse(key).is_some_and(|image| self.inner.selected.covers(&image) && told(&image))
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let after = match &request.from {
            ListFrom::Beginning => None,
            ListFrom::After(key) => Some(key.as_str().to_owned()),
            ListFrom::Token(token) => Some(token.clone()),
        };
        let prefix = request.prefix.as_str();
        let names = match prefix.split_once([':', '@']) {
            // Of one image: that is no reason to list the registry.
            Some((name, _)) => Arc::new(vec![name.to_owned()]),
            None => self.names(after.is_none()).await?,
        };
        // Keys of a repository begin with its name; what lies before `after` is over.
        let fits = |name: &str| name.starts_with(prefix) || prefix.starts_with(name);
        let open = |name: &str| after.as_ref().is_none_or(|after| format!("{name}@~") > *after);
        let names: Vec<String> = names.iter().filter(|name| fits(name) && open(name)).cloned().collect();
        let mut names = names.into_iter().peekable();
        // What was asked for is given out, unless somebody wants less.
        let max = request.max.map_or(usize::MAX, |max| max as usize).max(1);
        let at_once = if max == 1 { 1 } else { AT_ONCE };
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() <= max && entries.len() < PAGE && names.peek().is_some() {
            let batch: Vec<String> = names.by_ref().take(at_once).collect();
            let found: Vec<Vec<Entry>> = stream::iter(batch).map(|name| self.entries_of(name)).buffered(AT_ONCE).try_collect().await?;
            let wanted =
                |entry: &Entry| entry.key.as_str().starts_with(prefix) && after.as_ref().is_none_or(|after| *entry.key.as_str() > **after);
            entries.extend(found.into_iter().flatten().filter(wanted));
            // A page that took many requests is given out, so that its position is kept.
            if !entries.is_empty() && self.inner.selected.asks_for_repositories() {
                break;
            }
        }
        let more = entries.len() > max || names.peek().is_some();
        entries.truncate(max);
        let next = entries.last().filter(|_| more).map(|entry| entry.key.as_str().to_owned());
        Ok(ListPage { entries, next })
    }

    async fn head(&self, key: &ObjectKey, _: Option<&VersionId>) -> Result<ObjectInfo> {
        let image = self.image(key, Op::Head)?;
        self.look(key, &image).await
    }

    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        // What a listing of ours named is there.
        let source = self.inner.repositories.listed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let look = |key: ObjectKey| async move {
            let Some(image) = ImageKey::parse(&key).filter(|_| self.carries_key(&key)) else { return Ok(None) };
            let image = image.clone().renamed(self.inner.config.rename(image.name()));
            if !source && self.is_new(image.name()).await? {
                return Ok(None);
            }
            match self.look_patiently(&key, &image).await {
                Ok(info) => Ok(Some(info.entry)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                // One that cannot be looked at takes no other along: its job will tell why.
                Err(error) if is_lasting(&error) => {
                    tracing::debug!(%image, error = %error.chain(), "cannot be looked at");
                    Ok(Some(Entry { key, ..bare(&image) }))
                }
                Err(error) => Err(error),
            }
        };
        stream::iter(keys.to_vec()).map(look).buffered(AT_ONCE).try_collect().await
    }
}

impl Registry {
    /// One request for what is known of an image.
    pub(super) async fn look(&self, key: &ObjectKey, image: &ImageKey) -> Result<ObjectInfo> {
        let name = || image.name().to_owned();
        if self.inner.looks_as_writer.load(Relaxed) {
            return self.look_with(key, image, Scope::Push(name())).await;
        }
        match self.look_with(key, image, Scope::Pull(name())).await {
            // Some (quay.io) refuse to say that a repository is not there to those who ask to read it only.
            Err(error) if error.kind() == ErrorKind::Denied => {
                let again = self.look_with(key, image, Scope::Push(name())).await;
                match again {
                    Err(other) if other.kind() == ErrorKind::Denied => Err(error),
                    told => {
                        if told.as_ref().map_or_else(|e| e.kind() == ErrorKind::NotFound, |_| true) {
                            self.inner.looks_as_writer.store(true, Relaxed);
                        }
                        told
                    }
                }
            }
            told => told,
        }
    }

    /// The same among many, which are not all asked again for one that is to wait.
    async fn look_patiently(&self, key: &ObjectKey, image: &ImageKey) -> Result<ObjectInfo> {
        let mut tried = 0;
        loop {
            tried += 1;
            let looked = self.look(key, image).await;
            let throttled = looked.as_ref().err().filter(|error| error.kind() == ErrorKind::Throttled);
            let Some(pause) = throttled.and_then(|error| PATIENCE.pause(error, tried, &*self.inner.env)) else { return looked };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look_with(&self, key: &ObjectKey, image: &ImageKey, scope: Scope) -> Result<ObjectInfo> {
        if let ImageKey::Blob { digest, .. } = image {
            let answer = self.inner.wire.send(self.call(Op::Head, Action::Look, Method::HEAD, image, scope)).await?;
            return Ok(images::info(key, digest, answer.length(), None));
        }
        if matches!(image, ImageKey::Unlisted { .. }) {
            return Err(Error::new(ErrorKind::NotFound, Op::Head, self.target(image)));
        }
        let mut told = None;
        if self.inner.selected.platforms.is_empty() {
            let call = self.call(Op::Head, Action::Look, Method::HEAD, image, scope).header(header::ACCEPT, ACCEPT)?;
            let answer = self.inner.wire.send(call).await?;
            let digest = answer.text("docker-content-digest").filter(|digest| is_digest(digest)).map(str::to_owned);
            told = digest.map(|digest| (digest, answer.length(), answer.text("content-type").map(str::to_owned)));
        }
        match told {
            Some((digest, size, media_type)) if image.digest().is_none_or(|own| own == digest) => {
                Ok(images::info(key, &digest, size, media_type))
            }
            // A registry that does not tell digests, or platforms that change it: the manifest itself tells.
            _ => {
                let manifest = self.manifest(image, None, Op::Head).await?;
                Ok(images::info(key, &manifest.digest, Some(manifest.bytes.len() as u64), Some(manifest.media_type)))
            }
        }
    }

    /// The repositories that may hold what is selected, in the order of their keys.
    async fn names(&self, anew: bool) -> Result<Arc<Vec<String>>> {
        let known = || self.inner.repositories.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = known().clone().filter(|_| !anew) {
            return Ok(names);
        }
        let selected = &self.inner.selected;
        let mut names: BTreeSet<String> = selected.named.keys().cloned().collect();
        if selected.asks_for_repositories() {
            let all = self.catalog(MAX_PAGES).await?.0;
            names.extend(all.into_iter().map(|name| self.inner.config.rename_back(&name)).filter(|name| selected.takes_repository(name)));
        }
        // Found out anew for each listing.
        self.inner.without_referrers.store(false, Relaxed);
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort_by_cached_key(|name| format!("{name}:"));
        let names = Arc::new(names);
        *known() = Some(Arc::clone(&names));
        Ok(names)
    }

    /// All repositories of the registry, or those of so many pages; and whether these are all.
    async fn catalog(&self, most_pages: usize) -> Result<(Vec<String>, bool)> {
        if let Some(control) = &self.inner.control {
            return Ok((control.repositories().await?, true));
        }
        let mut all = Vec::new();
        let list =
            Listed { path: format!("/v2/_catalog?n={PAGE}"), accept: None, scope: Scope::Catalog, called: "_catalog".into(), most_pages };
        let whole = self.pages(list, |page: Catalog| {
            // A name that is none can be asked for nothing.
            all.extend(page.repositories.unwrap_or_default().into_iter().filter(|name| is_name(name)));
        });
        let whole = whole.await?;
        Ok((all, whole))
    }

    /// All tags of a repository of the registry. What is no tag is left out. `NotFound` where the repository does not exist.
    pub(super) async fn tags_of(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut tags = BTreeSet::new();
        let path = format!("/v2/{name}/tags/list?n={PAGE}");
        let list =
            Listed { path, scope: Scope::Pull(name.to_owned()), accept: None, called: format!("{name}: its tags"), most_pages: MAX_PAGES };
        self.pages(list, |page: TagList| tags.extend(page.tags.unwrap_or_default().into_iter().filter(|tag| is_tag(tag)))).await?;
        Ok(tags)
    }

    /// Follows a list from page to page (<https://www.rfc-editor.org/rfc/rfc5988>); whether that was all of it. `Invalid` for one
    /// without an end.
    async fn pages<T: for<'de> Deserialize<'de>>(&self, list: Listed, mut take: impl FnMut(T)) -> Result<bool> {
        let Listed { path: mut to, accept, scope, called, most_pages } = list;
        let target = format!("{}/{called}", self.inner.config.registry);
        for _ in 0..most_pages {
            let call = Call::new(Op::List, Action::List, Method::GET, &*to, scope.clone(), &*target);
            let call = match accept {
                Some(accept) => call.header(header::ACCEPT, accept)?,
                None => call,
            };
            let answer = self.inner.wire.send(call).await?;
            let next = answer.headers.get_all(header::LINK).iter().filter_map(|v| v.to_str().ok()).find_map(|link| next_of(link, &to));
            let page = answer.whole(MAX_PAGE).await?;
            take(serde_json::from_slice(&page).map_err(|e| Error::new(ErrorKind::Unavailable, Op::List, &*target).with_source(e))?);
            match next.filter(|next| *next != to) {
                Some(next) => to = next,
                None => return Ok(true),
            }
        }
        if most_pages < MAX_PAGES {
            return Ok(false);
        }
        Err(Error::new(ErrorKind::Invalid, Op::List, target).with_source("its list has no end"))
    }

    /// What is selected of one repository, by key. Etags are given where they cost nothing.
    async fn entries_of(&self, name: String) -> Result<Vec<Entry>> {
        match self.listed_of(&name).await {
            // One that may not be listed takes nothing else along (R6): its job fails, and tells why.
            Err(error) if is_lasting(&error) => {
                tracing::warn!(repository = name, error = %error.chain(), "cannot be listed");
                self.inner.repositories.unlisted().insert(name.clone());
                Ok(vec![bare(&ImageKey::Unlisted { name })])
            }
            listed => {
                self.inner.repositories.unlisted().remove(&name);
                listed
            }
        }
    }

    pub(super) async fn listed_of(&self, name: &str) -> Result<Vec<Entry>> {
        let selected = &self.inner.selected;
        let here = self.inner.config.rename(name);
        let mut found: BTreeMap<ImageKey, Entry> = BTreeMap::new();
        let tag = |tag: String| ImageKey::Tag { name: name.to_owned(), tag };
        let manifest = |digest: &str| ImageKey::Manifest { name: name.to_owned(), digest: digest.to_owned() };
        let mut add = |key: ImageKey, digest: Option<&str>| {
            let etag = digest.map(ETag::new).or_else(|| key.etag());
            found.insert(key.clone(), Entry { etag, ..bare(&key) });
        };
        let named = selected.named.get(name);
        for digest in named.into_iter().flat_map(|n| &n.digests) {
            add(manifest(digest), None);
        }
        let lists = selected.takes_tags_of(name);
        let mut all = BTreeSet::new();
        if let Some(control) = self.inner.control.as_ref().filter(|_| lists) {
            // It tells digests, and with platforms they are not what is compared.
            let known = |digest: &str| selected.platforms.is_empty().then(|| digest.to_owned());
            let images = self.of_repository(name, control.images(&here).await)?;
            let digests: BTreeMap<&String, &String> = images.iter().flat_map(|i| i.tags.iter().map(|tag| (tag, &i.digest))).collect();
            all = digests.keys().map(|tag| (*tag).clone()).collect();
            for taken in selected.tags(name, all.clone()) {
                let digest = digests.get(&taken).and_then(|digest| known(digest));
                add(tag(taken), digest.as_deref());
            }
            for image in images.iter().filter(|image| image.tags.is_empty() && selected.untagged) {
                add(manifest(&image.digest), None);
            }
        } else {
            if lists || (selected.referrers && named.is_some()) {
                all = self.of_repository(name, self.tags_of(&here).await)?;
            }
            for taken in selected.tags(name, if lists { all.clone() } else { BTreeSet::new() }) {
                add(tag(taken), None);
            }
        }
        let mut entries: Vec<Entry> = found.into_values().collect();
        if selected.referrers {
            entries = self.with_referrers(name, &here, entries, &all).await?;
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries.dedup_by(|a, b| a.key == b.key);
        Ok(entries)
    }

    /// What was listed of a repository. One that went has nothing; one that somebody names, and is not there, is a mistake.
    fn of_repository<T: Default>(&self, name: &str, listed: Result<T>) -> Result<T> {
        match listed {
            Err(error) if error.kind() == ErrorKind::NotFound && self.inner.selected.names(name) => {
                let target = format!("{}/{name}", self.inner.config.registry);
                let why = "the repository is named in the selection, and not there, or has no tag";
                Err(Error::new(ErrorKind::Invalid, Op::List, target).with_source(why))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
            listed => listed,
        }
    }

    /// Adds what refers to these images, to those under them, and to each other.
    async fn with_referrers(&self, name: &str, here: &str, entries: Vec<Entry>, tags: &BTreeSet<String>) -> Result<Vec<Entry>> {
        let looks = stream::iter(entries).map(|entry| async move {
            let image = self.image(&entry.key, Op::Head)?;
            match self.look(&entry.key, &image).await {
                Ok(info) => {
                    let index = info.attributes.content_type.as_deref().is_none_or(is_index);
                    let subject = info.entry.etag.as_ref().map(|digest| Subject { digest: digest.as_str().to_owned(), index });
                    Ok((info.entry, subject))
                }
                // Its own job will tell.
                Err(error) if error.kind() == ErrorKind::NotFound || is_lasting(&error) => Ok((entry, None)),
                Err(error) => Err(error),
            }
        });
        let looked: Vec<(Entry, Option<Subject>)> = looks.buffered(AT_ONCE).try_collect().await?;
        let (mut known, mut subjects) = (BTreeMap::new(), Vec::new());
        for (entry, subject) in looked {
            known.insert(entry.key.clone(), entry);
            subjects.extend(subject);
        }
        let mut seen: HashSet<String> = HashSet::new();
        while !subjects.is_empty() {
            subjects.retain(|subject| seen.insert(subject.digest.clone()));
            let around = stream::iter(subjects).map(|subject| self.around(name, here, subject, tags)).buffered(AT_ONCE);
            let found: Vec<(Vec<Entry>, Vec<Subject>)> = around.try_collect().await?;
            subjects = Vec::new();
            for (entries, more) in found {
                for entry in entries {
                    known.entry(entry.key.clone()).or_insert(entry);
                }
                subjects.extend(more);
            }
        }
        Ok(known.into_values().collect())
    }

    /// What refers to a manifest, and the manifests to which more may refer: those under it, and those.
    async fn around(&self, name: &str, here: &str, subject: Subject, tags: &BTreeSet<String>) -> Result<(Vec<Entry>, Vec<Subject>)> {
        let (mut entries, mut subjects) = (Vec::new(), Vec::new());
        if subject.index {
            let image = ImageKey::Manifest { name: here.to_owned(), digest: subject.digest.clone() };
            subjects.extend(self.manifests_under(&image).await?);
        }
        for referrer in self.referrers_of(here, &subject.digest).await?.unwrap_or_default() {
            let key = ImageKey::Manifest { name: name.to_owned(), digest: referrer.digest.clone() };
            entries.push(Entry { etag: key.etag(), ..bare(&key) });
            subjects.push(Subject { digest: referrer.digest, index: is_index(&referrer.media_type) });
        }
        // The tags that stand for the API, and those of cosign.
        let stem = subject.digest.replace(':', "-");
        for tag in tags.range(stem.clone()..).take_while(|tag| tag.starts_with(&stem)) {
            if *tag != stem && !tag[stem.len()..].starts_with('.') {
                continue;
            }
            let key = ImageKey::Tag { name: name.to_owned(), tag: tag.clone() };
            entries.push(bare(&key));
            if *tag == stem {
                // What it lists comes with it; what refers to that, in turn, is to be found.
                subjects.extend(self.manifests_under(&key.renamed(here.to_owned())).await?);
            }
        }
        Ok((entries, subjects))
    }

    /// The manifests that an index lists, whatever platforms are selected; none where it cannot be read, which its own job tells.
    async fn manifests_under(&self, image: &ImageKey) -> Result<Vec<Subject>> {
        match self.fetch(image, Op::List).await.and_then(|manifest| manifest.children()) {
            Ok(children) => {
                let manifests = children.into_iter().filter(|child| child.is_manifest);
                Ok(manifests.map(|child| Subject { index: child.is_index, digest: child.digest }).collect())
            }
            Err(error) if error.kind() == ErrorKind::NotFound || is_lasting(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// What the registry's API says that refers to a digest; `None` where it has no such API.
    pub(super) async fn referrers_of(&self, name: &str, digest: &str) -> Result<Option<Vec<Referrer>>> {
        if self.inner.without_referrers.load(Relaxed) {
            return Ok(None);
        }
        if let Some(all) = self.asked_for_referrers(name, digest).await? {
            return Ok(Some(all));
        }
        // The page of a gateway is no word of the registry: that must answer in between, and the page come again.
        let image = ImageKey::Manifest { name: name.to_owned(), digest: digest.to_owned() };
        match self.look(&image.to_key(), &image).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(Vec::new())),
            looked => drop(looked?),
        }
        if let Some(all) = self.asked_for_referrers(name, digest).await? {
            return Ok(Some(all));
        }
        tracing::info!(registry = self.inner.config.registry, "it has no referrers API: tags stand for it");
        self.inner.without_referrers.store(true, Relaxed);
        Ok(None)
    }

    async fn asked_for_referrers(&self, name: &str, digest: &str) -> Result<Option<Vec<Referrer>>> {
        let mut all = Vec::new();
        let path = format!("/v2/{name}/referrers/{digest}");
        let called = format!("{name}@{digest}: its referrers");
        let list = Listed { path, accept: Some(OCI_INDEX), scope: Scope::Pull(name.to_owned()), called, most_pages: MAX_PAGES };
        match self.pages(list, |page: Referrers| all.extend(page.manifests.into_iter().filter(|r| is_digest(&r.digest)))).await {
            Ok(_) => Ok(Some(all)),
            // What went meanwhile says nothing of the registry.
            Err(error) if matches!(error.code(), Some("NAME_UNKNOWN" | "MANIFEST_UNKNOWN")) => Ok(Some(Vec::new())),
            // An empty list is an answer; no page at all is a registry without the API.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) || error.code() == Some("404") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A repository is there now.
    pub(super) async fn exists(&self, name: &str) {
        let mut present = self.inner.repositories.present.lock().await;
        if let Some(names) = present.as_mut().and_then(|present| present.names.as_mut()).filter(|names| !names.contains(name)) {
            names.insert(name.to_owned());
        }
    }

    /// Whether a repository is known not to be there, so that nothing needs to be looked for in it.
    pub(super) async fn is_new(&self, name: &str) -> Result<bool> {
        let mut present = self.inner.repositories.present.lock().await;
        if let Some(Present { asked, names }) = &*present
            && asked.elapsed() < KNOWN
        {
            return Ok(names.as_ref().is_some_and(|names| !names.contains(name)));
        }
        // Who may not list, or has too much to be listed for this, looks.
        let names = match self.catalog(1).await {
            Ok((names, true)) => Some(names.into_iter().collect::<HashSet<_>>()),
            Ok((_, false)) => None,
            // Who is to wait waits; otherwise nothing depends on it but the number of requests.
            Err(error) if error.kind() == ErrorKind::Throttled => return Err(error),
            Err(error) => {
                tracing::debug!(registry = self.inner.config.registry, error = %error.chain(), "repositories are not listed");
                None
            }
        };
        let new = names.as_ref().is_some_and(|names| !names.contains(name));
        *present = Some(Present { asked: Instant::now(), names });
        Ok(new)
    }
}

/// Whether an error is of what was asked for, and will stay.
fn is_lasting(error: &Error) -> bool {
    (!error.is_retryable() && error.kind() != ErrorKind::CredentialsExpired) || error.kind() == ErrorKind::Corrupt
}

fn bare(image: &ImageKey) -> Entry {
    Entry { size: None, ..Entry::new(image.to_key(), 0, None) }
}

/// The target of `rel="next"`: a path of this registry, also where only its query is given.
fn next_of(link: &str, asked: &str) -> Option<String> {
    let target = link.split(',').find_map(|one| {
        let (target, parameters) = one.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|p| matches!(p.trim().to_ascii_lowercase().as_str(), "rel=\"next\"" | "rel=next"));
        next.then_some(target)
    })?;
    let path = asked.split('?').next().unwrap_or(asked);
    Some(if target.starts_with('?') { format!("{path}{target}") } else { target.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_says() {
        let asked = "/v2/_catalog?n=2";
        assert_eq!(next_of("</v2/_catalog?last=a%2Fa&n=2>; rel=\"next\"", asked).as_deref(), Some("/v2/_catalog?last=a%2Fa&n=2"));
        assert_eq!(next_of("<https://r/v2/x?last=a>;rel=next", asked).as_deref(), Some("https://r/v2/x?last=a"));
        assert_eq!(next_of("<?last=a>; rel=\"next\"", asked).as_deref(), Some("/v2/_catalog?last=a"));
        assert_eq!(next_of("</x>; rel=\"prev\", </y>; rel=\"next\"", asked).as_deref(), Some("/y"));
        for none in ["", "</x>", "<", "</x>; rel=\"prev\"", "rel=\"next\""] {
            assert_eq!(next_of(none, asked), None, "{none}");
        }
    }
}
