//! Source keys to destination keys and back, without changing their order.

use crate::object::ObjectKey;
use serde::{Deserialize, Serialize};

/// Puts a prefix before every source key: `prefix + "/" + key`. An empty prefix, or `/`, means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct KeyMap {
    prefix: String,
}

impl KeyMap {
    /// A map that puts `prefix` and a slash before each key; a slash at its end is not doubled.
    pub fn new(prefix: &str) -> Self {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        Self { prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") } }
    }

    /// The destination key of a source key.
    pub fn to_destination(&self, key: &ObjectKey) -> ObjectKey {
        if self.prefix.is_empty() { key.clone() } else { ObjectKey::new(format!("{}{}", self.prefix, key.as_str())) }
    }

    /// The source key of a destination key; `None` when it has another prefix.
    pub fn to_source(&self, key: &ObjectKey) -> Option<ObjectKey> {
        if self.prefix.is_empty() {
            return Some(key.clone());
        }
        key.as_str().strip_prefix(&self.prefix).map(ObjectKey::from)
    }

    /// The destination prefix under which all keys of a source prefix lie.
    pub fn destination_prefix(&self, source_prefix: &str) -> String {
        format!("{}{source_prefix}", self.prefix)
    }
}

impl From<String> for KeyMap {
    fn from(prefix: String) -> Self {
        Self::new(&prefix)
    }
}

impl From<KeyMap> for String {
    fn from(map: KeyMap) -> Self {
        map.prefix.strip_suffix('/').unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_round_trip_and_keep_order() {
        for (prefix, expected) in [("", "a//b"), ("/", "a//b"), ("p", "p/a//b"), ("p/", "p/a//b"), ("p//", "p//a//b")] {
            let map = KeyMap::new(prefix);
            let there = map.to_destination(&"a//b".into());
            assert_eq!(there.as_str(), expected);
            assert_eq!(map.to_source(&there), Some("a//b".into()));
        }
        assert_eq!(KeyMap::new("p").to_source(&"pa".into()), None);
    }
}
