//! What stands in clear in front of encrypted WAL, against the WAL: however the stream is cut into objects.

use super::line::{Job, Line};
use crate::codec::{Compression, Form, Identities, Recipients, encryption};
use crate::repository::{Cut, CutWalk, Key, Layout, NoIndex, Repository, Stored, WalReader, Writer};
use crate::store::{MemoryStore, Store};
use crate::wal::testing::{START, WalWriter, size};
use crate::wal::{Lsn, RecordWalker, TimelineId, WalRange};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const SYSTEM: u64 = 7;

/// The repository of an archiver that cannot read it.
struct Scene {
    store: Arc<MemoryStore>,
    writer: Writer,
    line: Line,
    live: Vec<Stored>,
}

fn layout() -> Layout {
    let (_, public) = encryption::generate_identity();
    let recipients = Recipients::parse([public.as_str()]).unwrap();
    Layout::new("main", size(), Form { compression: Compression::Lz4, recipients, identities: Identities::default() })
}

impl Scene {
    fn new() -> Scene {
        let (store, layout) = (Arc::new(MemoryStore::new()), layout());
        let writer = Writer::new(store.clone(), layout, SYSTEM);
        let line = Line::new(size(), TimelineId(1), START, START, &[]).with_leads(true);
        Scene { store, writer, line, live: Vec::new() }
    }

    /// Does the jobs, and those that come of them.
    async fn settle(&mut self, mut jobs: Vec<Job>) {
        while let Some(job) = jobs.pop() {
            let (key, range) = (job.key().clone(), job.range());
            if let Job::Store { lead, pieces, .. } = job {
                let wal = self.writer.encode_wal(range, lead, pieces).await.unwrap();
                self.writer.store_encoded(&key, &wal).await.unwrap();
                let (name, is_block) = (self.writer.layout().name(&key), matches!(key, Key::Block(_)));
                let (ending, modified) = (self.writer.layout().form().ending(), jiff::Timestamp::UNIX_EPOCH);
                self.live.push(Stored { range, name, ending, is_block, stored_bytes: 1, modified });
            }
            let mut garbage = Vec::new();
            self.line.confirm(&key, range, &mut jobs, &mut garbage).unwrap();
            for tail in garbage {
                let name = self.writer.layout().name(&Key::Tail(tail.range));
                self.store.delete(&name).await.unwrap();
                self.live.retain(|stored| stored.name != name);
            }
        }
    }

    async fn receive(&mut self, start: Lsn, bytes: &[u8]) {
        let mut jobs = Vec::new();
        self.line.receive(start, bytes, &mut jobs).unwrap();
        self.settle(jobs).await;
    }

    async fn flush(&mut self) {
        let mut jobs = Vec::new();
        self.line.flush(&mut jobs).unwrap();
        self.settle(jobs).await;
    }

    /// The archiver is killed, and begins anew with the segment of the last byte stored; `wal` is sent again.
    async fn restart(&mut self, wal: &WalWriter) {
        let durable = self.line.progress().durable();
        let start = size().segment_start(Lsn(durable.0 - 1));
        self.line = Line::new(size(), TimelineId(1), start, durable, &self.live).with_leads(true);
        let bytes = &wal.bytes[(start - wal.start) as usize..(durable - wal.start) as usize];
        self.receive(start, bytes).await;
    }

    /// What one without a private key finds.
    async fn found(&self, steps: &[(Lsn, Lsn)]) -> Result<BTreeMap<Cut, Lsn>, NoIndex> {
        let repository = Repository { store: self.store.clone(), layout: self.writer.layout().clone() };
        let reader = WalReader::new(repository, SYSTEM);
        let mut found = BTreeMap::new();
        let mut walk = CutWalk::new(size(), steps[0].0);
        for (from, end) in steps {
            assert!(walk.position() <= *from);
            let range = WalRange { timeline: TimelineId(1), start: walk.position(), end: *end };
            let mut note = |at: Lsn, cut: Cut| {
                let latest = found.entry(cut).or_insert(at);
                *latest = at.max(*latest);
            };
            walk.read(&reader, &[range], &mut note).await.unwrap()?;
        }
        Ok(found)
    }
}

