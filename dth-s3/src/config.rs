//! Settings of one bucket; plain data.

use crate::profile::{Dialect, Hosts, Profile};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    http::Proxy,
    secret::Secret,
    settings::no_more_fields,
};
use serde::{Deserialize, Serialize};

/// How the bucket is put into the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Virtual-host style at Amazon (path style for names with dots) and where the profile's documents ask for it, path style elsewhere
    /// and for addresses.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    VirtualHost,
}

/// Which way leads to a store, where it has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The internet.
    #[default]
    Public,
    /// The network of the cloud's own machines in that region.
    Internal,
    /// The nearest edge of the cloud; the bucket must allow it.
    Accelerate,
}

impl Network {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Accelerate => "accelerate",
        }
    }
}

/// Whose rights are used; said explicitly, never guessed, never another identity when one fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum CredentialsConfig {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, or the same with another prefix.
    #[default]
    #[serde(deserialize_with = "no_more_fields")]
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
    #[serde(deserialize_with = "no_more_fields")]
    Anonymous,
    /// The default chain of the AWS SDKs: environment, profile, web identity, container, IMDS (feature `aws-config`).
    DefaultChain {
        /// A profile of `~/.aws/config`: this one, and nothing else of the chain.
        #[serde(default)]
        profile: Option<String>,
    },
    /// A key pair that lies in AWS Secrets Manager as JSON, `{"access_key_id": …, "secret_access_key": …}` and, if need be,
    /// `"session_token"` (feature `secrets-manager`). The default chain must have the right to read it.
    ///
    /// It is read again every ten minutes, and when the store refuses what it holds. A secret that cannot be read is an error;
    /// no other identity takes its place.
    Secret {
        /// Name or ARN of the secret.
        name: String,
        /// Where it is, when neither its ARN says so nor the environment or profile.
        #[serde(default)]
        region: Option<String>,
        /// Another endpoint than Amazon's.
        #[serde(default)]
        endpoint: Option<String>,
    },
    /// A role, assumed with other credentials (feature `aws-config`). Renewed before it expires.
    AssumeRole {
        /// ARN of the role.
        role: String,
        /// What the role's trust policy asks for, if anything.
        #[serde(default)]
        external_id: Option<String>,
        /// How the session is called in the logs of the account; `dth` where nothing is set.
        #[serde(default)]
        session_name: Option<String>,
        /// The region whose STS is asked, when that is not the bucket's; it decides the partition.
        #[serde(default)]
        region: Option<String>,
        /// Another endpoint of STS than Amazon's.
        #[serde(default)]
        endpoint: Option<String>,
        /// Whose rights are used to assume it.
        base: Box<CredentialsConfig>,
    },
}

impl CredentialsConfig {
    /// How it is called in errors.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Secret { name, .. } => format!("secret {name}"),
            Self::AssumeRole { role, .. } => format!("role {role}"),
            Self::DefaultChain { profile: Some(profile) } => format!("credentials (profile {profile})"),
            Self::DefaultChain { profile: None } => "credentials (default chain)".into(),
            _ => "credentials".into(),
        }
    }

    /// Whether there may be other keys when it is asked again.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self, Self::DefaultChain { .. } | Self::Secret { .. } | Self::AssumeRole { .. })
    }
}

/// Server-side encryption of what is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Encryption {
    /// As the bucket says.
    #[default]
    #[serde(deserialize_with = "no_more_fields")]
    None,
    /// `AES256`.
    #[serde(deserialize_with = "no_more_fields")]
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
    /// The bucket, or the ARN of an access point.
    pub bucket: String,
    /// The region; it decides the partition (`cn-…`, `us-gov-…`) where no endpoint is given. Empty, at Amazon: begun with `us-east-1`,
    /// and followed to where the store says that the bucket is.
    pub region: String,
    /// `http(s)://host[:port]`, where it is not the one of the profile and region.
    pub endpoint: Option<String>,
    /// Which of the endpoints of profile and region.
    pub network: Network,
    /// Amazon's endpoints with FIPS 140 cryptography.
    pub fips: bool,
    /// Endpoints that answer over IPv6 as well.
    pub dual_stack: bool,
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
    /// Least bytes of a part, of a store that takes smaller ones than its kind does (5 MiB).
    pub min_part: Option<u64>,
    /// Its listings are not in byte order: they are sorted on disk before they are compared.
    pub unordered_listing: bool,
    /// Which proxy requests go through.
    pub proxy: Proxy,
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

impl Endpoint {
    /// Two of one name in different regions are different stores.
    fn of_region(self, region: &str) -> Self {
        Self { store: format!("{} ({region})", self.store), ..self }
    }
}

