//! Creating objects under the rule that a name never gets second bytes.

use super::documents::FORMAT_VERSION;
use super::identity::{Identity, Subject, stored_identity};
use super::layout::{Key, Layout};
use crate::codec::{FRAME_BYTES, FrameEncoder};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::{Body, Created, Metadata, Store, StoreErrorKind};
use crate::wal::WalRange;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};

/// What is known of a stored stretch of WAL: enough to compare other bytes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which bytes.
    pub range: WalRange,
    /// SHA-256 of them, in hexadecimal.
    pub sha256: String,
}

impl Stamp {
    /// Computes the stamp of `bytes`. CPU work: about 1.5 GB/s.
    pub fn of(range: WalRange, bytes: &[u8]) -> Stamp {
        Stamp { range, sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// Writes one cluster's objects.
#[derive(Clone, Debug)]
pub struct Writer {
    store: Arc<dyn Store>,
    layout: Layout,
    system_identifier: u64,
    encoders: Encoders,
}

/// Encoders that are free: a new one for each frame would cost half the speed.
#[derive(Clone, Default)]
struct Encoders(Arc<Mutex<Vec<FrameEncoder>>>);

impl std::fmt::Debug for Encoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoders")
    }
}

impl Encoders {
    fn with<T>(&self, layout: &Layout, work: impl FnOnce(&mut FrameEncoder) -> T) -> T {
        let free = self.0.lock().ok().and_then(|mut free| free.pop());
        let mut encoder = free.unwrap_or_else(|| FrameEncoder::new(layout.codec()));
        let result = work(&mut encoder);
        if let Ok(mut free) = self.0.lock() {
            free.push(encoder);
        }
        result
    }
}

impl Writer {
    /// Writes into `store` for the cluster with this system identifier.
    pub fn new(store: Arc<dyn Store>, layout: Layout, system_identifier: u64) -> Writer {
        Writer { store, layout, system_identifier, encoders: Encoders::default() }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The names.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whose objects these are.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// Stores WAL under `key` ([`Key::Block`] or [`Key::Tail`]), whose bytes these are. When this says yes, the bytes
    /// are in the store, durably: just now, or equal ones before.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if other bytes have the name; otherwise what the store says.
    pub async fn store_wal(&self, key: &Key, range: WalRange, bytes: Bytes) -> Result<Stamp> {
        let (layout, encoders, system_identifier) =
            (self.layout.clone(), self.encoders.clone(), self.system_identifier);
        let (stamp, identity, body) = runtime::blocking(move || {
            let stamp = Stamp::of(range, &bytes);
            let identity = Identity {
                format: FORMAT_VERSION,
                system_identifier,
                subject: Subject::wal(range),
                plain_bytes: range.bytes(),
                sha256: Some(stamp.sha256.clone()),
            };
            let mut pieces = vec![identity.frame()?];
            encoders.with(&layout, |encoder| {
                pieces.extend(bytes.chunks(FRAME_BYTES).map(|chunk| encoder.encode(chunk)));
            });
            Ok::<_, Error>((stamp, identity, Body::from(pieces)))
        })
        .await??;
        let name = self.layout.name(key);
        match self.store.create(&name, body, identity.metadata()).await? {
            Created::New => Ok(stamp),
            Created::Exists => {
                // Gone again: somebody deletes here. Nothing is proven, so the caller tries again.
                let stored = self.stamp_of(&name, range).await?;
                let stored = stored.ok_or_else(|| Error::new(Kind::Store, format!("{name} was there and is gone")))?;
                same(&name, &stored, &stamp)?;
                Ok(stamp)
            }
        }
    }

    /// What is stored under `name`, which holds the bytes of `range`; `None` if nothing is.
    ///
    /// # Errors
    /// If it is another cluster's, or does not hold that range.
    pub async fn stamp_of(&self, name: &str, range: WalRange) -> Result<Option<Stamp>> {
        let head = match self.store.head(name).await {
            Ok(head) => head,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let subject = Subject::wal(range);
        let identity = stored_identity(self.store.as_ref(), &head, &subject).await?;
        identity.check(name, self.system_identifier, &subject)?;
        let sha256 = identity.sha256.filter(|_| identity.plain_bytes == range.bytes());
        let sha256 = sha256.ok_or_else(|| Error::new(Kind::Damaged, format!("{name} does not say what it holds")))?;
        Ok(Some(Stamp { range, sha256 }))
    }

    /// Stores a document under `key`; the same document again is fine.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if another document has the name; otherwise what the store says.
    pub async fn store_document(&self, key: &Key, document: &impl Serialize) -> Result<Created> {
        let mut json = serde_json::to_vec_pretty(document)
            .map_err(|error| Error::new(Kind::Internal, "cannot write a document").because(error))?;
        json.push(b'\n');
        self.store_plain(key, Bytes::from(json)).await
    }

    /// Stores bytes as they are under `key`: documents and history files. The same bytes again are fine.
    ///
    /// # Errors
    /// As [`Writer::store_document`].
    pub async fn store_plain(&self, key: &Key, bytes: Bytes) -> Result<Created> {
        let name = self.layout.name(key);
        let created = self.store.create(&name, Body::from(bytes.clone()), Metadata::new()).await?;
        if created == Created::Exists {
            let stored = self.store.get(&name, None).await?.collect().await?;
            if stored != bytes {
                return Err(diverged(&name));
            }
        }
        Ok(created)
    }
}

/// Fails if two stamps of one range differ.
///
/// # Errors
/// [`Kind::Diverged`].
pub(crate) fn same(name: &str, stored: &Stamp, ours: &Stamp) -> Result<()> {
    if stored == ours { Ok(()) } else { Err(diverged(name)) }
}

fn diverged(name: &str) -> Error {
    Error::new(Kind::Diverged, format!("{name} is stored with other bytes than the server has now")).hint(
        "Nothing was overwritten and nothing acknowledged. Was the server rolled back to a snapshot, restored from a \
         backup and started again, or does a second cluster write into this folder? Give a cluster that went its own \
         way another --cluster name, and take a new base backup.",
    )
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
