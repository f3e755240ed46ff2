//! How the program ends: one exit code a kind of error, and another rule for `restore_command`. Uses `error`.

use crate::error::{Error, Kind};
use serde_json::json;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::thread;

/// What PostgreSQL reads as "stop recovery and think": codes above 125 (`src/backend/access/transam/xlogarchive.c`,
/// `RestoreArchivedFile`). Anything from 1 to 125 would mean "end of archive" to it.
pub const WAL_FETCH_FAILED: u8 = 255;

/// What `wal-fetch` ends with for a file that is proven not to be in the archive.
pub const WAL_FETCH_ABSENT: u8 = 1;

/// A kind's name in JSON and in the documentation, what it means, and what the reader does next.
pub fn describe(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Usage => ("usage", "the command line is wrong", "Correct it; `--help` has examples."),
        Kind::Config => ("config", "the configuration is wrong", "Correct the file or variable that is named."),
        Kind::Postgres => (
            "postgres",
            "PostgreSQL cannot be reached or refuses us",
            "Look at the server, the role and `pg_hba.conf`; `seawall check` says which.",
        ),
        Kind::Store => (
            "store",
            "the store cannot be reached or refuses us",
            "Look at the bucket, the credentials, the disk; `seawall check` says which.",
        ),
        Kind::Refused => (
            "refused",
            "what was asked for cannot be had, or would do harm; nothing was touched",
            "Ask for something else; the message says what can be had.",
        ),
        Kind::Damaged => (
            "damaged",
            "stored data is missing, cut or altered, or pages on the server's disk are",
            "Look at the object or the file that is named.",
        ),
        Kind::Diverged => (
            "diverged",
            "two sources of different bytes under one name",
            "Stop, and find out which cluster is the real one.",
        ),
        Kind::Local => (
            "local",
            "the local machine is in the way: disk full, file rights, a missing program",
            "Correct it and run the command again.",
        ),
        Kind::Busy => ("busy", "somebody else is at it", "Wait, or stop the other."),
        Kind::Failed => (
            "failed",
            "a drill did not pass: recovery or a check failed, or a target was missed",
            "Look at what its report names, before there is a disaster.",
        ),
        Kind::Internal => ("internal", "a defect of Seawall", "Please report it with the message."),
    }
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It did what was asked.
    Done,
    /// `wal-fetch` only: the file is proven not to be in the archive.
    Absent,
}

/// Which exit codes a command line ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitRule {
    /// One code a kind.
    Kinds,
    /// `wal-fetch`: 0, 1 for proven absence, 255 for everything else.
    WalFetch,
    /// `wal-fetch --ahead`: 0. Nobody waits for it; where the server is process 1, it inherits and reaps it, and takes any
    /// failure for a crash of one of its own (`CleanupBackend` and `HandleChildCrash` in `postmaster.c`).
    WalFetchAhead,
}

impl ExitRule {
    /// Decides before anything is parsed, since the parser's own failures are among what it rules. Any argument
    /// `wal-fetch` counts: too strict is harmless, while too lax would end a recovery early.
    pub fn of(arguments: &[OsString]) -> ExitRule {
        let has = |word| arguments.iter().skip(1).any(|argument| argument == word);
        match (has("wal-fetch"), has("--ahead")) {
            (true, true) => ExitRule::WalFetchAhead,
            (true, false) => ExitRule::WalFetch,
            (false, _) => ExitRule::Kinds,
        }
    }

    /// The code of a failure.
    pub fn failed(self, kind: Kind) -> u8 {
        match self {
            ExitRule::Kinds => kind.exit_code(),
            ExitRule::WalFetch => WAL_FETCH_FAILED,
            ExitRule::WalFetchAhead => 0,
        }
    }

    /// The code of an ending.
    pub fn ended(self, ending: Ending) -> u8 {
        match ending {
            Ending::Done => 0,
            Ending::Absent => WAL_FETCH_ABSENT,
        }
    }

    /// From now on a panic of this thread ends the process at once, after it was reported. Unwinding may wait for ever:
    /// a runtime that could start only some of its threads (no memory, no processes left) waits for them when dropped.
    pub fn exit_on_panic(self) {
        let (report, watched) = (panic::take_hook(), thread::current().id());
        let code = self.failed(Kind::Internal);
        panic::set_hook(Box::new(move |panic| {
            report(panic);
            if thread::current().id() == watched {
                std::process::exit(code.into());
            }
        }));
    }

    /// Once threads run, a panic unwinds again, so that what was begun is cleaned up. Not for `wal-fetch`: there PostgreSQL
    /// waits, and nothing is left behind that it minds.
    pub fn unwind_on_panic(self) {
        if self == ExitRule::Kinds {
            let _ = panic::take_hook();
        }
    }

    /// Runs `body` for its code; a panic becomes a code too (Rust's own, 101, would tell PostgreSQL "end of archive").
    pub fn guard(self, body: impl FnOnce() -> u8) -> u8 {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| self.failed(Kind::Internal))
    }
}

