//! What can go wrong on the wire, by what a caller does about it; and what a person is told.

use crate::error::{Error, Kind};
use std::fmt;
use std::io;

/// What the server says: an error or a notice (`src/backend/utils/error/elog.c`; "Error and Notice Message Fields").
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `WARNING`, …; never translated.
    pub severity: String,
    /// The SQLSTATE, five characters.
    pub sqlstate: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// More about the case.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " [SQLSTATE {}]", self.sqlstate)
    }
}

/// What one server of the list answered.
#[derive(Debug)]
pub struct HostFailure {
    /// `host:port`, or the socket's directory and port.
    pub host: String,
    /// Why it would not do.
    pub error: PgError,
}

/// A failure on the wire.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No server of the list would do; what each of them said, in order. Never empty.
    #[error("{}", .0.iter().map(|failure| format!("{}: {}", failure.host, failure.error)).collect::<Vec<_>>().join("; "))]
    Hosts(Vec<HostFailure>),
    /// The host name cannot be looked up, or nothing accepts the connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The server did not finish the connection in time.
    #[error("no connection within {0} s")]
    Timeout(u64),
    /// The server did not answer a command in time: it is gone without a word, or hangs.
    #[error("no answer within {0} s")]
    NoAnswer(u64),
    /// TLS cannot be had or the server's certificate is not to be trusted.
    #[error("TLS: {message}")]
    Tls {
        /// What is wrong.
        message: String,
        /// What an expert would look at.
        hint: Option<&'static str>,
    },
    /// We do not go along with how the server wants us to prove who we are, or lack what it asks for.
    #[error("cannot authenticate: {message}")]
    Auth {
        /// What is wrong.
        message: String,
        /// What an expert would look at.
        hint: Option<&'static str>,
    },
    /// The password is somewhere, and cannot be had from there.
    #[error("{0}")]
    Password(Error),
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("the server is {found}, and target_session_attrs asks for {wanted}")]
    Session {
        /// What the connection string asks for.
        wanted: &'static str,
        /// What the server is.
        found: &'static str,
    },
    /// The server refuses, or ends the connection and says why.
    #[error("{0}")]
    Server(Box<ServerMessage>),
    /// What arrived is not PostgreSQL's protocol, or not at this point.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The server closed the connection without a word (also its way after `wal_sender_timeout`).
    #[error("the server closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

