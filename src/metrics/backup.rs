//! Base backups: the one that is being taken, and the newest one.

use super::Metrics;
use super::registry::{Builder, unix_seconds, whole};
use crate::error::Result;
use jiff::Timestamp;
use prometheus::{Gauge, IntGauge};
use std::time::Duration;

/// What is known of them.
pub(super) struct Backup {
    needed: IntGauge,
    running: IntGauge,
    received: IntGauge,
    expected: IntGauge,
    stored: IntGauge,
    last_backup_timestamp: Gauge,
    last_backup_size: IntGauge,
    last_backup_stored: IntGauge,
    last_backup_duration: Gauge,
    last_backup_damaged: IntGauge,
    last_backup_rejected_pages: IntGauge,
}

impl Backup {
    pub(super) fn register(build: &mut Builder) -> Result<Backup> {
        Ok(Backup {
            needed: build.int_gauge(
                "seawall_backup_needed",
                "1 while WAL was lost and no base backup behind the gap is finished: nothing behind it can be restored.",
            )?,
            running: build.int_gauge("seawall_backup_running", "1 while this archiver takes a base backup by itself.")?,
            received: build.int_gauge(
                "seawall_backup_received_bytes",
                "Bytes that have come of the base backup that it takes, or took last; 0: it has taken none.",
            )?,
            expected: build.int_gauge(
                "seawall_backup_expected_bytes",
                "About how many will come; 0: the server has not said.",
            )?,
            stored: build.int_gauge("seawall_backup_stored_bytes", "Bytes of its parts that are stored.")?,
            last_backup_timestamp: build.gauge(
                "seawall_last_backup_timestamp_seconds",
                "When the newest base backup was finished; 0: there is none.",
            )?,
            last_backup_size: build.int_gauge("seawall_last_backup_size_bytes", "Its size, before compression.")?,
            last_backup_stored: build
                .int_gauge("seawall_last_backup_stored_bytes", "What it takes up in the repository.")?,
            last_backup_duration: build.gauge("seawall_last_backup_duration_seconds", "How long it took.")?,
            last_backup_damaged: build.int_gauge(
                "seawall_last_backup_damaged",
                "1: the server found damaged pages while it was taken, and no restore uses it unasked.",
            )?,
            last_backup_rejected_pages: build.int_gauge(
                "seawall_last_backup_rejected_pages",
                "Pages in it that are not as PostgreSQL writes them.",
            )?,
        })
    }
}

impl Metrics {
    /// A hole waits for a base backup that begins behind it.
    pub fn set_backup_needed(&self, needed: bool) {
        self.0.backup.needed.set(needed.into());
    }

    /// A base backup is being taken.
    pub fn set_backup_running(&self, running: bool) {
        self.0.backup.running.set(running.into());
    }

    /// How far the base backup is that is being taken: bytes that came, bytes that will come as far as the server knows, bytes stored.
    pub fn set_backup_progress(&self, received: u64, expected: Option<u64>, stored: u64) {
        self.0.backup.received.set(whole(received));
        self.0.backup.expected.set(whole(expected.unwrap_or_default()));
        self.0.backup.stored.set(whole(stored));
    }

    /// The newest base backup: when it was finished, its bytes before compression and as
    /// stored, how long it took.
    pub fn set_last_backup(&self, finished: Timestamp, bytes: u64, stored: u64, took: Duration) {
        self.0.backup.last_backup_timestamp.set(unix_seconds(finished));
        self.0.backup.last_backup_size.set(whole(bytes));
        self.0.backup.last_backup_stored.set(whole(stored));
        self.0.backup.last_backup_duration.set(took.as_secs_f64());
    }

    /// What was found wrong with the newest base backup: the server called its own pages damaged; pages that we rejected.
    pub fn set_last_backup_findings(&self, damaged: bool, rejected_pages: u64) {
        self.0.backup.last_backup_damaged.set(damaged.into());
        self.0.backup.last_backup_rejected_pages.set(whole(rejected_pages));
    }
}
