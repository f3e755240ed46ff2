//! The truth: what every server's bytes are, a function of the seed, the branch and the position.
//!
//! A branch is what one server wrote since it left another's way: by a promotion, with a timeline of its own, or because it
//! was rolled back to an older state, on the same timeline. The bytes are WAL as PostgreSQL 17 writes it, page by page and
//! record by record, so that whoever reads records (plans of restores, the link across a border) has some to read.

use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

/// The smallest that PostgreSQL takes: many segments go by in a short run.
pub const SEGMENT_BYTES: u64 = 1 << 20;

pub const PAGE_BYTES: u64 = 8192;
const CHUNK_BYTES: u64 = 1 << 20;
const CHUNKS_KEPT: usize = 64;
const MAGIC: u16 = 0xD116;

/// Shortest record: a header, the head of its data, and three bytes.
const RECORD_BYTES_MIN: u64 = 32;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BranchId(pub usize);

/// Where a server left which other's way.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    pub timeline: TimelineId,
    pub parent: Option<BranchId>,
    pub begin: Lsn,
}

#[derive(Debug)]
pub struct Wal {
    pub size: SegmentSize,
    seed: u64,
    noise: Vec<u8>,
    long: OnceLock<LongRecord>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    branches: Vec<Branch>,
    /// Views of branches, the oldest first.
    chunks: VecDeque<(BranchId, u64, Arc<Vec<u8>>)>,
}

/// One record over so many pages, of which it has all.
#[derive(Debug)]
struct LongRecord {
    pages: Range<u64>,
    bytes: Vec<u8>,
}

/// Who wrote which stretch.
pub type Piece = (BranchId, Lsn, Lsn);

impl Wal {
    pub fn new(seed: u64, size: SegmentSize) -> Wal {
        let mut noise = vec![0; 2 * PAGE_BYTES as usize];
        fastrand::Rng::with_seed(seed ^ 0x4015_E000).fill(&mut noise);
        let wal = Wal { size, seed, noise, long: OnceLock::new(), inner: Mutex::default() };
        wal.branch(TimelineId(1), None, Lsn(0));
        wal
    }

    pub fn branch(&self, timeline: TimelineId, parent: Option<BranchId>, begin: Lsn) -> BranchId {
        let mut inner = self.inner.lock().unwrap();
        inner.branches.push(Branch { timeline, parent, begin });
        BranchId(inner.branches.len() - 1)
    }

    /// From `start` on, the first byte of a segment of which nothing was asked yet, there is one record over so many whole pages.
    pub fn begin_long_record(&self, branch: BranchId, start: Lsn, pages: u64) {
        let first = start.0 / PAGE_BYTES;
        let pages = first..first + pages;
        let previous = self.starts(&self.inner.lock().unwrap().branches, branch, first - 1).last().copied();
        let mut bytes = vec![0; pages.clone().map(|page| self.content_bytes(page)).sum()];
        self.fill_record(&mut bytes, previous.unwrap_or(0), self.mix(branch, first));
        self.long.set(LongRecord { pages, bytes }).expect("there is one already");
    }

    fn long_at(&self, page: u64) -> Option<&LongRecord> {
        self.long.get().filter(|long| long.pages.contains(&page))
    }

    pub fn get(&self, branch: BranchId) -> Branch {
        self.inner.lock().unwrap().branches[branch.0]
    }

    pub fn timeline(&self, branch: BranchId) -> TimelineId {
        self.get(branch).timeline
    }

    /// Every branch there is.
    pub fn branches(&self) -> Vec<BranchId> {
        (0..self.inner.lock().unwrap().branches.len()).map(BranchId).collect()
    }

    /// The branches from `branch` back to the first.
    pub fn lineage(&self, branch: BranchId) -> Vec<(BranchId, Branch)> {
        let inner = self.inner.lock().unwrap();
        let next = |of: &(BranchId, Branch)| of.1.parent.map(|parent| (parent, inner.branches[parent.0]));
        std::iter::successors(Some((branch, inner.branches[branch.0])), next).collect()
    }

    /// Who wrote the bytes of `branch`'s files: before its begin, its parent.
    pub fn pieces(&self, branch: BranchId, start: Lsn, end: Lsn) -> Vec<Piece> {
        let inner = self.inner.lock().unwrap();
        let mut pieces = Vec::new();
        let (mut owner, mut end) = (branch, end);
        while start < end {
            let branch = inner.branches[owner.0];
            if branch.begin < end {
                pieces.push((owner, branch.begin.max(start), end));
                end = branch.begin.max(start);
            }
            owner = branch.parent.unwrap_or(owner);
        }
        pieces.reverse();
        pieces
    }

