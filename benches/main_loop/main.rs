//! The figures that users ask for, against what they would use instead: catch-up of waiting WAL, base backups, restores, the
//! time until a commit is durable. `cargo bench --bench main_loop`; docs/performance.md keeps what came out and says how it
//! is meant.
//!
//! Figures of different machines, and of one machine at different hours, say little. So whatever is compared runs here
//! in turns, the first round is discarded, and what counts is the median of the rounds' ratios.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::large_futures,
    unreachable_pub,
    reason = "a bench fails loudly, and measures real time"
)]

mod latency;
mod process;
#[path = "../../tests/support/s3/mod.rs"]
mod s3;
#[path = "../../tests/support/s3_store.rs"]
mod s3_store;
#[path = "../../tests/support/mod.rs"]
mod support;

use latency::{FLUSHED, Percentiles, lsn};
use process::{Cost, Measured};
use s3::S3Server;
use seawall::scratch::ServerOptions;
use seawall::wal::Lsn;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::postgres::{DEBIAN, Postgres, pgbench_tables, scratch_directory, tool};
use support::program::path_for_server;
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;
use tokio::task::block_in_place;

/// 15 MB of tables each, and about as much WAL.
const PGBENCH_SCALE: u32 = 35;
/// Each thing that is compared runs so often, plus once that is discarded.
const ROUNDS: usize = 5;
/// The slot that keeps the load's WAL. What is measured gets copies of it.
const HELD: &str = "held";

