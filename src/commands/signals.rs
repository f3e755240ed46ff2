//! Signals of a command that has something to finish, and of one that may ask programs for secrets. Uses `runtime`, `error` and
//! `secret`.
//!
//! Only such commands watch them: everything else keeps the default actions, `wal-fetch` above all, unless a program prints a key of the
//! store.

use crate::error::{Error, Kind, Result};
use crate::runtime::{Shutdown, Tasks};
use crate::secret;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell's exit code for a signal begins with, and PostgreSQL knows too (`wait_result_is_signal` in `src/common/wait_error.c`).
const SIGNALLED: i32 = 128;

/// From now on these signals end the process at once, as they do by themselves, and before it the programs that are asked for secrets: no
/// terminal tells those, which are a group of their own. What is ignored stays so, as nohup has SIGHUP, and a script SIGINT of what it
/// runs in the background. Keep the result until the end.
///
/// # Errors
/// Of kind `Local`, if the signals cannot be watched.
pub fn end_with_programs(kinds: &[SignalKind]) -> Result<Tasks<()>> {
    let mut tasks = Tasks::default();
    let ignored = ignored();
    for kind in kinds.iter().copied().filter(|kind| !is_among(ignored, *kind)) {
        let mut signals = watched(kind)?;
        tasks.start(async move {
            signals.recv().await;
            secret::end_all();
            std::process::exit(SIGNALLED + kind.as_raw_value());
        });
    }
    Ok(tasks)
}

/// The signals that this process ignores, a bit each: none, where nobody says so.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // The lowest bit is of signal 1 (proc_pid_status(5)).
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
}

fn is_among(signals: u64, kind: SignalKind) -> bool {
    let bit = u32::try_from(kind.as_raw_value() - 1).ok();
    bit.and_then(|bit| signals.checked_shr(bit)).is_some_and(|rest| rest & 1 == 1)
}

fn watched(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(Kind::Local, "cannot watch for signals").because(error))
}

/// From now on the first SIGTERM or SIGINT begins a stop and the second one ends everything. Dropping the result ends
/// the watch, though not to the default actions: keep it until the end.
///
/// # Errors
/// Of kind `Local`, if the signals cannot be watched.
pub fn watch(shutdown: Shutdown) -> Result<Tasks<()>> {
    let (mut terminate, mut interrupt) = (watched(SignalKind::terminate())?, watched(SignalKind::interrupt())?);
    let mut tasks = Tasks::default();
    tasks.start(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!("{name}: storing what was received, then leaving; a second signal leaves at once");
        shutdown.begin_stop();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("{name}: leaving at once");
        shutdown.begin_kill();
    });
    Ok(tasks)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
