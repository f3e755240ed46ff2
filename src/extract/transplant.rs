//! From the scratch server into another database, as a schema of its own: on the scratch server, which is ours, everything
//! is renamed; the other database sees one transaction, that of `pg_restore`.

use super::dump::Source;
use super::program::Program;
use super::relations::{Relation, literal, quoted};
use super::request::{Format, Wanted};
use super::run::Progress;
use super::ties;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, ConnInfo, Mode};
use crate::scratch::Session;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// The name that makes way on the scratch server for the one that is wanted.
const OUT_OF_THE_WAY: &str = "seawall was here before";

/// Another database.
pub(super) struct Target {
    /// What `pg_restore` connects with, in its environment.
    variables: Vec<(&'static str, String)>,
    /// Where that is, without secrets.
    pub(super) shown: String,
    info: ConnInfo,
    /// The schema, which is not there.
    pub(super) schema: String,
}

impl Target {
    /// Looks whether the schema can be made there.
    ///
    /// # Errors
    /// [`Kind::Refused`] if it is there; [`Kind::Config`] if `conninfo` cannot be read; or what the server says.
    pub(super) async fn check(conninfo: &str, schema: &str) -> Result<Target> {
        let info = ConnInfo::parse(conninfo, &|name| std::env::var(name).ok())?;
        let variables = ConnInfo::variables(conninfo)?;
        let target = Target { variables, shown: info.describe(), info, schema: schema.to_owned() };
        let mut client = target.connect().await?;
        let name = literal(schema);
        let rows = client.simple_query(&format!("SELECT nspname FROM pg_namespace WHERE nspname = {name}")).await;
        client.close().await;
        match rows.map_err(Error::from)?.is_empty() {
            true => Ok(target),
            false => Err(Error::new(Kind::Refused, format!("schema {schema:?} is there already on {}", target.shown))
                .hint("Nothing is overwritten: drop it, or choose another name with --as-schema.")),
        }
    }

    async fn connect(&self) -> Result<Client> {
        let connected = Client::connect(&self.info, Mode::Sql, &[]).await;
        connected.map_err(|error| Error::from(error).context("the database to load into"))
    }

