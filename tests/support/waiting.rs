//! Waiting for a condition instead of sleeping.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Long enough for the slowest honest step on a loaded machine; a test that needs it all is about to fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `condition` until it gives a value, and gives that.
///
/// # Panics
/// After `deadline`, with `what` was waited for.
pub async fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < end, "waited {} seconds in vain for {what}", deadline.as_secs());
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
