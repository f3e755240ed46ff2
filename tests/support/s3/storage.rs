//! Buckets, objects and uploads in progress. One lock decides everything that is visible: it is never held while a
//! body is read or written, and it is taken once, at the end, to publish.

use super::bucket::{Lock, Settings, delete_version};
use super::checksum::{self, Verified, Verifier};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Result, StdError, s3_error};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

/// How much of a file is read at once for a reply.
const READ_BYTES: u64 = 256 * 1024;

/// A server that forgets bodies keeps those up to here: documents, which are read again.
const KEPT_BYTES: u64 = 64 * 1024;

/// An object as a test sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredObject {
    /// Its body.
    pub bytes: Bytes,
    /// Its user metadata. Clear it for a bucket copied by a tool that keeps none.
    pub metadata: BTreeMap<String, String>,
}

/// A body, or one part of it. Never changes.
pub(super) enum Piece {
    Memory(Bytes),
    File {
        file: File,
        path: PathBuf,
        bytes: u64,
    },
    /// Arrived intact, and is not there any more.
    Forgotten {
        bytes: u64,
    },
}

impl Piece {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Piece::Memory(bytes) => bytes.len() as u64,
            Piece::File { bytes, .. } | Piece::Forgotten { bytes } => *bytes,
        }
    }

    fn read(&self, offset: u64, bytes: u64) -> std::io::Result<Bytes> {
        match self {
            Piece::Memory(whole) => Ok(whole.slice(offset as usize..(offset + bytes) as usize)),
            Piece::File { file, .. } => {
                let mut buffer = BytesMut::zeroed(bytes as usize);
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.freeze())
            }
            Piece::Forgotten { .. } => Err(std::io::Error::other("this server forgets large bodies")),
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Piece::File { path, .. } = self {
            // The directory may be gone before us: it is the test's.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A published object. Never changes: a name gets another one.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) pieces: Vec<Arc<Piece>>,
    pub(super) bytes: u64,
    pub(super) metadata: HashMap<String, String>,
    pub(super) content_type: Option<String>,
    pub(super) checksum: Checksum,
    pub(super) e_tag: String,
    pub(super) modified: SystemTime,
    pub(super) lock: Lock,
}

impl Object {
    fn from_memory(bytes: Bytes, metadata: HashMap<String, String>) -> Object {
        let Verified { checksum, crc64nvme } = checksum::of_bytes(&bytes);
        Object {
            bytes: bytes.len() as u64,
            e_tag: e_tag(&crc64nvme),
            pieces: vec![Arc::new(Piece::Memory(bytes))],
            metadata,
            content_type: None,
            checksum,
            modified: SystemTime::now(),
            lock: Lock::default(),
        }
    }

    /// The whole body at once.
    pub(super) fn read(&self) -> Bytes {
        let read = |piece: &Arc<Piece>| piece.read(0, piece.bytes()).expect("a body that was stored can be read");
        match &self.pieces[..] {
            [only] => read(only),
            pieces => pieces
                .iter()
                .map(read)
                .fold(BytesMut::new(), |mut whole, piece| {
                    whole.extend_from_slice(&piece);
                    whole
                })
                .freeze(),
        }
    }

    /// The bytes `[start, end)` as a stream.
    pub(super) fn stream(self: Arc<Object>, start: u64, end: u64) -> StreamingBlob {
        StreamingBlob::new(Reader { object: self, position: start, end })
    }
}

/// An entity tag from a CRC64NVME: an MD5 would cost more than all else that this server does.
pub(super) fn e_tag(crc64nvme: &str) -> String {
    let crc = BASE64_STANDARD.decode(crc64nvme).expect("we encoded it");
    crc.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Reader {
    object: Arc<Object>,
    position: u64,
    end: u64,
}

impl Stream for Reader {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.position >= self.end {
            return Poll::Ready(None);
        }
        let mut offset = self.position;
        let piece = self.object.pieces.iter().find(|piece| {
            let inside = offset < piece.bytes();
            if !inside {
                offset -= piece.bytes();
            }
            inside
        });
        let piece = piece.expect("ranges end inside the object").clone();
        let left = (piece.bytes() - offset).min(self.end - self.position);
        let bytes = if matches!(*piece, Piece::File { .. }) { left.min(READ_BYTES) } else { left };
        self.position += bytes;
        // Straight from the page cache: cheaper than a thread for it.
        Poll::Ready(Some(piece.read(offset, bytes).map_err(Into::into)))
    }
}

impl ByteStream for Reader {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact((self.end - self.position) as usize)
    }
}

