//! Who may do what is scheduled: one process at a time, also across machines. Uses `repository` and `store`.
//!
//! A store never gives a name second bytes, so a lease is a number that counts up: who creates the next one has it, and renews it by
//! creating the next again. Whoever wants it and sees one number stand still for [`EXPIRES_AFTER`] by its own clock takes the next:
//! the holder is dead, or its store is. No two machines' clocks are compared.
//!
//! Nothing that is stored depends on it. Two backups, verifications or prunings at once do no harm; they only cost twice.

use crate::error::{Kind, Result};
use crate::repository::{Actor, FORMAT_VERSION, Key, Repository, Writer};
use crate::runtime::Clock;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

/// How often who has it says that he is alive.
const RENEWED_EVERY: Duration = Duration::from_secs(60);

/// Who has not done so for so long has lost it. He knows a minute before.
const EXPIRES_AFTER: Duration = Duration::from_secs(5 * 60);

/// Without a renewal for so long, who has it no longer has it.
const LOST_AFTER: Duration = Duration::from_secs(4 * 60);

/// Who has the lease, for whom it may concern.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// [`FORMAT_VERSION`].
    format: u32,
    /// Who.
    pub by: Actor,
    /// Which process of his: no two have the same.
    process: String,
    /// What he does.
    pub job: String,
    /// When he said so, by his clock.
    pub at: Timestamp,
    /// He is done: anybody may take the next number at once.
    #[serde(default)]
    released: bool,
}

/// The lease of a cluster, as one process sees it.
#[derive(Debug)]
pub struct Lease {
    repository: Repository,
    writer: Writer,
    by: Actor,
    process: String,
    clock: Clock,
    /// The number that somebody else has, and since when it stands still.
    seen: Option<(u64, Instant)>,
}

/// What came of asking for it.
#[derive(Debug)]
pub enum Held<'a> {
    /// It is ours.
    ByUs(Tenure<'a>),
    /// It is somebody else's.
    ByOther(Option<Holder>),
}

impl Lease {
    /// The lease of the cluster in this folder, for this process.
    pub fn new(repository: Repository, writer: Writer, by: Actor, clock: Clock) -> Lease {
        let process = format!("{}-{}-{}", by.host, std::process::id(), clock.now().as_microsecond());
        Lease { repository, writer, by, process, clock, seen: None }
    }

    /// Takes it, unless somebody else has it who is alive. One listing, and mostly one object.
    ///
    /// # Errors
    /// What the store says.
    pub async fn take(&mut self, job: &str) -> Result<Held<'_>> {
        let numbers = self.numbers().await?;
        let newest = numbers.iter().copied().max();
        let mut after = None;
        if let Some(newest) = newest {
            let holder = self.holder(newest).await?;
            // Our own that was not given back, because the store did not answer: one process does one thing at a time.
            let is_free = holder.as_ref().is_some_and(|holder| holder.released || holder.process == self.process);
            let since = match self.seen {
                Some((number, since)) if number == newest => since,
                _ => Instant::now(),
            };
            self.seen = Some((newest, since));
            if !is_free && since.elapsed() < EXPIRES_AFTER {
                return Ok(Held::ByOther(holder));
            }
            after = holder.filter(|_| !is_free);
        }
        let number = newest.map_or(1, |newest| newest.saturating_add(1));
        if !self.create(number, job, false).await? {
            // Somebody was quicker.
            self.seen = Some((number, Instant::now()));
            return Ok(Held::ByOther(self.holder(number).await?));
        }
        for old in numbers {
            self.delete(old).await;
        }
        Ok(Held::ByUs(Tenure { lease: self, job: job.to_owned(), number, renewed: Instant::now(), after }))
    }

    /// Every number that is there.
    async fn numbers(&self) -> Result<Vec<u64>> {
        let layout = &self.repository.layout;
        let objects = self.repository.store.list_level(&layout.open_root()).await?.objects;
        let number = |name: &str| if let Ok(Key::Lease(number)) = layout.parse(name) { Some(number) } else { None };
        Ok(objects.iter().filter_map(|object| number(&object.key)).collect())
    }

    /// Takes the next number behind `number`, which was ours. Not if others are farther: a process that slept through its end
    /// may find a number free that others had and have deleted.
    async fn renew(&self, number: u64, job: &str) -> Result<bool> {
        if !self.create(number, job, false).await? {
            return Ok(false);
        }
        let is_ours = self.numbers().await?.iter().all(|other| *other <= number);
        if !is_ours {
            self.delete(number).await;
        }
        Ok(is_ours)
    }

    /// Who has a number; `None` where that is gone already, or says nothing that can be read.
    async fn holder(&self, number: u64) -> Result<Option<Holder>> {
        match self.repository.read_document(&Key::Lease(number)).await {
            Err(error) if error.kind() == Kind::Damaged => Ok(None),
            read => read,
        }
    }

    /// True if the number is ours now.
    async fn create(&self, number: u64, job: &str, released: bool) -> Result<bool> {
        let (by, process, job, at) = (self.by.clone(), self.process.clone(), job.to_owned(), self.clock.now());
        let holder = Holder { format: FORMAT_VERSION, by, process, job, at, released };
        match self.writer.store_document(&Key::Lease(number), &holder).await {
            Ok(_) => Ok(true),
            // Perhaps an attempt of ours, whose reply was lost.
            Err(error) if error.kind() == Kind::Diverged => {
                Ok(self.holder(number).await?.is_some_and(|holder| holder.process == self.process))
            }
            Err(error) => Err(error),
        }
    }

    /// Best effort: what stays is passed over by everybody.
    async fn delete(&self, number: u64) {
        let _ = self.repository.store.delete(&self.repository.layout.name(&Key::Lease(number))).await;
    }
}

