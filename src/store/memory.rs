//! A store in memory, for tests and simulations. Uses `runtime::Clock`.

use super::{
    Body, Created, Level, ListPage, Metadata, ObjectHead, ObjectInfo, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload, key,
};
use crate::runtime::Clock;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Objects on a page of a listing, as S3 has it.
const PAGE_OBJECTS: usize = 1_000;

type Objects = BTreeMap<String, Object>;

/// Keeps objects as long as it lives. Clones share them, as two clients share a bucket.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Object {
    body: Body,
    head: ObjectHead,
}

impl MemoryStore {
    /// An empty store that dates its objects by the machine's clock.
    pub fn new() -> MemoryStore {
        MemoryStore::with_clock(Clock::system())
    }

    /// An empty store that dates its objects by `clock`.
    pub fn with_clock(clock: Clock) -> MemoryStore {
        MemoryStore { objects: Arc::default(), clock }
    }

    /// Every change under the lock is one insertion or removal: a panic elsewhere leaves nothing half done.
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, action: &'static str, key: &str) -> Result<Object, StoreError> {
        key::check(action, key)?;
        self.objects()
            .get(key)
            .cloned()
            .ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, action, self.name(key)))
    }

    fn insert(&self, key: &str, body: Body, metadata: Metadata) -> Created {
        let info = ObjectInfo { key: key.to_string(), bytes: body.bytes(), modified: self.clock.now() };
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Created::Exists;
        }
        objects.insert(key.to_string(), Object { body, head: ObjectHead { info, metadata } });
        Created::New
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.describe())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        key::check("store", key)?;
        Ok(self.insert(key, body, metadata))
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        let object = self.find("read", key)?;
        let range = range.unwrap_or(0..object.head.info.bytes);
        let pieces: Vec<_> = cut(&object.body, range).map(Ok).collect();
        Ok(ObjectStream { head: object.head, bytes: stream::iter(pieces).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        Ok(self.find("look at", key)?.head)
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        key::check_prefix(prefix)?;
        let after = match &token {
            Some(token) => Bound::Excluded(token.as_str()),
            None => Bound::Included(prefix),
        };
        let objects = self.objects();
        let mut rest = objects
            .range::<str, _>((after, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.head.info.clone());
        let page: Vec<_> = rest.by_ref().take(PAGE_OBJECTS).collect();
        let next = if rest.next().is_some() { page.last().map(|info| info.key.clone()) } else { None };
        Ok(ListPage { objects: page, next })
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        key::check_prefix(prefix)?;
        let mut level = Level::default();
        for (key, object) in self.objects().range(prefix.to_string()..).take_while(|(key, _)| key.starts_with(prefix)) {
            match key[prefix.len()..].find('/') {
                None => level.objects.push(object.head.info.clone()),
                Some(slash) => {
                    let below = &key[..prefix.len() + slash + 1];
                    // Names are in order here, so those with one prefix follow one another.
                    if level.prefixes.last().is_none_or(|last| last != below) {
                        level.prefixes.push(below.to_string());
                    }
                }
            }
        }
        Ok(level)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check("delete", key)?;
        self.objects().remove(key);
        Ok(())
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        key::check("store", key)?;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_string(), metadata, pieces: Vec::new() }))
    }

    fn describe(&self) -> String {
        "memory:".to_string()
    }
}

#[derive(Debug)]
struct MemoryUpload {
    store: MemoryStore,
    key: String,
    metadata: Metadata,
    pieces: Vec<Bytes>,
}

#[async_trait]
impl Upload for MemoryUpload {
    fn piece_bytes_min(&self) -> usize {
        1
    }

    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError> {
        self.pieces.extend(piece.pieces().iter().cloned());
        Ok(())
    }

    async fn complete(&mut self) -> Result<Created, StoreError> {
        let body = Body::from(std::mem::take(&mut self.pieces));
        Ok(self.store.insert(&self.key, body, std::mem::take(&mut self.metadata)))
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        self.pieces.clear();
        Ok(())
    }
}

/// The parts of the pieces that lie in `range`, without copying.
fn cut(body: &Body, range: Range<u64>) -> impl Iterator<Item = Bytes> {
    let mut start = 0;
    body.pieces().iter().filter_map(move |piece| {
        let bytes = piece.len() as u64;
        let from = range.start.saturating_sub(start).min(bytes);
        let to = range.end.saturating_sub(start).min(bytes);
        start += bytes;
        // Both are at most the length of a piece in memory, which is a `usize`.
        (from < to).then(|| piece.slice(from as usize..to as usize))
    })
}
