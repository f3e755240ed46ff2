//! Records: synthetic WAL of every version, cut, padded and damaged.

use super::PAGE_BYTES as PAGE;
use super::testing::{START, WalWriter, size, with_main_header};
use super::*;
use proptest::prelude::*;

/// Walks over `bytes` in pieces of the given sizes, used in turn.
fn walk(walker: &mut RecordWalker, bytes: &[u8], piece_bytes: &[usize]) -> Result<Vec<Record>, WalkError> {
    let mut records = vec![];
    let mut rest = bytes;
    for bytes in piece_bytes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, more) = rest.split_at((*bytes).min(rest.len()));
        walker.push(walker.position(), piece, &mut |record| records.push(record))?;
        rest = more;
    }
    Ok(records)
}

fn walk_all(wal: &WalWriter) -> Result<Vec<Record>, WalkError> {
    walk(&mut RecordWalker::new(size(), wal.start), &wal.bytes, &[wal.bytes.len()])
}

fn kinds(wal: &WalWriter) -> Vec<RecordKind> {
    walk_all(wal).unwrap().into_iter().map(|record| record.kind).collect()
}

/// A record of a generated stream: how many bytes of main data, and whether a switch follows.
fn shapes() -> impl Strategy<Value = Vec<(usize, bool)>> {
    let bytes = prop_oneof![8 => 0usize..400, 4 => 7_900usize..8_300, 1 => 10_000usize..60_000];
    proptest::collection::vec((bytes, proptest::bool::weighted(0.03)), 1..60)
}

