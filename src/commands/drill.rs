//! `seawall drill`: restores onto a throwaway server, says what was found, keeps the report in the repository, and cleans up.

use super::audit::{Begun, Ended};
use super::fetch_command::fetch_command;
use super::taking::Taker;
use super::{parts, print, progress, restore, results, signals};
use crate::cli::DrillArgs;
use crate::config::Settings;
use crate::drill::{Drill, DrillOptions, Drilled};
use crate::error::{Error, Kind, Result};
use crate::recovery::RecoveryOptions;
use crate::repository::{Action, Cluster, DrillDocument, Objective, Outcome, Repository, Writer};
use crate::restore::{LocalWal, Request, RestoreProgress, Target, TargetAction};
use crate::runtime::{Clock, Shutdown};
use crate::scratch::{Directory, Programs, Server, sweep};
use crate::wal::TimelineId;
use std::fmt::Write as _;
use std::time::Duration;
use tokio::sync::watch;

/// What the directory of a drill is called, with a few letters behind it,
pub(super) const PREFIX: &str = "seawall-drill";
/// and one that is to stay: no later drill takes it for what a killed one left.
const KEPT_PREFIX: &str = "seawall-drill-kept";

/// Drills, and prints what was found.
///
/// # Errors
/// [`Kind::Failed`] if anything failed that a disaster would need; [`Kind::Local`] without PostgreSQL of this version, or if
/// it was interrupted; otherwise what stands in the way of drilling. Nothing is left behind.
pub(super) async fn drill(args: DrillArgs, settings: Settings) -> Result<()> {
    let shutdown = Shutdown::default();
    let _watch = signals::watch(shutdown.clone())?;
    let below = settings.drill.scratch.clone().unwrap_or_else(std::env::temp_dir);
    tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => return Err(interrupted()),
        () = sweep(&below, PREFIX) => {}
    }
    let mut place = Directory::create(&below, if args.keep { KEPT_PREFIX } else { PREFIX })?;
    if args.keep {
        place.keep();
    }
    let ended = tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => Err(interrupted()),
        ended = Box::pin(act(&args, &settings, &place)) => ended,
    };
    let document = match ended {
        Ok((Drilled { document, server }, stored)) => {
            let text = if args.json.json { print::json(&document) } else { Ok(in_words(&document)) };
            let printed = text.and_then(|text| print::stdout(&text));
            let left = match server {
                Some(server) if args.keep => keep(server, &place).await,
                None if args.keep => print::stdout(&format!("Kept: {}\n", place.path().display())),
                server => {
                    drop(server);
                    place.remove().await
                }
            };
            stored.and(printed).and(left)?;
            document
        }
        Err(error) => {
            // The first error is the one to tell.
            if let Err(left) = place.remove().await {
                tracing::warn!("{left}");
            }
            return Err(error);
        }
    };
    verdict(&document)
}

/// Drills as `seawall run` does on schedule: says nothing but what the log has.
///
/// # Errors
/// As [`drill`].
pub(super) async fn by_itself(taker: &Taker) -> Result<()> {
    let begun = Begun::now("run", Action::Drill, &taker.clock);
    let (repository, writer, cluster) = taker.repository().await?;
    let drilled = Box::pin(plan_and_drill(taker, &repository, cluster)).await;
    begun.end(&writer, said(&drilled, &writer), &taker.clock).await;
    let document = drilled?;
    store(&writer, &document).await?;
    taker.metrics.set_last_drill(&results::shown(&document));
    verdict(&document)
}

async fn plan_and_drill(taker: &Taker, repository: &Repository, cluster: Cluster) -> Result<DrillDocument> {
    // A major upgrade makes another cluster, so that this is the version of all that is stored; the plan takes a while.
    taker.outside.check_drill(cluster.postgres_version / 10_000).await?;
    let request = request(&DrillArgs::default(), &taker.clock)?;
    let drill = Box::pin(Drill::plan(repository, cluster, &request, &taker.clock)).await?;
    taker.outside.drill(&taker.settings(), repository, drill, &taker.clock).await
}

/// An error, if anything failed.
fn verdict(document: &DrillDocument) -> Result<()> {
    let Some((first, others)) = document.failures.split_first() else { return Ok(()) };
    let more = if others.is_empty() { String::new() } else { format!("; and {} more", others.len()) };
    Err(Error::new(Kind::Failed, format!("the drill did not pass: {first}{more}"))
        .hint("The report is in the repository. With --keep, the server stays for a look around."))
}

fn interrupted() -> Error {
    Error::new(Kind::Local, "the drill was interrupted").hint("Nothing is left behind: run it again at any time.")
}

/// Drills, and says whether the report could be stored: before anything is printed, for nobody may be reading.
async fn act(args: &DrillArgs, settings: &Settings, place: &Directory) -> Result<(Drilled, Result<()>)> {
    let clock = Clock::system();
    let begun = Begun::now("drill", Action::Drill, &clock);
    let request = request(args, &clock)?;
    let (repository, cluster) = parts::readable_repository(settings).await?;
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let drilled = async {
        Programs::find(Some(cluster.postgres_version / 10_000))?;
        let drill = Box::pin(Drill::plan(&repository, cluster, &request, &clock)).await?;
        let options = options(settings, drill.version(), restore::local_wal(args.wal))?;
        if !args.json.json {
            print::stdout(&format!("{}\n", drill.planned()))?;
        }
        let (progress, watched) = watch::channel(RestoreProgress::default());
        tokio::select! {
            drilled = Box::pin(drill.run(place.path(), &repository, options, progress, &clock)) => Ok(drilled),
            never = progress::show(watched, restore::step) => match never {},
        }
    };
    let (document, server) = match drilled.await {
        Ok(Drilled { document, server }) => (Ok(document), server),
        Err(error) => (Err(error), None),
    };
    begun.end(&writer, said(&document, &writer), &clock).await;
    let document = document?;
    let stored = store(&writer, &document).await;
    Ok((Drilled { document, server }, stored))
}

