//! Compresses a block while it grows. A block that is compressed once it is full keeps one processor waiting while it
//! fills, and the next block's bytes waiting while it is compressed; and whoever waits for it waits for all of it.

use super::budget::{Budget, Permit};
use super::open_block::Room;
use crate::error::{Error, Kind, Result};
use crate::repository::{EncodedWal, Piece, WalEncoding, Writer, wal_held_bytes_max};
use crate::runtime::{self, Background};
use crate::wal::{Lsn, WalRange};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};

/// So much of the budget is left to jobs: tails for which somebody waits are stored while a block is.
const LEFT_TO_JOBS_BYTES: u64 = 3 << 20;

/// So many pieces of all blocks of the process are packed in a hurry at once: each on a thread of its own.
static HURRYING: Semaphore = Semaphore::const_new(4);

/// What a block becomes, as far as it has come. Dropped, what waits is let go, and what has become of the rest; only where pieces are
/// packed, that is still done: others have them as well, and they are to take as little as any.
#[derive(Debug)]
pub(super) struct Ahead {
    start: Lsn,
    /// Pieces that were pushed.
    pushed: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    writer: Writer,
    /// Where pieces are packed: what they become takes their place, and no permit.
    room: Option<Room>,
    state: Mutex<State>,
    /// A worker is done with a piece.
    worked: Notify,
}

#[derive(Debug)]
struct State {
    /// Pieces to go on with, in their order.
    waiting: VecDeque<Piece>,
    /// What has become of those before; a worker has it while it works.
    encoding: Option<WalEncoding>,
    /// A worker will take the pieces that wait, or is at it.
    is_started: bool,
    /// A worker panicked, and the encoding is gone with it.
    is_lost: bool,
    /// Plain bytes of the pieces that were taken.
    taken_bytes: u64,
    /// For what has become of them. A piece is taken only with one for the most that it can become.
    permit: Permit,
    /// The permit is for all of the block, or none is needed.
    is_permitted: bool,
}

impl State {
    /// The next piece, unless it has to wait for a permit.
    fn next(&mut self) -> Option<Piece> {
        let bytes = self.waiting.front()?.len() as u64;
        let may_go_on = self.is_permitted || self.permit.try_grow(wal_held_bytes_max(bytes), LEFT_TO_JOBS_BYTES);
        self.taken_bytes += if may_go_on { bytes } else { 0 };
        if may_go_on { self.waiting.pop_front() } else { None }
    }

    /// What was taken has become `encoding`.
    fn encoded(&mut self, encoding: WalEncoding) {
        if !self.is_permitted {
            self.permit.become_bytes(encoding.held_bytes());
        }
        self.encoding = Some(encoding);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encodes the pieces that wait, and those that come meanwhile, as far as there are permits. CPU work. Does nothing if somebody
    /// else has begun. Where pieces are packed it is one at a time, and others' blocks have their turn before the next: the threads
    /// are the process's.
    fn work(self: Arc<Self>) {
        while let Some((mut encoding, piece)) = self.begin() {
            let loss = Loss(&self);
            let encoded = self.encode(&mut encoding, piece);
            drop(loss);
            let mut state = self.state();
            match encoded {
                Ok(()) => state.encoded(encoding),
                Err(_) => state.is_lost = true,
            }
            state.is_started = !state.waiting.is_empty() && !state.is_lost;
            let goes_on = state.is_started;
            drop(state);
            self.worked.notify_one();
            if !goes_on {
                return;
            }
            if self.room.is_some() {
                // Whoever waits for it hears of each piece.
                drop(Background::start(move || self.work()));
                return;
            }
        }
    }

    fn begin(&self) -> Option<(WalEncoding, Piece)> {
        let mut state = self.state();
        let piece = if state.encoding.is_some() { state.next() } else { None };
        let begun = piece.and_then(|piece| Some((state.encoding.take()?, piece)));
        state.is_started &= begun.is_some();
        begun
    }

    /// Encodes a piece, and packs it where that is wanted. CPU work.
    fn encode(&self, encoding: &mut WalEncoding, piece: Piece) -> Result<()> {
        let bytes = piece.bytes()?;
        let frames = self.writer.encode_piece(encoding, &bytes);
        if let Some(room) = &self.room {
            frames.iter_mut().for_each(|frame| *frame = room.keep(frame));
            drop(bytes);
            piece.pack(frames.to_vec());
        }
        Ok(())
    }
}

/// Says that the encoding is gone, in a panic.
struct Loss<'a>(&'a Shared);

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state().is_lost = true;
            self.0.worked.notify_one();
        }
    }
}

