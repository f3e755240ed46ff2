//! From what a repository holds, what is asked for and what the records say, to a plan or a refusal. Pure.
//!
//! Every target becomes the last record to be replayed, and that an LSN for PostgreSQL, which is exact and can always be
//! reached because the record is stored. A target of its own would be looked for by PostgreSQL behind whatever the
//! archive holds, and a time without a later commit is never found (`recoveryStopsBefore` in `xlogrecovery.c`).

use super::choose::{Candidate, Choice};
use super::refusal;
use super::request::{Target, TargetAction, askable};
use super::route::Route;
use super::survey::{Found, Goal, NewTablespace, Survey};
use crate::error::{Error, Kind, Result};
use crate::history::index::{Span, Transaction};
use crate::repository::{BackupDocument, BackupFiles, BackupId, BackupTablespace, Catalog, WalNeed};
use crate::wal::{Lsn, SegmentSize, TimelineId};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Where PostgreSQL is told to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// Behind this record. Where nothing that the target includes was done after the backup, the one with which it is
    /// consistent.
    After(Span),
    /// As soon as the backup is consistent, by PostgreSQL's own judgement, which it makes at the next record
    /// (`recoveryStopsBefore`): its records could not be read here.
    Immediate,
    /// At the end of WAL: its records could not be read here, and only PostgreSQL can tell where that is.
    EndOfWal,
}

/// A restore, planned.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Plan {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Its system identifier.
    #[serde(serialize_with = "as_text")]
    pub system_identifier: u64,
    /// `server_version_num` of the server that the backup was taken from: a server of this major version is needed.
    pub postgres_version: u32,
    /// The cluster's segment size, in bytes.
    pub segment_bytes: u64,
    /// What was asked for.
    pub target: Target,
    /// The target itself was to be left out.
    pub exclusive: bool,
    /// The backup to begin with.
    pub backup: PlannedBackup,
    /// The timeline to end on, written as a number: what `latest` means can change under a restore.
    pub timeline: TimelineId,
    /// The timelines on the way, from the backup's on.
    pub path: Vec<PathStep>,
    /// Where PostgreSQL is told to stop.
    pub stop: Stop,
    /// The end of the last transaction that will be there, as far as it was seen.
    pub last_transaction: Option<Transaction>,
    /// The first committed transaction that will not be there, if one follows soon.
    pub first_lost: Option<Transaction>,
    /// The restore sees the archive as if it ended here, whatever is stored meanwhile.
    pub end_lsn: Lsn,
    /// What the server does when it has arrived.
    pub action: TargetAction,
    /// The WAL that will be read.
    pub wal: Vec<WalNeed>,
    /// Bytes of it, uncompressed.
    pub wal_bytes: u64,
    /// Bytes of the objects that hold it: what is fetched.
    pub wal_stored_bytes: u64,
    /// Settings that must have at least these values.
    pub requirements: BTreeMap<String, i64>,
    /// Tablespaces in the backup.
    pub tablespaces: Vec<BackupTablespace>,
    /// Tablespaces that replay will create.
    pub creates: Vec<NewTablespacePath>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// The backup's own description, without its list of files.
    #[serde(skip)]
    pub document: BackupDocument,
    /// Those of what it builds on, the nearest first.
    #[serde(skip)]
    pub references: Vec<BackupDocument>,
}

/// The chosen backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedBackup {
    /// Its name.
    pub id: BackupId,
    /// Why this one.
    pub why: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it was complete.
    pub ended_at: Timestamp,
    /// Recovery begins here.
    pub start_lsn: Lsn,
    /// Recovery is consistent from here on.
    pub end_lsn: Lsn,
    /// What it builds on, the nearest first; nothing for a full one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub builds_on: Vec<BackupId>,
    /// Bytes that will be written.
    pub plain_bytes: u64,
    /// Bytes that will be fetched; of what it builds on perhaps fewer.
    pub stored_bytes: u64,
    /// Objects that will be fetched; of what it builds on perhaps fewer.
    pub parts: usize,
}

