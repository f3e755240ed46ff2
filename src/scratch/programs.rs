//! Where PostgreSQL's server programs are on this machine. May use `error`.

use crate::error::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the directory of the programs and goes before every other place.
const OVERRIDE: &str = "SEAWALL_PG_BIN";

/// A directory with `initdb` and `postgres` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The directory that holds them.
    pub bin: PathBuf,
    /// The major version, such as 17.
    pub version: u32,
}

impl Programs {
    /// Finds the programs of major version `wanted`, or of any: in `SEAWALL_PG_BIN` if that is set and nowhere else, then in
    /// `PATH`, then where Debian and Ubuntu (`/usr/lib/postgresql/17/bin`) and the RPM packages (`/usr/pgsql-17/bin`) put
    /// them, newest first.
    ///
    /// # Errors
    /// [`Kind::Local`] if there are none, with how to install them.
    pub fn find(wanted: Option<u32>) -> Result<Programs> {
        let named = std::env::var_os(OVERRIDE).map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path)
            .chain(versioned(Path::new("/usr/lib/postgresql"), ""))
            .chain(versioned(Path::new("/usr"), "pgsql-"));
        search(wanted, named, places)
    }

    /// The programs in the directory `bin`.
    ///
    /// # Errors
    /// [`Kind::Local`] if `initdb` or `postgres` is missing there, does not start, or says no version.
    pub fn at(bin: PathBuf) -> Result<Programs> {
        for name in ["initdb", "postgres"] {
            if !bin.join(name).is_file() {
                return Err(Error::new(Kind::Local, format!("no program `{name}` in {}", bin.display())));
            }
        }
        let postgres = bin.join("postgres");
        let said =
            Command::new(&postgres).arg("--version").output().map_err(|error| Error::local("run", &postgres, error))?;
        let text = String::from_utf8_lossy(&said.stdout);
        let Some(version) = major_version(&text) else {
            let cannot = format!("{} does not say its version", postgres.display());
            let stderr = String::from_utf8_lossy(&said.stderr);
            return Err(Error::new(Kind::Local, cannot).because(format!("it wrote {:?}", text.trim()) + stderr.trim()));
        };
        Ok(Programs { bin, version })
    }

    /// The directory of client programs (`pg_dump`, `pg_restore`) for a server of this version: that of the server's own,
    /// or else of the oldest ones on this machine that are not older than the server, which `pg_dump` refuses.
    ///
    /// # Errors
    /// [`Kind::Local`] if there are none, with how to install them.
    pub fn clients(&self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Packages first: in Debian's PATH is a script that chooses a version by itself.
        let places = std::iter::once(self.bin.clone())
            .chain(versioned(Path::new("/usr/lib/postgresql"), ""))
            .chain(versioned(Path::new("/usr"), "pgsql-"))
            .chain(std::env::split_paths(&path));
        let found = places.filter_map(|bin| Some((client_version(&bin)?, bin)));
        let fitting = found.filter(|(version, _)| *version >= self.version);
        let oldest = fitting.min_by_key(|(version, _)| *version);
        oldest.map(|(_, bin)| bin).ok_or_else(|| {
            let what = format!("no `pg_dump` and `pg_restore` of PostgreSQL {} or later on this machine", self.version);
            Error::new(Kind::Local, what).hint(format!(
                "`apt-get install postgresql-client-{}` brings them; or put their directory into PATH. CSV needs neither.",
                self.version
            ))
        })
    }

    /// The path of the program `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The first place that holds the wanted programs. A directory named by hand is the only place looked at.
