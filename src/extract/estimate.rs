//! What an extraction will take, before it is begun: nothing is fetched but what planning reads.

use super::request::ExtractOptions;
use crate::error::Result;
use crate::history::index::Transaction;
use crate::repository::{BackupId, Repository};
use crate::restore::{ExpectedDuration, FIRST_BYTES, LocalWal, Plan, RestoreOptions, RestoreProgress, preview};
use crate::scratch::Unprivileged;
use crate::wal::Lsn;
use nix::unistd::Uid;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// Segments that recovery keeps at once, about.
const SEGMENTS_KEPT: u64 = 4;

/// What an extraction will take.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Estimate {
    /// The base backup that it begins with.
    pub backup: BackupId,
    /// Where recovery will end.
    pub end_lsn: Lsn,
    /// The last transaction that will be there, as far as it was seen.
    pub last_transaction: Option<Transaction>,
    /// The databases that are restored; all if there is none.
    pub databases: Vec<String>,
    /// Bytes of the backup that will be fetched.
    pub fetched_bytes: u64,
    /// Of so many that a restore of everything fetches.
    pub stored_bytes: u64,
    /// Files that will be written.
    pub files: usize,
    /// Bytes in them.
    pub written_bytes: u64,
    /// WAL that will be fetched and replayed, in bytes, uncompressed.
    pub wal_bytes: u64,
    /// Where the files will lie meanwhile.
    pub scratch: PathBuf,
    /// Bytes that they will take there, about, with WAL.
    pub scratch_bytes: u64,
    /// How long it takes until what is wanted can be taken out, if a drill has measured that.
    pub expected: Option<ExpectedDuration>,
}

/// Says what [`super::extract`] will take. Writes nothing.
///
/// # Errors
/// As of [`super::extract`], before anything is written; too little room in the scratch directory is one of them.
pub async fn estimate(repository: &Repository, plan: &Plan, options: &ExtractOptions) -> Result<Estimate> {
    let databases = options.databases(plan);
    // A name that nobody has: as into the new directory that the restore will make.
    let into = options.scratch.join(format!("seawall-extract-{}", std::process::id()));
    let user = Unprivileged::find()?;
    let tablespaces = plan.tablespaces.iter().filter(|tablespace| Path::new(&tablespace.location).is_absolute());
    // As `recovery::recover` does: tablespaces that replay creates are made elsewhere, for which all WAL is fetched before.
    let (wal, wal_kept) = match plan.creates.is_empty() {
        true => (LocalWal::First, plan.wal_bytes.min(FIRST_BYTES + SEGMENTS_KEPT * plan.segment_bytes)),
        false => (LocalWal::All, plan.wal_bytes),
    };
    let restore_options = RestoreOptions {
        wal,
        databases: databases.clone(),
        tablespace_map: tablespaces.map(|it| ((&it.location).into(), into.join(it.oid.to_string()))).collect(),
        owner: Uid::effective().is_root().then(|| user.name().to_owned()),
        ..RestoreOptions::new(into.join("data"), options.command.clone())
    };
    let (progress, _) = watch::channel(RestoreProgress::default());
    let placed = Plan { creates: Vec::new(), ..plan.clone() };
    let preview = Box::pin(preview(repository, &placed, &restore_options, progress)).await?;
    Ok(Estimate {
        backup: plan.backup.id.clone(),
        end_lsn: plan.end_lsn,
        last_transaction: plan.last_transaction,
        databases,
        fetched_bytes: preview.fetched_bytes,
        stored_bytes: plan.backup.stored_bytes,
        files: preview.written_files,
        written_bytes: preview.written_bytes,
        wal_bytes: plan.wal_bytes,
        scratch: options.scratch.clone(),
        scratch_bytes: preview.written_bytes.saturating_add(wal_kept),
        expected: ExpectedDuration::read(repository, preview.written_bytes, plan.wal_bytes).await,
    })
}
