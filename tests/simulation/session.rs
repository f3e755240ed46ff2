//! What the model server says to whom it lets in, and how that breaks off.

use crate::invariant::Invariant;
use crate::server::{Inner, SYSTEM_IDENTIFIER, Server, Slot};
use crate::wal::{BranchId, SEGMENT_BYTES};
use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    CommitWaits, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, Synchronous, TimelineEnd,
};
use seawall::error::{Error, Kind};
use seawall::wal::{Lsn, TimelineId};
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// More connections of one archiver than this within a minute are a loop without a pause: a hot spare asks once a second.
const CONNECTIONS_PER_MINUTE_MAX: u32 = 90;

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
        if count > CONNECTIONS_PER_MINUTE_MAX * inner.clients.max(1) {
            let what = format!("{count} connections in a minute: a loop without a pause");
            self.shared.ledger.violate(Invariant::GoesOn, what);
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
            timeline: self.shared.wal.timeline(inner.branch),
            flush_lsn: inner.flush,
            segment_size: self.size(),
            version: inner.version * 10_000,
        };
        let branch = inner.branch;
        Ok(Box::new(SimSession { server: self.clone(), identity, branch, number: inner.connections }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        Ok(Box::new(SimObserver(self.clone())))
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        let mut inner = self.lock();
        if inner.chance(2) {
            return Err(SourceError::lost("peeking"));
        }
        let Some((branch, end, _)) = self.end_of(&inner, timeline) else {
            return Err(refused(SourceErrorKind::NotInHistory, "requested timeline is not in this server's history"));
        };
        let is_there = lsn >= inner.removed_before;
        let end = end.min(lsn + 100).max(lsn);
        drop(inner);
        Ok(is_there.then(|| Bytes::from(self.shared.wal.bytes(branch, lsn, end))))
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
        let synchronous = if self.0.lock().is_synchronous { Synchronous::Named } else { Synchronous::No };
        Ok(CommitWaits { synchronous, ..CommitWaits::default() })
    }
}

#[derive(Debug)]
struct SimSession {
    server: Server,
    identity: ServerIdentity,
    branch: BranchId,
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
        let wal = &self.server.shared.wal;
        let lineage = wal.lineage(self.branch);
        let mut lines = Vec::new();
        for (child, parent) in lineage.iter().zip(&lineage[1..]) {
            if child.1.timeline <= timeline && parent.1.timeline != child.1.timeline {
                lines.push(format!("{}\t{}\tno recovery target specified\n", parent.1.timeline, child.1.begin));
            }
        }
        let mut text = String::new();
        lines.iter().rev().for_each(|line| write!(text, "{line}").unwrap());
        Ok(Bytes::from(text))
    }

    /// As the real source takes it: one that is seen to keep nothing is made anew; where it cannot be seen (13 and 14
    /// without SQL), it is there.
    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        let mut inner = self.server.lock();
        self.check(&inner)?;
        let known = inner.tells_slot();
        let (restart, created) = match inner.slot {
            Slot::At(lsn) | Slot::Zombie(lsn) => (lsn, false),
            Slot::Lost if !known => (Lsn::INVALID, false),
            Slot::Lost | Slot::Absent => {
                if inner.slot == Slot::Lost {
                    self.server.count("slot: lost one seen and made anew");
                }
                let redo = self.server.redo(&mut inner);
                inner.slot = Slot::At(redo);
                (redo, true)
            }
        };
        drop(inner);
        self.server.tell_ledger();
        Ok(SlotPosition { restart_lsn: Some(restart).filter(|_| known), created })
    }

    async fn renew_slot(&mut self) -> Result<SlotPosition, SourceError> {
        {
            let mut inner = self.server.lock();
            self.check(&inner)?;
            if !matches!(inner.slot, Slot::At(lsn) if lsn >= inner.removed_before) {
                self.server.count("slot: renewed");
                inner.slot = Slot::At(self.server.redo(&mut inner));
            }
        }
        self.take_slot().await
    }

    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        let mut inner = self.server.lock();
        self.check(&inner)?;
        inner.slot = Slot::Absent;
        Ok(())
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        let inner = self.server.lock();
        self.check(&inner)?;
        let timeline = self.server.shared.wal.timeline(inner.branch);
        Ok(Standing { timeline, flush_lsn: inner.flush, is_standby: false })
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        let pause = self.server.lock().random.u64(1..20);
        sleep(Duration::from_millis(pause)).await;
        let server = self.server.clone();
        let mut inner = server.lock();
        self.check(&inner)?;
        let Some((branch, end, next)) = server.end_of(&inner, timeline) else {
            return Err(refused(SourceErrorKind::NotInHistory, "requested timeline is not in this server's history"));
        };
        let is_held = inner.is_slot_held();
        if is_held && !inner.shares_slot {
            server.count("server: slot busy");
            return Err(refused(SourceErrorKind::SlotBusy, "replication slot is active"));
        }
        if matches!(inner.slot, Slot::At(_)) && inner.rare(10) {
            // In the very moment: whoever was about to stream has seen it alive.
            inner.slot = Slot::Lost;
            server.count("slot: lost between the look and the start");
        }
        match (inner.slot, inner.version) {
            (Slot::Absent, _) => {
                return Err(refused(SourceErrorKind::Lost, "the replication slot does not exist"));
            }
            (Slot::Lost, 18..) => {
                server.count("slot: lost one refused (18)");
                return Err(refused(SourceErrorKind::Lost, "can no longer access replication slot"));
            }
            _ => {}
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
        server.shared.ledger.began(branch, start);
        let (changed, now) = (server.shared.changed.subscribe(), Instant::now());
        let is_ahead = start > end;
        drop(inner);
        Ok(Started::Streaming(Box::new(SimFeed {
            server,
            number: self.number,
            timeline,
            branch,
            sent: start,
            changed,
            ready_at: now,
            keepalive_at: now + Duration::from_secs(5),
            owes_keepalive: false,
            flushed: Lsn::INVALID,
            breaks_at: None,
            is_broken: is_ahead,
        })))
    }
}

