//! What a restore finds in the directory that it shall write to. Reads a few files there, writes nothing.

use super::destination::{MARKER_FILE, entries};
use super::part::{CONTROL_FILE, HELD_BYTES_MAX};
use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// What is in a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ground {
    /// Nothing.
    Empty,
    /// What a restore of this cluster left that was not completed: no server starts on it, and a restore goes on with it.
    Interrupted,
    /// A stopped server of this cluster, to be replaced by what the backup has.
    Cluster,
}

/// What the marker says in front of the cluster's number.
const MARKED_CLUSTER: &str = "system identifier: ";

/// The marker's text: for people, but for its last line.
pub(super) fn marker(plan: &Plan) -> String {
    format!(
        "seawall restores backup {} here. While this file is here, the restore is not complete.\n{MARKED_CLUSTER}{}\n",
        plan.backup.id, plan.system_identifier
    )
}

impl Ground {
    /// Looks whether `plan` may be executed in `data`; with `delta`, also over a stopped server of the same cluster.
    ///
    /// # Errors
    /// [`Kind::Refused`] if what is there is, or may be, of use to anybody.
    pub(super) fn look(data: &Path, plan: &Plan, delta: bool) -> Result<Ground> {
        let Some(count @ 1..) = entries(data)? else {
            return Ok(Ground::Empty);
        };
        let shown = data.display();
        if std::fs::symlink_metadata(data.join("postmaster.pid")).is_ok() {
            return Err(refused(
                format!("a server runs in {shown}, or did until it was killed: there is a postmaster.pid"),
                "Restore into another directory. To replace this cluster, stop it first; if it surely does not run, here or in \
                 another container or host, remove postmaster.pid.",
            ));
        }
        let has_control = std::fs::symlink_metadata(data.join(CONTROL_FILE)).is_ok();
        match (read_start(&data.join(MARKER_FILE), 4096)?, has_control) {
            (Some(marker), false) => check_marker(data, &marker, plan).map(|()| Ground::Interrupted),
            (Some(_), true) if !delta => Err(refused(
                format!("{shown} has a cluster in it, and a restore into it was not completed"),
                "Either it was about to replace that cluster, or it had just ended. --delta replaces what is there; see with \
                 --dry-run what that means.",
            )),
            _ if delta => check_cluster(data, plan).map(|()| Ground::Cluster),
            _ => {
                let hint = match check_cluster(data, plan) {
                    Ok(()) => {
                        "It is a data directory of this very cluster: --delta replaces what differs in it (see with --dry-run \
                         what that means). Otherwise choose another directory, or move away what is there."
                    }
                    Err(_) => {
                        "A restore never writes over anything: choose another directory, or move away what is there."
                    }
                };
                Err(refused(format!("{shown} is not empty: it has {count} entries"), hint))
            }
        }
    }
}

/// The contents of `pg_control`.
pub(super) fn control(data: &Path) -> Result<Option<Vec<u8>>> {
    read_start(&data.join(CONTROL_FILE), HELD_BYTES_MAX)
}

fn refused(message: String, hint: &str) -> Error {
    Error::new(Kind::Refused, message).hint(hint)
}

fn check_marker(data: &Path, marker: &[u8], plan: &Plan) -> Result<()> {
    let marker = String::from_utf8_lossy(marker);
    let cluster = marker.lines().find_map(|line| line.strip_prefix(MARKED_CLUSTER));
    if cluster == Some(plan.system_identifier.to_string().as_str()) {
        return Ok(());
    }
    let whose = cluster.map_or("does not say of which cluster".to_owned(), |other| format!("was of cluster {other}"));
    let shown = data.display();
    Err(refused(
        format!(
            "a restore into {shown} was not completed, and {whose}; this one is of cluster {}",
            plan.system_identifier
        ),
        "Empty that directory, and those of its tablespaces, or choose another one.",
    ))
}

/// Fails unless `data` is a data directory of the plan's cluster and major version.
fn check_cluster(data: &Path, plan: &Plan) -> Result<()> {
    let shown = data.display();
    let hint = "--delta replaces a stopped server of the same cluster, and nothing else: is --into right?";
    let version = read_start(&data.join("PG_VERSION"), 16)?;
    let control = read_start(&data.join(CONTROL_FILE), 8)?;
    // `ControlFileData` begins with the system identifier, in the byte order of the machine (`pg_control.h`).
    let system: Option<[u8; 8]> = control.and_then(|bytes| bytes.try_into().ok());
    let (Some(version), Some(system)) = (version, system) else {
        return Err(refused(format!("{shown} is no data directory: it has no PG_VERSION or no {CONTROL_FILE}"), hint));
    };
    let found = u64::from_ne_bytes(system);
    if found != plan.system_identifier {
        let text = format!("{shown} is of cluster {found}, and the backup is of cluster {}", plan.system_identifier);
        return Err(refused(text, hint));
    }
    let (version, major) = (String::from_utf8_lossy(&version), plan.postgres_version / 10_000);
    if version.trim() != major.to_string() {
        let text = format!("{shown} is of PostgreSQL {}, and the backup is of {major}", version.trim());
        return Err(refused(text, hint));
    }
    Ok(())
}

/// The first bytes of a regular file; `None` if there is none.
fn read_start(path: &Path, bytes: u64) -> Result<Option<Vec<u8>>> {
    let failed = |error| Error::local("read", path, error);
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(bytes).read_to_end(&mut start)).map_err(failed)?;
    Ok(Some(start))
}
