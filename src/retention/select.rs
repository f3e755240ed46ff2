//! Which base backups stay, and why. Pure.
//!
//! *Usable* backups are those of a line which a restore takes unasked: they are not damaged, every object of theirs and of what they
//! build on is there, and so is the WAL that makes them consistent. *Good* are those of them with which nothing at all was found wrong.
//! On the line that the archiver follows the good ones alone count, and push out others. Where a promised window begins with none of
//! them, it begins with a usable one. Whatever else is there, damaged, suspect, or of a server that was left behind, stays as long as
//! WAL of its time does.

use super::age::Ages;
use super::inventory::Inventory;
use super::policy::Policy;
use crate::repository::{BackupDocument, BackupId, BackupVerdict, Coverage};
use crate::restore::{self, Request, Route, Target, TargetAction};
use crate::wal::{History, Lsn, TimelineId};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Why a backup stays, and with how much WAL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stay {
    /// In words.
    pub reasons: BTreeSet<String>,
    /// It is restored to any moment behind it. Otherwise it is kept with the WAL that makes it consistent.
    pub to_any_moment: bool,
}

/// Which base backups stay.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Finished ones.
    pub finished: BTreeMap<BackupId, Stay>,
    /// Ones that somebody may be at, and [`Selection::half_gone`].
    pub begun: BTreeSet<BackupId>,
    /// Marked ones without `backup.json`, at which nobody is. That may come back, from an older version: until the mark is taken away they
    /// need what one does that somebody is at.
    pub half_gone: BTreeSet<BackupId>,
    /// Ones that nobody is at any more.
    pub orphans: BTreeSet<BackupId>,
    /// Why no WAL goes at all, if that is so.
    pub all_wal: Option<String>,
}

/// Chooses.
pub(super) fn select(inventory: &Inventory, policy: &Policy, zone: &TimeZone, ages: &Ages) -> Selection {
    let mut chosen = Selection::default();
    chosen.sort_unfinished(inventory, ages);
    let judged = judged(inventory);
    let followed = inventory.catalog.followed_timeline();
    let line = followed.map(|timeline| Line::of(inventory, &judged, timeline)).unwrap_or_default();
    let everything = match (policy.chooses_backups(), line.good.iter().any(|backup| backup.reference.is_none())) {
        (true, true) => None,
        (false, _) => Some("no rule chooses among base backups"),
        (true, false) => Some("there is no good full backup on the line that is followed, so that every backup stays"),
    };
    match everything {
        Some(why) => inventory.catalog.finished_backups().for_each(|backup| chosen.stay(backup, why)),
        None => chosen.by_rules(inventory, policy, zone, ages, (&judged, &line)),
    }
    if let Some(wal) = policy.wal {
        chosen.by_wal(inventory, wal, ages, &line);
    }
    // Whatever the rules say: what somebody may build on next, the floor, marks, and what all those build on.
    let from = chosen.window_start(inventory, policy, ages, &line).cloned();
    let firsts = chosen.by_floor(inventory, ages, (&judged, &line));
    chosen.out_of_line(inventory, from.as_ref(), &line);
    chosen.widen(inventory, from.as_ref(), ages, (&line, &firsts));
    chosen.by_marks(inventory, ages);
    chosen.by_lock(inventory, policy, ages);
    chosen.references(inventory);
    chosen.check_wal(inventory, policy, &line);
    chosen
}

/// A backup that a restore takes unasked.
struct Judged<'a> {
    backup: &'a BackupDocument,
    /// Nothing was found wrong with it and what it builds on.
    is_good: bool,
}

/// Of all timelines.
fn judged(inventory: &Inventory) -> Vec<Judged<'_>> {
    inventory.catalog.finished_backups().filter_map(|backup| judge(inventory, backup)).collect()
}

/// Whether a restore takes it unasked, and there is all that it needs.
fn judge<'a>(inventory: &Inventory, backup: &'a BackupDocument) -> Option<Judged<'a>> {
    let references = inventory.catalog.chain(backup).ok()?;
    let links = || references.iter().copied().chain([backup]);
    let is_there = |link: &BackupDocument| inventory.folders.get(&link.id).is_some_and(|folder| folder.missing == 0);
    let is_usable = !backup.findings.damaged && links().all(is_there) && is_restorable(&inventory.catalog, backup);
    let is_good = links().all(|link| link.findings.verdict() == BackupVerdict::Sound);
    is_usable.then_some(Judged { backup, is_good })
}

