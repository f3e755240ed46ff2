//! One file, written at any place in it: around the system's cache where that is possible. A large file then costs no copy and no
//! memory, the disk begins at once and not when everything is synced, and what other programs have in the cache stays there.
//! Blocking calls.

use super::tree::Tree;
use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What file systems want of a place in the file, and of a length: their blocks, which are pages of memory (`man 2 open`, `O_DIRECT`).
const BLOCK_BYTES: usize = 4096;

/// What disks want of a place in memory. Contents begin at multiples of it in every archive.
const MEMORY_ALIGNMENT: usize = 512;

/// Fewer bytes at once are for the cache: each write around it waits for the disk.
const DIRECT_BYTES_MIN: usize = 1 << 20;

/// Makes `buffer` long enough for `bytes` at a place in memory from which a disk can be written, whatever is in them.
/// Returns that place in the buffer.
pub(super) fn align(buffer: &mut Vec<u8>, bytes: usize) -> usize {
    let needed = bytes + BLOCK_BYTES;
    if buffer.len() < needed {
        buffer.reserve_exact(needed - buffer.len());
        buffer.resize(needed, 0);
    }
    buffer.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES)
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct FileWriter {
    path: PathBuf,
    file: File,
    direct: Direct,
}

/// The same file, around the cache.
#[derive(Debug)]
enum Direct {
    NotTried,
    Open(File),
    /// The file system or the disk does not take that.
    Impossible,
}

impl FileWriter {
    /// Opens a file that will have so many bytes; it may be there already. What nobody writes is a hole, and reads as zeros.
    /// With `mode`, sets owner and permissions.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if no file can have so many; else what the disk says.
    pub(super) fn create(tree: &Tree, path: &Path, file_bytes: u64, mode: Option<u32>) -> Result<FileWriter> {
        let writer = FileWriter::open(tree, path, mode)?;
        writer.set_len(file_bytes).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::FileTooLarge => {
                Error::new(Kind::Damaged, format!("{} cannot have {file_bytes} bytes", path.display())).because(error)
            }
            _ => Error::local("write", path, error),
        })?;
        Ok(writer)
    }

    /// Opens a file whose length others see to.
    pub(super) fn open(tree: &Tree, path: &Path, mode: Option<u32>) -> Result<FileWriter> {
        Ok(FileWriter { path: path.to_owned(), file: tree.open(path, mode)?, direct: Direct::NotTried })
    }

    /// Writes that make a file longer wait for each other, and so does a change of its length, even to what it is. So do, on ext4 and
    /// XFS, writes around the cache into a hole, of which a large file therefore has none.
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let found = self.file.metadata()?.len();
        if found < bytes && bytes >= DIRECT_BYTES_MIN as u64 && reserve(&self.file, bytes)? {
            return Ok(());
        }
        match found == bytes {
            true => Ok(()),
            false => self.file.set_len(bytes),
        }
    }

    /// Writes all of `bytes` at `offset`.
    pub(super) fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Some((head, blocks)) = blocks_in(bytes, offset) else { return self.file.write_all_at(bytes, offset) };
        self.file.write_all_at(&bytes[..head], offset)?;
        let done = head + self.write_direct(&bytes[head..head + blocks], offset + head as u64);
        self.file.write_all_at(&bytes[done..], offset + done as u64)
    }

    /// Writes whole blocks, and says how many bytes of them: what is left is for the cache.
    fn write_direct(&mut self, blocks: &[u8], offset: u64) -> usize {
        if matches!(self.direct, Direct::NotTried) {
            self.direct = open_direct(&self.path, &self.file).map_or(Direct::Impossible, Direct::Open);
        }
        let mut done = 0;
        while let Direct::Open(file) = &self.direct
            && done < blocks.len()
        {
            match file.write_at(&blocks[done..], offset + done as u64) {
                Ok(bytes) if bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) => done += bytes,
                Ok(bytes) => return done + bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A disk that wants larger blocks, or other places in memory, says so in many ways. One that is full or broken
                // says it again when the cache is written.
                Err(_) => self.direct = Direct::Impossible,
            }
        }
        done
    }
}

/// Makes a file of so many bytes that has its place on the disk; false if this file system cannot.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    let Ok(length) = bytes.try_into() else { return Ok(false) };
    loop {
        return match fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(true),
            Err(Errno::EINTR) => continue,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Opens `file`, which is at `path`, once more, to write around the cache.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path, file: &File) -> Option<File> {
    use nix::fcntl::OFlag;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    // Whoever owns the directory may have put something else there.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_DIRECT).bits();
    let direct = File::options().write(true).custom_flags(flags).open(path).ok()?;
    let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
    (identity(&direct)? == identity(file)?).then_some(direct)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path, _: &File) -> Option<File> {
    None
}

