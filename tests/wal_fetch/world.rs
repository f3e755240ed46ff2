//! A repository in memory, and a server in recovery that asks it for WAL.
#![allow(unreachable_pub)]

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use seawall::codec::Compression;
use seawall::error::{Kind, Result};
use seawall::repository::{Cluster, FORMAT_VERSION, Key, Layout, Repository, WalReader, Writer};
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::{Pin, PinnedTimeline, SPOOL_DIRECTORY};
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use seawall::wal::{Lsn, Segment, SegmentSize, TimelineId, WalRange};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub const SYSTEM_IDENTIFIER: u64 = 7_300_000_000_000_000_007;
pub const MIB: u64 = 1 << 20;

pub type Hook = Box<dyn FnOnce(MemoryStore) -> BoxFuture<'static, ()> + Send>;

/// A store that can be taken away, and that can change between a listing and the reading of what was listed.
#[derive(Clone)]
pub struct Unsteady {
    pub inner: MemoryStore,
    pub is_down: Arc<AtomicBool>,
    pub after_listing_tails: Arc<Mutex<Vec<Hook>>>,
}

impl std::fmt::Debug for Unsteady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unsteady")
    }
}

impl Unsteady {
    pub fn up(&self, key: &str) -> Result<(), StoreError> {
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
pub struct World {
    pub store: Unsteady,
    pub writer: Writer,
    pub reader: WalReader,
    pub data: tempfile::TempDir,
    pub pin: Option<Pin>,
}

pub fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

pub fn layout() -> Layout {
    Layout::new("main", size(), Compression::Lz4)
}

pub async fn store_cluster(writer: &Writer) {
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
pub fn content(timeline: u32, start: u64, end: u64) -> Vec<u8> {
    (start..end).map(|at| (at / 7 + u64::from(timeline) * 50) as u8 | 1).collect()
}

impl World {
    pub async fn new() -> World {
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
    pub fn pinned(mut self, path: &[(u32, u64, u64)]) -> World {
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

    pub async fn store_as(&self, key: impl Fn(WalRange) -> Key, timeline: u32, start: u64, end: u64) {
        let range = WalRange { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        self.writer.store_wal(&key(range), range, Bytes::from(content(timeline, start, end))).await.unwrap();
    }

    pub async fn block(&self, timeline: u32, start: u64, end: u64) {
        self.store_as(Key::Block, timeline, start, end).await;
    }

    pub async fn tail(&self, timeline: u32, start: u64, end: u64) {
        self.store_as(Key::Tail, timeline, start, end).await;
    }

    /// `count` whole segments of timeline 1.
    pub async fn segments(&self, first: u64, count: u64) {
        for number in first..first + count {
            self.block(1, number * MIB, (number + 1) * MIB).await;
        }
    }

    pub async fn history(&self, timeline: u32, text: &str) {
        let text = Bytes::from(text.to_owned());
        self.writer.store_plain(&Key::History(TimelineId(timeline)), text).await.unwrap();
    }

    pub fn destination(&self) -> PathBuf {
        self.data.path().join("pg_wal/RECOVERYXLOG")
    }

    pub async fn ask(&self, name: &str) -> Result<Fetched> {
        fetch(&self.reader, name, &self.destination(), self.pin.as_ref(), self.data.path()).await
    }

    pub async fn ask_segment(&self, timeline: u32, number: u64) -> Result<Fetched> {
        self.ask(&segment(timeline, number).name()).await
    }

    /// Asks and gives what is at the destination.
    pub async fn served(&self, timeline: u32, number: u64) -> Vec<u8> {
        let name = segment(timeline, number).name();
        assert_eq!(self.ask(&name).await.unwrap(), Fetched::Written, "{name} was not served");
        self.at_destination()
    }

    pub fn at_destination(&self) -> Vec<u8> {
        let files: Vec<_> =
            std::fs::read_dir(self.data.path().join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["RECOVERYXLOG"], "a fetch leaves its one file in pg_wal and nothing else");
        std::fs::read(self.destination()).unwrap()
    }

    pub fn cut_off(&self) {
        self.store.is_down.store(true, Ordering::SeqCst);
    }

    pub fn spooled(&self) -> Vec<String> {
        let Ok(root) = std::fs::read_dir(self.data.path().join(SPOOL_DIRECTORY)) else { return Vec::new() };
        let directories = root.map(|entry| entry.unwrap().path());
        let files = directories.flat_map(|directory| std::fs::read_dir(directory).unwrap());
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn segment(timeline: u32, number: u64) -> Segment {
    Segment { timeline: TimelineId(timeline), start: Lsn(number * MIB), size: size() }
}

/// The bytes up to `end`, and zeros to the end of the segment.
pub fn padded(timeline: u32, number: u64, end: u64) -> Vec<u8> {
    let mut bytes = content(timeline, number * MIB, end);
    bytes.resize(MIB as usize, 0);
    bytes
}

/// Compares without printing megabytes.
pub fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "the file has another length");
    let difference = found.iter().zip(expected).position(|(one, other)| one != other);
    assert_eq!(difference, None, "the file differs first at this offset");
}

#[track_caller]
pub fn assert_damaged(result: Result<Fetched>) {
    let error = result.expect_err("a hole must be an error");
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
}
