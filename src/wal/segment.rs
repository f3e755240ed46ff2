//! Segments, the files that WAL is cut into, and blocks, the pieces of segments that the repository stores.

use super::{Lsn, TimelineId};
use std::fmt;

/// The largest piece of WAL that one object holds, in bytes. A segment up to this size is one block.
pub const BLOCK_BYTES_MAX: u64 = 16 << 20;

/// The size of a cluster's WAL segments: a power of two from 1 MiB to 1 GiB
/// (`src/include/access/xlog_internal.h`, `IsValidWalSegSize`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// The size PostgreSQL takes unless `initdb --wal-segsize` says otherwise: 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// The size of `bytes`, or `None` if PostgreSQL knows no such size.
    pub fn new(bytes: u64) -> Option<SegmentSize> {
        let known = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        known.then_some(SegmentSize(bytes as u32))
    }

    /// Reads what `SHOW wal_segment_size` prints: `1MB`, `16MB`, `1GB`.
    pub fn parse_setting(text: &str) -> Option<SegmentSize> {
        let split = text.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = text[..split].parse().ok()?;
        let unit = match &text[split..] {
            "B" => 1,
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            _ => return None,
        };
        SegmentSize::new(number.checked_mul(unit)?)
    }

    /// Bytes in a segment.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Bytes in a block: min(segment, 16 MiB).
    pub fn block_bytes(self) -> u64 {
        self.bytes().min(BLOCK_BYTES_MAX)
    }

    /// The first byte of the segment that holds `lsn`.
    pub fn segment_start(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 & !(self.bytes() - 1))
    }

    /// The first byte of the block that holds `lsn`.
    pub fn block_start(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 & !(self.block_bytes() - 1))
    }

    /// The first byte behind the block that holds `lsn`.
    pub fn block_end(self, lsn: Lsn) -> Lsn {
        self.block_start(lsn) + self.block_bytes()
    }

    /// The offset of `lsn` in its segment.
    pub fn offset(self, lsn: Lsn) -> u32 {
        (lsn.0 & (self.bytes() - 1)) as u32
    }

    /// Segments in 4 GiB, the unit that segment names count in.
    fn per_log_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.bytes() >> 20)
    }
}

/// The text is not the name of a WAL segment of this size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a WAL segment of {1}")]
pub struct ParseSegmentError(String, SegmentSize);

/// One WAL segment: the file that holds the bytes from [`Segment::start`] on, on one timeline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Segment {
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The cluster's segment size.
    pub size: SegmentSize,
}

impl Segment {
    /// The segment that holds the byte at `lsn`.
    pub fn holding(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Segment {
        Segment { timeline, start: size.segment_start(lsn), size }
    }

    /// The first byte behind it.
    pub fn end(self) -> Lsn {
        self.start + self.size.bytes()
    }

    /// The segment that follows on the same timeline.
    pub fn next(self) -> Segment {
        Segment { start: self.end(), ..self }
    }

    /// The 24 hexadecimal digits of the file name: timeline, log id, segment (`XLogFileName` in `xlog_internal.h`).
    pub fn name(self) -> String {
        let number = self.start.0 / self.size.bytes();
        format!("{:08X}{:08X}{:08X}", self.timeline.0, number / self.size.per_log_id(), number % self.size.per_log_id())
    }

    /// Reads a file name back.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Segment, ParseSegmentError> {
        let bad = || ParseSegmentError(name.to_owned(), size);
        let digits = name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        if !digits {
            return Err(bad());
        }
        let number = |part: &str| u64::from_str_radix(part, 16).map_err(|_| bad());
        let (timeline, log_id, rest) = (number(&name[..8])?, number(&name[8..16])?, number(&name[16..])?);
        if timeline == 0 || rest >= size.per_log_id() {
            return Err(bad());
        }
        let start = Lsn((log_id << 32) + rest * size.bytes());
        Ok(Segment { timeline: TimelineId(timeline as u32), start, size })
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Bytes `[start, end)` of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct WalRange {
    /// The timeline whose files hold the bytes.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
}

impl WalRange {
    /// Bytes in the range.
    pub fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// True if every byte of `other` lies in here.
    pub fn contains(self, other: WalRange) -> bool {
        self.timeline == other.timeline && self.start <= other.start && other.end <= self.end
    }

    /// True if the range lies within one block and is not empty: what one object may hold.
    pub fn fits_one_block(self, size: SegmentSize) -> bool {
        self.start < self.end && self.end <= size.block_end(self.start)
    }

    /// True if the range is exactly one block.
    pub fn is_whole_block(self, size: SegmentSize) -> bool {
        self.start == size.block_start(self.start) && self.end == size.block_end(self.start)
    }
}

impl fmt::Display for WalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} on timeline {}", self.start, self.end, self.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        prop_oneof![Just(1u64 << 20), Just(16 << 20), Just(64 << 20), Just(1 << 30)]
            .prop_map(|bytes| SegmentSize::new(bytes).unwrap_or(SegmentSize::DEFAULT))
    }

    proptest! {
        #[test]
        fn every_segment_name_survives_being_written_and_read(size in sizes(), lsn in 0u64..u64::MAX / 2, timeline in 1u32..) {
            let segment = Segment::holding(TimelineId(timeline), Lsn(lsn), size);
            prop_assert!(segment.start <= Lsn(lsn) && Lsn(lsn) < segment.end());
            prop_assert_eq!(Segment::parse(&segment.name(), size), Ok(segment));
        }

        #[test]
        fn blocks_tile_segments(size in sizes(), lsn in 0u64..u64::MAX / 2) {
            let lsn = Lsn(lsn);
            prop_assert!(size.block_start(lsn) <= lsn && lsn < size.block_end(lsn));
            prop_assert!(size.segment_start(lsn) <= size.block_start(lsn));
            prop_assert!(size.block_end(lsn) <= size.segment_start(lsn) + size.bytes());
            prop_assert_eq!(size.bytes() % size.block_bytes(), 0);
            prop_assert_eq!(size.segment_start(lsn) + u64::from(size.offset(lsn)), lsn);
        }
    }

    #[test]
    fn names_are_postgresql_names() {
        let size = SegmentSize::DEFAULT;
        let segment = Segment::holding(TimelineId(1), Lsn(0x16_B374_D848), size);
        assert_eq!(segment.name(), "0000000100000016000000B3");
        for name in ["000000010000001600000100", "00000000000000160000000B", "0000000100000016000000b3", "00000001"] {
            assert!(Segment::parse(name, size).is_err(), "{name} was read as a segment");
        }
    }

    #[test]
    fn segment_sizes_are_read_as_the_server_prints_them() {
        for (text, bytes) in [("1MB", 1u64 << 20), ("16MB", 16 << 20), ("64MB", 64 << 20), ("1GB", 1 << 30)] {
            assert_eq!(SegmentSize::parse_setting(text).map(SegmentSize::bytes), Some(bytes));
        }
        for text in ["", "16", "3MB", "2GB", "16mb", "MB"] {
            assert_eq!(SegmentSize::parse_setting(text), None, "{text:?} was read as a segment size");
        }
    }
}
