//! Settings of the original system: its flat YAML file, and its names in the environment, which stand over the file.

use crate::{Settings, settings::Cluster};
use anyhow::{Context, bail, ensure};
use dth_core::plan::compare::CompareBy;
use dth_s3::{CredentialsConfig, Encryption, Profile, S3Config};
use std::collections::BTreeMap;

/// Names in the environment. In the file they are written as in `srcBucket`.
const NAMES: [&str; 31] = [
    "SOURCE_TYPE",
    "SRC_BUCKET",
    "SRC_PREFIX",
    "SRC_PREFIX_LIST",
    "SRC_PREFIX_LIST_BUCKET",
    "SRC_REGION",
    "SRC_ENDPOINT",
    "SRC_CREDENTIALS",
    "SRC_IN_CURRENT_ACCOUNT",
    "PAYER_REQUEST",
    "SKIP_COMPARE",
    "DEST_BUCKET",
    "DEST_PREFIX",
    "DEST_REGION",
    "DEST_CREDENTIALS",
    "DEST_IN_CURRENT_ACCOUNT",
    "DEST_STORAGE_CLASS",
    "DEST_ACL",
    "DEST_SSE_TYPE",
    "DEST_SSE_KMS_KEY_ID",
    "INCLUDE_METADATA",
    "CHUNK_SIZE",
    "MULTIPART_THRESHOLD",
    "GIANT_FILE_THRESHOLD",
    "MAX_KEYS",
    "MESSAGE_BATCH_SIZE",
    "FINDER_DEPTH",
    "FINDER_NUMBER",
    "WORKER_NUMBER",
    "JOB_QUEUE_NAME",
    "JOB_TABLE_NAME",
];

/// Names in the file that are not those of the environment in another spelling.
const IN_THE_FILE: [(&str, &str); 3] =
    [("srcType", "SOURCE_TYPE"), ("srcCredential", "SRC_CREDENTIALS"), ("destCredential", "DEST_CREDENTIALS")];

/// What was tuned by hand, and adapts by itself here.
const NEEDLESS: [&str; 4] = ["MAX_KEYS", "MESSAGE_BATCH_SIZE", "FINDER_DEPTH", "WORKER_NUMBER"];

/// Values of the original system by their names in the environment. An empty one is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// What is set in the environment.
    pub fn from_environment() -> Self {
        Self::of(NAMES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))))
    }

    /// `name: value` lines, below `options:` or not. An error names the line.
    pub fn from_flat_yaml(text: &str) -> anyhow::Result<Self> {
        let mut values = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') || line == "---" {
                continue;
            }
            // Not the line: if it is of another form, there may be a secret in it.
            let (name, value) = line.split_once(':').with_context(|| format!("line {number} is not `name: value`"))?;
            let (name, value) = (name.trim(), scalar(value.trim()));
            if name == "options" && value.is_empty() {
                continue;
            }
            let known = canonical(name).with_context(|| format!("line {number}: `{name}` is no setting of Data Transfer Hub"))?;
            values.push((known, value.to_owned()));
        }
        Ok(Self::of(values))
    }

    fn of(values: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(values.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    /// These, and where they are silent, the others.
    #[must_use]
    pub fn or(mut self, others: Self) -> Self {
        for (name, value) in others.0 {
            self.0.entry(name).or_insert(value);
        }
        self
    }

    /// The names that are set.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(NAMES.contains(&name), "{name}");
        self.0.get(name).map(String::as_str)
    }

    fn flag(&self, name: &str) -> anyhow::Result<Option<bool>> {
        let flag = |value: &str| match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => bail!("{name} = `{value}`: true or false is expected"),
        };
        self.get(name).map(flag).transpose()
    }

    fn number(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let number = |value: &str| value.parse().with_context(|| format!("{name} = `{value}`: a number is expected"));
        self.get(name).map(number).transpose()
    }

    /// The original counts sizes in MiB.
    fn mebibytes(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let bytes = |n: u64| n.checked_mul(1 << 20).with_context(|| format!("{name} = `{n}`: a number of MiB is expected"));
        self.number(name)?.map(bytes).transpose()
    }
}

/// `srcBucket`, `src_bucket` and `SRC_BUCKET` are one name.
fn canonical(name: &str) -> Option<&'static str> {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let spelled = IN_THE_FILE.iter().copied().chain(NAMES.iter().map(|name| (*name, *name)));
    spelled.into_iter().find(|(spelling, _)| plain(spelling) == plain(name)).map(|(_, name)| name)
}

/// The text of a value, without quotes and comments.
fn scalar(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some((inside, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return inside;
        }
    }
    if value.starts_with('#') { "" } else { value.split(" #").next().unwrap_or_default().trim() }
}

