//! Reads the server's stream and hands on what it holds, as fast as the rest can take it and no faster.

use super::collect::{Work, pack};
use super::pages::PageChecks;
use super::parts::{CutError, PartCutter, Piece};
use super::run::BackupProgress;
use crate::codec::FRAME_BYTES;
use crate::error::{Error, Kind, Result};
use crate::postgres::{BackupEvent, BackupStream, PgError, ServerMessage};
use crate::repository::{Archive, Findings, Writer};
use crate::runtime;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::future::Future;
use tokio::sync::{mpsc, watch};

/// The warnings that are kept; the rest is in the log.
const WARNINGS_MAX: usize = 1000;

/// Of each so much: a path and a block number are in it, and a server may send megabytes.
const WARNING_CHARS_MAX: usize = 500;

/// Where the pieces of a base backup come from: a server, its data directory, or a test's script.
pub(crate) trait EventSource: Send + 'static {
    /// The next piece.
    fn next_event(&mut self) -> impl Future<Output = Result<BackupEvent, Broken>> + Send;
}

impl EventSource for BackupStream {
    async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
        Ok(self.next().await?)
    }
}

/// Why a stream ended early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection was lost, or the server is going: it may be there again in a moment.
    Lost(Error),
    /// What came, or what the server said, would be no better another time.
    Failed(Error),
}

impl From<PgError> for Broken {
    fn from(error: PgError) -> Broken {
        // A server that goes away says so (57P01 to 57P05). Whatever else it says, it says again: it is out of room, or was told to cancel.
        match error.is_transient() && error.sqlstate().is_none_or(|state| state.starts_with("57P")) {
            true => Broken::Lost(error.into()),
            false => Broken::Failed(error.into()),
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Failed(error)
    }
}

/// What the server said at its end, and on the way.
pub(crate) struct Read {
    /// The position that recovery must reach, and its timeline.
    pub(crate) end: (TimelineId, Lsn),
    /// If pages on its disk are damaged, and the first of its warnings.
    pub(crate) findings: Findings,
    /// Bytes that a restore writes: those of incremental files count as what they stand for.
    pub(crate) whole_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Now {
    Nothing,
    Archive,
    Manifest,
}

/// Reads one base backup.
pub(crate) struct Receiver<S> {
    source: S,
    writer: Writer,
    checks: Option<PageChecks>,
    progress: watch::Sender<BackupProgress>,
    work: mpsc::Sender<Work>,
    cutter: PartCutter,
    now: Now,
    manifest: Vec<u8>,
    findings: Findings,
}

impl<S: EventSource> Receiver<S> {
    /// Reads an incremental or full one from `source` and hands on to `work`, whose capacity is how many frames are packed at once.
    pub(crate) fn new(
        source: S,
        is_incremental: bool,
        writer: Writer,
        checks: Option<PageChecks>,
        work: mpsc::Sender<Work>,
        progress: watch::Sender<BackupProgress>,
    ) -> Receiver<S> {
        let cutter = PartCutter::new(is_incremental);
        let (manifest, findings) = (Vec::new(), Findings::default());
        Receiver { source, writer, checks, progress, work, cutter, now: Now::Nothing, manifest, findings }
    }

