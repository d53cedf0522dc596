//! Credentials that AWS is asked for: the default chain, roles, secrets.

use super::missing;
use crate::config::CredentialsConfig;
use aws_config::{
    BehaviorVersion, ConfigLoader, Region, default_provider::credentials::DefaultCredentialsChain, profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig, sts::AssumeRoleProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError},
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::error::ErrorMetadata;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    http::{Http, HttpSettings},
};
use std::{error::Error as StdError, time::SystemTime};

/// How sessions of roles are called.
const SESSION: &str = "dth";

pub(super) async fn load(config: &CredentialsConfig, bucket_region: &str, way: &HttpSettings, now: SystemTime) -> Result<Credentials> {
    match config {
        CredentialsConfig::DefaultChain { profile } => {
            default_chain(profile.as_deref(), bucket_region, &Http::new(way.clone())?).await.map_err(|e| refused(&config.name(), e))
        }
        CredentialsConfig::AssumeRole { role, external_id, session_name, region, endpoint, base } => {
            let base = Box::pin(super::load(base, bucket_region, way, now)).await?;
            let region = Region::new(region.clone().unwrap_or_else(|| bucket_region.to_owned()));
            let conf = settings(way, Some(region), endpoint.as_ref())?.credentials_provider(base);
            let mut role_of = AssumeRoleProvider::builder(role)
                .configure(&conf.load().await)
                .session_name(session_name.clone().unwrap_or_else(|| SESSION.to_owned()));
            if let Some(id) = external_id {
                role_of = role_of.external_id(id);
            }
            role_of.build().await.provide_credentials().await.map_err(|e| refused(&config.name(), e))
        }
        #[cfg(feature = "secrets-manager")]
        CredentialsConfig::Secret { name, region, endpoint } => {
            let region = region.clone().or_else(|| region_of(name)).map(Region::new);
            let conf = settings(way, region, endpoint.as_ref())?;
            secret::read(&config.name(), name, conf, now).await
        }
        #[cfg(not(feature = "secrets-manager"))]
        CredentialsConfig::Secret { .. } => Err(missing("build dth-s3 with feature `secrets-manager` to read secrets")),
        _ => Err(missing("AWS is not asked for these")),
    }
}

/// Settings of a call to AWS, through our own HTTP client. Without a region it is that of the environment.
fn settings(way: &HttpSettings, region: Option<Region>, endpoint: Option<&String>) -> Result<ConfigLoader> {
    let mut conf = aws_config::defaults(BehaviorVersion::latest()).http_client(Http::new(way.clone())?.for_sdk());
    if let Some(region) = region {
        conf = conf.region(region);
    }
    if let Some(endpoint) = endpoint {
        conf = conf.endpoint_url(endpoint);
    }
    Ok(conf)
}

async fn default_chain(profile: Option<&str>, region: &str, http: &Http) -> std::result::Result<Credentials, CredentialsError> {
    let region = Region::new(region.to_owned());
    let conf = ProviderConfig::without_region().with_http_client(http.for_sdk()).with_region(Some(region.clone()));
    let Some(profile) = profile else {
        return DefaultCredentialsChain::builder().configure(conf).region(region).build().await.provide_credentials().await;
    };
    // Not as a link of the chain: what stands before it there, the environment, is another identity.
    ProfileFileCredentialsProvider::builder().configure(&conf).profile_name(profile).build().provide_credentials().await
}

/// The region in the ARN of a secret.
fn region_of(secret: &str) -> Option<String> {
    match secret.split(':').collect::<Vec<_>>()[..] {
        ["arn", _, "secretsmanager", region, ..] if !region.is_empty() => Some(region.to_owned()),
        _ => None,
    }
}

/// Nothing was given: either nobody could be reached, or was too busy, which passes, or there is nothing to be had.
fn refused(what: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    let kind = passing(&error).unwrap_or(ErrorKind::CredentialsExpired);
    Error::new(kind, Op::Configure, what).with_source(error)
}

