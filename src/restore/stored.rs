//! Fetches what is stored of a base backup: its manifest, and its parts, which are written as they come.

use super::execute::RestoreProgress;
use super::part::{self, Extracted, Source};
use super::tree::Tree;
use crate::codec::{self, Buffers, encryption};
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::Manifest;
use crate::repository::{Archive, BackupDocument, BackupPart, Identity, Key, Repository, Subject, hex};
use crate::runtime;
use crate::store::{StoreError, StoreErrorKind};
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::watch;

/// The largest manifest that is read: ten million files.
const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// Fetches what PostgreSQL says was in the backup.
pub(super) async fn manifest(repository: &Repository, backup: &BackupDocument) -> Result<Manifest> {
    let name = repository.layout.name_in(&Key::BackupManifest(backup.id.clone()), backup.ending);
    let stored = repository.store.get(&name, None).await.map_err(|error| gone(error, &name))?.collect().await?;
    let (id, system_identifier, sha256) = (backup.id.clone(), backup.system_identifier, backup.manifest_sha256.clone());
    let identities = repository.layout.form().identities.clone();
    runtime::blocking(move || {
        let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
        let opened = encryption::open_whole(&identities, stored);
        let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, MANIFEST_BYTES_MAX));
        let decoded = decoded.map_err(|error| match error.is_ours() {
            true => Error::from(error).context(&name),
            false => damaged("is damaged").because(error),
        })?;
        let identity = Identity::parse(&name, decoded.identity.as_deref())?;
        identity.check(&name, system_identifier, &Subject::Manifest { backup: id })?;
        if hex(&Sha256::digest(&decoded.plain)) != sha256 {
            return Err(damaged("does not have the SHA-256 that backup.json says"));
        }
        Manifest::parse(&decoded.plain).map_err(|error| damaged("cannot be read").because(error))
    })
    .await?
}

/// Something that `backup.json` names and that is not there is damage, not an answer.
fn gone(error: StoreError, name: &str) -> Error {
    match error.kind {
        StoreErrorKind::NotFound => Error::new(Kind::Damaged, format!("{name} is missing, and the backup needs it"))
            .hint("Was it deleted by somebody or by a lifecycle rule? Try an older backup (`seawall list`)."),
        _ => error.into(),
    }
}

/// Fetches and writes these parts of the backup that is `source`, several at a time.
pub(super) async fn write_parts(
    repository: &Repository,
    parts: Vec<BackupPart>,
    source: Source,
    downloads: usize,
    tree: &Arc<Tree>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<Extracted> {
    let source = Arc::new(source);
    let buffers = Buffers::new(downloads.max(1));
    let parts = stream::iter(parts).map(|part| {
        let (source, tree, buffers) = (Arc::clone(&source), Arc::clone(tree), buffers.clone());
        async move {
            let bytes = part.stored_bytes;
            write_part(repository, part, source, tree, buffers).await.map(|extracted| (bytes, extracted))
        }
    });
    let mut parts = parts.buffer_unordered(downloads.max(1));
    let mut all = Extracted::default();
    while let Some((bytes, extracted)) = parts.try_next().await? {
        progress.send_modify(|progress| progress.fetched_bytes += bytes);
        all.take_in(extracted);
    }
    Ok(all)
}

async fn write_part(
    repository: &Repository,
    part: BackupPart,
    source: Arc<Source>,
    tree: Arc<Tree>,
    buffers: Buffers,
) -> Result<Extracted> {
    let archive = Archive::parse(&part.archive)
        .ok_or_else(|| Error::new(Kind::Damaged, format!("backup.json names a part of {:?}", part.archive)))?;
    let name = repository.layout.name_in(&Key::BackupPart(source.backup.clone(), archive, part.number), source.ending);
    let stream = repository.store.get(&name, None).await.map_err(|error| gone(error, &name))?;
    // Before it fills the memory.
    if stream.head.info.bytes != part.stored_bytes {
        let (found, expected) = (stream.head.info.bytes, part.stored_bytes);
        return Err(Error::new(Kind::Damaged, format!("{name} has {found} bytes instead of {expected}")).hint(
            "Is there another copy of the bucket (versions, replication), or an older backup (`seawall list`)?",
        ));
    }
    let stored = stream.collect().await?;
    runtime::blocking(move || part::extract(&name, &part, stored, &source, &tree, &buffers)).await?
}
