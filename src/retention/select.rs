//! Which base backups stay, and why. Pure.
//!
//! *Good* backups are those on the line that the archiver follows which a restore would take unasked: nothing was found wrong with
//! them, every object of theirs and of what they build on is there, and so is the WAL that makes them consistent. They alone count. Whatever else is there,
//! damaged, suspect, or of a server that was left behind, stays as long as WAL of its time does.

use super::age::Ages;
use super::inventory::Inventory;
use super::policy::Policy;
use crate::repository::{BackupDocument, BackupId, BackupVerdict};
use crate::restore::{self, Request, Route, Target, TargetAction};
use crate::wal::{History, Lsn, TimelineId};
use jiff::Timestamp;
use jiff::tz::TimeZone;
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
    /// Ones that somebody may be at.
    pub begun: BTreeSet<BackupId>,
    /// Ones that nobody is at any more.
    pub orphans: BTreeSet<BackupId>,
    /// Why no WAL goes at all, if that is so.
    pub all_wal: Option<String>,
}

/// Chooses.
pub(super) fn select(inventory: &Inventory, policy: &Policy, zone: &TimeZone, ages: &Ages) -> Selection {
    let mut chosen = Selection::default();
    chosen.sort_unfinished(inventory, ages);
    let line = line(inventory);
    let everything = match (policy.chooses_backups(), line.iter().any(|backup| backup.reference.is_none())) {
        (true, true) => None,
        (false, _) => Some("no rule chooses among base backups"),
        (true, false) => Some("there is no good full backup on the line that is followed, so that every backup stays"),
    };
    match everything {
        Some(why) => inventory.catalog.finished_backups().for_each(|backup| chosen.stay(backup, why)),
        None => chosen.by_rules(inventory, policy, zone, ages, &line),
    }
    // Whatever the rules say: what somebody may build on next, the floor, marks, and what all those build on.
    let from = chosen.window_start(inventory, policy, ages, &line).cloned();
    chosen.by_floor(inventory, ages, &line);
    chosen.out_of_line(inventory, from.as_ref(), &line);
    chosen.widen(inventory, from.as_ref(), ages, &line);
    chosen.by_marks(inventory, ages);
    chosen.references(inventory);
    chosen.check_wal(inventory, policy, &line);
    chosen
}

/// Good backups, in the order in which a restore prefers them: the last is the newest.
fn line(inventory: &Inventory) -> Vec<&BackupDocument> {
    let catalog = &inventory.catalog;
    let Some(followed) = catalog.followed_timeline() else { return Vec::new() };
    let path = catalog.history(followed);
    let is_good = |backup: &&BackupDocument| backup.is_on_path(&path) && is_good(inventory, backup);
    let mut line: Vec<&BackupDocument> = catalog.finished_backups().filter(is_good).collect();
    line.sort_by_key(|backup| order(backup));
    line
}

