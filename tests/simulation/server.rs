//! A model of a PostgreSQL server: WAL, a slot, timelines, and every way to be difficult that the protocol allows.

use crate::counts::Counts;
use crate::ledger::Ledger;
use crate::wal::{SEGMENT_BYTES, Wal, segment_size};
use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    CommitWaits, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, Synchronous, TimelineEnd,
};
use seawall::error::{Error, Kind};
use seawall::runtime::Clock;
use seawall::wal::{Lsn, TimelineId};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

pub const SYSTEM_IDENTIFIER: u64 = 7_300_000_000_000_000_001;

/// More connections than this within a minute are a loop without a pause: a hot spare asks once a second.
const CONNECTIONS_PER_MINUTE_MAX: u32 = 90;

/// How long a server that shuts down waits for its archiver before somebody kills it.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    wal: Arc<Wal>,
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
    clock: Clock,
}

#[derive(Debug)]
struct Inner {
    random: fastrand::Rng,
    is_faulty: bool,
    tells_restart_lsn: bool,
    is_synchronous: bool,
    /// A thousand bytes a second.
    dawdles: bool,
    timeline: TimelineId,
    flush: Lsn,
    /// WAL before this is gone.
    removed_before: Lsn,
    slot: Option<Lsn>,
    /// The connection that holds the slot.
    holder: Option<u64>,
    held_until: Instant,
    connections: u64,
    /// Raised by a failover: another machine answers.
    incarnation: u32,
    /// Connections up to this one are cut.
    cut: u64,
    down_until: Instant,
    shutting_down: Option<Instant>,
    rush: (Instant, u32),
}

impl Server {
    pub fn new(ledger: Arc<Ledger>, counts: Arc<Counts>, clock: Clock, seed: u64) -> Server {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5E17_E000);
        let start = Lsn(3 * SEGMENT_BYTES);
        let inner = Inner {
            is_faulty: false,
            tells_restart_lsn: random.u32(0..4) > 0,
            is_synchronous: random.u32(0..4) == 0,
            dawdles: false,
            timeline: TimelineId(1),
            flush: start + random.u64(1..SEGMENT_BYTES),
            removed_before: start,
            slot: None,
            holder: None,
            held_until: Instant::now(),
            connections: 0,
            incarnation: 0,
            cut: 0,
            down_until: Instant::now(),
            shutting_down: None,
            rush: (Instant::now(), 0),
            random,
        };
        let wal = ledger.wal.clone();
        let shared = Shared { inner: Mutex::new(inner), changed: watch::channel(0).0, wal, ledger, counts, clock };
        Server { shared: Arc::new(shared) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap()
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    fn count(&self, what: &'static str) {
        self.shared.counts.add(what);
    }

    pub fn set_faulty(&self, faulty: bool) {
        self.lock().is_faulty = faulty;
    }

    pub fn set_dawdling(&self, dawdles: bool) {
        self.lock().dawdles = dawdles;
    }

    pub fn set_synchronous(&self, synchronous: bool) {
        self.lock().is_synchronous = synchronous;
    }

    pub fn timeline(&self) -> TimelineId {
        self.lock().timeline
    }

    pub fn flush(&self) -> Lsn {
        self.lock().flush
    }

    pub fn incarnation(&self) -> u32 {
        self.lock().incarnation
    }

    /// Where the WAL begins, and the segment from which the slot keeps it; the end of all positions where it does not
    /// say.
    pub fn kept(&self) -> (Lsn, Lsn) {
        let inner = self.lock();
        let slot = inner.slot.filter(|_| inner.tells_restart_lsn);
        (inner.removed_before, slot.map_or(Lsn(u64::MAX), |slot| segment_size().segment_start(slot)))
    }

    /// The server writes; nothing while it is down.
    pub fn write(&self, bytes: u64) {
        let mut inner = self.lock();
        if inner.down_until > Instant::now() || inner.shutting_down.is_some() {
            return;
        }
        inner.flush = inner.flush + bytes;
        drop(inner);
        self.wake();
    }

    /// To the end of the segment, as `pg_switch_wal` does.
    pub fn switch_segment(&self) {
        let flush = self.flush();
        self.write(segment_size().segment_start(flush) + SEGMENT_BYTES - flush);
    }

    /// Removes what no slot needs.
    pub fn checkpoint(&self) {
        let mut inner = self.lock();
        let needed = inner.slot.unwrap_or(inner.removed_before).min(inner.flush);
        let needed = segment_size().segment_start(needed);
        if needed > inner.removed_before {
            inner.removed_before = needed;
            drop(inner);
            self.count("server: WAL removed");
        }
    }

    /// `max_slot_wal_keep_size`: the slot is lost, and with it WAL that nobody has archived.
    pub fn lose_slot(&self) {
        let mut inner = self.lock();
        inner.slot = None;
        inner.cut = inner.connections;
        inner.removed_before = segment_size().segment_start(inner.flush);
        drop(inner);
        self.count("server: slot lost");
        self.wake();
    }

    /// Cuts every connection.
    pub fn disconnect(&self) {
        let mut inner = self.lock();
        inner.cut = inner.connections;
        drop(inner);
        self.wake();
    }

    /// Ends this timeline here and begins the next one, on the same machine and with the same slot.
    pub fn promote(&self) {
        let flush = self.flush();
        self.begin_timeline(flush);
        self.count("server: promoted");
        self.wake();
    }

    /// A standby that had less takes over: another machine, without the slot or with an older one.
    pub fn fail_over(&self, lost_bytes: u64) {
        let mut inner = self.lock();
        let begun = self.shared.wal.branches()[&inner.timeline].begin;
        let floor = inner.removed_before.max(begun) + 1;
        let switch = Lsn(inner.flush.0.saturating_sub(lost_bytes)).max(floor).min(inner.flush);
        inner.flush = switch;
        inner.incarnation += 1;
        inner.cut = inner.connections;
        inner.holder = None;
        inner.shutting_down = None;
        inner.slot = match inner.random.bool() {
            true => None,
            false => inner.slot.map(|slot| slot.min(switch)),
        };
        drop(inner);
        self.begin_timeline(switch);
        self.count("server: failed over");
        self.wake();
    }

    fn begin_timeline(&self, switch: Lsn) {
        let mut inner = self.lock();
        let (parent, child) = (inner.timeline, TimelineId(inner.timeline.0 + 1));
        inner.timeline = child;
        // The first thing that a new primary does: its end-of-recovery record.
        inner.flush = switch + 42;
        self.shared.wal.branch(child, Some(parent), switch);
    }

    /// An orderly shutdown, which waits until everything is acknowledged; then some seconds of absence.
    pub fn shut_down(&self) {
        self.lock().shutting_down = Some(Instant::now());
        self.count("server: shut down");
        self.wake();
    }

    /// For the time that nobody looks: a shutdown that nobody waits for ends.
    pub fn settle(&self) {
        let mut inner = self.lock();
        let Some(since) = inner.shutting_down else { return };
        if inner.holder.is_none() || since.elapsed() > SHUTDOWN_MAX {
            inner.go_down();
            drop(inner);
            self.wake();
        }
    }

    /// The bounds of a timeline as this server has them: its end where another one follows.
    fn end_of(&self, inner: &Inner, timeline: TimelineId) -> Option<(Lsn, Option<TimelineId>)> {
        if timeline == inner.timeline {
            return Some((inner.flush, None));
        }
        let lineage = self.shared.wal.lineage(inner.timeline);
        let child = lineage.iter().find(|(_, branch)| branch.parent == Some(timeline))?;
        Some((child.1.begin, Some(child.0)))
    }
}

impl Inner {
    fn go_down(&mut self) {
        self.shutting_down = None;
        self.holder = None;
        self.cut = self.connections;
        self.down_until = Instant::now() + Duration::from_secs(self.random.u64(1..20));
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.is_faulty && self.random.u32(0..1000) < 10 * percent
    }

