//! A server, a bucket and the program between them, as users run it, and what a copy of the bucket restores to.
//! Include `support/s3/mod.rs` as `s3` beside it.
#![allow(dead_code, unreachable_pub, reason = "each includer uses a part")]

use crate::s3::{S3Server, StoredObject};
use crate::support::metrics::Endpoint;
use crate::support::oracle::{self, Oracle};
use crate::support::postgres::{Postgres, programs, scratch_directory};
use crate::support::program::{Running, Seawall, path_for_server};
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::scratch::{Server, ServerOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tempfile::TempDir;

/// What a bucket holds at an instant.
pub type Copy = BTreeMap<String, StoredObject>;

pub struct Scene {
    pub version: u32,
    pub server: Postgres,
    pub bucket: S3Server,
    pub places: TempDir,
    /// On top of the environment in which the program finds both.
    pub environment: Vec<(&'static str, String)>,
}

/// `seawall run` in the background; killed when dropped.
pub struct Archiver {
    pub running: Running,
    pub metrics: Endpoint,
}

impl Scene {
    /// With these settings of the server, besides a short patience with clients that are gone.
    pub async fn new(version: u32, settings: &[(&str, &str)]) -> Scene {
        Scene::with(version, Scene::options(settings)).await
    }

    /// What a server of a scene is made of.
    pub fn options(settings: &[(&str, &str)]) -> ServerOptions {
        let settings = [("wal_sender_timeout", "5s")].iter().chain(settings);
        let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ServerOptions { settings, listen_tcp: true, ..ServerOptions::default() }
    }

    /// With this server.
    pub async fn with(version: u32, options: ServerOptions) -> Scene {
        let server = Postgres::create(version, options).await;
        server.sql(&Oracle::table()).await.unwrap();
        Scene { version, server, bucket: S3Server::start(), places: scratch_directory(), environment: Vec::new() }
    }

    pub fn seawall(&self, arguments: &[&str]) -> Seawall {
        let mut seawall = Seawall::new(arguments).env("SEAWALL_PG", self.server.conninfo());
        seawall = seawall.env("SEAWALL_REPO", format!("s3://{}/backups", S3Server::BUCKET));
        for (name, value) in self.bucket.env().into_iter().chain(self.environment.iter().cloned()) {
            seawall = seawall.env(name, value);
        }
        seawall
    }

    /// Starts an archiver and waits until it says where its metrics are: it need not have come to the server yet.
    pub async fn archiver(&self) -> Archiver {
        let mut running = self.seawall(&["run", "--listen", "127.0.0.1:0"]).start();
        let metrics = Endpoint::of(&mut running).await;
        Archiver { running, metrics }
    }

    /// An archiver that streams, and a base backup.
    pub async fn archived(&self) -> Archiver {
        let archiver = self.archiver().await;
        self.settle().await;
        self.seawall(&["backup", "--fast"]).run_ok().await;
        archiver
    }

    /// Waits until a query gives something else than 0.
    pub async fn wait(&self, what: &str, query: &str) {
        let what = format!("{what} on PostgreSQL {}", self.version);
        wait_for(&what, PATIENCE * 2, async || (self.server.value(query).await != "0").then_some(())).await;
    }

    /// Waits until everything that the server has now is acknowledged.
    pub async fn settle(&self) {
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        self.wait(&format!("{lsn} to be acknowledged"), &query).await;
    }

    /// What `restore --to-end` makes of a copy, started. The bucket is that copy afterwards.
    pub async fn restored(&self, copy: &Copy, name: &str) -> Server {
        self.bucket.clear();
        self.bucket.restore_from(copy);
        let into = self.restore(name).await;
        let environment = self.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let options = ServerOptions { environment, ..ServerOptions::default() };
        let programs = programs(self.version);
        let opened = Server::open(&programs, &into, options);
        tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap()
    }

    /// A directory with what the bucket restores to.
    pub async fn restore(&self, name: &str) -> PathBuf {
        let into = self.places.path().join(name);
        self.restoring(&into).run_ok().await;
        into
    }

    /// The command that restores, to be run.
    pub fn restoring(&self, into: &std::path::Path) -> Seawall {
        // The server runs the program that restores, so it must be one that the server's user can run.
        let program = path_for_server(self.places.path());
        let owner = self.server.user().name();
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", owner, "--to-end"];
        // Straight to the bucket, whatever is in the way of the archiver.
        let seawall = self.seawall(&arguments).program(&program);
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    /// The oracle's rows in a restored copy.
    pub async fn rows_of(&self, copy: &Copy, name: &str) -> BTreeSet<i64> {
        let restored = self.restored(copy, name).await;
        oracle::found(&restored).await
    }

    /// Nothing is recorded as lost, and what is stored is one stretch.
    pub async fn assert_without_hole(&self) {
        let listed = self.seawall(&["list", "--json"]).run_ok().await.stdout;
        let report: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(report["lost_wal"].as_array().unwrap().len(), 0, "{listed}");
        assert_eq!(report["wal"][0]["stored"].as_array().unwrap().len(), 1, "{listed}");
    }
}
