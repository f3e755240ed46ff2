//! Requests to the store: how many, how long, how large, and what went wrong.

use super::Metrics;
use super::registry::{Builder, show, unix_seconds};
use crate::error::Result;
use jiff::Timestamp;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge};

/// From a store on the same machine to one that is about to time out.
const STORE_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// What an observer of the store says.
pub(super) struct Store {
    operations: IntCounterVec,
    failures: IntCounterVec,
    retries: IntCounterVec,
    duration: HistogramVec,
    bytes: IntCounterVec,
    conditional_writes_emulated: IntGauge,
    credentials_end: GaugeVec,
    credentials_failures: IntCounter,
}

impl Store {
    pub(super) fn register(build: &mut Builder) -> Result<Store> {
        Ok(Store {
            operations: build.counters(
                "seawall_store_operations_total",
                &["operation"],
                "Requests to the store, each attempt by itself.",
            )?,
            failures: build.counters(
                "seawall_store_failures_total",
                &["operation", "kind"],
                "Requests that failed, by what went wrong.",
            )?,
            retries: build.counters(
                "seawall_store_retries_total",
                &["kind"],
                "Requests that were made again, by what was wrong with the one before.",
            )?,
            duration: build.histograms(
                "seawall_store_operation_duration_seconds",
                STORE_SECONDS,
                &["operation"],
                "How long a request took, failed ones included.",
            )?,
            bytes: build.counters(
                "seawall_store_bytes_total",
                &["operation"],
                "Bytes of object bodies: `create` and `upload` sent them, `get` received them.",
            )?,
            conditional_writes_emulated: build.int_gauge(
                "seawall_conditional_writes_emulated",
                "1 if the store ignores If-None-Match and `conditional_writes = \"head\"` stands in for it, else 0.",
            )?,
            credentials_end: build.gauges(
                "seawall_credentials_expiry_timestamp_seconds",
                &[],
                "When the store's credentials end that are used; absent if they do not say. New ones are asked for ten \
                 minutes before that, or in the last quarter of their life, when the next request is made.",
            )?,
            credentials_failures: build.counter(
                "seawall_credentials_failures_total",
                "Times that new credentials were asked for and not given.",
            )?,
        })
    }
}

impl Metrics {
    /// Shows these operations on a store from now on, at zero.
    pub fn expect_store_operations(&self, operations: impl IntoIterator<Item = &'static str>) {
        for operation in operations {
            self.0.store.operations.with_label_values(&[operation]);
            self.0.store.duration.with_label_values(&[operation]);
            self.0.store.bytes.with_label_values(&[operation]);
        }
    }

    /// One request to the store ended after `seconds` with `bytes` of a body sent or received; `failure` is what went
    /// wrong, by its kind. Both names must come from a small fixed set.
    pub fn store_operation(&self, operation: &'static str, seconds: f64, bytes: u64, failure: Option<&'static str>) {
        self.0.store.operations.with_label_values(&[operation]).inc();
        self.0.store.duration.with_label_values(&[operation]).observe(seconds);
        self.0.store.bytes.with_label_values(&[operation]).inc_by(bytes);
        if let Some(kind) = failure {
            self.0.store.failures.with_label_values(&[operation, kind]).inc();
        }
    }

    /// Whether "never overwrite" is only emulated.
    pub fn set_conditional_writes_emulated(&self, emulated: bool) {
        self.0.store.conditional_writes_emulated.set(emulated.into());
    }

    /// Shows repeated requests of these kinds from now on, at zero.
    pub fn expect_store_retries(&self, kinds: impl IntoIterator<Item = &'static str>) {
        for kind in kinds {
            self.0.store.retries.with_label_values(&[kind]);
        }
    }

    /// A request is made again, because of what was wrong with the one before. The name must come from a small fixed set.
    pub fn store_retry(&self, kind: &'static str) {
        self.0.store.retries.with_label_values(&[kind]).inc();
    }

    /// Credentials were given, which are good until then.
    pub fn set_credentials_end(&self, end: Option<Timestamp>) {
        show(&self.0.store.credentials_end, end.map(unix_seconds));
    }

    /// Credentials were asked for, and not given.
    pub fn count_credentials_failure(&self) {
        self.0.store.credentials_failures.inc();
    }
}
