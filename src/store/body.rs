//! Bytes on their way into a store and out of one.

use super::{ObjectHead, StoreError};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::Arc;

/// What is written: pieces of shared bytes, cheap to clone for another attempt, never joined.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pieces: Arc<[Bytes]>,
    bytes: u64,
}

impl Body {
    /// The pieces in order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl From<Vec<Bytes>> for Body {
    fn from(pieces: Vec<Bytes>) -> Body {
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Body { pieces: pieces.into(), bytes }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body::from(vec![bytes])
    }
}

/// What is read: the object's head and its bytes as they arrive.
pub struct ObjectStream {
    /// Of the whole object, also when a range was asked for.
    pub head: ObjectHead,
    /// The bytes asked for.
    pub bytes: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl ObjectStream {
    /// Reads everything into memory: for objects that are known to be small.
    ///
    /// # Errors
    /// Whatever broke the stream.
    pub async fn collect(mut self) -> Result<Bytes, StoreError> {
        let mut joined = BytesMut::new();
        // In steps that double, what a large one leaves behind in the heap is as large as itself. What the store says of its length
        // is taken on trust up to here: room that is not used takes no memory.
        const LARGE_BYTES: u64 = 32 << 20;
        const ROOM_BYTES_MAX: u64 = 256 << 20;
        if self.head.info.bytes > LARGE_BYTES {
            joined.reserve(self.head.info.bytes.min(ROOM_BYTES_MAX) as usize);
        }
        let mut only: Option<Bytes> = None;
        while let Some(piece) = self.bytes.next().await {
            let piece = piece?;
            match only.take() {
                None if joined.is_empty() => only = Some(piece),
                None => joined.extend_from_slice(&piece),
                Some(first) => {
                    joined.extend_from_slice(&first);
                    joined.extend_from_slice(&piece);
                }
            }
        }
        Ok(only.unwrap_or_else(|| joined.freeze()))
    }
}

impl std::fmt::Debug for ObjectStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectStream").field("head", &self.head).finish_non_exhaustive()
    }
}