impl PgError {
    /// The SQLSTATE if the server gave one; of several servers, the last that did.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server_message().map(|message| message.sqlstate.as_str())
    }

    /// What the server said, if it did; of several servers, the last that did.
    pub fn server_message(&self) -> Option<&ServerMessage> {
        match self {
            PgError::Server(message) => Some(message),
            PgError::Hosts(failures) => failures.iter().rev().find_map(|failure| failure.error.server_message()),
            _ => None,
        }
    }

    /// True if the same attempt may succeed a little later without anybody doing anything: the server or the network is
    /// down or starting, a walsender or the slot is not free yet. Of several servers, one such is enough.
    pub fn is_transient(&self) -> bool {
        match self {
            PgError::Connect(_)
            | PgError::Timeout(_)
            | PgError::NoAnswer(_)
            | PgError::Closed
            | PgError::Io(_)
            | PgError::Session { .. } => true,
            PgError::Tls { .. } | PgError::Auth { .. } | PgError::Protocol(_) => false,
            // Whoever gives it out may be down.
            PgError::Password(error) => error.kind() != Kind::Config,
            PgError::Server(message) => {
                let class = message.sqlstate.get(..2).unwrap_or_default();
                matches!(class, "08" | "40" | "53" | "57") || message.sqlstate == "55006"
            }
            PgError::Hosts(failures) => failures.iter().any(|failure| failure.error.is_transient()),
        }
    }

    /// The process that holds the slot, when that is why the server refuses (SQLSTATE 55006).
    pub fn slot_holder(&self) -> Option<u32> {
        let message = self.server_message().filter(|message| message.sqlstate == "55006")?;
        // "replication slot "x" is active for PID 4711": the number comes last in every language.
        let digits = |c: char| c.is_ascii_digit();
        message.message.split(|c| !digits(c)).rfind(|word| !word.is_empty())?.parse().ok()
    }

    /// True if the server no longer has the WAL that was asked for. That is 58P01 when the segment's file is missing, and
    /// XX000 when it was recycled while it was read (`xlog.c`, `CheckXLogRemoved`, reports a stale `errno`): what both have
    /// in every language is the segment's name.
    pub fn is_wal_removed(&self) -> bool {
        let names_a_segment = |text: &str| {
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|word| word.len() == 24 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        self.server_message().is_some_and(|message| {
            matches!(message.sqlstate.as_str(), "58P01" | "XX000") && names_a_segment(&message.message)
        })
    }

    pub(super) fn protocol(what: impl Into<String>) -> PgError {
        PgError::Protocol(what.into())
    }

    pub(super) fn tls(message: impl Into<String>) -> PgError {
        PgError::Tls { message: message.into(), hint: None }
    }

    pub(super) fn auth(message: impl Into<String>, hint: &'static str) -> PgError {
        PgError::Auth { message: message.into(), hint: Some(hint) }
    }

    /// What an expert would ask.
    fn hint(&self) -> Option<String> {
        let text = match self {
            PgError::Server(_) if self.is_wal_removed() => {
                "WAL that was not archived before the server removed it is lost: take a new base backup, and let a slot keep \
                 WAL from then on."
            }
            PgError::Server(message) => return server_hint(message, self.slot_holder()),
            // The last word decides: hosts are tried until one refuses for good.
            PgError::Hosts(failures) => return failures.iter().rev().find_map(|failure| failure.error.hint()),
            PgError::Tls { hint, .. } | PgError::Auth { hint, .. } => return hint.map(str::to_owned),
            PgError::Password(error) => return error.hint_text().map(str::to_owned),
            PgError::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "Does PostgreSQL run there, on this port, and listen on this address (listen_addresses)?"
                }
                io::ErrorKind::NotFound => {
                    "There is no such Unix socket: does PostgreSQL run, on this port? Give the host if it is elsewhere."
                }
                io::ErrorKind::PermissionDenied => "May this user open the Unix socket?",
                _ => "Is the host name right, and is the server reachable from here (network, firewall)?",
            },
            PgError::Timeout(_) => {
                "Is the server reachable from here (network, firewall)? connect_timeout says how long to wait."
            }
            PgError::NoAnswer(_) => {
                "Is the way to the server cut without anybody saying so (firewall, host gone), or does the server hang?"
            }
            PgError::Session { .. } => "Is another host missing from the list, or has there been a failover?",
            PgError::Protocol(_) => {
                "Is this a PostgreSQL server and no pooler or other proxy? Replication needs a direct connection."
            }
            PgError::Closed => {
                "Was the server stopped, or did it end the connection after wal_sender_timeout? Its log says why."
            }
            PgError::Io(_) => return None,
        };
        Some(text.to_owned())
    }
}

/// Hints by SQLSTATE (`src/backend/utils/errcodes.txt`); the server's own hint where we know no better.
fn server_hint(message: &ServerMessage, slot_holder: Option<u32>) -> Option<String> {
    let fatal = message.severity == "FATAL";
    let text = match message.sqlstate.as_str() {
        "28P01" => {
            "The password is wrong or expired: look at the connection string, `password` in the configuration, PGPASSWORD and \
             ~/.pgpass."
        }
        "28000" if message.message.contains("pg_hba.conf") => {
            "pg_hba.conf needs a line such as \"host replication USER ADDRESS/32 scram-sha-256\" and a reload; \
             \"all\" as the database does not include replication."
        }
        "28000" => {
            "Does the role exist, may it log in, and does the line in pg_hba.conf that matches fit how we log in?"
        }
        "42501" if fatal => "Give the role the right: ALTER ROLE name REPLICATION.",
        "42501" => "The role lacks the right to this; the server's documentation names the role to grant.",
        "42710" => "A slot of this name is already there: use it, or choose another name.",
        "42704" => "There is no slot of this name on this server: was it dropped, or has there been a failover?",
        // wal_level = minimal allows no walsender at all, so that this comes first.
        "53300" if message.message.contains("max_wal_senders") && message.message.contains(" 0)") => {
            "No walsender is allowed: set wal_level = replica and max_wal_senders = 10 in postgresql.conf and restart the \
             server."
        }
        "53300" => {
            "All walsenders or connections are taken: raise max_wal_senders (Seawall uses three), or end a stale one."
        }
        "55006" => {
            return Some(match slot_holder {
                Some(pid) => format!(
                    "Process {pid} of the server holds it: is another archiver running? After a crash the server notices \
                     within wal_sender_timeout."
                ),
                None => "Somebody else is using it: is another archiver running?".to_owned(),
            });
        }
        "55000" if message.message.contains("wal_level") => {
            "Set wal_level = replica in postgresql.conf and restart the server."
        }
        "57P03" => "The server is starting, stopping or in recovery: try again in a moment.",
        "57P01" | "57P02" => "The server is being stopped, or an administrator ended the connection.",
        "58P01" => "The server has no such file.",
        _ => return message.hint.clone(),
    };
    Some(text.to_owned())
}

