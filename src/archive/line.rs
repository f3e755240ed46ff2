//! One timeline's bytes on their way into the repository: cut into tails and blocks, compared with what is there
//! already. Pure: it says what to do, the session does it.
//!
//! Design rules, by number in `docs/architecture.md`: content is a function of the range (1), blocks from memory (2), tails
//! never cross a block (3), merged by sixteens (5), garbage when covered (7), the overlap is compared (9), sealed at a
//! switch (10).

use super::open_block::{OpenBlock, Room};
use super::progress::Progress;
use super::share::CommonMemory;
use super::unused::Unused;
use crate::codec::Ending;
use crate::error::{Error, Kind, Result};
use crate::repository::{Key, Piece, Stored, lead_start};
use crate::wal::{Lsn, PAGE_BYTES, SegmentSize, TimelineId, WalRange};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// How many neighbouring tails of one level become one of the next.
const TAILS_PER_MERGE: usize = 16;

/// The level of tails from before a restart, and of the one that replaces them: they are never merged.
const RESTART_LEVEL: u8 = u8::MAX;

/// After a restart, tails within so many bytes are replaced in any case.
const REPLACED_BYTES_MIN: u64 = 64 << 10;

/// Something to do with the store, whose success confirms `range`.
#[derive(Clone, Debug)]
pub enum Job {
    /// Store these bytes.
    Store {
        /// [`Key::Block`] or [`Key::Tail`].
        key: Key,
        /// Which bytes they are.
        range: WalRange,
        /// What lies in front of them, if that is wanted: see [`lead_start`].
        lead: Bytes,
        /// They, in their order.
        pieces: Vec<Piece>,
    },
    /// Compare these bytes, which came again, with an object that is there.
    Compare {
        /// The object's key.
        key: Key,
        /// How it is stored.
        ending: Ending,
        /// Which bytes they are.
        range: WalRange,
        /// They, in their order.
        pieces: Vec<Piece>,
    },
}

impl Job {
    /// The bytes that its success confirms.
    pub fn range(&self) -> WalRange {
        match self {
            Job::Store { range, .. } | Job::Compare { range, .. } => *range,
        }
    }

    /// The object.
    pub fn key(&self) -> &Key {
        match self {
            Job::Store { key, .. } | Job::Compare { key, .. } => key,
        }
    }

    /// Its bytes, in their order.
    pub fn pieces(&self) -> &[Piece] {
        match self {
            Job::Store { pieces, .. } | Job::Compare { pieces, .. } => pieces,
        }
    }

    /// What lies in front of them, if that is wanted.
    pub fn lead(&self) -> &[u8] {
        match self {
            Job::Store { lead, .. } => lead,
            Job::Compare { .. } => &[],
        }
    }
}

/// A tail that lies inside a larger confirmed object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Garbage {
    /// Which bytes it has.
    pub range: WalRange,
    /// How it is stored, if an earlier process stored it.
    pub ending: Option<Ending>,
    /// The larger object has been there for at least so long.
    pub covered_for: Duration,
}

/// A confirmed object.
#[derive(Clone, Copy, Debug)]
struct Cover {
    range: WalRange,
    is_block: bool,
    /// It has been there for at least so long.
    age: Duration,
}

impl Cover {
    /// True if the tail is not needed beside it: readers prefer a block to a tail of the same bytes.
    fn replaces(&self, tail: WalRange) -> bool {
        self.range.contains(tail) && (self.is_block || self.range != tail)
    }
}

/// A tail of ours or found, that nothing larger has replaced yet.
#[derive(Clone, Debug)]
struct Tail {
    range: WalRange,
    /// If an earlier process stored it.
    ending: Option<Ending>,
    level: u8,
    confirmed: bool,
    /// A larger one that holds it is under way.
    merging: bool,
}

