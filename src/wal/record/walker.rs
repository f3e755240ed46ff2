//! Finds the records in a stream of WAL that arrives in pieces of any size, and checks them as PostgreSQL does
//! (`xlogreader.c`, `XLogDecodeNextRecord`). Memory: one page header and one record's header and first bytes.

use super::main_data::{Body, u32_at, u64_at};
use super::page::{LONG_HEADER_BYTES, PAGE_BYTES, Page, SHORT_HEADER_BYTES, header_bytes};
use super::{Record, RecordKind};
use crate::wal::{Lsn, SegmentSize};

/// A record's header: `XLogRecord` (`xlogrecord.h`).
const RECORD_HEADER_BYTES: usize = 24;
/// The header without its checksum, which the checksum covers after the body.
const CHECKED_HEADER_BYTES: usize = 20;
/// The longest record: PostgreSQL's `MaxAllocSize`; since 16 `XLogRecordMaxSize` is a little less.
const RECORD_BYTES_MAX: u32 = 0x3FFF_FFFF;
/// Records begin at multiples of this (`MAXALIGN`).
const ALIGNMENT: u64 = 8;

/// The bytes are not WAL as PostgreSQL 13 to 18 writes it. Where PostgreSQL replays WAL it takes such a place for the
/// end; whoever archives goes on, without an index from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// The bytes given do not follow those given before. The walk can go on with those that do.
    #[error("WAL from {expected} on was expected, not from {given}")]
    NotContiguous {
        /// Where the bytes given before end.
        expected: Lsn,
        /// Where these begin.
        given: Lsn,
    },
    /// The page is of a PostgreSQL version that is not known here, or not WAL at all.
    #[error("the WAL page at {page} begins with {magic:04X}, which no known PostgreSQL version writes")]
    UnknownMagic {
        /// The page's first byte.
        page: Lsn,
        /// What it begins with.
        magic: u16,
    },
    /// A page header contradicts what came before, or itself.
    #[error("the WAL page at {page} {problem}")]
    Page {
        /// The page's first byte.
        page: Lsn,
        /// A verb phrase.
        problem: &'static str,
    },
    /// A record contradicts what came before, or itself.
    #[error("the WAL record at {start} {problem}")]
    Record {
        /// The record's first byte.
        start: Lsn,
        /// A verb phrase.
        problem: &'static str,
    },
}

/// Walks along WAL and gives out its records.
///
/// ```
/// use seawall::wal::{Lsn, RecordWalker, SegmentSize};
/// let mut walker = RecordWalker::new(SegmentSize::DEFAULT, Lsn(0x100_0000));
/// let mut records = Vec::new();
/// walker.push(Lsn(0x100_0000), &[0; 100], &mut |record| records.push(record))?;
/// assert_eq!(walker.end_of_wal(), Some(Lsn(0x100_0000)), "zeros are where WAL ends");
/// # Ok::<(), seawall::wal::WalkError>(())
/// ```
pub struct RecordWalker {
    size: SegmentSize,
    /// The next byte.
    position: Lsn,
    /// The first record that has not been given out begins here, or behind a page header here.
    next_record: Lsn,
    /// The page header that is arriving.
    page: [u8; LONG_HEADER_BYTES],
    page_bytes: usize,
    /// From the last page header: the server's version, and the timeline.
    version: Option<u8>,
    timeline: u32,
    /// The start of the last record, which the next one names.
    previous: Option<Lsn>,
    /// Bodies that say nothing here are passed over without a look.
    trusts_the_rest: bool,
    doing: Doing,
    /// What was left, where the walk began, of the record that it began in.
    rest_bytes: u64,
    record: RecordInProgress,
    end: Option<Lsn>,
    failed: Option<WalkError>,
}

/// A record of which the walk has seen a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartialRecord {
    /// It has so many bytes at least; 0 if nothing is known.
    pub bytes_min: u64,
    /// Its resource manager (`rmgrlist.h`), if that was seen.
    pub rmgr: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    /// The first page's header says what comes.
    Begin,
    /// Passing over the rest of a record that began before the walk.
    Skip { left_bytes: u64 },
    /// A record, or the padding in front of it.
    Record,
    /// Passing over what a switch left unused, page headers included.
    Switched { until: Lsn },
}

/// The record that is arriving.
struct RecordInProgress {
    start: Lsn,
    header: [u8; RECORD_HEADER_BYTES],
    /// Bytes of header and body that have come; 0 between records.
    have_bytes: u32,
    total_bytes: u32,
    /// CRC-32C of the body, where it is to be verified.
    checksum: Option<u32>,
    body: Body,
}

