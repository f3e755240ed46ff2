//! Bodies on their way to S3 and back: pieces without joining them, and the CRC32C of both directions.

use super::super::{Body, StoreError, StoreErrorKind};
use crate::runtime::blocking;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::{Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;

/// Time without a byte after which a reply counts as lost.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bodies up to this size are summed up on the spot: less work than changing the thread.
const SUM_IN_PLACE_BYTES: u64 = 128 * 1024;

/// The pieces of a body as HTTP frames.
struct Pieces {
    body: Body,
    next: usize,
    missing: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // An empty frame would mean nothing but more work for what comes after.
        while let Some(piece) = self.body.pieces().get(self.next).cloned() {
            self.next += 1;
            if !piece.is_empty() {
                self.missing -= piece.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.missing == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.missing)
    }
}

/// What the SDK sends. It can begin again: the SDK asks for that when a pooled connection turns out to be dead.
pub(super) fn to_send(body: Body) -> ByteStream {
    ByteStream::new(SdkBody::retryable(move || {
        SdkBody::from_body_1_x(Pieces { body: body.clone(), next: 0, missing: body.bytes() })
    }))
}

/// The CRC32C of a body.
pub(super) async fn crc32c(body: &Body) -> Result<u32, StoreError> {
    let sum = |body: &Body| body.pieces().iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
    if body.bytes() <= SUM_IN_PLACE_BYTES {
        return Ok(sum(body));
    }
    let body = body.clone();
    blocking(move || sum(&body))
        .await
        .map_err(|panic| StoreError::new(StoreErrorKind::Permanent, "sum up", "a body").because(panic))
}

/// A CRC32C as S3's headers have it: big-endian, in base64.
pub(super) fn header_of(crc32c: u32) -> String {
    BASE64.encode(crc32c.to_be_bytes())
}

/// Reads such a header; `None` for what is not the checksum of a whole object (`….-7` is one of checksums of parts).
pub(super) fn from_header(header: &str) -> Option<u32> {
    BASE64.decode(header).ok()?.try_into().ok().map(u32::from_be_bytes)
}

/// The bytes of a reply as they come: exactly `bytes` of them, with the CRC32C `expected` at the end if it is known,
/// or an error. `target` names the object in errors.
pub(super) fn received(
    body: ByteStream,
    target: String,
    bytes: u64,
    expected: Option<u32>,
) -> impl Stream<Item = Result<Bytes, StoreError>> {
    let receiving = Receiving { body, target, missing: bytes, crc32c: 0, expected };
    stream::unfold(Some(receiving), |receiving| async {
        let mut receiving = receiving?;
        match receiving.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(receiving))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Receiving {
    body: ByteStream,
    target: String,
    missing: u64,
    crc32c: u32,
    expected: Option<u32>,
}

impl Receiving {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let piece = match timeout(SILENCE_TIMEOUT, self.body.next()).await {
                Err(_) => return Err(self.broken(format!("no byte came for {} seconds", SILENCE_TIMEOUT.as_secs()))),
                Ok(None) => return self.end().map(|()| None),
                Ok(Some(Err(error))) => return Err(self.broken(error)),
                Ok(Some(Ok(piece))) => piece,
            };
            if self.expected.is_some() {
                self.crc32c = crc32c::crc32c_append(self.crc32c, &piece);
            }
            self.missing = self
                .missing
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| self.broken("more bytes came than were announced"))?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    fn end(&self) -> Result<(), StoreError> {
        if self.missing > 0 {
            return Err(self.broken(format!("the body ended {} bytes early", self.missing)));
        }
        match self.expected {
            Some(expected) if expected != self.crc32c => {
                Err(StoreError::new(StoreErrorKind::Corrupt, "read", &self.target)
                    .because(format!("CRC32C is {:08x}, the store says {expected:08x}", self.crc32c)))
            }
            _ => Ok(()),
        }
    }

    fn broken(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        StoreError::new(StoreErrorKind::Transient, "read", &self.target).because(why)
    }
}
