//! What numbers in WAL were called, from the names that were stored now and then.

use super::search::Bound;
use crate::codec::Ending;
use crate::repository::{Catalog, Names, NamesAt, Snapshot, WalReader};
use crate::wal::{History, Lsn, RelationId};
use std::collections::HashMap;
use std::hash::Hash;

/// Lists of names that are read at most: half of them the newest, the others evenly spread.
const LISTS_MAX: usize = 64;

/// A relation, by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    /// `schema.name`.
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: char,
}

/// Something that was so in the lists of names from the first position to the last.
#[derive(Debug)]
struct Known<T> {
    first: Lsn,
    last: Lsn,
    what: T,
}

/// What was known of each number, in order.
type Numbers<K, T> = HashMap<K, Vec<Known<T>>>;

/// Reads the names that are of use for what happened along `history` from `from` on. Names that cannot be read are told of in the
/// log, and left out.
pub async fn read_name_book(reader: &WalReader, catalog: &Catalog, history: &History, from: Bound) -> NameBook {
    let on_path = catalog.names.iter().filter(|(at, _)| history.timeline_at(at.lsn) == at.timeline);
    let lists: Vec<(NamesAt, Ending)> = on_path.map(|(at, ending)| (*at, *ending)).collect();
    let is_before = |(at, _): &(NamesAt, Ending)| match from {
        Bound::Time(time) => at.time <= time,
        Bound::Lsn(lsn) => at.lsn <= lsn,
    };
    // The last one before says what everything was called then.
    let lists = &lists[lists.iter().rposition(is_before).unwrap_or(0)..];
    let mut book = NameBook::default();
    for index in spread(lists.len()) {
        let Some((at, ending)) = lists.get(index).copied() else { continue };
        match reader.repository().read_names(reader.system_identifier(), at, ending).await {
            Ok(Some(names)) => book.add(names),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(at = %at.time, %error, "the names of relations stored then cannot be read")
            }
        }
    }
    book
}

/// The places to take of `count`: the first, the newest, and what fits in between.
fn spread(count: usize) -> Vec<usize> {
    const HALF: usize = LISTS_MAX / 2;
    match count > LISTS_MAX {
        true => (0..HALF).map(|index| index * (count - HALF) / HALF).chain(count - HALF..count).collect(),
        false => (0..count).collect(),
    }
}

/// Names, by number and position: what a number was called just before, and failing that, soon after.
#[derive(Debug, Default)]
pub struct NameBook {
    databases: Numbers<u32, String>,
    /// By database and number.
    relations: Numbers<(u32, u32), Relation>,
    /// By database and file, the number.
    files: Numbers<(u32, u32), u32>,
    /// By database, whose work each list shows.
    snapshots: HashMap<u32, Vec<(Lsn, Snapshot)>>,
}

/// Of what was known of a number, what counts at `lsn`.
fn at<K: Eq + Hash, T>(numbers: &Numbers<K, T>, key: K, lsn: Lsn) -> Option<&T> {
    let known = numbers.get(&key)?;
    let before = known.partition_point(|known| known.first <= lsn);
    known.get(before.saturating_sub(1)).map(|known| &known.what)
}

/// In a list of names at `lsn`, a number is `what`.
fn learn<K: Eq + Hash, T: PartialEq>(numbers: &mut Numbers<K, T>, key: K, lsn: Lsn, what: T) {
    let known = numbers.entry(key).or_default();
    match known.last_mut().filter(|last| last.what == what) {
        Some(last) => last.last = lsn,
        None => known.push(Known { first: lsn, last: lsn, what }),
    }
}

impl NameBook {
    /// Of these lists of names, in the order of their positions.
    pub fn new(lists: Vec<Names>) -> NameBook {
        let mut book = NameBook::default();
        lists.into_iter().for_each(|names| book.add(names));
        book
    }

    fn add(&mut self, names: Names) {
        let lsn = names.lsn;
        for database in names.databases {
            for relation in database.relations {
                let (oid, file) = ((database.oid, relation.0), (database.oid, relation.1));
                let name = format!("{}.{}", relation.3, relation.4);
                if relation.1 != 0 {
                    learn(&mut self.files, file, lsn, relation.0);
                }
                learn(&mut self.relations, oid, lsn, Relation { name, kind: relation.2 });
            }
            learn(&mut self.databases, database.oid, lsn, database.name);
            if let Some(snapshot) = database.snapshot {
                self.snapshots.entry(database.oid).or_default().push((lsn, snapshot));
            }
        }
    }

    /// The name of a database.
    pub fn database(&self, oid: u32, lsn: Lsn) -> Option<&str> {
        at(&self.databases, oid, lsn).map(String::as_str)
    }

    /// The numbers of databases that ever had this name.
    pub fn databases_called(&self, name: &str) -> Vec<u32> {
        let is_called = |known: &Vec<Known<String>>| known.iter().any(|known| known.what == name);
        let mut oids: Vec<u32> =
            self.databases.iter().filter(|(_, known)| is_called(known)).map(|(oid, _)| *oid).collect();
        oids.sort_unstable();
        oids
    }

    /// The relation that a file belonged to.
    pub fn relation(&self, file: RelationId, lsn: Lsn) -> Option<&Relation> {
        let oid = at(&self.files, (file.database, file.file), lsn)?;
        self.relation_by_oid(file.database, *oid, lsn)
    }

