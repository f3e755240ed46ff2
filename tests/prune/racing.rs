//! Whoever deletes, whoever marks, whoever takes a mark away, and an hour that passes, in every order of their requests. What holds in
//! every state that comes up holds wherever any of them is cut off.

use crate::promises::planned;
use crate::world::{Event, SYSTEM, World, run};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use jiff::{SignedDuration, Timestamp};
use seawall::repository::{BackupId, Cluster, FORMAT_VERSION, KeepMark, Repository, Writer};
use seawall::retention::{Inventory, Plan, Policy, Step, execute, hold, hold_again, mark as store_mark, release};
use seawall::runtime::Clock;
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, Upload,
};
use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Longer than what is said counts.
const HOUR: Duration = Duration::from_secs(61 * 60);

/// What a store holds beside its objects: which of them have a legal hold.
type Holds = Arc<Mutex<BTreeSet<String>>>;

/// Which requests wait for their turn: what is done, and to which name. The others are done at once.
type Waits = fn(&str, &str) -> bool;

/// One's way into the store, which lets one request pass at a time, and writes down what came of it.
#[derive(Clone)]
struct Gate {
    store: MemoryStore,
    holds: Holds,
    waits: Waits,
    turns: Arc<Semaphore>,
    is_later: Arc<AtomicBool>,
    /// Of everything that was asked and answered.
    seen: Arc<Mutex<DefaultHasher>>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    fn new(store: &MemoryStore, holds: &Holds, waits: Waits, is_later: &Arc<AtomicBool>) -> Gate {
        let (turns, seen) = (Arc::new(Semaphore::new(0)), Arc::default());
        Gate { store: store.clone(), holds: holds.clone(), waits, turns, is_later: is_later.clone(), seen }
    }

    async fn turn(&self, what: &str, name: &str) {
        // Of time, that is what counts: when something was stored, and from when on.
        if what == "create" {
            self.note("begins to", name, &format!("{:?}", self.is_later));
        }
        if (self.waits)(what, name) {
            self.turns.acquire().await.unwrap().forget();
        }
    }

    fn note(&self, what: &str, name: &str, came: &str) {
        (what, name, came).hash(&mut *self.seen.lock().unwrap());
    }
}

#[async_trait]
impl Store for Gate {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.turn("create", key).await;
        let came = self.store.create(key, body, metadata).await;
        self.note("create", key, &format!("{came:?} {:?}", self.is_later));
        came
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.turn("get", key).await;
        let came = self.store.get(key, range).await;
        self.note("get", key, if came.is_ok() { "there" } else { "not there" });
        came
    }
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.turn("head", key).await;
        let came = self.store.head(key).await;
        self.note("head", key, if came.is_ok() { "there" } else { "not there" });
        came
    }
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.turn("list", prefix).await;
        let page = self.store.list_page(prefix, token).await?;
        let names: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
        self.note("list", prefix, &names.join(" "));
        Ok(page)
    }
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.turn("list", prefix).await;
        let level = self.store.list_level(prefix).await?;
        self.note("list", prefix, &level.prefixes.join(" "));
        Ok(level)
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.turn("delete", key).await;
        self.note("delete", key, "");
        self.store.delete(key).await
    }
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.store.begin_upload(key, metadata).await
    }
    async fn set_legal_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        self.turn("hold", key).await;
        self.note("hold", key, if on { "on" } else { "off" });
        self.store.head(key).await?;
        let mut holds = self.holds.lock().unwrap();
        if on {
            holds.insert(key.to_owned())
        } else {
            holds.remove(key)
        };
        Ok(())
    }
    fn describe(&self) -> String {
        self.store.describe()
    }
}

/// Somebody at work in the repository; true if what he did succeeded.
type Actor<'a> = Box<dyn Fn(Repository) -> LocalBoxFuture<'a, bool> + 'a>;

