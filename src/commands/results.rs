//! What became of verifications, drills and prunes, for the metrics and notifications of `seawall run`: whoever did them. Other processes
//! and other machines do them too, and a process that begins anew must not forget what the one before has found. The audit trail says it.
//!
//! A look lists, so there is one when this process takes charge of its cluster, one before whatever it does by itself, and else one a
//! day. A hot spare looks at nothing and shows nothing: what it knew would stay as it was, whatever another does about it.

use super::taking::Taker;
use crate::archive::{ArchiveState, Phase};
use crate::error::{Kind, Result};
use crate::metrics::{Job, LastDrill};
use crate::notify::Trouble;
use crate::repository::{Action, ActionResult, AuditEntry, AuditKey, BackupId, DrillDocument, Key, Repository};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks without any occasion: three listings and a few documents.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// After a look that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// So long a new process has to find its server, or that another archiver has the slot, before it does what needs no server.
pub(super) const FIRST_CONNECTION: Duration = Duration::from_secs(5 * 60);

/// So much the clocks of two machines may differ. What is dated farther ahead is dated by a clock that was wrong.
pub(super) const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(1);

/// What this process knows of what was done.
#[derive(Debug, Default)]
pub struct Results {
    known: Mutex<Known>,
    /// Held by whoever verifies because a base backup was taken.
    pub(super) following: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// Another process is in charge.
    is_spare: bool,
    /// When the last of each began, and what was wrong then.
    last: BTreeMap<Action, (Timestamp, Option<String>)>,
    /// What was read of the audit trail.
    read: BTreeSet<AuditKey>,
    /// The base backup after which this process verified, also where that could not be noted.
    followed: Option<BackupId>,
}

/// Something that came to its end, or failed.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) started_at: Timestamp,
    pub(super) ended_at: Timestamp,
    pub(super) took: Duration,
    pub(super) wrong: Option<String>,
}

impl From<AuditEntry> for Done {
    fn from(entry: AuditEntry) -> Done {
        let AuditEntry { started_at, ended_at, result, about, .. } = entry;
        let wrong = (result != ActionResult::Good).then_some(about);
        Done { started_at, ended_at, took: ended_at.duration_since(started_at).unsigned_abs(), wrong }
    }
}

/// The job that this is, of those of which nothing else in the repository tells.
fn job_of(action: Action) -> Option<Job> {
    match action {
        Action::Verify | Action::DeepVerify => Some(Job::Verify),
        Action::Drill => Some(Job::Drill),
        Action::Prune => Some(Job::Prune),
        _ => None,
    }
}

/// Which of these, oldest first, say how things stand: the last of each action, and the last after which all of its job was well.
fn telling(keys: &[AuditKey]) -> BTreeSet<AuditKey> {
    let mut telling = BTreeSet::new();
    for job in Job::ALL {
        let (mut newest, mut last_good) = (BTreeMap::new(), None);
        for key in keys.iter().filter(|key| job_of(key.action) == Some(job)) {
            newest.insert(key.action, *key);
            if newest.values().all(|key| key.result == ActionResult::Good) {
                last_good = Some(*key);
            }
        }
        telling.extend(newest.into_values().chain(last_good));
    }
    telling
}

impl Results {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if this process has verified since it knows of the base backup.
    pub(super) fn has_followed(&self, backup: &BackupId) -> bool {
        self.known().followed.as_ref() == Some(backup)
    }

    /// This process has verified after the base backup.
    pub(super) fn followed(&self, backup: &BackupId) {
        self.known().followed = Some(backup.clone());
    }
}

impl Taker {
    /// Something came to its end: shows it, and tells it. What is older than what is known changes nothing.
    pub(super) fn ended(&self, action: Action, done: Done) {
        if let Some((job, wrong)) = self.show(action, done) {
            self.tell(job, wrong);
        }
    }

    /// Shows it. Returns how things stand now.
    fn show(&self, action: Action, done: Done) -> Option<(Job, Option<String>)> {
        let job = job_of(action)?;
        let wrong = {
            let mut known = self.results.known();
            let is_old = known.last.get(&action).is_some_and(|(began, _)| *began > done.started_at);
            if known.is_spare || is_old {
                return None;
            }
            known.last.insert(action, (done.started_at, done.wrong));
            // What reading everything has found, a look that reads nothing does not take back.
            let of_job = known.last.iter().filter(|(action, _)| job_of(**action) == Some(job));
            of_job.filter_map(|(_, (_, wrong))| wrong.clone()).next()
        };
        self.metrics.job_ended(job, done.ended_at, done.took, wrong.is_none());
        Some((job, wrong))
    }

