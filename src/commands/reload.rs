//! SIGHUP to `seawall run`: the configuration is read again, and what can be taken up is, without a word to the server.

use super::audit::{Begun, Ended};
use super::cluster::Process;
use super::distinct;
use super::holding::Holding;
use super::view::View;
use crate::cli::Cli;
use crate::config::{Reloaded, Settings};
use crate::error::{Error, Kind, Result};
use crate::repository::Action;
use crate::runtime::Tasks;
use crate::secret::Secret;
use futures_util::{StreamExt, stream};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::Instrument;

/// Notes for the audit trail of so many clusters wait at once.
const NOTES_MAX: usize = 1000;

/// So many secrets are read at once: each may be a program.
const SECRETS_AT_ONCE: usize = 4;

/// From now on SIGHUP no longer ends the process.
///
/// # Errors
/// Of kind `Local`, if the signal cannot be watched.
pub(super) fn signals() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|error| Error::new(Kind::Local, "cannot watch for SIGHUP").because(error))
}

/// Reads the configuration again with each signal, for ever; may be dropped at any time. What cannot be read changes nothing. Of
/// every cluster there are its settings, and what is seen of it.
pub(super) async fn follow(
    cli: Cli,
    mut hangups: Signal,
    clusters: Vec<(Arc<Holding>, Arc<View>)>,
    process: Arc<Process>,
) {
    let clock = &process.clock;
    // A store that does not answer must not keep the next signal waiting, nor somebody who gives no secret.
    let (mut notes, mut reading): (Tasks<()>, Tasks<()>) = Default::default();
    while hangups.recv().await.is_some() {
        let (begun, loaded) = (clock.now(), load(&cli));
        if let Err(error) = &loaded {
            let hint = error.hint_text().unwrap_or_default();
            tracing::error!(%error, hint, "SIGHUP: the configuration cannot be used, and everything stays as it was");
        }
        if loaded.is_ok() {
            process.renew_credentials().await;
        }
        for new in loaded.iter().flatten().filter(|new| !clusters.iter().any(|(_, view)| view.cluster == new.cluster)) {
            tracing::warn!(
                cluster = new.cluster,
                "SIGHUP: a cluster that is new in the configuration waits for the next start"
            );
        }
        for (settings, view) in &clusters {
            let ended = match &loaded {
                Ok(all) => take_up(settings, view, all, clusters.len() > 1),
                Err(error) => Ended::failed(error),
            };
            let (view, clock) = (view.clone(), clock.clone());
            notes.start(async move {
                // The folder of a cluster that was never reached is not there yet.
                if let Some(running) = view.running()
                    && let Ok((_, writer, _)) = running.taker.repository().await
                {
                    Begun::at("run", Action::Reload, begun).end(&writer, ended, &clock).await;
                }
            });
        }
        if loaded.is_ok() {
            drop(reading);
            reading = Tasks::default();
            reading.start(read_secrets(clusters.iter().map(|(settings, _)| settings.now()).collect()));
        }
        while notes.len() > NOTES_MAX {
            _ = notes.next().await;
        }
    }
}

/// Reads all secrets that may have changed, so that it is known now what could not be had later. The store's keys are not among them:
/// [`Process::renew_credentials`] sees to those.
async fn read_secrets(all: Vec<Arc<Settings>>) {
    let mut secrets: Vec<(String, Secret)> = Vec::new();
    for settings in &all {
        let cluster = || settings.cluster.clone();
        secrets.extend(settings.secrets_beside_the_stores().map(|secret| (cluster(), secret.clone())));
    }
    let read = |(cluster, secret): (String, Secret)| async move {
        // Where there is what was read before, that is used, and logged there.
        let reading = async {
            if let Err(error) = secret.text().await {
                let hint = error.hint_text().unwrap_or_default();
                tracing::warn!(%error, hint, "SIGHUP: a secret cannot be read");
            }
        };
        reading.instrument(tracing::error_span!("of", %cluster)).await;
    };
    stream::iter(secrets).for_each_concurrent(SECRETS_AT_ONCE, read).await;
}

fn load(cli: &Cli) -> Result<Vec<Settings>> {
    let all = Settings::load_all(cli, &|name| std::env::var_os(name))?;
    distinct::check(&all, &|name| std::env::var(name).ok())?;
    Ok(all)
}

fn take_up(settings: &Holding, view: &View, all: &[Settings], is_one_of_several: bool) -> Ended {
    let cluster = is_one_of_several.then_some(view.cluster.as_str());
    let Some(new) = all.iter().find(|new| new.cluster == view.cluster || (all.len() == 1 && !is_one_of_several)) else {
        tracing::warn!(
            cluster,
            "SIGHUP: a cluster that is no longer in the configuration is archived until the next start"
        );
        return Ended::done(true, "no longer in the configuration: archived until the next start".to_owned());
    };
    let said = said(&settings.take_up(new));
    tracing::info!(cluster, "SIGHUP: {said}");
    Ended::done(true, said)
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
