//! Does what is due, one job at a time, for as long as `run` does. What failed is tried again, later and later; what could not be
//! done in its time is caught up once. Uses the calendar and the lease; the jobs are the caller's.

use super::{Held, Holder, LastRuns, Lease, Schedule};
use crate::error::{Error, Result};
use crate::metrics::Job;
use crate::runtime::{Backoff, Clock, RetryPolicy};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often the clock is looked at: it may jump, so nobody sleeps until tomorrow. Costs no request.
const TICK: Duration = Duration::from_secs(30);

/// Between a job that failed and the next attempt.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(60), longest_pause: Duration::from_secs(3600), budget: None };

/// What can be done, and what was.
pub trait Jobs {
    /// What is to happen when. It may change: the configuration is read again.
    fn schedule(&self) -> Schedule;

    /// When each job last began that came to its end, whoever did it, as the repository knows.
    fn last_runs(&self) -> impl Future<Output = Result<LastRuns>>;

    /// True if this process may do it now: not a hot spare, and a backup only of a server that it streams from.
    fn may(&self, job: Job) -> bool;

    /// Waits until `may` may say something else.
    fn changed(&self) -> impl Future<Output = ()>;

    /// Whoever was at a job before has died with it.
    fn succeeds(&self, _dead: &Holder) {}

    /// The right to do something that is heavy, until it is dropped.
    type Turn;

    /// Waits for a turn, which may take hours: nothing is held meanwhile.
    fn turn(&self) -> impl Future<Output = Self::Turn>;

    /// Does it, and notes what became of it. That something was found which is wrong is no error: it was done.
    fn run(&self, job: Job) -> impl Future<Output = Result<()>>;

    /// What was done could not be looked up. Said once, until something else is wrong with it.
    fn unknown(&self, error: &Error);

    /// It was looked up.
    fn known(&self) {}

    /// It failed, and is tried again after the pause.
    fn failed(&self, job: Job, error: &Error, pause: Duration);
}

/// Does what is scheduled.
#[derive(Debug)]
pub struct Runner<J> {
    /// Whose.
    pub cluster: String,
    /// Its lease.
    pub lease: Lease,
    /// What time it is.
    pub clock: Clock,
    /// What can be done.
    pub jobs: J,
}

/// What failed, and when it may be tried again.
struct Pause {
    backoff: Backoff,
    until: Instant,
}

/// What a process remembers.
struct Memory {
    started: Timestamp,
    /// What the repository knew when it was asked last.
    known: Option<LastRuns>,
    /// What this process did: it counts also where it could not be noted.
    done: LastRuns,
    pauses: BTreeMap<Job, Pause>,
    /// Why what was done could not be looked up, if it could not.
    trouble: Option<String>,
}

impl<J: Jobs> Runner<J> {
    /// Runs for ever; may be dropped at any time.
    pub async fn run(mut self) {
        let (started, done, pauses) = (self.clock.now(), LastRuns::new(), BTreeMap::new());
        let mut memory = Memory { started, known: None, done, pauses, trouble: None };
        loop {
            // Who may do nothing looks nothing up.
            let is_in_charge = Job::ALL.into_iter().any(|job| self.jobs.may(job));
            if is_in_charge
                && !self.jobs.schedule().jobs.is_empty()
                && self.next(&memory) != Some(Next::Nothing)
                && self.turn(&mut memory).await
            {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.jobs.changed() => {}
            }
        }
    }

