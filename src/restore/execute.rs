//! A plan, executed: from parts to a data directory that a server can be started on.

use super::command::FetchCommand;
use super::database::{self, Choice, Database};
use super::delta::{self, Comparison};
use super::destination::{Destination, MARKER_FILE};
use super::ground::{self, Ground};
use super::local_wal::{self, LocalWal};
use super::part::{self, CONTROL_FILE, Extracted, Source};
use super::pin::{PIN_FILE, Pin, PinnedTimeline};
use super::plan::{Plan, Stop};
use super::preparation::{self, Preparation};
use super::request::TargetAction;
use super::selection::Selection;
use super::tree::{self, REQUIRED_DIRECTORIES, Tree};
use super::{settings, verify};
use crate::codec::{self, Buffers, Ending, encryption};
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::Manifest;
use crate::repository::{Archive, BackupId, BackupPart, FilePath, Identity, Key, Repository, Subject, hex};
use crate::runtime;
use crate::store::StoreErrorKind;
use crate::wal::Lsn;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// How a restore is executed.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The data directory: missing, empty, or what an interrupted restore of the same cluster left.
    pub into: PathBuf,
    /// It may also be that of a stopped server of the same cluster: what equals the backup by content stays, and
    /// everything else in it goes.
    pub delta: bool,
    /// The databases to restore, by name or OID; all if there is none. The others get zeros for their files.
    pub databases: Vec<String>,
    /// Where tablespaces go that shall not go where they were: old and new directory.
    pub tablespace_map: Vec<(PathBuf, PathBuf)>,
    /// Who will run the server, if not we; root must say.
    pub owner: Option<String>,
    /// What the server will run to fetch WAL.
    pub command: FetchCommand,
    /// How much of the WAL is fetched as well.
    pub wal: LocalWal,
    /// Parts in flight: each takes about 40 MiB of memory.
    pub downloads: usize,
}

impl RestoreOptions {
    /// Restores into `into`, with everything else as most want it.
    pub fn new(into: PathBuf, command: FetchCommand) -> RestoreOptions {
        RestoreOptions {
            into,
            delta: false,
            databases: Vec::new(),
            tablespace_map: Vec::new(),
            owner: None,
            command,
            wal: LocalWal::None,
            downloads: 4,
        }
    }
}

/// What a restore is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// What is there is compared with the backup.
    Comparing,
    /// Parts are fetched, checked and written.
    #[default]
    Fetching,
    /// WAL is fetched, checked and written.
    FetchingWal,
    /// Everything is written and is being made durable.
    Syncing,
}

/// How far a restore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RestoreProgress {
    /// What it is at.
    pub phase: Phase,
    /// Bytes of files that were compared, or of parts that were fetched, checked and written.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// What a restore did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RestoreReport {
    /// The data directory.
    pub data: PathBuf,
    /// Files written, ours not counted.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that were there and equal the backup's.
    pub kept_files: usize,
    /// Bytes in them.
    pub kept_bytes: u64,
    /// Databases that were left empty.
    pub emptied: Vec<Database>,
    /// What to run once it is up: drops them.
    pub statements: Vec<String>,
    /// Where recovery will end.
    pub end_lsn: Lsn,
    /// It stays a standby, and goes on from there.
    pub is_standby: bool,
    /// What the server will run.
    pub restore_command: String,
    /// What the operator must see to.
    pub warnings: Vec<String>,
}

