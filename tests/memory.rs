//! The built program's memory stays within its bounds, however much WAL waits, however large segments are, and however
//! long the store does not answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::{Fault, Op, S3Server};
use seawall::codec::encryption::generate_identity;
use seawall::scratch::ServerOptions;
use std::time::Duration;
use support::postgres::{DEBIAN, Postgres};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tokio::time::Instant;

/// What `docs/performance.md` promises of a program that streams, beside the pages of the program's own file.
const PROMISED_BYTES: u64 = 52_000_000;

/// Without a byte for so long, reading has stopped.
const STANDSTILL: Duration = Duration::from_secs(2);

/// WAL that waits: several times what may be in memory.
const WAITING_BYTES: u64 = 200 << 20;

/// A store this far away stores one block after the other.
const FAR_AWAY: Duration = Duration::from_millis(300);

/// How a program archives.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Of the slot.
    name: &'static str,
    compression: &'static str,
    is_encrypted: bool,
    /// Once the store takes anything.
    is_far: bool,
}

const LZ4: Case = Case { name: "lz4", compression: "lz4", is_encrypted: false, is_far: false };
const ZSTD: Case = Case { name: "zstd", compression: "zstd", ..LZ4 };
const PLAIN: Case = Case { name: "plain", compression: "none", is_far: true, ..LZ4 };
const ENCRYPTED: Case = Case { name: "encrypted", compression: "none", is_encrypted: true, ..LZ4 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_while_the_store_hangs_and_while_it_catches_up() {
    for wal_segment_mib in [16, 1024] {
        // Given WAL that waits, half of which does not get smaller when compressed
        let server = server_with_waiting_wal(wal_segment_mib, &["noise", "blanks"], &[LZ4]).await;
        is_bounded(&server, LZ4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_when_nothing_gets_smaller() {
    for (wal_segment_mib, cases) in [(16, &[LZ4, ZSTD, PLAIN, ENCRYPTED][..]), (1024, &[LZ4, ENCRYPTED])] {
        // Given WAL that waits, which nothing makes smaller
        let server = server_with_waiting_wal(wal_segment_mib, &["noise"], cases).await;
        for case in cases {
            is_bounded(&server, *case).await;
        }
    }
}

/// With a slot for each case, which keeps all of it.
async fn server_with_waiting_wal(wal_segment_mib: u32, rows: &[&str], cases: &[Case]) -> Postgres {
    let options = ServerOptions { wal_segment_mib: Some(wal_segment_mib), ..ServerOptions::default() };
    let server = Postgres::create(DEBIAN, options).await;
    for case in cases {
        server.sql(&format!("SELECT pg_create_physical_replication_slot('{}', true)", case.name)).await.unwrap();
    }
    server.sql("CREATE TABLE noise (bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE external").await.unwrap();
    let begun = position(&server, "SELECT pg_current_wal_flush_lsn()").await;
    while position(&server, "SELECT pg_current_wal_flush_lsn()").await - begun < WAITING_BYTES {
        for row in rows {
            let bytes = match *row {
                "noise" => {
                    "(SELECT string_agg(sha256((n::text || i::text || clock_timestamp()::text)::bytea), '') FROM generate_series(1, 200) i)"
                }
                _ => "convert_to(repeat(' ', 6400), 'UTF8')",
            };
            server.sql(&format!("INSERT INTO noise SELECT {bytes} FROM generate_series(1, 2500) n")).await.unwrap();
        }
    }
    server
}

async fn is_bounded(server: &Postgres, case: Case) {
    let end = position(server, "SELECT pg_current_wal_flush_lsn()").await;
    let of_the_slot = format!(
        "FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = '{}'",
        case.name
    );
    let bucket = S3Server::start();
    let hold = bucket.hold(Op::Put.at("backups/main/wal/"));
    // When the program meets a store that takes no block
    let running = start(server, &bucket, case);
    let mut last = (0, Instant::now());
    wait_for("reading to stop", PATIENCE * 3, async || {
        let sent = position(server, &format!("SELECT coalesce(max(sent_lsn - '0/0'), 0) {of_the_slot}")).await;
        if sent != last.0 {
            last = (sent, Instant::now());
        }
        (sent > 0 && last.1.elapsed() > STANDSTILL).then_some(())
    })
    .await;
    let while_hanging = Memory::of(&running);
    // and then one that takes them all
    if case.is_far {
        bucket.always(Op::Put.at("backups/main/"), Fault::Delay(FAR_AWAY));
    }
    drop(hold);
    wait_for("everything to be stored", PATIENCE * 3, async || {
        let flushed = format!("SELECT coalesce(max(flush_lsn - '0/0'), 0) {of_the_slot}");
        (position(server, &flushed).await >= end).then_some(())
    })
    .await;
    // Then neither took more memory than promised
    let at_the_end = Memory::of(&running);
    println!("{case:?}: {while_hanging:?}, then {at_the_end:?}");
    for (memory, when) in [(while_hanging, "the store hung"), (at_the_end, "it caught up")] {
        let bytes = memory.peak_bytes - memory.program_bytes;
        assert!(bytes <= PROMISED_BYTES, "{bytes} bytes while {when}, {case:?}: {memory:?}");
    }
}

fn start(server: &Postgres, bucket: &S3Server, case: Case) -> Running {
    let seawall = Seawall::new(["run", "--listen", "off", "--slot", case.name, "--compression", case.compression])
        .env("SEAWALL_PG", server.conninfo())
        .env("SEAWALL_REPO", format!("s3://{}/backups", S3Server::BUCKET));
    let seawall = match case.is_encrypted {
        true => seawall.env("SEAWALL_RECIPIENTS", generate_identity().1),
        false => seawall,
    };
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
