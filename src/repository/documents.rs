//! The JSON documents of a repository. Their fields are the format: a change that an older Seawall cannot read takes a
//! new [`FORMAT_VERSION`] and a reader for both.

use super::backup_files::BackupFiles;
use super::file_path::FilePath;
use super::layout::BackupId;
use super::part_name::PartName;
use crate::codec::Ending;
use crate::wal::{History, Lsn, TimelineId};
use bytes::Bytes;
use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::Formatter;
use std::collections::BTreeMap;
use std::{fmt, io};

/// The repository's format. Raised only when an older Seawall would misread what a newer one writes; every Seawall
/// reads all formats up to its own, and refuses later ones by number.
pub const FORMAT_VERSION: u32 = 1;

/// No part has more bytes, as tar or as it is stored: a reader may hold one in memory.
pub const PART_BYTES_MAX: u64 = 64 << 20;

/// `cluster.json`: whose WAL and backups these are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// [`FORMAT_VERSION`] of the repository.
    pub format: u32,
    /// PostgreSQL's system identifier, a decimal number too long for JSON's.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// `server_version_num` when the folder was made, for instance 150018.
    pub postgres_version: u32,
    /// The segment size, in bytes.
    pub segment_bytes: u64,
    /// When the folder was made.
    pub created_at: Timestamp,
}

/// `begin.json`: a base backup has begun, and needs WAL from `start_lsn` on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupBegin {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// Whose.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// When, by our clock.
    pub started_at: Timestamp,
    /// The redo position: recovery starts here.
    pub start_lsn: Lsn,
    /// The timeline of `start_lsn`.
    pub timeline: TimelineId,
    /// The backup that it will build on; `None`: on none, it is a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<BackupId>,
}

/// `backup.json`: the base backup exists, and this is what is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupDocument {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// The backup that it builds on: it is an incremental one, and of no use without that and what that builds on. `None`:
    /// it is a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<BackupId>,
    /// The label that the operator gave it.
    pub label: String,
    /// Whose.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// `server_version_num`.
    pub postgres_version: u32,
    /// When it began, by our clock.
    pub started_at: Timestamp,
    /// When its last byte and all the WAL it needs were stored, by our clock.
    pub ended_at: Timestamp,
    /// The redo position: recovery starts here.
    pub start_lsn: Lsn,
    /// The timeline of `start_lsn`.
    pub timeline: TimelineId,
    /// Recovery is consistent from here on.
    pub end_lsn: Lsn,
    /// The timeline of `end_lsn`.
    pub end_timeline: TimelineId,
    /// The WAL that recovery to `end_lsn` needs, as PostgreSQL's manifest lists it.
    pub wal_ranges: Vec<WalNeed>,
    /// Server settings that a restore needs, as `SHOW` printed them.
    pub settings: BTreeMap<String, String>,
    /// Tablespaces other than the default ones.
    pub tablespaces: Vec<BackupTablespace>,
    /// Bytes of all files, uncompressed.
    pub plain_bytes: u64,
    /// Bytes that a restore of an incremental backup writes; of a full one they are `plain_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_bytes: Option<u64>,
    /// Bytes of all parts, as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the manifest as PostgreSQL sent it.
    pub manifest_sha256: String,
    /// How its parts and its manifest are stored, as the ends of their names say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ending: Ending,
    /// What was found wrong with it while it was taken.
    #[serde(default, skip_serializing_if = "Findings::is_empty")]
    pub findings: Findings,
    /// The objects, in the order of their tar streams.
    pub parts: Vec<BackupPart>,
    /// Where each file is. Last, so that the rest can be read without it.
    #[serde(default)]
    pub files: BackupFiles,
}

impl BackupDocument {
    /// What operators call it: `full` or `incremental`.
    pub fn backup_type(&self) -> &'static str {
        if self.reference.is_some() { "incremental" } else { "full" }
    }

    /// True if recovery along `history` can begin with it: it lies wholly on the path.
    pub fn is_on_path(&self, history: &History) -> bool {
        let last_byte = Lsn(self.end_lsn.0.saturating_sub(1)).max(self.start_lsn);
        history.timeline_at(self.start_lsn) == self.timeline && history.timeline_at(last_byte) == self.end_timeline
    }
}

