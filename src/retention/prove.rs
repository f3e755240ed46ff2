//! Whether a plan keeps what it promises, by the planner of restores and not by the one that made it. Pure.

use super::age::Ages;
use super::inventory::Inventory;
use super::plan::Plan;
use super::policy::Policy;
use super::select::{is_restorable, paths_from, reach};
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BackupId, BackupPart, Catalog, ContentDigest, Coverage, Key, Layout};
use crate::wal::{History, Lsn};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};

/// What is there once the plan is carried out.
pub fn after(inventory: &Inventory, plan: &Plan) -> Catalog {
    let backups = plan.doomed_backups();
    let names: HashSet<&str> = plan.doomed_objects().map(|object| object.name.as_str()).collect();
    let mut catalog = inventory.catalog.clone();
    catalog.backups.retain(|entry| !backups.contains(&entry.id));
    for coverage in catalog.coverage.values_mut() {
        let stays = coverage.objects().iter().filter(|stored| !names.contains(stored.name.as_str()));
        *coverage = Coverage::new(stays.cloned().collect());
    }
    catalog.coverage.retain(|_, coverage| !coverage.objects().is_empty());
    catalog
}

/// Fails if anything that stays could be restored before and could not be afterwards, or not as far; or if a window of the policy, a
/// mark or an object of a backup that stays would be lost, whatever the plan says of itself.
///
/// # Errors
/// [`Kind::Internal`]: a defect of the plan, found before anything was deleted.
pub fn prove(layout: &Layout, inventory: &Inventory, plan: &Plan, policy: &Policy, now: Timestamp) -> Result<()> {
    let ages = Ages::of(inventory, policy.minimum_window, now);
    let (before, after) = (&inventory.catalog, after(inventory, plan));
    let defect = |what: String| {
        Err(Error::new(Kind::Internal, format!("the plan would take what is needed: {what}"))
            .hint("Nothing was deleted. Please report it, with what `seawall prune --dry-run --json` prints."))
    };
    let broken = broken_window(inventory, &after, policy, &ages)
        .or_else(|| broken_mark(inventory, &after, &ages))
        .or_else(|| taken_object(layout, inventory, &after, plan));
    if let Some(what) = broken {
        return defect(what);
    }
    if before.followed_timeline() != after.followed_timeline() {
        return defect("the line that is followed would be another".to_owned());
    }
    for backup in before.finished_backups() {
        let Some(stay) = plan.selection.finished.get(&backup.id) else { continue };
        if !after.finished_backups().any(|other| other.id == backup.id) {
            return defect(format!("base backup {} was to stay", backup.id));
        }
        if is_restorable(before, backup) && !is_restorable(&after, backup) {
            return defect(format!("base backup {} could no longer be restored", backup.id));
        }
        if !stay.to_any_moment {
            continue;
        }
        for path in paths_from(inventory, backup.timeline, backup.start_lsn) {
            let end = |catalog: &Catalog| reach(catalog, inventory.size, &path, backup.start_lsn);
            if end(before) != end(&after) {
                return defect(format!(
                    "base backup {} would not reach as far on timeline {}",
                    backup.id, path.timeline
                ));
            }
        }
    }
    for entry in before.backups.iter().filter(|entry| plan.selection.begun.contains(&entry.id)) {
        let Some(begin) = &entry.begin else { continue };
        for path in paths_from(inventory, begin.timeline, begin.start_lsn) {
            let end = |catalog: &Catalog| reach(catalog, inventory.size, &path, begin.start_lsn);
            if end(before) != end(&after) {
                return defect(format!("base backup {}, which was begun, needs it", entry.id));
            }
        }
        let is_there = |catalog: &Catalog| {
            begin.reference.as_ref().is_some_and(|id| catalog.finished_backups().any(|backup| backup.id == *id))
        };
        if is_there(before) && !is_there(&after) {
            return defect(format!("base backup {}, which was begun, builds on one that was to go", entry.id));
        }
    }
    Ok(())
}

/// A promised position that would be lost.
fn broken_window(inventory: &Inventory, after: &Catalog, policy: &Policy, ages: &Ages) -> Option<String> {
    let before = &inventory.catalog;
    let followed = before.followed_timeline()?;
    let lengths = policy.age.into_iter().chain(policy.wal);
    let cut = lengths.map(|length| ages.ago(length)).fold(ages.floor, Timestamp::min);
    for &timeline in before.coverage.keys() {
        let path = before.history(timeline);
        let cut = if timeline == followed { cut } else { ages.floor };
        let Some(begin) = window_begin(inventory, &path, cut) else { continue };
        let left = reachable(inventory, after, &path);
        for (start, end) in reachable(inventory, before, &path).into_iter().filter(|(_, end)| *end >= begin) {
            let start = start.max(begin);
            if !left.iter().any(|(from, to)| *from <= start && end <= *to) {
                return Some(format!(
                    "not every position from {start} to {end} on timeline {timeline} could be restored"
                ));
            }
        }
    }
    None
}

