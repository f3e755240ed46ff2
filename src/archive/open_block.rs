//! The memory of the block that is not full yet. It lies in pieces: each is given to the compressor as it is, and taken
//! again for bytes to come as soon as its block is compressed. Fresh memory costs more than copying into it (the system
//! clears it, page by page), and what is given back to the allocator from many threads adds up.
//!
//! Where several archivers have memory in common, a piece is packed as soon as it is full: what it becomes takes its place, until
//! that is stored, and so a block is held as it will be stored. What waits for that is little. It waits for a
//! processor and for nothing else, so reading goes on again whatever stores do.

use super::share::{CommonMemory, Share};
use crate::error::Result;
use crate::repository::Piece;
use bytes::Bytes;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Each is whole pages, and of the largest block one frame.
const PIECES_PER_BLOCK: u64 = 16;

/// None is larger where they are packed: what fills, or waits for a processor, is to be little of each of many. A smaller one would
/// not be packed as well.
const PACKED_PIECE_BYTES_MAX: u64 = 128 << 10;

/// Bytes in all pieces together, beyond which nothing is read: one of the largest blocks, which lacks no more than its last
/// pieces when it is full, and an eighth of the next.
const PIECES_BYTES_MAX: usize = 18 << 20;

/// The most that comes at once (`walsender.c`, `MAX_SEND_SIZE`).
const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Where pieces are packed, an archiver has so many of them as they came: one that fills, and those that wait for a processor.
const PIECES_AS_THEY_CAME: u64 = 3;

/// Of blocks of so many bytes.
const fn piece_bytes(block_bytes: u64, packs: bool) -> u64 {
    let piece_bytes = block_bytes / PIECES_PER_BLOCK;
    if packs && piece_bytes > PACKED_PIECE_BYTES_MAX { PACKED_PIECE_BYTES_MAX } else { piece_bytes }
}

/// A block, from its first byte on.
#[derive(Debug)]
pub(super) struct OpenBlock {
    /// Full, and as they will be stored.
    settled: Vec<Piece>,
    /// What follows, of `pool.piece_bytes` each but for the last.
    pieces: Vec<Loan>,
    pool: Arc<Pool>,
}

/// All pieces there are.
#[derive(Debug)]
struct Pool {
    piece_bytes: usize,
    on_loan: Share,
    /// What pieces became, where they are packed.
    packed: Share,
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

/// Room for what the pieces of one archiver become.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Pool>);

/// It is used until nobody has it any more.
struct Packed {
    frame: Box<[u8]>,
    pool: Arc<Pool>,
}

impl Room {
    /// `frame`, which takes the place of what it was made of, in no more memory than it needs.
    pub(super) fn keep(&self, frame: &[u8]) -> Bytes {
        self.0.packed.take_anyway(frame.len() as u64);
        Bytes::from_owner(Packed { frame: frame.into(), pool: self.0.clone() })
    }
}

impl AsRef<[u8]> for Packed {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.pool.packed.give_back(self.frame.len() as u64);
        self.pool.given_back.notify_one();
    }
}

/// Bytes of a block, for a look at them.
pub(super) enum Seen<'a> {
    Settled(Bytes),
    Open(&'a [u8]),
}

impl Deref for Seen<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Seen::Settled(bytes) => bytes,
            Seen::Open(bytes) => bytes,
        }
    }
}

impl OpenBlock {
    /// For blocks of so many bytes. Where memory is common, its own is for one block and an eighth of the next, packed.
    pub(super) fn new(block_bytes: u64, common: Option<&CommonMemory>) -> OpenBlock {
        let piece_bytes = piece_bytes(block_bytes, common.is_some()) as usize;
        // What waits for a processor is no better off for being more.
        let on_loan = match common {
            Some(_) => Share::new(0, PIECES_AS_THEY_CAME * piece_bytes as u64, None),
            None => Share::new(0, PIECES_BYTES_MAX as u64, None),
        };
        let packed = Share::new(block_bytes + block_bytes / 8, 2 * PIECES_BYTES_MAX as u64, common);
        let (spare, common, given_back) = (Mutex::default(), common.cloned(), Notify::new());
        let pool = Pool { piece_bytes, on_loan, packed, spare, common, given_back };
        OpenBlock { settled: Vec::new(), pieces: Vec::new(), pool: Arc::new(pool) }
    }

