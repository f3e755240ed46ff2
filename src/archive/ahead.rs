//! Compresses a block while it grows. A block that is compressed once it is full keeps one processor waiting while it
//! fills, and the next block's bytes waiting while it is compressed; and whoever waits for it waits for all of it.

use crate::error::{Error, Kind, Result};
use crate::repository::{EncodedWal, WalEncoding, Writer};
use crate::runtime::{self, Background};
use crate::wal::{Lsn, WalRange};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a block becomes, as far as it has come. Dropped, what waits is let go.
#[derive(Debug)]
pub(super) struct Ahead {
    start: Lsn,
    /// Pieces that were pushed.
    pushed: usize,
    shared: Arc<Shared>,
    /// The last one that was started. It panicked if it ends with the encoding gone.
    worker: Option<Background>,
}

#[derive(Debug)]
struct Shared {
    writer: Writer,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Pieces to go on with, in their order.
    waiting: VecDeque<Bytes>,
    /// What has become of those before; a worker has it while it works.
    encoding: Option<WalEncoding>,
    /// A worker will take the pieces that wait, or is at it.
    is_started: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encodes all pieces that wait, and those that come meanwhile. CPU work. Does nothing if somebody else has begun.
    fn work(&self) {
        let Some(mut encoding) = self.state().encoding.take() else { return };
        loop {
            let mut state = self.state();
            let Some(piece) = state.waiting.pop_front() else {
                state.encoding = Some(encoding);
                state.is_started = false;
                return;
            };
            drop(state);
            self.writer.encode_piece(&mut encoding, &piece);
        }
    }
}

impl Ahead {
    /// For the block that begins at `start`, behind `lead`.
    pub(super) fn new(writer: Writer, start: Lsn, lead: &[u8]) -> Ahead {
        let encoding = Some(writer.begin_wal(start, lead));
        let state = State { waiting: VecDeque::new(), encoding, is_started: false };
        Ahead { start, pushed: 0, shared: Arc::new(Shared { writer, state: Mutex::new(state) }), worker: None }
    }

    /// Where the block begins.
    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    /// `pieces` are all of the block's that are full and will not change any more; those that are new are encoded.
    pub(super) fn push(&mut self, pieces: &[Bytes]) {
        let new = pieces.get(self.pushed..).unwrap_or_default();
        if new.is_empty() {
            return;
        }
        self.pushed = pieces.len();
        let mut state = self.shared.state();
        state.waiting.extend(new.iter().cloned());
        if !std::mem::replace(&mut state.is_started, true) {
            drop(state);
            let shared = self.shared.clone();
            self.worker = Some(Background::start(move || shared.work()));
        }
    }

    /// The block is complete: the bytes of `range`, in `pieces`, of which those pushed are the first. With somebody waiting,
    /// what the background has not begun is done at the priority of everything else.
    ///
    /// # Errors
    /// None that the world can cause.
    pub(super) async fn finish(mut self, range: WalRange, pieces: Vec<Bytes>, is_urgent: bool) -> Result<EncodedWal> {
        let (mut left, mut encoding) = (VecDeque::new(), None);
        if is_urgent {
            let mut state = self.shared.state();
            left = std::mem::take(&mut state.waiting);
            encoding = state.encoding.take();
            drop(state);
            left.extend(pieces.into_iter().skip(self.pushed));
        } else {
            self.push(&pieces);
            drop(pieces);
        }
        if encoding.is_none() {
            if let Some(worker) = self.worker.take() {
                worker.done().await?;
            }
            encoding = self.shared.state().encoding.take();
        }
        let lost = || Error::new(Kind::Internal, "a block that was being compressed was not given back");
        let encoding = encoding.ok_or_else(lost)?;
        let writer = self.shared.writer.clone();
        runtime::blocking(move || writer.finish_wal(encoding, left, range)).await?
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Nobody will ask for it.
        let waiting = std::mem::take(&mut self.shared.state().waiting);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use crate::repository::{Key, Layout, WAL_FRAME_BYTES};
    use crate::store::{MemoryStore, Store};
    use crate::wal::{SegmentSize, TimelineId};
    use proptest::prelude::*;

    const START: Lsn = Lsn(16 << 20);

    fn writer() -> (Writer, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::new(16 << 20).unwrap(), Compression::Lz4);
        (Writer::new(store.clone(), layout, 7), store)
    }

    /// Each is another one.
    fn piece(number: usize) -> Bytes {
        let mut piece = vec![0; WAL_FRAME_BYTES];
        piece[number * 1000..][..250].copy_from_slice(&std::array::from_fn::<u8, 250, _>(|at| at as u8));
        piece.into()
    }

    fn range(pieces: &[Bytes]) -> WalRange {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        WalRange { timeline: TimelineId(1), start: START, end: START + bytes as u64 }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Whatever the pace at which it grows, and however much of it was ready before it was full.
        #[test]
        fn what_was_compressed_ahead_is_stored_as_if_it_had_been_compressed_at_once(
            count in 1usize..12,
            pushes in prop::collection::vec((0usize..8, any::<bool>()), 0..6),
            is_urgent: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            runtime.block_on(async {
                let pieces: Vec<Bytes> = (0..count).map(piece).collect();
                let (range, key) = (range(&pieces), Key::Block(range(&pieces)));
                let (writer, store) = writer();
                // Given a block that grew in steps, with and without pauses
                let mut ahead = Ahead::new(writer.clone(), START, &[]);
                let mut known = 0;
                for (more, pauses) in pushes {
                    known = (known + more).min(count);
                    ahead.push(&pieces[..known]);
                    if pauses && let Some(worker) = ahead.worker.take() {
                        worker.done().await.unwrap();
                    }
                }
                // When it is full
                let wal = ahead.finish(range, pieces.clone(), is_urgent).await.unwrap();
                writer.store_encoded(&key, &wal).await.unwrap();
                // Then it is what it would have been
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
            let ahead = Ahead::new(writer.clone(), START, &[]);
            let error = ahead.finish(range, pieces[..1].to_vec(), is_urgent).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Internal, "{error}");
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_compressed() {
        // Given pieces that wait for a thread that is busy
        let (writer, _) = writer();
        let mut ahead = Ahead::new(writer, START, &[]);
        ahead.shared.state().is_started = true;
        ahead.push(&[piece(0), piece(1)]);
        let shared = ahead.shared.clone();
        assert_eq!(shared.state().waiting.len(), 2);
        // When the block is given up
        drop(ahead);
        // Then they are
        assert!(shared.state().waiting.is_empty());
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
        let mut ahead = Ahead::new(writer, START, &[]);
        ahead.push(&pieces[..1]);
        // When the block is full, then it is finished
        ahead.finish(range(&pieces), pieces, true).await.unwrap();
        drop(hold);
        for busy in busy {
            busy.done().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_thread_that_panicked_is_an_error_and_nothing_that_is_stored() {
        // Given a block whose thread took the encoding along when it panicked
        let (writer, _) = writer();
        let mut ahead = Ahead::new(writer, START, &[]);
        let pieces = vec![piece(0), piece(1)];
        let taken = ahead.shared.state().encoding.take();
        ahead.shared.state().is_started = true;
        ahead.worker = Some(Background::start(move || {
            let _taken = taken;
            panic!("on purpose");
        }));
        ahead.push(&pieces[..1]);
        // When the block is full
        let error = ahead.finish(range(&pieces), pieces, true).await.unwrap_err();
        // Then that is told
        assert_eq!(error.kind(), Kind::Internal, "{error}");
    }
}
