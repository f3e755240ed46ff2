//! What no real server can be made to do at will, on a paused clock: a server that stays on a timeline which has ended, and
//! one that goes on with it.

use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    ArchiveOptions, ArchiveState, Archiver, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source,
    SourceError, Standing, Started, TimelineEnd,
};
use seawall::codec::Compression;
use seawall::repository::{Key, Layout, Repository, Writer};
use seawall::runtime::{Clock, Shutdown};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;
const SWITCH: Lsn = Lsn(3 * MIB + 5000);

/// A server on timeline 1, for ever.
#[derive(Clone, Debug)]
struct Stuck {
    /// It knows that its timeline has ended, and says so when it has sent everything.
    knows_end: bool,
    connections: Arc<AtomicU32>,
}

impl Stuck {
    fn new(knows_end: bool) -> Stuck {
        Stuck { knows_end, connections: Arc::default() }
    }
}

fn wal(start: Lsn, end: Lsn) -> Bytes {
    (start.0..end.0).map(|at| (at % 251) as u8).collect()
}

#[async_trait]
impl Source for Stuck {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(self.clone()))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        Err(SourceError::lost("nobody looks on"))
    }

    async fn peek(&self, _: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(Some(wal(lsn, SWITCH.max(lsn))))
    }
}

#[async_trait]
impl Session for Stuck {
    fn identity(&self) -> ServerIdentity {
        ServerIdentity {
            system_identifier: 7,
            timeline: TimelineId(1),
            flush_lsn: SWITCH,
            segment_size: SegmentSize::new(MIB).unwrap(),
            version: 170_000,
        }
    }

    async fn history_file(&mut self, _: TimelineId) -> Result<Bytes, SourceError> {
        unreachable!("timeline 1 has no history")
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        Ok(SlotPosition { restart_lsn: Some(Lsn(3 * MIB)), created: false })
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        Ok(Standing { timeline: TimelineId(1), flush_lsn: SWITCH, is_standby: true })
    }

    async fn start(self: Box<Self>, start: Lsn, _: TimelineId) -> Result<Started, SourceError> {
        Ok(Started::Streaming(Box::new(StuckFeed { knows_end: self.knows_end, sent: start, next_at: Instant::now() })))
    }
}

#[derive(Debug)]
struct StuckFeed {
    knows_end: bool,
    sent: Lsn,
    next_at: Instant,
}

#[async_trait]
impl Feed for StuckFeed {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        if self.sent >= SWITCH && self.knows_end {
            return Ok(FeedMessage::EndOfTimeline);
        }
        // One that does not know goes on and on.
        tokio::time::sleep_until(self.next_at).await;
        let end = if self.sent < SWITCH { Lsn(self.sent.0 + 2500).min(SWITCH) } else { self.sent + 100 };
        self.next_at = Instant::now() + Duration::from_millis(if end < SWITCH { 0 } else { 700 });
        let start = std::mem::replace(&mut self.sent, end);
        Ok(FeedMessage::Data { start, server_end: end, server_micros: 0, bytes: wal(start, end) })
    }

    async fn send_status(&mut self, _: Lsn, _: Lsn, _: bool) -> Result<(), SourceError> {
        Ok(())
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        Ok(())
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        Ok(TimelineEnd { next: TimelineId(2), switch: SWITCH })
    }
}

/// Runs an archiver for so long. Gives its state, and the errors that it showed.
async fn archive(
    source: &Stuck,
    store: &Arc<dyn Store>,
    time: Duration,
) -> (watch::Receiver<ArchiveState>, BTreeSet<String>) {
    let clock = Clock::simulated(jiff::Timestamp::from_second(1_800_000_000).unwrap());
    let archiver = Archiver::new(Arc::new(source.clone()), store.clone(), "main", ArchiveOptions::default(), clock);
    let (state, shutdown) = (archiver.state(), Shutdown::default());
    let (mut watched, mut errors) = (archiver.state(), BTreeSet::new());
    let watching = async {
        loop {
            watched.changed().await.unwrap();
            errors.extend(watched.borrow_and_update().last_error.clone());
        }
    };
    tokio::select! {
        ended = archiver.run(&shutdown) => panic!("the archiver ended: {ended:?}"),
        () = watching => {}
        () = tokio::time::sleep(time) => {}
    }
    (state, errors)
}

fn layout() -> Layout {
    Layout::new("main", SegmentSize::new(MIB).unwrap(), Compression::Lz4)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_on_a_timeline_which_has_ended_is_asked_with_pauses() {
    // Given a standby that says that its timeline has ended, and is still on it
    let (source, store) = (Stuck::new(true), Arc::new(MemoryStore::new()) as Arc<dyn Store>);
    // When the archiver has been there for five minutes
    let (state, errors) = archive(&source, &store, Duration::from_secs(300)).await;
    // Then it has come back now and then, and has said why
    let connections = source.connections.load(Ordering::Relaxed);
    assert!((10..100).contains(&connections), "{connections} connections in five minutes");
    assert!(errors.iter().any(|error| error.contains("timeline 1 has ended at 0/301388")), "{errors:?}");
    assert_eq!(state.borrow().durable, SWITCH);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_on_behind_the_point_where_its_timeline_was_left_is_not_stored() {
    // Given a repository that follows timeline 2, and has not finished timeline 1
    let (source, store) = (Stuck::new(false), Arc::new(MemoryStore::new()) as Arc<dyn Store>);
    let writer = Writer::new(store.clone(), layout(), 7);
    let history = format!("1\t{SWITCH}\tno recovery target specified\n");
    writer.store_plain(&Key::History(TimelineId(2)), history.into()).await.unwrap();
    let begun = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(3 * MIB + 1000) };
    writer.store_wal(&Key::Tail(begun), begun, wal(begun.start, begun.end)).await.unwrap();
    // When an old primary that ends exactly there comes back, and writes on
    let (state, errors) = archive(&source, &store, Duration::from_secs(120)).await;
    // Then what belongs to both is stored, and nothing behind it
    assert!(errors.iter().any(|error| error.contains("goes on with timeline 1 behind")), "{errors:?}");
    assert!(state.borrow().flushed <= SWITCH);
    let repository = Repository { store: store.clone(), layout: layout() };
    let coverage = repository.read_coverage(TimelineId(1), Lsn(0)).await.unwrap();
    assert_eq!(coverage.end(), Some(SWITCH), "{:?}", coverage.runs());
    let connections = source.connections.load(Ordering::Relaxed);
    assert!((3..100).contains(&connections), "{connections} connections in two minutes");
}
