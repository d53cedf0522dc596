//! Settings of one registry.

use crate::{credentials::CredentialsConfig, key::is_name, selection::Selection};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    http::Proxy,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One side: a registry, and what is selected of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// `host` or `host:port`, without a scheme; `docker.io` is Docker Hub.
    pub registry: String,
    /// Speak HTTP without TLS to this registry. Nothing else makes requests leave in the clear.
    pub insecure: bool,
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<String>,
    /// Which proxy requests go through.
    pub proxy: Proxy,
    /// Who asks.
    pub credentials: CredentialsConfig,
    /// Token services besides the registry's own host that credentials may be sent to: a registry can name any host in its
    /// challenge. Those of Docker Hub and GitLab are known.
    pub token_hosts: Vec<String>,
    /// As a source: which images there are.
    pub select: Selection,
    /// As a destination: other names for repositories; the longest `from` that fits counts, once.
    pub rename: Vec<Rename>,
    /// Seconds for name resolution, TCP and TLS together; 10 where nothing is set.
    pub connect_timeout_seconds: Option<u64>,
    /// Seconds without a byte after which a request is given up; 60 where nothing is set.
    pub idle_timeout_seconds: Option<u64>,
}

/// A repository, or all under it, by another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// A repository's name, or the beginning of names up to a slash (`library/`).
    pub from: String,
    /// What stands there instead.
    pub to: String,
}

/// Which ECR, and how repositories are made there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EcrConfig {
    /// The account whose registry it is; that of the credentials where nothing is set.
    pub account: Option<String>,
    /// What repositories are made with that do not exist; without it, none is made.
    pub create: Option<RepositorySettings>,
}

/// How a repository is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepositorySettings {
    /// Tags cannot be moved once they are set.
    pub immutable_tags: bool,
    /// Images are scanned when they are pushed.
    pub scan_on_push: bool,
    /// Encrypt with this key of KMS, by ARN, id or alias; `aws/ecr` for that of AWS. Without it, with AES-256.
    pub kms_key: Option<String>,
    /// A lifecycle policy as JSON.
    pub lifecycle_policy: Option<String>,
    /// Tags of the repository.
    pub tags: BTreeMap<String, String>,
}

impl RegistryConfig {
    /// `host[:port]` that requests go to.
    pub(crate) fn authority(&self) -> &str {
        match self.registry.as_str() {
            // The name of images, and the host that has them.
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// All but the selection, which [`Selected::new`](crate::selection::Selected::new) reads.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |setting: String, why: &str| Err(Error::new(ErrorKind::Invalid, Op::Configure, setting).with_source(why));
        let named = format!("registry = `{}`", self.registry);
        let uri: Option<http::uri::Authority> = self.registry.parse().ok();
        if self.registry.contains(['/', '@']) || uri.is_none_or(|a| a.host().is_empty()) {
            return invalid(named, "name it as host or host:port, without a scheme, a path or a user");
        }
        for (at, Rename { from, to }) in self.rename.iter().enumerate() {
            let fits = |text: &str| is_name(text.strip_suffix('/').unwrap_or(text));
            let named = format!("rename = {{ from = `{from}`, to = `{to}` }}");
            if !fits(from)
                || !(fits(to) || (from.ends_with('/') && to.is_empty()))
                || (from.ends_with('/') != to.ends_with('/') && !to.is_empty())
            {
                return invalid(named, "both are names of repositories, or both end with a slash");
            }
            // Two into one would make two images one.
            let meets = |other: &Rename| other.from == *from || other.to == *to || (to.ends_with('/') && other.to.starts_with(to.as_str()));
            if self.rename.iter().enumerate().any(|(i, other)| i != at && meets(other)) {
                return invalid(named, "another rule has the same `from`, or leads to the same place");
            }
        }
        Ok(())
    }

    /// What a repository is called at this destination.
    pub(crate) fn rename(&self, name: &str) -> String {
        renamed(self.rename.iter().map(|r| (r.from.as_str(), r.to.as_str())), name)
    }

    /// What a repository of this destination is called by the engine.
    pub(crate) fn rename_back(&self, name: &str) -> String {
        renamed(self.rename.iter().map(|r| (r.to.as_str(), r.from.as_str())), name)
    }
}

fn renamed<'a>(rules: impl Iterator<Item = (&'a str, &'a str)>, name: &str) -> String {
    let fitting = rules.filter(|(from, _)| name == *from || ((from.ends_with('/') || from.is_empty()) && name.starts_with(from)));
    match fitting.max_by_key(|(from, _)| from.len()) {
        Some((from, to)) => format!("{to}{}", &name[from.len()..]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> RegistryConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn repositories_are_renamed_and_back() {
        let config = config(
            "registry = 'r:5000'\nrename = [{ from = 'library/', to = 'hub/' }, { from = 'library/nginx', to = 'web' }, { from = 'a', to = 'b' }]",
        );
        config.validate().unwrap();
        for (name, there) in [("library/redis", "hub/redis"), ("library/nginx", "web"), ("a", "b"), ("ab", "ab"), ("library", "library")] {
            assert_eq!(config.rename(name), there);
            assert_eq!(config.rename_back(there), name);
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (bad, told) in [
            ("registry = 'https://r'", "without a scheme"),
            ("registry = 'user:pass@r'", "without a scheme"),
            ("registry = ''", "registry = ``"),
            ("registry = 'r'\nrename = [{ from = 'A', to = 'b' }]", "`A`"),
            ("registry = 'r'\nrename = [{ from = 'a/', to = 'b' }]", "both end with a slash"),
            ("registry = 'r'\nrename = [{ from = 'a', to = 'c' }, { from = 'b', to = 'c' }]", "the same place"),
        ] {
            let error = config(bad).validate().unwrap_err().chain();
            assert!(error.contains(told), "{error}");
        }
    }
}
