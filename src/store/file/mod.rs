//! A store in a directory: a disk beside the server, NFS. Uses `runtime::blocking`; `publish` writes, `walk` lists.
//!
//! Objects are plain files under their names. Metadata is not kept: there is no place for it that every tool copies,
//! and objects carry their identity inside themselves.

mod publish;
mod walk;

use super::{
    Body, Created, Level, ListPage, Metadata, ObjectHead, ObjectInfo, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload, key,
};
use crate::runtime::{blocking, spawn_if_running};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use publish::{TEMP_DIRECTORY, TempFile, Writer};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes read at a time: large enough that the change of threads does not count, small enough for bounded memory.
const CHUNK_BYTES: usize = 1 << 20;

/// Threads that wait for file systems, of all that may block. One in a call that is not answered cannot be called back: others wait for
/// these, and not for those that the rest of the process needs. Clones are one.
#[derive(Clone, Debug)]
pub struct DiskThreads(Arc<Semaphore>);

impl DiskThreads {
    /// So many are in calls at a time.
    pub const MOST: usize = 16;

    async fn one(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        self.0.clone().acquire_owned().await.ok()
    }
}

impl Default for DiskThreads {
    fn default() -> DiskThreads {
        DiskThreads(Arc::new(Semaphore::new(DiskThreads::MOST)))
    }
}

/// Keeps objects as files below a directory that must exist. Clones are one.
#[derive(Clone, Debug)]
pub struct FileStore {
    root: Arc<PathBuf>,
    writer: Arc<Writer>,
    /// As many as it likes, if there are none.
    threads: Option<DiskThreads>,
}

impl FileStore {
    /// Names objects relative to `root`, an absolute path. Touches nothing yet.
    pub fn new(root: PathBuf) -> FileStore {
        FileStore { writer: Arc::new(Writer::new(root.clone())), root: Arc::new(root), threads: None }
    }

    /// As it is, and waits for the file system in these threads alone.
    #[must_use]
    pub fn with_threads(self, threads: Option<DiskThreads>) -> FileStore {
        FileStore { threads, ..self }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.describe())
    }

    /// Runs file system calls on a thread that may block and turns their error into the store's.
    async fn disk<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = self.root.clone();
        let thread = match &self.threads {
            Some(threads) => threads.one().await,
            None => None,
        };
        let done = blocking(move || {
            // Also when nobody waits for it any more.
            let _thread = thread;
            work().map_err(|error| {
                // Without a root nothing can be said of what is in it: an unmounted disk is not an empty one.
                let kind = if root.is_dir() { kind_of(&error) } else { StoreErrorKind::NoBucket };
                (kind, error)
            })
        })
        .await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err((kind, error))) => Err(StoreError::new(kind, action, self.name(key)).because(error)),
            Err(panic) => Err(StoreError::new(StoreErrorKind::Permanent, action, self.name(key)).because(panic)),
        }
    }
}

