//! A body on its way from source to sink: counted, hashed, checked, limited, and remembered when it breaks.

use crate::{
    checksum::{Algorithm, Checksum, Digester},
    error::{Error, ErrorKind, Op},
    limit::RateLimit,
    object::ETag,
    proof::{Branch, Bug, reached, wrong},
    source::ByteStream,
};
use futures_util::{StreamExt, stream};
use std::sync::{Arc, Mutex};

/// What the stream saw; to be asked when the sink has answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    sums: Vec<Checksum>,
    broken: Option<Error>,
    complete: bool,
    wrong: Option<ETag>,
}

impl Seen {
    /// Why the body broke, when it did: the sink only saw a body that ended early.
    pub(super) fn broken(&self) -> Option<Error> {
        self.lock().broken.take()
    }

    /// The etag that the bytes make in parts of the source's size, when it is not the source's.
    pub(super) fn wrong_etag(&self) -> Option<ETag> {
        self.lock().wrong.take()
    }

    /// A checksum of the whole body, once all of it has passed.
    pub(super) fn sum(&self, algorithm: Algorithm) -> Option<Checksum> {
        let inner = self.lock();
        inner.sums.iter().find(|c| c.algorithm == algorithm && inner.complete).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the whole body must be. Its last chunk is kept back until it is: a sink never gets all bytes of a wrong body.
#[derive(Debug)]
pub(super) enum Proof {
    /// Nothing is known.
    None,
    /// A checksum of the whole.
    Sum(Checksum, Digester),
    /// The etag of a multipart object, from the MD5 values of its equal parts.
    Parts { etag: ETag, part_size: u64, left: u64, part: Digester, sums: Vec<[u8; 16]> },
}

impl Proof {
    pub(super) fn sum(expected: Checksum) -> Self {
        let digester = Digester::new(expected.algorithm);
        Self::Sum(expected, digester)
    }

    pub(super) fn parts(etag: ETag, part_size: u64) -> Self {
        Self::Parts { etag, part_size, left: part_size, part: Digester::new(Algorithm::Md5), sums: Vec::new() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Sum(_, digester) => digester.update(bytes),
            Self::Parts { part_size, left, part, sums, .. } => {
                while !bytes.is_empty() {
                    let (head, tail) = bytes.split_at((*left).min(bytes.len() as u64) as usize);
                    part.update(head);
                    *left -= head.len() as u64;
                    bytes = tail;
                    if *left == 0 {
                        sums.push(end_of_part(part));
                        *left = *part_size;
                    }
                }
            }
        }
    }

    /// Judges the bytes, which have all passed; wrong ones give the etag that they make in parts, where it is one of parts.
    fn judge(self) -> Result<(), Option<ETag>> {
        match self {
            Self::None => Ok(()),
            Self::Sum(expected, digester) => {
                if digester.finish() == expected {
                    Ok(())
                } else {
                    Err(None)
                }
            }
            Self::Parts { etag, part_size, left, mut part, mut sums } => {
                if left < part_size {
                    sums.push(end_of_part(&mut part));
                }
                let made = ETag::of_parts(&sums);
                if made == etag { Ok(()) } else { Err(Some(made)) }
            }
        }
    }
}

fn end_of_part(part: &mut Digester) -> [u8; 16] {
    let sum = std::mem::replace(part, Digester::new(Algorithm::Md5)).finish();
    sum.value.try_into().expect("an MD5 has 16 bytes")
}

/// Passes `len` bytes on, taking checksums; a body of another length, or one that is not what `proof` says, ends with an
/// error before its last chunk.
pub(super) fn tee(body: ByteStream, len: u64, algorithms: &[Algorithm], proof: Proof, rate: Option<RateLimit>) -> (ByteStream, Seen) {
    let seen = Seen::default();
    let digesters: Vec<_> = algorithms.iter().map(|a| Digester::new(*a)).collect();
    let state = (body, (digesters, proof), 0u64, seen.clone(), rate);
    let stream = stream::try_unfold(state, move |(mut body, (mut digesters, mut proof), mut at, seen, rate)| async move {
        match body.next().await {
            Some(Ok(chunk)) => {
                at += chunk.len() as u64;
                if at > len {
                    return Err(fail(&seen, wrong_length(at, len)));
                }
                if let Some(rate) = &rate {
                    rate.pass(chunk.len() as u64).await;
                }
                for digester in &mut digesters {
                    digester.update(&chunk);
                }
                proof.update(&chunk);
                if at == len {
                    if let Err(made) = std::mem::replace(&mut proof, Proof::None).judge()
                        && !wrong(Bug::NoProofOfStreams)
                    {
                        reached(Branch::Refused);
                        seen.lock().wrong = made;
                        let error = Error::new(ErrorKind::Corrupt, Op::Read, "body");
                        return Err(fail(&seen, error.with_source("the bytes read do not have the checksum that the source gives")));
                    }
                    let mut inner = seen.lock();
                    inner.sums = std::mem::take(&mut digesters).into_iter().map(Digester::finish).collect();
                    inner.complete = true;
                }
                Ok(Some((chunk, (body, (digesters, proof), at, seen, rate))))
            }
            Some(Err(error)) => Err(fail(&seen, error)),
            None if at < len && !wrong(Bug::NoLengthCheck) => Err(fail(&seen, wrong_length(at, len))),
            None => Ok(None),
        }
    });
    (stream.boxed(), seen)
}

fn wrong_length(at: u64, len: u64) -> Error {
    Error::new(ErrorKind::Corrupt, Op::Read, "body").with_source(format!("{at} bytes came where {len} were announced"))
}

/// Keeps the cause for us, and gives the sink an error of its own.
fn fail(seen: &Seen, error: Error) -> Error {
    let told = Error::new(error.kind(), error.op(), error.target());
    seen.lock().broken = Some(error);
    told
}

/// All bytes of a body in memory; an error when they are not exactly `len`.
pub(super) async fn gather(mut body: ByteStream, len: u64, rate: Option<&RateLimit>) -> crate::error::Result<Vec<bytes::Bytes>> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        at += chunk.len() as u64;
        if at > len {
            break;
        }
        if let Some(rate) = rate {
            rate.pass(chunk.len() as u64).await;
        }
        chunks.push(chunk);
    }
    if at == len || wrong(Bug::NoLengthCheck) { Ok(chunks) } else { Err(wrong_length(at, len)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    async fn passed(chunks: &[&'static str], proof: Proof) -> (String, bool) {
        let len = chunks.iter().map(|c| c.len() as u64).sum();
        let body = stream::iter(chunks.iter().map(|c| Ok(Bytes::from_static(c.as_bytes()))).collect::<Vec<_>>()).boxed();
        let (mut stream, seen) = tee(body, len, &[], proof, None);
        let mut text = String::new();
        while let Some(Ok(chunk)) = stream.next().await {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        (text, seen.broken().is_none())
    }

    #[tokio::test]
    async fn the_last_chunk_of_a_wrong_body_is_kept_back() {
        let sum = |text: &'static str| Proof::sum(Checksum::of(Algorithm::Crc64Nvme, &[Bytes::from_static(text.as_bytes())]));
        assert_eq!(passed(&["ab", "cd"], sum("abcd")).await, ("abcd".into(), true));
        assert_eq!(passed(&["ab", "cd"], sum("abce")).await, ("ab".into(), false));
        let md5 = |text: &str| Checksum::of(Algorithm::Md5, &[Bytes::copy_from_slice(text.as_bytes())]).value.try_into().unwrap();
        let parts = |of: &[&str]| Proof::parts(ETag::of_parts(&of.iter().map(|p| md5(p)).collect::<Vec<_>>()), 3);
        assert_eq!(passed(&["ab", "cdef", "g"], parts(&["abc", "def", "g"])).await, ("abcdefg".into(), true));
        assert_eq!(passed(&["abc", "def"], parts(&["abc", "def"])).await, ("abcdef".into(), true));
        assert_eq!(passed(&["ab", "cdef", "g"], parts(&["ab", "cdef", "g"])).await, ("abcdef".into(), false));
    }
}
