//! What settings of several crates have in common.

use serde::{Deserialize, Deserializer};

/// For a variant without fields of a tagged enum, where serde would take, and drop, whatever stands beside the tag:
/// `#[serde(deserialize_with = "no_more_fields")]`. A setting that means nothing is an error.
pub fn no_more_fields<'de, D: Deserializer<'de>>(fields: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(fields).map(|Nothing {}| ())
}
