//! Which relations the WAL in an object cuts: what an incremental backup must know, of objects that whoever takes it cannot
//! decrypt. Stands in clear in front of an encrypted object, and is made of its bytes while they are compressed. Pure.
//!
//! An index lists every cut whose record **ends** in its object. The objects that cover a range without a gap list all cuts
//! of records that end in it, however the WAL was cut into objects. To see a record that begins in front of the object, the
//! walk begins a page earlier, with the object's *lead*. Where there is none, as at the beginning of a stream, the index says
//! that it may lack that one record, and the index of the object before says whether that may be a cut.

use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, PAGE_BYTES, PartialRecord, Record, RecordKind, RecordWalker, RelationId, SegmentSize};
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

/// Nor is more text, which leaves room for hundreds of recipients in the head of an object (64 KiB), of which base64 takes 4/3 of this.
const INDEX_BYTES_MAX: usize = 24 << 10;

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
#[serde(deny_unknown_fields)]
pub struct CutIndex {
    /// The record in which the object begins may be a cut, and is not listed if it is one.
    pub begins_within: bool,
    /// The object ends within a record that may be a cut.
    pub ends_within: bool,
    /// Where the last record begins that cuts or makes a relation; tablespace, database and file of that.
    pub relations: Vec<(Lsn, u32, u32, u32)>,
    /// The same of databases.
    pub databases: Vec<(Lsn, u32)>,
}

/// How an index begins that is written like this. One that begins otherwise is another version's, and says nothing to this one.
const VERSION: &str = "1 ";

impl CutIndex {
    /// As it stands in front of the object: a version, the CRC-32C of the rest, and that as JSON. Nobody who cannot decrypt the object
    /// has another way to see that a bit of it is wrong. `None` if it is too long to stand there.
    pub(super) fn encode(&self) -> Result<Option<Vec<u8>>> {
        let json = serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write an index of cuts").because(error))?;
        let encoded = format!("{VERSION}{:08x} {json}", crc32c::crc32c(json.as_bytes()));
        Ok((encoded.len() <= INDEX_BYTES_MAX).then(|| encoded.into_bytes()))
    }

    /// Reads it back; `None` if it is another version's.
    ///
    /// # Errors
    /// Why it cannot be what was written.
    pub(super) fn decode(encoded: &[u8]) -> Result<Option<CutIndex>, String> {
        let Some(rest) = encoded.strip_prefix(VERSION.as_bytes()) else {
            // A number and a space; anything else is nobody's version.
            let digits = encoded.iter().take_while(|byte| byte.is_ascii_digit()).count();
            return match digits > 0 && encoded.get(digits) == Some(&b' ') {
                true => Ok(None),
                false => Err("it begins with no version".to_owned()),
            };
        };
        let (sum, json) = rest.split_at_checked(9).ok_or("it is cut")?;
        let expected = format!("{:08x} ", crc32c::crc32c(json));
        if sum != expected.as_bytes() {
            return Err("its CRC-32C is another".to_owned());
        }
        serde_json::from_slice(json).map(Some).map_err(|error| error.to_string())
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
    /// Its bytes are not known to be WAL, or cut too much.
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
        if self.cuts.len() > CUTS_MAX {
            self.is_unreadable = true;
            self.cuts.clear();
        }
        // What a switch leaves unused is zeros. Behind anything else that looks like an end of WAL there may be records.
        if let Some(end) = self.walker.end_of_wal() {
            let behind = usize::try_from(end.0.saturating_sub(position.0)).unwrap_or(usize::MAX).min(bytes.len());
            self.is_unreadable |= bytes[behind..].iter().any(|byte| *byte != 0);
        }
    }

    /// The index of the object, which begins at `start`; `None` if its bytes are not known to be WAL, or cut too much.
    pub(super) fn finish(self, start: Lsn) -> Option<CutIndex> {
        let CutIndexer { walker, began, cuts, is_unreadable } = self;
        if is_unreadable {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn index(relations: u32) -> CutIndex {
        let relations = (0..relations).map(|file| (Lsn(u64::MAX), u32::MAX, u32::MAX, u32::MAX - file)).collect();
        CutIndex { begins_within: true, relations, databases: vec![(Lsn(7), 16_400)], ..CutIndex::default() }
    }

    #[test]
    fn an_index_is_read_as_it_was_written_or_not_at_all() {
        let index = index(3);
        let encoded = index.encode().unwrap().unwrap();
        assert_eq!(CutIndex::decode(&encoded).unwrap(), Some(index));
        // Whatever bit of it is wrong, no cut is missed: it is damaged, or another version's.
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(CutIndex::decode(&flipped), Ok(Some(_))), "bit {bit}");
        }
        assert!((0..encoded.len()).all(|end| CutIndex::decode(&encoded[..end]).is_err()));
        // What a later version may add
        let json = r#"{"begins_within":false,"ends_within":false,"relations":[],"databases":[],"more":1}"#;
        let of = |version: &str| format!("{version} {:08x} {json}", crc32c::crc32c(json.as_bytes()));
        assert!(CutIndex::decode(of("1").as_bytes()).is_err(), "a field that this version does not know");
        assert_eq!(CutIndex::decode(of("12").as_bytes()).unwrap(), None);
        assert!(CutIndex::decode(b"{}").is_err());
    }

    #[test]
    fn an_index_that_is_too_long_for_the_head_of_an_object_is_left_out() {
        assert!(index(300).encode().unwrap().is_some());
        assert!(index(CUTS_MAX as u32).encode().unwrap().is_none(), "with numbers as long as they can be");
    }
}