    fn tell(&self, job: Job, wrong: Option<String>) {
        match wrong {
            Some(wrong) => self.notifier.raise(Trouble::Job(job), format!("{job}: {wrong}")),
            None => self.notifier.clear(Trouble::Job(job)),
        }
    }

    /// Looks up what was done, by whomever, and shows what is news. The keys of what was done this year and in the last one, oldest first,
    /// but for what is dated ahead: that says nothing about what is due, or how things stand.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn learn(&self, repository: &Repository) -> Result<Vec<AuditKey>> {
        let now = self.clock.now();
        let (latest, this) = (now.saturating_add(CLOCKS_DIFFER).unwrap_or(now), now.to_zoned(TimeZone::UTC).year());
        let mut keys = Vec::new();
        for year in [this - 1, this] {
            keys.extend(repository.audit_of_year(year).await?);
        }
        if let Some(newest) = keys.iter().map(|key| key.started_at).max() {
            self.metrics.set_newest_date("audit", newest);
            if newest > latest {
                tracing::warn!(%newest, "something is noted with a date ahead of this machine's clock, so that it does not count");
            }
        }
        keys.retain(|key| key.started_at <= latest);
        let telling = telling(&keys);
        // How things stand is known once all of them are read.
        let mut stands = BTreeMap::new();
        for key in &telling {
            if self.results.known().read.contains(key) {
                continue;
            }
            let AuditKey { started_at, action, result } = *key;
            let done = match repository.read_document::<AuditEntry>(&Key::Audit(*key)).await {
                Ok(Some(entry)) => entry.into(),
                Err(error) if error.kind() != Kind::Damaged => return Err(error),
                // Its name says the most.
                Ok(None) | Err(_) => {
                    let wrong = (result != ActionResult::Good).then(|| "its entry cannot be read".to_owned());
                    Done { started_at, ended_at: started_at, took: Duration::ZERO, wrong }
                }
            };
            stands.extend(self.show(action, done));
        }
        stands.into_iter().for_each(|(job, wrong)| self.tell(job, wrong));
        self.results.known().read = telling;
        Ok(keys)
    }

    async fn look(&self) -> Result<()> {
        let (repository, ..) = self.repository().await?;
        self.learn(&repository).await?;
        if let Some(document) = repository.last_drill().await? {
            self.metrics.set_last_drill(&shown(&document));
        }
        Ok(())
    }

    /// Whether this process is in charge; nothing of what it knew before counts any more.
    fn take_charge(&self, is_ours: bool) {
        let mut known = self.results.known();
        *known = Known { is_spare: !is_ours, followed: known.followed.take(), ..Known::default() };
        if !is_ours {
            self.metrics.forget_jobs();
            Job::ALL.iter().for_each(|job| self.notifier.forget(Trouble::Job(*job)));
        }
    }
}

/// Keeps the metrics for as long as the archiver is there; may be dropped at any time.
pub async fn follow(taker: Arc<Taker>, mut state: watch::Receiver<ArchiveState>) {
    let is_spare = |state: &ArchiveState| state.phase == Phase::HotSpare;
    loop {
        let is_known = |state: &ArchiveState| is_spare(state) || state.phase == Phase::Streaming;
        if let Ok(Err(_)) = tokio::time::timeout(FIRST_CONNECTION, state.wait_for(is_known)).await {
            return;
        }
        if is_spare(&state.borrow_and_update()) {
            taker.take_charge(false);
            if state.wait_for(|state| !is_spare(state)).await.is_err() {
                return;
            }
            taker.take_charge(true);
            continue;
        }
        // A store that fails shows in its own metrics; the numbers here stay as they were.
        let pause = if taker.look().await.is_ok() { LOOK_EVERY } else { AGAIN_AFTER };
        if let Ok(Err(_)) = tokio::time::timeout(pause, state.wait_for(is_spare)).await {
            return;
        }
    }
}

