//! Cuts tar streams into parts and frames, without I/O. Where it cuts depends on the files alone, so that the same files
//! make the same parts.
//!
//! A part is one object: small files bundled up to [`PART_BYTES`]; or a piece of a file of [`LARGE_FILE_BYTES`] or more, which is cut
//! at multiples of [`PART_BYTES`] of its contents. A bundle also ends before every file whose name says so ([`begins_bundle`]): so a
//! file that has grown, come or gone since an earlier attempt moves no border but the next, and all other parts are
//! equal. What differs in every backup has parts of its own. A part is made of frames of [`FRAME_BYTES`] of tar, which are
//! compressed independently. All parts of an archive, decompressed and joined, are exactly what the server sent, and
//! the two blocks of zeros that servers before 15 leave out.

use super::pages::{Numbering, PAGE_BYTES, Pages};
use crate::codec::{Buffer, Buffers, FRAME_BYTES};
use crate::repository::incremental::{BLOCK_BYTES, HeaderReader, IncrementalError};
use crate::repository::tar::{BLOCK, EntryKind, TRAILER_BYTES, TarError, TarEvent, TarHeader, TarReader};
use crate::repository::{Archive, BackupFile, Continuation, FilePath, PART_BYTES_MAX};
use bytes::Bytes;
use std::collections::VecDeque;

/// Tar bytes in a part. A connection that is lost costs the part being built, and a page that changes since costs its part: half of
/// this on the average. Twice as large they would cost half as many requests. Memory for data that does not compress is this much for the part being built and for each
/// upload in flight. Part of the repository's format only in so far as a resumed backup must find the same borders.
pub(crate) const PART_BYTES: u64 = 16 << 20;

/// A file of this size has parts of its own; smaller ones are never cut.
pub(crate) const LARGE_FILE_BYTES: u64 = 8 << 20;

/// Frames whose memory is kept to be used again: a few more than are cut and compressed at once.
const SPARE_FRAMES_MAX: usize = 8;

const _: () = assert!(LARGE_FILE_BYTES < PART_BYTES && PART_BYTES.is_multiple_of(FRAME_BYTES as u64));

// What does not compress grows a little, also when it is encrypted.
const _: () = assert!(PART_BYTES * 3 / 2 < PART_BYTES_MAX);

/// Contents of one file in a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// The file: its place in the order of all files of the backup, from 0.
    pub(crate) file: u32,
    /// Where its bytes begin in the frame.
    pub(crate) start: usize,
    /// How many there are.
    pub(crate) bytes: usize,
    /// What they are, if they are pages.
    pub(crate) pages: Option<Pages>,
}

/// A frame's plain bytes and what they are.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Up to [`FRAME_BYTES`] of tar.
    pub(crate) plain: Buffer,
    /// Files' contents in it, in order.
    pub(crate) spans: Vec<Span>,
    /// The files whose headers are in it, in order.
    pub(crate) files: Vec<BackupFile>,
}

impl Frame {
    fn new(buffers: &Buffers) -> Frame {
        Frame { plain: buffers.take(), spans: Vec::new(), files: Vec::new() }
    }
}

/// A part whose last frame was cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartEnd {
    /// Its archive.
    pub(crate) archive: Archive,
    /// Its number in that archive, from 1.
    pub(crate) number: u32,
    /// Bytes of tar in it.
    pub(crate) plain_bytes: u64,
    /// Zeros at its end that the server did not send.
    pub(crate) added_bytes: u32,
    /// The file that it begins inside of.
    pub(crate) continues: Option<Continuation>,
}

/// What comes out, in order.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The next frame of the part being built.
    Frame(Frame),
    /// That part is complete.
    PartEnd(PartEnd),
}

/// The file whose contents are passing.
#[derive(Debug)]
struct Open {
    number: u32,
    path: FilePath,
    bytes: u64,
    done_bytes: u64,
    /// Of its pages, if it has pages.
    numbering: Option<Numbering>,
    /// What an incremental file begins with.
    header: Option<HeaderReader>,
    /// The end of the frame before: the page that it was cut in.
    head: Vec<u8>,
}

