//! One part of a base backup: checked, decompressed, written. CPU work and blocking calls.

use super::blocks::{BlockWriter, Level, ZerosWriter};
use super::combine::Listed;
use super::file_writer::{self, FileWriter};
use super::label::LABEL_FILE;
use super::selection::Selection;
use super::tree::Tree;
use crate::codec::{
    Buffers, Ending, FRAME_BYTES, FRAME_STORED_BYTES_MAX, FrameDecoder, FrameSplitter, Identities, RawFrame, encryption,
};
use crate::error::{Error, Kind, Result};
use crate::repository::tar::{EntryKind, TarEvent, TarHeader, TarReader};
use crate::repository::{Archive, BackupId, BackupPart, FilePath, Identity, Subject, hex, whole_path};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Written last, so that nothing starts before everything is there.
pub(super) const CONTROL_FILE: &str = "global/pg_control";

/// The largest file that is kept in memory: many times what `pg_control` has (`PG_CONTROL_FILE_SIZE`, 8 KiB).
pub(super) const HELD_BYTES_MAX: u64 = 1 << 20;

/// Files of the backup that are not written: links are made by us, and the rest tells of a life before.
pub(super) const NOT_WRITTEN: [&str; 9] = [
    "tablespace_map",
    "standby.signal",
    "recovery.signal",
    "postmaster.pid",
    "postmaster.opts",
    "backup_label.old",
    "tablespace_map.old",
    super::pin::PIN_FILE,
    super::served::SERVED_FILE,
];

/// Whose part it is.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) system_identifier: u64,
    pub(super) backup: BackupId,
    pub(super) ending: Ending,
    pub(super) identities: Identities,
    /// OIDs of the tablespaces, whose links are made by us.
    pub(super) tablespaces: Vec<u32>,
    /// It is one of a chain.
    pub(super) level: Option<Arc<Level>>,
    /// Files to pass over.
    pub(super) selection: Selection,
}

/// A stretch of a file, with the CRC-32C of what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) path: FilePath,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
    /// Of the whole file, as the part says.
    pub(super) file_bytes: u64,
}

/// What a part held.
#[derive(Debug, Default)]
pub(super) struct Extracted {
    pub(super) pieces: Vec<Piece>,
    /// `pg_control` and its permissions, held back.
    pub(super) control: Option<(Vec<u8>, u32)>,
    /// Of one of a chain: `backup_label` and its permissions.
    pub(super) label: Option<(Vec<u8>, u32)>,
    /// What incremental files list, by the paths of the whole ones.
    pub(super) listed: Vec<(FilePath, Listed)>,
}

impl Extracted {
    /// Adds what another part held, but for its pieces, which were compared.
    pub(super) fn take_in(&mut self, other: Extracted) {
        self.control = self.control.take().or(other.control);
        self.label = self.label.take().or(other.label);
        self.listed.extend(other.listed);
    }
}

