//! One archiver's way to the world, which can be frozen: the process stands still as after `SIGSTOP` or on a host that hangs,
//! and goes on later with everything that it was about to do.

use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError, Standing, Started,
    TimelineEnd,
};
use seawall::store::{Body, Created, Level, ListPage, Metadata, ObjectHead, ObjectStream, Store, StoreError, Upload};
use seawall::wal::{Lsn, TimelineId};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub fn new() -> Gate {
        Gate(Arc::new(watch::channel(true).0))
    }

    pub fn set_open(&self, open: bool) {
        self.0.send_replace(open);
    }

    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// What `inner` is asked for passes the gate on its way, and the answer on its way back.
#[derive(Clone, Debug)]
pub struct Gated<T> {
    pub inner: T,
    pub gate: Gate,
}

impl<T> Gated<T> {
    async fn through<R>(&self, asked: impl Future<Output = R>) -> R {
        self.gate.pass().await;
        let answer = asked.await;
        self.gate.pass().await;
        answer
    }
}

#[async_trait]
impl Store for Gated<Arc<dyn Store>> {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.through(self.inner.create(key, body, metadata)).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.through(self.inner.get(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.through(self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.through(self.inner.list_page(prefix, token)).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.through(self.inner.list_level(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.through(self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(key, metadata).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[async_trait]
impl Source for Gated<Arc<dyn Source>> {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let inner = self.through(self.inner.connect()).await?;
        Ok(Box::new(Gated { inner, gate: self.gate.clone() }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        self.through(self.inner.observe()).await
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        self.through(self.inner.peek(timeline, lsn)).await
    }
}

#[async_trait]
impl Session for Gated<Box<dyn Session>> {
    fn identity(&self) -> ServerIdentity {
        self.inner.identity()
    }

    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError> {
        self.gate.pass().await;
        self.inner.history_file(timeline).await
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.gate.pass().await;
        self.inner.take_slot().await
    }

    async fn renew_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.gate.pass().await;
        self.inner.renew_slot().await
    }

    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        self.gate.pass().await;
        self.inner.drop_slot().await
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        self.gate.pass().await;
        self.inner.standing().await
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        self.gate.pass().await;
        Ok(match self.inner.start(start, timeline).await? {
            Started::Streaming(inner) => Started::Streaming(Box::new(Gated { inner, gate: self.gate })),
            ended => ended,
        })
    }
}

#[async_trait]
impl Feed for Gated<Box<dyn Feed>> {
    /// The gate comes first: it may be dropped while it waits, and no message is lost.
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        self.gate.pass().await;
        self.inner.next().await
    }

    async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        self.gate.pass().await;
        self.inner.send_status(written, flushed, reply_requested).await
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        self.inner.end().await
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        self.gate.pass().await;
        self.inner.finish_timeline().await
    }
}
