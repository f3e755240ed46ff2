//! Reads PostgreSQL's tar dialect (`src/port/tar.c`) as it arrives, without copying contents. Pure.
//!
//! The dialect: `ustar` headers without the prefix field and without extensions, so that a name has at most 99 bytes;
//! numbers in octal, or in base 256 where they are too large; regular files, directories and symbolic links only; the
//! names of the last two may end in `/`; two blocks of zeros at the end, which servers before 15 leave out.
//!
//! Whatever comes in comes out again: the bytes of all events, joined, are the stream.

use super::file_path::{FilePath, FilePathError};
use bytes::{Buf, Bytes, BytesMut};

/// Everything in a tar stream is a multiple of this.
pub const BLOCK: usize = 512;

/// Zeros at the end of a complete stream: two blocks.
pub const TRAILER_BYTES: usize = 2 * BLOCK;

/// What a header announces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file: [`TarHeader::size_bytes`] bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this target, as it was written: PostgreSQL's are absolute.
    Symlink(Vec<u8>),
}

/// One header, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TarHeader {
    /// The name, relative to the archive's root and safe to join to a directory.
    pub path: FilePath,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of content that follow; 0 but for files.
    pub size_bytes: u64,
    /// Permissions, the lower twelve bits.
    pub mode: u32,
    /// When it was last modified, in seconds since 1970.
    pub mtime_seconds: u64,
    /// The header as it came: 512 bytes.
    pub block: Bytes,
}

/// The next thing in a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TarEvent {
    /// An entry begins.
    Header(TarHeader),
    /// The next bytes of the file that began last, at least one.
    Content(Bytes),
    /// Zeros that fill a file's last block, or that end the stream; at least one.
    Padding(Bytes),
}

