//! What of the archiver's state somebody should be told: a stream that is gone for long, WAL that comes and is not stored, a slot in
//! danger.

use super::print;
use crate::archive::{ArchiveState, Phase};
use crate::notify::{Notifier, Trouble};
use crate::postgres::{SlotHealth, WalStatus};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The server may take away WAL that the slot still needs once so little more is written, in bytes.
const SAFE_WAL_BYTES_MIN: i64 = 1 << 30;

/// What is borne without a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// So long no WAL comes.
    pub(super) stream: Duration,
    /// So much may be lost while it comes.
    pub(super) rpo: Duration,
}

/// Watches for ever; may be dropped at any time.
pub(super) async fn follow(state: watch::Receiver<ArchiveState>, notifier: Notifier, limits: Limits) {
    let mut memory = Memory::default();
    loop {
        memory.look(&state.borrow(), &notifier, limits);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was seen before.
#[derive(Default)]
struct Memory {
    /// No stream since then.
    gone_since: Option<Instant>,
    /// A stream since then, interrupted or not, but for what was interrupted while nothing was amiss: what is missing then is the
    /// interruption's fault, and is to be caught up first.
    stored_since: Option<Instant>,
}

impl Memory {
    fn look(&mut self, state: &ArchiveState, notifier: &Notifier, limits: Limits) {
        let now = Instant::now();
        let is_well_stored = state.rpo.seconds(now) < limits.rpo.as_secs_f64();
        match state.phase {
            Phase::Connecting => {
                let since = *self.gone_since.get_or_insert(now);
                if now.duration_since(since) >= limits.stream {
                    let why = state.last_error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                    notifier.raise(Trouble::Stream, format!("no WAL comes from the server{why}"));
                }
                if is_well_stored {
                    self.stored_since = None;
                }
            }
            Phase::Streaming => {
                self.gone_since = None;
                notifier.clear(Trouble::Stream);
                // Before that it may still be that it ends for the reason for which it ended last.
                if state.is_compared {
                    notifier.clear(Trouble::Stopped);
                }
                let since = *self.stored_since.get_or_insert(now);
                if is_well_stored {
                    notifier.clear(Trouble::Rpo);
                } else if now.duration_since(since) >= limits.rpo {
                    notifier.raise(Trouble::Rpo, not_stored(state, now));
                }
            }
            Phase::HotSpare => {
                (self.gone_since, self.stored_since) = (None, None);
                notifier.clear(Trouble::Stopped);
                notifier.clear(Trouble::Stream);
                notifier.hand_over(Trouble::Rpo);
            }
            Phase::Stopping => {}
        }
        // What is not known of the slot is no good news.
        if let Some(slot) = &state.slot {
            match slot_danger(slot) {
                Some(danger) => notifier.raise(Trouble::Slot, danger),
                None if state.phase == Phase::Streaming => notifier.clear(Trouble::Slot),
                None => {}
            }
        }
    }
}

fn not_stored(state: &ArchiveState, now: Instant) -> String {
    let bytes = print::size(state.rpo.bytes());
    match Duration::try_from_secs_f64(state.rpo.seconds(now)) {
        Ok(lost) => {
            let lost = print::duration(lost);
            format!("what is committed does not become durable: {lost} of it, {bytes} of WAL, would be lost now")
        }
        Err(_) => {
            format!("what is committed does not become durable: nothing is, since the archiver began, {bytes} of WAL")
        }
    }
}

fn slot_danger(slot: &SlotHealth) -> Option<String> {
    match slot.status? {
        WalStatus::Unreserved => {
            Some("the slot is about to lose WAL: the server takes it away at its next checkpoint".to_owned())
        }
        WalStatus::Lost => Some("the slot has lost WAL".to_owned()),
        _ => slot.safe_wal_bytes.filter(|safe| *safe < SAFE_WAL_BYTES_MIN).map(|safe| {
            format!("the slot loses WAL once {safe} more bytes are written: archiving is too slow, or stands")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::{Event, Form};
    use crate::runtime::{Clock, Tasks};
    use crate::wal::Lsn;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    const LIMITS: Limits = Limits { stream: Duration::from_secs(120), rpo: Duration::from_secs(300) };

    /// An archiver, whoever follows it, and what was told of it.
    struct Followed {
        state: watch::Sender<ArchiveState>,
        notifier: Notifier,
        events: mpsc::Receiver<Event>,
        _following: Tasks<()>,
    }

    impl Followed {
        fn new() -> Followed {
            let state = watch::Sender::new(ArchiveState::new());
            let (queue, events) = mpsc::channel(64);
            let notifier = Notifier::to("main", Form::Json, queue, Clock::system());
            let mut following = Tasks::default();
            following.start(follow(state.subscribe(), notifier.clone(), LIMITS));
            Followed { state, notifier, events, _following: following }
        }

        fn set(&self, change: impl FnOnce(&mut ArchiveState)) {
            self.state.send_modify(change);
        }

        /// Seconds pass in which the server writes, and what it wrote is stored, or not.
        async fn live(&mut self, seconds: u64, is_stored: bool) {
            for _ in 0..seconds {
                self.state.send_modify(|state| {
                    let end = state.rpo.server_lsn() + 1000;
                    state.rpo.saw_server(Instant::now(), end);
                    if is_stored {
                        state.rpo.stored(end);
                    }
                });
                sleep(Duration::from_secs(1)).await;
            }
        }

        /// What was told since the last look, and whether it is right again.
        fn told(&mut self) -> Vec<(String, bool)> {
            std::iter::from_fn(|| self.events.try_recv().ok()).map(|it| (it.trouble.name(), it.is_resolved)).collect()
        }
    }

    fn only(name: &str, is_resolved: bool) -> Vec<(String, bool)> {
        vec![(name.to_owned(), is_resolved)]
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_gone_for_long_is_told_and_what_it_left_behind_is_not_told_beside_it() {
        let mut archiver = Followed::new();
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(600, true).await;
        // Given a restart of the server: no news
        archiver.set(|state| state.phase = Phase::Connecting);
        sleep(Duration::from_secs(100)).await;
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(10, true).await;
        assert_eq!(archiver.told(), []);
        // When it stays away
        archiver.set(|state| state.phase = Phase::Connecting);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(archiver.told(), only("stream", false));
        // Then its return is told, and not that the time without it is to be caught up
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(200, false).await;
        archiver.live(10, true).await;
        assert_eq!(archiver.told(), only("stream", true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_is_not_stored_is_told() {
        let mut archiver = Followed::new();
        // Given an archiver that has just begun: nothing is proven yet, and nobody knows since when
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(290, false).await;
        assert_eq!(archiver.told(), []);
        archiver.live(20, false).await;
        assert_eq!(archiver.told(), only("rpo", false));
        archiver.live(10, true).await;
        assert_eq!(archiver.told(), only("rpo", true));
        // When its store hangs, and the connection comes and goes meanwhile
        for round in 0..9 {
            let phase = if round % 2 == 0 { Phase::Streaming } else { Phase::Connecting };
            archiver.set(|state| state.phase = phase);
            archiver.live(80, false).await;
        }
        // Then that is told once
        assert_eq!(archiver.told(), only("rpo", false));
        // And a spare leaves it to the archiver that streams, once
        archiver.set(|state| state.phase = Phase::HotSpare);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(archiver.told(), only("rpo", true));
        // until it streams itself, and it is so again.
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(310, false).await;
        assert_eq!(archiver.told(), only("rpo", false));
        archiver.live(10, true).await;
        assert_eq!(archiver.told(), only("rpo", true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_right_again_once_its_server_is_known_to_be_the_one() {
        let mut archiver = Followed::new();
        archiver.notifier.raise(Trouble::Stopped, "other bytes");
        archiver.set(|state| state.phase = Phase::Streaming);
        archiver.live(10, false).await;
        assert_eq!(archiver.told(), only("stopped", false), "it may end again");
        archiver.set(|state| state.is_compared = true);
        archiver.live(10, true).await;
        assert_eq!(archiver.told(), only("stopped", true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_in_danger_is_told_and_one_of_which_nothing_is_known_is_not_out_of_it() {
        let slot = |status, safe_wal_bytes| {
            let (restart_lsn, invalidation) = (Some(Lsn(1 << 24)), None);
            Some(SlotHealth { status: Some(status), safe_wal_bytes, restart_lsn, invalidation, is_active: true })
        };
        let mut archiver = Followed::new();
        let mut told = Vec::new();
        for (health, expected) in [
            (slot(WalStatus::Reserved, Some(SAFE_WAL_BYTES_MIN)), vec![]),
            (slot(WalStatus::Extended, Some(SAFE_WAL_BYTES_MIN - 1)), only("slot", false)),
            (slot(WalStatus::Unreserved, None), vec![]),
            (None, vec![]),
            (slot(WalStatus::Reserved, None), only("slot", true)),
            (slot(WalStatus::Lost, None), only("slot", false)),
        ] {
            archiver.set(|state| (state.phase, state.slot) = (Phase::Streaming, health.clone()));
            archiver.live(3, true).await;
            told.push((archiver.told(), expected));
        }
        let (told, expected): (Vec<_>, Vec<_>) = told.into_iter().unzip();
        assert_eq!(told, expected);
    }
}
