//! `seawall run`: every cluster streams, stores and acknowledges by itself; they are shown together, and told together when to stop.

use super::cluster::{Cluster, Process};
use super::service::ServiceManager;
use super::view::Views;
use super::{reload, signals};
use crate::cli::Cli;
use crate::config::Settings;
use crate::error::Result;
use crate::http;
use crate::runtime::{Clock, Shutdown, Tasks};
use std::sync::Arc;
use tokio::sync::watch;

/// Runs until a signal, or until something happens that waiting cannot mend.
///
/// # Errors
/// What was wrong at the start, or that later.
pub(super) async fn run(cli: Cli, settings: Settings) -> Result<()> {
    let hangups = reload::signals()?;
    let shutdown = Shutdown::default();
    let _signals = signals::watch(shutdown.clone())?;
    let listener = match settings.run.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let process = Arc::new(Process { clock: Clock::system(), shutdown: shutdown.clone() });
    let (reloaded, settings) = watch::channel(Arc::new(settings));
    let cluster = Cluster::new(settings, process.clone())?;
    let views = Arc::new(Views(vec![cluster.view.clone()]));

    let mut beside: Tasks<()> = Tasks::default();
    beside.start(reload::follow(cli, hangups, reloaded, cluster.view.clone(), process.clock.clone()));
    if let Some(manager) = ServiceManager::find(&|name| std::env::var_os(name)) {
        let views = views.clone();
        beside.start(manager.follow(move || views.looks(), shutdown.clone()));
    }
    if let Some(listener) = listener {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(%address, "metrics at /metrics, health at /healthz and /readyz");
        beside.start(http::serve(listener, views, shutdown.kill.clone()));
    }
    let ended = Box::pin(cluster.run()).await;
    beside.stop().await;
    ended
}
