//! Whether somebody has finished a base backup, as the WAL tells it: then, and not every hour, it is worth a listing.
//!
//! A base backup of a primary ends with a record that says so and with a switch to the next segment (`xlogbackup.c` and
//! `xlog.c`, `do_pg_backup_stop`). Only the block in which a segment was left early is looked through, so a stream without
//! switches costs nothing. One of a standby leaves nothing in the WAL.

use crate::error::Result;
use crate::repository::Piece;
use crate::wal::{Lsn, RecordKind, RecordWalker, SegmentSize};

/// A page of WAL, and its short header (`xlog_internal.h`, `XLOG_BLCKSZ`, `SizeOfXLogShortPHD`).
const PAGE_BYTES: usize = 8192;
const PAGE_HEADER_BYTES: usize = 24;

/// False if `block`, in pieces of whole pages, has no end of a base backup in it, because its segment went on. Costs nothing.
///
/// # Errors
/// As [`Piece::bytes`]. Only the last piece is looked at, which is as it came while its block was not full.
pub(super) fn may_be_in(block: &[Piece]) -> Result<bool> {
    let page = |last: &Piece| Some(last.slice(last.len().checked_sub(PAGE_BYTES - PAGE_HEADER_BYTES)?..last.len()));
    let page = block.last().and_then(page).map(|page| page.bytes()).transpose()?;
    Ok(page.is_some_and(|page| page.iter().all(|byte| *byte == 0)))
}

/// True if `block`, which begins at `start`, has the end of a base backup in it. CPU work.
///
/// # Errors
/// As [`Piece::bytes`].
pub(super) fn is_in(block: &[Piece], start: Lsn, size: SegmentSize) -> Result<bool> {
    let (mut walker, mut position, mut found) = (RecordWalker::new(size, start), start, false);
    for piece in block {
        // What cannot be read as WAL has no records, and archiving does not depend on them.
        let _ = walker.push(position, &piece.bytes()?, &mut |record| {
            found |= matches!(record.kind, RecordKind::BackupEnd { .. })
        });
        position = position + piece.len() as u64;
    }
    Ok(found)
}
