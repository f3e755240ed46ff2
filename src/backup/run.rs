//! The workflow of one base backup, from the first question to the document that says that it exists.

use super::collect::{Collected, Collector, Outcome};
use super::cut_relations::CutRelations;
use super::decompress::Decompressing;
use super::pages::PageChecks;
use super::receive::{Broken, EventSource, Read, Receiver};
use super::resume::Unfinished;
use super::verify;
use super::wal_wait::WalWaiter;
use crate::error::{Error, Kind, Result};
use crate::postgres::{BackupStart, BackupStream, BaseBackupOptions, Client, PgError};
use crate::repository::{
    BackupBegin, BackupDocument, BackupFiles, BackupId, BackupPart, BackupTablespace, EarlierParts, FORMAT_VERSION,
    Findings, Key, Repository, Writer, whole_path,
};
use crate::runtime::{Backoff, Clock, RetryPolicy, Tasks};
use crate::store::StoreErrorKind;
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// Frames that are compressed at once, or wait for that: enough for four cores at the rate at which a server sends.
const FRAMES_AT_WORK: usize = 4;

/// The first version that compresses what it sends.
const COMPRESSES_FROM: u32 = 150_000;

/// How often a backup is begun whose connection is lost: each time the server makes a checkpoint and sends everything again.
const ATTEMPTS: u32 = 5;

/// Between a lost connection and the next one, and between tries to get that one.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(30), budget: None };

/// So long a server that cannot be reached is waited for.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Names tried when others began a backup in the same second.
const NAMES_TRIED: u32 = 100;

/// The longest label: `backup_label` has lines of 1,024 bytes (`MAXPGPATH`).
const LABEL_BYTES_MAX: usize = 1000;

/// What a restore needs to know of the server, or a person who wonders about one. A role with the right to replicate may
/// see all of them; one that a version does not have is left out.
const SETTINGS: [&str; 14] = [
    // A restored server needs at least these (`CheckRequiredParameterValues` in `xlog.c`).
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "wal_level",
    "wal_segment_size",
    "data_checksums",
    "block_size",
    "wal_block_size",
    "segment_size",
    "data_directory_mode",
    "full_page_writes",
    "server_version",
];

/// How a base backup is taken.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// What the operator calls it; at most 1,000 bytes on one line.
    pub label: String,
    /// A checkpoint at once, instead of one spread over minutes.
    pub fast_checkpoint: bool,
    /// The server sends no faster than this, in KiB per second (32 to 1,048,576).
    pub max_rate_kib: Option<u32>,
    /// The server compresses what it sends with Zstandard at this level: for a thin network, at the cost of its processors.
    pub server_zstd_level: Option<i32>,
    /// Parts being stored at once: each takes up to 16 MiB of memory.
    pub uploads_in_flight: usize,
    /// Goes on with this one, instead of beginning one with a name of its own.
    pub resume: Option<Unfinished>,
    /// Shows the server all of a reference's manifest, which corrupts incremental backups silently: for tests that show it.
    #[doc(hidden)]
    pub trusts_summaries: bool,
}

impl Default for BackupOptions {
    fn default() -> BackupOptions {
        BackupOptions {
            label: "seawall".into(),
            fast_checkpoint: true,
            max_rate_kib: None,
            server_zstd_level: None,
            uploads_in_flight: 6,
            resume: None,
            trusts_summaries: false,
        }
    }
}

impl BackupOptions {
    /// Fails if no full backup can be taken so.
    pub(super) fn check_full(&self) -> Result<()> {
        check_label(&self.label)?;
        self.resume.as_ref().map_or(Ok(()), Unfinished::check_full)
    }

    /// What the server is asked for, of a full backup.
    pub(super) fn request(&self) -> BaseBackupOptions {
        BaseBackupOptions {
            label: self.label.clone(),
            fast_checkpoint: self.fast_checkpoint,
            max_rate_kib: self.max_rate_kib,
            verify_checksums: true,
            zstd_level: self.server_zstd_level,
            incremental: false,
        }
    }
}

