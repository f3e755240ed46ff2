//! How a file becomes an object: temporary name, write, fsync, `link`, fsync of every directory above.
//!
//! `link` and not `rename`: it refuses a name that is taken, in one step, on every file system and over NFS.

use super::super::{Body, Created};
use super::is_directory;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where files grow, on the same file system as the objects. No object's name begins with a dot.
pub(super) const TEMP_DIRECTORY: &str = ".tmp";
/// A temporary file that nobody wrote to for this long has lost its writer.
const TEMP_IS_STALE: Duration = Duration::from_secs(24 * 3600);
/// How often a directory may vanish between its making and the link, by somebody's deleting, before it is an error.
const LINK_ATTEMPTS: u32 = 100;
/// Backups hold everything the database holds: nothing for others.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// Everything that changes the directory.
#[derive(Debug)]
pub(super) struct Writer {
    root: PathBuf,
    next_temp: AtomicU64,
    stale_removed: OnceLock<()>,
    wrote: AtomicBool,
    settled: AtomicBool,
}

impl Writer {
    pub(super) fn new(root: PathBuf) -> Writer {
        Writer {
            root,
            next_temp: AtomicU64::new(0),
            stale_removed: OnceLock::new(),
            wrote: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        }
    }

    /// A new empty file that is removed when it is dropped.
    pub(super) fn open_temp(&self) -> io::Result<TempFile> {
        let directory = self.root.join(TEMP_DIRECTORY);
        match DirBuilder::new().mode(DIRECTORY_MODE).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        loop {
            // Process ids repeat (in containers all are 1): a name that is taken belongs to another, so the next one.
            let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path) {
                Ok(file) => {
                    let temp = TempFile { path, file, is_removed: AtomicBool::new(false) };
                    self.stale_removed.get_or_init(|| remove_stale(&directory, &temp.file));
                    return Ok(temp);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the file its name if that is free. Says either answer only when it outlives a power cut.
    pub(super) fn publish(&self, temp: &TempFile, key: &str) -> io::Result<Created> {
        temp.file.sync_all()?;
        self.wrote.store(true, Ordering::Release);
        let created = self.link(&temp.path, key);
        // Also when the name was taken (its writer may not have come to this yet, and our caller may find the bytes
        // equal and take them as stored) and also directories that were there (for the same reason).
        created.and_then(|created| self.sync_directories(key).map(|()| created)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => io::Error::new(ErrorKind::ResourceBusy, "somebody deletes there at the same time"),
            _ => error,
        })
    }

    fn link(&self, temp: &Path, key: &str) -> io::Result<Created> {
        let target = self.root.join(key);
        let mut attempt = 1;
        loop {
            let linked = self.make_parents(key).and_then(|()| fs::hard_link(temp, &target));
            match linked {
                Ok(()) => return Ok(Created::New),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if is_directory(&target) {
                        return Err(io::Error::new(ErrorKind::IsADirectory, "there is a directory of that name"));
                    }
                    return Ok(Created::Exists);
                }
                // Somebody deleted the last object of that directory and the directory with it.
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < LINK_ATTEMPTS => attempt += 1,
                Err(error) if error.kind() == ErrorKind::NotADirectory => {
                    return Err(io::Error::new(ErrorKind::IsADirectory, "an object has the name of its directory"));
                }
                Err(error) if is_without_links(&error) => {
                    return Err(io::Error::new(ErrorKind::Unsupported, "this file system has no hard links"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn make_parents(&self, key: &str) -> io::Result<()> {
        match key.rsplit_once('/') {
            Some((parent, _)) => {
                let path = self.root.join(parent);
                match DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path) {
                    // Also of a directory that was there and gone again when it was looked at, which is no object.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(if self.is_below_object(parent) {
                        ErrorKind::NotADirectory.into()
                    } else {
                        ErrorKind::NotFound.into()
                    }),
                    made => made,
                }
            }
            None => Ok(()),
        }
    }

    /// True if `directory`, or one that it is in, is a file.
    fn is_below_object(&self, directory: &str) -> bool {
        Path::new(directory)
            .ancestors()
            .any(|path| fs::metadata(self.root.join(path)).is_ok_and(|metadata| !metadata.is_dir()))
    }

    fn sync_directories(&self, key: &str) -> io::Result<()> {
        let mut path = key;
        while let Some((parent, _)) = path.rsplit_once('/') {
            File::open(self.root.join(parent))?.sync_all()?;
            path = parent;
        }
        File::open(&self.root)?.sync_all()
    }

    /// Removes an object and the directories that it leaves empty, so that a listing has nothing to pass over.
    pub(super) fn delete(&self, key: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(key)) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                // Gone already, unless the whole root is.
                return if is_directory(&self.root) { Ok(()) } else { Err(error) };
            }
            Err(error) => return Err(error),
        }
        let mut path = key;
        while let Some((parent, _)) = path.rsplit_once('/') {
            if fs::remove_dir(self.root.join(parent)).is_err() {
                break;
            }
            path = parent;
        }
        Ok(())
    }

    /// True once it did.
    #[cfg(test)]
    pub(super) fn has_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Makes durable what an earlier life of this program linked and could not sync any more, before a process that
    /// writes reads in a listing that it is stored. Readers do not pay for it; a writer does once.
    pub(super) fn settle(&self) -> io::Result<()> {
        if !self.wrote.load(Ordering::Acquire) || self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        sync_file_system(&self.root)?;
        self.settled.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn sync_file_system(root: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(root)?)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_file_system(_: &Path) -> io::Result<()> {
    nix::unistd::sync();
    Ok(())
}

/// `link` on FAT, on many FUSE file systems (EPERM) or on others (ENOTSUP).
fn is_without_links(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS))
}

/// Removes what killed writers left. The age is by the file system's own clock, read off a file made just now. Best
/// effort: what cannot be removed is in nobody's way.
fn remove_stale(directory: &Path, fresh: &File) {
    let Ok(now) = fresh.metadata().and_then(|metadata| metadata.modified()) else { return };
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        if age.is_some_and(|age| age > TEMP_IS_STALE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file under a temporary name. Dropping it removes that name, if it is still there; the object linked to it stays.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    file: File,
    is_removed: AtomicBool,
}

impl TempFile {
    /// Writes the pieces one behind the other from `start` on.
    pub(super) fn write_at(&self, body: &Body, mut start: u64) -> io::Result<()> {
        for piece in body.pieces() {
            self.file.write_all_at(piece, start)?;
            start += piece.len() as u64;
        }
        Ok(())
    }

    /// Cuts off what a piece that failed may have left behind the last good one.
    pub(super) fn cut(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Removes the temporary name. Best effort: one that stays is stale one day.
    pub(super) fn remove(&self) {
        if !self.is_removed.swap(true, Ordering::AcqRel) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        self.remove();
    }
}
