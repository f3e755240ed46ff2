//! Which stored WAL tells what happened between two moments, and the walk along it.

use super::chronicle::Chronicle;
use crate::error::Result;
use crate::repository::{Catalog, WalReader, WalWalk};
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use jiff::Timestamp;

/// A moment, as one is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// By the server's clock.
    Time(Timestamp),
    /// By position.
    Lsn(Lsn),
}

/// WAL of which nothing is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hole {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The first byte that is told of again.
    pub end: Lsn,
    /// Why its records could not be read; `None` if it is not stored.
    pub unreadable: Option<String>,
}

/// How a walk went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Walked {
    /// Where it began; `None` if nothing is stored.
    pub start: Option<Lsn>,
    /// Behind the last whole record.
    pub end: Option<Lsn>,
    /// What it could not tell.
    pub holes: Vec<Hole>,
}

/// Where to begin for what was committed from `from` on: a good while before, so that most transactions are seen from
/// their first record.
fn begin(catalog: &Catalog, history: &History, from: Bound) -> Lsn {
    let mut backups =
        catalog.finished_backups().filter(|backup| backup.is_on_path(history)).filter(|backup| match from {
            Bound::Time(time) => backup.started_at <= time,
            Bound::Lsn(lsn) => backup.start_lsn <= lsn,
        });
    let newest = backups.by_ref().map(|backup| backup.start_lsn).max();
    newest.unwrap_or_default()
}

/// Stretches of files that are stored without a hole, each from the first byte of a segment.
fn stretches(catalog: &Catalog, history: &History, size: SegmentSize, start: Lsn) -> Vec<Vec<WalRange>> {
    let mut stretches: Vec<Vec<WalRange>> = Vec::new();
    for file in history.files(size.segment_start(start), Lsn(u64::MAX), size) {
        let Some(coverage) = catalog.coverage.get(&file.timeline) else { continue };
        for run in coverage.runs() {
            let (start, end) = (run.start.max(file.start), run.end.min(file.end));
            let follows = stretches.last().and_then(|files| files.last()).is_some_and(|last| last.end == start);
            let start = match size.offset(start) {
                0 => start,
                _ if follows => start,
                _ => size.segment_start(start) + size.bytes(),
            };
            let range = WalRange { timeline: file.timeline, start, end };
            match stretches.last_mut().filter(|_| follows) {
                _ if start >= end => {}
                Some(files) => files.push(range),
                None => stretches.push(vec![range]),
            }
        }
    }
    stretches
}

/// Shows `chronicle` the stored records along `history`, from before `from` on, until it has had enough.
///
/// # Errors
/// If the store fails, or what was listed cannot be read.
pub async fn walk(
    reader: &WalReader,
    catalog: &Catalog,
    history: &History,
    from: Bound,
    mut chronicle: Chronicle,
) -> Result<Walked> {
    let size = reader.repository().layout.segment_size();
    let mut walked = Walked::default();
    for files in stretches(catalog, history, size, begin(catalog, history, from)) {
        let Some((first, last)) = files.first().copied().zip(files.last().copied()) else { continue };
        if let Some(end) = walked.end.filter(|end| *end < first.start) {
            let unreadable = None;
            walked.holes.push(Hole { timeline: first.timeline, start: end, end: first.start, unreadable });
            chronicle.skip();
        }
        walked.start.get_or_insert(first.start);
        let walk = WalWalk::new(size, first.start, chronicle).with_details().read(reader, files).await?;
        walked.end = Some(walk.walker.next_record_lsn());
        chronicle = walk.sink;
        if let Some(why) = walk.unreadable {
            let (timeline, start) = (last.timeline, walk.walker.next_record_lsn());
            walked.holes.push(Hole { timeline, start, end: last.end, unreadable: Some(why) });
            walked.end = Some(last.end);
            chronicle.skip();
        }
        if chronicle.is_over {
            break;
        }
    }
    Ok(walked)
}