impl From<PgError> for Error {
    fn from(error: PgError) -> Error {
        let error = match error {
            PgError::Password(error) => return error.context("cannot log in to PostgreSQL"),
            error => error,
        };
        let kind = match error.sqlstate() {
            Some("55006") => Kind::Busy,
            _ => Kind::Postgres,
        };
        let what = match &error {
            PgError::Hosts(_) | PgError::Connect(_) | PgError::Timeout(_) | PgError::Session { .. } => {
                "cannot connect to PostgreSQL"
            }
            PgError::Tls { .. } | PgError::Auth { .. } | PgError::Password(_) => "cannot log in to PostgreSQL",
            PgError::Server(_) => "PostgreSQL refuses",
            PgError::Protocol(_) => "PostgreSQL cannot be understood",
            PgError::Closed | PgError::Io(_) | PgError::NoAnswer(_) => "the connection to PostgreSQL ended",
        };
        let hint = error.hint();
        let shown = Error::new(kind, what).because(error);
        match hint {
            Some(hint) => shown.hint(hint),
            None => shown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(severity: &str, sqlstate: &str, message: &str) -> PgError {
        PgError::Server(Box::new(ServerMessage {
            severity: severity.into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            ..ServerMessage::default()
        }))
    }

    #[test]
    fn each_refusal_has_its_hint() {
        let cases = [
            ("FATAL", "28P01", "password authentication failed for user \"me\"", "~/.pgpass"),
            ("FATAL", "28000", "no pg_hba.conf entry for replication connection", "\"all\" as the database"),
            ("FATAL", "28000", "role \"me\" does not exist", "Does the role exist"),
            ("FATAL", "42501", "must be superuser or replication role", "ALTER ROLE"),
            ("FATAL", "53300", "number of requested standby connections exceeds", "max_wal_senders"),
            ("ERROR", "55000", "wal_level must be set to \"replica\" or \"logical\"", "wal_level = replica"),
            ("ERROR", "55006", "replication slot \"s2\" is active for PID 4711", "Process 4711"),
            ("FATAL", "57P03", "the database system is starting up", "starting"),
            (
                "ERROR",
                "58P01",
                "requested WAL segment 000000010000000A000000FE has already been removed",
                "new base backup",
            ),
            (
                "ERROR",
                "XX000",
                "das angeforderte WAL-Segment 000000010000000A000000FE wurde schon entfernt",
                "new base backup",
            ),
            ("ERROR", "58P01", "could not open file \"pg_wal/00000001.history\"", "no such file"),
            ("FATAL", "53300", "standby connections exceed max_wal_senders (currently 0)", "wal_level = replica"),
        ];
        for (severity, sqlstate, message, expected) in cases {
            let error = Error::from(server(severity, sqlstate, message));
            let hint = error.hint_text().unwrap_or_default();
            assert!(hint.contains(expected), "{sqlstate} {message}: {hint}");
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error.kind(), if sqlstate == "55006" { Kind::Busy } else { Kind::Postgres }, "{sqlstate}");
        }
    }

    #[test]
    fn all_hosts_are_named_and_the_last_word_decides() {
        let refused = PgError::Connect(io::Error::from(io::ErrorKind::ConnectionRefused));
        let error = PgError::Hosts(vec![
            HostFailure { host: "a:5432".into(), error: refused },
            HostFailure { host: "b:5432".into(), error: server("FATAL", "28P01", "wrong") },
        ]);
        assert_eq!(error.sqlstate(), Some("28P01"));
        assert!(error.is_transient(), "the first host may come back");
        let shown = Error::from(error);
        assert!(shown.to_string().contains("a:5432: cannot connect"), "{shown}");
        assert!(shown.to_string().contains("b:5432: FATAL: wrong [SQLSTATE 28P01]"), "{shown}");
        assert!(shown.hint_text().is_some_and(|hint| hint.contains("password")), "{shown:?}");
    }

    #[test]
    fn only_what_passes_by_itself_is_transient() {
        for (sqlstate, transient) in
            [("57P03", true), ("53300", true), ("55006", true), ("28P01", false), ("58P01", false)]
        {
            assert_eq!(server("FATAL", sqlstate, "x").is_transient(), transient, "{sqlstate}");
        }
        assert!(PgError::Closed.is_transient());
        assert!(!PgError::protocol("x").is_transient());
    }
}
