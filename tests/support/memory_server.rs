//! A server in memory that does what a walsender does, to the message: what it waits for during a shutdown, and what it
//! says to whom. For tests on a paused clock; timelines, faults and chance are the simulation's.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    CommitWaits, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, TimelineEnd,
};
use seawall::error::{Error, Kind};
use seawall::store::{Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream};
use seawall::store::{Store, StoreError, StoreErrorKind, Upload};
use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// A segment, and so a block, is as small as it can be.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// What arrives in one message at most (`MAX_SEND_SIZE` in `walsender.c`).
const MESSAGE_BYTES: u64 = 128 << 10;

/// A message's way, and back.
const WAY: Duration = Duration::from_millis(1);

/// What the archiver told us.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub at: Instant,
    pub flushed: Lsn,
}

#[derive(Debug)]
struct Inner {
    flush: Lsn,
    stopping: bool,
    refusing: bool,
    /// One request for a reply is to be made.
    asks: bool,
    is_held: bool,
    commit_waits: CommitWaits,
    cut: u32,
    attempts: Vec<Instant>,
    told: Vec<Told>,
    left: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct MemoryServer {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

impl MemoryServer {
    /// With WAL up to `flush`, and a slot that is kept nowhere.
    pub fn new(flush: Lsn) -> MemoryServer {
        let inner = Inner {
            flush,
            stopping: false,
            refusing: false,
            asks: false,
            is_held: false,
            commit_waits: CommitWaits::default(),
            cut: 0,
            attempts: Vec::new(),
            told: Vec::new(),
            left: None,
        };
        MemoryServer { inner: Arc::new(Mutex::new(inner)), changed: Arc::new(watch::Sender::new(0)) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn write(&self, bytes: u64) -> Lsn {
        self.change(|inner| {
            inner.flush = inner.flush + bytes;
            inner.flush
        })
    }

    /// A fast shutdown: the last record is written, and others are turned away, from now on.
    pub fn shut_down(&self) {
        self.change(|inner| (inner.flush, inner.stopping, inner.refusing) = (inner.flush + 120, true, true));
    }

    pub fn start_again(&self) {
        self.change(|inner| (inner.stopping, inner.refusing) = (false, false));
    }

    /// Asks for one reply, as after half a `wal_sender_timeout` of silence.
    pub fn ask(&self) {
        self.change(|inner| inner.asks = true);
    }

    /// Ends the connection without a word.
    pub fn cut(&self) {
        self.change(|inner| inner.cut += 1);
    }

    pub fn set_commit_waits(&self, waits: CommitWaits) {
        self.lock().commit_waits = waits;
    }

    /// When somebody connected for streaming.
    pub fn attempts(&self) -> Vec<Instant> {
        self.lock().attempts.clone()
    }

    pub fn told(&self) -> Vec<Told> {
        self.lock().told.clone()
    }

    /// When the archiver's connection ended last.
    pub fn left(&self) -> Option<Instant> {
        self.lock().left
    }

    pub fn is_held(&self) -> bool {
        self.lock().is_held
    }
}

fn turned_away() -> SourceError {
    SourceError::new(SourceErrorKind::Leaving, Error::new(Kind::Postgres, "the database system is shutting down"))
}

#[async_trait]
impl Source for MemoryServer {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let inner = &mut *self.lock();
        inner.attempts.push(Instant::now());
        if inner.refusing {
            return Err(turned_away());
        }
        let identity = ServerIdentity {
            system_identifier: 1,
            timeline: TimelineId(1),
            flush_lsn: inner.flush,
            segment_size: SegmentSize::new(SEGMENT_BYTES).unwrap(),
            version: 170_000,
        };
        Ok(Box::new(MemorySession { server: self.clone(), identity }))
    }

    async fn peek(&self, _: TimelineId, _: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(Some(Bytes::new()))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        if self.lock().refusing { Err(turned_away()) } else { Ok(Box::new(MemoryObserver(self.clone()))) }
    }
}

#[derive(Debug)]
struct MemoryObserver(MemoryServer);

#[async_trait]
impl Observer for MemoryObserver {
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError> {
        let inner = self.0.lock();
        if inner.refusing { Err(turned_away()) } else { Ok(inner.flush) }
    }

    async fn commit_waits(&mut self) -> Result<CommitWaits, SourceError> {
        let inner = self.0.lock();
        if inner.refusing { Err(turned_away()) } else { Ok(inner.commit_waits) }
    }
}

#[derive(Debug)]
struct MemorySession {
    server: MemoryServer,
    identity: ServerIdentity,
}

#[async_trait]
impl Session for MemorySession {
    fn identity(&self) -> ServerIdentity {
        self.identity
    }

    async fn history_file(&mut self, _: TimelineId) -> Result<Bytes, SourceError> {
        unreachable!("timeline 1 has none")
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        let flush_lsn = self.server.lock().flush;
        Ok(Standing { timeline: TimelineId(1), flush_lsn, is_standby: false })
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        let flushed = self.server.lock().told.iter().map(|told| told.flushed).filter(|lsn| lsn.is_valid()).max();
        Ok(SlotPosition { restart_lsn: flushed, created: flushed.is_none() })
    }

    async fn start(self: Box<Self>, start: Lsn, _: TimelineId) -> Result<Started, SourceError> {
        self.server.lock().is_held = true;
        let cut = self.server.lock().cut;
        let changed = self.server.changed.subscribe();
        Ok(Started::Streaming(Box::new(MemoryFeed {
            server: self.server,
            changed,
            cut,
            sent: start,
            flushed: Lsn::INVALID,
            owes_keepalive: false,
            awaits_reply: false,
        })))
    }
}

#[derive(Debug)]
struct MemoryFeed {
    server: MemoryServer,
    changed: watch::Receiver<u64>,
    cut: u32,
    sent: Lsn,
    /// What it takes for flushed: what is written, as long as nothing is (`WalSndDone`).
    flushed: Lsn,
    owes_keepalive: bool,
    /// `waiting_for_ping_response` in `walsender.c`: it does not ask again before anything has come back.
    awaits_reply: bool,
}

impl Drop for MemoryFeed {
    fn drop(&mut self) {
        let mut inner = self.server.lock();
        (inner.is_held, inner.left) = (false, Some(Instant::now()));
    }
}

impl MemoryFeed {
    fn message(&mut self) -> Result<Option<FeedMessage>, SourceError> {
        let mut inner = self.server.lock();
        if inner.cut != self.cut {
            return Err(SourceError::lost("connection reset by peer"));
        }
        let (server_end, server_micros) = (inner.flush, 0);
        if self.sent < server_end {
            let (start, bytes) = (self.sent, MESSAGE_BYTES.min(server_end - self.sent));
            self.sent = start + bytes;
            let bytes = Bytes::from(vec![7; bytes as usize]);
            return Ok(Some(FeedMessage::Data { start, server_end, server_micros, bytes }));
        }
        if inner.stopping && self.flushed >= server_end {
            return Ok(Some(FeedMessage::ServerShutdown));
        }
        let asks = !self.awaits_reply && (inner.stopping || std::mem::take(&mut inner.asks));
        if asks || std::mem::take(&mut self.owes_keepalive) {
            self.awaits_reply |= asks;
            return Ok(Some(FeedMessage::Keepalive { server_end, server_micros, reply_requested: asks }));
        }
        Ok(None)
    }
}

#[async_trait]
impl Feed for MemoryFeed {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        loop {
            sleep(WAY).await;
            self.changed.mark_unchanged();
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            let _ = self.changed.changed().await;
        }
    }

    async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        if self.server.lock().cut != self.cut {
            return Err(SourceError::lost("broken pipe"));
        }
        self.flushed = if flushed.is_valid() { flushed } else { written };
        self.owes_keepalive |= reply_requested;
        self.awaits_reply = false;
        self.server.change(|inner| inner.told.push(Told { at: Instant::now(), flushed }));
        Ok(())
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        Ok(())
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        unreachable!("there is one timeline")
    }
}

/// What the store does with the next objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    /// Stores after so long.
    Takes(Duration),
    /// Does not answer until it is in another mood.
    Hangs,
    /// The same for WAL alone.
    HangsOverWal,
    /// Says that it cannot.
    Fails,
}