fn search(wanted: Option<u32>, named: Option<PathBuf>, places: impl IntoIterator<Item = PathBuf>) -> Result<Programs> {
    if let Some(bin) = named {
        let hint = format!("{OVERRIDE} must name the directory that holds `initdb` and `postgres`.");
        let found = Programs::at(bin).map_err(|error| error.hint(hint))?;
        return match wanted {
            Some(wanted) if wanted != found.version => {
                let cannot = format!("{OVERRIDE} holds PostgreSQL {}, not {wanted}", found.version);
                Err(Error::new(Kind::Local, cannot))
            }
            _ => Ok(found),
        };
    }
    let usable = places.into_iter().filter_map(|bin| Programs::at(bin).ok());
    let mut fitting = usable.filter(|found| wanted.is_none_or(|wanted| wanted == found.version));
    fitting.next().ok_or_else(|| {
        let (what, package) = match wanted {
            Some(version) => (format!("PostgreSQL {version}"), format!("postgresql-{version}")),
            None => ("PostgreSQL".to_owned(), "postgresql".to_owned()),
        };
        Error::new(Kind::Local, format!("the server programs of {what} (`initdb`, `postgres`) are not on this machine"))
            .hint(format!("`apt-get install {package}` brings them; or name their directory in {OVERRIDE}."))
    })
}

/// The `bin` directories under `parent` that carry a version behind `prefix`, newest first.
fn versioned(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, bin)| bin).collect()
}

/// The version of the client programs in a directory, if it has both.
fn client_version(bin: &Path) -> Option<u32> {
    let dump = bin.join("pg_dump");
    if !dump.is_file() || !bin.join("pg_restore").is_file() {
        return None;
    }
    let said = Command::new(&dump).arg("--version").output().ok()?;
    major_version(&String::from_utf8_lossy(&said.stdout))
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → 15, and so do the others; a development version (`19devel`)
/// counts as its number.
fn major_version(said: &str) -> Option<u32> {
    let (_, number) = said.split_once(" (PostgreSQL) ")?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with programs that say they are PostgreSQL `version`.
    fn fake(parent: &Path, name: &str, version: &str) -> PathBuf {
        let bin = parent.join(name).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for program in ["initdb", "postgres"] {
            // Written by another process: a file that this one has open for writing while another test forks cannot be run.
            let script = format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n");
            let write = "printf %s \"$0\" > \"$1\" && chmod 755 \"$1\"";
            let written = Command::new("sh").args(["-c", write, &script]).arg(bin.join(program)).status();
            assert!(written.unwrap().success());
        }
        bin
    }

    #[test]
    fn a_version_is_read_as_every_packager_writes_it() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18.4\n"), Some(18));
        assert_eq!(major_version("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(major_version("bash: postgres: command not found\n"), None);
    }

    #[test]
    fn the_newest_directory_comes_first_and_numbers_are_not_compared_as_text() {
        let root = tempfile::tempdir().unwrap();
        let (nine, seventeen) = (fake(root.path(), "9", "9.6.24"), fake(root.path(), "17", "17.10"));
        std::fs::create_dir(root.path().join("bin")).unwrap();
        assert_eq!(versioned(root.path(), ""), [seventeen, nine]);
    }

    #[test]
    fn the_first_place_with_the_wanted_version_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let places = [root.path().join("empty"), fake(root.path(), "a", "17.10"), fake(root.path(), "b", "15.18")];
        assert_eq!(search(None, None, places.clone()).unwrap().version, 17);
        assert_eq!(search(Some(15), None, places.clone()).unwrap().bin, places[2]);
        let missing = search(Some(16), None, places).unwrap_err();
        assert_eq!(missing.kind(), Kind::Local);
        assert!(missing.hint_text().unwrap().contains("apt-get install postgresql-16"), "{missing:?}");
    }

    #[test]
    fn a_directory_named_by_hand_is_the_only_one_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let other = fake(root.path(), "17", "17.10");
        let empty = search(None, Some(root.path().to_owned()), [other.clone()]).unwrap_err();
        assert!(empty.hint_text().unwrap().contains(OVERRIDE), "{empty:?}");
        assert_eq!(search(None, Some(other.clone()), []).unwrap().version, 17);
        assert!(search(Some(15), Some(other), []).is_err());
    }
}
