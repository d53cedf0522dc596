//! Bodies as they come, with the encoding of the AWS SDKs taken off, and judged by the checksums that their headers announce.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use dth_core::checksum::{Algorithm, Digester};
use http_body_util::BodyExt;
use hyper::{HeaderMap, body::Incoming};
use md5::{Digest, Md5};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Objects up to so many bytes are kept in one piece.
const ONE_PIECE: u64 = 64 << 10;

/// What came.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) segments: Vec<Bytes>,
    pub(super) len: u64,
    pub(super) md5: [u8; 16],
}

impl Received {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.segments.concat()).into_owned()
    }
}

/// Takes a body whole. The code of an error when it is not the one that was announced; `judged` is false where the checksums of the
/// headers are not of this body.
pub(super) async fn receive(
    headers: &HeaderMap,
    mut body: Incoming,
    received: &AtomicU64,
    judged: bool,
    hashes: bool,
) -> Result<Received, &'static str> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let chunked = header("x-amz-content-sha256").is_some_and(|sha| sha.starts_with("STREAMING"));
    let wanted_md5 = header("content-md5").filter(|_| judged);
    let wanted_crc = header("x-amz-checksum-crc64nvme").filter(|_| judged);
    let mut decoder = Decoder::default();
    let mut md5 = (hashes || wanted_md5.is_some()).then(Md5::new);
    let mut crc = wanted_crc.map(|_| Digester::new(Algorithm::Crc64Nvme));
    let (mut segments, mut len) = (Vec::new(), 0);
    let mut take = |bytes: Bytes| {
        if let Some(md5) = &mut md5 {
            md5.update(&bytes);
        }
        if let Some(crc) = &mut crc {
            crc.update(&bytes);
        }
        len += bytes.len() as u64;
        segments.push(bytes);
    };
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| "IncompleteBody")?.into_data() else { continue };
        received.fetch_add(data.len() as u64, Relaxed);
        if chunked { decoder.feed(data, &mut take)? } else { take(data) }
    }
    if chunked && !decoder.ended {
        return Err("IncompleteBody");
    }
    let md5: [u8; 16] = md5.map(|md5| md5.finalize().into()).unwrap_or_default();
    if wanted_md5.is_some_and(|wanted| wanted != STANDARD.encode(md5)) {
        return Err("BadDigest");
    }
    if let (Some(crc), Some(wanted)) = (crc, wanted_crc)
        && STANDARD.encode(crc.finish().value) != wanted
    {
        return Err("BadDigest");
    }
    if len <= ONE_PIECE && segments.len() > 1 {
        segments = vec![segments.concat().into()];
    }
    Ok(Received { segments, len, md5 })
}

/// Takes `aws-chunked` apart: a line with the length of a chunk, the chunk, an empty line; trailers at the end.
#[derive(Default)]
struct Decoder {
    line: Vec<u8>,
    left: usize,
    /// Bytes of the line end behind a chunk.
    gap: usize,
    ended: bool,
}

impl Decoder {
    fn feed(&mut self, mut data: Bytes, take: &mut impl FnMut(Bytes)) -> Result<(), &'static str> {
        while !data.is_empty() && !self.ended {
            if self.left > 0 {
                let chunk = data.split_to(self.left.min(data.len()));
                self.left -= chunk.len();
                self.gap = if self.left == 0 { 2 } else { 0 };
                take(chunk);
            } else if self.gap > 0 {
                self.gap -= data.split_to(self.gap.min(data.len())).len();
            } else if let Some(end) = data.iter().position(|byte| *byte == b'\n') {
                self.line.extend_from_slice(&data.split_to(end + 1));
                let line = String::from_utf8_lossy(&self.line);
                let size = line.trim().split(';').next().unwrap_or_default();
                self.left = usize::from_str_radix(size, 16).map_err(|_| "IncompleteBody")?;
                self.ended = self.left == 0;
                self.line.clear();
            } else {
                self.line.extend_from_slice(&data);
                data.clear();
            }
        }
        Ok(())
    }
}
