//! The audit trail: who did what, when, and what became of it, a small document each, appended and never changed. Uses `store`.

use super::documents::decimal;
use super::layout::{BackupId, Key};
use super::{Repository, Writer};
use crate::error::Result;
use crate::store::list_all;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A full base backup.
    Full,
    /// An incremental one.
    Incremental,
    /// Objects were listed and compared with what they should be.
    Verify,
    /// Every object was read.
    DeepVerify,
    /// A restore for real.
    Drill,
    /// What need not be kept was deleted.
    Prune,
    /// A base backup was marked to be kept, or is no longer.
    Keep,
    /// A cluster was restored.
    Restore,
    /// Something was taken out of it as it was.
    Extract,
    /// The configuration was read again.
    Reload,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 10] = [
        Action::Full,
        Action::Incremental,
        Action::Verify,
        Action::DeepVerify,
        Action::Drill,
        Action::Prune,
        Action::Keep,
        Action::Restore,
        Action::Extract,
        Action::Reload,
    ];

    /// In names of objects.
    pub fn name(self) -> &'static str {
        match self {
            Action::Full => "full",
            Action::Incremental => "incremental",
            Action::Verify => "verify",
            Action::DeepVerify => "deep_verify",
            Action::Drill => "drill",
            Action::Prune => "prune",
            Action::Keep => "keep",
            Action::Restore => "restore",
            Action::Extract => "extract",
            Action::Reload => "reload",
        }
    }

    /// Reads a name back.
    pub fn parse(text: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == text)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Full => "full backup",
            Action::Incremental => "incremental backup",
            Action::DeepVerify => "verify --deep",
            other => other.name(),
        })
    }
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionResult {
    /// It was done, and all is well.
    Good,
    /// It was done, and found something that somebody should look at.
    Bad,
    /// It could not be done.
    Failed,
}

impl ActionResult {
    /// All of them.
    pub const ALL: [ActionResult; 3] = [ActionResult::Good, ActionResult::Bad, ActionResult::Failed];

    /// In names of objects, and in words.
    pub fn name(self) -> &'static str {
        match self {
            ActionResult::Good => "good",
            ActionResult::Bad => "bad",
            ActionResult::Failed => "failed",
        }
    }

    /// Reads a name back.
    pub fn parse(text: &str) -> Option<ActionResult> {
        ActionResult::ALL.into_iter().find(|result| result.name() == text)
    }
}

/// What the name of an entry tells without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AuditKey {
    /// When it began, to the second; a later second where several began in one.
    pub started_at: Timestamp,
    /// What was done.
    pub action: Action,
    /// What became of it.
    pub result: ActionResult,
}

/// Who did it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Actor {
    /// The user of the operating system, by name or number.
    pub user: String,
    /// The machine's name.
    pub host: String,
    /// The command: `run` for what happens by itself.
    pub command: String,
}

/// An entry of the audit trail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditEntry {
    /// [`super::FORMAT_VERSION`].
    pub format: u32,
    /// Whose cluster's.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// What was done.
    pub action: Action,
    /// What became of it.
    pub result: ActionResult,
    /// When it began, by our clock.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Who.
    pub by: Actor,
    /// The base backup that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// What was done or what was wrong, in words without names of relations and without secrets.
    pub about: String,
}

impl Writer {
    /// Appends an entry; says under which key.
    ///
    /// # Errors
    /// What the store says.
    pub async fn append_audit(&self, entry: &AuditEntry) -> Result<Key> {
        let key = |started_at| Key::Audit(AuditKey { started_at, action: entry.action, result: entry.result });
        self.store_dated(entry.started_at, key, entry).await
    }
}

impl Repository {
    /// The keys of what was done in a year, oldest first. One listing, of that year's entries alone.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn audit_of_year(&self, year: i16) -> Result<Vec<AuditKey>> {
        let objects = list_all(self.store.as_ref(), &self.layout.audit_prefix(year)).await?;
        let keys = objects.iter().filter_map(|object| self.layout.parse(&object.key).ok());
        let mut keys: Vec<AuditKey> =
            keys.filter_map(|key| if let Key::Audit(key) = key { Some(key) } else { None }).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// What was done from `since` to `now`, oldest first, and not more than the newest `most`.
    ///
    /// # Errors
    /// If the store fails or an entry is unreadable.
    pub async fn audit(&self, since: Timestamp, now: Timestamp, most: usize) -> Result<Vec<AuditEntry>> {
        let mut keys = Vec::new();
        for year in (year_of(since)..=year_of(now)).rev() {
            let of_year = self.audit_of_year(year).await?;
            keys.extend(of_year.into_iter().rev().filter(|key| key.started_at >= since));
            if keys.len() >= most {
                break;
            }
        }
        let mut entries = Vec::new();
        for key in keys.into_iter().take(most).rev() {
            entries.extend(self.read_document::<AuditEntry>(&Key::Audit(key)).await?);
        }
        Ok(entries)
    }
}

/// The year in UTC: entries have a folder for each.
pub(super) fn year_of(time: Timestamp) -> i16 {
    time.to_zoned(TimeZone::UTC).year()
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;
    use crate::codec::Compression;
    use crate::store::{MemoryStore, Store};
    use crate::wal::SegmentSize;
    use std::sync::Arc;

    fn entry(started_at: &str, action: Action, about: &str) -> AuditEntry {
        let started_at: Timestamp = started_at.parse().unwrap();
        AuditEntry {
            format: super::super::FORMAT_VERSION,
            system_identifier: 7,
            action,
            result: ActionResult::Good,
            started_at,
            ended_at: started_at,
            by: Actor { user: "postgres".to_owned(), host: "db1".to_owned(), command: "run".to_owned() },
            backup: None,
            about: about.to_owned(),
        }
    }

    #[tokio::test]
    async fn entries_come_back_in_order_across_years_and_none_replaces_another() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let (repository, writer) =
            (Repository { store: store.clone(), layout: layout.clone() }, Writer::new(store, layout, 7));
        let done = [
            entry("2026-12-31T23:59:59.5Z", Action::Full, "the last of the year"),
            entry("2026-12-31T23:59:59.7Z", Action::Full, "in the same second"),
            entry("2027-01-01T00:00:01Z", Action::Prune, "the next morning"),
            entry("2027-01-02T00:00:00Z", Action::Drill, "a day later"),
        ];
        for entry in &done {
            writer.append_audit(entry).await.unwrap();
        }
        let (long_ago, now) = ("2025-01-01T00:00:00Z".parse().unwrap(), "2027-02-01T00:00:00Z".parse().unwrap());
        assert_eq!(repository.audit(long_ago, now, 100).await.unwrap(), done);
        // And only the newest are read where that was asked
        assert_eq!(repository.audit(long_ago, now, 2).await.unwrap(), done[2..]);
        let since = "2027-01-01T12:00:00Z".parse().unwrap();
        assert_eq!(repository.audit(since, now, 100).await.unwrap(), done[3..]);
    }
}
