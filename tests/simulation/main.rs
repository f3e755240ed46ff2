//! The archiver against a simulated world: its own code, with only clock, server and store replaced.
//!
//! Every run follows from a seed. `SEAWALL_SIM_SEEDS=1,2,3` runs those, `SEAWALL_SIM_COUNT=5000` that many; a seed that
//! has failed goes into `seeds.txt` and is run for ever. What is checked is in `ledger.rs`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod counts;
mod ledger;
mod server;
mod store;
mod stories;
mod wal;
mod world;

use counts::Counts;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use store::Crash;
use wal::SEGMENT_BYTES;
use world::World;

const SEEDS_DEFAULT: u64 = 150;

/// What has to happen at least once in a run of the default seeds.
const FAULTS: [&str; 24] = [
    "archiver: gave up at its start",
    "archiver: killed",
    "archiver: stopped",
    "server: WAL removed",
    "server: connection refused",
    "server: failed over",
    "server: promoted",
    "server: shut down",
    "server: slot busy",
    "server: slot lost",
    "store: given up and stored later",
    "store: metadata lost",
    "store: outage",
    "store: rejected",
    "store: reply lost",
    "store: slow",
    "store: throttled",
    "stream: broken off",
    "stream: broken off after a status",
    "stream: broken off at a timeline's end",
    "stream: left out",
    "stream: reply requested",
    "stream: sent again",
    "stream: status lost",
];

/// Runs a story on a paused clock.
fn simulate<T>(seed: u64, story: impl Future<Output = T>) -> T {
    seawall::runtime::make_repeatable(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(story)
}

fn seeds() -> Vec<u64> {
    if let Ok(list) = std::env::var("SEAWALL_SIM_SEEDS") {
        tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).without_time().with_ansi(false).init();
        return list
            .split(',')
            .map(|seed| seed.trim().parse().expect("SEAWALL_SIM_SEEDS is a list of numbers"))
            .collect();
    }
    let count = std::env::var("SEAWALL_SIM_COUNT").map_or(SEEDS_DEFAULT, |count| count.parse().expect("a number"));
    let committed = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let committed = committed.map(|line| line.trim().parse().expect("seeds.txt holds numbers"));
    committed.chain(1..=count).collect::<BTreeSet<u64>>().into_iter().collect()
}

#[test]
fn whatever_fails_nothing_is_acknowledged_that_is_not_stored() {
    let counts = Arc::new(Counts::default());
    let seeds = seeds();
    let mut failures = Vec::new();
    for &seed in &seeds {
        let violations = simulate(seed, live_through(seed, counts.clone()));
        if !violations.is_empty() {
            eprintln!(
                "seed {seed} fails; again with: SEAWALL_SIM_SEEDS={seed} cargo test --test simulation whatever_fails -- --nocapture"
            );
            violations.iter().take(5).for_each(|violation| eprintln!("  {violation}"));
            failures.push(seed);
        }
    }
    for (what, count) in counts.all() {
        println!("{count:>8}  {what}");
    }
    assert!(failures.is_empty(), "of {} seeds these failed (see above): {failures:?}", seeds.len());
    if seeds.len() as u64 >= SEEDS_DEFAULT {
        let silent: Vec<_> = FAULTS.into_iter().filter(|fault| counts.get(fault) == 0).collect();
        assert!(silent.is_empty(), "these faults never fired, so nothing was tested against them: {silent:?}");
    }
}

