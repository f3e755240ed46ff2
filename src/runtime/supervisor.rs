//! The one owner of tasks, and of CPU work that somebody waits for. What they log is of whom those log who started them.

use std::cell::Cell;
use std::future::Future;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Instrument, Span};

thread_local! {
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// For simulations: whatever runs on this thread from now on repeats. Chance follows from `seed`, and what
/// [`blocking`] and [`Background`](super::Background) are given is done in place, because threads end in an order of
/// their own.
pub fn make_repeatable(seed: u64) {
    fastrand::seed(seed);
    IN_PLACE.set(true);
}

pub(super) fn is_in_place() -> bool {
    IN_PLACE.get()
}

/// Runs `work` on a thread that may block: hashing, compressing, file system calls. Cannot be aborted: keep it short.
///
/// # Errors
/// If the work panicked or the runtime is going down; a panic's text is on standard error.
#[allow(clippy::disallowed_methods)] // the one place that may
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> crate::error::Result<T> {
    if is_in_place() {
        return Ok(work());
    }
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(|error| {
        crate::error::Error::new(crate::error::Kind::Internal, "a worker thread did not finish").because(error)
    })
}

/// Starts a task whose handle the caller keeps and awaits or aborts.
#[allow(clippy::disallowed_methods)] // the one place that may
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task.in_current_span())
}

/// Starts a task for which nobody waits, from wherever something is dropped: where no runtime is there any more, it is dropped with it.
#[allow(clippy::disallowed_methods)] // the one place that may
pub fn spawn_if_running(task: impl Future<Output: Send + 'static> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(task.in_current_span()));
    }
}

/// Tasks that end with their owner: dropping it aborts them.
#[derive(Debug)]
pub struct Tasks<T>(JoinSet<T>);

impl<T: Send + 'static> Default for Tasks<T> {
    fn default() -> Self {
        Tasks(JoinSet::new())
    }
}

impl<T: Send + 'static> Tasks<T> {
    /// Starts one more.
    pub fn start(&mut self, task: impl Future<Output = T> + Send + 'static) {
        self.0.spawn(task.in_current_span());
    }

    /// How many have not been collected yet.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if every task has been collected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ends all of them, and waits until they are gone: what they hold is put away then.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }

    /// The result of the next task that ends, in the order in which they end; `None` when there is none left.
    /// May be dropped at any time without losing a result.
    ///
    /// # Errors
    /// If that task panicked.
    pub async fn next(&mut self) -> Option<crate::error::Result<T>> {
        let ended = self.0.join_next().await?;
        Some(ended.map_err(|error| {
            crate::error::Error::new(crate::error::Kind::Internal, "a task did not finish").because(error)
        }))
    }
}
