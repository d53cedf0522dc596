//! Wrappers around backends.

#[cfg(any(test, feature = "conformance"))]
pub mod chaos;
