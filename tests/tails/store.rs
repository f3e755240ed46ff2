//! A store in memory that takes its time, counts what is asked of it, and watches over the tails.

use crate::world::CLUSTER;
use async_trait::async_trait;
use seawall::codec::Compression;
use seawall::repository::{Key, Layout};
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use seawall::wal::{Lsn, SegmentSize, WalRange};
use std::collections::BTreeMap;
use std::ops::{AddAssign, Range, Sub};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Requests by kind, and what went up with them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    pub blocks: u64,
    pub tails: u64,
    pub heartbeats: u64,
    /// `cluster.json`, gaps, histories.
    pub documents: u64,
    pub gets: u64,
    pub heads: u64,
    pub lists: u64,
    pub deletes: u64,
    /// Bytes of WAL that were stored, before compression.
    pub plain_bytes: u64,
    /// Bytes of all that was stored, as it went over the network.
    pub stored_bytes: u64,
}

impl Counts {
    pub fn puts(&self) -> u64 {
        self.blocks + self.tails + self.heartbeats + self.documents
    }

    /// Everything but PUT and DELETE.
    pub fn others(&self) -> u64 {
        self.gets + self.heads + self.lists
    }
}

impl Sub for Counts {
    type Output = Counts;

    fn sub(self, before: Counts) -> Counts {
        Counts {
            blocks: self.blocks - before.blocks,
            tails: self.tails - before.tails,
            heartbeats: self.heartbeats - before.heartbeats,
            documents: self.documents - before.documents,
            gets: self.gets - before.gets,
            heads: self.heads - before.heads,
            lists: self.lists - before.lists,
            deletes: self.deletes - before.deletes,
            plain_bytes: self.plain_bytes - before.plain_bytes,
            stored_bytes: self.stored_bytes - before.stored_bytes,
        }
    }
}

/// How long a request takes.
#[derive(Clone, Copy, Debug)]
pub enum Latency {
    Fixed(Duration),
    /// Anything between, by chance.
    Between(Duration, Duration),
}

impl Latency {
    pub const NEAR: Latency = Latency::Fixed(Duration::from_millis(10));
}

/// Names that differ only in the codec are one object.
fn without_codec(name: &str) -> String {
    name.rsplit_once('.').expect("WAL has a codec").0.to_owned()
}

/// Clones are one store.
#[derive(Clone, Debug)]
pub struct WatchedStore {
    pub memory: MemoryStore,
    layout: Layout,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    latency: Latency,
    /// In one go, a hundred times as long: a request that hangs.
    hangs_one_in: Option<u32>,
    may_delete: bool,
    garbage_age: Duration,
    random: fastrand::Rng,
    counts: Counts,
    /// Tails that nothing larger holds.
    live: Vec<WalRange>,
    most_live: usize,
    /// Tails that something larger holds, and since when.
    covered: BTreeMap<String, Instant>,
    most_garbage: usize,
    /// Tails that were to be read and were not there any more.
    gone: u64,
    blocks: BTreeMap<Lsn, WalRange>,
    /// When a WAL object was handed over.
    handed_over: Vec<(Instant, WalRange)>,
    is_recording: bool,
    violations: Vec<String>,
}

