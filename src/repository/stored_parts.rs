//! Stores parts of base backups, and those that an earlier attempt stored not again.
//!
//! A part is called by the SHA-256 of its object as it is before encryption, and of those for whom it is encrypted ([`PartName`]). So a
//! part of that name is the same stretch of tar, in the same frames, for the same readers: it is taken for equal if its length can be
//! right. What `backup.json` says of it is always what is stored: where it is not encrypted, the hash was just computed, and
//! encrypted, where every writer makes other bytes of the same content, it comes from the object that is there.

use super::documents::{BackupPart, FORMAT_VERSION};
use super::identity::{Identity, Subject};
use super::layout::{Archive, BackupId, Key, Layout};
use super::part_name::{ContentDigest, PartName};
use super::writer::{Writer, hex, sha256_of};
use crate::codec::{Ending, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::{Created, Metadata, StoreErrorKind, list_all};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// The name of the metadata with the SHA-256 of an encrypted part: a copy, for speed, of what reading it gives.
const META_SHA256: &str = "seawall-sha256";

/// How a part is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPart {
    /// What it is called.
    pub name: PartName,
    /// Bytes of the object.
    pub bytes: u64,
    /// SHA-256 of them, in hexadecimal.
    pub sha256: String,
    /// False if an earlier attempt had stored it.
    pub is_new: bool,
}

/// What earlier attempts at a base backup stored under its name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EarlierParts(HashMap<(Archive, ContentDigest), Earlier>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Earlier {
    name: PartName,
    bytes: u64,
    /// Of the object's bytes, if this process stored them.
    sha256: Option<String>,
}

impl EarlierParts {
    /// Those of the objects in a backup's folder that are stored as `layout` stores them now.
    pub fn found<'a>(layout: &Layout, objects: impl IntoIterator<Item = (&'a str, u64)>) -> EarlierParts {
        let mut parts = EarlierParts::default();
        for (object, bytes) in objects {
            let is_ours = Ending::split(object).is_some_and(|(_, ending)| ending == layout.form().ending());
            if let (true, Ok(Key::BackupPart(_, name))) = (is_ours, layout.parse(object)) {
                parts.put(Earlier { name, bytes, sha256: None });
            }
        }
        parts
    }

    /// Adds what was stored by this process.
    pub fn add(&mut self, part: &BackupPart) {
        let (name, bytes, sha256) = (part.name, part.stored_bytes, Some(part.sha256.clone()));
        self.put(Earlier { name, bytes, sha256 });
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put(&mut self, part: Earlier) {
        self.0.insert((part.name.archive, part.name.digest), part);
    }
}

/// A part before it is encrypted.
struct Clear {
    identity: Identity,
    pieces: Vec<Bytes>,
    bytes: u64,
    digest: ContentDigest,
    /// Of the object's bytes, if they are stored like this.
    sha256: Option<String>,
}

impl Clear {
    /// True if the object, stored, may have this length.
    fn may_have_length(&self, stored: u64) -> bool {
        match self.sha256 {
            Some(_) => stored == self.bytes,
            None => encryption::may_have_length(self.bytes, stored),
        }
    }
}

impl Writer {
    /// Stores `frames`, `plain_bytes` of tar, as the `number`-th part of `archive`, unless it is one of the `earlier` ones.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if other bytes have the name; otherwise what the store says.
    pub async fn store_part(
        &self,
        backup: &BackupId,
        (archive, number): (Archive, u32),
        frames: Vec<Bytes>,
        plain_bytes: u64,
        earlier: &EarlierParts,
    ) -> Result<StoredPart> {
        let (writer, subject) = (self.clone(), Subject::part(backup.clone(), archive));
        let clear = runtime::blocking(move || writer.clear_part(subject, frames, plain_bytes)).await??;
        if let Some(part) = earlier.0.get(&(archive, clear.digest)).filter(|part| clear.may_have_length(part.bytes))
            && let Some(part) = self.reuse(backup, part, &clear).await?
        {
            return Ok(part);
        }
        self.create_part(backup, PartName { archive, number, digest: clear.digest }, clear).await
    }

    /// Names a part by its content. CPU work.
    fn clear_part(&self, subject: Subject, frames: Vec<Bytes>, plain_bytes: u64) -> Result<Clear> {
        let system_identifier = self.system_identifier();
        let identity = Identity { format: FORMAT_VERSION, system_identifier, subject, plain_bytes, blake3: None };
        let mut pieces = vec![identity.frame()?];
        pieces.extend(frames);
        let recipients = &self.layout().form().recipients;
        let mut sha256 = Sha256::new();
        // What was encrypted for others is of no use to those who shall read it.
        recipients.words().iter().for_each(|word| sha256.update(format!("{word}\n")));
        pieces.iter().for_each(|piece| sha256.update(piece));
        let sha256: [u8; 32] = sha256.finalize().into();
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let digest = ContentDigest::of_sha256(sha256);
        Ok(Clear { identity, pieces, bytes, digest, sha256: recipients.is_empty().then(|| hex(&sha256)) })
    }