    /// So much is an archiver's own where memory is common, of blocks of so many bytes: packed, and as it came.
    pub(super) const fn own_bytes(block_bytes: u64) -> u64 {
        block_bytes + block_bytes / 8 + PIECES_AS_THEY_CAME * piece_bytes(block_bytes, true)
    }

    /// Room for what its pieces become, if they are to be packed.
    pub(super) fn room(&self) -> Option<Room> {
        self.pool.common.is_some().then(|| Room(self.pool.clone()))
    }

    /// What its pieces became takes so much.
    #[cfg(test)]
    pub(super) fn packed_bytes(&self) -> u64 {
        self.pool.packed.held()
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
        self.takes_one_more(&self.pool.on_loan) && self.takes_one_more(&self.pool.packed)
    }

    /// There is no room, and there will be none before something is stored: what merely waits for a processor will be packed.
    pub(super) fn is_full(&self) -> bool {
        let lasts = if self.pool.common.is_some() { &self.pool.packed } else { &self.pool.on_loan };
        !self.takes_one_more(lasts)
    }

    /// True if a message would be taken: by the piece that is open, or by a new one. A message that ends within a piece has opened that,
    /// which says nothing of the next.
    fn takes_one_more(&self, share: &Share) -> bool {
        let open_bytes = self.pieces.last().map_or(0, |last| self.pool.piece_bytes - last.bytes.len());
        open_bytes >= MESSAGE_BYTES_MAX || share.would_fit(self.pool.piece_bytes as u64, 0)
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

    /// The bytes `[from, to)` that are there, as they lie. CPU work, if they are packed.
    ///
    /// # Errors
    /// As [`Piece::bytes`].
    pub(super) fn slices(&self, from: usize, to: usize) -> impl Iterator<Item = Result<Seen<'_>>> {
        let within = move |number: usize, length: usize| {
            let start = number * self.pool.piece_bytes;
            from.saturating_sub(start).min(length)..to.saturating_sub(start).min(length)
        };
        let settled = self.settled.iter().enumerate();
        let settled = settled.map(move |(number, piece)| piece.slice(within(number, piece.len())).bytes());
        let open = self.pieces.iter().enumerate().map(move |(number, piece)| {
            Seen::Open(&piece.bytes[within(self.settled.len() + number, piece.bytes.len())])
        });
        settled.map(|bytes| bytes.map(Seen::Settled)).chain(open.map(Ok))
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
        self.settled.extend(self.pieces.drain(..full).map(|piece| Bytes::from_owner(piece).into()));
    }

    /// The pieces that are not changed any more: the block's first.
    pub(super) fn settled(&self) -> &[Piece] {
        &self.settled
    }

    /// The bytes `[from, to)` for as long as anybody wants them: as they lie where they are settled, and a copy of the others,
    /// which are less than a piece and a message.
    ///
    /// # Errors
    /// None that the world can cause.
    pub(super) fn share(&self, from: usize, to: usize) -> Result<Vec<Piece>> {
        let settled_bytes = self.settled_bytes();
        let slices = self.settled.iter().enumerate().map(|(number, piece)| {
            let within = |position: usize| position.saturating_sub(number * self.pool.piece_bytes).min(piece.len());
            piece.slice(within(from)..within(to))
        });
        let mut shared: Vec<Piece> = slices.filter(|slice| !slice.is_empty()).collect();
        if to > settled_bytes {
            shared.push(self.copy(from.max(settled_bytes), to)?.into());
        }
        Ok(shared)
    }

    /// A copy of the bytes `[from, to)`, which keeps no piece from being used again. CPU work, if they are packed.
    ///
    /// # Errors
    /// As [`Piece::bytes`].
    pub(super) fn copy(&self, from: usize, to: usize) -> Result<Bytes> {
        let mut copy = Vec::with_capacity(to - from);
        self.slices(from, to).try_for_each(|slice| slice.map(|slice| copy.extend_from_slice(&slice)))?;
        Ok(copy.into())
    }

