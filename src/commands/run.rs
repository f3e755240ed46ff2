//! `seawall run`: streams, stores, acknowledges, and shows how it is doing.

use super::backups::Backups;
use super::names::NameKeeper;
use super::observer::StoreMetrics;
use super::outside::Configured;
use super::service::ServiceManager;
use super::taking::Taker;
use super::{drills, jobs, keys, parts, reload, signals, sizes, troubles};
use crate::archive::{
    ArchiveOptions, ArchiveState, Archiver, IndexKeeper, Phase, PostgresSource, SourceErrorKind, Synchronous,
    keep_index,
};
use crate::cli::Cli;
use crate::config::Settings;
use crate::error::Result;
use crate::history::index::Indexer;
use crate::http::{self, Health};
use crate::metrics::{Metrics, WalObject};
use crate::notify::{Notifier, Trouble, hooks};
use crate::postgres::WalStatus;
use crate::runtime::{Clock, Shutdown, Tasks};
use crate::store::Conditional;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// How long an archiver that ends because of an error waits until somebody has been told.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long what is done on schedule may take to end when the archiver has.
const PUT_AWAY: Duration = Duration::from_secs(20);

/// Runs until a signal, or until something happens that waiting cannot mend.
///
/// # Errors
/// What was wrong at the start, or that later.
pub(super) async fn run(cli: Cli, settings: Settings) -> Result<()> {
    let hangups = reload::signals()?;
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
    let source = PostgresSource::new(info, &settings.slot, clock.clone());
    let source = Arc::new(source.treat_archived_as_applied(settings.run.treat_archived_as_applied));
    let (flush_interval, form) = (settings.run.flush_interval, keys::reading_form(&settings)?);
    match form.recipients.count() {
        0 => tracing::info!(compression = %form.compression, "what is stored is not encrypted"),
        recipients => tracing::info!(compression = %form.compression, recipients, "what is stored is encrypted"),
    }
    let indexer = Indexer::new(form.recipients.count() > 0);
    let options = ArchiveOptions {
        flush_interval,
        form: form.clone(),
        indexer: Some(indexer.clone()),
        latency: Some(metrics.durable_latency()),
        ..ArchiveOptions::default()
    };
    let archiver = Archiver::new(source, store.clone(), &settings.cluster, options, clock.clone());

    let mut services: Tasks<()> = Tasks::default();
    let (health, is_healthy) = watch::channel(health_of(&archiver.state().borrow()));
    services.start(follow_health(archiver.state(), health));
    services.start({
        let form = form.clone();
        let (state, store, cluster) = (archiver.state(), store.clone(), settings.cluster.clone());
        let (kept, counted) = (indexer.clone(), indexer.clone());
        let open = async move || IndexKeeper::open(store.clone(), &cluster, form.clone(), kept.clone()).await;
        keep_index(state, counted, open, shutdown.clone())
    });
    let names = NameKeeper {
        settings: settings.clone(),
        store: store.clone(),
        state: archiver.state(),
        clock: clock.clone(),
        stored: None,
        told: Vec::new(),
    };
    services.start(names.run());
    services.start(drills::follow(settings.clone(), store.clone(), metrics.clone()));
    if let Some(manager) = ServiceManager::find(&|name| std::env::var_os(name)) {
        services.start(manager.follow(archiver.state(), health_of, shutdown.clone()));
    }
    services.start(sizes::follow(settings.clone(), store.clone(), metrics.clone(), archiver.state()));
    let notifier = Notifier::new(&settings.cluster, hooks(&settings.notify.hooks)?, clock.clone(), &mut services);
    services.start(troubles::follow(archiver.state(), notifier.clone(), settings.notify.stream_after));
    let (reloaded, settings) = watch::channel(Arc::new(settings));
    let taker = Taker {
        settings,
        form,
        store,
        outside: Arc::new(Configured),
        metrics: metrics.clone(),
        notifier: notifier.clone(),
        clock: clock.clone(),
        one_at_a_time: Mutex::default(),
    };
    let taker = Arc::new(taker);
    services.start(Box::pin(Backups { taker: taker.clone(), state: archiver.state() }.run()));
    services.start(Box::pin(jobs::run(taker.clone(), archiver.state())));
    services.start(reload::follow(cli, hangups, reloaded, taker));
    if let Some(listener) = listener {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(%address, "metrics at /metrics, health at /healthz and /readyz");
        let (metrics, state) = (metrics.clone(), archiver.state());
        let render = move || {
            show(&metrics, &state.borrow(), clock.now());
            let (unreadable, unstored) = indexer.failures();
            metrics.count_index_failures(unreadable, unstored);
            metrics.render()
        };
        services.start(http::serve(listener, is_healthy, render, shutdown.kill.clone()));
    }
    // A task: then the thread that waits for the sockets is the one that reads them, and wakes no other for it.
    let state = archiver.state();
    let mut archiving = Tasks::default();
    archiving.start(async move { archiver.run(&shutdown).await });
    let ended = match archiving.next().await {
        Some(ended) => ended?,
        None => Ok(()),
    };
    if let Err(error) = &ended {
        metrics.set_stopped(error.kind());
        notifier.raise(Trouble::Stopped, format!("the archiver has ended: {error}"));
        notifier.flush(LAST_WORDS).await;
    }
    // A drill that is under way has a server and a directory to take away.
    if tokio::time::timeout(PUT_AWAY, services.stop()).await.is_err() {
        tracing::warn!("what was being done on schedule does not end, and is left");
    }
    let state = state.borrow().clone();
    tracing::info!(received = %state.received, durable = %state.durable, "stopped");
    ended
}

