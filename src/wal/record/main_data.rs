//! The part of a record that is its own: found behind the fragment headers, and decoded by resource manager.

use super::fragments::{Fragment, FragmentReader};
use super::transaction::TransactionReader;
use super::{ParameterChange, RecordKind, RelationId};
use crate::wal::{Lsn, TimelineId};

const XLOG: u8 = 0;
const TRANSACTION: u8 = 1;
const STORAGE: u8 = 2;
const DATABASE: u8 = 4;
const TABLESPACE: u8 = 5;
const STANDBY: u8 = 8;

/// The bits of a record's flag byte that belong to its resource manager.
const OPERATION_MASK: u8 = 0xF0;

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xD0;

const STORAGE_CREATE: u8 = 0x10;
const STORAGE_TRUNCATE: u8 = 0x20;
const TABLESPACE_CREATE: u8 = 0x00;
const TABLESPACE_DROP: u8 = 0x10;
const DATABASE_CREATE: u8 = 0x00;
/// Version 15 and later: the beginning of a creation that is logged block by block. Before: a drop.
const DATABASE_CREATE_LOGGED: u8 = 0x10;
const DATABASE_DROP: u8 = 0x20;
/// Transaction records whose flag byte has a bit of its own (`xact.h`, `XLOG_XACT_OPMASK`).
const TRANSACTION_MASK: u8 = 0x70;
const SUBTRANSACTIONS: u8 = 0x50;
const RUNNING_TRANSACTIONS: u8 = 0x10;

/// Main data kept for decoding. The longest that matters is a tablespace's path, which PostgreSQL limits to 1024 bytes.
const KEPT_BYTES_MAX: usize = 2048;

/// A record's body as it passes.
#[derive(Debug)]
pub(super) struct Body {
    rmgr: u8,
    info: u8,
    version: Option<u8>,
    /// Whoever looks at the records wants to know of each which transaction and which relation it belongs to.
    with_details: bool,
    /// It may be a record whose main data is read.
    matters: bool,
    /// Bytes that are still to come.
    left_bytes: u64,
    place: Place,
    fragments: FragmentReader,
    kept: Vec<u8>,
    /// The relation of the first block.
    relation: Option<RelationId>,
    top_xid: Option<u32>,
}

#[derive(Debug)]
enum Place {
    /// Among the fragment headers.
    Headers,
    /// In main data that is kept.
    Main,
    /// In the main data of a transaction's end.
    Transaction(TransactionReader),
    /// Where nothing matters.
    Ignored,
}

impl Body {
    pub(super) fn new(with_details: bool) -> Body {
        Body {
            rmgr: 0,
            info: 0,
            version: None,
            with_details,
            matters: false,
            left_bytes: 0,
            place: Place::Ignored,
            fragments: FragmentReader::new(None),
            kept: Vec::new(),
            relation: None,
            top_xid: None,
        }
    }

    /// Begins the body, `bytes` long, of another record.
    pub(super) fn begin(&mut self, rmgr: u8, info: u8, version: Option<u8>, bytes: u64) {
        self.rmgr = rmgr;
        self.info = info;
        self.version = version;
        self.left_bytes = bytes;
        self.fragments = FragmentReader::new(version);
        self.kept.clear();
        (self.relation, self.top_xid) = (None, None);
        let is_switch = rmgr == XLOG && info & OPERATION_MASK == SWITCH;
        self.matters = Body::matters(rmgr, info) && !is_switch;
        self.place = if self.matters || self.with_details { Place::Headers } else { Place::Ignored };
    }

    /// True if a record of this resource manager, with these flags, has to be taken apart.
    pub(super) fn is_wanted(&self, rmgr: u8, info: u8) -> bool {
        self.with_details || Body::matters(rmgr, info)
    }

    /// True if a record of this resource manager, with these flags, may be anything but a [`RecordKind::Other`].
    fn matters(rmgr: u8, info: u8) -> bool {
        let operation = info & OPERATION_MASK;
        match rmgr {
            XLOG => matches!(
                operation,
                CHECKPOINT_SHUTDOWN
                    | CHECKPOINT_ONLINE
                    | SWITCH
                    | BACKUP_END
                    | PARAMETER_CHANGE
                    | RESTORE_POINT
                    | END_OF_RECOVERY
                    | OVERWRITE_CONTRECORD
            ),
            TRANSACTION => TransactionReader::reads(info) || info & TRANSACTION_MASK == SUBTRANSACTIONS,
            STANDBY => operation == RUNNING_TRANSACTIONS,
            STORAGE => matches!(operation, STORAGE_CREATE | STORAGE_TRUNCATE),
            DATABASE | TABLESPACE => true,
            _ => false,
        }
    }

