//! What `seawall run` does on schedule: each job as its own command does it, noted in the audit trail, shown in metrics.

use super::audit::{Begun, Ended, actor};
use super::results::{CLOCKS_DIFFER, Done, FIRST_CONNECTION};
use super::taking::Taker;
use super::turns::Turn;
use super::{drill, print, prune};
use crate::archive::{ArchiveState, Phase};
use crate::backup::Unfinished;
use crate::cli::BackupType;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::metrics::Job;
use crate::notify::Trouble;
use crate::repository::{Action, ActionResult, BackupId};
use crate::runtime::{Backoff, RetryPolicy};
use crate::schedule::{Holder, Jobs, LastRuns, Lease, Runner, Schedule};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// Until the cluster's folder is there, which a new archiver makes when it has reached its server.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(60), budget: None };

/// Does what is scheduled, for ever; may be dropped at any time.
pub async fn run(taker: Arc<Taker>, state: watch::Receiver<ArchiveState>) {
    let mut settings = taker.settings.clone();
    if settings.wait_for(|settings| !settings.schedule.jobs.is_empty()).await.is_err() {
        return;
    }
    let mut backoff = Backoff::new(PAUSES);
    let (repository, writer, _) = loop {
        match taker.repository().await {
            Ok(found) => break found,
            Err(_) => tokio::time::sleep(backoff.next_pause()).await,
        }
    };
    let lease = Lease::new(repository, writer, actor("run"), taker.clock.clone());
    let (cluster, clock) = (taker.settings().cluster.clone(), taker.clock.clone());
    let jobs = RunJobs {
        taker,
        started: Instant::now(),
        told: Default::default(),
        state,
        unfinished: Mutex::default(),
        has_heritage: AtomicBool::new(false),
    };
    Runner { cluster, lease, clock, jobs }.run().await;
}

fn tell(settings: &Settings, now: Timestamp) {
    for (job, expression) in &settings.schedule.jobs {
        let next = settings.schedule.next(&settings.cluster, *job, now).map(|next| next.to_string());
        tracing::info!(%job, %expression, next, "on schedule");
    }
}

/// A store that lets a job hang may let its note hang, too.
const NOTE_PATIENCE: Duration = Duration::from_secs(60);

struct RunJobs {
    taker: Arc<Taker>,
    started: Instant,
    /// What was said of the schedule last.
    told: std::sync::Mutex<Option<Schedule>>,
    state: watch::Receiver<ArchiveState>,
    /// A base backup that failed, to be gone on with.
    unfinished: Mutex<Option<BackupId>>,
    /// Somebody died who took a base backup on schedule.
    has_heritage: AtomicBool,
}

impl Jobs for RunJobs {
    fn schedule(&self) -> Schedule {
        let settings = self.taker.settings();
        let is_news = self.told.lock().is_ok_and(|mut told| told.replace(settings.schedule.clone()) != *told);
        if is_news {
            tell(&settings, self.taker.clock.now());
        }
        settings.schedule.clone()
    }

    async fn last_runs(&self) -> Result<LastRuns> {
        let (repository, ..) = self.taker.repository().await?;
        let mut last = LastRuns::new();
        // Whoever took them: the documents are what counts. Damaged ones too: the next would be as damaged.
        // What a clock that was wrong has dated ahead says nothing about when the next is due.
        let latest = self.taker.clock.now().checked_add(CLOCKS_DIFFER).unwrap_or(Timestamp::MAX);
        let mut ids = repository.backup_ids().await?;
        ids.sort_unstable();
        for id in ids.into_iter().rev() {
            let backup = match repository.finished_backup(&id).await {
                Ok(backup) => backup,
                // For `verify` to tell, which must not be kept from it.
                Err(error) if error.kind() == Kind::Damaged => {
                    tracing::warn!(backup = %id, %error, "passed over");
                    None
                }
                Err(error) => return Err(error),
            };
            let Some(backup) = backup else { continue };
            if backup.started_at > latest {
                let (backup, began) = (id, backup.started_at);
                tracing::warn!(%backup, %began, "dated ahead of this machine's clock, so that it does not count for the schedule");
                continue;
            }
            last.entry(Job::Incremental).or_insert(backup.started_at);
            if backup.reference.is_none() {
                last.insert(Job::Full, backup.started_at);
                break;
            }
        }
        for key in self.taker.learn(&repository).await? {
            if let Some(job) = scheduled(key.action).filter(|_| key.result != ActionResult::Failed) {
                last.insert(job, key.started_at);
            }
        }
        Ok(last)
    }

    fn may(&self, job: Job) -> bool {
        let state = self.state.borrow();
        match state.phase {
            Phase::HotSpare | Phase::Stopping => false,
            Phase::Streaming if state.is_compared => true,
            _ => !matches!(job, Job::Full | Job::Incremental) && self.started.elapsed() > FIRST_CONNECTION,
        }
    }

    async fn changed(&self) {
        let look = |state: &ArchiveState| (state.phase, state.is_compared);
        let (mut state, mut settings) = (self.state.clone(), self.taker.settings.clone());
        let seen = look(&state.borrow());
        settings.mark_unchanged();
        let is_over = tokio::select! {
            changed = state.wait_for(|state| look(state) != seen) => changed.is_err(),
            changed = settings.changed() => changed.is_err(),
        };
        if is_over {
            // The archiver is gone, and `run` with it in a moment.
            std::future::pending::<()>().await;
        }
    }

    fn succeeds(&self, dead: &Holder) {
        let (host, does) = (&dead.by.host, &dead.job);
        tracing::info!(host, does, "whoever was at it says nothing any more");
        if [Job::Full, Job::Incremental].iter().any(|job| job.name() == does) {
            self.has_heritage.store(true, Ordering::Relaxed);
        }
    }

