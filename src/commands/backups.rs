//! What `seawall run` does about base backups while it streams: it keeps their metrics, and answers a hole in the archive
//! with a new one, because nothing behind the hole can be restored before that.

use super::looks::{self, Looks};
use super::parts;
use crate::archive::ArchiveState;
use crate::backup::{BackupOptions, BackupProgress, RepositoryWaiter, take};
use crate::config::Settings;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::repository::{BackupDocument, BackupId, Key, Repository, Writer};
use crate::runtime::{Backoff, Clock, RetryPolicy};
use crate::store::Store;
use crate::wal::WalRange;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Until the next look after one that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Until the next look while a hole waits for a base backup, which may be one that the WAL says nothing of.
const UNANSWERED_PAUSE: Duration = Duration::from_secs(3600);

/// Between a base backup that failed and the next attempt: each costs the server a checkpoint and a pass over its files.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(10), longest_pause: Duration::from_secs(30 * 60), budget: None };

/// Looks after base backups for as long as `run` does.
pub(super) struct Backups {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Metrics,
    pub(super) state: watch::Receiver<ArchiveState>,
    pub(super) clock: Clock,
}

impl Backups {
    /// Runs for ever; may be dropped at any time, and what an unfinished backup has stored is then never used.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(PAUSES);
        let mut looks = Looks::new(self.state.clone());
        let (mut told, mut newest) = (None, None);
        loop {
            let is_ours = looks::is_ours(&self.state.borrow());
            // A store that fails shows in its own metrics; the numbers here stay as they were.
            if let Ok((unanswered, backup)) = self.look().await {
                if newest != backup {
                    looks.found_new_backup();
                    newest = backup;
                }
                self.metrics.set_backup_needed(unanswered.is_some());
                if unanswered.is_none() {
                    backoff.reset();
                }
                if let Some(gap) = unanswered.filter(|gap| told != Some(*gap)) {
                    tracing::error!(lost = %gap, "nothing behind this gap can be restored until a base backup is taken");
                }
                told = unanswered;
                if unanswered.is_some() {
                    looks.again_after(UNANSWERED_PAUSE);
                }
                if unanswered.is_some() && is_ours && self.settings.run.backup_after_gap {
                    match self.answer().await {
                        Ok(()) => continue,
                        Err(error) => {
                            let pause = backoff.next_pause();
                            let hint = error.hint_text().unwrap_or_default();
                            tracing::error!(
                                %error,
                                hint,
                                pause_seconds = pause.as_secs_f64(),
                                "the base backup after the gap failed; trying again"
                            );
                            tokio::time::sleep(pause).await;
                            continue;
                        }
                    }
                }
            } else {
                looks.again_after(FAILED_PAUSE);
            }
            if !looks.next().await {
                return;
            }
        }
    }

    /// Sets the metrics, and says which hole waits for a base backup, and which base backup is the newest.
    async fn look(&self) -> Result<(Option<WalRange>, Option<BackupId>)> {
        let (repository, _) = parts::repository_in(&self.settings, self.store.clone()).await?;
        let followed = self.state.borrow().timeline;
        let loss = repository.read_loss(followed).await?;
        if let Some(begin) = &loss.newest_backup
            && let Some(backup) = repository.read_document::<BackupDocument>(&Key::BackupEnd(begin.id.clone())).await?
        {
            let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
            self.metrics.set_last_backup(backup.ended_at, backup.plain_bytes, took);
        }
        self.metrics.set_gaps(loss.gaps.len() as u64);
        Ok((loss.unanswered, loss.newest_backup.map(|begin| begin.id)))
    }

    /// Takes a base backup, as `seawall backup` does while `run` has the slot.
    async fn answer(&self) -> Result<()> {
        let (repository, cluster) = parts::repository_in(&self.settings, self.store.clone()).await?;
        let client = parts::connect(&self.settings).await?;
        tracing::info!("taking a base backup, because WAL was lost");
        let document = take_for(repository, cluster.system_identifier, client, &self.clock).await?;
        let seconds = document.ended_at.duration_since(document.started_at).as_secs_f64();
        tracing::info!(backup = %document.id, seconds, "the base backup after the gap is complete");
        Ok(())
    }
}

async fn take_for(
    repository: Repository,
    system_identifier: u64,
    client: crate::postgres::Client,
    clock: &Clock,
) -> Result<BackupDocument> {
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
    let waiter = RepositoryWaiter::new(repository);
    let (progress, _) = watch::channel(BackupProgress::default());
    let options = BackupOptions { label: "seawall, after a gap".to_owned(), ..BackupOptions::default() };
    Box::pin(take(client, &writer, &options, clock, &waiter, progress)).await
}
