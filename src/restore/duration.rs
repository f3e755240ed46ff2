//! How long a restore will take, by what drills of the same repository measured.

use crate::repository::{DrillDocument, Repository};
use jiff::Timestamp;
use serde::Serialize;

/// How long a restore will take, about, and the drill whose rates say so. Lengths are in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct ExpectedDuration {
    /// From the beginning to the end of recovery.
    pub seconds: f64,
    /// Of that, for fetching and writing the files,
    pub restore_seconds: f64,
    /// and for replaying WAL, the server's start included.
    pub replay_seconds: f64,
    /// When the drill ended.
    pub drill_ended_at: Timestamp,
    /// What it wrote,
    pub drill_restored_bytes: u64,
    /// in this time,
    pub drill_restore_seconds: f64,
    /// and replayed,
    pub drill_replayed_bytes: u64,
    /// in this.
    pub drill_replay_seconds: f64,
}

/// Drills that are asked, the last ones: some may have failed before they had measured anything.
const DRILLS: usize = 5;

impl ExpectedDuration {
    /// As [`ExpectedDuration::at_rates_of`] the last drills in `repository`. Drills that cannot be read are told of in the log.
    pub async fn read(repository: &Repository, bytes: u64, wal_bytes: u64) -> Option<ExpectedDuration> {
        match repository.last_drills(DRILLS).await {
            Ok(drills) => ExpectedDuration::at_rates_of(&drills, bytes, wal_bytes),
            Err(error) => {
                tracing::warn!(%error, "what drills measured cannot be read");
                None
            }
        }
    }

    /// For a restore that writes `bytes` and replays `wal_bytes`. The first of `drills` that measured both tells; `None` if none
    /// did.
    pub fn at_rates_of(drills: &[DrillDocument], bytes: u64, wal_bytes: u64) -> Option<ExpectedDuration> {
        let has_measured = |drill: &&DrillDocument| {
            drill.recovery_seconds.is_some() && drill.restored_bytes > 0 && drill.replayed_bytes > 0
        };
        let drill = drills.iter().find(has_measured)?;
        let restore_seconds = drill.restore_seconds * bytes as f64 / drill.restored_bytes as f64;
        let replay_seconds = drill.replay_seconds * wal_bytes as f64 / drill.replayed_bytes as f64;
        Some(ExpectedDuration {
            seconds: restore_seconds + replay_seconds,
            restore_seconds,
            replay_seconds,
            drill_ended_at: drill.ended_at,
            drill_restored_bytes: drill.restored_bytes,
            drill_restore_seconds: drill.restore_seconds,
            drill_replayed_bytes: drill.replayed_bytes,
            drill_replay_seconds: drill.replay_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{BackupId, FORMAT_VERSION};
    use crate::wal::{Lsn, TimelineId};

    fn drill(restored_bytes: u64, replayed_bytes: u64, recovery_seconds: Option<f64>) -> DrillDocument {
        let time: Timestamp = "2026-11-20T14:03:00Z".parse().unwrap();
        DrillDocument {
            format: FORMAT_VERSION,
            system_identifier: 7,
            postgres_version: 150_018,
            started_at: time,
            ended_at: time,
            passed: false,
            failures: vec!["orders: gave f, and not true".to_owned()],
            target: "the end of the archive".to_owned(),
            backup: BackupId::at(time, 0),
            timeline: TimelineId(1),
            durable_lsn: Lsn(0),
            durable_at: None,
            recovered_lsn: None,
            recovered_at: None,
            plan_seconds: 0.5,
            restored_bytes,
            restore_seconds: 10.0,
            replayed_bytes,
            replay_seconds: 2.0,
            recovery_seconds,
            rto: None,
            rpo: None,
            checks: Vec::new(),
            sealed: None,
        }
    }

    #[test]
    fn the_newest_drill_that_measured_both_tells() {
        let took = |drills: &[DrillDocument]| {
            ExpectedDuration::at_rates_of(drills, 500, 300)
                .map(|it| (it.restore_seconds, it.replay_seconds, it.seconds))
        };
        assert_eq!(took(&[]), None);
        // One whose server did not come up, or which had nothing to replay, tells nothing; one whose checks failed does.
        let drills = [drill(1000, 100, None), drill(1000, 0, Some(12.5)), drill(0, 100, Some(12.5))];
        assert_eq!(took(&drills), None);
        let drills = [&drills[..], &[drill(1000, 100, Some(12.5)), drill(1, 1, Some(12.5))]].concat();
        assert_eq!(took(&drills), Some((5.0, 6.0, 11.0)));
    }
}
