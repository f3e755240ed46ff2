//! In bulk: catch-up of waiting WAL, base backups, restores, each in turns with what one would use instead.

use crate::Scale;
use crate::fixture::{DISK, Fixture, bytes_below, settle};
use crate::latency::{FLUSHED, lsn};
use crate::process::{Cost, Measured};
use crate::s3_process::{Behaviour, S3Process};
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::wal::Lsn;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::block_in_place;

/// A stream that has brought nothing for so long has stopped.
const STANDSTILL: Duration = Duration::from_secs(2);

pub async fn catch_up(scale: &Scale, segment_mib: u32) {
    let fixture = Fixture::create(scale.waiting_scale, segment_mib, DISK).await;
    let bytes = fixture.waiting_bytes();
    assert!(bytes >= fixture.segment_bytes, "the load has not filled a segment");
    let mut rounds = Vec::new();
    for _ in 0..scale.discarded + scale.rounds {
        let synced = pg_receivewal(&fixture, &[]).await;
        let ours = catches_up(&fixture, |store| fixture.seawall(store, &["run", "--listen", "off"])).await;
        let unsynced = pg_receivewal(&fixture, &["--no-sync"]).await;
        rounds.push([ours, synced, unsynced]);
    }
    let names = ["`seawall run` into S3", "`pg_receivewal -Z lz4`", "`pg_receivewal -Z lz4 --no-sync`"];
    let title = format!("{} of waiting WAL, segments of {}", mb(bytes), mib(fixture.segment_bytes));
    report(&title, bytes, &names, &rounds[scale.discarded..]);
    println!("| `seawall run`, S3 hangs | | | {} | | | |", mb(memory_with_a_hanging_store(&fixture).await));
}

/// What it costs an archiver, given as the command that starts it, until all waiting WAL is stored.
pub async fn catches_up(fixture: &Fixture, archiver: impl FnOnce(&S3Process) -> Command) -> Cost {
    let directory = fixture.empty_directory();
    let store = S3Process::start(directory.path(), Behaviour::Elsewhere);
    fixture.copy_slot("seawall").await;
    let session = fixture.server.connect("postgres").await.unwrap();
    settle();
    let before = store.cpu_seconds();
    let mut running = Measured::start(archiver(&store));
    let mut flushed = None;
    while flushed.is_none_or(|flushed| flushed < fixture.waiting.1) {
        fixture.check_runs(&mut running);
        // Often only towards the end: a look takes the machine a tenth of a millisecond.
        let is_near = flushed.is_some_and(|flushed: Lsn| fixture.waiting.1 - flushed < fixture.waiting_bytes() / 25);
        tokio::time::sleep(Duration::from_millis(if is_near { 5 } else { 25 })).await;
        flushed = lsn(&session, FLUSHED).await;
    }
    let seconds = running.seconds();
    let cost = block_in_place(|| running.terminate(seconds));
    let store_cpu_seconds = store.cpu_seconds() - before;
    check_stored(fixture, &store);
    fixture.drop_slot("seawall").await;
    Cost { store_cpu_seconds, ..cost }
}

/// What was measured was the work that was asked for: all waiting WAL is there, without a hole.
fn check_stored(fixture: &Fixture, store: &S3Process) {
    let output = fixture.seawall(store, &["list", "--json"]).stdout(Stdio::piped()).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &listed["wal"][0]["stored"][0];
    let lsn = |name: &str| run[name].as_str().unwrap().parse::<Lsn>().unwrap();
    let (stored, waiting) = ((lsn("start"), lsn("end")), fixture.waiting);
    assert!(stored.0 <= waiting.0 && stored.1 >= waiting.1, "stored: {stored:?}, not {waiting:?}");
}

async fn pg_receivewal(fixture: &Fixture, further: &[&str]) -> Cost {
    let directory = fixture.empty_directory();
    fixture.copy_slot("receivewal").await;
    let path = directory.path().to_str().unwrap();
    // It ends behind the position, which therefore is inside the last segment.
    let end = Lsn(fixture.waiting.1.0 - 1).to_string();
    let arguments = ["-D", path, "-Z", "lz4", "-S", "receivewal", "--endpos", &end, "--no-loop"];
    let command = fixture.tool("pg_receivewal", &[&arguments, further].concat());
    settle();
    let cost = block_in_place(|| Measured::start(command).wait());
    let whole = std::fs::read_dir(directory.path()).unwrap().flatten();
    let whole = whole.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "lz4")).count();
    assert_eq!(whole as u64, fixture.waiting_bytes() / fixture.segment_bytes, "segments of pg_receivewal");
    fixture.drop_slot("receivewal").await;
    cost
}

