//! `CREATE TABLESPACE` in the WAL, turned so that its replay touches nothing outside of the data directory. Uses `wal`.
//!
//! Its record names an absolute path, and replay removes what it finds there (`create_tablespace_directories` in
//! `tablespace.c`): on the source's own machine the live tablespace. A record with an empty path makes a directory in
//! `pg_tblspc` instead of a link to one, as `allow_in_place_tablespaces` has it (13.8, 14.5 and later). So in a copy of the
//! WAL that recovery alone reads, the path's first byte becomes its end, and the record gets the checksum of what it says now.

use crate::error::{Error, Kind, Result};
use crate::repository::WalNeed;
use crate::restore::{NewTablespacePath, Plan};
use crate::wal::{Lsn, PAGE_BYTES, Segment, SegmentSize};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the header of a page, and of the first one of a segment (`xlog_internal.h`).
const PAGE_HEADER: u64 = 24;
const SEGMENT_HEADER: u64 = 40;
/// A record's header (`xlogrecord.h`, `XLogRecord`), in which the checksum is last.
const RECORD_HEADER: usize = 24;
const CHECKSUM_AT: usize = 20;
/// `RM_TBLSPC_ID` (`rmgrlist.h`); to create one is its operation 0 (`XLOG_TBLSPC_CREATE` in `tablespace.h`).
const TABLESPACE: u8 = 5;
/// We may be root, and the directory is the server's user's.
const NO_LINK: i32 = OFlag::O_NOFOLLOW.bits();
/// No record of this kind is longer: a path has 1024 bytes at most (`MAXPGPATH`).
const RECORD_BYTES_MAX: usize = 2048;

/// Changes the record of every tablespace that `plan` creates, in the copy of its WAL that is in `directory`.
///
/// # Errors
/// [`Kind::Local`] if the files cannot be read or written, [`Kind::Damaged`] if the record is not what it must be.
pub(super) fn redirect(directory: &Path, plan: &Plan) -> Result<()> {
    let size = SegmentSize::new(plan.segment_bytes)
        .ok_or_else(|| Error::new(Kind::Internal, "the plan's segments have no size"))?;
    let wal = LocalCopy { directory, path: &plan.wal, size };
    plan.creates.iter().try_for_each(|tablespace| wal.redirect(tablespace))
}

/// The WAL of a plan, as files.
struct LocalCopy<'a> {
    directory: &'a Path,
    path: &'a [WalNeed],
    size: SegmentSize,
}

impl LocalCopy<'_> {
    fn redirect(&self, tablespace: &NewTablespacePath) -> Result<()> {
        let unfit = || {
            let lsn = tablespace.lsn;
            Error::new(Kind::Damaged, format!("the WAL at {lsn} does not create tablespace {}", tablespace.oid))
        };
        let head = self.read(tablespace.lsn, 4)?;
        let length = head.iter().rev().fold(0, |length, (_, byte)| length << 8 | usize::from(*byte));
        if length > RECORD_BYTES_MAX {
            return Err(unfit());
        }
        let (places, mut record): (Vec<Lsn>, Vec<u8>) = self.read(tablespace.lsn, length)?.into_iter().unzip();
        let path = path_in(&record, tablespace.oid).ok_or_else(unfit)?;
        record[path] = 0;
        let checksum = checksum(&record).to_le_bytes();
        for (index, byte) in (CHECKSUM_AT..).zip(checksum).chain([(path, 0)]) {
            self.write(places[index], byte)?;
        }
        Ok(())
    }

    /// Bytes of a record from `start` on, each with its place: the headers of pages are no part of it.
    fn read(&self, start: Lsn, count: usize) -> Result<Vec<(Lsn, u8)>> {
        let mut bytes = Vec::with_capacity(count);
        let mut at = start;
        while bytes.len() < count {
            if at.0.is_multiple_of(PAGE_BYTES) {
                let is_first = self.size.segment_start(at) == at;
                at = at + if is_first { SEGMENT_HEADER } else { PAGE_HEADER };
            }
            let mut byte = [0];
            let (file, path) = self.open(at, OpenOptions::new().read(true).custom_flags(NO_LINK))?;
            let offset = u64::from(self.size.offset(at));
            file.read_exact_at(&mut byte, offset).map_err(|error| Error::local("read", &path, error))?;
            bytes.push((at, byte[0]));
            at = at + 1;
        }
        Ok(bytes)
    }

    fn write(&self, at: Lsn, byte: u8) -> Result<()> {
        let (file, path) = self.open(at, OpenOptions::new().write(true).custom_flags(NO_LINK))?;
        let written = file.write_all_at(&[byte], u64::from(self.size.offset(at)));
        written.map_err(|error| Error::local("write", &path, error))
    }

    /// The file that recovery reads this position from.
    fn open(&self, at: Lsn, options: &OpenOptions) -> Result<(File, PathBuf)> {
        let need = self.path.iter().find(|need| need.start <= at && at < need.end);
        let need = need.ok_or_else(|| Error::new(Kind::Internal, format!("{at} is no part of the plan")))?;
        let path = self.directory.join(Segment::holding(need.timeline, at, self.size).name());
        Ok((options.open(&path).map_err(|error| Error::local("open", &path, error))?, path))
    }
}

