//! No input may panic, loop or grow memory: recorded WAL and an index of it, changed in every way that bytes can be, in front of
//! whoever reads them. Half of what is changed lies within records whose checksum is made right again: what a checksum would
//! have stopped goes on to the decoder.
//!
//! Every input follows from a number: `SEAWALL_MUTATIONS=100000` tries so many, `SEAWALL_MUTATIONS_FIRST=5000` begins elsewhere.

use super::recorded::{FIXTURE_VERSIONS, fixture_files};
use super::walk;
use fastrand::Rng;
use seawall::codec::Compression;
use seawall::history::Chronicle;
use seawall::history::index::{BlockWalk, IndexWriter, Indexes, Outline, Records};
use seawall::repository::{Key, Layout, RecordSink, Writer};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{
    LISTED_RELATIONS_MAX, LISTED_SUBTRANSACTIONS_MAX, Lsn, PAGE_BYTES, Record, RecordKind, RecordWalker, Segment,
    SegmentSize, TimelineId, WalRange,
};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Inputs of a run without variables.
const MUTATIONS_DEFAULT: u64 = 400;
/// So much more memory than before may be in use at any time, in all.
const GROWTH_BYTES_MAX: u64 = 128 << 20;
/// An outline notes so many events at most, and that there were more.
const EVENTS_MAX: usize = 500;
/// `XLogRecord` (`xlogrecord.h`): where its checksum is, and what comes behind its header.
const CHECKSUM_AT: usize = 20;
const HEADER_BYTES: usize = 24;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Says which input it was, if that was one too many.
struct Input(u64);

impl Drop for Input {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: SEAWALL_MUTATIONS_FIRST={} SEAWALL_MUTATIONS=1", self.0);
        }
    }
}

/// The most memory that this process ever had in use, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Bytes somewhere, changed somehow.
fn change_bytes(random: &mut Rng, bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    let at = random.usize(..bytes.len());
    let end = (at + random.usize(1..=8)).min(bytes.len());
    match random.u8(..6) {
        0 => bytes[at] ^= 1 << random.u8(..8),
        1 => bytes[at..end].fill(0),
        2 => bytes[at..end].fill(0xFF),
        3 => bytes[at..end].fill_with(|| random.u8(..)),
        4 => {
            let end = (at + random.usize(1..3000)).min(bytes.len());
            bytes[at..end].fill(random.u8(..));
        }
        _ => {
            let from = random.usize(..bytes.len());
            let length = random.usize(1..3000).min(bytes.len() - from.max(at));
            bytes.copy_within(from..from + length, at);
        }
    }
}

