//! Plans and refusals on invented catalogues.

use super::choose::Choice;
use super::plan::{self, Plan, Stop, Verdict};
use super::refusal;
use super::request::{Request, Target, TargetAction};
use super::survey::{Survey, Surveyor};
use super::testing::{CatalogBuilder, MIB, at, commit, other, record};
use crate::error::{Error, Kind, Result};
use crate::history::index::Span;
use crate::repository::{BackupId, Catalog, Gap};
use crate::wal::{Lsn, Record, RecordKind, TimelineId, WalRange};
use proptest::prelude::*;

fn request(target: Target) -> Request {
    Request { target, exclusive: false, backup: None, timeline: None, action: TargetAction::Promote }
}

/// Plans as `restore::plan` does, with these records in the WAL instead of bytes.
fn plan(catalog: &Catalog, request: &Request, records: &[Record]) -> Result<Plan> {
    let choice = Choice::new("main", catalog, request, at(1_000_000))?;
    let candidates = choice.candidates()?;
    let mut certain_from = None;
    for candidate in &candidates {
        let (goal, until) = plan::goal(&choice, candidate);
        let (from, consistent) = (candidate.backup.start_lsn, candidate.backup.end_lsn);
        let mut surveyor = Surveyor::new(goal, from, consistent);
        let mut end = from;
        for record in records.iter().filter(|record| record.end <= until) {
            end = record.end;
            if surveyor.see(record).is_break() {
                break;
            }
        }
        let survey: Survey = surveyor.finish(end, until, None);
        if let Verdict::Planned(plan) = plan::conclude(&choice, candidate, &survey)? {
            return Ok(*plan);
        }
        certain_from = Some(plan::certain_from(candidate, &survey));
    }
    Err(refusal::none_reaches(&choice, &candidates, certain_from))
}

fn refused(catalog: &Catalog, request: &Request, records: &[Record]) -> String {
    let error: Error = plan(catalog, request, records).expect_err("this must be refused");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    format!("{error} | {}", error.hint_text().expect("a refusal says what can be had instead"))
}

/// One timeline; backups at 100 and 200 seconds; a commit every ten seconds from 110 on, and `end` MiB of WAL.
fn simple(end: u64) -> (Catalog, Vec<Record>) {
    let builder = CatalogBuilder::new()
        .wal(1, MIB, end)
        .backup(1, 100, MIB + 40, MIB + 1000)
        .backup(1, 200, 3 * MIB + 40, 3 * MIB + 1000)
        .build();
    // The ends of the backups.
    let mut records = vec![other(MIB + 999), other(3 * MIB + 999)];
    for n in 0..40 {
        let lsn = MIB + 2000 + n * (MIB / 4);
        records.push(other(lsn - 100));
        records.push(commit(lsn, 700 + n as u32, 110 + 10 * n as i64));
    }
    records.sort_by_key(|record| record.start);
    (builder.catalog, records)
}

#[test]
fn a_refusal_names_the_damaged_backup_that_could_do_it() {
    // Given two backups, the older of which is damaged, and a moment between them
    let (mut catalog, records) = simple(12 * MIB);
    let older = damage(&mut catalog, 0);
    let said = refused(&catalog, &request(Target::Time(at(150))), &records);
    assert!(
        said.contains("lies before the first backup") && said.contains(&format!("--backup {older} does")),
        "{said}"
    );
    // And a moment that not even that one reaches
    let said = refused(&catalog, &request(Target::Time(at(50))), &records);
    assert!(!said.contains("--backup"), "{said}");
}

/// The server found damaged pages while it was taken.
fn damage(catalog: &mut Catalog, backup: usize) -> BackupId {
    let document = catalog.backups[backup].document.as_mut().unwrap();
    document.findings.damaged = true;
    document.id.clone()
}

