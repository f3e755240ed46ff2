//! Processes that are not our children but our servers': found in `/proc` (`man 5 proc_pid_stat`), ended by number.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// The servers of this user that work within `place`, which has no symbolic link in it: each postmaster with its command line.
pub(super) fn postmasters_in(place: &Path, uid: Uid) -> Vec<(u32, Vec<u8>)> {
    let is_server = |number: &u32| {
        let link = |name: &str| std::fs::read_link(format!("/proc/{number}/{name}"));
        std::fs::metadata(format!("/proc/{number}")).is_ok_and(|it| it.uid() == uid.as_raw())
            && link("cwd").is_ok_and(|cwd| cwd.starts_with(place))
            && link("exe").is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "postgres"))
    };
    let servers: BTreeMap<u32, u32> =
        numbers().filter(is_server).filter_map(|number| Some((number, state_and_parent(number)?.1))).collect();
    let tops = servers.iter().filter(|(_, parent)| !servers.contains_key(parent));
    tops.map(|(number, _)| (*number, std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default())).collect()
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
    fn a_child_and_its_child_are_found_and_an_ended_one_is_not_alive() {
        let mut shell = Command::new("sh");
        let mut shell =
            shell.args(["-c", "sleep 600 & echo; wait"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // The shell writes once its own child is there.
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
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
