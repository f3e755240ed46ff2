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
