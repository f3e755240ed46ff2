//! From a repository into a data directory, and WAL to the server that recovers there. May use `repository` and all that
//! it may; never `postgres`: the source need not be alive.
//!
//! ```text
//! Request ─► choose ─► candidates ─► scan: survey of the WAL ─► plan, or a refusal that says what can be reached
//! Plan ─► destination, checked ─► execute: parts ─► files, checked ─► settings ─► pg_control last
//!                                     levels: parts of what an incremental backup builds on ─► blocks
//! restore_command ─► wal_fetch: segments from blocks and tails          archive_command ─► wal_push
//! ```

pub mod ahead;
mod blocks;
mod choose;
mod combine;
mod command;
mod database;
mod delta;
mod destination;
mod duration;
mod excerpt;
mod execute;
mod file_writer;
mod ground;
mod label;
mod levels;
mod local_wal;
mod newest;
mod number_set;
mod older;
mod part;
mod pin;
mod plan;
#[cfg(test)]
mod plan_tests;
mod preparation;
mod refusal;
mod request;
mod room;
mod route;
mod scan;
#[cfg(test)]
mod scan_tests;
mod selection;
mod served;
mod settings;
mod spool;
mod stored;
mod superuser;
mod survey;
#[cfg(test)]
pub(crate) mod testing;
mod tree;
mod verify;
pub mod wal_fetch;
pub mod wal_push;

pub use command::{FetchCommand, PASSPHRASE_VARIABLE};
pub use database::Database;
pub use destination::{Destination, MARKER_FILE, Owner, TablespaceDestination};
pub use duration::ExpectedDuration;
pub use execute::{Phase, RestoreOptions, RestoreProgress, RestoreReport, execute};
pub use ground::Ground;
pub use local_wal::{FIRST_BYTES, LocalWal, is_local};
pub use newest::newest_moment;
pub use pin::{PIN_FILE, Pin, PinnedTimeline};
pub use plan::{NewTablespacePath, PathStep, Plan, PlannedBackup, Stop, certainly_from};
pub use preparation::{Preview, preview};
pub use request::{Request, Target, TargetAction};
pub use route::{Covered, Route};
pub use scan::{Stretch, survey};
pub use spool::SPOOL_DIRECTORY;
pub use superuser::superuser;
pub use survey::{Found, Goal, NewTablespace, Survey};
pub use wal_fetch::{Fetched, fetch};
pub use wal_push::{Pushed, push};

use crate::error::Result;
use crate::history::index::Indexes;
use crate::repository::{Catalog, WalReader};
use choose::Choice;
use jiff::Timestamp;
use plan::Verdict;

/// The part of [`plan()`] that reads nothing: whether there is a path, a base backup on it, and all the WAL that they need.
///
/// # Errors
/// As [`plan()`].
pub fn check(cluster: &str, catalog: &Catalog, request: &Request, now: Timestamp) -> Result<()> {
    Choice::new(cluster, catalog, request, now)?.candidates().map(|_| ())
}

/// Plans a restore: reads WAL, writes nothing.
///
/// # Errors
/// [`crate::error::Kind::Refused`] if the target cannot be reached, with what can be instead; otherwise what the store
/// says, or what is wrong with what is stored.
pub async fn plan(reader: &WalReader, catalog: &Catalog, request: &Request, now: Timestamp) -> Result<Plan> {
    let cluster = reader.repository().layout.cluster();
    let choice = Choice::new(cluster, catalog, request, now)?;
    let candidates = choice.candidates()?;
    let indexes = Indexes::new(catalog.records.clone());
    let mut certain_from = None;
    for candidate in &candidates {
        let (goal, until) = plan::goal(&choice, candidate);
        let stretch = Stretch {
            route: choice.route.clone(),
            from: candidate.backup.start_lsn,
            consistent: candidate.backup.end_lsn,
            until,
        };
        let survey = survey(reader, &indexes, &stretch, goal).await?;
        if let Verdict::Planned(mut plan) = plan::conclude(&choice, candidate, &survey)? {
            if let Stop::After(last) = plan.stop {
                plan.first_lost = scan::first_commit(reader, &choice.route, last, candidate.covered.until).await;
            }
            return Ok(*plan);
        }
        certain_from = Some(plan::certain_from(candidate, &survey));
    }
    Err(refusal::none_reaches(&choice, &candidates, certain_from))
}