/// A timeline on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct PathStep {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it is left for the next; `None` for the last.
    pub switch: Option<Lsn>,
}

/// A tablespace that replay creates at the very place where it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NewTablespacePath {
    /// Its OID.
    pub oid: u32,
    /// Its directory.
    pub path: String,
    /// The first byte of the record that creates it.
    pub lsn: Lsn,
}

/// What became of a candidate.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is planned.
    Planned(Box<Plan>),
    /// The target lies before this backup is consistent, or was not found: an older backup may reach it.
    Earlier,
}

/// What PostgreSQL is to look for from `candidate` on, and how far.
pub(super) fn goal(choice: &Choice<'_>, candidate: &Candidate<'_>) -> (Goal, Lsn) {
    let exclusive = choice.request.exclusive;
    let goal = match &choice.request.target {
        Target::End | Target::Immediate => Goal::End,
        Target::Time(time) => Goal::Time { time: *time, exclusive },
        Target::Lsn(lsn) => Goal::Lsn { lsn: *lsn, exclusive },
        Target::Xid(xid) => Goal::Xid { xid: *xid, exclusive },
        Target::Name(name) => Goal::Name { name: name.clone(), exclusive },
    };
    let until = match choice.request.target {
        Target::Immediate => candidate.backup.end_lsn,
        _ => candidate.until.unwrap_or(candidate.covered.until).min(candidate.covered.until),
    };
    (goal, until)
}

/// Judges a candidate by what was seen of its WAL.
///
/// # Errors
/// [`Kind::Refused`] if the target cannot be reached with this backup or an older one, with what can be instead;
/// [`Kind::Damaged`] if the records that would tell cannot be read.
pub(super) fn conclude(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey) -> Result<Verdict> {
    let target = &choice.request.target;
    if let (Some(why), false) = (&survey.unreadable, matches!(target, Target::End | Target::Immediate)) {
        return Err(refusal::unreadable(target, survey.end, why));
    }
    let found = match survey.found {
        _ if *target == Target::Immediate => Found { last: None, next: None },
        Some(found) => found,
        None => match target {
            Target::Time(time) => proven(choice, candidate, survey, *time)?,
            Target::Lsn(lsn) => return Err(refusal::lsn_behind(choice, candidate, survey, *lsn)),
            _ => return Ok(Verdict::Earlier),
        },
    };
    let consistent = candidate.backup.end_lsn;
    let stop = match found.last {
        _ if survey.unreadable.is_some() && *target == Target::End => Stop::EndOfWal,
        Some(span) if span.start >= consistent => Stop::After(span),
        _ if found.next.is_none_or(|next| next >= consistent) && is_of_its_time(choice, candidate, survey) => {
            let readable = survey.consistent.filter(|_| survey.unreadable.is_none());
            readable.map_or(Stop::Immediate, Stop::After)
        }
        _ => return Ok(Verdict::Earlier),
    };
    let end_lsn = match stop {
        Stop::After(span) => span.end.max(consistent).min(candidate.covered.until),
        Stop::Immediate | Stop::EndOfWal => candidate.covered.until,
    };
    if let Some(lsn) = survey.minimal.filter(|lsn| *lsn < end_lsn) {
        return Err(refusal::minimal(lsn));
    }
    Ok(Verdict::Planned(Box::new(build(choice, candidate, survey, stop, end_lsn))))
}

/// How much later than its checkpoint says a backup may have begun: the second is cut off, and the position at which it
/// begins is settled after the time was taken (`xlog.c`, `CreateCheckPoint`).
const CHECKPOINT_SLACK: SignedDuration = SignedDuration::from_secs(2);

