//! What a restore will write, and what it will remove, decided before it does either.

use super::database::{self, Choice, Database, SHARED_MAP};
use super::delta::{self, Compared, Comparison, Removed};
use super::destination::Destination;
use super::excerpt::read_combined;
use super::execute::{Phase, RestoreOptions, RestoreProgress};
use super::ground::Ground;
use super::number_set::NumberSet;
use super::older::{self, Expected};
use super::part::NOT_WRITTEN;
use super::plan::Plan;
use super::room::Room;
use super::selection::Selection;
use super::stored;
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::{FileCheck, Manifest};
use crate::repository::{BackupPart, FilePath, FilePathRef, Repository, whole_path};
use crate::runtime;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// A restore, prepared.
#[derive(Debug)]
pub(super) struct Preparation {
    pub(super) destination: Destination,
    /// Of all that is in the backup.
    pub(super) manifest: Arc<Manifest>,
    pub(super) comparison: Comparison,
    /// Which databases, if not all of them.
    pub(super) databases: Option<Choice>,
    /// Files of the others, by their places in the manifest; without incremental ones, whose length comes with them.
    pub(super) zeros: NumberSet,
    /// Files that are not fetched, by their places in the manifest.
    pub(super) skipped: NumberSet,
    /// The parts to fetch.
    pub(super) parts: Vec<BackupPart>,
    /// What comes from backups that it builds on.
    older: Expected,
}

impl Preparation {
    /// Files that will be fetched, and what is in them, by the manifest.
    fn fetched(&self) -> impl Iterator<Item = (FilePathRef<'_>, FileCheck)> {
        let files = self.manifest.files.iter().filter(|(place, ..)| !self.skipped.contains(*place));
        files.map(|(_, path, check)| (path, check))
    }

    /// How many they are.
    pub(super) fn fetched_files(&self) -> usize {
        self.manifest.files.len() - self.skipped.len()
    }

    /// What passes over all others.
    pub(super) fn selection(&self) -> Selection {
        Selection::without(Arc::clone(&self.manifest), self.skipped.clone())
    }

    /// Bytes of the files that will be written.
    pub(super) fn written_bytes(&self, plan: &Plan) -> u64 {
        // Of an incremental backup the manifest has only what it sent.
        match plan.references.is_empty() || self.databases.is_some() {
            true => self.fetched().map(|(_, check)| check.size_bytes).fold(self.older.bytes, u64::saturating_add),
            false => plan.backup.plain_bytes.saturating_sub(self.comparison.kept_bytes),
        }
    }
}