    fn rare(&mut self, per_mille: u32) -> bool {
        self.is_faulty && self.random.u32(0..1000) < per_mille
    }
}

fn refused(kind: SourceErrorKind, what: &str) -> SourceError {
    SourceError::new(kind, Error::new(Kind::Postgres, what))
}

#[async_trait]
impl Source for Server {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let pause = self.lock().random.u64(1..20);
        sleep(Duration::from_millis(pause)).await;
        let mut inner = self.lock();
        let (since, count) = inner.rush;
        inner.rush = if since.elapsed() > Duration::from_secs(60) { (Instant::now(), 1) } else { (since, count + 1) };
        if count > CONNECTIONS_PER_MINUTE_MAX {
            self.shared.ledger.violate(format!("{count} connections in a minute: a loop without a pause"));
            return Err(refused(SourceErrorKind::Leaving, "too many connections"));
        }
        if inner.down_until > Instant::now() || inner.shutting_down.is_some() {
            return Err(refused(SourceErrorKind::Leaving, "the database system is shutting down"));
        }
        if inner.chance(5) {
            self.count("server: connection refused");
            return Err(SourceError::lost("connection refused"));
        }
        inner.connections += 1;
        let identity = ServerIdentity {
            system_identifier: SYSTEM_IDENTIFIER,
            timeline: inner.timeline,
            flush_lsn: inner.flush,
            segment_size: segment_size(),
            version: 170_000,
        };
        Ok(Box::new(SimSession { server: self.clone(), identity, number: inner.connections }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        Ok(Box::new(SimObserver(self.clone())))
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        let mut inner = self.lock();
        if inner.chance(2) {
            return Err(SourceError::lost("peeking"));
        }
        let Some((end, _)) = self.end_of(&inner, timeline) else {
            return Err(refused(SourceErrorKind::NotInHistory, "requested timeline is not in this server's history"));
        };
        let is_there = lsn >= inner.removed_before;
        let end = end.min(lsn + 100).max(lsn);
        drop(inner);
        Ok(is_there.then(|| Bytes::from(self.shared.wal.bytes(timeline, lsn, end))))
    }
}

#[derive(Debug)]
struct SimObserver(Server);

#[async_trait]
impl Observer for SimObserver {
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError> {
        let mut inner = self.0.lock();
        if inner.chance(2) { Err(SourceError::lost("looking on")) } else { Ok(inner.flush) }
    }

