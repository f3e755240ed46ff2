//! What a restore settled when it was planned, left in the data directory for `wal-fetch`: its path and its end.

use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use crate::repository::BackupId;
use crate::wal::{History, HistoryEntry, Lsn, SegmentSize, TimelineId};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// The file's name in the data directory.
pub const PIN_FILE: &str = "seawall.restore.json";

/// Raised when an older Seawall would misread the file: the programs that restore and that fetch may differ.
const PIN_VERSION: u32 = 1;

/// A restore's view of the archive: what is stored later, or behind the end, is not part of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// The version of this file.
    version: u32,
    /// Whose WAL, as decimal text.
    system_identifier: String,
    /// The cluster's segment size, in bytes.
    segment_bytes: u64,
    /// The backup that was restored.
    backup: BackupId,
    /// The timeline on which recovery ends.
    timeline: TimelineId,
    /// Those before it, oldest first, with the positions where they are left.
    switches: Vec<Switch>,
    /// Recovery sees zeros from here on.
    end_lsn: Lsn,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Switch {
    timeline: TimelineId,
    lsn: Lsn,
}

impl Pin {
    /// What `plan` settled.
    pub fn of(plan: &Plan) -> Pin {
        let switches = plan.path.iter().filter_map(|step| Some(Switch { timeline: step.timeline, lsn: step.switch? }));
        Pin {
            version: PIN_VERSION,
            system_identifier: plan.system_identifier.to_string(),
            segment_bytes: plan.segment_bytes,
            backup: plan.backup.id.clone(),
            timeline: plan.timeline,
            switches: switches.collect(),
            end_lsn: plan.end_lsn,
        }
    }

    /// Reads the pin of the recovery that goes on in the data directory `directory`. `None` if there is none: no restore
    /// made the directory, the restore is over, or it has become a standby, which follows.
    ///
    /// # Errors
    /// [`Kind::Local`] if the file cannot be read or understood.
    pub fn read(directory: &Path) -> Result<Option<Pin>> {
        let is_there = |name: &str| directory.join(name).exists();
        if is_there("standby.signal") || !is_there("recovery.signal") {
            return Ok(None);
        }
        let path = directory.join(PIN_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::local("read", &path, error)),
        };
        let unreadable = || Error::new(Kind::Local, format!("cannot understand {}", path.display()));
        let pin: Pin = serde_json::from_slice(&text).map_err(|error| unreadable().because(error))?;
        let is_known = pin.version == PIN_VERSION && SegmentSize::new(pin.segment_bytes).is_some();
        match is_known {
            true => Ok(Some(pin)),
            false => {
                Err(unreadable().hint("Was the restore made by another version of Seawall? Use the same one here."))
            }
        }
    }

    /// The file's text.
    pub(super) fn text(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self);
        text.map_err(|error| Error::new(Kind::Internal, format!("cannot write {PIN_FILE}")).because(error))
    }

    /// Fails unless the repository is the one that was restored from.
    ///
    /// # Errors
    /// [`Kind::Diverged`].
    pub fn check(&self, system_identifier: u64, size: SegmentSize) -> Result<()> {
        if self.system_identifier == system_identifier.to_string() && self.segment_bytes == size.bytes() {
            return Ok(());
        }
        let ours = &self.system_identifier;
        Err(Error::new(
            Kind::Diverged,
            format!("this cluster was restored from the system {ours}, and the repository holds {system_identifier}"),
        )
        .hint("Do --repo and --cluster in restore_command name the repository that the restore was made from?"))
    }

    /// The path, from the backup's timeline on.
    pub fn history(&self) -> History {
        let ancestors = self.switches.iter().map(|it| HistoryEntry { parent: it.timeline, switch: it.lsn }).collect();
        History { timeline: self.timeline, ancestors }
    }

    /// Where the archive ends for this restore.
    pub fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// The segment size of the cluster.
    pub fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.segment_bytes).unwrap_or(SegmentSize::DEFAULT)
    }

    /// A name that no other restore shares: of the same system to another end or along another path.
    pub fn name(&self) -> String {
        format!("{}-{:08X}-{:016X}", self.system_identifier, self.timeline.0, self.end_lsn.0)
    }
}
