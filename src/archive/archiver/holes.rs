//! WAL that the server no longer has: what can be had from the repository instead, and what is lost.

use super::{Archiver, Outcome};
use crate::archive::resume::{self, Resume};
use crate::archive::source::{SourceError, SourceErrorKind};
use crate::error::{Error, Kind, Result};
use crate::repository::{FORMAT_VERSION, GapNote, Key, Repository, WalReader, Writer};
use crate::store::Created;
use crate::wal::{Lsn, TimelineId, WalRange};

impl Archiver {
    /// The server no longer has what was asked for: goes on behind what is stored, and where that is gone as well, says
    /// in the repository what is lost.
    pub(super) async fn pass_over_removed(
        &self,
        writer: &Writer,
        repository: &Repository,
        resume: &Resume,
        error: SourceError,
    ) -> Result<Outcome> {
        let (timeline, size, end) = (resume.timeline, writer.layout().segment_size(), resume.overlap_end);
        if resume.switch == Some(end) {
            // Complete, but not all of it permanent: that much can be had from what is stored.
            return match self.seal_from_repository(writer, repository, timeline, end).await {
                Ok(()) => Ok(Outcome::Again),
                Err(error) if error.kind() == Kind::Store => {
                    Ok(Outcome::Pause(SourceError::new(SourceErrorKind::Lost, error)))
                }
                Err(error) => Err(error),
            };
        }
        if resume.start < end && size.segment_start(end) == end {
            return Ok(Outcome::AgainAt(timeline, end));
        }
        self.record_gap(writer, repository, resume, error).await
    }

    /// Makes the last block of a finished timeline permanent from its stored tails.
    async fn seal_from_repository(
        &self,
        writer: &Writer,
        repository: &Repository,
        timeline: TimelineId,
        switch: Lsn,
    ) -> Result<()> {
        let size = writer.layout().segment_size();
        let coverage = repository.read_coverage(timeline, Lsn(switch.0.saturating_sub(1))).await?;
        let Some(start) = resume::unsealed_before(&coverage, size, switch) else { return Ok(()) };
        let range = WalRange { timeline, start, end: switch };
        let reader = WalReader::new(repository.clone(), writer.system_identifier());
        let window = reader.read_range(range).await?;
        if window.end < switch {
            return Err(Error::new(Kind::Store, format!("{range} cannot be read beyond {}", window.end)));
        }
        writer.store_wal(&Key::Block(range), range, window.pieces.concat().into()).await?;
        Ok(())
    }

    /// The server no longer has what comes next. What is lost is written down, so that nothing passes over it unseen.
    async fn record_gap(
        &self,
        writer: &Writer,
        repository: &Repository,
        resume: &Resume,
        error: SourceError,
    ) -> Result<Outcome> {
        let size = writer.layout().segment_size();
        let from = resume.overlap_end;
        // A new look at the slot: what it keeps from is what the server still has.
        let mut session = match self.source.connect().await {
            Ok(session) => session,
            Err(error) => return Ok(Outcome::Pause(error)),
        };
        let kept = match session.take_slot().await {
            Ok(slot) => slot.restart_lsn.unwrap_or(session.identity().flush_lsn),
            Err(error) => return Ok(Outcome::Pause(error)),
        };
        let mut to = size.segment_start(kept);
        if to <= from {
            // The slot claims to keep what the server has removed (a lost slot, on 13 to 17): begin where it is now.
            to = size.segment_start(session.identity().flush_lsn);
        }
        // What comes behind the switch point is another timeline's.
        let to = resume.switch.map_or(to, |switch| to.min(switch));
        if to <= from {
            return Ok(Outcome::Pause(error));
        }
        let range = WalRange { timeline: resume.timeline, start: from, end: to };
        let note = GapNote {
            format: FORMAT_VERSION,
            timeline: range.timeline,
            start: range.start,
            end: range.end,
            found_at: self.clock.now(),
            reason: error.to_string(),
        };
        let known = repository.read_gaps(range.timeline).await?;
        if !known.iter().any(|gap| gap.start <= range.start && range.end <= gap.end) {
            match writer.store_document(&Key::Gap(range), &note).await {
                Ok(Created::New) => self.state.send_modify(|state| state.counts.gaps += 1),
                // Another archiver's note, or ours whose reply was lost: only the time and the words differ.
                Ok(Created::Exists) => {}
                Err(error) if error.kind() == Kind::Diverged => {}
                Err(error) => return Err(error),
            }
        }
        tracing::error!(
            lost = %range,
            "WAL is lost: the server removed it before it was archived; restores from earlier backups end before it, and a \
             new base backup is needed"
        );
        Ok(Outcome::Again)
    }
}
