//! The workflow of an incremental base backup, up to the server's first byte: what it builds on, what the server is shown
//! of that, and the proof that nothing came between.

use super::cut_relations::{CutRelations, Search};
use super::reference::{self, Wanted};
use super::run::{BackupOptions, BackupPhase, BackupProgress, Begin, Reference, Run, Server};
use super::run::{check_cluster, check_label, not_compressed, read_settings};
use super::shown_manifest::ShownManifest;
use super::wal_wait::WalWaiter;
use crate::error::{Error, Kind, Result};
use crate::postgres::{BackupStream, BaseBackupOptions, Client, PgError};
use crate::repository::{BackupDocument, WalNeed, WalReader, Writer};
use crate::runtime::{self, Clock};
use crate::wal::{History, Lsn, TimelineId, end_of_records_before};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// The first version that makes incremental backups.
pub(super) const FIRST_VERSION: u32 = 170_000;

/// How often one is begun anew because a relation was cut in the moment before it began. Nothing was copied by then.
const ATTEMPTS: usize = 3;

/// Why there is no incremental backup.
#[derive(Debug)]
pub enum NotIncremental {
    /// It cannot be had here and now; a full one can.
    Unavailable(Error),
    /// It failed, as a full one would.
    Failed(Error),
}

impl From<Error> for NotIncremental {
    fn from(error: Error) -> NotIncremental {
        match error.kind() {
            // What it would build on, or what the WAL since would have to show, is not there or cannot be read: by one who
            // has no identity to decrypt it either.
            Kind::Refused | Kind::Damaged | Kind::Config => NotIncremental::Unavailable(error),
            _ => NotIncremental::Failed(error),
        }
    }
}

impl From<PgError> for NotIncremental {
    fn from(error: PgError) -> NotIncremental {
        NotIncremental::Failed(error.into())
    }
}

impl From<NotIncremental> for Error {
    fn from(why: NotIncremental) -> Error {
        match why {
            NotIncremental::Unavailable(error) => error.context("no incremental backup can be taken"),
            NotIncremental::Failed(error) => error,
        }
    }
}

/// Takes an incremental base backup through replication connections of `connect`, on the newest backup that it can build
/// on. As [`super::take`] otherwise; `reader` reads the WAL that the same archiver stores.
///
/// Memory beside that of [`super::take`]: while it is prepared, 100 bytes for each file of the reference, and 16 MiB for
/// each of four blocks of WAL, or where WAL is encrypted 64 KiB for each of sixteen heads.
///
/// # Errors
/// [`NotIncremental::Unavailable`] before anything was stored, with the reason; otherwise as [`super::take`].
pub async fn take_incremental<C: Future<Output = Result<Client>> + Send>(
    connect: impl Fn() -> C + Sync + Send,
    reader: &WalReader,
    writer: &Writer,
    options: &BackupOptions,
    clock: &Clock,
    wal: &dyn WalWaiter,
    progress: watch::Sender<BackupProgress>,
) -> Result<BackupDocument, NotIncremental> {
    check_label(&options.label).map_err(NotIncremental::Failed)?;
    let mut client = connect().await?;
    let server = look(&mut client, writer).await?;
    let wanted = Wanted {
        system_identifier: writer.system_identifier(),
        postgres_version: client.server_version(),
        data_checksums: server.settings.get("data_checksums").cloned(),
        history: server.history,
    };
    let found = match &options.resume {
        None => reference::choose(reader.repository(), &wanted).await?,
        Some(unfinished) => reference::named(reader.repository(), unfinished.incremental_reference()?, &wanted).await?,
    };
    let found = found.map_err(|why| {
        Error::new(Kind::Refused, why).hint("A full backup is what the next ones can build on: --type full.")
    })?;
    tracing::info!(reference = %found.id, "preparing an incremental backup");
    let search = Search::new(reader, wanted.history.clone(), found.start_lsn);
    let mut beginning = BeginIncremental {
        connect,
        reader,
        writer,
        options,
        clock,
        wal,
        progress: progress.clone(),
        history: wanted.history,
        found,
        search: Some(search),
    };
    let begun = beginning.begin_with(client, server.settings).await?;
    let run = Run { writer, options, clock, wal, progress };
    run.store(begun, beginning).await.map_err(NotIncremental::Failed)
}

