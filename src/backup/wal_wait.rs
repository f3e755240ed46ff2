//! Waits until the WAL that a base backup needs is in the repository. Without it the backup is of no use.

use crate::error::{Error, Kind, Result};
use crate::repository::{Coverage, GapNote, Repository, WalNeed};
use crate::runtime::{Backoff, RetryPolicy};
use crate::wal::{History, Lsn, TimelineId};
use async_trait::async_trait;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Says when WAL is durable in the repository.
#[async_trait]
pub trait WalWaiter: Send + Sync + Debug {
    /// Returns when every byte of every range is. May be dropped.
    ///
    /// # Errors
    /// If that cannot happen any more: [`Kind::Damaged`].
    async fn wait_covered(&self, ranges: &[WalNeed]) -> Result<()>;
}

/// Looks at the repository again and again, whoever it is that archives there.
#[derive(Clone, Debug)]
pub struct RepositoryWaiter {
    repository: Repository,
}

impl RepositoryWaiter {
    /// Pauses between two looks, each of which lists what is stored from the backup's start on. Short at first: with the end of the
    /// backup the server completes a segment, and an archiver that is up to date stores it at once.
    const PAUSES: RetryPolicy =
        RetryPolicy { first_pause: Duration::from_millis(50), longest_pause: Duration::from_secs(10), budget: None };
    /// How often the log says what is missing.
    const REMINDER: Duration = Duration::from_secs(60);
    /// An archiver stores objects side by side, so one may be there while an earlier one is not: never farther behind the
    /// hole than this, which is several times what it holds in memory.
    const REACH_BYTES: u64 = 128 << 20;
    /// A store that fails for longer fails the backup. Each look has its own retries already.
    const STORE_PATIENCE: Duration = Duration::from_secs(600);

    /// Waits for WAL in `repository`.
    pub fn new(repository: Repository) -> RepositoryWaiter {
        RepositoryWaiter { repository }
    }

    /// The first position of `need` that is not stored, or of a hole before it; `None` if all of it is and there is none.
    async fn missing(&self, need: WalNeed) -> Result<Option<Lsn>> {
        let reach = Lsn(need.start.0.saturating_sub(RepositoryWaiter::REACH_BYTES));
        let coverage = self.repository.read_coverage(need.timeline, reach).await?;
        let gaps = self.repository.read_gaps(need.timeline).await?;
        let Err(hole) = coverage.chain(need.start, need.end) else {
            return Ok(hole_before(&coverage, &gaps, need.start));
        };
        for gap in gaps {
            if gap.start < need.end && need.start < gap.end {
                let WalNeed { timeline, start, end } = need;
                return Err(Error::new(
                    Kind::Damaged,
                    format!(
                        "the base backup needs WAL {start}..{end} on timeline {timeline}, of which {}..{} is lost: {}",
                        gap.start, gap.end, gap.reason
                    ),
                )
                .hint("Take another base backup, and see that the archiver's slot keeps WAL meanwhile."));
            }
        }
        match self.left_before(need.timeline, need.end).await? {
            None => Ok(Some(hole)),
            Some((switch, next)) => Err(Error::new(
                Kind::Damaged,
                format!(
                    "the base backup needs WAL up to {} on timeline {}, which was left at {switch} for timeline {next}",
                    need.end, need.timeline
                ),
            )
            .hint("The server that it was taken of is no longer the one that is followed: take another base backup.")),
        }
    }

    /// Where the line that is archived now left `timeline`, if before `end`, and for which: WAL behind that does not come any more.
    async fn left_before(&self, timeline: TimelineId, end: Lsn) -> Result<Option<(Lsn, TimelineId)>> {
        let newest = self.repository.read_timelines().await?.into_iter().max();
        let Some(newest) = newest.filter(|newest| *newest > timeline) else { return Ok(None) };
        let Some(file) = self.repository.read_history_file(newest).await? else { return Ok(None) };
        let Ok(history) = History::parse(newest, &file) else { return Ok(None) };
        Ok(history.switch_from(timeline).filter(|switch| *switch < end).map(|switch| (switch, newest)))
    }
}

/// The first byte of a hole before `start` that nobody recorded. Where a finished base backup begins, everything before is
/// taken to be stored: in an island behind a hole it would hide that hole for good.
fn hole_before(coverage: &Coverage, gaps: &[GapNote], start: Lsn) -> Option<Lsn> {
    let run = coverage.run_holding(start)?;
    let before = coverage.runs().into_iter().rfind(|before| before.end < run.start)?;
    let mut hole = before.end;
    while let Some(gap) = gaps.iter().find(|gap| gap.start <= hole && hole < gap.end) {
        hole = gap.end;
    }
    (hole < run.start).then_some(hole)
}

#[async_trait]
impl WalWaiter for RepositoryWaiter {
    async fn wait_covered(&self, ranges: &[WalNeed]) -> Result<()> {
        let mut left = ranges.to_vec();
        let mut backoff = Backoff::new(RepositoryWaiter::PAUSES);
        let mut reminded = Instant::now();
        let mut failing_since = None;
        while let Some(&need) = left.last() {
            match self.missing(need).await {
                Ok(None) => {
                    left.pop();
                    backoff.reset();
                    continue;
                }
                Ok(Some(hole)) => {
                    failing_since = None;
                    if reminded.elapsed() >= RepositoryWaiter::REMINDER {
                        reminded = Instant::now();
                        remind(need.timeline, hole, need.end);
                    }
                }
                Err(error) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if error.kind() != Kind::Store || since.elapsed() > RepositoryWaiter::STORE_PATIENCE {
                        return Err(error);
                    }
                }
            }
            sleep(backoff.next_pause()).await;
        }
        Ok(())
    }
}

