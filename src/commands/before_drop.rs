//! `seawall restore --before-drop`: from the name of a relation to the moment before it was dropped.

use super::{history, print};
use crate::error::{Error, Kind, Result};
use crate::history::{Bound, Drops, Entry, Event, Transaction, find_drops, read_name_book};
use crate::repository::{Catalog, WalReader};
use crate::restore::{Request, Target};
use crate::wal::Lsn;
use std::sync::Arc;

/// Aims a restore at the moment before the newest drop of `relation`, up to the time that was its target.
///
/// # Errors
/// [`Kind::Refused`] if no drop of it is known, with those of relations without a name.
pub(super) async fn aim(
    request: &mut Request,
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
    let names = Arc::new(read_name_book(reader, catalog, &path, Bound::Lsn(Lsn(0))).await);
    let drops = find_drops(reader, catalog, &path, names, relation, to).await?;
    drops.holes.iter().for_each(history::warn);
    let Some((entry, transaction)) = drops.newest.as_ref().and_then(committed) else {
        return Err(unknown(relation, &drops));
    };
    let before = transaction.before(entry.start);
    let newest = if drops.count > 1 { format!(", the newest of {} drops", drops.count) } else { String::new() };
    let said = format!("to just before transaction {} dropped {relation} at {}{newest}", transaction.xid, entry.time);
    if !as_json {
        print::stdout(&format!("{said}\n"))?;
    }
    if !drops.is_certain {
        tracing::warn!(
            "its file has no name, since it was rewritten after the last base backup: this goes by what the transaction changed. If a \
             relation that referred to {relation} was dropped then, it is that one"
        );
    }
    let later = drops.unnamed.iter().filter(|other| other.start > entry.start).count();
    if later > 0 {
        tracing::warn!(
            "{later} later drops are of relations whose names are not known: `seawall history --drops` shows them"
        );
    }
    (request.target, request.exclusive) = (Target::Lsn(before), true);
    Ok(())
}

fn committed(entry: &Entry) -> Option<(&Entry, &Transaction)> {
    match &entry.event {
        Event::Commit(transaction) => Some((entry, transaction)),
        _ => None,
    }
}

fn unknown(relation: &str, drops: &Drops) -> Error {
    let error = Error::new(Kind::Refused, format!("no drop of {relation} is known"));
    let line = |(entry, it): (&Entry, &Transaction)| {
        let (relations, size, before) = (it.removed_count, print::size(it.bytes), it.before(entry.start));
        format!("{}: {relations} relations, {size} of WAL: --to-lsn {before} --to-exclusive", entry.time)
    };
    let lines: Vec<String> = drops.unnamed.iter().filter_map(committed).map(line).collect();
    match lines.is_empty() {
        true => error.hint("Is it spelled as in the catalogue? `seawall history --drops` shows what was dropped."),
        false => error.hint(format!(
            "Names are read when a base backup is complete, and these were dropped without one, the newest last. Is it one of \
             them?\n  {}",
            lines.join("\n  ")
        )),
    }
}
