//! What is done again and again beside the stream: when it was done last, how that ended, and how long it took.

use super::Metrics;
use super::registry::{Builder, flag, unix_seconds};
use crate::error::Result;
use jiff::Timestamp;
use prometheus::GaugeVec;
use std::fmt;
use std::time::Duration;

/// The label of each. Prometheus renames a label `job` when it scrapes: that is its own.
const TASK: &[&str] = &["task"];

/// What is done by itself or by hand, in the order in which what is due at one time is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Job {
    /// A full base backup.
    Full,
    /// An incremental one.
    Incremental,
    /// A look at whether the repository holds what it must.
    Verify,
    /// A restore for real.
    Drill,
    /// Deleting what no kept window needs.
    Prune,
}

impl Job {
    /// All of them, in order.
    pub const ALL: [Job; 5] = [Job::Full, Job::Incremental, Job::Verify, Job::Drill, Job::Prune];

    /// In metrics, settings and the log.
    pub fn name(self) -> &'static str {
        match self {
            Job::Full => "full",
            Job::Incremental => "incremental",
            Job::Verify => "verify",
            Job::Drill => "drill",
            Job::Prune => "prune",
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Each is absent until its job was done, as far as this process knows.
pub(super) struct Jobs {
    last_success: GaugeVec,
    last_run: GaugeVec,
    last_result: GaugeVec,
    duration: GaugeVec,
}

impl Jobs {
    pub(super) fn register(build: &mut Builder) -> Result<Jobs> {
        Ok(Jobs {
            last_success: build.gauges(
                "seawall_job_last_success_timestamp_seconds",
                TASK,
                "When `full`, `incremental`, `verify`, `drill` or `prune` ended well for the last time, whoever did it; absent, as all \
                 of these, as long as it is not known to have been done, and in a hot spare.",
            )?,
            last_run: build.gauges(
                "seawall_job_last_run_timestamp_seconds",
                TASK,
                "When it ended for the last time, well or not.",
            )?,
            last_result: build.gauges("seawall_job_last_result", TASK, "1 if that went well, 0 if it failed.")?,
            duration: build.gauges("seawall_job_duration_seconds", TASK, "How long that took.")?,
        })
    }
}

impl Metrics {
    /// A job ended. What ended before the last one that is known changes nothing but, perhaps, the last good end.
    pub fn job_ended(&self, job: Job, ended_at: Timestamp, took: Duration, succeeded: bool) {
        let (jobs, label, at) = (&self.0.jobs, [job.name()], unix_seconds(ended_at));
        let last_run = jobs.last_run.with_label_values(&label);
        if at >= last_run.get() {
            last_run.set(at);
            jobs.last_result.with_label_values(&label).set(flag(succeeded));
            jobs.duration.with_label_values(&label).set(took.as_secs_f64());
        }
        if succeeded {
            let last_success = jobs.last_success.with_label_values(&label);
            last_success.set(last_success.get().max(at));
        }
    }

    /// Another process is in charge: what was known of jobs, and of the last drill, is no longer shown.
    pub fn forget_jobs(&self) {
        let Jobs { last_success, last_run, last_result, duration } = &self.0.jobs;
        for gauge in [last_success, last_run, last_result, duration] {
            gauge.reset();
        }
        self.0.drill.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_absent_until_it_was_done_and_an_older_end_does_not_hide_a_newer_one() {
        let metrics = Metrics::new("main").expect("metrics");
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let took = Duration::from_secs(7);
        assert!(!metrics.render().expect("text").contains("seawall_job_"), "nothing was done yet");
        metrics.job_ended(Job::Full, at(300), took, false);
        metrics.job_ended(Job::Full, at(100), took, true);
        let text = metrics.render().expect("text");
        for line in [
            "seawall_job_last_run_timestamp_seconds{task=\"full\",cluster=\"main\"} 300",
            "seawall_job_last_result{task=\"full\",cluster=\"main\"} 0",
            "seawall_job_last_success_timestamp_seconds{task=\"full\",cluster=\"main\"} 100",
            "seawall_job_duration_seconds{task=\"full\",cluster=\"main\"} 7",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in:\n{text}");
        }
        metrics.forget_jobs();
        assert!(!metrics.render().expect("text").contains("seawall_job_"), "another process is in charge");
    }
}
