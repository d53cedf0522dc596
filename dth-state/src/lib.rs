#![doc = include_str!("../README.md")]

#[cfg(any(feature = "sqlite", feature = "aws"))]
mod row;

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "aws")]
pub use aws::{DynamoStore, SqsQueue};
#[cfg(feature = "sqlite")]
pub use sqlite::Sqlite;
