//! `restore_command`: one file of WAL for a server in recovery. Uses `repository`, and `runtime` to wait.
//!
//! PostgreSQL takes "absent" for the end of the archive and ends recovery with it, so absence is said only where it is
//! proven; whatever is in doubt is an error, and the server stops where a person can see it.
//!
//! With a [`Pin`] (a restore), what is served is what the plan saw: each timeline up to where the path leaves it, then
//! zeros. Without one (a standby), the newest timeline is followed as PostgreSQL follows it, and the end moves.

use super::pin::Pin;
use super::served;
use super::spool::{Spool, Staged};
use crate::error::{Error, Kind, Result};
use crate::repository::{Repository, WalReader};
use crate::runtime::{self, Backoff, RetryPolicy, Tasks};
use crate::wal::{History, Lsn, Segment, TimelineId, WalRange};
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Segments fetched ahead at most.
const AHEAD_SEGMENTS: u64 = 4;
/// Bytes fetched ahead at most: disk, and nearly as much memory.
const AHEAD_BYTES: u64 = 64 << 20;
/// How long a hole with later WAL behind it may last while an archiver is at work: uploads end in any order.
const HOLE_PATIENCE: RetryPolicy = RetryPolicy {
    first_pause: Duration::from_millis(100),
    longest_pause: Duration::from_secs(5),
    budget: Some(Duration::from_secs(30)),
};

/// What became of a request. Every error is exit code 255, never 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// The file is at its destination, whole and on disk: exit code 0.
    Written,
    /// The archive is proven not to have it, or, for a standby, no more of it than the standby has: exit code 1, which
    /// ends recovery and makes a standby ask again later.
    Absent,
}

/// Brings the file that PostgreSQL calls `name` to `destination`. `data_directory` is where segments fetched ahead are
/// spooled; PostgreSQL starts a `restore_command` there. Calls for one data directory come one after another.
///
/// Dropping the future leaves nothing at the destination.
///
/// # Errors
/// If the store or the disk fails, the pin is another cluster's, stored WAL is damaged, or there is a hole with later
/// WAL behind it ([`Kind::Damaged`]).
pub async fn fetch(
    reader: &WalReader,
    name: &str,
    destination: &Path,
    pin: Option<&Pin>,
    data_directory: &Path,
) -> Result<Fetched> {
    if let Some(pin) = pin {
        check_pin(reader, pin)?;
    }
    let spool = match pin {
        Some(pin) => Spool::pinned(pin, data_directory)?,
        None => Spool::of(reader, data_directory),
    };
    let fetched = if let Some(timeline) = TimelineId::parse_history_name(name) {
        fetch_history(reader.repository(), timeline, destination).await?
    } else if let Some(segment) = parse_segment(reader, name)? {
        fetch_segment(reader, segment, destination, pin, data_directory, &spool).await?
    } else {
        Fetched::Absent
    };
    if fetched == Fetched::Absent {
        prove_repository(reader).await?;
        // The end of recovery, as far as one can see: PostgreSQL asks for histories that are not there last of all.
        spool.clear(destination).await?;
    }
    Ok(fetched)
}

fn check_pin(reader: &WalReader, pin: &Pin) -> Result<()> {
    let ours = reader.system_identifier();
    if pin.system_identifier != ours.to_string() {
        let text = format!("the restore is of cluster {}, the repository holds cluster {ours}", pin.system_identifier);
        return Err(Error::new(Kind::Refused, text).hint("Do --repo and --cluster name what was restored?"));
    }
    if pin.path.is_empty() {
        return Err(Error::new(Kind::Damaged, "the restore's pin names no timeline").hint("Restore again."));
    }
    Ok(())
}

/// `None` for what is no segment at all.
fn parse_segment(reader: &WalReader, name: &str) -> Result<Option<Segment>> {
    match Segment::parse(name, reader.repository().layout.segment_size()) {
        Ok(segment) => Ok(Some(segment)),
        // A segment of another size than the archive's: "absent" would end recovery.
        Err(error) if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Err(Error::new(Kind::Refused, "the server asks for a segment that cannot be in this repository")
                .because(error)
                .hint("Do --repo and --cluster name what was restored?"))
        }
        Err(_) => Ok(None),
    }
}

