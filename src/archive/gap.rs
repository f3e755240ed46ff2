//! When a server no longer has what comes next: what exactly is lost, and who may still have it. PostgreSQL is the arbiter:
//! a slot's position proves nothing, only "already removed" does.

use super::archiver::Archiver;
use super::divergence;
use super::link::Link;
use super::resume::Resume;
use super::source::{Session, Source, SourceError, Started};
use super::stream::{Ended, Stream};
use crate::error::{Kind, Result};
use crate::repository::{FORMAT_VERSION, GapNote, Key, Repository, WalReader, Writer};
use crate::runtime::Shutdown;
use crate::store::Created;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange, begins_anew};
use bytes::Bytes;

/// What became of a stretch that the server has removed.
pub(super) enum Missing {
    /// Another server had some of it, or it is written down as lost: go on.
    Settled,
    /// Nothing can be said yet: try again later.
    Unclear(SourceError),
}

/// Where a server's WAL begins, behind what it has removed.
struct Beginning {
    lsn: Lsn,
    /// The first bytes there, if it was asked for them.
    bytes: Option<Bytes>,
}

impl Archiver {
    /// The server no longer has what comes behind `resume`. Looks where it begins to have WAL, asks the other servers for
    /// what is before that, and writes down what nobody has, so that nothing passes over it unseen.
    pub(super) async fn settle_missing(
        &self,
        writer: &Writer,
        repository: &Repository,
        resume: &Resume,
        error: SourceError,
        shutdown: &Shutdown,
    ) -> Result<Missing> {
        let size = writer.layout().segment_size();
        let (timeline, from) = (resume.timeline, resume.overlap_end);
        let mut session = match self.source.connect().await {
            Ok(session) => session,
            Err(error) => return Ok(Missing::Unclear(error)),
        };
        let identity = session.identity();
        if identity.timeline != resume.history.timeline {
            return Ok(Missing::Unclear(SourceError::lost("the server's timeline changed")));
        }
        // First what is still there is to stay.
        if let Err(error) = keep_what_is_left(session.as_mut()).await {
            return Ok(Missing::Unclear(error));
        }
        let others = session.others();
        // Its walsender is needed for the questions.
        drop(session);
        let end = resume.switch.unwrap_or(identity.flush_lsn);
        let beginning = match find_beginning(self.source.as_ref(), timeline, size, from, end, resume.switch).await {
            Ok(beginning) => beginning,
            Err(error) => return Ok(Missing::Unclear(error)),
        };
        let Some(beginning) = beginning.filter(|beginning| beginning.lsn > from) else {
            return Ok(Missing::Unclear(error));
        };
        for other in others {
            if self.fetch_from(other.as_ref(), writer, repository, resume, beginning.lsn, shutdown).await? {
                return Ok(Missing::Settled);
            }
        }
        if beginning.bytes.is_some_and(|bytes| begins_anew(size, beginning.lsn, &bytes)) {
            return Err(divergence::reset(from, beginning.lsn));
        }
        let range = WalRange { timeline, start: from, end: beginning.lsn };
        self.record_gap(writer, repository, range, &error).await?;
        Ok(Missing::Settled)
    }

    async fn record_gap(
        &self,
        writer: &Writer,
        repository: &Repository,
        range: WalRange,
        error: &SourceError,
    ) -> Result<()> {
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
        Ok(())
    }

    /// Streams from another server of the cluster, without a slot, up to where ours begins to have WAL. True if that
    /// brought anything. One that is away, is behind, or has something else is no help, and no harm.
    async fn fetch_from(
        &self,
        other: &dyn Source,
        writer: &Writer,
        repository: &Repository,
        resume: &Resume,
        until: Lsn,
        shutdown: &Shutdown,
    ) -> Result<bool> {
        let Ok(session) = other.connect().await else { return Ok(false) };
        let identity = session.identity();
        let is_same = identity.system_identifier == writer.system_identifier()
            && identity.segment_size == writer.layout().segment_size()
            && identity.timeline == resume.history.timeline;
        if !is_same || identity.flush_lsn <= resume.overlap_end {
            return Ok(false);
        }
        let Ok(Started::Streaming(feed)) = session.start(resume.start, resume.timeline).await else { return Ok(false) };
        let link = match resume.start == resume.overlap_end {
            true => {
                let reader = WalReader::new(repository.clone(), writer.system_identifier());
                Link::from_stored(&reader, resume.timeline, resume.start).await?
            }
            false => None,
        };
        tracing::info!(from = %resume.overlap_end, %until, "asking another server for WAL that this one has removed");
        let fetching = Shutdown { stop: shutdown.stop.child_token(), kill: shutdown.kill.clone() };
        let stream = Stream::new(self, writer, resume, link);
        let streaming = Box::pin(stream.run(feed, &fetching));
        let mut state = self.state.subscribe();
        let enough = async {
            let reached =
                state.wait_for(|state| state.timeline == Some(resume.timeline) && state.durable >= until).await;
            drop(reached);
            fetching.begin_stop();
            std::future::pending::<std::convert::Infallible>().await
        };
        let ended = tokio::select! {
            biased;
            ended = streaming => ended,
            never = enough => match never {},
        };
        match ended {
            Ok(Ended::Timeline(_)) => return Ok(true),
            Ok(_) => {}
            // Its bytes are not those of the archive; they were compared before any was stored.
            Err(error) if error.kind() == Kind::Diverged => {
                tracing::warn!(%error, "the other server has something else; not taken");
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        let state = self.state.borrow();
        Ok(state.timeline == Some(resume.timeline) && state.durable > resume.overlap_end)
    }
}

/// Makes sure that a slot keeps WAL from now on: `take_slot` makes one anew that is seen to be lost, and one that has let
/// WAL go is not believed unseen.
async fn keep_what_is_left(session: &mut dyn Session) -> Result<(), SourceError> {
    if !session.take_slot().await?.created {
        session.renew_slot().await?;
    }
    Ok(())
}

/// The first segment behind `from` that the server has, found by asking. Servers remove from the front, so halving finds
/// it. `end` is where the timeline's WAL ends: what is there is there by definition. `None` if nothing can be said.
async fn find_beginning(
    source: &dyn Source,
    timeline: TimelineId,
    size: SegmentSize,
    from: Lsn,
    end: Lsn,
    switch: Option<Lsn>,
) -> Result<Option<Beginning>, SourceError> {
    let first_segment_behind = |lsn: Lsn| lsn.0.div_ceil(size.bytes());
    // The segment that holds `from` was refused.
    let mut low = first_segment_behind(from);
    // The current segment is there; of a timeline that has ended there may be nothing left.
    let mut high = match switch {
        Some(switch) => first_segment_behind(switch),
        None => end.0 / size.bytes(),
    };
    if low > high {
        return Ok(switch.map(|switch| Beginning { lsn: switch, bytes: None }));
    }
    let mut bytes = None;
    while low < high {
        let middle = low + (high - low) / 2;
        match source.peek(timeline, Lsn(middle * size.bytes())).await? {
            Some(found) => (high, bytes) = (middle, Some(found)),
            None => low = middle + 1,
        }
    }
    let lsn = Lsn(high * size.bytes());
    let lsn = switch.map_or(lsn, |switch| lsn.min(switch));
    if bytes.is_none() && switch.is_none() && end > lsn {
        bytes = source.peek(timeline, lsn).await?;
    }
    Ok(Some(Beginning { lsn, bytes }))
}
