//! One workflow a command: build the parts, run, print. May import everything.

mod audit;
mod backup;
pub mod backups;
mod before_drop;
mod check;
mod cluster;
mod completions;
mod configuration;
mod demo;
mod distinct;
mod drill;
pub mod exit;
mod extract;
mod fetch_command;
mod history;
mod holding;
mod index;
pub mod jobs;
mod keep;
mod keys;
mod list;
mod looks;
mod memory;
mod names;
pub mod observer;
pub mod outside;
mod parts;
pub mod print;
pub mod progress;
pub mod prune;
mod receivers;
mod reload;
mod restore;
pub mod results;
mod run;
mod service;
pub mod signals;
mod sizes;
mod status;
mod steps;
pub mod taking;
pub mod time;
mod troubles;
pub mod turns;
mod verify;
mod verifying;
mod view;

use crate::cli::{Cli, Command};
use crate::config::Settings;
use crate::error::Result;
use crate::secret::{Secret, Source};
use exit::Ending;
use tokio::signal::unix::SignalKind;

/// Runs the command that was typed, for what is configured: one cluster, or several.
///
/// # Errors
/// Whatever ends the command early.
pub async fn dispatch(cli: Cli, all: Vec<Settings>) -> Result<Ending> {
    let asks_programs = all.iter().any(|settings| asks_programs(&cli.command, settings));
    let _signals = if asks_programs { Some(signals::end_with_programs(ending(&cli.command))?) } else { None };
    if matches!(cli.command, Command::Run(_)) {
        Box::pin(run::run(cli, all)).await?;
        return Ok(Ending::Done);
    }
    let Cli { common, command } = cli;
    // These are of no cluster, or of all.
    let command = match command {
        Command::Keygen(args) => return keys::keygen(&args).map(|()| Ending::Done),
        Command::Completions(args) => return completions::completions(args.shell).map(|()| Ending::Done),
        Command::Manpages(args) => return completions::manual_pages(&args.directory).map(|()| Ending::Done),
        Command::Config(args) => return configuration::configuration(&args.what, &all).await.map(|()| Ending::Done),
        Command::Status(args) => return Box::pin(status::status(args.json.json, all)).await.map(|()| Ending::Done),
        Command::Check(args) => return Box::pin(check::check(args.json.json, all)).await.map(|()| Ending::Done),
        command => command,
    };
    let settings = Settings::only(all)?;
    match command {
        Command::Keygen(_) | Command::Completions(_) | Command::Manpages(_) | Command::Config(_) => {}
        Command::Run(_) | Command::Status(_) | Command::Check(_) => {}
        Command::Backup(args) => Box::pin(backup::backup(args, settings)).await?,
        Command::List(args) => list::list(args.json.json, settings).await?,
        Command::Restore(args) => Box::pin(restore::restore(args, settings)).await?,
        Command::Extract(args) => Box::pin(extract::run(args, settings)).await?,
        Command::History(args) => Box::pin(history::history(args, &common, settings)).await?,
        Command::Verify(args) => Box::pin(verify::verify(args, settings)).await?,
        Command::Drill(args) => Box::pin(drill::drill(args, settings)).await?,
        Command::Audit(args) => audit::audit(args, settings).await?,
        Command::Prune(args) => Box::pin(prune::prune(args, settings)).await?,
        Command::Keep(args) => keep::keep(args, settings).await?,
        Command::Index(args) => Box::pin(index::index(args.json.json, settings)).await?,
        Command::WalFetch(args) => return restore::wal_fetch(&args, settings).await,
        Command::WalPush(args) => restore::wal_push(&args.path, settings).await?,
        Command::Demo(args) => Box::pin(demo::demo(&args, settings)).await?,
    }
    Ok(Ending::Done)
}

/// The signals that end this command at once. Those that have something to finish watch for the others themselves, and end what they have
/// begun; to `run` SIGHUP says something else.
fn ending(command: &Command) -> &'static [SignalKind] {
    const ALL: &[SignalKind] =
        &[SignalKind::quit(), SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()];
    match command {
        Command::Run(_) => &ALL[..1],
        Command::Backup(_) | Command::Demo(_) | Command::Drill(_) | Command::Extract(_) => &ALL[..2],
        _ => ALL,
    }
}

/// It may need a secret that a program prints.
fn asks_programs(command: &Command, settings: &Settings) -> bool {
    let is_printed = |secret: &Secret| matches!(secret.source(), Source::Command(_));
    match command {
        Command::Keygen(_) | Command::Completions(_) | Command::Manpages(_) | Command::Demo(_) => false,
        Command::Run(_) | Command::Backup(_) | Command::Status(_) | Command::Check(_) | Command::Config(_) => {
            settings.secrets().any(is_printed)
        }
        // These have to do with the repository alone.
        _ => settings.secrets_of_the_store().any(is_printed),
    }
}