/// A directory that is not mounted, or another bucket, has nothing either: absence counts only where the cluster is.
async fn prove_repository(reader: &WalReader) -> Result<()> {
    let repository = reader.repository();
    let (store, name) = (repository.store.as_ref(), repository.layout.cluster());
    match Repository::read_cluster(store, name).await? {
        Some(cluster) if cluster.system_identifier == reader.system_identifier() => Ok(()),
        _ => Err(Error::new(Kind::Store, format!("{} no longer holds the cluster {name}", store.describe()))
            .hint("Is the file system mounted, and is it the right bucket?")),
    }
}

/// Serves every history that exists, on the path or not: at its end a server asks for one number after another, and
/// takes the first that is absent for itself. A wrong "absent" makes two clusters one timeline.
async fn fetch_history(repository: &Repository, timeline: TimelineId, destination: &Path) -> Result<Fetched> {
    // Twice: it may be stored between the reading and the listing.
    for _ in 0..2 {
        if let Some(text) = repository.read_history_file(timeline).await? {
            parse_history(timeline, &text)?;
            let bytes = text.len() as u64;
            Staged::create(destination).await?.append(vec![text]).await?.publish(bytes).await?;
            return Ok(Fetched::Written);
        }
        // The first timeline has no history, and nobody asks for it.
        if timeline == TimelineId(1) || !repository.read_timelines().await?.contains(&timeline) {
            return Ok(Fetched::Absent);
        }
    }
    let text = format!("timeline {timeline} has WAL, but {} is gone", timeline.history_name());
    Err(Error::new(Kind::Damaged, text)
        .hint("Copy it from pg_wal of a server that has been on that timeline, or from a copy of the bucket."))
}

fn parse_history(timeline: TimelineId, text: &[u8]) -> Result<History> {
    let damaged = |error| Error::new(Kind::Damaged, format!("{} is damaged", timeline.history_name())).because(error);
    History::parse(timeline, text).map_err(damaged)
}

/// What may be served of a timeline.
struct View {
    /// The first byte that is not: zeros are served from here on.
    end: Lsn,
    /// Every byte before `end` was there when the restore was planned.
    is_pinned: bool,
    /// Without a pin: where newer timelines lead.
    newest: Option<History>,
}

async fn fetch_segment(
    reader: &WalReader,
    segment: Segment,
    destination: &Path,
    pin: Option<&Pin>,
    data_directory: &Path,
    spool: &Spool,
) -> Result<Fetched> {
    let view = match pin {
        Some(pin) => match pinned_end(segment, pin)? {
            Some(end) => View { end, is_pinned: true, newest: None },
            None => return Ok(Fetched::Absent),
        },
        None => {
            let newest = newest_descendant(reader.repository(), segment.timeline).await?;
            let switch = newest.as_ref().and_then(|newest| newest.switch_from(segment.timeline));
            View { end: switch.unwrap_or(Lsn(u64::MAX)), is_pinned: false, newest }
        }
    };
    if view.end <= segment.start {
        return Ok(Fetched::Absent);
    }
    if segment.end() <= view.end && spool.take(segment, destination).await? {
        return Ok(Fetched::Written);
    }
    if !view.is_pinned
        && let Some(end) = served::until(segment, data_directory, destination).await?
    {
        let is_all = match view.newest {
            Some(_) => end >= view.end.min(segment.end()),
            None => {
                reader.repository().read_coverage(segment.timeline, end).await?.end().is_none_or(|last| last <= end)
            }
        };
        if is_all {
            return Ok(Fetched::Absent);
        }
    }
    let mut ahead = Tasks::default();
    let is_servers = is_data_directory(data_directory).await?;
    let count = if is_servers { AHEAD_SEGMENTS.min(AHEAD_BYTES / segment.size.bytes()) } else { 0 };
    for next in following(segment, view.end, count) {
        if ahead.is_empty() {
            spool.prepare().await?;
        }
        ahead.start(fetch_ahead(reader.clone(), spool.clone(), next));
    }
    match write_segment(reader, segment, &view, destination).await? {
        Some(end) if end == segment.end() => {
            // PostgreSQL asks for these next; who fails says so when asked in earnest.
            while ahead.next().await.is_some() {}
            Ok(Fetched::Written)
        }
        Some(end) => {
            if is_servers && !view.is_pinned {
                served::remember(data_directory, segment, end, destination).await?;
            }
            Ok(Fetched::Written)
        }
        None => Ok(Fetched::Absent),
    }
}

