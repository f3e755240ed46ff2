//! The figures that users ask for, against what they would use instead: catch-up of waiting WAL, memory, base backups,
//! restores, recovery, the time until a commit is durable.
//!
//! `cargo bench --bench main_loop` prints everything, ready for docs/performance.md, which says how it is meant;
//! `cargo bench --bench main_loop -- catch-up restore` only what is named. As a test (without `--bench`) it measures
//! everything once on next to nothing, so that it still works when it is wanted.
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

mod fixture;
mod incremental;
mod index;
mod latency;
mod process;
mod recovery;
#[path = "../../tests/support/s3/mod.rs"]
mod s3;
mod s3_process;
#[path = "../../tests/support/s3_store.rs"]
mod s3_store;
#[path = "../../tests/support/mod.rs"]
mod support;
mod throughput;

use fixture::Fixture;
use std::time::Duration;

/// The one test that this is to a test runner.
const TEST: &str = "every_figure_can_be_measured";

/// How much is measured.
pub struct Scale {
    /// pgbench tables, in its own unit of 15 MB, whose WAL waits for the catch-up.
    waiting_scale: u32,
    /// The same for base backups, and for restores.
    backup_scale: u32,
    /// The same for all else.
    small_scale: u32,
    /// Large WAL segments, beside those of 16 MiB.
    large_segment_mib: u32,
    /// Rounds that come first and do not count.
    discarded: usize,
    rounds: usize,
    /// Left out at the start of each measurement of commits.
    warm_up: Duration,
    measured: Duration,
    /// The same, with one commit a second.
    measured_rare: Duration,
}

const FULL: Scale = Scale {
    waiting_scale: 150,
    backup_scale: 105,
    small_scale: 35,
    large_segment_mib: 1024,
    discarded: 1,
    rounds: 5,
    warm_up: Duration::from_secs(5),
    measured: Duration::from_secs(15),
    measured_rare: Duration::from_secs(40),
};

const TINY: Scale = Scale {
    waiting_scale: 2,
    backup_scale: 2,
    small_scale: 2,
    large_segment_mib: 32,
    discarded: 0,
    rounds: 1,
    warm_up: Duration::ZERO,
    measured: Duration::from_millis(200),
    measured_rare: Duration::from_millis(200),
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if arguments.first().is_some_and(|first| first == s3_process::SERVE) {
        return s3_process::serve(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == index::ARCHIVE) {
        return index::archive(&arguments[1..]);
    }
    let is_bench = has("--bench");
    if has("--list") {
        // What test runners ask first.
        if !has("--ignored") {
            println!("{TEST}: test");
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match is_bench {
        true => {
            let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|it| !it.starts_with("--")).collect();
            runtime.block_on(measure(&FULL, &names));
        }
        false => runtime.block_on(measure(&TINY, &[])),
    }
}

/// Measures what is named, or everything.
async fn measure(scale: &Scale, names: &[&str]) {
    const ALL: [&str; 10] = [
        "catch-up",
        "catch-up-large",
        "index",
        "commits",
        "synchronous",
        "backup",
        "noise",
        "incremental",
        "restore",
        "recovery",
    ];
    assert!(names.iter().all(|name| ALL.contains(name)), "{names:?}: there are {ALL:?}");
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    println!("Load average before: {}", load_average());
    if wanted("catch-up") {
        throughput::catch_up(scale, 16).await;
    }
    if wanted("catch-up-large") {
        throughput::catch_up(scale, scale.large_segment_mib).await;
    }
    if wanted("index") {
        index::index(scale).await;
    }
    if wanted("commits") || wanted("synchronous") {
        // In memory: a store elsewhere does not wait for the database server's disk when it syncs.
        let fixture = Fixture::create(scale.small_scale, 16, fixture::MEMORY).await;
        if wanted("commits") {
            latency::commits(scale, &fixture).await;
        }
        if wanted("synchronous") {
            latency::synchronous(scale, &fixture).await;
        }
    }
    if wanted("backup") {
        let fixture = Fixture::with_checksums(scale.backup_scale, true).await;
        throughput::base_backup(scale, &fixture, "every page's checksum verified, through a Unix socket").await;
        let fixture = fixture.over_tcp();
        throughput::base_backup(scale, &fixture, "every page's checksum verified, over TCP").await;
    }
    if wanted("noise") {
        let fixture = Fixture::with_noise(scale.backup_scale).await;
        throughput::base_backup(scale, &fixture, "rows that nothing makes smaller").await;
    }
    if wanted("incremental") {
        let fixture = Fixture::summarized(scale.backup_scale).await;
        incremental::incremental(scale, &fixture).await;
    }
    if wanted("backup") || wanted("restore") {
        let fixture = Fixture::with_checksums(scale.backup_scale, false).await;
        if wanted("backup") {
            throughput::base_backup(scale, &fixture, "without data checksums").await;
        }
        if wanted("restore") {
            throughput::restore(scale, &fixture).await;
        }
    }
    if wanted("recovery") {
        let fixture = Fixture::create(scale.small_scale, 16, fixture::DISK).await;
        recovery::recovery(scale, &fixture).await;
    }
    println!("\nLoad average after: {}", load_average());
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').take(3).collect::<Vec<_>>().join(" ")
}
