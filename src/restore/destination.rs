//! Where a restore would write, and whether it may: looked at before anything is touched.

use super::execute::RestoreOptions;
use super::ground::{self, Ground};
use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use nix::unistd::{Gid, Uid, User};
use serde::Serialize;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// Stands in a data directory from a restore's first moment to its last.
pub const MARKER_FILE: &str = "seawall.restoring";

/// Where everything goes, checked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Destination {
    /// The data directory.
    pub data: PathBuf,
    /// What is in it.
    pub ground: Ground,
    /// Of a cluster that will be replaced, the contents of `pg_control`: no server was started on it as long as they are
    /// the same.
    #[serde(skip)]
    pub(super) control: Option<Vec<u8>>,
    /// Tablespaces of the backup.
    pub tablespaces: Vec<TablespaceDestination>,
    /// Empty directories for tablespaces that replay creates, where there is none yet.
    pub creates: Vec<PathBuf>,
    /// Who will own it all; `None`: we ourselves.
    pub owner: Option<Owner>,
    /// Permissions of directories.
    pub directory_mode: u32,
}

/// Where a tablespace goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TablespaceDestination {
    /// Its OID.
    pub oid: u32,
    /// Where it was.
    pub from: String,
    /// Where it will be. In the data directory for one that was there.
    pub to: PathBuf,
    /// It lies in the data directory, so that there is no link to it.
    pub in_place: bool,
}

/// A user to give files to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Owner {
    /// The user's name.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The number of the user's group.
    pub gid: u32,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner.as_ref().map_or(String::new(), |owner| format!(", owned by {}", owner.name));
        write!(f, "writes       {}, mode {:04o}{owner}", self.data.display(), self.directory_mode)?;
        for tablespace in &self.tablespaces {
            write!(f, "\nwrites       tablespace {} into {}", tablespace.oid, tablespace.to.display())?;
        }
        for path in &self.creates {
            write!(f, "\ncreates      {}, empty", path.display())?;
        }
        Ok(())
    }
}

fn refused(message: String, hint: impl Into<String>) -> Error {
    Error::new(Kind::Refused, message).hint(hint)
}

impl Destination {
    /// Looks whether `plan` can be executed as `options` say. Writes nothing.
    ///
    /// # Errors
    /// [`Kind::Refused`] if something would be overwritten; [`Kind::Usage`] if the options contradict the plan.
    pub fn check(plan: &Plan, options: &RestoreOptions) -> Result<Destination> {
        let owner = find_owner(options.owner.as_deref())?;
        let data = absolute(&options.into)?;
        let ground = Ground::look(&data, plan, options.delta)?;
        let control = match ground {
            Ground::Cluster => ground::control(&data)?,
            Ground::Empty | Ground::Interrupted => None,
        };
        let tablespaces = map_tablespaces(plan, &data, &options.tablespace_map, ground)?;
        let creates = created_tablespaces(plan, &tablespaces)?;
        let mode = plan.document.settings.get("data_directory_mode");
        // The two that a server starts with (`miscinit.c`, `checkDataDir`).
        let directory_mode = if mode.is_some_and(|mode| mode.ends_with("750")) { 0o750 } else { 0o700 };
        Ok(Destination { data, ground, control, tablespaces, creates, owner, directory_mode })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|error| Error::local("find", path, error))?;
    // `a/..` would be another place once `a` is a link.
    match absolute.components().any(|part| part == Component::ParentDir) {
        true => Err(Error::new(Kind::Usage, format!("{} has .. in it", path.display())).hint("Give the path in full.")),
        false => Ok(absolute),
    }
}

/// What a directory holds: `None` if it is not there.
pub(super) fn entries(path: &Path) -> Result<Option<usize>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() && !path.exists() => Err(refused(
            format!("{} is a link that leads nowhere", path.display()),
            "Remove it, or choose another place.",
        )),
        Ok(_) if !path.is_dir() => {
            Err(refused(format!("{} is not a directory", path.display()), "Choose another place."))
        }
        Ok(_) => {
            let entries = std::fs::read_dir(path).map_err(|error| Error::local("read", path, error))?;
            Ok(Some(entries.count()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::local("look at", path, error)),
    }
}

