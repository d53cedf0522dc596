//! AWS Signature Version 4.

use super::ToSign;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity;
use dth_core::error::Result;
use http::HeaderMap;
use std::time::SystemTime;

impl ToSign<'_> {
    pub(super) fn sign_v4(&self, identity: &Identity, headers: &mut HeaderMap) -> Result<()> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let time = SystemTime::from(self.time);
        let params = v4::SigningParams::builder().identity(identity).region(self.region).name("s3").time(time).settings(settings);
        let params = params.build().map_err(|e| self.invalid(e))?.into();
        let signed = self.texts(headers)?;
        let body = self.hash.map_or(SignableBody::UnsignedPayload, |hash| SignableBody::Precomputed(hash.to_owned()));
        let request = SignableRequest::new(self.method.as_str(), self.path, signed.into_iter(), body).map_err(|e| self.invalid(e))?;
        let (instructions, _) = sign(request, &params).map_err(|e| self.invalid(e))?.into_parts();
        let (added, _) = instructions.into_parts();
        for header in added {
            self.add(headers, header.name(), header.value())?;
        }
        Ok(())
    }
}