/// Executes `plan`. When this returns, the data directory is complete and durable, and a server started on it recovers
/// to the target. Memory: about 40 MiB for each download, and 100 bytes for each file.
///
/// If this fails or is dropped, what was written stays and no server starts on it: `global/pg_control` is put there last.
/// The next restore of the same cluster into the directory goes on with what is there.
///
/// # Errors
/// As [`Destination::check`], before anything is written; then [`Kind::Damaged`] if what is stored is not what was backed
/// up, [`Kind::Local`] if the disk refuses, or what the store says.
pub async fn execute(
    repository: &Repository,
    plan: &Plan,
    options: &RestoreOptions,
    progress: watch::Sender<RestoreProgress>,
) -> Result<RestoreReport> {
    let restore_command = options.command.line()?;
    let Preparation { destination, manifest, comparison, databases, zeros, selection, parts } =
        preparation::prepare(repository, plan, options, &progress).await?;
    let tree = Arc::new(Tree::new(&destination));
    let again = |error: Error| match (error.hint_text(), error.kind()) {
        (None, Kind::Store | Kind::Local) => {
            error.hint("No server starts on what is there so far. The same command again goes on with it.")
        }
        _ => error,
    };
    let (kept_files, kept_bytes) = (comparison.kept.len(), comparison.kept_bytes);
    let mut warnings = warnings(plan, options, &destination);
    warnings.extend(comparison.warnings.iter().cloned());
    prepare(&tree, plan, &destination, comparison, zeros, options.delta).await.map_err(again)?;
    let extracted =
        fetch_parts(repository, plan, parts, selection, options.downloads, &tree, &progress).await.map_err(again)?;
    let (files, bytes) = (manifest.files.len(), manifest.files.values().map(|check| check.size_bytes).sum());
    let Extracted { pieces, control } = extracted;
    runtime::blocking(move || verify::verify(&manifest, pieces)).await??;
    let control = control.ok_or_else(|| {
        Error::new(Kind::Damaged, format!("backup {} has no {CONTROL_FILE}", plan.backup.id))
            .hint("Try an older backup (`seawall list`).")
    })?;
    // A standby pins nothing, and follows.
    let mut pin = (plan.action != TargetAction::Follow).then(|| pin(plan));
    if let Some(pin) = &mut pin {
        fetch_wal(repository, plan, options.wal, pin, &tree, &progress).await.map_err(again)?;
    }
    progress.send_modify(|progress| progress.phase = Phase::Syncing);
    let mut settings = settings::settings(plan, restore_command.clone());
    if databases.is_some() {
        settings.push((database::IGNORE_INVALID_PAGES.to_owned(), "on".to_owned()));
    }
    warnings.extend(finish(&tree, plan.action, &destination, settings, pin, control).await.map_err(again)?);
    Ok(RestoreReport {
        data: destination.data,
        files,
        bytes,
        kept_files,
        kept_bytes,
        statements: databases.as_ref().map(Choice::statements).unwrap_or_default(),
        emptied: databases.map(|choice| choice.emptied).unwrap_or_default(),
        end_lsn: plan.end_lsn,
        is_standby: plan.action == TargetAction::Follow,
        restore_command,
        warnings,
    })
}

/// Fetches what PostgreSQL says was in the backup.
pub(super) async fn fetch_manifest(repository: &Repository, plan: &Plan) -> Result<Manifest> {
    let name = repository.layout.name_in(&Key::BackupManifest(plan.backup.id.clone()), plan.document.ending);
    let stored = repository.store.get(&name, None).await.map_err(|error| gone(error, &name))?.collect().await?;
    let (document, system_identifier) = (plan.document.clone(), plan.system_identifier);
    let identities = repository.layout.form().identities.clone();
    runtime::blocking(move || {
        let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
        let opened = encryption::open_whole(&identities, stored);
        let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, MANIFEST_BYTES_MAX));
        let decoded = decoded.map_err(|error| match error.is_ours() {
            true => Error::from(error).context(&name),
            false => damaged("is damaged").because(error),
        })?;
        let identity = Identity::parse(&name, decoded.identity.as_deref())?;
        identity.check(&name, system_identifier, &Subject::Manifest { backup: document.id.clone() })?;
        if hex(&Sha256::digest(&decoded.plain)) != document.manifest_sha256 {
            return Err(damaged("does not have the SHA-256 that backup.json says"));
        }
        Manifest::parse(&decoded.plain).map_err(|error| damaged("cannot be read").because(error))
    })
    .await?
}

/// The largest manifest that is read: ten million files.
const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// Something that `backup.json` names and that is not there is damage, not an answer.
fn gone(error: crate::store::StoreError, name: &str) -> Error {
    match error.kind {
        StoreErrorKind::NotFound => Error::new(Kind::Damaged, format!("{name} is missing, and the backup needs it"))
            .hint("Was it deleted by somebody or by a lifecycle rule? Try an older backup (`seawall list`)."),
        _ => error.into(),
    }
}

/// Makes room and the places to write to, the marker first.
async fn prepare(
    tree: &Arc<Tree>,
    plan: &Plan,
    destination: &Destination,
    comparison: Comparison,
    zeros: Vec<(FilePath, u64)>,
    delta: bool,
) -> Result<()> {
    let (tree, plan, destination) = (Arc::clone(tree), plan.clone(), destination.clone());
    runtime::blocking(move || {
        let data = tree.data();
        tree.make_directory(data)?;
        tree.lock()?;
        // Nobody else is at it, and nobody was since it was looked at.
        if Ground::look(data, &plan, delta)? != destination.ground {
            let text = format!("{} has changed since it was looked at", data.display());
            return Err(Error::new(Kind::Busy, text).hint("Is another restore, or a server, at work there?"));
        }
        tree.put(&data.join(MARKER_FILE), ground::marker(&plan).as_bytes(), tree.file_mode())?;
        if destination.ground != Ground::Empty {
            delta::clear(&tree, &comparison)?;
        }
        for name in REQUIRED_DIRECTORIES {
            tree.make_directory(&data.join(name))?;
        }
        for tablespace in &destination.tablespaces {
            tree.make_directory(&tablespace.to)?;
            if !tablespace.in_place {
                let link = data.join("pg_tblspc").join(tablespace.oid.to_string());
                tree.make_link(&link, &tablespace.to)?;
            }
        }
        destination.creates.iter().try_for_each(|path| tree.make_directory(path))?;
        zeros.iter().try_for_each(|(path, bytes)| tree.put_zeros(&tree.path_of(path), *bytes))
    })
    .await?
}

