//! The newest moment that can be restored: what the last record says that has a date, or a heartbeat behind it. Uses `history`,
//! `repository`, `wal`.

use super::route::Route;
use crate::error::{Kind, Result};
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

/// The newest moment that a restore along `route` can reach, whose files are stored without a hole from the first position to the second: up
/// to then everything that the server committed is there. `None` if nothing with a date is stored, or can be read.
///
/// # Errors
/// If the store fails.
pub async fn newest_moment(
    reader: &WalReader,
    catalog: &Catalog,
    route: &Route,
    (from, end): (Lsn, Lsn),
) -> Result<Option<Timestamp>> {
    let recorded = match last_date(reader, &Indexes::new(catalog.records.clone()), route, (from, end)).await {
        Err(error) if error.kind() == Kind::Store => return Err(error),
        Err(error) if WalReader::is_sealed_from_us(&error) => None,
        // Whoever asks wants to know what there is, now more than ever; `verify` says what is wrong with it.
        Err(error) => {
            tracing::warn!(%error, "the newest WAL cannot be read");
            None
        }
        Ok(recorded) => recorded,
    };
    Ok(recorded.max(route.last_heartbeat(catalog, from, end)))
}

/// The latest date of a record in the last blocks that have one.
async fn last_date(
    reader: &WalReader,
    indexes: &Indexes,
    route: &Route,
    (from, end): (Lsn, Lsn),
) -> Result<Option<Timestamp>> {
    let size = route.size;
    for file in route.files(size.segment_start(from), end).into_iter().rev() {
        let mut behind = file.end;
        while behind > file.start {
            let start = size.block_start(Lsn(behind.0 - 1)).max(file.start);
            let known = indexes.best_at(reader, file.timeline, start).await.map(|(_, outlines)| outlines);
            let mut known = known.unwrap_or_default();
            known.retain(|outline| outline.start >= file.start && outline.end <= behind);
            let dated = match known.last().filter(|last| last.end == behind) {
                Some(_) => {
                    behind = known.first().map_or(start, |first| first.start);
                    known.iter().filter_map(|outline| outline.dated).max()
                }
                None => {
                    let walk = WalWalk::new(size, start, Latest::default());
                    let walk = walk.read(reader, vec![WalRange { start, end: behind, ..file }]).await?;
                    behind = start;
                    walk.sink.0
                }
            };
            if dated.is_some() {
                return Ok(dated);
            }
        }
    }
    Ok(None)
}
