//! What is measured against: a server with a filled database and waiting WAL, empty directories, our program.

use crate::latency::{FLUSHED, lsn};
use crate::process::Measured;
use crate::s3_process::S3Process;
use crate::s3_store;
use crate::support::postgres::{DEBIAN, Postgres, pgbench_tables, scratch_directory, scratch_directory_below, tool};
use crate::support::program::path_for_server;
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::scratch::ServerOptions;
use seawall::wal::Lsn;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The slot that keeps the load's WAL. What is measured gets copies of it.
const HELD: &str = "held";

/// The application name of a receiver that is not ours.
pub const RECEIVER: &str = "receiver";

/// The disk that is measured.
pub const DISK: &str = "/tmp";
/// A file system in memory, on every Linux.
pub const MEMORY: &str = "/dev/shm";

/// A version that makes incremental backups.
const SUMMARIZES: u32 = 18;

/// A server with a filled database, and the load's WAL waiting behind a slot.
pub struct Fixture {
    pub server: Postgres,
    directory: TempDir,
    memory: TempDir,
    /// Where the waiting WAL begins, and the last segment's end.
    pub waiting: (Lsn, Lsn),
    pub segment_bytes: u64,
    pub database_bytes: u64,
    /// Our program, where the servers' user can run it.
    program: PathBuf,
    /// How whoever is measured connects: through the Unix socket, if nothing else was said.
    conninfo: String,
}

impl Fixture {
    /// `pgbench_scale`: 15 MB of tables each, and about as much WAL. With the server's files below `server_files`.
    pub async fn create(pgbench_scale: u32, segment_mib: u32, server_files: &str) -> Fixture {
        let options = ServerOptions { wal_segment_mib: Some(segment_mib), ..ServerOptions::default() };
        Fixture::of(pgbench_scale, options, server_files).await
    }

    /// The same on the disk, with data checksums or without.
    pub async fn with_checksums(pgbench_scale: u32, data_checksums: bool) -> Fixture {
        let options = ServerOptions { wal_segment_mib: Some(16), data_checksums, ..ServerOptions::default() };
        Fixture::of(pgbench_scale, options, DISK).await
    }

    /// A server that makes incremental backups.
    pub async fn summarized(pgbench_scale: u32) -> Fixture {
        let settings = [("summarize_wal".to_owned(), "on".to_owned())].into();
        let options =
            ServerOptions { wal_segment_mib: Some(16), data_checksums: true, settings, ..ServerOptions::default() };
        Fixture::of_version(SUMMARIZES, pgbench_scale, options, DISK).await
    }

    /// A server on the disk whose rows no compressor makes smaller: 15 MB of them each.
    pub async fn with_noise(scale: u32) -> Fixture {
        let options = ServerOptions { wal_segment_mib: Some(16), ..ServerOptions::default() };
        let mut fixture = Fixture::of(1, options, DISK).await;
        fixture.server.sql("CREATE EXTENSION pgcrypto").await.unwrap();
        let rows = u64::from(scale) * 14_000;
        let noise = format!("CREATE TABLE noise AS SELECT gen_random_bytes(1000) FROM generate_series(1, {rows})");
        fixture.server.sql(&noise).await.unwrap();
        fixture.server.sql("CHECKPOINT").await.unwrap();
        fixture.database_bytes = database_bytes(&fixture.server).await;
        fixture
    }

    /// The waiting WAL is that of an `UPDATE` of every row, without images of pages: records of some hundred bytes.
    pub async fn with_updates(pgbench_scale: u32) -> Fixture {
        let settings = [("full_page_writes".to_owned(), "off".to_owned())].into();
        let options = ServerOptions { wal_segment_mib: Some(16), settings, ..ServerOptions::default() };
        let mut fixture = Fixture::of(pgbench_scale, options, DISK).await;
        let (start, segment_bytes) = (fixture.waiting.1, fixture.segment_bytes);
        for slot in [
            format!("pg_drop_replication_slot('{HELD}')"),
            format!("pg_create_physical_replication_slot('{HELD}', true)"),
        ] {
            fixture.server.sql(&format!("SELECT {slot}")).await.unwrap();
        }
        fixture.server.sql("UPDATE pgbench_accounts SET abalance = abalance + 1").await.unwrap();
        fixture.server.sql("SELECT pg_switch_wal()").await.unwrap();
        let end: Lsn = fixture.server.value("SELECT pg_current_wal_lsn()").await.parse().unwrap();
        fixture.waiting = (start, Lsn(end.0 / segment_bytes * segment_bytes));
        fixture
    }

