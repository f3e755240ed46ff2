//! Marks by which base backups are kept whatever the policy says. Nothing is overwritten: each change is a document of its own, and the
//! one with the highest number counts.

use super::layout::{BackupId, Key};
use super::{FORMAT_VERSION, Repository, Writer};
use crate::error::{Error, Kind, Result};
use crate::store::{Created, list_all};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `keep/<backup>.<number>.json`: a base backup is kept, or no longer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeepMark {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The backup.
    pub backup: BackupId,
    /// False: the mark was taken away.
    pub keep: bool,
    /// Why, in the operator's words; empty where it was taken away.
    pub reason: String,
    /// Until then; `None`: until it is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When that was said, by our clock.
    pub set_at: Timestamp,
}

impl KeepMark {
    /// True if the backup is kept at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.keep && self.until.is_none_or(|until| now < until)
    }
}

/// Others may mark the same backup at the same time; nobody does so often.
const NUMBERS_TRIED: usize = 100;

impl Repository {
    /// What counts, of every backup that was ever marked: the documents with the highest numbers.
    ///
    /// # Errors
    /// If the store fails, or a mark is unreadable or of a later format: whoever deletes must not go on without it.
    pub async fn read_keep_marks(&self) -> Result<BTreeMap<BackupId, KeepMark>> {
        let mut marks = BTreeMap::new();
        for (id, number) in self.last_keep_numbers().await? {
            let key = Key::Keep(id.clone(), number);
            let name = self.layout.name(&key);
            let mark: Option<KeepMark> = self.read_document(&key).await?;
            let mark = mark.ok_or_else(|| {
                Error::new(Kind::Busy, format!("{name} was listed and is gone"))
                    .hint("A prune deletes the marks of backups that are gone. Run it again.")
            })?;
            if mark.format > FORMAT_VERSION {
                return Err(Error::new(Kind::Refused, format!("{name} has format {}", mark.format))
                    .hint("It was written by a later Seawall: use that one or a newer one."));
            }
            if mark.backup != id {
                return Err(Error::new(Kind::Damaged, format!("{name} is about base backup {}", mark.backup)));
            }
            marks.insert(id, mark);
        }
        Ok(marks)
    }

    async fn last_keep_numbers(&self) -> Result<BTreeMap<BackupId, u32>> {
        let mut last = BTreeMap::new();
        for object in list_all(self.store.as_ref(), &self.layout.keep_prefix()).await? {
            if let Ok(Key::Keep(id, number)) = self.layout.parse(&object.key) {
                let known = last.entry(id).or_insert(number);
                *known = number.max(*known);
            }
        }
        Ok(last)
    }
}

impl Writer {
    /// Stores a mark behind those that the backup has.
    ///
    /// # Errors
    /// What the store says; [`Kind::Busy`] if others store marks all the time.
    pub async fn store_keep_mark(&self, repository: &Repository, mark: &KeepMark) -> Result<Key> {
        for _ in 0..NUMBERS_TRIED {
            let last = repository.last_keep_numbers().await?.remove(&mark.backup).unwrap_or(0);
            let key = Key::Keep(mark.backup.clone(), last.saturating_add(1));
            match self.store_document(&key, mark).await {
                Ok(Created::New | Created::Exists) => return Ok(key),
                // Somebody took that number in this moment.
                Err(error) if error.kind() == Kind::Diverged => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Busy, format!("somebody else marks base backup {} all the time", mark.backup)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;
    use crate::codec::Compression;
    use crate::store::MemoryStore;
    use crate::wal::SegmentSize;
    use std::sync::Arc;

    #[tokio::test]
    async fn of_several_marks_the_last_counts_and_none_is_overwritten() {
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let repository = Repository { store: Arc::new(MemoryStore::new()), layout: layout.clone() };
        let writer = Writer::new(repository.store.clone(), layout.clone(), 7);
        let set_at: Timestamp = "2026-11-20T14:03:00Z".parse().unwrap();
        let backup = BackupId::at(set_at, 0);
        let mark = |keep: bool, reason: &str| KeepMark {
            format: FORMAT_VERSION,
            backup: backup.clone(),
            keep,
            reason: reason.to_owned(),
            until: None,
            set_at,
        };
        assert!(repository.read_keep_marks().await.unwrap().is_empty());
        // Given a mark that is set, taken away and set again
        let mut names = Vec::new();
        for mark in [mark(true, "before the upgrade"), mark(false, ""), mark(true, "for the auditors")] {
            names.push(layout.name(&writer.store_keep_mark(&repository, &mark).await.unwrap()));
        }
        // Then each has a name of its own, and the last one counts
        let name = |number: u32| format!("main/keep/20261120T140300Z.{number:05}.json");
        assert_eq!(names, [name(1), name(2), name(3)]);
        let marks = repository.read_keep_marks().await.unwrap();
        assert_eq!(marks.get(&backup), Some(&mark(true, "for the auditors")));
    }

    #[test]
    fn a_mark_with_an_end_holds_up_to_it() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut mark = KeepMark {
            format: FORMAT_VERSION,
            backup: BackupId::at(at("2026-11-20T14:03:00Z"), 0),
            keep: true,
            reason: "a test's".to_owned(),
            until: Some(at("2027-01-01T00:00:00Z")),
            set_at: at("2026-11-21T00:00:00Z"),
        };
        assert!(mark.holds(at("2026-12-31T23:59:59Z")) && !mark.holds(at("2027-01-01T00:00:00Z")));
        mark.until = None;
        assert!(mark.holds(at("2099-01-01T00:00:00Z")));
        mark.keep = false;
        assert!(!mark.holds(at("2026-12-01T00:00:00Z")));
    }
}
