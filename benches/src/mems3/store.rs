//! Buckets, objects and uploads.

use super::lock;
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum, hex},
    env::{Env, SystemEnv},
};
use hyper::HeaderMap;
use jiff::Timestamp;
use md5::{Digest, Md5};
use serde::Deserialize;
use sha2::Sha256;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// What etags are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Etags {
    /// MD5, or MD5 of the parts' MD5 values, as Amazon's without KMS.
    #[default]
    Md5,
    /// Nothing that anybody could know, as with KMS.
    Opaque,
}

/// Objects to make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Where.
    pub bucket: String,
    /// How many.
    pub objects: usize,
    /// Bytes of each.
    pub size: usize,
    /// Bytes of a part, where they are to come of uploads in parts.
    #[serde(default)]
    pub part: usize,
    /// Folders that they lie in.
    #[serde(default = "ten")]
    pub folders: usize,
    /// What etags are made of, from now on.
    #[serde(default)]
    pub etags: Etags,
}

fn ten() -> usize {
    10
}

/// An object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) segments: Vec<Bytes>,
    pub(super) len: u64,
    pub(super) etag: String,
    /// Bytes of each part, of one in parts.
    pub(super) parts: Vec<u64>,
    pub(super) modified: Timestamp,
    /// Content headers and metadata.
    pub(super) headers: HeaderMap,
    pub(super) tags: Vec<(String, String)>,
    crc: Arc<OnceLock<Checksum>>,
}

impl Object {
    pub(super) fn new(segments: Vec<Bytes>, len: u64, etag: String, headers: HeaderMap) -> Self {
        let (parts, tags) = (Vec::new(), Vec::new());
        Self { segments, len, etag, parts, modified: SystemEnv.now(), headers, tags, crc: Arc::default() }
    }

    /// CRC64NVME of the whole, taken once.
    pub(super) fn crc(&self) -> &Checksum {
        self.crc.get_or_init(|| Checksum::of(Algorithm::Crc64Nvme, &self.segments))
    }

    /// Bytes `from..to`.
    pub(super) fn slice(&self, from: u64, to: u64) -> Vec<Bytes> {
        let mut found = Vec::new();
        let mut at = 0;
        for segment in &self.segments {
            let end = at + segment.len() as u64;
            if end > from && at < to {
                found.push(segment.slice(from.saturating_sub(at) as usize..(to.min(end) - at) as usize));
            }
            at = end;
        }
        found
    }
}

/// An upload under way.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) headers: HeaderMap,
    pub(super) tags: Vec<(String, String)>,
    pub(super) parts: BTreeMap<u32, Part>,
}

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) segments: Vec<Bytes>,
    pub(super) len: u64,
    pub(super) md5: [u8; 16],
    pub(super) etag: String,
}

pub(super) fn md5_of(segments: &[Bytes]) -> [u8; 16] {
    segments.iter().fold(Md5::new(), Md5::chain_update).finalize().into()
}

/// What a bucket holds.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) objects: Mutex<BTreeMap<String, Arc<Object>>>,
    pub(super) uploads: Mutex<BTreeMap<String, Upload>>,
    opaque: AtomicBool,
    last: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Store(Mutex<BTreeMap<String, Arc<Bucket>>>);

impl Store {
    pub(super) fn create(&self, name: &str) -> Arc<Bucket> {
        Arc::clone(lock(&self.0).entry(name.to_owned()).or_default())
    }

    pub(super) fn bucket(&self, name: &str) -> Option<Arc<Bucket>> {
        lock(&self.0).get(name).cloned()
    }

    pub(super) fn buckets(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    pub(super) fn clear(&self, name: &str) {
        lock(&self.0).insert(name.to_owned(), Arc::default());
    }

    pub(super) fn open_uploads(&self) -> usize {
        lock(&self.0).values().map(|bucket| lock(&bucket.uploads).len()).sum()
    }
}

impl Bucket {
    /// Whether etags are made of MD5.
    pub(super) fn hashes(&self) -> bool {
        !self.opaque.load(Relaxed)
    }

    /// The etag of bytes of this MD5, or any.
    pub(super) fn etag(&self, md5: &[u8], parts: Option<usize>) -> String {
        let digest = if self.hashes() { hex(md5) } else { format!("{:032x}", u128::from(self.next()) << 64 | 0xdead_beef) };
        parts.map_or(digest.clone(), |parts| format!("{digest}-{parts}"))
    }

    pub(super) fn next(&self) -> u64 {
        self.last.fetch_add(1, Relaxed)
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        lock(&self.objects).get(key).cloned()
    }

    /// Another object of the same size, with an etag of its own.
    pub(super) fn overwrite(&self, key: &str) {
        let Some(old) = self.get(key) else { return };
        let body: Bytes = old.segments.concat().iter().map(|byte| byte ^ 0x55).collect();
        let etag = self.etag(&Md5::digest(&body), None);
        let new = Object::new(vec![body], old.len, etag, old.headers.clone());
        lock(&self.objects).insert(key.to_owned(), Arc::new(new));
    }

    /// SHA-256 of each object, by key: what a harness compares.
    pub(super) fn sums(&self) -> BTreeMap<String, String> {
        let objects = lock(&self.objects).clone();
        let sum = |object: &Object| {
            let mut sum = Sha256::new();
            object.segments.iter().for_each(|segment| sum.update(segment));
            hex(&sum.finalize())
        };
        objects.into_iter().map(|(key, object)| (key, sum(&object))).collect()
    }

    /// Makes objects of one pool of bytes, each from another place, so that they cost no memory.
    pub(super) fn seed(&self, seed: &Seed) {
        const POOL: usize = 64 << 20;
        static BYTES: OnceLock<Bytes> = OnceLock::new();
        let pool = BYTES.get_or_init(|| {
            let mut state = 0x9E37_79B9_7F4A_7C15_u64;
            let mut bytes = vec![0; POOL];
            for chunk in bytes.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.copy_from_slice(&state.to_le_bytes());
            }
            bytes.into()
        });
        self.opaque.store(seed.etags == Etags::Opaque, Relaxed);
        let mut made = Vec::with_capacity(seed.objects);
        for number in 0..seed.objects {
            let mut segments = Vec::new();
            let (mut left, mut at) = (seed.size, number.wrapping_mul(7919) % (POOL / 2));
            // A segment ends where a part does.
            let step = if seed.part == 0 { 8 << 20 } else { seed.part };
            let mut in_part = 0;
            while left > 0 {
                let take = left.min(step - in_part).min(POOL - at);
                segments.push(pool.slice(at..at + take));
                left -= take;
                in_part = (in_part + take) % step;
                at = (at + take) % POOL;
            }
            let mut object = Object::new(segments, seed.size as u64, String::new(), HeaderMap::new());
            if seed.part > 0 {
                let parts: Vec<u64> = (0..object.len).step_by(seed.part).map(|from| (object.len - from).min(seed.part as u64)).collect();
                let mut all = Md5::new();
                let mut from = 0;
                for len in &parts {
                    all.update(md5_of(&object.slice(from, from + len)));
                    from += len;
                }
                object.etag = self.etag(&all.finalize(), Some(parts.len()));
                object.parts = parts;
            } else {
                object.etag = self.etag(&md5_of(&object.segments), None);
            }
            object.modified = SystemEnv.now() - jiff::SignedDuration::from_hours(1);
            made.push((format!("d{:03}/k{number:07}.bin", number % seed.folders.max(1)), Arc::new(object)));
        }
        lock(&self.objects).extend(made);
    }
}
