//! What the settings name in AWS.

use super::{Cluster, EcrSettings, Stores};
use anyhow::Context;
use dth_core::{
    env::SystemEnv,
    error::{Error, ErrorKind, Op, Result},
    http::Http,
    notify::Notifier,
    state::StateStore,
};
use dth_ecr::{Ecr, EcrConfig, RegistryBuilder, RegistryConfig};
use dth_state::{
    DynamoStore, SqsQueue,
    aws::{Credentials, JobTable, SdkConfig, SnsNotifier, aws_config},
};
use std::{sync::Arc, time::Duration};

/// Queue and state.
pub(super) async fn open(cluster: &Cluster) -> Result<Stores> {
    if cluster.queue.is_empty() {
        let why = "name the queue: `cluster.queue`, or JOB_QUEUE_NAME in the environment";
        return Err(Error::new(ErrorKind::Invalid, Op::Configure, "queue").with_source(why));
    }
    let (of_queue, of_table) = (config(cluster, cluster.queue_endpoint.as_ref()).await?, of_table(cluster).await?);
    let (queue, mut state) = if cluster.create {
        (SqsQueue::create(&of_queue, &cluster.queue).await?, DynamoStore::create(&of_table, &cluster.table, &cluster.task).await?)
    } else {
        (SqsQueue::open(&of_queue, &cluster.queue).await?, DynamoStore::open(&of_table, &cluster.table, &cluster.task).await?)
    };
    if let Some(days) = cluster.record_ttl_days {
        state = state.with_record_ttl(Duration::from_secs(u64::from(days) * 86_400));
    }
    let state: Arc<dyn StateStore> = Arc::new(state);
    let state = match &cluster.job_table {
        Some(name) => Arc::new(JobTable::open(&of_table, name).await?.mirror(state)),
        None => state,
    };
    Ok(Stores { queue: Arc::new(queue), state })
}

/// Makes records of the rows of the original system's job table.
pub(super) async fn import_job_table(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let name = cluster.job_table.as_ref().context("this command needs `job_table = \"NAME\"` in [cluster]")?;
    let table = JobTable::open(&of_table(cluster).await?, name).await?;
    let Stores { state, .. } = open(&Cluster { job_table: None, ..cluster.clone() }).await?;
    let told = table.import(&*state, &SystemEnv).await?;
    let sum = format!("{} rows imported, {} objects were known already, {} rows not read", told.imported, told.known, told.not_read);
    Ok([sum].into_iter().chain(told.unreadable.into_iter().map(|row| format!("not read: {row}"))).collect())
}

/// A topic of Amazon SNS.
pub(super) async fn topic(arn: &str, endpoint: Option<&String>, http: &Http) -> Result<Arc<dyn Notifier>> {
    Ok(Arc::new(SnsNotifier::new(&sdk_config(None, endpoint, http).await, arn)?))
}

/// Amazon ECR, as the registry that `config` selects of, or renames in.
pub(super) async fn ecr(ecr: &EcrSettings, config: RegistryConfig) -> anyhow::Result<RegistryBuilder> {
    let http = super::http(&config.proxy, config.ca_file.as_ref())?;
    let mut loader = loader(ecr.region.as_ref(), ecr.endpoint.as_ref(), &http);
    if let Some(profile) = &ecr.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(prefix) = &ecr.environment_prefix {
        let read = |name: &str| std::env::var(format!("{prefix}_{name}"));
        let need = |name: &str| read(name).with_context(|| format!("the environment's {prefix}_{name}"));
        let pair = Credentials::new(need("ACCESS_KEY_ID")?, need("SECRET_ACCESS_KEY")?, read("SESSION_TOKEN").ok(), None, "environment");
        loader = loader.credentials_provider(pair);
    }
    let config_of_ecr = EcrConfig { account: ecr.account.clone(), create: ecr.create.clone() };
    Ok(Ecr::new(&loader.load().await, config_of_ecr).registry(config).await?)
}

async fn of_table(cluster: &Cluster) -> Result<SdkConfig> {
    config(cluster, cluster.table_endpoint.as_ref()).await
}

async fn config(cluster: &Cluster, endpoint: Option<&String>) -> Result<SdkConfig> {
    let http = super::http(&cluster.proxy, cluster.ca_file.as_ref())?;
    Ok(sdk_config(cluster.region.as_ref(), endpoint.or(cluster.endpoint.as_ref()), &http).await)
}

async fn sdk_config(region: Option<&String>, endpoint: Option<&String>, http: &Http) -> SdkConfig {
    loader(region, endpoint, http).load().await
}

fn loader(region: Option<&String>, endpoint: Option<&String>, http: &Http) -> aws_config::ConfigLoader {
    let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http.for_sdk());
    if let Some(region) = region {
        loader = loader.region(aws_config::Region::new(region.clone()));
    }
    if let Some(endpoint) = endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    loader
}
