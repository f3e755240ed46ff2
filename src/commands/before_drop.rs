//! `--before-drop` of `restore` and `extract`: from the name of a relation to the moment before it was dropped.

use super::history::{self, quoted};
use super::print;
use crate::error::{Error, Kind, Result};
use crate::history::{Bound, Drops, Entry, Event, Transaction, find_drops};
use crate::repository::{Catalog, WalReader};
use crate::restore::{Request, Target};
use crate::wal::Lsn;

/// Drops without a name that are listed, the latest.
const SHOWN: usize = 20;
/// Why a drop has none.
const NAMELESS: &str = "Names are read with each base backup, and every ten minutes while `seawall run` streams: what was made and dropped \
                        in between has none.";

/// Aims a restore at the moment before the newest drop of `relation`, up to the time that was its target. The name of its
/// database may stand in front.
///
/// # Errors
/// [`Kind::Refused`] if no drop of it is known, if it was dropped in several databases, or if what was dropped later has no name
/// and may have been it: with the targets that there are to choose from.
pub(super) async fn aim(
    request: &mut Request,
    relation: &str,
    reader: &WalReader,
    catalog: &Catalog,
    as_json: bool,
) -> Result<()> {
    Box::pin(aim_in(request, None, relation, reader, catalog, as_json)).await
}

/// [`aim`], with the database, by name or OID, that the relation was in.
///
/// # Errors
/// As there, and if the drop was in a database that was called otherwise then.
pub(super) async fn aim_in(
    request: &mut Request,
    database: Option<&str>,
    relation: &str,
    reader: &WalReader,
    catalog: &Catalog,
    as_json: bool,
) -> Result<()> {
    if !relation.contains('.') {
        return Err(Error::new(Kind::Usage, format!("{relation:?} has no schema"))
            .hint("Write it as schema.name, such as public.accounts, in the letters that the catalogue has."));
    }
    let path = history::path(catalog, request.timeline)?;
    let to = match request.target {
        Target::Time(time) => Bound::Time(time),
        _ => Bound::Lsn(Lsn(u64::MAX)),
    };
    let drops = Box::pin(find_drops(reader, catalog, &path, relation, database, to)).await?;
    drops.holes.iter().for_each(history::warn);
    let [found] = drops.found.as_slice() else {
        return Err(if drops.found.is_empty() { unknown(&drops) } else { ambiguous(&drops, database.is_some()) });
    };
    let (relation, place) = (&drops.relation, called(&drops, found.database, found.start));
    if let Some(said) = database.filter(|said| *said != place && *said != found.database.to_string()) {
        let message = format!("{relation} was dropped in database {place}, which is not called {said:?} there");
        return Err(Error::new(Kind::Refused, message)
            .hint(format!("If that is the one, name it by its OID: --database {}.", found.database)));
    }
    if drops.has_unnamed_behind(found.start) {
        return Err(unclear(&drops));
    }
    let newest = if found.count > 1 { format!(", the newest of {} drops", found.count) } else { String::new() };
    let (xid, time) = (found.xid, found.time);
    let said = format!("to just before transaction {xid} dropped {relation} in database {place} at {time}{newest}");
    if as_json {
        tracing::info!("{said}");
    } else {
        print::stdout(&format!("{said}\n"))?;
    }
    if !found.is_certain {
        tracing::warn!(
            "it has no file, or one without a name, since it was rewritten after names were read: this goes by what the transaction \
             changed. If a relation that referred to {relation} was dropped then, it is that one"
        );
    }
    (request.target, request.exclusive) = (Target::Lsn(found.before), true);
    Ok(())
}

fn committed(entry: &Entry) -> Option<(&Entry, &Transaction)> {
    match &entry.event {
        Event::Commit(transaction) => Some((entry, transaction)),
        _ => None,
    }
}

/// A database's name at a position, or its number.
fn called(drops: &Drops, database: u32, lsn: Lsn) -> String {
    drops.names.database(database, lsn).map_or_else(|| database.to_string(), str::to_owned)
}

