//! `seawall completions`. Uses `cli`.

use super::print;
use crate::cli;
use crate::error::Result;
use clap_complete::Shell;

/// Prints the completion script for `shell`.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "seawall", &mut script);
    print::stdout(&String::from_utf8_lossy(&script))
}
