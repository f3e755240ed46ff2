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

/// The room that a restore takes in each place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Room {
    /// Bytes by directory: the data directory, its WAL, the tablespaces.
    needs: Vec<(PathBuf, u64)>,
    /// In the same places, what the backups give that an incremental one builds on.
    older: Vec<u64>,
    /// Bytes in the first two for WAL, counted in.
    recovery_bytes: u64,
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
        let needs: Vec<_> = own.into_iter().chain(tablespaces).collect();
        Room { older: vec![0; needs.len()], needs, recovery_bytes }
    }

    /// A file of the backup that will be written.
    pub(super) fn add(&mut self, destination: &Destination, path: FilePathRef<'_>, bytes: u64) {
        if let Some((_, needed)) = self.needs.get_mut(place(destination, path)) {
            let bytes = bytes.checked_next_multiple_of(DISK_BLOCK_BYTES).unwrap_or(u64::MAX);
            *needed = needed.saturating_add(bytes);
        }
    }

    /// Bytes that an older backup has of a file of which the newest has only changes.
    pub(super) fn add_older(&mut self, destination: &Destination, path: FilePathRef<'_>, bytes: u64) {
        if let Some(needed) = self.older.get_mut(place(destination, path)) {
            *needed = needed.saturating_add(bytes);
        }
    }

    /// All older backups are seen. They have the same blocks more than once, and give so many bytes together at most.
    pub(super) fn limit_older(&mut self, bytes_max: u64) {
        for ((_, needed), older) in self.needs.iter_mut().zip(&mut self.older) {
            *needed = needed.saturating_add(std::mem::take(older).min(bytes_max));
        }
    }

    /// WAL that is fetched with the files.
    pub(super) fn add_wal(&mut self, bytes: u64) {
        self.recovery_bytes = self.recovery_bytes.saturating_add(bytes);
        if let Some((_, needed)) = self.needs.get_mut(1) {
            *needed = needed.saturating_add(bytes);
        }
    }

    /// A file that will be removed before, with what it takes on the disk.
    pub(super) fn free(&mut self, destination: &Destination, path: FilePathRef<'_>, bytes: u64) {
        if let Some((_, needed)) = self.needs.get_mut(place(destination, path)) {
            *needed = needed.saturating_sub(bytes);
        }
    }

    /// Fails if a file system has less room than is needed on it.
    ///
    /// # Errors
    /// [`Kind::Local`], with what is needed and what there is.
    pub(super) fn check(&self) -> Result<()> {
        let mut by_device: BTreeMap<u64, (Vec<&Path>, u64)> = BTreeMap::new();
        for (path, bytes) in &self.needs {
            let found = existing(path);
            let found = std::fs::metadata(found).map_err(|error| Error::local("look at", found, error))?;
            let (paths, needed) = by_device.entry(found.dev()).or_default();
            paths.push(path);
            *needed = needed.saturating_add(*bytes);
        }
        for (paths, needed) in by_device.values() {
            let Some(place) = paths.first().map(|path| existing(path)) else { continue };
            let space = statvfs(place)
                .map_err(|error| Error::local("ask for the free space of", place, std::io::Error::from(error)))?;
            // The types differ from system to system. What only root may fill is of no use to a server.
            #[allow(clippy::useless_conversion)]
            let free = u64::from(space.blocks_available()).saturating_mul(u64::from(space.fragment_size()));
            if free < *needed {
                return Err(self.too_small(paths, *needed, free));
            }
        }
        Ok(())
    }

    fn too_small(&self, paths: &[&Path], needed: u64, free: u64) -> Error {
        let data = self.needs.first().map(|(data, _)| data.as_path());
        let has_data = paths.iter().any(|path| Some(*path) == data);
        // On one disk, the WAL is part of the data directory.
        let shown = paths
            .iter()
            .filter(|path| !has_data || Some(**path) == data || !data.is_some_and(|data| path.starts_with(data)));
        let shown: Vec<String> = shown.map(|path| path.display().to_string()).collect();
        let (needed, free) = (needed.div_ceil(1 << 20), free >> 20);
        let message = format!("the restore needs {needed} MiB for {}, and {free} MiB are free there", shown.join(", "));
        let recovery = match self.needs.iter().take(2).any(|(own, _)| paths.contains(&own.as_path())) {
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

    #[test]
    fn every_file_counts_in_its_own_place_once_however_many_backups_have_it() {
        let destination = destination();
        let path = |name: &str| FilePath::parse(name.as_bytes()).unwrap();
        let mut room = Room::new(&destination, 1 << 20);
        let recovery: Vec<u64> = room.needs.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!((recovery[1], &recovery[2..]), (4 << 20, &[0, 0][..]));
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
        // and one that goes, which is more than what comes in its place.
        room.free(&destination, path("pg_tblspc/16384/PG_18_1/5").view(), 2 << 20);
        let needs: Vec<u64> = room.needs.iter().zip(recovery).map(|((_, bytes), own)| bytes - own).collect();
        assert_eq!(needs, [(1 << 20) + 12_288, 4096, 0, 8 << 20]);
    }
}
