//! Takes what was cut, in order, has it compressed on all cores, joins frames into parts, stores them, several at once,
//! and keeps what is needed to verify every file. Memory: the frames at work, one part being built, the uploads.

use super::pages::PageChecks;
use super::parts::{Frame, PartEnd, Span};
use super::run::BackupProgress;
use super::verify::ManifestCheck;
use crate::error::{Error, Kind, Result};
use crate::repository::manifest::ManifestEnd;
use crate::repository::{
    BackupFile, BackupFiles, BackupId, BackupPart, ContentDigest, EarlierParts, Key, RejectedPage, StoredPart, Subject,
    Writer,
};
use crate::runtime::{self, Tasks};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Rejected pages that are listed: the others are only counted.
const REJECTED_LISTED_MAX: usize = 1000;

/// What is handed over, in the order of the stream.
pub(crate) enum Work {
    /// A frame of the current part, being packed.
    Frame(JoinHandle<Result<Packed>>),
    /// The current part is complete.
    PartEnd(PartEnd),
    /// Bytes of the manifest, behind all parts: at most a frame.
    Manifest(Vec<u8>),
    /// The server called the backup a success, and this is all of it.
    End,
}

/// A frame, compressed, and what passed in it.
pub(crate) struct Packed {
    stored: Bytes,
    /// For each stretch of a file's contents: the file's number, the stretch's CRC-32C and length.
    crcs: Vec<(u32, u32, usize)>,
    files: Vec<BackupFile>,
    /// The file's number and the page's.
    rejected: Vec<(u32, u32)>,
}

/// Compresses a frame and computes its files' checksums, both in one pass, and checks its pages. CPU work. The frame has no
/// checksum beside those and the part's SHA-256.
pub(crate) fn pack(writer: &Writer, frame: Frame, checks: Option<PageChecks>) -> Packed {
    let mut rejected = Vec::new();
    for span in &frame.spans {
        if let (Some(checks), Some(pages)) = (checks, &span.pages) {
            let bytes = &frame.plain[span.start..span.start + span.bytes];
            let blocks = checks.rejected(pages, bytes);
            rejected.extend(blocks.into_iter().map(|block| (span.file, block)));
        }
    }
    let mut crcs = SpanCrcs { spans: &frame.spans, position: 0, crc: 0, done: Vec::with_capacity(frame.spans.len()) };
    let stored = writer.encode_checked_frame(&frame.plain, |bytes| crcs.take(bytes));
    let crcs = crcs.done;
    Packed { crcs, stored, files: frame.files, rejected }
}

/// The checksums of a frame's spans, as its bytes pass.
struct SpanCrcs<'a> {
    /// Those that are not complete.
    spans: &'a [Span],
    /// Bytes that have passed.
    position: usize,
    /// Of those of the first span that have passed.
    crc: u32,
    done: Vec<(u32, u32, usize)>,
}

impl SpanCrcs<'_> {
    fn take(&mut self, bytes: &[u8]) {
        let (start, end) = (self.position, self.position + bytes.len());
        self.position = end;
        while let Some((span, later)) = self.spans.split_first() {
            let within = |position: usize| position.clamp(start, end) - start;
            let span_end = span.start + span.bytes;
            self.crc = crc32c::crc32c_append(self.crc, &bytes[within(span.start)..within(span_end)]);
            if span_end > end {
                return;
            }
            self.done.push((span.file, self.crc, span.bytes));
            (self.spans, self.crc) = (later, 0);
        }
    }
}

/// What became of a stream.
pub(crate) enum Outcome {
    /// All of it is stored.
    Whole(Collected),
    /// It ended early; these parts of it are stored.
    CutOff(Vec<BackupPart>),
}

/// What was stored.
pub(crate) struct Collected {
    /// In the order of the stream.
    pub(crate) parts: Vec<BackupPart>,
    /// In the order of the stream.
    pub(crate) files: BackupFiles,
    /// The end of the manifest, with which every file was found to agree.
    pub(crate) manifest: ManifestEnd,
    /// Pages that are not what PostgreSQL writes: the first of them.
    pub(crate) rejected: Vec<RejectedPage>,
    /// How many there are.
    pub(crate) rejected_count: u64,
}

