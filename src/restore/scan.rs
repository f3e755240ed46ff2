//! Reads the WAL between a backup and a target to find out what its records say. Uses `repository`, `wal`.

use super::route::Route;
use super::survey::{Goal, Survey, Surveyor};
use crate::error::Result;
use crate::repository::{RecordSink, WalReader, WalWalk};
use crate::wal::{Lsn, Record};
use std::ops::ControlFlow;

/// What to survey.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The files to read.
    pub route: Route,
    /// The first record that is replayed.
    pub from: Lsn,
    /// Where the backup is consistent.
    pub consistent: Lsn,
    /// Read no further; must be stored.
    pub until: Lsn,
}

/// Walks the records of `stretch` and says what they mean for a restore that looks for `goal`.
///
/// # Errors
/// If the store fails, or what was listed cannot be read. Records that make no sense are not an error: see
/// [`Survey::unreadable`].
pub async fn survey(reader: &WalReader, stretch: &Stretch, goal: Goal) -> Result<Survey> {
    let size = stretch.route.size;
    let start = size.segment_start(stretch.from);
    let surveyor = Surveyor::new(goal, stretch.from, stretch.consistent);
    let walk = WalWalk::new(size, start, surveyor).read(reader, stretch.route.files(start, stretch.until)).await?;
    let (end, read) = (walk.walker.next_record_lsn(), walk.walker.position());
    Ok(walk.sink.finish(end, read, walk.unreadable))
}

impl RecordSink for Surveyor {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        Surveyor::see(self, record)
    }
}
