//! Reads the files of a data directory in the order of an archive, several pieces at once, and makes of them the bytes of the
//! archive. Memory: [`READS_AT_ONCE`] pieces of [`PIECE_BYTES`]; as many open files, and those that come next.

use super::super::pages::{Numbering, PAGE_BYTES, PageChecks, Pages};
use super::walk::{self, Found, Place, Walk};
use crate::error::{Error, Kind, Result};
use crate::repository::tar::{BLOCK, NewEntry};
use crate::repository::{FilePath, RelationFile};
use crate::runtime;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use nix::fcntl::OFlag;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// So many reads keep the queue of a disk full.
const READS_AT_ONCE: usize = 8;

/// Of a file at once: whole pages.
const PIECE_BYTES: u64 = 1 << 20;

/// Files that are opened at once, ahead of those that are read.
const FILES_OPENED: usize = 32;

/// After this a page that was being written is written.
const MOMENT: Duration = Duration::from_millis(100);

const _: () = assert!(PIECE_BYTES.is_multiple_of(PAGE_BYTES as u64));

/// A file that is open, with what its header says.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    /// On the disk.
    place: PathBuf,
    /// Below the data directory.
    pub(super) path: FilePath,
    /// So much will be read of it, whatever becomes of it meanwhile.
    pub(super) bytes: u64,
    pub(super) mtime_seconds: i64,
    header: [u8; BLOCK],
}

/// What an archive consists of, in order.
#[derive(Debug)]
enum Piece {
    Header(Bytes),
    Special(PathBuf),
    /// From this position on.
    Content(Arc<OpenFile>, u64),
}

/// The same, read.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Bytes of the archive that belong to no file.
    Header(Bytes),
    /// This was left out: it is neither a file nor a directory.
    Special(PathBuf),
    /// A piece of a file.
    Content {
        /// The file.
        file: Arc<OpenFile>,
        /// Bytes of the archive: its header before the first piece, zeros behind the last.
        tar: Bytes,
        /// How many of them are the file's.
        bytes: u64,
        /// The CRC-32C of those.
        crc32c: u32,
        /// True for the last piece.
        is_last: bool,
        /// Pages that were wrong twice.
        rejected: usize,
    },
}

/// What `walk` finds, read, as fast as it is asked for and a little ahead. Dropping it stops it.
pub(super) fn read(walk: Walk, checks: Option<PageChecks>) -> impl Stream<Item = Result<Chunk>> + Send {
    let pieces = stream::unfold(Some(walk), async |walk| {
        let mut walk = walk?;
        match runtime::blocking(move || next_pieces(&mut walk).map(|pieces| (pieces, walk))).await.flatten() {
            Ok((pieces, _)) if pieces.is_empty() => None,
            Ok((pieces, walk)) => Some((stream::iter(pieces).map(Ok).left_stream(), Some(walk))),
            Err(error) => Some((stream::iter([Err(error)]).right_stream(), None)),
        }
    });
    pieces.flatten().map(move |piece| read_piece(piece, checks)).buffered(READS_AT_ONCE)
}

/// Goes on for so many files; nothing: there are no more.
fn next_pieces(walk: &mut Walk) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for _ in 0..FILES_OPENED {
        let found = walk.next_found().map_err(|(path, error)| unreadable(&path, error))?;
        match found {
            None => break,
            Some(Found::Directory(place)) => {
                pieces.push(Piece::Header(Bytes::copy_from_slice(&header(&place.name, true, &place.metadata)?)))
            }
            Some(Found::Special(place)) => pieces.push(Piece::Special(place.path)),
            Some(Found::File(place)) => {
                if let Some(file) = open(walk, place)? {
                    let offsets = (0..file.bytes.max(1)).step_by(PIECE_BYTES as usize);
                    pieces.extend(offsets.map(|offset| Piece::Content(Arc::clone(&file), offset)));
                }
            }
        }
    }
    Ok(pieces)
}

/// `None`: it is gone.
fn open(walk: &Walk, place: Place) -> Result<Option<Arc<OpenFile>>> {
    // A link or a pipe that has taken its place is nothing that PostgreSQL put there.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(&place.path);
    let (metadata, file) = match opened.and_then(|file| Ok((file.metadata()?, file))) {
        Ok((metadata, _)) if !metadata.is_file() => return Ok(None),
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&place.path, error)),
    };
    let path = walk::path_of(walk.archive(), &place.name).ok_or_else(|| unnameable(&place.name))?;
    let header = header(&place.name, false, &metadata)?;
    let (bytes, mtime_seconds) = (metadata.len(), metadata.mtime());
    Ok(Some(Arc::new(OpenFile { file, place: place.path, path, bytes, mtime_seconds, header })))
}

