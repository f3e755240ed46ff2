//! Reads PostgreSQL's `backup_manifest` as it arrives, with bounded memory. Pure.
//!
//! The format (`src/backend/backup/backup_manifest.c`, `src/common/parse_manifest.c`) is JSON in fixed lines, which
//! its last line relies on: the SHA-256 there is of every byte before that line.
//!
//! ```text
//! { "PostgreSQL-Backup-Manifest-Version": 1,
//! "System-Identifier": 7300000000000000000,          version 2 only, from PostgreSQL 17 on
//! "Files": [
//! { "Path": "base/1/2", "Size": 8192, "Last-Modified": "…", "Checksum-Algorithm": "CRC32C", "Checksum": "93513075" },
//! { "Encoded-Path": "636166e9", "Size": 0, … }        names that are not UTF-8
//! ],
//! "WAL-Ranges": [
//! { "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }
//! ],
//! "Manifest-Checksum": "…"}
//! ```

use super::documents::WalNeed;
use super::file_path::{FilePath, FilePathRef, from_hex};
use super::paths::{PathOrder, Paths, make_room};
use crate::wal::{Lsn, TimelineId};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// The longest line that is read: a path of 1,024 bytes takes a tenth of it, however it is written.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What the manifest says of one file's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileCheck {
    /// Its length.
    pub size_bytes: u64,
    /// CRC-32C (Castagnoli) of its contents, as a number. The manifest has its four bytes in the order of the
    /// server's memory: on every server in use the low byte first.
    pub crc32c: u32,
}

/// What a manifest says beside its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestEnd {
    /// 1, or 2 from PostgreSQL 17 on.
    pub version: u32,
    /// The cluster's system identifier; version 1 does not say it.
    pub system_identifier: Option<u64>,
    /// The WAL that the backup needs to be consistent; the newest timeline first.
    pub wal_ranges: Vec<WalNeed>,
    /// SHA-256 of the whole manifest, in hexadecimal: not the one in its last line, which cannot include itself.
    pub sha256: String,
}

/// The bytes are not a manifest, or not all of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ManifestError {
    /// A line is not what PostgreSQL writes there.
    #[error("line {line} of the backup manifest {problem}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        problem: Cow<'static, str>,
    },
    /// The SHA-256 in its last line is not that of the lines before it.
    #[error("the backup manifest does not have the SHA-256 that its last line says")]
    Checksum,
    /// It lists a file twice.
    #[error("the backup manifest lists {0} again")]
    Twice(FilePath),
    /// It ends too early.
    #[error("the backup manifest ends after line {0}, before its checksum")]
    Cut(u64),
}

/// A whole manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Every file of the backup but those in `pg_wal` and the manifest itself.
    pub files: ManifestFiles,
    /// The rest.
    pub end: ManifestEnd,
}

impl Manifest {
    /// Reads a whole manifest.
    ///
    /// # Errors
    /// If it is cut, altered, or lists a file twice.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let mut intake = ManifestIntake::default();
        bytes.chunks(LINE_BYTES_MAX).try_for_each(|piece| intake.feed(piece))?;
        intake.finish()
    }
}

/// The files of a manifest: some 45 bytes of memory for each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ManifestFiles {
    paths: Paths,
    checks: Vec<FileCheck>,
    order: PathOrder,
}

impl ManifestFiles {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// The place of a file in the list.
    pub fn find<'a>(&self, path: impl Into<FilePathRef<'a>>) -> Option<usize> {
        self.order.find(&self.paths, path.into())
    }

    /// What it says of the file in this place.
    pub fn at(&self, place: usize) -> Option<(FilePathRef<'_>, FileCheck)> {
        Some((self.paths.get(place)?, *self.checks.get(place)?))
    }

    /// What it says of a file.
    pub fn get<'a>(&self, path: impl Into<FilePathRef<'a>>) -> Option<FileCheck> {
        self.checks.get(self.find(path)?).copied()
    }

    /// All of them, each behind its place, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (usize, FilePathRef<'_>, FileCheck)> {
        self.order.places().filter_map(|place| self.at(place).map(|(path, check)| (place, path, check)))
    }
}

