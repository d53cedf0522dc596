#![doc = include_str!("../README.md")]

mod config;
mod credentials;
mod error;
mod headers;
#[cfg(feature = "object_store")]
mod object_store;
mod profile;
mod sink;
mod store;
mod wire;

pub use config::{CredentialsConfig, Encryption, Network, S3Config, Style};
pub use dth_core::{
    http::{Connector, Proxy, Transport},
    secret::Secret,
};
#[cfg(feature = "object_store")]
pub use object_store::{LocalDirectory, ObjectStoreAdapter};
pub use profile::Profile;
pub use store::{BucketFacts, S3Store};
