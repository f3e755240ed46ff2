//! A drill: a restore for real, into a directory of its own and onto a throwaway server, with checks on what came back. It
//! measures what a disaster would take, and says what is wrong before there is one. May use `recovery` and all that it may.
//!
//! ```text
//! catalogue ─► plan ─► recovery: files, server, replay ─► checks: recovery, the operator's, amcheck; server stopped: checksums
//! ```

mod amcheck;
mod checksums;
mod looks;

use crate::error::Result;
use crate::recovery::{self, Recovered, RecoveryOptions};
use crate::repository::{
    Catalog, Cluster, DrillCheck, DrillDocument, FORMAT_VERSION, Objective, Outcome, Repository, WalReader,
};
use crate::restore::{self, Plan, Request, RestoreProgress, Route, newest_moment};
use crate::runtime::Clock;
use crate::scratch::{Programs, Server};
use crate::wal::Lsn;
use jiff::Timestamp;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// No report names more failures: one damaged table can have one for each row.
const FAILURES_MAX: usize = 50;

/// What is drilled, and against what.
#[derive(Clone, Debug)]
pub struct DrillOptions {
    /// How the cluster is brought up.
    pub recovery: RecoveryOptions,
    /// The operator's own checks.
    pub checks: Vec<SqlCheck>,
    /// A restore may take so long, from the decision to a server that takes writes.
    pub rto: Option<Duration>,
    /// What is stored may be so old.
    pub rpo: Option<Duration>,
}

/// A check of the operator's: SQL that gives one row with one value, which is true if all is well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SqlCheck {
    /// What it is called in reports.
    pub name: String,
    /// The database that it is asked in.
    pub database: String,
    /// The statement.
    pub sql: String,
}

/// A drill that is planned: from here on, whatever goes wrong is a finding.
#[derive(Debug)]
pub struct Drill {
    plan: Plan,
    started_at: Timestamp,
    planned_in: Duration,
    durable_lsn: Lsn,
    durable_at: Option<Timestamp>,
}

/// What is left of a drill beside what it found.
pub struct Drilled {
    /// What it found.
    pub document: DrillDocument,
    /// The server, if it came up; it may have been stopped for the last check.
    pub server: Option<Server>,
}

impl Drill {
    /// Looks at what is stored, and plans.
    ///
    /// # Errors
    /// As [`Catalog::read`] and [`restore::plan`].
    pub async fn plan(repository: &Repository, cluster: Cluster, request: &Request, clock: &Clock) -> Result<Drill> {
        let (started_at, begun) = (clock.now(), Instant::now());
        let reader = WalReader::new(repository.clone(), cluster.system_identifier);
        let catalog = Catalog::read(repository, cluster).await?;
        let plan = restore::plan(&reader, &catalog, request, started_at).await?;
        let planned_in = begun.elapsed();
        let size = repository.layout.segment_size();
        // How old what is stored is, is a matter of the line that is archived, also where the drill goes to a moment before it.
        let line = request.timeline.or(catalog.followed_timeline()).unwrap_or(plan.timeline);
        let route = Route::new(catalog.history(line), size, &catalog);
        let durable_lsn = route.covered(&catalog, size.segment_start(plan.backup.start_lsn)).until;
        let durable_at = newest_moment(&reader, &catalog, &route, (plan.backup.start_lsn, durable_lsn)).await?;
        Ok(Drill { plan, started_at, planned_in, durable_lsn, durable_at })
    }

    /// What will be restored.
    pub fn planned(&self) -> &Plan {
        &self.plan
    }

    /// The version of the server that is needed, such as 17.
    pub fn version(&self) -> u32 {
        self.plan.postgres_version / 10_000
    }

    /// Restores into `directory`, which must belong to the server's user, starts a server there, and checks. What fails is in
    /// the document. If dropped, the server goes; the directory stays.
    pub async fn run(
        self,
        directory: &Path,
        repository: &Repository,
        options: DrillOptions,
        progress: watch::Sender<RestoreProgress>,
        clock: &Clock,
    ) -> Drilled {
        let programs = options.recovery.programs.clone();
        let mut found = Found::default();
        let recovered =
            Box::pin(recovery::recover(directory, repository, &self.plan, options.recovery, progress)).await;
        let recovered = match recovered {
            Ok(recovered) => Some(recovered),
            Err(error) => {
                found.failures.push(format!("recovery: {error}"));
                None
            }
        };
        let mut document = self.document(recovered.as_ref());
        let server = match recovered {
            Some(recovered) => {
                let mut server = recovered.server;
                self.check(&mut document, &mut server, &programs, &options.checks, &mut found).await;
                Some(server)
            }
            None => None,
        };
        self.judge(&mut document, (options.rto, options.rpo), &mut found);
        let more = found.failures.len().saturating_sub(FAILURES_MAX);
        if more > 0 {
            found.failures.truncate(FAILURES_MAX);
            found.failures.push(format!("and {more} more"));
        }
        document.passed = found.failures.is_empty();
        (document.failures, document.checks) = (found.failures, found.checks);
        document.ended_at = clock.now();
        Drilled { document, server }
    }

