//! What a process that was killed has left: its directory, and perhaps a server at work in it. Nothing can be done when it happens, so
//! the next one does. May use `error` and `runtime`.

use super::process::{is_alive, postmasters_in, send};
use super::server::{SOCKETS_BELOW, SOCKETS_PREFIX};
use super::{Directory, Unprivileged, marker};
use crate::error::{Error, Kind, Result};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Where the data directory is in a directory whose server may be at work.
const DATA: &str = "data";
/// Letters that `mkdtemp` puts behind a prefix.
const LETTERS: usize = 6;
/// A server that is not gone this long after it was told to stop at once will not go: its postmaster kills what is left after five
/// seconds.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// The pause between two looks at it.
const POLL: Duration = Duration::from_millis(50);

/// Ends the servers, and removes the directories, that [`Directory::create`] made in `below` with this prefix for processes which
/// have gone and left them. What somebody holds, and what was not made so, by us, here, since this machine was started, is not touched.
/// What cannot be removed is told in the log: it is in nobody's way. If dropped, a server may have been told to stop, and what is left
/// stays.
pub async fn sweep(below: &Path, prefix: &str) {
    for path in candidates(below, prefix) {
        // Held from here on: another process that sweeps passes it over.
        let Some(directory) = Directory::left(&path) else { continue };
        let path = path.display();
        match remove(directory).await {
            Ok(()) => tracing::info!(%path, "a process was killed and left this; it is removed"),
            Err(error) => tracing::warn!(%path, %error, "a process was killed and left this, and it cannot be removed"),
        }
    }
}

/// What is called so, and is our user's.
fn candidates(below: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(user) = Unprivileged::find() else { return Vec::new() };
    let is_one = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        let letters = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_prefix('-'));
        letters.is_some_and(|it| it.len() == LETTERS && it.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user.uid().as_raw())
    };
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    entries.filter(is_one).map(|entry| entry.path()).collect()
}

async fn remove(mut directory: Directory) -> Result<()> {
    let user = Unprivileged::find()?;
    let data = directory.path().join(DATA);
    let servers = postmasters_in(&data, user.uid()).map_err(|error| {
        Error::new(Kind::Local, "it cannot be told whether a server is at work in it")
            .because(error)
            .hint("End what is, and remove it by hand.")
    })?;
    servers.iter().for_each(|pid| send(*pid, Signal::SIGQUIT));
    let deadline = Instant::now() + GONE_WITHIN;
    while let Some(pid) = servers.iter().find(|pid| is_alive(**pid)) {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Local, format!("the server with the number {pid} does not stop")));
        }
        sleep(POLL).await;
    }
    let sockets = candidates(Path::new(SOCKETS_BELOW), SOCKETS_PREFIX);
    for path in sockets.iter().filter(|path| marker::is_in(path, &data)) {
        std::fs::remove_dir_all(path).map_err(|error| Error::local("remove", path, error))?;
    }
    directory.remove().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that the servers' user can reach.
    fn reachable() -> tempfile::TempDir {
        let below = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(below.path(), open).unwrap();
        below
    }

    /// One in it that a process made and left when it was killed.
    fn left(below: &Path, prefix: &str) -> PathBuf {
        let mut directory = Directory::create(below, prefix).unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        directory.keep();
        directory.path().to_owned()
    }

    #[tokio::test]
    async fn what_is_held_or_has_another_name_stays() {
        let below = reachable();
        // Given a directory that somebody holds, one that was left, one that was kept, and a link
        let held = Directory::create(below.path(), "seawall-test").unwrap();
        let (left, kept) = (left(below.path(), "seawall-test"), left(below.path(), "seawall-test-kept"));
        std::os::unix::fs::symlink(&kept, below.path().join("seawall-test-linked")).unwrap();
        // When what was left is swept, then that goes and nothing else
        sweep(below.path(), "seawall-test").await;
        assert!(!left.exists() && held.path().is_dir() && kept.join("file").exists());
    }

    #[tokio::test]
    async fn what_we_did_not_make_stays_whatever_it_is_called() {
        let below = reachable();
        let user = Unprivileged::find().unwrap();
        // Given somebody's own directory with six letters behind our prefix, a copy of one of ours, and one of ours that was moved away
        let own = below.path().join("seawall-test-orders");
        user.create_directory(&own).unwrap();
        std::fs::write(own.join("file"), "x").unwrap();
        let ours = left(below.path(), "seawall-test");
        let copy = below.path().join("seawall-test-copied");
        assert!(std::process::Command::new("cp").arg("-a").args([&ours, &copy]).status().unwrap().success());
        let rescued = below.path().join("seawall-test-manual");
        std::fs::rename(left(below.path(), "seawall-test"), &rescued).unwrap();
        // When what was left is swept
        sweep(below.path(), "seawall-test").await;
        // Then it is what we made, where we made it, that goes
        assert!(!ours.exists(), "{}", ours.display());
        for path in [own, copy, rescued] {
            assert!(path.join("file").exists(), "{} is gone", path.display());
        }
    }
}
