//! Who a throwaway server runs as: PostgreSQL refuses to run as root. May use `error`.

use crate::error::{Error, Kind, Result};
use nix::unistd::{Gid, Uid, User};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How variables with secrets begin that open something else than the store, or say where they are.
const SECRETS: [&str; 2] = ["SEAWALL_PASSWORD", "SEAWALL_NOTIFY_"];

/// The user that servers run as: ourselves, or, when we are root, one without privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unprivileged {
    name: String,
    uid: Uid,
    gid: Gid,
    /// We are root and step down.
    step_down: bool,
}

impl Unprivileged {
    /// Ourselves; when we are root, `postgres`, or where there is no such user, `nobody`.
    ///
    /// # Errors
    /// [`Kind::Local`] if we are root and this machine has neither.
    pub fn find() -> Result<Unprivileged> {
        let ours = Uid::effective();
        if !ours.is_root() {
            return Ok(Unprivileged { name: name_of(ours), uid: ours, gid: Gid::effective(), step_down: false });
        }
        let known = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        match known {
            Some(user) => Ok(Unprivileged { name: user.name, uid: user.uid, gid: user.gid, step_down: true }),
            None => {
                Err(Error::new(Kind::Local, "PostgreSQL does not run as root, and there is no user to step down to")
                    .hint("Create a user `postgres`, or run this as an ordinary user."))
            }
        }
    }

    /// The owner of an existing data directory: PostgreSQL runs as no other.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory cannot be looked at, is root's, or is somebody's whom we cannot become.
    pub fn owner_of(data: &Path) -> Result<Unprivileged> {
        let metadata = std::fs::metadata(data).map_err(|error| Error::local("look at", data, error))?;
        let (uid, ours) = (Uid::from_raw(metadata.uid()), Uid::effective());
        if uid.is_root() {
            let cannot = format!("{} belongs to root, and PostgreSQL does not run as root", data.display());
            return Err(Error::new(Kind::Local, cannot).hint("Give the directory to the user that is to run it."));
        }
        if uid != ours && !ours.is_root() {
            let cannot = format!("{} belongs to {}, and we are {}", data.display(), name_of(uid), name_of(ours));
            return Err(Error::new(Kind::Local, cannot).hint("Run this as its owner, or as root."));
        }
        // The user's own group, as its log-in would have it; the directory's where the user has no entry.
        let gid = User::from_uid(uid).ok().flatten().map_or(Gid::from_raw(metadata.gid()), |user| user.gid);
        Ok(Unprivileged { name: name_of(uid), uid, gid, step_down: uid != ours })
    }

