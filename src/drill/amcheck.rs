//! PostgreSQL's own checks of what indexes and tables say (the extension `amcheck`), in every database.

use super::{Answer, Verdict};
use crate::error::Result;
use crate::scratch::{Server, Session};

/// Where the extension goes in a database that does not have it; the server is thrown away.
const SCHEMA: &str = "seawall_drill";

/// What is wrong with one relation is told so often at most,
const TOLD_MAX: usize = 3;
/// and what is wrong with all of them: a broken disk may have broken every one.
const TOLD_OF_ALL_MAX: usize = 100;

/// Checks every index (B-tree) and table of every database that lets anybody in.
pub(super) async fn run(server: &Server) -> Verdict {
    let mut sum = Sum::default();
    // An interrupted DROP DATABASE leaves one that lets nobody in, and is only there to be dropped (`DATCONNLIMIT_INVALID_DB`
    // in `pg_database.h`).
    let databases = "SELECT datname, datconnlimit = -2 FROM pg_database WHERE datallowconn ORDER BY datname";
    let databases = server.sql(databases).await.map_err(|error| vec![error.to_string()])?;
    for row in databases {
        let [Some(database), is_invalid] = row.as_slice() else { continue };
        if is_invalid.as_deref() == Some("t") {
            sum.invalid.push(database.clone());
            continue;
        }
        match in_database(server, database, &mut sum).await {
            Ok(true) => sum.databases += 1,
            Ok(false) => {
                sum.is_missing = true;
                break;
            }
            Err(error) => sum.tell(format!("database {database}: {error}")),
        }
    }
    sum.verdict(server.programs().version)
}

const NO_TABLES: &str = "no tables (since PostgreSQL 14)";

#[derive(Default)]
struct Sum {
    databases: usize,
    indexes: usize,
    tables: usize,
    /// Databases that cannot be looked at, and need not be.
    invalid: Vec<String>,
    /// This machine does not have the extension.
    is_missing: bool,
    wrong: Vec<String>,
}

impl Sum {
    fn tell(&mut self, wrong: String) {
        if self.wrong.len() < TOLD_OF_ALL_MAX {
            self.wrong.push(wrong);
        }
    }

    /// On a server of this major version.
    fn verdict(self, version: u32) -> Verdict {
        if !self.wrong.is_empty() {
            return Err(self.wrong);
        }
        if self.is_missing {
            return Ok(Answer::Skipped("the extension amcheck is not installed on this machine".to_owned()));
        }
        let tables = if version >= 14 { format!("{} tables", self.tables) } else { NO_TABLES.to_owned() };
        let mut said = format!("{} indexes and {tables} in {} databases", self.indexes, self.databases);
        if !self.invalid.is_empty() {
            said += &format!("; not in {}, which an interrupted DROP DATABASE left", self.invalid.join(", "));
        }
        Ok(Answer::Passed(said))
    }
}

/// False if this machine does not have the extension.
async fn in_database(server: &Server, database: &str, sum: &mut Sum) -> Result<bool> {
    let session = server.connect(database).await?;
    session.lift_limits().await?;
    // Triggers on events may do anything.
    session.sql("SET session_replication_role = replica; SET search_path = pg_catalog").await?;
    let Some(schema) = install(&session).await? else { return Ok(false) };
    for (oid, name) in relations(&session, INDEXES).await? {
        sum.indexes += 1;
        let check = format!("SELECT {schema}.bt_index_check({oid}::oid::regclass, true)");
        if let Err(error) = session.sql(&check).await {
            sum.tell(format!("database {database}, index {name}: {}", reason(&error)));
        }
    }
    if server.programs().version < 14 {
        return Ok(true);
    }
    for (oid, name) in relations(&session, TABLES).await? {
        sum.tables += 1;
        let check = format!(
            "SELECT 'block ' || coalesce(blkno::text, '?') || ': ' || msg \
             FROM {schema}.verify_heapam({oid}::oid::regclass) LIMIT {TOLD_MAX}"
        );
        match session.sql(&check).await {
            Ok(rows) => {
                let told = rows.into_iter().filter_map(|row| row.into_iter().next().flatten());
                told.for_each(|told| sum.tell(format!("database {database}, table {name}: {told}")));
            }
            Err(error) => sum.tell(format!("database {database}, table {name}: {}", reason(&error))),
        }
    }
    Ok(true)
}

/// Without the statement, which says nothing here.
fn reason(error: &crate::error::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), reason_of)
}

fn reason_of(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), reason_of)
}

/// The extension's schema, quoted, once the extension is there in its newest version; `None` if there is none here.
async fn install(session: &Session) -> Result<Option<String>> {
    let one = async |question: &str| {
        let rows = session.sql(question).await?;
        Ok::<_, crate::error::Error>(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    };
    if one("SELECT name FROM pg_available_extensions WHERE name = 'amcheck'").await?.is_none() {
        return Ok(None);
    }
    let schema = "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace \
                  WHERE extname = 'amcheck'";
    if let Some(schema) = one(schema).await? {
        session.sql("ALTER EXTENSION amcheck UPDATE").await?;
        return Ok(Some(schema));
    }
    session.sql(&format!("CREATE SCHEMA {SCHEMA}; CREATE EXTENSION amcheck SCHEMA {SCHEMA}")).await?;
    Ok(Some(SCHEMA.to_owned()))
}

/// What `amcheck` can look at: of what was there when the source crashed, nothing that is not logged.
const INDEXES: &str = "JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam \
                       WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' \
                       AND i.indisready AND i.indisvalid";
const TABLES: &str = "JOIN pg_am a ON a.oid = c.relam \
                      WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'";

async fn relations(session: &Session, which: &str) -> Result<Vec<(String, String)>> {
    let question = format!(
        "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace {which} ORDER BY c.oid"
    );
    let rows = session.sql(&question).await?;
    let pair = |row: Vec<Option<String>>| {
        let mut values = row.into_iter().flatten();
        Some((values.next()?, values.next()?))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_before_the_extension_was_missed_is_told() {
        let missing = || Sum { is_missing: true, ..Sum::default() };
        assert!(matches!(missing().verdict(15), Ok(Answer::Skipped(_))), "{:?}", missing().verdict(15));
        let mut sum = missing();
        sum.tell("database shop: cannot connect".to_owned());
        assert_eq!(sum.verdict(15), Err(vec!["database shop: cannot connect".to_owned()]));
    }
}
