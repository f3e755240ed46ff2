//! Memory that several archivers of one process have in common, and what each has for itself.
//!
//! The invariant: **whoever holds no more than its own gets it, whatever the others hold.** Beyond that it takes of what is common as long
//! as it has no more of it than it leaves: of any number of archivers whose stores hang, each has the same part in the end, and
//! as much as one of them has is left for whoever comes (A. K. Choudhury, E. L. Hahne: "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998, with the factor 1).

use super::open_block::OpenBlock;
use crate::repository::{Encoders, WAL_FRAME_BYTES, wal_held_bytes_max};
use crate::runtime;
use crate::wal::BLOCK_BYTES_MAX;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So much of each kind of memory an archiver has for itself beside what is common, in bytes: tails of a server that writes little.
pub(super) const OWN_BYTES: u64 = 1 << 20;

/// Memory that nobody holds any more is kept for others up to so much. What is beyond goes back to the system.
const SPARE_BYTES_MAX: usize = 16 << 20;

/// The part that is common. Clones are one.
#[derive(Clone, Debug)]
pub struct CommonMemory(Arc<Common>);

#[derive(Debug)]
struct Common {
    bytes_max: u64,
    /// All of them, beyond their own.
    held: Mutex<u64>,
    /// Memory that is in nobody's hands, to be used again.
    spare: Mutex<Vec<Vec<u8>>>,
    /// What compresses, with the same of frames, as WAL is stored in them: as many as can be at work at once, and those that wait
    /// for a turn beside them.
    encoders: Encoders,
}

impl CommonMemory {
    /// Of so many bytes.
    pub fn new(bytes_max: u64) -> CommonMemory {
        let encoders = Encoders::new(2 * runtime::processors(), SPARE_BYTES_MAX / WAL_FRAME_BYTES);
        CommonMemory(Arc::new(Common { bytes_max, held: Mutex::new(0), spare: Mutex::default(), encoders }))
    }

    /// What so many archivers take together at most that have `bytes_max` in common, in bytes: each its own, and for one object at a
    /// time whatever that becomes; and what is kept to be used again.
    pub fn archivers_bytes_max(bytes_max: u64, archivers: usize) -> u64 {
        let each = OpenBlock::own_bytes(BLOCK_BYTES_MAX) + OWN_BYTES + wal_held_bytes_max(BLOCK_BYTES_MAX);
        bytes_max + 2 * SPARE_BYTES_MAX as u64 + archivers as u64 * each
    }

    fn held(&self) -> MutexGuard<'_, u64> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if somebody who has `before` could have `wanted`, beside what others have.
    fn is_free(&self, held: u64, before: u64, wanted: u64) -> bool {
        let others = held.saturating_sub(before);
        wanted <= before || wanted <= self.0.bytes_max.saturating_sub(others + wanted)
    }

    /// Somebody has `after` instead of `before` now, if `wanted` could be had.
    fn change(&self, before: u64, wanted: u64, after: u64) -> bool {
        let mut held = self.held();
        let is_free = self.is_free(*held, before, wanted);
        *held = if is_free { held.saturating_sub(before) + after } else { *held };
        is_free
    }

    /// What compresses for all of them: each has tables and memory of its own, which a hundred clusters need not have.
    pub(super) fn encoders(&self) -> Encoders {
        self.0.encoders.clone()
    }

    /// As it was given back; another archiver may have it.
    pub(super) fn keep_piece(&self, piece: Vec<u8>) {
        let mut spare = self.spare();
        if spare.iter().map(Vec::capacity).sum::<usize>() + piece.capacity() <= SPARE_BYTES_MAX {
            spare.push(piece);
        }
    }