#[test]
fn a_damaged_backup_is_used_only_when_it_is_named() {
    // Given two backups, the newer of which is damaged
    let (mut catalog, records) = simple(12 * MIB);
    let newer = damage(&mut catalog, 1);
    // When the end is asked for, then the older one leads there
    let older = catalog.backups[0].id.clone();
    assert_eq!(plan(&catalog, &request(Target::End), &records).unwrap().backup.id, older);
    // And the newer one if it is asked for, with a note of what it is
    let by_name = Request { backup: Some(newer.clone()), ..request(Target::End) };
    let planned = plan(&catalog, &by_name, &records).unwrap();
    assert_eq!(planned.backup.id, newer);
    assert!(planned.notes.iter().any(|note| note.starts_with("damaged: ")), "{:?}", planned.notes);
    // When there is no other, then that is said, and which it is
    damage(&mut catalog, 0);
    let said = refused(&catalog, &request(Target::End), &records);
    assert!(
        said.contains("there is no sound backup")
            && said.contains("damaged on the server's disk")
            && said.contains(&format!("--backup {newer}")),
        "{said}"
    );
}

#[test]
fn a_backup_is_used_with_all_that_it_builds_on_or_not_at_all() {
    // Given a backup that builds on another
    let (mut catalog, records) = simple(12 * MIB);
    let [older, newer] = [0, 1].map(|index| catalog.backups[index].id.clone());
    catalog.backups[1].document.as_mut().unwrap().reference = Some(older.clone());
    // Then its plan names both
    let planned = plan(&catalog, &request(Target::End), &records).unwrap();
    assert_eq!((&planned.backup.id, planned.backup.builds_on.as_slice()), (&newer, &[older.clone()][..]));
    assert_eq!((planned.references.len(), planned.backup.stored_bytes), (1, 200));
    let text = planned.to_string();
    assert!(text.contains(&format!("builds on {older}, a full one")), "{text}");
    // When it builds on one that is not there, then another leads to the target, and the plan says why
    let missing = BackupId::at(at(50), 0);
    catalog.backups[1].document.as_mut().unwrap().reference = Some(missing.clone());
    let planned = plan(&catalog, &request(Target::End), &records).unwrap();
    assert_eq!(planned.backup.id, older);
    let broken = format!("backup {newer} builds on {missing}, which is not there");
    assert!(planned.notes.iter().any(|note| note.contains(&broken)), "{:?}", planned.notes);
    // And if it is named, or no other does, that is refused by the missing one's name.
    let by_name = Request { backup: Some(newer), ..request(Target::End) };
    assert!(refused(&catalog, &by_name, &records).contains(&broken));
    catalog.backups.remove(0);
    assert!(refused(&catalog, &request(Target::End), &records).contains(&broken));
}

#[test]
fn a_time_between_two_commits_becomes_the_first_ones_record() {
    let (catalog, records) = simple(12 * MIB);
    let plan = plan(&catalog, &request(Target::Time(at(345))), &records).unwrap();
    let expected = MIB + 2000 + 23 * (MIB / 4);
    assert_eq!(plan.stop, Stop::After(Span { start: Lsn(expected), end: Lsn(expected + 1) }));
    assert_eq!(plan.end_lsn, Lsn(expected + 1), "the restore sees nothing behind its target");
    assert_eq!(plan.backup.start_lsn, Lsn(3 * MIB + 40), "the newer backup");
    assert_eq!(plan.last_transaction.map(|transaction| transaction.xid), Some(723));
    assert_eq!(plan.requirements["max_connections"], 100);
    assert_eq!((plan.timeline, plan.wal[0].start), (TimelineId(1), Lsn(3 * MIB)));
    // and as many objects to fetch as hold it: these are of one MiB of WAL, and one byte each
    assert_eq!(plan.wal_stored_bytes, plan.wal_bytes.div_ceil(MIB), "{plan}");
    let text = plan.to_string();
    assert!(text.contains("transaction 723") && text.contains("consistent before the target"), "{text}");
    assert!(serde_json::to_string(&plan).unwrap().contains("\"system_identifier\":\"7\""));
}

