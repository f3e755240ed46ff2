//! The checksum of every page, by PostgreSQL's own `pg_checksums`, which wants the server stopped.

use super::{Answer, Verdict};
use crate::error::{Error, Result};
use crate::scratch::{Programs, Server, StopMode};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks at the program.
const POLL: Duration = Duration::from_millis(50);
/// So many lines of what it says are told.
const TOLD_MAX: usize = 20;
/// Of what it says, so much is read: it has a line for every page that is wrong.
const SAID_BYTES_MAX: u64 = 1 << 20;

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
    // A server that stops has a minute, and writing what replay left in its memory may take longer: that comes first.
    server.sql("SET statement_timeout = 0; CHECKPOINT").await.map_err(told)?;
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
    let cannot_write = |error| Error::local("write", &output, error);
    // The directory is the server's user's, and we may be root: follow no link that is there instead, now or later.
    let mut file = File::options().read(true).write(true).create_new(true).open(&output).map_err(cannot_write)?;
    let says = file.try_clone().map_err(cannot_write)?;
    let errors = file.try_clone().map_err(cannot_write)?;
    let mut command = server.user().command(program);
    command.args(["--check", "-D"]).arg(server.data_directory()).current_dir(server.data_directory());
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(says).stderr(errors);
    let mut running = Running(command.spawn().map_err(|error| Error::local("run", program, error))?);
    let ended = loop {
        match running.0.try_wait().map_err(|error| Error::local("wait for", program, error))? {
            Some(ended) => break ended,
            None => sleep(POLL).await,
        }
    };
    let mut said = Vec::new();
    let read = file.rewind().and_then(|()| file.take(SAID_BYTES_MAX).read_to_end(&mut said));
    read.map_err(|error| Error::local("read", &output, error))?;
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
