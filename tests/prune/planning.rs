//! Plans over random repositories and policies.

use crate::promises::{Promise, inventory, is_restorable, planned};
use crate::world::{Event, World, run};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use seawall::repository::{BackupId, Key, is_permanent};
use seawall::retention::{Ages, Doomed, Group, Inventory, Period, Plan, Policy, Step, after, plan, prove};
use seawall::store::list_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) fn events() -> impl Strategy<Value = Vec<(u8, Event)>> {
    let event = prop_oneof![
        4 => (1u8..6).prop_map(Event::Wal),
        4 => Just(Event::Full),
        4 => Just(Event::Incremental),
        1 => Just(Event::IncrementalOnLast),
        1 => any::<bool>().prop_map(|damaged| Event::Bad { damaged }),
        1 => Just(Event::Unfinished),
        2 => any::<bool>().prop_map(|dead| Event::Failover { dead }),
        1 => Just(Event::Gap),
        2 => Just(Event::Idle),
        1 => Just(Event::Keep),
        1 => Just(Event::Reports),
    ];
    prop::collection::vec((1u8..120, event), 3..22)
}

pub(crate) fn policies() -> impl Strategy<Value = Policy> {
    let days = |range: std::ops::Range<i64>| range.prop_map(|days| SignedDuration::from_hours(24 * days));
    let calendar =
        prop::collection::vec((prop_oneof![Just(Period::Day), Just(Period::Week), Just(Period::Month)], 0u32..5), 0..3);
    let full = prop::option::of(1u32..4);
    let age = prop::option::of(days(1..40));
    let wal = prop::option::of(days(1..30));
    (full, age, calendar, wal, days(1..9)).prop_map(|(full, age, calendar, wal, minimum_window)| {
        let mut policy = Policy { full, age, wal, minimum_window, ..Policy::default() };
        calendar.into_iter().for_each(|(period, count)| policy.set_period(period, count));
        policy
    })
}

