//! `seawall restore`: plans, says what it will give, and does it. `wal-fetch` and `wal-push`: what servers run.

use super::audit::{Begun, Ended};
use super::exit::Ending;
use super::fetch_command::fetch_command;
use super::progress::{self, Step};
use super::{before_drop, parts, print, time};
use crate::cli::{self, RestoreArgs, TargetArgs, WalFetchArgs, WalWithFiles};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::history::index::IndexWriter;
use crate::repository::{Action, BackupId, Catalog, WalReader, Writer};
use crate::restore::{
    ExpectedDuration, Fetched, LocalWal, MARKER_FILE, Phase, Pin, Plan, Preview, Pushed, Request, RestoreOptions,
    RestoreProgress, RestoreReport, Target, TargetAction, ahead, execute, fetch, is_local, plan, preview, push,
};
use crate::runtime::Clock;
use crate::wal::TimelineId;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The server's archiver waits for what `wal-push` does beside storing: no longer than this, whatever the store does.
const INDEX_WITHIN: Duration = Duration::from_secs(60);

/// Restores, or with `--dry-run` only says what a restore would give.
///
/// # Errors
/// A refusal before anything is written, or what went wrong.
pub(super) async fn restore(args: RestoreArgs, settings: Settings) -> Result<()> {
    let clock = Clock::system();
    let as_json = args.json.json;
    let action = match args.target_action {
        _ if args.standby => TargetAction::Follow,
        cli::TargetAction::Pause => TargetAction::Pause,
        cli::TargetAction::Promote => TargetAction::Promote,
        cli::TargetAction::Shutdown => TargetAction::Shutdown,
    };
    let mut request = request(&args.target, action, !as_json, &clock)?;
    let (repository, cluster) = parts::readable_repository(&settings).await?;
    let reader = WalReader::new(repository.clone(), cluster.system_identifier);
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let catalog = Catalog::read(&repository, cluster).await?;
    if let Some(relation) = &args.target.before_drop {
        before_drop::aim(&mut request, relation, &reader, &catalog, as_json).await?;
    }
    let plan = Box::pin(plan(&reader, &catalog, &request, clock.now())).await?;
    let options = RestoreOptions {
        delta: args.delta,
        databases: args.databases.clone(),
        wal: local_wal(args.wal),
        tablespace_map: args.tablespace_maps.iter().map(|map| (map.old.clone(), map.new.clone())).collect(),
        owner: args.owner.clone(),
        ..RestoreOptions::new(args.into.clone(), fetch_command(&settings)?)
    };
    let (progress, watched) = watch::channel(RestoreProgress::default());
    if args.dry_run {
        // Elsewhere there is nothing to compare with.
        let over = (options.delta || !options.databases.is_empty() || args.into.join(MARKER_FILE).exists()).then(|| {
            let previewed = Box::pin(preview(&repository, &plan, &options, progress));
            async { tokio::select! { preview = previewed => preview, never = progress::show(watched, step) => match never {} } }
        });
        let over = match over {
            Some(preview) => Some(preview.await?),
            None => None,
        };
        let bytes = over.as_ref().map_or(plan.backup.plain_bytes, |preview| preview.written_bytes);
        let expected = ExpectedDuration::read(&repository, bytes, plan.wal_bytes).await;
        return print::stdout(&dry_run(&plan, over.as_ref(), expected.as_ref(), as_json)?);
    }
    if !as_json {
        print::stdout(&format!("{plan}\n"))?;
    }
    let (begun, noted) = (Instant::now(), Begun::now("restore", Action::Restore, &clock));
    let report = tokio::select! {
        report = Box::pin(execute(&repository, &plan, &options, progress)) => report,
        never = progress::show(watched, step) => match never {},
    };
    let ended = match &report {
        Ok(_) => Ended::done(true, format!("into {}", args.into.display())),
        Err(error) => Ended::failed(error),
    };
    noted.end(&writer, ended.of(&plan.backup.id), &clock).await;
    let report = report?;
    if as_json { print::stdout(&print::json(&report)?) } else { print::stdout(&said(&report, begun.elapsed())) }
}

