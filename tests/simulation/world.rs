//! One simulated world: a server, a store, and an archiver that is started, stopped and killed.

use crate::counts::Counts;
use crate::ledger::{CLUSTER, Ledger};
use crate::server::{SYSTEM_IDENTIFIER, Server};
use crate::store::SimStore;
use crate::wal::Wal;
use jiff::Timestamp;
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver};
use seawall::error::{Error, Kind};
use seawall::repository::{Repository, WalReader};
use seawall::runtime::{Clock, RetryPolicy, Shutdown};
use seawall::store::{MemoryStore, RetryingStore, Store};
use seawall::wal::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take once nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

pub struct World {
    pub server: Server,
    pub store: SimStore,
    pub ledger: Arc<Ledger>,
    pub counts: Arc<Counts>,
    pub options: ArchiveOptions,
    pub clock: Clock,
    /// As the program has it: one layer that tries again. Without it the archiver sees every failure itself.
    pub retries: bool,
    process: Option<Process>,
}

struct Process {
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

impl World {
    pub fn new(seed: u64, counts: Arc<Counts>) -> World {
        let clock = Clock::simulated(Timestamp::from_second(1_800_000_000).unwrap());
        let ledger = Arc::new(Ledger::new(Arc::new(Wal::new(seed))));
        let memory = MemoryStore::with_clock(clock.clone());
        let store = SimStore::new(memory, ledger.clone(), counts.clone(), seed);
        let server = Server::new(ledger.clone(), counts.clone(), clock.clone(), seed);
        let options = ArchiveOptions::default();
        World { server, store, ledger, counts, options, clock, retries: true, process: None }
    }

    pub fn start(&mut self) {
        let mut store: Arc<dyn Store> = Arc::new(self.store.clone());
        if self.retries {
            store = Arc::new(RetryingStore::new(store, RetryPolicy::STORE));
        }
        let source = Arc::new(self.server.clone());
        let archiver = Archiver::new(source, store, CLUSTER, self.options.clone(), self.clock.clone());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        self.process = Some(Process { shutdown, state, task });
    }

    /// As `kill -9`.
    pub async fn crash(&mut self) {
        if let Some(process) = self.process.take() {
            process.task.abort();
            if let Err(error) = process.task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// Somebody starts an archiver again that gave up because the store or the server did not answer at its start.
    pub async fn keep_alive(&mut self) {
        self.store.set_kept(self.server.kept());
        self.server.settle();
        if self.process.as_ref().is_some_and(|process| process.task.is_finished()) {
            let process = self.process.take().unwrap();
            match process.task.await {
                Ok(Ok(())) => self.ledger.violate("the archiver ended without being told to".to_owned()),
                Ok(Err(error)) if matches!(error.kind(), Kind::Store | Kind::Postgres) => {
                    self.counts.add("archiver: gave up at its start");
                    // As systemd and Kubernetes do.
                    sleep(Duration::from_secs(3)).await;
                }
                Ok(Err(error)) => self.ledger.violate(format!("the archiver gave up: {error}: {error:?}")),
                Err(error) => self.ledger.violate(format!("the archiver panicked: {error}")),
            }
            self.start();
        }
    }

    /// Lets time pass.
    pub async fn live(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.keep_alive().await;
            sleep(Duration::from_secs(1).min(until - Instant::now())).await;
        }
        self.keep_alive().await;
    }

    /// SIGTERM: what was received is stored before the archiver goes, and says so.
    pub async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.shutdown.begin_stop();
        let Ok(ended) = timeout(PATIENCE, &mut process.task).await else {
            self.ledger.violate(format!("a stop does not end: {:?}", process.state.borrow()));
            process.task.abort();
            return;
        };
        match ended {
            Ok(Ok(())) => {
                let state = process.state.borrow();
                self.counts.add("archiver: stopped");
                if state.phase == seawall::archive::Phase::Stopping && state.durable < state.received {
                    // Within the overlap what was received again is stored already.
                    self.counts.add("archiver: stopped within the overlap");
                    let durable = self.ledger.told(self.server.incarnation(), self.server.timeline());
                    if durable.is_some_and(|durable| durable < state.received) {
                        self.ledger.violate(format!("stopped with {} of {} stored", state.durable, state.received));
                    }
                }
            }
            Ok(Err(error)) if matches!(error.kind(), Kind::Store | Kind::Postgres) => {}
            Ok(Err(error)) => self.ledger.violate(format!("the archiver gave up: {error}: {error:?}")),
            Err(error) => self.ledger.violate(format!("the archiver panicked: {error}")),
        }
    }

    pub fn state(&self) -> ArchiveState {
        self.process.as_ref().expect("an archiver runs").state.borrow().clone()
    }

    /// Waits until the server was told that everything it has is safe.
    pub async fn catch_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.keep_alive().await;
            let told = self.ledger.told(self.server.incarnation(), self.server.timeline());
            if told.is_some_and(|told| told >= self.server.flush()) || !self.ledger.violations().is_empty() {
                return;
            }
            if Instant::now() > deadline {
                self.ledger.violate(format!(
                    "stuck: the server is at {} on {}, it was told {told:?}; {:?}",
                    self.server.flush(),
                    self.server.timeline(),
                    self.process.as_ref().map(|process| process.state.borrow().clone())
                ));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Nothing fails any more: the archiver catches up, stops, and everything that was promised is read back.
    pub async fn finish(&mut self) {
        self.store.set_faulty(false);
        self.server.set_faulty(false);
        // A server whose end is the first byte of a segment may have nothing that could be acknowledged again.
        self.live(Duration::from_secs(90)).await;
        self.server.write(100);
        self.catch_up().await;
        if self.ledger.violations().is_empty() {
            self.stop().await;
            self.read_back().await;
        }
        self.crash().await;
    }

    async fn read_back(&self) {
        let store: Arc<dyn Store> = Arc::new(self.store.memory.clone());
        let reader = WalReader::new(Repository { store, layout: self.ledger.layout.clone() }, SYSTEM_IDENTIFIER);
        for range in self.ledger.promised() {
            match reader.read_range(range).await {
                Ok(window) => {
                    let read = window.pieces.concat();
                    if window.end != range.end || read != self.ledger.wal.bytes(range.timeline, range.start, range.end)
                    {
                        self.ledger
                            .violate(format!("{range} was promised and reads differently, up to {}", window.end));
                    }
                    self.counts.add("ranges read back");
                }
                Err(error) => self.ledger.violate(format!("{range} was promised and cannot be read: {error}")),
            }
        }
        assert!(Lsn::INVALID < self.server.flush());
    }
}
