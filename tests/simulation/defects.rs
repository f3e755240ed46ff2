//! Deliberate defects, built around the archiver's source and store: production code has no switch for them. Each must be
//! caught by the invariant that is named for it, or the net has a hole.

use crate::invariant::Invariant;
use crate::life::{GOES_ITS_OWN_WAY, Life, PROMOTIONS, live_through};
use crate::store::SimStore;
use crate::{counts::Counts, simulate};
use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{
    Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError, Standing, Started,
    TimelineEnd,
};
use seawall::codec::Compression;
use seawall::repository::{Key, Layout};
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use seawall::wal::{Lsn, TimelineId};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// What was received is reported as flushed.
    AcknowledgesOnReceipt,
    /// The end of whatever was stored last is reported as flushed, holes before it or not.
    AcknowledgesOutOfOrder,
    /// Now and then an older position is reported.
    AcknowledgesBackwards,
    /// "Exists" is taken for "stored", and nothing that comes again is compared.
    SkipsTheComparison,
    /// History files are taken for stored, and are not.
    ForgetsTheHistory,
    /// A tail is deleted as soon as the next one is stored.
    DeletesWhatIsNotCovered,
    /// What the server no longer has is passed over, and nobody else can read the note.
    PassesOverHoles,
    /// Something is recorded as lost that is not.
    InventsHoles,
    /// Objects are cut.
    StoresParts,
    /// A name that exists is written over.
    WritesOver,
    /// Whoever comes streams through the slot, and moves it.
    SharesTheSlot,
    /// An archiver that is told to stop tells nobody what it has stored.
    LeavesWithoutAWord,
    /// Once a newer timeline is known, nothing more of the old one is stored.
    LosesTheParentsEnd,
}

impl Defect {
    pub fn build(self, sim: &SimStore, source: Arc<dyn Source>) -> (Arc<dyn Store>, Arc<dyn Source>) {
        let shared = Arc::new(Shared {
            defect: self,
            sim: sim.clone(),
            stored: AtomicU64::new(0),
            told: AtomicU64::new(0),
            newest: AtomicU32::new(0),
            last_tail: Mutex::new(None),
            imagined: MemoryStore::new(),
        });
        (Arc::new(BadStore(shared.clone())), Arc::new(BadSource { inner: source, shared }))
    }
}

#[derive(Debug)]
struct Shared {
    defect: Defect,
    sim: SimStore,
    /// The end of the last WAL that was stored, in the order of replies.
    stored: AtomicU64,
    told: AtomicU64,
    newest: AtomicU32,
    last_tail: Mutex<Option<String>>,
    /// What the archiver alone takes for stored.
    imagined: MemoryStore,
}

#[derive(Debug)]
struct BadStore(Arc<Shared>);

fn key_of(sim: &SimStore, name: &str) -> Option<Key> {
    let layout = Layout::new(crate::ledger::CLUSTER, sim.segment_size(), Compression::Lz4);
    layout.parse(name).ok()
}