    /// Lists behind this position show what a transaction did in a database that has its commit record at `commit`.
    pub fn shown_behind(&self, database: u32, xid: u32, commit: Lsn) -> Lsn {
        let lists = self.snapshots.get(&database).map_or(&[][..], Vec::as_slice);
        let hidden = lists.iter().filter(|(_, snapshot)| !snapshot.shows(xid)).map(|(lsn, _)| *lsn);
        hidden.max().map_or(commit, |last| last.max(commit))
    }

    /// True if a later list still knows the relation that had this file.
    pub fn is_file_known_behind(&self, file: RelationId, lsn: Lsn) -> bool {
        let oid = at(&self.files, (file.database, file.file), lsn);
        oid.is_some_and(|oid| self.is_known_behind(file.database, *oid, lsn))
    }

    /// True if a later list knows the relation with this number.
    pub fn is_known_behind(&self, database: u32, oid: u32, lsn: Lsn) -> bool {
        let known = self.relations.get(&(database, oid)).and_then(|known| known.last());
        known.is_some_and(|known| known.last > lsn)
    }

    /// The relation with this number.
    pub fn relation_by_oid(&self, database: u32, oid: u32, lsn: Lsn) -> Option<&Relation> {
        at(&self.relations, (database, oid), lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{DatabaseNames, FORMAT_VERSION, RelationName};

    fn names(lsn: u64, relations: &[(u32, u32, &str)]) -> Names {
        let relation = |it: &(u32, u32, &str)| RelationName(it.0, it.1, 'r', "public".into(), it.2.into());
        let relations = relations.iter().map(relation).collect();
        let databases = vec![DatabaseNames { oid: 5, name: "shop".into(), snapshot: None, relations }];
        Names { format: FORMAT_VERSION, taken_at: jiff::Timestamp::UNIX_EPOCH, lsn: Lsn(lsn), databases }
    }

    #[test]
    fn the_name_before_counts_and_failing_that_the_one_behind() {
        let later = names(200, &[(10, 11, "new_name"), (20, 20, "younger")]);
        let book = NameBook::new(vec![names(100, &[(10, 10, "old_name"), (30, 30, "gone")]), later]);
        let called = |file, lsn| {
            let file = RelationId { tablespace: 1663, database: 5, file };
            book.relation(file, Lsn(lsn)).map(|it| it.name.as_str())
        };
        assert_eq!((called(10, 150), called(30, 150)), (Some("public.old_name"), Some("public.gone")));
        // Rewritten since: the number had the old name still.
        assert_eq!(called(11, 150), Some("public.old_name"));
        assert_eq!(called(11, 250), Some("public.new_name"));
        // Made since.
        assert_eq!(called(20, 150), Some("public.younger"));
        assert_eq!((called(30, 250), called(99, 250)), (Some("public.gone"), None));
        let by_oid = |oid, lsn| book.relation_by_oid(5, oid, Lsn(lsn)).map(|it| it.name.as_str());
        assert_eq!((by_oid(10, 150), by_oid(10, 250)), (Some("public.old_name"), Some("public.new_name")));
        assert_eq!((book.database(5, Lsn(0)), book.databases_called("shop")), (Some("shop"), vec![5]));
        // And until when each is known to have been there.
        assert!(book.is_known_behind(5, 10, Lsn(199)) && !book.is_known_behind(5, 10, Lsn(200)));
        assert!(!book.is_known_behind(5, 30, Lsn(100)) && !book.is_known_behind(5, 99, Lsn(0)));
    }

    #[test]
    fn a_list_that_was_read_while_a_transaction_waited_says_nothing_of_what_it_did() {
        let at = |lsn, snapshot: &str| {
            let mut names = names(lsn, &[(10, 10, "doomed")]);
            names.databases[0].snapshot = Snapshot::parse(snapshot);
            names
        };
        // Transaction 7 has its commit record at 150, and others see what it did from somewhere behind 300 on.
        let book = NameBook::new(vec![at(100, "6:6:"), at(200, "7:9:7"), at(300, "7:12:7"), at(400, "13:13:")]);
        assert_eq!(book.shown_behind(5, 7, Lsn(150)), Lsn(300));
        assert_eq!(book.shown_behind(5, 8, Lsn(150)), Lsn(150));
        assert_eq!(book.shown_behind(6, 7, Lsn(150)), Lsn(150), "nothing is known of another database");
        assert_eq!(book.shown_behind(5, 20, Lsn(450)), Lsn(450), "it came behind all lists");
    }

    #[test]
    fn of_too_many_lists_the_first_the_newest_and_some_between_are_read() {
        assert_eq!(spread(0), [0; 0]);
        assert_eq!(spread(3), [0, 1, 2]);
        let many = spread(1000);
        assert_eq!((many.len(), many[0], many[LISTS_MAX - 1]), (LISTS_MAX, 0, 999));
        assert!(many.windows(2).all(|pair| (1..=1000 / (LISTS_MAX / 2)).contains(&(pair[1] - pair[0]))), "{many:?}");
        assert!(many[LISTS_MAX / 2..].windows(2).all(|pair| pair[1] - pair[0] == 1), "the newest are all there");
    }
}
