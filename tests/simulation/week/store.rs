//! A store that fails now and then, and asks the judge after every deletion.

use super::judge::Judge;
use crate::counts::Counts;
use async_trait::async_trait;
use seawall::repository::Key;
use seawall::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload,
};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One operation in so many fails, and the reply to one in so many is lost.
const FAILS: u32 = 150;

#[derive(Clone, Debug)]
pub struct WeekStore {
    pub memory: MemoryStore,
    pub judge: Arc<Judge>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counts: Arc<Counts>,
    random: Mutex<fastrand::Rng>,
    outage_until: Mutex<Instant>,
    /// So many deletions more, and one is refused that a prune asks for.
    refuses: Mutex<Option<u32>>,
    never_fails: AtomicBool,
}

impl WeekStore {
    pub fn new(memory: MemoryStore, judge: Arc<Judge>, counts: Arc<Counts>, seed: u64) -> WeekStore {
        let shared = Shared {
            counts,
            random: Mutex::new(fastrand::Rng::with_seed(seed ^ 0x5707_E000)),
            outage_until: Mutex::new(Instant::now()),
            refuses: Mutex::default(),
            never_fails: AtomicBool::new(false),
        };
        WeekStore { memory, judge, shared: Arc::new(shared) }
    }

    pub fn fail_for(&self, time: Duration) {
        *self.shared.outage_until.lock().unwrap() = Instant::now() + time;
    }

    /// From now on.
    pub fn fail_never(&self) {
        self.shared.never_fails.store(true, Ordering::Relaxed);
    }

    /// One deletion of the next prune is refused.
    pub fn refuse_one(&self) {
        *self.shared.refuses.lock().unwrap() = Some(0);
    }

    fn draw(&self, range: Range<u32>) -> u32 {
        self.shared.random.lock().unwrap().u32(range)
    }

    /// Time passes, or it fails. True: it happens, and its reply is lost.
    async fn begin(&self, action: &'static str, key: &str) -> Result<bool, StoreError> {
        let failed = || StoreError::new(StoreErrorKind::Transient, action, key).because("as the simulation wants it");
        self.shared.counts.add(match action {
            "store" => "asked: to store",
            "list" => "asked: to list",
            "read" => "asked: to read",
            "look at" => "asked: to look at",
            _ => "asked: to delete",
        });
        sleep(Duration::from_millis(u64::from(self.draw(1..30)))).await;
        if self.shared.never_fails.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if *self.shared.outage_until.lock().unwrap() > Instant::now() {
            self.shared.counts.add("store: outage");
            return Err(failed());
        }
        match self.draw(0..FAILS) {
            0 => {
                self.shared.counts.add("store: failed");
                Err(failed())
            }
            1 => {
                self.shared.counts.add("store: reply lost");
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn end<T>(is_lost: bool, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match is_lost {
            true => Err(StoreError::new(StoreErrorKind::Transient, "hear of", "what was asked").because("lost")),
            false => result,
        }
    }

    /// Only what prune alone deletes counts.
    fn is_refused(&self, key: &str) -> bool {
        let is_of_prune = !matches!(self.judge.layout.parse(key), Ok(Key::Tail(_) | Key::Lease(_) | Key::BackupEnd(_)));
        let mut refuses = self.shared.refuses.lock().unwrap();
        match refuses.filter(|_| is_of_prune) {
            Some(0) => {
                *refuses = None;
                true
            }
            Some(left) => {
                *refuses = Some(left - 1);
                false
            }
            None => false,
        }
    }
}

#[async_trait]
impl Store for WeekStore {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        let is_lost = self.begin("store", key).await?;
        let created = self.memory.create(key, body.clone(), metadata).await;
        if matches!(created, Ok(Created::New)) {
            self.judge.stored(key, &body);
        }
        WeekStore::end(is_lost, created)
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        let is_lost = self.begin("read", key).await?;
        WeekStore::end(is_lost, self.memory.get(key, range).await)
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let is_lost = self.begin("look at", key).await?;
        WeekStore::end(is_lost, self.memory.head(key).await)
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        let is_lost = self.begin("list", prefix).await?;
        WeekStore::end(is_lost, self.memory.list_page(prefix, token).await)
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        let is_lost = self.begin("list", prefix).await?;
        WeekStore::end(is_lost, self.memory.list_level(prefix).await)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let is_lost = self.begin("delete", key).await?;
        if self.is_refused(key) {
            self.shared.counts.add("prune: a deletion refused");
            return Err(StoreError::new(StoreErrorKind::Denied, "delete", key));
        }
        let deleted = self.memory.delete(key).await;
        self.judge.deleted(key).await;
        WeekStore::end(is_lost, deleted)
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.memory.begin_upload(key, metadata).await
    }

    fn describe(&self) -> String {
        "simulated:".to_owned()
    }
}
