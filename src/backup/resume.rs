//! A base backup that was begun and not finished, to be gone on with under its name.
//!
//! PostgreSQL cannot go on with one: the server begins anew, at a later position, and sends everything. What is saved is to store what is
//! there already and equal. Nothing depends on who else is at it: parts are named by their content, nothing is overwritten, and of
//! two that finish only one stores `backup.json`. So the look whether somebody is spares work, and no more.

use crate::error::{Error, Kind, Result};
use crate::repository::{BackupBegin, BackupId, EarlierParts, FORMAT_VERSION, Key, Repository};
use crate::runtime::Clock;
use crate::store::{ObjectInfo, list_all};
use crate::wal::{Lsn, TimelineId};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::sleep;

/// Nothing was stored for so long, and nobody is at it: a server that is not slowed down fills several parts in that time.
const QUIET: Duration = Duration::from_secs(30);

/// One that nobody has stored to for so long is not gone on with unasked: half of the time after which a prune takes it for left over.
const LEFT_OVER_MAX: SignedDuration = SignedDuration::from_hours(12);

/// See the head of the file.
#[derive(Clone, Debug)]
pub struct Unfinished {
    begin: BackupBegin,
    parts: EarlierParts,
}

impl Unfinished {
    /// The newest backup, if it is not finished and something was stored of it today: one that its process left when it ended.
    ///
    /// # Errors
    /// What the store says, or if what is stored cannot be read.
    pub async fn left_over(repository: &Repository, clock: &Clock) -> Result<Option<BackupId>> {
        let Some(newest) = repository.backup_ids().await?.into_iter().max() else { return Ok(None) };
        if repository.finished_backup(&newest).await?.is_some() {
            return Ok(None);
        }
        let last = list(repository, &newest).await?.into_iter().map(|object| object.modified).max();
        let is_young = last.is_some_and(|last| clock.now().duration_since(last) < LEFT_OVER_MAX);
        Ok(is_young.then_some(newest))
    }

    /// Looks for the one called `id`. Waits for up to half a minute if something was stored of it just now.
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is none, or it is finished; [`Kind::Diverged`] if it is another cluster's; [`Kind::Busy`] if
    /// somebody is at it; else what the store says.
    pub async fn find(
        repository: &Repository,
        id: &BackupId,
        system_identifier: u64,
        clock: &Clock,
    ) -> Result<Unfinished> {
        let objects = list(repository, id).await?;
        let layout = &repository.layout;
        if objects.iter().any(|object| object.key == layout.name(&Key::BackupEnd(id.clone()))) {
            return Err(Error::new(Kind::Refused, format!("base backup {id} is finished"))
                .hint("There is nothing to go on with. Leave --resume out to take another one."));
        }
        let begin: Option<BackupBegin> = repository.read_document(&Key::BackupBegin(id.clone())).await?;
        let begin = begin.ok_or_else(|| {
            Error::new(Kind::Refused, format!("there is no base backup {id}"))
                .hint("`seawall list` names those that are not finished. Is --cluster right?")
        })?;
        if begin.format > FORMAT_VERSION {
            return Err(Error::new(Kind::Refused, format!("base backup {id} has format {}", begin.format))
                .hint("It was begun by a later Seawall: use that one or a newer one."));
        }
        if begin.id != *id {
            let name = layout.name(&Key::BackupBegin(id.clone()));
            return Err(Error::new(Kind::Damaged, format!("{name} is that of base backup {}", begin.id)));
        }
        if begin.system_identifier != system_identifier {
            let found = begin.system_identifier;
            return Err(Error::new(
                Kind::Diverged,
                format!("base backup {id} belongs to the cluster {found}, and the server is {system_identifier}"),
            )
            .hint("Is --pg the right server?"));
        }
        if let Some(newer) = repository.newest_backup(None).await?.filter(|newest| newest.id > *id) {
            return Err(Error::new(Kind::Refused, format!("base backup {} was begun after {id} and is finished", newer.id))
                .hint("Names say which backup is newer, so this one stays unfinished. Leave --resume out to take another one."));
        }
        let objects = when_quiet(repository, id, objects, clock).await?;
        let listed = objects.iter().map(|object| (object.key.as_str(), object.bytes));
        let parts = EarlierParts::found(layout, listed);
        if parts.is_empty() && objects.len() > 1 {
            tracing::warn!(backup = %id, "what is there was stored with another compression or for other keys: all of it is stored again");
        }
        tracing::info!(backup = %id, parts_there = parts.count(), "going on with an unfinished base backup");
        Ok(Unfinished { begin, parts })
    }

    /// Its name.
    pub fn id(&self) -> &BackupId {
        &self.begin.id
    }

    /// Where it first began.
    pub(super) fn first(&self) -> (TimelineId, Lsn) {
        (self.begin.timeline, self.begin.start_lsn)
    }

    /// What it builds on; `None`: it is a full one.
    pub fn reference(&self) -> Option<&BackupId> {
        self.begin.reference.as_ref()
    }

    /// What is stored of it.
    pub fn parts(&self) -> &EarlierParts {
        &self.parts
    }

    /// Fails if it is an incremental one.
    pub(super) fn check_full(&self) -> Result<()> {
        match self.reference() {
            None => Ok(()),
            Some(reference) => Err(Error::new(
                Kind::Refused,
                format!("base backup {} is an incremental one, which builds on {reference}", self.id()),
            )),
        }
    }

    /// What it builds on.
    pub(super) fn incremental_reference(&self) -> Result<&BackupId> {
        self.reference().ok_or_else(|| Error::new(Kind::Refused, format!("base backup {} is a full one", self.id())))
    }
}

async fn list(repository: &Repository, id: &BackupId) -> Result<Vec<ObjectInfo>> {
    Ok(list_all(repository.store.as_ref(), &repository.layout.backup_prefix(id)).await?)
}

/// What is there once nobody has stored anything for a while.
async fn when_quiet(
    repository: &Repository,
    id: &BackupId,
    objects: Vec<ObjectInfo>,
    clock: &Clock,
) -> Result<Vec<ObjectInfo>> {
    let newest = |objects: &[ObjectInfo]| objects.iter().map(|object| object.modified).max();
    let Some(last) = newest(&objects) else { return Ok(objects) };
    let age = age_at(clock.now(), last);
    let Some(left) = QUIET.checked_sub(age).filter(|left| !left.is_zero()) else { return Ok(objects) };
    tracing::info!(backup = %id, seconds = left.as_secs(), "something was stored of it just now: looking whether somebody is at it");
    sleep(left).await;
    let again = list(repository, id).await?;
    match again.len() == objects.len() && newest(&again) == Some(last) {
        true => Ok(again),
        false => {
            Err(Error::new(Kind::Busy, format!("somebody is at base backup {id}: more of it was stored just now"))
                .hint("Wait until that process has ended."))
        }
    }
}

/// The store's clock may be ahead of ours.
fn age_at(now: Timestamp, modified: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(modified)).unwrap_or_default()
}
