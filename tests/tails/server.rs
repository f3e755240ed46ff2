//! A server that does nothing but write WAL when it is told to: what its archiver does about it is all there is to see.

use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    CommitWaits, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, Synchronous, TimelineEnd,
};
use seawall::error::{Error, Kind};
use seawall::runtime::Clock;
use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub const SYSTEM_IDENTIFIER: u64 = 7_300_000_000_000_000_002;
pub const TIMELINE: TimelineId = TimelineId(1);

/// The most WAL in one message of a walsender (`walsender.c`, `MAX_SEND_SIZE`).
const MESSAGE_BYTES_MAX: u64 = 128 << 10;

/// Clones are one server.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    size: SegmentSize,
    clock: Clock,
    flush: watch::Sender<Lsn>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    slot: Option<Lsn>,
    flushed: Lsn,
    is_synchronous: bool,
    connections: u64,
    cut: u64,
}

/// The bytes of the WAL: half of them do not compress, no two pages are alike, and none is empty.
pub fn wal(start: Lsn, end: Lsn) -> Vec<u8> {
    let word = |index: u64| match index % 1024 < 512 {
        true => index.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) | 1,
        false => index / 1024 + 1,
    };
    let (first, last) = (start.0 / 8, end.0.div_ceil(8));
    let mut bytes = Vec::with_capacity(((last - first) * 8) as usize);
    (first..last).for_each(|index| bytes.extend_from_slice(&word(index).to_le_bytes()));
    let skip = (start.0 - first * 8) as usize;
    bytes.drain(..skip);
    bytes.truncate((end - start) as usize);
    bytes
}

impl Server {
    /// A server whose WAL ends at the beginning of its third segment.
    pub fn new(size: SegmentSize, clock: Clock) -> Server {
        let flush = Lsn(2 * size.bytes());
        let inner = Inner { slot: None, flushed: Lsn::INVALID, is_synchronous: false, connections: 0, cut: 0 };
        Server(Arc::new(Shared { size, clock, flush: watch::Sender::new(flush), inner: Mutex::new(inner) }))
    }

    pub fn flush(&self) -> Lsn {
        *self.0.flush.borrow()
    }

    /// What it was told to be safe.
    pub fn flushed(&self) -> Lsn {
        self.0.inner.lock().unwrap().flushed
    }

    pub fn write(&self, bytes: u64) {
        self.0.flush.send_modify(|flush| *flush = *flush + bytes);
    }

    pub fn set_synchronous(&self, synchronous: bool) {
        self.0.inner.lock().unwrap().is_synchronous = synchronous;
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        let mut inner = self.0.inner.lock().unwrap();
        inner.cut = inner.connections;
        drop(inner);
        self.0.flush.send_modify(|_| {});
    }

    /// Waits until everything it has was acknowledged.
    pub async fn all_safe(&self) {
        self.safe_up_to(self.flush()).await;
    }

    /// Waits until everything before `end` was acknowledged.
    pub async fn safe_up_to(&self, end: Lsn) {
        let deadline = Instant::now() + Duration::from_secs(600);
        while self.flushed() < end {
            assert!(Instant::now() < deadline, "{} of {end} is safe", self.flushed());
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[async_trait]
impl Source for Server {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let mut inner = self.0.inner.lock().unwrap();
        inner.connections += 1;
        Ok(Box::new(Connection { server: self.clone(), number: inner.connections }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        Ok(Box::new(Connection { server: self.clone(), number: u64::MAX }))
    }

    async fn peek(&self, _: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(Some(Bytes::from(wal(lsn, self.flush().min(lsn + 100).max(lsn)))))
    }
}

#[derive(Debug)]
struct Connection {
    server: Server,
    number: u64,
}

#[async_trait]
impl Session for Connection {
    fn identity(&self) -> ServerIdentity {
        ServerIdentity {
            system_identifier: SYSTEM_IDENTIFIER,
            timeline: TIMELINE,
            flush_lsn: self.server.flush(),
            segment_size: self.server.0.size,
            version: 170_000,
        }
    }

    async fn history_file(&mut self, _: TimelineId) -> Result<Bytes, SourceError> {
        Err(SourceError::new(SourceErrorKind::Refused, Error::new(Kind::Postgres, "the first timeline has no history")))
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        let mut inner = self.server.0.inner.lock().unwrap();
        let created = inner.slot.is_none();
        let restart_lsn = Some(*inner.slot.get_or_insert(self.server.flush()));
        Ok(SlotPosition { restart_lsn, created })
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        Ok(Standing { timeline: TIMELINE, flush_lsn: self.server.flush(), is_standby: false })
    }

    async fn start(self: Box<Self>, start: Lsn, _: TimelineId) -> Result<Started, SourceError> {
        let flush = self.server.0.flush.subscribe();
        Ok(Started::Streaming(Box::new(Stream { connection: *self, flush, sent: start, owes_reply: false })))
    }
}

#[async_trait]
impl Observer for Connection {
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError> {
        Ok(self.server.flush())
    }

    async fn commit_waits(&mut self) -> Result<CommitWaits, SourceError> {
        let is_synchronous = self.server.0.inner.lock().unwrap().is_synchronous;
        let synchronous = if is_synchronous { Synchronous::Named } else { Synchronous::No };
        Ok(CommitWaits { synchronous, ..CommitWaits::default() })
    }
}

#[derive(Debug)]
struct Stream {
    connection: Connection,
    flush: watch::Receiver<Lsn>,
    sent: Lsn,
    owes_reply: bool,
}

#[async_trait]
impl Feed for Stream {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        loop {
            let server_end = *self.flush.borrow_and_update();
            let shared = &self.connection.server.0;
            if shared.inner.lock().unwrap().cut >= self.connection.number {
                return Err(SourceError::lost("the connection is cut"));
            }
            let server_micros = shared.clock.now_postgres_micros();
            if std::mem::take(&mut self.owes_reply) {
                return Ok(FeedMessage::Keepalive { server_end, server_micros, reply_requested: false });
            }
            if self.sent < server_end {
                let start = self.sent;
                self.sent = server_end.min(start + MESSAGE_BYTES_MAX);
                let bytes = Bytes::from(wal(start, self.sent));
                return Ok(FeedMessage::Data { start, server_end, server_micros, bytes });
            }
            self.flush.changed().await.expect("the server lives");
        }
    }

    async fn send_status(&mut self, _: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        self.owes_reply |= reply_requested;
        let mut inner = self.connection.server.0.inner.lock().unwrap();
        if flushed.is_valid() {
            inner.flushed = inner.flushed.max(flushed);
            inner.slot = Some(flushed);
        }
        drop(inner);
        if reply_requested {
            self.connection.server.0.flush.send_modify(|_| {});
        }
        Ok(())
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        Ok(())
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        unreachable!("this server is never promoted")
    }
}
