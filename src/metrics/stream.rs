//! The stream: what would be lost, how far it is, who waits, and our slot.

use super::Metrics;
use super::registry::{Builder, count_to, flag, show, unix_seconds, whole};
use crate::error::{Kind, Result};
use crate::wal::{Lsn, TimelineId};
use jiff::{SignedDuration, Timestamp};
use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge};
use std::fmt;
use std::time::Duration;

/// `pg_replication_slots.wal_status`.
const SLOT_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// From a store on the same machine that is waited for to one that is about to be lost.
const DURABLE_SECONDS: &[f64] =
    &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Where the archiver says how long WAL waited to become durable. Cheap to clone.
#[derive(Clone)]
pub struct DurableLatency(Histogram);

impl DurableLatency {
    /// Some WAL waited so long.
    pub fn observe(&self, waited: Duration) {
        self.0.observe(waited.as_secs_f64());
    }
}

impl fmt::Debug for DurableLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableLatency({})", self.0.get_sample_count())
    }
}

/// What the archiver says of its stream.
pub(super) struct Stream {
    rpo_seconds: Gauge,
    rpo_bytes: IntGauge,
    connected: IntGauge,
    hot_spare: IntGauge,
    synchronous: IntGauge,
    captured: IntGauge,
    remote_apply: IntGauge,
    timeline: IntGauge,
    server_lsn: IntGauge,
    received_lsn: IntGauge,
    durable_lsn: IntGauge,
    durable_latency: Histogram,
    reconnects: IntCounter,
    interruptions: IntCounterVec,
    stopped: GaugeVec,
    certificate_end: GaugeVec,
    clock_ahead: GaugeVec,
    gaps: IntGauge,
    slot_status: GaugeVec,
    slot_safe_bytes: GaugeVec,
    slot_retained_bytes: GaugeVec,
}

impl Stream {
    pub(super) fn register(build: &mut Builder) -> Result<Stream> {
        Ok(Stream {
            rpo_seconds: build.gauge(
                "seawall_rpo_seconds",
                "How much committed data, in seconds, would be lost if the server vanished now: 0 while nothing is \
                 outstanding, growing since the last proof while it is unknown, infinite until this process has one.",
            )?,
            rpo_bytes: build.int_gauge(
                "seawall_rpo_bytes",
                "The same in bytes of WAL: the server's last known position less the durable one.",
            )?,
            connected: build.int_gauge("seawall_connected", "1 while WAL is streaming from the server, else 0.")?,
            hot_spare: build.int_gauge(
                "seawall_hot_spare",
                "1 while another archiver holds the slot and this one waits to take over, else 0.",
            )?,
            synchronous: build.int_gauge(
                "seawall_synchronous",
                "1 while commits wait for this archiver: synchronous_standby_names has its name, or `*`; else 0.",
            )?,
            captured: build.int_gauge(
                "seawall_synchronous_captured",
                "1 while they do because of the `*` alone, which nobody may have meant, else 0.",
            )?,
            remote_apply: build.int_gauge(
                "seawall_remote_apply",
                "1 while commits that wait for this archiver wait for ever: the server, a role or a database has \
                 synchronous_commit = remote_apply; else 0.",
            )?,
            timeline: build.int_gauge("seawall_timeline", "The timeline that is being archived; 0: not known yet.")?,
            server_lsn: build.int_gauge("seawall_server_lsn", "The server's last known WAL position, in bytes.")?,
            received_lsn: build.int_gauge("seawall_received_lsn", "WAL was received up to this position, in bytes.")?,
            durable_lsn: build.int_gauge(
                "seawall_durable_lsn",
                "WAL is stored without a gap, and acknowledged, up to this position, in bytes.",
            )?,
            durable_latency: build.histogram(
                "seawall_commit_durable_seconds",
                DURABLE_SECONDS,
                "How long WAL, and a commit in it, waited from its receipt until it was stored without a gap. Measured for \
                 what comes within 2 ms together.",
            )?,
            reconnects: build.counter("seawall_reconnects_total", "Times the stream was lost and begun again.")?,
            interruptions: build.counters(
                "seawall_stream_interruptions_total",
                &["reason"],
                "Attempts to stream that failed or ended, by why: `lost`, `leaving` (the server starts or stops), \
                 `slot_busy`, `wal_removed`, `not_in_history`, `other_path` (a server that is not where the repository is), \
                 `apart` (another history under the same name), `refused`.",
            )?,
            stopped: build.gauges(
                "seawall_stopped",
                &["reason"],
                "1 since this cluster is not archived any more because of what waiting cannot mend: `diverged`, `damaged` or \
                 `other`. Of a process that then ends, nothing is left to be scraped.",
            )?,
            certificate_end: build.gauges(
                "seawall_server_certificate_expiry_timestamp_seconds",
                &[],
                "When the certificate ends that the PostgreSQL server has shown; absent without TLS.",
            )?,
            clock_ahead: build.gauges(
                "seawall_server_clock_ahead_seconds",
                &[],
                "How far the server's clock is ahead of this machine's, or behind it if negative, as far as an answer that came \
                 within ten seconds can tell; absent until there was one, and while nothing streams.",
            )?,
            gaps: build.int_gauge("seawall_gaps", "Holes in the archived WAL: moments in them cannot be restored.")?,
            slot_status: build.gauges(
                "seawall_slot_wal_status",
                &["status"],
                "1 for what PostgreSQL says of our slot's WAL (`reserved`, `extended`, `unreserved`, `lost`), 0 for the \
                 rest; absent where the role may not look.",
            )?,
            slot_safe_bytes: build.gauges(
                "seawall_slot_safe_wal_bytes",
                &[],
                "WAL that may still be written before our slot loses some; absent without `max_slot_wal_keep_size` or \
                 where the role may not look.",
            )?,
            slot_retained_bytes: build.gauges(
                "seawall_slot_retained_bytes",
                &[],
                "WAL that the server keeps for our slot; absent where the role may not look.",
            )?,
        })
    }
}

