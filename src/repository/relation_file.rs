//! Which relation a file of a base backup belongs to, by its path, and the names of incremental files. Pure.

use super::file_path::{FilePath, FilePathRef};
use crate::wal::RelationId;

/// Blocks in each file of a relation but the last: 1 GB of 8 KiB (`RELSEG_SIZE` in `pg_config.h`).
pub(crate) const SEGMENT_BLOCKS: u32 = 131_072;

/// In front of the name of a file that holds changed blocks alone (`sendDir` in `basebackup.c`, 17 and later).
const INCREMENTAL_PREFIX: &str = "INCREMENTAL.";

/// The tablespaces that are there from the beginning (`pg_tablespace.dat`): `base` and `global`.
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// What a file of a relation holds (`relpath.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// The relation itself.
    Main,
    /// Its free space map.
    FreeSpace,
    /// Its visibility map.
    Visibility,
    /// The empty form of an unlogged one.
    Init,
}

/// A file of a relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationFile {
    /// The relation.
    pub relation: RelationId,
    /// Its fork.
    pub fork: Fork,
    /// The number of the file in the fork, each but the last of 1 GB.
    pub segment: u32,
    /// It holds the blocks that have changed, and no others.
    pub is_incremental: bool,
}

impl RelationFile {
    /// Reads a path; `None` for a file of anything else.
    pub fn parse<'a>(path: impl Into<FilePathRef<'a>>) -> Option<RelationFile> {
        let path = path.into();
        let parts: Vec<&str> = std::str::from_utf8(path.as_bytes()).ok()?.split('/').collect();
        let (tablespace, database, name) = match parts[..] {
            ["global", name] => (GLOBAL_TABLESPACE, 0, name),
            ["base", database, name] => (DEFAULT_TABLESPACE, number(database)?, name),
            ["pg_tblspc", oid, version, database, name] if version.starts_with("PG_") => {
                (number(oid)?, number(database)?, name)
            }
            _ => return None,
        };
        let (is_incremental, name) =
            name.strip_prefix(INCREMENTAL_PREFIX).map_or((false, name), |whole_name| (true, whole_name));
        let (relation, segment) = match name.split_once('.') {
            Some((relation, segment)) => (relation, number(segment)?),
            None => (name, 0),
        };
        // Its blocks have numbers of 32 bits.
        segment.checked_mul(SEGMENT_BLOCKS)?;
        let (file, fork) = match relation.split_once('_') {
            None => (relation, Fork::Main),
            Some((file, "fsm")) => (file, Fork::FreeSpace),
            Some((file, "vm")) => (file, Fork::Visibility),
            Some((file, "init")) => (file, Fork::Init),
            Some(_) => return None,
        };
        let relation = RelationId { tablespace, database, file: number(file)? };
        Some(RelationFile { relation, fork, segment, is_incremental })
    }

    /// The number, in the fork, of the file's first block.
    pub fn first_block(&self) -> u32 {
        self.segment.wrapping_mul(SEGMENT_BLOCKS)
    }
}

/// Digits alone: `parse` takes a sign as well.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The path of the file whose changed blocks are at `path`: `base/5/16384` for `base/5/INCREMENTAL.16384`. `None` if
/// `path` is not that of an incremental file.
pub fn whole_path<'a>(path: impl Into<FilePathRef<'a>>) -> Option<FilePath> {
    let path = path.into();
    RelationFile::parse(path).filter(|file| file.is_incremental)?;
    let text = std::str::from_utf8(path.as_bytes()).ok()?;
    let (directory, name) = text.rsplit_once('/')?;
    FilePath::parse(format!("{directory}/{}", name.strip_prefix(INCREMENTAL_PREFIX)?).as_bytes()).ok()
}

/// Where an incremental backup has the changed blocks of the file at `path`: `base/5/INCREMENTAL.16384` for `base/5/16384`.
pub fn incremental_path<'a>(path: impl Into<FilePathRef<'a>>) -> Option<FilePath> {
    let bytes = path.into().as_bytes();
    let (directory, name) = bytes.split_at(bytes.iter().rposition(|&byte| byte == b'/')? + 1);
    FilePath::parse(&[directory, INCREMENTAL_PREFIX.as_bytes(), name].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Option<RelationFile> {
        RelationFile::parse(&FilePath::parse(path.as_bytes()).unwrap())
    }

    fn relation(tablespace: u32, database: u32, file: u32) -> RelationId {
        RelationId { tablespace, database, file }
    }

    #[test]
    fn files_of_relations_are_known_by_their_names() {
        let found = |path: &str| file(path).map(|file| (file.relation, file.fork, file.segment));
        assert_eq!(found("base/5/16384"), Some((relation(1663, 5, 16384), Fork::Main, 0)));
        assert_eq!(found("global/1262"), Some((relation(1664, 0, 1262), Fork::Main, 0)));
        assert_eq!(found("base/5/16384_vm"), Some((relation(1663, 5, 16384), Fork::Visibility, 0)));
        assert_eq!(found("base/1/2_init"), Some((relation(1663, 1, 2), Fork::Init, 0)));
        assert_eq!(file("base/5/16384.3").map(|file| file.first_block()), Some(3 * SEGMENT_BLOCKS));
        let spaced = found("pg_tblspc/16400/PG_15_202209061/5/16401_fsm.2");
        assert_eq!(spaced, Some((relation(16400, 5, 16401), Fork::FreeSpace, 2)));
        for path in [
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/1.2",
            "base/5/16384_other",
            "base/5/16384.x",
            "base/5/16384.",
            "base/5/+16384",
            "base/5/_vm",
            "base/5/99.4294967295",
            "base/5/99999999999",
            "base/5/INCREMENTAL.PG_VERSION",
            "pg_wal/000000010000000000000001",
            "pg_xact/0000",
            "pg_xact/INCREMENTAL.0000",
            "pg_tblspc/16400/5/16401",
            "16384",
        ] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    #[test]
    fn an_incremental_file_is_the_relations_and_names_the_whole_one() {
        let whole = |path: &str| whole_path(&FilePath::parse(path.as_bytes()).unwrap()).map(|path| path.to_string());
        for (incremental, expected) in [
            ("base/5/INCREMENTAL.16384", "base/5/16384"),
            ("global/INCREMENTAL.1262_vm", "global/1262_vm"),
            ("pg_tblspc/16400/PG_18_1/5/INCREMENTAL.16401.2", "pg_tblspc/16400/PG_18_1/5/16401.2"),
        ] {
            assert_eq!(whole(incremental).as_deref(), Some(expected));
            let changes = incremental_path(&FilePath::parse(expected.as_bytes()).unwrap());
            assert_eq!(changes.map(|path| path.to_string()).as_deref(), Some(incremental));
            let (one, other) = (file(incremental).unwrap(), file(expected).unwrap());
            assert_eq!(RelationFile { is_incremental: false, ..one }, other);
        }
        for path in ["base/5/16384", "INCREMENTAL.1", "base/INCREMENTAL.1", "base/5/INCREMENTAL.INCREMENTAL.1"] {
            assert_eq!(whole(path), None, "{path}");
        }
    }
}
