//! `seawall run`: every cluster streams, stores and acknowledges by itself; they are shown together, and told together when to stop.

use super::cluster::{Cluster, Process, may_pass};
use super::holding::Holding;
use super::service::ServiceManager;
use super::view::Views;
use super::{distinct, memory, reload, signals};
use crate::cli::Cli;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::http;
use crate::runtime::{Shutdown, Tasks};
use std::sync::Arc;
use tracing::Instrument;

/// Runs until a signal, or until every cluster has met something that waiting cannot mend.
///
/// # Errors
/// What was wrong at the start, or that later: of several clusters, with the first that ended so.
pub(super) async fn run(cli: Cli, all: Vec<Settings>) -> Result<()> {
    let hangups = reload::signals()?;
    let shutdown = Shutdown::default();
    let _signals = signals::watch(shutdown.clone())?;
    distinct::check(&all, &|name| std::env::var(name).ok())?;
    let of_process = all.first().ok_or_else(|| Error::new(Kind::Internal, "there is no cluster"))?.run.clone();
    let listener = match of_process.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    if all.len() > 1 {
        say_memory(all.len());
    }
    let process = Arc::new(Process::new(all.len(), of_process.jobs_at_once, shutdown.clone()));
    let (mut clusters, mut views, mut reloaded) = (Vec::new(), Vec::new(), Vec::new());
    for settings in all {
        let settings = Arc::new(Holding::new(settings));
        let cluster = Cluster::new(settings.clone(), process.clone())?;
        views.push(cluster.view.clone());
        reloaded.push((settings, cluster.view.clone()));
        clusters.push(cluster);
    }
    let views = Arc::new(Views(views));

    let mut beside: Tasks<()> = Tasks::default();
    beside.start(reload::follow(cli, hangups, reloaded, process.clone()));
    if let Some(manager) = ServiceManager::find(&|name| std::env::var_os(name)) {
        let views = views.clone();
        beside.start(manager.follow(move || views.looks(), shutdown.clone()));
    }
    if let Some(listener) = listener {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(%address, "metrics at /metrics, health at /healthz and /readyz");
        beside.start(http::serve(listener, views, shutdown.kill.clone()));
    }
    let ended = Box::pin(run_all(clusters)).await;
    beside.stop().await;
    ended
}

/// Whoever gives a process memory knows what it may come to.
fn say_memory(clusters: usize) {
    let (at_most, there) = (memory::bytes_max(clusters) >> 20, memory::bytes_there().map(|bytes| bytes >> 20));
    match there.filter(|there| *there < at_most) {
        Some(there) => tracing::warn!(
            clusters,
            at_most_mib = at_most,
            there_mib = there,
            "with stores that do not answer, and WAL that nothing makes smaller, streaming may take more memory than there is (docs/operations.md, \
             Many clusters)"
        ),
        None => tracing::info!(
            clusters,
            at_most_mib = at_most,
            "streaming takes about so much memory at most, with stores that do not answer, and WAL that nothing makes smaller"
        ),
    }
}

/// Each by itself: a cluster that ends, even by a defect, is the end of no other.
async fn run_all(mut clusters: Vec<Cluster>) -> Result<()> {
    if clusters.len() == 1
        && let Some(only) = clusters.pop()
    {
        return only.run().await;
    }
    let mut running = Tasks::default();
    for cluster in clusters {
        let view = cluster.view.clone();
        let span = tracing::error_span!("of", cluster = %view.cluster);
        let archiving = async move {
            // A task of its own: should it panic, it is known whose it was.
            let mut only = Tasks::default();
            only.start(cluster.run());
            let ended = only.next().await.unwrap_or(Ok(Ok(()))).flatten();
            if let Err(error) = &ended {
                let hint = error.hint_text().unwrap_or_default();
                tracing::error!(%error, hint, "this cluster is not archived any more; the others go on");
                view.ended(error);
            }
            ended.map_err(|error| error.context(format!("cluster {}", view.cluster)))
        };
        running.start(archiving.instrument(span));
    }
    let mut first = Ok(());
    while let Some(ended) = running.next().await {
        first = worth_a_restart(first, ended.flatten());
    }
    first
}

/// What the process says at its end, of two: the first, but for one that a start anew may mend, which the service manager must not
/// be kept from.
fn worth_a_restart(first: Result<()>, next: Result<()>) -> Result<()> {
    match (first, next) {
        (Ok(()), next) => next,
        (Err(first), Err(next)) if !may_pass(&first) && may_pass(&next) => Err(next),
        (first, _) => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_of_one_does_not_keep_another_from_being_started_anew() {
        let ended = |kind| Err(Error::new(kind, "it ended"));
        let kind = |first, next| worth_a_restart(first, next).err().map(|error| error.kind());
        assert_eq!(kind(ended(Kind::Diverged), ended(Kind::Internal)), Some(Kind::Internal));
        assert_eq!(kind(ended(Kind::Postgres), ended(Kind::Internal)), Some(Kind::Postgres));
        assert_eq!(kind(ended(Kind::Diverged), ended(Kind::Damaged)), Some(Kind::Diverged));
        assert_eq!(kind(ended(Kind::Diverged), Ok(())), Some(Kind::Diverged));
        assert_eq!(kind(Ok(()), ended(Kind::Damaged)), Some(Kind::Damaged));
        assert_eq!(kind(Ok(()), Ok(())), None);
    }
}
