//! Every metric in one place, a file for each subject: name, meaning and setter; `docs/metrics.md` comes from here. Uses
//! `wal` and `error`.
//!
//! A handle is cheap to clone and owns its registry with the others: two archivers in one process do not mix. All
//! carry the label `cluster`. Units are seconds, bytes and Unix time.

mod backup;
mod drill;
mod jobs;
mod notify;
mod page;
mod prune;
mod registry;
mod repository;
mod store;
mod stream;
mod wal;

pub use drill::LastDrill;
pub use jobs::Job;
pub use page::document;
pub use stream::DurableLatency;
pub use wal::WalObject;

use crate::error::{Error, Kind, Result};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Registry, TextEncoder};
use registry::Builder;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
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
    jobs: jobs::Jobs,
    prune: prune::Prune,
    notify: notify::Notify,
    repository: repository::Repository,
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
            jobs: jobs::Jobs::register(&mut build)?,
            prune: prune::Prune::register(&mut build)?,
            notify: notify::Notify::register(&mut build)?,
            repository: repository::Repository::register(&mut build)?,
            registry: build.registry,
            definitions: build.definitions,
        };
        Ok(Metrics(Arc::new(inner)))
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// As [`render`].
    pub fn render(&self) -> Result<String> {
        render([self])
    }

    /// What there is, in the order of the documentation.
    pub fn definitions(&self) -> &[Definition] {
        &self.0.definitions
    }
}

/// What Prometheus scrapes of several clusters at once (exposition format 0.0.4): each metric with the samples of all of
/// them. Waits for nothing, and takes no lock for longer than a number is read.
///
/// # Errors
/// Of kind `Internal`, if a metric cannot be written.
pub fn render<'a>(clusters: impl IntoIterator<Item = &'a Metrics>) -> Result<String> {
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for mut family in clusters.into_iter().flat_map(|metrics| metrics.0.registry.gather()) {
        match families.entry(family.name().to_owned()) {
            Entry::Vacant(place) => _ = place.insert(family),
            Entry::Occupied(mut all) => all.get_mut().mut_metric().extend(family.take_metric()),
        }
    }
    let families: Vec<MetricFamily> = families.into_values().collect();
    TextEncoder::new()
        .encode_to_string(&families)
        .map_err(|error| Error::new(Kind::Internal, "cannot write the metrics").because(error))
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
    use tokio::time::Instant;

    #[test]
    fn positions_and_counts_are_scraped_with_the_cluster() {
        let metrics = Metrics::new("shop").expect("metrics");
        metrics.set_durable_lsn(Lsn(0x16_B374_D848));
        metrics.set_rpo(1.5, 42);
        metrics.store_operation("create", 0.02, 5000, Some("throttled"));
        metrics.count_wal_objects(WalObject::Tail, 1);
        metrics.set_last_backup(Timestamp::UNIX_EPOCH, 7, 5, Duration::from_secs(3));
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
    fn a_hundred_clusters_are_one_text_that_grows_with_their_number_alone() {
        // Given a hundred clusters that show what one shows
        let clusters: Vec<Metrics> =
            (0..100).map(|number| Metrics::new(&format!("cluster-{number:03}")).expect("metrics")).collect();
        // When they are scraped together
        let (one, all) = (clusters[0].render().expect("text"), render(&clusters).expect("text"));
        // Then each metric is said once, and has a hundred times the samples: nothing is done for pairs
        let count = |text: &str, comment: bool| text.lines().filter(|line| line.starts_with('#') == comment).count();
        assert_eq!(count(&all, true), count(&one, true));
        assert_eq!(count(&all, false), 100 * count(&one, false));
        assert!(all.len() < 100 * one.len(), "{} bytes of {}", all.len(), one.len());
    }

    #[test]
    fn a_hundred_clusters_take_about_ten_times_as_long_as_ten() {
        let clusters: Vec<Metrics> =
            (0..100).map(|number| Metrics::new(&format!("cluster-{number:03}")).expect("metrics")).collect();
        // Of several, for a machine may be busy with something else
        let quickest = |count: usize| {
            let times = (0..5).map(|_| {
                let begun = Instant::now();
                render(&clusters[..count]).expect("text");
                begun.elapsed()
            });
            times.min().unwrap_or_default()
        };
        let (ten, hundred) = (quickest(10), quickest(100));
        println!("10 clusters: {ten:?}, 100 clusters: {hundred:?}");
        assert!(
            hundred < 40 * ten,
            "{hundred:?} for a hundred, {ten:?} for ten: were it by pairs, it would be a hundred times"
        );
    }
}
