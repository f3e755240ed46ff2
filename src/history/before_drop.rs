//! Finds the moment before a relation was dropped, by its name.

use super::chronicle::Chronicle;
use super::entry::{Entry, Event, Transaction};
use super::names::{NameBook, Relation, read_name_book};
use super::search::{Bound, Search};
use super::span::{Hole, walk};
use crate::error::Result;
use crate::repository::{Catalog, NamesAt, WalReader};
use crate::wal::{History, LISTED_RELATIONS_MAX, Lsn};
use jiff::Timestamp;
use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// Drops of relations without a name that are remembered, the latest; and of databases as many.
const REMEMBERED_MAX: usize = 100;
/// Lists of names that are read of those around drops without a name: never more than [`read_name_book`] reads of any.
const NEAR_MAX: usize = 64;
/// Lists behind the last moment that is of interest that are read all the same: they tell what was still there.
const LISTS_BEHIND: usize = 2;
/// The first OID that is not the cluster's own (`FirstNormalObjectId` in `transam.h`).
const FIRST_OID: u32 = 16_384;
/// `pg_class.relkind` of a partitioned table, the one kind with a name here and without a file (`pg_class.h`).
const PARTITIONED: char = 'p';

/// What a search for drops of a relation has found.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// What was looked for, `schema.name`: without its database, if that was said.
    pub relation: String,
    /// No database was said: it was looked for in all of them.
    pub is_everywhere: bool,
    /// The latest in each database.
    pub found: Vec<Found>,
    /// The latest drops of relations of which no name is known: it may be one of these.
    pub unnamed: VecDeque<Entry>,
    /// The latest of those before, that are not remembered.
    forgotten: Option<Lsn>,
    /// The latest drops of databases: it may have gone with one of these.
    pub dropped_databases: VecDeque<Entry>,
    /// What was called how.
    pub names: Arc<NameBook>,
    /// WAL that was not looked at.
    pub holes: Vec<Hole>,
}

/// The latest drop in a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The database's number.
    pub database: u32,
    /// The transaction.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: Timestamp,
    /// Its commit record.
    pub start: Lsn,
    /// Recovery that ends in front of the record here has the relation.
    pub before: Lsn,
    /// False if it goes by what the transaction changed, since there is no file with a name: a relation that referred to this one
    /// may have been dropped instead.
    pub is_certain: bool,
    /// How many there were in this database.
    pub count: usize,
}

/// Looks for drops of `relation` in the WAL along `history` from the first base backup on, up to `to`. It is a schema and a name with
/// a dot between them, of `database`, which is a name or an OID. Without `database` the name of one may stand in front, with
/// a dot; without that it is looked for in all of them.
///
/// # Errors
/// If the store fails, or what was listed cannot be read.
pub async fn find_drops(
    reader: &WalReader,
    catalog: &Catalog,
    history: &History,
    relation: &str,
    database: Option<&str>,
    to: Bound,
) -> Result<Drops> {
    // Nothing before can be restored.
    let backups = catalog.finished_backups().filter(|backup| backup.is_on_path(history));
    let first = backups.map(|backup| backup.start_lsn).min().unwrap_or_default();
    let on_path = catalog.names.keys().filter(|at| history.timeline_at(at.lsn) == at.timeline);
    let lists = up_to(on_path.copied(), to);
    let chosen = lists.iter().copied().collect();
    let names = Arc::new(read_lists(reader, catalog, history, &chosen, Bound::Lsn(first)).await);
    let wanted = Arc::new(Wanted::read(relation, database, &names));
    let drops: Arc<Mutex<Drops>> = Arc::default();
    let (seen, called, sought) = (drops.clone(), names.clone(), wanted.clone());
    let chronicle = Chronicle::new(move |entry| {
        let is_over = match to {
            Bound::Time(time) => entry.time > time,
            Bound::Lsn(lsn) => entry.start > lsn,
        };
        if is_over {
            return ControlFlow::Break(());
        }
        seen.lock().unwrap_or_else(PoisonError::into_inner).see(entry, &called, &sought);
        ControlFlow::Continue(())
    });
    let search = Search { from: Bound::Lsn(first), to: Some(to), removals: true, whole: false };
    let walked = walk(reader, catalog, history, search, chronicle).await?;
    let mut drops = std::mem::take(&mut *drops.lock().unwrap_or_else(PoisonError::into_inner));
    // Of many lists some were left out, perhaps those that have the names that are missing.
    let near = near(&lists, drops.unnamed.iter().map(|entry| entry.start));
    if lists.len() > NEAR_MAX && !near.is_empty() {
        let names = read_lists(reader, catalog, history, &near, Bound::Lsn(Lsn(0))).await;
        let unnamed = std::mem::take(&mut drops.unnamed);
        unnamed.into_iter().for_each(|entry| drops.see(entry, &names, &wanted));
    }
    let (relation, is_everywhere) = (wanted.name.clone(), wanted.databases.is_none());
    Ok(Drops { relation, is_everywhere, names, holes: walked.holes, ..drops })
}

