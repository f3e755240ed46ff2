//! Which WAL files recovery reads along a path of timelines, and how far they are stored. Pure.

use crate::repository::Catalog;
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use jiff::Timestamp;

/// A path of timelines, cut into files as recovery asks for them ([`History::files`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The path.
    pub history: History,
    /// The cluster's segment size.
    pub size: SegmentSize,
    /// Where the path ends because the timelines behind have nothing stored yet.
    pub cap: Option<Lsn>,
}

/// How far what is stored reaches along a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Covered {
    /// The timeline on which it ends.
    pub timeline: TimelineId,
    /// The first position that is not stored.
    pub until: Lsn,
    /// Where storing goes on behind a hole, if it does.
    pub next: Option<Lsn>,
}

impl Route {
    /// The route of `history`, without timelines at its end that have no WAL yet.
    pub fn new(history: History, size: SegmentSize, catalog: &Catalog) -> Route {
        let mut route = Route { history, size, cap: None };
        let stored = |timeline| catalog.coverage.get(&timeline).is_some_and(|coverage| !coverage.objects().is_empty());
        while !stored(route.history.timeline)
            && let Some(last) = route.history.ancestors.pop()
        {
            route.history.timeline = last.parent;
            route.cap = Some(last.switch);
        }
        route
    }

    /// The same path up to the timeline that holds `end`. A server that ends recovery to a later timeline in front of the
    /// point where that begins writes a history whose switch points fall (`xlogrecovery.c`, `FinishWalRecovery`: the new
    /// timeline's parent is the target's).
    pub fn ended_at(&self, end: Lsn) -> Route {
        let timeline = self.history.timeline_at(end);
        let mut route = self.clone();
        route.cap = self.cap.filter(|_| timeline == self.history.timeline);
        route.history.ancestors.retain(|entry| entry.parent < timeline);
        route.history.timeline = timeline;
        route
    }

    /// The files that hold the bytes from `start` to `end`, as ranges of whole path timelines.
    pub fn files(&self, start: Lsn, end: Lsn) -> Vec<WalRange> {
        let end = self.cap.map_or(end, |cap| cap.min(end));
        self.history.files(start, end, self.size)
    }

    /// The timeline whose file recovery reads for the segment that begins at `start`.
    pub fn owner(&self, start: Lsn) -> TimelineId {
        let range = self.files(start, start + 1).into_iter().next();
        range.map_or(self.history.timeline, |range| range.timeline)
    }

    /// How far the files from `start` on are stored without a hole.
    pub fn covered(&self, catalog: &Catalog, start: Lsn) -> Covered {
        let mut covered = Covered { timeline: self.owner(start), until: start, next: None };
        let mut whole = true;
        for range in self.files(start, Lsn(u64::MAX)) {
            let Some(coverage) = catalog.coverage.get(&range.timeline) else {
                whole = false;
                continue;
            };
            if whole {
                let run = coverage.run_holding(range.start).filter(|run| run.end > range.start);
                covered.timeline = range.timeline;
                covered.until = run.map_or(range.start, |run| run.end.min(range.end));
                whole = covered.until == range.end;
            }
            if !whole && covered.next.is_none() {
                let from = covered.until.max(range.start);
                let runs = coverage.runs().into_iter();
                covered.next = runs.map(|run| run.start.max(from)).zip(coverage.runs()).find_map(|(start, run)| {
                    (run.end > from && start < range.end && (start > covered.until)).then_some(start)
                });
            }
        }
        covered
    }

    /// The last moment at which the server is known to have lived and to have had no WAL behind its position then, of positions from
    /// `from` to `until`.
    pub(super) fn last_heartbeat(&self, catalog: &Catalog, from: Lsn, until: Lsn) -> Option<Timestamp> {
        let on_path = |timeline: TimelineId, flush: Lsn| {
            self.history.passes(timeline)
                // At the switch point itself it may be that of a server which was cut off, idle, and lived on.
                && self.history.switch_from(timeline).is_none_or(|switch| flush < switch)
        };
        let known = catalog
            .heartbeats
            .iter()
            .filter(|(_, timeline, flush)| on_path(*timeline, *flush) && (from..=until).contains(flush));
        known.map(|(time, ..)| *time).max()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CatalogBuilder, MIB};
    use super::*;

    fn history(text: &str, timeline: u32) -> History {
        History::parse(TimelineId(timeline), text.as_bytes()).unwrap()
    }

    #[test]
    fn the_segment_with_the_switch_is_read_from_the_child() {
        let catalog = CatalogBuilder::new().wal(1, 0, 8 * MIB).wal(2, 4 * MIB, 12 * MIB).build();
        let route = Route::new(history("1\t0/480000\tx\n", 2), catalog.size(), &catalog.catalog);
        let range =
            |timeline, start, end| WalRange { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        assert_eq!(
            route.files(Lsn(3 * MIB), Lsn(6 * MIB)),
            [range(1, 3 * MIB, 4 * MIB), range(2, 4 * MIB, 6 * MIB)],
            "segments of 1 MiB, switch in the one at 4 MiB"
        );
        assert_eq!(route.owner(Lsn(3 * MIB)), TimelineId(1));
        assert_eq!(route.owner(Lsn(4 * MIB)), TimelineId(2));
        assert_eq!(route.covered(&catalog.catalog, Lsn(MIB)).until, Lsn(12 * MIB));
    }

    #[test]
    fn a_child_without_its_first_segment_is_a_hole_and_not_its_parents_bytes() {
        // Given a child whose first segment is stored from the switch point on only
        let catalog = CatalogBuilder::new().wal(1, 0, 8 * MIB).wal(2, 4 * MIB + 0x8_0000, 12 * MIB).build();
        let route = Route::new(history("1\t0/480000\tx\n", 2), catalog.size(), &catalog.catalog);
        let covered = route.covered(&catalog.catalog, Lsn(MIB));
        assert_eq!((covered.timeline, covered.until), (TimelineId(2), Lsn(4 * MIB)));
        assert_eq!(covered.next, Some(Lsn(4 * MIB + 0x8_0000)));
    }

    #[test]
    fn a_timeline_with_nothing_but_a_history_ends_the_route_at_its_switch() {
        let catalog = CatalogBuilder::new().wal(1, 0, 8 * MIB).build();
        let route = Route::new(history("1\t0/480000\tx\n", 2), catalog.size(), &catalog.catalog);
        assert_eq!((route.history.timeline, route.cap), (TimelineId(1), Some(Lsn(0x48_0000))));
        assert_eq!(route.covered(&catalog.catalog, Lsn(0)).until, Lsn(0x48_0000));
    }

    #[test]
    fn what_lies_behind_a_hole_is_found() {
        let catalog = CatalogBuilder::new().wal(1, 0, 2 * MIB).wal(1, 3 * MIB, 4 * MIB).build();
        let route = Route::new(History::root(TimelineId(1)), catalog.size(), &catalog.catalog);
        let covered = route.covered(&catalog.catalog, Lsn(MIB));
        assert_eq!((covered.until, covered.next), (Lsn(2 * MIB), Some(Lsn(3 * MIB))));
        let covered = route.covered(&catalog.catalog, Lsn(3 * MIB));
        assert_eq!((covered.until, covered.next), (Lsn(4 * MIB), None));
        // A position that is not stored at all.
        let covered = route.covered(&catalog.catalog, Lsn(2 * MIB + 5));
        assert_eq!((covered.until, covered.next), (Lsn(2 * MIB + 5), Some(Lsn(3 * MIB))));
    }
}
