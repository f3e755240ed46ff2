//! A prune that is cut off after each of its deletions, refused, or overtaken.

use crate::planning::{events, policies};
use crate::promises::{Promise, inventory, planned};
use crate::world::{Event, World, run};
use async_trait::async_trait;
use jiff::SignedDuration;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use seawall::repository::Repository;
use seawall::retention::{Outcome, Policy, execute};
use seawall::runtime::Clock;
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use seawall::verify::{VerifyOptions, VerifyProgress, verify};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// A store that lets so many deletions pass, and answers every other one with this.
#[derive(Debug)]
struct Cut {
    store: MemoryStore,
    left: AtomicUsize,
    kind: StoreErrorKind,
    /// Once the first is deleted, the second is stored: by a backup that finishes in this moment.
    lands: Option<(String, String)>,
    /// These are refused.
    held: BTreeSet<String>,
}

#[async_trait]
impl Store for Cut {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.store.create(key, body, metadata).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.store.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.store.head(key).await
    }
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.store.list_page(prefix, token).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.store.list_level(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        if self.held.contains(key) {
            return Err(StoreError::new(StoreErrorKind::Denied, "delete", key));
        }
        // What was said of a backup and is taken back is no matter of the plan's.
        if key.contains(".going-") {
            return self.store.delete(key).await;
        }
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => {
                self.store.delete(key).await?;
                if let Some((_, name)) = self.lands.as_ref().filter(|(deleted, _)| deleted == key) {
                    let body = bytes::Bytes::from_static(b"{}");
                    self.store.create(name, body.into(), Metadata::default()).await?;
                }
                Ok(())
            }
            Err(_) => Err(StoreError::new(self.kind, "delete", key)),
        }
    }
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.store.begin_upload(key, metadata).await
    }
    fn describe(&self) -> String {
        self.store.describe()
    }
}

/// Prunes, with so many deletions.
async fn prune(world: &World, policy: &Policy, deletions: usize, kind: StoreErrorKind) -> Outcome {
    prune_held(world, policy, deletions, kind, &BTreeSet::new()).await
}

/// Prunes, with so many deletions, and these refused.
async fn prune_held(
    world: &World,
    policy: &Policy,
    deletions: usize,
    kind: StoreErrorKind,
    held: &BTreeSet<String>,
) -> Outcome {
    let (inventory, plan) = planned(world, policy, world.clock.now()).await;
    let (store, left, held) = (world.store.clone(), AtomicUsize::new(deletions), held.clone());
    let store = Cut { store, left, kind, lands: None, held };
    let repository = Repository { store: Arc::new(store), layout: world.repository.layout.clone() };
    execute(&repository, &plan, inventory.catalog.cluster.system_identifier, world.clock.now(), &world.clock).await
}

/// All that is stored, but for what whoever was cut off has said: that goes a day later.
async fn what_counts(world: &World) -> Vec<String> {
    world.names().await.into_iter().filter(|name| !name.contains(".going-")).collect()
}

async fn problems(world: &World) -> Vec<String> {
    let cluster = Repository::read_cluster(&world.store, "main").await.unwrap().unwrap();
    let (progress, _watched) = watch::channel(VerifyProgress::default());
    let options = VerifyOptions::default();
    let report = verify(&world.repository, cluster, &options, Clock::system().now(), &progress).await.unwrap();
    report.findings.iter().filter(|finding| finding.is_problem).map(|finding| finding.message.clone()).collect()
}

/// A sample of random worlds in which much goes, the same in each run.
fn samples(count: usize) -> Vec<(Vec<(u8, Event)>, Policy)> {
    let mut runner = TestRunner::deterministic();
    let mut found = Vec::new();
    while found.len() < count {
        let sample = (events(), policies()).new_tree(&mut runner).unwrap().current();
        let deletes = run(async {
            let world = World::of(&sample.0).await;
            let (_, plan) = planned(&world, &sample.1, world.clock.now()).await;
            plan.doomed_backups().len() > 1 && plan.doomed_objects().count() > 10
        });
        if deletes {
            found.push(sample);
        }
    }
    found
}