/// It is ours, as long as it is renewed.
#[derive(Debug)]
pub struct Tenure<'a> {
    lease: &'a Lease,
    job: String,
    number: u64,
    renewed: Instant,
    after: Option<Holder>,
}

impl Tenure<'_> {
    /// Who had it before and did not give it back: what he was at, he is at no longer.
    pub fn after(&self) -> Option<&Holder> {
        self.after.as_ref()
    }

    /// Does `work` while the lease is renewed, and gives it back. If it is lost, the work is done nevertheless: nothing that is stored
    /// depends on it, and half a base backup is worth nothing. Dropped, it is somebody else's after five minutes.
    ///
    /// # Errors
    /// What came of `work`.
    pub async fn hold<T>(mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let why = {
            let lost = self.renew();
            tokio::select! {
                biased;
                ended = &mut work => Ok(ended),
                why = lost => Err(why),
            }
        };
        match why {
            Ok(ended) => {
                self.release().await;
                ended
            }
            Err(why) => {
                tracing::warn!(job = self.job, why, "the lease is lost: another archiver may do the same now");
                work.await
            }
        }
    }

    /// Renews until that is no longer possible, and says why.
    async fn renew(&mut self) -> String {
        loop {
            tokio::time::sleep(RENEWED_EVERY).await;
            let next = self.number.saturating_add(1);
            let left = LOST_AFTER.saturating_sub(self.renewed.elapsed());
            // From here on it counts: the reply may take its time.
            let asked = Instant::now();
            let created = tokio::time::timeout(left, self.lease.renew(next, &self.job)).await;
            match created {
                Ok(Ok(true)) => {
                    self.lease.delete(self.number).await;
                    (self.number, self.renewed) = (next, asked);
                }
                Ok(Ok(false)) => return "another process took it, because this one was silent".to_owned(),
                Ok(Err(_)) if self.renewed.elapsed() < LOST_AFTER => {}
                Ok(Err(error)) => return format!("it could not be renewed: {error}"),
                Err(_) => return "the store did not answer in time".to_owned(),
            }
        }
    }

    /// Best effort: without it, others wait until it expires.
    async fn release(&self) {
        let next = self.number.saturating_add(1);
        if matches!(self.lease.create(next, &self.job, true).await, Ok(true)) {
            self.lease.delete(self.number).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use crate::repository::Layout;
    use crate::store::{MemoryStore, Store};
    use crate::wal::SegmentSize;
    use std::sync::Arc;
    use tokio::time::sleep;

    fn lease(store: &Arc<dyn Store>, host: &str) -> Lease {
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let writer = Writer::new(store.clone(), layout.clone(), 7);
        let by = Actor { user: "postgres".to_owned(), host: host.to_owned(), command: "run".to_owned() };
        let clock = Clock::simulated("2026-11-22T08:00:00Z".parse().unwrap());
        Lease::new(Repository { store: store.clone(), layout }, writer, by, clock)
    }

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::new())
    }

    /// Takes it as soon as it can be had, asking once a minute.
    async fn wait_for(lease: &mut Lease, job: &str) -> Duration {
        let began = Instant::now();
        loop {
            match lease.take(job).await.unwrap() {
                Held::ByUs(_) => return began.elapsed(),
                Held::ByOther(_) => sleep(Duration::from_secs(60)).await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_it_keeps_it_as_long_as_he_works_and_gives_it_back() {
        let store = store();
        let (mut first, mut second) = (lease(&store, "db1"), lease(&store, "db2"));
        // Given a job of three hours, and another machine that asks for the lease all the while
        let Held::ByUs(tenure) = first.take("full").await.unwrap() else { panic!("nobody else has it") };
        let working = tenure.hold(async {
            sleep(Duration::from_secs(3 * 3600)).await;
            Ok(())
        });
        let began = Instant::now();
        let asking = async {
            match second.take("full").await.unwrap() {
                Held::ByOther(Some(holder)) => {
                    assert_eq!((holder.by.host.as_str(), holder.job.as_str()), ("db1", "full"))
                }
                other => panic!("{other:?}"),
            }
            wait_for(&mut second, "full").await
        };
        let (worked, _) = tokio::join!(working, asking);
        worked.unwrap();
        // Then it gets it when the job is done, and not before, and at once
        assert!(began.elapsed() >= Duration::from_secs(3 * 3600));
        assert!(began.elapsed() < Duration::from_secs(3 * 3600 + 120));
        // And one small object is what is left of it
        assert_eq!(store.list_level("main/open/").await.unwrap().objects.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_died_is_followed_after_minutes_and_one_that_slept_finds_out() {
        let store = store();
        let (mut first, mut second) = (lease(&store, "db1"), lease(&store, "db2"));
        let Held::ByUs(tenure) = first.take("verify").await.unwrap() else { panic!("nobody else has it") };
        // Given a holder that says nothing more: dead, or asleep
        let waited = wait_for(&mut second, "verify").await;
        assert!(waited >= EXPIRES_AFTER && waited <= EXPIRES_AFTER + Duration::from_secs(60), "{waited:?}");
        // When others have come and gone since, so that the number it would take next is free
        for _ in 0..3 {
            wait_for(&mut second, "verify").await;
        }
        assert!(!store.list_level("main/open/").await.unwrap().objects.iter().any(|object| object.key.ends_with("2")));
        // Then it does not take that number when it wakes, and ends its work without the lease
        let work = async {
            sleep(Duration::from_secs(3600)).await;
            Ok("done")
        };
        assert_eq!(tenure.hold(work).await.unwrap(), "done");
        let objects = store.list_level("main/open/").await.unwrap().objects;
        let left: Vec<&str> = objects.iter().map(|object| object.key.rsplit('/').next().unwrap()).collect();
        assert_eq!(left, ["lease-0000000000000005"], "what others had last");
    }

    #[tokio::test(start_paused = true)]
    async fn of_any_number_that_ask_at_once_one_gets_it() {
        let store = store();
        let mut leases: Vec<Lease> = (0..20).map(|number| lease(&store, &format!("db{number}"))).collect();
        let asked = leases.iter_mut().map(|lease| lease.take("full"));
        let asked = futures_util::future::join_all(asked).await;
        let ours = asked.iter().filter(|held| matches!(held, Ok(Held::ByUs(_)))).count();
        assert_eq!((asked.len(), ours), (20, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_expires_like_any_other() {
        let store = store();
        store
            .create("main/open/lease-0000000000000005", bytes::Bytes::from_static(b"{").into(), Default::default())
            .await
            .unwrap();
        let mut lease = lease(&store, "db1");
        assert!(matches!(lease.take("full").await.unwrap(), Held::ByOther(None)));
        assert!(wait_for(&mut lease, "full").await >= EXPIRES_AFTER);
    }
}