/// A line for each drop without a name behind a position, with its target.
fn unnamed(drops: &Drops, behind: Lsn) -> Vec<String> {
    let line = |(entry, it): (&Entry, &Transaction)| {
        let (count, size, before) = (it.removed_count, print::size(it.bytes), it.before(entry.start));
        let place = it.database.map(|oid| format!(" in database {}", called(drops, oid, entry.start)));
        let (ending, place) = (if count == 1 { "" } else { "s" }, place.unwrap_or_default());
        format!("{}: {count} relation{ending}{place}, {size} of WAL: --to-lsn {before} --to-exclusive", entry.time)
    };
    let later = drops.unnamed.iter().filter(|entry| entry.start > behind);
    let mut lines: Vec<String> = later.filter_map(committed).map(line).collect();
    let left_out = lines.len().saturating_sub(SHOWN);
    if left_out > 0 {
        lines.drain(..left_out);
        lines.insert(0, "and earlier ones: `seawall history --drops`".to_owned());
    }
    lines
}

/// A line for each database that was dropped, with its target.
fn dropped_databases(drops: &Drops) -> Vec<String> {
    let line = |(entry, it): (&Entry, &Transaction)| {
        let names: Vec<String> = it.dropped_databases.iter().map(|oid| called(drops, *oid, entry.start)).collect();
        let before = it.before(entry.start);
        format!("{}: database {}: --to-lsn {before} --to-exclusive", entry.time, names.join(", "))
    };
    let mut lines: Vec<String> = drops.dropped_databases.iter().filter_map(committed).map(line).collect();
    lines.drain(..lines.len().saturating_sub(SHOWN));
    lines
}

/// It was not dropped, as far as names tell.
fn unknown(drops: &Drops) -> Error {
    let mut hints = Vec::new();
    let (unnamed, databases) = (unnamed(drops, Lsn(0)), dropped_databases(drops));
    if !unnamed.is_empty() {
        let lines = unnamed.join("\n  ");
        hints.push(format!("{NAMELESS} Is it one of these, the newest last?\n  {lines}"));
    }
    if !databases.is_empty() {
        hints.push(format!("Did it go with its database?\n  {}", databases.join("\n  ")));
    }
    if hints.is_empty() {
        hints.push("Is it spelled as in the catalogue? `seawall history --drops` shows what was dropped.".to_owned());
    }
    hints.push(
        "What has no file, such as a view, a foreign table or a partitioned table without partitions, is not found by name: `seawall \
         history` shows when something was committed."
            .to_owned(),
    );
    Error::new(Kind::Refused, format!("no drop of {} is known", drops.relation)).hint(hints.join("\n"))
}

/// It was dropped in several databases.
fn ambiguous(drops: &Drops, has_database: bool) -> Error {
    let (relation, count) = (&drops.relation, drops.found.len());
    let places: Vec<String> = drops.found.iter().map(|found| called(drops, found.database, found.start)).collect();
    let lines = drops.found.iter().zip(&places).map(|(found, place)| {
        let is_alone = places.iter().filter(|other| *other == place).count() == 1;
        let number = found.database.to_string();
        let argument = if is_alone && !has_database { place } else { &number };
        let command = match has_database {
            true => format!("--database {argument} --before-drop {}", quoted(relation)),
            false => format!("--before-drop {}", quoted(&format!("{argument}.{relation}"))),
        };
        format!("{} in database {place}: {command}", found.time)
    });
    let lines: Vec<String> = lines.collect();
    Error::new(Kind::Refused, format!("{relation} was dropped in {count} databases"))
        .hint(format!("Say which one is meant:\n  {}", lines.join("\n  ")))
}

/// What was dropped behind the drop that is found may have been it, made anew.
fn unclear(drops: &Drops) -> Error {
    let relation = &drops.relation;
    let mut lines = Vec::new();
    for found in &drops.found {
        let place = called(drops, found.database, found.start);
        lines.push(format!("{}: {relation} in database {place}: --to-lsn {} --to-exclusive", found.time, found.before));
        lines.extend(unnamed(drops, found.start));
        let is_elsewhere = |(entry, it): (&Entry, &Transaction)| {
            entry.start > found.start && it.database.is_some_and(|oid| oid != found.database)
        };
        if drops.is_everywhere && drops.unnamed.iter().filter_map(committed).any(is_elsewhere) {
            let command = format!("--before-drop {}", quoted(&format!("{place}.{relation}")));
            lines.push(format!("or the newest of database {place} alone: {command}"));
        }
    }
    let message = format!(
        "{relation} was dropped, and something without a name later: it may have been made anew and dropped again"
    );
    let lines = lines.join("\n  ");
    Error::new(Kind::Refused, message)
        .hint(format!("{NAMELESS} Choose in place of --before-drop, the newest last:\n  {lines}"))
}
