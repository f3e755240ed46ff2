//! Every metric in one place: name, meaning and setter; `docs/metrics.md` comes from here. Uses `wal` and `error`.
//!
//! A handle is cheap to clone and owns its registry with the others: two archivers in one process do not mix. All
//! carry the label `cluster`. Units are seconds, bytes and Unix time.

use crate::error::{Error, Kind, Result};
use crate::wal::{Lsn, TimelineId};
use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// From a store on the same machine to one that is about to time out.
const STORE_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// `pg_replication_slots.wal_status`.
const SLOT_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// What was stored of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalObject {
    /// A full block, or the sealed end of a timeline.
    Block,
    /// A part of a block that is not full yet.
    Tail,
}

impl WalObject {
    const ALL: [WalObject; 2] = [WalObject::Block, WalObject::Tail];

    fn label(self) -> &'static str {
        match self {
            WalObject::Block => "block",
            WalObject::Tail => "tail",
        }
    }
}

/// One metric as the documentation shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// Its labels beside `cluster`.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// All metrics of one cluster's archiver.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    definitions: Vec<Definition>,

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
    reconnects: IntCounter,
    gaps: IntGauge,
    slot_status: GaugeVec,
    slot_safe_bytes: GaugeVec,
    slot_retained_bytes: GaugeVec,

    wal_objects: IntCounterVec,
    buffered_bytes: IntGauge,
    tails_live: IntGauge,
    index_failures: IntCounterVec,

    store_operations: IntCounterVec,
    store_failures: IntCounterVec,
    store_duration: HistogramVec,
    store_bytes: IntCounterVec,
    conditional_writes_emulated: IntGauge,

    backup_needed: IntGauge,
    backup_running: IntGauge,
    backup_received: IntGauge,
    backup_expected: IntGauge,
    backup_stored: IntGauge,
    last_backup_timestamp: Gauge,
    last_backup_size: IntGauge,
    last_backup_duration: Gauge,
    last_backup_damaged: IntGauge,
    last_backup_rejected_pages: IntGauge,

    drill_timestamp: GaugeVec,
    drill_success: GaugeVec,
    drill_recovery_seconds: GaugeVec,
    drill_recovered_lsn: GaugeVec,
    drill_recovered_timestamp: GaugeVec,
    drill_rto_met: GaugeVec,
    drill_rpo_met: GaugeVec,
    prune_success_timestamp: GaugeVec,
    prune_success: GaugeVec,
    prune_deleted_objects: IntCounter,
    prune_deleted_bytes: IntCounter,
}

/// What a prune did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastPrune {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Everything that was to go is gone.
    pub passed: bool,
    /// Objects that it deleted.
    pub deleted_objects: u64,
    /// Bytes of them, as stored.
    pub deleted_bytes: u64,
}

/// What the last drill found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LastDrill {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Nothing failed.
    pub passed: bool,
    /// What recovery took, if it came to its end.
    pub recovery_seconds: Option<f64>,
    /// How far the server replayed.
    pub recovered_lsn: Option<Lsn>,
    /// The end of the last transaction in it.
    pub recovered_at: Option<Timestamp>,
    /// Recovery was as quick as it was to be; `None`: no target was set.
    pub rto_met: Option<bool>,
    /// What was stored was as young as it was to be; `None`: no target was set.
    pub rpo_met: Option<bool>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({})", self.0.definitions.len())
    }
}

/// Registers metrics and remembers what they are.
struct Builder {
    registry: Registry,
    definitions: Vec<Definition>,
}

