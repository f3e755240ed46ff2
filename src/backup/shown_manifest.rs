//! What the server is shown of the backup that an incremental one builds on. Pure.
//!
//! Of a manifest it takes whose it is, the ranges of WAL, and which files there are; not even their lengths count
//! (`manifest_process_file` and `GetFileBackupMethod` in `basebackup_incremental.c`, 17 and 18), and checksums may be absent
//! (`json_manifest_finalize_file` in `parse_manifest.c`). `backup.json` has all of that in clear. The manifest that was
//! stored with the backup is not needed, which the process may be unable to decrypt.

use super::cut_relations::CutRelations;
use super::incremental::FIRST_VERSION;
use super::manifest_writer::ManifestWriter;
use crate::repository::{BackupDocument, BackupFiles, RelationFile, WalNeed};
use bytes::Bytes;

/// The relations' files of a backup, as far as the server may send changes of them alone: all other files it sends whole in any
/// case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ShownManifest {
    system_identifier: u64,
    files: BackupFiles,
    /// Those of them that the server is shown.
    is_shown: Vec<bool>,
    wal_ranges: Vec<WalNeed>,
}

impl ShownManifest {
    /// All of `backup`.
    pub(super) fn new(backup: BackupDocument) -> ShownManifest {
        let BackupDocument { system_identifier, files, wal_ranges, .. } = backup;
        let is_shown = files.iter().map(|file| RelationFile::parse(file.path).is_some()).collect();
        ShownManifest { system_identifier, files, is_shown, wal_ranges }
    }

    /// Takes out what the server must send whole; says how many files that are.
    pub(super) fn take_out(&mut self, cut: &CutRelations) -> usize {
        let mut count = 0;
        for (file, is_shown) in self.files.iter().zip(&mut self.is_shown) {
            if *is_shown && cut.wants_whole(file.path) {
                (*is_shown, count) = (false, count + 1);
            }
        }
        count
    }

    /// The manifest, of version 2, as PostgreSQL reads it, in pieces that are made as they are asked for.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Bytes> {
        let mut files = self.files.iter().zip(&self.is_shown).filter(|(_, is_shown)| **is_shown);
        let mut writer = Some(ManifestWriter::new(FIRST_VERSION, self.system_identifier));
        std::iter::from_fn(move || {
            let writing = writer.as_mut()?;
            for (file, _) in files.by_ref() {
                writing.add_unread(file.path, file.bytes);
                if let Some(piece) = writing.take() {
                    return Some(piece);
                }
            }
            writer.take().map(|writer| writer.finish(&self.wal_ranges))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{BackupFile, FilePath, WalNeed, hex};
    use crate::wal::{Lsn, RelationId, TimelineId};
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    fn shown(paths: &[&str]) -> ShownManifest {
        let path = |path: &&str| FilePath::parse(path.as_bytes()).unwrap();
        let file = |it| BackupFile { path: path(it), part: 0, offset: 0, bytes: 8192 };
        let range = |timeline, start, end| WalNeed { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        ShownManifest {
            system_identifier: u64::MAX,
            files: paths.iter().map(file).collect(),
            is_shown: vec![true; paths.len()],
            wal_ranges: vec![range(2, 0x30, 0x40), range(1, 0x28, 0x30)],
        }
    }

    /// The paths in it, once its checksum was found right.
    fn paths(shown: &ShownManifest) -> Vec<String> {
        let text = String::from_utf8(shown.pieces().collect::<Vec<_>>().concat()).unwrap();
        let at = text.find("\"Manifest-Checksum\"").unwrap();
        assert!(text.ends_with(&format!("\"{}\"}}\n", hex(&Sha256::digest(&text[..at])))), "{text}");
        assert!(text[..at].ends_with('\n') && !text[at..text.len() - 1].contains('\n'), "the last line is its own");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["PostgreSQL-Backup-Manifest-Version"], 2);
        assert_eq!(json["System-Identifier"], u64::MAX);
        assert_eq!(json["WAL-Ranges"][1]["Start-LSN"], "0/28");
        json["Files"].as_array().unwrap().iter().map(|file| file["Path"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn relations_are_shown_without_those_that_were_cut() {
        let all = ["base/5/1", "base/5/INCREMENTAL.2.1", "base/5/2", "base/5/2_vm", "pg_tblspc/9/PG_17_\"1/5/3"];
        let mut shown = shown(&all);
        assert_eq!(paths(&shown), all);
        let cut = CutRelations::of([RelationId { tablespace: 1663, database: 5, file: 2 }]);
        assert_eq!(shown.take_out(&cut), 3);
        assert_eq!(paths(&shown), [all[0], all[4]]);
        assert_eq!(shown.take_out(&cut), 0);
    }

    #[test]
    fn with_nothing_left_it_is_a_manifest_nevertheless() {
        assert_eq!(paths(&shown(&[])), Vec::<String>::new());
    }
}
