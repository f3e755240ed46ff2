//! Two archivers on one slot: one works, the other waits; whichever is lost, and however, the other goes on, without a
//! hole, and what the lost one still does when it wakes up harms nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use s3::{Op, S3Server};
use seawall::scratch::ServerOptions;
use seawall::wal::Lsn;
use std::time::Duration;
use support::metrics::Endpoint;
use support::postgres::{DEBIAN, Load, Postgres, SERVER_VERSIONS, pgbench_tables};
use support::program::{Running, Seawall};
use support::proxy::Proxy;
use support::waiting::{PATIENCE, wait_for};
use tokio::time::Instant;

/// What a hot spare says when it begins to wait.
const SPARE: &str = "another archiver holds the slot";

struct Scene {
    server: Postgres,
    bucket: S3Server,
}

impl Scene {
    async fn new(version: u32, hba: &[&str]) -> Scene {
        let hba = hba.iter().map(|line| (*line).to_owned()).collect();
        let options = ServerOptions { listen_tcp: true, hba, ..ServerOptions::default() };
        Scene { server: Postgres::create(version, options).await, bucket: S3Server::start() }
    }

    fn seawall(&self, conninfo: &str, arguments: &[&str]) -> Seawall {
        let repository = format!("s3://{}/backups", S3Server::BUCKET);
        let seawall = Seawall::new(arguments).env("SEAWALL_PG", conninfo).env("SEAWALL_REPO", repository);
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    fn archiver(&self, conninfo: &str) -> Running {
        self.seawall(conninfo, &["run", "--listen", "127.0.0.1:0", "--flush-interval", "100ms"]).start()
    }

    /// One that works and one that waits.
    async fn pair(&self, conninfo: &str) -> (Running, Running) {
        let first = self.archiver(conninfo);
        self.wait("the stream to begin", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
        let mut second = self.archiver(&self.server.conninfo());
        second.wait_for_text(SPARE).await;
        (first, second)
    }

    async fn wait(&self, what: &str, query: &str) {
        wait_for(what, PATIENCE * 2, async || (self.server.value(query).await != "0").then_some(())).await;
    }

    /// Waits until all WAL that there is now is acknowledged; gives its end.
    async fn settle(&self) -> Lsn {
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        self.wait(
            &format!("{lsn} to be acknowledged"),
            &format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'"),
        )
        .await;
        lsn.parse().unwrap()
    }

    /// The process of the server that holds the slot; 0 if none does.
    async fn holder(&self) -> String {
        self.server.value("SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots").await
    }

    async fn slot(&self) -> Lsn {
        self.server.value("SELECT restart_lsn FROM pg_replication_slots").await.parse().unwrap()
    }

    /// Waits until somebody else holds the slot: how long that took.
    async fn taken_over(&self, from: &str) -> Duration {
        let begun = Instant::now();
        wait_for("the spare to take over", PATIENCE * 2, async || {
            let holder = self.holder().await;
            (holder != "0" && holder != from).then_some(())
        })
        .await;
        begun.elapsed()
    }

    async fn assert_without_hole(&self) {
        self.seawall(&self.server.conninfo(), &["list", "--json"]).assert_lists_no_hole().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_major_version_the_second_goes_on_when_the_first_process_dies() {
    join_all(SERVER_VERSIONS.map(killed)).await;
}

async fn killed(version: u32) {
    // Given load, one archiver that works and one that waits
    let scene = Scene::new(version, &[]).await;
    pgbench_tables(&scene.server, 1).await;
    let (mut first, mut second) = scene.pair(&scene.server.conninfo()).await;
    let load = Load::paced(&scene.server, 1, 30);
    scene.settle().await;
    // Then the one that waits asks the store for nothing, and the server for nothing that would fill its log
    let metrics = Endpoint::of(&mut second).await;
    let requests = metrics.scrape().await.unwrap().sum("seawall_store_operations_total");
    let complaints = scene.server.log().matches("is active for PID").count();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let scraped = metrics.scrape().await.unwrap();
    assert_eq!(scraped.sum("seawall_store_operations_total"), requests, "a spare costs requests");
    assert_eq!(scraped.value("seawall_hot_spare"), 1.0);
    assert_eq!(scraped.value("seawall_connected"), 0.0);
    assert_eq!(scene.server.log().matches("is active for PID").count(), complaints, "the server's log is filled");
    // When the first dies, and then the second after a third has come
    for round in 0..2 {
        let holder = scene.holder().await;
        first.kill();
        let took = scene.taken_over(&holder).await;
        scene.settle().await;
        println!("PostgreSQL {version}, killed: taken over after {took:?}, round {round}");
        let mut next = scene.archiver(&scene.server.conninfo());
        next.wait_for_text(SPARE).await;
        (first, second) = (second, next);
    }
    // Then everything is there, without a hole
    load.stop();
    scene.settle().await;
    assert!(second.terminate().await.success() && first.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_first_host_goes_silent_the_second_goes_on() {
    // Given an archiver behind a network, with the time that it gives itself, and one that waits elsewhere
    let scene = Scene::new(DEBIAN, &[]).await;
    pgbench_tables(&scene.server, 1).await;
    let network = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
    let far = format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", network.address().port());
    let (mut first, mut second) = scene.pair(&far).await;
    let load = Load::start(&scene.server, 1);
    scene.settle().await;
    let holder = scene.holder().await;
    // When the network forgets its connections and tells nobody, and lets none through any more
    network.set(|network| (network.stalled_up, network.stalled_down) = (true, true));
    network.strand();
    // Then the server, which by itself would wait for a minute, gives the slot to the one that waits
    let took = scene.taken_over(&holder).await;
    println!("silent: taken over after {took:?}");
    assert!(took < Duration::from_secs(45), "that is the server's own patience: {took:?}");
    let before = scene.settle().await;
    // When the network works again, then the first one finds that it has lost, and waits
    network.heal();
    network.cut();
    first.wait_for_text(SPARE).await;
    let holder = scene.holder().await;
    second.kill();
    scene.taken_over(&holder).await;
    load.stop();
    assert!(scene.settle().await >= before);
    assert!(first.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_frozen_and_wakes_up_harms_nothing() {
    // Given one archiver that works, with little time, and one that waits
    let scene = Scene::new(DEBIAN, &[]).await;
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    let short = format!("{} options='-c wal_sender_timeout=2s'", scene.server.conninfo());
    let (mut first, mut second) = scene.pair(&short).await;
    scene.settle().await;
    for round in 0..3 {
        let holder = scene.holder().await;
        // When its machine freezes in the middle of a request to the store
        let hold = scene.bucket.hold(Op::Put);
        scene.server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        hold.arrived(1).await;
        first.signal(Signal::SIGSTOP);
        // Then the other one goes on, as far as the store lets it; the frozen one's request is carried out late, among its own
        let took = scene.taken_over(&holder).await;
        println!("frozen: taken over after {took:?}, round {round}");
        scene.server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        drop(hold);
        let told = scene.settle().await;
        let (slot, holder) = (scene.slot().await, scene.holder().await);
        assert!(slot >= told, "the slot is at {slot}, and {told} was acknowledged");
        // When it wakes up, then it finds that it has lost, and waits; the slot has neither moved back nor changed hands
        first.signal(Signal::SIGCONT);
        let waits = Endpoint::of(&mut first).await;
        wait_for("the one that was frozen to wait", PATIENCE, async || {
            assert!(first.is_running(), "it ended:\n{}", first.stderr());
            (waits.scrape().await?.value("seawall_hot_spare") == 1.0).then_some(())
        })
        .await;
        assert_eq!(scene.holder().await, holder);
        assert!(scene.slot().await >= slot, "the slot moved back from {slot}");
        scene.server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        scene.settle().await;
        // and it can take over in its turn
        let next = scene.archiver(&short);
        second.kill();
        scene.taken_over(&holder).await;
        scene.settle().await;
        let (mut one, mut other) = (first, next);
        if Endpoint::of(&mut one).await.scrape().await.unwrap().value("seawall_hot_spare") == 1.0 {
            (one, other) = (other, one);
        }
        other.wait_for_text(SPARE).await;
        (first, second) = (one, other);
    }
    assert!(second.terminate().await.success() && first.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_replicate_can_wait_as_well() {
    // Given a role without SQL, which cannot look at the slot
    let scene = Scene::new(DEBIAN, &["local replication plain trust", "local all plain reject"]).await;
    scene.server.sql("CREATE ROLE plain LOGIN REPLICATION").await.unwrap();
    let plain = format!("host={} port={} user=plain", scene.server.socket_directory().display(), scene.server.port());
    let mut first = scene.archiver(&plain);
    scene.wait("the stream to begin", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
    let mut second = scene.archiver(&plain);
    second.wait_for_text(SPARE).await;
    let metrics = Endpoint::of(&mut second).await;
    let requests = metrics.scrape().await.unwrap().sum("seawall_store_operations_total");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        metrics.scrape().await.unwrap().sum("seawall_store_operations_total"),
        requests,
        "a spare costs requests"
    );
    // When the first one goes, then the second one goes on
    let holder = scene.holder().await;
    first.kill();
    let took = scene.taken_over(&holder).await;
    println!("killed, without SQL: taken over after {took:?}");
    scene.server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    scene.settle().await;
    assert!(second.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_bears_a_store_and_a_server_that_go_away_for_a_while() {
    let mut scene = Scene::new(DEBIAN, &[]).await;
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    let (mut first, mut second) = scene.pair(&scene.server.conninfo()).await;
    scene.settle().await;
    // When the server restarts, then one of them works again and the other waits
    scene.server.stop(seawall::scratch::StopMode::Fast).await.unwrap();
    scene.server.start().await.unwrap();
    scene.wait("somebody to stream", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
    scene.settle().await;
    let (one, other) = (Endpoint::of(&mut first).await, Endpoint::of(&mut second).await);
    wait_for("one to wait", PATIENCE, async || {
        let waiting = one.scrape().await?.value("seawall_hot_spare") + other.scrape().await?.value("seawall_hot_spare");
        (waiting == 1.0).then_some(())
    })
    .await;
    if one.scrape().await.unwrap().value("seawall_hot_spare") == 1.0 {
        (first, second) = (second, first);
    }
    // When the one that works dies while the store refuses, then the other one is there when it no longer does
    scene.bucket.always(Op::List, s3::Fault::ACCESS_DENIED);
    first.kill();
    second.wait_for_text("not streaming; trying again").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(second.is_running(), "it gave up:\n{}", second.stderr());
    scene.bucket.clear();
    scene.server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    scene.settle().await;
    assert!(second.terminate().await.success());
    scene.assert_without_hole().await;
}