#[test]
fn a_backup_that_ran_at_the_time_is_not_used_and_an_older_one_is() {
    // Given commits between the newer backup's beginning and the moment when it is consistent
    let (catalog, mut records) = simple(12 * MIB);
    records.retain(|record| record.start < Lsn(3 * MIB));
    records.push(commit(3 * MIB + 100, 900, 201));
    records.push(commit(3 * MIB + 200, 901, 203));
    records.push(commit(4 * MIB, 902, 220));
    // When the target lies between them, then the older backup is taken and stops exactly there
    let plan = plan(&catalog, &request(Target::Time(at(202))), &records).unwrap();
    assert_eq!(plan.backup.start_lsn, Lsn(MIB + 40));
    assert_eq!(plan.stop, Stop::After(Span { start: Lsn(3 * MIB + 100), end: Lsn(3 * MIB + 101) }));
}

#[test]
fn an_idle_stretch_behind_a_backup_ends_as_soon_as_it_is_consistent() {
    // Given nothing committed between the newer backup and 300 seconds
    let (catalog, mut records) = simple(12 * MIB);
    records.retain(|record| record.start < Lsn(3 * MIB + 1000));
    records.push(commit(4 * MIB, 902, 300));
    let plan = plan(&catalog, &request(Target::Time(at(250))), &records).unwrap();
    let end_of_backup = Span { start: Lsn(3 * MIB + 999), end: Lsn(3 * MIB + 1000) };
    assert_eq!((plan.stop, plan.end_lsn), (Stop::After(end_of_backup), end_of_backup.end));
    assert_eq!(plan.last_transaction, None);
}

#[test]
fn a_moment_before_a_backup_is_not_taken_for_one_in_it_however_wrong_our_clock_was() {
    // Given a server whose clock is a minute ahead of ours: by its own, the first backup began at 160 seconds
    let (catalog, mut records) = simple(12 * MIB);
    records.clear();
    let checkpoint = RecordKind::Checkpoint {
        shutdown: false,
        redo: Lsn(MIB + 40),
        timeline: TimelineId(1),
        previous_timeline: TimelineId(1),
        time_unix_seconds: at(160).as_second(),
    };
    records.push(record(MIB + 500, 0, checkpoint));
    records.push(other(MIB + 999));
    records.push(commit(2 * MIB, 900, 190));
    // When a time before that is asked for, then what was committed up to the backup could not be left out again
    let text = refused(&catalog, &request(Target::Time(at(150))), &records);
    assert!(text.contains("before the first backup"), "{text}");
    // and the moment that is named instead is one that can: up to two seconds behind what the checkpoint says
    assert!(text.contains(&format!("certainly be reached is {};", at(162))), "{text}");
    let plan_of = |seconds| plan(&catalog, &request(Target::Time(at(seconds))), &records);
    assert_eq!(plan_of(162).unwrap().stop, plan_of(180).unwrap().stop);
    // And one behind it is fine.
    let plan = plan(&catalog, &request(Target::Time(at(180))), &records).unwrap();
    assert_eq!(plan.stop, Stop::After(Span { start: Lsn(MIB + 999), end: Lsn(MIB + 1000) }));
}

#[test]
fn a_time_behind_the_last_commit_needs_a_proof_that_nothing_more_was_done() {
    let (mut catalog, records) = simple(12 * MIB);
    // Given commits up to 500 seconds: that very moment can be had, and nothing later
    let last = Lsn(MIB + 2000 + 39 * (MIB / 4));
    let found = plan(&catalog, &request(Target::Time(at(500))), &records).unwrap();
    assert_eq!(found.stop, Stop::After(Span { start: last, end: last + 1 }));
    let text = refused(&catalog, &request(Target::Time(at(600))), &records);
    assert!(text.contains("not archived") && text.contains(&at(500).to_string()), "{text}");
    // When a heartbeat says that the server had no more WAL at 900 seconds, then an idle moment is one like any other
    catalog.heartbeats.push((at(900), TimelineId(1), last + 1));
    let idle = plan(&catalog, &request(Target::Time(at(600))), &records).unwrap();
    assert_eq!(idle.stop, found.stop);
    refused(&catalog, &request(Target::Time(at(901))), &records);
    // But one whose WAL is not stored proves nothing.
    catalog.heartbeats.push((at(950), TimelineId(1), Lsn(13 * MIB)));
    refused(&catalog, &request(Target::Time(at(901))), &records);
}

