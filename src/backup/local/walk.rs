//! What of a data directory belongs to a base backup, and in which order: as `basebackup.c` sends it (`sendDir`), but each directory
//! sorted by name, so that the same files make the same parts. Looks at names and metadata, reads nothing.

use crate::repository::{Archive, FilePath, Fork, RelationFile};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Written last, from memory.
pub(super) const CONTROL_FILE: &[u8] = b"global/pg_control";

/// Directories whose contents a starting server makes anew (`excludeDirContents`).
const EMPTIED: [&[u8]; 7] =
    [b"pg_stat_tmp", b"pg_replslot", b"pg_dynshmem", b"pg_notify", b"pg_serial", b"pg_snapshots", b"pg_subtrans"];

/// Files that would be wrong in another place or at another time (`excludeFiles`).
const LEFT_OUT: [&[u8]; 8] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b".DS_Store",
];

/// The same, by how their names begin: the relation cache's, and files and directories of running statements
/// (`PG_TEMP_FILE_PREFIX`).
const LEFT_OUT_PREFIXES: [&[u8]; 2] = [b"pg_internal.init", b"pgsql_tmp"];

/// What belongs to a backup.
#[derive(Debug)]
pub(super) enum Found {
    /// A directory; if not this very one, an empty one stands for it.
    Directory(Place),
    /// A regular file.
    File(Place),
    /// Something that is neither, and that a backup cannot hold.
    Special(Place),
}

/// Where something was found.
#[derive(Debug)]
pub(super) struct Place {
    /// On the disk.
    pub(super) path: PathBuf,
    /// In the archive.
    pub(super) name: Vec<u8>,
    /// Of the thing itself, when it was found.
    pub(super) metadata: Metadata,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    /// In the archive; empty for its root.
    name: Vec<u8>,
    /// Sorted.
    entries: Vec<OsString>,
    /// Entries that are done.
    next: usize,
}

/// Goes through one archive's part of a data directory.
#[derive(Debug)]
pub(super) struct Walk {
    /// Where the archive's root is on the disk.
    root: PathBuf,
    archive: Archive,
    levels: Vec<Level>,
    /// Found beside what was asked for.
    ready: Vec<Found>,
    /// Directories of tablespaces, which may lie in the data directory: device and inode of each.
    elsewhere: HashSet<(u64, u64)>,
}