fn lost() -> Error {
    Error::new(Kind::Internal, "a block that was being compressed was not given back")
}

impl Ahead {
    /// For the block that begins at `start`, behind `lead`. With `room`, its pieces are packed, and need no permit for that.
    pub(super) fn new(writer: Writer, start: Lsn, lead: &[u8], budget: &Budget, room: Option<Room>) -> Ahead {
        let state = State {
            waiting: VecDeque::new(),
            encoding: Some(writer.begin_wal(start, lead)),
            is_started: false,
            is_lost: false,
            taken_bytes: 0,
            permit: budget.nothing(),
            is_permitted: room.is_some(),
        };
        let shared = Shared { writer, room, state: Mutex::new(state), worked: Notify::new() };
        Ahead { start, pushed: 0, shared: Arc::new(shared) }
    }

    /// Where the block begins.
    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    /// What it has become lies where its pieces were: were it given up, nothing would be gained.
    pub(super) fn packs(&self) -> bool {
        self.shared.room.is_some()
    }

    /// `pieces` are all of the block's that are full and will not change any more; those that are new are encoded.
    ///
    /// # Errors
    /// Of kind `Internal`, if what they became is lost: a defect.
    pub(super) fn push(&mut self, pieces: &[Piece]) -> Result<()> {
        let new = pieces.get(self.pushed..).unwrap_or_default();
        self.pushed = self.pushed.max(pieces.len());
        self.shared.state().waiting.extend(new.iter().cloned());
        self.go_on()
    }

    /// Has the pieces encoded that wait.
    fn go_on(&mut self) -> Result<()> {
        let mut state = self.shared.state();
        if state.is_lost {
            return Err(lost());
        }
        if !state.waiting.is_empty() && !std::mem::replace(&mut state.is_started, true) {
            drop(state);
            let shared = self.shared.clone();
            drop(Background::start(move || shared.work()));
        }
        Ok(())
    }

    /// Nothing is read until a piece is packed: one is at the priority of everything else, and before those of others, unless
    /// enough of others are.
    pub(super) fn hurry(&self) {
        let is_idle = {
            let state = self.shared.state();
            !state.waiting.is_empty() && state.encoding.is_some()
        };
        if is_idle
            && self.packs()
            && let Ok(turn) = HURRYING.try_acquire()
        {
            let shared = self.shared.clone();
            let work = move || {
                let _turn = turn;
                shared.work();
            };
            // Whoever waits for it hears of each piece.
            drop(runtime::spawn(async move { runtime::blocking(work).await }));
        }
    }

    /// The part of the budget that it takes, as far as it has come.
    pub(super) fn held_bytes(&self) -> u64 {
        self.shared.state().permit.bytes()
    }

    /// For so many bytes a permit is missing until the block is complete, with the bytes of `range`.
    pub(super) fn missing_bytes(&self, range: WalRange) -> u64 {
        let is_sealed = !self.shared.writer.layout().form().recipients.is_empty();
        match self.packs() {
            // It is encrypted frame by frame; then it lies elsewhere.
            true if is_sealed => wal_held_bytes_max(range.bytes()),
            true => 0,
            false => wal_held_bytes_max(range.bytes() - self.shared.state().taken_bytes.min(range.bytes())),
        }
    }

    /// The block is complete: the bytes of `range`, in `pieces`, of which those pushed are the first; and there is a permit
    /// for what was missing. With somebody waiting, what the background has not begun is done at the priority of everything
    /// else.
    ///
    /// # Errors
    /// None that the world can cause.
    pub(super) async fn finish(
        mut self,
        range: WalRange,
        pieces: Vec<Piece>,
        missing: Permit,
        is_urgent: bool,
    ) -> Result<(EncodedWal, Permit)> {
        let mut left = VecDeque::new();
        {
            let mut state = self.shared.state();
            state.permit.join(missing);
            state.is_permitted = true;
        }
        if is_urgent {
            left = std::mem::take(&mut self.shared.state().waiting);
            left.extend(pieces.into_iter().skip(self.pushed));
        } else {
            // It may also have stopped for want of the permit that it has now.
            self.push(&pieces)?;
            drop(pieces);
        }
        let (mut encoding, mut permit) = self.given_back().await?;
        let (shared, turn) = (self.shared.clone(), self.shared.writer.turn().await);
        // Work that nobody waits for any more goes on to its end, and the memory is held for as long.
        runtime::blocking(move || {
            let _turn = turn;
            left.into_iter().try_for_each(|piece| shared.encode(&mut encoding, piece))?;
            let wal = shared.writer.finish_wal(encoding, [], range)?;
            if permit.bytes() > 0 {
                permit.become_bytes(wal.held_bytes());
            }
            Ok((wal, permit))
        })
        .await?
    }