#[async_trait]
impl Store for FileStore {
    async fn create(&self, key: &str, body: Body, _: Metadata) -> Result<Created, StoreError> {
        key::check("store", key)?;
        let (writer, name) = (self.writer.clone(), key.to_string());
        self.disk("store", key, move || {
            let temp = writer.open_temp()?;
            temp.write_at(&body, 0)?;
            writer.publish(&temp, &name)
        })
        .await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        key::check("read", key)?;
        let (path, name) = (self.path(key), key.to_string());
        let (file, head, range) = self
            .disk("read", key, move || {
                let mut file = File::open(&path)?;
                let head = head_of(name, &file.metadata()?)?;
                let bytes = head.info.bytes;
                let range = range.map_or(0..bytes, |range| range.start.min(bytes)..range.end.min(bytes));
                file.seek(SeekFrom::Start(range.start))?;
                Ok((file, head, range))
            })
            .await?;
        let missing = range.end.saturating_sub(range.start);
        Ok(ObjectStream { head, bytes: chunks(self.clone(), key.to_string(), file, missing).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        key::check("look at", key)?;
        let (path, name) = (self.path(key), key.to_string());
        self.disk("look at", key, move || head_of(name, &fs::metadata(path)?)).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        key::check_prefix(prefix)?;
        if let Some(token) = &token {
            key::check("list from", token)?;
        }
        let (root, writer, name) = (self.root.clone(), self.writer.clone(), prefix.to_string());
        self.disk("list", prefix, move || {
            writer.settle()?;
            walk::page(&root, &name, token.as_deref())
        })
        .await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        key::check_prefix(prefix)?;
        let (root, writer, name) = (self.root.clone(), self.writer.clone(), prefix.to_string());
        self.disk("list", prefix, move || {
            writer.settle()?;
            walk::level(&root, &name)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check("delete", key)?;
        let (writer, name) = (self.writer.clone(), key.to_string());
        self.disk("delete", key, move || writer.delete(&name)).await
    }

    async fn begin_upload(&self, key: &str, _: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        key::check("store", key)?;
        let (writer, store) = (self.writer.clone(), self.clone());
        // Whoever does not wait for it any more is not to put it away either.
        let open = move || Ok(Growing { temp: Some(Arc::new(writer.open_temp()?)), store });
        let temp = self.disk("store", key, open).await?;
        Ok(Box::new(FileUpload { store: self.clone(), key: key.to_string(), temp: Some(temp), bytes: 0 }))
    }

    fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }
}

/// A temporary file in the hands of a task. To close it and to remove its name waits for the file system, which is for a thread that may:
/// whoever drops it does not.
#[derive(Debug)]
struct Growing {
    /// `None` while it is dropped.
    temp: Option<Arc<TempFile>>,
    store: FileStore,
}

impl Drop for Growing {
    fn drop(&mut self) {
        let (temp, store) = (self.temp.take(), self.store.clone());
        // A name that stays, because the process ends before, is stale one day.
        spawn_if_running(async move {
            store
                .disk("clean up", TEMP_DIRECTORY, move || {
                    drop(temp);
                    Ok(())
                })
                .await
        });
    }
}

/// An object that grows in a temporary file.
#[derive(Debug)]
struct FileUpload {
    store: FileStore,
    key: String,
    /// `None` once completed or aborted.
    temp: Option<Growing>,
    /// Bytes of the pieces that were acknowledged. Every piece is written at its place: one that is given again
    /// covers what a failed or dropped attempt left.
    bytes: u64,
}

impl FileUpload {
    fn temp(&self) -> Result<Arc<TempFile>, StoreError> {
        self.temp.as_ref().and_then(|growing| growing.temp.clone()).ok_or_else(|| {
            StoreError::new(StoreErrorKind::Permanent, "store", self.store.name(&self.key))
                .because("the upload has ended already")
        })
    }
}

#[async_trait]
impl Upload for FileUpload {
    fn piece_bytes_min(&self) -> usize {
        1
    }

    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError> {
        let (temp, start, bytes) = (self.temp()?, self.bytes, piece.bytes());
        self.store.disk("store", &self.key, move || temp.write_at(&piece, start)).await?;
        self.bytes += bytes;
        Ok(())
    }

    async fn complete(&mut self) -> Result<Created, StoreError> {
        let (temp, bytes) = (self.temp()?, self.bytes);
        let (writer, name) = (self.store.writer.clone(), self.key.clone());
        let created = self
            .store
            .disk("store", &self.key, move || {
                temp.cut(bytes)?;
                let created = writer.publish(&temp, &name)?;
                temp.remove();
                Ok(created)
            })
            .await?;
        self.temp = None;
        Ok(created)
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        let Ok(temp) = self.temp() else { return Ok(()) };
        self.store
            .disk("clean up", &self.key, move || {
                temp.remove();
                Ok(())
            })
            .await?;
        self.temp = None;
        Ok(())
    }
}

/// The next `missing` bytes of a file, a chunk at a time.
fn chunks(
    store: FileStore,
    key: String,
    file: File,
    missing: u64,
) -> impl stream::Stream<Item = Result<Bytes, StoreError>> {
    stream::try_unfold((store, key, file, missing), |(store, key, mut file, missing)| async move {
        if missing == 0 {
            return Ok(None);
        }
        let (file, chunk) = store
            .disk("read", &key, move || {
                // At most CHUNK_BYTES, which is a `usize`.
                let wanted = missing.min(CHUNK_BYTES as u64) as usize;
                let mut chunk = Vec::with_capacity(wanted);
                (&mut file).take(wanted as u64).read_to_end(&mut chunk)?;
                if chunk.len() < wanted {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file became shorter while it was read"));
                }
                Ok((file, Bytes::from(chunk)))
            })
            .await?;
        let missing = missing - chunk.len() as u64;
        Ok(Some((chunk, (store, key, file, missing))))
    })
}

fn head_of(key: String, metadata: &fs::Metadata) -> io::Result<ObjectHead> {
    Ok(ObjectHead { info: info_of(key, metadata)?, metadata: Metadata::new() })
}

/// What a listing and a look say of a file; a directory or device is no object.
fn info_of(key: String, metadata: &fs::Metadata) -> io::Result<ObjectInfo> {
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::NotFound, "not a regular file"));
    }
    let modified = metadata.modified()?.try_into().map_err(io::Error::other)?;
    Ok(ObjectInfo { key, bytes: metadata.len(), modified })
}

/// What the caller does about a file system's error.
fn kind_of(error: &io::Error) -> StoreErrorKind {
    match error.kind() {
        // A name below an object is as absent as any other.
        ErrorKind::NotFound | ErrorKind::NotADirectory => StoreErrorKind::NotFound,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreErrorKind::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreErrorKind::Denied,
        ErrorKind::Unsupported => StoreErrorKind::Unsupported,
        ErrorKind::UnexpectedEof => StoreErrorKind::Corrupt,
        ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::StaleNetworkFileHandle | ErrorKind::ResourceBusy => {
            StoreErrorKind::Transient
        }
        _ if is_worth_another_try(error) => StoreErrorKind::Transient,
        _ => StoreErrorKind::Permanent,
    }
}

/// Conditions that pass, for which the standard library has no name: an I/O error (each attempt writes a new file,
/// so one lost page does not matter) and no free file handle.
fn is_worth_another_try(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EIO | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN))
}

/// True if `path` is there and a directory.
fn is_directory(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests;