#[test]
fn cut_off_after_any_deletion_every_promised_window_restores_and_the_next_prune_finishes() {
    let mut samples = samples(2);
    // And one with everything in it.
    let mut long = vec![(2, Event::Unfinished)];
    for round in 0..7 {
        long.extend([(40, Event::Full), (20, Event::Wal(3)), (20, Event::Incremental), (20, Event::Incremental)]);
        long.push((9, Event::Reports));
        match round {
            1 => long.push((9, Event::Failover { dead: true })),
            2 => long.extend([(9, Event::Keep), (9, Event::Bad { damaged: true })]),
            3 => long.extend([(9, Event::Gap), (30, Event::Full)]),
            4 => long.push((9, Event::Failover { dead: false })),
            _ => {}
        }
    }
    let two_days = SignedDuration::from_hours(48);
    let short = Policy { full: Some(2), wal: Some(two_days), minimum_window: two_days, ..Policy::default() };
    samples.push((long, short));
    let mut cuts = 0;
    for (events, policy) in samples {
        let (whole, in_all, promise, problems_before) = run(async {
            let world = World::of(&events).await;
            let seen = inventory(&world.repository).await;
            let promise = Promise::of(&world, &seen, &policy);
            let before = problems(&world).await;
            let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
            assert!(outcome.error.is_none(), "{:?}", outcome.error);
            assert_eq!(promise.broken(&inventory(&world.repository).await.catalog), None);
            // Nothing is left to do.
            let (_, again) = planned(&world, &policy, world.clock.now()).await;
            assert!(again.steps.is_empty(), "{:?}", again.steps);
            (what_counts(&world).await, outcome.objects as usize, promise, before)
        });
        for deletions in 0..in_all {
            run(async {
                // Given a prune that is cut off there
                let world = World::of(&events).await;
                let outcome = prune(&world, &policy, deletions, StoreErrorKind::Denied).await;
                assert!(outcome.error.is_some(), "it must have been cut off after {deletions}");
                assert_eq!(outcome.objects as usize, deletions);
                // Then everything promised restores, and nothing is broken that was not before
                let left = inventory(&world.repository).await;
                assert_eq!(promise.broken(&left.catalog), None, "after {deletions} deletions");
                // Whether a backup lost its document to a prune or to somebody else nobody can tell before the next prune.
                let is_half_gone = |problem: &String| problem.contains("/backup.json is missing");
                for problem in problems(&world).await.into_iter().filter(|problem| !is_half_gone(problem)) {
                    assert!(problems_before.contains(&problem), "after {deletions} deletions: {problem}");
                }
                // When it runs again, then the end is as if nothing had been
                let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
                assert!(outcome.error.is_none(), "{:?}", outcome.error);
                assert_eq!(what_counts(&world).await, whole, "after {deletions} deletions and another prune");
            });
            cuts += 1;
        }
    }
    assert!(cuts > 150, "{cuts} cuts only");
}

#[test]
fn a_store_that_refuses_to_delete_loses_nothing_and_is_told() {
    run(async {
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let world = World::of(&events).await;
        let before = world.names().await;
        let policy = Policy { full: Some(1), ..Policy::default() };
        let outcome = prune(&world, &policy, 0, StoreErrorKind::Denied).await;
        let error = outcome.error.expect("an error");
        assert!(error.hint_text().unwrap_or_default().contains("right to delete"), "{error:?}");
        assert_eq!((outcome.objects, what_counts(&world).await), (0, before));
    });
}

/// Prunes a month of backups, with this one refused. What became of it, and what is left.
async fn prune_but_for(held: impl Fn(&str) -> bool) -> (World, Outcome, Vec<String>, String) {
    let mut events = Vec::new();
    for _ in 0..20 {
        events.extend([(20, Event::Full), (5, Event::Wal(2))]);
    }
    let world = World::of(&events).await;
    let policy = Policy { full: Some(1), ..Policy::default() };
    let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
    let first = world.repository.layout.backup_prefix(&plan.doomed_backups().into_iter().next_back().unwrap());
    let is_held = |name: &&String| held(name) && (name.starts_with(&first) || name.contains("/wal/"));
    let name = world.names().await.iter().find(is_held).expect("there is one").clone();
    let (store, left) = (world.store.clone(), AtomicUsize::new(usize::MAX));
    let store = Cut { store, left, kind: StoreErrorKind::Denied, lands: None, held: [name.clone()].into() };
    let repository = Repository { store: Arc::new(store), layout: world.repository.layout.clone() };
    let outcome =
        execute(&repository, &plan, inventory.catalog.cluster.system_identifier, world.clock.now(), &world.clock).await;
    let left = world.names().await.into_iter().collect();
    (world, outcome, left, name)
}

