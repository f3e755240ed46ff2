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
    match found.keys().min() {
        Some(path) => Err(damaged(path, "is not in the manifest".to_owned())),
        None => Ok(()),
    }
}
