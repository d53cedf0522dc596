//! Signatures: what proves to a store who asks. Each is checked against the code of its vendor
//! (`examples/tests/servers/clouds`).

mod cos;
mod oss;
mod v4;

use crate::profile::Dialect;
use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use dth_core::error::{Error, ErrorKind, Op, Result};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;

/// What is signed.
pub(crate) struct ToSign<'a> {
    pub(crate) op: Op,
    pub(crate) target: &'a str,
    pub(crate) method: &'a Method,
    /// As it is sent, from the first slash to the end of the query.
    pub(crate) path: &'a str,
    pub(crate) bucket: &'a str,
    /// As it is sent, without a slash before it; empty for the bucket.
    pub(crate) key: &'a str,
    /// As it is sent.
    pub(crate) query: &'a str,
    pub(crate) region: &'a str,
    /// SHA-256 of a document; bodies of objects are not signed.
    pub(crate) hash: Option<&'a str>,
    pub(crate) time: Timestamp,
}

impl ToSign<'_> {
    fn invalid(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Invalid, self.op, self.target).with_source(why)
    }

    /// Puts the signature, and what belongs to it, among the headers of a request.
    pub(crate) fn sign(&self, dialect: Dialect, identity: &Identity, headers: &mut HeaderMap) -> Result<()> {
        if dialect == Dialect::Amazon {
            return self.sign_v4(identity, headers);
        }
        let credentials: &Credentials = identity.data().ok_or_else(|| self.invalid("the credentials are no key pair"))?;
        if dialect == Dialect::Oss { self.sign_oss(credentials, headers) } else { self.sign_cos(credentials, headers) }
    }

    /// Adds a header of the signature.
    fn add(&self, headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<()> {
        let mut value = HeaderValue::from_str(value).map_err(|e| self.invalid(e))?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
        Ok(())
    }

    /// Names and values of the query, as they are sent.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// Names and values; signatures are over text.
    fn texts<'h>(&self, headers: &'h HeaderMap) -> Result<Vec<(&'h str, &'h str)>> {
        let text = |(name, value): (&'h HeaderName, &'h HeaderValue)| {
            let value = std::str::from_utf8(value.as_bytes()).map_err(|e| self.invalid(format!("header {name}: {e}")))?;
            Ok((name.as_str(), value))
        };
        headers.iter().map(text).collect()
    }
}

fn hmac<D>(key: &[u8], text: &str) -> Vec<u8>
where
    Hmac<D>: Mac + KeyInit,
    D: hmac::EagerHash,
{
    let mut mac = <Hmac<D> as KeyInit>::new_from_slice(key).expect("a key of any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}
