//! Percent-encoding as signatures want it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;

/// Everything but RFC 3986's unreserved characters.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// A key as a path: byte-exact, only slashes stay.
pub(crate) fn path(key: &str) -> String {
    utf8_percent_encode(key, PATH).to_string()
}

/// A text of which nothing but unreserved characters stays.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

/// A query string.
pub(crate) fn query(pairs: &[(&str, String)]) -> String {
    let encoded: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", utf8_percent_encode(name, QUERY), utf8_percent_encode(value, QUERY))).collect();
    encoded.join("&")
}

/// A key of a listing with `encoding-type=url`. S3 writes a space as `+`, Ceph as `%20`; a plus sign is `%2B` at both. OSS and COS
/// leave a plus sign as it is.
pub(crate) fn decode_listed(key: &str, plus_is_space: bool) -> Option<Cow<'_, str>> {
    let spaced = if plus_is_space && key.contains('+') { Cow::Owned(key.replace('+', " ")) } else { Cow::Borrowed(key) };
    if !spaced.contains('%') {
        return Some(spaced);
    }
    percent_decode_str(&spaced).decode_utf8().ok().map(|key| key.into_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_keys_stay_themselves() {
        assert_eq!(path("a//b/../.\\ +%2F日\n"), "a//b/../.%5C%20%2B%252F%E6%97%A5%0A");
        assert_eq!(query(&[("prefix", "a b+c/é".into()), ("uploads", String::new())]), "prefix=a%20b%2Bc%2F%C3%A9&uploads=");
        for key in ["a b", "a+b", "a%2Fb", "é\u{301}", "\u{1}\n", "//", "😀"] {
            assert_eq!(decode_listed(&path(key), true).as_deref(), Some(key));
        }
        assert_eq!(decode_listed("a+b%2Bc", true).as_deref(), Some("a b+c"));
        assert_eq!(decode_listed("a+b%2Bc%20d", false).as_deref(), Some("a+b+c d"));
        assert_eq!(decode_listed("%FF", true), None);
    }
}