/// A [`BackupDocument`] that is read without its list of files, which is most of it.
pub(crate) struct WithoutFiles(pub(crate) BackupDocument);

impl<'de> Deserialize<'de> for WithoutFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WithoutFiles, D::Error> {
        deserializer.deserialize_map(PassOverFiles)
    }
}

struct PassOverFiles;

impl<'de> Visitor<'de> for PassOverFiles {
    type Value = WithoutFiles;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the description of a base backup")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<WithoutFiles, A::Error> {
        BackupDocument::deserialize(MapAccessDeserializer::new(OtherFields(fields))).map(WithoutFiles)
    }
}

/// The fields of a document but `files`.
struct OtherFields<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OtherFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(field) = self.0.next_key::<String>()? {
            if field != "files" {
                return seed.deserialize(field.into_deserializer()).map(Some);
            }
            self.0.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

/// What was found wrong with a base backup while it was taken.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// The server ended the backup with its error about checksums: pages on its disk are damaged, and so they are here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub damaged: bool,
    /// Its warnings, which name files and blocks, and its error, in its own words; the first 1,000, of 500 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How many pages Seawall rejected.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rejected_page_count: u64,
    /// The first 1,000 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_pages: Vec<RejectedPage>,
}

/// A page whose checksum, or header where there are no checksums, is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RejectedPage {
    /// The file of the relation.
    pub path: FilePath,
    /// The page's number in the relation's fork: 131,072 are in a file of 1 GB.
    pub block: u32,
}

impl fmt::Display for RejectedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} page {}", self.path, self.block)
    }
}

/// How far a base backup can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupVerdict {
    /// Nothing was found.
    Sound,
    /// The server complained of nothing (without checksums it looks at nothing), and we rejected pages.
    Suspect,
    /// The server found damaged pages on its disk. No restore uses it unless it is asked for by name.
    Damaged,
}

impl Findings {
    /// Nothing was found.
    pub fn is_empty(&self) -> bool {
        is_default(self)
    }

    /// The first warnings, for a line of text.
    pub fn first_warnings(&self) -> String {
        /// The others are in the log.
        const SHOWN: usize = 3;
        let first: Vec<&str> = self.warnings.iter().take(SHOWN).map(String::as_str).collect();
        first.join("; ")
    }

    /// What they come to; warnings alone are no reason to distrust it.
    pub fn verdict(&self) -> BackupVerdict {
        match self {
            Findings { damaged: true, .. } => BackupVerdict::Damaged,
            Findings { rejected_page_count: 1.., .. } => BackupVerdict::Suspect,
            _ => BackupVerdict::Sound,
        }
    }

    /// What was found and what to do; `None` if nothing was.
    pub fn in_words(&self) -> Option<String> {
        /// Pages that are named.
        const NAMED: usize = 3;
        let named: Vec<String> = self.rejected_pages.iter().take(NAMED).map(ToString::to_string).collect();
        let more = self.rejected_page_count.saturating_sub(named.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let pages = match named.as_slice() {
            [] => String::new(),
            named => format!(": {}{more}", named.join(", ")),
        };
        match self.verdict() {
            BackupVerdict::Sound => None,
            BackupVerdict::Suspect => Some(format!(
                "suspect: it has pages that are not as PostgreSQL writes them, of which the server did not complain{pages}. Take \
                 another base backup; if the same pages are in it, look at the relations with pg_amcheck"
            )),
            BackupVerdict::Damaged => Some(format!(
                "damaged: there are pages with wrong checksums on the server's disk{pages}. No restore uses this backup unless \
                 --backup names it. Keep the backups before it, look at the disk, and mend the relations (a standby may have \
                 them whole)"
            )),
        }
    }
}

/// A piece of one timeline's WAL that recovery needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WalNeed {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
}

/// A tablespace in a base backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupTablespace {
    /// Its OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// The directory on the server.
    pub location: String,
}

/// One object of a base backup: a stretch of a tar stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupPart {
    /// What the object is called; [`BackupDocument::ending`] comes behind it.
    pub name: PartName,
    /// Bytes of tar.
    pub plain_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// SHA-256 of the object's bytes.
    pub sha256: String,
    /// Zeros at its end that complete the tar stream: servers before 15 do not send them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub added_bytes: u32,
    /// The part begins inside this file; without it, it begins with a tar header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continuation>,
}

