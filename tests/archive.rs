//! The archiver against real servers: what is acknowledged is stored, what is stored is what the server wrote.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use seawall::archive::{ArchiveOptions, ArchiveState, Archiver, PostgresSource};
use seawall::codec::Compression;
use seawall::error::{Error, Kind};
use seawall::postgres::ConnInfo;
use seawall::repository::{Catalog, Key, Layout, Repository, WalReader};
use seawall::runtime::{Clock, Shutdown};
use seawall::scratch::{ServerOptions, StopMode};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, Segment, SegmentSize, TimelineId, WalRange};
use std::sync::Arc;
use std::time::Duration;
use support::postgres::{DEBIAN, Load, Postgres, SERVER_VERSIONS, pgbench_tables};
use support::waiting::{PATIENCE, wait_for};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// An archiver that runs beside the test.
struct Running {
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(server: &Postgres, store: &Arc<dyn Store>, options: ArchiveOptions) -> Running {
        let info = ConnInfo::parse(&server.conninfo(), &|_| None).unwrap();
        let source = Arc::new(PostgresSource::new(info, "seawall", Clock::system()));
        let archiver = Archiver::new(source, store.clone(), "main", options, Clock::system());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        Running { shutdown, state, task }
    }

    async fn wait_flushed(&mut self, lsn: Lsn) {
        let state = &self.state;
        wait_for(&format!("{lsn} to be acknowledged"), PATIENCE, async || {
            assert!(!self.task.is_finished(), "the archiver ended");
            (state.borrow().flushed >= lsn).then_some(())
        })
        .await;
    }

    async fn stop(self) -> Result<(), Error> {
        self.shutdown.begin_stop();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the archiver stops when told to").unwrap()
    }