/// Of lists of names along a path, in order, those that matter for what was dropped up to `to`.
fn up_to(lists: impl Iterator<Item = NamesAt>, to: Bound) -> Vec<NamesAt> {
    let mut behind = 0;
    let matters = |at: &NamesAt| {
        let is_behind = match to {
            Bound::Time(time) => at.time > time,
            Bound::Lsn(lsn) => at.lsn > lsn,
        };
        behind += usize::from(is_behind);
        behind <= LISTS_BEHIND
    };
    lists.take_while(matters).collect()
}

/// Of `lists`, in order, those just before and behind these positions, the latest if there are too many.
fn near(lists: &[NamesAt], drops: impl DoubleEndedIterator<Item = Lsn>) -> BTreeSet<NamesAt> {
    let mut near = BTreeSet::new();
    for lsn in drops.rev() {
        let before = lists.partition_point(|at| at.lsn <= lsn).saturating_sub(1);
        near.extend(lists.iter().skip(before).take(2));
        if near.len() + 2 > NEAR_MAX {
            break;
        }
    }
    near
}

/// Reads these lists, of those that are of use from `from` on.
async fn read_lists(
    reader: &WalReader,
    catalog: &Catalog,
    history: &History,
    lists: &BTreeSet<NamesAt>,
    from: Bound,
) -> NameBook {
    let mut catalog = catalog.clone();
    catalog.names.retain(|at, _| lists.contains(at));
    read_name_book(reader, &catalog, history, from).await
}

/// What is looked for.
#[derive(Debug)]
struct Wanted {
    /// `schema.name`.
    name: String,
    /// In one of these databases; `None` for any.
    databases: Option<Vec<u32>>,
}

impl Wanted {
    /// Understands what [`find_drops`] is asked for. The first dot behind what is known as a database ends its name.
    fn read(relation: &str, database: Option<&str>, names: &NameBook) -> Wanted {
        let numbers = |name: &str| {
            let mut oids = names.databases_called(name);
            oids.extend(name.parse::<u32>());
            oids
        };
        if let Some(database) = database {
            return Wanted { name: relation.to_owned(), databases: Some(numbers(database)) };
        }
        for (dot, _) in relation.match_indices('.') {
            let (Some(database), Some(name)) = (relation.get(..dot), relation.get(dot + 1..)) else { continue };
            let databases = numbers(database);
            if name.contains('.') && !databases.is_empty() {
                return Wanted { name: name.to_owned(), databases: Some(databases) };
            }
        }
        Wanted { name: relation.to_owned(), databases: None }
    }

    fn is(&self, database: u32, relation: &Relation) -> bool {
        relation.name == self.name && self.databases.as_ref().is_none_or(|oids| oids.contains(&database))
    }

