//! `seawall backup`: one base backup now, beside `run` or alone.

use super::audit::{Begun, Ended};
use super::progress::{self, Step};
use super::{keys, names, parts, print, signals, taking};
use crate::archive::{ArchiveOptions, ArchiveState, Archiver, Phase, PostgresSource, ServerIdentity, ensure_cluster};
use crate::backup::{
    BackupOptions, BackupPhase, BackupProgress, NotIncremental, RepositoryWaiter, Unfinished, take, take_incremental,
    take_local,
};
use crate::cli::{BackupArgs, BackupType};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BackupFiles, BackupVerdict, Layout, Repository, WalReader, Writer};
use crate::runtime::{Clock, Shutdown};
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::watch;

/// Takes the backup and prints what it became.
///
/// # Errors
/// Whatever keeps it from existing; [`Kind::Damaged`] for one that exists, of a server with damaged pages.
pub(super) async fn backup(args: BackupArgs, settings: Settings) -> Result<()> {
    let shutdown = Shutdown::default();
    let _signals = signals::watch(shutdown.clone())?;
    let clock = Clock::system();
    let info = parts::connection(&settings)?;
    let store = parts::store(&settings).await?;
    let unique = format!("{:x}p{}", clock.now().as_microsecond(), std::process::id());
    parts::require_conditional_writes(&settings, store.as_ref(), &unique).await?;
    let mut client = parts::connect(&settings).await?;
    let system = client.identify_system().await?;
    let identity = ServerIdentity {
        system_identifier: system.system_identifier,
        timeline: system.timeline,
        flush_lsn: system.flush_lsn,
        segment_size: client.wal_segment_size().await?,
        version: client.server_version(),
    };
    ensure_cluster(store.as_ref(), &settings.cluster, identity, &clock).await?;
    let form = keys::reading_form(&settings)?;
    let layout = Layout::new(settings.cluster.clone(), identity.segment_size, form.clone());
    let writer = Writer::new(store.clone(), layout.clone(), identity.system_identifier);
    let repository = Repository { store: store.clone(), layout };
    let resume = match &args.resume {
        Some(id) => Some(Unfinished::find(&repository, id, identity.system_identifier, &clock).await?),
        None => None,
    };
    let wanted = match &resume {
        Some(unfinished) if unfinished.reference().is_some() => BackupType::Incremental,
        Some(_) => BackupType::Full,
        None => args.backup_type,
    };
    let backup_type = match (&args.data_directory, wanted) {
        (None, wanted) => wanted,
        (Some(_), BackupType::Incremental) => return Err(only_full()),
        (Some(_), BackupType::Full | BackupType::Auto) => BackupType::Full,
    };

    let begun = Begun::now("backup", taking::action_of(backup_type != BackupType::Full), &clock);
    // The WAL that the backup needs is archived by whoever has the slot: a running archiver, or this process.
    let source = Arc::new(PostgresSource::new(info, &settings.slot, clock.clone()));
    let options = ArchiveOptions { form, ..ArchiveOptions::default() };
    let archiver = Archiver::new(source, store.clone(), &settings.cluster, options, clock.clone());
    let archiving = Shutdown::default();
    let mut state = archiver.state();
    let work = async {
        // The slot is held, here or there, before the backup begins: from then on no WAL gets lost. And it is the right
        // server: what is stored of it is equal.
        let is_held = |state: &ArchiveState| match state.phase {
            Phase::Streaming => state.is_compared,
            phase => phase == Phase::HotSpare,
        };
        let held = state.wait_for(is_held).await;
        let is_spare = held.map_err(|_| lost_archiver())?.phase == Phase::HotSpare;
        if is_spare {
            archiving.begin_stop();
        }
        let (sender, watched) = watch::channel(BackupProgress::default());
        let options = BackupOptions {
            label: args.label.clone().unwrap_or_else(|| "seawall".to_owned()),
            fast_checkpoint: args.fast,
            max_rate_kib: args.max_rate,
            server_zstd_level: args.server_compression,
            resume,
            ..BackupOptions::default()
        };
        let waiter = RepositoryWaiter::new(repository.clone());
        let reader = WalReader::new(repository, identity.system_identifier);
        let taken = async {
            let connect = || parts::connect(&settings);
            let why_full = match backup_type {
                BackupType::Full => None,
                wanted => {
                    let taken =
                        take_incremental(connect, &reader, &writer, &options, &clock, &waiter, sender.clone()).await;
                    match (taken, wanted) {
                        (Ok(document), _) => return Ok(Taken { document, why_full: None }),
                        (Err(NotIncremental::Unavailable(why)), BackupType::Auto) => Some(why.to_string()),
                        (Err(error), _) => return Err(error.into()),
                    }
                }
            };
            if let Some(why) = &why_full {
                tracing::warn!(why, "taking a full backup instead of an incremental one");
            }
            let document = match &args.data_directory {
                Some(directory) => {
                    let connect = || parts::connect_for_sql(&settings);
                    let taking = take_local(connect, directory, &writer, &options, &clock, &waiter, sender);
                    Box::pin(taking).await?
                }
                None => Box::pin(take(connect, &writer, &options, &clock, &waiter, sender)).await?,
            };
            Ok(Taken { document, why_full })
        };
        let taken = tokio::select! {
            taken = Box::pin(taken) => taken,
            never = progress::show(watched, step) => match never {},
            () = shutdown.stop.cancelled() => Err(Error::new(Kind::Local, "the backup was interrupted")
                .hint("What was stored of it is never used for a restore. `seawall list` names it: `seawall backup --resume ID` goes on.")),
        };
        archiving.begin_stop();
        taken
    };
    let mut archived = Box::pin(archiver.run(&archiving));
    let mut work = Box::pin(work);
    let taken = tokio::select! {
        biased;
        taken = &mut work => {
            archiving.begin_stop();
            match (archived.await, taken) {
                (Err(error), Err(_)) => Err(error),
                (_, taken) => taken,
            }
        }
        // Told to, because another archiver has the slot; or it cannot go on, and neither can the backup.
        ended = &mut archived => match ended {
            Ok(()) => work.await,
            Err(error) => Err(error),
        },
    };
    let ended = match &taken {
        Ok(taken) => taking::said(&taken.document),
        Err(error) => Ended::failed(error),
    };
    begun.end(&writer, ended, &clock).await;
    let taken = taken?;
    names::keep(&settings, &writer, taken.document.end_timeline, &clock).await;
    report(&taken, args.json.json)
}