/// One timeline, from the first byte that is streamed.
#[derive(Debug)]
pub struct Line {
    size: SegmentSize,
    progress: Progress,
    /// The block that is not full yet.
    open: OpenBlock,
    open_start: Lsn,
    unused: Unused,
    /// Objects found at the start that the stream has not passed, latest first.
    known: Vec<Stored>,
    /// When the youngest of the objects found was stored, by the store's clock, which shows that or more now.
    found_at: Option<Timestamp>,
    /// How long the objects have been there that are being compared.
    ages: BTreeMap<Key, Duration>,
    /// Live tails, by start.
    tails: Vec<Tail>,
    /// Confirmed objects that hold tails which are still being stored.
    covers: Vec<Cover>,
    /// Tails from before this connection were found in the open block: the next one replaces them.
    replaces_earlier: bool,
    has_leads: bool,
    /// The last page of the block before, if leads are wanted and it came.
    page_before: Bytes,
}

impl Line {
    /// A line that begins at `start`, the first byte of a block. `[start, overlap_end)` is covered by `known` objects,
    /// of which there may be more behind.
    pub fn new(size: SegmentSize, timeline: TimelineId, start: Lsn, overlap_end: Lsn, known: &[Stored]) -> Line {
        let found_at = known.iter().map(|stored| stored.modified).max();
        let mut known: Vec<Stored> = known.iter().filter(|stored| stored.range.start >= start).cloned().collect();
        known.sort_by_key(|stored| std::cmp::Reverse((stored.range.end, stored.range.start)));
        Line {
            size,
            progress: Progress::new(timeline, start, overlap_end),
            open: OpenBlock::new(size.block_bytes(), None),
            open_start: start,
            unused: Unused::new(start),
            known,
            found_at,
            ages: BTreeMap::new(),
            tails: Vec::new(),
            covers: Vec::new(),
            replaces_earlier: false,
            has_leads: false,
            page_before: Bytes::new(),
        }
    }

    /// As it is; what is stored comes with its lead.
    #[must_use]
    pub fn with_leads(self, has_leads: bool) -> Line {
        Line { has_leads, ..self }
    }

    /// As it is, and nothing has come: its memory is in part that of others, too.
    #[must_use]
    pub fn with_common_memory(self, common: Option<&CommonMemory>) -> Line {
        Line { open: OpenBlock::new(self.size.block_bytes(), common), ..self }
    }

    /// How far it has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Bytes of the open block, which are in memory.
    pub fn open_bytes(&self) -> usize {
        self.open.len()
    }

    /// The open block's first byte, and those of its pieces that will not change any more.
    pub fn settled(&self) -> (Lsn, &[Piece]) {
        (self.open_start, self.open.settled())
    }

    /// Room for what they become, if it is to take their place.
    pub(super) fn room(&self) -> Option<Room> {
        self.open.room()
    }

    /// What lies in front of the open block, if that is wanted and was received.
    pub fn lead(&self) -> &Bytes {
        &self.page_before
    }

    /// False while so much is being compressed that no more is to be read.
    pub fn has_room(&self) -> bool {
        self.open.has_room()
    }

    /// There is no room, and there will be none before something is stored.
    pub fn is_full(&self) -> bool {
        self.open.is_full()
    }

    /// Waits until some of it is compressed. May be dropped.
    pub async fn wait_for_room(&self) {
        self.open.wait_for_room().await;
    }

    /// Live tails of the open block and of blocks that are being stored.
    pub fn live_tails(&self) -> usize {
        self.tails.len()
    }

    /// True if bytes were received that nothing has been done about.
    pub fn has_unsubmitted(&self) -> bool {
        self.progress.received() > self.progress.submitted()
    }

    /// Takes bytes from the server, which must follow what was received.
    ///
    /// # Errors
    /// If they do not: the server or the connection cannot be trusted.
    pub fn receive(&mut self, start: Lsn, bytes: &[u8], jobs: &mut Vec<Job>) -> Result<()> {
        if start != self.progress.received() {
            let expected = self.progress.received();
            return Err(Error::new(Kind::Postgres, format!("the server sent WAL from {start} instead of {expected}"))
                .hint("The connection is dropped and the stream starts again from the last durable byte."));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.size.block_bytes() as usize - self.open.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.open.extend(now);
            self.unused.clear(self.size, self.open_start, &mut self.open)?;
            // Each of their pages was looked at: a page's header is in the piece that the page is in.
            self.open.settle();
            rest = later;
            self.progress.receive_to(self.open_start + self.open.len() as u64)?;
            self.compare_passed(jobs)?;
            if self.open.len() as u64 == self.size.block_bytes() {
                self.close_block(jobs)?;
            }
        }
        Ok(())
    }

