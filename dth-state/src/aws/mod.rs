//! Queue and state in Amazon SQS and DynamoDB, for workers on any number of machines.
//!
//! The SDKs' own retries are off: the engine retries, and counts what it does.

mod batch;
mod dynamodb;
mod error;
mod sqs;

pub use aws_config::{self, SdkConfig};
pub use aws_sdk_sqs::config::Credentials;
pub use dynamodb::DynamoStore;
pub use sqs::SqsQueue;

use std::time::Duration;

/// Longest time for one request; long polls take twenty seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// A client's settings: those given, without retries of the SDK's own.
macro_rules! client_config {
    ($sdk:ident, $config:expr) => {
        $sdk::config::Builder::from($config)
            .retry_config($sdk::config::retry::RetryConfig::disabled())
            .timeout_config(
                $sdk::config::timeout::TimeoutConfig::builder()
                    .connect_timeout(std::time::Duration::from_secs(5))
                    .operation_attempt_timeout($crate::aws::PATIENCE)
                    .build(),
            )
            .build()
    };
}
pub(crate) use client_config;

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}
