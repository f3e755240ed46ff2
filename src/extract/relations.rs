//! What a database holds at that moment, and which of it is meant. Names are compared as the catalogue has them.

use super::request::Wanted;
use crate::error::{Error, Kind, Result};
use crate::scratch::{Server, Session};
use std::cmp::Reverse;

/// Names of its own kind that an error offers.
const OFFERED: usize = 5;

/// What has rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
    /// `pg_class.relkind`
    kind: String,
    is_unlogged: bool,
    is_partition: bool,
}

impl Relation {
    /// As SQL has it, and `pg_dump --table`.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// As people have it.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Has rows of its own: what is taken when nothing is named. The rows of partitions come with the whole, those of views
    /// from others; those of foreign tables are on other servers, and of this day.
    fn is_taken_unnamed(&self) -> bool {
        !self.is_partition && ["r", "p", "m"].contains(&self.kind.as_str())
    }
}

/// A name in SQL, whatever is in it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in SQL, whatever is in it.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}

/// The database's own name, from its name or OID.
///
/// # Errors
/// [`Kind::Refused`] if there is none, with those that there are.
pub(super) async fn database(server: &Server, wanted: &str) -> Result<String> {
    let rows = server.sql("SELECT datname, oid FROM pg_database WHERE datallowconn ORDER BY datname").await?;
    let databases: Vec<(String, String)> = rows.into_iter().filter_map(pair).collect();
    let by_name = databases.iter().find(|(name, _)| name == wanted);
    let found = by_name.or_else(|| databases.iter().find(|(_, oid)| oid == wanted));
    found.map(|(name, _)| name.clone()).ok_or_else(|| {
        let names: Vec<&str> = databases.iter().map(|(name, _)| name.as_str()).collect();
        Error::new(Kind::Refused, format!("there was no database {wanted:?} at that moment"))
            .hint(format!("There were {}.", names.join(", ")))
    })
}

fn pair(row: Vec<Option<String>>) -> Option<(String, String)> {
    let mut values = row.into_iter().flatten();
    Some((values.next()?, values.next()?))
}

/// What is meant, in the order of names.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Tables that are written each on its own, or dumped alone.
    pub(super) relations: Vec<Relation>,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

/// Finds what is wanted.
///
/// # Errors
/// [`Kind::Refused`] if something of it is not there, with names that are like it.
pub(super) async fn choose(session: &Session, database: &str, wanted: &Wanted) -> Result<Chosen> {
    let there = list(session).await?;
    let relations: Vec<Relation> = match wanted {
        Wanted::Query(_) => Vec::new(),
        Wanted::Everything => there.into_iter().filter(Relation::is_taken_unnamed).collect(),
        Wanted::Schemas(names) => {
            let schemas = schemas(session).await?;
            let missing = names.iter().find(|name| !schemas.contains(name));
            if let Some(name) = missing {
                return Err(absent("schema", name, database, &schemas));
            }
            there.into_iter().filter(|it| names.contains(&it.schema) && it.is_taken_unnamed()).collect()
        }
        Wanted::Tables(names) => {
            let mut found = Vec::new();
            for name in names {
                let relation = find(name, database, &there)?;
                if !found.contains(relation) {
                    found.push(relation.clone());
                }
            }
            found
        }
    };
    let unlogged = relations.iter().filter(|relation| relation.is_unlogged);
    let warnings = unlogged
        .map(|it| format!("{} is unlogged: PostgreSQL has none of its rows after a recovery", it.shown()))
        .collect();
    Ok(Chosen { relations, warnings })
}

/// By `schema.name`, or by the name alone where only one schema has it.
fn find<'a>(name: &str, database: &str, there: &'a [Relation]) -> Result<&'a Relation> {
    if let Some(found) = there.iter().find(|relation| relation.shown() == name) {
        return Ok(found);
    }
    let called: Vec<&Relation> = there.iter().filter(|relation| relation.name == name).collect();
    match called.as_slice() {
        [only] => Ok(only),
        [] => Err(absent("table", name, database, &there.iter().map(Relation::shown).collect::<Vec<_>>())),
        several => {
            let names: Vec<String> = several.iter().map(|relation| relation.shown()).collect();
            Err(Error::new(Kind::Refused, format!("several schemas have a table {name:?}"))
                .hint(format!("Name one: {}.", names.join(", "))))
        }
    }
}

