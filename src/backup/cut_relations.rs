//! What PostgreSQL's own incremental backups get wrong, and how it is kept from them.
//!
//! A server of 17 or later decides from its WAL summaries which blocks of a file it sends. Two of its ways lose changes
//! silently, on all minors up to 17.11 and 18.6 at least:
//!
//! * It merges summaries in the order of the directory, not of the WAL (`GetWalSummaries` in `walsummary.c`). A record that
//!   cuts a relation, merged behind later changes, takes the changed blocks behind the cut out of the list
//!   (`BlockRefTableEntrySetLimitBlock` in `blkreftable.c`): what was written there comes back as it was before. The record
//!   that makes a relation counts as a cut at its first block, and so does one that makes a database, for all in it.
//! * It tells where older blocks no longer count as the larger of cut and length (`GetFileBackupMethod` in
//!   `basebackup_incremental.c`). Behind a cut, pages that were added and never written are in no list, and are taken from
//!   before the cut: deleted rows come back.
//!
//! Minors before 17.11 and 18.6 also lack records for bits that are cleared in visibility maps.
//!
//! So every relation that our own archived WAL cuts or makes since the reference began, every database that it makes, and
//! every visibility map are taken out of the manifest that the server is shown. It then sends their files whole.

use crate::error::{Error, Kind, Result};
use crate::repository::{Cut, CutWalk, FilePathRef, Fork, NoIndex, RecordSink, RelationFile, WalReader, WalWalk};
use crate::wal::{History, Lsn, Record, RelationId, SegmentSize};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Relations that a server must send whole, as far as the WAL was read. Memory: some 20 bytes for each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct CutRelations {
    /// Where the reference begins: what was before is in it.
    from: Lsn,
    relations: HashSet<RelationId>,
    databases: HashSet<u32>,
}

impl CutRelations {
    /// Takes in what a record cuts that begins at `at`.
    fn note(&mut self, at: Lsn, cut: Cut) {
        if at < self.from {
            return;
        }
        match cut {
            Cut::Relation(relation) => self.relations.insert(relation),
            Cut::Database(oid) => self.databases.insert(oid),
        };
    }

    /// True if a file must be sent whole.
    pub(super) fn wants_whole<'a>(&self, path: impl Into<FilePathRef<'a>>) -> bool {
        RelationFile::parse(path).is_some_and(|file| {
            file.fork == Fork::Visibility
                || self.relations.contains(&file.relation)
                || self.databases.contains(&file.relation.database)
        })
    }
}

impl RecordSink for CutRelations {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        if let Some(cut) = Cut::of(&record.kind) {
            self.note(record.start, cut);
        }
        ControlFlow::Continue(())
    }
}

/// A look through the archived WAL that can be gone on with.
pub(super) struct Search {
    history: History,
    /// Where it began.
    from: Lsn,
    way: Way,
}

/// A walk through the records since `from`.
fn records_since(from: Lsn, size: SegmentSize) -> Box<WalWalk<CutRelations>> {
    Box::new(WalWalk::new(size, size.segment_start(from), CutRelations { from, ..CutRelations::default() }))
}

/// How it looks. Where WAL is encrypted, what it cuts stands in clear in front of it, and nothing else is fetched or decrypted.
enum Way {
    Indexes { walk: CutWalk, found: CutRelations, end: Lsn },
    Records(Box<WalWalk<CutRelations>>),
}

impl Search {
    /// Begins at `from`, where a reference does, on the way that `history` tells.
    pub(super) fn new(reader: &WalReader, history: History, from: Lsn) -> Search {
        let layout = &reader.repository().layout;
        let size = layout.segment_size();
        let way = match layout.form().recipients.is_empty() {
            true => Way::Records(records_since(from, size)),
            false => {
                let found = CutRelations { from, ..CutRelations::default() };
                Way::Indexes { walk: CutWalk::new(size, from), found, end: from }
            }
        };
        Search { history, from, way }
    }

    /// How far it has read.
    pub(super) fn position(&self) -> Lsn {
        match &self.way {
            Way::Indexes { end, .. } => *end,
            Way::Records(walk) => walk.walker.position(),
        }
    }

