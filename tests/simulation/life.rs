//! A long history: anything happens in any order.

use crate::counts::Counts;
use crate::defects::Defect;
use crate::invariant::Violation;
use crate::wal::SEGMENT_BYTES;
use crate::world::World;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub seed: u64,
    pub segment_bytes: u64,
    /// So many things happen at most.
    pub steps: u32,
    pub defect: Option<Defect>,
    /// This happens more often than anything else.
    pub mostly: Option<u32>,
    /// Says what happens.
    pub is_chatty: bool,
}

impl Life {
    pub fn new(seed: u64) -> Life {
        Life { seed, segment_bytes: SEGMENT_BYTES, steps: 50, defect: None, mostly: None, is_chatty: false }
    }
}

/// The step at which a server is promoted, or others are, one after another.
pub const PROMOTIONS: u32 = 65;

/// The step at which a server comes back that contradicts what was acknowledged.
pub const GOES_ITS_OWN_WAY: u32 = 77;

/// Lives through what follows from the seed, and says what was violated.
pub async fn live_through(life: Life, counts: Arc<Counts>) -> Vec<Violation> {
    let mut random = fastrand::Rng::with_seed(life.seed);
    let mut world = World::with_segments(life.seed, counts.clone(), life.segment_bytes);
    let segment = life.segment_bytes;
    world.defect = life.defect;
    world.retries = random.u32(0..3) > 0;
    world.options.flush_interval = Duration::from_millis([500, 500, 100, 0][random.usize(0..4)]);
    world.options.garbage_age = Duration::from_secs(random.u64(0..300));
    if random.u32(0..8) == 0 {
        world.store.deny_deletes();
    }
    if life.defect == Some(Defect::SharesTheSlot) {
        world.server.share_slot();
    }
    world.store.set_faulty(true);
    world.server.set_faulty(true);
    world.start();
    for _ in 0..random.u32(life.steps / 3..life.steps) {
        let step = random.u32(0..120);
        let step = life.mostly.filter(|_| random.u32(0..5) == 0).unwrap_or(step);
        if life.is_chatty {
            let (timeline, flush, archivers) = (world.server.timeline(), world.server.flush(), world.processes());
            println!(
                "{:?} step {step}: the server is at {flush} on {timeline}, {archivers} archivers",
                world.clock.now()
            );
        }
        match step {
            0..32 => {
                for _ in 0..random.u32(1..8) {
                    world.server.write(random.u64(1..150_000));
                    world.live(Duration::from_millis(random.u64(1..1_500))).await;
                }
            }
            32..40 => {
                for _ in 0..random.u32(10..80) {
                    world.server.write(random.u64(1..500));
                    world.live(Duration::from_millis(random.u64(100..900))).await;
                }
            }
            40..43 => world.server.write(random.u64(1..2 * segment)),
            43..46 => world.server.switch_segment(),
            46..54 => world.server.checkpoint(),
            54..59 => world.server.disconnect(),
            59..62 => {
                if random.bool() {
                    world.server.complete_record();
                }
                world.server.promote();
            }
            62..65 => world.server.fail_over(random.u64(0..SEGMENT_BYTES)),
            PROMOTIONS..67 => {
                counts.add("server: promotions in a row");
                for _ in 0..random.u32(2..4) {
                    if random.bool() {
                        world.server.promote()
                    } else {
                        world.server.fail_over(random.u64(0..10_000))
                    }
                    world.server.write(random.u64(1..segment));
                }
            }
            67..70 => world.server.shut_down(),
            70..73 => world.server.crash(),
            73..75 => world.server.lose_slot(),
            75..77 => world.server.drop_slot(random.bool()),
            GOES_ITS_OWN_WAY..80 => {
                match random.u32(0..4) {
                    0 => world.server.old_primary_returns(),
                    1 => world.server.promoted_apart(),
                    _ => world.server.roll_back(random.u64(8_192..SEGMENT_BYTES)),
                }
                for _ in 0..random.u32(0..12) {
                    world.server.write(random.u64(1..200_000));
                    world.live(Duration::from_millis(random.u64(1..3_000))).await;
                }
                world.live(Duration::from_secs(random.u64(0..60))).await;
                world.server.heal();
            }
            80..83 => world.store.fail_for(Duration::from_secs(random.u64(1..120))),
            83..85 => world.live(Duration::from_secs(random.u64(60..1_200))).await,
            85..92 => {
                world.crash().await;
                counts.add("archiver: killed");
                if random.bool() {
                    world.server.write(random.u64(1..segment));
                    world.server.checkpoint();
                }
                world.start();
            }
            92..94 => world.server.set_synchronous(random.bool()),
            94..97 => {
                world.stop().await;
                world.start();
            }
            97..102 => world.begin_backup().await,
            102..106 => {
                if world.processes() < 3 {
                    counts.add("archiver: one more beside");
                    world.start();
                }
            }
            106..108 => {
                if world.processes() > 1 {
                    world.crash().await;
                }
            }
            108..117 => {
                world.freeze();
                if random.bool() {
                    world.server.write(random.u64(1..50_000));
                    world.live(Duration::from_secs(random.u64(0..40))).await;
                    world.server.give_up_on_client();
                }
            }
            117 => world.check_promises().await,
            _ => {
                world.server.complete_record();
                world.begin_backup().await;
                world.live(Duration::from_secs(20)).await;
            }
        }
        world.live(Duration::from_millis(random.u64(0..2_500))).await;
        // With a defect, what it leads to is of interest as well.
        if !world.ledger.is_clean() && life.defect.is_none() {
            break;
        }
    }
    world.finish().await;
    world.ledger.violations()
}
