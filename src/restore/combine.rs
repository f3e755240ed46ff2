//! Which blocks of which backup make up the files of an incremental one. Pure.
//!
//! Backups are taken in from the newest to the oldest. Of a file that the newest has only changed blocks of, each older one
//! gives the blocks that no newer one gave, as far as the file was never cut below them since; a backup that has it whole
//! is the last that is asked. What nobody gives is zeros (`reconstruct.c` of `pg_combinebackup`, which looks only at
//! where the newest was cut: a block from before an earlier cut would come back).

use super::number_set::NumberSet;
use crate::repository::incremental::{BLOCK_BYTES, IncrementalHeader};
use crate::repository::{BackupFiles, FilePath, FilePathRef, whole_path};
use std::ops::Range;
use std::sync::Arc;

/// What an incremental file lists, kept small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    truncation_block: u32,
    blocks: NumberSet,
}

impl Listed {
    pub(super) fn of(header: &IncrementalHeader) -> Listed {
        let blocks = header.blocks.iter().map(|block| *block as usize).collect();
        Listed { truncation_block: header.truncation_block, blocks }
    }

    /// Of a file whose header was not read: anything may be left to older backups.
    pub(super) fn unread() -> Listed {
        Listed { truncation_block: u32::MAX, blocks: NumberSet::default() }
    }

    /// The header again, for the rest of the file.
    pub(super) fn header(&self) -> IncrementalHeader {
        IncrementalHeader {
            truncation_block: self.truncation_block,
            blocks: self.blocks.iter().map(|block| block as u32).collect(),
        }
    }
}

/// A file being put together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Assembly {
    /// Blocks of older backups count below this one alone.
    limit: u32,
    /// What newer backups gave.
    given: NumberSet,
}

impl Assembly {
    /// True if a block of the next older backup belongs into the file.
    fn wants(&self, block: u32) -> bool {
        block < self.limit && !self.given.contains(block as usize)
    }
}

/// The files that are not complete, by the paths of the whole ones, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Combination {
    files: Vec<(FilePath, Assembly)>,
}

impl Combination {
    /// What the newest backup leaves to older ones.
    pub(super) fn of_newest(listed: Vec<(FilePath, Listed)>) -> Combination {
        let left = listed.into_iter().filter(|(_, listed)| listed.truncation_block > 0);
        let left = left.map(|(path, listed)| (path, Assembly { limit: listed.truncation_block, given: listed.blocks }));
        let mut files: Vec<_> = left.collect();
        files.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Combination { files }
    }

    /// True if no older backup is needed.
    pub(super) fn is_complete(&self) -> bool {
        self.files.is_empty()
    }

    fn place<'a>(&self, path: impl Into<FilePathRef<'a>>) -> Option<usize> {
        let path = path.into();
        self.files.binary_search_by(|(file, _)| file.view().cmp(&path)).ok()
    }

    /// A file, by the path of the whole one; `None` if it needs nothing more.
    pub(super) fn file(&self, path: &FilePath) -> Option<&Assembly> {
        self.place(path).map(|place| &self.files[place].1)
    }

    /// Finds what is needed of the next older backup: the places of its members in its list of files.
    ///
    /// # Errors
    /// A file that it should have and does not.
    pub(super) fn members(&self, files: &BackupFiles, is_incremental: bool) -> Result<NumberSet, FilePath> {
        let (mut found, mut members) = (NumberSet::default(), NumberSet::default());
        for (place, file) in files.iter().enumerate() {
            let whole = whole_path(file.path).filter(|_| is_incremental);
            let wanted = self.place(whole.as_ref().map_or(file.path, FilePath::view));
            if wanted.is_some_and(|wanted| found.insert(wanted)) {
                members.insert(place);
            }
        }
        match (0..self.files.len()).find(|wanted| !found.contains(*wanted)) {
            Some(missing) => Err(self.files[missing].0.clone()),
            None => Ok(members),
        }
    }

    /// The next older backup has given its blocks: of these files those that it lists, all of every other.
    pub(super) fn take_in(&mut self, listed: Vec<(FilePath, Listed)>) {
        let mut left = NumberSet::default();
        for (path, listed) in listed {
            let Some(place) = self.place(&path) else { continue };
            let assembly = &mut self.files[place].1;
            let limit = assembly.limit as usize;
            assembly.given.extend(listed.blocks.iter().filter(|block| *block < limit));
            // A file that was cut here, and then grew, has nothing from before in between.
            assembly.limit = assembly.limit.min(listed.truncation_block);
            if assembly.limit > 0 {
                left.insert(place);
            }
        }
        let mut place = 0..;
        self.files.retain(|_| place.next().is_some_and(|place| left.contains(place)));
    }
}

/// What a file of a backup is made of.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// So many whole blocks, from the first on.
    Whole(u32),
    /// A header and the blocks that it lists.
    Listed(Arc<IncrementalHeader>),
}

impl Content {
    /// The block that lies so many blocks behind the beginning.
    fn block_at(&self, index: u64) -> Option<u32> {
        match self {
            Content::Whole(blocks) => u32::try_from(index).ok().filter(|block| block < blocks),
            Content::Listed(header) => {
                let listed = index.checked_sub(header.bytes() / BLOCK_BYTES)?;
                header.blocks.get(usize::try_from(listed).ok()?).copied()
            }
        }
    }

    /// Where so many bytes at `offset` of it belong: which of them, and to which place in the whole file. All that there
    /// are for the newest backup; for an older one what `assembly` wants.
    pub(super) fn places(&self, assembly: Option<&Assembly>, offset: u64, bytes: usize) -> Vec<(Range<usize>, u64)> {
        let mut places: Vec<(Range<usize>, u64)> = Vec::new();
        let mut at = 0;
        while at < bytes {
            let (index, within) = ((offset + at as u64) / BLOCK_BYTES, (offset + at as u64) % BLOCK_BYTES);
            let end = bytes.min(at + (BLOCK_BYTES - within) as usize);
            let block = self.block_at(index).filter(|block| assembly.is_none_or(|assembly| assembly.wants(*block)));
            if let Some(block) = block {
                let place = u64::from(block) * BLOCK_BYTES + within;
                match places.last_mut() {
                    Some((range, start)) if range.end == at && *start + range.len() as u64 == place => range.end = end,
                    _ => places.push((at..end, place)),
                }
            }
            at = end;
        }
        places
    }
}

#[cfg(test)]
#[path = "combine_tests.rs"]
mod tests;
