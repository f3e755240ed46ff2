//! `wal-fetch` and `wal-push` against stores that hold, lose and change what a server in recovery asks for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod fetching_ahead;
mod pushing;
mod world;

use bytes::Bytes;
use seawall::error::Kind;
use seawall::repository::{Key, Writer};
use seawall::restore::wal_fetch::Fetched;
use seawall::store::{Body, MemoryStore, Metadata, Store};
use seawall::wal::{Lsn, TimelineId, WalRange};
use std::sync::Arc;
use std::time::Duration;
use world::*;

// What a standby sees: no pin.

#[tokio::test]
async fn a_whole_segment_replaces_what_was_at_the_destination() {
    let world = World::new().await;
    world.segments(3, 1).await;
    std::fs::write(world.destination(), "left by an earlier attempt").unwrap();
    assert_same(&world.served(1, 3).await, &content(1, 3 * MIB, 4 * MIB));
}

#[tokio::test]
async fn tails_are_joined_and_zeros_follow_where_the_archive_ends() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    world.tail(1, 3 * MIB + 500, 3 * MIB + 5000).await;
    world.tail(1, 3 * MIB + 5000, 3 * MIB + 6000).await;
    assert_same(&world.served(1, 3).await, &padded(1, 3, 3 * MIB + 6000));
    // It goes on: the same segment again holds more.
    world.tail(1, 3 * MIB + 6000, 4 * MIB).await;
    assert_same(&world.served(1, 3).await, &content(1, 3 * MIB, 4 * MIB));
    assert_eq!(world.ask_segment(1, 4).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn nothing_is_absent_from_a_store_that_does_not_hold_the_cluster() {
    let world = World::new().await;
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    // The file system is unmounted: an empty directory is there in its place.
    world.store.delete("main/cluster.json").await.unwrap();
    for name in ["000000010000000000000003", "00000002.history"] {
        let error = world.ask(name).await.expect_err("nothing proves that the WAL is absent");
        assert_eq!(error.kind(), Kind::Store, "{error}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_an_error() {
    let world = World::new().await;
    world.segments(3, 1).await;
    world.cut_off();
    for name in ["000000010000000000000003", "000000010000000000000009", "00000002.history"] {
        let error = world.ask(name).await.expect_err("absence is not proven");
        assert_eq!(error.kind(), Kind::Store, "{name}: {error}");
    }
    assert!(!world.destination().exists(), "a failed fetch leaves nothing");
}

#[tokio::test(start_paused = true)]
async fn a_hole_with_later_wal_behind_it_is_an_error() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    world.tail(1, 3 * MIB + 2000, 3 * MIB + 3000).await;
    assert_damaged(world.ask_segment(1, 3).await);
    // The same one segment later.
    world.segments(6, 1).await;
    assert_damaged(world.ask_segment(1, 5).await);
    assert!(!world.destination().exists(), "a failed fetch leaves nothing");
}

#[tokio::test(start_paused = true)]
async fn a_hole_that_an_upload_is_about_to_close_is_waited_for() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    world.segments(4, 1).await;
    let upload = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.segments(3, 1).await;
    };
    let (served, ()) = tokio::join!(world.served(1, 3), upload);
    assert_same(&served, &content(1, 3 * MIB, 4 * MIB));
}

#[tokio::test]
async fn tails_that_are_merged_and_deleted_under_a_reader_are_listed_again() {
    let world = World::new().await;
    for start in [0, 1000, 2000] {
        world.tail(1, 3 * MIB + start, 3 * MIB + start + 1000).await;
    }
    // Between the listing and the reading, an archiver stores the three as one and deletes them; twice it grows.
    for end in [9000, 3000] {
        let writer = Writer::new(Arc::new(world.store.inner.clone()), layout(), SYSTEM_IDENTIFIER);
        let range = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(3 * MIB + end) };
        let hook: Hook = Box::new(move |store: MemoryStore| {
            Box::pin(async move {
                let bytes = content(1, range.start.0, range.end.0);
                let before = store.list_page("main/open/00000001/", None).await.unwrap().objects;
                writer.store_wal(&Key::Tail(range), range, Bytes::from(bytes)).await.unwrap();
                for object in before {
                    store.delete(&object.key).await.unwrap();
                }
            })
        });
        world.store.after_listing_tails.lock().unwrap().push(hook);
    }
    assert_same(&world.served(1, 3).await, &padded(1, 3, 3 * MIB + 9000));
    assert!(world.store.after_listing_tails.lock().unwrap().is_empty(), "the tails were to change twice");
}

