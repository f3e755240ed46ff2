//! The main loop as users run it: the built program, real servers of every major version, the S3 protocol.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::S3Server;
use seawall::codec::encryption::protect;
use seawall::restore::PASSPHRASE_VARIABLE;
use seawall::scratch::{Server, ServerOptions, StopMode};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::pages::assert_sound_pages;
use support::postgres::{
    DEBIAN, Load, Postgres, SERVER_VERSIONS, pgbench_tables, pgbench_transactions, programs, row_digests,
    scratch_directory,
};
use support::program::{Running, Seawall, path_for_server};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

/// What a bucket holds at an instant.
type Snapshot = std::collections::BTreeMap<String, s3::StoredObject>;

/// A server, a bucket, and the program between them.
struct Scene {
    version: u32,
    server: Postgres,
    bucket: S3Server,
    places: TempDir,
    /// Where the server's tablespaces are.
    spaces: Vec<PathBuf>,
}

impl Scene {
    async fn new(version: u32, options: ServerOptions) -> Scene {
        let server = Postgres::create(version, options).await;
        Scene { version, server, bucket: S3Server::start(), places: scratch_directory(), spaces: Vec::new() }
    }

    fn repository(&self) -> String {
        format!("s3://{}/backups", S3Server::BUCKET)
    }

    fn seawall(&self, arguments: &[&str]) -> Seawall {
        let mut seawall = Seawall::new(arguments).env("SEAWALL_PG", self.server.conninfo());
        seawall = seawall.env("SEAWALL_REPO", self.repository());
        for (name, value) in self.bucket.env() {
            seawall = seawall.env(name, value);
        }
        seawall
    }

    fn run(&self) -> Running {
        self.run_with(&[])
    }

    fn run_with(&self, arguments: &[&str]) -> Running {
        self.seawall(&[&["run", "--listen", "off"], arguments].concat()).start()
    }

    /// Waits until everything that the server has written is acknowledged.
    async fn settle(&self) {
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        let what = format!("{lsn} to be acknowledged");
        wait_for(&what, PATIENCE, async || (self.server.value(&query).await != "0").then_some(())).await;
    }

    /// Restores into a directory of its own and starts what is there.
    async fn restored(&self, name: &str, target: &[&str]) -> Server {
        let into = self.restore(name, target).await;
        self.open(&into).await
    }

    async fn restore(&self, name: &str, target: &[&str]) -> PathBuf {
        self.restoring(name, target).run_ok().await;
        self.places.path().join(name)
    }

    /// The command that restores, to be run.
    fn restoring(&self, name: &str, target: &[&str]) -> Seawall {
        let into = self.places.path().join(name);
        // The server runs the program that restores, so it must be one that the server's user can run.
        let program = path_for_server(self.places.path());
        let owner = self.server.user().name().to_owned();
        let mut arguments = vec!["restore", "--into", into.to_str().unwrap(), "--owner", &owner];
        arguments.extend(target);
        let mut seawall = self.seawall(&arguments).program(&program);
        for location in &self.spaces {
            let map = format!("{}={}", location.display(), self.places.path().join(format!("{name}-space")).display());
            seawall = seawall.arg("--tablespace-map").arg(map);
        }
        seawall
    }

    /// Archiver and server die at once, and the bucket is what the copy was.
    async fn leave_only(&mut self, mut archiver: Running, copy: &Snapshot) {
        archiver.kill();
        self.server.kill().await.unwrap();
        self.bucket.restore_from(copy);
    }

    async fn open(&self, into: &Path) -> Server {
        self.open_with(into, self.bucket.env()).await
    }

    async fn open_with(&self, into: &Path, environment: Vec<(&str, String)>) -> Server {
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let options = ServerOptions { environment, ..ServerOptions::default() };
        let programs = programs(self.version);
        let opened = Server::open(&programs, into, options);
        tokio::time::timeout(PATIENCE * 2, opened).await.expect("recovery ends").unwrap()
    }
}

