//! Keeps the index of records up to what is stored, beside the archiver: what fails here is told, and tried again later, and
//! archiving never waits for it.

use super::state::ArchiveState;
use crate::codec::Form;
use crate::error::{Error, Kind, Result};
use crate::history::index::{IndexWriter, Indexer, Indexes, Level, Outline};
use crate::repository::{Layout, Repository, Writer};
use crate::runtime::{Backoff, RetryPolicy, Shutdown};
use crate::store::Store;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks at how far the archive has come.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Stores what the indexer knows, once the WAL that it is about is stored.
pub struct IndexKeeper {
    index: IndexWriter,
    indexer: Indexer,
    at: Option<Position>,
}

/// The timeline, and up to where it has an index.
#[derive(Clone, Copy, Debug)]
struct Position {
    timeline: TimelineId,
    next: Lsn,
    /// All before it is stored.
    durable: Lsn,
}

impl IndexKeeper {
    /// Stores through `index` what `indexer` makes.
    pub fn new(index: IndexWriter, indexer: Indexer) -> IndexKeeper {
        IndexKeeper { index, indexer, at: None }
    }

    /// For a cluster that an archiver has found, or made.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(store: Arc<dyn Store>, cluster: &str, form: Form, indexer: Indexer) -> Result<IndexKeeper> {
        let found = Repository::read_cluster(store.as_ref(), cluster).await?;
        let found = found.ok_or_else(|| Error::new(Kind::Store, "cluster.json was there and is gone"))?;
        let size = SegmentSize::new(found.segment_bytes)
            .ok_or_else(|| Error::new(Kind::Damaged, "cluster.json names an impossible segment size"))?;
        let writer = Writer::new(store, Layout::new(cluster, size, form), found.system_identifier);
        Ok(IndexKeeper::new(IndexWriter::new(writer), indexer))
    }

    /// `timeline` is streamed from `start` on, and stored up to `durable`: stores what can be said of it.
    ///
    /// # Errors
    /// What the store says. May be called again.
    pub async fn advance_to(&mut self, timeline: TimelineId, start: Lsn, durable: Lsn) -> Result<()> {
        let size = self.index.size();
        let mut at = match self.at {
            Some(at) if at.timeline == timeline => Position { durable: durable.max(at.durable), ..at },
            before => {
                if let Some(before) = before {
                    self.end_timeline(before).await?;
                    self.at = None;
                }
                let stored = Indexes::read(self.index.repository(), timeline).await?;
                // Much may have been stored since the stream began.
                let here = Level::FIRST.slot_start(size, start.min(durable));
                let next = stored.end(timeline).filter(|end| *end <= durable).unwrap_or(here);
                Position { timeline, next, durable }
            }
        };
        self.at = Some(at);
        while Level::FIRST.slot_end(size, at.next) <= at.durable {
            let end = Level::FIRST.slot_end(size, at.next);
            let range = WalRange { timeline, start: at.next, end };
            let outlines = self.outlines(range).await?;
            self.index.store(timeline, outlines).await?;
            self.indexer.forget(timeline, end);
            at.next = end;
            self.at = Some(at);
            // Without one of the next level there are more to be read, and that is all.
            self.index.join(timeline, end).await?;
        }
        Ok(())
    }

    /// What is known of `range`, and what is found by reading the rest: it was stored before this process was there, came twice, or was
    /// more than the indexer could walk over.
    async fn outlines(&self, range: WalRange) -> Result<Vec<Outline>> {
        let mut outlines: Vec<Outline> = Vec::new();
        for next in joined(self.indexer.outlines(range), range) {
            match next {
                Stretch::Known(known) => outlines.extend(known),
                Stretch::Unknown(unknown) => {
                    let found = self.index.outline(unknown).await?;
                    if found.is_none() {
                        self.indexer.count_unstored();
                    }
                    // The last ones that can be told: what is in front of a hole is of no use.
                    let found = found.unwrap_or_default();
                    if found.first().is_none_or(|first| first.start != unknown.start) {
                        outlines.clear();
                    }
                    outlines.extend(found);
                }
            }
        }
        Ok(outlines)
    }

    /// The archive goes on with another timeline: what is known of this one is stored, if it is little.
    async fn end_timeline(&self, at: Position) -> Result<()> {
        let end = self.index.size().block_start(at.durable);
        let range = WalRange { timeline: at.timeline, start: at.next, end };
        if range.start < range.end {
            let outlines = self.outlines(range).await?;
            self.index.store(at.timeline, outlines).await?;
        }
        self.indexer.forget(at.timeline, Lsn(u64::MAX));
        Ok(())
    }
}

