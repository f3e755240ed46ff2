//! What databases and relations were called when a base backup was taken: so that a history of WAL, which knows numbers alone,
//! can be read. No restore needs it.

use super::identity::{Identity, Subject};
use super::layout::{BackupId, Key};
use super::{BackupDocument, FORMAT_VERSION, Repository, Writer};
use crate::codec::{self, FRAME_BYTES, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::StoreErrorKind;
use crate::wal::Lsn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Relations that one object names at most, of all databases: some 30 MB of JSON.
pub const NAMED_RELATIONS_MAX: usize = 300_000;
/// The longest object that is read.
const NAMES_BYTES_MAX: usize = 256 << 20;

/// `base/<id>/names.json.lz4`: names by number.
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
    /// Tables, indexes and what else has files, but for those that came with the cluster.
    pub relations: Vec<RelationName>,
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

impl Writer {
    /// Stores the names of a base backup's databases and relations beside it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_names(&self, id: &BackupId, names: &Names) -> Result<()> {
        let plain = serde_json::to_vec(names)
            .map_err(|error| Error::new(Kind::Internal, "cannot write names as JSON").because(error))?;
        let (writer, bytes) = (self.clone(), plain.len() as u64);
        let encoded = move || plain.chunks(FRAME_BYTES).map(|chunk| writer.encode_frame(chunk)).collect();
        let frames = runtime::blocking(encoded).await?;
        let (key, subject) = (Key::BackupNames(id.clone()), Subject::Names { backup: id.clone() });
        self.store_frames(&key, subject, frames, bytes).await.map(|_| ())
    }
}

impl Repository {
    /// The names that were stored with a base backup; `None` if there are none.
    ///
    /// # Errors
    /// If the store fails, or what is stored is not what it should be.
    pub async fn read_names(&self, backup: &BackupDocument) -> Result<Option<Names>> {
        let name = self.layout.name_in(&Key::BackupNames(backup.id.clone()), backup.ending);
        let stored = match self.store.get(&name, None).await {
            Ok(stream) => stream.collect().await?,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (id, system_identifier) = (backup.id.clone(), backup.system_identifier);
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
            identity.check(&name, system_identifier, &Subject::Names { backup: id })?;
            let names: Names =
                serde_json::from_slice(&decoded.plain).map_err(|error| damaged("cannot be read").because(error))?;
            // What a later Seawall says in another way is nothing that anybody depends on.
            Ok(Some(names).filter(|names| names.format <= FORMAT_VERSION))
        })
        .await?
    }
}