/// The memory of an archiver that has as much WAL waiting as it wants, and a store that takes none of it.
async fn memory_with_a_hanging_store(fixture: &Fixture) -> u64 {
    let directory = fixture.empty_directory();
    let store = S3Process::start(directory.path(), Behaviour::Hang);
    fixture.copy_slot("seawall").await;
    let mut running = Measured::start(fixture.seawall(&store, &["run", "--listen", "off"]));
    let session = fixture.server.connect("postgres").await.unwrap();
    let mut last = (None, Instant::now());
    wait_for("the archiver to stop reading", PATIENCE, async || {
        fixture.check_runs(&mut running);
        let received = lsn(&session, "SELECT sent_lsn FROM pg_stat_replication").await;
        if received != last.0 {
            last = (received, Instant::now());
        }
        (received.is_some() && last.1.elapsed() > STANDSTILL).then_some(())
    })
    .await;
    let cost = block_in_place(|| running.kill());
    fixture.drop_slot("seawall").await;
    cost.rss_bytes
}

pub async fn base_backup(scale: &Scale, fixture: &Fixture, which: &str) {
    let bytes = fixture.database_bytes;
    let mut rounds = Vec::new();
    for _ in 0..scale.discarded + scale.rounds {
        let directory = fixture.empty_directory();
        let store = S3Process::start(directory.path(), Behaviour::Elsewhere);
        settle();
        let ours = fixture.seawall(&store, &["backup", "--fast", "--slot", "seawall_backup"]);
        let ours = block_in_place(|| Measured::start(ours).wait_with(&store));
        fixture.drop_slot("seawall_backup").await;
        settle();
        let raw = ["-X", "none", "-F", "t", "-D", "-", "-c", "fast"];
        let raw = block_in_place(|| Measured::start(fixture.tool("pg_basebackup", &raw)).wait());
        rounds.push([ours, raw]);
    }
    let names = ["`seawall backup` to S3", "`pg_basebackup -X none -Ft -D -` to /dev/null"];
    report(&format!("A base backup of {}, {which}", mb(bytes)), bytes, &names, &rounds[scale.discarded..]);
}

pub async fn restore(scale: &Scale, fixture: &Fixture) {
    // One backup, restored again and again.
    let repository = fixture.empty_directory();
    let store = S3Process::start(repository.path(), Behaviour::AtOnce);
    let backup = fixture.seawall(&store, &["backup", "--fast", "--slot", "seawall_restore"]);
    block_in_place(|| Measured::start(backup).wait());
    fixture.drop_slot("seawall_restore").await;
    let mut rounds = Vec::new();
    let mut bytes = 0;
    for _ in 0..scale.discarded + scale.rounds {
        let directory = fixture.empty_directory();
        let into = directory.path().join("data");
        settle();
        let restore = fixture.seawall(&store, &["restore", "--into", into.to_str().unwrap()]);
        let ours = block_in_place(|| Measured::start(restore).wait_with(&store));
        bytes = bytes_below(&into);
        assert!(bytes >= fixture.database_bytes, "{bytes} bytes were restored of {}", fixture.database_bytes);
        drop(directory);
        let disk = write_zeros(fixture, bytes, &fixture.empty_directory());
        rounds.push([ours, disk]);
    }
    let names = ["`seawall restore` from S3", "`dd conv=fsync` of as many zeros"];
    report(&format!("A restore of {}", mb(bytes)), bytes, &names, &rounds[scale.discarded..]);
}

fn write_zeros(fixture: &Fixture, bytes: u64, directory: &TempDir) -> Cost {
    settle();
    let mut dd = fixture.server.user().command(Path::new("dd"));
    dd.args(["if=/dev/zero", "bs=1M", "conv=fsync", &format!("count={}", bytes.div_ceil(1 << 20))]);
    dd.arg(format!("of={}", directory.path().join("zeros").display())).current_dir("/").stderr(Stdio::null());
    block_in_place(|| Measured::start(dd).wait())
}

pub fn mb(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Prints medians; the first column of `rounds` is ours, and the ratios are of it and another in the same round.
pub fn report<const N: usize>(title: &str, bytes: u64, names: &[&str; N], rounds: &[[Cost; N]]) {
    println!("\n## {title}\n");
    println!(
        "| what | MB/s | CPU s per GB | peak memory | S3 server's CPU s per GB | our speed by its | our CPU by its |"
    );
    println!("|---|---|---|---|---|---|---|");
    let gb = bytes as f64 / 1e9;
    for (i, name) in names.iter().enumerate() {
        let of = |figure: &dyn Fn(&Cost) -> f64| median(rounds.iter().map(|round| figure(&round[i])).collect());
        let ratio = |ratios: Vec<f64>| {
            let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), it| (low.min(*it), high.max(*it)));
            if i == 0 { String::new() } else { format!("{:.2} ({low:.2} to {high:.2})", median(ratios)) }
        };
        let speed = ratio(rounds.iter().map(|round| round[i].seconds / round[0].seconds).collect());
        let cpu = ratio(rounds.iter().map(|round| round[0].cpu_seconds / round[i].cpu_seconds).collect());
        let server = if i == 0 { format!("{:.2}", of(&|cost| cost.store_cpu_seconds / gb)) } else { String::new() };
        println!(
            "| {name} | {:.0} | {:.2} | {} | {server} | {speed} | {cpu} |",
            of(&|cost| gb * 1e3 / cost.seconds),
            of(&|cost| cost.cpu_seconds / gb),
            mb(of(&|cost| cost.rss_bytes as f64) as u64),
        );
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
