//! What the archiver needs of a PostgreSQL server: a trait, so that a simulation can be one. `server.rs` is the real one.

use crate::error::{Error, Kind};
use crate::postgres::SlotHealth;
use crate::wal::{Lsn, SegmentSize, TimelineId};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// How often a hot spare asks whether the slot is free.
pub(super) const SPARE_PAUSE: Duration = Duration::from_secs(1);

/// What the archiver does about an error of a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceErrorKind {
    /// The connection is gone or could not be made: try again, soon.
    Lost,
    /// The server is starting or shutting down: try again, but not at once.
    Leaving,
    /// Another archiver holds the slot: wait for it to go.
    SlotBusy,
    /// The server no longer has the WAL that was asked for.
    WalRemoved,
    /// The server does not know this position or timeline.
    NotInHistory,
    /// The server's past is not the repository's, or it has not come as far: another server may be the right one, or this
    /// one become it. An old primary that came back, a standby that lags.
    OtherPath,
    /// The server was promoted to a timeline that the repository has of another server. Nothing mends that.
    Apart,
    /// Anything else that the server says: try again, seldom; somebody has to do something.
    Refused,
}

impl SourceErrorKind {
    /// Every kind, in their order.
    pub const ALL: [SourceErrorKind; 8] = [
        SourceErrorKind::Lost,
        SourceErrorKind::Leaving,
        SourceErrorKind::SlotBusy,
        SourceErrorKind::WalRemoved,
        SourceErrorKind::NotInHistory,
        SourceErrorKind::OtherPath,
        SourceErrorKind::Apart,
        SourceErrorKind::Refused,
    ];

    /// The name in a metric's label: lower case, stable.
    pub fn name(self) -> &'static str {
        match self {
            SourceErrorKind::Lost => "lost",
            SourceErrorKind::Leaving => "leaving",
            SourceErrorKind::SlotBusy => "slot_busy",
            SourceErrorKind::WalRemoved => "wal_removed",
            SourceErrorKind::NotInHistory => "not_in_history",
            SourceErrorKind::OtherPath => "other_path",
            SourceErrorKind::Apart => "apart",
            SourceErrorKind::Refused => "refused",
        }
    }
}

/// A source failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SourceError {
    /// What to do.
    pub kind: SourceErrorKind,
    /// For people.
    pub error: Error,
    /// The server's process that has the slot, where that is why.
    pub slot_holder: Option<u32>,
}

impl SourceError {
    /// Both together.
    pub fn new(kind: SourceErrorKind, error: Error) -> SourceError {
        SourceError { kind, error, slot_holder: None }
    }

    /// A connection that is gone.
    pub fn lost(what: impl Into<String>) -> SourceError {
        SourceError::new(SourceErrorKind::Lost, Error::new(Kind::Postgres, what))
    }
}

/// What a server says of itself when we come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerIdentity {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The end of its WAL on disk.
    pub flush_lsn: Lsn,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// `server_version_num`.
    pub version: u32,
}

/// Where a server is at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The end of its WAL on disk.
    pub flush_lsn: Lsn,
    /// It is in recovery, and may be behind others; a primary has everything that it ever sent.
    pub is_standby: bool,
}

/// The slot as we found or made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotPosition {
    /// WAL from here on is kept; `None` where the server (13, 14) does not tell a plain replication role.
    pub restart_lsn: Option<Lsn>,
    /// It was not there and was made now.
    pub created: bool,
}

/// A cluster that WAL comes from.
#[async_trait]
pub trait Source: Send + Sync + Debug {
    /// Connects for streaming.
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError>;

    /// Connects for looking on while the stream is read: to the server that the last session was with.
    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError>;

    /// Waits until another archiver has let go of the slot, or may have. May be dropped.
    async fn wait_for_slot(&self) -> Result<(), SourceError> {
        tokio::time::sleep(SPARE_PAUSE).await;
        Ok(())
    }

    /// Asks for WAL of `timeline` from `lsn` on, without a slot: the first bytes of what comes (some, where the server has
    /// no more of it yet), or `None` if the server has removed them. Only the server knows what it still has.
    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError>;

    /// True if the WAL may come from more than one server.
    fn has_others(&self) -> bool {
        false
    }

