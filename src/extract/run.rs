//! The way of an extraction, from the plan to what is left at its end: what was asked for, and nothing else.

use super::csv;
use super::dump::{self, Source};
use super::package::{Package, Reserved, Written};
use super::relations::{self, Chosen};
use super::request::{Destination, ExtractOptions, Format, Place, Wanted};
use super::transplant::{self, Target};
use crate::error::{Error, Kind, Result};
use crate::history::index::Transaction;
use crate::postgres::ConnInfo;
use crate::recovery::{self, RecoveryOptions};
use crate::repository::{BackupId, Repository};
use crate::restore::{self, LocalWal, Phase, Plan, RestoreProgress};
use crate::runtime::Shutdown;
use crate::scratch::{Directory, Server, Session, sweep};
use crate::wal::{Lsn, TimelineId};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the directory of an extraction is called, with a few letters behind it.
const PREFIX: &str = "seawall-extract";

/// What an extraction is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// Files are fetched.
    #[default]
    Restoring,
    /// The server replays WAL.
    Recovering,
    /// What was asked for is written, or loaded.
    Writing,
}

/// How far an extraction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What it is at.
    pub stage: Stage,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Of so many, where that is known.
    pub total_bytes: u64,
}

/// What was extracted. This is the manifest too.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Extracted {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Its system identifier.
    pub system_identifier: String,
    /// `server_version_num` of its server.
    pub postgres_version: u32,
    /// The database's name at that moment.
    pub database: String,
    /// What was asked for.
    pub target: restore::Target,
    /// The target itself was left out.
    pub exclusive: bool,
    /// The last transaction that was there.
    pub last_transaction: Option<Transaction>,
    /// Where recovery ended.
    pub end_lsn: Lsn,
    /// On this timeline.
    pub timeline: TimelineId,
    /// The base backup that it began with.
    pub backup: BackupId,
    /// The tables, where they were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// The schemas, where they were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
    /// The query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// How it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The files; those of `pg_dump`'s directory format are its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Written>,
    /// The database that it was loaded into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Loaded>,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Bytes that the restore wrote.
    #[serde(skip)]
    pub restored_bytes: u64,
    /// What the restore took.
    #[serde(skip)]
    pub restored_in: Duration,
    /// What recovery took.
    #[serde(skip)]
    pub recovered_in: Duration,
    /// What writing or loading took.
    #[serde(skip)]
    pub written_in: Duration,
}

/// Where something was loaded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loaded {
    /// The server, without secrets.
    pub server: String,
    /// The new schema.
    pub schema: String,
}

/// Where what is extracted goes, looked at before anything is restored.
enum Ready {
    Write { place: Place, format: Format, reserved: Reserved },
    Load(Box<Target>),
}

/// Executes `plan`, which must end in a promotion, on a throwaway server, and takes what is wanted from it. When this returns, server and
/// scratch files are gone, whether it succeeded, failed, or was told to stop by `shutdown`; so is what was not completed.
///
/// # Errors
/// [`Kind::Refused`] if the destination is there, before anything is fetched, or if the database did not have what is
/// wanted; [`Kind::Local`] if a program is missing, or on an interruption; otherwise what failed.
pub async fn extract(
    repository: &Repository,
    plan: &Plan,
    options: ExtractOptions,
    progress: watch::Sender<Progress>,
    shutdown: &Shutdown,
) -> Result<Extracted> {
    let clients = match options.destination.needs_clients() {
        true => options.programs.clients()?,
        false => PathBuf::new(),
    };
    let ready = match options.destination.clone() {
        Destination::Written { place, format } => {
            let reserved = Reserved::new(&place)?;
            Ready::Write { place, format, reserved }
        }
        Destination::Loaded { conninfo, schema } => {
            Ready::Load(Box::new(Box::pin(Target::check(&conninfo, &schema)).await?))
        }
    };
    tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => return Err(interrupted()),
        () = sweep(&options.scratch, PREFIX) => {}
    }
    let mut scratch = Directory::create(&options.scratch, PREFIX)?;
    let extraction = Extraction { repository, plan, options: &options, clients: &clients, progress: &progress };
    let ended = tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => Err(interrupted()),
        ended = Box::pin(extraction.run(scratch.path(), &ready)) => ended,
    };
    // The first error is the one to tell.
    if let Err(left) = scratch.remove().await {
        tracing::warn!("{left}");
    }
    let extracted = ended?;
    if let Ready::Write { reserved, .. } = ready {
        reserved.publish()?;
    }
    Ok(extracted)
}

/// What is said where somebody ends it.
pub fn interrupted() -> Error {
    Error::new(Kind::Local, "the extraction was interrupted").hint("Nothing is left behind: run it again at any time.")
}

struct Extraction<'a> {
    repository: &'a Repository,
    plan: &'a Plan,
    options: &'a ExtractOptions,
    clients: &'a Path,
    progress: &'a watch::Sender<Progress>,
}

