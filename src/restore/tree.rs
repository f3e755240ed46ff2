//! Writes files and directories below one place, with owner and mode. Blocking calls.

use super::destination::{Destination, Owner};
use crate::error::{Error, Kind, Result};
use crate::repository::FilePathRef;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Directories that a server needs and that a backup may have no file in (`initdb.c`, `subdirs`; `basebackup.c`,
/// `excludeDirContents`): some come as empty ones in the tar stream, and are made for streams that lack one.
pub(super) const REQUIRED_DIRECTORIES: [&str; 19] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal/archive_status",
    "pg_xact",
];

/// May be a link to another disk.
pub(super) const WAL_DIRECTORY: &str = "pg_wal";

/// What a restore has written so far.
#[derive(Debug)]
pub(super) struct Tree {
    data: PathBuf,
    /// Held as long as anybody may write.
    lock: OnceLock<Flock<File>>,
    owner: Option<Owner>,
    directory_mode: u32,
    /// Directories known to be there.
    directories: Mutex<BTreeSet<PathBuf>>,
}

impl Tree {
    pub(super) fn new(destination: &Destination) -> Tree {
        Tree {
            data: destination.data.clone(),
            lock: OnceLock::new(),
            owner: destination.owner.clone(),
            directory_mode: destination.directory_mode,
            directories: Mutex::default(),
        }
    }

