//! One connection to a server: questions and their answers, replication commands, and what it may turn into.

use super::auth::unexpected;
use super::base_backup::{self, BackupStart, BackupStream, BaseBackupOptions};
use super::connect;
use super::connection::Connection;
use super::conninfo::ConnInfo;
use super::error::PgError;
use super::message::Message;
use super::streaming::{self, Streaming};
use crate::wal::{Lsn, SegmentSize, TimelineId};
use bytes::Bytes;
use jiff::Timestamp;
use postgres_protocol::message::frontend;
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `replication=true`: replication commands and `SHOW`, no SQL. `pg_hba.conf` calls it `replication`.
    Physical,
    /// `replication=database`: replication commands and SQL. `pg_hba.conf` goes by the database's name.
    Database,
    /// An ordinary session.
    Sql,
}

/// The most that one answer may hold: no question of ours has a tenth of it.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One connection. Only the simple query protocol is spoken: a walsender knows no other.
///
/// A question may be dropped before its answer is there; the next one reads what is left of it first.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    host: String,
    mode: Mode,
    server_version: u32,
    /// An answer is still coming.
    unanswered: bool,
    /// Bounds every command, if given.
    patience: Option<Duration>,
    certificate_end: Option<Timestamp>,
}

/// A result: text by row and column name. Of several results, the last.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Option<Bytes>>>,
}

impl Rows {
    pub(super) fn new(columns: Vec<String>, rows: Vec<Vec<Option<Bytes>>>) -> Rows {
        Rows { columns, rows }
    }

    pub(super) fn push(&mut self, row: Vec<Option<Bytes>>) {
        self.rows.push(row);
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The bytes of a value; `None` for NULL and for what is not there.
    pub fn bytes(&self, row: usize, column: &str) -> Option<&Bytes> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(index)?.as_ref()
    }

    /// The text of a value; `None` for NULL, for what is not there and for what is not UTF-8.
    pub fn get(&self, row: usize, column: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(row, column)?).ok()
    }

    /// A value that must be there.
    pub(super) fn read<T>(&self, column: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, PgError> {
        let text = self.get(0, column);
        text.and_then(parse).ok_or_else(|| PgError::protocol(format!("{column} is {text:?}")))
    }
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemIdentity {
    /// The number that `initdb` gave the cluster.
    pub system_identifier: u64,
    /// The timeline that the server is on; on a standby, the one that it replays.
    pub timeline: TimelineId,
    /// How far its WAL is flushed; on a standby, how far it is received or replayed.
    pub flush_lsn: Lsn,
}

/// What the server knows of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Servers before 15 do not say on a physical connection.
    Unknown,
    /// There is no slot of this name.
    Absent,
    /// There is one.
    Present {
        /// The oldest WAL that it keeps; `None`: it never kept any, or has lost it.
        restart_lsn: Option<Lsn>,
        /// The timeline of that WAL, as far as the server says.
        restart_timeline: Option<TimelineId>,
    },
    /// There is one for logical decoding, which is of no use here.
    NotPhysical,
}

impl Client {
    /// Connects to the first server of the list that will do. `settings` are set for the session, such as
    /// `wal_sender_timeout`. May be dropped.
    ///
    /// # Errors
    /// [`PgError::Hosts`] with what each server said.
    pub async fn connect(info: &ConnInfo, mode: Mode, settings: &[(&str, &str)]) -> Result<Client, PgError> {
        Box::pin(connect::connect(info, mode, settings)).await
    }