/// Checks that `stored` is `part`, the object called `name`, and writes its files. Frames are decompressed into `buffers`.
pub(super) fn extract(
    name: &str,
    part: &BackupPart,
    stored: Bytes,
    source: &Source,
    tree: &Tree,
    buffers: &Buffers,
) -> Result<Extracted> {
    let damaged = |why: String| {
        Error::new(Kind::Damaged, format!("{name} {why}"))
            .hint("Is there another copy of the bucket (versions, replication), or an older backup (`seawall list`)?")
    };
    // Before a byte of it is written.
    let found = hex(&Sha256::digest(&stored));
    if stored.len() as u64 != part.stored_bytes || found != part.sha256 {
        return Err(damaged("does not have the length and SHA-256 that backup.json says".to_owned()));
    }
    let archive = part.name.archive;
    let mut writer = Writer { archive, source, tree, open: None, extracted: Extracted::default() };
    let mut tar = TarReader::new();
    if let Some(from) = &part.continues {
        tar = TarReader::inside_file(from.file_offset, from.file_bytes);
        let path = from.path.clone();
        writer.begin_file(path, from.file_offset, from.file_bytes, None).map_err(|error| error.context(name))?;
    }
    let mut splitter = FrameSplitter::new(FRAME_STORED_BYTES_MAX);
    let mut decoder = FrameDecoder::new();
    let (mut identity, mut plain_bytes) = (None, 0);
    let unreadable = |error| Error::from(error).context(name);
    for piece in encryption::open(&source.identities, stored).map_err(unreadable)? {
        splitter.push(piece.map_err(unreadable)?);
        while let Some(frame) = splitter.next().map_err(unreadable)? {
            match frame {
                RawFrame::Identity(bytes) => identity = Some(bytes),
                RawFrame::Data(raw) => {
                    let mut plain = buffers.take_written();
                    let start = file_writer::align(&mut plain, FRAME_BYTES);
                    let end = decoder.decode_over(&raw, &mut plain, start, FRAME_BYTES).map_err(unreadable)?;
                    let plain = plain.freeze().slice(start..end);
                    plain_bytes += plain.len() as u64;
                    tar.feed(plain);
                    while let Some(event) =
                        tar.next_event().map_err(|error| damaged("is no tar".into()).because(error))?
                    {
                        writer.take(event).map_err(|error| error.context(name))?;
                    }
                }
            }
        }
    }
    splitter.finish().map_err(unreadable)?;
    // A file may go on in the next part.
    writer.end_file().map_err(|error| error.context(name))?;
    let subject = Subject::part(source.backup.clone(), archive);
    Identity::parse(name, identity.as_deref())?.check(name, source.system_identifier, &subject)?;
    if plain_bytes != part.plain_bytes {
        return Err(damaged(format!("holds {plain_bytes} bytes of tar instead of {}", part.plain_bytes)));
    }
    Ok(writer.extracted)
}

struct Writer<'a> {
    archive: Archive,
    source: &'a Source,
    tree: &'a Tree,
    open: Option<Open>,
    extracted: Extracted,
}

struct Open {
    path: FilePath,
    sink: Sink,
    start: u64,
    bytes: u64,
    crc32c: u32,
    file_bytes: u64,
}

enum Sink {
    File(FileWriter),
    Blocks(Box<BlockWriter>),
    /// `pg_control`, or else `backup_label`.
    Held(Vec<u8>, u32),
    Nothing,
    /// Passed over, and as long as its header says.
    Zeros(ZerosWriter),
    /// Not even looked at.
    Skipped,
}

