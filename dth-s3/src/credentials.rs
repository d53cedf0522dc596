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
use tokio::sync::RwLock;

/// Temporary credentials are renewed so long before they expire.
const EARLY: Duration = Duration::from_secs(300);

/// The identity of one side. `None` for anonymous access.
pub(crate) struct Identities {
    config: CredentialsConfig,
    env: SharedEnv,
    current: RwLock<Option<(Identity, Option<SystemTime>)>>,
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
        Self { config, env, current: RwLock::new(None), region: region.to_owned() }
    }

    /// The identity to sign with; renewed before it expires, by one caller while the others wait.
    pub(crate) async fn current(&self) -> Result<Option<Identity>> {
        if self.config == CredentialsConfig::Anonymous {
            return Ok(None);
        }
        if let Some(identity) = self.fresh(self.current.read().await.as_ref()) {
            return Ok(Some(identity));
        }
        let mut current = self.current.write().await;
        if let Some(identity) = self.fresh(current.as_ref()) {
            return Ok(Some(identity));
        }
        let credentials = self.load().await?;
        let expiry = credentials.expiry();
        let identity: Identity = credentials.into();
        *current = Some((identity.clone(), expiry));
        Ok(Some(identity))
    }

    /// The store refused the identity: the next call reads it again. `false` when it cannot change.
    pub(crate) async fn forget(&self) -> bool {
        *self.current.write().await = None;
        matches!(self.config, CredentialsConfig::DefaultChain { .. })
    }

    fn fresh(&self, current: Option<&(Identity, Option<SystemTime>)>) -> Option<Identity> {
        let (identity, expiry) = current?;
        let now = SystemTime::from(self.env.now());
        expiry.is_none_or(|at| at > now + EARLY).then(|| identity.clone())
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
