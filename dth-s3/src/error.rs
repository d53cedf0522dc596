//! Answers of the store to errors of the family: the only file that reads status codes.

use dth_core::error::{Error, ErrorKind, Op, Retry};
use http::{HeaderMap, StatusCode};
use std::time::Duration;

/// What an error answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) region: Option<String>,
    /// Where OSS says that the bucket is.
    pub(crate) endpoint: Option<String>,
}

/// Code, kind. Source: Amazon S3 API Reference, "Error responses"; OSS API reference, "Error codes"; COS, "Error Codes"; codes of compatible
/// stores as seen.
const CODES: &[(&str, ErrorKind)] = &[
    ("NoSuchKey", ErrorKind::NotFound),
    ("NoSuchVersion", ErrorKind::NotFound),
    ("NoSuchUpload", ErrorKind::NotFound),
    ("NoSuchBucket", ErrorKind::Invalid),
    // Copied through us instead.
    ("NoSuchCopySource", ErrorKind::Unsupported),
    ("NoSuchAccessPoint", ErrorKind::Invalid),
    ("SecondLevelDomainForbidden", ErrorKind::Invalid),
    ("TransferAccelerationDisabled", ErrorKind::Invalid),
    ("PreconditionFailed", ErrorKind::Precondition),
    ("FileAlreadyExists", ErrorKind::Precondition),
    ("ConditionalRequestConflict", ErrorKind::Conflict),
    ("OperationAborted", ErrorKind::Conflict),
    ("UploadConflict", ErrorKind::Conflict),
    ("FilePartNotExist", ErrorKind::Conflict),
    ("AccessDenied", ErrorKind::Denied),
    ("AllAccessDisabled", ErrorKind::Denied),
    ("AccountProblem", ErrorKind::Denied),
    ("AccessForbidden", ErrorKind::Denied),
    ("UserDisable", ErrorKind::Denied),
    ("BucketDisable", ErrorKind::Denied),
    ("ObjectLocked", ErrorKind::Denied),
    ("FileImmutable", ErrorKind::Denied),
    ("InvalidObjectState", ErrorKind::Archived),
    ("RestoreAlreadyInProgress", ErrorKind::Archived),
    ("ExpiredToken", ErrorKind::CredentialsExpired),
    ("InvalidToken", ErrorKind::CredentialsExpired),
    ("SecurityTokenExpired", ErrorKind::CredentialsExpired),
    ("InvalidSecurityToken", ErrorKind::CredentialsExpired),
    ("AccessKeyIdAndSecurityTokenNotMatch", ErrorKind::CredentialsExpired),
    ("TokenRefreshRequired", ErrorKind::CredentialsExpired),
    ("InvalidAccessKeyId", ErrorKind::CredentialsExpired),
    ("SignatureDoesNotMatch", ErrorKind::CredentialsExpired),
    ("NotSignedUp", ErrorKind::CredentialsExpired),
    ("RequestTimeTooSkewed", ErrorKind::CredentialsExpired),
    ("Request has expired", ErrorKind::CredentialsExpired),
    ("SlowDown", ErrorKind::Throttled),
    ("SlowDownRead", ErrorKind::Throttled),
    ("SlowDownWrite", ErrorKind::Throttled),
    ("Throttling", ErrorKind::Throttled),
    ("ThrottlingException", ErrorKind::Throttled),
    ("RequestLimitExceeded", ErrorKind::Throttled),
    ("RequestRateLimitExceeded", ErrorKind::Throttled),
    ("TooManyRequests", ErrorKind::Throttled),
    ("BandwidthLimitExceeded", ErrorKind::Throttled),
    ("QpsLimitExceeded", ErrorKind::Throttled),
    ("TotalQpsLimitExceeded", ErrorKind::Throttled),
    ("MetaOperationQpsLimitExceeded", ErrorKind::Throttled),
    ("ActiveRequestLimitExceeded", ErrorKind::Throttled),
    ("CpuLimitExceeded", ErrorKind::Throttled),
    ("DownloadTrafficRateLimitExceeded", ErrorKind::Throttled),
    ("UploadTrafficRateLimitExceeded", ErrorKind::Throttled),
    ("KmsFreqControl", ErrorKind::Throttled),
    ("RequestTimeout", ErrorKind::Unavailable),
    ("UserNetworkTooSlow", ErrorKind::Unavailable),
    ("InternalError", ErrorKind::Unavailable),
    ("ServiceUnavailable", ErrorKind::Unavailable),
    ("IncompleteBody", ErrorKind::Unavailable),
    ("BadDigest", ErrorKind::Corrupt),
    ("InvalidDigest", ErrorKind::Corrupt),
    ("InvalidCRC64", ErrorKind::Corrupt),
    ("XAmzContentSHA256Mismatch", ErrorKind::Corrupt),
    ("XAmzContentChecksumMismatch", ErrorKind::Corrupt),
    ("InvalidRange", ErrorKind::Corrupt),
    ("InvalidPart", ErrorKind::Conflict),
    ("InvalidPartOrder", ErrorKind::Conflict),
    ("KeyTooLongError", ErrorKind::Unrepresentable),
    ("KeyTooLong", ErrorKind::Unrepresentable),
    ("InvalidObjectName", ErrorKind::Unrepresentable),
    ("EntityTooLarge", ErrorKind::Unrepresentable),
    ("NotImplemented", ErrorKind::Unsupported),
    ("MethodNotAllowed", ErrorKind::Unsupported),
];

