//! Buckets of three clouds: what each needs to be told, over the wire client of `dth-s3`.

use dth_core::error::Result;
use dth_s3::{CredentialsConfig, Network, Profile, S3Config, S3Store};

macro_rules! cloud {
    ($(#[$doc:meta])* $name:ident, $profile:ident) => {
        $(#[$doc])*
        ///
        /// [`open`](Self::open) gives a [`S3Store`], which is a source and a sink. Clones of that share connections.
        #[derive(Debug, Clone)]
        #[must_use]
        pub struct $name(S3Config);

        impl $name {
            /// A bucket in a region, reached over the internet without a signature, as public data is.
            pub fn new(bucket: impl Into<String>, region: impl Into<String>) -> Self {
                Self(S3Config {
                    bucket: bucket.into(),
                    region: region.into(),
                    profile: Profile::$profile,
                    credentials: CredentialsConfig::Anonymous,
                    ..S3Config::default()
                })
            }

            /// Sets whose rights are used.
            pub fn with_credentials(mut self, credentials: CredentialsConfig) -> Self {
                self.0.credentials = credentials;
                self
            }

            /// Sets which way leads there.
            pub fn with_network(mut self, network: Network) -> Self {
                self.0.network = network;
                self
            }

            /// Sets anything else: storage class, ACL, encryption, proxy, time-outs.
            pub fn with(mut self, change: impl FnOnce(&mut S3Config)) -> Self {
                change(&mut self.0);
                self
            }

            /// The settings, as they are written into a file.
            pub fn into_config(self) -> S3Config {
                self.0
            }

            /// Checks the settings and makes a client; nothing is sent yet. `Invalid`, naming the setting, when one is wrong.
            pub fn open(self) -> Result<S3Store> {
                S3Store::new(self.0)
            }
        }
    };
}

cloud! {
    /// A bucket of Alibaba Cloud OSS. Regions are `cn-hangzhou`, `ap-southeast-1` and so on, without `oss-`.
    Oss, Oss
}
cloud! {
    /// A bucket of Tencent Cloud COS, by its whole name (`name-1250000000`). Regions are `ap-guangzhou` and so on.
    Cos, Cos
}
cloud! {
    /// A bucket (space) of Qiniu Kodo, by its S3 name. Regions are `cn-east-1` and so on.
    Kodo, Kodo
}
