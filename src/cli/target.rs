//! Which moment a command goes back to. Uses `wal`.

use crate::wal::Lsn;
use clap::Args;

/// To which moment, and from what.
#[derive(Args, Debug)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("target").multiple(false))]
pub struct TargetArgs {
    /// To this time: "2026-11-20 14:03:00+01:00", "2026-11-20 14:03 Europe/Berlin", "10 minutes ago"
    #[arg(long, value_name = "TIME", group = "target")]
    pub to: Option<String>,
    /// To this position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN", group = "target")]
    pub to_lsn: Option<Lsn>,
    /// To the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    pub to_xid: Option<u64>,
    /// To this restore point, made with pg_create_restore_point()
    #[arg(long, value_name = "NAME", group = "target")]
    pub to_name: Option<String>,
    /// To the end of what is stored; also what happens without a target
    #[arg(long, group = "target")]
    pub to_end: bool,
    /// To just before this relation was dropped, as schema.name or database.schema.name: the newest drop, with --to the newest up to
    /// then. Needs the names that are stored with base backups and by `seawall run`
    #[arg(long, value_name = "RELATION", conflicts_with_all = ["to_lsn", "to_xid", "to_name", "to_end", "to_exclusive"])]
    pub before_drop: Option<String>,
    /// Stop just before the target instead of just behind it
    #[arg(long, requires = "target", conflicts_with_all = ["to_name", "to_end"])]
    pub to_exclusive: bool,
    /// Start from this backup instead of the best one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Follow this timeline instead of the line that was archived last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeline: Option<u32>,
}

/// Where a restore ends, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The end of what is stored.
    End,
    /// A time, not read yet: that takes the local zone and the clock.
    Time(String),
    /// A position.
    Lsn(Lsn),
    /// A transaction.
    Xid(u64),
    /// A restore point.
    Name(String),
}

impl TargetArgs {
    /// The one target that was given, or the end.
    pub fn target(&self) -> Target {
        match (&self.to, self.to_lsn, self.to_xid, &self.to_name) {
            (Some(time), ..) => Target::Time(time.clone()),
            (_, Some(lsn), ..) => Target::Lsn(lsn),
            (_, _, Some(xid), _) => Target::Xid(xid),
            (_, _, _, Some(name)) => Target::Name(name.clone()),
            _ => Target::End,
        }
    }
}