    async fn commit_waits(&mut self) -> Result<CommitWaits, SourceError> {
        let is_synchronous = self.0.lock().is_synchronous;
        let synchronous = if is_synchronous { Synchronous::Named } else { Synchronous::No };
        Ok(CommitWaits { synchronous, ..CommitWaits::default() })
    }
}

#[derive(Debug)]
struct SimSession {
    server: Server,
    identity: ServerIdentity,
    number: u64,
}

impl SimSession {
    fn check(&self, inner: &Inner) -> Result<(), SourceError> {
        if inner.cut >= self.number { Err(SourceError::lost("the connection is cut")) } else { Ok(()) }
    }
}

#[async_trait]
impl Session for SimSession {
    fn identity(&self) -> ServerIdentity {
        self.identity
    }

    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError> {
        self.check(&self.server.lock())?;
        let mut lines = Vec::new();
        for (_, branch) in self.server.shared.wal.lineage(timeline) {
            if let Some(parent) = branch.parent {
                lines.push(format!("{parent}\t{}\tno recovery target specified\n", branch.begin));
            }
        }
        let mut text = String::new();
        lines.iter().rev().for_each(|line| write!(text, "{line}").unwrap());
        Ok(Bytes::from(text))
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        let mut inner = self.server.lock();
        self.check(&inner)?;
        let created = inner.slot.is_none();
        let redo = Lsn(inner.flush.0 - inner.random.u64(0..SEGMENT_BYTES / 2)).max(inner.removed_before);
        let restart = *inner.slot.get_or_insert(redo);
        Ok(SlotPosition { restart_lsn: Some(restart).filter(|_| inner.tells_restart_lsn), created })
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        let inner = self.server.lock();
        self.check(&inner)?;
        Ok(Standing { timeline: inner.timeline, flush_lsn: inner.flush, is_standby: false })
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        let pause = self.server.lock().random.u64(1..20);
        sleep(Duration::from_millis(pause)).await;
        let server = self.server.clone();
        let mut inner = server.lock();
        self.check(&inner)?;
        let Some((end, next)) = server.end_of(&inner, timeline) else {
            return Err(refused(SourceErrorKind::NotInHistory, "requested timeline is not in this server's history"));
        };
        if inner.held_until > Instant::now() || inner.holder.is_some_and(|holder| holder > inner.cut) {
            server.count("server: slot busy");
            return Err(refused(SourceErrorKind::SlotBusy, "replication slot is active"));
        }
        if let Some(next) = next {
            if start > end {
                return Err(refused(SourceErrorKind::NotInHistory, "requested starting point is not in the history"));
            }
            if start == end {
                return Ok(Started::TimelineEnded(TimelineEnd { next, switch: end }));
            }
        }
        inner.holder = Some(self.number);
        server.shared.ledger.began(timeline, start);
        let (changed, now) = (server.shared.changed.subscribe(), Instant::now());
        let is_ahead = start > end;
        drop(inner);
        Ok(Started::Streaming(Box::new(SimFeed {
            server,
            number: self.number,
            timeline,
            sent: start,
            changed,
            ready_at: now,
            keepalive_at: now + Duration::from_secs(5),
            owes_keepalive: false,
            flushed: Lsn::INVALID,
            is_broken: is_ahead,
        })))
    }
}

#[derive(Debug)]
struct SimFeed {
    server: Server,
    number: u64,
    timeline: TimelineId,
    sent: Lsn,
    changed: watch::Receiver<u64>,
    /// Nothing comes before: the network takes its time.
    ready_at: Instant,
    keepalive_at: Instant,
    owes_keepalive: bool,
    flushed: Lsn,
    is_broken: bool,
}

impl Drop for SimFeed {
    fn drop(&mut self) {
        let mut inner = self.server.lock();
        if inner.holder == Some(self.number) {
            inner.holder = None;
            // The server may notice late that its client has gone.
            if inner.chance(15) {
                inner.held_until = Instant::now() + Duration::from_secs(inner.random.u64(1..15));
            }
        }
    }
}

impl SimFeed {
    fn message(&mut self) -> Result<Option<FeedMessage>, SourceError> {
        let server = self.server.clone();
        let mut inner = server.lock();
        if self.is_broken || inner.cut >= self.number {
            return Err(SourceError::lost("the connection is cut"));
        }
        let Some((end, next)) = server.end_of(&inner, self.timeline) else {
            return Err(SourceError::lost("the server took another way"));
        };
        let server_micros = server.shared.clock.now_postgres_micros();
        if self.sent < inner.removed_before {
            return Err(refused(SourceErrorKind::WalRemoved, "requested WAL segment has already been removed"));
        }
        if self.owes_keepalive {
            self.owes_keepalive = false;
            return Ok(Some(FeedMessage::Keepalive { server_end: end, server_micros, reply_requested: false }));
        }
        if self.sent < end {
            if inner.rare(10) {
                self.is_broken = true;
                server.count("stream: broken off");
                return Err(SourceError::lost("connection reset by peer"));
            }
            let most = match inner.random.u32(0..4) {
                _ if inner.dawdles => 1_000,
                0 => 40,
                1 => 8_192,
                _ => 3 * SEGMENT_BYTES / 2,
            };
            let bytes = inner.random.u64(1..=most.min(end - self.sent));
            let mut start = self.sent;
            let mut stop = start + bytes;
            if inner.rare(4) && start.0 > inner.removed_before.0 + 100 {
                start = Lsn(start.0 - inner.random.u64(1..100));
                server.count("stream: sent again");
            } else if inner.rare(4) && bytes > 100 {
                start = start + inner.random.u64(1..100);
                server.count("stream: left out");
            } else {
                self.sent = stop;
            }
            stop = stop.max(start + 1);
            if inner.dawdles {
                self.ready_at = Instant::now() + Duration::from_secs(1);
            } else if inner.random.u32(0..3) == 0 {
                self.ready_at = Instant::now() + Duration::from_millis(inner.random.u64(1..200));
            }
            drop(inner);
            let bytes = Bytes::from(server.shared.wal.bytes(self.timeline, start, stop));
            return Ok(Some(FeedMessage::Data { start, server_end: end, server_micros, bytes }));
        }
        if next.is_some() {
            return Ok(Some(FeedMessage::EndOfTimeline));
        }
        if let Some(since) = inner.shutting_down {
            if self.flushed >= end || since.elapsed() > SHUTDOWN_MAX {
                inner.go_down();
                return Ok(Some(FeedMessage::ServerShutdown));
            }
            // It asks and asks.
            self.ready_at = Instant::now() + Duration::from_millis(10);
            return Ok(Some(FeedMessage::Keepalive { server_end: end, server_micros, reply_requested: true }));
        }
        if self.keepalive_at <= Instant::now() {
            self.keepalive_at = Instant::now() + Duration::from_millis(inner.random.u64(1_000..20_000));
            let reply_requested = inner.random.bool();
            server.count(if reply_requested { "stream: reply requested" } else { "stream: keepalive" });
            return Ok(Some(FeedMessage::Keepalive { server_end: end, server_micros, reply_requested }));
        }
        Ok(None)
    }
}

#[async_trait]
impl Feed for SimFeed {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        loop {
            sleep_until(self.ready_at).await;
            self.changed.mark_unchanged();
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            tokio::select! {
                biased;
                _ = self.changed.changed() => {}
                () = sleep_until(self.keepalive_at) => {}
            }
        }
    }

