//! Turns at what is heavy and can wait, among the clusters of one process: base backups, verifications, drills and prunes. A hundred
//! clusters with one schedule would take the machine from what must not wait, which is WAL.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whoever has waited for so long goes nevertheless: others that do not come to their end must not keep it off for ever.
const WAIT_MAX: Duration = Duration::from_secs(6 * 3600);

/// So many have a turn at once; the others wait in the order in which they came. Clones are one.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

/// A turn, until it is dropped. Of one that was not waited for to the end, nothing.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Nobody ever waits.
    pub const MOST: usize = Semaphore::MAX_PERMITS;

    /// So many at once.
    pub fn new(at_once: usize) -> Turns {
        Turns(Arc::new(Semaphore::new(at_once)))
    }

    /// Waits for a turn. May be dropped.
    pub(super) async fn take(&self) -> Turn {
        if let Ok(turn) = self.0.clone().try_acquire_owned() {
            return Turn { _permit: Some(turn) };
        }
        tracing::info!("waiting for a turn: other clusters are busy with what is scheduled");
        match tokio::time::timeout(WAIT_MAX, self.0.clone().acquire_owned()).await {
            Ok(turn) => Turn { _permit: turn.ok() },
            Err(_) => {
                tracing::warn!(
                    hours = WAIT_MAX.as_secs() / 3600,
                    "other clusters do not come to their end: waiting no longer"
                );
                Turn { _permit: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spawn;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn so_many_go_at_once_in_their_order_and_nobody_waits_for_ever() {
        // Given two turns, of which one never comes to its end
        let (turns, begun) = (Turns::new(2), Instant::now());
        let hangs = turns.take().await;
        let tasks: Vec<_> = (0..5)
            .map(|_| {
                let turns = turns.clone();
                spawn(async move {
                    let _turn = turns.take().await;
                    let at = begun.elapsed().as_secs();
                    sleep(Duration::from_secs(3600)).await;
                    at
                })
            })
            .collect();
        // Then the others go one after the other
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), number as u64 * 3600);
        }
        // And where both hang, whoever comes goes at last
        let also_hangs = turns.take().await;
        let before = Instant::now();
        assert!(turns.take().await._permit.is_none());
        assert_eq!(before.elapsed(), WAIT_MAX);
        drop((hangs, also_hangs));
    }
}
