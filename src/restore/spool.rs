//! Files on their way into place: written under another name, made durable, renamed. And the directory where segments
//! wait that were fetched ahead.

use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::wal::SegmentSize;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory in the data directory. Base backups leave out whatever is called so (`PG_TEMP_FILE_PREFIX`, `sendDir` in
/// `basebackup.c`), should it ever be left behind.
const DIRECTORY: &str = "pgsql_tmp_seawall";

/// A file that is being written. Appears under its name when it is published; dropped before, it is removed.
#[derive(Debug)]
pub(super) struct Target {
    file: Arc<File>,
    temporary: PathBuf,
    destination: PathBuf,
    is_published: bool,
}

impl Target {
    /// Begins a file of `bytes` zeros, or an empty one.
    pub(super) async fn create(destination: &Path, bytes: Option<u64>) -> Result<Target> {
        let mut name = destination.file_name().unwrap_or_default().to_owned();
        name.push(".seawall");
        let temporary = destination.with_file_name(name);
        let destination = destination.to_owned();
        runtime::blocking(move || {
            let failed = |error| Error::local("create", &temporary, error);
            // The mode is left to the umask, which PostgreSQL sets as its data directory demands.
            let file = File::create(&temporary).map_err(failed)?;
            if let Some(bytes) = bytes {
                file.set_len(bytes).map_err(failed)?;
            }
            Ok(Target { file: Arc::new(file), temporary, destination, is_published: false })
        })
        .await?
    }

    /// Writes `pieces` one behind the other from `offset` on.
    pub(super) async fn write(&mut self, mut offset: u64, pieces: Vec<Bytes>) -> Result<()> {
        let (file, path) = (Arc::clone(&self.file), self.temporary.clone());
        runtime::blocking(move || {
            for piece in pieces {
                file.write_all_at(&piece, offset).map_err(|error| Error::local("write", &path, error))?;
                offset += piece.len() as u64;
            }
            Ok(())
        })
        .await?
    }

    /// Makes it durable and gives it its name.
    pub(super) async fn publish(mut self) -> Result<()> {
        let (file, from, to) = (Arc::clone(&self.file), self.temporary.clone(), self.destination.clone());
        runtime::blocking(move || {
            file.sync_all().map_err(|error| Error::local("sync", &from, error))?;
            std::fs::rename(&from, &to).map_err(|error| Error::local("create", &to, error))
        })
        .await??;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_published {
            // Whoever writes the file next begins it anew.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Segments that were fetched ahead of one restore.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    root: PathBuf,
    directory: PathBuf,
    size: SegmentSize,
}

impl Spool {
    /// In the data directory `data`; `restore` is a name that no other restore has.
    pub(super) fn new(data: &Path, restore: &str, size: SegmentSize) -> Spool {
        let root = data.join(DIRECTORY);
        Spool { directory: root.join(restore), root, size }
    }

    /// Where a file waits.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Moves a file into place; false if it is not here.
    pub(super) async fn take(&self, name: &str, destination: &Path) -> Result<bool> {
        let (from, to, bytes) = (self.path(name), destination.to_owned(), self.size.bytes());
        runtime::blocking(move || {
            match std::fs::metadata(&from) {
                Ok(found) if found.len() == bytes => {}
                _ => return Ok(false),
            }
            // Moved, never linked: PostgreSQL writes into the file when it has no more use for it.
            match std::fs::rename(&from, &to) {
                Ok(()) => Ok(true),
                // `pg_wal` is on another file system.
                Err(error) if error.kind() == ErrorKind::CrossesDevices => copy(&from, &to).map(|()| true),
                Err(error) => Err(Error::local("create", &to, error)),
            }
        })
        .await?
    }

    /// Makes the directory, without any file that is not in `names`.
    pub(super) async fn keep_only(&self, names: BTreeSet<String>) -> Result<()> {
        let (root, directory) = (self.root.clone(), self.directory.clone());
        runtime::blocking(move || {
            std::fs::create_dir_all(&directory).map_err(|error| Error::local("create", &directory, error))?;
            let failed = |error| Error::local("tidy", &directory, error);
            // What another restore of this directory left.
            for entry in std::fs::read_dir(&root).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                if path != directory {
                    std::fs::remove_dir_all(&path).map_err(failed)?;
                }
            }
            for entry in std::fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if !names.contains(&*entry.file_name().to_string_lossy()) {
                    std::fs::remove_file(entry.path()).map_err(failed)?;
                }
            }
            Ok(())
        })
        .await?
    }

    /// Removes everything.
    pub(super) async fn remove(&self) -> Result<()> {
        let root = self.root.clone();
        runtime::blocking(move || match std::fs::remove_dir_all(&root) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::local("remove", &root, error)),
            _ => Ok(()),
        })
        .await?
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed =
        |error| Error::new(Kind::Local, format!("cannot copy {} to {}", from.display(), to.display())).because(error);
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".seawall");
    let temporary = to.with_file_name(name);
    std::fs::copy(from, &temporary).map_err(failed)?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, to).map_err(failed)?;
    std::fs::remove_file(from).map_err(failed)
}
