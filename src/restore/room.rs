//! Whether a restore has room, file system by file system: looked at before anything is written.

use super::ahead::BATCH_BYTES;
use super::destination::Destination;
use super::tree::WAL_DIRECTORY;
use crate::error::{Error, Kind, Result};
use crate::repository::FilePathRef;
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Segments that recovery keeps in `pg_wal` at once, about: what is being replayed, restored and recycled.
const SEGMENTS_KEPT: u64 = 4;

/// What most file systems hand out at least: a file of one byte takes so much.
const DISK_BLOCK_BYTES: u64 = 4096;

/// The room that a restore takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Room {
    /// By directory: the data directory, its WAL, the tablespaces.
    places: Vec<(PathBuf, Need)>,
    /// Older backups have the same blocks more than once: to all places together they give so many bytes at most.
    older_max: u64,
    /// Bytes in the first two for WAL, counted in.
    recovery_bytes: u64,
}

/// Bytes that a place, or a disk, takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Need {
    /// For what is fetched of the backup itself.
    own: u64,
    /// For what the backups have that an incremental one builds on.
    older: u64,
    /// Free once that is removed which goes before.
    freed: u64,
}

impl Need {
    fn join(&mut self, other: Need) {
        self.own = self.own.saturating_add(other.own);
        self.older = self.older.saturating_add(other.older);
        self.freed = self.freed.saturating_add(other.freed);
    }

    fn bytes(self, older_max: u64) -> u64 {
        self.own.saturating_add(self.older.min(older_max)).saturating_sub(self.freed)
    }
}

impl Room {
    /// Room for recovery of a cluster with segments of this size, and for nothing else yet.
    pub(super) fn new(destination: &Destination, segment_bytes: u64) -> Room {
        let data = &destination.data;
        // The spool lies in the data directory, the WAL of recovery perhaps on another disk.
        let own =
            [(data.clone(), BATCH_BYTES), (data.join(WAL_DIRECTORY), SEGMENTS_KEPT.saturating_mul(segment_bytes))];
        let recovery_bytes = own.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let tablespaces = destination.tablespaces.iter().map(|tablespace| (tablespace.to.clone(), 0));
        let places = own.into_iter().chain(tablespaces).map(|(path, own)| (path, Need { own, ..Need::default() }));
        Room { places: places.collect(), older_max: u64::MAX, recovery_bytes }
    }

    fn place(&mut self, destination: &Destination, path: FilePathRef<'_>) -> Option<&mut Need> {
        self.places.get_mut(place(destination, path)).map(|(_, need)| need)
    }

    /// A file of the backup that will be written.
    pub(super) fn add(&mut self, destination: &Destination, path: FilePathRef<'_>, bytes: u64) {
        let own = bytes.checked_next_multiple_of(DISK_BLOCK_BYTES).unwrap_or(u64::MAX);
        if let Some(need) = self.place(destination, path) {
            need.join(Need { own, ..Need::default() });
        }
    }

    /// Bytes that an older backup has of a file of which the newest has only changes.
    pub(super) fn add_older(&mut self, destination: &Destination, path: FilePathRef<'_>, older: u64) {
        if let Some(need) = self.place(destination, path) {
            need.join(Need { older, ..Need::default() });
        }
    }

    /// Older backups give so many bytes at most.
    pub(super) fn limit_older(&mut self, bytes_max: u64) {
        self.older_max = bytes_max;
    }

    /// WAL that is fetched with the files.
    pub(super) fn add_wal(&mut self, bytes: u64) {
        self.recovery_bytes = self.recovery_bytes.saturating_add(bytes);
        if let Some((_, need)) = self.places.get_mut(1) {
            need.own = need.own.saturating_add(bytes);
        }
    }

    /// A file that will be removed before, with what it takes on the disk.
    pub(super) fn free(&mut self, destination: &Destination, path: FilePathRef<'_>, freed: u64) {
        if let Some(need) = self.place(destination, path) {
            need.join(Need { freed, ..Need::default() });
        }
    }

    /// What each disk needs, and which of the places lie on it: `disk` says on which a place lies.
    fn by_disk<Disk: Ord>(&self, disk: impl Fn(&Path) -> Result<Disk>) -> Result<Vec<(Vec<&Path>, u64)>> {
        let mut disks: BTreeMap<Disk, (Vec<&Path>, Need)> = BTreeMap::new();
        for (path, need) in &self.places {
            let (paths, all) = disks.entry(disk(path)?).or_default();
            paths.push(path);
            all.join(*need);
        }
        Ok(disks.into_values().map(|(paths, need)| (paths, need.bytes(self.older_max))).collect())
    }