/// The bytes are not what PostgreSQL writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is wrong: bytes were altered, or this is no header.
    #[error("the tar header at byte {0} does not have its checksum")]
    Checksum(u64),
    /// A header is whole but says something that PostgreSQL never says.
    #[error("the tar header at byte {position} {problem}")]
    Header {
        /// Where it is in what was read.
        position: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that must not be written anywhere.
    #[error("the tar header at byte {position} is refused")]
    Path {
        /// Where it is in what was read.
        position: u64,
        /// Why.
        #[source]
        source: FilePathError,
    },
    /// Something else than zeros stands where a file is filled up, or behind the end.
    #[error("the tar stream has data at byte {0} where only zeros can be")]
    Padding(u64),
    /// The stream ends too early.
    #[error("the tar stream ends at byte {0} in the middle of an entry")]
    Cut(u64),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Content {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    /// Behind a block of zeros: only zeros may follow.
    Trailer,
}

/// An incremental reader: feed it bytes, then take events until there is none.
#[derive(Debug)]
pub struct TarReader {
    state: State,
    input: Bytes,
    /// The beginning of a header whose rest has not arrived.
    partial: BytesMut,
    position: u64,
    trailer_bytes: u64,
}

impl Default for TarReader {
    fn default() -> TarReader {
        TarReader::new()
    }
}

impl TarReader {
    /// At the beginning of a stream, or of a stretch of one that begins with a header.
    pub fn new() -> TarReader {
        TarReader::in_state(State::Header)
    }

    /// At the beginning of a stretch that begins at `file_offset` in a file of `file_bytes`.
    pub fn inside_file(file_offset: u64, file_bytes: u64) -> TarReader {
        let left = file_bytes.saturating_sub(file_offset);
        TarReader::in_state(State::Content { left, padding: padding_of(file_bytes) })
    }

    fn in_state(state: State) -> TarReader {
        TarReader { state, input: Bytes::new(), partial: BytesMut::new(), position: 0, trailer_bytes: 0 }
    }

    /// Gives it the next bytes. Take all events first: what is still there is joined, at the price of a copy.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.input.is_empty() {
            self.input = bytes;
        } else {
            let mut joined = BytesMut::with_capacity(self.input.len() + bytes.len());
            joined.extend_from_slice(&self.input);
            joined.extend_from_slice(&bytes);
            self.input = joined.freeze();
        }
    }

    /// The next event; `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are not PostgreSQL's dialect. The reader is of no use afterwards.
    pub fn next_event(&mut self) -> Result<Option<TarEvent>, TarError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(block) = self.take_block() else {
                        return Ok(None);
                    };
                    if block.iter().all(|&byte| byte == 0) {
                        self.state = State::Trailer;
                        self.trailer_bytes = BLOCK as u64;
                        return Ok(Some(TarEvent::Padding(block)));
                    }
                    let header = read_header(self.position - BLOCK as u64, block)?;
                    self.state = State::Content { left: header.size_bytes, padding: padding_of(header.size_bytes) };
                    return Ok(Some(TarEvent::Header(header)));
                }
                State::Content { left: 0, padding } => self.state = State::Padding { left: padding },
                State::Padding { left: 0 } => self.state = State::Header,
                _ if self.input.is_empty() => return Ok(None),
                State::Content { left, padding } => {
                    let content = self.take(left);
                    self.state = State::Content { left: left - content.len() as u64, padding };
                    return Ok(Some(TarEvent::Content(content)));
                }
                State::Padding { left } => {
                    let zeros = self.take_zeros(left)?;
                    self.state = State::Padding { left: left - zeros.len() as u64 };
                    return Ok(Some(TarEvent::Padding(zeros)));
                }
                State::Trailer => {
                    let zeros = self.take_zeros(u64::MAX)?;
                    self.trailer_bytes += zeros.len() as u64;
                    return Ok(Some(TarEvent::Padding(zeros)));
                }
            }
        }
    }

    /// Says that the stream ends here.
    ///
    /// # Errors
    /// [`TarError::Cut`] if that is in the middle of an entry.
    pub fn finish(&self) -> Result<(), TarError> {
        let whole = match self.state {
            State::Header => self.partial.is_empty(),
            State::Content { left, padding } => left == 0 && padding == 0,
            State::Padding { left } => left == 0,
            State::Trailer => true,
        };
        if whole && self.input.is_empty() { Ok(()) } else { Err(TarError::Cut(self.position)) }
    }

    /// Bytes of all events so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that the file that began last still lacks: what a stretch that was cut inside a file leaves to the next.
    pub fn file_bytes_left(&self) -> u64 {
        match self.state {
            State::Content { left, .. } => left,
            _ => 0,
        }
    }

    /// Zeros to add, at the end, to the two blocks that other programs expect there: servers before 15 send none.
    pub fn missing_trailer_bytes(&self) -> usize {
        TRAILER_BYTES.saturating_sub(self.trailer_bytes as usize)
    }

    fn take(&mut self, limit: u64) -> Bytes {
        let count = limit.min(self.input.len() as u64) as usize;
        self.position += count as u64;
        self.input.split_to(count)
    }

    fn take_zeros(&mut self, limit: u64) -> Result<Bytes, TarError> {
        let start = self.position;
        let zeros = self.take(limit);
        match zeros.iter().position(|&byte| byte != 0) {
            None => Ok(zeros),
            Some(offset) => Err(TarError::Padding(start + offset as u64)),
        }
    }

    /// A whole block, copied only if it arrived in pieces.
    fn take_block(&mut self) -> Option<Bytes> {
        if self.partial.is_empty() && self.input.len() >= BLOCK {
            return Some(self.take(BLOCK as u64));
        }
        let wanted = (BLOCK - self.partial.len()).min(self.input.len());
        self.partial.extend_from_slice(&self.input[..wanted]);
        self.input.advance(wanted);
        if self.partial.len() < BLOCK {
            return None;
        }
        self.position += BLOCK as u64;
        Some(self.partial.split().freeze())
    }
}

