//! A server's data directory, found to be the one of the server that we are connected to.

use super::read::unreadable;
use super::walk::{CONTROL_FILE, Walk};
use crate::error::{Error, Kind, Result};
use crate::postgres::{Tablespace, Witness};
use crate::runtime;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A CRC that is wrong again and again is no write that was caught.
const CONTROL_TRIES: usize = 50;

/// Between two of them.
const CONTROL_PAUSE: Duration = Duration::from_millis(20);

/// `pg_control`, whole.
#[derive(Debug)]
pub(super) struct Control {
    /// All of the file.
    pub(super) bytes: Vec<u8>,
    pub(super) metadata: Metadata,
}

impl Control {
    /// Reads it until its checksum is right: the server may be writing it (`backup.sgml` warns of that).
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is none, [`Kind::Damaged`] if it has no checksum that is right.
    pub(super) async fn read(directory: &Path) -> Result<Control> {
        let path = directory.join(OsStr::from_bytes(CONTROL_FILE));
        for _ in 0..CONTROL_TRIES {
            let from = path.clone();
            let read = move || -> io::Result<_> { Ok((fs::read(&from)?, fs::metadata(&from)?)) };
            let (bytes, metadata) = match runtime::blocking(read).await? {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let text = format!("{} is no data directory: it has no global/pg_control", directory.display());
                    return Err(Error::new(Kind::Refused, text).hint(WHICH));
                }
                Err(error) => return Err(unreadable(&path, error)),
            };
            if has_its_checksum(&bytes) {
                return Ok(Control { bytes, metadata });
            }
            tokio::time::sleep(CONTROL_PAUSE).await;
        }
        Err(Error::new(Kind::Damaged, format!("{} does not have its checksum", path.display())))
    }

    /// The number that `initdb` gave the cluster: the first field of `ControlFileData` (`pg_control.h`).
    pub(super) fn system_identifier(&self) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[..8]);
        u64::from_ne_bytes(number)
    }

    /// What the cluster's directory is called in each tablespace (`TABLESPACE_VERSION_DIRECTORY`): the fourth field is the
    /// catalog's version, behind that of the file.
    pub(super) fn tablespace_directory(&self, server_version: u32) -> String {
        let mut number = [0; 4];
        number.copy_from_slice(&self.bytes[12..16]);
        format!("PG_{}_{}", server_version / 10_000, u32::from_ne_bytes(number))
    }
}

/// For whoever gave the wrong one.
pub(super) const WHICH: &str =
    "Give the directory that SHOW data_directory names, as it is called here, on the server's own machine.";

/// The CRC-32C of all before it is the last field, in the first 512 bytes (`PG_CONTROL_MAX_SAFE_SIZE`); where that is depends on the
/// version, and zeros follow.
fn has_its_checksum(bytes: &[u8]) -> bool {
    const FIELDS: usize = 16;
    const SAFE_BYTES: usize = 512;
    let Some((fields, rest)) = bytes.get(..SAFE_BYTES).and_then(|bytes| bytes.split_at_checked(FIELDS)) else {
        return false;
    };
    let mut crc = crc32c::crc32c(fields);
    rest.as_chunks::<4>().0.iter().any(|word| {
        let is_it = u32::from_ne_bytes(*word) == crc;
        crc = crc32c::crc32c_append(crc, word);
        is_it
    })
}

/// Fails unless `witness`, whom the server has just called, is in `directory`: it may be a copy, or another server's.
///
/// # Errors
/// [`Kind::Refused`].
pub(super) async fn find(witness: &Witness, directory: &Path, host: &str) -> Result<()> {
    let path = directory.join("pg_snapshots").join(&witness.name);
    let from = path.clone();
    let is_there = match runtime::blocking(move || fs::read_to_string(&from)).await? {
        Ok(text) => text.lines().any(|line| line == witness.line),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(unreadable(&path, error)),
    };
    match is_there {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Refused,
            format!("{} is not the data directory of the server at {host}", directory.display()),
        )
        .hint(format!("A file that this server has just written is not in it. {WHICH}"))),
    }
}

