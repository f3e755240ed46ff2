//! Creating objects under the rule that a name never gets second bytes.

use super::cut_index::{CutIndex, CutIndexer};
use super::documents::{self, FORMAT_VERSION};
use super::identity::{Identity, Subject, stored_identity};
use super::layout::{Key, Layout};
use super::piece::Piece;
use crate::codec::{Buffers, Compression, FrameEncoder, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::{Body, Created, Metadata, ObjectStream, Store, StoreErrorKind};
use crate::wal::{Lsn, WalRange};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What ends within one second has names of its own: a later second each, of so many.
const DATES_TRIED: i64 = 60;

/// What is known of a stored stretch of WAL: enough to compare other bytes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which bytes.
    pub range: WalRange,
    /// BLAKE3 of them, in hexadecimal.
    pub blake3: String,
}

impl Stamp {
    /// Computes the stamp of the bytes in `pieces`. CPU work.
    pub fn of<'a>(range: WalRange, pieces: impl IntoIterator<Item = &'a [u8]>) -> Stamp {
        let mut hash = blake3::Hasher::new();
        pieces.into_iter().for_each(|piece| _ = hash.update(piece));
        Stamp { range, blake3: hash.finalize().to_string() }
    }

    /// Computes the stamp of the bytes in `pieces`, of which each is had only while it is its turn. CPU work.
    ///
    /// # Errors
    /// As [`Piece::bytes`].
    pub fn of_pieces(range: WalRange, pieces: &[Piece]) -> Result<Stamp> {
        let mut hash = blake3::Hasher::new();
        pieces.iter().try_for_each(|piece| piece.bytes().map(|bytes| _ = hash.update(&bytes)))?;
        Ok(Stamp { range, blake3: hash.finalize().to_string() })
    }
}

/// WAL as it is stored: compressed, with its stamp.
#[derive(Clone, Debug)]
pub struct EncodedWal {
    stamp: Stamp,
    body: Body,
    metadata: Metadata,
    held_bytes: u64,
}

impl EncodedWal {
    /// The memory that it takes.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

/// WAL on the way to how it is stored.
pub struct WalEncoding {
    hash: blake3::Hasher,
    /// Of what will be encrypted: whoever cannot read that needs to know its cuts.
    cuts: Option<CutIndexer>,
    frames: Vec<Bytes>,
    plain_bytes: u64,
    held_bytes: u64,
}

impl WalEncoding {
    /// The memory that it takes, beside what others pack.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// `frames` are those of the bytes that follow, which somebody packed. CPU work.
    fn go_on(&mut self, bytes: &[u8], frames: Vec<Bytes>) {
        if let Some(cuts) = &mut self.cuts {
            cuts.push(bytes);
        }
        self.hash.update(bytes);
        self.plain_bytes += bytes.len() as u64;
        self.frames.extend(frames);
    }
}

impl std::fmt::Debug for WalEncoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalEncoding").field("plain_bytes", &self.plain_bytes).finish_non_exhaustive()
    }
}

/// How frames were stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredFrames {
    /// Bytes of the object.
    pub bytes: u64,
    /// SHA-256 of them, in hexadecimal.
    pub sha256: String,
}

/// Writes one cluster's objects.
#[derive(Clone, Debug)]
pub struct Writer {
    store: Arc<dyn Store>,
    layout: Layout,
    system_identifier: u64,
    encoders: Encoders,
}

/// Plain bytes in a frame of WAL, at most. Smaller than those of base backups: a block is compressed while it grows, a frame at a
/// time, and what that needs is held for each cluster.
pub const WAL_FRAME_BYTES: usize = 1 << 20;

/// What a frame takes beside its plain bytes if those do not shrink, and what is in front of all frames.
const OVERHEAD_BYTES: u64 = 8 << 10;

/// The memory that so many plain bytes of WAL take as they are stored, if they do not shrink at all.
pub const fn wal_held_bytes_max(plain_bytes: u64) -> u64 {
    plain_bytes + (plain_bytes / WAL_FRAME_BYTES as u64 + 2) * OVERHEAD_BYTES
}

/// So little is hashed and compressed by whoever asks: to wake a thread for it takes longer.
const ENCODED_IN_PLACE_BYTES_MAX: u64 = 16 << 10;

/// Frames whose memory is kept to be used again: about as many as a block of WAL has, or a part of a base backup.
const SPARE_FRAMES_MAX: usize = 16;

