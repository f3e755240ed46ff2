//! The checksum of every page, by PostgreSQL's own `pg_checksums`, which wants the server stopped.

use super::{Answer, Verdict};
use crate::error::{Error, Result};
use crate::scratch::{Programs, Server, StopMode};
use std::fs::File;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks at the program.
const POLL: Duration = Duration::from_millis(50);
/// So many lines of what it says are told.
const TOLD_MAX: usize = 20;

/// Stops the server, and has every page compared with its checksum.
pub(super) async fn run(server: &mut Server, programs: &Programs) -> Verdict {
    let told = |error: Error| vec![error.to_string()];
    let rows = server.sql("SHOW data_checksums").await.map_err(told)?;
    if rows.first().and_then(|row| row.first()?.as_deref()) != Some("on") {
        return Ok(Answer::Skipped("the cluster has no data checksums".to_owned()));
    }
    let program = programs.path("pg_checksums");
    if !program.is_file() {
        return Ok(Answer::Skipped(format!("there is no {} on this machine", program.display())));
    }
    server.stop(StopMode::Fast).await.map_err(told)?;
    let (ended, said) = compare(server, &program).await.map_err(told)?;
    let mut lines = said.lines().map(str::to_owned);
    match ended.success() {
        true => {
            let blocks = said.lines().find_map(|line| line.strip_prefix("Blocks scanned:")).unwrap_or_default();
            Ok(Answer::Passed(format!("{} pages by pg_checksums", blocks.trim())))
        }
        false => {
            let mut wrong: Vec<String> = lines.by_ref().filter(|line| line.contains("error")).take(TOLD_MAX).collect();
            if wrong.is_empty() {
                wrong.push(format!("pg_checksums ended with {ended}: {said}"));
            }
            Err(wrong)
        }
    }
}

/// Runs it to its end; gives what it said.
async fn compare(server: &Server, program: &Path) -> Result<(ExitStatus, String)> {
    let output = server.socket_directory().join("pg_checksums");
    let file = File::create(&output).map_err(|error| Error::local("write", &output, error))?;
    let errors = file.try_clone().map_err(|error| Error::local("write", &output, error))?;
    let mut command = server.user().command(program);
    command.args(["--check", "-D"]).arg(server.data_directory()).current_dir(server.data_directory());
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(file).stderr(errors);
    let mut running = Running(command.spawn().map_err(|error| Error::local("run", program, error))?);
    let ended = loop {
        match running.0.try_wait().map_err(|error| Error::local("wait for", program, error))? {
            Some(ended) => break ended,
            None => sleep(POLL).await,
        }
    };
    let said = std::fs::read(&output).map_err(|error| Error::local("read", &output, error))?;
    Ok((ended, String::from_utf8_lossy(&said).into_owned()))
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
