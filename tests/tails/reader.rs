//! Rule 11: who reads while tails are merged, replaced and deleted sees everything that was acknowledged, always.

use crate::s3::{Op, S3Server};
use crate::s3_store;
use crate::server::{SYSTEM_IDENTIFIER, Server, TIMELINE, wal};
use crate::store::Latency;
use crate::support::program::Seawall;
use crate::world::{CLUSTER, MIB, MILLISECOND, SECOND, World, on_a_paused_clock};
use seawall::archive::{ArchiveOptions, Archiver};
use seawall::repository::WalReader;
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::{Pin, PinnedTimeline};
use seawall::runtime::{Clock, Shutdown};
use seawall::wal::{Lsn, Segment, SegmentSize, WalRange};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// A reader that goes on until it is dropped.
struct Reading {
    server: Server,
    reader: WalReader,
    size: SegmentSize,
    begin: Lsn,
    reads: Arc<AtomicU64>,
    seed: u64,
}

impl Reading {
    /// Reads blocks again and again, mostly the open one.
    async fn read_blocks(self) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut ends: BTreeMap<Lsn, Lsn> = BTreeMap::new();
        loop {
            sleep(Duration::from_millis(random.u64(0..300))).await;
            let Some(position) = self.some_position(&mut random) else { continue };
            let safe = self.server.flushed();
            let start = self.size.block_start(position).max(self.begin);
            let range = WalRange { timeline: TIMELINE, start, end: self.size.block_end(position) };
            let window = self.reader.read_range(range).await.expect("a reader is never left without");
            let least = ends.entry(start).or_insert(start);
            *least = (*least).max(safe.min(range.end));
            assert!(window.end >= *least, "{} was there, and {} is", least, window.end);
            *least = window.end;
            assert!(window.pieces.concat() == wal(start, window.end), "{range} reads differently");
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Fetches segments again and again, as a server does: a standby, or one that is restored up to what was safe.
    async fn fetch_segments(self, is_pinned: bool) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        loop {
            sleep(Duration::from_millis(random.u64(0..300))).await;
            let Some(position) = self.some_position(&mut random) else { continue };
            let end = self.server.flushed();
            let path = vec![PinnedTimeline { timeline: TIMELINE, start: self.begin, end }];
            let pin =
                Pin { system_identifier: SYSTEM_IDENTIFIER.to_string(), path, local_end: Lsn(0), segment_bytes: MIB };
            let segment = Segment::holding(TIMELINE, position, self.size);
            let data = tempfile::tempdir().unwrap();
            let destination = data.path().join("RECOVERYXLOG");
            let pin = is_pinned.then_some(&pin);
            let fetched = fetch(&self.reader, &segment.name(), &destination, pin, data.path()).await;
            assert_eq!(fetched.expect("a fetch never fails"), Fetched::Written, "{segment} has {position}");
            assert_served(&std::fs::read(&destination).unwrap(), segment, self.begin, end, is_pinned);
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A position that was acknowledged.
    fn some_position(&self, random: &mut fastrand::Rng) -> Option<Lsn> {
        let bytes = self.server.flushed().0.checked_sub(self.begin.0).filter(|bytes| *bytes > 0)?;
        let back = if random.u32(0..4) == 0 { random.u64(0..bytes) } else { 0 };
        Some(self.begin + (bytes - 1 - back))
    }
}

/// The file has at least what was safe before it was asked for, and zeros where it ends; pinned, that and no more.
fn assert_served(file: &[u8], segment: Segment, begin: Lsn, safe: Lsn, is_pinned: bool) {
    assert_eq!(file.len() as u64, segment.size.bytes());
    let first = begin.max(segment.start);
    let expected = wal(first, segment.end());
    let served = &file[(first - segment.start) as usize..];
    let pages = served.chunks(4096).zip(expected.chunks(4096)).take_while(|(one, other)| one == other).count();
    let rest = served.iter().zip(&expected).skip(pages * 4096).take_while(|(one, other)| one == other).count();
    let same = (pages * 4096).min(served.len()) + rest;
    let (end, safe) = (first + same as u64, safe.min(segment.end()));
    assert!(end >= safe, "{segment}: {safe} was safe, and what was served ends at {end}");
    assert!(served[same..] == vec![0; served.len() - same], "{segment}: something else follows at {end}");
    // Where the pinned end is followed by zeros anyhow, one byte more may look the same.
    assert!(!is_pinned || end < safe + 9, "{segment}: pinned at {safe}, and served up to {end}");
}

/// So many reads, among them some that found a tail gone which had just been listed.
fn read_under_way(seed: u64, garbage_age: Duration) -> (u64, u64) {
    on_a_paused_clock(async {
        fastrand::seed(seed);
        let options = ArchiveOptions { flush_interval: 50 * MILLISECOND, garbage_age, ..ArchiveOptions::default() };
        let latency = Latency::Between(MILLISECOND, 30 * MILLISECOND);
        let mut world = World::begin(options, MIB, latency).await;
        // Given readers of every kind
        let reads = Arc::new(AtomicU64::new(0));
        let reading = |number: u64| Reading {
            server: world.server.clone(),
            reader: world.reader(),
            size: world.size,
            begin: world.begin,
            reads: reads.clone(),
            seed: 10 * seed + number,
        };
        let mut readers = tokio::task::JoinSet::new();
        readers.spawn(reading(0).read_blocks());
        readers.spawn(reading(1).read_blocks());
        readers.spawn(reading(2).fetch_segments(false));
        readers.spawn(reading(3).fetch_segments(true));
        // When WAL trickles and bursts, blocks fill, and the archiver is killed now and then
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..12 {
            let interval = Duration::from_millis(random.u64(20..200));
            world.trickle(random.u64(1..3_000), interval, 5 * SECOND).await;
            match random.u32(0..6) {
                0 => world.server.write(random.u64(1..MIB)),
                1 => {
                    world.kill().await;
                    world.start().await;
                }
                2 => world.server.cut(),
                _ => {}
            }
            if let Some(ended) = readers.try_join_next() {
                ended.expect("a reader panicked");
            }
        }
        world.assert_readable().await;
        (reads.load(Ordering::Relaxed), world.store.gone())
    })
}

#[test]
fn whoever_reads_while_tails_go_sees_everything_that_was_acknowledged() {
    // Given ages at which a tail goes while it is read, which nobody would choose
    let (mut reads, mut gone) = (0, 0);
    for (seed, age) in [(1, 50), (2, 150), (3, 400), (4, 1_000)] {
        let (read, found_gone) = read_under_way(seed, Duration::from_millis(age));
        (reads, gone) = (reads + read, gone + found_gone);
    }
    println!("{reads} reads, {gone} tails were gone when they were to be read");
    assert!(reads > 1_000, "only {reads} reads");
    assert!(gone > 10, "only {gone} tails were gone, so little was tested");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_fetches_from_s3_while_tails_go() {
    // Given an archiver that writes into S3, and deletes what it replaced a fifth of a second ago
    let bucket = S3Server::start();
    let clock = Clock::system();
    let size = SegmentSize::new(MIB).unwrap();
    let server = Server::new(size, clock.clone());
    let store = s3_store::store(s3_store::options(&bucket)).await;
    let options = ArchiveOptions {
        flush_interval: 20 * MILLISECOND,
        garbage_age: 200 * MILLISECOND,
        ..ArchiveOptions::default()
    };
    let archiver = Archiver::new(Arc::new(server.clone()), store, CLUSTER, options, clock);
    let shutdown = Shutdown::default();
    let token = shutdown.clone();
    let archiving = tokio::spawn(async move { archiver.run(&token).await });
    let begin = server.flush();
    let writer = server.clone();
    let writing = tokio::spawn(async move {
        loop {
            writer.write(2_500);
            sleep(5 * MILLISECOND).await;
        }
    });
    server.safe_up_to(begin + 100_000).await;
    // When a server asks for the newest segment again and again
    let data = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let safe = server.flushed();
        let segment = Segment::holding(TIMELINE, Lsn(safe.0 - 1), size);
        let mut program = Seawall::new(["wal-fetch", &segment.name(), "RECOVERYXLOG", "--repo", &s3_store::url()]);
        for (name, value) in bucket.env() {
            program = program.env(name, value);
        }
        program.current_dir(data.path()).run_ok().await;
        // Then it gets all that was acknowledged before
        assert_served(&std::fs::read(data.path().join("RECOVERYXLOG")).unwrap(), segment, begin, safe, false);
    }
    writing.abort();
    shutdown.begin_stop();
    archiving.await.unwrap().unwrap();
    assert!(bucket.count(Op::Delete) > 10, "nothing was deleted meanwhile: {:?}", bucket.counts());
}
