//! Tails that a larger object has replaced, until they are deleted: rule 7. Pure: it says what is due, the session
//! deletes it.
//!
//! It outlives connections: what one has compared stays true. A process that ends leaves behind what was not due yet;
//! the next one deletes what of that it sees again, and the rest is for `prune`.

use crate::codec::Ending;
use crate::store::StoreErrorKind;
use crate::wal::{Lsn, TimelineId, WalRange};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// So much garbage is remembered, 48 bytes each; what comes on top is for `prune`. At the highest rate at which tails
/// are stored (four at a time, 5 ms each) as many as this come in five minutes.
const REMEMBERED_MAX: usize = 240_000;

/// After a deletion that failed, as long as that the next one waits.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Where deleting is not allowed it is tried once in so long: somebody may have allowed it.
const DENIED_PAUSE: Duration = Duration::from_secs(3600);

/// A tail that is garbage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Replaced {
    /// Which bytes it has.
    pub(super) range: WalRange,
    /// How it is stored, if an earlier process stored it.
    pub(super) ending: Option<Ending>,
}

#[derive(Debug, Default)]
pub(super) struct Garbage {
    /// By the moment at which they are due.
    tails: VecDeque<(Instant, Replaced)>,
    /// The store does not let us delete, as far as is known until then; the next one that is tried shows it.
    denied_until: Option<Instant>,
    is_denial_told: bool,
}

/// What is to be done about a deletion that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failed {
    /// It comes up again later.
    Later,
    /// It is left to `prune`; `is_news` once in a process.
    Denied {
        /// To be told to the operator.
        is_news: bool,
    },
}

impl Garbage {
    /// A tail that may be deleted when `due`. False if there is no room to remember it.
    pub(super) fn add(&mut self, due: Instant, tail: Replaced) -> bool {
        if self.tails.len() >= REMEMBERED_MAX {
            return false;
        }
        // Nearly always at the end.
        let at = self.tails.partition_point(|(other, _)| *other <= due);
        self.tails.insert(at, (due, tail));
        true
    }

    /// The stream begins there: it passes these tails again, and finds out again which are garbage.
    pub(super) fn forget_from(&mut self, timeline: TimelineId, start: Lsn) {
        self.tails.retain(|(_, tail)| tail.range.timeline != timeline || tail.range.start < start);
    }

    /// A tail that is due, which the caller deletes.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Replaced> {
        if self.is_denied(now) {
            return None;
        }
        let (_, tail) = self.tails.pop_front_if(|(due, _)| *due <= now)?;
        self.denied_until = self.denied_until.map(|_| now + DENIED_PAUSE);
        Some(tail)
    }

    /// A tail was deleted.
    pub(super) fn succeeded(&mut self) {
        self.denied_until = None;
    }

    /// Forgets what is due while deleting is not allowed; how much that was.
    pub(super) fn drop_denied(&mut self, now: Instant) -> u64 {
        let due = if self.is_denied(now) { self.tails.partition_point(|(due, _)| *due <= now) } else { 0 };
        self.tails.drain(..due).count() as u64
    }

    /// A tail could not be deleted.
    pub(super) fn failed(&mut self, tail: Replaced, kind: StoreErrorKind, now: Instant) -> Failed {
        if kind.is_transient() || kind == StoreErrorKind::Credentials {
            self.add(now + FAILED_PAUSE, tail);
            return Failed::Later;
        }
        self.denied_until = Some(now + DENIED_PAUSE);
        Failed::Denied { is_news: !std::mem::replace(&mut self.is_denial_told, true) }
    }

    fn is_denied(&self, now: Instant) -> bool {
        self.denied_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(start: u64) -> Replaced {
        let range = WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(start + 1) };
        Replaced { range, ending: None }
    }

    fn due(garbage: &mut Garbage, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| garbage.take_due(now)).map(|tail| tail.range.start.0).collect()
    }

    #[test]
    fn what_is_due_comes_first_in_whatever_order_it_was_found() {
        let (mut garbage, now, second) = (Garbage::default(), Instant::now(), Duration::from_secs(1));
        for (after, start) in [(3, 30), (1, 10), (2, 20), (1, 11)] {
            assert!(garbage.add(now + after * second, tail(start)));
        }
        assert!(due(&mut garbage, now).is_empty());
        assert_eq!(due(&mut garbage, now + 2 * second), [10, 11, 20]);
        assert_eq!(due(&mut garbage, now + 3 * second), [30]);
    }

    #[test]
    fn what_the_stream_passes_again_is_forgotten_and_what_it_does_not_is_kept() {
        let (mut garbage, now) = (Garbage::default(), Instant::now());
        (0..10).for_each(|start| assert!(garbage.add(now, tail(start))));
        garbage.forget_from(TimelineId(2), Lsn(0));
        garbage.forget_from(TimelineId(1), Lsn(4));
        assert_eq!(due(&mut garbage, now), [0, 1, 2, 3]);
    }

    #[test]
    fn where_deleting_is_denied_one_is_tried_an_hour_and_the_operator_told_once() {
        let (mut garbage, now) = (Garbage::default(), Instant::now());
        (0..10).for_each(|start| assert!(garbage.add(now, tail(start))));
        let first = garbage.take_due(now).unwrap();
        assert_eq!(garbage.failed(first, StoreErrorKind::Denied, now), Failed::Denied { is_news: true });
        assert!(due(&mut garbage, now).is_empty());
        assert_eq!(garbage.drop_denied(now), 9);
        let later = now + DENIED_PAUSE;
        assert!(garbage.add(later, tail(50)));
        assert!(garbage.add(later, tail(51)));
        assert_eq!(garbage.drop_denied(later), 0);
        let again = garbage.take_due(later).unwrap();
        assert_eq!(garbage.failed(again, StoreErrorKind::Denied, later), Failed::Denied { is_news: false });
        assert_eq!(garbage.take_due(later), None);
        // And when it is allowed, all is well
        let allowed = later + DENIED_PAUSE;
        assert_eq!(garbage.take_due(allowed), Some(tail(51)));
        garbage.succeeded();
        assert!(garbage.add(allowed, tail(52)));
        assert_eq!(due(&mut garbage, allowed), [52]);
    }

    #[test]
    fn memory_is_bounded_and_a_store_that_is_away_is_asked_again_later() {
        let (mut garbage, now) = (Garbage::default(), Instant::now());
        let remembered = (0..).take_while(|&start| garbage.add(now, tail(start))).count();
        assert_eq!(remembered, REMEMBERED_MAX);
        let taken = garbage.take_due(now).unwrap();
        assert_eq!(garbage.failed(taken, StoreErrorKind::Transient, now), Failed::Later);
        assert_eq!(due(&mut garbage, now).len(), REMEMBERED_MAX - 1);
        assert_eq!(due(&mut garbage, now + FAILED_PAUSE), [taken.range.start.0]);
    }
}
