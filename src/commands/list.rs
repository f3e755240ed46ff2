//! `seawall list` and `seawall status`: what the repository holds, and what can be restored from it.

use super::print::{self, Align, Table};
use super::{parts, time};
use crate::config::Settings;
use crate::error::Result;
use crate::repository::{
    BackupDocument, BackupId, BackupVerdict, Catalog, CoverageRun, Findings, Repository, WalReader,
};
use crate::restore::{Route, newest_moment};
use crate::runtime::Clock;
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where that is so.
const BACKUP_NEEDED: &str =
    "no sound base backup was taken behind the last gap: nothing behind it can be restored; run `seawall backup`";

/// What can be restored from one base backup.
#[derive(Serialize)]
struct Window {
    backup: String,
    label: String,
    #[serde(rename = "type")]
    backup_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<BackupId>,
    /// What it builds on is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    broken: Option<String>,
    timeline: TimelineId,
    started_at: Timestamp,
    ended_at: Timestamp,
    plain_bytes: u64,
    stored_bytes: u64,
    consistent_from: Lsn,
    /// Where it leads to.
    #[serde(skip)]
    onto: TimelineId,
    restorable_to: Option<Lsn>,
    /// The newest moment in there; `None` if nothing with a date is stored, or it is encrypted.
    restorable_to_time: Option<Timestamp>,
    verdict: BackupVerdict,
    #[serde(skip_serializing_if = "Findings::is_empty")]
    findings: Findings,
    /// It stays whatever retention says.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
}