    /// The user's name; its number where it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` as this user, without root's further groups, and without those secrets among our variables that open
    /// something else than the store.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let begins = |with: &&str| name.as_encoded_bytes().starts_with(with.as_bytes());
            if name == "PGPASSWORD" || name == "SEAWALL_PG" || SECRETS.iter().any(begins) {
                command.env_remove(name);
            }
        }
        if self.step_down {
            command.gid(self.gid.as_raw()).uid(self.uid.as_raw());
        }
        command
    }

    /// Gives one file or directory to this user; a symbolic link itself, not what it points at.
    ///
    /// # Errors
    /// [`Kind::Local`] if the system refuses.
    pub fn give(&self, path: &Path) -> Result<()> {
        if !self.step_down {
            return Ok(());
        }
        lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .map_err(|error| Error::local("change the owner of", path, error))
    }

    /// Gives a directory and all that is in it to this user. Follows no symbolic link.
    ///
    /// # Errors
    /// [`Kind::Local`] if a directory cannot be read or the system refuses.
    pub fn give_all(&self, path: &Path) -> Result<()> {
        self.give(path)?;
        if path.is_symlink() || !path.is_dir() {
            return Ok(());
        }
        let entries = std::fs::read_dir(path).map_err(|error| Error::local("read", path, error))?;
        for entry in entries {
            self.give_all(&entry.map_err(|error| Error::local("read", path, error))?.path())?;
        }
        Ok(())
    }

    /// Makes a directory, if it is not there yet, that belongs to this user and opens to nobody else (mode 0700).
    ///
    /// # Errors
    /// [`Kind::Local`] if it cannot be made, or if this user could not enter it for a directory above.
    pub fn create_directory(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path).map_err(|error| Error::local("create", path, error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| Error::local("change the mode of", path, error))?;
        self.give(path)?;
        self.check_way(path)
    }

    /// Makes sure that every directory above `path` lets this user pass.
    ///
    /// # Errors
    /// [`Kind::Local`], naming the directory that does not let it pass.
    pub fn check_way(&self, path: &Path) -> Result<()> {
        if !self.step_down {
            return Ok(());
        }
        let whole = path.canonicalize().map_err(|error| Error::local("look at", path, error))?;
        for above in whole.ancestors().skip(1) {
            let metadata = std::fs::metadata(above).map_err(|error| Error::local("look at", above, error))?;
            if !self.may_execute(&metadata) {
                let cannot = format!("user {} cannot enter {}", self.name, above.display());
                return Err(Error::new(Kind::Local, cannot)
                    .hint(format!("{} is behind it: choose a place below /tmp or /var/lib.", path.display())));
            }
        }
        Ok(())
    }

    /// `program`, if this user can run it where it is; otherwise a copy of it in `directory`, which must be one that the
    /// user can enter. For a `restore_command` whose program was built below `/root`.
    ///
    /// # Errors
    /// [`Kind::Local`] if the copy cannot be made.
    pub fn runnable(&self, program: &Path, directory: &Path) -> Result<PathBuf> {
        let metadata = std::fs::metadata(program).map_err(|error| Error::local("look at", program, error))?;
        if !self.step_down || (self.may_execute(&metadata) && self.check_way(program).is_ok()) {
            return Ok(program.to_owned());
        }
        let copy = directory.join(program.file_name().unwrap_or_default());
        // The directory is this user's, and what has the name there may lead anywhere: it is replaced, and never opened.
        let cannot = |error| Error::local("write", &copy, error);
        let path = directory.join(format!("program-{}", std::process::id()));
        let mut new = File::options().write(true).create_new(true).open(&path).map_err(cannot)?;
        let written = File::open(program)
            .and_then(|mut program| std::io::copy(&mut program, &mut new))
            .and_then(|_| new.set_permissions(std::fs::Permissions::from_mode(0o700)))
            .and_then(|()| fchown(&new, Some(self.uid.as_raw()), Some(self.gid.as_raw())))
            .and_then(|()| std::fs::rename(&path, &copy));
        written.map_err(cannot)?;
        Ok(copy)
    }

    /// Its number.
    pub(super) fn uid(&self) -> Uid {
        self.uid
    }

    /// What the mode bits say (execute a file, pass a directory); this user has no further groups.
    fn may_execute(&self, metadata: &std::fs::Metadata) -> bool {
        let bit = if metadata.uid() == self.uid.as_raw() {
            0o100
        } else if metadata.gid() == self.gid.as_raw() {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }
}

fn name_of(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("with number {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stepping_down_to(uid: u32) -> Unprivileged {
        Unprivileged { name: "them".into(), uid: Uid::from_raw(uid), gid: Gid::from_raw(uid), step_down: true }
    }

    #[test]
    fn nobody_here_is_ever_root() {
        let user = Unprivileged::find().unwrap();
        assert!(!user.uid.is_root(), "{user:?}");
        assert_eq!(user.step_down, Uid::effective().is_root());
    }

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let (closed, deep) = (root.path().join("closed"), root.path().join("closed/a/b"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let error = stepping_down_to(4_000_000).check_way(&deep).unwrap_err();
        assert!(error.to_string().contains(&format!("cannot enter {}", closed.display())), "{error}");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
        stepping_down_to(4_000_000).check_way(&deep).unwrap();
    }

    #[test]
    fn a_program_out_of_reach_is_copied_and_one_within_reach_is_not() {
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let program = root.path().join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let user = Unprivileged::find().unwrap();
        let near = tempfile::tempdir().unwrap();
        user.create_directory(near.path()).unwrap();
        let ran = user.runnable(&program, near.path()).unwrap();
        assert_eq!(ran.starts_with(near.path()), Uid::effective().is_root(), "{}", ran.display());
        assert!(user.command(&ran).current_dir("/").status().unwrap().success());
        assert_eq!(user.runnable(&ran, root.path()).unwrap(), ran);
        // Again, it is replaced, and so is what somebody has put in its place; what a link leads to is not.
        let ours = root.path().join("ours");
        std::fs::write(&ours, "ours").unwrap();
        let copy = near.path().join("program");
        let _ = std::fs::remove_file(&copy);
        std::os::unix::fs::symlink(&ours, &copy).unwrap();
        let ran = user.runnable(&program, near.path()).unwrap();
        assert!(user.command(&ran).current_dir("/").status().unwrap().success());
        assert_eq!(std::fs::read_to_string(&ours).unwrap(), "ours");
    }

    #[test]
    fn a_data_directory_of_root_is_refused() {
        let error = Unprivileged::owner_of(Path::new("/etc")).unwrap_err();
        assert!(error.to_string().contains("belongs to root"), "{error}");
    }
}