/// What the order of requests led to.
struct State {
    /// Who has come to his end, and how.
    ended: Vec<Option<bool>>,
    names: BTreeSet<String>,
    holds: BTreeSet<String>,
}

struct Race<'a> {
    world: &'a World,
    actors: Vec<Actor<'a>>,
    waits: Waits,
    has_hour: bool,
    held: BTreeSet<String>,
    objects: BTreeMap<String, Bytes>,
}

impl<'a> Race<'a> {
    async fn new(world: &'a World, actors: Vec<Actor<'a>>) -> Race<'a> {
        let mut objects = BTreeMap::new();
        for name in world.names().await {
            let bytes = world.store.get(&name, None).await.unwrap().collect().await.unwrap();
            objects.insert(name, bytes);
        }
        Race { world, actors, waits: |_, _| true, has_hour: true, held: BTreeSet::new(), objects }
    }

    /// The repository is as it was.
    async fn reset(&self) {
        let names: BTreeSet<String> = self.world.names().await.into_iter().collect();
        for name in names.iter().filter(|name| !self.objects.contains_key(*name)) {
            self.world.store.delete(name).await.unwrap();
        }
        for (name, bytes) in self.objects.iter().filter(|(name, _)| !names.contains(*name)) {
            self.world.store.create(name, bytes.clone().into(), Metadata::new()).await.unwrap();
        }
    }

    /// From the beginning, in this order: the number of whoever has a turn; behind the last of them, the hour.
    async fn replay(&self, order: &[usize]) -> (u64, State) {
        self.reset().await;
        let (holds, is_later): (Holds, Arc<AtomicBool>) = (Arc::new(Mutex::new(self.held.clone())), Arc::default());
        let gate = |_| Gate::new(&self.world.store, &holds, self.waits, &is_later);
        let gates: Vec<Gate> = self.actors.iter().map(gate).collect();
        let layout = &self.world.repository.layout;
        let repository = |gate: &Gate| Repository { store: Arc::new(gate.clone()), layout: layout.clone() };
        let start = |(actor, gate): (&Actor<'a>, &Gate)| tokio::task::unconstrained(actor(repository(gate)));
        let mut running: Vec<_> = self.actors.iter().zip(&gates).map(|it| Box::pin(start(it))).collect();
        let mut ended = Vec::new();
        for future in &mut running {
            ended.push(as_far_as_it_comes(future).await);
        }
        for &number in order {
            if number == running.len() {
                is_later.store(true, Ordering::SeqCst);
                tokio::time::advance(HOUR).await;
            } else {
                gates[number].turns.add_permits(1);
                ended[number] = as_far_as_it_comes(&mut running[number]).await;
            }
        }
        let mut hash = DefaultHasher::new();
        let names: BTreeSet<String> = self.world.names().await.into_iter().collect();
        let holds = holds.lock().unwrap().clone();
        (&names, &holds, &ended, is_later.load(Ordering::SeqCst)).hash(&mut hash);
        for gate in &gates {
            gate.seen.lock().unwrap().finish().hash(&mut hash);
        }
        (hash.finish(), State { ended, names, holds })
    }

    /// Every order, each state once. Returns how they ended who did.
    async fn explore(&self, check: impl AsyncFn(&State, &[usize])) -> BTreeSet<Vec<Option<bool>>> {
        let (mut known, mut endings) = (HashSet::new(), BTreeSet::new());
        let mut orders = vec![Vec::new()];
        while let Some(order) = orders.pop() {
            let (fingerprint, state) = self.replay(&order).await;
            if !known.insert(fingerprint) {
                continue;
            }
            check(&state, &order).await;
            let can_go_on = |number: &usize| match state.ended.get(*number) {
                Some(ended) => ended.is_none(),
                None => self.has_hour && !order.contains(number),
            };
            let next = (0..=self.actors.len()).filter(can_go_on);
            orders.extend(next.map(|number| [&order[..], &[number]].concat()));
            endings.insert(state.ended);
        }
        self.reset().await;
        println!("{} states", known.len());
        endings
    }
}

