//! The restore by hand of `docs/repository-format.md`: its very commands, on a repository of a real server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use age::secrecy::ExposeSecret;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall::archive::{ArchiveOptions, Archiver, PostgresSource};
use seawall::backup::{BackupOptions, BackupProgress, RepositoryWaiter};
use seawall::codec::encryption::generate_identity;
use seawall::codec::{Compression, Form, Recipients};
use seawall::postgres::{Client, ConnInfo, Mode};
use seawall::repository::{BackupDocument, Layout, Repository, Writer};
use seawall::runtime::{Clock, Shutdown};
use seawall::scratch::{Server, ServerOptions, Unprivileged};
use seawall::store::{FileStore, Store};
use seawall::wal::{Lsn, SegmentSize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::postgres::{
    DEBIAN, Postgres, pgbench_tables, pgbench_transactions, programs, row_digests, scratch_directory,
};
use support::waiting::{PATIENCE, wait_for};
use tokio::sync::watch;

/// The commands of the section, in its order: first the ones to fill in, then the rest.
fn blocks_on_the_page() -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/repository-format.md")).unwrap();
    let (_, section) = page.split_once("\n## Restore by hand\n").expect("the page ends with the restore by hand");
    assert!(!section.contains("\n## "), "the restore by hand is the last section");
    let blocks = section.split("\n```sh\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0.to_owned() + "\n");
    blocks.collect()
}

/// The page's commands as one script, with the values that it leaves to the reader filled in, and nothing else changed.
fn script(values: &[(&str, String)]) -> String {
    let blocks = blocks_on_the_page();
    let (to_fill_in, commands) = blocks.split_first().unwrap();
    assert!(commands.len() >= 4, "files, WAL, recovery and start: {} blocks of commands", commands.len());
    let mut script = String::new();
    for line in to_fill_in.lines() {
        let (name, _) = line.split_once('=').expect("the first block has nothing but values");
        let (_, value) = values.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("what is {name}?"));
        script += &format!("{name}={value}\n");
    }
    assert_eq!(to_fill_in.lines().count(), values.len(), "the first block has every value once");
    script + &commands.concat()
}

/// A repository in a directory, with a base backup and all WAL of `server` up to the end of the load.
async fn archive(server: &Postgres, root: &Path, form: &Form) -> (Layout, BackupDocument) {
    let store: Arc<dyn Store> = Arc::new(FileStore::new(root.to_owned()));
    let info = ConnInfo::parse(&server.conninfo(), &|_| None).unwrap();
    let source = Arc::new(PostgresSource::new(info.clone(), "seawall", Clock::system()));
    let options = ArchiveOptions { form: form.clone(), ..ArchiveOptions::default() };
    let archiver = Archiver::new(source, store.clone(), "main", options, Clock::system());
    let (shutdown, state) = (Shutdown::default(), archiver.state());
    let token = shutdown.clone();
    let archiving = tokio::spawn(async move { archiver.run(&token).await });
    let cluster =
        wait_for("cluster.json", PATIENCE, async || Repository::read_cluster(store.as_ref(), "main").await.unwrap())
            .await;
    let layout = Layout::new("main", SegmentSize::new(cluster.segment_bytes).unwrap(), form.clone());
    let repository = Repository { store: store.clone(), layout: layout.clone() };
    let writer = Writer::new(store, layout.clone(), cluster.system_identifier);

    let connect = || async { Ok(Client::connect(&info, Mode::Physical, &[]).await?) };
    let (waiter, options) = (RepositoryWaiter::new(repository), BackupOptions::default());
    let (progress, _) = watch::channel(BackupProgress::default());
    let backup = seawall::backup::take(connect, &writer, &options, &Clock::system(), &waiter, progress).await.unwrap();

    pgbench_transactions(server, 500).await;
    // More than one segment is needed.
    server.sql("SELECT pg_switch_wal()").await.unwrap();
    server.sql("INSERT INTO aside SELECT n, 'after the backup' FROM generate_series(1, 20000) n").await.unwrap();
    // Where WAL is encrypted, each of these is named in clear in front of it.
    let many = "DO $$ BEGIN FOR n IN 1..200 LOOP EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY)', n); END LOOP; END $$";
    server.sql(many).await.unwrap();
    let end: Lsn = server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    wait_for(&format!("{end} to be acknowledged"), PATIENCE, async || (state.borrow().flushed >= end).then_some(()))
        .await;
    shutdown.begin_stop();
    archiving.await.unwrap().unwrap();
    (layout, backup)
}