/// The header of an entry with these permissions and this length.
///
/// # Errors
/// If its name is too long for an archive, as for the server.
pub(super) fn header(name: &[u8], is_directory: bool, metadata: &Metadata) -> Result<[u8; BLOCK]> {
    /// Of a directory that stands for a link.
    const MODE: u32 = 0o700;
    let entry = NewEntry {
        name,
        is_directory,
        size_bytes: if is_directory { 0 } else { metadata.len() },
        mode: if metadata.is_symlink() { MODE } else { metadata.mode() },
        ids: (metadata.uid(), metadata.gid()),
        mtime_seconds: metadata.mtime().try_into().unwrap_or_default(),
    };
    entry.header().ok_or_else(|| unnameable(name))
}

fn unnameable(name: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(name);
    Error::new(Kind::Refused, format!("{shown} in the data directory has a name that a base backup cannot hold"))
        .hint("Names have at most 99 bytes in a base backup, PostgreSQL's own too. Is this file PostgreSQL's?")
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    let shown = Error::local("read", path, error);
    match is_denied {
        true => shown.hint(
            "Run this as the user that the server runs as, or as a member of its group in a cluster that was made with \
             initdb --allow-group-access.",
        ),
        false => shown,
    }
}

async fn read_piece(piece: Result<Piece>, checks: Option<PageChecks>) -> Result<Chunk> {
    let (file, offset) = match piece? {
        Piece::Header(header) => return Ok(Chunk::Header(header)),
        Piece::Special(path) => return Ok(Chunk::Special(path)),
        Piece::Content(file, offset) => (file, offset),
    };
    let mut content = runtime::blocking(move || Content::read(file, offset, checks)).await??;
    if !content.rejected.is_empty() {
        // Perhaps PostgreSQL was writing them: another look, as `basebackup.c` takes it.
        tokio::time::sleep(MOMENT).await;
        content = runtime::blocking(move || content.read_again()).await??;
    }
    Ok(content.into_chunk())
}

/// A piece of a file, as bytes of the archive.
struct Content {
    file: Arc<OpenFile>,
    offset: u64,
    bytes: usize,
    tar: Vec<u8>,
    /// Where the file's bytes begin in there.
    start: usize,
    crc32c: u32,
    checks: Option<(PageChecks, Pages)>,
    /// The numbers of its pages, in this piece, that are not what PostgreSQL writes.
    rejected: Vec<usize>,
}

impl Content {
    fn read(file: Arc<OpenFile>, offset: u64, checks: Option<PageChecks>) -> Result<Content> {
        let bytes = (file.bytes - offset).min(PIECE_BYTES) as usize;
        let mut tar = Vec::with_capacity(bytes + 2 * BLOCK);
        if offset == 0 {
            tar.extend_from_slice(&file.header);
        }
        let start = tar.len();
        tar.resize(start + bytes, 0);
        read_at(&file, &mut tar[start..], offset)?;
        let first = (offset / PAGE_BYTES as u64) as u32;
        let pages = Numbering::of(&file.path).map(|numbering| Pages { first, head: Vec::new(), numbering });
        let mut content =
            Content { file, offset, bytes, tar, start, crc32c: 0, checks: checks.zip(pages), rejected: Vec::new() };
        content.check();
        Ok(content)
    }

    /// Reads the pages that were rejected once more.
    fn read_again(mut self) -> Result<Content> {
        for page in std::mem::take(&mut self.rejected) {
            let within = page * PAGE_BYTES;
            let place = &mut self.tar[self.start + within..][..PAGE_BYTES];
            read_at(&self.file, place, self.offset + within as u64)?;
        }
        self.check();
        Ok(self)
    }

    fn check(&mut self) {
        let content = &self.tar[self.start..][..self.bytes];
        if let Some((checks, pages)) = &self.checks {
            let in_file = RelationFile::parse(&self.file.path).map_or(0, |file| file.first_block());
            let numbers = checks.rejected(pages, content).into_iter();
            self.rejected =
                numbers.map(|number| number.wrapping_sub(in_file).wrapping_sub(pages.first) as usize).collect();
        }
        self.crc32c = crc32c::crc32c(content);
    }

    fn into_chunk(mut self) -> Chunk {
        let is_last = self.offset + self.bytes as u64 == self.file.bytes;
        if is_last {
            self.tar.resize(self.tar.len().next_multiple_of(BLOCK), 0);
        }
        let (bytes, rejected) = (self.bytes as u64, self.rejected.len());
        Chunk::Content { file: self.file, tar: self.tar.into(), bytes, crc32c: self.crc32c, is_last, rejected }
    }
}

