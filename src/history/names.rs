//! What numbers in WAL were called, from the names that lie beside base backups.

use super::search::Bound;
use crate::repository::{BackupDocument, Catalog, Names, WalReader};
use crate::wal::{Lsn, RelationId};
use std::collections::HashMap;

/// Maps that are used at a time: each may have many names.
const MAPS_MAX: usize = 8;

/// A relation's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    /// Schema and name, with a dot between them.
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: char,
}

/// The names at one moment.
#[derive(Debug)]
struct Map {
    lsn: Lsn,
    databases: HashMap<u32, String>,
    by_file: HashMap<(u32, u32), u32>,
    by_oid: HashMap<(u32, u32), Relation>,
}

/// Reads the names for what happened from `from` on. They only make it readable: those that cannot be read are reported and
/// left out.
pub async fn read_name_book(reader: &WalReader, catalog: &Catalog, from: Bound) -> NameBook {
    let mut backups: Vec<&BackupDocument> = catalog.finished_backups().collect();
    backups.sort_by_key(|backup| backup.end_lsn);
    let is_before = |backup: &&BackupDocument| match from {
        Bound::Time(time) => backup.ended_at <= time,
        Bound::Lsn(lsn) => backup.end_lsn <= lsn,
    };
    let first = backups.partition_point(is_before).saturating_sub(1);
    let mut names = Vec::new();
    for backup in backups.into_iter().skip(first).rev() {
        match reader.repository().read_names(backup).await {
            Ok(found) => names.extend(found),
            Err(error) => {
                tracing::warn!(backup = %backup.id, %error, "the names stored with this backup cannot be read")
            }
        }
        if names.len() == MAPS_MAX {
            break;
        }
    }
    NameBook::new(names)
}

/// The names at several moments.
#[derive(Debug, Default)]
pub struct NameBook {
    /// By position.
    maps: Vec<Map>,
}

impl NameBook {
    /// Puts them in order.
    pub fn new(names: Vec<Names>) -> NameBook {
        let mut maps: Vec<Map> = names.into_iter().map(Map::of).collect();
        maps.sort_by_key(|map| map.lsn);
        NameBook { maps }
    }

    /// The maps to look into for a number at `lsn`: the last one before it, earlier ones, then those behind.
    fn at(&self, lsn: Lsn) -> impl Iterator<Item = &Map> {
        let (before, behind) = self.maps.split_at(self.maps.partition_point(|map| map.lsn <= lsn));
        before.iter().rev().chain(behind)
    }

    /// The name of a database.
    pub fn database(&self, oid: u32, lsn: Lsn) -> Option<&str> {
        self.at(lsn).find_map(|map| map.databases.get(&oid)).map(String::as_str)
    }

    /// The numbers of the databases that had this name.
    pub fn databases_called(&self, name: &str) -> Vec<u32> {
        let all = self.maps.iter().flat_map(|map| &map.databases);
        let mut oids: Vec<u32> = all.filter(|(_, it)| *it == name).map(|(oid, _)| *oid).collect();
        oids.sort_unstable();
        oids.dedup();
        oids
    }

    /// The relation that had this file.
    pub fn relation(&self, file: RelationId, lsn: Lsn) -> Option<&Relation> {
        let key = (file.database, file.file);
        self.at(lsn).find_map(|map| map.by_oid.get(&(file.database, *map.by_file.get(&key)?)))
    }

    /// True if a map behind `lsn` still knows the relation that had this file.
    pub fn is_file_known_behind(&self, file: RelationId, lsn: Lsn) -> bool {
        let oid = self.at(lsn).find_map(|map| map.by_file.get(&(file.database, file.file)));
        oid.is_some_and(|oid| self.is_known_behind(file.database, *oid, lsn))
    }

    /// True if a map behind `lsn` knows the relation with this number.
    pub fn is_known_behind(&self, database: u32, oid: u32, lsn: Lsn) -> bool {
        self.maps.iter().any(|map| map.lsn > lsn && map.by_oid.contains_key(&(database, oid)))
    }

    /// The relation with this number, whatever its file is.
    pub fn relation_by_oid(&self, database: u32, oid: u32, lsn: Lsn) -> Option<&Relation> {
        self.at(lsn).find_map(|map| map.by_oid.get(&(database, oid)))
    }
}

impl Map {
    fn of(names: Names) -> Map {
        let mut map =
            Map { lsn: names.lsn, databases: HashMap::new(), by_file: HashMap::new(), by_oid: HashMap::new() };
        for database in names.databases {
            for relation in database.relations {
                let name = format!("{}.{}", relation.3, relation.4);
                map.by_oid.insert((database.oid, relation.0), Relation { name, kind: relation.2 });
                if relation.1 != 0 {
                    map.by_file.insert((database.oid, relation.1), relation.0);
                }
            }
            map.databases.insert(database.oid, database.name);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{DatabaseNames, FORMAT_VERSION, RelationName};

    fn names(lsn: u64, relations: &[(u32, u32, &str)]) -> Names {
        let relation = |it: &(u32, u32, &str)| RelationName(it.0, it.1, 'r', "public".into(), it.2.into());
        let relations = relations.iter().map(relation).collect();
        let databases = vec![DatabaseNames { oid: 5, name: "shop".into(), relations }];
        Names { format: FORMAT_VERSION, taken_at: jiff::Timestamp::UNIX_EPOCH, lsn: Lsn(lsn), databases }
    }

    #[test]
    fn the_name_before_counts_and_failing_that_the_one_behind() {
        let later = names(200, &[(10, 11, "new_name"), (20, 20, "younger")]);
        let book = NameBook::new(vec![later, names(100, &[(10, 10, "old_name"), (30, 30, "gone")])]);
        let called = |file, lsn| {
            let file = RelationId { tablespace: 1663, database: 5, file };
            book.relation(file, Lsn(lsn)).map(|it| it.name.as_str())
        };
        assert_eq!((called(10, 150), called(30, 150)), (Some("public.old_name"), Some("public.gone")));
        // Rewritten since, or made since: only the later map knows the file.
        assert_eq!((called(11, 150), called(20, 150)), (Some("public.new_name"), Some("public.younger")));
        assert_eq!((called(30, 250), called(99, 250)), (Some("public.gone"), None));
        let by_oid = |oid, lsn| book.relation_by_oid(5, oid, Lsn(lsn)).map(|it| it.name.as_str());
        assert_eq!((by_oid(10, 150), by_oid(10, 250)), (Some("public.old_name"), Some("public.new_name")));
        assert_eq!((book.database(5, Lsn(0)), book.databases_called("shop")), (Some("shop"), vec![5]));
    }
}
