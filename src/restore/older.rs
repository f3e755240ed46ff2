//! What is needed of the backups that an incremental one builds on, by their lists of files.

use super::combine::{Combination, Listed};
use super::label::LABEL_FILE;
use super::number_set::NumberSet;
use super::stored;
use crate::error::{Error, Kind, Result};
use crate::repository::incremental::BLOCK_BYTES;
use crate::repository::{BackupDocument, BackupPart, FilePath, FilePathRef, Repository, SEGMENT_BLOCKS, whole_path};
use std::collections::{BTreeSet, HashMap};

/// What older backups give to a restore, at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Expected {
    /// Bytes of files.
    pub(super) bytes: u64,
    /// Bytes that are fetched for them.
    pub(super) stored_bytes: u64,
}

/// Looks at what older backups have of the files at the paths `incomplete`; `see` gets each of them with the bytes that one
/// backup has of it. Nothing but lists is fetched.
///
/// # Errors
/// [`Kind::Damaged`] if a file is not in the next older backup.
pub(super) async fn expect(
    repository: &Repository,
    references: &[BackupDocument],
    incomplete: Vec<FilePath>,
    mut see: impl FnMut(FilePathRef<'_>, u64),
) -> Result<Expected> {
    let mut expected = Expected::default();
    let mut given = Given::default();
    let mut combination = Combination::of_newest(incomplete.into_iter().map(|path| (path, Listed::unread())).collect());
    for link in references {
        if combination.is_complete() {
            break;
        }
        let link = stored::with_files(repository, link).await?;
        let members = members(&combination, &link)?;
        let mut left = Vec::new();
        for file in members.iter().filter_map(|place| link.files.get(place)) {
            let whole = whole_path(file.path).filter(|_| link.reference.is_some());
            let path = whole.as_ref().map_or(file.path, FilePath::view);
            let bytes = given.add(path, file.bytes, whole.is_some());
            expected.bytes = expected.bytes.saturating_add(bytes);
            see(path, bytes);
            left.extend(whole.map(|whole| (whole, Listed::unread())));
        }
        let stored_bytes = parts(&link, &members)?.iter().map(|part| part.stored_bytes).sum();
        expected.stored_bytes = expected.stored_bytes.saturating_add(stored_bytes);
        combination.take_in(left);
    }
    Ok(expected)
}

/// What backups have given of large files: together they give no more than there is in one.
#[derive(Debug, Default)]
struct Given(HashMap<FilePath, u64>);

impl Given {
    /// The most that a file of a relation has (`RELSEG_SIZE`).
    const FILE_BYTES_MAX: u64 = SEGMENT_BLOCKS as u64 * BLOCK_BYTES;
    /// Nobody remembers less: most files did not change, and there may be a million of them.
    const REMEMBERED_BYTES: u64 = 256 << 10;

    /// So much of `bytes` counts, which a backup has of the file at `path`. If it `goes_on`, older ones have more.
    fn add(&mut self, path: FilePathRef<'_>, bytes: u64, goes_on: bool) -> u64 {
        let before = self.0.get(&path.to_path()).copied().unwrap_or_default();
        // A server may have been built for longer ones.
        let most = Given::FILE_BYTES_MAX.max(bytes);
        let bytes = bytes.min(most.saturating_sub(before));
        if goes_on && bytes >= Given::REMEMBERED_BYTES {
            self.0.insert(path.to_path(), before + bytes);
        }
        bytes
    }
}

/// The files of the next older backup that are needed, and its label: places in its list of files.
///
/// # Errors
/// [`Kind::Damaged`] if a file is not there.
pub(super) fn members(combination: &Combination, link: &BackupDocument) -> Result<NumberSet> {
    let members = combination.members(&link.files, link.reference.is_some());
    let mut members = members.map_err(|missing| {
        Error::new(Kind::Damaged, format!("backup {} has nothing of the file {missing}", link.id))
            .hint("The backups of this chain do not belong together. Try one before it (`seawall list`).")
    })?;
    let is_label = |path: FilePathRef<'_>| path.as_bytes() == LABEL_FILE.as_bytes();
    members.extend(link.files.iter().position(|file| is_label(file.path)));
    Ok(members)
}

/// The parts in which these files of `link` are.
///
/// # Errors
/// [`Kind::Damaged`] if they are in none.
pub(super) fn parts(link: &BackupDocument, members: &NumberSet) -> Result<Vec<BackupPart>> {
    let mut indexes = BTreeSet::new();
    for file in members.iter().filter_map(|place| link.files.get(place)) {
        let first = file.part as usize;
        let rest = link.parts.get(first.saturating_add(1)..).unwrap_or_default().iter();
        let rest = rest.take_while(|part| part.continues.as_ref().is_some_and(|from| file.path == from.path));
        indexes.extend(first..=first.saturating_add(rest.count()));
    }
    let parts: Option<Vec<BackupPart>> = indexes.into_iter().map(|index| link.parts.get(index).cloned()).collect();
    parts.ok_or_else(|| {
        Error::new(Kind::Damaged, format!("backup.json of {} names a part that it does not list", link.id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_give_no_more_of_a_file_together_than_there_is_in_one() {
        // Given a large file that was written anew between all backups, and a small one
        let path = |name: &str| FilePath::parse(name.as_bytes()).unwrap();
        let (large, small) = (path("base/5/16384"), path("base/5/16385"));
        let mut given = Given::default();
        let mut sum = 0;
        for goes_on in [true, true, true, false] {
            sum += given.add(large.view(), Given::FILE_BYTES_MAX / 4 * 3, goes_on);
            assert_eq!(given.add(small.view(), 8192, goes_on), 8192);
        }
        // Then it counts once, and the small one is not even remembered
        assert_eq!((sum, given.0.len()), (Given::FILE_BYTES_MAX, 1));
    }
}
