//! Which databases a backup holds, and which files belong to one: read from the files, since no server runs. Pure.
//!
//! A base backup is a copy of files that change. Its `pg_database` may lack what was committed while it was taken, and
//! hold rows that are dead: so all row versions are read, and what is not clear is refused.

use crate::error::{Error, Kind, Result};
use crate::repository::FilePathRef;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Where the numbers of the files of shared catalogues are.
pub(super) const SHARED_MAP: &str = "global/pg_filenode.map";
/// `RELMAPPER_FILEMAGIC` (`relmapper.c`).
const MAP_MAGIC: u32 = 0x0059_2717;
/// `DatabaseRelationId` (`pg_database.h`).
pub(super) const PG_DATABASE: u32 = 1262;
/// `AuthIdRelationId` (`pg_authid.h`).
pub(super) const PG_AUTHID: u32 = 1260;
/// `FirstNormalObjectId` (`transam.h`): databases below came with the cluster.
const FIRST_NORMAL: u32 = 16_384;
/// `BLCKSZ`, as every packaged server is built.
const PAGE_BYTES: usize = 8192;

/// Recovery needs it where databases are left empty. The first change of a page after a checkpoint carries the page, but
/// for one: that it is visible to all is logged without it (`log_heap_visible`, without checksums or `wal_log_hints`), and
/// replayed on a page of zeros it would end recovery (`XLogCheckInvalidPages`).
pub(super) const IGNORE_INVALID_PAGES: &str = "ignore_invalid_pages";

/// A version of a row in `pg_database`, or in `pg_authid`, which begins as that does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) oid: u32,
    pub(super) name: String,
    /// Nobody has deleted or replaced it, as far as the page knows.
    is_live: bool,
}

/// A database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Database {
    /// Its OID: the name of its directories.
    pub oid: u32,
    /// Its name, if the backup tells.
    pub name: Option<String>,
}

/// The file of a shared catalogue, by `pg_filenode.map` (`RelMapFile` in `relmapper.c`); `None` if that is not one.
pub(super) fn catalogue_file(map: &[u8], catalogue: u32) -> Option<String> {
    let number = |at: usize| Some(u32::from_ne_bytes(map.get(at..at + 4)?.try_into().ok()?));
    let count = number(4).filter(|count| number(0) == Some(MAP_MAGIC) && *count <= 64)?;
    let entries = (0..count as usize).map(|index| 8 + 8 * index);
    let found = entries.filter(|at| number(*at) == Some(catalogue)).find_map(|at| number(at + 4))?;
    Some(format!("global/{found}"))
}

/// Every row version in the pages of such a catalogue (`bufpage.h`, `htup_details.h`). A page that makes no sense has none.
pub(super) fn rows(heap: &[u8]) -> Vec<Row> {
    heap.chunks_exact(PAGE_BYTES).flat_map(|page| rows_of(page).unwrap_or_default()).collect()
}

fn rows_of(page: &[u8]) -> Option<Vec<Row>> {
    let short = |at: usize| Some(u16::from_ne_bytes(page.get(at..at + 2)?.try_into().ok()?));
    let lower = usize::from(short(12)?);
    let items = page.get(24..lower)?.chunks_exact(4);
    let items = items.filter_map(|item| Some(u32::from_ne_bytes(item.try_into().ok()?)));
    // `ItemIdData`: 15 bits of offset, 2 of flags (1: normal), 15 of length.
    let normal = items.filter(|item| item >> 15 & 3 == 1);
    let tuples = normal.filter_map(|item| {
        let (offset, length) = ((item & 0x7FFF) as usize, (item >> 17) as usize);
        page.get(offset..offset + length)
    });
    Some(tuples.filter_map(row).collect())
}

/// `HEAP_XMAX_LOCK_ONLY` and `HEAP_XMAX_INVALID`: it was not deleted by whom its `xmax` names.
const NOT_DELETED: u16 = 0x0080 | 0x0800;

/// The tuple's header has 23 bytes; the row begins with its OID and the name's 64 bytes.
fn row(tuple: &[u8]) -> Option<Row> {
    let xmax = u32::from_ne_bytes(tuple.get(4..8)?.try_into().ok()?);
    let mask = u16::from_ne_bytes(tuple.get(20..22)?.try_into().ok()?);
    let data = tuple.get(usize::from(*tuple.get(22)?)..)?;
    let oid = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
    let name = data.get(4..68)?.split(|&byte| byte == 0).next()?;
    let name = String::from_utf8(name.to_vec()).ok()?;
    (oid != 0 && !name.is_empty()).then_some(Row { oid, name, is_live: xmax == 0 || mask & NOT_DELETED != 0 })
}

/// The database that a file belongs to: `base/<oid>/…` or `pg_tblspc/<oid>/<version>/<oid>/…`.
fn database_of(path: FilePathRef<'_>) -> Option<u32> {
    let mut steps = path.as_bytes().split(|&byte| byte == b'/');
    let oid = match steps.next()? {
        b"base" => steps.next()?,
        b"pg_tblspc" => steps.nth(2)?,
        _ => return None,
    };
    // A file, and not the directory's own name.
    steps.next()?;
    std::str::from_utf8(oid).ok()?.parse().ok()
}

