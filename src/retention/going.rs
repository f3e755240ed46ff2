//! A mark and a deletion in the same moment. Whoever deletes says so, then looks for marks, then deletes; whoever marks stores the mark,
//! then looks for what is said, and then whether the backup is there. So a mark that came too late is never taken for one that keeps.
//!
//! ```text
//! prune: look ─► say ─► look again ─► delete backup.json, in time ─► take back ─► the rest
//! keep:  mark ─► is it said? ─► is backup.json there, and begin.json, if it took so long that it may have passed for left over? ─► kept
//! ```

use super::age::YOUNG;
use crate::error::{Error, Kind, Result};
use crate::repository::{ACTS_WITHIN, BackupId, Intent, KeepMark, Key, Repository, Writer};
use crate::runtime::Clock;
use crate::store::{Store, StoreErrorKind};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::time::{Instant, sleep_until};

/// That a backup is about to be deleted: it is said, and not taken back.
#[derive(Debug)]
pub(super) struct Going {
    store: Arc<dyn Store>,
    name: String,
    deadline: Instant,
    /// The same by a clock that goes on while the machine sleeps.
    clock: Clock,
    said_at: Timestamp,
}

impl Going {
    /// Says it.
    ///
    /// # Errors
    /// What the store says.
    pub(super) async fn say(
        repository: &Repository,
        writer: &Writer,
        backup: &BackupId,
        clock: &Clock,
    ) -> Result<Going> {
        // Counted from before it is stored: the request may take its time.
        let (deadline, said_at) = (Instant::now() + ACTS_WITHIN, clock.now());
        let key = writer.store_intent(Intent::Going, backup, said_at).await?;
        let (store, name) = (repository.store.clone(), repository.layout.name(&key));
        Ok(Going { store, name, deadline, clock: clock.clone(), said_at })
    }

    /// Does what was said, as long as it counts.
    ///
    /// # Errors
    /// [`Kind::Busy`] if that is over; then it may have been done or not.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let late = || {
            Error::new(Kind::Busy, "this took so long that somebody may have marked it meanwhile")
                .hint("Run it again: it plans anew.")
        };
        if self.clock.now().duration_since(self.said_at).unsigned_abs() > ACTS_WITHIN {
            return Err(late());
        }
        tokio::select! {
            biased;
            () = sleep_until(self.deadline) => Err(late()),
            done = work => Ok(done),
        }
    }

    /// It is done, or will not be. Best effort: what stays is passed over an hour later.
    pub(super) async fn take_back(self) {
        if let Err(error) = self.store.delete(&self.name).await {
            tracing::debug!(%error, "what was said of a base backup that goes stays for an hour");
        }
    }
}

/// Stores a mark. One that keeps does so once this returns: no prune that has begun before deletes the backup.
///
/// # Errors
/// [`Kind::Busy`] if the backup is gone, or may be about to go: it is marked, and the same once more tells. Else what the store says.
pub async fn mark(repository: &Repository, writer: &Writer, mark: &KeepMark) -> Result<()> {
    let key = writer.store_keep_mark(repository, mark).await?;
    if !mark.keep {
        return Ok(());
    }
    let (backup, name) = (&mark.backup, repository.layout.name(&key));
    let marked_at = repository.store.head(&name).await?.info.modified;
    // In this order: what is said is taken back once `backup.json` is gone.
    let is_going = repository.is_going(backup, marked_at).await?;
    let Some(document) = repository.finished_backup(backup).await? else {
        return Err(Error::new(Kind::Busy, format!("base backup {backup} was deleted in this moment")).hint(format!(
            "It is marked nevertheless: what is left of it stays. `seawall keep {backup} --remove` lets go of that."
        )));
    };
    if is_going {
        return Err(Error::new(
            Kind::Busy,
            format!("base backup {backup} is marked, but a prune was about to delete it"),
        )
        .hint("The same once more says whether it is kept. If that prune was killed, it can say so after an hour."));
    }
    // What took less than a day no prune took for one that nobody is at.
    if document.ended_at.duration_since(document.started_at) < YOUNG {
        return Ok(());
    }
    // Such a one loses that first, and perhaps more.
    match repository.store.head(&repository.layout.name(&Key::BackupBegin(backup.clone()))).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind == StoreErrorKind::NotFound => Err(Error::new(
            Kind::Busy,
            format!("base backup {backup} is marked, but its begin.json is gone, as if a prune had been at it"),
        )
        .hint(
            "`seawall verify` says whether the rest is there. If it is not, `--remove` the mark and keep another one.",
        )),
        Err(error) => Err(error.into()),
    }
}
