//! Logins and tokens. A registry names in its challenge who gives tokens; a password is sent only to those that are known to
//! belong to it.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>, <https://distribution.github.io/distribution/spec/auth/oauth/>

use super::challenge::challenges;
use crate::credentials::{Login, Logins};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    http::{
        Http,
        body::{self, Patience},
    },
    secret::Secret,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};
use tokio::time::Instant;

/// Token services that are known to belong to a registry of another name.
const KNOWN: [(&str, &str); 2] = [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];

/// Characters of a scope that stay as they are in a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':').remove(b'/').remove(b',');

/// What a token without a time of its own is good for, by the specification.
const DEFAULT_LIFE: u64 = 60;

/// A token is asked for anew after a day, whatever it says of itself.
const LONGEST_LIFE: u64 = 24 * 3600;

/// Most bytes of a token service's answer.
const MAX_TOKEN: u64 = 1 << 20;

/// Tokens that are kept at once; of a registry with more repositories than that, some are asked for again.
const MAX_KEPT: usize = 4096;

/// What a request needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// Read a repository.
    Pull(String),
    /// Read and write it.
    Push(String),
    /// Delete from it.
    Delete(String),
    /// List repositories.
    Catalog,
}

impl Scope {
    fn text(&self) -> String {
        match self {
            Self::Pull(name) => format!("repository:{name}:pull"),
            Self::Push(name) => format!("repository:{name}:pull,push"),
            Self::Delete(name) => format!("repository:{name}:pull,push,delete"),
            Self::Catalog => "registry:catalog:*".into(),
        }
    }
}

/// What the registry wants, once it has been asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Open,
    Basic,
    Bearer { realm: Uri, service: Option<String> },
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    /// From then on it is asked for anew.
    stale: Instant,
}

/// One set of scopes: who asks for its token, and the token.
#[derive(Debug, Default)]
struct Slot {
    asking: tokio::sync::Mutex<()>,
    token: Mutex<Option<Token>>,
    /// Scopes that the registry named beyond ours.
    more: Mutex<BTreeSet<String>>,
}