/// False if the target is a time from before the backup: what was committed up to the backup's beginning is in its files,
/// and no record from then on tells when.
fn is_of_its_time(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey) -> bool {
    let Target::Time(time) = choice.request.target else {
        return true;
    };
    // A transaction that ended behind the beginning, and not after the target.
    let is_later = survey.last_transaction.is_some();
    is_later || time >= began_before(survey).unwrap_or(candidate.backup.ended_at)
}

/// By the server's clock, the backup had begun by then.
fn began_before(survey: &Survey) -> Option<Timestamp> {
    survey.began.map(|began| began.checked_add(CHECKPOINT_SLACK).unwrap_or(Timestamp::MAX))
}

/// From then on, a moment is one that a restore from this backup can certainly reach, if the WAL does.
pub(super) fn certain_from(candidate: &Candidate<'_>, survey: &Survey) -> Timestamp {
    askable(began_before(survey).unwrap_or(Timestamp::MIN).max(candidate.backup.ended_at))
}

/// The same of a backup whose WAL was not looked at: its checkpoint was made before it was complete.
pub fn certainly_from(backup: &BackupDocument) -> Timestamp {
    askable(backup.ended_at.checked_add(CHECKPOINT_SLACK).unwrap_or(Timestamp::MAX))
}

/// Nothing later than `time` was seen: then something must show that the server did nothing between.
fn proven(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey, time: Timestamp) -> Result<Found> {
    let newest = newest(choice, candidate, survey);
    if newest.is_some_and(|newest| time <= newest) {
        return Ok(Found { last: survey.last_transaction.map(|transaction| transaction.record), next: None });
    }
    Err(refusal::time_behind(choice, candidate, survey, time, newest))
}

/// The last moment at which the server is known to have lived, and to have had no other WAL than what is stored.
fn newest(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey) -> Option<Timestamp> {
    survey.latest.max(choice.last_heartbeat(candidate))
}

fn build(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey, stop: Stop, end_lsn: Lsn) -> Plan {
    let (document, references) = (candidate.backup, &candidate.references);
    let links = || std::iter::once(document).chain(references.iter().copied());
    let route = route(choice, candidate, stop, end_lsn);
    let files = route.files(route.size.segment_start(document.start_lsn), end_lsn);
    let wal: Vec<WalNeed> =
        files.iter().map(|range| WalNeed { timeline: range.timeline, start: range.start, end: range.end }).collect();
    let history = &route.history;
    let steps = history.path().into_iter();
    let steps = steps.skip_while(|(timeline, ..)| *timeline != document.timeline);
    let replayed = |tablespace: &&NewTablespace| tablespace.lsn < end_lsn;
    let creates = survey.tablespaces.iter().filter(replayed);
    let last = survey.last_transaction.filter(|transaction| transaction.record.start < end_lsn);
    Plan {
        cluster: choice.cluster.to_owned(),
        system_identifier: document.system_identifier,
        postgres_version: document.postgres_version,
        segment_bytes: route.size.bytes(),
        target: choice.request.target.clone(),
        exclusive: choice.request.exclusive,
        backup: PlannedBackup {
            id: document.id.clone(),
            why: candidate.why.clone(),
            started_at: document.started_at,
            ended_at: document.ended_at,
            start_lsn: document.start_lsn,
            end_lsn: document.end_lsn,
            builds_on: references.iter().map(|link| link.id.clone()).collect(),
            plain_bytes: document.restored_bytes.unwrap_or(document.plain_bytes),
            stored_bytes: links().map(|link| link.stored_bytes).sum(),
            parts: links().map(|link| link.parts.len()).sum(),
        },
        timeline: history.timeline,
        path: steps.map(|(timeline, _, switch)| PathStep { timeline, switch }).collect(),
        stop,
        last_transaction: last,
        first_lost: None,
        end_lsn,
        action: choice.request.action,
        wal_bytes: wal.iter().map(|range| range.end - range.start).sum(),
        wal_stored_bytes: wal.iter().map(|range| stored_bytes(choice.catalog, range)).sum(),
        wal,
        requirements: requirements(document, survey),
        tablespaces: document.tablespaces.clone(),
        creates: creates.map(|it| NewTablespacePath { oid: it.oid, path: it.path.clone(), lsn: it.lsn }).collect(),
        notes: notes(choice, candidate, survey, stop),
        document: BackupDocument { files: BackupFiles::default(), ..document.clone() },
        references: references
            .iter()
            .map(|&link| BackupDocument { files: BackupFiles::default(), ..link.clone() })
            .collect(),
    }
}

