//! Base backups that `seawall run` takes by itself, beside its own stream: after a gap, and on schedule.

use super::audit::{Begun, Ended};
use super::outside::Outside;
use super::results::Results;
use super::turns::Turns;
use super::{names, parts, print};
use crate::backup::{
    BackupOptions, BackupProgress, NotIncremental, RepositoryWaiter, Unfinished, take, take_incremental,
};
use crate::cli::BackupType;
use crate::codec::Form;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::metrics::{Job, Metrics};
use crate::notify::Notifier;
use crate::repository::{Action, BackupDocument, BackupId, Cluster, Layout, Repository, WalReader, Writer};
use crate::runtime::Clock;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// Between two looks at a base backup that is being taken, for its metrics.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Takes base backups, one at a time.
#[derive(Debug)]
pub struct Taker {
    /// They change on SIGHUP.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// How things are stored, and what opens them.
    pub form: Form,
    /// The repository's.
    pub store: Arc<dyn Store>,
    /// What else there is.
    pub outside: Arc<dyn Outside>,
    /// What becomes of it, for who watches.
    pub metrics: Metrics,
    /// The same, for who is called.
    pub notifier: Notifier,
    /// What time it is.
    pub clock: Clock,
    /// Among the clusters of this process.
    pub turns: Turns,
    /// Held while one is taken.
    pub one_at_a_time: Mutex<()>,
    /// What is known of what else is done.
    pub results: Results,
}

impl Taker {
    /// The settings that hold now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// The cluster's folder, with what opens what is encrypted, if it was named, what writes there, and whose it is.
    pub(super) async fn repository(&self) -> Result<(Repository, Writer, Cluster)> {
        let settings = self.settings();
        let (repository, cluster) = parts::repository_in(&settings, self.store.clone()).await?;
        let size = repository.layout.segment_size();
        let layout = Layout::new(settings.cluster.clone(), size, self.form.clone());
        let writer = Writer::new(self.store.clone(), layout.clone(), cluster.system_identifier);
        Ok((Repository { store: self.store.clone(), layout }, writer, cluster))
    }

    /// Takes one, as `seawall backup` does while `run` has the slot, and notes what became of it. One that failed before is gone on
    /// with: `unfinished` is its name, then and now.
    pub(super) async fn take(
        &self,
        wanted: BackupType,
        label: &str,
        unfinished: &mut Option<BackupId>,
    ) -> Result<BackupDocument> {
        let _one = self.one_at_a_time.lock().await;
        let (repository, writer, _) = self.repository().await?;
        let resume = match unfinished.take() {
            // Where that cannot be, another one is begun.
            Some(id) => Unfinished::find(&repository, &id, writer.system_identifier(), &self.clock).await.ok(),
            None => None,
        };
        // Where a full one is wanted, an incremental one that failed is none.
        let resume = resume.filter(|unfinished| wanted != BackupType::Full || unfinished.reference().is_none());
        let wanted = match &resume {
            Some(unfinished) if unfinished.reference().is_some() => BackupType::Incremental,
            Some(_) => BackupType::Full,
            None => wanted,
        };
        let job = if wanted == BackupType::Full { Job::Full } else { Job::Incremental };
        let begun = Begun::now("run", action_of(wanted != BackupType::Full), &self.clock);
        let (progress, mut seen) = watch::channel(BackupProgress::default());
        let show = |progress: &BackupProgress| {
            self.metrics.set_backup_progress(progress.received_bytes, progress.total_bytes, progress.stored_bytes);
        };
        let begun_at = Instant::now();
        self.metrics.set_backup_running(true);
        let mut taking = Box::pin(self.receive(&repository, &writer, wanted, label, resume, progress));
        let (mut farthest, mut moved) = (BackupProgress::default(), Instant::now());
        let taken = loop {
            tokio::select! {
                taken = &mut taking => break taken,
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            let progress = seen.borrow_and_update().clone();
            show(&progress);
            let limit = self.settings().schedule.time_limit;
            if progress != farthest {
                (farthest, moved) = (progress, Instant::now());
            } else if moved.elapsed() >= limit {
                break Err(stuck(limit));
            }
        };
        drop(taking);
        self.metrics.set_backup_running(false);
        show(&seen.borrow_and_update());
        let ended = match &taken {
            Ok(document) => said(document),
            Err(error) => Ended::failed(error),
        };
        begun.end(&writer, ended, &self.clock).await;
        if taken.is_err() {
            unfinished.clone_from(&seen.borrow().id);
            self.metrics.job_ended(job, self.clock.now(), begun_at.elapsed(), false);
        }
        let document = taken?;
        // A full one that was taken instead of an incremental one is as good as that.
        self.metrics.job_ended(job, document.ended_at, begun_at.elapsed(), true);
        let seconds = document.ended_at.duration_since(document.started_at).as_secs_f64();
        tracing::info!(backup = %document.id, label, seconds, "the base backup is complete");
        if let Some(found) = document.findings.in_words() {
            tracing::error!(backup = %document.id, found, "the base backup has pages that are wrong");
        }
        names::keep(&self.settings(), &writer, document.end_timeline, &self.clock).await;
        Ok(document)
    }

    async fn receive(
        &self,
        repository: &Repository,
        writer: &Writer,
        wanted: BackupType,
        label: &str,
        resume: Option<Unfinished>,
        progress: watch::Sender<BackupProgress>,
    ) -> Result<BackupDocument> {
        let waiter = RepositoryWaiter::new(repository.clone());
        let options = BackupOptions { resume, label: label.to_owned(), ..BackupOptions::default() };
        let settings = self.settings();
        let connect = || self.outside.connect(&settings);
        if wanted != BackupType::Full {
            let reader = WalReader::new(repository.clone(), writer.system_identifier());
            let taking = take_incremental(connect, &reader, writer, &options, &self.clock, &waiter, progress.clone());
            match (Box::pin(taking).await, wanted) {
                (Ok(document), _) => return Ok(document),
                (Err(NotIncremental::Unavailable(why)), BackupType::Auto) => {
                    tracing::warn!(%why, "taking a full backup instead of an incremental one");
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
        Box::pin(take(connect, writer, &options, &self.clock, &waiter, progress)).await
    }
}

/// Whatever it waits for, others wait for it.
fn stuck(limit: Duration) -> Error {
    Error::new(Kind::Local, format!("the base backup has got no farther for {}", print::duration(limit))).hint(
        "schedule.time_limit says how long is too long. Does the server send, and the store take, anything at all?",
    )
}

pub(super) fn action_of(is_incremental: bool) -> Action {
    if is_incremental { Action::Incremental } else { Action::Full }
}

/// A base backup that exists, in the audit trail.
pub(super) fn said(document: &BackupDocument) -> Ended {
    let (bytes, files) = (print::size(document.stored_bytes), document.files.len());
    let about = match document.findings.in_words() {
        Some(found) => format!("{files} files, stored as {bytes}; it is {found}"),
        None => format!("{files} files, stored as {bytes}"),
    };
    let ended = Ended::done(document.findings.is_empty(), about).of(&document.id);
    Ended { action: Some(action_of(document.reference.is_some())), ..ended }
}
