//! Why a target cannot be reached, and what can be instead. Pure: the words of a planner, in one place.

use super::choose::{Candidate, Choice};
use super::plan::certainly_from;
use super::request::Target;
use super::survey::Survey;
use crate::error::{Error, Kind};
use crate::repository::{BackupDocument, BackupId, BrokenChain, Catalog};
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use std::collections::BTreeSet;

fn refused(message: String) -> Error {
    Error::new(Kind::Refused, message)
}

/// Things that exist, for a hint.
fn listed(what: &str, items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.is_empty() {
        true => format!("There is no {what} here."),
        false => format!("Known here: {}.", items.join(", ")),
    }
}

pub(super) fn future(time: Timestamp, now: Timestamp) -> Error {
    refused(format!("{time} is in the future: it is {now} now"))
        .hint("Is the time zone right? For everything that is stored, leave --to out.")
}

pub(super) fn unknown_timeline(catalog: &Catalog, timeline: TimelineId) -> Error {
    let known: BTreeSet<TimelineId> = catalog.coverage.keys().chain(catalog.histories.keys()).copied().collect();
    refused(format!("timeline {timeline} is not in the repository"))
        .hint(listed("timeline", known.iter().map(TimelineId::to_string)))
}

pub(super) fn unknown_backup(catalog: &Catalog, id: &BackupId) -> Error {
    let begun = catalog.backups.iter().any(|entry| entry.id == *id);
    let why = if begun { "was begun but never finished" } else { "is not in the repository" };
    let known = catalog.finished_backups().map(|backup| backup.id.to_string());
    refused(format!("backup {id} {why}")).hint(listed("finished backup", known))
}

pub(super) fn not_on_path(choice: &Choice<'_>, backup: &BackupDocument) -> Error {
    let (id, own, timeline) = (&backup.id, backup.end_timeline, choice.route.history.timeline);
    refused(format!("backup {id}, of timeline {own} at {}, is not on the path to timeline {timeline}", backup.end_lsn))
        .hint(format!("Give --timeline {own} to stay on the backup's own, or leave --backup out."))
}

pub(super) fn leads_elsewhere(followed: TimelineId, latest: TimelineId) -> Error {
    refused(format!("a standby would go on to timeline {latest}, and the archive follows timeline {followed}")).hint(
        "PostgreSQL takes the highest number for the latest. Restore without --standby, which names the timeline, or with \
         --backup and a backup of the timeline that is meant.",
    )
}

pub(super) fn before_first(choice: &Choice<'_>, on_path: &[&BackupDocument]) -> Error {
    let timeline = choice.route.history.timeline;
    match (on_path.last(), choice.passed_over()) {
        (Some(first), _) => or_damaged(choice, earliest(&choice.request.target, first, certainly_from(first))),
        (None, Some(damaged)) => refused(format!(
            "there is no sound backup on the path to timeline {timeline}: {} has pages that were damaged on the server's disk",
            damaged.id
        ))
        .hint(format!(
            "Is there another copy of the cluster, such as a standby? If not, --backup {} restores it with its damaged pages \
             (`seawall list` names them).",
            damaged.id
        )),
        (None, None) => {
            let known = choice.catalog.finished_backups();
            let elsewhere = known.map(|it| {
                let damaged = if it.findings.damaged { ", damaged" } else { "" };
                format!("{} on timeline {}{damaged}", it.id, it.end_timeline)
            });
            refused(format!("no finished backup lies on the path to timeline {timeline}"))
                .hint(listed("finished backup", elsewhere))
        }
    }
}

pub(super) fn broken_chain(choice: &Choice<'_>, chain: &BrokenChain) -> Error {
    let hint = match choice.request.backup {
        Some(_) => "Leave --backup out: another one may reach the target. Is there another copy of the bucket?",
        None => "No other backup reaches the target. Is there another copy of the bucket (versions, replication)?",
    };
    refused(chain.to_string()).hint(hint)
}

/// Adds that a damaged backup was not tried.
fn or_damaged(choice: &Choice<'_>, error: Error) -> Error {
    let Some(damaged) = choice.passed_over() else { return error };
    let hint = error.hint_text().unwrap_or_default();
    let hint = format!("{hint} Backup {0} was not tried, because it is damaged: --backup {0} does.", damaged.id);
    error.hint(hint)
}

/// The target lies before everything that `first`, the oldest backup, can reach, which is what lies behind `certain_from`.
fn earliest(target: &Target, first: &BackupDocument, certain_from: Timestamp) -> Error {
    let (id, lsn) = (&first.id, first.end_lsn);
    let hint = match target {
        Target::Lsn(_) => format!("The earliest that can be reached is --to-lsn {lsn}."),
        _ => format!("The earliest moment that can certainly be reached is {certain_from}; the earliest LSN is {lsn}."),
    };
    refused(format!("{target} lies before the first backup ({id}), which is consistent from {lsn} on")).hint(hint)
}