/// Up to its next request, or to its end.
async fn as_far_as_it_comes(future: &mut std::pin::Pin<Box<impl Future<Output = bool>>>) -> Option<bool> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A few backups, of which the first goes, and a plan with that alone.
async fn one_that_goes(left_over: bool) -> (World, Plan, BackupId) {
    let mut events = if left_over { vec![(1, Event::Unfinished)] } else { Vec::new() };
    for _ in 0..5 {
        events.push((20, Event::Full));
    }
    let world = World::of(&events).await;
    let policy = Policy { full: Some(1), minimum_window: SignedDuration::from_hours(24), ..Policy::default() };
    let (_, mut plan) = planned(&world, &policy, world.clock.now()).await;
    plan.steps.retain(|step| matches!((step, left_over), (Step::Backup(_), false) | (Step::Orphan(_), true)));
    let Some(Step::Backup(id) | Step::Orphan(id)) = plan.steps.pop() else { panic!("something goes") };
    for other in plan.doomed_backups() {
        plan.selection.finished.entry(other).or_default();
    }
    plan.steps = vec![if left_over { Step::Orphan(id.clone()) } else { Step::Backup(id.clone()) }];
    (world, plan, id)
}

fn keep_mark(backup: &BackupId, keep: bool) -> KeepMark {
    let set_at = Timestamp::UNIX_EPOCH;
    let reason = if keep { "a test's" } else { "" }.to_owned();
    KeepMark { format: FORMAT_VERSION, backup: backup.clone(), keep, reason, until: None, set_at }
}

fn writer(repository: &Repository) -> Writer {
    Writer::new(repository.store.clone(), repository.layout.clone(), SYSTEM)
}

async fn cluster(repository: &Repository) -> Cluster {
    Repository::read_cluster(repository.store.as_ref(), "main").await.unwrap().unwrap()
}

/// `now`: so late that nothing that is stored is young.
fn prunes<'a>(plan: &'a Plan, now: Timestamp) -> Actor<'a> {
    Box::new(move |repository| {
        Box::pin(async move { execute(&repository, plan, SYSTEM, now, &Clock::simulated(now)).await.error.is_none() })
    })
}

/// What there was of a backup when its mark was said to keep it.
type Kept = RefCell<BTreeSet<String>>;

fn marks<'a>(world: &'a World, backup: &'a BackupId, kept: &'a Kept) -> Actor<'a> {
    Box::new(move |repository| {
        Box::pin(async move {
            let is_there = matches!(repository.finished_backup(backup).await, Ok(Some(_)));
            let mark = keep_mark(backup, true);
            let is_kept = is_there && store_mark(&repository, &writer(&repository), &mark).await.is_ok();
            *kept.borrow_mut() = folder(world, world.names().await, backup);
            is_kept
        })
    })
}

fn takes_mark_away(backup: &BackupId) -> Actor<'_> {
    Box::new(move |repository| {
        Box::pin(async move { store_mark(&repository, &writer(&repository), &keep_mark(backup, false)).await.is_ok() })
    })
}

/// Where nobody waits for anybody.
fn holding(world: &World, holds: &Holds) -> Repository {
    let gate = Gate::new(&world.store, holds, |_, _| false, &Arc::default());
    Repository { store: Arc::new(gate), layout: world.repository.layout.clone() }
}

fn years_later(world: &World) -> Timestamp {
    world.clock.now().checked_add(SignedDuration::from_hours(10 * 365 * 24)).unwrap()
}

