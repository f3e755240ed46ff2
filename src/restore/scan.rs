//! Reads the WAL between a backup and a target to find out what its records say. Uses `repository`, `wal`, `runtime`.

use super::route::Route;
use super::survey::{Goal, Survey, Surveyor};
use crate::error::{Error, Kind, Result};
use crate::repository::{WalReader, Window};
use crate::runtime;
use crate::wal::{Lsn, RecordWalker, WalRange};
use futures_util::{StreamExt, stream};

/// Blocks fetched ahead: each is up to 16 MiB of memory, and as much again while it is decompressed.
const FETCHES: usize = 4;

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
    // Not from the record on: its page's header says which version wrote it.
    let start = size.segment_start(stretch.from);
    let blocks = stretch.route.files(start, stretch.until).into_iter().flat_map(move |range| {
        let starts = std::iter::successors(Some(range.start), move |at| Some(size.block_end(*at)));
        let blocks = starts.take_while(move |at| *at < range.end);
        blocks.map(move |at| WalRange { start: at, end: size.block_end(at).min(range.end), ..range })
    });
    let mut fetched =
        stream::iter(blocks).map(|range| async move { (range, reader.read_range(range).await) }).buffered(FETCHES);
    let mut walk = Walk {
        walker: RecordWalker::new(size, start),
        surveyor: Surveyor::new(goal, stretch.from, stretch.consistent),
        is_over: false,
        unreadable: None,
    };
    while !walk.is_over
        && let Some((range, window)) = fetched.next().await
    {
        let window = window?;
        if window.end < range.end {
            return Err(Error::new(Kind::Damaged, format!("WAL from {} on was listed and is gone", window.end))
                .hint("Does something other than Seawall delete below open/ or wal/?"));
        }
        walk = runtime::blocking(move || walk.step(range.start, &window)).await?;
    }
    let (end, read) = (walk.walker.next_record_lsn(), walk.walker.position());
    Ok(walk.surveyor.finish(end, read, walk.unreadable))
}

struct Walk {
    walker: RecordWalker,
    surveyor: Surveyor,
    is_over: bool,
    unreadable: Option<String>,
}

impl Walk {
    fn step(mut self, mut position: Lsn, window: &Window) -> Walk {
        for piece in &window.pieces {
            let (surveyor, is_over) = (&mut self.surveyor, &mut self.is_over);
            let mut see = |record| *is_over = *is_over || surveyor.see(&record).is_break();
            if let Err(error) = self.walker.push(position, piece, &mut see) {
                self.unreadable = (!*is_over).then(|| error.to_string());
                self.is_over = true;
            }
            position = position + piece.len() as u64;
        }
        self
    }
}