/// Follows an archiver until `shutdown`.
pub async fn keep_index(
    state: watch::Receiver<ArchiveState>,
    indexer: Indexer,
    open: impl AsyncFn() -> Result<IndexKeeper>,
    shutdown: Shutdown,
) {
    let mut keeper = None;
    let mut backoff = Backoff::new(RetryPolicy::RECONNECT);
    loop {
        let seen = {
            let state = state.borrow();
            let timeline = state.timeline.filter(|_| state.is_compared && state.durable.is_valid());
            timeline.map(|timeline| (timeline, state.stream_start, state.durable))
        };
        let advanced = match seen {
            Some(seen) => advance(&mut keeper, &open, seen).await,
            None => Ok(()),
        };
        let pause = match advanced {
            Ok(()) => {
                backoff.reset();
                LOOK_PAUSE
            }
            Err(error) => {
                indexer.count_unstored();
                let hint = error.hint_text().unwrap_or_default();
                tracing::warn!(%error, hint, "the index of records was not stored; archiving goes on without it");
                backoff.next_pause().max(LOOK_PAUSE)
            }
        };
        tokio::select! {
            () = shutdown.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn advance(
    keeper: &mut Option<IndexKeeper>,
    open: &impl AsyncFn() -> Result<IndexKeeper>,
    (timeline, start, durable): (TimelineId, Lsn, Lsn),
) -> Result<()> {
    let keeper = match keeper {
        Some(keeper) => keeper,
        None => keeper.insert(open().await?),
    };
    keeper.advance_to(timeline, start, durable).await
}

/// A part of a range.
#[derive(PartialEq, Debug)]
enum Stretch {
    Known(Vec<Outline>),
    Unknown(WalRange),
}

/// All of `range`, in order, of which `outlines` are known.
fn joined(outlines: BTreeMap<Lsn, Outline>, range: WalRange) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut position = range.start;
    let mut run = Vec::new();
    for outline in outlines.into_values().filter(|outline| range.start <= outline.start && outline.end <= range.end) {
        if outline.start > position {
            stretches.extend((!run.is_empty()).then(|| Stretch::Known(std::mem::take(&mut run))));
            stretches.push(Stretch::Unknown(WalRange { start: position, end: outline.start, ..range }));
        }
        position = outline.end;
        run.push(outline);
    }
    stretches.extend((!run.is_empty()).then_some(Stretch::Known(run)));
    stretches.extend((position < range.end).then_some(Stretch::Unknown(WalRange { start: position, ..range })));
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::index::Outliner;

    fn range(start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) }
    }

    fn outline(start: u64, end: u64) -> Outline {
        Outliner::new(Lsn(start), false).finish(Lsn(end), Lsn(end))
    }

    #[test]
    fn only_what_is_not_known_is_read() {
        let known = |blocks: &[u64]| blocks.iter().map(|at| (Lsn(*at), outline(*at, at + 10))).collect();
        let stretches = |blocks: &[u64]| joined(known(blocks), range(0, 50));
        let run = |blocks: &[u64]| Stretch::Known(blocks.iter().map(|at| outline(*at, at + 10)).collect());
        assert_eq!(stretches(&[]), [Stretch::Unknown(range(0, 50))]);
        assert_eq!(stretches(&[0, 10, 20, 30, 40]), [run(&[0, 10, 20, 30, 40])]);
        assert_eq!(
            stretches(&[10, 40]),
            [Stretch::Unknown(range(0, 10)), run(&[10]), Stretch::Unknown(range(20, 40)), run(&[40])]
        );
        assert_eq!(
            stretches(&[0, 20]),
            [run(&[0]), Stretch::Unknown(range(10, 20)), run(&[20]), Stretch::Unknown(range(30, 50))]
        );
    }
}