/// What a server that can make incremental backups says of itself.
struct Look {
    history: History,
    settings: BTreeMap<String, String>,
}

async fn look(client: &mut Client, writer: &Writer) -> Result<Look> {
    let system = client.identify_system().await?;
    check_cluster(system.system_identifier, writer)?;
    check_server(client).await?;
    let history = read_history(client, system.timeline).await?;
    Ok(Look { history, settings: read_settings(client).await? })
}

/// Begins incremental backups on one reference.
struct BeginIncremental<'a, F> {
    connect: F,
    reader: &'a WalReader,
    writer: &'a Writer,
    options: &'a BackupOptions,
    clock: &'a Clock,
    wal: &'a dyn WalWaiter,
    progress: watch::Sender<BackupProgress>,
    history: History,
    found: BackupDocument,
    /// How far the WAL since the reference was read. Gone while it is read on.
    search: Option<Search>,
}

impl<C, F> Begin for BeginIncremental<'_, F>
where
    C: Future<Output = Result<Client>> + Send,
    F: Fn() -> C + Sync + Send,
{
    type Source = BackupStream;

    async fn begin(&mut self) -> Result<(Server, BackupStream)> {
        let mut client = (self.connect)().await?;
        // The server may be another one by now.
        let settings = look(&mut client, self.writer).await?.settings;
        Ok(self.begin_with(client, settings).await?)
    }
}

impl<C, F> BeginIncremental<'_, F>
where
    C: Future<Output = Result<Client>> + Send,
    F: Fn() -> C + Sync + Send,
{
    async fn begin_with(
        &mut self,
        mut client: Client,
        settings: BTreeMap<String, String>,
    ) -> Result<(Server, BackupStream), NotIncremental> {
        self.progress.send_modify(|progress| progress.phase = BackupPhase::ReadingWal);
        let timeline = self.history.timeline;
        let mut shown = ShownManifest::new(reference::with_files(self.reader.repository(), &self.found.id).await?);
        let request = BaseBackupOptions { incremental: true, ..self.options.request() };
        for _ in 0..ATTEMPTS {
            let now = client.identify_system().await?;
            check_cluster(now.system_identifier, self.writer)?;
            if now.timeline != timeline {
                return Err(promoted(timeline, now.timeline));
            }
            let cut = self.cut_until(now.flush_lsn).await?;
            (shown, _) = take_out(shown, cut).await?;
            client.upload_manifest(shown.pieces()).await.map_err(refused)?;
            self.progress.send_modify(|progress| progress.phase = BackupPhase::Checkpoint);
            let started_at = self.clock.now();
            let postgres_version = client.server_version();
            let (start, stream) = client.base_backup(&request).await.map_err(|error| {
                let failed = not_compressed(&request, postgres_version, Some(&error)).map(NotIncremental::Failed);
                failed.unwrap_or_else(|| refused(error))
            })?;
            if start.timeline != timeline {
                return Err(promoted(timeline, start.timeline));
            }
            // What came between the look at the WAL and the beginning: the server knew nothing of it.
            let size = self.reader.repository().layout.segment_size();
            // A server that completes its segment before it begins (`do_pg_backup_start` in `xlog.c`) begins in front of nothing: then
            // nobody waits until a new segment's header is stored.
            let end = end_of_records_before(size, start.start_lsn);
            let cut = self.cut_until(end).await?;
            let is_at_record = self.search.as_ref().is_some_and(|search| {
                ![end, start.start_lsn].contains(&search.position()) || search.is_between_records()
            });
            if !is_at_record {
                let why = format!("the backup begins at {}, where no record of the archived WAL does", start.start_lsn);
                return Err(NotIncremental::Unavailable(Error::new(Kind::Damaged, why)));
            }
            let taken_out;
            (shown, taken_out) = take_out(shown, cut.clone()).await?;
            if taken_out == 0 {
                let reference = Some(Reference { id: self.found.id.clone(), cut });
                return Ok((Server { reference, postgres_version, settings, started_at, start }, stream));
            }
            tracing::info!(relations_files = taken_out, "relations were cut while the backup began: beginning anew");
            // The backup ends with its connection.
            drop(stream);
            client = (self.connect)().await?;
        }
        let why = format!("relations were cut in the moment before each of {ATTEMPTS} attempts");
        Err(NotIncremental::Unavailable(Error::new(Kind::Busy, why).hint("Try again when the server is less busy.")))
    }

    /// What the server must send whole, by the WAL from the reference on to `end`.
    async fn cut_until(&mut self, end: Lsn) -> Result<Option<CutRelations>> {
        let search = self.search.take();
        let search = search.unwrap_or_else(|| Search::new(self.reader, self.history.clone(), self.found.start_lsn));
        let search = read_on(search, self.reader, &self.history, self.wal, end).await?;
        let cut = (!self.options.trusts_summaries).then(|| search.found().clone());
        self.search = Some(search);
        Ok(cut)
    }
}

