//! Source keys to destination keys.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::ObjectKey,
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, sync::Arc};

/// What becomes of a source key before the destination's prefix is put before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyRules {
    /// Taken off the beginning of every key. It is part of the task's prefix: keys that begin otherwise are not the task's.
    pub strip: String,
    /// A regular expression (of the [`regex`] crate); each match in what is left of the key is replaced. A key without a match stays.
    pub pattern: Option<String>,
    /// What matches are replaced by: `$1` or `${name}` stand for groups, `$$` for a dollar sign.
    pub replacement: String,
}

/// Takes `strip` off a source key, replaces what a pattern matches, and puts a prefix with a slash before the rest. By default all
/// keys stay as they are.
///
/// Without a pattern the order of keys stays, each destination key has one source key, and both listings are merged as they come. With
/// one neither holds: the source's listing is sorted on disk by destination keys, and keys that would become the same one are skipped.
#[derive(Debug, Clone, Default)]
pub struct KeyMap {
    strip: String,
    replace: Option<Arc<(Regex, String)>>,
    prefix: String,
}

impl KeyMap {
    /// A map that puts `prefix` and a slash before each key; a slash at its end is not doubled. An empty prefix, or `/`, means none.
    pub fn new(prefix: &str) -> Self {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        Self { prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") }, ..Self::default() }
    }

    /// The same map, with these rules before the prefix. `Invalid` when the pattern is none, or names no group of its own.
    pub fn with_rules(self, rules: &KeyRules) -> Result<Self> {
        let invalid = |text: String, why: String| Error::new(ErrorKind::Invalid, Op::Configure, text).with_source(why);
        let replace = match &rules.pattern {
            Some(pattern) => {
                let regex = Regex::new(pattern).map_err(|e| invalid(format!("keys.pattern = {pattern}"), e.to_string()))?;
                if let Some(group) = unknown_group(&regex, &rules.replacement) {
                    let why = format!("the pattern `{pattern}` has no group `{group}`; write `${{1}}x` for a group with text behind it");
                    return Err(invalid(format!("keys.replacement = {}", rules.replacement), why));
                }
                Some(Arc::new((regex, rules.replacement.clone())))
            }
            None if !rules.replacement.is_empty() => {
                return Err(invalid(format!("keys.replacement = {}", rules.replacement), "there is no keys.pattern".into()));
            }
            None => None,
        };
        Ok(Self { strip: rules.strip.clone(), replace, ..self })
    }

    /// What is taken off every key; keys of the task begin so.
    pub fn strip(&self) -> &str {
        &self.strip
    }

    /// Whether it keeps the order of keys, and can be undone.
    pub fn is_ordered(&self) -> bool {
        self.replace.is_none()
    }

    fn changes_nothing(&self) -> bool {
        self.is_ordered() && self.prefix.is_empty() && self.strip.is_empty()
    }

    /// The destination key of a source key. May be empty, which no store carries.
    pub fn to_destination(&self, key: &ObjectKey) -> ObjectKey {
        if self.changes_nothing() {
            return key.clone();
        }
        let rest = self.stripped(key.as_str());
        let rest = match &self.replace {
            None => Cow::Borrowed(rest),
            Some(replace) => replace.0.replace_all(rest, replace.1.as_str()),
        };
        ObjectKey::new(format!("{}{rest}", self.prefix))
    }

    /// The source key of a destination key; `None` when it has another prefix, or when a pattern cannot be undone.
    pub fn to_source(&self, key: &ObjectKey) -> Option<ObjectKey> {
        if self.changes_nothing() {
            return Some(key.clone());
        }
        if !self.is_ordered() {
            return None;
        }
        key.as_str().strip_prefix(&self.prefix).map(|rest| ObjectKey::new(format!("{}{rest}", self.strip)))
    }

    /// The destination prefix under which all keys of a source prefix lie.
    pub fn destination_prefix(&self, source_prefix: &str) -> String {
        let rest = if self.is_ordered() { self.stripped(source_prefix) } else { "" };
        format!("{}{rest}", self.prefix)
    }

    /// The prefix of the source keys that take part, by the one that is set: what is stripped is part of it. `Invalid` when no key has both.
    pub fn task_prefix(&self, prefix: &str) -> Result<String> {
        if prefix.starts_with(&self.strip) {
            Ok(prefix.to_owned())
        } else if self.strip.starts_with(prefix) {
            Ok(self.strip.clone())
        } else {
            let why = format!("no key begins with `{prefix}` and with keys.strip = `{}`", self.strip);
            Err(Error::new(ErrorKind::Invalid, Op::Configure, format!("finder.prefix = {prefix}")).with_source(why))
        }
    }

    /// What is left of a key; of one that is not the task's, text that lies before or behind what is left of all that are.
    fn stripped<'a>(&self, key: &'a str) -> &'a str {
        match key.strip_prefix(&self.strip) {
            Some(rest) => rest,
            None if key < self.strip.as_str() => "",
            None => "\u{10ffff}",
        }
    }
}

