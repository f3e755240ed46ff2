//! What the archiver shows of itself while it runs. Read through a `watch`, by metrics, health and `backup`.

use super::rpo::Rpo;
use super::source::{CommitWaits, SourceErrorKind};
use crate::postgres::SlotHealth;
use crate::wal::{Lsn, TimelineId};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

/// What the archiver is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// No connection, or not yet a stream.
    Connecting,
    /// Another archiver holds the slot; this one waits to take over.
    HotSpare,
    /// WAL comes and is stored.
    Streaming,
    /// Told to stop: what was received is being stored.
    Stopping,
}

/// A snapshot of the archiver.
#[derive(Clone, Debug)]
pub struct ArchiveState {
    /// What it is doing.
    pub phase: Phase,
    /// The timeline that is streamed.
    pub timeline: Option<TimelineId>,
    /// What was stored before this stream has come again and been found equal: it is the right server.
    pub is_compared: bool,
    /// Where the stream began.
    pub stream_start: Lsn,
    /// The end of what was read.
    pub received: Lsn,
    /// The end of the gap-free stored bytes.
    pub durable: Lsn,
    /// What PostgreSQL was last told.
    pub flushed: Lsn,
    /// How much would be lost now.
    pub rpo: Rpo,
    /// When the stream said something last.
    pub last_message: Option<Instant>,
    /// Reading has stopped because the store is slow.
    pub is_reading_stopped: bool,
    /// Which commits wait for us.
    pub commit_waits: CommitWaits,
    /// The server has turned another connection away because it shuts down.
    pub is_server_leaving: bool,
    /// When the certificate ends that the server has shown; `None` without TLS.
    pub certificate_end: Option<Timestamp>,
    /// How far the server's clock is ahead of ours, or behind it if negative; `None` until the server has answered.
    pub server_clock_ahead: Option<SignedDuration>,
    /// Our slot as the server shows it, every few seconds; `None` where we may not look.
    pub slot: Option<SlotHealth>,
    /// Bytes that are on their way into the store.
    pub in_flight_bytes: u64,
    /// Tails that nothing larger has replaced yet.
    pub live_tails: u64,
    /// Since the start of the process.
    pub counts: Counts,
    /// Why the last connection ended.
    pub last_error: Option<String>,
}

/// What was done since the start of the process.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Connections that became a stream.
    pub connections: u64,
    /// Attempts to stream that failed or ended, by their kinds in the order of [`SourceErrorKind::ALL`].
    pub interruptions: [u64; SourceErrorKind::ALL.len()],
    /// Times that another archiver held the slot.
    pub spare: u64,
    /// Bytes of WAL read.
    pub received_bytes: u64,
    /// Tails stored, merged ones included.
    pub tails: u64,
    /// Blocks stored.
    pub blocks: u64,
    /// Objects of before compared and found equal.
    pub compared: u64,
    /// Tails deleted.
    pub deleted: u64,
    /// Tails that a larger object has replaced and that could not be deleted: they are left to `prune`.
    pub undeleted: u64,
    /// Base backups that ended, by whomever they were taken, as the WAL tells it.
    pub backups_ended: u64,
    /// Heartbeats stored.
    pub heartbeats: u64,
    /// Holes recorded.
    pub gaps: u64,
    /// Times that the stream told the server where it is, which it does every few seconds as long as it is not stuck.
    pub turns: u64,
    /// Objects that the store did not take at the first try.
    pub store_failures: u64,
    /// Blocks that were packed as they came, as far as that was, when they were full.
    pub packed: u64,
    /// Objects that were stored before the server was proven to be the right one, because its first record is longer than the memory.
    pub unproven: u64,
}

impl Counts {
    /// An attempt to stream failed or ended, because of this.
    pub(super) fn interrupt(&mut self, kind: SourceErrorKind) {
        self.interruptions[kind as usize] += 1;
    }
}

impl Default for ArchiveState {
    fn default() -> ArchiveState {
        ArchiveState::new()
    }
}

impl ArchiveState {
    /// Nothing known yet.
    pub fn new() -> ArchiveState {
        ArchiveState {
            phase: Phase::Connecting,
            timeline: None,
            is_compared: false,
            stream_start: Lsn::INVALID,
            received: Lsn::INVALID,
            durable: Lsn::INVALID,
            flushed: Lsn::INVALID,
            rpo: Rpo::new(),
            last_message: None,
            is_reading_stopped: false,
            commit_waits: CommitWaits::default(),
            is_server_leaving: false,
            certificate_end: None,
            server_clock_ahead: None,
            slot: None,
            in_flight_bytes: 0,
            live_tails: 0,
            counts: Counts::default(),
            last_error: None,
        }
    }
}

/// The writing end.
pub(super) type StateSender = watch::Sender<ArchiveState>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interruption_is_counted_in_the_place_of_its_kind() {
        for (place, kind) in SourceErrorKind::ALL.into_iter().enumerate() {
            let mut counts = Counts::default();
            counts.interrupt(kind);
            let expected = std::array::from_fn(|other| u64::from(other == place));
            assert_eq!(counts.interruptions, expected, "{}", kind.name());
        }
    }
}
