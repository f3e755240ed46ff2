//! WAL records of PostgreSQL 13 to 18: what each one says, as far as an archive cares. Pure: no tokio, no I/O.
//!
//! [`RecordWalker`] finds the records in a stream of WAL and gives them out as [`Record`]s. Layouts are those of
//! `src/include/access/xlogrecord.h` and the headers named at each kind, in little-endian order: WAL of a big-endian
//! server is refused by its page magic.

mod beginning;
mod fragments;
mod main_data;
mod page;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod walker;

pub use beginning::{begins_anew, end_of_records_before};
pub use page::PAGE_BYTES;
pub use transaction::{LISTED_RELATIONS_MAX, LISTED_SUBTRANSACTIONS_MAX};
pub use walker::{PartialRecord, RecordWalker, WalkError};

use super::{Lsn, TimelineId};

/// A relation, as WAL names it (`RelFileLocator` in `relfilelocator.h`; before 16 `RelFileNode`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RelationId {
    /// The number of its tablespace.
    pub tablespace: u32,
    /// The number of its database; 0 for what all databases share.
    pub database: u32,
    /// The number of its file (`relfilenode`).
    pub file: u32,
}

impl RelationId {
    /// Reads the three numbers at an offset; `None` behind the end.
    fn read(bytes: &[u8], offset: usize) -> Option<RelationId> {
        use main_data::u32_at;
        let (tablespace, database) = (u32_at(bytes, offset)?, u32_at(bytes, offset + 4)?);
        Some(RelationId { tablespace, database, file: u32_at(bytes, offset + 8)? })
    }
}

/// A record of the WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its first byte: the position that `pg_waldump` prints.
    pub start: Lsn,
    /// Where the next one begins, or a page header in front of it: what PostgreSQL reports as replayed after this
    /// record. For [`RecordKind::Switch`] the end of the segment.
    pub end: Lsn,
    /// Its length without what pages and alignment add (`xl_tot_len`).
    pub bytes: u32,
    /// The transaction, or subtransaction, that wrote it; 0 for none.
    pub xid: u32,
    /// The transaction whose subtransaction wrote it, where the record says so: with `wal_level = logical` since
    /// version 14. Only with [`RecordWalker::with_details`].
    pub top_xid: Option<u32>,
    /// The relation of its first block. Only with [`RecordWalker::with_details`].
    pub relation: Option<RelationId>,
    /// What it says.
    pub kind: RecordKind,
}

