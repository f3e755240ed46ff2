//! What is seen of a cluster of `seawall run` from outside, at any time: before it has begun, while it archives, and after it has
//! ended. Looking waits for nothing.

use super::taking::Taker;
use crate::archive::{ArchiveState, Phase, SourceErrorKind, Synchronous};
use crate::error::{Error, Result};
use crate::history::index::Indexer;
use crate::http::{Health, Served};
use crate::metrics::{self, Metrics, WalObject};
use crate::notify::Notifier;
use crate::postgres::WalStatus;
use crate::runtime::Clock;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// One cluster, from outside.
pub(super) struct View {
    pub(super) cluster: String,
    notifier: Notifier,
    clock: Clock,
    now: Mutex<Now>,
}

struct Now {
    metrics: Metrics,
    /// Its archiver, once its store and its server have answered; the last one, if it has ended.
    running: Option<Running>,
    /// It was at work once, in this attempt or in one before.
    has_run: bool,
    /// Why it is not archived, if by an error.
    trouble: Option<NotArchived>,
}

/// Why, in words.
enum NotArchived {
    /// It begins again in a while.
    Pausing(String),
    /// For good.
    Ended(String),
}

/// An archiver that is at work.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) state: watch::Receiver<ArchiveState>,
    pub(super) indexer: Indexer,
    pub(super) taker: Arc<Taker>,
}

/// A look at one cluster.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) health: Health,
    /// It has begun, or has met an error before it could.
    pub(super) has_started: bool,
    /// It has begun at least once.
    pub(super) has_run: bool,
    /// While it streams: how many turns it has made.
    pub(super) turns: Option<u64>,
}

impl View {
    /// Of a cluster that has not begun.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub(super) fn new(cluster: &str, notifier: Notifier, clock: Clock) -> Result<View> {
        let metrics = Metrics::new(cluster)?;
        show_nothing_known(&metrics);
        let now = Now { metrics, running: None, has_run: false, trouble: None };
        Ok(View { cluster: cluster.to_owned(), notifier, clock, now: Mutex::new(now) })
    }

    /// It begins, or begins again, and counts from nothing, as a process does that was started again: the new archiver's totals would
    /// say nothing until they reached those of the one before.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub(super) fn begins(&self) -> Result<Metrics> {
        let metrics = Metrics::new(&self.cluster)?;
        show_nothing_known(&metrics);
        let mut now = self.now();
        (now.metrics, now.running, now.trouble) = (metrics.clone(), None, None);
        Ok(metrics)
    }

    /// It is at work.
    pub(super) fn runs(&self, running: Running) {
        let mut now = self.now();
        (now.running, now.has_run) = (Some(running), true);
    }

    /// It was at work once.
    pub(super) fn has_run(&self) -> bool {
        self.now().has_run
    }

    /// It cannot be archived because of this, and begins again in a while.
    pub(super) fn pauses(&self, error: &Error) {
        self.now().trouble = Some(NotArchived::Pausing(error.to_string()));
    }

    /// It has ended for good, because of this.
    pub(super) fn ended(&self, error: &Error) {
        let mut now = self.now();
        now.metrics.set_stopped(error.kind());
        now.trouble = Some(NotArchived::Ended(error.to_string()));
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at work, or was until it ended.
    pub(super) fn running(&self) -> Option<Running> {
        self.now().running.clone()
    }

    /// How it is doing.
    pub(super) fn look(&self) -> Look {
        let now = self.now();
        let not_ready = |reason: String| Health { ready: false, reason };
        let (health, turns) = match (&now.trouble, &now.running) {
            (Some(NotArchived::Ended(why)), _) => (not_ready(format!("has ended: {why}")), None),
            (Some(NotArchived::Pausing(why)), _) => (not_ready(format!("not archived, beginning again: {why}")), None),
            (None, None) => (not_ready("starting".to_owned()), None),
            (None, Some(running)) => {
                let state = running.state.borrow();
                (health_of(&state), (state.phase == Phase::Streaming).then_some(state.counts.turns))
            }
        };
        Look { health, has_started: now.has_run || now.trouble.is_some(), has_run: now.has_run, turns }
    }

    /// Its metrics, as they are now.
    pub(super) fn metrics(&self) -> Metrics {
        let (metrics, running, is_archived) = {
            let now = self.now();
            (now.metrics.clone(), now.running.clone(), now.trouble.is_none())
        };
        if let Some(Running { state, indexer, .. }) = running {
            // A copy: whoever streams is not to wait for this.
            let state = state.borrow().clone();
            show(&metrics, &state, self.clock.now());
            if !is_archived {
                metrics.set_connected(false);
            }
            let (unreadable, unstored) = indexer.failures();
            metrics.count_index_failures(unreadable, unstored);
        }
        for (receiver, result, total) in self.notifier.sent() {
            metrics.count_notifications(receiver, result, total);
        }
        metrics
    }
}