impl Extraction<'_> {
    async fn run(&self, scratch: &Path, ready: &Ready) -> Result<Extracted> {
        let recovered = self.recover(scratch).await?;
        let server = &recovered.server;
        let database = relations::database(server, &self.options.database).await?;
        let session = server.connect(&database).await?;
        session.lift_limits().await?;
        let chosen = relations::choose(&session, &database, &self.options.wanted).await?;
        self.progress.send_replace(Progress { stage: Stage::Writing, ..Progress::default() });
        let begun = Instant::now();
        let mut extracted = Extracted {
            restored_bytes: recovered.report.bytes,
            restored_in: recovered.restored_in,
            recovered_in: recovered.recovered_in,
            warnings: chosen.warnings.clone(),
            ..self.described(database)
        };
        match ready {
            Ready::Write { place, format, reserved } => {
                extracted.format = Some(*format);
                let mut package = Package::begin(place, reserved)?;
                (package, extracted.files) =
                    self.write(server, &session, &chosen, &extracted.database, package, *format).await?;
                package.complete(&extracted).await?;
            }
            Ready::Load(target) => {
                let relations = relations::with_partitions(&session, &chosen.relations).await?;
                let cut = transplant::gather(&session, &self.options.wanted, &relations, &target.schema).await?;
                extracted.warnings.extend(cut);
                let variables = variables(server, &extracted.database)?;
                target.load(Source { bin: self.clients, variables: &variables }, self.progress).await?;
                extracted.loaded = Some(Loaded { server: target.shown.clone(), schema: target.schema.clone() });
            }
        }
        extracted.written_in = begun.elapsed();
        Ok(extracted)
    }

    async fn recover(&self, scratch: &Path) -> Result<recovery::Recovered> {
        let options = RecoveryOptions {
            programs: self.options.programs.clone(),
            command: self.options.command.clone(),
            databases: self.options.databases(self.plan),
            wal: LocalWal::First,
            // It is thrown away.
            settings: vec![("fsync".to_owned(), "off".to_owned())],
        };
        let (sender, mut receiver) = watch::channel(RestoreProgress::default());
        let recovering = Box::pin(recovery::recover(scratch, self.repository, self.plan, options, sender));
        let telling = async {
            while receiver.changed().await.is_ok() {
                let now = *receiver.borrow_and_update();
                let (done_bytes, total_bytes) = (now.done_bytes, now.total_bytes);
                let stage = if now.phase == Phase::Syncing { Stage::Recovering } else { Stage::Restoring };
                self.progress.send_replace(Progress { stage, done_bytes, total_bytes });
            }
            self.progress.send_replace(Progress { stage: Stage::Recovering, ..Progress::default() });
            std::future::pending::<()>().await;
        };
        tokio::select! {
            recovered = recovering => recovered,
            () = telling => Err(Error::new(Kind::Internal, "nobody tells how far it is")),
        }
    }

    /// Writes what is wanted into a package.
    async fn write(
        &self,
        server: &Server,
        session: &Session,
        chosen: &Chosen,
        database: &str,
        mut package: Package,
        format: Format,
    ) -> Result<(Package, Vec<Written>)> {
        let wanted = &self.options.wanted;
        match (format, wanted) {
            (Format::Csv, Wanted::Query(query)) => {
                let name = package.name("query", "csv");
                let (package, written) = csv::rows(session, package, &name, query, self.progress).await?;
                return Ok((package, vec![written]));
            }
            (Format::Csv, _) => return csv::tables(session, package, &chosen.relations, self.progress).await,
            _ => {}
        }
        let variables = variables(server, database)?;
        let source = Source { bin: self.clients, variables: &variables };
        let relations = relations::with_partitions(session, &chosen.relations).await?;
        let selection = dump::selection(wanted, &relations);
        if let (Format::Directory, Some(into)) = (format, package.directory()) {
            dump::directory(source, &selection, into).await?;
            return Ok((package, Vec::new()));
        }
        let name = package.name(database, if format == Format::Custom { "dump" } else { "sql" });
        let (package, written) = dump::file(source, &selection, format, package, &name, self.progress).await?;
        Ok((package, vec![written]))
    }

    /// What is known before anything is written.
    fn described(&self, database: String) -> Extracted {
        let plan = self.plan;
        let (mut tables, mut schemas, mut query) = (Vec::new(), Vec::new(), None);
        match &self.options.wanted {
            Wanted::Everything => {}
            Wanted::Tables(names) => tables = names.clone(),
            Wanted::Schemas(names) => schemas = names.clone(),
            Wanted::Query(text) => query = Some(text.clone()),
        }
        Extracted {
            cluster: plan.cluster.clone(),
            system_identifier: plan.system_identifier.to_string(),
            postgres_version: plan.postgres_version,
            database,
            target: plan.target.clone(),
            exclusive: plan.exclusive,
            last_transaction: plan.last_transaction,
            end_lsn: plan.end_lsn,
            timeline: plan.timeline,
            backup: plan.backup.id.clone(),
            tables,
            schemas,
            query,
            format: None,
            files: Vec::new(),
            loaded: None,
            warnings: Vec::new(),
            restored_bytes: 0,
            restored_in: Duration::ZERO,
            recovered_in: Duration::ZERO,
            written_in: Duration::ZERO,
        }
    }
}

/// What a client program connects with to a database of the scratch server.
fn variables(server: &Server, database: &str) -> Result<Vec<(&'static str, String)>> {
    let mut variables = ConnInfo::variables(&server.conninfo())?;
    variables.retain(|(name, _)| *name != "PGDATABASE");
    variables.push(("PGDATABASE", database.to_owned()));
    Ok(variables)
}
