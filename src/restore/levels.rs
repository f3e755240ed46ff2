//! Writes the files of a backup and, if it is an incremental one, what it lacks of each backup that it builds on: straight
//! from the store into their places, from the newest to the oldest.
//!
//! What is fetched of an older backup is checked as strictly as the newest: each part by its SHA-256 before a byte of it
//! is written, each file by the CRC-32C of that backup's own manifest, and its label must name the one before it.

use super::blocks::Level;
use super::combine::Combination;
use super::execute::{Phase, RestoreProgress};
use super::label::{self, LABEL_FILE};
use super::number_set::NumberSet;
use super::older;
use super::part::{Extracted, Source};
use super::plan::Plan;
use super::selection::Selection;
use super::stored;
use super::tree::Tree;
use super::verify::Verification;
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BackupFiles, BackupPart, FilePath, Repository, whole_path};
use crate::runtime;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::watch;

/// What it takes to write files.
pub(super) struct Levels<'a> {
    pub(super) repository: &'a Repository,
    pub(super) plan: &'a Plan,
    pub(super) downloads: usize,
    pub(super) tree: &'a Arc<Tree>,
    pub(super) progress: &'a watch::Sender<RestoreProgress>,
}

impl Levels<'_> {
    /// Writes everything but `pg_control`, which it returns with its permissions, if there is one. Of the newest backup,
    /// `parts` without the files that the selection passes over; `verification` wants the others.
    pub(super) async fn write(
        self,
        verification: Verification,
        parts: Vec<BackupPart>,
        selection: Selection,
    ) -> Result<Option<(Vec<u8>, u32)>> {
        let Plan { document, references, .. } = self.plan;
        let older = references.iter().flat_map(|link| &link.parts);
        let total_bytes = parts.iter().chain(older).map(|part| part.stored_bytes).sum();
        self.progress.send_replace(RestoreProgress { phase: Phase::Fetching, done_bytes: 0, total_bytes });
        let level = Level { is_incremental: true, wanted: None, listed: Arc::default() };
        let level = (!references.is_empty()).then_some(level);
        let extracted = self.write_level(document, parts, level, (verification, selection)).await?;
        if let Some(reference) = references.first() {
            let (label, mode) = held_label(extracted.label, document)?;
            label::check(&label, document, Some(reference))?;
            self.write_older(Combination::of_newest(extracted.listed)).await?;
            let (tree, path) = (Arc::clone(self.tree), self.tree.data().join(LABEL_FILE));
            runtime::blocking(move || tree.put(&path, &label::of_whole(&label), mode)).await??;
        }
        Ok(extracted.control)
    }

    /// Writes what older backups give to the files that are not complete.
    async fn write_older(&self, mut combination: Combination) -> Result<()> {
        let references = &self.plan.references;
        let bytes_of = |parts: &[BackupPart]| parts.iter().map(|part| part.stored_bytes).sum::<u64>();
        for (index, link) in references.iter().enumerate() {
            if combination.is_complete() {
                self.spare(references[index..].iter().map(|link| bytes_of(&link.parts)).sum());
                return Ok(());
            }
            let link = stored::with_files(self.repository, link).await?;
            let members = older::members(&combination, &link)?;
            let Needed { parts, verification } = Needed::of(self.repository, &link, &members).await?;
            // Many, and of no use any more.
            let link = BackupDocument { files: BackupFiles::default(), ..link };
            self.spare(bytes_of(&link.parts) - bytes_of(&parts));
            let wanted = Arc::new(combination);
            let level = Level {
                is_incremental: link.reference.is_some(),
                wanted: Some(Arc::clone(&wanted)),
                listed: Arc::default(),
            };
            let compared = (verification, Selection::default());
            let extracted = self.write_level(&link, parts, Some(level), compared).await?;
            label::check(&held_label(extracted.label, &link)?.0, &link, references.get(index + 1))?;
            combination = runtime::blocking(move || {
                let mut combination = Arc::unwrap_or_clone(wanted);
                combination.take_in(extracted.listed);
                combination
            })
            .await?;
        }
        Ok(())
    }

    /// So many bytes need not be fetched.
    fn spare(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.total_bytes = progress.total_bytes.saturating_sub(bytes));
    }

    /// Fetches, writes and compares `parts`. Those that begin inside an incremental file come last: its header is in another.
    async fn write_level(
        &self,
        backup: &BackupDocument,
        parts: Vec<BackupPart>,
        level: Option<Level>,
        (verification, selection): (Verification, Selection),
    ) -> Result<Extracted> {
        let is_incremental = level.as_ref().is_some_and(|level| level.is_incremental);
        let goes_on = |part: &BackupPart| {
            let continues = part.continues.as_ref().filter(|_| is_incremental);
            continues.and_then(|from| whole_path(&from.path))
        };
        let (last, first): (Vec<BackupPart>, Vec<BackupPart>) =
            parts.into_iter().partition(|part| goes_on(part).is_some());
        let continued: HashSet<FilePath> = last.iter().filter_map(goes_on).collect();
        let source = |level: Option<Level>| Source {
            system_identifier: self.plan.system_identifier,
            backup: backup.id.clone(),
            ending: backup.ending,
            identities: self.repository.layout.form().identities.clone(),
            tablespaces: backup.tablespaces.iter().map(|tablespace| tablespace.oid).collect(),
            level: level.map(Arc::new),
            selection: selection.clone(),
        };
        let verification = Arc::new(verification);
        let write = async |parts, level| {
            let to = (self.tree, self.progress);
            stored::write_parts(self.repository, parts, source(level), &verification, self.downloads, to).await
        };
        let mut extracted = write(first, level.clone()).await?;
        if !last.is_empty() {
            let listed = extracted.listed.iter().filter(|(path, _)| continued.contains(path)).cloned();
            let listed: Arc<HashMap<_, _>> = Arc::new(listed.collect());
            extracted.take_in(write(last, level.map(|level| Level { listed, ..level })).await?);
        }
        runtime::blocking(move || verification.finish()).await??;
        Ok(extracted)
    }
}

fn held_label(label: Option<(Vec<u8>, u32)>, backup: &BackupDocument) -> Result<(Vec<u8>, u32)> {
    label.ok_or_else(|| {
        Error::new(Kind::Damaged, format!("backup {} has no {LABEL_FILE}", backup.id))
            .hint("Try an older backup (`seawall list`).")
    })
}

/// What is needed of an older backup.
struct Needed {
    parts: Vec<BackupPart>,
    /// Of the files that are needed, and the label.
    verification: Verification,
}

impl Needed {
    /// For `members`, places in the list of files of `backup`.
    async fn of(repository: &Repository, backup: &BackupDocument, members: &NumberSet) -> Result<Needed> {
        let manifest = repository.read_manifest(backup).await?;
        let mut wanted = NumberSet::default();
        for file in members.iter().filter_map(|place| backup.files.get(place)) {
            let unknown = || {
                let text = format!("the file {} of backup {} is not in the manifest", file.path, backup.id);
                Error::new(Kind::Damaged, text).hint("Try an older backup (`seawall list`).")
            };
            wanted.insert(manifest.files.find(file.path).ok_or_else(unknown)?);
        }
        let parts = older::parts(backup, members)?;
        Ok(Needed { parts, verification: Verification::of_some(Arc::new(manifest), wanted) })
    }
}
