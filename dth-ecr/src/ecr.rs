//! Amazon ECR's own API.
//!
//! <https://docs.aws.amazon.com/AmazonECR/latest/APIReference/Welcome.html>

use crate::{
    config::{EcrConfig, RegistryConfig, RepositorySettings},
    credentials::{Login, LoginSource},
    registry::{ControlPlane, ListedImage, Registry, RegistryBuilder},
};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ecr::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::{create_repository::CreateRepositoryError, describe_repositories::DescribeRepositoriesError},
    types::{EncryptionConfiguration, EncryptionType, ImageIdentifier, ImageScanningConfiguration, ImageTagMutability, Tag},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use dth_core::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    secret::Secret,
};
use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Amazon ECR in one account and region, of any partition: the region decides.
#[derive(Clone)]
pub struct Ecr {
    client: Client,
    config: EcrConfig,
    env: SharedEnv,
    region: String,
    /// Repositories that were made, and lack their policy.
    unfinished: Arc<Mutex<HashSet<String>>>,
}

impl fmt::Debug for Ecr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ecr({})", self.region)
    }
}

/// What one asks for a login, and where it is good.
struct Authorization {
    login: Login,
    host: String,
    good_for: Option<Duration>,
}

impl Ecr {
    /// ECR with the region and credentials of an SDK's configuration.
    pub fn new(sdk: &SdkConfig, config: EcrConfig) -> Self {
        // The engine tries again, knowing what it does.
        let patience = aws_sdk_ecr::config::timeout::TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(30)).build();
        let client = aws_sdk_ecr::config::Builder::from(sdk)
            .retry_config(aws_sdk_ecr::config::retry::RetryConfig::disabled())
            .timeout_config(patience)
            .build();
        let region = sdk.region().map(ToString::to_string).unwrap_or_default();
        Self { client: Client::from_conf(client), config, env: Arc::new(SystemEnv), region, unfinished: Arc::default() }
    }

    /// Begins to put the registry together whose logins, listings and repositories are ECR's. Where `config` names no registry,
    /// ECR tells which it is. `Invalid` where it names one of ECR in another account or region than this one.
    pub async fn registry(mut self, mut config: RegistryConfig) -> Result<RegistryBuilder> {
        if config.registry.is_empty() {
            config.registry = self.authorization().await?.host;
        } else if let Some((account, region)) = of_host(&config.registry) {
            // Its API would otherwise be asked about another one than images are sent to.
            let ours = self.config.account.get_or_insert_with(|| account.to_owned());
            if *ours != account || self.region != region {
                let why = format!("it is of account {account} in {region}, and ECR is asked in {} about account {ours}", self.region);
                return Err(Error::new(ErrorKind::Invalid, Op::Configure, format!("registry = `{}`", config.registry)).with_source(why));
            }
        }
        let ecr = Arc::new(self);
        Ok(Registry::builder(config).with_logins(Arc::clone(&ecr) as _).with_control_plane(ecr))
    }

    async fn authorization(&self) -> Result<Authorization> {
        let target = format!("ECR in {}", self.region);
        let call = self.client.get_authorization_token();
        let answer = call.send().await.map_err(|e| classify(Op::Connect, &target, e))?;
        let wrong = |why: &str| Error::new(ErrorKind::CredentialsExpired, Op::Connect, &*target).with_source(why.to_owned());
        let data = answer.authorization_data.unwrap_or_default().into_iter().next().ok_or_else(|| wrong("it gave no token"))?;
        let token = data.authorization_token.ok_or_else(|| wrong("it gave no token"))?;
        let pair = STANDARD.decode(token).ok().and_then(|pair| String::from_utf8(pair).ok()).ok_or_else(|| wrong("the token is none"))?;
        let (username, password) = pair.split_once(':').ok_or_else(|| wrong("the token is none"))?;
        let host = data.proxy_endpoint.unwrap_or_default();
        let host = host.strip_prefix("https://").unwrap_or(&host).trim_end_matches('/');
        // The token is good for every registry that its owner may read; another account's differs in the first label.
        let host = match (&self.config.account, host.split_once('.')) {
            (Some(account), Some((_, rest))) => format!("{account}.{rest}"),
            _ => host.to_owned(),
        };
        let good_for = data.expires_at.and_then(|at| u64::try_from(at.secs() - self.env.now().as_second()).ok()).map(Duration::from_secs);
        // An end that is over already says nothing about the token.
        let good_for = good_for.filter(|time| *time > Duration::from_secs(60));
        Ok(Authorization { login: Login::Basic { username: username.to_owned(), password: Secret::new(password) }, host, good_for })
    }

    async fn create(&self, repository: &str, settings: &RepositorySettings) -> Result<()> {
        let target = format!("ECR repository {repository}");
        let invalid = |e: aws_sdk_ecr::error::BuildError| Error::new(ErrorKind::Invalid, Op::Configure, &*target).with_source(e);
        let mutability = if settings.immutable_tags { ImageTagMutability::Immutable } else { ImageTagMutability::Mutable };
        let kind = if settings.kms_key.is_some() { EncryptionType::Kms } else { EncryptionType::Aes256 };
        let key = settings.kms_key.clone().filter(|key| key != "aws/ecr");
        let encryption = EncryptionConfiguration::builder().encryption_type(kind).set_kms_key(key).build().map_err(invalid)?;
        let mut call = self
            .client
            .create_repository()
            .repository_name(repository)
            .set_registry_id(self.config.account.clone())
            .image_tag_mutability(mutability)
            .image_scanning_configuration(ImageScanningConfiguration::builder().scan_on_push(settings.scan_on_push).build())
            .encryption_configuration(encryption);
        for (name, value) in &settings.tags {
            call = call.tags(Tag::builder().key(name).value(value).build().map_err(invalid)?);
        }
        match call.send().await {
            Ok(_) => {}
            // Another worker was faster; it sets the policy, too.
            Err(error) if matches!(error.as_service_error(), Some(CreateRepositoryError::RepositoryAlreadyExistsException(_))) => {
                return Ok(());
            }
            Err(error) => return Err(classify(Op::Put, &target, error)),
        }
        tracing::info!(repository, "repository made");
        if let Some(policy) = &settings.lifecycle_policy {
            let call = self.client.put_lifecycle_policy().repository_name(repository).set_registry_id(self.config.account.clone());
            call.lifecycle_policy_text(policy).send().await.map_err(|e| classify(Op::Configure, &target, e))?;
            lock(&self.unfinished).remove(repository);
        }
        Ok(())
    }
}

