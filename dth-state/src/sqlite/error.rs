//! SQLite's result codes to errors of the family.

use dth_core::error::{Error, ErrorKind, Op};
use rusqlite::ErrorCode;

pub(super) fn classify(op: Op, target: String, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        // Another process holds the file for longer than we wait: it goes by.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Throttled,
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => ErrorKind::Unavailable,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => ErrorKind::Denied,
        _ => ErrorKind::Internal,
    };
    // A commit that failed with an I/O error may be in the log.
    Error::new(kind, op, target).with_maybe_applied(kind == ErrorKind::Unavailable).with_source(error)
}