/// An error as standard error shows it: `error:` and `hint:`, or one line of JSON.
pub fn render_error(error: &Error, rule: ExitRule, as_json: bool) -> String {
    if as_json {
        let (kind, ..) = describe(error.kind());
        let code = rule.failed(error.kind());
        let fields = json!({
            "kind": kind, "message": error.to_string(), "hint": error.hint_text(), "exit_code": code
        });
        return format!("{}\n", json!({ "error": fields }));
    }
    let hint = error.hint_text().map(|hint| format!("hint: {hint}\n"));
    format!("error: {error}\n{}", hint.unwrap_or_default())
}

/// The paragraph that ends every `--help`.
pub fn help_paragraph() -> String {
    let mut text = "Exit codes:\n   0  success\n".to_owned();
    for kind in Kind::ALL {
        let _ = writeln!(text, "{:>4}  {}", kind.exit_code(), describe(kind).1);
    }
    text
}

/// `docs/exit-codes.md`.
pub fn document() -> String {
    let mut text = "# Exit codes\n\n\
        Every command but `wal-fetch` ends with one of these. They are stable: a script may decide by them.\n\n\
        | code | name | meaning | what to do |\n|---|---|---|---|\n\
        | 0 | | success | |\n"
        .to_owned();
    for kind in Kind::ALL {
        let (name, meaning, remedy) = describe(kind);
        let _ = writeln!(text, "| {} | `{name}` | {meaning} | {remedy} |", kind.exit_code());
    }
    text.push_str(
        "\n`seawall verify` ends with 7 if it found something about which something has to be done, and with 0 if there is nothing, or \
         nothing but notes. The report is on standard output in both cases.\n\n\
         An error is printed on standard error as `error: …`, with `hint: …` on the next line where there is \
         something to look at. With `--json` it is one line instead:\n\n\
         ```json\n{\"error\":{\"exit_code\":5,\"hint\":\"Does the bucket exist?\",\"kind\":\"store\",\"message\":\"…\"}}\n```\n\n\
         ## `wal-fetch`\n\n\
         PostgreSQL reads the exit code of `restore_command`: 1 to 125 mean \"the archive ends here\", and recovery \
         ends or the server is promoted; above 125, or a signal, recovery stops with an error. So `wal-fetch` ends \
         with its own codes:\n\n\
         | code | meaning |\n|---|---|\n\
         | 0 | the file is in place, complete and checked |\n\
         | 1 | the file is proven not to be in the archive, and nothing later is |\n\
         | 255 | anything else: no connection, no rights, damage, a wrong command line, a missing configuration, a defect |\n\n\
         SIGTERM ends it as PostgreSQL expects: by the signal.\n\n\
         ## `wal-push`\n\n\
         Ends with the codes of the first table. PostgreSQL keeps the file and calls `archive_command` again after \
         any of them.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn wal_fetch_is_recognised_wherever_it_stands() {
        for line in ["seawall wal-fetch", "seawall --repo s3://b wal-fetch %f %p", "seawall --nonsense wal-fetch a b"] {
            assert_eq!(ExitRule::of(&arguments(line)), ExitRule::WalFetch, "{line}");
        }
        // The program's own name says nothing.
        assert_eq!(ExitRule::of(&arguments("wal-fetch list")), ExitRule::Kinds);
    }

    #[test]
    fn no_failure_of_wal_fetch_looks_like_the_end_of_the_archive() {
        for kind in Kind::ALL {
            assert!(ExitRule::WalFetch.failed(kind) > 125, "{kind:?} would promote the server");
        }
        assert_eq!(ExitRule::WalFetch.guard(|| panic!("a defect")), 255);
        assert_eq!(ExitRule::WalFetch.ended(Ending::Absent), 1);
    }

    #[test]
    fn fetching_ahead_ends_with_0_whatever_happens() {
        let rule = ExitRule::of(&arguments("seawall --repo s3://b wal-fetch 000000010000000000000001 x --ahead"));
        assert_eq!(rule, ExitRule::WalFetchAhead);
        for kind in Kind::ALL {
            assert_eq!(rule.failed(kind), 0, "{kind:?} would be a crash to a server that is process 1");
        }
        assert_eq!(rule.guard(|| panic!("a defect")), 0);
    }

    #[test]
    fn a_panic_elsewhere_is_a_defect() {
        assert_eq!(ExitRule::Kinds.guard(|| panic!("a defect")), Kind::Internal.exit_code());
        assert_eq!(ExitRule::Kinds.guard(|| 3), 3);
    }

    #[test]
    fn an_error_is_two_lines_or_one_document() {
        let error = Error::new(Kind::Store, "cannot read \"x\"").hint("Is it there?");
        assert_eq!(render_error(&error, ExitRule::Kinds, false), "error: cannot read \"x\"\nhint: Is it there?\n");
        let line = render_error(&error, ExitRule::WalFetch, true);
        let document: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(document["error"]["kind"], "store");
        assert_eq!(document["error"]["exit_code"], 255);
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn every_kind_is_listed_once() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| describe(*kind).0).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