impl WatchedStore {
    pub fn new(memory: MemoryStore, size: SegmentSize, latency: Latency, garbage_age: Duration) -> WatchedStore {
        let inner = Inner {
            latency,
            hangs_one_in: None,
            may_delete: true,
            garbage_age,
            random: fastrand::Rng::with_seed(7),
            counts: Counts::default(),
            live: Vec::new(),
            most_live: 0,
            covered: BTreeMap::new(),
            most_garbage: 0,
            gone: 0,
            blocks: BTreeMap::new(),
            handed_over: Vec::new(),
            is_recording: false,
            violations: Vec::new(),
        };
        let layout = Layout::new(CLUSTER, size, Compression::Lz4);
        WatchedStore { memory, layout, inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub fn set_latency(&self, latency: Latency) {
        self.lock().latency = latency;
    }

    pub fn hang_one_in(&self, requests: u32) {
        self.lock().hangs_one_in = Some(requests);
    }

    pub fn deny_deletes(&self) {
        self.lock().may_delete = false;
    }

    pub fn allow_deletes(&self) {
        self.lock().may_delete = true;
    }

    /// The most tails that were live in one block at a time, since this was asked last.
    pub fn take_most_live(&self) -> usize {
        std::mem::take(&mut self.lock().most_live)
    }

    pub fn live(&self) -> usize {
        self.lock().live.len()
    }

    /// Tails that something larger holds and that are still there.
    pub fn garbage(&self) -> usize {
        self.lock().covered.len()
    }

    /// The most of them at a time.
    pub fn most_garbage(&self) -> usize {
        self.lock().most_garbage
    }

    /// How often a tail was to be read that was not there any more.
    pub fn gone(&self) -> u64 {
        self.lock().gone
    }

    /// Garbage that could have been deleted so long ago.
    pub fn overdue(&self, by: Duration) -> Vec<String> {
        let inner = self.lock();
        let limit = inner.garbage_age + by;
        inner.covered.iter().filter(|(_, since)| since.elapsed() > limit).map(|(name, _)| name.clone()).collect()
    }

    /// What was handed over from now on is remembered.
    pub fn record(&self) {
        self.lock().is_recording = true;
    }

    pub fn handed_over(&self) -> Vec<(Instant, WalRange)> {
        self.lock().handed_over.clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    async fn take_time(&self) {
        let pause = {
            let mut inner = self.lock();
            let pause = match inner.latency {
                Latency::Fixed(pause) => pause,
                Latency::Between(from, to) => from + (to - from).mul_f64(inner.random.f64()),
            };
            let hangs = inner.hangs_one_in.is_some_and(|requests| inner.random.u32(0..requests) == 0);
            if hangs { 100 * pause } else { pause }
        };
        sleep(pause).await;
    }
}

impl Inner {
    /// An object appeared. Readers prefer the block to a tail of the same bytes.
    fn stored(&mut self, layout: &Layout, range: WalRange, is_block: bool) {
        let (live, covered) = (&mut self.live, &mut self.covered);
        live.retain(|tail| {
            let is_replaced = range.contains(*tail) && (is_block || range != *tail);
            if is_replaced {
                covered.insert(without_codec(&layout.name(&Key::Tail(*tail))), Instant::now());
            }
            !is_replaced
        });
        let block = layout.segment_size().block_start(range.start);
        if is_block {
            self.blocks.insert(block, range);
        } else if self.live.iter().chain(self.blocks.get(&block)).any(|other| other.contains(range)) {
            self.covered.insert(without_codec(&layout.name(&Key::Tail(range))), Instant::now());
        } else {
            self.live.push(range);
        }
        let size = layout.segment_size();
        let in_block = self.live.iter().filter(|tail| size.block_start(tail.start) == block).count();
        self.most_live = self.most_live.max(in_block);
        self.most_garbage = self.most_garbage.max(self.covered.len());
    }

    fn deleted(&mut self, key: &str) {
        match self.covered.remove(&without_codec(key)) {
            Some(since) if since.elapsed() < self.garbage_age => {
                self.violations.push(format!("{key} was deleted {:?} after it was replaced", since.elapsed()));
            }
            Some(_) => {}
            None => self.violations.push(format!("{key} was deleted, which nothing has replaced")),
        }
    }
}

#[async_trait]
impl Store for WatchedStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let what = self.layout.parse(key).expect("a name of ours");
        {
            let mut inner = self.lock();
            let counts = &mut inner.counts;
            let kind = match &what {
                Key::Block(_) => &mut counts.blocks,
                Key::Tail(_) => &mut counts.tails,
                Key::Heartbeat { .. } => &mut counts.heartbeats,
                _ => &mut counts.documents,
            };
            kind.add_assign(1);
            counts.stored_bytes += body.bytes();
            if let Key::Block(range) | Key::Tail(range) = what {
                counts.plain_bytes += range.bytes();
                if inner.is_recording {
                    inner.handed_over.push((Instant::now(), range));
                }
            }
        }
        self.take_time().await;
        let created = self.memory.create(key, body, metadata).await?;
        if let (Created::New, Key::Block(range) | Key::Tail(range)) = (created, &what) {
            self.lock().stored(&self.layout, *range, matches!(what, Key::Block(_)));
        }
        Ok(created)
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.lock().counts.gets += 1;
        self.take_time().await;
        let read = self.memory.get(key, range).await;
        let is_tail = matches!(self.layout.parse(key), Ok(Key::Tail(_)));
        if read.as_ref().is_err_and(|error| is_tail && error.kind == StoreErrorKind::NotFound) {
            self.lock().gone += 1;
        }
        read
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.lock().counts.heads += 1;
        self.take_time().await;
        self.memory.head(key).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.lock().counts.lists += 1;
        self.take_time().await;
        self.memory.list_page(prefix, token).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.lock().counts.lists += 1;
        self.take_time().await;
        self.memory.list_level(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.lock().counts.deletes += 1;
        self.take_time().await;
        if !self.lock().may_delete {
            return Err(StoreError::new(StoreErrorKind::Denied, "delete", key).because("AccessDenied"));
        }
        if !key.starts_with(&format!("{CLUSTER}/open/")) {
            self.lock().violations.push(format!("{key} was deleted, which is not below open/"));
        }
        self.lock().deleted(key);
        self.memory.delete(key).await
    }

    async fn begin_upload(&self, key: &str, _: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        Err(StoreError::new(StoreErrorKind::Unsupported, "store", key).because("an archiver stores in one request"))
    }

    fn describe(&self) -> String {
        "watched:".to_owned()
    }
}