/// How all of them are doing, in one line.
pub(super) fn summary(seen: &[(String, Look)]) -> Health {
    if let [(_, only)] = seen {
        return only.health.clone();
    }
    let ready = seen.iter().filter(|(_, look)| look.health.ready).count();
    let first = seen.iter().find(|(_, look)| !look.health.ready);
    let first = first.map(|(name, look)| format!("; {name}: {}", look.health.reason)).unwrap_or_default();
    Health { ready: ready == seen.len(), reason: format!("{ready} of {} clusters are ready{first}", seen.len()) }
}

/// All clusters of a process, for whoever asks by HTTP.
pub(super) struct Views(pub(super) Vec<Arc<View>>);

impl Views {
    /// What is seen of each.
    pub(super) fn looks(&self) -> Vec<(String, Look)> {
        self.0.iter().map(|view| (view.cluster.clone(), view.look())).collect()
    }

    fn of(&self, name: &str) -> Option<&Arc<View>> {
        self.0.iter().find(|view| view.cluster == name)
    }
}

impl Served for Views {
    fn metrics(&self) -> Result<String> {
        let all: Vec<Metrics> = self.0.iter().map(|view| view.metrics()).collect();
        metrics::render(&all)
    }

    fn health(&self, name: Option<&str>) -> Option<Health> {
        if let Some(name) = name {
            return Some(self.of(name)?.look().health);
        }
        let looks = self.looks();
        if let [(_, only)] = &looks[..] {
            return Some(only.health.clone());
        }
        let ready = looks.iter().filter(|(_, look)| look.health.ready).count();
        let lines: String = looks.iter().map(|(name, look)| format!("\n{name}: {}", look.health.reason)).collect();
        let reason = format!("{ready} of {} clusters are ready{lines}", looks.len());
        Some(Health { ready: ready == looks.len(), reason })
    }

    fn life(&self, name: &str) -> Option<Health> {
        Some(match &self.of(name)?.now().trouble {
            Some(NotArchived::Ended(why)) => Health { ready: false, reason: format!("has ended: {why}") },
            _ => Health { ready: true, reason: "alive".to_owned() },
        })
    }
}

/// Before anything is known of the server, a disaster may cost anything.
fn show_nothing_known(metrics: &Metrics) {
    metrics.set_rpo(f64::INFINITY, 0);
    metrics.set_connected(false);
    metrics.set_hot_spare(false);
}