/// What holds where a file of the original system says nothing: whoever has neither a secret nor a bucket in the own account is unsigned.
pub fn defaults() -> Settings {
    let mut settings = Settings::default();
    settings.source.credentials = CredentialsConfig::Anonymous;
    settings.destination.credentials = CredentialsConfig::Anonymous;
    settings
}

/// Puts values of the original system over settings. An error names the setting and what to do.
pub fn apply(settings: &mut Settings, values: &Values) -> anyhow::Result<()> {
    source(settings, values)?;
    destination(settings, values)?;
    let s = settings;
    if let Some(skip) = values.flag("SKIP_COMPARE")? {
        s.finder.compare = if skip { CompareBy::Always } else { CompareBy::default() };
    }
    if let Some(metadata) = values.flag("INCLUDE_METADATA")? {
        s.worker.transfer.metadata = metadata;
    }
    if let Some(bytes) = values.mebibytes("CHUNK_SIZE")? {
        s.worker.transfer.part_size = bytes;
    }
    if let Some(bytes) = values.mebibytes("MULTIPART_THRESHOLD")? {
        s.worker.transfer.single_max = bytes;
    }
    if let Some(bytes) = values.mebibytes("GIANT_FILE_THRESHOLD")? {
        s.worker.giant_threshold = bytes;
    }
    if let Some(number) = values.number("FINDER_NUMBER")? {
        // One is its default, and less than ours.
        s.finder.shards = s.finder.shards.max(usize::try_from(number)?);
    }
    for name in NEEDLESS {
        if let Some(value) = values.get(name) {
            tracing::warn!("{name} = `{value}` is not needed here, and left out: how much is done at once adapts by itself");
        }
    }
    // Its queue is read as it is. Its table has keys of another kind: it is kept up to date, and ours lies beside it.
    if let Some(queue) = values.get("JOB_QUEUE_NAME") {
        set(&mut cluster(s).queue, Some(queue));
    }
    if let Some(table) = values.get("JOB_TABLE_NAME") {
        let cluster = cluster(s);
        cluster.table = format!("{table}-dth");
        cluster.job_table = Some(table.to_owned());
    }
    Ok(())
}

/// Queue and state in AWS, as the original system has them.
fn cluster(settings: &mut Settings) -> &mut Cluster {
    settings.cluster.get_or_insert_with(|| Cluster { create: true, ..Cluster::default() })
}

fn source(settings: &mut Settings, values: &Values) -> anyhow::Result<()> {
    let side = &mut settings.source;
    set(&mut side.bucket, values.get("SRC_BUCKET"));
    set(&mut side.region, values.get("SRC_REGION"));
    if let Some(endpoint) = values.get("SRC_ENDPOINT") {
        side.endpoint = Some(endpoint.to_owned());
    }
    match values.get("SOURCE_TYPE") {
        None | Some("Amazon_S3") => {}
        Some(kind) => elsewhere(side, kind)?,
    }
    if let Some(pays) = values.flag("PAYER_REQUEST")? {
        side.requester_pays = pays;
    }
    identity(side, values, "SRC_CREDENTIALS", "SRC_IN_CURRENT_ACCOUNT")?;
    set(&mut settings.finder.prefix, values.get("SRC_PREFIX"));
    let bucket = values.get("SRC_PREFIX_LIST_BUCKET").map(str::to_owned);
    if let Some(key) = values.get("SRC_PREFIX_LIST") {
        // There the list stands for the prefix.
        settings.finder.prefix.clear();
        let list = settings.prefix_list.get_or_insert_default();
        (list.file, list.key, list.bucket) = (None, Some(key.to_owned()), bucket);
    } else if let Some(bucket) = bucket {
        bail!("SRC_PREFIX_LIST_BUCKET = `{bucket}`: there is no SRC_PREFIX_LIST in it");
    }
    Ok(())
}

/// A store that is not Amazon's.
fn elsewhere(side: &mut S3Config, kind: &str) -> anyhow::Result<()> {
    side.profile = match kind {
        "Aliyun_OSS" => Profile::Oss,
        "Tencent_COS" => Profile::Cos,
        "Qiniu_Kodo" => Profile::Kodo,
        other => bail!("SOURCE_TYPE = `{other}`: Amazon_S3, Aliyun_OSS, Tencent_COS or Qiniu_Kodo is expected"),
    };
    // Signatures name the region, whatever the endpoint; those of COS do not.
    let needed = side.endpoint.is_none() || side.profile != Profile::Cos;
    ensure!(!needed || !side.region.is_empty(), "SOURCE_TYPE = `{kind}` needs SRC_REGION");
    Ok(())
}

