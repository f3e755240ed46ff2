//! The one layer that tries again. Uses `runtime::{Backoff, RetryPolicy}`.

use super::{
    Body, BucketSettings, Created, Level, ListPage, Metadata, NoObserver, ObjectHead, ObjectStream, Store, StoreError,
    StoreErrorKind, StoreObserver, Upload,
};
use crate::runtime::{Backoff, RetryPolicy};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use jiff::SignedDuration;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A store that tries again what may succeed later, until the policy's budget of time is used up; every other error
/// returns at once. A read that breaks off goes on behind the last byte that came.
#[derive(Clone, Debug)]
pub struct RetryingStore {
    inner: Arc<dyn Store>,
    patience: Patience,
}

/// How long to go on, and who is told of it.
#[derive(Clone, Debug)]
struct Patience {
    policy: RetryPolicy,
    observer: Arc<dyn StoreObserver>,
}

impl RetryingStore {
    /// Tries what is asked of `inner` again within `policy`.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> RetryingStore {
        RetryingStore { inner, patience: Patience { policy, observer: Arc::new(NoObserver) } }
    }

    /// Tells `observer` of every attempt that is made again.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn StoreObserver>) -> RetryingStore {
        self.patience.observer = observer;
        self
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for RetryingStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        retry(&self.patience, || self.inner.create(key, body.clone(), metadata.clone())).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        let opened = retry(&self.patience, || self.inner.get(key, range.clone())).await?;
        let bytes = opened.head.info.bytes;
        let rest = match range {
            Some(range) => range.start.min(bytes)..range.end.min(bytes),
            None => 0..bytes,
        };
        let reading = Reading {
            inner: self.inner.clone(),
            key: key.to_string(),
            object_bytes: bytes,
            rest,
            open: Some(opened.bytes),
            patience: self.patience.clone(),
            attempts: None,
        };
        Ok(ObjectStream { head: opened.head, bytes: reading.into_stream().boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        retry(&self.patience, || self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        retry(&self.patience, || self.inner.list_page(prefix, token.clone())).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        retry(&self.patience, || self.inner.list_level(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        retry(&self.patience, || self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        let inner = retry(&self.patience, || self.inner.begin_upload(key, metadata.clone())).await?;
        Ok(Box::new(RetryingUpload { inner, patience: self.patience.clone() }))
    }

    fn lock_period(&self) -> Option<SignedDuration> {
        self.inner.lock_period()
    }

    async fn set_legal_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        retry(&self.patience, || self.inner.set_legal_hold(key, on)).await
    }

    async fn settings(&self, prefix: &str) -> Result<Option<BucketSettings>, StoreError> {
        retry(&self.patience, || self.inner.settings(prefix)).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[derive(Debug)]
struct RetryingUpload {
    inner: Box<dyn Upload>,
    patience: Patience,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for RetryingUpload {
    fn piece_bytes_min(&self) -> usize {
        self.inner.piece_bytes_min()
    }

    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.patience);
        loop {
            match self.inner.put_piece(piece.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    async fn complete(&mut self) -> Result<Created, StoreError> {
        let mut attempts = Attempts::new(&self.patience);
        loop {
            match self.inner.complete().await {
                Ok(created) => return Ok(created),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.patience);
        loop {
            match self.inner.abort().await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }
}

async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
    patience: &Patience,
    mut operation: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut attempts = Attempts::new(patience);
    loop {
        match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => attempts.pause_after(error).await?,
        }
    }
}

/// What was tried so far, and how long to go on.
struct Attempts {
    patience: Patience,
    backoff: Backoff,
    start: Instant,
    /// Distinct reasons in order of their first appearance, each with how often it came.
    failures: Vec<(String, u32)>,
}

impl Attempts {
    fn new(patience: &Patience) -> Attempts {
        let (patience, backoff) = (patience.clone(), Backoff::new(patience.policy));
        Attempts { patience, backoff, start: Instant::now(), failures: Vec::new() }
    }

    /// Waits until the next attempt is due, or says that there is none.
    async fn pause_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !error.kind.is_transient() {
            return Err(error);
        }
        let pause = self.backoff.next_pause();
        let reason = reason_of(&error);
        match self.failures.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.failures.push((reason, 1)),
        }
        let elapsed = self.start.elapsed();
        if self.patience.policy.budget.is_some_and(|budget| elapsed + pause > budget) {
            return Err(self.give_up(error, elapsed));
        }
        self.patience.observer.tries_again(error.kind);
        sleep(pause).await;
        Ok(())
    }

    fn give_up(&mut self, last: StoreError, elapsed: Duration) -> StoreError {
        let failures = std::mem::take(&mut self.failures);
        if let [(_, 1)] = failures[..] {
            return last;
        }
        StoreError { source: Some(Box::new(GaveUp { elapsed, failures })), ..last }
    }
}

/// Why there was no further attempt.
#[derive(Debug)]
struct GaveUp {
    elapsed: Duration,
    failures: Vec<(String, u32)>,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts: u32 = self.failures.iter().map(|(_, count)| count).sum();
        write!(f, "gave up after {attempts} attempts in {:.1}s: ", self.elapsed.as_secs_f64())?;
        for (index, (reason, count)) in self.failures.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{reason}")?;
            if *count > 1 {
                write!(f, " [{count}x]")?;
            }
        }
        Ok(())
    }
}

impl StdError for GaveUp {}

/// The causes of an error on one line, without what was tried on what.
fn reason_of(error: &StoreError) -> String {
    let mut reason = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !reason.ends_with(&text) {
            if !reason.is_empty() {
                reason.push_str(": ");
            }
            reason.push_str(&text);
        }
        cause = error.source();
    }
    if reason.is_empty() { format!("{:?}", error.kind).to_lowercase() } else { reason }
}

/// A read that goes on where it broke off.
struct Reading {
    inner: Arc<dyn Store>,
    key: String,
    /// Of the whole object, as first seen.
    object_bytes: u64,
    /// What has not come yet.
    rest: Range<u64>,
    /// `None` after a break.
    open: Option<BoxStream<'static, Result<Bytes, StoreError>>>,
    patience: Patience,
    /// Since the first break after the last bytes that came: who takes the bytes may be slow, that is no failure.
    attempts: Option<Attempts>,
}

impl Reading {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, StoreError>> {
        stream::unfold(Some(self), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let error = match self.step().await {
                Ok(Some(bytes)) => {
                    self.rest.start += bytes.len() as u64;
                    self.attempts = None;
                    return Ok(Some(bytes));
                }
                Ok(None) if self.rest.is_empty() => return Ok(None),
                Ok(None) => StoreError::new(StoreErrorKind::Transient, "read", &self.key)
                    .because(format!("the body ended {} bytes early", self.rest.end - self.rest.start)),
                // The bytes handed on so far may be the wrong ones: no going on from there.
                Err(error) if error.kind == StoreErrorKind::Corrupt => return Err(error),
                Err(error) => error,
            };
            self.open = None;
            self.attempts.get_or_insert_with(|| Attempts::new(&self.patience)).pause_after(error).await?;
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, StoreError> {
        let open = match &mut self.open {
            Some(open) => open,
            None if self.rest.is_empty() => return Ok(None),
            None => {
                let again = self.inner.get(&self.key, Some(self.rest.clone())).await?;
                if again.head.info.bytes != self.object_bytes {
                    let (before, now) = (self.object_bytes, again.head.info.bytes);
                    return Err(StoreError::new(StoreErrorKind::Corrupt, "read", &self.key)
                        .because(format!("the object had {before} bytes at first and has {now} now")));
                }
                self.open.insert(again.bytes)
            }
        };
        open.next().await.transpose()
    }
}

#[cfg(test)]
mod tests;
