//! The built program's memory stays within its bounds, however much WAL waits, however large segments are, and however
//! long the store does not answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::{Op, S3Server};
use seawall::scratch::ServerOptions;
use std::time::Duration;
use support::postgres::{DEBIAN, Postgres};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tokio::time::Instant;

/// What `docs/performance.md` promises of a program that streams.
const PROMISED_BYTES: u64 = 64_000_000;

/// The pages of the program file itself. A debug build has several times as many as what is released, which this test
/// does not run: so its own are not counted, and these are instead.
const RELEASED_PROGRAM_BYTES: u64 = 12_000_000;

/// Without a byte for so long, reading has stopped.
const STANDSTILL: Duration = Duration::from_secs(2);

/// WAL that waits: several times what may be in memory.
const WAITING_BYTES: u64 = 200 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_while_the_store_hangs_and_while_it_catches_up() {
    for wal_segment_mib in [16, 1024] {
        // Given WAL that waits, half of which does not get smaller when compressed
        let options = ServerOptions { wal_segment_mib: Some(wal_segment_mib), ..ServerOptions::default() };
        let server = Postgres::create(DEBIAN, options).await;
        server.sql("SELECT pg_create_physical_replication_slot('seawall', true)").await.unwrap();
        server
            .sql("CREATE TABLE noise (bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE external")
            .await
            .unwrap();
        let begun = position(&server, "SELECT pg_current_wal_flush_lsn()").await;
        let mut end = begun;
        while end - begun < WAITING_BYTES {
            let noise = "(SELECT string_agg(sha256((i::text || clock_timestamp()::text)::bytea), '') FROM generate_series(1, 200) i)";
            let blanks = "convert_to(repeat(' ', 6400), 'UTF8')";
            let insert = |bytes: &str| format!("INSERT INTO noise SELECT {bytes} FROM generate_series(1, 2500)");
            server.sql(&insert(noise)).await.unwrap();
            server.sql(&insert(blanks)).await.unwrap();
            end = position(&server, "SELECT pg_current_wal_flush_lsn()").await;
        }
        let bucket = S3Server::start();
        let hold = bucket.hold(Op::Put.at("backups/main/wal/"));
        // When the program meets a store that takes no block
        let running = start(&server, &bucket);
        let mut last = (0, Instant::now());
        wait_for("reading to stop", PATIENCE * 3, async || {
            // The second connection is there as well, and is sent nothing.
            let sent = position(&server, "SELECT coalesce(max(sent_lsn - '0/0'), 0) FROM pg_stat_replication").await;
            if sent != last.0 {
                last = (sent, Instant::now());
            }
            (sent > 0 && last.1.elapsed() > STANDSTILL).then_some(())
        })
        .await;
        let while_hanging = Memory::of(&running);
        // and then one that takes them all
        drop(hold);
        wait_for("everything to be stored", PATIENCE * 3, async || {
            let flushed = "SELECT coalesce(max(flush_lsn - '0/0'), 0) FROM pg_stat_replication";
            (position(&server, flushed).await >= end).then_some(())
        })
        .await;
        // Then neither took more memory than promised
        let at_the_end = Memory::of(&running);
        println!("segments of {wal_segment_mib} MiB: {while_hanging:?}, then {at_the_end:?}");
        for (memory, when) in [(while_hanging, "the store hung"), (at_the_end, "it caught up")] {
            let bytes = memory.peak_bytes - memory.program_bytes + RELEASED_PROGRAM_BYTES;
            assert!(
                bytes <= PROMISED_BYTES,
                "{bytes} bytes while {when}, segments of {wal_segment_mib} MiB: {memory:?}"
            );
        }
    }
}

fn start(server: &Postgres, bucket: &S3Server) -> Running {
    let seawall = Seawall::new(["run", "--listen", "off"])
        .env("SEAWALL_PG", server.conninfo())
        .env("SEAWALL_REPO", format!("s3://{}/backups", S3Server::BUCKET));
    bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value)).start()
}

async fn position(server: &Postgres, query: &str) -> u64 {
    let value = server.value(query).await;
    value.parse().unwrap_or_else(|_| value.parse::<seawall::wal::Lsn>().unwrap().0)
}

/// A process in `/proc`.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// The most it ever had.
    peak_bytes: u64,
    /// Pages of the program and its libraries.
    program_bytes: u64,
}

impl Memory {
    fn of(running: &Running) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux");
            line.trim().strip_suffix("kB").expect("a size").trim().parse::<u64>().expect("a number") * 1024
        };
        Memory { peak_bytes: field("VmHWM:"), program_bytes: field("RssFile:") }
    }
}
