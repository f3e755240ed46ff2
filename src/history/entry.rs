//! What happened, as a reader of WAL can tell. Pure.

use crate::wal::{Lsn, RelationId, TimelineId};
use jiff::Timestamp;

/// Something that happened at one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The record's first byte: recovery that ends just before it ends just before this happened.
    pub start: Lsn,
    /// Behind the record.
    pub end: Lsn,
    /// When, by the server's clock. Not monotonic from entry to entry.
    pub time: Timestamp,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A transaction was committed.
    Commit(Box<Transaction>),
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: String,
    },
    /// The server was shut down, or had recovered from a crash: what follows is of a server that was started anew.
    Restart,
    /// A standby, or a restored server, was promoted.
    Promotion {
        /// The timeline that it began.
        timeline: TimelineId,
        /// The timeline that it left.
        previous_timeline: TimelineId,
    },
}

/// A transaction that was committed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// Its number; of a prepared one the number of what was prepared.
    pub xid: u32,
    /// It was prepared (`COMMIT PREPARED`).
    pub prepared: bool,
    /// Its first record that was seen; its commit record if no other was.
    pub first: Lsn,
    /// Its records, with those of its subtransactions and the commit record. What a savepoint wrote that was rolled back
    /// is not counted.
    pub records: u64,
    /// The bytes of these records.
    pub bytes: u64,
    /// All its records were seen. If not, it may have begun before, and has more of them.
    pub is_whole: bool,
    /// The database that it worked in, if that can be told.
    pub database: Option<u32>,
    /// How many relations' files it removed: dropped, truncated or rewritten.
    pub removed_count: u32,
    /// The first of them, as many as [`crate::wal::LISTED_RELATIONS_MAX`].
    pub removed: Vec<RelationId>,
    /// How many relations' files it made.
    pub created_count: u32,
    /// The first of them, as many.
    pub created: Vec<RelationId>,
    /// OIDs of relations in its database whose definition or files it changed or removed; as many.
    pub changed: Vec<u32>,
    /// Relations that went out of the catalogue, less those that came into it.
    pub relations_lost: i64,
    /// Databases that it made.
    pub created_databases: Vec<u32>,
    /// Databases that it removed.
    pub dropped_databases: Vec<u32>,
    /// Tablespaces that it made.
    pub created_tablespaces: Vec<u32>,
    /// Tablespaces that it removed.
    pub dropped_tablespaces: Vec<u32>,
    /// Where the removal of a database began, if that is not at `first`: it is marked as invalid before the transaction
    /// has a number.
    pub invalidated: Option<Lsn>,
}

impl Transaction {
    /// Something that was there before is not there any more: at least the files of a relation.
    pub fn removes(&self) -> bool {
        self.removed_count > 0 || !self.dropped_databases.is_empty() || !self.dropped_tablespaces.is_empty()
    }

    /// It removed something for good: relations, or a database.
    pub fn drops(&self) -> bool {
        !self.dropped_databases.is_empty() || self.drops_relations()
    }

    /// It removed relations, and not only their files to put others in their place, as `TRUNCATE`, `VACUUM FULL`,
    /// `CLUSTER`, `REINDEX` and some forms of `ALTER TABLE` do.
    pub fn drops_relations(&self) -> bool {
        self.removed_count > self.created_count || (self.removed_count > 0 && self.relations_lost > 0)
    }

    /// Recovery that ends in front of the record here has everything as it was before the transaction, where `commit` is
    /// its commit record. The files of a database are removed before the commit: there it is where the transaction began.
    pub fn before(&self, commit: Lsn) -> Lsn {
        match self.dropped_databases.is_empty() {
            true => commit,
            false => self.invalidated.unwrap_or(self.first),
        }
    }
}