#[test]
fn one_object_that_cannot_be_deleted_keeps_no_others_from_going() {
    run(async {
        for held in ["/base.", "/wal/"] {
            let (world, outcome, left, name) = prune_but_for(|name| name.contains(held)).await;
            assert_eq!(outcome.undeleted, 1, "{name}");
            let error = outcome.error.expect("it is told").to_string();
            assert!(error.contains(&name), "{error}");
            // The next takes it, and nothing else is left to go but what says why WAL is missing
            let policy = Policy { full: Some(1), ..Policy::default() };
            let again = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
            assert!(again.error.is_none(), "{:?}", again.error);
            let gone: Vec<String> = {
                let now = world.names().await;
                left.into_iter().filter(|name| !now.contains(name)).collect()
            };
            let is_note = |name: &String| name.contains("/pruned-");
            assert!(gone.contains(&name) && gone.iter().all(|gone| *gone == name || is_note(gone)), "{gone:?}");
        }
    });
}

#[test]
fn a_backup_whose_document_stays_keeps_its_parts_and_its_wal() {
    run(async {
        let (_, outcome, left, name) = prune_but_for(|name| name.ends_with("/backup.json")).await;
        assert!(outcome.error.is_some() && (outcome.objects, outcome.undeleted) == (0, 1), "{outcome:?}");
        let folder = name.trim_end_matches("backup.json");
        assert!(left.iter().filter(|name| name.starts_with(folder)).count() > 2, "{left:?}");
    });
}

/// A month of full backups, and before it one that was begun and left, on the first of them.
async fn month_behind_an_orphan() -> (World, Policy) {
    let mut events = vec![(20, Event::Full), (1, Event::Unfinished)];
    for _ in 0..20 {
        events.extend([(20, Event::Full), (5, Event::Wal(2))]);
    }
    (World::of(&events).await, Policy { full: Some(1), ..Policy::default() })
}

#[test]
fn a_left_over_backup_that_cannot_be_deleted_keeps_what_it_builds_on_and_wal_and_nothing_else() {
    run(async {
        let (world, policy) = month_behind_an_orphan().await;
        let (_, plan) = planned(&world, &policy, world.clock.now()).await;
        let layout = &world.repository.layout;
        let orphan = layout.backup_prefix(plan.selection.orphans.first().expect("one that is left over"));
        let reference = layout.backup_prefix(&world.backups[0].id);
        assert!(plan.doomed_backups().contains(&world.backups[0].id));
        let before = world.names().await;
        // When its begin.json is refused
        let held = [format!("{orphan}begin.json")].into();
        let outcome = prune_held(&world, &policy, usize::MAX, StoreErrorKind::Denied, &held).await;
        // Then it is told, and what anybody needs who goes on with it is there
        assert!(outcome.error.is_some() && outcome.undeleted == 1, "{outcome:?}");
        let after: BTreeSet<String> = world.names().await.into_iter().collect();
        let is_needed =
            |name: &&String| name.starts_with(&orphan) || name.starts_with(&reference) || name.contains("/wal/");
        before.iter().filter(is_needed).for_each(|name| assert!(after.contains(name), "{name} is gone"));
        // and every other backup that was to go is gone, with no word of WAL that is gone
        assert_eq!(outcome.backups.len(), plan.doomed_backups().len() - 2, "{outcome:?}");
        assert!(!after.iter().any(|name| name.contains("/pruned-")), "{after:?}");
        // The next prune does the rest
        let again = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(again.error.is_none() && again.backups.len() == 2, "{again:?}");
        assert!(planned(&world, &policy, world.clock.now()).await.1.steps.is_empty());
    });
}

#[test]
fn what_changed_meanwhile_is_told_also_behind_an_object_that_cannot_be_deleted() {
    run(async {
        // Given one that is finished as its deletion begins, behind one that is refused
        let events = [(1, Event::Unfinished), (1, Event::Unfinished)];
        let fulls = (0..20).flat_map(|_| [(20, Event::Full), (5, Event::Wal(2))]);
        let world = World::of(&events.into_iter().chain(fulls).collect::<Vec<_>>()).await;
        let (inventory, plan) = planned(&world, &Policy::default(), world.clock.now()).await;
        let folder = |id| world.repository.layout.backup_prefix(id);
        let orphans: Vec<String> = plan.selection.orphans.iter().map(folder).collect();
        let [first, second] = &orphans[..] else { panic!("{orphans:?}") };
        let refused = world.names().await.into_iter().find(|name| name.starts_with(&format!("{first}base.")));
        let lands = Some((format!("{second}begin.json"), format!("{second}backup.json")));
        let (left, held) = (AtomicUsize::new(usize::MAX), [refused.unwrap()].into());
        let store = Cut { store: world.store.clone(), left, kind: StoreErrorKind::Denied, lands, held };
        let repository = Repository { store: Arc::new(store), layout: world.repository.layout.clone() };
        let system = inventory.catalog.cluster.system_identifier;
        let outcome = execute(&repository, &plan, system, world.clock.now(), &world.clock).await;
        // Then whoever runs it again at once is told so
        assert_eq!(outcome.error.map(|error| error.kind()), Some(seawall::error::Kind::Busy));
    });
}