/// No candidate reaches the target, although some could have. The last one's WAL says from when on it can.
pub(super) fn none_reaches(choice: &Choice<'_>, tried: &[Candidate<'_>], certain_from: Option<Timestamp>) -> Error {
    let Some(oldest) = tried.last() else {
        return before_first(choice, &[]);
    };
    let target = &choice.request.target;
    let error = match target {
        Target::Xid(_) | Target::Name(_) => {
            let newest = tried.first().map_or(oldest.covered.until, |newest| newest.covered.until);
            let from = oldest.backup.end_lsn;
            let history = &choice.route.history;
            let error = refused(format!(
                "{target} is not between {from} and {newest} on the way to timeline {}",
                history.timeline
            ));
            error.hint("Was it on another timeline (--timeline), or not archived yet? `seawall list` shows what can be reached.")
        }
        _ if choice.request.backup.is_some() => {
            let (id, lsn) = (&oldest.backup.id, oldest.backup.end_lsn);
            refused(format!("{target} lies before backup {id} is consistent, which it is from {lsn} on"))
                .hint("Leave --backup out: an older one may reach it.")
        }
        _ => earliest(target, oldest.backup, certain_from.unwrap_or(certainly_from(oldest.backup))),
    };
    or_damaged(choice, error)
}

/// What lies behind a hole: where, and from when on it can be reached.
fn behind_hole(choice: &Choice<'_>, from: Lsn) -> String {
    let later = choice.catalog.finished_backups().filter(|backup| backup.start_lsn >= from);
    match later.min_by_key(|backup| (backup.findings.damaged, backup.end_lsn)) {
        Some(backup) if backup.findings.damaged => {
            format!("Behind the hole there is only a damaged backup: --backup {} restores it.", backup.id)
        }
        Some(backup) => {
            let first = certainly_from(backup);
            format!("Behind the hole, the first that can be reached is {first} (LSN {}).", backup.end_lsn)
        }
        None => "No backup was taken behind the hole yet: nothing behind it can be reached.".to_owned(),
    }
}

fn hole_words(choice: &Choice<'_>, candidate: &Candidate<'_>) -> Option<String> {
    let covered = candidate.covered;
    let next = covered.next?;
    let lost =
        match (choice.is_lost(covered.timeline, covered.until), choice.is_pruned(covered.timeline, covered.until)) {
            (true, _) => "recorded as lost",
            (false, true) => "deleted by retention",
            (false, false) => "missing",
        };
    Some(format!("WAL from {} to {next} of timeline {} is {lost}", covered.until, covered.timeline))
}

pub(super) fn hole(choice: &Choice<'_>, candidate: &Candidate<'_>) -> Error {
    let (backup, covered) = (candidate.backup, candidate.covered);
    let target = &choice.request.target;
    let what = hole_words(choice, candidate)
        .unwrap_or_else(|| format!("WAL from {} of timeline {} on is not stored", covered.until, covered.timeline));
    let behind = behind_hole(choice, covered.until);
    if covered.until < backup.end_lsn {
        return refused(format!(
            "backup {} cannot become consistent: {what}, and it needs all up to {}",
            backup.id, backup.end_lsn
        ))
        .hint(format!("Give an older --backup or an earlier target. {behind}"));
    }
    refused(format!("{target} cannot be reached: {what}")).hint(format!(
        "In front of the hole, --to-lsn {} --to-exclusive is the last that can be reached. {behind}",
        covered.until
    ))
}

pub(super) fn lsn_not_stored(choice: &Choice<'_>, candidate: &Candidate<'_>, lsn: Lsn) -> Error {
    let covered = candidate.covered;
    if covered.next.is_some_and(|next| next <= lsn) || hole_words(choice, candidate).is_some() {
        return hole(choice, candidate);
    }
    refused(format!("{lsn} is not archived: what is stored of timeline {} ends at {}", covered.timeline, covered.until))
        .hint(format!(
            "The last that can be reached is --to-lsn {} --to-exclusive, or leave the target out.",
            covered.until
        ))
}

/// The position is stored, but no record begins there or later.
pub(super) fn lsn_behind(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey, lsn: Lsn) -> Error {
    if candidate.covered.next.is_some() {
        return hole(choice, candidate);
    }
    let last = survey.last.map_or(candidate.backup.end_lsn, |span| span.start);
    refused(format!("no record at {lsn} or later is stored: the last one begins at {last}")).hint(format!(
        "pg_current_wal_lsn() names where the next record will begin: add --to-exclusive, or give --to-lsn {last}."
    ))
}

/// Nothing shows that the server did nothing more up to `time`.
pub(super) fn time_behind(
    choice: &Choice<'_>,
    candidate: &Candidate<'_>,
    survey: &Survey,
    time: Timestamp,
    newest: Option<Timestamp>,
) -> Error {
    let before = match newest {
        Some(newest) => format!("The newest moment that can be reached is {newest} (LSN {})", survey.end),
        None => format!("No record with a time is stored; the LSN {} can be reached", survey.end),
    };
    match hole_words(choice, candidate) {
        Some(hole) => refused(format!("{time} cannot be reached: {hole}"))
            .hint(format!("{before}. {}", behind_hole(choice, candidate.covered.until))),
        None => refused(format!("{time} is not archived: nothing stored shows what the server did up to then"))
            .hint(format!("{before}. For everything that is stored, leave --to out.")),
    }
}

pub(super) fn unreadable(target: &Target, lsn: Lsn, why: &str) -> Error {
    Error::new(Kind::Damaged, format!("{target} was not found: the WAL cannot be read from {lsn} on: {why}"))
        .hint(format!("--to-lsn {lsn} --to-exclusive, or an earlier target, can be reached."))
}

pub(super) fn minimal(lsn: Lsn) -> Error {
    refused(format!("recovery cannot pass {lsn}: there the server was started with wal_level = minimal"))
        .hint(format!("--to-lsn {lsn} --to-exclusive can be reached; behind it, only what a newer backup reaches."))
}