/// Between two looks at a comparison.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Prepares: reads, and writes nothing.
pub(super) async fn prepare(
    repository: &Repository,
    plan: &Plan,
    options: &RestoreOptions,
    destination: Destination,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<Preparation> {
    let manifest = Arc::new(repository.read_manifest(&plan.document).await?);
    let databases = choose_databases(repository, plan, &manifest, &options.databases).await?;
    let is_emptied = |path| databases.as_ref().is_some_and(|choice| choice.is_emptied(path));
    let emptied = || manifest.files.iter().filter(|(_, path, _)| is_emptied(*path));
    let passed_over: NumberSet = emptied().map(|(place, ..)| place).collect();
    let is_chain = !plan.references.is_empty();
    let zeros = emptied().filter(|(_, path, _)| !is_chain || whole_path(*path).is_none()).map(|(place, ..)| place);
    let zeros = zeros.collect();
    let comparison = match destination.ground {
        Ground::Empty => Comparison::default(),
        _ => compare(&destination, &manifest, &passed_over, plan, progress).await?,
    };
    let mut skipped = comparison.kept.clone();
    if !skipped.is_empty() {
        let not_written = NOT_WRITTEN.iter().filter_map(|name| FilePath::parse(name.as_bytes()).ok());
        skipped.extend(not_written.filter_map(|name| manifest.files.find(&name)));
    }
    skipped.extend(passed_over.iter());
    let (parts, older) = (Vec::new(), Expected::default());
    let mut prepared = Preparation { destination, manifest, comparison, databases, zeros, skipped, parts, older };
    prepared.parts = needed_parts(repository, plan, &prepared.selection()).await?;
    let mut room = Room::new(&prepared.destination, plan.segment_bytes);
    prepared.fetched().for_each(|(path, check)| room.add(&prepared.destination, path, check.size_bytes));
    if is_chain {
        let incomplete = prepared.fetched().filter_map(|(path, _)| whole_path(path)).collect();
        let see = |path: FilePathRef<'_>, bytes| room.add_older(&prepared.destination, path, bytes);
        let expected = older::expect(repository, &plan.references, incomplete, see).await?;
        let Plan { document, .. } = plan;
        let left_out = document.restored_bytes.map(|bytes| bytes.saturating_sub(document.plain_bytes));
        let left_out = left_out.unwrap_or(u64::MAX);
        room.limit_older(left_out);
        prepared.older = Expected { bytes: expected.bytes.min(left_out), ..expected };
    }
    prepared.comparison.freed.iter().for_each(|(path, bytes)| room.free(&prepared.destination, path.view(), *bytes));
    room.add_wal(options.wal.segments(plan)?.len() as u64 * plan.segment_bytes);
    room.check()?;
    Ok(prepared)
}

async fn compare(
    destination: &Destination,
    manifest: &Arc<Manifest>,
    zeros: &NumberSet,
    plan: &Plan,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<Comparison> {
    let compared = Arc::new(Compared::default());
    let (destination, major, counted) = (destination.clone(), plan.postgres_version / 10_000, compared.clone());
    let (manifest, zeros) = (Arc::clone(manifest), zeros.clone());
    let chain = !plan.references.is_empty();
    let comparing =
        runtime::blocking(move || delta::compare(&destination, (&manifest, &zeros), major, chain, &counted));
    let show = async {
        loop {
            let (done, total) = (&compared.done_bytes, &compared.total_bytes);
            progress.send_replace(RestoreProgress {
                phase: Phase::Comparing,
                done_bytes: done.load(Ordering::Relaxed),
                total_bytes: total.load(Ordering::Relaxed),
            });
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    tokio::select! {
        compared = comparing => compared?,
        never = show => never,
    }
}

/// The parts that hold something which is not there yet.
async fn needed_parts(repository: &Repository, plan: &Plan, selection: &Selection) -> Result<Vec<BackupPart>> {
    let parts = &plan.document.parts;
    if selection.is_all() {
        return Ok(parts.clone());
    }
    let document = stored::with_files(repository, &plan.document).await?;
    Ok(selection.parts(parts, &document.files).into_iter().map(|index| parts[index].clone()).collect())
}

/// Finds the databases that are wanted in the backup's own catalogue; `None` if all are.
async fn choose_databases(
    repository: &Repository,
    plan: &Plan,
    manifest: &Manifest,
    wanted: &[String],
) -> Result<Option<Choice>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    if plan.document.settings.get("full_page_writes").is_some_and(|value| value == "off") {
        let text = "the server ran with full_page_writes = off: recovery needs every database's pages";
        return Err(Error::new(Kind::Refused, text).hint("Restore without --database."));
    }
    let document = stored::with_files(repository, &plan.document).await?;
    let read = async |path: &str| read_combined(repository, (&document, manifest), &plan.references, path).await;
    let map = read(SHARED_MAP).await?;
    let catalogue = database::catalogue_file(&map, database::PG_DATABASE)
        .ok_or_else(|| Error::new(Kind::Damaged, format!("{SHARED_MAP} of the backup cannot be read")))?;
    let heap = read(&catalogue).await?;
    Choice::new(wanted, &database::rows(&heap), manifest.files.iter().map(|(_, path, _)| path)).map(Some)
}

/// What a restore over what is there would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Preview {
    /// Where.
    pub destination: Destination,
    /// Files that are there and equal, by length and CRC-32C.
    pub kept_files: usize,
    /// Bytes in them.
    pub kept_bytes: u64,
    /// Files that will be written.
    pub written_files: usize,
    /// Bytes in them.
    pub written_bytes: u64,
    /// Bytes that will be fetched for that; at most, where the backup builds on others.
    pub fetched_bytes: u64,
    /// Files, links and directories that will be removed, `pg_control` not counted: some are written anew, the others are
    /// not in the backup.
    pub removed: Removed,
    /// Databases that will be left empty.
    pub emptied: Vec<Database>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Says what [`execute`](fn@super::execute) would do with these options; compares what is there, and writes nothing.
///
/// # Errors
/// As of [`execute`](fn@super::execute), before anything is written.
pub async fn preview(
    repository: &Repository,
    plan: &Plan,
    options: &RestoreOptions,
    progress: watch::Sender<RestoreProgress>,
) -> Result<Preview> {
    let prepared = prepare(repository, plan, options, Destination::check(plan, options)?, &progress).await?;
    let (written_files, written_bytes) = (prepared.fetched_files(), prepared.written_bytes(plan));
    let Preparation { destination, comparison, databases, parts, older, .. } = prepared;
    Ok(Preview {
        destination,
        kept_files: comparison.kept.len(),
        kept_bytes: comparison.kept_bytes,
        written_files,
        written_bytes,
        fetched_bytes: parts.iter().map(|part| part.stored_bytes).fold(older.stored_bytes, u64::saturating_add),
        removed: comparison.removed,
        emptied: databases.map(|choice| choice.emptied).unwrap_or_default(),
        warnings: comparison.warnings,
    })
}

/// Paths that are named; the number of the others is.
const NAMED: usize = 10;

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        match self.destination.ground {
            Ground::Empty => {}
            Ground::Interrupted => writeln!(f, "goes on      with a restore of this cluster that was not completed")?,
            Ground::Cluster => writeln!(f, "replaces     the stopped cluster in {}", self.destination.data.display())?,
        }
        writeln!(f, "{}", self.destination)?;
        writeln!(f, "keeps        {} files, {}, that equal the backup's", self.kept_files, mib(self.kept_bytes))?;
        let (written, fetched) = (mib(self.written_bytes), mib(self.fetched_bytes));
        writeln!(f, "fetches      {fetched} for {} files, {written}", self.written_files)?;
        write!(
            f,
            "removes      {} files, links and directories that differ or are not in the backup",
            self.removed.len()
        )?;
        for path in self.removed.paths().take(NAMED) {
            write!(f, "\n             {}", path.display())?;
        }
        if let Some(more @ 1..) = self.removed.len().checked_sub(NAMED) {
            write!(f, "\n             and {more} more")?;
        }
        for database in &self.emptied {
            write!(
                f,
                "\nleaves empty database {} ({})",
                database.oid,
                database.name.as_deref().unwrap_or("name unknown")
            )?;
        }
        for warning in &self.warnings {
            write!(f, "\nwarning      {warning}")?;
        }
        Ok(())
    }
}
