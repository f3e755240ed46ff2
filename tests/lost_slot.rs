//! Slots that are lost, as each major version loses them: nothing is hidden, nothing too much is given up, and what is
//! really gone is recorded and answered with a base backup.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use futures_util::future::join_all;
use s3::{Op, S3Server};
use seawall::backup::{BackupOptions, BackupPhase, BackupProgress, RepositoryWaiter, take};
use seawall::error::Kind;
use seawall::postgres::{Client, ConnInfo, Mode, StatusUpdate, Streaming};
use seawall::repository::Writer;
use seawall::runtime::Clock;
use seawall::scratch::{Server, ServerOptions, StopMode};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, Segment, SegmentSize, TimelineId};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::archiver::{Archiving, SLOT, catalog};
use support::postgres::{DEBIAN, Postgres, SERVER_VERSIONS, programs, scratch_directory};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;
use tokio::sync::watch;

const MIB: u64 = 1 << 20;

/// Small segments, and a server that gives a slot up after a few of them.
fn options(settings: &[(&str, &str)]) -> ServerOptions {
    let small =
        [("max_slot_wal_keep_size", "2MB"), ("min_wal_size", "2MB"), ("max_wal_size", "64MB"), ("autovacuum", "off")];
    let settings =
        small.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ServerOptions { settings, wal_segment_mib: Some(1), ..ServerOptions::default() }
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

async fn flush_lsn(server: &Server) -> Lsn {
    let rows = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// Writes a little and goes on to the next segment, as often as that.
async fn write_segments(server: &Server, count: usize) {
    for _ in 0..count {
        server
            .sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 2000)); SELECT pg_switch_wal()")
            .await
            .unwrap();
    }
}

/// Writes until the server has removed WAL that nobody archived.
async fn lose_slot(server: &Server) {
    wait_for("the slot to be lost", PATIENCE, async || {
        write_segments(server, 4).await;
        server.sql("CHECKPOINT").await.unwrap();
        let rows = server.sql("SELECT wal_status FROM pg_replication_slots").await.unwrap();
        (rows[0][0].as_deref() == Some("lost")).then_some(())
    })
    .await;
}