/// One part of an upload in progress.
pub(super) struct Part {
    pub(super) piece: Arc<Piece>,
    pub(super) checksum: Checksum,
    pub(super) crc64nvme: String,
    pub(super) e_tag: String,
    pub(super) modified: SystemTime,
}

/// An upload in progress.
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) metadata: HashMap<String, String>,
    pub(super) content_type: Option<String>,
    pub(super) algorithm: Option<String>,
    pub(super) checksum_kind: Option<String>,
    pub(super) initiated: SystemTime,
    pub(super) lock: Lock,
    pub(super) parts: BTreeMap<i32, Part>,
}

/// What is visible.
#[derive(Default)]
pub(super) struct Visible {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, Arc<Object>>>,
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) settings: BTreeMap<String, Settings>,
    /// By bucket and key: what was replaced or deleted where versions stay, the oldest first.
    older: BTreeMap<(String, String), Vec<Arc<Object>>>,
}

impl Visible {
    pub(super) fn bucket(&mut self, bucket: &str) -> S3Result<&mut BTreeMap<String, Arc<Object>>> {
        self.buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "there is no bucket {bucket}"))
    }

    pub(super) fn upload(&mut self, bucket: &str, key: &str, id: &str) -> S3Result<&mut Upload> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.bucket == bucket && upload.key == key);
        upload.ok_or_else(|| s3_error!(NoSuchUpload, "there is no upload {id} of {key}"))
    }

    /// Publishes an object. This is the one place where a name gets its bytes: that nothing is there is found and
    /// changed under the same lock.
    pub(super) fn publish(&mut self, bucket: &str, key: &str, object: Object, only_new: bool) -> S3Result<()> {
        let objects = self.bucket(bucket)?;
        if only_new && objects.contains_key(key) {
            return Err(s3_error!(PreconditionFailed, "{key} is there already"));
        }
        if let Some(replaced) = objects.insert(key.to_owned(), Arc::new(object)) {
            self.retire(bucket, key, replaced);
        }
        Ok(())
    }

    pub(super) fn settings(&self, bucket: &str) -> Settings {
        self.settings.get(bucket).cloned().unwrap_or_default()
    }

    /// The object that is there goes out of sight. Where versions stay it stays as an older one.
    pub(super) fn remove(&mut self, bucket: &str, key: &str) -> S3Result<()> {
        if let Some(deleted) = self.bucket(bucket)?.remove(key) {
            self.retire(bucket, key, deleted);
        }
        Ok(())
    }

    /// Every version of a name goes for good, unless one of them is locked.
    pub(super) fn destroy(&mut self, bucket: &str, key: &str) -> S3Result<()> {
        let current = self.bucket(bucket)?.get(key).cloned();
        let name = (bucket.to_owned(), key.to_owned());
        self.older.get(&name).into_iter().flatten().chain(&current).try_for_each(delete_version)?;
        self.older.remove(&name);
        self.bucket(bucket)?.remove(key);
        Ok(())
    }

    /// How many older versions a name has.
    pub(super) fn older(&self, bucket: &str, key: &str) -> usize {
        self.older.get(&(bucket.to_owned(), key.to_owned())).map_or(0, Vec::len)
    }

    fn retire(&mut self, bucket: &str, key: &str, object: Arc<Object>) {
        if self.settings(bucket).versioned {
            self.older.entry((bucket.to_owned(), key.to_owned())).or_default().push(object);
        }
    }
}