    type Turn = Turn;

    async fn turn(&self) -> Turn {
        self.taker.turns.take().await
    }

    async fn run(&self, job: Job) -> Result<()> {
        tracing::info!(%job, "begins, as scheduled");
        match job {
            Job::Full => self.back_up(BackupType::Full).await,
            Job::Incremental => self.back_up(BackupType::Auto).await,
            Job::Verify => self.taker.in_time(job, Action::DeepVerify, self.taker.verify(Action::DeepVerify)).await,
            Job::Drill => self.taker.in_time(job, Action::Drill, self.drill()).await,
            Job::Prune => self.taker.in_time(job, Action::Prune, self.prune()).await,
        }
    }

    fn unknown(&self, error: &Error) {
        let hint = error.hint_text().unwrap_or_default();
        tracing::error!(%error, hint, "what was done cannot be looked up, so nothing is done on schedule");
        let summary = format!("nothing is done on schedule, for what was done cannot be looked up: {error}");
        self.taker.notifier.raise(Trouble::Schedule, summary);
    }

    fn known(&self) {
        self.taker.notifier.clear(Trouble::Schedule);
    }

    fn failed(&self, job: Job, error: &Error, pause: Duration) {
        let hint = error.hint_text().unwrap_or_default();
        tracing::error!(%job, %error, hint, pause_seconds = pause.as_secs(), "what was scheduled failed; trying again");
        self.taker.notifier.raise(Trouble::Job(job), format!("{job} on schedule failed: {error}"));
    }
}

/// What of the audit trail is done on schedule, but for base backups, which speak for themselves.
fn scheduled(action: Action) -> Option<Job> {
    match action {
        Action::DeepVerify => Some(Job::Verify),
        Action::Drill => Some(Job::Drill),
        Action::Prune => Some(Job::Prune),
        _ => None,
    }
}

impl RunJobs {
    async fn back_up(&self, wanted: BackupType) -> Result<()> {
        let mut unfinished = self.unfinished.lock().await;
        if self.has_heritage.load(Ordering::Relaxed) {
            let (repository, ..) = self.taker.repository().await?;
            *unfinished = Unfinished::left_over(&repository, &self.taker.clock).await?.or(unfinished.take());
            self.has_heritage.store(false, Ordering::Relaxed);
        }
        let taken = self.taker.take(wanted, "seawall, on schedule", &mut unfinished).await?;
        // A full one is as good as an incremental one.
        self.taker.notifier.clear(Trouble::Job(Job::Incremental));
        if wanted == BackupType::Full {
            self.taker.notifier.clear(Trouble::Job(Job::Full));
        }
        if self.taker.settings().schedule.verify_after
            && let Err(error) = self.taker.verify_after(&(taken.id, taken.ended_at)).await
        {
            // Not given up: it is looked for whenever the newest base backup is (verifying.rs).
            tracing::error!(%error, "the verification after the base backup failed");
        }
        Ok(())
    }

    async fn prune(&self) -> Result<()> {
        let Taker { store, metrics, clock, .. } = self.taker.as_ref();
        let (started_at, begun_at) = (clock.now(), Instant::now());
        let pruned = Box::pin(prune::prune_once("run", &self.taker.settings(), store.clone(), clock)).await;
        let failure = pruned.as_ref().map_or_else(Some, |summary| summary.error.as_ref());
        let wrong = failure.map(ToString::to_string);
        self.taker.ended(Action::Prune, Done { started_at, ended_at: clock.now(), took: begun_at.elapsed(), wrong });
        let summary = pruned?;
        let (objects, bytes) = (summary.document.deleted_objects, summary.document.deleted_bytes);
        metrics.add_pruned(objects, bytes, summary.document.undeleted_objects);
        tracing::info!(objects, bytes, "pruned");
        summary.error.map_or(Ok(()), Err)
    }

    async fn drill(&self) -> Result<()> {
        let (started_at, begun_at) = (self.taker.clock.now(), Instant::now());
        let drilled = drill::by_itself(&self.taker).await;
        let (ended_at, wrong) = (self.taker.clock.now(), drilled.as_ref().err().map(ToString::to_string));
        self.taker.ended(Action::Drill, Done { started_at, ended_at, took: begun_at.elapsed(), wrong });
        match drilled {
            Err(error) if error.kind() == Kind::Failed => {
                tracing::error!(%error, "the drill did not pass");
                Ok(())
            }
            ended => ended,
        }
    }
}

impl Taker {
    /// What does not end keeps everything else from happening. It was done then, and not well: from its beginning again it would take as
    /// long, so that it waits for its next time.
    ///
    /// # Errors
    /// As `work`.
    pub(super) async fn in_time(&self, job: Job, action: Action, work: impl Future<Output = Result<()>>) -> Result<()> {
        let (started_at, begun_at) = (self.clock.now(), Instant::now());
        let limit = self.settings().schedule.time_limit;
        if let Ok(ended) = tokio::time::timeout(limit, Box::pin(work)).await {
            return ended;
        }
        let what = format!("{action} did not end within {}", print::duration(limit));
        let hint = "It waits for its next time. schedule.time_limit says how long is too long. Does the store answer, does the server of the drill?";
        tracing::error!(%job, hint, "{what}");
        if let Ok(Ok((_, writer, _))) = tokio::time::timeout(NOTE_PATIENCE, self.repository()).await {
            let begun = Begun::at("run", action, started_at);
            begun.end(&writer, Ended::done(false, what.clone()), &self.clock).await;
        }
        let (ended_at, took) = (self.clock.now(), begun_at.elapsed());
        self.ended(action, Done { started_at, ended_at, took, wrong: Some(what) });
        Ok(())
    }
}
