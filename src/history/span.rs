//! Which stored WAL tells what happened between two moments, and the walk along it.

use super::chronicle::Chronicle;
use super::index::Indexes;
use super::search::{Bound, Search, Wanted};
use crate::error::Result;
use crate::repository::{Catalog, WalReader, WalWalk};
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};

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

/// Of WAL less than one byte in so many is a page's header (`XLogPageHeaderData` in `xlog_internal.h`).
const PAGE_SHARE: u64 = 256;

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

/// Shows `chronicle` the stored records along `history` that matter for `search`, in order, with some that lie before, until it has
/// had enough.
///
/// # Errors
/// If the store fails, or what was listed cannot be read.
pub async fn walk(
    reader: &WalReader,
    catalog: &Catalog,
    history: &History,
    search: Search,
    chronicle: Chronicle,
) -> Result<Walked> {
    let mut chronicle = chronicle.for_search(&search);
    let size = reader.repository().layout.segment_size();
    let indexes = Indexes::new(catalog.records.clone());
    let mut walked = Walked::default();
    for files in stretches(catalog, history, size, begin(catalog, history, search.from)) {
        let Some((first, last)) = files.first().copied().zip(files.last().copied()) else { continue };
        if let Some(end) = walked.end.filter(|end| *end < first.start) {
            let unreadable = None;
            walked.holes.push(Hole { timeline: first.timeline, start: end, end: first.start, unreadable });
        }
        walked.start.get_or_insert(first.start);
        walked.end = Some(last.end);
        for mut wanted in search.stretches(reader, &indexes, &files).await {
            // One that can be read to its end, while the wider one cannot.
            let mut narrow: Option<Wanted> = None;
            let mut must_be_whole = true;
            loop {
                let is_all = wanted.start <= first.start || !must_be_whole;
                chronicle.begin(wanted.start, if is_all { None } else { Some(wanted.from) });
                let walk = WalWalk::new(size, wanted.start, chronicle).with_details();
                let mut walk = walk.read(reader, part(&files, wanted.start, wanted.end)).await?;
                // What removes a database says so before its commit.
                while walk.sink.has_open_removal() && !walk.is_over() && wanted.end < last.end {
                    let end = size.block_end(wanted.end).min(last.end);
                    walk = walk.read(reader, part(&files, wanted.end, end)).await?;
                    wanted.end = end;
                }
                let end = walk.walker.next_record_lsn();
                // A record in which it began, and which was not seen, may be longer than all that lies in front.
                let unseen = walk.walker.first_record().map_or(0, |record| record.bytes_min);
                let is_cut = unseen > 0 && wanted.start + unseen + unseen / PAGE_SHARE >= wanted.from;
                chronicle = walk.sink;
                if chronicle.is_over {
                    walked.end = Some(end);
                    return Ok(walked);
                }
                if let Some(narrow) = narrow.filter(|_| walk.unreadable.is_some() && end < wanted.from) {
                    wanted = Wanted { end: wanted.end, ..narrow };
                    must_be_whole = false;
                    continue;
                }
                if !is_all && (chronicle.lacks_beginning || is_cut) {
                    narrow = Some(wanted);
                    wanted = wanted.wider(first.start, size);
                    continue;
                }
                match walk.unreadable {
                    Some(why) => {
                        let (timeline, end_of_hole) = (last.timeline, wanted.end);
                        walked.holes.push(Hole { timeline, start: end, end: end_of_hole, unreadable: Some(why) });
                    }
                    None if wanted.end == last.end => walked.end = Some(end),
                    None => {}
                }
                break;
            }
        }
    }
    Ok(walked)
}

/// What lies between two positions of files that follow on one another.
fn part(files: &[WalRange], start: Lsn, end: Lsn) -> Vec<WalRange> {
    let cut = files.iter().map(|file| WalRange { start: file.start.max(start), end: file.end.min(end), ..*file });
    cut.filter(|range| range.start < range.end).collect()
}