/// What became of it.
struct Taken {
    document: BackupDocument,
    /// Why it is a full one, where an incremental one was wanted.
    why_full: Option<String>,
}

fn only_full() -> Error {
    Error::new(Kind::Refused, "no incremental backup can be taken by reading a data directory").hint(
        "What has changed is for the server to say: leave out --data-directory, or take a full backup (--type full).",
    )
}

fn lost_archiver() -> Error {
    Error::new(Kind::Internal, "the archiver ended before the backup did")
}

fn report(taken: &Taken, as_json: bool) -> Result<()> {
    let Taken { document, why_full } = taken;
    let found = document.findings.in_words();
    let verdict = match &found {
        Some(found) if document.findings.damaged => {
            let warned = format!("Warned of: {}.", document.findings.first_warnings());
            Err(Error::new(Kind::Damaged, format!("base backup {} is {found}", document.id)).hint(warned))
        }
        _ => Ok(()),
    };
    if as_json {
        #[derive(Serialize)]
        struct Report<'a> {
            verdict: BackupVerdict,
            #[serde(rename = "type")]
            backup_type: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            why_full: Option<&'a str>,
            #[serde(flatten)]
            document: BackupDocument,
        }
        let document = BackupDocument { files: BackupFiles::default(), ..document.clone() };
        let (verdict_of_pages, backup_type) = (document.findings.verdict(), document.backup_type());
        let why_full = why_full.as_deref();
        let report = Report { verdict: verdict_of_pages, backup_type, why_full, document };
        print::stdout(&print::json(&report)?)?;
        return verdict;
    }
    let took = document.ended_at.duration_since(document.started_at).unsigned_abs();
    let is = if verdict.is_ok() { "complete" } else { "stored, but damaged" };
    print::stdout(&format!(
        "base backup {} is {is}: {} in {} files, stored as {} in {}, consistent from {} on timeline {}\n",
        document.id,
        print::size(document.plain_bytes),
        document.files.len(),
        print::size(document.stored_bytes),
        print::duration(took),
        document.end_lsn,
        document.end_timeline,
    ))?;
    verdict?;
    if let Some(reference) = &document.reference {
        print::stdout(&format!("it builds on {reference}: keep both\n"))?;
    }
    if let Some(why) = why_full {
        print::stdout(&format!("it is a full one, because no incremental one could be taken: {why}\n"))?;
    }
    match found {
        Some(found) => print::stdout(&format!("it is {found}\n")),
        None => Ok(()),
    }
}

fn step(progress: &BackupProgress) -> Step {
    let what = match progress.phase {
        BackupPhase::ReadingWal => "reading the WAL since the last one",
        BackupPhase::Checkpoint => "waiting for the checkpoint",
        BackupPhase::Copying => "copying",
        BackupPhase::WaitingForWal => "waiting for its WAL",
        BackupPhase::Done => "done",
    };
    let done_bytes = progress.received_bytes;
    Step { what, done_bytes, total_bytes: progress.total_bytes.unwrap_or(done_bytes) }
}
