//! What the bytes of an object are checked against, and with which checksum they are handed on.

use super::Transfer;
use crate::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, EtagKind, ObjectInfo},
    proof::{Branch, Bug, reached, wrong},
    state::Verified,
};
use bytes::Bytes;

/// What the destination must show once the object is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    pub(super) size: u64,
    /// Known where the sink builds etags from MD5.
    pub(super) etag: Option<ETag>,
    /// Of the whole object.
    pub(super) checksum: Option<Checksum>,
    /// What the write replaces: found again behind a lost answer, it shows that the write has not taken effect, even if it
    /// has the right bytes; it may yet do so, under another etag.
    pub(super) replaces: Option<ETag>,
}

impl Expected {
    /// Whether an object at the destination is ours, beyond doubt.
    pub(super) fn matches(&self, found: &ObjectInfo) -> bool {
        let by_etag = !found.opaque_etag && self.etag.is_some() && self.etag == found.entry.etag;
        let by_sum = self.checksum.is_some() && self.checksum == found.checksum;
        let by_size = wrong(Bug::OpaqueEtagBelieved) && self.etag.is_none();
        found.entry.size == Some(self.size) && (by_etag || by_sum || by_size)
    }

    /// Whether the answer to a write contradicts what was sent.
    pub(super) fn contradicts(&self, etag: Option<&ETag>, checksum: Option<&Checksum>) -> bool {
        let other_etag = matches!((&self.etag, etag), (Some(a), Some(b)) if a != b);
        let other_sum = matches!((&self.checksum, checksum), (Some(a), Some(b)) if a.algorithm == b.algorithm && a != b);
        other_etag || other_sum
    }
}

/// Bytes in memory, checked, with what goes to the sink.
pub(super) struct Held {
    pub(super) verified: Verified,
    /// For the sink to verify.
    pub(super) checksum: Option<Checksum>,
    pub(super) expected: Expected,
}

impl Transfer {
    /// The MD5 that the source's etag is, where it is one.
    pub(super) fn source_md5(&self, info: &ObjectInfo) -> Option<Checksum> {
        if info.opaque_etag || self.source.index_capability().etag != EtagKind::Md5 {
            return None;
        }
        let value = info.entry.etag.as_ref()?.as_md5()?.to_vec();
        Some(Checksum { algorithm: Algorithm::Md5, value })
    }

    /// The etag of an object put at once, where the sink builds it from one of these.
    pub(super) fn etag_from(&self, md5: Option<&Checksum>, sum: Option<&Checksum>) -> Option<ETag> {
        match self.sink.index_capability().etag {
            EtagKind::Md5 => md5.map(|c| ETag::of_md5(&c.value)),
            EtagKind::Digest => sum.filter(|c| c.algorithm == Algorithm::Sha256).map(|c| ETag::of_sha256(&c.value)),
            EtagKind::Opaque => None,
        }
    }

    /// The checksum that a single put of the unread body can carry: known beforehand, and verified by the sink.
    pub(super) fn known_sum(&self, info: &ObjectInfo) -> Option<Checksum> {
        let verifies = self.sink.sink_capability().verifies;
        self.source_md5(info)
            .filter(|c| verifies.contains(&c.algorithm))
            .or_else(|| info.checksum.clone().filter(|c| verifies.contains(&c.algorithm)))
    }

    /// Checks bytes in memory against the strongest checksum that the source offers, and takes what the sink wants.
    ///
    /// A plain MD5 etag is not hashed here where the sink verifies it as `Content-MD5`: the store then refuses wrong bytes.
    pub(super) fn check_held(&self, info: &ObjectInfo, body: &[Bytes]) -> Result<Held> {
        let verifies = self.sink.sink_capability().verifies;
        let size = body.iter().map(|c| c.len() as u64).sum();
        let etag = info.entry.etag.as_ref();
        let mut md5 = self.source_md5(info);
        let mut known = info.checksum.clone();
        let verified = if let Some(sum) = &md5 {
            if !verifies.contains(&Algorithm::Md5) {
                same(info, &Checksum::of(Algorithm::Md5, body), sum)?;
            }
            Verified::Source(Algorithm::Md5)
        } else if let Some(sum) = &known {
            same(info, &Checksum::of(sum.algorithm, body), sum)?;
            Verified::Source(sum.algorithm)
        } else if !info.opaque_etag && self.source.index_capability().etag == EtagKind::Md5 && etag.and_then(ETag::part_count) == Some(1) {
            let sum = Checksum::of(Algorithm::Md5, body);
            let part: [u8; 16] = sum.value.as_slice().try_into().expect("an MD5 has 16 bytes");
            if etag != Some(&ETag::of_parts(&[part])) && !wrong(Bug::NoEndToEnd) {
                return Err(corrupt(info));
            }
            md5 = Some(sum);
            Verified::Source(Algorithm::Md5)
        } else {
            Verified::Transport(if verifies.contains(&Algorithm::Crc64Nvme) { Algorithm::Crc64Nvme } else { Algorithm::Md5 })
        };
        let sum = md5
            .clone()
            .filter(|_| verifies.contains(&Algorithm::Md5))
            .or_else(|| known.clone().filter(|c| verifies.contains(&c.algorithm)));
        let sum = sum.or_else(|| {
            let algorithm = verifies.iter().find(|a| a.combines()).or(verifies.first())?;
            Some(Checksum::of(*algorithm, body))
        });
        if md5.is_none() {
            md5 = sum.clone().filter(|c| c.algorithm == Algorithm::Md5);
        }
        if md5.is_none() && sum.is_none() && self.sink.index_capability().etag == EtagKind::Md5 {
            // Nothing else shows what the sink stored.
            md5 = Some(Checksum::of(Algorithm::Md5, body));
        }
        known = known.or_else(|| sum.clone().filter(|c| c.algorithm != Algorithm::Md5));
        let etag = self.etag_from(md5.as_ref(), known.as_ref());
        let expected = Expected { size, etag, checksum: known, replaces: None };
        Ok(Held { verified, checksum: sum, expected })
    }
}

fn same(info: &ObjectInfo, computed: &Checksum, offered: &Checksum) -> Result<()> {
    if computed == offered || wrong(Bug::NoEndToEnd) {
        return Ok(());
    }
    reached(Branch::Refused);
    Err(corrupt(info))
}

pub(super) fn corrupt(info: &ObjectInfo) -> Error {
    Error::new(ErrorKind::Corrupt, Op::Transfer, info.entry.key.to_string())
        .with_source("the bytes read do not have the checksum that the source gives")
}