    /// Compares the known objects that the stream has passed now.
    fn compare_passed(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        let received = self.progress.received();
        let behind = self.known.partition_point(|stored| stored.range.end > received);
        let mut passed = self.known.split_off(behind);
        passed.retain(|stored| stored.range.start >= self.open_start);
        for stored in passed.into_iter().rev() {
            let range = stored.range;
            let key = if stored.is_block { Key::Block(range) } else { Key::Tail(range) };
            let age = self.found_at.map(|found_at| found_at.duration_since(stored.modified).unsigned_abs());
            self.ages.insert(key.clone(), age.unwrap_or_default());
            if !stored.is_block {
                let ending = Some(stored.ending);
                self.tails.push(Tail { range, ending, level: RESTART_LEVEL, confirmed: false, merging: false });
                self.replaces_earlier = true;
            }
            jobs.push(Job::Compare { key, ending: stored.ending, range, pieces: self.share(range)? });
        }
        Ok(())
    }

    fn close_block(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        let range = self.whole(self.open_start + self.size.block_bytes());
        let last_page = self.range(Lsn(range.end.0 - PAGE_BYTES), range.end);
        let page_before = if self.has_leads { self.copy(last_page)? } else { Bytes::new() };
        let lead = std::mem::replace(&mut self.page_before, page_before);
        let pieces = self.open.take();
        self.open_start = range.end;
        self.replaces_earlier = false;
        self.progress.submit_to(range.end)?;
        let compared = jobs.iter().any(|job| *job.key() == Key::Block(range));
        if !compared {
            jobs.push(Job::Store { key: Key::Block(range), range, lead, pieces });
        }
        Ok(())
    }

    /// Stores what was received and not handed to the store yet, as a tail.
    ///
    /// # Errors
    /// None that the world can cause.
    pub fn flush(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        if !self.has_unsubmitted() {
            return Ok(());
        }
        let end = self.progress.received();
        let replaced = if self.replaces_earlier { self.replaced_from(end) } else { None };
        self.replaces_earlier = false;
        let (start, level) = match replaced {
            Some(start) => (start, RESTART_LEVEL),
            None => (self.progress.submitted().max(self.open_start), 0),
        };
        self.tails.iter_mut().filter(|tail| tail.range.start >= start).for_each(|tail| tail.merging = true);
        let range = self.range(start, end);
        self.store_tail(range, level, jobs)?;
        self.progress.submit_to(end)
    }

    /// After a restart one tail replaces all before it, up to `end`; this is where it begins. Left alone is what is larger
    /// than everything behind it: in a row of restarts the whole block would be stored with each of them. So few are
    /// left alone (eight, each twice the next), and a byte that is stored again comes into something twice as large.
    fn replaced_from(&self, end: Lsn) -> Option<Lsn> {
        let mut position = self.open_start;
        while let Some(tail) = self.farthest_at(position) {
            let is_small = tail.end - tail.start <= end - tail.end || end - tail.start <= REPLACED_BYTES_MIN;
            if is_small {
                return Some(tail.start);
            }
            position = tail.end;
        }
        None
    }

    /// Of the tails that hold the byte at `position`, the one that reaches farthest.
    fn farthest_at(&self, position: Lsn) -> Option<WalRange> {
        let ranges = self.tails.iter().map(|tail| tail.range);
        ranges.filter(|range| range.start <= position && position < range.end).max_by_key(|range| range.end)
    }

    fn store_tail(&mut self, range: WalRange, level: u8, jobs: &mut Vec<Job>) -> Result<()> {
        let (lead, pieces) = (self.lead_of(range.start)?, self.share(range)?);
        self.tails.push(Tail { range, ending: None, level, confirmed: false, merging: false });
        jobs.push(Job::Store { key: Key::Tail(range), range, lead, pieces });
        Ok(())
    }