fn absent(what: &str, name: &str, database: &str, there: &[String]) -> Error {
    let error =
        Error::new(Kind::Refused, format!("there was no {what} {name:?} in database {database} at that moment"));
    if there.is_empty() {
        return error.hint("There was none at all.");
    }
    let mut near: Vec<&String> = there.iter().collect();
    near.sort_by_key(|other| Reverse((strsim::jaro_winkler(name, other) * 1e6) as u64));
    let near: Vec<&str> = near.into_iter().take(OFFERED).map(String::as_str).collect();
    error.hint(format!("Of {} that were there, the likest are {}.", there.len(), near.join(", ")))
}

async fn schemas(session: &Session) -> Result<Vec<String>> {
    let rows = session.sql("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1").await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// Tables, partitioned ones, views, materialised ones and foreign tables, but those of the system and of sessions.
async fn list(session: &Session) -> Result<Vec<Relation>> {
    let rows = session
        .sql(
            "SELECT n.nspname, c.relname, c.relkind, c.relpersistence = 'u', c.relispartition \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' \
             AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2",
        )
        .await?;
    let relations = rows.into_iter().filter_map(|row| {
        let mut values = row.into_iter().flatten();
        Some(Relation {
            schema: values.next()?,
            name: values.next()?,
            kind: values.next()?,
            is_unlogged: values.next()? == "t",
            is_partition: values.next()? == "t",
        })
    });
    Ok(relations.collect())
}

/// The tables, and what is a partition of one of them, however far down: `pg_dump` takes no more than what is named.
///
/// # Errors
/// What the server says.
pub(super) async fn with_partitions(session: &Session, tables: &[Relation]) -> Result<Vec<Relation>> {
    if !tables.iter().any(|table| table.kind == "p") {
        return Ok(tables.to_vec());
    }
    let oids: Vec<String> = tables.iter().map(|table| format!("{}::regclass::oid", literal(&table.quoted()))).collect();
    let below = format!(
        "WITH RECURSIVE tree AS (SELECT oid, relkind FROM pg_class WHERE oid IN ({}) UNION \
         SELECT c.oid, c.relkind FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE t.relkind = 'p') SELECT n.nspname, c.relname FROM tree JOIN pg_class c USING (oid) \
         JOIN pg_namespace n ON n.oid = c.relnamespace",
        oids.join(", ")
    );
    let names: Vec<(String, String)> = session.sql(&below).await?.into_iter().filter_map(pair).collect();
    let there = list(session).await?;
    Ok(there
        .into_iter()
        .filter(|it| names.iter().any(|(schema, name)| *schema == it.schema && *name == it.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(schema: &str, name: &str) -> Relation {
        let (schema, name) = (schema.to_owned(), name.to_owned());
        Relation { schema, name, kind: "r".into(), is_unlogged: false, is_partition: false }
    }

    #[test]
    fn a_table_is_found_by_its_name_as_the_catalogue_has_it() {
        let there = [relation("public", "orders"), relation("old", "orders"), relation("public", "A.b")];
        assert_eq!(find("old.orders", "shop", &there).unwrap(), &there[1]);
        assert_eq!(find("A.b", "shop", &there).unwrap(), &there[2]);
        let error = find("orders", "shop", &there).unwrap_err();
        assert!(error.hint_text().unwrap().contains("public.orders, old.orders"), "{error:?}");
        let error = find("public.order", "shop", &there).unwrap_err();
        assert!(error.to_string().contains("\"public.order\" in database shop"), "{error}");
        assert!(error.hint_text().unwrap().contains("likest are public.orders,"), "{error:?}");
    }

    #[test]
    fn no_name_leaves_its_quotes() {
        assert_eq!(relation("a\"b", "c").quoted(), "\"a\"\"b\".\"c\"");
        assert_eq!(literal("it's \\"), "E'it''s \\\\'");
    }
}
