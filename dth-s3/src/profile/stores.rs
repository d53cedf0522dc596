//! The facts of each store, with where they come from. What no document tells is taken as not to be had.

use super::facts::{Dialect, Etags, Facts, Hosts, Keys, Listing, Metadata, NonAscii, Plus, RestoreForm};
use dth_core::{checksum::Algorithm, sink::Conditions};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const AMAZON_CLASSES: &[&str] = &[
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
    "FSX_ONTAP",
];
const AMAZON_ACLS: &[&str] = &[
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
];
const PLAIN_ACLS: &[&str] = &["private", "public-read", "public-read-write", "authenticated-read"];
const PUBLISH: Conditions = Conditions { absent: true, unchanged: true, delete: false };
const ABSENT: Conditions = Conditions { absent: true, unchanged: false, delete: false };
const MD5: &[Algorithm] = &[Algorithm::Md5];
const ECMA: &[Algorithm] = &[Algorithm::Crc64Ecma];
const AMAZON_SUMS: &[Algorithm] = &[Algorithm::Crc64Nvme, Algorithm::Crc32c, Algorithm::Sha256];

/// What most stores have in common.
pub(super) const COMPATIBLE: Facts = Facts {
    scheme: "s3",
    dialect: Dialect::Amazon,
    hosts: Hosts::NONE,
    virtual_host: false,
    listing: Listing::V2,
    page: None,
    plus: Plus::Space,
    etags: Etags::Md5,
    conditional_read: true,
    strict_ranges: false,
    conditions: PUBLISH,
    seeks: true,
    keys: Keys::Any,
    max_key: 1024,
    encoded_lists: true,
    encoded_uploads: true,
    list_parts: true,
    list_uploads: true,
    part_reads: true,
    pinned_copies: true,
    max_copy: 5 * GIB,
    tags: true,
    tags_on_create: false,
    metadata: Metadata { max: 2 * KIB, underscores: true, non_ascii: NonAscii::Raw },
    website_redirect: true,
    verifies: MD5,
    tells: &[],
    offers: AMAZON_SUMS,
    checksum_mode: true,
    full_object_crc: false,
    min_part: 5 * MIB,
    max_part: 5 * GIB,
    max_parts: 10_000,
    max_put: 5 * GIB,
    // Amazon S3: 50 TB since December 2025.
    max_object: 50_000_000_000_000,
    classes: &[],
    archived: &["GLACIER", "DEEP_ARCHIVE"],
    restore: Some(RestoreForm::Glacier),
    versions: true,
    acls: AMAZON_ACLS,
    acl_on_complete: false,
    requester_pays: true,
    encryption: true,
    accepts_gzip: false,
};

/// Amazon S3 API Reference and User Guide.
pub(super) const AWS: Facts = Facts {
    conditions: Conditions::ALL,
    tags_on_create: true,
    verifies: &[Algorithm::Md5, Algorithm::Crc64Nvme],
    full_object_crc: true,
    metadata: Metadata { non_ascii: NonAscii::Encoded, ..COMPATIBLE.metadata },
    classes: AMAZON_CLASSES,
    ..COMPATIBLE
};

/// As seen: SeaweedFS 4.48.
pub(super) const SEAWEEDFS: Facts =
    Facts { seeks: false, keys: Keys::Paths, encoded_uploads: false, metadata: COMPATIBLE.metadata, classes: &[], ..AWS };

/// <https://garagehq.deuxfleurs.fr/documentation/reference-manual/s3-compatibility/>: conditions on writes are not there.
pub(super) const UNCONDITIONAL: Facts = Facts { conditions: Conditions::NONE, ..COMPATIBLE };

/// As seen: radosgw 16.2.15. It encodes keys of uploads without saying so, and leaves the marker as it is. It answers a read by part
/// number with the whole object, and copies whatever version there is.
pub(super) const CEPH: Facts =
    Facts { conditions: Conditions::NONE, encoded_uploads: false, offers: &[], part_reads: false, pinned_copies: false, ..COMPATIBLE };