/// Copies what the archiver shows into the metrics.
fn show(metrics: &Metrics, state: &ArchiveState, now: Timestamp) {
    let lost_seconds = state.rpo.seconds(Instant::now());
    metrics.set_rpo(lost_seconds, state.rpo.bytes());
    let lost = Duration::try_from_secs_f64(lost_seconds).ok();
    metrics.set_newest_restorable(lost.and_then(|lost| now.checked_sub(lost).ok()));
    metrics.set_server_certificate_end(state.certificate_end);
    metrics.set_connected(state.phase == Phase::Streaming);
    metrics.set_hot_spare(state.phase == Phase::HotSpare);
    let waits = state.commit_waits;
    let is_synchronous = waits.synchronous != Synchronous::No;
    metrics.set_synchronous(is_synchronous, waits.synchronous == Synchronous::Captured);
    metrics.set_remote_apply(is_synchronous && waits.remote_apply);
    if let Some(timeline) = state.timeline {
        metrics.set_timeline(timeline);
    }
    metrics.set_server_lsn(state.rpo.server_lsn());
    metrics.set_received_lsn(state.received);
    metrics.set_durable_lsn(state.durable);
    metrics.count_reconnects(state.counts.connections.saturating_sub(1));
    for (kind, total) in SourceErrorKind::ALL.into_iter().zip(state.counts.interruptions) {
        metrics.count_interruptions(kind.name(), total);
    }
    metrics.count_wal_received_bytes(state.counts.received_bytes);
    metrics.count_wal_retries(state.counts.store_failures);
    metrics.count_tails(state.counts.deleted, state.counts.undeleted);
    metrics.count_wal_objects(WalObject::Block, state.counts.blocks);
    metrics.count_wal_objects(WalObject::Tail, state.counts.tails);
    metrics.set_buffered_bytes(state.in_flight_bytes);
    let slot = state.slot.as_ref();
    let server = Some(state.rpo.server_lsn()).filter(|lsn| lsn.is_valid());
    metrics.set_slot(
        slot.and_then(|slot| slot.status).map(WalStatus::name),
        slot.and_then(|slot| slot.safe_wal_bytes),
        slot.and_then(|slot| slot.restart_lsn).zip(server).map(|(restart, server)| server - restart),
    );
    metrics.set_tails_live(usize::try_from(state.live_tails).unwrap_or(usize::MAX));
}

fn health_of(state: &ArchiveState) -> Health {
    let (ready, reason) = match state.phase {
        Phase::Streaming if !state.is_compared => {
            (false, "comparing what is stored with what the server has".to_owned())
        }
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
