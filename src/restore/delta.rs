//! A restore over what is there already: what equals the backup by content stays, everything else goes. Blocking calls.
//!
//! Equal is a file of the manifest's length and CRC-32C: the only hash of a file that a backup has. That finds what a
//! crash, a torn write or a server did; it is no proof against somebody who forges files to have the right one.

use super::destination::{Destination, MARKER_FILE, TablespaceDestination};
use super::label::LABEL_FILE;
use super::part::{CONTROL_FILE, NOT_WRITTEN};
use super::tree::{self, REQUIRED_DIRECTORIES, Tree, WAL_DIRECTORY};
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::{FileCheck, Manifest};
use crate::repository::{FilePath, whole_path};
use crate::runtime;
use std::collections::HashSet;
use std::fs::{DirEntry, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What is there, against what the backup has.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Files that stay.
    pub(super) kept: HashSet<FilePath>,
    /// Bytes of them.
    pub(super) kept_bytes: u64,
    /// Directories that stay.
    directories: Vec<PathBuf>,
    /// What goes: what is in a directory stands before it. Without `pg_control`, which goes first.
    pub(super) removed: Vec<PathBuf>,
    /// Bytes on the disk of what goes, by the place that they become free in.
    pub(super) freed: Vec<(FilePath, u64)>,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

/// How far a comparison is, in bytes.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) done_bytes: AtomicU64,
    pub(super) total_bytes: AtomicU64,
}

/// A file that may be equal.
struct Candidate {
    path: PathBuf,
    name: FilePath,
    check: FileCheck,
    disk_bytes: u64,
}

/// Compares the directories of `destination` with `manifest`, from which what shall not be kept is left out. The label of
/// one of a `chain` is never kept: it says what the backup builds on, and is read as it comes.
pub(super) fn compare(
    destination: &Destination,
    manifest: &Manifest,
    major: u32,
    chain: bool,
    compared: &Compared,
) -> Result<Comparison> {
    let mut walk = Walk {
        destination,
        manifest,
        chain,
        version_prefix: format!("PG_{major}_").into_bytes(),
        wanted: wanted_directories(destination, manifest),
        candidates: Vec::new(),
        comparison: Comparison::default(),
    };
    walk.directory(&destination.data, &[])?;
    let Walk { candidates, mut comparison, .. } = walk;
    let total = candidates.iter().map(|candidate| candidate.check.size_bytes).sum();
    compared.total_bytes.store(total, Ordering::Relaxed);
    let equal = are_equal(&candidates, compared)?;
    for (candidate, equal) in candidates.into_iter().zip(equal) {
        if equal {
            comparison.kept_bytes += candidate.check.size_bytes;
            comparison.kept.insert(candidate.name);
        } else {
            // Files of directories that go are no candidates: the order does not matter.
            comparison.removed.push(candidate.path);
            comparison.freed.push((candidate.name, candidate.disk_bytes));
        }
    }
    Ok(comparison)
}