    async fn send_status(&mut self, _: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        let mut inner = self.server.lock();
        let is_lost = inner.rare(5);
        if is_lost && inner.random.bool() {
            self.is_broken = true;
            self.server.count("stream: status lost");
            return Err(SourceError::lost("broken pipe"));
        }
        // What a cut connection was told, nobody heard.
        if inner.cut < self.number && !self.is_broken {
            let incarnation = inner.incarnation;
            if flushed.is_valid() {
                inner.slot = inner.slot.map(|_| flushed);
                self.flushed = flushed;
            }
            self.owes_keepalive |= reply_requested;
            drop(inner);
            self.server.shared.ledger.acknowledged(incarnation, self.timeline, flushed);
        } else {
            drop(inner);
        }
        if is_lost {
            self.is_broken = true;
            self.server.count("stream: broken off after a status");
            return Err(SourceError::lost("broken pipe"));
        }
        if reply_requested {
            self.server.wake();
        }
        Ok(())
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        Ok(())
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        let mut inner = self.server.lock();
        if inner.chance(10) {
            self.server.count("stream: broken off at a timeline's end");
            drop(inner);
            return Err(SourceError::lost("connection reset by peer"));
        }
        match self.server.end_of(&inner, self.timeline) {
            Some((switch, Some(next))) => Ok(TimelineEnd { next, switch }),
            _ => Err(SourceError::lost("the server took another way")),
        }
    }
}
