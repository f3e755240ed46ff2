//! Where to go on: from the slot, the repository and the server's history to a position. The listing is made once,
//! here; what follows from it is pure.

use super::source::{ServerIdentity, Session, SourceError, SourceErrorKind};
use super::{ancestry, dead_branch};
use crate::error::{Error, Kind};
use crate::repository::{Coverage, Repository, Stored, Writer};
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::BTreeSet;

/// So much has to be equal to show that a server's past is the repository's. Less may be equal by chance, if two servers
/// that went apart in an earlier segment have begun this one alike: with a checkpoint, say.
const OVERLAP_BYTES_MIN: u64 = 1 << 20;

/// Where the stream goes on, and what is stored from there on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Resume {
    /// The timeline to ask for.
    pub timeline: TimelineId,
    /// The position to ask for: the first byte of a segment, or the end of what is stored where that is one.
    pub start: Lsn,
    /// `[start, overlap_end)` is stored without a gap.
    pub overlap_end: Lsn,
    /// What is stored from `start` on, islands behind the overlap included.
    pub known: Vec<Stored>,
    /// The path from the first timeline to the server's.
    pub history: History,
    /// Where this timeline ends, on that path or on the one that the repository follows, if it does. Bytes behind it are
    /// not taken.
    pub switch: Option<Lsn>,
}

impl Resume {
    /// Begins later within the overlap, or at its end, with the first byte of a segment: the server has those before no
    /// more. Where that is the end, exactly this position was acknowledged to it.
    pub(super) fn begin_at(&mut self, lsn: Lsn) {
        if self.start < lsn && lsn <= self.overlap_end {
            self.start = lsn;
            self.known.retain(|stored| stored.range.start >= lsn);
        }
    }
}

/// An error on the way to a position: the server's, or ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Everything else.
    #[error(transparent)]
    Other(#[from] Error),
}

impl From<crate::store::StoreError> for ResumeError {
    fn from(error: crate::store::StoreError) -> ResumeError {
        ResumeError::Other(error.into())
    }
}

/// Reads the server's history, compares it with what is stored, stores what is new, and finds the position.
///
/// # Errors
/// [`SourceErrorKind::Apart`] and [`SourceErrorKind::OtherPath`] if the server's past is not the repository's, or it has
/// not come as far; otherwise what the server or the store says.
pub(super) async fn find(
    session: &mut dyn Session,
    writer: &Writer,
    repository: &Repository,
    restart_lsn: Option<Lsn>,
    kept_in_tails: &BTreeSet<(TimelineId, Lsn)>,
) -> Result<Resume, ResumeError> {
    let ancestry = ancestry::establish(session, writer, repository).await?;
    let resume = locate(session.identity(), repository, ancestry, restart_lsn, kept_in_tails).await?;
    // Before anything is stored of a timeline, what its predecessor has behind the switch point is looked after.
    let timelines = repository.read_timelines().await?;
    let before = resume.history.path().into_iter().rev().skip_while(|(timeline, ..)| *timeline >= resume.timeline);
    for (parent, _, switch) in before.filter(|(timeline, ..)| timelines.contains(timeline)).take(1) {
        if let Some(switch) = switch
            && let Some(dead) = dead_branch::settle(writer, repository, parent, switch).await?
        {
            tracing::warn!(
                branch = %dead,
                "a dead branch: this was stored of a timeline behind the point where it was left; it is kept and flagged, \
                 and restores pass it by unless its timeline is asked for"
            );
        }
    }
    Ok(resume)
}