/// What was typed, as a request; `says` which time was understood.
///
/// # Errors
/// [`Kind::Usage`] if it cannot be understood.
pub(super) fn request(args: &TargetArgs, action: TargetAction, says: bool, clock: &Clock) -> Result<Request> {
    let target = match args.target() {
        cli::Target::End => Target::End,
        cli::Target::Time(text) => moment(&text, clock, !says)?,
        cli::Target::Lsn(lsn) => Target::Lsn(lsn),
        // What SQL shows has the epoch in its upper half; WAL has the lower one.
        cli::Target::Xid(xid) => Target::Xid((xid & 0xFFFF_FFFF) as u32),
        cli::Target::Name(name) => Target::Name(name),
    };
    Ok(Request {
        target,
        exclusive: args.to_exclusive,
        backup: args.backup.as_deref().map(backup).transpose()?,
        timeline: args.timeline.map(TimelineId),
        action,
    })
}

/// A moment as it was typed; said back in full, whatever becomes of it: a moment misread is a restore gone wrong.
pub(super) fn moment(text: &str, clock: &Clock, as_json: bool) -> Result<Target> {
    let moment = time::parse_moment(text, &time::local_now(clock))?;
    if !as_json {
        print::stdout(&format!("to {moment}\n"))?;
    }
    Ok(Target::Time(moment.at))
}

/// The name of a base backup, as it was typed.
pub(super) fn backup(text: &str) -> Result<BackupId> {
    BackupId::parse(text).ok_or_else(|| {
        Error::new(Kind::Usage, format!("{text:?} is not the name of a base backup"))
            .hint("`seawall list` shows them; one looks like 20261120T140300Z.")
    })
}

/// How much of the WAL is fetched along with the files.
pub(super) fn local_wal(wanted: Option<WalWithFiles>) -> LocalWal {
    match wanted {
        None => LocalWal::None,
        Some(WalWithFiles::Prefetch) => LocalWal::First,
        Some(WalWithFiles::Now) => LocalWal::All,
    }
}

/// The plan, with what would become of what is there, and how long all of it takes.
fn dry_run(plan: &Plan, over: Option<&Preview>, expected: Option<&ExpectedDuration>, as_json: bool) -> Result<String> {
    #[derive(Serialize)]
    struct Planned<'a> {
        #[serde(flatten)]
        plan: &'a Plan,
        #[serde(skip_serializing_if = "Option::is_none")]
        over: Option<&'a Preview>,
        expected: Option<&'a ExpectedDuration>,
    }
    let duration = duration(expected);
    Ok(match (as_json, over) {
        (true, over) => print::json(&Planned { plan, over, expected })?,
        (false, Some(over)) => format!("{plan}\n{over}\nduration     {duration}\n"),
        (false, None) => format!("{plan}\nduration     {duration}\n"),
    })
}

/// How long a restore takes, and who says so.
pub(super) fn duration(expected: Option<&ExpectedDuration>) -> String {
    let Some(it) = expected else {
        return "not known: no drill has measured it, and `seawall drill` does".to_owned();
    };
    let length = |seconds: f64| print::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    format!(
        "about {}: {} for the files and {} for the WAL, at the rates of the drill of {} ({} in {}, {} of WAL in {})",
        length(it.seconds),
        length(it.restore_seconds),
        length(it.replay_seconds),
        print::time(it.drill_ended_at, &TimeZone::UTC),
        print::size(it.drill_restored_bytes),
        length(it.drill_restore_seconds),
        print::size(it.drill_replayed_bytes),
        length(it.drill_replay_seconds),
    )
}

fn said(report: &RestoreReport, took: Duration) -> String {
    let mut text = format!(
        "restored {} in {} files into {} in {}\n",
        print::size(report.bytes),
        report.files,
        report.data.display(),
        print::duration(took),
    );
    if report.kept_files > 0 {
        let kept = print::size(report.kept_bytes);
        text.push_str(&format!("kept {kept} in {} files that were there and equal the backup's\n", report.kept_files));
    }
    for warning in &report.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text.push_str(&match report.is_standby {
        true => format!(
            "start PostgreSQL on it: it follows the archive through `seawall wal-fetch`, from {} on as it grows\n",
            report.end_lsn
        ),
        false => format!(
            "start PostgreSQL on it: it recovers to {} through `seawall wal-fetch`, and says so in its log\n",
            report.end_lsn
        ),
    });
    if !report.statements.is_empty() {
        text.push_str("once it has recovered, drop the databases that were left empty:\n");
        report.statements.iter().for_each(|statement| text.push_str(&format!("  {statement}\n")));
    }
    text
}