    /// Keeps other restores out of the data directory, which must be there, for as long as this lives.
    ///
    /// # Errors
    /// [`Kind::Busy`] if one is at work there.
    pub(super) fn lock(&self) -> Result<()> {
        if self.lock.get().is_some() {
            return Ok(());
        }
        let directory = File::open(&self.data).map_err(|error| Error::local("open", &self.data, error))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.lock.get_or_init(|| lock);
                Ok(())
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let text = format!("another restore is writing to {}", self.data.display());
                Err(Error::new(Kind::Busy, text).hint("Wait for it, stop it, or choose another directory."))
            }
            Err((_, error)) => Err(Error::local("lock", &self.data, error.into())),
        }
    }

    /// The data directory.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Permissions of a file that no backup says any of: as the directories', without the right to search.
    pub(super) fn file_mode(&self) -> u32 {
        self.directory_mode & 0o666
    }

    /// Where a file of the backup goes.
    pub(super) fn path_of<'a>(&self, path: impl Into<FilePathRef<'a>>) -> PathBuf {
        self.data.join(OsStr::from_bytes(path.into().as_bytes()))
    }

    /// Makes a directory and those above it, if they are not there. Only what is in the data directory, and `path`
    /// itself, gets our owner and mode: what lies above belongs to somebody else.
    pub(super) fn make_directory(&self, path: &Path) -> Result<()> {
        if self.known().contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            match path != self.data && path.starts_with(&self.data) {
                true => self.make_directory(parent)?,
                false => std::fs::create_dir_all(parent).map_err(|error| Error::local("create", parent, error))?,
            }
        }
        let made = DirBuilder::new().mode(self.directory_mode).create(path);
        match made {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::local("create", path, error)),
            _ => {}
        }
        let failed = |error| Error::local("set owner and mode of", path, error);
        let no_link = if self.may_be_link(path) { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        let flags = (OFlag::O_DIRECTORY | no_link).bits();
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        self.hand_over(&directory, self.directory_mode).map_err(failed)?;
        self.known().insert(path.to_owned());
        Ok(())
    }

    /// Of directories in the data directory, its WAL, and tablespaces.
    fn may_be_link(&self, path: &Path) -> bool {
        match path.strip_prefix(&self.data) {
            Ok(below) if below != Path::new("") => {
                below == Path::new(WAL_DIRECTORY) || below.parent() == Some(Path::new("pg_tblspc"))
            }
            _ => true,
        }
    }

    /// A link in the data directory, if it is not there.
    pub(super) fn make_link(&self, path: &Path, target: &Path) -> Result<()> {
        if !std::fs::read_link(path).is_ok_and(|found| found == target) {
            std::os::unix::fs::symlink(target, path).map_err(|error| Error::local("create the link", path, error))?;
        }
        self.own(path)
    }

    /// Gives a file that stays to the owner, with the permissions that a server's files have at least and at most.
    pub(super) fn keep(&self, path: &Path) -> Result<()> {
        let failed = |error| Error::local("set owner and mode of", path, error);
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        self.hand_over(&file, mode & self.file_mode() | 0o600).map_err(failed)
    }

    /// Gives what is there to the owner.
    pub(super) fn own(&self, path: &Path) -> Result<()> {
        self.give(path).map_err(|error| Error::local("set the owner of", path, error))
    }

    /// Opens a file to write at any place in it; it may be there already. With `mode`, sets owner and permissions.
    pub(super) fn open(&self, path: &Path, mode: Option<u32>) -> Result<File> {
        if let Some(parent) = path.parent() {
            self.make_directory(parent)?;
        }
        let failed = |error| Error::local("create", path, error);
        let mut options = OpenOptions::new();
        // What is there is the owner's: as root, no link that he may have put there is followed.
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(path).map_err(failed)?;
        if let Some(mode) = mode {
            self.hand_over(&file, mode & 0o777).map_err(failed)?;
        }
        Ok(file)
    }

    /// Not at creation: the umask would have its say.
    fn hand_over(&self, file: &File, mode: u32) -> std::io::Result<()> {
        file.set_permissions(Permissions::from_mode(mode))?;
        match &self.owner {
            Some(owner) => fchown(file, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }

    /// Puts `bytes` into the file `path`, whole or not at all, durably.
    pub(super) fn put(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".seawall");
        let temporary = path.with_file_name(name);
        let failed = |error| Error::local("write", path, error);
        let mut file = self.open(&temporary, Some(mode))?;
        file.set_len(0).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(failed)?;
        path.parent().map_or(Ok(()), sync_directory)
    }

    /// Makes a file of zeros that takes no room.
    pub(super) fn put_zeros(&self, path: &Path, bytes: u64) -> Result<()> {
        let file = self.open(path, Some(self.file_mode()))?;
        file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(|error| Error::local("write", path, error))
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match &self.owner {
            Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }

    /// Every change under the lock is one insertion.
    fn known(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| Error::local("sync", path, error))
}

/// Calls to the disk at once: file systems make many files durable in one go, if they are asked for them together.
const SYNCS: usize = 16;

/// So many of them are listed at once: a cluster has a million files.
const SYNCED_TOGETHER: usize = 8192;

/// Makes everything below `path` durable. Follows no link.
pub(super) fn sync_all(path: &Path) -> Result<()> {
    let mut paths = Vec::new();
    sync_below(path, &mut paths)?;
    sync_these(&mut paths)
}

/// Calls to the disk for all of these, which are forgotten.
fn sync_these(paths: &mut Vec<PathBuf>) -> Result<()> {
    let (next, listed) = (AtomicUsize::new(0), paths.as_slice());
    let sync = || -> Result<()> {
        while let Some(path) = listed.get(next.fetch_add(1, Ordering::Relaxed)) {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|error| Error::local("sync", path, error))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..SYNCS).map(|_| scope.spawn(sync)).collect();
        threads.into_iter().try_for_each(|thread| {
            let broken = |_| Error::new(Kind::Internal, "a thread that syncs files did not finish");
            thread.join().map_err(broken)?
        })
    })?;
    paths.clear();
    Ok(())
}

/// Syncs files and directories below `path`, and itself, but for the last of them, which it adds to `found`.
fn sync_below(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |error| Error::local("read", path, error);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            sync_below(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
        if found.len() >= SYNCED_TOGETHER {
            sync_these(found)?;
        }
    }
    found.push(path.to_owned());
    Ok(())
}