async fn locate(
    identity: ServerIdentity,
    repository: &Repository,
    ancestry: ancestry::Ancestry,
    restart_lsn: Option<Lsn>,
    kept_in_tails: &BTreeSet<(TimelineId, Lsn)>,
) -> Result<Resume, ResumeError> {
    let (history, size) = (ancestry.history, identity.segment_size);
    let timelines = repository.read_timelines().await?;
    for (timeline, begin, switch) in history.path().into_iter().rev() {
        if !timelines.contains(&timeline) {
            continue;
        }
        let followed_on = ancestry.left_at.filter(|_| timeline == history.timeline);
        let switch = switch.or(followed_on.map(|(switch, _)| switch));
        let first = size.segment_start(begin);
        // Where a finished backup starts, everything before was stored. A slot proves nothing of the kind: it may be
        // newer than what is missing.
        let backup = repository.newest_backup(Some((timeline, switch))).await?;
        let from = backup.map_or(first, |backup| backup.start_lsn.max(first));
        let restart_lsn = restart_lsn.filter(|lsn| switch.is_none() && *lsn >= first);
        let hint = restart_lsn.map_or(from, |restart_lsn| restart_lsn.min(from));
        // One segment more, which may have to be compared.
        let listed_from = Lsn(hint.0.saturating_sub(size.bytes())).max(first);
        let mut coverage = repository.read_coverage(timeline, listed_from).await?;
        if coverage.run_holding(hint).is_none() && hint > first {
            coverage = repository.read_coverage(timeline, first).await?;
        }
        let gaps = repository.read_gaps(timeline).await?;
        if coverage.objects().is_empty() && gaps.is_empty() {
            continue;
        }
        let gaps: Vec<WalRange> =
            gaps.iter().map(|gap| WalRange { timeline, start: gap.start, end: gap.end }).collect();
        // Nothing is stored as early as that. What was begun, by this slot or on the timeline before, is to be complete.
        let begun = restart_lsn.map(|restart_lsn| size.segment_start(restart_lsn));
        let begun = match has_stored_parent(repository, &history, timeline, begin).await? {
            true => Some(first),
            false => begun,
        };
        let end = stored_end(&coverage, &gaps, hint, begun);
        if let Some(switch) = switch
            && end >= switch
            && (is_sealed(&coverage, size, switch)
                || is_lost_at(&gaps, switch)
                || kept_in_tails.contains(&(timeline, switch)))
        {
            return match history.successor(timeline) {
                Some(next) => Ok(enter(repository, &history, next, size).await?),
                None => Err(behind(identity, followed_on.map_or(timeline, |(_, next)| next), switch).into()),
            };
        }
        let end = switch.map_or(end, |switch| end.min(switch));
        return Ok(resume_at(size, timeline, end, &coverage, history.clone(), switch));
    }
    // Nothing is stored on the server's path: begin where the slot does, or where the server is now.
    let from = restart_lsn.unwrap_or(identity.flush_lsn).min(identity.flush_lsn);
    let timeline = history.timeline_at(from);
    let start = size.segment_start(from);
    let left_at = ancestry.left_at.filter(|_| timeline == history.timeline);
    let switch = history.switch_from(timeline).or(left_at.map(|(switch, _)| switch));
    Ok(Resume { timeline, start, overlap_end: start, known: Vec::new(), history, switch })
}

/// The end of the gap-free run that holds `hint`, recorded holes stepped over. Where nothing holds it, the end of the
/// last run before it: whether the server still has what is between is for the server to say. Where nothing is before
/// it either, `begun`, if that is known and before the first run, or else the end of that.
fn stored_end(coverage: &Coverage, gaps: &[WalRange], hint: Lsn, begun: Option<Lsn>) -> Lsn {
    let runs = coverage.runs();
    let held = coverage.run_holding(hint).map(|run| run.end);
    let before = runs.iter().rev().find(|run| run.end <= hint).map(|run| run.end);
    // A hole was recorded where somebody had come so far.
    let begun = gaps.iter().map(|gap| gap.start).chain(begun).min();
    let begun = begun.filter(|begun| runs.first().is_none_or(|run| *begun < run.start));
    let mut end = held.or(before).or(begun).or(runs.first().map(|run| run.end)).unwrap_or(hint);
    while let Some(gap) = gaps.iter().find(|gap| gap.start <= end && end < gap.end) {
        end = coverage.run_holding(gap.end).map_or(gap.end, |run| run.end);
    }
    end
}

fn resume_at(
    size: SegmentSize,
    timeline: TimelineId,
    end: Lsn,
    coverage: &Coverage,
    history: History,
    switch: Option<Lsn>,
) -> Resume {
    // The segment that holds the last stored byte comes again, so that it can be compared. Behind a recorded hole there
    // is no such byte, and the server has nothing of that segment.
    let is_stored = coverage.run_holding(end).is_some_and(|run| run.start < end);
    let last = size.segment_start(if is_stored { Lsn(end.0.saturating_sub(1)) } else { end });
    // A few bytes may be equal by chance: where there are no more in it, the segment before comes again as well.
    let before = Lsn(last.0.saturating_sub(size.bytes()));
    let is_little = is_stored && end - last < OVERLAP_BYTES_MIN && before < last;
    let start = if is_little && coverage.chain(before, last).is_ok() { before } else { last };
    let overlap_end = coverage.chain(start, end).map_or_else(|hole| hole, |_| end);
    let usable = |stored: &&Stored| stored.range.start >= start && switch.is_none_or(|x| stored.range.end <= x);
    let known = coverage.objects().iter().filter(usable).cloned().collect();
    Resume { timeline, start, overlap_end, known, history, switch }
}

