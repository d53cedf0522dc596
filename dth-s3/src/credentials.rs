//! Where key pairs come from, and when they are asked for again.

#[cfg(feature = "aws-config")]
mod aws;

use crate::config::CredentialsConfig;
use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use dth_core::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
    http::HttpSettings,
};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout};

/// Temporary credentials are renewed so long before they expire.
const EARLY: Duration = Duration::from_secs(300);

/// A chain is asked again at most so often because a store refused what it gave: what one object is refused for may be refused
/// for all of them.
const AGAIN: Duration = Duration::from_secs(60);

/// Longest time to ask for credentials: roles and secrets take several calls.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to sign with.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) identity: Identity,
    /// Grows when an identity is dropped because it was refused.
    pub(crate) generation: u64,
}

/// So long nobody is asked again for what was not given, or was given for less than [`EARLY`]: all requests take the same answer.
const ASKED: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Known {
    identity: Option<(Identity, Option<SystemTime>)>,
    generation: u64,
    /// When the last one was dropped.
    dropped: Option<Instant>,
    /// When somebody was last asked.
    asked: Option<Instant>,
    /// Why nothing was given.
    failed: Option<(ErrorKind, String)>,
}

/// The identity of one side. `None` for anonymous access.
pub(crate) struct Identities {
    config: CredentialsConfig,
    env: SharedEnv,
    known: Mutex<Known>,
    /// Held by whoever renews.
    renewal: tokio::sync::Mutex<()>,
    region: String,
    /// How those who know credentials are reached.
    way: HttpSettings,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Identities {
    pub(crate) fn new(config: CredentialsConfig, region: &str, way: HttpSettings, env: SharedEnv) -> Self {
        Self { config, env, known: Mutex::default(), renewal: tokio::sync::Mutex::default(), region: region.to_owned(), way }
    }

    /// The identity to sign with; renewed before it expires, by one caller. The others use what is known meanwhile, and wait
    /// where that has expired.
    pub(crate) async fn current(&self) -> Result<Option<Current>> {
        if self.config == CredentialsConfig::Anonymous {
            return Ok(None);
        }
        if let Some(current) = self.lasting(EARLY) {
            return Ok(Some(current));
        }
        let _turn = match (self.renewal.try_lock(), self.lasting(Duration::ZERO)) {
            (Ok(turn), _) => turn,
            (Err(_), Some(current)) => return Ok(Some(current)),
            (Err(_), None) => self.renewal.lock().await,
        };
        if let Some(current) = self.lasting(EARLY) {
            return Ok(Some(current));
        }
        if self.known().asked.is_some_and(|at| at.elapsed() < ASKED) {
            if let Some(current) = self.lasting(Duration::ZERO) {
                return Ok(Some(current));
            }
            if let Some((kind, why)) = &self.known().failed {
                return Err(Error::new(*kind, Op::Configure, self.config.name()).with_source(why.clone()));
            }
        }
        // Rare, and large: it must not swell the future of every request.
        let loading = Box::pin(load(&self.config, &self.region, &self.way, self.env.now().into()));
        let loaded = match timeout(PATIENCE, loading).await {
            Ok(loaded) => loaded,
            Err(late) => Err(Error::new(ErrorKind::Unavailable, Op::Configure, self.config.name()).with_source(late)),
        };
        let mut known = self.known();
        known.asked = self.config.may_change().then(Instant::now);
        match loaded {
            Ok(credentials) => {
                let expiry = credentials.expiry();
                let identity: Identity = credentials.into();
                known.identity = Some((identity.clone(), expiry));
                known.failed = None;
                Ok(Some(Current { identity, generation: known.generation }))
            }
            Err(error) => {
                known.failed = Some((error.kind(), error.chain()));
                drop(known);
                let Some(current) = self.lasting(Duration::ZERO) else { return Err(error) };
                tracing::warn!(error = %error.chain(), "credentials could not be renewed yet; those known are used until they expire");
                Ok(Some(current))
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, where it lasts for longer than this.
    fn lasting(&self, longer: Duration) -> Option<Current> {
        let known = self.known();
        let (identity, expiry) = known.identity.as_ref()?;
        let now = SystemTime::from(self.env.now());
        let lasts = expiry.is_none_or(|at| at > now + longer);
        lasts.then(|| Current { identity: identity.clone(), generation: known.generation })
    }

    /// The store refused an identity of this generation: whether there may be another one by now.
    pub(crate) async fn refused(&self, generation: u64) -> bool {
        if !self.config.may_change() {
            return false;
        }
        // What is just being read may be the refused one.
        let _turn = self.renewal.lock().await;
        let mut known = self.known();
        if known.generation != generation {
            return true;
        }
        if known.dropped.is_some_and(|at| at.elapsed() < AGAIN) {
            return false;
        }
        *known = Known { generation: generation + 1, dropped: Some(Instant::now()), ..Known::default() };
        true
    }
}

#[cfg_attr(not(feature = "aws-config"), expect(clippy::unused_async, reason = "only AWS is asked"))]
async fn load(config: &CredentialsConfig, region: &str, way: &HttpSettings, now: SystemTime) -> Result<Credentials> {
    match config {
        CredentialsConfig::Anonymous => Err(missing("anonymous access has no key pair")),
        CredentialsConfig::Environment => from_environment("AWS"),
        CredentialsConfig::EnvironmentPrefix { prefix } => from_environment(prefix),
        CredentialsConfig::Static { access_key_id, secret_access_key, session_token } => Ok(Credentials::new(
            access_key_id.clone(),
            secret_access_key.expose(),
            session_token.as_ref().map(|t| t.expose().to_owned()),
            None,
            "static",
        )),
        #[cfg(feature = "aws-config")]
        config => aws::load(config, region, way, now).await,
        #[cfg(not(feature = "aws-config"))]
        CredentialsConfig::DefaultChain { .. } | CredentialsConfig::AssumeRole { .. } | CredentialsConfig::Secret { .. } => {
            let _ = (region, way, now);
            Err(missing("build dth-s3 with feature `aws-config` (or `secrets-manager`) to use the default chain, roles and secrets"))
        }
    }
}

fn from_environment(prefix: &str) -> Result<Credentials> {
    let read = |name: &str| std::env::var(format!("{prefix}_{name}")).ok().filter(|v| !v.is_empty());
    let need = |name: &str| read(name).ok_or_else(|| missing(&format!("the environment variable {prefix}_{name} is not set")));
    Ok(Credentials::new(need("ACCESS_KEY_ID")?, need("SECRET_ACCESS_KEY")?, read("SESSION_TOKEN"), None, "environment"))
}

fn missing(why: &str) -> Error {
    Error::new(ErrorKind::CredentialsExpired, Op::Configure, "credentials").with_source(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dth_core::{
        env::{Env, SystemEnv},
        secret::Secret,
    };
    use std::sync::Arc;

    /// Nobody is asked: a test has no cloud to ask.
    #[tokio::test(start_paused = true)]
    async fn what_was_just_given_or_refused_is_not_asked_for_again() {
        let secret = CredentialsConfig::Secret { name: "s".into(), region: None, endpoint: None };
        let identities = Identities::new(secret, "us-east-1", HttpSettings::default(), Arc::new(SystemEnv));
        let (short, soon) = lasting("id", 60);
        *identities.known() = Known { identity: Some((short, soon)), asked: Some(Instant::now()), ..Known::default() };
        assert!(identities.current().await.unwrap().is_some(), "used to the end of its time");
        let why = Some((ErrorKind::CredentialsExpired, "no such secret".to_owned()));
        *identities.known() = Known { asked: Some(Instant::now()), failed: why, ..Known::default() };
        for _ in 0..3 {
            assert!(identities.current().await.err().unwrap().chain().contains("no such secret"));
        }
    }

    /// An identity, and when it expires.
    fn lasting(id: &str, seconds: u64) -> (Identity, Option<SystemTime>) {
        let until = SystemTime::from(SystemEnv.now()) + Duration::from_secs(seconds);
        (Credentials::new(id, "canary", None, Some(until), "test").into(), Some(until))
    }

    fn id_of(current: Option<Current>) -> String {
        current.unwrap().identity.data::<Credentials>().unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn what_expires_soon_is_renewed_before() {
        let new = CredentialsConfig::Static { access_key_id: "new".into(), secret_access_key: Secret::new("canary"), session_token: None };
        let identities = Identities::new(new, "us-east-1", HttpSettings::default(), Arc::new(SystemEnv));
        for (seconds, used) in [(400, "old"), (200, "new"), (0, "new")] {
            *identities.known() = Known { identity: Some(lasting("old", seconds)), ..Known::default() };
            assert_eq!(id_of(identities.current().await.unwrap()), used, "{seconds} s before its end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_hangs_keeps_nobody_from_using_what_is_known() {
        let secret = CredentialsConfig::Secret { name: "s".into(), region: None, endpoint: None };
        let identities = Identities::new(secret, "us-east-1", HttpSettings::default(), Arc::new(SystemEnv));
        let _hangs = identities.renewal.lock().await;
        *identities.known() = Known { identity: Some(lasting("id", 60)), ..Known::default() };
        assert_eq!(id_of(identities.current().await.unwrap()), "id");
        *identities.known() = Known { identity: Some(lasting("id", 0)), ..Known::default() };
        assert!(timeout(Duration::from_secs(60), identities.current()).await.is_err(), "what has expired is not used");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_chain_is_asked_again_once_a_minute() {
        let of = |config| Identities::new(config, "us-east-1", HttpSettings::default(), Arc::new(SystemEnv));
        let chain = of(CredentialsConfig::DefaultChain { profile: None });
        assert!(chain.refused(0).await);
        assert!(chain.refused(0).await, "others have used the same: there is a newer one");
        assert!(!chain.refused(1).await, "it was read a moment ago");
        tokio::time::advance(AGAIN).await;
        assert!(chain.refused(1).await);
        assert!(!of(CredentialsConfig::Environment).refused(0).await, "it cannot change");
        let secret = CredentialsConfig::Secret { name: "s".into(), region: None, endpoint: None };
        assert!(of(secret).refused(0).await);
    }
}