    /// True for a database without a name as well: it may be the one.
    fn may_be_in(&self, database: u32, lsn: Lsn, names: &NameBook) -> bool {
        let is_meant = self.databases.as_ref().is_none_or(|oids| oids.contains(&database));
        is_meant || names.database(database, lsn).is_none()
    }
}

impl Drops {
    /// True if a relation of which no name is known was dropped behind this position.
    pub fn has_unnamed_behind(&self, lsn: Lsn) -> bool {
        let last = self.unnamed.back().map(|entry| entry.start);
        last.max(self.forgotten).is_some_and(|last| last > lsn)
    }

    fn see(&mut self, entry: Entry, names: &NameBook, wanted: &Wanted) {
        let Event::Commit(transaction) = &entry.event else { return };
        if transaction.dropped_databases.iter().any(|oid| wanted.may_be_in(*oid, entry.start, names)) {
            remember(&mut self.dropped_databases, entry);
            return;
        }
        if !transaction.drops_relations() {
            return;
        }
        match judge(transaction, entry.start, names, wanted) {
            Verdict::ByFile(database) => self.note(database, true, &entry, transaction),
            Verdict::ByNumber(database) => self.note(database, false, &entry, transaction),
            Verdict::Another => {}
            Verdict::Unknown => {
                let forgotten = remember(&mut self.unnamed, entry).map(|entry| entry.start);
                self.forgotten = self.forgotten.max(forgotten);
            }
        }
    }

    fn note(&mut self, database: u32, is_certain: bool, entry: &Entry, transaction: &Transaction) {
        let (xid, time, start) = (transaction.xid, entry.time, entry.start);
        let found = Found { database, xid, time, start, before: transaction.before(start), is_certain, count: 1 };
        match self.found.iter_mut().find(|other| other.database == database) {
            None => self.found.push(found),
            Some(other) => {
                let count = other.count + 1;
                let newest = if other.start > start { *other } else { found };
                *other = Found { count, ..newest };
            }
        }
    }
}

/// Puts `entry` behind the others, of which the first may have to go for it.
fn remember(entries: &mut VecDeque<Entry>, entry: Entry) -> Option<Entry> {
    entries.push_back(entry);
    if entries.len() > REMEMBERED_MAX { entries.pop_front() } else { None }
}

/// Whether a transaction that drops relations drops the one that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It removes its file, in this database.
    ByFile(u32),
    /// It changes or drops the relation with its number, in this database, and removes files without a name; or the relation has no
    /// file, and it drops some that have none.
    ByNumber(u32),
    /// It drops others.
    Another,
    /// It drops some that have no name.
    Unknown,
}

fn judge(transaction: &Transaction, lsn: Lsn, names: &NameBook, wanted: &Wanted) -> Verdict {
    let shown = |database| names.shown_behind(database, transaction.xid, lsn);
    let is_cut = transaction.removed_count as usize > transaction.removed.len();
    let mut has_unknown = is_cut && transaction.database.is_none_or(|oid| wanted.may_be_in(oid, lsn, names));
    for file in &transaction.removed {
        match names.relation(*file, lsn) {
            // One that is there later was rewritten, by a transaction that dropped others.
            Some(relation)
                if wanted.is(file.database, relation) && !names.is_file_known_behind(*file, shown(file.database)) =>
            {
                return Verdict::ByFile(file.database);
            }
            Some(_) => {}
            None => has_unknown |= wanted.may_be_in(file.database, lsn, names),
        }
    }
    let unknown = if has_unknown { Verdict::Unknown } else { Verdict::Another };
    let Some(database) = transaction.database else { return unknown };
    // A table that was rewritten since its name was read has another file, and the same number. One that is there later
    // was not dropped.
    let meant = transaction.changed.iter().find_map(|oid| {
        let relation = names.relation_by_oid(database, *oid, lsn)?;
        let is_meant = wanted.is(database, relation) && !names.is_known_behind(database, *oid, shown(database));
        is_meant.then_some(relation.kind)
    });
    // What goes is among what is changed, as every row that leaves `pg_class` (`CacheInvalidateHeapTuple` in `inval.c`): where
    // all of that has names, so has what was dropped.
    let is_named = |oid: &u32| *oid < FIRST_OID || names.relation_by_oid(database, *oid, lsn).is_some();
    let is_listed = (1..LISTED_RELATIONS_MAX / 2).contains(&transaction.changed.len());
    let has_all_names = is_listed && transaction.changed.iter().all(is_named);
    let other = if has_all_names { Verdict::Another } else { unknown };
    match meant {
        // Dropping one of its partitions changes it too.
        Some(PARTITIONED) if !transaction.is_whole => Verdict::Unknown,
        Some(PARTITIONED) if drops_without_file(transaction) => Verdict::ByNumber(database),
        Some(PARTITIONED) | None => other,
        Some(_) if has_unknown => Verdict::ByNumber(database),
        Some(_) => Verdict::Another,
    }
}

