//! What a policy promises of a repository, worked out in another way than the planner does; and whether it is so.

use crate::world::{MIB, SYSTEM, World};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use seawall::repository::{BackupDocument, BackupId, BackupVerdict, Catalog, Repository};
use seawall::restore::{self, Request, Target, TargetAction};
use seawall::retention::{Inventory, Plan, Policy, plan, prove};
use seawall::wal::{Lsn, TimelineId};
use std::collections::BTreeMap;

pub(crate) async fn inventory(repository: &Repository) -> Inventory {
    let cluster = Repository::read_cluster(repository.store.as_ref(), "main").await.unwrap().unwrap();
    assert_eq!(cluster.system_identifier, SYSTEM);
    Inventory::read(repository, cluster).await.unwrap()
}

pub(crate) async fn planned(world: &World, policy: &Policy, now: Timestamp) -> (Inventory, Plan) {
    let inventory = inventory(&world.repository).await;
    let plan = plan(&inventory, policy, &TimeZone::UTC, now);
    prove(&world.repository.layout, &inventory, &plan, policy, now).unwrap();
    (inventory, plan)
}

pub(crate) fn check(
    catalog: &Catalog,
    target: Target,
    backup: Option<&BackupId>,
    timeline: Option<TimelineId>,
) -> bool {
    let action = TargetAction::Promote;
    let request = Request { target, exclusive: true, backup: backup.cloned(), timeline, action };
    let exclusive = matches!(request.target, Target::Lsn(_));
    restore::check("main", catalog, &Request { exclusive, ..request }, Timestamp::MAX).is_ok()
}

pub(crate) fn is_restorable(catalog: &Catalog, backup: &BackupDocument) -> bool {
    check(catalog, Target::Immediate, Some(&backup.id), Some(backup.end_timeline))
}

/// Everything that must hold after a prune, and after each deletion of it.
#[derive(Debug)]
pub(crate) struct Promise {
    /// These backups can be restored.
    backups: Vec<BackupDocument>,
    /// Without naming a backup, these positions on these timelines can be restored.
    moments: Vec<(TimelineId, Lsn)>,
    /// The newest backups lead to the end.
    ends: bool,
}

impl Promise {
    /// What is promised of `catalog`: `floor_hours` of everything, the last `full` good full backups, and the marked.
    pub(crate) fn of(world: &World, inventory: &Inventory, policy: &Policy) -> Promise {
        let catalog = &inventory.catalog;
        let followed = catalog.history(catalog.followed_timeline().unwrap());
        let find = |id: &BackupId| catalog.finished_backups().find(|it| it.id == *id);
        let is_good = |backup: &&BackupDocument| {
            let mut link = Some(*backup);
            while let Some(it) = link {
                if it.findings.verdict() != BackupVerdict::Sound {
                    return false;
                }
                let Some(reference) = &it.reference else { break };
                link = find(reference);
            }
            backup.is_on_path(&followed) && is_restorable(catalog, backup)
        };
        let mut good: Vec<&BackupDocument> = catalog.finished_backups().filter(is_good).collect();
        good.sort_by_key(|backup| backup.end_lsn);
        let floor = world.ago(policy.minimum_window.as_hours());
        let mut promised: BTreeMap<BackupId, &BackupDocument> = BTreeMap::new();
        let mut promise = |backup: &'_ BackupDocument| {
            let mut link = find(&backup.id);
            while let Some(it) = link {
                promised.insert(it.id.clone(), it);
                link = it.reference.as_ref().and_then(find);
            }
        };
        catalog.finished_backups().filter(|it| it.ended_at > floor).for_each(&mut promise);
        let window = good.iter().rfind(|it| it.ended_at <= floor).or(good.first());
        window.into_iter().for_each(|it| promise(it));
        good.iter().rfind(|it| it.reference.is_none()).into_iter().for_each(|it| promise(it));
        good.last().into_iter().for_each(|it| promise(it));
        for (id, mark) in &inventory.marks {
            if mark.keep {
                find(id).into_iter().for_each(&mut promise);
            }
        }
        let full: Vec<&&BackupDocument> = good.iter().rev().filter(|it| it.reference.is_none()).collect();
        full.iter().take(policy.full.unwrap_or(0) as usize).for_each(|it| promise(it));
        if let Some(age) = policy.age {
            let cut = world.ago(age.as_hours());
            good.iter().filter(|it| it.ended_at > cut).for_each(|it| promise(it));
            good.iter().rfind(|it| it.ended_at <= cut).into_iter().for_each(|it| promise(it));
        }
        if !policy.chooses_backups() {
            catalog.finished_backups().for_each(&mut promise);
        }
        let backups = promised.into_values().filter(|it| is_restorable(catalog, it)).cloned().collect();
        // From the window's first backup on every half segment, as far as it could be restored before.
        let mut moments = Vec::new();
        if let Some(from) = window {
            for (timeline, coverage) in &catalog.coverage {
                let end = coverage.end().unwrap();
                let positions = (from.end_lsn.0..end.0).step_by((MIB / 2) as usize).map(Lsn).chain([end]);
                let known = positions.filter(|lsn| check(catalog, Target::Lsn(*lsn), None, Some(*timeline)));
                // On a line that was left before that, it is another backup's.
                let is_theirs = catalog.history(*timeline).timeline_at(from.start_lsn) == from.timeline;
                moments.extend(known.filter(|_| is_theirs).map(|lsn| (*timeline, lsn)));
            }
        }
        // And what the server says of its life since then tells which positions are of the time that is promised, whichever backups
        // lead there.
        let ages = policy.age.into_iter().chain(policy.wal);
        let cut = ages.map(|age| world.ago(age.as_hours())).fold(floor, Timestamp::min);
        for (timeline, coverage) in catalog.coverage.iter().filter(|(timeline, _)| followed.passes(**timeline)) {
            let lived = catalog.heartbeats.iter().filter(|(time, on, _)| *time >= cut && on == timeline);
            let Some(from) = lived.map(|(_, _, flush)| *flush).min() else { continue };
            let positions = (from.0..coverage.end().unwrap().0).step_by((MIB / 2) as usize).map(Lsn);
            let known = positions.filter(|lsn| check(catalog, Target::Lsn(*lsn), None, Some(*timeline)));
            moments.extend(known.map(|lsn| (*timeline, lsn)));
        }
        let ends = check(catalog, Target::End, None, None);
        Promise { backups, moments, ends }
    }

    /// What is broken, in words.
    pub(crate) fn broken(&self, catalog: &Catalog) -> Option<String> {
        let lost = self.backups.iter().find(|it| !is_restorable(catalog, it));
        let lost = lost.map(|backup| format!("base backup {} cannot be restored", backup.id));
        let moment =
            self.moments.iter().find(|(timeline, lsn)| !check(catalog, Target::Lsn(*lsn), None, Some(*timeline)));
        let moment = moment.map(|(timeline, lsn)| format!("{lsn} on timeline {timeline} cannot be restored"));
        let end =
            (self.ends && !check(catalog, Target::End, None, None)).then(|| "the end cannot be reached".to_owned());
        lost.or(moment).or(end)
    }
}