#[tokio::test]
async fn a_standby_sees_a_timeline_up_to_where_the_newest_left_it() {
    // Given a dead branch of timeline 1 behind the switch to timeline 2, of which nothing is stored yet.
    let world = World::new().await;
    world.segments(3, 2).await;
    world.history(2, "1\t0/380000\tpromoted\n").await;
    assert_eq!(world.ask_segment(2, 3).await.unwrap(), Fetched::Absent);
    assert_same(&world.served(1, 3).await, &padded(1, 3, 0x38_0000));
    assert_eq!(world.ask_segment(1, 4).await.unwrap(), Fetched::Absent);
    // When the new timeline's first segment comes, it is served.
    world.block(2, 3 * MIB, 4 * MIB).await;
    assert_same(&world.served(2, 3).await, &content(2, 3 * MIB, 4 * MIB));
    // And a request for what is before its first file is absent, not a hole.
    assert_eq!(world.ask_segment(2, 2).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn a_standby_at_the_end_of_the_archive_gets_what_is_new_and_nothing_twice() {
    // Given a standby that got the beginning of a segment, which PostgreSQL then keeps under its name
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    assert_same(&world.served(1, 3).await, &padded(1, 3, 3 * MIB + 1000));
    let kept = world.destination().with_file_name(segment(1, 3).name());
    std::fs::rename(world.destination(), &kept).unwrap();
    // When it asks again, then there is no more, and nothing is written
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    assert_eq!(world.ask("00000002.history").await.unwrap(), Fetched::Absent);
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    assert!(!world.destination().exists());
    // When the archive has grown, then it gets everything
    world.tail(1, 3 * MIB + 1000, 3 * MIB + 7000).await;
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Written);
    assert_same(&std::fs::read(world.destination()).unwrap(), &padded(1, 3, 3 * MIB + 7000));
    std::fs::rename(world.destination(), &kept).unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    // When the file is another one, or gone, then it is brought again
    std::fs::write(&kept, vec![1; MIB as usize]).unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Written);
    std::fs::remove_file(&kept).unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Written);
    std::fs::rename(world.destination(), &kept).unwrap();
    // When the timeline was left further on, then the standby gets it up to there, and no more
    world.tail(1, 3 * MIB + 7000, 3 * MIB + 0x8_0000).await;
    world.history(2, "1\t0/340000\tpromoted\n").await;
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Written);
    assert_same(&std::fs::read(world.destination()).unwrap(), &padded(1, 3, 0x34_0000));
    std::fs::rename(world.destination(), &kept).unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    // and a damaged note is none.
    std::fs::write(world.data.path().join("seawall.served.json"), "{").unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Written);
}

#[tokio::test]
async fn a_person_who_fetches_a_segment_finds_nothing_else_in_his_directory() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    std::fs::remove_file(world.data.path().join("PG_VERSION")).unwrap();
    let there = || -> Vec<_> {
        let entries = std::fs::read_dir(world.data.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let before = there();
    world.served(1, 3).await;
    assert_eq!(there(), before);
}

#[tokio::test(start_paused = true)]
async fn a_hole_at_the_end_of_what_a_standby_got_is_no_end() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    world.served(1, 3).await;
    std::fs::rename(world.destination(), world.destination().with_file_name(segment(1, 3).name())).unwrap();
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
    // When something is stored further on, or a newer timeline goes on behind a hole
    world.tail(1, 3 * MIB + 2000, 3 * MIB + 3000).await;
    assert_damaged(world.ask_segment(1, 3).await);
    world.history(2, "1\t0/380000\tpromoted\n").await;
    world.tail(2, 3 * MIB, 3 * MIB + 0x9_0000).await;
    assert_damaged(world.ask_segment(1, 3).await);
}

#[tokio::test(start_paused = true)]
async fn a_hole_before_a_switch_with_wal_behind_it_is_an_error() {
    let world = World::new().await;
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    world.history(2, "1\t0/380000\tpromoted\n").await;
    // The archiver may still be bringing the old timeline to its end.
    assert_same(&world.served(1, 3).await, &padded(1, 3, 3 * MIB + 1000));
    world.tail(2, 3 * MIB, 3 * MIB + 0x9_0000).await;
    assert_damaged(world.ask_segment(1, 3).await);
}

// What a restore sees: a pinned path.

