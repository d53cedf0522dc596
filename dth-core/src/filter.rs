//! Which source objects take part: globs on the key, size, time.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::{Entry, ObjectKey},
};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Filter settings. All that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSettings {
    /// Only keys that match one of these globs (`*` stops at `/`, `**` does not).
    pub include: Vec<String>,
    /// No keys that match one of these.
    pub exclude: Vec<String>,
    /// Only objects of at least so many bytes.
    pub min_size: Option<u64>,
    /// Only objects of at most so many bytes.
    pub max_size: Option<u64>,
    /// Only objects written at or after this time.
    pub modified_since: Option<Timestamp>,
    /// Only objects written before this time.
    pub modified_before: Option<Timestamp>,
}

impl FilterSettings {
    /// Whether more than the key must be known.
    pub fn asks_for_more_than_keys(&self) -> bool {
        let Self { min_size, max_size, modified_since, modified_before, .. } = self;
        min_size.is_some() || max_size.is_some() || modified_since.is_some() || modified_before.is_some()
    }
}

/// A compiled filter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    settings: FilterSettings,
    include: Globs,
    exclude: Globs,
}

/// Globs, any of which may match; `*` stops at `/`, `**` does not.
#[derive(Debug, Clone, Default)]
pub struct Globs(Option<GlobSet>);

impl Filter {
    /// Compiles the globs. `Invalid`, naming the glob, when one is not.
    pub fn new(settings: FilterSettings) -> Result<Self> {
        let include = Globs::new("filter.include", &settings.include)?;
        let exclude = Globs::new("filter.exclude", &settings.exclude)?;
        Ok(Self { settings, include, exclude })
    }

    /// Whether an object of this key may take part: what the globs say.
    pub fn takes_key(&self, key: &ObjectKey) -> bool {
        let key = key.as_str();
        (self.include.is_empty() || self.include.matches(key)) && !self.exclude.matches(key)
    }

    /// Whether more than the key must be known.
    pub fn asks_for_more_than_keys(&self) -> bool {
        self.settings.asks_for_more_than_keys()
    }

    /// Whether an entry takes part. A size or time that the listing does not tell lets it pass.
    pub fn takes(&self, entry: &Entry) -> bool {
        let s = &self.settings;
        self.takes_key(&entry.key)
            && entry.size.is_none_or(|size| s.min_size.is_none_or(|least| size >= least) && s.max_size.is_none_or(|most| size <= most))
            && entry
                .modified
                .is_none_or(|at| s.modified_since.is_none_or(|since| at >= since) && s.modified_before.is_none_or(|before| at < before))
    }
}

impl Globs {
    /// Compiles the globs of a setting. `Invalid`, naming the glob, when one is not.
    pub fn new<T: AsRef<str>>(setting: &str, patterns: &[T]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Self(None));
        }
        let mut set = GlobSetBuilder::new();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let glob = GlobBuilder::new(pattern)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|e| Error::new(ErrorKind::Invalid, Op::Configure, format!("{setting} = {pattern}")).with_source(e))?;
            set.add(glob);
        }
        let set = set.build().map_err(|e| Error::new(ErrorKind::Invalid, Op::Configure, setting).with_source(e))?;
        Ok(Self(Some(set)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether one of them matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|set| set.is_match(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_given_conditions_must_hold() {
        let filter = Filter::new(FilterSettings {
            include: vec!["logs/**".into(), "*.txt".into()],
            exclude: vec!["**/tmp/*".into()],
            min_size: Some(1),
            max_size: Some(10),
            ..FilterSettings::default()
        })
        .unwrap();
        let takes = |key: &str, size| filter.takes(&Entry::new(key, size, None));
        assert!(takes("logs/a/b", 5) && takes("x.txt", 1) && takes("x.txt", 10));
        assert!(!takes("d/x.txt", 5) && !takes("logs/tmp/a", 5) && !takes("x.txt", 0) && !takes("x.txt", 11));
    }

    #[test]
    fn a_bad_glob_is_named() {
        let bad = FilterSettings { include: vec!["a[".into()], ..FilterSettings::default() };
        let error = Filter::new(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("a["), "{error}");
    }
}
