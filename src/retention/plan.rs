//! From what is stored, a policy and a clock to what goes and what stays, and in which order. Pure.
//!
//! ```text
//! inventory ─► ages ─► select: which backups stay ─► needs: their WAL ─► plan: groups with reasons, steps ─► prove ─► execute
//! ```
//!
//! The order of the steps: base backups, those that build on others first; what is left of attempts; notes of WAL that goes behind
//! something kept, before it goes; WAL; what speaks of it; reports. After each step everything that stays can be restored as before.

use super::age::Ages;
use super::inventory::{Inventory, Object};
use super::needs::Needs;
use super::policy::Policy;
use super::select::{Selection, paths_from, select};
use crate::repository::{BackupId, Coverage, Key, Stored};
use crate::wal::{Lsn, TimelineId, WalRange};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Objects that go or stay together, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Group {
    /// What they are.
    pub what: String,
    /// Whether they go.
    pub goes: bool,
    /// Why.
    pub reason: String,
    /// How many they are.
    pub objects: u64,
    /// Bytes of them, as stored.
    pub bytes: u64,
}

/// An object to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doomed {
    /// Its full name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What is done in one go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A finished base backup goes: first the document by which it exists.
    Backup(BackupId),
    /// One goes that was never finished.
    Orphan(BackupId),
    /// A note is stored about WAL that goes next.
    Note(WalRange),
    /// These go, in this order or nearly.
    Objects(Vec<Doomed>),
}

/// See the head of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Everything that is stored, in groups.
    pub groups: Vec<Group>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Which backups stay.
    pub selection: Selection,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// What it frees: objects, bytes.
    pub fn frees(&self) -> (u64, u64) {
        let gone = self.groups.iter().filter(|group| group.goes);
        gone.fold((0, 0), |(objects, bytes), group| (objects + group.objects, bytes + group.bytes))
    }

    /// Base backups that go, finished or not.
    pub fn doomed_backups(&self) -> BTreeSet<BackupId> {
        let backup = |step: &'_ Step| match step {
            Step::Backup(id) | Step::Orphan(id) => Some(id.clone()),
            Step::Note(_) | Step::Objects(_) => None,
        };
        self.steps.iter().filter_map(backup).collect()
    }

    /// Names of other objects that go.
    pub fn doomed_objects(&self) -> impl Iterator<Item = &Doomed> {
        let lists = self.steps.iter().filter_map(|step| match step {
            Step::Objects(objects) => Some(objects),
            _ => None,
        });
        lists.flatten()
    }
}

/// Plans. `zone` is that of the machine, for a policy without one.
pub fn plan(inventory: &Inventory, policy: &Policy, zone: &TimeZone, now: Timestamp) -> Plan {
    let ages = Ages::of(inventory, policy.minimum_window, now);
    let selection = select(inventory, policy, policy.zone.as_ref().unwrap_or(zone), &ages);
    let needs = Needs::of(inventory, &selection);
    let mut planner = Planner { inventory, policy, ages, needs, selection, groups: Vec::new(), steps: Vec::new() };
    planner.backups();
    planner.leftovers();
    let stays = planner.wal();
    planner.others(&stays);
    let mut notes: Vec<String> = planner.selection.all_wal.iter().map(|why| format!("no WAL goes: {why}")).collect();
    notes.extend(planner.selection.half_gone.iter().map(|id| {
        format!(
            "base backup {id} is marked, and its backup.json is missing: it stays, with what it builds on and all WAL behind its beginning. \
             Is there an older version of that document? If not, `seawall keep {id} --remove` lets go of it"
        )
    }));
    let unknown = inventory.unknown.len() as u64;
    if unknown > 0 {
        planner.group("names that are none of ours", false, "never deleted", unknown, 0);
    }
    let Planner { groups, steps, selection, .. } = planner;
    Plan { groups, steps, selection, notes }
}

