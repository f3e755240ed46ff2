//! What databases and relations were called, read when a base backup was complete and now and then while `seawall run` streams: so
//! that a history of WAL, which knows numbers alone, can be read. No restore needs it.

use super::identity::{Identity, Subject};
use super::layout::{Key, NamesAt};
use super::{FORMAT_VERSION, Repository, Writer};
use crate::codec::{self, Ending, FRAME_BYTES, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::StoreErrorKind;
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Relations that one object names at most, of all databases: some 30 MB of JSON.
pub const NAMED_RELATIONS_MAX: usize = 300_000;
/// The longest object that is read.
const NAMES_BYTES_MAX: usize = 256 << 20;

/// `index/<timeline>/names/<time>-<position>.json.lz4`: names by number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Names {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// When they were read.
    pub taken_at: Timestamp,
    /// The server's position then.
    pub lsn: Lsn,
    /// Its databases.
    pub databases: Vec<DatabaseNames>,
}

/// A database's name, and its relations'.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatabaseNames {
    /// Its number.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Whose work the relations show; `None` if nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Tables, indexes and what else has files, but for those that came with the cluster.
    pub relations: Vec<RelationName>,
}

/// Which transactions had not ended for whoever looked. The commit record of one may lie in the WAL for long before it has: it
/// waits for a synchronous standby in between.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// None from this number on.
    next: u64,
    /// Nor these before it.
    running: Vec<u64>,
}

impl Snapshot {
    /// Of `pg_current_snapshot()` as text, `xmin:xmax:xip,…` (`xid8funcs.c`); `None` if it is none.
    pub fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.splitn(3, ':').skip(1);
        let next = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
        Some(Snapshot { next, running: running.collect::<Option<_>>()? })
    }

    /// True if the transaction with this number, as WAL has it, had ended.
    pub fn shows(&self, xid: u32) -> bool {
        /// So many were given a number, at most, while none of them ended. Beyond that numbers have gone round since.
        const AHEAD_MAX: u32 = 1 << 24;
        let is_running = self.running.iter().any(|running| *running as u32 == xid);
        !is_running && xid.wrapping_sub(self.next as u32) >= AHEAD_MAX
    }
}

/// A relation's name: `[oid, file, kind, schema, name]`, to keep many of them small.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RelationName(
    /// Its number, which it keeps.
    pub u32,
    /// The number of its file (`relfilenode`), which changes when it is rewritten; 0 for none.
    pub u32,
    /// `pg_class.relkind`.
    pub char,
    /// Its schema.
    pub String,
    /// Its name.
    pub String,
);

impl Names {
    /// A hash of all names: the same as long as nothing has another one.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&text.len().to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for database in &self.databases {
            text(&database.oid.to_string());
            text(&database.name);
            for RelationName(oid, file, kind, schema, name) in &database.relations {
                text(&format!("{oid} {file} {kind}"));
                text(schema);
                text(name);
            }
        }
        *hasher.finalize().as_bytes()
    }
}

impl Writer {
    /// Stores what databases and relations are called on `timeline`. Says where.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_names(&self, timeline: TimelineId, names: &Names) -> Result<NamesAt> {
        let time = Timestamp::from_second(names.taken_at.as_second()).unwrap_or(names.taken_at);
        let at = NamesAt { lsn: names.lsn, time, timeline };
        let plain = serde_json::to_vec(names)
            .map_err(|error| Error::new(Kind::Internal, "cannot write names as JSON").because(error))?;
        let (writer, bytes) = (self.clone(), plain.len() as u64);
        let encoded = move || plain.chunks(FRAME_BYTES).map(|chunk| writer.encode_frame(chunk)).collect();
        let frames = runtime::blocking(encoded).await?;
        match self.store_frames(&Key::Names(at), Subject::names(at), frames, bytes).await {
            // Somebody else read them in the same second, at the same position.
            Err(error) if error.kind() == Kind::Diverged => Ok(at),
            stored => stored.map(|_| at),
        }
    }
}

impl Repository {
    /// The names that were stored so. `None` if they are gone, or of a later format.
    ///
    /// # Errors
    /// What the store says, or what is wrong with what is stored.
    pub async fn read_names(&self, system_identifier: u64, at: NamesAt, ending: Ending) -> Result<Option<Names>> {
        let name = self.layout.name_in(&Key::Names(at), ending);
        let stored = match self.store.get(&name, None).await {
            Ok(stream) => stream.collect().await?,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let identities = self.layout.form().identities.clone();
        runtime::blocking(move || {
            let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
            let opened = encryption::open_whole(&identities, stored);
            let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, NAMES_BYTES_MAX));
            let decoded = decoded.map_err(|error| match error.is_ours() {
                true => Error::from(error).context(&name),
                false => damaged("is damaged").because(error),
            })?;
            let identity = Identity::parse(&name, decoded.identity.as_deref())?;
            identity.check(&name, system_identifier, &Subject::names(at))?;
            let names: Names =
                serde_json::from_slice(&decoded.plain).map_err(|error| damaged("cannot be read").because(error))?;
            // What a later Seawall says in another way is nothing that anybody depends on.
            Ok(Some(names).filter(|names| names.format <= FORMAT_VERSION))
        })
        .await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_had_ended() {
        let snapshot = Snapshot::parse("4294967290:4294967300:4294967290,4294967297").unwrap();
        let shown = |xid: u32| snapshot.shows(xid);
        assert!(shown(u32::MAX - 6) && shown(u32::MAX - 4) && shown(0) && shown(3), "those that had ended");
        assert!(!shown(u32::MAX - 5) && !shown(1), "those that ran");
        assert!(!shown(4) && !shown(1_000_000), "those that came later");
        assert_eq!(Snapshot::parse("7:7:").unwrap(), Snapshot { next: 7, running: vec![] });
        for text in ["", "7", "7:7", "7:x:", "7:9:8,", "7:9:y"] {
            assert_eq!(Snapshot::parse(text).is_some(), text == "7:9:8,", "{text}");
        }
    }
}
