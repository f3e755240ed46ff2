//! The files of a running server as the events of a base backup. When the last of them was read, the server is asked to end it,
//! and what it says is written behind them.

use super::super::manifest_writer::ManifestWriter;
use super::super::pages::PageChecks;
use super::super::receive::{Broken, EventSource};
use super::directory::Control;
use super::read::{self, Chunk};
use super::walk::{CONTROL_FILE, Walk};
use crate::error::{Error, Kind, Result};
use crate::postgres::{BackupEvent, RunningBackup, ServerMessage, Tablespace};
use crate::repository::manifest::FileCheck;
use crate::repository::tar::{BLOCK, NewEntry};
use crate::repository::{FilePath, FilePathRef, Paths, WalNeed, make_room};
use crate::runtime::Clock;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks whether the session is there.
const LOOK_PAUSE: Duration = Duration::from_secs(30);

/// What is there when a server has begun a backup.
pub(super) struct Opened {
    pub(super) directory: PathBuf,
    pub(super) system_identifier: u64,
    pub(super) postgres_version: u32,
    pub(super) running: RunningBackup,
    /// The data directory comes last.
    pub(super) walks: Vec<(Option<Tablespace>, Walk)>,
    pub(super) checks: Option<PageChecks>,
    pub(super) clock: Clock,
}

/// See the head of the file.
pub(super) struct LocalSource {
    directory: PathBuf,
    clock: Clock,
    checks: Option<PageChecks>,
    walks: VecDeque<(Option<Tablespace>, Walk)>,
    /// What is being read.
    chunks: BoxStream<'static, Result<Chunk>>,
    /// Of the file whose pieces pass: the CRC-32C so far.
    crc32c: u32,
    /// Pages that are not what PostgreSQL writes.
    rejected: usize,
    /// Taken when the server is asked to end it.
    running: Option<RunningBackup>,
    read: ReadFiles,
    postgres_version: u32,
    system_identifier: u64,
    /// Events that come next.
    ready: VecDeque<BackupEvent>,
    /// What comes behind those, once all files were read.
    last: Option<Last>,
    /// When the session was last seen to be there.
    looked: Instant,
}

impl EventSource for LocalSource {
    async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Some(last) = &mut self.last {
                return Ok(last.next_event(&self.read));
            }
            if self.looked.elapsed() >= LOOK_PAUSE {
                self.look().await?;
            }
            match self.chunks.next().await {
                Some(chunk) => self.take(chunk?),
                None => self.go_on().await?,
            }
        }
    }
}

impl LocalSource {
    pub(super) fn new(opened: Opened) -> LocalSource {
        LocalSource {
            directory: opened.directory,
            clock: opened.clock,
            checks: opened.checks,
            walks: opened.walks.into(),
            chunks: futures_util::stream::empty().boxed(),
            crc32c: 0,
            rejected: 0,
            running: Some(opened.running),
            read: ReadFiles::default(),
            postgres_version: opened.postgres_version,
            system_identifier: opened.system_identifier,
            ready: VecDeque::new(),
            last: None,
            looked: Instant::now(),
        }
    }

    /// Without the session all that is read is for nothing, and hours may be left.
    async fn look(&mut self) -> Result<(), Broken> {
        if let Some(running) = &mut self.running {
            running.check().await?;
        }
        self.looked = Instant::now();
        Ok(())
    }