impl Builder {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        definition: Definition,
        metric: prometheus::Result<C>,
    ) -> Result<C> {
        let bad = |error| Error::new(Kind::Internal, format!("metric {}", definition.name)).because(error);
        let metric = metric.map_err(bad)?;
        self.registry.register(Box::new(metric.clone())).map_err(bad)?;
        self.definitions.push(definition);
        Ok(metric)
    }

    fn gauge(&mut self, name: &'static str, help: &'static str) -> Result<Gauge> {
        self.add(Definition { name, kind: "gauge", labels: &[], help }, Gauge::new(name, help))
    }

    fn int_gauge(&mut self, name: &'static str, help: &'static str) -> Result<IntGauge> {
        self.add(Definition { name, kind: "gauge", labels: &[], help }, IntGauge::new(name, help))
    }

    fn counter(&mut self, name: &'static str, help: &'static str) -> Result<IntCounter> {
        self.add(Definition { name, kind: "counter", labels: &[], help }, IntCounter::new(name, help))
    }

    fn counters(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Result<IntCounterVec> {
        let definition = Definition { name, kind: "counter", labels, help };
        self.add(definition, IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Absent until they are set.
    fn gauges(&mut self, name: &'static str, labels: &'static [&'static str], help: &'static str) -> Result<GaugeVec> {
        let definition = Definition { name, kind: "gauge", labels, help };
        self.add(definition, GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(
        &mut self,
        name: &'static str,
        bounds: &[f64],
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add(Definition { name, kind: "histogram", labels, help }, HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// A registry of its own, with every metric at zero, labelled with the cluster's name.
    ///
    /// # Errors
    /// Of kind `Internal`, if a definition is wrong.
    pub fn new(cluster: &str) -> Result<Metrics> {
        let labels = HashMap::from([("cluster".to_owned(), cluster.to_owned())]);
        let registry = Registry::new_custom(None, Some(labels))
            .map_err(|error| Error::new(Kind::Internal, "cannot make a metrics registry").because(error))?;
        let mut build = Builder { registry, definitions: Vec::new() };
        let build_info =
            build.gauges("seawall_build_info", &["version"], "Always 1; the label says which version this is.")?;
        let inner = Inner {
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
            reconnects: build.counter("seawall_reconnects_total", "Times the stream was lost and begun again.")?,
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
            wal_objects: build.counters(
                "seawall_wal_objects_total",
                &["object"],
                "Objects of WAL that were stored.",
            )?,
            buffered_bytes: build.int_gauge(
                "seawall_buffered_bytes",
                "Bytes of WAL in memory: received and not durable yet. Bounded; at the bound reading stops.",
            )?,
            tails_live: build
                .int_gauge("seawall_tails_live", "Tails in the repository that no block has replaced yet.")?,
            index_failures: build.counters(
                "seawall_index_failures_total",
                &["reason"],
                "What kept WAL out of the index of records: blocks whose records cannot be told apart, attempts to store. \
                 Archiving does not wait for it.",
            )?,
            store_operations: build.counters(
                "seawall_store_operations_total",
                &["operation"],
                "Requests to the store, each attempt by itself.",
            )?,
            store_failures: build.counters(
                "seawall_store_failures_total",
                &["operation", "kind"],
                "Requests that failed, by what went wrong.",
            )?,
            store_duration: build.histograms(
                "seawall_store_operation_duration_seconds",
                STORE_SECONDS,
                &["operation"],
                "How long a request took, failed ones included.",
            )?,
            store_bytes: build.counters(
                "seawall_store_bytes_total",
                &["operation"],
                "Bytes of object bodies: `create` and `upload` sent them, `get` received them.",
            )?,
            conditional_writes_emulated: build.int_gauge(
                "seawall_conditional_writes_emulated",
                "1 if the store ignores If-None-Match and `conditional_writes = \"head\"` stands in for it, else 0.",
            )?,
            backup_needed: build.int_gauge(
                "seawall_backup_needed",
                "1 while WAL was lost and no base backup behind the gap is finished: nothing behind it can be restored.",
            )?,
            backup_running: build.int_gauge("seawall_backup_running", "1 while this archiver takes a base backup by itself.")?,
            backup_received: build.int_gauge(
                "seawall_backup_received_bytes",
                "Bytes that have come of the base backup that it takes, or took last; 0: it has taken none.",
            )?,
            backup_expected: build.int_gauge(
                "seawall_backup_expected_bytes",
                "About how many will come; 0: the server has not said.",
            )?,
            backup_stored: build.int_gauge("seawall_backup_stored_bytes", "Bytes of its parts that are stored.")?,
            last_backup_timestamp: build.gauge(
                "seawall_last_backup_timestamp_seconds",
                "When the newest base backup was finished; 0: there is none.",
            )?,
            last_backup_size: build.int_gauge("seawall_last_backup_size_bytes", "Its size, before compression.")?,
            last_backup_duration: build.gauge("seawall_last_backup_duration_seconds", "How long it took.")?,
            last_backup_damaged: build.int_gauge(
                "seawall_last_backup_damaged",
                "1: the server found damaged pages while it was taken, and no restore uses it unasked.",
            )?,
            last_backup_rejected_pages: build.int_gauge(
                "seawall_last_backup_rejected_pages",
                "Pages in it that are not as PostgreSQL writes them.",
            )?,
            drill_timestamp: build.gauges(
                "seawall_drill_timestamp_seconds",
                &[],
                "When the last drill ended; absent, as all of these, if there was none. Looked up once an hour.",
            )?,
            drill_success: build.gauges("seawall_drill_success", &[], "1 if the last drill passed, else 0.")?,
            drill_recovery_seconds: build.gauges(
                "seawall_drill_recovery_seconds",
                &[],
                "What recovery took in it, from the decision to a server that takes writes; absent if it did not come so far.",
            )?,
            drill_recovered_lsn: build.gauges(
                "seawall_drill_recovered_lsn_bytes",
                &[],
                "How far its server replayed, as a position in bytes; absent if it did not come up.",
            )?,
            drill_recovered_timestamp: build.gauges(
                "seawall_drill_recovered_timestamp_seconds",
                &[],
                "The end of the last transaction that it replayed; absent if there was none.",
            )?,
            drill_rto_met: build.gauges(
                "seawall_drill_rto_met",
                &[],
                "1 if recovery took no longer than `drill.rto`, else 0; absent without that.",
            )?,
            drill_rpo_met: build.gauges(
                "seawall_drill_rpo_met",
                &[],
                "1 if what was stored was no older than `drill.rpo`, else 0; absent without that.",
            )?,
            prune_success_timestamp: build.gauges(
                "seawall_prune_success_timestamp_seconds",
                &[],
                "When the last prune by this process succeeded; absent if none did.",
            )?,
            prune_success: build.gauges(
                "seawall_prune_success",
                &[],
                "1 if the last prune by this process did all that it was to do, else 0; absent if there was none.",
            )?,
            prune_deleted_objects: build.counter(
                "seawall_prune_deleted_objects_total",
                "Objects that prunes by this process deleted.",
            )?,
            prune_deleted_bytes: build.counter(
                "seawall_prune_deleted_bytes_total",
                "Bytes of them, as stored.",
            )?,
            registry: build.registry,
            definitions: build.definitions,
        };
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        // A rate needs its zero: what is known to come is there from the start.
        for object in WalObject::ALL {
            inner.wal_objects.with_label_values(&[object.label()]);
        }
        Ok(Metrics(Arc::new(inner)))
    }

    /// The text that Prometheus scrapes (exposition format 0.0.4).
    ///
    /// # Errors
    /// Of kind `Internal`, if a metric cannot be written.
    pub fn render(&self) -> Result<String> {
        TextEncoder::new()
            .encode_to_string(&self.0.registry.gather())
            .map_err(|error| Error::new(Kind::Internal, "cannot write the metrics").because(error))
    }

    /// What there is, in the order of the documentation.
    pub fn definitions(&self) -> &[Definition] {
        &self.0.definitions
    }

    /// What a disaster would cost now; infinite seconds are possible.
    pub fn set_rpo(&self, seconds: f64, bytes: u64) {
        self.0.rpo_seconds.set(seconds);
        self.0.rpo_bytes.set(whole(bytes));
    }

    /// Whether WAL is streaming.
    pub fn set_connected(&self, connected: bool) {
        self.0.connected.set(connected.into());
    }

    /// Whether another archiver holds the slot.
    pub fn set_hot_spare(&self, spare: bool) {
        self.0.hot_spare.set(spare.into());
    }

    /// Whether commits wait for this archiver, and whether only because everybody is waited for.
    pub fn set_synchronous(&self, synchronous: bool, captured: bool) {
        self.0.synchronous.set(synchronous.into());
        self.0.captured.set(captured.into());
    }

    /// Whether some of them wait for what an archiver never does.
    pub fn set_remote_apply(&self, waits: bool) {
        self.0.remote_apply.set(waits.into());
    }

    /// The timeline that is being archived.
    pub fn set_timeline(&self, timeline: TimelineId) {
        self.0.timeline.set(timeline.0.into());
    }

    /// The server's position, as last heard.
    pub fn set_server_lsn(&self, lsn: Lsn) {
        self.0.server_lsn.set(whole(lsn.0));
    }

    /// How far WAL was received.
    pub fn set_received_lsn(&self, lsn: Lsn) {
        self.0.received_lsn.set(whole(lsn.0));
    }

    /// How far WAL is stored without a gap.
    pub fn set_durable_lsn(&self, lsn: Lsn) {
        self.0.durable_lsn.set(whole(lsn.0));
    }

    /// Holes that the repository has.
    pub fn set_gaps(&self, count: u64) {
        self.0.gaps.set(whole(count));
    }

    /// Our slot as the server shows it; what is not known is not shown.
    pub fn set_slot(&self, status: Option<&'static str>, safe_wal_bytes: Option<i64>, retained_bytes: Option<u64>) {
        match status {
            None => self.0.slot_status.reset(),
            Some(now) => {
                for status in SLOT_STATUSES {
                    self.0.slot_status.with_label_values(&[status]).set(f64::from(u8::from(status == now)));
                }
            }
        }
        show(&self.0.slot_safe_bytes, safe_wal_bytes.map(|bytes| bytes as f64));
        show(&self.0.slot_retained_bytes, retained_bytes.map(|bytes| bytes as f64));
    }

    /// What a prune by this process did.
    pub fn add_prune(&self, prune: &LastPrune) {
        let inner = &self.0;
        inner.prune_success.with_label_values::<&str>(&[]).set(f64::from(u8::from(prune.passed)));
        if prune.passed {
            let seconds = prune.ended_at.as_millisecond() as f64 / 1e3;
            inner.prune_success_timestamp.with_label_values::<&str>(&[]).set(seconds);
        }
        inner.prune_deleted_objects.inc_by(prune.deleted_objects);
        inner.prune_deleted_bytes.inc_by(prune.deleted_bytes);
    }

    /// What the last drill found.
    pub fn set_last_drill(&self, drill: &LastDrill) {
        let (inner, seconds) = (&self.0, |at: Timestamp| at.as_millisecond() as f64 / 1e3);
        let flag = |met: bool| f64::from(u8::from(met));
        show(&inner.drill_timestamp, Some(seconds(drill.ended_at)));
        show(&inner.drill_success, Some(flag(drill.passed)));
        show(&inner.drill_recovery_seconds, drill.recovery_seconds);
        show(&inner.drill_recovered_lsn, drill.recovered_lsn.map(|lsn| lsn.0 as f64));
        show(&inner.drill_recovered_timestamp, drill.recovered_at.map(seconds));
        show(&inner.drill_rto_met, drill.rto_met.map(flag));
        show(&inner.drill_rpo_met, drill.rpo_met.map(flag));
    }

    /// A hole waits for a base backup that begins behind it.
    pub fn set_backup_needed(&self, needed: bool) {
        self.0.backup_needed.set(needed.into());
    }

    /// Times the stream was lost and begun again, since the start of the process.
    pub fn count_reconnects(&self, total: u64) {
        count_to(&self.0.reconnects, total);
    }

    /// Objects of WAL stored since the start of the process.
    pub fn count_wal_objects(&self, object: WalObject, total: u64) {
        count_to(&self.0.wal_objects.with_label_values(&[object.label()]), total);
    }

    /// Bytes of WAL in memory that are not durable.
    pub fn set_buffered_bytes(&self, bytes: u64) {
        self.0.buffered_bytes.set(whole(bytes));
    }

    /// Tails that no block has replaced yet.
    pub fn set_tails_live(&self, count: usize) {
        self.0.tails_live.set(whole(count as u64));
    }

    /// Blocks whose records could not be told apart, and attempts to store an index that failed, since the start of the process.
    pub fn count_index_failures(&self, unreadable: u64, unstored: u64) {
        for (reason, total) in [("records", unreadable), ("store", unstored)] {
            count_to(&self.0.index_failures.with_label_values(&[reason]), total);
        }
    }

    /// Shows these operations on a store from now on, at zero.
    pub fn expect_store_operations(&self, operations: impl IntoIterator<Item = &'static str>) {
        for operation in operations {
            self.0.store_operations.with_label_values(&[operation]);
            self.0.store_duration.with_label_values(&[operation]);
            self.0.store_bytes.with_label_values(&[operation]);
        }
    }

    /// One request to the store ended after `seconds` with `bytes` of a body sent or received; `failure` is what went
    /// wrong, by its kind. Both names must come from a small fixed set.
    pub fn store_operation(&self, operation: &'static str, seconds: f64, bytes: u64, failure: Option<&'static str>) {
        self.0.store_operations.with_label_values(&[operation]).inc();
        self.0.store_duration.with_label_values(&[operation]).observe(seconds);
        self.0.store_bytes.with_label_values(&[operation]).inc_by(bytes);
        if let Some(kind) = failure {
            self.0.store_failures.with_label_values(&[operation, kind]).inc();
        }
    }

    /// Whether "never overwrite" is only emulated.
    pub fn set_conditional_writes_emulated(&self, emulated: bool) {
        self.0.conditional_writes_emulated.set(emulated.into());
    }

    /// A base backup is being taken.
    pub fn set_backup_running(&self, running: bool) {
        self.0.backup_running.set(running.into());
    }

    /// How far the base backup is that is being taken: bytes that came, bytes that will come as far as the server knows, bytes stored.
    pub fn set_backup_progress(&self, received: u64, expected: Option<u64>, stored: u64) {
        self.0.backup_received.set(whole(received));
        self.0.backup_expected.set(whole(expected.unwrap_or_default()));
        self.0.backup_stored.set(whole(stored));
    }

    /// The newest base backup: when it was finished, its bytes before compression, how long it took.
    pub fn set_last_backup(&self, finished: Timestamp, bytes: u64, took: Duration) {
        self.0.last_backup_timestamp.set(unix_seconds(finished));
        self.0.last_backup_size.set(whole(bytes));
        self.0.last_backup_duration.set(took.as_secs_f64());
    }

    /// What was found wrong with the newest base backup: the server called its own pages damaged; pages that we rejected.
    pub fn set_last_backup_findings(&self, damaged: bool, rejected_pages: u64) {
        self.0.last_backup_damaged.set(damaged.into());
        self.0.last_backup_rejected_pages.set(whole(rejected_pages));
    }
}

/// Totals are counted elsewhere; a counter only follows.
fn count_to(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Gauges are signed; nothing counted here gets beyond.
fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unix_seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

/// A gauge that is absent while its value is not known.
fn show(gauge: &GaugeVec, value: Option<f64>) {
    match value {
        Some(value) => gauge.with_label_values::<&str>(&[]).set(value),
        None => gauge.reset(),
    }
}

/// `docs/metrics.md`.
///
/// # Errors
/// As [`Metrics::new`].
pub fn document() -> Result<String> {
    let mut text = "# Metrics\n\n\
        `seawall run` serves these at `/metrics` (default: `http://127.0.0.1:8432/metrics`), beside `/healthz` (200 \
        while the process lives) and `/readyz` (200 while it archives, else 503 with the reason).\n\n\
        All carry the label `cluster`. Positions in the WAL are bytes since its beginning: `16/B374D848` is \
        0x16B374D848. What has never happened is 0.\n\n\
        | name | type | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for Definition { name, kind, labels, help } in Metrics::new("main")?.definitions() {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    text.push_str(
        "\n## Worth an alarm\n\n\
         | when | expression |\n|---|---|\n\
         | more would be lost than was promised | `seawall_rpo_seconds > 60 unless seawall_hot_spare == 1` |\n\
         | commits wait for the archive, unasked | `seawall_synchronous_captured > 0` |\n\
         | commits wait for ever | `seawall_remote_apply > 0` |\n\
         | nobody measures | `absent(seawall_rpo_seconds) or up{job=\"seawall\"} == 0` |\n\
         | no base backup for two days | `time() - seawall_last_backup_timestamp_seconds > 2 * 86400` |\n\
         | damaged pages on the server's disk | `seawall_last_backup_damaged > 0` |\n\
         | pages that may be damaged | `seawall_last_backup_rejected_pages > 0` |\n\
         | moments that cannot be restored | `seawall_gaps > 0` |\n\
         | nothing new can be restored | `seawall_backup_needed > 0` |\n\
         | a drill failed | `seawall_drill_success == 0` |\n\
         | no drill for a month | `time() - seawall_drill_timestamp_seconds > 31 * 86400` |\n\
         | WAL is about to be lost | `seawall_slot_wal_status{status=\"unreserved\"} == 1 or \
         seawall_slot_safe_wal_bytes < 5e9` |\n\
         | two clusters under one name: `run` ends (exit code 8) | `up{job=\"seawall\"} == 0` |\n\
         | the store fails | `rate(seawall_store_failures_total[5m]) > 0.1` |\n",
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_counts_are_scraped_with_the_cluster() {
        let metrics = Metrics::new("shop").expect("metrics");
        metrics.set_durable_lsn(Lsn(0x16_B374_D848));
        metrics.set_rpo(1.5, 42);
        metrics.store_operation("create", 0.02, 5000, Some("throttled"));
        metrics.count_wal_objects(WalObject::Tail, 1);
        metrics.set_last_backup(Timestamp::UNIX_EPOCH, 7, Duration::from_secs(3));
        let text = metrics.render().expect("text");
        for line in [
            "seawall_durable_lsn{cluster=\"shop\"} 97500059720",
            "seawall_rpo_seconds{cluster=\"shop\"} 1.5",
            "seawall_rpo_bytes{cluster=\"shop\"} 42",
            "seawall_store_operations_total{operation=\"create\",cluster=\"shop\"} 1",
            "seawall_store_failures_total{kind=\"throttled\",operation=\"create\",cluster=\"shop\"} 1",
            "seawall_store_operation_duration_seconds_bucket{operation=\"create\",cluster=\"shop\",le=\"0.025\"} 1",
            "seawall_wal_objects_total{object=\"tail\",cluster=\"shop\"} 1",
            "seawall_wal_objects_total{object=\"block\",cluster=\"shop\"} 0",
            "seawall_last_backup_size_bytes{cluster=\"shop\"} 7",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        let metrics = Metrics::new("main").expect("metrics");
        for Definition { name, kind, help, .. } in metrics.definitions() {
            assert!(name.starts_with("seawall_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
            assert!(help.ends_with('.') && !help.contains("  ") && !help.contains('|'), "{name}: {help}");
        }
    }

    #[test]
    fn two_registries_do_not_mix() {
        let (one, two) = (Metrics::new("a").expect("metrics"), Metrics::new("b").expect("metrics"));
        one.count_reconnects(1);
        assert!(two.render().expect("text").contains("seawall_reconnects_total{cluster=\"b\"} 0"));
    }

    #[test]
    fn a_count_beyond_the_signed_range_stays_at_its_end() {
        assert_eq!(whole(u64::MAX), i64::MAX);
    }
}
