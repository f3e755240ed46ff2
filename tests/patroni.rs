//! `docs/patroni.md`, word by word: Debian's Patroni with two nodes on loopback, switched over while `seawall run` streams, a
//! replica and then the whole cluster made from the archive.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::{Op, S3Server};
use seawall::scratch::{Server, ServerOptions, Unprivileged};
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::postgres::{DEBIAN, programs, row_digests, scratch_directory};
use support::program::{Running, Seawall, path_for_server};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

const PAGE: &str = include_str!("../docs/patroni.md");

/// Who answers where, on loopback.
const ETCD: &str = "127.0.0.2";
const HOSTS: [(&str, &str); 2] = [("db1", "127.0.0.3"), ("db2", "127.0.0.4")];

const EVERYTHING: &str = "SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM rows t";

/// The page's blocks.
fn blocks() -> impl Iterator<Item = &'static str> {
    PAGE.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("a block has lines").1)
}

/// The page's only block with this in it.
fn block(with: &str) -> &'static str {
    let found: Vec<&str> = blocks().filter(|block| block.contains(with)).collect();
    assert_eq!(found.len(), 1, "one block of the page has {with:?}");
    found[0]
}

/// A port that is free on all hosts of the page.
fn free_port() -> u16 {
    let hosts = || HOSTS.iter().map(|(_, host)| *host).chain([ETCD]);
    loop {
        let first = TcpListener::bind((ETCD, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        if hosts().all(|host| TcpListener::bind((host, port)).is_ok()) {
            return port;
        }
    }
}

/// A process that is ended by its number: asked first, so that it ends what it has started.
struct Process(Child);

impl Process {
    fn ask(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    async fn stop(mut self) {
        self.ask();
        wait_for("a process to end", PATIENCE, async || self.0.try_wait().unwrap()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// Two hosts, an etcd and a bucket, as the page has them.
struct Stage {
    bucket: S3Server,
    ports: [u16; 4],
    etcd: Option<Process>,
    patroni: [Option<Process>; 2],
    // Last: fields are dropped in this order.
    places: TempDir,
}

impl Stage {
    fn new() -> Stage {
        let ports = std::array::from_fn(|_| free_port());
        let mut stage =
            Stage { bucket: S3Server::start(), ports, etcd: None, patroni: [None, None], places: scratch_directory() };
        for directory in ["bin", "home", "home/.aws", "socket0", "socket1"] {
            stage.user().create_directory(&stage.place(directory)).unwrap();
        }
        let program = path_for_server(stage.places.path());
        std::os::unix::fs::symlink(program, stage.place("bin/seawall")).unwrap();
        let (key, secret) = (S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
        let credentials = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        stage.write("home/.aws/credentials", &credentials, 0o600);
        let s3 = format!("\n[s3]\nendpoint = \"{}\"\n\n[run]\nlisten = \"off\"\n", stage.bucket.endpoint());
        stage.write("seawall.toml", &(stage.here(0, block("# /etc/seawall.toml")) + &s3), 0o600);
        let passwords: String = [("seawall", "seawall-secret"), ("postgres", "postgres-secret")]
            .map(|(user, password)| format!("*:*:*:{user}:{password}\n"))
            .concat();
        stage.write("home/.pgpass", &passwords, 0o600);
        for node in 0..HOSTS.len() {
            stage.write(&format!("seawall{node}.sh"), &stage.here(node, block("# /etc/patroni/seawall.sh")), 0o700);
            stage.configure(node, block("# /etc/patroni/config.yml"));
        }
        stage.start_etcd();
        stage
    }

    fn user(&self) -> Unprivileged {
        Unprivileged::find().unwrap()
    }

    fn place(&self, name: &str) -> PathBuf {
        self.places.path().join(name)
    }

    fn data(&self, node: usize) -> PathBuf {
        self.place(&format!("data{node}"))
    }

    /// The page's words, for this machine, as they are on one of its hosts.
    fn here(&self, node: usize, text: &str) -> String {
        let [etcd, _, postgres, rest] = self.ports;
        let place = |name: String| self.place(&name).display().to_string();
        let own = |text: String| match node {
            0 => text,
            // "On db2 the name and the addresses are the other ones".
            _ => text.replace("name: db1", "name: db2").replace(": 192.0.2.11:", ": 192.0.2.12:"),
        };
        let mut text = own(text.to_owned());
        for (there, here) in [
            ("192.0.2.10:2379", format!("{ETCD}:{etcd}")),
            ("192.0.2.0/24", "127.0.0.0/24".to_owned()),
            ("192.0.2.11", HOSTS[0].1.to_owned()),
            ("192.0.2.12", HOSTS[1].1.to_owned()),
            ("port=5432", format!("port={postgres}")),
            (":5432", format!(":{postgres}")),
            (":8008", format!(":{rest}")),
            ("s3://backups/postgres", format!("s3://{}/postgres", S3Server::BUCKET)),
            ("/etc/patroni/config.yml", place(format!("patroni{node}.yml"))),
            ("/etc/patroni/seawall.sh", place(format!("seawall{node}.sh"))),
            ("/etc/seawall.toml", place("seawall.toml".to_owned())),
            ("/var/lib/postgresql/15/shop", place(format!("data{node}"))),
            ("/var/lib/postgresql/patroni.pgpass", place(format!("pgpass{node}"))),
            ("/var/lib/postgresql/restored", place("restored".to_owned())),
            ("/var/run/postgresql", place(format!("socket{node}"))),
            // Not the page's affair: the test is in a hurry.
            ("loop_wait: 10", "loop_wait: 1".to_owned()),
            ("timeout 10", "timeout 1".to_owned()),
            ("wal_level: replica", "wal_level: replica\n        fsync: off".to_owned()),
        ] {
            text = text.replace(there, &here);
        }
        text
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.place(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        self.user().give(&path).unwrap();
    }

    fn configure(&self, node: usize, page: &str) {
        self.write(&format!("patroni{node}.yml"), &self.here(node, page), 0o600);
    }

    /// A command as the page's user types it.
    fn command(&self, program: &Path) -> Command {
        let mut command = self.user().command(program);
        let path = format!("{}:{}:/usr/bin:/bin", self.place("bin").display(), programs(DEBIAN).bin.display());
        command.env_clear().env("PATH", path).env("HOME", self.place("home")).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        command.env("AWS_EC2_METADATA_DISABLED", "true").current_dir(self.places.path()).stdin(Stdio::null());
        command
    }

    fn spawn(&self, mut command: Command, log: &str) -> Process {
        let log = OpenOptions::new().create(true).append(true).open(self.place(log)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; see tests/run.sh")))
    }

    fn start_etcd(&mut self) {
        let [client, peer, ..] = self.ports;
        let (client, peer) = (format!("http://{ETCD}:{client}"), format!("http://{ETCD}:{peer}"));
        let mut command = self.command(Path::new("/usr/bin/etcd"));
        command.arg("--data-dir").arg(self.place("etcd")).args(["--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
        command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        self.etcd = Some(self.spawn(command, "etcd.log"));
    }

    fn start_patroni(&mut self, node: usize) {
        let mut command = self.command(Path::new("/usr/bin/patroni"));
        command.arg(self.place(&format!("patroni{node}.yml")));
        self.patroni[node] = Some(self.spawn(command, &format!("patroni{node}.log")));
    }

    /// The leader, which is the first, last: the other one would be quick to take its place.
    async fn stop_patroni(&mut self) {
        for node in (0..HOSTS.len()).rev() {
            if let Some(patroni) = self.patroni[node].take() {
                patroni.stop().await;
            }
            assert!(!self.data(node).join("postmaster.pid").exists(), "Patroni left its server running");
        }
    }

    fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.place(&format!("patroni{node}.log"))).unwrap_or_default()
    }

    /// Types a script of the page, with this on its input. Gives what it printed.
    fn types(&self, script: &str, input: &str) -> String {
        let mut command = self.command(Path::new("/bin/sh"));
        command.arg("-euc").arg(self.here(0, script)).stderr(Stdio::inherit());
        self.write("input", input, 0o600);
        let output = command.stdin(File::open(self.place("input")).unwrap()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{printed}");
        printed
    }

    /// What a query gives on a node; `None` if it does not answer.
    fn ask(&self, node: usize, query: &str) -> Option<String> {
        let mut command = self.command(&programs(DEBIAN).path("psql"));
        let (host, port) = (HOSTS[node].1, self.ports[2]);
        command.arg("-XAtqd").arg(format!("host={host} port={port} user=postgres dbname=postgres")).args(["-c", query]);
        let output = command.stderr(Stdio::null()).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    fn value(&self, node: usize, query: &str) -> String {
        self.ask(node, query).unwrap_or_else(|| panic!("{query}: {}", self.log(node)))
    }

    /// Waits until a query gives this on a node.
    async fn gives(&self, node: usize, query: &str, expected: &str) {
        let mut last = None;
        let what = format!("{expected:?} from {} to {query}", HOSTS[node].0);
        wait_for(&what, PATIENCE, async || {
            last = self.ask(node, query);
            (last.as_deref() == Some(expected)).then_some(())
        })
        .await;
    }

    async fn leads(&self, node: usize) {
        self.gives(node, "SELECT pg_is_in_recovery()", "f").await;
    }

    /// Waits until a node is a replica that has everything of the leader.
    async fn follows(&self, node: usize, leader: usize) {
        self.gives(node, "SELECT pg_is_in_recovery()", "t").await;
        let lsn = self.value(leader, "SELECT pg_current_wal_flush_lsn()");
        self.gives(node, &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), "t").await;
        self.gives(leader, "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'db_'", "1").await;
    }

    /// Commits rows of a time.
    fn insert(&self, leader: usize, when: &str) {
        let insert = format!("INSERT INTO rows SELECT '{when}', n, md5(n::text) FROM generate_series(1, 2000) n");
        self.value(leader, &insert);
    }

    /// Waits until everything of the leader is stored.
    async fn settled(&self, leader: usize) {
        let lsn = self.value(leader, "SELECT pg_current_wal_flush_lsn()");
        let stored = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'seawall' AND flush_lsn";
        self.gives(leader, &format!("{stored} >= '{lsn}'"), "1").await;
    }

    /// The page's `seawall run`.
    fn archive(&self) -> Running {
        let typed = self.here(0, block("seawall run"));
        let words = typed.split_whitespace().skip(1);
        let seawall = Seawall::new(words).program(&self.place("bin/seawall")).by_server_user();
        seawall.env("HOME", self.place("home")).env("AWS_EC2_METADATA_DISABLED", "true").start()
    }

    /// All rows, as they come back from the archive.
    async fn restored(&self, arguments: &str, into: &str) -> String {
        let into = self.place(into);
        let restore = format!("seawall restore --config /etc/seawall.toml --into {} {arguments}", into.display());
        self.types(&restore, "");
        let home = ("HOME".to_owned(), self.place("home").display().to_string());
        let options = ServerOptions { environment: vec![home], own_configuration: true, ..ServerOptions::default() };
        let server = Server::open(&programs(DEBIAN), &into, options).await.unwrap();
        let rows = server.sql(EVERYTHING).await.unwrap();
        assert_eq!(row_digests(&server, "postgres").await.len(), 1, "there is one table");
        rows[0][0].clone().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (node, (name, _)) in HOSTS.iter().enumerate() {
                eprintln!("--- {name}\n{}", self.log(node));
            }
        }
        // Killed, Patroni leaves its server alone.
        for node in 0..HOSTS.len() {
            self.patroni[node] = None;
            if self.data(node).join("postmaster.pid").exists() {
                let mut stop = self.command(&programs(DEBIAN).path("pg_ctl"));
                stop.args(["-m", "immediate", "stop", "-D"]).arg(self.data(node)).stdout(Stdio::null());
                let _ = stop.status();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_patroni_is_switched_over_and_comes_back_from_the_archive() {
    let mut stage = Stage::new();
    // Given a cluster of one node, archived, with a base backup
    stage.start_patroni(0);
    stage.leads(0).await;
    stage.gives(0, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'seawall'", "1").await;
    stage.types(block("CREATE ROLE seawall"), "");
    stage.value(0, "CREATE TABLE rows (time text, number int, filling text, PRIMARY KEY (time, number))");
    let mut archiver = stage.archive();
    archiver.wait_for_text("streaming").await;
    stage.types(block("seawall backup"), "");
    stage.insert(0, "before");
    // When the second starts, then it is made from the archive, and nothing that Patroni says is beaten by what a restore wrote
    stage.start_patroni(1);
    stage.follows(1, 0).await;
    assert!(stage.log(1).contains("replica has been created using seawall"), "{}", stage.log(1));
    let auto = "SELECT string_agg(name, ' ') FROM pg_file_settings WHERE sourcefile LIKE '%auto.conf'";
    assert_eq!(stage.value(1, auto), "", "postgresql.auto.conf steers the replica");
    assert!(stage.types(block("patronictl -c /etc/patroni/config.yml list"), "").contains("db2"));
    // When it becomes the leader, then the stream follows it
    stage.types(block("switchover"), "");
    stage.leads(1).await;
    stage.insert(1, "between");
    stage.follows(0, 1).await;
    stage.settled(1).await;
    let moment = stage.value(1, "SELECT pg_sleep(0.01)::text || clock_timestamp()");
    let then = stage.value(1, EVERYTHING);
    // When it is switched back while the store answers nothing, then the cluster is none the worse for it
    let held = [Op::Put, Op::Get, Op::List].map(|op| stage.bucket.hold(op));
    stage.insert(1, "while the store is away");
    let back = block("switchover").replace("db1", "db0").replace("db2", "db1").replace("db0", "db2");
    stage.types(&back, "");
    stage.leads(0).await;
    stage.insert(0, "after");
    drop(held);
    stage.follows(1, 0).await;
    stage.settled(0).await;
    assert!(archiver.is_running(), "the archiver lived through it");
    // and every row of it comes back
    assert_eq!(stage.restored("--to-end", "end").await, stage.value(0, EVERYTHING));
    // and a replica can be made anew
    let made = |stage: &Stage| stage.log(1).matches("replica has been created using seawall").count();
    let before = made(&stage);
    stage.types(&block("reinit").replace("db1", "db2"), "");
    wait_for("the replica made anew", PATIENCE, async || (made(&stage) > before).then_some(())).await;
    stage.follows(1, 0).await;
    assert_eq!(stage.value(1, EVERYTHING), stage.value(0, EVERYTHING));
    // When the whole cluster is put back to the moment between
    stage.stop_patroni().await;
    let at = |text: &str| text.replace("2026-11-20 14:03 Europe/Berlin", &moment);
    stage.types(&at(block("--dry-run")), "");
    stage.types(block("remove shop"), "shop\nYes I am aware\ndb1\n");
    for node in 0..HOSTS.len() {
        std::fs::rename(stage.data(node), stage.place(&format!("moved{node}"))).unwrap();
    }
    let page = block("# /etc/patroni/config.yml").replace("  method: initdb\n", &at(block("  method: seawall\n")));
    stage.configure(0, &page);
    stage.start_patroni(0);
    stage.leads(0).await;
    // Then the rows are those of that moment, the other node follows, and it is archived where it was
    assert_eq!(stage.value(0, EVERYTHING), then);
    stage.configure(0, block("# /etc/patroni/config.yml"));
    stage.insert(0, "in another life");
    // A replica is made of the newest timeline that the archive has
    stage.settled(0).await;
    stage.start_patroni(1);
    stage.follows(1, 0).await;
    assert!(archiver.is_running(), "the archiver lived through it");
    assert_eq!(stage.restored("--to-end", "again").await, stage.value(0, EVERYTHING));
    archiver.terminate().await;
    stage.stop_patroni().await;
}