fn destination(settings: &mut Settings, values: &Values) -> anyhow::Result<()> {
    set(&mut settings.destination_prefix, values.get("DEST_PREFIX"));
    let side = &mut settings.destination;
    set(&mut side.bucket, values.get("DEST_BUCKET"));
    set(&mut side.region, values.get("DEST_REGION"));
    if let Some(class) = values.get("DEST_STORAGE_CLASS") {
        side.storage_class = Some(class.to_owned());
    }
    if let Some(acl) = values.get("DEST_ACL") {
        side.acl = Some(acl.to_owned());
    }
    let key_id = values.get("DEST_SSE_KMS_KEY_ID").map(str::to_owned);
    match values.get("DEST_SSE_TYPE") {
        None => {}
        Some("None" | "none") => side.encryption = Encryption::None,
        Some("AES256") => side.encryption = Encryption::Aes256,
        Some("AWS_KMS" | "aws:kms") => side.encryption = Encryption::Kms { key_id: None },
        Some(other) => bail!("DEST_SSE_TYPE = `{other}`: AES256 or aws:kms is expected"),
    }
    match (key_id, &mut side.encryption) {
        (None, _) => {}
        (given, Encryption::Kms { key_id }) => *key_id = given,
        (Some(key), _) => bail!("DEST_SSE_KMS_KEY_ID = `{key}` needs DEST_SSE_TYPE = aws:kms"),
    }
    identity(side, values, "DEST_CREDENTIALS", "DEST_IN_CURRENT_ACCOUNT")
}

/// In the current account, the secret means nothing; elsewhere, no secret means no signature.
fn identity(side: &mut S3Config, values: &Values, secret: &str, here: &str) -> anyhow::Result<()> {
    match (values.flag(here)?, values.get(secret)) {
        (Some(true), _) => side.credentials = CredentialsConfig::DefaultChain { profile: None },
        // In the region of the environment; the original knows no other place.
        (_, Some(name)) => side.credentials = CredentialsConfig::Secret { name: name.to_owned(), region: None, endpoint: None },
        (Some(false), None) => side.credentials = CredentialsConfig::Anonymous,
        (None, None) => {}
    }
    Ok(())
}

