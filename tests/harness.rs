//! The test harness itself: a harness that lies makes every other test lie.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use seawall::error::Kind;
use seawall::scratch::{Server, ServerOptions, StopMode};
use std::path::PathBuf;
use std::time::Duration;
use support::postgres::{
    DEBIAN, Load, Postgres, pgbench_tables, pgbench_transactions, programs, row_digests, scratch_directory, tool,
};
use support::program::Seawall;
use support::proxy::{Proxy, Way};
use support::waiting::{PATIENCE, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Given the programs of a version, when a server is made, it answers with that version, stops and starts again.
async fn starts_answers_and_stops(version: u32) {
    let mut server = Postgres::create(version, ServerOptions::default()).await;
    let number: u32 = server.value("SHOW server_version_num").await.parse().unwrap();
    assert_eq!(number / 10_000, version);
    server.sql("CREATE TABLE kept AS SELECT 'yes' AS answer").await.unwrap();
    let pid = server.pid().unwrap();
    server.stop(StopMode::Fast).await.unwrap();
    assert!(!process(pid).exists() && server.pid().is_none());
    assert_eq!(server.sql("SELECT 1").await.unwrap_err().kind(), Kind::Postgres);
    server.start().await.unwrap();
    assert_eq!(server.value("SELECT answer FROM kept").await, "yes");
}

for_every_version!(starts_answers_and_stops:
    version_13 = 13, version_14 = 14, version_15 = 15, version_16 = 16, version_17 = 17, version_18 = 18);

#[tokio::test]
async fn a_dropped_server_is_gone_and_leaves_nothing_in_tmp() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let (pid, sockets, data) =
        (server.pid().unwrap(), server.socket_directory().to_owned(), server.data_directory().to_owned());
    assert!(process(pid).exists() && sockets.exists());
    drop(server);
    assert!(!process(pid).exists() && !sockets.exists() && !data.exists());
}

#[tokio::test]
async fn what_is_put_in_the_place_of_a_servers_log_is_neither_read_nor_written() {
    let mut server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    // Given somebody who is that server's user, and puts a link to a file of ours under the name of its log
    let ours = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ours.path(), "a secret of ours").unwrap();
    let log = server.socket_directory().join("log");
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(ours.path(), &log).unwrap();
    // When the server starts again and its log is asked for
    server.stop(StopMode::Fast).await.unwrap();
    server.start().await.unwrap();
    // Then it is the log that is told, and our file is as it was
    assert!(!server.log().contains("secret"), "{}", server.log());
    assert_eq!(server.log().matches("database system is ready to accept connections").count(), 2, "{}", server.log());
    assert_eq!(std::fs::read_to_string(ours.path()).unwrap(), "a secret of ours");
}

#[tokio::test]
async fn a_stopped_process_is_dropped_like_any_other() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let pid = server.pid().unwrap();
    server.signal(nix::sys::signal::Signal::SIGSTOP);
    drop(server);
    assert!(!process(pid).exists());
}

#[tokio::test]
async fn a_server_that_does_not_end_is_waited_for_beside_whoever_dropped_it() {
    // Given a server with a process that does not end before the postmaster kills it, five seconds later
    let directory = scratch_directory();
    let server = Server::create(&programs(DEBIAN), directory.path(), ServerOptions::default()).await.unwrap();
    let (pid, sockets) = (server.pid().unwrap(), server.socket_directory().to_owned());
    let rows = server.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await.unwrap();
    let checkpointer = nix::unistd::Pid::from_raw(rows[0][0].as_ref().unwrap().parse().unwrap());
    nix::sys::signal::kill(checkpointer, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // When it is dropped, then whoever did it goes on before it is gone
    drop(server);
    assert!(process(pid).exists(), "it was waited for");
    // and it goes, with what was its own
    wait_for("the server to be gone", PATIENCE, async || (!process(pid).exists() && !sockets.exists()).then_some(()))
        .await;
}

#[tokio::test]
async fn a_killed_server_recovers_what_was_committed() {
    let mut server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    server.kill().await.unwrap();
    assert!(server.sql("SELECT 1").await.is_err(), "a killed server answers");
    server.start().await.unwrap();
    assert_eq!(server.value("SELECT count(*) FROM t").await, "1000");
    assert!(server.log().contains("database system was not properly shut down"), "{}", server.log_tail());
}

#[tokio::test]
async fn the_options_reach_the_cluster() {
    let options = ServerOptions {
        settings: settings(&[("cluster_name", "it's a \\ test"), ("max_connections", "17")]),
        wal_segment_mib: Some(1),
        data_checksums: true,
        listen_tcp: true,
        hba: vec!["host all guest 127.0.0.1/32 reject".into()],
        ..ServerOptions::default()
    };
    let mut server = Postgres::create(DEBIAN, options).await;
    assert_eq!(server.value("SHOW cluster_name").await, "it's a \\ test");
    assert_eq!(server.value("SHOW max_connections").await, "17");
    assert_eq!(server.value("SHOW wal_segment_size").await, "1MB");
    assert_eq!(server.value("SHOW data_checksums").await, "on");

    // Over TCP `postgres` is let in, `guest` is not; the port stays over a restart.
    server.sql("CREATE ROLE guest LOGIN").await.unwrap();
    let over_tcp = |user: &str, server: &Server| {
        let conninfo = server.tcp_conninfo().replace("user=postgres", &format!("user={user}"));
        tool("psql").args(["-Atc", "SELECT 1", &conninfo]).output().unwrap()
    };
    assert_eq!(over_tcp("postgres", &server).stdout, b"1\n");
    assert!(String::from_utf8_lossy(&over_tcp("guest", &server).stderr).contains("rejects connection"));
    let port = server.port();
    server.stop(StopMode::Fast).await.unwrap();
    server.start().await.unwrap();
    assert_eq!((server.port(), over_tcp("postgres", &server).stdout.as_slice()), (port, b"1\n".as_slice()));
}

#[tokio::test]
async fn checksums_are_off_unless_asked_for_whatever_the_version_does_by_itself() {
    let server = Postgres::create(18, ServerOptions::default()).await;
    assert_eq!(server.value("SHOW data_checksums").await, "off");
}

#[tokio::test]
async fn many_servers_run_side_by_side() {
    let options = || ServerOptions { listen_tcp: true, ..ServerOptions::default() };
    let servers = futures_util::future::join_all((0..4).map(|_| Postgres::create(DEBIAN, options()))).await;
    let mut ports: Vec<u16> = servers.iter().map(|server| server.port()).collect();
    for server in &servers {
        assert_eq!(server.value("SHOW data_directory").await, server.data_directory().display().to_string());
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), servers.len(), "two servers share a port: {ports:?}");
}