#[async_trait]
impl LoginSource for Ecr {
    async fn login(&self) -> Result<(Option<Login>, Option<Duration>)> {
        let Authorization { login, good_for, .. } = self.authorization().await?;
        Ok((Some(login), good_for))
    }
}

#[async_trait]
impl ControlPlane for Ecr {
    async fn repositories(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut pages = self.client.describe_repositories().set_registry_id(self.config.account.clone()).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| classify(Op::List, "ECR repositories", e))?;
            names.extend(page.repositories.unwrap_or_default().into_iter().filter_map(|r| r.repository_name));
        }
        Ok(names)
    }

    async fn images(&self, repository: &str) -> Result<Vec<ListedImage>> {
        let mut images = Vec::new();
        let call = self.client.describe_images().repository_name(repository).set_registry_id(self.config.account.clone());
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| classify(Op::List, &format!("ECR images of {repository}"), e))?;
            let listed =
                |i: aws_sdk_ecr::types::ImageDetail| Some(ListedImage { digest: i.image_digest?, tags: i.image_tags.unwrap_or_default() });
            images.extend(page.image_details.unwrap_or_default().into_iter().filter_map(listed));
        }
        Ok(images)
    }

    async fn ensure(&self, repository: &str) -> Result<()> {
        let call = self.client.describe_repositories().repository_names(repository).set_registry_id(self.config.account.clone());
        let error = match call.send().await {
            Ok(_) if !lock(&self.unfinished).contains(repository) => return Ok(()),
            // Made by us, and still without its policy.
            Ok(_) => return self.create(repository, self.config.create.as_ref().unwrap_or(&RepositorySettings::default())).await,
            Err(error) => error,
        };
        let missing = matches!(error.as_service_error(), Some(DescribeRepositoriesError::RepositoryNotFoundException(_)));
        match &self.config.create {
            Some(settings) if missing => self.create(repository, settings).await,
            None if missing => {
                let why = "the repository does not exist: make it, or set `create` for this registry";
                Err(Error::new(ErrorKind::Denied, Op::Put, format!("ECR repository {repository}")).with_source(why))
            }
            _ => Err(classify(Op::Put, &format!("ECR repository {repository}"), error)),
        }
    }

    async fn delete(&self, repository: &str, reference: &str) -> Result<()> {
        let target = format!("ECR image {repository}:{reference}");
        // By a tag, the tag alone goes, and the image when it was its last
        // (<https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchDeleteImage.html>).
        let by_digest = reference.contains(':');
        let image = ImageIdentifier::builder();
        let image = if by_digest { image.image_digest(reference) } else { image.image_tag(reference) }.build();
        let call =
            self.client.batch_delete_image().repository_name(repository).set_registry_id(self.config.account.clone()).image_ids(image);
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("RepositoryNotFoundException") => return Ok(()),
            Err(error) => return Err(classify(Op::Delete, &target, error)),
        };
        match answer.failures().iter().find(|f| f.failure_code().is_none_or(|code| code.as_str() != "ImageNotFound")) {
            Some(failure) => Err(Error::new(ErrorKind::Conflict, Op::Delete, target)
                .with_code(failure.failure_code().map_or("", |code| code.as_str()))
                .with_source(failure.failure_reason().unwrap_or_default().to_owned())),
            None => Ok(()),
        }
    }
}

