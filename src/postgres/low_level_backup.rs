//! The server's part of a base backup whose files somebody else reads: `pg_backup_start` and `pg_backup_stop`
//! (`xlogfuncs.c`; up to 14 `pg_start_backup` and `pg_stop_backup`), in one session.

use super::client::{Client, quote_literal, quote_name};
use super::error::PgError;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::collections::BTreeSet;

/// A session in which such a backup can be taken.
#[derive(Debug)]
pub struct BackupSession {
    client: Client,
    has_old_names: bool,
}

/// A file of the server's data directory that this session alone makes it write, and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Witness {
    /// Its name in `pg_snapshots`.
    pub name: String,
    /// A line of it.
    pub line: String,
}

/// The server has begun a backup. Dropping it closes the session, and the server forgets the backup.
#[derive(Debug)]
pub struct RunningBackup {
    session: BackupSession,
    /// Where recovery begins to read WAL.
    pub start_lsn: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// The server's process that has the session.
    pid: u32,
}

/// What the server says at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoppedBackup {
    /// Recovery must reach this position.
    pub end_lsn: Lsn,
    /// The contents of `backup_label`.
    pub label: Bytes,
    /// The contents of `tablespace_map`; empty if there is no tablespace.
    pub tablespace_map: Bytes,
}

impl BackupSession {
    /// Prepares a connection in mode [`super::Mode::Sql`]: no timeout of the role or the server ends it between start and stop.
    ///
    /// # Errors
    /// What the server says.
    pub async fn new(mut client: Client) -> Result<BackupSession, PgError> {
        // What is between quotes is meant as it stands; file names come as the bytes that they are.
        let mut settings = "SET statement_timeout = 0; SET standard_conforming_strings = on; \
                            SET client_encoding = 'SQL_ASCII'"
            .to_owned();
        if client.server_version() >= 140_000 {
            settings.push_str("; SET idle_session_timeout = 0");
        }
        if client.server_version() >= 170_000 {
            // One statement is a transaction as well, and the start of a backup waits for a checkpoint.
            settings.push_str("; SET transaction_timeout = 0");
        }
        client.simple_query(&settings).await?;
        let has_old_names = client.server_version() < 150_000;
        Ok(BackupSession { client, has_old_names })
    }

    /// For other questions.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The functions that the role must be allowed to call.
    fn functions(&self) -> [&'static str; 2] {
        match self.has_old_names {
            true => {
                ["pg_catalog.pg_start_backup(text, boolean, boolean)", "pg_catalog.pg_stop_backup(boolean, boolean)"]
            }
            false => ["pg_catalog.pg_backup_start(text, boolean)", "pg_catalog.pg_backup_stop(boolean)"],
        }
    }

    /// What an administrator must run, in which database, before the role may begin and end a backup; `None` if it may.
    ///
    /// # Errors
    /// What the server says.
    pub async fn missing_rights(&mut self) -> Result<Option<(String, String)>, PgError> {
        let functions = self.functions();
        let may = functions.map(|name| format!("has_function_privilege({}, 'EXECUTE')", quote_literal(name)));
        let query = format!(
            "SELECT {} AS may, current_user::text AS role, current_database()::text AS database",
            may.join(" AND ")
        );
        let rows = self.client.simple_query(&query).await?;
        if rows.get(0, "may") == Some("t") {
            return Ok(None);
        }
        let role = rows.read("role", |text| Some(quote_name(text)))?;
        let database = rows.read("database", |text| Some(text.to_owned()))?;
        Ok(Some((format!("GRANT EXECUTE ON FUNCTION {} TO {role};", functions.join(", ")), database)))
    }

    /// True on a standby.
    ///
    /// # Errors
    /// What the server says.
    pub async fn is_in_recovery(&mut self) -> Result<bool, PgError> {
        let rows = self.client.simple_query("SELECT pg_catalog.pg_is_in_recovery() AS answer").await?;
        rows.read("answer", |text| Some(text == "t"))
    }