/// See the head of the file.
pub(crate) struct Collector {
    writer: Writer,
    id: BackupId,
    earlier: Arc<EarlierParts>,
    uploads_in_flight: usize,
    progress: watch::Sender<BackupProgress>,
    /// A part's place, whether it is new, and what it is.
    uploads: Tasks<Result<(usize, bool, BackupPart)>>,
    /// The part being built.
    frames: Vec<Bytes>,
    parts: Vec<Option<BackupPart>>,
    files: BackupFiles,
    crcs: Vec<u32>,
    manifest: Option<ManifestIntake>,
    rejected: Vec<RejectedPage>,
    rejected_count: u64,
}

impl Collector {
    /// For the backup `id`, of which earlier attempts have stored these parts, with at most `uploads_in_flight` parts being stored beside
    /// the one being built.
    pub(crate) fn new(
        writer: Writer,
        id: BackupId,
        earlier: Arc<EarlierParts>,
        uploads_in_flight: usize,
        progress: watch::Sender<BackupProgress>,
    ) -> Collector {
        Collector {
            writer,
            id,
            earlier,
            uploads_in_flight: uploads_in_flight.max(1),
            progress,
            uploads: Tasks::default(),
            frames: Vec::new(),
            parts: Vec::new(),
            files: BackupFiles::default(),
            crcs: Vec::new(),
            manifest: None,
            rejected: Vec::new(),
            rejected_count: 0,
        }
    }

    /// Works up to the end, then stores the manifest; or until the sender is gone, then ends what is on its way into the store. Dropping
    /// it ends the uploads; what is stored by then stays.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if a file is not what the manifest says; otherwise what the store says.
    pub(crate) async fn collect(mut self, mut work: mpsc::Receiver<Work>) -> Result<Outcome> {
        let mut is_whole = false;
        while let Some(next) = work.recv().await {
            match next {
                Work::Frame(packed) => self.take_frame(packed).await?,
                Work::PartEnd(end) => self.end_part(end).await?,
                Work::Manifest(bytes) => self.take_manifest(bytes).await?,
                Work::End => is_whole = true,
            }
        }
        while !self.uploads.is_empty() {
            self.finish_upload().await?;
        }
        match is_whole {
            true => self.finish().await.map(Outcome::Whole),
            false => Ok(Outcome::CutOff(self.parts.into_iter().flatten().collect())),
        }
    }

    async fn finish(mut self) -> Result<Collected> {
        self.take_manifest(Vec::new()).await?;
        let intake = self.manifest.take().ok_or_else(|| defect("no manifest"))?;
        let (manifest, files) = intake.store(&self.writer, &self.id).await?;
        let parts = self.parts.into_iter().collect::<Option<_>>().ok_or_else(|| defect("a part is missing"))?;
        let Collector { rejected, rejected_count, .. } = self;
        Ok(Collected { parts, files, manifest, rejected, rejected_count })
    }

    async fn take_frame(&mut self, packed: JoinHandle<Result<Packed>>) -> Result<()> {
        let packed = packed.await.map_err(|error| defect("a frame was not packed").because(error))??;
        self.frames.push(packed.stored);
        self.crcs.resize(self.crcs.len() + packed.files.len(), 0);
        packed.files.iter().for_each(|file| self.files.push(file.view()));
        for (file, crc, bytes) in packed.crcs {
            let so_far = self.crcs.get_mut(file as usize).ok_or_else(|| defect("contents of no file"))?;
            *so_far = crc32c::crc32c_combine(*so_far, crc, bytes);
        }
        self.rejected_count += packed.rejected.len() as u64;
        let room = REJECTED_LISTED_MAX - self.rejected.len();
        for (file, block) in packed.rejected.into_iter().take(room) {
            let file = self.files.get(file as usize).ok_or_else(|| defect("pages of no file"))?;
            self.rejected.push(RejectedPage { path: file.path.to_path(), block });
        }
        Ok(())
    }

