//! What is wanted, by `pg_dump`.

use super::package::{Package, Written};
use super::program::Program;
use super::relations::{Relation, quoted};
use super::request::{Format, Wanted};
use super::run::Progress;
use crate::error::{Error, Kind, Result};
use futures_util::TryStreamExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

/// What is read from `pg_dump` at a time.
const PIECE_BYTES: usize = 1 << 16;

/// `pg_dump` of a database of the scratch server.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// Where `pg_dump` is.
    pub(super) bin: &'a Path,
    /// The server and the database, as libpq's variables.
    pub(super) variables: &'a [(&'static str, String)],
}

impl Source<'_> {
    /// The command that dumps in `format`.
    pub(super) fn command(&self, format: Format) -> Command {
        let mut command = Program::command(self.bin, "pg_dump", self.variables, false);
        let name = match format {
            Format::Custom => "custom",
            Format::Plain | Format::Csv => "plain",
            Format::Directory => "directory",
        };
        command.arg("--no-password").arg(format!("--format={name}")).stdin(Stdio::null());
        command
    }
}

/// What `pg_dump` is to take; `relations` are the tables that are meant, with their partitions.
pub(super) fn selection(wanted: &Wanted, relations: &[Relation]) -> Vec<String> {
    match wanted {
        Wanted::Tables(_) => relations.iter().map(|relation| format!("--table={}", relation.quoted())).collect(),
        Wanted::Schemas(names) => names.iter().map(|name| format!("--schema={}", quoted(name))).collect(),
        Wanted::Everything | Wanted::Query(_) => Vec::new(),
    }
}

/// Dumps into one file, `name`.
///
/// # Errors
/// [`Kind::Postgres`] if `pg_dump` fails, with what it says; or what the disk says.
pub(super) async fn file(
    source: Source<'_>,
    selection: &[String],
    format: Format,
    package: Package,
    name: &str,
    progress: &watch::Sender<Progress>,
) -> Result<(Package, Written)> {
    let mut command = source.command(format);
    command.args(selection).stdout(Stdio::piped());
    let mut program = Program::start("pg_dump", command)?;
    let Some(output) = program.child.stdout.take() else {
        return Err(Error::new(Kind::Internal, "pg_dump has no output"));
    };
    let pieces = ReaderStream::with_capacity(output, PIECE_BYTES)
        .map_err(|error| Error::new(Kind::Local, "cannot read what pg_dump writes").because(error))
        .inspect_ok(|piece| progress.send_modify(|progress| progress.done_bytes += piece.len() as u64));
    // Its own words say more than a pipe that broke.
    let (ended, stored) = tokio::join!(program.end(), package.store(name, pieces));
    match (ended, stored) {
        (Ok(()), stored) => stored,
        // It had nobody to write to.
        (Err(_), Err(error)) if error.kind() == Kind::Local => Err(error),
        (Err(error), _) => Err(error),
    }
}

/// Dumps into the package's directory.
///
/// # Errors
/// [`Kind::Postgres`] if `pg_dump` fails, with what it says.
pub(super) async fn directory(source: Source<'_>, selection: &[String], into: &Path) -> Result<()> {
    let mut command = source.command(Format::Directory);
    command.args(selection).arg("--file").arg(into).stdout(Stdio::null());
    Program::start("pg_dump", command)?.end().await
}