/// A body that arrived intact and is not visible yet.
pub(super) struct Received {
    pub(super) piece: Arc<Piece>,
    pub(super) verified: Verified,
}

pub(super) struct Storage {
    visible: Mutex<Visible>,
    directory: Option<PathBuf>,
    /// Bodies are on the disk before anybody is told that they are stored.
    syncs: AtomicBool,
    /// Large bodies are verified and thrown away.
    forgets: AtomicBool,
    numbers: AtomicU64,
    page_keys: AtomicUsize,
}

impl Storage {
    pub(super) fn new(directory: Option<PathBuf>) -> std::io::Result<Storage> {
        if let Some(directory) = &directory {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Storage {
            visible: Mutex::default(),
            directory,
            syncs: AtomicBool::new(false),
            forgets: AtomicBool::new(false),
            numbers: AtomicU64::new(0),
            page_keys: AtomicUsize::new(1000),
        })
    }

    pub(super) fn visible(&self) -> MutexGuard<'_, Visible> {
        self.visible.lock().unwrap()
    }

    /// A number that was not given before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn sync_bodies(&self) {
        self.syncs.store(true, Ordering::Relaxed);
    }

    pub(super) fn forget_bodies(&self) {
        self.forgets.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_page_keys(&self, keys: usize) {
        self.page_keys.store(keys, Ordering::Relaxed);
    }

    /// How many names a page has when `asked` were asked for.
    pub(super) fn page_keys(&self, asked: Option<i32>) -> usize {
        let limit = self.page_keys.load(Ordering::Relaxed);
        asked.map_or(limit, |asked| usize::try_from(asked).unwrap_or(0).min(limit))
    }

    pub(super) fn create_bucket(&self, bucket: &str) -> bool {
        let mut visible = self.visible();
        let is_new = !visible.buckets.contains_key(bucket);
        visible.buckets.entry(bucket.to_owned()).or_default();
        is_new
    }

    /// Reads a body to its end and verifies it. What is refused, or breaks off, is gone with this future.
    pub(super) async fn receive(
        &self,
        body: Option<StreamingBlob>,
        content_length: Option<i64>,
        mut verifier: Verifier,
    ) -> S3Result<Received> {
        let expected = content_length.and_then(|bytes| u64::try_from(bytes).ok());
        let mut sink = Sink::new(self, expected.unwrap_or(0)).map_err(s3s::S3Error::internal_error)?;
        if let Some(mut body) = body {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| refused_body(&error))?;
                verifier.update(&chunk);
                sink.write(&chunk).map_err(s3s::S3Error::internal_error)?;
            }
        }
        let piece = sink.finish(self).map_err(s3s::S3Error::internal_error)?;
        if expected.is_some_and(|expected| expected != piece.bytes()) {
            return Err(s3_error!(IncompleteBody, "{} bytes came instead of {expected:?}", piece.bytes()));
        }
        Ok(Received { piece: Arc::new(piece), verified: verifier.finish()? })
    }

    pub(super) fn find(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.visible().buckets.get(bucket)?.get(key).cloned()
    }

    pub(super) fn put(&self, bucket: &str, key: &str, object: StoredObject) {
        let object = Object::from_memory(object.bytes, object.metadata.into_iter().collect());
        self.visible().publish(bucket, key, object, false).expect("the bucket is there");
    }

    pub(super) fn delete(&self, bucket: &str, key: &str) -> bool {
        self.visible().bucket(bucket).expect("the bucket is there").remove(key).is_some()
    }

    /// Changes the bytes of an object and nothing else of it.
    pub(super) fn damage(&self, bucket: &str, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let object = self.find(bucket, key).unwrap_or_else(|| panic!("there is no object {key} to damage"));
        let mut bytes = object.read().to_vec();
        change(&mut bytes);
        let damaged = Object {
            bytes: bytes.len() as u64,
            pieces: vec![Arc::new(Piece::Memory(bytes.into()))],
            ..Object::clone(&object)
        };
        self.visible().publish(bucket, key, damaged, false).expect("the bucket is there");
    }

    pub(super) fn snapshot(&self, bucket: &str) -> BTreeMap<String, StoredObject> {
        let objects = self.visible().bucket(bucket).expect("the bucket is there").clone();
        let stored = |object: Arc<Object>| StoredObject {
            bytes: object.read(),
            metadata: object.metadata.clone().into_iter().collect(),
        };
        objects.into_iter().map(|(key, object)| (key, stored(object))).collect()
    }

    pub(super) fn age(&self, bucket: &str, by: Duration, rewrite: &dyn Fn(&str, Bytes) -> Option<Bytes>) {
        let mut visible = self.visible();
        for (key, object) in visible.bucket(bucket).expect("the bucket is there") {
            let modified = object.modified - by;
            let same = match rewrite(key, object.read()) {
                Some(bytes) => Object::from_memory(bytes, object.metadata.clone()),
                None => (**object).clone(),
            };
            let lock = Lock { until: object.lock.until.map(|until| until - by), ..object.lock.clone() };
            *object = Arc::new(Object { modified, lock, ..same });
        }
    }

    pub(super) fn restore(&self, bucket: &str, snapshot: &BTreeMap<String, StoredObject>) {
        let object = |stored: &StoredObject| {
            Arc::new(Object::from_memory(stored.bytes.clone(), stored.metadata.clone().into_iter().collect()))
        };
        let objects = snapshot.iter().map(|(key, stored)| (key.clone(), object(stored))).collect();
        let mut visible = self.visible();
        visible.uploads.retain(|_, upload| upload.bucket != bucket);
        visible.buckets.insert(bucket.to_owned(), objects);
    }
}

