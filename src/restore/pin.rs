//! What a restore has fixed when it was planned, kept in the restored data directory for `wal-fetch`.

use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, Segment, SegmentSize, TimelineId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in the data directory.
pub const PIN_FILE: &str = "seawall.restore.json";

/// The path and the end of a restore: `wal-fetch` serves this and nothing beyond, whatever the archive gets later.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// The cluster whose WAL it is, as decimal text.
    pub system_identifier: String,
    /// The timelines in order, each with the bytes it is followed on: the last one ends at the pinned end.
    pub path: Vec<PinnedTimeline>,
    /// The restore put the path's WAL into `pg_wal` up to here, and every history.
    #[serde(default)]
    pub local_end: Lsn,
    /// The cluster's segment size, in bytes.
    #[serde(default)]
    pub segment_bytes: u64,
}

impl Pin {
    /// True if recovery can do without the store.
    pub fn is_all_local(&self) -> bool {
        self.path.last().is_some_and(|last| self.local_end >= last.end)
    }

    /// True if the path has WAL in the file called `name`, or leads over the timeline whose history that is.
    pub fn needs(&self, name: &str) -> bool {
        if let Some(timeline) = TimelineId::parse_history_name(name) {
            return self.path.iter().any(|part| part.timeline == timeline);
        }
        let segment = SegmentSize::new(self.segment_bytes).and_then(|size| Segment::parse(name, size).ok());
        let part = |segment: &Segment| self.path.iter().find(|part| part.timeline == segment.timeline);
        segment.is_some_and(|segment| {
            part(&segment).is_some_and(|part| segment.start < part.end && part.start < segment.end())
        })
    }
}

/// A stretch of the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PinnedTimeline {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte that belongs to it.
    pub start: Lsn,
    /// The first byte behind: the switch point, or the end of what this restore sees.
    pub end: Lsn,
}

impl Pin {
    /// Reads it from a data directory. `None` if there is none: no restore made the directory, the restore is over, or
    /// it has become a standby, which follows and pins nothing.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn read(data_directory: &Path) -> Result<Option<Pin>> {
        match data_directory.join("recovery.signal").exists() {
            true => Pin::read_last(data_directory),
            false => Ok(None),
        }
    }

    /// As [`Pin::read`], also when recovery has just ended: PostgreSQL then has removed its signal, and asks for the
    /// histories of the timelines that it came from once more (`xlog.c`, `exitArchiveRecovery`).
    ///
    /// # Errors
    /// As [`Pin::read`].
    pub fn read_last(data_directory: &Path) -> Result<Option<Pin>> {
        if data_directory.join("standby.signal").exists() {
            return Ok(None);
        }
        let path = data_directory.join(PIN_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::local("read", &path, error)),
        };
        let pin = serde_json::from_slice(&text)
            .map_err(|error| Error::new(Kind::Damaged, format!("{} cannot be read", path.display())).because(error))?;
        Ok(Some(pin))
    }

    /// The text of the file.
    ///
    /// # Errors
    /// None that the world can cause.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write the restore's pin").because(error))
    }
}