fn map_tablespaces(
    plan: &Plan,
    data: &Path,
    map: &[(PathBuf, PathBuf)],
    ground: Ground,
) -> Result<Vec<TablespaceDestination>> {
    let places = || {
        let places: Vec<&str> = plan.tablespaces.iter().map(|it| it.location.as_str()).collect();
        match places.is_empty() {
            true => "This backup has no tablespaces.".to_owned(),
            false => format!("This backup has tablespaces at {}.", places.join(", ")),
        }
    };
    for (index, (old, _)) in map.iter().enumerate() {
        let is_known = plan.tablespaces.iter().any(|it| Path::new(&it.location) == old);
        if !is_known || map[..index].iter().any(|(earlier, _)| earlier == old) {
            let why = if is_known { "is mapped twice" } else { "is not where a tablespace of this backup was" };
            return Err(Error::new(Kind::Usage, format!("{} {why}", old.display())).hint(places()));
        }
    }
    let mut found: Vec<TablespaceDestination> = Vec::new();
    for tablespace in &plan.tablespaces {
        let from = Path::new(&tablespace.location);
        let oid = tablespace.oid;
        // One that was made inside the data directory (`allow_in_place_tablespaces`) names a relative path.
        let in_place = !from.is_absolute();
        let to = match map.iter().find(|(old, _)| old == from) {
            _ if in_place => data.join("pg_tblspc").join(oid.to_string()),
            Some((_, new)) => absolute(new)?,
            None => absolute(from)?,
        };
        let shown = to.display();
        if !in_place {
            if to.starts_with(data) || data.starts_with(&to) {
                return Err(refused(
                    format!("tablespace {oid} would be at {shown}, and the data directory is {}", data.display()),
                    "Neither may lie in the other: give another place with --tablespace-map OLD=NEW.",
                ));
            }
            if let Some(other) = found.iter().find(|it| it.to.starts_with(&to) || to.starts_with(&it.to)) {
                return Err(refused(
                    format!("tablespaces {} and {oid} would both be at {shown}", other.oid),
                    "Give each a place of its own with --tablespace-map OLD=NEW.",
                ));
            }
            // What the data directory has a link to belongs to it: to one that we made, surely. That of a server may be a
            // copy, with the links of the original to its own tablespaces.
            let link = data.join("pg_tblspc").join(oid.to_string());
            let is_linked = std::fs::read_link(link).is_ok_and(|target| target == to);
            let is_ours = match ground {
                Ground::Empty => false,
                Ground::Interrupted => is_linked,
                Ground::Cluster => is_linked && map.iter().any(|(old, _)| old == from),
            };
            if let Some(1..) = entries(&to)?
                && !is_ours
            {
                let old = &tablespace.location;
                let hint = match is_linked && ground == Ground::Cluster {
                    true => format!(
                        "{} has a link to it, and so has every copy of that directory. If it belongs to this one and to no \
                         other: --tablespace-map {old}={shown}. Otherwise give another place: --tablespace-map {old}=NEW.",
                        data.display()
                    ),
                    false => format!("Give another place: --tablespace-map {old}=NEW."),
                };
                return Err(refused(format!("the directory of tablespace {oid}, {shown}, is not empty"), hint));
            }
        }
        found.push(TablespaceDestination { oid, from: tablespace.location.clone(), to, in_place });
    }
    Ok(found)
}

/// `CREATE TABLESPACE` is replayed at the very path that it once had, and removes what it finds there
/// (`create_tablespace_directories` in `tablespace.c`): on the source's own host the live tablespace. Where there is
/// nothing, it needs an empty directory.
fn created_tablespaces(plan: &Plan, restored: &[TablespaceDestination]) -> Result<Vec<PathBuf>> {
    let mut creates: Vec<PathBuf> = Vec::new();
    for tablespace in &plan.creates {
        let path = PathBuf::from(&tablespace.path);
        let is_ours = restored.iter().any(|it| it.to == path);
        match entries(&path)? {
            Some(1..) => {
                return Err(refused(
                    format!(
                        "the WAL up to the target creates tablespace {} at {}, which exists on this host and is not empty: \
                         replaying it would destroy what is there",
                        tablespace.oid, tablespace.path
                    ),
                    "Restore on another host, or to a target before the tablespace was created, or with a backup taken after \
                     that, whose tablespaces --tablespace-map can move.",
                ));
            }
            None if !is_ours && !creates.contains(&path) => creates.push(path),
            _ => {}
        }
    }
    Ok(creates)
}

fn find_owner(wanted: Option<&str>) -> Result<Option<Owner>> {
    let ours = Uid::effective();
    let Some(name) = wanted else {
        return match ours.is_root() {
            false => Ok(None),
            true => {
                Err(Error::new(Kind::Refused, "PostgreSQL does not run as root, so nothing restored may belong to it")
                    .hint("Say who will run the server: --owner postgres."))
            }
        };
    };
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    let unknown = || Error::new(Kind::Usage, format!("there is no user {name} on this machine"));
    let user = found.map_err(|error| unknown().because(error))?.ok_or_else(unknown)?;
    if user.uid.is_root() {
        return Err(Error::new(Kind::Usage, "--owner is root, and PostgreSQL does not run as root")
            .hint("Name the user that will run the server."));
    }
    if user.uid == ours {
        return Ok(None);
    }
    if !ours.is_root() {
        return Err(Error::new(Kind::Refused, format!("only root can give files to {}", user.name))
            .hint("Run this as root, or as that user without --owner."));
    }
    let gid: Gid = user.gid;
    Ok(Some(Owner { name: user.name, uid: user.uid.as_raw(), gid: gid.as_raw() }))
}