impl RecordWalker {
    /// A walker that begins at `start`: the first byte of a segment or page, or of a record. At the beginning of a page
    /// the rest of a record from before is passed over.
    pub fn new(size: SegmentSize, start: Lsn) -> RecordWalker {
        RecordWalker {
            size,
            position: start,
            next_record: start,
            page: [0; LONG_HEADER_BYTES],
            page_bytes: 0,
            version: None,
            timeline: 0,
            previous: None,
            trusts_the_rest: false,
            doing: if start.0.is_multiple_of(PAGE_BYTES) { Doing::Begin } else { Doing::Record },
            rest_bytes: 0,
            record: RecordInProgress {
                start,
                header: [0; RECORD_HEADER_BYTES],
                have_bytes: 0,
                total_bytes: 0,
                checksum: None,
                body: Body::new(false),
            },
            end: None,
            failed: None,
        }
    }

    /// The same, but each record comes with [`Record::relation`] and [`Record::top_xid`], and the ends of transactions
    /// with the lists that say so, which takes time.
    pub fn with_details(mut self) -> RecordWalker {
        self.record.body = Body::new(true);
        self
    }

    /// From the next record on the checksums of all are verified, or with `trusts` of those alone that are read. Of the others the length
    /// and the place are checked, which the next one names: with records of a hundred bytes their checksums are most of a walk's work.
    pub fn trust_the_rest(&mut self, trusts: bool) {
        self.trusts_the_rest = trusts;
    }

    /// The same, for a walk that begins where a record does, or a page header in front of it: the record before begins at
    /// `previous`, and the first one must name it.
    pub fn behind(mut self, previous: Lsn) -> RecordWalker {
        self.previous = Some(previous);
        self
    }

