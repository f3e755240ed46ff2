//! What an index says of WAL, against the WAL: whatever a restore looks for, it finds the same with and without.

use super::route::Route;
use super::scan::{Stretch, survey};
use super::survey::{Goal, Survey};
use super::testing::{at, micros};
use crate::codec::{Compression, Form, Identities, Recipients, encryption};
use crate::history::index::{IndexWriter, Indexes, Level};
use crate::repository::{Key, Layout, Repository, WalReader, Writer};
use crate::store::{MemoryStore, Store};
use crate::wal::testing::{START, WalWriter, size};
use crate::wal::{History, Lsn, Record, RecordWalker, TimelineId, WalRange};
use bytes::Bytes;
use std::sync::Arc;

const SYSTEM: u64 = 77;
const TIMELINE: TimelineId = TimelineId(1);

/// The first slot that is whole.
const FIRST: Lsn = Lsn(0x100_0000);

fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

/// WAL of a few dozen segments, in which the clock goes forth and back.
fn stream(seed: u64, bytes: usize) -> WalWriter {
    let mut wal = WalWriter::new(START);
    let (mut state, mut second) = (seed | 1, 1000);
    let mut state = move |below| random(&mut state, below);
    while wal.bytes.len() < bytes {
        second += state(5) as i64 - 1;
        let (xid, time) = (1000 + wal.bytes.len() as u32 / 1000, micros(second).to_le_bytes());
        match state(200) {
            0..20 => wal.main(xid, 1, 0x00, &time),
            20..24 => wal.main(xid, 1, 0x20, &time),
            24 => {
                let mut name = [0; 64];
                name[..5].copy_from_slice(format!("p{:04}", state(3)).as_bytes());
                wal.main(0, 0, 0x70, &[&time[..], &name].concat())
            }
            25 => {
                let settings = [100 + state(9) as i32, 8, 10, 0, 64, 1].map(i32::to_le_bytes);
                wal.main(0, 0, 0x60, &[settings.concat(), vec![0; 4]].concat())
            }
            26 => wal.main(xid, 5, 0, &[&20_000_u32.to_le_bytes()[..], b"/somewhere\0"].concat()),
            // Longer than a segment now and then.
            27 if state(8) == 0 => wal.main(xid, 10, 0, &vec![7; 1_500_000 + state(1_000_000) as usize]),
            28 if state(8) == 0 => wal.switch(),
            _ => wal.main(xid, 10, 0, &vec![7; state(20_000) as usize]),
        };
    }
    wal
}

fn records(wal: &WalWriter) -> Vec<Record> {
    let mut records = Vec::new();
    RecordWalker::new(size(), wal.start).push(wal.start, &wal.bytes, &mut |record| records.push(record)).unwrap();
    records
}

struct Scene {
    store: Arc<MemoryStore>,
    layout: Layout,
    writer: Writer,
    index: IndexWriter,
    history: History,
    end: Lsn,
}

impl Scene {
    /// A repository that has `wal` in blocks, and no index.
    async fn new(wal: &WalWriter, form: Form) -> Scene {
        let (store, layout) = (Arc::new(MemoryStore::new()), Layout::new("main", wal.size, form));
        let writer = Writer::new(store.clone(), layout.clone(), SYSTEM);
        let (index, history) = (IndexWriter::new(writer.clone()), History::root(TIMELINE));
        let mut scene = Scene { store, layout, writer, index, history, end: wal.start };
        scene.store(wal).await;
        scene
    }

    /// Stores what is in `wal`, on its timeline.
    async fn store(&mut self, wal: &WalWriter) {
        let mut end = wal.start;
        for block in wal.bytes.chunks(wal.size.block_bytes() as usize) {
            let range = WalRange { timeline: TimelineId(wal.timeline), start: end, end: end + block.len() as u64 };
            let key = if range.is_whole_block(wal.size) { Key::Block(range) } else { Key::Tail(range) };
            self.writer.store_wal(&key, range, Bytes::copy_from_slice(block)).await.unwrap();
            end = range.end;
        }
        self.end = end;
    }

    fn reader(&self) -> WalReader {
        WalReader::new(Repository { store: self.store.clone(), layout: self.layout.clone() }, SYSTEM)
    }

    /// Makes the index of every slot that is whole.
    async fn index(&self) -> Indexes {
        let mut start = FIRST;
        while Level::FIRST.slot_end(size(), start) <= self.end {
            let range = WalRange { timeline: TIMELINE, start, end: Level::FIRST.slot_end(size(), start) };
            let outlines = self.index.outline(range).await.unwrap().unwrap();
            self.index.store(TIMELINE, outlines).await.unwrap();
            self.index.join(TIMELINE, range.end).await.unwrap();
            start = range.end;
        }
        Indexes::read(&self.reader().repository().clone(), TIMELINE).await.unwrap()
    }

