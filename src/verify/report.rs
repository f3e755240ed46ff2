//! What a verification found, and what it looked at. Pure.

use crate::repository::BackupId;
use crate::wal::{Lsn, TimelineId};
use serde::Serialize;
use std::collections::BTreeMap;

/// So many findings of one kind are named; all are counted. A folder with a million strange names fills no memory.
const NAMED_MAX: usize = 1_000;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An object that must be there is not.
    MissingObject,
    /// An object whose name is none of ours.
    UnknownObject,
    /// An object is shorter or longer than it was stored.
    WrongLength,
    /// An object does not hold what was stored.
    WrongContents,
    /// An object is sound, and lies under the name of another.
    SwappedObject,
    /// An object of WAL is sound, and a record in it is not: the server sent it so.
    WrongRecord,
    /// A timeline has WAL or backups here, and no history file.
    MissingHistory,
    /// WAL is missing within what a base backup could be recovered to, or, as a note, in front of all of them.
    Hole,
    /// A base backup of which no restore can be planned, or the newest one not to the end of what is stored.
    BackupNotRestorable,
    /// A base backup that has begun and is not complete.
    UnfinishedBackup,
}

impl FindingKind {
    /// Every kind.
    pub const ALL: [FindingKind; 10] = [
        FindingKind::MissingObject,
        FindingKind::UnknownObject,
        FindingKind::WrongLength,
        FindingKind::WrongContents,
        FindingKind::SwappedObject,
        FindingKind::WrongRecord,
        FindingKind::MissingHistory,
        FindingKind::Hole,
        FindingKind::BackupNotRestorable,
        FindingKind::UnfinishedBackup,
    ];

    /// In words, for a line of text.
    pub fn in_words(self) -> &'static str {
        match self {
            FindingKind::MissingObject => "missing object",
            FindingKind::UnknownObject => "unknown object",
            FindingKind::WrongLength => "wrong length",
            FindingKind::WrongContents => "wrong contents",
            FindingKind::SwappedObject => "swapped object",
            FindingKind::WrongRecord => "wrong record",
            FindingKind::MissingHistory => "missing history",
            FindingKind::Hole => "hole",
            FindingKind::BackupNotRestorable => "not restorable",
            FindingKind::UnfinishedBackup => "unfinished backup",
        }
    }
}

/// WAL that is not there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct MissingWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
    /// True if it was recorded as lost when it was lost.
    pub is_recorded: bool,
    /// False if it lies in front of all base backups: no restore reads it.
    pub is_needed: bool,
}

/// One thing that is wrong, or worth knowing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Finding {
    /// False if it is worth knowing and nothing has to be done about it.
    pub is_problem: bool,
    /// What is wrong.
    pub kind: FindingKind,
    /// The full name of the object that it is about; of a hole, that of the segment with its first byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The base backup that it is about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub backup: Option<BackupId>,
    /// Of a hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<MissingWal>,
    /// A sentence for a person; begins with the object or the backup.
    pub message: String,
    /// What to ask or do, if there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn as_text<S: serde::Serializer>(id: &Option<BackupId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

impl Finding {
    /// `object` `what`: a problem.
    pub(super) fn of_object(kind: FindingKind, object: &str, what: impl std::fmt::Display) -> Finding {
        let message = format!("{object} {what}");
        Finding {
            is_problem: true,
            kind,
            object: Some(object.to_owned()),
            backup: None,
            wal: None,
            message,
            hint: None,
        }
    }

    /// A problem of a base backup as a whole.
    pub(super) fn of_backup(kind: FindingKind, backup: &BackupId, message: impl Into<String>) -> Finding {
        let (backup, message) = (Some(backup.clone()), message.into());
        Finding { is_problem: true, kind, object: None, backup, wal: None, message, hint: None }
    }

    /// It is an object of this base backup.
    pub(super) fn in_backup(mut self, backup: &BackupId) -> Finding {
        self.backup = Some(backup.clone());
        self
    }

    /// What to ask or do.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Finding {
        self.hint = Some(hint.into());
        self
    }

    /// Nothing has to be done about it.
    pub(super) fn into_note(mut self) -> Finding {
        self.is_problem = false;
        self
    }
}

/// Findings as they come.
#[derive(Debug, Default)]
pub(super) struct Findings {
    counts: BTreeMap<FindingKind, u64>,
    problems: u64,
    named: Vec<Finding>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        self.problems += u64::from(finding.is_problem);
        if *count <= NAMED_MAX as u64 {
            self.named.push(finding);
        }
    }

    /// Problems first, then by kind and name.
    pub(super) fn finish(mut self) -> (u64, BTreeMap<FindingKind, u64>, Vec<Finding>) {
        self.named.sort_by(|one, other| (!one.is_problem, one).cmp(&(!other.is_problem, other)));
        let counts = FindingKind::ALL.iter().map(|kind| (*kind, self.counts.get(kind).copied().unwrap_or(0)));
        (self.problems, counts.collect(), self.named)
    }
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Checked {
    /// Objects that the store lists.
    pub objects: u64,
    /// Bytes of them.
    pub object_bytes: u64,
    /// Finished base backups.
    pub backups: u64,
    /// Timelines with WAL.
    pub timelines: u64,
    /// Bytes of WAL, uncompressed, overlaps counted once.
    pub wal_bytes: u64,
    /// Objects of attempts at base backups that failed, or of unfinished ones: of no backup.
    pub leftover_objects: u64,
    /// Bytes of them.
    pub leftover_bytes: u64,
}

/// What was read to its last byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Reading {
    /// Objects.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects that an interrupted verification had read, and that have not changed since.
    pub resumed_objects: u64,
    /// Bytes of them.
    pub resumed_bytes: u64,
    /// Encrypted objects that could not be opened: of these only what they say in clear was looked at, and of parts of base backups
    /// the hash of what is stored.
    pub sealed_objects: u64,
    /// Bytes of them.
    pub sealed_bytes: u64,
}

/// The result of a verification.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Its system identifier, as text: JSON readers lose digits.
    pub system_identifier: String,
    /// True if nothing has to be done.
    pub is_sound: bool,
    /// Findings about which something has to be done.
    pub problems: u64,
    /// Findings by kind, every kind.
    pub counts: BTreeMap<FindingKind, u64>,
    /// What was looked at.
    pub checked: Checked,
    /// What was read, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Reading>,
    /// Problems first; the first 1,000 of each kind.
    pub findings: Vec<Finding>,
}