    /// Loads the schema from `source`, all or nothing.
    ///
    /// # Errors
    /// [`Kind::Postgres`] if `pg_dump` or `pg_restore` fails, with what it says: then the database is as it was.
    pub(super) async fn load(&self, source: Source<'_>, progress: &watch::Sender<Progress>) -> Result<()> {
        let mut dump = source.command(Format::Custom);
        // On its way through a pipe, compressing costs more than it saves.
        dump.args(["--no-owner", "--no-privileges", "--compress=0", &format!("--schema={}", quoted(&self.schema))]);
        dump.stdout(Stdio::piped());
        let mut restore = Program::command(source.bin, "pg_restore", &self.variables, true);
        // Whoever has a terminal would be asked for the password there, by a program that may not read from it.
        let once = ["--no-password", "--single-transaction", "--exit-on-error"];
        let ours_alone = [
            "--no-owner",
            "--no-privileges",
            "--no-tablespaces",
            "--no-publications",
            "--no-subscriptions",
            "--no-security-labels",
        ];
        // Which database, the environment says.
        restore.args(once).args(ours_alone).arg("--dbname=").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut dumping = Program::start("pg_dump", dump)?;
        let mut loading = Program::start("pg_restore", restore)?;
        let (output, input) = (dumping.child.stdout.take(), loading.child.stdin.take());
        let (Some(mut output), Some(mut input)) = (output, input) else {
            return Err(Error::new(Kind::Internal, "the programs have no pipes"));
        };
        // Gives whether `pg_restore` took everything.
        let copying = async move {
            let mut piece = vec![0; 1 << 16];
            while let Ok(count @ 1..) = output.read(&mut piece).await {
                if input.write_all(&piece[..count]).await.is_err() {
                    return false;
                }
                progress.send_modify(|progress| progress.done_bytes += count as u64);
            }
            true
        };
        let (took_all, dumped, loaded) = tokio::join!(copying, dumping.end(), loading.end());
        outcome(took_all, dumped, loaded.map_err(|error| error.context(format!("loading into {}", self.shown))))
    }
}

/// What to tell of the ends of `pg_dump` and `pg_restore`. If both failed, the first is the cause: `pg_dump` if its dump ended
/// early, `pg_restore` if it did not take all of it.
fn outcome(took_all: bool, dumped: Result<()>, loaded: Result<()>) -> Result<()> {
    let hint = "Its one transaction was rolled back: the database is as it was.";
    match (dumped, loaded) {
        (Err(error), Err(_)) if took_all => Err(error.hint(hint)),
        (_, Err(error)) => Err(error.hint(hint)),
        (dumped, Ok(())) => dumped,
    }
}

/// Gathers what is wanted in the schema `new` of the scratch server; gives what the operator should know.
///
/// # Errors
/// [`Kind::Postgres`] with what the server says.
pub(super) async fn gather(
    session: &Session,
    wanted: &Wanted,
    relations: &[Relation],
    new: &str,
) -> Result<Vec<String>> {
    // What people made to fire on such changes has no business here.
    session.sql("SET session_replication_role = replica").await?;
    let old = match wanted {
        Wanted::Schemas(names) => names.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    if old != new {
        make_way(session, new).await?;
        match wanted {
            Wanted::Schemas(_) => rename(session, &old, new).await?,
            _ => move_tables(session, relations, new).await?,
        }
    }
    let warnings = ties::cut(session, new).await?;
    // The operator knows it by its own name.
    Ok(warnings.into_iter().map(|warning| warning.replace(&quoted(OUT_OF_THE_WAY), &quoted(new))).collect())
}

async fn make_way(session: &Session, new: &str) -> Result<()> {
    let there = session.sql(&format!("SELECT 1 FROM pg_namespace WHERE nspname = {}", literal(new))).await?;
    if !there.is_empty() {
        session.sql(&format!("ALTER SCHEMA {} RENAME TO {}", quoted(new), quoted(OUT_OF_THE_WAY))).await?;
    }
    Ok(())
}

/// Renames a schema. Extensions in it stay where they were: they are not dumped, and the other database has its own.
async fn rename(session: &Session, old: &str, new: &str) -> Result<()> {
    session
        .sql(&format!("ALTER SCHEMA {} RENAME TO {}; CREATE SCHEMA {}", quoted(old), quoted(new), quoted(old)))
        .await?;
    let question = format!(
        "SELECT extname FROM pg_extension WHERE extrelocatable AND extnamespace = {}::regnamespace",
        literal(&quoted(new))
    );
    for extension in session.sql(&question).await?.into_iter().flatten().flatten() {
        session.sql(&format!("ALTER EXTENSION {} SET SCHEMA {}", quoted(&extension), quoted(old))).await?;
    }
    Ok(())
}

async fn move_tables(session: &Session, relations: &[Relation], new: &str) -> Result<()> {
    session.sql(&format!("CREATE SCHEMA {}", quoted(new))).await?;
    for relation in relations {
        // It may be in the schema that has just made way.
        let schema = if relation.schema == new { OUT_OF_THE_WAY } else { &relation.schema };
        let there = format!("{}.{}", quoted(schema), quoted(&relation.name));
        session.sql(&format!("ALTER TABLE {there} SET SCHEMA {}", quoted(new))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_programs_that_failed_the_one_is_told_that_failed_first() {
        let failed = |what: &str| Err(Error::new(Kind::Postgres, what.to_owned()));
        let told = |took_all, dumped, loaded| outcome(took_all, dumped, loaded).unwrap_err().to_string();
        assert_eq!(told(true, failed("no table"), failed("input file is too short")), "no table");
        assert_eq!(told(false, failed("broken pipe"), failed("schema is there")), "schema is there");
        assert_eq!(told(true, Ok(()), failed("disk full")), "disk full");
        assert_eq!(told(true, failed("crashed at its end"), Ok(())), "crashed at its end");
        outcome(true, Ok(()), Ok(())).unwrap();
    }
}
