//! `wal-fetch` and `wal-push` against stores that hold, lose and change what a server in recovery asks for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use seawall::codec::Compression;
use seawall::error::{Kind, Result};
use seawall::repository::{Cluster, FORMAT_VERSION, Key, Layout, Repository, WalReader, Writer};
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::wal_push::{Pushed, push};
use seawall::restore::{Pin, PinnedTimeline, SPOOL_DIRECTORY, ahead};
use seawall::store::{
    Body, Created, FileStore, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, ObservedStore,
    Operation, Store, StoreError, StoreErrorKind, StoreObserver, Upload,
};
use seawall::wal::{Lsn, Segment, SegmentSize, TimelineId, WalRange};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SYSTEM_IDENTIFIER: u64 = 7_300_000_000_000_000_007;
const MIB: u64 = 1 << 20;

type Hook = Box<dyn FnOnce(MemoryStore) -> BoxFuture<'static, ()> + Send>;

/// A store that can be taken away, and that can change between a listing and the reading of what was listed.
#[derive(Clone)]
struct Unsteady {
    inner: MemoryStore,
    is_down: Arc<AtomicBool>,
    after_listing_tails: Arc<Mutex<Vec<Hook>>>,
}

impl std::fmt::Debug for Unsteady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unsteady")
    }
}

