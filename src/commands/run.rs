//! `seawall run`: streams, stores, acknowledges, and shows how it is doing.

use super::observer::StoreMetrics;
use super::{parts, signals};
use crate::archive::{ArchiveOptions, ArchiveState, Archiver, Phase, PostgresSource};
use crate::config::Settings;
use crate::error::Result;
use crate::http::{self, Health};
use crate::metrics::{Metrics, WalObject};
use crate::repository::{BackupDocument, Key, Repository};
use crate::runtime::{Clock, Shutdown, Tasks};
use crate::store::{Conditional, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the newest base backup, which another process may have taken, is looked up for the metrics.
const BACKUP_LOOK: Duration = Duration::from_secs(3600);

/// Runs until a signal, or until something happens that waiting cannot mend.
///
/// # Errors
/// What was wrong at the start, or that later.
pub(super) async fn run(settings: Settings) -> Result<()> {
    let shutdown = Shutdown::default();
    let _signals = signals::watch(shutdown.clone())?;
    let clock = Clock::system();
    let metrics = Metrics::new(&settings.cluster)?;
    let info = parts::connection(&settings)?;
    let store = parts::observed_store(&settings, Arc::new(StoreMetrics::new(metrics.clone()))).await?;
    let listener = match settings.run.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let unique = format!("{:x}p{}", clock.now().as_microsecond(), std::process::id());
    parts::require_conditional_writes(&settings, store.as_ref(), &unique).await?;
    let is_emulated = settings.store.s3.conditional_writes == Conditional::Head;
    metrics.set_conditional_writes_emulated(is_emulated);
    if is_emulated {
        tracing::warn!("conditional_writes = \"head\": two archivers at once could overwrite each other's objects");
    }
    let source = Arc::new(PostgresSource::new(info, &settings.slot, clock.clone()));
    let options = ArchiveOptions { flush_interval: settings.run.flush_interval, ..ArchiveOptions::default() };
    let archiver = Archiver::new(source, store.clone(), &settings.cluster, options, clock);

    let mut services: Tasks<()> = Tasks::default();
    let (health, is_healthy) = watch::channel(health_of(&archiver.state().borrow()));
    services.start(follow_health(archiver.state(), health));
    services.start(follow_backups(settings.clone(), store, metrics.clone()));
    if let Some(listener) = listener {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(%address, "metrics at /metrics, health at /healthz and /readyz");
        let state = archiver.state();
        let render = move || {
            show(&metrics, &state.borrow());
            metrics.render()
        };
        services.start(http::serve(listener, is_healthy, render, shutdown.kill.clone()));
    }
    let ended = Box::pin(archiver.run(&shutdown)).await;
    let state = archiver.state().borrow().clone();
    tracing::info!(received = %state.received, durable = %state.durable, "stopped");
    ended
}

/// Copies what the archiver shows into the metrics.
fn show(metrics: &Metrics, state: &ArchiveState) {
    metrics.set_rpo(state.rpo.seconds(Instant::now()), state.rpo.bytes());
    metrics.set_connected(state.phase == Phase::Streaming);
    if let Some(timeline) = state.timeline {
        metrics.set_timeline(timeline);
    }
    metrics.set_server_lsn(state.rpo.server_lsn());
    metrics.set_received_lsn(state.received);
    metrics.set_durable_lsn(state.durable);
    metrics.count_reconnects(state.counts.connections.saturating_sub(1));
    metrics.count_wal_objects(WalObject::Block, state.counts.blocks);
    metrics.count_wal_objects(WalObject::Tail, state.counts.tails);
    metrics.set_buffered_bytes(state.in_flight_bytes);
    metrics.set_tails_live(usize::try_from(state.live_tails).unwrap_or(usize::MAX));
}

fn health_of(state: &ArchiveState) -> Health {
    let (ready, reason) = match state.phase {
        Phase::Streaming => (true, format!("streaming, durable up to {}", state.durable)),
        Phase::HotSpare => (true, "hot spare: another archiver holds the slot".to_owned()),
        Phase::Stopping => (false, "stopping".to_owned()),
        Phase::Connecting => {
            let why = state.last_error.clone().map(|error| format!(": {error}")).unwrap_or_default();
            (false, format!("not streaming{why}"))
        }
    };
    Health { ready, reason }
}

async fn follow_health(mut state: watch::Receiver<ArchiveState>, health: watch::Sender<Health>) {
    while state.changed().await.is_ok() {
        let now = health_of(&state.borrow_and_update());
        health.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

/// Keeps the metrics of the newest base backup and of recorded holes up to date.
async fn follow_backups(settings: Settings, store: Arc<dyn Store>, metrics: Metrics) {
    loop {
        // A store that fails shows in its own metrics; the numbers here stay as they were.
        if let Ok((repository, _)) = parts::repository_in(&settings, store.clone()).await {
            if let Ok(Some(backup)) = newest_backup(&repository).await {
                let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
                metrics.set_last_backup(backup.ended_at, backup.plain_bytes, took);
            }
            if let Ok(gaps) = count_gaps(&repository).await {
                metrics.set_gaps(gaps);
            }
        }
        tokio::time::sleep(BACKUP_LOOK).await;
    }
}

/// Lists the index alone: the WAL itself may be years of objects.
async fn count_gaps(repository: &Repository) -> Result<u64> {
    let mut gaps = 0;
    for timeline in repository.read_timelines().await? {
        gaps += repository.read_gaps(timeline).await?.len() as u64;
    }
    Ok(gaps)
}

async fn newest_backup(repository: &Repository) -> Result<Option<BackupDocument>> {
    let level = repository.store.list_level(&repository.layout.base_prefix()).await?;
    let mut ids: Vec<_> =
        level.prefixes.iter().filter_map(|prefix| repository.layout.parse_backup_prefix(prefix)).collect();
    ids.sort();
    for id in ids.into_iter().rev() {
        if let Some(document) = repository.read_document(&Key::BackupEnd(id)).await? {
            return Ok(Some(document));
        }
    }
    Ok(None)
}
