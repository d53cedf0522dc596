//! When are source and destination equal? Small types, one question.

use crate::object::{Entry, EtagKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What comparing two listed entries tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Equal,
    /// Transfer.
    Differs,
    /// The listing cannot tell: the recorded pair of etags decides.
    AskRecord,
}

/// Compares what two listings show of one key.
pub trait Compare: fmt::Debug + Send + Sync + 'static {
    /// The verdict for one pair.
    fn judge(&self, source: &Entry, destination: &Entry) -> Verdict;
}

/// The strategies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompareBy {
    /// Sizes, then etags, then the recorded pair (source etag, destination etag). Finds same-size changes.
    #[default]
    Record,
    /// Sizes alone, as the original system did: a change that keeps the size is not seen.
    Size,
    /// Sizes and etags; another etag means another object.
    Etag,
    /// Sizes, and the destination not older than the source.
    Time,
    /// Transfer everything.
    Always,
}

impl CompareBy {
    /// The strategy between two stores with such etags.
    pub fn strategy(self, source: EtagKind, destination: EtagKind) -> Box<dyn Compare> {
        match self {
            Self::Record => Box::new(ByRecord::between(source, destination)),
            Self::Size => Box::new(BySize),
            Self::Etag => Box::new(ByEtag),
            Self::Time => Box::new(ByTime),
            Self::Always => Box::new(Always),
        }
    }
}

/// Sizes, then etags where they are comparable, then the record.
#[derive(Debug)]
pub struct ByRecord {
    /// Whether equal etags of the two stores mean equal objects.
    pub comparable: bool,
    /// Whether other etags mean other objects.
    pub decisive: bool,
}

impl ByRecord {
    /// The strategy between two stores with such etags.
    pub fn between(source: EtagKind, destination: EtagKind) -> Self {
        let comparable = source.is_comparable_with(destination);
        Self { comparable, decisive: comparable && source == EtagKind::Digest }
    }
}
/// Sizes alone.
#[derive(Debug)]
pub struct BySize;
/// Sizes and etags.
#[derive(Debug)]
pub struct ByEtag;
/// Sizes and times.
#[derive(Debug)]
pub struct ByTime;
/// Everything differs.
#[derive(Debug)]
pub struct Always;

impl Compare for ByRecord {
    fn judge(&self, source: &Entry, destination: &Entry) -> Verdict {
        if other_sizes(source, destination) {
            Verdict::Differs
        } else if self.comparable && source.etag.is_some() && source.etag == destination.etag {
            Verdict::Equal
        } else if self.decisive && source.etag.is_some() && destination.etag.is_some() {
            Verdict::Differs
        } else {
            Verdict::AskRecord
        }
    }
}

impl Compare for BySize {
    fn judge(&self, source: &Entry, destination: &Entry) -> Verdict {
        equal_if(source.size.is_some() && source.size == destination.size)
    }
}

impl Compare for ByEtag {
    fn judge(&self, source: &Entry, destination: &Entry) -> Verdict {
        equal_if(!other_sizes(source, destination) && source.etag.is_some() && source.etag == destination.etag)
    }
}

impl Compare for ByTime {
    fn judge(&self, source: &Entry, destination: &Entry) -> Verdict {
        let fresh = matches!((source.modified, destination.modified), (Some(s), Some(d)) if d >= s);
        equal_if(source.size == destination.size && fresh)
    }
}

impl Compare for Always {
    fn judge(&self, _: &Entry, _: &Entry) -> Verdict {
        Verdict::Differs
    }
}

/// A size that nobody tells is not another one.
fn other_sizes(source: &Entry, destination: &Entry) -> bool {
    matches!((source.size, destination.size), (Some(a), Some(b)) if a != b)
}

fn equal_if(equal: bool) -> Verdict {
    if equal { Verdict::Equal } else { Verdict::Differs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ETag;

    /// T8: a change that keeps the size is seen by every strategy that looks at more than the size.
    #[test]
    fn same_size_change_is_seen() {
        let entry = |etag: &str| Entry::new("k", 5, Some(ETag::new(etag)));
        let by_record = ByRecord::between(EtagKind::Md5, EtagKind::Md5);
        let by_digest = ByRecord::between(EtagKind::Digest, EtagKind::Digest);
        assert_eq!(
            (by_digest.judge(&entry("a"), &entry("b")), by_digest.judge(&entry("a"), &entry("a"))),
            (Verdict::Differs, Verdict::Equal)
        );
        assert_eq!(by_record.judge(&entry("a"), &entry("b")), Verdict::AskRecord);
        assert_eq!(ByRecord::between(EtagKind::Md5, EtagKind::Opaque).judge(&entry("a"), &entry("a")), Verdict::AskRecord);
        assert_eq!(ByEtag.judge(&entry("a"), &entry("b")), Verdict::Differs);
        assert_eq!(BySize.judge(&entry("a"), &entry("b")), Verdict::Equal);
        assert_eq!(by_record.judge(&entry("a"), &entry("a")), Verdict::Equal);
        assert_eq!(by_record.judge(&entry("a"), &Entry::new("k", 6, None)), Verdict::Differs);
        let unsized_ = |etag: &str| Entry { size: None, ..entry(etag) };
        assert_eq!(
            (by_digest.judge(&entry("a"), &unsized_("a")), ByEtag.judge(&unsized_("a"), &entry("a"))),
            (Verdict::Equal, Verdict::Equal)
        );
        assert_eq!(BySize.judge(&unsized_("a"), &unsized_("a")), Verdict::Differs);
        assert_eq!(ByTime.judge(&entry("a"), &entry("a")), Verdict::Differs, "no times: transfer");
    }
}