/// A file that began in an earlier part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Continuation {
    /// The file, as in [`BackupFile::path`](super::BackupFile::path).
    pub path: FilePath,
    /// The offset in the file of the part's first byte.
    pub file_offset: u64,
    /// The file's length.
    pub file_bytes: u64,
}

/// What says nothing is left out.
fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

/// `index/<timeline>/heartbeat-….json`: the server lived at `time` and had no WAL beyond `flush_lsn`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The server's clock, to the microsecond.
    pub time: Timestamp,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its flush position.
    pub flush_lsn: Lsn,
}

/// `index/<timeline>/gap-….json`: these bytes are lost for good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GapNote {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first lost byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
    /// When it was found, by our clock.
    pub found_at: Timestamp,
    /// In words.
    pub reason: String,
}

/// `index/<timeline>/dead-….json`: the timeline was left at `start`, and what is stored of it from there up to `end` is a
/// dead branch: the work of a server that was cut off, or the first half of a record that was given up. Its fields follow
/// from its name, so that whoever stores it stores the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadBranchNote {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// The switch point: the first byte that is not part of any later timeline.
    pub start: Lsn,
    /// Behind the last byte that was stored.
    pub end: Lsn,
}

impl Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BackupId, D::Error> {
        let text = String::deserialize(deserializer)?;
        BackupId::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a backup's name")))
    }
}

/// A document's JSON: indented down to the elements of its lists, each of which is one line, so that half a million files are
/// half a million lines; a line feed at the end.
///
/// # Errors
/// None that the world can cause.
pub(super) fn write(document: &impl Serialize) -> serde_json::Result<Vec<Bytes>> {
    let mut json = Pieces::default();
    let lines = Lines { depth: 0, is_empty: true };
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut json, lines))?;
    json.take(b"\n");
    json.done.push(json.last.into());
    Ok(json.done)
}

/// What is written, in pieces, none of which grows or is copied.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    /// Most documents have one piece.
    const BYTES: usize = 1 << 20;

    fn take(&mut self, bytes: &[u8]) {
        if self.last.len() + bytes.len() > Pieces::BYTES {
            // All but the first have this length: it is a large document.
            let next = Vec::with_capacity(Pieces::BYTES.max(bytes.len()));
            self.done.push(std::mem::replace(&mut self.last, next).into());
        }
        self.last.extend_from_slice(bytes);
    }
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Indents the outermost two levels.
struct Lines {
    depth: usize,
    /// Nothing yet in the innermost list or object.
    is_empty: bool,
}

impl Lines {
    const INDENTED: usize = 2;

    fn begin(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        out.write_all(bracket)
    }

    /// In front of each element.
    fn separate(&mut self, out: &mut (impl io::Write + ?Sized), first: bool) -> io::Result<()> {
        self.is_empty = false;
        out.write_all(if first { b"" } else { b"," })?;
        match self.depth {
            depth if depth <= Lines::INDENTED => self.begin_line(out),
            _ if first => Ok(()),
            _ => out.write_all(b" "),
        }
    }

    fn end(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < Lines::INDENTED && !self.is_empty {
            self.begin_line(out)?;
        }
        self.is_empty = false;
        out.write_all(bracket)
    }

    fn begin_line(&self, out: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(b"  "))
    }
}

impl Formatter for Lines {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }
}

