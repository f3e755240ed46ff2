//! Carries out a plan. Whenever it is cut off, everything that stays can be restored, and the next prune goes on. An object that
//! cannot be deleted keeps no others from going, but for those that only go once it is gone.

use super::age::YOUNG;
use super::going::Going;
use super::inventory::read_entry;
use super::plan::{Doomed, Plan, Step};
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupId, Key, Repository, Writer};
use crate::runtime::Clock;
use crate::store::{Store, StoreError, StoreErrorKind, list_all};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Deletions at once.
const AT_ONCE: usize = 8;

/// Where so many fail, it is no matter of single objects: nothing more is tried.
const UNDELETED_MAX: u64 = 20;

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects that are gone.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Base backups that are gone, or in part.
    pub backups: Vec<BackupId>,
    /// Objects that could not be deleted.
    pub undeleted: u64,
    /// What it ended with, if not with success: that something has changed since the plan was made, or the first failure.
    pub error: Option<Error>,
}

/// Carries it out. `system_identifier` is the cluster's, `now` what counted as now when it was planned, which is never later
/// than what `clock` says.
pub async fn execute(
    repository: &Repository,
    plan: &Plan,
    system_identifier: u64,
    now: Timestamp,
    clock: &Clock,
) -> Outcome {
    let selection = &plan.selection;
    let known = selection.finished.keys().chain(&selection.begun).cloned().collect();
    let doomed = plan.doomed_backups();
    let orphans = selection.orphans.iter().cloned().collect();
    let (held, outcome) = (BTreeSet::new(), Outcome::default());
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
    let mut run = Run { repository, writer, system_identifier, now, clock, known, orphans, doomed, held, outcome };
    let ended = run.steps(plan).await.err();
    let (changed, failed) = match ended {
        Some(error) if error.kind() == Kind::Busy => (Some(error), None),
        ended => (None, ended),
    };
    let Outcome { undeleted, error, .. } = &mut run.outcome;
    *error = error.take().or(failed);
    if *undeleted > 1 {
        *error = error.take().map(|error| error.context(format!("{undeleted} objects cannot be deleted; the first")));
    }
    // Whoever hears that runs it again at once, and then hears of what cannot be deleted.
    *error = changed.or(error.take());
    run.outcome
}

struct Run<'a> {
    repository: &'a Repository,
    writer: Writer,
    system_identifier: u64,
    now: Timestamp,
    clock: &'a Clock,
    /// Backups that were there: what they build on stays.
    known: BTreeSet<BackupId>,
    /// Those that were never finished, and at which nobody was.
    orphans: BTreeSet<BackupId>,
    /// Backups that go.
    doomed: BTreeSet<BackupId>,
    /// Backups that were to go and stay: left-over ones that cannot be deleted, and what those build on.
    held: BTreeSet<BackupId>,
    outcome: Outcome,
}

/// A base backup's.
#[derive(Default)]
struct Objects {
    end: Vec<Doomed>,
    begin: Vec<Doomed>,
    parts: Vec<Doomed>,
}

