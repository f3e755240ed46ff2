//! One cluster of `seawall run`: its archiver, and everything that goes on beside it. What others see of it is a `View`. Its trouble
//! is its own: whatever ends here ends nobody else's, and what it has in common with others (`Process`) none can take from all.

use super::backups::Backups;
use super::holding::Holding;
use super::names::NameKeeper;
use super::observer::StoreMetrics;
use super::outside::Configured;
use super::results::Results;
use super::taking::Taker;
use super::turns::Turns;
use super::view::{Running, View};
use super::{jobs, keys, parts, results, sizes, troubles};
use crate::archive::{ArchiveOptions, Archiver, Claims, CommonMemory, IndexKeeper, PostgresSource, keep_index};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::history::index::Indexer;
use crate::notify::{Notifier, Trouble, hooks};
use crate::runtime::{Backoff, Clock, RetryPolicy, Shutdown, Tasks};
use crate::store::{Conditional, Opener, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an archiver that ends because of an error waits until somebody has been told.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long what is done on schedule may take to end when the archiver has.
const PUT_AWAY: Duration = Duration::from_secs(20);

/// Of several clusters, one that has ended by what may pass begins again: the service manager would start it again if it were alone.
const BEGIN_AGAIN: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(5), longest_pause: Duration::from_secs(5 * 60), budget: None };

/// Several clusters have so much memory in common, in bytes, beside what each has for itself: as much as two that catch up can use.
pub(super) const COMMON_MEMORY_BYTES: u64 = 64 << 20;

/// What the clusters of a process have in common.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) clock: Clock,
    pub(super) shutdown: Shutdown,
    /// Where there are several.
    memory: Option<CommonMemory>,
    stores: Opener,
    claims: Claims,
    turns: Turns,
}

impl Process {
    /// For so many clusters; of several, so many do at once what is heavy and can wait.
    pub(super) fn new(clusters: usize, jobs_at_once: usize, shutdown: Shutdown) -> Process {
        let jobs_at_once = if clusters > 1 { jobs_at_once } else { Turns::MOST };
        let memory = (clusters > 1).then(|| CommonMemory::new(COMMON_MEMORY_BYTES));
        let (stores, claims, turns) = (Opener::default(), Claims::default(), Turns::new(jobs_at_once));
        Process { clock: Clock::system(), shutdown, memory, stores, claims, turns }
    }

    /// Has whoever gives credentials for stores asked again, with the next request.
    pub(super) async fn renew_credentials(&self) {
        self.stores.renew().await;
    }

    fn has_several(&self) -> bool {
        self.memory.is_some()
    }
}

/// One cluster, to be archived.
pub(super) struct Cluster {
    pub(super) view: Arc<View>,
    process: Arc<Process>,
    stores: Opener,
    /// They change on SIGHUP.
    settings: Arc<Holding>,
    notifier: Notifier,
    _hooks: Tasks<()>,
}

impl Cluster {
    /// A cluster that has not begun. `settings` are the ones that hold, for as long as it lasts.
    ///
    /// # Errors
    /// If notifications cannot be sent as the settings want it.
    pub(super) fn new(settings: Arc<Holding>, process: Arc<Process>) -> Result<Cluster> {
        let now = settings.now();
        let mut tasks = Tasks::default();
        let notifier = Notifier::new(&now.cluster, hooks(&now.notify.hooks)?, process.clock.clone(), &mut tasks);
        let view = Arc::new(View::new(&now.cluster, notifier.clone(), process.clock.clone())?);
        let shared = &process.stores;
        let stores = if process.has_several() { shared.for_one_of_several() } else { shared.clone() };
        Ok(Cluster { view, process, stores, settings, notifier, _hooks: tasks })
    }

    /// Runs until a signal, or until something happens that waiting cannot mend. One of several begins again where it can.
    ///
    /// # Errors
    /// What was wrong at the start, or that later.
    pub(super) async fn run(self) -> Result<()> {
        let mut backoff = Backoff::new(BEGIN_AGAIN);
        loop {
            let begun = Instant::now();
            let Err(error) = self.archive().await else { return Ok(()) };
            if begun.elapsed() > BEGIN_AGAIN.longest_pause {
                backoff.reset();
            }
            let begins_again = self.process.has_several() && may_pass(&error);
            match begins_again {
                true => self.view.pauses(&error),
                false => self.view.ended(&error),
            }
            // Whoever starts one that is alone sees that it does not start.
            if self.process.has_several() || self.view.has_run() {
                self.notifier.raise(Trouble::Stopped, format!("the archiver has ended: {error}"));
            }
            if !begins_again {
                self.notifier.flush(LAST_WORDS).await;
                return Err(error);
            }
            let (pause, hint) = (backoff.next_pause(), error.hint_text().unwrap_or_default());
            tracing::error!(%error, hint, pause_seconds = pause.as_secs_f64(), "this cluster is not archived; beginning again");
            let mut reloaded = self.settings.subscribe();
            tokio::select! {
                () = self.process.shutdown.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                // Somebody may have mended it.
                _ = reloaded.changed() => {}
            }
        }
    }

