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
    time::{Duration, SystemTime},
};
use tokio::{sync::RwLock, time::Instant};

/// Temporary credentials are renewed so long before they expire.
const EARLY: Duration = Duration::from_secs(300);

/// A chain is asked again at most so often because a store refused what it gave: what one object is refused for may be refused
/// for all of them.
const AGAIN: Duration = Duration::from_secs(60);

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
    known: RwLock<Known>,
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
        Self { config, env, known: RwLock::default(), region: region.to_owned(), way }
    }

    /// The identity to sign with; renewed before it expires, by one caller while the others wait.
    pub(crate) async fn current(&self) -> Result<Option<Current>> {
        if self.config == CredentialsConfig::Anonymous {
            return Ok(None);
        }
        if let Some(current) = self.fresh(&*self.known.read().await) {
            return Ok(Some(current));
        }
        let mut known = self.known.write().await;
        if let Some(current) = self.fresh(&known) {
            return Ok(Some(current));
        }
        if known.asked.is_some_and(|at| at.elapsed() < ASKED) {
            if let Some(current) = self.still_good(&known) {
                return Ok(Some(current));
            }
            if let Some((kind, why)) = &known.failed {
                return Err(Error::new(*kind, Op::Configure, "credentials").with_source(why.clone()));
            }
        }
        known.asked = self.config.may_change().then(Instant::now);
        // Rare, and large: it must not swell the future of every request.
        match Box::pin(load(&self.config, &self.region, &self.way, self.env.now().into())).await {
            Ok(credentials) => {
                let expiry = credentials.expiry();
                let identity: Identity = credentials.into();
                known.identity = Some((identity.clone(), expiry));
                known.failed = None;
                Ok(Some(Current { identity, generation: known.generation }))
            }
            Err(error) => {
                known.failed = Some((error.kind(), error.chain()));
                let Some(current) = self.still_good(&known) else { return Err(error) };
                tracing::warn!(error = %error.chain(), "credentials could not be renewed yet; those known are used until they expire");
                Ok(Some(current))
            }
        }
    }

    /// What is known, to the last second of its time.
    fn still_good(&self, known: &Known) -> Option<Current> {
        self.fresh_for(known, Duration::ZERO)
    }

    /// The store refused an identity of this generation: whether there may be another one by now.
    pub(crate) async fn refused(&self, generation: u64) -> bool {
        if !self.config.may_change() {
            return false;
        }
        let mut known = self.known.write().await;
        if known.generation != generation {
            return true;
        }
        if known.dropped.is_some_and(|at| at.elapsed() < AGAIN) {
            return false;
        }
        *known = Known { generation: generation + 1, dropped: Some(Instant::now()), ..Known::default() };
        true
    }

    fn fresh(&self, known: &Known) -> Option<Current> {
        self.fresh_for(known, EARLY)
    }

    fn fresh_for(&self, known: &Known, longer: Duration) -> Option<Current> {
        let (identity, expiry) = known.identity.as_ref()?;
        let now = SystemTime::from(self.env.now());
        let lasts = expiry.is_none_or(|at| at > now + longer);
        lasts.then(|| Current { identity: identity.clone(), generation: known.generation })
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
    use dth_core::env::{Env, SystemEnv};
    use std::sync::Arc;

    /// Nobody is asked: a test has no cloud to ask.
    #[tokio::test(start_paused = true)]
    async fn what_was_just_given_or_refused_is_not_asked_for_again() {
        let secret = CredentialsConfig::Secret { name: "s".into(), region: None, endpoint: None };
        let identities = Identities::new(secret, "us-east-1", HttpSettings::default(), Arc::new(SystemEnv));
        let soon = SystemTime::from(SystemEnv.now()) + Duration::from_secs(60);
        let short = Credentials::new("id", "canary", None, Some(soon), "test").into();
        *identities.known.write().await = Known { identity: Some((short, Some(soon))), asked: Some(Instant::now()), ..Known::default() };
        assert!(identities.current().await.unwrap().is_some(), "used to the end of its time");
        let why = Some((ErrorKind::CredentialsExpired, "no such secret".to_owned()));
        *identities.known.write().await = Known { asked: Some(Instant::now()), failed: why, ..Known::default() };
        for _ in 0..3 {
            assert!(identities.current().await.err().unwrap().chain().contains("no such secret"));
        }
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