/// `sh` with the script, as the servers' user; the server that it starts goes with it.
struct ByHand {
    shell: Child,
    data: PathBuf,
    log: PathBuf,
}

impl ByHand {
    fn start(script: &str, data: &Path) -> ByHand {
        let log = data.with_extension("log");
        let file = File::create(&log).unwrap();
        let mut command = Unprivileged::find().unwrap().command(Path::new("/bin/sh"));
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGOPTIONS"] {
            command.env_remove(name);
        }
        command.arg("-c").arg(script).current_dir("/").stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        ByHand { shell: command.spawn().unwrap(), data: data.to_owned(), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first word and the state of `postmaster.pid` (`src/include/utils/pidfile.h`, lines 1 and 8).
    fn postmaster(&self) -> Option<(Pid, String)> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.parse().ok()?;
        Some((Pid::from_raw(pid), text.lines().nth(7).unwrap_or_default().trim().to_owned()))
    }

    /// Waits until recovery has ended and the server takes writes.
    async fn recovered(&mut self) {
        wait_for("recovery to end", PATIENCE * 3, async || {
            let ended = self.shell.try_wait().unwrap();
            assert!(ended.is_none(), "the commands ended ({}):\n{}", ended.unwrap(), self.log());
            let is_ready = self.postmaster().is_some_and(|(_, state)| state == "ready");
            (is_ready && !self.data.join("recovery.signal").exists()).then_some(())
        })
        .await;
    }

    /// Ctrl-C.
    async fn stop(&mut self) {
        kill(self.postmaster().unwrap().0, Signal::SIGINT).unwrap();
        let status = wait_for("the server to stop", PATIENCE, async || self.shell.try_wait().unwrap()).await;
        assert!(status.success(), "ended with {status}:\n{}", self.log());
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        if let (Ok(None), Some((pid, _))) = (self.shell.try_wait(), self.postmaster()) {
            kill(pid, Signal::SIGQUIT).unwrap();
        }
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
    }
}

/// Every object below a directory of the repository whose name contains `part`.
fn objects(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path, part));
        } else if path.to_string_lossy().contains(part) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn fetch(program: &Path, repository: &Path, segment_bytes: u64, name: &str, target: &Path, key: &Path) -> Option<i32> {
    let mut command: Command = Unprivileged::find().unwrap().command(Path::new("/bin/sh"));
    command.arg(program).arg(repository).arg(segment_bytes.to_string()).arg(name).arg(target).arg(key);
    command.current_dir("/").stderr(Stdio::null()).status().unwrap().code()
}