/// Removes what goes, `pg_control` first: from then on no server starts here. What stays gets owner and mode.
pub(super) fn clear(tree: &Tree, comparison: &Comparison) -> Result<()> {
    let control = tree.data().join(CONTROL_FILE);
    remove(&control)?;
    if let Some(directory) = control.parent().filter(|directory| directory.exists()) {
        tree::sync_directory(directory)?;
    }
    comparison.removed.iter().try_for_each(|path| remove(path))?;
    comparison.directories.iter().try_for_each(|path| tree.make_directory(path))?;
    comparison.kept.iter().try_for_each(|name| tree.keep(&tree.path_of(name)))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::local("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Directories, by their names below the data directory, that are needed whatever is in them.
fn wanted_directories(destination: &Destination, manifest: &Manifest) -> HashSet<Vec<u8>> {
    let mut wanted = HashSet::new();
    let in_place = destination.tablespaces.iter().filter(|it| it.in_place);
    let in_place = in_place.map(|it| format!("pg_tblspc/{}/", it.oid).into_bytes());
    let required = REQUIRED_DIRECTORIES.iter().map(|name| format!("{name}/").into_bytes());
    let files = manifest.files.keys().map(|path| path.as_bytes().to_vec());
    for name in in_place.chain(required).chain(files) {
        let mut above = name.as_slice();
        while let Some(slash) = above.iter().rposition(|&byte| byte == b'/') {
            above = &above[..slash];
            if !wanted.insert(above.to_vec()) {
                break;
            }
        }
    }
    wanted
}

struct Walk<'a> {
    destination: &'a Destination,
    manifest: &'a Manifest,
    chain: bool,
    /// How the directory of this major version begins in a tablespace, where other versions may have theirs.
    version_prefix: Vec<u8>,
    wanted: HashSet<Vec<u8>>,
    candidates: Vec<Candidate>,
    comparison: Comparison,
}

/// What stands at the root of a file system of its own, and is nobody's.
const LOST_AND_FOUND: &[u8] = b"lost+found";

impl Walk<'_> {
    /// Looks at what is in `directory`, which is called `name` below the data directory.
    fn directory(&mut self, directory: &Path, name: &[u8]) -> Result<()> {
        let failed = |error| Error::local("read", directory, error);
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let own = entry.file_name().as_bytes().to_vec();
            let is_root = name.is_empty() || name == WAL_DIRECTORY.as_bytes();
            if is_root && own == LOST_AND_FOUND {
                continue;
            }
            let name = if name.is_empty() { own } else { [name, b"/", &own].concat() };
            self.entry(&entry, name)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &DirEntry, name: Vec<u8>) -> Result<()> {
        let path = entry.path();
        if name == MARKER_FILE.as_bytes() || name == CONTROL_FILE.as_bytes() {
            // They come and go at moments of their own.
            return Ok(());
        }
        let found = entry.metadata().map_err(|error| Error::local("look at", &path, error))?;
        if found.is_dir() {
            self.directory(&path, &name)?;
            match self.wanted.contains(&name) {
                true => self.comparison.directories.push(path),
                false => self.comparison.removed.push(path),
            }
        } else if found.is_symlink() {
            self.link(path, &name)?;
        } else {
            self.file(path, &name, &found);
        }
        Ok(())
    }

    /// Two kinds of links are followed: `pg_wal` on another disk, and tablespaces where the restore puts them.
    fn link(&mut self, path: PathBuf, name: &[u8]) -> Result<()> {
        if name == WAL_DIRECTORY.as_bytes() && path.is_dir() {
            return self.directory(&path, name);
        }
        let oid = name.strip_prefix(b"pg_tblspc/").map(|oid| String::from_utf8_lossy(oid).into_owned());
        let target = std::fs::read_link(&path).map_err(|error| Error::local("read", &path, error))?;
        let is_it = |it: &&TablespaceDestination| !it.in_place && Some(it.oid.to_string()) == oid && it.to == target;
        match (self.destination.tablespaces.iter().find(is_it), oid) {
            (Some(tablespace), _) => self.tablespace(tablespace, name),
            (None, oid) => {
                if path.exists() {
                    let what = oid
                        .map_or_else(|| String::from_utf8_lossy(name).into_owned(), |oid| format!("tablespace {oid}"));
                    let text = format!("{what} was at {}: what is there was left alone", target.display());
                    self.comparison.warnings.push(text);
                }
                self.comparison.removed.push(path);
                Ok(())
            }
        }
    }

    /// Of a tablespace's directory, what is this major version's.
    fn tablespace(&mut self, tablespace: &TablespaceDestination, name: &[u8]) -> Result<()> {
        let directory = &tablespace.to;
        let failed = |error| Error::local("read", directory, error);
        let listed = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            listed => listed.map_err(failed)?,
        };
        for entry in listed {
            let entry = entry.map_err(failed)?;
            let own = entry.file_name().as_bytes().to_vec();
            if own.starts_with(&self.version_prefix) {
                self.entry(&entry, [name, b"/", &own].concat())?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, name: &[u8], found: &Metadata) {
        let name = FilePath::parse(name).ok();
        let disk_bytes = found.blocks().saturating_mul(512);
        let check = name.as_ref().and_then(|name| self.manifest.files.get(name)).copied();
        let never_stays = |name: &FilePath| {
            let is = |other: &str| other.as_bytes() == name.as_bytes();
            // Of an incremental backup that somebody unpacked here, nothing is what its name says.
            NOT_WRITTEN.iter().any(|other| is(other)) || self.chain && is(LABEL_FILE) || whole_path(name).is_some()
        };
        match (name, check) {
            (Some(name), Some(check)) if found.is_file() && found.len() == check.size_bytes && !never_stays(&name) => {
                self.candidates.push(Candidate { path, name, check, disk_bytes });
            }
            (name, _) => {
                self.comparison.removed.push(path);
                self.comparison.freed.extend(name.map(|name| (name, disk_bytes)));
            }
        }
    }
}

/// Which candidates are equal: reads them all, on every processor.
fn are_equal(candidates: &[Candidate], compared: &Compared) -> Result<Vec<bool>> {
    let next = AtomicUsize::new(0);
    let compare_some = || -> Result<Vec<(usize, bool)>> {
        let (mut equal, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(candidate) = candidates.get(index) else { return Ok(equal) };
            let crc32c = crc_of(&candidate.path, &mut buffer, compared)?;
            equal.push((index, crc32c == candidate.check.crc32c));
        }
    };
    let mut all = vec![false; candidates.len()];
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..runtime::processors()).map(|_| scope.spawn(compare_some)).collect();
        for thread in threads {
            let broken = |_| Error::new(Kind::Internal, "a thread that compares files did not finish");
            for (index, equal) in thread.join().map_err(broken)?? {
                all[index] = equal;
            }
        }
        Ok(())
    })?;
    Ok(all)
}

fn crc_of(path: &Path, buffer: &mut [u8], compared: &Compared) -> Result<u32> {
    let failed = |error| Error::local("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut crc32c = 0;
    loop {
        let bytes = file.read(buffer).map_err(failed)?;
        if bytes == 0 {
            return Ok(crc32c);
        }
        crc32c = crc32c::crc32c_append(crc32c, &buffer[..bytes]);
        compared.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