impl Walk {
    /// Through the data directory, all tablespaces left out, `elsewhere` as well, if their directories lie in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn of_base(root: &Path, elsewhere: HashSet<(u64, u64)>) -> io::Result<Walk> {
        let (levels, ready) = (Vec::new(), Vec::new());
        let mut walk = Walk { root: root.to_owned(), archive: Archive::Base, levels, ready, elsewhere };
        walk.descend(Vec::new())?;
        Ok(walk)
    }

    /// Through the tablespace `oid`, at `root`, which others may share: only its directory `version` is this cluster's.
    ///
    /// # Errors
    /// If that is not there, or cannot be read.
    pub(super) fn of_tablespace(root: &Path, oid: u32, version: &str) -> io::Result<Walk> {
        let archive = Archive::Tablespace(oid);
        let (levels, ready, elsewhere) = (Vec::new(), Vec::new(), HashSet::new());
        let mut walk = Walk { root: root.to_owned(), archive, levels, ready, elsewhere };
        let path = root.join(version);
        let place = Place { metadata: fs::symlink_metadata(&path)?, path, name: version.as_bytes().to_vec() };
        walk.descend(place.name.clone())?;
        walk.ready.push(Found::Directory(place));
        Ok(walk)
    }

    /// Where it goes through.
    pub(super) fn archive(&self) -> Archive {
        self.archive
    }

    fn descend(&mut self, name: Vec<u8>) -> io::Result<()> {
        let path = self.root.join(OsStr::from_bytes(&name));
        let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        entries.sort_unstable();
        self.levels.push(Level { name, entries, next: 0 });
        Ok(())
    }

    /// The next thing, with the path at which an error happened.
    pub(super) fn next_found(&mut self) -> Result<Option<Found>, (PathBuf, io::Error)> {
        loop {
            if let Some(found) = self.ready.pop() {
                return Ok(Some(found));
            }
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(entry) = level.entries.get(level.next) else {
                self.levels.pop();
                continue;
            };
            level.next += 1;
            let name = match level.name.as_slice() {
                b"" => entry.as_bytes().to_vec(),
                parent => [parent, b"/", entry.as_bytes()].concat(),
            };
            let has_entry =
                |name: &str| level.entries.binary_search_by(|entry| entry.as_os_str().cmp(name.as_ref())).is_ok();
            if is_left_out(self.archive, &name, has_entry) {
                continue;
            }
            let path = self.root.join(OsStr::from_bytes(&name));
            if let Err(error) = self.look_at(path.clone(), name) {
                // What is gone is gone: the WAL says what became of it.
                if error.kind() != io::ErrorKind::NotFound {
                    return Err((path, error));
                }
            }
        }
    }

    fn look_at(&mut self, path: PathBuf, name: Vec<u8>) -> io::Result<()> {
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        let is_base = self.archive == Archive::Base;
        let may_be_directory = kind.is_dir() || kind.is_symlink();
        if may_be_directory && (is_emptied(&name) || is_base && name == b"pg_wal") {
            if is_base && name == b"pg_wal" {
                // WAL comes from the archive; the server sends this directory as well.
                let status =
                    Place { path: path.clone(), name: b"pg_wal/archive_status".to_vec(), metadata: metadata.clone() };
                self.ready.push(Found::Directory(status));
            }
            self.ready.push(Found::Directory(Place { path, name, metadata }));
        } else if kind.is_dir() {
            // The tablespaces in it have archives of their own.
            let has_archive = self.elsewhere.contains(&(metadata.dev(), metadata.ino()));
            if !(has_archive || is_base && name == b"pg_tblspc") {
                self.descend(name.clone())?;
            }
            self.ready.push(Found::Directory(Place { path, name, metadata }));
        } else if kind.is_file() {
            self.ready.push(Found::File(Place { path, name, metadata }));
        } else {
            self.ready.push(Found::Special(Place { path, name, metadata }));
        }
        Ok(())
    }
}

/// The last part of a name.
fn last(name: &[u8]) -> &[u8] {
    name.rsplit(|&byte| byte == b'/').next().unwrap_or(name)
}

fn is_emptied(name: &[u8]) -> bool {
    EMPTIED.contains(&last(name))
}

/// Whether the entry `name` of an archive is no part of it; `has_entry` tells what else is in its directory.
fn is_left_out(archive: Archive, name: &[u8], has_entry: impl Fn(&str) -> bool) -> bool {
    let entry = last(name);
    LEFT_OUT.contains(&entry)
        || LEFT_OUT_PREFIXES.iter().any(|prefix| entry.starts_with(prefix))
        || (archive == Archive::Base && name == CONTROL_FILE)
        || is_temporary(archive, name)
        || relation(archive, name).is_some_and(|file| {
            // Of an unlogged relation the empty form alone is worth anything after a crash.
            file.fork != Fork::Init && has_entry(&format!("{}_init", file.relation.file))
        })
}

/// The file's path below the data directory.
pub(super) fn path_of(archive: Archive, name: &[u8]) -> Option<FilePath> {
    let path = FilePath::parse(name).ok()?;
    Some(match archive {
        Archive::Base => path,
        Archive::Tablespace(oid) => path.in_tablespace(oid),
    })
}

/// A file of a relation in a database's directory.
fn relation(archive: Archive, name: &[u8]) -> Option<RelationFile> {
    RelationFile::parse(&path_of(archive, name)?).filter(|file| file.relation.database != 0)
}