pub(super) fn step(progress: &RestoreProgress) -> Step {
    let what = match progress.phase {
        Phase::Comparing => "comparing",
        Phase::Fetching => "restoring",
        Phase::FetchingWal => "fetching WAL",
        Phase::Syncing => "syncing",
    };
    Step { what, done_bytes: progress.done_bytes, total_bytes: progress.total_bytes }
}

/// `restore_command`: exit code 1 only for what is proven not to be there.
///
/// # Errors
/// Everything else.
pub(super) async fn wal_fetch(args: &WalFetchArgs, settings: Settings) -> Result<Ending> {
    let (name, destination) = (args.name.as_str(), args.path.as_path());
    // PostgreSQL runs a restore_command in its data directory.
    let data_directory = std::env::current_dir()
        .map_err(|error| Error::new(Kind::Local, "cannot find the working directory").because(error))?;
    if args.ahead {
        let Some(pin) = Pin::read(&data_directory)? else { return Ok(Ending::Done) };
        let (repository, cluster) = parts::readable_repository(&settings).await?;
        let reader = WalReader::new(repository, cluster.system_identifier);
        return ahead::fill(&reader, name, &pin, &data_directory).await.map(|()| Ending::Done);
    }
    let (pin, last) = (Pin::read(&data_directory)?, Pin::read_last(&data_directory)?);
    if last.as_ref().is_some_and(|pin| is_local(pin, name, destination)) {
        return Ok(Ending::Absent);
    }
    if let Some(pin) = &pin
        && ahead::take(name, destination, pin, &data_directory).await?
    {
        // The file is in place: whatever comes now is no failure.
        if ahead::is_low(name, pin, &data_directory).await.unwrap_or(false) {
            fetch_ahead();
        }
        return Ok(Ending::Done);
    }
    let fetched = fetch_from_store(name, destination, pin.as_ref(), &data_directory, &settings).await;
    match fetched {
        Ok(Fetched::Written) => Ok(Ending::Done),
        Ok(Fetched::Absent) => Ok(Ending::Absent),
        // What is left to ask for is what nobody has: a file behind the end, and a timeline to take.
        Err(error) if error.kind() == Kind::Store && pin.is_some_and(|pin| pin.is_all_local() && !pin.needs(name)) => {
            tracing::warn!(%error, name, "the store does not answer; what recovery needs lies in pg_wal");
            Ok(Ending::Absent)
        }
        Err(error) => Err(error),
    }
}

/// Starts this command once more, to fetch what follows while the server replays. It ends by itself; without it, recovery
/// is slower and nothing else.
fn fetch_ahead() {
    let mut words = std::env::args_os();
    let started = std::env::current_exe().and_then(|program| {
        words.next();
        // In a group of its own, for the server stops its own by group, and with none of its pipes: it waits for their end.
        std::process::Command::new(program)
            .args(words)
            .arg("--ahead")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    if let Err(error) = started {
        tracing::debug!(%error, "cannot fetch ahead");
    }
}

async fn fetch_from_store(
    name: &str,
    destination: &Path,
    pin: Option<&Pin>,
    data_directory: &Path,
    settings: &Settings,
) -> Result<Fetched> {
    let (repository, cluster) = parts::readable_repository(settings).await?;
    let reader = WalReader::new(repository, cluster.system_identifier);
    Box::pin(fetch(&reader, name, destination, pin, data_directory)).await
}

/// `archive_command`, for those who keep it. What it stores has an index of records as well.
///
/// # Errors
/// If the file is not stored: PostgreSQL keeps it and tries again.
pub(super) async fn wal_push(path: &Path, settings: Settings) -> Result<()> {
    let (repository, cluster) = parts::repository(&settings).await?;
    let writer = Writer::new(repository.store, repository.layout, cluster.system_identifier);
    let Pushed::Wal(pushed) = push(&writer, path).await? else { return Ok(()) };
    // The file is safe: whatever comes now is no failure.
    let index = IndexWriter::new(writer);
    match tokio::time::timeout(INDEX_WITHIN, Box::pin(index.fill_behind(pushed))).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            let hint = error.hint_text().unwrap_or_default();
            tracing::warn!(%error, hint, "the WAL is stored, and has no index of records; `seawall index` makes it");
        }
        Err(_) => tracing::warn!(
            "the WAL is stored; its index of records took longer than {} s and was given up: `seawall index` makes it",
            INDEX_WITHIN.as_secs()
        ),
    }
    Ok(())
}
