//! What a cluster's bootstrap superuser is called: `initdb --username` gives it any name, and it may be renamed. Read from
//! the restored files, since no server runs yet.

use super::database::{PG_AUTHID, SHARED_MAP, catalogue_file, name_of, rows};
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::path::Path;

/// `BOOTSTRAP_SUPERUSERID` (`pg_authid.dat`): never dropped, and a superuser for ever.
const BOOTSTRAP_SUPERUSER: u32 = 10;

/// The name of the bootstrap superuser in the files of a data directory; `None` if they do not tell. WAL that is still to
/// be replayed may rename it.
///
/// # Errors
/// [`crate::error::Kind::Local`] if the files cannot be read.
pub fn superuser(data: &Path) -> Result<Option<String>> {
    let read = |name: &str| {
        let path = data.join(name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|error| Error::local("read", &path, error)),
        }
    };
    let Some(file) = catalogue_file(&read(SHARED_MAP)?, PG_AUTHID) else { return Ok(None) };
    Ok(name_of(BOOTSTRAP_SUPERUSER, &rows(&read(&file)?)))
}
