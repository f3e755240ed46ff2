//! Fetching ahead of what is asked for.

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use seawall::error::Kind;
use seawall::repository::{Key, Repository, WalReader};
use seawall::restore::wal_fetch::Fetched;
use seawall::restore::{SPOOL_DIRECTORY, ahead};
use seawall::store::{Body, Metadata, ObservedStore, Operation, Store, StoreErrorKind, StoreObserver};
use seawall::wal::{Lsn, TimelineId, WalRange};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::world::*;

#[tokio::test]
async fn one_call_brings_the_next_four_segments_too() {
    let world = World::new().await.pinned(&[(1, 0, 20 * MIB)]);
    world.segments(3, 8).await;
    world.served(1, 3).await;
    let names: Vec<_> = (4..8).map(|number| segment(1, number).name()).collect();
    assert_eq!(world.spooled(), names);
    // The store is not needed for them, and is for the one behind.
    world.cut_off();
    for number in 4..8 {
        assert_same(&world.served(1, number).await, &content(1, number * MIB, (number + 1) * MIB));
    }
    assert_eq!(world.ask_segment(1, 8).await.unwrap_err().kind(), Kind::Store);
}

#[tokio::test]
async fn only_whole_segments_before_the_end_are_fetched_ahead() {
    let pinned = World::new().await.pinned(&[(1, 0, 5 * MIB + 100)]);
    pinned.segments(3, 8).await;
    pinned.served(1, 3).await;
    assert_eq!(pinned.spooled(), [segment(1, 4).name()], "segment 5 holds the end");
    let standby = World::new().await;
    standby.segments(3, 2).await;
    standby.tail(1, 5 * MIB, 5 * MIB + 1000).await;
    standby.served(1, 3).await;
    assert_eq!(standby.spooled(), [segment(1, 4).name()], "segment 5 is not whole");
}

#[tokio::test]
async fn a_batch_fetched_behind_the_servers_back_is_taken_without_the_store() {
    // Given a restore that has 14 segments before it, and got the third
    let world = World::new().await.pinned(&[(1, 0, 16 * MIB + 5000)]);
    world.segments(2, 15).await;
    let (pin, data) = (world.pin.clone().unwrap(), world.data.path());
    let name = |number| segment(1, number).name();
    let take = async |number| ahead::take(&name(number), &world.destination(), &pin, data).await.unwrap();
    assert!(!take(3).await && world.spooled().is_empty(), "nothing was fetched ahead, and nothing was made");
    assert!(ahead::is_low(&name(3), &pin, data).await.unwrap());
    // When a batch is fetched, then what follows is there, and no more than that
    ahead::fill(&world.reader, &name(3), &pin, data).await.unwrap();
    assert_eq!(world.spooled(), (4..12).map(name).collect::<Vec<_>>());
    assert!(!ahead::is_low(&name(3), &pin, data).await.unwrap());
    // and taken without the store, each once
    let bytes = |number: u64| content(1, number * MIB, (number + 1) * MIB);
    world.cut_off();
    for number in 4..9 {
        assert!(take(number).await, "segment {number}");
        assert_same(&world.at_destination(), &bytes(number));
    }
    assert!(!take(4).await, "it was taken");
    world.store.is_down.store(false, Ordering::SeqCst);
    // When it runs low, then the next batch is wanted, removes what was passed by, and ends before the end of the path
    assert!(ahead::is_low(&name(8), &pin, data).await.unwrap());
    ahead::fill(&world.reader, &name(10), &pin, data).await.unwrap();
    assert_eq!(world.spooled(), (11..16).map(name).collect::<Vec<_>>(), "the last segment holds the end");
    assert!(!ahead::is_low(&name(15), &pin, data).await.unwrap(), "there is nothing more to fetch");
    // While one process fetches, another leaves it to that one, and who asks waits for its end.
    let directory = std::fs::read_dir(data.join(SPOOL_DIRECTORY)).unwrap().next().unwrap().unwrap().path();
    let held = Flock::lock(std::fs::File::open(&directory).unwrap(), FlockArg::LockExclusive).unwrap();
    std::fs::remove_file(directory.join(name(12))).unwrap();
    ahead::fill(&world.reader, &name(11), &pin, data).await.unwrap();
    assert!(!world.spooled().contains(&name(12)));
    let (taken, ()) = tokio::join!(take(12), async {
        tokio::task::yield_now().await;
        std::fs::write(directory.join(name(12)), bytes(12)).unwrap();
        drop(held);
    });
    assert!(taken, "it came while one waited");
}

