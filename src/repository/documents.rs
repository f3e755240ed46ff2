//! The JSON documents of a repository. Their fields are the format: a change that an older Seawall cannot read takes a
//! new [`FORMAT_VERSION`] and a reader for both.

use super::file_path::FilePath;
use super::layout::BackupId;
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The repository's format. Raised only when an older Seawall would misread what a newer one writes; every Seawall
/// reads all formats up to its own, and refuses later ones by number.
pub const FORMAT_VERSION: u32 = 1;

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
}

/// `backup.json`: the base backup exists, and this is what is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupDocument {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
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
    /// Bytes of all parts, as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the manifest as PostgreSQL sent it.
    pub manifest_sha256: String,
    /// The objects, in the order of their tar streams.
    pub parts: Vec<BackupPart>,
    /// Where each file is. Last, so that the rest can be read without it.
    #[serde(default)]
    pub files: Vec<BackupFile>,
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
    /// `base` or the tablespace's OID.
    pub archive: String,
    /// Its number in that archive, from 1.
    pub number: u32,
    /// Bytes of tar.
    pub plain_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// SHA-256 of the object's bytes.
    pub sha256: String,
    /// The part begins inside this file; without it, it begins with a tar header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continuation>,
}

/// A file that began in an earlier part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Continuation {
    /// The file, as in [`BackupFile::path`].
    pub path: FilePath,
    /// The offset in the file of the part's first byte.
    pub file_offset: u64,
    /// The file's length.
    pub file_bytes: u64,
}

/// A file of a base backup: `[path, part, offset, bytes]`, to keep half a million of them small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupFile {
    /// As in the manifest: relative to the data directory, tablespaces as `pg_tblspc/<oid>/…`. In JSON it is text, or
    /// `{"hex": "…"}` where it is not UTF-8.
    pub path: FilePath,
    /// Index into [`BackupDocument::parts`] of the part with its first byte.
    pub part: u32,
    /// Where its first byte is in that part's tar bytes.
    pub offset: u64,
    /// Its length. What does not fit into the part goes on at the beginning of the next.
    pub bytes: u64,
}

impl Serialize for BackupFile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.path, self.part, self.offset, self.bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BackupFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<BackupFile, D::Error> {
        let (path, part, offset, bytes) = Deserialize::deserialize(deserializer)?;
        Ok(BackupFile { path, part, offset, bytes })
    }
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

impl Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<BackupId, D::Error> {
        let text = String::deserialize(deserializer)?;
        BackupId::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a backup's name")))
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
