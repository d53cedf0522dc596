//! How images are called among the keys of the engine.

use dth_core::object::{ETag, ObjectKey};
use std::fmt;

/// Most characters of a repository's name (oci-spec and the distribution registry agree).
const MAX_NAME: usize = 255;

/// An image, or a part of one, as a key: `name:tag`, `name@digest` for a manifest, `name#digest` for a blob.
///
/// By bytes, all keys of a repository lie together: what a name may go on with is less than `:` or more than `@`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageKey {
    /// A manifest under a tag.
    Tag {
        /// The repository.
        name: String,
        /// The tag.
        tag: String,
    },
    /// A manifest under its digest.
    Manifest {
        /// The repository.
        name: String,
        /// `sha256:…`.
        digest: String,
    },
    /// A blob: a layer, a configuration.
    Blob {
        /// The repository.
        name: String,
        /// `sha256:…`.
        digest: String,
    },
    /// A repository whose tags could not be listed, as `name:`: its job tells why.
    Unlisted {
        /// The repository.
        name: String,
    },
}

impl ImageKey {
    /// Reads a key; `None` for what names no image.
    pub fn parse(key: &ObjectKey) -> Option<Self> {
        let key = key.as_str();
        let digest = |digest: &str| is_digest(digest).then(|| digest.to_owned());
        let (name, this) = if let Some((name, rest)) = key.split_once('#') {
            (name, Self::Blob { name: name.into(), digest: digest(rest)? })
        } else if let Some((name, rest)) = key.split_once('@') {
            (name, Self::Manifest { name: name.into(), digest: digest(rest)? })
        } else {
            let (name, tag) = key.split_once(':')?;
            match tag {
                "" => (name, Self::Unlisted { name: name.into() }),
                _ if is_tag(tag) => (name, Self::Tag { name: name.into(), tag: tag.into() }),
                _ => return None,
            }
        };
        is_name(name).then_some(this)
    }

    /// The repository.
    pub fn name(&self) -> &str {
        match self {
            Self::Tag { name, .. } | Self::Manifest { name, .. } | Self::Blob { name, .. } | Self::Unlisted { name } => name,
        }
    }

    /// The same in another repository.
    #[must_use]
    pub fn renamed(mut self, to: String) -> Self {
        match &mut self {
            Self::Tag { name, .. } | Self::Manifest { name, .. } | Self::Blob { name, .. } | Self::Unlisted { name } => *name = to,
        }
        self
    }

    /// The tag or digest behind `/manifests/`; of a blob, its digest.
    pub fn reference(&self) -> &str {
        match self {
            Self::Tag { tag, .. } => tag,
            Self::Manifest { digest, .. } | Self::Blob { digest, .. } => digest,
            Self::Unlisted { .. } => "",
        }
    }

    /// The digest that the key itself names.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Manifest { digest, .. } | Self::Blob { digest, .. } => Some(digest),
            Self::Tag { .. } | Self::Unlisted { .. } => None,
        }
    }

    /// The etag of that digest.
    pub(crate) fn etag(&self) -> Option<ETag> {
        self.digest().map(ETag::new)
    }

    /// The key.
    pub fn to_key(&self) -> ObjectKey {
        ObjectKey::new(self.to_string())
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag { name, tag } => write!(f, "{name}:{tag}"),
            Self::Manifest { name, digest } => write!(f, "{name}@{digest}"),
            Self::Blob { name, digest } => write!(f, "{name}#{digest}"),
            Self::Unlisted { name } => write!(f, "{name}:"),
        }
    }
}

/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests>:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
pub(crate) fn is_name(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let component = |part: &str| {
        let mut separators = part.split(alphanumeric).filter(|s| !s.is_empty());
        part.starts_with(alphanumeric)
            && part.ends_with(alphanumeric)
            && separators.all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    name.len() <= MAX_NAME && name.split('/').all(component)
}

/// The same section: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#digests>; of the registered algorithms.
pub(crate) fn is_digest(digest: &str) -> bool {
    let hexadecimal = |hex: &str, len| hex.len() == len && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match digest.split_once(':') {
        Some(("sha256", hex)) => hexadecimal(hex, 64),
        Some(("sha512", hex)) => hexadecimal(hex, 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in ["a:v1", "a/b-c/d__e.f:V_1.0-x", &format!("a@{DIGEST}"), &format!("a/b#{DIGEST}"), "a:"] {
            assert_eq!(ImageKey::parse(&key.into()).unwrap().to_string(), *key);
        }
        let bad =
            ["", ":", "a", "A:v", "a/:v", "/a:v", "a//b:v", "a:-v", "a:v v", "a@sha256:00", "a#x", "a___b:v", "a.-b:v", "-a:v", "a:v:w"];
        for bad in bad {
            assert_eq!(ImageKey::parse(&bad.into()), None, "{bad}");
        }
        assert_eq!(ImageKey::parse(&format!("a:{}", "t".repeat(129)).into()), None);
        assert_eq!(ImageKey::parse(&format!("a@{}", DIGEST.to_uppercase()).into()), None);
    }

    proptest! {
        /// So that repositories, in the order of their names with a colon, make keys in byte order.
        #[test]
        fn keys_of_a_repository_lie_together(a in "[a-z0-9]{1,3}([._/-][a-z0-9]{1,2}){0,2}", b in "[a-z0-9]{1,3}([._/-][a-z0-9]{1,2}){0,2}") {
            prop_assume!(a != b && is_name(&a) && is_name(&b));
            let keys = |name: &str| [format!("{name}:"), format!("{name}:zz"), format!("{name}@{DIGEST}")];
            let (of_a, of_b) = (keys(&a), keys(&b));
            prop_assert!(of_a[2] < of_b[0] || of_b[2] < of_a[0]);
        }
    }
}
