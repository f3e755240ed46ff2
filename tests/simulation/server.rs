//! A model of a PostgreSQL server: WAL, a slot, timelines, and every way to come to grief. `session.rs` is what it says
//! to whom it lets in.

use crate::counts::Counts;
use crate::ledger::{Kept, Ledger};
use crate::wal::{BranchId, Wal};
use seawall::runtime::Clock;
use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

pub const SYSTEM_IDENTIFIER: u64 = 7_300_000_000_000_000_001;

/// How long an archiver may take to understand whom it has met: a store that fails is asked again and again, and one that
/// stands still does so for minutes.
const MEMORY: Duration = Duration::from_secs(600);

/// How long a server that shuts down waits for its archiver before somebody kills it.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Server {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) clock: Clock,
}

/// The slot, as far as versions differ in what a lost one does (protocol, 2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Absent,
    /// Keeps WAL from here on.
    At(Lsn),
    /// Keeps nothing. 13 to 15 revive it with the first acknowledgement, 18 refuses it.
    Lost,
    /// 16 and 17: shows a position and keeps nothing.
    Zombie(Lsn),
}

/// A server that is not the one that it says it is, and the true one that comes back when somebody has noticed.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    heals_to: (BranchId, Lsn, Slot),
    /// The bytes that nobody may store, if that is certain.
    branch: Option<BranchId>,
}

#[derive(Debug)]
pub struct Inner {
    pub(crate) random: fastrand::Rng,
    pub(crate) is_faulty: bool,
    /// The major version.
    pub(crate) version: u32,
    /// 13 and 14 tell where a slot is by SQL alone.
    pub(crate) allows_sql: bool,
    pub(crate) is_synchronous: bool,
    /// A thousand bytes a second.
    pub(crate) dawdles: bool,
    /// A defect of the model: whoever comes may stream through the slot and move it.
    pub(crate) shares_slot: bool,
    pub(crate) branch: BranchId,
    pub(crate) flush: Lsn,
    /// WAL before this is gone.
    pub(crate) removed_before: Lsn,
    pub(crate) slot: Slot,
    /// The slot as it is on disk.
    saved_slot: Slot,
    /// The connection that holds the slot.
    pub(crate) holder: Option<u64>,
    pub(crate) held_until: Instant,
    pub(crate) connections: u64,
    /// Raised by a failover: another machine answers.
    pub(crate) incarnation: u32,
    /// Connections up to this one are cut.
    pub(crate) cut: u64,
    pub(crate) down_until: Instant,
    pub(crate) shutting_down: Option<Instant>,
    pub(crate) rush: (Instant, u32),
    /// How many archivers there are.
    pub(crate) clients: u32,
    stranger: Option<Stranger>,
    changed_at: Option<Instant>,
    /// Its clock is wrong by so much.
    pub(crate) clock_ahead_micros: i64,
}

impl Server {
    pub fn new(ledger: Arc<Ledger>, counts: Arc<Counts>, clock: Clock, seed: u64) -> Server {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5E17_E000);
        let wal = ledger.wal.clone();
        let start = Lsn(3 * wal.size.bytes());
        let branch = wal.branches()[0];
        let inner = Inner {
            is_faulty: false,
            version: random.u32(13..19),
            allows_sql: random.bool(),
            is_synchronous: random.u32(0..4) == 0,
            dawdles: false,
            shares_slot: false,
            branch,
            flush: wal.border_after(branch, start + random.u64(1..crate::wal::SEGMENT_BYTES)),
            removed_before: start,
            slot: Slot::Absent,
            saved_slot: Slot::Absent,
            holder: None,
            held_until: Instant::now(),
            connections: 0,
            incarnation: 0,
            cut: 0,
            down_until: Instant::now(),
            shutting_down: None,
            rush: (Instant::now(), 0),
            clients: 0,
            stranger: None,
            changed_at: None,
            clock_ahead_micros: 0,
            random,
        };
        let shared = Shared { inner: Mutex::new(inner), changed: watch::channel(0).0, wal, ledger, counts, clock };
        Server { shared: Arc::new(shared) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap()
    }

    pub(crate) fn wake(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.shared.counts.add(what);
    }

