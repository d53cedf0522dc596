//! Checksums, and what may be compared with what.
//!
//! MD5 is taken only where an API demands it (0.7 GB/s a core); CRC64NVME is the checksum of choice: tens of GB/s, and the
//! values of parts combine to the value of the whole object, whatever the part layout.

use bytes::Bytes;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A checksum algorithm that some store offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Algorithm {
    /// MD5, as in plain etags and `Content-MD5`.
    Md5,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// CRC-64 of ECMA-182, bits reversed (CRC-64/XZ), as Alibaba OSS and Tencent COS give it for every object.
    Crc64Ecma,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// Whether the values of consecutive ranges combine to the value of the whole.
    pub const fn combines(self) -> bool {
        matches!(self, Self::Crc32c | Self::Crc64Nvme | Self::Crc64Ecma)
    }

    /// The stable lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Crc64Ecma => "crc64ecma",
            Self::Sha256 => "sha256",
        }
    }

    const fn crc(self) -> Option<crc_fast::CrcAlgorithm> {
        match self {
            Self::Crc32c => Some(crc_fast::CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(crc_fast::CrcAlgorithm::Crc64Nvme),
            Self::Crc64Ecma => Some(crc_fast::CrcAlgorithm::Crc64Xz),
            Self::Md5 | Self::Sha256 => None,
        }
    }
}

/// The checksum of a whole object or of one range.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksum {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The value, most significant byte first.
    #[serde(with = "hex_bytes")]
    pub value: Vec<u8>,
}

impl Checksum {
    /// The checksum of bytes in memory.
    pub fn of(algorithm: Algorithm, chunks: &[Bytes]) -> Self {
        let mut digester = Digester::new(algorithm);
        for chunk in chunks {
            digester.update(chunk);
        }
        digester.finish()
    }

    /// Joins the value of a range with that of the range behind it, `behind_len` bytes long. `None` where the algorithm
    /// does not combine, or the two are of different algorithms.
    pub fn combine(&self, behind: &Self, behind_len: u64) -> Option<Self> {
        if self.algorithm != behind.algorithm {
            return None;
        }
        let crc = self.algorithm.crc()?;
        let width = self.value.len();
        let joined = crc_fast::checksum_combine(crc, be(&self.value), be(&behind.value), behind_len);
        Some(Self { algorithm: self.algorithm, value: joined.to_be_bytes()[8 - width..].to_vec() })
    }

    /// Lower-case hexadecimal form of the value.
    pub fn to_hex(&self) -> String {
        hex(&self.value)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.to_hex())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Takes one checksum over bytes as they pass.
pub struct Digester {
    algorithm: Algorithm,
    state: State,
}

enum State {
    Md5(Md5),
    Sha256(sha2::Sha256),
    Crc(crc_fast::Digest),
}

impl Digester {
    /// A digester of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => State::Crc(crc_fast::Digest::new(crc)),
            (Algorithm::Sha256, None) => State::Sha256(sha2::Sha256::new()),
            (_, None) => State::Md5(Md5::new()),
        };
        Self { algorithm, state }
    }

    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Md5(md5) => md5.update(bytes),
            State::Sha256(sha) => sha.update(bytes),
            State::Crc(crc) => crc.update(bytes),
        }
    }

    /// The checksum of all bytes taken in.
    pub fn finish(self) -> Checksum {
        let value = match self.state {
            State::Md5(md5) => md5.finalize().to_vec(),
            State::Sha256(sha) => sha.finalize().to_vec(),
            State::Crc(crc) => {
                let width = if self.algorithm == Algorithm::Crc32c { 4 } else { 8 };
                crc.finalize().to_be_bytes()[8 - width..].to_vec()
            }
        };
        Checksum { algorithm: self.algorithm, value }
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digester({})", self.algorithm.as_str())
    }
}

/// Lower-case hexadecimal form.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads hexadecimal text; `None` when it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        super::unhex(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not hexadecimal")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let of = |a| Checksum::of(a, &[Bytes::from_static(b"1234"), Bytes::from_static(b"56789")]).to_hex();
        assert_eq!(of(Algorithm::Md5), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(of(Algorithm::Crc32c), "e3069283");
        assert_eq!(of(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(of(Algorithm::Crc64Ecma), "995dc9bbdf1939fa");
        assert_eq!(of(Algorithm::Sha256), "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225");
    }

    #[test]
    fn parts_combine_to_the_whole() {
        for algorithm in [Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Crc64Ecma] {
            let part = |b: &'static [u8]| Checksum::of(algorithm, &[Bytes::from_static(b)]);
            let joined = part(b"12345").combine(&part(b"6789"), 4);
            assert_eq!(joined, Some(part(b"123456789")));
        }
        let md5 = Checksum::of(Algorithm::Md5, &[]);
        assert_eq!(md5.combine(&md5, 0), None);
    }
}