/// No later than the position at which the server was at `cut`: where the newest backup ends that was complete by then, or with the
/// first WAL that came since.
fn window_begin(inventory: &Inventory, path: &History, cut: Timestamp) -> Option<Lsn> {
    let catalog = &inventory.catalog;
    let complete = usable(inventory, catalog, path).filter(|backup| inventory.time_of(backup) <= cut);
    let since =
        catalog.coverage.iter().filter(|(timeline, _)| path.passes(**timeline)).flat_map(|(timeline, coverage)| {
            let switch = path.switch_from(*timeline);
            let came = coverage.objects().iter().filter(move |stored| stored.modified >= cut);
            came.map(|stored| stored.range.start).filter(move |start| switch.is_none_or(|switch| *start < switch))
        });
    let since = since.min()?;
    Some(complete.map(|backup| backup.end_lsn).max().unwrap_or(since).max(since))
}

/// Those on a path that a restore takes unasked, and that lack nothing.
fn usable<'a>(
    inventory: &'a Inventory,
    catalog: &'a Catalog,
    path: &'a History,
) -> impl Iterator<Item = &'a BackupDocument> {
    let is_whole = |backup: &BackupDocument| inventory.folders.get(&backup.id).is_some_and(|it| it.missing == 0);
    catalog.finished_backups().filter(move |backup| {
        let chain = catalog.chain(backup);
        backup.is_on_path(path)
            && !backup.findings.damaged
            && is_whole(backup)
            && chain.is_ok_and(|links| links.into_iter().all(is_whole))
    })
}

/// The stretches of a path to whose positions a restore leads that names no backup.
fn reachable(inventory: &Inventory, catalog: &Catalog, path: &History) -> Vec<(Lsn, Lsn)> {
    let stretches = usable(inventory, catalog, path).map(|backup| {
        let end = reach(catalog, inventory.size, path, backup.start_lsn);
        (backup.end_lsn, end)
    });
    let mut stretches: Vec<(Lsn, Lsn)> = stretches.filter(|(start, end)| start <= end).collect();
    stretches.sort();
    let mut merged: Vec<(Lsn, Lsn)> = Vec::new();
    for (start, end) in stretches {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// A backup that somebody marked and that would go.
fn broken_mark(inventory: &Inventory, after: &Catalog, ages: &Ages) -> Option<String> {
    let is_there = |catalog: &Catalog, id: &BackupId| catalog.finished_backups().any(|backup| backup.id == *id);
    let mut held = inventory.marks.iter().filter(|(_, mark)| mark.holds(ages.now)).map(|(id, _)| id);
    let lost = held.find(|id| is_there(&inventory.catalog, id) && !is_there(after, id))?;
    Some(format!("base backup {lost} is marked to be kept"))
}

/// An object of a backup that stays and that would go.
fn taken_object(layout: &Layout, inventory: &Inventory, after: &Catalog, plan: &Plan) -> Option<String> {
    let mut doomed: BTreeMap<BackupId, Vec<&str>> = BTreeMap::new();
    for object in plan.doomed_objects() {
        let key = layout.parse(&object.name);
        if let Ok(Key::BackupPart(id, _) | Key::BackupManifest(id, _) | Key::BackupBegin(id) | Key::BackupEnd(id)) = key
        {
            doomed.entry(id).or_default().push(&object.name);
        }
    }
    for (id, names) in doomed.into_iter().filter(|(id, _)| inventory.folders.contains_key(id)) {
        let Some(document) = after.finished_backups().find(|backup| backup.id == id) else { continue };
        let part = |part: &BackupPart| layout.name_in(&Key::BackupPart(id.clone(), part.name), document.ending);
        let mut needed: HashSet<String> = document.parts.iter().map(part).collect();
        let manifest = ContentDigest::of_hex(&document.manifest_sha256);
        needed.extend(manifest.map(|it| layout.name_in(&Key::BackupManifest(id.clone(), it), document.ending)));
        needed.extend([Key::BackupBegin(id.clone()), Key::BackupEnd(id.clone())].map(|key| layout.name(&key)));
        if let Some(name) = names.into_iter().find(|name| needed.contains(*name)) {
            return Some(format!("{name} is of a base backup that was to stay"));
        }
    }
    None
}
