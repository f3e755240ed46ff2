//! `seawall status`: where archiving stands, and what a disaster would cost now; of several clusters, a line for each.

use super::list::{self, BACKUP_NEEDED};
use super::print::{self, Align, Table};
use super::results::CLOCKS_DIFFER;
use super::{parts, receivers, time};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::repository::{BackupId, DrillDocument, PruneDocument};
use crate::runtime::Clock;
use crate::wal::{Lsn, SegmentSize, TimelineId};
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// So many clusters are looked at at once.
const AT_ONCE: usize = 8;

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
    /// The latest end of any base backup.
    #[serde(skip)]
    newest_date: Option<Timestamp>,
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
    /// Receivers of notifications that do not answer, with why.
    deaf_receivers: Vec<String>,
    /// What somebody has to do something about.
    problems: Vec<&'static str>,
}

impl Status {
    /// As of `now`.
    fn find_problems(&mut self, segment: SegmentSize, now: Timestamp) {
        // Without any date in the WAL, the backup says how old it is at least.
        let newest = self.restorable_to_time.or(self.newest_backup_ended_at);
        let is_old = newest.is_some_and(|newest| now.duration_since(newest) > ARCHIVED_WITHIN);
        let is_ahead = |date: Option<Timestamp>| date.is_some_and(|date| date.duration_since(now) > CLOCKS_DIFFER);
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
            (!self.deaf_receivers.is_empty(), "a receiver of notifications does not answer"),
            (is_ahead(self.newest_date), "a base backup is dated ahead of this machine's clock: which clock is wrong?"),
            (is_ahead(self.restorable_to_time), "WAL is dated ahead of this machine's clock: is the server's wrong?"),
        ];
        self.problems = all.into_iter().filter_map(|(is_so, problem)| is_so.then_some(problem)).collect();
    }
}

/// With what words say of it beyond that.
struct Standing {
    status: Status,
    drill: Option<DrillDocument>,
    prune: Option<PruneDocument>,
}

/// A cluster whose repository cannot be read.
#[derive(Serialize)]
struct Unknown<'a> {
    cluster: &'a str,
    error: String,
}

/// Prints how archives stand against their servers.
///
/// # Errors
/// If a repository cannot be read; a server that is away is part of the answer.
pub(super) async fn status(as_json: bool, all: Vec<Settings>) -> Result<()> {
    if let [only] = &all[..] {
        let standing = stand(only).await?;
        return print::stdout(&if as_json { print::json(&standing.status)? } else { standing.text() });
    }
    let looks = all.iter().map(async |settings| (settings.cluster.as_str(), stand(settings).await));
    let looks: Vec<(&str, Result<Standing>)> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    if as_json {
        let shown = |(cluster, look): &(&str, Result<Standing>)| match look {
            Ok(standing) => serde_json::to_value(&standing.status),
            Err(error) => serde_json::to_value(Unknown { cluster, error: error.to_string() }),
        };
        let shown = looks.iter().map(shown).collect::<std::result::Result<Vec<_>, _>>();
        let shown =
            shown.map_err(|error| Error::new(crate::error::Kind::Internal, "cannot write JSON").because(error))?;
        print::stdout(&print::json(&shown)?)?;
    } else {
        print::stdout(&table(&looks))?;
    }
    let (unread, count) = (looks.iter().filter(|(_, look)| look.is_err()).count(), looks.len());
    match looks.into_iter().find_map(|(cluster, look)| Some((cluster, look.err()?))) {
        None => Ok(()),
        Some((cluster, error)) => {
            Err(error.context(format!("{unread} of {count} clusters cannot be looked at, the first is {cluster}")))
        }
    }
}

fn table(looks: &[(&str, Result<Standing>)]) -> String {
    let now = Clock::system().now();
    let mut table = Table::new(&[
        ("cluster", Align::Left),
        ("newest backup", Align::Left),
        ("restorable to", Align::Left),
        ("newest moment", Align::Left),
        ("behind", Align::Right),
        ("lost WAL", Align::Left),
        ("last drill", Align::Left),
        ("to be done", Align::Left),
    ]);
    let age = |time: Option<Timestamp>| time.map_or_else(|| "none".to_owned(), |time| print::age(time, now));
    for (cluster, look) in looks {
        let status = match look {
            Ok(standing) => &standing.status,
            Err(error) => {
                table.row([(*cluster).to_owned(), format!("NOT KNOWN: {error}")]);
                continue;
            }
        };
        let passed = |passed: bool| if passed { "passed" } else { "FAILED" };
        table.row([
            (*cluster).to_owned(),
            age(status.newest_backup_ended_at),
            status.restorable_to.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string()),
            status.restorable_to_time.map_or_else(String::new, |newest| print::age(newest, now)),
            match (status.behind_bytes, &status.server_error) {
                (Some(bytes), _) => print::size(bytes),
                (None, Some(_)) => "no server".to_owned(),
                (None, None) => String::new(),
            },
            match (status.holes, status.backup_needed) {
                (0, _) => "none".to_owned(),
                (holes, false) => format!("{holes} gaps"),
                (holes, true) => format!("{holes} gaps, BACKUP NEEDED"),
            },
            match (status.last_drill_at, status.last_drill_passed) {
                (Some(at), Some(result)) => format!("{}, {}", print::age(at, now), passed(result)),
                _ => "none".to_owned(),
            },
            match &status.problems[..] {
                [] => "nothing".to_owned(),
                problems => problems.join("; "),
            },
        ]);
    }
    table.render()
}

