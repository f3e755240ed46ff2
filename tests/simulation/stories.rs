//! What a day costs: counted on the paused clock.

use crate::counts::Counts;
use crate::simulate;
use crate::wal::{PAGE_BYTES, SEGMENT_BYTES};
use crate::world::World;
use seawall::archive::CommonMemory;
use seawall::codec::{Compression, Form};
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_idle_server_costs_four_heartbeats_an_hour_and_no_listing() {
    simulate(1, async {
        // Given an archiver that has caught up with a server on which nothing happens
        let counts = Arc::new(Counts::default());
        let mut world = World::new(1, counts.clone());
        world.start();
        world.catch_up().await;
        let (operations, listings) = (world.store.operations(), counts.get("listings"));
        let heartbeats = world.state().counts.heartbeats;
        // When six hours go by
        world.live(6 * HOUR).await;
        // Then the store was asked for a heartbeat every quarter of an hour, and for nothing else
        let heartbeats = world.state().counts.heartbeats - heartbeats;
        assert!((6 * 4 - 1..=6 * 4).contains(&heartbeats), "{heartbeats} heartbeats in six hours");
        assert_eq!(counts.get("listings"), listings, "an idle server was listed");
        assert_eq!(world.store.operations() - operations, heartbeats);
        world.finish().await;
        world.assert_clean();
    });
}

#[test]
fn a_server_whose_clock_is_wrong_is_seen_by_how_much() {
    simulate(5, async {
        let mut world = World::new(5, Arc::new(Counts::default()));
        world.start();
        world.catch_up().await;
        // Given clocks that agree, then one that was set back, and one that was set forward
        for hours in [0, -3, 2] {
            world.server.set_clock_ahead(hours * 3_600_000_000);
            world.server.write(5_000);
            world.live(HOUR / 2).await;
            let ahead = world.state().server_clock_ahead.expect("the server was asked, and has answered");
            let wrong_by = (ahead.as_secs_f64() - hours as f64 * 3600.0).abs();
            assert!(wrong_by < 10.0, "{ahead} ahead, and it is {hours} hours");
        }
        world.finish().await;
        world.assert_clean();
    });
}

#[test]
fn a_block_that_trickles_full_over_a_day_has_few_live_tails_and_only_those_are_deleted() {
    simulate(2, async {
        let counts = Arc::new(Counts::default());
        let mut world = World::new(2, counts.clone());
        world.options.garbage_age = Duration::from_secs(60);
        world.start();
        world.catch_up().await;
        world.server.switch_segment();
        // When a block fills with forty bytes every four seconds
        let mut most = 0;
        for _ in 0..24 * 3600 / 4 {
            world.server.write(40);
            world.live(Duration::from_secs(4)).await;
            most = most.max(world.state().live_tails);
        }
        // Then at most fifteen of each level were live at once, besides those a minute old
        assert!(most <= 75, "{most} tails were live at once");
        let in_store = world.ledger.most_tails_in_a_block();
        assert!(in_store <= 75 + 20, "{in_store} tails are stored of one block");
        assert!(counts.get("tails deleted") > 20_000, "{} tails were deleted", counts.get("tails deleted"));
        world.server.write(SEGMENT_BYTES);
        world.live(Duration::from_secs(300)).await;
        world.finish().await;
        world.assert_clean();
    });
}

#[test]
fn after_an_hour_without_a_store_what_waits_goes_together() {
    simulate(3, async {
        // Given an archiver whose store is away for an hour, while a little is written every second
        let mut world = World::new(3, Arc::new(Counts::default()));
        world.server.set_synchronous(false);
        world.start();
        world.catch_up().await;
        world.store.fail_for(HOUR);
        let tails = world.state().counts.tails;
        for _ in 0..3600 {
            world.server.write(50);
            world.live(Duration::from_secs(1)).await;
        }
        // When it is back, then a few objects hold everything that has waited
        world.catch_up().await;
        let tails = world.state().counts.tails - tails;
        assert!(tails < 20, "{tails} tails were stored for an hour that waited");
        world.finish().await;
        world.assert_clean();
    });
}

#[test]
fn a_first_record_that_is_longer_than_common_memory_is_stored_before_it_proves_the_server() {
    simulate(6, async {
        // Given one of many archivers in a process, that has stored all up to a border, of which nothing will come again
        let mut world = World::new(6, Arc::new(Counts::default()));
        world.options.common = Some(CommonMemory::new(0));
        world.options.form = Form::from(Compression::None);
        world.start();
        world.catch_up().await;
        world.server.switch_segment();
        world.catch_up().await;
        world.live(Duration::from_secs(1)).await;
        world.server.checkpoint();
        world.crash().await;
        // When the server goes on with a record that is longer than what the next one may hold
        world.server.write_long_record(3 * SEGMENT_BYTES / PAGE_BYTES);
        world.start();
        // Then that does not wait for its end for ever
        world.catch_up().await;
        let counts = world.state().counts;
        assert!(counts.unproven > 0 && counts.packed > 0, "{counts:?}");
        world.finish().await;
        world.assert_clean();
    });
}

#[test]
fn a_stop_while_a_stored_stretch_comes_again_ends() {
    simulate(4, async {
        // Given a tail of many thousand bytes, and an archiver that was killed
        let mut world = World::new(4, Arc::new(Counts::default()));
        world.start();
        world.server.write(100_000);
        world.catch_up().await;
        world.crash().await;
        // When the next one is told to stop before all of it has come again
        world.server.set_dawdling(true);
        world.start();
        world.live(Duration::from_secs(10)).await;
        assert!(world.state().received > world.state().durable, "the tail has not come again in whole");
        world.stop().await;
        // Then it does
        world.assert_clean();
        world.server.set_dawdling(false);
        world.start();
        world.finish().await;
        world.assert_clean();
    });
}
