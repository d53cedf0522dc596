//! The only error that crosses a crate border.
//!
//! A backend classifies once, where status, code and headers are in hand; nobody upstream matches on text. Three facts
//! decide what happens next: the [`ErrorKind`] (what it means), the [`Retry`] class (whether to try again) and
//! `maybe_applied` (whether the request may have taken effect although no good answer came: look before repeating).

use std::{error::Error as StdError, fmt, time::Duration};

/// `Result` with the family's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, named for what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object, upload, bucket or message does not exist (any more).
    NotFound,
    /// A condition of ours (`If-Match`, `If-None-Match`, record version) did not hold.
    Precondition,
    /// Somebody else changed it at the same time; start again from a fresh look.
    Conflict,
    /// The credentials are valid but lack the right.
    Denied,
    /// The credentials are expired, unknown or cannot be obtained.
    CredentialsExpired,
    /// The store asks to slow down.
    Throttled,
    /// Network failure, time-out, or a 5xx: the store cannot answer now.
    Unavailable,
    /// Bytes, length or digest are not what they must be.
    Corrupt,
    /// The request, setting or message is wrong and will stay wrong.
    Invalid,
    /// The other side cannot carry this key or value.
    Unrepresentable,
    /// The backend does not have this operation.
    Unsupported,
    /// The object is archived and must be restored before it can be read.
    Archived,
    /// A bug of ours or of the backend.
    Internal,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::Precondition,
        Self::Conflict,
        Self::Denied,
        Self::CredentialsExpired,
        Self::Throttled,
        Self::Unavailable,
        Self::Corrupt,
        Self::Invalid,
        Self::Unrepresentable,
        Self::Unsupported,
        Self::Archived,
        Self::Internal,
    ];

    /// The stable lower-case name used in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Precondition => "precondition",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::CredentialsExpired => "credentials_expired",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Unrepresentable => "unrepresentable",
            Self::Unsupported => "unsupported",
            Self::Archived => "archived",
            Self::Internal => "internal",
        }
    }

    /// One sentence that tells an operator what to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NotFound => "check the bucket and key; an object that vanished after it was listed is counted as cancelled",
            Self::Precondition | Self::Conflict => "another writer changed the object; the next attempt starts from a fresh look",
            Self::Denied => "grant the missing right (the README lists the least set for each side)",
            Self::CredentialsExpired => "check the key pair, the session token and the clock of this machine",
            Self::Throttled => "lower the request rate limit, or ask the provider for a higher quota",
            Self::Unavailable => "check endpoint, network and proxy; the engine tries again by itself",
            Self::Corrupt => "bytes differ from their checksum; the engine reads again, and a lasting error is damage at the source",
            Self::Invalid => "correct the setting or message named in the error",
            Self::Unrepresentable => "rename the object or choose a destination that can carry the key",
            Self::Unsupported => "choose a store or a setting that has this operation",
            Self::Archived => "restore the object from its archive class first",
            Self::Internal => "report this as a bug, with the error chain",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Precondition => "condition not met",
            Self::Conflict => "conflicting change",
            Self::Denied => "access denied",
            Self::CredentialsExpired => "credentials not valid",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt data",
            Self::Invalid => "invalid request",
            Self::Unrepresentable => "not representable",
            Self::Unsupported => "not supported",
            Self::Archived => "archived object",
            Self::Internal => "internal error",
        })
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The answer will stay the same.
    Never,
    /// Try again after the policy's own back-off.
    Backoff,
    /// The server named the time to wait.
    After(Duration),
}

/// The operation during which an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant is the name of a trait method")]
pub enum Op {
    Connect,
    List,
    Head,
    Read,
    Tags,
    Children,
    Place,
    Put,
    CreateUpload,
    PutPart,
    ListParts,
    ListUploads,
    CompleteUpload,
    AbortUpload,
    Copy,
    CopyPart,
    Delete,
    Restore,
    Send,
    Receive,
    Extend,
    Ack,
    Release,
    DeadLetter,
    Depth,
    LoadState,
    SaveState,
    Configure,
    Plan,
    Transfer,
    Notify,
}

/// `Display` names this layer only; the cause is reached through `source`, so that a report prints each cause once.
#[derive(thiserror::Error)]
#[error("{kind} during {op:?} of `{target}`{}", code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default())]
pub struct Error {
    kind: ErrorKind,
    maybe_applied: bool,
    retry: Retry,
    op: Op,
    target: String,
    code: Option<String>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error; the retry class follows from the kind until [`with_retry`](Self::with_retry) says otherwise.
    ///
    /// `target` names a bucket and key, a queue or a setting; never a secret or a signed URL.
    pub fn new(kind: ErrorKind, op: Op, target: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Conflict | ErrorKind::Precondition => {
                Retry::Backoff
            }
            _ => Retry::Never,
        };
        Self { kind, maybe_applied: false, retry, op, target: target.into(), code: None, source: None }
    }

    /// Sets the retry class.
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Says that the request may have taken effect.
    pub fn with_maybe_applied(mut self, maybe_applied: bool) -> Self {
        self.maybe_applied = maybe_applied;
        self
    }

    /// Keeps the backend's own code (`SlowDown`, `503`) for people; nothing matches on it.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Attaches the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the request may have taken effect although it failed here.
    pub fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// Whether trying again can help at all.
    pub fn is_retryable(&self) -> bool {
        self.retry != Retry::Never
    }

    /// The operation.
    pub fn op(&self) -> Op {
        self.op
    }

    /// What it was done on.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The backend's own code, for people.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The error and its causes on one line, each once.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("retry", &self.retry)
            .field("maybe_applied", &self.maybe_applied)
            .field("chain", &self.chain())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// The index of errors is made from the code: `DTH_BLESS=1 cargo test -p dth-core errors` writes it anew.
    #[test]
    fn the_index_of_errors_is_up_to_date() {
        let mut text = String::from("# Errors\n\nMade from `ErrorKind`. Reports and metrics count `failed:NAME`.\n\n");
        text.push_str("| name | in messages | tried again | what to do |\n|---|---|---|---|\n");
        for kind in ErrorKind::ALL {
            let again = match kind {
                ErrorKind::CredentialsExpired => "by the next delivery of its message",
                _ if Error::new(kind, Op::Read, "").is_retryable() => "yes",
                _ => "no",
            };
            let _ = writeln!(text, "| `{}` | {kind} | {again} | {} |", kind.as_str(), kind.remedy());
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ERRORS.md");
        if std::env::var_os("DTH_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }
}