/// What is real in a database that is left empty. Not `pg_filenode.map`: with it, whoever connects comes as far as the system
/// indexes, which is a PANIC of the whole server (`load_critical_index` in `relcache.c`); with zeros, it is that session's
/// end (`load_relmap_file` in `relmapper.c`). Replay and `DROP DATABASE` do not read it.
const REAL: [&[u8]; 1] = [b"PG_VERSION"];

/// The databases of a backup, sorted into those that are wanted and those that are left empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    pub(super) wanted: Vec<Database>,
    pub(super) emptied: Vec<Database>,
    emptied_oids: BTreeSet<u32>,
}

impl Choice {
    /// Finds the databases that are called `wanted`, by name or OID, among those with files in `paths`. Those that came
    /// with the cluster are always real: replay may copy from them.
    ///
    /// # Errors
    /// [`Kind::Refused`] if a name is unknown or not clear, with those that there are.
    pub(super) fn new<'a>(
        wanted: &[String],
        rows: &[Row],
        paths: impl Iterator<Item = FilePathRef<'a>>,
    ) -> Result<Choice> {
        let there: BTreeSet<u32> = paths.filter_map(database_of).collect();
        let mut chosen = BTreeMap::new();
        for name in wanted {
            let oid = find(name, rows, &there)?;
            chosen.insert(oid, Some(name_of(oid, rows).unwrap_or_else(|| name.clone())));
        }
        let emptied_oids: BTreeSet<u32> =
            there.into_iter().filter(|oid| *oid >= FIRST_NORMAL && !chosen.contains_key(oid)).collect();
        let emptied = emptied_oids.iter().map(|oid| Database { oid: *oid, name: name_of(*oid, rows) });
        Ok(Choice {
            wanted: chosen.into_iter().map(|(oid, name)| Database { oid, name }).collect(),
            emptied: emptied.collect(),
            emptied_oids,
        })
    }

    /// True for a file that is left out, with zeros in its place.
    pub(super) fn is_emptied<'a>(&self, path: impl Into<FilePathRef<'a>>) -> bool {
        let path = path.into();
        let name = path.as_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        !REAL.contains(&name) && database_of(path).is_some_and(|oid| self.emptied_oids.contains(&oid))
    }

    /// What to run afterwards.
    pub(super) fn statements(&self) -> Vec<String> {
        let drop = |database: &Database| match &database.name {
            Some(name) => format!("DROP DATABASE \"{}\" WITH (FORCE);", name.replace('"', "\"\"")),
            None => format!(
                "SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database WHERE oid = {} \\gexec",
                database.oid
            ),
        };
        let reset = format!("ALTER SYSTEM RESET {IGNORE_INVALID_PAGES};");
        self.emptied.iter().map(drop).chain([reset]).collect()
    }
}

/// The name of a database or role: that of the live row, or the only one that there is.
pub(super) fn name_of(oid: u32, rows: &[Row]) -> Option<String> {
    let names = |live: bool| -> BTreeSet<&String> {
        rows.iter().filter(|row| row.oid == oid && (row.is_live || !live)).map(|row| &row.name).collect()
    };
    let only = |names: BTreeSet<&String>| (names.len() == 1).then(|| names.into_iter().next().cloned()).flatten();
    only(names(true)).or_else(|| only(names(false)))
}

fn find(name: &str, rows: &[Row], there: &BTreeSet<u32>) -> Result<u32> {
    let oids = |live: bool| -> BTreeSet<u32> {
        let named = rows.iter().filter(|row| row.name == name && (row.is_live || !live) && there.contains(&row.oid));
        named.map(|row| row.oid).collect()
    };
    let (live, all) = (oids(true), oids(false));
    let number = name.parse().ok().filter(|oid| there.contains(oid));
    match (live.len(), all.len()) {
        (1, _) => Ok(live.into_iter().next().unwrap_or_default()),
        (0, 1) => Ok(all.into_iter().next().unwrap_or_default()),
        (0, 0) if number.is_some() => Ok(number.unwrap_or_default()),
        (0, 0) => Err(refused(format!("the backup holds no database {name:?}"), rows, there)),
        _ => {
            let text =
                format!("which database of the backup is {name:?} is not clear: it was made or renamed meanwhile");
            Err(refused(text, rows, there))
        }
    }
}