    async fn survey(&self, indexes: &Indexes, from: Lsn, consistent: Lsn, goal: Goal) -> Survey {
        let route = Route { history: self.history.clone(), size: self.layout.segment_size(), cap: None };
        let stretch = Stretch { route, from, consistent, until: self.end };
        survey(&self.reader(), indexes, &stretch, goal).await.unwrap()
    }
}

/// Everything that can be asked for, around what is there.
fn goals(records: &[Record], seed: u64) -> Vec<Goal> {
    let mut state = seed | 1;
    let mut goals = vec![Goal::End];
    for _ in 0..12 {
        let record = &records[random(&mut state, records.len() as u64) as usize];
        let time = at(900 + random(&mut state, 3000) as i64);
        let exclusive = random(&mut state, 2) == 0;
        goals.extend([
            Goal::Lsn { lsn: record.start, exclusive },
            Goal::Lsn { lsn: record.start + 8, exclusive },
            Goal::Xid { xid: record.xid, exclusive },
            Goal::Time { time, exclusive },
        ]);
        if let Some(ended) = crate::history::index::Transaction::ended_by(record) {
            goals.push(Goal::Time { time: ended.time, exclusive });
        }
    }
    goals.extend(["p0000", "p0001", "nowhere"].map(|name| Goal::Name { name: name.into(), exclusive: false }));
    goals.push(Goal::Lsn { lsn: Lsn(u64::MAX / 2), exclusive: true });
    goals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_looked_for_is_found_with_an_index_as_without() {
    for seed in 1..4_u64 {
        // Given WAL with and without an index, and a backup somewhere in it
        let wal = stream(seed, 37 << 20);
        let scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
        let records = records(&wal);
        let (none, indexes) = (Indexes::default(), scene.index().await);
        assert!(indexes.at(TIMELINE, FIRST + size().bytes()).is_some(), "there is no index");
        let mut state = seed;
        let at = random(&mut state, records.len() as u64 / 2) as usize;
        let (from, consistent) = (records[at].start, records[at + 20].start);
        // When anything is looked for, then both say the same
        for goal in goals(&records, seed) {
            let expected = scene.survey(&none, from, consistent, goal.clone()).await;
            let found = scene.survey(&indexes, from, consistent, goal.clone()).await;
            assert_eq!(found, expected, "seed {seed}, from {from}, {goal:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_in_the_middle_of_a_record_is_passed_too() {
    // Given a server that was promoted, in the segment behind an index, and a record that goes on into that segment
    let mut wal = stream(11, (32 << 20) - START.0 as usize - 200_000);
    let straddling = wal.main(9, 10, 0, &vec![7; 400_000]);
    let switch = wal.main(9, 10, 0, &[7; 100]);
    assert!(switch > Lsn(32 << 20) && switch < Lsn(33 << 20), "{switch}");
    let mut scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
    let indexes = scene.index().await;
    assert!(indexes.at(TIMELINE, Lsn((32 << 20) - 1)).is_some(), "there is no index in front of the switch");
    // And its own WAL, from the beginning of the segment on
    let skipped = (32 << 20) - START.0 as usize;
    let copied = wal.bytes[skipped..(switch - START) as usize].to_vec();
    let mut child = WalWriter { start: Lsn(32 << 20), bytes: copied, ..wal };
    (child.timeline, child.previous) = (2, straddling);
    for number in 0..2000_u32 {
        let time = micros(5000 + i64::from(number)).to_le_bytes();
        child.main(5_000_000 + number, 1, 0x00, &time);
        child.main(7, 10, 0, &[7; 1000]);
    }
    scene.store(&child).await;
    let text = format!("1\t{switch}\tno recovery target specified\n");
    scene.history = History::parse(TimelineId(2), text.as_bytes()).unwrap();
    // When something behind the switch is looked for, then it is found as without the index
    for goal in [
        Goal::End,
        Goal::Xid { xid: 5_000_100, exclusive: false },
        Goal::Time { time: at(5500), exclusive: false },
        Goal::Lsn { lsn: switch, exclusive: true },
    ] {
        let expected = scene.survey(&Indexes::default(), START, START, goal.clone()).await;
        assert!(expected.unreadable.is_none() && expected.found.is_some(), "{goal:?}: {expected:?}");
        assert_eq!(scene.survey(&indexes, START, START, goal.clone()).await, expected, "{goal:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_switch_left_unused_is_passed_over_whatever_of_it_is_indexed() {
    // Given a segment of 512 MiB that a switch ended early, and an index of its first half only
    let size = crate::wal::SegmentSize::new(512 << 20).unwrap();
    let start = Lsn(512 << 20);
    let mut wal = WalWriter { size, ..WalWriter::new(start) };
    let mut number = 0;
    let mut work = |wal: &mut WalWriter| {
        for _ in 0..2000 {
            number += 1;
            wal.main(number, 1, 0x00, &micros(1000 + i64::from(number)).to_le_bytes());
            wal.main(7, 10, 0, &vec![7; 10_000]);
        }
    };
    work(&mut wal);
    wal.switch();
    work(&mut wal);
    let scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
    let half = WalRange { timeline: TIMELINE, start, end: start + (256 << 20) };
    let outlines = scene.index.outline(half).await.unwrap().unwrap();
    assert_eq!(scene.index.store(TIMELINE, outlines).await.unwrap(), Some(half));
    let indexes = Indexes::read(scene.reader().repository(), TIMELINE).await.unwrap();
    // When something behind the switch is looked for, then it is found as without the index
    for goal in [Goal::End, Goal::Xid { xid: 3000, exclusive: false }] {
        let expected = scene.survey(&Indexes::default(), start, start, goal.clone()).await;
        assert!(expected.found.is_some_and(|found| found.last.is_some_and(|last| last.start > start + size.bytes())));
        assert_eq!(scene.survey(&indexes, start, start, goal.clone()).await, expected, "{goal:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_index_speaks_of_is_not_read() {
    // Given an index of a slot
    let wal = stream(9, 37 << 20);
    let scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
    let indexes = scene.index().await;
    let from = records(&wal)[0].start;
    let expected = scene.survey(&Indexes::default(), from, from, Goal::End).await;
    // When the WAL that it speaks of is gone, but for what lies around
    for number in 1..15 {
        let start = FIRST + number * size().bytes();
        let range = WalRange { timeline: TIMELINE, start, end: start + size().bytes() };
        scene.store.delete(&scene.layout.name(&Key::Block(range))).await.unwrap();
    }
    // Then the end is found nevertheless
    assert_eq!(scene.survey(&indexes, from, from, Goal::End).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_damaged_is_passed_over() {
    // Given one of which a bit is wrong
    let wal = stream(5, 34 << 20);
    let scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
    let indexes = scene.index().await;
    let range = indexes.at(TIMELINE, FIRST + size().bytes()).unwrap();
    let name = scene.layout.name(&Key::Records(range));
    let mut bytes = scene.store.get(&name, None).await.unwrap().collect().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    scene.store.delete(&name).await.unwrap();
    scene.store.create(&name, Bytes::from(bytes).into(), Default::default()).await.unwrap();
    // When something is looked for, then it is found in the WAL
    let from = records(&wal)[0].start;
    let expected = scene.survey(&Indexes::default(), from, from, Goal::End).await;
    assert_eq!(scene.survey(&indexes, from, from, Goal::End).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_not_in_the_index_of_encrypted_wal_and_are_found_nevertheless() {
    // Given WAL that is encrypted, with its index
    let (secret, public) = encryption::generate_identity();
    let recipients = Recipients::parse([public.as_str()]).unwrap();
    let identities = Identities::parse(age::secrecy::ExposeSecret::expose_secret(&secret).as_bytes()).unwrap();
    let wal = stream(3, 34 << 20);
    let scene = Scene::new(&wal, Form { compression: Compression::Lz4, recipients, identities }).await;
    let indexes = scene.index().await;
    // When the index is looked at
    let outlines = indexes.load(&scene.reader(), indexes.at(TIMELINE, FIRST + size().bytes()).unwrap()).await.unwrap();
    // Then no name and no path is in it
    let json = serde_json::to_string(&outlines).unwrap();
    assert!(json.contains("restore_point") && !json.contains("p000") && !json.contains("somewhere"), "{json:.2000}");
    // And what needs them is found
    let from = records(&wal)[0].start;
    for goal in [Goal::End, Goal::Name { name: "p0001".into(), exclusive: false }] {
        let expected = scene.survey(&Indexes::default(), from, from, goal.clone()).await;
        assert_eq!(scene.survey(&indexes, from, from, goal).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pushed_without_the_private_key_is_planned_with_it_and_indexed_afterwards() {
    // Given WAL that somebody without the private key pushed, block by block
    let (secret, public) = encryption::generate_identity();
    let recipients = Recipients::parse([public.as_str()]).unwrap();
    let identities = Identities::parse(age::secrecy::ExposeSecret::expose_secret(&secret).as_bytes()).unwrap();
    let wal = stream(3, 40 << 20);
    let theirs = Form { compression: Compression::Lz4, recipients, identities: Identities::default() };
    let ours = Form { identities, ..theirs.clone() };
    let mut scene = Scene::new(&WalWriter::new(START), theirs).await;
    for (number, block) in wal.bytes.chunks(size().block_bytes() as usize).enumerate() {
        let start = START + (number * size().block_bytes() as usize) as u64;
        let range = WalRange { timeline: TIMELINE, start, end: start + block.len() as u64 };
        let key = if range.is_whole_block(size()) { Key::Block(range) } else { Key::Tail(range) };
        scene.writer.store_wal(&key, range, Bytes::copy_from_slice(block)).await.unwrap();
        // Then that does not fail, and makes no index
        assert_eq!(scene.index.fill_behind(range).await.unwrap().stored, 0);
        scene.end = range.end;
    }
    let none = Indexes::read(scene.reader().repository(), TIMELINE).await.unwrap();
    assert_eq!(none, Indexes::default());
    // When somebody with the key looks for moments, then they are found by reading the WAL
    let layout = Layout::new("main", size(), ours);
    let writer = Writer::new(scene.store.clone(), layout.clone(), SYSTEM);
    let keyed = Scene { index: IndexWriter::new(writer.clone()), layout, writer, ..scene };
    let from = records(&wal)[0].start;
    let goals =
        [Goal::End, Goal::Time { time: at(1500), exclusive: false }, Goal::Xid { xid: 20_000, exclusive: true }];
    let mut expected = Vec::new();
    for goal in &goals {
        expected.push(keyed.survey(&none, from, from, goal.clone()).await);
    }
    assert!(expected.iter().any(|survey| survey.found.is_some_and(|found| found.next.is_some())), "{expected:?}");
    // When `seawall index` runs with the key, then all has an index, and says the same
    let run = WalRange { timeline: TIMELINE, start: START, end: keyed.end };
    let filled = keyed.index.fill(run, true, |_| ()).await.unwrap();
    let indexes = Indexes::read(keyed.reader().repository(), TIMELINE).await.unwrap();
    assert!(filled.stored > 0 && indexes.at(TIMELINE, FIRST + size().bytes()).is_some(), "{filled:?}");
    for (goal, expected) in goals.into_iter().zip(expected) {
        assert_eq!(keyed.survey(&indexes, from, from, goal.clone()).await, expected, "{goal:?}");
    }
}

/// The indexes that `blocks` get, stored one by one by processes that know nothing of one another.
async fn pushed(wal: &WalWriter, blocks: &[WalRange]) -> Indexes {
    let nothing = WalWriter::new(START);
    let scene = Scene::new(&nothing, Form::from(Compression::Lz4)).await;
    for range in blocks {
        let bytes = &wal.bytes[(range.start - wal.start) as usize..(range.end - wal.start) as usize];
        let key = if range.is_whole_block(wal.size) { Key::Block(*range) } else { Key::Tail(*range) };
        scene.writer.store_wal(&key, *range, Bytes::copy_from_slice(bytes)).await.unwrap();
        IndexWriter::new(scene.writer.clone()).fill_behind(*range).await.unwrap();
    }
    Indexes::read(scene.reader().repository(), TIMELINE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_file_by_file_has_the_index_that_is_made_afterwards() {
    // Given WAL of some slots, and of a part of one
    let wal = stream(7, 60 << 20);
    let starts = (START.0..START.0 + wal.bytes.len() as u64).step_by(size().bytes() as usize).map(Lsn);
    let end = START + wal.bytes.len() as u64;
    let block = |start: Lsn| WalRange { timeline: TIMELINE, start, end: size().block_end(start).min(end) };
    let mut blocks: Vec<WalRange> = starts.map(block).collect();
    let afterwards = async |goes_on: bool| {
        let scene = Scene::new(&wal, Form::from(Compression::Lz4)).await;
        let run = WalRange { timeline: TIMELINE, start: START, end };
        scene.index.fill(run, goes_on, |_| ()).await.unwrap();
        Indexes::read(scene.reader().repository(), TIMELINE).await.unwrap()
    };
    assert!(!blocks[blocks.len() - 1].is_whole_block(size()), "the last one is to be cut");
    // When it is pushed to its end, where the timeline was left, then all of it has an index
    assert_eq!(pushed(&wal, &blocks).await, afterwards(false).await);
    // and before that what fills slots has one.
    blocks.pop();
    let expected = afterwards(true).await;
    assert_eq!(pushed(&wal, &blocks).await, expected);
    // When the last file of a slot comes before others of it, then the next slot's index brings the rest along
    let last = blocks.iter().position(|block| block.end == Lsn(2 * Level::FIRST.bytes(size()))).unwrap();
    blocks[last - 3..=last].rotate_right(1);
    let indexes = pushed(&wal, &blocks).await;
    let mut position = START;
    while let Some(range) = indexes.at(TIMELINE, position) {
        position = range.end;
    }
    assert_eq!(Some(position), expected.end(TIMELINE), "{indexes:?}");
}
