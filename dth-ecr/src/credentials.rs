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

/// Where a login cannot be renewed before its end, it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Known {
    /// `None` to ask anonymously.
    login: Option<Login>,
    /// From then on another one is asked for.
    renew: Instant,
    ends: Instant,
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
        let now = Instant::now;
        let fresh = || self.lock().clone().filter(|known| known.renew > now());
        if let Some(known) = fresh() {
            return Ok(known.login);
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = fresh() {
            return Ok(known.login);
        }
        match self.source.login().await {
            Ok((login, good_for)) => {
                // Of no known end, it is good until it is refused.
                let time = good_for.unwrap_or(LONGEST).min(LONGEST);
                // Renewed while it is still good, so that nothing under way is refused.
                let renew = good_for.map_or(KEPT, |_| time.mul_f64(0.9));
                *self.lock() = Some(Known { login: login.clone(), renew: now() + renew, ends: now() + time });
                Ok(login)
            }
            Err(error) => {
                let mut known = self.lock();
                let Some(old) = known.as_mut().filter(|known| known.ends > now()) else { return Err(error) };
                tracing::warn!(error = %error.chain(), "a login could not be renewed; it is still good");
                old.renew = (now() + AGAIN).min(old.ends);
                Ok(old.login.clone())
            }
        }
    }

    /// What was refused is asked for anew, unless somebody has done so already.
    pub(crate) fn refused(&self, was: impl FnOnce(&Login) -> bool) {
        let mut known = self.lock();
        if known.as_ref().and_then(|known| known.login.as_ref()).is_some_and(was) {
            *known = None;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    /// A cloud whose logins are good for an hour; the second time it cannot be reached.
    #[derive(Debug, Default)]
    struct Cloud(AtomicU32);

    #[async_trait]
    impl LoginSource for Cloud {
        async fn login(&self) -> Result<(Option<Login>, Option<Duration>)> {
            tokio::task::yield_now().await;
            match self.0.fetch_add(1, SeqCst) {
                1 => Err(Error::new(ErrorKind::Unavailable, Op::Connect, "cloud")),
                n => Ok((Some(Login::Identity(Secret::new(format!("{n}")))), Some(Duration::from_secs(3600)))),
            }
        }
    }

    fn number(login: Option<Login>) -> String {
        match login {
            Some(Login::Identity(secret)) => secret.expose().to_owned(),
            other => format!("{other:?}"),
        }
    }

    /// R4: renewed before its end by one of many who ask; used to its end while that fails; one that was refused is gone, another is not.
    #[tokio::test(start_paused = true)]
    async fn logins_are_renewed_before_their_end() {
        let cloud = Arc::new(Cloud::default());
        let logins = Logins::new(Arc::clone(&cloud) as _);
        let many = || futures_util::future::join_all((0..10).map(|_| async { number(logins.current().await.unwrap()) }));
        let wait = |minutes: u64| tokio::time::sleep(Duration::from_secs(60 * minutes));
        assert_eq!((many().await, cloud.0.load(SeqCst)), (vec!["0".to_owned(); 10], 1));
        wait(55).await;
        assert_eq!((many().await, cloud.0.load(SeqCst)), (vec!["0".to_owned(); 10], 2), "it is still good");
        wait(1).await;
        assert_eq!((many().await, cloud.0.load(SeqCst)), (vec!["2".to_owned(); 10], 3));
        let is = |number: &'static str| move |login: &Login| *login == Login::Identity(Secret::new(number));
        logins.refused(is("0"));
        assert_eq!((many().await, cloud.0.load(SeqCst)), (vec!["2".to_owned(); 10], 3), "the older one was refused");
        logins.refused(is("2"));
        assert_eq!((many().await, cloud.0.load(SeqCst)), (vec!["3".to_owned(); 10], 4));
        // Beyond its end, what fails is told.
        cloud.0.store(1, SeqCst);
        wait(61).await;
        assert!(logins.current().await.is_err());
    }
}
