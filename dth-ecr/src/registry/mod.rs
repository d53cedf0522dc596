//! A registry as source and sink.

mod blobs;
mod index;
mod sink;
mod source;

use crate::{
    config::RegistryConfig,
    credentials::LoginSource,
    images,
    key::ImageKey,
    manifest::{ACCEPT, MAX_MANIFEST, Manifest},
    selection::Selected,
    wire::{Action, Call, Scope, Wire},
};
use async_trait::async_trait;
use blobs::Blobs;
use bytes::Bytes;
use dth_core::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    object::ObjectKey,
    state::StateStore,
};
use http::{Method, header};
use index::Repositories;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

/// What a registry can be asked beside the distribution protocol.
#[async_trait]
pub trait ControlPlane: fmt::Debug + Send + Sync + 'static {
    /// All repositories, in any order.
    async fn repositories(&self) -> Result<Vec<String>>;

    /// All images of a repository, those without a tag included. `NotFound` where there is no such repository.
    async fn images(&self, repository: &str) -> Result<Vec<ListedImage>>;

    /// Whether repositories are made that do not exist.
    fn makes_repositories(&self) -> bool;

    /// Makes a repository where it does not exist, if repositories are made.
    async fn ensure(&self, repository: &str) -> Result<()>;

    /// Whether an image that is not given out is kept all the same, and can be restored.
    async fn is_archived(&self, _repository: &str, _reference: &str) -> Result<bool> {
        Ok(false)
    }

    /// Removes a tag, or an image by its digest with all its tags. What is not there is no error.
    async fn delete(&self, repository: &str, reference: &str) -> Result<()>;
}

/// An image in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// `sha256:…`.
    pub digest: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// A container registry. Clones share its connections, tokens and what it knows.
///
/// Keys are [`ImageKey`]s. Etags are digests, and bytes are never changed: what is at the destination has the digest of the source.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    wire: Wire,
    config: RegistryConfig,
    selected: Selected,
    control: Option<Arc<dyn ControlPlane>>,
    manifests: Manifests,
    env: SharedEnv,
    blobs: Blobs,
    repositories: Repositories,
    /// It has no referrers API.
    without_referrers: AtomicBool,
    /// It tells what is there only to those who may write.
    looks_as_writer: AtomicBool,
    /// One change of a referrers' tag at a time.
    referrers: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.inner.config.registry)
    }
}

/// Puts a registry together.
#[derive(Debug, Default)]
pub struct RegistryBuilder {
    config: RegistryConfig,
    logins: Option<Arc<dyn LoginSource>>,
    control: Option<Arc<dyn ControlPlane>>,
    notes: Option<Arc<dyn StateStore>>,
    env: Option<SharedEnv>,
}

impl RegistryBuilder {
    /// Asks with logins from elsewhere than the configuration.
    pub fn with_logins(mut self, logins: Arc<dyn LoginSource>) -> Self {
        self.logins = Some(logins);
        self
    }

    /// Uses an API of the registry's own for what the distribution protocol lacks.
    pub fn with_control_plane(mut self, control: Arc<dyn ControlPlane>) -> Self {
        self.control = Some(control);
        self
    }

    /// Remembers there which blobs the registry has, between runs and workers.
    pub fn with_notes(mut self, state: Arc<dyn StateStore>) -> Self {
        self.notes = Some(state);
        self
    }

    /// Sets clock and randomness.
    pub fn with_env(mut self, env: SharedEnv) -> Self {
        self.env = Some(env);
        self
    }

    /// The registry; nothing is sent yet. `Invalid` when a setting is.
    pub fn build(self) -> Result<Registry> {
        let Self { config, logins, control, notes, env } = self;
        config.validate()?;
        let env = env.unwrap_or_else(|| Arc::new(SystemEnv));
        Ok(Registry {
            inner: Arc::new(Inner {
                wire: Wire::new(&config, logins)?,
                selected: Selected::new(&config.select, &config.registry)?,
                blobs: Blobs::new(&config.registry, notes, Arc::clone(&env)),
                env,
                config,
                control,
                manifests: Manifests::default(),
                repositories: Repositories::default(),
                without_referrers: AtomicBool::new(false),
                looks_as_writer: AtomicBool::new(false),
                referrers: tokio::sync::Mutex::default(),
            }),
        })
    }
}

impl Registry {
    /// A registry with the credentials of its configuration. `Invalid` when a setting is.
    pub fn new(config: RegistryConfig) -> Result<Self> {
        Self::builder(config).build()
    }

