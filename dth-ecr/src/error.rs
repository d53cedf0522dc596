//! What a registry's answer means.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes>

use dth_core::error::{Error, ErrorKind, Op, Retry};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
struct Document {
    errors: Vec<One>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct One {
    code: String,
    message: String,
}

/// Codes that say that something is not there.
const NOT_THERE: [&str; 5] = ["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND", "NAME_NOT_FOUND"];

/// Whether a refusal tells that a login has ended: Amazon ECR says so by 403, and its public gallery by 400.
pub(crate) fn is_expiry(status: StatusCode, page: &[u8]) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
        && String::from_utf8_lossy(page).to_ascii_lowercase().contains("authorization token has expired")
}

/// Longest wait that a `Retry-After` is believed for.
pub(crate) const LONGEST: Duration = Duration::from_secs(15 * 60);

/// An answer that is not a success.
pub(crate) fn of_answer(op: Op, target: String, status: StatusCode, headers: &HeaderMap, page: &[u8]) -> Error {
    let document: Document = serde_json::from_slice(page).unwrap_or_default();
    let first = document.errors.into_iter().next().unwrap_or_default();
    // The answer to HEAD has no body to tell more in.
    let kind = kind(status, &first.code, op == Op::Head);
    let code = if first.code.is_empty() { status.as_u16().to_string() } else { first.code };
    let mut error = Error::new(kind, op, target).with_code(code);
    if !first.message.is_empty() {
        let message: String = first.message.chars().take(300).flat_map(char::escape_default).collect();
        error = error.with_source(message);
    }
    match retry_after(headers).filter(|_| matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable)) {
        Some(time) => error.with_retry(Retry::After(time)),
        None => error,
    }
}

fn kind(status: StatusCode, code: &str, reads_headers: bool) -> ErrorKind {
    match (status.as_u16(), code) {
        (_, "TOOMANYREQUESTS") | (429, _) => ErrorKind::Throttled,
        // The bytes that arrived are not those of the digest: they were broken on their way.
        (_, "DIGEST_INVALID" | "SIZE_INVALID") => ErrorKind::Corrupt,
        // A child went after it was looked at, or an upload's session ended: begin again.
        (_, "MANIFEST_BLOB_UNKNOWN" | "BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID" | "RANGE_INVALID") | (416, _) => ErrorKind::Conflict,
        (_, "UNSUPPORTED") | (405 | 501, _) => ErrorKind::Unsupported,
        (_, "NAME_INVALID") => ErrorKind::Unrepresentable,
        (_, "DENIED") | (403, _) => ErrorKind::Denied,
        (401, _) => ErrorKind::CredentialsExpired,
        // A gateway's 404 is not the registry's word: of a page without one of its codes nothing follows.
        (404, code) if NOT_THERE.contains(&code) || reads_headers => ErrorKind::NotFound,
        (404, _) => ErrorKind::Unavailable,
        (409, _) => ErrorKind::Conflict,
        (302 | 303 | 307, _) => ErrorKind::Unavailable,
        (408 | 425, _) => ErrorKind::Unavailable,
        (status, _) if status >= 500 => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

/// In seconds; dates are not used by registries.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_to_do_next() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        let of = |status: u16, code: &str| {
            let page = format!(r#"{{"errors":[{{"code":"{code}","message":"m\n","detail":{{}}}}]}}"#);
            of_answer(Op::Put, "r/a".into(), StatusCode::from_u16(status).unwrap(), &headers, page.as_bytes())
        };
        assert_eq!(of(429, "TOOMANYREQUESTS").retry(), Retry::After(Duration::from_secs(7)));
        assert_eq!(of(503, "UNAVAILABLE").retry(), Retry::After(Duration::from_secs(7)));
        assert_eq!((of(400, "DIGEST_INVALID").kind(), of(404, "BLOB_UPLOAD_UNKNOWN").kind()), (ErrorKind::Corrupt, ErrorKind::Conflict));
        assert_eq!((of(404, "MANIFEST_UNKNOWN").kind(), of(400, "MANIFEST_INVALID").kind()), (ErrorKind::NotFound, ErrorKind::Invalid));
        assert_eq!((of(403, "DENIED").kind(), of(404, "MANIFEST_BLOB_UNKNOWN").kind()), (ErrorKind::Denied, ErrorKind::Conflict));
        assert_eq!((of(409, "X").kind(), of(404, "").kind()), (ErrorKind::Conflict, ErrorKind::Unavailable));
        assert!(of(400, "X").chain().ends_with("(X): m\\n"), "{}", of(400, "X").chain());
        let page = of_answer(Op::Head, "r".into(), StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<html>");
        assert_eq!((page.kind(), page.code()), (ErrorKind::Unavailable, Some("502")));
    }
}