/// Why a body was not read to its end, in S3's words.
fn refused_body(error: &StdError) -> s3s::S3Error {
    // The signature check hands its verdict on as an error of the stream whose type is not public.
    if error.to_string().contains("Sha256Mismatch") {
        let code = s3s::S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
        let mut refused = s3s::S3Error::with_message(code, "the body is not the one that was signed");
        refused.set_status_code(hyper::StatusCode::BAD_REQUEST);
        return refused;
    }
    s3_error!(IncompleteBody, "the body broke off: {error}")
}

/// Where a body goes while it arrives.
enum Sink {
    Memory(BytesMut),
    File(Piece),
    Nowhere { bytes: u64 },
}

impl Sink {
    fn new(storage: &Storage, expected: u64) -> std::io::Result<Sink> {
        if expected > KEPT_BYTES && storage.forgets.load(Ordering::Relaxed) {
            return Ok(Sink::Nowhere { bytes: 0 });
        }
        let Some(directory) = &storage.directory else {
            return Ok(Sink::Memory(BytesMut::with_capacity(expected.min(64 << 20) as usize)));
        };
        let path = directory.join(format!("body-{}", storage.number()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Sink::File(Piece::File { file, path, bytes: 0 }))
    }

    fn write(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        match self {
            Sink::Memory(buffer) => buffer.extend_from_slice(chunk),
            Sink::File(Piece::File { file, bytes, .. }) => {
                // Into the page cache: cheaper than a thread for it.
                file.write_all(chunk)?;
                *bytes += chunk.len() as u64;
            }
            Sink::File(_) => unreachable!("made as a file"),
            Sink::Nowhere { bytes } => *bytes += chunk.len() as u64,
        }
        Ok(())
    }

    fn finish(self, storage: &Storage) -> std::io::Result<Piece> {
        match self {
            Sink::Memory(buffer) => Ok(Piece::Memory(buffer.freeze())),
            Sink::Nowhere { bytes } => Ok(Piece::Forgotten { bytes }),
            Sink::File(piece) => {
                if let Piece::File { file, .. } = &piece
                    && storage.syncs.load(Ordering::Relaxed)
                {
                    file.sync_all()?;
                }
                Ok(piece)
            }
        }
    }
}