fn remind(timeline: TimelineId, hole: Lsn, end: Lsn) {
    tracing::warn!(
        %timeline, from = %hole, to = %end,
        "the base backup waits for WAL: does `seawall run` archive this cluster? On an idle server the end of it may \
         take a moment, on a standby until the primary writes more"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use crate::repository::{FORMAT_VERSION, Key, Layout, Writer};
    use crate::store::MemoryStore;
    use crate::wal::{SegmentSize, WalRange};
    use bytes::Bytes;
    use jiff::Timestamp;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn repository() -> (Repository, Writer) {
        let layout = Layout::new("main", SegmentSize::new(MIB).unwrap(), Compression::Lz4);
        let repository = Repository { store: Arc::new(MemoryStore::new()), layout: layout.clone() };
        let writer = Writer::new(repository.store.clone(), layout, 7);
        (repository, writer)
    }

    async fn store(writer: &Writer, start: u64, end: u64) {
        let range = WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) };
        let key = if range.bytes() == MIB { Key::Block(range) } else { Key::Tail(range) };
        writer.store_wal(&key, range, Bytes::from(vec![7; range.bytes() as usize])).await.unwrap();
    }

    fn need(start: u64, end: u64) -> WalNeed {
        WalNeed { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_byte_is_waited_for_and_tails_count() {
        // Given a repository that has all but the end of what a backup needs
        let (repository, writer) = repository();
        store(&writer, MIB, 2 * MIB).await;
        let waiter = RepositoryWaiter::new(repository);
        let ranges = [need(MIB + 0x28, 2 * MIB + 100)];
        let mut waiting = Box::pin(waiter.wait_covered(&ranges));
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut waiting).await.is_err(), "it did not wait");
        // When a tail brings the rest but for one byte, then it goes on waiting
        store(&writer, 2 * MIB, 2 * MIB + 99).await;
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut waiting).await.is_err(), "a byte was missing");
        // When that is there too, then it ends
        store(&writer, 2 * MIB + 99, 2 * MIB + 200).await;
        tokio::time::timeout(Duration::from_secs(300), waiting).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeline_that_was_left_before_the_end_of_the_backup_ends_the_waiting() {
        // Given a backup of a server that was left behind, at a position that it had passed
        let (repository, writer) = repository();
        store(&writer, MIB, 2 * MIB).await;
        let history = format!("1\t0/{:X}\tno recovery target specified\n", 2 * MIB + 100);
        writer.store_plain(&Key::History(TimelineId(2)), Bytes::from(history)).await.unwrap();
        let waiter = RepositoryWaiter::new(repository);
        // Then it does not wait for WAL that never comes
        let error = waiter.wait_covered(&[need(MIB, 2 * MIB + 101)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("left at 0/200064 for timeline 2"), "{error}");
        // And one that ends before that is waited for
        let before = [need(MIB, 2 * MIB + 100)];
        let waiting = tokio::time::timeout(Duration::from_secs(300), waiter.wait_covered(&before));
        assert!(waiting.await.is_err(), "the rest of it still comes");
    }

    #[tokio::test(start_paused = true)]
    async fn wal_that_is_recorded_as_lost_ends_the_waiting() {
        let (repository, writer) = repository();
        let note = GapNote {
            format: FORMAT_VERSION,
            timeline: TimelineId(1),
            start: Lsn(2 * MIB),
            end: Lsn(3 * MIB),
            found_at: Timestamp::UNIX_EPOCH,
            reason: "the slot was lost".into(),
        };
        let range = WalRange { timeline: note.timeline, start: note.start, end: note.end };
        writer.store_document(&Key::Gap(range), &note).await.unwrap();
        let waiter = RepositoryWaiter::new(repository);
        let error = waiter.wait_covered(&[need(MIB, 2 * MIB + 1)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("the slot was lost"), "{error}");
        // A gap elsewhere is no reason.
        let before = [need(MIB, 2 * MIB)];
        let waiting = waiter.wait_covered(&before);
        assert!(
            tokio::time::timeout(Duration::from_secs(300), waiting).await.is_err(),
            "a gap behind the backup counted"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_backup_in_an_island_waits_for_the_hole_before_it() {
        // Given a stored block, a hole, and all that the backup needs
        let (repository, writer) = repository();
        store(&writer, MIB, 2 * MIB).await;
        store(&writer, 3 * MIB, 4 * MIB).await;
        store(&writer, 4 * MIB, 5 * MIB).await;
        let waiter = RepositoryWaiter::new(repository);
        let ranges = [need(3 * MIB + 0x28, 5 * MIB)];
        let mut waiting = Box::pin(waiter.wait_covered(&ranges));
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut waiting).await.is_err(), "it did not wait");
        // When one part of the hole is stored and the other recorded as lost, then it ends
        store(&writer, 2 * MIB, 2 * MIB + 100).await;
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut waiting).await.is_err(), "half a hole is a hole");
        let note = GapNote {
            format: FORMAT_VERSION,
            timeline: TimelineId(1),
            start: Lsn(2 * MIB + 100),
            end: Lsn(3 * MIB),
            found_at: Timestamp::UNIX_EPOCH,
            reason: "the slot was lost".into(),
        };
        let range = WalRange { timeline: note.timeline, start: note.start, end: note.end };
        writer.store_document(&Key::Gap(range), &note).await.unwrap();
        tokio::time::timeout(Duration::from_secs(300), waiting).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_needed_is_there_at_once() {
        let waiter = RepositoryWaiter::new(repository().0);
        waiter.wait_covered(&[]).await.unwrap();
    }
}