/// What a base backup is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackupPhase {
    /// The WAL since the backup that it builds on is looked through.
    ReadingWal,
    /// The server makes its checkpoint.
    #[default]
    Checkpoint,
    /// Files come and are stored.
    Copying,
    /// Everything is stored but the WAL that it needs.
    WaitingForWal,
    /// It exists.
    Done,
}

/// How far a base backup is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackupProgress {
    /// What it is at.
    pub phase: BackupPhase,
    /// Its name, once it has one.
    pub id: Option<BackupId>,
    /// Bytes of tar that came.
    pub received_bytes: u64,
    /// About how many will come.
    pub total_bytes: Option<u64>,
    /// Bytes of the parts that are stored.
    pub stored_bytes: u64,
    /// Those of them that an earlier attempt had stored.
    pub reused_bytes: u64,
    /// Warnings of the server.
    pub warnings: u64,
}

/// Takes one base backup through replication connections of `connect`. It exists when this returns, and not before. Where a
/// connection is lost it is begun again, under the same name, and what is stored of it is not stored again.
///
/// Memory: about 16 MiB for each upload in flight and for the part being built, 8 MiB for each of four frames, and
/// 150 bytes for each file. If this fails or is dropped, what it stored stays, without `backup.json`: [`Unfinished`] goes on with it.
///
/// # Errors
/// [`Kind::Diverged`] if the server is not the repository's cluster; [`Kind::Damaged`] if a file arrives otherwise than
/// the server read it; else what the server, the store or `wal` says.
pub async fn take<C: Future<Output = Result<Client>> + Send>(
    connect: impl Fn() -> C + Sync + Send,
    writer: &Writer,
    options: &BackupOptions,
    clock: &Clock,
    wal: &dyn WalWaiter,
    progress: watch::Sender<BackupProgress>,
) -> Result<BackupDocument> {
    options.check_full()?;
    let mut beginning = BeginFull { connect, writer, options, clock };
    let begun = beginning.begin().await?;
    Run { writer, options, clock, wal, progress }.store(begun, beginning).await
}

/// Begins base backups at a server, one after the other where a connection is lost.
pub(super) trait Begin: Send {
    /// What the server sends.
    type Source: EventSource;

    /// Connects and begins.
    fn begin(&mut self) -> impl Future<Output = Result<(Server, Self::Source)>> + Send;
}

struct BeginFull<'a, F> {
    connect: F,
    writer: &'a Writer,
    options: &'a BackupOptions,
    clock: &'a Clock,
}

impl<C, F> Begin for BeginFull<'_, F>
where
    C: Future<Output = Result<Client>> + Send,
    F: Fn() -> C + Sync + Send,
{
    type Source = BackupStream;

    async fn begin(&mut self) -> Result<(Server, BackupStream)> {
        let mut client = (self.connect)().await?;
        let found = client.identify_system().await?.system_identifier;
        check_cluster(found, self.writer)?;
        let postgres_version = client.server_version();
        let settings = read_settings(&mut client).await?;
        let started_at = self.clock.now();
        let request = self.options.request();
        if let Some(error) = not_compressed(&request, postgres_version, None) {
            return Err(error);
        }
        let begun = client.base_backup(&request).await;
        let (start, stream) =
            begun.map_err(|error| not_compressed(&request, postgres_version, Some(&error)).unwrap_or(error.into()))?;
        Ok((Server { reference: None, postgres_version, settings, started_at, start }, stream))
    }
}

/// Why a server of this version, which answers with `error`, does not compress what it was asked to.
pub(super) fn not_compressed(request: &BaseBackupOptions, version: u32, error: Option<&PgError>) -> Option<Error> {
    /// `ERRCODE_SYNTAX_ERROR` (`parse_basebackup_options` in `basebackup.c`): it was built without it.
    const BUILT_WITHOUT: &str = "42601";
    request.zstd_level?;
    let what = match error {
        None if version < COMPRESSES_FROM => format!("PostgreSQL {} compresses no base backups", version / 10_000),
        Some(error) if error.sqlstate() == Some(BUILT_WITHOUT) => error.to_string(),
        _ => return None,
    };
    let hint = "Without --server-compression the backup comes as it is; --max-rate spares the network as well.";
    Some(Error::new(Kind::Refused, what).hint(hint))
}

