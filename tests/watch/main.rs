//! What watches the archiver, with the programs that do it: the alert rules, the dashboards, and Prometheus between them and a
//! real `seawall run`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod dashboards;
mod figures;
mod prometheus;
mod real_run;

use seawall::metrics::Metrics;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of the checkout.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    let path = file(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

#[test]
fn what_many_clusters_show_together_is_one_text_as_prometheus_wants_it() {
    let clusters = ["a", "b", "c"].map(|cluster| Metrics::new(cluster).unwrap());
    let text = seawall::metrics::render(&clusters).unwrap();
    prometheus::promtool(&["check", "metrics"], &text).unwrap_or_else(|said| panic!("{said}"));
    // Each by itself, one behind the other, is what it refuses.
    let apart: String = clusters.iter().map(|cluster| cluster.render().unwrap()).collect();
    prometheus::promtool(&["check", "metrics"], &apart).expect_err("two TYPE lines of one metric");
}

/// Every metric of ours that an expression names is one that we have; what recording rules make has a colon.
fn assert_metrics_exist(place: &str, expression: &str) {
    let metrics = Metrics::new("main").unwrap();
    let known: BTreeSet<&str> = metrics.definitions().iter().map(|definition| definition.name).collect();
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    for name in expression.split(|letter| !is_part(letter)).filter(|word| word.starts_with("seawall_")) {
        let is_known = known.contains(name) || name.strip_suffix("_bucket").is_some_and(|name| known.contains(name));
        assert!(is_known, "{place}: there is no metric {name}");
    }
}