/// The same position, with what is stored from there on now.
///
/// # Errors
/// If the store fails.
pub(super) async fn look_again(repository: &Repository, resume: Resume) -> Result<Resume, Error> {
    let Resume { start, overlap_end, switch, .. } = resume;
    let coverage = repository.read_coverage(resume.timeline, start).await?;
    let end = coverage.run_holding(overlap_end).map_or(overlap_end, |run| run.end);
    let end = switch.map_or(end, |switch| end.min(switch)).max(overlap_end);
    let usable = |stored: &&Stored| stored.range.start >= start && switch.is_none_or(|x| stored.range.end <= x);
    let known = coverage.objects().iter().filter(usable).cloned().collect();
    Ok(Resume { overlap_end: end, known, ..resume })
}

/// True if what is stored of the last block before the switch point is permanent: the timeline is finished. An object that
/// reaches over the switch point does not count: only the server that left the timeline there says what comes before.
fn is_sealed(coverage: &Coverage, size: SegmentSize, switch: Lsn) -> bool {
    let survives = |stored: &&Stored| stored.is_block && stored.range.end <= switch;
    let permanent = Coverage::new(coverage.objects().iter().filter(survives).cloned().collect());
    let unsealed = unsealed_before(coverage, size, switch);
    unsealed.is_some_and(|start| permanent.chain(start, switch).is_ok())
}

/// Where what is stored of the last block before the switch point begins; `None` if nothing is.
pub(super) fn unsealed_before(coverage: &Coverage, size: SegmentSize, switch: Lsn) -> Option<Lsn> {
    let run = coverage.run_holding(switch).filter(|run| run.start < switch)?;
    Some(run.start.max(size.block_start(Lsn(switch.0 - 1))))
}

/// True if what comes before the switch point is recorded as lost: there is nothing left to wait for.
fn is_lost_at(gaps: &[WalRange], switch: Lsn) -> bool {
    gaps.iter().any(|gap| gap.start < switch && switch <= gap.end)
}

/// The position after a switch to `timeline`: its first segment, from its first byte, or what is stored of it already.
///
/// # Errors
/// If the store fails.
async fn enter(
    repository: &Repository,
    history: &History,
    timeline: TimelineId,
    size: SegmentSize,
) -> Result<Resume, Error> {
    let mut timeline = timeline;
    let first = history.first_file_byte(timeline, size).unwrap_or(Lsn::INVALID);
    // One that was left where it began, at the first byte of a segment, has no byte of its own.
    while let (Some(switch), Some(next)) = (history.switch_from(timeline), history.successor(timeline))
        && switch <= first
    {
        timeline = next;
    }
    let switch = history.switch_from(timeline);
    let coverage = repository.read_coverage(timeline, first).await?;
    let end = coverage.run_holding(first).map_or(first, |run| run.end);
    let end = switch.map_or(end, |switch| end.min(switch));
    if end == first {
        let known = coverage.objects().to_vec();
        return Ok(Resume { timeline, start: first, overlap_end: first, known, history: history.clone(), switch });
    }
    Ok(resume_at(size, timeline, end, &coverage, history.clone(), switch))
}

/// The server has nothing that is not stored: a standby that lags, or a server that has lost WAL.
pub(super) fn behind(identity: ServerIdentity, timeline: TimelineId, end: Lsn) -> SourceError {
    let what = format!(
        "the server is on timeline {} at {}, and everything up to {end} of timeline {timeline} is stored already",
        identity.timeline, identity.flush_lsn
    );
    let error = Error::new(Kind::Postgres, what).hint(
        "Is this a standby that has not caught up? Then it will. Was the server rolled back to a snapshot, or restored from \
         an earlier backup? Then it needs another --cluster name.",
    );
    SourceError::new(SourceErrorKind::OtherPath, error)
}

