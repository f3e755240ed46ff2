//! A secret in a file that others may not read.

use super::BYTES_MAX;
use crate::error::{Error, Kind, Result};
use crate::runtime;
use nix::fcntl::OFlag;
use std::fs::{Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    runtime::blocking(move || read_blocking(&path)).await?
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
