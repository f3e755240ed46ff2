//! `docs/metrics.md`, from the definitions.

use super::{Definition, Metrics};
use crate::error::Result;
use std::fmt::Write as _;

/// `docs/metrics.md`.
///
/// # Errors
/// As [`Metrics::new`].
pub fn document() -> Result<String> {
    let mut text = "# Metrics\n\n\
        `seawall run` serves these at `/metrics` (default: `http://127.0.0.1:8432/metrics`), beside `/healthz` (200 \
        while the process lives) and `/readyz` (200 while it archives, else 503 with the reason). Where one process archives several \
        clusters, `/readyz` is of all of them, and `/readyz/NAME` and `/healthz/NAME` of one.\n\n\
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
         `grafana/rules/seawall.yaml` has the rules for Prometheus, and [alerts](alerts.md) says of each what to do. Dashboards \
         are in `grafana/dashboards/`. In the metrics of jobs the label is `task` and not `job`, which Prometheus keeps for \
         itself.\n\n\
         What the requests cost is a matter of your prices, so it is no metric: the rules record \
         `seawall:store_requests_bill:usd_per_day` and `seawall:repository_bill:usd_per_month` from \
         `seawall_store_operations_total` and `seawall_repository_bytes`, with the prices of [costs](costs.md), to be changed \
         there.\n",
    );
    Ok(text)
}