#[test]
fn where_twenty_objects_cannot_be_deleted_nothing_more_is_tried() {
    run(async {
        let (world, policy) = month_behind_an_orphan().await;
        let before = world.names().await;
        let held: BTreeSet<String> = before.iter().filter(|name| name.contains("/base.")).cloned().collect();
        let outcome = prune_held(&world, &policy, usize::MAX, StoreErrorKind::Denied, &held).await;
        assert_eq!(outcome.undeleted, 20);
        let error = outcome.error.expect("it is told").to_string();
        assert!(error.contains("20 objects cannot be deleted"), "{error}");
        let after: BTreeSet<String> = world.names().await.into_iter().collect();
        let mut wal = before.iter().filter(|name| name.contains("/wal/"));
        assert!(wal.all(|name| after.contains(name)), "WAL is gone");
        let again = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(again.error.is_none(), "{again:?}");
        assert!(planned(&world, &policy, world.clock.now()).await.1.steps.is_empty());
    });
}

#[test]
fn refused_and_then_cut_off_a_prune_breaks_no_promise_and_the_next_one_is_proven() {
    run(async {
        // Of parts and of WAL, one, several in the middle, or the first document of a backup
        let holds: [(&str, usize); 5] =
            [("/base.", 30), ("/wal/", 1000), ("/wal/", 3), ("/begin.json", 4), ("/backup.json", 5)];
        let (mut cuts, mut undeleted) = (0, 0);
        for (held, every) in holds {
            for deletions in [3, 11, 29, 47, 60, 71, 83, usize::MAX] {
                let (world, policy) = month_behind_an_orphan().await;
                let promise = Promise::of(&world, &inventory(&world.repository).await, &policy);
                let names = world.names().await;
                let names = names.into_iter().filter(|name| name.contains(held)).step_by(every).collect();
                // When it is cut off, with these refused
                let outcome = prune_held(&world, &policy, deletions, StoreErrorKind::Denied, &names).await;
                assert!(outcome.error.is_some(), "{held}");
                (cuts, undeleted) = (cuts + 1, undeleted + outcome.undeleted);
                let left = inventory(&world.repository).await;
                assert_eq!(promise.broken(&left.catalog), None, "{held} refused, cut off after {deletions}");
                // Then the next, which is proven before it does anything, ends as if nothing had been
                let again = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
                assert!(again.error.is_none(), "{held}, {deletions}: {:?}", again.error);
                assert_eq!(promise.broken(&inventory(&world.repository).await.catalog), None, "{held}, {deletions}");
                assert!(planned(&world, &policy, world.clock.now()).await.1.steps.is_empty(), "{held}, {deletions}");
            }
        }
        assert!(cuts == 40 && undeleted > 100, "{undeleted} refused in {cuts} prunes");
    });
}

#[test]
fn what_began_or_was_marked_since_the_look_is_found_before_anything_goes() {
    run(async {
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let policy = Policy { full: Some(1), ..Policy::default() };
        // Given a plan, and a mark that comes behind it, beside one that has run out
        let world = World::of(&events).await;
        world.mark(0, Some(world.ago(24))).await;
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert!(plan.doomed_backups().is_superset(&[0, 1].map(|at: usize| world.backups[at].id.clone()).into()));
        world.mark(1, None).await;
        let before = world.names().await;
        let system = inventory.catalog.cluster.system_identifier;
        let outcome = execute(&world.repository, &plan, system, world.clock.now(), &world.clock).await;
        assert_eq!(outcome.error.map(|error| error.kind()), Some(seawall::error::Kind::Busy));
        assert_eq!(world.names().await, before);
    });
}

