//! What prunes deleted, and what they could not. When they ended, and how, is with the other jobs.

use super::Metrics;
use super::registry::Builder;
use crate::error::Result;
use prometheus::{IntCounter, IntGauge};

pub(super) struct Prune {
    deleted_objects: IntCounter,
    deleted_bytes: IntCounter,
    undeleted_objects: IntGauge,
}

impl Prune {
    pub(super) fn register(build: &mut Builder) -> Result<Prune> {
        Ok(Prune {
            deleted_objects: build.counter(
                "seawall_prune_deleted_objects_total",
                "Objects that this process deleted because retention does not ask for them any more.",
            )?,
            deleted_bytes: build.counter("seawall_prune_deleted_bytes_total", "Their bytes, as they were stored.")?,
            undeleted_objects: build.int_gauge(
                "seawall_prune_undeleted_objects",
                "Objects that the last prune of this process could not delete; at 20 of them it stops.",
            )?,
        })
    }
}

impl Metrics {
    /// A prune deleted so much, and could not delete so many objects.
    pub fn add_pruned(&self, objects: u64, bytes: u64, undeleted: u64) {
        self.0.prune.undeleted_objects.set(i64::try_from(undeleted).unwrap_or(i64::MAX));
        self.0.prune.deleted_objects.inc_by(objects);
        self.0.prune.deleted_bytes.inc_by(bytes);
    }
}