#[async_trait]
impl Store for BadStore {
    async fn create(&self, name: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let sim = &self.0.sim;
        let key = key_of(sim, name);
        match (self.0.defect, &key) {
            (Defect::ForgetsTheHistory, Some(Key::History(_))) | (Defect::PassesOverHoles, Some(Key::Gap(_))) => {
                return self.0.imagined.create(name, body, metadata).await;
            }
            (Defect::LosesTheParentsEnd, Some(Key::History(timeline))) => {
                self.0.newest.fetch_max(timeline.0, Ordering::Relaxed);
            }
            (Defect::LosesTheParentsEnd, Some(Key::Block(range) | Key::Tail(range)))
                if range.timeline.0 < self.0.newest.load(Ordering::Relaxed) =>
            {
                return Ok(Created::New);
            }
            (Defect::StoresParts, Some(Key::Tail(_))) => {
                let whole = body.pieces().concat();
                let part = Bytes::from(whole).slice(..body.bytes() as usize / 2);
                return sim.create(name, part.into(), metadata).await;
            }
            (Defect::InventsHoles, Some(Key::Tail(range))) => {
                let gap = Key::Gap(*range);
                let layout = Layout::new(crate::ledger::CLUSTER, sim.segment_size(), Compression::Lz4);
                let _ = sim.create_now(&layout.name(&gap), &Body::from(Bytes::from("{}")), &Metadata::new()).await;
            }
            (Defect::WritesOver, Some(Key::Block(_) | Key::Tail(_))) => {
                if sim.memory.head(name).await.is_ok() {
                    sim.memory.delete(name).await?;
                    let mut other = body.pieces().concat();
                    other.push(0);
                    sim.create_now(name, &Body::from(Bytes::from(other)), &metadata).await?;
                    return Ok(Created::Exists);
                }
            }
            _ => {}
        }
        let mut created = sim.create(name, body, metadata).await?;
        if let Some(Key::Block(range) | Key::Tail(range)) = &key {
            self.0.stored.store(range.end.0, Ordering::Relaxed);
            if self.0.defect == Defect::SkipsTheComparison {
                created = Created::New;
            }
        }
        if let Some(Key::Tail(_)) = key {
            let last = self.0.last_tail.lock().unwrap().replace(name.to_owned());
            if let (Defect::DeletesWhatIsNotCovered, Some(last)) = (self.0.defect, last) {
                let _ = sim.delete_now(&last).await;
            }
        }
        Ok(created)
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        match self.0.imagined.get(key, range.clone()).await {
            Ok(imagined) => Ok(imagined),
            Err(_) => self.0.sim.get(key, range).await,
        }
    }

    async fn head(&self, name: &str) -> Result<ObjectHead, StoreError> {
        let is_wal = matches!(key_of(&self.0.sim, name), Some(Key::Block(_) | Key::Tail(_)));
        if self.0.defect == Defect::SkipsTheComparison && is_wal {
            return Err(StoreError::new(StoreErrorKind::NotFound, "look at", name));
        }
        self.0.sim.head(name).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        let mut page = self.0.sim.list_page(prefix, token).await?;
        if page.next.is_none() {
            page.objects.extend(self.0.imagined.list_page(prefix, None).await?.objects);
        }
        Ok(page)
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        let mut level = self.0.sim.list_level(prefix).await?;
        let imagined = self.0.imagined.list_level(prefix).await?;
        level.objects.extend(imagined.objects);
        level.prefixes.extend(imagined.prefixes);
        Ok(level)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.sim.delete(key).await
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.0.sim.begin_upload(key, metadata).await
    }

    fn describe(&self) -> String {
        self.0.sim.describe()
    }
}

#[derive(Debug)]
struct BadSource {
    inner: Arc<dyn Source>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Source for BadSource {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        let inner = self.inner.connect().await?;
        Ok(Box::new(BadSession { inner, shared: self.shared.clone() }))
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        self.inner.observe().await
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        self.inner.peek(timeline, lsn).await
    }
}

#[derive(Debug)]
struct BadSession {
    inner: Box<dyn Session>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Session for BadSession {
    fn identity(&self) -> ServerIdentity {
        self.inner.identity()
    }

    async fn history_file(&mut self, timeline: TimelineId) -> Result<Bytes, SourceError> {
        self.inner.history_file(timeline).await
    }

    async fn take_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.inner.take_slot().await
    }

    async fn renew_slot(&mut self) -> Result<SlotPosition, SourceError> {
        self.inner.renew_slot().await
    }

    async fn drop_slot(&mut self) -> Result<(), SourceError> {
        self.inner.drop_slot().await
    }

    async fn standing(&mut self) -> Result<Standing, SourceError> {
        self.inner.standing().await
    }

    async fn start(self: Box<Self>, start: Lsn, timeline: TimelineId) -> Result<Started, SourceError> {
        // Of another timeline or another session.
        self.shared.stored.store(0, Ordering::Relaxed);
        self.shared.told.store(0, Ordering::Relaxed);
        Ok(match self.inner.start(start, timeline).await? {
            Started::Streaming(inner) => Started::Streaming(Box::new(BadFeed { inner, shared: self.shared })),
            ended => ended,
        })
    }
}