#[test]
fn the_newest_moment_is_reached_and_said_to_be_one_of_which_more_may_come() {
    let (mut catalog, mut records) = simple(12 * MIB);
    let is_warned = |plan: &Plan| plan.notes.iter().any(|note| note.contains("may still be on its way"));
    let planned = |catalog: &Catalog, records: &[Record], seconds| {
        plan(catalog, &request(Target::Time(at(seconds))), records).unwrap()
    };
    // Given commits up to 500 seconds, when that very moment is asked for, then the last one is kept: it is not later
    let last = Lsn(MIB + 2000 + 39 * (MIB / 4));
    let newest = planned(&catalog, &records, 500);
    assert_eq!((newest.last_transaction.map(|it| it.xid), newest.end_lsn), (Some(739), last + 1));
    // and that of the same microsecond another may come is said,
    assert!(is_warned(&newest), "{:?}", newest.notes);
    // which PostgreSQL would keep as well, had it been archived: one that is dated the same, or before
    records.extend([commit(last.0 + 10, 740, 500), commit(last.0 + 20, 741, 499)]);
    let more = planned(&catalog, &records, 500);
    assert_eq!(more.last_transaction.map(|it| it.xid), Some(741));
    assert!(is_warned(&more), "{:?}", more.notes);
    // When a later one is archived, then that moment is settled
    records.push(commit(last.0 + 30, 742, 501));
    let settled = planned(&catalog, &records, 500);
    assert_eq!((settled.stop, is_warned(&settled)), (more.stop, false));
    // And so is an idle one well before the last sign of life, but not the moment of that
    catalog.heartbeats.push((at(900), TimelineId(1), last + 31));
    assert!(!is_warned(&planned(&catalog, &records, 890)) && is_warned(&planned(&catalog, &records, 900)));
}

#[test]
fn what_lies_before_the_first_backup_is_refused_with_the_first_moment_that_can_be_had() {
    let (catalog, records) = simple(12 * MIB);
    for target in [Target::Time(at(50)), Target::Lsn(Lsn(MIB + 500))] {
        let text = refused(&catalog, &request(target), &records);
        assert!(text.contains("before the first backup") && text.contains("0/1003E8"), "{text}");
    }
    // While the first backup ran: its WAL tells, not its dates.
    let mut records = records;
    records.insert(0, commit(MIB + 500, 600, 105));
    assert!(records.is_sorted_by_key(|record| record.start));
    let text = refused(&catalog, &request(Target::Time(at(104))), &records);
    assert!(text.contains("before the first backup") && text.contains(&at(110).to_string()), "{text}");
}

#[test]
fn the_future_is_refused() {
    let (catalog, records) = simple(12 * MIB);
    let text = refused(&catalog, &request(Target::Time(at(1_000_001))), &records);
    assert!(text.contains("in the future"), "{text}");
}

