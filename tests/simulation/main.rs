//! The archiver and the restore against a simulated world: their own code, with only clock, server and store replaced.
//!
//! * `life.rs`: long histories. Every run follows from a seed: `SEAWALL_SIM_SEEDS=1,2,3` runs those, `SEAWALL_SIM_COUNT=20000`
//!   that many in all, `SEAWALL_SIM_FIRST=5000` begins elsewhere. A seed that has failed goes into `seeds.txt` and is run for
//!   ever.
//! * `crashes.rs`: short histories, killed at every operation on the store.
//! * `stories.rs`: what a day costs, and other single cases.
//! * `week/`: seven days of all that `seawall run` does by itself, by two of them for one cluster.
//! * `invariant.rs` names what must hold, `ledger.rs` and `promises.rs` check it, `defects.rs` shows that they do.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]
#![allow(clippy::type_complexity, clippy::collapsible_match)]

mod counts;
mod crashes;
mod defects;
mod gate;
mod invariant;
mod ledger;
mod life;
mod promises;
mod server;
mod session;
mod store;
mod stories;
mod wal;
mod week;
mod world;

use counts::Counts;
use life::{Life, live_through};
use std::future::Future;
use std::sync::Arc;

/// Seeds of a run without variables, in all tests together.
const SEEDS_DEFAULT: u64 = 2_400;

/// Tests that share the seeds, so that as many cores are busy.
const SHARES: u64 = 4;

/// What has to happen at least once in each share of the default seeds.
const FAULTS: [&str; 50] = [
    "archiver: frozen",
    "archiver: gave up at its start",
    "archiver: killed",
    "archiver: one more beside",
    "archiver: refused a server that went its own way",
    "archiver: stopped",
    "archiver: thawed",
    "backup: finished",
    "check: restores planned to anywhere",
    "check: restores planned to what was acknowledged",
    "memory: full of what is packed",
    "memory: packed",
    "memory: packed, and the archiver killed",
    "server: WAL removed",
    "server: connection refused",
    "server: crashed",
    "server: failed over",
    "server: old primary came back",
    "server: promoted",
    "server: promoted before what was sent",
    "server: promotions in a row",
    "server: rolled back",
    "server: shut down",
    "server: slot busy",
    "server: slot dropped",
    "server: slot lost",
    "server: slot made again ahead",
    "server: two promoted apart",
    "slot: lost between the look and the start",
    "slot: lost one refused (18)",
    "slot: lost one seen and made anew",
    "slot: lost one silently revived (13 to 15)",
    "slot: zombie (16 and 17)",
    "store: answers late",
    "store: delete denied",
    "store: given up and stored later",
    "store: metadata lost",
    "store: outage",
    "store: rejected",
    "store: reply cut",
    "store: reply lost",
    "store: request cut",
    "store: stale listing",
    "store: throttled",
    "stream: broken off",
    "stream: broken off after a status",
    "stream: broken off half way through a message",
    "stream: left out",
    "stream: sent again",
    "stream: status lost",
];

/// Runs a story on a paused clock.
fn simulate<T>(seed: u64, story: impl Future<Output = T>) -> T {
    seawall::runtime::make_repeatable(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(story)
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The seeds of one share: its part of those that failed once, and of those in a row.
fn seeds(share: u64) -> Vec<u64> {
    if let Ok(list) = std::env::var("SEAWALL_SIM_SEEDS") {
        let number = |seed: &str| seed.trim().parse().expect("SEAWALL_SIM_SEEDS is a list of numbers");
        return if share == 0 { list.split(',').map(number).collect() } else { Vec::new() };
    }
    let (first, count) = (variable("SEAWALL_SIM_FIRST", 1), variable("SEAWALL_SIM_COUNT", SEEDS_DEFAULT));
    let committed = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let committed = committed.map(|line| line.trim().parse().expect("seeds.txt holds numbers"));
    let in_a_row = (first..first + count).filter(|seed| seed % SHARES == share);
    let failed_once: Vec<u64> = committed.filter(|seed: &u64| seed % SHARES == share).collect();
    in_a_row.filter(|seed| !failed_once.contains(seed)).chain(failed_once.clone()).collect()
}

/// Lives through every seed of a share, and prints which failed and how often each fault fired.
fn live_through_share(share: u64) {
    let counts = Arc::new(Counts::default());
    let (seeds, begun) = (seeds(share), std::time::Instant::now());
    let is_chatty = std::env::var("SEAWALL_SIM_SEEDS").is_ok();
    if is_chatty {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).without_time().with_ansi(false);
        let _ = subscriber.try_init();
    }
    let mut failures = Vec::new();
    for &seed in &seeds {
        let violations = simulate(seed, live_through(Life { is_chatty, ..Life::new(seed) }, counts.clone()));
        if !violations.is_empty() {
            eprintln!(
                "seed {seed} fails; again with: SEAWALL_SIM_SEEDS={seed} cargo test --test simulation share_1 -- --nocapture"
            );
            violations.iter().take(5).for_each(|violation| eprintln!("  {violation}"));
            failures.push(seed);
        }
    }
    for (what, count) in counts.all() {
        println!("{count:>8}  {what}");
    }
    println!("{} seeds in {:.1} s", seeds.len(), begun.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "of {} seeds these failed (see above): {failures:?}", seeds.len());
    if seeds.len() as u64 >= SEEDS_DEFAULT / SHARES {
        let silent: Vec<_> = FAULTS.into_iter().filter(|fault| counts.get(fault) == 0).collect();
        assert!(silent.is_empty(), "these faults never fired, so nothing was tested against them: {silent:?}");
    }
}

#[test]
fn whatever_happens_the_promise_holds_share_1_of_4() {
    live_through_share(0);
}

#[test]
fn whatever_happens_the_promise_holds_share_2_of_4() {
    live_through_share(1);
}

#[test]
fn whatever_happens_the_promise_holds_share_3_of_4() {
    live_through_share(2);
}

#[test]
fn whatever_happens_the_promise_holds_share_4_of_4() {
    live_through_share(3);
}

/// Segments of one block and of four: nothing depends on a block being a segment.
#[test]
fn whatever_happens_the_promise_holds_with_large_segments() {
    let counts = Arc::new(Counts::default());
    for (seed, segment_bytes) in [(1, 16 << 20), (2, 64 << 20), (3, 16 << 20), (4, 64 << 20), (5, 64 << 20)] {
        let life = Life { segment_bytes, steps: 24, ..Life::new(seed) };
        let violations = simulate(seed, live_through(life, counts.clone()));
        assert!(violations.is_empty(), "seed {seed}, segments of {} MiB: {violations:#?}", segment_bytes >> 20);
    }
}