    /// The timeline ends at `switch`: what its last block has is permanent. What was received behind it is a dead branch, a
    /// record that a standby had in part when it was promoted: kept as well, to its own end.
    ///
    /// # Errors
    /// If the stream ended before the switch point.
    pub fn seal(&mut self, switch: Lsn, jobs: &mut Vec<Job>) -> Result<()> {
        let received = self.progress.received();
        if switch > received {
            let message = format!("the timeline ended at {switch}, but the stream did at {received}");
            return Err(Error::new(Kind::Postgres, message));
        }
        let mut ends = vec![switch, received];
        ends.dedup();
        for end in ends.into_iter().filter(|end| *end > self.open_start) {
            let range = self.range(self.open_start, end);
            let (lead, pieces) = (self.page_before.clone(), self.share(range)?);
            jobs.push(Job::Store { key: Key::Block(range), range, lead, pieces });
        }
        self.progress.submit_to(received)
    }

    /// The store has confirmed a job. Gives back the tails that this makes garbage, and adds the merge that it makes
    /// possible. True if the durable end moved.
    ///
    /// # Errors
    /// If the job was none of this line.
    pub fn confirm(
        &mut self,
        key: &Key,
        range: WalRange,
        jobs: &mut Vec<Job>,
        garbage: &mut Vec<Garbage>,
    ) -> Result<bool> {
        let moved = self.progress.confirm(range)?;
        let is_tail = matches!(key, Key::Tail(_));
        if is_tail && let Some(tail) = self.tails.iter_mut().find(|tail| tail.range == range && !tail.confirmed) {
            tail.confirmed = true;
        }
        self.covers.push(Cover { range, is_block: !is_tail, age: self.ages.remove(key).unwrap_or_default() });
        let covers = &self.covers;
        self.tails.retain(|tail| {
            let holders = covers.iter().filter(|cover| tail.confirmed && cover.replaces(tail.range));
            let covered_for = holders.map(|cover| cover.age).max();
            garbage.extend(covered_for.map(|covered_for| Garbage {
                range: tail.range,
                ending: tail.ending,
                covered_for,
            }));
            covered_for.is_none()
        });
        let tails = &self.tails;
        self.covers.retain(|cover| tails.iter().any(|tail| !tail.confirmed && cover.replaces(tail.range)));
        if is_tail {
            self.merge(jobs)?;
        }
        Ok(moved)
    }

    /// Sixteen neighbouring confirmed tails of one level in the open block become one of the next.
    ///
    /// Only from the first of its level on: uploads end in any order, and a tail that its neighbours left behind would
    /// find nobody to be merged with. What lies before a level is of a higher one, so a sixteen is never torn apart.
    fn merge(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        self.tails.sort_by_key(|tail| (tail.range.start, tail.range.end));
        // Without those that a larger one is about to replace, the tails of the open block follow one another.
        let is_live = |tail: &Tail| tail.range.start >= self.open_start && !tail.merging;
        let live: Vec<usize> = (0..self.tails.len()).filter(|&index| is_live(&self.tails[index])).collect();
        let mut ready = Vec::new();
        let mut before = None;
        let are_neighbours = |one: &Tail, next: &Tail| one.level == next.level && one.range.end == next.range.start;
        for level in live.chunk_by(|&one, &next| are_neighbours(&self.tails[one], &self.tails[next])) {
            let first = &self.tails[level[0]];
            let is_mergeable = first.level != RESTART_LEVEL && before.is_none_or(|before| before > first.level);
            before = Some(first.level);
            let sixteens = level.chunks_exact(TAILS_PER_MERGE).filter(|_| is_mergeable);
            ready
                .extend(sixteens.filter(|of| of.iter().all(|&tail| self.tails[tail].confirmed)).map(<[usize]>::to_vec));
        }
        for sixteen in ready {
            let (first, last) = (&self.tails[sixteen[0]], &self.tails[sixteen[TAILS_PER_MERGE - 1]]);
            let (range, level) = (WalRange { end: last.range.end, ..first.range }, first.level + 1);
            sixteen.into_iter().for_each(|tail| self.tails[tail].merging = true);
            self.store_tail(range, level, jobs)?;
        }
        Ok(())
    }

