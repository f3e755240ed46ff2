//! Which WAL the staying backups need, by the history files of timelines and never by the order of names. Pure.

use super::inventory::Inventory;
use super::select::{Selection, paths_from};
use crate::repository::BackupDocument;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::BTreeMap;

/// No WAL of a kept backup is looked for behind.
const END: Lsn = Lsn(u64::MAX);

/// WAL that must stay, by timeline: stretches, in order, which may overlap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs(BTreeMap<TimelineId, Vec<(Lsn, Lsn)>>);

impl Needs {
    /// What the backups of a selection need.
    pub fn of(inventory: &Inventory, selection: &Selection) -> Needs {
        let mut needs = Needs::default();
        for backup in inventory.catalog.finished_backups() {
            match selection.finished.get(&backup.id) {
                Some(stay) if stay.to_any_moment => needs.from(inventory, backup.timeline, backup.start_lsn),
                Some(_) => needs.consistent(inventory, backup),
                None => {}
            }
        }
        for entry in inventory.catalog.backups.iter().filter(|entry| selection.begun.contains(&entry.id)) {
            if let Some(begin) = &entry.begin {
                needs.from(inventory, begin.timeline, begin.start_lsn);
            }
        }
        needs.0.values_mut().for_each(|stretches| stretches.sort());
        needs
    }

    /// Everything behind the beginning of a backup, on each timeline that passes there: its own to its end, dead branch included, and
    /// of those that follow all, from the copy of the segment in which they begin.
    fn from(&mut self, inventory: &Inventory, timeline: TimelineId, start: Lsn) {
        let size = inventory.size;
        self.add(timeline, size.segment_start(start), END);
        for path in paths_from(inventory, timeline, start) {
            for (id, from, _) in path.path().into_iter().skip_while(|(id, ..)| *id != timeline).skip(1) {
                self.add(id, size.segment_start(from), END);
            }
        }
    }

    /// What makes a backup consistent, in whole segments, whichever timeline a restore leads to. One segment more than that, where it
    /// ends with one: a server asks for it.
    fn consistent(&mut self, inventory: &Inventory, backup: &BackupDocument) {
        let size = inventory.size;
        let (start, end) = (size.segment_start(backup.start_lsn), next_segment(size, backup.end_lsn));
        for path in paths_from(inventory, backup.timeline, backup.start_lsn) {
            for range in path.files(start, end, size) {
                self.add(range.timeline, range.start, range.end);
            }
        }
        for need in &backup.wal_ranges {
            self.add(need.timeline, size.segment_start(need.start), next_segment(size, need.end));
        }
        self.add(backup.timeline, start, next_segment(size, backup.start_lsn));
    }

    fn add(&mut self, timeline: TimelineId, start: Lsn, end: Lsn) {
        self.0.entry(timeline).or_default().push((start, end));
    }

    /// True if any byte of a range must stay.
    pub fn touch(&self, range: WalRange) -> bool {
        let stretches = self.0.get(&range.timeline).map(Vec::as_slice).unwrap_or_default();
        stretches.iter().any(|(start, end)| *start < range.end && range.start < *end)
    }

    /// True if a position lies in what must stay, or at its end.
    pub fn hold(&self, timeline: TimelineId, position: Lsn) -> bool {
        let stretches = self.0.get(&timeline).map(Vec::as_slice).unwrap_or_default();
        stretches.iter().any(|(start, end)| *start <= position && position <= *end)
    }

    /// True if anything must stay that begins before a position.
    pub fn begin_before(&self, timeline: TimelineId, position: Lsn) -> bool {
        self.0.get(&timeline).and_then(|stretches| stretches.first()).is_some_and(|(start, _)| *start < position)
    }
}

/// Behind the segment that holds `lsn`.
fn next_segment(size: SegmentSize, lsn: Lsn) -> Lsn {
    Lsn(size.segment_start(lsn).0.saturating_add(size.bytes()))
}
