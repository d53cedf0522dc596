//! What a store can do, as data: an ignored condition or checksum cannot be told from its answer, so it is said here.

use dth_core::checksum::Algorithm;
use serde::{Deserialize, Serialize};

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// The facts of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `If-Match` on reads.
    pub(crate) conditional_read: bool,
    /// `If-Match` and `If-None-Match: *` on PutObject and CompleteMultipartUpload.
    pub(crate) conditions: bool,
    /// `If-Match` on DeleteObject.
    pub(crate) delete_condition: bool,
    /// `start-after` is right for any key.
    pub(crate) seeks: bool,
    /// Keys must be paths.
    pub(crate) paths: bool,
    /// Keys in listings are percent-encoded when asked for.
    pub(crate) encoded_lists: bool,
    /// The same in listings of uploads.
    pub(crate) encoded_uploads: bool,
    pub(crate) list_parts: bool,
    pub(crate) list_uploads: bool,
    /// `partNumber` on reads.
    pub(crate) part_reads: bool,
    /// `x-amz-copy-source-if-match`: without it, nobody knows what version a copy inside the store is of.
    pub(crate) pinned_copies: bool,
    /// Tags are read and written.
    pub(crate) tags: bool,
    /// `x-amz-tagging` on CreateMultipartUpload; otherwise tags follow Complete in a request of their own.
    pub(crate) tags_on_create: bool,
    /// Checksums that the store verifies when given; MD5 is `Content-MD5`.
    pub(crate) verifies: &'static [Algorithm],
    /// Answers carry checksums of whole objects, where they have one.
    pub(crate) offers_checksums: bool,
    /// Parts may carry CRC64NVME, and Complete one of the full object.
    pub(crate) full_object_crc: bool,
    /// Least bytes of a part.
    pub(crate) min_part: u64,
}

const MIB: u64 = 1 << 20;

impl Profile {
    pub(crate) const fn facts(self) -> Facts {
        let compatible = Facts {
            conditional_read: true,
            conditions: true,
            delete_condition: false,
            seeks: true,
            paths: false,
            encoded_lists: true,
            encoded_uploads: true,
            list_parts: true,
            list_uploads: true,
            part_reads: true,
            pinned_copies: true,
            tags: true,
            tags_on_create: false,
            verifies: &[Algorithm::Md5],
            offers_checksums: true,
            full_object_crc: false,
            min_part: 5 * MIB,
        };
        let aws = Facts {
            delete_condition: true,
            tags_on_create: true,
            verifies: &[Algorithm::Md5, Algorithm::Crc64Nvme],
            full_object_crc: true,
            ..compatible
        };
        match self {
            Self::Aws => aws,
            Self::SeaweedFs => Facts { seeks: false, paths: true, encoded_uploads: false, ..aws },
            Self::Compatible => compatible,
            Self::Unconditional => Facts { conditions: false, ..compatible },
            // It encodes keys of uploads without saying so, and leaves the marker as it is.
            // It answers a read by part number with the whole object, and copies whatever version there is.
            Self::Ceph => Facts {
                conditions: false,
                encoded_uploads: false,
                offers_checksums: false,
                part_reads: false,
                pinned_copies: false,
                ..compatible
            },
            Self::S3sFs => Facts {
                conditional_read: false,
                conditions: false,
                encoded_lists: false,
                list_parts: false,
                list_uploads: false,
                part_reads: false,
                offers_checksums: false,
                tags: false,
                ..compatible
            },
        }
    }
}
