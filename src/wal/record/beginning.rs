//! The first bytes of a segment: whether WAL goes on there or was begun anew, and what of it lies in front of the first record.

use super::Lsn;
use super::main_data::{u32_at, u64_at};
use super::page::{LONG_HEADER_BYTES, Page};
use crate::wal::SegmentSize;

/// True if the segment that begins at `start` with `bytes` begins WAL that nothing precedes: its first record names no
/// record before it. `initdb` writes one like that, and `pg_resetwal` (`WriteEmptyXLOG`).
pub fn begins_anew(size: SegmentSize, start: Lsn, bytes: &[u8]) -> bool {
    let header = bytes.get(..LONG_HEADER_BYTES).and_then(|header| Page::read(header, start, size).ok());
    let Some(Page::Header(header)) = header else { return false };
    let (length, previous) = (u32_at(bytes, LONG_HEADER_BYTES), u64_at(bytes, LONG_HEADER_BYTES + 8));
    !header.continuation && length.is_some_and(|length| length > 0) && previous == Some(0)
}

/// Where the last record ends at the latest that begins before `start`, where a record begins: in front of the first one of a segment lies
/// nothing but the segment's header, for had a record gone on from the segment before, its rest would lie there.
pub fn end_of_records_before(size: SegmentSize, start: Lsn) -> Lsn {
    match size.offset(start) as usize == LONG_HEADER_BYTES {
        true => size.segment_start(start),
        false => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn(0x300_0000);

    /// A long page header of PostgreSQL 15 on timeline 1, and the beginning of a record.
    fn segment(flags: u16, previous: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xD110_u16.to_le_bytes());
        bytes.extend((flags | 0x2).to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(START.0.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend((16_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes.extend(114_u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(previous.to_le_bytes());
        bytes
    }

    #[test]
    fn wal_begins_anew_where_the_first_record_names_none_before_it() {
        let size = SegmentSize::DEFAULT;
        assert!(begins_anew(size, START, &segment(0, 0)));
        assert!(!begins_anew(size, START, &segment(0, START.0 - 100)), "it goes on");
        assert!(!begins_anew(size, START, &segment(1, 0)), "the rest of a record comes first");
        assert!(!begins_anew(size, Lsn(START.0 * 2), &segment(0, 0)), "another segment's bytes");
        assert!(!begins_anew(size, START, &segment(0, 0)[..50]), "too little to say");
        assert!(!begins_anew(size, START, &[]));
    }

    #[test]
    fn in_front_of_a_segments_first_record_there_is_none() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(end_of_records_before(size, START + 40), START);
        for elsewhere in [START + 48, START + 8192 + 24, START + 8192 + 40] {
            assert_eq!(end_of_records_before(size, elsewhere), elsewhere);
        }
    }
}
