//! When a server's past is not the repository's although its name is: rolled back to a snapshot, a clone, reset. The bytes
//! that come again show most of it (`line.rs`, `link.rs`); here is what shows before any byte has come.

use super::resume::Resume;
use super::source::{ServerIdentity, SourceError, Standing};
use crate::error::{Error, Kind};
use crate::wal::Lsn;

/// What has to be done is the same in all cases.
const HINT: &str = "Nothing was stored and nothing acknowledged. If this server is to go on: give it another --cluster name and \
     take a new base backup. If it is a copy of the real one: connect Seawall to the real one. If WAL was lost by \
     accident: what is stored can still be restored, `seawall list` shows how far.";

/// What a server that is behind the repository is.
#[derive(Debug)]
pub(super) enum Behind {
    /// It is not.
    No,
    /// It changed while we looked: look again.
    Changed(SourceError),
    /// A standby that has not received yet what the repository got from another server. What it sends can be compared.
    Standby {
        /// The end of its WAL.
        flush: Lsn,
        /// The end of what is stored.
        stored: Lsn,
    },
    /// A primary that no longer has what it once sent.
    Diverged(Error),
}

/// Compares the end of the server's WAL with what is stored. `standing` must be younger than the listing that `resume`
/// comes from: whatever was stored then, a healthy primary has now.
pub(super) fn behind(identity: ServerIdentity, standing: Standing, resume: &Resume) -> Behind {
    if standing.timeline != identity.timeline {
        let what = format!("the server went from timeline {} to {}", identity.timeline, standing.timeline);
        return Behind::Changed(SourceError::lost(what));
    }
    let ends = resume.known.iter().map(|stored| stored.range.end);
    let stored = ends.max().unwrap_or(resume.overlap_end).max(resume.overlap_end);
    let flush = standing.flush_lsn;
    if resume.timeline != identity.timeline || stored <= flush {
        return Behind::No;
    }
    if standing.is_standby {
        return Behind::Standby { flush, stored };
    }
    let error = Error::new(
        Kind::Diverged,
        format!(
            "the server's WAL on timeline {} ends at {flush}, but the repository already has it up to {stored}: the \
             server was rolled back (a snapshot, a copy of its files, pg_resetwal) or lost what it had written",
            resume.timeline
        ),
    );
    Behind::Diverged(error.hint(HINT))
}

/// The server's WAL was begun anew at `at`, behind `stored`.
pub(super) fn reset(stored: Lsn, at: Lsn) -> Error {
    Error::new(
        Kind::Diverged,
        format!(
            "the server's WAL was reset (pg_resetwal): it begins anew at {at}, and does not go on from {stored}, where \
             the archive ends"
        ),
    )
    .hint(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Stored;
    use crate::wal::{History, SegmentSize, TimelineId, WalRange};

    fn identity() -> ServerIdentity {
        ServerIdentity {
            system_identifier: 7,
            timeline: TimelineId(2),
            flush_lsn: Lsn(1),
            segment_size: SegmentSize::DEFAULT,
            version: 150_000,
        }
    }

    fn resume(timeline: u32, end: u64, island: Option<u64>) -> Resume {
        let timeline = TimelineId(timeline);
        let stored = |end| Stored {
            ending: crate::codec::Ending::default(),
            range: WalRange { timeline, start: Lsn(end - 1), end: Lsn(end) },
            name: String::new(),
            is_block: false,
            stored_bytes: 0,
            modified: jiff::Timestamp::UNIX_EPOCH,
        };
        Resume {
            timeline,
            start: Lsn(0),
            overlap_end: Lsn(end),
            known: island.map(stored).into_iter().collect(),
            history: History::root(timeline),
            switch: None,
        }
    }

    fn standing(timeline: u32, flush: u64, is_standby: bool) -> Standing {
        Standing { timeline: TimelineId(timeline), flush_lsn: Lsn(flush), is_standby }
    }

    #[test]
    fn a_primary_behind_what_is_stored_has_lost_it_and_a_standby_may_get_it_yet() {
        let judge = |standing, resume: &Resume| behind(identity(), standing, resume);
        assert!(matches!(judge(standing(2, 100, false), &resume(2, 100, None)), Behind::No), "exactly equal");
        assert!(matches!(judge(standing(2, 99, false), &resume(2, 100, None)), Behind::Diverged(_)));
        assert!(matches!(judge(standing(2, 99, true), &resume(2, 100, None)), Behind::Standby { .. }));
        // An island counts as well: it came from a server that had it.
        assert!(matches!(judge(standing(2, 100, false), &resume(2, 50, Some(101))), Behind::Diverged(_)));
        // On an earlier timeline the switch point decides.
        assert!(matches!(judge(standing(2, 99, false), &resume(1, 100, None)), Behind::No));
        assert!(matches!(judge(standing(3, 99, false), &resume(2, 100, None)), Behind::Changed(_)), "promoted");
    }
}