#[test]
fn whatever_is_stored_and_whatever_the_policy_no_promised_window_loses_anything() {
    static DELETING: AtomicUsize = AtomicUsize::new(0);
    static OF_BACKUPS: AtomicUsize = AtomicUsize::new(0);
    // More of them with PROPTEST_CASES.
    let config = ProptestConfig::default();
    let cases = config.cases as usize;
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&(events(), policies()), |(events, policy)| {
            run(async {
                // Given a repository of weeks, and what the policy promises of it
                let world = World::of(&events).await;
                let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
                let promise = Promise::of(&world, &inventory, &policy);
                // When it is pruned, then everything promised is there, with all that it builds on
                let left = after(&inventory, &plan);
                prop_assert_eq!(promise.broken(&left), None);
                for backup in left.finished_backups() {
                    prop_assert_eq!(left.chain(backup).is_ok(), inventory.catalog.chain(backup).is_ok());
                }
                // And what somebody may be at is as it was
                for begun in &plan.selection.begun {
                    prop_assert!(left.backups.iter().any(|entry| entry.id == *begun));
                }
                // And what is locked stays, without taking anything from what is promised
                let locked = Policy { locked: Some(SignedDuration::from_hours(15 * 24)), ..policy.clone() };
                let (_, careful) = planned(&world, &locked, world.clock.now()).await;
                prop_assert_eq!(promise.broken(&after(&inventory, &careful)), None);
                prop_assert_eq!(locked_and_doomed(&world, &inventory, &careful).await, Vec::<String>::new());
                prop_assert!(careful.doomed_backups().is_subset(&plan.doomed_backups()));
                DELETING.fetch_add(usize::from(plan.doomed_objects().next().is_some()), Ordering::Relaxed);
                OF_BACKUPS.fetch_add(usize::from(!plan.doomed_backups().is_empty()), Ordering::Relaxed);
                Ok(())
            })
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    // And plans are not kept safe by being empty.
    let (deleting, of_backups) = (DELETING.load(Ordering::Relaxed), OF_BACKUPS.load(Ordering::Relaxed));
    let is_enough = deleting > cases / 3 && of_backups > cases / 8;
    assert!(is_enough, "of {cases} plans {deleting} delete anything, and {of_backups} a backup");
}

/// Objects that a plan deletes though they were stored in the last fifteen days. Those below `open/` are never locked.
async fn locked_and_doomed(world: &World, inventory: &Inventory, plan: &Plan) -> Vec<String> {
    let ages = Ages::of(inventory, SignedDuration::from_hours(24), world.clock.now());
    let locked_from = ages.ago(SignedDuration::from_hours(15 * 24));
    let mut doomed: BTreeSet<String> = plan.doomed_objects().map(|object| object.name.clone()).collect();
    let stored = list_all(&world.store, "").await.unwrap();
    for id in plan.doomed_backups() {
        let folder = world.repository.layout.backup_prefix(&id);
        doomed.extend(stored.iter().map(|object| object.key.clone()).filter(|name| name.starts_with(&folder)));
    }
    let young = stored.into_iter().filter(|object| object.modified > locked_from && is_permanent(&object.key));
    young.map(|object| object.key).filter(|name| doomed.contains(name)).collect()
}

/// A full backup every day, an incremental one twelve hours later, and WAL between them.
async fn daily(days: u8) -> World {
    let mut events = Vec::new();
    for _ in 0..days {
        events.extend([(5, Event::Full), (5, Event::Wal(4)), (5, Event::Incremental), (5, Event::Wal(4))]);
    }
    World::of(&events).await
}

#[test]
fn by_count_exactly_so_many_stay_and_the_wal_from_the_first_of_them_on() {
    run(async {
        let world = daily(20).await;
        let policy = Policy { full: Some(9), minimum_window: SignedDuration::from_hours(24), ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        let left = after(&inventory, &plan);
        let full: Vec<_> = left.finished_backups().filter(|backup| backup.reference.is_none()).collect();
        assert_eq!((full.len(), left.finished_backups().count()), (9, 18));
        let first = inventory.size.segment_start(full[0].start_lsn);
        assert_eq!(left.coverage.values().next().unwrap().objects()[0].range.start, first);
        // And once that is done there is nothing left to do.
        assert!(plan.frees().0 > 50, "{:?}", plan.frees());
    });
}

#[test]
fn what_is_locked_stays_with_what_it_needs_until_its_days_are_over() {
    run(async {
        // Given twenty days of backups, of which one is asked for, and locks of eight days
        let world = daily(20).await;
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        let policy = Policy { full: Some(1), minimum_window: days(1), ..Policy::default() };
        let (_, free) = planned(&world, &policy, world.clock.now()).await;
        let policy = Policy { locked: Some(days(8)), ..policy };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        // Then the backups of eight days stay, and say why
        let staying = |plan: &Plan| plan.selection.finished.len();
        assert!(staying(&free) < 5 && (15..=18).contains(&staying(&plan)), "{} {}", staying(&free), staying(&plan));
        let is_said = |group: &Group| !group.goes && group.reason.contains("locked until ");
        assert!(plan.groups.iter().filter(|group| is_said(group)).count() >= 14, "{:#?}", plan.groups);
        // And each of them restores, with all that it builds on
        let left = after(&inventory, &plan);
        for backup in left.finished_backups() {
            assert!(left.chain(backup).is_ok() && is_restorable(&left, backup), "{}", backup.id);
        }
    });
}

#[test]
fn without_a_rule_nothing_but_garbage_goes() {
    run(async {
        let mut world = daily(20).await;
        world.happen(&Event::Reports).await;
        let (inventory, plan) = planned(&world, &Policy::default(), world.clock.now()).await;
        let left = after(&inventory, &plan);
        assert_eq!(left.backups, inventory.catalog.backups);
        for (timeline, coverage) in &left.coverage {
            assert_eq!(coverage.runs(), inventory.catalog.coverage[timeline].runs());
        }
        let goes = |object: &str| object.contains("/open/") || object.contains("/base/");
        assert!(plan.doomed_objects().all(|object| goes(&object.name)), "{:?}", plan.groups);
        assert!(plan.doomed_objects().any(|object| object.name.contains("/base/")), "leftovers");
        assert!(plan.doomed_objects().any(|object| object.name.contains("/open/")), "tails");
    });
}

#[test]
fn a_shorter_window_of_wal_leaves_older_backups_what_makes_them_consistent() {
    run(async {
        let world = daily(30).await;
        let wal = Some(SignedDuration::from_hours(5 * 24));
        let policy =
            Policy { full: Some(20), wal, minimum_window: SignedDuration::from_hours(48), ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        let left = after(&inventory, &plan);
        let oldest = left.finished_backups().next().unwrap();
        let runs = left.coverage.values().next().unwrap().runs();
        assert!(runs.len() > 5, "WAL between old backups is gone: {runs:?}");
        assert!(is_restorable(&left, oldest), "and each can be restored");
        let notes = plan.steps.iter().filter(|step| matches!(step, Step::Note(_))).count();
        assert_eq!(notes, runs.len() - 1, "each hole is noted, for whoever verifies");
    });
}

#[test]
fn a_clock_that_jumps_ahead_makes_nothing_old() {
    run(async {
        let world = daily(20).await;
        let policy = Policy { full: Some(1), age: Some(SignedDuration::from_hours(10 * 24)), ..Policy::default() };
        let (inventory, now) = (inventory(&world.repository).await, world.clock.now());
        let today = plan(&inventory, &policy, &TimeZone::UTC, now);
        assert!(today.doomed_backups().len() > 10);
        // When the clock of whoever prunes is years ahead, or behind, then no more goes than before
        for jumped in ["2031-01-01T00:00:00Z", "2199-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
            let jumped: Timestamp = jumped.parse().unwrap();
            let plan = plan(&inventory, &policy, &TimeZone::UTC, jumped);
            prove(&world.repository.layout, &inventory, &plan, &policy, jumped).unwrap();
            assert!(plan.doomed_backups().is_subset(&today.doomed_backups()), "at {jumped}");
        }
        // And when the store's clock and everybody's jump, the floor is what was archived in seven days of work.
        let mut world = world;
        tokio::time::advance(std::time::Duration::from_secs(5 * 365 * 86_400)).await;
        world.happen(&Event::Full).await;
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        let left = after(&inventory, &plan);
        let staying = left.finished_backups().count();
        assert!((12..20).contains(&staying), "the new one, and those of the last week before the jump: {staying}");
    });
}

#[test]
fn a_server_that_is_dead_loses_nothing_to_the_prunes_that_go_on() {
    run(async {
        // Given a server that has been dead for a month, and somebody who prunes, drills and marks every day
        let mut world = daily(20).await;
        let policy = Policy { full: Some(1), age: Some(SignedDuration::from_hours(10 * 24)), ..Policy::default() };
        let (_, before) = planned(&world, &policy, world.clock.now()).await;
        for _ in 0..30 {
            tokio::time::advance(std::time::Duration::from_secs(86_400)).await;
            world.report().await;
        }
        // Then no more goes than on the day on which it died
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert_eq!(plan.doomed_backups(), before.doomed_backups());
        assert_eq!(inventory.unknown, Vec::<String>::new(), "and every name is known, those of the audit trail too");
    });
}

#[test]
fn a_lease_stays_however_old_it_is() {
    run(async {
        let mut world = daily(20).await;
        // Given a lease whose holder died long ago, beside garbage that is as old
        let keys = [Key::Lease(7), Key::Probe("a7".to_owned())];
        let names = keys.map(|key| world.repository.layout.name(&key));
        for name in &names {
            let body = bytes::Bytes::from_static(b"{}").into();
            world.repository.store.create(name, body, Default::default()).await.unwrap();
        }
        for _ in 0..72 {
            tokio::time::advance(std::time::Duration::from_secs(3600)).await;
            world.happen(&Event::Wal(1)).await;
        }
        // When it is pruned, then the garbage goes, and the lease, by whose number the next one is known, stays
        let policy = Policy { full: Some(1), ..Policy::default() };
        let (_, plan) = planned(&world, &policy, world.clock.now()).await;
        let goes = |name: &String| plan.doomed_objects().any(|doomed| doomed.name == *name);
        assert_eq!(names.each_ref().map(goes), [false, true]);
    });
}

#[test]
fn backups_that_do_not_count_never_push_out_a_good_one() {
    run(async {
        // Given one good backup, and a month of damaged and suspect ones
        let mut events = vec![(5, Event::Full)];
        for _ in 0..30 {
            events.extend([
                (12, Event::Bad { damaged: true }),
                (12, Event::Wal(3)),
                (6, Event::Bad { damaged: false }),
            ]);
        }
        let world = World::of(&events).await;
        let policy = Policy { full: Some(1), age: Some(SignedDuration::from_hours(24)), ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        // Then it stays, with all WAL since
        let left = after(&inventory, &plan);
        assert!(left.finished_backups().any(|backup| backup.id == world.backups[0].id));
        let good = &world.backups[0].document;
        let end = inventory.catalog.coverage.values().next().unwrap().end().unwrap();
        assert!(left.coverage.values().next().unwrap().chain(good.start_lsn, end).is_ok());
    });
}

#[test]
fn the_first_good_backup_behind_suspect_ones_takes_no_window_with_it() {
    run(async {
        // Given two months of suspect backups, which restores take unasked, and then a good one
        let mut events = Vec::new();
        for _ in 0..55 {
            events.extend([(17, Event::Bad { damaged: false }), (5, Event::Wal(3))]);
        }
        events.extend([(17, Event::Full), (5, Event::Wal(3))]);
        for _ in 0..4 {
            events.extend([(17, Event::Bad { damaged: true }), (5, Event::Wal(3))]);
        }
        let world = World::of(&events).await;
        let age = Some(SignedDuration::from_hours(30 * 24));
        for policy in [
            Policy { full: Some(4), ..Policy::default() },
            Policy { full: Some(4), age, ..Policy::default() },
            Policy { full: Some(1), wal: Some(SignedDuration::from_hours(48)), ..Policy::default() },
        ] {
            // When it is pruned, then something goes, and the window and the floor are there
            let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
            assert!(!plan.doomed_backups().is_empty(), "{policy:?}");
            let promise = Promise::of(&world, &inventory, &policy);
            assert_eq!(promise.broken(&after(&inventory, &plan)), None, "{policy:?}");
        }
    });
}

#[test]
fn a_good_incremental_backup_on_a_suspect_one_takes_no_window_with_it() {
    run(async {
        // Given suspect backups, and in the end incremental ones on a suspect one and a good full one
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(17, Event::Bad { damaged: false }), (5, Event::Wal(3)), (1, Event::IncrementalOnLast)]);
        }
        events.extend([(17, Event::Full), (5, Event::Wal(3))]);
        let world = World::of(&events).await;
        let policy = Policy { full: Some(1), ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert!(!plan.doomed_backups().is_empty());
        let promise = Promise::of(&world, &inventory, &policy);
        assert_eq!(promise.broken(&after(&inventory, &plan)), None);
    });
}

#[test]
fn a_shorter_window_of_wal_takes_nothing_of_what_age_promises() {
    run(async {
        let world = daily(40).await;
        let days = |days: i64| Some(SignedDuration::from_hours(24 * days));
        let policy = Policy { age: days(30), wal: days(7), ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert!(!plan.doomed_backups().is_empty());
        let promise = Promise::of(&world, &inventory, &policy);
        assert_eq!(promise.broken(&after(&inventory, &plan)), None);
    });
}

#[test]
fn a_window_of_wal_alone_has_a_backup_at_its_beginning_and_one_behind_each_hole() {
    run(async {
        // Given WAL that was lost ten days ago
        let mut world = daily(20).await;
        world.happen(&Event::Gap).await;
        for _ in 0..20 {
            for event in [Event::Full, Event::Wal(4)] {
                world.wait(12).await;
                world.happen(&event).await;
            }
        }
        let (wal, minimum_window) = (Some(SignedDuration::from_hours(15 * 24)), SignedDuration::from_hours(48));
        let policy = Policy { full: Some(1), wal, minimum_window, ..Policy::default() };
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert!(plan.doomed_backups().len() > 10, "not every backup of that time is needed");
        let promise = Promise::of(&world, &inventory, &policy);
        assert_eq!(promise.broken(&after(&inventory, &plan)), None);
    });
}

#[test]
fn a_plan_that_forgets_a_window_a_mark_or_a_part_is_found_out() {
    run(async {
        let world = daily(40).await;
        world.mark(3, None).await;
        let (inventory, now, layout) =
            (inventory(&world.repository).await, world.clock.now(), &world.repository.layout);
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        let short = Policy { full: Some(1), minimum_window: days(1), ..Policy::default() };
        let good = plan(&inventory, &short, &TimeZone::UTC, now);
        prove(layout, &inventory, &good, &short, now).unwrap();
        let found = |plan: &Plan, policy: &Policy| {
            let error = prove(layout, &inventory, plan, policy, now).expect_err("it must be found");
            error.to_string()
        };
        // One that forgets the floor, the age, or the window of WAL
        for policy in [
            Policy { minimum_window: days(9), ..short.clone() },
            Policy { age: Some(days(20)), ..short.clone() },
            Policy { wal: Some(days(20)), ..short.clone() },
        ] {
            let error = found(&good, &policy);
            assert!(error.contains("could be restored"), "{error}");
        }
        // One that forgets a mark
        let unmarked = Inventory { marks: BTreeMap::new(), ..inventory.clone() };
        let error = found(&plan(&unmarked, &short, &TimeZone::UTC, now), &short);
        assert!(error.contains("marked to be kept"), "{error}");
        // One that takes parts of a backup that stays for left over
        let staying = layout.backup_prefix(good.selection.finished.keys().next().unwrap());
        for name in world.names().await.into_iter().filter(|name| name.starts_with(&staying)) {
            let is_leftover = name.contains("base.00009");
            let mut plan = good.clone();
            plan.steps.push(Step::Objects(vec![Doomed { name, bytes: 3 }]));
            if is_leftover {
                prove(layout, &inventory, &plan, &short, now).unwrap();
            } else {
                assert!(found(&plan, &short).contains("is of a base backup that was to stay"));
            }
        }
    });
}

#[test]
fn a_repository_that_was_copied_keeps_its_days_weeks_and_months() {
    run(async {
        // Given two months of backups that were copied to another store, where every object is of the day of the copy
        let mut world = daily(60).await;
        world.copy().await;
        let copied: BTreeSet<BackupId> = world.backups.iter().map(|backup| backup.id.clone()).collect();
        // When that day is older than the floor
        for _ in 0..10 {
            for event in [Event::Full, Event::Wal(4)] {
                world.wait(12).await;
                world.happen(&event).await;
            }
        }
        let stays = async |period, count| {
            let mut policy = Policy { minimum_window: SignedDuration::from_hours(48), ..Policy::default() };
            policy.set_period(period, count);
            let (_, plan) = planned(&world, &policy, world.clock.now()).await;
            plan.selection.finished.keys().filter(|id| copied.contains(id)).count()
        };
        // Then they count as of the days on which they were taken
        assert!(stays(Period::Day, 30).await >= 19, "{} of the days", stays(Period::Day, 30).await);
        assert!(stays(Period::Week, 8).await >= 6, "{} of the weeks", stays(Period::Week, 8).await);
        assert!(stays(Period::Month, 3).await >= 2, "{} of the months", stays(Period::Month, 3).await);
    });
}
