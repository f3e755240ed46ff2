//! One simulated world: a server, a store, and archivers that are started, frozen, stopped and killed.

use crate::counts::Counts;
use crate::defects::Defect;
use crate::gate::{Gate, Gated};
use crate::invariant::Invariant;
use crate::ledger::{CLUSTER, Ledger, writing_form};
use crate::promises::{self, Marker};
use crate::server::Server;
use crate::store::SimStore;
use crate::wal::Wal;
use jiff::Timestamp;
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver, CommonMemory, Source};
use seawall::error::{Error, Kind};
use seawall::repository::BackupId;
use seawall::runtime::{Clock, RetryPolicy, Shutdown};
use seawall::store::{MemoryStore, RetryingStore, Store};
use seawall::wal::{Lsn, SegmentSize};
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
    /// What is wrong on purpose.
    pub defect: Option<Defect>,
    pub markers: Vec<Marker>,
    /// Begun so far.
    backups: u32,
    /// A backup that is under way.
    pending: Option<Marker>,
    processes: Vec<Process>,
    random: fastrand::Rng,
}

struct Process {
    gate: Gate,
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

/// Often so little that what is stored waits for its turn, and sometimes next to nothing.
fn encoded_bytes_max(seed: u64) -> u64 {
    let segment_bytes = crate::wal::SEGMENT_BYTES;
    match seed % 5 {
        0 => 0,
        1 => segment_bytes / 16,
        2 => 2 * segment_bytes,
        // What is compressed ahead leaves three megabytes.
        3 => (3 << 20) + segment_bytes / 4,
        _ => ArchiveOptions::default().encoded_bytes_max,
    }
}

/// Of half of the seeds the archivers have memory in common, and next to nothing of it: then pieces of WAL are packed as they come.
fn common_memory(seed: u64) -> Option<CommonMemory> {
    match seed / 8 % 4 {
        0 => Some(CommonMemory::new(0)),
        1 => Some(CommonMemory::new(crate::wal::SEGMENT_BYTES / 4)),
        _ => None,
    }
}

impl World {
    pub fn new(seed: u64, counts: Arc<Counts>) -> World {
        World::with_segments(seed, counts, crate::wal::SEGMENT_BYTES)
    }

    pub fn with_segments(seed: u64, counts: Arc<Counts>, segment_bytes: u64) -> World {
        let clock = Clock::simulated(Timestamp::from_second(1_800_000_000).unwrap());
        let size = SegmentSize::new(segment_bytes).unwrap();
        let ledger = Arc::new(Ledger::new(Arc::new(Wal::new(seed, size))));
        let memory = MemoryStore::with_clock(clock.clone());
        let store = SimStore::new(memory, ledger.clone(), counts.clone(), seed);
        let server = Server::new(ledger.clone(), counts.clone(), clock.clone(), seed);
        World {
            server,
            store,
            ledger,
            counts,
            options: ArchiveOptions {
                form: writing_form(seed),
                encoded_bytes_max: encoded_bytes_max(seed),
                common: common_memory(seed),
                ..ArchiveOptions::default()
            },
            clock,
            retries: true,
            defect: None,
            markers: Vec::new(),
            backups: 0,
            pending: None,
            processes: Vec::new(),
            random: fastrand::Rng::with_seed(seed ^ 0x0123_4567),
        }
    }

