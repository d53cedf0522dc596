//! Inside the crate all headers have Amazon's names. Here they become those of another vendor, and back.
//!
//! Sources: Alibaba Cloud OSS API reference, "PutObject", "CopyObject", "InitiateMultipartUpload"; Tencent Cloud COS API reference,
//! "PUT Object", "PUT Object - Copy", "Common Request Headers".

use crate::profile::Dialect;
use http::{HeaderMap, HeaderName, HeaderValue};

const AMAZON: &str = "x-amz-";

/// What a vendor says otherwise.
struct Words {
    prefix: &'static str,
    /// Behind Amazon's prefix; behind the vendor's.
    names: &'static [(&'static str, &'static str)],
    /// Of a name behind Amazon's prefix: Amazon's value, the vendor's.
    values: &'static [(&'static str, &'static str, &'static str)],
}

const OSS: Words = Words {
    prefix: "x-oss-",
    names: &[("acl", "object-acl"), ("server-side-encryption-aws-kms-key-id", "server-side-encryption-key-id")],
    values: &[("server-side-encryption", "aws:kms", "KMS"), ("tagging-directive", "REPLACE", "Replace")],
};

const COS: Words = Words {
    prefix: "x-cos-",
    names: &[("server-side-encryption-aws-kms-key-id", "server-side-encryption-cos-kms-key-id")],
    values: &[
        ("server-side-encryption", "aws:kms", "cos/kms"),
        ("metadata-directive", "REPLACE", "Replaced"),
        ("tagging-directive", "REPLACE", "Replaced"),
    ],
};

impl Dialect {
    fn words(self) -> Option<&'static Words> {
        match self {
            Self::Amazon => None,
            Self::Oss => Some(&OSS),
            Self::Cos => Some(&COS),
        }
    }

    /// The headers of a request, as the vendor has them.
    pub(crate) fn speak(self, headers: HeaderMap) -> HeaderMap {
        let Some(words) = self.words() else { return headers };
        let mut spoken = HeaderMap::with_capacity(headers.len());
        for (name, value) in &headers {
            let Some(bare) = name.as_str().strip_prefix(AMAZON) else {
                if name == "if-none-match" && value == "*" {
                    spoken.append(named(words.prefix, "forbid-overwrite"), HeaderValue::from_static("true"));
                } else {
                    spoken.append(name, value.clone());
                }
                continue;
            };
            let theirs = words.names.iter().find(|(ours, _)| *ours == bare).map_or(bare, |(_, theirs)| theirs);
            let said = words.values.iter().find(|(of, ours, _)| *of == bare && value == ours);
            let value = said.map_or_else(|| value.clone(), |(_, _, theirs)| HeaderValue::from_static(theirs));
            spoken.append(named(words.prefix, theirs), value);
        }
        spoken
    }

    /// The headers of an answer, as Amazon has them.
    pub(crate) fn hear(self, headers: HeaderMap) -> HeaderMap {
        let Some(words) = self.words() else { return headers };
        let mut heard = HeaderMap::with_capacity(headers.len());
        for (name, value) in &headers {
            match name.as_str().strip_prefix(words.prefix) {
                Some(bare) => heard.append(named(AMAZON, bare), value.clone()),
                None => heard.append(name, value.clone()),
            };
        }
        heard
    }
}

fn named(prefix: &str, bare: &str) -> HeaderName {
    HeaderName::try_from(format!("{prefix}{bare}")).expect("a name behind another prefix is a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn vendors_have_their_own_words() {
        let ours = map(&[
            ("content-type", "text/plain"),
            ("if-none-match", "*"),
            ("x-amz-acl", "private"),
            ("x-amz-metadata-directive", "REPLACE"),
            ("x-amz-meta-acl", "REPLACE"),
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-server-side-encryption-aws-kms-key-id", "k"),
        ]);
        assert_eq!(Dialect::Amazon.speak(ours.clone()), ours);
        let oss = map(&[
            ("content-type", "text/plain"),
            ("x-oss-forbid-overwrite", "true"),
            ("x-oss-object-acl", "private"),
            ("x-oss-metadata-directive", "REPLACE"),
            ("x-oss-meta-acl", "REPLACE"),
            ("x-oss-server-side-encryption", "KMS"),
            ("x-oss-server-side-encryption-key-id", "k"),
        ]);
        assert_eq!(Dialect::Oss.speak(ours.clone()), oss);
        let cos = map(&[
            ("content-type", "text/plain"),
            ("x-cos-forbid-overwrite", "true"),
            ("x-cos-acl", "private"),
            ("x-cos-metadata-directive", "Replaced"),
            ("x-cos-meta-acl", "REPLACE"),
            ("x-cos-server-side-encryption", "cos/kms"),
            ("x-cos-server-side-encryption-cos-kms-key-id", "k"),
        ]);
        assert_eq!(Dialect::Cos.speak(ours), cos);
        let answer = map(&[("etag", "\"e\""), ("x-oss-meta-a", "b"), ("x-oss-version-id", "v"), ("x-oss-hash-crc64ecma", "7")]);
        let heard = map(&[("etag", "\"e\""), ("x-amz-meta-a", "b"), ("x-amz-version-id", "v"), ("x-amz-hash-crc64ecma", "7")]);
        assert_eq!(Dialect::Oss.hear(answer), heard);
    }
}
