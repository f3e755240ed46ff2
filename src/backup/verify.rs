//! Compares the files that arrived with PostgreSQL's manifest: the same set, each with its length and CRC-32C. Pure.

use crate::error::{Error, Kind, Result};
use crate::repository::manifest::{FileCheck, ManifestEnd, ManifestError, ManifestReader};
use crate::repository::{BackupFiles, PathOrder};
use crate::wal::{Lsn, TimelineId};

/// The directory that the manifest does not list: WAL comes from the archive (`pg_verifybackup` leaves it out too). The
/// manifest does not list itself either, and is no part of the tar streams.
const NOT_LISTED: &str = "pg_wal";

/// A comparison under way.
#[derive(Debug)]
pub(crate) struct ManifestCheck {
    /// What arrived.
    files: BackupFiles,
    crcs: Vec<u32>,
    order: PathOrder,
    /// Those that need not be listed, or were.
    is_settled: Vec<bool>,
    reader: ManifestReader,
}

impl ManifestCheck {
    /// Compares with these files; `crcs` are theirs, in the same order.
    ///
    /// # Errors
    /// If one of them arrived twice.
    pub(crate) fn new(files: BackupFiles, crcs: Vec<u32>) -> Result<ManifestCheck> {
        let is_settled = files.iter().map(|file| file.path.is_within(NOT_LISTED)).collect();
        let order = PathOrder::of(files.paths()).map_err(|place| {
            let path = files.get(place).map(|file| file.path.to_string()).unwrap_or_default();
            damaged(format!("{path} arrived twice"))
        })?;
        Ok(ManifestCheck { files, crcs, order, is_settled, reader: ManifestReader::new() })
    }

    /// Takes in the next bytes of the manifest.
    ///
    /// # Errors
    /// [`Kind::Damaged`], which names the first file that differs, is missing or is listed twice.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.reader.feed(bytes);
        while let Some((path, listed)) = self.reader.next_file().map_err(unreadable)? {
            if path.is_within(NOT_LISTED) {
                continue;
            }
            let place = self.order.find(self.files.paths(), path.view());
            let arrived = place.filter(|place| !self.is_settled[*place]).and_then(|place| {
                self.is_settled[place] = true;
                Some(FileCheck { size_bytes: self.files.get(place)?.bytes, crc32c: *self.crcs.get(place)? })
            });
            let Some(arrived) = arrived else {
                return Err(damaged(format!("the manifest lists {path}, which did not arrive")));
            };
            if arrived != listed {
                return Err(damaged(format!(
                    "{path} did not arrive as the server read it: {}, and the manifest says {}",
                    in_words(arrived),
                    in_words(listed)
                )));
            }
        }
        Ok(())
    }

    /// The manifest is complete, and so must be the comparison. Gives the files back.
    ///
    /// # Errors
    /// [`Kind::Damaged`], which names a file that arrived and is not listed, or says that the manifest is cut.
    pub(crate) fn finish(self) -> Result<(ManifestEnd, BackupFiles)> {
        let end = self.reader.finish().map_err(unreadable)?;
        let unlisted = self.order.places().find(|place| !self.is_settled[*place]);
        match unlisted.and_then(|place| self.files.get(place)) {
            None => Ok((end, self.files)),
            Some(file) => Err(damaged(format!("{} arrived, and the manifest does not list it", file.path))),
        }
    }
}

/// Fails unless the manifest is of this cluster and asks for WAL from the backup's start to its end.
///
/// # Errors
/// [`Kind::Damaged`].
pub(crate) fn check_end(
    manifest: &ManifestEnd,
    system_identifier: u64,
    start: (TimelineId, Lsn),
    end: (TimelineId, Lsn),
) -> Result<()> {
    if manifest.system_identifier.is_some_and(|number| number != system_identifier) {
        return Err(damaged("the manifest is that of another cluster".to_owned()));
    }
    let needs = |(timeline, lsn): (TimelineId, Lsn)| {
        let mut ranges = manifest.wal_ranges.iter();
        ranges.any(|range| range.timeline == timeline && range.start <= lsn && lsn <= range.end)
    };
    if needs(start) && needs(end) {
        return Ok(());
    }
    let ((from, start), (to, end)) = (start, end);
    Err(damaged(format!(
        "the manifest does not ask for the WAL from {start} on timeline {from} to {end} on timeline {to}"
    )))
}

fn in_words(check: FileCheck) -> String {
    format!("{} bytes with CRC-32C {:08x}", check.size_bytes, check.crc32c)
}

