//! A server with a past, its archive, and what is restored from that.

use crate::clock::SteppedClock;
use crate::ends::Ends;
use crate::support::archiver::{Archiving, catalog};
use crate::support::postgres::{DEBIAN, Postgres, programs, scratch_directory};
use crate::support::program::{Seawall, path_for_server};
use crate::support::waiting::{PATIENCE, wait_for};
use crate::walk::{Rows, rows};
use crate::workload::Workload;
use jiff::Timestamp;
use seawall::archive::ArchiveOptions;
use seawall::error::Error;
use seawall::repository::{Catalog, WalReader};
use seawall::restore::wal_fetch::fetch;
use seawall::restore::{Pin, Plan, Request, Target, TargetAction, plan};
use seawall::scratch::{Server, ServerOptions};
use seawall::store::{FileStore, Store};
use seawall::wal::{Lsn, Segment};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A server with a past, and its archive, which has all of that.
pub(crate) struct Scene {
    pub(crate) version: u32,
    pub(crate) seed: u64,
    pub(crate) places: TempDir,
    pub(crate) reader: WalReader,
    pub(crate) catalog: Catalog,
    /// What a restore of everything is planned to be.
    pub(crate) everything: Plan,
    pub(crate) workload: Workload,
    pub(crate) ends: Ends,
    /// What the server has at the end.
    pub(crate) rows: Rows,
    /// Moments before the base backup, each with a row that was committed later and still before it.
    pub(crate) before: Vec<(Timestamp, i64)>,
    pub(crate) server: Postgres,
    /// Behind the server, which lives by it.
    pub(crate) clock: Option<SteppedClock>,
}

impl Scene {
    /// A base backup first, then everything that a workload does.
    pub(crate) async fn new(version: u32, seed: u64, clock: Option<SteppedClock>) -> Scene {
        let settings = [("max_prepared_transactions", "100"), ("wal_keep_size", "1GB"), ("autovacuum", "off")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let environment = clock.as_ref().map(SteppedClock::environment).unwrap_or_default();
        let options = ServerOptions { wal_segment_mib: Some(1), settings, environment, ..ServerOptions::default() };
        let server = Postgres::create(version, options).await;
        if let Some(clock) = &clock {
            clock.is_for(server.pid().unwrap());
        }
        let places = scratch_directory();
        let root = places.path().join("repository");
        std::fs::create_dir(&root).unwrap();
        let store: Arc<dyn Store> = Arc::new(FileStore::new(root));
        let heartbeat_interval = Duration::from_secs(1);
        let options = ArchiveOptions { heartbeat_interval, ..ArchiveOptions::default() };
        let archiver = Archiving::start_with(&server.conninfo(), &store, options);
        archiver.wait_flushed(flushed(&server).await).await;

        let from = flushed(&server).await;
        let workload = Workload::prepare(&server, seed).await;
        let mut before = Vec::new();
        for row in 0..3 {
            before.push((now(&server).await, row));
            server.sql(&workload.insert()).await.unwrap();
        }
        archiver.wait_flushed(flushed(&server).await).await;
        let mut backup = seawall(&places, &["backup", "--fast"]).env("SEAWALL_PG", server.conninfo());
        for (name, value) in clock.iter().flat_map(SteppedClock::environment) {
            backup = backup.env(&name, value);
        }
        backup.run_ok().await;

        workload.run(&server, clock.as_ref()).await;
        archiver.wait_flushed(flushed(&server).await).await;
        let known = archiver.state.borrow().counts.heartbeats;
        // Their names have whole seconds.
        let beats = async || (archiver.state.borrow().counts.heartbeats > known + 1).then_some(());
        wait_for("a heartbeat in a later second", PATIENCE, beats).await;
        archiver.stop().await;
        // The servers that are restored run as another user than this.
        server.user().give_all(&places.path().join("repository")).unwrap();
        let rows = rows(&server).await;

        let (repository, catalog) = catalog(&store).await;
        let reader = WalReader::new(repository, catalog.cluster.system_identifier);
        let everything = planned(&reader, &catalog, Target::End, false).await.unwrap();
        let ends = match version {
            DEBIAN => Ends::by_pg_waldump(&server, from, flushed(&server).await),
            _ => Ends::by_seawall(&reader, from, everything.end_lsn).await,
        };
        Scene { version, seed, places, reader, catalog, everything, workload, ends, rows, before, server, clock }
    }

    /// What the program restores, into a new directory.
    pub(crate) async fn restore(&self, name: &str, target: &[&str]) -> PathBuf {
        let into = self.places.path().join(name);
        let owner = self.server.user().name();
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", owner];
        let restore = seawall(&self.places, &[&arguments, target].concat());
        restore.program(&path_for_server(self.places.path())).run_ok().await;
        into
    }

    /// The same, started.
    pub(crate) async fn restored(&self, name: &str, target: &[&str]) -> (Server, PathBuf) {
        let into = self.restore(name, target).await;
        let programs = programs(self.version);
        let opened = Server::open(&programs, &into, ServerOptions::default());
        (tokio::time::timeout(PATIENCE, opened).await.expect("recovery ends").unwrap(), into)
    }

    /// What `restore --dry-run --json` says.
    pub(crate) async fn dry_run(&self, target: &[&str]) -> serde_json::Value {
        let arguments = [&["restore", "--into", "/nonexistent/place", "--dry-run", "--json"], target].concat();
        serde_json::from_str(&seawall(&self.places, &arguments).run_ok().await.stdout).unwrap()
    }

    /// The rows that are there when `lost` is the first end of a transaction that is not.
    pub(crate) fn expected(&self, lost: Option<usize>) -> Rows {
        let committed = self.ends.committed(lost);
        self.rows.iter().filter(|(_, xid)| committed.contains(xid)).map(|(row, xid)| (*row, *xid)).collect()
    }

    /// What is planned for a target.
    pub(crate) async fn plan(&self, target: Target, exclusive: bool) -> Result<Plan, Error> {
        planned(&self.reader, &self.catalog, target, exclusive).await
    }

    /// A directory with every segment that the recovery of a restored cluster may ask for.
    pub(crate) async fn lay_out(&self, data: &Path) -> PathBuf {
        let (plan, user) = (&self.everything, self.server.user());
        let shelf = self.places.path().join("shelf");
        user.create_directory(&shelf).unwrap();
        let pin = Pin::read(data).unwrap().expect("a restore leaves a pin");
        for need in &plan.wal {
            let mut segment = Segment::holding(need.timeline, need.start, plan.segment_size().unwrap());
            while segment.start < need.end {
                let (name, to) = (segment.name(), shelf.join(segment.name()));
                fetch(&self.reader, &name, &to, Some(&pin), &shelf).await.unwrap();
                segment = segment.next();
            }
        }
        user.give_all(&shelf).unwrap();
        shelf
    }
}

/// The program, on this archive.
fn seawall(places: &TempDir, arguments: &[&str]) -> Seawall {
    Seawall::new(arguments).env("SEAWALL_REPO", format!("file://{}/repository", places.path().display()))
}

async fn planned(reader: &WalReader, catalog: &Catalog, target: Target, exclusive: bool) -> Result<Plan, Error> {
    let request = Request { target, exclusive, backup: None, timeline: None, action: TargetAction::Promote };
    Box::pin(plan(reader, catalog, &request, Timestamp::now())).await
}

async fn now(server: &Postgres) -> Timestamp {
    let text = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    server.value(text).await.parse().unwrap()
}

async fn flushed(server: &Postgres) -> Lsn {
    server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
}
