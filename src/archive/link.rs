//! Where the stream goes on exactly at the end of what is stored, nothing comes again that could be compared. Then the
//! records themselves are the proof: the first one must link back to the last one stored.

use crate::error::{Error, Kind, Result};
use crate::repository::WalReader;
use crate::wal::{Lsn, RecordWalker, TimelineId, WalRange};

/// A walk over the end of what is stored that goes on in what comes. Nothing is acknowledged before it has crossed.
pub(super) struct Link {
    walker: RecordWalker,
    border: Lsn,
}

impl Link {
    /// Walks the stored block before `border`. `None` if its records cannot be read (a version that this Seawall does
    /// not know, or it is encrypted for others): archiving does not depend on reading records.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn from_stored(reader: &WalReader, timeline: TimelineId, border: Lsn) -> Result<Option<Link>> {
        let size = reader.repository().layout.segment_size();
        let start = size.block_start(Lsn(border.0.saturating_sub(1)));
        let window = match reader.read_range(WalRange { timeline, start, end: border }).await {
            Ok(window) => window,
            Err(error) if WalReader::is_sealed_from_us(&error) => {
                tracing::warn!(
                    %timeline, %border,
                    "the server goes on exactly where what is stored ends, and this archiver has no key to prove by its \
                     records that the two belong together: what speaks for it is the server's identity and history"
                );
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut walker = RecordWalker::new(size, start);
        let mut position = start;
        for piece in &window.pieces {
            if walker.push(position, piece, &mut |_| {}).is_err() {
                return Ok(None);
            }
            position = position + piece.len() as u64;
        }
        let is_readable = position == border && walker.end_of_wal().is_none();
        Ok(is_readable.then_some(Link { walker, border }))
    }

    /// Takes what comes. True once a record behind the border was read, linked to the one before.
    ///
    /// # Errors
    /// [`Kind::Diverged`] if what comes does not go on from what is stored.
    pub(super) fn crosses(&mut self, start: Lsn, bytes: &[u8]) -> Result<bool> {
        let (border, mut crossed) = (self.border, false);
        let walked = self.walker.push(start, bytes, &mut |record| crossed |= record.end > border);
        match walked {
            // A stream has no end of WAL in it: zeros where a record should begin are no continuation of anything.
            Ok(()) if self.walker.end_of_wal().is_some() && !crossed => Err(self.broken()),
            Ok(()) => Ok(crossed),
            Err(error) => Err(self.broken().because(error)),
        }
    }

    fn broken(&self) -> Error {
        let border = self.border;
        Error::new(Kind::Diverged, format!("the server's WAL from {border} on does not follow what is stored before it"))
            .hint(
                "Nothing was stored and nothing acknowledged. Was the server rolled back to a snapshot, made anew from a \
                 backup, or reset (pg_resetwal)? Give a cluster that went its own way another --cluster name, and take a \
                 new base backup.",
            )
    }
}
