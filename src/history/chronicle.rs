//! Folds records into entries as they come. Pure. Memory: some 100 bytes for each transaction that is open, up to a bound.

use super::entry::{Entry, Event, Transaction};
use super::index::time_of;
use super::search::Search;
use crate::repository::RecordSink;
use crate::wal::{LISTED_RELATIONS_MAX, LISTED_SUBTRANSACTIONS_MAX, Lsn, Record, RecordKind, RelationId};
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

/// Open transactions, and subtransactions, that are counted at a time. Of those beyond, what their ends say is told, and
/// that they are not whole.
const OPEN_MAX: usize = 1 << 18;
/// The `relfilenode` of `pg_class` as `initdb` makes it; only `VACUUM FULL` of it changes that.
const PG_CLASS: u32 = 1259;
/// The tablespace of what all databases share, `pg_database` among it.
const GLOBAL_TABLESPACE: u32 = 1664;
const HEAP: u8 = 10;
const HEAP_INSERT: u8 = 0x00;
const HEAP_DELETE: u8 = 0x10;
const HEAP_INPLACE: u8 = 0x70;
const HEAP_MASK: u8 = 0x70;
/// Changes in place of what all databases share that are remembered.
const INPLACE_MAX: usize = 64;
/// `DROP DATABASE` marks the database as invalid so soon before its transaction's first record: it only waits for the disk
/// in between.
const INPLACE_BYTES_MAX: u64 = 1 << 20;

/// What an open transaction has done so far.
#[derive(Debug)]
struct Open {
    first: Lsn,
    records: u64,
    bytes: u64,
    database: Option<u32>,
    /// What few do.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    created_count: u32,
    created: Vec<RelationId>,
    relations_lost: i64,
    created_databases: Vec<u32>,
    dropped_databases: Vec<u32>,
    created_tablespaces: Vec<u32>,
    dropped_tablespaces: Vec<u32>,
}

impl Rare {
    fn merge(&mut self, mut other: Rare) {
        self.created_count = self.created_count.saturating_add(other.created_count);
        self.created.append(&mut other.created);
        self.created.truncate(LISTED_RELATIONS_MAX);
        self.relations_lost += other.relations_lost;
        let lists = [
            (&mut self.created_databases, &mut other.created_databases),
            (&mut self.dropped_databases, &mut other.dropped_databases),
            (&mut self.created_tablespaces, &mut other.created_tablespaces),
            (&mut self.dropped_tablespaces, &mut other.dropped_tablespaces),
        ];
        for (list, more) in lists {
            list.append(more);
            list.truncate(LISTED_RELATIONS_MAX);
        }
    }
}

impl Open {
    fn merge(&mut self, other: Open) {
        self.first = self.first.min(other.first);
        self.records += other.records;
        self.bytes += other.bytes;
        self.database = self.database.or(other.database);
        if let Some(rare) = other.rare {
            self.rare.get_or_insert_default().merge(*rare);
        }
    }
}

/// Writes the history of the records that it sees.
pub struct Chronicle {
    open: HashMap<u32, Open>,
    /// Transactions from this number on began where they can be seen.
    seen_from: Option<u32>,
    /// Where shared relations were changed in place by nobody, the latest last.
    inplace: VecDeque<Lsn>,
    /// Entries before this were given out.
    given_to: Lsn,
    /// Nothing before this is seen.
    begun_at: Lsn,
    /// Of what is removed from here on, the transactions must be known from their beginning.
    whole_from: Option<Lsn>,
    /// Not those alone: all.
    wants_whole: bool,
    /// One is not: it has to be walked from further in front.
    pub(super) lacks_beginning: bool,
    /// Whoever gets the entries has had enough.
    pub(super) is_over: bool,
    out: Box<dyn FnMut(Entry) -> ControlFlow<()> + Send>,
}

impl Chronicle {
    /// Gives each entry to `out`, in the order of their records, until that breaks.
    pub fn new(out: impl FnMut(Entry) -> ControlFlow<()> + Send + 'static) -> Chronicle {
        let out = Box::new(out);
        Chronicle {
            open: HashMap::new(),
            seen_from: None,
            inplace: VecDeque::new(),
            given_to: Lsn(0),
            begun_at: Lsn(0),
            whole_from: None,
            wants_whole: false,
            lacks_beginning: false,
            is_over: false,
            out,
        }
    }

    /// What comes next begins at `start`, and does not follow on what came before: what is open has perhaps ended there, and more
    /// may have begun. It stops at a transaction that removed something from `whole_from` on, and of which the beginning was
    /// not seen.
    pub(super) fn begin(&mut self, start: Lsn, whole_from: Option<Lsn>) {
        self.open.clear();
        self.inplace.clear();
        self.seen_from = None;
        self.begun_at = start;
        self.whole_from = whole_from;
        self.lacks_beginning = false;
    }