#[tokio::test]
async fn a_restore_sees_zeros_from_its_end_on_whatever_is_stored_meanwhile() {
    let world = World::new().await.pinned(&[(1, 0, 3 * MIB + 5000)]);
    world.segments(2, 5).await;
    assert_same(&world.served(1, 2).await, &content(1, 2 * MIB, 3 * MIB));
    assert_same(&world.served(1, 3).await, &padded(1, 3, 3 * MIB + 5000));
    assert_eq!(world.ask_segment(1, 4).await.unwrap(), Fetched::Absent);
    let on_a_border = World::new().await.pinned(&[(1, 0, 3 * MIB)]);
    on_a_border.segments(2, 2).await;
    assert_eq!(on_a_border.ask_segment(1, 3).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn a_restore_whose_wal_has_gone_fails_at_once() {
    let world = World::new().await.pinned(&[(1, 0, 5 * MIB)]);
    world.tail(1, 3 * MIB, 3 * MIB + 1000).await;
    assert_damaged(world.ask_segment(1, 3).await);
    assert_damaged(world.ask_segment(1, 4).await);
}

#[tokio::test]
async fn the_old_timelines_segment_is_no_stand_in_for_the_new_ones() {
    // Given a path that leaves timeline 1 in the middle of segment 3, and a dead branch behind.
    let world = World::new().await.pinned(&[(1, 0, 0x38_0000), (2, 0x38_0000, 4 * MIB + 100)]);
    world.segments(2, 3).await;
    world.block(2, 3 * MIB, 4 * MIB).await;
    world.tail(2, 4 * MIB, 4 * MIB + 5000).await;
    assert_same(&world.served(1, 2).await, &content(1, 2 * MIB, 3 * MIB));
    assert_same(&world.served(2, 3).await, &content(2, 3 * MIB, 4 * MIB));
    assert_same(&world.served(2, 4).await, &padded(2, 4, 4 * MIB + 100));
    // When the server asks for the old one, it did not get the new one.
    assert_damaged(world.ask_segment(1, 3).await);
    assert_damaged(world.ask_segment(1, 4).await);
    // Nothing of the path lies there, on any timeline.
    assert_eq!(world.ask_segment(1, 5).await.unwrap(), Fetched::Absent);
    assert_eq!(world.ask_segment(2, 2).await.unwrap(), Fetched::Absent);
    assert_eq!(world.ask_segment(3, 3).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn a_path_that_ends_at_its_switch_is_served_from_the_old_timeline() {
    let world = World::new().await.pinned(&[(1, 0, 0x38_0000), (2, 0x38_0000, 0x38_0000)]);
    world.segments(3, 2).await;
    assert_eq!(world.ask_segment(2, 3).await.unwrap(), Fetched::Absent);
    assert_same(&world.served(1, 3).await, &padded(1, 3, 0x38_0000));
    assert_eq!(world.ask_segment(1, 4).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn a_switch_on_a_segments_border_takes_nothing_from_the_segment_before() {
    let world = World::new().await.pinned(&[(1, 0, 3 * MIB), (2, 3 * MIB, 4 * MIB)]);
    world.segments(2, 2).await;
    world.block(2, 3 * MIB, 4 * MIB).await;
    assert_same(&world.served(1, 2).await, &content(1, 2 * MIB, 3 * MIB));
    assert_damaged(world.ask_segment(1, 3).await);
}

#[tokio::test]
async fn a_pin_of_another_cluster_is_refused() {
    let mut world = World::new().await.pinned(&[(1, 0, 5 * MIB)]);
    world.segments(3, 1).await;
    world.pin.as_mut().unwrap().system_identifier = "17".to_owned();
    assert_eq!(world.ask_segment(1, 3).await.unwrap_err().kind(), Kind::Refused);
}

// Histories and other names.

#[tokio::test]
async fn every_history_is_served_on_the_path_or_not() {
    // A server looks for the first free number: 3 must not look free because the restore ends on 1.
    let world = World::new().await.pinned(&[(1, 0, 5 * MIB)]);
    for timeline in [2, 3] {
        let text = format!("1\t0/3{timeline}0000\tpromoted\n");
        world.history(timeline, &text).await;
        assert_eq!(world.ask(&format!("0000000{timeline}.history")).await.unwrap(), Fetched::Written);
        assert_eq!(world.at_destination(), text.as_bytes());
    }
    assert_eq!(world.ask("00000004.history").await.unwrap(), Fetched::Absent);
    assert_eq!(world.ask("00000001.history").await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn a_lost_history_of_a_timeline_with_wal_is_not_absent() {
    let world = World::new().await;
    world.segments(3, 1).await;
    world.block(2, 3 * MIB, 4 * MIB).await;
    assert_damaged(world.ask("00000002.history").await);
    assert_eq!(world.ask("00000001.history").await.unwrap(), Fetched::Absent, "the first timeline has none");
}

#[tokio::test]
async fn what_is_neither_segment_nor_history_is_absent_and_a_foreign_segment_an_error() {
    let world = World::new().await;
    for name in ["000000010000000000000003.00000028.backup", "000000010000000000000003.partial", "x"] {
        assert_eq!(world.ask(name).await.unwrap(), Fetched::Absent, "{name}");
    }
    // Segments of 1 MiB are numbered up to FFF: no server of this cluster asks for 1000.
    let error = world.ask("000000010000000000001000").await.expect_err("absent would end recovery");
    assert_eq!(error.kind(), Kind::Refused);
}

#[tokio::test]
async fn a_cut_object_is_never_served() {
    let world = World::new().await;
    world.segments(3, 1).await;
    let name = layout().name(&Key::Block(WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(4 * MIB) }));
    let whole = world.store.get(&name, None).await.unwrap().collect().await.unwrap();
    world.store.delete(&name).await.unwrap();
    let cut = Body::from(whole.slice(..whole.len() - 100));
    world.store.create(&name, cut, Metadata::new()).await.unwrap();
    assert_damaged(world.ask_segment(1, 3).await);
    assert!(!world.destination().exists());
}
