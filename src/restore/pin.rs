//! What a restore has fixed when it was planned, kept in the restored data directory for `wal-fetch`.

use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, TimelineId};
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
        let is_there = |name: &str| data_directory.join(name).exists();
        if is_there("standby.signal") || !is_there("recovery.signal") {
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
