//! An archiver of the library that runs beside a test, and what it has stored.

use super::waiting::{PATIENCE, wait_for};
use bytes::Bytes;
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver, PostgresSource};
use seawall::codec::Compression;
use seawall::error::Error;
use seawall::postgres::ConnInfo;
use seawall::repository::{Catalog, Layout, Repository};
use seawall::runtime::{Clock, Shutdown};
use seawall::store::{Store, list_all};
use seawall::wal::{Lsn, SegmentSize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The slot that [`Archiving`] uses.
pub const SLOT: &str = "seawall";

/// An archiver that runs.
pub struct Archiving {
    shutdown: Shutdown,
    pub state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

impl Archiving {
    /// Archives the server at `conninfo` as `main`.
    pub fn start(conninfo: &str, store: &Arc<dyn Store>) -> Archiving {
        Archiving::start_with(conninfo, store, ArchiveOptions::default())
    }

    /// The same, in another way than by default.
    pub fn start_with(conninfo: &str, store: &Arc<dyn Store>, options: ArchiveOptions) -> Archiving {
        let info = ConnInfo::parse(conninfo, &|_| None).unwrap();
        let source = Arc::new(PostgresSource::new(info, SLOT, Clock::system()));
        let archiver = Archiver::new(source, store.clone(), "main", options, Clock::system());
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        Archiving { shutdown, state, task }
    }

    /// Waits until the server was told that everything up to `lsn` is stored.
    pub async fn wait_flushed(&self, lsn: Lsn) {
        wait_for(&format!("{lsn} to be acknowledged"), PATIENCE, async || {
            assert!(!self.task.is_finished(), "the archiver ended: {:?}", self.state.borrow().last_error);
            (self.state.borrow().flushed >= lsn).then_some(())
        })
        .await;
    }

    /// Tells it to stop, and waits for that.
    pub async fn stop(self) {
        self.shutdown.begin_stop();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops when told to").unwrap().unwrap();
    }

    /// Waits until it gives up by itself.
    pub async fn error(self) -> Error {
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.expect("it goes on instead of giving up").unwrap().expect_err("it ended well")
    }
}

/// What was stored as `main`.
pub async fn catalog(store: &Arc<dyn Store>) -> (Repository, Catalog) {
    let cluster = Repository::read_cluster(store.as_ref(), "main").await.unwrap().expect("cluster.json is there");
    let size = SegmentSize::new(cluster.segment_bytes).unwrap();
    let repository = Repository { store: store.clone(), layout: Layout::new("main", size, Compression::Lz4) };
    let catalog = Catalog::read(&repository, cluster).await.unwrap();
    (repository, catalog)
}

/// Every object with its bytes.
pub async fn contents(store: &Arc<dyn Store>) -> BTreeMap<String, Bytes> {
    let mut contents = BTreeMap::new();
    for object in list_all(store.as_ref(), "").await.unwrap() {
        let bytes = store.get(&object.key, None).await.unwrap().collect().await.unwrap();
        contents.insert(object.key, bytes);
    }
    contents
}