    /// Transactions with this number, and later ones, began where they could be seen.
    fn has_seen_begin(&self, xid: u32) -> bool {
        self.seen_from.is_some_and(|from| !precedes(xid, from))
    }

    /// It is to be told for this.
    pub(super) fn for_search(self, search: &Search) -> Chronicle {
        Chronicle { wants_whole: search.whole, ..self }
    }

    /// A transaction is open that removes a database or a tablespace.
    pub(super) fn has_open_removal(&self) -> bool {
        let mut rare = self.open.values().filter_map(|open| open.rare.as_deref());
        rare.any(|rare| !rare.dropped_databases.is_empty() || !rare.dropped_tablespaces.is_empty())
    }

    /// What it removed from where it has to be whole may have begun before anything was seen.
    fn lacks_beginning_of(&self, entry: &Entry) -> bool {
        let Event::Commit(transaction) = &entry.event else { return false };
        let is_removed_before = transaction.invalidated.is_none()
            && !transaction.dropped_databases.is_empty()
            && transaction.first.0.saturating_sub(INPLACE_BYTES_MAX) < self.begun_at.0;
        self.whole_from.is_some_and(|from| entry.end > from)
            && (transaction.removes() || self.wants_whole)
            && (is_removed_before || !self.has_seen_begin(transaction.xid))
    }