/// Where the path begins in a whole record that creates tablespace `oid`; `None` if it is another record, or a damaged one.
fn path_in(record: &[u8], oid: u32) -> Option<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let (info, manager) = (*record.get(16)?, *record.get(17)?);
    if manager != TABLESPACE || info & 0xF0 != 0 || number(CHECKSUM_AT)? != checksum(record) {
        return None;
    }
    // Fragment headers (`xlogrecord.h`, `XLR_BLOCK_ID_…`): that of the main data is the last. Such a record has no blocks.
    let mut at = RECORD_HEADER;
    let main = loop {
        at += match record.get(at)? {
            255 => break at + 2,
            254 => break at + 5,
            253 => 3,
            252 => 5,
            _ => return None,
        };
    };
    let path = main + 4;
    (number(main)? == oid && path < record.len()).then_some(path)
}

/// `XLogRecordAssemble` in `xloginsert.c`: what follows the header, then the header up to the checksum.
fn checksum(record: &[u8]) -> u32 {
    let (header, body) = record.split_at(RECORD_HEADER.min(record.len()));
    crc32c::crc32c_append(crc32c::crc32c(body), &header[..CHECKSUM_AT.min(header.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::TimelineId;
    use crate::wal::testing::{START, WalWriter, size};

    const CREATED: u32 = 17_000;

    /// A record that creates a tablespace, `before` bytes behind the start of a segment, and the walk's files.
    fn wal(before: usize, oid: u32, directory: &Path) -> (Lsn, Vec<WalNeed>) {
        let mut writer = WalWriter::new(START);
        writer.main(7, 10, 0, &vec![1; before]);
        let lsn = writer.main(8, TABLESPACE, 0, &[&oid.to_le_bytes()[..], b"/srv/fast\0"].concat());
        writer.main(9, 10, 0, &vec![2; 3 << 20]);
        let (timeline, bytes) = (TimelineId(1), size().bytes() as usize);
        for (index, chunk) in writer.bytes.chunks_exact(bytes).enumerate() {
            let segment = Segment { timeline, start: START + (index * bytes) as u64, size: size() };
            std::fs::write(directory.join(segment.name()), chunk).unwrap();
        }
        (lsn, vec![WalNeed { timeline, start: START, end: START + (2 << 20) }])
    }

    #[test]
    fn the_path_ends_before_it_begins_and_the_checksum_says_so() {
        // Whole in a page, and cut by the border of a page and of a segment, in its header, before the path and in it
        let page_end = PAGE_BYTES as usize - SEGMENT_HEADER as usize - 24 - 5;
        let headers = (size().bytes() / PAGE_BYTES - 1) * PAGE_HEADER + SEGMENT_HEADER;
        let segment_end = (size().bytes() - headers) as usize - 24 - 5;
        for end in [page_end, segment_end] {
            for before in [300, end - 200, end - 40, end - 32, end - 24, end - 16, end - 8, end] {
                let directory = tempfile::tempdir().unwrap();
                let (lsn, path) = wal(before, CREATED, directory.path());
                let wal = LocalCopy { directory: directory.path(), path: &path, size: size() };
                let length = RECORD_HEADER + 2 + 4 + 10;
                let read = || wal.read(lsn, length).unwrap().into_iter().map(|(_, byte)| byte).collect::<Vec<u8>>();
                let was = read();
                let tablespace = NewTablespacePath { oid: CREATED, path: "/srv/fast".into(), lsn };
                wal.redirect(&tablespace).unwrap();
                let is = read();
                let at = path_in(&is, CREATED).expect("a sound record");
                assert_eq!(
                    (&is[at..], &was[at..]),
                    (&b"\0srv/fast\0"[..], &b"/srv/fast\0"[..]),
                    "{before} bytes before"
                );
                assert_eq!(is[..CHECKSUM_AT], was[..CHECKSUM_AT]);
            }
        }
    }

    #[test]
    fn any_other_record_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (lsn, path) = wal(300, CREATED, directory.path());
        let wal = LocalCopy { directory: directory.path(), path: &path, size: size() };
        let refused = |oid, lsn| {
            let error = wal.redirect(&NewTablespacePath { oid, path: "/srv/fast".into(), lsn }).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
        };
        refused(CREATED + 1, lsn);
        refused(CREATED, START + SEGMENT_HEADER);
        refused(CREATED, lsn + 8);
    }
}
