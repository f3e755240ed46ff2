//! Timelines: whether their history files are there and agree, and where WAL is missing. Pure.

use super::report::{Finding, FindingKind, MissingWal};
use crate::repository::{Catalog, Coverage, Gap, Key, Layout};
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::{BTreeMap, BTreeSet};

/// History files that must be there: recovery to a timeline cannot begin without.
pub(super) fn missing_histories(catalog: &Catalog, listed: &BTreeSet<TimelineId>, layout: &Layout) -> Vec<Finding> {
    let of_backups = catalog.finished_backups().flat_map(|backup| [backup.timeline, backup.end_timeline]);
    let needed: BTreeSet<TimelineId> = catalog.coverage.keys().copied().chain(of_backups).collect();
    let missing = needed.iter().filter(|timeline| **timeline > TimelineId(1) && !listed.contains(timeline));
    missing
        .map(|timeline| {
            let name = layout.name(&Key::History(*timeline));
            let what = format!("is missing, and timeline {timeline} cannot be restored without it");
            Finding::of_object(FindingKind::MissingHistory, &name, what)
                .hint("It is in pg_wal of every server that was on the timeline: copy it back under this name.")
        })
        .collect()
}

/// History files that contradict one another: a timeline's has the lines of its parent's, and one more.
pub(super) fn contradictions(histories: &BTreeMap<TimelineId, History>, layout: &Layout) -> Vec<Finding> {
    let contradicts = |history: &&History| {
        let (last, before) = history.ancestors.split_last()?;
        let parent = histories.get(&last.parent)?;
        (parent.ancestors != before).then_some(last.parent)
    };
    let found = histories.values().filter_map(|history| Some((history.timeline, contradicts(&history)?)));
    found
        .map(|(timeline, parent)| {
            let name = layout.name(&Key::History(timeline));
            let what = format!("does not agree with {} on how timeline {parent} came about", parent.history_name());
            Finding::of_object(FindingKind::WrongContents, &name, what)
                .hint("One of the two is wrong. Compare both with those in pg_wal of the server.")
        })
        .collect()
}

/// What else than WAL shows up to where a timeline was stored.
pub(super) type Proven = BTreeMap<TimelineId, Lsn>;

/// Where WAL is missing behind the beginning of any finished backup, on the way to the end of any timeline: what is known to have
/// been stored, or is known to be lost. Without any backup or a path from one, between what is stored. And between what is stored in
/// front of all of them, where nobody needs it. What was `pruned` is recorded as what was lost is.
pub(super) fn holes(catalog: &Catalog, pruned: &[WalRange], proven: &Proven, size: SegmentSize) -> Vec<MissingWal> {
    let pruned = pruned.iter().map(|range| Gap { range: *range });
    let recorded: Vec<Gap> = catalog.gaps.iter().cloned().chain(pruned).collect();
    let mut missing: BTreeMap<TimelineId, Vec<(Lsn, Lsn)>> = BTreeMap::new();
    for (&timeline, coverage) in &catalog.coverage {
        let history = catalog.history(timeline);
        let on_path = catalog.finished_backups().filter(|backup| backup.is_on_path(&history));
        let first = on_path.map(|backup| size.segment_start(backup.start_lsn)).min();
        // Where it comes from is not known while its history is missing.
        let is_known = timeline == TimelineId(1) || catalog.histories.contains_key(&timeline);
        let has_backups = catalog.finished_backups().next().is_some();
        let ranges = match first {
            Some(first) => history.files(first, Lsn(u64::MAX), size),
            None if has_backups && is_known => continue,
            None => {
                let start = coverage.objects().first().map_or(Lsn::INVALID, |object| object.range.start);
                vec![WalRange { timeline, start, end: Lsn(u64::MAX) }]
            }
        };
        for range in ranges {
            let end = match history.switch_from(range.timeline) {
                Some(switch) => sealed_end(&recorded, range.timeline, switch, size),
                None => end_of(catalog, range.timeline, proven),
            };
            let holes = missing.entry(range.timeline).or_default();
            holes.extend(uncovered(catalog.coverage.get(&range.timeline), range.start, end));
        }
    }
    let mut holes = Vec::new();
    for (&timeline, coverage) in &catalog.coverage {
        let needed = joined(missing.remove(&timeline).unwrap_or_default());
        let (first, last) = (coverage.objects().first().map(|object| object.range.start), coverage.end());
        let all = first.zip(last).map(|(first, last)| uncovered(Some(coverage), first, last)).unwrap_or_default();
        let is_needed = |hole: &&(Lsn, Lsn)| needed.iter().any(|(start, end)| hole.0 < *end && *start < hole.1);
        let others: Vec<_> = all.iter().filter(|hole| !is_needed(hole)).copied().collect();
        for (hole, is_needed) in
            needed.iter().map(|hole| (*hole, true)).chain(others.into_iter().map(|hole| (hole, false)))
        {
            holes.extend(split(timeline, hole, &recorded, is_needed));
        }
    }
    // Timelines of which nothing at all is stored.
    for (timeline, needed) in missing {
        holes.extend(joined(needed).into_iter().flat_map(|hole| split(timeline, hole, &recorded, true)));
    }
    holes.sort();
    holes
}