    async fn archive(&self) -> Result<()> {
        let (clock, shutdown) = (self.process.clock.clone(), self.process.shutdown.clone());
        let settings = self.settings.begins();
        let metrics = self.view.begins()?;
        let info = parts::connection(&settings)?;
        let observer = Arc::new(StoreMetrics::new(metrics.clone()));
        // Nothing is begun yet that would have to be finished: a stop need not wait for a store that hangs.
        let store = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => return Ok(()),
            store = self.open(&settings, observer) => store?,
        };
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
            common: self.process.memory.clone(),
            claim: Some(self.process.claims.for_slot(&settings.slot)),
            ..ArchiveOptions::default()
        };
        let archiver = Archiver::new(source, store.clone(), &settings.cluster, options, clock.clone());
        let state = archiver.state();

        let mut services: Tasks<()> = Tasks::default();
        services.start({
            let form = form.clone();
            let (state, store, cluster) = (archiver.state(), store.clone(), settings.cluster.clone());
            let (kept, counted) = (indexer.clone(), indexer.clone());
            let open = async move || IndexKeeper::open(store.clone(), &cluster, form.clone(), kept.clone()).await;
            keep_index(state, counted, open, shutdown.clone())
        });
        let names = NameKeeper {
            settings: settings.as_ref().clone(),
            store: store.clone(),
            state: archiver.state(),
            clock: clock.clone(),
            stored: None,
            told: Vec::new(),
        };
        services.start(names.run());
        services.start(sizes::follow(settings.as_ref().clone(), store.clone(), metrics.clone(), archiver.state()));
        let limits = troubles::Limits { stream: settings.notify.stream_after, rpo: settings.notify.rpo_above };
        services.start(troubles::follow(archiver.state(), self.notifier.clone(), limits));
        let taker = Arc::new(Taker {
            settings: self.settings.subscribe(),
            form,
            store,
            outside: Arc::new(Configured),
            metrics,
            notifier: self.notifier.clone(),
            clock,
            turns: self.process.turns.clone(),
            one_at_a_time: Mutex::default(),
            results: Results::default(),
        });
        services.start(results::follow(taker.clone(), archiver.state()));
        services.start(Box::pin(Backups { taker: taker.clone(), state: archiver.state() }.run()));
        services.start(Box::pin(jobs::run(taker.clone(), archiver.state())));
        self.view.runs(Running { state: archiver.state(), indexer, taker });
        // A task: then the thread that waits for the sockets is the one that reads them, and wakes no other for it.
        let mut archiving = Tasks::default();
        archiving.start(async move { archiver.run(&shutdown).await });
        let ended = match archiving.next().await {
            Some(ended) => ended.flatten(),
            None => Ok(()),
        };
        // A drill that is under way has a server and a directory to take away.
        if tokio::time::timeout(PUT_AWAY, services.stop()).await.is_err() {
            tracing::warn!("what was being done on schedule does not end, and is left");
        }
        let state = state.borrow().clone();
        tracing::info!(received = %state.received, durable = %state.durable, "stopped");
        ended
    }

    async fn open(&self, settings: &Settings, observer: Arc<StoreMetrics>) -> Result<Arc<dyn Store>> {
        let store = self.stores.open(settings.repo()?, &settings.store, observer).await?;
        let unique = format!("{:x}p{}", self.process.clock.now().as_microsecond(), std::process::id());
        parts::require_conditional_writes(settings, store.as_ref(), &unique).await?;
        Ok(store)
    }
}

/// A server that refuses us may take us later, and a store too; a defect may be met once. Two histories do not become one by waiting.
pub(super) fn may_pass(error: &Error) -> bool {
    !matches!(error.kind(), Kind::Diverged | Kind::Damaged)
}