/// False where a person fetches a segment: in his directory nothing else is put.
async fn is_data_directory(path: &Path) -> Result<bool> {
    let version = path.join("PG_VERSION");
    runtime::blocking(move || version.exists()).await
}

/// Where the pinned path ends within or behind `segment` on its timeline; `None` if the path needs nothing of it.
///
/// # Errors
/// If the path has left the timeline within the segment and has WAL behind. PostgreSQL asks for the newer timeline's
/// segment first and takes the older one's, with whatever a dead branch wrote there, only if that is missing: recovery
/// would then replay what never happened, and end early without an error.
pub(super) fn pinned_end(segment: Segment, pin: &Pin) -> Result<Option<Lsn>> {
    let Some(index) = pin.path.iter().position(|part| part.timeline == segment.timeline) else {
        return Ok(None);
    };
    let part = pin.path[index];
    let end = pin.path.last().map_or(part.end, |last| last.end);
    let begins = segment.size.segment_start(part.start);
    if part.end <= part.start || segment.start >= end || segment.end() <= begins {
        return Ok(None);
    }
    if part.end < segment.end() && part.end < end {
        let next =
            pin.path[index + 1..].iter().find(|next| next.start < next.end).map_or(part.timeline, |next| next.timeline);
        let wanted = Segment { timeline: next, ..segment };
        let text = format!("the server asks for {segment}, so it did not get {wanted}, where the restore goes on");
        return Err(Error::new(Kind::Damaged, text).hint(format!(
            "Timeline {} was left at {}: replaying it further would bring back what never happened. What became of {wanted}?",
            part.timeline, part.end
        )));
    }
    Ok(Some(part.end.min(end)))
}

/// The history of the timeline that a server on `timeline` follows next: the newest of those without a gap in their
/// numbers, if it descends from it (`timeline.c`, `findNewestTimeLine`, and `rescanLatestTimeLine`).
async fn newest_descendant(repository: &Repository, timeline: TimelineId) -> Result<Option<History>> {
    let mut newest = None;
    for number in timeline.0.saturating_add(1).. {
        let Some(text) = repository.read_history_file(TimelineId(number)).await? else { break };
        newest = Some(parse_history(TimelineId(number), &text)?);
    }
    Ok(newest.filter(|newest| newest.passes(timeline)))
}

/// Writes what the archive has of a segment, filled up with zeros; says where the zeros begin, or `None` if it has
/// nothing. One block is in memory at a time.
async fn write_segment(reader: &WalReader, segment: Segment, view: &View, destination: &Path) -> Result<Option<Lsn>> {
    let end = segment.end().min(view.end);
    let mut staged: Option<Staged> = None;
    let mut position = segment.start;
    let mut patience = Patience::new();
    while position < end {
        let block_end = segment.size.block_end(position).min(end);
        let range = WalRange { timeline: segment.timeline, start: position, end: block_end };
        let window = reader.read_range(range).await?;
        if window.end > position {
            let file = match staged.take() {
                Some(file) => file,
                None => Staged::create(destination).await?,
            };
            staged = Some(file.append(window.pieces).await?);
            position = window.end;
        }
        if position == block_end {
            continue;
        }
        if view.is_pinned {
            return Err(hole(segment.timeline, position, "which was there when the restore was planned"));
        }
        if !window.has_more_behind && !continues(reader.repository(), segment.timeline, view).await? {
            break;
        }
        if position == segment.start && begins_behind(reader.repository(), segment).await? {
            break;
        }
        if !patience.wait().await {
            return Err(hole(segment.timeline, position, "and there is later WAL behind"));
        }
    }
    match staged {
        Some(file) => file.publish(segment.size.bytes()).await.map(|()| Some(position)),
        None => Ok(None),
    }
}

