//! The truth: what every timeline's bytes are, a function of the seed, the timeline and the position.

use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The smallest that PostgreSQL takes: many segments go by in a short run.
pub const SEGMENT_BYTES: u64 = 1 << 20;

pub fn segment_size() -> SegmentSize {
    SegmentSize::new(SEGMENT_BYTES).unwrap()
}

/// A timeline and where it left which parent.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    pub parent: Option<TimelineId>,
    pub begin: Lsn,
}

#[derive(Debug)]
pub struct Wal {
    seed: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    branches: BTreeMap<TimelineId, Branch>,
    segments: BTreeMap<(TimelineId, u64), Arc<Vec<u8>>>,
}

impl Wal {
    pub fn new(seed: u64) -> Wal {
        let wal = Wal { seed, inner: Mutex::default() };
        wal.branch(TimelineId(1), None, Lsn(0));
        wal
    }

    pub fn branch(&self, timeline: TimelineId, parent: Option<TimelineId>, begin: Lsn) {
        self.inner.lock().unwrap().branches.insert(timeline, Branch { parent, begin });
    }

    pub fn branches(&self) -> BTreeMap<TimelineId, Branch> {
        self.inner.lock().unwrap().branches.clone()
    }

    /// The timelines from `timeline` back to the first.
    pub fn lineage(&self, timeline: TimelineId) -> Vec<(TimelineId, Branch)> {
        let branches = self.branches();
        let mut lineage = Vec::new();
        let mut next = Some(timeline);
        while let Some(timeline) = next {
            let branch = branches[&timeline];
            lineage.push((timeline, branch));
            next = branch.parent;
        }
        lineage
    }

    /// The bytes of `timeline`'s files: before its begin, its parent's.
    pub fn bytes(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((end - start) as usize);
        let mut inner = self.inner.lock().unwrap();
        let mut position = start.0;
        while position < end.0 {
            let mut owner = timeline;
            let mut upto = end.0;
            while position < inner.branches[&owner].begin.0 {
                let branch = inner.branches[&owner];
                upto = upto.min(branch.begin.0);
                owner = branch.parent.unwrap();
            }
            let number = position / SEGMENT_BYTES;
            let upto = upto.min((number + 1) * SEGMENT_BYTES);
            let seed = self.seed;
            let segment =
                inner.segments.entry((owner, number)).or_insert_with(|| Arc::new(segment(seed, owner, number))).clone();
            let base = number * SEGMENT_BYTES;
            bytes.extend_from_slice(&segment[(position - base) as usize..(upto - base) as usize]);
            position = upto;
        }
        bytes
    }
}

/// In each page half random bytes and half one random word again and again: quick to compress, and no two pages alike.
fn segment(seed: u64, owner: TimelineId, number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed ^ (u64::from(owner.0) << 40) ^ number.wrapping_mul(0x9E37_79B9));
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    for page in bytes.chunks_exact_mut(8192) {
        let word = random.u64(..).to_le_bytes();
        let (noise, rest) = page.split_at_mut(4096);
        random.fill(noise);
        rest.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
    }
    bytes
}
