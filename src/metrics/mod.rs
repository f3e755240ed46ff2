//! Every metric in one place, a file for each subject: name, meaning and setter; `docs/metrics.md` comes from here. Uses
//! `wal` and `error`.
//!
//! A handle is cheap to clone and owns its registry with the others: two archivers in one process do not mix. All
//! carry the label `cluster`. Units are seconds, bytes and Unix time.

mod backup;
mod drill;
mod page;
mod registry;
mod store;
mod stream;
mod wal;

pub use drill::LastDrill;
pub use page::document;
pub use wal::WalObject;

use crate::error::{Error, Kind, Result};
use prometheus::{GaugeVec, Registry, TextEncoder};
use registry::Builder;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

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
    stream: stream::Stream,
    wal: wal::Wal,
    store: store::Store,
    backup: backup::Backup,
    drill: drill::Drill,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({})", self.0.definitions.len())
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
        show_version(&mut build)?;
        let inner = Inner {
            stream: stream::Stream::register(&mut build)?,
            wal: wal::Wal::register(&mut build)?,
            store: store::Store::register(&mut build)?,
            backup: backup::Backup::register(&mut build)?,
            drill: drill::Drill::register(&mut build)?,
            registry: build.registry,
            definitions: build.definitions,
        };
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
}

fn show_version(build: &mut Builder) -> Result<()> {
    let info: GaugeVec =
        build.gauges("seawall_build_info", &["version"], "Always 1; the label says which version this is.")?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Lsn;
    use jiff::Timestamp;
    use std::time::Duration;

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
}
