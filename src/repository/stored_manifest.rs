//! Reads a base backup's manifest back.

use super::documents::BackupDocument;
use super::identity::{Identity, Subject};
use super::layout::Key;
use super::part_name::ContentDigest;
use super::{Repository, hex};
use crate::codec::{self, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::StoreErrorKind;
use sha2::{Digest, Sha256};

/// The largest manifest that is read: ten million files.
const MANIFEST_BYTES_MAX: usize = 2 << 30;

impl Repository {
    /// The full name of the manifest of `backup`.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if `backup.json` names none.
    pub fn manifest_name(&self, backup: &BackupDocument) -> Result<String> {
        let digest = ContentDigest::of_hex(&backup.manifest_sha256);
        let digest = digest.ok_or_else(|| {
            let name = self.layout.name(&Key::BackupEnd(backup.id.clone()));
            Error::new(Kind::Damaged, format!("{name} does not name its manifest"))
        })?;
        Ok(self.layout.name_in(&Key::BackupManifest(backup.id.clone(), digest), backup.ending))
    }

    /// The manifest of `backup` as PostgreSQL sent it: about 150 bytes for each file.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it is missing, or not what `backup.json` says; else what the store says.
    pub async fn read_manifest(&self, backup: &BackupDocument) -> Result<Vec<u8>> {
        let name = self.manifest_name(backup)?;
        let stored = match self.store.get(&name, None).await {
            Ok(stream) => stream.collect().await?,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Err(Error::new(Kind::Damaged, format!("{name} is missing, and the backup needs it"))
                    .hint("Was it deleted by somebody or by a lifecycle rule? Try an older backup (`seawall list`)."));
            }
            Err(error) => return Err(error.into()),
        };
        let (id, system_identifier) = (backup.id.clone(), backup.system_identifier);
        let (sha256, identities) = (backup.manifest_sha256.clone(), self.layout.form().identities.clone());
        runtime::blocking(move || {
            let damaged = |why: &str| Error::new(Kind::Damaged, format!("{name} {why}"));
            let opened = encryption::open_whole(&identities, stored);
            let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, MANIFEST_BYTES_MAX));
            let decoded = decoded.map_err(|error| match error.is_ours() {
                true => Error::from(error).context(&name),
                false => damaged("is damaged").because(error),
            })?;
            let identity = Identity::parse(&name, decoded.identity.as_deref())?;
            identity.check(&name, system_identifier, &Subject::Manifest { backup: id })?;
            match hex(&Sha256::digest(&decoded.plain)) == sha256 {
                true => Ok(decoded.plain),
                false => Err(damaged("does not have the SHA-256 that backup.json says")),
            }
        })
        .await?
    }
}