impl Slot {
    /// Forgets the token that was refused; somebody else may have renewed it already.
    fn drop_token(&self, used: Option<&HeaderValue>) {
        let mut token = lock(&self.token);
        if token.as_ref().map(|t| &t.header) == used {
            *token = None;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Auth {
    http: Http,
    host: String,
    insecure: bool,
    token_hosts: Vec<String>,
    logins: Logins,
    scheme: RwLock<Option<Scheme>>,
    asking: tokio::sync::Mutex<()>,
    slots: Mutex<HashMap<BTreeSet<Scope>, Arc<Slot>>>,
    patience: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(crate) fn new(http: Http, authority: &str, insecure: bool, token_hosts: Vec<String>, logins: Logins, patience: Duration) -> Self {
        Self {
            http,
            host: authority.to_owned(),
            insecure,
            token_hosts,
            logins,
            scheme: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            slots: Mutex::default(),
            patience,
        }
    }

    /// The value of `Authorization` for these scopes; `None` to ask without.
    pub(crate) async fn header(&self, scopes: &BTreeSet<Scope>) -> Result<Option<HeaderValue>> {
        match self.scheme().await? {
            Scheme::Open => Ok(None),
            Scheme::Basic => match self.logins.current().await? {
                Some(Login::Basic { username, password }) => basic(&username, &password).map(Some),
                Some(Login::Identity(_)) => Err(self.wrong("the registry wants user and password, and there is an identity token only")),
                None => Ok(None),
            },
            Scheme::Bearer { realm, service } => self.token(&realm, service.as_deref(), scopes).await.map(Some),
        }
    }

    /// Learns from a refusal of `used`; whether it is worth asking again.
    pub(crate) async fn refused(&self, headers: &HeaderMap, scopes: &BTreeSet<Scope>, used: Option<&HeaderValue>) -> Result<bool> {
        let named = self.learn(headers)?;
        match self.known() {
            Some(Scheme::Bearer { .. }) => {
                let slot = self.slot(scopes);
                let ours: BTreeSet<String> = scopes.iter().map(Scope::text).collect();
                let mut news = false;
                for scope in named.into_iter().filter(|scope| !ours.contains(scope)) {
                    news |= lock(&slot.more).insert(scope);
                }
                slot.drop_token(used);
                // A token that was fresh is not refused for its age: asked again, it would be refused again.
                Ok(used.is_none() || news || self.header(scopes).await?.as_ref() != used)
            }
            Some(Scheme::Basic) => {
                if used.is_none() {
                    return Ok(self.logins.current().await?.is_some());
                }
                self.logins.refused(|login| basic_of(login).as_ref() == used);
                let again = self.header(scopes).await?;
                Ok(again.is_some() && again.as_ref() != used)
            }
            Some(Scheme::Open) | None => Ok(false),
        }
    }

    /// Whether a password is not good any more: asked where it is answered in words, if it is used as such.
    pub(crate) async fn has_expired(&self, used: Option<&HeaderValue>) -> Result<bool> {
        if self.known() != Some(Scheme::Basic) || used.is_none() {
            return Ok(false);
        }
        let (status, _, page) = self.call(Method::GET, &self.root(), used.cloned(), None).await?;
        Ok(status == StatusCode::UNAUTHORIZED || crate::error::is_expiry(status, &page))
    }

    fn root(&self) -> String {
        let scheme = if self.insecure { "http" } else { "https" };
        format!("{scheme}://{}/v2/", self.host)
    }

    /// What the registry wants, asked for once: every request that is refused first would be one too many.
    async fn scheme(&self) -> Result<Scheme> {
        if let Some(scheme) = self.known() {
            return Ok(scheme);
        }
        let _asking = self.asking.lock().await;
        if let Some(scheme) = self.known() {
            return Ok(scheme);
        }
        let (status, headers, _) = self.call(Method::GET, &self.root(), None, None).await?;
        if status == StatusCode::UNAUTHORIZED {
            self.learn(&headers)?;
            return self.known().ok_or_else(|| self.wrong("the registry refuses, and names no way to log in that is known here"));
        }
        // Some answer anything but a success, and are open all the same: the requests themselves will tell.
        self.set(Scheme::Open);
        Ok(Scheme::Open)
    }

    /// Whether what is sent is a token, which was given for just what is asked.
    pub(crate) fn gives_tokens(&self) -> bool {
        matches!(self.known(), Some(Scheme::Bearer { .. }))
    }

    fn known(&self) -> Option<Scheme> {
        self.scheme.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set(&self, scheme: Scheme) {
        *self.scheme.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(scheme);
    }

    /// Takes the strongest challenge that is known here; answers the scopes that it names.
    fn learn(&self, headers: &HeaderMap) -> Result<Vec<String>> {
        let all = challenges(headers);
        if let Some(bearer) = all.iter().find(|c| c.scheme == "bearer" && c.get("realm").is_some()) {
            let realm = bearer.get("realm").unwrap_or_default();
            let uri: Uri = realm.parse().map_err(|_| self.wrong(format!("the realm `{realm}` is no URL")))?;
            self.judge(&uri)?;
            self.set(Scheme::Bearer { realm: uri, service: bearer.get("service").map(str::to_owned) });
            let scopes = bearer.get("scope").unwrap_or_default();
            return Ok(scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect());
        }
        if all.iter().any(|c| c.scheme == "basic") {
            self.set(Scheme::Basic);
        }
        Ok(Vec::new())
    }

    /// Whether a token service may be asked at all. Plain HTTP only where the registry itself is declared insecure, and from there
    /// only to its own host or one that is named.
    fn judge(&self, realm: &Uri) -> Result<()> {
        let host = realm.host().unwrap_or_default();
        match realm.scheme_str() {
            Some("https") => {}
            Some("http") if self.insecure && self.is_trusted(realm) => {}
            Some("http") => return Err(self.untrusted(realm, "it is reached without TLS")),
            _ => return Err(self.wrong(format!("the realm `{realm}` is no URL of HTTP"))),
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = bare.parse().is_ok_and(|ip: std::net::IpAddr| is_inside(ip)) || bare.eq_ignore_ascii_case("localhost");
        if local && !self.is_trusted(realm) {
            return Err(self.untrusted(realm, "it is an address of this machine or its link"));
        }
        Ok(())
    }

    /// Whether a password may be sent there.
    fn is_trusted(&self, realm: &Uri) -> bool {
        let host = realm.host().unwrap_or_default();
        let authority = realm.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let own = self.host.parse::<http::uri::Authority>().is_ok_and(|a| a.host().eq_ignore_ascii_case(host));
        let named = |text: &String| text.eq_ignore_ascii_case(host) || text.eq_ignore_ascii_case(authority);
        own || self.token_hosts.iter().any(named) || KNOWN.contains(&(self.host.as_str(), host))
    }

    fn untrusted(&self, realm: &Uri, why: &str) -> Error {
        let host = realm.host().unwrap_or_default();
        let text = format!(
            "it sends us to `{}` for a token, and {why}: name `{host}` in `token_hosts` if that is right",
            realm.authority().map(http::uri::Authority::as_str).unwrap_or_default()
        );
        Error::new(ErrorKind::Denied, Op::Connect, self.host.clone()).with_source(text)
    }

    fn wrong(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::CredentialsExpired, Op::Connect, self.host.clone()).with_source(why)
    }

    fn slot(&self, scopes: &BTreeSet<Scope>) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if slots.len() >= MAX_KEPT && !slots.contains_key(scopes) {
            let now = Instant::now();
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(&slot.token).as_ref().is_some_and(|t| t.stale > now));
            // Where all are good still, half of them are asked for again.
            let (full, mut nth) = (slots.len() >= MAX_KEPT, 0);
            slots.retain(|_, slot| {
                nth += 1;
                !full || nth % 2 == 0 || Arc::strong_count(slot) > 1
            });
        }
        Arc::clone(slots.entry(scopes.clone()).or_default())
    }

    async fn token(&self, realm: &Uri, service: Option<&str>, scopes: &BTreeSet<Scope>) -> Result<HeaderValue> {
        let slot = self.slot(scopes);
        let fresh = || lock(&slot.token).as_ref().filter(|t| t.stale > Instant::now()).map(|t| t.header.clone());
        if let Some(header) = fresh() {
            return Ok(header);
        }
        let _asking = slot.asking.lock().await;
        if let Some(header) = fresh() {
            return Ok(header);
        }
        let mut wanted: BTreeSet<String> = scopes.iter().map(Scope::text).collect();
        wanted.extend(lock(&slot.more).iter().cloned());
        let token = self.ask(realm, service, &wanted).await?;
        let header = token.header.clone();
        *lock(&slot.token) = Some(token);
        Ok(header)
    }

    async fn ask(&self, realm: &Uri, service: Option<&str>, scopes: &BTreeSet<String>) -> Result<Token> {
        let login = self.logins.current().await?;
        if login.is_some() && !self.is_trusted(realm) {
            return Err(self.untrusted(realm, "a password is not sent to whomever a registry names"));
        }
        let encode = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
        let begun = Instant::now();
        let (status, headers, page) = match &login {
            Some(Login::Identity(token)) => {
                let scope = scopes.iter().cloned().collect::<Vec<_>>().join(" ");
                let form = format!(
                    "grant_type=refresh_token&client_id=dth&service={}&scope={}&refresh_token={}",
                    encode(service.unwrap_or_default()),
                    encode(&scope),
                    utf8_percent_encode(token.expose(), NON_ALPHANUMERIC)
                );
                self.call(Method::POST, &realm.to_string(), None, Some(form)).await?
            }
            login => {
                let mut query: Vec<String> = service.iter().map(|service| format!("service={}", encode(service))).collect();
                query.extend(scopes.iter().map(|scope| format!("scope={}", encode(scope))));
                let uri = realm.to_string();
                let uri = format!("{uri}{}{}", if uri.contains('?') { '&' } else { '?' }, query.join("&"));
                let authorization = match login {
                    Some(Login::Basic { username, password }) => Some(basic(username, password)?),
                    _ => None,
                };
                self.call(Method::GET, &uri, authorization, None).await?
            }
        };
        if !status.is_success() {
            if status == StatusCode::UNAUTHORIZED {
                self.logins.refused(|current| Some(current) == login.as_ref());
            }
            // The address, without what was asked: an identity is in it nowhere. Of what it did not find, nothing follows for images.
            let host = format!("the token service {}", realm.host().unwrap_or_default());
            let error = crate::error::of_answer(Op::Connect, host.clone(), status, &headers, &page);
            let told =
                matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::CredentialsExpired);
            return Err(if told { error } else { Error::new(ErrorKind::Unavailable, Op::Connect, host).with_source(error) });
        }
        let answer: Answer = serde_json::from_slice(&page).map_err(|_| self.wrong("the answer of its token service is none"))?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| self.wrong("its token service gave no token"))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| self.wrong("the token is none"))?;
        header.set_sensitive(true);
        // From when it was asked for; what is sent just before its end would arrive just behind it.
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, LONGEST_LIFE));
        Ok(Token { header, stale: begun + life - (life / 5).min(Duration::from_secs(15)) })
    }

    async fn call(
        &self,
        method: Method,
        uri: &str,
        authorization: Option<HeaderValue>,
        form: Option<String>,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>)> {
        let uri: Uri = uri.parse().map_err(|e| self.wrong(format!("{e}")))?;
        let host = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let failed =
            |why: Box<dyn std::error::Error + Send + Sync>| Error::new(ErrorKind::Unavailable, Op::Connect, host.clone()).with_source(why);
        let mut request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, &host)
            .header(header::USER_AGENT, super::client::USER_AGENT);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(form) = &form {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").header(header::CONTENT_LENGTH, form.len());
        }
        let request = request.body(body::full(form.map(Bytes::from).unwrap_or_default())).map_err(|e| failed(e.into()))?;
        // A token that was given and lost has changed nothing.
        let answer = self.http.answer(request, Op::Connect, &host, self.patience).await.map_err(|e| e.with_maybe_applied(false))?;
        let (parts, body) = answer.into_parts();
        let stream = body::read(body, Op::Connect, host.clone(), Patience::idle(self.patience));
        let page = body::gather(stream, MAX_TOKEN).await?.ok_or_else(|| failed("the answer is too long".into()))?;
        Ok((parts.status, parts.headers, page))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How a login is sent to a registry itself, if it can be.