    pub fn assert_clean(&self) {
        let violations = self.ledger.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Starts an archiver: the first, the next after another, or one beside another.
    pub fn start(&mut self) {
        let gate = Gate::new();
        let mut store: Arc<dyn Store> = Arc::new(self.store.clone());
        let mut source: Arc<dyn Source> = Arc::new(self.server.clone());
        if let Some(defect) = self.defect {
            (store, source) = defect.build(&self.store, source);
        }
        store = Arc::new(Gated { inner: store, gate: gate.clone() });
        source = Arc::new(Gated { inner: source, gate: gate.clone() });
        if self.retries {
            store = Arc::new(RetryingStore::new(store, RetryPolicy::STORE));
        }
        let archiver = Archiver::new(source, store, CLUSTER, self.options.clone(), self.clock.clone());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        self.processes.push(Process { gate, shutdown, state, task });
        self.server.set_clients(self.processes.len() as u32);
    }

    /// It has packed WAL as it came, which is for those alone that have memory in common.
    fn has_packed(&self, process: &Process) -> bool {
        let packed = process.state.borrow().counts.packed;
        assert!(packed == 0 || self.options.common.is_some(), "one that is alone has packed {packed} blocks");
        packed > 0
    }

    fn pick(&mut self) -> Option<usize> {
        (!self.processes.is_empty()).then(|| self.random.usize(0..self.processes.len()))
    }

    /// `kill -9` for one of them.
    pub async fn crash(&mut self) {
        if let Some(index) = self.pick() {
            let process = self.processes.remove(index);
            if self.has_packed(&process) {
                self.counts.add("memory: packed, and the archiver killed");
            }
            process.task.abort();
            if let Err(error) = process.task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    pub async fn crash_all(&mut self) {
        while !self.processes.is_empty() {
            self.crash().await;
        }
    }

    /// One of them stands still, or goes on.
    pub fn freeze(&mut self) {
        if let Some(index) = self.pick() {
            let gate = &self.processes[index].gate;
            self.counts.add(if gate.is_open() { "archiver: frozen" } else { "archiver: thawed" });
            gate.set_open(!gate.is_open());
        }
    }

    fn thaw_all(&self) {
        for process in &self.processes {
            if !process.gate.is_open() {
                self.counts.add("archiver: thawed");
            }
            process.gate.set_open(true);
        }
    }

    /// A base backup begins: its end is a little later, and it exists when all the WAL that it needs is stored.
    pub async fn begin_backup(&mut self) {
        if self.server.is_stranger() || !self.server.is_up() {
            return;
        }
        let (branch, flush, wal) = (self.server.branch(), self.server.flush(), self.ledger.wal.clone());
        let begun = wal.get(branch).begin.max(self.server.removed_before());
        let back = self.random.u64(0..100_000);
        let start = wal.border_before(branch, Lsn(flush.0.saturating_sub(back)).max(begun)).max(begun);
        let start = wal.border_after(branch, start);
        let bytes = self.random.u64(1..50_000);
        self.server.write(bytes);
        self.server.complete_record();
        let stop = self.server.flush();
        let started_at = self.clock.now();
        let id = BackupId::at(started_at, self.backups);
        self.backups += 1;
        let marker = Marker { id, branch, start, stop, started_at };
        if start < stop {
            marker.begin(Arc::new(self.store.memory.clone()), &self.ledger).await;
            self.counts.add("backup: begun");
            self.pending = Some(marker);
        }
    }

    /// Somebody starts an archiver again that gave up because the store or the server did not answer at its start.
    pub async fn keep_alive(&mut self) {
        self.server.settle();
        if let Some(marker) = &self.pending
            && marker.is_covered(Arc::new(self.store.memory.clone()), &self.ledger).await
        {
            // Its server is another one now: it was cut, and there is no such backup.
            if marker.branch == self.server.branch() {
                marker.end(Arc::new(self.store.memory.clone()), &self.ledger, self.clock.now()).await;
                self.counts.add("backup: finished");
                self.markers.extend(self.pending.clone());
            }
            self.pending = None;
        }
        if self.options.common.is_some() {
            let is_full = |process: &Process| process.state.borrow().is_reading_stopped;
            self.processes
                .iter()
                .filter(|process| is_full(process))
                .for_each(|_| self.counts.add("memory: full of what is packed"));
        }
        while let Some(index) = self.processes.iter().position(|process| process.task.is_finished()) {
            let process = self.processes.remove(index);
            match process.task.await {
                Ok(Ok(())) => self.ledger.violate(Invariant::GoesOn, "the archiver ended without being told to"),
                Ok(Err(error)) => self.judge_end(&error),
                Err(error) => self.ledger.violate(Invariant::GoesOn, format!("the archiver panicked: {error}")),
            }
            // As systemd and Kubernetes do.
            sleep(Duration::from_secs(3)).await;
            self.start();
        }
    }

    fn judge_end(&self, error: &Error) {
        match error.kind() {
            Kind::Store | Kind::Postgres => self.counts.add("archiver: gave up at its start"),
            Kind::Diverged if self.server.was_another() => {
                self.counts.add("archiver: refused a server that went its own way");
                self.server.heal();
            }
            _ => self.ledger.violate(Invariant::GoesOn, format!("the archiver gave up: {error}: {error:?}")),
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

    /// SIGTERM: what was received is stored before an archiver goes, and says so.
    pub async fn stop(&mut self) {
        let Some(index) = self.pick() else { return };
        let mut process = self.processes.remove(index);
        process.gate.set_open(true);
        process.shutdown.begin_stop();
        let Ok(ended) = timeout(PATIENCE, &mut process.task).await else {
            self.ledger.violate(Invariant::GoesOn, format!("a stop does not end: {:?}", process.state.borrow()));
            process.task.abort();
            return;
        };
        match ended {
            Ok(Ok(())) => {
                let state = process.state.borrow();
                self.counts.add("archiver: stopped");
                if self.has_packed(&process) {
                    self.counts.add("memory: packed");
                }
                let told = self.ledger.told(self.server.incarnation(), self.server.branch());
                let is_of_now = state.timeline == Some(self.server.timeline());
                if !self.store.is_faulty() && is_of_now && told.is_some_and(|told| told < state.received) {
                    let what =
                        format!("stopped with {} received, {} stored and {told:?} told", state.received, state.durable);
                    self.ledger.violate(Invariant::StopLeavesNothing, what);
                }
            }
            Ok(Err(error)) => self.judge_end(&error),
            Err(error) => self.ledger.violate(Invariant::GoesOn, format!("the archiver panicked: {error}")),
        }
    }

    pub async fn stop_all(&mut self) {
        while !self.processes.is_empty() {
            self.stop().await;
        }
    }

    pub fn state(&self) -> ArchiveState {
        self.processes.first().expect("an archiver runs").state.borrow().clone()
    }

    /// Waits until the server was told that everything it has is safe.
    pub async fn catch_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.keep_alive().await;
            let told = self.ledger.told(self.server.incarnation(), self.server.branch());
            if told.is_some_and(|told| told >= self.server.flush()) || !self.ledger.is_clean() {
                return;
            }
            if Instant::now() > deadline {
                let states: Vec<_> = self.processes.iter().map(|process| process.state.borrow().clone()).collect();
                let (flush, timeline) = (self.server.flush(), self.server.timeline());
                let what = format!("stuck: the server is at {flush} on {timeline}, it was told {told:?}; {states:?}");
                self.ledger.violate(Invariant::GoesOn, what);
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Nothing fails any more: the archiver catches up, stops, and everything that was promised is read back.
    pub async fn finish(&mut self) {
        self.store.set_faulty(false);
        self.server.set_faulty(false);
        self.server.heal();
        self.thaw_all();
        if self.processes.is_empty() {
            self.start();
        }
        // A server whose end is the first byte of a segment may have nothing that could be acknowledged again.
        self.live(Duration::from_secs(90)).await;
        self.server.write(100);
        // A server at rest ends with a whole record; a stream without overlap proves itself by one.
        self.server.complete_record();
        self.catch_up().await;
        // What has just come, and nobody has stored yet
        self.server.write(3_000);
        sleep(Duration::from_millis(150)).await;
        self.stop_all().await;
        if self.ledger.is_clean() {
            self.check_promises().await;
        }
        self.crash_all().await;
    }

    /// Reads back everything that was acknowledged, in the middle of whatever happens, and plans restores to it.
    pub async fn check_promises(&mut self) {
        let span = self.ledger.wal.size.bytes() * 4;
        let flush = self.server.flush();
        let others = [flush + 10_000, Lsn(flush.0.saturating_sub(self.random.u64(0..span)))];
        let (store, counts) = (Arc::new(self.store.memory.clone()), self.counts.clone());
        promises::check(store, &self.ledger, &self.markers, &others, self.clock.now(), |what| counts.add(what)).await;
    }
}