/// Makes a [`Manifest`] of bytes as they come.
#[derive(Debug, Default)]
pub struct ManifestIntake {
    reader: ManifestReader,
    paths: Paths,
    checks: Vec<FileCheck>,
}

impl ManifestIntake {
    /// Takes in the next bytes.
    ///
    /// # Errors
    /// If they are not a manifest's.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        self.reader.feed(bytes);
        while let Some((path, check)) = self.reader.next_file()? {
            self.paths.push(path.view());
            make_room(&mut self.checks, 1);
            self.checks.push(check);
        }
        Ok(())
    }

    /// All of it has come.
    ///
    /// # Errors
    /// If that is not so, or a file is listed twice.
    pub fn finish(self) -> Result<Manifest, ManifestError> {
        let ManifestIntake { reader, paths, checks } = self;
        let end = reader.finish()?;
        let twice =
            |place| paths.get(place).map_or(ManifestError::Checksum, |path| ManifestError::Twice(path.to_path()));
        let order = PathOrder::of(&paths).map_err(twice)?;
        Ok(Manifest { files: ManifestFiles { paths, checks, order }, end })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Version,
    SystemIdentifier,
    Files,
    File,
    WalRanges,
    WalRange,
    Checksum,
    Nothing,
}

/// An incremental reader: feed it bytes, then take files until there is none; at the end, [`ManifestReader::finish`].
#[derive(Debug)]
pub struct ManifestReader {
    expect: Expect,
    /// Bytes that are not read yet: at most one line between two feeds.
    input: Vec<u8>,
    consumed: usize,
    line: u64,
    sha256: Sha256,
    end: ManifestEnd,
}

impl Default for ManifestReader {
    fn default() -> ManifestReader {
        ManifestReader::new()
    }
}

impl ManifestReader {
    /// At the beginning of a manifest.
    pub fn new() -> ManifestReader {
        let end = ManifestEnd { version: 0, system_identifier: None, wal_ranges: Vec::new(), sha256: String::new() };
        let expect = Expect::Version;
        ManifestReader { expect, input: Vec::new(), consumed: 0, line: 0, sha256: Sha256::new(), end }
    }