/// Why a backup stays whatever retention says.
#[derive(Clone, Serialize)]
struct Kept {
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Every moment between two can be restored.
#[derive(Serialize)]
struct RecoveryWindow {
    /// The timeline that it ends on.
    timeline: TimelineId,
    from: Lsn,
    from_time: Timestamp,
    to: Lsn,
    to_time: Option<Timestamp>,
    base_backups: usize,
}

impl RecoveryWindow {
    /// What the backups give together, by timeline and position. Damaged ones are used where they are named only.
    fn of(backups: &[Window]) -> Vec<RecoveryWindow> {
        let mut windows: BTreeMap<(TimelineId, Lsn), RecoveryWindow> = BTreeMap::new();
        for backup in backups.iter().filter(|backup| !backup.findings.damaged) {
            let Some(to) = backup.restorable_to else { continue };
            // Of a server at rest nothing is dated later than the checkpoint with which the backup began.
            let from_time = backup.restorable_to_time.map_or(backup.ended_at, |to| to.min(backup.ended_at));
            let own = RecoveryWindow {
                timeline: backup.onto,
                from: backup.consistent_from,
                from_time,
                to,
                to_time: backup.restorable_to_time,
                base_backups: 0,
            };
            let window = windows.entry((backup.onto, to)).or_insert(own);
            window.base_backups += 1;
            if backup.consistent_from < window.from {
                (window.from, window.from_time) = (backup.consistent_from, from_time);
            }
        }
        windows.into_values().collect()
    }
}

#[derive(Serialize)]
struct TimelineReport {
    timeline: TimelineId,
    stored: Vec<CoverageRun>,
}

#[derive(Serialize)]
struct RangeReport {
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
}

impl RangeReport {
    fn of(range: WalRange) -> RangeReport {
        RangeReport { timeline: range.timeline, start: range.start, end: range.end }
    }
}

#[derive(Serialize)]
struct Report {
    cluster: String,
    system_identifier: String,
    postgres_version: u32,
    backups: Vec<Window>,
    unfinished_backups: Vec<String>,
    recovery_windows: Vec<RecoveryWindow>,
    wal: Vec<TimelineReport>,
    lost_wal: Vec<RangeReport>,
    /// WAL was lost, and no base backup behind it is finished.
    backup_needed: bool,
    dead_branches: Vec<RangeReport>,
    unknown_objects: Vec<String>,
}

/// Prints backups, WAL and holes.
///
/// # Errors
/// If the repository cannot be read.
pub(super) async fn list(as_json: bool, settings: Settings) -> Result<()> {
    let (report, _) = read(&settings).await?;
    if as_json {
        return print::stdout(&print::json(&report)?);
    }
    let zone = time::local_now(&Clock::system()).time_zone().clone();
    let mut text = format!(
        "cluster {} (system identifier {}, PostgreSQL {})\n\n",
        report.cluster,
        report.system_identifier,
        report.postgres_version / 10_000
    );
    let mut backups = Table::new(&[
        ("backup", Align::Left),
        ("builds on", Align::Left),
        ("taken", Align::Left),
        ("size", Align::Right),
        ("stored", Align::Right),
        ("timeline", Align::Right),
        ("restorable from", Align::Left),
        ("to", Align::Left),
        ("newest moment", Align::Left),
    ]);
    for window in &report.backups {
        backups.row([
            window.backup.clone(),
            window.reference.as_ref().map_or_else(|| "(full)".to_owned(), ToString::to_string),
            print::time(window.ended_at, &zone),
            print::size(window.plain_bytes),
            print::size(window.stored_bytes),
            window.timeline.to_string(),
            window.consistent_from.to_string(),
            match (window.restorable_to, window.verdict) {
                _ if window.broken.is_some() => "not restorable: see below".to_owned(),
                (None, _) => "not restorable: its WAL is missing".to_owned(),
                (Some(to), BackupVerdict::Sound) => to.to_string(),
                (Some(to), BackupVerdict::Suspect) => format!("{to} (suspect)"),
                (Some(to), BackupVerdict::Damaged) => format!("{to} (damaged)"),
            },
            window.restorable_to_time.map_or_else(String::new, |newest| print::time(newest, &zone)),
        ]);
    }
    text.push_str(&if backups.is_empty() {
        "no base backup yet: run `seawall backup`\n".to_owned()
    } else {
        backups.render()
    });
    for broken in report.backups.iter().filter_map(|window| window.broken.as_ref()) {
        text.push_str(&format!("NOT RESTORABLE: {broken}\n"));
    }
    for window in &report.backups {
        if let Some(found) = window.findings.in_words() {
            text.push_str(&format!("{} is {found}\n", window.backup));
        }
    }
    for (window, kept) in report.backups.iter().filter_map(|window| Some((window, window.kept.as_ref()?))) {
        let until = kept.until.map_or_else(String::new, |until| format!(" until {}", print::time(until, &zone)));
        text.push_str(&format!("{} is kept{until}: {}\n", window.backup, kept.reason));
    }
    for id in &report.unfinished_backups {
        text.push_str(&format!("unfinished: {id} (running, or interrupted; never used for a restore; `seawall backup --resume {id}` goes on with it)\n"));
    }
    if !report.recovery_windows.is_empty() {
        text.push('\n');
        text.push_str(&recovery_windows(&report.recovery_windows, &report.lost_wal, &zone));
    }
    let mut wal = Table::new(&[
        ("timeline", Align::Right),
        ("WAL from", Align::Left),
        ("to", Align::Left),
        ("bytes", Align::Right),
    ]);
    for timeline in &report.wal {
        for run in &timeline.stored {
            wal.row([
                timeline.timeline.to_string(),
                run.start.to_string(),
                run.end.to_string(),
                print::size(run.end - run.start),
            ]);
        }
    }
    text.push('\n');
    text.push_str(&wal.render());
    for gap in &report.lost_wal {
        text.push_str(&format!(
            "LOST: {}..{} on timeline {}: no moment in there can be restored\n",
            gap.start, gap.end, gap.timeline
        ));
    }
    if report.backup_needed {
        text.push_str(&format!("{BACKUP_NEEDED}\n"));
    }
    for branch in &report.dead_branches {
        text.push_str(&format!(
            "note: timeline {} was left at {}; behind it {} are stored, up to {}, of a server that was cut off: --timeline {} \
             restores them\n",
            branch.timeline,
            branch.start,
            print::size(branch.end - branch.start),
            branch.end,
            branch.timeline
        ));
    }
    if !report.unknown_objects.is_empty() {
        text.push_str(&format!("{} objects are not Seawall's (--json names them)\n", report.unknown_objects.len()));
    }
    print::stdout(&text)
}

/// Which moments can be restored, and what lies between them.
fn recovery_windows(windows: &[RecoveryWindow], lost: &[RangeReport], zone: &TimeZone) -> String {
    let mut table = Table::new(&[
        ("timeline", Align::Right),
        ("every moment from", Align::Left),
        ("LSN", Align::Left),
        ("to", Align::Left),
        ("LSN", Align::Left),
        ("base backups", Align::Right),
    ]);
    let mut before: Option<&RecoveryWindow> = None;
    for window in windows {
        let is_lost = |from: Lsn| lost.iter().any(|gap| from <= gap.start && gap.end <= window.from);
        let is_gap = |before: &&RecoveryWindow| before.timeline == window.timeline || is_lost(before.to);
        if let Some(before) = before.filter(is_gap) {
            let (from, to) = (before.to.to_string(), window.from.to_string());
            table.row(["".into(), "GAP: no moment".into(), from, "in between".into(), to, "".into()]);
        }
        table.row([
            window.timeline.to_string(),
            print::time(window.from_time, zone),
            window.from.to_string(),
            window.to_time.map_or_else(|| "(not known)".to_owned(), |to| print::time(to, zone)),
            window.to.to_string(),
            window.base_backups.to_string(),
        ]);
        before = Some(window);
    }
    table.render()
}

/// A server that lives is stored of every quarter of an hour, also where it does nothing (`ArchiveOptions::heartbeat_interval`).
const ARCHIVED_WITHIN: SignedDuration = SignedDuration::from_mins(30);

/// How far a restore could go now.
#[derive(Serialize, Default)]
struct Status {
    cluster: String,
    newest_backup: Option<String>,
    newest_backup_type: Option<&'static str>,
    newest_backup_reference: Option<BackupId>,
    newest_backup_ended_at: Option<Timestamp>,
    restorable_to: Option<Lsn>,
    restorable_to_time: Option<Timestamp>,
    timeline: Option<TimelineId>,
    server_lsn: Option<Lsn>,
    server_error: Option<String>,
    behind_bytes: Option<u64>,
    holes: usize,
    backup_needed: bool,
    damaged_backups: usize,
    last_drill_at: Option<Timestamp>,
    last_drill_passed: Option<bool>,
    last_prune_at: Option<Timestamp>,
    last_prune_passed: Option<bool>,
    /// What somebody has to do something about.
    problems: Vec<&'static str>,
}

impl Status {
    /// As of `now`.
    fn find_problems(&mut self, segment: SegmentSize, now: Timestamp) {
        // Without any date in the WAL, the backup says how old it is at least.
        let newest = self.restorable_to_time.or(self.newest_backup_ended_at);
        let is_old = newest.is_some_and(|newest| now.duration_since(newest) > ARCHIVED_WITHIN);
        let is_behind = self.behind_bytes.is_some_and(|behind| behind > segment.bytes());
        let all = [
            (self.newest_backup.is_none(), "no base backup can be restored"),
            (self.newest_backup.is_some() && self.restorable_to.is_none(), "the newest base backup lacks WAL"),
            (is_behind && is_old, "nothing is archived: does `seawall run` run, and reach the server?"),
            (self.server_error.is_some(), "the server cannot be asked"),
            (self.backup_needed, "WAL was lost, and no base backup was taken behind it"),
            (self.damaged_backups > 0, "a base backup is damaged"),
            (self.last_drill_passed == Some(false), "the last drill failed"),
            (self.last_prune_passed == Some(false), "the last prune failed"),
        ];
        self.problems = all.into_iter().filter_map(|(is_so, problem)| is_so.then_some(problem)).collect();
    }
}

/// Prints how the archive stands against the server.
///
/// # Errors
/// If the repository cannot be read; a server that is away is part of the answer.
pub(super) async fn status(as_json: bool, settings: Settings) -> Result<()> {
    let (report, repository) = read(&settings).await?;
    // Nothing depends on it: a report that cannot be read must not hide the rest.
    let drill = repository.last_drill().await.ok().flatten();
    let prune = repository.last_prune().await.ok().flatten();
    let newest = report.backups.iter().rfind(|window| !window.findings.damaged && window.broken.is_none());
    let damaged = report.backups.iter().filter(|window| window.findings.damaged).count();
    let server = match parts::connect(&settings).await {
        Ok(mut client) => client.identify_system().await.map(|system| system.flush_lsn).map_err(Into::into),
        Err(error) => Err(error),
    };
    let stored_to = report.wal.last().and_then(|timeline| timeline.stored.last()).map(|run| run.end);
    let server_lsn = server.as_ref().ok().copied();
    let mut status = Status {
        cluster: report.cluster.clone(),
        newest_backup: newest.map(|window| window.backup.clone()),
        newest_backup_type: newest.map(|window| window.backup_type),
        newest_backup_reference: newest.and_then(|window| window.reference.clone()),
        newest_backup_ended_at: newest.map(|window| window.ended_at),
        restorable_to: newest.and_then(|window| window.restorable_to),
        restorable_to_time: newest.and_then(|window| window.restorable_to_time),
        timeline: report.wal.last().map(|timeline| timeline.timeline),
        server_lsn,
        server_error: server.as_ref().err().map(ToString::to_string),
        behind_bytes: server_lsn.zip(stored_to).map(|(server, stored)| server - stored),
        holes: report.lost_wal.len(),
        backup_needed: report.backup_needed,
        damaged_backups: damaged,
        last_drill_at: drill.as_ref().map(|drill| drill.ended_at),
        last_drill_passed: drill.as_ref().map(|drill| drill.passed),
        last_prune_at: prune.as_ref().map(|prune| prune.ended_at),
        last_prune_passed: prune.as_ref().map(|prune| prune.passed),
        problems: Vec::new(),
    };
    let clock = Clock::system();
    status.find_problems(repository.layout.segment_size(), clock.now());
    if as_json {
        return print::stdout(&print::json(&status)?);
    }
    let backup = match newest {
        Some(window) => {
            let builds_on = window.reference.as_ref().map_or(String::new(), |id| format!(", builds on {id}"));
            format!("{}, {}{builds_on}", window.backup, print::age(window.ended_at, clock.now()))
        }
        None => "none: run `seawall backup`".to_owned(),
    };
    let zone = time::local_now(&clock).time_zone().clone();
    let restorable_to = match (status.restorable_to, status.restorable_to_time) {
        (None, _) => "nothing".to_owned(),
        (Some(lsn), None) => lsn.to_string(),
        (Some(lsn), Some(newest)) => {
            format!("{lsn}: {}, {}", print::time(newest, &zone), print::age(newest, clock.now()))
        }
    };
    let server = match (&server, status.behind_bytes) {
        (Ok(lsn), Some(behind)) => format!("at {lsn}, {} ahead of what is stored", print::size(behind)),
        (Ok(lsn), None) => format!("at {lsn}"),
        (Err(error), _) => format!("cannot be asked: {error}"),
    };
    let damaged = match damaged {
        0 => String::new(),
        damaged => format!(
            "damaged        {damaged} of the base backups, which no restore uses unless it is named: see `seawall list`\n"
        ),
    };
    let drill = match &drill {
        None => "none: run `seawall drill`".to_owned(),
        Some(drill) => {
            let result = if drill.passed {
                "passed".to_owned()
            } else {
                format!("FAILED: {}", drill.failures.first().cloned().unwrap_or_default())
            };
            format!("{}, {result}", print::age(drill.ended_at, clock.now()))
        }
    };
    let prune = match &prune {
        None => "none".to_owned(),
        Some(prune) => {
            let age = print::age(prune.ended_at, clock.now());
            match &prune.failure {
                None => format!("{age}, freed {}", print::size(prune.deleted_bytes)),
                Some(failure) => format!("{age}, FAILED: {failure}"),
            }
        }
    };
    let verdict = match &status.problems[..] {
        [] => "nothing wrong was found".to_owned(),
        problems => format!("to be done     {}", problems.join("; ")),
    };
    print::stdout(&format!(
        "cluster        {}\nnewest backup  {backup}\nrestorable to  {}\nserver         {server}\nlost WAL       {}\nlast drill     {drill}\nlast prune     {prune}\n{damaged}{verdict}\n",
        status.cluster,
        restorable_to,
        match (status.holes, status.backup_needed) {
            (0, _) => "none".to_owned(),
            (holes, false) => format!("{holes} gaps, with a base backup behind the last: see `seawall list`"),
            (holes, true) => format!("{holes} gaps; {BACKUP_NEEDED}"),
        },
    ))
}

async fn read(settings: &Settings) -> Result<(Report, Repository)> {
    let (repository, cluster) = parts::repository(settings).await?;
    let catalog = Catalog::read(&repository, cluster).await?;
    let reader = WalReader::new(repository.clone(), catalog.cluster.system_identifier);
    let paths = Paths::of(&catalog);
    // Backups on one path have the same end.
    let mut ends = BTreeMap::new();
    let mut newest = BTreeMap::new();
    for backup in catalog.finished_backups() {
        let route = Route::new(paths.path_of(backup), repository.layout.segment_size(), &catalog);
        let covered = route.covered(&catalog, route.size.segment_start(backup.start_lsn));
        let moment = match ends.get(&(covered.timeline, covered.until)) {
            Some(known) => *known,
            None if covered.until < backup.end_lsn => None,
            None => newest_moment(&reader, &catalog, &route, (backup.start_lsn, covered.until)).await?,
        };
        ends.insert((covered.timeline, covered.until), moment);
        newest.extend(moment.map(|moment| (backup.id.clone(), moment)));
    }
    let mut report = report(&settings.cluster, &paths, &newest);
    let (marks, now) = (repository.read_keep_marks().await?, Clock::system().now());
    for window in &mut report.backups {
        let mark = BackupId::parse(&window.backup).and_then(|id| marks.get(&id)).filter(|mark| mark.holds(now));
        window.kept = mark.map(|mark| Kept { reason: mark.reason.clone(), until: mark.until });
    }
    Ok((report, repository))
}

/// The paths on which backups are of use.
struct Paths<'a> {
    catalog: &'a Catalog,
    followed: Option<History>,
}

