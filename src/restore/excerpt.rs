//! Single small files out of a base backup, into memory.

use super::stored::part_bytes;
use crate::codec::{self, encryption};
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::Manifest;
use crate::repository::{BackupDocument, FilePath, Identity, Repository, Subject};
use crate::runtime;

/// The largest file that is read so: no catalogue of databases comes near.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The file at `path`, as the manifest lists it.
///
/// # Errors
/// [`Kind::Damaged`] if the backup does not have it, whole.
pub(super) async fn read_file(
    repository: &Repository,
    document: &BackupDocument,
    manifest: &Manifest,
    path: &str,
) -> Result<Vec<u8>> {
    let damaged = |why: &str| Error::new(Kind::Damaged, format!("the file {path} of backup {} {why}", document.id));
    let name = FilePath::parse(path.as_bytes()).map_err(|error| damaged("cannot be").because(error))?;
    let check = manifest.files.get(&name).ok_or_else(|| damaged("is not in its manifest"))?;
    let file = document.files.iter().find(|file| file.path == name);
    let file = file.ok_or_else(|| damaged("is not in its backup.json"))?;
    if file.bytes != check.size_bytes || file.bytes > FILE_BYTES_MAX {
        return Err(damaged("has an impossible length"));
    }
    let (mut content, mut index, mut offset) = (Vec::new(), file.part as usize, file.offset);
    while (content.len() as u64) < file.bytes {
        let part = document.parts.get(index).ok_or_else(|| damaged("ends in no part"))?;
        let plain = part_plain(repository, document, index).await?;
        let rest = file.bytes - content.len() as u64;
        let end = offset.saturating_add(rest).min(part.plain_bytes).min(plain.len() as u64);
        let piece = plain.get(offset as usize..end as usize).filter(|piece| !piece.is_empty());
        content.extend_from_slice(piece.ok_or_else(|| damaged("is not where backup.json says"))?);
        // What does not fit goes on at the beginning of the next.
        (index, offset) = (index + 1, 0);
    }
    match crc32c::crc32c(&content) == check.crc32c {
        true => Ok(content),
        false => Err(damaged("does not have the CRC-32C that the manifest says")),
    }
}

/// The bytes of tar in a part.
async fn part_plain(repository: &Repository, document: &BackupDocument, index: usize) -> Result<Vec<u8>> {
    let part = document.parts[index].clone();
    let (name, stored) = part_bytes(repository, &part, &document.id, document.ending).await?;
    let (id, system_identifier) = (document.id.clone(), document.system_identifier);
    let identities = repository.layout.form().identities.clone();
    runtime::blocking(move || {
        let limit = usize::try_from(part.plain_bytes).unwrap_or(usize::MAX);
        let opened = encryption::open_whole(&identities, stored);
        let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, limit));
        let decoded = decoded.map_err(|error| match error.is_ours() {
            true => Error::from(error).context(&name),
            false => Error::new(Kind::Damaged, format!("{name} is damaged")).because(error),
        })?;
        let identity = Identity::parse(&name, decoded.identity.as_deref())?;
        identity.check(&name, system_identifier, &Subject::part(id, part.name.archive))?;
        Ok(decoded.plain)
    })
    .await?
}
