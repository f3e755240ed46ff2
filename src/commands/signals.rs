//! Signals of a command that has something to finish. Uses `runtime` and `error`.
//!
//! Only such commands watch them: everything else, `wal-fetch` above all, keeps the default actions.

use crate::error::{Error, Kind, Result};
use crate::runtime::{Shutdown, Tasks};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From now on the first SIGTERM or SIGINT begins a stop and the second one ends everything. Dropping the result ends
/// the watch, though not to the default actions: keep it until the end.
///
/// # Errors
/// Of kind `Local`, if the signals cannot be watched.
pub fn watch(shutdown: Shutdown) -> Result<Tasks<()>> {
    let watched =
        |kind| signal(kind).map_err(|error| Error::new(Kind::Local, "cannot watch for signals").because(error));
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