impl Writer<'_> {
    fn take(&mut self, event: TarEvent) -> Result<()> {
        match event {
            TarEvent::Header(header) => {
                self.end_file()?;
                self.take_header(header)
            }
            TarEvent::Content(bytes) => self.take_content(&bytes),
            TarEvent::Padding(_) => Ok(()),
        }
    }

    fn take_header(&mut self, header: TarHeader) -> Result<()> {
        let path = match self.archive {
            Archive::Base => header.path,
            Archive::Tablespace(oid) => header.path.in_tablespace(oid),
        };
        match header.kind {
            // What the newest does not have is gone.
            EntryKind::Directory | EntryKind::Symlink(_) if self.is_older() => Ok(()),
            EntryKind::Directory => self.tree.make_directory(&self.tree.path_of(&path)),
            EntryKind::File => self.begin_file(path, 0, header.size_bytes, Some(header.mode)),
            EntryKind::Symlink(_) => {
                let is_ours = |oid: &u32| path.to_string() == format!("pg_tblspc/{oid}");
                match self.source.tablespaces.iter().any(is_ours) {
                    true => Ok(()),
                    false => Err(Error::new(Kind::Damaged, format!("{path} is a link, and no tablespace's"))
                        .hint("PostgreSQL puts no other links into a backup: somebody else wrote this one.")),
                }
            }
        }
    }

    fn begin_file(&mut self, path: FilePath, start: u64, file_bytes: u64, mode: Option<u32>) -> Result<()> {
        let name = path.to_string();
        let is_held = name == CONTROL_FILE && !self.is_older() || name == LABEL_FILE && self.source.level.is_some();
        let sink = if self.source.selection.skips(&path) {
            self.passed_over(&path, start, file_bytes)
        } else if is_held && start == 0 && file_bytes <= HELD_BYTES_MAX {
            Sink::Held(Vec::new(), mode.unwrap_or(0o600))
        } else if is_held {
            // Never under its name before all else is there.
            return Err(Error::new(Kind::Damaged, format!("{name} cannot have {file_bytes} bytes")));
        } else if NOT_WRITTEN.contains(&name.as_str()) {
            Sink::Nothing
        } else if let Some(writer) = self.blocks_of(&path, (start, file_bytes), mode)? {
            Sink::Blocks(Box::new(writer))
        } else if self.is_older() {
            Sink::Nothing
        } else {
            Sink::File(FileWriter::create(self.tree, &self.tree.path_of(&path), file_bytes, mode)?)
        };
        self.open = Some(Open { path, sink, start, bytes: 0, crc32c: 0, file_bytes });
        Ok(())
    }

    /// Of a file that is passed over, nobody but the header of an incremental one knows how long it is.
    fn passed_over(&self, path: &FilePath, start: u64, file_bytes: u64) -> Sink {
        match whole_path(path).filter(|_| self.source.level.is_some() && start == 0) {
            Some(whole) => Sink::Zeros(ZerosWriter::new(whole, file_bytes)),
            None => Sink::Skipped,
        }
    }

    /// True for a backup of which nothing is taken but blocks that newer ones lack.
    fn is_older(&self) -> bool {
        self.source.level.as_ref().is_some_and(|level| level.wanted.is_some())
    }

    /// What writes the blocks of a member, if it is one that gives blocks.
    fn blocks_of(&self, path: &FilePath, stretch: (u64, u64), mode: Option<u32>) -> Result<Option<BlockWriter>> {
        let Some(level) = &self.source.level else { return Ok(None) };
        let whole = whole_path(path).filter(|_| level.is_incremental);
        let is_incremental = whole.is_some();
        let whole = whole.unwrap_or_else(|| path.clone());
        let gives_blocks = match &level.wanted {
            None => is_incremental,
            Some(wanted) => wanted.file(&whole).is_some(),
        };
        let writer = gives_blocks.then(|| BlockWriter::new(Arc::clone(level), whole, is_incremental, stretch, mode));
        writer.transpose()
    }

    fn take_content(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::new(Kind::Internal, "a tar stream has contents of no file"));
        };
        match &mut open.sink {
            Sink::File(file) => file
                .write_all_at(bytes, open.start + open.bytes)
                .map_err(|error| Error::local("write", &self.tree.path_of(&open.path), error))?,
            Sink::Blocks(writer) => {
                let listed = writer.take(self.tree, open.start + open.bytes, bytes)?;
                self.extracted.listed.extend(listed.map(|listed| (writer.whole().clone(), listed)));
            }
            Sink::Held(held, _) => held.extend_from_slice(bytes),
            Sink::Nothing => {}
            Sink::Zeros(writer) => return writer.take(self.tree, bytes),
            Sink::Skipped => return Ok(()),
        }
        open.bytes += bytes.len() as u64;
        open.crc32c = crc32c::crc32c_append(open.crc32c, bytes);
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        match &open.sink {
            Sink::Skipped => return Ok(()),
            Sink::Zeros(writer) => return writer.finish(),
            Sink::Blocks(writer) => writer.finish()?,
            Sink::File(_) | Sink::Held(..) | Sink::Nothing => {}
        }
        if let Sink::Held(bytes, mode) = open.sink {
            let is_label = open.path.as_bytes() == LABEL_FILE.as_bytes();
            let held = if is_label { &mut self.extracted.label } else { &mut self.extracted.control };
            *held = Some((bytes, mode));
        }
        let Open { path, start, bytes, crc32c, file_bytes, .. } = open;
        let piece = Piece { path, offset: start, bytes, crc32c, file_bytes };
        self.extracted.pieces.push(piece);
        Ok(())
    }
}
