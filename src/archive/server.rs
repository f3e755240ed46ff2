//! A real PostgreSQL server as a source.

use super::source::{
    Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError, SourceErrorKind, Started,
    TimelineEnd,
};
use crate::error::{Error, Kind};
use crate::postgres::{Client, ConnInfo, Mode, PgError, SlotState, StatusUpdate, Streaming, WalMessage, WalStream};
use crate::runtime::Clock;
use crate::wal::{Lsn, TimelineId};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A cluster reached by a connection string, through a slot.
#[derive(Clone, Debug)]
pub struct PostgresSource {
    info: ConnInfo,
    slot: String,
    clock: Clock,
    hosts: Arc<Mutex<Hosts>>,
}

/// Which of several servers it is.
#[derive(Debug, Default)]
struct Hosts {
    /// That of the last session.
    last: Option<String>,
    /// These are left alone until then.
    passed_over: BTreeMap<String, Instant>,
}

impl PostgresSource {
    /// Streams through `slot`, which is made where it is missing.
    pub fn new(info: ConnInfo, slot: impl Into<String>, clock: Clock) -> PostgresSource {
        PostgresSource { info, slot: slot.into(), clock, hosts: Arc::default() }
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers that are not left alone. If all are, all of them: waiting would help nobody.
    fn eligible(&self) -> ConnInfo {
        let mut hosts = self.hosts();
        hosts.passed_over.retain(|_, until| *until > Instant::now());
        self.info.with_hosts(|host| !hosts.passed_over.contains_key(host)).unwrap_or_else(|| self.info.clone())
    }

    /// One server of the list.
    fn at(&self, host: &str) -> ConnInfo {
        self.info.with_hosts(|name| name == host).unwrap_or_else(|| self.info.clone())
    }

    /// On 13 and 14 only SQL knows where a slot is, and the role may not be let in for that: then nobody knows.
    async fn slot_state(&self, client: &mut Client) -> Result<SlotState, PgError> {
        let state = client.read_slot(&self.slot).await?;
        if state != SlotState::Unknown {
            return Ok(state);
        }
        match Client::connect(&self.at(client.host()), Mode::Database, &[]).await {
            Ok(mut sql) => sql.read_slot(&self.slot).await,
            Err(_) => Ok(SlotState::Unknown),
        }
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let mut client = Client::connect(&self.eligible(), Mode::Physical, &[]).await?;
        self.hosts().last = Some(client.host().to_owned());
        let system = client.identify_system().await?;
        let segment_size = client.wal_segment_size().await?;
        let identity = ServerIdentity {
            system_identifier: system.system_identifier,
            timeline: system.timeline,
            flush_lsn: system.flush_lsn,
            segment_size,
            version: client.server_version(),
        };
        Ok(Box::new(PostgresSession { client, identity, source: self.clone() }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        // Not any other: it may be one that is not followed.
        let last = self.hosts().last.clone();
        let info = last.map_or_else(|| self.info.clone(), |host| self.at(&host));
        let client = Client::connect(&info, Mode::Physical, &[]).await?;
        let name = self.info.application_name().to_owned();
        Ok(Box::new(PostgresObserver { client, name }))
    }

    fn has_others(&self) -> bool {
        self.info.host_names().len() > 1
    }

    fn pass_over(&self, time: Duration) -> bool {
        let mut hosts = self.hosts();
        let now = Instant::now();
        hosts.passed_over.retain(|_, until| *until > now);
        if let Some(host) = hosts.last.clone() {
            hosts.passed_over.insert(host, now + time);
        }
        self.info.host_names().iter().any(|host| !hosts.passed_over.contains_key(host))
    }
}

#[derive(Debug)]
struct PostgresSession {
    client: Client,
    identity: ServerIdentity,
    source: PostgresSource,
}

#[async_trait]
impl Session for PostgresSession {
    fn identity(&self) -> ServerIdentity {
        self.identity
    }

    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError> {
        Ok(self.client.timeline_history(timeline).await?)
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        /// `duplicate_object`: the slot is there.
        const DUPLICATE_OBJECT: &str = "42710";
        let name = &self.source.slot;
        match self.source.slot_state(&mut self.client).await? {
            SlotState::Present { restart_lsn: Some(lsn), .. } => {
                return Ok(SlotPosition { restart_lsn: Some(lsn), created: false });
            }
            // It keeps nothing, or has lost what it kept: a new one keeps what is still there.
            SlotState::Present { restart_lsn: None, .. } => self.client.drop_slot(name).await?,
            SlotState::NotPhysical => {
                let error = Error::new(Kind::Config, format!("the slot {name} is a logical one"))
                    .hint("Choose another name with --slot.");
                return Err(SourceError::new(SourceErrorKind::Refused, error));
            }
            SlotState::Absent | SlotState::Unknown => {}
        }
        match self.client.create_slot(name).await {
            Ok(()) => {}
            Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => {
                return Ok(SlotPosition { restart_lsn: None, created: false });
            }
            Err(error) => return Err(error.into()),
        }
        tracing::info!(slot = %name, "made the replication slot");
        match self.source.slot_state(&mut self.client).await? {
            SlotState::Present { restart_lsn, .. } => Ok(SlotPosition { restart_lsn, created: true }),
            _ => Ok(SlotPosition { restart_lsn: None, created: true }),
        }
    }

    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        Ok(self.client.drop_slot(&self.source.slot).await?)
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        /// `internal_error`: no code of its own for a position that is not in the server's history, as when it was
        /// promoted since it was asked (`walsender.c`, `StartReplication`).
        const INTERNAL_ERROR: &str = "XX000";
        let started = self.client.start_replication(Some(&self.source.slot), start, timeline).await;
        let started = started.map_err(|error| match error.sqlstate() {
            Some(INTERNAL_ERROR) if !error.is_wal_removed() => {
                SourceError::new(SourceErrorKind::NotInHistory, error.into())
            }
            _ => error.into(),
        });
        match started? {
            Streaming::Wal(stream) => {
                Ok(Started::Streaming(Box::new(PostgresFeed { stream, clock: self.source.clock })))
            }
            Streaming::TimelineEnded { next, switch, .. } => Ok(Started::TimelineEnded(TimelineEnd { next, switch })),
        }
    }
}

#[derive(Debug)]
struct PostgresFeed {
    stream: WalStream,
    clock: Clock,
}

#[async_trait]
impl Feed for PostgresFeed {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        Ok(match self.stream.next().await? {
            WalMessage::Data { start, server_end, server_time_micros, bytes } => {
                FeedMessage::Data { start, server_end, server_micros: server_time_micros, bytes }
            }
            WalMessage::Keepalive { server_end, server_time_micros, reply_requested } => {
                FeedMessage::Keepalive { server_end, server_micros: server_time_micros, reply_requested }
            }
            WalMessage::EndOfTimeline => FeedMessage::EndOfTimeline,
            WalMessage::ServerShutdown => FeedMessage::ServerShutdown,
        })
    }

    async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        let status = StatusUpdate { written, flushed, applied: Lsn::INVALID, reply_requested };
        Ok(self.stream.send_status(status, self.clock.now_postgres_micros()).await?)
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        self.stream.end().await?.close().await;
        Ok(())
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        let (client, next, switch) = self.stream.finish_timeline().await?;
        client.close().await;
        Ok(TimelineEnd { next, switch })
    }
}

