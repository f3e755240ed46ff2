//! A server that is archived into a directory by `seawall run`, its backups, and what is restored of them.
#![allow(unreachable_pub)]

use crate::support::postgres::{Postgres, connect, programs, row_digests, scratch_directory};
use crate::support::program::{Running, Seawall, path_for_server};
use crate::support::waiting::{PATIENCE, wait_for};
use async_trait::async_trait;
use seawall::backup::{BackupOptions, BackupProgress, NotIncremental, RepositoryWaiter, WalWaiter, take_incremental};
use seawall::codec::Compression;
use seawall::error::Result;
use seawall::repository::{BackupDocument, BackupPart, Layout, Repository, WalNeed, WalReader, Writer};
use seawall::runtime::Clock;
use seawall::scratch::{Server, ServerOptions};
use seawall::store::FileStore;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::sync::watch;

/// How the repository is stored, and who can read it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Clear,
    /// Encrypted; whoever takes backups has the private key.
    Encrypted,
    /// Encrypted; nobody on the server's host has the private key.
    Sealed,
}

/// A new key: the file of the private one, and the public one.
pub async fn keygen(places: &TempDir, owner: &Server) -> (String, String) {
    let file = places.path().join("key");
    let made = Seawall::new(["keygen", "--out"]).arg(&file).run_ok().await;
    owner.user().give_all(&file).unwrap();
    (file.to_str().unwrap().to_owned(), made.stdout.trim().to_owned())
}

/// A server that is archived into a directory by `seawall run`.
pub struct Scene {
    pub version: u32,
    pub server: Postgres,
    pub places: TempDir,
    /// Where its tablespace is, as long as it has it.
    pub space: PathBuf,
    pub has_space: bool,
    pub stored: Stored,
    /// Private and public, if the repository is encrypted.
    pub keys: Option<(String, String)>,
    pub archiver: Running,
}

impl Scene {
    pub async fn new(version: u32, settings: &[(&str, &str)], stored: Stored) -> Scene {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = ServerOptions { settings, data_checksums: true, ..ServerOptions::default() };
        let server = Postgres::create(version, options).await;
        let (places, space) = (scratch_directory(), server.side_directory("space"));
        std::fs::create_dir(places.path().join("repository")).unwrap();
        server.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await.unwrap();
        let keys = match stored {
            Stored::Clear => None,
            Stored::Encrypted | Stored::Sealed => Some(keygen(&places, &server).await),
        };
        // It never has the private key.
        let archiver = archiver(&server, &places, keys.as_ref().map(|(_, public)| public.as_str()));
        let scene = Scene { version, server, places, space, has_space: true, stored, keys, archiver };
        scene.settle().await;
        scene
    }

    /// One that summarizes its WAL.
    pub async fn summarized(version: u32) -> Scene {
        Scene::summarized_and(version, Stored::Clear).await
    }

    pub async fn summarized_and(version: u32, stored: Stored) -> Scene {
        Scene::new(version, &[("summarize_wal", "on"), ("autovacuum", "off")], stored).await
    }

    pub fn seawall(&self, arguments: &[&str]) -> Seawall {
        let seawall = seawall(&self.server, &self.places, arguments);
        let Some((private, public)) = &self.keys else { return seawall };
        let seawall = seawall.env("SEAWALL_RECIPIENTS", public);
        match arguments[0] {
            "backup" if self.stored == Stored::Encrypted => seawall.env("SEAWALL_IDENTITY", private),
            "restore" => seawall.env("SEAWALL_IDENTITY", private),
            _ => seawall,
        }
    }

    pub async fn sql(&self, statements: &[&str]) {
        for statement in statements {
            self.server.sql(statement).await.unwrap_or_else(|error| panic!("`{statement}`: {error}"));
        }
    }

    /// Ends the archiver and starts another, that encrypts for `recipients` if there are any.
    pub async fn archive_anew(&mut self, recipients: Option<&str>) {
        assert!(self.archiver.terminate().await.success());
        self.archiver = archiver(&self.server, &self.places, recipients);
        self.settle().await;
    }

    /// Waits until everything that the server has now is acknowledged.
    pub async fn settle(&self) {
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        wait_for("the archiver", PATIENCE * 2, async || (self.server.value(&query).await != "0").then_some(())).await;
    }

    /// What `seawall backup --json` says.
    pub async fn backup(&self, backup_type: &str) -> Value {
        let taken = self.seawall(&["backup", "--fast", "--json", "--type", backup_type]).run_ok().await;
        let taken: Value = serde_json::from_str(&taken.stdout).unwrap();
        assert_eq!(taken["verdict"], "sound", "{taken}");
        taken
    }

    /// Restores to the end and starts a server on it.
    pub async fn restored(&self, name: &str, more: &[&str]) -> Server {
        self.settle().await;
        self.restore(name, more).await
    }

    pub async fn restore(&self, name: &str, more: &[&str]) -> Server {
        self.restoring(name, more).run_ok().await;
        self.open(name).await
    }

    /// The command that restores, to be run.
    pub fn restoring(&self, name: &str, more: &[&str]) -> Seawall {
        let into = self.places.path().join(name);
        let program = path_for_server(self.places.path());
        let map = format!("{}={}", self.space.display(), self.places.path().join(format!("{name}.space")).display());
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", self.server.user().name()];
        let map = if self.has_space { &["--tablespace-map", map.as_str()][..] } else { &[] };
        let arguments = [&arguments[..], map, more].concat();
        self.seawall(&arguments).program(&program)
    }