    /// All bytes, for good. The next block begins.
    pub(super) fn take(&mut self) -> Vec<Piece> {
        let mut pieces = std::mem::take(&mut self.settled);
        pieces.extend(self.pieces.drain(..).map(|piece| Bytes::from_owner(piece).into()));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_BYTES: usize = 1 << 20;
    const BLOCK_BYTES: u64 = 16 << 20;

    fn joined(pieces: &[Piece]) -> Vec<u8> {
        pieces.iter().flat_map(|piece| piece.bytes().unwrap()).collect()
    }

    fn place(piece: &Piece) -> *const u8 {
        piece.bytes().unwrap().as_ptr()
    }

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
            assert!(block.copy(from, to).unwrap() == wal[from..to], "[{from}, {to}) differs");
            assert!(joined(&block.share(from, to).unwrap()) == wal[from..to], "[{from}, {to}) differs");
        }
        block.settle();
        for (from, to) in
            [(0, wal.len()), (5, PIECE_BYTES), (PIECE_BYTES + 7, wal.len() - 1), (wal.len() - 9, wal.len())]
        {
            assert!(
                joined(&block.share(from, to).unwrap()) == wal[from..to],
                "[{from}, {to}) differs once it is settled"
            );
        }
        assert!(joined(&block.take()) == wal, "the whole differs");
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
        assert!(joined(&block.take()) == expected);
    }

    #[test]
    fn pieces_are_used_again() {
        // Given a block that was taken, and done with
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        block.extend(&vec![1; 2 * PIECE_BYTES]);
        let pieces = block.take();
        let places: Vec<*const u8> = pieces.iter().map(place).collect();
        drop(pieces);
        // When the next one grows, then it lies where that one was
        block.extend(&vec![2; PIECE_BYTES]);
        let piece = &block.take()[0];
        assert!(places.contains(&place(piece)), "fresh memory was taken");
        assert!(piece.bytes().unwrap().iter().all(|&byte| byte == 2));
    }

    #[test]
    fn what_is_settled_is_shared_and_not_copied() {
        // Given a block of which two pieces are settled
        let mut block = OpenBlock::new(BLOCK_BYTES, None);
        block.extend(&vec![1; 2 * PIECE_BYTES + 10]);
        block.settle();
        // When all of it is shared
        let shared = block.share(0, block.len()).unwrap();
        // Then only what may still change is a copy
        let places = |pieces: &[Piece]| pieces.iter().map(place).collect::<Vec<_>>();
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

    /// Packs what settled, into so many hundredths of it, as a worker would.
    fn pack(block: &OpenBlock, percent: usize) {
        let room = block.room().expect("memory is common");
        for piece in block.settled().iter().filter(|piece| !piece.is_packed()) {
            let bytes = piece.bytes().unwrap();
            piece.pack(vec![room.keep(&bytes[..bytes.len() * percent / 100])]);
        }
    }

    #[test]
    fn where_memory_is_common_a_block_is_always_its_own_as_it_will_be_stored() {
        const BLOCK: u64 = 1 << 20;
        const PIECE: usize = piece_bytes(BLOCK, true) as usize;
        // Given archivers of which one's pieces nobody packs, and one has all that it gets, because its store hangs
        let common = CommonMemory::new(8 << 20);
        let mut hangs: Vec<OpenBlock> = (0..2).map(|_| OpenBlock::new(BLOCK, Some(&common))).collect();
        let mut taken = Vec::new();
        for (block, packs) in hangs.iter_mut().zip([false, true]) {
            while block.has_room() {
                block.extend(&[1; PIECE]);
                block.settle();
                if packs {
                    pack(block, 100);
                }
                taken.extend(block.take());
            }
        }
        assert!(taken.len() > BLOCK as usize / PIECE, "they have {} pieces", taken.len());
        // When twenty others fill a block of what nothing makes smaller, then all of them can, and an eighth of the next
        let mut others: Vec<OpenBlock> = (0..20).map(|_| OpenBlock::new(BLOCK, Some(&common))).collect();
        for other in &mut others {
            for _ in 0..(BLOCK + BLOCK / 8) as usize / PIECE {
                assert!(other.has_room(), "one is starved");
                other.extend(&[2; PIECE]);
                other.settle();
                pack(other, 100);
            }
            assert_eq!(other.packed_bytes(), BLOCK + BLOCK / 8);
            assert_eq!(other.pool.on_loan.held(), 0);
        }
        // And what waits for a processor is little
        drop(others);
        let mut waits = OpenBlock::new(BLOCK, Some(&common));
        while waits.has_room() {
            waits.extend(&[3; PIECE]);
        }
        assert_eq!(waits.len(), PIECES_AS_THEY_CAME as usize * PIECE);
    }

    #[test]
    fn reading_stops_wherever_messages_end() {
        for common in [None, Some(CommonMemory::new(0))] {
            // Given an archiver of which nobody takes anything, and messages that end within pieces
            let mut block = OpenBlock::new(BLOCK_BYTES, common.as_ref());
            block.extend(&[1; 5000]);
            // When it reads as long as it may
            while block.has_room() && block.len() <= 2 * PIECES_BYTES_MAX {
                block.extend(&[1; MESSAGE_BYTES_MAX]);
            }
            // Then it has no more than it should, and the rest of a message
            let most =
                if common.is_some() { PIECES_AS_THEY_CAME as usize * block.pool.piece_bytes } else { PIECES_BYTES_MAX };
            assert!(block.len() <= most + MESSAGE_BYTES_MAX, "{} bytes", block.len());
            assert!(block.len() + 2 * MESSAGE_BYTES_MAX >= most, "{} bytes", block.len());
        }
    }

    #[test]
    fn what_waits_for_a_processor_does_not_make_a_block_full_and_what_nobody_stores_does() {
        const PIECE: usize = piece_bytes(BLOCK_BYTES, true) as usize;
        // Given archivers, with and without memory in common, that read as long as they may
        let common = CommonMemory::new(0);
        let (mut alone, mut one_of_many) =
            (OpenBlock::new(BLOCK_BYTES, None), OpenBlock::new(BLOCK_BYTES, Some(&common)));
        let mut taken = Vec::new();
        while alone.has_room() {
            assert!(!alone.is_full());
            alone.extend(&[1; PIECE_BYTES]);
            taken.extend(alone.take());
        }
        while one_of_many.has_room() {
            one_of_many.extend(&[1; PIECE]);
        }
        // Then the first is full, and the other waits for a processor
        assert!(alone.is_full() && !one_of_many.is_full());
        // When it goes on for as long as what is packed finds room
        loop {
            one_of_many.settle();
            pack(&one_of_many, 100);
            if !one_of_many.has_room() {
                break;
            }
            one_of_many.extend(&[1; PIECE]);
        }
        // Then it is full as well
        assert!(one_of_many.is_full());
        assert!(one_of_many.len() as u64 >= BLOCK_BYTES, "{}", one_of_many.len());
    }

    #[test]
    fn what_is_packed_takes_as_much_as_it_becomes_and_its_memory_is_anybodys() {
        const PIECE: usize = piece_bytes(BLOCK_BYTES, true) as usize;
        let common = CommonMemory::new(8 << 20);
        let mut block = OpenBlock::new(BLOCK_BYTES, Some(&common));
        block.extend(&vec![1; PIECE + 10]);
        block.settle();
        let place = place(&block.settled()[0]);
        // When a piece becomes a quarter of what it was
        pack(&block, 25);
        // Then so much is held, beside the piece that fills
        assert_eq!((block.packed_bytes(), block.pool.on_loan.held()), (PIECE as u64 / 4, PIECE as u64));
        // And the next one that anybody fills lies where it was
        let mut next = OpenBlock::new(BLOCK_BYTES, Some(&common));
        next.extend(&[2; 10]);
        assert_eq!(next.pieces[0].bytes.as_ptr(), place, "fresh memory was taken");
        // And nothing is once nobody has it
        let taken = block.take();
        assert!(block.packed_bytes() > 0);
        drop(taken);
        assert_eq!((block.packed_bytes(), block.pool.on_loan.held()), (0, 0));
    }
}
