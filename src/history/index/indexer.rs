//! Makes outlines of blocks of WAL: of those that the archiver has just received, on threads of their own, or of those that are
//! read back. Whatever is wrong with the records ends an outline and nothing else.

use super::outline::{Outline, Outliner};
use crate::repository::Piece;
use crate::runtime::Background;
use crate::wal::{BLOCK_BYTES_MAX, Lsn, Record, RecordWalker, SegmentSize, TimelineId, WalRange, WalkError};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of blocks that wait to be walked over, at most. Beyond that a block is read back later: they keep memory that the archiver
/// wants for what comes.
const WAITING_BYTES_MAX: u64 = BLOCK_BYTES_MAX;

/// Outlines that wait to be taken, at most. Of blocks whose outline was let go the WAL is read once more.
const OUTLINES_MAX: usize = 64;

/// Walks from block to block.
#[derive(Debug)]
pub struct BlockWalk {
    size: SegmentSize,
    hides_names: bool,
    trusts_the_rest: bool,
    going: Option<Going>,
}

/// A walk that can go on.
struct Going {
    timeline: TimelineId,
    began: Lsn,
    walker: RecordWalker,
}

impl std::fmt::Debug for Going {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Going").field("timeline", &self.timeline).field("began", &self.began).finish_non_exhaustive()
    }
}

impl Going {
    /// True if every record that ends behind where the walk is will be seen.
    fn has_met_a_record(&self) -> bool {
        self.walker.first_record().is_none() || self.walker.next_record_lsn() > self.began
    }
}

impl BlockWalk {
    /// Over a cluster's WAL. With `hides_names`, no name that an operator chose gets into an outline.
    pub fn new(size: SegmentSize, hides_names: bool) -> BlockWalk {
        BlockWalk { size, hides_names, trusts_the_rest: false, going: None }
    }

    /// From the next block on, as [`RecordWalker::trust_the_rest`].
    fn trust_the_rest(&mut self, trusts: bool) {
        self.trusts_the_rest = trusts;
    }

    /// Walks over the bytes of `range`, a block, letting go of each piece, and says what is in it. `None` if the walk began in it, within a record that
    /// began before: the outline would lack that one.
    ///
    /// # Errors
    /// If this is not WAL as PostgreSQL 13 to 18 writes it. The walk begins anew with the next block.
    pub fn outline(
        &mut self,
        range: WalRange,
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Option<Outline>, WalkError> {
        let goes_on = |going: &Going| going.timeline == range.timeline && going.walker.position() == range.start;
        let mut going = self.going.take().filter(goes_on).unwrap_or_else(|| Going {
            timeline: range.timeline,
            began: range.start,
            walker: RecordWalker::new(self.size, range.start),
        });
        going.walker.trust_the_rest(self.trusts_the_rest);
        let is_known = going.began < range.start && going.has_met_a_record();
        let mut outliner = Outliner::new(range.start, self.hides_names);
        let mut position = range.start;
        for piece in pieces {
            going.walker.push(position, piece.as_ref(), &mut |record: Record| outliner.see(&record))?;
            position = position + piece.as_ref().len() as u64;
        }
        if going.walker.end_of_wal().is_some() {
            return Ok(None);
        }
        let is_whole = is_known || (going.began == range.start && going.walker.first_record().is_none());
        let outline = outliner.finish(range.end, going.walker.next_record_lsn());
        self.going = Some(going);
        Ok((is_whole && position == range.end).then_some(outline))
    }
}

/// Makes outlines of the blocks that the archiver receives. Its handle: all of one are the same.
#[derive(Clone, Debug)]
pub struct Indexer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hides_names: bool,
    state: Mutex<State>,
}

/// A block that waits to be walked over.
#[derive(Debug)]
struct Waiting {
    range: WalRange,
    pieces: Vec<Piece>,
    trusts_the_rest: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// A worker has it while it works.
    walk: Option<BlockWalk>,
    is_started: bool,
    /// Which connection it is: what another one brought says nothing.
    connection: u64,
    done: BTreeMap<(TimelineId, Lsn), Outline>,
    failures: u64,
    unstored: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks over all blocks that wait, and those that come meanwhile. CPU work.
    fn work(&self, size: SegmentSize) {
        // Whatever happens here, the next block finds somebody to walk over it.
        let _ends = Ends(self);
        let walk = self.state().walk.take();
        let mut walk = walk.filter(|walk| walk.size == size).unwrap_or_else(|| BlockWalk::new(size, self.hides_names));
        loop {
            let mut state = self.state();
            let Some(Waiting { range, pieces, trusts_the_rest }) = state.waiting.pop_front() else {
                (state.walk, state.is_started) = (Some(walk), false);
                return;
            };
            let connection = state.connection;
            drop(state);
            walk.trust_the_rest(trusts_the_rest);
            // Without all of them it is not known, and read back later.
            let outline = walk.outline(range, pieces.into_iter().map_while(|piece| piece.bytes().ok()));
            let mut state = self.state();
            match outline {
                _ if state.connection != connection => walk = BlockWalk::new(size, self.hides_names),
                Ok(Some(outline)) => {
                    state.done.insert((range.timeline, range.start), outline);
                    if state.done.len() > OUTLINES_MAX {
                        state.done.pop_first();
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let is_first = state.failures == 0;
                    state.failures += 1;
                    drop(state);
                    if is_first {
                        tracing::warn!(
                            %error, timeline = %range.timeline, from = %range.start, to = %range.end,
                            "the records of this WAL cannot be told apart: it is stored as it is, and not in the index"
                        );
                    }
                }
            }
        }
    }
}

/// Says that nobody works any more.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state();
            state.is_started = false;
            state.waiting.clear();
        }
    }
}

