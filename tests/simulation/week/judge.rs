//! What was promised, and whether the planner of restores still gets there: after every job, and after every single deletion.

use crate::counts::Counts;
use crate::invariant::Invariant;
use crate::ledger::{CLUSTER, Ledger};
use crate::server::{SYSTEM_IDENTIFIER, Server};
use jiff::{SignedDuration, Timestamp};
use seawall::repository::{Catalog, Key, Layout, Repository, WalReader};
use seawall::restore::{Request, Target, TargetAction, check, plan};
use seawall::runtime::Clock;
use seawall::store::{Body, MemoryStore};
use seawall::wal::{Lsn, TimelineId};
use std::sync::{Arc, Mutex};

/// A moment, and how far WAL was acknowledged then.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Timestamp,
    lsn: Lsn,
    /// It could be restored once: then it can until it is too old.
    was_restorable: bool,
}

#[derive(Debug)]
pub struct Judge {
    pub layout: Layout,
    /// What is stored, without any failure on the way there.
    memory: MemoryStore,
    server: Server,
    ledger: Arc<Ledger>,
    clock: Clock,
    counts: Arc<Counts>,
    /// Whatever is younger can be restored.
    window: SignedDuration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    moments: Vec<Moment>,
    random: fastrand::Rng,
}

/// How much is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// A few moments, and one plan.
    Some,
    /// Every moment, and several plans.
    All,
}

impl Judge {
    pub fn new(
        memory: MemoryStore,
        server: Server,
        ledger: Arc<Ledger>,
        clock: Clock,
        counts: Arc<Counts>,
        window: SignedDuration,
    ) -> Judge {
        let random = fastrand::Rng::with_seed(7);
        let inner = Mutex::new(Inner { moments: Vec::new(), random });
        Judge { layout: ledger.layout.clone(), memory, server, ledger, clock, counts, window, inner }
    }

    /// Something was stored: the simulation's other judge looks at what it is.
    pub fn stored(&self, key: &str, body: &Body) {
        self.ledger.stored(key, &body.pieces().concat());
    }

    /// An hour is over: what is acknowledged now is promised from here on.
    pub fn note_moment(&self) {
        if let Some(lsn) = self.ledger.highest_told(self.server.branch()) {
            self.inner.lock().unwrap().moments.push(Moment { at: self.clock.now(), lsn, was_restorable: false });
        }
    }

    /// Something is gone.
    pub async fn deleted(&self, key: &str) {
        match self.layout.parse(key) {
            // No restore reads these, and the archiver takes the others away all day.
            Ok(Key::Lease(_) | Key::Probe(_)) => {}
            Ok(Key::Tail(_)) => {
                if self.inner.lock().unwrap().random.u32(0..8) == 0 {
                    self.counts.add("judged: after a tail was deleted");
                    self.judge(&format!("after {key} was deleted"), Care::Some).await;
                }
            }
            _ => {
                self.counts.add("judged: after a deletion of prune");
                self.judge(&format!("after {key} was deleted"), Care::Some).await;
            }
        }
    }

    /// A step is done.
    pub async fn step(&self, what: &str) {
        self.counts.add("judged: after a step");
        self.judge(what, Care::All).await;
    }

    /// True if anything can be restored.
    pub fn is_anything_restorable(&self) -> bool {
        self.inner.lock().unwrap().moments.iter().any(|moment| moment.was_restorable)
    }

    async fn judge(&self, when: &str, care: Care) {
        let repository = Repository { store: Arc::new(self.memory.clone()), layout: self.layout.clone() };
        let violate = |what: String| {
            self.ledger.violate(Invariant::AcknowledgedRestores, format!("{}, {when}: {what}", self.clock.now()))
        };
        let Some(cluster) = Repository::read_cluster(&self.memory, CLUSTER).await.unwrap() else { return };
        let catalog = match Catalog::read(&repository, cluster).await {
            Ok(catalog) => catalog,
            Err(error) => return violate(format!("the repository cannot be read: {error}")),
        };
        let chosen = self.choose(care);
        let mut reached = Vec::new();
        for moment in chosen {
            match check(CLUSTER, &catalog, &request(Target::Lsn(moment.lsn)), self.clock.now()) {
                Ok(()) => {
                    self.counts.add("judged: moments that can be restored");
                    reached.push(moment);
                }
                Err(error) if moment.was_restorable => {
                    violate(format!("{} of {} could be restored, and no longer: {error}", moment.lsn, moment.at));
                }
                Err(error) if must_be_restorable(&catalog, moment.lsn) => {
                    violate(format!("{} of {} is acknowledged, behind a base backup: {error}", moment.lsn, moment.at));
                }
                // Before the first base backup, or between a hole and the next.
                Err(_) => self.counts.add("judged: moments that nobody promised"),
            }
        }
        for moment in &reached {
            let mut inner = self.inner.lock().unwrap();
            let found = inner.moments.iter_mut().find(|it| it.at == moment.at);
            found.into_iter().for_each(|it| it.was_restorable = true);
        }
        // The planner itself, which reads the WAL.
        let plans = if care == Care::All { 3 } else { 1 };
        let reader = WalReader::new(repository, SYSTEM_IDENTIFIER);
        for _ in 0..plans.min(reached.len()) {
            let moment = reached.swap_remove(self.inner.lock().unwrap().random.usize(0..reached.len()));
            match plan(&reader, &catalog, &request(Target::Lsn(moment.lsn)), self.clock.now()).await {
                Ok(_) => self.counts.add("judged: restores planned"),
                Err(error) => violate(format!("no restore to {} of {}: {error}", moment.lsn, moment.at)),
            }
        }
    }

    fn choose(&self, care: Care) -> Vec<Moment> {
        const SOME: usize = 5;
        let mut inner = self.inner.lock().unwrap();
        let from = self.clock.now().checked_sub(self.window).unwrap();
        let promised: Vec<Moment> = inner.moments.iter().filter(|moment| moment.at >= from).copied().collect();
        match care {
            Care::All => promised,
            // The oldest is what goes first.
            Care::Some if promised.len() > SOME => {
                let random = &mut inner.random;
                let others = (1..SOME).map(|_| promised[random.usize(1..promised.len())]);
                [promised[0]].into_iter().chain(others).collect()
            }
            Care::Some => promised,
        }
    }
}

fn request(target: Target) -> Request {
    Request { target, exclusive: true, backup: None, timeline: Some(TimelineId(1)), action: TargetAction::Promote }
}

/// A finished base backup is before it, and no hole between.
fn must_be_restorable(catalog: &Catalog, lsn: Lsn) -> bool {
    let is_whole = |start: Lsn| catalog.gaps.iter().all(|gap| gap.range.end <= start || gap.range.start >= lsn);
    catalog.finished_backups().any(|backup| backup.end_lsn <= lsn && is_whole(backup.start_lsn))
}
