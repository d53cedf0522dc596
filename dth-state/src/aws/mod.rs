//! Queue and state in Amazon SQS and DynamoDB, for workers on any number of machines; notices through Amazon SNS.
//!
//! The SDKs' own retries are off: the engine retries, and counts what it does.

mod batch;
mod dynamodb;
mod error;
mod item;
mod job_table;
mod sns;
mod sqs;

pub use aws_config::{self, SdkConfig};
pub use aws_sdk_sqs::config::Credentials;
pub use dynamodb::DynamoStore;
pub use job_table::{Imported, JobRow, JobStatus, JobTable, MirroredState};
pub use sns::SnsNotifier;
pub use sqs::SqsQueue;

use std::time::Duration;

/// Longest time for one request, beside the time that it is asked to wait. Leases are extended by requests of this kind: one that
/// hangs must not outlast a lease.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Whether a name is that of a FIFO queue or topic; it says so.
fn is_fifo(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, suffix)| suffix == "fifo")
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}
