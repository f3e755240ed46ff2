//! How old things are, when no clock is to be trusted alone. Pure.
//!
//! A clock that jumps ahead by years must not make everything old. So *now* is never later than the newest thing that was archived (WAL,
//! proofs of life, base backups), by the store's clock; and the floor counts the time in which something was archived: a silence of more than a day counts as one day,
//! be it that nothing ran, or that clocks jumped over it.

use super::inventory::Inventory;
use super::policy::Policy;
use jiff::{SignedDuration, Timestamp, Unit};
use std::collections::BTreeSet;

/// More than that without anything stored counts as that.
const LONGEST_SILENCE: SignedDuration = SignedDuration::from_hours(24);

/// What is younger may belong to somebody who is at work.
pub const YOUNG: SignedDuration = SignedDuration::from_hours(24);

/// The moments by which retention judges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ages {
    /// What counts as now.
    pub now: Timestamp,
    /// Every moment from here on can be restored, whatever the policy says.
    pub floor: Timestamp,
}

impl Ages {
    /// By what is stored, and a clock.
    pub fn of(inventory: &Inventory, minimum_window: SignedDuration, now: Timestamp) -> Ages {
        let hours = &inventory.hours;
        let newest = hours.last().copied().unwrap_or(now);
        // Some may be dated later than now: by a clock that was ahead, or since ours is behind. The earlier floor keeps more.
        let known: BTreeSet<Timestamp> = hours.range(..=now).copied().collect();
        let floor = match known.is_empty() {
            true => floor(hours, minimum_window),
            false => floor(&known, minimum_window).min(floor(hours, minimum_window)),
        };
        Ages { now: now.min(newest), floor }
    }

    /// True for what was stored so long ago that nobody is at it any more.
    pub fn is_old(&self, modified: Timestamp) -> bool {
        modified <= self.ago(YOUNG)
    }

    /// Until when the store keeps what it was given then, whoever deletes it; `None` if it does not, or no longer.
    pub fn locked_until(&self, policy: &Policy, modified: Timestamp) -> Option<Timestamp> {
        let until = modified.saturating_add(policy.locked?).unwrap_or(Timestamp::MAX);
        (until > self.now).then(|| until.round(Unit::Second).unwrap_or(until))
    }

    /// So long before now.
    pub fn ago(&self, length: SignedDuration) -> Timestamp {
        self.now.saturating_sub(length).unwrap_or(Timestamp::MIN)
    }
}

/// The moment from which on `window` was archived.
fn floor(hours: &BTreeSet<Timestamp>, window: SignedDuration) -> Timestamp {
    let mut left = window;
    for (earlier, later) in hours.iter().zip(hours.iter().skip(1)).rev() {
        let between = later.duration_since(*earlier);
        if between < LONGEST_SILENCE && left <= between {
            return later.saturating_sub(left).unwrap_or(*earlier);
        }
        left = left.saturating_sub(between.min(LONGEST_SILENCE));
        if left <= SignedDuration::ZERO {
            // Somewhere in a silence: what was there before it is what can be restored in it.
            return *earlier;
        }
    }
    Timestamp::MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(numbers: impl IntoIterator<Item = i64>) -> BTreeSet<Timestamp> {
        numbers.into_iter().map(|hour| Timestamp::from_second(hour * 3600).unwrap()).collect()
    }

    fn floor_hour(numbers: impl IntoIterator<Item = i64>, window: i64) -> Option<i64> {
        let found = floor(&hours(numbers), SignedDuration::from_hours(window));
        (found > Timestamp::MIN).then(|| found.as_second() / 3600)
    }

    #[test]
    fn the_floor_is_so_far_back_where_something_was_stored_all_the_time() {
        assert_eq!(floor_hour(0..1000, 168), Some(999 - 168));
        assert_eq!(floor_hour((0..1000).step_by(7), 168), Some(994 - 168));
        assert_eq!(floor_hour(0..100, 168), None, "less was archived: all of it is kept");
        assert_eq!(floor_hour([], 168), None);
    }

    #[test]
    fn a_jump_of_years_counts_as_a_day() {
        const YEARS: i64 = 100_000;
        let jumped = || (0..1000).chain(YEARS..YEARS + 10);
        // Nine hours behind the jump, a day for it, and the rest before it.
        assert_eq!(floor_hour(jumped(), 168), Some(999 - (168 - 9 - 24)));
        assert_eq!(floor_hour(jumped(), 20), Some(999), "within the silence: from what was before it");
        assert_eq!(floor_hour(jumped(), 9), Some(YEARS));
    }
}
