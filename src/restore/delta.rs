//! A restore over what is there already: what equals the backup by content stays, everything else goes. Blocking calls.
//!
//! Equal is a file of the manifest's length and CRC-32C: the only hash of a file that a backup has. That finds what a
//! crash, a torn write or a server did; it is no proof against somebody who forges files to have the right one.

use super::destination::{Destination, MARKER_FILE, TablespaceDestination};
use super::label::LABEL_FILE;
use super::number_set::NumberSet;
use super::part::{CONTROL_FILE, NOT_WRITTEN};
use super::tree::{self, REQUIRED_DIRECTORIES, Tree, WAL_DIRECTORY};
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::{Manifest, ManifestFiles};
use crate::repository::{FilePath, FilePathRef, whole_path};
use crate::runtime;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirEntry, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What is there, against what the backup has.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Files that stay, by their places in the manifest.
    pub(super) kept: NumberSet,
    /// Bytes of them.
    pub(super) kept_bytes: u64,
    /// Directories that stay.
    directories: Vec<PathBuf>,
    /// What goes: what is in a directory stands before it. Without `pg_control`, which goes first.
    pub(super) removed: Removed,
    /// Bytes on the disk of files that go, by the directory that they are in, or for the outermost ones by the file.
    pub(super) freed: BTreeMap<FilePath, u64>,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

impl Comparison {
    /// The file of this name goes.
    fn free(&mut self, name: &FilePath, disk_bytes: u64) {
        let directory = name.as_bytes().iter().rposition(|&byte| byte == b'/').map(|end| &name.as_bytes()[..end]);
        let place = directory.and_then(|directory| FilePath::parse(directory).ok()).unwrap_or_else(|| name.clone());
        let freed = self.freed.entry(place).or_default();
        *freed = freed.saturating_add(disk_bytes);
    }
}

/// Files, links and directories that go, in order: a million of them may, and their paths lie in one piece of memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// With a zero byte behind each, which none has.
    paths: Vec<u8>,
    count: usize,
}

impl Removed {
    fn push(&mut self, path: &Path) {
        self.paths.extend_from_slice(path.as_os_str().as_bytes());
        self.paths.push(0);
        self.count += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if nothing goes.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let mut rest = self.paths.as_slice();
        std::iter::from_fn(move || {
            let end = rest.iter().position(|&byte| byte == 0)?;
            let path = &rest[..end];
            rest = &rest[end + 1..];
            Some(Path::new(OsStr::from_bytes(path)))
        })
    }
}

impl Serialize for Removed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.paths())
    }
}

/// How far a comparison is, in bytes.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) done_bytes: AtomicU64,
    pub(super) total_bytes: AtomicU64,
}

/// A file that may be equal: its place in the manifest, and what it takes on the disk.
struct Candidate {
    place: usize,
    disk_bytes: u64,
}

/// Compares the directories of `destination` with a manifest, of which the files in some places shall not be kept. The
/// label of one of a `chain` is never kept: it says what the backup builds on, and is read as it comes.
pub(super) fn compare(
    destination: &Destination,
    (manifest, not_kept): (&Manifest, &NumberSet),
    major: u32,
    chain: bool,
    compared: &Compared,
) -> Result<Comparison> {
    let files = &manifest.files;
    let mut walk = Walk {
        destination,
        files,
        not_kept,
        chain,
        version_prefix: format!("PG_{major}_").into_bytes(),
        wanted: wanted_directories(destination, (files, not_kept)),
        candidates: Vec::new(),
        comparison: Comparison::default(),
    };
    walk.directory(&destination.data, &[])?;
    let Walk { candidates, mut comparison, .. } = walk;
    let checks = candidates.iter().filter_map(|candidate| files.at(candidate.place));
    let total = checks.map(|(_, check)| check.size_bytes).fold(0, u64::saturating_add);
    compared.total_bytes.store(total, Ordering::Relaxed);
    let data = &destination.data;
    let equal = are_equal(data, files, &candidates, compared)?;
    for (at, candidate) in candidates.iter().enumerate() {
        let Some((name, check)) = files.at(candidate.place) else { continue };
        if equal.contains(at) {
            comparison.kept_bytes += check.size_bytes;
            comparison.kept.insert(candidate.place);
        } else {
            // Files of directories that go are no candidates: the order does not matter.
            comparison.removed.push(&path_below(data, name));
            comparison.free(&name.to_path(), candidate.disk_bytes);
        }
    }
    Ok(comparison)
}