impl Unsteady {
    fn up(&self, key: &str) -> Result<(), StoreError> {
        match self.is_down.load(Ordering::SeqCst) {
            true => Err(StoreError::new(StoreErrorKind::Transient, "read", key)),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Unsteady {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.inner.create(key, body, metadata).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.up(key)?;
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.up(key)?;
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.up(prefix)?;
        let page = self.inner.list_page(prefix, token).await?;
        if prefix.contains("/open/") {
            let hook = self.after_listing_tails.lock().unwrap().pop();
            if let Some(hook) = hook {
                hook(self.inner.clone()).await;
            }
        }
        Ok(page)
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.up(prefix)?;
        self.inner.list_level(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(key, metadata).await
    }

    fn describe(&self) -> String {
        "unsteady:".to_owned()
    }
}

/// A repository, and a server in recovery that asks it for WAL.
struct World {
    store: Unsteady,
    writer: Writer,
    reader: WalReader,
    data: tempfile::TempDir,
    pin: Option<Pin>,
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn layout() -> Layout {
    Layout::new("main", size(), Compression::Lz4)
}

async fn store_cluster(writer: &Writer) {
    let cluster = Cluster {
        format: FORMAT_VERSION,
        system_identifier: SYSTEM_IDENTIFIER,
        postgres_version: 150_018,
        segment_bytes: MIB,
        created_at: "2026-11-20T12:00:00Z".parse().unwrap(),
    };
    writer.store_document(&Key::Cluster, &cluster).await.unwrap();
}

/// The byte at a position of a timeline: never zero, and different on every timeline.
fn content(timeline: u32, start: u64, end: u64) -> Vec<u8> {
    (start..end).map(|at| (at / 7 + u64::from(timeline) * 50) as u8 | 1).collect()
}

impl World {
    async fn new() -> World {
        let store =
            Unsteady { inner: MemoryStore::new(), is_down: Arc::default(), after_listing_tails: Arc::default() };
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let writer = Writer::new(shared.clone(), layout(), SYSTEM_IDENTIFIER);
        store_cluster(&writer).await;
        let reader = WalReader::new(Repository { store: shared, layout: layout() }, SYSTEM_IDENTIFIER);
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
        std::fs::create_dir(data.path().join("pg_wal")).unwrap();
        World { store, writer, reader, data, pin: None }
    }

    /// Pins a path: timeline, first byte, first byte behind.
    fn pinned(mut self, path: &[(u32, u64, u64)]) -> World {
        let part = |&(timeline, start, end)| PinnedTimeline {
            timeline: TimelineId(timeline),
            start: Lsn(start),
            end: Lsn(end),
        };
        let path = path.iter().map(part).collect();
        self.pin =
            Some(Pin { system_identifier: SYSTEM_IDENTIFIER.to_string(), path, local_end: Lsn(0), segment_bytes: MIB });
        self
    }

    async fn store_as(&self, key: impl Fn(WalRange) -> Key, timeline: u32, start: u64, end: u64) {
        let range = WalRange { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        self.writer.store_wal(&key(range), range, Bytes::from(content(timeline, start, end))).await.unwrap();
    }

    async fn block(&self, timeline: u32, start: u64, end: u64) {
        self.store_as(Key::Block, timeline, start, end).await;
    }

    async fn tail(&self, timeline: u32, start: u64, end: u64) {
        self.store_as(Key::Tail, timeline, start, end).await;
    }

    /// `count` whole segments of timeline 1.
    async fn segments(&self, first: u64, count: u64) {
        for number in first..first + count {
            self.block(1, number * MIB, (number + 1) * MIB).await;
        }
    }

    async fn history(&self, timeline: u32, text: &str) {
        let text = Bytes::from(text.to_owned());
        self.writer.store_plain(&Key::History(TimelineId(timeline)), text).await.unwrap();
    }

    fn destination(&self) -> PathBuf {
        self.data.path().join("pg_wal/RECOVERYXLOG")
    }

    async fn ask(&self, name: &str) -> Result<Fetched> {
        fetch(&self.reader, name, &self.destination(), self.pin.as_ref(), self.data.path()).await
    }

    async fn ask_segment(&self, timeline: u32, number: u64) -> Result<Fetched> {
        self.ask(&segment(timeline, number).name()).await
    }

    /// Asks and gives what is at the destination.
    async fn served(&self, timeline: u32, number: u64) -> Vec<u8> {
        let name = segment(timeline, number).name();
        assert_eq!(self.ask(&name).await.unwrap(), Fetched::Written, "{name} was not served");
        self.at_destination()
    }

    fn at_destination(&self) -> Vec<u8> {
        let files: Vec<_> =
            std::fs::read_dir(self.data.path().join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["RECOVERYXLOG"], "a fetch leaves its one file in pg_wal and nothing else");
        std::fs::read(self.destination()).unwrap()
    }

    fn cut_off(&self) {
        self.store.is_down.store(true, Ordering::SeqCst);
    }

    fn spooled(&self) -> Vec<String> {
        let Ok(root) = std::fs::read_dir(self.data.path().join(SPOOL_DIRECTORY)) else { return Vec::new() };
        let directories = root.map(|entry| entry.unwrap().path());
        let files = directories.flat_map(|directory| std::fs::read_dir(directory).unwrap());
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn segment(timeline: u32, number: u64) -> Segment {
    Segment { timeline: TimelineId(timeline), start: Lsn(number * MIB), size: size() }
}

/// The bytes up to `end`, and zeros to the end of the segment.
fn padded(timeline: u32, number: u64, end: u64) -> Vec<u8> {
    let mut bytes = content(timeline, number * MIB, end);
    bytes.resize(MIB as usize, 0);
    bytes
}

/// Compares without printing megabytes.
fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "the file has another length");
    let difference = found.iter().zip(expected).position(|(one, other)| one != other);
    assert_eq!(difference, None, "the file differs first at this offset");
}

#[track_caller]
fn assert_damaged(result: Result<Fetched>) {
    let error = result.expect_err("a hole must be an error");
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
}

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

// Fetching ahead.

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

/// Removes the spool with the first file in it, whenever something was read.
#[derive(Debug)]
struct EndOfRecovery(PathBuf);

impl StoreObserver for EndOfRecovery {
    fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {
        let spool = std::fs::read_dir(&self.0).ok().and_then(|mut entries| entries.next()?.ok());
        if spool.is_some_and(|spool| std::fs::read_dir(spool.path()).is_ok_and(|mut files| files.next().is_some())) {
            std::fs::remove_dir_all(&self.0).unwrap();
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

// archive_command.

/// A segment file as a server writes it, with `pages` pages.
fn segment_file(timeline: u32, number: u64, pages: u64, system_identifier: u64) -> Vec<u8> {
    let mut file = vec![0; MIB as usize];
    for page in 0..pages {
        let at = (page * 8192) as usize;
        let is_first = page == 0;
        file[at..at + 2].copy_from_slice(&0xD110u16.to_le_bytes());
        file[at + 2..at + 4].copy_from_slice(&(if is_first { 2u16 } else { 0 }).to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&timeline.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&(number * MIB + page * 8192).to_le_bytes());
        if is_first {
            file[24..32].copy_from_slice(&system_identifier.to_le_bytes());
            file[32..36].copy_from_slice(&(MIB as u32).to_le_bytes());
            file[36..40].copy_from_slice(&8192u32.to_le_bytes());
        }
        file[at + 100..at + 8000].fill(page as u8 | 1);
    }
    file
}

impl World {
    async fn push(&self, name: &str, bytes: &[u8]) -> Result<Pushed> {
        let directory = self.data.path().join("source");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        push(&self.writer, &path).await
    }
}

#[tokio::test]
async fn what_is_pushed_is_fetched_and_may_be_pushed_again() {
    let world = World::new().await;
    let file = segment_file(1, 3, 128, SYSTEM_IDENTIFIER);
    let name = segment(1, 3).name();
    for _ in 0..2 {
        assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Stored);
    }
    assert_same(&world.served(1, 3).await, &file);
    // Other bytes under that name are another cluster's history.
    let mut other = file.clone();
    other[5000] ^= 1;
    assert_eq!(world.push(&name, &other).await.unwrap_err().kind(), Kind::Diverged);
    assert_same(&world.served(1, 3).await, &file);
}

#[tokio::test]
async fn a_file_of_another_cluster_or_a_cut_one_is_refused() {
    let world = World::new().await;
    let file = segment_file(1, 3, 128, SYSTEM_IDENTIFIER);
    let name = segment(1, 3).name();
    for (why, bytes) in [
        ("cut", file[..file.len() - 8192].to_vec()),
        ("of another cluster", segment_file(1, 3, 128, 17)),
        ("another segment", segment_file(1, 4, 128, SYSTEM_IDENTIFIER)),
        ("empty", vec![0; MIB as usize]),
    ] {
        let error = world.push(&name, &bytes).await.expect_err(why);
        assert_eq!(error.kind(), Kind::Refused, "{why}: {error}");
    }
    assert_eq!(world.ask_segment(1, 3).await.unwrap(), Fetched::Absent, "nothing was stored");
    assert_eq!(world.push("postgresql.conf", b"x").await.unwrap_err().kind(), Kind::Usage);
}

#[tokio::test]
async fn a_history_is_stored_and_a_backup_label_is_not_needed() {
    let world = World::new().await;
    let text = b"1\t0/380000\tpromoted\n";
    assert_eq!(world.push("00000002.history", text).await.unwrap(), Pushed::Stored);
    assert_eq!(world.push("00000002.history", text).await.unwrap(), Pushed::Stored);
    assert_eq!(world.ask("00000002.history").await.unwrap(), Fetched::Written);
    assert_eq!(world.at_destination(), text);
    let error = world.push("00000002.history", b"1\t0/390000\tpromoted\n").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    assert_eq!(world.push("00000003.history", b"nonsense").await.unwrap_err().kind(), Kind::Refused);
    let label = "000000010000000000000003.00000028.backup";
    assert_eq!(world.push(label, b"START WAL LOCATION").await.unwrap(), Pushed::Ignored);
}

#[tokio::test]
async fn a_timelines_history_is_stored_before_its_first_byte() {
    let world = World::new().await;
    let (name, file) = (segment(2, 3).name(), segment_file(2, 3, 128, SYSTEM_IDENTIFIER));
    let error = world.push(&name, &file).await.expect_err("its history is nowhere");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    // It lies beside the segment, as in pg_wal: archived before archiving was turned on.
    std::fs::write(world.data.path().join("source/00000002.history"), "1\t0/380000\tpromoted\n").unwrap();
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Stored);
    assert_eq!(world.ask("00000002.history").await.unwrap(), Fetched::Written);
}

#[tokio::test]
async fn a_partial_segment_is_stored_up_to_its_end_and_no_further() {
    // Given a recycled file: four pages were written, and behind zeros lies what it was before.
    let world = World::new().await;
    let mut file = segment_file(1, 3, 4, SYSTEM_IDENTIFIER);
    let expected = file.clone();
    file[5 * 8192..].copy_from_slice(&segment_file(1, 1, 128, SYSTEM_IDENTIFIER)[5 * 8192..]);
    let name = format!("{}.partial", segment(1, 3).name());
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Stored);
    assert_same(&world.served(1, 3).await, &expected);
    let tail = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(3 * MIB + 4 * 8192) };
    assert!(world.store.head(&layout().name(&Key::Tail(tail))).await.is_ok());
}

#[tokio::test]
async fn a_partial_segment_ends_where_the_history_beside_it_says() {
    let world = World::new().await;
    let switch = 3 * MIB + 3 * 8192 + 4000;
    std::fs::create_dir_all(world.data.path().join("source")).unwrap();
    let history = format!("1\t{}\tpromoted\n", Lsn(switch));
    std::fs::write(world.data.path().join("source/00000002.history"), history).unwrap();
    let file = segment_file(1, 3, 4, SYSTEM_IDENTIFIER);
    let name = format!("{}.partial", segment(1, 3).name());
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Stored);
    let mut expected = file.clone();
    expected[(switch - 3 * MIB) as usize..].fill(0);
    assert_same(&world.served(1, 3).await, &expected);
}

#[tokio::test]
async fn large_segments_go_both_ways_block_by_block_through_a_directory() {
    // Two blocks of 16 MiB in a repository of files.
    let size = SegmentSize::new(32 * MIB).unwrap();
    let layout = Layout::new("main", size, Compression::Lz4);
    let root = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(FileStore::new(root.path().join("repository")));
    std::fs::create_dir(root.path().join("repository")).unwrap();
    let writer = Writer::new(store.clone(), layout.clone(), SYSTEM_IDENTIFIER);
    let segment = Segment { timeline: TimelineId(1), start: Lsn(64 * MIB), size };
    let mut file = vec![0; size.bytes() as usize];
    file[..8192].copy_from_slice(&segment_file(1, 64, 1, SYSTEM_IDENTIFIER)[..8192]);
    file[32..36].copy_from_slice(&(size.bytes() as u32).to_le_bytes());
    file[20 * MIB as usize..].fill(5);
    let path = root.path().join(segment.name());
    std::fs::write(&path, &file).unwrap();
    assert_eq!(push(&writer, &path).await.unwrap(), Pushed::Stored);
    let reader = WalReader::new(Repository { store, layout }, SYSTEM_IDENTIFIER);
    let destination = root.path().join("RECOVERYXLOG");
    let fetched = fetch(&reader, &segment.name(), &destination, None, root.path()).await.unwrap();
    assert_eq!(fetched, Fetched::Written);
    assert_same(&std::fs::read(destination).unwrap(), &file);
}