/// A record within one page, changed, with a checksum that is right.
fn change_record(random: &mut Rng, bytes: &mut [u8], starts: &[usize]) {
    let Some(at) = random.choice(starts).copied() else { return };
    let page_end = (at / PAGE_BYTES as usize + 1) * PAGE_BYTES as usize;
    let length = |bytes: &[u8]| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    if at + HEADER_BYTES > page_end || at + length(bytes) > page_end || length(bytes) <= HEADER_BYTES {
        return;
    }
    let total = length(bytes);
    match random.u8(..8) {
        // The transaction, what it did, and who did it.
        0 => bytes[at + 4 + random.usize(..4)] = random.u8(..),
        1 => bytes[at + 16] = random.u8(..),
        2 => bytes[at + 17] = random.u8(..22),
        3 => {
            let other = random.usize(HEADER_BYTES + 1..=page_end - at) as u32;
            bytes[at..at + 4].copy_from_slice(&other.to_le_bytes());
        }
        // The headers in front are what the rest hangs on.
        4..6 => change_bytes(random, &mut bytes[at + HEADER_BYTES..at + total.min(HEADER_BYTES + 40)]),
        _ => change_bytes(random, &mut bytes[at + HEADER_BYTES..at + total]),
    }
    let total = length(bytes);
    if total > HEADER_BYTES && at + total <= page_end {
        let checksum = crc32c::crc32c(&bytes[at + HEADER_BYTES..at + total]);
        let checksum = crc32c::crc32c_append(checksum, &bytes[at..at + CHECKSUM_AT]);
        bytes[at + CHECKSUM_AT..at + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// A record says no more than its bytes can.
fn check_record(record: &Record, after: Lsn, end: Lsn) {
    assert!(after <= record.start && record.start < record.end && record.end <= end, "{record:?} behind {after}");
    let listed = match &record.kind {
        RecordKind::Commit { dropped, subtransactions, changed, .. } => {
            assert!(dropped.len().max(changed.len()) <= LISTED_RELATIONS_MAX, "{record:?}");
            (dropped.len() + changed.len()).max(subtransactions.len())
        }
        RecordKind::Abort { subtransactions, .. } => subtransactions.len(),
        RecordKind::Subtransactions { xids, .. } => xids.len(),
        RecordKind::RestorePoint { name, .. } => name.len(),
        RecordKind::TablespaceCreate { path, .. } => path.len(),
        _ => 0,
    };
    assert!(listed <= LISTED_SUBTRANSACTIONS_MAX && listed <= record.bytes as usize, "{record:?}");
}

/// Walks over a segment, and says what came of it.
fn walked(size: SegmentSize, start: Lsn, bytes: &[u8], piece_bytes: usize) -> (Vec<Record>, Option<String>) {
    let mut walker = RecordWalker::new(size, start).with_details();
    let mut records = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        let mut see = |record: Record| records.push(record);
        if let Err(error) = walker.push(walker.position(), piece, &mut see) {
            return (records, Some(error.to_string()));
        }
    }
    (records, None)
}

#[test]
fn no_wal_makes_its_readers_panic_loop_or_grow() {
    // Given recorded WAL, and where its records are
    let recorded = FIXTURE_VERSIONS.map(|version| {
        let (size, files) = fixture_files(version);
        let (_, records) = walk(&files, size, 1 << 20);
        (size, files, records)
    });
    let first = variable("SEAWALL_MUTATIONS_FIRST").unwrap_or(0);
    let (mut changed, mut failed) = (0u64, 0u64);
    let before = peak_bytes();
    for number in first..first + variable("SEAWALL_MUTATIONS").unwrap_or(MUTATIONS_DEFAULT) {
        let _input = Input(number);
        let mut random = Rng::with_seed(number);
        // When some pages of it are changed
        let (size, files, records) = random.choice(&recorded).unwrap();
        let (segment, whole): &(Segment, Vec<u8>) = random.choice(files).unwrap();
        let mut bytes = whole.clone();
        let within = records.iter().filter(|it| segment.start <= it.start && it.start < segment.end());
        let starts: Vec<usize> = within.map(|record| (record.start - segment.start) as usize).collect();
        for _ in 0..random.usize(1..12) {
            match random.bool() {
                true => change_record(&mut random, &mut bytes, &starts),
                false => change_bytes(&mut random, &mut bytes),
            }
        }
        // Then the walker gives out records that can be, the same however they come, and ends
        let (found, error) = walked(*size, segment.start, &bytes, bytes.len());
        let mut after = segment.start;
        for record in &found {
            check_record(record, after, segment.end());
            after = record.end;
        }
        assert!(walked(*size, segment.start, &bytes, random.usize(1000..70_000)) == (found.clone(), error.clone()));
        changed += u64::from(bytes != *whole);
        failed += u64::from(error.is_some());
        // And what is made of them is as small as it is of others
        let mut chronicle = Chronicle::new(|_| ControlFlow::Continue(()));
        found.iter().for_each(|record| assert!(chronicle.see(record).is_continue()));
        let range = WalRange { timeline: TimelineId(1), start: segment.start, end: segment.end() };
        if let Ok(Some(outline)) = BlockWalk::new(*size, false).outline(range, bytes.chunks(100_000)) {
            assert!(outline.events.len() <= EVENTS_MAX && outline.records == found.len() as u64, "{outline:?}");
            let records = Records::new(TimelineId(1), vec![outline.clone()]).unwrap();
            let again = Records::decode("again", range, &records.encode().unwrap()).unwrap();
            assert_eq!(again.into_outlines(), [outline]);
        }
    }
    assert!(changed > 0 && failed > 0 && failed < changed, "{failed} of {changed} inputs were no WAL any more");
    let grown = peak_bytes() - before;
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes were used on top");
}

#[tokio::test]
async fn no_index_makes_its_reader_panic_loop_or_grow() {
    // Given an index of recorded WAL
    let (size, files) = fixture_files(13);
    let mut walk = BlockWalk::new(size, false);
    let outlines: Vec<Outline> = files
        .iter()
        .filter_map(|(segment, bytes)| {
            let range = WalRange { timeline: TimelineId(1), start: segment.start, end: segment.end() };
            walk.outline(range, [bytes]).ok().flatten()
        })
        .collect();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let layout = Layout::new("main", size, Compression::Lz4);
    let index = IndexWriter::new(Writer::new(store.clone(), layout.clone(), 7));
    let range = index.store(TimelineId(1), outlines.clone()).await.unwrap().expect("it can be stored");
    let name = layout.name(&Key::Records(range));
    let stored = store.get(&name, None).await.unwrap().collect().await.unwrap();
    Indexes::check(&name, range, &stored).unwrap();
    let json = Records::new(TimelineId(1), outlines).unwrap().encode().unwrap();
    let first = variable("SEAWALL_MUTATIONS_FIRST").unwrap_or(0);
    let before = peak_bytes();
    for number in first..first + variable("SEAWALL_MUTATIONS").unwrap_or(MUTATIONS_DEFAULT) {
        let _input = Input(number);
        let mut random = Rng::with_seed(number);
        // When it is changed, as it is stored or below that, or cut
        let (mut object, mut text) = (stored.to_vec(), json.clone());
        for bytes in [&mut object, &mut text] {
            for _ in 0..random.usize(1..6) {
                change_bytes(&mut random, bytes);
            }
            if random.u8(..8) == 0 {
                bytes.truncate(random.usize(..bytes.len()));
            }
        }
        // Then it is refused, or is an index of that range still
        let _ = Indexes::check(&name, range, &object);
        if let Ok(records) = Records::decode(&name, range, &text) {
            assert_eq!(records.range(), range);
        }
    }
    let grown = peak_bytes() - before;
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes were used on top");
}
