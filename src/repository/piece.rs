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

    /// Packed, by itself or as part of something larger.
    pub fn is_packed(&self) -> bool {
        matches!(&*self.held(), Held::Packed(..))
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
    use super::super::{Key, Layout, Repository, Stored, WalReader, Writer};
    use super::*;
    use crate::codec::encryption::generate_identity;
    use crate::codec::{Compression, Form, FrameEncoder, Identities, Recipients};
    use crate::store::{MemoryStore, Store};
    use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
    use age::secrecy::ExposeSecret;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// Whole pages, and not whole frames.
    const PIECE_BYTES: usize = 19 * 8192;

    static IDENTITY: LazyLock<(String, String)> = LazyLock::new(|| {
        let (secret, public) = generate_identity();
        (secret.expose_secret().to_owned(), public)
    });

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever of it is packed, before or meanwhile, and whatever part is wanted: as a merged tail, a block, or what was left when a
        /// timeline ended.
        #[test]
        fn what_is_stored_of_pieces_is_what_they_are_packed_or_not(
            pieces in prop::collection::vec((0usize..3, any::<bool>()), 1..6),
            ends in (0usize..6 * PIECE_BYTES, 1usize..6 * PIECE_BYTES),
            compression in prop_oneof![Just(Compression::Lz4), Just(Compression::Zstd(3)), Just(Compression::None)],
            is_encrypted: bool,
            seed: u64,
        ) {
            // Given WAL in pieces, of which some are packed, some will be in a moment, and the last is still open
            let mut random = fastrand::Rng::with_seed(seed);
            let mut plain = Vec::new();
            let mut whole: Vec<Piece> = Vec::new();
            for (_, shrinks) in &pieces {
                let most = if *shrinks { 3 } else { u8::MAX };
                let bytes: Bytes = (0..PIECE_BYTES).map(|_| random.u8(..=most)).collect();
                plain.extend_from_slice(&bytes);
                whole.push(bytes.into());
            }
            let from = ends.0 % plain.len();
            let to = (from + ends.1).min(plain.len());
            let place = |position: usize, number: usize| position.saturating_sub(number * PIECE_BYTES).min(PIECE_BYTES);
            let parts = whole.iter().enumerate().map(|(number, piece)| piece.slice(place(from, number)..place(to, number)));
            let parts: Vec<Piece> = parts.filter(|part| !part.is_empty()).collect();
            let pack = |piece: &Piece| piece.pack(frames(&piece.bytes().unwrap(), compression));
            let (mut later, of) = (Vec::new(), whole.iter().zip(&pieces));
            for (piece, (when, _)) in of {
                match when {
                    0 => {}
                    1 => pack(piece),
                    _ => later.push((piece.clone(), frames(&piece.bytes().unwrap(), compression))),
                }
            }
            // When that is encoded and stored
            let (secret, public) = IDENTITY.clone();
            let recipients = if is_encrypted { Recipients::parse([&*public]).unwrap() } else { Recipients::default() };
            let form = Form { compression, recipients, identities: Identities::parse(secret.as_bytes()).unwrap() };
            let layout = Layout::new("main", SegmentSize::DEFAULT, form);
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let writer = Writer::new(store.clone(), layout.clone(), 7);
            let at = |position: usize| Lsn((16 << 20) + position as u64);
            let range = WalRange { timeline: TimelineId(1), start: at(from), end: at(to) };
            let key = Key::Tail(range);
            let read = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap().block_on(async {
                let packs = std::thread::spawn(move || later.into_iter().for_each(|(piece, frames)| piece.pack(frames)));
                let wal = writer.encode_wal(range, Bytes::new(), parts).await.unwrap();
                packs.join().unwrap();
                writer.store_encoded(&key, &wal).await.unwrap();
                let (name, ending) = (layout.name(&key), layout.form().ending());
                let modified = jiff::Timestamp::UNIX_EPOCH;
                let stored = Stored { range, name, ending, is_block: false, stored_bytes: 0, modified };
                WalReader::new(Repository { store, layout }, 7).read(&stored).await.unwrap()
            });
            // Then what is read is what came
            prop_assert!(read.is_some_and(|read| read[..] == plain[from..to]));
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
