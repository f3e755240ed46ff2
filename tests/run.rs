//! `seawall run` through everything that happens to a daemon: signals, a store that hangs or fails, a server that restarts.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use nix::sys::signal::Signal;
use s3::{Fault, Op, S3Server};
use seawall::scratch::{ServerOptions, StopMode};
use std::time::Duration;
use support::postgres::{DEBIAN, Load, Postgres, pgbench_tables};
use support::program::{Running, Seawall};
use support::proxy::Proxy;
use support::waiting::{PATIENCE, wait_for};

/// The server gives up on a silent archiver after this many seconds.
const SENDER_TIMEOUT: u32 = 3;

struct Scene {
    server: Postgres,
    bucket: S3Server,
}

impl Scene {
    async fn new() -> Scene {
        Scene { server: Postgres::create(DEBIAN, ServerOptions::default()).await, bucket: S3Server::start() }
    }

    fn seawall(&self, arguments: &[&str]) -> Seawall {
        let repository = format!("s3://{}/backups", S3Server::BUCKET);
        let conninfo = format!("{} options='-c wal_sender_timeout={SENDER_TIMEOUT}s'", self.server.conninfo());
        let seawall = Seawall::new(arguments).env("SEAWALL_PG", conninfo).env("SEAWALL_REPO", repository);
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    async fn run(&self, flush_interval: &str) -> Running {
        let running = self.seawall(&["run", "--listen", "off", "--flush-interval", flush_interval]).start();
        self.wait("the stream to begin", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
        running
    }

    /// Waits until a count is not zero.
    async fn wait(&self, what: &str, query: &str) {
        wait_for(what, PATIENCE, async || (self.server.value(query).await != "0").then_some(())).await;
    }

    async fn write(&self) -> String {
        self.server
            .sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
            .await
            .unwrap();
        self.server.value("SELECT pg_current_wal_flush_lsn()").await
    }

    async fn wait_position(&self, position: &str, lsn: &str) {
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE {position}_lsn >= '{lsn}'");
        self.wait(&format!("{position} to reach {lsn}"), &query).await;
    }

    /// Waits until the server has heard from the archiver for longer than it would bear silence, on one connection.
    async fn wait_longer_than_the_timeout(&self) {
        let pid = self.server.value("SELECT pid FROM pg_stat_replication WHERE state = 'streaming' LIMIT 1").await;
        let since = self.server.value("SELECT clock_timestamp()").await;
        let query = format!(
            "SELECT count(*) FROM pg_stat_replication \
             WHERE pid = {pid} AND reply_time > timestamptz '{since}' + interval '{} s'",
            SENDER_TIMEOUT + 1
        );
        self.wait("status messages to go on", &query).await;
    }

    async fn assert_without_hole(&self) {
        self.seawall(&["list", "--json"]).assert_lists_no_hole().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_signal_stores_and_acknowledges_what_was_received() {
    // Given WAL that was received and is not due for minutes
    let scene = Scene::new().await;
    let mut running = scene.run("10m").await;
    let lsn = scene.write().await;
    scene.wait_position("write", &lsn).await;
    assert_eq!(
        scene.server.value(&format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'")).await,
        "0"
    );
    // When it is told to stop
    let ended = running.terminate().await;
    // Then that ends well, and the slot says that everything is stored
    assert!(ended.success(), "{ended}");
    let kept = format!("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn >= '{lsn}'");
    assert_eq!(scene.server.value(&kept).await, "1");
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_signal_leaves_at_once() {
    // Given a store that does not answer any more
    let scene = Scene::new().await;
    let mut running = scene.run("100ms").await;
    let hold = scene.bucket.hold(Op::Put);
    let before = scene.server.value("SELECT restart_lsn FROM pg_replication_slots").await;
    let lsn = scene.write().await;
    scene.wait_position("write", &lsn).await;
    // When it is told to stop, it waits for the store; told again, it goes
    running.signal(Signal::SIGTERM);
    running.wait_for_text("leaves at once").await;
    assert!(running.is_running());
    running.signal(Signal::SIGTERM);
    running.wait(PATIENCE).await;
    // Then nothing was acknowledged that is not stored
    let after = scene.server.value(&format!("SELECT restart_lsn < '{lsn}' FROM pg_replication_slots")).await;
    assert_eq!(after, "t", "the slot was at {before}");
    drop(hold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_stops_the_reading_and_not_the_connection() {
    // Given a store that takes nothing, and far more WAL than fits into memory
    let scene = Scene::new().await;
    let mut running = scene.run("500ms").await;
    let hold = scene.bucket.hold(Op::Put);
    pgbench_tables(&scene.server, 10).await;
    let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
    // When the server would long have given up on a silent client
    scene.wait_longer_than_the_timeout().await;
    // Then the connection lives, part of the WAL has not been read, and memory is bounded
    let unread = format!("SELECT count(*) FROM pg_stat_replication WHERE write_lsn < '{lsn}' AND state <> 'backup'");
    assert_ne!(scene.server.value(&unread).await, "0", "everything was read into memory");
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 200 << 10, "{peak_kib} KiB at its peak");
    // and when the store answers again, all of it is stored
    drop(hold);
    scene.wait_position("flush", &lsn).await;
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_waited_for() {
    let scene = Scene::new().await;
    let mut running = scene.run("100ms").await;
    for fault in [Fault::INTERNAL_ERROR, Fault::SLOW_DOWN, Fault::ReplyLost] {
        scene.bucket.always(Op::Put, fault);
        let lsn = scene.write().await;
        scene.wait_longer_than_the_timeout().await;
        assert_eq!(
            scene.server.value(&format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'")).await,
            "0"
        );
        scene.bucket.clear();
        scene.wait_position("flush", &lsn).await;
    }
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_altered_on_their_way_to_the_store_are_waited_out() {
    // Given something in the way that alters what is sent, for longer than the store is tried at a time
    let scene = Scene::new().await;
    let mut running = scene.run("100ms").await;
    scene.bucket.always(Op::Put, Fault::BAD_DIGEST);
    let lsn = scene.write().await;
    running.wait_for_text("WAL is not stored yet").await;
    assert!(running.stderr().contains("is there a proxy"), "{}", running.stderr());
    // When it is mended, then everything is stored: nothing was damaged
    scene.bucket.clear();
    scene.wait_position("flush", &lsn).await;
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_breaks_is_bridged_on_both_sides() {
    // Given proxies before the server and before the bucket
    let options = ServerOptions { listen_tcp: true, ..ServerOptions::default() };
    let scene = Scene { server: Postgres::create(DEBIAN, options).await, bucket: S3Server::start() };
    let to_server = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
    let endpoint = scene.bucket.endpoint();
    let to_bucket = Proxy::start(endpoint.trim_start_matches("http://").parse().unwrap()).await;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", to_server.address().port());
    let mut running = scene
        .seawall(&["run", "--listen", "off", "--flush-interval", "100ms"])
        .env("SEAWALL_PG", conninfo)
        .env("AWS_ENDPOINT_URL", format!("http://{}", to_bucket.address()))
        .start();
    pgbench_tables(&scene.server, 1).await;
    let load = Load::start(&scene.server, 2);
    // When one and then the other loses all its connections, again and again, under load
    for _ in 0..3 {
        let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
        scene.wait_position("flush", &lsn).await;
        to_server.cut();
        let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
        scene.wait_position("flush", &lsn).await;
        to_bucket.cut();
    }
    load.stop();
    // Then everything arrives, without a hole
    let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
    scene.wait_position("flush", &lsn).await;
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_is_streamed_again() {
    let mut scene = Scene::new().await;
    let mut running = scene.run("100ms").await;
    for mode in [StopMode::Fast, StopMode::Immediate] {
        scene.write().await;
        tokio::time::timeout(Duration::from_secs(30), scene.server.stop(mode)).await.expect("it stops").unwrap();
        scene.server.start().await.unwrap();
        let lsn = scene.write().await;
        scene.wait_position("flush", &lsn).await;
        assert!(running.is_running());
    }
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_is_not_held_up_by_a_store_that_hangs() {
    // Given WAL that the store does not take
    let mut scene = Scene::new().await;
    let mut running = scene.run("100ms").await;
    let hold = scene.bucket.hold(Op::Put);
    let lsn = scene.write().await;
    scene.wait_position("write", &lsn).await;
    // When the server is told to stop
    tokio::time::timeout(PATIENCE, scene.server.stop(StopMode::Fast)).await.expect("it is held up").unwrap();
    // Then it does, because the archiver leaves; and later nothing is missing
    assert!(running.is_running());
    drop(hold);
    scene.server.start().await.unwrap();
    scene.wait_position("flush", &lsn).await;
    assert!(running.terminate().await.success());
    scene.assert_without_hole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_pressure_does_not_make_the_published_loss_look_good() {
    // Given an archiver whose store hangs, so that it no longer reads
    let scene = Scene::new().await;
    let mut running = scene.seawall(&["run", "--listen", "127.0.0.1:0"]).start();
    scene.wait("the stream to begin", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await;
    running.wait_for_text("metrics at").await;
    let log = running.stderr();
    let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let hold = scene.bucket.hold(Op::Put);
    // When the server writes far more than is in memory
    pgbench_tables(&scene.server, 10).await;
    // Then the loss that is published is what the server has, not what was read
    wait_for("the loss to be published", PATIENCE, async || {
        let text = tokio::task::block_in_place(|| get_metrics(&address));
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        (value("seawall_rpo_bytes") > f64::from(80 << 20) && value("seawall_rpo_seconds") > 1.0).then_some(())
    })
    .await;
    drop(hold);
    assert!(running.terminate().await.success());
}

fn get_metrics(address: &str) -> String {
    use std::io::{Read, Write};
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// What systemd was told so far.
fn told(socket: &std::os::unix::net::UnixDatagram) -> Vec<String> {
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_that_it_is_up_how_it_is_doing_that_it_lives_and_that_it_stops() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let scene = Scene::new().await;
    let place = tempfile::tempdir().unwrap();
    let name = format!("seawall-test-{}", std::process::id());
    let path = place.path().join("notify");
    // Given a manager that listens at a path, and one that does by a name of Linux' own
    let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let by_path = UnixDatagram::bind(&path).unwrap();
    for (socket, address) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
        socket.set_nonblocking(true).unwrap();
        let seawall = scene.seawall(&["run", "--listen", "off"]).env("NOTIFY_SOCKET", address);
        let mut running = seawall.env("WATCHDOG_USEC", "900000").start();
        let mut all = Vec::new();
        // When it streams, then all of that is told, over and over
        wait_for("the manager to hear of it", PATIENCE, async || {
            all.extend(told(&socket));
            let heard = |what: &str| all.iter().filter(|line| line.starts_with(what)).count();
            let enough =
                heard("READY=1") == 1 && heard("STATUS=streaming, durable up to") > 0 && heard("WATCHDOG=1") > 2;
            enough.then_some(())
        })
        .await;
        // And at the end
        assert!(running.terminate().await.success());
        all.extend(told(&socket));
        assert!(all.iter().any(|line| line == "STOPPING=1"), "{all:?}");
    }
    // And what cannot be told keeps nobody from archiving
    let mut running = scene.seawall(&["run", "--listen", "off"]).env("NOTIFY_SOCKET", "/nowhere/notify").start();
    running.wait_for_text("the service manager cannot be told anything").await;
    running.wait_for_text("streaming").await;
    assert!(running.terminate().await.success());
}