/// A group that a replacement names and a pattern lacks: `$1x` would be the group `1x`, and every match would become nothing.
fn unknown_group(regex: &Regex, replacement: &str) -> Option<String> {
    let mut rest = replacement;
    while let Some((_, behind)) = rest.split_once('$') {
        if let Some(behind) = behind.strip_prefix('$') {
            rest = behind;
            continue;
        }
        let name = match behind.strip_prefix('{') {
            Some(inner) => inner.split_once('}').map(|(name, _)| name),
            None => Some(&behind[..behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(behind.len())]),
        };
        let known = |name: &str| match name.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|known| known == name),
        };
        match name {
            Some(name) if !name.is_empty() && !known(name) => return Some(name.to_owned()),
            _ => rest = behind,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(strip: &str, pattern: Option<&str>, replacement: &str) -> KeyRules {
        KeyRules { strip: strip.into(), pattern: pattern.map(str::to_owned), replacement: replacement.into() }
    }

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

    proptest! {
        /// Stripping keeps order, is undone, and is a bound for keys of others.
        #[test]
        fn what_is_stripped_keeps_its_order(strip in "[ab/]{0,3}", prefix in "[ab]{0,2}", a in "[ab/\u{e9}]{0,5}", b in "[ab/\u{e9}]{0,5}") {
            let map = KeyMap::new(&prefix).with_rules(&rules(&strip, None, "")).unwrap();
            let (a, b) = (ObjectKey::new(a), ObjectKey::new(b));
            if a <= b {
                prop_assert!(map.to_destination(&a) <= map.to_destination(&b));
            }
            if a.as_str().starts_with(&strip) {
                prop_assert_eq!(map.to_source(&map.to_destination(&a)), Some(a.clone()));
                prop_assert!(map.to_destination(&a).as_str().starts_with(&map.destination_prefix(&strip)));
            }
        }
    }

    #[test]
    fn patterns_replace_what_they_match() {
        let map = KeyMap::new("new").with_rules(&rules("old/", Some(r"^(\d{4})-(\d\d)-(.*)$"), "$1/$2/${3}")).unwrap();
        assert_eq!(map.to_destination(&"old/2024-05-a.txt".into()).as_str(), "new/2024/05/a.txt");
        assert_eq!(map.to_destination(&"old/other".into()).as_str(), "new/other", "without a match it stays");
        assert!(!map.is_ordered() && map.to_source(&"new/other".into()).is_none());
        assert_eq!(map.destination_prefix("old/20"), "new/");
    }

    #[test]
    fn wrong_rules_are_named() {
        for (bad, named) in [
            (rules("", Some("("), ""), "keys.pattern = ("),
            (rules("", None, "x"), "keys.replacement = x"),
            (rules("", Some("(a)"), "$1x"), "`1x`"),
            (rules("", Some("(a)"), "$2"), "`2`"),
            (rules("", Some("(?<year>a)"), "${month}"), "`month`"),
        ] {
            let error = KeyMap::default().with_rules(&bad).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(named), "{}", error.chain());
        }
        for good in [rules("", Some("(a)"), "${1}x$$1"), rules("", Some("(?<year>a)"), "$year-$0"), rules("", Some("a"), "$")] {
            KeyMap::default().with_rules(&good).unwrap();
        }
    }
}
