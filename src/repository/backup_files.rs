//! The list of files in `backup.json`: a million entries in two pieces of memory, read and written one by one. Pure.

use super::file_path::{FilePath, FilePathRef};
use super::paths::{Paths, make_room};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A file of a base backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupFile {
    /// As in the manifest: relative to the data directory, tablespaces as `pg_tblspc/<oid>/…`. In JSON it is text, or
    /// `{"hex": "…"}` where it is not UTF-8.
    pub path: FilePath,
    /// Index into [`BackupDocument::parts`](super::BackupDocument::parts) of the part with its first byte.
    pub part: u32,
    /// Where its first byte is in that part's tar bytes.
    pub offset: u64,
    /// Its length. What does not fit into the part goes on at the beginning of the next.
    pub bytes: u64,
}

/// One of [`BackupFiles`]: the fields are those of [`BackupFile`]. In JSON `[path, part, offset, bytes]`, to keep half a
/// million of them small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct BackupFileRef<'a> {
    pub path: FilePathRef<'a>,
    pub part: u32,
    pub offset: u64,
    pub bytes: u64,
}

/// The files of a base backup, in the order of its tar streams: some 45 bytes of memory for each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackupFiles {
    paths: Paths,
    places: Vec<Place>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    part: u32,
    offset: u64,
    bytes: u64,
}

impl BackupFiles {
    /// Adds one behind the others.
    pub fn push(&mut self, file: BackupFileRef<'_>) {
        let BackupFileRef { path, part, offset, bytes } = file;
        self.paths.push(path);
        make_room(&mut self.places, 1);
        self.places.push(Place { part, offset, bytes });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The one in this place, from 0.
    pub fn get(&self, place: usize) -> Option<BackupFileRef<'_>> {
        let (path, &Place { part, offset, bytes }) = (self.paths.get(place)?, self.places.get(place)?);
        Some(BackupFileRef { path, part, offset, bytes })
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = BackupFileRef<'_>> {
        (0..self.len()).filter_map(|place| self.get(place))
    }

    /// Their paths, in the same order.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }
}

impl BackupFile {
    /// The same, without a share in its path.
    pub fn view(&self) -> BackupFileRef<'_> {
        BackupFileRef { path: self.path.view(), part: self.part, offset: self.offset, bytes: self.bytes }
    }
}

impl FromIterator<BackupFile> for BackupFiles {
    fn from_iter<I: IntoIterator<Item = BackupFile>>(files: I) -> BackupFiles {
        let mut list = BackupFiles::default();
        files.into_iter().for_each(|file| list.push(file.view()));
        list
    }
}

impl Serialize for BackupFileRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.path, self.part, self.offset, self.bytes).serialize(serializer)
    }
}

impl Serialize for BackupFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for BackupFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BackupFiles, D::Error> {
        deserializer.deserialize_seq(ReadFiles)
    }
}

struct ReadFiles;

impl<'de> Visitor<'de> for ReadFiles {
    type Value = BackupFiles;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<BackupFiles, A::Error> {
        let mut files = BackupFiles::default();
        while let Some((path, part, offset, bytes)) = list.next_element::<(FilePath, u32, u64, u64)>()? {
            files.push(BackupFileRef { path: path.view(), part, offset, bytes });
        }
        Ok(files)
    }
}
