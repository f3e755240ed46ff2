//! What `seawall run` does about base backups while it streams: it keeps their metrics, and answers a hole in the archive
//! with a new one, because nothing behind the hole can be restored before that.

use super::looks::Looks;
use super::{names, parts};
use crate::archive::{ArchiveState, Phase};
use crate::backup::{BackupOptions, BackupProgress, RepositoryWaiter, Unfinished, take};
use crate::config::Settings;
use crate::error::Result;
use crate::metrics::{Job, Metrics};
use crate::repository::{BackupDocument, BackupId, Loss, Repository, Writer};
use crate::runtime::{Backoff, Clock, RetryPolicy};
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the repository is looked at while a hole waits for a base backup, which another process may take, or while
/// nothing can be read.
const UNSETTLED: Duration = Duration::from_secs(3600);

/// Between a base backup that failed and the next attempt: each costs the server a checkpoint and a pass over its files.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(10), longest_pause: Duration::from_secs(30 * 60), budget: None };

/// Between two looks at a base backup that is being taken, for its metrics.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

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
        let mut looks = Looks::new(self.state.clone());
        let mut backoff = Backoff::new(PAUSES);
        let (mut told, mut newest, mut unfinished) = (None, None, None);
        loop {
            // A store that fails shows in its own metrics; the numbers here stay as they were.
            let found = self.look().await.ok();
            let is_settled = found.as_ref().is_some_and(|found| found.unanswered.is_none());
            if let Some(found) = found {
                let (unanswered, wants_backup) = (found.unanswered, found.wants_backup);
                let found_newest = found.newest_backup.map(|backup| backup.id);
                if found_newest.is_some() && found_newest != newest {
                    newest = found_newest;
                    looks.found_new_backup();
                }
                self.metrics.set_backup_needed(unanswered.is_some());
                if unanswered.is_none() {
                    backoff.reset();
                }
                if let Some(gap) = unanswered.filter(|gap| told != Some(*gap)) {
                    tracing::error!(lost = %gap, "nothing behind this gap can be restored until a base backup is taken");
                }
                told = unanswered;
                if wants_backup && self.is_ours() && self.settings.run.backup_after_gap {
                    let begun = self.clock.now();
                    if let Err(error) = self.answer(&mut unfinished).await {
                        let now = self.clock.now();
                        self.metrics.job_ended(Job::Full, now, now.duration_since(begun).unsigned_abs(), false);
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
        let (repository, _) = parts::repository_in(&self.settings, self.store.clone()).await?;
        let followed = self.state.borrow().timeline;
        let loss = repository.read_loss(followed).await?;
        if let Some(backup) = &loss.newest_backup {
            let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
            self.metrics.set_last_backup(backup.ended_at, backup.plain_bytes, backup.stored_bytes, took);
            self.metrics.set_last_backup_findings(backup.findings.damaged, backup.findings.rejected_page_count);
        }
        for backup in loss.newest_backup.iter().chain(&loss.newest_full) {
            let job = if backup.reference.is_some() { Job::Incremental } else { Job::Full };
            let took = backup.ended_at.duration_since(backup.started_at).unsigned_abs();
            self.metrics.job_ended(job, backup.ended_at, took, true);
        }
        self.metrics.set_oldest_restorable(loss.oldest_backup.as_ref().map(|backup| backup.ended_at));
        self.metrics.set_gaps(loss.gaps.len() as u64);
        Ok(loss)
    }

    /// Takes a base backup, as `seawall backup` does while `run` has the slot. One that failed before is gone on with.
    async fn answer(&self, unfinished: &mut Option<BackupId>) -> Result<()> {
        let (repository, cluster) = parts::repository_in(&self.settings, self.store.clone()).await?;
        tracing::info!("taking a base backup, because WAL was lost");
        let resume = match unfinished.take() {
            // Where that cannot be, another one is begun.
            Some(id) => Unfinished::find(&repository, &id, cluster.system_identifier, &self.clock).await.ok(),
            None => None,
        };
        let (progress, mut seen) = watch::channel(BackupProgress::default());
        let show = |progress: &BackupProgress| {
            self.metrics.set_backup_progress(progress.received_bytes, progress.total_bytes, progress.stored_bytes);
        };
        self.metrics.set_backup_running(true);
        let mut taking =
            Box::pin(take_for(repository, cluster.system_identifier, &self.settings, resume, &self.clock, progress));
        let taken = loop {
            tokio::select! {
                taken = &mut taking => break taken,
                () = tokio::time::sleep(LOOK_PAUSE) => show(&seen.borrow_and_update()),
            }
        };
        self.metrics.set_backup_running(false);
        show(&seen.borrow_and_update());
        if taken.is_err() {
            unfinished.clone_from(&seen.borrow().id);
        }
        let document = taken?;
        let seconds = document.ended_at.duration_since(document.started_at).as_secs_f64();
        tracing::info!(backup = %document.id, seconds, "the base backup after the gap is complete");
        if let Some(found) = document.findings.in_words() {
            tracing::error!(backup = %document.id, found, "the base backup after the gap has pages that are wrong");
        }
        Ok(())
    }
}

async fn take_for(
    repository: Repository,
    system_identifier: u64,
    settings: &Settings,
    resume: Option<Unfinished>,
    clock: &Clock,
    progress: watch::Sender<BackupProgress>,
) -> Result<BackupDocument> {
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
    let waiter = RepositoryWaiter::new(repository);
    let options = BackupOptions { resume, label: "seawall, after a gap".to_owned(), ..BackupOptions::default() };
    let connect = || parts::connect(settings);
    let document = Box::pin(take(connect, &writer, &options, clock, &waiter, progress)).await?;
    names::keep(settings, &writer, document.end_timeline, clock).await;
    Ok(document)
}
