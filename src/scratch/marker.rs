//! What tells a directory of ours from one that only has such a name: a file in it that names this start of this machine, and what the
//! directory is for. May use `error`.

use crate::error::{Error, Result};
use nix::fcntl::OFlag;
use nix::unistd::{Uid, gethostname};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What the file is called.
pub(super) const NAME: &str = "made-by-seawall";
const WORDS: &str = "Seawall made this directory for a throwaway server. It goes with all that is in it.\n";
/// Another one with every start of the kernel (`man 5 proc_sys_kernel`).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Says in `directory` that we have made it, for `of`, a path without symbolic links. To be called before the directory is given away:
/// the servers' user can then remove the file, and not write another. Where the kernel does not tell its starts apart, nothing is said.
///
/// # Errors
/// [`crate::error::Kind::Local`] if the file cannot be written.
pub(super) fn put(directory: &Path, of: &Path) -> Result<()> {
    let Some(text) = text(of) else { return Ok(()) };
    let path = directory.join(NAME);
    let written = File::options().write(true).create_new(true).open(&path).and_then(|mut file| file.write_all(&text));
    written.map_err(|error| Error::local("write", &path, error))
}

/// True if we, as this user, have said so in `directory` since this machine was started.
pub(super) fn is_in(directory: &Path, of: &Path) -> bool {
    text(of).is_some_and(|text| read(directory, text.len()).is_some_and(|found| found == text))
}

/// What a file of ours says, and a byte more if it says more.
fn read(directory: &Path, length: usize) -> Option<Vec<u8>> {
    // Neither a link nor a pipe that somebody has put there.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(directory.join(NAME)).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != Uid::effective().as_raw() {
        return None;
    }
    let mut found = Vec::new();
    file.take(length as u64 + 1).read_to_end(&mut found).ok()?;
    Some(found)
}

fn text(of: &Path) -> Option<Vec<u8>> {
    let (boot, host) = (std::fs::read(BOOT).ok()?, gethostname().ok()?);
    Some([WORDS.as_bytes(), &boot, host.as_bytes(), b"\n", of.as_os_str().as_bytes(), b"\n"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_another_start_machine_or_place_is_none_and_neither_is_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (here, path) = (directory.path(), directory.path().join(NAME));
        assert!(!is_in(here, here));
        put(here, here).unwrap();
        assert!(is_in(here, here) && !is_in(here, Path::new("/elsewhere")));
        let ours = std::fs::read(&path).unwrap();
        // The second line is the start, the third the machine.
        let of_another = |line: usize| {
            let text = String::from_utf8(ours.clone()).unwrap();
            let lines = text.lines().enumerate();
            lines
                .map(|(i, it)| format!("{}\n", if i == line { "another" } else { it }))
                .collect::<String>()
                .into_bytes()
        };
        let (longer, shorter) = ([&ours[..], b"more"].concat(), ours[1..].to_vec());
        for other in [of_another(1), of_another(2), longer, shorter, Vec::new()] {
            std::fs::write(&path, &other).unwrap();
            assert!(!is_in(here, here), "{}", String::from_utf8_lossy(&other));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(here.join("other"), &ours).unwrap();
        std::os::unix::fs::symlink(here.join("other"), &path).unwrap();
        assert!(!is_in(here, here), "a link");
        std::fs::rename(here.join("other"), &path).unwrap();
        assert!(is_in(here, here));
    }
}