/// Whether the store says that our clock is another one than its own. COS says so in the message of a refusal.
pub(crate) fn is_of_clock(body: &ErrorBody) -> bool {
    body.code == "RequestTimeTooSkewed" || body.code == "Request has expired" || body.message.starts_with("Request has expired")
}

/// The kind of an answer whose code says nothing.
fn by_status(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        // An error after all: the status was sent before the work was done.
        200 => ErrorKind::Unavailable,
        301 | 308 => ErrorKind::Invalid,
        // A redirect is not followed: where it leads, nobody has said that the credentials may go. It may pass.
        300..=399 => ErrorKind::Unavailable,
        401 => ErrorKind::CredentialsExpired,
        403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        // Time-outs, misdirected, too early, and a gateway whose client was gone.
        408 | 421 | 425 | 499 => ErrorKind::Unavailable,
        409 => ErrorKind::Conflict,
        412 => ErrorKind::Precondition,
        416 => ErrorKind::Corrupt,
        429 | 503 | 509 => ErrorKind::Throttled,
        400..=499 => ErrorKind::Invalid,
        501 => ErrorKind::Unsupported,
        500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

/// Whether an operation changes nothing, or nothing that could not simply be repeated.
pub(crate) fn only_reads(op: Op) -> bool {
    matches!(op, Op::List | Op::Head | Op::Read | Op::Tags | Op::ListParts | Op::ListUploads)
}

/// Whether the request may have taken effect although the answer is an error: a server or gateway that failed cannot say.
fn maybe_applied(op: Op, status: StatusCode, kind: ErrorKind) -> bool {
    (status.is_server_error() || status.is_success()) && kind == ErrorKind::Unavailable && !only_reads(op)
}

/// The error of an answer.
pub(crate) fn from_answer(op: Op, target: String, status: StatusCode, headers: &HeaderMap, body: &ErrorBody) -> Error {
    let expired = is_of_clock(body).then_some(ErrorKind::CredentialsExpired);
    let known = CODES.iter().find(|(code, _)| *code == body.code).map(|(_, kind)| *kind);
    let known = expired.or(known);
    // Settings of a bucket have each a code of their own for not being there.
    let is_known = known.is_some() || op == Op::Configure && !body.code.is_empty();
    let kind = match known.unwrap_or_else(|| by_status(status)) {
        // A gateway's 404 is not the store's word on the object. An answer to HEAD has no body to tell by.
        ErrorKind::NotFound if !is_known && op != Op::Head => ErrorKind::Unavailable,
        // Nor is what a server says that has failed, or that sends us elsewhere.
        ErrorKind::NotFound if status.is_server_error() || status.is_redirection() => ErrorKind::Unavailable,
        kind => kind,
    };
    let name = if body.code.is_empty() { status.as_u16().to_string() } else { format!("{} {}", status.as_u16(), body.code) };
    let customer_key = body.code == "InvalidRequest" && body.message.contains("form of Server Side Encryption");
    let elsewhere = body.endpoint.as_ref().filter(|_| body.code == "AccessDenied");
    let kind = match elsewhere {
        _ if customer_key => ErrorKind::Unsupported,
        Some(_) => ErrorKind::Invalid,
        None => kind,
    };
    let mut error = Error::new(kind, op, target).with_code(name).with_maybe_applied(maybe_applied(op, status, kind));
    let named = headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok()).or(body.region.as_deref());
    if let Some(region) = named.filter(|_| status.is_redirection() || status.as_u16() == 400) {
        error = error.with_source(format!("the bucket is in region `{region}`: set `region` to it"));
    } else if let Some(endpoint) = elsewhere {
        error = error.with_source(format!("the bucket is at `{endpoint}`: set `region` or `endpoint` accordingly"));
    } else if customer_key {
        error = error.with_source("the object is encrypted with a key of its owner (SSE-C), which dth does not support");
    } else if !body.message.is_empty() {
        error = error.with_source(body.message.clone());
    }
    let wait = headers.get("retry-after").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    match wait {
        Some(seconds) if error.is_retryable() => error.with_retry(Retry::After(Duration::from_secs(seconds))),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind as K;

    #[test]
    fn table() {
        let row = |status: u16, code: &str| {
            let op = if code.is_empty() { Op::Head } else { Op::Put };
            let body = ErrorBody { code: code.into(), ..ErrorBody::default() };
            let status = StatusCode::from_u16(status).unwrap();
            let error = from_answer(op, "b/k".into(), status, &HeaderMap::new(), &body);
            (error.kind(), error.is_retryable(), error.maybe_applied())
        };
        assert_eq!(row(404, ""), (K::NotFound, false, false), "HEAD has no body");
        assert_eq!(row(404, "NotFound"), (K::Unavailable, true, false), "not the store's word");
        assert_eq!(row(404, "NoSuchAccessPoint"), (K::Invalid, false, false), "no object is gone with it");
        assert_eq!(row(302, "?"), (K::Unavailable, true, false));
        assert_eq!(row(307, "TemporaryRedirect"), (K::Unavailable, true, false));
        assert_eq!(row(308, "?"), (K::Invalid, false, false));
        assert_eq!(row(418, "?"), (K::Invalid, false, false));
        assert_eq!(row(404, "NoSuchBucket"), (K::Invalid, false, false), "a missing bucket is no missing object");
        assert_eq!(row(500, "NoSuchKey"), (K::Unavailable, true, true), "it failed: what it says of the key is worth nothing");
        assert_eq!(row(200, "NoSuchUpload"), (K::NotFound, false, false));
        assert_eq!(row(200, "?"), (K::Unavailable, true, true));
        assert_eq!(row(412, "PreconditionFailed"), (K::Precondition, true, false));
        assert_eq!(row(409, "ConditionalRequestConflict"), (K::Conflict, true, false));
        assert_eq!(row(403, "AccessDenied"), (K::Denied, false, false));
        assert_eq!(row(403, "InvalidObjectState"), (K::Archived, false, false));
        assert_eq!(row(409, "InvalidObjectState"), (K::Archived, false, false), "COS");
        assert_eq!(row(409, "FileAlreadyExists"), (K::Precondition, true, false), "x-oss-forbid-overwrite");
        assert_eq!(row(403, "SecurityTokenExpired"), (K::CredentialsExpired, false, false));
        assert_eq!(row(503, "DownloadTrafficRateLimitExceeded"), (K::Throttled, true, false));
        assert_eq!(row(400, "UserNetworkTooSlow"), (K::Unavailable, true, false));
        assert_eq!(row(400, "ExpiredToken"), (K::CredentialsExpired, false, false));
        assert_eq!(row(503, "SlowDown"), (K::Throttled, true, false));
        assert_eq!(row(429, ""), (K::Throttled, true, false));
        assert_eq!(row(500, "InternalError"), (K::Unavailable, true, true));
        assert_eq!(row(502, ""), (K::Unavailable, true, false), "HEAD changes nothing");
        assert_eq!(row(400, "RequestTimeout"), (K::Unavailable, true, false));
        assert_eq!(row(400, "BadDigest"), (K::Corrupt, true, false));
        assert_eq!(row(416, "InvalidRange"), (K::Corrupt, true, false));
        assert_eq!(row(400, "KeyTooLongError"), (K::Unrepresentable, false, false));
        assert_eq!(row(501, "NotImplemented"), (K::Unsupported, false, false));
    }

    #[test]
    fn retry_after_and_region_are_passed_on() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        let slow = from_answer(Op::Read, "b/k".into(), StatusCode::SERVICE_UNAVAILABLE, &headers, &ErrorBody::default());
        assert_eq!(slow.retry(), Retry::After(Duration::from_secs(7)));
        let body = ErrorBody { code: "PermanentRedirect".into(), region: Some("eu-west-1".into()), ..ErrorBody::default() };
        let message =
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.";
        let sealed = ErrorBody { code: "InvalidRequest".into(), message: message.into(), ..ErrorBody::default() };
        let sealed = from_answer(Op::Read, "b/k".into(), StatusCode::BAD_REQUEST, &HeaderMap::new(), &sealed);
        assert!(sealed.kind() == K::Unsupported && sealed.chain().contains("SSE-C"), "{}", sealed.chain());
        let moved = from_answer(Op::List, "b".into(), StatusCode::MOVED_PERMANENTLY, &HeaderMap::new(), &body);
        assert!(moved.chain().contains("eu-west-1"), "{}", moved.chain());
    }
}