#[derive(Debug)]
struct SimFeed {
    server: Server,
    number: u64,
    timeline: TimelineId,
    branch: BranchId,
    sent: Lsn,
    changed: watch::Receiver<u64>,
    /// Nothing comes before: the network takes its time.
    ready_at: Instant,
    keepalive_at: Instant,
    owes_keepalive: bool,
    flushed: Lsn,
    /// The rest of a message that never comes: nothing more is said until the connection is found dead.
    breaks_at: Option<Instant>,
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
        if self.breaks_at.is_some_and(|at| at <= Instant::now()) {
            self.is_broken = true;
        }
        if self.is_broken || inner.cut >= self.number {
            return Err(SourceError::lost("the connection is cut"));
        }
        if let Some(at) = self.breaks_at {
            self.ready_at = at;
            return Ok(None);
        }
        let Some((_, end, next)) = server.end_of(&inner, self.timeline) else {
            return Err(SourceError::lost("the server took another way"));
        };
        let server_micros = server.shared.clock.now_postgres_micros() + inner.clock_ahead_micros;
        if self.sent < inner.removed_before {
            return Err(refused(SourceErrorKind::WalRemoved, "requested WAL segment has already been removed"));
        }
        if self.owes_keepalive {
            self.owes_keepalive = false;
            return Ok(Some(FeedMessage::Keepalive { server_end: end, server_micros, reply_requested: false }));
        }
        if self.sent < end {
            if inner.rare(8) {
                self.is_broken = true;
                server.count("stream: broken off");
                return Err(SourceError::lost("connection reset by peer"));
            }
            if inner.rare(4) {
                self.breaks_at = Some(Instant::now() + Duration::from_millis(inner.random.u64(1..60_000)));
                server.count("stream: broken off half way through a message");
                return Ok(None);
            }
            let segment = server.size().bytes();
            let most = match inner.random.u32(0..4) {
                _ if inner.dawdles => 1_000,
                0 => 40,
                1 => 8_192,
                _ if segment > SEGMENT_BYTES => 4 << 20,
                _ => 3 * SEGMENT_BYTES / 2,
            };
            let least = if segment > SEGMENT_BYTES { most / 2 } else { 1 };
            let bytes = inner.random.u64(least.min(end - self.sent)..=most.min(end - self.sent));
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
            let bytes = Bytes::from(server.shared.wal.bytes(self.branch, start, stop));
            return Ok(Some(FeedMessage::Data { start, server_end: end, server_micros, bytes }));
        }
        if next.is_some() {
            return Ok(Some(FeedMessage::EndOfTimeline));
        }
        if let Some(since) = inner.shutting_down {
            if self.flushed >= end || since.elapsed() > Duration::from_secs(60) {
                inner.go_down(true);
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

    /// What the slot becomes by an acknowledgement: PostgreSQL takes the position as it comes.
    fn move_slot(&self, inner: &mut Inner, flushed: Lsn) {
        inner.slot = match (inner.slot, inner.version) {
            (Slot::Lost, 13..=15) => {
                self.server.count("slot: lost one silently revived (13 to 15)");
                Slot::At(flushed)
            }
            (Slot::Lost | Slot::Zombie(_), _) => {
                self.server.count("slot: zombie (16 and 17)");
                Slot::Zombie(flushed)
            }
            (Slot::At(_), _) => Slot::At(flushed),
            (Slot::Absent, _) => Slot::Absent,
        };
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
                () = sleep_until(self.breaks_at.unwrap_or(self.keepalive_at)) => {}
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
        if inner.cut < self.number && !self.is_broken && self.breaks_at.is_none() {
            let incarnation = inner.incarnation;
            if flushed.is_valid() {
                self.move_slot(&mut inner, flushed);
                self.flushed = flushed;
            }
            self.owes_keepalive |= reply_requested;
            drop(inner);
            self.server.tell_ledger();
            self.server.shared.ledger.acknowledged(incarnation, self.number, self.branch, flushed);
        } else {
            if flushed.is_valid() && !self.is_broken {
                self.server.count("stream: status of a dead connection");
            }
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
            Some((_, switch, Some(next))) => Ok(TimelineEnd { next, switch }),
            _ => Err(SourceError::lost("the server took another way")),
        }
    }
}