#[test]
fn a_hole_that_retention_made_is_not_passed_off_as_the_end() {
    // Given an old backup that keeps its own WAL, and a damaged one behind what was deleted
    let catalog = CatalogBuilder::new()
        .wal(1, MIB, 5 * MIB)
        .wal(1, 6 * MIB, 12 * MIB)
        .backup(1, 100, MIB + 40, MIB + 1000)
        .backup(1, 400, 8 * MIB + 40, 8 * MIB + 1000)
        .build();
    let mut catalog = catalog.catalog;
    catalog.pruned.push(WalRange { timeline: TimelineId(1), start: Lsn(5 * MIB), end: Lsn(6 * MIB) });
    let newest = catalog.backups.last_mut().and_then(|entry| entry.document.as_mut()).unwrap();
    newest.findings.damaged = true;
    let old = catalog.backups[0].id.clone();
    let (_, records) = simple(12 * MIB);
    // Then the end is refused, and whoever asks for that backup is told how far it leads
    let text = refused(&catalog, &request(Target::End), &records);
    assert!(text.contains("deleted by retention"), "{text}");
    let asked = Request { backup: Some(old), ..request(Target::End) };
    let notes = plan(&catalog, &asked, &records).unwrap().notes.join("; ");
    assert!(notes.contains("deleted by retention") && !notes.contains("never acknowledged"), "{notes}");
}

#[test]
fn a_moment_in_a_hole_is_refused_with_both_its_sides() {
    // Given WAL lost from 5 to 6 MiB, and a backup behind it
    let catalog = CatalogBuilder::new()
        .wal(1, MIB, 5 * MIB)
        .wal(1, 6 * MIB, 12 * MIB)
        .backup(1, 100, MIB + 40, MIB + 1000)
        .backup(1, 400, 8 * MIB + 40, 8 * MIB + 1000)
        .build();
    let mut catalog = catalog.catalog;
    catalog.gaps.push(Gap { range: WalRange { timeline: TimelineId(1), start: Lsn(5 * MIB), end: Lsn(6 * MIB) } });
    let (_, records) = simple(12 * MIB);
    let text = refused(&catalog, &request(Target::Time(at(300))), &records);
    assert!(text.contains("0/500000 to 0/600000") && text.contains("recorded as lost"), "{text}");
    assert!(text.contains(&at(260).to_string()) && text.contains(&at(412).to_string()), "both sides: {text}");
    let text = refused(&catalog, &request(Target::Lsn(Lsn(7 * MIB))), &records);
    assert!(text.contains("recorded as lost") && text.contains("0/500000 --to-exclusive"), "{text}");
    // Both sides can be had.
    assert!(plan(&catalog, &request(Target::Time(at(250))), &records).is_ok());
    let exclusive = Request { exclusive: true, ..request(Target::Lsn(Lsn(5 * MIB))) };
    assert!(plan(&catalog, &exclusive, &records).is_ok(), "as the refusal says");
    assert!(plan(&catalog, &request(Target::End), &records).is_ok());
    // With a damaged one behind the hole, only that one leads there.
    let behind = damage(&mut catalog, 1);
    let text = refused(&catalog, &request(Target::End), &records);
    assert!(text.contains(&format!("only a damaged backup: --backup {behind}")), "{text}");
    // Without a backup behind the hole, the end cannot be had either.
    catalog.backups.pop();
    let text = refused(&catalog, &request(Target::End), &records);
    assert!(text.contains("No backup was taken behind the hole"), "{text}");
}

#[test]
fn the_end_is_that_of_the_gap_free_run_when_only_what_was_never_acknowledged_lies_behind() {
    let catalog = CatalogBuilder::new()
        .wal(1, MIB, 5 * MIB)
        .wal(1, 6 * MIB, 7 * MIB)
        .backup(1, 100, MIB + 40, MIB + 1000)
        .build()
        .catalog;
    let (_, records) = simple(12 * MIB);
    let plan = plan(&catalog, &request(Target::End), &records).unwrap();
    assert!(plan.end_lsn <= Lsn(5 * MIB), "{}", plan.end_lsn);
    assert!(plan.notes[0].contains("0/500000") && plan.notes[0].contains("0/600000"), "{:?}", plan.notes);
}

