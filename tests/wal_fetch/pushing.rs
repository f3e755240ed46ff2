//! `archive_command`.

use seawall::codec::Compression;
use seawall::error::{Kind, Result};
use seawall::repository::{Key, Layout, Repository, WalReader, Writer};
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::wal_push::{Pushed, push};
use seawall::store::{FileStore, Store};
use seawall::wal::{Lsn, Segment, SegmentSize, TimelineId, WalRange};
use std::sync::Arc;

use crate::world::*;

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

/// All of a segment.
fn whole(timeline: u32, number: u64) -> WalRange {
    WalRange { timeline: TimelineId(timeline), start: Lsn(number * MIB), end: Lsn((number + 1) * MIB) }
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
        assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Wal(whole(1, 3)));
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
    assert_eq!(world.push("00000002.history", text).await.unwrap(), Pushed::History);
    assert_eq!(world.push("00000002.history", text).await.unwrap(), Pushed::History);
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
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Wal(whole(2, 3)));
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
    let tail = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(3 * MIB + 4 * 8192) };
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Wal(tail));
    assert_same(&world.served(1, 3).await, &expected);
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
    let tail = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(switch) };
    assert_eq!(world.push(&name, &file).await.unwrap(), Pushed::Wal(tail));
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
    assert_eq!(
        push(&writer, &path).await.unwrap(),
        Pushed::Wal(WalRange { timeline: segment.timeline, start: segment.start, end: segment.end() })
    );
    let reader = WalReader::new(Repository { store, layout }, SYSTEM_IDENTIFIER);
    let destination = root.path().join("RECOVERYXLOG");
    let fetched = fetch(&reader, &segment.name(), &destination, None, root.path()).await.unwrap();
    assert_eq!(fetched, Fetched::Written);
    assert_same(&std::fs::read(destination).unwrap(), &file);
}