fn invalid(setting: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Invalid, Op::Configure, setting).with_source(why)
}

/// The parts of an access point's ARN, `arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME`.
struct AccessPoint<'a> {
    region: &'a str,
    account: &'a str,
    name: &'a str,
}

impl<'a> AccessPoint<'a> {
    fn parse(arn: &'a str) -> Result<Self> {
        let refused = |why: &str| Err(invalid("bucket", format!("`{arn}`: {why}")));
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let [_, _, service, region, account, resource] = parts[..] else {
            return refused("not of the form arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME");
        };
        match (service, resource.split_once(['/', ':'])) {
            ("s3-object-lambda", _) => refused("Object Lambda changes what is read: copy from the access point behind it"),
            ("s3-outposts", _) => refused("S3 on Outposts is not supported"),
            ("s3", Some(("accesspoint", _))) if region.is_empty() => {
                refused("multi-region access points are not supported: name the access point or bucket of one region")
            }
            ("s3", Some(("accesspoint", name))) if is_account(account) && is_label(name) => Ok(Self { region, account, name }),
            _ => refused("not of the form arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME"),
        }
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a name can be a part of a host name.
fn is_label(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl S3Config {
    /// The region of an access point, the one that is set, or the one to begin with.
    pub(crate) fn region(&self) -> &str {
        match AccessPoint::parse(&self.bucket) {
            Ok(point) if self.bucket.starts_with("arn:") => point.region,
            _ if self.region.is_empty() => self.profile.facts().hosts.region.unwrap_or("us-east-1"),
            _ => &self.region,
        }
    }

    /// Whether the bucket's region is to be found out.
    pub(crate) fn finds_region(&self) -> bool {
        self.region.is_empty() && !self.bucket.starts_with("arn:") && self.profile.facts().hosts == Hosts::NONE
    }

    /// The endpoint in a region. `Invalid`, naming the setting, when one is missing or wrong.
    pub(crate) fn endpoint(&self, region: &str) -> Result<Endpoint> {
        let bucket = self.bucket.as_str();
        if bucket.is_empty() {
            return Err(invalid("bucket", "is missing"));
        }
        if bucket.ends_with("--x-s3") || bucket.ends_with("--xa-s3") {
            let why =
                format!("`{bucket}` is a directory bucket (S3 Express One Zone): its sessions, etags and listing order are not supported");
            return Err(invalid("bucket", why));
        }
        let point = if bucket.starts_with("arn:") { Some(AccessPoint::parse(bucket)?) } else { None };
        if point.is_none() && bucket.contains(['/', '?', '#', ' ']) {
            return Err(invalid("bucket", format!("`{bucket}` is not a bucket name")));
        }
        match &self.endpoint {
            None if self.profile == Profile::Aws => self.amazon(region, point.as_ref()),
            None if point.is_some() => Err(invalid("bucket", format!("`{bucket}` is an access point of Amazon's: leave `profile` out"))),
            None => self.of_profile(),
            Some(_) if point.is_some() => Err(invalid("endpoint", "an access point has its own: leave this out")),
            Some(_) if self.fips || self.dual_stack || self.network != Network::Public => {
                Err(invalid("endpoint", "`network`, `fips` and `dual_stack` choose among the store's own: leave one out"))
            }
            Some(endpoint) => self.custom(endpoint),
        }
    }

    /// Amazon S3 User Guide, "Making requests over IPv6", "FIPS", "Access points": names of hosts.
    fn amazon(&self, region: &str, point: Option<&AccessPoint<'_>>) -> Result<Endpoint> {
        if !is_label(region) {
            return Err(invalid("region", format!("`{region}` is not a region's name")));
        }
        let china = region.starts_with("cn-");
        if self.fips && !["us-", "ca-"].iter().any(|with| region.starts_with(with)) {
            return Err(invalid("fips", format!("there are no such endpoints in `{region}`, only in the United States and Canada")));
        }
        let suffix = if china { "amazonaws.com.cn" } else { "amazonaws.com" };
        let service = match (point.is_some(), self.fips) {
            (false, false) => "s3",
            (false, true) => "s3-fips",
            (true, false) => "s3-accesspoint",
            (true, true) => "s3-accesspoint-fips",
        };
        let stack = if self.dual_stack { "dualstack." } else { "" };
        match self.network {
            Network::Public => {}
            // Amazon S3 User Guide, "Using the Amazon S3 Transfer Acceleration endpoints".
            Network::Accelerate if point.is_none() && !self.fips && !self.bucket.contains('.') => {
                return Ok(virtual_host("https", &self.bucket, &format!("s3-accelerate.{stack}{suffix}")).of_region(region));
            }
            other => {
                let why = format!("`{}`: there is no such endpoint of Amazon's for this bucket", other.as_str());
                return Err(invalid("network", why));
            }
        }
        let authority = format!("{service}.{stack}{region}.{suffix}");
        match point {
            Some(point) => Ok(virtual_host("https", &format!("{}-{}", point.name, point.account), &authority)),
            // A certificate for *.s3.region… does not cover a name with dots.
            None => Ok(self.in_style("https", &authority, !self.bucket.contains('.'))),
        }
    }

    /// The endpoint that the vendor's documents name.
    fn of_profile(&self) -> Result<Endpoint> {
        let (of, facts) = (self.profile.as_str(), self.profile.facts());
        let hosts = &facts.hosts;
        if hosts.public.is_none() {
            return Err(invalid("endpoint", format!("is missing: nobody knows where a store of profile `{of}` is")));
        }
        let (setting, template) = match (self.network, self.dual_stack) {
            (Network::Public, true) => ("dual_stack", hosts.dual_stack),
            (Network::Public, false) => ("network", hosts.public),
            (Network::Internal, false) => ("network", hosts.internal),
            (Network::Accelerate, false) => ("network", hosts.accelerate),
            (_, true) => ("dual_stack", None),
        };
        if self.fips {
            return Err(invalid("fips", format!("there are no such endpoints of profile `{of}`")));
        }
        let template = template.ok_or_else(|| invalid(setting, format!("there is no such endpoint of profile `{of}`: give `endpoint`")))?;
        let region = if self.region.is_empty() { hosts.region } else { Some(self.region.as_str()) };
        let region = region.ok_or_else(|| invalid("region", format!("is missing: profile `{of}` needs it")))?;
        if !is_label(region) {
            return Err(invalid("region", format!("`{region}` is not a region's name")));
        }
        let authority = template.replace("{region}", region);
        let endpoint = self.in_style("https", &authority, facts.virtual_host && !self.bucket.contains('.'));
        // One name for all regions.
        Ok(if self.network == Network::Accelerate { endpoint.of_region(region) } else { endpoint })
    }

    /// `Invalid`, naming the setting, for what the store does not know.
    pub(crate) fn validate(&self) -> Result<()> {
        let (of, facts) = (self.profile.as_str(), self.profile.facts());
        let named = |setting: &str, value: &Option<String>, known: &[&str]| match value {
            Some(value) if !known.is_empty() && !known.contains(&value.as_str()) => {
                Err(invalid(setting, format!("`{value}`: profile `{of}` knows {}", known.join(", "))))
            }
            _ => Ok(()),
        };
        named("storage_class", &self.storage_class, facts.classes)?;
        named("acl", &self.acl, facts.acls)?;
        let regional = facts.hosts.public.and_then(|host| host.split_once("{region}")).map(|(before, _)| before);
        let refused = |setting: &str| Err(invalid(setting, format!("profile `{of}` has no such thing")));
        match self {
            _ if self.acl.is_some() && facts.acls.is_empty() => refused("acl"),
            _ if self.requester_pays && !facts.requester_pays => refused("requester_pays"),
            _ if self.encryption != Encryption::None && !facts.encryption => refused("encryption"),
            _ if self.region.is_empty() && facts.dialect != Dialect::Cos && regional.is_some() => {
                Err(invalid("region", format!("is missing: signatures of profile `{of}` name it")))
            }
            _ if regional.is_some_and(|before| !before.is_empty() && self.region.starts_with(before)) => {
                Err(invalid("region", format!("`{}`: leave `{}` out", self.region, regional.unwrap_or_default())))
            }
            _ => Ok(()),
        }
    }

    fn custom(&self, endpoint: &str) -> Result<Endpoint> {
        if endpoint.contains('@') {
            return Err(invalid("endpoint", "a user or password does not belong into it"));
        }
        let with_scheme = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
        let uri: http::Uri = with_scheme.parse().map_err(|error| invalid("endpoint", format!("`{endpoint}`: {error}")))?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(invalid("endpoint", format!("`{endpoint}` is not of the form http(s)://host[:port]")));
        };
        if !uri.path().trim_matches('/').is_empty() {
            return Err(invalid("endpoint", format!("`{endpoint}`: a path does not belong here")));
        }
        let is_address = authority.host().trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() || authority.host() == "localhost";
        let as_host = self.profile.facts().virtual_host && !is_address;
        if as_host && authority.host().starts_with(&format!("{}.", self.bucket)) {
            return Err(invalid("endpoint", format!("`{endpoint}`: the bucket is put before it, leave it out")));
        }
        Ok(self.in_style(scheme, authority.as_str(), as_host))
    }

    fn in_style(&self, scheme: &str, authority: &str, by_itself: bool) -> Endpoint {
        let as_host = match self.style {
            Style::VirtualHost => true,
            Style::Path => false,
            Style::Auto => by_itself,
        };
        if as_host {
            return virtual_host(scheme, &self.bucket, authority);
        }
        let store = format!("{scheme}://{authority}");
        Endpoint { base: store.clone(), host: authority.to_owned(), path: format!("/{}", self.bucket), store }
    }
}

fn virtual_host(scheme: &str, name: &str, authority: &str) -> Endpoint {
    let host = format!("{name}.{authority}");
    Endpoint { base: format!("{scheme}://{host}"), host, path: String::new(), store: format!("{scheme}://{authority}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(region: &str, endpoint: Option<&str>, bucket: &str) -> String {
        let config = S3Config { bucket: bucket.into(), region: region.into(), endpoint: endpoint.map(Into::into), ..S3Config::default() };
        config.endpoint(config.region()).map_or_else(|e| e.chain(), |e| format!("{}{}", e.base, e.path))
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

    /// What stands beside a kind that has no settings would mean something to whoever wrote it there.
    #[test]
    fn settings_that_mean_nothing_are_refused() {
        for bad in [
            r#"credentials = { kind = "environment", prefix = "SRC" }"#,
            r#"credentials = { kind = "anonymous", access_key_id = "a" }"#,
            r#"encryption = { kind = "aes256", key_id = "k" }"#,
            r#"encryption = { kind = "none", key_id = "k" }"#,
            r#"proxy = { kind = "environment", no_proxy = "x" }"#,
            r#"proxy = { kind = "none", url = "http://x" }"#,
        ] {
            let error = toml::from_str::<S3Config>(bad).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{bad}: {error}");
        }
        let good = "credentials = { kind = \"anonymous\" }\nencryption = { kind = \"aes256\" }\nproxy = { kind = \"none\" }\n";
        let config: S3Config = toml::from_str(good).unwrap();
        assert_eq!((&config.credentials, &config.encryption), (&CredentialsConfig::Anonymous, &Encryption::Aes256));
        assert_eq!(toml::from_str::<S3Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn amazons_other_endpoints() {
        let base = |region: &str, bucket: &str, fips, dual_stack| {
            let config = S3Config { bucket: bucket.into(), region: region.into(), fips, dual_stack, ..S3Config::default() };
            config.endpoint(config.region()).map_or_else(|e| e.chain(), |e| format!("{}{}", e.base, e.path))
        };
        assert_eq!(base("us-east-2", "b", true, false), "https://b.s3-fips.us-east-2.amazonaws.com");
        assert_eq!(base("eu-west-1", "b", false, true), "https://b.s3.dualstack.eu-west-1.amazonaws.com");
        assert_eq!(base("us-gov-west-1", "b", true, true), "https://b.s3-fips.dualstack.us-gov-west-1.amazonaws.com");
        assert_eq!(base("cn-north-1", "b", false, true), "https://b.s3.dualstack.cn-north-1.amazonaws.com.cn");
        let point = "arn:aws:s3:us-west-2:123456789012:accesspoint/my-point";
        assert_eq!(base("", point, false, false), "https://my-point-123456789012.s3-accesspoint.us-west-2.amazonaws.com");
        assert_eq!(base("", point, true, true), "https://my-point-123456789012.s3-accesspoint-fips.dualstack.us-west-2.amazonaws.com");
        for (bucket, fips, named) in [
            ("b", true, "fips"),
            ("logs--use1-az4--x-s3", false, "directory bucket"),
            ("arn:aws:s3::123456789012:accesspoint/m.mrap", false, "multi-region"),
            ("arn:aws:s3-object-lambda:us-west-2:1:accesspoint/x", false, "Object Lambda"),
            ("arn:aws:s3-outposts:us-west-2:1:outpost/op-1/accesspoint/x", false, "Outposts"),
            ("arn:aws:s3:us-west-2:1", false, "not of the form"),
            ("arn:aws:s3:us-west-2:123456789012:accesspoint/evil.example/", false, "not of the form"),
            ("arn:aws:s3:us-west-2:evil.example/:accesspoint/x", false, "not of the form"),
        ] {
            assert!(base("eu-west-1", bucket, fips, false).contains(named), "{bucket}: {}", base("eu-west-1", bucket, fips, false));
        }
        assert!(base("evil.example/", "b", false, false).contains("region"));
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