/// Zeros that fill the last block of a file of `bytes`.
fn padding_of(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

fn read_header(position: u64, block: Bytes) -> Result<TarHeader, TarError> {
    let bad = |problem| TarError::Header { position, problem };
    let number = |field: Field, problem| field.number(&block).ok_or_else(|| bad(problem));
    // The checksum counts its own field as spaces.
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let own: u64 = CHECKSUM.bytes(&block).iter().map(|&byte| u64::from(byte)).sum();
    if CHECKSUM.number(&block) != Some(sum - own + CHECKSUM.1 as u64 * u64::from(b' ')) {
        return Err(TarError::Checksum(position));
    }
    if MAGIC.bytes(&block) != b"ustar\x0000" {
        return Err(bad("is not of the ustar format"));
    }
    if PREFIX.bytes(&block).first() != Some(&0) {
        return Err(bad("has a name in two pieces, which PostgreSQL never writes"));
    }
    let size_bytes = number(SIZE, "has an unreadable size")?;
    let kind = match block[TYPE] {
        b'0' | 0 => EntryKind::File,
        b'5' => EntryKind::Directory,
        b'2' => EntryKind::Symlink(LINK.text(&block).to_vec()),
        _ => return Err(bad("is neither a file nor a directory nor a symbolic link")),
    };
    if kind != EntryKind::File && size_bytes > 0 {
        return Err(bad("gives contents to something that is no file"));
    }
    let path = FilePath::parse(NAME.text(&block)).map_err(|source| TarError::Path { position, source })?;
    Ok(TarHeader {
        path,
        kind,
        size_bytes,
        mode: (number(MODE, "has an unreadable mode")? & 0o7777) as u32,
        mtime_seconds: number(MTIME, "has an unreadable time")?,
        block,
    })
}

/// Offset and length of a header's field.
#[derive(Clone, Copy)]
struct Field(usize, usize);

const NAME: Field = Field(0, 100);
const MODE: Field = Field(100, 8);
const UID: Field = Field(108, 8);
const GID: Field = Field(116, 8);
const SIZE: Field = Field(124, 12);
const MTIME: Field = Field(136, 12);
const CHECKSUM: Field = Field(148, 8);
const TYPE: usize = 156;
const LINK: Field = Field(157, 100);
/// Magic and version together.
const MAGIC: Field = Field(257, 8);
const USER: Field = Field(265, 32);
const GROUP: Field = Field(297, 32);
const PREFIX: Field = Field(345, 155);

impl Field {
    fn bytes(self, block: &[u8]) -> &[u8] {
        &block[self.0..self.0 + self.1]
    }

    /// Up to the first zero byte.
    fn text(self, block: &[u8]) -> &[u8] {
        let bytes = self.bytes(block);
        bytes.split(|&byte| byte == 0).next().unwrap_or(bytes)
    }

    /// Octal digits up to a space or zero, or after a byte 0x80 the number itself, high byte first.
    fn number(self, block: &[u8]) -> Option<u64> {
        let bytes = self.bytes(block);
        if bytes[0] == 0x80 {
            let (high, low) = bytes[1..].split_at((bytes.len() - 1).saturating_sub(8));
            let fits = high.iter().all(|&byte| byte == 0);
            return fits.then(|| low.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
        }
        let digits = bytes.split(|&byte| byte == b' ' || byte == 0).next()?;
        let octal = !digits.is_empty() && digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
        // At most twelve digits: 36 bits.
        octal.then(|| digits.iter().fold(0, |number, &digit| number << 3 | u64::from(digit - b'0')))
    }
}

/// An entry to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewEntry<'a> {
    /// Its name, without a `/` at the end.
    pub(crate) name: &'a [u8],
    /// A directory, or else a file of [`NewEntry::size_bytes`].
    pub(crate) is_directory: bool,
    /// 0 for a directory.
    pub(crate) size_bytes: u64,
    /// Permissions, the lower twelve bits.
    pub(crate) mode: u32,
    /// Of the owner and the owner's group.
    pub(crate) ids: (u32, u32),
    /// When it was last modified, in seconds since 1970.
    pub(crate) mtime_seconds: u64,
}

impl NewEntry<'_> {
    /// Its header, as PostgreSQL writes it; `None` if the name is longer than the format can hold.
    pub(crate) fn header(&self) -> Option<[u8; BLOCK]> {
        let name_bytes = self.name.len() + usize::from(self.is_directory);
        if name_bytes >= NAME.1 {
            return None;
        }
        let mut block = [0; BLOCK];
        put(&mut block, NAME, self.name);
        if self.is_directory {
            block[name_bytes - 1] = b'/';
        }
        put_number(&mut block, MODE, u64::from(self.mode & 0o7777));
        put_number(&mut block, UID, u64::from(self.ids.0));
        put_number(&mut block, GID, u64::from(self.ids.1));
        put_number(&mut block, SIZE, self.size_bytes);
        put_number(&mut block, MTIME, self.mtime_seconds);
        block[TYPE] = if self.is_directory { b'5' } else { b'0' };
        put(&mut block, MAGIC, b"ustar\x0000");
        // Whoever reads this goes by the numbers.
        put(&mut block, USER, b"postgres");
        put(&mut block, GROUP, b"postgres");
        seal(&mut block);
        Some(block)
    }
}

