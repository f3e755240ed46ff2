//! A secret in a file that others may not read.

use super::BYTES_MAX;
use crate::error::{Error, Kind, Result};
use crate::runtime;
use nix::fcntl::OFlag;
use std::collections::BTreeMap;
use std::fs::{Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// So long it may take: a file system that is elsewhere may hang.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Others are everybody, and the group too unless root owns the file (libpq's rule for private keys): root's with a group is how secrets
/// are mounted into containers.
pub fn others_may_read(metadata: &Metadata) -> bool {
    let forbidden = if metadata.uid() == 0 { 0o007 } else { 0o077 };
    metadata.mode() & forbidden != 0
}

/// What the file holds, and at most one byte more than a secret may have.
///
/// # Errors
/// If it cannot be read, or others can.
pub(super) async fn read(path: PathBuf) -> Result<Vec<u8>> {
    within(TIME_LIMIT, path, read_blocking).await
}

/// When somebody began to read a file, and what is gone once that has an end.
type Begun = (Instant, Weak<()>);

/// The files that are being read.
static AT_WORK: Mutex<BTreeMap<PathBuf, Begun>> = Mutex::new(BTreeMap::new());

async fn within(
    limit: Duration,
    path: PathBuf,
    read: impl FnOnce(&Path) -> Result<Vec<u8>> + Send + 'static,
) -> Result<Vec<u8>> {
    let late = || {
        let why = format!("cannot read {}: that takes longer than {} s", path.display(), limit.as_secs_f64());
        Error::new(Kind::Local, why).hint("Does the file system that it is on answer?")
    };
    let at_work = Arc::new(());
    {
        let mut all = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, at_work)| at_work.strong_count() > 0);
        let (begun, _) = all.entry(path.clone()).or_insert_with(|| (Instant::now(), Arc::downgrade(&at_work)));
        // It cannot be broken off, and has a thread: one is enough.
        if begun.elapsed() >= limit {
            return Err(late());
        }
    }
    let reading = {
        let path = path.clone();
        runtime::blocking(move || {
            let read = read(&path);
            drop(at_work);
            read
        })
    };
    tokio::time::timeout(limit, reading).await.map_err(|_| late())??
}

fn read_blocking(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Error::new(Kind::Config, format!("there is no {}", path.display()))
            .hint("Is the path right, and is the secret mounted?"),
        ErrorKind::PermissionDenied => Error::new(Kind::Local, format!("cannot read {}", path.display()))
            .because(error)
            .hint("May the user that runs this read it?"),
        _ => Error::local("read", path, error),
    };
    // A pipe would be waited for, for ever.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::new(Kind::Config, format!("{} is no plain file", path.display())));
    }
    if others_may_read(&metadata) {
        return Err(Error::new(Kind::Config, format!("{} holds a secret and others may read it", path.display()))
            .hint(format!("chmod 600 {0}; or let root own it and a group read it (chmod 440 {0}).", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn what_hangs_is_waited_for_in_its_time_and_not_read_by_a_second() {
        let path = || PathBuf::from("/that/hangs");
        let limit = Duration::from_millis(100);
        let (answers, answer) = mpsc::channel::<()>();
        let hangs = move |_: &Path| {
            let _ = answer.recv();
            Ok(Vec::new())
        };
        // Given a file whose file system does not answer
        let hanging = tokio::time::timeout(Duration::from_secs(60), within(limit, path(), hangs)).await;
        let error = hanging.expect("it is waited for").unwrap_err();
        assert!(error.to_string().contains("/that/hangs") && error.hint_text().is_some(), "{error}");
        // Then nobody reads it until it does, and everybody others
        let reads = |_: &Path| Ok(b"s3cret".to_vec());
        assert!(within(limit, path(), |_| panic!("a second one")).await.is_err());
        assert_eq!(within(limit, "/another".into(), reads).await.unwrap(), b"s3cret");
        drop(answers);
        let begun = Instant::now();
        while within(limit, path(), reads).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is not read again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