/// Copies what the archiver shows into the metrics.
fn show(metrics: &Metrics, state: &ArchiveState, now: Timestamp) {
    let lost_seconds = state.rpo.seconds(Instant::now());
    metrics.set_rpo(lost_seconds, state.rpo.bytes());
    let lost = Duration::try_from_secs_f64(lost_seconds).ok();
    metrics.set_newest_restorable(lost.and_then(|lost| now.checked_sub(lost).ok()));
    metrics.set_server_certificate_end(state.certificate_end);
    metrics.set_server_clock_ahead(state.server_clock_ahead.filter(|_| state.phase == Phase::Streaming));
    metrics.set_connected(state.phase == Phase::Streaming);
    metrics.set_hot_spare(state.phase == Phase::HotSpare);
    let waits = state.commit_waits;
    let is_synchronous = waits.synchronous != Synchronous::No;
    metrics.set_synchronous(is_synchronous, waits.synchronous == Synchronous::Captured);
    metrics.set_remote_apply(is_synchronous && waits.remote_apply);
    if let Some(timeline) = state.timeline {
        metrics.set_timeline(timeline);
    }
    metrics.set_server_lsn(state.rpo.server_lsn());
    metrics.set_received_lsn(state.received);
    metrics.set_durable_lsn(state.durable);
    metrics.count_reconnects(state.counts.connections.saturating_sub(1));
    for (kind, total) in SourceErrorKind::ALL.into_iter().zip(state.counts.interruptions) {
        metrics.count_interruptions(kind.name(), total);
    }
    metrics.count_wal_received_bytes(state.counts.received_bytes);
    metrics.count_wal_retries(state.counts.store_failures);
    metrics.count_tails(state.counts.deleted, state.counts.undeleted);
    metrics.count_wal_objects(WalObject::Block, state.counts.blocks);
    metrics.count_wal_objects(WalObject::Tail, state.counts.tails);
    metrics.set_buffered_bytes(state.in_flight_bytes);
    let slot = state.slot.as_ref();
    let server = Some(state.rpo.server_lsn()).filter(|lsn| lsn.is_valid());
    metrics.set_slot(
        slot.and_then(|slot| slot.status).map(WalStatus::name),
        slot.and_then(|slot| slot.safe_wal_bytes),
        slot.and_then(|slot| slot.restart_lsn).zip(server).map(|(restart, server)| server - restart),
    );
    metrics.set_tails_live(usize::try_from(state.live_tails).unwrap_or(usize::MAX));
}

fn health_of(state: &ArchiveState) -> Health {
    let (ready, reason) = match state.phase {
        Phase::Streaming if !state.is_compared => {
            (false, "comparing what is stored with what the server has".to_owned())
        }
        Phase::Streaming => (true, format!("streaming, durable up to {}", state.durable)),
        Phase::HotSpare => (true, "hot spare: another archiver holds the slot".to_owned()),
        Phase::Stopping => (false, "stopping".to_owned()),
        Phase::Connecting => {
            let why = state.last_error.clone().map(|error| format!(": {error}")).unwrap_or_default();
            (false, format!("not streaming{why}"))
        }
    };
    Health { ready, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::notify::Form;

    #[test]
    fn what_begins_again_has_not_stopped_and_what_is_not_known_costs_everything() {
        let (queue, _events) = tokio::sync::mpsc::channel(1);
        let notifier = Notifier::to("shop", Form::Slack, queue, Clock::system());
        let view = Arc::new(View::new("shop", notifier, Clock::system()).unwrap());
        let views = Views(vec![view.clone()]);
        let shows = |line: &str| views.metrics().unwrap().lines().any(|it| it == line);
        // Before anything is told, so that the first that is lost is seen as one more
        let lost = "seawall_notifications_total{receiver=\"slack\",result=\"failed\",cluster=\"shop\"} 0";
        assert!(shows(lost), "{}", views.metrics().unwrap());
        let refused = Error::new(Kind::Postgres, "no pg_hba.conf entry");
        // Given a cluster that has not begun: nothing is safe yet
        assert!(shows("seawall_rpo_seconds{cluster=\"shop\"} inf"), "{}", views.metrics().unwrap());
        view.begins().unwrap().count_reconnects(3);
        // When it is refused, and begins again
        view.pauses(&refused);
        let stopped = "seawall_stopped{reason=\"other\",cluster=\"shop\"} 1";
        assert!(!shows(stopped) && views.life("shop").unwrap().ready, "it has not ended");
        let look = view.look();
        assert!(!look.health.ready && look.health.reason.contains("pg_hba"), "{}", look.health.reason);
        assert!(look.has_started && !look.has_run);
        // Then its totals are those of the new archiver, from the first one on
        view.begins().unwrap().count_reconnects(2);
        assert!(shows("seawall_reconnects_total{cluster=\"shop\"} 2"), "{}", views.metrics().unwrap());
        assert!(shows("seawall_rpo_seconds{cluster=\"shop\"} inf"));
        // And once it ends for good that is shown.
        view.ended(&refused);
        assert!(shows(stopped) && !views.life("shop").unwrap().ready);
    }
}
