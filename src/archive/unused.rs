//! What a switch to the next segment leaves unused, as zeros. Pure.
//!
//! PostgreSQL writes zeros there (`xlog.c`, `CopyXLogRecordToWAL`). A standby may send something else: with the switch
//! replayed its position is the end of the segment, and it sends the file up to there although the zeros have not come
//! yet (`walsender.c`, `GetStandbyFlushRecPtr`), so that one sees pages from before the file was recycled. Bytes of one
//! range must be the same whoever sent them.

use super::open_block::{OpenBlock, Seen};
use crate::error::Result;
use crate::wal::{Lsn, PAGE_BYTES, RecordKind, RecordWalker, SegmentSize};

/// So much of a page's header tells where the page belongs: `xlp_pageaddr` (`xlog_internal.h`).
const ADDRESS: std::ops::Range<usize> = 8..16;

/// Looks at the pages of a stream as they come.
#[derive(Debug)]
pub(super) struct Unused {
    /// Everything before was looked at.
    seen: Lsn,
    /// Unused up to here.
    until: Lsn,
}

impl Unused {
    /// For a stream from `start` on, the first byte of a block.
    pub(super) fn new(start: Lsn) -> Unused {
        Unused { seen: start, until: start }
    }

    /// Takes a block, of which the bytes from `start` on are here, and clears those that came since the last call and are
    /// unused. What cannot be recognised is left alone.
    ///
    /// # Errors
    /// If the block cannot be read any more, which nothing but a defect of ours brings about.
    pub(super) fn clear(&mut self, size: SegmentSize, start: Lsn, block: &mut OpenBlock) -> Result<()> {
        let end = start + block.len() as u64;
        let at = |lsn: Lsn| (lsn - start) as usize;
        loop {
            self.seen = self.seen.max(start);
            if self.seen >= end {
                return Ok(());
            }
            let unused = self.until.min(end);
            if self.seen < unused {
                block.clear(at(self.seen), at(unused));
                self.seen = unused;
            }
            let page = Lsn(self.seen.0.next_multiple_of(PAGE_BYTES));
            if page + ADDRESS.end as u64 > end {
                return Ok(());
            }
            self.seen = match is_of_its_place(page, block.slices(at(page), at(page) + ADDRESS.end))? {
                true => page + 1,
                false if is_behind_switch(size, start, block.slices(0, at(page)))? => {
                    self.until = size.segment_start(page) + size.bytes();
                    page
                }
                // Whatever it is, the rest of the block is not looked at.
                false => size.block_end(page),
            };
        }
    }
}

/// True if the beginning of a page's header says so, or is zeros. A page lies in one piece of a block.
fn is_of_its_place<'a>(page: Lsn, header: impl Iterator<Item = Result<Seen<'a>>>) -> Result<bool> {
    for header in header {
        let header = header?;
        let is_one = header.len() < ADDRESS.end
            || header[ADDRESS] == page.0.to_le_bytes()
            || header.iter().all(|byte| *byte == 0);
        if !is_one {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True if the last record that begins in the `bytes` from `start` on is a switch to the next segment.
fn is_behind_switch<'a>(size: SegmentSize, start: Lsn, slices: impl Iterator<Item = Result<Seen<'a>>>) -> Result<bool> {
    let (mut walker, mut end, mut last) = (RecordWalker::new(size, start), start, None);
    for bytes in slices {
        let bytes = bytes?;
        if walker.push(end, &bytes, &mut |record| last = Some(record)).is_err() {
            return Ok(false);
        }
        end = end + bytes.len() as u64;
    }
    Ok(last.is_some_and(|record| record.kind == RecordKind::Switch && record.end > end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT_BYTES: u64 = 1 << 20;
    const START: Lsn = Lsn(7 * SEGMENT_BYTES);

    /// A segment of PostgreSQL 15 with one record in it, and then zeros.
    fn segment(info: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0xD110u16.to_le_bytes());
        bytes.extend_from_slice(&2u16.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&START.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&(SEGMENT_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        let mut record = 24u32.to_le_bytes().to_vec();
        record.extend_from_slice(&[0; 12]);
        record.extend_from_slice(&[info, 0, 0, 0]);
        let checksum = crc32c::crc32c(&record);
        record.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&record);
        bytes.resize(SEGMENT_BYTES as usize, 0);
        bytes
    }

    /// With pages from before the file was recycled in the place of what comes behind the first `pages`.
    fn stale(mut segment: Vec<u8>, pages: usize) -> Vec<u8> {
        let first = pages * PAGE_BYTES as usize;
        for (index, page) in segment[first..].chunks_mut(PAGE_BYTES as usize).enumerate() {
            page.fill(0xAB);
            let address = START.0 - 3 * SEGMENT_BYTES + first as u64 + index as u64 * PAGE_BYTES;
            page[ADDRESS].copy_from_slice(&address.to_le_bytes());
        }
        segment
    }

    fn clear(bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
        let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
        let (mut unused, mut block) = (Unused::new(START), OpenBlock::new(SEGMENT_BYTES, None));
        let mut rest = bytes;
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            block.extend(now);
            unused.clear(size, START, &mut block).unwrap();
            rest = later;
        }
        block.take().iter().flat_map(|piece| piece.bytes().unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// However it comes, and however much of it the standby had.
        #[test]
        fn what_a_standby_had_in_the_place_of_zeros_is_cleared(
            pages in 1usize..128, pieces in prop::collection::vec(1usize..30, 1..8),
        ) {
            let switched = segment(0x40);
            let pieces: Vec<usize> = pieces.into_iter().map(|pages| pages * PAGE_BYTES as usize).collect();
            prop_assert!(clear(&stale(switched.clone(), pages), &pieces) == switched);
        }
    }

    #[test]
    fn what_is_not_behind_a_switch_is_left_alone() {
        let pieces = [PAGE_BYTES as usize, 3 * PAGE_BYTES as usize];
        for bytes in [stale(segment(0x20), 1), vec![0xCD; SEGMENT_BYTES as usize], segment(0x40)] {
            assert!(clear(&bytes, &pieces) == bytes);
        }
    }
}