/// Backups on the path to a timeline, in the order in which a restore prefers them: the last is the newest.
#[derive(Default)]
struct Line<'a> {
    good: Vec<&'a BackupDocument>,
    /// The good ones among them.
    usable: Vec<&'a BackupDocument>,
}

impl<'a> Line<'a> {
    fn of(inventory: &Inventory, judged: &[Judged<'a>], timeline: TimelineId) -> Line<'a> {
        let path = inventory.catalog.history(timeline);
        let mut on_path: Vec<&Judged<'a>> = judged.iter().filter(|it| it.backup.is_on_path(&path)).collect();
        on_path.sort_by_key(|it| order(it.backup));
        let good = on_path.iter().filter(|it| it.is_good).map(|it| it.backup).collect();
        Line { good, usable: on_path.iter().map(|it| it.backup).collect() }
    }

    /// With which a window begins that goes back to `cut`: the newest good one that was complete by then; the newest usable one if there
    /// is none; the first of all if nothing is so old.
    fn before(&self, inventory: &Inventory, cut: Timestamp) -> Option<&'a BackupDocument> {
        let until = |line: &[&'a BackupDocument]| newest_until(inventory, line, cut);
        until(&self.good).or_else(|| until(&self.usable)).or(self.usable.first().copied())
    }
}

/// It can be restored, at least to where it is consistent.
pub(super) fn is_restorable(catalog: &crate::repository::Catalog, backup: &BackupDocument) -> bool {
    let request = Request {
        target: Target::Immediate,
        exclusive: false,
        backup: Some(backup.id.clone()),
        timeline: Some(backup.end_timeline),
        action: TargetAction::Promote,
    };
    restore::check("", catalog, &request, Timestamp::MAX).is_ok()
}

fn order(backup: &BackupDocument) -> (Lsn, Timestamp) {
    (backup.end_lsn, backup.ended_at)
}

impl Selection {
    fn stay(&mut self, backup: &BackupDocument, why: impl Into<String>) {
        self.finished.entry(backup.id.clone()).or_default().reasons.insert(why.into());
    }

    fn sort_unfinished(&mut self, inventory: &Inventory, ages: &Ages) {
        for entry in inventory.catalog.backups.iter().filter(|entry| entry.document.is_none()) {
            // With nothing of ours in it, it is no backup.
            let Some(newest) = inventory.folders.get(&entry.id).and_then(|folder| folder.newest) else { continue };
            // One that is gone on with is stored to for days.
            let is_old = ages.is_old(newest);
            let is_marked = inventory.marks.get(&entry.id).is_some_and(|mark| mark.holds(ages.now));
            match is_old && !is_marked {
                true => self.orphans.insert(entry.id.clone()),
                false => self.begun.insert(entry.id.clone()),
            };
            if is_old && is_marked {
                self.half_gone.insert(entry.id.clone());
            }
        }
    }

    fn by_rules(
        &mut self,
        inventory: &Inventory,
        policy: &Policy,
        zone: &TimeZone,
        ages: &Ages,
        (judged, line): (&[Judged<'_>], &Line<'_>),
    ) {
        let good = &line.good;
        let full: Vec<&BackupDocument> = good.iter().rev().copied().filter(|it| it.reference.is_none()).collect();
        if let Some(count) = policy.full.filter(|count| *count > 0) {
            // With fewer of them, all.
            let first = full.get(count as usize - 1).map(|backup| order(backup));
            let is_newer = |backup: &&&BackupDocument| first.is_none_or(|first| order(backup) >= first);
            for backup in good.iter().filter(is_newer) {
                self.stay(backup, format!("of the last {count} full backups, or behind them"));
            }
        }
        if let Some(age) = policy.age.filter(|age| !age.is_zero()) {
            let cut = ages.ago(age);
            for backup in good.iter().filter(|backup| inventory.time_of(backup) >= cut) {
                self.stay(backup, "not older than retention.age");
            }
            if let Some(before) = line.before(inventory, cut) {
                self.stay(before, "the one before that, for the beginning of the window");
            }
        }
        let newest_first: Vec<&BackupDocument> = good.iter().rev().copied().collect();
        // By either clock: in a repository that was copied the store dates all of them by one day, and that of whoever took them may be
        // years behind. What one of the two asks for stays.
        let taken: Vec<Timestamp> = newest_first.iter().map(|backup| backup.ended_at).collect();
        let stored: Vec<Timestamp> = newest_first.iter().map(|backup| inventory.time_of(backup)).collect();
        for times in [taken, stored] {
            for (period, count) in &policy.calendar {
                let keeps = period.newest_of_each(&times, *count, zone);
                for (backup, _) in newest_first.iter().zip(keeps).filter(|(_, keeps)| *keeps) {
                    self.stay(backup, period.adjective());
                }
            }
        }
        if let Some(last) = full.first() {
            self.stay(last, "the last good full backup");
        }
        if let Some(last) = good.last() {
            self.stay(last, "the last good backup");
        }
        // Should the line be another one than the catalogue takes it for.
        let anywhere = judged.iter().filter(|it| it.is_good && it.backup.reference.is_none()).map(|it| it.backup);
        if let Some(last) = anywhere.max_by_key(|backup| inventory.time_of(backup)) {
            self.stay(last, "the last good full backup of all timelines");
        }
    }

    /// Every moment since then: with the last before it, and behind each hole that WAL from there does not pass with the next.
    fn by_wal(&mut self, inventory: &Inventory, wal: SignedDuration, ages: &Ages, line: &Line<'_>) {
        let Some(before) = line.before(inventory, ages.ago(wal)) else { return };
        let Some(followed) = inventory.catalog.followed_timeline() else { return };
        let path = inventory.catalog.history(followed);
        let end = |backup: &BackupDocument| reach(&inventory.catalog, inventory.size, &path, backup.start_lsn);
        self.stay(before, "for the beginning of retention.wal");
        let mut reached = end(before);
        for backup in line.usable.iter().filter(|backup| order(backup) > order(before)) {
            if backup.end_lsn > reached {
                self.stay(backup, "behind a hole in what retention.wal keeps");
                reached = end(backup);
            }
        }
    }

    /// Where the WAL begins that is kept without a hole: with the last backup before the window, or the first that stays.
    fn window_start<'a>(
        &self,
        inventory: &Inventory,
        policy: &Policy,
        ages: &Ages,
        line: &Line<'a>,
    ) -> Option<&'a BackupDocument> {
        let by_wal = match policy.wal {
            Some(wal) => line.before(inventory, ages.ago(wal)),
            None => line.usable.iter().copied().find(|backup| self.finished.contains_key(&backup.id)),
        };
        // The age and the floor may need an older one.
        let by_age = policy.age.filter(|age| !age.is_zero()).and_then(|age| line.before(inventory, ages.ago(age)));
        let by_floor = line.before(inventory, ages.floor);
        by_wal.into_iter().chain(by_age).chain(by_floor).min_by_key(|backup| order(backup))
    }

    /// Every moment from the floor on, on every timeline. Returns those with which it begins on lines that were left.
    fn by_floor(
        &mut self,
        inventory: &Inventory,
        ages: &Ages,
        (judged, line): (&[Judged<'_>], &Line<'_>),
    ) -> BTreeSet<BackupId> {
        const WHY: &str = "for the beginning of retention.minimum_window";
        for backup in inventory.catalog.finished_backups().filter(|backup| inventory.time_of(backup) >= ages.floor) {
            self.stay(backup, "not older than retention.minimum_window");
        }
        if let Some(before) = line.before(inventory, ages.floor) {
            self.stay(before, WHY);
        }
        let is_young = |coverage: &Coverage| coverage.objects().iter().any(|stored| stored.modified >= ages.floor);
        let young = inventory.catalog.coverage.iter().filter(|(_, coverage)| is_young(coverage));
        let mut firsts = BTreeSet::new();
        for (&timeline, _) in young {
            let line = Line::of(inventory, judged, timeline);
            let Some(before) = line.before(inventory, ages.floor) else { continue };
            for backup in line.usable.iter().filter(|backup| order(backup) >= order(before)) {
                self.stay(backup, WHY);
                firsts.insert(backup.id.clone());
            }
        }
        firsts
    }

    /// Those that do not count, as long as WAL of their time is kept.
    fn out_of_line(&mut self, inventory: &Inventory, from: Option<&BackupDocument>, line: &Line<'_>) {
        let Some(from) = from else { return };
        let counts = |backup: &&BackupDocument| line.good.iter().any(|other| other.id == backup.id);
        let others = inventory.catalog.finished_backups().filter(|backup| !counts(backup));
        for backup in others.filter(|backup| is_behind(inventory, backup, from, line)) {
            self.stay(backup, "does not count (damaged, suspect, or off the line), and WAL of its time is kept");
        }
    }

    /// Those behind the beginning of the window are restored to any moment.
    fn widen(
        &mut self,
        inventory: &Inventory,
        from: Option<&BackupDocument>,
        ages: &Ages,
        (line, firsts): (&Line<'_>, &BTreeSet<BackupId>),
    ) {
        for backup in inventory.catalog.finished_backups() {
            let Some(stay) = self.finished.get_mut(&backup.id) else { continue };
            let is_behind = from.is_none_or(|from| is_behind(inventory, backup, from, line));
            let is_of_floor = inventory.time_of(backup) >= ages.floor || firsts.contains(&backup.id);
            stay.to_any_moment = is_behind || is_of_floor;
        }
    }

    fn by_marks(&mut self, inventory: &Inventory, ages: &Ages) {
        for backup in inventory.catalog.finished_backups() {
            if let Some(mark) = inventory.marks.get(&backup.id).filter(|mark| mark.holds(ages.now)) {
                self.stay(backup, format!("kept: {}", mark.reason));
            }
        }
    }

    /// What cannot be deleted yet is kept as something that can be restored: it is paid for in any case.
    fn by_lock(&mut self, inventory: &Inventory, policy: &Policy, ages: &Ages) {
        for backup in inventory.catalog.finished_backups() {
            let newest = inventory.folders.get(&backup.id).and_then(|folder| folder.newest);
            if let Some(until) = newest.and_then(|newest| ages.locked_until(policy, newest)) {
                self.stay(backup, format!("taken to be locked until {until}"));
            }
        }
    }

    /// What those build on that stay, or that somebody is at.
    fn references(&mut self, inventory: &Inventory) {
        let catalog = &inventory.catalog;
        let find = |id: &BackupId| catalog.finished_backups().find(|backup| backup.id == *id);
        let begun = catalog.backups.iter().filter(|entry| self.begun.contains(&entry.id));
        let mut wanted: Vec<(BackupId, String)> =
            begun.filter_map(|entry| Some((entry.begin.as_ref()?.reference.clone()?, entry.id.to_string()))).collect();
        let staying = catalog.finished_backups().filter(|backup| self.finished.contains_key(&backup.id));
        wanted.extend(staying.filter_map(|backup| Some((backup.reference.clone()?, backup.id.to_string()))));
        while let Some((id, newer)) = wanted.pop() {
            let Some(backup) = find(&id) else { continue };
            let was_there = self.finished.contains_key(&id);
            self.stay(backup, format!("{newer} builds on it"));
            if let (false, Some(reference)) = (was_there, &backup.reference) {
                wanted.push((reference.clone(), id.to_string()));
            }
        }
    }

    fn check_wal(&mut self, inventory: &Inventory, policy: &Policy, line: &Line<'_>) {
        let nameless = inventory.catalog.backups.iter().find(|it| self.begun.contains(&it.id) && it.begin.is_none());
        self.all_wal = if !policy.chooses_backups() && policy.wal.is_none() {
            Some("retention is not configured".to_owned())
        } else if line.good.is_empty() {
            Some("there is no good backup on the line that is followed".to_owned())
        } else {
            nameless.map(|entry| format!("base backup {} does not say what it needs", entry.id))
        };
    }
}

/// True if WAL of its time is kept, where that of `from` is: by position on the same line, by time elsewhere.
fn is_behind(inventory: &Inventory, backup: &BackupDocument, from: &BackupDocument, line: &Line<'_>) -> bool {
    match line.usable.iter().any(|other| other.id == backup.id) {
        true => order(backup) >= order(from),
        false => inventory.time_of(backup) >= inventory.time_of(from),
    }
}

/// The newest that was complete at `cut`.
fn newest_until<'a>(inventory: &Inventory, line: &[&'a BackupDocument], cut: Timestamp) -> Option<&'a BackupDocument> {
    line.iter().rev().copied().find(|backup| inventory.time_of(backup) <= cut)
}

/// The paths on which a backup that begins there is of use: to every timeline that passes the place.
pub(super) fn paths_from(inventory: &Inventory, timeline: TimelineId, start: Lsn) -> Vec<History> {
    let catalog = &inventory.catalog;
    let known: BTreeSet<TimelineId> =
        catalog.coverage.keys().chain(catalog.histories.keys()).copied().chain([timeline]).collect();
    let passes = |history: &History| {
        history.passes(timeline) && history.switch_from(timeline).is_none_or(|switch| start < switch)
    };
    known.into_iter().map(|id| catalog.history(id)).filter(passes).collect()
}

/// How far a backup can be restored along a path.
pub(super) fn reach(
    catalog: &crate::repository::Catalog,
    size: crate::wal::SegmentSize,
    path: &History,
    start: Lsn,
) -> Lsn {
    let route = Route::new(path.clone(), size, catalog);
    route.covered(catalog, size.segment_start(start)).until
}
