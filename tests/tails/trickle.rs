//! A few bytes a second, for a day.

use crate::store::{Counts, Latency};
use crate::world::{DAY, HOUR, MIB, MILLISECOND, SECOND, World, on_a_paused_clock};
use seawall::archive::ArchiveOptions;

/// Fifteen tails on each of five levels: a day has fewer flushes than the sixth would need.
const LIVE_MAX: usize = 75;
/// And a sixteen that is under way, where the store takes its time.
const SLOW_LIVE_MAX: usize = LIVE_MAX + 16;

/// Rule 5: at most five times the WAL and 64 KB a flush, before and after compression.
fn assert_cheap(counts: Counts, wal_bytes: u64, flushes: u64) {
    let most = 5 * wal_bytes + flushes * (64 << 10);
    assert!(counts.plain_bytes <= most, "{} bytes of WAL were stored of {wal_bytes}", counts.plain_bytes);
    assert!(counts.stored_bytes <= most, "{} bytes went up for {wal_bytes} of WAL", counts.stored_bytes);
}

/// What was replaced five minutes ago is gone, and at no time there was more of it than came in that time.
fn assert_tidy(world: &World, most: usize) {
    assert_eq!(world.store.overdue(SECOND * 5), Vec::<String>::new(), "this should have been deleted");
    assert!(world.store.most_garbage() <= most, "{} replaced tails lay about", world.store.most_garbage());
}

#[test]
fn a_day_of_a_trickle_leaves_few_tails_and_uploads_little() {
    on_a_paused_clock(async {
        // Given a server that writes a little twice a second, and a store as near as they come
        let latency = Latency::NEAR;
        let mut world = World::begin(ArchiveOptions::default(), 16 * MIB, latency).await;
        let before = world.store.counts();
        // When a day has passed
        world.trickle(40, SECOND / 2, DAY).await;
        let (most, counts) = (world.store.take_most_live(), world.store.counts() - before);
        // Then there were never more live tails than on five levels, though there were as many flushes as there can be
        assert!(counts.tails > 150_000, "{} flushes are not the worst case", counts.tails);
        assert!(most <= LIVE_MAX, "{most} tails were live at once");
        // and every byte was stored once a level
        assert!(counts.plain_bytes <= 5 * world.written(), "{counts:?}");
        assert_cheap(counts, world.written(), counts.tails * 15 / 16);
        assert_tidy(&world, 5 * 60 * 2 * 17 / 16 + 75);
        // and nothing but PUT and DELETE was asked
        assert_eq!(counts.others(), 0, "{counts:?}");
        world.assert_readable().await;
    });
}

#[test]
fn a_slow_store_that_confirms_in_any_order_leaves_few_tails_as_well() {
    on_a_paused_clock(async {
        // Given a store that takes between 50 ms and 2 s, and a minute now and then: four uploads end in any order
        let mut world = World::begin(ArchiveOptions::default(), 16 * MIB, Latency::NEAR).await;
        world.store.set_latency(Latency::Between(50 * MILLISECOND, 2 * SECOND));
        world.store.hang_one_in(10_000);
        let before = world.store.counts();
        // When half a day has passed
        world.trickle(40, SECOND / 2, DAY / 2).await;
        let (most, counts) = (world.store.take_most_live(), world.store.counts() - before);
        // Then no tail was left behind by its neighbours
        assert!(counts.tails > 50_000, "{} flushes are not the worst case", counts.tails);
        assert!(most <= SLOW_LIVE_MAX, "{most} tails were live at once");
        assert!(counts.plain_bytes <= 5 * world.written(), "{counts:?}");
        assert_cheap(counts, world.written(), counts.tails * 15 / 16);
        assert_tidy(&world, 5 * 60 * 2 * 17 / 16 + 75 + 16);
        world.store.set_latency(Latency::NEAR);
        world.assert_readable().await;
    });
}