/// What an incremental backup builds on.
pub(super) struct Reference {
    pub(super) id: BackupId,
    /// What the server must send whole nevertheless.
    pub(super) cut: Option<CutRelations>,
}

/// What is known before the first byte.
pub(super) struct Server {
    pub(super) reference: Option<Reference>,
    pub(super) postgres_version: u32,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) started_at: Timestamp,
    pub(super) start: BackupStart,
}

impl Server {
    /// Where the backup begins.
    fn position(&self) -> (TimelineId, Lsn) {
        (self.start.timeline, self.start.start_lsn)
    }
}

/// From where a backup first began on its WAL is kept, and nothing is before that.
fn check_not_before(first: (TimelineId, Lsn), now: (TimelineId, Lsn)) -> Result<()> {
    if now >= first {
        return Ok(());
    }
    let text = format!(
        "the server would begin it at {} on timeline {}, and it first began at {} on timeline {}",
        now.1, now.0, first.1, first.0
    );
    Err(Error::new(Kind::Refused, text)
        .hint("Is that a standby which is behind? Take another backup, or go on with this one later."))
}

/// What a backup is taken with.
pub(super) struct Run<'a> {
    pub(super) writer: &'a Writer,
    pub(super) options: &'a BackupOptions,
    pub(super) clock: &'a Clock,
    pub(super) wal: &'a dyn WalWaiter,
    pub(super) progress: watch::Sender<BackupProgress>,
}

/// What the one task that receives ended with.
async fn received(tasks: &mut Tasks<Result<Read, Broken>>) -> Result<Read, Broken> {
    let nobody = || Error::new(Kind::Internal, "a base backup is received by nobody");
    tasks.next().await.ok_or_else(nobody)??
}

/// What became of a stream.
enum Copied {
    /// All of it is stored.
    Whole(Box<(Read, Collected)>),
    /// The connection was lost; these parts are stored.
    Lost(Error, Vec<BackupPart>),
}

