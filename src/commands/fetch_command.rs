//! What a restored server runs to fetch WAL: this program, with the settings of the command that restores.

use super::keys;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::restore::{FetchCommand, PASSPHRASE_VARIABLE};
use crate::secret::Source;
use std::path::PathBuf;

/// What the restored server will run. Secrets stay in the environment or in the configuration file.
///
/// # Errors
/// [`Kind::Local`] if a path cannot be found; [`Kind::Config`] if no repository is named.
pub(super) fn fetch_command(settings: &Settings) -> Result<FetchCommand> {
    let executable = std::env::current_exe()
        .map_err(|error| Error::new(Kind::Local, "cannot find the path of this program").because(error))?;
    let mut arguments = Vec::new();
    let mut reads = Vec::new();
    if let Some(file) = &settings.file {
        let path = std::path::absolute(file).map_err(|error| Error::local("find", file, error))?;
        arguments.extend(["--config".to_owned(), path.display().to_string()]);
        reads.push(path);
    }
    let repo = settings.repo()?;
    if let Some(path) = repo.strip_prefix("file://") {
        reads.push(PathBuf::from(path));
    }
    arguments.extend(["--repo".to_owned(), repo.to_owned(), "--cluster".to_owned(), settings.cluster.clone()]);
    if let Some(file) = &settings.encryption.identity_file {
        let path = std::path::absolute(file).map_err(|error| Error::local("find", file, error))?;
        arguments.extend(["--identity".to_owned(), path.display().to_string()]);
        reads.push(path);
    }
    for secret in [&settings.store.s3.access_key_id, &settings.store.s3.secret_access_key].into_iter().flatten() {
        if let Source::File(file) = secret.source() {
            reads.push(file.clone());
        }
    }
    let mut command = FetchCommand { executable, arguments, reads, ..FetchCommand::default() };
    command.take_environment(std::env::vars());
    if let Some(file) = &settings.encryption.identity_file
        && keys::needs_passphrase(file)?
    {
        command.need_secret(PASSPHRASE_VARIABLE);
    }
    Ok(command)
}
