//! WAL fetched ahead of a server in recovery, behind its back: while it replays what the spool has, a process of its own
//! fetches what comes next. Only for a pinned path, on which nothing changes any more.
//!
//! Such a process fetches one batch and ends. One works at a time; the next is wanted when the spool runs low.

use super::pin::Pin;
use super::spool::Spool;
use super::wal_fetch::{fetch_ahead, following, pinned_end};
use crate::error::Result;
use crate::repository::WalReader;
use crate::runtime::Tasks;
use crate::wal::{Segment, SegmentSize};
use std::path::Path;
use std::time::Duration;

/// Segments in a batch at most.
const BATCH_SEGMENTS: u64 = 8;
/// Bytes in a batch at most.
pub(super) const BATCH_BYTES: u64 = 128 << 20;
/// Fetched at once: each takes up to 32 MiB of memory.
const FETCHES: usize = 2;
/// Between two looks at a batch that is being fetched.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// A batch that takes longer has met a slow store: whoever waits asks it himself.
const LOOKS: usize = 5000;

/// Those who only look hold the lock for a moment.
const TRIES: usize = 10;

/// The segments that follow on the path, as many as a batch has.
fn next(segment: Segment, pin: &Pin) -> Result<Vec<Segment>> {
    let count = BATCH_SEGMENTS.min(BATCH_BYTES / segment.size.bytes());
    Ok(match pinned_end(segment, pin)? {
        Some(end) => following(segment, end, count).collect(),
        None => Vec::new(),
    })
}

fn parse(name: &str, pin: &Pin) -> Option<Segment> {
    SegmentSize::new(pin.segment_bytes).and_then(|size| Segment::parse(name, size).ok())
}

/// Moves the file called `name` from the spool to `destination`, without a look at the store; waits for it while a batch
/// is being fetched. False if it has to be fetched.
///
/// # Errors
/// If the disk refuses.
pub async fn take(name: &str, destination: &Path, pin: &Pin, data_directory: &Path) -> Result<bool> {
    let spool = Spool::pinned(pin, data_directory)?;
    let Some(segment) = parse(name, pin).filter(|_| pin.needs(name)) else { return Ok(false) };
    for _ in 0..LOOKS {
        // In this order: what a batch brought is there when it has ended.
        let is_idle = !spool.is_busy().await?;
        if spool.take(segment, destination).await? {
            return Ok(true);
        }
        if is_idle {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(false)
}

/// True if the spool runs low behind the file called `name`, and nobody fetches a batch.
///
/// # Errors
/// If the disk refuses.
pub async fn is_low(name: &str, pin: &Pin, data_directory: &Path) -> Result<bool> {
    let spool = Spool::pinned(pin, data_directory)?;
    let Some(segment) = parse(name, pin).filter(|_| pin.needs(name)) else { return Ok(false) };
    let next = next(segment, pin)?;
    let mut there = 0;
    for segment in &next {
        there += usize::from(spool.has(*segment).await?);
    }
    Ok(there < next.len().min(BATCH_SEGMENTS as usize / 2) && !spool.is_busy().await?)
}

/// Fetches the batch behind the file called `name` into the spool, unless somebody else does. What fails is left to the
/// call that asks for it in earnest.
///
/// # Errors
/// If the disk refuses.
pub async fn fill(reader: &WalReader, name: &str, pin: &Pin, data_directory: &Path) -> Result<()> {
    let spool = Spool::pinned(pin, data_directory)?;
    let Some(segment) = parse(name, pin).filter(|_| pin.needs(name)) else { return Ok(()) };
    // Once: whoever waits for another's end may wait beyond the end of recovery, and must not bring the spool back.
    spool.prepare().await?;
    let mut lock = spool.lock().await?;
    for _ in 0..TRIES {
        if lock.is_none() {
            tokio::time::sleep(LOOK_PAUSE).await;
            lock = spool.lock().await?;
        }
    }
    let Some(_lock) = lock else { return Ok(()) };
    let mut tasks = Tasks::default();
    for next in next(segment, pin)? {
        while tasks.len() >= FETCHES {
            if let Some(ended) = tasks.next().await {
                ended??;
            }
        }
        tasks.start(fetch_ahead(reader.clone(), spool.clone(), next));
    }
    while let Some(ended) = tasks.next().await {
        ended??;
    }
    spool.remove_before(segment).await
}