/// Fills `place` from `offset` on, with zeros from where the file has become shorter: the WAL says what becomes of that.
fn read_at(file: &OpenFile, place: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < place.len() {
        match file.file.read_at(&mut place[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&file.place, error)),
        }
    }
    place[done..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::pages::testing::page;
    use super::*;
    use crate::repository::tar::{EntryKind, TarEvent, TarReader};
    use crate::wal::Lsn;
    use std::collections::BTreeMap;
    use std::collections::HashSet;
    use std::fs;

    fn checks() -> PageChecks {
        let settings = [("block_size", "8192"), ("segment_size", "1GB"), ("data_checksums", "on")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        PageChecks::new(&BTreeMap::from(settings), Lsn(0x2000)).unwrap()
    }

    /// The contents of the files of an archive, and each as its chunks have it: length and CRC-32C.
    async fn contents(walk: Walk) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, (u64, u32)>) {
        let (mut reader, mut found, mut sums) = (TarReader::new(), BTreeMap::new(), BTreeMap::new());
        let mut chunks = Box::pin(read(walk, Some(checks())));
        let mut open = String::new();
        while let Some(chunk) = chunks.next().await {
            let tar = match chunk.unwrap() {
                Chunk::Header(tar) => tar,
                Chunk::Special(path) => panic!("{}", path.display()),
                Chunk::Content { file, tar, bytes, crc32c, is_last, .. } => {
                    let (so_far, crc) = sums.entry(file.path.to_string()).or_insert((0, 0));
                    (*so_far, *crc) = (*so_far + bytes, crc32c::crc32c_combine(*crc, crc32c, bytes as usize));
                    assert_eq!(is_last, *so_far == file.bytes, "{}", file.path);
                    tar
                }
            };
            reader.feed(tar);
            while let Some(event) = reader.next_event().unwrap() {
                match event {
                    TarEvent::Header(header) if header.kind == EntryKind::File => {
                        open = header.path.to_string();
                        found.insert(open.clone(), Vec::new());
                    }
                    TarEvent::Content(bytes) => found.get_mut(&open).unwrap().extend_from_slice(&bytes),
                    _ => {}
                }
            }
        }
        reader.finish().unwrap();
        (found, sums)
    }

    #[tokio::test]
    async fn files_of_all_lengths_come_whole_and_with_their_checksums() {
        // Given more files than are opened at once, empty ones, and some that end at and around the borders of pieces
        let place = tempfile::tempdir().unwrap();
        let piece = PIECE_BYTES as usize;
        let lengths = [0, 1, 511, 512, 513, piece - 1, piece, piece + 1, 3 * piece + 700];
        let mut expected = BTreeMap::new();
        for number in 0..FILES_OPENED * 2 + 3 {
            let bytes = lengths[number % lengths.len()];
            let content: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251 + number) as u8).collect();
            let name = format!("{number:03}");
            fs::write(place.path().join(&name), &content).unwrap();
            expected.insert(name, content);
        }
        // Then the archive has them all, and each checksum is that of the contents.
        let (found, sums) = contents(Walk::of_base(place.path(), HashSet::new()).unwrap()).await;
        assert!(found == expected, "contents differ");
        for (name, content) in &expected {
            assert_eq!(sums[name], (content.len() as u64, crc32c::crc32c(content)), "{name}");
        }
    }

    fn content_of(place: &Path, content: &[u8]) -> (PathBuf, Arc<OpenFile>) {
        let path = place.join("base/5/16384.1");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let mut pieces = next_pieces(&mut Walk::of_base(place, HashSet::new()).unwrap()).unwrap();
        let Some(Piece::Content(file, 0)) = pieces.pop() else { panic!("{pieces:?}") };
        (path, file)
    }

    #[test]
    fn a_file_keeps_the_length_of_its_header_whatever_becomes_of_it() {
        let place = tempfile::tempdir().unwrap();
        let (path, file) = content_of(place.path(), &[7; 20_000]);
        for (now, expected) in [(vec![7; 10_000], 10_000), (Vec::new(), 0), (vec![7; 30_000], 20_000)] {
            fs::write(&path, &now).unwrap();
            let content = Content::read(Arc::clone(&file), 0, None).unwrap();
            let read = &content.tar[content.start..];
            assert_eq!(read.len(), 20_000);
            assert!(read[..expected].iter().all(|&byte| byte == 7) && read[expected..].iter().all(|&byte| byte == 0));
            assert_eq!(content.crc32c, crc32c::crc32c(read));
        }
        // Also once it is gone.
        fs::remove_file(&path).unwrap();
        assert_eq!(Content::read(file, 0, None).unwrap().tar.len(), BLOCK + 20_000);
    }

    #[test]
    fn a_page_that_was_caught_half_written_is_read_again() {
        // Given two pages of the second file of a relation, of which the second is torn
        let place = tempfile::tempdir().unwrap();
        let first = 131_072;
        let good = [page(first, 0x1000, 1), page(first + 1, 0x1000, 2)].concat();
        let mut torn = good.clone();
        torn[PAGE_BYTES + 5000..].fill(9);
        let (path, file) = content_of(place.path(), &torn);
        let content = Content::read(Arc::clone(&file), 0, Some(checks())).unwrap();
        assert_eq!(content.rejected, [1]);
        // When it is whole a moment later, then it is taken as it is now
        fs::write(&path, &good).unwrap();
        let content = content.read_again().unwrap();
        assert!(content.rejected.is_empty());
        assert!(content.tar[content.start..] == good);
        assert_eq!(content.crc32c, crc32c::crc32c(&good));
        // and if it is not, it is told.
        fs::write(&path, &torn).unwrap();
        let content = Content::read(file, 0, Some(checks())).unwrap().read_again().unwrap();
        let Chunk::Content { rejected, .. } = content.into_chunk() else { panic!() };
        assert_eq!(rejected, 1);
    }
}
