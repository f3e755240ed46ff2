//! `archive_command`: stores the files that a server hands over, for those who keep that way.

use crate::error::{Error, Kind, Result};
use crate::repository::{Key, Writer};
use crate::runtime;
use crate::wal::{History, Lsn, RecordWalker, Segment, SegmentSize, TimelineId, WalRange};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What became of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// It is stored, now or already before.
    Stored,
    /// It is of no use here: the server may forget it.
    Ignored,
}

/// Stores the file at `path`: a segment, the part of one that a promotion left (`.partial`), a history file. What is
/// stored already with the same bytes is fine. Memory: one block.
///
/// # Errors
/// [`Kind::Diverged`] if the file belongs to another cluster, or other bytes are stored under its name; [`Kind::Usage`]
/// if it is none of PostgreSQL's WAL files; else what the disk or the store says. Then the server keeps the file.
pub async fn push(writer: &Writer, path: &Path) -> Result<Pushed> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let size = writer.layout().segment_size();
    if let Some(timeline) = TimelineId::parse_history_name(name) {
        return push_history(writer, timeline, path).await;
    }
    if is_backup_label(name, size) {
        return Ok(Pushed::Ignored);
    }
    let (stem, is_partial) = match name.strip_suffix(".partial") {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let segment = Segment::parse(stem, size).map_err(|error| {
        Error::new(Kind::Usage, format!("{} is not a WAL file of this cluster", path.display()))
            .because(error)
            .hint("archive_command = 'seawall wal-push %p' gives the right ones. Is --cluster right?")
    })?;
    let file = open(path, segment).await?;
    check_header(writer, &file, path, segment).await?;
    let end = if is_partial { end_of_wal(&file, path, segment).await? } else { segment.end() };
    let starts = std::iter::successors(Some(segment.start), |at| Some(size.block_end(*at)));
    for start in starts.take_while(|start| *start < end) {
        let range = WalRange { timeline: segment.timeline, start, end: size.block_end(start).min(end) };
        let bytes = read(&file, path, segment, range).await?;
        // A whole block is permanent; what may go on in it is a tail.
        let key = if range.is_whole_block(size) { Key::Block(range) } else { Key::Tail(range) };
        writer.store_wal(&key, range, bytes).await?;
    }
    Ok(Pushed::Stored)
}

async fn push_history(writer: &Writer, timeline: TimelineId, path: &Path) -> Result<Pushed> {
    let from = path.to_owned();
    let text =
        runtime::blocking(move || std::fs::read(&from)).await?.map_err(|error| Error::local("read", path, error))?;
    History::parse(timeline, &text)
        .map_err(|error| Error::new(Kind::Local, format!("{} is not a history file", path.display())).because(error))?;
    writer.store_plain(&Key::History(timeline), Bytes::from(text)).await?;
    Ok(Pushed::Stored)
}

/// `000000010000000000000002.00000028.backup`: what PostgreSQL writes at the end of a base backup that it gave out
/// (`xlog_internal.h`, `IsBackupHistoryFileName`). Ours have their own description.
fn is_backup_label(name: &str, size: SegmentSize) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        [segment, offset, "backup"] => {
            Segment::parse(segment, size).is_ok()
                && offset.len() == 8
                && offset.bytes().all(|byte| byte.is_ascii_hexdigit())
        }
        _ => false,
    }
}

async fn open(path: &Path, segment: Segment) -> Result<Arc<File>> {
    let (from, expected) = (path.to_owned(), segment.size.bytes());
    runtime::blocking(move || {
        let failed = |error| Error::local("read", &from, error);
        let file = File::open(&from).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes != expected {
            let message = format!("{} has {bytes} bytes, and segments of this cluster {expected}", from.display());
            return Err(Error::new(Kind::Diverged, message).hint("Is this another cluster's file?"));
        }
        Ok(Arc::new(file))
    })
    .await?
}

async fn read(file: &Arc<File>, path: &Path, segment: Segment, range: WalRange) -> Result<Bytes> {
    let (file, path) = (Arc::clone(file), path.to_owned());
    runtime::blocking(move || {
        let mut bytes = vec![0; range.bytes() as usize];
        let offset = range.start - segment.start;
        file.read_exact_at(&mut bytes, offset).map_err(|error| Error::local("read", &path, error))?;
        Ok(Bytes::from(bytes))
    })
    .await?
}

/// Where a segment's first page says its position and its system (`xlog_internal.h`, `XLogLongPageHeaderData`).
const PAGE_ADDRESS: usize = 8;
const PAGE_SYSTEM: usize = 24;
const PAGE_HEADER_BYTES: u64 = 40;

/// Fails unless the file's first page is this segment's, of this cluster.
async fn check_header(writer: &Writer, file: &Arc<File>, path: &Path, segment: Segment) -> Result<()> {
    let range = WalRange { timeline: segment.timeline, start: segment.start, end: segment.start + PAGE_HEADER_BYTES };
    let header = read(file, path, segment, range).await?;
    let number =
        |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (address, system, ours) = (Lsn(number(PAGE_ADDRESS)), number(PAGE_SYSTEM), writer.system_identifier());
    if system != ours {
        return Err(Error::new(
            Kind::Diverged,
            format!("{} belongs to the cluster {system}, not to {ours}", path.display()),
        )
        .hint("Give another cluster another --cluster name."));
    }
    if address != segment.start {
        return Err(Error::new(Kind::Local, format!("{} begins with the page of {address}", path.display()))
            .hint("Was the file renamed?"));
    }
    Ok(())
}

/// Behind the last record: a file that was cut off by a promotion goes on with what it held in its life before.
async fn end_of_wal(file: &Arc<File>, path: &Path, segment: Segment) -> Result<Lsn> {
    let (file, path) = (Arc::clone(file), path.to_owned());
    runtime::blocking(move || {
        let mut walker = RecordWalker::new(segment.size, segment.start);
        let mut bytes = vec![0; 1 << 20];
        while walker.position() < segment.end() && walker.end_of_wal().is_none() {
            let position = walker.position();
            file.read_exact_at(&mut bytes, position - segment.start)
                .map_err(|error| Error::local("read", &path, error))?;
            if walker.push(position, &bytes, &mut |_| {}).is_err() {
                break;
            }
        }
        Ok(walker.next_record_lsn().min(segment.end()))
    })
    .await?
}
