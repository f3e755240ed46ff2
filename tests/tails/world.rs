//! A server, a store, and an archiver between them that is started, stopped and killed, on a paused clock.

use crate::server::{SYSTEM_IDENTIFIER, Server, TIMELINE, wal};
use crate::store::{Latency, WatchedStore};
use jiff::Timestamp;
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver};
use seawall::codec::Compression;
use seawall::repository::{Layout, Repository, WalReader};
use seawall::runtime::{Clock, RetryPolicy, Shutdown};
use seawall::store::{MemoryStore, RetryingStore, Store};
use seawall::wal::{Lsn, SegmentSize, WalRange};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// The cluster's name in the repository.
pub const CLUSTER: &str = "main";

pub const MIB: u64 = 1 << 20;

pub const MILLISECOND: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Runs a story on a paused clock, on one thread: it repeats to the last request.
pub fn on_a_paused_clock<T>(story: impl Future<Output = T>) -> T {
    seawall::runtime::make_repeatable(7);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(story)
}

pub struct World {
    pub server: Server,
    pub store: WatchedStore,
    pub options: ArchiveOptions,
    pub size: SegmentSize,
    pub begin: Lsn,
    clock: Clock,
    process: Option<Process>,
}

struct Process {
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: JoinHandle<seawall::error::Result<()>>,
}

impl World {
    /// An archiver with these options is streaming from an idle server.
    pub async fn begin(options: ArchiveOptions, segment_bytes: u64, latency: Latency) -> World {
        let clock = Clock::simulated(Timestamp::from_second(1_800_000_000).unwrap());
        let size = SegmentSize::new(segment_bytes).unwrap();
        let memory = MemoryStore::with_clock(clock.clone());
        let store = WatchedStore::new(memory, size, latency, options.garbage_age);
        let server = Server::new(size, clock.clone());
        let begin = server.flush();
        let mut world = World { server, store, options, size, begin, clock, process: None };
        world.start().await;
        world
    }

    /// Starts an archiver and waits until it streams and has seen to what is there.
    pub async fn start(&mut self) {
        let store: Arc<dyn Store> = Arc::new(RetryingStore::new(Arc::new(self.store.clone()), RetryPolicy::STORE));
        let source = Arc::new(self.server.clone());
        let archiver = Archiver::new(source, store, CLUSTER, self.options.clone(), self.clock.clone());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        let mut started = state.clone();
        self.process = Some(Process { shutdown, state, task });
        started.wait_for(|state| state.counts.connections > 0).await.unwrap();
        // The second connection has asked whether commits wait.
        sleep(SECOND / 100).await;
    }

    /// As `kill -9`.
    pub async fn kill(&mut self) {
        let process = self.process.take().expect("an archiver runs");
        assert!(!process.task.is_finished(), "the archiver ended by itself: {:?}", process.task.await);
        process.task.abort();
        let _ = process.task.await;
    }

    /// SIGTERM.
    pub async fn stop(&mut self) {
        let process = self.process.take().expect("an archiver runs");
        process.shutdown.begin_stop();
        process.task.await.expect("no panic").expect("a good end");
    }

    pub fn state(&self) -> ArchiveState {
        self.process.as_ref().expect("an archiver runs").state.borrow().clone()
    }

    /// The server writes `bytes` every `interval`, for so long.
    pub async fn trickle(&mut self, bytes: u64, interval: Duration, time: Duration) {
        let begun = Instant::now();
        let writes = (time.as_nanos() / interval.as_nanos()) as u32;
        for number in 1..=writes {
            self.server.write(bytes);
            sleep_until(begun + interval * number).await;
        }
        let task = &self.process.as_ref().expect("an archiver runs").task;
        assert!(!task.is_finished(), "the archiver ended by itself");
    }

    pub fn written(&self) -> u64 {
        self.server.flush() - self.begin
    }

    pub fn reader(&self) -> WalReader {
        let layout = Layout::new(CLUSTER, self.size, Compression::Lz4);
        let repository = Repository { store: Arc::new(self.store.clone()), layout };
        WalReader::new(repository, SYSTEM_IDENTIFIER)
    }

    /// Everything the server wrote is safe, and reads as it was written.
    pub async fn assert_readable(&self) {
        self.server.all_safe().await;
        let mut position = self.begin;
        while position < self.server.flush() {
            let end = self.size.block_end(position).min(self.server.flush());
            let range = WalRange { timeline: TIMELINE, start: position, end };
            let window = self.reader().read_range(range).await.expect("what was stored is readable");
            assert_eq!(window.end, end, "nothing covers {}", window.end);
            assert!(window.pieces.concat() == wal(position, end), "{range} reads differently");
            position = end;
        }
        assert_eq!(self.store.violations(), Vec::<String>::new());
    }
}
