//! WAL in memory: as it came, or packed as it will be stored, which takes less. Whoever wants its bytes gets them in either case. Uses
//! `codec`.

use crate::codec::FrameDecoder;
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that follow one another, or a part of them. Clones and parts are packed with the whole.
#[derive(Clone, Debug)]
pub struct Piece {
    held: Arc<Mutex<Held>>,
    within: Range<usize>,
}

#[derive(Debug)]
enum Held {
    AsItCame(Bytes),
    /// The frames of all of it, and how many bytes they have.
    Packed(Vec<Bytes>, usize),
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Piece {
        let within = 0..bytes.len();
        Piece { held: Arc::new(Mutex::new(Held::AsItCame(bytes))), within }
    }
}

impl Piece {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.within.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.within.is_empty()
    }

    /// A part of it. What of `within` lies beyond its end is left out.
    #[must_use]
    pub fn slice(&self, within: Range<usize>) -> Piece {
        let place = |position: usize| (self.within.start + position).min(self.within.end);
        Piece { held: self.held.clone(), within: place(within.start)..place(within.end) }
    }

    /// Its bytes. CPU work, if it is packed.
    ///
    /// # Errors
    /// Of kind `Internal`, if it was packed as something else: a defect.
    pub fn bytes(&self) -> Result<Bytes> {
        if self.is_empty() {
            return Ok(Bytes::new());
        }
        let (frames, plain_bytes) = match &*self.held() {
            Held::AsItCame(bytes) => return Ok(bytes.slice(self.within.clone())),
            Held::Packed(frames, plain_bytes) => (frames.clone(), *plain_bytes),
        };
        let broken = || Error::new(Kind::Internal, "WAL was not packed as it came");
        let (mut plain, mut decoder) = (Vec::with_capacity(plain_bytes), FrameDecoder::new());
        for frame in frames {
            let left = plain_bytes.saturating_sub(plain.len());
            decoder.decode(&frame, &mut plain, left).map_err(|error| broken().because(error))?;
        }
        if plain.len() != plain_bytes {
            return Err(broken());
        }
        Ok(Bytes::from(plain).slice(self.within.clone()))
    }

    /// The frames of its bytes, if it is packed, and no part of something larger.
    pub fn frames(&self) -> Option<Vec<Bytes>> {
        match &*self.held() {
            Held::Packed(frames, plain_bytes) if self.within == (0..*plain_bytes) => Some(frames.clone()),
            _ => None,
        }
    }

    /// `frames` are all of its bytes, of which it is not a part. From now on they alone are held, wherever it was shared.
    pub fn pack(&self, frames: Vec<Bytes>) {
        let packed = Held::Packed(frames, self.within.len());
        let before = std::mem::replace(&mut *self.held(), packed);
        // Where memory is given back others may be told of it: not under the lock.
        drop(before);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Compression, FrameEncoder};

    fn frames(plain: &[u8], compression: Compression) -> Vec<Bytes> {
        let mut encoder = FrameEncoder::new(compression);
        plain.chunks(100_000).map(|plain| encoder.encode_hashed(plain, |_| ())).collect()
    }

    #[test]
    fn packed_or_not_its_bytes_are_the_same_and_so_are_those_of_its_parts() {
        for compression in [Compression::Lz4, Compression::Zstd(3), Compression::None] {
            // Given a piece that is shared in parts
            let plain: Bytes = (0..250_000u32).map(|position| (position % 251) as u8).collect();
            let piece = Piece::from(plain.clone());
            let (clone, part) = (piece.clone(), piece.slice(99_990..300_000));
            let part_of_part = part.slice(10..20);
            // When it is packed
            piece.pack(frames(&plain, compression));
            // Then everybody still has the same bytes, and what came is let go
            assert!(plain.is_unique(), "it is held as it came");
            for (piece, expected) in [
                (&piece, &plain[..]),
                (&clone, &plain),
                (&part, &plain[99_990..]),
                (&part_of_part, &plain[100_000..100_010]),
            ] {
                assert_eq!(piece.len(), expected.len());
                assert!(piece.bytes().unwrap() == expected, "{compression:?}");
            }
            assert!(piece.slice(5..5).bytes().unwrap().is_empty());
            // And its frames are had of the whole alone
            assert!(clone.frames().is_some() && part.frames().is_none());
        }
    }

    #[test]
    fn what_was_packed_as_something_else_is_an_error_and_no_bytes() {
        let plain = Bytes::from_static(&[7; 1000]);
        let wrong = [
            frames(&plain[1..], Compression::Lz4),
            frames(&[7; 1001], Compression::Lz4),
            vec![Bytes::from_static(b"no frame")],
            Vec::new(),
        ];
        for frames in wrong {
            let piece = Piece::from(plain.clone());
            piece.pack(frames);
            assert_eq!(piece.bytes().unwrap_err().kind(), Kind::Internal);
        }
    }
}
