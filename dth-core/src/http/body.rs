//! Bodies of requests and answers.

use super::{Body, BoxError};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    source::ByteStream,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes in memory.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Chunks in memory, sent as one body.
pub fn chunks(chunks: Vec<Bytes>) -> Body {
    if chunks.len() <= 1 {
        return full(chunks.into_iter().next().unwrap_or_default());
    }
    let left = chunks.iter().map(|c| c.len() as u64).sum();
    Counted { stream: stream::iter(chunks.into_iter().map(Ok::<_, Error>)), left }.boxed_unsync()
}

/// A stream of known length. One that ends early, or goes on, breaks the request.
pub fn streamed(len: u64, stream: ByteStream) -> Body {
    Counted { stream, left: len }.boxed_unsync()
}

/// A stream of known length, so that hyper writes `Content-Length`; one that ends early is an error, never a short body.
struct Counted<S> {
    stream: S,
    left: u64,
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> hyper::body::Body for Counted<S> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match std::task::ready!(Pin::new(&mut self.stream).poll_next(cx)) {
            None if self.left > 0 => Poll::Ready(Some(Err("the body ended early".into()))),
            None => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            Some(Ok(bytes)) => match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    self.left = left;
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                None => Poll::Ready(Some(Err("the body is too long".into()))),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

/// How long the body of an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the next byte.
    pub idle: Duration,
    /// With less than [`least`](Self::least) bytes, counted while somebody waits.
    pub window: Duration,
    /// Bytes that must come within [`window`](Self::window).
    pub least: u64,
}

impl Patience {
    /// Gives up when nothing, or next to nothing, comes for the idle time: less than 1 KiB a second is a stall that merely drips.
    pub const fn idle(idle: Duration) -> Self {
        Self { idle, window: idle, least: (1 << 10) * idle.as_secs() }
    }
}

/// The body of an answer as it arrives; `Unavailable` when it breaks, or when patience ends.
pub fn read(body: Incoming, op: Op, target: String, patience: Patience) -> ByteStream {
    let broken = move |target: &str, why: BoxError| Error::new(ErrorKind::Unavailable, op, target).with_source(why);
    let Patience { idle, window, least } = patience;
    stream::try_unfold((body, target, Duration::ZERO, 0), move |(mut body, target, mut waited, mut came)| async move {
        loop {
            let asked = Instant::now();
            let frame = tokio::time::timeout(idle, body.frame()).await;
            waited += asked.elapsed();
            let data = match frame {
                Err(_) => return Err(broken(&target, format!("no byte for {idle:?}").into())),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(broken(&target, error.into())),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            came += data.len() as u64;
            if waited >= window {
                if came < least {
                    return Err(broken(&target, format!("only {came} bytes in {waited:?}").into()));
                }
                (waited, came) = (Duration::ZERO, 0);
            }
            if !data.is_empty() {
                return Ok(Some((alone(data), (body, target, waited, came))));
            }
        }
    })
    .boxed()
}

/// Chunks up to so many bytes are taken out of the buffer in which they arrived.
const TAKEN_OUT: usize = 32 << 10;

/// A chunk without the rest of its connection's buffer, of which even a small one would keep the whole alive (and make the
/// connection get another) for as long as it is held. A larger one is a quarter of the largest buffer at least, and
/// costs more to copy.
fn alone(data: Bytes) -> Bytes {
    if data.len() <= TAKEN_OUT { Bytes::copy_from_slice(&data) } else { data }
}

/// All bytes of an answer; `None` when there are more than `most`.
pub async fn gather(mut stream: ByteStream, most: u64) -> Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
        if all.len() as u64 > most {
            return Ok(None);
        }
    }
    Ok(Some(all))
}

/// The least progress that an upload must make, in bytes a second, before it is given up.
const SLOWEST: u64 = 32 << 10;

/// How long the answer to a request with so many bytes is waited for.
pub fn time_to_send(len: u64, idle: Duration) -> Duration {
    idle + Duration::from_secs(len / SLOWEST)
}

/// `false` when no byte of the request can have reached the server's application.
pub(super) fn maybe_sent(error: &hyper_util::client::legacy::Error) -> bool {
    if error.is_connect() || error.connect_info().is_none() {
        return false;
    }
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<hyper::Error>());
    // Cancelled: still queued when the connection died.
    !cause.is_some_and(hyper::Error::is_canceled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    /// What is held of a small object is the object, not the buffer of the connection that brought it.
    #[test]
    fn a_small_chunk_does_not_keep_its_buffer() {
        for (len, shared) in [(10 << 10, false), (100 << 10, true)] {
            let mut buffer = BytesMut::with_capacity(128 << 10);
            buffer.resize(len, 7);
            let chunk = buffer.split().freeze();
            let passed = alone(chunk.clone());
            assert_eq!(passed, chunk);
            assert_eq!(passed.as_ptr() == chunk.as_ptr(), shared, "{len} bytes");
        }
    }
}
