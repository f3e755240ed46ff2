//! A plan, executed: from parts to a data directory that a server can be started on.

use super::command::FetchCommand;
use super::database::{self, Choice, Database};
use super::delta::{self, Comparison};
use super::destination::{Destination, MARKER_FILE};
use super::ground::{self, Ground};
use super::levels::Levels;
use super::local_wal::{self, LocalWal};
use super::number_set::NumberSet;
use super::part::CONTROL_FILE;
use super::pin::{PIN_FILE, Pin, PinnedTimeline};
use super::plan::{Plan, Stop};
use super::preparation::{self, Preparation};
use super::request::TargetAction;
use super::settings;
use super::tree::{self, REQUIRED_DIRECTORIES, Tree, WAL_DIRECTORY};
use super::verify::Verification;
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::Manifest;
use crate::repository::{Repository, WalReader};
use crate::runtime;
use crate::wal::Lsn;
use serde::Serialize;
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
/// to the target. Memory: about 40 MiB for each download, and 100 bytes for each file; where the backup is an incremental
/// one, some 300 bytes for each file, and 16 KiB for each GB of those of which a part has changed.
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
    let destination = Destination::check(plan, options)?;
    let tree = Arc::new(Tree::new(&destination));
    if destination.ground != Ground::Empty {
        // What is compared now must still be there when it is kept.
        tree.lock()?;
    }
    let prepared = preparation::prepare(repository, plan, options, destination, &progress).await?;
    let (files, bytes, selection) = (prepared.fetched_files(), prepared.written_bytes(plan), prepared.selection());
    let Preparation { destination, manifest, comparison, databases, zeros, skipped, parts, .. } = prepared;
    let again = |error: Error| match (error.hint_text(), error.kind()) {
        (None, Kind::Store | Kind::Local) => {
            error.hint("No server starts on what is there so far. The same command again goes on with it.")
        }
        _ => error,
    };
    let (kept_files, kept_bytes) = (comparison.kept.len(), comparison.kept_bytes);
    let mut warnings = warnings(plan, options, &destination);
    warnings.extend(comparison.warnings.iter().cloned());
    prepare(&tree, plan, &destination, &manifest, (comparison, zeros), options).await.map_err(again)?;
    let levels = Levels { repository, plan, downloads: options.downloads, tree: &tree, progress: &progress };
    let verification = Verification::of_all(manifest, &skipped);
    let control = levels.write(verification, parts, selection).await.map_err(again)?;
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

/// Makes room and the places to write to, the marker first.
async fn prepare(
    tree: &Arc<Tree>,
    plan: &Plan,
    destination: &Destination,
    manifest: &Arc<Manifest>,
    (comparison, zeros): (Comparison, NumberSet),
    options: &RestoreOptions,
) -> Result<()> {
    let (tree, plan, destination, options) = (Arc::clone(tree), plan.clone(), destination.clone(), options.clone());
    let manifest = Arc::clone(manifest);
    runtime::blocking(move || {
        let data = tree.data();
        tree.make_directory(data)?;
        tree.lock()?;
        // No restore is at it, and nobody was since it was looked at.
        if Destination::check(&plan, &options)? != destination {
            let text = format!("{} has changed since it was looked at", data.display());
            return Err(Error::new(Kind::Busy, text).hint("Is another restore, or a server, at work there?"));
        }
        tree.put(&data.join(MARKER_FILE), ground::marker(&plan).as_bytes(), tree.file_mode())?;
        if destination.ground != Ground::Empty {
            delta::clear(&tree, &manifest.files, &comparison)?;
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
        let mut zeros = zeros.iter().filter_map(|place| manifest.files.at(place));
        zeros.try_for_each(|(path, check)| tree.put_zeros(&tree.path_of(path), check.size_bytes))
    })
    .await?
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
        let wal = data.join(WAL_DIRECTORY);
        if wal.is_symlink() {
            tree::sync_all(&wal)?;
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
    let reader = WalReader::new(repository.clone(), plan.system_identifier);
    local_wal::bring(&reader, pin, segments, tree, &done).await?;
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
