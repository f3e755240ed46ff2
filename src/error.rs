//! The error that reaches a person: what failed, on what, why, and a hint. Knows nobody of ours.
//!
//! Modules keep typed errors of their own where a caller decides by them (`store::StoreError`, `postgres::PgError`)
//! and turn into this one at their edge. An error is returned or logged, never both.

use std::error::Error as StdError;
use std::fmt;

/// A result whose error is for a person.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the reader of an error does next. Each kind is one exit code (`docs/exit-codes.md`): stable, few.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Kind {
    /// The command line is wrong: correct it.
    Usage,
    /// The configuration is wrong: correct it.
    Config,
    /// PostgreSQL cannot be reached or refuses us: look at the server, the role, `pg_hba.conf`.
    Postgres,
    /// The store cannot be reached or refuses us: look at the bucket, the credentials, the disk.
    Store,
    /// What was asked for cannot be had, or would do harm, and nothing was touched: ask for something else.
    Refused,
    /// Stored data is missing, cut or altered: look at the object named.
    Damaged,
    /// Two sources of different bytes under one name: stop and find out which cluster is the real one.
    Diverged,
    /// The local machine is in the way: disk full, file rights, a missing program.
    Local,
    /// Somebody else is at it: wait or stop the other.
    Busy,
    /// A drill did not pass: look at what its report names.
    Failed,
    /// A defect of Seawall: report it.
    Internal,
}

impl Kind {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Kind; 11] = [
        Kind::Usage,
        Kind::Config,
        Kind::Postgres,
        Kind::Store,
        Kind::Refused,
        Kind::Damaged,
        Kind::Diverged,
        Kind::Local,
        Kind::Busy,
        Kind::Failed,
        Kind::Internal,
    ];

    /// The exit code of a command that fails with this kind (`wal-fetch` has its own rule: 255).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Config => 3,
            Kind::Postgres => 4,
            Kind::Store => 5,
            Kind::Refused => 6,
            Kind::Damaged => 7,
            Kind::Diverged => 8,
            Kind::Local => 9,
            Kind::Busy => 10,
            Kind::Failed => 11,
            Kind::Internal => 70,
        }
    }
}

/// An error for a person at a keyboard, at any hour.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `message` says what failed, on what; lower case, no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), hint: None, source: None }))
    }

    /// Adds why: the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Adds what an expert would ask or do; a whole sentence.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front: `context: message`. Kind, hint and cause stay.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// What the reader does next.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence after `hint:`, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// A file or directory could not be used; a full disk and missing rights get their hints.
    pub fn local(action: &str, path: &std::path::Path, source: std::io::Error) -> Error {
        let error = Error::new(Kind::Local, format!("cannot {action} {}", path.display()));
        let hint = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Some("The disk is full: free some room or choose another place.")
            }
            std::io::ErrorKind::PermissionDenied => Some("Does the user that runs this own the directory?"),
            std::io::ErrorKind::ReadOnlyFilesystem => Some("The file system is mounted read-only."),
            _ => None,
        };
        let error = error.because(source);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl fmt::Display for Error {
    /// The message and its causes on one line, without the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut last = self.0.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many libraries repeat their source at the end of their own text.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
                last = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        match &self.0.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_from_the_outside_in() {
        let disk = std::io::Error::other("no space left on device");
        let error = Error::new(Kind::Local, "cannot write /data/base/1/2").because(disk).context("restore");
        assert_eq!(error.to_string(), "restore: cannot write /data/base/1/2: no space left on device");
    }

    #[test]
    fn a_cause_is_said_once_and_never_lost() {
        let repeated = Error::new(Kind::Store, "cannot list: denied").because(std::io::Error::other("denied"));
        assert_eq!(repeated.to_string(), "cannot list: denied");
        let short = Error::new(Kind::Store, "cannot list").because(std::io::Error::other("no"));
        assert_eq!(short.to_string(), "cannot list: no");
    }

    #[test]
    fn every_kind_has_an_exit_code_of_its_own() {
        let codes: std::collections::BTreeSet<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(!codes.contains(&0) && !codes.contains(&1) && !codes.contains(&101));
    }
}
