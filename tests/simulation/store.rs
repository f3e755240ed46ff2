//! A store that fails in every way the contract allows, and crashes the archiver where it is told to.

use crate::counts::Counts;
use crate::ledger::Ledger;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectInfo, ObjectStream, Store, StoreError,
    StoreErrorKind, Upload,
};
use seawall::wal::SegmentSize;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Where to crash, relative to one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// It happened, and its reply never came.
    BeforeReply,
    /// Its reply came, and so many turns of the scheduler passed.
    After(usize),
}

/// A listing may still show what was deleted so long ago.
const GHOST_AGE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct SimStore {
    pub memory: MemoryStore,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
    random: Mutex<fastrand::Rng>,
    is_faulty: Mutex<bool>,
    denies_deletes: Mutex<bool>,
    outage_until: Mutex<Instant>,
    operations: AtomicU64,
    crash: Mutex<Option<(u64, Crash)>>,
    crashed: Notify,
    deleted: Mutex<VecDeque<(Instant, ObjectInfo)>>,
}

/// What becomes of one operation.
enum Fate {
    Fine,
    LostReply,
    /// A read breaks off somewhere in the body.
    Cut,
    /// The caller hears of a failure, and it happens nevertheless, some time later.
    Late(Duration),
    NoReply,
    CrashAfter(usize),
}

impl SimStore {
    pub fn new(memory: MemoryStore, ledger: Arc<Ledger>, counts: Arc<Counts>, seed: u64) -> SimStore {
        let shared = Shared {
            ledger,
            counts,
            random: Mutex::new(fastrand::Rng::with_seed(seed ^ 0x5707_E000)),
            is_faulty: Mutex::new(false),
            denies_deletes: Mutex::new(false),
            outage_until: Mutex::new(Instant::now()),
            operations: AtomicU64::new(0),
            crash: Mutex::new(None),
            crashed: Notify::new(),
            deleted: Mutex::default(),
        };
        SimStore { memory, shared: Arc::new(shared) }
    }

    pub fn set_faulty(&self, faulty: bool) {
        *self.shared.is_faulty.lock().unwrap() = faulty;
        *self.shared.outage_until.lock().unwrap() = Instant::now();
    }

    /// The archiver may not delete, from the beginning to the end.
    pub fn deny_deletes(&self) {
        *self.shared.denies_deletes.lock().unwrap() = true;
    }

    pub fn fail_for(&self, time: Duration) {
        *self.shared.outage_until.lock().unwrap() = Instant::now() + time;
    }

    pub fn operations(&self) -> u64 {
        self.shared.operations.load(Ordering::Relaxed)
    }

    pub fn crash_at(&self, operation: u64, crash: Crash) {
        *self.shared.crash.lock().unwrap() = Some((operation, crash));
    }

    pub async fn crashed(&self) {
        self.shared.crashed.notified().await;
    }

    pub fn segment_size(&self) -> SegmentSize {
        self.shared.ledger.wal.size
    }

    pub fn is_faulty(&self) -> bool {
        *self.shared.is_faulty.lock().unwrap()
    }

    fn draw(&self, range: Range<u64>) -> u64 {
        self.shared.random.lock().unwrap().u64(range)
    }

    fn count(&self, what: &'static str) {
        self.shared.counts.add(what);
    }

    fn crash_for(&self, operation: u64) -> Option<Crash> {
        let mut plan = self.shared.crash.lock().unwrap();
        match *plan {
            Some((at, crash)) if at == operation => {
                *plan = None;
                Some(crash)
            }
            _ => None,
        }
    }

    /// Time passes, and the fate of the operation is drawn. An error is its end.
    async fn begin(&self, action: &'static str, key: &str) -> Result<Fate, StoreError> {
        let operation = self.shared.operations.fetch_add(1, Ordering::Relaxed) + 1;
        let crash = self.crash_for(operation);
        let failed = |kind| Err(StoreError::new(kind, action, key.to_owned()).because("as the simulation wants it"));
        let mut pause = Duration::from_millis(self.draw(1..40));
        let (draw, late) = (self.draw(0..100), Duration::from_millis(self.draw(1..60_000)));
        if let Some(crash) = crash {
            return match crash {
                Crash::BeforeReply => Ok(Fate::NoReply),
                Crash::After(turns) => Ok(Fate::CrashAfter(turns)),
            };
        }
        let outage = *self.shared.outage_until.lock().unwrap() > Instant::now();
        let draw = if self.is_faulty() { draw } else { 100 };
        let fate = match draw {
            _ if outage => {
                self.count("store: outage");
                failed(StoreErrorKind::Transient)
            }
            0..3 => {
                self.count("store: rejected");
                failed(StoreErrorKind::Transient)
            }
            3..5 if action == "store" => {
                self.count("store: request cut");
                failed(StoreErrorKind::Transient)
            }
            3..6 if action == "read" => Ok(Fate::Cut),
            6..8 => {
                self.count("store: throttled");
                failed(StoreErrorKind::Throttled)
            }
            8..11 => {
                self.count("store: reply lost");
                Ok(Fate::LostReply)
            }
            11..17 => {
                self.count("store: answers late");
                pause = late / 3;
                Ok(Fate::Fine)
            }
            17..21 if action == "store" => {
                self.count("store: given up and stored later");
                Ok(Fate::Late(late))
            }
            _ => Ok(Fate::Fine),
        };
        sleep(pause).await;
        fate
    }