    pub(crate) fn size(&self) -> SegmentSize {
        self.shared.wal.size
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

    /// A major version, and whether SQL is allowed.
    /// Somebody streams through the slot, or has gone a moment ago.
    pub fn is_slot_held(&self) -> bool {
        self.lock().is_slot_held()
    }

    /// Its clock shows so much more than it is.
    pub fn set_clock_ahead(&self, micros: i64) {
        self.lock().clock_ahead_micros = micros;
    }

    pub fn set_version(&self, version: u32, allows_sql: bool) {
        let mut inner = self.lock();
        (inner.version, inner.allows_sql) = (version, allows_sql);
    }

    pub fn share_slot(&self) {
        self.lock().shares_slot = true;
    }

    pub fn set_clients(&self, clients: u32) {
        self.lock().clients = clients;
    }

    pub fn branch(&self) -> BranchId {
        self.lock().branch
    }

    pub fn timeline(&self) -> TimelineId {
        self.shared.wal.timeline(self.branch())
    }

    pub fn flush(&self) -> Lsn {
        self.lock().flush
    }

    pub fn removed_before(&self) -> Lsn {
        self.lock().removed_before
    }

    pub fn incarnation(&self) -> u32 {
        self.lock().incarnation
    }

    pub fn is_stranger(&self) -> bool {
        self.lock().stranger.is_some()
    }

    /// A stranger is here, or was, or another timeline began: an archiver that met the server before may have compared
    /// that with what is stored since, and have come to an end only now.
    pub fn was_another(&self) -> bool {
        let inner = self.lock();
        inner.stranger.is_some() || inner.changed_at.is_some_and(|at| at.elapsed() < MEMORY)
    }

    pub fn is_up(&self) -> bool {
        let inner = self.lock();
        inner.down_until <= Instant::now() && inner.shutting_down.is_none()
    }

    /// The server writes; nothing while it is down.
    pub fn write(&self, bytes: u64) {
        if self.is_up() {
            let mut inner = self.lock();
            inner.flush = inner.flush + bytes;
            drop(inner);
            self.wake();
        }
    }

    /// From the first byte of a segment on it writes one record over so many pages.
    pub fn write_long_record(&self, pages: u64) {
        self.shared.wal.begin_long_record(self.branch(), self.flush(), pages);
        self.write(pages * crate::wal::PAGE_BYTES);
    }

    /// To the end of the record that it is in.
    pub fn complete_record(&self) {
        let flush = self.flush();
        self.write(self.shared.wal.border_after(self.branch(), flush) - flush);
    }

    /// To the end of the segment, as `pg_switch_wal` does.
    pub fn switch_segment(&self) {
        let flush = self.flush();
        self.write(self.size().segment_start(flush) + self.size().bytes() - flush);
    }

    /// Saves where the slot is, and removes what no slot needs.
    pub fn checkpoint(&self) {
        let mut inner = self.lock();
        inner.saved_slot = inner.slot;
        // One that was rolled back keeps what it has: behind WAL that is gone as well, nothing could be compared.
        if inner.stranger.is_some() {
            return;
        }
        let needed = match inner.slot {
            Slot::At(lsn) => lsn.min(inner.flush),
            Slot::Absent => inner.removed_before,
            Slot::Lost | Slot::Zombie(_) => inner.flush,
        };
        let needed = self.size().segment_start(needed);
        if needed > inner.removed_before {
            inner.removed_before = needed;
            drop(inner);
            self.count("server: WAL removed");
            self.tell_ledger();
        }
    }

    /// `max_slot_wal_keep_size`: the slot is lost, and with it WAL that nobody has archived.
    pub fn lose_slot(&self) {
        let mut inner = self.lock();
        if inner.stranger.is_some() || inner.slot == Slot::Absent {
            return;
        }
        self.invalidate(&mut inner);
        inner.removed_before = self.size().segment_start(inner.flush);
        drop(inner);
        self.count("server: slot lost");
        self.tell_ledger();
        self.wake();
    }

    /// The walsender that holds the slot goes with it.
    pub(crate) fn invalidate(&self, inner: &mut Inner) {
        (inner.slot, inner.saved_slot) = (Slot::Lost, Slot::Lost);
        inner.cut = inner.connections;
    }

    /// Somebody drops the slot; as Patroni does, it may be made again ahead of where it was.
    pub fn drop_slot(&self, makes_again: bool) {
        let mut inner = self.lock();
        if inner.stranger.is_some() {
            return;
        }
        inner.cut = inner.connections;
        inner.holder = None;
        inner.slot = if makes_again { Slot::At(self.redo(&mut inner)) } else { Slot::Absent };
        inner.saved_slot = inner.slot;
        drop(inner);
        self.count(if makes_again { "server: slot made again ahead" } else { "server: slot dropped" });
        self.tell_ledger();
        self.wake();
    }

    /// Where a slot that is made now begins.
    pub(crate) fn redo(&self, inner: &mut Inner) -> Lsn {
        let back = inner.random.u64(0..crate::wal::SEGMENT_BYTES / 2);
        Lsn(inner.flush.0.saturating_sub(back)).max(inner.removed_before)
    }

    /// Cuts every connection.
    pub fn disconnect(&self) {
        let mut inner = self.lock();
        inner.cut = inner.connections;
        drop(inner);
        self.wake();
    }

    /// The archiver's host went silent: the server has waited for `wal_sender_timeout` and lets its walsender go.
    pub fn give_up_on_client(&self) {
        let mut inner = self.lock();
        inner.cut = inner.connections;
        inner.holder = None;
        drop(inner);
        self.wake();
    }

    /// Ends this timeline at its last whole record and begins the next one, on the same machine and with the same slot.
    /// What was sent of a record that is not whole is sent no more.
    pub fn promote(&self) {
        let mut inner = self.lock();
        if inner.stranger.is_some() {
            return;
        }
        let begun = self.shared.wal.get(inner.branch).begin;
        let whole = self.shared.wal.border_before(inner.branch, inner.flush).max(begun);
        self.count(if whole < inner.flush { "server: promoted before what was sent" } else { "server: promoted" });
        self.begin_timeline(&mut inner, whole);
        drop(inner);
        self.tell_ledger();
        self.wake();
    }

    /// A standby that had less takes over: another machine, without the slot or with an older one.
    pub fn fail_over(&self, lost_bytes: u64) {
        let mut inner = self.lock();
        if inner.stranger.is_some() {
            return;
        }
        let switch = self.earlier_border(&inner, lost_bytes);
        self.become_another(&mut inner);
        let has_slot = inner.random.bool();
        inner.slot = match inner.slot {
            Slot::At(slot) if has_slot => Slot::At(slot.min(switch)),
            _ => Slot::Absent,
        };
        inner.saved_slot = inner.slot;
        self.begin_timeline(&mut inner, switch);
        drop(inner);
        self.count("server: failed over");
        self.tell_ledger();
        self.wake();
    }

    fn earlier_border(&self, inner: &Inner, lost_bytes: u64) -> Lsn {
        let wal = &self.shared.wal;
        let floor = inner.removed_before.max(wal.get(inner.branch).begin) + 1;
        let switch = wal.border_before(inner.branch, Lsn(inner.flush.0.saturating_sub(lost_bytes)));
        switch.max(wal.border_after(inner.branch, floor)).min(wal.border_before(inner.branch, inner.flush))
    }

    fn become_another(&self, inner: &mut Inner) {
        inner.incarnation += 1;
        inner.changed_at = Some(Instant::now());
        inner.cut = inner.connections;
        inner.holder = None;
        inner.shutting_down = None;
    }

    fn begin_timeline(&self, inner: &mut Inner, switch: Lsn) {
        inner.changed_at = Some(Instant::now());
        let timeline = TimelineId(self.shared.wal.timeline(inner.branch).0 + 1);
        inner.branch = self.shared.wal.branch(timeline, Some(inner.branch), switch);
        // The first thing that a new primary does: its end-of-recovery record.
        inner.flush = self.shared.wal.border_after(inner.branch, switch + 1);
    }

    /// Comes back in an older state, from before what was acknowledged, and goes its own way from there. Not if nothing
    /// could tell the difference.
    pub fn roll_back(&self, lost_bytes: u64) {
        let mut inner = self.lock();
        let to = self.earlier_border(&inner, lost_bytes);
        let told = self.shared.ledger.highest_told(inner.branch);
        let is_plain = inner.stranger.is_none() && inner.shutting_down.is_none();
        if !is_plain || to < self.shared.wal.get(inner.branch).begin || told.is_none_or(|told| told <= to + 8192) {
            return;
        }
        let heals_to = (inner.branch, inner.flush, inner.slot);
        self.become_another(&mut inner);
        let timeline = self.shared.wal.timeline(inner.branch);
        inner.branch = self.shared.wal.branch(timeline, Some(inner.branch), to);
        inner.flush = to;
        if let Slot::At(lsn) = inner.slot {
            inner.slot = Slot::At(lsn.min(to));
        }
        inner.stranger = Some(Stranger { heals_to, branch: Some(inner.branch) });
        drop(inner);
        self.count("server: rolled back");
        self.tell_ledger();
        self.wake();
    }

    /// The server of the timeline before, which nobody had stopped, is reached instead of the promoted one.
    pub fn old_primary_returns(&self) {
        let mut inner = self.lock();
        let timeline = self.shared.wal.timeline(inner.branch);
        let Some(parent) = self.shared.wal.get(inner.branch).parent else { return };
        if inner.stranger.is_some() || inner.shutting_down.is_some() || !self.shared.ledger.has_history(timeline) {
            return;
        }
        let heals_to = (inner.branch, inner.flush, inner.slot);
        let begin = self.shared.wal.get(inner.branch).begin;
        self.become_another(&mut inner);
        inner.branch = parent;
        inner.flush = inner.flush.max(begin + 50_000);
        inner.stranger = Some(Stranger { heals_to, branch: None });
        drop(inner);
        self.count("server: old primary came back");
        self.tell_ledger();
        self.wake();
    }

    /// A second standby was promoted to the same timeline from another point, and is reached instead of the first.
    pub fn promoted_apart(&self) {
        let mut inner = self.lock();
        let of = self.shared.wal.get(inner.branch);
        let (Some(parent), false) = (of.parent, inner.stranger.is_some() || inner.shutting_down.is_some()) else {
            return;
        };
        let switch = self.shared.wal.border_before(parent, Lsn(of.begin.0 - 1));
        let is_known = self.shared.ledger.has_history(of.timeline);
        if !is_known || self.shared.wal.timeline(parent) == of.timeline || switch <= self.shared.wal.get(parent).begin {
            return;
        }
        let heals_to = (inner.branch, inner.flush, inner.slot);
        self.become_another(&mut inner);
        inner.branch = self.shared.wal.branch(of.timeline, Some(parent), switch);
        inner.flush = switch + 100_000;
        inner.stranger = Some(Stranger { heals_to, branch: Some(inner.branch) });
        drop(inner);
        self.count("server: two promoted apart");
        self.tell_ledger();
        self.wake();
    }

    /// Somebody has noticed: the true server is back.
    pub fn heal(&self) {
        let mut inner = self.lock();
        let Some(stranger) = inner.stranger.take() else { return };
        self.become_another(&mut inner);
        (inner.branch, inner.flush, inner.slot) = stranger.heals_to;
        inner.saved_slot = inner.slot;
        drop(inner);
        self.tell_ledger();
        self.wake();
    }

    /// An orderly shutdown, which waits until everything is acknowledged; then some seconds of absence.
    pub fn shut_down(&self) {
        self.lock().shutting_down = Some(Instant::now());
        self.count("server: shut down");
        self.wake();
    }

    /// `pg_ctl restart -m immediate`, or a crash: the slot is where the last checkpoint saved it.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.go_down(false);
        let removed_before = inner.removed_before;
        inner.slot = match inner.saved_slot {
            Slot::At(lsn) => Slot::At(lsn.max(removed_before)),
            Slot::Absent if inner.slot != Slot::Absent => inner.slot,
            slot => slot,
        };
        drop(inner);
        self.count("server: crashed");
        self.tell_ledger();
        self.wake();
    }