fn refused(message: String, rows: &[Row], there: &BTreeSet<u32>) -> Error {
    let shown = |oid: &u32| format!("{oid} ({})", name_of(*oid, rows).unwrap_or_else(|| "name not clear".to_owned()));
    let known: Vec<String> = there.iter().map(shown).collect();
    Error::new(Kind::Refused, message)
        .hint(format!("--database takes an OID as well. The backup has {}.", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::FilePath;
    use proptest::prelude::*;

    fn tuple(oid: u32, name: &str, xmax: u32, mask: u16) -> Vec<u8> {
        let mut tuple = vec![0; 24];
        tuple[4..8].copy_from_slice(&xmax.to_ne_bytes());
        tuple[20..22].copy_from_slice(&mask.to_ne_bytes());
        tuple[22] = 24;
        tuple.extend(oid.to_ne_bytes());
        tuple.extend(name.as_bytes());
        tuple.resize(24 + 4 + 64 + 40, 0);
        tuple
    }

    fn page(tuples: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        let (mut lower, mut upper) = (24, PAGE_BYTES);
        for tuple in tuples {
            upper -= tuple.len();
            page[upper..upper + tuple.len()].copy_from_slice(tuple);
            let item = upper as u32 | 1 << 15 | (tuple.len() as u32) << 17;
            page[lower..lower + 4].copy_from_slice(&item.to_ne_bytes());
            lower += 4;
        }
        page[12..14].copy_from_slice(&(lower as u16).to_ne_bytes());
        page
    }

    fn paths() -> Vec<FilePath> {
        let names = [
            "PG_VERSION",
            "base/1/1259",
            "base/5/1259",
            "base/16400/1259",
            "base/16400/PG_VERSION",
            "base/16500/1259",
            "base/16500/pg_filenode.map",
            "base/16600/1259",
            "pg_tblspc/16390/PG_15_202209061/16500/17000",
            "pg_tblspc/16390/PG_15_202209061/16400/17001",
            "global/1262",
        ];
        names.map(|name| FilePath::parse(name.as_bytes()).unwrap()).to_vec()
    }

    fn choose(wanted: &[&str], heap: &[u8]) -> Result<Choice> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        Choice::new(&wanted, &rows(heap), paths().iter().map(FilePath::view))
    }

    #[test]
    fn a_database_is_found_by_its_live_row_and_the_others_are_emptied() {
        // Given rows of a database that was renamed, of one that was dropped and made anew, and of one nobody knows
        let heap = [
            page(&[tuple(1, "template1", 0, 0), tuple(5, "postgres", 0, 0x0800), tuple(16400, "old \"name\"", 9, 0)]),
            page(&[tuple(16400, "shop", 9, 0x0880), tuple(16450, "crm", 8, 0), tuple(16500, "crm", 0, 0)]),
        ]
        .concat();
        // When one is wanted, then the others' files are left out, but for one
        let choice = choose(&["shop"], &heap).unwrap();
        assert_eq!(choice.wanted, [Database { oid: 16400, name: Some("shop".into()) }]);
        let emptied: Vec<String> =
            paths().iter().filter(|path| choice.is_emptied(*path)).map(ToString::to_string).collect();
        let expected = [
            "base/16500/1259",
            "base/16500/pg_filenode.map",
            "base/16600/1259",
            "pg_tblspc/16390/PG_15_202209061/16500/17000",
        ];
        assert_eq!(emptied, expected);
        assert_eq!(
            choice.statements(),
            [
                "DROP DATABASE \"crm\" WITH (FORCE);",
                "SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database WHERE oid = 16600 \\gexec",
                "ALTER SYSTEM RESET ignore_invalid_pages;"
            ]
        );
        // By number, several, and those that are always there
        assert_eq!(choose(&["16600", "crm", "postgres"], &heap).unwrap().statements().len(), 2);
        let quoted = choose(&["crm"], &page(&[tuple(16400, "a\"b", 0, 0), tuple(16500, "crm", 0, 0)])).unwrap();
        assert_eq!(quoted.statements()[0], "DROP DATABASE \"a\"\"b\" WITH (FORCE);");
    }

    #[test]
    fn a_name_that_is_unknown_or_not_clear_is_refused_with_what_there_is() {
        let heap = page(&[tuple(16400, "shop", 9, 0), tuple(16500, "shop", 8, 0), tuple(16600, "crm", 0, 0)]);
        for (name, says) in [("shop", "not clear"), ("blog", "holds no database"), ("17", "holds no database")] {
            let error = choose(&[name], &heap).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint_text().unwrap().contains("16600 (crm)"), "{error:?}");
        }
    }

    #[test]
    fn the_map_leads_to_the_catalogue() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let map = words(&[MAP_MAGIC, 2, 1260, 77, PG_DATABASE, 78, 0, 0]);
        assert_eq!(catalogue_file(&map, PG_DATABASE).as_deref(), Some("global/78"));
        assert_eq!(catalogue_file(&map, PG_AUTHID).as_deref(), Some("global/77"));
        for broken in
            [words(&[7, 2, PG_DATABASE, 78]), words(&[MAP_MAGIC, 1, 1260, 77]), words(&[MAP_MAGIC, 99]), vec![]]
        {
            assert_eq!(catalogue_file(&broken, PG_DATABASE), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut heap in prop::collection::vec(any::<u8>(), PAGE_BYTES), lower in 0u16..9000) {
            heap[12..14].copy_from_slice(&lower.to_ne_bytes());
            let _ = (rows(&heap), catalogue_file(&heap, PG_DATABASE));
        }
    }
}
