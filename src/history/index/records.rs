//! Outlines of neighbouring blocks, as they are stored: the document, and how much goes into one. Pure.
//!
//! Sixteen blocks are the first level, sixteen of that the second, up to the fourth: with blocks of 16 MiB that is 1 TiB. Slots begin
//! at multiples of their size. A reader takes what reaches farthest, so years are a handful of objects, and nothing is
//! ever replaced or deleted.

use super::outline::Outline;
use crate::error::{Error, Kind, Result};
use crate::repository::FORMAT_VERSION;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use serde::{Deserialize, Serialize};

/// How many of one level make one of the next.
const PER_LEVEL: u64 = 16;

/// Levels that there are.
const LEVELS: u32 = 4;

/// Outlines in one document, at most: those of the highest level.
const OUTLINES_MAX: usize = 1 << 16;

/// A level: how much WAL a document is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Level(u32);

impl Level {
    /// That of which the documents are made from outlines.
    pub const FIRST: Level = Level(1);

    /// The next one; `None` behind the last.
    pub fn next(self) -> Option<Level> {
        (self.0 < LEVELS).then_some(Level(self.0 + 1))
    }

    /// Bytes of WAL in a slot.
    pub fn bytes(self, size: SegmentSize) -> u64 {
        size.block_bytes() * PER_LEVEL.pow(self.0)
    }

    /// Where the slot of `lsn` begins.
    pub fn slot_start(self, size: SegmentSize, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 - lsn.0 % self.bytes(size))
    }

    /// Where it ends.
    pub fn slot_end(self, size: SegmentSize, lsn: Lsn) -> Lsn {
        self.slot_start(size, lsn) + self.bytes(size)
    }
}

/// What the records in a range say, by block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Records {
    /// [`FORMAT_VERSION`].
    format: u32,
    /// The timeline.
    timeline: TimelineId,
    /// In order, each where the one before ends.
    outlines: Vec<Outline>,
}

impl Records {
    /// A document of `outlines`; `None` if there are none, or they do not follow on one another.
    pub fn new(timeline: TimelineId, outlines: Vec<Outline>) -> Option<Records> {
        let records = Records { format: FORMAT_VERSION, timeline, outlines };
        (records.problem().is_none()).then_some(records)
    }

    /// Which bytes it is about.
    pub fn range(&self) -> WalRange {
        let at = |outline: Option<&Outline>, of: fn(&Outline) -> Lsn| outline.map_or(Lsn::INVALID, of);
        WalRange {
            timeline: self.timeline,
            start: at(self.outlines.first(), |outline| outline.start),
            end: at(self.outlines.last(), |outline| outline.end),
        }
    }

    /// The outlines, in order.
    pub fn into_outlines(self) -> Vec<Outline> {
        self.outlines
    }

    /// Why this cannot be.
    fn problem(&self) -> Option<&'static str> {
        if self.outlines.is_empty() || self.outlines.len() > OUTLINES_MAX {
            return Some("has an impossible number of blocks");
        }
        if self.outlines.iter().any(|outline| outline.start >= outline.end) {
            return Some("has a block that ends before it begins");
        }
        let follows = |pair: &[Outline]| pair[0].end == pair[1].start && pair[0].next_record <= pair[1].next_record;
        if !self.outlines.windows(2).all(follows) {
            return Some("has blocks that do not follow on one another");
        }
        None
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that the world can cause.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::new(Kind::Internal, "cannot write an index").because(error))
    }

    /// Reads the document of `range` back, which is called `name`.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it is none, or another range's; [`Kind::Refused`] if it is of a later format.
    pub fn decode(name: &str, range: WalRange, json: &[u8]) -> Result<Records> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
        let refused = |format: u32| Error::new(Kind::Refused, format!("{name} has format {format}"));
        let records: Records = serde_json::from_slice(json).map_err(|error| {
            // What a later format looks like nobody knows yet, but that it says so.
            match serde_json::from_slice::<Format>(json) {
                Ok(Format { format }) if format > FORMAT_VERSION => refused(format),
                _ => damaged("cannot be read").because(error),
            }
        })?;
        if records.format > FORMAT_VERSION {
            return Err(refused(records.format));
        }
        match records.problem() {
            Some(problem) => Err(damaged(problem)),
            None if records.range() != range => Err(damaged("is about another range than its name says")),
            None => Ok(records),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_of_wal_are_a_handful_of_documents() {
        // Given ten years of a cluster that writes 3 GiB a day, or a year of one that writes 30, each slot with its document
        let size = SegmentSize::DEFAULT;
        let levels: Vec<Level> = std::iter::successors(Some(Level::FIRST), |level| level.next()).collect();
        for archive in [3_650 * (3_u64 << 30) + (7 << 20), 365 * (30_u64 << 30) + (7 << 20)] {
            let (mut read, mut position) = (0, Lsn(0));
            // When somebody reads all of it, each time what reaches farthest
            let fits = |level: &&Level, position: Lsn| {
                level.slot_start(size, position) == position && level.slot_end(size, position).0 <= archive
            };
            while let Some(level) = levels.iter().rev().find(|level| fits(level, position)) {
                (read, position) = (read + 1, level.slot_end(size, position));
            }
            // Then that is some dozens of requests, up to the last slot, which is not full
            assert!(archive - position.0 < Level::FIRST.bytes(size), "{position}");
            assert!(read <= 60, "{read} documents");
        }
    }
}
