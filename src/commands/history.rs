//! `seawall history`: what was committed between two moments, and how to restore to just before it.

use super::{parts, print, time};
use crate::cli::{Common, HistoryArgs};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::history::{
    Bound, Chronicle, DISORDER, Entry, Event, Hole, NameBook, Search, Transaction, read_name_book, walk,
};
use crate::repository::{Catalog, WalReader};
use crate::runtime::Clock;
use crate::wal::{History, Lsn, RelationId, TimelineId};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// How far back it goes if nothing else is asked for.
const DEFAULT_LENGTH: SignedDuration = SignedDuration::from_hours(1);
/// Files that are named in a line for people.
const NAMED: usize = 3;

/// Prints what happened, in the order of the WAL.
///
/// # Errors
/// If a moment or the timeline makes no sense, or the repository cannot be read.
pub(super) async fn history(args: HistoryArgs, common: &Common, settings: Settings) -> Result<()> {
    let clock = Clock::system();
    let now = time::local_now(&clock);
    let bound = |text: &String| match text.parse::<Lsn>() {
        Ok(lsn) => Ok(Bound::Lsn(lsn)),
        Err(_) => time::parse_moment(text, &now).map(|moment| Bound::Time(moment.at)),
    };
    let from = match args.from.as_ref().map(bound).transpose()? {
        Some(from) => from,
        None => Bound::Time(now.timestamp().saturating_sub(DEFAULT_LENGTH).unwrap_or(Timestamp::MIN)),
    };
    let to = args.to.as_ref().map(bound).transpose()?;
    let (repository, cluster) = parts::readable_repository(&settings).await?;
    let reader = WalReader::new(repository.clone(), cluster.system_identifier);
    let catalog = Catalog::read(&repository, cluster).await?;
    let history = path(&catalog, args.timeline.map(TimelineId))?;
    // Both filters go by what a transaction did from its beginning.
    let whole = args.database.is_some() || args.min_bytes.is_some();
    let search = Search { from, to, removals: args.drops, whole };
    let names = read_name_book(&reader, &catalog, &history, from).await;
    let databases = args.database.as_deref().map(|name| databases(name, &names)).transpose()?;
    let command = restore_command(&args, common);
    let printer = Printer {
        databases,
        names,
        from,
        to,
        history: history.clone(),
        command: command.clone(),
        zone: now.time_zone().clone(),
        limit: args.limit.map(|limit| limit as usize),
        args,
    };
    if !printer.args.json.json {
        print::stdout(&Line::headings())?;
    }
    let (limit, printer) = (printer.limit, Arc::new(printer));
    let last: Arc<Mutex<Last>> = Arc::default();
    let (shown, kept) = (printer.clone(), last.clone());
    let chronicle = Chronicle::new(move |entry| {
        let mut last = kept.lock().unwrap_or_else(PoisonError::into_inner);
        shown.see(&entry, &mut last).unwrap_or_else(|error| {
            last.failure = Some(error);
            ControlFlow::Break(())
        })
    });
    let walked = walk(&reader, &catalog, &history, search, chronicle).await?;
    let last = std::mem::take(&mut *last.lock().unwrap_or_else(PoisonError::into_inner));
    last.failure.map_or(Ok(()), Err)?;
    if limit.is_some() {
        print::stdout(&last.lines.into_iter().collect::<String>())?;
    }
    if last.wants_a_command {
        print::stdout(&format!("before any other line: {command} --to-lsn ITS_LSN --to-exclusive\n"))?;
    }
    if walked.start.is_none() {
        return Err(Error::new(Kind::Refused, format!("no WAL of timeline {} is stored", history.timeline))
            .hint("`seawall list` shows what is."));
    }
    walked.holes.iter().for_each(warn);
    Ok(())
}

/// The numbers of the databases that are meant.
fn databases(text: &str, names: &NameBook) -> Result<Vec<u32>> {
    let mut oids = names.databases_called(text);
    oids.extend(text.parse::<u32>());
    match oids.is_empty() {
        false => Ok(oids),
        true => Err(Error::new(Kind::Refused, format!("no database called {text:?} is known here"))
            .hint("Names are stored with base backups, as far as the role may read them. Its OID is always taken.")),
    }
}

