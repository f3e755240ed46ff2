//! `archive_command`: one finished file of WAL into the repository, where streaming is not wanted. Uses `repository`.

use crate::error::{Error, Kind, Result};
use crate::repository::{Key, Writer};
use crate::runtime;
use crate::store::StoreErrorKind;
use crate::wal::{History, Lsn, Segment, SegmentSize, TimelineId, WalRange};
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes in a page of WAL (PostgreSQL's `XLOG_BLCKSZ`).
const PAGE_BYTES: u64 = 8192;

/// What became of a file. PostgreSQL may recycle it in either case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// These bytes of WAL are in the repository, durably: just now, or with equal bytes before.
    Wal(WalRange),
    /// The same of a timeline's history.
    History,
    /// The repository needs nothing of it: a backup's label (`.backup`), or a `.partial` file without a page.
    Ignored,
}

/// Stores the file at `path`, whose name says what it is. The same file again is fine. One block is in memory at a time.
///
/// A whole segment becomes blocks. A history becomes one. The last segment of a timeline that was left (`.partial`)
/// becomes tails up to the switch point, if the history that names it lies beside the file as it does in `pg_wal`,
/// otherwise up to the end of the last page that was written, zeros at its end included.
///
/// # Errors
/// [`Kind::Usage`] if it is none of these; [`Kind::Refused`] if it is cut, or another cluster's; [`Kind::Diverged`] if
/// other bytes are stored under its name; otherwise what the disk or the store says.
pub async fn push(writer: &Writer, path: &Path) -> Result<Pushed> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let size = writer.layout().segment_size();
    if let Some(timeline) = TimelineId::parse_history_name(name) {
        push_history(writer, timeline, path).await?;
        return Ok(Pushed::History);
    }
    if let Ok(segment) = Segment::parse(name, size) {
        return push_segment(writer, segment, path, false).await;
    }
    if let Some(segment) = name.strip_suffix(".partial").and_then(|name| Segment::parse(name, size).ok()) {
        return push_segment(writer, segment, path, true).await;
    }
    if is_backup_label(name, size) {
        return Ok(Pushed::Ignored);
    }
    let text = format!("{name:?} is not a file of WAL with segments of {size}");
    Err(Error::new(Kind::Usage, text).hint("archive_command is 'seawall wal-push %p', with PostgreSQL's own %p."))
}

/// `000000010000000000000004.00000028.backup`
fn is_backup_label(name: &str, size: SegmentSize) -> bool {
    let Some((segment, offset)) = name.strip_suffix(".backup").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    let is_offset = offset.len() == 8 && offset.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_offset && Segment::parse(segment, size).is_ok()
}

async fn push_history(writer: &Writer, timeline: TimelineId, path: &Path) -> Result<()> {
    let text = read_file(path.to_owned()).await?;
    let text = text.ok_or_else(|| Error::new(Kind::Local, format!("{} is not there", path.display())))?;
    History::parse(timeline, &text)
        .map_err(|error| Error::new(Kind::Refused, format!("{} is damaged", path.display())).because(error))?;
    writer.store_plain(&Key::History(timeline), text).await.map(|_| ())
}