    /// As `kill -9`: nothing is stored or said any more.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

async fn current_lsn(server: &Postgres) -> Lsn {
    server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
}

async fn repository(store: &Arc<dyn Store>) -> (Repository, Catalog) {
    let cluster = Repository::read_cluster(store.as_ref(), "main").await.unwrap().expect("cluster.json is there");
    let size = SegmentSize::new(cluster.segment_bytes).unwrap();
    let repository = Repository { store: store.clone(), layout: Layout::new("main", size, Compression::Lz4) };
    let catalog = Catalog::read(&repository, cluster).await.unwrap();
    (repository, catalog)
}

/// Every byte of the repository up to `end` is the server's own, segment by segment as they lie in `pg_wal`.
async fn assert_equal_to_server(server: &Postgres, store: &Arc<dyn Store>, end: Lsn) {
    let (repository, catalog) = repository(store).await;
    let size = repository.layout.segment_size();
    let reader = WalReader::new(repository, catalog.cluster.system_identifier);
    let runs = catalog.coverage[&TimelineId(1)].runs();
    let first = runs.first().expect("something is stored").start;
    assert!(runs[0].end >= end, "coverage is {runs:?}, and {end} was acknowledged");
    let mut compared = 0u64;
    let mut position = first;
    while position < end {
        let segment = Segment::holding(TimelineId(1), position, size);
        let upto = segment.end().min(end);
        let file = server.data_directory().join("pg_wal").join(segment.name());
        if let Ok(bytes) = std::fs::read(&file) {
            let window =
                reader.read_range(WalRange { timeline: TimelineId(1), start: position, end: upto }).await.unwrap();
            assert_eq!(window.end, upto);
            let stored = window.pieces.concat();
            let from = size.offset(position) as usize;
            assert!(bytes[from..from + stored.len()] == stored[..], "{segment} is stored with other bytes");
            compared += stored.len() as u64;
        }
        position = upto;
    }
    assert!(compared > 0, "nothing could be compared");
}

#[tokio::test]
async fn every_major_version_is_archived_byte_for_byte_and_acknowledged() {
    let versions = SERVER_VERSIONS.map(|version| async move {
        // Given a server with some load
        let server = Postgres::create(version, ServerOptions::default()).await;
        let store = memory();
        let mut archiver = Running::start(&server, &store, ArchiveOptions::default());
        pgbench_tables(&server, 1).await;
        // When a commit is on the server's disk
        let lsn = current_lsn(&server).await;
        // Then it is acknowledged within moments, and what is stored is what the server wrote
        archiver.wait_flushed(lsn).await;
        assert_equal_to_server(&server, &store, lsn).await;
        archiver.stop().await.unwrap();
    });
    futures_util::future::join_all(versions).await;
}

#[tokio::test]
async fn segments_of_one_and_of_64_mib_are_archived() {
    for mib in [1, 64] {
        let options = ServerOptions { wal_segment_mib: Some(mib), ..ServerOptions::default() };
        let server = Postgres::create(DEBIAN, options).await;
        let store = memory();
        let mut archiver = Running::start(&server, &store, ArchiveOptions::default());
        pgbench_tables(&server, 4).await;
        let lsn = current_lsn(&server).await;
        archiver.wait_flushed(lsn).await;
        assert_equal_to_server(&server, &store, lsn).await;
        archiver.stop().await.unwrap();
    }
}

#[tokio::test]
async fn killed_again_and_again_under_load_it_leaves_no_hole() {
    // Given pgbench at full speed
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let store = memory();
    pgbench_tables(&server, 1).await;
    let load = Load::start(&server, 2);
    // When the archiver is killed in the middle, several times
    for _ in 0..5 {
        let mut archiver = Running::start(&server, &store, ArchiveOptions::default());
        let lsn = current_lsn(&server).await;
        archiver.wait_flushed(lsn).await;
        let told = archiver.state.borrow().flushed;
        archiver.kill().await;
        // Then everything that was acknowledged is there, without a hole
        let (_, catalog) = repository(&store).await;
        let runs = catalog.coverage[&TimelineId(1)].runs();
        assert_eq!(runs.len(), 1, "holes: {runs:?}");
        assert!(runs[0].end >= told, "{told} was acknowledged, and {} is stored", runs[0].end);
    }
    load.stop();
    let mut archiver = Running::start(&server, &store, ArchiveOptions::default());
    let lsn = current_lsn(&server).await;
    archiver.wait_flushed(lsn).await;
    assert_equal_to_server(&server, &store, lsn).await;
    archiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_fast_shutdown_is_not_held_up() {
    let mut server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let store = memory();
    // Given WAL that is not a full segment and not due for a flush for minutes
    let options = ArchiveOptions { flush_interval: Duration::from_secs(600), ..ArchiveOptions::default() };
    let archiver = Running::start(&server, &store, options);
    let state = archiver.state.clone();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    let lsn = current_lsn(&server).await;
    wait_for("the WAL to be received", PATIENCE, async || (state.borrow().received >= lsn).then_some(())).await;
    assert!(state.borrow().flushed < lsn, "nothing was due");
    // When the server stops
    let stopped = tokio::time::timeout(Duration::from_secs(20), server.stop(StopMode::Fast)).await;
    stopped.expect("the server stops while the archiver is attached").unwrap();
    // Then it got everything acknowledged first
    wait_for("the shutdown checkpoint to be stored", PATIENCE, async || (state.borrow().durable > lsn).then_some(()))
        .await;
    archiver.stop().await.unwrap();
}

#[tokio::test]
async fn one_flipped_byte_before_a_restart_is_a_hard_stop_without_an_acknowledgement() {
    // Given an archive, stopped
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let store = Arc::new(MemoryStore::new());
    let shared: Arc<dyn Store> = store.clone();
    let mut archiver = Running::start(&server, &shared, ArchiveOptions::default());
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    let lsn = current_lsn(&server).await;
    archiver.wait_flushed(lsn).await;
    archiver.stop().await.unwrap();
    let before = server.value("SELECT restart_lsn FROM pg_replication_slots").await;
    // When the last tail is replaced by one with another byte in it
    let (repository, catalog) = repository(&shared).await;
    let last = catalog.coverage[&TimelineId(1)].objects().last().unwrap().clone();
    let reader = WalReader::new(repository.clone(), catalog.cluster.system_identifier);
    let mut bytes = reader.read(&last).await.unwrap().unwrap().to_vec();
    bytes[10] ^= 1;
    shared.delete(&last.name).await.unwrap();
    let writer = seawall::repository::Writer::new(shared.clone(), repository.layout, catalog.cluster.system_identifier);
    let key = if last.is_block { Key::Block(last.range) } else { Key::Tail(last.range) };
    writer.store_wal(&key, last.range, bytes.into()).await.unwrap();
    // Then the next start ends with an explanation, and the slot has not moved
    let archiver = Running::start(&server, &shared, ArchiveOptions::default());
    let state = archiver.state.clone();
    let error = tokio::time::timeout(PATIENCE, archiver.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged, "{error:?}");
    assert!(error.to_string().contains(&last.name), "{error}");
    assert_eq!(state.borrow().flushed, Lsn::INVALID);
    assert_eq!(server.value("SELECT restart_lsn FROM pg_replication_slots").await, before);
}

#[tokio::test]
async fn another_cluster_in_the_same_folder_is_refused() {
    let (one, other) = (
        Postgres::create(DEBIAN, ServerOptions::default()).await,
        Postgres::create(DEBIAN, ServerOptions::default()).await,
    );
    let store = memory();
    let mut archiver = Running::start(&one, &store, ArchiveOptions::default());
    let lsn = current_lsn(&one).await;
    archiver.wait_flushed(lsn).await;
    archiver.stop().await.unwrap();
    let error = Running::start(&other, &store, ArchiveOptions::default()).task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    assert!(error.hint_text().unwrap_or_default().contains("--cluster"), "{error:?}");
}
