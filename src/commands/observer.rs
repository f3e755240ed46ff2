//! What happens on a store, as metrics: neither of the two knows the other. Uses `metrics` and `store`.

use crate::metrics::Metrics;
use crate::store::{Operation, StoreErrorKind, StoreObserver};
use jiff::Timestamp;

/// Counts and times every attempt.
#[derive(Clone, Debug)]
pub struct StoreMetrics(Metrics);

impl StoreMetrics {
    /// Shows every operation at zero from now on.
    pub fn new(metrics: Metrics) -> StoreMetrics {
        metrics.expect_store_operations(Operation::ALL.map(Operation::name));
        metrics.expect_store_retries(StoreErrorKind::TRANSIENT.map(label));
        StoreMetrics(metrics)
    }
}

impl StoreObserver for StoreMetrics {
    fn finished(&self, operation: Operation, seconds: f64, bytes: u64, error: Option<StoreErrorKind>) {
        self.0.store_operation(operation.name(), seconds, bytes, error.map(label));
    }

    fn tries_again(&self, error: StoreErrorKind) {
        self.0.store_retry(label(error));
    }

    fn credentials_given(&self, until: Option<Timestamp>) {
        self.0.set_credentials_end(until);
    }

    fn credentials_failed(&self) {
        self.0.count_credentials_failure();
    }
}

/// The kind in a label: lower case, stable.
fn label(kind: StoreErrorKind) -> &'static str {
    match kind {
        StoreErrorKind::NotFound => "not_found",
        StoreErrorKind::Range => "range",
        StoreErrorKind::NoBucket => "no_bucket",
        StoreErrorKind::WrongRegion => "wrong_region",
        StoreErrorKind::Denied => "denied",
        StoreErrorKind::Credentials => "credentials",
        StoreErrorKind::Full => "full",
        StoreErrorKind::Throttled => "throttled",
        StoreErrorKind::Transient => "transient",
        StoreErrorKind::Corrupt => "corrupt",
        StoreErrorKind::Unsupported => "unsupported",
        StoreErrorKind::Permanent => "permanent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_shown_and_a_failure_is_counted_by_its_kind() {
        let metrics = Metrics::new("main").expect("metrics");
        let observer = StoreMetrics::new(metrics.clone());
        observer.finished(Operation::Create, 0.5, 1000, Some(StoreErrorKind::Throttled));
        observer.finished(Operation::Create, 0.5, 1000, None);
        observer.tries_again(StoreErrorKind::Throttled);
        let text = metrics.render().expect("text");
        for line in [
            "seawall_store_operations_total{operation=\"create\",cluster=\"main\"} 2",
            "seawall_store_operations_total{operation=\"delete\",cluster=\"main\"} 0",
            "seawall_store_bytes_total{operation=\"create\",cluster=\"main\"} 2000",
            "seawall_store_retries_total{kind=\"throttled\",cluster=\"main\"} 1",
            "seawall_store_retries_total{kind=\"transient\",cluster=\"main\"} 0",
            "seawall_store_failures_total{kind=\"throttled\",operation=\"create\",cluster=\"main\"} 1",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in:\n{text}");
        }
    }
}