/// True if anything is stored of the timeline that `timeline` left at `begin`.
async fn has_stored_parent(
    repository: &Repository,
    history: &History,
    timeline: TimelineId,
    begin: Lsn,
) -> Result<bool, ResumeError> {
    let parent = history.ancestors.iter().rev().find(|entry| entry.parent < timeline);
    let Some(parent) = parent else { return Ok(false) };
    let coverage = repository.read_coverage(parent.parent, Lsn(begin.0.saturating_sub(1))).await?;
    Ok(!coverage.objects().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    const MIB: u64 = 1 << 20;

    fn coverage(ranges: &[(u64, u64)]) -> Coverage {
        let stored = |&(start, end): &(u64, u64)| Stored {
            ending: crate::codec::Ending::default(),
            range: WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) },
            name: String::new(),
            is_block: false,
            stored_bytes: 0,
            modified: Timestamp::UNIX_EPOCH,
        };
        Coverage::new(ranges.iter().map(stored).collect())
    }

    fn gap(start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn the_run_that_holds_the_slot_counts_and_not_an_island_behind() {
        let coverage = coverage(&[(0, 100), (100, 150), (200, 300)]);
        assert_eq!(stored_end(&coverage, &[], Lsn(120), None), Lsn(150));
        assert_eq!(stored_end(&coverage, &[], Lsn(150), None), Lsn(150));
    }

    #[test]
    fn a_slot_ahead_of_everything_stored_does_not_hide_a_hole() {
        let coverage = coverage(&[(0, 100)]);
        assert_eq!(stored_end(&coverage, &[], Lsn(500), None), Lsn(100));
        assert_eq!(stored_end(&coverage, &[gap(100, 500)], Lsn(500), None), Lsn(500));
    }

    #[test]
    fn a_timeline_whose_end_is_lost_is_finished() {
        let size = SegmentSize::new(MIB).unwrap();
        let tails = coverage(&[(MIB, MIB + 100)]);
        assert!(!is_sealed(&tails, size, Lsn(MIB + 100)), "a tail is not permanent");
        assert_eq!(unsealed_before(&tails, size, Lsn(MIB + 100)), Some(Lsn(MIB)));
        assert!(!is_sealed(&tails, size, Lsn(2 * MIB)));
        assert!(is_lost_at(&[gap(MIB + 100, 2 * MIB)], Lsn(2 * MIB)));
        assert!(!is_lost_at(&[gap(MIB + 100, 2 * MIB)], Lsn(2 * MIB + 1)));
    }

    #[test]
    fn what_reaches_over_the_switch_point_does_not_finish_a_timeline() {
        let size = SegmentSize::new(MIB).unwrap();
        let blocks = |ranges: &[(u64, u64)]| {
            let stored = coverage(ranges);
            Coverage::new(stored.objects().iter().map(|it| Stored { is_block: true, ..it.clone() }).collect())
        };
        let switch = Lsn(MIB + 100);
        assert!(!is_sealed(&blocks(&[(MIB, 2 * MIB)]), size, switch), "the old primary's word alone");
        assert!(is_sealed(&blocks(&[(MIB, 2 * MIB), (MIB, MIB + 100)]), size, switch));
        // At the border of a block.
        assert!(is_sealed(&blocks(&[(MIB, 2 * MIB), (2 * MIB, 3 * MIB)]), size, Lsn(2 * MIB)));
        let resume = |end| {
            let stored = blocks(&[(MIB, 2 * MIB), (2 * MIB, 3 * MIB)]);
            resume_at(size, TimelineId(1), Lsn(end), &stored, History::root(TimelineId(1)), Some(Lsn(end)))
        };
        // So little of the last segment that the one before comes again; the block that reaches over is not compared.
        let inside = resume(2 * MIB + 100);
        assert_eq!((inside.start, inside.overlap_end, inside.known.len()), (Lsn(MIB), Lsn(2 * MIB + 100), 1));
    }

    #[tokio::test]
    async fn a_timeline_without_a_byte_of_its_own_is_passed_over() {
        let layout =
            crate::repository::Layout::new("main", SegmentSize::new(MIB).unwrap(), crate::codec::Compression::Lz4);
        let repository = Repository { store: std::sync::Arc::new(crate::store::MemoryStore::new()), layout };
        let entered = async |text: &str| {
            let history = History::parse(TimelineId(3), text.as_bytes()).unwrap();
            let size = SegmentSize::new(MIB).unwrap();
            let resume = enter(&repository, &history, TimelineId(2), size).await.unwrap();
            (resume.timeline, resume.start)
        };
        // Left where it began, at a segment's first byte; within a segment it repeats its parent's bytes.
        assert_eq!(entered("1\t0/300000\tx\n2\t0/300000\tx\n").await, (TimelineId(3), Lsn(3 * MIB)));
        assert_eq!(entered("1\t0/300100\tx\n2\t0/300100\tx\n").await, (TimelineId(2), Lsn(3 * MIB)));
        assert_eq!(entered("1\t0/300000\tx\n2\t0/300028\tx\n").await, (TimelineId(2), Lsn(3 * MIB)));
    }

    #[test]
    fn an_island_is_not_the_beginning_of_what_was_begun_before_it() {
        let coverage = coverage(&[(200, 300)]);
        assert_eq!(stored_end(&coverage, &[], Lsn(100), Some(Lsn(100))), Lsn(100));
        assert_eq!(stored_end(&coverage, &[], Lsn(100), None), Lsn(300));
        assert_eq!(stored_end(&coverage, &[], Lsn(250), Some(Lsn(100))), Lsn(300));
        assert_eq!(stored_end(&coverage, &[gap(100, 200)], Lsn(100), Some(Lsn(100))), Lsn(300));
    }

    #[test]
    fn behind_a_recorded_hole_with_nothing_stored_a_slot_hides_no_second_one() {
        let nothing = coverage(&[]);
        assert_eq!(stored_end(&nothing, &[gap(500, 600)], Lsn(500), Some(Lsn(700))), Lsn(600));
        assert_eq!(stored_end(&nothing, &[gap(500, 600)], Lsn(700), None), Lsn(600));
    }

    #[test]
    fn recorded_holes_are_stepped_over() {
        let coverage = coverage(&[(0, 100), (200, 300)]);
        assert_eq!(stored_end(&coverage, &[gap(100, 200)], Lsn(50), None), Lsn(300));
    }

    #[test]
    fn the_segment_of_the_last_stored_byte_comes_again() {
        let size = SegmentSize::new(2 * MIB).unwrap();
        let stored = [(2 * MIB, 4 * MIB), (4 * MIB, 5 * MIB + 10), (8 * MIB, 8 * MIB + 5)];
        let resume =
            |end| resume_at(size, TimelineId(1), Lsn(end), &coverage(&stored), History::root(TimelineId(1)), None);
        let in_the_middle = resume(5 * MIB + 10);
        assert_eq!((in_the_middle.start, in_the_middle.overlap_end), (Lsn(4 * MIB), Lsn(5 * MIB + 10)));
        assert_eq!(in_the_middle.known.len(), 2, "the island behind is compared as well");
        let behind_a_hole = resume(10 * MIB);
        assert_eq!((behind_a_hole.start, behind_a_hole.overlap_end), (Lsn(10 * MIB), Lsn(10 * MIB)));
        let at_a_border = resume(4 * MIB);
        assert_eq!((at_a_border.start, at_a_border.overlap_end), (Lsn(2 * MIB), Lsn(4 * MIB)));
    }

    #[test]
    fn where_little_is_stored_of_the_last_segment_the_one_before_comes_again_too() {
        let size = SegmentSize::new(2 * MIB).unwrap();
        let resume = |stored: &[(u64, u64)], end| {
            resume_at(size, TimelineId(1), Lsn(end), &coverage(stored), History::root(TimelineId(1)), None)
        };
        let mut with_it = resume(&[(2 * MIB, 4 * MIB), (4 * MIB, 4 * MIB + 10)], 4 * MIB + 10);
        assert_eq!((with_it.start, with_it.overlap_end, with_it.known.len()), (Lsn(2 * MIB), Lsn(4 * MIB + 10), 2));
        let without = resume(&[(3 * MIB, 4 * MIB), (4 * MIB, 4 * MIB + 10)], 4 * MIB + 10);
        assert_eq!((without.start, without.overlap_end), (Lsn(4 * MIB), Lsn(4 * MIB + 10)), "not all of it is stored");
        // A server that has it no more is asked from the last segment on.
        with_it.begin_at(Lsn(4 * MIB));
        assert_eq!((with_it.start, with_it.overlap_end, with_it.known.len()), (Lsn(4 * MIB), Lsn(4 * MIB + 10), 1));
        with_it.begin_at(Lsn(2 * MIB));
        assert_eq!(with_it.start, Lsn(4 * MIB), "never back");
    }
}
