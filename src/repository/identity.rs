//! What an object says of itself in its first frame, so that a bucket copied without its metadata still restores.

use super::documents::decimal;
use super::layout::{Archive, BackupId, NamesAt};
use crate::codec::{self, encryption};
use crate::error::{Error, Kind, Result};
use crate::store::{Metadata, ObjectHead, Store, StoreError, StoreErrorKind};
use crate::wal::{Lsn, TimelineId, WalRange};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much of an object is fetched to see its identity: many times what one takes.
pub(super) const PREFIX_BYTES: u64 = 4096;

/// The names of the metadata that repeat an identity.
const META_SYSTEM: &str = "seawall-system-identifier";
const META_BYTES: &str = "seawall-plain-bytes";
const META_BLAKE3: &str = "seawall-blake3";

/// An object's identity: JSON in a skippable frame in front of its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// [`super::FORMAT_VERSION`].
    pub format: u32,
    /// The cluster it belongs to.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// What it is.
    #[serde(flatten)]
    pub subject: Subject,
    /// Length of its content, uncompressed.
    pub plain_bytes: u64,
    /// BLAKE3 of its content, uncompressed, in hexadecimal. WAL has it; parts of base backups are checked by the
    /// hashes in `backup.json` and in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// What an object holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    /// Bytes of a timeline.
    Wal {
        /// The timeline.
        timeline: TimelineId,
        /// The first byte.
        start: Lsn,
        /// The first byte behind.
        end: Lsn,
    },
    /// What the records in a range of a timeline say.
    Records {
        /// The timeline.
        timeline: TimelineId,
        /// The first byte.
        start: Lsn,
        /// The first byte behind.
        end: Lsn,
    },
    /// A stretch of a base backup's tar stream.
    Part {
        /// The backup.
        backup: BackupId,
        /// `base` or the tablespace's OID.
        archive: String,
    },
    /// A base backup's manifest.
    Manifest {
        /// The backup.
        backup: BackupId,
    },
    /// What databases and relations were called.
    Names {
        /// The timeline.
        timeline: TimelineId,
        /// Where the server was.
        lsn: Lsn,
        /// When.
        time: Timestamp,
    },
}

impl Subject {
    /// WAL in this range.
    pub fn wal(range: WalRange) -> Subject {
        Subject::Wal { timeline: range.timeline, start: range.start, end: range.end }
    }

    /// The records in this range.
    pub fn records(range: WalRange) -> Subject {
        Subject::Records { timeline: range.timeline, start: range.start, end: range.end }
    }

    /// What databases and relations were called then.
    pub fn names(at: NamesAt) -> Subject {
        Subject::Names { timeline: at.timeline, lsn: at.lsn, time: at.time }
    }

    /// A part of `archive`. Which one is no part of what it says: equal stretches are equal objects, wherever they lie.
    pub fn part(backup: BackupId, archive: Archive) -> Subject {
        Subject::Part { backup, archive: archive.to_string() }
    }
}

impl Identity {
    /// The skippable frame to put in front.
    ///
    /// # Errors
    /// None that the world can cause.
    pub fn frame(&self) -> Result<Bytes> {
        Ok(codec::identity_frame(&self.json()?))
    }

    /// What is in that frame.
    ///
    /// # Errors
    /// None that the world can cause.
    pub(super) fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write an object's identity").because(error))
    }

    /// The copy kept beside the object.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert(META_SYSTEM.to_owned(), self.system_identifier.to_string());
        metadata.insert(META_BYTES.to_owned(), self.plain_bytes.to_string());
        if let Some(blake3) = &self.blake3 {
            metadata.insert(META_BLAKE3.to_owned(), blake3.clone());
        }
        metadata
    }

    /// Reads the identity of an object called `name` from its first frame.
    ///
    /// # Errors
    /// If it has none, or one of a later format.
    pub fn parse(name: &str, frame: Option<&[u8]>) -> Result<Identity> {
        let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
        let frame = frame.ok_or_else(|| damaged("does not begin with its identity"))?;
        let identity: Identity =
            serde_json::from_slice(frame).map_err(|error| damaged("has an unreadable identity").because(error))?;
        if identity.format > super::FORMAT_VERSION {
            return Err(Error::new(Kind::Refused, format!("{name} has format {}", identity.format))
                .hint("It was written by a later Seawall: use that one or a newer one."));
        }
        Ok(identity)
    }

    /// Fails unless the identity is this cluster's and this subject's.
    ///
    /// # Errors
    /// Says what it is instead.
    pub fn check(&self, name: &str, system_identifier: u64, subject: &Subject) -> Result<()> {
        if self.system_identifier != system_identifier {
            let found = self.system_identifier;
            return Err(Error::new(
                Kind::Diverged,
                format!("{name} belongs to the cluster {found}, not to {system_identifier}"),
            )
            .hint("Two clusters share one folder of the repository, or an object was copied from another."));
        }
        if self.subject != *subject {
            return Err(Error::new(Kind::Damaged, format!("{name} holds something else: {:?}", self.subject))
                .hint("Was it renamed or swapped with another object?"));
        }
        Ok(())
    }
}

/// Length and hash of a stored WAL object's content: from the metadata of `head`, or where a copy of the bucket has
/// lost it, from the object's own first frame, or what an encrypted one says in clear.
///
/// # Errors
/// If the store fails, or the object has no readable identity.
pub(super) async fn stored_identity(store: &dyn Store, head: &ObjectHead, subject: &Subject) -> Result<Identity> {
    let name = &head.info.key;
    let meta = |field: &str| head.metadata.get(field);
    if let (Some(system), Some(bytes), Some(blake3)) = (meta(META_SYSTEM), meta(META_BYTES), meta(META_BLAKE3))
        && let (Ok(system_identifier), Ok(plain_bytes)) = (system.parse(), bytes.parse())
    {
        let blake3 = Some(blake3.clone());
        let format = super::FORMAT_VERSION;
        return Ok(Identity { format, system_identifier, subject: subject.clone(), plain_bytes, blake3 });
    }
    let prefix = read_prefix(store, name, PREFIX_BYTES).await?;
    let frame = match encryption::is_encrypted(&prefix) {
        true => encryption::read_note(&prefix),
        false => codec::read_identity(&prefix),
    };
    let frame = frame.map_err(|error| Error::from(error).context(name))?;
    Identity::parse(name, frame.as_deref())
}

/// The first bytes of an object, `bytes_max` at most.
///
/// # Errors
/// What the store says.
pub(super) async fn read_prefix(store: &dyn Store, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
    match store.get(name, Some(0..bytes_max)).await {
        Ok(stream) => stream.collect().await,
        Err(error) if error.kind == StoreErrorKind::Range => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}
