//! `seawall prune`: what retention keeps stays, the rest goes. And the same for `run`, on schedule.

use super::audit::{Begun, Ended};
use super::print::{self, Align, Table};
use super::{keep, parts, time};
use crate::cli::PruneArgs;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::repository::{Action, Cluster, FORMAT_VERSION, PruneDocument, Repository, Writer};
use crate::retention::{Ages, Group, Inventory, Outcome, Plan, Policy, execute, plan, prove};
use crate::runtime::{self, Clock};
use crate::store::Store;
use serde::Serialize;
use std::fmt::Write as _;
use std::sync::Arc;

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    cluster: &'a str,
    dry_run: bool,
    groups: &'a [Group],
    notes: &'a [String],
    frees_objects: u64,
    frees_bytes: u64,
    deleted_objects: u64,
    deleted_bytes: u64,
}

/// What a prune did.
#[derive(Debug)]
pub(super) struct PruneSummary {
    /// Its report, as it is stored in the repository.
    pub(super) document: PruneDocument,
    /// What it did and why.
    pub(super) plan: Plan,
    /// What kept it from doing all of it; its report is stored nevertheless.
    pub(super) error: Option<Error>,
}

/// Looks, plans, has the plan proved, and deletes. The report is stored whatever became of it.
///
/// # Errors
/// If nothing was deleted: what is stored cannot be read, or not be judged. What fails while it deletes is in the summary.
pub(super) async fn prune_once(
    command: &'static str,
    settings: &Settings,
    store: Arc<dyn Store>,
    clock: &Clock,
) -> Result<PruneSummary> {
    let (begun, started_at) = (Begun::now(command, Action::Prune, clock), clock.now());
    let (repository, cluster) = parts::repository_in(settings, store).await?;
    let system_identifier = cluster.system_identifier;
    let (plan, outcome) = match look(settings, &repository, cluster.clone(), clock).await {
        Ok((inventory, plan)) => {
            let now = Ages::of(&inventory, settings.retention.minimum_window, clock.now()).now;
            drop(inventory);
            let released = match repository.store.lock_period() {
                Some(_) => keep::settle_holds(&repository, &cluster, &plan.doomed_backups(), now, clock).await,
                None => Ok(()),
            };
            let outcome = match released {
                Ok(()) => execute(&repository, &plan, system_identifier, now, clock).await,
                Err(error) => Outcome { error: Some(error), ..Outcome::default() },
            };
            (Some(plan), outcome)
        }
        Err(error) => (None, Outcome { error: Some(error), ..Outcome::default() }),
    };
    let document = PruneDocument {
        format: FORMAT_VERSION,
        started_at,
        ended_at: clock.now(),
        passed: outcome.error.is_none(),
        failure: outcome.error.as_ref().map(ToString::to_string),
        deleted_objects: outcome.objects,
        deleted_bytes: outcome.bytes,
        undeleted_objects: outcome.undeleted,
        deleted_backups: outcome.backups,
    };
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
    let said = format!("{} objects deleted, {}", document.deleted_objects, print::size(document.deleted_bytes));
    let ended = match &outcome.error {
        None => Ended::done(true, said),
        Some(error) => Ended { about: format!("{said}; then: {error}"), ..Ended::failed(error) },
    };
    begun.end(&writer, ended, clock).await;
    if let Err(error) = writer.store_prune(&document).await {
        tracing::warn!(%error, "the report of this prune cannot be stored, so that `seawall status` does not know of it");
    }
    match (plan, outcome.error) {
        (None, Some(error)) => Err(error),
        (plan, error) => Ok(PruneSummary { document, plan: plan.unwrap_or_default(), error }),
    }
}

/// One look, the plan, and the proof of it.
async fn look(
    settings: &Settings,
    repository: &Repository,
    cluster: Cluster,
    clock: &Clock,
) -> Result<(Inventory, Plan)> {
    let inventory = Inventory::read(repository, cluster).await?;
    let zone = time::local_now(clock).time_zone().clone();
    let policy = Policy { locked: repository.store.lock_period(), ..settings.retention.clone() };
    let now = clock.now();
    // Of years of WAL, that takes seconds.
    let layout = repository.layout.clone();
    let planned = move || {
        let plan = plan(&inventory, &policy, &zone, now);
        prove(&layout, &inventory, &plan, &policy, now).map(|()| (inventory, plan))
    };
    let (inventory, mut plan) = runtime::blocking(planned).await??;
    if repository.store.lock_period().is_some() {
        plan.notes.push("what goes stays as an older version until a rule of the bucket expires it".to_owned());
    }
    Ok((inventory, plan))
}

/// Prunes, or says what that would do.
///
/// # Errors
/// As [`prune_once`], and what fails while it deletes.
pub(super) async fn prune(args: PruneArgs, settings: Settings) -> Result<()> {
    let (store, clock) = (parts::store(&settings).await?, Clock::system());
    let (plan, deleted, error) = if args.dry_run {
        let (repository, cluster) = parts::repository_in(&settings, store).await?;
        let (_, plan) = look(&settings, &repository, cluster, &clock).await?;
        (plan, (0, 0), None)
    } else {
        let summary = prune_once("prune", &settings, store, &clock).await?;
        let deleted = (summary.document.deleted_objects, summary.document.deleted_bytes);
        (summary.plan, deleted, summary.error)
    };
    let (frees_objects, frees_bytes) = plan.frees();
    let report = Report {
        cluster: &settings.cluster,
        dry_run: args.dry_run,
        groups: &plan.groups,
        notes: &plan.notes,
        frees_objects,
        frees_bytes,
        deleted_objects: deleted.0,
        deleted_bytes: deleted.1,
    };
    print::stdout(&if args.json.json { print::json(&report)? } else { in_words(&report, &settings) })?;
    error.map_or(Ok(()), |error| Err(error.context(format!("{} objects were deleted before", deleted.0))))
}

fn in_words(report: &Report<'_>, settings: &Settings) -> String {
    let mut text = String::new();
    for goes in [false, true] {
        let mut table = Table::new(&[
            (if goes { "goes" } else { "stays" }, Align::Left),
            ("objects", Align::Right),
            ("size", Align::Right),
            ("why", Align::Left),
        ]);
        for group in report.groups.iter().filter(|group| group.goes == goes) {
            table.row([group.what.clone(), group.objects.to_string(), print::size(group.bytes), group.reason.clone()]);
        }
        if !table.is_empty() {
            text.push_str(&table.render());
            text.push('\n');
        }
    }
    for note in report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if !settings.retention.chooses_backups() && settings.retention.wal.is_none() {
        text.push_str("note: without a rule under [retention], only garbage goes\n");
    }
    let _ = match report.dry_run {
        true => writeln!(
            text,
            "would free {} in {} objects; nothing was deleted",
            print::size(report.frees_bytes),
            report.frees_objects
        ),
        false => writeln!(text, "freed {} in {} objects", print::size(report.deleted_bytes), report.deleted_objects),
    };
    text
}