/// The path to the timeline that is asked for, or to the one that is followed.
pub(super) fn path(catalog: &Catalog, timeline: Option<TimelineId>) -> Result<History> {
    let none = || {
        Error::new(Kind::Refused, "the repository holds no WAL")
            .hint("Has `seawall run` ever run for this cluster, and is --cluster right?")
    };
    let timeline = timeline.or(catalog.followed_timeline()).ok_or_else(none)?;
    if !catalog.coverage.contains_key(&timeline) && !catalog.histories.contains_key(&timeline) {
        return Err(Error::new(Kind::Refused, format!("timeline {timeline} is not in the repository"))
            .hint("`seawall list` shows those that are."));
    }
    Ok(catalog.history(timeline))
}

/// Says of what nothing is known.
pub(super) fn warn(hole: &Hole) {
    let (timeline, start, end) = (hole.timeline, hole.start, hole.end);
    match &hole.unreadable {
        Some(why) => tracing::warn!(%timeline, "what was committed between {start} and {end} cannot be read: {why}"),
        None => {
            // An archiver at work stores several blocks at once, and a later one may be there first.
            tracing::warn!(
                %timeline,
                "WAL from {start} to {end} is not stored, or not yet: what was committed there is not known"
            )
        }
    }
}

/// The beginning of the command that restores to just before an entry, with the flags that lead to the repository.
fn restore_command(args: &HistoryArgs, common: &Common) -> String {
    let mut command = "seawall restore".to_owned();
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let timeline = args.timeline.map(|timeline| timeline.to_string());
    let flags = [
        ("--config", path(&common.config)),
        ("--repo", common.repo.clone()),
        ("--cluster", common.cluster.clone()),
        ("--identity", args.identity.file.clone()),
        ("--timeline", timeline),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            command.push_str(&format!(" {flag} {}", quoted(&value)));
        }
    }
    command + " --into DIR"
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@%+,".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// What is shown at the end, and why it ended early.
#[derive(Default)]
struct Last {
    lines: VecDeque<String>,
    /// One of the entries has no command of its own.
    wants_a_command: bool,
    failure: Option<Error>,
}

/// Prints the entries that are asked for.
struct Printer {
    args: HistoryArgs,
    from: Bound,
    to: Option<Bound>,
    /// Only what concerns one of these.
    databases: Option<Vec<u32>>,
    names: NameBook,
    history: History,
    command: String,
    zone: TimeZone,
    limit: Option<usize>,
}

