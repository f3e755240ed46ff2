//! Invented catalogues and records for the tests of this module.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::repository::{
    BackupDocument, BackupEntry, BackupFiles, BackupId, Catalog, Cluster, Coverage, FORMAT_VERSION, Findings, Stored,
};
use crate::wal::{History, Lsn, Record, RecordKind, SegmentSize, TimelineId, WalRange};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// The segment size of invented clusters.
pub(crate) const MIB: u64 = 1 << 20;

/// Seconds between the Unix epoch and the invented world's: 2026-11-20 00:00 UTC.
const DAY: i64 = 1_795_132_800;

/// A moment of the invented world, in seconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(DAY + seconds).unwrap()
}

/// The same as PostgreSQL writes it.
pub(crate) fn micros(seconds: i64) -> i64 {
    at(seconds).as_microsecond() - 946_684_800_000_000
}

/// A record of one byte.
pub(crate) fn record(start: u64, xid: u32, kind: RecordKind) -> Record {
    Record { start: Lsn(start), end: Lsn(start + 1), bytes: 1, xid, top_xid: None, relation: None, kind }
}

/// A commit at `seconds`.
pub(crate) fn commit(start: u64, xid: u32, seconds: i64) -> Record {
    record(start, xid, RecordKind::plain_commit(micros(seconds), None))
}

/// A record that says nothing.
pub(crate) fn other(start: u64) -> Record {
    record(start, 0, RecordKind::Other { rmgr: 10, info: 0 })
}

/// A catalogue in the making.
pub(crate) struct CatalogBuilder {
    wal: BTreeMap<TimelineId, Vec<Stored>>,
    pub(crate) catalog: Catalog,
}

impl CatalogBuilder {
    pub(crate) fn new() -> CatalogBuilder {
        let cluster = Cluster {
            format: FORMAT_VERSION,
            system_identifier: 7,
            postgres_version: 150_018,
            segment_bytes: MIB,
            created_at: at(0),
        };
        let catalog = Catalog {
            cluster,
            histories: BTreeMap::new(),
            coverage: BTreeMap::new(),
            gaps: Vec::new(),
            pruned: Vec::new(),
            dead_branches: Vec::new(),
            heartbeats: Vec::new(),
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            backups: Vec::new(),
            unknown: Vec::new(),
        };
        CatalogBuilder { wal: BTreeMap::new(), catalog }
    }

    pub(crate) fn size(&self) -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    /// Stored WAL, in blocks and, where the ends are not at block borders, tails. What is added later is newer.
    pub(crate) fn wal(mut self, timeline: u32, start: u64, end: u64) -> CatalogBuilder {
        let (size, timeline) = (self.size(), TimelineId(timeline));
        let count = self.wal.values().map(Vec::len).sum::<usize>() as i64;
        let mut position = Lsn(start);
        while position < Lsn(end) {
            let range = WalRange { timeline, start: position, end: size.block_end(position).min(Lsn(end)) };
            let is_block = range.is_whole_block(size);
            let stored = Stored {
                range,
                name: range.to_string(),
                ending: crate::codec::Ending::default(),
                is_block,
                stored_bytes: 1,
                modified: at(count),
            };
            self.wal.entry(timeline).or_default().push(stored);
            position = range.end;
        }
        self
    }

    pub(crate) fn history(mut self, timeline: u32, text: &str) -> CatalogBuilder {
        let history = History::parse(TimelineId(timeline), text.as_bytes()).unwrap();
        self.catalog.histories.insert(TimelineId(timeline), history);
        self
    }

    /// A finished backup that ran from `seconds` to ten seconds later.
    pub(crate) fn backup(mut self, timeline: u32, seconds: i64, start: u64, end: u64) -> CatalogBuilder {
        let id = BackupId::at(at(seconds), 0);
        let document = BackupDocument {
            ending: crate::codec::Ending::default(),
            format: FORMAT_VERSION,
            id: id.clone(),
            reference: None,
            label: "test".into(),
            system_identifier: 7,
            postgres_version: 150_018,
            started_at: at(seconds),
            ended_at: at(seconds + 10),
            start_lsn: Lsn(start),
            timeline: TimelineId(timeline),
            end_lsn: Lsn(end),
            end_timeline: TimelineId(timeline),
            wal_ranges: Vec::new(),
            settings: BTreeMap::from([("max_connections".to_owned(), "100".to_owned())]),
            tablespaces: Vec::new(),
            plain_bytes: 1000,
            restored_bytes: None,
            stored_bytes: 100,
            manifest_sha256: String::new(),
            findings: Findings::default(),
            parts: Vec::new(),
            files: BackupFiles::default(),
        };
        self.catalog.backups.push(BackupEntry { id, document: Some(document), begin: None });
        self
    }

    pub(crate) fn build(mut self) -> CatalogBuilder {
        let wal = std::mem::take(&mut self.wal);
        self.catalog.coverage = wal.into_iter().map(|(timeline, found)| (timeline, Coverage::new(found))).collect();
        self
    }
}
