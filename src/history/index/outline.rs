//! What the records that end in a stretch of WAL say, in a few words. Pure.
//!
//! An outline is of the records whose last byte lies in its stretch. Outlines of neighbouring stretches speak of each record
//! once, and where the first begins that they do not speak of is in the last.

use crate::runtime::Clock;
use crate::wal::{Lsn, ParameterChange, Record, RecordKind, TimelineId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// So much is noted of one stretch. Where more happens, its records have to be read.
const EVENTS_MAX: usize = 500;

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Span {
    /// Its first byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
}

/// The end of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Its record.
    pub record: Span,
    /// Its number; for a prepared one that of the transaction that was prepared.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: Timestamp,
    /// False if it was rolled back.
    pub committed: bool,
}

impl Transaction {
    /// What `record` says of the end of a transaction; `None` if it says nothing of one.
    pub fn ended_by(record: &Record) -> Option<Transaction> {
        let (time_micros, prepared_xid, committed) = match record.kind {
            RecordKind::Commit { time_micros, prepared_xid, .. } => (time_micros, prepared_xid, true),
            RecordKind::Abort { time_micros, prepared_xid, .. } => (time_micros, prepared_xid, false),
            _ => return None,
        };
        let time = Clock::from_postgres_micros(time_micros)?;
        let span = Span { start: record.start, end: record.end };
        Some(Transaction { record: span, xid: prepared_xid.unwrap_or(record.xid), time, committed })
    }
}

/// The moment that a record is dated, if it is; of a checkpoint to the second before.
pub fn time_of(kind: &RecordKind) -> Option<Timestamp> {
    match *kind {
        RecordKind::Commit { time_micros, .. }
        | RecordKind::Abort { time_micros, .. }
        | RecordKind::RestorePoint { time_micros, .. }
        | RecordKind::EndOfRecovery { time_micros, .. }
        | RecordKind::OverwriteContrecord { time_micros, .. } => Clock::from_postgres_micros(time_micros),
        RecordKind::Checkpoint { time_unix_seconds, .. } => Timestamp::from_second(time_unix_seconds).ok(),
        _ => None,
    }
}

