//! Legal holds: what a mark keeps from retention, the store is asked to keep from everybody. Held are the backup, what it builds on,
//! the WAL that makes them consistent, and what says how timelines hang together: with those alone it can be restored. Tails are not:
//! each is replaced by a block once that is full, and what is held cannot go.
//!
//! A mark comes before its holds, so that no hold is without a mark; and whoever releases looks for marks at its end. Should it be killed
//! before that, what it said before it began tells the next one, who looks in its place.

use super::inventory::Inventory;
use super::needs::Needs;
use super::select::Selection;
use crate::error::{Error, Result};
use crate::repository::{BackupId, Cluster, Intent, Key, Repository, Stored, Writer};
use crate::store::{StoreError, StoreErrorKind};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Requests at once.
const AT_ONCE: usize = 8;

/// What became of it.
#[derive(Debug, Default)]
pub struct Held {
    /// Objects that were held, or released.
    pub objects: u64,
    /// Tails that hold WAL of the backup, and are not held.
    pub tails: u64,
    /// What it ended with, if not with success. The same once more goes on with it.
    pub error: Option<Error>,
}

/// Puts a hold on all that restores a backup. Its mark must be stored before: what is released meanwhile looks for marks at its end.
pub async fn hold(repository: &Repository, inventory: &Inventory, backup: &BackupId) -> Held {
    let protected = Protected::by(repository, inventory, [backup]);
    let mut run = Run { repository, on: true, held: Held { tails: protected.tails, ..Held::default() } };
    run.held.error = Box::pin(run.all(&protected)).await.err();
    run.held
}

/// Puts a hold on the folders of a backup and of what it builds on, where the rest of the repository cannot be read: without its WAL.
pub async fn hold_folders(repository: &Repository, backup: &BackupId) -> Held {
    let mut protected = Protected { names: [repository.layout.name(&Key::Cluster)].into(), ..Protected::default() };
    let (mut next, mut unreadable) = (Some(backup.clone()), None);
    while let Some(id) = next.take().filter(|id| !protected.backups.contains(id)) {
        match repository.finished_backup(&id).await {
            Ok(document) => next = document.and_then(|document| document.reference),
            Err(error) => unreadable = Some(error),
        }
        protected.backups.insert(id);
    }
    let mut run = Run { repository, on: true, held: Held::default() };
    run.held.error = Box::pin(run.all(&protected)).await.err().or(unreadable);
    run.held
}

/// Takes the holds off that the marks of these backups put there, but for what a mark keeps at `now`. Marks are read before and after:
/// what a mark keeps that was set meanwhile is held again, for its holds may have been taken off behind its back.
pub async fn release(
    repository: &Repository,
    writer: &Writer,
    cluster: &Cluster,
    backups: &BTreeSet<BackupId>,
    now: Timestamp,
) -> Held {
    let mut run = Run { repository, on: false, held: Held::default() };
    run.held.error = Box::pin(run.say_and_release(writer, cluster, backups, now)).await.err();
    run.held
}

/// In the place of everybody who took holds off and was cut off: what it may have taken off and a mark keeps is held again. One listing,
/// if there is none. What was said before `dead_since`, by the store's clock, is taken back: whoever said it has gone.
pub async fn hold_again(
    repository: &Repository,
    cluster: &Cluster,
    now: Timestamp,
    dead_since: Option<Timestamp>,
) -> Held {
    let mut run = Run { repository, on: true, held: Held::default() };
    run.held.error = Box::pin(run.hold_again(cluster, now, dead_since)).await.err();
    run.held
}

/// The backups that marks keep now.
async fn holding(repository: &Repository, now: Timestamp) -> Result<BTreeSet<BackupId>> {
    let marks = repository.read_keep_marks().await?;
    Ok(marks.into_iter().filter(|(_, mark)| mark.holds(now)).map(|(backup, _)| backup).collect())
}

/// What marks keep.
#[derive(Default)]
struct Protected {
    /// With all that is in their folders.
    backups: BTreeSet<BackupId>,
    /// Other objects.
    names: BTreeSet<String>,
    tails: u64,
}

impl Protected {
    fn by<'a>(
        repository: &Repository,
        inventory: &Inventory,
        marked: impl IntoIterator<Item = &'a BackupId>,
    ) -> Protected {
        let catalog = &inventory.catalog;
        let (mut selection, mut half_gone) = (Selection::default(), BTreeSet::new());
        for id in marked {
            let Some(backup) = catalog.finished_backups().find(|backup| backup.id == *id) else {
                // What is left of one that was marked when it was whole.
                half_gone.extend(inventory.folders.contains_key(id).then(|| id.clone()));
                continue;
            };
            // Of a chain with a hole in it, what is there.
            let references = catalog.chain(backup).unwrap_or_default();
            for link in references.into_iter().chain([backup]) {
                selection.finished.entry(link.id.clone()).or_default();
            }
        }
        if selection.finished.is_empty() {
            return Protected { backups: half_gone, ..Protected::default() };
        }
        let needs = Needs::of(inventory, &selection);
        let stored = catalog.coverage.values().flat_map(|coverage| coverage.objects());
        let (blocks, tails): (Vec<&Stored>, Vec<&Stored>) =
            stored.filter(|stored| needs.touch(stored.range)).partition(|stored| stored.is_block);
        let is_missing = |tail: &&Stored| !blocks.iter().any(|block| block.range.contains(tail.range));
        let layout = &repository.layout;
        let histories = catalog.histories.keys().map(|timeline| layout.name(&Key::History(*timeline)));
        Protected {
            tails: tails.into_iter().filter(is_missing).count() as u64,
            names: blocks
                .iter()
                .map(|stored| stored.name.clone())
                .chain(histories)
                .chain([layout.name(&Key::Cluster)])
                .collect(),
            backups: selection.finished.into_keys().chain(half_gone).collect(),
        }
    }

    /// What is in both.
    fn and(mut self, other: &Protected) -> Protected {
        self.backups.retain(|id| other.backups.contains(id));
        self.names.retain(|name| other.names.contains(name));
        self
    }
}

