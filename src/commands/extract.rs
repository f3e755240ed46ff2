//! `seawall extract`: plans, recovers a cluster where nobody sees it, and takes from it what is wanted.

use super::audit::{Begun, Ended};
use super::fetch_command::fetch_command;
use super::progress::{self, Step};
use super::{before_drop, parts, print, restore, signals};
use crate::cli::{ExtractArgs, ExtractFormat};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::extract::{
    Destination, Estimate, ExtractOptions, Extracted, Format, Place, Progress, Stage, Wanted, estimate, extract,
    interrupted,
};
use crate::repository::{Action, ActionResult, Catalog, Repository, WalReader, Writer};
use crate::restore::{Plan, TargetAction, plan};
use crate::runtime::{Clock, Shutdown};
use crate::scratch::Programs;
use std::path::Path;
use tokio::sync::watch;

/// Extracts, or with `--estimate` only says what that takes.
///
/// # Errors
/// A refusal before anything is restored, or what went wrong.
pub(super) async fn run(args: ExtractArgs, settings: Settings) -> Result<()> {
    let shutdown = Shutdown::default();
    let _watch = signals::watch(shutdown.clone())?;
    let clock = Clock::system();
    let aimed = async {
        let aimed = aim(&args, &settings, &clock).await?;
        let estimate = match args.estimate {
            true => Some(Box::pin(estimate(&aimed.repository, &aimed.plan, &aimed.options)).await?),
            false => None,
        };
        Ok::<_, Error>((aimed, estimate))
    };
    let (Aimed { repository, writer, plan, options }, estimate) = tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => return Err(interrupted()),
        aimed = Box::pin(aimed) => aimed?,
    };
    if let Some(estimate) = estimate {
        return print::stdout(&if args.json.json { print::json(&estimate)? } else { estimated(&estimate) });
    }
    let is_stdout = is_stdout(&options.destination);
    let (progress, watched) = watch::channel(Progress::default());
    let begun = Begun::now("extract", Action::Extract, &clock);
    let extracted = tokio::select! {
        extracted = Box::pin(extract(&repository, &plan, options, progress, &shutdown)) => extracted,
        never = progress::show(watched, step) => match never {},
    };
    // Words would name relations, which an encrypted repository keeps to itself.
    let result = if extracted.is_ok() { ActionResult::Good } else { ActionResult::Failed };
    let ended = Ended { action: None, result, backup: Some(plan.backup.id.clone()), about: result.name().to_owned() };
    begun.end(&writer, ended, &clock).await;
    let extracted = extracted?;
    extracted.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    match (is_stdout, args.json.json) {
        (true, _) => Ok(()),
        (false, true) => print::stdout(&print::json(&extracted)?),
        (false, false) => print::stdout(&said(&extracted, args.out.as_deref())),
    }
}

/// What is taken, from where and how.
struct Aimed {
    repository: Repository,
    writer: Writer,
    plan: Plan,
    options: ExtractOptions,
}

async fn aim(args: &ExtractArgs, settings: &Settings, clock: &Clock) -> Result<Aimed> {
    let wanted = wanted(args);
    let destination = destination(args, &wanted)?;
    // What is extracted to standard output has it for itself.
    let says = !args.json.json && (args.estimate || !is_stdout(&destination));
    let mut request = restore::request(&args.target, TargetAction::Promote, says, clock)?;
    let (repository, cluster) = parts::readable_repository(settings).await?;
    let reader = WalReader::new(repository.clone(), cluster.system_identifier);
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let catalog = Catalog::read(&repository, cluster).await?;
    if let Some(relation) = &args.target.before_drop {
        let database = Some(args.database.as_str());
        Box::pin(before_drop::aim_in(&mut request, database, relation, &reader, &catalog, !says)).await?;
    }
    let plan = Box::pin(plan(&reader, &catalog, &request, clock.now())).await?;
    let options = ExtractOptions {
        programs: Programs::find(Some(plan.postgres_version / 10_000))?,
        command: fetch_command(settings)?,
        database: args.database.clone(),
        wanted,
        destination,
        scratch: args.scratch.clone().unwrap_or_else(std::env::temp_dir),
        whole_cluster: args.whole_cluster,
    };
    Ok(Aimed { repository, writer, plan, options })
}

