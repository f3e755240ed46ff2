//! Incremental backups and what they build on. Pure.

use super::catalog::Catalog;
use super::documents::BackupDocument;
use super::layout::BackupId;

/// A backup cannot be used, because something that it builds on cannot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("backup {backup} builds on {reference}, which {problem}")]
pub struct BrokenChain {
    /// The incremental backup.
    pub backup: BackupId,
    /// What it builds on.
    pub reference: BackupId,
    /// What is the matter with that.
    pub problem: &'static str,
}

/// What `backup` builds on, directly and indirectly, the nearest first and the full one last; nothing for a full one.
///
/// # Errors
/// If a link is missing, or does not fit.
pub fn chain<'a>(
    find: impl Fn(&BackupId) -> Option<&'a BackupDocument>,
    backup: &BackupDocument,
) -> Result<Vec<&'a BackupDocument>, BrokenChain> {
    let mut links: Vec<&BackupDocument> = Vec::new();
    loop {
        let newer = links.last().copied().unwrap_or(backup);
        let Some(reference) = &newer.reference else { return Ok(links) };
        let found = find(reference);
        let problem = found.map_or(Some("is not there, or was never finished"), |older| misfit(older, newer));
        match (found, problem) {
            (Some(older), None) => links.push(older),
            (_, problem) => {
                let (backup, reference) = (newer.id.clone(), reference.clone());
                return Err(BrokenChain { backup, reference, problem: problem.unwrap_or_default() });
            }
        }
    }
}

/// Why `newer` cannot build on `older`.
fn misfit(older: &BackupDocument, newer: &BackupDocument) -> Option<&'static str> {
    let major = |backup: &BackupDocument| backup.postgres_version / 10_000;
    let checksums = |backup: &BackupDocument| backup.settings.get("data_checksums").cloned();
    let problems = [
        (older.system_identifier != newer.system_identifier, "is another cluster's"),
        (major(older) != major(newer), "is another major version's"),
        // Each begins before what builds on it: no chain goes round in a circle.
        (older.end_lsn > newer.start_lsn || older.start_lsn >= newer.start_lsn, "ends behind its beginning"),
        // They are switched while the server is down, without a word in the WAL.
        (checksums(older) != checksums(newer), "differs from it in having data checksums"),
    ];
    problems.into_iter().find_map(|(is_so, problem)| is_so.then_some(problem))
}

impl Catalog {
    /// What `backup` builds on; see [`chain`].
    ///
    /// # Errors
    /// If a link is missing, or does not fit.
    pub fn chain(&self, backup: &BackupDocument) -> Result<Vec<&BackupDocument>, BrokenChain> {
        chain(|id| self.finished_backups().find(|found| found.id == *id), backup)
    }
}

#[cfg(test)]
mod tests {
    use super::super::documents::tests::sample;
    use super::*;
    use crate::wal::Lsn;

    /// A backup that began in this second, and the one that it builds on.
    fn backup(second: u64, reference: Option<u64>) -> BackupDocument {
        let id = |second: u64| BackupId::parse(&format!("20261120T1403{second:02}Z")).unwrap();
        let (start_lsn, end_lsn) = (Lsn(second * 0x100), Lsn(second * 0x100 + 0x80));
        BackupDocument { id: id(second), reference: reference.map(id), start_lsn, end_lsn, ..sample() }
    }

    fn chain_of(backups: &[BackupDocument], newest: &BackupDocument) -> Result<Vec<String>, String> {
        let links = chain(|id| backups.iter().find(|backup| backup.id == *id), newest);
        links.map(|links| links.iter().map(|link| link.id.to_string()).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_chain_leads_to_a_full_backup() {
        let backups = [backup(1, None), backup(2, Some(1)), backup(3, Some(1)), backup(4, Some(2))];
        assert_eq!(chain_of(&backups, &backups[0]), Ok(vec![]));
        assert_eq!(chain_of(&backups, &backups[2]), Ok(vec!["20261120T140301Z".to_owned()]));
        let long = ["20261120T140302Z", "20261120T140301Z"].map(str::to_owned).to_vec();
        assert_eq!(chain_of(&backups, &backups[3]), Ok(long));
    }

    #[test]
    fn a_link_that_is_missing_or_does_not_fit_is_named() {
        let broken = |change: &dyn Fn(&mut BackupDocument)| {
            let mut backups = [backup(1, None), backup(2, Some(1)), backup(4, Some(2))];
            change(&mut backups[0]);
            chain_of(&backups, &backups[2]).unwrap_err()
        };
        let missing = chain_of(&[backup(2, Some(1))], &backup(4, Some(2))).unwrap_err();
        assert_eq!(
            missing,
            "backup 20261120T140302Z builds on 20261120T140301Z, which is not there, or was never finished"
        );
        assert!(broken(&|backup| backup.system_identifier += 1).ends_with("is another cluster's"));
        assert!(broken(&|backup| backup.postgres_version += 10_000).ends_with("major version's"));
        assert!(broken(&|backup| backup.end_lsn = Lsn(0x201)).ends_with("ends behind its beginning"));
        let switched = |backup: &mut BackupDocument| {
            backup.settings.insert("data_checksums".to_owned(), "on".to_owned());
        };
        assert!(broken(&switched).ends_with("having data checksums"));
        // And none goes round in a circle.
        let circle = [backup(1, Some(2)), backup(2, Some(1))];
        assert!(chain_of(&circle, &circle[1]).unwrap_err().ends_with("ends behind its beginning"));
    }
}
