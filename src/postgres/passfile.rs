//! `~/.pgpass`: passwords beside the connection string, in libpq's format and under its conditions.

use crate::runtime;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A password; neither `Debug` nor anything else prints it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What the password file said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Found(Password),
    /// There is no file or no line that matches.
    Nothing,
    /// The file is there and cannot be used, and why.
    Ignored(String),
}

/// What a line must match.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) host: String,
    pub(super) port: u16,
    /// Any of these: a physical replication connection goes by `replication` and by its database's name.
    pub(super) databases: Vec<String>,
    pub(super) user: String,
}

/// Larger files are not read: nobody's passwords fill this.
const PASSFILE_BYTES_MAX: u64 = 1 << 20;

/// Looks the password up, under libpq's conditions: a plain file that nobody but its owner can read
/// (`fe-connect.c`, `passwordFromFile`).
pub(super) async fn look_up(path: &Path, wanted: Wanted) -> Lookup {
    let path = path.to_owned();
    let looked = runtime::blocking(move || {
        let Ok(metadata) = std::fs::metadata(&path) else {
            return Lookup::Nothing;
        };
        let ignored = |why: &str| Lookup::Ignored(format!("{} was ignored because it {why}", path.display()));
        if !metadata.is_file() {
            return ignored("is not a plain file");
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            return ignored("can be read by others (chmod 0600 makes it private)");
        }
        if metadata.len() > PASSFILE_BYTES_MAX {
            return ignored("is larger than 1 MiB");
        }
        match std::fs::read(&path) {
            Ok(text) => find(&String::from_utf8_lossy(&text), &wanted),
            Err(error) => ignored(&format!("cannot be read ({error})")),
        }
    });
    looked.await.unwrap_or_else(|error| Lookup::Ignored(error.to_string()))
}

fn find(text: &str, wanted: &Wanted) -> Lookup {
    let port = wanted.port.to_string();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some([host, entry_port, database, user, password]) = fields(line) else {
            continue;
        };
        let matches = |field: &str, value: &str| field == "*" || unescape(field) == value;
        let found = matches(host, &wanted.host)
            && matches(entry_port, &port)
            && wanted.databases.iter().any(|name| matches(database, name))
            && matches(user, &wanted.user);
        if found {
            return Lookup::Found(Password(unescape(password)));
        }
    }
    Lookup::Nothing
}

/// The five fields of a line as written, `host:port:database:user:password`; the password is all that is left.
fn fields(line: &str) -> Option<[&str; 5]> {
    let mut rest = line;
    let mut fields = [""; 5];
    for field in &mut fields[..4] {
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b':' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        *field = &rest[..end];
        rest = &rest[end + 1..];
    }
    fields[4] = rest;
    Some(fields)
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(host: &str, database: &str, user: &str) -> Wanted {
        Wanted {
            host: host.into(),
            port: 5432,
            databases: vec!["replication".into(), database.into()],
            user: user.into(),
        }
    }

    fn found(password: &str) -> Lookup {
        Lookup::Found(Password(password.to_owned()))
    }

    proptest! {
        #[test]
        fn every_escaped_line_is_found_again(host in "[^\0\r\n]+", user in "[^\0\r\n]+", password in "[^\0\r\n]*") {
            let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
            let line = format!("{}:5432:replication:{}:{}", escape(&host), escape(&user), escape(&password));
            prop_assume!(!line.starts_with('#'));
            prop_assert_eq!(find(&line, &wanted(&host, "app", &user)), found(&password));
        }

        #[test]
        fn no_file_panics(text: String) {
            find(&text, &wanted("db", "app", "me"));
        }
    }

    #[test]
    fn the_first_line_that_matches_wins() {
        let file = "# db:5432:*:me:comment\nbroken line\ndb:5433:*:me:wrong port\ndb:*:app:me:by name\n*:*:*:*:last\n";
        assert_eq!(find(file, &wanted("db", "app", "me")), found("by name"));
        assert_eq!(find(file, &wanted("db", "other", "me")), found("last"));
        assert_eq!(
            find("db:5432:replication:me:pass:with:colons", &wanted("db", "x", "me")),
            found("pass:with:colons")
        );
        assert_eq!(find("db:5432:other:me:x", &wanted("db", "app", "me")), Lookup::Nothing);
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_is_ignored_and_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        for (mode, usable) in [(0o600, true), (0o640, false), (0o604, false), (0o400, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let lookup = look_up(&path, wanted("db", "app", "me")).await;
            match usable {
                true => assert_eq!(lookup, found("secret"), "mode {mode:o}"),
                false => assert!(
                    matches!(&lookup, Lookup::Ignored(why) if why.contains("chmod")),
                    "mode {mode:o}: {lookup:?}"
                ),
            }
        }
        assert_eq!(look_up(&directory.path().join("absent"), wanted("db", "app", "me")).await, Lookup::Nothing);
        assert!(matches!(look_up(directory.path(), wanted("db", "app", "me")).await, Lookup::Ignored(_)));
        assert_eq!(format!("{:?}", found("secret")), "Found((secret))");
    }
}
