//! Alibaba Cloud OSS, "Include a V4 signature" (`OSS4-HMAC-SHA256`).

use super::{ToSign, hmac};
use aws_credential_types::Credentials;
use dth_core::{checksum::hex, error::Result};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const ALGORITHM: &str = "OSS4-HMAC-SHA256";
/// OSS takes no other value: bodies are checked by `Content-MD5`.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Signed whether or not they are named; others need not be.
fn is_signed(name: &str) -> bool {
    name.starts_with("x-oss-") || name == "content-type" || name == "content-md5"
}

impl ToSign<'_> {
    pub(super) fn sign_oss(&self, credentials: &Credentials, headers: &mut HeaderMap) -> Result<()> {
        let time = self.time.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        self.add(headers, "x-oss-content-sha256", UNSIGNED)?;
        self.add(headers, "x-oss-date", &time)?;
        if let Some(token) = credentials.session_token() {
            self.add(headers, "x-oss-security-token", token)?;
        }
        let mut signed: Vec<(&str, &str)> = self.texts(headers)?.into_iter().filter(|(name, _)| is_signed(name)).collect();
        signed.sort_unstable();
        // The bucket is part of the path, wherever it stands in the request.
        let mut canonical = format!("{}\n/{}/{}\n", self.method, self.bucket, self.key);
        let mut query: Vec<(&str, &str)> = self.pairs().collect();
        query.sort_unstable();
        let pairs: Vec<String> =
            query.into_iter().map(|(name, value)| if value.is_empty() { name.to_owned() } else { format!("{name}={value}") }).collect();
        let _ = writeln!(canonical, "{}", pairs.join("&"));
        for (name, value) in signed {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        // An empty line for the names of additional headers: there are none.
        let _ = write!(canonical, "\n\n{UNSIGNED}");
        let scope = format!("{day}/{}/oss/aliyun_v4_request", self.region);
        let to_sign = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hex(&Sha256::digest(&canonical)));
        let secret = format!("aliyun_v4{}", credentials.secret_access_key());
        let key = [day, self.region, "oss", "aliyun_v4_request"].iter().fold(secret.into_bytes(), |key, text| hmac::<Sha256>(&key, text));
        let signature = hex(&hmac::<Sha256>(&key, &to_sign));
        let authorization = format!("{ALGORITHM} Credential={}/{scope},Signature={signature}", credentials.access_key_id());
        self.add(headers, "authorization", &authorization)
    }
}
