//! A body on its way from source to sink: counted, hashed, limited, and remembered when it breaks.

use crate::{
    checksum::{Algorithm, Checksum, Digester},
    error::{Error, ErrorKind, Op, Result},
    limit::RateLimit,
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
}

impl Seen {
    /// Why the body broke, when it did: the sink only saw a body that ended early.
    pub(super) fn broken(&self) -> Option<Error> {
        self.lock().broken.take()
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

/// Passes `len` bytes on, taking checksums; a body of another length ends with an error, before its last byte could be taken
/// for complete.
pub(super) fn tee(body: ByteStream, len: u64, algorithms: &[Algorithm], rate: Option<RateLimit>) -> (ByteStream, Seen) {
    let seen = Seen::default();
    let digesters: Vec<_> = algorithms.iter().map(|a| Digester::new(*a)).collect();
    let state = (body, digesters, 0u64, seen.clone(), rate);
    let stream = stream::try_unfold(state, move |(mut body, mut digesters, mut at, seen, rate)| async move {
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
                if at == len {
                    let mut inner = seen.lock();
                    inner.sums = std::mem::take(&mut digesters).into_iter().map(Digester::finish).collect();
                    inner.complete = true;
                }
                Ok(Some((chunk, (body, digesters, at, seen, rate))))
            }
            Some(Err(error)) => Err(fail(&seen, error)),
            None if at < len => Err(fail(&seen, wrong_length(at, len))),
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
pub(super) async fn gather(mut body: ByteStream, len: u64, rate: Option<&RateLimit>) -> Result<Vec<bytes::Bytes>> {
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
    if at == len { Ok(chunks) } else { Err(wrong_length(at, len)) }
}
