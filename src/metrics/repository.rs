//! The repository: what it can restore, and how large it is.

use super::Metrics;
use super::registry::{Builder, show, unix_seconds};
use crate::error::Result;
use jiff::Timestamp;
use prometheus::GaugeVec;
use std::sync::atomic::{AtomicBool, Ordering};

/// Absent while they are not known.
pub(super) struct Repository {
    oldest_restorable: GaugeVec,
    newest_restorable: GaugeVec,
    has_window: AtomicBool,
    objects: GaugeVec,
    bytes: GaugeVec,
    newest_date: GaugeVec,
}

impl Repository {
    pub(super) fn register(build: &mut Builder) -> Result<Repository> {
        Ok(Repository {
            oldest_restorable: build.gauges(
                "seawall_recovery_window_start_timestamp_seconds",
                &[],
                "The oldest moment from which on every moment can be restored, as base backups and recorded holes tell; \
                 absent while there is none. Looked up with the base backups.",
            )?,
            newest_restorable: build.gauges(
                "seawall_recovery_window_end_timestamp_seconds",
                &[],
                "The newest moment that can be restored: now, less `seawall_rpo_seconds`; absent while there is none, or \
                 while it is not known.",
            )?,
            has_window: AtomicBool::new(false),
            objects: build.gauges(
                "seawall_repository_objects",
                &["part"],
                "Objects of this cluster in the repository: `wal`, `tails`, `index`, `backups`, `drills`, `other`. Counted \
                 at the start and then once a day, if WAL came.",
            )?,
            bytes: build.gauges("seawall_repository_bytes", &["part"], "Their bytes, as they are stored.")?,
            newest_date: build.gauges(
                "seawall_newest_date_timestamp_seconds",
                &["of"],
                "The newest date of a finished base backup (`backup`) and in the audit trail (`audit`), however wrong: what is dated more \
                 than an hour ahead was dated by a clock that was wrong, and does not count for the schedule.",
            )?,
        })
    }
}

impl Metrics {
    /// The oldest moment from which on every moment can be restored.
    pub fn set_oldest_restorable(&self, oldest: Option<Timestamp>) {
        self.0.repository.has_window.store(oldest.is_some(), Ordering::Relaxed);
        show(&self.0.repository.oldest_restorable, oldest.map(unix_seconds));
    }

    /// The newest moment that is stored. It can be restored if any can: nothing is shown unless the oldest is.
    pub fn set_newest_restorable(&self, newest: Option<Timestamp>) {
        let newest = newest.filter(|_| self.0.repository.has_window.load(Ordering::Relaxed));
        show(&self.0.repository.newest_restorable, newest.map(unix_seconds));
    }

    /// The newest date of what there is of a kind. Its name must come from a small fixed set.
    pub fn set_newest_date(&self, of: &'static str, newest: Timestamp) {
        self.0.repository.newest_date.with_label_values(&[of]).set(unix_seconds(newest));
    }

    /// What one part of the repository holds. The name must come from a small fixed set.
    pub fn set_repository_part(&self, part: &'static str, objects: u64, bytes: u64) {
        self.0.repository.objects.with_label_values(&[part]).set(objects as f64);
        self.0.repository.bytes.with_label_values(&[part]).set(bytes as f64);
    }
}
