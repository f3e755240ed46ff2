//! The main data of commit and abort records, read as it passes: a transaction with millions of subtransactions or
//! dropped tables has a record of megabytes, of which a few numbers matter (`xact.h`, `xactdesc.c`).

use super::main_data::u32_at;
use super::{RecordKind, RelationId};

/// Relations that are listed of a transaction; of the others only the count is kept.
pub const LISTED_RELATIONS_MAX: usize = 1000;
/// Subtransactions that are listed of a transaction: 4 MiB.
pub const LISTED_SUBTRANSACTIONS_MAX: usize = 1 << 20;

const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const OPERATION_MASK: u8 = 0x70;
/// The record's flag byte says that flags for the optional parts follow the time.
const HAS_INFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

/// The longest item of a list.
const ITEM_BYTES_MAX: usize = 16;

/// A message to other sessions' caches that says: forget this relation (`sinval.h`, `SharedInvalRelcacheMsg`).
const RELATION_CHANGED: u8 = -2_i8 as u8;

/// The parts of the main data in their order; each is there if its flag is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Time,
    Flags,
    Database,
    /// How many items this list has.
    Count(List),
    /// An item of a list, and how many are to come with it.
    Items(List, u32),
    PreparedXid,
    Rest,
}

/// A list of items of one length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum List {
    Subtransactions,
    Relations,
    /// The length of an item depends on the server's version.
    DroppedStatistics(u8),
    Invalidations,
}

impl List {
    fn flag(self) -> u32 {
        match self {
            List::Subtransactions => HAS_SUBTRANSACTIONS,
            List::Relations => HAS_RELATIONS,
            List::DroppedStatistics(_) => HAS_DROPPED_STATISTICS,
            List::Invalidations => HAS_INVALIDATIONS,
        }
    }

    fn item_bytes(self) -> usize {
        match self {
            List::Subtransactions => 4,
            List::Relations => 12,
            List::DroppedStatistics(bytes) => bytes.into(),
            List::Invalidations => ITEM_BYTES_MAX,
        }
    }
}

/// Reads the main data of a transaction's end.
#[derive(Debug)]
pub(super) struct TransactionReader {
    info: u8,
    version: Option<u8>,
    with_details: bool,
    /// The part being read, and as much of it as has come.
    part: Part,
    field: [u8; ITEM_BYTES_MAX],
    field_bytes: usize,
    skip_bytes: u64,
    /// Parts that are still to come, as flags.
    flags: u32,
    time_micros: Option<i64>,
    database: Option<u32>,
    prepared_xid: Option<u32>,
    dropped_relations: u32,
    dropped: Vec<RelationId>,
    subtransactions: Vec<u32>,
    /// Databases and OIDs of relations: whose database it was may not be known.
    changed: Vec<(u32, u32)>,
}

