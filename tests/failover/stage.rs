//! What the stories share: servers that are copies of one another, an archiver that may choose among them, a bucket, and
//! restores from it.

use crate::s3::S3Server;
use crate::s3_store;
use crate::support::postgres::{programs, row_digests, scratch_directory};
use crate::support::program::{Finished, Seawall, path_for_server};
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::archive::{ArchiveOptions, ArchiveState, Archiver, PostgresSource};
use seawall::codec::Compression;
use seawall::error::Error;
use seawall::postgres::ConnInfo;
use seawall::repository::{Catalog, Layout, Repository};
use seawall::runtime::{Clock, Shutdown};
use seawall::scratch::{Server, ServerOptions, StopMode};
use seawall::store::Store;
use seawall::wal::{Lsn, SegmentSize, TimelineId};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Nothing but what the stories do writes WAL, and standbys look for their primary often.
const QUIET: [(&str, &str); 4] = [
    ("autovacuum", "off"),
    ("wal_keep_size", "1GB"),
    ("checkpoint_timeout", "1h"),
    ("wal_retrieve_retry_interval", "100ms"),
];

fn settings(own: &[(&str, &str)]) -> Vec<(String, String)> {
    own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A server and the directory that it lives in.
pub struct Node {
    // Before the directory: fields are dropped in this order.
    pub server: Server,
    directory: TempDir,
}

impl std::ops::Deref for Node {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Node {
    /// A new cluster with a table of marks.
    pub async fn primary(version: u32, wal_segment_mib: Option<u32>) -> Node {
        let directory = scratch_directory();
        let options = ServerOptions { settings: settings(&QUIET), wal_segment_mib, ..ServerOptions::default() };
        let server = Server::create(&programs(version), directory.path(), options).await.unwrap();
        server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
        Node { server, directory }
    }

    /// Copies of the stopped data directory as standbys of this server.
    pub async fn standbys<const COUNT: usize>(&mut self) -> [Node; COUNT] {
        self.server.stop(StopMode::Fast).await.unwrap();
        let copies: [TempDir; COUNT] = std::array::from_fn(|_| self.copy());
        self.server.start().await.unwrap();
        let mut nodes = Vec::new();
        for copy in copies {
            nodes.push(Node::follow(copy, self).await);
        }
        nodes.try_into().unwrap_or_else(|_| panic!("as many as there are copies"))
    }

    fn copy(&self) -> TempDir {
        let directory = scratch_directory();
        let data = self.server.data_directory();
        let copied = Command::new("cp").arg("-a").arg(data).arg(directory.path()).status().unwrap();
        assert!(copied.success(), "the data directory was not copied");
        directory
    }

    /// Starts what is in the directory as a standby of `primary`.
    async fn follow(directory: TempDir, primary: &Node) -> Node {
        let data = directory.path().join("data");
        std::fs::write(data.join("standby.signal"), "").unwrap();
        let conninfo = primary.conninfo();
        let options = ServerOptions {
            settings: settings(&[("primary_conninfo", &conninfo)]),
            standby: true,
            ..ServerOptions::default()
        };
        let server = Server::open(primary.programs(), &data, options).await.unwrap();
        Node { server, directory }
    }

    /// Makes it a standby of another server, with the data that it has.
    pub async fn repoint(mut self, primary: &Node) -> Node {
        self.server.stop(StopMode::Fast).await.unwrap();
        let Node { server, directory } = self;
        drop(server);
        Node::follow(directory, primary).await
    }

    pub async fn value(&self, statements: &str) -> String {
        let rows = self.server.sql(statements).await.unwrap();
        let value = rows.first().and_then(|row| row.first()).cloned().flatten();
        value.unwrap_or_else(|| panic!("`{statements}` gave no value: {rows:?}"))
    }

    pub async fn mark(&self, what: &str) {
        self.server.sql(&format!("INSERT INTO marks (what) VALUES ('{what}')")).await.unwrap();
    }

    /// The end of the WAL that this primary has on its disk.
    pub async fn lsn(&self) -> Lsn {
        self.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
    }

    /// Now, by the server's clock, and surely later than everything committed before.
    pub async fn time(&self) -> String {
        let now = "SELECT pg_sleep(0.01)::text || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.value(now).await
    }

    /// Waits until this standby has replayed up to `lsn`.
    pub async fn replayed(&self, lsn: Lsn) {
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        let done = async || (self.value(&query).await == "t").then_some(());
        wait_for(&format!("the standby to replay {lsn}"), PATIENCE, done).await;
    }

    /// Promotes, and gives the switch point.
    pub async fn promote(&self) -> Lsn {
        assert_eq!(self.value("SELECT pg_promote()").await, "t", "{}", self.log_tail());
        let name = self.timeline().await.history_name();
        let text = std::fs::read_to_string(self.data_directory().join("pg_wal").join(name)).unwrap();
        let last = text.lines().rev().find(|line| !line.is_empty()).expect("a history has a line");
        last.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The timeline that this primary writes.
    pub async fn timeline(&self) -> TimelineId {
        let name = self.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await;
        TimelineId::parse_hex(&name[..8]).unwrap()
    }

    pub async fn digests(&self) -> BTreeMap<String, (u64, String)> {
        row_digests(&self.server, "postgres").await
    }

    /// True if this server has a slot of ours with WAL in it.
    pub async fn has_slot(&self) -> bool {
        self.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'seawall' AND restart_lsn IS NOT NULL")
            .await
            == "1"
    }
}

/// The connection string of several servers, in this order.
pub fn hosts(nodes: &[&Node], attributes: &str) -> String {
    let list = |of: &dyn Fn(&Node) -> String| nodes.iter().map(|node| of(node)).collect::<Vec<_>>().join(",");
    format!(
        "host={} port={} user=postgres dbname=postgres target_session_attrs={attributes}",
        list(&|node| node.socket_directory().display().to_string()),
        list(&|node| node.port().to_string()),
    )
}

/// A bucket and places for what is restored from it.
pub struct Stage {
    version: u32,
    pub bucket: S3Server,
    pub store: Arc<dyn Store>,
    places: TempDir,
}

impl Stage {
    pub async fn new(version: u32) -> Stage {
        let bucket = S3Server::start();
        let store = s3_store::store(s3_store::options(&bucket)).await;
        Stage { version, bucket, store, places: scratch_directory() }
    }

    pub fn archive(&self, conninfo: &str) -> Running {
        let info = ConnInfo::parse(conninfo, &|_| None).unwrap();
        let source = Arc::new(PostgresSource::new(info, "seawall", Clock::system()));
        let (options, clock) = (ArchiveOptions::default(), Clock::system());
        let archiver = Archiver::new(source, self.store.clone(), "main", options, clock);
        let (shutdown, state) = (Shutdown::default(), archiver.state());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { archiver.run(&token).await });
        Running { shutdown, state, task }
    }

    pub fn seawall(&self, arguments: &[&str]) -> Seawall {
        let mut seawall = Seawall::new(arguments).env("SEAWALL_REPO", s3_store::url());
        for (name, value) in self.bucket.env() {
            seawall = seawall.env(name, value);
        }
        seawall
    }

    /// Nothing is wrong with what is stored, to the last byte.
    pub async fn assert_sound(&self) {
        let verified = self.seawall(&["verify", "--deep"]).run_ok().await.stdout;
        assert!(verified.contains("every object holds what it must"), "{verified}");
    }

    /// Takes a base backup of one server.
    pub async fn backup(&self, node: &Node) {
        self.seawall(&["backup", "--fast"]).env("SEAWALL_PG", node.conninfo()).run_ok().await;
    }

    pub async fn list(&self) -> String {
        self.seawall(&["list"]).run_ok().await.stdout
    }

    pub async fn check(&self, node: &Node) -> Finished {
        self.seawall(&["check"]).env("SEAWALL_PG", node.conninfo()).run_ok().await
    }

    /// Restores into a directory of its own, and starts what is there.
    pub async fn restored(&self, name: &str, target: &[&str]) -> Node {
        // Else it makes every file durable once more, one after the other.
        self.restored_with(name, target, &[("fsync", "off")], false).await
    }

    /// Restores a standby that has nothing but the archive, asks it often, and answers.
    pub async fn follower(&self) -> Node {
        let settings = [("fsync", "off"), ("wal_retrieve_retry_interval", "100ms")];
        self.restored_with("follower", &["--standby"], &settings, true).await
    }

    async fn restored_with(&self, name: &str, target: &[&str], own: &[(&str, &str)], standby: bool) -> Node {
        let directory = scratch_directory();
        let into = directory.path().join("data");
        let program = path_for_server(self.places.path());
        let user = seawall::scratch::Unprivileged::find().unwrap();
        let mut arguments = vec!["restore", "--into", into.to_str().unwrap(), "--owner", user.name()];
        arguments.extend(target);
        self.seawall(&arguments).program(&program).run_ok().await;
        let environment = self.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let options = ServerOptions { environment, settings: settings(own), standby, ..ServerOptions::default() };
        let programs = programs(self.version);
        let opened = Server::open(&programs, &into, options);
        let opened = tokio::time::timeout(PATIENCE * 2, opened).await;
        let server = opened.unwrap_or_else(|_| panic!("{name}: recovery does not end")).unwrap();
        Node { server, directory }
    }

    pub async fn catalog(&self) -> Catalog {
        let cluster =
            Repository::read_cluster(self.store.as_ref(), "main").await.unwrap().expect("cluster.json is there");
        let size = SegmentSize::new(cluster.segment_bytes).unwrap();
        let repository = Repository { store: self.store.clone(), layout: Layout::new("main", size, Compression::Lz4) };
        Catalog::read(&repository, cluster).await.unwrap()
    }

    /// Timeline `parent` was left at `switch`: everything of it up to there is permanent, and its child is there from the
    /// first byte of the segment, with its history.
    pub async fn assert_followed(&self, parent: u32, switch: Lsn, child: u32) {
        let catalog = self.catalog().await;
        let size = SegmentSize::new(catalog.cluster.segment_bytes).unwrap();
        let (parent, child) = (TimelineId(parent), TimelineId(child));
        assert_eq!(catalog.histories[&child].switch_from(parent), Some(switch), "the history of {child} is another");
        let last_block = size.block_start(Lsn(switch.0 - 1));
        let sealed: Vec<_> = catalog.coverage[&parent]
            .objects()
            .iter()
            .filter(|it| it.is_block && it.range.end == switch)
            .map(|it| it.range.start)
            .collect();
        assert_eq!(sealed, [last_block], "the last block of timeline {parent} up to {switch} is sealed");
        let runs = catalog.coverage[&child].runs();
        assert_eq!((runs.len(), runs[0].start), (1, size.segment_start(switch)), "timeline {child}: {runs:?}");
    }
}

pub async fn marks(server: &Server) -> Vec<String> {
    let rows = server.sql("SELECT what FROM marks ORDER BY id").await.unwrap();
    rows.into_iter().map(|row| row[0].clone().unwrap()).collect()
}

/// An archiver that runs beside the test; killed when dropped.
pub struct Running {
    shutdown: Shutdown,
    pub state: watch::Receiver<ArchiveState>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Waits until everything up to `lsn` of `timeline` is acknowledged.
    pub async fn acknowledged(&self, timeline: TimelineId, lsn: Lsn) {
        let what = format!("{lsn} of timeline {timeline} to be acknowledged");
        wait_for(&what, PATIENCE * 2, async || {
            let state = self.state.borrow().clone();
            assert!(!self.task.is_finished(), "the archiver ended, at {state:?}");
            (state.timeline == Some(timeline) && state.flushed >= lsn).then_some(())
        })
        .await;
    }

    /// Waits until everything that the primary has on its disk is acknowledged.
    pub async fn settled(&self, primary: &Node) {
        let (timeline, lsn) = (primary.timeline().await, primary.lsn().await);
        self.acknowledged(timeline, lsn).await;
    }

    /// Waits, without a pause, until so much has come.
    pub async fn received(&mut self, lsn: Lsn) {
        let mut state = self.state.clone();
        let enough = state.wait_for(|state| state.received > lsn);
        tokio::select! {
            enough = tokio::time::timeout(PATIENCE, enough) => { enough.expect("WAL comes").unwrap(); }
            ended = &mut self.task => panic!("the archiver ended: {ended:?}"),
        }
    }

    pub async fn stop(mut self) {
        self.shutdown.begin_stop();
        let ended = tokio::time::timeout(PATIENCE, &mut self.task).await.expect("the archiver stops when told to");
        ended.unwrap().unwrap();
    }

    /// Waits until it ends by itself.
    pub async fn gives_up(mut self) -> Error {
        let ended = tokio::time::timeout(PATIENCE, &mut self.task).await.expect("the archiver gives up");
        ended.unwrap().unwrap_err()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
