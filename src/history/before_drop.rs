//! Finds the moment before a relation was dropped, by its name.

use super::chronicle::Chronicle;
use super::entry::{Entry, Event, Transaction};
use super::names::NameBook;
use super::search::{Bound, Search};
use super::span::{Hole, walk};
use crate::error::Result;
use crate::repository::{Catalog, WalReader};
use crate::wal::{History, Lsn};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// Drops of relations without a name that are remembered, the latest.
const UNNAMED_MAX: usize = 20;

/// What a search for drops of a relation has found.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// The latest.
    pub newest: Option<Entry>,
    /// False if the files that it removed have no names, and it goes by what the transaction changed: a relation that
    /// referred to this one may have been dropped instead.
    pub is_certain: bool,
    /// How many there were.
    pub count: usize,
    /// The latest drops of relations of which no name is known: it may be one of these.
    pub unnamed: VecDeque<Entry>,
    /// WAL that was not looked at.
    pub holes: Vec<Hole>,
}

/// Looks for drops of `wanted`, a schema and a name with a dot between them, in the WAL along `history` from the first base
/// backup on, up to `to`.
///
/// # Errors
/// If the store fails, or what was listed cannot be read.
pub async fn find_drops(
    reader: &WalReader,
    catalog: &Catalog,
    history: &History,
    names: Arc<NameBook>,
    wanted: &str,
    to: Bound,
) -> Result<Drops> {
    // Nothing before can be restored.
    let backups = catalog.finished_backups().filter(|backup| backup.is_on_path(history));
    let first = backups.map(|backup| backup.start_lsn).min().unwrap_or_default();
    let drops: Arc<Mutex<Drops>> = Arc::default();
    let (seen, wanted) = (drops.clone(), wanted.to_owned());
    let chronicle = Chronicle::new(move |entry| {
        let is_over = match to {
            Bound::Time(time) => entry.time > time,
            Bound::Lsn(lsn) => entry.start > lsn,
        };
        if is_over {
            return ControlFlow::Break(());
        }
        seen.lock().unwrap_or_else(PoisonError::into_inner).see(entry, &names, &wanted);
        ControlFlow::Continue(())
    });
    let search = Search { from: Bound::Lsn(first), to: Some(to), removals: true, whole: false };
    let walked = walk(reader, catalog, history, search, chronicle).await?;
    let mut drops = std::mem::take(&mut *drops.lock().unwrap_or_else(PoisonError::into_inner));
    drops.holes = walked.holes;
    Ok(drops)
}

impl Drops {
    fn see(&mut self, entry: Entry, names: &NameBook, wanted: &str) {
        let Event::Commit(transaction) = &entry.event else { return };
        if !transaction.drops_relations() {
            return;
        }
        let verdict = judge(transaction, entry.start, names, wanted);
        match verdict {
            Verdict::ByFile | Verdict::ByNumber => {
                self.count += 1;
                self.is_certain = verdict == Verdict::ByFile;
                self.newest = Some(entry);
            }
            Verdict::Another => {}
            Verdict::Unknown => {
                self.unnamed.push_back(entry);
                if self.unnamed.len() > UNNAMED_MAX {
                    self.unnamed.pop_front();
                }
            }
        }
    }
}

/// Whether a transaction that drops relations drops the one that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It removes its file.
    ByFile,
    /// It removes files without a name, and changes or drops the relation with its number.
    ByNumber,
    /// It drops others.
    Another,
    /// It drops some that have no name.
    Unknown,
}

fn judge(transaction: &Transaction, lsn: Lsn, names: &NameBook, wanted: &str) -> Verdict {
    let shown = |database| names.shown_behind(database, transaction.xid, lsn);
    let mut has_unknown = transaction.removed_count as usize > transaction.removed.len();
    for file in &transaction.removed {
        match names.relation(*file, lsn) {
            // One that is there later was rewritten, by a transaction that dropped others.
            Some(relation) if relation.name == wanted && !names.is_file_known_behind(*file, shown(file.database)) => {
                return Verdict::ByFile;
            }
            Some(_) => {}
            None => has_unknown = true,
        }
    }
    // A table that was rewritten since its name was read has another file, and the same number. One that is there later
    // was not dropped.
    let is_meant = |database: u32, oid: u32| {
        let relation = names.relation_by_oid(database, oid, lsn);
        relation.is_some_and(|it| it.name == wanted) && !names.is_known_behind(database, oid, shown(database))
    };
    let is_changed =
        transaction.database.is_some_and(|database| transaction.changed.iter().any(|oid| is_meant(database, *oid)));
    match (has_unknown, is_changed) {
        (false, _) => Verdict::Another,
        (true, true) => Verdict::ByNumber,
        (true, false) => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{DatabaseNames, FORMAT_VERSION, Names, RelationName};
    use crate::wal::RelationId;

    /// At 100 and 300 a base backup saw `public.accounts` (number 10, file 11); at 100 alone `public.gone` (20, 20).
    fn book() -> NameBook {
        let names = |lsn, relations: &[(u32, u32, &str)]| {
            let relation = |it: &(u32, u32, &str)| RelationName(it.0, it.1, 'r', "public".into(), it.2.into());
            let relations = relations.iter().map(relation).collect();
            let databases = vec![DatabaseNames { oid: 5, name: "shop".into(), snapshot: None, relations }];
            Names { format: FORMAT_VERSION, taken_at: jiff::Timestamp::UNIX_EPOCH, lsn: Lsn(lsn), databases }
        };
        NameBook::new(vec![names(100, &[(10, 11, "accounts"), (20, 20, "gone")]), names(300, &[(10, 11, "accounts")])])
    }

    fn judged(wanted: &str, lsn: u64, file: u32, changed: &[u32]) -> Verdict {
        let transaction = Transaction {
            database: Some(5),
            removed_count: 1,
            removed: vec![RelationId { tablespace: 1663, database: 5, file }],
            changed: changed.to_vec(),
            ..Transaction::default()
        };
        judge(&transaction, Lsn(lsn), &book(), wanted)
    }

    #[test]
    fn a_drop_is_known_by_its_file_and_failing_that_by_its_number() {
        assert_eq!(judged("public.accounts", 400, 11, &[]), Verdict::ByFile);
        assert_eq!(judged("public.accounts", 200, 11, &[]), Verdict::Another, "it is there later: it was rewritten");
        assert_eq!(judged("public.accounts", 400, 20, &[10]), Verdict::Another, "it only referred to it");
        assert_eq!(judged("public.accounts", 400, 99, &[10]), Verdict::ByNumber, "rewritten since");
        assert_eq!(judged("public.accounts", 200, 99, &[10]), Verdict::Unknown, "it is there later");
        assert_eq!(judged("public.gone", 200, 99, &[20, 10]), Verdict::ByNumber);
        assert_eq!(judged("public.gone", 200, 99, &[30]), Verdict::Unknown);
    }
}
