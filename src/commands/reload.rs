//! SIGHUP to `seawall run`: the configuration is read again, and what can be taken up is, without a word to the server.

use super::audit::{Begun, Ended};
use super::view::View;
use crate::cli::Cli;
use crate::config::{Reloaded, Settings};
use crate::error::{Error, Kind, Result};
use crate::repository::Action;
use crate::runtime::Clock;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// From now on SIGHUP no longer ends the process.
///
/// # Errors
/// Of kind `Local`, if the signal cannot be watched.
pub(super) fn signals() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|error| Error::new(Kind::Local, "cannot watch for SIGHUP").because(error))
}

/// Reads the configuration again with each signal, for ever; may be dropped at any time. What cannot be read changes nothing.
pub(super) async fn follow(
    cli: Cli,
    mut hangups: Signal,
    settings: watch::Sender<Arc<Settings>>,
    view: Arc<View>,
    clock: Clock,
) {
    while hangups.recv().await.is_some() {
        let begun = Begun::now("run", Action::Reload, &clock);
        let loaded = Settings::load(&cli, &|name| std::env::var_os(name));
        let ended = match loaded {
            Ok(new) => {
                let (merged, reloaded) = settings.borrow().reload(new);
                settings.send_replace(Arc::new(merged));
                let said = said(&reloaded);
                tracing::info!("SIGHUP: {said}");
                Ended::done(true, said)
            }
            Err(error) => {
                let hint = error.hint_text().unwrap_or_default();
                tracing::error!(%error, hint, "SIGHUP: the configuration cannot be used, and everything stays as it was");
                Ended::failed(&error)
            }
        };
        // The folder of a cluster that was never reached is not there yet.
        if let Some(running) = view.running()
            && let Ok((_, writer)) = running.taker.repository().await
        {
            begun.end(&writer, ended, &clock).await;
        }
    }
}

fn said(reloaded: &Reloaded) -> String {
    let listed = |names: &[&str]| names.join(", ");
    match (reloaded.applied.is_empty(), reloaded.at_the_next_start.is_empty()) {
        (true, true) => "nothing has changed in the configuration".to_owned(),
        (false, true) => format!("taken up: {}", listed(&reloaded.applied)),
        (true, false) => format!("waits for the next start: {}", listed(&reloaded.at_the_next_start)),
        (false, false) => format!(
            "taken up: {}; waits for the next start: {}",
            listed(&reloaded.applied),
            listed(&reloaded.at_the_next_start)
        ),
    }
}