/// A file of a temporary relation, named after its session and the relation: `t3_16384_fsm.1`
/// (`looks_like_temp_rel_name` in `reinit.c`).
fn is_temporary(archive: Archive, name: &[u8]) -> bool {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let (directory, entry) = name.split_at(name.len() - last(name).len());
    let behind_session = entry.strip_prefix(b"t").and_then(|rest| {
        let end = rest.iter().position(|&byte| byte == b'_')?;
        digits(&rest[..end]).then(|| &rest[end + 1..])
    });
    behind_session.is_some_and(|rest| relation(archive, &[directory, rest].concat()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(walk: &mut Walk) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(found) = walk.next_found().unwrap() {
            names.push(match found {
                Found::Directory(place) => format!("{}/", String::from_utf8_lossy(&place.name)),
                Found::File(place) => String::from_utf8_lossy(&place.name).into_owned(),
                Found::Special(place) => format!("? {}", String::from_utf8_lossy(&place.name)),
            });
        }
        names
    }

    fn make(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
    }

    #[test]
    fn what_a_starting_server_makes_anew_is_left_out() {
        // Given a data directory with everything that can be in one
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        make(
            root,
            &[
                "PG_VERSION",
                "postgresql.auto.conf",
                "postgresql.auto.conf.tmp",
                "backup_label",
                "backup_label.old",
                "tablespace_map",
                "backup_manifest",
                "postmaster.pid",
                "postmaster.opts",
                "current_logfiles",
                "current_logfiles.tmp",
                "global/pg_control",
                "global/pg_internal.init",
                "global/pg_internal.init.4711",
                "global/1262",
                "global/t3_1262",
                "base/5/16384",
                "base/5/16384_fsm",
                "base/5/16390",
                "base/5/16390.1",
                "base/5/16390_vm",
                "base/5/16390_init",
                "base/5/163900",
                "base/5/t3_16384",
                "base/5/t12_16384_fsm.2",
                "base/5/t_16384",
                "base/5/pg_internal.init",
                "base/pgsql_tmp/pgsql_tmp4711.0",
                "pg_stat_tmp/global.stat",
                "pg_replslot/seawall/state",
                "pg_snapshots/00000003-0000001B-1",
                "pg_subtrans/0000",
                "pg_wal/000000010000000000000001",
                "pg_wal/archive_status/000000010000000000000001.done",
                "pg_tblspc/16400/PG_15_202209061/5/16401",
                "pg_xact/0000",
                "within/PG_15_202209061/5/16402",
            ],
        );
        std::os::unix::fs::symlink("/etc", root.join("conf.d")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("pg_notify")).unwrap();
        // and a tablespace whose directory lies in it
        let within = fs::metadata(root.join("within")).unwrap();
        let elsewhere = HashSet::from([(within.dev(), within.ino())]);
        // When it is gone through, then in order, and without those
        assert_eq!(
            found(&mut Walk::of_base(root, elsewhere).unwrap()),
            [
                "PG_VERSION",
                "backup_label.old",
                "base/",
                "base/5/",
                "base/5/16384",
                "base/5/16384_fsm",
                "base/5/163900",
                "base/5/16390_init",
                "base/5/t_16384",
                "? conf.d",
                "current_logfiles",
                "global/",
                "global/1262",
                "global/t3_1262",
                "pg_notify/",
                "pg_replslot/",
                "pg_snapshots/",
                "pg_stat_tmp/",
                "pg_subtrans/",
                "pg_tblspc/",
                "pg_wal/",
                "pg_wal/archive_status/",
                "pg_xact/",
                "pg_xact/0000",
                "postgresql.auto.conf",
                "within/",
            ]
        );
    }

    #[test]
    fn of_a_tablespace_this_versions_directory_alone_is_ours() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        make(root, &["PG_14_202107181/5/1", "lost+found/x"]);
        let version = "PG_15_202209061";
        assert!(Walk::of_tablespace(root, 16400, version).is_err(), "nothing of it is there");
        for file in ["5/16401", "5/16402", "5/16402_init", "5/t3_16403", "pgsql_tmp/pgsql_tmp1.0"] {
            make(root, &[&format!("{version}/{file}")]);
        }
        let names = found(&mut Walk::of_tablespace(root, 16400, version).unwrap());
        let expected = ["", "5/", "5/16401", "5/16402_init"].map(|name| format!("{version}/{name}"));
        assert_eq!(names, expected);
    }

    #[test]
    fn what_vanishes_on_the_way_is_no_error() {
        let place = tempfile::tempdir().unwrap();
        make(place.path(), &["a", "b/1", "c/2"]);
        let mut walk = Walk::of_base(place.path(), HashSet::new()).unwrap();
        assert!(matches!(walk.next_found(), Ok(Some(Found::File(_)))));
        fs::remove_dir_all(place.path().join("b")).unwrap();
        fs::remove_file(place.path().join("c/2")).unwrap();
        assert_eq!(found(&mut walk), ["c/"]);
    }
}
