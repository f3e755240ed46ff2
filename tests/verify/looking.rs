//! What the names, lengths and documents of a repository tell.

use crate::invented::MIB;
use crate::stage::{SWITCH, Stage, assert_sound, count, found, range};
use bytes::Bytes;
use seawall::repository::{BackupDocument, BackupId, Key};
use seawall::store::{Body, Metadata};
use seawall::verify::{FindingKind, VerifyOptions};
use seawall::wal::{Lsn, TimelineId};

#[tokio::test]
async fn an_intact_repository_with_a_failover_behind_it_is_sound() {
    let stage = Stage::new().await;
    let report = stage.looked().await;
    assert_sound(&report);
    assert_eq!(report.counts.values().sum::<u64>(), 0);
    assert_eq!(report.counts.len(), FindingKind::ALL.len(), "a script finds every kind");
    assert_eq!((report.checked.backups, report.checked.timelines), (1, 2));
    assert_eq!(report.checked.objects, stage.names().await.len() as u64);
}

#[tokio::test]
async fn every_object_that_is_deleted_is_found_and_named() {
    let stage = Stage::new().await;
    let backup = &stage.document.id;
    let layout = stage.layout().clone();
    let name = |key: Key| layout.name(&key);
    // What is gone, how it shows, and under which name.
    let segment = |timeline: u32, start: u64| {
        let segment = seawall::wal::Segment::holding(TimelineId(timeline), Lsn(start), layout.segment_size());
        format!("{}{segment}", layout.wal_directory(segment))
    };
    let block = |timeline, start: u64| name(Key::Block(range(timeline, start, start + MIB)));
    let cases = [
        (stage.part(0), FindingKind::MissingObject, stage.part(0)),
        (stage.part(3), FindingKind::MissingObject, stage.part(3)),
        (stage.manifest(), FindingKind::MissingObject, stage.manifest()),
        (name(Key::BackupBegin(backup.clone())), FindingKind::MissingObject, name(Key::BackupBegin(backup.clone()))),
        (name(Key::History(TimelineId(2))), FindingKind::MissingHistory, name(Key::History(TimelineId(2)))),
        (block(1, 2 * MIB), FindingKind::Hole, segment(1, 2 * MIB)),
        (block(1, 4 * MIB), FindingKind::Hole, segment(1, 4 * MIB)),
        (block(2, 5 * MIB), FindingKind::Hole, segment(2, 5 * MIB)),
        (block(2, 7 * MIB), FindingKind::Hole, segment(2, 7 * MIB)),
        // The last, of which nothing but a heartbeat tells.
        (name(Key::Tail(range(2, 8 * MIB + 50, 8 * MIB + 400))), FindingKind::Hole, segment(2, 8 * MIB)),
    ];
    for (deleted, kind, named) in cases {
        let bytes = stage.read(&deleted).await;
        stage.delete(&deleted).await;
        let report = stage.looked().await;
        assert_eq!(found(&report), [(kind, named)], "{deleted} was deleted: {:#?}", report.findings);
        assert_eq!(count(&report, kind), 1);
        assert!(!report.is_sound && report.problems > 0);
        stage.store.create(&deleted, Body::from(Bytes::from(bytes)), Metadata::new()).await.unwrap();
        assert_sound(&stage.looked().await);
    }
}

#[tokio::test]
async fn what_a_larger_object_replaced_is_not_missed() {
    let stage = Stage::new().await;
    for superseded in [Key::Tail(range(1, 5 * MIB, 5 * MIB + 5000)), Key::Block(range(1, 5 * MIB, SWITCH))] {
        stage.delete(&stage.layout().name(&superseded)).await;
        assert_sound(&stage.looked().await);
    }
}

#[tokio::test]
async fn a_part_that_is_cut_and_wal_that_is_empty_have_the_wrong_length() {
    let stage = Stage::new().await;
    let mut cut = stage.read(&stage.part(1)).await;
    cut.truncate(cut.len() / 2);
    stage.replace(&stage.part(1), cut).await;
    let block = stage.layout().name(&Key::Block(range(2, 6 * MIB, 7 * MIB)));
    stage.replace(&block, Vec::new()).await;
    let report = stage.looked().await;
    let mut expected = [(FindingKind::WrongLength, stage.part(1)), (FindingKind::WrongLength, block)];
    expected.sort();
    assert_eq!(found(&report), expected);
}

#[tokio::test]
async fn a_bit_in_a_document_or_a_history_is_found_without_reading_more() {
    let stage = Stage::new().await;
    let backup = stage.document.id.clone();
    let history = Key::History(TimelineId(2));
    for key in [Key::BackupEnd(backup.clone()), Key::BackupBegin(backup), history] {
        let name = stage.layout().name(&key);
        let sound = stage.read(&name).await;
        let mut flipped = sound.clone();
        flipped[0] ^= 0x40;
        stage.replace(&name, flipped).await;
        let report = stage.looked().await;
        let causes = found(&report);
        assert!(causes.contains(&(FindingKind::WrongContents, name.clone())), "{name}: {:#?}", report.findings);
        stage.replace(&name, sound).await;
    }
    assert_sound(&stage.looked().await);
}

