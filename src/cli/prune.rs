//! What `seawall prune` and `seawall keep` are told.

use super::JsonArg;
use clap::Args;

pub(super) const PRUNE_EXAMPLES: &str = "  seawall prune --config /etc/seawall.toml --dry-run
  seawall prune --config /etc/seawall.toml
  seawall prune --config /etc/seawall.toml --json

What is kept is said under [retention] in the file; without a rule there only garbage goes. Needs
the right to delete, which the archiver does not need, and neither the server nor a private key.
Ends with 10 if what was planned no longer held when it was done: run it again.";

pub(super) const KEEP_EXAMPLES: &str =
    "  seawall keep 20261120T140300Z --reason 'before the upgrade' --repo s3://backups/shop
  seawall keep 20261120T140300Z --reason 'audit' --until '2036-12-31 00:00 UTC' --repo s3://b/shop
  seawall keep --remove 20261120T140300Z --repo s3://backups/shop

The backup, and what it builds on, stays with the WAL that makes it consistent; `list` shows it.";

/// `seawall prune`
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Say what goes and what stays, and why, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall keep`
#[derive(Args, Debug)]
pub struct KeepArgs {
    /// The base backup, as `seawall list` names it
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Why, for whoever wonders in a year
    #[arg(long, value_name = "TEXT", required_unless_present = "remove")]
    pub reason: Option<String>,
    /// Until then: "2027-12-31 00:00 UTC"; without it until the mark is taken away
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Take the mark away
    #[arg(long, conflicts_with_all = ["reason", "until"])]
    pub remove: bool,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}
