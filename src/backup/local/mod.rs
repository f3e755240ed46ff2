//! Base backups of a server whose data directory can be read from here: the server says when to begin and to end
//! (`pg_backup_start`), and the files are read where they are, in the order and form in which the server would send them.
//! What comes behind is the same: cut, checked, stored and gone on with as any other.
//!
//! ```text
//! pg_backup_start ─► Walk: names ─► pieces of files, several reads at once ─► archives, manifest ─► pg_backup_stop
//!                    (walk.rs)      (read.rs)                                 (source.rs)
//! ```
//!
//! Nobody but us reads these files, so that the manifest is ours: each file's CRC-32C as it was read. The comparison behind proves
//! that nothing got lost between the reading and the store.

mod directory;
mod read;
mod source;
mod walk;

use super::pages::PageChecks;
use super::run::{BackupOptions, BackupProgress, Begin, Run, Server, read_settings};
use super::wal_wait::WalWaiter;
use crate::error::{Error, Kind, Result};
use crate::postgres::{BackupSession, BackupStart, Client, Tablespace};
use crate::repository::{BackupDocument, Writer};
use crate::runtime::{self, Clock};
use directory::Control;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use source::{LocalSource, Opened};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::sync::watch;
use walk::{Found, Walk};

/// How often it is begun while tablespaces or databases come and go.
const ATTEMPTS: usize = 3;

/// Takes a full base backup by reading `directory`, the data directory of the server to which `connect` opens sessions for SQL.
/// Otherwise as [`super::take`]. What [`BackupOptions`] has for servers that send does nothing here: a rate, compression.
///
/// The session is held from start to stop. Where it is lost, the server forgets the backup, and it is begun again.
///
/// Memory beside that of [`super::take`]: 8 MiB for what is read ahead, and 50 bytes for each file.
///
/// # Errors
/// [`Kind::Refused`] if the directory is not this server's, if it is a standby, or if the role may not begin backups; else as
/// [`super::take`].
pub async fn take_local<C: Future<Output = Result<Client>> + Send>(
    connect: impl Fn() -> C + Sync + Send,
    directory: &Path,
    writer: &Writer,
    options: &BackupOptions,
    clock: &Clock,
    wal: &dyn WalWaiter,
    progress: watch::Sender<BackupProgress>,
) -> Result<BackupDocument> {
    options.check_full()?;
    let options = &BackupOptions { server_zstd_level: None, max_rate_kib: None, ..options.clone() };
    let mut beginning = BeginLocal { connect, directory, writer, options, clock };
    let begun = Box::pin(beginning.begin()).await?;
    Run { writer, options, clock, wal, progress }.store(begun, beginning).await
}

struct BeginLocal<'a, F> {
    connect: F,
    directory: &'a Path,
    writer: &'a Writer,
    options: &'a BackupOptions,
    clock: &'a Clock,
}

impl<C, F> Begin for BeginLocal<'_, F>
where
    C: Future<Output = Result<Client>> + Send,
    F: Fn() -> C + Sync + Send,
{
    type Source = LocalSource;

    async fn begin(&mut self) -> Result<(Server, LocalSource)> {
        for _ in 1..ATTEMPTS {
            match self.begin_once().await {
                Err(error) if error.kind() == Kind::Busy => tracing::info!(%error, "beginning the backup anew"),
                begun => return begun,
            }
        }
        self.begin_once().await
    }
}

impl<C, F> BeginLocal<'_, F>
where
    C: Future<Output = Result<Client>> + Send,
    F: Fn() -> C + Sync + Send,
{
    async fn begin_once(&self) -> Result<(Server, LocalSource)> {
        let client = (self.connect)().await?;
        let postgres_version = client.server_version();
        let mut session = BackupSession::new(client).await?;
        check_rights(&mut session).await?;
        let control = Control::read(self.directory).await?;
        self.check_cluster(&control)?;
        self.check_directory(&mut session).await?;
        let settings = read_settings(session.client()).await?;
        let before = self.tablespaces().await?;
        let version = control.tablespace_directory(postgres_version);
        for tablespace in &before {
            let databases = session.databases_in(tablespace.oid).await?;
            directory::check_tablespace(self.directory, tablespace, &version, databases).await?;
        }
        // Also looked through for what cannot be read, before the server is asked for anything.
        let total_kib = self.readable_kib(before.clone(), version.clone()).await?;
        let started_at = self.clock.now();
        let running = session.start(&self.options.label, self.options.fast_checkpoint).await?;
        // What the label says of tablespaces is what was there when it was made.
        let tablespaces = self.tablespaces().await?;
        if tablespaces != before {
            return Err(Error::new(Kind::Busy, "a tablespace came or went while the backup began")
                .hint("Nothing is wrong: take the backup again."));
        }
        let walks = self.walks(tablespaces.clone(), version).await?;
        let start = BackupStart {
            start_lsn: running.start_lsn,
            timeline: running.timeline,
            tablespaces,
            total_kib: Some(total_kib),
        };
        let checks = PageChecks::new(&settings, start.start_lsn);
        let source = LocalSource::new(Opened {
            directory: self.directory.to_owned(),
            system_identifier: control.system_identifier(),
            postgres_version,
            running,
            walks,
            checks,
            clock: self.clock.clone(),
        });
        Ok((Server { reference: None, postgres_version, settings, started_at, start }, source))
    }
}

