//! `seawall list`: what the repository holds, and what can be restored from it.

use super::print::{self, Align, Table};
use super::{parts, time};
use crate::config::Settings;
use crate::error::Result;
use crate::repository::{
    BackupDocument, BackupId, BackupVerdict, Catalog, CoverageRun, Findings, Repository, WalReader,
};
use crate::restore::{Route, certainly_from, newest_moment};
use crate::runtime::Clock;
use crate::wal::{History, Lsn, TimelineId, WalRange};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::collections::BTreeMap;

/// Where that is so.
pub(super) const BACKUP_NEEDED: &str =
    "no sound base backup was taken behind the last gap: nothing behind it can be restored; run `seawall backup`";

/// What can be restored from one base backup.
#[derive(Serialize)]
pub(super) struct Window {
    pub(super) backup: String,
    label: String,
    #[serde(rename = "type")]
    pub(super) backup_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<BackupId>,
    /// What it builds on is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) broken: Option<String>,
    timeline: TimelineId,
    started_at: Timestamp,
    pub(super) ended_at: Timestamp,
    plain_bytes: u64,
    stored_bytes: u64,
    consistent_from: Lsn,
    /// Every moment from then on can be had, if its WAL is there.
    #[serde(skip)]
    certainly_from: Timestamp,
    /// Where it leads to.
    #[serde(skip)]
    onto: TimelineId,
    pub(super) restorable_to: Option<Lsn>,
    /// The newest moment in there; `None` if nothing with a date is stored, or it is encrypted.
    pub(super) restorable_to_time: Option<Timestamp>,
    verdict: BackupVerdict,
    #[serde(skip_serializing_if = "Findings::is_empty")]
    pub(super) findings: Findings,
    /// It stays whatever retention says.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
}

/// Why a backup stays whatever retention says.
#[derive(Clone, Serialize)]
pub(super) struct Kept {
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Every moment between two can be restored.
#[derive(Serialize)]
pub(super) struct RecoveryWindow {
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
            let certain = backup.certainly_from;
            let from_time = backup.restorable_to_time.map_or(certain, |to| to.min(certain));
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
pub(super) struct TimelineReport {
    pub(super) timeline: TimelineId,
    pub(super) stored: Vec<CoverageRun>,
}

#[derive(Serialize)]
pub(super) struct RangeReport {
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
}

impl RangeReport {
    fn of(range: WalRange) -> RangeReport {
        RangeReport { timeline: range.timeline, start: range.start, end: range.end }
    }
}

/// What a repository holds.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) cluster: String,
    system_identifier: String,
    postgres_version: u32,
    pub(super) backups: Vec<Window>,
    unfinished_backups: Vec<String>,
    recovery_windows: Vec<RecoveryWindow>,
    pub(super) wal: Vec<TimelineReport>,
    pub(super) lost_wal: Vec<RangeReport>,
    /// WAL was lost, and no base backup behind it is finished.
    pub(super) backup_needed: bool,
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

/// Reads all that both reports are made of.
pub(super) async fn read(settings: &Settings) -> Result<(Report, Repository)> {
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
            certainly_from: certainly_from(backup),
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
    use crate::repository::Gap;
    use crate::restore::testing::{CatalogBuilder, MIB};

    fn windows(report: &Report) -> Vec<(u32, u64, u64, usize)> {
        let windows = report.recovery_windows.iter();
        windows.map(|it| (it.timeline.0, it.from.0, it.to.0, it.base_backups)).collect()
    }

    fn reported(catalog: &Catalog) -> (Report, String) {
        let report = report("main", &Paths::of(catalog), &BTreeMap::new());
        let text = recovery_windows(&report.recovery_windows, &report.lost_wal, &TimeZone::UTC);
        (report, text)
    }

    #[test]
    fn a_dead_branch_has_a_window_of_its_own_and_is_no_gap() {
        // Given a timeline that was left, and went on with a backup of its own
        let catalog = CatalogBuilder::new()
            .wal(1, MIB, 8 * MIB)
            .wal(2, 4 * MIB, 9 * MIB)
            .history(2, "1\t0/480000\tx\n")
            .backup(1, 100, MIB + 40, MIB + 1000)
            .backup(1, 300, 6 * MIB + 40, 6 * MIB + 1000)
            .build();
        // Then what is followed is one window across the switch, and the branch is another
        let (report, text) = reported(&catalog.catalog);
        assert_eq!(windows(&report), [(1, 6 * MIB + 1000, 8 * MIB, 1), (2, MIB + 1000, 9 * MIB, 1)]);
        assert!(!text.contains("GAP"), "{text}");
    }

    #[test]
    fn a_gap_stands_between_the_windows_that_it_parts() {
        let built = CatalogBuilder::new().wal(1, MIB, 5 * MIB).wal(1, 6 * MIB, 12 * MIB);
        let built = built.backup(1, 100, MIB + 40, MIB + 1000).backup(1, 200, 2 * MIB + 40, 2 * MIB + 1000);
        let mut catalog = built.backup(1, 400, 8 * MIB + 40, 8 * MIB + 1000).build().catalog;
        let lost = WalRange { timeline: TimelineId(1), start: Lsn(5 * MIB), end: Lsn(6 * MIB) };
        catalog.gaps.push(Gap { range: lost });
        let (report, text) = reported(&catalog);
        assert_eq!(windows(&report), [(1, MIB + 1000, 5 * MIB, 2), (1, 8 * MIB + 1000, 12 * MIB, 1)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].contains("GAP: no moment") && lines[2].contains("0/500000"), "{text}");
    }
}