/// Given a base backup by PostgreSQL's own tool, when it is opened, then its recovery is waited for and the rows are equal.
#[tokio::test]
async fn a_restored_directory_opens_when_its_recovery_has_ended() {
    let source = Postgres::create(DEBIAN, ServerOptions::default()).await;
    pgbench_tables(&source, 1).await;
    pgbench_transactions(&source, 100).await;
    let before = row_digests(&source, "postgres").await;
    assert_eq!(before["public.pgbench_accounts"].0, 100_000);
    assert_eq!(before["public.pgbench_history"].0, 100);

    let place = scratch_directory();
    let data = place.path().join("restored");
    let copied =
        tool("pg_basebackup").args(["-c", "fast", "-d", &source.conninfo(), "-D"]).arg(&data).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    pgbench_transactions(&source, 1).await;

    // As a real restore it has a signal file; and settings of its host, which are not this one's.
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    let conf = "restore_command = 'false'\nssl = on\nexternal_pid_file = '/nowhere/pid'\nlogging_collector = on\n\
                archive_mode = on\narchive_command = 'touch archived'\nhba_file = '/nowhere/hba'\n";
    std::fs::write(data.join("postgresql.auto.conf"), conf).unwrap();
    let restored = Server::open(source.programs(), &data, ServerOptions::default()).await.unwrap();
    let in_recovery = restored.sql("SELECT pg_is_in_recovery()").await.unwrap();
    assert_eq!(in_recovery, [[Some("f".to_owned())]]);
    assert_eq!(row_digests(&restored, "postgres").await, before);
    assert_ne!(row_digests(&source, "postgres").await, before, "a digest that does not see a transaction");
    assert!(!data.join("archived").exists(), "the restored server archived into its source's archive");
}

#[tokio::test]
async fn a_recovery_that_fails_is_an_error_with_the_servers_own_words() {
    let mut source = Postgres::create(DEBIAN, ServerOptions::default()).await;
    source.stop(StopMode::Fast).await.unwrap();
    std::fs::write(source.data_directory().join("recovery.signal"), "").unwrap();
    let options = ServerOptions { settings: settings(&[("restore_command", "exit 255")]), ..ServerOptions::default() };
    let Err(error) = Server::open(source.programs(), source.data_directory(), options).await else {
        panic!("a server opened whose restore_command fails")
    };
    assert_eq!(error.kind(), Kind::Local);
    assert!(error.to_string().contains("could not restore file"), "{error}");
}