    /// What is known once the server is up, or has not come up.
    fn document(&self, recovered: Option<&Recovered>) -> DrillDocument {
        let plan = &self.plan;
        let (restored_in, recovered_in) =
            recovered.map_or_else(Default::default, |it| (it.restored_in, it.recovered_in));
        let all = self.planned_in + restored_in + recovered_in;
        DrillDocument {
            format: FORMAT_VERSION,
            system_identifier: plan.system_identifier,
            postgres_version: plan.postgres_version,
            started_at: self.started_at,
            ended_at: self.started_at,
            passed: false,
            failures: Vec::new(),
            target: plan.target.to_string(),
            backup: plan.backup.id.clone(),
            timeline: plan.timeline,
            durable_lsn: self.durable_lsn,
            durable_at: self.durable_at,
            recovered_lsn: None,
            recovered_at: None,
            plan_seconds: self.planned_in.as_secs_f64(),
            restored_bytes: recovered.map_or(0, |it| it.report.bytes),
            restore_seconds: restored_in.as_secs_f64(),
            replayed_bytes: 0,
            replay_seconds: recovered_in.as_secs_f64(),
            recovery_seconds: recovered.map(|_| all.as_secs_f64()),
            rto: None,
            rpo: None,
            checks: Vec::new(),
            sealed: None,
        }
    }

    async fn check(
        &self,
        document: &mut DrillDocument,
        server: &mut Server,
        programs: &Programs,
        checks: &[SqlCheck],
        found: &mut Found,
    ) {
        let timed = Instant::now();
        let state = looks::state(server, &self.plan).await;
        if let Ok(state) = &state {
            document.recovered_lsn = Some(state.lsn);
            document.recovered_at = state.last_transaction;
            document.replayed_bytes = state.lsn - self.plan.backup.start_lsn;
        }
        found.add("recovery", timed, state.and_then(|state| state.verdict(&self.plan)));
        for check in checks {
            let timed = Instant::now();
            found.add(&check.name, timed, looks::ask(server, check).await);
        }
        let timed = Instant::now();
        found.add("amcheck", timed, amcheck::run(server).await);
        let timed = Instant::now();
        found.add("checksums", timed, checksums::run(server, programs).await);
    }

    /// Against the targets.
    fn judge(&self, document: &mut DrillDocument, (rto, rpo): (Option<Duration>, Option<Duration>), found: &mut Found) {
        let age = self.durable_at.and_then(|at| Duration::try_from(self.started_at.duration_since(at)).ok());
        // A clock of the source's that is ahead of ours: nothing is as young as this.
        let age = age.or_else(|| self.durable_at.map(|_| Duration::ZERO)).map(|age| age.as_secs_f64());
        let of = |target: Option<Duration>, seconds| target.map(|it| Objective::new(it.as_secs_f64(), seconds));
        document.rto = of(rto, document.recovery_seconds);
        document.rpo = of(rpo, age);
        let said = |what: &str, objective: &Objective, measured: &str| {
            let target = objective.target_seconds;
            match objective.seconds {
                Some(seconds) => format!("{what}: {measured} {seconds:.3} s, and the target is {target} s"),
                None => format!("{what}: it cannot be told, and the target is {target} s"),
            }
        };
        if let Some(rto) = document.rto.filter(|rto| !rto.met) {
            found.failures.push(said("RTO", &rto, "recovery took"));
        }
        if let Some(rpo) = document.rpo.filter(|rpo| !rpo.met) {
            found.failures.push(said("RPO", &rpo, "what is stored had an age of"));
        }
    }
}

/// What a check says: what was looked at, or everything that is wrong.
type Verdict = Result<Answer, Vec<String>>;

/// What a check says that found nothing wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    /// All is well, and so much was looked at.
    Passed(String),
    /// It could not be made here, for this reason.
    Skipped(String),
}

/// What was found up to now.
#[derive(Default)]
struct Found {
    checks: Vec<DrillCheck>,
    failures: Vec<String>,
}

impl Found {
    fn add(&mut self, name: &str, begun: Instant, verdict: Verdict) {
        let (outcome, message) = match verdict {
            Ok(Answer::Passed(what)) => (Outcome::Passed, what),
            Ok(Answer::Skipped(why)) => (Outcome::Skipped, why),
            Err(wrong) => {
                let first = wrong.first().cloned().unwrap_or_default();
                self.failures.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
                (Outcome::Failed, first)
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.checks.push(DrillCheck { name: name.to_owned(), outcome, message, seconds });
    }
}