    fn range(&self, start: Lsn, end: Lsn) -> WalRange {
        WalRange { timeline: self.progress.timeline(), start, end }
    }

    fn whole(&self, end: Lsn) -> WalRange {
        self.range(end_to_start(self.size, end), end)
    }

    /// What lies in front of `start`, which is in the open block, if that is wanted.
    fn lead_of(&self, start: Lsn) -> Result<Bytes> {
        if !self.has_leads {
            return Ok(Bytes::new());
        }
        let from = lead_start(start, Lsn(self.open_start.0 - self.page_before.len() as u64));
        match from < self.open_start {
            true => Ok([&self.page_before[..], &self.copy(self.range(self.open_start, start))?].concat().into()),
            false => self.copy(self.range(from, start)),
        }
    }

    /// Bytes of the open block for a job, which may be kept for as long as that takes: next to nothing of them is a copy.
    fn share(&self, range: WalRange) -> Result<Vec<Piece>> {
        let (from, to) = self.within(range);
        self.open.share(from, to)
    }

    /// A few bytes of the open block.
    fn copy(&self, range: WalRange) -> Result<Bytes> {
        let (from, to) = self.within(range);
        self.open.copy(from, to)
    }

    fn within(&self, range: WalRange) -> (usize, usize) {
        ((range.start - self.open_start) as usize, (range.end - self.open_start) as usize)
    }
}

