//! Tells an observer how every attempt on a store went: for metrics. Uses nothing of ours but the contract.

use super::{
    Body, BucketSettings, Created, Level, ListPage, Metadata, ObjectHead, ObjectStream, Store, StoreError,
    StoreErrorKind, Upload,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream};
use futures_util::{StreamExt, ready};
use jiff::{SignedDuration, Timestamp};
use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// What was asked of a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// Storing an object in one piece.
    Create,
    /// Reading one, or a part of it.
    Get,
    /// Looking at one.
    Head,
    /// A page or a level of a listing.
    List,
    /// Deleting one.
    Delete,
    /// One step of storing a large object in pieces: begin, a piece, complete or abort.
    Upload,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 6] =
        [Operation::Create, Operation::Get, Operation::Head, Operation::List, Operation::Delete, Operation::Upload];

    /// The name in a metric's label: lower case, stable.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::List => "list",
            Operation::Delete => "delete",
            Operation::Upload => "upload",
        }
    }
}

/// Is told of every attempt that ended. Called on the tasks that do the work: must not wait.
pub trait StoreObserver: Send + Sync + Debug {
    /// `seconds` is the time spent waiting for the store, not for whoever takes the bytes; `bytes` is what was handed
    /// to the store or came from it. An operation whose future was dropped is not told of, except reading, which is
    /// told with the bytes that came.
    fn finished(&self, operation: Operation, seconds: f64, bytes: u64, error: Option<StoreErrorKind>);

    /// An attempt failed like this, and another one will be made.
    fn tries_again(&self, _error: StoreErrorKind) {}

    /// Credentials were given; they are good until then, or for ever as far as they say.
    fn credentials_given(&self, _until: Option<Timestamp>) {}

    /// Credentials were asked for, and not given.
    fn credentials_failed(&self) {}
}

/// Observes nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoObserver;

impl StoreObserver for NoObserver {
    fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {}
}

/// A store whose operations are observed.
#[derive(Clone, Debug)]
pub struct ObservedStore {
    inner: Arc<dyn Store>,
    observer: Arc<dyn StoreObserver>,
}

impl ObservedStore {
    /// Tells `observer` of everything that is asked of `inner`.
    pub fn new(inner: Arc<dyn Store>, observer: Arc<dyn StoreObserver>) -> ObservedStore {
        ObservedStore { inner, observer }
    }
}

async fn observe<T>(
    observer: &Arc<dyn StoreObserver>,
    operation: Operation,
    bytes: u64,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = work.await;
    observer.finished(operation, start.elapsed().as_secs_f64(), bytes, result.as_ref().err().map(|error| error.kind));
    result
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for ObservedStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let bytes = body.bytes();
        observe(&self.observer, Operation::Create, bytes, self.inner.create(key, body, metadata)).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        let start = Instant::now();
        let opened = self.inner.get(key, range).await;
        let mut told =
            Reading { observer: self.observer.clone(), waited: start.elapsed(), bytes: 0, error: None, asked: None };
        match opened {
            Ok(stream) => {
                Ok(ObjectStream { head: stream.head, bytes: ObservedStream { inner: stream.bytes, told }.boxed() })
            }
            Err(error) => {
                told.error = Some(error.kind);
                Err(error)
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        observe(&self.observer, Operation::Head, 0, self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        observe(&self.observer, Operation::List, 0, self.inner.list_page(prefix, token)).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        observe(&self.observer, Operation::List, 0, self.inner.list_level(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        observe(&self.observer, Operation::Delete, 0, self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        let inner = observe(&self.observer, Operation::Upload, 0, self.inner.begin_upload(key, metadata)).await?;
        Ok(Box::new(ObservedUpload { inner, observer: self.observer.clone() }))
    }

    fn lock_period(&self) -> Option<SignedDuration> {
        self.inner.lock_period()
    }

    /// Not told of, as the settings are not: people ask for both, and seldom.
    async fn set_legal_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        self.inner.set_legal_hold(key, on).await
    }

    async fn settings(&self, prefix: &str) -> Result<Option<BucketSettings>, StoreError> {
        self.inner.settings(prefix).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[derive(Debug)]
struct ObservedUpload {
    inner: Box<dyn Upload>,
    observer: Arc<dyn StoreObserver>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for ObservedUpload {
    fn piece_bytes_min(&self) -> usize {
        self.inner.piece_bytes_min()
    }

    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError> {
        let bytes = piece.bytes();
        observe(&self.observer, Operation::Upload, bytes, self.inner.put_piece(piece)).await
    }

    async fn complete(&mut self) -> Result<Created, StoreError> {
        observe(&self.observer, Operation::Upload, 0, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        observe(&self.observer, Operation::Upload, 0, self.inner.abort()).await
    }
}

/// A read under way; tells of it when it is dropped, however it ended.
struct Reading {
    observer: Arc<dyn StoreObserver>,
    waited: Duration,
    /// When the bytes that are waited for were asked for.
    asked: Option<Instant>,
    bytes: u64,
    error: Option<StoreErrorKind>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.observer.finished(Operation::Get, self.waited.as_secs_f64(), self.bytes, self.error);
    }
}

struct ObservedStream {
    inner: BoxStream<'static, Result<Bytes, StoreError>>,
    told: Reading,
}

impl Stream for ObservedStream {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let asked = *self.told.asked.get_or_insert_with(Instant::now);
        let item = ready!(self.inner.poll_next_unpin(context));
        self.told.waited += asked.elapsed();
        self.told.asked = None;
        match &item {
            Some(Ok(bytes)) => self.told.bytes += bytes.len() as u64,
            Some(Err(error)) => self.told.error = Some(error.kind),
            None => {}
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    use std::sync::Mutex;

    #[derive(Default, Debug)]
    struct Log(Mutex<Vec<(Operation, u64, Option<StoreErrorKind>)>>);

    impl StoreObserver for Log {
        fn finished(&self, operation: Operation, _: f64, bytes: u64, error: Option<StoreErrorKind>) {
            self.0.lock().unwrap().push((operation, bytes, error));
        }
    }

    #[tokio::test]
    async fn every_operation_is_told_of_once_with_its_bytes_and_error() {
        let log = Arc::new(Log::default());
        let store = ObservedStore::new(Arc::new(MemoryStore::new()), log.clone());

        store.create("a", Bytes::from_static(b"hello").into(), Metadata::new()).await.unwrap();
        store.get("a", None).await.unwrap().collect().await.unwrap();
        store.get("a", Some(1..3)).await.unwrap().collect().await.unwrap();
        drop(store.get("a", None).await.unwrap());
        store.get("b", None).await.unwrap_err();
        store.head("a").await.unwrap();
        store.list_page("", None).await.unwrap();
        store.list_level("").await.unwrap();
        store.delete("a").await.unwrap();
        let mut upload = store.begin_upload("c", Metadata::new()).await.unwrap();
        upload.put_piece(Bytes::from_static(b"123").into()).await.unwrap();
        upload.complete().await.unwrap();

        let told = std::mem::take(&mut *log.0.lock().unwrap());
        let expected = [
            (Operation::Create, 5, None),
            (Operation::Get, 5, None),
            (Operation::Get, 2, None),
            (Operation::Get, 0, None),
            (Operation::Get, 0, Some(StoreErrorKind::NotFound)),
            (Operation::Head, 0, None),
            (Operation::List, 0, None),
            (Operation::List, 0, None),
            (Operation::Delete, 0, None),
            (Operation::Upload, 0, None),
            (Operation::Upload, 3, None),
            (Operation::Upload, 0, None),
        ];
        assert_eq!(told, expected);
    }
}