    /// Begins to put a registry together.
    pub fn builder(config: RegistryConfig) -> RegistryBuilder {
        RegistryBuilder { config, ..RegistryBuilder::default() }
    }

    /// The image that a key names here, by the name that its repository has here.
    fn image(&self, key: &ObjectKey, op: Op) -> Result<ImageKey> {
        let image = images::image_of(key, op)?;
        if !self.carries_key(key) {
            let why = "another repository has this name at the destination, or it is none";
            return Err(Error::new(ErrorKind::Unrepresentable, op, key.to_string()).with_source(why));
        }
        let name = self.inner.config.rename(image.name());
        Ok(image.renamed(name))
    }

    /// What the engine calls the repository of an image here.
    fn asked(&self, image: &ImageKey) -> String {
        self.inner.config.rename_back(image.name())
    }

    fn carries_key(&self, key: &ObjectKey) -> bool {
        let config = &self.inner.config;
        // What another repository is renamed to cannot be brought under its own name.
        let there = |image: &ImageKey| config.rename(image.name());
        ImageKey::parse(key).is_some_and(|image| crate::key::is_name(&there(&image)) && config.rename_back(&there(&image)) == image.name())
    }

    /// What errors call an image.
    fn target(&self, image: &ImageKey) -> String {
        format!("{}/{image}", self.inner.config.registry)
    }

    fn call(&self, op: Op, action: Action, method: Method, image: &ImageKey, scope: Scope) -> Call {
        let kind = if matches!(image, ImageKey::Blob { .. }) { "blobs" } else { "manifests" };
        Call::new(op, action, method, format!("/v2/{}/{kind}/{}", image.name(), image.reference()), scope, self.target(image))
    }

    /// A manifest, whole and checked: from this process's memory where its digest is known and it is there. Of what is selected,
    /// with the platforms that are.
    async fn manifest(&self, image: &ImageKey, digest: Option<&str>, op: Op) -> Result<Manifest> {
        if let Some(known) = digest.or(image.digest()).and_then(|digest| self.inner.manifests.get(digest)) {
            return Ok(known);
        }
        // A digest that platforms were left out of is nobody's but ours: its tag has to be asked.
        let platforms = &self.inner.selected.platforms;
        let asked = match digest {
            Some(digest) if platforms.is_empty() => ImageKey::Manifest { name: image.name().to_owned(), digest: digest.to_owned() },
            _ => image.clone(),
        };
        let manifest = self.fetch(&asked, op).await?.of_platforms(platforms, &self.target(image))?;
        if let Some(digest) = digest.filter(|digest| *digest != manifest.digest) {
            let why = format!("it is {} now, and not {digest}", manifest.digest);
            return Err(Error::new(ErrorKind::Precondition, op, self.target(image)).with_source(why));
        }
        self.inner.manifests.keep(manifest.clone());
        Ok(manifest)
    }

    /// A manifest as the registry has it.
    async fn fetch(&self, image: &ImageKey, op: Op) -> Result<Manifest> {
        let scope = Scope::Pull(image.name().to_owned());
        let call = self.call(op, Action::GetManifest, Method::GET, image, scope).header(header::ACCEPT, ACCEPT)?;
        let answer = self.inner.wire.send(call).await?;
        let media_type = answer.text("content-type").map(str::to_owned);
        let told = answer.text("docker-content-digest").map(str::to_owned);
        let bytes: Bytes = answer.whole(MAX_MANIFEST).await?;
        // What the registry says of it must be so, too.
        let wanted = image.digest().map(str::to_owned).or(told);
        Manifest::new(bytes, media_type.as_deref(), wanted.as_deref(), &self.target(image))
    }
}

/// Most bytes of manifests that are kept to be read again.
const KEPT: usize = 8 << 20;

/// Manifests between being asked for their children and being sent.
#[derive(Debug, Default)]
struct Manifests {
    kept: Mutex<(HashMap<String, Manifest>, VecDeque<String>, usize)>,
}

impl Manifests {
    fn get(&self, digest: &str) -> Option<Manifest> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0.get(digest).cloned()
    }

    fn keep(&self, manifest: Manifest) {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (all, order, bytes) = &mut *kept;
        if all.contains_key(&manifest.digest) {
            return;
        }
        *bytes += manifest.bytes.len();
        order.push_back(manifest.digest.clone());
        all.insert(manifest.digest.clone(), manifest);
        while *bytes > KEPT
            && let Some(oldest) = order.pop_front()
        {
            *bytes -= all.remove(&oldest).map_or(0, |m| m.bytes.len());
        }
    }
}
