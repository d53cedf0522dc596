//! Tencent Cloud COS, "Request Signature" (`q-sign-algorithm=sha1`).

use super::{ToSign, hmac};
use crate::wire::uri;
use aws_credential_types::Credentials;
use dth_core::{checksum::hex, error::Result};
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

/// Seconds for which a signature is good.
const GOOD_FOR: i64 = 3600;

/// What the documentation asks to be signed, besides everything that begins with `x-cos-`.
const SIGNED: [&str; 14] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-length",
    "content-md5",
    "content-type",
    "expect",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

impl ToSign<'_> {
    pub(super) fn sign_cos(&self, credentials: &Credentials, headers: &mut HeaderMap) -> Result<()> {
        if let Some(token) = credentials.session_token() {
            self.add(headers, "x-cos-security-token", token)?;
        }
        let is_signed = |name: &str| name.starts_with("x-cos-") || SIGNED.contains(&name);
        let mut signed: Vec<(String, String)> = self
            .texts(headers)?
            .into_iter()
            .filter(|(name, _)| is_signed(name))
            .map(|(name, value)| (uri::encoded(name).to_ascii_lowercase(), uri::encoded(value)))
            .collect();
        signed.sort_unstable();
        let mut query: Vec<(String, &str)> = self.pairs().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        query.sort_unstable();
        let names = |list: Vec<&str>| list.join(";");
        let path = self.path.split('?').next().unwrap_or_default();
        let format = format!(
            "{}\n{}\n{}\n{}\n",
            self.method.as_str().to_ascii_lowercase(),
            percent_decode_str(path).decode_utf8_lossy(),
            query.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&"),
            signed.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&"),
        );
        // As the SDKs do: a clock that is a little ahead is none of the future.
        let begin = self.time.as_second() - 60;
        let time = format!("{begin};{}", begin + GOOD_FOR);
        let to_sign = format!("sha1\n{time}\n{}\n", hex(&Sha1::digest(&format)));
        let key = hex(&hmac::<Sha1>(credentials.secret_access_key().as_bytes(), &time));
        let signature = hex(&hmac::<Sha1>(key.as_bytes(), &to_sign));
        let authorization = format!(
            "q-sign-algorithm=sha1&q-ak={}&q-sign-time={time}&q-key-time={time}&q-header-list={}&q-url-param-list={}&q-signature={signature}",
            credentials.access_key_id(),
            names(signed.iter().map(|(n, _)| n.as_str()).collect()),
            names(query.iter().map(|(n, _)| n.as_str()).collect()),
        );
        self.add(headers, "authorization", &authorization)
    }
}