fn put(block: &mut [u8; BLOCK], field: Field, bytes: &[u8]) {
    block[field.0..field.0 + bytes.len()].copy_from_slice(bytes);
}

fn put_number(block: &mut [u8; BLOCK], field: Field, number: u64) {
    let digits = field.1 - 1;
    if number < 1 << (3 * digits.min(21)) {
        put(block, field, format!("{number:0digits$o} ").as_bytes());
    } else {
        // At least eight bytes, of which the first is the mark: no number of ours needs it.
        put(block, Field(field.0 + field.1 - 8, 8), &number.to_be_bytes());
        block[field.0] = 0x80;
    }
}

/// Puts the right checksum into a header.
fn seal(block: &mut [u8; BLOCK]) {
    put(block, CHECKSUM, b"        ");
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    put(block, CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
}

/// Headers for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::{BLOCK, LINK, MAGIC, MODE, MTIME, NAME, SIZE, TYPE, put, put_number, seal};

    /// A header; a link has a target.
    pub(crate) fn header(path: &[u8], kind: u8, size_bytes: u64, target: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put(&mut block, NAME, path);
        put_number(&mut block, MODE, 0o600);
        put_number(&mut block, SIZE, size_bytes);
        put_number(&mut block, MTIME, 1_700_000_000);
        block[TYPE] = kind;
        put(&mut block, LINK, target);
        put(&mut block, MAGIC, b"ustar\x0000");
        seal(&mut block);
        block
    }

    /// A file with its header and padding.
    pub(crate) fn file(path: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(path.as_bytes(), b'0', content.len() as u64, b"").to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{file, header};
    use super::*;
    use proptest::prelude::*;

    /// Every event for `stream` given in pieces that end at `cuts`, contents and paddings joined.
    fn events(stream: &[u8], cuts: &[usize]) -> Result<(Vec<TarEvent>, TarReader), TarError> {
        let mut reader = TarReader::new();
        let mut joined: Vec<TarEvent> = Vec::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let mut start = 0;
        for cut in cuts {
            reader.feed(Bytes::copy_from_slice(&stream[start..cut]));
            start = cut;
            while let Some(event) = reader.next_event()? {
                let more = |one: &Bytes, other: &Bytes| Bytes::from([one.as_ref(), other.as_ref()].concat());
                let merged = match (joined.last(), &event) {
                    (Some(TarEvent::Content(one)), TarEvent::Content(other)) => TarEvent::Content(more(one, other)),
                    (Some(TarEvent::Padding(one)), TarEvent::Padding(other)) => TarEvent::Padding(more(one, other)),
                    _ => {
                        joined.push(event);
                        continue;
                    }
                };
                joined.pop();
                joined.push(merged);
            }
        }
        Ok((joined, reader))
    }

    fn bytes_of(events: &[TarEvent]) -> Vec<u8> {
        let each = events.iter().map(|event| match event {
            TarEvent::Header(header) => &header.block,
            TarEvent::Content(bytes) | TarEvent::Padding(bytes) => bytes,
        });
        each.flat_map(|bytes| bytes.to_vec()).collect()
    }

    fn sample() -> Vec<u8> {
        let mut stream = file("backup_label", b"START WAL LOCATION: 0/2000028");
        stream.extend(header(b"pg_tblspc/16384/", b'2', 0, b"/srv/fast"));
        stream.extend(header(b"./pg_wal/archive_status/", b'5', 0, b""));
        stream.extend(file("empty", b""));
        stream.extend(file("base/1/whole", &[7; 1024]));
        stream.extend(file("global/pg_control", &[9; 700]));
        stream
    }

    #[test]
    fn entries_come_out_as_they_were_written() {
        let (events, reader) = events(&sample(), &[]).unwrap();
        let headers: Vec<(String, EntryKind, u64)> = events
            .iter()
            .filter_map(|event| match event {
                TarEvent::Header(header) => {
                    assert_eq!((header.mode, header.mtime_seconds), (0o600, 1_700_000_000));
                    Some((header.path.to_string(), header.kind.clone(), header.size_bytes))
                }
                _ => None,
            })
            .collect();
        let expected = [
            ("backup_label", EntryKind::File, 29),
            ("pg_tblspc/16384", EntryKind::Symlink(b"/srv/fast".to_vec()), 0),
            ("pg_wal/archive_status", EntryKind::Directory, 0),
            ("empty", EntryKind::File, 0),
            ("base/1/whole", EntryKind::File, 1024),
            ("global/pg_control", EntryKind::File, 700),
        ];
        assert_eq!(headers, expected.map(|(path, kind, bytes)| (path.to_owned(), kind, bytes)));
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(reader.missing_trailer_bytes(), 1024, "a server before 15 sends no zeros at the end");
    }

    #[test]
    fn a_header_that_is_written_reads_back() {
        let name = [b'x'; 98];
        for (is_directory, size_bytes, id) in [(true, 0, 26), (false, 0, 0), (false, 9 << 30, u32::MAX), (false, 7, 1)]
        {
            let ids = (id, id);
            let entry =
                NewEntry { name: &name, is_directory, size_bytes, mode: 0o100_640, ids, mtime_seconds: 1_700_000_000 };
            let block = entry.header().unwrap();
            let header = read_header(0, Bytes::copy_from_slice(&block)).unwrap();
            let kind = if is_directory { EntryKind::Directory } else { EntryKind::File };
            assert_eq!((header.path.as_bytes(), header.kind, header.size_bytes), (&name[..], kind, size_bytes));
            assert_eq!((header.mode, header.mtime_seconds), (0o640, 1_700_000_000));
            assert_eq!((UID.number(&block), GID.number(&block)), (Some(id.into()), Some(id.into())));
            assert_eq!(block[98], if is_directory { b'/' } else { 0 });
            // and one more byte fits into a file's name alone.
            let longer = NewEntry { name: &[b'x'; 99], ..entry };
            assert_eq!(longer.header().is_none(), is_directory);
            assert!(NewEntry { name: &[b'x'; 100], ..entry }.header().is_none());
        }
    }

    #[test]
    fn zeros_at_the_end_are_the_end() {
        let mut stream = sample();
        stream.extend([0; 512]);
        assert_eq!(events(&stream, &[]).unwrap().1.missing_trailer_bytes(), 512);
        stream.extend([0; 512]);
        let (_, reader) = events(&stream, &[]).unwrap();
        assert_eq!((reader.missing_trailer_bytes(), reader.finish()), (0, Ok(())));
        // When anything follows, then it was not the end.
        stream.extend(file("more", b"x"));
        assert_eq!(events(&stream, &[]).unwrap_err(), TarError::Padding(stream.len() as u64 - 1024));
    }

    #[test]
    fn numbers_beyond_octal_are_read_in_base_256() {
        // Given a file of 9 GiB, whose size does not fit eleven octal digits
        let bytes = 9 << 30;
        let mut reader = TarReader::new();
        reader.feed(Bytes::copy_from_slice(&header(b"base/1/2", b'0', bytes, b"")));
        let Ok(Some(TarEvent::Header(read))) = reader.next_event() else { panic!("no header") };
        assert_eq!(read.size_bytes, bytes);
        assert_eq!(reader.file_bytes_left(), bytes);
        // When the number does not fit 64 bits, then it is refused
        let mut block = header(b"base/1/2", b'0', u64::MAX, b"");
        block[SIZE.0 + 1] = 1;
        seal(&mut block);
        let refused = read_header(0, Bytes::copy_from_slice(&block)).unwrap_err();
        assert_eq!(refused, TarError::Header { position: 0, problem: "has an unreadable size" });
    }

    #[test]
    fn what_postgresql_never_writes_is_refused() {
        let altered = |alter: &dyn Fn(&mut [u8; BLOCK])| {
            let mut block = header(b"base/1/2", b'0', 0, b"");
            alter(&mut block);
            seal(&mut block);
            read_header(0, Bytes::copy_from_slice(&block))
        };
        assert!(altered(&|_| {}).is_ok());
        assert!(altered(&|block| block[0] = b'/').is_err(), "an absolute path");
        assert!(altered(&|block| block[..8].copy_from_slice(b"../../xx")).is_err(), "a path that leads out");
        assert!(altered(&|block| block[..8].fill(0)).is_err(), "no path");
        assert!(altered(&|block| block[TYPE] = b'1').is_err(), "a hard link");
        assert!(altered(&|block| block[TYPE] = b'x').is_err(), "a pax header");
        assert!(altered(&|block| block[MAGIC.0] = b'U').is_err(), "another format");
        assert!(altered(&|block| block[PREFIX.0] = b'a').is_err(), "a long name");
        assert!(altered(&|block| block[SIZE.0] = b'9').is_err(), "a size that is not octal");
        assert!(altered(&|block| block[SIZE.0] = 0xFF).is_err(), "a negative size");
        assert!(altered(&|block| block[TYPE] = b'5').is_ok(), "an empty directory");
        let full = |block: &mut [u8; BLOCK]| {
            block[TYPE] = b'5';
            block[SIZE.0 + 10] = b'1';
        };
        assert!(altered(&full).is_err(), "a directory with contents");
        let mut block = header(b"base/1/2", b'0', 0, b"");
        block[1] ^= 1;
        assert_eq!(read_header(1024, Bytes::copy_from_slice(&block)), Err(TarError::Checksum(1024)));
    }

    proptest! {
        #[test]
        fn however_a_stream_arrives_it_is_read_alike_and_completely(
            sizes in prop::collection::vec(0usize..1500, 0..6),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
            trailer in any::<bool>(),
        ) {
            let mut stream = sample();
            for (number, size) in sizes.iter().enumerate() {
                stream.extend(file(&format!("base/1/{number}"), &vec![number as u8 + 1; *size]));
            }
            stream.resize(stream.len() + if trailer { TRAILER_BYTES } else { 0 }, 0);
            let (whole, _) = events(&stream, &[]).unwrap();
            let (pieces, reader) = events(&stream, &cuts).unwrap();
            prop_assert_eq!(&pieces, &whole);
            prop_assert_eq!(bytes_of(&pieces), &stream[..]);
            prop_assert_eq!((reader.position(), reader.finish()), (stream.len() as u64, Ok(())));
        }

        #[test]
        fn a_stream_cut_in_an_entry_is_found_out(cut in 1usize..512, entry in 0usize..4) {
            let stream = sample();
            let borders = [512 + 512, 512, 512, 512].iter().scan(0, |at, bytes| { *at += bytes; Some(*at) });
            let border = borders.take(entry).last().unwrap_or(0);
            let (_, reader) = events(&stream[..border + cut], &[]).unwrap();
            prop_assert!(reader.finish().is_err());
        }

        #[test]
        fn a_stretch_that_begins_inside_a_file_is_read_on(size in 1usize..3000, start in 0usize..3000) {
            prop_assume!(start < size);
            let content: Vec<u8> = (0..size).map(|byte| byte as u8 | 1).collect();
            let mut stream = file("base/1/2", &content);
            stream.extend(file("base/1/3", b"next"));
            let mut reader = TarReader::inside_file(start as u64, size as u64);
            reader.feed(Bytes::copy_from_slice(&stream[BLOCK + start..]));
            prop_assert_eq!(reader.next_event(), Ok(Some(TarEvent::Content(Bytes::copy_from_slice(&content[start..])))));
            let mut last = None;
            while let Some(event) = reader.next_event().unwrap() {
                last = Some(event);
                if let Some(TarEvent::Header(header)) = &last {
                    prop_assert_eq!(header.path.to_string(), "base/1/3");
                }
            }
            prop_assert!(matches!(last, Some(TarEvent::Padding(_))));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn no_input_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(any::<usize>(), 0..4)) {
            let _ = events(&bytes, &cuts);
        }

        #[test]
        fn no_header_makes_it_panic(
            flips in prop::collection::vec((0usize..BLOCK, any::<u8>()), 0..8),
            size in any::<u64>(),
        ) {
            let mut block = header(b"base/1/2", b'0', size, b"");
            for (at, byte) in flips {
                block[at] = byte;
            }
            seal(&mut block);
            let mut stream = block.to_vec();
            stream.extend([0; 600]);
            let _ = events(&stream, &[]);
        }
    }
}
