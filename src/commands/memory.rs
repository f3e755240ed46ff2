//! How much memory `run` takes at most for several clusters, and how much there is for it: of the machine, or of its control group.

use super::cluster::COMMON_MEMORY_BYTES;
use crate::archive::CommonMemory;
use std::fs;
use std::path::{Path, PathBuf};

/// What a process takes before it archives anything: its own file's pages, threads, libraries.
const PROCESS_BYTES: u64 = 64 << 20;

/// What a cluster takes beside its WAL: connections to its server and its store, metrics, what is scheduled.
const CLUSTER_BYTES: u64 = 2 << 20;

/// What streaming so many clusters, of which there are several, takes at most: if none of their stores answers, and nothing makes their
/// WAL smaller.
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
    // Version 2 (`Documentation/admin-guide/cgroup-v2.rst`): one line, and a limit at every level. `max` is none.
    let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).map(PathBuf::from);
    let levels = group.iter().flat_map(|group| group.ancestors());
    let limits = levels.filter_map(|level| {
        let text = read(root.join("sys/fs/cgroup").join(level).join("memory.max"))?;
        text.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min()
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
        // One of version 1 says nothing here
        write("proc/self/cgroup", "4:memory:/docker/1\n");
        assert_eq!(bytes_below(root.path()), Some(2 << 30));
    }

    #[test]
    fn what_it_takes_at_most_grows_with_the_clusters_alone() {
        let each = bytes_max(3) - bytes_max(2);
        assert_eq!(bytes_max(100) - bytes_max(2), 98 * each);
        assert!(each > 16 << 20, "each has a block: {each}");
    }
}
