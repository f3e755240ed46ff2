//! A clock that a test steps while a server lives by it (libfaketime). Monotonic clocks go on as they are.

use crate::support::postgres::scratch_directory;
use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use std::sync::Mutex;
use tempfile::TempDir;

/// What this clock shows, others may show; it is always behind the true time, so that nothing lies in the future.
pub(crate) struct SteppedClock {
    directory: TempDir,
    /// How far it is behind.
    behind: Mutex<SignedDuration>,
    /// Who lives by it: the library leaves memory behind for each that was killed.
    processes: Mutex<Vec<u32>>,
}

impl SteppedClock {
    /// A clock that is so far behind.
    pub(crate) fn new(behind: SignedDuration) -> SteppedClock {
        let clock =
            SteppedClock { directory: scratch_directory(), behind: Mutex::default(), processes: Mutex::default() };
        clock.step_to(behind);
        clock
    }

    /// What a process must find in its environment to live by it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        assert!(PathBuf::from(&library).exists(), "no {library}; `bash tests/run.sh` brings what tests need");
        let file = self.file().display().to_string();
        let variables = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("TZ", "UTC"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Says that a process lives by it.
    pub(crate) fn is_for(&self, process: u32) {
        self.processes.lock().unwrap().push(process);
    }

    /// Steps to so far behind the true time, and goes on from there.
    pub(crate) fn step_to(&self, behind: SignedDuration) {
        *self.behind.lock().unwrap() = behind;
        self.write(&format!("-{:.6}", behind.as_secs_f64()));
    }

    /// Stands still at the last whole second, until the next step.
    pub(crate) fn stand_still(&self) {
        let now = Timestamp::now() - *self.behind.lock().unwrap();
        self.write(&now.strftime("%Y-%m-%d %H:%M:%S").to_string());
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("time")
    }

    /// At once: nobody reads half of it.
    fn write(&self, text: &str) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.file()).unwrap();
    }
}

impl Drop for SteppedClock {
    fn drop(&mut self) {
        for process in self.processes.lock().unwrap().iter() {
            for name in ["faketime_shm", "sem.faketime_sem"] {
                // Where the library has cleaned up itself there is nothing.
                let _ = std::fs::remove_file(format!("/dev/shm/{name}_{process}"));
            }
        }
    }
}