    /// Reads up to the end. If it is dropped, the connection closes and the server ends the backup.
    ///
    /// # Errors
    /// What the server says, also behind the manifest; then nothing of it is a backup. Damaged pages on its disk are no
    /// error here: all of the backup has come by then, and it may be the last one there ever is.
    pub(crate) async fn receive(mut self) -> Result<Read, Broken> {
        loop {
            let event = self.source.next_event().await;
            match event.map_err(|error| self.failed(error))? {
                BackupEvent::Archive { tablespace, .. } => {
                    self.end_archive().await?;
                    self.cutter.begin_archive(tablespace.map_or(Archive::Base, Archive::Tablespace));
                    self.now = Now::Archive;
                }
                BackupEvent::Manifest => {
                    self.end_archive().await?;
                    self.now = Now::Manifest;
                }
                BackupEvent::Data(bytes) => self.take_data(bytes).await?,
                // The server's figure comes once a second, and not before 15; ours are counted as they pass.
                BackupEvent::Progress(_) => {}
                BackupEvent::Notice(notice) => self.take_notice(&notice),
                BackupEvent::End { end_lsn, timeline, damage } => {
                    self.end_archive().await?;
                    self.send_manifest().await?;
                    if let Some(damage) = &damage {
                        tracing::error!(%damage, "pages on the server's disk are damaged");
                        self.findings.damaged = true;
                        self.findings.warnings.push(shortened(&damage.message));
                    }
                    self.work.send(Work::End).await.map_err(|_| nobody_there())?;
                    let whole_bytes = self.cutter.whole_bytes();
                    return Ok(Read { end: (timeline, end_lsn), findings: self.findings, whole_bytes });
                }
            }
        }
    }

    async fn take_data(&mut self, bytes: Bytes) -> Result<()> {
        match self.now {
            Now::Nothing => return Err(Error::new(Kind::Postgres, "the server sent data that belongs to no archive")),
            Now::Archive => {
                self.progress.send_modify(|progress| progress.received_bytes += bytes.len() as u64);
                self.cutter.feed(bytes).map_err(unreadable)?;
                self.send_pieces().await?;
            }
            Now::Manifest => {
                if self.manifest.len() + bytes.len() > FRAME_BYTES {
                    self.send_manifest().await?;
                }
                self.manifest.extend_from_slice(&bytes);
            }
        }
        Ok(())
    }

    async fn end_archive(&mut self) -> Result<()> {
        if self.now == Now::Archive {
            self.cutter.end_archive().map_err(unreadable)?;
            self.send_pieces().await?;
        }
        Ok(())
    }

    async fn send_pieces(&mut self) -> Result<()> {
        while let Some(piece) = self.cutter.next_piece() {
            // A place first, so that no more frames are at work than there are places.
            let place = self.work.reserve().await.map_err(|_| nobody_there())?;
            place.send(match piece {
                Piece::PartEnd(end) => Work::PartEnd(end),
                Piece::Frame(frame) => {
                    let (writer, checks) = (self.writer.clone(), self.checks);
                    Work::Frame(runtime::spawn(runtime::blocking(move || pack(&writer, frame, checks))))
                }
            });
        }
        Ok(())
    }

    async fn send_manifest(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.manifest);
        self.work.send(Work::Manifest(bytes)).await.map_err(|_| nobody_there())
    }

    fn take_notice(&mut self, notice: &ServerMessage) {
        if notice.severity != "WARNING" {
            tracing::debug!(%notice, "the server says during the base backup");
            return;
        }
        tracing::warn!(%notice, "the server warns during the base backup");
        self.progress.send_modify(|progress| progress.warnings += 1);
        if self.findings.warnings.len() < WARNINGS_MAX {
            self.findings.warnings.push(shortened(&notice.message));
        }
    }

    /// The source's error, and what it warned of before.
    fn failed(&self, broken: Broken) -> Broken {
        let with_warnings = |mut shown: Error| {
            if !self.findings.warnings.is_empty() {
                let warned = format!("It warned: {}.", self.findings.first_warnings());
                let hint = shown.hint_text().map_or(warned.clone(), |advice| format!("{warned} {advice}"));
                shown = shown.hint(hint);
            }
            shown
        };
        match broken {
            Broken::Lost(error) => Broken::Lost(with_warnings(error)),
            Broken::Failed(error) => Broken::Failed(with_warnings(error)),
        }
    }
}

fn shortened(message: &str) -> String {
    message.chars().take(WARNING_CHARS_MAX).collect()
}

fn unreadable(error: CutError) -> Error {
    Error::new(Kind::Postgres, "the server's archive cannot be read").because(error)
}

/// The other half has failed, and its error is the one that is told.
fn nobody_there() -> Error {
    Error::new(Kind::Internal, "the parts of a base backup are no longer taken")
}