fn write(shapes: &[(usize, bool)]) -> (WalWriter, Vec<Lsn>) {
    let mut wal = WalWriter::new(START);
    let mut starts = vec![];
    for (index, (bytes, switch)) in shapes.iter().enumerate() {
        // Commits and others in turn.
        let main = vec![index as u8; *bytes];
        starts.push(wal.main(index as u32, if index % 2 == 0 { 1 } else { 10 }, 0, &main));
        if *switch {
            starts.push(wal.switch());
        }
    }
    (wal, starts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn pieces_of_any_size_give_the_same_records(
        shapes in shapes(),
        piece_bytes in proptest::collection::vec(1usize..20_000, 1..12),
    ) {
        let (wal, starts) = write(&shapes);
        let whole = walk_all(&wal).unwrap();
        prop_assert_eq!(whole.iter().map(|record| record.start).collect::<Vec<_>>(), starts);
        let mut walker = RecordWalker::new(size(), START);
        let pieces = walk(&mut walker, &wal.bytes, &piece_bytes).unwrap();
        prop_assert!(pieces == whole, "the records depend on how the WAL arrives");
        prop_assert_eq!(walker.next_record_lsn(), wal.position());
        prop_assert_eq!(walker.end_of_wal(), None);
        // Byte by byte too, for as long as that is quick.
        let begin = &wal.bytes[..wal.bytes.len().min(30_000)];
        let single = walk(&mut RecordWalker::new(size(), START), begin, &[1]).unwrap();
        prop_assert!(whole.starts_with(&single), "single bytes give other records");
    }

    #[test]
    fn a_walk_may_begin_at_any_page_or_record(shapes in shapes(), which: prop::sample::Index) {
        let (wal, _) = write(&shapes);
        let whole = walk_all(&wal).unwrap();
        let record = which.get(&whole);
        let page = Lsn(record.start.0 & !(PAGE - 1));
        for start in [record.start, page] {
            // Given a switch, the pages behind it have no headers: nobody begins there.
            if whole.iter().any(|it| it.kind == RecordKind::Switch && it.start < start && start < it.end) {
                continue;
            }
            let records = walk(&mut RecordWalker::new(size(), start), &wal.bytes[(start - START) as usize..], &[4096]);
            let expected: Vec<_> = whole.iter().filter(|it| it.start >= start).cloned().collect();
            prop_assert_eq!(records.unwrap(), expected);
        }
    }

    #[test]
    fn noise_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 0..20_000),
        shapes in shapes(),
        at: prop::sample::Index,
        offset in 0u64..10_000,
    ) {
        // Bytes that never were WAL,
        let _ = walk(&mut RecordWalker::new(size(), START + offset), &noise, &[1000, 7]);
        // bodies of records of every kind that are none,
        let mut wal = WalWriter::new(START);
        for (index, body) in noise.chunks(97).enumerate() {
            let (rmgr, info) = ([1, 2, 4, 5, 8, 10][index % 6], body[0] & 0xF0);
            wal.record(index as u32, rmgr, info, body);
            wal.main(index as u32, rmgr, info | 0x80, body);
        }
        prop_assert_eq!(detailed(&wal, 1000).len(), noise.chunks(97).count() * 2);
        // and WAL that goes over into them.
        let (mut wal, _) = write(&shapes);
        let good = walk_all(&wal).unwrap();
        let from = at.index(wal.bytes.len());
        let end = (from + noise.len()).min(wal.bytes.len());
        wal.bytes[from..end].copy_from_slice(&noise[..end - from]);
        let mut seen = vec![];
        let result = RecordWalker::new(size(), START).push(START, &wal.bytes, &mut |record| seen.push(record));
        let untouched = good.iter().take_while(|record| record.end <= START + from as u64).count();
        prop_assert!(seen.len() >= untouched, "records in front of the noise are missing: {:?}", result);
        prop_assert_eq!(&seen[..untouched], &good[..untouched]);
    }

    #[test]
    fn a_flipped_bit_is_never_a_record(shapes in shapes(), at: prop::sample::Index, bit in 0u32..8) {
        let (mut wal, _) = write(&shapes);
        let good = walk_all(&wal).unwrap();
        let position = at.index(wal.bytes.len());
        wal.bytes[position] ^= 1 << bit;
        let mut seen = vec![];
        let _ = RecordWalker::new(size(), START).push(START, &wal.bytes, &mut |record| seen.push(record));
        prop_assert!(good.starts_with(&seen), "a damaged record was given out");
    }

    #[test]
    fn who_trusts_the_rest_is_told_of_the_same_records_and_of_no_damaged_one_that_is_read(
        shapes in shapes(), piece_bytes in 1usize..9_000, at: prop::sample::Index, bit in 0u32..8,
    ) {
        let (mut wal, _) = write(&shapes);
        let good = walk_all(&wal).unwrap();
        let trusting = || {
            let mut walker = RecordWalker::new(size(), START);
            walker.trust_the_rest(true);
            walker
        };
        let mut walker = trusting();
        prop_assert!(walk(&mut walker, &wal.bytes, &[piece_bytes]).unwrap() == good, "other records are given out");
        // Given a flipped bit
        let position = at.index(wal.bytes.len());
        wal.bytes[position] ^= 1 << bit;
        let mut seen = vec![];
        let _ = trusting().push(START, &wal.bytes, &mut |record| seen.push(record));
        // Then what says nothing may have it in its body; whatever says something is as it was.
        let is_read = |record: &&Record| !matches!(record.kind, RecordKind::Other { .. });
        for record in seen.iter().filter(is_read) {
            prop_assert!(good.contains(record), "{record:?} is damaged, and was given out");
        }
    }

    #[test]
    fn zeros_behind_wal_are_its_end(shapes in shapes(), piece_bytes in 1usize..9_000) {
        let (wal, _) = write(&shapes);
        let end = wal.position();
        let mut padded = wal.bytes.clone();
        padded.resize(padded.len() + 20_000, 0);
        let mut walker = RecordWalker::new(size(), START);
        let records = walk(&mut walker, &padded, &[piece_bytes]).unwrap();
        prop_assert_eq!(records, walk_all(&wal).unwrap());
        prop_assert_eq!(walker.end_of_wal(), Some(end));
        prop_assert_eq!(walker.next_record_lsn(), end);
        prop_assert_eq!(walker.position(), end + 20_000);
    }
}

/// Numbers as they stand in records.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn relation(tablespace: u32, database: u32, file: u32) -> RelationId {
    RelationId { tablespace, database, file }
}

/// All records, with all that can be known of them.
fn detailed(wal: &WalWriter, piece_bytes: usize) -> Vec<Record> {
    walk(&mut RecordWalker::new(size(), wal.start).with_details(), &wal.bytes, &[piece_bytes]).unwrap()
}