/// What passes by itself, among the causes of an error.
fn passing(error: &(dyn StdError + 'static)) -> Option<ErrorKind> {
    let unreachable = error.downcast_ref::<ConnectorError>().is_some_and(|e| e.is_io() || e.is_timeout())
        || matches!(error.downcast_ref::<CredentialsError>(), Some(CredentialsError::ProviderTimedOut(_)));
    if unreachable {
        return Some(ErrorKind::Unavailable);
    }
    match error.downcast_ref::<ErrorMetadata>().and_then(ErrorMetadata::code) {
        Some("Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequestsException") => Some(ErrorKind::Throttled),
        Some("ServiceUnavailable" | "InternalFailure" | "InternalError" | "InternalServiceError") => Some(ErrorKind::Unavailable),
        _ => error.source().and_then(passing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_from_a_refusal() {
        let cause = || "why".to_owned();
        let unreachable = refused("role", CredentialsError::provider_error(ConnectorError::io(cause().into())));
        assert_eq!((unreachable.kind(), unreachable.is_retryable()), (ErrorKind::Unavailable, true));
        let busy = ErrorMetadata::builder().code("Throttling").message("slow down").build();
        assert_eq!(refused("role", CredentialsError::provider_error(busy)).kind(), ErrorKind::Throttled);
        let denied = ErrorMetadata::builder().code("AccessDenied").build();
        assert_eq!(refused("role", CredentialsError::provider_error(denied)).kind(), ErrorKind::CredentialsExpired);
        for error in [CredentialsError::not_loaded(cause()), CredentialsError::provider_error(ConnectorError::user(cause().into()))] {
            assert_eq!(refused("role", error).kind(), ErrorKind::CredentialsExpired);
        }
    }

    #[test]
    fn the_arn_of_a_secret_says_where_it_is() {
        assert_eq!(region_of("arn:aws-cn:secretsmanager:cn-north-1:1:secret:dth/a-b").as_deref(), Some("cn-north-1"));
        assert_eq!(region_of("dth/a"), None);
    }
}

#[cfg(feature = "secrets-manager")]
mod secret {
    use super::{ConfigLoader, Credentials, Error, ErrorKind, Op, Result, refused};
    use aws_sdk_secretsmanager::{Client, error::SdkError};
    use serde_json::Value;
    use std::time::{Duration, SystemTime};

    /// A secret is rotated without a word: what was read is taken to expire after this time, and read again before.
    const LIFE: Duration = Duration::from_secs(15 * 60);

    pub(super) async fn read(target: &str, name: &str, conf: ConfigLoader, now: SystemTime) -> Result<Credentials> {
        let answer = Client::new(&conf.load().await).get_secret_value().secret_id(name).send().await;
        let answer = answer.map_err(|error| match &error {
            SdkError::ServiceError(said) if said.raw().status().as_u16() < 500 && said.raw().status().as_u16() != 429 => {
                refused(target, error)
            }
            SdkError::ServiceError(_) | SdkError::TimeoutError(_) | SdkError::ResponseError(_) => {
                Error::new(ErrorKind::Unavailable, Op::Configure, target).with_source(error)
            }
            // Nobody to ask with, or nobody there, which the causes tell.
            _ => refused(target, error),
        })?;
        let text = answer.secret_string.or_else(|| String::from_utf8(answer.secret_binary?.into_inner()).ok());
        parse(target, &text.unwrap_or_default(), now + LIFE)
    }

    /// Errors say which field is wrong, and nothing of what is in it.
    fn parse(target: &str, text: &str, expiry: SystemTime) -> Result<Credentials> {
        let wrong = |why: String| Error::new(ErrorKind::CredentialsExpired, Op::Configure, target).with_source(why);
        let shape = "expected JSON {\"access_key_id\": …, \"secret_access_key\": …, \"session_token\"?: …}";
        let value: Value = serde_json::from_str(text).map_err(|_| wrong(format!("it is not JSON; {shape}")))?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned).filter(|text| !text.is_empty());
        let need = |name: &str| field(name).ok_or_else(|| wrong(format!("`{name}` is missing, empty or no text; {shape}")));
        Ok(Credentials::new(need("access_key_id")?, need("secret_access_key")?, field("session_token"), Some(expiry), "secret"))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_secret_is_read_or_refused_without_being_told() {
            let now = SystemTime::UNIX_EPOCH;
            let good = parse("s", r#"{"access_key_id":"a","secret_access_key":"canary","session_token":"t","more":1}"#, now).unwrap();
            assert_eq!((good.access_key_id(), good.secret_access_key(), good.session_token()), ("a", "canary", Some("t")));
            assert!(parse("s", r#"{"access_key_id":"a","secret_access_key":"canary"}"#, now).unwrap().session_token().is_none());
            for bad in ["", "canary", "[]", r#"{"access_key_id":"canary"}"#, r#"{"access_key_id":"canary","secret_access_key":7}"#] {
                let error = parse("secret dth/source", bad, now).unwrap_err().chain();
                assert!(error.contains("secret dth/source") && !error.contains("canary"), "{error}");
            }
        }
    }
}