/// Encoders that are free: a new one for each frame would cost half the speed. Clones are one.
#[derive(Clone)]
pub struct Encoders {
    free: Arc<Mutex<Vec<(Compression, FrameEncoder)>>>,
    at_once: usize,
    turns: Arc<Semaphore>,
    buffers: Buffers,
}

impl Default for Encoders {
    fn default() -> Encoders {
        Encoders::new(usize::MAX, SPARE_FRAMES_MAX)
    }
}

impl std::fmt::Debug for Encoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoders")
    }
}

impl Encoders {
    /// None so far. So many are at work `at_once`, each with half a mebibyte, and as many are kept while nobody needs them; and the
    /// memory of so many frames.
    pub fn new(at_once: usize, spare_frames_max: usize) -> Encoders {
        let turns = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
        Encoders { free: Arc::default(), at_once, turns, buffers: Buffers::new(spare_frames_max) }
    }

    fn with<T>(&self, layout: &Layout, work: impl FnOnce(&mut FrameEncoder) -> T) -> T {
        let compression = layout.form().compression;
        let free = self.free.lock().ok().and_then(|mut free| {
            let place = free.iter().rposition(|(its, _)| *its == compression)?;
            Some(free.swap_remove(place).1)
        });
        let mut encoder = free.unwrap_or_else(|| FrameEncoder::with_buffers(compression, self.buffers.clone()));
        let result = work(&mut encoder);
        if let Ok(mut free) = self.free.lock()
            && free.len() < self.at_once
        {
            free.push((compression, encoder));
        }
        result
    }
}

impl Writer {
    /// Writes into `store` for the cluster with this system identifier.
    pub fn new(store: Arc<dyn Store>, layout: Layout, system_identifier: u64) -> Writer {
        Writer { store, layout, system_identifier, encoders: Encoders::default() }
    }

    /// As it is, with encoders that others use too.
    #[must_use]
    pub fn with_encoders(self, encoders: Encoders) -> Writer {
        Writer { encoders, ..self }
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

    /// Hashes and compresses WAL: the bytes of `range`, behind `lead`, as for [`Writer::begin_wal`]. Lets go of each piece as
    /// soon as it can.
    ///
    /// # Errors
    /// None that the world can cause.
    pub async fn encode_wal(&self, range: WalRange, lead: Bytes, pieces: Vec<Piece>) -> Result<EncodedWal> {
        let writer = self.clone();
        let encode = move || writer.finish_wal(writer.begin_wal(range.start, &lead), pieces, range);
        if range.bytes() <= ENCODED_IN_PLACE_BYTES_MAX {
            return encode();
        }
        let turn = self.turn().await;
        let work = move || {
            let _turn = turn;
            encode()
        };
        runtime::blocking(work).await?
    }

    /// A turn to compress: others who share the encoders wait for it, and each thread that has none takes memory for nothing.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        self.encoders.turns.clone().acquire_owned().await.ok()
    }

    /// Begins to encode WAL from `start` on. `lead` is what lies in front of it, from the beginning of a page, if that is known:
    /// see [`lead_start`](super::lead_start).
    pub fn begin_wal(&self, start: Lsn, lead: &[u8]) -> WalEncoding {
        let began = Lsn(start.0.saturating_sub(lead.len() as u64));
        let is_encrypted = !self.layout.form().recipients.is_empty();
        let cuts = is_encrypted.then(|| CutIndexer::new(self.layout.segment_size(), began, lead));
        // The first frame is the identity's, which is known last.
        WalEncoding { hash: blake3::Hasher::new(), cuts, frames: vec![Bytes::new()], plain_bytes: 0, held_bytes: 0 }
    }

