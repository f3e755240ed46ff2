//! The header of a WAL page (`xlog_internal.h`, `XLogPageHeaderData`).

use super::WalkError;
use super::main_data::{u16_at, u32_at, u64_at};
use crate::wal::{Lsn, SegmentSize};

/// Bytes in a page: PostgreSQL's `XLOG_BLCKSZ` unless it was built otherwise, which is refused.
pub const PAGE_BYTES: u64 = 8192;
/// The header of most pages.
pub(super) const SHORT_HEADER_BYTES: usize = 24;
/// The header of a segment's first page.
pub(super) const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTINUATION: u16 = 0x1;
const LONG_HEADER: u16 = 0x2;
const FIRST_IS_OVERWRITE: u16 = 0x8;
const ALL_FLAGS: u16 = 0xF;

/// The header of a page of WAL.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    /// The server's major version.
    pub(super) version: u8,
    pub(super) timeline: u32,
    /// The page begins with the rest of a record.
    pub(super) continuation: bool,
    /// The page begins with a new record instead of the rest of one that a crash had cut.
    pub(super) overwrite: bool,
    /// Bytes of the record that goes on here which are still to come.
    pub(super) remaining_bytes: u32,
}

/// What a page's first bytes are.
pub(super) enum Page {
    /// A header.
    Header(PageHeader),
    /// Nothing was written here yet: zeros, or a page from before the segment's file was recycled.
    Unwritten,
}

/// Bytes of the header, judged by its first [`SHORT_HEADER_BYTES`] or less.
pub(super) fn header_bytes(header: &[u8]) -> usize {
    match u16_at(header, 2) {
        Some(flags) if flags & LONG_HEADER != 0 => LONG_HEADER_BYTES,
        _ => SHORT_HEADER_BYTES,
    }
}

/// The major version whose pages begin with `magic` (`XLOG_PAGE_MAGIC` of each).
fn version(magic: u16) -> Option<u8> {
    match magic {
        0xD106 => Some(13),
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

impl Page {
    /// Reads the whole header of the page at `page`, and checks what `XLogReaderValidatePageHeader` checks.
    pub(super) fn read(header: &[u8], page: Lsn, size: SegmentSize) -> Result<Page, WalkError> {
        let bad = |problem| WalkError::Page { page, problem };
        let short = || bad("is cut");
        if header.iter().all(|byte| *byte == 0) {
            return Ok(Page::Unwritten);
        }
        let magic = u16_at(header, 0).ok_or_else(short)?;
        let version = version(magic).ok_or(WalkError::UnknownMagic { page, magic })?;
        let flags = u16_at(header, 2).ok_or_else(short)?;
        let timeline = u32_at(header, 4).ok_or_else(short)?;
        let address = u64_at(header, 8).ok_or_else(short)?;
        let remaining_bytes = u32_at(header, 16).ok_or_else(short)?;
        if address < page.0 {
            return Ok(Page::Unwritten);
        }
        if address > page.0 {
            return Err(bad("says that it is a later page"));
        }
        if flags & !ALL_FLAGS != 0 {
            return Err(bad("has unknown flags"));
        }
        if flags & LONG_HEADER != 0 {
            let (segment_bytes, page_bytes) = (u32_at(header, 32), u32_at(header, 36));
            if segment_bytes.map(u64::from) != Some(size.bytes()) {
                return Err(bad("belongs to a cluster of another segment size"));
            }
            if page_bytes.map(u64::from) != Some(PAGE_BYTES) {
                return Err(bad("belongs to a server built with another WAL page size"));
            }
        } else if size.offset(page) == 0 {
            return Err(bad("begins a segment without saying so"));
        }
        Ok(Page::Header(PageHeader {
            version,
            timeline,
            continuation: flags & FIRST_IS_CONTINUATION != 0,
            overwrite: flags & FIRST_IS_OVERWRITE != 0,
            remaining_bytes,
        }))
    }
}