fn folder(world: &World, names: impl IntoIterator<Item = String>, id: &BackupId) -> BTreeSet<String> {
    let prefix = world.repository.layout.backup_prefix(id);
    names.into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn a_backup_that_keep_said_is_kept_loses_nothing_to_a_prune_in_whatever_order_they_come() {
    run(async {
        let (world, plan, id) = one_that_goes(false).await;
        let (now, kept) = (years_later(&world), Kept::default());
        let keep = || marks(&world, &id, &kept);
        let stories: [(&str, Vec<Actor<'_>>); 3] = [
            ("keep and a prune", vec![keep(), prunes(&plan, now)]),
            ("keep and two prunes", vec![keep(), prunes(&plan, now), prunes(&plan, now)]),
            ("keep, keep --remove and a prune", vec![keep(), prunes(&plan, now), takes_mark_away(&id)]),
        ];
        for (story, actors) in stories {
            let mut race = Race::new(&world, actors).await;
            // With two, whatever comes in the way of the mark; with three, what one does that another can see.
            race.waits = match race.actors.len() {
                2 => |_, _| true,
                _ => |what, name| match what {
                    "head" => false,
                    "get" | "delete" => name.ends_with("/backup.json") || name.contains(".going-"),
                    _ => name.contains("/keep/"),
                },
            };
            race.has_hour = race.actors.len() == 2;
            let endings = race
                .explore(async |state, order| {
                    // Whoever took the mark away has let go of it
                    let marks = world.repository.read_keep_marks().await.unwrap();
                    if state.ended[0] == Some(true) && marks.get(&id).is_some_and(|mark| mark.holds(now)) {
                        let left = folder(&world, state.names.clone(), &id);
                        assert_eq!(left, *kept.borrow(), "{story}: lost in the order {order:?}");
                        assert!(left.iter().any(|name| name.ends_with("/backup.json")) && left.len() > 5);
                    }
                })
                .await;
            // Then it is kept or goes, and is told which
            for (kept, pruned) in [(true, false), (false, true)] {
                let is_one = |ended: &&Vec<Option<bool>>| ended[..2] == [Some(kept), Some(pruned)];
                assert!(endings.iter().any(|ended| is_one(&ended)), "{story}: {endings:?}");
            }
        }
    });
}

#[test]
fn a_left_over_backup_that_somebody_finishes_and_marks_loses_nothing_to_a_prune() {
    run(async {
        let (world, plan, id) = one_that_goes(true).await;
        let (now, kept) = (years_later(&world), Kept::default());
        let layout = &world.repository.layout;
        let (begin, end) = ["begin.json", "backup.json"].map(|name| layout.backup_prefix(&id) + name).into();
        let other = layout.backup_prefix(&world.backups[0].id) + "backup.json";
        let finished = world.store.get(&other, None).await.unwrap().collect().await.unwrap();
        let parts = folder(&world, world.names().await, &id);
        let finishes: Actor<'_> = Box::new(|repository| {
            let (begin, end, finished) = (begin.clone(), end.clone(), finished.clone());
            Box::pin(async move {
                repository.store.create(&end, finished.into(), Metadata::new()).await.is_ok()
                    && repository.store.head(&begin).await.is_ok()
            })
        });
        let race = Race::new(&world, vec![marks(&world, &id, &kept), prunes(&plan, now), finishes]).await;
        let endings = race
            .explore(async |state, order| {
                let left = folder(&world, state.names.clone(), &id);
                if state.ended[0] == Some(true) {
                    assert_eq!(left, *kept.borrow(), "marked, and lost in the order {order:?}");
                }
                if state.ended[2] == Some(true) {
                    let lost: Vec<&String> = parts.difference(&left).filter(|name| **name != begin).collect();
                    assert!(lost.is_empty(), "finished, and {lost:?} lost in the order {order:?}");
                }
            })
            .await;
        let is_one = |ended: &[Option<bool>]| endings.iter().any(|other| other == ended);
        assert!(is_one(&[Some(true), Some(false), Some(true)]) && is_one(&[Some(false), Some(true), Some(false)]));
    });
}

