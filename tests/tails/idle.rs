//! Rule 12: while nothing happens, four heartbeats an hour. And what does not happen while much does.

use crate::store::{Counts, Latency};
use crate::world::{DAY, HOUR, MIB, SECOND, World, on_a_paused_clock};
use seawall::archive::ArchiveOptions;

#[test]
fn an_idle_server_costs_four_heartbeats_an_hour_and_nothing_else() {
    on_a_paused_clock(async {
        // Given an archiver that has stored everything, and one that was started when nothing had happened for long
        for restart in [false, true] {
            let mut world = World::begin(ArchiveOptions::default(), 16 * MIB, Latency::NEAR).await;
            world.trickle(1_000, SECOND, 60 * SECOND).await;
            if restart {
                world.kill().await;
                world.start().await;
            }
            tokio::time::sleep(6 * 60 * SECOND).await;
            let before = world.store.counts();
            // When nothing happens for a day
            tokio::time::sleep(DAY).await;
            // Then every request is a heartbeat
            let counts = world.store.counts() - before;
            let stored_bytes = counts.stored_bytes;
            assert_eq!(counts, Counts { heartbeats: 4 * 24, stored_bytes, ..Counts::default() });
            assert!(stored_bytes < 100 << 10, "{stored_bytes} bytes of heartbeats");
            world.assert_readable().await;
        }
    });
}

#[test]
fn a_heartbeat_is_not_sent_while_there_is_wal() {
    on_a_paused_clock(async {
        let mut world = World::begin(ArchiveOptions::default(), 16 * MIB, Latency::NEAR).await;
        world.trickle(40, 10 * 60 * SECOND, 3 * HOUR).await;
        assert_eq!(world.store.counts().heartbeats, 0);
    });
}

#[test]
fn the_steady_state_knows_nothing_but_put_and_delete() {
    on_a_paused_clock(async {
        // Given an archiver that streams
        let mut world = World::begin(ArchiveOptions::default(), MIB, Latency::NEAR).await;
        world.trickle(100, SECOND, 60 * SECOND).await;
        let before = world.store.counts();
        // When it trickles, bursts, rests and trickles again for hours
        for _ in 0..6 {
            world.trickle(500, SECOND, 20 * 60 * SECOND).await;
            world.trickle(300 << 10, SECOND / 10, 10 * SECOND).await;
            tokio::time::sleep(30 * 60 * SECOND).await;
        }
        // Then nothing was looked up, listed or read
        let counts = world.store.counts() - before;
        assert!(counts.blocks > 100 && counts.tails > 1_000 && counts.heartbeats > 5, "{counts:?}");
        assert_eq!(counts.others() + counts.documents, 0, "{counts:?}");
        world.assert_readable().await;
    });
}
