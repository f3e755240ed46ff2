//! How much memory `run` takes at most for several clusters, and how much there is for it: of the machine, or of its control group.

use super::cluster::COMMON_MEMORY_BYTES;
use crate::archive::CommonMemory;
use std::fs;
use std::path::{Path, PathBuf};

/// What a process takes before it archives anything: its own file's pages, threads, libraries.
const PROCESS_BYTES: u64 = 64 << 20;

/// What a cluster takes beside its WAL: connections to its server and its store, metrics, what is scheduled.
const CLUSTER_BYTES: u64 = 2 << 20;

/// About what streaming so many clusters, of which there are several, takes at most: if none of their stores answers, and nothing makes
/// their WAL smaller. Beyond it is what is done on schedule, and an object that was deleted while it was compared, of each cluster one
/// at a time.
pub(super) fn bytes_max(clusters: usize) -> u64 {
    PROCESS_BYTES + clusters as u64 * CLUSTER_BYTES + CommonMemory::archivers_bytes_max(COMMON_MEMORY_BYTES, clusters)
}

/// How much memory this process may have, as far as the system says it: the least of what the machine has and what the control groups
/// allow that it is in.
pub(super) fn bytes_there() -> Option<u64> {
    bytes_below(Path::new("/"))
}

fn bytes_below(root: &Path) -> Option<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let machine = read(root.join("proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(limits_of).flat_map(|(mount, group, file)| {
        // There is a limit at every level; a container sees its own as the root, whatever it is called.
        let levels: Vec<PathBuf> = Path::new(group).ancestors().map(|level| mount.join(level).join(file)).collect();
        levels.into_iter().filter_map(|path| read(root.join(path))?.trim().parse::<u64>().ok())
    });
    limits.chain(machine).min()
}

/// Where a line of `/proc/self/cgroup` says that limits of memory are: the mount, the group in it, and the file's name. In version 2
/// (`Documentation/admin-guide/cgroup-v2.rst`) the line is `0::/GROUP`, and `max` is no limit; in version 1 (`cgroup-v1/memory.rst`) it is
/// `NUMBER:CONTROLLERS:/GROUP`, and a number beyond every memory is none.
fn limits_of(line: &str) -> Option<(&'static Path, &str, &'static str)> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(":/")?;
    if number == "0" && controllers.is_empty() {
        return Some((Path::new("sys/fs/cgroup"), group, "memory.max"));
    }
    let is_of_memory = controllers.split(',').any(|controller| controller == "memory");
    is_of_memory.then_some((Path::new("sys/fs/cgroup/memory"), group, "memory.limit_in_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_machine_and_groups_is_what_there_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // Where nothing says it, nothing is known
        assert_eq!(bytes_below(root.path()), None);
        write("proc/meminfo", "MemTotal:        2097152 kB\nMemFree:          100 kB\n");
        assert_eq!(bytes_below(root.path()), Some(2 << 30));
        // A group of version 2, with a limit on the one that it is in
        write("proc/self/cgroup", "0::/system.slice/seawall.service\n");
        write("sys/fs/cgroup/system.slice/seawall.service/memory.max", "max\n");
        write("sys/fs/cgroup/system.slice/memory.max", "536870912\n");
        assert_eq!(bytes_below(root.path()), Some(512 << 20));
        // In a container it is the root that it sees
        write("proc/self/cgroup", "0::/\n");
        write("sys/fs/cgroup/memory.max", "268435456\n");
        assert_eq!(bytes_below(root.path()), Some(256 << 20));
        // And of version 1, which may be beside the other: on the group itself, or on what a container sees as the root
        write("proc/self/cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/1\n1:name=systemd:/\n0::/none\n");
        fs::remove_file(root.path().join("sys/fs/cgroup/memory.max")).unwrap();
        assert_eq!(bytes_below(root.path()), Some(2 << 30));
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(bytes_below(root.path()), Some(2 << 30));
        write("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "134217728\n");
        assert_eq!(bytes_below(root.path()), Some(128 << 20));
    }

    #[test]
    fn what_it_takes_at_most_grows_with_the_clusters_alone() {
        let each = bytes_max(3) - bytes_max(2);
        assert_eq!(bytes_max(100) - bytes_max(2), 98 * each);
        assert!(each > 16 << 20, "each has a block: {each}");
    }
}
