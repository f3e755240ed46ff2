//! Turns at what is heavy and can wait, among the clusters of one process: base backups, verifications, drills and prunes. A hundred
//! clusters with one schedule would take the machine from what must not wait, which is WAL.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// A turn that lasts for longer keeps nobody off any more: what does not come to its end must not be the end of all.
const TURN_MAX: Duration = Duration::from_secs(6 * 3600);

/// So many have a turn at once; the others wait in the order in which they came. Clones are one.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    at_once: usize,
    now: Mutex<Now>,
    changed: Notify,
    /// Whoever has it is the next one. One that goes first waits among those alone.
    line: tokio::sync::Mutex<()>,
    first_line: tokio::sync::Mutex<()>,
}

#[derive(Default, Debug)]
struct Now {
    /// When each began.
    turns: BTreeMap<u64, Instant>,
    next: u64,
    /// So many wait that go first.
    first: usize,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    number: u64,
    turns: Turns,
}

/// Somebody who goes first, as long as it waits.
struct First<'a>(&'a Turns);

impl Turns {
    /// Nobody ever waits.
    pub const MOST: usize = usize::MAX;

    /// So many at once.
    pub fn new(at_once: usize) -> Turns {
        let (line, first_line) = Default::default();
        Turns(Arc::new(Shared { at_once, now: Mutex::default(), changed: Notify::new(), line, first_line }))
    }

    /// Waits for a turn. May be dropped.
    pub(super) async fn take(&self) -> Turn {
        let _next = self.0.line.lock().await;
        self.next_free(false).await
    }

    /// Waits for a turn ahead of all that are in line. May be dropped.
    pub(super) async fn take_first(&self) -> Turn {
        self.now().first += 1;
        let _first = First(self);
        let _next = self.0.first_line.lock().await;
        self.next_free(true).await
    }

    async fn next_free(&self, goes_first: bool) -> Turn {
        let mut is_told = false;
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // From here on nothing is missed.
            changed.as_mut().enable();
            let until = match self.try_take(goes_first) {
                Ok(turn) => return turn,
                Err(until) => until,
            };
            if !std::mem::replace(&mut is_told, true) {
                tracing::info!("waiting for a turn: other clusters are busy with what is scheduled");
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// A turn, or when to look again at the latest.
    fn try_take(&self, goes_first: bool) -> Result<Turn, Instant> {
        let (mut now, at) = (self.now(), Instant::now());
        let busy = now.turns.values().filter(|began| at.duration_since(**began) < TURN_MAX);
        let (count, oldest) = busy.fold((0, at), |(count, oldest), began| (count + 1, oldest.min(*began)));
        let is_kept_off = now.first > 0 && !goes_first;
        if count >= self.0.at_once || is_kept_off {
            return Err(oldest + TURN_MAX);
        }
        if now.turns.len() >= self.0.at_once {
            let hours = TURN_MAX.as_secs() / 3600;
            tracing::warn!(hours, "what another cluster does has lasted for long: waiting for it no longer");
        }
        let number = now.next;
        now.next += 1;
        now.turns.insert(number, at);
        Ok(Turn { number, turns: self.clone() })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.now().turns.remove(&self.number);
        self.turns.0.changed.notify_waiters();
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.0.now().first -= 1;
        self.0.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spawn;
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Somebody whose turn lasts an hour; when it began, in hours.
    fn wants(turns: &Turns, goes_first: bool, begun: Instant) -> JoinHandle<u64> {
        let turns = turns.clone();
        spawn(async move {
            let _turn = if goes_first { turns.take_first().await } else { turns.take().await };
            let at = begun.elapsed().as_secs() / 3600;
            sleep(HOUR).await;
            at
        })
    }

    async fn began(tasks: Vec<JoinHandle<u64>>) -> Vec<u64> {
        let mut began = Vec::new();
        for task in tasks {
            began.push(task.await.unwrap());
        }
        began
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_go_at_once_in_their_order() {
        // Given two turns, of which one never comes to its end
        let (turns, begun) = (Turns::new(2), Instant::now());
        let _hangs = turns.take().await;
        // Then the others go one after the other
        assert_eq!(began((0..5).map(|_| wants(&turns, false, begun)).collect()).await, [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_keeps_nobody_off_for_ever_and_does_not_let_all_go_at_once() {
        // Given that all turns are had by what hangs
        let (turns, begun) = (Turns::new(2), Instant::now());
        let _hang = (turns.take().await, turns.take().await);
        // When several wait, then after six hours they go, and no more at once than ever
        let tasks = (0..6).map(|_| wants(&turns, false, begun)).collect();
        assert_eq!(began(tasks).await, [6, 6, 7, 7, 8, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_answers_a_gap_goes_ahead_of_all_that_wait() {
        let (turns, begun) = (Turns::new(1), Instant::now());
        let busy = wants(&turns, false, begun);
        tokio::task::yield_now().await;
        // Given several in line
        let line: Vec<_> = (0..3).map(|_| wants(&turns, false, begun)).collect();
        sleep(HOUR / 2).await;
        // When some come that go first, of which one thinks better of it
        let first = (0..2).map(|_| wants(&turns, true, begun)).collect();
        let leaves = wants(&turns, true, begun);
        sleep(HOUR / 4).await;
        leaves.abort();
        // Then they go first, and the line after them
        assert_eq!(busy.await.unwrap(), 0);
        assert_eq!(began(first).await, [1, 2]);
        assert_eq!(began(line).await, [3, 4, 5]);
    }
}