/// As seen: s3s-fs 0.14.1.
pub(super) const S3S_FS: Facts = Facts {
    conditional_read: false,
    conditions: Conditions::NONE,
    encoded_lists: false,
    list_parts: false,
    list_uploads: false,
    part_reads: false,
    offers: &[],
    tags: false,
    acls: &[],
    restore: None,
    versions: false,
    ..COMPATIBLE
};

/// Alibaba Cloud OSS API reference: PutObject, InitiateMultipartUpload, UploadPart, CompleteMultipartUpload, CopyObject, GetObject,
/// ListObjectsV2, ListObjectVersions, RestoreObject; "Object naming conventions"; "Regions and endpoints"; error 0017-00000245 (no
/// `If-Match` on PutObject). Names of hosts, the reading of listings and the checksum as alibabacloud-oss-v2 1.4.1 has them.
pub(super) const OSS: Facts = Facts {
    scheme: "oss",
    dialect: Dialect::Oss,
    hosts: Hosts {
        public: Some("oss-{region}.aliyuncs.com"),
        internal: Some("oss-{region}-internal.aliyuncs.com"),
        accelerate: Some("oss-accelerate.aliyuncs.com"),
        dual_stack: Some("{region}.oss.aliyuncs.com"),
        region: None,
    },
    virtual_host: true,
    // 100 otherwise.
    page: Some(1000),
    plus: Plus::Itself,
    etags: Etags::UpperMd5OfPuts,
    strict_ranges: true,
    // `x-oss-forbid-overwrite`; ignored in buckets with versioning.
    conditions: ABSENT,
    keys: Keys::NoLeadingSlashes,
    max_key: 1023,
    part_reads: false,
    // "less than 1 GB"
    max_copy: 1_000_000_000,
    tags_on_create: true,
    metadata: Metadata { max: 8 * KIB, underscores: false, non_ascii: NonAscii::Lost },
    website_redirect: false,
    tells: ECMA,
    offers: ECMA,
    checksum_mode: false,
    min_part: 100 * KIB,
    // 48.8 TB
    max_object: 48_800_000_000_000,
    classes: &["Standard", "IA", "Archive", "ColdArchive", "DeepColdArchive"],
    archived: &["Archive", "ColdArchive", "DeepColdArchive"],
    restore: Some(RestoreForm::Oss),
    acls: &["default", "private", "public-read", "public-read-write"],
    acl_on_complete: true,
    ..COMPATIBLE
};

/// Tencent Cloud COS API documents: PUT Object (436/7749), GET Bucket (436/7734), Initiate, Upload Part (436/7750), Complete, PUT Object -
/// Copy (436/10881), GET Bucket Object versions (436/35521), POST Object restore (436/12633), "Object overview" (436/13324), "Storage class
/// overview". Names of hosts, the reading of listings and the checksum as cos-python-sdk-v5 1.9.44 and cos-go-sdk-v5 have them.
pub(super) const COS: Facts = Facts {
    scheme: "cos",
    dialect: Dialect::Cos,
    hosts: Hosts {
        public: Some("cos.{region}.myqcloud.com"),
        internal: Some("cos-internal.{region}.tencentcos.cn"),
        accelerate: Some("cos.accelerate.myqcloud.com"),
        dual_stack: None,
        region: None,
    },
    virtual_host: true,
    listing: Listing::V1,
    page: Some(1000),
    plus: Plus::Itself,
    etags: Etags::Md5OfPuts,
    // `x-cos-forbid-overwrite`; ignored in buckets with versioning.
    conditions: ABSENT,
    // The SDKs keep `.` and `..` from the server, which joins paths.
    keys: Keys::NoDots,
    max_key: 850,
    part_reads: false,
    tags_on_create: true,
    metadata: Metadata { max: 2 * KIB, underscores: true, non_ascii: NonAscii::Lost },
    website_redirect: false,
    tells: ECMA,
    offers: ECMA,
    checksum_mode: false,
    min_part: MIB,
    classes: &[
        "STANDARD",
        "STANDARD_IA",
        "INTELLIGENT_TIERING",
        "ARCHIVE",
        "DEEP_ARCHIVE",
        "MAZ_STANDARD",
        "MAZ_STANDARD_IA",
        "MAZ_INTELLIGENT_TIERING",
    ],
    archived: &["ARCHIVE", "DEEP_ARCHIVE"],
    restore: Some(RestoreForm::Cos),
    acls: &[
        "default",
        "private",
        "public-read",
        "public-read-write",
        "authenticated-read",
        "bucket-owner-read",
        "bucket-owner-full-control",
    ],
    requester_pays: false,
    ..COMPATIBLE
};

