//! The memory of the block that is not full yet. It lies in pieces: each is given to the compressor as it is, and taken
//! again for bytes to come as soon as its block is compressed. Fresh memory costs more than copying into it (the system
//! clears it, page by page), and what is given back to the allocator from many threads adds up.

use super::share::{CommonMemory, Share};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Each is whole pages, and of the largest block one frame.
const PIECES_PER_BLOCK: usize = 16;

/// Bytes in all pieces together, beyond which nothing is read: one of the largest blocks, which lacks no more than its last
/// pieces when it is full, and an eighth of the next.
const PIECES_BYTES_MAX: usize = 18 << 20;

/// A block, from its first byte on.
#[derive(Debug)]
pub(super) struct OpenBlock {
    /// Full, and as they will be stored.
    settled: Vec<Bytes>,
    /// What follows, of `pool.piece_bytes` each but for the last.
    pieces: Vec<Loan>,
    pool: Arc<Pool>,
}

/// All pieces there are.
#[derive(Debug)]
struct Pool {
    piece_bytes: usize,
    on_loan: Share,
    /// Of this archiver alone, where nothing is common.
    spare: Mutex<Vec<Vec<u8>>>,
    common: Option<CommonMemory>,
    given_back: Notify,
}

impl Pool {
    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_spare(&self) -> Option<Vec<u8>> {
        match &self.common {
            Some(common) => common.take_piece(self.piece_bytes),
            None => self.spare().pop(),
        }
    }

    fn keep_spare(&self, piece: Vec<u8>) {
        match &self.common {
            Some(common) => common.keep_piece(piece),
            None => {
                let mut spare = self.spare();
                let on_loan = usize::try_from(self.on_loan.held()).unwrap_or(usize::MAX);
                if on_loan / self.piece_bytes + spare.len() < PIECES_BYTES_MAX / self.piece_bytes {
                    spare.push(piece);
                }
            }
        }
    }
}

/// A piece on loan.
#[derive(Debug)]
struct Loan {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Loan {
    fn take(pool: &Arc<Pool>) -> Loan {
        pool.on_loan.take_anyway(pool.piece_bytes as u64);
        // Only what is written to becomes memory.
        let bytes = pool.take_spare().unwrap_or_else(|| Vec::with_capacity(pool.piece_bytes));
        Loan { bytes, pool: pool.clone() }
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.pool.on_loan.give_back(self.pool.piece_bytes as u64);
        self.pool.keep_spare(bytes);
        self.pool.given_back.notify_one();
    }
}

impl OpenBlock {
    /// For blocks of so many bytes. Where memory is common, its own is for one block and an eighth of the next.
    pub(super) fn new(block_bytes: u64, common: Option<&CommonMemory>) -> OpenBlock {
        let piece_bytes = usize::try_from(block_bytes).unwrap_or(usize::MAX) / PIECES_PER_BLOCK;
        let on_loan = Share::new(block_bytes + block_bytes / 8, PIECES_BYTES_MAX as u64, common);
        let pool =
            Pool { piece_bytes, on_loan, spare: Mutex::default(), common: common.cloned(), given_back: Notify::new() };
        OpenBlock { settled: Vec::new(), pieces: Vec::new(), pool: Arc::new(pool) }
    }

    /// Bytes that it has.
    pub(super) fn len(&self) -> usize {
        let last =
            self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * self.pool.piece_bytes + last.bytes.len());
        self.settled_bytes() + last
    }

    fn settled_bytes(&self) -> usize {
        self.settled.len() * self.pool.piece_bytes
    }

    fn has_open_piece(&self) -> bool {
        self.pieces.last().is_some_and(|last| last.bytes.len() < self.pool.piece_bytes)
    }

    /// False while the pieces are all in use: the compressor, or the store behind it, has to go on first. A message that
    /// was read already is taken nevertheless.
    pub(super) fn has_room(&self) -> bool {
        self.has_open_piece() || self.pool.on_loan.would_fit(self.pool.piece_bytes as u64, 0)
    }

    /// Waits until a piece is given back. May be dropped.
    pub(super) async fn wait_for_room(&self) {
        self.pool.given_back.notified().await;
    }

