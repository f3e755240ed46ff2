//! The memory of what is on its way into the store, as it is stored: one number, and permits that add up to it.
//!
//! What an archiver holds of WAL is of three kinds, each with a bound of its own, whatever the WAL is made of:
//!
//! * As it came: pieces, of which there are so many and no more (`open_block.rs`). What jobs want is shared, not copied.
//! * As it will be stored: this budget. A job begins to encode once there is a permit for the most that its bytes can
//!   become, and keeps one for what they have become until they are stored. What is compressed ahead of its time takes what
//!   jobs leave, and gives it back when they need it.
//! * Frames that are kept to be used again: they were one of the second kind before (`codec/buffers.rs`).
//! * Where several archivers have memory in common, what pieces become takes their place there, and no permit here; jobs store
//!   it as it lies.
//!
//! Where there is no permit, pieces are not encoded and not given back, and so reading stops. Nothing stops for ever: whoever
//! has a permit needs no second one to be stored, and a job that runs alone gets what it needs in any case. So it is too where several
//! archivers have most of it in common (`share.rs`).

use super::share::{CommonMemory, OWN_BYTES, Share};
use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// So many bytes, of which permits are parts.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    share: Share,
    given_back: Notify,
    exception: Arc<Semaphore>,
}

/// Part of a budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    bytes: u64,
    /// So many of them were had beyond what was free: they leave to others, and to its own archiver's tails, what is theirs.
    beyond: u64,
    budget: Arc<Shared>,
    /// It is the one that may be had beyond the budget.
    _exception: Option<OwnedSemaphorePermit>,
}

impl Shared {
    fn give_back(&self, bytes: u64, beyond: u64) {
        self.share.give_back(bytes - beyond);
        self.share.give_back_beyond(beyond);
        self.given_back.notify_one();
    }
}

impl Budget {
    /// Of so many bytes, few of which are its own where some are common.
    pub(super) fn new(bytes_max: u64, common: Option<&CommonMemory>) -> Budget {
        let exception = Arc::new(Semaphore::new(1));
        let share = Share::new(OWN_BYTES, bytes_max, common);
        Budget(Arc::new(Shared { share, given_back: Notify::new(), exception }))
    }

    /// A permit for so many bytes, if they are free.
    pub(super) fn try_take(&self, bytes: u64) -> Option<Permit> {
        self.0.share.take(bytes, 0).then(|| self.permit(bytes, 0))
    }

    /// True if there would be a permit for so many bytes once `given_back` are.
    pub(super) fn would_fit(&self, bytes: u64, given_back: u64) -> bool {
        self.0.share.would_fit(bytes, given_back)
    }

    /// A permit for so many bytes, free or not: for whoever runs alone.
    pub(super) fn take(&self, bytes: u64) -> Permit {
        self.0.share.take_beyond(bytes);
        self.permit(bytes, bytes)
    }

    /// A permit for so many bytes, free or not, of which there is one at a time.
    pub(super) async fn take_by_exception(&self, bytes: u64) -> Permit {
        // Nobody closes it.
        let exception = self.0.exception.clone().acquire_owned().await.ok();
        let mut permit = self.take(bytes);
        permit._exception = exception;
        permit
    }

    /// A permit for nothing, which may grow.
    pub(super) fn nothing(&self) -> Permit {
        self.permit(0, 0)
    }

    /// For how many bytes there are permits.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.0.share.held()
    }

    /// Waits until something was given back. May be dropped.
    pub(super) async fn wait_for_room(&self) {
        self.0.given_back.notified().await;
    }

    fn permit(&self, bytes: u64, beyond: u64) -> Permit {
        Permit { bytes, beyond, budget: self.0.clone(), _exception: None }
    }
}