/// True if more relations went than files of relations: some had none.
fn drops_without_file(transaction: &Transaction) -> bool {
    let files = i64::from(transaction.removed_count) - i64::from(transaction.created_count);
    transaction.relations_lost > files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{DatabaseNames, FORMAT_VERSION, Names, RelationName};
    use crate::wal::{RelationId, TimelineId};

    const ACCOUNTS: u32 = 20_010;
    const GONE: u32 = 20_020;
    const EVENTS: u32 = 20_030;
    const PARTITION: u32 = 20_031;
    const NAMELESS: u32 = 20_090;
    const SHOP: u32 = 5;
    const BLOG: u32 = 6;

    /// At 100 and 300 a base backup saw `public.accounts` (with file 11) in two databases; at 100 alone `public.gone`, and
    /// `public.events`, which has a partition and no file.
    fn book() -> NameBook {
        let names = |lsn, relations: &[(u32, u32, char, &str)]| {
            let relation = |it: &(u32, u32, char, &str)| RelationName(it.0, it.1, it.2, "public".into(), it.3.into());
            let relations: Vec<RelationName> = relations.iter().map(relation).collect();
            let database = |(oid, name): (u32, &str)| DatabaseNames {
                oid,
                name: name.to_owned(),
                snapshot: None,
                relations: relations.clone(),
            };
            let databases = [(SHOP, "shop"), (BLOG, "blog")].map(database).into();
            Names { format: FORMAT_VERSION, taken_at: Timestamp::UNIX_EPOCH, lsn: Lsn(lsn), databases }
        };
        let accounts = (ACCOUNTS, 11, 'r', "accounts");
        let gone = [(GONE, 20, 'r', "gone"), (EVENTS, 0, 'p', "events"), (PARTITION, 31, 'r', "events_1")];
        NameBook::new(vec![names(100, &[&[accounts], &gone[..]].concat()), names(300, &[accounts])])
    }

    /// A transaction that removes a file.
    fn removing(database: u32, file: u32, changed: &[u32]) -> Transaction {
        Transaction {
            database: Some(database),
            is_whole: true,
            removed_count: 1,
            removed: vec![RelationId { tablespace: 1663, database, file }],
            changed: changed.to_vec(),
            relations_lost: 1,
            ..Transaction::default()
        }
    }

    fn judged(wanted: &str, lsn: u64, file: u32, changed: &[u32]) -> Verdict {
        let (names, transaction) = (book(), removing(SHOP, file, changed));
        judge(&transaction, Lsn(lsn), &names, &Wanted::read(wanted, None, &names))
    }

    fn entry(start: u64, transaction: Transaction) -> Entry {
        let event = Event::Commit(Box::new(transaction));
        Entry { start: Lsn(start), end: Lsn(start + 1), time: Timestamp::UNIX_EPOCH, event }
    }

    /// What is found of these.
    fn found(wanted: &str, database: Option<&str>, entries: Vec<Entry>) -> Drops {
        let names = book();
        let (wanted, mut drops) = (Wanted::read(wanted, database, &names), Drops::default());
        entries.into_iter().for_each(|entry| drops.see(entry, &names, &wanted));
        drops
    }

    #[test]
    fn a_drop_is_known_by_its_file_and_failing_that_by_its_number() {
        assert_eq!(judged("public.accounts", 400, 11, &[]), Verdict::ByFile(SHOP));
        assert_eq!(judged("public.accounts", 200, 11, &[]), Verdict::Another, "it is there later: it was rewritten");
        assert_eq!(judged("public.accounts", 400, 20, &[ACCOUNTS]), Verdict::Another, "it only referred to it");
        assert_eq!(judged("public.accounts", 400, 99, &[ACCOUNTS]), Verdict::ByNumber(SHOP), "rewritten since");
        let both = [ACCOUNTS, NAMELESS];
        assert_eq!(judged("public.accounts", 200, 99, &both), Verdict::Unknown, "it is there later");
        assert_eq!(judged("public.gone", 200, 99, &[GONE, ACCOUNTS]), Verdict::ByNumber(SHOP));
        assert_eq!(judged("public.gone", 200, 99, &[NAMELESS]), Verdict::Unknown);
        assert_eq!(judged("public.gone", 200, 99, &[]), Verdict::Unknown);
    }

    #[test]
    fn a_file_without_a_name_was_of_a_relation_that_has_one_where_all_that_changed_have() {
        assert_eq!(judged("public.accounts", 200, 99, &[GONE, 1259]), Verdict::Another);
        assert_eq!(judged("public.accounts", 200, 99, &[GONE, NAMELESS]), Verdict::Unknown);
    }

    #[test]
    fn a_partitioned_table_went_where_more_relations_went_than_files() {
        let names = book();
        let wanted = Wanted::read("public.events", None, &names);
        let one = removing(SHOP, 31, &[PARTITION, EVENTS]);
        let all = Transaction { relations_lost: 2, ..one.clone() };
        let verdict = |transaction: &Transaction| judge(transaction, Lsn(200), &names, &wanted);
        assert_eq!(verdict(&one), Verdict::Another, "a partition alone");
        assert_eq!(verdict(&all), Verdict::ByNumber(SHOP));
        // The partitions too may be younger than all names.
        let young = removing(SHOP, 99, &[NAMELESS, EVENTS]);
        assert_eq!(verdict(&young), Verdict::Unknown);
        assert_eq!(verdict(&Transaction { relations_lost: 2, ..young }), Verdict::ByNumber(SHOP));
        assert_eq!(verdict(&Transaction { is_whole: false, ..all }), Verdict::Unknown, "more may have gone");
    }

    #[test]
    fn drops_of_one_name_are_told_apart_by_their_databases() {
        let drops = || vec![entry(400, removing(SHOP, 11, &[])), entry(500, removing(BLOG, 11, &[]))];
        let places = |wanted, database| {
            let found = found(wanted, database, drops()).found;
            found.iter().map(|found| (found.database, found.start.0, found.count)).collect::<Vec<_>>()
        };
        assert_eq!(places("public.accounts", None), [(SHOP, 400, 1), (BLOG, 500, 1)]);
        for (wanted, database) in
            [("public.accounts", Some("shop")), ("public.accounts", Some("5")), ("shop.public.accounts", None)]
        {
            assert_eq!(places(wanted, database), [(SHOP, 400, 1)], "{wanted} of {database:?}");
        }
        assert_eq!(places("5.public.accounts", None), [(SHOP, 400, 1)]);
        assert!(places("public.accounts", Some("elsewhere")).is_empty());
        // A dot in a name is no database.
        let names = book();
        let wanted = Wanted::read("public.my.accounts", None, &names);
        assert_eq!((wanted.name.as_str(), wanted.databases), ("public.my.accounts", None));
        assert_eq!(Wanted::read("shop.accounts", None, &names).databases, None, "shop is a schema here");
    }

    #[test]
    fn a_drop_without_a_name_behind_the_one_that_is_found_is_seen() {
        let known = || entry(400, removing(SHOP, 11, &[]));
        let nameless = |start, database| entry(start, removing(database, 99, &[NAMELESS]));
        let unclear = |database, entries| {
            let drops = found("public.accounts", database, entries);
            (drops.found[0].start.0, drops.has_unnamed_behind(drops.found[0].start))
        };
        assert_eq!(unclear(None, vec![nameless(350, SHOP), known()]), (400, false), "before it");
        assert_eq!(unclear(None, vec![known(), nameless(450, SHOP)]), (400, true));
        assert_eq!(unclear(Some("shop"), vec![known(), nameless(450, SHOP)]), (400, true));
        assert_eq!(unclear(Some("shop"), vec![known(), nameless(450, BLOG)]), (400, false), "elsewhere");
        assert_eq!(unclear(Some("shop"), vec![known(), nameless(450, 77)]), (400, true), "perhaps a new shop");
        // Those that are not remembered count.
        let mut drops = found("public.accounts", None, vec![known()]);
        let (names, wanted) = (book(), Wanted::read("public.accounts", None, &book()));
        let many = (0..=REMEMBERED_MAX as u64).map(|number| nameless(500 + number, SHOP));
        many.for_each(|entry| drops.see(entry, &names, &wanted));
        assert_eq!((drops.unnamed.len(), drops.forgotten), (REMEMBERED_MAX, Some(Lsn(500))));
        drops.unnamed.clear();
        assert!(drops.has_unnamed_behind(Lsn(400)) && !drops.has_unnamed_behind(Lsn(500)));
    }

    #[test]
    fn a_database_that_was_dropped_is_told() {
        let dropping = |oid| Transaction { dropped_databases: vec![oid], ..Transaction::default() };
        let drops = || vec![entry(400, dropping(SHOP)), entry(500, dropping(BLOG))];
        assert_eq!(found("public.accounts", None, drops()).dropped_databases.len(), 2);
        let of_shop = found("shop.public.accounts", None, drops()).dropped_databases;
        assert_eq!(of_shop.iter().map(|entry| entry.start.0).collect::<Vec<_>>(), [400]);
    }

    #[test]
    fn of_the_names_those_are_read_that_tell_of_what_was_dropped() {
        let at = |number: u64| NamesAt {
            lsn: Lsn(number * 100),
            time: Timestamp::from_second(number as i64).unwrap(),
            timeline: TimelineId(1),
        };
        let lists: Vec<NamesAt> = (1..=1000).map(at).collect();
        let up_to = |to| up_to(lists.iter().copied(), to).len();
        // With the two behind.
        assert_eq!(up_to(Bound::Lsn(Lsn(5_050))), 52);
        assert_eq!(up_to(Bound::Time(at(50).time)), 52);
        assert_eq!(up_to(Bound::Lsn(Lsn(u64::MAX))), 1000);
        let near = |drops: &[u64]| near(&lists, drops.iter().map(|lsn| Lsn(*lsn))).into_iter().collect::<Vec<_>>();
        assert!(near(&[]).is_empty());
        assert_eq!(near(&[5_050, 5_060, 70_050]), [at(50), at(51), at(700), at(701)]);
        assert_eq!(near(&[0, 900_000]), [at(1), at(2), at(1000)]);
        let many: Vec<u64> = (1..=500).map(|number| number * 200 + 50).collect();
        let near = near(&many);
        assert!(near.len() <= NEAR_MAX && near.contains(&at(1000)) && !near.contains(&at(2)), "{near:?}");
    }
}
