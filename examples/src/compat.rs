//! Settings of the original system: its flat YAML file, and the same names in the environment.

use crate::{Settings, settings::Cluster};
use anyhow::{Context, bail};
use dth_core::plan::compare::CompareBy;
use dth_s3::{CredentialsConfig, Encryption};
use std::collections::BTreeMap;

/// Names of the original system, in upper case.
const NAMES: [&str; 24] = [
    "SOURCE_TYPE",
    "SRC_BUCKET",
    "SRC_PREFIX",
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
    "FINDER_NUMBER",
    "JOB_QUEUE_NAME",
    "JOB_TABLE_NAME",
];

/// The names that are set in the environment.
pub fn environment() -> BTreeMap<String, String> {
    NAMES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

/// `name: value` lines; comments, quotes and both cases of names are taken.
pub fn flat_yaml(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line == "---" {
            continue;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("line {}: `{line}` is not `name: value`", number + 1))?;
        let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        values.insert(snake(name.trim()), value.to_owned());
    }
    Ok(values)
}

/// `srcBucket`, `src_bucket` and `SRC_BUCKET` are one name.
fn snake(name: &str) -> String {
    if name.chars().any(|c| c == '_') || name.chars().all(|c| !c.is_ascii_lowercase()) {
        return name.to_ascii_uppercase();
    }
    name.chars().flat_map(|c| if c.is_ascii_uppercase() { vec!['_', c] } else { vec![c.to_ascii_uppercase()] }).collect()
}

/// A secret in the region of the environment; the original knows no other place.
fn secret(name: String) -> CredentialsConfig {
    CredentialsConfig::Secret { name, region: None, endpoint: None }
}

/// Queue and state in AWS, as the original system has them.
fn cluster(settings: &mut Settings) -> &mut Cluster {
    settings.state = None;
    settings.cluster.get_or_insert_with(|| Cluster { create: true, ..Cluster::default() })
}

/// Puts values of the original system over settings. An error names the setting and what to do.
pub fn apply(settings: &mut Settings, values: BTreeMap<String, String>) -> anyhow::Result<()> {
    for (name, value) in values {
        let flag = || match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" | "" => Ok(false),
            _ => bail!("{name} = `{value}`: true or false is expected"),
        };
        // The original counts sizes in MiB.
        let mib = || value.parse::<u64>().map(|n| n << 20).with_context(|| format!("{name} = `{value}`: a number of MiB is expected"));
        let some = || (!value.is_empty()).then(|| value.clone());
        let s = &mut *settings;
        match name.as_str() {
            "SOURCE_TYPE" => match value.as_str() {
                "Amazon_S3" | "" => {}
                "Aliyun_OSS" | "Tencent_COS" | "Qiniu_Kodo" => s.source.profile = dth_s3::Profile::Compatible,
                other => bail!("SOURCE_TYPE = `{other}`: Amazon_S3, Aliyun_OSS, Tencent_COS or Qiniu_Kodo is expected"),
            },
            "SRC_BUCKET" => s.source.bucket = value,
            "SRC_PREFIX" => s.finder.prefix = value,
            "SRC_REGION" => s.source.region = value,
            "SRC_ENDPOINT" => s.source.endpoint = some(),
            "DEST_BUCKET" => s.destination.bucket = value,
            "DEST_PREFIX" => s.destination_prefix = value,
            "DEST_REGION" => s.destination.region = value,
            "DEST_STORAGE_CLASS" => s.destination.storage_class = some(),
            "DEST_ACL" => s.destination.acl = some(),
            "DEST_SSE_TYPE" => {
                s.destination.encryption = match value.as_str() {
                    "" | "None" | "none" => Encryption::None,
                    "AES256" => Encryption::Aes256,
                    "AWS_KMS" | "aws:kms" => Encryption::Kms { key_id: None },
                    other => bail!("DEST_SSE_TYPE = `{other}`: AES256 or aws:kms is expected"),
                }
            }
            "DEST_SSE_KMS_KEY_ID" => {
                if let (Encryption::Kms { key_id }, Some(key)) = (&mut s.destination.encryption, some()) {
                    *key_id = Some(key);
                }
            }
            "PAYER_REQUEST" => s.source.requester_pays = flag()?,
            "SKIP_COMPARE" if flag()? => s.finder.compare = CompareBy::Always,
            "INCLUDE_METADATA" => s.worker.transfer.metadata = flag()?,
            "CHUNK_SIZE" => s.worker.transfer.part_size = mib()?,
            "MULTIPART_THRESHOLD" => s.worker.transfer.single_max = mib()?,
            "FINDER_NUMBER" => s.finder.shards = value.parse().with_context(|| format!("{name} = `{value}`: a number is expected"))?,
            // Its queue is read as it is. Its table has keys of another kind: it is kept up to date, and ours lies beside it.
            "JOB_QUEUE_NAME" if !value.is_empty() => cluster(s).queue = value,
            "JOB_TABLE_NAME" if !value.is_empty() => {
                let cluster = cluster(s);
                cluster.table = format!("{value}-dth");
                cluster.job_table = Some(value);
            }
            "SRC_CREDENTIALS" if !value.is_empty() => s.source.credentials = secret(value),
            "DEST_CREDENTIALS" if !value.is_empty() => s.destination.credentials = secret(value),
            // Said of a bucket, it stands over the name of a secret: the names come in the order of the alphabet.
            "SRC_IN_CURRENT_ACCOUNT" if flag()? => s.source.credentials = CredentialsConfig::DefaultChain { profile: None },
            "DEST_IN_CURRENT_ACCOUNT" if flag()? => s.destination.credentials = CredentialsConfig::DefaultChain { profile: None },
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_is_read() {
        let text = "# task\nsrcBucket: \"a\"\nSRC_PREFIX: p/\ndest_bucket: b # there\nDEST_SSE_TYPE: AES256\nchunkSize: 5\nINCLUDE_METADATA: true\n";
        let mut settings = Settings::default();
        apply(&mut settings, flat_yaml(text).unwrap()).unwrap();
        assert_eq!((settings.source.bucket.as_str(), settings.destination.bucket.as_str()), ("a", "b"));
        assert_eq!((settings.finder.prefix.as_str(), settings.worker.transfer.part_size), ("p/", 5 << 20));
        assert_eq!(settings.destination.encryption, Encryption::Aes256);
        let text = "SRC_CREDENTIALS: drh-key\nSRC_IN_CURRENT_ACCOUNT: false\nDEST_CREDENTIALS: other\nDEST_IN_CURRENT_ACCOUNT: true\n";
        apply(&mut settings, flat_yaml(text).unwrap()).unwrap();
        assert_eq!(settings.source.credentials, secret("drh-key".into()));
        assert_eq!(settings.destination.credentials, CredentialsConfig::DefaultChain { profile: None });
        apply(&mut settings, flat_yaml("JOB_QUEUE_NAME: q\nJOB_TABLE_NAME: t\n").unwrap()).unwrap();
        let cluster = settings.cluster.unwrap();
        assert_eq!((cluster.queue.as_str(), cluster.table.as_str(), cluster.job_table.as_deref()), ("q", "t-dth", Some("t")));
    }

    #[test]
    fn bad_values_are_named() {
        for bad in ["PAYER_REQUEST: maybe", "CHUNK_SIZE: big", "SOURCE_TYPE: Floppy"] {
            let error = apply(&mut Settings::default(), flat_yaml(bad).unwrap()).unwrap_err();
            let name = bad.split(':').next().unwrap();
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
        assert!(flat_yaml("no colon").is_err());
    }
}