    /// What is stored of an equal part; `None` if it is gone.
    async fn reuse(&self, backup: &BackupId, part: &Earlier, clear: &Clear) -> Result<Option<StoredPart>> {
        let Earlier { name, bytes, sha256 } = part.clone();
        let known = clear.sha256.clone().or(sha256);
        let sha256 = match known {
            Some(sha256) => Some(sha256),
            None => self.stored_sha256(&self.layout().name(&Key::BackupPart(backup.clone(), name))).await?,
        };
        Ok(sha256.map(|sha256| StoredPart { name, bytes, sha256, is_new: false }))
    }

    /// SHA-256 of a stored object, from what is kept beside it or else from its bytes; `None` if it is gone.
    async fn stored_sha256(&self, name: &str) -> Result<Option<String>> {
        let gone = |kind| kind == StoreErrorKind::NotFound;
        let head = match self.store().head(name).await {
            Ok(head) => head,
            Err(error) if gone(error.kind) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_hash = |text: &&String| text.len() == 64 && ContentDigest::of_hex(text).is_some();
        if let Some(sha256) = head.metadata.get(META_SHA256).filter(is_hash) {
            return Ok(Some(sha256.clone()));
        }
        match self.store().get(name, None).await {
            Ok(stored) => Ok(Some(hex(&sha256_of(stored).await?))),
            Err(error) if gone(error.kind) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn create_part(&self, backup: &BackupId, name: PartName, clear: Clear) -> Result<StoredPart> {
        let object = self.layout().name(&Key::BackupPart(backup.clone(), name));
        let mut metadata: Metadata = clear.identity.metadata();
        let (clear_bytes, is_encrypted) = (clear.bytes, clear.sha256.is_none());
        let writer = self.clone();
        let (body, sha256) = runtime::blocking(move || {
            let body = writer.seal(&clear.identity, None, clear.pieces)?;
            let sealed = || {
                let mut sha256 = Sha256::new();
                body.pieces().iter().for_each(|piece| sha256.update(piece));
                hex(&sha256.finalize())
            };
            let sha256 = clear.sha256.unwrap_or_else(sealed);
            Ok::<_, Error>((body, sha256))
        })
        .await??;
        if is_encrypted {
            metadata.insert(META_SHA256.to_owned(), sha256.clone());
        }
        let bytes = body.bytes();
        if self.store().create(&object, body, metadata).await? == Created::New {
            return Ok(StoredPart { name, bytes, sha256, is_new: true });
        }
        // Our own, of which the reply was lost; or that of another process, which encrypts the same content to other bytes.
        let stored = self.store().get(&object, None).await?;
        let stored_bytes = stored.head.info.bytes;
        let found = hex(&sha256_of(stored).await?);
        let is_equal = found == sha256 && stored_bytes == bytes;
        match is_equal || is_encrypted && encryption::may_have_length(clear_bytes, stored_bytes) {
            true => Ok(StoredPart { name, bytes: stored_bytes, sha256: found, is_new: is_equal }),
            false => Err(Error::new(Kind::Diverged, format!("{object} is stored with other bytes than its name says"))
                .hint("Does another program write into this folder of the repository? Take another backup.")),
        }
    }

    /// Fails unless every one of `parts` is in the folder of `backup`, with its length: of those that an earlier attempt stored nobody
    /// knows who has deleted some since.
    ///
    /// # Errors
    /// [`Kind::Damaged`], which names the first that is not; else what the store says.
    pub async fn check_parts(&self, backup: &BackupId, parts: &[BackupPart]) -> Result<()> {
        let listed = list_all(self.store().as_ref(), &self.layout().backup_prefix(backup)).await?;
        let listed: HashMap<String, u64> = listed.into_iter().map(|object| (object.key, object.bytes)).collect();
        for part in parts {
            let name = self.layout().name(&Key::BackupPart(backup.clone(), part.name));
            if listed.get(&name) != Some(&part.stored_bytes) {
                return Err(Error::new(Kind::Damaged, format!("{name} was stored by an earlier attempt and is gone"))
                    .hint(format!(
                        "Was it deleted by somebody, a prune or a lifecycle rule? `seawall backup --resume {backup}` stores it again."
                    )));
            }
        }
        Ok(())
    }
}
