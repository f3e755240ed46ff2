//! Where fetched WAL waits for PostgreSQL, and how a file gets its name only when it is whole and on disk.
//! Uses `repository` for the key, `runtime` for calls that block.

use super::pin::Pin;
use crate::error::{Error, Kind, Result};
use crate::repository::{WalReader, hex};
use crate::runtime;
use crate::wal::Segment;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The spool's directory in the data directory.
pub const SPOOL_DIRECTORY: &str = "seawall-spool";

/// Whole segments that were fetched ahead, in a directory whose name says of which repository, cluster and pin: those
/// of another restore are never found.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    root: PathBuf,
    directory: PathBuf,
}

impl Spool {
    /// Of a standby, which reads one repository.
    pub(super) fn of(reader: &WalReader, data_directory: &Path) -> Spool {
        let repository = reader.repository();
        let key = [repository.store.describe(), repository.layout.root()].join("\0");
        Spool::named(reader.system_identifier(), key.as_bytes(), data_directory)
    }

    /// Of a restore, which knows what it will read whatever the repository gets.
    pub(super) fn pinned(pin: &Pin, data_directory: &Path) -> Result<Spool> {
        Ok(Spool::named(&pin.system_identifier, &pin.to_json()?, data_directory))
    }

    fn named(system_identifier: impl std::fmt::Display, key: &[u8], data_directory: &Path) -> Spool {
        let root = data_directory.join(SPOOL_DIRECTORY);
        let directory = root.join(format!("{system_identifier}-{}", hex(&Sha256::digest(key)[..8])));
        Spool { root, directory }
    }

    /// The right to fetch a batch into the spool, which was prepared, until it is dropped; `None` if another process has it or
    /// looks whether one has, or if the spool is gone with the end of recovery.
    pub(super) async fn lock(&self) -> Result<Option<Flock<File>>> {
        let directory = self.directory.clone();
        runtime::blocking(move || match File::open(&directory) {
            Ok(file) => Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::local("open", &directory, error)),
        })
        .await?
    }

    /// True if another process fetches a batch.
    pub(super) async fn is_busy(&self) -> Result<bool> {
        let directory = self.directory.clone();
        runtime::blocking(move || {
            let held = File::open(directory).map(|file| Flock::lock(file, FlockArg::LockSharedNonblock));
            matches!(held, Ok(Err((_, Errno::EWOULDBLOCK))))
        })
        .await
    }

    /// Removes what was fetched ahead and passed by: segments of the timeline up to this one.
    pub(super) async fn remove_before(&self, segment: Segment) -> Result<()> {
        let directory = self.directory.clone();
        runtime::blocking(move || {
            let failed = |error| Error::local("read", &directory, error);
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let found = Segment::parse(&entry.file_name().to_string_lossy(), segment.size);
                if found.is_ok_and(|found| found.timeline <= segment.timeline && found.start <= segment.start) {
                    fs::remove_file(entry.path()).or_else(missing_is_fine).map_err(failed)?;
                }
            }
            Ok(())
        })
        .await?
    }

    /// Where a segment is spooled.
    pub(super) fn path(&self, segment: Segment) -> PathBuf {
        self.directory.join(segment.name())
    }

    /// Makes the directory. Only the server's user may read it: it holds what tables hold.
    pub(super) async fn prepare(&self) -> Result<()> {
        let places = [self.root.clone(), self.directory.clone()];
        runtime::blocking(move || {
            // Never the data directory, which may have been removed meanwhile.
            places.iter().try_for_each(|place| match fs::DirBuilder::new().mode(0o700).create(place) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::local("create", place, error)),
                _ => Ok(()),
            })
        })
        .await?
    }

    /// Moves the spooled segment to `destination`; false if there is none, or none of the right size.
    pub(super) async fn take(&self, segment: Segment, destination: &Path) -> Result<bool> {
        let (path, destination) = (self.path(segment), destination.to_owned());
        runtime::blocking(move || take(&path, segment.size.bytes(), &destination)).await?
    }

    /// True if the segment is there.
    pub(super) async fn has(&self, segment: Segment) -> Result<bool> {
        let path = self.path(segment);
        runtime::blocking(move || fs::symlink_metadata(path).is_ok_and(|found| found.is_file())).await
    }

    /// Removes the spool with all that was ever fetched ahead, and what killed fetches left beside `destination`.
    /// Recovery must not fail for that, so a failure is only logged.
    pub(super) async fn clear(&self, destination: &Path) -> Result<()> {
        let (root, destination) = (self.root.clone(), destination.to_owned());
        runtime::blocking(move || {
            if let Err(error) = remove_root(&root) {
                tracing::warn!(directory = %root.display(), %error, "cannot remove the WAL fetched ahead");
            }
            if let Err(error) = remove_leftovers(&destination).or_else(missing_is_fine) {
                tracing::warn!(destination = %destination.display(), %error, "cannot remove what earlier fetches left");
            }
        })
        .await
    }
}

