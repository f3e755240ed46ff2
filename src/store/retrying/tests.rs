//! Retrying against a store whose failures are scripted.

use super::*;
use crate::store::{MemoryStore, Operation};
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::sync::Mutex;

/// What the next attempt meets.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Reject(StoreErrorKind, &'static str),
    /// The write happens, the reply is lost.
    LoseReply,
    /// The body breaks off after so many bytes, with an error of this kind, or without any (`None`).
    CutAt(usize, Option<StoreErrorKind>),
}

/// A store in memory that fails as told, attempt by attempt, and works when the script is over.
#[derive(Debug)]
struct Faulty {
    inner: MemoryStore,
    script: Mutex<VecDeque<Fault>>,
    ranges: Mutex<Vec<Option<Range<u64>>>>,
}

impl Faulty {
    fn new(script: impl IntoIterator<Item = Fault>) -> Arc<Faulty> {
        let script = Mutex::new(script.into_iter().collect());
        Arc::new(Faulty { inner: MemoryStore::new(), script, ranges: Mutex::default() })
    }

    fn next(&self) -> Option<Fault> {
        self.script.lock().unwrap().pop_front()
    }

    async fn meet<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match self.next() {
            Some(Fault::Reject(kind, why)) => Err(StoreError::new(kind, "store", "memory:/a").because(why)),
            Some(Fault::LoseReply) => {
                work.await?;
                Err(StoreError::new(StoreErrorKind::Transient, "store", "memory:/a").because("connection reset"))
            }
            Some(Fault::CutAt(..)) | None => work.await,
        }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        self.meet(self.inner.create(key, body, metadata)).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.ranges.lock().unwrap().push(range.clone());
        let fault = self.next();
        if let Some(Fault::Reject(kind, why)) = fault {
            return Err(StoreError::new(kind, "read", "memory:/a").because(why));
        }
        let mut stream = self.inner.get(key, range).await?;
        if let Some(Fault::CutAt(bytes, end)) = fault {
            let whole: Vec<Bytes> = stream.bytes.map(Result::unwrap).collect().await;
            let mut items = vec![Ok(whole[0].slice(..bytes))];
            items.extend(end.map(|kind| Err(StoreError::new(kind, "read", "memory:/a").because("cut"))));
            stream.bytes = stream::iter(items).boxed();
        }
        Ok(stream)
    }
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.meet(self.inner.head(key)).await
    }
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.meet(self.inner.list_page(prefix, token)).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.meet(self.inner.list_level(prefix)).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.meet(self.inner.delete(key)).await
    }
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.meet(self.inner.begin_upload(key, metadata)).await
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

const BRIEF: RetryPolicy = RetryPolicy {
    first_pause: Duration::from_millis(100),
    longest_pause: Duration::from_secs(2),
    budget: Some(Duration::from_secs(10)),
};

fn reset() -> Fault {
    Fault::Reject(StoreErrorKind::Transient, "connection reset")
}

async fn create(store: &dyn Store, text: &'static str) -> Result<Created, StoreError> {
    store.create("a", Bytes::from_static(text.as_bytes()).into(), Metadata::new()).await
}

