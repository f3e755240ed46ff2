//! Processes that are not our children but our servers': found in `/proc` (`man 5 proc_pid_stat`), ended by number.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sends a signal. Errors say that the process is gone or not ours: neither needs it.
pub(super) fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The processes below `pid`: its children, theirs (such as a `restore_command`), and so on.
pub(super) fn below(pid: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> = numbers().filter_map(|number| Some((number, state_and_parent(number)?.1))).collect();
    let mut found = BTreeSet::new();
    let mut above = vec![pid];
    while let Some(parent) = above.pop() {
        for (number, _) in parents.iter().filter(|(_, of)| *of == parent) {
            if found.insert(*number) {
                above.push(*number);
            }
        }
    }
    found
}

/// The postmasters of this user whose data directory is `data`, which has no symbolic link in it.
///
/// # Errors
/// If we may not see where a server of this user is at work, as root may not in a container without `CAP_SYS_PTRACE`: it may be there.
pub(super) fn postmasters_in(data: &Path, uid: Uid) -> io::Result<Vec<u32>> {
    let mut servers = BTreeMap::new();
    for number in numbers() {
        let is_theirs = std::fs::metadata(format!("/proc/{number}")).is_ok_and(|it| it.uid() == uid.as_raw());
        // The name that the program had when it was started; what `ps` shows of a server is its command line.
        let is_server = || std::fs::read(format!("/proc/{number}/comm")).is_ok_and(|name| name == b"postgres\n");
        if is_theirs
            && is_server()
            && working_directory(number)?.is_some_and(|cwd| cwd == data)
            && let Some((_, parent)) = state_and_parent(number)
        {
            servers.insert(number, parent);
        }
    }
    Ok(servers.iter().filter(|(_, parent)| !servers.contains_key(parent)).map(|(number, _)| *number).collect())
}

/// Where a process is at work, though that was deleted; `None` if it has ended.
fn working_directory(number: u32) -> io::Result<Option<PathBuf>> {
    match std::fs::read_link(format!("/proc/{number}/cwd")) {
        Ok(path) => Ok(Some(undeleted(path))),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Without what the kernel writes behind the name of a deleted file (`man 5 proc_pid_cwd`).
fn undeleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(name) => PathBuf::from(OsStr::from_bytes(name)),
        None => path,
    }
}

/// The numbers of all processes.
fn numbers() -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// True if the process has not ended; one that nobody has waited for yet has.
pub(super) fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_server_is_found_in_its_data_directory_and_nowhere_else_though_its_program_was_deleted() {
        let below = tempfile::tempdir().unwrap();
        let place = below.path().canonicalize().unwrap();
        let (data, program) = (place.join("data"), place.join("postgres"));
        std::fs::create_dir(&data).unwrap();
        // Given a process called so that works there, and whose program is replaced by another
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut server = Command::new(&program).arg("600").current_dir(&data).spawn().unwrap();
        std::fs::remove_file(&program).unwrap();
        // Then it is found there, also when that is deleted too
        let of = |path: &Path, uid: Uid| postmasters_in(path, uid).unwrap();
        let ours = Uid::effective();
        let found =
            (of(&data, ours), of(&place, ours), of(&data.join("base"), ours), of(&data, Uid::from_raw(4_000_000)));
        std::fs::remove_dir(&data).unwrap();
        let deleted = of(&data, ours);
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(found, (vec![server.id()], vec![], vec![], vec![]));
        assert_eq!(deleted, vec![server.id()]);
        // and is not when it has ended
        assert_eq!(of(&data, ours), Vec::<u32>::new());
    }

    #[test]
    fn a_child_and_its_child_are_found_and_an_ended_one_is_not_alive() {
        let mut shell = Command::new("sh");
        let mut shell =
            shell.args(["-c", "sleep 600 & echo; wait"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // The shell writes once its own child is there.
        let mut line = [0];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        let (ours, its, all) = (shell.id(), below(shell.id()), below(std::process::id()));
        assert_eq!(its.len(), 1, "{its:?}");
        assert!(all.contains(&ours) && all.is_superset(&its), "{all:?} {its:?}");
        let both = || its.iter().chain([&ours]).copied();
        assert!(both().all(is_alive));
        // The shell would end by itself when its child has.
        both().for_each(|pid| send(pid, Signal::SIGKILL));
        shell.wait().unwrap();
        assert!(!is_alive(ours));
    }
}