/// Renamed first: a batch that is being fetched finds its directory no more, and cannot fill it while it is emptied.
fn remove_root(root: &Path) -> io::Result<()> {
    let removed = root.with_extension("removed");
    remove_tree(&removed)?;
    fs::rename(root, &removed).or_else(missing_is_fine)?;
    remove_tree(&removed)
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        // A file that was being created during the rename: there can be one for each fetch, and no more.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(directory),
        ended => ended,
    }
    .or_else(missing_is_fine)
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn take(path: &Path, bytes: u64, destination: &Path) -> Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::local("look at", path, error)),
    };
    if !found.is_file() || found.len() != bytes {
        return Ok(false);
    }
    match fs::rename(path, destination) {
        Ok(()) => {
            // Its content was synced when it was fetched. The server gives such a file its own name, and syncs both then
            // (`xlogarchive.c`, `KeepFileRestoredFromArchive`); until then it asks again after a power cut.
            if destination.file_name() != Some(OsStr::new(RECOVERY_FILE)) {
                sync_directory_of(destination)?;
            }
            Ok(true)
        }
        // pg_wal may be a symbolic link to another file system.
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let mut source = File::open(path).map_err(|error| Error::local("read", path, error))?;
            let mut staged = Staged::create_blocking(destination)?;
            staged.copy(&mut source)?;
            staged.publish_blocking(bytes)?;
            fs::remove_file(path).map_err(|error| Error::local("remove", path, error))?;
            Ok(true)
        }
        Err(error) => Err(Error::local("write", destination, error)),
    }
}

fn remove_leftovers(destination: &Path) -> io::Result<()> {
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(directory_of(destination))? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let rest = found.strip_prefix(name.as_ref()).and_then(|rest| rest.strip_prefix(TEMPORARY_INFIX));
        if rest.is_some_and(|rest| rest.ends_with(TEMPORARY_SUFFIX)) {
            fs::remove_file(entry.path()).or_else(missing_is_fine)?;
        }
    }
    Ok(())
}

/// What a server that recovers calls the WAL file that it asks for (`xlogarchive.c`, `RestoreArchivedFile`).
const RECOVERY_FILE: &str = "RECOVERYXLOG";

const TEMPORARY_INFIX: &str = ".seawall-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A file that is being written beside its name. Dropped unpublished, it is gone.
#[derive(Debug)]
pub(super) struct Staged {
    file: File,
    bytes: u64,
    temporary: PathBuf,
    destination: PathBuf,
    is_published: bool,
}

impl Staged {
    /// Opens a temporary file beside `destination`.
    pub(super) async fn create(destination: &Path) -> Result<Staged> {
        let destination = destination.to_owned();
        runtime::blocking(move || Staged::create_blocking(&destination)).await?
    }

    fn create_blocking(destination: &Path) -> Result<Staged> {
        // With the process id, so that an orphan of a killed server never writes into a new fetch's file.
        let mut name = OsString::from(destination.file_name().unwrap_or_default());
        name.push(format!("{TEMPORARY_INFIX}{}{TEMPORARY_SUFFIX}", std::process::id()));
        let temporary = directory_of(destination).join(name);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let file = file.map_err(|error| Error::local("create", &temporary, error))?;
        Ok(Staged { file, bytes: 0, temporary, destination: destination.to_owned(), is_published: false })
    }

    /// Writes more.
    pub(super) async fn append(mut self, pieces: Vec<Bytes>) -> Result<Staged> {
        runtime::blocking(move || {
            for piece in pieces {
                self.copy(&mut piece.as_ref())?;
            }
            Ok(self)
        })
        .await?
    }

    /// Fills up with zeros to `bytes`, brings everything to disk, and gives the file its name.
    pub(super) async fn publish(self, bytes: u64) -> Result<()> {
        runtime::blocking(move || self.publish_blocking(bytes)).await?
    }

    fn copy(&mut self, source: &mut impl Read) -> Result<()> {
        let copied = io::copy(source, &mut self.file);
        self.bytes += copied.map_err(|error| Error::local("write", &self.temporary, error))?;
        Ok(())
    }

    fn publish_blocking(mut self, bytes: u64) -> Result<()> {
        // Real zeros and no hole: PostgreSQL writes into recycled segments and counts on their space.
        let missing = bytes.saturating_sub(self.bytes);
        self.copy(&mut io::repeat(0).take(missing))?;
        if self.bytes != bytes {
            let text = format!("{} got {} bytes instead of {bytes}", self.destination.display(), self.bytes);
            return Err(Error::new(Kind::Internal, text));
        }
        let written = self.file.flush().and_then(|()| self.file.sync_all());
        written.map_err(|error| Error::local("write", &self.temporary, error))?;
        fs::rename(&self.temporary, &self.destination)
            .map_err(|error| Error::local("write", &self.destination, error))?;
        self.is_published = true;
        sync_directory_of(&self.destination)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Without this, a power cut could take the name back.
fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = directory_of(path);
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::local("sync", directory, error))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spool_is_removed_while_a_batch_writes_into_it() {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().join(SPOOL_DIRECTORY);
        for _ in 0..20 {
            // Given a batch that writes file after file, and what a removal that was killed left
            let directory = root.join("key");
            fs::create_dir_all(&directory).unwrap();
            fs::create_dir_all(root.with_extension("removed").join("key")).unwrap();
            let batch = std::thread::spawn(move || {
                (0..).take_while(|number| File::create(directory.join(number.to_string())).is_ok()).count()
            });
            // When the spool is removed, then all of it is gone, and the batch has ended.
            remove_root(&root).unwrap();
            batch.join().unwrap();
            assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0, "something of the spool is left");
        }
    }
}
