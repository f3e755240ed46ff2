//! Which base backup an incremental one builds on.

use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BackupId, Key, Repository, chain};
use crate::wal::History;
use std::collections::BTreeMap;

/// The server, as far as a reference must fit it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) system_identifier: u64,
    /// `server_version_num`.
    pub(super) postgres_version: u32,
    /// `SHOW data_checksums`.
    pub(super) data_checksums: Option<String>,
    /// The way to the timeline that the server is on.
    pub(super) history: History,
}

/// The newest backup that one of this server can build on; or why there is none.
///
/// # Errors
/// If the store fails or a document is unreadable.
pub(super) async fn choose(repository: &Repository, wanted: &Wanted) -> Result<Result<BackupDocument, String>> {
    let mut newest_problem = None;
    for id in repository.backup_ids().await? {
        let Some(backup) = repository.finished_backup(&id).await? else { continue };
        match fitting(repository, backup, wanted).await? {
            Ok(backup) => return Ok(Ok(backup)),
            Err(problem) => _ = newest_problem.get_or_insert(problem),
        }
    }
    Ok(Err(newest_problem.unwrap_or_else(|| "there is no base backup yet".to_owned())))
}

/// The backup `id`, if one of this server can build on it; or why not.
///
/// # Errors
/// If the store fails or a document is unreadable.
pub(super) async fn named(
    repository: &Repository,
    id: &BackupId,
    wanted: &Wanted,
) -> Result<Result<BackupDocument, String>> {
    let Some(backup) = repository.finished_backup(id).await? else {
        return Ok(Err(format!("the base backup {id}, which it builds on, is gone")));
    };
    fitting(repository, backup, wanted).await
}

/// A backup that one of this server can build on; or why it cannot.
async fn fitting(
    repository: &Repository,
    backup: BackupDocument,
    wanted: &Wanted,
) -> Result<Result<BackupDocument, String>> {
    let problem = match misfit(&backup, wanted) {
        Some(problem) => Some(format!("the base backup {} {problem}", backup.id)),
        None => broken_chain(repository, &backup).await?,
    };
    Ok(problem.map_or(Ok(backup), Err))
}

/// A finished backup with its list of files.
///
/// # Errors
/// If it is gone, the store fails, or it is unreadable.
pub(super) async fn with_files(repository: &Repository, id: &BackupId) -> Result<BackupDocument> {
    let document = repository.read_document(&Key::BackupEnd(id.clone())).await?;
    document.ok_or_else(|| Error::new(Kind::Refused, format!("the base backup {id} was deleted meanwhile")))
}

/// Why nothing of this server can build on `backup`.
fn misfit(backup: &BackupDocument, wanted: &Wanted) -> Option<&'static str> {
    let is_of_usual_size = |name: &str, value: &str| backup.settings.get(name).is_some_and(|it| it == value);
    let problems = [
        (backup.findings.damaged, "has damaged pages"),
        (backup.system_identifier != wanted.system_identifier, "is another cluster's"),
        (backup.postgres_version / 10_000 != wanted.postgres_version / 10_000, "is another major version's"),
        // A dead branch, or a server that is behind.
        (!backup.is_on_path(&wanted.history), "is not on this server's history"),
        // `pg_checksums` changes every page and writes no WAL.
        (
            backup.settings.get("data_checksums") != wanted.data_checksums.as_ref(),
            "was taken before data checksums were switched on or off",
        ),
        (
            !is_of_usual_size("block_size", "8192") || !is_of_usual_size("segment_size", "1GB"),
            "has pages or files of an unusual size",
        ),
    ];
    problems.into_iter().find_map(|(is_so, problem)| is_so.then_some(problem))
}

/// What is the matter with what `backup` builds on.
async fn broken_chain(repository: &Repository, backup: &BackupDocument) -> Result<Option<String>> {
    let mut links = BTreeMap::new();
    let mut next = backup.reference.clone();
    while let Some(id) = next.filter(|id| !links.contains_key(id)) {
        let Some(link) = repository.finished_backup(&id).await? else { break };
        next = link.reference.clone();
        links.insert(id, link);
    }
    Ok(chain(|id| links.get(id), backup).err().map(|broken| broken.to_string()))
}