/// Something that does not happen all the time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its record.
    pub at: Span,
    /// The transaction that did it; 0 for none. Of a subtransaction its own number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub xid: u32,
    /// What it was.
    #[serde(flatten)]
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Fact {
    /// `pg_create_restore_point`.
    RestorePoint {
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Timestamp>,
        /// What it is called; `None` where names are kept from whoever reads the bucket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The server was shut down.
    Shutdown {
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Timestamp>,
    },
    /// A promotion, or recovery from a crash.
    EndOfRecovery {
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Timestamp>,
        /// The timeline from here on.
        timeline: TimelineId,
        /// The timeline before.
        previous_timeline: TimelineId,
    },
    /// The server's settings are others. Those that a standby must match.
    Parameters(ParameterChange),
    /// A commit removed files of relations.
    Dropped {
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Timestamp>,
        /// How many.
        relations: u32,
    },
    /// `CREATE TABLESPACE`.
    TablespaceCreated {
        /// Its number.
        oid: u32,
        /// Its directory, empty for one inside the data directory; `None` where names are kept from whoever reads the bucket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// `DROP TABLESPACE`.
    TablespaceDropped {
        /// Its number.
        oid: u32,
    },
    /// `CREATE DATABASE`, or a move to another tablespace.
    DatabaseCreated {
        /// Its number.
        oid: u32,
    },
    /// `DROP DATABASE`, or a move to another tablespace.
    DatabaseDropped {
        /// Its number.
        oid: u32,
    },
    /// A relation became shorter.
    Truncated {
        /// The number of its tablespace.
        tablespace: u32,
        /// The number of its database.
        database: u32,
        /// The number of its file.
        file: u32,
        /// The first block that is gone.
        first_block: u32,
    },
}

impl Fact {
    /// What `kind` says that is worth a note. With `hides_names`, none that an operator chose.
    fn of(kind: &RecordKind, hides_names: bool) -> Option<Fact> {
        let time = time_of(kind);
        Some(match *kind {
            RecordKind::RestorePoint { ref name, .. } => {
                Fact::RestorePoint { time, name: (!hides_names).then(|| name.clone()) }
            }
            RecordKind::Checkpoint { shutdown: true, .. } => Fact::Shutdown { time },
            RecordKind::EndOfRecovery { timeline, previous_timeline, .. } => {
                Fact::EndOfRecovery { time, timeline, previous_timeline }
            }
            RecordKind::ParameterChange(change) => Fact::Parameters(change),
            RecordKind::Commit { dropped_relations: relations @ 1.., .. } => Fact::Dropped { time, relations },
            RecordKind::TablespaceCreate { oid, ref path } => {
                Fact::TablespaceCreated { oid, path: (!hides_names).then(|| path.clone()) }
            }
            RecordKind::TablespaceDrop { oid } => Fact::TablespaceDropped { oid },
            RecordKind::DatabaseCreate { oid, .. } => Fact::DatabaseCreated { oid },
            RecordKind::DatabaseDrop { oid } => Fact::DatabaseDropped { oid },
            RecordKind::Truncate { tablespace, database, file, first_block } => {
                Fact::Truncated { tablespace, database, file, first_block }
            }
            RecordKind::Commit { .. }
            | RecordKind::Abort { .. }
            | RecordKind::Subtransactions { .. }
            | RecordKind::RunningTransactions { .. }
            | RecordKind::Checkpoint { .. }
            | RecordKind::BackupEnd { .. }
            | RecordKind::OverwriteContrecord { .. }
            | RecordKind::Switch
            | RecordKind::RelationCreate { .. }
            | RecordKind::Other { .. } => return None,
        })
    }

    /// True if something was left out so that whoever reads the bucket does not see it.
    fn is_hidden(&self) -> bool {
        matches!(self, Fact::RestorePoint { name: None, .. } | Fact::TablespaceCreated { path: None, .. })
    }
}

/// What the records that end in a stretch say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outline {
    /// The stretch's first byte.
    pub start: Lsn,
    /// The first byte behind it.
    pub end: Lsn,
    /// Where the first record begins that does not end in it: in it, or behind it.
    pub next_record: Lsn,
    /// The last record that ends in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Span>,
    /// How many records end in it.
    pub records: u64,
    /// How many transactions committed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub commits: u32,
    /// How many were rolled back, as far as they were logged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub aborts: u32,
    /// Of the ends of transactions the earliest moment, and the latest: they need not be in the order of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<(Timestamp, Timestamp)>,
    /// The least number of a transaction that ended, and the greatest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xids: Option<(u32, u32)>,
    /// The last transaction that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<Transaction>,
    /// The latest moment that any record is dated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dated: Option<Timestamp>,
    /// What else there was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// There was more than was noted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
}

impl Outline {
    /// True if nothing was left out of [`Outline::events`], neither for being too much nor to be hidden.
    pub fn is_complete(&self) -> bool {
        !self.is_cut && !self.events.iter().any(|event| event.fact.is_hidden())
    }
}

/// Makes an outline of records as they come.
#[derive(Debug)]
pub struct Outliner {
    outline: Outline,
    hides_names: bool,
}

impl Outliner {
    /// For the stretch that begins at `start`.
    pub fn new(start: Lsn, hides_names: bool) -> Outliner {
        let outline = Outline {
            start,
            end: start,
            next_record: start,
            last: None,
            records: 0,
            commits: 0,
            aborts: 0,
            times: None,
            xids: None,
            last_transaction: None,
            dated: None,
            events: Vec::new(),
            is_cut: false,
        };
        Outliner { outline, hides_names }
    }

    /// Takes the next record that ends in the stretch.
    pub fn see(&mut self, record: &Record) {
        let outline = &mut self.outline;
        outline.last = Some(Span { start: record.start, end: record.end });
        outline.records += 1;
        if let RecordKind::Other { .. } = record.kind {
            return;
        }
        outline.dated = outline.dated.max(time_of(&record.kind));
        if let Some(ended) = Transaction::ended_by(record) {
            *if ended.committed { &mut outline.commits } else { &mut outline.aborts } += 1;
            let (first, last) = outline.times.unwrap_or((ended.time, ended.time));
            outline.times = Some((first.min(ended.time), last.max(ended.time)));
            let (least, greatest) = outline.xids.unwrap_or((ended.xid, ended.xid));
            outline.xids = Some((least.min(ended.xid), greatest.max(ended.xid)));
            outline.last_transaction = Some(ended);
        }
        if let Some(fact) = Fact::of(&record.kind, self.hides_names) {
            match outline.events.len() < EVENTS_MAX {
                true => outline.events.push(Event {
                    at: Span { start: record.start, end: record.end },
                    xid: record.xid,
                    fact,
                }),
                false => outline.is_cut = true,
            }
        }
    }

    /// The stretch ends at `end`, and the first record that does not end in it begins at `next_record`.
    pub fn finish(self, end: Lsn, next_record: Lsn) -> Outline {
        Outline { end, next_record, ..self.outline }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
