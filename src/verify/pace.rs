//! How fast objects are read. Uses tokio's clock, which a test can pause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Lets through so many bytes a second, over all who ask.
#[derive(Debug)]
pub(super) struct Pace {
    /// Without it, nobody waits.
    bytes_per_second: Option<u64>,
    /// When the next may begin: what was let through before takes until then.
    free: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second, free: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be read. An object is waited for before it is asked for, and then read as fast as it comes: a store
    /// gives up on whoever reads slowly.
    pub(super) async fn wait(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let begin = {
            // An instant: whole after each step.
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free).max(Instant::now());
            *free = begin + takes;
            begin
        };
        sleep_until(begin).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test(start_paused = true)]
    async fn many_together_are_no_faster_than_the_rate() {
        let (pace, began) = (Pace::new(Some(1000)), Instant::now());
        join_all((0..20).map(|_| pace.wait(500))).await;
        // The last begins when the nineteen before it have had their time.
        let seconds = began.elapsed().as_secs_f64();
        assert!((9.5..9.6).contains(&seconds), "{seconds} s");
    }
}