#[test]
fn an_lsn_is_reached_by_the_first_record_at_it_or_refused_when_not_archived() {
    let (catalog, records) = simple(12 * MIB);
    let plan = |target, exclusive| plan(&catalog, &Request { exclusive, ..request(target) }, &records);
    let commit = MIB + 2000 + 20 * (MIB / 4);
    let span = |start| Stop::After(Span { start: Lsn(start), end: Lsn(start + 1) });
    assert_eq!(plan(Target::Lsn(Lsn(commit - 50)), false).unwrap().stop, span(commit));
    assert_eq!(plan(Target::Lsn(Lsn(commit)), true).unwrap().stop, span(commit - 100));
    let text = refused(&catalog, &request(Target::Lsn(Lsn(13 * MIB))), &records);
    assert!(text.contains("not archived") && text.contains("0/C00000"), "{text}");
    // Stored, but no record begins there: as pg_current_wal_lsn() on an idle server.
    let last = MIB + 2000 + 39 * (MIB / 4);
    let text = refused(&catalog, &request(Target::Lsn(Lsn(last + 1))), &records);
    assert!(text.contains("--to-exclusive"), "{text}");
    assert_eq!(plan(Target::Lsn(Lsn(last + 1)), true).unwrap().stop, span(last), "as the refusal says");
}

#[test]
fn transactions_are_looked_for_from_one_backup_after_the_other() {
    let (catalog, records) = simple(12 * MIB);
    let newer = plan(&catalog, &request(Target::Xid(730)), &records).unwrap();
    assert_eq!(newer.backup.start_lsn, Lsn(3 * MIB + 40));
    let older = plan(&catalog, &request(Target::Xid(703)), &records).unwrap();
    assert_eq!(older.backup.start_lsn, Lsn(MIB + 40));
    assert!(older.end_lsn < Lsn(3 * MIB));
    let text = refused(&catalog, &request(Target::Xid(9)), &records);
    assert!(text.contains("transaction 9"), "{text}");
    let text = refused(&catalog, &request(Target::Name("missing".into())), &records);
    assert!(text.contains("\"missing\""), "{text}");
}

/// Timeline 2 left 1 at 4.5 MiB; 1 went on (a dead branch), and so did 2.
fn forked() -> Catalog {
    CatalogBuilder::new()
        .wal(1, MIB, 8 * MIB)
        .wal(2, 4 * MIB, 9 * MIB)
        .history(2, "1\t0/480000\tno recovery target specified\n")
        .backup(1, 100, MIB + 40, MIB + 1000)
        .backup(1, 300, 6 * MIB + 40, 6 * MIB + 1000)
        .build()
        .catalog
}

#[test]
fn the_path_is_the_line_that_the_archiver_last_followed_or_the_one_asked_for() {
    let catalog = forked();
    let records: Vec<Record> = (0..20).map(|n| other(2 * MIB + n * (MIB / 4))).collect();
    let plan_on = |timeline: Option<u32>| {
        let timeline = timeline.map(TimelineId);
        plan(&catalog, &Request { timeline, ..request(Target::End) }, &records).unwrap()
    };
    let followed = plan_on(None);
    assert_eq!((followed.timeline, followed.path.len()), (TimelineId(2), 2));
    assert_eq!(followed.backup.start_lsn, Lsn(MIB + 40), "the backup on the dead branch is not on the path");
    assert_eq!(followed.wal[1].start, Lsn(4 * MIB), "the switch segment is the child's");
    let dead = plan_on(Some(1));
    assert_eq!((dead.timeline, dead.backup.start_lsn), (TimelineId(1), Lsn(6 * MIB + 40)));
}