/// Where the whole blocks in `bytes` begin, which lie at `offset` in the file, and how long they are; `None` if there are
/// few, or they lie at a place in memory that no disk takes.
fn blocks_in(bytes: &[u8], offset: u64) -> Option<(usize, usize)> {
    let head = (offset.checked_next_multiple_of(BLOCK_BYTES as u64)? - offset) as usize;
    let rest = bytes.get(head..)?;
    let blocks = rest.len() / BLOCK_BYTES * BLOCK_BYTES;
    (blocks >= DIRECT_BYTES_MIN && rest.as_ptr().align_offset(MEMORY_ALIGNMENT) == 0).then_some((head, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of zeros, written around the cache if this file system can.
    fn writer(path: &Path, bytes: u64) -> FileWriter {
        let file = File::create(path).unwrap();
        let writer = FileWriter { path: path.to_owned(), file, direct: Direct::NotTried };
        writer.set_len(bytes).unwrap();
        writer
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(bytes as u64);
        std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
    }

    #[test]
    fn a_file_is_what_was_written_wherever_its_pieces_begin_and_whatever_their_order() {
        // Given a file, in pieces as they lie in the frames of an archive: behind a header, cut anywhere at multiples of 512
        let directory = tempfile::tempdir().unwrap();
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let contents = noise(random.usize(1..1000) * 8192);
            let mut cuts: Vec<usize> =
                (0..random.usize(1..9)).map(|_| random.usize(..contents.len()) / 512 * 512).collect();
            cuts.extend([0, contents.len()]);
            cuts.sort_unstable();
            let mut pieces: Vec<(usize, usize)> = cuts.windows(2).map(|cut| (cut[0], cut[1])).collect();
            random.shuffle(&mut pieces);
            let path = directory.path().join(seed.to_string());
            let mut writer = writer(&path, contents.len() as u64);
            // When they are written
            let mut buffer = Vec::new();
            for (start, end) in pieces {
                let header = align(&mut buffer, contents.len() + 4096) + random.usize(..8) * 512;
                buffer.resize(header, 0);
                buffer.extend_from_slice(&contents[start..end]);
                writer.write_all_at(&buffer[header..], start as u64).unwrap();
            }
            // Then the file has them all.
            assert!(std::fs::read(&path).unwrap() == contents, "with seed {seed}");
        }
    }

    #[test]
    fn whole_blocks_in_aligned_memory_go_around_the_cache() {
        const MIB: usize = 1 << 20;
        let mut buffer = Vec::new();
        let start = align(&mut buffer, 2 * MIB);
        buffer.truncate(start);
        buffer.extend_from_slice(&noise(2 * MIB));
        let frame = &buffer[start..];
        assert_eq!(blocks_in(&frame[512..], 0), Some((0, 2 * MIB - 4096)), "behind a header");
        assert_eq!(blocks_in(frame, 4 << 20), Some((0, 2 * MIB)));
        assert_eq!(blocks_in(frame, 3584), Some((512, 2 * MIB - 4096)), "the page before is completed first");
        assert_eq!(blocks_in(&frame[1..], 0), None, "no disk takes that");
        assert_eq!(blocks_in(&frame[..8192], 0), None, "not worth waiting for the disk");
        assert_eq!(blocks_in(&frame[..100], 1000), None);
        assert_eq!(blocks_in(frame, u64::MAX - 5), None);
    }

    #[test]
    fn what_the_disk_does_not_take_around_the_cache_is_left_for_it() {
        // Given a place in the file that no disk with blocks takes
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut writer = writer(&path, 3 * 4096);
        let mut buffer = Vec::new();
        let start = align(&mut buffer, 8192);
        buffer.truncate(start);
        buffer.extend_from_slice(&noise(8192));
        // When it is tried, then either all was written, or nothing, and it is not tried again.
        let done = writer.write_direct(&buffer[start..], 1);
        assert!(done == 8192 || done == 0 && matches!(writer.direct, Direct::Impossible), "{done} bytes");
        writer.write_all_at(&buffer[start..], 1).unwrap();
        assert!(std::fs::read(&path).unwrap()[1..8193] == buffer[start..]);
    }

    #[test]
    fn a_file_that_was_put_in_the_place_of_ours_is_not_written_to() {
        // Given a file, and another one that took its name
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut writer = writer(&path, 2 << 20);
        let (ours, theirs) = (directory.path().join("ours"), vec![7; 2 << 20]);
        std::fs::rename(&path, &ours).unwrap();
        std::fs::write(&path, &theirs).unwrap();
        // When ours is written, then theirs stays as it is.
        let mut buffer = Vec::new();
        let start = align(&mut buffer, 2 << 20);
        buffer.truncate(start);
        buffer.extend_from_slice(&noise(2 << 20));
        writer.write_all_at(&buffer[start..], 0).unwrap();
        assert!(std::fs::read(&path).unwrap() == theirs);
        assert!(std::fs::read(&ours).unwrap() == buffer[start..]);
    }
}