impl Open {
    fn is_large(&self) -> bool {
        self.bytes >= LARGE_FILE_BYTES
    }

    /// A frame ends with the bytes that are done.
    fn keep_head(&mut self, frame: &[u8]) {
        let bytes = (self.done_bytes % PAGE_BYTES as u64) as usize;
        if self.numbering.is_some() && self.done_bytes < self.bytes {
            self.head = frame[frame.len() - bytes.min(frame.len())..].to_vec();
        }
    }

    /// What begins in a new frame.
    fn pages(&mut self) -> Option<Pages> {
        let numbering = self.numbering.clone()?;
        let first = (self.done_bytes / PAGE_BYTES as u64) as u32;
        Some(Pages { first, head: std::mem::take(&mut self.head), numbering })
    }

    /// Looks at what passes of an incremental file, and numbers its pages once its header is complete.
    fn read_header(&mut self, content: &[u8]) -> Result<(), IncrementalError> {
        let Some(reader) = &mut self.header else { return Ok(()) };
        reader.push(content)?;
        if let (Some(Numbering::Listed(_, header @ None)), Some(found)) = (&mut self.numbering, reader.header()) {
            *header = Some(found.clone());
        }
        Ok(())
    }
}

/// What the server writes anew for each backup.
fn differs_always(path: &FilePath) -> bool {
    const NAMES: [&str; 3] = ["backup_label", "tablespace_map", "global/pg_control"];
    NAMES.iter().any(|name| path.as_bytes() == name.as_bytes())
}

/// True if a bundle begins with a small file, by its name and size alone: the larger, the more often, so that on the average there is
/// one such file in every [`LARGE_FILE_BYTES`].
fn begins_bundle(path: &FilePath, entry_bytes: u64) -> bool {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..8]);
    u128::from(u64::from_le_bytes(hash)) * u128::from(LARGE_FILE_BYTES) < u128::from(entry_bytes) << u64::BITS
}

/// What comes is not a base backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutError {
    /// It is no tar stream.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A file that should hold changed blocks holds something else.
    #[error("{path} cannot be used")]
    Incremental {
        /// The file.
        path: FilePath,
        /// Why.
        source: IncrementalError,
    },
}

/// Cuts one archive after the other.
#[derive(Debug)]
pub(crate) struct PartCutter {
    buffers: Buffers,
    archive: Archive,
    reader: TarReader,
    /// Files so far, in all archives.
    files: u32,
    /// Parts that are complete, in all archives.
    parts: u32,
    number: u32,
    part_bytes: u64,
    continues: Option<Continuation>,
    frame: Frame,
    open: Option<Open>,
    ready: VecDeque<Piece>,
    is_incremental: bool,
    whole_bytes: u64,
    /// The part being built has what differs in every backup.
    is_new: bool,
}

impl PartCutter {
    /// Before the first archive of a base backup, incremental or full.
    pub(crate) fn new(is_incremental: bool) -> PartCutter {
        let buffers = Buffers::new(SPARE_FRAMES_MAX);
        PartCutter {
            frame: Frame::new(&buffers),
            buffers,
            archive: Archive::Base,
            reader: TarReader::new(),
            files: 0,
            parts: 0,
            number: 1,
            part_bytes: 0,
            continues: None,
            open: None,
            ready: VecDeque::new(),
            is_incremental,
            whole_bytes: 0,
            is_new: false,
        }
    }

    /// The bytes that follow are those of `archive`. End the one before first.
    pub(crate) fn begin_archive(&mut self, archive: Archive) {
        self.archive = archive;
        self.reader = TarReader::new();
        self.number = 1;
    }

    /// Takes in the next bytes of the archive.
    ///
    /// # Errors
    /// If they are not a tar stream, or a file of an incremental backup is not one.
    pub(crate) fn feed(&mut self, bytes: Bytes) -> Result<(), CutError> {
        self.reader.feed(bytes);
        while let Some(event) = self.reader.next_event()? {
            match event {
                TarEvent::Header(header) => self.take_header(header)?,
                TarEvent::Content(content) => self.take_content(&content)?,
                TarEvent::Padding(zeros) => self.append(&zeros),
            }
        }
        Ok(())
    }