impl Metrics {
    /// What a disaster would cost now; infinite seconds are possible.
    pub fn set_rpo(&self, seconds: f64, bytes: u64) {
        self.0.stream.rpo_seconds.set(seconds);
        self.0.stream.rpo_bytes.set(whole(bytes));
    }

    /// Whether WAL is streaming.
    pub fn set_connected(&self, connected: bool) {
        self.0.stream.connected.set(connected.into());
    }

    /// Whether another archiver holds the slot.
    pub fn set_hot_spare(&self, spare: bool) {
        self.0.stream.hot_spare.set(spare.into());
    }

    /// Whether commits wait for this archiver, and whether only because everybody is waited for.
    pub fn set_synchronous(&self, synchronous: bool, captured: bool) {
        self.0.stream.synchronous.set(synchronous.into());
        self.0.stream.captured.set(captured.into());
    }

    /// Whether some of them wait for what an archiver never does.
    pub fn set_remote_apply(&self, waits: bool) {
        self.0.stream.remote_apply.set(waits.into());
    }

    /// The timeline that is being archived.
    pub fn set_timeline(&self, timeline: TimelineId) {
        self.0.stream.timeline.set(timeline.0.into());
    }

    /// The server's position, as last heard.
    pub fn set_server_lsn(&self, lsn: Lsn) {
        self.0.stream.server_lsn.set(whole(lsn.0));
    }

    /// How far WAL was received.
    pub fn set_received_lsn(&self, lsn: Lsn) {
        self.0.stream.received_lsn.set(whole(lsn.0));
    }

    /// How far WAL is stored without a gap.
    pub fn set_durable_lsn(&self, lsn: Lsn) {
        self.0.stream.durable_lsn.set(whole(lsn.0));
    }

    /// Holes that the repository has.
    pub fn set_gaps(&self, count: u64) {
        self.0.stream.gaps.set(whole(count));
    }

    /// Our slot as the server shows it; what is not known is not shown.
    pub fn set_slot(&self, status: Option<&'static str>, safe_wal_bytes: Option<i64>, retained_bytes: Option<u64>) {
        match status {
            None => self.0.stream.slot_status.reset(),
            Some(now) => {
                for status in SLOT_STATUSES {
                    self.0.stream.slot_status.with_label_values(&[status]).set(flag(status == now));
                }
            }
        }
        show(&self.0.stream.slot_safe_bytes, safe_wal_bytes.map(|bytes| bytes as f64));
        show(&self.0.stream.slot_retained_bytes, retained_bytes.map(|bytes| bytes as f64));
    }

    /// Times the stream was lost and begun again, since the start of the process.
    pub fn count_reconnects(&self, total: u64) {
        count_to(&self.0.stream.reconnects, total);
    }

    /// Where to say how long WAL waited.
    pub fn durable_latency(&self) -> DurableLatency {
        DurableLatency(self.0.stream.durable_latency.clone())
    }

    /// How often there was no stream for this reason, since the start of the process.
    pub fn count_interruptions(&self, reason: &'static str, total: u64) {
        count_to(&self.0.stream.interruptions.with_label_values(&[reason]), total);
    }

    /// Archiving has ended for good, by an error of this kind.
    pub fn set_stopped(&self, kind: Kind) {
        let reason = match kind {
            Kind::Diverged => "diverged",
            Kind::Damaged => "damaged",
            _ => "other",
        };
        self.0.stream.stopped.with_label_values(&[reason]).set(1.0);
    }

    /// When the certificate of the server ends.
    pub fn set_server_certificate_end(&self, end: Option<Timestamp>) {
        show(&self.0.stream.certificate_end, end.map(unix_seconds));
    }

    /// How far the server's clock is ahead of ours.
    pub fn set_server_clock_ahead(&self, ahead: Option<SignedDuration>) {
        show(&self.0.stream.clock_ahead, ahead.map(|ahead| ahead.as_secs_f64()));
    }
}