#[test]
fn a_mark_that_a_killed_prune_left_in_doubt_keeps_an_hour_later() {
    run(async {
        let (world, plan, id) = one_that_goes(false).await;
        let now = years_later(&world);
        // Given a prune that is killed when it has said that it deletes the backup
        let race = Race::new(&world, vec![prunes(&plan, now)]).await;
        let mut order = Vec::new();
        while !race.replay(&order).await.1.names.iter().any(|name| name.contains(".going-")) {
            order.push(0);
        }
        let mark = keep_mark(&id, true);
        let keep = async || store_mark(&world.repository, &writer(&world.repository), &mark).await;
        // When it is marked, then that is in doubt, and said so
        let error = keep().await.unwrap_err();
        assert_eq!(error.kind(), seawall::error::Kind::Busy);
        assert!(error.to_string().contains("is marked, but a prune"), "{error}");
        // And an hour later it is not
        tokio::time::advance(HOUR).await;
        keep().await.unwrap();
    });
}

#[test]
fn whoever_takes_holds_off_and_is_killed_leaves_none_off_that_another_mark_needs() {
    run(async {
        // Given two incremental backups on one full one, the first of them marked and held
        let world = World::of(&[(20, Event::Full), (5, Event::Incremental), (5, Event::Incremental)]).await;
        world.mark(1, None).await;
        let [_, first, second] = &world.backups[..] else { panic!("three") };
        let (first, second) = (&first.id, &second.id);
        let now = years_later(&world);
        let mut race = Race::new(&world, Vec::new()).await;
        let held_by = async |id: &BackupId| {
            let holds = Holds::default();
            let repository = holding(&world, &holds);
            let inventory = Inventory::read(&repository, cluster(&repository).await).await.unwrap();
            assert!(hold(&repository, &inventory, id).await.error.is_none());
            holds.lock().unwrap().clone()
        };
        race.held = held_by(first).await;
        let needed = held_by(second).await;
        assert!(needed.intersection(&race.held).count() > 5);
        // When its mark is taken away, and somebody marks the second one
        let lets_go: Actor<'_> = Box::new(|repository| {
            Box::pin(async move {
                let (writer, cluster) = (writer(&repository), cluster(&repository).await);
                store_mark(&repository, &writer, &keep_mark(first, false)).await.unwrap();
                release(&repository, &writer, &cluster, &[first.clone()].into(), now).await.error.is_none()
            })
        });
        let keeps: Actor<'_> = Box::new(|repository| {
            Box::pin(async move {
                let cluster = cluster(&repository).await;
                store_mark(&repository, &writer(&repository), &keep_mark(second, true)).await.unwrap();
                let inventory = Inventory::read(&repository, cluster.clone()).await.unwrap();
                hold(&repository, &inventory, second).await.error.is_none()
                    && hold_again(&repository, &cluster, now, None).await.error.is_none()
            })
        });
        race.actors = vec![lets_go, keeps];
        // What they do to marks, and one hold that both need, the last of them: as it is with that, so it is with each.
        race.waits = |what, name| {
            let is_said = name.contains("/keep/") && ["list", "create", "delete"].contains(&what);
            is_said || (what == "hold" && name.ends_with("main/cluster.json"))
        };
        race.has_hour = false;
        let endings = race
            .explore(async |state, order| {
                if state.ended[1] != Some(true) {
                    return;
                }
                // Then all that the second one needs is held once whoever runs next has looked
                let holds: Holds = Arc::new(Mutex::new(state.holds.clone()));
                let repository = holding(&world, &holds);
                let is_over = state.ended[0].is_some();
                let again = hold_again(&repository, &cluster(&repository).await, now, None).await;
                assert!(again.error.is_none() && (again.objects == 0 || !is_over), "{again:?}");
                let holds = holds.lock().unwrap();
                let lost: Vec<&String> = needed.difference(&holds).collect();
                assert!(lost.is_empty(), "{lost:?} are not held in the order {order:?}");
            })
            .await;
        assert!(endings.contains(&vec![Some(true), Some(true)]), "{endings:?}");
    });
}
