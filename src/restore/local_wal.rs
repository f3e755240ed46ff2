//! WAL that a restore puts into `pg_wal` itself, so that recovery finds it without the store.
//!
//! PostgreSQL asks its `restore_command` first and looks into `pg_wal` when that has nothing. So for what lies there,
//! `wal-fetch` says "nothing", at once.

use super::pin::Pin;
use super::plan::Plan;
use super::tree::{self, Tree, WAL_DIRECTORY};
use super::wal_fetch::write_pinned;
use crate::error::{Error, Result};
use crate::repository::WalReader;
use crate::runtime;
use crate::wal::{Lsn, Segment, SegmentSize, TimelineId};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// How much of the WAL is fetched with the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalWal {
    /// None: recovery fetches it.
    #[default]
    None,
    /// What recovery begins with, [`FIRST_BYTES`] at most.
    First,
    /// All, and every history: recovery needs no store.
    All,
}

/// What [`LocalWal::First`] fetches: 16 segments of the usual size.
pub const FIRST_BYTES: u64 = 256 << 20;

/// Segments fetched at once: each takes up to 32 MiB of memory.
const FETCHES: usize = 4;

impl LocalWal {
    /// The segments that `plan` needs and that are fetched, in order.
    pub(super) fn segments(self, plan: &Plan) -> Result<Vec<Segment>> {
        let size = plan.segment_size()?;
        let count = match self {
            LocalWal::None => 0,
            LocalWal::First => (FIRST_BYTES / size.bytes()).max(1) as usize,
            LocalWal::All => usize::MAX,
        };
        let all = plan.wal.iter().flat_map(|need| {
            let first = Segment::holding(need.timeline, need.start, size);
            std::iter::successors(Some(first), |segment| Some(segment.next()))
                .take_while(|segment| segment.start < need.end)
        });
        Ok(all.take(count).collect())
    }
}

/// Brings `segments` into `pg_wal`, and with them all histories that there are.
pub(super) async fn bring(
    reader: &WalReader,
    pin: &Pin,
    segments: Vec<Segment>,
    tree: &Arc<Tree>,
    done: &(impl Fn(u64) + Sync),
) -> Result<()> {
    let (repository, place) = (reader.repository(), tree.data().join(WAL_DIRECTORY));
    for timeline in repository.read_timelines().await? {
        if let Some(text) = repository.read_history_file(timeline).await? {
            let (tree, path) = (Arc::clone(tree), place.join(timeline.history_name()));
            runtime::blocking(move || tree.put(&path, &text, tree.file_mode())).await??;
        }
    }
    let place = &place;
    let fetches = stream::iter(segments).map(|segment| async move {
        let path = place.join(segment.name());
        write_pinned(reader, segment, pin, &path).await?;
        let tree = Arc::clone(tree);
        runtime::blocking(move || tree.own(&path)).await??;
        done(segment.size.bytes());
        Ok::<(), Error>(())
    });
    fetches.buffer_unordered(FETCHES).try_collect::<()>().await?;
    let place = place.clone();
    runtime::blocking(move || tree::sync_directory(&place)).await?
}

/// True if PostgreSQL has the file called `name` beside `destination`, where the restore put it.
///
/// Behind what a restore brings, recovery recycles old segments under new names: so what counts is not the name.
pub fn is_local(pin: &Pin, name: &str, destination: &Path) -> bool {
    let path = destination.with_file_name(name);
    if TimelineId::parse_history_name(name).is_some() {
        return pin.local_end > Lsn(0) && path.is_file();
    }
    let Some(size) = SegmentSize::new(pin.segment_bytes) else { return false };
    let is_whole = std::fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == size.bytes());
    is_whole
        && pin.needs(name)
        && Segment::parse(name, size)
            .is_ok_and(|segment| segment.start < pin.local_end && begins_with(&path, segment.start))
}

/// True if the first page says that it stands there: `xlp_pageaddr` (`xlog_internal.h`).
fn begins_with(path: &Path, start: Lsn) -> bool {
    let mut address = [0; 8];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut address, 8));
    read.is_ok() && u64::from_ne_bytes(address) == start.0
}

#[cfg(test)]
mod tests {
    use super::super::pin::PinnedTimeline;
    use super::*;

    #[test]
    fn only_what_the_restore_brought_is_left_to_the_server() {
        // Given a restore that brought segments 2 and 3 of 5, on two timelines, and what recycling left behind them
        let mib = 1 << 20;
        let part = |timeline, start, end| PinnedTimeline {
            timeline: TimelineId(timeline),
            start: Lsn(start * mib),
            end: Lsn(end * mib),
        };
        let path = vec![part(1, 2, 3), part(2, 3, 6)];
        let pin = Pin { system_identifier: "7".into(), path, local_end: Lsn(4 * mib), segment_bytes: mib };
        let place = tempfile::tempdir().unwrap();
        let destination = place.path().join("RECOVERYXLOG");
        let write = |timeline, number: u64, address: u64, bytes: u64| {
            let size = SegmentSize::new(mib).unwrap();
            let name = Segment { timeline: TimelineId(timeline), start: Lsn(number * mib), size }.name();
            let mut content = vec![0; bytes as usize];
            content[8..16].copy_from_slice(&address.to_ne_bytes());
            std::fs::write(place.path().join(&name), content).unwrap();
            name
        };
        let is = |name: &str| is_local(&pin, name, &destination);
        assert!(is(&write(1, 2, 2 * mib, mib)) && is(&write(2, 3, 3 * mib, mib)));
        assert!(!is(&write(2, 4, 4 * mib, mib)), "it lies behind what was brought");
        assert!(!is(&write(2, 3, 2 * mib, mib)), "recycled under a new name");
        assert!(!is(&write(2, 3, 3 * mib, mib / 2)), "cut");
        assert!(!is(&write(1, 3, 3 * mib, mib)), "a dead branch");
        assert!(!is(&write(3, 3, 3 * mib, mib)), "not on the path");
        let needs = ["000000010000000000000002", "000000020000000000000005", "00000002.history"];
        assert!(needs.iter().all(|name| pin.needs(name)));
        let others = ["000000010000000000000003", "000000020000000000000006", "00000003.history", "x"];
        assert!(!others.iter().any(|name| pin.needs(name)));
        assert!(!is("000000020000000000000099") && !is("00000002.history") && !is("../../etc/passwd"));
        std::fs::write(place.path().join("00000002.history"), "x").unwrap();
        assert!(is("00000002.history"));
        assert!(!is_local(&Pin { local_end: Lsn(0), ..pin.clone() }, "00000002.history", &destination));
    }
}