#[test]
fn what_is_left_of_a_marked_backup_without_its_document_stays_and_keeps_nothing_else_from_going() {
    run(async {
        // Given a month of backups, one of which was marked and has lost its document
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let mut world = World::of(&events).await;
        world.mark(2, None).await;
        let id = world.backups[2].id.clone();
        let folder = world.repository.layout.backup_prefix(&id);
        world.store.delete(&format!("{folder}backup.json")).await.unwrap();
        let of_it = async |world: &World| {
            world.names().await.into_iter().filter(|name| name.starts_with(&folder)).collect::<Vec<_>>()
        };
        let left = of_it(&world).await;
        // When it is pruned, then that is said of it, and others go
        let policy = Policy { full: Some(1), ..Policy::default() };
        let (_, plan) = planned(&world, &policy, world.clock.now()).await;
        let said = plan.groups.iter().find(|group| group.what.contains(id.as_str())).expect("it is in the plan");
        assert!(!said.goes && said.reason == "marked, and its backup.json is missing", "{said:?}");
        assert!(plan.notes.iter().any(|note| note.contains("--remove")), "{:?}", plan.notes);
        let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(outcome.error.is_none() && outcome.backups.contains(&world.backups[0].id), "{outcome:?}");
        // with all that it needs, should its document come back
        assert_eq!(of_it(&world).await, left);
        let start = world.backups[2].document.start_lsn;
        let (inventory, _) = planned(&world, &policy, world.clock.now()).await;
        let first = inventory.catalog.coverage.values().filter_map(|it| it.objects().first()).map(|it| it.range.start);
        assert!(first.min().unwrap() <= start && outcome.objects > 20, "{outcome:?}");
        // Until the mark is taken away
        world.unmark(2).await;
        world.wait(24).await;
        let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(outcome.error.is_none() && of_it(&world).await.is_empty(), "{outcome:?}");
    });
}

#[test]
fn a_backup_that_finishes_while_it_goes_as_left_over_keeps_its_parts() {
    run(async {
        // Given a backup that was begun, and that nothing was stored of for days
        let mut events = vec![(1, Event::Unfinished)];
        for _ in 0..4 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let world = World::of(&events).await;
        let (inventory, plan) = planned(&world, &Policy::default(), world.clock.now()).await;
        let id = plan.selection.orphans.first().expect("one that is left over").clone();
        let folder = world.repository.layout.backup_prefix(&id);
        let parts: Vec<String> =
            world.names().await.into_iter().filter(|name| name.starts_with(&format!("{folder}base."))).collect();
        assert!(!parts.is_empty());
        // When it is finished as its deletion begins
        let lands = Some((format!("{folder}begin.json"), format!("{folder}backup.json")));
        let left = AtomicUsize::new(usize::MAX);
        let store =
            Cut { store: world.store.clone(), left, kind: StoreErrorKind::Denied, lands, held: BTreeSet::new() };
        let repository = Repository { store: Arc::new(store), layout: world.repository.layout.clone() };
        let system = inventory.catalog.cluster.system_identifier;
        let outcome = execute(&repository, &plan, system, world.clock.now(), &world.clock).await;
        // Then it stops there, and nothing else of it is gone
        assert_eq!(outcome.error.map(|error| error.kind()), Some(seawall::error::Kind::Busy));
        let left = world.names().await;
        assert!(parts.iter().all(|part| left.contains(part)) && left.contains(&format!("{folder}backup.json")));
    });
}

#[test]
fn a_backup_with_more_parts_than_a_page_of_a_listing_goes_whole() {
    run(async {
        let mut world = World::of(&[(1, Event::Full)]).await;
        let doomed = world.backups[0].id.clone();
        for number in 0..2500 {
            world.crowd(&doomed, number).await;
        }
        for _ in 0..12 {
            world.wait(24).await;
            world.happen(&Event::Full).await;
        }
        let policy = Policy { full: Some(1), ..Policy::default() };
        let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(outcome.error.is_none() && outcome.objects > 2500, "{outcome:?}");
        let prefix = world.repository.layout.backup_prefix(&doomed);
        assert!(world.names().await.iter().all(|name| !name.starts_with(&prefix)));
    });
}

#[test]
fn an_incremental_backup_that_begins_behind_the_look_keeps_what_it_builds_on() {
    run(async {
        // Given a plan in which a backup goes, and an incremental one that begins on it since
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let policy = Policy { full: Some(1), ..Policy::default() };
        let world = World::of(&events).await;
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        let reference = plan.doomed_backups().into_iter().next_back().unwrap();
        world.begin(Some(reference.clone())).await;
        let before = world.names().await;
        // When it is carried out, then it stops there, and the next plan keeps that backup
        let system = inventory.catalog.cluster.system_identifier;
        let outcome = execute(&world.repository, &plan, system, world.clock.now(), &world.clock).await;
        assert_eq!(outcome.error.map(|error| error.kind()), Some(seawall::error::Kind::Busy));
        assert_eq!(world.names().await, before);
        let (_, again) = planned(&world, &policy, world.clock.now()).await;
        assert!(!again.doomed_backups().contains(&reference) && !again.doomed_backups().is_empty());
    });
}

