//! WAL that the server no longer has: what can be had from the repository instead, and what is lost.

use super::{Archiver, Outcome, wait_for_store};
use crate::archive::gap::Missing;
use crate::archive::resume::{self, Resume};
use crate::archive::source::SourceError;
use crate::error::{Error, Kind, Result};
use crate::repository::{Key, Repository, WalReader, Writer};
use crate::runtime::Shutdown;
use crate::wal::{Lsn, TimelineId, WalRange};
use std::sync::PoisonError;

impl Archiver {
    /// The server no longer has what was asked for: goes on behind what is stored, and where that is gone as well, says
    /// in the repository what is lost.
    pub(super) async fn pass_over_removed(
        &self,
        writer: &Writer,
        repository: &Repository,
        resume: &Resume,
        error: SourceError,
        shutdown: &Shutdown,
    ) -> Result<Outcome> {
        let (timeline, size, end) = (resume.timeline, writer.layout().segment_size(), resume.overlap_end);
        let last = size.segment_start(Lsn(end.0.saturating_sub(1)));
        if resume.start < last {
            // That much was asked for only to compare more.
            return Ok(Outcome::AgainAt(timeline, last));
        }
        if resume.switch == Some(end) {
            // Complete, but not all of it permanent: that much can be had from what is stored.
            return match self.seal_from_repository(writer, repository, timeline, end).await {
                Ok(()) => Ok(Outcome::Again),
                Err(error) if WalReader::is_sealed_from_us(&error) => {
                    tracing::warn!(
                        %timeline, switch = %end,
                        "the end of the timeline stays in tails: it is encrypted for others than this archiver"
                    );
                    self.kept_in_tails.lock().unwrap_or_else(PoisonError::into_inner).insert((timeline, end));
                    Ok(Outcome::Again)
                }
                Err(error) => wait_for_store(error),
            };
        }
        if resume.start < end && size.segment_start(end) == end {
            return Ok(Outcome::AgainAt(timeline, end));
        }
        let settling = self.settle_missing(writer, repository, resume, error, shutdown);
        match Box::pin(settling).await {
            Ok(Missing::Settled) => Ok(Outcome::Again),
            Ok(Missing::Unclear(error)) => Ok(Outcome::Pause(error)),
            Err(error) => wait_for_store(error),
        }
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
}
