//! Drills: what became of each is a document of its own. Uses `store`.

use super::documents::decimal;
use super::layout::{BackupId, Key};
use super::{Repository, Writer};
use crate::error::Result;
use crate::store::list_all;
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a drill found: a restore for real, onto a throwaway server, and checks on that. Lengths are in seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillDocument {
    /// [`super::FORMAT_VERSION`].
    pub format: u32,
    /// Whose cluster was restored.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// `server_version_num` of the server that the backup was taken from.
    pub postgres_version: u32,
    /// When it began, by our clock.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Nothing failed.
    pub passed: bool,
    /// Everything that failed, in words.
    pub failures: Vec<String>,
    /// Where the restore was to end, in words.
    pub target: String,
    /// The base backup that it began with.
    pub backup: BackupId,
    /// The timeline that it ended on.
    pub timeline: TimelineId,
    /// How far WAL was stored without a gap when it began.
    pub durable_lsn: Lsn,
    /// Everything that was committed up to then was stored, as far as it can be told.
    pub durable_at: Option<Timestamp>,
    /// How far the server replayed; `None` if it did not come up.
    pub recovered_lsn: Option<Lsn>,
    /// The end of the last transaction that it replayed, by the source's clock; `None` if there was none.
    pub recovered_at: Option<Timestamp>,
    /// Looking at what is stored and planning.
    pub plan_seconds: f64,
    /// Bytes that were written by the restore, without WAL.
    pub restored_bytes: u64,
    /// What that took.
    pub restore_seconds: f64,
    /// Bytes of WAL that the server replayed.
    pub replayed_bytes: u64,
    /// What it took from its start to the end of recovery.
    pub replay_seconds: f64,
    /// From the decision to a server that takes writes: the three phases together. `None` if it did not come so far.
    pub recovery_seconds: Option<f64>,
    /// That, against what was to be reached; `None`: no target was set.
    pub rto: Option<Objective>,
    /// The age of what was stored when the drill began, against what was to be reached.
    pub rpo: Option<Objective>,
    /// The checks, in the order in which they were made.
    pub checks: Vec<DrillCheck>,
}

/// A target, and what was measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Objective {
    /// At most this.
    pub target_seconds: f64,
    /// What was measured; `None` if that was not possible.
    pub seconds: Option<f64>,
    /// It was measured, and is within the target.
    pub met: bool,
}

impl Objective {
    /// Compares what was measured with a target.
    pub fn new(target_seconds: f64, seconds: Option<f64>) -> Objective {
        Objective { target_seconds, seconds, met: seconds.is_some_and(|seconds| seconds <= target_seconds) }
    }
}

/// A check on the recovered cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillCheck {
    /// Its name: `recovery`, `amcheck`, `checksums`, or one of the operator's.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was looked at, why it was skipped, or what was wrong first.
    pub message: String,
    /// What it took.
    pub seconds: f64,
}

/// What became of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing is wrong.
    Passed,
    /// Something is.
    Failed,
    /// It could not be made here.
    Skipped,
}

impl Writer {
    /// Stores what a drill found; says under which key.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_drill(&self, document: &DrillDocument) -> Result<Key> {
        self.store_dated(document.ended_at, Key::Drill, document).await
    }
}

impl Repository {
    /// What the last drill found; `None` if there was none. One listing, of drills alone, and a document.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn last_drill(&self) -> Result<Option<DrillDocument>> {
        Ok(self.last_drills(1).await?.pop())
    }

    /// What so many drills found, the last one first.
    ///
    /// # Errors
    /// As [`Repository::last_drill`].
    pub async fn last_drills(&self, most: usize) -> Result<Vec<DrillDocument>> {
        let objects = list_all(self.store.as_ref(), &self.layout.drills_prefix()).await?;
        let keys = objects.iter().filter_map(|object| self.layout.parse(&object.key).ok());
        let times = keys.filter_map(|key| if let Key::Drill(time) = key { Some(time) } else { None });
        let mut times: Vec<Timestamp> = times.collect();
        times.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
        let mut drills = Vec::new();
        for time in times.into_iter().take(most) {
            drills.extend(self.read_document(&Key::Drill(time)).await?);
        }
        Ok(drills)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;
    use crate::codec::Compression;
    use crate::store::{MemoryStore, Store};
    use crate::wal::SegmentSize;
    use std::sync::Arc;

    fn document(ended_at: &str, failures: &[&str]) -> DrillDocument {
        let ended_at: Timestamp = ended_at.parse().unwrap();
        DrillDocument {
            format: super::super::FORMAT_VERSION,
            system_identifier: 7,
            postgres_version: 150_018,
            started_at: ended_at,
            ended_at,
            passed: failures.is_empty(),
            failures: failures.iter().map(|failure| (*failure).to_owned()).collect(),
            target: "the end of the archive".to_owned(),
            backup: BackupId::at(ended_at, 0),
            timeline: TimelineId(1),
            durable_lsn: Lsn(0x16_B374_D848),
            durable_at: None,
            recovered_lsn: Some(Lsn(0x16_B374_D848)),
            recovered_at: Some(ended_at),
            plan_seconds: 0.5,
            restored_bytes: 1 << 30,
            restore_seconds: 10.25,
            replayed_bytes: 1 << 20,
            replay_seconds: 1.5,
            recovery_seconds: Some(12.25),
            rto: Some(Objective::new(10.0, Some(12.25))),
            rpo: Some(Objective::new(10.0, None)),
            checks: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_newest_is_found_and_two_of_one_second_have_two_names() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let repository = Repository { store: store.clone(), layout: layout.clone() };
        let writer = Writer::new(store, layout.clone(), 7);
        assert_eq!(repository.last_drill().await.unwrap(), None);
        // Given two drills that end in one second, and one of the day before that is stored last
        let first = document("2026-11-20T14:03:00.25Z", &[]);
        let second = document("2026-11-20T14:03:00.75Z", &["orders: gave f, and not true"]);
        let earlier = document("2026-11-19T14:03:00Z", &[]);
        let mut names = Vec::new();
        for document in [&first, &second, &earlier, &second] {
            names.push(layout.name(&writer.store_drill(document).await.unwrap()));
        }
        // Then each has a name, the same one again, and the last to end is the last
        let name = |time: &str| format!("main/drills/{time}.json");
        let expected = ["20261120T140300Z", "20261120T140301Z", "20261119T140300Z", "20261120T140301Z"].map(name);
        assert_eq!(names, expected);
        assert_eq!(repository.last_drill().await.unwrap(), Some(second.clone()));
        assert_eq!(repository.last_drills(9).await.unwrap(), [second, first, earlier]);
    }

    #[test]
    fn a_target_is_met_only_by_what_was_measured() {
        assert!(Objective::new(10.0, Some(10.0)).met);
        assert!(!Objective::new(10.0, Some(10.5)).met && !Objective::new(10.0, None).met);
    }
}