    /// Memory for so many bytes, if there is some to be used again.
    pub(super) fn take_piece(&self, bytes: usize) -> Option<Vec<u8>> {
        let mut spare = self.spare();
        let place = spare.iter().position(|piece| piece.capacity() == bytes)?;
        Some(spare.swap_remove(place))
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One kind of memory of one archiver: some of its own, and some of what is common.
#[derive(Debug)]
pub(super) struct Share {
    own_bytes: u64,
    bytes_max: u64,
    common: Option<CommonMemory>,
    held: Mutex<Held>,
}

/// What it holds.
#[derive(Clone, Copy, Default, Debug)]
struct Held {
    /// Of its own at first.
    bytes: u64,
    /// Whatever was free: none of it counts against its own.
    beyond: u64,
}

impl Held {
    fn all(self) -> u64 {
        self.bytes + self.beyond
    }
}

impl Share {
    /// At most `bytes_max`: all of it its own where nothing is common, and else `own_bytes`.
    pub(super) fn new(own_bytes: u64, bytes_max: u64, common: Option<&CommonMemory>) -> Share {
        let own_bytes = if common.is_some() { own_bytes.min(bytes_max) } else { bytes_max };
        Share { own_bytes, bytes_max, common: common.cloned(), held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much it holds.
    pub(super) fn held(&self) -> u64 {
        self.lock().all()
    }

    /// So much of it is of what is common.
    fn common_of(&self, held: Held) -> u64 {
        held.bytes.saturating_sub(self.own_bytes) + held.beyond
    }

    /// True if it holds `bytes` more now, and could hold `left` more than that.
    pub(super) fn take(&self, bytes: u64, left: u64) -> bool {
        let mut held = self.lock();
        let after = Held { bytes: held.bytes + bytes, ..*held };
        let wanted = Held { bytes: after.bytes + left, ..*held };
        let change =
            |common: &CommonMemory| common.change(self.common_of(*held), self.common_of(wanted), self.common_of(after));
        let fits = wanted.all() <= self.bytes_max && self.common.as_ref().is_none_or(change);
        *held = if fits { after } else { *held };
        fits
    }

    /// True if `bytes` more could be held if `given_back` were.
    pub(super) fn would_fit(&self, bytes: u64, given_back: u64) -> bool {
        let held = self.lock();
        let after = Held { bytes: held.bytes.saturating_sub(given_back) + bytes, ..*held };
        let is_free = |common: &CommonMemory| {
            let all = *common.held();
            common.is_free(all, self.common_of(*held), self.common_of(after))
        };
        after.all() <= self.bytes_max && self.common.as_ref().is_none_or(is_free)
    }

    /// Holds `bytes` more, free or not.
    pub(super) fn take_anyway(&self, bytes: u64) {
        let mut held = self.lock();
        let after = Held { bytes: held.bytes + bytes, ..*held };
        self.change(&mut held, after);
    }

    /// Holds `bytes` more, free or not, and what is its own stays free.
    pub(super) fn take_beyond(&self, bytes: u64) {
        let mut held = self.lock();
        let after = Held { beyond: held.beyond + bytes, ..*held };
        self.change(&mut held, after);
    }

    /// Holds `bytes` less.
    pub(super) fn give_back(&self, bytes: u64) {
        let mut held = self.lock();
        let after = Held { bytes: held.bytes.saturating_sub(bytes), ..*held };
        self.change(&mut held, after);
    }

    /// Holds `bytes` less of what it took beyond.
    pub(super) fn give_back_beyond(&self, bytes: u64) {
        let mut held = self.lock();
        let after = Held { beyond: held.beyond.saturating_sub(bytes), ..*held };
        self.change(&mut held, after);
    }

    fn change(&self, held: &mut Held, after: Held) {
        if let Some(common) = &self.common {
            let mut all = common.held();
            *all = all.saturating_sub(self.common_of(*held)) + self.common_of(after);
        }
        *held = after;
    }
}

impl Drop for Share {
    /// An archiver that has ended holds nothing.
    fn drop(&mut self) {
        self.give_back(u64::MAX);
        self.give_back_beyond(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: u64 = 10;
    const MOST: u64 = 80;
    const COMMON: u64 = 100;

    proptest! {
        /// Whatever several take and give back in whatever order.
        #[test]
        fn whoever_holds_no_more_than_its_own_gets_it(
            steps in prop::collection::vec((0usize..5, any::<bool>(), 0u64..60, 0u64..20), 0..200),
        ) {
            let common = CommonMemory::new(COMMON);
            let shares: Vec<Share> = (0..5).map(|_| Share::new(OWN, MOST, Some(&common))).collect();
            for (which, takes, bytes, left) in steps {
                let share = &shares[which];
                let held = share.held();
                if !takes {
                    share.give_back(bytes.min(held));
                    continue;
                }
                let took = share.take(bytes, left);
                prop_assert!(took || held + bytes + left > OWN, "its own was refused: {bytes} beside {held}");
                prop_assert_eq!(share.held(), if took { held + bytes } else { held });
                prop_assert!(share.held() <= MOST);
                let beyond: u64 = shares.iter().map(|share| share.held().saturating_sub(OWN)).sum();
                prop_assert_eq!(*common.held(), beyond);
                prop_assert!(beyond < COMMON, "all that is common is held");
            }
            drop(shares);
            prop_assert_eq!(*common.held(), 0);
        }
    }

    #[test]
    fn any_number_that_takes_all_it_gets_leaves_as_much_as_each_of_them_has() {
        for hogs in 1..30u64 {
            let common = CommonMemory::new(1000);
            let shares: Vec<Share> = (0..hogs).map(|_| Share::new(OWN, u64::MAX, Some(&common))).collect();
            // Given stores that hang, whose archivers take what they get, by turns
            while shares.iter().filter(|share| share.take(1, 0)).count() > 0 {}
            // Then each has about the same, and one that comes has its own and as much again
            let each = 1000 / (hogs + 1);
            for share in &shares {
                let beyond = share.held() - OWN;
                assert!(beyond.abs_diff(each) <= 1, "{beyond} instead of {each}, of {hogs}");
            }
            let comes = Share::new(OWN, u64::MAX, Some(&common));
            assert!(comes.take(OWN + each / 2, 0), "{hogs} leave too little");
        }
    }

    #[test]
    fn where_nothing_is_common_all_is_its_own() {
        let share = Share::new(OWN, MOST, None);
        assert!(share.take(MOST - 5, 5) && !share.take(5, 1) && share.take(5, 0) && !share.take(1, 0));
        assert!(share.would_fit(3, 3) && !share.would_fit(4, 3));
        share.take_anyway(7);
        assert_eq!(share.held(), MOST + 7);
        share.give_back(MOST);
        assert_eq!(share.held(), 7);
    }
}