/// The first segment that the server still has.
fn first_segment(server: &Server) -> Lsn {
    let names = std::fs::read_dir(server.data_directory().join("pg_wal")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let segments = names.filter_map(|name| Segment::parse(&name, size()).ok());
    segments.map(|segment| segment.end().0 - MIB).min().map(Lsn).unwrap()
}

/// What another client does with a lost slot, knowing nothing: it streams through it from where the server is.
async fn stream_through_lost_slot(server: &Server) -> Result<(), String> {
    let info = ConnInfo::parse(&server.conninfo(), &|_| None).unwrap();
    let client = Client::connect(&info, Mode::Physical, &[]).await.unwrap();
    let lsn = flush_lsn(server).await;
    let streaming = client.start_replication(Some(SLOT), lsn, TimelineId(1)).await;
    let Streaming::Wal(mut stream) = streaming.map_err(|error| error.to_string())? else { panic!("no stream") };
    let status = StatusUpdate { written: lsn, flushed: lsn, ..StatusUpdate::default() };
    stream.send_status(status, 0).await.unwrap();
    let position = format!("SELECT restart_lsn = '{lsn}' FROM pg_replication_slots");
    wait_for("the slot to move", PATIENCE, async || {
        let rows = server.sql(&position).await.unwrap();
        (rows[0][0].as_deref() == Some("t")).then_some(())
    })
    .await;
    drop(stream);
    wait_for("the slot to be left", PATIENCE, async || {
        let rows = server.sql("SELECT active FROM pg_replication_slots").await.unwrap();
        (rows[0][0].as_deref() == Some("f")).then_some(())
    })
    .await;
    Ok(())
}

/// The slot's WAL outlives whatever the server does, without a limit on it.
async fn assert_slot_keeps_wal(server: &Server, version: u32) {
    server.sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await.unwrap();
    server.sql("SELECT pg_reload_conf()").await.unwrap();
    let rows = server.sql("SELECT restart_lsn FROM pg_replication_slots").await.unwrap();
    let kept: Lsn = rows[0][0].as_deref().unwrap().parse().unwrap();
    write_segments(server, 12).await;
    server.sql("CHECKPOINT").await.unwrap();
    write_segments(server, 1).await;
    server.sql("CHECKPOINT").await.unwrap();
    let first = first_segment(server);
    assert!(first <= kept, "{version}: the slot is at {kept}, and the server has WAL from {first} on");
}

/// How a role that may only replicate is let in.
const REPLICATION_ONLY: [&str; 2] = ["local replication archiver trust", "local all archiver reject"];

async fn lost_and_found(version: u32, somebody_streams: bool, sees_by_sql: bool) {
    let case = format!("{version}, somebody streams: {somebody_streams}, SQL: {sees_by_sql}");
    // Given an archive, and a server that has given up the slot while the archiver was away
    let mut options = options(&[]);
    options.hba = REPLICATION_ONLY.map(str::to_owned).to_vec();
    let server = Postgres::create(version, options).await;
    server.sql("CREATE ROLE archiver LOGIN REPLICATION").await.unwrap();
    let conninfo = match sees_by_sql {
        true => server.conninfo(),
        false => server.conninfo().replace("user=postgres", "user=archiver"),
    };
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let archiving = Archiving::start(&conninfo, &store).await_flushed(&server).await;
    write_segments(&server, 2).await;
    archiving.wait_flushed(flush_lsn(&server).await).await;
    archiving.stop().await;
    let (_, before) = catalog(&store).await;
    let stored = before.coverage[&TimelineId(1)].end().unwrap();
    lose_slot(&server).await;
    if somebody_streams {
        match stream_through_lost_slot(&server).await {
            Ok(()) => assert!(version < 18, "18 refuses that"),
            Err(error) => assert!(version >= 18, "{case}: {error}"),
        }
    }
    let first = first_segment(&server);
    assert!(first > stored, "{case}: nothing is lost");
    // When the archiver comes back
    let archiving = Archiving::start(&conninfo, &store);
    archiving.wait_flushed(flush_lsn(&server).await).await;
    // Then exactly what the server no longer has is recorded, once
    let (_, after) = catalog(&store).await;
    let gaps: Vec<_> = after.gaps.iter().map(|gap| (gap.range.start, gap.range.end)).collect();
    assert_eq!(gaps, [(stored, first)], "{case}");
    assert_eq!(archiving.state.borrow().counts.gaps, 1, "{case}");
    // and the slot is one that keeps WAL
    archiving.stop().await;
    assert_slot_keeps_wal(&server, version).await;
    let archiving = Archiving::start(&conninfo, &store);
    archiving.wait_flushed(flush_lsn(&server).await).await;
    archiving.stop().await;
    let (_, after) = catalog(&store).await;
    assert_eq!(after.gaps.len(), 1, "{case}: more was lost: {:?}", after.gaps);
    let runs = after.coverage[&TimelineId(1)].runs();
    assert_eq!(runs.len(), 2, "{case}: {runs:?}");
}

trait AwaitFlushed {
    async fn await_flushed(self, server: &Server) -> Self;
}

impl AwaitFlushed for Archiving {
    /// Waits until what the server has now is acknowledged.
    async fn await_flushed(self, server: &Server) -> Archiving {
        self.wait_flushed(flush_lsn(server).await).await;
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_is_recognised_and_made_anew_and_the_gap_is_exact() {
    join_all(SERVER_VERSIONS.map(|version| lost_and_found(version, false, true))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_that_somebody_revived_hides_nothing() {
    join_all(SERVER_VERSIONS.map(|version| lost_and_found(version, true, true))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_replicate_records_no_more_than_is_lost() {
    join_all(SERVER_VERSIONS.map(|version| lost_and_found(version, false, false))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_does_not_keep_what_it_claims_is_not_believed_even_where_nobody_may_look() {
    join_all(SERVER_VERSIONS.map(|version| lost_and_found(version, true, false))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_dropped_and_made_again_ahead_of_us_is_no_loss_while_the_server_has_the_wal() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        let server = Postgres::create(version, options(&[("wal_keep_size", "200MB")])).await;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let archiving = Archiving::start(&server.conninfo(), &store).await_flushed(&server).await;
        archiving.stop().await;
        // Given a slot that is younger than what is missing, as Patroni makes it
        server.sql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).await.unwrap();
        write_segments(&server, 5).await;
        server.sql("CHECKPOINT").await.unwrap();
        server.sql(&format!("SELECT pg_create_physical_replication_slot('{SLOT}', true)")).await.unwrap();
        // When the archiver comes back, then the server is asked, and nothing is lost
        let archiving = Archiving::start(&server.conninfo(), &store).await_flushed(&server).await;
        archiving.stop().await;
        let (_, catalog) = catalog(&store).await;
        assert_eq!(catalog.gaps, [], "{version}");
        assert_eq!(catalog.coverage[&TimelineId(1)].runs().len(), 1, "{version}");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_given_up_for_being_idle_is_made_anew_without_a_gap() {
    // Given 18, which also gives up slots that nobody used for a while, and plenty of WAL
    let server =
        Postgres::create(18, options(&[("idle_replication_slot_timeout", "1s"), ("wal_keep_size", "64MB")])).await;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Archiving::start(&server.conninfo(), &store).await_flushed(&server).await.stop().await;
    wait_for("the slot to be given up", PATIENCE, async || {
        server.sql("CHECKPOINT").await.unwrap();
        let reason = server.sql("SELECT invalidation_reason FROM pg_replication_slots").await.unwrap();
        (reason[0][0].as_deref() == Some("idle_timeout")).then_some(())
    })
    .await;
    // When the archiver comes back, whether it may look or learns it from the refusal
    Archiving::start(&server.conninfo(), &store).await_flushed(&server).await.stop().await;
    // Then it streams, through a new slot, and nothing is lost
    let (_, catalog) = catalog(&store).await;
    assert_eq!(catalog.gaps, []);
}

/// Copies a stopped server's directory.
fn copy_data(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_of_the_cluster_is_asked_before_anything_is_given_up() {
    // Given a primary and a standby that keeps more WAL than it
    let mut server = Postgres::create(DEBIAN, options(&[])).await;
    let directory = scratch_directory();
    server.stop(StopMode::Fast).await.unwrap();
    let data = directory.path().join("standby");
    copy_data(server.data_directory(), &data);
    server.start().await.unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    let settings = [("primary_conninfo", server.conninfo()), ("wal_keep_size", "500MB".to_owned())];
    let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let standby_options = ServerOptions { settings, standby: true, ..ServerOptions::default() };
    let standby = Server::open(&programs(DEBIAN), &data, standby_options).await.unwrap();
    let hosts = format!("{},{}", server.socket_directory().display(), standby.socket_directory().display());
    let conninfo = format!("host={hosts} port={},{} user=postgres dbname=postgres", server.port(), standby.port());

    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Archiving::start(&conninfo, &store).await_flushed(&server).await.stop().await;
    lose_slot(&server).await;
    let lost_up_to = first_segment(&server);
    wait_for("the standby to have it all", PATIENCE, async || {
        let rows = standby.sql("SELECT pg_last_wal_receive_lsn()").await.unwrap();
        let received: Option<Lsn> = rows[0][0].as_deref().and_then(|text| text.parse().ok());
        (received >= Some(lost_up_to)).then_some(())
    })
    .await;
    // When the archiver comes back to a primary that has removed what comes next
    Archiving::start(&conninfo, &store).await_flushed(&server).await.stop().await;
    // Then the standby has it
    let (_, catalog) = catalog(&store).await;
    assert_eq!(catalog.gaps, []);
    let runs = catalog.coverage[&TimelineId(1)].runs();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert!(runs[0].end > lost_up_to);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_that_runs_across_a_gap_fails() {
    // Given a base backup that has been copied and waits for its WAL, with nobody archiving
    let server = Postgres::create(DEBIAN, options(&[])).await;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Archiving::start(&server.conninfo(), &store).await_flushed(&server).await.stop().await;
    let (repository, before) = catalog(&store).await;
    let info = ConnInfo::parse(&server.conninfo(), &|_| None).unwrap();
    let writer = Writer::new(store.clone(), repository.layout.clone(), before.cluster.system_identifier);
    let (progress, mut watched) = watch::channel(BackupProgress::default());
    let taking = tokio::spawn(async move {
        let waiter = RepositoryWaiter::new(repository);
        let connect = || async { Ok(Client::connect(&info, Mode::Physical, &[]).await?) };
        take(connect, &writer, &BackupOptions::default(), &Clock::system(), &waiter, progress).await
    });
    watched.wait_for(|progress| progress.phase == BackupPhase::WaitingForWal).await.unwrap();
    // When the server gives up the slot, and the archiver records what is lost
    lose_slot(&server).await;
    let archiving = Archiving::start(&server.conninfo(), &store).await_flushed(&server).await;
    assert_eq!(archiving.state.borrow().counts.gaps, 1);
    // Then the backup fails, names the gap, and does not exist
    let error = tokio::time::timeout(PATIENCE, taking).await.expect("it goes on waiting").unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    let (_, after) = catalog(&store).await;
    let gap = after.gaps[0].range;
    assert!(error.to_string().contains(&format!("{}..{} is lost", gap.start, gap.end)), "{error}");
    assert_eq!(after.finished_backups().count(), 0);
    archiving.stop().await;
}

/// A server and a repository in a directory, for the program.
struct Scene {
    server: Postgres,
    directory: TempDir,
}

impl Scene {
    async fn new(version: u32, options: ServerOptions) -> Scene {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("repository")).unwrap();
        Scene { server: Postgres::create(version, options).await, directory }
    }

    fn seawall(&self, arguments: &[&str]) -> Seawall {
        let repository = format!("file://{}", self.directory.path().join("repository").display());
        Seawall::new(arguments).env("SEAWALL_PG", self.server.conninfo()).env("SEAWALL_REPO", repository)
    }

    async fn run(&self, arguments: &[&str]) -> (Running, String) {
        let arguments = [&["run", "--listen", "127.0.0.1:0", "--flush-interval", "100ms"], arguments].concat();
        let mut running = self.seawall(&arguments).start();
        running.wait_for_text("metrics at").await;
        let log = running.stderr();
        let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
        (running, address)
    }

    async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.seawall(arguments).run_ok().await.stdout).unwrap()
    }

    async fn wait_flushed(&self) {
        let lsn = flush_lsn(&self.server).await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        wait_for(&format!("{lsn} to be acknowledged"), PATIENCE, async || {
            (self.server.value(&query).await != "0").then_some(())
        })
        .await;
    }
}

/// The value of a metric; `None` if it is not shown.
fn metric(address: &str, name: &str) -> Option<f64> {
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ',', ' ']))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn wait_metric(address: &str, name: &str, wanted: Option<f64>) {
    wait_for(&format!("{name} to be {wanted:?}"), PATIENCE, async || {
        let found = tokio::task::block_in_place(|| metric(address, name));
        (found == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_shown_everywhere_and_answered_with_a_base_backup() {
    // Given a backup, and a slot that was lost since
    let scene = Scene::new(DEBIAN, options(&[])).await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    lose_slot(&scene.server).await;
    let check = scene.seawall(&["check"]).run_ok().await.stdout;
    assert!(check.contains("seawall keeps nothing"), "{check}");

    // When `run` comes back and is not allowed to take a backup by itself
    let config = scene.directory.path().join("seawall.toml");
    std::fs::write(&config, "[run]\nbackup_after_gap = false\n").unwrap();
    let (mut running, address) = scene.run(&["--config", config.to_str().unwrap()]).await;
    wait_metric(&address, "seawall_backup_needed", Some(1.0)).await;
    wait_metric(&address, "seawall_gaps", Some(1.0)).await;
    running.wait_for_text("WAL is lost").await;
    scene.wait_flushed().await;
    assert!(running.terminate().await.success());

    // Then every command says so
    let listed = scene.json(&["list", "--json"]).await;
    let (from, to) = (listed["lost_wal"][0]["start"].as_str().unwrap(), listed["lost_wal"][0]["end"].as_str().unwrap());
    assert_eq!(listed["backup_needed"], true, "{listed}");
    let list = scene.seawall(&["list"]).run_ok().await.stdout;
    assert!(list.contains(&format!("LOST: {from}..{to}")) && list.contains("run `seawall backup`"), "{list}");
    let status = scene.seawall(&["status"]).run_ok().await.stdout;
    assert!(status.contains("no sound base backup was taken behind the last gap"), "{status}");
    let check = scene.seawall(&["check"]).run_ok().await.stdout;
    assert!(
        check.contains(&format!("1 gaps, the last from {from} to {to}, and no sound base backup behind it")),
        "{check}"
    );
    // and a restore to a moment inside or behind the gap is refused by name, with what is possible
    let into = scene.directory.path().join("restored");
    let plan = |lsn: &str| {
        let arguments = ["restore", "--dry-run", "--into", into.to_str().unwrap(), "--to-lsn", lsn];
        scene.seawall(&arguments)
    };
    let behind = flush_lsn(&scene.server).await;
    let inside: Lsn = from.parse::<Lsn>().unwrap() + 100;
    for target in [inside, behind] {
        let refused = plan(&target.to_string()).run_err(6).await.stderr;
        assert!(refused.contains(&format!("WAL from {from} to {to} of timeline 1 is recorded as lost")), "{refused}");
        assert!(refused.contains(&format!("--to-lsn {from} --to-exclusive")), "{refused}");
        assert!(refused.contains("No backup was taken behind the hole yet"), "{refused}");
    }

    // When `run` comes back and finds the gap, then it takes a base backup by itself
    let (mut running, address) = scene.run(&[]).await;
    running.wait_for_text("the base backup is complete").await;
    wait_metric(&address, "seawall_backup_needed", Some(0.0)).await;
    // which its metrics have followed
    wait_metric(&address, "seawall_backup_running", Some(0.0)).await;
    let bytes = |name| tokio::task::block_in_place(|| metric(&address, name)).unwrap();
    let received = bytes("seawall_backup_received_bytes");
    assert!(received > 1e6 && bytes("seawall_backup_expected_bytes") > 1e6, "{received}");
    assert!((1.0..received).contains(&bytes("seawall_backup_stored_bytes")));
    let listed = scene.json(&["list", "--json"]).await;
    assert_eq!(listed["backup_needed"], false, "{listed}");
    // and of the moments that can be restored there are two windows, with the gap between them
    let windows = listed["recovery_windows"].as_array().unwrap();
    assert_eq!(windows.len(), 2, "{listed:#}");
    let lsn = |window: usize, side: &str| windows[window][side].as_str().unwrap().parse::<Lsn>().unwrap();
    let time = |window: usize, side: &str| windows[window][side].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(windows[0]["to"].as_str(), Some(from), "{listed:#}");
    assert!(lsn(0, "from") < lsn(0, "to") && lsn(1, "from") >= to.parse().unwrap(), "{listed:#}");
    assert!(time(0, "from_time") <= time(0, "to_time") && time(0, "to_time") <= time(1, "from_time"), "{listed:#}");
    let shown = scene.seawall(&["list"]).run_ok().await.stdout;
    let lines: Vec<&str> = shown.lines().skip_while(|line| !line.contains("every moment from")).collect();
    assert!(lines[2].contains("GAP: no moment") && lines[2].contains(from), "{shown}");
    let backups = listed["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 2, "one, and no more: {listed}");
    assert_eq!(listed["unfinished_backups"].as_array().unwrap().len(), 0, "{listed}");
    // and what is behind the gap can be restored again, inside it never
    scene.server.sql("CREATE TABLE behind (n int)").await.unwrap();
    let behind = flush_lsn(&scene.server).await;
    write_segments(&scene.server, 1).await;
    scene.wait_flushed().await;
    plan(&behind.to_string()).run_ok().await;
    let refused = plan(&inside.to_string()).run_err(6).await.stderr;
    let first = backups[1]["consistent_from"].as_str().unwrap();
    assert!(refused.contains("Behind the hole, the first that can be reached is"), "{refused}");
    assert!(refused.contains(&format!("LSN {first}")), "{refused}");
    // nor by a time between the two windows: both its sides are named, in words and as JSON, and nothing is written
    let length = time(1, "from_time").duration_since(time(0, "to_time"));
    let between = (time(0, "to_time") + length / 2).to_string();
    let asked = ["restore", "--into", into.to_str().unwrap(), "--to", &between];
    let refused = scene.seawall(&asked).run_err(6).await.stderr;
    let json = scene.seawall(&[&asked[..], &["--json"]].concat()).run_err(6).await.stderr;
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    let hint = document["error"]["hint"].as_str().unwrap();
    for said in [refused.as_str(), hint] {
        assert!(said.contains(&format!("The newest moment that can be reached is {}", time(0, "to_time"))), "{said}");
        assert!(said.contains("Behind the hole, the first that can be reached is") && said.contains(first), "{said}");
    }
    assert!(!into.exists());
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_that_fails_is_tried_again() {
    // Given a gap, and a server that has no walsender left for a base backup
    let scene = Scene::new(DEBIAN, options(&[("max_wal_senders", "3")])).await;
    let (mut running, address) = scene.run(&[]).await;
    scene.wait_flushed().await;
    assert!(running.terminate().await.success());
    drop(address);
    let occupant = ConnInfo::parse(&scene.server.conninfo(), &|_| None).unwrap();
    let occupant = Client::connect(&occupant, Mode::Physical, &[]).await.unwrap();
    let mut attempts = 0;
    let (mut running, address) = loop {
        lose_slot(&scene.server).await;
        let (mut running, address) = scene.run(&[]).await;
        let outcome = wait_for("a base backup to end", PATIENCE, async || {
            let said = running.stderr();
            let failed = said.contains("the base backup after the gap failed; trying again");
            (failed || said.contains("the base backup is complete")).then_some(failed)
        });
        if outcome.await {
            break (running, address);
        }
        // The backup was faster than the second connection of `run`, and took the place that was meant for that.
        assert!(running.terminate().await.success());
        attempts += 1;
        assert!(attempts < 5, "there always was a walsender for the base backup");
    };
    wait_metric(&address, "seawall_backup_needed", Some(1.0)).await;
    // When there is one again, then the next attempt ends well
    occupant.close().await;
    running.wait_for_text("the base backup is complete").await;
    wait_metric(&address, "seawall_backup_needed", Some(0.0)).await;
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_is_watched_where_the_role_may_look() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        // Given an archiver that may ask by SQL
        let settings = [("max_slot_wal_keep_size", "1GB")];
        let mut options = options(&settings);
        options.hba = REPLICATION_ONLY.map(str::to_owned).to_vec();
        let scene = Scene::new(version, options).await;
        let (mut running, address) = scene.run(&[]).await;
        wait_metric(&address, "seawall_slot_wal_status{status=\"reserved\"", Some(1.0)).await;
        wait_metric(&address, "seawall_slot_wal_status{status=\"lost\"", Some(0.0)).await;
        let value = |name| tokio::task::block_in_place(|| metric(&address, name));
        let (safe, retained) = (value("seawall_slot_safe_wal_bytes"), value("seawall_slot_retained_bytes"));
        assert!(safe.is_some_and(|bytes| bytes > 1e8), "{version}: {safe:?}");
        assert!(retained.is_some_and(|bytes| bytes < 1e8), "{version}: {retained:?}");
        // When there is no limit, then nothing is said about how far it is
        scene.server.sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await.unwrap();
        scene.server.sql("SELECT pg_reload_conf()").await.unwrap();
        wait_metric(&address, "seawall_slot_safe_wal_bytes", None).await;
        assert!(running.terminate().await.success());
        // and a role that may only replicate shows nothing rather than something wrong
        scene.server.sql("CREATE ROLE archiver LOGIN REPLICATION").await.unwrap();
        let conninfo = scene.server.conninfo().replace("user=postgres", "user=archiver");
        let (mut running, address) = scene.run(&["--pg", &conninfo]).await;
        wait_metric(&address, "seawall_connected", Some(1.0)).await;
        scene.wait_flushed().await;
        for name in ["seawall_slot_wal_status", "seawall_slot_safe_wal_bytes", "seawall_slot_retained_bytes"] {
            let shown = tokio::task::block_in_place(|| metric(&address, name));
            assert_eq!(shown, None, "{version}: {name}");
        }
        assert!(running.terminate().await.success());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_in_danger_is_said_before_anything_is_lost() {
    // Given a store that takes nothing, while the server writes more than it keeps for the slot
    let scene = Scene::new(DEBIAN, options(&[])).await;
    let bucket = S3Server::start();
    let arguments = ["run", "--listen", "127.0.0.1:0", "--repo", &format!("s3://{}/backups", S3Server::BUCKET)];
    let seawall =
        bucket.env().into_iter().fold(scene.seawall(&arguments), |seawall, (name, value)| seawall.env(name, value));
    let mut running = seawall.start();
    running.wait_for_text("metrics at").await;
    let log = running.stderr();
    let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    wait_metric(&address, "seawall_slot_wal_status{status=\"reserved\"", Some(1.0)).await;
    let hold = bucket.hold(Op::Put);
    write_segments(&scene.server, 6).await;
    // Then the log and the metric say so, and nothing is lost yet
    running.wait_for_text("the slot holds back more WAL than the server keeps for it").await;
    wait_metric(&address, "seawall_slot_wal_status{status=\"unreserved\"", Some(1.0)).await;
    assert_eq!(tokio::task::block_in_place(|| metric(&address, "seawall_gaps")), Some(0.0));
    // When the store answers again, then all is well
    drop(hold);
    scene.wait_flushed().await;
    wait_metric(&address, "seawall_slot_wal_status{status=\"unreserved\"", Some(0.0)).await;
    assert!(running.terminate().await.success());
}