impl<F> BeginLocal<'_, F> {
    /// Fails unless the directory is one of the repository's cluster.
    fn check_cluster(&self, control: &Control) -> Result<()> {
        let (found, wanted) = (control.system_identifier(), self.writer.system_identifier());
        if found == wanted {
            return Ok(());
        }
        let directory = self.directory.display();
        Err(Error::new(Kind::Refused, format!("{directory} is of cluster {found}, and the repository's is {wanted}"))
            .hint(directory::WHICH))
    }

    /// Fails unless the server that has this session runs on the directory.
    async fn check_directory(&self, session: &mut BackupSession) -> Result<()> {
        let witness = session.call_witness().await?;
        let host = session.client().host().to_owned();
        let found = directory::find(&witness, self.directory, &host).await;
        session.dismiss().await?;
        found
    }

    async fn tablespaces(&self) -> Result<Vec<Tablespace>> {
        let directory = self.directory.to_owned();
        runtime::blocking(move || directory::tablespaces(&directory)).await?
    }

    /// How much there is to read about, in KiB.
    ///
    /// # Errors
    /// If some of it must not be read.
    async fn readable_kib(&self, tablespaces: Vec<Tablespace>, version: String) -> Result<u64> {
        let directory = self.directory.to_owned();
        let walks = move || {
            let walks = all_walks(&directory, &tablespaces, &version)?.into_iter();
            walks.map(|(_, walk)| readable_bytes(walk)).sum::<Result<u64>>()
        };
        Ok(runtime::blocking(walks).await?? / 1024)
    }

    /// The ways through all archives, in their order.
    async fn walks(&self, tablespaces: Vec<Tablespace>, version: String) -> Result<Vec<(Option<Tablespace>, Walk)>> {
        let directory = self.directory.to_owned();
        runtime::blocking(move || all_walks(&directory, &tablespaces, &version)).await?
    }
}

/// Fails if this is a server of which no local backup is taken, or not by this role.
async fn check_rights(session: &mut BackupSession) -> Result<()> {
    if session.is_in_recovery().await? {
        return Err(Error::new(Kind::Refused, "the server is a standby, whose data directory is not read for backups")
            .hint("Without --data-directory a standby is backed up like any other server."));
    }
    if let Some((grants, database)) = session.missing_rights().await? {
        return Err(Error::new(Kind::Refused, "the role may not begin and end backups")
            .hint(format!("A superuser can allow it, in the database {database}: {grants}")));
    }
    Ok(())
}

fn all_walks(directory: &Path, tablespaces: &[Tablespace], version: &str) -> Result<Vec<(Option<Tablespace>, Walk)>> {
    let mut walks = Vec::with_capacity(tablespaces.len() + 1);
    for tablespace in tablespaces {
        walks.push((Some(tablespace.clone()), directory::walk_tablespace(directory, tablespace, version)?));
    }
    let targets = tablespaces.iter().map(|it| directory.join(format!("pg_tblspc/{}", it.oid)));
    let elsewhere =
        targets.filter_map(|path| fs::metadata(path).ok()).map(|found| (found.dev(), found.ino())).collect();
    walks.push((None, Walk::of_base(directory, elsewhere).map_err(|error| read::unreadable(directory, error))?));
    Ok(walks)
}

/// About how much there is to read.
fn readable_bytes(mut walk: Walk) -> Result<u64> {
    let mut bytes = 0;
    while let Some(found) = walk.next_found().map_err(|(path, error)| read::unreadable(&path, error))? {
        let Found::File(place) = found else { continue };
        match access(&place.path, AccessFlags::R_OK) {
            Ok(()) => bytes += place.metadata.len(),
            // It has gone meanwhile.
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(read::unreadable(&place.path, error.into())),
        }
    }
    Ok(bytes)
}