#[test]
fn ends_of_transactions_say_when_and_what_they_did() {
    // Given ends with every optional part, of a server whose statistics items have 12 bytes and of one with 16,
    for (magic, item_bytes) in [(0xD106, 12), (0xD110, 12), (0xD118, 16)] {
        let mut wal = WalWriter::new(START);
        wal.magic = magic;
        let time_micros = 1_234_567_890_123_456;
        let mut main = i64::to_le_bytes(time_micros).to_vec();
        let all = 1u32 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256;
        main.extend(words(&[all, 5, 1663]));
        main.extend(words(&[30_000]));
        main.extend((0..30_000u32).flat_map(u32::to_le_bytes));
        main.extend(words(&[3, 1663, 5, 16384, 1663, 5, 16385, 1700, 5, 16386]));
        main.extend(words(&[5]));
        main.extend(vec![9; 5 * item_bytes]);
        let (relcache, catcache) = (0xFE, 0x07);
        // One relation twice, one of another database, all of them, and what is no relation.
        main.extend(words(&[6, relcache, 5, 4711, 0, relcache, 5, 4712, 0, relcache, 5, 4711, 0]));
        main.extend(words(&[relcache, 6, 4713, 0, relcache, 5, 0, 0, catcache, 5, 4714, 0]));
        main.extend(words(&[4711]));
        main.extend_from_slice(b"the gid\0");
        main.extend_from_slice(&[3; 16]);
        wal.main(0, 1, 0x80 | 0x30, &main);
        wal.main(12, 1, 0x80 | 0x40, &main);
        wal.main(13, 1, 0x00, &99i64.to_le_bytes());
        wal.main(14, 1, 0x20, &98i64.to_le_bytes());
        // when they are walked over, then everything is found behind the rest.
        let dropped = vec![relation(1663, 5, 16384), relation(1663, 5, 16385), relation(1700, 5, 16386)];
        let expected = |subtransactions: Vec<u32>, changed: Vec<u32>| {
            let commit = RecordKind::Commit {
                time_micros,
                prepared_xid: Some(4711),
                dropped_relations: 3,
                dropped: dropped.clone(),
                database: Some(5),
                subtransactions: subtransactions.clone(),
                changed,
            };
            let abort = |time_micros, prepared_xid, subtransactions| RecordKind::Abort {
                time_micros,
                prepared_xid,
                subtransactions,
            };
            vec![
                commit,
                abort(time_micros, Some(4711), subtransactions),
                RecordKind::plain_commit(99, None),
                abort(98, None, vec![]),
            ]
        };
        assert!(kinds(&wal) == expected(vec![], vec![]), "page magic {magic:X}: {:?}", kinds(&wal));
        for piece_bytes in [1, 7, 100_000] {
            let found: Vec<_> = detailed(&wal, piece_bytes).into_iter().map(|record| record.kind).collect();
            assert!(found == expected((0..30_000).collect(), vec![4711, 4712]), "page magic {magic:X}: {found:?}");
        }
    }
}

#[test]
fn lists_of_what_a_transaction_did_are_bounded() {
    let mut wal = WalWriter::new(START);
    let count = LISTED_RELATIONS_MAX as u32 + 7;
    let mut main = 5i64.to_le_bytes().to_vec();
    main.extend(words(&[4 | 16, count]));
    (0..count).for_each(|file| main.extend(words(&[1663, 5, file])));
    main.extend(words(&[4711]));
    wal.main(0, 1, 0x80 | 0x30, &main);
    // The others are counted, and what follows them is found.
    let RecordKind::Commit { dropped_relations, dropped, prepared_xid, .. } = kinds(&wal).remove(0) else {
        panic!("no commit");
    };
    assert_eq!((dropped_relations, dropped.len(), prepared_xid), (count, LISTED_RELATIONS_MAX, Some(4711)));
    assert_eq!(dropped.last(), Some(&relation(1663, 5, LISTED_RELATIONS_MAX as u32 - 1)));
}

