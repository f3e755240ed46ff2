//! `restore_command`: gives a recovering server the segments and history files that it asks for.
//!
//! "Absent" ends a recovery, so it is only said of what is proven not to be there: everything else that goes wrong is an
//! error, which stops the server (`RestoreArchivedFile` in `xlogarchive.c`; exit codes from 126 up).
//!
//! A restore is pinned ([`Pin`]): it sees the archive as it was when it was planned. Without a pin, as on a standby, what
//! is stored now counts.

use super::pin::Pin;
use super::route::Route;
use super::spool::{Spool, Target};
use crate::error::{Error, Kind, Result};
use crate::repository::{WalReader, Window};
use crate::wal::{History, Lsn, Segment, TimelineId, WalRange};
use futures_util::{StreamExt, stream};
use std::path::{Path, PathBuf};

/// Bytes of WAL that are kept in the data directory for the next calls.
pub const SPOOL_BYTES_MAX: u64 = 128 << 20;

/// Blocks fetched at once: each is up to 16 MiB of memory, and as much again while it is decompressed.
const FETCHES: usize = 4;

/// How often a file that is being stored just now is looked for again.
const LOOKS: usize = 2;

/// How files are fetched.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// The data directory: the working directory that PostgreSQL gives its commands.
    pub directory: PathBuf,
    /// What the restore settled that made the directory, while it goes on.
    pub pin: Option<Pin>,
    /// Bytes to fetch ahead of a pinned restore.
    pub spool_bytes: u64,
}

impl FetchOptions {
    /// For the server whose data directory is `directory`.
    ///
    /// # Errors
    /// If what the restore left there cannot be read.
    pub fn read(directory: &Path) -> Result<FetchOptions> {
        let pin = Pin::read(directory)?;
        Ok(FetchOptions { directory: directory.to_owned(), pin, spool_bytes: SPOOL_BYTES_MAX })
    }

    fn spool(&self) -> Option<Spool> {
        let pin = self.pin.as_ref()?;
        Some(Spool::new(&self.directory, &pin.name(), pin.segment_size()))
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// The file is at its destination, whole and durable.
    Written,
    /// It is proven that there is no such file.
    Absent,
}

/// Puts the file that an earlier call fetched ahead at `destination`. Needs no store, so ask this first.
///
/// # Errors
/// [`Kind::Local`] if the disk refuses.
pub async fn take_spooled(name: &str, destination: &Path, options: &FetchOptions) -> Result<bool> {
    match options.spool() {
        Some(spool) => spool.take(name, destination).await,
        None => Ok(false),
    }
}

/// Puts the file called `name` at `destination`: a segment, exactly of its size, or a history file. May be called again
/// for the same file, and dropped at any time: the destination appears whole or not at all.
///
/// # Errors
/// If the store fails, what is stored is damaged, or WAL is missing in front of other WAL: never as [`Fetched::Absent`].
pub async fn fetch(reader: &WalReader, name: &str, destination: &Path, options: &FetchOptions) -> Result<Fetched> {
    let size = reader.repository().layout.segment_size();
    if let Some(timeline) = TimelineId::parse_history_name(name) {
        return fetch_history(reader, timeline, destination).await;
    }
    let segment = match Segment::parse(name, size) {
        Ok(segment) => segment,
        Err(error) if name.len() == 24 => {
            return Err(Error::new(Kind::Usage, "this is no segment of the repository's cluster")
                .because(error)
                .hint("Does restore_command name another cluster's repository?"));
        }
        // PostgreSQL asks for nothing else that could be here.
        Err(_) => return Ok(Fetched::Absent),
    };
    match &options.pin {
        Some(pin) => {
            pin.check(reader.system_identifier(), size)?;
            fetch_pinned(reader, pin, segment, destination, options).await
        }
        None => fetch_following(reader, segment, destination).await,
    }
}

async fn fetch_history(reader: &WalReader, timeline: TimelineId, destination: &Path) -> Result<Fetched> {
    let repository = reader.repository();
    for _ in 0..LOOKS {
        if let Some(text) = repository.read_history_file(timeline).await? {
            let mut target = Target::create(destination, None).await?;
            target.write(0, vec![text]).await?;
            target.publish().await?;
            return Ok(Fetched::Written);
        }
        // The history is stored before the first byte of its timeline. Nothing of either: then it is truly absent.
        let layout = &repository.layout;
        let open = repository.store.list_level(&layout.open_prefix(timeline)).await?;
        let has_wal = repository.read_timelines().await?.contains(&timeline) || !open.objects.is_empty();
        if !has_wal || timeline == TimelineId(1) {
            return Ok(Fetched::Absent);
        }
    }
    let name = timeline.history_name();
    Err(Error::new(Kind::Damaged, format!("{name} is missing, and timeline {timeline} has WAL here"))
        .hint("Was it deleted? Copy it back from the pg_wal directory of a server of that timeline."))
}

/// What a pinned restore does about a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    /// Give its bytes up to here, and zeros from there on.
    Serve(Lsn),
    /// It lies behind the end, or before its timeline begins.
    Absent,
    /// The path is on another timeline there, whose file was not absent.
    Forked(TimelineId),
}