    /// Takes the bytes from `start` on and calls `out` with each record that they complete. Bytes behind the end of WAL
    /// are passed over.
    ///
    /// # Errors
    /// The first error but [`WalkError::NotContiguous`] ends the walk: every later call returns it again.
    pub fn push(&mut self, start: Lsn, bytes: &[u8], out: &mut dyn FnMut(Record)) -> Result<(), WalkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if start != self.position {
            return Err(WalkError::NotContiguous { expected: self.position, given: start });
        }
        let mut rest = bytes;
        while !rest.is_empty() && self.end.is_none() {
            match self.step(rest, out) {
                Ok(used) => {
                    self.position = self.position + used as u64;
                    rest = rest.get(used..).unwrap_or_default();
                }
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
        self.position = self.position + rest.len() as u64;
        Ok(())
    }

    /// True once the header of a page was read, of a version that is known.
    pub fn has_met_wal(&self) -> bool {
        self.version.is_some()
    }

    /// Where the bytes pushed so far end: the next push begins here.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where the first record that was not given out begins: all before it is complete. As long as the walk has met no
    /// record, where it began.
    pub fn next_record_lsn(&self) -> Lsn {
        self.next_record
    }

    /// True if the bytes so far end between two records: every record that begins before [`RecordWalker::position`] was
    /// given out. Not before the walk has met one.
    pub fn is_between_records(&self) -> bool {
        let is_among_records = matches!(self.doing, Doing::Record | Doing::Switched { .. }) && self.end.is_none();
        is_among_records && self.record.have_bytes == 0 && self.previous.is_some()
    }

    /// The record in which the walk began, if it began within one: never given out.
    pub fn first_record(&self) -> Option<PartialRecord> {
        match self.doing {
            Doing::Begin => Some(PartialRecord::default()),
            _ => (self.rest_bytes > 0).then_some(PartialRecord { bytes_min: self.rest_bytes, rmgr: None }),
        }
    }

    /// The record in which the bytes so far end, if they end within one.
    pub fn last_record(&self) -> Option<PartialRecord> {
        let record = &self.record;
        match self.doing {
            Doing::Begin | Doing::Skip { .. } => self.first_record(),
            Doing::Record if record.have_bytes > 0 => {
                // The length comes first, and the resource manager is the eighteenth byte.
                let bytes_min = if record.have_bytes < 4 { 0 } else { u64::from(record.total_bytes) };
                let rmgr = (record.have_bytes > 17).then_some(record.header[17]);
                Some(PartialRecord { bytes_min, rmgr })
            }
            Doing::Record | Doing::Switched { .. } => None,
        }
    }

    /// Where WAL ends, once that was seen: zeros, or what a recycled segment held before. Meant for the last segment of
    /// a file system or a padded one: a stream from a server has no such place.
    pub fn end_of_wal(&self) -> Option<Lsn> {
        self.end
    }

    /// Takes the next piece that is of one nature; returns its length, which is not 0.
    fn step(&mut self, bytes: &[u8], out: &mut dyn FnMut(Record)) -> Result<usize, WalkError> {
        if let Doing::Switched { until } = self.doing {
            let used = shorter(bytes, until - self.position).len();
            if self.position + used as u64 == until {
                self.doing = Doing::Record;
            }
            return Ok(used);
        }
        let offset = self.position.0 % PAGE_BYTES;
        if offset == 0 || self.page_bytes > 0 {
            return self.take_page_header(bytes);
        }
        let bytes = shorter(bytes, PAGE_BYTES - offset);
        match &mut self.doing {
            Doing::Skip { left_bytes } => {
                let used = shorter(bytes, *left_bytes).len();
                *left_bytes -= used as u64;
                if *left_bytes == 0 {
                    self.doing = Doing::Record;
                    self.next_record = align(self.position + used as u64);
                }
                Ok(used)
            }
            _ if self.record.have_bytes == 0 && self.position != align(self.position) => {
                Ok(shorter(bytes, align(self.position) - self.position).len())
            }
            _ if self.record.have_bytes == 0 => match self.pass_over(bytes, out) {
                0 => self.take_record_header(bytes, out),
                used => Ok(used),
            },
            _ if (self.record.have_bytes as usize) < RECORD_HEADER_BYTES => self.take_record_header(bytes, out),
            _ => self.take_body(bytes, out),
        }
    }

    fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, WalkError> {
        // The length is known once the flags are, which are in the first bytes.
        let wanted = match self.page_bytes {
            0..SHORT_HEADER_BYTES => SHORT_HEADER_BYTES,
            _ => header_bytes(&self.page),
        };
        let piece = shorter(bytes, (wanted - self.page_bytes) as u64);
        self.page[self.page_bytes..][..piece.len()].copy_from_slice(piece);
        self.page_bytes += piece.len();
        let header = &self.page[..self.page_bytes];
        if header.len() >= SHORT_HEADER_BYTES && header.len() == header_bytes(header) {
            let page = Lsn(self.position.0 - self.position.0 % PAGE_BYTES);
            let read = Page::read(header, page, self.size)?;
            self.page_bytes = 0;
            self.turn_page(page, &read)?;
        }
        Ok(piece.len())
    }

    /// Goes on behind the header of a new page.
    fn turn_page(&mut self, page: Lsn, read: &Page) -> Result<(), WalkError> {
        let bad = |problem| Err(WalkError::Page { page, problem });
        let Page::Header(header) = read else {
            self.end = Some(self.next_record);
            return Ok(());
        };
        if self.version.is_some_and(|version| version != header.version) {
            return bad("is of another PostgreSQL version than the page before");
        }
        if header.timeline < self.timeline {
            return bad("is of an older timeline than the page before");
        }
        self.version = Some(header.version);
        self.timeline = header.timeline;

        let remaining_bytes = u64::from(header.remaining_bytes);
        let expected_bytes = match self.doing {
            Doing::Begin if header.continuation => remaining_bytes,
            Doing::Skip { left_bytes } => left_bytes,
            Doing::Record if self.record.have_bytes > 0 => {
                u64::from(self.record.total_bytes.saturating_sub(self.record.have_bytes))
            }
            Doing::Begin | Doing::Record | Doing::Switched { .. } => 0,
        };
        if expected_bytes > 0 && header.overwrite {
            // A crash had cut the record that was to go on here: it never was, and the next one says so.
            self.record.have_bytes = 0;
            self.next_record = page;
            self.doing = Doing::Record;
        } else if header.continuation != (expected_bytes > 0) {
            return bad("does not go on with the record that the page before ended in");
        } else if header.continuation && remaining_bytes != expected_bytes {
            return bad("goes on with a record of another length");
        } else if self.doing == Doing::Begin {
            self.doing = match expected_bytes {
                0 => Doing::Record,
                left_bytes => Doing::Skip { left_bytes },
            };
            self.rest_bytes = expected_bytes;
        }
        Ok(())
    }

    /// Most records lie in one page and say nothing that matters: gives those out without taking them apart, and returns how many
    /// bytes they are. Stops in front of any other, and of one that is not as it must be.
    fn pass_over(&mut self, bytes: &[u8], out: &mut dyn FnMut(Record)) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..)
            && let Some(header) = rest.first_chunk::<RECORD_HEADER_BYTES>()
            && let Some(length) = u32_at(header, 0).filter(|length| *length as usize >= RECORD_HEADER_BYTES)
            && let Some(record) = rest.get(..length as usize)
        {
            let start = self.position + used as u64;
            let [info, rmgr] = [header[16], header[17]];
            let named = u64_at(header, 8).map(Lsn);
            let is_linked = self.previous.map_or(named < Some(start), |previous| named == Some(previous));
            if !is_linked || self.record.body.is_wanted(rmgr, info) {
                break;
            }
            if !self.trusts_the_rest && !has_its_checksum(header, crc32c::crc32c(&record[RECORD_HEADER_BYTES..])) {
                break;
            }
            let end = align(start + u64::from(length));
            self.previous = Some(start);
            self.next_record = end;
            let xid = u32_at(header, 4).unwrap_or(0);
            let kind = RecordKind::Other { rmgr, info };
            out(Record { start, end, bytes: length, xid, top_xid: None, relation: None, kind });
            // What fills up to the next one may be in the next piece.
            used = bytes.len().min((end - self.position) as usize);
        }
        used
    }

    fn take_record_header(&mut self, bytes: &[u8], out: &mut dyn FnMut(Record)) -> Result<usize, WalkError> {
        let record = &mut self.record;
        if record.have_bytes == 0 {
            record.start = self.position;
        }
        let have = record.have_bytes as usize;
        let room = &mut record.header[have..];
        // The length comes first, alone: nothing behind it means anything if it is 0.
        let wanted = if have < 4 { 4 - have } else { room.len() };
        let piece = shorter(bytes, wanted as u64);
        room[..piece.len()].copy_from_slice(piece);
        record.have_bytes += piece.len() as u32;
        let start = record.start;
        let bad = |problem| Err(WalkError::Record { start, problem });
        match record.have_bytes as usize {
            4 => {
                record.total_bytes = u32_at(&record.header, 0).unwrap_or(0);
                if record.total_bytes == 0 {
                    record.have_bytes = 0;
                    self.end = Some(self.next_record);
                    return Ok(piece.len());
                }
                if (record.total_bytes as usize) < RECORD_HEADER_BYTES || record.total_bytes > RECORD_BYTES_MAX {
                    return bad("has an impossible length");
                }
                self.next_record = start;
            }
            RECORD_HEADER_BYTES => {
                let named = Lsn(u64_at(&record.header, 8).unwrap_or(0));
                let right = self.previous.map_or(named < start, |previous| previous == named);
                if !right {
                    return bad("does not name the record before it");
                }
                let [info, rmgr] = [record.header[16], record.header[17]];
                let body_bytes = u64::from(record.total_bytes) - RECORD_HEADER_BYTES as u64;
                record.checksum = (!self.trusts_the_rest || record.body.is_wanted(rmgr, info)).then_some(0);
                record.body.begin(rmgr, info, self.version, body_bytes);
                if body_bytes == 0 {
                    self.complete(self.position + piece.len() as u64, out)?;
                }
            }
            _ => {}
        }
        Ok(piece.len())
    }

    fn take_body(&mut self, bytes: &[u8], out: &mut dyn FnMut(Record)) -> Result<usize, WalkError> {
        let record = &mut self.record;
        let piece = shorter(bytes, u64::from(record.total_bytes - record.have_bytes));
        record.checksum = record.checksum.map(|checksum| crc32c::crc32c_append(checksum, piece));
        record.body.push(piece);
        record.have_bytes += piece.len() as u32;
        if record.have_bytes == record.total_bytes {
            self.complete(self.position + piece.len() as u64, out)?;
        }
        Ok(piece.len())
    }

    /// Checks and gives out the record that ends at `end`.
    fn complete(&mut self, end: Lsn, out: &mut dyn FnMut(Record)) -> Result<(), WalkError> {
        let record = &mut self.record;
        if record.checksum.is_some_and(|body| !has_its_checksum(&record.header, body)) {
            return Err(WalkError::Record { start: record.start, problem: "does not match its checksum" });
        }
        let (kind, relation, top_xid) = (record.body.finish(), record.body.relation(), record.body.top_xid());
        let mut end = align(end);
        if kind == RecordKind::Switch && self.size.offset(end) != 0 {
            end = self.size.segment_start(end) + self.size.bytes();
            self.doing = Doing::Switched { until: end };
        }
        let xid = u32_at(&record.header, 4).unwrap_or(0);
        let (start, bytes) = (record.start, record.total_bytes);
        record.have_bytes = 0;
        self.previous = Some(start);
        self.next_record = end;
        out(Record { start, end, bytes, xid, top_xid, relation, kind });
        Ok(())
    }
}

/// True if the checksum in a record's header is that of its body, which is given, and of the header.
fn has_its_checksum(header: &[u8; RECORD_HEADER_BYTES], body: u32) -> bool {
    u32_at(header, CHECKED_HEADER_BYTES) == Some(crc32c::crc32c_append(body, &header[..CHECKED_HEADER_BYTES]))
}

/// The first `bytes_max` of `bytes`, or all.
fn shorter(bytes: &[u8], bytes_max: u64) -> &[u8] {
    let end = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[..end]
}

/// The first place at or behind `lsn` where a record may begin.
fn align(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_add(ALIGNMENT - 1) & !(ALIGNMENT - 1))
}