/// The tablespaces of a data directory, in the order of their OIDs (`do_pg_backup_start` in `xlog.c`).
///
/// # Errors
/// If `pg_tblspc` cannot be read.
pub(super) fn tablespaces(directory: &Path) -> Result<Vec<Tablespace>> {
    let links = directory.join("pg_tblspc");
    let failed = |error| unreadable(&links, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(&links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(oid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = entry.path();
        let location = match entry.file_type().map_err(failed)?.is_symlink() {
            true => match fs::read_link(&path) {
                Ok(target) => target.to_str().map(str::to_owned).ok_or_else(|| {
                    Error::new(
                        Kind::Refused,
                        format!("the tablespace {} has a name that is not UTF-8", target.display()),
                    )
                })?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(&path, error)),
            },
            // One in its place has no other (`allow_in_place_tablespaces`).
            false => format!("pg_tblspc/{oid}"),
        };
        found.push(Tablespace { oid, location, size_kib: None });
    }
    found.sort_unstable_by_key(|tablespace| tablespace.oid);
    Ok(found)
}

/// Where the files of a tablespace are, for us as for the server.
///
/// # Errors
/// [`Kind::Refused`] if they cannot be reached from here.
pub(super) fn walk_tablespace(directory: &Path, tablespace: &Tablespace, version: &str) -> Result<Walk> {
    let root: PathBuf = directory.join(format!("pg_tblspc/{}", tablespace.oid));
    Walk::of_tablespace(&root, tablespace.oid, version)
        .map_err(|error| unreachable(directory, tablespace, version, error))
}

/// Fails unless the tablespace has, from here, the `databases` that the server has in it: each cluster of the same version has a
/// directory of the same name, and the link may lead elsewhere here than it does for the server.
///
/// # Errors
/// [`Kind::Refused`]; [`Kind::Busy`] if it may have changed just now.
pub(super) async fn check_tablespace(
    directory: &Path,
    tablespace: &Tablespace,
    version: &str,
    databases: BTreeSet<u32>,
) -> Result<()> {
    let root = directory.join(format!("pg_tblspc/{}/{version}", tablespace.oid));
    let read = move || -> io::Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // The server passes over those that are empty.
            if fs::read_dir(entry.path())?.next().is_some() {
                found.insert(oid);
            }
        }
        Ok(found)
    };
    let found = match runtime::blocking(read).await? {
        Ok(found) => found,
        Err(error) => return Err(unreachable(directory, tablespace, version, error)),
    };
    if found == databases {
        return Ok(());
    }
    let shown = |databases: &BTreeSet<u32>| databases.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let text = format!(
        "the tablespace {} has files of the databases {} for the server, and of {} here",
        tablespace.oid,
        shown(&databases),
        shown(&found)
    );
    Err(Error::new(Kind::Busy, text).hint(TABLESPACES))
}

const TABLESPACES: &str =
    "Each tablespace must be where the server has it: in a container of its own, mount it at the same path.";

fn unreachable(directory: &Path, tablespace: &Tablespace, version: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            Kind::Refused,
            format!("the tablespace {} is not to be found at {} here", tablespace.oid, tablespace.location),
        )
        .hint(TABLESPACES),
        _ => unreadable(&directory.join(format!("pg_tblspc/{}/{version}", tablespace.oid)), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_that_was_caught_half_written_is_none() {
        // Given one as a server of some version has it: fields, their checksum, zeros
        let mut bytes: Vec<u8> = (1..=196).collect();
        bytes.extend(crc32c::crc32c(&bytes).to_ne_bytes());
        bytes.resize(8192, 0);
        assert!(has_its_checksum(&bytes));
        // Then no half of another is taken for it, nor nothing
        for at in [0, 15, 100, 195, 196, 199] {
            let mut torn = bytes.clone();
            torn[at] ^= 0x40;
            assert!(!has_its_checksum(&torn), "a change at {at}");
        }
        assert!(!has_its_checksum(&[0; 8192]));
        assert!(!has_its_checksum(&bytes[..300]));
        assert!(!has_its_checksum(&[]));
    }

    #[test]
    fn tablespaces_are_links_or_directories_with_numbers_for_names() {
        let place = tempfile::tempdir().unwrap();
        let links = place.path().join("pg_tblspc");
        fs::create_dir_all(links.join("16500")).unwrap();
        fs::create_dir(links.join("other")).unwrap();
        std::os::unix::fs::symlink("/srv/fast", links.join("9999")).unwrap();
        let found: Vec<_> = tablespaces(place.path()).unwrap().into_iter().map(|it| (it.oid, it.location)).collect();
        assert_eq!(found, [(9999, "/srv/fast".to_owned()), (16500, "pg_tblspc/16500".to_owned())]);
        // and one that is mounted elsewhere is named.
        let tablespace = Tablespace { oid: 9999, location: "/srv/fast".into(), size_kib: None };
        let error = walk_tablespace(place.path(), &tablespace, "PG_15_202209061").unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("/srv/fast"), "{error}");
    }

    #[tokio::test]
    async fn a_tablespace_of_another_cluster_is_told_by_its_databases() {
        // Given a tablespace with files of two databases, and what is left of a third
        let place = tempfile::tempdir().unwrap();
        let version = place.path().join("pg_tblspc/9999/PG_15_202209061");
        for database in ["5", "16400", "16500", "pgsql_tmp"] {
            fs::create_dir_all(version.join(database)).unwrap();
        }
        for file in ["5/1", "16400/1", "pgsql_tmp/1"] {
            fs::write(version.join(file), "").unwrap();
        }
        let tablespace = Tablespace { oid: 9999, location: "/srv/fast".into(), size_kib: None };
        let check = async |databases: &[u32]| {
            let databases = databases.iter().copied().collect();
            check_tablespace(place.path(), &tablespace, "PG_15_202209061", databases).await
        };
        check(&[5, 16400]).await.unwrap();
        for databases in [&[5][..], &[5, 16400, 16500], &[5, 16401], &[]] {
            let error = check(databases).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{error}");
        }
        let error = check_tablespace(place.path(), &tablespace, "PG_16_202307071", BTreeSet::new()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
    }
}