async fn read_file(path: PathBuf) -> Result<Option<Bytes>> {
    runtime::blocking(move || match std::fs::read(&path) {
        Ok(text) => Ok(Some(Bytes::from(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::local("read", &path, error)),
    })
    .await?
}

async fn push_segment(writer: &Writer, segment: Segment, path: &Path, is_partial: bool) -> Result<Pushed> {
    let (opened, system_identifier) = (path.to_owned(), writer.system_identifier());
    let (mut file, written) = runtime::blocking(move || {
        let mut file = open_checked(&opened, segment, system_identifier)?;
        let written = if is_partial { end_of_pages(&mut file, &opened, segment)? } else { segment.end() };
        Ok::<_, Error>((file, written))
    })
    .await??;
    let end = if is_partial { switch_beside(path.to_owned(), segment).await?.unwrap_or(written) } else { written };
    if end <= segment.start {
        return Ok(Pushed::Ignored);
    }
    ensure_history(writer, segment.timeline, path).await?;
    let mut position = segment.start;
    while position < end {
        let block_end = segment.size.block_end(position).min(end);
        let range = WalRange { timeline: segment.timeline, start: position, end: block_end };
        let (read, reading) = (file, path.to_owned());
        let bytes;
        (file, bytes) = runtime::blocking(move || read_range(read, &reading, segment, range)).await??;
        let key = if range.is_whole_block(segment.size) { Key::Block(range) } else { Key::Tail(range) };
        writer.store_wal(&key, range, bytes).await?;
        position = block_end;
    }
    Ok(Pushed::Wal(WalRange { timeline: segment.timeline, start: segment.start, end }))
}

/// A timeline's history is confirmed before its first byte: readers take its absence for damage.
async fn ensure_history(writer: &Writer, timeline: TimelineId, path: &Path) -> Result<()> {
    if timeline == TimelineId(1) {
        return Ok(());
    }
    match writer.store().head(&writer.layout().name(&Key::History(timeline))).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind == StoreErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let beside = path.with_file_name(timeline.history_name());
    let there = beside.clone();
    if runtime::blocking(move || there.exists()).await? {
        return push_history(writer, timeline, &beside).await;
    }
    let text = format!("{} is neither in the repository nor beside {}", timeline.history_name(), path.display());
    Err(Error::new(Kind::Refused, text)
        .hint("It is in pg_wal of every server that was on that timeline: push it first."))
}

/// Opens a segment's file if it is one of this cluster: judged by its size and the long header of its first page
/// (`xlog_internal.h`, `XLogLongPageHeaderData`).
fn open_checked(path: &Path, segment: Segment, system_identifier: u64) -> Result<File> {
    let local = |error| Error::local("read", path, error);
    let refused = |why: String| Error::new(Kind::Refused, format!("{} {why}", path.display()));
    let mut file = File::open(path).map_err(local)?;
    let bytes = file.metadata().map_err(local)?.len();
    if bytes != segment.size.bytes() {
        let why = format!("has {bytes} bytes instead of {}", segment.size.bytes());
        return Err(refused(why).hint("Was it copied while it was being written, or cut by a full disk?"));
    }
    let mut header = [0; 40];
    file.read_exact(&mut header).map_err(local)?;
    if page_address(&header) != Some(segment.start) || header[2] & 0x2 == 0 {
        return Err(refused("does not begin as its segment does".to_owned())
            .hint("Is it really what its name says? `pg_waldump` shows what PostgreSQL makes of it."));
    }
    let found = u64::from_le_bytes(header[24..32].try_into().unwrap_or_default());
    if found != system_identifier {
        return Err(refused(format!("is of cluster {found}, the repository's folder of cluster {system_identifier}"))
            .hint("Every cluster needs a --cluster name of its own in the repository."));
    }
    let segment_bytes = u32::from_le_bytes(header[32..36].try_into().unwrap_or_default());
    if u64::from(segment_bytes) != segment.size.bytes() {
        return Err(refused(format!("says that segments have {segment_bytes} bytes")));
    }
    Ok(file)
}

/// The position that a page's header says it begins at; `None` for a page that was never written.
fn page_address(header: &[u8]) -> Option<Lsn> {
    let magic = header.get(..2)?;
    let address = u64::from_le_bytes(header.get(8..16)?.try_into().ok()?);
    (magic != [0, 0]).then_some(Lsn(address))
}

/// The end of the last page in sequence that was written into this segment. Behind it are zeros, or pages that still
/// have the addresses of the segment whose file was recycled.
fn end_of_pages(file: &mut File, path: &Path, segment: Segment) -> Result<Lsn> {
    let local = |error| Error::local("read", path, error);
    file.seek(SeekFrom::Start(0)).map_err(local)?;
    let mut page = vec![0; PAGE_BYTES as usize];
    let mut position = segment.start;
    while position < segment.end() {
        file.read_exact(&mut page).map_err(local)?;
        if page_address(&page) != Some(position) {
            break;
        }
        position = position + PAGE_BYTES;
    }
    Ok(position)
}

/// Where a timeline whose history lies beside the file left this one within the segment.
async fn switch_beside(path: PathBuf, segment: Segment) -> Result<Option<Lsn>> {
    runtime::blocking(move || {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let local = |error| Error::local("read", directory, error);
        let mut found: Option<(TimelineId, Lsn)> = None;
        for entry in std::fs::read_dir(directory).map_err(local)? {
            let entry = entry.map_err(local)?;
            let Some(timeline) = entry.file_name().to_str().and_then(TimelineId::parse_history_name) else { continue };
            let text = std::fs::read(entry.path()).map_err(|error| Error::local("read", &entry.path(), error))?;
            let switch = History::parse(timeline, &text).ok().and_then(|history| history.switch_from(segment.timeline));
            let within = switch.filter(|switch| segment.start <= *switch && *switch <= segment.end());
            // The first that left it is the one whose promotion made the file partial.
            if let Some(switch) = within
                && found.is_none_or(|(first, _)| timeline < first)
            {
                found = Some((timeline, switch));
            }
        }
        Ok(found.map(|(_, switch)| switch))
    })
    .await?
}

fn read_range(mut file: File, path: &Path, segment: Segment, range: WalRange) -> Result<(File, Bytes)> {
    let mut bytes = vec![0; range.bytes() as usize];
    let read = file.seek(SeekFrom::Start(range.start - segment.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|error| Error::local("read", path, error))?;
    Ok((file, Bytes::from(bytes)))
}