#[derive(Debug)]
struct PostgresObserver {
    client: Client,
    name: String,
}

#[async_trait]
impl Observer for PostgresObserver {
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError> {
        Ok(self.client.identify_system().await?.flush_lsn)
    }

    async fn is_synchronous(&mut self) -> Result<bool, SourceError> {
        let names = self.client.show("synchronous_standby_names").await?;
        Ok(names_standby(&names, &self.name))
    }
}

/// True if `synchronous_standby_names` holds `name`, as PostgreSQL compares them: without regard to case, `*` for all
/// (`src/backend/replication/syncrep.c`, `SyncRepGetStandbyPriority`; the grammar is `syncrep_gram.y`).
fn names_standby(setting: &str, name: &str) -> bool {
    let list = match setting.split_once('(') {
        Some((_, list)) => list.trim_end().trim_end_matches(')'),
        None => setting,
    };
    list.split(',').map(str::trim).any(|entry| {
        let entry = match entry.strip_prefix('"').and_then(|entry| entry.strip_suffix('"')) {
            Some(quoted) => quoted.replace("\"\"", "\""),
            None => entry.to_owned(),
        };
        entry == "*" || entry.eq_ignore_ascii_case(name)
    })
}

impl From<PgError> for SourceError {
    fn from(error: PgError) -> SourceError {
        let kind = match error.sqlstate() {
            Some("55006") => SourceErrorKind::SlotBusy,
            _ if error.is_wal_removed() => SourceErrorKind::WalRemoved,
            // One of several servers that is starting or leaving does not hold up the search for another.
            _ if matches!(&error, PgError::Hosts(hosts) if hosts.len() > 1) && error.is_transient() => {
                SourceErrorKind::Lost
            }
            Some(state) if state.starts_with("57P") => SourceErrorKind::Leaving,
            _ if error.is_transient() => SourceErrorKind::Lost,
            _ => SourceErrorKind::Refused,
        };
        SourceError::new(kind, error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::names_standby;

    #[test]
    fn synchronous_standbys_are_found_as_postgresql_finds_them() {
        for setting in ["seawall", "*", "a, Seawall", "FIRST 1 (b, seawall)", "ANY 2 (\"seawall\", b)", "2 (seawall)"] {
            assert!(names_standby(setting, "seawall"), "{setting} names seawall");
        }
        for setting in ["", "a", "FIRST 1 (a, b)", "seawall2", "\"sea wall\""] {
            assert!(!names_standby(setting, "seawall"), "{setting} does not name seawall");
        }
    }
}