async fn stand(settings: &Settings) -> Result<Standing> {
    let (report, repository) = list::read(settings).await?;
    // Nothing depends on it: a report that cannot be read must not hide the rest.
    let drill = repository.last_drill().await.ok().flatten();
    let prune = repository.last_prune().await.ok().flatten();
    let newest = report.backups.iter().rfind(|window| !window.findings.damaged && window.broken.is_none());
    let damaged = report.backups.iter().filter(|window| window.findings.damaged).count();
    let server = match parts::connect(settings).await {
        Ok(mut client) => client.identify_system().await.map(|system| system.flush_lsn).map_err(Error::from),
        Err(error) => Err(error),
    };
    let deaf_receivers = match receivers::ask(settings).await {
        Ok(asked) => {
            let deaf = asked.into_iter().filter_map(|asked| Some(format!("{}: {}", asked.who, asked.answered.err()?)));
            deaf.collect()
        }
        Err(error) => vec![error.to_string()],
    };
    let stored_to = report.wal.last().and_then(|timeline| timeline.stored.last()).map(|run| run.end);
    let server_lsn = server.as_ref().ok().copied();
    let mut status = Status {
        cluster: report.cluster.clone(),
        newest_backup: newest.map(|window| window.backup.clone()),
        newest_backup_type: newest.map(|window| window.backup_type),
        newest_backup_reference: newest.and_then(|window| window.reference.clone()),
        newest_backup_ended_at: newest.map(|window| window.ended_at),
        newest_date: report.backups.iter().map(|window| window.ended_at).max(),
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
        deaf_receivers,
        problems: Vec::new(),
    };
    status.find_problems(repository.layout.segment_size(), Clock::system().now());
    Ok(Standing { status, drill, prune })
}

impl Standing {
    fn text(&self) -> String {
        let Standing { status, drill, prune } = self;
        let (clock, zone) = (Clock::system(), time::local_now(&Clock::system()).time_zone().clone());
        let now = clock.now();
        let backup = match (&status.newest_backup, status.newest_backup_ended_at) {
            (Some(backup), Some(ended_at)) => {
                let reference = status.newest_backup_reference.as_ref();
                let builds_on = reference.map_or(String::new(), |id| format!(", builds on {id}"));
                format!("{backup}, {}{builds_on}", print::age(ended_at, now))
            }
            _ => "none: run `seawall backup`".to_owned(),
        };
        let restorable_to = match (status.restorable_to, status.restorable_to_time) {
            (None, _) => "nothing".to_owned(),
            (Some(lsn), None) => lsn.to_string(),
            (Some(lsn), Some(newest)) => format!("{lsn}: {}, {}", print::time(newest, &zone), print::age(newest, now)),
        };
        let server = match (status.server_lsn, status.behind_bytes, &status.server_error) {
            (Some(lsn), Some(behind), _) => format!("at {lsn}, {} ahead of what is stored", print::size(behind)),
            (Some(lsn), None, _) => format!("at {lsn}"),
            (None, _, error) => format!("cannot be asked: {}", error.as_deref().unwrap_or_default()),
        };
        let lost = match (status.holes, status.backup_needed) {
            (0, _) => "none".to_owned(),
            (holes, false) => format!("{holes} gaps, with a base backup behind the last: see `seawall list`"),
            (holes, true) => format!("{holes} gaps; {BACKUP_NEEDED}"),
        };
        let drill = match drill {
            None => "none: run `seawall drill`".to_owned(),
            Some(drill) => {
                let result = match drill.passed {
                    true => "passed".to_owned(),
                    false => {
                        let encrypted = "what failed is encrypted in its report".to_owned();
                        format!("FAILED: {}", drill.failures.first().cloned().unwrap_or(encrypted))
                    }
                };
                format!("{}, {result}", print::age(drill.ended_at, now))
            }
        };
        let prune = match prune {
            None => "none".to_owned(),
            Some(prune) => {
                let age = print::age(prune.ended_at, now);
                let undeleted = match prune.undeleted_objects {
                    0 => String::new(),
                    undeleted => format!(" ({undeleted} objects could not be deleted)"),
                };
                match &prune.failure {
                    None => format!("{age}, freed {}", print::size(prune.deleted_bytes)),
                    Some(failure) => format!("{age}, FAILED: {failure}{undeleted}"),
                }
            }
        };
        let damaged = match status.damaged_backups {
            0 => String::new(),
            damaged => format!(
                "damaged        {damaged} of the base backups, which no restore uses unless it is named: see `seawall list`\n"
            ),
        };
        let deaf: String = status.deaf_receivers.iter().map(|deaf| format!("notifications  {deaf}\n")).collect();
        let verdict = match &status.problems[..] {
            [] => "nothing wrong was found".to_owned(),
            problems => format!("to be done     {}", problems.join("; ")),
        };
        format!(
            "cluster        {}\nnewest backup  {backup}\nrestorable to  {restorable_to}\nserver         {server}\nlost WAL       {lost}\nlast drill     {drill}\nlast prune     {prune}\n{damaged}{deaf}{verdict}\n",
            status.cluster
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dated_ahead_is_a_problem_and_clocks_that_differ_a_little_are_none() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let problems = |backup_minutes, wal_minutes| {
            let ahead = |minutes| now.checked_add(SignedDuration::from_mins(minutes)).unwrap();
            let mut status = Status {
                newest_backup: Some("20261122T100000Z".to_owned()),
                newest_date: Some(ahead(backup_minutes)),
                restorable_to: Some(Lsn(7 << 24)),
                restorable_to_time: Some(ahead(wal_minutes)),
                ..Status::default()
            };
            status.find_problems(SegmentSize::DEFAULT, now);
            status.problems
        };
        assert_eq!(problems(59, 59), [""; 0]);
        assert_eq!(problems(61, 0), ["a base backup is dated ahead of this machine's clock: which clock is wrong?"]);
        assert_eq!(problems(-600, 61), ["WAL is dated ahead of this machine's clock: is the server's wrong?"]);
    }

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