impl Permit {
    /// For so many bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if it is for so many more now, and `left` are free nevertheless.
    pub(super) fn try_grow(&mut self, bytes: u64, left: u64) -> bool {
        let fits = self.budget.share.take(bytes, left);
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// What it is for has become so many bytes.
    pub(super) fn become_bytes(&mut self, bytes: u64) {
        let (before, beyond_before) = (self.bytes, self.beyond);
        (self.bytes, self.beyond) = (bytes, beyond_before.min(bytes));
        self.budget.share.take_anyway(self.bytes - self.beyond);
        self.budget.share.take_beyond(self.beyond);
        self.budget.give_back(before, beyond_before);
    }

    /// All of it; what is left is for nothing.
    pub(super) fn take(&mut self) -> Permit {
        Permit {
            bytes: std::mem::take(&mut self.bytes),
            beyond: std::mem::take(&mut self.beyond),
            budget: self.budget.clone(),
            _exception: self._exception.take(),
        }
    }

    /// Both in one. Each must be of the same budget.
    pub(super) fn join(&mut self, mut other: Permit) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.beyond += std::mem::take(&mut other.beyond);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes, self.beyond);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        Grow(usize, u64, u64),
        Become(usize, u64),
        Join(usize, usize),
        Drop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..60).prop_map(Step::Take),
            (any::<usize>(), 0u64..30, 0u64..30).prop_map(|(which, bytes, left)| Step::Grow(which, bytes, left)),
            (any::<usize>(), 0u64..100).prop_map(|(which, percent)| Step::Become(which, percent)),
            (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Step::Join(one, other)),
            any::<usize>().prop_map(Step::Drop),
        ]
    }

    proptest! {
        /// Whatever is taken, grown, joined and given back in whatever order.
        #[test]
        fn permits_add_up_to_what_is_held_and_never_to_more_than_there_is(steps in prop::collection::vec(step(), 0..80)) {
            let budget = Budget::new(100, None);
            let mut permits: Vec<Permit> = Vec::new();
            for step in steps {
                let count = permits.len().max(1);
                match step {
                    Step::Take(bytes) => permits.extend(budget.try_take(bytes)),
                    Step::Grow(which, bytes, left) => {
                        if let Some(permit) = permits.get_mut(which % count) {
                            let grew = permit.try_grow(bytes, left);
                            prop_assert!(!grew || budget.held() + left <= 100, "less than {} is left", left);
                        }
                    }
                    Step::Become(which, percent) => {
                        if let Some(permit) = permits.get_mut(which % count) {
                            permit.become_bytes(permit.bytes() * percent / 100);
                        }
                    }
                    Step::Join(one, other) => {
                        if permits.len() > 1 {
                            let other = permits.swap_remove(other % permits.len());
                            let one = one % permits.len();
                            permits[one].join(other);
                        }
                    }
                    Step::Drop(which) => {
                        if !permits.is_empty() {
                            drop(permits.swap_remove(which % permits.len()));
                        }
                    }
                }
                let held = budget.held();
                prop_assert_eq!(held, permits.iter().map(Permit::bytes).sum::<u64>());
                prop_assert!(held <= 100, "{} are held", held);
            }
            drop(permits);
            prop_assert_eq!(budget.held(), 0);
            prop_assert!(budget.try_take(100).is_some());
        }
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_what_is_given_back() {
        let budget = Budget::new(10, None);
        let mut all = budget.try_take(10).unwrap();
        assert!(budget.try_take(1).is_none());
        // When it has become less, and when it is dropped
        all.become_bytes(4);
        budget.wait_for_room().await;
        let rest = budget.try_take(6).unwrap();
        drop(all);
        budget.wait_for_room().await;
        assert!(budget.try_take(4).is_some());
        drop(rest);
    }

    #[test]
    fn what_is_had_beyond_the_budget_leaves_an_archiver_its_own() {
        // Given clusters that hang, and hold all of the common memory that they get
        let common = CommonMemory::new(8 << 20);
        let others: Vec<Budget> = (0..20).map(|_| Budget::new(1 << 30, Some(&common))).collect();
        let hogs: Vec<Permit> =
            others.iter().flat_map(|other| std::iter::from_fn(|| other.try_take(64 << 10))).collect();
        // When one more stores a block alone
        let budget = Budget::new(32 << 20, Some(&common));
        let mut block = budget.take(16 << 20);
        // Then what is its own is still there for its tails, and no more than that
        let tail = budget.try_take(64 << 10).expect("its own");
        assert!(budget.try_take(OWN_BYTES).is_none());
        // Also when the block has become less, and its permit was handed on
        block.become_bytes(15 << 20);
        let mut handed_on = budget.nothing();
        handed_on.join(block.take());
        assert_eq!(budget.held(), (15 << 20) + (64 << 10));
        let rest = budget.try_take(OWN_BYTES - (64 << 10)).expect("its own");
        drop((block, handed_on, tail, rest));
        assert_eq!(budget.held(), 0);
        drop(hogs);
        assert!(others[0].try_take(4 << 20).is_some(), "all is given back");
    }

    #[tokio::test]
    async fn beyond_the_budget_there_is_one_at_a_time() {
        let budget = Budget::new(10, None);
        let all = budget.try_take(10).unwrap();
        let exception = budget.take_by_exception(7).await;
        assert_eq!(budget.held(), 17);
        let mut second = std::pin::pin!(budget.take_by_exception(7));
        assert!(futures_util::FutureExt::now_or_never(second.as_mut()).is_none(), "there are two");
        drop(exception);
        second.await;
        drop(all);
    }
}
