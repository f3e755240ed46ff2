//! How far one timeline has come: received, submitted, durable. The acknowledgement to PostgreSQL is a function of this
//! and of nothing else.

use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, TimelineId, WalRange};
use std::collections::BTreeMap;

/// Positions on one timeline.
///
/// # Invariant
/// `start <= durable`; every byte of `[start, durable)` lies in an object that the store has confirmed, as stored now
/// or as compared with what the server has now. `durable` never falls. A byte is confirmed only after it was received,
/// so once the overlap with what was stored before is proven, `durable <= received`.
///
/// Every move checks it; a move against it is a defect and an error, never an acknowledgement.
#[derive(Clone, Debug)]
pub struct Progress {
    timeline: TimelineId,
    start: Lsn,
    received: Lsn,
    submitted: Lsn,
    durable: Lsn,
    /// Stored before this process: nothing is acknowledged until all of it is proven equal.
    overlap_end: Lsn,
    /// Confirmed ranges beyond `durable`: start to end, disjoint.
    ahead: BTreeMap<Lsn, Lsn>,
}

impl Progress {
    /// Begins at `start`, with `[start, overlap_end)` stored by somebody earlier.
    pub fn new(timeline: TimelineId, start: Lsn, overlap_end: Lsn) -> Progress {
        let overlap_end = overlap_end.max(start);
        Progress {
            timeline,
            start,
            received: start,
            submitted: overlap_end,
            durable: start,
            overlap_end,
            ahead: BTreeMap::new(),
        }
    }

    /// The timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The end of what was read from the server.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The end of what was handed to the store, by this process or an earlier one.
    pub fn submitted(&self) -> Lsn {
        self.submitted
    }

    /// The end of the gap-free bytes that the store has confirmed.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The first byte of all.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The first byte is stored, now or before.
    pub fn is_begun(&self) -> bool {
        self.durable.max(self.overlap_end) > self.start
    }

    /// What may be reported to PostgreSQL as flushed: nothing before the overlap is proven, then the durable end.
    pub fn flushed(&self) -> Lsn {
        if self.durable >= self.overlap_end && self.durable > self.start { self.durable } else { Lsn::INVALID }
    }

    /// All that was stored before this process has come again.
    pub fn is_past_overlap(&self) -> bool {
        self.received >= self.overlap_end
    }

    /// Everything received is durable.
    pub fn is_settled(&self) -> bool {
        self.durable >= self.received
    }

    /// Bytes up to `end` were received.
    ///
    /// # Errors
    /// If that is a step back.
    pub fn receive_to(&mut self, end: Lsn) -> Result<()> {
        if end < self.received {
            return Err(defect(format!("received {end} after {}", self.received)));
        }
        self.received = end;
        Ok(())
    }

    /// Bytes up to `end` were handed to the store.
    ///
    /// # Errors
    /// If they were not received.
    pub fn submit_to(&mut self, end: Lsn) -> Result<()> {
        if end > self.received {
            return Err(defect(format!("submitted {end} with only {} received", self.received)));
        }
        self.submitted = self.submitted.max(end);
        Ok(())
    }

    /// The store has confirmed an object with these bytes. True if the durable end moved.
    ///
    /// # Errors
    /// If the bytes were not received, or are of another timeline.
    pub fn confirm(&mut self, range: WalRange) -> Result<bool> {
        if range.timeline != self.timeline || range.end > self.received {
            return Err(defect(format!("confirmed {range} with {} received on {}", self.received, self.timeline)));
        }
        let mut range = (range.start.max(self.start), range.end);
        // Ranges may overlap: join the new one with all that touch it.
        while let Some((&start, &end)) = self.ahead.range(..=range.1).next_back() {
            if end < range.0 {
                break;
            }
            range = (range.0.min(start), range.1.max(end));
            self.ahead.remove(&start);
        }
        if range.0 > self.durable {
            self.ahead.insert(range.0, range.1);
            return Ok(false);
        }
        let moved = range.1 > self.durable;
        self.durable = self.durable.max(range.1);
        Ok(moved)
    }
}

fn defect(what: String) -> Error {
    Error::new(Kind::Internal, format!("positions out of order: {what}"))
        .hint("This is a defect of Seawall; nothing was acknowledged. Please report it.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn nothing_is_acknowledged_before_the_overlap_is_proven() {
        let mut progress = Progress::new(TimelineId(1), Lsn(100), Lsn(160));
        progress.receive_to(Lsn(200)).unwrap();
        assert_eq!(progress.flushed(), Lsn::INVALID);
        assert!(progress.confirm(range(100, 150)).unwrap());
        assert_eq!(progress.flushed(), Lsn::INVALID);
        assert!(progress.confirm(range(150, 160)).unwrap());
        assert_eq!(progress.flushed(), Lsn(160));
    }

    #[test]
    fn what_was_not_received_cannot_be_confirmed_or_submitted() {
        let mut progress = Progress::new(TimelineId(1), Lsn(100), Lsn(100));
        assert!(progress.confirm(range(100, 101)).is_err());
        assert!(progress.submit_to(Lsn(101)).is_err());
        progress.receive_to(Lsn(150)).unwrap();
        assert!(progress.receive_to(Lsn(149)).is_err());
    }

    proptest! {
        #[test]
        fn durable_is_the_end_of_gap_free_coverage_in_whatever_order_it_is_confirmed(
            pieces in prop::collection::vec((0u64..200, 1u64..50), 1..30),
        ) {
            let mut progress = Progress::new(TimelineId(1), Lsn(0), Lsn(0));
            progress.receive_to(Lsn(1000)).unwrap();
            let mut covered = [false; 1000];
            for (start, length) in pieces {
                let before = progress.durable();
                let moved = progress.confirm(range(start, start + length)).unwrap();
                covered[start as usize..(start + length) as usize].fill(true);
                let expected = covered.iter().position(|covered| !covered).unwrap_or(1000) as u64;
                prop_assert_eq!(progress.durable(), Lsn(expected));
                prop_assert_eq!(moved, progress.durable() > before);
                prop_assert!(progress.flushed() <= progress.durable());
            }
        }
    }
}