    /// Delivers the reply, or does not.
    async fn end<T>(&self, fate: Fate, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match fate {
            Fate::Fine | Fate::Cut => result,
            Fate::NoReply => self.hang().await,
            Fate::CrashAfter(turns) => {
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    shared.crashed.notify_one();
                });
                result
            }
            Fate::LostReply | Fate::Late(_) => {
                Err(StoreError::new(StoreErrorKind::Transient, "hear of", "what was asked")
                    .because("the reply is lost"))
            }
        }
    }

    async fn hang<T>(&self) -> T {
        self.shared.crashed.notify_one();
        std::future::pending().await
    }

    pub async fn create_now(&self, key: &str, body: &Body, metadata: &Metadata) -> Result<Created, StoreError> {
        // A copy: what it was given is the archiver's memory, and counted for as long as anybody has it.
        let whole = Bytes::from(body.pieces().concat());
        let created = self.memory.create(key, whole.clone().into(), metadata.clone()).await?;
        if created == Created::New {
            self.shared.ledger.stored(key, &whole);
        }
        Ok(created)
    }

    pub async fn delete_now(&self, key: &str) -> Result<(), StoreError> {
        if let Ok(head) = self.memory.head(key).await {
            self.memory.delete(key).await?;
            self.count("tails deleted");
            self.shared.ledger.deleted(key);
            self.shared.deleted.lock().unwrap().push_back((Instant::now(), head.info));
        }
        Ok(())
    }

    /// What was deleted while the listing was made, or shortly before, may still be on it.
    fn add_ghosts(&self, prefix: &str, objects: &mut Vec<ObjectInfo>) {
        let mut deleted = self.shared.deleted.lock().unwrap();
        while deleted.front().is_some_and(|(at, _)| at.elapsed() > GHOST_AGE) {
            deleted.pop_front();
        }
        if !self.is_faulty() || self.draw(0..4) > 0 {
            return;
        }
        for (_, info) in deleted.iter().filter(|(_, info)| info.key.starts_with(prefix)) {
            if objects.iter().all(|object| object.key != info.key) {
                self.count("store: stale listing");
                objects.push(info.clone());
            }
        }
    }
}

#[async_trait]
impl Store for SimStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let fate = self.begin("store", key).await?;
        if let Fate::Late(time) = fate {
            let (store, key) = (self.clone(), key.to_owned());
            tokio::spawn(async move {
                sleep(time).await;
                let _ = store.create_now(&key, &body, &metadata).await;
            });
            return self.end(fate, Ok(Created::New)).await;
        }
        let created = self.create_now(key, &body, &metadata).await;
        self.end(fate, created).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        let fate = self.begin("read", key).await?;
        let mut read = self.memory.get(key, range).await;
        if let (Fate::Cut, Ok(stream)) = (&fate, &mut read) {
            self.count("store: reply cut");
            let bytes: Vec<Bytes> = std::mem::replace(&mut stream.bytes, stream::empty().boxed())
                .filter_map(|piece| async { piece.ok() })
                .collect()
                .await;
            let whole = Bytes::from(bytes.concat());
            let kept = whole.slice(..self.draw(0..whole.len() as u64 + 1) as usize);
            let error = StoreError::new(StoreErrorKind::Transient, "read", key).because("connection reset by peer");
            stream.bytes = stream::iter([Ok(kept), Err(error)]).boxed();
        }
        self.end(fate, read).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let fate = self.begin("look at", key).await?;
        let mut head = self.memory.head(key).await;
        if let Ok(head) = &mut head
            && self.is_faulty()
            && self.draw(0..10) == 0
        {
            self.count("store: metadata lost");
            head.metadata.clear();
        }
        self.end(fate, head).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.count("listings");
        // As it was when it was asked for: what comes while it is under way is not on it.
        let page = self.memory.list_page(prefix, token).await;
        let fate = self.begin("list", prefix).await?;
        let mut page = page?;
        self.add_ghosts(prefix, &mut page.objects);
        self.end(fate, Ok(page)).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.count("listings");
        let level = self.memory.list_level(prefix).await;
        let fate = self.begin("list", prefix).await?;
        self.end(fate, level).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let fate = self.begin("delete", key).await?;
        if *self.shared.denies_deletes.lock().unwrap() {
            self.count("store: delete denied");
            return Err(StoreError::new(StoreErrorKind::Denied, "delete", key));
        }
        let deleted = self.delete_now(key).await;
        self.end(fate, deleted).await
    }

    async fn begin_upload(&self, _: &str, _: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        Err(StoreError::new(StoreErrorKind::Unsupported, "store", "an upload, which an archiver never does"))
    }

    fn describe(&self) -> String {
        "simulated:".to_owned()
    }
}