/// Of the timeline that was looked at, nothing more will come.
fn promoted(from: TimelineId, to: TimelineId) -> NotIncremental {
    let why = format!("the server went from timeline {from} to {to} meanwhile");
    NotIncremental::Unavailable(Error::new(Kind::Refused, why).hint("Take another one."))
}

/// Fails unless the server can and may make incremental backups.
async fn check_server(client: &mut Client) -> Result<()> {
    let version = client.server_version();
    if version < FIRST_VERSION {
        return Err(Error::new(Kind::Refused, format!("PostgreSQL {} makes full backups only", version / 10_000))
            .hint("Version 17 and later make incremental ones."));
    }
    if client.show("summarize_wal").await? != "on" {
        return Err(Error::new(Kind::Refused, "the server does not summarize its WAL (summarize_wal is off)").hint(
            "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf(); then take a full backup for the next ones to \
             build on.",
        ));
    }
    Ok(())
}

/// The server's way to `timeline`.
async fn read_history(client: &mut Client, timeline: TimelineId) -> Result<History> {
    if timeline == TimelineId(1) {
        return Ok(History::root(timeline));
    }
    let text = client.timeline_history(timeline).await?;
    History::parse(timeline, &text).map_err(|error| {
        Error::new(Kind::Postgres, format!("the server's {} cannot be read", timeline.history_name())).because(error)
    })
}

/// Waits until the WAL up to `end` is stored, and reads it.
async fn read_on(
    search: Search,
    reader: &WalReader,
    history: &History,
    wal: &dyn WalWaiter,
    end: Lsn,
) -> Result<Search> {
    let files = history.files(search.position(), end, reader.repository().layout.segment_size());
    let needs: Vec<WalNeed> =
        files.iter().map(|range| WalNeed { timeline: range.timeline, start: range.start, end: range.end }).collect();
    wal.wait_covered(&needs).await?;
    search.read_to(reader, end).await
}

/// Takes out what the server must send whole, and says how many files that are.
async fn take_out(mut shown: ShownManifest, cut: Option<CutRelations>) -> Result<(ShownManifest, usize)> {
    let work = move || {
        let taken_out = cut.map_or(0, |cut| shown.take_out(&cut));
        (shown, taken_out)
    };
    runtime::blocking(work).await
}

/// What the server says to a manifest, or to a backup that builds on it. It refuses where its summaries do not reach back
/// far enough, are not written in time, or the reference ends behind the beginning, as it may on a quiet standby (all 55000,
/// `PrepareForIncrementalBackup` in `basebackup_incremental.c`).
fn refused(error: PgError) -> NotIncremental {
    /// `ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE`, and what a damaged manifest gets (`src/backend/utils/errcodes.txt`).
    const UNAVAILABLE: [&str; 2] = ["55000", "XX000"];
    match error {
        PgError::Server(message) if UNAVAILABLE.contains(&message.sqlstate.as_str()) => {
            NotIncremental::Unavailable(PgError::Server(message).into())
        }
        error => error.into(),
    }
}
