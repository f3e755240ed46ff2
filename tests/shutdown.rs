//! Ends: of the server while we are attached, of the connection, of ourselves. First to the message, on a paused clock
//! against a server in memory; then on real servers of every major version.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/memory_server.rs"]
mod memory_server;
#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use memory_server::{MemoryServer, Mood, MoodyStore, SEGMENT_BYTES};
use s3::{Fault, Op, S3Server};
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver};
use seawall::error::Error;
use seawall::runtime::{Clock, Shutdown};
use seawall::scratch::{ServerOptions, StopMode};
use seawall::wal::Lsn;
use std::sync::Arc;
use std::time::Duration;
use support::postgres::{Postgres, SERVER_VERSIONS};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// On a paused clock: nothing that goes right takes so long.
const MINUTE: Duration = Duration::from_secs(60);

/// An archiver between a server and a store in memory.
struct Stage {
    server: MemoryServer,
    store: Arc<MoodyStore>,
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

impl Stage {
    /// It has archived everything that the server has.
    async fn new(options: ArchiveOptions) -> Stage {
        let server = MemoryServer::new(Lsn(3 * SEGMENT_BYTES + 1000));
        let mut stage = Stage::before(server, options);
        stage.settle(Lsn(3 * SEGMENT_BYTES + 1000)).await;
        stage
    }

    fn before(server: MemoryServer, options: ArchiveOptions) -> Stage {
        seawall::runtime::make_repeatable(1);
        let store = Arc::new(MoodyStore::new());
        let archiver = Archiver::new(Arc::new(server.clone()), store.clone(), "main", options, Clock::system());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        Stage { server, store, shutdown, state, task }
    }

    async fn settle(&mut self, lsn: Lsn) {
        let settled = self.state.wait_for(|state| state.flushed >= lsn);
        timeout(60 * MINUTE, settled).await.expect("it is acknowledged in time").unwrap();
    }

    async fn receive(&mut self, lsn: Lsn) {
        let received = self.state.wait_for(|state| state.received >= lsn);
        timeout(MINUTE, received).await.expect("it is received in time").unwrap();
    }