    /// The archive is complete: its last part ends.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn end_archive(&mut self) -> Result<(), CutError> {
        self.reader.finish()?;
        self.end_file()?;
        let missing = self.reader.missing_trailer_bytes();
        self.append(&[0; TRAILER_BYTES][..missing]);
        self.end_part(missing as u32);
        Ok(())
    }

    /// The next piece that is ready.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// Bytes of the files so far, those of incremental ones as what they stand for.
    pub(crate) fn whole_bytes(&self) -> u64 {
        self.whole_bytes
    }

    fn end_file(&mut self) -> Result<(), CutError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.whole_bytes += match open.header {
            None => open.bytes,
            Some(reader) => {
                let header = reader.finish().map_err(|source| CutError::Incremental { path: open.path, source })?;
                u64::from(header.whole_blocks()) * BLOCK_BYTES
            }
        };
        Ok(())
    }

    fn take_header(&mut self, header: TarHeader) -> Result<(), CutError> {
        let entry_bytes = header.size_bytes.saturating_add(2 * BLOCK as u64 - 1) / BLOCK as u64 * BLOCK as u64;
        let is_large = header.size_bytes >= LARGE_FILE_BYTES || self.open.as_ref().is_some_and(Open::is_large);
        let is_new = self.archive == Archive::Base && differs_always(&header.path);
        let is_full = self.part_bytes.saturating_add(entry_bytes) > PART_BYTES;
        let begins = header.kind == EntryKind::File && begins_bundle(&header.path, entry_bytes);
        if self.part_bytes > 0 && (is_large || is_full || begins || is_new != self.is_new) {
            self.end_part(0);
        }
        self.is_new = is_new;
        self.end_file()?;
        self.append(&header.block);
        if header.kind == EntryKind::File {
            let path = match self.archive {
                Archive::Base => header.path,
                Archive::Tablespace(oid) => header.path.in_tablespace(oid),
            };
            let file =
                BackupFile { path: path.clone(), part: self.parts, offset: self.part_bytes, bytes: header.size_bytes };
            self.frame.files.push(file);
            let (number, bytes) = (self.files, header.size_bytes);
            let numbering = Numbering::of(&path);
            let header = match numbering {
                Some(Numbering::Listed(..)) if self.is_incremental => Some(HeaderReader::new(bytes)),
                _ => None,
            };
            self.open = Some(Open { number, path, bytes, done_bytes: 0, numbering, header, head: Vec::new() });
            self.files += 1;
        }
        Ok(())
    }

    fn take_content(&mut self, mut content: &[u8]) -> Result<(), CutError> {
        while let Some(open) = self.open.as_mut().filter(|_| !content.is_empty()) {
            let at_multiple = open.done_bytes > 0 && open.done_bytes.is_multiple_of(PART_BYTES);
            if at_multiple && self.continues.as_ref().is_none_or(|from| from.file_offset != open.done_bytes) {
                let continues =
                    Continuation { path: open.path.clone(), file_offset: open.done_bytes, file_bytes: open.bytes };
                self.end_part(0);
                self.continues = Some(continues);
                continue;
            }
            let to_multiple = PART_BYTES - open.done_bytes % PART_BYTES;
            let count = (content.len() as u64).min(to_multiple).min((FRAME_BYTES - self.frame.plain.len()) as u64);
            let (now, rest) = content.split_at(count as usize);
            let start = self.frame.plain.len();
            let read = open.read_header(now);
            read.map_err(|source| CutError::Incremental { path: open.path.clone(), source })?;
            match self.frame.spans.last_mut() {
                Some(span) if span.file == open.number => {
                    span.bytes += now.len();
                    if let (Some(pages), Some(numbering)) = (&mut span.pages, &open.numbering) {
                        pages.numbering.clone_from(numbering);
                    }
                }
                _ => {
                    let pages = open.pages();
                    self.frame.spans.push(Span { file: open.number, start, bytes: now.len(), pages });
                }
            }
            open.done_bytes += count;
            self.append(now);
            content = rest;
        }
        Ok(())
    }

    /// Adds bytes to the part, and cuts a frame whenever one is full.
    fn append(&mut self, mut bytes: &[u8]) {
        self.part_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = FRAME_BYTES - self.frame.plain.len();
            self.frame.plain.reserve_exact(room);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.frame.plain.extend_from_slice(now);
            bytes = rest;
            if self.frame.plain.len() == FRAME_BYTES {
                self.end_frame();
            }
        }
    }

    fn end_frame(&mut self) {
        if let Some(open) = &mut self.open {
            open.keep_head(&self.frame.plain);
        }
        let frame = std::mem::replace(&mut self.frame, Frame::new(&self.buffers));
        self.ready.push_back(Piece::Frame(frame));
    }

    fn end_part(&mut self, added_bytes: u32) {
        if !self.frame.plain.is_empty() {
            self.end_frame();
        }
        let end = PartEnd {
            archive: self.archive,
            number: self.number,
            plain_bytes: self.part_bytes,
            added_bytes,
            continues: self.continues.take(),
        };
        self.ready.push_back(Piece::PartEnd(end));
        self.number += 1;
        self.parts += 1;
        self.part_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tar::testing::{file, header};
    use proptest::prelude::*;

    /// One archive, cut.
    struct Cut {
        /// What ends each part, and its bytes.
        parts: Vec<(PartEnd, Vec<u8>)>,
        files: Vec<BackupFile>,
        /// Each file's, as the checksums see them.
        contents: Vec<Vec<u8>>,
    }

    fn cut(stream: &[u8], piece_bytes: usize) -> Cut {
        let mut cutter = PartCutter::new(false);
        cutter.begin_archive(Archive::Base);
        let (mut parts, mut contents) = (Vec::new(), Vec::new());
        let (mut files, mut part): (Vec<BackupFile>, _) = (Vec::new(), Vec::new());
        let mut take = |cutter: &mut PartCutter| {
            while let Some(piece) = cutter.next_piece() {
                match piece {
                    Piece::Frame(frame) => {
                        assert!(!frame.plain.is_empty() && frame.plain.len() <= FRAME_BYTES);
                        files.extend(frame.files);
                        contents.resize(files.len(), Vec::new());
                        for span in frame.spans {
                            let before: &Vec<u8> = &contents[span.file as usize];
                            let (page, within) = (before.len() / PAGE_BYTES, before.len() % PAGE_BYTES);
                            let path = files[span.file as usize].path.to_string();
                            assert_eq!(span.pages.is_some(), path.starts_with("base/"), "{path} is a relation");
                            if let Some(pages) = span.pages {
                                assert_eq!(pages.first as usize, page, "the page that a span begins in");
                                assert!(pages.head == before[before.len() - within..], "the beginning of that page");
                            }
                            contents[span.file as usize].extend(&frame.plain[span.start..span.start + span.bytes]);
                        }
                        part.extend_from_slice(&frame.plain);
                    }
                    Piece::PartEnd(end) => parts.push((end, std::mem::take(&mut part))),
                }
            }
        };
        for piece in stream.chunks(piece_bytes) {
            cutter.feed(Bytes::copy_from_slice(piece)).unwrap();
            take(&mut cutter);
        }
        cutter.end_archive().unwrap();
        take(&mut cutter);
        Cut { parts, files, contents }
    }

    /// Every rule about parts, for a stream of files of these sizes.
    fn check(sizes: &[usize], piece_bytes: usize, with_trailer: bool) {
        let mut stream = header(b"pg_twophase/", b'5', 0, b"").to_vec();
        let contents: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(number, &size)| vec![number as u8 + 1; size]).collect();
        for (number, content) in contents.iter().enumerate() {
            stream.extend(file(&format!("base/1/{number}"), content));
        }
        let mut expected = stream.clone();
        expected.resize(stream.len() + TRAILER_BYTES, 0);
        let sent = if with_trailer { &expected } else { &stream };
        let Cut { parts, files, contents: found } = cut(sent, piece_bytes);

        let joined: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        assert!(joined == expected, "the parts together are not the stream");
        assert!(found == contents, "the contents for the checksums are not the files'");
        let added: u32 = parts.iter().map(|(end, _)| end.added_bytes).sum();
        assert_eq!(added as usize, if with_trailer { 0 } else { TRAILER_BYTES });
        for (index, (end, bytes)) in parts.iter().enumerate() {
            assert_eq!(end.plain_bytes, bytes.len() as u64);
            assert_eq!(end.number as usize, index + 1);
            assert!(bytes.len() as u64 <= PART_BYTES + (BLOCK + TRAILER_BYTES) as u64, "part {index} is too large");
            // Each part can be read by itself.
            let mut reader = match &end.continues {
                Some(from) => TarReader::inside_file(from.file_offset, from.file_bytes),
                None => TarReader::new(),
            };
            reader.feed(Bytes::copy_from_slice(bytes));
            while reader.next_event().unwrap().is_some() {}
            if let Some(from) = &end.continues {
                assert!(from.file_bytes >= LARGE_FILE_BYTES && from.file_offset.is_multiple_of(PART_BYTES));
            }
        }
        for (file, content) in files.iter().zip(&contents) {
            assert_eq!(file.bytes, content.len() as u64);
            if file.bytes >= LARGE_FILE_BYTES {
                assert_eq!(file.offset, BLOCK as u64, "a large file begins its part");
            }
            let first = &parts[file.part as usize].1[file.offset as usize..];
            let here = content.len().min(first.len());
            assert!(first[..here] == content[..here], "{} is not where the list of files says", file.path);
            let next = parts.get(file.part as usize + 1).and_then(|(end, _)| end.continues.as_ref());
            let goes_on = next.is_some_and(|from| from.path == file.path);
            assert_eq!(goes_on, content.len() > here);
        }
    }

    const PART: usize = PART_BYTES as usize;
    const LARGE: usize = LARGE_FILE_BYTES as usize;

    #[test]
    fn large_files_are_cut_at_multiples_and_small_ones_bundled() {
        check(&[0, 1, 511, 512, 513], 777, true);
        check(&[100, LARGE - 1, LARGE - 1, LARGE - 1], 1 << 20, true);
        check(&[100, LARGE, 5, 2 * PART + 1, 100, 2 * PART, 7], 32 << 10, false);
        check(&[PART, PART - 512, PART - 1], (512 << 10) + 3, true);
        check(&[], 64, false);
    }

    #[test]
    fn a_part_says_inside_which_file_it_begins() {
        let mut stream = file("base/1/1", &vec![1; 2 * PART + 10]);
        stream.extend(file("base/1/2", b"small"));
        let Cut { parts, files, .. } = cut(&stream, 1 << 20);
        let begins: Vec<_> = parts.iter().map(|(end, _)| end.continues.as_ref().map(|from| from.file_offset)).collect();
        assert_eq!(begins, [None, Some(PART_BYTES), Some(2 * PART_BYTES), None]);
        assert_eq!((files[1].part, files[1].offset), (3, 512), "a large file has parts of its own");
    }

    /// A stream of files of these sizes, none of which has another's bytes, and its parts.
    fn parts_of<'a>(files: impl IntoIterator<Item = &'a (String, usize)>) -> Vec<Vec<u8>> {
        let mut stream = file("backup_label", b"START WAL LOCATION: 0/2000028");
        for (path, bytes) in files {
            let mut content = vec![0; *bytes];
            content.iter_mut().zip(path.bytes()).for_each(|(byte, letter)| *byte = letter);
            stream.extend(file(path, &content));
        }
        stream.extend(file("global/pg_control", &[7; 8192]));
        cut(&stream, 1 << 20).parts.into_iter().map(|(_, bytes)| bytes).collect()
    }

    #[test]
    fn a_file_that_changed_makes_other_parts_of_what_is_next_to_it_alone() {
        // Given small files of all sizes, some 130 MiB of them, and a large one
        let mut files: Vec<(String, usize)> =
            (0..1000).map(|number| (format!("base/5/{}", 16_384 + 3 * number), (number * 7919) % 270_000)).collect();
        files.insert(500, ("base/5/99999".to_owned(), LARGE + 100));
        let before: std::collections::HashSet<Vec<u8>> = parts_of(&files).into_iter().collect();
        let mean = files.iter().map(|(_, bytes)| bytes).sum::<usize>() / before.len();
        assert!(mean > LARGE / 3, "the parts have {mean} bytes on the average");
        // When one of them has grown, or is gone, or there is a new one, or the large one has grown
        type Change = fn(&mut Vec<(String, usize)>);
        let changes: [Change; 5] = [
            |files| files[100].1 += 9000,
            |files| _ = files.remove(300),
            |files| files.insert(700, ("base/5/77777".to_owned(), 50_000)),
            |files| files[500].1 += 100_000,
            |files| files[998].1 = 0,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut changed = files.clone();
            change(&mut changed);
            // Then no more is new than that file's part and the next.
            let new = parts_of(&changed).into_iter().filter(|part| !before.contains(part));
            let new: Vec<usize> = new.map(|part| part.len()).collect();
            let bytes: usize = new.iter().sum();
            assert!(new.len() <= 2 && bytes <= PART + LARGE, "change {number} makes {new:?} anew");
        }
    }

    #[test]
    fn what_differs_in_every_backup_has_parts_of_its_own() {
        let parts = parts_of(&[("base/5/1".to_owned(), 100), ("base/5/2".to_owned(), 100)]);
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1024, 2048, 512 + 8192 + 1024]);
    }

    #[test]
    fn a_tablespaces_files_are_named_as_in_the_manifest_and_numbering_goes_on() {
        let mut cutter = PartCutter::new(false);
        for archive in [Archive::Tablespace(16384), Archive::Base] {
            cutter.begin_archive(archive);
            cutter.feed(Bytes::from(file("PG_15_202209061/5/1", b"x"))).unwrap();
            cutter.end_archive().unwrap();
        }
        let (mut files, mut ends, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(piece) = cutter.next_piece() {
            match piece {
                Piece::Frame(frame) => {
                    files.extend(frame.files.into_iter().map(|file| (file.path.to_string(), file.part)));
                    spans.extend(frame.spans.into_iter().map(|span| span.file));
                }
                Piece::PartEnd(end) => ends.push((end.archive, end.number)),
            }
        }
        let expected = [("pg_tblspc/16384/PG_15_202209061/5/1".to_owned(), 0), ("PG_15_202209061/5/1".to_owned(), 1)];
        assert_eq!(files, expected);
        assert_eq!(spans, [0, 1]);
        assert_eq!(ends, [(Archive::Tablespace(16384), 1), (Archive::Base, 1)]);
    }

    #[test]
    fn an_archive_that_is_cut_does_not_end() {
        let mut cutter = PartCutter::new(false);
        cutter.begin_archive(Archive::Base);
        cutter.feed(Bytes::from(file("base/1/1", &[1; 2000])).slice(..1500)).unwrap();
        assert!(cutter.end_archive().is_err());
        // Nor does an absurd length make it panic.
        let mut cutter = PartCutter::new(false);
        cutter.feed(Bytes::copy_from_slice(&header(b"x", b'0', u64::MAX, b""))).unwrap();
        assert!(cutter.end_archive().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]
        #[test]
        fn parts_are_the_stream_whatever_the_files(
            sizes in prop::collection::vec(
                prop_oneof![4 => 0..20_000usize, 1 => (0..3usize, 0..1030usize).prop_map(|(parts, more)| (parts * PART + more).saturating_sub(515)), 1 => LARGE - 600..LARGE + 600],
                0..6,
            ),
            piece_bytes in 20_000..600_000usize,
            with_trailer: bool,
        ) {
            check(&sizes, piece_bytes, with_trailer);
        }
    }
}