    /// What has become of all pieces that wait.
    async fn given_back(&mut self) -> Result<(WalEncoding, Permit)> {
        loop {
            {
                let mut state = self.shared.state();
                if state.is_lost {
                    return Err(lost());
                }
                if state.waiting.is_empty()
                    && let Some(encoding) = state.encoding.take()
                {
                    return Ok((encoding, state.permit.take()));
                }
            }
            self.shared.worked.notified().await;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.packs() {
            return;
        }
        // Nobody will ask for it. What a worker has, it lets go when it is done with its piece.
        let mut state = self.shared.state();
        let (waiting, encoding) = (std::mem::take(&mut state.waiting), state.encoding.take());
        let permit = encoding.is_some().then(|| state.permit.take());
        drop(state);
        drop((waiting, encoding));
        drop(permit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::open_block::OpenBlock;
    use super::super::share::CommonMemory;
    use super::*;
    use crate::codec::Compression;
    use crate::repository::{Key, Layout, WAL_FRAME_BYTES};
    use crate::store::{MemoryStore, Store};
    use crate::wal::{SegmentSize, TimelineId};
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use std::time::Duration;

    const START: Lsn = Lsn(16 << 20);

    fn writer() -> (Writer, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::new(16 << 20).unwrap(), Compression::Lz4);
        (Writer::new(store.clone(), layout, 7), store)
    }

    fn plenty() -> Budget {
        static PLENTY: LazyLock<Budget> = LazyLock::new(|| Budget::new(u64::MAX / 2, None));
        PLENTY.clone()
    }

    /// Each is another one.
    fn piece(number: usize) -> Piece {
        let mut piece = vec![0; WAL_FRAME_BYTES];
        piece[number * 1000..][..250].copy_from_slice(&std::array::from_fn::<u8, 250, _>(|at| at as u8));
        Bytes::from(piece).into()
    }

    /// Until the background has done what it may.
    async fn settled(ahead: &Ahead) {
        while ahead.shared.state().is_started {
            tokio::task::yield_now().await;
        }
    }

    fn range(pieces: &[Piece]) -> WalRange {
        let bytes: usize = pieces.iter().map(Piece::len).sum();
        WalRange { timeline: TimelineId(1), start: START, end: START + bytes as u64 }
    }

    /// With a permit for what is missing, however much is free.
    async fn finish(ahead: Ahead, range: WalRange, pieces: Vec<Piece>, is_urgent: bool) -> Result<EncodedWal> {
        let missing = plenty().take(ahead.missing_bytes(range));
        Ok(ahead.finish(range, pieces, missing, is_urgent).await?.0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Whatever the pace at which it grows, however much of it was ready before it was full, and whatever the budget; and what
        /// is held is what there is a permit for.
        #[test]
        fn what_was_compressed_ahead_is_stored_as_if_it_had_been_compressed_at_once(
            count in 1usize..12,
            pushes in prop::collection::vec((0usize..8, any::<bool>()), 0..6),
            is_urgent: bool,
            budget_bytes in prop_oneof![Just(0u64), LEFT_TO_JOBS_BYTES..LEFT_TO_JOBS_BYTES + (6 << 20)],
            packs: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            runtime.block_on(async {
                let pieces: Vec<Piece> = (0..count).map(piece).collect();
                let (range, key) = (range(&pieces), Key::Block(range(&pieces)));
                let (writer, store) = writer();
                // Given a block that grew in steps, with and without pauses
                let budget = Budget::new(budget_bytes, None);
                let common = CommonMemory::new(0);
                let block = OpenBlock::new(16 << 20, packs.then_some(&common));
                let mut ahead = Ahead::new(writer.clone(), START, &[], &budget, block.room());
                let mut known = 0;
                for (more, pauses) in pushes {
                    known = (known + more).min(count);
                    ahead.push(&pieces[..known]).unwrap();
                    if pauses {
                        settled(&ahead).await;
                    }
                }
                prop_assert!(budget.held() + LEFT_TO_JOBS_BYTES <= budget_bytes.max(LEFT_TO_JOBS_BYTES));
                // When it is full
                let missing = budget.take(ahead.missing_bytes(range));
                let (wal, permit) = ahead.finish(range, pieces.clone(), missing, is_urgent).await.unwrap();
                // Then there is a permit for what it takes, unless that lies where the pieces were
                let held_bytes = if packs { 0 } else { wal.held_bytes() };
                prop_assert_eq!((budget.held(), permit.bytes()), (held_bytes, held_bytes));
                prop_assert_eq!(block.packed_bytes() > 0, packs);
                drop(permit);
                prop_assert_eq!(budget.held(), 0);
                writer.store_encoded(&key, &wal).await.unwrap();
                // And it is what it would have been
                let (other, expected) = self::writer();
                let wal = other.encode_wal(range, Bytes::new(), pieces).await.unwrap();
                other.store_encoded(&key, &wal).await.unwrap();
                let name = writer.layout().name(&key);
                let stored = store.get(&name, None).await.unwrap().collect().await.unwrap();
                prop_assert!(stored == expected.get(&name, None).await.unwrap().collect().await.unwrap());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn bytes_that_are_not_all_of_the_range_are_an_error() {
        let (writer, _) = writer();
        let pieces = vec![piece(0), piece(1)];
        let range = range(&pieces);
        for is_urgent in [true, false] {
            let ahead = Ahead::new(writer.clone(), START, &[], &plenty(), None);
            let error = finish(ahead, range, pieces[..1].to_vec(), is_urgent).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Internal, "{error}");
        }
    }

    #[tokio::test]
    async fn what_it_has_become_is_given_back_with_it() {
        // Given a block of which some is compressed
        let (writer, _) = writer();
        let budget = Budget::new(64 << 20, None);
        let mut ahead = Ahead::new(writer, START, &[], &budget, None);
        ahead.push(&[piece(0), piece(1)]).unwrap();
        settled(&ahead).await;
        assert_eq!(budget.held(), ahead.shared.state().encoding.as_ref().unwrap().held_bytes());
        assert!(budget.held() > 0);
        // When it is given up
        drop(ahead);
        // Then it holds nothing
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_compressed() {
        // Given pieces that wait for a thread that is busy
        let (writer, _) = writer();
        let mut ahead = Ahead::new(writer, START, &[], &plenty(), None);
        ahead.shared.state().is_started = true;
        ahead.push(&[piece(0), piece(1)]).unwrap();
        let shared = ahead.shared.clone();
        assert_eq!(shared.state().waiting.len(), 2);
        // When the block is given up
        drop(ahead);
        // Then they are
        assert!(shared.state().waiting.is_empty());
    }

    #[tokio::test]
    async fn what_is_to_be_packed_is_also_when_the_block_is_there_already() {
        // Given pieces that wait for a thread that is busy, and that a comparison has as well
        let (writer, _) = writer();
        let block = OpenBlock::new(16 << 20, Some(&CommonMemory::new(0)));
        let mut ahead = Ahead::new(writer, START, &[], &plenty(), block.room());
        ahead.shared.state().is_started = true;
        let pieces = [piece(0), piece(1)];
        ahead.push(&pieces).unwrap();
        let shared = ahead.shared.clone();
        // When nothing of the block is to be stored
        drop(ahead);
        shared.work();
        // Then they are packed all the same, once there is a thread
        let packed = async {
            while !pieces.iter().all(Piece::is_packed) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), packed).await.expect("they are held as they came");
    }

    #[tokio::test]
    async fn who_is_in_a_hurry_does_not_wait_for_threads_that_have_not_begun() {
        // Given threads that are all busy with something else, for as long as we like
        let (writer, _) = writer();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let busy: Vec<Background> = (0..runtime::processors())
            .map(|_| {
                let held = held.clone();
                Background::start(move || drop(held.lock().map(|held| held.recv())))
            })
            .collect();
        let pieces = vec![piece(0), piece(1)];
        let mut ahead = Ahead::new(writer, START, &[], &plenty(), None);
        ahead.push(&pieces[..1]).unwrap();
        // When the block is full, then it is finished
        finish(ahead, range(&pieces), pieces, true).await.unwrap();
        drop(hold);
        for busy in busy {
            busy.done().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_thread_that_panicked_is_an_error_and_nothing_that_is_stored() {
        // Given a block whose thread took the encoding along when it panicked
        let (writer, _) = writer();
        let mut ahead = Ahead::new(writer, START, &[], &plenty(), None);
        let pieces = vec![piece(0), piece(1)];
        let (taken, shared) = (ahead.shared.state().encoding.take(), ahead.shared.clone());
        let worker = Background::start(move || {
            let (_taken, _loss) = (taken, Loss(&shared));
            panic!("on purpose");
        });
        worker.done().await.unwrap_err();
        // When the block grows, then that is told
        assert_eq!(ahead.push(&pieces[..1]).unwrap_err().kind(), Kind::Internal);
        // When the block is full
        let error = finish(ahead, range(&pieces), pieces, true).await.unwrap_err();
        // Then that is
        assert_eq!(error.kind(), Kind::Internal, "{error}");
    }
}