    /// Hashes and compresses the bytes that follow those in `encoding`, in frames of their own: these, which may be put elsewhere.
    /// CPU work.
    pub fn encode_piece<'a>(&self, encoding: &'a mut WalEncoding, piece: &[u8]) -> &'a mut [Bytes] {
        encoding.plain_bytes += piece.len() as u64;
        let WalEncoding { hash, cuts, frames, held_bytes, .. } = encoding;
        let before = frames.len();
        if let Some(cuts) = cuts {
            cuts.push(piece);
        }
        self.encoders.with(&self.layout, |encoder| {
            for plain in piece.chunks(WAL_FRAME_BYTES) {
                frames.push(encoder.encode_hashed(plain, |bytes| _ = hash.update(bytes)));
                *held_bytes += encoder.last_held_bytes() as u64;
            }
        });
        &mut frames[before..]
    }

    /// `encoding` has the first bytes of `range`, and `rest` the others: encodes those as well. CPU work.
    ///
    /// # Errors
    /// If that is more or less than all of `range`: a defect.
    pub fn finish_wal(
        &self,
        mut encoding: WalEncoding,
        rest: impl IntoIterator<Item = Piece>,
        range: WalRange,
    ) -> Result<EncodedWal> {
        for piece in rest {
            let (frames, bytes) = (piece.frames(), piece.bytes()?);
            drop(piece);
            match frames {
                Some(frames) => encoding.go_on(&bytes, frames),
                None => _ = self.encode_piece(&mut encoding, &bytes),
            }
        }
        let WalEncoding { hash, cuts, mut frames, plain_bytes, held_bytes } = encoding;
        if plain_bytes != range.bytes() {
            return Err(Error::new(Kind::Internal, format!("{plain_bytes} bytes were encoded for {range:?}")));
        }
        let blake3 = hash.finalize().to_string();
        let identity = Identity {
            format: FORMAT_VERSION,
            system_identifier: self.system_identifier,
            subject: Subject::wal(range),
            plain_bytes,
            blake3: Some(blake3.clone()),
        };
        frames[0] = identity.frame()?;
        let cuts = cuts.and_then(|cuts| cuts.finish(range.start));
        let body = self.seal(&identity, cuts.as_ref(), frames)?;
        let is_sealed = !self.layout.form().recipients.is_empty();
        let held_bytes = if is_sealed { body.bytes() } else { held_bytes };
        Ok(EncodedWal { stamp: Stamp { range, blake3 }, body, metadata: identity.metadata(), held_bytes })
    }

    /// The frames of an object as they are stored: encrypted, if that is wanted. CPU work.
    pub(super) fn seal(&self, identity: &Identity, cuts: Option<&CutIndex>, frames: Vec<Bytes>) -> Result<Body> {
        let recipients = &self.layout.form().recipients;
        if recipients.is_empty() {
            return Ok(Body::from(frames));
        }
        let cuts = cuts.map(CutIndex::encode).transpose()?.flatten();
        let encrypted =
            encryption::encrypt(recipients, &identity.json()?, cuts.as_deref(), frames, &self.encoders.buffers)
                .map_err(|error| Error::new(Kind::Internal, "cannot encrypt an object").because(error))?;
        Ok(Body::from(encrypted))
    }

    /// Stores WAL under `key` ([`Key::Block`] or [`Key::Tail`]). When this says yes, the bytes are in the store, durably:
    /// just now, or equal ones before.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if other bytes have the name; otherwise what the store says.
    pub async fn store_encoded(&self, key: &Key, wal: &EncodedWal) -> Result<()> {
        let name = self.layout.name(key);
        match self.store.create(&name, wal.body.clone(), wal.metadata.clone()).await? {
            Created::New => Ok(()),
            Created::Exists => {
                // Gone again: somebody deletes here. Nothing is proven, so the caller tries again.
                let stored = self.stamp_of(&name, wal.stamp.range).await?;
                let stored = stored.ok_or_else(|| Error::new(Kind::Store, format!("{name} was there and is gone")))?;
                same(&name, &stored, &wal.stamp)
            }
        }
    }

    /// Both in one: stores the bytes of `range`.
    ///
    /// # Errors
    /// As [`Writer::store_encoded`].
    pub async fn store_wal(&self, key: &Key, range: WalRange, bytes: Bytes) -> Result<Stamp> {
        let wal = self.encode_wal(range, Bytes::new(), vec![bytes.into()]).await?;
        self.store_encoded(key, &wal).await?;
        Ok(wal.stamp)
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
        let blake3 = identity.blake3.filter(|_| identity.plain_bytes == range.bytes());
        let blake3 = blake3.ok_or_else(|| Error::new(Kind::Damaged, format!("{name} does not say what it holds")))?;
        Ok(Some(Stamp { range, blake3 }))
    }

    /// One frame with `plain` in it, for [`Writer::store_frames`]: at most [`crate::codec::FRAME_BYTES`]. CPU work.
    pub fn encode_frame(&self, plain: &[u8]) -> Bytes {
        self.encoders.with(&self.layout, |encoder| encoder.encode(plain))
    }

    /// As [`Writer::encode_frame`], without a checksum of the frame's own beside those of the caller: `seen` gets all of
    /// `plain` in pieces, each while it is in the processor's cache.
    pub fn encode_checked_frame(&self, plain: &[u8], seen: impl FnMut(&[u8])) -> Bytes {
        self.encoders.with(&self.layout, |encoder| encoder.encode_hashed(plain, seen))
    }

    /// Stores what is not WAL under `key`: `frames`, behind an identity that says that they are `subject`, of
    /// `plain_bytes`. The same bytes again are fine. Says how they are stored.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if other bytes have the name; otherwise what the store says.
    pub async fn store_frames(
        &self,
        key: &Key,
        subject: Subject,
        frames: Vec<Bytes>,
        plain_bytes: u64,
    ) -> Result<StoredFrames> {
        let system_identifier = self.system_identifier;
        let identity = Identity { format: FORMAT_VERSION, system_identifier, subject, plain_bytes, blake3: None };
        let metadata = identity.metadata();
        let mut pieces = vec![identity.frame()?];
        pieces.extend(frames);
        let writer = self.clone();
        let (body, sha256) = runtime::blocking(move || {
            let body = writer.seal(&identity, None, pieces)?;
            let mut sha256 = Sha256::new();
            body.pieces().iter().for_each(|piece| sha256.update(piece));
            Ok::<_, Error>((body, hex(&sha256.finalize())))
        })
        .await??;
        let (name, bytes) = (self.layout.name(key), body.bytes());
        if self.store.create(&name, body, metadata).await? == Created::Exists {
            let found = sha256_of(self.store.get(&name, None).await?).await?;
            if hex(&found) != sha256 {
                return Err(Error::new(Kind::Diverged, format!("{name} is stored with other bytes"))
                    .hint("Does another program write into this folder of the repository?"));
            }
        }
        Ok(StoredFrames { bytes, sha256 })
    }

    /// Stores what is never encrypted under `key`: `frames`, behind an identity that says that they are `subject`, of
    /// `plain_bytes`. Says whether something has the name already, which stays as it is.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_in_clear(
        &self,
        key: &Key,
        subject: Subject,
        frames: Vec<Bytes>,
        plain_bytes: u64,
    ) -> Result<Created> {
        let system_identifier = self.system_identifier;
        let identity = Identity { format: FORMAT_VERSION, system_identifier, subject, plain_bytes, blake3: None };
        let mut pieces = vec![identity.frame()?];
        pieces.extend(frames);
        Ok(self.store.create(&self.layout.name(key), Body::from(pieces), identity.metadata()).await?)
    }

    /// Stores a document under `key`; the same document again is fine.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if another document has the name; otherwise what the store says.
    pub async fn store_document(&self, key: &Key, document: &impl Serialize) -> Result<Created> {
        let json = documents::write(document)
            .map_err(|error| Error::new(Kind::Internal, "cannot write a document").because(error))?;
        self.store_body(key, Body::from(json)).await
    }

    /// Stores a document whose name has the second `time`, or a later one where another document has that name; says under which key.
    ///
    /// # Errors
    /// As [`Writer::store_document`].
    pub(super) async fn store_dated(
        &self,
        mut time: Timestamp,
        key: impl Fn(Timestamp) -> Key,
        document: &impl Serialize,
    ) -> Result<Key> {
        let last = time.saturating_add(SignedDuration::from_secs(DATES_TRIED)).unwrap_or(time);
        loop {
            let key = key(time);
            match self.store_document(&key, document).await {
                Ok(_) => return Ok(key),
                Err(error) if error.kind() == Kind::Diverged && time < last => {
                    time = time.saturating_add(SignedDuration::from_secs(1)).unwrap_or(last);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Stores bytes as they are under `key`: documents and history files. The same bytes again are fine.
    ///
    /// # Errors
    /// As [`Writer::store_document`].
    pub async fn store_plain(&self, key: &Key, bytes: Bytes) -> Result<Created> {
        self.store_body(key, Body::from(bytes)).await
    }

    async fn store_body(&self, key: &Key, body: Body) -> Result<Created> {
        let name = self.layout.name(key);
        let created = self.store.create(&name, body.clone(), Metadata::new()).await?;
        if created == Created::Exists {
            let mut ours = Sha256::new();
            body.pieces().iter().for_each(|piece| ours.update(piece));
            if sha256_of(self.store.get(&name, None).await?).await?[..] != ours.finalize()[..] {
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

/// SHA-256 of a stored object's bytes.
pub(super) async fn sha256_of(mut stored: ObjectStream) -> Result<[u8; 32]> {
    let mut sha256 = Sha256::new();
    while let Some(piece) = stored.bytes.next().await {
        sha256.update(&piece?);
    }
    Ok(sha256.finalize().into())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
