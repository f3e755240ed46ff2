//! The index of records, kept by the built program beside real servers: a restore is planned from it, and just as without it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[macro_use]
mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use s3::{Fault, Op, S3Server};
use seawall::scratch::ServerOptions;
use serde_json::Value;
use support::metrics::Endpoint;
use support::postgres::{DEBIAN, Postgres};
use support::program::{Running, Seawall, path_for_server};
use support::waiting::{PATIENCE, wait_for};

/// With segments of 1 MiB, WAL of so many bytes is one slot of the first level.
const SLOT_BYTES: u64 = 16 << 20;

fn repo() -> String {
    format!("s3://{}/backups", S3Server::BUCKET)
}

struct Scene {
    server: Postgres,
    bucket: S3Server,
}

impl Scene {
    async fn new(version: u32) -> Scene {
        let bucket = S3Server::start();
        // An archive_command that is empty waits.
        let settings = [("max_prepared_transactions", "5"), ("archive_mode", "on")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let repo = ("SEAWALL_REPO".to_owned(), repo());
        let environment = bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value));
        let environment = environment.chain([repo]).collect();
        let options = ServerOptions { wal_segment_mib: Some(1), settings, environment, ..ServerOptions::default() };
        let server = Postgres::create(version, options).await;
        server.sql("CREATE TABLE filler (id int, text text)").await.unwrap();
        Scene { server, bucket }
    }

    /// From now on the server runs `wal-push` for each segment, and nothing else stores WAL.
    async fn archive_by_command(&self) {
        let program = path_for_server(&self.server.side_directory("program"));
        let command = format!("ALTER SYSTEM SET archive_command = '{} wal-push %p'", program.display());
        self.server.sql(&command).await.unwrap();
        self.server.sql("SELECT pg_reload_conf()").await.unwrap();
    }

    /// Waits until every segment that is full is pushed, at the first attempt.
    async fn wait_until_pushed(&self) {
        let last = self.server.value("SELECT pg_walfile_name(pg_switch_wal())").await;
        let query = format!("SELECT coalesce(last_archived_wal >= '{last}', false) FROM pg_stat_archiver");
        wait_for("wal-push", PATIENCE * 3, async || (self.server.value(&query).await == "t").then_some(())).await;
        assert_eq!(self.server.value("SELECT failed_count FROM pg_stat_archiver").await, "0");
    }

    fn seawall(&self, arguments: &[&str]) -> Seawall {
        let seawall = Seawall::new(arguments).env("SEAWALL_PG", self.server.conninfo()).env("SEAWALL_REPO", repo());
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    fn run(&self) -> Running {
        self.seawall(&["run", "--listen", "off"]).start()
    }

    async fn lsn(&self) -> u64 {
        self.server.value("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").await.parse().unwrap()
    }

    /// Waits until everything that the server has now is acknowledged.
    async fn settle(&self) {
        let lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        wait_for("the archiver", PATIENCE, async || (self.server.value(&query).await != "0").then_some(())).await;
    }

    /// Something of everything that an index notes, and then WAL up to behind a slot's end.
    async fn work(&self, name: &str) {
        let statements = [
            // It logs who else is at work, which a server does every fifteen seconds.
            "CHECKPOINT".to_owned(),
            format!("CREATE TABLE {name} AS SELECT generate_series(1, 5000) AS id"),
            format!("DELETE FROM {name} WHERE id > 100"),
            format!("VACUUM {name}"),
            format!("SELECT pg_create_restore_point('after {name}')"),
            format!("BEGIN; INSERT INTO {name} SELECT 1; PREPARE TRANSACTION '{name}'"),
            format!("COMMIT PREPARED '{name}'"),
            format!("BEGIN; INSERT INTO {name} SELECT 2; SAVEPOINT s; INSERT INTO {name} SELECT 3; ROLLBACK"),
            format!("CREATE DATABASE d{name}"),
            format!("DROP DATABASE d{name}"),
        ];
        for statement in statements {
            self.server.sql(&statement).await.unwrap();
        }
        let end = (self.lsn().await / SLOT_BYTES + 1) * SLOT_BYTES;
        while self.lsn().await < end + (1 << 20) {
            self.server
                .sql("INSERT INTO filler SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 3000) n")
                .await
                .unwrap();
        }
        self.server.sql("CHECKPOINT").await.unwrap();
        self.server.sql(&format!("DROP TABLE {name}")).await.unwrap();
    }

    /// The indexes in the bucket, as ranges of bytes.
    fn indexes(&self) -> Vec<(u64, u64)> {
        let objects = self.bucket.snapshot();
        let names = objects.keys().filter_map(|name| name.split_once("/records/"));
        let ranges = names.map(|(_, name)| {
            let (start, end) = name.strip_suffix(".lz4").unwrap().split_once('-').unwrap();
            (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
        });
        ranges.collect()
    }

    /// Waits for the index of everything up to the last slot's end.
    async fn wait_for_index(&self) -> u64 {
        let end = self.lsn().await / SLOT_BYTES * SLOT_BYTES;
        let what = format!("an index up to {end:X}");
        wait_for(&what, PATIENCE, async || self.indexes().iter().any(|range| range.1 == end).then_some(())).await;
        end
    }

    /// What a restore is planned to do, and how many objects with WAL that took.
    async fn plan(&self, target: &[&str]) -> (Value, usize) {
        let arguments = [&["restore", "--into", "/nonexistent/place", "--dry-run", "--json"], target].concat();
        let (plan, fetched) = self.asked(&arguments).await;
        (serde_json::from_str(&plan).unwrap(), fetched)
    }

    /// What a command prints, and how many objects with WAL it read.
    async fn asked(&self, arguments: &[&str]) -> (String, usize) {
        self.bucket.clear_log();
        let said = self.seawall(arguments).run_ok().await.stdout;
        let log = self.bucket.log();
        (said, log.iter().filter(|(op, name)| *op == Op::Get && name.contains("/wal/")).count())
    }
}

async fn restores_are_planned_from_the_index(version: u32) {
    // Given a server whose WAL is indexed while it is archived
    let scene = Scene::new(version).await;
    let archiver = scene.run();
    scene.settle().await;
    scene.server.sql("CREATE TABLE known AS SELECT 1 AS id").await.unwrap();
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    scene.work("one").await;
    scene.server.sql("DROP TABLE known").await.unwrap();
    let between = scene
        .server
        .value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await;
    let xid = scene.server.value("SELECT pg_current_xact_id()").await;
    scene.work("two").await;
    scene.settle().await;
    scene.wait_for_index().await;
    drop(archiver);
    // When the newest moment is asked for, then a restore reaches it, and no later one
    let listed: Value = serde_json::from_str(&scene.seawall(&["list", "--json"]).run_ok().await.stdout).unwrap();
    let newest = listed["backups"][0]["restorable_to_time"].as_str().unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(scene.plan(&["--to", newest]).await.0["target"]["time"], newest);
    let status: Value = serde_json::from_str(&scene.seawall(&["status", "--json"]).run_ok().await.stdout).unwrap();
    assert_eq!(status["restorable_to_time"], newest, "status says another moment: {status}");
    let later: jiff::Timestamp = newest.parse().unwrap();
    let later = (later + jiff::SignedDuration::from_micros(1)).to_string();
    let too_late = ["restore", "--into", "/nonexistent/place", "--dry-run", "--to", &later];
    let refused = scene.seawall(&too_late).run_err(6).await.stderr;
    assert!(refused.contains("newest moment"), "{refused}");
    // When restores to all kinds of targets are planned
    let targets: [&[&str]; 6] = [
        &["--to-end"],
        &["--to", &between],
        &["--to-xid", &xid, "--to-exclusive"],
        &["--to-name", "after two"],
        &["--to-lsn", "0/1800000"],
        &["--to-name", "after one"],
    ];
    let mut with_index = Vec::new();
    for target in targets {
        with_index.push(scene.plan(target).await);
    }
    // and what was done is asked for
    let questions: [&[&str]; 7] = [
        &["history", "--json", "--from", "0/0", "--drops"],
        &["history", "--json", "--from", &between],
        &["history", "--json", "--from", &between, "--drops"],
        &["history", "--json", "--from", &between, "--min-bytes", "1k"],
        &["history", "--json", "--from", &between, "--database", "postgres"],
        &["history", "--json", "--from", "0/0", "--to", &between, "--drops"],
        &["restore", "--into", "/nowhere", "--dry-run", "--json", "--before-drop", "public.known", "--to", &between],
    ];
    let mut told_with_index = Vec::new();
    for question in questions {
        told_with_index.push(scene.asked(question).await);
    }
    // Then the plans and answers are those that the WAL alone leads to, and less of it was read
    let names: Vec<String> = scene.bucket.snapshot().into_keys().filter(|name| name.contains("/records/")).collect();
    names.iter().for_each(|name| scene.bucket.remove(name));
    for (target, (plan, fetched)) in targets.iter().zip(with_index) {
        let (expected, all) = scene.plan(target).await;
        assert_eq!(plan, expected, "{target:?} on PostgreSQL {version}");
        if target[0] == "--to-end" {
            assert!(fetched * 2 < all, "{fetched} of {all} WAL objects were read for {target:?}");
        }
    }
    for (question, (told, fetched)) in questions.iter().zip(told_with_index) {
        let (expected, all) = scene.asked(question).await;
        assert!(!told.is_empty() && told == expected, "{question:?} on PostgreSQL {version}: {told}\n{expected}");
        // Where transactions have to be whole, as much is read as they are long.
        let is_filtered = question.contains(&"--min-bytes") || question.contains(&"--database");
        assert!(fetched < all || is_filtered, "{fetched} of {all} WAL objects were read for {question:?}");
    }
    // And what is indexed later is the same again
    scene.seawall(&["index"]).run_ok().await;
    let again: Vec<String> = scene.bucket.snapshot().into_keys().filter(|name| name.contains("/records/")).collect();
    assert_eq!(again, names, "on PostgreSQL {version}");
}

for_every_version!(restores_are_planned_from_the_index:
    planned_from_the_index_on_13 = 13, planned_from_the_index_on_14 = 14, planned_from_the_index_on_15 = 15,
    planned_from_the_index_on_16 = 16, planned_from_the_index_on_17 = 17, planned_from_the_index_on_18 = 18);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_that_is_killed_leaves_no_hole_in_the_index() {
    // Given an archiver that is killed in the middle of a slot
    let scene = Scene::new(DEBIAN).await;
    let archiver = scene.run();
    scene.settle().await;
    scene.work("one").await;
    scene.settle().await;
    let first = scene.wait_for_index().await;
    scene
        .server
        .sql("INSERT INTO filler SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 20000) n")
        .await
        .unwrap();
    scene.settle().await;
    drop(archiver);
    // When another one goes on
    let _archiver = scene.run();
    scene.work("two").await;
    scene.settle().await;
    let last = scene.wait_for_index().await;
    // Then what it stores begins where the other one's ended
    let mut indexes = scene.indexes();
    indexes.sort_unstable();
    assert!(last > first && indexes.iter().any(|range| range.1 == first), "{indexes:X?}");
    for pair in indexes.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{indexes:X?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_before_anybody_could_look_for_indexes_has_one() {
    // Given an archiver that cannot find out which indexes there are
    let scene = Scene::new(DEBIAN).await;
    scene.bucket.always(Op::List.at("backups/main/index/00000001/records/"), Fault::ACCESS_DENIED);
    let _archiver = scene.run();
    scene.settle().await;
    // When more than a slot of WAL is stored until it can
    scene.work("one").await;
    scene.settle().await;
    assert!(scene.indexes().is_empty());
    scene.bucket.clear();
    // Then all of it has an index, from where the stream began
    scene.wait_for_index().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_no_index_keeps_nothing_from_being_archived() {
    // Given a store in which nothing may be created below index/
    let scene = Scene::new(DEBIAN).await;
    scene.bucket.always(Op::Put.at("backups/main/index/"), Fault::ACCESS_DENIED);
    // When more than a slot of WAL is written
    let mut archiver = scene.seawall(&["run", "--listen", "127.0.0.1:0"]).start();
    let metrics = Endpoint::of(&mut archiver).await;
    scene.settle().await;
    scene.work("one").await;
    // Then it is archived, and no index is there, which is counted and told
    scene.settle().await;
    assert!(scene.indexes().is_empty());
    wait_for("the failure to be counted", PATIENCE, async || {
        (metrics.scrape().await?.labelled("seawall_index_failures_total", "reason=\"store\"")? > 0.0).then_some(())
    })
    .await;
    archiver.wait_for_text("the index of records was not stored; archiving goes on without it").await;
    assert!(archiver.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_command_keeps_the_index_and_never_fails_for_it() {
    // Given a cluster whose WAL was streamed up to somewhere within a slot, and is pushed since
    let scene = Scene::new(DEBIAN).await;
    let archiver = scene.run();
    scene.settle().await;
    drop(archiver);
    scene.archive_by_command().await;
    // When slots become full
    scene.work("one").await;
    scene.wait_until_pushed().await;
    // Then they have an index
    let first = scene.wait_for_index().await;
    // When nothing may be created below index/ while more become full
    scene.bucket.always(Op::Put.at("backups/main/index/"), Fault::ACCESS_DENIED);
    scene.work("two").await;
    // Then every file is pushed all the same
    scene.wait_until_pushed().await;
    assert!(scene.indexes().iter().all(|range| range.1 <= first), "{:X?}", scene.indexes());
    // And the next slot's index brings that of the slot before along
    scene.bucket.clear();
    scene.work("three").await;
    scene.wait_until_pushed().await;
    scene.wait_for_index().await;
    let mut indexes = scene.indexes();
    indexes.sort_unstable();
    assert!(indexes.windows(2).all(|pair| pair[0].1 == pair[1].0), "{indexes:X?}");
    // And all of it is what reading the WAL afterwards says, byte for byte
    let stored = || {
        let objects = scene.bucket.snapshot();
        objects.into_iter().filter(|(name, _)| name.contains("/records/")).collect::<Vec<_>>()
    };
    let pushed = stored();
    pushed.iter().for_each(|(name, _)| scene.bucket.remove(name));
    scene.seawall(&["index"]).run_ok().await;
    let names = |objects: &[(String, _)]| objects.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&pushed), names(&stored()));
    assert!(pushed == stored(), "an index of wal-push differs from one that was made afterwards");
}