    /// Takes the next bytes of the body.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let (Place::Headers, Some((byte, rest))) = (&self.place, bytes.split_first()) {
            bytes = rest;
            self.left_bytes = self.left_bytes.saturating_sub(1);
            self.push_header(*byte);
        }
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len() as u64);
        match &mut self.place {
            Place::Main => {
                let room = KEPT_BYTES_MAX - self.kept.len();
                self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Place::Transaction(reader) => reader.push(bytes),
            Place::Headers | Place::Ignored => {}
        }
    }

    fn push_header(&mut self, byte: u8) {
        let main_bytes = match self.fragments.push(byte) {
            None | Some(Fragment::Origin) => return,
            Some(Fragment::Main(bytes)) => bytes,
            Some(Fragment::TopLevelXid(xid)) => {
                self.top_xid = Some(xid);
                return;
            }
            Some(Fragment::Block(relation)) => {
                self.relation = self.relation.or(relation);
                // Nobody else needs a record with one.
                if !self.with_details {
                    self.place = Place::Ignored;
                }
                return;
            }
            Some(Fragment::Unknown) => {
                self.place = Place::Ignored;
                return;
            }
        };
        self.place = match self.rmgr {
            // None of the records that matter has blocks, and without their data the main data is all the rest.
            _ if main_bytes != self.left_bytes || self.relation.is_some() || !self.matters => Place::Ignored,
            TRANSACTION if TransactionReader::reads(self.info) => {
                Place::Transaction(TransactionReader::new(self.info, self.version, self.with_details))
            }
            _ => Place::Main,
        };
    }

    /// The relation of the record's first block, if details are wanted.
    pub(super) fn relation(&self) -> Option<RelationId> {
        self.relation.filter(|_| self.with_details)
    }

    /// The transaction whose subtransaction wrote the record, where it says so and details are wanted.
    pub(super) fn top_xid(&self) -> Option<u32> {
        self.top_xid.filter(|_| self.with_details)
    }

    /// What the record said.
    pub(super) fn finish(&mut self) -> RecordKind {
        let kind = match &mut self.place {
            Place::Transaction(reader) => reader.finish(),
            Place::Main => decode(self.rmgr, self.info & OPERATION_MASK, &self.kept),
            // The one record that matters and has no main data.
            _ if self.rmgr == XLOG && self.info & OPERATION_MASK == SWITCH => Some(RecordKind::Switch),
            Place::Headers | Place::Ignored => None,
        };
        kind.unwrap_or(RecordKind::Other { rmgr: self.rmgr, info: self.info })
    }
}

/// Decodes main data; `None` if it is shorter than its kind demands.
fn decode(rmgr: u8, operation: u8, main: &[u8]) -> Option<RecordKind> {
    match rmgr {
        XLOG => decode_xlog(operation, main),
        TRANSACTION if operation & TRANSACTION_MASK == SUBTRANSACTIONS => {
            let xids = main.get(8..)?.chunks_exact(4).filter_map(|xid| u32_at(xid, 0));
            Some(RecordKind::Subtransactions { top_xid: u32_at(main, 0)?, xids: xids.collect() })
        }
        STANDBY if operation == RUNNING_TRANSACTIONS => {
            Some(RecordKind::RunningTransactions { next_xid: u32_at(main, 12)?, oldest_xid: u32_at(main, 16)? })
        }
        STORAGE if operation == STORAGE_CREATE => Some(RecordKind::RelationCreate {
            tablespace: u32_at(main, 0)?,
            database: u32_at(main, 4)?,
            file: u32_at(main, 8)?,
        }),
        STORAGE if operation == STORAGE_TRUNCATE => Some(RecordKind::Truncate {
            first_block: u32_at(main, 0)?,
            tablespace: u32_at(main, 4)?,
            database: u32_at(main, 8)?,
            file: u32_at(main, 12)?,
        }),
        DATABASE => {
            let (oid, second) = (u32_at(main, 0)?, u32_at(main, 4)?);
            match operation {
                DATABASE_DROP => Some(RecordKind::DatabaseDrop { oid }),
                // Versions 13 and 14 drop with this number. Told apart by length, since the version may not be known:
                // a drop lists at least one tablespace behind their count.
                DATABASE_CREATE_LOGGED if main.len() > 8 => Some(RecordKind::DatabaseDrop { oid }),
                DATABASE_CREATE | DATABASE_CREATE_LOGGED => {
                    Some(RecordKind::DatabaseCreate { oid, tablespace: second })
                }
                _ => None,
            }
        }
        TABLESPACE => {
            let oid = u32_at(main, 0)?;
            match operation {
                TABLESPACE_CREATE => Some(RecordKind::TablespaceCreate { oid, path: text(main.get(4..)?) }),
                TABLESPACE_DROP => Some(RecordKind::TablespaceDrop { oid }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn decode_xlog(operation: u8, main: &[u8]) -> Option<RecordKind> {
    match operation {
        // The offsets are the same in all versions: since 17 `wal_level` stands in what was padding.
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE => Some(RecordKind::Checkpoint {
            shutdown: operation == CHECKPOINT_SHUTDOWN,
            redo: Lsn(u64_at(main, 0)?),
            timeline: TimelineId(u32_at(main, 8)?),
            previous_timeline: TimelineId(u32_at(main, 12)?),
            time_unix_seconds: i64_at(main, 64)?,
        }),
        BACKUP_END => Some(RecordKind::BackupEnd { start: Lsn(u64_at(main, 0)?) }),
        PARAMETER_CHANGE => Some(RecordKind::ParameterChange(ParameterChange {
            max_connections: i32_at(main, 0)?,
            max_worker_processes: i32_at(main, 4)?,
            max_wal_senders: i32_at(main, 8)?,
            max_prepared_xacts: i32_at(main, 12)?,
            max_locks_per_xact: i32_at(main, 16)?,
            wal_level: i32_at(main, 20)?,
        })),
        RESTORE_POINT => {
            Some(RecordKind::RestorePoint { time_micros: i64_at(main, 0)?, name: text(main.get(8..8 + 64)?) })
        }
        END_OF_RECOVERY => Some(RecordKind::EndOfRecovery {
            time_micros: i64_at(main, 0)?,
            timeline: TimelineId(u32_at(main, 8)?),
            previous_timeline: TimelineId(u32_at(main, 12)?),
        }),
        OVERWRITE_CONTRECORD => {
            Some(RecordKind::OverwriteContrecord { overwritten: Lsn(u64_at(main, 0)?), time_micros: i64_at(main, 8)? })
        }
        _ => None,
    }
}

/// A C string in a field: up to the first zero, or the field's end.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Little-endian numbers at an offset; `None` behind the end.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    Some(i32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    Some(i64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