    /// Leaves the server of the last session alone for so long, in favour of others. False if no other is left.
    fn pass_over(&self, _time: Duration) -> bool {
        false
    }
}

/// A connection that is not streaming.
#[async_trait]
pub trait Session: Send + Debug {
    /// What the server said of itself.
    fn identity(&self) -> ServerIdentity;

    /// When the certificate ends that the server has shown; `None` without TLS.
    fn certificate_end(&self) -> Option<Timestamp> {
        None
    }

    /// The number of the server's process for this connection; `None` if it is not known.
    fn backend(&self) -> Option<u32> {
        None
    }

    /// A timeline's history file, as the server has it.
    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError>;

    /// Finds the slot, or makes it, with its WAL reserved.
    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError>;

    /// WAL was removed although there is a slot: makes it anew, unless the server shows that it is alive.
    async fn renew_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.take_slot().await
    }

    /// Where the server is now, which [`Session::identity`] only was when we came.
    async fn standing(&mut self) -> Result<Standing, SourceError>;

    /// The other servers of this cluster that are configured, to be read without a slot: they may still have what this
    /// one has removed.
    fn others(&self) -> Vec<Arc<dyn Source>> {
        Vec::new()
    }

    /// Drops the slot that was made in this session: the server turned out to be none of ours.
    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Begins to stream `timeline` at `start`.
    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError>;
}

/// How the start of a stream ended.
#[derive(Debug)]
pub enum Started {
    /// WAL comes.
    Streaming(Box<dyn Feed>),
    /// The timeline ended exactly there.
    TimelineEnded(TimelineEnd),
}

/// A timeline ended and another one goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimelineEnd {
    /// The timeline that goes on.
    pub next: TimelineId,
    /// Where.
    pub switch: Lsn,
}

/// A stream of WAL, and the way back for what became of it.
#[async_trait]
pub trait Feed: Send + Debug {
    /// The next message. May be dropped at any time without losing one.
    async fn next(&mut self) -> Result<FeedMessage, SourceError>;

    /// Reports positions. `flushed` is what clause 1 of the promise is about: it comes from
    /// [`super::Progress::flushed`] alone.
    async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError>;

    /// Ends the stream properly, from our side.
    async fn end(self: Box<Self>) -> Result<(), SourceError>;

    /// After [`FeedMessage::EndOfTimeline`].
    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError>;
}

/// What a stream says.
#[derive(Clone, Debug)]
pub enum FeedMessage {
    /// WAL.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// The end of the server's WAL.
        server_end: Lsn,
        /// The server's clock, microseconds since 2000.
        server_micros: i64,
        /// The bytes.
        bytes: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The end of the server's WAL.
        server_end: Lsn,
        /// The server's clock, microseconds since 2000.
        server_micros: i64,
        /// The server waits for a status.
        reply_requested: bool,
    },
    /// The server has no more of this timeline: call [`Feed::finish_timeline`].
    EndOfTimeline,
    /// The server shuts down, and has seen that everything is flushed.
    ServerShutdown,
}

/// A second connection.
#[async_trait]
pub trait Observer: Send + Debug {
    /// The end of the server's WAL on disk.
    async fn flush_lsn(&mut self) -> Result<Lsn, SourceError>;

    /// Which commits wait for us.
    async fn commit_waits(&mut self) -> Result<CommitWaits, SourceError>;

    /// What the server shows of our slot; `None` where we may not look.
    async fn slot(&mut self) -> Result<Option<SlotHealth>, SourceError> {
        Ok(None)
    }
}

/// Why commits on the server wait for us, if they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Synchronous {
    /// They do not.
    #[default]
    No,
    /// Our name is in `synchronous_standby_names`.
    Named,
    /// `synchronous_standby_names` holds `*`, which is everybody, and not our name.
    Captured,
}

/// What the server says of commits that wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommitWaits {
    /// For us, and why.
    pub synchronous: Synchronous,
    /// Some wait for us to apply their WAL, which an archiver does not do: `synchronous_commit = remote_apply` is the
    /// server's default, or that of a role or database.
    pub remote_apply: bool,
    /// So many sessions have waited since the last look, as far as the role may see that.
    pub hanging: u64,
}
