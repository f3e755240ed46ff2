//! Object stores behind one small contract. Knows nothing of PostgreSQL, of formats or of names.
//!
//! Every store and every decorator passes the one suite in `tests/store_contract.rs`.

mod body;
mod bucket;
mod error;
mod file;
mod key;
mod memory;
mod observed;
mod open;
mod probe;
mod retrying;
mod s3;

pub use body::{Body, ObjectStream};
pub use bucket::{BucketLock, BucketSettings, LifecycleRule, Told};
pub use error::{StoreError, StoreErrorKind};
pub use file::{DiskThreads, FileStore};
pub use memory::MemoryStore;
pub use observed::{NoObserver, ObservedStore, Operation, StoreObserver};
pub use open::{Opener, StoreOptions, open, place_of};
pub use probe::{ConditionalWrites, probe};
pub use retrying::RetryingStore;
pub use s3::{Checksum, Conditional, LockMode, ObjectLock, S3Options, S3Store, ServerSideEncryption};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

/// Small facts kept beside an object: lower-case ASCII names, ASCII values, 1 KiB in all.
pub type Metadata = BTreeMap<String, String>;

/// How a create ended, where it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Created {
    /// The object was not there and now is, durably, whole.
    New,
    /// Something was there under that name (perhaps our own: a reply can be lost). It was not touched.
    Exists,
}

/// What a store says of an object without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// The name, relative to the store's root.
    pub key: String,
    /// Stored bytes.
    pub bytes: u64,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
}

/// One level of names, as in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Level {
    /// Objects directly below the prefix.
    pub objects: Vec<ObjectInfo>,
    /// Prefixes one level down, each ending in `/`.
    pub prefixes: Vec<String>,
}

/// What is kept of an object beside its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectHead {
    /// Name, size, time.
    pub info: ObjectInfo,
    /// As given to `create`, or empty: a store may keep none, and a bucket copied by another tool may have lost it.
    /// A copy, for speed, of what the object says of itself.
    pub metadata: Metadata,
}

/// An object store.
///
/// # Contract
/// * Names are relative and `/`-separated, of ASCII letters, digits and `._-=`. No part is empty or begins with a dot;
///   a part has at most 200 bytes, a name 700. A name is never also the directory part of another. Objects that
///   others put there under any other name are passed over in listings.
/// * An object appears whole or not at all, and durably: when a write says yes, a power cut does not take it back.
/// * A name never gets second bytes: writes only create. Of any number of racing creates of one name, exactly one
///   says [`Created::New`].
/// * After `New` or `Exists`, every later `get`, `head` and listing sees the object, from every client.
/// * A failed write may have happened: the error says whether to try again, and the retry may then meet its own
///   object as [`Created::Exists`].
/// * Bytes returned are the bytes stored, or an error: never fewer, and transport checksums are verified where the
///   store gives them (S3: on a whole `get` that was not resumed in the middle).
/// * Listings name each object that was there throughout exactly once, in any order.
/// * Nothing is retried in here; `RetryingStore` does that, once.
/// * Every future may be dropped: what it was doing may then have happened or not, and no half is visible.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// Stores `body` under `key` if nothing is there.
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError>;

    /// Reads an object, or the bytes `range` of it (half open; a range past the end is cut, one that starts at or
    /// behind the end is empty or an error of kind `Range`).
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError>;

    /// Looks at an object without reading it.
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError>;

    /// Every object whose name begins with `prefix` (which is empty or ends in `/`), at any depth, page by page:
    /// `token` is `None` first and then what the last page gave.
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError>;

    /// The objects and prefixes directly below `prefix`, which is empty or ends in `/`.
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError>;

    /// Deletes an object. One that is not there is deleted already.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Begins an object that is too large for memory. It appears when [`Upload::complete`] says so, not before.
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError>;

    /// How long what is stored for good cannot be deleted, from when it was stored; `None`: not at all.
    fn lock_period(&self) -> Option<SignedDuration> {
        None
    }

    /// Keeps an object until it is released (`on` is false), whoever wants to delete it. Either may be asked for twice.
    async fn set_legal_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        let action = if on { "hold" } else { "release" };
        Err(StoreError::new(StoreErrorKind::Unsupported, action, key))
    }

    /// What the store says of its own settings, and which of its rules touch objects below `prefix` (as in a listing). `None`: it has
    /// none.
    async fn settings(&self, _prefix: &str) -> Result<Option<BucketSettings>, StoreError> {
        Ok(None)
    }

    /// What this store is, for messages: `s3://bucket/prefix` or `file:///path`. Never a secret.
    fn describe(&self) -> String;
}

/// A page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListPage {
    /// The objects on it.
    pub objects: Vec<ObjectInfo>,
    /// For the next page; `None` on the last.
    pub next: Option<String>,
}

/// An object in the making.
#[async_trait]
pub trait Upload: Send + Debug {
    /// Smallest size in bytes of every piece but the last. S3 takes at most 10,000 pieces.
    fn piece_bytes_min(&self) -> usize;

    /// Stores the next piece. After an error the same piece may be given again.
    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError>;

    /// Publishes the object if nothing has its name; otherwise, takes back what was stored. Dropping an upload that
    /// was not completed publishes nothing.
    async fn complete(&mut self) -> Result<Created, StoreError>;

    /// Takes back what was stored. Best effort: a store may need its own housekeeping for what a dead client left.
    async fn abort(&mut self) -> Result<(), StoreError>;
}

/// Collects a whole listing.
///
/// # Errors
/// As [`Store::list_page`].
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
    let mut objects = Vec::new();
    let mut token = None;
    loop {
        let page = store.list_page(prefix, token).await?;
        objects.extend(page.objects);
        token = page.next;
        if token.is_none() {
            return Ok(objects);
        }
    }
}