fn is_stdout(destination: &Destination) -> bool {
    matches!(destination, Destination::Written { place: Place::Stdout, .. })
}

fn wanted(args: &ExtractArgs) -> Wanted {
    match &args.query {
        Some(query) => Wanted::Query(query.clone()),
        None if !args.tables.is_empty() => Wanted::Tables(args.tables.clone()),
        None if !args.schemas.is_empty() => Wanted::Schemas(args.schemas.clone()),
        None => Wanted::Everything,
    }
}

fn destination(args: &ExtractArgs, wanted: &Wanted) -> Result<Destination> {
    if let (Some(conninfo), Some(schema)) = (&args.into, &args.as_schema) {
        return Destination::loaded(conninfo.clone(), schema.clone(), wanted);
    }
    let format = args.format.map(|format| match format {
        ExtractFormat::Custom => Format::Custom,
        ExtractFormat::Plain => Format::Plain,
        ExtractFormat::Directory => Format::Directory,
        ExtractFormat::Csv => Format::Csv,
    });
    match (&args.out, args.estimate) {
        (Some(out), _) => Destination::written(out, format, wanted),
        (None, true) => Ok(Destination::Written { place: Place::Stdout, format: Format::Plain }),
        (None, false) => Err(Error::new(Kind::Usage, "nowhere to write to").hint("Give --out, or --into.")),
    }
}

fn estimated(estimate: &Estimate) -> String {
    let size = print::size;
    let what = match estimate.databases.as_slice() {
        [] => "all databases".to_owned(),
        names => format!("database {} alone", names.join(", ")),
    };
    let last = match &estimate.last_transaction {
        Some(last) => format!("transaction {} at {}", last.xid, last.time),
        None => "not known: none is behind the backup".to_owned(),
    };
    [
        format!("backup   {}", estimate.backup),
        format!("last     {last}"),
        format!("fetches  {} of {}, {what}", size(estimate.fetched_bytes), size(estimate.stored_bytes)),
        format!("replays  {} of WAL, up to {}", size(estimate.wal_bytes), estimate.end_lsn),
        format!("takes    {} in {} meanwhile", size(estimate.scratch_bytes), estimate.scratch.display()),
        format!("duration {}; what is taken out comes on top", restore::duration(estimate.expected.as_ref())),
    ]
    .map(|line| line + "\n")
    .concat()
}

fn said(extracted: &Extracted, out: Option<&Path>) -> String {
    let (size, duration) = (print::size, print::duration);
    let mut text = format!(
        "restored {} of {} in {}, recovered to {} in {}\n",
        size(extracted.restored_bytes),
        extracted.backup,
        duration(extracted.restored_in),
        extracted.end_lsn,
        duration(extracted.recovered_in)
    );
    for file in &extracted.files {
        let rows = file.rows.map(|rows| format!("{rows} rows, ")).unwrap_or_default();
        text.push_str(&format!("{}: {rows}{}, SHA-256 {}\n", file.name, size(file.bytes), file.sha256));
    }
    let took = duration(extracted.written_in);
    text.push_str(&match (&extracted.loaded, out) {
        (Some(loaded), _) => format!("loaded into {} as schema {} in {took}\n", loaded.server, loaded.schema),
        (None, Some(out)) => format!("wrote {} in {took}\n", out.display()),
        (None, None) => String::new(),
    });
    text
}

fn step(progress: &Progress) -> Step {
    let what = match progress.stage {
        Stage::Restoring => "restoring",
        Stage::Recovering => "recovering",
        Stage::Writing => "writing",
    };
    Step { what, done_bytes: progress.done_bytes, total_bytes: progress.total_bytes }
}