/// A restore would take it unasked, and there is all that it needs.
fn is_good(inventory: &Inventory, backup: &BackupDocument) -> bool {
    let is_sound = |backup: &BackupDocument| backup.findings.verdict() == BackupVerdict::Sound;
    let is_there = |backup: &BackupDocument| {
        inventory.folders.get(&backup.id).is_some_and(|folder| folder.missing == 0) && is_sound(backup)
    };
    let is_whole = inventory.catalog.chain(backup).is_ok_and(|chain| chain.iter().all(|link| is_there(link)));
    is_there(backup) && is_whole && is_restorable(&inventory.catalog, backup)
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
            match ages.is_old(newest) {
                true => self.orphans.insert(entry.id.clone()),
                false => self.begun.insert(entry.id.clone()),
            };
        }
    }

    fn by_rules(
        &mut self,
        inventory: &Inventory,
        policy: &Policy,
        zone: &TimeZone,
        ages: &Ages,
        line: &[&BackupDocument],
    ) {
        let full: Vec<&BackupDocument> = line.iter().rev().copied().filter(|it| it.reference.is_none()).collect();
        if let Some(count) = policy.full.filter(|count| *count > 0) {
            // With fewer of them, all.
            let first = full.get(count as usize - 1).map(|backup| order(backup));
            let is_newer = |backup: &&&BackupDocument| first.is_none_or(|first| order(backup) >= first);
            for backup in line.iter().filter(is_newer) {
                self.stay(backup, format!("of the last {count} full backups, or behind them"));
            }
        }
        if let Some(age) = policy.age.filter(|age| !age.is_zero()) {
            let cut = ages.ago(age);
            for backup in line.iter().filter(|backup| inventory.time_of(backup) >= cut) {
                self.stay(backup, "not older than retention.age");
            }
            if let Some(before) = newest_until(inventory, line, cut) {
                self.stay(before, "the one before that, for the beginning of the window");
            }
        }
        let newest_first: Vec<&BackupDocument> = line.iter().rev().copied().collect();
        let times: Vec<Timestamp> = newest_first.iter().map(|backup| backup.ended_at).collect();
        for (period, count) in &policy.calendar {
            let keeps = period.newest_of_each(&times, *count, zone);
            for (backup, _) in newest_first.iter().zip(keeps).filter(|(_, keeps)| *keeps) {
                self.stay(backup, period.adjective());
            }
        }
        if let Some(last) = full.first() {
            self.stay(last, "the last good full backup");
        }
        if let Some(last) = line.last() {
            self.stay(last, "the last good backup");
        }
        // Should the line be another one than the catalogue takes it for.
        let good = inventory.catalog.finished_backups().filter(|it| it.reference.is_none() && is_good(inventory, it));
        if let Some(last) = good.max_by_key(|backup| inventory.time_of(backup)) {
            self.stay(last, "the last good full backup of all timelines");
        }
    }

    /// Where the WAL begins that is kept without a hole: with the last backup before the window, or the first that stays.
    fn window_start<'a>(
        &self,
        inventory: &Inventory,
        policy: &Policy,
        ages: &Ages,
        line: &[&'a BackupDocument],
    ) -> Option<&'a BackupDocument> {
        let stays = |backup: &&&BackupDocument| self.finished.contains_key(&backup.id);
        let staying: Vec<&BackupDocument> = line.iter().filter(stays).copied().collect();
        let first_staying = staying.first().copied();
        let before_floor = newest_until(inventory, line, ages.floor);
        let by_wal = policy.wal.and_then(|wal| newest_until(inventory, &staying, ages.ago(wal))).or(first_staying);
        // The floor may need an older one.
        match (by_wal, before_floor) {
            (Some(one), Some(other)) => Some(if order(one) <= order(other) { one } else { other }),
            // Nothing good is as old as the floor: from the first on.
            (Some(_), None) => line.first().copied(),
            (None, other) => other,
        }
    }

    /// Every moment from the floor on, on every timeline.
    fn by_floor(&mut self, inventory: &Inventory, ages: &Ages, line: &[&BackupDocument]) {
        for backup in inventory.catalog.finished_backups().filter(|backup| inventory.time_of(backup) >= ages.floor) {
            self.stay(backup, "not older than retention.minimum_window");
        }
        match newest_until(inventory, line, ages.floor) {
            Some(before) => self.stay(before, "for the beginning of retention.minimum_window"),
            None => line.iter().take(1).for_each(|first| self.stay(first, "nothing older is good")),
        }
    }

    /// Those that do not count, as long as WAL of their time is kept.
    fn out_of_line(&mut self, inventory: &Inventory, from: Option<&BackupDocument>, line: &[&BackupDocument]) {
        let Some(from) = from else { return };
        let counts = |backup: &&BackupDocument| line.iter().any(|other| other.id == backup.id);
        let others = inventory.catalog.finished_backups().filter(|backup| !counts(backup));
        for backup in others.filter(|backup| inventory.time_of(backup) >= from.ended_at) {
            self.stay(backup, "does not count (damaged, suspect, or off the line), and WAL of its time is kept");
        }
    }

    /// Those behind the beginning of the window are restored to any moment.
    fn widen(&mut self, inventory: &Inventory, from: Option<&BackupDocument>, ages: &Ages, line: &[&BackupDocument]) {
        for backup in inventory.catalog.finished_backups() {
            let Some(stay) = self.finished.get_mut(&backup.id) else { continue };
            let is_in_line = line.iter().any(|other| other.id == backup.id);
            let is_behind = from.is_none_or(|from| match is_in_line {
                true => order(backup) >= order(from),
                false => inventory.time_of(backup) >= from.ended_at,
            });
            stay.to_any_moment = is_behind || inventory.time_of(backup) >= ages.floor;
        }
    }

    fn by_marks(&mut self, inventory: &Inventory, ages: &Ages) {
        for backup in inventory.catalog.finished_backups() {
            if let Some(mark) = inventory.marks.get(&backup.id).filter(|mark| mark.holds(ages.now)) {
                self.stay(backup, format!("kept: {}", mark.reason));
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

    fn check_wal(&mut self, inventory: &Inventory, policy: &Policy, line: &[&BackupDocument]) {
        let nameless = inventory.catalog.backups.iter().find(|it| self.begun.contains(&it.id) && it.begin.is_none());
        self.all_wal = if !policy.chooses_backups() && policy.wal.is_none() {
            Some("retention is not configured".to_owned())
        } else if line.is_empty() {
            Some("there is no good backup on the line that is followed".to_owned())
        } else {
            nameless.map(|entry| format!("base backup {} does not say what it needs", entry.id))
        };
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