impl TransactionReader {
    /// True if a record of the transaction manager with this flag byte ends a transaction.
    pub(super) fn reads(info: u8) -> bool {
        matches!(info & OPERATION_MASK, COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
    }

    pub(super) fn new(info: u8, version: Option<u8>, with_details: bool) -> TransactionReader {
        TransactionReader {
            info,
            version,
            with_details,
            part: Part::Time,
            field: [0; ITEM_BYTES_MAX],
            field_bytes: 0,
            skip_bytes: 0,
            flags: 0,
            time_micros: None,
            database: None,
            prepared_xid: None,
            dropped_relations: 0,
            dropped: Vec::new(),
            subtransactions: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Takes the next bytes of the main data.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.part != Part::Rest {
            if self.skip_bytes > 0 {
                let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(bytes.len());
                self.skip_bytes -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = match self.part {
                Part::Time | Part::Database => 8,
                Part::Items(list, _) => list.item_bytes(),
                _ => 4,
            };
            let taken = (wanted - self.field_bytes).min(bytes.len());
            self.field[self.field_bytes..][..taken].copy_from_slice(&bytes[..taken]);
            self.field_bytes += taken;
            bytes = &bytes[taken..];
            if self.field_bytes == wanted {
                self.field_bytes = 0;
                self.take_field();
            }
        }
    }

    fn take_field(&mut self) {
        let [a, b, c, d, e, f, g, h, ..] = self.field;
        let number = u32::from_le_bytes([a, b, c, d]);
        self.part = match self.part {
            Part::Time => {
                self.time_micros = Some(i64::from_le_bytes([a, b, c, d, e, f, g, h]));
                if self.info & HAS_INFO != 0 { Part::Flags } else { Part::Rest }
            }
            Part::Flags => {
                self.flags = number;
                self.next_part()
            }
            Part::Database => {
                self.database = Some(number).filter(|oid| *oid != 0);
                self.flags &= !HAS_DATABASE;
                self.next_part()
            }
            Part::Count(list) => {
                self.flags &= !list.flag();
                if list == List::Relations {
                    self.dropped_relations = number;
                }
                self.items(list, number)
            }
            Part::Items(list, left) => {
                self.take_item(list);
                self.items(list, left.saturating_sub(1))
            }
            Part::PreparedXid => {
                self.prepared_xid = Some(number);
                Part::Rest
            }
            Part::Rest => Part::Rest,
        };
    }

    /// The next item of `left`; what nobody wants is passed over.
    fn items(&mut self, list: List, left: u32) -> Part {
        let is_wanted = match list {
            List::Subtransactions => self.with_details && self.subtransactions.len() < LISTED_SUBTRANSACTIONS_MAX,
            List::Relations => self.dropped.len() < LISTED_RELATIONS_MAX,
            List::DroppedStatistics(_) => false,
            List::Invalidations => self.with_details && self.changed.len() < LISTED_RELATIONS_MAX,
        };
        if left > 0 && is_wanted {
            return Part::Items(list, left);
        }
        self.skip_bytes = u64::from(left) * list.item_bytes() as u64;
        self.next_part()
    }

    fn take_item(&mut self, list: List) {
        let [first, ..] = self.field;
        let word = |index: usize| u32_at(&self.field, index * 4).unwrap_or(0);
        match list {
            List::Subtransactions => self.subtransactions.push(word(0)),
            List::Relations => self.dropped.extend(RelationId::read(&self.field, 0)),
            List::Invalidations if first == RELATION_CHANGED => {
                let changed = (word(1), word(2));
                // Number 0 means all. Many come twice.
                if changed.1 != 0 && !self.changed.contains(&changed) {
                    self.changed.push(changed);
                }
            }
            List::Invalidations | List::DroppedStatistics(_) => {}
        }
    }

    fn next_part(&self) -> Part {
        let has = |flag| self.flags & flag != 0;
        if has(HAS_DATABASE) {
            Part::Database
        } else if has(HAS_SUBTRANSACTIONS) {
            Part::Count(List::Subtransactions)
        } else if has(HAS_RELATIONS) {
            Part::Count(List::Relations)
        } else if has(HAS_DROPPED_STATISTICS) {
            // Without the version, what follows cannot be found.
            let item_bytes = self.version.map(|version| if version >= 18 { 16 } else { 12 });
            item_bytes.map_or(Part::Rest, |bytes| Part::Count(List::DroppedStatistics(bytes)))
        } else if has(HAS_INVALIDATIONS) {
            Part::Count(List::Invalidations)
        } else if has(HAS_TWO_PHASE) {
            Part::PreparedXid
        } else {
            Part::Rest
        }
    }

    /// What the record says, if it was long enough for a time.
    pub(super) fn finish(&mut self) -> Option<RecordKind> {
        let (time_micros, prepared_xid) = (self.time_micros?, self.prepared_xid);
        let subtransactions = std::mem::take(&mut self.subtransactions);
        match self.info & OPERATION_MASK {
            COMMIT | COMMIT_PREPARED => {
                let of_ours = self.changed.iter().filter(|(database, _)| Some(*database) == self.database);
                Some(RecordKind::Commit {
                    time_micros,
                    prepared_xid,
                    dropped_relations: self.dropped_relations,
                    dropped: std::mem::take(&mut self.dropped),
                    database: self.database,
                    subtransactions,
                    changed: of_ours.map(|(_, oid)| *oid).collect(),
                })
            }
            _ => Some(RecordKind::Abort { time_micros, prepared_xid, subtransactions }),
        }
    }
}