fn decide(pin: &Pin, segment: Segment) -> Decision {
    let route = Route { history: pin.history(), size: segment.size, cap: None };
    let owner = route.owner(segment.start);
    let first = route.history.first_file_byte(segment.timeline, segment.size);
    if segment.start >= pin.end_lsn() || first.is_some_and(|first| segment.start < first) {
        Decision::Absent
    } else if segment.timeline == owner {
        Decision::Serve(segment.end().min(pin.end_lsn()))
    } else {
        Decision::Forked(owner)
    }
}

async fn fetch_pinned(
    reader: &WalReader,
    pin: &Pin,
    segment: Segment,
    destination: &Path,
    options: &FetchOptions,
) -> Result<Fetched> {
    let end = match decide(pin, segment) {
        Decision::Serve(end) => end,
        Decision::Absent => {
            clear(options).await;
            return Ok(Fetched::Absent);
        }
        // The server reads the child's file first, and goes back to the parent's only if that was not given. The
        // parent's holds records that never were on this path, and the server would replay them.
        Decision::Forked(owner) => {
            return Err(Error::new(
                Kind::Damaged,
                format!("{segment} is asked for, but the path of this restore is on timeline {owner} there"),
            )
            .hint("Was recovery_target_timeline changed, or a file of the child timeline not given?"));
        }
    };
    let ahead = segments_ahead(pin, segment, options.spool_bytes);
    let spool = options.spool();
    let ranges = std::iter::once((segment, end)).chain(ahead.iter().map(|next| (*next, next.end())));
    let blocks: Vec<(Segment, WalRange)> =
        ranges.flat_map(|(segment, end)| blocks(segment, end).map(move |range| (segment, range))).collect();
    let mut fetched = stream::iter(blocks)
        .map(|(segment, range)| async move { (segment, range, whole(reader, range).await) })
        .buffered(FETCHES);

    let mut target = Target::create(destination, Some(segment.size.bytes())).await?;
    let mut left = blocks_in(segment, end);
    while left > 0
        && let Some((segment, range, window)) = fetched.next().await
    {
        target.write(range.start - segment.start, window?.pieces).await?;
        left -= 1;
    }
    target.publish().await?;
    // From here on everything is extra: what fails is fetched again when it is asked for.
    match spool {
        Some(spool) if !ahead.is_empty() => {
            if let Err(error) = fetch_ahead(&spool, &ahead, fetched).await {
                tracing::debug!(%error, "fetched less ahead");
            }
        }
        _ => clear(options).await,
    }
    Ok(Fetched::Written)
}

async fn fetch_ahead(
    spool: &Spool,
    ahead: &[Segment],
    mut fetched: impl stream::Stream<Item = (Segment, WalRange, Result<Window>)> + Unpin,
) -> Result<()> {
    spool.keep_only(ahead.iter().map(|segment| segment.name()).collect()).await?;
    for segment in ahead {
        let mut target = Target::create(&spool.path(&segment.name()), Some(segment.size.bytes())).await?;
        for _ in 0..blocks_in(*segment, segment.end()) {
            let Some((_, range, window)) = fetched.next().await else { return Ok(()) };
            target.write(range.start - segment.start, window?.pieces).await?;
        }
        target.publish().await?;
    }
    Ok(())
}

/// The whole segments that follow on the path and fit the spool.
fn segments_ahead(pin: &Pin, segment: Segment, spool_bytes: u64) -> Vec<Segment> {
    let route = Route { history: pin.history(), size: segment.size, cap: None };
    let count = spool_bytes / segment.size.bytes();
    let starts = (1..=count).map(|n| segment.start + n * segment.size.bytes());
    let segments = starts.map(|start| Segment::holding(route.owner(start), start, segment.size));
    segments.take_while(|next| next.end() <= pin.end_lsn()).collect()
}

