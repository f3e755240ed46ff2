//! Whether what was written is what PostgreSQL's manifest lists: every file, whole, nothing else. Looked at while parts come, so that
//! of a file that came whole a bit is all that is kept. Pure.

use super::number_set::NumberSet;
use super::part::Piece;
use crate::error::{Error, Kind, Result};
use crate::repository::FilePathRef;
use crate::repository::manifest::{FileCheck, Manifest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Verification {
    manifest: Arc<Manifest>,
    /// Places in the manifest of the files that must come.
    wanted: NumberSet,
    /// Others may come as well, whatever is in them.
    others_come: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the wanted files those that came, whole.
    done: NumberSet,
    /// Of those that come in several parts, by their place, what came so far.
    begun: HashMap<usize, Begun>,
}

#[derive(Debug, Default)]
struct Begun {
    bytes: u64,
    /// Offset, length, CRC-32C.
    stretches: Vec<(u64, u64, u32)>,
}

impl Verification {
    /// Every file must come but those in these places of the manifest, and no other may.
    pub(super) fn of_all(manifest: Arc<Manifest>, skipped: &NumberSet) -> Verification {
        let wanted = (0..manifest.files.len()).filter(|place| !skipped.contains(*place)).collect();
        Verification { manifest, wanted, others_come: false, state: Mutex::default() }
    }

    /// The files in these places must come; of others perhaps parts.
    pub(super) fn of_some(manifest: Arc<Manifest>, wanted: NumberSet) -> Verification {
        Verification { manifest, wanted, others_come: true, state: Mutex::default() }
    }

    /// Compares what a part held. Parts may come in any order.
    ///
    /// # Errors
    /// [`Kind::Damaged`], with the file that is not as the manifest says.
    pub(super) fn take(&self, pieces: Vec<Piece>) -> Result<()> {
        let mut state = self.state();
        for piece in pieces {
            let place = self.manifest.files.find(&piece.path).filter(|place| self.wanted.contains(*place));
            match place.and_then(|place| Some((place, self.manifest.files.at(place)?.1))) {
                Some((place, check)) => state.take(place, check, &piece)?,
                None if self.others_come => {}
                None => return Err(damaged(piece.path.view(), "is not in the manifest")),
            }
        }
        Ok(())
    }

    /// Every part has come.
    ///
    /// # Errors
    /// [`Kind::Damaged`], with a file that did not come, or not wholly.
    pub(super) fn finish(&self) -> Result<()> {
        let state = self.state();
        let missing = |place: &usize| self.wanted.contains(*place) && !state.done.contains(*place);
        match self.manifest.files.iter().find(|(place, ..)| missing(place)) {
            None => Ok(()),
            Some((place, path, check)) => Err(match state.begun.get(&place) {
                None => damaged(path, "is in the manifest and in no part"),
                Some(begun) => begun.finish(path, check).err().unwrap_or_else(|| short(path, begun.bytes, check)),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, place: usize, check: FileCheck, piece: &Piece) -> Result<()> {
        let path = piece.path.view();
        // Each is given its length by whichever of its parts comes last.
        if piece.file_bytes != check.size_bytes {
            return Err(match piece.bytes == piece.file_bytes {
                true => short(path, piece.bytes, check),
                false => damaged(path, &format!("has a part which says that it has {} bytes", piece.file_bytes)),
            });
        }
        if self.done.contains(place) {
            return Err(twice(path, piece.offset));
        }
        let begun = self.begun.entry(place).or_default();
        begun.bytes = begun.bytes.saturating_add(piece.bytes);
        begun.stretches.push((piece.offset, piece.bytes, piece.crc32c));
        if begun.bytes < check.size_bytes {
            return Ok(());
        }
        let begun = self.begun.remove(&place).unwrap_or_default();
        begun.finish(path, check)?;
        self.done.insert(place);
        Ok(())
    }
}

impl Begun {
    /// Fails unless it is the whole file.
    fn finish(&self, path: FilePathRef<'_>, check: FileCheck) -> Result<()> {
        let mut stretches = self.stretches.clone();
        stretches.sort_unstable();
        let (mut end, mut found) = (0u64, 0);
        for (offset, bytes, crc32c) in stretches {
            if offset != end {
                return Err(twice(path, end));
            }
            found = crc32c::crc32c_combine(found, crc32c, bytes as usize);
            end = end.saturating_add(bytes);
        }
        match end == check.size_bytes {
            false => Err(short(path, end, check)),
            true if found != check.crc32c => Err(damaged(path, "does not have the CRC-32C that the manifest says")),
            true => Ok(()),
        }
    }
}

fn twice(path: FilePathRef<'_>, end: u64) -> Error {
    damaged(path, &format!("is not whole: bytes from {end} on are missing or there twice"))
}

fn short(path: FilePathRef<'_>, bytes: u64, check: FileCheck) -> Error {
    damaged(path, &format!("has {bytes} bytes instead of {}", check.size_bytes))
}

fn damaged(path: FilePathRef<'_>, why: &str) -> Error {
    Error::new(Kind::Damaged, format!("the file {path} of the backup {why}"))
        .hint("The restore cannot be used. Try an older backup (`seawall list`).")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::manifest::testing::manifest;
    use crate::repository::{FilePath, WalNeed};
    use crate::wal::{Lsn, TimelineId};
    use proptest::prelude::*;

    const CONTENTS: [u8; 100] = [7; 100];

    fn path(name: &str) -> FilePath {
        FilePath::parse(name.as_bytes()).unwrap()
    }

    fn piece(name: &str, offset: usize, bytes: usize) -> Piece {
        let crc32c = crc32c::crc32c(&CONTENTS[offset..offset + bytes]);
        Piece { path: path(name), offset: offset as u64, bytes: bytes as u64, crc32c, file_bytes: 100 }
    }

    /// Of a backup of these files, all with the same contents, and of one that is empty.
    fn verification(names: &[&str]) -> Verification {
        let check = FileCheck { size_bytes: 100, crc32c: crc32c::crc32c(&CONTENTS) };
        let mut files: Vec<_> = names.iter().map(|name| ((*name).to_owned(), check)).collect();
        files.push(("empty".to_owned(), FileCheck { size_bytes: 0, crc32c: 0 }));
        let need = WalNeed { timeline: TimelineId(1), start: Lsn(1), end: Lsn(2) };
        let manifest = Manifest::parse(manifest(None, &files, &[need]).as_bytes()).unwrap();
        Verification::of_all(Arc::new(manifest), &NumberSet::default())
    }

    fn empty() -> Piece {
        Piece { path: path("empty"), offset: 0, bytes: 0, crc32c: 0, file_bytes: 0 }
    }

    fn verify(pieces: Vec<Piece>) -> Result<()> {
        let verification = verification(&["a", "b"]);
        pieces.into_iter().try_for_each(|piece| verification.take(vec![piece]))?;
        verification.finish()
    }

    #[test]
    fn every_part_of_a_file_must_know_how_long_it_is() {
        // Given a file of two pieces
        let (first, last) = (piece("a", 0, 40), piece("a", 40, 60));
        verify(vec![last.clone(), empty(), piece("b", 0, 100), first.clone()]).unwrap();
        // When one of its parts says that it is shorter, which may have cut it off, then it is not whole, whatever passed.
        let error = verify(vec![Piece { file_bytes: 40, ..last }, first]).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("says that it has 40 bytes"), "{error}");
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let others = || vec![empty(), piece("b", 0, 100)];
        let with = |pieces: &[Piece]| verify([others(), pieces.to_vec()].concat()).unwrap_err().to_string();
        let flipped = Piece { crc32c: 1, ..piece("a", 0, 100) };
        for (pieces, says) in [
            (vec![], "a of the backup is in the manifest and in no part"),
            (vec![piece("a", 0, 40)], "a of the backup has 40 bytes instead of 100"),
            (vec![piece("a", 40, 60)], "a of the backup is not whole: bytes from 0 on are missing"),
            (vec![piece("a", 0, 40), piece("a", 30, 60)], "a of the backup is not whole: bytes from 40 on are"),
            (vec![piece("a", 0, 100), piece("a", 0, 100)], "a of the backup is not whole"),
            (vec![piece("a", 0, 60), piece("a", 0, 60)], "a of the backup is not whole"),
            (vec![piece("a", 0, 100), empty()], "empty of the backup is not whole"),
            (vec![piece("a", 0, 100), piece("c", 0, 100)], "c of the backup is not in the manifest"),
            (vec![flipped], "a of the backup does not have the CRC-32C"),
        ] {
            assert!(with(&pieces).contains(says), "{} and not: {says}", with(&pieces));
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_looked_at() {
        let whole = verification(&["a", "b"]);
        let b = whole.manifest.files.find(&path("b")).unwrap();
        // Where some files are wanted, parts of others come along.
        let some = Verification::of_some(Arc::clone(&whole.manifest), [b].into_iter().collect());
        some.take(vec![piece("a", 40, 10), piece("c", 0, 1), piece("b", 0, 100)]).unwrap();
        some.finish().unwrap();
        // Where some are passed over, they must not come.
        let rest = Verification::of_all(Arc::clone(&whole.manifest), &[b].into_iter().collect());
        rest.take(vec![piece("a", 0, 100), empty()]).unwrap();
        rest.finish().unwrap();
        assert!(rest.take(vec![piece("b", 0, 100)]).is_err());
    }

    proptest! {
        #[test]
        fn a_file_is_whole_however_it_is_cut_and_in_whatever_order_it_comes(
            cuts in prop::collection::btree_set(1usize..100, 0..8),
            order in any::<u64>(),
        ) {
            let borders: Vec<usize> = [0].into_iter().chain(cuts).chain([100]).collect();
            let mut pieces: Vec<Piece> =
                borders.windows(2).map(|pair| piece("a", pair[0], pair[1] - pair[0])).collect();
            let count = pieces.len();
            pieces.rotate_left(order as usize % count);
            let verification = verification(&["a"]);
            pieces.push(empty());
            for piece in pieces {
                verification.take(vec![piece]).unwrap();
            }
            prop_assert!(verification.finish().is_ok());
        }
    }
}