#[test]
fn a_backup_that_was_taken_for_left_over_and_goes_on_keeps_what_it_builds_on() {
    run(async {
        // Given a plan in which a backup goes, and with it an incremental one that was begun on it and left
        let policy = Policy { full: Some(1), ..Policy::default() };
        let mut world = World::of(&[(20, Event::Full), (5, Event::Wal(2))]).await;
        let reference = world.backups[0].id.clone();
        let left = world.begin(Some(reference.clone())).await;
        for _ in 0..20 {
            world.wait(20).await;
            world.happen(&Event::Full).await;
        }
        let (inventory, plan) = planned(&world, &policy, world.clock.now()).await;
        assert!(plan.doomed_backups().is_superset(&[reference.clone(), left.clone()].into()));
        // When somebody goes on with that, then it stays, and so does what it builds on
        world.crowd(&left, 1).await;
        let folders = [reference, left].map(|id| world.repository.layout.backup_prefix(&id));
        let of_both = async || {
            let names = world.names().await.into_iter();
            names.filter(|name| folders.iter().any(|folder| name.starts_with(folder))).collect::<Vec<_>>()
        };
        let before = of_both().await;
        let system = inventory.catalog.cluster.system_identifier;
        let outcome = execute(&world.repository, &plan, system, world.clock.now(), &world.clock).await;
        assert_eq!(outcome.error.map(|error| error.kind()), Some(seawall::error::Kind::Busy));
        assert_eq!(of_both().await, before);
    });
}

#[test]
fn what_cannot_be_read_or_is_of_a_later_format_keeps_anything_from_going() {
    run(async {
        for name in [
            "main/keep/20260101T120000Z.00001.json",
            "main/base/20260101T120000Z/backup.json",
            "main/base/20260101T120000Z/begin.json",
            "main/wal/00000009.history",
        ] {
            let world = World::of(&[(20, Event::Full)]).await;
            let body = bytes::Bytes::from_static(b"{\"format\": 2, and no JSON");
            world.store.create(name, body.into(), Metadata::default()).await.unwrap();
            let cluster = Repository::read_cluster(&world.store, "main").await.unwrap().unwrap();
            assert!(seawall::retention::Inventory::read(&world.repository, cluster).await.is_err(), "{name}");
        }
    });
}

#[test]
fn a_backup_that_lacks_a_part_is_not_good_and_pushes_out_none() {
    run(async {
        // Given many backups, of which all but the first lack a part since
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend([(20, Event::Full), (5, Event::Wal(2))]);
        }
        let world = World::of(&events).await;
        for backup in &world.backups[1..] {
            let part = world.names().await.into_iter().find(|name| name.contains(&format!("{}/base.00002", backup.id)));
            world.store.delete(&part.unwrap()).await.unwrap();
        }
        // Then that one stays
        let policy = Policy { full: Some(1), ..Policy::default() };
        let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(outcome.error.is_none() && !outcome.backups.contains(&world.backups[0].id), "{outcome:?}");
    });
}

#[test]
fn a_clock_that_was_years_behind_makes_no_backup_old() {
    run(async {
        // Given a month of backups by somebody who takes it for 1970
        let mut events = Vec::new();
        for _ in 0..30 {
            events.extend([(20, Event::Full), (3, Event::Wal(2))]);
        }
        let mut world = World::of(&events[..40]).await;
        world.lag = SignedDuration::from_hours(50 * 365 * 24);
        for (hours, event) in &events[40..] {
            world.wait(u64::from(*hours)).await;
            world.happen(event).await;
        }
        // Then those of the last week stay
        let policy = Policy { full: Some(1), ..Policy::default() };
        let week = world.ago(7 * 24);
        let outcome = prune(&world, &policy, usize::MAX, StoreErrorKind::Denied).await;
        assert!(outcome.error.is_none() && !outcome.backups.is_empty(), "{outcome:?}");
        let young = world.backups.iter().filter(|backup| backup.taken_at > week);
        assert!(young.clone().count() > 3);
        young.for_each(|backup| assert!(!outcome.backups.contains(&backup.id), "{}", backup.id));
    });
}
