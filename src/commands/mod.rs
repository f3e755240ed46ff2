//! One workflow a command: build the parts, run, print. May import everything.

mod completions;
pub mod exit;
pub mod observer;
pub mod print;
pub mod signals;
pub mod time;

use crate::cli::{Cli, Command};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use exit::Ending;

/// Runs the command that was typed.
///
/// # Errors
/// Whatever ends the command early.
#[allow(clippy::unused_async)]
pub async fn dispatch(cli: Cli, settings: Settings) -> Result<Ending> {
    let _ = &settings;
    match cli.command {
        Command::Completions(args) => completions::completions(args.shell)?,
        Command::Run(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::List(_)
        | Command::Status(_)
        | Command::Check(_)
        | Command::WalFetch(_)
        | Command::WalPush(_)
        | Command::Demo(_) => return Err(Error::new(Kind::Internal, "this command is not built yet")),
    }
    Ok(Ending::Done)
}