fn set(setting: &mut String, value: Option<&str>) {
    if let Some(value) = value {
        value.clone_into(setting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `config-example.yaml` of the original's command line, with what else its users set.
    const FILE: &str = include_str!("../fixtures/original-config.yaml");

    fn applied(text: &str) -> anyhow::Result<Settings> {
        let mut settings = defaults();
        apply(&mut settings, &Values::from_flat_yaml(text)?)?;
        Ok(settings)
    }

    #[test]
    fn the_original_file_is_read_in_its_own_spelling() {
        let s = applied(FILE).unwrap();
        assert_eq!((s.source.bucket.as_str(), s.source.region.as_str()), ("src-bucket", "us-west-2"));
        assert_eq!((s.destination.bucket.as_str(), s.destination.region.as_str()), ("dest-bucket", "cn-north-1"));
        assert_eq!(s.source.credentials, CredentialsConfig::Secret { name: "src".into(), region: None, endpoint: None });
        assert_eq!(s.destination.credentials, CredentialsConfig::DefaultChain { profile: None });
        assert_eq!(s.destination.encryption, Encryption::Kms { key_id: Some("arn:aws-cn:kms:cn-north-1:1:key/k".into()) });
        assert_eq!(
            (s.destination.storage_class.as_deref(), s.destination.acl.as_deref()),
            (Some("STANDARD"), Some("bucket-owner-full-control"))
        );
        assert_eq!((s.worker.transfer.part_size, s.worker.transfer.single_max, s.worker.giant_threshold), (5 << 20, 10 << 20, 2 << 30));
        assert!(!s.worker.transfer.metadata && s.source.requester_pays && s.finder.compare != CompareBy::Always);
        assert_eq!(s.finder.shards, Settings::default().finder.shards);
        let cluster = s.cluster.unwrap();
        assert_eq!((cluster.queue.as_str(), cluster.table.as_str()), ("test-queue", "test-table-dth"));
        assert_eq!(cluster.job_table.as_deref(), Some("test-table"));
    }

    /// Every name of the original does something, is refused, or is named by a warning.
    #[test]
    fn every_name_means_something() {
        for name in NAMES {
            let value = match name {
                "SOURCE_TYPE" => "Tencent_COS",
                "DEST_SSE_TYPE" => "AES256",
                "PAYER_REQUEST" | "SKIP_COMPARE" | "SRC_IN_CURRENT_ACCOUNT" | "DEST_IN_CURRENT_ACCOUNT" => "true",
                "INCLUDE_METADATA" => "false",
                _ => "77",
            };
            let mut values = Values::of([(name, value.to_owned())]);
            if name == "SOURCE_TYPE" {
                values = values.or(Values::of([("SRC_REGION", "x".into())]));
            }
            if name == "SRC_PREFIX_LIST_BUCKET" {
                values = values.or(Values::of([("SRC_PREFIX_LIST", "list".into())]));
            }
            if name == "DEST_SSE_KMS_KEY_ID" {
                values = values.or(Values::of([("DEST_SSE_TYPE", "aws:kms".into())]));
            }
            let mut settings = Settings::default();
            apply(&mut settings, &values).unwrap();
            let changed = toml::to_string(&settings).unwrap() != toml::to_string(&Settings::default()).unwrap();
            assert_eq!(changed, !NEEDLESS.contains(&name), "{name}");
        }
    }

    #[test]
    fn every_name_is_known_in_every_spelling() {
        for name in NAMES {
            assert_eq!((canonical(name), canonical(&name.to_lowercase())), (Some(name), Some(name)));
        }
        for (spelling, name) in
            [("destSSEType", "DEST_SSE_TYPE"), ("destSSEKMSKeyId", "DEST_SSE_KMS_KEY_ID"), ("srcPrefixList", "SRC_PREFIX_LIST")]
        {
            assert_eq!(canonical(spelling), Some(name));
        }
    }

    #[test]
    fn the_environment_stands_over_the_file_where_it_says_something() {
        let environment = Values::of([("SRC_BUCKET", String::new()), ("DEST_BUCKET", "other".into()), ("SKIP_COMPARE", "false".into())]);
        let file = Values::from_flat_yaml("srcBucket: a # there\ndestBucket: 'b #1'\nskipCompare: true\n").unwrap();
        assert_eq!(file.get("DEST_BUCKET"), Some("b #1"));
        let mut settings = Settings::default();
        apply(&mut settings, &environment.or(file)).unwrap();
        assert_eq!((settings.source.bucket.as_str(), settings.destination.bucket.as_str()), ("a", "other"));
        assert_eq!(settings.finder.compare, CompareBy::default());
    }

    #[test]
    fn identities_are_those_of_the_original() {
        let of = |text: &str| applied(text).unwrap().source.credentials;
        let secret = CredentialsConfig::Secret { name: "s".into(), region: None, endpoint: None };
        assert_eq!(of("srcCredential: s\nsrcInCurrentAccount: false\n"), secret);
        assert_eq!(of("srcCredential: s\n"), secret);
        assert_eq!(of("srcCredential: s\nsrcInCurrentAccount: true\n"), CredentialsConfig::DefaultChain { profile: None });
        assert_eq!(of("srcCredential:\nsrcInCurrentAccount: false\n"), CredentialsConfig::Anonymous);
        assert_eq!(of("srcBucket: public\n"), CredentialsConfig::Anonymous);
    }

    #[test]
    fn other_clouds_are_not_looked_for_at_amazon() {
        for (kind, endpoint) in [
            ("Aliyun_OSS", "https://oss-x-1.aliyuncs.com"),
            ("Tencent_COS", "https://cos.x-1.myqcloud.com"),
            ("Qiniu_Kodo", "https://s3.x-1.qiniucs.com"),
        ] {
            let side = applied(&format!("srcType: {kind}\nsrcBucket: b\nsrcRegion: x-1\n")).unwrap().source;
            assert!(format!("{:?}", dth_s3::S3Store::new(side).unwrap()).contains(endpoint));
            let own = format!("srcType: {kind}\nsrcRegion: x-1\nsrcEndpoint: https://own.example\n");
            assert_eq!(applied(&own).unwrap().source.endpoint.as_deref(), Some("https://own.example"));
            let error = applied(&format!("srcType: {kind}\n")).unwrap_err();
            assert!(error.to_string().contains("SRC_REGION"), "{error:#}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (bad, named) in [
            ("PAYER_REQUEST: maybe", "PAYER_REQUEST"),
            ("chunkSize: big", "CHUNK_SIZE"),
            ("chunkSize: 99999999999999999999", "CHUNK_SIZE"),
            ("chunkSize: 18446744073709551615", "CHUNK_SIZE"),
            ("srcType: Floppy", "SOURCE_TYPE"),
            ("destSSEKMSKeyId: k", "DEST_SSE_KMS_KEY_ID"),
            ("srcBucket: a\n\ndestBuckt: b", "line 3: `destBuckt`"),
            ("no colon", "line 1"),
        ] {
            let error = applied(bad).unwrap_err();
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
    }
}