#[derive(Debug)]
struct BadFeed {
    inner: Box<dyn Feed>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Feed for BadFeed {
    async fn next(&mut self) -> Result<FeedMessage, SourceError> {
        self.inner.next().await
    }

    async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply_requested: bool) -> Result<(), SourceError> {
        let before = Lsn(self.shared.told.swap(flushed.0, Ordering::Relaxed));
        let flushed = match self.shared.defect {
            Defect::AcknowledgesOnReceipt => written,
            Defect::AcknowledgesOutOfOrder if flushed.is_valid() => {
                flushed.max(Lsn(self.shared.stored.load(Ordering::Relaxed)).min(written))
            }
            Defect::AcknowledgesBackwards if before.is_valid() && flushed > before + 1000 => {
                self.inner.send_status(written, flushed, false).await?;
                before
            }
            Defect::LeavesWithoutAWord if !reply_requested => return Ok(()),
            _ => flushed,
        };
        self.inner.send_status(written, flushed, reply_requested).await
    }

    async fn end(self: Box<Self>) -> Result<(), SourceError> {
        self.inner.end().await
    }

    async fn finish_timeline(self: Box<Self>) -> Result<TimelineEnd, SourceError> {
        self.inner.finish_timeline().await
    }
}

/// Lives through seeds with the defect until the invariant fails, and through the same ones without it.
fn is_caught(defect: Defect, invariant: Invariant) {
    const SEEDS: u64 = 40;
    let counts = Arc::new(Counts::default());
    let mut seen = std::collections::BTreeSet::new();
    for seed in 1..=SEEDS {
        let mostly = match defect {
            Defect::SkipsTheComparison => Some(GOES_ITS_OWN_WAY),
            Defect::ForgetsTheHistory | Defect::LosesTheParentsEnd => Some(PROMOTIONS),
            _ => None,
        };
        let healthy = Life { mostly, ..Life::new(seed) };
        let life = Life { defect: Some(defect), ..healthy };
        let violations = simulate(seed, live_through(life, counts.clone()));
        seen.extend(violations.iter().map(|violation| violation.invariant));
        let healthy = simulate(seed, live_through(healthy, counts.clone()));
        assert!(healthy.is_empty(), "seed {seed} fails without {defect:?}: {healthy:#?}");
        if let Some(violation) = violations.iter().find(|violation| violation.invariant == invariant) {
            println!("{defect:?} is caught with seed {seed}: {violation}");
            return;
        }
    }
    panic!("{defect:?} was not caught by {invariant:?} in {SEEDS} seeds; what failed is {seen:?}");
}

macro_rules! caught {
    ($($name:ident: $defect:ident by $invariant:ident;)*) => {
        $(#[test]
        fn $name() {
            is_caught(Defect::$defect, Invariant::$invariant);
        })*
    };
}

caught! {
    acknowledging_on_receipt_is_caught: AcknowledgesOnReceipt by AcknowledgedIsStored;
    acknowledging_out_of_order_is_caught: AcknowledgesOutOfOrder by AcknowledgedIsGapFree;
    acknowledging_backwards_is_caught: AcknowledgesBackwards by AcknowledgementNeverFalls;
    skipping_the_comparison_is_caught: SkipsTheComparison by DivergenceIsFoundFirst;
    forgetting_the_history_is_caught: ForgetsTheHistory by HistoryComesFirst;
    deleting_what_is_not_covered_is_caught: DeletesWhatIsNotCovered by OnlyGarbageIsDeleted;
    passing_over_holes_is_caught: PassesOverHoles by HoleIsNotSilent;
    inventing_holes_is_caught: InventsHoles by HoleIsReal;
    storing_parts_is_caught: StoresParts by StoredIsTheServers;
    writing_over_is_caught: WritesOver by NameKeepsItsBytes;
    sharing_the_slot_is_caught: SharesTheSlot by OneMovesTheSlot;
    leaving_without_a_word_is_caught: LeavesWithoutAWord by StopLeavesNothing;
    losing_the_parents_end_is_caught: LosesTheParentsEnd by ParentIsFinished;
}