/// Writes a segment of the pinned path to `destination`.
///
/// # Errors
/// As [`fetch`]; also if the path needs nothing of the segment.
pub(super) async fn write_pinned(reader: &WalReader, segment: Segment, pin: &Pin, destination: &Path) -> Result<()> {
    let end = pinned_end(segment, pin)?;
    let view = View { end: end.unwrap_or(segment.start), is_pinned: true, newest: None };
    match write_segment(reader, segment, &view, destination).await? {
        Some(_) => Ok(()),
        None => Err(hole(segment.timeline, segment.start, "which was there when the restore was planned")),
    }
}

fn hole(timeline: TimelineId, position: Lsn, why: &str) -> Error {
    Error::new(Kind::Damaged, format!("the repository has no WAL at {position} on timeline {timeline}, {why}")).hint(
        "`seawall list` shows the holes and what can still be restored. Does anything else delete in the repository?",
    )
}

/// True if a newer timeline that the path goes on to has WAL.
async fn continues(repository: &Repository, timeline: TimelineId, view: &View) -> Result<bool> {
    let path = view.newest.as_ref().map(History::path).unwrap_or_default();
    for (next, start, _) in path.into_iter().filter(|(next, ..)| *next > timeline) {
        if !repository.read_coverage(next, start).await?.objects().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// True if the segment's timeline begins in a later segment.
async fn begins_behind(repository: &Repository, segment: Segment) -> Result<bool> {
    let Some(text) = repository.read_history_file(segment.timeline).await? else { return Ok(false) };
    let first = parse_history(segment.timeline, &text)?.first_file_byte(segment.timeline, segment.size);
    Ok(first.is_some_and(|first| segment.end() <= first))
}

/// Waits for a hole to close, up to a limit.
struct Patience {
    backoff: Backoff,
    until: Option<Instant>,
}

impl Patience {
    fn new() -> Patience {
        Patience { backoff: Backoff::new(HOLE_PATIENCE), until: None }
    }

    /// False if it has run out.
    async fn wait(&mut self) -> bool {
        let budget = HOLE_PATIENCE.budget.unwrap_or_default();
        let until = *self.until.get_or_insert_with(|| Instant::now() + budget);
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(self.backoff.next_pause()).await;
        true
    }
}

/// The segments to fetch ahead: so many at most, and none that holds the end.
pub(super) fn following(segment: Segment, end: Lsn, count: u64) -> impl Iterator<Item = Segment> {
    let next = std::iter::successors(Some(segment.next()), |segment| Some(segment.next()));
    next.take(count as usize).take_while(move |segment| segment.end() <= end)
}

/// Spools a segment of which every block is stored whole; anything else is nothing to spool.
pub(super) async fn fetch_ahead(reader: WalReader, spool: Spool, segment: Segment) -> Result<()> {
    if spool.has(segment).await? {
        return Ok(());
    }
    let mut staged: Option<Staged> = None;
    let mut position = segment.start;
    while position < segment.end() {
        let block: Option<Bytes> = reader.read_block(segment.timeline, position).await?;
        let Some(block) = block else { return Ok(()) };
        let file = match staged.take() {
            Some(file) => file,
            // Where the directory is gone, nobody wants it any more.
            None => Staged::create(&spool.path(segment)).await?,
        };
        staged = Some(file.append(vec![block]).await?);
        position = segment.size.block_end(position);
    }
    match staged {
        Some(file) => file.publish(segment.size.bytes()).await,
        None => Ok(()),
    }
}