/// 64-bit numbers as decimal text: JSON readers lose digits beyond 2^53.
pub(super) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::repository) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(in crate::repository) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::backup_files::BackupFile;
    use super::*;

    pub(in crate::repository) fn sample() -> BackupDocument {
        let path = |text: &[u8]| FilePath::parse(text).unwrap();
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let name = |number: u32| PartName::parse(&format!("base.{number:05}.{}", "cd".repeat(16))).unwrap();
        BackupDocument {
            ending: Ending::default(),
            format: FORMAT_VERSION,
            id: BackupId::parse("20261120T140300Z").unwrap(),
            reference: Some(BackupId::parse("20261119T140300Z").unwrap()),
            label: "nightly \"one\"".into(),
            system_identifier: 7_300_000_000_000_000_001,
            postgres_version: 150_018,
            started_at: time("2026-11-20T14:03:00.25Z"),
            ended_at: time("2026-11-20T14:05:00Z"),
            start_lsn: Lsn(0x200_0028),
            timeline: TimelineId(1),
            end_lsn: Lsn(0x200_0100),
            end_timeline: TimelineId(1),
            wal_ranges: vec![WalNeed { timeline: TimelineId(1), start: Lsn(0x200_0028), end: Lsn(0x200_0100) }],
            settings: BTreeMap::from([
                ("max_connections".into(), "100".into()),
                ("wal_level".into(), "replica".into()),
            ]),
            tablespaces: Vec::new(),
            plain_bytes: 20 << 20,
            restored_bytes: Some(30 << 20),
            stored_bytes: 100,
            manifest_sha256: "ab".repeat(32),
            findings: Findings {
                damaged: true,
                warnings: vec!["checksum verification failed in file \"base/5/16384\", block 7".into()],
                rejected_page_count: 1,
                rejected_pages: vec![RejectedPage { path: path(b"base/5/16384"), block: 7 }],
            },
            parts: vec![
                BackupPart {
                    name: name(1),
                    plain_bytes: 33_554_944,
                    stored_bytes: 60,
                    sha256: "cd".repeat(32),
                    added_bytes: 0,
                    continues: None,
                },
                BackupPart {
                    name: name(2),
                    plain_bytes: 1536,
                    stored_bytes: 40,
                    sha256: "ef".repeat(32),
                    added_bytes: 1024,
                    continues: Some(Continuation {
                        path: path(b"base/5/16384"),
                        file_offset: 32 << 20,
                        file_bytes: (32 << 20) + 100,
                    }),
                },
            ],
            files: [
                BackupFile { path: path(b"base/5/16384"), part: 0, offset: 512, bytes: (32 << 20) + 100 },
                BackupFile { path: path(b"caf\xe9"), part: 1, offset: 1024, bytes: 0 },
            ]
            .into_iter()
            .collect(),
        }
    }

    #[test]
    fn a_backup_is_written_as_documented_and_read_back() {
        let json = String::from_utf8(write(&sample()).unwrap().concat()).unwrap();
        assert_eq!(json, include_str!("golden/backup.json"), "the format changed: see FORMAT_VERSION");
        assert_eq!(serde_json::from_str::<BackupDocument>(&json).unwrap(), sample());
    }

    #[test]
    fn a_backup_can_be_read_without_its_files() {
        let json = write(&sample()).unwrap().concat();
        let WithoutFiles(read) = serde_json::from_slice(&json).unwrap();
        assert_eq!(read, BackupDocument { files: BackupFiles::default(), ..sample() });
        assert!(serde_json::from_slice::<WithoutFiles>(&json[..json.len() - 10]).is_err(), "it is cut");
        assert!(serde_json::from_slice::<WithoutFiles>(b"{\"files\": []}").is_err(), "nothing else is there");
    }

    #[test]
    fn a_large_document_is_written_in_pieces_that_make_a_whole() {
        // Given more files than one piece has
        let name = |number: u32| FilePath::parse(format!("base/16384/{number}").as_bytes()).unwrap();
        let file = |number| BackupFile { path: name(number), part: number / 100, offset: 512, bytes: number.into() };
        let document = BackupDocument { files: (0..50_000).map(file).collect(), ..sample() };
        // When they are written, then no piece is larger than it may be
        let pieces = write(&document).unwrap();
        assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() <= Pieces::BYTES), "{}", pieces.len());
        // and all of them are the document.
        assert_eq!(serde_json::from_slice::<BackupDocument>(&pieces.concat()).unwrap(), document);
    }

    #[test]
    fn a_path_that_leads_out_of_the_directory_is_not_read() {
        let json = String::from_utf8(write(&sample()).unwrap().concat()).unwrap();
        let json = json.replace("[\"base/5/16384\"", "[\"../../etc/passwd\"");
        assert!(serde_json::from_str::<BackupDocument>(&json).is_err());
    }
}