async fn marks(server: &Server) -> Vec<String> {
    let rows = server.sql("SELECT what FROM marks ORDER BY id").await.unwrap();
    rows.into_iter().map(|row| row[0].clone().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_major_version_restores_to_latest_time_lsn_xid_and_name() {
    for version in SERVER_VERSIONS {
        main_loop(version).await;
    }
}

async fn main_loop(version: u32) {
    // Given a server with page checksums, a tablespace, pgbench's tables and a second database, archived
    let mut scene = Scene::new(version, ServerOptions { data_checksums: true, ..ServerOptions::default() }).await;
    let space = scene.server.side_directory("space");
    scene.server.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await.unwrap();
    scene.spaces.push(space);
    pgbench_tables(&scene.server, 1).await;
    scene.server.sql("CREATE TABLE marks (id serial, what text); CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    scene.server.sql("CREATE DATABASE aside").await.unwrap();
    let aside = scene.server.connect("aside").await.unwrap();
    aside.sql("CREATE TABLE rows AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n").await.unwrap();
    let archiver = scene.run();
    scene.settle().await;
    // and a base backup, taken under load
    let load = Load::start(&scene.server, 2);
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    load.stop();
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
    wait_for("the load to end", PATIENCE, async || (scene.server.value(clients).await == "0").then_some(())).await;
    // When things are committed one after the other
    let sql = |text: &'static str| scene.server.sql(text);
    let digests = || row_digests(&scene.server, "postgres");
    sql("INSERT INTO marks (what) VALUES ('first')").await.unwrap();
    let time = scene
        .server
        .value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await;
    sql("SELECT pg_create_restore_point('before the second')").await.unwrap();
    let first = digests().await;
    let xid = scene.server.value("INSERT INTO marks (what) VALUES ('second') RETURNING txid_current()").await;
    let second = digests().await;
    let lsn = scene.server.value("SELECT pg_current_wal_insert_lsn()").await;
    sql("INSERT INTO marks (what) VALUES ('third')").await.unwrap();
    pgbench_transactions(&scene.server, 100).await;
    scene.settle().await;
    // and the archiver is killed without warning, and goes on encrypted, by Zstandard, with a second backup,
    drop(archiver);
    let (key, public) = keygen(scene.places.path(), "key").await;
    scene.server.user().give_all(&key).unwrap();
    let sealed = |command: &[&str]| {
        scene.seawall(&[command, &["--compression", "zstd"]].concat()).env("SEAWALL_RECIPIENTS", &public)
    };
    let archiver = sealed(&["run", "--listen", "off"]).start();
    sealed(&["backup", "--fast"]).run_ok().await;
    sql("INSERT INTO marks (what) VALUES ('fourth')").await.unwrap();
    aside.sql("UPDATE rows SET n = -n WHERE n % 100 = 0").await.unwrap();
    pgbench_transactions(&scene.server, 100).await;
    let end = digests().await;
    scene.settle().await;
    // and is killed again
    drop(archiver);
    // Then every kind of target gives exactly what it should, in a new directory or over what another one came to
    let cases = [
        ("one", vec!["--to-end"], &end),
        ("two", vec!["--to", &time], &first),
        ("two", vec!["--to-xid", &xid, "--delta"], &second),
        ("two", vec!["--to-name", "before the second", "--delta"], &first),
        // The first record there belongs to the third, and is not its commit.
        ("one", vec!["--to-lsn", &lsn, "--delta"], &second),
        // Without the transaction itself
        ("one", vec!["--to-xid", &xid, "--to-exclusive", "--delta"], &first),
    ];
    let identity = ["--identity", key.to_str().unwrap()];
    for (name, target, expected) in cases {
        let mut restored = scene.restored(name, &[&target[..], &identity].concat()).await;
        let found = row_digests(&restored, "postgres").await;
        assert_eq!(found, *expected, "PostgreSQL {version}, restored to {target:?}: {:?}", marks(&restored).await);
        assert_sound_pages(&restored).await;
        restored.stop(StopMode::Fast).await.unwrap();
    }
    // and so does one database alone, the other of which is dropped by what is said.
    let one = ["--to-end", "--delta", "--database", "postgres"];
    let said = scene.restoring("one", &[&one[..], &identity].concat()).run_ok().await.stdout;
    let restored = scene.open(&scene.places.path().join("one")).await;
    assert_eq!(row_digests(&restored, "postgres").await, end, "PostgreSQL {version}, one database");
    assert_sound_pages(&restored).await;
    for statement in said.lines().map(str::trim).filter(|line| line.ends_with(';')) {
        restored.sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    assert_eq!(restored.sql("SELECT 1 FROM pg_database WHERE datname = 'aside'").await.unwrap().len(), 0, "{said}");
    drop(aside);
    scene.server.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_bucket_at_the_moment_of_acknowledgement_has_the_commit() {
    let mut scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let archiver = scene.run();
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    // Given a commit, and the moment when the slot's position has passed it
    scene.server.sql("INSERT INTO marks (what) VALUES ('acknowledged')").await.unwrap();
    scene.settle().await;
    let copy = scene.bucket.snapshot();
    // When archiver and server die, and only the copy is left
    scene.leave_only(archiver, &copy).await;
    // Then it has the commit
    let restored = scene.restored("copy", &["--to-end"]).await;
    assert_eq!(marks(&restored).await, ["acknowledged"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_bucket_two_seconds_after_a_commit_has_it() {
    let mut scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let archiver = scene.run();
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    scene.server.sql("INSERT INTO marks (what) VALUES ('two seconds ago')").await.unwrap();
    // The promise is about time, so this one waits for time to pass.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let copy = scene.bucket.snapshot();
    scene.leave_only(archiver, &copy).await;
    let restored = scene.restored("copy", &["--to-end"]).await;
    assert_eq!(marks(&restored).await, ["two seconds ago"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_alone_leaves_no_hole_before_the_first_run() {
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    // Given a backup without an archiver, and commits behind it that nobody archives yet
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    scene.server.sql("INSERT INTO marks (what) VALUES ('between')").await.unwrap();
    scene.server.sql("SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    // When the first run comes
    let mut archiver = scene.run();
    scene.settle().await;
    assert!(archiver.terminate().await.success());
    // Then what was committed between is there
    let restored = scene.restored("between", &["--to-end"]).await;
    assert_eq!(marks(&restored).await, ["between"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_may_change_at_any_time_and_a_restore_needs_no_setting() {
    // Given a server whose archiver compresses in one way, then in another
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    let write = |what: &str| {
        let what = what.to_owned();
        let server = &scene.server;
        async move {
            server.sql(&format!("INSERT INTO marks (what) VALUES ('{what}')")).await.unwrap();
            server.sql("SELECT pg_switch_wal()").await.unwrap();
            server.sql(&format!("INSERT INTO marks (what) VALUES ('{what}, in a tail')")).await.unwrap();
        }
    };
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let mut archiver = scene.run_with(&["--compression", "zstd:-1"]);
    scene.settle().await;
    scene.seawall(&["backup", "--fast", "--compression", "zstd:9"]).run_ok().await;
    write("zstd").await;
    scene.settle().await;
    // (and once without warning, in the middle of a block)
    drop(archiver);
    for compression in ["lz4", "zstd", "none"] {
        archiver = scene.run_with(&["--compression", compression]);
        write(compression).await;
        scene.settle().await;
        assert!(archiver.terminate().await.success());
    }
    let digests = row_digests(&scene.server, "postgres").await;
    // Then there are objects of both codecs
    let names: Vec<String> = scene.bucket.snapshot().into_keys().collect();
    for expected in ["wal/", "open/"] {
        for codec in [".lz4", ".zst"] {
            let found = names.iter().any(|name| name.contains(expected) && name.ends_with(codec));
            assert!(found, "nothing below {expected} ends with {codec}: {names:?}");
        }
    }
    assert!(names.iter().any(|name| name.contains("/base.00001.") && name.ends_with(".tar.zst")), "{names:?}");
    // And a restore has every row
    let restored = scene.restored("all", &["--to-end"]).await;
    let expected = ["zstd", "lz4", "zstd", "none"].map(|one| [one.to_owned(), format!("{one}, in a tail")]);
    assert_eq!(marks(&restored).await, expected.concat());
    assert_eq!(row_digests(&restored, "postgres").await, digests);
}

/// A new private key in a file, and the public one.
async fn keygen(directory: &Path, name: &str) -> (PathBuf, String) {
    let file = directory.join(name);
    let made = Seawall::new(["keygen", "--out"]).arg(&file).run_ok().await;
    (file, made.stdout.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_encrypted_restores_with_its_keys_and_not_without() {
    // Given an archiver that knows two public keys and no private one
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    let places = scene.places.path();
    let (first, first_public) = keygen(places, "first").await;
    let (_, spare_public) = keygen(places, "spare").await;
    let (second, second_public) = keygen(places, "second").await;
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let write = async |what: &str| {
        scene.server.sql(&format!("INSERT INTO marks (what) VALUES ('{what}')")).await.unwrap();
        scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
        scene.server.sql(&format!("INSERT INTO marks (what) VALUES ('{what}, in a tail')")).await.unwrap();
        scene.settle().await;
    };
    let both = format!("{first_public} {spare_public}");
    let run = |recipients: &str| {
        let seawall = scene.seawall(&["run", "--listen", "off"]).env("SEAWALL_RECIPIENTS", recipients);
        seawall.start()
    };
    let archiver = run(&both);
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).env("SEAWALL_RECIPIENTS", &both).run_ok().await;
    write("hush, the first key").await;
    // When it is killed and goes on, then with another key, then it finds its place without being able to read
    drop(archiver);
    let mut archiver = run(&both);
    write("hush, after a restart").await;
    assert!(archiver.terminate().await.success());
    let mut archiver = run(&second_public);
    write("hush, the second key").await;
    assert!(archiver.terminate().await.success());
    let digests = row_digests(&scene.server, "postgres").await;
    // Then whatever has rows in it is an age file
    for (name, object) in scene.bucket.snapshot() {
        let is_document = name.ends_with(".json") || name.ends_with(".history");
        assert_eq!(object.bytes.starts_with(b"age-encryption.org/v1\n"), !is_document, "{name}");
        assert_eq!(name.ends_with(".age"), !is_document, "{name}");
        assert!(!object.bytes.windows(4).any(|bytes| bytes == b"hush"), "{name} has a row in clear");
    }
    // And the plain commands need no key
    scene.seawall(&["list"]).run_ok().await;
    // And nothing is restored without one, or with half of them
    let into = places.join("refused");
    let restore = |identity: Option<&Path>| {
        let owner = scene.server.user().name().to_owned();
        let seawall = scene.seawall(&["restore", "--to-end", "--into"]).arg(&into).arg("--owner").arg(owner);
        match identity {
            Some(file) => seawall.arg("--identity").arg(file),
            None => seawall,
        }
    };
    let refused = restore(None).run_err(3).await;
    assert!(refused.stderr.contains("--identity"), "{}", refused.stderr);
    for half in [&first, &second] {
        let refused = restore(Some(half)).run_err(3).await;
        assert!(refused.stderr.contains("encrypted for others"), "{}", refused.stderr);
    }
    assert!(!into.exists());
    // nor with both where a passphrase protects them, and it is another one
    let keys = places.join("keys");
    let bytes = [fs::read(&first).unwrap(), fs::read(&second).unwrap()].concat();
    fs::write(&keys, protect(&bytes, "open sesame".to_owned()).unwrap()).unwrap();
    scene.server.user().give_all(&keys).unwrap();
    let refused = restore(Some(&keys)).env(PASSPHRASE_VARIABLE, "close sesame").run_err(3).await;
    assert!(refused.stderr.contains("cannot be opened with this passphrase"), "{}", refused.stderr);
    assert!(!into.exists());
    // And with the passphrase every row is there, and neither key nor passphrase
    let restoring = scene.restoring("all", &["--to-end", "--wal", "now", "--identity", keys.to_str().unwrap()]);
    restoring.env(PASSPHRASE_VARIABLE, "open sesame").run_ok().await;
    let mut environment = scene.bucket.env();
    environment.push((PASSPHRASE_VARIABLE, "open sesame".to_owned()));
    let restored = scene.open_with(&places.join("all"), environment).await;
    let expected = ["hush, the first key", "hush, after a restart", "hush, the second key"];
    let expected = expected.map(|one| [one.to_owned(), format!("{one}, in a tail")]);
    assert_eq!(marks(&restored).await, expected.concat());
    assert_eq!(row_digests(&restored, "postgres").await, digests);
    let settings = fs::read_to_string(places.join("all/postgresql.auto.conf")).unwrap();
    let secrets = ["AGE-SECRET-KEY", "sesame"];
    assert!(settings.contains("--identity") && !secrets.iter().any(|it| settings.contains(it)), "{settings}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_that_cannot_read_goes_on_where_a_copy_has_no_metadata() {
    // Given an encrypted repository of plain files, which keep no metadata, and an archiver that was killed
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    let (key, public) = keygen(scene.places.path(), "key").await;
    let repository = format!("file://{}", scene.places.path().join("repository").display());
    fs::create_dir(scene.places.path().join("repository")).unwrap();
    let start = || {
        let seawall = scene.seawall(&["run", "--listen", "off"]).env("SEAWALL_RECIPIENTS", &public);
        seawall.env("SEAWALL_REPO", &repository).start()
    };
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let archiver = start();
    scene.settle().await;
    drop(archiver);
    // When it is started again
    scene.server.sql("INSERT INTO marks (what) VALUES ('later')").await.unwrap();
    let mut archiver = start();
    // Then it compares what comes again with what is stored, and acknowledges
    scene.settle().await;
    assert!(archiver.terminate().await.success());
    // And what it wrote can be read with the key, while without it nothing is called absent
    let fetch = |identity: &[&str]| {
        let seawall = scene.seawall(&["wal-fetch", "000000010000000000000001"]).env("SEAWALL_REPO", &repository);
        let seawall = seawall.arg(scene.places.path().join("fetched"));
        identity.iter().fold(seawall, |seawall, argument| seawall.arg(argument))
    };
    fetch(&["--identity", key.to_str().unwrap()]).run_ok().await;
    fetch(&[]).run_err(255).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_can_be_slowed_down_and_says_how_far_it_is() {
    // Given a server, and a rate at which its 20 MB take more than ten seconds
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    // When it is backed up where there is no terminal, then it says now and then how far it is, and works
    let output = scene.seawall(&["backup", "--fast", "--max-rate", "1800k"]).run_ok().await;
    let line = output.stderr.lines().find(|line| line.contains("copying"));
    let line = line.unwrap_or_else(|| panic!("no line in ten seconds, or less than ten seconds: {}", output.stderr));
    for field in ["done=", "of=", "per_second=", "remaining="] {
        assert!(line.contains(field), "{line}");
    }
    assert!(output.stdout.contains("is complete"), "{}", output.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_and_other_segment_sizes_restore() {
    for mib in [1, 64] {
        // Given a table above 100 MB and segments that are not of the usual size
        let options = ServerOptions { wal_segment_mib: Some(mib), data_checksums: true, ..ServerOptions::default() };
        let scene = Scene::new(DEBIAN, options).await;
        let mut archiver = scene.run();
        pgbench_tables(&scene.server, 9).await;
        let size: u64 = scene.server.value("SELECT pg_relation_size('pgbench_accounts')").await.parse().unwrap();
        assert!(size > 100 << 20, "the table has {size} bytes");
        // When it is backed up, changed, and restored
        scene.seawall(&["backup", "--fast"]).run_ok().await;
        pgbench_transactions(&scene.server, 500).await;
        let digests = row_digests(&scene.server, "postgres").await;
        scene.settle().await;
        assert!(archiver.terminate().await.success());
        // Then every row is there
        let restored = scene.restored("end", &["--to-end"]).await;
        assert_eq!(row_digests(&restored, "postgres").await, digests, "segments of {mib} MiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_stops_a_restore_and_names_itself() {
    let scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    let mut whole = scene.bucket.snapshot();
    let part = whole.keys().find(|name| name.contains("/base.00001.")).expect("a part is stored").clone();
    // The backup starts in the second segment, of which everything is needed. Tails that its block stands for may still be there.
    let needed = |name: &&String| name.contains("000000010000000000000002");
    if whole.keys().any(|name| name.ends_with("000000010000000000000002.lz4")) {
        whole.retain(|name, _| !name.contains("/open/00000001/000000010000000000000002"));
    }
    let wal: Vec<&String> = whole.keys().filter(needed).collect();
    assert_eq!(wal.len(), 1, "one object holds it: {wal:?}");
    let wal = wal[0].clone();
    let owner = scene.server.user().name().to_owned();
    for (name, damage) in [(&part, "flip"), (&part, "cut"), (&part, "gone"), (&wal, "flip"), (&wal, "cut")] {
        scene.bucket.restore_from(&whole);
        match damage {
            "flip" => scene.bucket.flip_bit(name, 350),
            "cut" => scene.bucket.truncate(name, 350),
            _ => scene.bucket.remove(name),
        };
        let into = scene.places.path().join(format!("{damage}-{}", name.replace('/', "-")));
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", &owner, "--to-end"];
        let finished = scene.seawall(&arguments).run_err(7).await;
        let name = name.trim_start_matches("backups/");
        assert!(finished.stderr.contains(name), "{damage} of {name} is not named in:\n{}", finished.stderr);
        assert!(!into.join("global/pg_control").exists(), "what was restored could be started");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_the_archive_goes_on_on_the_new_timeline() {
    // Given an archive whose server is gone, and what was restored from it, promoted
    let mut scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
    let mut archiver = scene.run();
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    scene.server.sql("INSERT INTO marks (what) VALUES ('before')").await.unwrap();
    scene.settle().await;
    archiver.kill();
    scene.server.kill().await.unwrap();
    let second = scene.restored("second", &["--to-end"]).await;
    assert_eq!(marks(&second).await, ["before"]);
    // When the restored server is archived into the same folder, and goes on
    let mut archiver = scene.seawall(&["run", "--listen", "off"]).env("SEAWALL_PG", second.conninfo()).start();
    second.sql("INSERT INTO marks (what) VALUES ('after')").await.unwrap();
    let value = async |query: &str| second.sql(query).await.unwrap()[0][0].clone().unwrap();
    let lsn = value("SELECT pg_current_wal_flush_lsn()").await;
    let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
    wait_for("the new timeline to be acknowledged", PATIENCE, async || {
        assert!(archiver.is_running(), "{}", archiver.stderr());
        (value(&query).await != "0").then_some(())
    })
    .await;
    assert!(archiver.terminate().await.success());
    // Then the next restore follows it, from the backup of the first timeline
    let third = scene.restored("third", &["--to-end"]).await;
    assert_eq!(marks(&third).await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_is_set_back_by_a_delta_that_fetches_what_differs() {
    // Given a restored server with a tablespace, that has lived on since and was stopped
    let mut scene = Scene::new(DEBIAN, ServerOptions::default()).await;
    let space = scene.server.side_directory("space");
    scene.server.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await.unwrap();
    scene.spaces.push(space);
    pgbench_tables(&scene.server, 1).await;
    scene.server.sql("CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    let archiver = scene.run();
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    pgbench_transactions(&scene.server, 100).await;
    let digests = row_digests(&scene.server, "postgres").await;
    scene.settle().await;
    drop(archiver);
    let mut lived = scene.restored("data", &["--to-end"]).await;
    lived.sql("CREATE TABLE more TABLESPACE apart AS SELECT generate_series(1, 1000) AS n; TRUNCATE far; DROP TABLE pgbench_history").await.unwrap();
    lived.sql("CREATE DATABASE another").await.unwrap();
    let into = scene.places.path().join("data");
    // Then it is not restored over while it runs, or unasked
    let refused = scene.restoring("data", &["--delta"]).run_err(6).await;
    assert!(refused.stderr.contains("postmaster.pid"), "{}", refused.stderr);
    lived.stop(StopMode::Fast).await.unwrap();
    drop(lived);
    let refused = scene.restoring("data", &[]).run_err(6).await;
    assert!(refused.stderr.contains("--delta"), "{}", refused.stderr);
    // and a dry run says what would go, and leaves it
    let said = scene.restoring("data", &["--delta", "--dry-run"]).run_ok().await.stdout;
    assert!(said.contains("replaces     the stopped cluster") && said.contains("removes "), "{said}");
    assert!(into.join("global/pg_control").exists());
    // When it is, then the rows are as they were
    let said = scene.restoring("data", &["--delta", "--to-end"]).run_ok().await.stdout;
    assert!(said.contains("that were there and equal"), "{said}");
    let again = scene.open(&into).await;
    assert_eq!(row_digests(&again, "postgres").await, digests);
    assert_eq!(again.sql("SELECT 1 FROM pg_database WHERE datname = 'another'").await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_wal_fetched_at_once_recovery_needs_no_store() {
    for version in [13, 18] {
        // Given an archive with two timelines, from the first of which a backup is
        let mut scene = Scene::new(version, ServerOptions::default()).await;
        scene.server.sql("CREATE TABLE marks (id serial, what text)").await.unwrap();
        let archiver = scene.run();
        scene.settle().await;
        scene.seawall(&["backup", "--fast"]).run_ok().await;
        scene.server.sql("INSERT INTO marks (what) VALUES ('before'); SELECT pg_switch_wal()").await.unwrap();
        scene.settle().await;
        drop(archiver);
        scene.server.kill().await.unwrap();
        let second = scene.restored("second", &["--to-end", "--wal", "prefetch"]).await;
        let mut archiver = scene.seawall(&["run", "--listen", "off"]).env("SEAWALL_PG", second.conninfo()).start();
        second.sql("INSERT INTO marks (what) VALUES ('after')").await.unwrap();
        let value = async |query: &str| second.sql(query).await.unwrap()[0][0].clone().unwrap();
        let lsn = value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        wait_for("the new timeline", PATIENCE, async || (value(&query).await != "0").then_some(())).await;
        assert!(archiver.terminate().await.success());
        // When it is restored with its WAL, and the store is gone
        let into = scene.restore("now", &["--to-end", "--wal", "now"]).await;
        scene.bucket.always(s3::Op::Get.at(""), s3::Fault::ACCESS_DENIED);
        scene.bucket.always(s3::Op::Head.at(""), s3::Fault::ACCESS_DENIED);
        scene.bucket.always(s3::Op::List.at(""), s3::Fault::ACCESS_DENIED);
        // Then recovery ends at the end all the same, on a timeline that nobody has
        let restored = scene.open(&into).await;
        assert_eq!(marks(&restored).await, ["before", "after"], "PostgreSQL {version}");
        let name = restored.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").await.unwrap()[0][0].clone().unwrap();
        assert!(name.starts_with("00000003"), "{name}");
    }
}