struct Run<'a> {
    repository: &'a Repository,
    on: bool,
    held: Held,
}

impl Run<'_> {
    async fn say_and_release(
        &mut self,
        writer: &Writer,
        cluster: &Cluster,
        backups: &BTreeSet<BackupId>,
        now: Timestamp,
    ) -> Result<()> {
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let mut said = Vec::new();
        for backup in backups {
            said.push(layout.name(&writer.store_intent(Intent::Releasing, backup, now).await?));
        }
        self.release(cluster, backups, now).await?;
        for name in said {
            // What stays costs the next one a look.
            if let Err(error) = store.delete(&name).await {
                tracing::debug!(%error, "that holds are taken off stays said");
            }
        }
        Ok(())
    }

    async fn hold_again(&mut self, cluster: &Cluster, now: Timestamp, dead_since: Option<Timestamp>) -> Result<()> {
        let repository = self.repository;
        let mut said = repository.read_intents().await?;
        said.retain(|said| said.intent == Intent::Releasing);
        if said.is_empty() {
            return Ok(());
        }
        let kept = holding(repository, now).await?;
        let inventory = Inventory::read(repository, cluster.clone()).await?;
        let kept = Protected::by(repository, &inventory, &kept);
        // Of one that is gone nobody can tell what it needed.
        let is_finished = |id: &BackupId| inventory.catalog.finished_backups().any(|backup| backup.id == *id);
        let is_there = said.iter().all(|said| is_finished(&said.backup));
        let released = match is_there {
            true => Protected::by(repository, &inventory, said.iter().map(|said| &said.backup)).and(&kept),
            false => kept,
        };
        drop(inventory);
        self.all(&released).await?;
        for said in said.iter().filter(|said| dead_since.is_some_and(|since| said.stored_at < since)) {
            repository.store.delete(&said.name).await?;
        }
        Ok(())
    }

    async fn release(&mut self, cluster: &Cluster, backups: &BTreeSet<BackupId>, now: Timestamp) -> Result<()> {
        let repository = self.repository;
        // Marks first: a backup that was marked before the look is seen by it.
        let before = holding(repository, now).await?;
        let inventory = Inventory::read(repository, cluster.clone()).await?;
        let mut released = Protected::by(repository, &inventory, backups.difference(&before));
        let kept = Protected::by(repository, &inventory, &before);
        drop(inventory);
        released.backups.retain(|id| !kept.backups.contains(id));
        released.names.retain(|name| !kept.names.contains(name));
        let done = self.all(&released).await;
        // However far it came.
        let after = holding(repository, now).await?;
        let mut since = after.difference(&before).peekable();
        if since.peek().is_some() {
            let inventory = Inventory::read(repository, cluster.clone()).await?;
            let mut again = Run { repository, on: true, held: Held::default() };
            again.all(&Protected::by(repository, &inventory, since)).await?;
        }
        done
    }

    async fn all(&mut self, protected: &Protected) -> Result<()> {
        for id in &protected.backups {
            self.folder(id).await?;
        }
        self.each(protected.names.iter().cloned().collect()).await
    }

    /// A page at a time: a large backup has hundreds of thousands of parts.
    async fn folder(&mut self, id: &BackupId) -> Result<()> {
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let (prefix, mut token) = (layout.backup_prefix(id), None);
        loop {
            let page = store.list_page(&prefix, token).await?;
            let ours = page.objects.into_iter().map(|object| object.key).filter(|name| layout.parse(name).is_ok());
            self.each(ours.collect()).await?;
            token = page.next;
            if token.is_none() {
                return Ok(());
            }
        }
    }

    async fn each(&mut self, names: Vec<String>) -> Result<()> {
        let (store, on) = (self.repository.store.clone(), self.on);
        let requests = stream::iter(names).map(|name| {
            let store = store.clone();
            async move { store.set_legal_hold(&name, on).await }
        });
        let mut requests = requests.buffered(AT_ONCE);
        while let Some(done) = requests.next().await {
            match done {
                Ok(()) => self.held.objects += 1,
                // It is gone: nothing is left to release. What was to be held must be there.
                Err(error) if error.kind == StoreErrorKind::NotFound && !on => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(())
    }
}

fn refused(error: StoreError) -> Error {
    let is_denied = error.kind == StoreErrorKind::Denied;
    let error = Error::from(error);
    match is_denied {
        true => error.hint("Legal holds need s3:PutObjectLegalHold, which the pruner's role has: see docs/bucket.md."),
        false => error,
    }
}