    /// Reads on up to `end`; all of that is stored.
    ///
    /// # Errors
    /// If it cannot be read, or makes no sense.
    pub(super) async fn read_to(self, reader: &WalReader, end: Lsn) -> Result<Search> {
        let Search { history, from, way } = self;
        let layout = &reader.repository().layout;
        let size = layout.segment_size();
        let walk = match way {
            Way::Records(walk) => walk,
            Way::Indexes { mut walk, mut found, end: before } => {
                let files = history.files(walk.position(), end, size);
                match walk.read(reader, &files, &mut |at, cut| found.note(at, cut)).await? {
                    Ok(()) => {
                        let way = Way::Indexes { walk, found, end: end.max(before) };
                        return Ok(Search { history, from, way });
                    }
                    Err(why) if layout.form().identities.is_empty() => return Err(no_index(&why)),
                    Err(why) => {
                        tracing::info!(%why, "looking through the WAL itself");
                        records_since(from, size)
                    }
                }
            }
        };
        let files = history.files(walk.walker.position(), end, size);
        let walk = walk.read(reader, files).await?;
        let ended = walk.walker.end_of_wal().map(|lsn| format!("it ends at {lsn}"));
        if let Some(why) = walk.unreadable.clone().or(ended) {
            return Err(Error::new(Kind::Damaged, format!("the archived WAL up to {end} cannot be read: {why}"))
                .hint("An incremental backup is safe only if it can. Take a full one (--type full)."));
        }
        Ok(Search { history, from, way: Way::Records(Box::new(walk)) })
    }

    /// True if every record that begins before [`Search::position`] was seen.
    pub(super) fn is_between_records(&self) -> bool {
        match &self.way {
            // Each object lists the records that end in it.
            Way::Indexes { .. } => true,
            Way::Records(walk) => walk.walker.is_between_records(),
        }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> &CutRelations {
        match &self.way {
            Way::Indexes { found, .. } => found,
            Way::Records(walk) => &walk.sink,
        }
    }
}

fn no_index(why: &NoIndex) -> Error {
    Error::new(Kind::Refused, why.to_string()).hint(
        "Without a private key an incremental backup is safe only if all WAL since the last one says so. Take a full one \
         (--type full), or give the key (identity_file or SEAWALL_IDENTITY).",
    )
}

#[cfg(test)]
impl CutRelations {
    /// These.
    pub(super) fn of(relations: impl IntoIterator<Item = RelationId>) -> CutRelations {
        CutRelations { relations: relations.into_iter().collect(), ..CutRelations::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::FilePath;
    use crate::wal::RecordKind;

    fn record(start: u64, kind: RecordKind) -> Record {
        Record { start: Lsn(start), end: Lsn(start + 8), bytes: 8, xid: 7, top_xid: None, relation: None, kind }
    }

    #[test]
    fn what_is_cut_or_made_since_the_reference_is_wanted_whole_with_all_its_files() {
        let mut cut = CutRelations { from: Lsn(100), ..CutRelations::default() };
        let truncate = |file| RecordKind::Truncate { tablespace: 1663, database: 5, file, first_block: 1 };
        for (start, kind) in [
            (92, truncate(1)),
            (100, truncate(2)),
            (108, RecordKind::RelationCreate { tablespace: 16400, database: 5, file: 3 }),
            (116, RecordKind::DatabaseCreate { oid: 9, tablespace: 1663 }),
            (124, RecordKind::RelationCreate { tablespace: 1664, database: 0, file: 1262 }),
        ] {
            assert!(cut.see(&record(start, kind)).is_continue());
        }
        let wants = |path: &str| cut.wants_whole(&FilePath::parse(path.as_bytes()).unwrap());
        for path in [
            "base/5/2",
            "base/5/2.1",
            "base/5/2_fsm",
            "base/5/INCREMENTAL.2",
            "base/5/INCREMENTAL.2.4",
            "pg_tblspc/16400/PG_17_1/5/3",
            "base/9/1259",
            "pg_tblspc/16400/PG_17_1/9/INCREMENTAL.1259",
            "global/1262",
            "base/5/1_vm",
            "base/5/INCREMENTAL.1_vm",
            "global/1213_vm",
        ] {
            assert!(wants(path), "{path}");
        }
        for path in ["base/5/1", "base/5/3", "base/6/2", "base/1/INCREMENTAL.2", "PG_VERSION", "base/9/PG_VERSION"] {
            assert!(!wants(path), "{path}");
        }
    }
}