#[test]
fn a_moment_before_a_switch_is_recovered_to_on_the_timeline_that_has_it() {
    let catalog = forked();
    let records: Vec<Record> = (0..20).map(|n| other(2 * MIB + n * (MIB / 4))).collect();
    let planned = |catalog: &Catalog, lsn| plan(catalog, &request(Target::Lsn(Lsn(lsn))), &records).unwrap();
    let before = planned(&catalog, 4 * MIB);
    assert_eq!((before.timeline, before.path.len(), before.path[0].switch), (TimelineId(1), 1, None));
    assert!(before.wal.iter().all(|range| range.timeline == TimelineId(1)), "{before}");
    let behind = planned(&catalog, 5 * MIB);
    assert_eq!((behind.timeline, behind.path.len()), (TimelineId(2), 2));
    // Where only the child has the segment with the switch point, recovery needs that
    let built = CatalogBuilder::new().wal(1, MIB, 4 * MIB).wal(2, 4 * MIB, 9 * MIB);
    let built = built.history(2, "1\t0/480000\tno recovery target specified\n").backup(1, 100, MIB + 40, MIB + 1000);
    assert_eq!(planned(&built.build().catalog, 4 * MIB).timeline, TimelineId(2));
}

#[test]
fn from_its_history_on_a_timeline_is_followed_however_late_its_parents_dead_branch_was_stored() {
    // Given a dead branch whose last bytes came after those of the timeline that is followed
    let mut catalog = CatalogBuilder::new()
        .wal(2, 4 * MIB, 9 * MIB)
        .wal(1, MIB, 8 * MIB)
        .history(2, "1\t0/480000\tno recovery target specified\n")
        .backup(1, 100, MIB + 40, MIB + 1000)
        .build()
        .catalog;
    let records: Vec<Record> = (0..20).map(|n| other(2 * MIB + n * (MIB / 4))).collect();
    let followed = plan(&catalog, &request(Target::End), &records).unwrap();
    assert_eq!((followed.timeline, followed.path.len()), (TimelineId(2), 2));
    // and of which nothing but the history is stored: then the branch ends at the switch point
    catalog.coverage.remove(&TimelineId(2));
    let followed = plan(&catalog, &request(Target::End), &records).unwrap();
    assert_eq!(followed.timeline, TimelineId(1));
    assert!(followed.end_lsn <= Lsn(0x48_0000), "{followed}");
    let asked = plan(&catalog, &Request { timeline: Some(TimelineId(1)), ..request(Target::End) }, &records).unwrap();
    assert!(asked.end_lsn > Lsn(0x48_0000), "{asked}");
}

#[test]
fn names_that_are_not_known_are_refused_with_those_that_are() {
    let catalog = forked();
    let text = refused(&catalog, &Request { timeline: Some(TimelineId(9)), ..request(Target::End) }, &[]);
    assert!(text.contains("timeline 9") && text.contains("1, 2"), "{text}");
    let id = BackupId::at(at(1), 0);
    let text = refused(&catalog, &Request { backup: Some(id), ..request(Target::End) }, &[]);
    assert!(text.contains("not in the repository") && text.contains("20261120T000140Z"), "{text}");
    // A backup of the dead branch, without saying so.
    let id = catalog.backups[1].id.clone();
    let text = refused(&catalog, &Request { backup: Some(id), ..request(Target::End) }, &[]);
    assert!(text.contains("not on the path") && text.contains("--timeline 1"), "{text}");
    // No backup at all.
    let empty = CatalogBuilder::new().wal(1, MIB, 2 * MIB).build().catalog;
    let text = refused(&empty, &request(Target::End), &[]);
    assert!(text.contains("no finished backup"), "{text}");
    let nothing = CatalogBuilder::new().build().catalog;
    let text = refused(&nothing, &request(Target::End), &[]);
    assert!(text.contains("no WAL"), "{text}");
}

#[test]
fn a_named_backup_that_is_too_new_is_refused_and_an_older_one_is_suggested() {
    let (catalog, records) = simple(12 * MIB);
    let backup = Some(catalog.backups[1].id.clone());
    let text = refused(&catalog, &Request { backup, ..request(Target::Time(at(150))) }, &records);
    assert!(text.contains("Leave --backup out"), "{text}");
}

#[test]
fn a_missing_history_is_damage() {
    let mut catalog = forked();
    catalog.histories.clear();
    let error = plan(&catalog, &request(Target::End), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("00000002.history"), "{error}");
}