    /// Makes the server write a file that is there until [`BackupSession::dismiss`]. Whoever finds it looks at the server's own data
    /// directory: its name is drawn from the server's counters, and the number of this session's process is in it
    /// (`ExportSnapshot` in `snapmgr.c`).
    ///
    /// # Errors
    /// What the server says.
    pub async fn call_witness(&mut self) -> Result<Witness, PgError> {
        let query = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                     SELECT pg_catalog.pg_export_snapshot() AS name, pg_catalog.pg_backend_pid() AS pid";
        let rows = self.client.simple_query(query).await?;
        // It will be a part of a path.
        let is_name = |text: &&str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let name = rows.read("name", |text| Some(text).filter(is_name).map(str::to_owned))?;
        let pid = rows.read("pid", |text| text.parse::<u32>().ok())?;
        Ok(Witness { name, line: format!("pid:{pid}") })
    }

    /// Ends what [`BackupSession::call_witness`] began.
    ///
    /// # Errors
    /// What the server says.
    pub async fn dismiss(&mut self) -> Result<(), PgError> {
        self.client.simple_query("ROLLBACK").await.map(|_| ())
    }

    /// The databases that have files in a tablespace.
    ///
    /// # Errors
    /// What the server says.
    pub async fn databases_in(&mut self, tablespace: u32) -> Result<BTreeSet<u32>, PgError> {
        let query = format!("SELECT oid FROM pg_catalog.pg_tablespace_databases({tablespace}) AS oid");
        let rows = self.client.simple_query(&query).await?;
        let oid = |row| rows.get(row, "oid").and_then(|text| text.parse().ok());
        (0..rows.len()).map(|row| oid(row).ok_or_else(|| PgError::protocol("a database without a number"))).collect()
    }

    /// Begins a backup: returns when the server has made its checkpoint, which takes minutes unless it is to be a fast one.
    ///
    /// # Errors
    /// What the server says.
    pub async fn start(mut self, label: &str, fast: bool) -> Result<RunningBackup, PgError> {
        let label = quote_literal(label);
        let call = match self.has_old_names {
            true => format!("pg_catalog.pg_start_backup({label}, {fast}, false)"),
            false => format!("pg_catalog.pg_backup_start({label}, {fast})"),
        };
        let query = format!(
            "SELECT lsn, pg_catalog.pg_walfile_name(lsn) AS segment, pg_catalog.pg_backend_pid() AS pid FROM {call} AS lsn"
        );
        let rows = self.client.simple_query(&query).await?;
        let start_lsn = rows.read("lsn", |text| text.parse().ok())?;
        // A segment's name begins with its timeline.
        let timeline = rows.read("segment", |text| u32::from_str_radix(text.get(..8)?, 16).ok())?;
        let pid = rows.read("pid", |text| text.parse().ok())?;
        Ok(RunningBackup { session: self, start_lsn, timeline: TimelineId(timeline), pid })
    }
}

impl RunningBackup {
    /// Fails if the session is no more, or is no longer the one that began the backup: then nobody can end it.
    ///
    /// # Errors
    /// What the server says, or how the connection ended.
    pub async fn check(&mut self) -> Result<(), PgError> {
        let rows = self.session.client.simple_query("SELECT pg_catalog.pg_backend_pid() AS pid").await?;
        match rows.read("pid", |text| text.parse::<u32>().ok())? == self.pid {
            true => Ok(()),
            false => Err(PgError::protocol(
                "another process of the server than began the backup: is there a pooler between?",
            )),
        }
    }

    /// Ends it. The server does not wait for its own archiver.
    ///
    /// # Errors
    /// What the server says; then there is no backup.
    pub async fn stop(mut self) -> Result<StoppedBackup, PgError> {
        let query = match self.session.has_old_names {
            true => "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, false)",
            false => "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(false)",
        };
        let rows = self.session.client.simple_query(query).await?;
        let end_lsn = rows.read("lsn", |text| text.parse().ok())?;
        let bytes = |column| Bytes::copy_from_slice(rows.bytes(0, column).map_or(&[][..], |value| value));
        let (label, tablespace_map) = (bytes("labelfile"), bytes("spcmapfile"));
        if label.is_empty() {
            return Err(PgError::protocol("the end of a backup has no label"));
        }
        self.session.client.close().await;
        Ok(StoppedBackup { end_lsn, label, tablespace_map })
    }
}