fn lock(names: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Account and region of a registry of ECR: `ACCOUNT.dkr.ecr[-fips].REGION.amazonaws.com[.cn]`.
fn of_host(host: &str) -> Option<(&str, &str)> {
    let mut labels = host.split('.');
    let account = labels.next().filter(|account| account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))?;
    let is_ecr = labels.next() == Some("dkr") && matches!(labels.next(), Some("ecr" | "ecr-fips"));
    is_ecr.then(|| labels.next()).flatten().map(|region| (account, region))
}

fn classify<E>(op: Op, target: &str, error: SdkError<E>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let code = error.code().unwrap_or_default().to_owned();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let kind = match (code.as_str(), status) {
        ("ThrottlingException" | "TooManyRequestsException" | "LimitExceededException" | "RequestLimitExceeded", _) | (_, Some(429)) => {
            ErrorKind::Throttled
        }
        ("RepositoryNotFoundException" | "ImageNotFoundException", _) => ErrorKind::NotFound,
        ("AccessDeniedException" | "KmsException", _) => ErrorKind::Denied,
        (
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "InvalidClientTokenId"
            | "IncompleteSignature"
            | "MissingAuthenticationTokenException",
            _,
        ) => ErrorKind::CredentialsExpired,
        (_, Some(status)) if status < 500 => ErrorKind::Invalid,
        (_, Some(_)) => ErrorKind::Unavailable,
        _ => match &error {
            SdkError::ConstructionFailure(_) => ErrorKind::CredentialsExpired,
            _ => ErrorKind::Unavailable,
        },
    };
    let mut told = Error::new(kind, op, target);
    if !code.is_empty() {
        told = told.with_code(code);
    }
    told.with_source(aws_sdk_ecr::error::DisplayErrorContext(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_tell_account_and_region() {
        for (host, told) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some(("123456789012", "eu-west-1"))),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some(("123456789012", "cn-north-1"))),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some(("123456789012", "us-gov-west-1"))),
            ("public.ecr.aws", None),
            ("127.0.0.1:5000", None),
        ] {
            assert_eq!(of_host(host), told, "{host}");
        }
    }
}
