//! What a process that was killed has left: its directory, and perhaps a server at work in it. Nothing can be done when it happens, so
//! the next one does. May use `error` and `runtime`.

use super::process::{is_alive, postmasters_in, send};
use super::server::SOCKETS_BELOW;
use super::{Directory, Unprivileged};
use crate::error::{Error, Kind, Result};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Letters that `mkdtemp` puts behind a prefix.
const LETTERS: usize = 6;
/// A server that is not gone this long after it was told to stop at once will not go: its postmaster kills what is left after five
/// seconds.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// The pause between two looks at it.
const POLL: Duration = Duration::from_millis(50);

/// Ends the servers, and removes the directories, that [`Directory::create`] made in `below` with this prefix for processes which
/// have gone and left them. What somebody holds, and what is not the servers' user's, is not touched. What cannot be removed is told
/// in the log: it is in nobody's way.
pub async fn sweep(below: &Path, prefix: &str) {
    for path in candidates(below, prefix) {
        // Held from here on: another process that sweeps passes it over.
        let Some(directory) = Directory::left(path.clone()) else { continue };
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

async fn remove(directory: Directory) -> Result<()> {
    let user = Unprivileged::find()?;
    let path = directory.path();
    let place = path.canonicalize().map_err(|error| Error::local("look at", path, error))?;
    let servers = postmasters_in(&place, user.uid());
    servers.iter().for_each(|(pid, _)| send(*pid, Signal::SIGQUIT));
    let deadline = Instant::now() + GONE_WITHIN;
    while let Some((pid, _)) = servers.iter().find(|(pid, _)| is_alive(*pid)) {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Local, format!("the server with the number {pid} does not stop")));
        }
        sleep(POLL).await;
    }
    for sockets in servers.iter().filter_map(|(_, line)| sockets_in(line)) {
        let is_ours =
            std::fs::symlink_metadata(&sockets).is_ok_and(|it| it.is_dir() && it.uid() == user.uid().as_raw());
        if is_ours {
            std::fs::remove_dir_all(&sockets).map_err(|error| Error::local("remove", &sockets, error))?;
        }
    }
    directory.remove().await
}

/// The directory of our own that a server's command line names for its socket.
fn sockets_in(line: &[u8]) -> Option<PathBuf> {
    let named = line.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"unix_socket_directories="))?;
    let path = Path::new(OsStr::from_bytes(named));
    let is_ours = path.parent() == Some(Path::new(SOCKETS_BELOW))
        && path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"seawall-"));
    is_ours.then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_or_has_another_name_stays() {
        let below = tempfile::tempdir().unwrap();
        // The servers' user must be able to reach it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(below.path(), open).unwrap();
        // Given a directory that somebody holds, one that was left, one that was kept, and a link
        let held = Directory::create(below.path(), "seawall-test").unwrap();
        let mut left = Directory::create(below.path(), "seawall-test").unwrap();
        let mut kept = Directory::create(below.path(), "seawall-test-kept").unwrap();
        for directory in [&mut left, &mut kept] {
            std::fs::write(directory.path().join("file"), "x").unwrap();
            directory.keep();
        }
        let (left, kept) = [left, kept].map(|directory| directory.path().to_owned()).into();
        std::os::unix::fs::symlink(&kept, below.path().join("seawall-test-linked")).unwrap();
        // When what was left is swept, then that goes and nothing else
        sweep(below.path(), "seawall-test").await;
        assert!(!left.exists() && held.path().is_dir() && kept.join("file").exists());
    }

    #[test]
    fn a_socket_elsewhere_is_none_of_ours() {
        let of = |path: &str| sockets_in(format!("postgres\0-D\0/x\0-c\0unix_socket_directories={path}\0").as_bytes());
        assert_eq!(of("/tmp/seawall-Ab12Cd"), Some("/tmp/seawall-Ab12Cd".into()));
        for path in ["/tmp", "/tmp/other", "/tmp/seawall-a/b", "/tmp/seawall-a/../../etc", "/srv/seawall-a", ""] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
