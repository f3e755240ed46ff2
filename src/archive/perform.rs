//! What becomes of a job: its bytes are encoded and stored, or compared with what is stored. Holds the permit for the memory of that.

use super::ahead::Ahead;
use super::backup_end;
use super::budget::{Budget, Permit};
use super::line::Job;
use super::state::StateSender;
use crate::error::{Kind, Result};
use crate::repository::{EncodedWal, Key, Piece, Stamp, Writer, wal_held_bytes_max};
use crate::runtime::{Backoff, RetryPolicy, blocking};
use crate::wal::WalRange;
use bytes::Bytes;

/// A job, and what it takes.
pub(super) struct Task {
    pub(super) writer: Writer,
    pub(super) job: Job,
    /// What its block has become already.
    pub(super) ahead: Option<Ahead>,
    /// For what is missing, or for all.
    pub(super) permit: Permit,
    pub(super) budget: Budget,
    /// Somebody waits.
    pub(super) is_urgent: bool,
    pub(super) state: StateSender,
}

/// What a job became.
pub(super) struct Finished {
    pub(super) key: Key,
    pub(super) range: WalRange,
    pub(super) was_compared: bool,
    pub(super) was_stored: bool,
}

impl Task {
    /// Does the job, for as long as it takes: a store that is down is waited for. Gives up only where waiting cannot help.
    ///
    /// # Errors
    /// A divergence, a damaged repository, a defect.
    pub(super) async fn perform(self) -> Result<Finished> {
        let Task { writer, job, ahead, permit, budget, is_urgent, state } = self;
        let (key, range) = (job.key().clone(), job.range());
        let was_compared = matches!(job, Job::Compare { .. });
        let mut backup_ended = false;
        // The permit is held until that is stored.
        let (wal, _permit) = match job {
            Job::Store { lead, pieces, .. } => {
                if matches!(key, Key::Block(_)) && backup_end::may_be_in(&pieces)? {
                    let (size, pieces) = (writer.layout().segment_size(), pieces.clone());
                    backup_ended = blocking(move || backup_end::is_in(&pieces, range.start, size)).await??;
                }
                match ahead {
                    Some(ahead) => ahead.finish(range, pieces, permit, is_urgent).await?,
                    None => encode(&writer, range, lead, pieces, permit).await?,
                }
            }
            Job::Compare { pieces, ending, .. } => {
                let name = writer.layout().name_in(&key, ending);
                if let Some(stored) = persist(&state, || writer.stamp_of(&name, range)).await? {
                    let ours = blocking(move || Stamp::of_pieces(range, &pieces)).await??;
                    crate::repository::same(&name, &stored, &ours)?;
                    return Ok(Finished { key, range, was_compared, was_stored: false });
                }
                // Deleted since it was listed: what came again is stored again, equal by definition. What others hold may
                // wait for this.
                let permit = budget.take_by_exception(wal_held_bytes_max(range.bytes())).await;
                encode(&writer, range, Bytes::new(), pieces, permit).await?
            }
        };
        // From here on it is held as it is stored, and no longer as it came.
        persist(&state, || writer.store_encoded(&key, &wal)).await?;
        state.send_if_modified(|state| {
            state.counts.backups_ended += u64::from(backup_ended);
            backup_ended
        });
        Ok(Finished { key, range, was_compared, was_stored: true })
    }
}

/// Encodes WAL that nothing was done about ahead.
async fn encode(
    writer: &Writer,
    range: WalRange,
    lead: Bytes,
    pieces: Vec<Piece>,
    mut permit: Permit,
) -> Result<(EncodedWal, Permit)> {
    let wal = writer.encode_wal(range, lead, pieces).await?;
    permit.become_bytes(wal.held_bytes());
    Ok((wal, permit))
}

/// Makes attempts until the store does its part.
async fn persist<T, F: Future<Output = Result<T>>>(state: &StateSender, attempt: impl Fn() -> F) -> Result<T> {
    let mut backoff = Backoff::new(RetryPolicy::RECONNECT);
    let mut first = true;
    loop {
        match attempt().await {
            Err(error) if matches!(error.kind(), Kind::Store) => {
                if first {
                    state.send_modify(|state| state.counts.store_failures += 1);
                }
                first = false;
                let hint = error.hint_text().unwrap_or_default();
                tracing::warn!(%error, hint, "WAL is not stored yet, and not acknowledged; trying again");
                tokio::time::sleep(backoff.next_pause()).await;
            }
            ended => return ended,
        }
    }
}
