//! The newest moment that can be restored: what the last record says that has a date, or a heartbeat behind it. Uses `history`,
//! `repository`, `wal`.

use super::route::Route;
use crate::error::Result;
use crate::history::index::{Indexes, time_of};
use crate::repository::{Catalog, RecordSink, WalReader, WalWalk};
use crate::wal::{Lsn, Record, WalRange};
use jiff::Timestamp;
use std::ops::ControlFlow;

/// The latest date of records.
#[derive(Default)]
struct Latest(Option<Timestamp>);

impl RecordSink for Latest {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        self.0 = self.0.max(time_of(&record.kind));
        ControlFlow::Continue(())
    }
}

/// The newest moment that a restore along `route` can reach, of what is stored without a hole from `from` on: up to then everything
/// that the server committed is there. `None` if nothing with a date is stored, or can be read here.
///
/// # Errors
/// If the store fails, or what was listed cannot be read.
pub async fn newest_moment(
    reader: &WalReader,
    catalog: &Catalog,
    route: &Route,
    from: Lsn,
) -> Result<Option<Timestamp>> {
    let size = route.size;
    let end = route.covered(catalog, size.segment_start(from)).until;
    let heartbeats = catalog.heartbeats.iter().filter(|(_, timeline, flush)| {
        // At the switch point itself it may be that of a server which was cut off, idle, and lived on.
        let is_before = route.history.switch_from(*timeline).is_none_or(|switch| *flush < switch);
        route.history.passes(*timeline) && is_before && (from..=end).contains(flush)
    });
    let heartbeat = heartbeats.map(|(time, ..)| *time).max();
    let recorded = match last_date(reader, &Indexes::new(catalog.records.clone()), route, (from, end)).await {
        Err(error) if WalReader::is_sealed_from_us(&error) => None,
        recorded => recorded?,
    };
    Ok(recorded.max(heartbeat))
}

/// The latest date of a record in the last blocks that have one.
async fn last_date(
    reader: &WalReader,
    indexes: &Indexes,
    route: &Route,
    (from, end): (Lsn, Lsn),
) -> Result<Option<Timestamp>> {
    let size = route.size;
    let mut behind = end;
    while behind > from {
        let start = size.block_start(Lsn(behind.0 - 1));
        let timeline = route.owner(size.segment_start(start));
        if let Some(range) = indexes.at(timeline, start)
            && let Ok(outlines) = indexes.load(reader, range).await
        {
            let known = outlines.iter().filter(|outline| outline.end <= end);
            if let Some(dated) = known.filter_map(|outline| outline.dated).max() {
                return Ok(Some(dated));
            }
            behind = range.start.min(start);
            continue;
        }
        let walk = WalWalk::new(size, start, Latest::default());
        let walk = walk.read(reader, vec![WalRange { timeline, start, end: behind }]).await?;
        if let Latest(Some(dated)) = walk.sink {
            return Ok(Some(dated));
        }
        behind = start;
    }
    Ok(None)
}
