//! Which files of a backup are fetched, and which parts are needed for them. Pure.

use super::number_set::NumberSet;
use crate::repository::manifest::Manifest;
use crate::repository::{BackupFiles, BackupPart, FilePathRef, whole_path};
use std::sync::Arc;

/// Files that are not fetched: they are there, or are made in another way. By itself: none.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection(Option<Arc<Skipped>>);

#[derive(Debug)]
struct Skipped {
    manifest: Arc<Manifest>,
    places: NumberSet,
}

impl Selection {
    /// Passes over the files that have these places in the manifest.
    pub(super) fn without(manifest: Arc<Manifest>, places: NumberSet) -> Selection {
        Selection((!places.is_empty()).then(|| Arc::new(Skipped { manifest, places })))
    }

    /// True if nothing is passed over.
    pub(super) fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// True if this file is passed over.
    pub(super) fn skips<'a>(&self, path: impl Into<FilePathRef<'a>>) -> bool {
        let Some(skipped) = &self.0 else { return false };
        skipped.manifest.files.find(path).is_some_and(|place| skipped.places.contains(place))
    }

    /// The parts to fetch, by their index: those with a file that is not skipped, those in which no file is known to be,
    /// which may hold directories alone, and those in which an incremental file begins, of which the length is needed.
    pub(super) fn parts(&self, parts: &[BackupPart], files: &BackupFiles) -> Vec<usize> {
        let (mut known, mut wanted) = (vec![false; parts.len()], vec![false; parts.len()]);
        let mut see = |part: usize, is_wanted: bool| {
            if let (Some(known), Some(wanted)) = (known.get_mut(part), wanted.get_mut(part)) {
                *known = true;
                *wanted = *wanted || is_wanted;
            }
        };
        for file in files.iter() {
            see(file.part as usize, !self.skips(file.path) || whole_path(file.path).is_some());
        }
        for (index, part) in parts.iter().enumerate() {
            if let Some(from) = &part.continues {
                see(index, !self.skips(&from.path));
            }
        }
        (0..parts.len()).filter(|&index| wanted[index] || !known[index]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::manifest::FileCheck;
    use crate::repository::manifest::testing::manifest;
    use crate::repository::{Archive, BackupFile, ContentDigest, Continuation, FilePath, PartName, WalNeed};
    use crate::wal::{Lsn, TimelineId};

    fn path(name: &str) -> FilePath {
        FilePath::parse(name.as_bytes()).unwrap()
    }

    fn part(number: u32, continues: Option<&str>) -> BackupPart {
        let continues = continues.map(|name| Continuation { path: path(name), file_offset: 10, file_bytes: 20 });
        BackupPart {
            name: PartName { archive: Archive::Base, number, digest: ContentDigest::of_sha256([0; 32]) },
            plain_bytes: 0,
            stored_bytes: 0,
            sha256: String::new(),
            added_bytes: 0,
            continues,
        }
    }

    #[test]
    fn a_part_is_needed_for_a_file_that_is_not_there_or_if_nothing_is_known_of_it() {
        // Given small files, a large one over three parts with small ones behind it, and a part without files
        let parts = [part(1, None), part(2, None), part(3, Some("large")), part(4, Some("large")), part(5, None)];
        let file = |name: &str, part| BackupFile { path: path(name), part, offset: 0, bytes: 1 };
        let names = ["a", "b", "large", "c", "unknown"];
        let files: BackupFiles = [file("a", 0), file("b", 0), file("large", 1), file("c", 3)].into_iter().collect();
        let listed = names.map(|name| (name.to_owned(), FileCheck { size_bytes: 1, crc32c: 0 }));
        let need = WalNeed { timeline: TimelineId(1), start: Lsn(1), end: Lsn(2) };
        let manifest = Arc::new(Manifest::parse(manifest(None, &listed, &[need]).as_bytes()).unwrap());
        let needed = |skipped: &[&str]| {
            let places = skipped.iter().map(|name| manifest.files.find(&path(name)).unwrap()).collect();
            Selection::without(Arc::clone(&manifest), places).parts(&parts, &files)
        };
        assert_eq!(needed(&[]), [0, 1, 2, 3, 4]);
        assert_eq!(needed(&["a", "b"]), [1, 2, 3, 4]);
        assert_eq!(needed(&["a", "large"]), [0, 3, 4]);
        assert_eq!(needed(&["a", "b", "c", "large"]), [4]);
        assert_eq!(needed(&["unknown", "c"]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn of_an_incremental_file_that_is_passed_over_the_beginning_is_needed_for_its_length() {
        // Given one over two parts, the second of which holds nothing else, and a whole file in a third
        let (changes, whole) = ("base/16400/INCREMENTAL.16385", "base/16400/16390");
        let parts = [part(1, None), part(2, Some(changes)), part(3, None)];
        let file = |name: &str, part| BackupFile { path: path(name), part, offset: 0, bytes: 1 };
        let files: BackupFiles = [file(changes, 0), file(whole, 2)].into_iter().collect();
        let listed = [changes, whole].map(|name| (name.to_owned(), FileCheck { size_bytes: 1, crc32c: 0 }));
        let need = WalNeed { timeline: TimelineId(1), start: Lsn(1), end: Lsn(2) };
        let manifest = Arc::new(Manifest::parse(manifest(None, &listed, &[need]).as_bytes()).unwrap());
        let all = [changes, whole].iter().map(|name| manifest.files.find(&path(name)).unwrap()).collect();
        assert_eq!(Selection::without(manifest, all).parts(&parts, &files), [0]);
    }
}