impl Run<'_> {
    fn store(&self) -> &dyn Store {
        self.repository.store.as_ref()
    }

    async fn steps(&mut self, plan: &Plan) -> Result<()> {
        for step in &plan.steps {
            Box::pin(self.step(step)).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Backup(id) | Step::Orphan(id) if self.held.contains(id) => Ok(()),
            Step::Backup(id) => self.backup(id).await,
            Step::Orphan(id) => self.orphan(id).await,
            // Whoever goes on with one that stays needs WAL from its beginning on.
            Step::Note(_) if !self.held.is_empty() => Ok(()),
            Step::Objects(objects) if !self.held.is_empty() && self.are_wal(objects) => Ok(()),
            Step::Note(range) => self.writer.store_pruned_note(*range).await,
            // What says why WAL is missing goes once nothing is in front of it.
            Step::Objects(objects) if self.outcome.undeleted > 0 && self.are_notes(objects) => Ok(()),
            Step::Objects(objects) => self.try_to_delete(objects.clone()).await,
        }
    }

    fn are_notes(&self, objects: &[Doomed]) -> bool {
        let is_note = |object: &Doomed| {
            let key = self.repository.layout.parse(&object.name);
            matches!(key, Ok(Key::Gap(_) | Key::Pruned(_) | Key::DeadBranch(_)))
        };
        objects.iter().any(is_note)
    }

    fn are_wal(&self, objects: &[Doomed]) -> bool {
        let is_wal =
            |object: &Doomed| matches!(self.repository.layout.parse(&object.name), Ok(Key::Block(_) | Key::Tail(_)));
        objects.iter().any(is_wal)
    }

    /// `backup.json` goes first: then it is no backup. Then `begin.json`, so that nobody goes on with it. Then the rest. Where one of the
    /// two stays, so does the rest, and what this one builds on.
    async fn backup(&mut self, id: &BackupId) -> Result<()> {
        let Objects { end, begin, parts } = self.folder(id).await?;
        // What is known by now needs nothing to be said.
        self.look_again(id).await?;
        let going = Going::say(self.repository, &self.writer, id, self.clock).await?;
        if let Err(error) = self.look_again(id).await {
            going.take_back().await;
            return Err(error);
        }
        self.outcome.backups.push(id.clone());
        // If that fails, it may be done all the same, or later: what was said stays.
        going.in_time(self.delete(end)).await??;
        going.take_back().await;
        self.delete(begin).await?;
        self.try_to_delete(parts).await
    }

    /// One that nobody is at, still. It is said as of any other: somebody may finish it, and somebody else mark it, in this moment.
    async fn orphan(&mut self, id: &BackupId) -> Result<()> {
        self.look_again(id).await?;
        let going = Going::say(self.repository, &self.writer, id, self.clock).await?;
        let gone = self.take_orphan(id, &going).await;
        going.take_back().await;
        gone
    }

    /// `begin.json` goes first, and then it is looked whether there is a `backup.json`: a backup looks for
    /// `begin.json` once it has stored that. So one of the two sees the other, and no backup is taken for a good one whose parts go.
    /// Where `begin.json` cannot be deleted, it stays with all that it needs.
    async fn take_orphan(&mut self, id: &BackupId, going: &Going) -> Result<()> {
        if self.has_gone_on(id).await? {
            return Err(changed(format!("somebody has gone on with base backup {id}")));
        }
        let Objects { begin, parts, .. } = self.folder(id).await?;
        let undeleted = self.outcome.undeleted;
        going.in_time(self.try_to_delete(begin)).await??;
        if self.outcome.undeleted > undeleted {
            return self.hold(id).await;
        }
        self.check_unfinished(id).await?;
        self.outcome.backups.push(id.clone());
        self.try_to_delete(parts).await
    }

    /// True for a backup that was taken for an orphan, and is finished now or has something that is younger than a day.
    async fn has_gone_on(&self, id: &BackupId) -> Result<bool> {
        let objects = list_all(self.store(), &self.repository.layout.backup_prefix(id)).await?;
        let end = self.repository.layout.name(&Key::BackupEnd(id.clone()));
        let young = self.now.saturating_sub(YOUNG).unwrap_or(Timestamp::MIN);
        Ok(objects.iter().any(|object| object.key == end || object.modified > young))
    }

    /// It stays, and what it builds on.
    async fn hold(&mut self, id: &BackupId) -> Result<()> {
        let mut next = Some(id.clone());
        while let Some(id) = next.filter(|id| !self.held.contains(id)) {
            let entry = read_entry(self.repository, &id, self.system_identifier).await?;
            let begin = entry.begin.and_then(|begin| begin.reference);
            next = entry.document.and_then(|document| document.reference).or(begin);
            self.held.insert(id);
        }
        Ok(())
    }

    /// What is there of a backup.
    async fn folder(&self, id: &BackupId) -> Result<Objects> {
        let layout = &self.repository.layout;
        let mut found = Objects::default();
        for object in list_all(self.store(), &layout.backup_prefix(id)).await? {
            let list = match layout.parse(&object.key) {
                Ok(Key::BackupEnd(_)) => &mut found.end,
                Ok(Key::BackupBegin(_)) => &mut found.begin,
                Ok(Key::BackupPart(..) | Key::BackupManifest(..)) => &mut found.parts,
                // None of ours.
                _ => continue,
            };
            list.push(Doomed { name: object.key, bytes: object.bytes });
        }
        Ok(found)
    }

    /// Fails for a backup that is finished.
    async fn check_unfinished(&self, id: &BackupId) -> Result<()> {
        match self.store().head(&self.repository.layout.name(&Key::BackupEnd(id.clone()))).await {
            Ok(_) => Err(changed(format!("base backup {id} was finished meanwhile"))),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What came since the plan was made: a backup that builds on one which is about to go, or a mark.
    async fn look_again(&mut self, id: &BackupId) -> Result<()> {
        for other in self.repository.backup_ids().await? {
            let is_orphan = self.orphans.contains(&other);
            if self.known.contains(&other) || (self.doomed.contains(&other) && !is_orphan) {
                continue;
            }
            let entry = read_entry(self.repository, &other, self.system_identifier).await?;
            let begin = entry.begin.as_ref().and_then(|begin| begin.reference.as_ref());
            let end = entry.document.as_ref().and_then(|document| document.reference.as_ref());
            let builds_on_it = begin == Some(id) || end == Some(id);
            if builds_on_it && (!is_orphan || self.has_gone_on(&other).await?) {
                return Err(changed(format!("base backup {other} was begun meanwhile, and builds on {id}")));
            }
        }
        let marks = self.repository.read_keep_marks().await?;
        let mut of_doomed = self.doomed.iter().filter_map(|id| marks.get(id));
        match of_doomed.find(|mark| mark.holds(self.now)) {
            Some(mark) => Err(changed(format!("base backup {} is to be kept: {}", mark.backup, mark.reason))),
            None => Ok(()),
        }
    }

    /// As [`Run::delete`], of objects that nothing else waits for. Fails only if many cannot be deleted.
    async fn try_to_delete(&mut self, objects: Vec<Doomed>) -> Result<()> {
        match self.delete(objects).await {
            Err(error) if self.outcome.undeleted < UNDELETED_MAX => {
                self.outcome.error.get_or_insert(error);
                Ok(())
            }
            ended => ended,
        }
    }

    /// Tries each of them. Fails with what the first said that cannot be deleted.
    async fn delete(&mut self, objects: Vec<Doomed>) -> Result<()> {
        let store = self.repository.store.clone();
        let deletions = stream::iter(objects).map(|object| {
            let store = store.clone();
            async move { store.delete(&object.name).await.map(|()| object) }
        });
        // In order: what is told is the first that failed.
        let mut deletions = deletions.buffered(AT_ONCE);
        let mut first = None;
        while let Some(deleted) = deletions.next().await {
            match deleted {
                Ok(object) => {
                    self.outcome.objects += 1;
                    self.outcome.bytes += object.bytes;
                }
                Err(error) => {
                    self.outcome.undeleted += 1;
                    first.get_or_insert(error);
                    if self.outcome.undeleted >= UNDELETED_MAX {
                        break;
                    }
                }
            }
        }
        first.map_or(Ok(()), |error| Err(refused(error)))
    }
}

fn changed(what: String) -> Error {
    Error::new(Kind::Busy, what).hint("What was planned no longer holds. Run it again: it plans anew.")
}

fn refused(error: StoreError) -> Error {
    let is_denied = error.kind == StoreErrorKind::Denied;
    let error = Error::from(error);
    match is_denied {
        true => error.hint(
            "prune needs the right to delete below the whole cluster's folder, which the archiver does not have: see docs/bucket.md. Or is \
             it locked, by a setting of the bucket? object_lock_days under [s3] tells prune for how long.",
        ),
        false => error,
    }
}