/// Fetches and writes parts, several at a time.
async fn fetch_parts(
    repository: &Repository,
    plan: &Plan,
    parts: Vec<BackupPart>,
    selection: Selection,
    downloads: usize,
    tree: &Arc<Tree>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<Extracted> {
    let total_bytes = parts.iter().map(|part| part.stored_bytes).sum();
    progress.send_replace(RestoreProgress { phase: Phase::Fetching, done_bytes: 0, total_bytes });
    let source = Arc::new(Source {
        system_identifier: plan.system_identifier,
        backup: plan.backup.id.clone(),
        ending: plan.document.ending,
        identities: repository.layout.form().identities.clone(),
        tablespaces: plan.tablespaces.iter().map(|tablespace| tablespace.oid).collect(),
        selection,
    });
    let buffers = Buffers::new(downloads.max(1));
    let parts = stream::iter(parts).map(|part| {
        let (source, tree, buffers) = (Arc::clone(&source), Arc::clone(tree), buffers.clone());
        async move {
            let bytes = part.stored_bytes;
            fetch_part(repository, part, source, tree, buffers).await.map(|extracted| (bytes, extracted))
        }
    });
    let mut parts = parts.buffer_unordered(downloads.max(1));
    let mut all = Extracted::default();
    while let Some((bytes, extracted)) = parts.try_next().await? {
        progress.send_modify(|progress| progress.done_bytes += bytes);
        all.pieces.extend(extracted.pieces);
        all.control = all.control.or(extracted.control);
    }
    Ok(all)
}

async fn fetch_part(
    repository: &Repository,
    part: BackupPart,
    source: Arc<Source>,
    tree: Arc<Tree>,
    buffers: Buffers,
) -> Result<Extracted> {
    let (name, _, stored) = part_bytes(repository, &part, &source.backup, source.ending).await?;
    runtime::blocking(move || part::extract(&name, &part, stored, &source, &tree, &buffers)).await?
}

/// A part as it is stored: its name, its archive, its bytes.
pub(super) async fn part_bytes(
    repository: &Repository,
    part: &BackupPart,
    backup: &BackupId,
    ending: Ending,
) -> Result<(String, Archive, Bytes)> {
    let archive = Archive::parse(&part.archive)
        .ok_or_else(|| Error::new(Kind::Damaged, format!("backup.json names a part of {:?}", part.archive)))?;
    let name = repository.layout.name_in(&Key::BackupPart(backup.clone(), archive, part.number), ending);
    let stream = repository.store.get(&name, None).await.map_err(|error| gone(error, &name))?;
    // Before it fills the memory.
    if stream.head.info.bytes != part.stored_bytes {
        let (found, expected) = (stream.head.info.bytes, part.stored_bytes);
        return Err(Error::new(Kind::Damaged, format!("{name} has {found} bytes instead of {expected}")).hint(
            "Is there another copy of the bucket (versions, replication), or an older backup (`seawall list`)?",
        ));
    }
    Ok((name, archive, stream.collect().await?))
}

/// Writes what makes a server recover, makes everything durable, and puts `pg_control` there. Returns warnings.
async fn finish(
    tree: &Arc<Tree>,
    action: TargetAction,
    destination: &Destination,
    settings: Vec<(String, String)>,
    pin: Option<Pin>,
    control: (Vec<u8>, u32),
) -> Result<Vec<String>> {
    let (tree, destination) = (Arc::clone(tree), destination.clone());
    let signal = match action {
        TargetAction::Follow => "standby.signal",
        _ => "recovery.signal",
    };
    let pin = pin.map(|pin| pin.to_json()).transpose()?;
    runtime::blocking(move || {
        let (data, mode) = (tree.data(), tree.file_mode());
        let warnings = write_configuration(&tree, &settings)?;
        if let Some(pin) = pin {
            tree.put(&data.join(PIN_FILE), &pin, mode)?;
        }
        tree.put(&data.join(signal), b"", mode)?;
        for tablespace in destination.tablespaces.iter().filter(|tablespace| !tablespace.in_place) {
            tree::sync_all(&tablespace.to)?;
        }
        tree::sync_all(data)?;
        // The commit point: with this file there, a server starts. Everything else is there, whole and durable.
        let (bytes, mode) = control;
        tree.put(&data.join(CONTROL_FILE), &bytes, mode)?;
        let marker = data.join(MARKER_FILE);
        std::fs::remove_file(&marker).map_err(|error| Error::local("remove", &marker, error))?;
        tree::sync_directory(data)?;
        Ok(warnings)
    })
    .await?
}

/// The files that the plan proved to be there: a segment with a switch point in it is the child's, from its first byte.
fn pin(plan: &Plan) -> Pin {
    let path = plan.wal.iter();
    let path = path.map(|need| PinnedTimeline { timeline: need.timeline, start: need.start, end: need.end });
    Pin {
        system_identifier: plan.system_identifier.to_string(),
        path: path.collect(),
        local_end: Lsn(0),
        segment_bytes: plan.segment_bytes,
    }
}

/// Brings as much WAL as is wanted, and says so in the pin.
async fn fetch_wal(
    repository: &Repository,
    plan: &Plan,
    wanted: LocalWal,
    pin: &mut Pin,
    tree: &Arc<Tree>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<()> {
    let segments = wanted.segments(plan)?;
    let Some(last) = segments.last().copied() else { return Ok(()) };
    let total_bytes = segments.len() as u64 * last.size.bytes();
    progress.send_replace(RestoreProgress { phase: Phase::FetchingWal, done_bytes: 0, total_bytes });
    let done = |bytes| progress.send_modify(|progress| progress.done_bytes += bytes);
    local_wal::bring(repository, pin, segments, tree, &done).await?;
    pin.local_end = last.end();
    Ok(())
}

fn write_configuration(tree: &Tree, settings: &[(String, String)]) -> Result<Vec<String>> {
    let (data, mode) = (tree.data(), tree.file_mode());
    let read = |name: &str| match std::fs::read(data.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::local("read", &data.join(name), error)),
    };
    let mut warnings = Vec::new();
    let auto_conf = read("postgresql.auto.conf")?.unwrap_or_default();
    tree.put(&data.join("postgresql.auto.conf"), &settings::auto_conf(&auto_conf, settings), mode)?;
    let mut missing = Vec::new();
    match read("postgresql.conf")? {
        None => missing.push(("postgresql.conf", settings::MINIMAL_CONF)),
        Some(text) => {
            if let Some((text, names)) = settings::disarm(&text) {
                tree.put(&data.join("postgresql.conf"), &text, mode)?;
                warnings.push(format!("commented out of postgresql.conf: {}", names.join(", ")));
            }
        }
    }
    for (name, text) in [("pg_hba.conf", settings::MINIMAL_HBA), ("pg_ident.conf", settings::MINIMAL_IDENT)] {
        if read(name)?.is_none() {
            missing.push((name, text));
        }
    }
    for (name, text) in &missing {
        tree.put(&data.join(name), text.as_bytes(), mode)?;
    }
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
        warnings.push(format!(
            "the backup holds no {}: minimal ones were written; take over what the source's say (above all \
             shared_preload_libraries, which recovery may need, and who may connect)",
            names.join(", ")
        ));
    }
    Ok(warnings)
}