    /// Gives it the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next file; `None` if more bytes are needed, or the list is over.
    ///
    /// # Errors
    /// If the bytes are not a manifest. The reader is of no use afterwards.
    pub fn next_file(&mut self) -> Result<Option<(FilePath, FileCheck)>, ManifestError> {
        loop {
            let rest = &self.input[self.consumed..];
            let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
                if rest.len() > LINE_BYTES_MAX {
                    self.line += 1;
                    return Err(self.bad("has no end"));
                }
                return Ok(None);
            };
            let start = self.consumed;
            self.consumed += length + 1;
            self.line += 1;
            if let Some(file) = self.read_line(start, start + length)? {
                return Ok(Some(file));
            }
        }
    }

    /// Says that the manifest ends here.
    ///
    /// # Errors
    /// [`ManifestError::Cut`] if that is too early.
    pub fn finish(mut self) -> Result<ManifestEnd, ManifestError> {
        if self.expect != Expect::Nothing || self.consumed < self.input.len() {
            return Err(ManifestError::Cut(self.line));
        }
        self.end.sha256 = super::hex(&self.sha256.finalize());
        Ok(self.end)
    }

    fn bad(&self, problem: impl Into<Cow<'static, str>>) -> ManifestError {
        ManifestError::Line { line: self.line, problem: problem.into() }
    }

    /// Reads the line `[start, end)` of the input, behind which is its line feed.
    fn read_line(&mut self, start: usize, end: usize) -> Result<Option<(FilePath, FileCheck)>, ManifestError> {
        let text = std::str::from_utf8(&self.input[start..end]).map_err(|_| self.bad("is not UTF-8"))?;
        let mut found = None;
        let next = match (self.expect, text) {
            (Expect::Version, _) => {
                let number = text.strip_prefix("{ \"PostgreSQL-Backup-Manifest-Version\": ");
                let number = number.and_then(|rest| rest.strip_suffix(',')?.parse().ok());
                self.end.version = number.ok_or_else(|| self.bad("is not the beginning of a backup manifest"))?;
                match self.end.version {
                    1 => Expect::Files,
                    2 => Expect::SystemIdentifier,
                    version => return Err(self.bad(format!("is of version {version}, which is not known here"))),
                }
            }
            (Expect::SystemIdentifier, _) => {
                let number = text.strip_prefix("\"System-Identifier\": ");
                let number = number.and_then(|rest| rest.strip_suffix(',')?.parse().ok());
                self.end.system_identifier = Some(number.ok_or_else(|| self.bad("is not the system identifier"))?);
                Expect::Files
            }
            (Expect::Files, "\"Files\": [") => Expect::File,
            (Expect::File, "],") => Expect::WalRanges,
            (Expect::File, _) => {
                found = Some(read_file(text).map_err(|problem| self.bad(problem))?);
                Expect::File
            }
            (Expect::WalRanges, "\"WAL-Ranges\": [") => Expect::WalRange,
            (Expect::WalRange, "],") => Expect::Checksum,
            (Expect::WalRange, _) => {
                let range = read_range(text).map_err(|problem| self.bad(problem))?;
                self.end.wal_ranges.push(range);
                Expect::WalRange
            }
            (Expect::Checksum, _) => {
                let says = text.strip_prefix("\"Manifest-Checksum\": \"").and_then(|rest| rest.strip_suffix("\"}"));
                let says = says.and_then(from_hex).ok_or_else(|| self.bad("is not the manifest's checksum"))?;
                if says[..] != self.sha256.clone().finalize()[..] {
                    return Err(ManifestError::Checksum);
                }
                Expect::Nothing
            }
            (Expect::Files | Expect::WalRanges | Expect::Nothing, _) => return Err(self.bad("is out of place")),
        };
        self.expect = next;
        self.sha256.update(&self.input[start..=end]);
        Ok(found)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine<'a> {
    #[serde(borrow, rename = "Path")]
    path: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "Encoded-Path")]
    encoded_path: Option<Cow<'a, str>>,
    #[serde(rename = "Size")]
    size_bytes: u64,
    #[serde(borrow, rename = "Last-Modified")]
    _last_modified: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "Checksum-Algorithm")]
    algorithm: Cow<'a, str>,
    #[serde(borrow, rename = "Checksum")]
    checksum: Cow<'a, str>,
}

fn read_file(text: &str) -> Result<(FilePath, FileCheck), Cow<'static, str>> {
    let line: FileLine = read_json(text)?;
    let path = match (line.path, line.encoded_path) {
        (Some(path), None) => FilePath::parse(path.as_bytes()),
        (None, Some(hex)) => FilePath::parse(&from_hex(&hex).ok_or("has a path that is not hexadecimal")?),
        _ => return Err("does not have one path".into()),
    };
    let path = path.map_err(|error| format!("is refused: {error}"))?;
    if line.algorithm != "CRC32C" {
        return Err(format!("has a checksum of the kind {}: only CRC32C is known here", line.algorithm).into());
    }
    let crc = from_hex(&line.checksum).and_then(|bytes| bytes.try_into().ok());
    let crc32c = u32::from_le_bytes(crc.ok_or("has a checksum that is not four bytes in hexadecimal")?);
    Ok((path, FileCheck { size_bytes: line.size_bytes, crc32c }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

fn read_range(text: &str) -> Result<WalNeed, Cow<'static, str>> {
    let RangeLine { timeline, start, end } = read_json(text)?;
    if start > end || timeline.0 == 0 {
        return Err("is not a range of WAL".into());
    }
    Ok(WalNeed { timeline, start, end })
}

/// One element of a list: an object, and a comma unless it is the last.
fn read_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Cow<'static, str>> {
    let object = text.strip_suffix(',').unwrap_or(text);
    serde_json::from_str(object).map_err(|error| format!("cannot be read: {error}").into())
}