    /// Starts a server on what was restored.
    pub async fn open(&self, name: &str) -> Server {
        let into = self.places.path().join(name);
        // The server reads WAL there.
        self.server.user().give_all(&self.repository()).unwrap();
        // Else it makes every file durable once more, one after the other.
        let settings = vec![("fsync".to_owned(), "off".to_owned())];
        let programs = programs(self.version);
        let opened = Server::open(&programs, &into, ServerOptions { settings, ..ServerOptions::default() });
        tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap()
    }

    pub async fn digests(&self) -> BTreeMap<String, BTreeMap<String, (u64, String)>> {
        digests(&self.server).await
    }

    pub fn repository(&self) -> PathBuf {
        self.places.path().join("repository")
    }

    pub fn folder(&self, backup: &Value) -> PathBuf {
        self.repository().join("main/base").join(backup["id"].as_str().unwrap())
    }

    /// `backup.json` with its files.
    pub fn document(&self, backup: &Value) -> BackupDocument {
        serde_json::from_slice(&std::fs::read(self.folder(backup).join("backup.json")).unwrap()).unwrap()
    }

    /// The last part of a full backup in which a table goes on.
    pub async fn part_of(&self, backup: &Value, table: &str) -> PathBuf {
        let table = self.server.value(&format!("SELECT pg_relation_filepath('{table}')")).await;
        let document = self.document(backup);
        let goes_on = |part: &&BackupPart| part.continues.as_ref().is_some_and(|from| from.path.to_string() == table);
        let name = document.parts.iter().rfind(goes_on).expect("it is in several parts").name.to_string();
        let mut files = std::fs::read_dir(self.folder(backup)).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&name)).expect("the part is stored")
    }

    /// Takes an incremental backup by the library.
    pub async fn take(
        &self,
        options: BackupOptions,
        meddler: Option<Meddler>,
    ) -> Result<BackupDocument, NotIncremental> {
        let mut client = connect(&self.server.conninfo()).await;
        let layout = Layout::new("main", client.wal_segment_size().await.unwrap(), Compression::Lz4);
        let system_identifier = client.identify_system().await.unwrap().system_identifier;
        let repository = Repository { store: Arc::new(FileStore::new(self.repository())), layout };
        let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
        let reader = WalReader::new(repository.clone(), system_identifier);
        let waiter = Meddling { waiter: RepositoryWaiter::new(repository), meddler };
        let (progress, _) = watch::channel(BackupProgress::default());
        let (connect, clock) = (|| async { Ok(connect(&self.server.conninfo()).await) }, Clock::system());
        let taken = take_incremental(connect, &reader, &writer, &options, &clock, &waiter, progress);
        Box::pin(taken).await
    }
}

/// Cuts the tables `cut_0`, `cut_1` and so on, one each time that a backup looks at the WAL before it begins.
#[derive(Debug)]
pub struct Meddler {
    pub server: tokio_postgres::Client,
    pub times: usize,
    pub waits: AtomicUsize,
}

#[derive(Debug)]
pub struct Meddling {
    pub waiter: RepositoryWaiter,
    pub meddler: Option<Meddler>,
}

#[async_trait]
impl WalWaiter for Meddling {
    async fn wait_covered(&self, ranges: &[WalNeed]) -> Result<()> {
        self.waiter.wait_covered(ranges).await?;
        let Some(meddler) = &self.meddler else { return Ok(()) };
        // Of two waits the first is for what is there, the second for what came until the backup began.
        let wait = meddler.waits.fetch_add(1, Ordering::SeqCst);
        let (table, is_first) = (wait / 2, wait % 2 == 0);
        if is_first && table < meddler.times {
            for statement in
                ["DELETE FROM cut_ WHERE id > 1000", "VACUUM cut_", "INSERT INTO cut_ SELECT generate_series(-500, 0)"]
            {
                meddler.server.batch_execute(&statement.replace("cut_", &format!("cut_{table}"))).await.unwrap();
            }
        }
        Ok(())
    }
}

pub fn seawall(server: &Server, places: &TempDir, arguments: &[&str]) -> Seawall {
    let repository = format!("file://{}", places.path().join("repository").display());
    Seawall::new(arguments).env("SEAWALL_PG", server.conninfo()).env("SEAWALL_REPO", repository)
}

/// One that encrypts for `recipients`, if there are any.
pub fn archiver(server: &Server, places: &TempDir, recipients: Option<&str>) -> Running {
    let archiver = seawall(server, places, &["run", "--listen", "off"]);
    match recipients {
        Some(recipients) => archiver.env("SEAWALL_RECIPIENTS", recipients).start(),
        None => archiver.start(),
    }
}

/// What every database holds.
pub async fn digests(server: &Server) -> BTreeMap<String, BTreeMap<String, (u64, String)>> {
    let databases = server.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").await.unwrap();
    let mut digests = BTreeMap::new();
    for database in databases.into_iter().map(|mut row| row.remove(0).unwrap()) {
        digests.insert(database.clone(), row_digests(server, &database).await);
    }
    digests
}
