//! `WWW-Authenticate`, as RFC 9110 section 11.6.1 has it.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of an answer. What cannot be read is passed over.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).flat_map(parse).collect()
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c == ',' || c.is_whitespace()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let after = behind.trim_start();
        if let Some(value) = after.strip_prefix('=').filter(|_| !word.is_empty() && !all.is_empty()) {
            let (value, next) = value_of(value.trim_start());
            if let Some(last) = all.last_mut() {
                last.parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = next;
        } else if word.is_empty() {
            let mut chars = behind.chars();
            chars.next();
            rest = chars.as_str();
        } else {
            all.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            rest = after;
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
    }
    all
}

/// A token or a quoted string, and what is behind it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read() {
        let all = parse(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].scheme.as_str(), all[0].get("realm")), ("bearer", Some("https://auth.docker.io/token")));
        assert_eq!(all[0].get("scope"), Some("repository:a/b:pull,push"));
        let two = parse(r#"Negotiate, Basic realm="a \"b\", c" , charset=UTF-8"#);
        assert_eq!((two.len(), two[1].get("realm"), two[1].get("charset")), (2, Some("a \"b\", c"), Some("UTF-8")));
        assert_eq!(parse("BASIC")[0].scheme, "basic");
        for odd in ["", ",", "=", "Bearer realm=\"open", "a=b", "Bearer =x, y", "\"", "é=\"ü\\"] {
            let _ = parse(odd);
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_hang(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
