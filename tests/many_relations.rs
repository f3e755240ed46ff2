//! A cluster of half a million relations has a million files: no operation takes more memory for that than is promised, and what
//! comes of it is right.
//!
//! Each operation runs in a process of its own, which is this program again, so that one's peak is not another's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/base_backup.rs"]
mod base_backup;
#[path = "many_relations/server.rs"]
mod server;
#[path = "support/walsender.rs"]
mod walsender;

use async_trait::async_trait;
use seawall::backup::{BackupOptions, BackupProgress, WalWaiter, take, take_incremental};
use seawall::codec::Compression;
use seawall::error::Result;
use seawall::postgres::{Client, ConnInfo, Mode};
use seawall::repository::{Catalog, FORMAT_VERSION, Key, Layout, Repository, WalNeed, WalReader, Writer};
use seawall::restore::{FetchCommand, Plan, Request, RestoreOptions, RestoreProgress, Target, TargetAction};
use seawall::restore::{execute, plan, preview};
use seawall::runtime::Clock;
use seawall::store::FileStore;
use seawall::verify::{FindingKind, VerifyOptions, VerifyProgress, verify};
use seawall::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use server::{Cluster, MIB, SYSTEM, end, segment, serve};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::watch;

/// What is promised, less a fifth: for a million files.
const BOUND_BYTES: u64 = 256_000_000 / 5 * 4;

/// What an operation may take with few files: a debug build of the program, its parts on their way, and what lists of less than
/// 32 MiB leave behind in the heap.
const FIXED_BYTES: u64 = 110_000_000;

/// Files that the bound is for.
const MILLION: u64 = 1_000_000;

/// Files that are backed up, and those that are restored as well, which takes longer. The bound is as much lower. By hand,
/// `SEAWALL_TEST_FILES=1000000` takes some minutes and 4 GB of disk.
const STORED_FILES: u64 = 250_000;
const RESTORED_FILES: u64 = 50_000;

fn files(usually: u64) -> u64 {
    std::env::var("SEAWALL_TEST_FILES").map_or(usually, |text| text.parse().unwrap())
}

fn bound_bytes(files: u64) -> u64 {
    FIXED_BYTES + (BOUND_BYTES - FIXED_BYTES) * files / MILLION
}

/// A file system in memory, if there is room: a disk takes minutes to make so many files durable.
fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let room = nix::sys::statvfs::statvfs(&memory).map(|found| found.blocks_available() * found.fragment_size());
    if room.is_ok_and(|bytes| bytes > 4 << 30) { memory } else { std::env::temp_dir() }
}

/// A cluster, its repository, its server.
struct Stage {
    directory: TempDir,
    cluster: Cluster,
    port: u16,
}

impl Stage {
    async fn new(files: u64) -> Stage {
        let directory = tempfile::tempdir_in(place()).unwrap();
        std::fs::create_dir(directory.path().join("repository")).unwrap();
        let writer = writer(directory.path());
        let cluster = seawall::repository::Cluster {
            format: FORMAT_VERSION,
            system_identifier: SYSTEM,
            postgres_version: 170_010,
            segment_bytes: MIB,
            created_at: Clock::system().now(),
        };
        writer.store_document(&Key::Cluster, &cluster).await.unwrap();
        let range = WalRange { timeline: TimelineId(1), start: Lsn(2 * MIB), end: Lsn(3 * MIB) };
        writer.store_wal(&Key::Block(range), range, segment().into()).await.unwrap();
        let cluster = Cluster { files };
        Stage { port: serve(cluster), directory, cluster }
    }

