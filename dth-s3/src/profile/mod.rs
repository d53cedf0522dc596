//! What a store can do, as data: an ignored condition or checksum cannot be told from its answer, so it is said here.

mod facts;
mod stores;

pub(crate) use facts::{Dialect, Facts, Hosts, Keys, Listing, NonAscii, Plus, RestoreForm};

use serde::{Deserialize, Serialize};

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Profile {
    /// Amazon S3.
    #[default]
    Aws,
    /// Any other store: conditions on PutObject and CompleteMultipartUpload honoured, `Content-MD5` verified, no CRC.
    Compatible,
    /// A store that ignores conditional writes (Garage, older Ceph): the destination is looked at afterwards where needed.
    Unconditional,
    /// Alibaba Cloud OSS, by its own headers and signature (V4).
    Oss,
    /// Tencent Cloud COS, by its own headers and signature.
    Cos,
    /// Qiniu Kodo, by its S3 interface.
    Kodo,
    /// Huawei Cloud OBS, by its S3 interface.
    Obs,
    /// Baidu AI Cloud BOS, by its S3 interface.
    Bos,
    /// Cloudflare R2.
    R2,
    /// Backblaze B2, by its S3 interface.
    B2,
    /// Google Cloud Storage, by its XML interface with HMAC keys.
    Gcs,
    /// Wasabi.
    Wasabi,
    /// MinIO.
    Minio,
    /// Ceph Object Gateway 16: ignores conditions on Complete, honours `If-Match` on PutObject only without quotes; encodes
    /// keys in listings of uploads without saying so.
    Ceph,
    /// The `s3s-fs` file server: its listings show no etags and do not encode keys, uploads cannot be listed.
    S3sFs,
    /// SeaweedFS: keys are paths (no empty, `.` or `..` segments, no backslash), and a listing cannot begin behind a key that is not there
    /// without leaving out what is below that name as a folder.
    #[serde(rename = "seaweedfs")]
    SeaweedFs,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Aws,
        Self::Compatible,
        Self::Unconditional,
        Self::Oss,
        Self::Cos,
        Self::Kodo,
        Self::Obs,
        Self::Bos,
        Self::R2,
        Self::B2,
        Self::Gcs,
        Self::Wasabi,
        Self::Minio,
        Self::Ceph,
        Self::S3sFs,
        Self::SeaweedFs,
    ];

    /// Its name in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Compatible => "compatible",
            Self::Unconditional => "unconditional",
            Self::Oss => "oss",
            Self::Cos => "cos",
            Self::Kodo => "kodo",
            Self::Obs => "obs",
            Self::Bos => "bos",
            Self::R2 => "r2",
            Self::B2 => "b2",
            Self::Gcs => "gcs",
            Self::Wasabi => "wasabi",
            Self::Minio => "minio",
            Self::Ceph => "ceph",
            Self::S3sFs => "s3s-fs",
            Self::SeaweedFs => "seaweedfs",
        }
    }

    pub(crate) const fn facts(self) -> &'static Facts {
        match self {
            Self::Aws => &stores::AWS,
            Self::Compatible => &stores::COMPATIBLE,
            Self::Unconditional => &stores::UNCONDITIONAL,
            Self::Oss => &stores::OSS,
            Self::Cos => &stores::COS,
            Self::Kodo => &stores::KODO,
            Self::Obs => &stores::OBS,
            Self::Bos => &stores::BOS,
            Self::R2 => &stores::R2,
            Self::B2 => &stores::B2,
            Self::Gcs => &stores::GCS,
            Self::Wasabi => &stores::WASABI,
            Self::Minio => &stores::MINIO,
            Self::Ceph => &stores::CEPH,
            Self::S3sFs => &stores::S3S_FS,
            Self::SeaweedFs => &stores::SEAWEEDFS,
        }
    }
}
