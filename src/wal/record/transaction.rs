//! The main data of commit and abort records, read as it passes: a transaction with millions of subtransactions or
//! dropped tables has a record of megabytes, of which a few numbers matter (`xact.h`, `xactdesc.c`).

use super::RecordKind;

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

/// The parts of the main data in their order; each is there if its flag is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Time,
    Flags,
    /// A count of items that are passed over, and the bytes in each.
    Items(u32, u64),
    PreparedXid,
    Rest,
}

/// Reads the main data of a transaction's end.
#[derive(Debug)]
pub(super) struct TransactionReader {
    info: u8,
    /// Bytes in an item of dropped statistics, which depends on the server's version, if that is known.
    statistics_bytes: Option<u64>,
    /// The part being read, and as much of its leading field as has come.
    part: Part,
    field: [u8; 8],
    field_bytes: usize,
    skip_bytes: u64,
    /// Parts that are still to come, as flags.
    flags: u32,
    time_micros: Option<i64>,
    prepared_xid: Option<u32>,
    dropped_relations: u32,
}

impl TransactionReader {
    /// True if a record of the transaction manager with this flag byte ends a transaction.
    pub(super) fn reads(info: u8) -> bool {
        matches!(info & OPERATION_MASK, COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
    }

    pub(super) fn new(info: u8, version: Option<u8>) -> TransactionReader {
        let statistics_bytes = version.map(|version| if version >= 18 { 16 } else { 12 });
        TransactionReader {
            info,
            statistics_bytes,
            part: Part::Time,
            field: [0; 8],
            field_bytes: 0,
            skip_bytes: 0,
            flags: 0,
            time_micros: None,
            prepared_xid: None,
            dropped_relations: 0,
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
            let wanted = if self.part == Part::Time { 8 } else { 4 };
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
        let [a, b, c, d, ..] = self.field;
        let number = u32::from_le_bytes([a, b, c, d]);
        match self.part {
            Part::Time => {
                self.time_micros = Some(i64::from_le_bytes(self.field));
                self.part = if self.info & HAS_INFO != 0 { Part::Flags } else { Part::Rest };
                return;
            }
            Part::Flags => {
                self.flags = number;
                if number & HAS_DATABASE != 0 {
                    self.skip_bytes = 8;
                }
            }
            Part::Items(flag, item_bytes) => {
                if flag == HAS_RELATIONS {
                    self.dropped_relations = number;
                }
                self.skip_bytes = u64::from(number) * item_bytes;
                self.flags &= !flag;
            }
            Part::PreparedXid => {
                self.prepared_xid = Some(number);
                self.flags = 0;
            }
            Part::Rest => {}
        }
        self.part = self.next_part();
    }

    fn next_part(&self) -> Part {
        let has = |flag| self.flags & flag != 0;
        if has(HAS_SUBTRANSACTIONS) {
            Part::Items(HAS_SUBTRANSACTIONS, 4)
        } else if has(HAS_RELATIONS) {
            Part::Items(HAS_RELATIONS, 12)
        } else if has(HAS_DROPPED_STATISTICS) {
            // Without the version, what follows cannot be found.
            self.statistics_bytes.map_or(Part::Rest, |bytes| Part::Items(HAS_DROPPED_STATISTICS, bytes))
        } else if has(HAS_INVALIDATIONS) {
            Part::Items(HAS_INVALIDATIONS, 16)
        } else if has(HAS_TWO_PHASE) {
            Part::PreparedXid
        } else {
            Part::Rest
        }
    }

    /// What the record says, if it was long enough for a time.
    pub(super) fn finish(&self) -> Option<RecordKind> {
        let (time_micros, prepared_xid) = (self.time_micros?, self.prepared_xid);
        match self.info & OPERATION_MASK {
            COMMIT | COMMIT_PREPARED => {
                Some(RecordKind::Commit { time_micros, prepared_xid, dropped_relations: self.dropped_relations })
            }
            _ => Some(RecordKind::Abort { time_micros, prepared_xid }),
        }
    }
}