/// True if all of a hole lies in these ranges together.
pub(super) fn is_within(hole: &MissingWal, ranges: &[WalRange]) -> bool {
    let mut position = hole.start;
    while position < hole.end {
        let holds =
            |range: &&WalRange| range.timeline == hole.timeline && range.start <= position && position < range.end;
        let Some(end) = ranges.iter().filter(holds).map(|range| range.end).max() else { return false };
        position = end;
    }
    true
}

/// How far a timeline that was left at `switch` is stored: up to there. If WAL was lost in front of that, only the next timeline's
/// copy of its last segment may be there.
fn sealed_end(recorded: &[Gap], timeline: TimelineId, switch: Lsn, size: SegmentSize) -> Lsn {
    let last_segment = size.segment_start(switch);
    let is_lost = |gap: &Gap| gap.range.timeline == timeline && gap.range.end >= last_segment;
    if recorded.iter().any(is_lost) { last_segment } else { switch }
}

/// How far the last timeline of a path is known to have been stored.
fn end_of(catalog: &Catalog, timeline: TimelineId, proven: &Proven) -> Lsn {
    let stored = catalog.coverage.get(&timeline).and_then(Coverage::end);
    let backups = catalog.finished_backups().filter(|backup| backup.end_timeline == timeline);
    let backups = backups.map(|backup| backup.end_lsn);
    let branches = catalog.dead_branches.iter().filter(|branch| branch.timeline == timeline).map(|branch| branch.end);
    let known = backups.chain(branches).chain(proven.get(&timeline).copied());
    known.chain(stored).max().unwrap_or(Lsn::INVALID)
}

/// The stretches from `start` to `end` that nothing covers.
fn uncovered(coverage: Option<&Coverage>, start: Lsn, end: Lsn) -> Vec<(Lsn, Lsn)> {
    let mut holes = Vec::new();
    let mut position = start;
    for run in coverage.map(Coverage::runs).unwrap_or_default() {
        let upto = run.start.min(end);
        if position < upto {
            holes.push((position, upto));
        }
        position = position.max(run.end);
    }
    if position < end {
        holes.push((position, end));
    }
    holes
}

/// Overlapping stretches as one.
fn joined(mut holes: Vec<(Lsn, Lsn)>) -> Vec<(Lsn, Lsn)> {
    holes.sort();
    let mut joined: Vec<(Lsn, Lsn)> = Vec::new();
    for (start, end) in holes {
        match joined.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// A hole, cut at the borders of what was recorded as lost.
fn split(timeline: TimelineId, (start, end): (Lsn, Lsn), gaps: &[Gap], is_needed: bool) -> Vec<MissingWal> {
    let mut lost: Vec<(Lsn, Lsn)> = Vec::new();
    for gap in gaps.iter().filter(|gap| gap.range.timeline == timeline) {
        let (from, to) = (gap.range.start.max(start), gap.range.end.min(end));
        if from < to {
            lost.push((from, to));
        }
    }
    let mut pieces = Vec::new();
    let mut position = start;
    for (from, to) in joined(lost) {
        if position < from {
            pieces.push(MissingWal { timeline, start: position, end: from, is_recorded: false, is_needed });
        }
        pieces.push(MissingWal { timeline, start: from, end: to, is_recorded: true, is_needed });
        position = to;
    }
    if position < end {
        pieces.push(MissingWal { timeline, start: position, end, is_recorded: false, is_needed });
    }
    pieces
}
