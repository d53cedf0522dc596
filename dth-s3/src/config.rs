//! Settings of one bucket; plain data.

use crate::profile::Profile;
use dth_core::error::{Error, ErrorKind, Op, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the bucket is put into the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Virtual-host style at Amazon (path style for names with dots), path style elsewhere.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    VirtualHost,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// Writes stars: settings may be written down, secrets may not.
impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("***")
    }
}

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whose rights are used; said explicitly, never guessed, never another identity when one fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum CredentialsConfig {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, or the same with another prefix.
    #[default]
    Environment,
    /// As `Environment`, from variables `{prefix}_ACCESS_KEY_ID` and so on.
    EnvironmentPrefix {
        /// For example `SRC`.
        prefix: String,
    },
    /// A key pair.
    Static {
        /// Access key id.
        access_key_id: String,
        /// Secret access key.
        secret_access_key: Secret,
        /// Session token of temporary credentials.
        #[serde(default)]
        session_token: Option<Secret>,
    },
    /// No signature: public data.
    Anonymous,
    /// The default chain of the AWS SDKs: environment, profile, web identity, container, IMDS (feature `aws-config`).
    DefaultChain {
        /// A profile of `~/.aws/config`.
        #[serde(default)]
        profile: Option<String>,
    },
}

/// Server-side encryption of what is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Encryption {
    /// As the bucket says.
    #[default]
    None,
    /// `AES256`.
    Aes256,
    /// `aws:kms`; etags then are no MD5.
    Kms {
        /// The key; the bucket's default key where there is none.
        #[serde(default)]
        key_id: Option<String>,
    },
}

/// One bucket of an S3 store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// The region; it decides the partition (`cn-…`, `us-gov-…`) where no endpoint is given.
    pub region: String,
    /// `http(s)://host[:port]` of a store that is not Amazon's.
    pub endpoint: Option<String>,
    /// How the bucket is put into the URL.
    pub style: Style,
    /// Whose rights are used.
    pub credentials: CredentialsConfig,
    /// What the store can do.
    pub profile: Profile,
    /// Accept to pay for the requests and the traffic of somebody else's bucket.
    pub requester_pays: bool,
    /// Storage class of what is written.
    pub storage_class: Option<String>,
    /// Canned ACL of what is written; sent only when asked for.
    pub acl: Option<String>,
    /// Server-side encryption of what is written.
    pub encryption: Encryption,
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<String>,
    /// Seconds until a connection must stand.
    pub connect_timeout_seconds: Option<u64>,
    /// Seconds without a byte after which a request is given up.
    pub idle_timeout_seconds: Option<u64>,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host`.
    pub(crate) base: String,
    /// The `Host` header.
    pub(crate) host: String,
    /// Before the key: empty, or `/bucket`.
    pub(crate) path: String,
    /// Without the bucket, for comparing two stores.
    pub(crate) store: String,
}

impl S3Config {
    pub(crate) fn region(&self) -> &str {
        if self.region.is_empty() { "us-east-1" } else { &self.region }
    }

    /// The endpoint. `Invalid`, naming the setting, when one is missing or wrong.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        let invalid = |setting: &str, why: String| Err(Error::new(ErrorKind::Invalid, Op::Configure, setting).with_source(why));
        if self.bucket.is_empty() || self.bucket.contains(['/', '?', '#', ' ']) {
            return invalid("bucket", format!("`{}` is not a bucket name", self.bucket));
        }
        let region = self.region();
        let (scheme, authority, amazon) = match &self.endpoint {
            None => {
                let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
                ("https".to_owned(), format!("s3.{region}.{suffix}"), true)
            }
            Some(endpoint) if endpoint.contains('@') => {
                return invalid("endpoint", "a user or password does not belong into it".into());
            }
            Some(endpoint) => {
                let with_scheme = if endpoint.contains("://") { endpoint.clone() } else { format!("https://{endpoint}") };
                let uri: http::Uri = match with_scheme.parse() {
                    Ok(uri) => uri,
                    Err(error) => return invalid("endpoint", format!("`{endpoint}`: {error}")),
                };
                let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
                    return invalid("endpoint", format!("`{endpoint}` is not of the form http(s)://host[:port]"));
                };
                if !uri.path().trim_matches('/').is_empty() {
                    return invalid("endpoint", format!("`{endpoint}`: a path does not belong here"));
                }
                (scheme.to_owned(), authority.as_str().to_owned(), false)
            }
        };
        let virtual_host = match self.style {
            Style::VirtualHost => true,
            Style::Path => false,
            // A certificate for *.s3.region… does not cover a name with dots.
            Style::Auto => amazon && !self.bucket.contains('.'),
        };
        let store = format!("{scheme}://{authority}");
        Ok(if virtual_host {
            let host = format!("{}.{authority}", self.bucket);
            Endpoint { base: format!("{scheme}://{host}"), host, path: String::new(), store }
        } else {
            Endpoint { base: store.clone(), host: authority, path: format!("/{}", self.bucket), store }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(region: &str, endpoint: Option<&str>, bucket: &str) -> String {
        let config = S3Config { bucket: bucket.into(), region: region.into(), endpoint: endpoint.map(Into::into), ..S3Config::default() };
        config.endpoint().map_or_else(|e| e.chain(), |e| format!("{}{}", e.base, e.path))
    }

    #[test]
    fn partitions_styles_and_endpoints() {
        assert_eq!(base("eu-west-1", None, "b"), "https://b.s3.eu-west-1.amazonaws.com");
        assert_eq!(base("", None, "b"), "https://b.s3.us-east-1.amazonaws.com");
        assert_eq!(base("cn-north-1", None, "b"), "https://b.s3.cn-north-1.amazonaws.com.cn");
        assert_eq!(base("us-gov-west-1", None, "a.b"), "https://s3.us-gov-west-1.amazonaws.com/a.b");
        assert_eq!(base("", Some("http://127.0.0.1:9000"), "b"), "http://127.0.0.1:9000/b");
        assert_eq!(base("", Some("minio.example/"), "b"), "https://minio.example/b");
        for (endpoint, bucket, named) in
            [("ftp://x", "b", "endpoint"), ("http://x/y", "b", "endpoint"), ("http://u@x", "b", "endpoint"), ("http://x", "a/b", "bucket")]
        {
            assert!(base("", Some(endpoint), bucket).contains(named), "{endpoint} {bucket}");
        }
    }

    /// T17: a secret never shows, however it is printed.
    #[test]
    fn secrets_are_not_printed() {
        let credentials = CredentialsConfig::Static {
            access_key_id: "AKIDVISIBLE".into(),
            secret_access_key: Secret::new("canary-secret"),
            session_token: Some(Secret::new("canary-token")),
        };
        let config = S3Config { bucket: "b".into(), credentials, ..S3Config::default() };
        let printed = format!("{config:?} {config:#?}");
        assert!(!printed.contains("canary"), "{printed}");
    }
}