/// WAL of three segments and a little more, with records of all lengths, some of which cut.
fn stream(seed: u64, cuts_in_a_thousand: u64, longest: usize) -> WalWriter {
    let mut wal = WalWriter::new(START);
    let mut state = seed | 1;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while wal.bytes.len() < 3_300_000 {
        let relation: Vec<u8> = [1663, 5, 16_384 + random(200) as u32].into_iter().flat_map(u32::to_le_bytes).collect();
        match random(1000) {
            kind if kind < cuts_in_a_thousand && kind % 5 == 0 => {
                wal.main(7, 4, 0, &[(20_000 + random(9) as u32).to_le_bytes(), [0; 4]].concat())
            }
            kind if kind < cuts_in_a_thousand && kind % 2 == 0 => {
                wal.main(7, 2, 0x10, &[relation, vec![0; 4]].concat())
            }
            kind if kind < cuts_in_a_thousand => {
                wal.main(7, 2, 0x20, &[vec![1, 0, 0, 0], relation, vec![7, 0, 0, 0]].concat())
            }
            990 => wal.main(7, 10, 0, &vec![7; random(70_000) as usize]),
            kind if kind % 200 == 199 && random(100) == 0 => wal.switch(),
            _ => wal.main(7, 10, 0, &vec![7; random(longest as u64) as usize]),
        };
    }
    wal
}

/// Where each thing is cut last, by records that begin at `from` or behind and end at `end` or before.
fn expected(wal: &WalWriter, from: Lsn, end: Lsn) -> BTreeMap<Cut, Lsn> {
    let mut cuts = BTreeMap::new();
    let mut note = |record: crate::wal::Record| {
        if record.start >= from
            && record.end <= end
            && let Some(cut) = Cut::of(&record.kind)
        {
            cuts.insert(cut, record.start);
        }
    };
    RecordWalker::new(size(), wal.start).push(wal.start, &wal.bytes, &mut note).unwrap();
    cuts
}

