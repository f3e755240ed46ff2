//! Walks the records of stored WAL, several blocks fetched ahead.

use super::reader::{WalReader, Window};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::wal::{Lsn, Record, RecordWalker, SegmentSize, WalRange};
use futures_util::{StreamExt, stream};
use std::ops::ControlFlow;

/// Blocks fetched ahead: each is up to 16 MiB of memory, and as much again while it is decompressed.
const FETCHES: usize = 4;

/// What looks at records.
pub trait RecordSink: Send + 'static {
    /// Looks at the next one; breaks when no other can matter.
    fn see(&mut self, record: &Record) -> ControlFlow<()>;
}

/// A walk over stored records.
pub struct WalWalk<S> {
    /// Who looks.
    pub sink: S,
    /// Where it is.
    pub walker: RecordWalker,
    /// Why what follows cannot be read. No error by itself: whoever needs no more does not care.
    pub unreadable: Option<String>,
    size: SegmentSize,
    is_over: bool,
}

impl<S: RecordSink> WalWalk<S> {
    /// A walk from `start`, the first byte of a segment: a page's header says which version wrote it.
    pub fn new(size: SegmentSize, start: Lsn, sink: S) -> WalWalk<S> {
        WalWalk { sink, walker: RecordWalker::new(size, start), unreadable: None, size, is_over: false }
    }

    /// Goes on at `start`, the first byte of a page or where it is: for whoever knows what lies between. If a record begins there,
    /// `previous` is where the one before begins.
    #[must_use]
    pub fn go_to(self, start: Lsn, previous: Option<Lsn>) -> WalWalk<S> {
        if self.walker.position() == start {
            return self;
        }
        let mut walker = RecordWalker::new(self.size, start);
        if let Some(previous) = previous {
            walker = walker.behind(previous);
        }
        WalWalk { walker, ..self }
    }

    /// True if no other record can matter, or can be read.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The same, with records that say what they are about ([`RecordWalker::with_details`]).
    pub fn with_details(self) -> WalWalk<S> {
        WalWalk { walker: self.walker.with_details(), ..self }
    }

    /// Walks on through `files`, which begin where it is, follow on one another and are stored. It is gone if this is
    /// dropped.
    ///
    /// # Errors
    /// If the store fails, or what was listed cannot be read. Records that make no sense are not an error: see
    /// [`WalWalk::unreadable`].
    pub async fn read(mut self, reader: &WalReader, files: Vec<WalRange>) -> Result<WalWalk<S>> {
        let size = reader.repository().layout.segment_size();
        let blocks = files.into_iter().flat_map(move |range| {
            let starts = std::iter::successors(Some(range.start), move |at| Some(size.block_end(*at)));
            let blocks = starts.take_while(move |at| *at < range.end);
            blocks.map(move |at| WalRange { start: at, end: size.block_end(at).min(range.end), ..range })
        });
        let mut fetched =
            stream::iter(blocks).map(|range| async move { (range, reader.read_range(range).await) }).buffered(FETCHES);
        while !self.is_over
            && let Some((range, window)) = fetched.next().await
        {
            let window = window?;
            if window.end < range.end {
                return Err(Error::new(Kind::Damaged, format!("WAL from {} on was listed and is gone", window.end))
                    .hint("Does something other than Seawall delete below open/ or wal/?"));
            }
            self = runtime::blocking(move || self.step(range.start, &window)).await?;
        }
        Ok(self)
    }

    fn step(mut self, mut position: Lsn, window: &Window) -> WalWalk<S> {
        for piece in &window.pieces {
            let (sink, is_over) = (&mut self.sink, &mut self.is_over);
            let mut see = |record: Record| *is_over = *is_over || sink.see(&record).is_break();
            if let Err(error) = self.walker.push(position, piece, &mut see) {
                self.unreadable = (!*is_over).then(|| error.to_string());
                self.is_over = true;
            }
            position = position + piece.len() as u64;
        }
        self
    }
}
