//! `seawall completions` and `seawall manpages`: what other programs are told of the command line. Uses `cli`.

use super::print;
use crate::cli;
use crate::error::{Error, Result};
use clap_complete::Shell;
use std::path::Path;

/// Prints the completion script for `shell`.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "seawall", &mut script);
    print::stdout(&String::from_utf8_lossy(&script))
}

/// Writes `seawall.1`, and a page for each command, into a directory.
///
/// # Errors
/// If the directory cannot be made or written.
pub(super) fn manual_pages(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| Error::local("create", directory, error))?;
    clap_mangen::generate_to(cli::command(), directory).map_err(|error| Error::local("write", directory, error))
}
