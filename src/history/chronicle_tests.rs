//! A chronicle of invented records.

use super::super::search::Bound;
use super::*;
use crate::wal::{RecordWalker, SegmentSize, TimelineId};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

fn record(start: u64, xid: u32, kind: RecordKind) -> Record {
    Record { start: Lsn(start), end: Lsn(start + 8), bytes: 100, xid, top_xid: None, relation: None, kind }
}

/// A change of a row in a database.
fn change(start: u64, xid: u32) -> Record {
    let relation = Some(RelationId { tablespace: 1663, database: 5, file: 16384 });
    Record { relation, ..record(start, xid, RecordKind::Other { rmgr: HEAP, info: 0x20 }) }
}

fn commit(start: u64, xid: u32, prepared_xid: Option<u32>, subtransactions: Vec<u32>) -> Record {
    let kind = RecordKind::Commit {
        time_micros: 7,
        prepared_xid,
        dropped_relations: 0,
        dropped: Vec::new(),
        database: None,
        subtransactions,
        changed: Vec::new(),
    };
    record(start, xid, kind)
}

fn abort(start: u64, xid: u32) -> Record {
    record(start, xid, RecordKind::Abort { time_micros: 7, prepared_xid: None, subtransactions: Vec::new() })
}

fn running(start: u64, next_xid: u32, oldest_xid: u32) -> Record {
    record(start, 0, RecordKind::RunningTransactions { next_xid, oldest_xid })
}

/// A chronicle that keeps its entries where they can be seen.
fn kept() -> (Chronicle, Arc<Mutex<Vec<Entry>>>) {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let keep = entries.clone();
    let chronicle = Chronicle::new(move |entry| {
        keep.lock().unwrap().push(entry);
        ControlFlow::Continue(())
    });
    (chronicle, entries)
}