/// What the operator must see to, as far as it is known before.
fn warnings(plan: &Plan, options: &RestoreOptions, destination: &Destination) -> Vec<String> {
    let mut warnings: Vec<String> = options.command.warning().into_iter().collect();
    if let Some(owner) = &destination.owner {
        let paths = std::iter::once(&options.command.executable).chain(&options.command.reads);
        for path in paths.filter(|path| !is_open_to(path, owner.uid, owner.gid)) {
            warnings.push(format!("{} may not use {}, which restore_command needs", owner.name, path.display()));
        }
    }
    if plan.stop == Stop::EndOfWal && matches!(plan.action, TargetAction::Pause | TargetAction::Shutdown) {
        warnings.push("the cluster opens at the end of WAL: PostgreSQL cannot pause where it has no target".to_owned());
    }
    warnings
}

/// True if a user can reach and read `path`, as far as permission bits tell.
fn is_open_to(path: &Path, uid: u32, gid: u32) -> bool {
    path.ancestors().all(|step| {
        let Ok(found) = std::fs::metadata(step) else { return false };
        let shift = match (found.uid() == uid, found.gid() == gid) {
            (true, _) => 6,
            (_, true) => 3,
            _ => 0,
        };
        // Directories are searched, files are read.
        let wanted = if found.is_dir() { 0o1 } else { 0o4 };
        found.permissions().mode() >> shift & wanted != 0
    })
}