impl Run<'_> {
    /// Takes in what the server sends, and where the connection is lost, what it sends when the backup is begun `again`. The backup
    /// exists when this returns.
    pub(super) async fn store<B: Begin>(self, begun: (Server, B::Source), again: B) -> Result<BackupDocument> {
        let (id, first, earlier) = match &self.options.resume {
            Some(unfinished) => (unfinished.id().clone(), unfinished.first(), unfinished.parts().clone()),
            None => (self.begin(&begun.0).await?, begun.0.position(), EarlierParts::default()),
        };
        let stored = Box::pin(self.store_under(&id, first, earlier, begun, again)).await;
        stored.map_err(|error| {
            let goes_on = match error.kind() {
                Kind::Postgres | Kind::Store | Kind::Local | Kind::Refused => {
                    format!(" (seawall backup --resume {id} goes on with it)")
                }
                _ => String::new(),
            };
            error.context(format!("base backup {id} failed{goes_on}"))
        })
    }

    async fn store_under<B: Begin>(
        &self,
        id: &BackupId,
        first: (TimelineId, Lsn),
        mut earlier: EarlierParts,
        (mut server, mut source): (Server, B::Source),
        mut again: B,
    ) -> Result<BackupDocument> {
        for attempt in 1.. {
            check_not_before(first, server.position())?;
            self.progress.send_modify(|progress| {
                progress.phase = BackupPhase::Copying;
                progress.id = Some(id.clone());
                progress.total_bytes = server.start.total_kib.map(|kib| kib.saturating_mul(1024));
                (progress.received_bytes, progress.stored_bytes, progress.reused_bytes) = (0, 0, 0);
                progress.warnings = 0;
            });
            match self.copy(source, id, &server, Arc::new(earlier.clone())).await? {
                Copied::Whole(whole) => return self.finish(id, server, *whole, &earlier).await,
                Copied::Lost(error, _) if attempt == ATTEMPTS => return Err(error),
                Copied::Lost(error, parts) => {
                    parts.iter().for_each(|part| earlier.add(part));
                    self.progress.send_modify(|progress| progress.phase = BackupPhase::Checkpoint);
                    (server, source) = begin_again(id, error, &mut again).await?;
                }
            }
        }
        Err(Error::new(Kind::Internal, "a base backup was begun too often"))
    }

    /// Stores `begin.json`: from here on prune keeps the WAL that this backup will need, and the name is ours.
    async fn begin(&self, server: &Server) -> Result<BackupId> {
        let BackupStart { start_lsn, timeline, .. } = server.start;
        let (started_at, system_identifier) = (server.started_at, self.writer.system_identifier());
        for attempt in 0..NAMES_TRIED {
            let id = BackupId::at(started_at, attempt);
            let begin = BackupBegin {
                format: FORMAT_VERSION,
                id: id.clone(),
                system_identifier,
                started_at,
                start_lsn,
                timeline,
                reference: server.reference.as_ref().map(|reference| reference.id.clone()),
            };
            match self.writer.store_document(&Key::BackupBegin(id.clone()), &begin).await {
                Ok(_) => return Ok(id),
                // Another backup began in this second.
                Err(error) if error.kind() == Kind::Diverged => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Busy, format!("{NAMES_TRIED} base backups began in the second of {started_at}")))
    }

    /// Everything between the server's first byte and its last word, with the first failure of either side.
    async fn copy(
        &self,
        source: impl EventSource,
        id: &BackupId,
        server: &Server,
        earlier: Arc<EarlierParts>,
    ) -> Result<Copied> {
        let checks = PageChecks::new(&server.settings, server.start.start_lsn);
        if checks.is_none() {
            tracing::warn!(
                "this server's pages or files are not of PostgreSQL's usual size: Seawall does not check them"
            );
        }
        let (sender, work) = mpsc::channel(FRAMES_AT_WORK);
        let is_incremental = server.reference.is_some();
        let source = Decompressing::new(source, self.options.server_zstd_level.is_some());
        let receiver =
            Receiver::new(source, is_incremental, self.writer.clone(), checks, sender, self.progress.clone());
        let in_flight = self.options.uploads_in_flight;
        let collector = Collector::new(self.writer.clone(), id.clone(), earlier, in_flight, self.progress.clone());
        // A task, so that what reads the socket is where the socket is waited for.
        let mut receiving = Tasks::default();
        receiving.start(receiver.receive());
        let mut collecting = Box::pin(collector.collect(work));
        let (read, collected) = tokio::select! {
            read = received(&mut receiving) => (read, collecting.await),
            collected = &mut collecting => match collected {
                Err(error) => return Err(error),
                // The other half has said its last word, and is about to end.
                Ok(_) => (received(&mut receiving).await, collected),
            },
        };
        match (read, collected) {
            (Ok(read), Ok(Outcome::Whole(collected))) => Ok(Copied::Whole(Box::new((read, collected)))),
            // What was on its way into the store has arrived there, or has not: whoever goes on needs not store it again.
            (Err(Broken::Lost(error)), Ok(Outcome::CutOff(parts))) => Ok(Copied::Lost(error, parts)),
            (Err(Broken::Failed(error)), Ok(_)) | (_, Err(error)) => Err(error),
            (Ok(_), Ok(Outcome::CutOff(_))) | (Err(Broken::Lost(_)), Ok(Outcome::Whole(_))) => {
                Err(Error::new(Kind::Internal, "the two halves of a base backup do not agree whether it is whole"))
            }
        }
    }

    /// Everything has come and is stored: makes a backup of it.
    async fn finish(
        &self,
        id: &BackupId,
        server: Server,
        (read, collected): (Read, Collected),
        earlier: &EarlierParts,
    ) -> Result<BackupDocument> {
        let Collected { parts, files, manifest, rejected, rejected_count } = collected;
        let Read { end, findings, whole_bytes } = read;
        let (end_timeline, end_lsn) = end;
        let BackupStart { start_lsn, timeline, tablespaces, .. } = server.start;
        let system_identifier = self.writer.system_identifier();
        if let Some(cut) = server.reference.as_ref().and_then(|reference| reference.cut.as_ref()) {
            check_whole(&files, cut)?;
        }
        verify::check_end(&manifest, system_identifier, (timeline, start_lsn), end)?;
        self.progress.send_modify(|progress| progress.phase = BackupPhase::WaitingForWal);
        self.wal.wait_covered(&manifest.wal_ranges).await?;
        let tablespaces = tablespaces.into_iter();
        let document = BackupDocument {
            ending: self.writer.layout().form().ending(),
            format: FORMAT_VERSION,
            id: id.clone(),
            restored_bytes: server.reference.as_ref().map(|_| whole_bytes),
            reference: server.reference.map(|reference| reference.id),
            label: self.options.label.clone(),
            system_identifier,
            postgres_version: server.postgres_version,
            started_at: server.started_at,
            ended_at: self.clock.now(),
            start_lsn,
            timeline,
            end_lsn,
            end_timeline,
            wal_ranges: manifest.wal_ranges,
            settings: server.settings,
            tablespaces: tablespaces.map(|it| BackupTablespace { oid: it.oid, location: it.location }).collect(),
            plain_bytes: files.iter().map(|file| file.bytes).sum(),
            stored_bytes: parts.iter().map(|part| part.stored_bytes).sum(),
            manifest_sha256: manifest.sha256,
            findings: Findings { rejected_page_count: rejected_count, rejected_pages: rejected, ..findings },
            parts,
            files,
        };
        let begun_at = self.check_begun(id).await?;
        if let Some(reference) = &document.reference {
            self.check_there(reference, begun_at).await?;
        }
        if !earlier.is_empty() {
            self.writer.check_parts(id, &document.parts).await?;
        }
        // The commit point: everything else is durable, the server has said all it has to say, and now the backup exists.
        let stored = self.writer.store_document(&Key::BackupEnd(id.clone()), &document).await;
        stored.map_err(|error| match error.kind() {
            Kind::Diverged => Error::new(Kind::Busy, "another process has finished it meanwhile")
                .hint("That backup is good, whoever took it: `seawall list` shows it."),
            _ => error,
        })?;
        // A prune that takes it for left over deletes `begin.json`, and then looks for `backup.json`: one of the two sees the other.
        self.check_begun(id).await?;
        self.progress.send_modify(|progress| progress.phase = BackupPhase::Done);
        if !earlier.is_empty() {
            let reused_bytes = self.progress.borrow().reused_bytes;
            tracing::info!(backup = %id, reused_bytes, of = document.stored_bytes, "parts of earlier attempts were used");
        }
        Ok(document)
    }

    /// A prune takes an unfinished backup to which nothing was stored for a day, `begin.json` first. One that has waited for its WAL for
    /// so long must not come to exist without its parts. Returns when it was begun, by the store's clock.
    async fn check_begun(&self, id: &BackupId) -> Result<Timestamp> {
        let name = self.writer.layout().name(&Key::BackupBegin(id.clone()));
        match self.writer.store().head(&name).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => Err(Error::new(
                Kind::Damaged,
                format!("{name} was deleted while this backup was taken, and perhaps more of it"),
            )
            .hint(
                "A prune takes it for left over once nothing was stored of it for a day. Take another backup; `seawall verify` says \
                 whether this one is listed and lacks anything.",
            )),
            found => found.map(|found| found.info.modified).map_err(Error::from),
        }
    }

    /// What this backup builds on may have been deleted in the hours since it was chosen; then it is of no use, and must not
    /// pass for the newest. A prune that has seen `begin.json` of this one lets it stay; one that was about to delete it before that has
    /// said so.
    async fn check_there(&self, reference: &BackupId, begun_at: Timestamp) -> Result<()> {
        let repository = Repository { store: self.writer.store().clone(), layout: self.writer.layout().clone() };
        if repository.is_going(reference, begun_at).await? {
            let what = format!("a prune was about to delete base backup {reference}, and this backup builds on it");
            return Err(Error::new(Kind::Busy, what).hint("Take it again: with --type full, if it is to be now."));
        }
        let name = self.writer.layout().name(&Key::BackupEnd(reference.clone()));
        match self.writer.store().head(&name).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                Err(Error::new(Kind::Damaged, format!("{name} was deleted, and this backup builds on it"))
                    .hint("Take a full backup (--type full), and see what deletes backups that are in use."))
            }
            found => found.map(|_| ()).map_err(Error::from),
        }
    }
}