    /// Fails if a file system has less room than is needed on it.
    ///
    /// # Errors
    /// [`Kind::Local`], with what is needed and what there is.
    pub(super) fn check(&self) -> Result<()> {
        let device = |path: &Path| {
            let found = existing(path);
            std::fs::metadata(found).map(|found| found.dev()).map_err(|error| Error::local("look at", found, error))
        };
        for (paths, needed) in self.by_disk(device)? {
            let Some(place) = paths.first().map(|path| existing(path)) else { continue };
            let space = statvfs(place)
                .map_err(|error| Error::local("ask for the free space of", place, std::io::Error::from(error)))?;
            // The types differ from system to system. What only root may fill is of no use to a server.
            #[allow(clippy::useless_conversion)]
            let free = u64::from(space.blocks_available()).saturating_mul(u64::from(space.fragment_size()));
            if free < needed {
                return Err(self.too_small(&paths, needed, free));
            }
        }
        Ok(())
    }

    fn too_small(&self, paths: &[&Path], needed: u64, free: u64) -> Error {
        let data = self.places.first().map(|(data, _)| data.as_path());
        let has_data = paths.iter().any(|path| Some(*path) == data);
        // On one disk, the WAL is part of the data directory.
        let shown = paths
            .iter()
            .filter(|path| !has_data || Some(**path) == data || !data.is_some_and(|data| path.starts_with(data)));
        let shown: Vec<String> = shown.map(|path| path.display().to_string()).collect();
        let (needed, free) = (needed.div_ceil(1 << 20), free >> 20);
        let message = format!("the restore needs {needed} MiB for {}, and {free} MiB are free there", shown.join(", "));
        let recovery = match self.places.iter().take(2).any(|(own, _)| paths.contains(&own.as_path())) {
            true => format!(" {} MiB of it are for WAL.", self.recovery_bytes >> 20),
            false => String::new(),
        };
        let hint = "Nothing was written. Free some room, or choose another place (for a tablespace: --tablespace-map).";
        Error::new(Kind::Local, message).hint(format!("{hint}{recovery}"))
    }
}

/// Where a file lies, by the order of the places.
fn place(destination: &Destination, path: FilePathRef<'_>) -> usize {
    let tablespace = destination.tablespaces.iter().position(|it| path.is_within(&format!("pg_tblspc/{}", it.oid)));
    match tablespace {
        Some(index) => index + 2,
        None => usize::from(path.is_within(WAL_DIRECTORY)),
    }
}

/// The part of the path that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::super::destination::TablespaceDestination;
    use super::super::ground::Ground;
    use super::*;
    use crate::repository::FilePath;

    /// A data directory and two tablespaces.
    fn destination() -> Destination {
        let tablespace = |oid: u32| TablespaceDestination {
            oid,
            from: format!("/srv/{oid}"),
            to: format!("/new/{oid}").into(),
            in_place: false,
        };
        Destination {
            data: "/new/data".into(),
            ground: Ground::Empty,
            control: None,
            tablespaces: [16_384, 16_385].map(tablespace).to_vec(),
            creates: Vec::new(),
            owner: None,
            directory_mode: 0o700,
        }
    }

    /// What the disk of each path needs beside recovery, where `disk` says on which it lies.
    fn needs(room: &Room, disk: impl Fn(&Path) -> bool) -> Vec<u64> {
        let recovery = Room::new(&destination(), 1 << 20);
        let all = [room, &recovery].map(|room| room.by_disk(|path| Ok(disk(path))).unwrap());
        all[0].iter().zip(&all[1]).map(|((_, bytes), (_, own))| bytes - own).collect()
    }

    #[test]
    fn every_file_counts_on_its_own_disk_once_however_many_backups_have_it() {
        let destination = destination();
        let path = |name: &str| FilePath::parse(name.as_bytes()).unwrap();
        let mut room = Room::new(&destination, 1 << 20);
        // Given files that will be written, whole blocks of the disk each
        room.add(&destination, path("base/5/1259").view(), 10_000);
        room.add(&destination, path("pg_wal/archive_status/x").view(), 1);
        room.add(&destination, path("pg_tblspc/16384/PG_18_1/5/16390").view(), 1 << 20);
        // and what older backups have of some, which is more than they give
        for _ in 0..2 {
            room.add_older(&destination, path("pg_tblspc/16385/PG_18_1/5/16391").view(), 5 << 20);
        }
        room.add_older(&destination, path("base/5/1260").view(), 1 << 20);
        room.limit_older(8 << 20);
        // Then each disk needs what is on it, and no more of older backups than they give, on one disk or on two
        let is_tablespace = |path: &Path| path != Path::new("/new/data") && !path.ends_with("pg_wal");
        assert_eq!(needs(&room, is_tablespace), [(1 << 20) + 12_288 + 4096, (1 << 20) + (8 << 20)]);
        assert_eq!(needs(&room, |_| true), [(1 << 20) + 12_288 + 4096 + (8 << 20)]);
        // And what goes makes room for what comes in its place, whoever has it
        room.free(&destination, path("pg_tblspc/16384/PG_18_1/5").view(), 3 << 20);
        assert_eq!(needs(&room, is_tablespace), [(1 << 20) + 12_288 + 4096, 6 << 20]);
    }
}
