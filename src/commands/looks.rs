//! When `seawall run` looks up which base backups and holes there are: other processes take backups, too. A look lists, so
//! there is none without an occasion, and none at all while nothing happens.
//!
//! What the archiver knows by itself is an occasion: a stream that began or ended, a hole that it recorded, and the end of
//! a base backup in the WAL that passes. A backup of a standby leaves nothing in the WAL; it is found once a day.

use crate::archive::{ArchiveState, Phase};
use crate::wal::Lsn;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// After the end of a base backup in the WAL: what makes it one is stored some seconds later, where its upload was quick.
const AFTER_BACKUP_END: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(30 * 60)];

/// Much may happen at once: one look for all of it.
const PAUSE: Duration = Duration::from_secs(1);

/// WAL came, and for so long nobody looked.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What makes a look worth while at once.
type Occasion = (bool, bool, u64, u64);

fn occasion(state: &ArchiveState) -> Occasion {
    (state.phase == Phase::Streaming, state.is_compared, state.counts.connections, state.counts.gaps)
}

/// The moments at which to look.
#[derive(Debug)]
pub(super) struct Looks {
    state: watch::Receiver<ArchiveState>,
    seen: Occasion,
    backups_ended: u64,
    /// A backup has ended that was not found yet.
    due: VecDeque<Instant>,
    last: Instant,
    received_then: Lsn,
}

impl Looks {
    /// The first look is the caller's, now.
    pub(super) fn new(mut state: watch::Receiver<ArchiveState>) -> Looks {
        let (seen, backups_ended, received_then) = {
            let state = state.borrow_and_update();
            (occasion(&state), state.counts.backups_ended, state.received)
        };
        Looks { state, seen, backups_ended, due: VecDeque::new(), last: Instant::now(), received_then }
    }

    /// The last look found a base backup that it had not seen before.
    pub(super) fn found_new_backup(&mut self) {
        self.due.clear();
    }

    /// Waits until the next look is worth while. False if the archiver is gone. May be dropped.
    pub(super) async fn next(&mut self) -> bool {
        loop {
            let (seen, ended) = (self.seen, self.backups_ended);
            let changed = self.state.wait_for(|state| occasion(state) != seen || state.counts.backups_ended != ended);
            let due = self.due.front().copied().unwrap_or(self.last + LONGEST);
            let changed = tokio::select! {
                biased;
                changed = changed => changed.map(|state| Some((occasion(&state), state.counts.backups_ended))),
                () = tokio::time::sleep_until(due) => Ok(None),
            };
            match changed {
                Err(_) => return false,
                Ok(Some((seen, ended))) => {
                    if ended != self.backups_ended {
                        self.backups_ended = ended;
                        self.due = AFTER_BACKUP_END.into_iter().map(|after| Instant::now() + after).collect();
                    }
                    if seen == self.seen {
                        continue;
                    }
                    self.seen = seen;
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(None) => {
                    let is_due = self.due.pop_front().is_some();
                    if !is_due && self.state.borrow().received == self.received_then {
                        self.last = Instant::now();
                        continue;
                    }
                }
            }
            self.last = Instant::now();
            self.received_then = self.state.borrow().received;
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{sleep, timeout};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn streaming() -> (watch::Sender<ArchiveState>, Looks) {
        let (state, watched) = watch::channel(ArchiveState::new());
        state.send_modify(|state| state.phase = Phase::Streaming);
        (state, Looks::new(watched))
    }

    /// How often it looks in a time.
    async fn count(looks: &mut Looks, time: Duration) -> usize {
        let mut count = 0;
        let _ = timeout(time, async {
            while looks.next().await {
                count += 1;
            }
        })
        .await;
        count
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_while_nothing_happens_and_hardly_while_wal_comes() {
        let (state, mut looks) = streaming();
        assert_eq!(count(&mut looks, 10 * DAY).await, 0, "an idle server");
        let busy = crate::runtime::spawn(async move {
            for second in 0.. {
                state.send_modify(|state| state.received = Lsn(second));
                sleep(Duration::from_secs(10)).await;
            }
        });
        assert!(count(&mut looks, 10 * DAY).await <= 10, "once a day, for what the WAL does not tell");
        busy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_backup_is_an_occasion_until_the_backup_is_found() {
        let (state, mut looks) = streaming();
        state.send_modify(|state| state.counts.backups_ended += 1);
        assert_eq!(count(&mut looks, DAY).await, AFTER_BACKUP_END.len(), "not found: somebody else's");
        state.send_modify(|state| state.counts.backups_ended += 1);
        assert!(timeout(DAY, looks.next()).await.unwrap());
        looks.found_new_backup();
        assert_eq!(count(&mut looks, DAY / 2).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_and_a_hole_are_occasions_and_many_at_once_are_one() {
        let (state, mut looks) = streaming();
        for _ in 0..3 {
            state.send_modify(|state| state.phase = Phase::Connecting);
            state.send_modify(|state| state.counts.connections += 1);
            state.send_modify(|state| state.counts.gaps += 1);
            assert!(timeout(2 * PAUSE, looks.next()).await.unwrap());
            assert_eq!(count(&mut looks, DAY / 2).await, 0);
        }
        drop(state);
        assert!(!looks.next().await, "the archiver is gone");
    }
}
