//! What an interrupted verification had read: a file with a line for each object that was sound, so that the next one passes over it as
//! long as it is listed as it was then.
//!
//! ```text
//! seawall-verify 1 <system identifier> <repository, cluster>
//! <CRC-32C of the rest> <bytes> <time stored, microseconds> <what it was held against> <name>
//! ```
//!
//! A line that is not whole is the last one, of a process that was killed, and is cut off. Any other damage is an error: nothing is taken
//! for read that may not have been.

use crate::error::{Error, Kind, Result};
use crate::store::ObjectInfo;
use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Names have 700 bytes at most, and the repository's is part of the first line.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// Half of a hash: of lines that were written here, no two have the same.
type LineHash = [u8; 16];

/// The file, open and locked.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    file: Mutex<File>,
    /// Of the objects that were read before.
    done: HashSet<LineHash>,
}

impl State {
    /// Opens the file, or makes it, for the repository that is `subject`. Blocks.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another process has it; [`Kind::Refused`] if it is another repository's or no such file;
    /// [`Kind::Damaged`] if a line of it is.
    pub(super) fn open(path: &Path, system_identifier: u64, subject: &str) -> Result<State> {
        let local = |action: &'static str| move |error| Error::local(action, path, error);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(local("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::Busy, format!("{} is in use by another verification", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Error::local("lock", path, error)),
        }
        // The name may be anything; the line is one.
        let subject: String = subject.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        let header = format!("seawall-verify 1 {system_identifier} {subject}\n");
        let mut state = State { path: path.to_owned(), file: Mutex::new(file), done: HashSet::new() };
        let whole = state.read(header.as_bytes())?;
        let file = state.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.set_len(whole).map_err(local("cut"))?;
        if whole == 0 {
            file.write_all(header.as_bytes()).map_err(local("write"))?;
        }
        Ok(state)
    }

    /// Reads the lines; returns the bytes of those that are whole.
    fn read(&mut self, header: &[u8]) -> Result<u64> {
        let (path, done) = (&self.path, &mut self.done);
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        let local = |error| Error::local("read", path, error);
        file.seek(SeekFrom::Start(0)).map_err(local)?;
        let mut lines = BufReader::new(file);
        let mut whole = 0;
        loop {
            let mut line = Vec::new();
            let bytes = std::io::Read::take(&mut lines, LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(local)?;
            let is_cut = line.last() != Some(&b'\n');
            if bytes == 0 || is_cut && (bytes as u64) < LINE_BYTES_MAX && (whole > 0 || header.starts_with(&line)) {
                return Ok(whole);
            }
            if whole == 0 {
                if line != header {
                    let text = format!("{} is of no verification of this repository", path.display());
                    return Err(
                        Error::new(Kind::Refused, text).hint("Nothing was touched. Name another file with --resume.")
                    );
                }
            } else {
                let hash = parse(&line).ok_or_else(|| {
                    let text = format!("{} is damaged behind byte {whole}", path.display());
                    Error::new(Kind::Damaged, text).hint("Remove it, and everything is read once more.")
                })?;
                done.insert(hash);
            }
            whole += bytes as u64;
        }
    }

    /// True if the object was read before, held against the same, and is listed as it was then.
    pub(super) fn is_done(&self, object: &ObjectInfo, against: &str) -> bool {
        self.done.contains(&hash(rest(object, against).as_bytes()))
    }

    /// Adds an object that was read and is sound. Blocks, as briefly as it takes to hand a line to the system.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&self, object: &ObjectInfo, against: &str) -> Result<()> {
        let rest = rest(object, against);
        let line = format!("{:08x} {rest}\n", crc32c::crc32c(rest.as_bytes()));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|error| Error::local("write", &self.path, error))
    }

    /// Everything was read: the next verification begins anew. Blocks.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub(super) fn finish(&self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| Error::local("remove", &self.path, error))
    }
}

fn rest(object: &ObjectInfo, against: &str) -> String {
    format!("{} {} {against} {}", object.bytes, object.modified.as_microsecond(), object.key)
}

fn hash(rest: &[u8]) -> LineHash {
    let mut half = LineHash::default();
    half.copy_from_slice(&blake3::hash(rest).as_bytes()[..16]);
    half
}

/// The hash of a line, if it is whole.
fn parse(line: &[u8]) -> Option<LineHash> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, rest) = (line.get(..8)?, line.get(8..)?.strip_prefix(b" ")?);
    (crc == format!("{:08x}", crc32c::crc32c(rest)).as_bytes()).then(|| hash(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn object(name: &str, bytes: u64) -> ObjectInfo {
        ObjectInfo { key: name.to_owned(), bytes, modified: Timestamp::UNIX_EPOCH }
    }

    fn open(path: &Path) -> Result<State> {
        State::open(path, 7, "memory: main")
    }

    #[test]
    fn what_was_added_is_known_as_long_as_it_is_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let state = open(&path).unwrap();
        state.add(&object("a", 1), "-").unwrap();
        assert!(!state.is_done(&object("a", 1), "-"), "this run has read it itself");
        assert_eq!(open(&path).unwrap_err().kind(), Kind::Busy);
        drop(state);
        let state = open(&path).unwrap();
        assert!(state.is_done(&object("a", 1), "-"));
        for (other, against) in [(object("a", 2), "-"), (object("b", 1), "-"), (object("a", 1), "abc")] {
            assert!(!state.is_done(&other, against), "{other:?} {against}");
        }
        let stored_again = ObjectInfo { modified: Timestamp::MAX, ..object("a", 1) };
        assert!(!state.is_done(&stored_again, "-"));
        state.finish().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn the_line_of_a_process_that_was_killed_is_cut_off_and_any_other_damage_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let state = open(&path).unwrap();
        state.add(&object("a", 1), "-").unwrap();
        state.add(&object("b", 1), "-").unwrap();
        drop(state);
        let whole = std::fs::read(&path).unwrap();
        // Killed at any byte
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let state = open(&path).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            state.add(&object("c", 1), "-").unwrap();
            drop(state);
            let state = open(&path).unwrap_or_else(|error| panic!("cut at {cut}, and again: {error}"));
            assert!(state.is_done(&object("c", 1), "-") && !state.is_done(&object("b", 1), "-"), "cut at {cut}");
        }
        // One bit of any byte
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            let found = open(&path);
            let is_cut = at == whole.len() - 1;
            match found {
                Ok(state) => assert!(is_cut && !state.is_done(&object("b", 1), "-"), "byte {at} was not missed"),
                Err(error) => {
                    assert!(matches!(error.kind(), Kind::Refused | Kind::Damaged), "{error}");
                    assert_eq!(std::fs::read(&path).unwrap(), flipped, "nothing was touched");
                }
            }
        }
    }

    #[test]
    fn a_file_of_something_else_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        for text in ["my notes\n", "no line feed", "seawall-verify 1 8 memory: main\n", &"x".repeat(10_000)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(open(&path).unwrap_err().kind(), Kind::Refused, "{text:.20}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