    fn take(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::Header(header) => self.ready.push_back(BackupEvent::Data(header)),
            Chunk::Special(path) => self.ready.push_back(BackupEvent::Notice(warning(
                "WARNING",
                "01000",
                format!("skipping special file \"{}\"", path.display()),
            ))),
            Chunk::Content { file, tar, bytes, crc32c, is_last, rejected } => {
                self.crc32c = crc32c::crc32c_combine(self.crc32c, crc32c, bytes as usize);
                self.rejected += rejected;
                self.ready.push_back(BackupEvent::Data(tar));
                if is_last {
                    let check = FileCheck { size_bytes: file.bytes, crc32c: std::mem::take(&mut self.crc32c) };
                    self.read.add(&file.path, file.mtime_seconds, check);
                }
            }
        }
    }

    /// The stretch that was read is through: begins the next archive, or ends the backup.
    async fn go_on(&mut self) -> Result<(), Broken> {
        let Some((tablespace, walk)) = self.walks.pop_front() else { return self.stop().await };
        self.ready.push_back(BackupEvent::Archive {
            tablespace: tablespace.as_ref().map(|it| it.oid),
            location: tablespace.map(|it| it.location),
        });
        self.chunks = read::read(walk, self.checks).boxed();
        Ok(())
    }

    /// All files were read: ends the backup, and makes what is left of it.
    async fn stop(&mut self) -> Result<(), Broken> {
        let running = self.running.take().ok_or_else(ended)?;
        // The last of the files that belong between start and stop.
        let control = Control::read(&self.directory).await?;
        let (start, timeline) = (running.start_lsn, running.timeline);
        let stopped = running.stop().await?;
        let now = self.clock.now();
        let files: [(&[u8], Bytes); 3] = [
            (b"backup_label", stopped.label),
            (b"tablespace_map", stopped.tablespace_map),
            (CONTROL_FILE, control.bytes.into()),
        ];
        for (name, content) in files {
            if content.is_empty() {
                continue;
            }
            let entry = NewEntry {
                name,
                is_directory: false,
                size_bytes: content.len() as u64,
                mode: control.metadata.mode(),
                ids: (control.metadata.uid(), control.metadata.gid()),
                mtime_seconds: now.as_second().try_into().unwrap_or_default(),
            };
            let header = entry.header().ok_or_else(|| Error::new(Kind::Internal, "a short name was too long"))?;
            let padding = vec![0; content.len().next_multiple_of(BLOCK) - content.len()];
            let path =
                FilePath::parse(name).map_err(|error| Error::new(Kind::Internal, "a name is none").because(error))?;
            let check = FileCheck { size_bytes: content.len() as u64, crc32c: crc32c::crc32c(&content) };
            self.read.add(&path, now.as_second(), check);
            let pieces = [Bytes::copy_from_slice(&header), content, padding.into()];
            self.ready.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(BackupEvent::Data));
        }
        // The zeros at the end of archives are added where they are cut, as for servers before 15.
        self.ready.push_back(BackupEvent::Manifest);
        let end_lsn = stopped.end_lsn;
        self.last = Some(Last {
            manifest: Some(ManifestWriter::new(self.postgres_version, self.system_identifier)),
            listed: 0,
            need: WalNeed { timeline, start, end: end_lsn },
            damage: self.damage(),
        });
        Ok(())
    }

    /// What a server would say at the end that verified its checksums.
    fn damage(&self) -> Option<Box<ServerMessage>> {
        let has_checksums = self.checks.is_some_and(|checks| checks.has_checksums());
        (has_checksums && self.rejected > 0).then(|| {
            let text = format!("pages with wrong checksums, also when they were read again: {}", self.rejected);
            Box::new(warning("ERROR", "XX001", text))
        })
    }
}

/// What the manifest will say: some 50 bytes of memory for each file.
#[derive(Default)]
struct ReadFiles {
    paths: Paths,
    /// When each was modified, in seconds, and what was read.
    read: Vec<(i64, FileCheck)>,
}

impl ReadFiles {
    fn add(&mut self, path: &FilePath, modified: i64, check: FileCheck) {
        self.paths.push(path.view());
        make_room(&mut self.read, 1);
        self.read.push((modified, check));
    }

    fn get(&self, place: usize) -> Option<(FilePathRef<'_>, Timestamp, FileCheck)> {
        let (path, (modified, check)) = (self.paths.get(place)?, *self.read.get(place)?);
        Some((path, Timestamp::from_second(modified).unwrap_or(Timestamp::UNIX_EPOCH), check))
    }
}

/// The manifest, written as it is asked for, and the end.
struct Last {
    manifest: Option<ManifestWriter>,
    /// Files that are in it.
    listed: usize,
    need: WalNeed,
    damage: Option<Box<ServerMessage>>,
}

impl Last {
    fn next_event(&mut self, files: &ReadFiles) -> BackupEvent {
        let Some(mut manifest) = self.manifest.take() else {
            let WalNeed { timeline, end, .. } = self.need;
            return BackupEvent::End { end_lsn: end, timeline, damage: self.damage.take() };
        };
        while let Some((path, modified, check)) = files.get(self.listed) {
            self.listed += 1;
            manifest.add(path, modified, check);
            if let Some(piece) = manifest.take() {
                self.manifest = Some(manifest);
                return BackupEvent::Data(piece);
            }
        }
        BackupEvent::Data(manifest.finish(&[self.need]))
    }
}

/// As a server would say it.
fn warning(severity: &str, sqlstate: &str, message: String) -> ServerMessage {
    let (severity, sqlstate) = (severity.to_owned(), sqlstate.to_owned());
    ServerMessage { severity, sqlstate, message, ..ServerMessage::default() }
}

fn ended() -> Error {
    Error::new(Kind::Internal, "the local base backup has ended")
}