fn end_to_start(size: SegmentSize, end: Lsn) -> Lsn {
    Lsn(end.0 - size.block_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn wal(start: u64, end: u64) -> Vec<u8> {
        (start..end).map(|position| (position % 251) as u8).collect()
    }

    fn stored(start: u64, end: u64, is_block: bool) -> Stored {
        let range = WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) };
        Stored {
            range,
            name: String::new(),
            ending: Ending::default(),
            is_block,
            stored_bytes: 0,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    /// Confirms every job at once, as a store without delay would, and keeps what is stored.
    fn settle(line: &mut Line, jobs: &mut Vec<Job>, stored: &mut BTreeMap<Key, Bytes>) -> usize {
        let mut puts = 0;
        while let Some(job) = jobs.pop() {
            if let Job::Store { key, pieces, .. } = &job {
                let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes().unwrap()).collect();
                stored.insert(key.clone(), bytes.into());
                puts += 1;
            }
            let mut garbage = Vec::new();
            line.confirm(job.key(), job.range(), jobs, &mut garbage).unwrap();
            for tail in garbage {
                assert!(stored.remove(&Key::Tail(tail.range)).is_some(), "{tail:?} was not there to be garbage");
            }
        }
        puts
    }

    #[test]
    fn a_trickle_leaves_few_tails_and_stores_each_byte_a_handful_of_times() {
        // Given a block that fills by 32 bytes a flush
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let (mut jobs, mut stored, mut most) = (Vec::new(), BTreeMap::new(), 0);
        let mut uploaded = 0u64;
        // When every flush is confirmed before the next
        for at in (MIB..2 * MIB).step_by(32) {
            line.receive(Lsn(at), &wal(at, at + 32), &mut jobs).unwrap();
            line.flush(&mut jobs).unwrap();
            uploaded += jobs.iter().map(|job| job.range().bytes()).sum::<u64>();
            while let Some(job) = jobs.pop() {
                let before = jobs.len();
                stored.insert(job.key().clone(), ());
                let mut garbage = Vec::new();
                line.confirm(job.key(), job.range(), &mut jobs, &mut garbage).unwrap();
                uploaded += jobs[before..].iter().map(|job| job.range().bytes()).sum::<u64>();
                for tail in garbage {
                    stored.remove(&Key::Tail(tail.range));
                }
            }
            most = most.max(stored.len());
        }
        // Then there were never more than fifteen tails a level, and a byte was stored once a level and in its block
        assert!(most <= 75, "{most} tails were live at once");
        assert!(uploaded <= 6 * MIB, "{uploaded} bytes were uploaded for {MIB}");
        assert_eq!(stored.len(), 1, "a full block leaves the block alone: {:?}", stored.keys());
        assert_eq!(line.progress().durable(), Lsn(2 * MIB));
    }

    #[test]
    fn a_block_that_fills_at_once_has_no_tail() {
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let mut jobs = Vec::new();
        line.receive(Lsn(MIB), &wal(MIB, 3 * MIB), &mut jobs).unwrap();
        line.flush(&mut jobs).unwrap();
        let keys: Vec<&Key> = jobs.iter().map(Job::key).collect();
        assert!(matches!(keys[..], [Key::Block(_), Key::Block(_)]), "{keys:?}");
    }

    #[test]
    fn after_a_restart_what_comes_again_is_compared_and_one_tail_replaces_all_before_it() {
        // Given two tails from before, and the stream from the segment's start
        let known = [stored(MIB, MIB + 100, false), stored(MIB + 100, MIB + 150, false)];
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB + 150), &known);
        let mut jobs = Vec::new();
        // When the overlap and fifty bytes more have come
        line.receive(Lsn(MIB), &wal(MIB, MIB + 200), &mut jobs).unwrap();
        // Then both are compared, and nothing is acknowledged before both are confirmed
        assert!(jobs.iter().all(|job| matches!(job, Job::Compare { .. })) && jobs.len() == 2, "{jobs:?}");
        assert_eq!(line.progress().flushed(), Lsn::INVALID);
        let mut stored = BTreeMap::new();
        for job in &jobs {
            stored.insert(job.key().clone(), Bytes::new());
        }
        settle(&mut line, &mut jobs, &mut stored);
        assert_eq!(line.progress().flushed(), Lsn(MIB + 150));
        // And the next flush holds everything from the block's start, and the earlier tails are garbage
        line.flush(&mut jobs).unwrap();
        assert_eq!(jobs[0].range().start, Lsn(MIB));
        settle(&mut line, &mut jobs, &mut stored);
        assert_eq!(stored.len(), 1, "{:?}", stored.keys());
        assert_eq!(line.progress().flushed(), Lsn(MIB + 200));
    }

    #[test]
    fn however_late_one_is_confirmed_no_tail_is_left_behind_by_its_neighbours() {
        // Given flushes of which every seventh is confirmed only when twelve more have been
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let (mut jobs, mut late, mut most) = (Vec::new(), std::collections::VecDeque::new(), 0);
        for (number, at) in (MIB..2 * MIB - 32).step_by(32).enumerate() {
            line.receive(Lsn(at), &wal(at, at + 32), &mut jobs).unwrap();
            line.flush(&mut jobs).unwrap();
            while let Some(job) = jobs.pop() {
                match number % 7 == 0 {
                    true => late.push_back((number + 12, job)),
                    false => line.confirm(job.key(), job.range(), &mut jobs, &mut Vec::new()).map(|_| ()).unwrap(),
                }
            }
            while late.front().is_some_and(|(due, _)| *due <= number) {
                let (_, job) = late.pop_front().unwrap();
                line.confirm(job.key(), job.range(), &mut jobs, &mut Vec::new()).unwrap();
            }
            most = most.max(line.live_tails());
        }
        // Then the bound holds, with a sixteen that waits for its last one here and there
        assert!(most <= 75 + 32, "{most} tails were live at once");
    }

    #[test]
    fn a_late_neighbour_is_waited_for() {
        // Given twenty flushes
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let mut jobs = Vec::new();
        for at in (MIB..MIB + 20 * 32).step_by(32) {
            line.receive(Lsn(at), &wal(at, at + 32), &mut jobs).unwrap();
            line.flush(&mut jobs).unwrap();
        }
        // When all but the first are confirmed, nothing is merged
        let (mut merged, mut garbage) = (Vec::new(), Vec::new());
        for job in &jobs[1..] {
            line.confirm(job.key(), job.range(), &mut merged, &mut garbage).unwrap();
        }
        assert!(merged.is_empty(), "{merged:?}");
        // And when the first is, the first sixteen are
        line.confirm(jobs[0].key(), jobs[0].range(), &mut merged, &mut garbage).unwrap();
        assert_eq!(
            merged.iter().map(|job| (job.range().start.0, job.range().end.0)).collect::<Vec<_>>(),
            [(MIB, MIB + 16 * 32)]
        );
    }

    #[test]
    fn after_a_restart_what_is_larger_than_all_behind_it_is_left_alone() {
        // Given tails from before, each larger than all behind it, but for the third
        let sizes: [u64; 5] = [500_000, 200_000, 60_000, 70_000, 100];
        let mut known = Vec::new();
        let mut end = MIB;
        for size in sizes {
            known.push(stored(end, end + size, false));
            end += size;
        }
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(end), &known);
        let mut jobs = Vec::new();
        line.receive(Lsn(MIB), &wal(MIB, end + 50), &mut jobs).unwrap();
        let mut stored: BTreeMap<Key, Bytes> = jobs.iter().map(|job| (job.key().clone(), Bytes::new())).collect();
        settle(&mut line, &mut jobs, &mut stored);
        // When the next flush comes, it replaces from the first that is not larger than all behind it
        line.flush(&mut jobs).unwrap();
        assert_eq!(jobs[0].range().start, Lsn(MIB + 700_000));
        settle(&mut line, &mut jobs, &mut stored);
        assert_eq!(stored.len(), 3, "{:?}", stored.keys());
    }

    #[test]
    fn tails_of_a_later_block_of_the_segment_are_replaced_after_a_restart_too() {
        // Given a segment of four blocks, and tails from before in the second
        let block = crate::wal::BLOCK_BYTES_MAX;
        let size = SegmentSize::new(4 * block).unwrap();
        let start = 4 * block;
        let known = [
            stored(start, start + block, true),
            stored(start + block, start + block + 100, false),
            stored(start + block + 100, start + block + 150, false),
        ];
        let mut line = Line::new(size, TimelineId(1), Lsn(start), Lsn(start + block + 150), &known);
        let mut jobs = Vec::new();
        line.receive(Lsn(start), &wal(start, start + block + 200), &mut jobs).unwrap();
        let mut stored: BTreeMap<Key, Bytes> = jobs.iter().map(|job| (job.key().clone(), Bytes::new())).collect();
        settle(&mut line, &mut jobs, &mut stored);
        // When the next flush comes
        line.flush(&mut jobs).unwrap();
        assert_eq!(jobs[0].range().start, Lsn(start + block));
        settle(&mut line, &mut jobs, &mut stored);
        // Then the block before and one tail are left
        assert_eq!(stored.len(), 2, "{:?}", stored.keys());
        assert_eq!(line.live_tails(), 1);
    }

    #[test]
    fn what_had_long_been_replaced_when_it_was_found_has_been_garbage_for_as_long() {
        // Given a tail, a larger one stored ten seconds later, and another a hundred seconds later
        let at = |seconds, found| Stored { modified: Timestamp::from_second(seconds).unwrap(), ..found };
        let known = [
            at(1000, stored(MIB, MIB + 10, false)),
            at(1010, stored(MIB, MIB + 100, false)),
            at(1110, stored(MIB + 100, MIB + 150, false)),
        ];
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB + 150), &known);
        let (mut jobs, mut garbage) = (Vec::new(), Vec::new());
        line.receive(Lsn(MIB), &wal(MIB, MIB + 150), &mut jobs).unwrap();
        // When all are compared
        for job in std::mem::take(&mut jobs) {
            line.confirm(job.key(), job.range(), &mut jobs, &mut garbage).unwrap();
        }
        // Then the first has been garbage for a hundred seconds at least, and the others are not
        let range = WalRange { timeline: TimelineId(1), start: Lsn(MIB), end: Lsn(MIB + 10) };
        assert_eq!(
            garbage,
            [Garbage { range, ending: Some(Ending::default()), covered_for: Duration::from_secs(100) }]
        );
    }

    #[test]
    fn a_block_that_is_there_is_compared_and_not_stored() {
        let known = [stored(MIB, 2 * MIB, true)];
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(2 * MIB), &known);
        let mut jobs = Vec::new();
        line.receive(Lsn(MIB), &wal(MIB, 2 * MIB), &mut jobs).unwrap();
        assert!(matches!(jobs[..], [Job::Compare { .. }]), "{jobs:?}");
    }

    /// What a line that has received up to 2 MiB + 700 seals at `switch`.
    fn sealed(switch: u64) -> Vec<(u64, u64)> {
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let (mut jobs, mut stored) = (Vec::new(), BTreeMap::new());
        line.receive(Lsn(MIB), &wal(MIB, 2 * MIB + 700), &mut jobs).unwrap();
        line.flush(&mut jobs).unwrap();
        settle(&mut line, &mut jobs, &mut stored);
        line.seal(Lsn(switch), &mut jobs).unwrap();
        assert!(jobs.iter().all(|job| matches!(job, Job::Store { key: Key::Block(_), .. })), "{jobs:?}");
        let sealed = jobs.iter().map(|job| (job.range().start.0, job.range().end.0)).collect();
        settle(&mut line, &mut jobs, &mut stored);
        assert_eq!(line.progress().durable(), Lsn(2 * MIB + 700));
        sealed
    }

    #[test]
    fn a_timeline_is_sealed_where_it_was_left_and_what_came_behind_to_its_own_end() {
        assert_eq!(sealed(2 * MIB + 700), [(2 * MIB, 2 * MIB + 700)]);
        assert_eq!(sealed(2 * MIB + 300), [(2 * MIB, 2 * MIB + 300), (2 * MIB, 2 * MIB + 700)]);
        // At the border of a block there is nothing of the next one to be sealed.
        assert_eq!(sealed(2 * MIB), [(2 * MIB, 2 * MIB + 700)]);
        assert_eq!(sealed(2 * MIB - 300), [(2 * MIB, 2 * MIB + 700)], "the block before is not in memory any more");
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        assert!(line.seal(Lsn(MIB + 1), &mut Vec::new()).is_err(), "the server must have sent all of it");
    }

    #[test]
    fn bytes_that_do_not_follow_are_refused() {
        let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
        let mut jobs = Vec::new();
        assert!(line.receive(Lsn(MIB + 1), b"x", &mut jobs).is_err());
        assert!(line.receive(Lsn(0), b"x", &mut jobs).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// However the stream is cut and whenever it is flushed, what is stored is the stream.
        #[test]
        fn every_split_stores_the_same_bytes(pieces in prop::collection::vec((1usize..200_000, any::<bool>()), 1..20)) {
            let mut line = Line::new(size(), TimelineId(1), Lsn(MIB), Lsn(MIB), &[]);
            let (mut jobs, mut stored) = (Vec::new(), BTreeMap::new());
            let stream = wal(MIB, 5 * MIB);
            let mut at = MIB;
            for (length, flush) in pieces {
                let end = at + length as u64;
                line.receive(Lsn(at), &stream[(at - MIB) as usize..(end - MIB) as usize], &mut jobs).unwrap();
                at = end;
                if flush {
                    line.flush(&mut jobs).unwrap();
                }
                settle(&mut line, &mut jobs, &mut stored);
            }
            line.flush(&mut jobs).unwrap();
            settle(&mut line, &mut jobs, &mut stored);
            for (key, bytes) in &stored {
                let (Key::Block(range) | Key::Tail(range)) = key else { unreachable!() };
                prop_assert!(range.fits_one_block(size()));
                prop_assert!(bytes[..] == stream[(range.start.0 - MIB) as usize..(range.end.0 - MIB) as usize]);
            }
            prop_assert_eq!(line.progress().durable(), Lsn(at));
            prop_assert_eq!(line.progress().received(), Lsn(at));
        }
    }
}