/// Takes the spool with the first file in it away, as soon as something was read.
#[derive(Debug)]
struct EndOfRecovery(PathBuf);

impl StoreObserver for EndOfRecovery {
    fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {
        let spool = std::fs::read_dir(&self.0).ok().and_then(|mut entries| entries.next()?.ok());
        if spool.is_some_and(|spool| std::fs::read_dir(spool.path()).is_ok_and(|mut files| files.next().is_some())) {
            std::fs::rename(&self.0, self.0.with_extension("removed")).unwrap();
        }
    }
}

#[tokio::test]
async fn a_batch_whose_spool_went_with_the_end_of_recovery_does_not_bring_it_back() {
    // Given a batch at work: it holds the lock, and its first segment is there
    let world = World::new().await.pinned(&[(1, 0, 20 * MIB)]);
    world.segments(3, 10).await;
    let (pin, data) = (world.pin.clone().unwrap(), world.data.path());
    let spool = data.join(SPOOL_DIRECTORY);
    let cleared = spool.clone();
    // When recovery ends in the middle of it and removes the spool
    let store = Arc::new(ObservedStore::new(Arc::new(world.store.clone()), Arc::new(EndOfRecovery(cleared))));
    let reader = WalReader::new(Repository { store, layout: layout() }, SYSTEM_IDENTIFIER);
    // Then the batch ends, and there is none.
    let ended = ahead::fill(&reader, &segment(1, 3).name(), &pin, data).await;
    assert!(!spool.exists(), "the spool is there again: {ended:?}");
}

#[tokio::test]
async fn the_spool_goes_when_recovery_ends() {
    let world = World::new().await.pinned(&[(1, 0, 20 * MIB)]);
    world.segments(3, 4).await;
    world.served(1, 3).await;
    assert!(!world.spooled().is_empty());
    // A fetch that was killed while it wrote.
    let leftover = world.data.path().join("pg_wal/RECOVERYXLOG.seawall-1.tmp");
    std::fs::write(&leftover, "half").unwrap();
    // Promotion looks for a free timeline.
    assert_eq!(world.ask("00000002.history").await.unwrap(), Fetched::Absent);
    assert!(!world.data.path().join(SPOOL_DIRECTORY).exists());
    assert!(!leftover.exists());
}

#[tokio::test]
async fn a_spooled_file_of_the_wrong_size_or_of_another_restore_is_not_served() {
    let mut world = World::new().await.pinned(&[(1, 0, 20 * MIB)]);
    world.segments(3, 4).await;
    world.served(1, 3).await;
    let root = world.data.path().join(SPOOL_DIRECTORY);
    let directory = std::fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    std::fs::write(directory.join(segment(1, 4).name()), "cut").unwrap();
    assert_same(&world.served(1, 4).await, &content(1, 4 * MIB, 5 * MIB));
    // A right size, but spooled for another plan.
    std::fs::write(directory.join(segment(1, 5).name()), vec![9; MIB as usize]).unwrap();
    world.pin.as_mut().unwrap().path[0].end = Lsn(19 * MIB);
    assert_same(&world.served(1, 5).await, &content(1, 5 * MIB, 6 * MIB));
}

#[tokio::test]
async fn a_failure_ahead_does_not_fail_the_call() {
    let world = World::new().await.pinned(&[(1, 0, 20 * MIB)]);
    world.segments(3, 1).await;
    let name = layout().name(&Key::Block(WalRange { timeline: TimelineId(1), start: Lsn(4 * MIB), end: Lsn(5 * MIB) }));
    world.store.create(&name, Body::from(Bytes::from_static(b"damaged")), Metadata::new()).await.unwrap();
    assert_same(&world.served(1, 3).await, &content(1, 3 * MIB, 4 * MIB));
    assert_damaged(world.ask_segment(1, 4).await);
}