async fn collect(store: &dyn Store, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
    store.get("a", range).await?.collect().await
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again() {
    let slow_down = Fault::Reject(StoreErrorKind::Throttled, "slow down");
    let store = RetryingStore::new(Faulty::new([reset(), slow_down, reset()]), BRIEF);
    assert_eq!(create(&store, "x").await.unwrap(), Created::New);
}

/// What was tried again.
#[derive(Default, Debug)]
struct Again(Mutex<Vec<StoreErrorKind>>);

impl StoreObserver for Again {
    fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {}

    fn tries_again(&self, error: StoreErrorKind) {
        self.0.lock().unwrap().push(error);
    }
}

#[tokio::test(start_paused = true)]
async fn who_observes_is_told_of_each_attempt_that_is_made_again_and_of_no_other() {
    let again = Arc::new(Again::default());
    let slow_down = Fault::Reject(StoreErrorKind::Throttled, "slow down");
    let denied = Fault::Reject(StoreErrorKind::Denied, "no");
    let store = RetryingStore::new(Faulty::new([slow_down, reset(), denied]), BRIEF).observed_by(again.clone());
    create(&store, "x").await.unwrap_err();
    assert_eq!(*again.0.lock().unwrap(), [StoreErrorKind::Throttled, StoreErrorKind::Transient]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_ends_in_exists() {
    let store = RetryingStore::new(Faulty::new([Fault::LoseReply]), BRIEF);
    assert_eq!(create(&store, "x").await.unwrap(), Created::Exists);
    assert_eq!(collect(&store, None).await.unwrap(), "x");
}

#[tokio::test]
async fn what_does_not_pass_returns_at_once() {
    let kinds = [
        StoreErrorKind::NotFound,
        StoreErrorKind::Range,
        StoreErrorKind::NoBucket,
        StoreErrorKind::WrongRegion,
        StoreErrorKind::Denied,
        StoreErrorKind::Credentials,
        StoreErrorKind::Full,
        StoreErrorKind::Unsupported,
        StoreErrorKind::Permanent,
    ];
    for kind in kinds {
        let store = RetryingStore::new(Faulty::new([Fault::Reject(kind, "refused")]), BRIEF);
        // Without a pause nothing has to be waited for: the first poll has the answer.
        let error = create(&store, "x").now_or_never().expect("no pause before such an error").unwrap_err();
        assert_eq!(error.kind, kind);
        assert_eq!(crate::error::Error::from(error).to_string(), "cannot store memory:/a: refused");
    }
}

#[tokio::test(start_paused = true)]
async fn giving_up_says_how_often_how_long_and_why() {
    let mut script = vec![reset(), Fault::Reject(StoreErrorKind::Throttled, "slow down")];
    script.extend([reset(); 100]);
    let faulty = Faulty::new(script);
    let store = RetryingStore::new(faulty.clone(), BRIEF);
    let start = Instant::now();

    let error = create(&store, "x").await.unwrap_err();

    assert!(start.elapsed() <= Duration::from_secs(10), "no attempt may start behind the budget");
    assert!(start.elapsed() >= Duration::from_secs(7), "most of the budget must be used: {:?}", start.elapsed());
    let attempts = 102 - faulty.script.lock().unwrap().len();
    assert_eq!(error.kind, StoreErrorKind::Transient);
    let text = crate::error::Error::from(error).to_string();
    let expected = format!(
        "cannot store memory:/a: gave up after {attempts} attempts in {:.1}s: connection reset [{}x], slow down",
        start.elapsed().as_secs_f64(),
        attempts - 1
    );
    assert_eq!(text, expected);
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_it_goes_on_for_ever() {
    let policy = RetryPolicy { budget: None, ..BRIEF };
    let store = RetryingStore::new(Faulty::new([reset(); 1_000]), policy);
    assert_eq!(create(&store, "x").await.unwrap(), Created::New);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_breaks_goes_on_where_it_was() {
    let script =
        [Fault::CutAt(3, Some(StoreErrorKind::Transient)), reset(), Fault::CutAt(2, None), Fault::CutAt(0, None)];
    let faulty = Faulty::new(script);
    create(&faulty.inner, "0123456789").await.unwrap();
    let store = RetryingStore::new(faulty.clone(), BRIEF);

    assert_eq!(collect(&store, None).await.unwrap(), "0123456789");

    let asked = std::mem::take(&mut *faulty.ranges.lock().unwrap());
    assert_eq!(asked, [None, Some(3..10), Some(3..10), Some(5..10), Some(5..10)]);
}

#[tokio::test(start_paused = true)]
async fn a_ranged_read_goes_on_inside_its_range() {
    let faulty = Faulty::new([Fault::CutAt(3, Some(StoreErrorKind::Transient))]);
    create(&faulty.inner, "0123456789").await.unwrap();
    let store = RetryingStore::new(faulty.clone(), BRIEF);

    assert_eq!(collect(&store, Some(2..8)).await.unwrap(), "234567");

    assert_eq!(*faulty.ranges.lock().unwrap(), [Some(2..8), Some(5..8)]);
}

#[tokio::test(start_paused = true)]
async fn a_read_gives_up_when_no_more_bytes_come() {
    let mut script = vec![Fault::CutAt(3, None)];
    script.extend([reset(); 100]);
    let faulty = Faulty::new(script);
    create(&faulty.inner, "0123456789").await.unwrap();
    let store = RetryingStore::new(faulty.clone(), BRIEF);

    let mut stream = store.get("a", None).await.unwrap().bytes;
    // Who takes the bytes may take its time: that is not the store's failing.
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "012");
    sleep(Duration::from_secs(3600)).await;
    let error = stream.next().await.unwrap().unwrap_err();

    assert_eq!(error.kind, StoreErrorKind::Transient);
    let text = crate::error::Error::from(error).to_string();
    assert!(text.contains("the body ended 7 bytes early, connection reset ["), "{text}");
    assert!(stream.next().await.is_none(), "an error ends the stream");
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_that_were_handed_on_are_not_patched_over() {
    let faulty = Faulty::new([Fault::CutAt(10, Some(StoreErrorKind::Corrupt))]);
    create(&faulty.inner, "0123456789").await.unwrap();
    let store = RetryingStore::new(faulty, BRIEF);
    assert_eq!(collect(&store, None).await.unwrap_err().kind, StoreErrorKind::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_changed_its_size_meanwhile_is_an_error() {
    let faulty = Faulty::new([Fault::CutAt(3, None)]);
    create(&faulty.inner, "0123456789").await.unwrap();
    let store = RetryingStore::new(faulty.clone(), BRIEF);

    let mut stream = store.get("a", None).await.unwrap().bytes;
    stream.next().await.unwrap().unwrap();
    faulty.inner.delete("a").await.unwrap();
    create(&faulty.inner, "another").await.unwrap();

    assert_eq!(stream.next().await.unwrap().unwrap_err().kind, StoreErrorKind::Corrupt);
}
