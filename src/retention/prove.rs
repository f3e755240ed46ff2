//! Whether a plan keeps what it promises, by the planner of restores and not by the one that made it. Pure.

use super::inventory::Inventory;
use super::plan::Plan;
use super::select::{is_restorable, paths_from, reach};
use crate::error::{Error, Kind, Result};
use crate::repository::{Catalog, Coverage};
use std::collections::HashSet;

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

/// Fails if anything that stays could be restored before and could not be afterwards, or not as far.
///
/// # Errors
/// [`Kind::Internal`]: a defect of the plan, found before anything was deleted.
pub fn prove(inventory: &Inventory, plan: &Plan) -> Result<()> {
    let (before, after) = (&inventory.catalog, after(inventory, plan));
    let defect = |what: String| {
        Err(Error::new(Kind::Internal, format!("the plan would take what is needed: {what}"))
            .hint("Nothing was deleted. Please report it, with what `seawall prune --dry-run --json` prints."))
    };
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
