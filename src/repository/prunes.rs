//! What prunes did: a report of each, and notes where they deleted WAL behind something that is kept. No restore needs them.

use super::layout::{BackupId, Key};
use super::{FORMAT_VERSION, Repository, Writer};
use crate::error::Result;
use crate::store::list_all;
use crate::wal::{Lsn, TimelineId, WalRange};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `prunes/….json`: what a prune did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PruneDocument {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// When it looked, by our clock.
    pub started_at: Timestamp,
    /// When it was done, or failed.
    pub ended_at: Timestamp,
    /// Everything that was to go is gone.
    pub passed: bool,
    /// What failed; `None` if nothing did.
    pub failure: Option<String>,
    /// Objects that it deleted.
    pub deleted_objects: u64,
    /// Bytes of them, as stored.
    pub deleted_bytes: u64,
    /// Objects that it could not delete.
    #[serde(default)]
    pub undeleted_objects: u64,
    /// Base backups that it deleted, or began to delete.
    pub deleted_backups: Vec<BackupId>,
}

/// `index/<timeline>/pruned-….json`: this WAL was deleted on purpose, although a base backup in front of it is kept. Its fields follow
/// from its name, so that whoever stores it stores the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrunedNote {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first deleted byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
}

impl Writer {
    /// Stores what a prune did; says under which key.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_prune(&self, document: &PruneDocument) -> Result<Key> {
        self.store_dated(document.ended_at, Key::Prune, document).await
    }

    /// Notes that this WAL is about to be deleted on purpose.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_pruned_note(&self, range: WalRange) -> Result<()> {
        let WalRange { timeline, start, end } = range;
        let note = PrunedNote { format: FORMAT_VERSION, timeline, start, end };
        self.store_document(&Key::Pruned(range), &note).await.map(|_| ())
    }
}

impl Repository {
    /// What the last prune did; `None` if there was none. One listing, of prunes alone, and a document.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn last_prune(&self) -> Result<Option<PruneDocument>> {
        let objects = list_all(self.store.as_ref(), &self.layout.prunes_prefix()).await?;
        let keys = objects.iter().filter_map(|object| self.layout.parse(&object.key).ok());
        let times = keys.filter_map(|key| if let Key::Prune(time) = key { Some(time) } else { None });
        match times.max() {
            Some(time) => self.read_document(&Key::Prune(time)).await,
            None => Ok(None),
        }
    }
}
