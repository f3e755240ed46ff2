//! Which relations the WAL in an object cuts: what an incremental backup must know, of objects that whoever takes it cannot
//! decrypt. Stands in clear in front of an encrypted object, and is made of its bytes while they are compressed. Pure.
//!
//! An index lists every cut whose record **ends** in its object. The objects that cover a range without a gap list all cuts
//! of records that end in it, however the WAL was cut into objects. To see a record that begins in front of the object, the
//! walk begins a page earlier, with the object's *lead*. Where there is none, as at the beginning of a stream, the index says
//! that it may lack that one record, and the index of the object before says whether that may be a cut.

use super::relation_file::RelationId;
use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, PAGE_BYTES, PartialRecord, Record, RecordKind, RecordWalker, SegmentSize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A cut is a record of no more bytes: header, fragment headers, and 20 bytes of main data (`xl_smgr_truncate`), in all
/// versions from 13 to 18. So it lies in two pages at most.
const CUT_RECORD_BYTES_MAX: u64 = 64;

/// A page's longest header stands in front of the rest of a record.
const PAGE_HEADER_BYTES_MAX: u64 = 40;

/// Resource managers whose records cut (`rmgrlist.h`): storage and databases.
const CUTTING_RMGRS: [u8; 2] = [2, 4];

/// More is not listed: an object's head stays small, and with so many there is little left to be sent in part.
const CUTS_MAX: usize = 500;

/// What a record cuts or makes: incremental backups of PostgreSQL's own lose changes of that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Cut {
    /// A relation became shorter, or was made.
    Relation(RelationId),
    /// A database was made. Copied files of a template have no records of their own.
    Database(u32),
}

impl Cut {
    /// What a record of this kind cuts.
    pub fn of(kind: &RecordKind) -> Option<Cut> {
        match *kind {
            RecordKind::Truncate { tablespace, database, file, .. }
            | RecordKind::RelationCreate { tablespace, database, file } => {
                Some(Cut::Relation(RelationId { tablespace, database, file }))
            }
            RecordKind::DatabaseCreate { oid, .. } => Some(Cut::Database(oid)),
            _ => None,
        }
    }
}

/// The cuts in one object.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CutIndex {
    /// The record in which the object begins may be a cut, and is not listed if it is one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub begins_within: bool,
    /// The object ends within a record that may be a cut.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ends_within: bool,
    /// Where the last record begins that cuts or makes a relation; tablespace, database and file of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relations: Vec<(Lsn, u32, u32, u32)>,
    /// The same of databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<(Lsn, u32)>,
}

/// What says nothing is left out.
fn is_false(value: &bool) -> bool {
    !value
}

impl CutIndex {
    /// As it stands in front of the object.
    pub(super) fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write an index of cuts").because(error))
    }

    /// Every cut, and where its record begins.
    pub fn cuts(&self) -> impl Iterator<Item = (Lsn, Cut)> {
        let relation = |&(at, tablespace, database, file): &(Lsn, u32, u32, u32)| {
            (at, Cut::Relation(RelationId { tablespace, database, file }))
        };
        let databases = self.databases.iter().map(|&(at, database)| (at, Cut::Database(database)));
        self.relations.iter().map(relation).chain(databases)
    }
}

/// Where the lead of an object begins that begins at `start`, in WAL that is there from `from` on: at the page before that
/// of `start`.
pub fn lead_start(start: Lsn, from: Lsn) -> Lsn {
    let page = start.0 - start.0 % PAGE_BYTES;
    Lsn(page.saturating_sub(PAGE_BYTES)).max(from).min(start)
}

/// Makes the index of an object as its bytes pass.
pub(super) struct CutIndexer {
    walker: RecordWalker,
    began: Lsn,
    /// Where the last record begins that cuts it.
    cuts: BTreeMap<Cut, Lsn>,
    is_unreadable: bool,
}

impl CutIndexer {
    /// Of an object behind `lead`, which begins at `began`.
    pub(super) fn new(size: SegmentSize, mut began: Lsn, mut lead: &[u8]) -> CutIndexer {
        // Unused since a switch; the next segment begins anew.
        while let Some((page, rest)) = lead.split_at_checked(PAGE_BYTES as usize)
            && page.iter().all(|byte| *byte == 0)
        {
            (began, lead) = (began + PAGE_BYTES, rest);
        }
        // Only a page says where its first record begins.
        let is_unreadable = !began.0.is_multiple_of(PAGE_BYTES);
        let mut indexer =
            CutIndexer { walker: RecordWalker::new(size, began), began, cuts: BTreeMap::new(), is_unreadable };
        indexer.push(lead);
        indexer
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.is_unreadable {
            return;
        }
        let position = self.walker.position();
        let cuts = &mut self.cuts;
        let mut note = |record: Record| {
            if let Some(cut) = Cut::of(&record.kind) {
                cuts.insert(cut, record.start);
            }
        };
        self.is_unreadable = self.walker.push(position, bytes, &mut note).is_err();
        // What a switch leaves unused is zeros. Behind anything else that looks like an end of WAL there may be records.
        if let Some(end) = self.walker.end_of_wal() {
            let behind = usize::try_from(end.0.saturating_sub(position.0)).unwrap_or(usize::MAX).min(bytes.len());
            self.is_unreadable |= bytes[behind..].iter().any(|byte| *byte != 0);
        }
    }

    /// The index of the object, which begins at `start`; `None` if its bytes are not known to be WAL, or cut too much.
    pub(super) fn finish(self, start: Lsn) -> Option<CutIndex> {
        let CutIndexer { walker, began, cuts, is_unreadable } = self;
        if is_unreadable || cuts.len() > CUTS_MAX {
            return None;
        }
        let is_near = start < began + PAGE_HEADER_BYTES_MAX + CUT_RECORD_BYTES_MAX;
        let may_be_in = |record: Option<PartialRecord>| {
            record.is_some_and(|record| {
                let may_cut = record.rmgr.is_none_or(|rmgr| CUTTING_RMGRS.contains(&rmgr));
                may_cut && record.bytes_min <= CUT_RECORD_BYTES_MAX
            })
        };
        let mut index = CutIndex {
            begins_within: is_near && may_be_in(walker.first_record()),
            ends_within: walker.end_of_wal().is_none() && may_be_in(walker.last_record()),
            ..CutIndex::default()
        };
        for (cut, at) in cuts {
            match cut {
                Cut::Relation(RelationId { tablespace, database, file }) => {
                    index.relations.push((at, tablespace, database, file));
                }
                Cut::Database(oid) => index.databases.push((at, oid)),
            }
        }
        Some(index)
    }
}
