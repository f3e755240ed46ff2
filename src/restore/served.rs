//! What a standby has already got of the segment at the end of the archive.
//!
//! A standby that has replayed everything asks for its last segment again and again. Each time it would be fetched and
//! written in full: so what was served is noted, and as long as the archive has no more, the answer is that there is
//! none. PostgreSQL then reads on in the copy that it keeps in `pg_wal`, and that this has looked at.

use crate::error::Result;
use crate::runtime;
use crate::wal::{Lsn, Segment};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The note's name in the data directory.
pub(super) const SERVED_FILE: &str = "seawall.served.json";

/// So much at the end of what was served tells whether a file is that one.
const LOOKED_AT_BYTES: u64 = 1 << 20;

/// A segment that was not whole yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Served {
    segment: String,
    /// The first byte that was filled up with a zero.
    end: Lsn,
    /// BLAKE3 of the last bytes before it.
    blake3: String,
}

/// Notes that `file` holds `segment` up to `end`. Without the note more is fetched than needed, and nothing else: so a
/// failure is only logged.
pub(super) async fn remember(data_directory: &Path, segment: Segment, end: Lsn, file: &Path) -> Result<()> {
    let (path, file) = (data_directory.join(SERVED_FILE), file.to_owned());
    runtime::blocking(move || {
        let noted = last_bytes(&file, segment, end).and_then(|blake3| {
            let served = Served { segment: segment.name(), end, blake3 };
            // In place: a note that is cut off is none.
            std::fs::write(&path, serde_json::to_vec(&served)?)
        });
        if let Err(error) = noted {
            tracing::warn!(path = %path.display(), %error, "cannot note what was served");
        }
    })
    .await
}

/// How far the server has `segment` in `pg_wal`, if it was served last and was not whole.
pub(super) async fn until(segment: Segment, data_directory: &Path, destination: &Path) -> Result<Option<Lsn>> {
    let (note, kept) = (data_directory.join(SERVED_FILE), destination.with_file_name(segment.name()));
    runtime::blocking(move || read(&note, segment, &kept)).await
}

/// What the note says, if the file at `kept` is what was served.
fn read(note: &Path, segment: Segment, kept: &Path) -> Option<Lsn> {
    let served: Served = serde_json::from_slice(&std::fs::read(note).ok()?).ok()?;
    let is_it = served.segment == segment.name()
        && (segment.start..segment.end()).contains(&served.end)
        && last_bytes(kept, segment, served.end).is_ok_and(|found| found == served.blake3);
    is_it.then_some(served.end)
}

fn last_bytes(path: &Path, segment: Segment, end: Lsn) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() != segment.size.bytes() {
        return Err(io::Error::other("it is not as long as a segment"));
    }
    let length = (end - segment.start).min(LOOKED_AT_BYTES);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, end - segment.start - length)?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}
