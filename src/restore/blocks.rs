//! Writes the blocks that one backup of a chain gives to a file. Blocking calls.

use super::combine::{Combination, Content, Listed};
use super::file_writer::FileWriter;
use super::tree::Tree;
use crate::error::{Error, Kind, Result};
use crate::repository::FilePath;
use crate::repository::incremental::{BLOCK_BYTES, HeaderReader, IncrementalError};
use std::collections::HashMap;
use std::sync::Arc;

/// One backup of a chain, as the extraction of its parts needs to know it.
#[derive(Clone, Debug)]
pub(super) struct Level {
    /// It has incremental files; the last of a chain has none.
    pub(super) is_incremental: bool,
    /// What newer backups left open; `None` for the newest, which gives all that it has.
    pub(super) wanted: Option<Arc<Combination>>,
    /// Headers of incremental files that go on in other parts, by the paths of the whole files.
    pub(super) listed: Arc<HashMap<FilePath, Listed>>,
}

/// See the head of the file.
pub(super) struct BlockWriter {
    level: Arc<Level>,
    whole: FilePath,
    source: Source,
    /// Permissions, where it is made here.
    mode: Option<u32>,
    file: Option<FileWriter>,
}

enum Source {
    /// An incremental file whose header is not complete.
    Begun(HeaderReader),
    Known(Content),
}

impl BlockWriter {
    /// For the stretch of a member of `level` that begins at `offset`; `whole` is the path of the file that it belongs to.
    pub(super) fn new(
        level: Arc<Level>,
        whole: FilePath,
        is_incremental: bool,
        (offset, member_bytes): (u64, u64),
        mode: Option<u32>,
    ) -> Result<BlockWriter> {
        let source = match (is_incremental, offset) {
            (false, _) => Source::Known(Content::Whole((member_bytes / BLOCK_BYTES).try_into().unwrap_or(u32::MAX))),
            (true, 0) => Source::Begun(HeaderReader::new(member_bytes)),
            (true, _) => {
                let listed = level.listed.get(&whole).ok_or_else(|| {
                    Error::new(Kind::Damaged, format!("a part begins inside {whole}, which does not go on in another"))
                })?;
                Source::Known(Content::Listed(Arc::new(listed.header())))
            }
        };
        Ok(BlockWriter { level, whole, source, mode, file: None })
    }

    /// Writes what belongs into the file of `bytes`, which lie at `offset` in the member. Says what the member lists, once.
    pub(super) fn take(&mut self, tree: &Tree, offset: u64, bytes: &[u8]) -> Result<Option<Listed>> {
        let mut found = None;
        if let Source::Begun(reader) = &mut self.source {
            reader.push(bytes).map_err(|error| unusable(&self.whole, error))?;
            let Some(header) = reader.header().cloned() else { return Ok(None) };
            if self.level.wanted.is_none() {
                let (path, bytes) = (tree.path_of(&self.whole), u64::from(header.whole_blocks()) * BLOCK_BYTES);
                self.file = Some(FileWriter::create(tree, &path, bytes, self.mode)?);
            }
            found = Some(Listed::of(&header));
            self.source = Source::Known(Content::Listed(header));
        }
        let Source::Known(content) = &self.source else { return Ok(found) };
        let assembly = match &self.level.wanted {
            None => None,
            Some(wanted) => match wanted.file(&self.whole) {
                Some(assembly) => Some(assembly),
                None => return Ok(found),
            },
        };
        for (range, place) in content.places(assembly, offset, bytes.len()) {
            let path = tree.path_of(&self.whole);
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(FileWriter::open(tree, &path, None)?),
            };
            file.write_all_at(&bytes[range], place).map_err(|error| Error::local("write", &path, error))?;
        }
        Ok(found)
    }

    /// Says that the stretch ends here.
    ///
    /// # Errors
    /// If the member's header was not complete: a large one's is in its first part.
    pub(super) fn finish(&self) -> Result<()> {
        match &self.source {
            Source::Known(_) => Ok(()),
            Source::Begun(_) => Err(cut(&self.whole)),
        }
    }

    /// The path of the file that it writes to.
    pub(super) fn whole(&self) -> &FilePath {
        &self.whole
    }
}

/// Makes a file of zeros that is as long as the whole one, which the header of an incremental one tells.
pub(super) struct ZerosWriter {
    whole: FilePath,
    reader: HeaderReader,
}

impl ZerosWriter {
    /// For the file at `whole`, of which a member has the changed blocks.
    pub(super) fn new(whole: FilePath, member_bytes: u64) -> ZerosWriter {
        ZerosWriter { whole, reader: HeaderReader::new(member_bytes) }
    }

    /// Takes the next bytes of the member.
    pub(super) fn take(&mut self, tree: &Tree, bytes: &[u8]) -> Result<()> {
        if self.reader.header().is_some() {
            return Ok(());
        }
        self.reader.push(bytes).map_err(|error| unusable(&self.whole, error))?;
        match self.reader.header() {
            Some(header) => tree.put_zeros(&tree.path_of(&self.whole), u64::from(header.whole_blocks()) * BLOCK_BYTES),
            None => Ok(()),
        }
    }

    /// Says that the member, or the part that it begins in, ends here.
    ///
    /// # Errors
    /// If its header was not complete.
    pub(super) fn finish(&self) -> Result<()> {
        self.reader.header().map(|_| ()).ok_or_else(|| cut(&self.whole))
    }
}

fn unusable(whole: &FilePath, error: IncrementalError) -> Error {
    Error::new(Kind::Damaged, format!("{whole} cannot be used")).because(error)
}

fn cut(whole: &FilePath) -> Error {
    Error::new(Kind::Damaged, format!("{whole} cannot be used: its header is cut"))
}