fn transactions(records: &[Record]) -> Vec<Transaction> {
    let (mut chronicle, entries) = kept();
    for record in records {
        assert!(chronicle.see(record).is_continue());
    }
    let entries = entries.lock().unwrap();
    entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Commit(transaction) => Some((**transaction).clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn records_count_for_the_transaction_that_commits_them() {
    // Given two transactions in each other, a savepoint that stays, one that is rolled back, and one that is told of early,
    let assigned = RecordKind::Subtransactions { top_xid: 10, xids: vec![14] };
    let seen = transactions(&[
        running(0, 10, 10),
        change(8, 10),
        change(16, 11),
        change(24, 12),
        change(32, 13),
        abort(40, 13),
        change(48, 14),
        record(56, 0, assigned),
        change(64, 14),
        commit(72, 11, None, vec![]),
        commit(80, 10, None, vec![12, 14]),
    ]);
    // then each has what it wrote, and no other's.
    let said: Vec<_> = seen.iter().map(|it| (it.xid, it.first.0, it.records, it.bytes, it.database)).collect();
    assert_eq!(said, [(11, 16, 2, 200, Some(5)), (10, 8, 5, 500, Some(5))]);
    assert!(seen.iter().all(|it| it.is_whole));
}

#[test]
fn what_began_before_the_walk_is_not_called_whole() {
    let seen = transactions(&[
        change(0, 10),
        running(8, 11, 10),
        commit(16, 10, None, vec![]),
        change(24, 11),
        commit(32, 11, None, vec![]),
    ]);
    assert_eq!(seen.iter().map(|it| (it.xid, it.is_whole)).collect::<Vec<_>>(), [(10, false), (11, true)]);
}

#[test]
fn a_prepared_transaction_goes_by_its_own_number() {
    let seen = transactions(&[running(0, 10, 10), change(8, 10), commit(16, 99, Some(10), vec![])]);
    let said: Vec<_> = seen.iter().map(|it| (it.xid, it.prepared, it.first.0, it.records)).collect();
    assert_eq!(said, [(10, true, 8, 2)]);
}

#[test]
fn what_a_crash_ended_is_forgotten() {
    let (mut chronicle, _) = kept();
    for record in [change(0, 10), change(8, 11), running(16, 12, 11)] {
        let _ = chronicle.see(&record);
    }
    assert_eq!(chronicle.open.keys().copied().collect::<Vec<_>>(), [11]);
    // Numbers go round.
    assert!(precedes(u32::MAX, 5) && !precedes(5, u32::MAX));
}

#[test]
fn a_dropped_database_is_there_before_it_was_marked() {
    let shared = RelationId { tablespace: GLOBAL_TABLESPACE, database: 0, file: 1262 };
    let inplace =
        |start| Record { relation: Some(shared), ..record(start, 0, RecordKind::Other { rmgr: HEAP, info: 0x70 }) };
    let seen = transactions(&[
        running(0, 10, 10),
        inplace(8),
        inplace(16),
        change(24, 10),
        inplace(32),
        record(40, 10, RecordKind::DatabaseDrop { oid: 5 }),
        commit(48, 10, None, vec![]),
        change(56, 11),
        commit(64, 11, None, vec![]),
    ]);
    assert_eq!((seen[0].before(Lsn(48)), seen[0].dropped_databases.clone()), (Lsn(16), vec![5]));
    assert_eq!(seen[1].before(Lsn(64)), Lsn(64));
}

#[test]
fn relations_that_go_are_told_from_files_that_are_replaced() {
    let class = RelationId { tablespace: 1663, database: 5, file: PG_CLASS };
    let heap =
        |start, info| Record { relation: Some(class), ..record(start, 10, RecordKind::Other { rmgr: HEAP, info }) };
    let create = |start| record(start, 10, RecordKind::RelationCreate { tablespace: 1663, database: 5, file: 9 });
    let ends = |dropped_relations| {
        let mut record = commit(90, 10, None, vec![]);
        if let RecordKind::Commit { dropped_relations: count, .. } = &mut record.kind {
            *count = dropped_relations;
        }
        record
    };
    let judged = |records: &[Record]| {
        let seen = transactions(records).remove(0);
        (seen.removes(), seen.drops_relations())
    };
    assert_eq!(judged(&[heap(8, 0x10), ends(1)]), (true, true), "DROP TABLE");
    assert_eq!(judged(&[create(8), heap(16, 0x20), ends(1)]), (true, false), "TRUNCATE");
    assert_eq!(judged(&[heap(8, 0x00), create(16), heap(24, 0x10), ends(1)]), (true, false), "VACUUM FULL");
    assert_eq!(judged(&[create(8), heap(16, 0x00), ends(0)]), (false, false), "CREATE TABLE");
    assert_eq!(judged(&[create(8), create(16), ends(1)]), (true, false), "one that moves, with two forks");
}

#[test]
fn what_is_open_is_bounded() {
    let (mut chronicle, entries) = kept();
    let _ = chronicle.see(&running(0, 1, 1));
    for xid in 1..=OPEN_MAX as u32 + 1 {
        let _ = chronicle.see(&change(8, xid));
    }
    assert_eq!(chronicle.open.len(), OPEN_MAX);
    // The one too many is told of, and that not all of it was seen.
    let _ = chronicle.see(&commit(16, OPEN_MAX as u32 + 1, None, vec![]));
    let entries = entries.lock().unwrap();
    assert!(matches!(&entries[0].event, Event::Commit(it) if it.records == 1 && !it.is_whole), "{entries:?}");
}

#[test]
fn other_things_that_happen_are_told() {
    let (mut chronicle, entries) = kept();
    let checkpoint = |previous| RecordKind::Checkpoint {
        shutdown: true,
        redo: Lsn(0),
        timeline: TimelineId(2),
        previous_timeline: TimelineId(previous),
        time_unix_seconds: 1_700_000_000,
    };
    let point = RecordKind::RestorePoint { time_micros: 7, name: "here".into() };
    for (start, kind) in [(8, checkpoint(2)), (16, point), (24, checkpoint(1))] {
        let _ = chronicle.see(&record(start, 0, kind));
    }
    let events: Vec<Event> = entries.lock().unwrap().iter().map(|entry| entry.event.clone()).collect();
    let promotion = Event::Promotion { timeline: TimelineId(2), previous_timeline: TimelineId(1) };
    assert_eq!(events, [Event::Restart, Event::RestorePoint { name: "here".into() }, promotion]);
}

/// A commit that removes a file.
fn drop_of(start: u64, xid: u32) -> Record {
    let mut dropping = commit(start, xid, None, vec![]);
    if let RecordKind::Commit { dropped_relations, .. } = &mut dropping.kind {
        *dropped_relations = 1;
    }
    dropping
}

#[test]
fn what_was_removed_is_told_once_its_transaction_was_seen_from_its_beginning() {
    let (mut chronicle, entries) = kept();
    let told = || entries.lock().unwrap().iter().map(|entry| entry.start.0).collect::<Vec<_>>();
    let records = [
        running(0, 5, 5),
        change(8, 6),
        commit(16, 6, None, vec![]),
        change(24, 7),
        running(32, 8, 7),
        drop_of(40, 3),
        change(48, 8),
        commit(56, 8, None, vec![]),
        drop_of(64, 7),
        drop_of(72, 9),
    ];
    let mut walk = |from: usize, whole_from| {
        chronicle.begin(records[from].start, whole_from);
        let broken = records[from..].iter().find(|record| chronicle.see(record).is_break());
        assert_eq!(broken.is_some(), chronicle.lacks_beginning, "nobody else stops it");
        broken.map(|record| record.start.0)
    };
    // Given a walk that begins behind the first record of transaction 7: it stops where that removes something, and not at
    // another that did before anybody asked
    assert_eq!(walk(4, Some(Lsn(70))), Some(64));
    assert_eq!(told(), [40, 56]);
    // When it begins farther in front, then it is told, and nothing twice
    assert_eq!(walk(0, Some(Lsn(70))), None);
    assert_eq!(told(), [40, 56, 64, 72]);
    // And where there is no more in front, as much as there is is enough
    assert_eq!(walk(4, None), None);
}

#[test]
fn every_transaction_is_told_from_its_beginning_if_that_is_asked_for() {
    let all = Search { from: Bound::Lsn(Lsn(0)), to: None, removals: false, whole: true };
    let records = [change(8, 6), running(16, 8, 6), commit(24, 6, None, vec![]), commit(32, 8, None, vec![])];
    for (whole, is_over) in [(true, true), (false, false)] {
        let mut chronicle = kept().0.for_search(&Search { whole, ..all });
        chronicle.begin(Lsn(8), Some(Lsn(20)));
        assert_eq!(records.iter().any(|record| chronicle.see(record).is_break()), is_over);
    }
}

#[test]
fn what_removes_a_database_is_open_until_its_commit() {
    let (mut chronicle, _) = kept();
    let _ = chronicle.see(&record(8, 7, RecordKind::DatabaseDrop { oid: 16384 }));
    assert!(chronicle.has_open_removal());
    let _ = chronicle.see(&commit(16, 7, None, vec![]));
    assert!(!chronicle.has_open_removal());
}

#[test]
fn where_the_removal_of_a_database_began_must_have_been_seen() {
    let (mut chronicle, entries) = kept();
    let start = 100 * INPLACE_BYTES_MAX;
    let mut see = |begun_at| {
        chronicle.begin(Lsn(begun_at), Some(Lsn(0)));
        let records = [
            running(start - 64, 5, 5),
            record(start, 7, RecordKind::DatabaseDrop { oid: 16384 }),
            drop_of(start + 8, 7),
        ];
        records.iter().any(|record| chronicle.see(record).is_break())
    };
    assert!(see(start - 64), "it may have been marked as invalid before that");
    assert!(!see(start - INPLACE_BYTES_MAX), "it was not");
    assert_eq!(entries.lock().unwrap().len(), 1);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bodies in prop::collection::vec((0u32..6, 0u8..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..90)), 0..60)) {
        let mut wal = crate::wal::testing::WalWriter::new(crate::wal::testing::START);
        for (xid, rmgr, info, body) in &bodies {
            wal.record(*xid, *rmgr, *info, body);
            wal.main(*xid, *rmgr, *info, body);
        }
        let (mut chronicle, _) = kept();
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut walker = RecordWalker::new(size, wal.start).with_details();
        let _ = walker.push(wal.start, &wal.bytes, &mut |record| { let _ = chronicle.see(&record); });
    }
}