/// What a drill found, for the metrics.
pub(super) fn shown(document: &DrillDocument) -> LastDrill {
    LastDrill {
        ended_at: document.ended_at,
        passed: document.passed,
        recovery_seconds: document.recovery_seconds,
        recovered_lsn: document.recovered_lsn,
        recovered_at: document.recovered_at,
        rto_met: document.rto.map(|rto| rto.met),
        rpo_met: document.rpo.map(|rpo| rpo.met),
    }
}

#[cfg(test)]
mod tests {
    use super::super::outside::Configured;
    use super::super::turns::Turns;
    use super::*;
    use crate::archive::{ServerIdentity, ensure_cluster};
    use crate::cli;
    use crate::codec::Form;
    use crate::config::Settings;
    use crate::metrics::Metrics;
    use crate::notify::Notifier;
    use crate::repository::{Actor, FORMAT_VERSION, Writer};
    use crate::runtime::{Clock, Tasks, spawn};
    use crate::store::{MemoryStore, ObservedStore, Operation, Store, StoreErrorKind, StoreObserver};
    use crate::wal::{Lsn, SegmentSize, TimelineId};
    use ActionResult::{Bad, Failed, Good};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::sleep;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[derive(Debug, Default)]
    struct Asked(AtomicUsize);

    impl StoreObserver for Asked {
        fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct World {
        taker: Arc<Taker>,
        writer: Writer,
        asked: Arc<Asked>,
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    impl World {
        async fn new(now: &str) -> World {
            let (clock, asked) = (Clock::simulated(at(now)), Arc::new(Asked::default()));
            let store: Arc<dyn Store> = Arc::new(ObservedStore::new(Arc::new(MemoryStore::new()), asked.clone()));
            let (timeline, flush_lsn) = (TimelineId(1), Lsn(1 << 24));
            let segment_size = SegmentSize::DEFAULT;
            let identity = ServerIdentity { system_identifier: 7, timeline, flush_lsn, segment_size, version: 170_000 };
            ensure_cluster(store.as_ref(), "main", identity, &clock).await.unwrap();
            let line =
                ["seawall", "run", "--cluster", "main", "--repo", "file:///nonexistent", "--pg", "host=/nonexistent"];
            let cli = cli::parse(line.map(Into::into)).unwrap();
            let settings = watch::channel(Arc::new(Settings::load(&cli, &|_| None).unwrap())).1;
            let taker = Arc::new(Taker {
                settings,
                form: Form::default(),
                store,
                metrics: Metrics::new("main").unwrap(),
                notifier: Notifier::new("main", Vec::new(), clock.clone(), &mut Tasks::default()),
                clock,
                outside: Arc::new(Configured),
                turns: Turns::new(Turns::MOST),
                one_at_a_time: Default::default(),
                results: Results::default(),
            });
            let (_, writer, _) = taker.repository().await.unwrap();
            World { taker, writer, asked }
        }

        /// Another machine did something, in a minute.
        async fn note(&self, started_at: &str, action: Action, result: ActionResult) {
            let started_at = at(started_at);
            let entry = AuditEntry {
                format: FORMAT_VERSION,
                system_identifier: 7,
                action,
                result,
                started_at,
                ended_at: started_at.checked_add(SignedDuration::from_mins(1)).unwrap(),
                by: Actor { user: "postgres".to_owned(), host: "db2".to_owned(), command: "verify".to_owned() },
                backup: None,
                about: "as the test wants it".to_owned(),
            };
            self.writer.append_audit(&entry).await.unwrap();
        }

        /// The result of a job, and when it went well last; `None` where that is not shown.
        fn shown(&self, job: Job) -> (Option<f64>, Option<Timestamp>) {
            let text = self.taker.metrics.render().unwrap();
            let value = |name: &str| {
                let line = format!("{name}{{task=\"{job}\",cluster=\"main\"}} ");
                text.lines().find_map(|it| it.strip_prefix(&line)?.parse::<f64>().ok())
            };
            let success = value("seawall_job_last_success_timestamp_seconds");
            let success = success.map(|seconds| Timestamp::from_second(seconds as i64).unwrap());
            (value("seawall_job_last_result"), success)
        }

        fn asked(&self) -> usize {
            self.asked.0.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_elsewhere_is_shown_and_a_look_does_not_hide_what_reading_has_found() {
        // Given a verification that read everything and found something, a look since then, and a prune that failed elsewhere
        let world = World::new("2026-11-10T12:00:00Z").await;
        world.note("2026-11-01T06:00:00Z", Action::DeepVerify, Good).await;
        world.note("2026-11-08T06:00:00Z", Action::DeepVerify, Bad).await;
        world.note("2026-11-09T06:00:00Z", Action::Verify, Good).await;
        world.note("2026-11-07T06:00:00Z", Action::Prune, Good).await;
        world.note("2026-11-09T07:00:00Z", Action::Prune, Failed).await;
        assert_eq!(world.shown(Job::Verify), (None, None));
        // When a process begins, then it shows all of that
        world.taker.look().await.unwrap();
        assert_eq!(world.shown(Job::Verify), (Some(0.0), Some(at("2026-11-01T06:01:00Z"))));
        assert_eq!(world.shown(Job::Prune), (Some(0.0), Some(at("2026-11-07T06:01:00Z"))));
        assert_eq!(world.shown(Job::Drill), (None, None));
        // and a look of its own that finds nothing takes nothing back
        let (started_at, took) = (world.taker.clock.now(), Duration::from_secs(1));
        world.taker.ended(Action::Verify, Done { started_at, ended_at: started_at, took, wrong: None });
        assert_eq!(world.shown(Job::Verify).0, Some(0.0));
        // When everything was read again, and the prune done, then all is well, whatever is dated ahead
        sleep(DAY).await;
        world.note("2026-11-11T06:00:00Z", Action::DeepVerify, Good).await;
        world.note("2026-11-11T07:00:00Z", Action::Prune, Good).await;
        world.note("2026-12-11T07:00:00Z", Action::Prune, Failed).await;
        world.taker.look().await.unwrap();
        assert_eq!(world.shown(Job::Verify), (Some(1.0), Some(at("2026-11-11T06:01:00Z"))));
        assert_eq!(world.shown(Job::Prune), (Some(1.0), Some(at("2026-11-11T07:01:00Z"))));
        // and that something is, is told
        let date = at("2026-12-11T07:00:00Z").as_second();
        let line = format!("seawall_newest_date_timestamp_seconds{{of=\"audit\",cluster=\"main\"}} {date}");
        let text = world.taker.metrics.render().unwrap();
        assert!(text.lines().any(|it| it == line), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_looked_once_a_day_and_a_spare_neither_looks_nor_shows() {
        // Given an archiver that streams, of a cluster whose last verification found something
        let world = World::new("2026-11-10T12:00:00Z").await;
        world.note("2026-11-08T06:00:00Z", Action::DeepVerify, Bad).await;
        let (state, watched) = watch::channel(ArchiveState::new());
        let following = spawn(follow(world.taker.clone(), watched));
        sleep(FIRST_CONNECTION / 2).await;
        world.asked();
        state.send_modify(|state| state.phase = Phase::Streaming);
        sleep(DAY / 2).await;
        assert_eq!(world.shown(Job::Verify).0, Some(0.0));
        world.asked();
        // Then a day costs three listings and one document, also where the stream comes and goes
        sleep(DAY / 2).await;
        for phase in [Phase::Connecting, Phase::Streaming] {
            state.send_modify(|state| state.phase = phase);
            sleep(DAY / 8).await;
        }
        assert_eq!(world.asked(), 4);
        // When another one takes over, then this one neither asks nor says that something is wrong, whatever it does to its end
        state.send_modify(|state| state.phase = Phase::HotSpare);
        sleep(10 * DAY).await;
        let (started_at, took) = (world.taker.clock.now(), Duration::from_secs(1));
        let wrong = Some("the store went away".to_owned());
        world.taker.ended(Action::Prune, Done { started_at, ended_at: started_at, took, wrong });
        assert_eq!((world.shown(Job::Verify).0, world.shown(Job::Prune).0, world.asked()), (None, None, 0));
        // and in charge again, it looks what the other one has done
        world.note("2026-11-15T06:00:00Z", Action::DeepVerify, Good).await;
        state.send_modify(|state| state.phase = Phase::Streaming);
        sleep(DAY / 2).await;
        assert_eq!(world.shown(Job::Verify), (Some(1.0), Some(at("2026-11-15T06:01:00Z"))));
        following.abort();
    }
}