    fn count(&mut self, record: &Record) -> Option<&mut Open> {
        let xid = record.top_xid.filter(|top| *top != 0).unwrap_or(record.xid);
        if xid == 0 {
            return None;
        }
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&xid) {
            self.seen_from = None;
            return None;
        }
        let first = record.start;
        let open = self.open.entry(xid).or_insert(Open { first, records: 0, bytes: 0, database: None, rare: None });
        open.records += 1;
        open.bytes += u64::from(record.bytes);
        if open.database.is_none() {
            open.database = record.relation.map(|relation| relation.database).filter(|database| *database != 0);
        }
        Some(open)
    }

    fn note(&mut self, record: &Record) {
        let Some(open) = self.count(record) else { return };
        let mut rare = |change: &mut dyn FnMut(&mut Rare)| change(open.rare.get_or_insert_default());
        let push = |list: &mut Vec<u32>, oid: u32| {
            if list.len() < LISTED_RELATIONS_MAX {
                list.push(oid);
            }
        };
        match record.kind {
            RecordKind::RelationCreate { tablespace, database, file } => rare(&mut |rare| {
                let relation = RelationId { tablespace, database, file };
                // One that moves is made fork by fork.
                if rare.created.contains(&relation) {
                    return;
                }
                rare.created_count = rare.created_count.saturating_add(1);
                if rare.created.len() < LISTED_RELATIONS_MAX {
                    rare.created.push(relation);
                }
            }),
            RecordKind::DatabaseCreate { oid, .. } => rare(&mut |rare| push(&mut rare.created_databases, oid)),
            RecordKind::DatabaseDrop { oid } => rare(&mut |rare| push(&mut rare.dropped_databases, oid)),
            RecordKind::TablespaceCreate { oid, .. } => rare(&mut |rare| push(&mut rare.created_tablespaces, oid)),
            RecordKind::TablespaceDrop { oid } => rare(&mut |rare| push(&mut rare.dropped_tablespaces, oid)),
            RecordKind::Other { rmgr: HEAP, info } if record.relation.is_some_and(|it| it.file == PG_CLASS) => {
                match info & HEAP_MASK {
                    HEAP_DELETE => rare(&mut |rare| rare.relations_lost += 1),
                    HEAP_INSERT => rare(&mut |rare| rare.relations_lost -= 1),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Takes a transaction with its subtransactions out of those that are open.
    fn close(&mut self, xid: u32, subtransactions: &[u32]) -> Option<Open> {
        let mut whole = self.open.remove(&xid);
        for xid in subtransactions {
            if let Some(part) = self.open.remove(xid) {
                match &mut whole {
                    Some(whole) => whole.merge(part),
                    None => whole = Some(part),
                }
            }
        }
        whole
    }

    fn committed(&mut self, record: &Record) -> Option<Entry> {
        let RecordKind::Commit { prepared_xid, dropped_relations, dropped, database, subtransactions, changed, .. } =
            &record.kind
        else {
            return None;
        };
        let xid = prepared_xid.unwrap_or(record.xid);
        // One that wrote nothing else has no number, and changed nothing that recovery could bring back.
        if xid == 0 {
            return None;
        }
        let is_known = subtransactions.len() < LISTED_SUBTRANSACTIONS_MAX;
        let open = self.close(xid, subtransactions);
        let first = open.as_ref().map_or(record.start, |open| open.first);
        let rare = open.as_ref().and_then(|open| open.rare.as_deref());
        // The record of COMMIT PREPARED was not written by the transaction that it ends.
        let own = u64::from(prepared_xid.is_some() || open.is_none());
        let mut transaction = Transaction {
            xid,
            prepared: prepared_xid.is_some(),
            first,
            records: open.as_ref().map_or(0, |open| open.records) + own,
            bytes: open.as_ref().map_or(0, |open| open.bytes) + own * u64::from(record.bytes),
            is_whole: is_known && self.has_seen_begin(xid),
            database: database.or(open.as_ref().and_then(|open| open.database)),
            removed_count: *dropped_relations,
            removed: dropped.clone(),
            changed: changed.clone(),
            ..Transaction::default()
        };
        if let Some(rare) = rare {
            transaction.created_count = rare.created_count;
            transaction.created.clone_from(&rare.created);
            transaction.relations_lost = rare.relations_lost;
            transaction.created_databases.clone_from(&rare.created_databases);
            transaction.dropped_databases.clone_from(&rare.dropped_databases);
            transaction.created_tablespaces.clone_from(&rare.created_tablespaces);
            transaction.dropped_tablespaces.clone_from(&rare.dropped_tablespaces);
        }
        if !transaction.dropped_databases.is_empty() {
            let shortly_before = |at: &&Lsn| **at < first && first - **at <= INPLACE_BYTES_MAX;
            transaction.invalidated = self.inplace.iter().rev().find(shortly_before).copied();
        }
        let event = Event::Commit(Box::new(transaction));
        Some(Entry { start: record.start, end: record.end, time: time_of(&record.kind)?, event })
    }

    fn event(&mut self, record: &Record) -> Option<Entry> {
        let event = match &record.kind {
            RecordKind::Commit { .. } => return self.committed(record),
            RecordKind::RestorePoint { name, .. } => Event::RestorePoint { name: name.clone() },
            RecordKind::Checkpoint { shutdown: true, timeline, previous_timeline, .. }
                if timeline == previous_timeline =>
            {
                Event::Restart
            }
            RecordKind::Checkpoint { shutdown: true, timeline, previous_timeline, .. }
            | RecordKind::EndOfRecovery { timeline, previous_timeline, .. } => {
                Event::Promotion { timeline: *timeline, previous_timeline: *previous_timeline }
            }
            _ => return None,
        };
        Some(Entry { start: record.start, end: record.end, time: time_of(&record.kind)?, event })
    }

    fn remember(&mut self, record: &Record) {
        match &record.kind {
            RecordKind::Abort { prepared_xid, subtransactions, .. } => {
                self.close(prepared_xid.unwrap_or(record.xid), subtransactions);
            }
            RecordKind::Subtransactions { top_xid, xids } => {
                if let Some(open) = self.close(*top_xid, xids) {
                    self.open.insert(*top_xid, open);
                }
            }
            RecordKind::RunningTransactions { next_xid, oldest_xid } => {
                self.seen_from.get_or_insert(*next_xid);
                // Those that a crash ended have no record that says so.
                self.open.retain(|xid, _| !precedes(*xid, *oldest_xid));
            }
            RecordKind::Other { rmgr: HEAP, info }
                if info & HEAP_MASK == HEAP_INPLACE
                    && record.xid == 0
                    && record.relation.is_some_and(|relation| relation.tablespace == GLOBAL_TABLESPACE) =>
            {
                self.inplace.push_back(record.start);
                if self.inplace.len() > INPLACE_MAX {
                    self.inplace.pop_front();
                }
            }
            _ => {}
        }
    }
}

impl RecordSink for Chronicle {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        self.note(record);
        let entry = self.event(record);
        self.remember(record);
        let Some(entry) = entry.filter(|entry| entry.start >= self.given_to) else { return ControlFlow::Continue(()) };
        if self.lacks_beginning_of(&entry) {
            // What it made, and where it began, decides what it did and how it is undone.
            self.lacks_beginning = true;
            return ControlFlow::Break(());
        }
        self.given_to = entry.end;
        let flow = (self.out)(entry);
        self.is_over = flow.is_break();
        flow
    }
}

/// True if `one` was given out before `other`: numbers go round (`TransactionIdPrecedes` in `transam.c`).
fn precedes(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

#[cfg(test)]
#[path = "chronicle_tests.rs"]
mod tests;