async fn restore_by_hand(wal_segment_mib: Option<u32>, compression: Compression, is_encrypted: bool) {
    // Given a private key, which the archiver does not have
    let directory = scratch_directory();
    let key = directory.path().join("key.txt");
    let (secret, public) = generate_identity();
    fs::write(&key, secret.expose_secret()).unwrap();
    Unprivileged::find().unwrap().give_all(&key).unwrap();
    let recipients = if is_encrypted { Recipients::parse([&*public]).unwrap() } else { Recipients::default() };
    let form = Form { compression, recipients, ..Form::default() };
    let ending = form.ending();
    // and a server with a tablespace, archived and backed up under way
    let server = Postgres::create(DEBIAN, ServerOptions { wal_segment_mib, ..ServerOptions::default() }).await;
    let tablespace = server.side_directory("aside");
    server.sql(&format!("CREATE TABLESPACE aside LOCATION '{}'", tablespace.display())).await.unwrap();
    server.sql("CREATE TABLE aside (n int, t text) TABLESPACE aside").await.unwrap();
    server.sql("INSERT INTO aside SELECT n, 'before the backup' FROM generate_series(1, 20000) n").await.unwrap();
    let root = directory.path().join("repository");
    fs::create_dir(&root).unwrap();
    // Load on both sides of the backup; some of it is more than a block.
    pgbench_tables(&server, 3).await;
    let (layout, backup) = archive(&server, &root, &form).await;
    let expected = row_digests(&server, "postgres").await;
    let repository = root.join("main");
    let segment_bytes = layout.segment_size().bytes();
    let later_blocks = objects(&repository.join("wal"), ".01000000-");
    assert_eq!(
        later_blocks.is_empty(),
        wal_segment_mib.is_none(),
        "large segments have several blocks: {later_blocks:?}"
    );
    assert!(
        !objects(&repository.join("open"), "0000").is_empty(),
        "there are tails, so that the page's rules are tried"
    );
    if is_encrypted {
        let clear_bytes = |path: &PathBuf| {
            let object = fs::read(path).unwrap();
            object.windows(8).position(|bytes| bytes == b"\n-> X255").expect("an age file")
        };
        let longest = objects(&repository, ".age").iter().map(clear_bytes).max().unwrap();
        assert!(longest > 10_000, "of what is in clear, {longest} bytes is the most");
    }
    // and what an attempt has left there that was cut off
    let folder = repository.join("base").join(backup.id.to_string());
    for name in ["base.00001", "base.00009", "16384.00002"] {
        fs::write(folder.join(format!("{name}.{}.tar.{ending}", "0".repeat(32))), "not a part of this backup").unwrap();
    }
    fs::write(folder.join(format!("backup_manifest.{}.{ending}", "0".repeat(32))), "nor a manifest").unwrap();
    Unprivileged::find().unwrap().give_all(&root).unwrap();
    // The server and its tablespace are gone: nothing of them can help
    drop(server);
    assert!(!tablespace.exists());

    // When the page's commands are run by somebody else's hand
    let data = directory.path().join("restored");
    let values = [
        ("bin", programs(DEBIAN).path("postgres").parent().unwrap().display().to_string()),
        ("repo", repository.display().to_string()),
        ("backup", backup.id.to_string()),
        ("timeline", backup.timeline.to_string()),
        ("segment_bytes", segment_bytes.to_string()),
        ("data", data.display().to_string()),
        ("identity", key.display().to_string()),
    ];
    let mut by_hand = ByHand::start(&script(&values), &data);
    by_hand.recovered().await;
    by_hand.stop().await;

    // Then every row is there, and only the last segment was filled up
    let restored = Server::open(&programs(DEBIAN), &data, ServerOptions::default()).await.unwrap();
    assert_eq!(row_digests(&restored, "postgres").await, expected);
    let log = by_hand.log();
    assert!(log.contains("successfully verified"), "pg_verifybackup has had its say:\n{log}");
    let cut: std::collections::BTreeSet<&str> = log.lines().filter(|line| line.contains("is stored up to")).collect();
    assert_eq!(cut.len(), 1, "the end of the WAL is in one segment:\n{log}");
    drop(restored);

    // And the page's program tells what is not there from what is damaged
    let (program, target) = (data.with_extension("fetch"), directory.path().join("segment"));
    let last = objects(&repository.join("open"), "0000").pop().unwrap();
    let last_name = last.file_name().unwrap().to_string_lossy()[..24].to_owned();
    let get = |name: &str| fetch(&program, &repository, segment_bytes, name, &target, &key);
    assert_eq!(get(&last_name), Some(0));
    assert_eq!(fs::metadata(&target).unwrap().len(), segment_bytes);
    assert_eq!(get("0000000100000FFF00000000"), Some(1));
    assert_eq!(get("00000009.history"), Some(1));
    for tail in objects(&repository.join("open"), &last_name) {
        let mut bytes = fs::read(&tail).unwrap();
        let middle = bytes.len() - 20;
        bytes[middle] ^= 1;
        fs::write(&tail, bytes).unwrap();
    }
    assert_eq!(get(&last_name), Some(255));

    // And where a part is damaged, the page's commands end before anything is written
    let name = format!("{}.tar.{ending}", backup.parts[0].name);
    let part = folder.join(&name);
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    let values =
        values.map(|(name, value)| (name, if name == "data" { elsewhere.display().to_string() } else { value }));
    let mut by_hand = ByHand::start(&script(&values), &elsewhere);
    assert_eq!(by_hand.shell.wait().unwrap().code(), Some(1), "{}", by_hand.log());
    assert!(by_hand.log().contains(&format!("{name}: FAILED")), "{}", by_hand.log());
    assert!(!elsewhere.exists());
}

#[tokio::test]
async fn the_commands_on_the_page_restore_every_row() {
    restore_by_hand(None, Compression::Lz4, false).await;
}

#[tokio::test]
async fn they_put_segments_of_several_blocks_together_too_and_read_zstandard() {
    restore_by_hand(Some(64), Compression::Zstd(3), false).await;
}

#[tokio::test]
async fn with_the_private_key_they_restore_what_is_encrypted() {
    restore_by_hand(None, Compression::Lz4, true).await;
}
