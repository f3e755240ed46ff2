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

    /// What is known of `range`, or is found by reading it: it was stored before this process was there, or came twice.
    async fn outlines(&self, range: WalRange) -> Result<Vec<Outline>> {
        if let Some(outlines) = contiguous(self.indexer.outlines(range), range) {
            return Ok(outlines);
        }
        let outlines = self.index.outline(range).await?;
        if outlines.is_none() {
            self.indexer.count_unstored();
        }
        Ok(outlines.unwrap_or_default())
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

/// The outlines that cover `range`; `None` if some are missing.
fn contiguous(outlines: BTreeMap<Lsn, Outline>, range: WalRange) -> Option<Vec<Outline>> {
    let outlines: Vec<Outline> = outlines.into_values().collect();
    let mut position = range.start;
    for outline in &outlines {
        if outline.start != position {
            return None;
        }
        position = outline.end;
    }
    (position == range.end).then_some(outlines)
}