/// What a record says.
///
/// `time_micros` is PostgreSQL's `TimestampTz`: microseconds since 2000-01-01 00:00:00 UTC. A record whose main data is
/// not as long as its kind demands is an [`RecordKind::Other`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// A transaction committed (`xact.h`, `xl_xact_commit`).
    Commit {
        /// When, by the clock of its session. Not monotonic from record to record.
        time_micros: i64,
        /// For `COMMIT PREPARED`: the transaction that was prepared (the record's own `xid` is another or 0). `None` too
        /// if a walk that began in the middle of a page has not seen the server's version yet and needs it.
        prepared_xid: Option<u32>,
        /// How many relations' files it removed: tables and indexes dropped, truncated or rewritten.
        dropped_relations: u32,
        /// The first [`LISTED_RELATIONS_MAX`] of them.
        dropped: Vec<RelationId>,
        /// The database of its session, where the record says so: if it changed a catalogue, or with
        /// `wal_level = logical`.
        database: Option<u32>,
        /// Its subtransactions, the first [`LISTED_SUBTRANSACTIONS_MAX`]. Only with [`RecordWalker::with_details`].
        subtransactions: Vec<u32>,
        /// The OIDs of relations of `database` whose definition or files it changed or removed, the first
        /// [`LISTED_RELATIONS_MAX`]: what other sessions are told to forget. Only with [`RecordWalker::with_details`].
        changed: Vec<u32>,
    },
    /// A transaction was rolled back (`xact.h`, `xl_xact_abort`).
    Abort {
        /// When, by the clock of its session.
        time_micros: i64,
        /// For `ROLLBACK PREPARED`, as in [`RecordKind::Commit`].
        prepared_xid: Option<u32>,
        /// Its subtransactions, as in [`RecordKind::Commit`].
        subtransactions: Vec<u32>,
    },
    /// Subtransactions of a transaction, some of many (`xact.h`, `xl_xact_assignment`).
    Subtransactions {
        /// The transaction.
        top_xid: u32,
        /// Its subtransactions.
        xids: Vec<u32>,
    },
    /// Which transactions run: at checkpoints, and every 15 seconds (`standbydefs.h`, `xl_running_xacts`).
    RunningTransactions {
        /// No transaction with this number, or a later one, has begun.
        next_xid: u32,
        /// Every transaction before this number has ended.
        oldest_xid: u32,
    },
    /// `pg_create_restore_point` (`xlog_internal.h`, `xl_restore_point`).
    RestorePoint {
        /// When.
        time_micros: i64,
        /// The name, up to 63 bytes; what is not UTF-8 in it is replaced.
        name: String,
    },
    /// A checkpoint ended (`pg_control.h`, `CheckPoint`).
    Checkpoint {
        /// The server was shut down.
        shutdown: bool,
        /// Where replay from this checkpoint begins.
        redo: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// The timeline before, if this record is the first of a new one; otherwise the same.
        previous_timeline: TimelineId,
        /// When: seconds since 1970-01-01 00:00:00 UTC (`pg_time_t`).
        time_unix_seconds: i64,
    },
    /// A promotion without a checkpoint (`xlog_internal.h`, `xl_end_of_recovery`).
    EndOfRecovery {
        /// When.
        time_micros: i64,
        /// The new timeline.
        timeline: TimelineId,
        /// The timeline that it left.
        previous_timeline: TimelineId,
    },
    /// A base backup ended (`xlog.c`, `do_pg_backup_stop`).
    BackupEnd {
        /// The backup's redo position.
        start: Lsn,
    },
    /// Settings that a standby must match changed (`xlog_internal.h`, `xl_parameter_change`).
    ParameterChange(ParameterChange),
    /// A record that a crash had cut was abandoned (`xlog_internal.h`, `xl_overwrite_contrecord`).
    OverwriteContrecord {
        /// Where the abandoned record begins.
        overwritten: Lsn,
        /// When.
        time_micros: i64,
    },
    /// The rest of the segment is unused (`xlog.c`, `XLOG_SWITCH`).
    Switch,
    /// `CREATE TABLESPACE` (`tablespace.h`, `xl_tblspc_create_rec`).
    TablespaceCreate {
        /// Its number.
        oid: u32,
        /// Its directory; empty for one inside the data directory. What is not UTF-8 in it is replaced.
        path: String,
    },
    /// `DROP TABLESPACE` (`tablespace.h`, `xl_tblspc_drop_rec`).
    TablespaceDrop {
        /// Its number.
        oid: u32,
    },
    /// `CREATE DATABASE` (`dbcommands_xlog.h`), or a move to another tablespace.
    DatabaseCreate {
        /// The database's number.
        oid: u32,
        /// The tablespace that it is created in.
        tablespace: u32,
    },
    /// `DROP DATABASE` (`dbcommands_xlog.h`, `xl_dbase_drop_rec`), or a move to another tablespace.
    DatabaseDrop {
        /// The database's number.
        oid: u32,
    },
    /// A relation became shorter (`storage_xlog.h`, `xl_smgr_truncate`): `VACUUM` or `TRUNCATE` of a table of the same
    /// transaction.
    Truncate {
        /// The number of its tablespace.
        tablespace: u32,
        /// The number of its database.
        database: u32,
        /// The number of its file.
        file: u32,
        /// The first block that is gone.
        first_block: u32,
    },
    /// A file of a relation was made (`storage_xlog.h`, `xl_smgr_create`).
    RelationCreate {
        /// The number of its tablespace.
        tablespace: u32,
        /// The number of its database; 0 for a relation that all share.
        database: u32,
        /// The number of its file.
        file: u32,
    },
    /// Anything else.
    Other {
        /// The resource manager (`rmgrlist.h`).
        rmgr: u8,
        /// Its flags: the upper four bits say what the record does.
        info: u8,
    },
}

/// Settings of the server that wrote the WAL. A server that replays it as a standby needs at least the same numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct ParameterChange {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
}
