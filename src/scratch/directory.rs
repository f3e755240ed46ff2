//! A temporary directory that a throwaway server can reach, and that goes at the end. May use `error` and `runtime`.

use super::Unprivileged;
use crate::error::{Error, Kind, Result};
use crate::runtime;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long work that cannot be interrupted may go on writing into a directory that is being removed.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who looks for what was left may take a new one for that, before we hold it.
const ATTEMPTS: usize = 8;

/// A directory of our own. Dropped, it is removed as far as that is possible at once.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    keep: bool,
    /// Held for as long as we live, so that a later process knows what we left if we were killed; `None` where the file system has no
    /// locks: nobody takes it there.
    _held: Option<Flock<File>>,
}

impl Directory {
    /// A new directory in `below`, whose name begins with `prefix`, and which opens to the servers' user alone.
    ///
    /// # Errors
    /// [`crate::error::Kind::Local`] if it cannot be made, or if the servers' user cannot reach it.
    pub fn create(below: &Path, prefix: &str) -> Result<Directory> {
        let cannot = |error| Error::local("create a directory in", below, error);
        // A server and its programs look at it from working directories of their own.
        let below = std::path::absolute(below).map_err(cannot)?;
        for _ in 0..ATTEMPTS {
            let path =
                nix::unistd::mkdtemp(&below.join(format!("{prefix}-XXXXXX"))).map_err(|error| cannot(error.into()))?;
            let held = match hold(&path) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                held => held.ok(),
            };
            if !path.is_dir() {
                continue;
            }
            let directory = Directory { path, keep: false, _held: held };
            Unprivileged::find()?.create_directory(&directory.path)?;
            return Ok(directory);
        }
        Err(Error::new(Kind::Local, format!("every new directory in {} was taken away", below.display())))
    }

    /// One that another process left, which stays unless it is removed; `None` if somebody holds it.
    pub(super) fn left(path: PathBuf) -> Option<Directory> {
        let held = hold(&path).ok()?;
        path.is_dir().then_some(Directory { path, keep: true, _held: Some(held) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It stays when it is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Removes it: work that was interrupted may still be writing the last file.
    ///
    /// # Errors
    /// [`crate::error::Kind::Local`] if something in it cannot be removed.
    pub async fn remove(self) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        loop {
            let path = self.path.clone();
            match runtime::blocking(move || std::fs::remove_dir_all(&path)).await? {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(Error::local("remove", &self.path, error)),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Locks a directory, if nobody else does. The lock goes with the process.
fn hold(path: &Path) -> std::io::Result<Flock<File>> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let directory = File::options().read(true).custom_flags(flags).open(path)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_place_is_a_place_for_whoever_has_another_working_directory() {
        // From wherever the test runs, up to the root and down again.
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        let directory = Directory::create(Path::new(&format!("{up}tmp")), "seawall-relative").unwrap();
        assert!(directory.path().is_absolute() && directory.path().is_dir(), "{}", directory.path().display());
    }
}