/// Writes manifests as PostgreSQL does, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::{FileCheck, WalNeed};
    use crate::repository::hex;
    use sha2::{Digest, Sha256};
    use std::fmt::Write;

    /// A manifest of these files and ranges; version 2 if there is a system identifier.
    pub(crate) fn manifest(
        system_identifier: Option<u64>,
        files: &[(String, FileCheck)],
        ranges: &[WalNeed],
    ) -> String {
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": {},\n",
            if system_identifier.is_some() { 2 } else { 1 }
        );
        if let Some(number) = system_identifier {
            writeln!(text, "\"System-Identifier\": {number},").unwrap();
        }
        text.push_str("\"Files\": [");
        for (number, (path, check)) in files.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let crc = hex(&check.crc32c.to_le_bytes());
            write!(
                text,
                "{comma}\n{{ \"Path\": {}, \"Size\": {}, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", \
                 \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
                serde_json::to_string(path).unwrap(),
                check.size_bytes
            )
            .unwrap();
        }
        text.push_str("\n],\n\"WAL-Ranges\": [\n");
        for (number, range) in ranges.iter().enumerate() {
            let comma = if number == 0 { "" } else { ",\n" };
            write!(
                text,
                "{comma}{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            )
            .unwrap();
        }
        text.push_str("\n],\n");
        seal(text)
    }

    /// Puts the last line behind the others.
    pub(crate) fn seal(mut text: String) -> String {
        let sum = hex(&Sha256::digest(text.as_bytes()));
        writeln!(text, "\"Manifest-Checksum\": \"{sum}\"}}").unwrap();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{manifest, seal};
    use super::*;
    use proptest::prelude::*;

    fn need(timeline: u32, start: u64, end: u64) -> WalNeed {
        WalNeed { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
    }

    fn check(size_bytes: u64, crc32c: u32) -> FileCheck {
        FileCheck { size_bytes, crc32c }
    }

    /// As PostgreSQL 15 wrote it; paths added.
    fn sample() -> String {
        seal(
            concat!(
                "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n",
                "{ \"Path\": \"backup_label\", \"Size\": 225, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", ",
                "\"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"93513075\" },\n",
                "{ \"Encoded-Path\": \"636166e9\", \"Size\": 0, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", ",
                "\"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" },\n",
                "{ \"Path\": \"a\\\"b\\\\c\", \"Size\": 9000000000, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", ",
                "\"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01000000\" }\n",
                "],\n\"WAL-Ranges\": [\n",
                "{ \"Timeline\": 2, \"Start-LSN\": \"0/3000000\", \"End-LSN\": \"0/3000110\" },\n",
                "{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/3000000\" }\n",
                "],\n",
            )
            .to_owned(),
        )
    }

    #[test]
    fn files_and_ranges_are_read() {
        let manifest = Manifest::parse(sample().as_bytes()).unwrap();
        let get = |path: &[u8]| manifest.files.get(&FilePath::parse(path).unwrap());
        assert_eq!(manifest.files.len(), 3);
        assert_eq!(get(b"backup_label"), Some(check(225, 0x7530_5193)));
        assert_eq!(get(b"caf\xe9"), Some(check(0, 0)), "a name that is not UTF-8");
        assert_eq!(get(b"a\"b\\c"), Some(check(9_000_000_000, 1)), "a name with quotes");
        assert_eq!(manifest.end.wal_ranges, [need(2, 0x300_0000, 0x300_0110), need(1, 0x200_0028, 0x300_0000)]);
        assert_eq!((manifest.end.version, manifest.end.system_identifier), (1, None));
        assert_eq!(manifest.end.sha256, crate::repository::hex(&Sha256::digest(sample().as_bytes())));
    }

    #[test]
    fn the_crc_is_in_the_order_of_the_servers_memory() {
        // The check value of CRC-32C in the catalogue of its parameters: 0xE3069283 for "123456789".
        let text = manifest(None, &[("x".into(), check(9, crc32c::crc32c(b"123456789")))], &[]);
        assert!(text.contains("\"839206e3\""), "{text}");
    }

    #[test]
    fn version_2_says_whose_it_is() {
        let text = manifest(Some(7_300_000_000_000_000_001), &[], &[need(1, 1, 2)]);
        let end = Manifest::parse(text.as_bytes()).unwrap().end;
        assert_eq!((end.version, end.system_identifier), (2, Some(7_300_000_000_000_000_001)));
    }

    #[test]
    fn every_altered_byte_is_found_out() {
        let sample = sample();
        for at in 0..sample.len() {
            let mut altered = sample.clone().into_bytes();
            altered[at] ^= 1;
            assert!(Manifest::parse(&altered).is_err(), "byte {at} was altered and not noticed");
        }
    }

    #[test]
    fn every_cut_is_found_out() {
        let sample = sample();
        for length in 0..sample.len() {
            assert!(Manifest::parse(&sample.as_bytes()[..length]).is_err(), "cut at byte {length} and not noticed");
        }
        assert!(Manifest::parse(format!("{sample}more\n").as_bytes()).is_err());
    }

    #[test]
    fn what_postgresql_never_writes_is_refused() {
        let refused = |from: &str, to: &str| {
            let body = sample();
            let body = &body[..body.find("\"Manifest-Checksum\"").unwrap()];
            assert!(body.contains(from), "{from}");
            Manifest::parse(seal(body.replace(from, to)).as_bytes()).unwrap_err().to_string()
        };
        assert!(refused("Version\": 1", "Version\": 3").contains("version 3"));
        assert!(refused("\"backup_label\"", "\"../backup_label\"").contains("leads out"));
        assert!(refused("\"backup_label\"", "\"/etc/passwd\"").contains("absolute"));
        assert!(refused("CRC32C", "SHA256").contains("only CRC32C"));
        assert!(refused("93513075", "935130").contains("four bytes"));
        assert!(refused("636166e9", "6361g").contains("hexadecimal"));
        assert!(refused("\"Size\": 225", "\"Size\": -1").contains("line 3"));
        assert!(refused("\"Size\": 225", "\"Size\": 225, \"More\": 1").contains("unknown field"));
        assert!(refused("\"Encoded-Path\": \"636166e9\"", "\"Path\": \"backup_label\"").contains("again"));
        assert!(refused("\"End-LSN\": \"0/3000110\"", "\"End-LSN\": \"0/1\"").contains("range"));
        assert!(Manifest::parse(&vec![b'x'; 3 * LINE_BYTES_MAX]).unwrap_err().to_string().contains("no end"));
    }

    proptest! {
        #[test]
        fn however_a_manifest_arrives_it_is_read_alike(
            files in prop::collection::btree_map("[a-z0-9_/é\"]{1,20}x", (any::<u64>(), any::<u32>()), 0..20),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let files: Vec<(String, FileCheck)> = files
                .into_iter()
                .filter(|(path, _)| !path.starts_with('/') && !path.contains("//"))
                .map(|(path, (size, crc))| (path, check(size, crc)))
                .collect();
            let ranges = [need(1, 0x28, 0x100)];
            let text = manifest(Some(7), &files, &ranges);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % text.len()).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut reader = ManifestReader::new();
            let mut found = Vec::new();
            let mut start = 0;
            for cut in cuts {
                reader.feed(&text.as_bytes()[start..cut]);
                start = cut;
                while let Some((path, check)) = reader.next_file().unwrap() {
                    found.push((path.to_string(), check));
                }
            }
            prop_assert_eq!(found, files);
            prop_assert_eq!(&reader.finish().unwrap().wal_ranges[..], &ranges[..]);
        }

        #[test]
        fn no_input_makes_it_panic(lines in prop::collection::vec("[ -~]{0,60}", 0..6), bytes: Vec<u8>) {
            let _ = Manifest::parse(lines.join("\n").as_bytes());
            let _ = Manifest::parse(&bytes);
            let start = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n";
            let _ = Manifest::parse(format!("{start}{}\n", lines.join("\n")).as_bytes());
        }
    }
}
