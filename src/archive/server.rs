//! A real PostgreSQL server as a source.

use super::slot;
use super::source::{
    CommitWaits, Feed, FeedMessage, Observer, SPARE_PAUSE, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, Synchronous, TimelineEnd,
};
use crate::postgres::{Client, ConnInfo, Mode, PgError, SlotHealth, StatusUpdate, Streaming, WalMessage, WalStream};
use crate::runtime::Clock;
use crate::wal::{Lsn, TimelineId};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A server whose archiver says nothing for so long takes the slot from it, so that a hot spare can go on: its host has
/// gone silent. We say something every second; ten times nothing is no accident.
const SENDER_TIMEOUT: (&str, &str) = ("wal_sender_timeout", "10s");

/// What a server answers without having to do anything for it.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Making a slot syncs files, and the start of a stream may wait for locks and read histories: on a busy server that
/// takes its time.
const WORK_PATIENCE: Duration = Duration::from_secs(300);

/// `object_in_use`: another connection holds the slot.
const OBJECT_IN_USE: &str = "55006";
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
    treats_archived_as_applied: bool,
    /// For what is answered at once, and for what may be work.
    patience: (Duration, Duration),
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
        let patience = (ANSWER_PATIENCE, WORK_PATIENCE);
        PostgresSource {
            info,
            slot: Some(slot.into()),
            clock,
            treats_archived_as_applied: false,
            patience,
            hosts: Arc::default(),
        }
    }

    /// Reports what is stored as applied, too: `synchronous_commit = remote_apply` then waits for the store and no
    /// longer for ever.
    pub fn treat_archived_as_applied(mut self, treats: bool) -> PostgresSource {
        self.treats_archived_as_applied = treats;
        self
    }

    /// Waits for an answer this long where the server has nothing to do for it, and that long where it may have; beyond
    /// that the connection counts as lost.
    pub fn with_patience(mut self, answer: Duration, work: Duration) -> PostgresSource {
        self.patience = (answer, work);
        self
    }

    async fn connect_to(&self, info: &ConnInfo, mode: Mode, settings: &[(&str, &str)]) -> Result<Client, PgError> {
        let mut client = Client::connect(info, mode, settings).await?;
        client.set_patience(self.patience.0);
        Ok(client)
    }

    async fn connect_for_sql(&self, info: &ConnInfo, mode: Mode) -> Result<Client, PgError> {
        let mut client = Client::connect_for_sql(info, mode).await?;
        client.set_patience(self.patience.0);
        Ok(client)
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
        let settings: &[_] = if self.info.sets(SENDER_TIMEOUT.0) { &[] } else { &[SENDER_TIMEOUT] };
        let mut client = self.connect_to(&self.eligible(), Mode::Physical, settings).await?;
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
        // One that may also ask by SQL, where the role is let in for that.
        let client = match self.connect_for_sql(&info, Mode::Database).await {
            Ok(client) => client,
            Err(_) => self.connect_to(&info, Mode::Physical, &[]).await?,
        };
        Ok(Box::new(PostgresObserver { client, source: self.clone(), waiting: BTreeSet::new() }))
    }

    /// With SQL, quietly. Where the role may not have that, by asking for a stream from the end of all positions: a slot
    /// that is held is said to be, and a free one is let go again because there is no such WAL.
    async fn wait_for_slot(&self) -> Result<(), SourceError> {
        let Some(slot) = &self.slot else { return Ok(()) };
        let info = self.last_host();
        if let Ok(mut sql) = self.connect_for_sql(&info, Mode::Sql).await {
            loop {
                tokio::time::sleep(SPARE_PAUSE).await;
                if !sql.is_slot_active(slot).await? {
                    return Ok(());
                }
            }
        }
        let mut client = self.connect_to(&info, Mode::Physical, &[]).await?;
        loop {
            tokio::time::sleep(SPARE_PAUSE).await;
            match client.ask_for_no_stream(slot).await {
                Err(error) if error.sqlstate() == Some(OBJECT_IN_USE) => {}
                _ => return Ok(()),
            }
        }
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        let asking = async {
            let client = self.connect_to(&self.last_host(), Mode::Physical, &[]).await?;
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

    fn certificate_end(&self) -> Option<Timestamp> {
        self.client.certificate_end()
    }

    fn backend(&self) -> Option<u32> {
        self.client.backend()
    }

    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError> {
        Ok(self.client.timeline_history(timeline).await?)
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.client.set_patience(self.source.patience.1);
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
        let is_standby = is_standby(&mut self.client).await?;
        let system = self.client.identify_system().await?;
        Ok(Standing { timeline: system.timeline, flush_lsn: system.flush_lsn, is_standby })
    }

    fn others(&self) -> Vec<Arc<dyn Source>> {
        let (all, own) = (&self.source.info, self.client.host());
        let names = all.host_names().into_iter().filter(|name| name != own);
        let other = |name: String| {
            let info = all.with_hosts(|host| host == name)?.with_any_session();
            let source = PostgresSource { info, slot: None, hosts: Arc::default(), ..self.source.clone() };
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

    async fn start(mut self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        /// `internal_error`: no code of its own for a position that is not in the server's history, as when it was
        /// promoted since it was asked (`walsender.c`, `StartReplication`).
        const INTERNAL_ERROR: &str = "XX000";
        self.client.set_patience(self.source.patience.1);
        let (version, info) = (self.client.server_version(), self.info());
        let PostgresSession { client, source, .. } = *self;
        let error = match client.start_replication(source.slot.as_deref(), start, timeline).await {
            Ok(Streaming::Wal(stream)) => {
                return Ok(Started::Streaming(Box::new(PostgresFeed { stream, source })));
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
    source: PostgresSource,
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
        let applied = if self.source.treats_archived_as_applied { flushed } else { Lsn::INVALID };
        let status = StatusUpdate { written, flushed, applied, reply_requested };
        Ok(self.stream.send_status(status, self.source.clock.now_postgres_micros()).await?)
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

async fn is_standby(client: &mut Client) -> Result<bool, PgError> {
    match client.parameter("in_hot_standby") {
        Some(value) => Ok(value == "on"),
        // 13 does not report it.
        None => Ok(client.show("transaction_read_only").await? == "on"),
    }
}

#[derive(Debug)]
struct PostgresObserver {
    client: Client,
    source: PostgresSource,
    /// Sessions that waited for synchronous replication at the last look.
    waiting: BTreeSet<String>,
}

impl PostgresObserver {
    /// What SQL tells: whether a role or database waits until WAL is applied, and who waits. Nothing, without SQL.
    async fn look_with_sql(&mut self) -> Result<(bool, u64), PgError> {
        if self.client.mode() == Mode::Physical {
            return Ok((false, 0));
        }
        let (remote_apply, waiting) = self.client.commit_waits().await?;
        let hanging = waiting.intersection(&self.waiting).count() as u64;
        self.waiting = waiting;
        Ok((remote_apply, hanging))
    }
}

#[async_trait]
impl Observer for PostgresObserver {
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError> {
        Ok(self.client.identify_system().await?.flush_lsn)
    }

    async fn commit_waits(&mut self) -> Result<CommitWaits, SourceError> {
        let names = self.client.show("synchronous_standby_names").await?;
        let synchronous = place_in(&names, self.source.info.application_name());
        // In recovery nobody commits, whatever the settings say (`syncrep.c`, `SyncRepGetStandbyPriority`).
        if synchronous == Synchronous::No || is_standby(&mut self.client).await? {
            self.waiting.clear();
            return Ok(CommitWaits::default());
        }
        let by_default = self.client.show("synchronous_commit").await? == "remote_apply";
        let (by_setting, hanging) = self.look_with_sql().await?;
        let remote_apply = (by_default || by_setting) && !self.source.treats_archived_as_applied;
        Ok(CommitWaits { synchronous, remote_apply, hanging })
    }

    async fn slot(&mut self) -> Result<Option<SlotHealth>, SourceError> {
        match &self.source.slot {
            Some(name) if self.client.mode() == Mode::Database => Ok(self.client.slot_health(name).await?),
            _ => Ok(None),
        }
    }
}

/// How `synchronous_standby_names` holds `name`, as PostgreSQL compares them: without regard to case, `*` for all
/// (`src/backend/replication/syncrep.c`, `SyncRepGetStandbyPriority`; the grammar is `syncrep_gram.y`).
fn place_in(setting: &str, name: &str) -> Synchronous {
    let (mut names, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut letters = setting.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => word.extend(letters.next()),
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => word.push(letter),
            // What comes before is the method and the number.
            '(' => word.clear(),
            ',' | ')' => names.push(std::mem::take(&mut word)),
            _ if letter.is_whitespace() => {}
            _ => word.push(letter),
        }
    }
    names.push(word);
    if names.iter().any(|entry| entry.eq_ignore_ascii_case(name)) {
        Synchronous::Named
    } else if names.iter().any(|entry| entry == "*") {
        Synchronous::Captured
    } else {
        Synchronous::No
    }
}

impl From<PgError> for SourceError {
    fn from(error: PgError) -> SourceError {
        let kind = match error.sqlstate() {
            Some(OBJECT_IN_USE) => SourceErrorKind::SlotBusy,
            _ if error.is_wal_removed() => SourceErrorKind::WalRemoved,
            // One of several servers that is starting or leaving does not hold up the search for another.
            _ if matches!(&error, PgError::Hosts(hosts) if hosts.len() > 1) && error.is_transient() => {
                SourceErrorKind::Lost
            }
            Some(state) if state.starts_with("57P") => SourceErrorKind::Leaving,
            _ if error.is_transient() => SourceErrorKind::Lost,
            _ => SourceErrorKind::Refused,
        };
        let slot_holder = error.slot_holder();
        SourceError { slot_holder, ..SourceError::new(kind, error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::Synchronous::{Captured, Named, No};
    use super::place_in;

    #[test]
    fn synchronous_standbys_are_found_as_postgresql_finds_them() {
        let cases = [
            ("seawall", Named),
            ("a, Seawall", Named),
            ("FIRST 1 (b, seawall)", Named),
            ("ANY 2 (\"seawall\", b)", Named),
            ("2 (seawall)", Named),
            ("FIRST 1 (\"a (b, c)\", SEAWALL)", Named),
            ("*, seawall", Named),
            ("*", Captured),
            ("ANY 1 (standby1, *)", Captured),
            ("\"*\"", Captured),
            ("", No),
            ("a", No),
            ("FIRST 1 (a, b)", No),
            ("seawall2", No),
            ("\"sea wall\"", No),
            ("\"x, seawall\"", No),
            ("\"sea\"\"wall\"", No),
        ];
        for (setting, expected) in cases {
            assert_eq!(place_in(setting, "seawall"), expected, "{setting}");
        }
        assert_eq!(place_in("\"a \"\"b\"\"\"", "a \"b\""), Named);
    }
}
