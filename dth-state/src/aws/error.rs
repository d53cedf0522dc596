//! Answers of the AWS SDKs to errors of the family.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::{config::http::HttpResponse, error::SdkError};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use dth_core::error::{Error, ErrorKind, Op};
use std::error::Error as StdError;

/// What a failed call means. Both SDKs share the types of this signature.
pub(super) fn classify<E>(op: Op, target: impl Into<String>, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).map(str::to_owned);
    let (kind, maybe_applied) = match &error {
        SdkError::ConstructionFailure(_) => (ErrorKind::Invalid, false),
        SdkError::ServiceError(refused) => {
            let kind = service(code.as_deref().unwrap_or_default(), refused.raw().status().as_u16());
            (kind, kind == ErrorKind::Unavailable)
        }
        // The request is signed within the dispatch: without credentials it was never sent.
        _ if has_cause::<CredentialsError>(&error) => (ErrorKind::CredentialsExpired, false),
        // No answer, or none that can be read.
        _ => (ErrorKind::Unavailable, true),
    };
    let failed = Error::new(kind, op, target).with_maybe_applied(maybe_applied);
    let failed = if let Some(code) = code { failed.with_code(code) } else { failed };
    failed.with_source(error)
}

/// Whether an error, or one that caused it, is of this type.
fn has_cause<C: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    error.is::<C>() || error.source().is_some_and(has_cause::<C>)
}

/// Codes with and without the prefixes of the query protocol.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html>,
/// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html>
pub(super) fn service(code: &str, status: u16) -> ErrorKind {
    match code.rsplit(['.', '#']).next().unwrap_or_default() {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "ProvisionedThroughputExceededException"
        | "ProvisionedThroughputExceeded"
        | "ThrottlingError"
        | "LimitExceededException"
        | "OverLimit"
        | "KmsThrottled"
        | "KMSThrottling"
        | "KMSThrottlingException"
        | "SlowDown"
        | "TransactionInProgressException"
        | "TransactionConflictException"
        | "TransactionConflict" => ErrorKind::Throttled,
        "InternalServerError"
        | "InternalError"
        | "InternalFailure"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => ErrorKind::Unavailable,
        "AccessDenied"
        | "AccessDeniedException"
        | "KmsAccessDenied"
        | "KMSAccessDenied"
        | "OptInRequired"
        | "NotAuthorized"
        | "AuthorizationError" => ErrorKind::Denied,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "RequestExpired" => ErrorKind::CredentialsExpired,
        "QueueDoesNotExist"
        | "NonExistentQueue"
        | "ResourceNotFoundException"
        | "NotFound"
        | "NotFoundException"
        | "MessageNotInflight"
        | "ReceiptHandleIsInvalid" => ErrorKind::NotFound,
        "ConditionalCheckFailedException" | "ConditionalCheckFailed" => ErrorKind::Precondition,
        "ResourceInUseException" | "QueueNameExists" | "QueueAlreadyExists" | "ReplicatedWriteConflictException" => ErrorKind::Conflict,
        "UnsupportedOperation" => ErrorKind::Unsupported,
        _ if status == 429 => ErrorKind::Throttled,
        _ if status >= 500 || status == 408 => ErrorKind::Unavailable,
        _ if status == 403 => ErrorKind::Denied,
        _ => ErrorKind::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_they_mean_in_both_protocols() {
        let kinds = [
            ("ThrottlingException", 400, ErrorKind::Throttled),
            ("com.amazon.sqs#RequestThrottled", 403, ErrorKind::Throttled),
            ("AWS.SimpleQueueService.NonExistentQueue", 400, ErrorKind::NotFound),
            ("ExpiredTokenException", 403, ErrorKind::CredentialsExpired),
            ("RequestTimeout", 408, ErrorKind::Unavailable),
            ("Whatever", 503, ErrorKind::Unavailable),
            ("ValidationException", 400, ErrorKind::Invalid),
            ("AuthorizationError", 403, ErrorKind::Denied),
            ("KMSThrottling", 400, ErrorKind::Throttled),
            ("Whatever", 403, ErrorKind::Denied),
        ];
        for (code, status, kind) in kinds {
            assert_eq!(service(code, status), kind, "{code}");
        }
    }
}