    /// Appends bytes.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if !self.has_open_piece() {
                self.pieces.push(Loan::take(&self.pool));
            }
            let Some(last) = self.pieces.last_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(self.pool.piece_bytes - last.bytes.len()));
            last.bytes.extend_from_slice(now);
            bytes = later;
        }
    }

    /// The bytes `[from, to)` that are there, as they lie.
    pub(super) fn slices(&self, from: usize, to: usize) -> impl Iterator<Item = &[u8]> {
        let pieces =
            self.settled.iter().map(|piece| &piece[..]).chain(self.pieces.iter().map(|piece| &piece.bytes[..]));
        pieces.enumerate().map(move |(number, piece)| {
            let start = number * self.pool.piece_bytes;
            let within = |position: usize| position.saturating_sub(start).min(piece.len());
            &piece[within(from)..within(to)]
        })
    }

    /// Makes the bytes `[from, to)` zeros. They must not be settled.
    pub(super) fn clear(&mut self, from: usize, to: usize) {
        let settled_bytes = self.settled_bytes();
        debug_assert!(from >= settled_bytes, "{from} is settled up to {settled_bytes}");
        for (number, piece) in self.pieces.iter_mut().enumerate() {
            let start = settled_bytes + number * self.pool.piece_bytes;
            let length = piece.bytes.len();
            let within = |position: usize| position.saturating_sub(start).min(length);
            piece.bytes[within(from)..within(to)].fill(0);
        }
    }

    /// What fills a piece is not changed any more.
    pub(super) fn settle(&mut self) {
        let full = self.pieces.len() - usize::from(self.has_open_piece());
        self.settled.extend(self.pieces.drain(..full).map(Bytes::from_owner));
    }

    /// The pieces that are not changed any more: the block's first.
    pub(super) fn settled(&self) -> &[Bytes] {
        &self.settled
    }

    /// The bytes `[from, to)` for as long as anybody wants them: as they lie where they are settled, and a copy of the others,
    /// which are less than a piece and a message.
    pub(super) fn share(&self, from: usize, to: usize) -> Vec<Bytes> {
        let settled_bytes = self.settled_bytes();
        let slices = self.settled.iter().enumerate().map(|(number, piece)| {
            let within = |position: usize| position.saturating_sub(number * self.pool.piece_bytes).min(piece.len());
            piece.slice(within(from)..within(to))
        });
        let mut shared: Vec<Bytes> = slices.filter(|slice| !slice.is_empty()).collect();
        if to > settled_bytes {
            shared.push(self.copy(from.max(settled_bytes), to));
        }
        shared
    }

    /// A copy of the bytes `[from, to)`, which keeps no piece from being used again.
    pub(super) fn copy(&self, from: usize, to: usize) -> Bytes {
        let mut copy = Vec::with_capacity(to - from);
        self.slices(from, to).for_each(|slice| copy.extend_from_slice(slice));
        copy.into()
    }

    /// All bytes, for good. The next block begins.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        let mut pieces = std::mem::take(&mut self.settled);
        pieces.extend(self.pieces.drain(..).map(Bytes::from_owner));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_BYTES: usize = 1 << 20;
    const BLOCK_BYTES: u64 = 16 << 20;

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_border_of_a_piece() {
        let wal: Vec<u8> = (0..2 * PIECE_BYTES + 1000).map(|position| (position % 251) as u8).collect();
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        for message in wal.chunks(100_001) {
            block.extend(message);
        }
        assert_eq!(block.len(), wal.len());
        for (from, to) in [
            (0, 0),
            (5, 1000),
            (PIECE_BYTES - 1, PIECE_BYTES + 1),
            (PIECE_BYTES, 2 * PIECE_BYTES),
            (1, wal.len()),
            (wal.len() - 1, wal.len()),
        ] {
            assert!(block.copy(from, to) == wal[from..to], "[{from}, {to}) differs");
            assert!(block.share(from, to).concat() == wal[from..to], "[{from}, {to}) differs");
        }
        block.settle();
        for (from, to) in
            [(0, wal.len()), (5, PIECE_BYTES), (PIECE_BYTES + 7, wal.len() - 1), (wal.len() - 9, wal.len())]
        {
            assert!(block.share(from, to).concat() == wal[from..to], "[{from}, {to}) differs once it is settled");
        }
        assert!(block.take().concat() == wal, "the whole differs");
        assert_eq!(block.len(), 0);
    }

    #[test]
    fn what_is_cleared_is_zeros_and_nothing_else_is() {
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        block.extend(&vec![1; 2 * PIECE_BYTES + 10]);
        block.clear(PIECE_BYTES - 2, PIECE_BYTES + 3);
        block.clear(2 * PIECE_BYTES + 9, 3 * PIECE_BYTES);
        let mut expected = vec![1; 2 * PIECE_BYTES + 10];
        expected[PIECE_BYTES - 2..PIECE_BYTES + 3].fill(0);
        expected[2 * PIECE_BYTES + 9..].fill(0);
        assert!(block.take().concat() == expected);
    }

    #[test]
    fn pieces_are_used_again() {
        // Given a block that was taken, and done with
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        block.extend(&vec![1; 2 * PIECE_BYTES]);
        let pieces = block.take();
        let places: Vec<*const u8> = pieces.iter().map(|piece| piece.as_ptr()).collect();
        drop(pieces);
        // When the next one grows, then it lies where that one was
        block.extend(&vec![2; PIECE_BYTES]);
        let piece = &block.take()[0];
        assert!(places.contains(&piece.as_ptr()), "fresh memory was taken");
        assert!(piece.iter().all(|&byte| byte == 2));
    }

    #[test]
    fn what_is_settled_is_shared_and_not_copied() {
        // Given a block of which two pieces are settled
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        block.extend(&vec![1; 2 * PIECE_BYTES + 10]);
        block.settle();
        // When all of it is shared
        let shared = block.share(0, block.len());
        // Then only what may still change is a copy
        let places = |pieces: &[Bytes]| pieces.iter().map(|piece| piece.as_ptr()).collect::<Vec<_>>();
        assert_eq!(places(&shared[..2]), places(block.settled()));
        assert_eq!(shared[2].len(), 10);
        // And the pieces are in use until the last owner has let go
        drop(block.take());
        let in_use = block.pool.on_loan.held();
        assert_eq!(in_use, 2 * PIECE_BYTES as u64, "{in_use} bytes are in use");
        drop(shared);
        assert_eq!(block.pool.on_loan.held(), 0);
    }

    #[tokio::test]
    async fn there_is_room_again_when_a_piece_is_given_back() {
        // Given as many pieces as there may be, none of them given back
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        let mut taken = Vec::new();
        while block.has_room() {
            block.extend(&vec![1; PIECE_BYTES]);
            taken.extend(block.take());
        }
        assert_eq!(taken.len(), PIECES_BYTES_MAX / PIECE_BYTES);
        // When one is
        taken.pop();
        block.wait_for_room().await;
        // Then there is room
        assert!(block.has_room());
    }
    #[test]
    fn where_memory_is_common_a_block_is_always_its_own_and_what_is_given_back_is_anybodys() {
        // Given archivers of which one has taken all that it gets, because its store hangs
        let common = CommonMemory::new(8 << 20);
        let mut hangs = OpenBlock::new(1 << 20, Some(&common));
        let mut taken = Vec::new();
        while hangs.has_room() {
            hangs.extend(&vec![1; 1 << 16]);
            taken.extend(hangs.take());
        }
        assert!(taken.len() > 2 * PIECES_PER_BLOCK, "it has {} pieces", taken.len());
        // When twenty others fill a block, then all of them can
        let mut others: Vec<OpenBlock> = (0..20).map(|_| OpenBlock::new(1 << 20, Some(&common))).collect();
        for other in &mut others {
            for _ in 0..PIECES_PER_BLOCK {
                assert!(other.has_room(), "one is starved");
                other.extend(&vec![2; 1 << 16]);
            }
        }
        // And what one gives back another has next
        let place = taken[0].as_ptr();
        taken.truncate(1);
        drop(taken);
        let mut next = OpenBlock::new(1 << 20, Some(&common));
        let found = (0..4 * PIECES_PER_BLOCK).any(|_| {
            next.extend(&vec![3; 1 << 16]);
            next.pieces.last().is_some_and(|piece| piece.bytes.as_ptr() == place)
        });
        assert!(found, "fresh memory was taken");
    }
}