struct Planner<'a> {
    inventory: &'a Inventory,
    policy: &'a Policy,
    ages: Ages,
    needs: Needs,
    selection: Selection,
    groups: Vec<Group>,
    steps: Vec<Step>,
}

impl Planner<'_> {
    fn group(&mut self, what: impl Into<String>, goes: bool, reason: impl Into<String>, objects: u64, bytes: u64) {
        if objects > 0 {
            self.groups.push(Group { what: what.into(), goes, reason: reason.into(), objects, bytes });
        }
    }

    fn locked_until(&self, modified: Timestamp) -> Option<Timestamp> {
        self.ages.locked_until(self.policy, modified)
    }

    fn backups(&mut self) {
        let inventory = self.inventory;
        let (mut doomed, mut orphans) = (Vec::new(), Vec::new());
        for entry in &inventory.catalog.backups {
            let folder = inventory.folders.get(&entry.id);
            let (objects, bytes) = folder.map_or((0, 0), |folder| (folder.objects, folder.bytes));
            let (what, goes, reason) = match &entry.document {
                Some(document) => match self.selection.finished.get(&entry.id) {
                    Some(stay) => {
                        let reasons: Vec<&str> = stay.reasons.iter().map(String::as_str).collect();
                        let wal = if stay.to_any_moment { "" } else { " (with the WAL that makes it consistent)" };
                        (document.backup_type(), false, format!("{}{wal}", reasons.join("; ")))
                    }
                    None => {
                        doomed.push((document.start_lsn, entry.id.clone()));
                        (document.backup_type(), true, "nothing asks for it".to_owned())
                    }
                },
                None if self.selection.orphans.contains(&entry.id) => {
                    let newest = folder.and_then(|folder| folder.newest);
                    match newest.and_then(|newest| self.locked_until(newest)) {
                        Some(until) => ("unfinished", false, format!("taken to be locked until {until}")),
                        None => {
                            orphans.push(Step::Orphan(entry.id.clone()));
                            ("unfinished", true, "nothing was stored of it for a day".to_owned())
                        }
                    }
                }
                None if self.selection.half_gone.contains(&entry.id) => {
                    ("unfinished", false, "marked, and its backup.json is missing".to_owned())
                }
                None => ("unfinished", false, "somebody may be at it".to_owned()),
            };
            // What is left over has a line of its own.
            let leftovers = folder.filter(|_| !goes).map(|folder| &folder.leftovers);
            let left = leftovers.map_or((0, 0), |left| (left.len() as u64, left.iter().map(|it| it.bytes).sum()));
            self.group(format!("{what} backup {}", entry.id), goes, reason, objects - left.0, bytes - left.1);
        }
        // Before what they build on: somebody may have gone on with one since.
        self.steps.extend(orphans);
        // What builds on another begins behind it.
        doomed.sort_by(|one, other| other.cmp(one));
        self.steps.extend(doomed.into_iter().map(|(_, id)| Step::Backup(id)));
    }

    fn leftovers(&mut self) {
        let inventory = self.inventory;
        for (id, folder) in &inventory.folders {
            if !self.selection.finished.contains_key(id) {
                continue;
            }
            let (old, young): (Vec<&Object>, Vec<&Object>) =
                folder.leftovers.iter().partition(|object| self.ages.is_old(object.modified));
            let (locked, old): (Vec<&Object>, Vec<&Object>) =
                old.into_iter().partition(|object| self.locked_until(object.modified).is_some());
            for (objects, goes, reason) in [
                (young, false, "stored in the last day"),
                (locked, false, "left of attempts, and locked still"),
                (old, true, "left of attempts, and no part of the backup"),
            ] {
                let bytes = objects.iter().map(|object| object.bytes).sum();
                self.group(format!("leftovers of backup {id}"), goes, reason, objects.len() as u64, bytes);
                if goes && !objects.is_empty() {
                    self.steps.push(Step::Objects(objects.into_iter().map(doomed).collect()));
                }
            }
        }
    }

    /// Returns what stays of each timeline.
    fn wal(&mut self) -> BTreeMap<TimelineId, Coverage> {
        let inventory = self.inventory;
        let mut stays = BTreeMap::new();
        let (mut garbage_steps, mut notes, mut wal_steps) = (Vec::new(), Vec::new(), Vec::new());
        for (&timeline, coverage) in &inventory.catalog.coverage {
            let is_garbage = |stored: &&Stored| self.is_garbage(coverage, stored);
            let (garbage, wal): (Vec<&Stored>, Vec<&Stored>) = coverage.objects().iter().partition(is_garbage);
            let reason = self.why_all_stays(timeline);
            let may_go = |stored: &&Stored| {
                reason.is_none() && self.ages.is_old(stored.modified) && !self.needs.touch(stored.range)
            };
            let (gone, mut kept): (Vec<&Stored>, Vec<&Stored>) = wal.into_iter().partition(may_go);
            let is_locked = |stored: &&Stored| stored.is_block && self.locked_until(stored.modified).is_some();
            let (locked, gone): (Vec<&Stored>, Vec<&Stored>) = gone.into_iter().partition(is_locked);
            let sum = |objects: &[&Stored]| objects.iter().map(|stored| stored.stored_bytes).sum::<u64>();
            let whose = format!("of timeline {timeline}");
            let why = reason.clone().unwrap_or_else(|| "a backup that stays needs it, or it is of the last day".into());
            let (kept_what, gone_what) = (extent("WAL", &kept), extent("WAL", &gone));
            let garbage_bytes = sum(&garbage);
            self.group(format!("{kept_what} {whose}"), false, why, kept.len() as u64, sum(&kept));
            if let Some(until) = locked.iter().filter_map(|stored| self.locked_until(stored.modified)).max() {
                let (what, bytes) = (extent("WAL", &locked), sum(&locked));
                let why = format!("locked, the last of it until {until}");
                self.group(format!("{what} {whose}"), false, why, locked.len() as u64, bytes);
            }
            self.group(
                format!("{gone_what} {whose}"),
                true,
                "no backup that stays needs it",
                gone.len() as u64,
                sum(&gone),
            );
            let replaced = "blocks have their bytes";
            self.group(format!("tails {whose}"), true, replaced, garbage.len() as u64, garbage_bytes);
            kept.extend(locked);
            let kept = Coverage::new(kept.into_iter().cloned().collect());
            notes.extend(self.notes(timeline, &gone, &kept));
            garbage_steps.extend(garbage.iter().map(|stored| doomed_wal(stored)));
            wal_steps.extend(gone.iter().map(|stored| doomed_wal(stored)));
            stays.insert(timeline, kept);
        }
        self.objects(garbage_steps);
        self.steps.extend(notes.into_iter().map(Step::Note));
        self.objects(wal_steps);
        stays
    }

    fn objects(&mut self, objects: Vec<Doomed>) {
        if !objects.is_empty() {
            self.steps.push(Step::Objects(objects));
        }
    }

    /// A tail of which a block has every byte, for a day.
    fn is_garbage(&self, coverage: &Coverage, tail: &Stored) -> bool {
        if tail.is_block || !self.ages.is_old(tail.modified) {
            return false;
        }
        let block_start = self.inventory.size.block_start(tail.range.start);
        let objects = coverage.objects();
        let from = objects.partition_point(|stored| stored.range.start < block_start);
        let near = objects[from..].iter().take_while(|stored| stored.range.start <= tail.range.start);
        near.filter(|stored| stored.is_block && stored.stored_bytes > 0)
            .any(|block| block.range.contains(tail.range) && self.ages.is_old(block.modified))
    }

    fn why_all_stays(&self, timeline: TimelineId) -> Option<String> {
        let is_known = timeline == TimelineId(1) || self.inventory.catalog.histories.contains_key(&timeline);
        let nameless =
            (!is_known).then(|| format!("{} is missing: nobody knows what needs it", timeline.history_name()));
        self.selection.all_wal.clone().or(nameless)
    }

    /// The stretches that go behind the beginning of a backup that stays, and are not noted yet.
    fn notes(&self, timeline: TimelineId, gone: &[&Stored], kept: &Coverage) -> Vec<WalRange> {
        let inventory = self.inventory;
        let Some(first) = self.first_start(timeline) else { return Vec::new() };
        let mut ranges: Vec<WalRange> = Vec::new();
        for stored in gone {
            match ranges.last_mut() {
                Some(last) if stored.range.start <= last.end => last.end = last.end.max(stored.range.end),
                _ => ranges.push(stored.range),
            }
        }
        let runs = kept.runs();
        let is_noted = |range: &WalRange| {
            let known = inventory.others.iter().filter_map(|object| match &object.key {
                Key::Pruned(noted) => Some(*noted),
                _ => None,
            });
            known.into_iter().any(|noted| noted.contains(*range))
        };
        let holes = ranges.into_iter().flat_map(|range| cut(range, &runs));
        holes.filter(|hole| hole.end > first && !is_noted(hole)).collect()
    }

    /// Where the first of the staying backups begins from which a timeline can be reached.
    fn first_start(&self, timeline: TimelineId) -> Option<Lsn> {
        let inventory = self.inventory;
        let staying =
            inventory.catalog.finished_backups().filter(|backup| self.selection.finished.contains_key(&backup.id));
        let starts = staying.flat_map(|backup| {
            let paths = paths_from(inventory, backup.timeline, backup.start_lsn);
            paths.into_iter().filter(|path| path.passes(timeline)).map(|_| backup.start_lsn)
        });
        starts.min()
    }

    /// What speaks of WAL and of backups.
    fn others(&mut self, stays: &BTreeMap<TimelineId, Coverage>) {
        let inventory = self.inventory;
        let cutoff = self.first_moment();
        let last_before = |times: &mut dyn Iterator<Item = Timestamp>| times.filter(|time| *time < cutoff).max();
        let keys = || inventory.others.iter().map(|object| &object.key);
        let newest_names = last_before(&mut keys().filter_map(|key| match key {
            Key::Names(at) => Some(at.time),
            _ => None,
        }));
        let newest = |is_drill: bool| {
            let time = |key: &Key| match key {
                Key::Drill(time) if is_drill => Some(*time),
                Key::Prune(time) if !is_drill => Some(*time),
                _ => None,
            };
            keys().filter_map(time).max()
        };
        let (last_drill, last_prune) = (newest(true), newest(false));
        let is_garbage_only = self.selection.all_wal.is_some();
        let mut firsts: BTreeMap<TimelineId, Option<Lsn>> = BTreeMap::new();
        let mut sorted: BTreeMap<(&str, bool), (Vec<Doomed>, u64)> = BTreeMap::new();
        for object in &inventory.others {
            let (what, is_of_use) = match &object.key {
                Key::Heartbeat { timeline, flush, .. } => ("heartbeats", self.needs.hold(*timeline, *flush)),
                Key::Records(range) => ("indexes of records", self.needs.touch(*range)),
                Key::Names(at) => ("names of relations", at.time >= cutoff || Some(at.time) == newest_names),
                Key::Gap(range) | Key::Pruned(range) => {
                    let first = *firsts.entry(range.timeline).or_insert_with(|| self.first_start(range.timeline));
                    ("notes of missing WAL", self.is_behind_something(stays, first, *range))
                }
                Key::DeadBranch(range) => ("notes of dead branches", is_any_stored(stays, *range)),
                Key::Drill(time) => ("reports of drills", *time >= cutoff || Some(*time) == last_drill),
                Key::Prune(time) => ("reports of prunes", *time >= cutoff || Some(*time) == last_prune),
                Key::Keep(id, _) => ("marks of backups", inventory.folders.contains_key(id)),
                // Whoever said so is long done, or was killed.
                Key::Intent(..) => ("notes of what was about to be done", false),
                Key::Audit(_) => ("the audit trail", true),
                Key::Probe(_) => ("probes of the store", false),
                _ => ("other objects", true),
            };
            let is_garbage = matches!(object.key, Key::Keep(..) | Key::Intent(..) | Key::Probe(_));
            let is_locked = !matches!(object.key, Key::Probe(_)) && self.locked_until(object.modified).is_some();
            let may_go = self.ages.is_old(object.modified) && !is_locked;
            let goes = !is_of_use && may_go && (is_garbage || !is_garbage_only);
            let (objects, bytes) = sorted.entry((what, goes)).or_default();
            objects.push(doomed(object));
            *bytes += object.bytes;
        }
        for ((what, goes), (objects, bytes)) in sorted {
            let reason = if goes {
                "nothing that stays is of its time"
            } else {
                "of use with what stays, locked, or of the last day"
            };
            self.group(what, goes, reason, objects.len() as u64, bytes);
            if goes {
                self.objects(objects);
            }
        }
    }

    /// When the first backup began that stays.
    fn first_moment(&self) -> Timestamp {
        let began = self.inventory.catalog.backups.iter().filter_map(|entry| {
            let document = entry.document.as_ref().filter(|_| self.selection.finished.contains_key(&entry.id));
            let begin = entry.begin.as_ref().filter(|_| !self.selection.orphans.contains(&entry.id));
            let begin = begin.filter(|_| document.is_some() || entry.document.is_none());
            // One that was gone on with began earlier than it says at its end.
            document.map(|it| it.started_at).into_iter().chain(begin.map(|it| it.started_at)).min()
        });
        began.min().unwrap_or(Timestamp::MIN)
    }

    /// WAL that stays, or a backup, lies in front of the end of a range: somebody may wonder what became of it.
    fn is_behind_something(&self, stays: &BTreeMap<TimelineId, Coverage>, first: Option<Lsn>, range: WalRange) -> bool {
        let is_before = |start: Lsn| start < range.end;
        let stored = stays.get(&range.timeline).and_then(|coverage| coverage.objects().first());
        first.is_some_and(is_before)
            || stored.is_some_and(|stored| is_before(stored.range.start))
            || self.needs.begin_before(range.timeline, range.end)
    }
}