/// A store of which nothing but its documents is known, which say little.
const BY_DOCUMENT: Facts = Facts {
    etags: Etags::Opaque,
    conditions: Conditions::NONE,
    part_reads: false,
    pinned_copies: false,
    tags: false,
    metadata: Metadata { max: 2 * KIB, underscores: true, non_ascii: NonAscii::Lost },
    website_redirect: false,
    offers: &[],
    checksum_mode: false,
    requester_pays: false,
    restore: None,
    versions: false,
    ..COMPATIBLE
};

/// <https://developer.qiniu.com/kodo/4087/compatible-s3-api>: no `encoding-type`, no SSE, no Object Lock, no versions; classes.
/// <https://developer.qiniu.com/kodo/4088/s3-access-domainname>: hosts. Its etags are not MD5 (its own hash); whether `Content-MD5` is
/// checked is said nowhere.
pub(super) const KODO: Facts = Facts {
    scheme: "kodo",
    hosts: Hosts { public: Some("s3.{region}.qiniucs.com"), ..Hosts::NONE },
    encoded_lists: false,
    encoded_uploads: false,
    // In listings that are not encoded XML would change them.
    keys: Keys::Visible,
    verifies: &[],
    max_object: 48_800_000_000_000,
    classes: &["STANDARD", "LINE", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"],
    acls: &[],
    encryption: false,
    ..BY_DOCUMENT
};

/// Huawei Cloud OBS: "Endpoints" (obs_06_0007), "User-domain names" (obs_03_0360: the bucket belongs into the host name), "Upload Part"
/// (obs_33_0512: 100 KB to 5 GB); listing, encoding and classes as esdk-obs-python 3.26.6 has them. It ignores `x-amz-checksum-…`.
pub(super) const OBS: Facts = Facts {
    scheme: "obs",
    hosts: Hosts { public: Some("obs.{region}.myhuaweicloud.com"), ..Hosts::NONE },
    virtual_host: true,
    listing: Listing::V1,
    min_part: 100 * KIB,
    max_object: 48_800_000_000_000,
    classes: &["STANDARD", "STANDARD_IA", "INTELLIGENT_TIERING", "GLACIER", "DEEP_ARCHIVE"],
    acls: PLAIN_ACLS,
    ..BY_DOCUMENT
};

/// <https://cloud.baidu.com/doc/BOS/s/xjwvyq9l4>: hosts; <https://cloud.baidu.com/doc/BOS/s/Njwvyq8ho>: what is compatible (no SSE, no
/// `fetch-owner`, two classes; copies of parts and tags are not named).
pub(super) const BOS: Facts = Facts {
    scheme: "bos",
    hosts: Hosts { public: Some("s3.{region}.bcebos.com"), ..Hosts::NONE },
    max_object: 48_800_000_000_000,
    classes: &["STANDARD", "STANDARD_IA"],
    acls: PLAIN_ACLS,
    encryption: false,
    ..BY_DOCUMENT
};

/// <https://developers.cloudflare.com/r2/api/s3/api/>, its pages on conditional operations, extensions and limits. The host names the
/// account, so that it must be given. Etags of parts are no MD5; copies of parts know no condition.
pub(super) const R2: Facts = Facts {
    scheme: "r2",
    hosts: Hosts { region: Some("auto"), ..Hosts::NONE },
    etags: Etags::Opaque,
    conditions: PUBLISH,
    pinned_copies: false,
    tags: false,
    metadata: Metadata { max: 8 * KIB, underscores: true, non_ascii: NonAscii::Encoded },
    website_redirect: false,
    verifies: &[Algorithm::Md5, Algorithm::Crc64Nvme],
    full_object_crc: true,
    // 5 MiB below those of Amazon S3.
    max_part: 5 * GIB - 5 * MIB,
    max_put: 5 * GIB - 5 * MIB,
    max_object: 5 * TIB - 5 * GIB,
    classes: &["STANDARD", "STANDARD_IA"],
    archived: &[],
    restore: None,
    versions: false,
    acls: &[],
    requester_pays: false,
    encryption: false,
    ..COMPATIBLE
};

/// <https://www.backblaze.com/docs/cloud-storage-s3-compatible-api> and its page on large files. Conditional writes are "not
/// implemented", and `x-amz-checksum-mode` was refused.
pub(super) const B2: Facts = Facts {
    scheme: "b2",
    hosts: Hosts { public: Some("s3.{region}.backblazeb2.com"), ..Hosts::NONE },
    keys: Keys::Visible,
    max_object: 10_000_000_000_000,
    archived: &[],
    // "S3 List Object Versions", "Get Bucket Versioning"; it keeps versions always.
    versions: true,
    acls: &["private", "public-read"],
    ..BY_DOCUMENT
};

/// <https://cloud.google.com/storage/docs/migrating> (`x-amz-…` headers with HMAC keys), "XML API multipart uploads" (no preconditions, no
/// MD5), "HTTP headers". `If-Match` and `If-None-Match` on writes are ignored.
pub(super) const GCS: Facts = Facts {
    scheme: "gs",
    hosts: Hosts { public: Some("storage.googleapis.com"), region: Some("auto"), ..Hosts::NONE },
    metadata: Metadata { max: 8 * KIB, ..BY_DOCUMENT.metadata },
    max_object: 5 * TIB,
    // Archive is read like any other.
    classes: &["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
    archived: &[],
    acls: PLAIN_ACLS,
    // Who asks pays by `x-goog-user-project`.
    requester_pays: false,
    encryption: false,
    // "Decompressive transcoding" otherwise.
    accepts_gzip: true,
    ..BY_DOCUMENT
};

/// <https://docs.wasabi.com/docs/service-urls-for-wasabis-storage-regions.md>; "bit-compatible" with Amazon S3, but conditional writes
/// and checksums are named nowhere.
pub(super) const WASABI: Facts = Facts {
    scheme: "wasabi",
    hosts: Hosts { public: Some("s3.{region}.wasabisys.com"), ..Hosts::NONE },
    conditions: Conditions::NONE,
    part_reads: false,
    offers: &[],
    checksum_mode: false,
    metadata: BY_DOCUMENT.metadata,
    classes: &["STANDARD"],
    archived: &[],
    restore: None,
    requester_pays: false,
    ..COMPATIBLE
};

/// <https://docs.min.io/community/minio-object-store/operations/concepts/thresholds.html>, "S3 API compatibility" (no object ACLs; uploads
/// are listed by the exact key only). Keys are paths of a file system. Conditions on Complete since May 2024.
pub(super) const MINIO: Facts = Facts {
    scheme: "minio",
    keys: Keys::Paths,
    list_uploads: false,
    max_put: 5 * TIB,
    max_object: 50 * TIB,
    archived: &[],
    restore: None,
    acls: &[],
    requester_pays: false,
    ..COMPATIBLE
};
