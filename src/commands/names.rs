//! Names of databases and relations, kept beside base backups for whoever reads a history later.

use super::parts;
use crate::backup::read_names;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupId, Writer};
use crate::runtime::Clock;
use std::time::Duration;

/// As long as the server may take to name everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads the names and stores them with the backup. No restore needs them: what fails is reported, and that is all.
pub(super) async fn keep(settings: &Settings, writer: &Writer, id: &BackupId, clock: &Clock) {
    let kept = tokio::time::timeout(PATIENCE, try_keep(settings, writer, id, clock)).await;
    let late = || Err(Error::new(Kind::Postgres, "the server takes too long to name its relations"));
    if let Err(error) = kept.unwrap_or_else(|_| late()) {
        tracing::warn!(backup = %id, %error, "`seawall history` will show numbers instead of names");
    }
}

async fn try_keep(settings: &Settings, writer: &Writer, id: &BackupId, clock: &Clock) -> Result<()> {
    let read = read_names(&parts::connection(settings)?, clock).await?;
    for warning in &read.warnings {
        tracing::warn!(backup = %id, warning, "`seawall history` will show numbers instead of names");
    }
    writer.store_names(id, &read.names).await
}