    /// Looks up what was done, and does what is due first, if it can be done now. False if there was nothing to do.
    async fn turn(&mut self, memory: &mut Memory) -> bool {
        self.look_up(memory).await;
        let Some(Next::Do(_)) = self.next(memory) else { return false };
        // Before the lease, which would keep another process from it for as long.
        let _turn = self.jobs.turn().await;
        // That may have taken hours. What was done meanwhile is looked up once the lease is ours.
        let Some(Next::Do(job)) = self.next(memory) else { return false };
        let began = self.clock.now();
        let Runner { cluster, lease, clock, jobs } = self;
        let (job, ended) = match lease.take(job.name()).await {
            Ok(Held::ByUs(tenure)) => {
                if let Some(dead) = tenure.after() {
                    jobs.succeeds(dead);
                }
                let work = async {
                    // Whoever had it before may have done it just now.
                    let known = jobs.last_runs().await?;
                    match next(jobs, cluster, clock, memory, &known) {
                        Next::Do(job) => Ok(Some((job, Box::pin(jobs.run(job)).await))),
                        Next::Nothing => Ok(None),
                    }
                };
                match Box::pin(tenure.hold(work)).await {
                    // It may be another than the one that the lease was taken for.
                    Ok(Some(done)) => done,
                    Ok(None) => {
                        memory.known = None;
                        return false;
                    }
                    Err(error) => (job, Err(error)),
                }
            }
            Ok(Held::ByOther(holder)) => {
                let (host, does) = holder.map(|holder| (holder.by.host, holder.job)).unwrap_or_default();
                tracing::debug!(%job, host, does, "somebody else is at it");
                return false;
            }
            Err(error) => (job, Err(error)),
        };
        match ended {
            Ok(()) => {
                memory.pauses.remove(&job);
                memory.done.insert(job, began);
            }
            Err(error) => {
                let backoff = memory.pauses.remove(&job).map_or_else(|| Backoff::new(PAUSES), |pause| pause.backoff);
                let mut pause = Pause { backoff, until: Instant::now() };
                let length = pause.backoff.next_pause();
                pause.until += length;
                self.jobs.failed(job, &error, length);
                memory.pauses.insert(job, pause);
            }
        }
        memory.known = None;
        true
    }

    /// What to do now; `None`: what was done must be looked up first. What was known a while ago is enough to see that nothing
    /// is due.
    fn next(&self, memory: &Memory) -> Option<Next> {
        Some(next(&self.jobs, &self.cluster, &self.clock, memory, memory.known.as_ref()?))
    }

    async fn look_up(&self, memory: &mut Memory) {
        match self.jobs.last_runs().await {
            Ok(known) => {
                (memory.known, memory.trouble) = (Some(known), None);
                self.jobs.known();
            }
            Err(error) => {
                let trouble = error.to_string();
                if memory.trouble.as_ref() != Some(&trouble) {
                    self.jobs.unknown(&error);
                }
                (memory.known, memory.trouble) = (None, Some(trouble));
            }
        }
    }
}

fn next<J: Jobs>(jobs: &J, cluster: &str, clock: &Clock, memory: &Memory, known: &LastRuns) -> Next {
    let now = clock.now();
    // What this process did while its clock was wrong is as if it had not been.
    let done = memory.done.iter().filter(|(_, began)| **began <= now).map(|(job, began)| (*job, *began)).collect();
    let due = jobs.schedule().due(cluster, &together(known, &done), memory.started.min(now), now);
    let is_paused = |job: &Job| memory.pauses.get(job).is_some_and(|pause| pause.until > Instant::now());
    due.into_iter().find(|job| !is_paused(job) && jobs.may(*job)).map_or(Next::Nothing, Next::Do)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Do(Job),
    Nothing,
}

