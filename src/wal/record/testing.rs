//! Synthetic WAL, for tests.

use super::{PAGE_BYTES as PAGE, RecordKind};
use crate::wal::{Lsn, SegmentSize};

pub(crate) const MAGIC_15: u16 = 0xD110;
pub(crate) const START: Lsn = Lsn(0x30_0000);

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

impl RecordKind {
    /// A commit that removed nothing.
    pub(crate) fn plain_commit(time_micros: i64, prepared_xid: Option<u32>) -> RecordKind {
        RecordKind::Commit {
            time_micros,
            prepared_xid,
            dropped_relations: 0,
            dropped: Vec::new(),
            database: None,
            subtransactions: Vec::new(),
            changed: Vec::new(),
        }
    }
}

/// Writes WAL as PostgreSQL does.
pub(crate) struct WalWriter {
    pub(crate) size: SegmentSize,
    pub(crate) magic: u16,
    pub(crate) timeline: u32,
    pub(crate) start: Lsn,
    pub(crate) bytes: Vec<u8>,
    pub(crate) previous: Lsn,
}

impl WalWriter {
    pub(crate) fn new(start: Lsn) -> WalWriter {
        WalWriter { size: size(), magic: MAGIC_15, timeline: 1, start, bytes: Vec::new(), previous: Lsn(0x28) }
    }

    pub(crate) fn position(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// Writes a page header if one is due; `remaining` is what is left of a record that goes on.
    pub(crate) fn page_header(&mut self, remaining: u32, overwrite: bool) {
        let page = self.position();
        if !page.0.is_multiple_of(PAGE) {
            return;
        }
        let long = self.size.offset(page) == 0;
        let flags = u16::from(remaining > 0) | if long { 2 } else { 0 } | if overwrite { 8 } else { 0 };
        self.bytes.extend_from_slice(&self.magic.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.to_le_bytes());
        self.bytes.extend_from_slice(&page.0.to_le_bytes());
        self.bytes.extend_from_slice(&remaining.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&77u64.to_le_bytes());
            self.bytes.extend_from_slice(&(self.size.bytes() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    /// Writes a record and returns where it begins.
    pub(crate) fn record(&mut self, xid: u32, rmgr: u8, info: u8, body: &[u8]) -> Lsn {
        self.page_header(0, false);
        let start = self.position();
        let record = self.encode(xid, rmgr, info, body);
        self.put(&record);
        self.previous = start;
        start
    }

    pub(crate) fn encode(&self, xid: u32, rmgr: u8, info: u8, body: &[u8]) -> Vec<u8> {
        let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.previous.0.to_le_bytes());
        record.extend_from_slice(&[info, rmgr, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&checksum.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    pub(crate) fn put(&mut self, mut record: &[u8]) {
        while !record.is_empty() {
            self.page_header(record.len() as u32, false);
            let room = (PAGE - self.position().0 % PAGE) as usize;
            let (piece, rest) = record.split_at(room.min(record.len()));
            self.bytes.extend_from_slice(piece);
            record = rest;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// A record with nothing but main data.
    pub(crate) fn main(&mut self, xid: u32, rmgr: u8, info: u8, main: &[u8]) -> Lsn {
        self.record(xid, rmgr, info, &with_main_header(main))
    }

    /// Ends the segment.
    pub(crate) fn switch(&mut self) -> Lsn {
        let start = self.record(0, 0, 0x40, &[]);
        let end = self.size.segment_start(start) + self.size.bytes();
        self.bytes.resize((end - self.start) as usize, 0);
        start
    }
}

/// A record's body with nothing but main data.
pub(crate) fn with_main_header(main: &[u8]) -> Vec<u8> {
    match u8::try_from(main.len()) {
        Ok(bytes) => [&[255, bytes][..], main].concat(),
        Err(_) => [&[254][..], &(main.len() as u32).to_le_bytes(), main].concat(),
    }
}
