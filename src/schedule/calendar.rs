//! What is due, from when things were to happen and when they last did. Pure: the caller says what time it is.

use super::Expression;
use crate::metrics::Job;
use blake3::Hasher;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::time::Duration;

/// When each job last began that came to its end. What never did is not there.
pub type LastRuns = BTreeMap<Job, Timestamp>;

/// What is to happen when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The jobs that are to happen by themselves.
    pub jobs: BTreeMap<Job, Expression>,
    /// Whose clock the expressions mean.
    pub time_zone: TimeZone,
    /// Everything happens up to so much later, by the cluster's name: a hundred clusters with one schedule do not begin
    /// at once.
    pub jitter: Duration,
    /// Every base backup is followed by a look at what is stored.
    pub verify_after: bool,
    /// What takes longer is given up; and a base backup that gets no farther for so long.
    pub time_limit: Duration,
}

/// A day.
const TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            jobs: BTreeMap::new(),
            time_zone: TimeZone::system(),
            jitter: Duration::ZERO,
            verify_after: true,
            time_limit: TIME_LIMIT,
        }
    }
}

impl Schedule {
    /// What is due at `now`, in the order in which to do it: what was to happen since it last did, once, however often.
    /// A cluster without any full base backup is due for one at once: nothing of it can be restored. What else never
    /// happened is due when it was to happen since `started`.
    pub fn due(&self, cluster: &str, last: &LastRuns, started: Timestamp, now: Timestamp) -> Vec<Job> {
        let is_due = |job: Job, expression: &Expression| {
            let last = match last.get(&job) {
                Some(last) => *last,
                None if job == Job::Full => return true,
                None => started,
            };
            let delay = self.delay(cluster, job);
            let shifted = now.checked_sub(delay).unwrap_or(now);
            // Against when it happened, not against when it is written: the delay may be longer than the time between two.
            let previous = expression.previous(shifted, &self.time_zone);
            previous.and_then(|previous| previous.checked_add(delay).ok()).is_some_and(|due| due > last)
        };
        let due = self.jobs.iter().filter(|(job, expression)| is_due(**job, expression)).map(|(job, _)| *job);
        let mut due: Vec<Job> = due.collect();
        // A full one takes its place, also one that failed and waits for its next attempt.
        if due.contains(&Job::Full) {
            due.retain(|job| *job != Job::Incremental);
        }
        due
    }

    /// When a job is to happen next, after `now`.
    pub fn next(&self, cluster: &str, job: Job, now: Timestamp) -> Option<Timestamp> {
        let delay = self.delay(cluster, job);
        let shifted = now.checked_sub(delay).unwrap_or(now);
        self.jobs.get(&job)?.next(shifted, &self.time_zone)?.checked_add(delay).ok()
    }

    /// How much later than written this cluster's job happens: always the same.
    fn delay(&self, cluster: &str, job: Job) -> Duration {
        let mut hasher = Hasher::new();
        hasher.update(cluster.as_bytes()).update(b"/").update(job.name().as_bytes());
        let hash = hasher.finalize();
        let share =
            u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]]);
        Duration::from_secs((self.jitter.as_secs_f64() * f64::from(share) / f64::from(u32::MAX)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn weekly() -> Schedule {
        let jobs = [(Job::Full, "0 2 * * SUN"), (Job::Incremental, "0 2 * * *"), (Job::Verify, "0 4 * * SUN")];
        let jobs = jobs.map(|(job, text)| (job, Expression::parse(text).unwrap()));
        Schedule { jobs: jobs.into(), ..Schedule::default() }
    }

    #[test]
    fn what_was_missed_five_times_is_due_once() {
        let schedule = weekly();
        // Given a machine that was off from Sunday 15 November to Friday noon
        let started = at("2026-11-01T00:00:00Z");
        let last: LastRuns =
            [Job::Full, Job::Incremental, Job::Verify].map(|job| (job, at("2026-11-15T04:00:00Z"))).into();
        let now = at("2026-11-20T12:00:00Z");
        // Then one incremental backup is due, and none any more when that has been taken
        assert_eq!(schedule.due("main", &last, started, now), [Job::Incremental]);
        let last =
            LastRuns::from([(Job::Incremental, now), (Job::Full, last[&Job::Full]), (Job::Verify, last[&Job::Verify])]);
        assert_eq!(schedule.due("main", &last, started, now), []);
        assert_eq!(schedule.next("main", Job::Incremental, now), Some(at("2026-11-21T02:00:00Z")));
    }

    #[test]
    fn a_cluster_without_a_full_backup_is_due_for_one_at_once_and_what_else_never_happened_in_its_time() {
        let schedule = weekly();
        let started = at("2026-11-20T12:00:00Z");
        assert_eq!(schedule.due("main", &LastRuns::new(), started, started), [Job::Full]);
        let last = LastRuns::from([(Job::Full, started), (Job::Incremental, started)]);
        assert_eq!(schedule.due("main", &last, started, at("2026-11-21T01:59:00Z")), []);
        assert_eq!(schedule.due("main", &last, started, at("2026-11-22T04:00:00Z")), [Job::Full, Job::Verify]);
    }

    #[test]
    fn a_delay_that_is_longer_than_the_time_between_two_loses_none() {
        // Given something hourly that happens up to ten hours later
        let jobs = [(Job::Verify, Expression::parse("0 * * * *").unwrap())];
        let schedule = Schedule { jobs: jobs.into(), jitter: Duration::from_secs(10 * 3600), ..Schedule::default() };
        let (mut now, started) = (at("2026-11-20T00:00:30Z"), at("2026-11-20T00:00:00Z"));
        let (mut last, mut done) = (LastRuns::new(), 0);
        // When it is looked at every minute of a day
        for _ in 0..24 * 60 {
            if schedule.due("shop", &last, started, now) == [Job::Verify] {
                last.insert(Job::Verify, now);
                done += 1;
            }
            now = now.checked_add(Duration::from_secs(60)).unwrap();
        }
        // Then it has happened every hour
        assert!((23..=24).contains(&done), "{done} times");
    }

    #[test]
    fn jitter_spreads_clusters_and_is_the_same_for_one_each_time() {
        let schedule = Schedule { jitter: Duration::from_secs(3600), ..weekly() };
        let now = at("2026-11-20T12:00:00Z");
        let next = |cluster: &str| schedule.next(cluster, Job::Incremental, now).unwrap();
        let spread: std::collections::BTreeSet<_> = (0..100).map(|number| next(&format!("c{number}"))).collect();
        assert!(spread.len() > 90, "{} different times of 100", spread.len());
        assert!(spread.iter().all(|time| *time >= at("2026-11-21T02:00:00Z") && *time <= at("2026-11-21T03:00:00Z")));
        assert_eq!(next("c1"), next("c1"));
        // And due exactly from then on
        let last = LastRuns::from([(Job::Full, now), (Job::Incremental, now)]);
        let due = |time| schedule.due("c1", &last, now, time).contains(&Job::Incremental);
        assert!(due(next("c1")) && !due(next("c1").checked_sub(Duration::from_secs(1)).unwrap()));
    }
}