    /// Speaks to a server through a socket that is open, in the clear: for simulations, whose network is memory.
    ///
    /// # Errors
    /// What the server says.
    #[doc(hidden)]
    pub async fn over<S>(socket: S, info: &ConnInfo, mode: Mode) -> Result<Client, PgError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        Box::pin(connect::over(Box::new(socket), info, mode)).await
    }

    pub(super) fn new(connection: Connection, host: String, mode: Mode) -> Client {
        let server_version = connection.parameter("server_version").map_or(0, parse_version);
        Client { connection, host, mode, server_version, unanswered: false, patience: None, certificate_end: None }
    }

    /// The server has shown a certificate that ends then.
    pub(super) fn with_certificate_end(mut self, end: Option<Timestamp>) -> Client {
        self.certificate_end = end;
        self
    }

    /// When the certificate ends that the server has shown; `None` without TLS.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.certificate_end
    }

    /// The last value that the server reported for one of the parameters that it reports (`server_version`,
    /// `in_hot_standby`, `TimeZone`, …).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.connection.parameter(name)
    }

    /// The version as `server_version_num` has it: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The number of the server's process for this connection, if it has told (`BackendKeyData`).
    pub fn backend(&self) -> Option<u32> {
        self.connection.backend()
    }

    /// The server of the list that we got, `host:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// From now on a command that is not answered whole within `patience` fails with [`PgError::NoAnswer`]: a server that
    /// has vanished says nothing, and TCP notices late, or never behind a proxy. It does not bound a base backup, nor a
    /// stream between its beginning and its end.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// Waits for an answer for as long as it may take.
    pub(super) async fn in_time<T>(
        patience: Option<Duration>,
        answer: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, PgError> {
        match patience {
            None => answer.await,
            Some(limit) => tokio::time::timeout(limit, answer).await.unwrap_or(Err(PgError::NoAnswer(limit.as_secs()))),
        }
    }

    pub(super) fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// What the connection is for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Asks and reads the answer whole. May be dropped.
    ///
    /// # Errors
    /// What the server says; the connection can be used further unless the error is about the connection itself.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Rows, PgError> {
        Client::in_time(self.patience, self.ask_and_read(sql)).await
    }

    async fn ask_and_read(&mut self, sql: &str) -> Result<Rows, PgError> {
        self.ask(sql).await?;
        let mut rows = Rows::default();
        let mut size = 0;
        let mut refusal = None;
        loop {
            match self.answer(&mut refusal).await? {
                Message::RowDescription(columns) => rows = Rows { columns, rows: Vec::new() },
                Message::DataRow(row) => {
                    size += row.iter().flatten().map(Bytes::len).sum::<usize>() + size_of_val(&row[..]);
                    if size > ANSWER_BYTES_MAX {
                        return Err(PgError::protocol("an answer of more than 64 MiB"));
                    }
                    rows.rows.push(row);
                }
                Message::CommandComplete(_) => {}
                Message::ReadyForQuery => return refusal.map_or(Ok(rows), |error| Err(PgError::Server(error))),
                other => return Err(unexpected("an answer", &other)),
            }
        }
    }

    /// Sends a command; what is left of an answer that nobody waited for is read first.
    pub(super) async fn ask(&mut self, command: &str) -> Result<(), PgError> {
        while self.unanswered {
            if let Message::ReadyForQuery = self.connection.read_past_notices().await? {
                self.unanswered = false;
            }
        }
        self.connection.write(|out| frontend::query(command, out))?;
        self.unanswered = true;
        self.connection.flush().await
    }

    /// The next message of an answer. An error is kept in `refusal` until the server is ready, and returned at once if the
    /// connection ends with it.
    pub(super) async fn answer(
        &mut self,
        refusal: &mut Option<Box<super::error::ServerMessage>>,
    ) -> Result<Message, PgError> {
        loop {
            match self.connection.read_past_notices().await {
                Ok(Message::Error(error)) => {
                    refusal.get_or_insert(Box::new(error));
                }
                Ok(Message::ReadyForQuery) => {
                    self.unanswered = false;
                    return Ok(Message::ReadyForQuery);
                }
                Ok(message) => return Ok(message),
                Err(PgError::Closed | PgError::Io(_)) if refusal.is_some() => {
                    return Err(refusal.take().map_or(PgError::Closed, PgError::Server));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The answer ended elsewhere, with a ReadyForQuery.
    pub(super) fn is_ready_again(&mut self) {
        self.unanswered = false;
        self.connection.set_streaming(false);
    }

    /// `IDENTIFY_SYSTEM`. May be dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PgError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_identifier: rows.read("systemid", |text| text.parse().ok())?,
            timeline: rows.read("timeline", parse_timeline)?,
            flush_lsn: rows.read("xlogpos", |text| text.parse().ok())?,
        })
    }

    /// `SHOW`: a setting as the server prints it. May be dropped.
    ///
    /// # Errors
    /// What the server says: 42501 for a setting that the role may not see.
    pub async fn show(&mut self, name: &str) -> Result<String, PgError> {
        let rows = self.simple_query(&format!("SHOW {}", quote_name(name))).await?;
        let value = rows.rows.first().and_then(|row| row.first()?.as_ref());
        let value = value.ok_or_else(|| PgError::protocol(format!("SHOW {name} has no value")))?;
        Ok(String::from_utf8_lossy(value).into_owned())
    }

    /// The cluster's WAL segment size. May be dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn wal_segment_size(&mut self) -> Result<SegmentSize, PgError> {
        let text = self.show("wal_segment_size").await?;
        SegmentSize::parse_setting(&text).ok_or_else(|| PgError::protocol(format!("wal_segment_size is {text:?}")))
    }

    /// Creates a physical slot that keeps WAL from the last checkpoint on. May be dropped, and may then have been done.
    ///
    /// # Errors
    /// What the server says: 42710 if the slot is there.
    pub async fn create_slot(&mut self, name: &str) -> Result<(), PgError> {
        // Every version takes the bare option.
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quote_name(name));
        self.simple_query(&command).await.map(|_| ())
    }

    /// Drops a slot. May be dropped itself, and may then have been done.
    ///
    /// # Errors
    /// What the server says: 42704 if there is none, 55006 if somebody uses it.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.simple_query(&format!("DROP_REPLICATION_SLOT {}", quote_name(name))).await.map(|_| ())
    }

    /// What the server knows of a slot. Before 15 that takes SQL, so a physical connection does not learn it. May be
    /// dropped.
    ///
    /// # Errors
    /// What the server says; it also refuses when the slot's position is not on its own history.
    pub async fn read_slot(&mut self, name: &str) -> Result<SlotState, PgError> {
        /// What a walsender answers about a logical slot (`walsender.c`, `ReadReplicationSlot`).
        const FEATURE_NOT_SUPPORTED: &str = "0A000";
        if self.mode == Mode::Sql || (self.server_version < 150_000 && self.mode == Mode::Database) {
            return self.read_slot_with_sql(name).await;
        }
        if self.server_version < 150_000 {
            return Ok(SlotState::Unknown);
        }
        let rows = match self.simple_query(&format!("READ_REPLICATION_SLOT {}", quote_name(name))).await {
            Err(error) if error.sqlstate() == Some(FEATURE_NOT_SUPPORTED) => return Ok(SlotState::NotPhysical),
            answer => answer?,
        };
        if rows.get(0, "slot_type").is_none() {
            return Ok(SlotState::Absent);
        }
        slot_state(&rows, rows.get(0, "restart_tli").and_then(parse_timeline))
    }

    async fn read_slot_with_sql(&mut self, name: &str) -> Result<SlotState, PgError> {
        let query = format!(
            "SELECT slot_type, restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            quote_literal(name)
        );
        let rows = self.simple_query(&query).await?;
        match rows.get(0, "slot_type") {
            None => Ok(SlotState::Absent),
            Some("physical") => slot_state(&rows, None),
            Some(_) => Ok(SlotState::NotPhysical),
        }
    }

    /// True if somebody holds the slot; false for one that is not there. Needs SQL. May be dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn is_slot_active(&mut self, name: &str) -> Result<bool, PgError> {
        let query =
            format!("SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = {}", quote_literal(name));
        Ok(self.simple_query(&query).await?.get(0, "active") == Some("t"))
    }

    /// Asks for a stream through the slot from the end of all positions. Always fails: with 55006 if somebody holds the
    /// slot, with something else if it is free, and it stays so. The connection can be used further after 55006 alone.
    ///
    /// # Errors
    /// Always.
    pub async fn ask_for_no_stream(&mut self, slot: &str) -> Result<(), PgError> {
        let command = format!("START_REPLICATION SLOT {} PHYSICAL FFFFFFFF/FFFFFFFF", quote_name(slot));
        self.simple_query(&command).await.map(|_| ())
    }

    /// Whether `remote_apply` is the `synchronous_commit` of a role or database, and each session that waits for
    /// synchronous replication, as far as the role may see that. Needs SQL. May be dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn commit_waits(&mut self) -> Result<(bool, BTreeSet<String>), PgError> {
        let settings = "SELECT count(*) AS count FROM pg_catalog.pg_db_role_setting \
                        WHERE 'synchronous_commit=remote_apply' = ANY (setconfig)";
        let count: u64 = self.simple_query(settings).await?.read("count", |text| text.parse().ok())?;
        // A statement that still waits has the same process and the same beginning.
        let sessions = "SELECT pid || ' ' || extract(epoch FROM query_start) AS session \
                        FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep'";
        let rows = self.simple_query(sessions).await?;
        let waiting = (0..rows.len()).filter_map(|row| rows.get(row, "session").map(str::to_owned)).collect();
        Ok((count > 0, waiting))
    }

    /// The bytes of a timeline's history file. May be dropped.
    ///
    /// # Errors
    /// What the server says: 58P01 if it has none, as for timeline 1.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Bytes, PgError> {
        let rows = self.simple_query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        // A copy: the value is a slice of a read buffer, and this one is kept.
        let content = rows.bytes(0, "content").map(|content| Bytes::copy_from_slice(content));
        content.ok_or_else(|| PgError::protocol("TIMELINE_HISTORY has no content"))
    }

    /// Begins to stream WAL of `timeline` from `start` on. The connection is gone if this fails or is dropped.
    ///
    /// # Errors
    /// What the server says. WAL that is gone, or a start beyond its end, is told later, by [`super::WalStream::next`].
    pub async fn start_replication(
        self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Streaming, PgError> {
        streaming::start(self, slot, start, timeline).await
    }

    /// Begins a base backup. Returns when the server has made its checkpoint, which may take minutes. The connection is
    /// gone if this fails or is dropped; the server then ends the backup by itself.
    ///
    /// # Errors
    /// What the server says.
    pub async fn base_backup(self, options: &BaseBackupOptions) -> Result<(BackupStart, BackupStream), PgError> {
        base_backup::start(self, options).await
    }

    /// Says good-bye. A client that is merely dropped closes without a word, which the server takes as well.
    pub async fn close(mut self) {
        let _ = self.connection.write(|out| {
            frontend::terminate(out);
            Ok(())
        });
        self.connection.shut_down().await;
    }
}

