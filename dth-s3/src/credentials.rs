//! Where key pairs come from, and when they are asked for again.

use crate::config::CredentialsConfig;
use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use dth_core::{
    env::SharedEnv,
    error::{Error, ErrorKind, Op, Result},
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

#[derive(Default)]
struct Known {
    identity: Option<(Identity, Option<SystemTime>)>,
    generation: u64,
    /// When the last one was dropped.
    dropped: Option<Instant>,
}

/// The identity of one side. `None` for anonymous access.
pub(crate) struct Identities {
    config: CredentialsConfig,
    env: SharedEnv,
    known: RwLock<Known>,
    #[cfg_attr(not(feature = "aws-config"), expect(dead_code, reason = "only the default chain asks for it"))]
    region: String,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Identities {
    pub(crate) fn new(config: CredentialsConfig, region: &str, env: SharedEnv) -> Self {
        Self { config, env, known: RwLock::default(), region: region.to_owned() }
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
        let credentials = self.load().await?;
        let expiry = credentials.expiry();
        let identity: Identity = credentials.into();
        known.identity = Some((identity.clone(), expiry));
        Ok(Some(Current { identity, generation: known.generation }))
    }

    /// The store refused an identity of this generation: whether there may be another one by now.
    pub(crate) async fn refused(&self, generation: u64) -> bool {
        if !matches!(self.config, CredentialsConfig::DefaultChain { .. }) {
            return false;
        }
        let mut known = self.known.write().await;
        if known.generation != generation {
            return true;
        }
        if known.dropped.is_some_and(|at| at.elapsed() < AGAIN) {
            return false;
        }
        *known = Known { identity: None, generation: generation + 1, dropped: Some(Instant::now()) };
        true
    }

    fn fresh(&self, known: &Known) -> Option<Current> {
        let (identity, expiry) = known.identity.as_ref()?;
        let now = SystemTime::from(self.env.now());
        let lasts = expiry.is_none_or(|at| at > now + EARLY);
        lasts.then(|| Current { identity: identity.clone(), generation: known.generation })
    }

    async fn load(&self) -> Result<Credentials> {
        match &self.config {
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
            CredentialsConfig::DefaultChain { profile } => self.ask_chain(profile.as_deref()).await,
            #[cfg(not(feature = "aws-config"))]
            CredentialsConfig::DefaultChain { .. } => Err(missing("build dth-s3 with feature `aws-config` to use the default chain")),
        }
    }

    #[cfg(feature = "aws-config")]
    async fn ask_chain(&self, profile: Option<&str>) -> Result<Credentials> {
        use aws_config::default_provider::credentials::DefaultCredentialsChain;
        use aws_credential_types::provider::ProvideCredentials;
        let mut chain = DefaultCredentialsChain::builder().region(aws_config::Region::new(self.region.clone()));
        if let Some(profile) = profile {
            chain = chain.profile_name(profile);
        }
        let chain = chain.build().await;
        chain
            .provide_credentials()
            .await
            .map_err(|error| Error::new(ErrorKind::CredentialsExpired, Op::Configure, "credentials (default chain)").with_source(error))
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
    use dth_core::env::SystemEnv;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_refused_chain_is_asked_again_once_a_minute() {
        let of = |config| Identities::new(config, "us-east-1", Arc::new(SystemEnv));
        let chain = of(CredentialsConfig::DefaultChain { profile: None });
        assert!(chain.refused(0).await);
        assert!(chain.refused(0).await, "others have used the same: there is a newer one");
        assert!(!chain.refused(1).await, "it was read a moment ago");
        tokio::time::advance(AGAIN).await;
        assert!(chain.refused(1).await);
        assert!(!of(CredentialsConfig::Environment).refused(0).await, "it cannot change");
    }
}
