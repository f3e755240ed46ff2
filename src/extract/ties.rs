//! What ties a schema on the scratch server to the rest of its database: cut before the schema is dumped, or the other
//! database would tie it to its own tables, with the rows that those have today.

use super::relations::{literal, quoted};
use crate::error::Result;
use crate::scratch::Session;

/// Where materialised views go that tables take the place of.
const ASIDE: &str = "seawall put this aside";

/// Cuts the schema off; gives what the operator should know.
///
/// # Errors
/// [`crate::error::Kind::Postgres`] with what the server says.
pub(super) async fn cut(session: &Session, schema: &str) -> Result<Vec<String>> {
    // As `pg_dump` does it, so that every name that is shown or run says its schema.
    session.sql("SET search_path = ''").await?;
    let mut warnings = foreign_keys(session, schema).await?;
    warnings.extend(parents(session, schema).await?);
    // Those that came from a parent are their own now.
    warnings.extend(foreign_keys(session, schema).await?);
    warnings.extend(materialised_views(session, schema).await?);
    warnings.extend(views(session, schema).await?);
    Ok(warnings)
}

/// The schema's OID in SQL.
fn oid(schema: &str) -> String {
    format!("{}::regnamespace", literal(&quoted(schema)))
}

/// Takes away the foreign keys that lead out of the schema: they would lock tables of the other database, and fail where
/// its rows are not those of that moment.
async fn foreign_keys(session: &Session, schema: &str) -> Result<Vec<String>> {
    let question = format!(
        "SELECT conrelid::regclass, conname, confrelid::regclass FROM pg_constraint \
         WHERE contype = 'f' AND conparentid = 0 \
         AND (SELECT relnamespace FROM pg_class WHERE oid = conrelid) = {0} \
         AND (SELECT relnamespace FROM pg_class WHERE oid = confrelid) <> {0}",
        oid(schema)
    );
    let mut warnings = Vec::new();
    for row in session.sql(&question).await? {
        let [Some(table), Some(name), Some(to)] = row.as_slice() else { continue };
        session.sql(&format!("ALTER TABLE {table} DROP CONSTRAINT {}", quoted(name))).await?;
        warnings.push(format!("the foreign key {name} of {table} was left out: it leads to {to}, which is not taken"));
    }
    Ok(warnings)
}

/// Takes tables from the parents that stay behind: `pg_dump` would attach them to a parent of that name, whose rows theirs
/// would be.
async fn parents(session: &Session, schema: &str) -> Result<Vec<String>> {
    let pairs = format!(
        "SELECT i.inhparent AS parent, i.inhrelid AS child, c.relispartition FROM pg_inherits i \
         JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent \
         WHERE c.relkind IN ('r', 'p', 'f') AND c.relnamespace = {0} AND p.relnamespace <> {0}",
        oid(schema)
    );
    // A partition whose rows a foreign key needs cannot be detached. That of a table which stays is of no use here.
    let needed = format!(
        "WITH RECURSIVE above AS (SELECT parent FROM ({pairs}) pairs WHERE relispartition UNION \
         SELECT i.inhparent FROM above JOIN pg_inherits i ON i.inhrelid = parent) \
         SELECT conrelid::regclass, conname FROM pg_constraint \
         WHERE contype = 'f' AND conparentid = 0 AND confrelid IN (SELECT parent FROM above)"
    );
    for row in session.sql(&needed).await? {
        let [Some(table), Some(name)] = row.as_slice() else { continue };
        session.sql(&format!("ALTER TABLE {table} DROP CONSTRAINT {}", quoted(name))).await?;
    }
    let mut warnings = Vec::new();
    let question = format!("SELECT parent::regclass, child::regclass, relispartition FROM ({pairs}) pairs ORDER BY 2");
    for row in session.sql(&question).await? {
        let [Some(parent), Some(child), Some(is_partition)] = row.as_slice() else { continue };
        let (statement, what) = match is_partition == "t" {
            true => (format!("ALTER TABLE {parent} DETACH PARTITION {child}"), "is no partition of"),
            false => (format!("ALTER TABLE {child} NO INHERIT {parent}"), "does not inherit from"),
        };
        session.sql(&statement).await?;
        warnings.push(format!("{child} {what} {parent} any more, which is not taken"));
    }
    Ok(warnings)
}