fn damaged(message: String) -> Error {
    Error::new(Kind::Damaged, message).hint(
        "Something between the server's disk and here alters bytes: take another backup, and if that fails too, look at \
         the memory and the network of both machines.",
    )
}

fn unreadable(error: ManifestError) -> Error {
    damaged("the manifest that the server sent is damaged".to_owned()).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::manifest::testing::manifest;
    use crate::repository::{BackupFile, FilePath, WalNeed};

    type Names<'a> = &'a [(&'a str, u64)];

    fn files(names: Names<'_>) -> BackupFiles {
        let file = |&(name, bytes): &(&str, u64)| BackupFile {
            path: FilePath::parse(name.as_bytes()).unwrap(),
            part: 0,
            offset: 0,
            bytes,
        };
        names.iter().map(file).collect()
    }

    fn listed(names: &[(&str, u64, u32)]) -> String {
        let files: Vec<(String, FileCheck)> = names
            .iter()
            .map(|&(name, size_bytes, crc32c)| (name.to_owned(), FileCheck { size_bytes, crc32c }))
            .collect();
        manifest(None, &files, &[WalNeed { timeline: TimelineId(1), start: Lsn(0x28), end: Lsn(0x100) }])
    }

    fn compare(names: Names<'_>, crcs: &[u32], text: &str) -> Result<ManifestEnd> {
        let mut check = ManifestCheck::new(files(names), crcs.to_vec())?;
        check.feed(text.as_bytes())?;
        let (end, files_again) = check.finish()?;
        assert_eq!(files_again, files(names));
        Ok(end)
    }

    #[test]
    fn the_same_files_are_the_same() {
        let names = [("base/1/1", 3), ("pg_wal/000000010000000000000001", 9), ("global/pg_control", 8192)];
        let text =
            listed(&[("global/pg_control", 8192, 3), ("base/1/1", 3, 1), ("pg_wal/archive_status/x.done", 0, 0)]);
        assert!(compare(&names, &[1, 2, 3], &text).is_ok());
    }

    #[test]
    fn every_difference_names_its_file() {
        let text = listed(&[("base/1/1", 3, 1), ("base/1/2", 4, 2)]);
        let cases: [(Names<'_>, &[u32], &str); 5] = [
            (&[("base/1/1", 3), ("base/1/2", 4)], &[1, 9], "base/1/2 did not arrive as the server read it"),
            (&[("base/1/1", 5), ("base/1/2", 4)], &[1, 2], "base/1/1 did not arrive as the server read it"),
            (&[("base/1/1", 3)], &[1], "lists base/1/2, which did not arrive"),
            (&[("base/1/1", 3), ("base/1/2", 4), ("x", 0)], &[1, 2, 0], "x arrived, and the manifest"),
            (&[("base/1/1", 3), ("base/1/1", 3)], &[1, 1], "base/1/1 arrived twice"),
        ];
        for (names, crcs, expected) in cases {
            let error = compare(names, crcs, &text).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}, and not: {expected}");
            assert_eq!(error.kind(), Kind::Damaged);
        }
        let twice = listed(&[("base/1/1", 3, 1), ("base/1/1", 3, 1)]);
        assert!(compare(&[("base/1/1", 3)], &[1], &twice).is_err(), "a file that is listed twice");
        assert!(compare(&[], &[], "").is_err(), "no manifest at all");
    }

    #[test]
    fn the_manifest_must_ask_for_the_backups_wal() {
        let need = |timeline, start, end| WalNeed { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        let end =
            |wal_ranges| ManifestEnd { version: 2, system_identifier: Some(7), wal_ranges, sha256: String::new() };
        let at = |timeline, lsn| (TimelineId(timeline), Lsn(lsn));
        assert!(check_end(&end(vec![need(1, 10, 20)]), 7, at(1, 10), at(1, 20)).is_ok());
        assert!(check_end(&end(vec![need(2, 15, 20), need(1, 10, 15)]), 7, at(1, 10), at(2, 20)).is_ok());
        assert!(check_end(&end(vec![need(1, 10, 20)]), 8, at(1, 10), at(1, 20)).is_err(), "another cluster");
        assert!(check_end(&end(vec![need(1, 11, 20)]), 7, at(1, 10), at(1, 20)).is_err(), "begins too late");
        assert!(check_end(&end(vec![need(1, 10, 19)]), 7, at(1, 10), at(1, 20)).is_err(), "ends too early");
        assert!(check_end(&end(vec![need(1, 10, 20)]), 7, at(1, 10), at(2, 20)).is_err(), "another timeline");
        assert!(check_end(&end(vec![]), 7, at(1, 10), at(1, 20)).is_err(), "no WAL at all");
    }
}
