//! Fetches what is stored of a base backup: its list of files, and its parts, which are written and compared as they come.

use super::execute::RestoreProgress;
use super::part::{self, Extracted, Source};
use super::tree::Tree;
use super::verify::Verification;
use crate::codec::{Buffers, Ending};
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BackupId, BackupPart, Key, PART_BYTES_MAX, Repository};
use crate::runtime::{self, Tasks};
use crate::store::{StoreError, StoreErrorKind};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// `backup.json` once more with its list of files, which a plan goes without.
pub(super) async fn with_files(repository: &Repository, planned: &BackupDocument) -> Result<BackupDocument> {
    let key = Key::BackupEnd(planned.id.clone());
    let found: Option<BackupDocument> = repository.read_document(&key).await?;
    let is_the_same = |found: &BackupDocument| {
        found.manifest_sha256 == planned.manifest_sha256
            && found.parts == planned.parts
            && found.reference == planned.reference
    };
    found.filter(is_the_same).ok_or_else(|| {
        let name = repository.layout.name(&key);
        Error::new(Kind::Damaged, format!("{name} is no longer what it was when the restore was planned"))
            .hint("Does somebody delete or copy backups at this moment?")
    })
}

/// Something that `backup.json` names and that is not there is damage, not an answer.
fn gone(error: StoreError, name: &str) -> Error {
    match error.kind {
        StoreErrorKind::NotFound => Error::new(Kind::Damaged, format!("{name} is missing, and the backup needs it"))
            .hint("Was it deleted by somebody or by a lifecycle rule? Try an older backup (`seawall list`)."),
        _ => error.into(),
    }
}

/// Fetches and writes these parts of the backup that is `source`, several at a time, and compares what they hold.
pub(super) async fn write_parts(
    repository: &Repository,
    parts: Vec<BackupPart>,
    source: Source,
    verification: &Arc<Verification>,
    downloads: usize,
    (tree, progress): (&Arc<Tree>, &watch::Sender<RestoreProgress>),
) -> Result<Extracted> {
    let source = Arc::new(source);
    let buffers = Buffers::new(downloads.max(1));
    let mut parts = parts.into_iter();
    // Tasks: who reads a socket is where it is waited for.
    let mut tasks = Tasks::default();
    let mut all = Extracted::default();
    loop {
        while tasks.len() < downloads.max(1)
            && let Some(part) = parts.next()
        {
            let (repository, source, tree) = (repository.clone(), Arc::clone(&source), Arc::clone(tree));
            tasks.start(write_part(repository, part, source, Arc::clone(verification), tree, buffers.clone()));
        }
        let Some(written) = tasks.next().await else { return Ok(all) };
        let (bytes, extracted) = written??;
        progress.send_modify(|progress| progress.done_bytes += bytes);
        all.take_in(extracted);
    }
}

/// Returns how much was fetched as well.
async fn write_part(
    repository: Repository,
    part: BackupPart,
    source: Arc<Source>,
    verification: Arc<Verification>,
    tree: Arc<Tree>,
    buffers: Buffers,
) -> Result<(u64, Extracted)> {
    let (name, stored) = part_bytes(&repository, &part, &source.backup, source.ending).await?;
    let fetched_bytes = part.stored_bytes;
    let extract = move || {
        let mut extracted = part::extract(&name, &part, stored, &source, &tree, &buffers)?;
        verification.take(std::mem::take(&mut extracted.pieces))?;
        Ok::<_, Error>(extracted)
    };
    Ok((fetched_bytes, runtime::blocking(extract).await??))
}

/// A part as it is stored: its name, its bytes.
pub(super) async fn part_bytes(
    repository: &Repository,
    part: &BackupPart,
    backup: &BackupId,
    ending: Ending,
) -> Result<(String, Bytes)> {
    let name = repository.layout.name_in(&Key::BackupPart(backup.clone(), part.name), ending);
    if part.stored_bytes.max(part.plain_bytes) > PART_BYTES_MAX {
        let text = format!("backup.json says that {name} has more than {PART_BYTES_MAX} bytes, as no part has");
        return Err(Error::new(Kind::Damaged, text).hint("Somebody else than Seawall wrote it. Try an older backup."));
    }
    let stream = repository.store.get(&name, None).await.map_err(|error| gone(error, &name))?;
    // Before it fills the memory.
    if stream.head.info.bytes != part.stored_bytes {
        let (found, expected) = (stream.head.info.bytes, part.stored_bytes);
        return Err(Error::new(Kind::Damaged, format!("{name} has {found} bytes instead of {expected}")).hint(
            "Is there another copy of the bucket (versions, replication), or an older backup (`seawall list`)?",
        ));
    }
    Ok((name, stream.collect().await?))
}
