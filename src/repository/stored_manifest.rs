//! Reads a base backup's manifest back.

use super::documents::BackupDocument;
use super::identity::{Identity, Subject};
use super::layout::Key;
use super::manifest::{Manifest, ManifestIntake};
use super::part_name::ContentDigest;
use super::{Repository, hex};
use crate::codec::{
    CodecError, FRAME_BYTES, FRAME_STORED_BYTES_MAX, FrameDecoder, FrameSplitter, RawFrame, encryption,
};
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

    /// The manifest of `backup`. It is read as it is decompressed: its text has 150 bytes for each file, some 50 as it is stored.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it is missing, not what `backup.json` says, or no manifest; else what the store says.
    pub async fn read_manifest(&self, backup: &BackupDocument) -> Result<Manifest> {
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
            let unreadable = |error: CodecError| match error.is_ours() {
                true => Error::from(error).context(&name),
                false => damaged("is damaged").because(error),
            };
            let mut intake = ManifestIntake::default();
            let (mut identity, mut plain, mut plain_bytes) = (None, Vec::new(), 0);
            let mut splitter = FrameSplitter::new(FRAME_STORED_BYTES_MAX);
            let mut decoder = FrameDecoder::new();
            // The first thing that is wrong with its text: its hash tells whether it was the server's already.
            let mut is_text = Ok(());
            let mut sha256_found = Sha256::new();
            for piece in encryption::open(&identities, stored).map_err(unreadable)? {
                splitter.push(piece.map_err(unreadable)?);
                while let Some(frame) = splitter.next().map_err(unreadable)? {
                    match frame {
                        RawFrame::Identity(bytes) => identity = Some(bytes),
                        RawFrame::Data(raw) => {
                            plain.clear();
                            decoder.decode(&raw, &mut plain, FRAME_BYTES).map_err(unreadable)?;
                            plain_bytes += plain.len();
                            if plain_bytes > MANIFEST_BYTES_MAX {
                                return Err(unreadable(CodecError::TooLarge { limit_bytes: MANIFEST_BYTES_MAX }));
                            }
                            sha256_found.update(&plain);
                            is_text = is_text.and_then(|()| intake.feed(&plain));
                        }
                    }
                }
            }
            splitter.finish().map_err(unreadable)?;
            let identity = Identity::parse(&name, identity.as_deref())?;
            identity.check(&name, system_identifier, &Subject::Manifest { backup: id })?;
            if hex(&sha256_found.finalize()) != sha256 {
                return Err(damaged("does not have the SHA-256 that backup.json says"));
            }
            let manifest = is_text.and_then(|()| intake.finish());
            manifest.map_err(|error| damaged("cannot be read").because(error))
        })
        .await?
    }
}