impl Indexer {
    /// With `hides_names`, no name that an operator chose gets into an outline.
    pub fn new(hides_names: bool) -> Indexer {
        Indexer { shared: Arc::new(Shared { hides_names, state: Mutex::default() }) }
    }

    /// Another connection begins: what the one before brought, and perhaps was not stored, is forgotten.
    pub fn begin(&self) {
        let mut state = self.shared.state();
        state.connection += 1;
        state.waiting.clear();
        state.walk = None;
        state.done.clear();
    }

    /// The archiver has received a whole block: the bytes of `range`, in `pieces`, each of which is held until it was walked over. Where it
    /// `catches_up`, and its speed matters, checksums are verified of those records alone that are read.
    pub fn push(&self, size: SegmentSize, range: WalRange, pieces: Vec<Piece>, catches_up: bool) {
        let mut state = self.shared.state();
        let waiting: u64 = state.waiting.iter().map(|waiting| waiting.range.bytes()).sum();
        if waiting + range.bytes() > WAITING_BYTES_MAX {
            return;
        }
        state.waiting.push_back(Waiting { range, pieces, trusts_the_rest: catches_up });
        if !std::mem::replace(&mut state.is_started, true) {
            drop(state);
            let shared = self.shared.clone();
            // Nobody waits for it.
            drop(Background::start(move || shared.work(size)));
        }
    }

    /// What is known of the blocks in `range`, by start.
    pub fn outlines(&self, range: WalRange) -> BTreeMap<Lsn, Outline> {
        let state = self.shared.state();
        let known = state.done.range((range.timeline, range.start)..(range.timeline, range.end));
        known.map(|((_, start), outline)| (*start, outline.clone())).collect()
    }

    /// Lets go of what is known of blocks before `end`, on `timeline` and those before it.
    pub fn forget(&self, timeline: TimelineId, end: Lsn) {
        let mut state = self.shared.state();
        state.done = state.done.split_off(&(timeline, end));
    }

    /// An index was not stored; it will be tried again.
    pub fn count_unstored(&self) {
        self.shared.state().unstored += 1;
    }

    /// Since the start: blocks whose records could not be told apart, and indexes that were not stored.
    pub fn failures(&self) -> (u64, u64) {
        let state = self.shared.state();
        (state.failures, state.unstored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::testing::{START, WalWriter, size};
    use std::time::Duration;
    use tokio::time::Instant;

    /// A block of records that say nothing, one of which is not what its checksum says.
    fn damaged() -> Vec<u8> {
        let mut wal = WalWriter::new(START);
        let mut third = START;
        for number in 0..9 {
            let start = wal.main(7, 10, 0, &[number; 200]);
            third = if number == 2 { start } else { third };
        }
        wal.switch();
        let body = (third - START) as usize + 100;
        wal.bytes[body] ^= 1;
        wal.bytes
    }

    /// What becomes of it.
    fn walked(catches_up: bool) -> (usize, u64) {
        let bytes = damaged();
        let range = WalRange { timeline: TimelineId(1), start: START, end: START + bytes.len() as u64 };
        let indexer = Indexer::new(false);
        indexer.push(size(), range, vec![bytes::Bytes::from(bytes).into()], catches_up);
        let began = Instant::now();
        while indexer.outlines(range).is_empty() && indexer.failures().0 == 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "nobody walks over it");
            std::thread::yield_now();
        }
        (indexer.outlines(range).len(), indexer.failures().0)
    }

    #[test]
    fn a_damaged_record_that_says_nothing_is_counted_unless_more_wal_waits() {
        assert_eq!(walked(false), (0, 1), "a plan must not promise what lies behind it");
        assert_eq!(walked(true), (1, 0), "who catches up leaves that to a verification");
    }
}