fn basic_of(login: &Login) -> Option<HeaderValue> {
    match login {
        Login::Basic { username, password } => basic(username, password).ok(),
        Login::Identity(_) => None,
    }
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue> {
    let text = format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose())));
    let mut header = HeaderValue::from_str(&text).map_err(|e| Error::new(ErrorKind::Invalid, Op::Connect, "credentials").with_source(e))?;
    header.set_sensitive(true);
    Ok(header)
}

/// This machine, or only its own link, as the metadata services of clouds are.
pub(super) fn is_inside(ip: std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        std::net::IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                // Where Amazon has its metadata service.
                || ip.segments()[..2] == [0xfd00, 0x0ec2]
                || ip.to_ipv4_mapped().is_some_and(|ip| is_inside(ip.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Configured, CredentialsConfig};
    use dth_core::http::HttpSettings;

    fn auth(host: &str, insecure: bool, token_hosts: &[&str]) -> Auth {
        let http = Http::new(HttpSettings::default()).unwrap();
        let logins = Logins::new(Arc::new(Configured { config: CredentialsConfig::Anonymous, registry: host.into() }));
        Auth::new(http, host, insecure, token_hosts.iter().map(|h| (*h).to_owned()).collect(), logins, Duration::from_secs(1))
    }

    /// R3: whom a challenge may send us to, with and without a password.
    #[test]
    fn a_realm_is_not_followed_to_any_host() {
        let uri = |text: &str| -> Uri { text.parse().unwrap() };
        let hub = auth("registry-1.docker.io", false, &[]);
        assert!(hub.judge(&uri("https://auth.docker.io/token")).is_ok() && hub.is_trusted(&uri("https://auth.docker.io/token")));
        assert!(hub.judge(&uri("https://other.example/token")).is_ok(), "anonymously anybody may be asked");
        assert!(!hub.is_trusted(&uri("https://other.example/token")) && !hub.is_trusted(&uri("https://docker.io.example/token")));
        for bad in [
            "http://auth.docker.io/token",
            "https://169.254.169.254/latest",
            "https://[::1]/t",
            "https://localhost/t",
            "https://127.0.0.1:1/t",
            "ftp://x/y",
            "/token",
        ] {
            let error = hub.judge(&uri(bad)).unwrap_err().chain();
            assert!(bad.starts_with("ftp") || bad.starts_with('/') || error.contains("token_hosts"), "{error}");
        }
        let own = auth("127.0.0.1:5000", true, &["127.0.0.1:5001"]);
        assert!(own.judge(&uri("http://127.0.0.1:5001/token")).is_ok() && own.is_trusted(&uri("http://127.0.0.1:5001/token")));
        assert!(own.judge(&uri("http://10.0.0.1/token")).is_err(), "in the clear, and not its own");
        assert!(auth("r.example", false, &["sso.example"]).is_trusted(&uri("https://sso.example/t")));
    }
}