impl Printer {
    fn see(&self, entry: &Entry, last: &mut Last) -> Result<ControlFlow<()>> {
        let is_early = match self.from {
            Bound::Time(from) => entry.time < from,
            Bound::Lsn(from) => entry.start < from,
        };
        let (is_late, is_over) = match self.to {
            None => (false, false),
            Some(Bound::Time(to)) => (entry.time > to, entry.time.duration_since(to) > DISORDER),
            Some(Bound::Lsn(to)) => (entry.start > to, entry.start > to),
        };
        if is_over {
            return Ok(ControlFlow::Break(()));
        }
        if !is_early && !is_late && self.wants(entry) {
            let line = Line::of(entry, &self.history, &self.names, &self.command);
            let text = if self.args.json.json { line.json()? } else { line.text(&self.zone) };
            last.wants_a_command |= !self.args.json.json && !line.has_command();
            match self.limit {
                None => print::stdout(&text)?,
                Some(limit) => {
                    last.lines.push_back(text);
                    if last.lines.len() > limit {
                        last.lines.pop_front();
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn wants(&self, entry: &Entry) -> bool {
        let args = &self.args;
        let Event::Commit(transaction) = &entry.event else {
            return !args.drops && args.database.is_none() && args.min_bytes.is_none();
        };
        let named = |oid: &u32| {
            let oid = *oid;
            transaction.database == Some(oid)
                || transaction.created_databases.contains(&oid)
                || transaction.dropped_databases.contains(&oid)
        };
        (!args.drops || transaction.removes())
            && self.databases.as_ref().is_none_or(|oids| oids.iter().any(named))
            && args.min_bytes.is_none_or(|least| transaction.bytes >= least)
    }
}

/// An entry as it is printed.
#[derive(Serialize)]
struct Line {
    event: &'static str,
    time: Timestamp,
    timeline: TimelineId,
    lsn: Lsn,
    end_lsn: Lsn,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_timeline: Option<TimelineId>,
    #[serde(flatten)]
    transaction: Option<TransactionLine>,
    /// Recovery ends just before the record here.
    before_lsn: Lsn,
    restore: String,
}

#[derive(Serialize)]
struct TransactionLine {
    xid: u32,
    prepared: bool,
    first_lsn: Lsn,
    records: u64,
    bytes: u64,
    /// False if it may have begun before the WAL that was read.
    complete: bool,
    database: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database_name: Option<String>,
    /// Relations went, and not only their files.
    drops: bool,
    #[serde(skip)]
    removes: bool,
    removed_files: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<File>,
    /// What is known to be called so and was changed or removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed_relations: Vec<String>,
    created_files: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    created: Vec<File>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    created_databases: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped_databases: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    created_tablespaces: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped_tablespaces: Vec<u32>,
}

#[derive(Serialize)]
struct File {
    tablespace: u32,
    database: u32,
    file: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    relation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

impl File {
    fn list(relations: &[RelationId], names: &NameBook, lsn: Lsn) -> Vec<File> {
        let file = |it: &RelationId| {
            let known = names.relation(*it, lsn);
            let (tablespace, database, file) = (it.tablespace, it.database, it.file);
            let relation = known.map(|known| known.name.clone());
            File { tablespace, database, file, relation, kind: known.map(|known| kind(known.kind)) }
        };
        relations.iter().map(file).collect()
    }
}

/// What `pg_class.relkind` means.
fn kind(letter: char) -> &'static str {
    match letter {
        'r' => "table",
        'i' => "index",
        't' => "toast table",
        'm' => "materialized view",
        'S' => "sequence",
        'p' => "partitioned table",
        _ => "relation",
    }
}

impl Line {
    fn of(entry: &Entry, history: &History, names: &NameBook, command: &str) -> Line {
        let mut before_lsn = entry.start;
        let (mut name, mut previous_timeline, mut transaction) = (None, None, None);
        let mut timeline = history.timeline_at(entry.start);
        let event = match &entry.event {
            Event::Commit(it) => {
                before_lsn = it.before(entry.start);
                transaction = Some(TransactionLine::of(it, entry.start, names));
                "commit"
            }
            Event::RestorePoint { name: found } => {
                name = Some(found.clone());
                "restore_point"
            }
            Event::Restart => "restart",
            Event::Promotion { timeline: new, previous_timeline: previous } => {
                timeline = *new;
                previous_timeline = Some(*previous);
                "promotion"
            }
        };
        let restore = format!("{command} --to-lsn {before_lsn} --to-exclusive");
        let (time, lsn, end_lsn) = (entry.time, entry.start, entry.end);
        Line { event, time, timeline, lsn, end_lsn, name, previous_timeline, transaction, before_lsn, restore }
    }

    fn json(&self) -> Result<String> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write the result as JSON").because(error))?;
        Ok(text + "\n")
    }

    fn row(cells: [&str; 6], what: &str) -> String {
        let [time, lsn, xid, database, records, size] = cells;
        let row = format!("{time:<32}  {lsn:<12}  {xid:>10}  {database:>8}  {records:>9}  {size:>9}  {what}");
        row.trim_end().to_owned() + "\n"
    }

    fn headings() -> String {
        Line::row(["time", "LSN", "xid", "database", "records", "size"], "what")
    }

    /// A line, and for what removed something one with the command that brings it back.
    fn text(&self, zone: &TimeZone) -> String {
        let time = self.time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.6f%:z").to_string();
        let lsn = self.lsn.to_string();
        let Some(it) = &self.transaction else {
            let what = match (&self.name, self.previous_timeline) {
                (Some(name), _) => format!("restore point {name:?}"),
                (_, Some(previous)) => format!("promotion: timeline {previous} was left for {}", self.timeline),
                _ => "the server was shut down, or had recovered from a crash".to_owned(),
            };
            return Line::row([&time, &lsn, "", "", "", ""], &what);
        };
        let number = it.database.map(|oid| oid.to_string());
        let database = it.database_name.clone().or(number).unwrap_or_default();
        let at_least = if it.complete { "" } else { ">=" };
        let records = format!("{at_least}{}", it.records);
        let size = print::size(it.bytes);
        let text = Line::row([&time, &lsn, &it.xid.to_string(), &database, &records, &size], &it.what());
        match self.has_command() {
            true => text + &format!("  before it: {}\n", self.restore),
            false => text,
        }
    }

    /// True if its way back stands below it; else it is told once for all, by their LSNs.
    fn has_command(&self) -> bool {
        self.before_lsn != self.lsn || self.transaction.as_ref().is_some_and(|transaction| transaction.removes)
    }
}

impl TransactionLine {
    fn of(transaction: &Transaction, lsn: Lsn, names: &NameBook) -> TransactionLine {
        let of_database = |oid: u32| {
            let changed = transaction.changed.iter().filter_map(move |it| names.relation_by_oid(oid, *it, lsn));
            changed.map(|relation| relation.name.clone()).collect()
        };
        TransactionLine {
            xid: transaction.xid,
            prepared: transaction.prepared,
            first_lsn: transaction.first,
            records: transaction.records,
            bytes: transaction.bytes,
            complete: transaction.is_whole,
            database: transaction.database,
            database_name: transaction.database.and_then(|oid| names.database(oid, lsn)).map(str::to_owned),
            changed_relations: transaction.database.map(of_database).unwrap_or_default(),
            drops: transaction.drops(),
            removes: transaction.removes(),
            removed_files: transaction.removed_count,
            removed: File::list(&transaction.removed, names, lsn),
            created_files: transaction.created_count,
            created: File::list(&transaction.created, names, lsn),
            created_databases: transaction.created_databases.clone(),
            dropped_databases: transaction.dropped_databases.clone(),
            created_tablespaces: transaction.created_tablespaces.clone(),
            dropped_tablespaces: transaction.dropped_tablespaces.clone(),
        }
    }

    fn what(&self) -> String {
        let mut parts = vec![if self.prepared { "commit prepared" } else { "commit" }.to_owned()];
        let numbers = |oids: &[u32]| oids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let mut oids = |verb: &str, what: &str, oids: &[u32]| {
            if !oids.is_empty() {
                parts.push(format!("{verb} {what} {}", numbers(oids)));
            }
        };
        oids("drops", "database", &self.dropped_databases);
        oids("drops", "tablespace", &self.dropped_tablespaces);
        oids("creates", "database", &self.created_databases);
        oids("creates", "tablespace", &self.created_tablespaces);
        let files = |count: u32, files: &[File]| {
            // Tables say most, and what has no name says least.
            let rank = |file: &&File| match file.kind {
                Some("index" | "toast table") => 1,
                Some(_) => 0,
                None => 2,
            };
            let mut files: Vec<&File> = files.iter().collect();
            files.sort_by_key(rank);
            let named: Vec<String> = files
                .iter()
                .take(NAMED)
                .map(|file| file.relation.clone().unwrap_or_else(|| format!("file {}", file.file)))
                .collect();
            let more = if count as usize > named.len() { ", …" } else { "" };
            format!("{count} relation{} ({}{more})", if count == 1 { "" } else { "s" }, named.join(", "))
        };
        if self.removed_files > 0 {
            let verb = if self.drops { "drops" } else { "truncates or rewrites" };
            parts.push(format!("{verb} {}", files(self.removed_files, &self.removed)));
        } else if self.created_files > 0 {
            parts.push(format!("creates {}", files(self.created_files, &self.created)));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_for_the_shell_where_it_must_be() {
        for (word, expected) in [("s3://b/x", "s3://b/x"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'")] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn an_entry_is_one_line_and_the_command_that_ends_before_it() {
        let file = RelationId { tablespace: 1663, database: 5, file: 16402 };
        let transaction = Transaction {
            xid: 735,
            first: Lsn(0x3000028),
            records: 12,
            bytes: 1536,
            is_whole: true,
            database: Some(5),
            removed_count: 5,
            removed: vec![file; 5],
            ..Transaction::default()
        };
        let mut entry = Entry {
            start: Lsn(0x3000060),
            end: Lsn(0x3000100),
            time: "2026-11-20T13:03:00.25Z".parse().expect("a time"),
            event: Event::Commit(Box::new(transaction.clone())),
        };
        let history = History::root(TimelineId(1));
        let text = |entry: &Entry| {
            Line::of(entry, &history, &NameBook::default(), "seawall restore --into DIR").text(&TimeZone::UTC)
        };
        assert_eq!(
            text(&entry),
            "2026-11-20 13:03:00.250000+00:00  0/3000060            735         5         12   1.50 KiB  commit; drops \
             5 relations (file 16402, file 16402, file 16402, …)\n  before it: seawall restore --into DIR --to-lsn 0/3000060 --to-exclusive\n"
        );
        // A database is there before the transaction only.
        let transaction = Transaction { removed_count: 0, dropped_databases: vec![16500], ..transaction };
        entry.event = Event::Commit(Box::new(transaction));
        assert!(text(&entry).ends_with(
            "commit; drops database 16500\n  before it: seawall restore --into DIR --to-lsn 0/3000028 --to-exclusive\n"
        ));
    }
}
