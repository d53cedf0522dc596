//! Amazon ECR's own API.
//!
//! <https://docs.aws.amazon.com/AmazonECR/latest/APIReference/Welcome.html>

use crate::{
    config::{EcrConfig, RegistryConfig, RepositorySettings},
    credentials::{Login, LoginSource},
    hosts::of_ecr,
    registry::{ControlPlane, ListedImage, Registry, RegistryBuilder},
};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ecr::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::{create_repository::CreateRepositoryError, describe_images::builders::DescribeImagesFluentBuilder},
    types::{
        DescribeImagesFilter, EncryptionConfiguration, EncryptionType, ImageIdentifier, ImageScanningConfiguration, ImageStatus,
        ImageStatusFilter, ImageTagMutability, Tag,
    },
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

/// Most entries of a page.
const PAGE: i32 = 1000;

/// Amazon ECR in one account and region, of any partition: the region decides.
#[derive(Clone)]
pub struct Ecr {
    client: Client,
    config: EcrConfig,
    env: SharedEnv,
    region: String,
    /// Repositories that are being made, and lack their policy.
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
        } else if let Some((account, region)) = of_ecr(&config.registry) {
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

    /// Archived images are there, too, and not gone.
    fn describe_images(&self, repository: &str) -> DescribeImagesFluentBuilder {
        let any = DescribeImagesFilter::builder().image_status(ImageStatusFilter::Any).build();
        self.client.describe_images().repository_name(repository).set_registry_id(self.config.account.clone()).filter(any)
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
        if settings.lifecycle_policy.is_some() {
            lock(&self.unfinished).insert(repository.to_owned());
        }
        match call.send().await {
            Ok(_) => tracing::info!(repository, "repository made"),
            // Another worker was faster, or it was we, and the answer was lost.
            Err(error) if matches!(error.as_service_error(), Some(CreateRepositoryError::RepositoryAlreadyExistsException(_))) => {}
            Err(error) => return Err(classify(Op::Put, &target, error)),
        }
        if let Some(policy) = &settings.lifecycle_policy {
            let call = self.client.put_lifecycle_policy().repository_name(repository).set_registry_id(self.config.account.clone());
            match call.lifecycle_policy_text(policy).send().await {
                Ok(_) => {}
                // A repository may need a while before it is everywhere.
                Err(error) if error.code() == Some("RepositoryNotFoundException") => {
                    return Err(Error::new(ErrorKind::Unavailable, Op::Configure, target)
                        .with_source("the repository was made, and is not there yet"));
                }
                Err(error) => return Err(classify(Op::Configure, &target, error)),
            }
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
        let call = self.client.describe_repositories().set_registry_id(self.config.account.clone());
        let mut pages = call.into_paginator().page_size(PAGE).send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| classify(Op::List, "ECR repositories", e))?;
            names.extend(page.repositories.unwrap_or_default().into_iter().filter_map(|r| r.repository_name));
        }
        Ok(names)
    }

    async fn images(&self, repository: &str) -> Result<Vec<ListedImage>> {
        let mut images = Vec::new();
        let mut pages = self.describe_images(repository).into_paginator().page_size(PAGE).send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| classify(Op::List, &format!("ECR images of {repository}"), e))?;
            let listed =
                |i: aws_sdk_ecr::types::ImageDetail| Some(ListedImage { digest: i.image_digest?, tags: i.image_tags.unwrap_or_default() });
            images.extend(page.image_details.unwrap_or_default().into_iter().filter_map(listed));
        }
        Ok(images)
    }

    fn makes_repositories(&self) -> bool {
        self.config.create.is_some()
    }

    async fn ensure(&self, repository: &str) -> Result<()> {
        // ECR itself may make it, by a template; otherwise the upload tells.
        let Some(settings) = &self.config.create else { return Ok(()) };
        let call = self.client.describe_repositories().repository_names(repository).set_registry_id(self.config.account.clone());
        match call.send().await {
            Ok(_) if !lock(&self.unfinished).contains(repository) => Ok(()),
            Err(error) if error.code() != Some("RepositoryNotFoundException") => {
                Err(classify(Op::Put, &format!("ECR repository {repository}"), error))
            }
            // Not there, or made by us, and still without its policy.
            _ => self.create(repository, settings).await,
        }
    }

    async fn is_archived(&self, repository: &str, reference: &str) -> Result<bool> {
        match self.describe_images(repository).image_ids(identifier(reference)).send().await {
            Ok(found) => {
                let waits = |status: &ImageStatus| matches!(status, ImageStatus::Archived | ImageStatus::Activating);
                Ok(found.image_details().iter().any(|image| image.image_status().is_some_and(waits)))
            }
            Err(error) if matches!(error.code(), Some("ImageNotFoundException" | "RepositoryNotFoundException")) => Ok(false),
            Err(error) => Err(classify(Op::Read, &format!("ECR image {repository}:{reference}"), error)),
        }
    }

    async fn delete(&self, repository: &str, reference: &str) -> Result<()> {
        let target = format!("ECR image {repository}:{reference}");
        // By a tag, the tag alone goes, and the image when it was its last
        // (<https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchDeleteImage.html>).
        let call = self.client.batch_delete_image().repository_name(repository).set_registry_id(self.config.account.clone());
        let call = call.image_ids(identifier(reference));
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("RepositoryNotFoundException") => return Ok(()),
            Err(error) => return Err(classify(Op::Delete, &target, error)),
        };
        match answer.failures().iter().find(|f| f.failure_code().is_none_or(|code| code.as_str() != "ImageNotFound")) {
            Some(failure) => {
                let code = failure.failure_code().map_or("", |code| code.as_str());
                let kind = match code {
                    // The index that lists it may go next; the last tag of what an index lists does not go alone.
                    "ImageReferencedByManifestList" if reference.contains(':') => ErrorKind::Conflict,
                    "UpstreamTooManyRequests" => ErrorKind::Throttled,
                    "UpstreamUnavailable" => ErrorKind::Unavailable,
                    "UpstreamAccessDenied" | "KmsError" => ErrorKind::Denied,
                    _ => ErrorKind::Unsupported,
                };
                let why = failure.failure_reason().unwrap_or_default().to_owned();
                Err(Error::new(kind, Op::Delete, target).with_code(code).with_source(why))
            }
            None => Ok(()),
        }
    }
}

fn identifier(reference: &str) -> ImageIdentifier {
    let image = ImageIdentifier::builder();
    if reference.contains(':') { image.image_digest(reference) } else { image.image_tag(reference) }.build()
}

fn lock(names: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

fn classify<E>(op: Op, target: &str, error: SdkError<E>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let code = error.code().unwrap_or_default().to_owned();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let kind = match (code.as_str(), status) {
        ("ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded", _) | (_, Some(429)) => ErrorKind::Throttled,
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