fn main() {
    // `cargo test --benches` and `--all-targets` run this too, and do not say `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("Measures for some minutes: cargo bench --bench main_loop");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let fixture = Fixture::create().await;
    println!("load average before: {}", load_average());
    fixture.catch_up().await;
    fixture.base_backup().await;
    fixture.restore().await;
    fixture.latencies().await;
    println!("\nload average after: {}", load_average());
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A server with a filled database, and the load's WAL waiting behind a slot.
struct Fixture {
    server: Postgres,
    directory: TempDir,
    /// Where the waiting WAL begins, and the last segment's end.
    waiting: (Lsn, Lsn),
    database_bytes: u64,
    /// Our program, where the servers' user can run it.
    program: PathBuf,
}

impl Fixture {
    async fn create() -> Fixture {
        let settings = [
            // One checkpoint, ours: otherwise the server's own work falls into one run and not into another.
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1d"),
            ("autovacuum", "off"),
            ("shared_buffers", "256MB"),
            ("max_replication_slots", "64"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let server = Postgres::create(DEBIAN, ServerOptions { settings, ..ServerOptions::default() }).await;
        server.sql(&format!("SELECT pg_create_physical_replication_slot('{HELD}', true)")).await.unwrap();
        pgbench_tables(&server, PGBENCH_SCALE).await;
        server.sql("CREATE TABLE tick (at timestamptz DEFAULT clock_timestamp())").await.unwrap();
        server.sql("CHECKPOINT").await.unwrap();
        server.sql("SELECT pg_switch_wal()").await.unwrap();
        let segment = 16 << 20;
        let start = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{HELD}'");
        let start: Lsn = server.value(&start).await.parse().unwrap();
        let end: Lsn = server.value("SELECT pg_current_wal_lsn()").await.parse().unwrap();
        // Whole segments on both sides, for that is what either tool begins and ends with.
        let waiting = (Lsn(start.0 / segment * segment), Lsn(end.0 / segment * segment));
        let database_bytes = server.value("SELECT sum(pg_database_size(oid))::bigint FROM pg_database").await;
        let directory = scratch_directory();
        let program = path_for_server(directory.path());
        Fixture { server, directory, waiting, database_bytes: database_bytes.parse().unwrap(), program }
    }

    /// An empty directory on the measured disk.
    fn empty_directory(&self) -> TempDir {
        let directory = TempDir::new_in(self.directory.path()).unwrap();
        self.server.user().create_directory(directory.path()).unwrap();
        directory
    }

    /// `seawall` against this server and `store`, as the user that the other tools run as.
    fn seawall(&self, store: &S3Server, arguments: &[&str]) -> Command {
        let mut command = self.server.user().command(&self.program);
        for (name, _) in std::env::vars_os() {
            if ["SEAWALL_", "PG", "AWS_", "RUST_LOG"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.args(arguments).args(["--pg", &self.server.conninfo(), "--repo", &s3_store::url()]);
        let said = File::options().create(true).append(true).open(self.directory.path().join("said")).unwrap();
        command.envs(store.env()).current_dir("/").stdout(Stdio::null()).stderr(said);
        command
    }

    /// What `seawall` has written to standard error.
    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("said")).unwrap_or_default()
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = tool(name);
        command.args(arguments).args(["-d", &self.server.conninfo()]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A new slot that begins where the waiting WAL does.
    async fn copy_slot(&self, name: &str) {
        let copy = format!("SELECT pg_copy_physical_replication_slot('{HELD}', '{name}')");
        self.server.sql(&copy).await.unwrap();
    }

    async fn drop_slot(&self, name: &str) {
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        wait_for("the slot to be free", PATIENCE, async || self.server.sql(&drop).await.ok()).await;
    }

    async fn catch_up(&self) {
        let bytes = self.waiting.1 - self.waiting.0;
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let synced = self.pg_receivewal(&[]).await;
            let ours = self.seawall_catches_up().await;
            let unsynced = self.pg_receivewal(&["--no-sync"]).await;
            rounds.push([ours, synced, unsynced]);
        }
        let names = ["`seawall run` into S3", "`pg_receivewal -Z lz4`", "`pg_receivewal -Z lz4 --no-sync`"];
        report(&format!("Catch-up of {} of waiting WAL", mb(bytes)), bytes, &names, &rounds[1..]);
    }

    async fn seawall_catches_up(&self) -> Cost {
        let directory = self.empty_directory();
        let store = S3Server::on_disk(directory.path());
        self.copy_slot("seawall").await;
        let session = self.server.connect("postgres").await.unwrap();
        settle();
        let mut running = Measured::start(self.seawall(&store, &["run", "--listen", "off"]));
        let mut flushed = None;
        while flushed.is_none_or(|flushed| flushed < self.waiting.1) {
            assert!(running.exited().is_none(), "`seawall run` ended:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
            flushed = lsn(&session, FLUSHED).await;
        }
        let seconds = running.seconds();
        let cost = block_in_place(|| running.terminate(seconds));
        self.check_stored(&store);
        self.drop_slot("seawall").await;
        cost
    }

    /// What was measured was the work that was asked for: all waiting WAL is there, without a hole.
    fn check_stored(&self, store: &S3Server) {
        let output = self.seawall(store, &["list", "--json"]).stdout(Stdio::piped()).output().unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let run = &listed["wal"][0]["stored"][0];
        let lsn = |name: &str| run[name].as_str().unwrap().parse::<Lsn>().unwrap();
        let (start, end) = (lsn("start"), lsn("end"));
        assert!(start <= self.waiting.0 && end >= self.waiting.1, "stored: {start} to {end}, not {:?}", self.waiting);
    }

    async fn pg_receivewal(&self, further: &[&str]) -> Cost {
        let directory = self.empty_directory();
        self.copy_slot("receivewal").await;
        let path = directory.path().to_str().unwrap();
        // It ends behind the position, which therefore is inside the last segment.
        let end = Lsn(self.waiting.1.0 - 1).to_string();
        let arguments = ["-D", path, "-Z", "lz4", "-S", "receivewal", "--endpos", &end, "--no-loop"];
        let command = self.tool("pg_receivewal", &[&arguments, further].concat());
        settle();
        let cost = block_in_place(|| Measured::start(command).wait());
        let whole = std::fs::read_dir(directory.path()).unwrap().flatten();
        let whole = whole.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "lz4")).count();
        assert_eq!(whole as u64, (self.waiting.1 - self.waiting.0) >> 24, "segments of pg_receivewal");
        self.drop_slot("receivewal").await;
        cost
    }

    async fn base_backup(&self) {
        let bytes = self.database_bytes;
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let directory = self.empty_directory();
            let store = S3Server::on_disk(directory.path());
            settle();
            let ours = self.seawall(&store, &["backup", "--fast", "--slot", "seawall_backup"]);
            let ours = block_in_place(|| Measured::start(ours).wait());
            self.drop_slot("seawall_backup").await;
            settle();
            let raw = ["-X", "none", "-F", "t", "-D", "-", "-c", "fast"];
            let raw = block_in_place(|| Measured::start(self.tool("pg_basebackup", &raw)).wait());
            rounds.push([ours, raw]);
        }
        let names = ["`seawall backup` to S3", "`pg_basebackup -X none -Ft -D -` to /dev/null"];
        report(&format!("Base backup of {}", mb(bytes)), bytes, &names, &rounds[1..]);
    }

    async fn restore(&self) {
        // One backup, restored again and again.
        let repository = self.empty_directory();
        let store = S3Server::on_disk(repository.path());
        let backup = self.seawall(&store, &["backup", "--fast", "--slot", "seawall_restore"]);
        block_in_place(|| Measured::start(backup).wait());
        self.drop_slot("seawall_restore").await;
        let mut rounds = Vec::new();
        let mut bytes = 0;
        for _ in 0..=ROUNDS {
            let directory = self.empty_directory();
            let into = directory.path().join("data");
            settle();
            let restore = self.seawall(&store, &["restore", "--into", into.to_str().unwrap()]);
            let ours = block_in_place(|| Measured::start(restore).wait());
            bytes = bytes_below(&into);
            assert!(bytes >= self.database_bytes, "{bytes} bytes were restored of {}", self.database_bytes);
            drop(directory);
            let directory = self.empty_directory();
            settle();
            let mut dd = self.server.user().command(Path::new("dd"));
            dd.args(["if=/dev/zero", "bs=1M", "conv=fsync", &format!("count={}", bytes.div_ceil(1 << 20))]);
            dd.arg(format!("of={}", directory.path().join("zeros").display())).current_dir("/").stderr(Stdio::null());
            let disk = block_in_place(|| Measured::start(dd).wait());
            rounds.push([ours, disk]);
        }
        let names = ["`seawall restore` from S3", "`dd conv=fsync` of as many zeros"];
        report(&format!("Restore of {}", mb(bytes)), bytes, &names, &rounds[1..]);
    }

    async fn latencies(&self) {
        let delay = latency::PUT_DELAY.as_millis();
        println!("\n### 100 commits a second, each PUT {delay} ms slower than the loopback\n");
        println!("| what | p50 ms | p99 ms | measured |\n|---|---|---|---|");
        let show = |what: &str, waits: Percentiles| {
            println!("| {what} | {:.1} | {:.1} | {} |", waits.p50 * 1e3, waits.p99 * 1e3, waits.count);
        };
        let directory = self.empty_directory();
        let store = latency::slow_server(directory.path());
        show("one PUT of 8 KiB, alone", latency::puts(&store).await);
        drop(store);
        show("commit, nobody waits for the archive", latency::commits(self).await);
        for (interval, slot, what) in [
            ("500ms", "default", "commit → durable, default (500 ms)"),
            ("0", "at_once", "commit → durable, interval 0"),
        ] {
            let (archiver, _store, _directory) = self.light_archiver(interval, slot).await;
            let waits = latency::commit_to_durable(self).await;
            block_in_place(|| archiver.terminate(0.0));
            show(what, waits);
        }
        let (archiver, _store, _directory) = self.light_archiver("500ms", "synchronous").await;
        self.set_synchronous("seawall").await;
        let waits = latency::commits(self).await;
        self.set_synchronous("").await;
        block_in_place(|| archiver.terminate(0.0));
        show("commit that waits for the archive (synchronous)", waits);
    }

    /// `seawall run` that streams from here on into an empty repository with slower PUTs.
    async fn light_archiver(&self, interval: &str, slot: &str) -> (Measured, S3Server, TempDir) {
        let directory = self.empty_directory();
        let store = latency::slow_server(directory.path());
        let arguments = ["run", "--listen", "off", "--slot", slot, "--flush-interval", interval];
        let mut running = Measured::start(self.seawall(&store, &arguments));
        let session = self.server.connect("postgres").await.unwrap();
        wait_for("`seawall run` to stream", PATIENCE, async || {
            assert!(running.exited().is_none(), "`seawall run` ended:\n{}", self.said());
            lsn(&session, FLUSHED).await
        })
        .await;
        (running, store, directory)
    }

    async fn set_synchronous(&self, names: &str) {
        self.server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.unwrap();
        self.server.sql("SELECT pg_reload_conf()").await.unwrap();
        let shown = async || (self.server.value("SHOW synchronous_standby_names").await == names).then_some(());
        wait_for("the setting", PATIENCE, shown).await;
    }
}

/// The sizes of all files below a directory.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let bytes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => bytes_below(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    bytes.sum()
}

/// Writes out what earlier runs left in memory: the next one is not to pay for it.
fn settle() {
    assert!(Command::new("sync").status().unwrap().success());
}

fn mb(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// Prints medians; the first column of `rounds` is ours, and the ratio is its speed by another's in the same round.
fn report<const N: usize>(title: &str, bytes: u64, names: &[&str; N], rounds: &[[Cost; N]]) {
    println!("\n### {title}\n");
    println!("| what | MB/s | CPU s per GB | peak memory | S3 server's CPU s per GB | speed of ours by its |");
    println!("|---|---|---|---|---|---|");
    let gb = bytes as f64 / 1e9;
    for (i, name) in names.iter().enumerate() {
        let of = |figure: &dyn Fn(&Cost) -> f64| median(rounds.iter().map(|round| figure(&round[i])).collect());
        let ratios: Vec<f64> = rounds.iter().map(|round| round[i].seconds / round[0].seconds).collect();
        let (low, high) =
            ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
        let ratio = if i == 0 { String::new() } else { format!("{:.2} ({low:.2} to {high:.2})", median(ratios)) };
        let server = if i == 0 { format!("{:.2}", of(&|cost| cost.bench_cpu_seconds / gb)) } else { String::new() };
        println!(
            "| {name} | {:.0} | {:.2} | {} | {server} | {ratio} |",
            of(&|cost| gb * 1e3 / cost.seconds),
            of(&|cost| cost.cpu_seconds / gb),
            mb(of(&|cost| cost.rss_bytes as f64) as u64),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
