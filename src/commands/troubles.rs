//! What of the archiver's state somebody should be told: a stream that is gone for long, a slot in danger.

use crate::archive::{ArchiveState, Phase};
use crate::notify::{Notifier, Trouble};
use crate::postgres::WalStatus;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The server may take away WAL that the slot still needs once so little more is written, in bytes.
const SAFE_WAL_BYTES_MIN: i64 = 1 << 30;

/// Watches for ever; may be dropped at any time.
pub(super) async fn follow(state: watch::Receiver<ArchiveState>, notifier: Notifier, stream_after: Duration) {
    let mut gone_since = None;
    loop {
        let (phase, why, slot) = {
            let state = state.borrow();
            (state.phase, state.last_error.clone(), slot_danger(&state))
        };
        match phase {
            Phase::Connecting => {
                let since = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= stream_after {
                    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                    notifier.raise(Trouble::Stream, format!("no WAL comes from the server{why}"));
                }
            }
            Phase::Streaming | Phase::HotSpare => {
                gone_since = None;
                notifier.clear(Trouble::Stopped);
                notifier.clear(Trouble::Stream);
            }
            Phase::Stopping => {}
        }
        match slot {
            Some(danger) => notifier.raise(Trouble::Slot, danger),
            None if phase == Phase::Streaming => notifier.clear(Trouble::Slot),
            None => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn slot_danger(state: &ArchiveState) -> Option<String> {
    let slot = state.slot.as_ref()?;
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
