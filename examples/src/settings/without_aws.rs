//! Instead of `aws.rs`, in a build without the SDKs of AWS: says what is missing.
#![expect(clippy::unused_async, reason = "with AWS there is somebody to wait for")]

use super::{Cluster, EcrSettings, Stores};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    http::Http,
    notify::Notifier,
};
use dth_ecr::{RegistryBuilder, RegistryConfig};
use std::sync::Arc;

pub(super) async fn open(_: &Cluster) -> Result<Stores> {
    Err(missing("SQS and DynamoDB"))
}

pub(super) async fn import_job_table(_: &Cluster) -> anyhow::Result<Vec<String>> {
    Err(missing("DynamoDB").into())
}

pub(super) async fn topic(_: &str, _: Option<&String>, _: &Http) -> Result<Arc<dyn Notifier>> {
    Err(missing("SNS"))
}

pub(super) async fn ecr(_: &EcrSettings, _: RegistryConfig) -> anyhow::Result<RegistryBuilder> {
    Err(missing("Amazon ECR").into())
}

fn missing(service: &str) -> Error {
    Error::new(ErrorKind::Unsupported, Op::Configure, service).with_source("this program was built without it: build with `--features aws`")
}