#[tokio::test]
async fn documents_under_each_others_names_are_found_to_be() {
    let stage = Stage::new().await;
    // Given a second backup, of the same parts
    let id = BackupId::parse("20200101T000000Z").unwrap();
    let document = BackupDocument { id: id.clone(), ..stage.document.clone() };
    let copy = async |from: &Key, to: &Key, bytes: Option<Vec<u8>>| {
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => stage.read(&stage.layout().name(from)).await,
        };
        let name = stage.layout().name(to);
        stage.store.create(&name, Body::from(Bytes::from(bytes)), Metadata::new()).await.unwrap();
    };
    let first = stage.document.id.clone();
    for part in &stage.document.parts {
        let (from, to) = (Key::BackupPart(first.clone(), part.name), Key::BackupPart(id.clone(), part.name));
        copy(&from, &to, None).await;
    }
    let digest = seawall::repository::ContentDigest::of_hex(&document.manifest_sha256).unwrap();
    copy(&Key::BackupManifest(first.clone(), digest), &Key::BackupManifest(id.clone(), digest), None).await;
    let begin = stage.read(&stage.layout().name(&Key::BackupBegin(first.clone()))).await;
    let begin = String::from_utf8(begin).unwrap().replace(first.as_str(), id.as_str());
    copy(&Key::Cluster, &Key::BackupBegin(id.clone()), Some(begin.into_bytes())).await;
    stage.writer.store_document(&Key::BackupEnd(id.clone()), &document).await.unwrap();
    assert_sound(&stage.looked().await);
    // When their documents change places
    let (one, other) = (stage.layout().name(&Key::BackupEnd(id)), stage.layout().name(&Key::BackupEnd(first)));
    stage.swap(&one, &other).await;
    let report = stage.looked().await;
    assert_eq!(found(&report), [(FindingKind::SwappedObject, one), (FindingKind::SwappedObject, other)]);
}

#[tokio::test]
async fn names_that_mean_nothing_are_unknown_wherever_they_are() {
    let stage = Stage::new().await;
    let block = stage.layout().name(&Key::Block(range(2, 6 * MIB, 7 * MIB)));
    let strange = [
        "main/README.txt".to_owned(),
        "main/base/notes".to_owned(),
        "main/base/20201301T000000Z/backup.json".to_owned(),
        format!("main/base/{}/extra.tar", stage.document.id),
        "main/elsewhere/deep/down".to_owned(),
        "main/open/notes".to_owned(),
        // A block in another timeline's folder.
        block.replace("wal/00000002", "wal/00000001"),
    ];
    // And what is another cluster's, or beside all of them.
    for name in strange.iter().map(String::as_str).chain(["other/cluster.json", "other/x", "top"]) {
        stage.store.create(name, Body::from(Bytes::from_static(b"x")), Metadata::new()).await.unwrap();
    }
    let report = stage.looked().await;
    let mut expected: Vec<_> = strange.into_iter().map(|name| (FindingKind::UnknownObject, name)).collect();
    expected.sort();
    assert_eq!(found(&report), expected);
    assert_eq!(count(&report, FindingKind::UnknownObject), 7);
}

#[tokio::test]
async fn a_thousand_strange_names_are_named_and_all_are_counted() {
    let stage = Stage::new().await;
    for number in 0..2_500 {
        let name = format!("main/open/strange-{number}");
        stage.store.create(&name, Body::default(), Metadata::new()).await.unwrap();
    }
    let report = stage.looked().await;
    assert_eq!((count(&report, FindingKind::UnknownObject), report.findings.len()), (2_500, 1_000));
    assert_eq!(report.problems, 2_500);
}

#[tokio::test]
async fn a_hole_is_named_by_its_ends_and_a_recorded_one_is_worth_knowing_as_long_as_no_backup_answers_it() {
    let stage = Stage::new().await;
    let hole = range(2, 6 * MIB, 7 * MIB);
    stage.delete(&stage.layout().name(&Key::Block(hole))).await;
    let report = stage.looked().await;
    let wal = report.findings.iter().find_map(|finding| finding.wal).expect("a hole");
    assert_eq!((wal.timeline, wal.start, wal.end, wal.is_recorded), (hole.timeline, hole.start, hole.end, false));
    // When it is recorded, nothing behind it can be restored
    stage.gap(hole).await;
    let report = stage.looked().await;
    let wal = report.findings.iter().find_map(|finding| finding.wal).expect("a hole");
    assert!(wal.is_recorded && !report.is_sound, "{:#?}", report.findings);
    assert_eq!(count(&report, FindingKind::BackupNotRestorable), 1, "not to the end: {:#?}", report.findings);
}

#[tokio::test]
async fn a_hole_in_front_of_all_backups_is_worth_knowing_and_no_problem() {
    let stage = Stage::new().await;
    stage.block(range(1, 0, MIB)).await;
    let report = stage.looked().await;
    let wal = report.findings.iter().find_map(|finding| finding.wal).expect("a hole");
    assert_eq!((wal.start, wal.end, wal.is_needed), (Lsn(MIB), Lsn(2 * MIB), false));
    assert!(report.is_sound && report.findings.len() == 1 && count(&report, FindingKind::Hole) == 1, "{report:#?}");
}

#[tokio::test]
async fn a_backup_that_has_begun_is_no_problem_and_one_whose_last_document_went_is() {
    let stage = Stage::new().await;
    let end = stage.layout().name(&Key::BackupEnd(stage.document.id.clone()));
    stage.delete(&end).await;
    // The manifest was stored just now: somebody may be at it.
    let report = stage.looked().await;
    let unfinished: Vec<_> =
        report.findings.iter().filter(|finding| finding.kind == FindingKind::UnfinishedBackup).collect();
    assert!(unfinished.len() == 1 && !unfinished[0].is_problem, "{:#?}", report.findings);
    assert_eq!(report.checked.leftover_objects, 5, "four parts and a manifest");
    // A day later nobody is.
    let later = seawall::runtime::Clock::system().now() + jiff::SignedDuration::from_hours(24);
    let report = stage.verified(&VerifyOptions::default(), later).await.unwrap();
    assert_eq!(found(&report), [(FindingKind::MissingObject, end)]);
}