fn assert_all_found(found: &BTreeMap<Cut, Lsn>, wal: &WalWriter, from: Lsn, end: Lsn) {
    let all = expected(wal, Lsn(0), Lsn(u64::MAX));
    for (cut, at) in expected(wal, from, end) {
        assert!(found.get(&cut).is_some_and(|found| *found >= at), "{cut:?} at {at} was not found");
    }
    for cut in found.keys() {
        assert!(all.contains_key(cut), "{cut:?} is cut nowhere");
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn however_wal_is_cut_into_objects_every_cut_in_it_is_found_without_reading_it(
        seed: u64,
        cuts_in_a_thousand in 0u64..20,
        longest in 1usize..400,
        pieces in prop::collection::vec((1usize..300_000, any::<bool>()), 12..60),
        from in 0u64..3_000_000,
        restart_at in prop::option::of(0usize..40),
    ) {
        run(async {
            // Given a stream that was stored in pieces, some of them a few bytes long
            let wal = stream(seed, cuts_in_a_thousand, longest);
            let mut scene = Scene::new();
            let mut at = 0;
            for (number, (length, flushes)) in pieces.into_iter().enumerate() {
                let length = if length % 3 == 0 { length % 90 + 1 } else { length };
                let end = (at + length).min(wal.bytes.len());
                scene.receive(START + at as u64, &wal.bytes[at..end]).await;
                at = end;
                if flushes {
                    scene.flush().await;
                    if restart_at == Some(number) {
                        scene.restart(&wal).await;
                    }
                }
            }
            scene.flush().await;
            let end = START + at as u64;
            // When the cuts of a part of it are looked for, in one step or in several
            let from = START + from % at as u64;
            let middle = from + (end - from) / 2;
            for steps in [&[(from, end)][..], &[(from, middle), (middle, end)]] {
                match scene.found(steps).await {
                    // Then they are found
                    Ok(found) => assert_all_found(&found, &wal, from, end),
                    // or, where the archiver had to begin anew, it is known that one may be missing.
                    Err(why) => prop_assert!(restart_at.is_some() && matches!(why, NoIndex::Between(_)), "{}", why),
                }
            }
            Ok(())
        })?;
    }
}

/// WAL whose second segment begins within a record of the resource manager `rmgr`, `seen` bytes of which are in the first.
fn across_a_segment(rmgr: u8, seen: u64) -> WalWriter {
    let mut wal = WalWriter::new(START);
    let border = START + size().bytes();
    while wal.position() + 20_000 < border {
        wal.main(7, 10, 0, &[7; 9000]);
    }
    while wal.position() + 8000 < border {
        wal.main(7, 10, 0, &[7; 100]);
    }
    // A record has 26 bytes beside its main data, and 32 is the shortest that ends where another may begin.
    while let left @ 1.. = border - wal.position() - seen {
        wal.main(7, 10, 0, &vec![7; if left < 64 { left as usize - 26 } else { 6 }]);
    }
    assert_eq!(wal.position() + seen, border, "the last record begins where it should");
    wal.main(7, rmgr, 0x10, &[1663, 5, 99, 0].map(u32::to_le_bytes).concat());
    (0..100).for_each(|_| _ = wal.main(7, 10, 0, &[7; 90]));
    wal
}

async fn restarted_behind_a_segment(wal: &WalWriter) -> Scene {
    let mut scene = Scene::new();
    let middle = size().bytes() as usize + 300;
    scene.receive(START, &wal.bytes[..middle]).await;
    scene.flush().await;
    scene.restart(wal).await;
    scene.receive(START + middle as u64, &wal.bytes[middle..]).await;
    scene.flush().await;
    scene
}

#[tokio::test]
async fn where_an_archiver_begins_anew_within_a_record_it_is_known_whether_that_may_cut() {
    for (rmgr, seen, is_known) in
        [(2, 0, true), (2, 32, false), (2, 8, false), (10, 32, true), (10, 24, true), (10, 8, false)]
    {
        // Given a segment that ends within a record, and an archiver that was started anew with the next one
        let wal = across_a_segment(rmgr, seen);
        let scene = restarted_behind_a_segment(&wal).await;
        // When the cuts are looked for, then a record that may be one is not taken for none
        let end = START + wal.bytes.len() as u64;
        match scene.found(&[(START, end)]).await {
            Ok(found) => {
                assert!(is_known, "manager {rmgr}, {seen} bytes");
                assert_all_found(&found, &wal, START, end);
            }
            Err(why) => assert!(!is_known && matches!(why, NoIndex::Between(_)), "manager {rmgr}, {seen} bytes: {why}"),
        }
    }
}

#[tokio::test]
async fn an_archiver_that_goes_on_knows_every_record() {
    for seen in [8, 16, 24, 32, 40] {
        let wal = across_a_segment(2, seen);
        let mut scene = Scene::new();
        scene.receive(START, &wal.bytes).await;
        scene.flush().await;
        let end = START + wal.bytes.len() as u64;
        assert_all_found(&scene.found(&[(START, end)]).await.unwrap(), &wal, START, end);
    }
}

#[tokio::test]
async fn what_is_no_wal_or_cuts_too_much_has_no_index() {
    // Given bytes that are no WAL, and WAL that cuts more relations than are listed
    let mut much = WalWriter::new(START);
    (0..600u32).for_each(|file| _ = much.main(7, 2, 0x10, &[1663, 5, file, 0].map(u32::to_le_bytes).concat()));
    for bytes in [vec![7; 20_000], much.bytes] {
        let mut scene = Scene::new();
        scene.receive(START, &bytes).await;
        scene.flush().await;
        // When the cuts are looked for, then it is known that they are not known.
        let found = scene.found(&[(START, START + bytes.len() as u64)]).await;
        assert!(matches!(found, Err(NoIndex::Missing(_))), "{found:?}");
    }
}