#[test]
fn a_record_says_what_it_is_about_if_that_is_asked_for() {
    // A block of a relation; with its image, with a hole in it, compressed with a hole, and one more block of the same.
    let block = |flags: u8, image: &[u8]| [&[0, flags, 0, 0][..], image, &words(&[1663, 5, 16384, 7])].concat();
    let image = |flags: u8, more: &[u8]| [&[4, 0, 0, 0, flags][..], more].concat();
    let same = [1, 0x80, 0, 0, 8, 0, 0, 0];
    let main = with_main_header(&[1; 300]);
    let data = [0; 4];
    // The bits for what is compressed are others before version 15.
    for (magic, compressed, plain) in [(0xD10D, 0x03, 0x05), (0xD110, 0x05, 0x03), (0xD116, 0x09, 0x03)] {
        let mut wal = WalWriter::new(START);
        wal.magic = magic;
        let top_level = [252, 77, 0, 0, 0];
        let bodies = [
            block(0, &[]),
            [&block(0x10, &image(0, &[]))[..], &data].concat(),
            [&block(0x10, &image(plain, &[]))[..], &same, &main, &data].concat(),
            [&block(0x10, &image(compressed, &[9, 0]))[..], &same, &top_level, &main, &data].concat(),
            [&[253, 1, 0][..], &top_level, &main].concat(),
            // None of these can be.
            [&same[..], &main].concat(),
            [&[100][..], &main].concat(),
            block(0x10, &image(plain, &[]))[..15].to_vec(),
            vec![],
        ];
        for body in &bodies {
            wal.record(3, 10, 0x20, body);
        }
        for piece_bytes in [1, 5, 100_000] {
            let found: Vec<_> = detailed(&wal, piece_bytes)
                .iter()
                .map(|it| (it.bytes as usize - 24, it.relation, it.top_xid))
                .collect();
            let one = Some(relation(1663, 5, 16384));
            let expected = [
                (one, None),
                (one, None),
                (one, None),
                (one, Some(77)),
                (None, Some(77)),
                (None, None),
                (None, None),
                (None, None),
                (None, None),
            ];
            let lengths = bodies.iter().map(Vec::len);
            let expected: Vec<_> = lengths.zip(expected).map(|(bytes, (one, top))| (bytes, one, top)).collect();
            assert_eq!(found, expected, "page magic {magic:X}");
        }
        // Who does not ask does not get it.
        assert!(walk_all(&wal).unwrap().iter().all(|it| it.relation.is_none() && it.top_xid.is_none()));
    }
}