    async fn of(pgbench_scale: u32, options: ServerOptions, server_files: &str) -> Fixture {
        Fixture::of_version(DEBIAN, pgbench_scale, options, server_files).await
    }

    async fn of_version(version: u32, pgbench_scale: u32, options: ServerOptions, server_files: &str) -> Fixture {
        let settings = [
            // One checkpoint, ours: otherwise the server's own work falls into one run and not into another.
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1d"),
            ("autovacuum", "off"),
            ("shared_buffers", "256MB"),
            ("max_replication_slots", "64"),
            ("max_wal_senders", "20"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let segment_mib = options.wal_segment_mib.unwrap_or(16);
        let settings = options.settings.iter().cloned().chain(settings).collect();
        let options = ServerOptions { settings, listen_tcp: true, ..options };
        let server = Postgres::create_below(Path::new(server_files), version, options).await;
        server.sql(&format!("SELECT pg_create_physical_replication_slot('{HELD}', true)")).await.unwrap();
        pgbench_tables(&server, pgbench_scale).await;
        server.sql("CREATE TABLE tick (at timestamptz DEFAULT clock_timestamp())").await.unwrap();
        server.sql("CHECKPOINT").await.unwrap();
        server.sql("SELECT pg_switch_wal()").await.unwrap();
        let segment_bytes = u64::from(segment_mib) << 20;
        let start = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{HELD}'");
        let start: Lsn = server.value(&start).await.parse().unwrap();
        let end: Lsn = server.value("SELECT pg_current_wal_lsn()").await.parse().unwrap();
        // Whole segments on both sides, for that is what either tool begins and ends with.
        let waiting = (Lsn(start.0 / segment_bytes * segment_bytes), Lsn(end.0 / segment_bytes * segment_bytes));
        let database_bytes = database_bytes(&server).await;
        let directory = scratch_directory();
        let memory = scratch_directory_below(Path::new(MEMORY));
        let program = path_for_server(directory.path());
        let conninfo = server.conninfo();
        Fixture { server, directory, memory, waiting, segment_bytes, database_bytes, program, conninfo }
    }

    /// From now on over TCP, as from another machine or a container beside it.
    pub fn over_tcp(mut self) -> Fixture {
        self.conninfo = self.server.tcp_conninfo();
        self
    }

    pub fn waiting_bytes(&self) -> u64 {
        self.waiting.1 - self.waiting.0
    }

    /// An empty directory on the measured disk.
    pub fn empty_directory(&self) -> TempDir {
        let directory = TempDir::new_in(self.directory.path()).unwrap();
        self.server.user().create_directory(directory.path()).unwrap();
        directory
    }

    /// `seawall` against this server and `store`, as the user that the other tools run as.
    pub fn seawall(&self, store: &S3Process, arguments: &[&str]) -> Command {
        let mut command = self.server.user().command(&self.program);
        for (name, _) in std::env::vars_os() {
            if ["SEAWALL_", "PG", "AWS_", "RUST_LOG"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.args(arguments).args(["--pg", &self.conninfo, "--repo", &s3_store::url()]);
        let said = File::options().create(true).append(true).open(self.directory.path().join("said")).unwrap();
        command.envs(crate::s3::S3Server::env_at(store.endpoint())).current_dir("/");
        command.stdout(Stdio::null()).stderr(said);
        command
    }

    /// What `seawall` has written to standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("said")).unwrap_or_default()
    }

    /// `seawall run` that streams into `store`.
    pub async fn archiver(&self, store: &S3Process, arguments: &[&str]) -> Measured {
        let arguments = [&["run", "--listen", "off"], arguments].concat();
        let mut running = Measured::start(self.seawall(store, &arguments));
        let session = self.server.connect("postgres").await.unwrap();
        wait_for("`seawall run` to stream", PATIENCE, async || {
            self.check_runs(&mut running);
            lsn(&session, FLUSHED).await
        })
        .await;
        running
    }

    /// `pg_receivewal` that has everything on disk as soon as it comes: its disk is memory. Commits may wait for it, as
    /// [`RECEIVER`].
    pub async fn receiver_in_memory(&self) -> Measured {
        let directory = self.memory.path().to_str().unwrap();
        let mut command = self.tool("pg_receivewal", &["--synchronous", "--no-loop", "-D", directory]);
        command.env("PGAPPNAME", RECEIVER);
        let mut running = Measured::start(command);
        let streams = format!("SELECT 1 FROM pg_stat_replication WHERE application_name = '{RECEIVER}'");
        wait_for("`pg_receivewal` to stream", PATIENCE, async || {
            assert!(running.exited().is_none(), "`pg_receivewal` ended");
            (!self.server.sql(&streams).await.unwrap().is_empty()).then_some(())
        })
        .await;
        running
    }

    /// Fails with what it said if it has ended.
    pub fn check_runs(&self, running: &mut Measured) {
        assert!(running.exited().is_none(), "`seawall run` ended:\n{}", self.said());
    }

    /// A tool of PostgreSQL, as the same user.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = tool(name);
        command.args(arguments).args(["-d", &self.conninfo]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `pgbench` with a statement of ours, `count` times in all, `rate` times a second on average: each one that ended.
    ///
    /// One process in C for all clients: with a client of ours, whose tasks wake each other, a commit that nobody waits for
    /// seems to take half as long again.
    pub async fn pgbench(&self, statement: &str, clients: u32, rate: u32, count: u32) -> Vec<Ended> {
        let directory = self.empty_directory();
        let script = directory.path().join("script.sql");
        std::fs::write(&script, statement).unwrap();
        let log = directory.path().join("log");
        let mut command = tool("pgbench");
        command.args(["-n", "-f"]).arg(&script).arg("-l").arg("--log-prefix").arg(&log);
        let numbers = [("-c", clients), ("-R", rate), ("-t", count.div_ceil(clients))];
        numbers.iter().for_each(|(flag, number)| _ = command.arg(flag).arg(number.to_string()));
        command.arg(self.server.conninfo());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
        let logs = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| *path != script).map(|path| std::fs::read_to_string(path).unwrap());
        logs.flat_map(|log| log.lines().map(Ended::parse).collect::<Vec<_>>()).collect()
    }

    /// A new slot that begins where the waiting WAL does.
    pub async fn copy_slot(&self, name: &str) {
        let copy = format!("SELECT pg_copy_physical_replication_slot('{HELD}', '{name}')");
        self.server.sql(&copy).await.unwrap();
    }

    pub async fn drop_slot(&self, name: &str) {
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        wait_for("the slot to be free", PATIENCE, async || self.server.sql(&drop).await.ok()).await;
    }

    pub async fn set_synchronous(&self, names: &str) {
        self.server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.unwrap();
        self.server.sql("SELECT pg_reload_conf()").await.unwrap();
        let shown = async || (self.server.value("SHOW synchronous_standby_names").await == names).then_some(());
        wait_for("the setting", PATIENCE, shown).await;
    }
}

/// One transaction of `pgbench`.
pub struct Ended {
    /// When it ended, since 1970.
    pub at: Duration,
    /// How long it took, once it was begun.
    pub took: Duration,
}

impl Ended {
    /// A line of its log (`pgbench.c`, `doLog`, with `-R`): client, number, microseconds since it was due, script, seconds
    /// and microseconds of its end, microseconds by which it was begun late.
    fn parse(line: &str) -> Ended {
        let fields: Vec<u64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
        let [_, _, since_due, _, seconds, micros, late] = fields[..] else { panic!("a line of pgbench's: {line}") };
        let at = Duration::from_secs(seconds) + Duration::from_micros(micros);
        Ended { at, took: Duration::from_micros(since_due - late) }
    }
}

/// The sizes of all files below a directory.
pub fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let bytes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => bytes_below(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    bytes.sum()
}

async fn database_bytes(server: &Postgres) -> u64 {
    server.value("SELECT sum(pg_database_size(oid))::bigint FROM pg_database").await.parse().unwrap()
}

/// Writes out what earlier runs left in memory: the next one is not to pay for it.
pub fn settle() {
    assert!(Command::new("sync").status().unwrap().success());
}
