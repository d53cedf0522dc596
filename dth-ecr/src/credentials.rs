//! Who asks a registry.

use crate::docker_config;
use async_trait::async_trait;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    secret::Secret,
    settings::no_more_fields,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// Where credentials come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum CredentialsConfig {
    /// None: what is public.
    #[default]
    #[serde(deserialize_with = "no_more_fields")]
    Anonymous,
    /// A user and a password or access token.
    Static {
        /// The user.
        username: String,
        /// The password or token.
        password: Secret,
    },
    /// `{prefix}_USERNAME` and `{prefix}_PASSWORD` in the environment.
    EnvironmentPrefix {
        /// Of the names.
        prefix: String,
    },
    /// Docker's `config.json` with its credential helpers; what it does not know is asked for anonymously.
    DockerConfig {
        /// The file; `$DOCKER_CONFIG/config.json` or `~/.docker/config.json` where nothing is set.
        #[serde(default)]
        path: Option<PathBuf>,
    },
}

/// What one logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// User and password, for the registry itself or for its token service.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of OAuth 2, for the token service only.
    Identity(Secret),
}

/// Tells the login whenever it is needed: a cloud's, which expires, or one that lies elsewhere.
#[async_trait]
pub trait LoginSource: fmt::Debug + Send + Sync + 'static {
    /// The login, and for how long it is good, where that is known; `None` to ask anonymously.
    async fn login(&self) -> Result<(Option<Login>, Option<Duration>)>;
}

/// The login of a configuration. It is kept for some minutes only: files and helpers are asked again.
const KEPT: Duration = Duration::from_secs(300);

/// What is good for longer is asked for again all the same.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Clone)]
struct Known {
    /// `None` to ask anonymously.
    login: Option<Login>,
    until: Instant,
}

/// A login that is renewed before it ends.
#[derive(Debug)]
pub(crate) struct Logins {
    source: Arc<dyn LoginSource>,
    known: Mutex<Option<Known>>,
    /// One asks; the others wait for the answer.
    asking: tokio::sync::Mutex<()>,
}

impl Logins {
    pub(crate) fn new(source: Arc<dyn LoginSource>) -> Self {
        Self { source, known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    pub(crate) async fn current(&self) -> Result<Option<Login>> {
        if let Some(known) = self.fresh() {
            return Ok(known.login);
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = self.fresh() {
            return Ok(known.login);
        }
        let (login, good_for) = self.source.login().await?;
        // Renewed while it is still good, so that nothing under way is refused.
        let until = Instant::now() + good_for.map_or(KEPT, |time| time.min(LONGEST).mul_f64(0.9));
        *self.lock() = Some(Known { login: login.clone(), until });
        Ok(login)
    }

    /// What was refused is asked for anew.
    pub(crate) fn refused(&self) {
        *self.lock() = None;
    }

    fn fresh(&self) -> Option<Known> {
        self.lock().clone().filter(|known| known.until > Instant::now())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The login of a configuration for one registry.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) config: CredentialsConfig,
    pub(crate) registry: String,
}

#[async_trait]
impl LoginSource for Configured {
    async fn login(&self) -> Result<(Option<Login>, Option<Duration>)> {
        let login = match &self.config {
            CredentialsConfig::Anonymous => None,
            CredentialsConfig::Static { username, password } => {
                Some(Login::Basic { username: username.clone(), password: password.clone() })
            }
            CredentialsConfig::EnvironmentPrefix { prefix } => {
                let read = |name: &str| {
                    let name = format!("{prefix}_{name}");
                    std::env::var(&name).map_err(|e| {
                        Error::new(ErrorKind::CredentialsExpired, Op::Configure, format!("the environment's {name}")).with_source(e)
                    })
                };
                Some(Login::Basic { username: read("USERNAME")?, password: Secret::new(read("PASSWORD")?) })
            }
            CredentialsConfig::DockerConfig { path } => docker_config::login(path.as_deref(), &self.registry).await?,
        };
        Ok((login, None))
    }
}