fn slot_state(rows: &Rows, restart_timeline: Option<TimelineId>) -> Result<SlotState, PgError> {
    let restart_lsn = match rows.get(0, "restart_lsn") {
        None => None,
        Some(_) => Some(rows.read("restart_lsn", |text| text.parse().ok())?),
    };
    Ok(SlotState::Present { restart_lsn, restart_timeline })
}

/// Up to 15 a timeline's column is a signed 32-bit integer.
pub(super) fn parse_timeline(text: &str) -> Option<TimelineId> {
    let number: i64 = text.parse().ok()?;
    let number = if number < 0 { i32::try_from(number).ok()? as u32 } else { u32::try_from(number).ok()? };
    (number > 0).then_some(TimelineId(number))
}

/// `15.18 (Debian 15.18-0+deb12u1)`, `18beta1` or `9.6.24` as `server_version_num` has it; 0 if it cannot be read.
fn parse_version(text: &str) -> u32 {
    let numbers: Vec<u32> = text
        .split('.')
        .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default())
        .map_while(|digits| digits.parse().ok())
        .collect();
    let at = |index: usize| numbers.get(index).copied().unwrap_or(0).min(9999);
    match at(0) {
        0..10 => at(0) * 10_000 + at(1).min(99) * 100 + at(2).min(99),
        major => major * 10_000 + at(1),
    }
}

/// A name for the replication grammar, whatever is in it (`repl_scanner.l`).
pub(super) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string for the replication grammar or for SQL with standard strings.
pub(super) fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_server_version_num_has_them() {
        let cases = [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("13.0", 130_000),
            ("18beta1", 180_000),
            ("19devel", 190_000),
            ("9.6.24", 90_624),
            ("EnterpriseDB", 0),
            ("", 0),
        ];
        for (text, version) in cases {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[test]
    fn timelines_of_old_servers_may_look_negative() {
        assert_eq!(parse_timeline("1"), Some(TimelineId(1)));
        assert_eq!(parse_timeline("-1"), Some(TimelineId(u32::MAX)));
        assert_eq!(parse_timeline("4294967295"), Some(TimelineId(u32::MAX)));
        for text in ["0", "", "x", "4294967296", "-2147483649"] {
            assert_eq!(parse_timeline(text), None, "{text}");
        }
    }
}