/// How a drill with PostgreSQL `version` is carried out here.
///
/// # Errors
/// If it cannot be.
pub(super) fn options(settings: &Settings, version: u32, wal: LocalWal) -> Result<DrillOptions> {
    let recovery = RecoveryOptions {
        programs: Programs::find(Some(version))?,
        command: fetch_command(settings)?,
        databases: Vec::new(),
        wal,
        settings: settings.drill.settings.clone(),
    };
    let (checks, rto, rpo) = (settings.drill.checks.clone(), settings.drill.rto, settings.drill.rpo);
    Ok(DrillOptions { recovery, checks, rto, rpo })
}

/// What became of it, in the audit trail of `writer`. The report has the words: they may name relations, which an encrypted repository
/// keeps to itself, as what the operator's checks are called.
fn said(drilled: &Result<DrillDocument>, writer: &Writer) -> Ended {
    let document = match drilled {
        Ok(document) => document,
        Err(error) => return Ended::failed(error),
    };
    let names_all = writer.drills_are_for().is_empty();
    let failed = document.checks.iter().filter(|check| check.outcome == Outcome::Failed);
    let failed: Vec<&str> = failed
        .map(|check| if names_all || check.is_own() { check.name.as_str() } else { "a check of yours" })
        .collect();
    let about = match (document.passed, failed.is_empty()) {
        (true, _) => "passed".to_owned(),
        (false, true) => "did not pass; the report says why".to_owned(),
        (false, false) => format!("did not pass: {}; the report says why", failed.join(", ")),
    };
    Ended::done(document.passed, about).of(&document.backup)
}

async fn store(writer: &Writer, document: &DrillDocument) -> Result<()> {
    let key = writer.store_drill(document).await?;
    tracing::info!(report = writer.layout().name(&key), "the report is stored");
    Ok(())
}

fn request(args: &DrillArgs, clock: &Clock) -> Result<Request> {
    let target = match (&args.to, args.to_lsn) {
        (Some(text), _) => restore::moment(text, clock, args.json.json)?,
        (_, Some(lsn)) => Target::Lsn(lsn),
        _ => Target::End,
    };
    let backup = args.backup.as_deref().map(restore::backup).transpose()?;
    let timeline = args.timeline.map(TimelineId);
    Ok(Request { target, exclusive: false, backup, timeline, action: TargetAction::Promote })
}

/// Leaves the server running, and says where it is and how it is got rid of.
async fn keep(mut server: Server, place: &Directory) -> Result<()> {
    server.start().await?;
    let text = format!(
        "Kept, and running:\n  restored           psql '{}'\n  to stop it         kill -INT {}\n  to remove it all   rm -r {} {}\n",
        server.conninfo(),
        server.pid().map(|pid| pid.to_string()).unwrap_or_default(),
        place.path().display(),
        server.socket_directory().display()
    );
    server.leave();
    print::stdout(&text)
}

fn length(seconds: f64) -> String {
    print::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn in_words(document: &DrillDocument) -> String {
    let mut text = String::new();
    let mut line = |label: &str, said: String| {
        let _ = writeln!(text, "{label:<14} {said}");
    };
    line("plan", length(document.plan_seconds));
    if let Some(all) = document.recovery_seconds {
        let pace = |bytes: u64, seconds: f64| print::size((bytes as f64 / seconds.max(0.001)) as u64);
        let (bytes, seconds) = (document.restored_bytes, document.restore_seconds);
        line("restore", format!("{}: {}, {} a second", length(seconds), print::size(bytes), pace(bytes, seconds)));
        let (bytes, seconds) = (document.replayed_bytes, document.replay_seconds);
        line(
            "replay",
            format!("{}: {} of WAL, {} a second", length(seconds), print::size(bytes), pace(bytes, seconds)),
        );
        line("recovery", format!("{} from the decision to a server that takes writes", length(all)));
    }
    if let Some(lsn) = document.recovered_lsn {
        let at = document.recovered_at.map(|at| format!(", the last transaction at {at}")).unwrap_or_default();
        line("recovered to", format!("{lsn}{at}"));
    }
    for check in &document.checks {
        let outcome = match check.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        };
        line(&check.name, format!("{outcome}: {} ({})", check.message, length(check.seconds)));
    }
    for (label, objective) in [("RTO", document.rto), ("RPO", document.rpo)] {
        if let Some(Objective { target_seconds, seconds, met }) = objective {
            let measured = seconds.map_or_else(|| "not known".to_owned(), length);
            let verdict = if met { "met" } else { "MISSED" };
            line(label, format!("{verdict}: {measured}, the target is {}", length(target_seconds)));
        }
    }
    line("result", if document.passed { "passed" } else { "FAILED" }.to_owned());
    document.failures.iter().for_each(|failure| line("", failure.clone()));
    text
}
