//! `backup_label`, as far as chains of incremental backups are concerned. Pure.
//!
//! Its lines are those of `build_backup_content` in `xlogbackup.c`.

use crate::error::{Error, Kind, Result};
use crate::repository::BackupDocument;
use crate::wal::{Lsn, TimelineId};

/// The file's name.
pub(super) const LABEL_FILE: &str = "backup_label";

/// What the lines begin with.
const START_LSN: &str = "START WAL LOCATION: ";
const START_TIMELINE: &str = "START TIMELINE: ";
const FROM_LSN: &str = "INCREMENTAL FROM LSN: ";
const FROM_TIMELINE: &str = "INCREMENTAL FROM TLI: ";

/// Checks that the label says of its backup what `backup.json` does, and that it builds on `reference`, or on nothing.
///
/// # Errors
/// [`Kind::Damaged`] if it says otherwise.
pub(super) fn check(label: &[u8], backup: &BackupDocument, reference: Option<&BackupDocument>) -> Result<()> {
    let text = String::from_utf8_lossy(label);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next())
    };
    let lsn = |name: &str| field(name).and_then(|text| text.parse::<Lsn>().ok());
    let timeline = |name: &str| field(name).and_then(|text| text.parse().ok()).map(TimelineId);
    let start = (lsn(START_LSN), timeline(START_TIMELINE));
    let from = (lsn(FROM_LSN), timeline(FROM_TIMELINE));
    let of = |document: &BackupDocument| (Some(document.start_lsn), Some(document.timeline));
    let damaged = |what: &str| {
        Err(Error::new(Kind::Damaged, format!("the {LABEL_FILE} of backup {} {what}", backup.id))
            .hint("The backups of this chain do not belong together. Try one before it (`seawall list`)."))
    };
    if start != of(backup) {
        return damaged("names another beginning than backup.json");
    }
    match reference {
        None if field(FROM_LSN).is_some() || field(FROM_TIMELINE).is_some() => {
            damaged("says that it is an incremental one, and backup.json that it is full")
        }
        Some(reference) if from != of(reference) => {
            damaged(&format!("does not say that it builds on {}, as backup.json does", reference.id))
        }
        _ => Ok(()),
    }
}

/// The label of a directory in which everything is whole: a server refuses to start on one that says otherwise
/// (`read_backup_label` in `xlogrecovery.c`).
pub(super) fn of_whole(label: &[u8]) -> Vec<u8> {
    let lines = label.split_inclusive(|&byte| byte == b'\n');
    let is_kept = |line: &&[u8]| ![FROM_LSN, FROM_TIMELINE].iter().any(|name| line.starts_with(name.as_bytes()));
    lines.filter(is_kept).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::CatalogBuilder;
    use super::*;

    fn backups() -> (BackupDocument, BackupDocument) {
        let catalog =
            CatalogBuilder::new().backup(1, 100, 0x200_0028, 0x200_0100).backup(1, 200, 0x400_0028, 0x400_0100);
        let found: Vec<BackupDocument> = catalog.catalog.finished_backups().cloned().collect();
        (found[0].clone(), found[1].clone())
    }

    /// As PostgreSQL 18 writes it.
    fn label(start: &str, from: &str) -> String {
        let from = match from {
            "" => String::new(),
            from => format!("INCREMENTAL FROM LSN: {from}\nINCREMENTAL FROM TLI: 1\n"),
        };
        format!(
            "START WAL LOCATION: {start} (file 000000010000000000000004)\nCHECKPOINT LOCATION: 0/4000080\n\
             BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-20 14:03:00 UTC\nLABEL: seawall\n\
             START TIMELINE: 1\n{from}"
        )
    }

    #[test]
    fn a_label_names_its_beginning_and_what_it_builds_on() {
        let (older, newer) = backups();
        let check =
            |text: &str, reference| check(text.as_bytes(), &newer, reference).map_err(|error| error.to_string());
        assert_eq!(check(&label("0/4000028", "0/2000028"), Some(&older)), Ok(()));
        assert_eq!(check(&label("0/4000028", ""), None), Ok(()));
        for (text, reference, says) in [
            (label("0/4000030", "0/2000028"), Some(&older), "another beginning"),
            (label("0/4000028", "0/2000030"), Some(&older), "does not say that it builds on"),
            (label("0/4000028", ""), Some(&older), "does not say that it builds on"),
            (label("0/4000028", "0/2000028"), None, "that it is full"),
            (String::new(), None, "another beginning"),
        ] {
            assert!(check(&text, reference).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn the_label_of_what_is_whole_says_nothing_of_increments() {
        assert_eq!(of_whole(label("0/4000028", "0/2000028").as_bytes()), label("0/4000028", "").as_bytes());
    }
}
