//! What the last drill found.

use super::Metrics;
use super::registry::{Builder, flag, show, unix_seconds};
use crate::error::Result;
use crate::wal::Lsn;
use jiff::Timestamp;
use prometheus::GaugeVec;

/// What the last drill found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LastDrill {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Nothing failed.
    pub passed: bool,
    /// What recovery took, if it came to its end.
    pub recovery_seconds: Option<f64>,
    /// How far the server replayed.
    pub recovered_lsn: Option<Lsn>,
    /// The end of the last transaction in it.
    pub recovered_at: Option<Timestamp>,
    /// Recovery was as quick as it was to be; `None`: no target was set.
    pub rto_met: Option<bool>,
    /// What was stored was as young as it was to be; `None`: no target was set.
    pub rpo_met: Option<bool>,
}

/// All of them absent until there was a drill.
pub(super) struct Drill {
    timestamp: GaugeVec,
    success: GaugeVec,
    recovery_seconds: GaugeVec,
    recovered_lsn: GaugeVec,
    recovered_timestamp: GaugeVec,
    rto_met: GaugeVec,
    rpo_met: GaugeVec,
}

impl Drill {
    pub(super) fn register(build: &mut Builder) -> Result<Drill> {
        Ok(Drill {
            timestamp: build.gauges(
                "seawall_drill_timestamp_seconds",
                &[],
                "When the last drill ended; absent, as all of these, if there was none. Looked up \
                 when this process takes charge of the cluster, after its own drills, and once a day; a hot spare shows none.",
            )?,
            success: build.gauges("seawall_drill_success", &[], "1 if the last drill passed, else 0.")?,
            recovery_seconds: build.gauges(
                "seawall_drill_recovery_seconds",
                &[],
                "What recovery took in it, from the decision to a server that takes writes; absent if it did not come so far.",
            )?,
            recovered_lsn: build.gauges(
                "seawall_drill_recovered_lsn_bytes",
                &[],
                "How far its server replayed, as a position in bytes; absent if it did not come up.",
            )?,
            recovered_timestamp: build.gauges(
                "seawall_drill_recovered_timestamp_seconds",
                &[],
                "The end of the last transaction that it replayed; absent if there was none.",
            )?,
            rto_met: build.gauges(
                "seawall_drill_rto_met",
                &[],
                "1 if recovery took no longer than `drill.rto`, else 0; absent without that.",
            )?,
            rpo_met: build.gauges(
                "seawall_drill_rpo_met",
                &[],
                "1 if what was stored was no older than `drill.rpo`, else 0; absent without that.",
            )?,
        })
    }

    /// Nothing is known of it any more.
    pub(super) fn forget(&self) {
        let Drill { timestamp, success, recovery_seconds, recovered_lsn, recovered_timestamp, rto_met, rpo_met } = self;
        for gauge in [timestamp, success, recovery_seconds, recovered_lsn, recovered_timestamp, rto_met, rpo_met] {
            gauge.reset();
        }
    }
}

impl Metrics {
    /// What the last drill found.
    pub fn set_last_drill(&self, drill: &LastDrill) {
        let inner = &self.0.drill;
        show(&inner.timestamp, Some(unix_seconds(drill.ended_at)));
        show(&inner.success, Some(flag(drill.passed)));
        show(&inner.recovery_seconds, drill.recovery_seconds);
        show(&inner.recovered_lsn, drill.recovered_lsn.map(|lsn| lsn.0 as f64));
        show(&inner.recovered_timestamp, drill.recovered_at.map(unix_seconds));
        show(&inner.rto_met, drill.rto_met.map(flag));
        show(&inner.rpo_met, drill.rpo_met.map(flag));
    }
}
