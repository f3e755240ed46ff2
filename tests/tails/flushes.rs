//! Rule 4: when a flush happens, from an interval of 0 to one of minutes.

use crate::store::Latency;
use crate::world::{MIB, MILLISECOND, SECOND, World, on_a_paused_clock};
use seawall::archive::ArchiveOptions;
use seawall::wal::Lsn;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PUT: Duration = Duration::from_millis(20);
const INTERVALS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(300)];

async fn world(flush_interval: Duration) -> World {
    let options = ArchiveOptions { flush_interval, ..ArchiveOptions::default() };
    World::begin(options, 16 * MIB, Latency::Fixed(PUT)).await
}

/// How long the byte that waited longest was with us before it was handed to the store. Each write is a moment and the
/// position that it ended at.
fn longest_wait(world: &World, writes: &[(Instant, Lsn)]) -> Duration {
    let mut handed_over = world.store.handed_over();
    handed_over.sort_by_key(|(_, range)| range.start);
    let first_with = |position: Lsn| {
        let holders = handed_over.iter().filter(|(_, range)| range.start < position && position <= range.end);
        holders.map(|(at, _)| *at).min()
    };
    let waits = writes.iter().map(|(at, end)| match first_with(*end) {
        Some(handed_over) => handed_over - *at,
        None => panic!("the bytes before {end} were never handed over"),
    });
    waits.max().expect("something was written")
}

#[test]
fn a_byte_is_handed_to_the_store_within_the_interval_whatever_it_is() {
    on_a_paused_clock(async {
        for interval in INTERVALS {
            let mut random = fastrand::Rng::with_seed(3);
            let world = world(interval).await;
            world.store.record();
            // Given a trickle: now and then some bytes
            let mut writes = Vec::new();
            for _ in 0..400 {
                world.server.write(random.u64(1..500));
                writes.push((Instant::now(), world.server.flush()));
                sleep(Duration::from_millis(random.u64(1..2_000))).await;
            }
            sleep(interval + SECOND).await;
            // Then no byte waits longer (and, by the clock's grain, a millisecond), or where it is to go at once, as long as
            // the four places are taken
            let longest = longest_wait(&world, &writes);
            let most = if interval.is_zero() { PUT } else { interval } + MILLISECOND;
            assert!(longest <= most, "{interval:?}: one byte of a trickle waited {longest:?}");
            // And bursts: megabytes within a moment
            writes.clear();
            for _ in 0..30 {
                for _ in 0..random.u32(1..40) {
                    world.server.write(random.u64(1..200_000));
                    writes.push((Instant::now(), world.server.flush()));
                    sleep(Duration::from_millis(random.u64(0..10))).await;
                }
                sleep(Duration::from_millis(random.u64(1..5_000))).await;
            }
            sleep(interval + SECOND).await;
            let longest = longest_wait(&world, &writes);
            let most = interval + 2 * PUT;
            assert!(longest <= most, "{interval:?}: one byte of a burst waited {longest:?}");
            world.assert_readable().await;
        }
    });
}

#[test]
fn the_interval_decides_how_many_requests_there_are() {
    on_a_paused_clock(async {
        let mut tails = Vec::new();
        for interval in INTERVALS {
            // Given an hour with a commit a second
            let mut world = world(interval).await;
            let before = world.store.counts();
            world.trickle(200, SECOND, 3600 * SECOND).await;
            tails.push((world.store.counts() - before).tails);
        }
        // Then each is stored by itself up to an interval of that, and merged by sixteens; and with minutes, one in minutes
        let each = 3600 + 3600 / 16 + 3600 / 256;
        assert!(tails[..3].iter().all(|tails| (each - 4..=each).contains(tails)), "{tails:?}");
        assert!((11..=12).contains(&tails[3]), "{tails:?}");
    });
}

#[test]
fn a_long_interval_is_cut_short_by_whoever_waits() {
    on_a_paused_clock(async {
        // Given an interval of minutes
        let mut world = world(300 * SECOND).await;
        world.store.record();
        world.server.write(100);
        sleep(10 * SECOND).await;
        assert_eq!(world.store.handed_over(), []);
        // When the server makes the archiver a synchronous standby, what waits is stored within the seconds it takes to see
        world.server.set_synchronous(true);
        sleep(4 * SECOND).await;
        assert_eq!(world.store.handed_over().len(), 1);
        // and what comes after at once
        world.server.write(100);
        sleep(PUT + MILLISECOND).await;
        assert_eq!(world.server.flushed(), world.server.flush());
        // And when it no longer is, a stop does not wait either
        world.server.set_synchronous(false);
        sleep(4 * SECOND).await;
        world.server.write(100);
        sleep(SECOND).await;
        assert_ne!(world.server.flushed(), world.server.flush());
        let begun = Instant::now();
        world.stop().await;
        assert!(begun.elapsed() < SECOND);
        assert_eq!(world.server.flushed(), world.server.flush());
    });
}

#[test]
fn a_block_that_fills_within_the_interval_has_no_tail() {
    on_a_paused_clock(async {
        // Given 64 MB a second, in pieces that no block ends with: a block fills in a quarter of a second
        let mut world = world(500 * MILLISECOND).await;
        world.server.write(777);
        world.server.all_safe().await;
        let before = world.store.counts();
        world.trickle(640_007, 10 * MILLISECOND, 10 * SECOND).await;
        let counts = world.store.counts() - before;
        // Then there are blocks alone, each once
        assert_eq!(counts.tails, 0, "{counts:?}");
        assert!(counts.blocks >= 35, "{counts:?}");
        assert_eq!(counts.plain_bytes, counts.blocks * 16 * MIB);
        // and the rest is stored when its time has come
        world.assert_readable().await;
        assert_eq!((world.store.counts() - before).tails, 1);
    });
}