/// Of the objects that hold a range. An object that reaches beyond it is fetched whole.
fn stored_bytes(catalog: &Catalog, range: &WalNeed) -> u64 {
    let stored = catalog.coverage.get(&range.timeline).map(|coverage| coverage.chain(range.start, range.end));
    stored.and_then(|chain| chain.ok()).unwrap_or_default().iter().map(|object| object.stored_bytes).sum()
}

/// The path up to the timeline on which recovery stops, if what is stored of that reaches so far: the segment with a switch
/// point may be there as the child's alone. A standby goes on to the path's end.
fn route(choice: &Choice<'_>, candidate: &Candidate<'_>, stop: Stop, end_lsn: Lsn) -> Route {
    let ended = choice.route.ended_at(end_lsn);
    let start = ended.size.segment_start(candidate.backup.start_lsn);
    let is_followed = choice.request.action == TargetAction::Follow;
    let reaches = || ended.covered(choice.catalog, start).until >= end_lsn;
    if matches!(stop, Stop::After(_)) && !is_followed && reaches() { ended } else { choice.route.clone() }
}

/// The settings that a server needs to replay (protocol: `CheckRequiredParameterValues`).
const REQUIRED: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// At least what the server had at the backup, and what its WAL says that it had later.
fn requirements(document: &BackupDocument, survey: &Survey) -> BTreeMap<String, i64> {
    let mut least = BTreeMap::new();
    for name in REQUIRED {
        let then = document.settings.get(name).and_then(|value| value.parse().ok());
        let later = survey.requirements.get(name).map(|value| i64::from(*value));
        if let Some(value) = then.max(later) {
            least.insert(name.to_owned(), value);
        }
    }
    least
}

/// A transaction gets its date, and then its record: it may wait that long for room in memory, and the record for its way to the disk
/// (`xact.c`, `RecordTransactionCommit`; `wal_writer_delay`). Less than that in front of the last sign of life, another one with an
/// earlier date may still come.
const UNSETTLED: SignedDuration = SignedDuration::from_secs(10);

fn notes(choice: &Choice<'_>, candidate: &Candidate<'_>, survey: &Survey, stop: Stop) -> Vec<String> {
    let mut notes: Vec<String> = candidate.backup.findings.in_words().into_iter().collect();
    if let (Target::Time(time), None) = (&choice.request.target, survey.found)
        && newest(choice, candidate, survey).is_some_and(|newest| newest.duration_since(*time) < UNSETTLED)
    {
        notes.push(format!(
            "no transaction that ended after {time} is archived yet: one that ended just then, or a moment before, may still be on its \
             way from the server, and is not in this restore"
        ));
    }
    if let Some(chain) = choice.broken_chain().filter(|_| choice.request.backup.is_none()) {
        notes.push(format!("a newer backup cannot be used, so that more WAL is replayed: {chain}"));
    }
    let until = candidate.covered.until;
    if let (Target::End, Some(next)) = (&choice.request.target, candidate.covered.next) {
        notes.push(match choice.is_pruned(candidate.covered.timeline, until) {
            true => format!(
                "this is not the end of the archive: WAL from {until} to {next} was deleted by retention, and this backup leads no \
                 farther. Leave --backup out for everything that is stored"
            ),
            false => format!(
            "the archive is whole up to {until}; something is stored from {next} on, but not what lies between: the \
             archiver was ended while it stored that, and never acknowledged it"
            ),
        });
    }
    if let (Stop::EndOfWal, Some(why)) = (stop, &survey.unreadable) {
        notes.push(format!(
            "the records could not be read from {} on ({why}): recovery goes as far as PostgreSQL itself can read, and \
             opens the cluster there",
            survey.end
        ));
    }
    if let Some(cap) = choice.route.cap {
        notes.push(format!("nothing of the last timeline is stored yet: recovery ends where it begins, at {cap}"));
    }
    notes
}