#[test]
fn blocks_that_trickle_full_leave_nothing_but_themselves() {
    on_a_paused_clock(async {
        // Given segments that fill in half an hour
        let latency = Latency::Between(5 * MILLISECOND, 200 * MILLISECOND);
        let mut world = World::begin(ArchiveOptions::default(), MIB, latency).await;
        let before = world.store.counts();
        world.trickle(300, SECOND / 2, 6 * HOUR).await;
        // When the archiver has had some minutes more
        world.trickle(1, 60 * SECOND, 10 * 60 * SECOND).await;
        let counts = world.store.counts() - before;
        // Then each is stored once, and its tails are gone
        assert_eq!(counts.blocks, world.written() / MIB);
        assert!(counts.plain_bytes <= 6 * world.written(), "{counts:?}");
        assert_cheap(counts, world.written(), counts.tails * 15 / 16);
        assert!(world.store.take_most_live() <= SLOW_LIVE_MAX);
        assert_tidy(&world, 5 * 60 * 2 * 17 / 16 + 75 + 16);
        world.assert_readable().await;
    });
}

/// A day with a restart an hour and, at its end, one a minute; `again` is how the archiver comes back.
fn live_with_restarts(segment_bytes: u64, already: u64, again: impl AsyncFn(&mut World)) {
    on_a_paused_clock(async {
        // Given WAL that has come so far into its segment
        let latency = Latency::Between(5 * MILLISECOND, 100 * MILLISECOND);
        let mut world = World::begin(ArchiveOptions::default(), segment_bytes, latency).await;
        world.server.write(already);
        world.server.all_safe().await;
        let before = (world.store.counts(), world.written());
        // When it trickles on for a day, with a restart an hour
        for _ in 0..24 {
            world.trickle(150, 2 * SECOND, HOUR).await;
            again(&mut world).await;
        }
        let day = (world.store.counts() - before.0, world.written() - before.1);
        let most_live = world.store.take_most_live();
        // and then an hour with one a minute
        let before = (world.store.counts(), world.written());
        for _ in 0..60 {
            world.trickle(150, 2 * SECOND, 60 * SECOND).await;
            again(&mut world).await;
        }
        let hour = (world.store.counts() - before.0, world.written() - before.1);
        let most_live_then = world.store.take_most_live();
        world.trickle(150, 2 * SECOND, 6 * 60 * SECOND).await;
        // Then there are as few live tails as without restarts
        assert!(most_live <= SLOW_LIVE_MAX, "{most_live} tails were live at once");
        assert!(most_live_then <= SLOW_LIVE_MAX, "{most_live_then} tails were live at once");
        // and the uploads are bounded, though restarts store again what was stored
        assert_cheap(day.0, day.1, day.0.tails * 15 / 16);
        assert_cheap(hour.0, hour.1, hour.0.tails * 15 / 16);
        // and what a process before left behind is found and deleted when its time has come
        assert_tidy(&world, (5 + 2) * 30 * 17 / 16 + 2 * 75);
        // and a restart looks at what is there, not at more and more
        let heads = hour.0.heads / 60;
        assert!(heads <= (5 + 2) * 30 * 17 / 16 + 75, "{heads} objects were looked at in each restart");
        world.assert_readable().await;
    });
}

#[test]
fn restarts_leave_few_tails() {
    live_with_restarts(16 * MIB, 100, async |world| {
        world.kill().await;
        world.start().await;
    });
}

#[test]
fn restarts_leave_few_tails_in_any_block_of_a_large_segment() {
    live_with_restarts(64 * MIB, 20 * MIB, async |world| {
        world.kill().await;
        world.start().await;
    });
}

#[test]
fn connections_that_break_leave_few_tails() {
    live_with_restarts(16 * MIB, MIB, async |world| {
        let before = world.state().counts.connections;
        world.server.cut();
        while world.state().counts.connections == before {
            tokio::time::sleep(SECOND / 10).await;
        }
    });
}

#[test]
fn after_a_restart_one_tail_replaces_all_before_it() {
    on_a_paused_clock(async {
        // Given many tails
        let latency = Latency::NEAR;
        let mut world = World::begin(ArchiveOptions::default(), 16 * MIB, latency).await;
        world.trickle(40, SECOND / 2, 200 * SECOND).await;
        world.server.all_safe().await;
        let before = world.store.live();
        assert!(before > 20, "only {before} tails are live");
        // When the archiver is started again, nothing is stored before something new comes
        world.kill().await;
        world.start().await;
        let counts = world.store.counts();
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(world.store.counts().tails, counts.tails);
        // And then one tail replaces them all
        world.server.write(40);
        world.server.all_safe().await;
        assert_eq!((world.store.live(), world.store.counts().tails - counts.tails), (1, 1));
        world.assert_readable().await;
    });
}