#[test]
fn a_backup_whose_own_wal_is_missing_is_refused() {
    let catalog = CatalogBuilder::new()
        .wal(1, MIB, 2 * MIB)
        .wal(1, 3 * MIB, 9 * MIB)
        .backup(1, 100, MIB + 40, 4 * MIB)
        .build()
        .catalog;
    let text = refused(&catalog, &request(Target::End), &[]);
    assert!(text.contains("cannot become consistent") && text.contains("0/200000"), "{text}");
}

proptest! {
    /// Whatever is asked for: a plan has exactly the transactions that the target means, or there is none.
    #[test]
    fn a_planned_time_has_exactly_what_was_committed_before_the_first_later_one(
        times in prop::collection::vec(0i64..400, 1..40), target in 0i64..500, exclusive: bool, backup_at in 0usize..40,
    ) {
        let lsn = |n: usize| MIB + 2000 + n as u64 * 1000;
        let consistent = lsn(backup_at.min(times.len())) - 500;
        let catalog = CatalogBuilder::new().wal(1, MIB, 2 * MIB).backup(1, -1000, MIB + 40, consistent).build().catalog;
        let commits = times.iter().enumerate().map(|(n, time)| commit(lsn(n), n as u32, *time));
        let mut records: Vec<Record> = commits.chain([other(consistent - 1)]).collect();
        records.sort_by_key(|record| record.start);
        let late = |time: i64| time > target || (exclusive && time == target);
        let expected = times.iter().position(|time| late(*time)).unwrap_or(times.len());
        let request = Request { exclusive, ..request(Target::Time(at(target))) };
        match plan(&catalog, &request, &records) {
            Ok(plan) => {
                let is_commit = |record: &&Record| matches!(record.kind, RecordKind::Commit { .. });
                let replayed = records.iter().filter(is_commit).filter(|record| record.end <= plan.end_lsn).count();
                prop_assert_eq!(replayed.max(expected), expected, "too much");
                prop_assert_eq!(replayed, expected, "too little");
                prop_assert!(plan.end_lsn >= Lsn(consistent));
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), Kind::Refused);
                let too_early = expected < times.len() && Lsn(lsn(expected)) < Lsn(consistent);
                let unproven = expected == times.len() && times.iter().all(|time| *time < target);
                prop_assert!(too_early || unproven, "{}", error);
            }
        }
    }
}

#[test]
fn a_standby_follows_to_the_end_and_only_where_the_archiver_went() {
    let follow = Request { action: TargetAction::Follow, ..request(Target::End) };
    let (catalog, records) = simple(12 * MIB);
    let planned = plan(&catalog, &follow, &records).unwrap();
    assert!(planned.to_string().contains("follows the archive as a standby"), "{planned}");
    // It stops nowhere.
    for request in [
        Request { target: Target::Time(at(150)), ..follow.clone() },
        Request { timeline: Some(TimelineId(1)), ..follow.clone() },
    ] {
        assert_eq!(plan(&catalog, &request, &records).unwrap_err().kind(), Kind::Usage);
    }
    // Given a timeline 2 that the archive follows, and a timeline 3 that left timeline 1
    let catalog = CatalogBuilder::new()
        .wal(1, MIB, 6 * MIB)
        .wal(2, 5 * MIB, 12 * MIB)
        .backup(1, 100, MIB + 40, MIB + 1000)
        .history(2, "1\t0/580000\tx\n")
        .build()
        .catalog;
    assert!(plan(&catalog, &follow, &records).is_ok());
    let mut forked = catalog;
    let text = b"1\t0/200000\tx\n";
    forked.histories.insert(TimelineId(3), crate::wal::History::parse(TimelineId(3), text).unwrap());
    let said = refused(&forked, &follow, &records);
    assert!(said.contains("on to timeline 3") && said.contains("follows timeline 2"), "{said}");
}
