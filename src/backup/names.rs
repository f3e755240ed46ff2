//! Asks a server what its databases and relations are called. Uses `postgres`.

use crate::error::{Error, Result};
use crate::postgres::{Client, ConnInfo, Mode};
use crate::repository::{DatabaseNames, FORMAT_VERSION, Names, RelationName, Snapshot};
use crate::runtime::Clock;

/// Those that the role may connect to, and the others for their names.
const DATABASES: &str = "SELECT oid, datname, datallowconn AND has_database_privilege(oid, 'CONNECT') AS open \
     FROM pg_catalog.pg_database ORDER BY oid";
const POSITION: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn";

/// Names, and why some are not among them.
pub struct NamesRead {
    /// What was read.
    pub names: Names,
    /// One for each database that could not be asked wholly.
    pub warnings: Vec<String>,
}

/// Reads the names of all databases, and of `most` relations in those that the role may connect to.
///
/// # Errors
/// If no database can be connected to, or the first question fails.
pub async fn read_names(info: &ConnInfo, clock: &Clock, most: usize) -> Result<NamesRead> {
    let mut client = Client::connect_for_sql(info, Mode::Sql).await?;
    let position = client.simple_query(POSITION).await?;
    let lsn = position.get(0, "lsn").and_then(|text| text.parse().ok()).unwrap_or_default();
    let rows = client.simple_query(DATABASES).await?;
    client.close().await;
    let (mut databases, mut warnings, mut left) = (Vec::new(), Vec::new(), most);
    for row in 0..rows.len() {
        let oid = rows.get(row, "oid").and_then(|oid| oid.parse().ok());
        let (Some(oid), Some(name)) = (oid, rows.get(row, "datname")) else { continue };
        let (mut snapshot, mut relations) = (None, Vec::new());
        if rows.get(row, "open") == Some("t") {
            match relations_of(&info.with_database(name), left).await {
                Ok((seen, mut found)) => {
                    if found.len() > left {
                        warnings.push(format!("database {name} has more relations than are kept: {most} in all"));
                        found.truncate(left);
                    }
                    (snapshot, relations) = (seen, found);
                }
                Err(error) => warnings.push(format!("the relations of database {name} cannot be read: {error}")),
            }
        }
        left -= relations.len();
        databases.push(DatabaseNames { oid, name: name.to_owned(), snapshot, relations });
    }
    let names = Names { format: FORMAT_VERSION, taken_at: clock.now(), lsn, databases };
    Ok(NamesRead { names, warnings })
}

/// At most one more than `most`, and of which moment they are.
async fn relations_of(info: &ConnInfo, most: usize) -> Result<(Option<Snapshot>, Vec<RelationName>)> {
    /// The first OID that is not the cluster's own (`FirstNormalObjectId` in `transam.h`).
    const FIRST_OID: u32 = 16_384;
    let mut client = Client::connect(info, Mode::Sql, &[]).await?;
    let question = format!(
        "SELECT c.oid, pg_catalog.pg_relation_filenode(c.oid) AS file, c.relkind, n.nspname, c.relname \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid >= {FIRST_OID} AND c.relkind IN ('r', 'i', 't', 'm', 'S', 'p') AND c.relpersistence <> 't' \
         ORDER BY c.oid LIMIT {}",
        most.saturating_add(1)
    );
    // Both of one moment.
    client.simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(Error::from)?;
    let seen = client.simple_query("SELECT pg_catalog.pg_current_snapshot() AS seen").await.map_err(Error::from)?;
    let rows = client.simple_query(&question).await.map_err(Error::from)?;
    client.close().await;
    let relation = |row: usize| {
        let text = |column: &str| rows.get(row, column);
        let file = text("file").and_then(|file| file.parse().ok()).unwrap_or(0);
        let (schema, name) = (text("nspname")?.to_owned(), text("relname")?.to_owned());
        Some(RelationName(text("oid")?.parse().ok()?, file, text("relkind")?.chars().next()?, schema, name))
    };
    Ok((seen.get(0, "seen").and_then(Snapshot::parse), (0..rows.len()).filter_map(relation).collect()))
}
