//! A store that fails in every way the contract allows, and crashes the archiver where it is told to.

use crate::counts::Counts;
use crate::ledger::Ledger;
use async_trait::async_trait;
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use seawall::wal::Lsn;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Where to crash, relative to one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// It never reached the store.
    Before,
    /// It happened, and its reply never came.
    BeforeReply,
    /// Its reply came, and so many turns of the scheduler passed.
    After(usize),
}

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
    outage_until: Mutex<Instant>,
    operations: AtomicU64,
    crash: Mutex<Option<(u64, Crash)>>,
    crashed: Notify,
    /// What the server has now: what it has not may be noted as lost.
    kept: Mutex<(Lsn, Lsn)>,
}

/// What becomes of one operation.
enum Fate {
    Fine,
    LostReply,
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
            outage_until: Mutex::new(Instant::now()),
            operations: AtomicU64::new(0),
            crash: Mutex::new(None),
            crashed: Notify::new(),
            kept: Mutex::default(),
        };
        SimStore { memory, shared: Arc::new(shared) }
    }

    pub fn set_faulty(&self, faulty: bool) {
        *self.shared.is_faulty.lock().unwrap() = faulty;
        *self.shared.outage_until.lock().unwrap() = Instant::now();
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

    pub fn set_kept(&self, kept: (Lsn, Lsn)) {
        *self.shared.kept.lock().unwrap() = kept;
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
    async fn begin(&self, action: &'static str, key: &str, may_be_late: bool) -> Result<Fate, StoreError> {
        let operation = self.shared.operations.fetch_add(1, Ordering::Relaxed) + 1;
        let crash = self.crash_for(operation);
        let failed = |kind| Err(StoreError::new(kind, action, key.to_owned()).because("as the simulation wants it"));
        let (mut pause, draw, late) = {
            let mut random = self.shared.random.lock().unwrap();
            (Duration::from_millis(random.u64(1..40)), random.u32(0..100), Duration::from_millis(random.u64(1..60_000)))
        };
        if let Some(crash) = crash {
            return match crash {
                Crash::Before => self.hang().await,
                Crash::BeforeReply => Ok(Fate::NoReply),
                Crash::After(turns) => Ok(Fate::CrashAfter(turns)),
            };
        }
        let outage = *self.shared.outage_until.lock().unwrap() > Instant::now();
        let draw = if *self.shared.is_faulty.lock().unwrap() { draw } else { 100 };
        let count = |what| self.shared.counts.add(what);
        let fate = match draw {
            _ if outage => {
                count("store: outage");
                failed(StoreErrorKind::Transient)
            }
            0..4 => {
                count("store: rejected");
                failed(StoreErrorKind::Transient)
            }
            4..7 => {
                count("store: throttled");
                failed(StoreErrorKind::Throttled)
            }
            7..11 => {
                count("store: reply lost");
                Ok(Fate::LostReply)
            }
            11..17 => {
                count("store: slow");
                pause = late / 3;
                Ok(Fate::Fine)
            }
            17..21 if may_be_late => {
                count("store: given up and stored later");
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
            Fate::Fine => result,
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

    async fn create_now(&self, key: &str, body: &Body, metadata: &Metadata) -> Result<Created, StoreError> {
        let created = self.memory.create(key, body.clone(), metadata.clone()).await?;
        if created == Created::New {
            self.shared.ledger.stored(key, &body.pieces().concat(), *self.shared.kept.lock().unwrap());
        }
        Ok(created)
    }
}

#[async_trait]
impl Store for SimStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let fate = self.begin("store", key, true).await?;
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
        let fate = self.begin("read", key, false).await?;
        let read = self.memory.get(key, range).await;
        self.end(fate, read).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let fate = self.begin("look at", key, false).await?;
        let mut head = self.memory.head(key).await;
        if let Ok(head) = &mut head
            && *self.shared.is_faulty.lock().unwrap()
            && self.shared.random.lock().unwrap().u32(0..10) == 0
        {
            self.shared.counts.add("store: metadata lost");
            head.metadata.clear();
        }
        self.end(fate, head).await
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.shared.counts.add("listings");
        let fate = self.begin("list", prefix, false).await?;
        let page = self.memory.list_page(prefix, token).await;
        self.end(fate, page).await
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.shared.counts.add("listings");
        let fate = self.begin("list", prefix, false).await?;
        let level = self.memory.list_level(prefix).await;
        self.end(fate, level).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let fate = self.begin("delete", key, false).await?;
        if self.memory.head(key).await.is_ok() {
            self.memory.delete(key).await?;
            self.shared.counts.add("tails deleted");
            self.shared.ledger.deleted(key);
        }
        self.end(fate, Ok(())).await
    }

    async fn begin_upload(&self, _: &str, _: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        Err(StoreError::new(StoreErrorKind::Unsupported, "store", "an upload, which an archiver never does"))
    }

    fn describe(&self) -> String {
        "simulated:".to_owned()
    }
}
