//! Single small files out of a base backup, and out of what it builds on, into memory.

use super::combine::{Assembly, Combination, Content, Listed};
use super::stored::{part_bytes, with_files};
use crate::codec::{self, encryption};
use crate::error::{Error, Kind, Result};
use crate::repository::incremental::{BLOCK_BYTES, HeaderReader};
use crate::repository::manifest::Manifest;
use crate::repository::{BackupDocument, FilePath, Identity, Repository, Subject, incremental_path};
use crate::runtime;

/// The largest file that is read so: no catalogue of databases comes near.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The file at `path` as a restore of `document` writes it, together with `references`, the nearest first.
///
/// # Errors
/// [`Kind::Damaged`] if they do not have it, whole.
pub(super) async fn read_combined(
    repository: &Repository,
    (document, manifest): (&BackupDocument, &Manifest),
    references: &[BackupDocument],
    path: &str,
) -> Result<Vec<u8>> {
    let mut piece = read_piece(repository, (document, manifest), path).await?;
    let Content::Listed(header) = &piece.content else { return Ok(piece.bytes) };
    let whole_bytes = u64::from(header.whole_blocks()) * BLOCK_BYTES;
    if whole_bytes > FILE_BYTES_MAX {
        return Err(Error::new(Kind::Damaged, format!("{path} cannot have {whole_bytes} bytes")));
    }
    let mut whole = vec![0; whole_bytes as usize];
    piece.copy_into(&mut whole, None);
    let mut combination = Combination::of_newest(piece.listed());
    for link in references {
        let Some(assembly) = combination.file(&piece.path) else { break };
        let (link, manifest) = (with_files(repository, link).await?, repository.read_manifest(link).await?);
        piece = read_piece(repository, (&link, &manifest), path).await?;
        piece.copy_into(&mut whole, Some(assembly));
        combination.take_in(piece.listed());
    }
    Ok(whole)
}

/// What one backup has of a file.
struct Piece {
    /// Of the whole file.
    path: FilePath,
    content: Content,
    bytes: Vec<u8>,
}

impl Piece {
    fn listed(&self) -> Vec<(FilePath, Listed)> {
        match &self.content {
            Content::Listed(header) => vec![(self.path.clone(), Listed::of(header))],
            Content::Whole(_) => Vec::new(),
        }
    }

    fn copy_into(&self, whole: &mut [u8], assembly: Option<&Assembly>) {
        for (range, place) in self.content.places(assembly, 0, self.bytes.len()) {
            if let Some(to) = whole.get_mut(place as usize..place as usize + range.len()) {
                to.copy_from_slice(&self.bytes[range]);
            }
        }
    }
}

async fn read_piece(
    repository: &Repository,
    (document, manifest): (&BackupDocument, &Manifest),
    path: &str,
) -> Result<Piece> {
    let damaged = |why: &str| Error::new(Kind::Damaged, format!("the file {path} of backup {} {why}", document.id));
    let name = FilePath::parse(path.as_bytes()).map_err(|error| damaged("cannot be").because(error))?;
    let changes = incremental_path(&name).filter(|changes| manifest.files.find(changes).is_some());
    let Some(changes) = changes.filter(|_| document.reference.is_some()) else {
        let bytes = read_file(repository, document, manifest, path).await?;
        let blocks = u32::try_from(bytes.len() as u64 / BLOCK_BYTES).unwrap_or(u32::MAX);
        return Ok(Piece { path: name, content: Content::Whole(blocks), bytes });
    };
    let bytes = read_file(repository, document, manifest, &changes.to_string()).await?;
    let mut reader = HeaderReader::new(bytes.len() as u64);
    let header = reader.push(&bytes).and_then(|()| reader.finish());
    let header = header.map_err(|error| damaged("cannot be used").because(error))?;
    Ok(Piece { path: name, content: Content::Listed(header), bytes })
}

/// The file at `path`, as the manifest lists it.
///
/// # Errors
/// [`Kind::Damaged`] if the backup does not have it, whole.
async fn read_file(
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