#[test]
fn headers_in_front_of_the_main_data_are_passed_over() {
    let mut wal = WalWriter::new(START);
    // Replication origin, top-level transaction, main data.
    let mut body = vec![253, 1, 0, 252, 9, 0, 0, 0];
    body.extend_from_slice(&with_main_header(&5i64.to_le_bytes()));
    wal.record(1, 1, 0, &body);
    // A block reference, a length that does not fit, main data that is too short, none at all.
    wal.record(2, 1, 0, &[&[0, 0, 0, 0][..], &with_main_header(&[0; 8])].concat());
    wal.record(3, 1, 0, &[255, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    wal.main(4, 1, 0, &[0; 7]);
    wal.record(5, 1, 0, &[]);
    let mut expected = vec![RecordKind::plain_commit(5, None)];
    expected.extend(vec![RecordKind::Other { rmgr: 1, info: 0 }; 4]);
    assert_eq!(kinds(&wal), expected);
}

#[test]
fn records_that_matter_are_read() {
    let mut wal = WalWriter::new(START);
    let mut checkpoint = words(&[0x2000, 0x1, 3, 2]);
    checkpoint.resize(64, 7);
    checkpoint.extend_from_slice(&1_700_000_000i64.to_le_bytes());
    checkpoint.resize(88, 0);
    let mut point = 42i64.to_le_bytes().to_vec();
    point.extend_from_slice(b"before the upgrade");
    point.resize(72, 0);
    wal.main(0, 0, 0x10, &checkpoint);
    wal.main(0, 0, 0x00, &checkpoint);
    wal.main(0, 0, 0x70, &point);
    wal.main(0, 0, 0x90, &words(&[8, 0, 2, 1]));
    wal.main(0, 0, 0x50, &words(&[0x28, 1]));
    wal.main(0, 0, 0x60, &words(&[100, 8, 10, 0, 64, 1, 0]));
    wal.main(0, 0, 0xD0, &words(&[0x30, 1, 9, 0]));
    wal.main(1, 5, 0x00, b"\x01\x40\0\0/mnt/fast\0");
    wal.main(1, 5, 0x10, &words(&[16385]));
    wal.main(1, 4, 0x00, &words(&[5, 1663, 1, 1663]));
    wal.main(1, 4, 0x10, &words(&[6, 1664]));
    wal.main(1, 4, 0x20, &words(&[7, 1, 1663]));
    // Versions 13 and 14 drop with the number that later begins a creation.
    wal.main(1, 4, 0x10, &words(&[8, 1, 1663]));
    // The lower four bits of the flags belong to PostgreSQL's own machinery.
    wal.main(1, 2, 0x21, &words(&[10, 1663, 5, 16400, 7]));
    wal.main(1, 2, 0x10, &words(&[1663, 5, 16401, 0]));
    wal.main(0, 1, 0x50, &words(&[900, 2, 901, 902]));
    wal.main(0, 8, 0x10, &words(&[1, 0, 0, 950, 940, 949, 945]));
    let checkpoint = |shutdown| RecordKind::Checkpoint {
        shutdown,
        redo: Lsn(0x1_0000_2000),
        timeline: TimelineId(3),
        previous_timeline: TimelineId(2),
        time_unix_seconds: 1_700_000_000,
    };
    assert_eq!(
        kinds(&wal),
        [
            checkpoint(false),
            checkpoint(true),
            RecordKind::RestorePoint { time_micros: 42, name: "before the upgrade".into() },
            RecordKind::EndOfRecovery { time_micros: 8, timeline: TimelineId(2), previous_timeline: TimelineId(1) },
            RecordKind::BackupEnd { start: Lsn(0x1_0000_0028) },
            RecordKind::ParameterChange(ParameterChange {
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_xacts: 0,
                max_locks_per_xact: 64,
                wal_level: 1,
            }),
            RecordKind::OverwriteContrecord { overwritten: Lsn(0x1_0000_0030), time_micros: 9 },
            RecordKind::TablespaceCreate { oid: 16385, path: "/mnt/fast".into() },
            RecordKind::TablespaceDrop { oid: 16385 },
            RecordKind::DatabaseCreate { oid: 5, tablespace: 1663 },
            RecordKind::DatabaseCreate { oid: 6, tablespace: 1664 },
            RecordKind::DatabaseDrop { oid: 7 },
            RecordKind::DatabaseDrop { oid: 8 },
            RecordKind::Truncate { tablespace: 1663, database: 5, file: 16400, first_block: 10 },
            RecordKind::RelationCreate { tablespace: 1663, database: 5, file: 16401 },
            RecordKind::Subtransactions { top_xid: 900, xids: vec![901, 902] },
            RecordKind::RunningTransactions { next_xid: 950, oldest_xid: 940 },
        ]
    );
}

#[test]
fn between_two_records_all_before_are_known() {
    // Given records of which two cross pages
    let mut wal = WalWriter::new(START);
    let starts = [20_000, 100, 9000].map(|bytes| wal.main(1, 10, 0, &vec![1; bytes]));
    let is_between = |position: Lsn| {
        let mut walker = RecordWalker::new(size(), START);
        walker.push(START, &wal.bytes[..(position - START) as usize], &mut |_| {}).unwrap();
        walker.is_between_records()
    };
    // Then where one begins and none has begun, all are known, but for the first, before which there may be others
    assert!(!is_between(starts[0]));
    for start in [starts[1], starts[2], wal.position()] {
        assert!(is_between(start), "{start}");
    }
    for (start, bytes) in [(starts[0], 1), (starts[0], PAGE), (starts[1], 24), (starts[2], 30), (starts[2], 8500)] {
        assert!(!is_between(start + bytes), "{bytes} bytes of the record at {start}");
    }
}

#[test]
fn a_record_that_a_crash_cut_is_dropped() {
    let mut wal = WalWriter::new(START);
    let first = wal.main(1, 10, 0, &[1; 100]);
    // Given a record of which only the first page was written,
    wal.page_header(0, false);
    let cut = wal.position();
    let record = wal.encode(2, 10, 0, &with_main_header(&[2; 30_000]));
    let room = (PAGE - cut.0 % PAGE) as usize;
    wal.bytes.extend_from_slice(&record[..room]);
    // when the server goes on at the next page after a crash,
    wal.page_header(0, true);
    let main = [cut.0.to_le_bytes(), 77i64.to_le_bytes()].concat();
    let overwrite = wal.main(0, 0, 0xD0, &main);
    let last = wal.main(3, 10, 0, &[3; 100]);
    // then the cut record is not given out, and the new one names it.
    let records = walk_all(&wal).unwrap();
    assert_eq!(records.iter().map(|it| it.start).collect::<Vec<_>>(), [first, overwrite, last]);
    assert_eq!(records[1].kind, RecordKind::OverwriteContrecord { overwritten: cut, time_micros: 77 });

    // A walk that begins at such a page finds its records too.
    let page = Lsn(overwrite.0 & !(PAGE - 1));
    let mut walker = RecordWalker::new(size(), page);
    let records = walk(&mut walker, &wal.bytes[(page - START) as usize..], &[100]).unwrap();
    assert_eq!(records.iter().map(|it| it.start).collect::<Vec<_>>(), [overwrite, last]);
}

#[test]
fn a_switch_may_leave_headers_or_zeros_behind_it() {
    let mut wal = WalWriter::new(START);
    wal.main(1, 10, 0, &[1; 100]);
    let switch = wal.switch();
    let next = wal.main(2, 10, 0, &[2; 100]);
    let records = walk_all(&wal).unwrap();
    let end = START + size().bytes();
    let kind = RecordKind::Switch;
    assert_eq!(records[1], Record { start: switch, end, bytes: 24, xid: 0, top_xid: None, relation: None, kind });
    assert_eq!(records[2].start, next);
    // Whatever lies between is not looked at.
    let (from, to) = ((switch - START) as usize + 24, (end - START) as usize);
    wal.bytes[from..to].fill(0xAB);
    assert_eq!(walk_all(&wal).unwrap(), records);
}

#[test]
fn a_recycled_page_is_the_end() {
    // Given a segment whose file held older WAL, in the middle of a record that was not written wholly,
    let mut wal = WalWriter::new(START);
    let cut = wal.main(1, 10, 0, &[1; 20_000]);
    wal.bytes.truncate(PAGE as usize);
    let mut old = WalWriter::new(Lsn(START.0 - (2 << 20) + PAGE));
    old.main(9, 10, 0, &[9; 5_000]);
    wal.bytes.extend_from_slice(&old.bytes);
    // when it is walked over, then WAL ends where that record begins.
    let mut walker = RecordWalker::new(size(), START);
    assert_eq!(walk(&mut walker, &wal.bytes, &[333]).unwrap(), []);
    assert_eq!(walker.end_of_wal(), Some(cut));
}

#[test]
fn what_is_not_wal_of_a_known_server_is_refused() {
    let damaged = |offset: usize, bytes: &[u8]| {
        let mut wal = WalWriter::new(START);
        wal.main(1, 10, 0, &[1; 100]);
        wal.main(2, 10, 0, &[1; 10_000]);
        wal.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        walk_all(&wal).unwrap_err().to_string()
    };
    let second = 8192;
    let cases: [(usize, &[u8], &str); 12] = [
        (0, &[0x19, 0xD1], "the WAL page at 0/300000 begins with D119, which no known PostgreSQL version writes"),
        (2, &[0x12], "the WAL page at 0/300000 has unknown flags"),
        (2, &[0], "the WAL page at 0/300000 begins a segment without saying so"),
        (10, &[0x40], "the WAL page at 0/300000 says that it is a later page"),
        (34, &[0x20], "the WAL page at 0/300000 belongs to a cluster of another segment size"),
        (37, &[0x40], "the WAL page at 0/300000 belongs to a server built with another WAL page size"),
        (second, &[0x13], "the WAL page at 0/302000 is of another PostgreSQL version than the page before"),
        (second + 4, &[0], "the WAL page at 0/302000 is of an older timeline than the page before"),
        (second + 2, &[0], "the WAL page at 0/302000 does not go on with the record that the page before ended in"),
        (second + 16, &[1], "the WAL page at 0/302000 goes on with a record of another length"),
        (40, &[7, 0], "the WAL record at 0/300028 has an impossible length"),
        (60, &[7], "the WAL record at 0/300028 does not match its checksum"),
    ];
    for (offset, bytes, expected) in cases {
        assert_eq!(damaged(offset, bytes), expected, "for the byte at {offset}");
    }
    // The second record names the first.
    assert_eq!(damaged(40 + 128 + 8, &[0]), "the WAL record at 0/3000A8 does not name the record before it");
}

#[test]
fn bytes_out_of_place_are_refused_and_the_walk_goes_on() {
    let mut wal = WalWriter::new(START);
    wal.main(1, 10, 0, &[1; 100]);
    wal.main(2, 10, 0, &[1; 100]);
    let mut walker = RecordWalker::new(size(), START);
    let mut count = 0;
    walker.push(START, &wal.bytes[..200], &mut |_| count += 1).unwrap();
    let error = walker.push(START + 208, &wal.bytes[208..], &mut |_| count += 1).unwrap_err();
    assert_eq!(error, WalkError::NotContiguous { expected: START + 200, given: START + 208 });
    walker.push(START + 200, &wal.bytes[200..], &mut |_| count += 1).unwrap();
    assert_eq!(count, 2);
    // After a real error there is nothing to go on with.
    let error = walker.push(walker.position(), &[7; 100], &mut |_| count += 1).unwrap_err();
    assert_eq!(walker.push(walker.position(), &[0; 8], &mut |_| count += 1), Err(error));
}