/// A long history: anything happens in any order.
async fn live_through(seed: u64, counts: Arc<Counts>) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new(seed, counts.clone());
    let is_chatty = std::env::var("SEAWALL_SIM_SEEDS").is_ok();
    world.retries = random.u32(0..3) > 0;
    world.options.flush_interval = Duration::from_millis([500, 500, 100, 0][random.usize(0..4)]);
    world.options.garbage_age = Duration::from_secs(random.u64(0..300));
    world.store.set_faulty(true);
    world.server.set_faulty(true);
    world.start();
    for _ in 0..random.u32(15..50) {
        let step = random.u32(0..100);
        if is_chatty {
            let (timeline, flush) = (world.server.timeline(), world.server.flush());
            println!("{:?} step {step}: the server is at {flush} on {timeline}", world.clock.now());
        }
        match step {
            0..40 => {
                for _ in 0..random.u32(1..8) {
                    world.server.write(random.u64(1..200_000));
                    world.live(Duration::from_millis(random.u64(1..1_500))).await;
                }
            }
            40..50 => {
                for _ in 0..random.u32(10..80) {
                    world.server.write(random.u64(1..500));
                    world.live(Duration::from_millis(random.u64(100..900))).await;
                }
            }
            50..54 => world.server.write(random.u64(1..3 * SEGMENT_BYTES)),
            54..58 => world.server.switch_segment(),
            58..66 => world.server.checkpoint(),
            66..71 => world.server.disconnect(),
            71..74 => world.server.promote(),
            74..77 => world.server.fail_over(random.u64(0..SEGMENT_BYTES)),
            77..80 => world.server.shut_down(),
            80..81 => world.server.lose_slot(),
            81..84 => world.store.fail_for(Duration::from_secs(random.u64(1..120))),
            84..86 => world.live(Duration::from_secs(random.u64(60..1_200))).await,
            86..95 => {
                world.crash().await;
                counts.add("archiver: killed");
                if random.bool() {
                    world.server.write(random.u64(1..SEGMENT_BYTES));
                    world.server.checkpoint();
                }
                world.start();
            }
            95..97 => world.server.set_synchronous(random.bool()),
            _ => {
                world.stop().await;
                world.start();
            }
        }
        world.live(Duration::from_millis(random.u64(0..2_500))).await;
        if !world.ledger.violations().is_empty() {
            break;
        }
    }
    world.finish().await;
    world.ledger.violations()
}

/// The same short history, killed at every operation on the store in turn.
#[test]
fn it_may_be_killed_at_every_operation_on_the_store() {
    let counts = Arc::new(Counts::default());
    let operations = simulate(7, async {
        let mut world = short_history(7, counts.clone(), None).await;
        let operations = world.store.operations();
        world.finish().await;
        assert_eq!(world.ledger.violations(), Vec::<String>::new());
        operations
    });
    let mut crashes = 0;
    for operation in 1..=operations {
        for crash in [Crash::Before, Crash::BeforeReply, Crash::After(operation as usize % 4)] {
            let violations = simulate(7, async {
                let mut world = short_history(7, counts.clone(), Some((operation, crash))).await;
                world.finish().await;
                world.ledger.violations()
            });
            assert!(
                violations.is_empty(),
                "killed at operation {operation} of {operations}, {crash:?}: {violations:#?}"
            );
            crashes += 1;
        }
    }
    let killed = counts.get("archiver: killed");
    println!("{operations} operations, {crashes} runs, killed in {killed}");
    assert!(
        operations > 50 && killed * 10 > crashes * 9,
        "{killed} of {crashes} runs were killed at {operations} operations"
    );
}

/// Blocks, tails, merges, deletions, a promotion.
async fn short_history(seed: u64, counts: Arc<Counts>, crash: Option<(u64, Crash)>) -> World {
    let mut world = World::new(seed, counts.clone());
    world.options.garbage_age = Duration::from_secs(5);
    if let Some((operation, crash)) = crash {
        world.store.crash_at(operation, crash);
    }
    world.start();
    let store = world.store.clone();
    let story = async |world: &mut World| {
        world.live(Duration::from_secs(1)).await;
        for round in 0..2 {
            for _ in 0..18 {
                world.server.write(5_000);
                world.live(Duration::from_millis(600)).await;
            }
            world.server.write(SEGMENT_BYTES);
            world.live(Duration::from_secs(2)).await;
            world.server.checkpoint();
            if round == 0 {
                world.server.promote();
            }
        }
        world.live(Duration::from_secs(10)).await;
        world.catch_up().await;
    };
    let killed = tokio::select! {
        biased;
        () = store.crashed() => true,
        () = story(&mut world) => false,
    };
    if killed {
        counts.add("archiver: killed");
        world.crash().await;
        world.server.write(10_000);
        world.server.checkpoint();
        world.start();
        world.live(Duration::from_secs(2)).await;
        world.server.promote();
        world.server.write(SEGMENT_BYTES);
    }
    world
}
