//! PostgreSQL's client programs at work. They run as whoever called, so what they write is the caller's; where they connect to
//! is in their environment, for everybody sees the arguments of a process.

use crate::error::{Error, Kind, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, Command};

/// What is kept of a program's complaints.
const KEPT_BYTES: usize = 4096;

/// A program that runs, and what it writes to standard error. Dropped, it is told to leave.
pub(super) struct Program {
    name: &'static str,
    pub(super) child: Child,
    errors: Option<ChildStderr>,
}

impl Program {
    /// A command with these variables; `keeps` what the caller's `PG*` variables say beside them.
    pub(super) fn command(
        bin: &Path,
        name: &'static str,
        variables: &[(&'static str, String)],
        keeps: bool,
    ) -> Command {
        let mut command = Command::new(bin.join(name));
        if !keeps {
            let named = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG"));
            named.for_each(|(name, _)| {
                command.env_remove(name);
            });
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it, in a group of its own: a Ctrl-C in the terminal is for us, and we end it.
    pub(super) fn start(name: &'static str, mut command: Command) -> Result<Program> {
        command.process_group(0).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|error| Error::new(Kind::Local, format!("cannot run `{name}`")).because(error))?;
        let errors = child.stderr.take();
        Ok(Program { name, child, errors })
    }

    /// Waits for its end, which must be a good one. Its standard input is closed, and its output must be taken meanwhile.
    ///
    /// # Errors
    /// [`Kind::Postgres`] with what it wrote to standard error.
    pub(super) async fn end(mut self) -> Result<()> {
        let said = match self.errors.take() {
            Some(errors) => tail(errors).await,
            None => String::new(),
        };
        let status = self.child.wait().await;
        let status = status
            .map_err(|error| Error::new(Kind::Local, format!("cannot wait for `{}`", self.name)).because(error))?;
        if status.success() {
            said.lines().for_each(|line| tracing::warn!("{line}"));
            return Ok(());
        }
        Err(Error::new(Kind::Postgres, format!("`{}` failed ({status})", self.name)).because(said.trim().to_owned()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Killed, it could not tell its server: that would see to a statement which waits for a lock as long as it waits.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// The last of what comes, up to the end.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..count]);
        let surplus = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_complains_of_is_told_from_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100000 >&2; echo why >&2; exit 3"]);
        let error = Program::start("sh", command).unwrap().end().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`sh` failed (exit status: 3)") && text.ends_with("100000\nwhy"), "{text}");
        assert!(text.len() < KEPT_BYTES + 100);
        let mut command = Command::new("true");
        command.stdin(Stdio::null());
        Program::start("true", command).unwrap().end().await.unwrap();
    }
}