    /// Waits until the archiver's connection is gone: how long that took, and how many messages it sent meanwhile.
    async fn leaving(&self) -> (Duration, usize) {
        let (begun, before) = (Instant::now(), self.server.told().len());
        let end = begun + MINUTE;
        while self.server.is_held() {
            assert!(Instant::now() < end, "the archiver holds up the server for ever");
            sleep(Duration::from_millis(1)).await;
        }
        (begun.elapsed(), self.server.told().len() - before)
    }
}

/// A server that does not say where its slot begins (13 and 14, to a plain replication role) leaves no other trace of where
/// archiving began than the first object.
#[tokio::test(start_paused = true)]
async fn nothing_is_stored_before_the_first_bytes_of_all_are() {
    // Given two segments and a half that wait, and a store that does not answer
    let server = MemoryServer::new(Lsn(3 * SEGMENT_BYTES + 1000));
    let mut stage = Stage::before(server, ArchiveOptions::default());
    stage.store.set(Mood::HangsOverWal);
    stage.receive(Lsn(3 * SEGMENT_BYTES + 1000)).await;
    let end = stage.server.write(2 * SEGMENT_BYTES + 5000);
    stage.receive(end).await;
    // When time goes by, and more comes
    for _ in 0..20 {
        let end = stage.server.write(1000);
        stage.receive(end).await;
        sleep(Duration::from_secs(1)).await;
    }
    // Then the store was asked for nothing but the first segment's first bytes
    let asked = stage.store.asked();
    let wal: Vec<&String> = asked.iter().filter(|name| name.contains("/wal/") || name.contains("/open/")).collect();
    assert!(!wal.is_empty(), "nothing was to be stored");
    let is_first =
        |name: &str| name.contains("000000010000000000000003") && (!name.contains('-') || name.contains(".00000000-"));
    assert!(wal.iter().all(|name| is_first(name)), "{wal:?}");
    // And when it answers, everything is
    stage.store.set(Mood::Takes(Duration::from_millis(20)));
    let end = stage.server.write(1000);
    stage.settle(end).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_the_last_record_and_no_longer() {
    for (place, time) in [("in the same building", 2), ("across an ocean", 400)] {
        // Given WAL that is not due for minutes, and a store that takes its time
        let mut stage =
            Stage::new(ArchiveOptions { flush_interval: Duration::from_secs(600), ..ArchiveOptions::default() }).await;
        stage.store.set(Mood::Takes(Duration::from_millis(time)));
        let lsn = stage.server.write(5_000);
        stage.receive(lsn).await;
        assert!(stage.state.borrow().flushed < lsn, "nothing was due");
        // When the server shuts down
        stage.server.shut_down();
        let (took, messages) = stage.leaving().await;
        // Then it has all that it wrote acknowledged, within one or two requests to the store, and was not flooded
        assert!(stage.state.borrow().durable > lsn, "the last record is stored as well");
        assert!(took < Duration::from_millis(2 * time + 200), "the store is {place}: {took:?}");
        assert!(messages <= 12, "the store is {place}: {messages} messages in {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_told_of_no_flush_yet_does_not_take_receipt_for_one() {
    // Given an archiver that has received everything and stored nothing, and a store that takes its time
    let server = MemoryServer::new(Lsn(3 * SEGMENT_BYTES + 1000));
    let lazy = ArchiveOptions { flush_interval: Duration::from_secs(600), ..ArchiveOptions::default() };
    let mut stage = Stage::before(server, lazy);
    stage.receive(Lsn(3 * SEGMENT_BYTES + 1000)).await;
    stage.store.set(Mood::Takes(Duration::from_millis(700)));
    // When the server shuts down
    stage.server.shut_down();
    stage.leaving().await;
    // Then it has waited until all of it was stored
    assert!(stage.server.told().last().unwrap().flushed > Lsn(3 * SEGMENT_BYTES + 1000), "{:?}", stage.server.told());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_holds_up_a_shutdown_for_less_than_two_seconds() {
    for mood in [Mood::Hangs, Mood::Fails] {
        let mut stage = Stage::new(ArchiveOptions::default()).await;
        stage.store.set(mood);
        let lsn = stage.server.write(5_000);
        stage.receive(lsn).await;
        sleep(Duration::from_secs(5)).await;
        // When the server shuts down
        stage.server.shut_down();
        let (took, messages) = stage.leaving().await;
        // Then the archiver leaves, after a moment and without a storm
        assert!(took < Duration::from_secs(2), "{mood:?}: {took:?}");
        assert!(messages <= 15, "{mood:?}: {messages} messages in {took:?}");
        // and does not come back at once
        let left = stage.server.left().unwrap();
        sleep(MINUTE).await;
        let next = stage.server.attempts().into_iter().find(|attempt| *attempt > left).expect("it comes back");
        assert!(next - left >= Duration::from_secs(5), "{mood:?}: back after {:?}", next - left);
        // and when all is well again, nothing is missing
        stage.store.set(Mood::Takes(Duration::ZERO));
        stage.server.start_again();
        stage.settle(lsn).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_read_can_shut_down_as_well() {
    // Given a store that hangs, and more WAL than fits into memory: the server cannot ask, because nobody listens
    let mut stage = Stage::new(ArchiveOptions::default()).await;
    stage.store.set(Mood::Hangs);
    stage.server.write(64 << 20);
    let stopped = stage.state.wait_for(|state| state.is_reading_stopped);
    timeout(MINUTE, stopped).await.expect("the memory is full").unwrap();
    sleep(Duration::from_secs(5)).await;
    // When it shuts down
    stage.server.shut_down();
    // Then the archiver hears of it on its second connection, and leaves
    let (took, messages) = stage.leaving().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(messages <= 10, "{messages} messages in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_archiver_that_was_told_to_stop_does_not_hold_up_a_shutdown_either() {
    // Given an archiver that was told to stop, and waits for a store that hangs
    let mut stage = Stage::new(ArchiveOptions::default()).await;
    stage.store.set(Mood::Hangs);
    let lsn = stage.server.write(5_000);
    stage.receive(lsn).await;
    stage.shutdown.begin_stop();
    sleep(MINUTE).await;
    assert!(stage.server.is_held() && !stage.task.is_finished(), "what was received is not given up");
    // When the server shuts down
    stage.server.shut_down();
    // Then it can; and the archiver waits on, for it may be the only one who has this WAL
    let (took, _) = stage.leaving().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    sleep(MINUTE).await;
    assert!(!stage.task.is_finished());
    stage.store.set(Mood::Takes(Duration::ZERO));
    let ended = timeout(MINUTE, &mut stage.task).await.expect("it ends").unwrap();
    assert!(ended.is_ok() && stage.state.borrow().durable >= lsn, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_not_cut_short_while_the_store_takes_what_there_is() {
    // Given much to store, and a store that takes one object in 400 ms
    let mut stage = Stage::new(ArchiveOptions { uploads_max: 1, ..ArchiveOptions::default() }).await;
    stage.store.set(Mood::Takes(Duration::from_millis(400)));
    let lsn = stage.server.write(10 * SEGMENT_BYTES);
    stage.receive(lsn).await;
    // When the server shuts down meanwhile
    stage.server.shut_down();
    let (took, messages) = stage.leaving().await;
    // Then it goes with everything stored
    assert!(stage.state.borrow().durable > lsn, "left after {took:?} with {} stored", stage.state.borrow().durable);
    assert!(messages <= 80, "{messages} messages in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_in_peace_is_answered_and_not_left() {
    // Given a store that hangs, and WAL that is not stored
    let mut stage = Stage::new(ArchiveOptions::default()).await;
    stage.store.set(Mood::Hangs);
    let lsn = stage.server.write(5_000);
    stage.receive(lsn).await;
    // When the server asks now and then, because it has not heard from us for a while
    for _ in 0..20 {
        let before = stage.server.told().len();
        stage.server.ask();
        sleep(Duration::from_millis(300)).await;
        assert!(stage.server.told().len() > before, "it is answered");
        sleep(Duration::from_secs(4)).await;
    }
    // Then the connection is still the first one
    assert!(stage.server.is_held());
    assert_eq!(stage.server.attempts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_connection_brought_is_stored_though_nothing_comes_after_it() {
    // Given WAL that was received and is not due for minutes
    let mut stage =
        Stage::new(ArchiveOptions { flush_interval: Duration::from_secs(600), ..ArchiveOptions::default() }).await;
    let lsn = stage.server.write(5_000);
    stage.receive(lsn).await;
    assert!(stage.state.borrow().durable < lsn, "nothing was due");
    // When the server is gone for good
    stage.server.cut();
    stage.server.shut_down();
    // Then what it sent is in the store all the same: it may be nowhere else
    let stored = stage.state.wait_for(|state| state.durable >= lsn);
    timeout(MINUTE, stored).await.expect("it is stored").unwrap();
    assert!(stage.state.borrow().flushed < lsn, "nobody was there to be told");
    // and a store that hangs does not keep the archiver from a server that comes back
    stage.server.start_again();
    stage.settle(lsn).await;
    stage.store.set(Mood::Hangs);
    let lsn = stage.server.write(5_000);
    stage.receive(lsn).await;
    let attempts = stage.server.attempts().len();
    stage.server.cut();
    sleep(MINUTE).await;
    assert!(stage.server.attempts().len() > attempts, "it waits for the store for ever");
}

#[tokio::test(start_paused = true)]
async fn an_idle_server_at_a_segment_border_is_told_nothing_until_something_is_stored() {
    // Given a server whose WAL ends with a segment, and an archive in which nothing is
    let border = Lsn(3 * SEGMENT_BYTES);
    let mut stage = Stage::before(MemoryServer::new(border), ArchiveOptions::default());
    let streaming = stage.state.wait_for(|state| state.counts.connections > 0);
    timeout(MINUTE, streaming).await.unwrap().unwrap();
    sleep(MINUTE * 60).await;
    // Then for an hour it is told that nothing is flushed, because nothing is stored that could be; nor is anything at risk
    let told = stage.server.told();
    assert!(told.len() > 1000 && told.iter().all(|told| !told.flushed.is_valid()), "{:?}", told.last());
    assert_eq!(stage.state.borrow().rpo.seconds(Instant::now()), 0.0);
    assert_eq!(stage.state.borrow().counts.heartbeats, 0);
    // and the first byte, be it of a commit that waits for us, is what makes us somebody to wait for
    let lsn = stage.server.write(100);
    stage.settle(lsn).await;
    // When another archiver finds the same border, behind what is stored
    let end = stage.server.write(SEGMENT_BYTES - 100);
    stage.settle(end).await;
    stage.server.cut();
    sleep(MINUTE).await;
    // Then the last segment comes again and is proven, and the border is told
    let last = *stage.server.told().last().unwrap();
    assert_eq!(last.flushed, end);
    assert_eq!(stage.server.attempts().len(), 2);
}

/// The program between a real server and a bucket.
struct Scene {
    version: u32,
    server: Postgres,
    bucket: S3Server,
}

impl Scene {
    async fn new(version: u32, settings: &[(&str, &str)]) -> Scene {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = ServerOptions { settings, ..ServerOptions::default() };
        Scene { version, server: Postgres::create(version, options).await, bucket: S3Server::start() }
    }

    fn seawall(&self, arguments: &[&str]) -> Seawall {
        let repository = format!("s3://{}/backups", S3Server::BUCKET);
        let seawall = Seawall::new(arguments).env("SEAWALL_PG", self.server.conninfo()).env("SEAWALL_REPO", repository);
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    async fn run(&self) -> Running {
        let running = self.seawall(&["run", "--listen", "off", "--flush-interval", "10m"]).start();
        self.wait("the stream to begin", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
        running
    }

    async fn wait(&self, what: &str, query: &str) {
        let what = format!("{what} on PostgreSQL {}", self.version);
        wait_for(&what, PATIENCE * 2, async || (self.server.value(query).await != "0").then_some(())).await;
    }

    /// Writes, and waits until it is received.
    async fn write(&self) -> String {
        let table = "CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)";
        self.server.sql(table).await.unwrap();
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        self.wait_position("write", &lsn).await;
        lsn
    }

    async fn wait_position(&self, position: &str, lsn: &str) {
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE {position}_lsn >= '{lsn}'");
        self.wait(&format!("{position} to reach {lsn}"), &query).await;
    }

    /// `pg_ctl stop -m fast`: how long it took.
    async fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        let stopped = timeout(PATIENCE, self.server.stop(StopMode::Fast)).await;
        stopped.unwrap_or_else(|_| panic!("PostgreSQL {} is held up", self.version)).unwrap();
        begun.elapsed()
    }

    async fn assert_without_hole(&self) {
        self.seawall(&["list", "--json"]).assert_lists_no_hole().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_major_version_stops_quickly_whatever_the_store_does() {
    let stories = SERVER_VERSIONS.map(|version| async move {
        let mut scene = Scene::new(version, &[]).await;
        let mut running = scene.run().await;
        // Given WAL that is received, and a store in good health: the server gets all of it acknowledged
        scene.write().await;
        let healthy = scene.stop().await;
        scene.server.start().await.unwrap();
        scene.wait("the stream", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
        // Given a store that hangs
        let hold = scene.bucket.hold(Op::Put);
        let lsn = scene.write().await;
        let hanging = scene.stop().await;
        drop(hold);
        scene.server.start().await.unwrap();
        scene.wait_position("flush", &lsn).await;
        // Given one that says that it cannot
        scene.bucket.always(Op::Put, Fault::INTERNAL_ERROR);
        let lsn = scene.write().await;
        let failing = scene.stop().await;
        scene.bucket.clear();
        // Then it stops in each case, the archiver lives, and nothing is missing
        scene.server.start().await.unwrap();
        scene.wait_position("flush", &lsn).await;
        assert!(running.terminate().await.success());
        scene.assert_without_hole().await;
        println!("PostgreSQL {version}: healthy {healthy:?}, hanging {hanging:?}, failing {failing:?}");
        for took in [healthy, hanging, failing] {
            assert!(took < PATIENCE / 2, "PostgreSQL {version} took {took:?}");
        }
    });
    futures_util::future::join_all(stories).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_while_a_commit_waits_it_lets_the_commit_go_first() {
    // Given a commit that waits, because the store holds what it wrote
    let scene = Scene::new(15, &[("synchronous_standby_names", "seawall")]).await;
    let mut running = scene.seawall(&["run", "--listen", "off"]).start();
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    let hold = scene.bucket.hold(Op::Put);
    let session = scene.server.connect("postgres").await.unwrap();
    let commit = tokio::spawn(async move { session.sql("INSERT INTO t VALUES (1)").await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    scene.wait("a commit to wait", waits).await;
    hold.arrived(1).await;
    // When the archiver is told to stop
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait_for_text("leaves at once").await;
    assert!(running.is_running() && !commit.is_finished(), "it does not leave the commit alone");
    // Then it does so once that is stored and the commit has returned
    drop(hold);
    assert!(running.wait(PATIENCE).await.success());
    timeout(PATIENCE, commit).await.expect("the commit returns").unwrap().unwrap();
    scene.assert_without_hole().await;
}
