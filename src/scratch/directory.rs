//! A temporary directory that a throwaway server can reach, and that goes at the end. May use `error` and `runtime`.

use super::{Unprivileged, marker};
use crate::error::{Error, Result};
use crate::runtime;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long work that cannot be interrupted may go on writing into a directory that is being removed.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// A directory of our own. Dropped, it is removed as far as that is possible at once.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    keep: bool,
    /// Held for as long as we live, so that a later process knows what we left if we were killed; `None` where the file system has no
    /// locks: nobody takes it there.
    held: Option<Arc<Flock<File>>>,
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
        let path =
            nix::unistd::mkdtemp(&below.join(format!("{prefix}-XXXXXX"))).map_err(|error| cannot(error.into()))?;
        let mut directory = Directory { path, keep: false, held: None };
        let path = &directory.path;
        match hold(path) {
            // Nobody takes what has no marker: it comes when we hold the lock, and before the directory is given away.
            Ok(held) => {
                let place = path.canonicalize().map_err(|error| Error::local("look at", path, error))?;
                marker::put(path, &place)?;
                directory.held = Some(Arc::new(held));
            }
            Err(error) if has_no_locks(&error) => {}
            Err(error) => return Err(Error::local("lock", path, error)),
        }
        Unprivileged::find()?.create_directory(&directory.path)?;
        Ok(directory)
    }

    /// One that a process of ours made and left, which stays unless it is removed; `None` if it is not, or if somebody holds it.
    pub(super) fn left(path: &Path) -> Option<Directory> {
        let path = path.canonicalize().ok()?;
        if !marker::is_in(&path, &path) {
            return None;
        }
        let held = hold(&path).ok()?;
        // Somebody may have held it, and removed it, until now.
        marker::is_in(&path, &path).then_some(Directory { path, keep: true, held: Some(Arc::new(held)) })
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
    pub async fn remove(&mut self) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        loop {
            let (path, held) = (self.path.clone(), self.held.clone());
            match runtime::blocking(move || remove_all(&path, held.as_deref())).await? {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) if Instant::now() > deadline => return Err(Error::local("remove", &self.path, error)),
                Err(_) => sleep(REMOVAL_PAUSE).await,
            }
        }
        self.keep = true;
        Ok(())
    }

    /// The same, on a thread that may wait, as far as it can be done.
    #[allow(clippy::disallowed_methods, reason = "the thread is there to wait")]
    pub fn remove_blocking(mut self) {
        let tries = REMOVAL_PATIENCE.as_millis() / REMOVAL_PAUSE.as_millis();
        for _ in 0..tries {
            match remove_all(&self.path, self.held.as_deref()) {
                Err(error) if error.kind() != ErrorKind::NotFound => std::thread::sleep(REMOVAL_PAUSE),
                _ => break,
            }
        }
        self.keep = true;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            let _ = remove_all(&self.path, self.held.as_deref());
        }
    }
}

/// The marker goes last: if we are killed meanwhile, somebody else can tell what is left. What is in it is found through the directory
/// that is held: whoever may write beside it could have put a link in its place.
fn remove_all(path: &Path, held: Option<&Flock<File>>) -> std::io::Result<()> {
    let inside = held.map(|held| PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())));
    // Where nobody holds it there is no marker either.
    let Some(inside) = inside.filter(|inside| inside.is_dir()) else { return std::fs::remove_dir_all(path) };
    for entry in std::fs::read_dir(inside)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != marker::NAME {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir_all(path)
}

/// Locks a directory, if nobody else does. The lock goes with the process.
fn hold(path: &Path) -> std::io::Result<Flock<File>> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let directory = File::options().read(true).custom_flags(flags).open(path)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

/// True if the file system has no locks for directories, such as NFS, where an exclusive one takes a file that is open for writing
/// (`man 2 flock`).
fn has_no_locks(error: &std::io::Error) -> bool {
    let none = [Errno::EBADF, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EINVAL, Errno::ENOLCK];
    error.raw_os_error().is_some_and(|number| none.contains(&Errno::from_raw(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_fails_is_not_taken_for_a_file_system_without() {
        let of = |error: Errno| has_no_locks(&error.into());
        assert!(
            of(Errno::EBADF) && of(Errno::EOPNOTSUPP) && of(Errno::ENOSYS) && of(Errno::EINVAL) && of(Errno::ENOLCK)
        );
        assert!(!of(Errno::EWOULDBLOCK) && !of(Errno::ENOMEM) && !of(Errno::EACCES) && !of(Errno::EMFILE));
    }

    #[test]
    fn what_somebody_left_stays_when_it_cannot_be_swept() {
        let mut directory = Directory::create(Path::new("/tmp"), "seawall-left").unwrap();
        directory.keep();
        let path = directory.path().to_owned();
        assert!(Directory::left(&path).is_none(), "it is held");
        drop(directory);
        drop(Directory::left(&path).unwrap());
        assert!(path.is_dir());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_one_that_is_removed_is_not_followed() {
        // Given a directory that somebody renamed, and a link where it was, to what is not ours
        let others = tempfile::tempdir().unwrap();
        let theirs = others.path().join("theirs");
        std::fs::create_dir_all(theirs.join("more")).unwrap();
        let directory = Directory::create(Path::new("/tmp"), "seawall-linked").unwrap();
        let (path, renamed) = (directory.path().to_owned(), others.path().join("renamed"));
        std::fs::write(path.join("ours"), "").unwrap();
        std::fs::rename(&path, &renamed).unwrap();
        std::os::unix::fs::symlink(&theirs, &path).unwrap();
        // When it is removed, then what it had is gone, and nothing of theirs.
        directory.remove_blocking();
        assert!(theirs.join("more").is_dir() && !renamed.join("ours").exists());
        assert!(path.symlink_metadata().is_err(), "the link is gone");
    }

    #[test]
    fn a_relative_place_is_a_place_for_whoever_has_another_working_directory() {
        // From wherever the test runs, up to the root and down again.
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        let directory = Directory::create(Path::new(&format!("{up}tmp")), "seawall-relative").unwrap();
        assert!(directory.path().is_absolute() && directory.path().is_dir(), "{}", directory.path().display());
    }
}