/// Begins a backup again whose connection was lost, as soon as the server can be reached.
async fn begin_again<B: Begin>(id: &BackupId, lost: Error, again: &mut B) -> Result<(Server, B::Source)> {
    let (mut backoff, since) = (Backoff::new(PAUSES), Instant::now());
    let mut why = lost;
    loop {
        let pause = backoff.next_pause();
        tracing::warn!(backup = %id, error = %why, pause_seconds = pause.as_secs_f64(), "beginning the base backup again");
        sleep(pause).await;
        // What an attempt itself takes does not count: that server can be reached.
        let is_patient = since.elapsed() < PATIENCE;
        match again.begin().await {
            Err(error) if is_patient && may_pass(&error) => why = error,
            begun => return begun,
        }
    }
}

/// True for what another attempt may not meet: not for a wrong password, or missing rights.
fn may_pass(error: &Error) -> bool {
    let of_server = error.source().and_then(|source| source.downcast_ref::<PgError>());
    error.kind() == Kind::Busy || of_server.is_some_and(PgError::is_transient)
}

pub(super) async fn read_settings(client: &mut Client) -> Result<BTreeMap<String, String>> {
    /// No such setting, or not for this role (`src/backend/utils/errcodes.txt`).
    const NOT_TOLD: [&str; 2] = ["42704", "42501"];
    let mut settings = BTreeMap::new();
    for name in SETTINGS {
        match client.show(name).await {
            Ok(value) => {
                settings.insert(name.to_owned(), value);
            }
            Err(error) if error.sqlstate().is_some_and(|state| NOT_TOLD.contains(&state)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(settings)
}

/// The server was not shown these, so that it must send them whole.
fn check_whole(files: &BackupFiles, cut: &CutRelations) -> Result<()> {
    match files.iter().find(|file| whole_path(file.path).is_some() && cut.wants_whole(file.path)) {
        None => Ok(()),
        Some(file) => Err(Error::new(Kind::Damaged, format!("the server sent only changes of {}", file.path))
            .hint("They cannot be trusted, and it was asked for the whole file. Take a full backup (--type full).")),
    }
}

pub(super) fn check_cluster(found: u64, writer: &Writer) -> Result<()> {
    let expected = writer.system_identifier();
    if found == expected {
        return Ok(());
    }
    let cluster = writer.layout().cluster();
    Err(Error::new(
        Kind::Diverged,
        format!("the server has the system identifier {found}, and the repository's cluster {cluster} {expected}"),
    )
    .hint("Is --pg the right server? A cluster that was made anew (initdb, pg_upgrade) needs a --cluster name of its own."))
}

/// A label is one line of `backup_label`, which PostgreSQL reads back line by line.
pub(super) fn check_label(label: &str) -> Result<()> {
    if label.len() <= LABEL_BYTES_MAX && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("a backup's label is one line of at most {LABEL_BYTES_MAX} bytes")))
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod resume_tests;

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
