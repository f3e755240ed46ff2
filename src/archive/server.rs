//! A real PostgreSQL server as a source.

use super::slot;
use super::source::{
    Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError, SourceErrorKind, Standing,
    Started, TimelineEnd,
};
use crate::postgres::{Client, ConnInfo, Mode, PgError, SlotHealth, StatusUpdate, Streaming, WalMessage, WalStream};
use crate::runtime::Clock;
use crate::wal::{Lsn, TimelineId};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a server may take to say whether it has a piece of WAL.
const PEEK_TIMEOUT: Duration = Duration::from_secs(30);

/// So much of it is enough to see what it is: the long header of a page and the header of a record.
const PEEK_BYTES: usize = 256;

/// A cluster reached by a connection string, through a slot.
#[derive(Clone, Debug)]
pub struct PostgresSource {
    info: ConnInfo,
    /// `None`: WAL is taken as far as it happens to be there.
    slot: Option<String>,
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
        PostgresSource { info, slot: Some(slot.into()), clock, hosts: Arc::default() }
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

    /// The server of the last session. Not any other: it may be one that is not followed.
    fn last_host(&self) -> ConnInfo {
        let last = self.hosts().last.clone();
        last.map_or_else(|| self.info.clone(), |host| self.at(&host))
    }

    /// One server of the list.
    fn at(&self, host: &str) -> ConnInfo {
        self.info.with_hosts(|name| name == host).unwrap_or_else(|| self.info.clone())
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
        let info = self.last_host();
        // One connection that may also ask by SQL, where the role is let in for that.
        let client = match Client::connect_for_sql(&info, Mode::Database).await {
            Ok(client) => client,
            Err(_) => Client::connect(&info, Mode::Physical, &[]).await?,
        };
        let name = self.info.application_name().to_owned();
        Ok(Box::new(PostgresObserver { client, name, slot: self.slot.clone() }))
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        let asking = async {
            let client = Client::connect(&self.last_host(), Mode::Physical, &[]).await?;
            let Streaming::Wal(mut stream) = client.start_replication(None, lsn, timeline).await? else {
                return Ok(Some(Bytes::new()));
            };
            loop {
                match stream.next().await {
                    // A copy: the bytes are a slice of a read buffer.
                    Ok(WalMessage::Data { bytes, .. }) => {
                        return Ok(Some(Bytes::copy_from_slice(&bytes[..bytes.len().min(PEEK_BYTES)])));
                    }
                    Ok(WalMessage::Keepalive { .. }) => {}
                    Ok(WalMessage::EndOfTimeline | WalMessage::ServerShutdown) => return Ok(Some(Bytes::new())),
                    Err(error) if error.is_wal_removed() => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let asked = tokio::time::timeout(PEEK_TIMEOUT, asking).await;
        asked.unwrap_or_else(|_| Err(SourceError::lost(format!("the server does not say whether it has WAL at {lsn}"))))
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
        let info = self.info();
        match &self.source.slot {
            Some(name) => slot::take(&mut self.client, &info, name).await,
            None => Ok(SlotPosition { restart_lsn: None, created: false }),
        }
    }

    async fn renew_slot(&mut self) -> Result<SlotPosition, SourceError> {
        let info = self.info();
        match &self.source.slot {
            Some(name) => slot::renew(&mut self.client, &info, name).await,
            None => Ok(SlotPosition { restart_lsn: None, created: false }),
        }
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        // First what it is, then where: a standby that is promoted in between shows by its timeline.
        let is_standby = match self.client.parameter("in_hot_standby") {
            Some(value) => value == "on",
            // 13 does not report it.
            None => self.client.show("transaction_read_only").await? == "on",
        };
        let system = self.client.identify_system().await?;
        Ok(Standing { timeline: system.timeline, flush_lsn: system.flush_lsn, is_standby })
    }

    fn others(&self) -> Vec<Arc<dyn Source>> {
        let (all, own) = (&self.source.info, self.client.host());
        let names = all.host_names().into_iter().filter(|name| name != own);
        let other = |name: String| {
            let info = all.with_hosts(|host| host == name)?.with_any_session();
            let source = PostgresSource { info, slot: None, clock: self.source.clock.clone(), hosts: Arc::default() };
            Some(Arc::new(source) as Arc<dyn Source>)
        };
        names.filter_map(other).collect()
    }

    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        match &self.source.slot {
            Some(name) => Ok(self.client.drop_slot(name).await?),
            None => Ok(()),
        }
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        /// `internal_error`: no code of its own for a position that is not in the server's history, as when it was
        /// promoted since it was asked (`walsender.c`, `StartReplication`).
        const INTERNAL_ERROR: &str = "XX000";
        let (version, info) = (self.client.server_version(), self.info());
        let PostgresSession { client, source, .. } = *self;
        let error = match client.start_replication(source.slot.as_deref(), start, timeline).await {
            Ok(Streaming::Wal(stream)) => {
                return Ok(Started::Streaming(Box::new(PostgresFeed { stream, clock: source.clock })));
            }
            Ok(Streaming::TimelineEnded { next, switch, .. }) => {
                return Ok(Started::TimelineEnded(TimelineEnd { next, switch }));
            }
            Err(error) => error,
        };
        match (&source.slot, error.sqlstate()) {
            (Some(name), _) if slot::is_refused_as_dead(version, &error) => {
                slot::replace_dead(&info, name).await?;
                Err(SourceError::new(SourceErrorKind::Lost, error.into()))
            }
            (_, Some(INTERNAL_ERROR)) if !error.is_wal_removed() => {
                Err(SourceError::new(SourceErrorKind::NotInHistory, error.into()))
            }
            _ => Err(error.into()),
        }
    }
}

impl PostgresSession {
    /// This server alone.
    fn info(&self) -> ConnInfo {
        self.source.at(self.client.host())
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
    slot: Option<String>,
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

    async fn slot(&mut self) -> Result<Option<SlotHealth>, SourceError> {
        match &self.slot {
            Some(name) if self.client.mode() == Mode::Database => Ok(self.client.slot_health(name).await?),
            _ => Ok(None),
        }
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