/// The later of both, for each job. A full backup is as good as an incremental one.
fn together(known: &LastRuns, done: &LastRuns) -> LastRuns {
    let mut last = known.clone();
    for (job, began) in done {
        let entry = last.entry(*job).or_insert(*began);
        *entry = (*entry).max(*began);
    }
    if let Some(full) = last.get(&Job::Full).copied() {
        let incremental = last.entry(Job::Incremental).or_insert(full);
        *incremental = (*incremental).max(full);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::super::Expression;
    use super::*;
    use crate::codec::Compression;
    use crate::error::Kind;
    use crate::repository::{Actor, Layout, Repository, Writer};
    use crate::store::{MemoryStore, Store};
    use crate::wal::SegmentSize;
    use jiff::tz::TimeZone;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use tokio::sync::watch;
    use tokio::time::sleep;

    /// What a repository knows of jobs, for any number of archivers.
    #[derive(Default)]
    struct Noted {
        done: Mutex<Vec<(Job, Timestamp, &'static str)>>,
        failures: Mutex<u32>,
        attempts: Mutex<u32>,
        lookups: Mutex<u32>,
        at_work: AtomicBool,
    }

    struct Fake {
        schedule: Schedule,
        noted: Arc<Noted>,
        name: &'static str,
        clock: Clock,
        may: watch::Receiver<bool>,
        /// Every job takes so long.
        takes: Duration,
        /// Every so many attempts fail; 0: none does.
        fails_every: u32,
        /// It is its turn after so long.
        waits: Duration,
    }

    impl Jobs for Fake {
        fn schedule(&self) -> Schedule {
            self.schedule.clone()
        }

        async fn last_runs(&self) -> Result<LastRuns> {
            *self.noted.lookups.lock().unwrap() += 1;
            let done = self.noted.done.lock().unwrap();
            Ok(done.iter().map(|(job, began, _)| (*job, *began)).collect())
        }

        fn may(&self, _: Job) -> bool {
            *self.may.borrow()
        }

        async fn changed(&self) {
            let (mut may, seen) = (self.may.clone(), *self.may.borrow());
            if may.wait_for(|may| *may != seen).await.is_err() {
                std::future::pending::<()>().await;
            }
        }

        type Turn = ();

        async fn turn(&self) {
            sleep(self.waits).await;
        }

        async fn run(&self, job: Job) -> Result<()> {
            assert!(!self.noted.at_work.swap(true, Ordering::SeqCst), "{job} begins while another job is being done");
            let began = self.clock.now();
            sleep(self.takes).await;
            self.noted.at_work.store(false, Ordering::SeqCst);
            let attempt = {
                let mut attempts = self.noted.attempts.lock().unwrap();
                *attempts += 1;
                *attempts
            };
            if self.fails_every > 0 && attempt.is_multiple_of(self.fails_every) {
                return Err(Error::new(Kind::Postgres, "the server went away"));
            }
            self.noted.done.lock().unwrap().push((job, began, self.name));
            Ok(())
        }

        fn unknown(&self, error: &Error) {
            panic!("{error}");
        }

        fn failed(&self, _: Job, _: &Error, _: Duration) {
            *self.noted.failures.lock().unwrap() += 1;
        }
    }

    fn schedule(jobs: &[(Job, &str)]) -> Schedule {
        let jobs = jobs.iter().map(|(job, text)| (*job, Expression::parse(text).unwrap())).collect();
        Schedule { jobs, time_zone: TimeZone::get("Europe/Berlin").unwrap(), ..Schedule::default() }
    }

    /// An archiver's work for so long.
    async fn runs(archiver: Runner<Fake>, length: Duration) {
        let _ = tokio::time::timeout(length, archiver.run()).await;
    }

    fn archiver(store: &Arc<dyn Store>, clock: &Clock, jobs: Fake) -> Runner<Fake> {
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let writer = Writer::new(store.clone(), layout.clone(), 7);
        let by = Actor { user: "postgres".to_owned(), host: jobs.name.to_owned(), command: "run".to_owned() };
        let lease = Lease::new(Repository { store: store.clone(), layout }, writer, by, clock.clone());
        Runner { cluster: "main".to_owned(), lease, clock: clock.clone(), jobs }
    }

    const EVERYTHING: [(Job, &str); 5] = [
        (Job::Full, "0 2 * * SUN"),
        (Job::Incremental, "0 2 * * *"),
        (Job::Verify, "0 5 * * WED"),
        (Job::Drill, "0 6 * * MON"),
        (Job::Prune, "30 4 * * *"),
    ];

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_week_with_two_archivers_and_failures_has_everything_once() {
        // Given two archivers of one cluster whose every third attempt fails, and jobs of twenty minutes
        let schedule = schedule(&EVERYTHING);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let clock = Clock::simulated(at("2026-10-19T12:00:00Z"));
        let noted = Arc::new(Noted::default());
        let (_may, may) = watch::channel(true);
        let fake = |name| Fake {
            schedule: schedule.clone(),
            noted: noted.clone(),
            name,
            clock: clock.clone(),
            may: may.clone(),
            takes: Duration::from_secs(20 * 60),
            fails_every: 3,
            waits: Duration::ZERO,
        };
        let week = Duration::from_secs(7 * 24 * 3600);
        tokio::join!(
            runs(archiver(&store, &clock, fake("db1")), week),
            runs(archiver(&store, &clock, fake("db2")), week),
        );
        // Then each has happened as often as it should: in a week in which clocks change in the night of the full backup
        let done = noted.done.lock().unwrap();
        let count = |job| done.iter().filter(|(done, ..)| *done == job).count();
        let counts = Job::ALL.map(|job| (job, count(job)));
        let expected = [(Job::Full, 2), (Job::Incremental, 6), (Job::Verify, 1), (Job::Drill, 1), (Job::Prune, 7)];
        assert_eq!(counts, expected, "the first full one at once, and no incremental beside the second: {done:?}");
        assert!(*noted.failures.lock().unwrap() >= 6, "failures were made");
        // And within two hours of its time, in order
        assert!(done.is_sorted_by_key(|(_, began, _)| *began));
        let prunes = done.iter().filter(|(job, ..)| *job == Job::Prune);
        for (_, began, _) in prunes {
            let local = began.to_zoned(schedule.time_zone.clone());
            assert!((4..=6).contains(&local.hour()), "{local}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_is_caught_up_once_and_nothing_is_done_by_who_may_not() {
        let schedule = schedule(&[(Job::Incremental, "0 2 * * *"), (Job::Prune, "30 4 * * *")]);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let clock = Clock::simulated(at("2026-11-16T12:00:00Z"));
        let noted = Arc::new(Noted::default());
        let (may, may_be) = watch::channel(false);
        let fake = Fake {
            schedule,
            noted: noted.clone(),
            name: "db1",
            clock: clock.clone(),
            may: may_be,
            takes: Duration::from_secs(60),
            fails_every: 0,
            waits: Duration::ZERO,
        };
        // Given an archiver that is a hot spare for five days
        let running = runs(archiver(&store, &clock, fake), Duration::from_secs(6 * 24 * 3600));
        let becomes = async {
            sleep(Duration::from_secs(5 * 24 * 3600)).await;
            assert_eq!(noted.done.lock().unwrap().len(), 0);
            may.send_replace(true);
            sleep(Duration::from_secs(600)).await;
            // Then each job is done once when it takes over, and on the next day as ever
            assert_eq!(
                noted.done.lock().unwrap().iter().map(|(job, ..)| *job).collect::<Vec<_>>(),
                [Job::Incremental, Job::Prune]
            );
        };
        tokio::join!(running, becomes);
        assert_eq!(noted.done.lock().unwrap().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_turn_keeps_nobody_from_it_and_does_not_do_again_what_was_done() {
        let schedule = schedule(&[(Job::Prune, "30 4 * * *")]);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let clock = Clock::simulated(at("2026-11-16T03:00:00Z"));
        let noted = Arc::new(Noted::default());
        let (_may, may) = watch::channel(true);
        // Given two archivers of one cluster, of which one has to wait for hours among the clusters of its process
        let fake = |name, waits| Fake {
            schedule: schedule.clone(),
            noted: noted.clone(),
            name,
            clock: clock.clone(),
            may: may.clone(),
            takes: Duration::from_secs(60),
            fails_every: 0,
            waits,
        };
        let (waits, half_a_day) = (Duration::from_secs(4 * 3600), Duration::from_secs(12 * 3600));
        tokio::join!(
            runs(archiver(&store, &clock, fake("db1", waits)), half_a_day),
            runs(archiver(&store, &clock, fake("db2", Duration::from_secs(600))), half_a_day),
        );
        // Then the other one does it meanwhile, and it is done once
        let done = noted.done.lock().unwrap();
        assert_eq!(done.iter().map(|(job, _, name)| (*job, *name)).collect::<Vec<_>>(), [(Job::Prune, "db2")]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_nothing_is_due_nothing_is_asked() {
        let schedule = schedule(&[(Job::Prune, "30 4 1 * *")]);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let clock = Clock::simulated(at("2026-11-02T12:00:00Z"));
        let noted = Arc::new(Noted::default());
        let (_may, may) = watch::channel(true);
        let takes = Duration::from_secs(1);
        let (noted_there, clock_there, waits) = (noted.clone(), clock.clone(), Duration::ZERO);
        let fake =
            Fake { schedule, noted: noted_there, name: "db1", clock: clock_there, may, takes, fails_every: 0, waits };
        runs(archiver(&store, &clock, fake), Duration::from_secs(5 * 24 * 3600)).await;
        // What was done was looked up once, and the lease was left alone
        assert_eq!(*noted.lookups.lock().unwrap(), 1);
        assert_eq!(store.list_level("main/").await.unwrap(), Default::default());
        assert_eq!(noted.done.lock().unwrap().len(), 0);
    }
}
