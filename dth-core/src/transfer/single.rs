//! Objects that are written by one request: held in memory, or streamed when their checksum is known beforehand.

use super::{
    Attempt, Journal, ReadPermit, Transfer,
    check::Expected,
    note,
    publish::Published,
    tee::{Proof, gather, tee},
};
use crate::{
    checksum::Algorithm,
    error::Result,
    object::{EtagKind, ObjectInfo, ObjectKey},
    proof::{Bug, wrong},
    sink::{Body, Condition},
    source::Read,
    state::Verified,
};

/// Bytes that one streamed body has in buffers: ours, the HTTP client's and the TLS layer's.
pub(super) const STREAM_WINDOW: u64 = 512 << 10;

impl Transfer {
    /// One GET, one PUT: the bytes are verified before they leave.
    pub(super) async fn single(
        &self,
        key: &ObjectKey,
        held: &Condition,
        read: Read,
        permit: ReadPermit,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let Read { info, range, body } = read;
        let size = range.end - range.start;
        let _bytes = self.budget.acquire(if wrong(Bug::NoBudget) { 0 } else { size }).await;
        let chunks = gather(body, size, self.bytes.as_ref()).await?;
        drop(permit);
        let mut check = self.check_held(&info, &chunks)?;
        check.expected.replaces = held.etag().cloned();
        let mut options = self.put_options(&info, journal, false).await?;
        options.condition = self.effective(held);
        options.checksum = check.checksum.filter(|_| !wrong(Bug::NoUploadChecksum));
        journal.about_to_publish(&info.entry, &self.settings.retry, &self.env).await?;
        let published = self.publish(key, &check.expected, || self.sink.put(key, Body::Bytes(chunks.clone()), &options)).await?;
        self.ended(key, &info, check.expected, check.verified, published, journal).await
    }

    /// Whether an object can be streamed into one PUT that the sink verifies as a whole.
    pub(super) fn streams_whole(&self, info: &ObjectInfo, size: u64) -> bool {
        let capability = self.sink.sink_capability();
        let parity =
            info.entry.etag.as_ref().and_then(crate::object::ETag::part_count).is_none_or(|n| n == 1) || !self.settings.etag_parity;
        let single = size <= self.settings.single_max.min(capability.max_put) && parity && self.known_sum(info).is_some();
        // Without parts there is no other way; the answer is checked afterwards.
        single || (capability.multipart.is_none() && size <= capability.max_put)
    }

    /// One GET streamed into one PUT, never held whole. Where the sink does not verify the source's checksum itself, it gets
    /// the last chunk only of the right bytes. `part_size` is that of the source's own parts, where it has some.
    pub(super) async fn streamed(
        &self,
        key: &ObjectKey,
        held: &Condition,
        read: Read,
        permit: ReadPermit,
        part_size: Option<u64>,
        journal: &mut Journal<'_>,
    ) -> Result<Attempt> {
        let Read { info, range, body } = read;
        let size = range.end - range.start;
        let sum = self.known_sum(&info);
        let (proof, verified) = match &sum {
            Some(sum) => (Proof::None, Verified::Source(sum.algorithm)),
            None => self.proof(&info, part_size.filter(|_| !journal.parity.is_hopeless())),
        };
        let mut algorithms = Vec::new();
        if sum.is_none() && self.sink.index_capability().etag == EtagKind::Md5 {
            algorithms.push(Algorithm::Md5);
        }
        if sum.is_none() && info.checksum.is_none() {
            algorithms.push(Algorithm::Crc64Nvme);
        }
        let mut options = self.put_options(&info, journal, false).await?;
        options.condition = self.effective(held);
        options.checksum.clone_from(&sum);
        journal.about_to_publish(&info.entry, &self.settings.retry, &self.env).await?;
        let _bytes = self.budget.acquire((STREAM_WINDOW + self.sink.sink_capability().stream_window).min(size)).await;
        let (stream, seen) = tee(body, size, &algorithms, proof, self.bytes.clone());
        let answer = {
            let sink = self.sink_permit().await;
            note(&sink, self.sink.put(key, Body::Stream { len: size, stream }, &options).await)
        };
        drop(permit);
        let md5 = self.source_md5(&info).or_else(|| seen.sum(Algorithm::Md5));
        let checksum = info.checksum.clone().or_else(|| seen.sum(Algorithm::Crc64Nvme));
        let etag = self.etag_from(md5.as_ref(), checksum.as_ref());
        let expected = Expected { size, etag, checksum, replaces: held.etag().cloned() };
        let published = match answer {
            Ok(written) => self.believe(key, &expected, written).await?,
            Err(error) => match self.judge(key, &expected, &error).await? {
                Some(published) => published,
                None if let Some(made) = seen.wrong_etag() => {
                    // Read wrong, or the source's parts are not equal in size: the same wrong etag twice tells.
                    journal.parity.failed(Some(made));
                    return Err(seen.broken().unwrap_or(error));
                }
                // The cause is what the source did, when it did something.
                None => return Err(seen.broken().unwrap_or(error)),
            },
        };
        self.ended(key, &info, expected, verified, published, journal).await
    }

    /// The strongest thing that the source says of the whole object, and what it proves.
    fn proof(&self, info: &ObjectInfo, part_size: Option<u64>) -> (Proof, Verified) {
        let etag = info.entry.etag.as_ref().filter(|_| !info.opaque_etag && self.source.index_capability().etag == EtagKind::Md5);
        if let Some(sum) = info.checksum.clone().or_else(|| self.source_md5(info)) {
            let verified = Verified::Source(sum.algorithm);
            return (Proof::sum(sum), verified);
        }
        match (etag.filter(|e| e.part_count().is_some()), part_size) {
            (Some(etag), Some(part_size)) => (Proof::parts(etag.clone(), part_size), Verified::Source(Algorithm::Md5)),
            _ => (Proof::None, Verified::Transport(Algorithm::Crc64Nvme)),
        }
    }

    /// What a publication comes to for the job.
    pub(super) async fn ended(
        &self,
        key: &ObjectKey,
        info: &ObjectInfo,
        expected: Expected,
        verified: Verified,
        published: Published,
        journal: &Journal<'_>,
    ) -> Result<Attempt> {
        match published {
            Published::Ours(etag) if self.look_after(key, &expected, journal.is_redelivery()).await? => {
                Ok(Attempt::Ended(Box::new(self.done(journal, &info.entry, etag, expected.checksum, verified))))
            }
            Published::Ours(_) | Published::Changed => Ok(Attempt::Changed),
        }
    }
}