    /// For the time that nobody looks: a shutdown that nobody waits for ends.
    pub fn settle(&self) {
        let mut inner = self.lock();
        let Some(since) = inner.shutting_down else { return };
        if inner.holder.is_none() || since.elapsed() > SHUTDOWN_MAX {
            inner.go_down(true);
            drop(inner);
            self.wake();
        }
    }

    /// Where the WAL begins, and the segment from which the slot keeps it; the end of all positions where it keeps nothing
    /// or does not say.
    pub fn tell_ledger(&self) {
        let inner = self.lock();
        let kept_from = match inner.slot {
            Slot::At(lsn) if inner.tells_slot() => self.size().segment_start(lsn),
            _ => Lsn(u64::MAX),
        };
        let stranger = inner.stranger.and_then(|stranger| stranger.branch);
        self.shared.ledger.server_keeps(Kept { removed_before: inner.removed_before, kept_from, stranger });
    }

    /// The branch that this server has of a timeline, and where it ends where another one follows.
    pub(crate) fn end_of(&self, inner: &Inner, timeline: TimelineId) -> Option<(BranchId, Lsn, Option<TimelineId>)> {
        let lineage = self.shared.wal.lineage(inner.branch);
        let index = lineage.iter().position(|(_, branch)| branch.timeline == timeline)?;
        let branch = lineage[index].0;
        match index.checked_sub(1).map(|index| lineage[index].1) {
            None => Some((branch, inner.flush, None)),
            Some(child) => Some((branch, child.begin, Some(child.timeline))),
        }
    }
}

impl Inner {
    pub(crate) fn is_slot_held(&self) -> bool {
        self.held_until > Instant::now() || self.holder.is_some_and(|holder| holder > self.cut)
    }

    pub(crate) fn go_down(&mut self, orderly: bool) {
        if orderly {
            self.saved_slot = self.slot;
        }
        self.shutting_down = None;
        self.holder = None;
        self.cut = self.connections;
        self.down_until = Instant::now() + Duration::from_secs(self.random.u64(1..20));
    }

    pub(crate) fn tells_slot(&self) -> bool {
        self.version >= 15 || self.allows_sql
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.is_faulty && self.random.u32(0..1000) < 10 * percent
    }

    pub(crate) fn rare(&mut self, per_mille: u32) -> bool {
        self.is_faulty && self.random.u32(0..1000) < per_mille
    }
}
