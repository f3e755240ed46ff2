//! What becomes of the WAL that has come: in memory, stored, indexed.

use super::Metrics;
use super::registry::{Builder, count_to, whole};
use crate::error::Result;
use prometheus::{IntCounter, IntCounterVec, IntGauge};

/// What was stored of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalObject {
    /// A full block, or the sealed end of a timeline.
    Block,
    /// A part of a block that is not full yet.
    Tail,
}

impl WalObject {
    const ALL: [WalObject; 2] = [WalObject::Block, WalObject::Tail];

    fn label(self) -> &'static str {
        match self {
            WalObject::Block => "block",
            WalObject::Tail => "tail",
        }
    }
}

/// What the archiver says of it.
pub(super) struct Wal {
    objects: IntCounterVec,
    received_bytes: IntCounter,
    unstored: IntCounter,
    buffered_bytes: IntGauge,
    tails_live: IntGauge,
    tails_deleted: IntCounter,
    tails_undeleted: IntCounter,
    index_failures: IntCounterVec,
}

impl Wal {
    pub(super) fn register(build: &mut Builder) -> Result<Wal> {
        let wal = Wal {
            objects: build.counters(
                "seawall_wal_objects_total",
                &["object"],
                "Objects of WAL that were stored.",
            )?,
            received_bytes: build.counter(
                "seawall_wal_received_bytes_total",
                "Bytes of WAL that were read, those that came again included.",
            )?,
            unstored: build.counter(
                "seawall_wal_retries_total",
                "Objects of WAL that the store did not take within the time of one operation. They are tried for ever.",
            )?,
            buffered_bytes: build.int_gauge(
                "seawall_buffered_bytes",
                "Bytes of WAL in memory: received and not durable yet. Bounded; at the bound reading stops.",
            )?,
            tails_live: build
                .int_gauge("seawall_tails_live", "Tails in the repository that no block has replaced yet.")?,
            tails_deleted: build.counter(
                "seawall_tails_deleted_total",
                "Tails that were deleted, because something larger had replaced them.",
            )?,
            tails_undeleted: build.counter(
                "seawall_tails_undeleted_total",
                "Those that could not be deleted, and are left to be pruned.",
            )?,
            index_failures: build.counters(
                "seawall_index_failures_total",
                &["reason"],
                "What kept WAL out of the index of records: blocks whose records cannot be told apart, attempts to store. \
                 Archiving does not wait for it.",
            )?,
        };
        // A rate needs its zero: what is known to come is there from the start.
        for object in WalObject::ALL {
            wal.objects.with_label_values(&[object.label()]);
        }
        Ok(wal)
    }
}

impl Metrics {
    /// Objects of WAL stored since the start of the process.
    pub fn count_wal_objects(&self, object: WalObject, total: u64) {
        count_to(&self.0.wal.objects.with_label_values(&[object.label()]), total);
    }

    /// Bytes of WAL in memory that are not durable.
    pub fn set_buffered_bytes(&self, bytes: u64) {
        self.0.wal.buffered_bytes.set(whole(bytes));
    }

    /// Tails that no block has replaced yet.
    pub fn set_tails_live(&self, count: usize) {
        self.0.wal.tails_live.set(whole(count as u64));
    }

    /// Blocks whose records could not be told apart, and attempts to store an index that failed, since the start of the process.
    pub fn count_index_failures(&self, unreadable: u64, unstored: u64) {
        for (reason, total) in [("records", unreadable), ("store", unstored)] {
            count_to(&self.0.wal.index_failures.with_label_values(&[reason]), total);
        }
    }

    /// Bytes of WAL read since the start of the process.
    pub fn count_wal_received_bytes(&self, total: u64) {
        count_to(&self.0.wal.received_bytes, total);
    }

    /// Objects of WAL that the store did not take at first, since the start of the process.
    pub fn count_wal_retries(&self, total: u64) {
        count_to(&self.0.wal.unstored, total);
    }

    /// Tails that were deleted, and those that could not be, since the start of the process.
    pub fn count_tails(&self, deleted: u64, undeleted: u64) {
        count_to(&self.0.wal.tails_deleted, deleted);
        count_to(&self.0.wal.tails_undeleted, undeleted);
    }
}
