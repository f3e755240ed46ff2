//! The audit trail: what commands write into it, and `seawall audit`, which shows it.

use super::{parts, print, time};
use crate::cli::AuditArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{Action, ActionResult, Actor, AuditEntry, BackupId, FORMAT_VERSION, Writer};
use crate::runtime::Clock;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use nix::unistd::{User, geteuid, gethostname};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::timeout;

/// How far back `seawall audit` looks without being told.
const SHOWN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What was done is done: nobody waits for longer than this for its note.
const PATIENCE: Duration = Duration::from_secs(10);

/// So much of the words of an error is enough.
const ABOUT_BYTES_MAX: usize = 2000;

/// This process, in the name of a command.
pub(super) fn actor(command: &str) -> Actor {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let host = gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
    Actor { user, host, command: command.to_owned() }
}

/// Something that was begun, until it is known what became of it.
#[derive(Debug)]
pub(super) struct Begun {
    command: &'static str,
    action: Action,
    started_at: Timestamp,
}

/// What became of it, in words.
#[derive(Debug)]
pub(super) struct Ended {
    /// What it became, where that is not what it was to be.
    pub(super) action: Option<Action>,
    pub(super) result: ActionResult,
    pub(super) backup: Option<BackupId>,
    pub(super) about: String,
}

impl Ended {
    /// It was done; all is well if it says so.
    pub(super) fn done(is_good: bool, about: impl Into<String>) -> Ended {
        let result = if is_good { ActionResult::Good } else { ActionResult::Bad };
        Ended { action: None, result, backup: None, about: about.into() }
    }

    /// It was about this base backup.
    pub(super) fn of(self, backup: &BackupId) -> Ended {
        Ended { backup: Some(backup.clone()), ..self }
    }

    /// It could not be done.
    pub(super) fn failed(error: &Error) -> Ended {
        Ended { action: None, result: ActionResult::Failed, backup: None, about: error.to_string() }
    }
}

impl Begun {
    /// Now.
    pub(super) fn now(command: &'static str, action: Action, clock: &Clock) -> Begun {
        Begun::at(command, action, clock.now())
    }

    /// Then.
    pub(super) fn at(command: &'static str, action: Action, started_at: Timestamp) -> Begun {
        Begun { command, action, started_at }
    }

    /// Appends the entry. Whoever may only read the repository leaves none; what else fails is told in the log, for what was
    /// done is done.
    pub(super) async fn end(self, writer: &Writer, ended: Ended, clock: &Clock) {
        let mut about = ended.about;
        about.truncate(about.floor_char_boundary(ABOUT_BYTES_MAX));
        let entry = AuditEntry {
            format: FORMAT_VERSION,
            system_identifier: writer.system_identifier(),
            action: ended.action.unwrap_or(self.action),
            result: ended.result,
            started_at: self.started_at,
            ended_at: clock.now(),
            by: actor(self.command),
            backup: ended.backup,
            about,
        };
        match timeout(PATIENCE, writer.append_audit(&entry)).await {
            Ok(Ok(_)) => {}
            // `run` looks up here what was done.
            Ok(Err(error)) if error.kind() == Kind::Store && self.command != "run" => {
                tracing::debug!(%error, "not noted in the audit trail")
            }
            Ok(Err(error)) => tracing::warn!(%error, "not noted in the audit trail"),
            Err(_) => tracing::warn!("not noted in the audit trail: the store does not answer"),
        }
    }
}

/// Shows who did what.
///
/// # Errors
/// If the repository cannot be read.
pub(super) async fn audit(args: AuditArgs, settings: Settings) -> Result<()> {
    let clock = Clock::system();
    let now = clock.now();
    let since = match &args.since {
        Some(text) => time::parse_moment(text, &time::local_now(&clock))?.at,
        None => now.checked_sub(SHOWN).unwrap_or(now),
    };
    let (repository, _) = parts::repository(&settings).await?;
    let entries = repository.audit(since, now, args.most).await?;
    if args.json.json {
        return print::stdout(&print::json(&entries)?);
    }
    let (mut text, zone) = (String::new(), TimeZone::system());
    for entry in &entries {
        let took = entry.ended_at.duration_since(entry.started_at);
        let _ = writeln!(
            text,
            "{}  {:<18}  {:<6}  {}@{} ({})  {}",
            print::time(entry.started_at, &zone),
            entry.action.to_string(),
            entry.result.name(),
            entry.by.user,
            entry.by.host,
            entry.by.command,
            print::duration(Duration::try_from(took).unwrap_or_default()),
        );
        let backup = entry.backup.as_ref().map(|backup| format!("{backup}: ")).unwrap_or_default();
        let _ = writeln!(text, "    {backup}{}", entry.about);
    }
    if entries.is_empty() {
        let _ = writeln!(text, "nothing since {}", print::time(since, &zone));
    }
    print::stdout(&text)
}