/// 64-bit numbers as text: JSON readers lose digits beyond 2^53.
fn as_text<S: serde::Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

impl Plan {
    /// The cluster's segment size.
    ///
    /// # Errors
    /// If the repository names a size that PostgreSQL does not know.
    pub fn segment_size(&self) -> Result<SegmentSize> {
        SegmentSize::new(self.segment_bytes)
            .ok_or_else(|| Error::new(Kind::Damaged, format!("no WAL segment has {} bytes", self.segment_bytes)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backup = &self.backup;
        let just_before = if self.exclusive { "just before " } else { "" };
        writeln!(f, "cluster      {} (system {})", self.cluster, self.system_identifier)?;
        writeln!(f, "target       {just_before}{}", self.target)?;
        match self.stop {
            Stop::After(span) if span.start < backup.end_lsn => {
                writeln!(f, "stops        behind the record at {}, where the backup is consistent", span.start)?;
            }
            Stop::After(span) => writeln!(f, "stops        behind the record at {}, inclusive", span.start)?,
            Stop::Immediate => {
                writeln!(f, "stops        as soon as the backup is consistent, about {}", backup.end_lsn)?
            }
            Stop::EndOfWal => writeln!(f, "stops        at the end of WAL")?,
        }
        if let Some(last) = &self.last_transaction {
            let verb = if last.committed { "commit" } else { "rollback" };
            writeln!(
                f,
                "last         {verb} of transaction {} at {}, record {}",
                last.xid, last.time, last.record.start
            )?;
        }
        if let Some(lost) = &self.first_lost {
            writeln!(f, "first lost   transaction {} of {}, record {}", lost.xid, lost.time, lost.record.start)?;
        }
        writeln!(f, "backup       {} ({} to {})", backup.id, backup.start_lsn, backup.end_lsn)?;
        writeln!(f, "             {}", backup.why)?;
        for (index, link) in backup.builds_on.iter().enumerate() {
            let is_full = if index + 1 == backup.builds_on.len() { ", a full one" } else { "" };
            writeln!(f, "             builds on {link}{is_full}")?;
        }
        let (plain, stored) = (mib(backup.plain_bytes), mib(backup.stored_bytes));
        writeln!(f, "             {plain} to write, {stored} to fetch in {} parts", backup.parts)?;
        write!(f, "timelines    ")?;
        for step in &self.path {
            match step.switch {
                Some(switch) => write!(f, "{} up to {switch}, then ", step.timeline)?,
                None => writeln!(f, "{}", step.timeline)?,
            }
        }
        for range in &self.wal {
            writeln!(f, "WAL          {} to {} of timeline {}", range.start, range.end, range.timeline)?;
        }
        writeln!(f, "             {} to replay, {} to fetch", mib(self.wal_bytes), mib(self.wal_stored_bytes))?;
        for tablespace in &self.tablespaces {
            writeln!(f, "tablespace   {} at {}", tablespace.oid, tablespace.location)?;
        }
        for tablespace in &self.creates {
            writeln!(f, "creates      tablespace {} at {}", tablespace.oid, tablespace.path)?;
        }
        for (name, value) in &self.requirements {
            writeln!(f, "needs        {name} = {value}")?;
        }
        writeln!(f, "then         {}", self.action.setting().unwrap_or("follows the archive as a standby"))?;
        for note in &self.notes {
            writeln!(f, "note         {note}")?;
        }
        let major = self.postgres_version / 10_000;
        write!(f, "start it with PostgreSQL {major}")
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