/// Where a file is that the manifest calls so: as the server would go there, through the links to tablespaces.
fn path_below(data: &Path, name: FilePathRef<'_>) -> PathBuf {
    data.join(OsStr::from_bytes(name.as_bytes()))
}

/// Removes what goes, `pg_control` first: from then on no server starts here. What stays gets owner and mode.
pub(super) fn clear(tree: &Tree, files: &ManifestFiles, comparison: &Comparison) -> Result<()> {
    let control = tree.data().join(CONTROL_FILE);
    remove(&control)?;
    if let Some(directory) = control.parent().filter(|directory| directory.exists()) {
        tree::sync_directory(directory)?;
    }
    comparison.removed.paths().try_for_each(remove)?;
    comparison.directories.iter().try_for_each(|path| tree.make_directory(path))?;
    let mut kept = comparison.kept.iter().filter_map(|place| files.at(place));
    kept.try_for_each(|(name, _)| tree.keep(&tree.path_of(name)))
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
fn wanted_directories(destination: &Destination, (files, not_kept): (&ManifestFiles, &NumberSet)) -> HashSet<Vec<u8>> {
    let mut wanted: HashSet<Vec<u8>> = HashSet::new();
    let mut want_above = |name: &[u8]| {
        let mut above = name;
        while let Some(slash) = above.iter().rposition(|&byte| byte == b'/') {
            above = &above[..slash];
            if wanted.contains(above) {
                break;
            }
            wanted.insert(above.to_vec());
        }
    };
    for tablespace in destination.tablespaces.iter().filter(|it| it.in_place) {
        want_above(format!("pg_tblspc/{}/", tablespace.oid).as_bytes());
    }
    REQUIRED_DIRECTORIES.iter().for_each(|name| want_above(format!("{name}/").as_bytes()));
    let kept = files.iter().filter(|(place, ..)| !not_kept.contains(*place));
    kept.for_each(|(_, path, _)| want_above(path.as_bytes()));
    wanted
}

struct Walk<'a> {
    destination: &'a Destination,
    files: &'a ManifestFiles,
    /// Places of files that do not stay, whatever is in them.
    not_kept: &'a NumberSet,
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
                false => self.comparison.removed.push(&path),
            }
        } else if found.is_symlink() {
            self.link(path, &name)?;
        } else {
            self.file(&path, &name, &found);
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
                self.comparison.removed.push(&path);
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

    fn file(&mut self, path: &Path, name: &[u8], found: &Metadata) {
        let name = FilePath::parse(name).ok();
        let disk_bytes = found.blocks().saturating_mul(512);
        let place =
            name.as_ref().and_then(|name| self.files.find(name)).filter(|place| !self.not_kept.contains(*place));
        let check = place.and_then(|place| self.files.at(place));
        let never_stays = |name: FilePathRef<'_>| {
            let is = |other: &str| other.as_bytes() == name.as_bytes();
            // Of an incremental backup that somebody unpacked here, nothing is what its name says.
            NOT_WRITTEN.iter().any(|other| is(other)) || self.chain && is(LABEL_FILE) || whole_path(name).is_some()
        };
        match (place, check) {
            (Some(place), Some((name, check)))
                if found.is_file() && found.len() == check.size_bytes && !never_stays(name) =>
            {
                self.candidates.push(Candidate { place, disk_bytes });
            }
            _ => {
                self.comparison.removed.push(path);
                if let Some(name) = &name {
                    self.comparison.free(name, disk_bytes);
                }
            }
        }
    }
}

/// Which candidates are equal, by their places in the list: reads them all, on every processor.
fn are_equal(data: &Path, files: &ManifestFiles, candidates: &[Candidate], compared: &Compared) -> Result<NumberSet> {
    let next = AtomicUsize::new(0);
    let compare_some = || -> Result<NumberSet> {
        let (mut equal, mut buffer) = (NumberSet::default(), vec![0; 1 << 20]);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let candidate = candidates.get(index).and_then(|candidate| files.at(candidate.place));
            let Some((name, check)) = candidate else { return Ok(equal) };
            if crc_of(&path_below(data, name), &mut buffer, compared)? == check.crc32c {
                equal.insert(index);
            }
        }
    };
    let mut all = NumberSet::default();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..runtime::processors()).map(|_| scope.spawn(compare_some)).collect();
        for thread in threads {
            let broken = |_| Error::new(Kind::Internal, "a thread that compares files did not finish");
            all.extend(thread.join().map_err(broken)??.iter());
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
