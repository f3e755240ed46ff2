//! Writes a `backup_manifest` as PostgreSQL does (`backup_manifest.c`): of files that nobody but us has read, and what a server is
//! shown of those that a backup has. Pure.

use crate::repository::manifest::FileCheck;
use crate::repository::{FilePathRef, WalNeed, hex};
use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// The first version whose manifests are of version 2, with the system identifier.
const SECOND_VERSION: u32 = 170_000;

/// Bytes of a piece, about.
const PIECE_BYTES: usize = 128 << 10;

/// A manifest being written, taken piece by piece.
#[derive(Debug)]
pub(super) struct ManifestWriter {
    /// What was not taken yet.
    text: String,
    /// Of what was.
    sha256: Sha256,
    has_files: bool,
}

impl ManifestWriter {
    /// Of a server of this version and cluster.
    pub(super) fn new(server_version: u32, system_identifier: u64) -> ManifestWriter {
        let start = match server_version >= SECOND_VERSION {
            true => {
                format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n")
            }
            false => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned(),
        };
        ManifestWriter { text: start + "\"Files\": [", sha256: Sha256::new(), has_files: false }
    }

    /// Lists a file that was read.
    pub(super) fn add<'a>(&mut self, path: impl Into<FilePathRef<'a>>, modified: Timestamp, check: FileCheck) {
        // The CRC-32C in the order of the server's memory, which is ours.
        let (modified, crc32c) = (modified.strftime("%Y-%m-%d %H:%M:%S GMT"), hex(&check.crc32c.to_le_bytes()));
        let read = format!(
            ", \"Last-Modified\": \"{modified}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc32c}\""
        );
        self.list(path.into(), check.size_bytes, &read);
    }

    /// Lists a file of which only the length is known.
    pub(super) fn add_unread<'a>(&mut self, path: impl Into<FilePathRef<'a>>, bytes: u64) {
        self.list(path.into(), bytes, "");
    }

    fn list(&mut self, path: FilePathRef<'_>, bytes: u64, further: &str) {
        let path = match std::str::from_utf8(path.as_bytes()) {
            Ok(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(path.as_bytes())),
        };
        self.text.push_str(if self.has_files { ",\n" } else { "\n" });
        self.has_files = true;
        self.text.push_str(&format!("{{ {path}, \"Size\": {bytes}{further} }}"));
    }

    /// What was written since the last piece, once that is worth a piece.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        (self.text.len() >= PIECE_BYTES).then(|| self.take_rest())
    }

    fn take_rest(&mut self) -> Bytes {
        self.sha256.update(self.text.as_bytes());
        Bytes::from(std::mem::replace(&mut self.text, String::with_capacity(PIECE_BYTES)))
    }

    /// The last piece, for a backup that needs this WAL.
    pub(super) fn finish(mut self, needs: &[WalNeed]) -> Bytes {
        let ranges = needs.iter().map(|WalNeed { timeline, start, end }| {
            format!("{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}")
        });
        let ranges = ranges.collect::<Vec<_>>().join(",\n");
        self.text.push_str(&format!("\n],\n\"WAL-Ranges\": [\n{ranges}\n],\n"));
        self.sha256.update(self.text.as_bytes());
        let sum = hex(&self.sha256.finalize());
        self.text.push_str(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
        Bytes::from(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::FilePath;
    use crate::repository::manifest::Manifest;
    use crate::wal::{Lsn, TimelineId};

    #[test]
    fn what_is_written_reads_back() {
        // Given files with names of every kind
        let names: [&[u8]; 4] = [b"base/5/16384", b"quote\"back\\slash\nline", "stra\u{df}e".as_bytes(), b"caf\xe9"];
        let files = names.map(|name| FilePath::parse(name).unwrap());
        let modified: Timestamp = "2026-11-20T14:03:00.9Z".parse().unwrap();
        let check = FileCheck { size_bytes: 8192, crc32c: 0x7530_5193 };
        let need = WalNeed { timeline: TimelineId(3), start: Lsn(0x200_0028), end: Lsn(0x1_0200_0100) };
        for (server_version, version, system_identifier) in
            [(160_004, 1, None), (170_000, 2, Some(7_300_000_000_000_000_001))]
        {
            let mut writer = ManifestWriter::new(server_version, 7_300_000_000_000_000_001);
            files.iter().for_each(|path| writer.add(path, modified, check));
            let text = String::from_utf8(writer.finish(&[need]).to_vec()).unwrap();
            // Then our reader, which reads what PostgreSQL writes, finds them all, and the right checksum
            let manifest = Manifest::parse(text.as_bytes()).unwrap();
            assert_eq!((manifest.end.version, manifest.end.system_identifier), (version, system_identifier));
            assert_eq!(manifest.end.wal_ranges, [need]);
            assert_eq!(manifest.files.len(), files.len());
            assert!(files.iter().all(|path| manifest.files.get(path) == Some(check)));
            // and a line is what PostgreSQL writes there.
            let line = "{ \"Path\": \"base/5/16384\", \"Size\": 8192, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", \
                        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"93513075\" },";
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }
    #[test]
    fn pieces_make_a_whole() {
        // Given more files than fit into a piece, one of which is added and taken after the other
        let mut writer = ManifestWriter::new(170_000, 7);
        let mut pieces = Vec::new();
        for number in 0..10_000 {
            let path = FilePath::parse(format!("base/5/{number}").as_bytes()).unwrap();
            writer.add(&path, Timestamp::UNIX_EPOCH, FileCheck { size_bytes: number, crc32c: 0 });
            pieces.extend(writer.take());
        }
        assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() < 2 * PIECE_BYTES), "{}", pieces.len());
        // Then all of them are a manifest, whose checksum is right.
        let need = WalNeed { timeline: TimelineId(3), start: Lsn(0x28), end: Lsn(0x100) };
        pieces.push(writer.finish(&[need]));
        assert_eq!(Manifest::parse(&pieces.concat()).unwrap().files.len(), 10_000);
    }
}