fn blocks(segment: Segment, end: Lsn) -> impl Iterator<Item = WalRange> {
    let size = segment.size;
    let starts = std::iter::successors(Some(segment.start), move |at| Some(size.block_end(*at)));
    let starts = starts.take_while(move |at| *at < end);
    starts.map(move |start| WalRange { timeline: segment.timeline, start, end: size.block_end(start).min(end) })
}

fn blocks_in(segment: Segment, end: Lsn) -> usize {
    blocks(segment, end).count()
}

/// Best effort: nothing reads what is left there, and base backups leave it out.
async fn clear(options: &FetchOptions) {
    if let Some(spool) = options.spool()
        && let Err(error) = spool.remove().await
    {
        tracing::debug!(%error, "could not remove what was fetched ahead");
    }
}

/// The bytes of `range`, all of them.
async fn whole(reader: &WalReader, range: WalRange) -> Result<Window> {
    let window = reader.read_range(range).await?;
    if window.end == range.end { Ok(window) } else { Err(hole(range.timeline, window.end)) }
}

fn hole(timeline: TimelineId, lsn: Lsn) -> Error {
    Error::new(Kind::Damaged, format!("WAL from {lsn} on of timeline {timeline} is missing, and later WAL is there"))
        .hint("Recovery cannot pass a hole. `seawall list` shows holes and what can be reached in front and behind.")
}

/// Without a pin: whatever is stored now.
async fn fetch_following(reader: &WalReader, segment: Segment, destination: &Path) -> Result<Fetched> {
    let limit = follow_forks(reader, segment).await?;
    let mut fetched = stream::iter(blocks(segment, limit.end))
        .map(|range| async move { (range, reader.read_range(range).await) })
        .buffered(FETCHES);
    let mut target = Target::create(destination, Some(segment.size.bytes())).await?;
    let mut covered = segment.start;
    while let Some((range, window)) = fetched.next().await {
        let window = window?;
        target.write(range.start - segment.start, window.pieces).await?;
        covered = window.end;
        if covered < range.end {
            // The end of what is stored, unless something lies behind, here or on a timeline that left later.
            if window.has_more_behind || limit.leaves_later_than(covered) {
                return Err(hole(segment.timeline, covered));
            }
            break;
        }
    }
    if covered == segment.start {
        return Ok(Fetched::Absent);
    }
    target.publish().await?;
    Ok(Fetched::Written)
}

/// How far a segment may be given.
struct Limit {
    /// Zeros from here on.
    end: Lsn,
    /// Where timelines with WAL left this one.
    forks: Vec<Lsn>,
}

impl Limit {
    fn leaves_later_than(&self, lsn: Lsn) -> bool {
        self.forks.iter().any(|fork| *fork > lsn)
    }
}

/// Looks at the timelines that left this one: see section "switch segment" of `docs/architecture.md`.
async fn follow_forks(reader: &WalReader, segment: Segment) -> Result<Limit> {
    let repository = reader.repository();
    let mut limit = Limit { end: segment.end(), forks: Vec::new() };
    for child in repository.read_timelines().await?.into_iter().filter(|timeline| *timeline > segment.timeline) {
        let Some(text) = repository.read_history_file(child).await? else { continue };
        let damaged = || Error::new(Kind::Damaged, format!("{} cannot be read", child.history_name()));
        let history = History::parse(child, &text).map_err(|error| damaged().because(error))?;
        let Some(fork) = history.switch_from(segment.timeline).filter(|fork| *fork > segment.start) else { continue };
        let coverage = repository.read_coverage(child, segment.start).await?;
        let is_inside = fork < segment.end();
        if !coverage.objects().is_empty() {
            limit.forks.push(fork);
            // Were it there, the server would have it: then it is not on the child's path, and this file is right.
            let is_there = coverage.run_holding(segment.start).is_some_and(|run| run.end > segment.start);
            let is_first = history.successor(segment.timeline) == Some(child);
            if is_inside && is_first && !is_there {
                return Err(Error::new(
                    Kind::Damaged,
                    format!("timeline {child} left in {segment} at {fork}, and its own copy of that segment is missing"),
                )
                .hint("The server would replay what never was on the new timeline. `seawall list` shows what can be reached."));
            }
        } else if is_inside && repository.read_coverage(segment.timeline, segment.end()).await?.objects().is_empty() {
            limit.end = limit.end.min(fork);
        }
    }
    Ok(limit)
}

#[cfg(test)]
#[path = "wal_fetch_tests.rs"]
mod tests;