impl Paths<'_> {
    fn of(catalog: &Catalog) -> Paths<'_> {
        Paths { catalog, followed: catalog.followed_timeline().map(|timeline| catalog.history(timeline)) }
    }

    /// One on a dead branch is of use on its own timeline alone.
    fn path_of(&self, backup: &BackupDocument) -> History {
        let followed = self.followed.clone().filter(|path| path.timeline_at(backup.start_lsn) == backup.timeline);
        followed.unwrap_or_else(|| self.catalog.history(backup.end_timeline))
    }
}

fn report(name: &str, paths: &Paths<'_>, newest: &BTreeMap<BackupId, Timestamp>) -> Report {
    let catalog = paths.catalog;
    let window = |backup: &BackupDocument| {
        let (onto, covered) = catalog.covered_until(&paths.path_of(backup), backup.start_lsn);
        let broken = catalog.chain(backup).err().map(|broken| broken.to_string());
        let is_restorable = covered >= backup.end_lsn && broken.is_none();
        Window {
            backup: backup.id.to_string(),
            label: backup.label.clone(),
            backup_type: backup.backup_type(),
            reference: backup.reference.clone(),
            broken,
            timeline: backup.timeline,
            started_at: backup.started_at,
            ended_at: backup.ended_at,
            plain_bytes: backup.plain_bytes,
            stored_bytes: backup.stored_bytes,
            consistent_from: backup.end_lsn,
            onto,
            restorable_to: is_restorable.then_some(covered),
            restorable_to_time: newest.get(&backup.id).copied().filter(|_| is_restorable),
            verdict: backup.findings.verdict(),
            findings: backup.findings.clone(),
            kept: None,
        }
    };
    let backups: Vec<Window> = catalog.finished_backups().map(window).collect();
    Report {
        cluster: name.to_owned(),
        system_identifier: catalog.cluster.system_identifier.to_string(),
        postgres_version: catalog.cluster.postgres_version,
        recovery_windows: RecoveryWindow::of(&backups),
        backups,
        unfinished_backups: catalog
            .backups
            .iter()
            .filter(|entry| entry.document.is_none())
            .map(|entry| entry.id.to_string())
            .collect(),
        wal: catalog
            .coverage
            .iter()
            .map(|(timeline, coverage)| TimelineReport { timeline: *timeline, stored: coverage.runs() })
            .collect(),
        lost_wal: catalog.gaps.iter().map(|gap| RangeReport::of(gap.range)).collect(),
        backup_needed: catalog.unanswered_gap().is_some(),
        dead_branches: catalog.dead_branches.iter().copied().map(RangeReport::of).collect(),
        unknown_objects: catalog.unknown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_stands_still_is_a_problem_and_one_that_is_a_little_behind_is_none() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let ago = |minutes| now.checked_sub(SignedDuration::from_mins(minutes)).unwrap();
        let problems = |behind_bytes, newest: Option<Timestamp>, restorable_to| {
            let mut status = Status {
                newest_backup: Some("20261101T000000Z".to_owned()),
                newest_backup_ended_at: Some(ago(60 * 24)),
                restorable_to,
                restorable_to_time: newest,
                behind_bytes: Some(behind_bytes),
                ..Status::default()
            };
            status.find_problems(SegmentSize::DEFAULT, now);
            status.problems
        };
        let (there, segment) = (Some(Lsn(7 << 24)), SegmentSize::DEFAULT.bytes());
        // Just now, or idle: nothing
        assert_eq!(problems(40 * segment, Some(ago(29)), there), [""; 0]);
        assert_eq!(problems(segment, Some(ago(600)), there), [""; 0]);
        // Both, or where no WAL says when it was
        for newest in [Some(ago(31)), None] {
            let found = problems(segment + 1, newest, there);
            assert!(found.len() == 1 && found[0].contains("nothing is archived"), "{found:?}");
        }
        // A base backup without the WAL that makes it consistent
        assert_eq!(problems(0, Some(ago(1)), None), ["the newest base backup lacks WAL"]);
    }
}
