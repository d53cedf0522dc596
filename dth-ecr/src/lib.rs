#![doc = include_str!("../README.md")]

mod config;
mod credentials;
mod docker_config;
#[cfg(feature = "aws")]
mod ecr;
mod error;
mod hosts;
mod images;
mod key;
mod layout;
mod manifest;
mod registry;
mod selection;
mod wire;

pub use config::{EcrConfig, RegistryConfig, Rename, RepositorySettings};
pub use credentials::{CredentialsConfig, Login, LoginSource};
#[cfg(feature = "aws")]
pub use ecr::Ecr;
pub use key::ImageKey;
pub use layout::OciLayout;
pub use registry::{ControlPlane, ListedImage, Registry, RegistryBuilder};
pub use selection::{Selection, TagFilter};
