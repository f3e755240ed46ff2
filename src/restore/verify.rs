//! Whether what was written is what PostgreSQL's manifest lists: every file, whole, nothing else. Pure.

use super::part::Piece;
use crate::error::{Error, Kind, Result};
use crate::repository::FilePath;
use crate::repository::manifest::Manifest;
use std::collections::HashMap;

/// Compares these files alone: the others were not read, or not wholly.
pub(super) fn verify_some(
    mut manifest: Manifest,
    mut pieces: Vec<Piece>,
    is_read: impl Fn(&FilePath) -> bool,
) -> Result<()> {
    manifest.files.retain(|path, _| is_read(path));
    pieces.retain(|piece| is_read(&piece.path));
    verify(&manifest, pieces)
}

/// Compares. Pieces may come in any order.
pub(super) fn verify(manifest: &Manifest, mut pieces: Vec<Piece>) -> Result<()> {
    let damaged = |path: &FilePath, why: String| {
        Error::new(Kind::Damaged, format!("the file {path} of the backup {why}"))
            .hint("The restore cannot be used. Try an older backup (`seawall list`).")
    };
    pieces.sort_by(|one, other| (&one.path, one.offset).cmp(&(&other.path, other.offset)));
    let mut found: HashMap<&FilePath, (u64, u32)> = HashMap::with_capacity(manifest.files.len());
    for piece in &pieces {
        let (bytes, crc32c) = found.entry(&piece.path).or_insert((0, 0));
        if piece.offset != *bytes {
            return Err(damaged(
                &piece.path,
                format!("is not whole: bytes from {bytes} on are missing or there twice"),
            ));
        }
        *crc32c = crc32c::crc32c_combine(*crc32c, piece.crc32c, piece.bytes as usize);
        *bytes += piece.bytes;
    }
    for (path, check) in &manifest.files {
        let Some((bytes, crc32c)) = found.remove(path) else {
            return Err(damaged(path, "is in the manifest and in no part".to_owned()));
        };
        if bytes != check.size_bytes {
            return Err(damaged(path, format!("has {bytes} bytes instead of {}", check.size_bytes)));
        }
        if crc32c != check.crc32c {
            return Err(damaged(path, "does not have the CRC-32C that the manifest says".to_owned()));
        }
    }
    if let Some(path) = found.keys().min() {
        return Err(damaged(path, "is not in the manifest".to_owned()));
    }
    // Each was given its length by whichever of its parts came last.
    let is_right =
        |piece: &&Piece| manifest.files.get(&piece.path).map(|check| check.size_bytes) == Some(piece.file_bytes);
    match pieces.iter().find(|piece| !is_right(piece)) {
        Some(piece) => {
            Err(damaged(&piece.path, format!("has a part which says that it has {} bytes", piece.file_bytes)))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::manifest::{FileCheck, ManifestEnd};

    #[test]
    fn every_part_of_a_file_must_know_how_long_it_is() {
        // Given a file of two pieces
        let path = FilePath::parse(b"base/5/1259").unwrap();
        let contents = [7; 100];
        let piece = |offset: usize, bytes: usize| Piece {
            path: path.clone(),
            offset: offset as u64,
            bytes: bytes as u64,
            crc32c: crc32c::crc32c(&contents[offset..offset + bytes]),
            file_bytes: 100,
        };
        let check = FileCheck { size_bytes: 100, crc32c: crc32c::crc32c(&contents) };
        let end = ManifestEnd { version: 1, system_identifier: None, wal_ranges: Vec::new(), sha256: String::new() };
        let manifest = Manifest { files: [(path.clone(), check)].into(), end };
        verify(&manifest, vec![piece(40, 60), piece(0, 40)]).unwrap();
        // When one of its parts says that it is shorter, which may have cut it off, then it is not whole, whatever passed.
        let error = verify(&manifest, vec![Piece { file_bytes: 40, ..piece(40, 60) }, piece(0, 40)]).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("says that it has 40 bytes"), "{error}");
    }
}
