//! What a restore is asked for. Pure.

use crate::repository::BackupId;
use crate::wal::{Lsn, TimelineId};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::Serialize;
use std::fmt;

/// A restore as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Where recovery stops.
    pub target: Target,
    /// Stop just before the target instead of just behind it. Means nothing for [`Target::End`] and
    /// [`Target::Immediate`].
    pub exclusive: bool,
    /// The base backup to begin with; by default the newest one that can reach the target.
    pub backup: Option<BackupId>,
    /// The timeline to end on; by default the one that the archiver last followed.
    pub timeline: Option<TimelineId>,
    /// What the server does when it has arrived.
    pub action: TargetAction,
}

/// Where recovery stops.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At the end of what is stored.
    End,
    /// As soon as the base backup is consistent.
    Immediate,
    /// At a moment: everything that was committed at it is there, and nothing later.
    Time(Timestamp),
    /// At the first record that begins here or later.
    Lsn(Lsn),
    /// At the end of a transaction, committed or aborted.
    Xid(u32),
    /// At the first restore point of this name that lies behind a backup.
    Name(String),
}

/// The first moment from `time` on that can be asked for: PostgreSQL's have whole microseconds, and our clock has more digits.
pub(super) fn askable(time: Timestamp) -> Timestamp {
    let up = TimestampRound::new().smallest(Unit::Microsecond).mode(RoundMode::Ceil);
    time.round(up).unwrap_or(time)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::End => f.write_str("the end of the archive"),
            Target::Immediate => f.write_str("the first consistent moment of the backup"),
            Target::Time(time) => write!(f, "the time {time}"),
            Target::Lsn(lsn) => write!(f, "the LSN {lsn}"),
            Target::Xid(xid) => write!(f, "the transaction {xid}"),
            Target::Name(name) => write!(f, "the restore point {name:?}"),
        }
    }
}

/// What the server does when it has arrived (`recovery_target_action`).
///
/// The default is to promote: who restores at three in the morning wants a cluster that works when it is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetAction {
    /// Opens for writing, on a new timeline.
    #[default]
    Promote,
    /// Stays readable and waits for `pg_wal_replay_resume()`.
    Pause,
    /// Stops, so that another cluster's files can be looked at before it writes anything.
    Shutdown,
    /// Arrives nowhere: as a standby it replays whatever the archive gets, onto newer timelines too, until somebody
    /// promotes it. Only for [`Target::End`].
    Follow,
}

impl TargetAction {
    /// As PostgreSQL spells it; `None` for a standby, which has no target.
    pub fn setting(self) -> Option<&'static str> {
        match self {
            TargetAction::Promote => Some("promote"),
            TargetAction::Pause => Some("pause"),
            TargetAction::Shutdown => Some("shutdown"),
            TargetAction::Follow => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proposed_has_no_digits_that_cannot_be_typed_and_is_no_earlier() {
        for (time, expected) in [
            ("2026-11-20T14:03:00.123456Z", "2026-11-20T14:03:00.123456Z"),
            ("2026-11-20T14:03:00.123456001Z", "2026-11-20T14:03:00.123457Z"),
            ("2026-11-20T14:03:59.999999999Z", "2026-11-20T14:04:00Z"),
            ("1969-12-31T23:59:59.999999001Z", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(askable(time.parse().unwrap()).to_string(), expected);
        }
    }
}
