//! PostgreSQL 13 and 14 have no `pg_walinspect`, and their `pg_waldump` is not at hand: what it said of WAL of their servers is
//! recorded, with that WAL, in `tests/fixtures/wal`. The README there says how that is done anew.

use super::{assert_all_kinds_are_there, compare, crashed, read_dump, segments, walk};
use seawall::wal::{Lsn, Record, Segment, SegmentSize, TimelineId};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Small segments have many boundaries, and the last one is small.
const SEGMENT_BYTES: u64 = 1 << 20;

/// What users make has numbers from here on (`FirstNormalObjectId`, `transam.h`).
const FIRST_NORMAL_OID: u32 = 16_384;

fn fixture(name: String) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wal").join(name)
}

fn unpacked(name: String) -> Vec<u8> {
    let path = fixture(name);
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).unwrap()
}

/// Makes the fixtures of a version with its `pg_waldump`. What `initdb` wrote is left out.
async fn record(version: u32, pg_waldump: &Path) {
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    let server = crashed(version, 1, 1_500).await;
    let all = segments(server.data_directory(), 1, size);
    let is_ours = |record: &&Record| record.relation.is_some_and(|relation| relation.file >= FIRST_NORMAL_OID);
    let start = size.segment_start(walk(&all, size, 1 << 20).1.iter().find(is_ours).unwrap().start);
    let kept = all.into_iter().filter(|(segment, _)| segment.start >= start);
    let wal: Vec<u8> = kept.flat_map(|(_, bytes)| bytes).collect();
    // It ends with an error where WAL ends.
    let mut dump = Command::new(pg_waldump);
    dump.env("TZ", "UTC").arg("-p").arg(server.data_directory().join("pg_wal")).args(["-s", &start.to_string()]);
    let text = dump.output().unwrap().stdout;
    for (name, plain) in [(format!("{version}.wal.zst"), wal), (format!("{version}.txt.zst"), text)] {
        std::fs::write(fixture(name), zstd::encode_all(&plain[..], 22).unwrap()).unwrap();
    }
}

/// The versions that are recorded.
pub(crate) const FIXTURE_VERSIONS: [u32; 2] = [13, 14];

/// The recorded segments of a version.
pub(crate) fn fixture_files(version: u32) -> (SegmentSize, Vec<(Segment, Vec<u8>)>) {
    let (size, wal) = (SegmentSize::new(SEGMENT_BYTES).unwrap(), unpacked(format!("{version}.wal.zst")));
    // The address of the first page is in its header (`xlog_internal.h`, `XLogPageHeaderData`).
    let start = u64::from_le_bytes(wal[8..16].try_into().unwrap());
    let files = wal.chunks(SEGMENT_BYTES as usize).zip(0..).map(|(bytes, number)| {
        let start = Lsn(start + number * SEGMENT_BYTES);
        (Segment { timeline: TimelineId(1), start, size }, bytes.to_vec())
    });
    (size, files.collect())
}

async fn the_walker_sees_what_pg_waldump_saw(version: u32) {
    // Given WAL of a server that did a bit of everything, and what PostgreSQL's own program said of it,
    if let Some(pg_waldump) = std::env::var_os(format!("SEAWALL_PG_WALDUMP_{version}")) {
        record(version, Path::new(&pg_waldump)).await;
    }
    let (size, files) = fixture_files(version);
    let dumped = read_dump(std::str::from_utf8(&unpacked(format!("{version}.txt.zst"))).unwrap());
    // when it is walked over, however it comes,
    let (walker, records) = walk(&files, size, 1 << 20);
    let (_, pieces) = walk(&files, size, 1237);
    assert!(records == pieces, "the records depend on how the WAL arrives");
    // then the records are those that it printed,
    records.iter().zip(&dumped).for_each(|(record, dumped)| compare(record, dumped));
    assert_eq!(records.len(), dumped.len(), "one of the two stopped early on PostgreSQL {version}");
    assert_eq!(walker.end_of_wal(), records.last().map(|record| record.end));
    // of every kind that this test is about.
    assert_all_kinds_are_there(&records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_waldump_of_13_saw() {
    the_walker_sees_what_pg_waldump_saw(13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_waldump_of_14_saw() {
    the_walker_sees_what_pg_waldump_saw(14).await;
}
