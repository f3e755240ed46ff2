//! What `seawall run` does about base backups while it streams: it keeps their metrics, and answers a hole in the archive
//! with a new one, because nothing behind the hole can be restored before that. A verification follows each that shows up.

use super::looks::Looks;
use super::parts;
use super::taking::Taker;
use super::verifying::{self, Finished};
use crate::archive::{ArchiveState, Phase};
use crate::cli::BackupType;
use crate::error::Result;
use crate::metrics::Job;
use crate::notify::Trouble;
use crate::repository::Loss;
use crate::runtime::{Backoff, RetryPolicy};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the repository is looked at while a hole waits for a base backup, which another process may take, or while
/// nothing can be read.
const UNSETTLED: Duration = Duration::from_secs(3600);

/// Between a base backup that failed and the next attempt: each costs the server a checkpoint and a pass over its files.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(10), longest_pause: Duration::from_secs(30 * 60), budget: None };

/// Looks after base backups for as long as `run` does.
#[derive(Debug)]
pub struct Backups {
    /// What takes them.
    pub taker: Arc<Taker>,
    /// What the archiver shows of itself.
    pub state: watch::Receiver<ArchiveState>,
}

impl Backups {
    /// Runs for ever; may be dropped at any time, and what an unfinished backup has stored is then never used.
    pub async fn run(self) {
        let (newest, seen) = watch::channel(None);
        tokio::join!(self.look_after(newest), verifying::follow(&self.taker, self.state.clone(), seen));
    }

    async fn look_after(&self, finished: watch::Sender<Option<Finished>>) {
        let mut looks = Looks::new(self.state.clone());
        let mut backoff = Backoff::new(PAUSES);
        let (mut told, mut unfinished) = (None, None);
        let mut turn = None;
        loop {
            // A store that fails shows in its own metrics; the numbers here stay as they were.
            let found = self.look().await.ok();
            let is_settled = found.as_ref().is_some_and(|found| found.unanswered.is_none());
            if let Some(found) = found {
                let (unanswered, wants_backup) = (found.unanswered, found.wants_backup);
                let found_newest = found.newest_backup.map(|backup| (backup.id, backup.ended_at));
                if found_newest.is_some() && *finished.borrow() != found_newest {
                    finished.send_replace(found_newest);
                    looks.found_new_backup();
                }
                self.taker.metrics.set_backup_needed(unanswered.is_some());
                if unanswered.is_none() {
                    backoff.reset();
                }
                match unanswered {
                    Some(gap) => self.taker.notifier.raise(Trouble::Gap, format!("WAL was lost: {gap}")),
                    None => self.taker.notifier.clear(Trouble::Gap),
                }
                if let Some(gap) = unanswered.filter(|gap| told != Some(*gap)) {
                    tracing::error!(lost = %gap, "nothing behind this gap can be restored until a base backup is taken");
                }
                told = unanswered;
                if wants_backup && self.is_ours() && self.taker.settings().run.backup_after_gap {
                    // One that is being taken on schedule may be the answer: it is waited for, and looked at.
                    if self.taker.one_at_a_time.try_lock().is_err() {
                        drop(self.taker.one_at_a_time.lock().await);
                        continue;
                    }
                    if turn.is_none() {
                        let begun = Instant::now();
                        turn = Some(self.taker.turns.take_first().await);
                        // Much may have happened until it was this cluster's turn.
                        if begun.elapsed() > Duration::from_secs(1) {
                            continue;
                        }
                    }
                    tracing::info!("taking a base backup, because WAL was lost");
                    let taken = self.taker.take(BackupType::Full, "seawall, after a gap", &mut unfinished).await;
                    turn = None;
                    if let Err(error) = taken {
                        let pause = backoff.next_pause();
                        let hint = error.hint_text().unwrap_or_default();
                        tracing::error!(
                            %error,
                            hint,
                            pause_seconds = pause.as_secs_f64(),
                            "the base backup after the gap failed; trying again"
                        );
                        tokio::time::sleep(pause).await;
                    }
                    continue;
                }
            }
            turn = None;
            let is_worth_while = match is_settled {
                true => looks.next().await,
                false => tokio::time::timeout(UNSETTLED, looks.next()).await.unwrap_or(true),
            };
            if !is_worth_while {
                return;
            }
        }
    }

    /// True if base backups are ours to take: a spare leaves them to the one that streams, and nobody takes one of a server
    /// that may be the wrong one.
    fn is_ours(&self) -> bool {
        let state = self.state.borrow();
        state.phase == Phase::Streaming && state.is_compared
    }

    /// Sets the metrics, and says which base backup is the newest and which hole waits for one.
    async fn look(&self) -> Result<Loss> {
        let (repository, _) = parts::repository_in(&self.taker.settings(), self.taker.store.clone()).await?;
        let followed = self.state.borrow().timeline;
        let loss = repository.read_loss(followed).await?;
        if let Some(backup) = &loss.newest_backup {
            let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
            self.taker.metrics.set_newest_date("backup", backup.ended_at);
            self.taker.metrics.set_last_backup(backup.ended_at, backup.plain_bytes, backup.stored_bytes, took);
            self.taker.metrics.set_last_backup_findings(backup.findings.damaged, backup.findings.rejected_page_count);
        }
        for backup in loss.newest_backup.iter().chain(&loss.newest_full) {
            let job = if backup.reference.is_some() { Job::Incremental } else { Job::Full };
            let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
            self.taker.metrics.job_ended(job, backup.ended_at, took, true);
        }
        self.taker.metrics.set_oldest_restorable(loss.oldest_backup.as_ref().map(|backup| backup.ended_at));
        self.taker.metrics.set_gaps(loss.gaps.len() as u64);
        Ok(loss)
    }
}
