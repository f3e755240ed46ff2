//! Which base backups there are, and one of them, without a look at anything else.

use super::Repository;
use super::documents::{BackupBegin, BackupDocument, WithoutFiles};
use super::layout::{BackupId, Key};
use crate::error::Result;
use crate::store::StoreErrorKind;
use crate::wal::{Lsn, TimelineId};

impl Repository {
    /// Base backups, finished or not, the newest first.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn backup_ids(&self) -> Result<Vec<BackupId>> {
        let level = self.store.list_level(&self.layout.base_prefix()).await?;
        let mut ids: Vec<_> =
            level.prefixes.iter().filter_map(|prefix| self.layout.parse_backup_prefix(prefix)).collect();
        ids.sort_by(|one, other| other.cmp(one));
        Ok(ids)
    }

    /// A finished base backup without its list of files, which can be large and is read by who needs it; `None` if it is not there, or not finished.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn finished_backup(&self, id: &BackupId) -> Result<Option<BackupDocument>> {
        let document: Option<WithoutFiles> = self.read_document(&Key::BackupEnd(id.clone())).await?;
        Ok(document.map(|WithoutFiles(document)| document))
    }

    /// What the newest finished base backup said at its beginning: of all, or of those that began on a timeline before it
    /// was left.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn newest_backup(&self, before: Option<(TimelineId, Option<Lsn>)>) -> Result<Option<BackupBegin>> {
        let is_wanted = |begin: &BackupBegin| {
            before.is_none_or(|(timeline, switch)| {
                begin.timeline == timeline && switch.is_none_or(|switch| begin.start_lsn < switch)
            })
        };
        for id in self.backup_ids().await? {
            let begin: Option<BackupBegin> = self.read_document(&Key::BackupBegin(id.clone())).await?;
            let Some(begin) = begin.filter(is_wanted) else { continue };
            match self.store.head(&self.layout.name(&Key::BackupEnd(id))).await {
                Ok(_) => return Ok(Some(begin)),
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}