#[tokio::test]
async fn a_cluster_that_is_there_is_not_overwritten() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let directory = server.data_directory().parent().unwrap().to_owned();
    let Err(error) = Server::create(server.programs(), &directory, ServerOptions::default()).await else {
        panic!("a second cluster in one directory")
    };
    assert!(error.to_string().contains("not empty"), "{error}");
    server.sql("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn load_runs_until_it_is_dropped() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    pgbench_tables(&server, 1).await;
    let mut load = Load::start(&server, 2);
    wait_for("a hundred transactions", PATIENCE, async || {
        let rows: u32 = server.value("SELECT count(*) FROM pgbench_history").await.parse().unwrap();
        (rows >= 100).then_some(())
    })
    .await;
    assert!(load.is_running());
    load.stop();
    wait_for("the clients to leave", PATIENCE, async || {
        let clients = server.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'").await;
        (clients == "0").then_some(())
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "waited 0 seconds in vain for the end of the world")]
async fn a_wait_in_vain_says_what_for() {
    wait_for("the end of the world", Duration::from_millis(20), async || None::<()>).await;
}

#[test]
fn a_missing_version_says_how_to_get_it() {
    let caught = std::panic::catch_unwind(|| programs(12)).unwrap_err();
    let message = caught.downcast_ref::<String>().unwrap();
    assert!(message.contains("bash tests/run.sh"), "{message}");
}

#[tokio::test]
async fn the_program_is_run_with_nothing_of_our_environment_and_killed_when_dropped() {
    Seawall::new(["--version"]).env("PATH", "/usr/bin:/bin").run_ok().await;
    let running = Seawall::new(["--help"]).start();
    let pid = running.pid();
    drop(running);
    assert!(!process(pid).exists());
}

/// A server that sends back what it gets, a proxy before it, and a connection through both that has been used.
async fn through_a_proxy() -> (Proxy, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = connection.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let proxy = Proxy::start(address).await;
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut connection, b"hello").await.unwrap(), b"hello");
    (proxy, connection)
}

/// What comes back, or how the connection ended; the wait is bounded.
async fn echo(connection: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let conversation = async {
        connection.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        connection.read_exact(&mut back).await?;
        Ok(back)
    };
    tokio::time::timeout(PATIENCE, conversation).await.expect("an answer or an error")
}

/// Nothing comes: waits long enough for what would come on a loopback, and no proof of speed.
async fn nothing_comes(connection: &mut TcpStream) {
    let mut byte = [0];
    let waited = tokio::time::timeout(Duration::from_millis(200), connection.read(&mut byte)).await;
    assert!(waited.is_err(), "something came: {waited:?}");
}

#[tokio::test]
async fn the_proxy_closes_or_resets_what_lives_and_lets_new_connections_through() {
    let (proxy, mut first) = through_a_proxy().await;
    proxy.cut();
    assert_eq!(tokio::time::timeout(PATIENCE, first.read(&mut [0])).await.unwrap().unwrap(), 0, "an orderly end");
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut second, b"again").await.unwrap(), b"again");
    proxy.reset();
    let error = tokio::time::timeout(PATIENCE, second.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // and while it refuses, nobody comes through
    proxy.set(|network| network.refusing = true);
    let mut third = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(echo(&mut third, b"?").await.is_err());
    proxy.heal();
    let mut fourth = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut fourth, b"better").await.unwrap(), b"better");
}

#[tokio::test]
async fn the_proxy_delays_and_throttles_a_connection_that_lives() {
    let (proxy, mut connection) = through_a_proxy().await;
    // Late by the same time however much it is: twice there and back
    proxy.set(|network| network.delay = Duration::from_millis(100));
    let begun = tokio::time::Instant::now();
    let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    assert_eq!(echo(&mut connection, &bytes[..100]).await.unwrap(), bytes[..100]);
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    // A throttle takes the time of all the bytes
    proxy.heal();
    proxy.set(|network| network.bytes_per_second = Some(400_000));
    let begun = tokio::time::Instant::now();
    assert_eq!(echo(&mut connection, &bytes).await.unwrap(), bytes);
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_proxy_leaves_connections_half_open_and_lets_them_go_on() {
    let (proxy, mut connection) = through_a_proxy().await;
    for way in [Way::Up, Way::Down] {
        // Given a way on which nothing passes any more
        proxy.set(|network| match way {
            Way::Up => network.stalled_up = true,
            Way::Down => network.stalled_down = true,
        });
        let before = (proxy.bytes(Way::Up), proxy.bytes(Way::Down));
        connection.write_all(b"late").await.unwrap();
        // Then nobody is told, on that way nothing passes, and on the other what is there does
        nothing_comes(&mut connection).await;
        assert_eq!(proxy.bytes(Way::Down), before.1);
        let expected = before.0 + if way == Way::Up { 0 } else { 4 };
        wait_for("the open way to be used", PATIENCE, async || (proxy.bytes(Way::Up) == expected).then_some(())).await;
        // and when it is mended, nothing was lost
        proxy.heal();
        let mut late = [0; 4];
        tokio::time::timeout(PATIENCE, connection.read_exact(&mut late)).await.unwrap().unwrap();
        assert_eq!(&late, b"late");
    }
    // A stranded connection stays so, and a new one works
    proxy.strand();
    connection.write_all(b"lost").await.unwrap();
    nothing_comes(&mut connection).await;
    proxy.heal();
    nothing_comes(&mut connection).await;
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut new, b"new").await.unwrap(), b"new");
    assert_eq!(proxy.connections(), 2);
}