/// What views read (`_RETURN` is the rule that every view has), as a common table expression.
const READS: &str = "reads AS (SELECT DISTINCT r.ev_class AS view, d.refobjid AS relation \
                     FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass \
                     AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass \
                     WHERE r.rulename = '_RETURN' AND d.refobjid <> r.ev_class)";

/// Puts tables with the same rows in the place of materialised views that read, be it through others, what stays behind:
/// `pg_restore` would fill them from what the other database has today.
async fn materialised_views(session: &Session, schema: &str) -> Result<Vec<String>> {
    let oid = oid(schema);
    // Those without rows are dumped without.
    let question = format!(
        "WITH RECURSIVE {READS}, outward AS (\
         SELECT view FROM reads JOIN pg_class c ON c.oid = relation WHERE c.relnamespace <> {oid} \
         UNION SELECT reads.view FROM outward JOIN reads ON reads.relation = outward.view) \
         SELECT c.oid, c.relname FROM pg_class c JOIN outward ON view = c.oid \
         WHERE c.relnamespace = {oid} AND c.relkind = 'm' AND c.relispopulated ORDER BY c.relname"
    );
    let found = session.sql(&question).await?;
    let (oids, names): (Vec<String>, Vec<String>) = found
        .into_iter()
        .filter_map(|row| {
            let mut values = row.into_iter().flatten();
            Some((values.next()?, values.next()?))
        })
        .unzip();
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    // Said while they are there, and said again when the tables are: the names are the same.
    let oids = oids.join(", ");
    let question = format!(
        "WITH {READS} SELECT 'CREATE OR REPLACE VIEW ' || c.oid::regclass \
         || coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '') || ' AS ' || pg_get_viewdef(c.oid) \
         FROM pg_class c WHERE c.relnamespace = {oid} AND c.relkind = 'v' \
         AND c.oid IN (SELECT view FROM reads WHERE relation IN ({oids})) \
         UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid IN ({oids})"
    );
    let again = session.sql(&question).await?;
    session.sql(&format!("CREATE SCHEMA {}", quoted(ASIDE))).await?;
    let mut warnings = Vec::new();
    for name in &names {
        let (there, aside) =
            (format!("{}.{}", quoted(schema), quoted(name)), format!("{}.{}", quoted(ASIDE), quoted(name)));
        session
            .sql(&format!(
                "ALTER MATERIALIZED VIEW {there} SET SCHEMA {}; CREATE TABLE {there} AS TABLE {aside}",
                quoted(ASIDE)
            ))
            .await?;
        warnings.push(format!(
            "the materialised view {schema}.{name} is a table there: it reads what is not taken, and would be filled from \
             what the other database has today"
        ));
    }
    for statement in again.into_iter().flatten().flatten() {
        session.sql(&statement).await?;
    }
    Ok(warnings)
}

/// Says which views read what stays behind.
async fn views(session: &Session, schema: &str) -> Result<Vec<String>> {
    let question = format!(
        "WITH {READS} SELECT v.oid::regclass, string_agg(r.oid::regclass::text, ', ' ORDER BY r.oid::regclass::text) \
         FROM reads JOIN pg_class v ON v.oid = view JOIN pg_class r ON r.oid = relation \
         WHERE v.relkind = 'v' AND v.relnamespace = {0} AND r.relnamespace <> {0} GROUP BY v.oid ORDER BY 1",
        oid(schema)
    );
    let rows = session.sql(&question).await?.into_iter();
    Ok(rows
        .filter_map(|row| {
            let [Some(view), Some(read)] = row.as_slice() else { return None };
            Some(format!(
                "the view {view} reads {read}, which is not taken: there it has the rows of the other database"
            ))
        })
        .collect())
}