    async fn end_part(&mut self, end: PartEnd) -> Result<()> {
        while self.uploads.len() >= self.uploads_in_flight {
            self.finish_upload().await?;
        }
        let (writer, id, earlier) = (self.writer.clone(), self.id.clone(), Arc::clone(&self.earlier));
        let frames = std::mem::take(&mut self.frames);
        let index = self.parts.len();
        self.parts.push(None);
        self.uploads.start(async move {
            let PartEnd { archive, number, plain_bytes, added_bytes, continues } = end;
            let stored = writer.store_part(&id, (archive, number), frames, plain_bytes, &earlier).await?;
            let StoredPart { name, bytes: stored_bytes, sha256, is_new } = stored;
            Ok((index, is_new, BackupPart { name, plain_bytes, stored_bytes, sha256, added_bytes, continues }))
        });
        Ok(())
    }

    async fn finish_upload(&mut self) -> Result<()> {
        if let Some(done) = self.uploads.next().await {
            let (index, is_new, part) = done??;
            self.progress.send_modify(|progress| {
                progress.stored_bytes += part.stored_bytes;
                progress.reused_bytes += if is_new { 0 } else { part.stored_bytes };
            });
            if let Some(place) = self.parts.get_mut(index) {
                *place = Some(part);
            }
        }
        Ok(())
    }

    /// With the first bytes of it, all files have come.
    async fn take_manifest(&mut self, bytes: Vec<u8>) -> Result<()> {
        let (intake, writer) = (self.manifest.take(), self.writer.clone());
        let (files, crcs) = (std::mem::take(&mut self.files), std::mem::take(&mut self.crcs));
        let intake = runtime::blocking(move || {
            let intake = match intake {
                Some(intake) => intake,
                None => ManifestIntake::new(files, crcs)?,
            };
            intake.take(&writer, &bytes)
        })
        .await??;
        self.manifest = Some(intake);
        Ok(())
    }
}

/// The manifest as it arrives: compared, and compressed into memory, since its object begins with its length. A file
/// takes about 50 bytes there, as in the list of files.
struct ManifestIntake {
    check: ManifestCheck,
    frames: Vec<Bytes>,
    plain_bytes: u64,
}

impl ManifestIntake {
    fn new(files: BackupFiles, crcs: Vec<u32>) -> Result<ManifestIntake> {
        Ok(ManifestIntake { check: ManifestCheck::new(files, crcs)?, frames: Vec::new(), plain_bytes: 0 })
    }

    fn take(mut self, writer: &Writer, bytes: &[u8]) -> Result<ManifestIntake> {
        self.check.feed(bytes)?;
        if !bytes.is_empty() {
            self.frames.push(writer.encode_frame(bytes));
            self.plain_bytes += bytes.len() as u64;
        }
        Ok(self)
    }

    /// Gives the files back as well.
    async fn store(self, writer: &Writer, id: &BackupId) -> Result<(ManifestEnd, BackupFiles)> {
        let (end, files) = self.check.finish()?;
        let digest = ContentDigest::of_hex(&end.sha256).ok_or_else(|| defect("a manifest without a hash"))?;
        let (key, subject) = (Key::BackupManifest(id.clone(), digest), Subject::Manifest { backup: id.clone() });
        writer.store_frames(&key, subject, self.frames, self.plain_bytes).await?;
        Ok((end, files))
    }
}

fn defect(what: &str) -> Error {
    Error::new(Kind::Internal, format!("the base backup was put together wrongly: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_has_its_own_checksum_wherever_the_passing_bytes_are_cut() {
        // Given spans with gaps, across borders, and up to the end
        let plain: Vec<u8> = (0..1000u32).map(|at| (at * 7 % 251) as u8).collect();
        let spans = [(3, 0, 10), (4, 10, 300), (7, 512, 1), (8, 600, 400)];
        let spans = spans.map(|(file, start, bytes)| Span { file, start, bytes, pages: None });
        let expected: Vec<_> = spans
            .iter()
            .map(|span| (span.file, crc32c::crc32c(&plain[span.start..span.start + span.bytes]), span.bytes))
            .collect();
        for step in [1, 7, 256, 512, 1000] {
            let mut crcs = SpanCrcs { spans: &spans, position: 0, crc: 0, done: Vec::new() };
            plain.chunks(step).for_each(|bytes| crcs.take(bytes));
            assert_eq!(crcs.done, expected, "in steps of {step}");
        }
    }
}
