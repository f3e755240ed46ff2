//! How often something is stored while somebody waits for every commit: at once while the store has nothing to do, and
//! at even intervals while it has. Pure.

use crate::wal::Lsn;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// So many flushes are under way at a time. Each takes what came since the one before, so a commit waits for a sixth of
/// a request, at worst, before its own begins, and a store without end of load sees six times its own pace.
const FLUSHES_MAX: usize = 6;

/// Flushes are never further apart than this: after an outage of the store the last request says nothing of the next.
const STEP_MAX: Duration = Duration::from_millis(50);

/// What the timer cannot measure is not waited for.
const STEP_MIN: Duration = Duration::from_millis(1);

/// The flushes under way, and when the next may begin.
///
/// Without the even intervals all places would be taken within moments, by whatever came first, and everything behind
/// would wait for one whole request before its own.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// By their end, which no two share: when each began.
    under_way: BTreeMap<Lsn, Instant>,
    last: Option<Instant>,
    /// How long one takes, smoothed.
    typical: Duration,
}

impl Pace {
    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// A flush up to `end` begins.
    pub(super) fn begin(&mut self, end: Lsn, now: Instant) {
        self.under_way.insert(end, now);
        self.last = Some(now);
    }

    /// What ends at `end` is stored; whatever is no flush is passed over.
    pub(super) fn end(&mut self, end: Lsn, now: Instant) {
        if let Some(begun) = self.under_way.remove(&end) {
            let took = now.duration_since(begun);
            self.typical = if self.typical.is_zero() { took } else { (self.typical * 7 + took) / 8 };
        }
    }

    /// When what arrived at `arrived` may be flushed; `None`: not before another flush has ended.
    pub(super) fn next(&self, arrived: Instant) -> Option<Instant> {
        match self.under_way.len() {
            0 => Some(arrived),
            FLUSHES_MAX.. => None,
            _ => {
                let step = (self.typical / FLUSHES_MAX as u32).min(STEP_MAX);
                let step = if step < STEP_MIN { Duration::ZERO } else { step };
                Some(self.last.map_or(arrived, |last| arrived.max(last + step)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn what_comes_alone_never_waits() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for commit in 0..10u64 {
            let now = after(start, 1000 * commit);
            assert_eq!(pace.next(now), Some(now));
            pace.begin(Lsn(commit + 1), now);
            pace.end(Lsn(commit + 1), after(now, 100));
        }
    }

    #[test]
    fn under_load_flushes_are_even_and_a_commit_waits_for_a_sixth_of_a_request() {
        // Given a store that takes 120 ms, and a commit in every millisecond
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut running: Vec<(u64, u64)> = Vec::new();
        let (mut oldest, mut longest, mut flushes) = (None, 0, 0u64);
        for now in 0..5000u64 {
            running.retain(|(begun, end)| {
                let ended = now >= begun + 120;
                if ended {
                    pace.end(Lsn(*end), after(start, now));
                }
                !ended
            });
            let arrived = *oldest.get_or_insert(now);
            if pace.next(after(start, arrived)).is_some_and(|due| due <= after(start, now)) {
                pace.begin(Lsn(now + 1), after(start, now));
                running.push((now, now + 1));
                flushes += 1;
                oldest = None;
                // The first six know nothing of the store yet.
                if now > 500 {
                    longest = longest.max(now - arrived);
                }
            }
        }
        assert!(longest <= 120 / 5, "a commit waited {longest} ms before its request began");
        assert!(flushes <= 5000 / 15, "{flushes} requests in five seconds");
    }

    #[test]
    fn an_outage_is_forgotten() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        pace.begin(Lsn(1), start);
        let later = start + Duration::from_secs(3600);
        pace.end(Lsn(1), later);
        pace.begin(Lsn(2), later);
        assert!(pace.next(later).is_some_and(|due| due <= later + STEP_MAX));
    }

    #[test]
    fn no_more_than_six_are_under_way() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for end in 1..=FLUSHES_MAX as u64 {
            assert!(pace.next(start).is_some());
            pace.begin(Lsn(end), start);
        }
        assert_eq!(pace.next(start), None);
        // A merged tail, which ends where a confirmed one did, frees no place.
        pace.end(Lsn(100), start);
        assert_eq!(pace.next(start), None);
        pace.end(Lsn(3), start);
        assert!(pace.next(start).is_some());
    }
}