/// A store in memory whose creates do what the test says.
#[derive(Debug)]
pub struct MoodyStore {
    inner: MemoryStore,
    mood: watch::Sender<Mood>,
    /// The names of all objects that were to be created.
    asked: Mutex<Vec<String>>,
}

impl MoodyStore {
    pub fn new() -> MoodyStore {
        MoodyStore {
            inner: MemoryStore::new(),
            mood: watch::Sender::new(Mood::Takes(Duration::ZERO)),
            asked: Mutex::default(),
        }
    }

    pub fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// The names of all objects that were to be created.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Store for MoodyStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.asked.lock().unwrap().push(key.to_owned());
        let is_wal = ["/wal/", "/open/"].iter().any(|folder| key.contains(folder));
        let mut mood = self.mood.subscribe();
        let now =
            *mood.wait_for(|mood| *mood != Mood::Hangs && (*mood != Mood::HangsOverWal || !is_wal)).await.unwrap();
        match now {
            Mood::Takes(time) => sleep(time).await,
            Mood::HangsOverWal => {}
            Mood::Hangs | Mood::Fails => return Err(StoreError::new(StoreErrorKind::Transient, "store", key)),
        }
        self.inner.create(key, body, metadata).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.inner.list_page(prefix, token).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.inner.list_level(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(key, metadata).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
