//! Encoded words of RFC 2047, in which Amazon S3 takes and gives metadata that is not ASCII.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt::Write as _;

/// Most bytes of text in a word: with its frame it has at most 75 characters.
const WORD: usize = 45;

/// A text as it may stand in a header: ASCII as it is, anything else in words.
pub(crate) fn encode(text: &str) -> String {
    if text.is_ascii() && !text.contains("=?") {
        return text.to_owned();
    }
    let mut words = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(rest.floor_char_boundary(WORD));
        let _ = write!(words, "{}=?UTF-8?B?{}?=", if words.is_empty() { "" } else { " " }, STANDARD.encode(word));
        rest = behind;
    }
    words
}

/// What a header says. Words that are none, or of another character set than UTF-8, stay as they are.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let mut said = Vec::new();
    let mut rest = text;
    let mut behind_word = false;
    while !rest.is_empty() {
        if let Some((bytes, behind)) = word(rest) {
            said.extend(bytes);
            (rest, behind_word) = (behind, true);
            continue;
        }
        let space = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        // White space between two words is none of the text.
        if behind_word && space > 0 && word(&rest[space..]).is_some() {
            rest = &rest[space..];
            continue;
        }
        let next = rest.char_indices().nth(1).map_or(rest.len(), |(at, _)| at);
        said.extend(rest[..next].bytes());
        (rest, behind_word) = (&rest[next..], false);
    }
    said
}

/// The word at the beginning, and what is behind it.
fn word(text: &str) -> Option<(Vec<u8>, &str)> {
    let (charset, rest) = text.strip_prefix("=?")?.split_once('?')?;
    let (encoding, rest) = rest.split_once('?')?;
    let (said, behind) = rest.split_once("?=")?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let bytes = match encoding {
        "B" | "b" => STANDARD.decode(said).ok()?,
        "Q" | "q" => quoted(said)?,
        _ => return None,
    };
    Some((bytes, behind))
}

fn quoted(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => b' ',
            b'=' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC{0,80}") {
            let encoded = encode(&text);
            prop_assert!(encoded.is_ascii() && encoded.split(' ').filter(|w| w.starts_with("=?")).all(|word| word.len() <= 75), "{encoded}");
            prop_assert_eq!(String::from_utf8(decode(&encoded)).unwrap(), text);
        }
    }

    /// RFC 2047, section 8, and what Python's `email.header` makes of two texts.
    #[test]
    fn words_of_others_are_read() {
        let read = |text| String::from_utf8(decode(text)).unwrap();
        assert_eq!(read("=?UTF-8?B?w6TDtsO8?="), "äöü");
        assert_eq!(read("=?utf-8?q?caf=C3=A9_noir?="), "café noir");
        assert_eq!(read("a =?UTF-8?Q?b?= =?UTF-8?Q?c?= d"), "a bc d");
        for none in ["=?ISO-8859-1?Q?a?=", "=?UTF-8?X?a?=", "=?UTF-8?B?*?=", "=?UTF-8?Q?=Z?=", "=?", "a = b ?="] {
            assert_eq!(read(none), none);
        }
        assert_eq!((encode("plain"), encode("ä")), ("plain".to_owned(), "=?UTF-8?B?w6Q=?=".to_owned()));
    }
}