fn is_any_stored(stays: &BTreeMap<TimelineId, Coverage>, range: WalRange) -> bool {
    let objects = stays.get(&range.timeline).map(Coverage::objects).unwrap_or_default();
    objects.iter().any(|stored| stored.range.start < range.end && range.start < stored.range.end)
}

/// What of a range no run covers.
fn cut(range: WalRange, runs: &[crate::repository::CoverageRun]) -> Vec<WalRange> {
    let mut pieces = Vec::new();
    let mut position = range.start;
    for run in runs.iter().filter(|run| run.start < range.end && run.end > range.start) {
        if position < run.start {
            pieces.push(WalRange { start: position, end: run.start, ..range });
        }
        position = position.max(run.end);
    }
    if position < range.end {
        pieces.push(WalRange { start: position, ..range });
    }
    pieces
}

fn extent(what: &str, objects: &[&Stored]) -> String {
    let start = objects.iter().map(|stored| stored.range.start).min().unwrap_or(Lsn::INVALID);
    let end = objects.iter().map(|stored| stored.range.end).max().unwrap_or(Lsn::INVALID);
    format!("{what} from {start} to {end}")
}

fn doomed(object: &Object) -> Doomed {
    Doomed { name: object.name.clone(), bytes: object.bytes }
}

fn doomed_wal(stored: &Stored) -> Doomed {
    Doomed { name: stored.name.clone(), bytes: stored.stored_bytes }
}
