//! What prunes deleted. When they ended, and how, is with the other jobs.

use super::Metrics;
use super::registry::Builder;
use crate::error::Result;
use prometheus::IntCounter;

pub(super) struct Prune {
    deleted_objects: IntCounter,
    deleted_bytes: IntCounter,
}

impl Prune {
    pub(super) fn register(build: &mut Builder) -> Result<Prune> {
        Ok(Prune {
            deleted_objects: build.counter(
                "seawall_prune_deleted_objects_total",
                "Objects that this process deleted because retention does not ask for them any more.",
            )?,
            deleted_bytes: build.counter("seawall_prune_deleted_bytes_total", "Their bytes, as they were stored.")?,
        })
    }
}

impl Metrics {
    /// A prune deleted so much.
    pub fn add_pruned(&self, objects: u64, bytes: u64) {
        self.0.prune.deleted_objects.inc_by(objects);
        self.0.prune.deleted_bytes.inc_by(bytes);
    }
}
