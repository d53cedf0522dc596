//! Inputs that are almost right: seeds, changed in a few places. Random bytes alone would not get behind the first byte of a
//! parser.

use std::time::Duration;

/// What to change: where, how, with what.
pub(crate) type Edits = Vec<(u16, u8, u8)>;

/// For how long a target runs: 10 seconds, or `DTH_FUZZ_SECONDS`.
pub(crate) fn time() -> Duration {
    let seconds = std::env::var("DTH_FUZZ_SECONDS").ok().and_then(|v| v.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// The seed with these changes; `words` are what its language is made of.
pub(crate) fn mutated(seed: &[u8], edits: &Edits, words: &[&str]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (at, how, what) in edits.iter().take(8) {
        let at = usize::from(*at) % (bytes.len() + 1);
        let end = (at + usize::from(*what)).min(bytes.len());
        match how % 6 {
            0 if at < bytes.len() => bytes[at] = *what,
            1 => drop(bytes.splice(at..at, words[usize::from(*what) % words.len()].bytes())),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => bytes.truncate(at.max(bytes.len() / 2)),
            _ => drop(bytes.splice(at..at, [*what; 3])),
        }
    }
    bytes
}

/// The same as text: what is no UTF-8 is replaced.
#[allow(dead_code, reason = "this file is part of several tests")]
pub(crate) fn mutated_text(seed: &str, edits: &Edits, words: &[&str]) -> String {
    String::from_utf8_lossy(&mutated(seed.as_bytes(), edits, words)).into_owned()
}