    /// Does this in another process, which must not take more memory than is promised.
    fn run(&self, what: &str) {
        let begun = std::time::Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_operation", "--ignored", "--nocapture", "--test-threads", "1"])
            .env("MANY_RELATIONS_OPERATION", what)
            .env("MANY_RELATIONS_DIRECTORY", self.directory.path())
            .env("MANY_RELATIONS_PORT", self.port.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{what}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
        let peak = said.lines().find_map(|line| line.split_once(PEAK)).expect("it says its peak").1;
        let (peak, bound): (u64, u64) = (peak.trim().parse().unwrap(), bound_bytes(self.cluster.files));
        let (files, seconds) = (self.cluster.files, begun.elapsed().as_secs_f64());
        println!("{what} of {files} files: {peak} bytes at most, of {bound}, in {seconds:.1} s");
        assert!(peak <= bound, "{what} of {files} files took {peak} bytes of memory, and may take {bound}");
    }

    /// Every file has come back with its contents, and no other is there.
    fn assert_restored(&self) {
        let data = data(self.directory.path());
        for place in 0..self.cluster.files {
            let (path, content) = self.cluster.file(place);
            let found = std::fs::read(data.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(found == content, "{path} has other contents");
        }
        let databases = std::fs::read_dir(data.join("base")).unwrap();
        let found: usize = databases.map(|it| std::fs::read_dir(it.unwrap().path()).unwrap().count()).sum();
        assert_eq!(found as u64, self.cluster.files, "there are files too many");
    }
}

#[tokio::test]
async fn many_files_are_backed_up_listed_and_verified_in_the_memory_that_is_promised() {
    let stage = Stage::new(files(STORED_FILES)).await;
    stage.run("backup");
    stage.run("list");
    stage.run("incremental");
    stage.run("verify");
}

#[tokio::test]
async fn many_files_are_restored_in_the_memory_that_is_promised() {
    // Given a full backup and an incremental one
    let stage = Stage::new(files(RESTORED_FILES)).await;
    stage.run("backup");
    stage.run("restore");
    stage.assert_restored();
    // When some files are lost, others have changed and one more is there, of the stopped server
    let data = data(stage.directory.path());
    for (number, place) in (0..stage.cluster.files).step_by(3).enumerate() {
        let path = data.join(stage.cluster.file(place).0);
        match number % 2 {
            0 => std::fs::remove_file(path).unwrap(),
            _ => std::fs::write(path, "another").unwrap(),
        }
    }
    std::fs::write(data.join("base/16384/more"), "").unwrap();
    // then a restore over them says so, and makes them equal,
    stage.run("preview");
    stage.run("delta");
    stage.assert_restored();
    // and so does one of both backups.
    std::fs::remove_dir_all(&data).unwrap();
    stage.run("incremental");
    stage.run("chain");
    stage.assert_restored();
}

const PEAK: &str = "peak of memory: ";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what the others run, in a process of its own"]
async fn one_operation() {
    let variable = |name: &str| std::env::var(format!("MANY_RELATIONS_{name}")).expect("only the others run it");
    let directory = PathBuf::from(variable("DIRECTORY"));
    let port = variable("PORT");
    match variable("OPERATION").as_str() {
        "backup" => back_up(&directory, &port, false).await,
        "incremental" => back_up(&directory, &port, true).await,
        "list" => list(&directory).await,
        "verify" => verify_all(&directory).await,
        "restore" => restore(&directory, false, 0).await,
        "preview" => look(&directory).await,
        "delta" => restore(&directory, true, 0).await,
        "chain" => restore(&directory, false, 1).await,
        other => panic!("{other}"),
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
    let kib: u64 = peak.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    println!("\n{PEAK}{}", kib * 1024);
}

fn repository(directory: &Path) -> Repository {
    let layout = Layout::new("main", SegmentSize::new(MIB).unwrap(), Compression::Lz4);
    Repository { store: Arc::new(FileStore::new(directory.join("repository"))), layout }
}

fn writer(directory: &Path) -> Writer {
    let Repository { store, layout } = repository(directory);
    Writer::new(store, layout, SYSTEM)
}

fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

/// All WAL is there from the beginning.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl WalWaiter for Nobody {
    async fn wait_covered(&self, _: &[WalNeed]) -> Result<()> {
        Ok(())
    }
}

async fn back_up(directory: &Path, port: &str, incremental: bool) {
    let conninfo = format!("host=127.0.0.1 port={port} user=tester sslmode=disable passfile=/dev/null");
    let connect = || async {
        let info = ConnInfo::parse(&conninfo, &|_| None).unwrap();
        Ok(Client::connect(&info, Mode::Physical, &[]).await?)
    };
    let (progress, _seen) = watch::channel(BackupProgress::default());
    let (writer, options, clock) = (writer(directory), BackupOptions::default(), Clock::system());
    let document = match incremental {
        true => {
            let reader = WalReader::new(repository(directory), SYSTEM);
            Box::pin(take_incremental(connect, &reader, &writer, &options, &clock, &Nobody, progress)).await.unwrap()
        }
        false => Box::pin(take(connect, &writer, &options, &clock, &Nobody, progress)).await.unwrap(),
    };
    assert_eq!((document.reference.is_some(), document.end_lsn), (incremental, end(incremental)));
    assert_eq!((document.findings.is_empty(), document.files.is_empty()), (true, false));
}

async fn catalog(repository: &Repository) -> Catalog {
    let cluster = Repository::read_cluster(repository.store.as_ref(), "main").await.unwrap().unwrap();
    Catalog::read(repository, cluster).await.unwrap()
}

async fn list(directory: &Path) {
    let catalog = catalog(&repository(directory)).await;
    let backup = catalog.finished_backups().next().unwrap();
    assert!(backup.files.is_empty() && !backup.parts.is_empty());
}

async fn verify_all(directory: &Path) {
    let repository = repository(directory);
    let cluster = catalog(&repository).await.cluster;
    for deep in [false, true] {
        let (progress, _seen) = watch::channel(VerifyProgress::default());
        let (cluster, options) = (cluster.clone(), VerifyOptions { deep, ..VerifyOptions::default() });
        let report = Box::pin(verify(&repository, cluster, &options, Clock::system().now(), &progress)).await.unwrap();
        // The WAL is made up, and ends in what makes no sense: who reads it says so.
        let expected: &[FindingKind] = if deep { &[FindingKind::WrongRecord] } else { &[] };
        let found: Vec<FindingKind> = report.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!(found, expected, "{report:?}");
    }
}

async fn plan_to_the_end(repository: &Repository) -> Plan {
    let request =
        Request { target: Target::End, exclusive: false, backup: None, timeline: None, action: TargetAction::Promote };
    let reader = WalReader::new(repository.clone(), SYSTEM);
    Box::pin(plan(&reader, &catalog(repository).await, &request, Clock::system().now())).await.unwrap()
}

fn restore_options(directory: &Path, delta: bool) -> RestoreOptions {
    let command = FetchCommand { executable: "/usr/bin/seawall".into(), ..FetchCommand::default() };
    let is_root = nix::unistd::Uid::effective().is_root();
    RestoreOptions {
        delta,
        owner: is_root.then(|| "nobody".to_owned()),
        ..RestoreOptions::new(data(directory), command)
    }
}

async fn look(directory: &Path) {
    let repository = repository(directory);
    let plan = plan_to_the_end(&repository).await;
    let (progress, _seen) = watch::channel(RestoreProgress::default());
    let options = restore_options(directory, true);
    let seen = Box::pin(preview(&repository, &plan, &options, progress)).await.unwrap();
    assert!(seen.kept_files > 0 && !seen.removed.is_empty(), "{seen}");
}

async fn restore(directory: &Path, delta: bool, references: usize) {
    let repository = repository(directory);
    let plan = plan_to_the_end(&repository).await;
    assert_eq!(plan.backup.builds_on.len(), references);
    let options = restore_options(directory, delta);
    let (progress, _seen) = watch::channel(RestoreProgress::default());
    let report = Box::pin(execute(&repository, &plan, &options, progress)).await.unwrap();
    assert_eq!(report.kept_files > 0, delta);
}
