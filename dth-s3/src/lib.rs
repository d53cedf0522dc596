#![doc = include_str!("../README.md")]

mod config;
mod credentials;
mod error;
mod headers;
mod profile;
mod sink;
mod store;
mod wire;

pub use config::{CredentialsConfig, Encryption, S3Config, Secret, Style};
pub use profile::Profile;
pub use store::S3Store;
