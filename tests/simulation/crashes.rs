//! Short stories, each told again and again with the archiver killed at every operation on the store in turn: before its
//! reply came, and after that. Then another one is started, and everything must hold.

use crate::counts::Counts;
use crate::invariant::Violation;
use crate::simulate;
use crate::store::Crash;
use crate::wal::SEGMENT_BYTES;
use crate::world::World;
use seawall::archive::CommonMemory;
use std::sync::Arc;
use std::time::Duration;

const SEED: u64 = 7;

/// Tells `story` once to count operations and then twice for each of them.
fn kill_at_every_operation(story: impl AsyncFn(&mut World)) {
    let counts = Arc::new(Counts::default());
    let tell = async |crash: Option<(u64, Crash)>| -> (u64, Vec<Violation>) {
        let mut world = World::new(SEED, counts.clone());
        world.options.garbage_age = Duration::from_secs(5);
        // By turns as one of many in a process and alone
        let is_one_of_many = matches!(crash, Some((_, Crash::After(_))));
        world.options.common = is_one_of_many.then(|| CommonMemory::new(0));
        if let Some((operation, crash)) = crash {
            world.store.crash_at(operation, crash);
        }
        let store = world.store.clone();
        let killed = tokio::select! {
            biased;
            () = store.crashed() => true,
            () = story(&mut world) => false,
        };
        let operations = world.store.operations();
        if killed {
            counts.add("archiver: killed");
            world.crash_all().await;
            // What was promised is there in this very moment
            world.check_promises().await;
            world.server.write(10_000);
            world.server.checkpoint();
            world.start();
            world.live(Duration::from_secs(2)).await;
            world.server.promote();
            world.server.write(20_000);
        }
        world.finish().await;
        (operations, world.ledger.violations())
    };
    let (operations, violations) = simulate(SEED, tell(None));
    assert!(violations.is_empty(), "even with nobody killed: {violations:#?}");
    let mut crashes = 0;
    for operation in 1..=operations {
        for crash in [Crash::BeforeReply, Crash::After(operation as usize % 4)] {
            let (_, violations) = simulate(SEED, tell(Some((operation, crash))));
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
        operations > 40 && killed * 10 > crashes * 9,
        "{killed} of {crashes} runs were killed at {operations} operations"
    );
}

#[test]
fn killed_anywhere_in_a_promotion() {
    // Blocks, tails, a promotion in the middle of a record, and another at its end
    kill_at_every_operation(async |world| {
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        for round in 0..2 {
            for _ in 0..3 {
                world.server.write(20_000);
                world.live(Duration::from_millis(600)).await;
            }
            if round == 0 {
                world.server.switch_segment();
                world.server.write(50_000);
            }
            world.live(Duration::from_secs(1)).await;
            world.server.checkpoint();
            if round == 1 {
                world.server.complete_record();
            }
            world.server.promote();
        }
        world.catch_up().await;
    });
}

#[test]
fn killed_anywhere_while_tails_become_one() {
    // Sixteen tails become one, the garbage goes, and the block replaces the rest
    kill_at_every_operation(async |world| {
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        for _ in 0..18 {
            world.server.write(5_000);
            world.live(Duration::from_millis(600)).await;
        }
        world.live(Duration::from_secs(6)).await;
        world.server.switch_segment();
        world.live(Duration::from_secs(8)).await;
    });
}

#[test]
fn killed_anywhere_around_a_restart() {
    // Stopped, started, killed by itself, and the server restarts as well
    kill_at_every_operation(async |world| {
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        world.server.write(30_000);
        world.live(Duration::from_secs(2)).await;
        world.stop().await;
        world.server.write(40_000);
        world.start();
        world.live(Duration::from_secs(2)).await;
        world.server.shut_down();
        world.live(Duration::from_secs(30)).await;
        world.server.switch_segment();
        world.server.write(50_000);
        world.live(Duration::from_secs(2)).await;
        world.server.crash();
        world.live(Duration::from_secs(30)).await;
        world.server.write(50_000);
        world.catch_up().await;
    });
}

#[test]
fn killed_anywhere_after_a_lost_slot() {
    // The slot goes with what nobody has archived; a hole is recorded, and a backup follows
    kill_at_every_operation(async |world| {
        world.server.set_version(15, true);
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        world.server.write(30_000);
        world.live(Duration::from_secs(2)).await;
        world.server.disconnect();
        world.server.write(3 * SEGMENT_BYTES);
        world.server.lose_slot();
        world.live(Duration::from_secs(20)).await;
        world.begin_backup().await;
        world.server.write(50_000);
        world.live(Duration::from_secs(2)).await;
        world.catch_up().await;
    });
}

#[test]
fn killed_anywhere_in_a_failover_to_a_server_that_had_less() {
    // What was streamed past the switch point stays, the new timeline begins before it
    kill_at_every_operation(async |world| {
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        world.server.write(150_000);
        world.live(Duration::from_secs(2)).await;
        world.server.fail_over(60_000);
        world.server.write(50_000);
        world.live(Duration::from_secs(5)).await;
        world.server.fail_over(10_000);
        world.server.promote();
        world.server.switch_segment();
        world.server.write(20_000);
        world.catch_up().await;
    });
}

#[test]
fn killed_anywhere_when_a_server_was_rolled_back() {
    // What comes again differs: nothing of it is stored or acknowledged, until the true server is back
    kill_at_every_operation(async |world| {
        world.start();
        world.live(Duration::from_secs(1)).await;
        world.begin_backup().await;
        world.server.write(200_000);
        world.live(Duration::from_secs(3)).await;
        world.server.roll_back(100_000);
        for _ in 0..4 {
            world.server.write(60_000);
            world.live(Duration::from_secs(1)).await;
        }
        world.live(Duration::from_secs(30)).await;
        world.server.heal();
        world.server.write(50_000);
        world.catch_up().await;
    });
}