    /// The bytes of `branch`'s files.
    pub fn bytes(&self, branch: BranchId, start: Lsn, end: Lsn) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((end - start) as usize);
        let mut inner = self.inner.lock().unwrap();
        let mut position = start.0;
        while position < end.0 {
            let number = position / CHUNK_BYTES;
            let (base, upto) = (number * CHUNK_BYTES, ((number + 1) * CHUNK_BYTES).min(end.0));
            let chunk = self.chunk(&mut inner, branch, number);
            bytes.extend_from_slice(&chunk[(position - base) as usize..(upto - base) as usize]);
            position = upto;
        }
        bytes
    }

    fn chunk(&self, inner: &mut Inner, branch: BranchId, number: u64) -> Arc<Vec<u8>> {
        if let Some((.., chunk)) = inner.chunks.iter().find(|(of, at, _)| (*of, *at) == (branch, number)) {
            return chunk.clone();
        }
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        let first = number * CHUNK_BYTES / PAGE_BYTES;
        for (index, page) in bytes.chunks_exact_mut(PAGE_BYTES as usize).enumerate() {
            self.fill(&inner.branches, branch, first + index as u64, page);
        }
        let chunk = Arc::new(bytes);
        inner.chunks.push_back((branch, number, chunk.clone()));
        if inner.chunks.len() > CHUNKS_KEPT {
            inner.chunks.pop_front();
        }
        chunk
    }

    /// The last border of records at or before `lsn`: where a server may begin to write something else.
    pub fn border_before(&self, branch: BranchId, lsn: Lsn) -> Lsn {
        let page = lsn.0 / PAGE_BYTES;
        let starts = self.starts(&self.inner.lock().unwrap().branches, branch, page);
        starts.into_iter().rev().map(Lsn).find(|start| *start <= lsn).unwrap_or(Lsn(page * PAGE_BYTES))
    }

    /// The first border of records at or behind `lsn`.
    pub fn border_after(&self, branch: BranchId, lsn: Lsn) -> Lsn {
        let page = lsn.0 / PAGE_BYTES;
        if lsn.0 == page * PAGE_BYTES {
            return lsn;
        }
        let starts = self.starts(&self.inner.lock().unwrap().branches, branch, page);
        starts.into_iter().map(Lsn).find(|start| *start >= lsn).unwrap_or(Lsn((page + 1) * PAGE_BYTES))
    }

    /// Where records begin on a page.
    fn starts(&self, branches: &[Branch], branch: BranchId, page: u64) -> Vec<u64> {
        let (start, end) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        let of = branches[branch.0];
        match of.parent {
            Some(parent) if of.begin.0 > start => {
                let mut starts = self.starts(branches, parent, page);
                if of.begin.0 < end {
                    starts.retain(|start| *start < of.begin.0);
                    starts.push(of.begin.0);
                }
                starts
            }
            _ if let Some(long) = self.long_at(page) => {
                let is_first = page == long.pages.start;
                is_first.then_some(start + self.header_bytes(page)).into_iter().collect()
            }
            _ => {
                let mut chance = self.mix(branch, page);
                let count = 1 + chance % 4;
                let first = start + self.header_bytes(page);
                let share = ((end - first) / count) & !7;
                let mut starts = vec![first];
                for index in 1..count {
                    chance = chance.rotate_left(17).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let shift = ((chance >> 32) % (share - RECORD_BYTES_MIN)) & !7;
                    starts.push(first + (index - 1) * share + RECORD_BYTES_MIN + shift);
                }
                starts
            }
        }
    }

    fn header_bytes(&self, page: u64) -> u64 {
        if self.size.offset(Lsn(page * PAGE_BYTES)) == 0 { 40 } else { 24 }
    }

    fn content_bytes(&self, page: u64) -> usize {
        (PAGE_BYTES - self.header_bytes(page)) as usize
    }

    fn mix(&self, branch: BranchId, page: u64) -> u64 {
        let mixed = (self.seed ^ page.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add((branch.0 as u64) << 40);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    }

    fn fill(&self, branches: &[Branch], branch: BranchId, page: u64, bytes: &mut [u8]) {
        let (start, of) = (page * PAGE_BYTES, branches[branch.0]);
        let from = match of.parent {
            Some(parent) if of.begin.0 > start => {
                self.fill(branches, parent, page, bytes);
                of.begin.0
            }
            _ => {
                self.fill_header(of, page, bytes);
                start
            }
        };
        if let Some(long) = self.long_at(page) {
            return self.fill_part(long, page, bytes);
        }
        let starts = self.starts(branches, branch, page);
        let before = (0..page).rev().find_map(|page| self.starts(branches, branch, page).last().copied());
        let mut previous = before.unwrap_or(0);
        for (index, &at) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(start + PAGE_BYTES);
            if at >= from {
                let chance = self.mix(branch, at);
                self.fill_record(&mut bytes[(at - start) as usize..(end - start) as usize], previous, chance);
            }
            previous = at;
        }
    }

    fn fill_header(&self, of: Branch, page: u64, bytes: &mut [u8]) {
        let is_long = self.header_bytes(page) == 40;
        bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2..4].copy_from_slice(&(u16::from(is_long) * 2).to_le_bytes());
        bytes[4..8].copy_from_slice(&of.timeline.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&(page * PAGE_BYTES).to_le_bytes());
        if is_long {
            bytes[32..36].copy_from_slice(&(self.size.bytes() as u32).to_le_bytes());
            bytes[36..40].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        }
    }

    /// The part of a record that lies on this page (`xlog_internal.h`, `XLP_FIRST_IS_CONTRECORD` and `xlp_rem_len`).
    fn fill_part(&self, long: &LongRecord, page: u64, bytes: &mut [u8]) {
        let before: usize = (long.pages.start..page).map(|page| self.content_bytes(page)).sum();
        let rest = &long.bytes[before..];
        if before > 0 {
            bytes[2] |= 1;
            bytes[16..20].copy_from_slice(&(rest.len() as u32).to_le_bytes());
        }
        bytes[self.header_bytes(page) as usize..].copy_from_slice(&rest[..self.content_bytes(page)]);
    }

    /// One record over the whole of `bytes`. In small segments it is noise, the quickest to compress and to read back; in
    /// large ones, of which the memory would not hold many, mostly zeros.
    fn fill_record(&self, bytes: &mut [u8], previous: u64, chance: u64) {
        const HEADER: usize = 24;
        const MAIN_DATA_LONG: u8 = 254;
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        bytes[4..8].copy_from_slice(&(chance as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&previous.to_le_bytes());
        // A heap record, of which no more is known.
        bytes[16..20].copy_from_slice(&[0, 10, 0, 0]);
        bytes[HEADER] = MAIN_DATA_LONG;
        bytes[HEADER + 1..HEADER + 5].copy_from_slice(&(total - HEADER as u32 - 5).to_le_bytes());
        let data = &mut bytes[HEADER + 5..];
        let noise = &self.noise[(chance % PAGE_BYTES) as usize..];
        let noisy = if self.size.bytes() > SEGMENT_BYTES { data.len().min(64) } else { data.len() };
        data[..noisy].chunks_mut(PAGE_BYTES as usize).for_each(|part| part.copy_from_slice(&noise[..part.len()]));
        let stamp = noisy.min(8);
        data[..stamp].iter_mut().zip(chance.to_le_bytes()).for_each(|(byte, chance)| *byte ^= chance);
        data[noisy..].fill(0);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[HEADER..]), &bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[test]
fn invented_wal_is_wal() {
    use seawall::wal::RecordWalker;
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    let wal = Wal::new(5, size);
    let first = BranchId(0);
    let switch = wal.border_before(first, Lsn(4 * SEGMENT_BYTES + 12_345));
    let second = wal.branch(TimelineId(2), Some(first), switch);
    let back = wal.border_before(second, Lsn(5 * SEGMENT_BYTES + 99));
    let rolled = wal.branch(TimelineId(2), Some(second), back);
    // Whatever way a server took, its records follow one another
    let (start, end) = (Lsn(3 * SEGMENT_BYTES), Lsn(6 * SEGMENT_BYTES));
    for branch in [first, second, rolled] {
        let mut walker = RecordWalker::new(size, start);
        let mut records = 0;
        walker.push(start, &wal.bytes(branch, start, end), &mut |_| records += 1).unwrap();
        assert!(records > 500 && walker.end_of_wal().is_none(), "{records} records");
        assert_eq!(walker.next_record_lsn(), end);
    }
    // And two ways have no page in common behind where they part
    let (one, other) = (wal.bytes(second, back, end), wal.bytes(rolled, back, end));
    assert!(one.chunks(64).zip(other.chunks(64)).all(|(one, other)| one.len() < 64 || one != other));
    assert_eq!(wal.bytes(second, start, back), wal.bytes(rolled, start, back));
    assert_eq!(wal.pieces(rolled, start, end), [(first, start, switch), (second, switch, back), (rolled, back, end)]);
}
