//! `seawall drill` as it is typed, beside a source that goes on: what came back is checked, what is wrong is named, and
//! nothing outside of its directory is touched.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use nix::sys::signal::Signal;
use scene::Scene;
use seawall::error::Kind;
use seawall::scratch::{Directory, Server, ServerOptions, StopMode, Unprivileged};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::postgres::{DEBIAN, programs, scratch_directory, tool};
use support::program::{Seawall, path_for_server};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

/// A drill of what a scene has archived, in a place of its own.
struct Drill<'a> {
    scene: &'a Scene,
    scratch: TempDir,
}

impl Drill<'_> {
    fn of(scene: &Scene) -> Drill<'_> {
        Drill { scene, scratch: scratch_directory() }
    }

    /// The command, with this configuration.
    fn command(&self, configuration: &str, arguments: &[&str]) -> Seawall {
        let file = self.scene.places.path().join("seawall.toml");
        std::fs::write(&file, configuration).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let scratch = self.scratch.path().to_str().unwrap();
        let all = [&["drill", "--scratch", scratch, "--config", file.to_str().unwrap()], arguments].concat();
        let seawall = self.scene.seawall(&all).env("SEAWALL_PG_BIN", programs(self.scene.version).bin);
        seawall.env("SEAWALL_PASSWORD", "s3cret").env("SEAWALL_NOTIFY_SLACK", "http://127.0.0.1:1/s3cret")
    }

    /// Its report, of a drill that passes.
    async fn passes(&self, configuration: &str, arguments: &[&str]) -> Value {
        let all = [&["--json"], arguments].concat();
        let finished = self.command(configuration, &all).run_ok().await;
        self.assert_nothing_is_left();
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(report["passed"], true, "{report:#}");
        report
    }

    /// Its report, of a drill that fails.
    async fn fails(&self, configuration: &str, arguments: &[&str]) -> Value {
        let all = [&["--json"], arguments].concat();
        let finished = self.command(configuration, &all).run_err(Kind::Failed.exit_code().into()).await;
        self.assert_nothing_is_left();
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(report["passed"], false, "{report:#}");
        report
    }

    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.scratch.path()).unwrap().flatten().map(|it| it.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        let servers = servers_below(self.scratch.path());
        assert!(servers.is_empty(), "servers are left behind: {servers:?}");
    }
}

/// The command lines of the servers whose data directory is below `place`.
fn servers_below(place: &Path) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        // Processes come and go while we look.
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.contains("/postgres -D ") && line.contains(place.to_str()?)).then_some(line)
    });
    lines.collect()
}

/// What became of a check, and what is said of it.
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no check {name} in {report:#}"));
    (found["outcome"].as_str().unwrap(), found["message"].as_str().unwrap())
}

fn failures(report: &Value) -> String {
    report["failures"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Every file below a directory with its contents.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => _ = found.insert(path.clone(), std::fs::read(&path).unwrap()),
        }
    }
    found
}

/// The file of a relation.
async fn file_of(server: &Server, relation: &str) -> PathBuf {
    let rows = server.sql(&format!("SELECT pg_relation_filepath('{relation}')")).await.unwrap();
    server.data_directory().join(rows[0][0].as_deref().unwrap())
}

async fn passes_with_tablespaces_from_before_and_after_the_backup(version: u32) {
    // Given a cluster with a tablespace, archived, and one that was created behind the base backup; the source goes on
    let options = ServerOptions { data_checksums: true, ..Scene::options(&[("autovacuum", "off")]) };
    let scene = Scene::with(version, options).await;
    let (early, late) = (scene.server.side_directory("early"), scene.server.side_directory("late"));
    scene.server.sql(&format!("CREATE TABLESPACE early LOCATION '{}'", early.display())).await.unwrap();
    let table = |name: &str| {
        format!(
            "CREATE TABLE in_{name} (id int PRIMARY KEY USING INDEX TABLESPACE {name}) TABLESPACE {name}; \
             INSERT INTO in_{name} SELECT generate_series(1, 5000)"
        )
    };
    scene.server.sql(&table("early")).await.unwrap();
    let _archiver = scene.archived().await;
    scene.server.sql(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display())).await.unwrap();
    scene.server.sql(&table("late")).await.unwrap();
    scene.server.sql("CHECKPOINT").await.unwrap();
    scene.settle().await;
    let before = (contents(&early), contents(&late));
    assert!(!before.0.is_empty() && !before.1.is_empty());
    // When the newest byte is drilled, with a question about the rows in both
    let drill = Drill::of(&scene);
    let configuration = "[drill]\nrto = \"1h\"\nrpo = \"1h\"\n\
        [[drill.check]]\nname = \"rows\"\n\
        sql = \"SELECT (SELECT count(*) FROM in_early) = 5000 AND (SELECT count(*) FROM in_late) = 5000\"\n\
        [[drill.check]]\nname = \"no secrets\"\n\
        sql = \"SELECT position('PATH='::bytea IN it) > 0 AND position('s3cret'::bytea IN it) = 0 FROM pg_read_binary_file( \
        '/proc/' || split_part(pg_read_file('postmaster.pid'), chr(10), 1) || '/environ', 0, 1000000) it\"\n";
    let report = drill.passes(configuration, &[]).await;
    // Then all that can be looked at was, and it says what it took
    assert_eq!(check(&report, "recovery").0, "passed");
    assert_eq!(check(&report, "rows").0, "passed");
    assert_eq!(check(&report, "no secrets").0, "passed", "its server has what is not its own: {report:#}");
    assert_eq!(check(&report, "amcheck").0, "passed", "{report:#}");
    // of the servers here, Debian's alone has its tools
    let checksums = check(&report, "checksums");
    assert_eq!(checksums.0, if version == DEBIAN { "passed" } else { "skipped" }, "{}", checksums.1);
    assert!(report["recovery_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["restored_bytes"].as_u64().unwrap() > 1 << 20, "{report:#}");
    assert!(report["replayed_bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!((&report["rto"]["met"], &report["rpo"]["met"]), (&Value::Bool(true), &Value::Bool(true)));
    // and the source's tablespaces are what they were
    assert!(before == (contents(&early), contents(&late)), "the source's tablespaces have changed");
    // and the source takes writes
    scene.server.sql("INSERT INTO in_late VALUES (0)").await.unwrap();
}

for_every_version!(passes_with_tablespaces_from_before_and_after_the_backup:
    passes_on_13 = 13, passes_on_14 = 14, passes_on_15 = 15, passes_on_16 = 16, passes_on_17 = 17, passes_on_18 = 18);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_is_named_and_the_others_go_on() {
    let scene = Scene::new(15, &[]).await;
    // A database that nobody can enter, which is no reason to fail: DROP DATABASE does this first.
    scene.server.sql("CREATE DATABASE half_dropped").await.unwrap();
    scene.server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half_dropped'").await.unwrap();
    let _archiver = scene.archived().await;
    scene.settle().await;
    let configuration = "[drill]\nrto = \"1ms\"\n\
        [[drill.check]]\nname = \"wrong\"\nsql = \"SELECT count(*) > 1000 FROM told\"\n\
        [[drill.check]]\nname = \"broken\"\nsql = \"SELECT nonsense\"\n\
        [[drill.check]]\nname = \"elsewhere\"\ndatabase = \"nowhere\"\nsql = \"SELECT true\"\n\
        [[drill.check]]\nname = \"endless\"\nsql = \"SELECT generate_series(1, 2000000000) > 0\"\n\
        [[drill.check]]\nname = \"silent\"\nsql = \"SELECT true WHERE false\"\n\
        [[drill.check]]\nname = \"right\"\ndatabase = \"template1\"\nsql = \"SELECT true\"\n";
    let report = Drill::of(&scene).fails(configuration, &[]).await;
    let said = failures(&report);
    for expected in [
        "wrong: gave f, and not true",
        "column \"nonsense\" does not exist",
        "database \"nowhere\" does not exist",
        "endless: gave several rows",
        "silent: gave no row",
        "RTO: recovery took ",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    assert_eq!(check(&report, "checksums"), ("skipped", "the cluster has no data checksums"));
    assert_eq!((check(&report, "right").0, check(&report, "amcheck").0), ("passed", "passed"));
    assert!(check(&report, "amcheck").1.ends_with("; not in half_dropped, which an interrupted DROP DATABASE left"));
    assert_eq!(report["rto"]["met"], false);
    assert_eq!(report["failures"].as_array().unwrap().len(), 6, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_and_named() {
    // Given an index that is not in the order of its keys any more, and a page that changed on the disk, both in the backup
    let options = ServerOptions { data_checksums: true, ..Scene::options(&[("autovacuum", "off")]) };
    let mut scene = Scene::with(15, options).await;
    let sql = "CREATE TABLE words (word text); INSERT INTO words SELECT md5(i::text) FROM generate_series(1, 20000) i; \
               CREATE INDEX words_index ON words (word); CREATE TABLE pages AS SELECT generate_series(1, 20000) AS id; \
               CREATE INDEX pages_index ON pages (id)";
    scene.server.sql(sql).await.unwrap();
    // What was sorted is sorted the other way round from now on, as with another libc some of it would be.
    let order = "UPDATE pg_index SET indoption = '3' WHERE indexrelid = 'words_index'::regclass";
    scene.server.sql(order).await.unwrap();
    let pages = file_of(&scene.server, "pages").await;
    scene.server.stop(StopMode::Fast).await.unwrap();
    let mut bytes = std::fs::read(&pages).unwrap();
    bytes[3 * 8192 + 5000] ^= 0x10;
    std::fs::write(&pages, bytes).unwrap();
    scene.server.start().await.unwrap();
    let _archiver = scene.archiver().await;
    scene.settle().await;
    scene.seawall(&["backup", "--fast"]).run_err(Kind::Damaged.exit_code().into()).await;
    scene.settle().await;
    // When it is drilled from that backup, which no restore takes unless it is named
    let listed = scene.seawall(&["list", "--json"]).run_ok().await.stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let id = listed["backups"][0]["backup"].as_str().unwrap();
    let report = Drill::of(&scene).fails("", &["--backup", id]).await;
    // Then all of it is named
    let said = failures(&report);
    assert!(said.contains("amcheck: database postgres, index public.words_index: "), "{said}");
    assert!(said.contains("amcheck: database postgres, table public.pages: "), "{said}");
    assert!(said.contains("checksums: ") && said.contains("block 3"), "{said}");
    assert_eq!(check(&report, "recovery").0, "passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_the_superusers_name_nor_settings_nor_a_missing_database_are_in_the_way() {
    // Given a superuser of another name, no database `postgres`, and settings that fit another machine, or reach out
    let scene = Scene::new(15, &[]).await;
    for setting in [
        "shared_buffers = '900GB'",
        "shared_preload_libraries = 'not_installed_here'",
        "listen_addresses = '*'",
        "archive_mode = on",
        "archive_command = 'false'",
        "default_transaction_read_only = on",
        "recovery_end_command = 'exit 1'",
    ] {
        scene.server.sql(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    scene.server.sql("CREATE ROLE helper SUPERUSER LOGIN").await.unwrap();
    scene.server.sql("CREATE DATABASE shop").await.unwrap();
    let info =
        format!("{} ", scene.server.conninfo()).replace("user=postgres dbname=postgres", "user=helper dbname=shop");
    let (helper, connection) = tokio_postgres::connect(&info, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    // The archiver and the backup come as another.
    let archiver = scene.seawall(&["run", "--listen", "off"]).env("SEAWALL_PG", &info).start();
    let settled = async || {
        let rows = helper
            .simple_query("SELECT 1 FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn()")
            .await;
        rows.unwrap().iter().any(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(_))).then_some(())
    };
    wait_for("the archiver to have stored everything", PATIENCE, settled).await;
    helper.batch_execute("ALTER ROLE postgres RENAME TO \"the \"\"chief\"").await.unwrap();
    helper.batch_execute("DROP DATABASE postgres WITH (FORCE)").await.unwrap();
    helper.batch_execute("CHECKPOINT").await.unwrap();
    scene.seawall(&["backup", "--fast"]).env("SEAWALL_PG", &info).run_ok().await;
    wait_for("the archiver to have stored everything", PATIENCE, settled).await;
    // When it is drilled
    let drill = Drill::of(&scene);
    let configuration = "[[drill.check]]\nname = \"who\"\ndatabase = \"shop\"\nsql = \"SELECT session_user = 'the \\\"chief'\"\n\
        [[drill.check]]\nname = \"private\"\ndatabase = \"shop\"\nsql = \"SELECT string_agg(setting, ',' ORDER BY name) = 'off,,0,128MB' \
        FROM (SELECT name, current_setting(name) AS setting FROM pg_settings WHERE name IN \
        ('archive_mode', 'listen_addresses', 'max_logical_replication_workers', 'shared_buffers')) AS it\"\n";
    let report = drill.passes(configuration, &[]).await;
    // Then it is let in as whoever that is, and keeps to itself
    for name in ["who", "private", "amcheck"] {
        assert_eq!(check(&report, name).0, "passed", "{name}: {report:#}");
    }
    drop((archiver, helper));
    connection.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_told_to_stop_leaves_nothing() {
    let scene = Scene::new(15, &[]).await;
    let _archiver = scene.archived().await;
    scene.settle().await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // Given a drill that asks a question which takes long
        let drill = Drill::of(&scene);
        let mut running =
            drill.command("[[drill.check]]\nname = \"long\"\nsql = \"SELECT pg_sleep(3600)\"\n", &[]).start();
        wait_for("its server to be asked", PATIENCE, async || {
            assert!(running.is_running(), "it ended: {}{}", running.stdout(), running.stderr());
            (!servers_below(drill.scratch.path()).is_empty()).then_some(())
        })
        .await;
        // When it is told to stop
        running.signal(signal);
        // Then it says so, and nothing is left
        assert_eq!(running.wait(PATIENCE).await.code(), Some(Kind::Local.exit_code().into()));
        assert!(running.stderr().contains("interrupted"), "{}", running.stderr());
        drill.assert_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_drill_leaves_goes_with_the_next_and_what_is_in_use_or_kept_stays() {
    let scene = Scene::new(15, &[]).await;
    let _archiver = scene.archived().await;
    scene.settle().await;
    let drill = Drill::of(&scene);
    let long = "[[drill.check]]\nname = \"long\"\nsql = \"SELECT pg_sleep(3600)\"\n";
    // A process that a server has just begun has its command line for a moment.
    let servers = || servers_below(drill.scratch.path()).into_iter().collect::<BTreeSet<String>>();
    let asked = async |count: usize| {
        wait_for("the server of a drill to be there", PATIENCE, async || (servers().len() == count).then_some(()))
            .await;
    };
    // Given a server that was kept, a drill that is at work, and one that was killed at the same, whose server goes on
    let kept = drill.command("", &["--keep"]).run_ok().await.stdout;
    asked(1).await;
    let mut busy = drill.command(long, &[]).start();
    asked(2).await;
    let mut killed = drill.command(long, &[]).start();
    asked(3).await;
    killed.kill();
    let before = servers();
    assert_eq!(before.len(), 3, "it is not the kernel that ends it: {before:?}");
    // When the next one drills
    drill.command("", &[]).run_ok().await;
    // Then the server that nobody waits for is gone, with its directories, and neither of the others is
    let after = servers();
    let gone: Vec<&String> = before.difference(&after).collect();
    assert_eq!((after.len(), gone.len()), (2, 1), "{before:#?}\n{after:#?}");
    for directory in ["unix_socket_directories=", "-D "] {
        let (_, rest) = gone[0].split_once(directory).unwrap();
        let path = rest.split(' ').next().unwrap();
        assert!(!Path::new(path).exists(), "{path} is there: {}", gone[0]);
    }
    assert_eq!(std::fs::read_dir(drill.scratch.path()).unwrap().count(), 2);
    assert!(busy.is_running(), "{}", busy.stderr());
    // and both go as they would have
    busy.signal(Signal::SIGTERM);
    assert_eq!(busy.wait(PATIENCE).await.code(), Some(Kind::Local.exit_code().into()));
    for label in ["to stop it ", "to remove it all "] {
        let line = kept.lines().find_map(|line| line.trim_start().strip_prefix(label)).unwrap();
        assert!(Command::new("sh").args(["-ec", line]).status().unwrap().success(), "`{line}` failed");
        wait_for("the kept server to stop", PATIENCE, async || {
            servers_below(drill.scratch.path()).is_empty().then_some(())
        })
        .await;
    }
    drill.assert_nothing_is_left();
}

/// A directory in `scratch`, and the server in it, that the process of an ordinary user has left.
async fn left_by_an_ordinary_user(scratch: &Path) -> Server {
    let mut directory = Directory::create(scratch, "seawall-drill").unwrap();
    let server = Server::create(&programs(DEBIAN), directory.path(), ServerOptions::default()).await.unwrap();
    for place in [directory.path(), server.socket_directory()] {
        Unprivileged::find().unwrap().give_all(place).unwrap();
    }
    directory.keep();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_takes_what_it_left_and_can_be_told_to_stop_meanwhile() {
    // Given what two drills left that were killed: the server of one has ended too, that of the other takes no signal
    let (scratch, places) = (scratch_directory(), scratch_directory());
    let mut ended = left_by_an_ordinary_user(scratch.path()).await;
    ended.kill().await.unwrap();
    let stopped = left_by_an_ordinary_user(scratch.path()).await;
    stopped.signal(Signal::SIGSTOP);
    let program = path_for_server(places.path());
    let repository = format!("file://{}", places.path().join("none").display());
    let drill = || {
        let arguments = ["drill", "--repo", &repository, "--scratch", scratch.path().to_str().unwrap()];
        Seawall::new(arguments).program(&program).by_server_user().current_dir(places.path())
    };
    // When the next one has told that server to stop, and waits for it,
    let mut running = drill().start();
    wait_for("the server to be told to stop", PATIENCE, async || {
        assert!(running.is_running(), "{}", running.stderr());
        let status = std::fs::read_to_string(format!("/proc/{}/status", stopped.pid().unwrap())).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
        let signals = u64::from_str_radix(pending.trim(), 16).unwrap();
        (signals & (1 << (Signal::SIGQUIT as u32 - 1)) != 0).then_some(())
    })
    .await;
    // then it is told to stop itself, does at once, and leaves what is in use
    assert_eq!(running.terminate().await.code(), Some(Kind::Local.exit_code().into()), "{}", running.stderr());
    let said = running.stderr();
    assert!(said.contains("interrupted") && !said.contains("cannot be removed"), "{said}");
    assert!(stopped.data_directory().join("PG_VERSION").exists());
    // and when that server goes on, then the next one leaves nothing of both, though it has nothing to drill
    stopped.signal(Signal::SIGCONT);
    let mut running = drill().start();
    assert!(!running.wait(PATIENCE).await.success(), "there is no repository");
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().flatten().map(|it| it.path()).collect();
    assert!(left.is_empty(), "{left:?}: {}", running.stderr());
    for sockets in [ended.socket_directory(), stopped.socket_directory()] {
        assert!(!sockets.exists(), "{}: {}", sockets.display(), running.stderr());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_is_kept_and_shown() {
    let scene = Scene::new(15, &[]).await;
    let archiver = scene.archived().await;
    let moment = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')";
    let before = scene.server.value(moment).await;
    scene.server.sql("INSERT INTO told VALUES (1)").await.unwrap();
    scene.settle().await;
    drop(archiver);
    let status = async || {
        let text = scene.seawall(&["status", "--json"]).run_ok().await.stdout;
        serde_json::from_str::<Value>(&text).unwrap()["last_drill_passed"].clone()
    };
    assert_eq!(status().await, Value::Null);
    let into = scene.places.path().join("planned");
    let planned = async |more: &[&str]| {
        let arguments = [&["restore", "--into", into.to_str().unwrap(), "--dry-run"], more].concat();
        scene.seawall(&arguments).run_ok().await.stdout
    };
    let said = planned(&[]).await;
    assert!(said.ends_with("\nduration     not known: no drill has measured it, and `seawall drill` does\n"), "{said}");
    // When a drill passes
    let drill = Drill::of(&scene);
    let passed = drill.passes("[drill]\nrpo = \"1h\"\n", &[]).await;
    assert_eq!(status().await, true);
    assert!(passed["recovered_at"].as_str().unwrap() > before.as_str(), "the last row is not in {passed:#}");
    // Then a plan says how long that took, for the same is to be done again,
    let plan: Value = serde_json::from_str(&planned(&["--json"]).await).unwrap();
    assert_eq!(plan["expected"]["drill_ended_at"], passed["ended_at"], "{plan:#}");
    let (expected, took) =
        (plan["expected"]["seconds"].as_f64().unwrap(), passed["recovery_seconds"].as_f64().unwrap());
    assert!(expected > took / 10.0 && expected < took * 100.0, "{expected} s are expected, it took {took} s");
    let said = planned(&[]).await;
    assert!(said.contains("\nduration     about ") && said.contains(" at the rates of the drill of "), "{said}");
    // and an archiver that starts shows it
    let archiver = scene.archiver().await;
    let shown = wait_for("the drill to be shown", PATIENCE, async || {
        let shown = archiver.metrics.scrape().await?;
        (shown.labelled("seawall_drill_success", "") == Some(1.0)).then_some(shown)
    })
    .await;
    assert_eq!(Some(shown.value("seawall_drill_recovery_seconds")), passed["recovery_seconds"].as_f64());
    assert_eq!(shown.value("seawall_drill_rpo_met"), 1.0);
    assert_eq!(shown.labelled("seawall_drill_rto_met", ""), None, "there is no such target");
    // and after one that fails, the newest counts
    drill.fails("[drill]\nrto = \"1ms\"\n", &[]).await;
    assert_eq!(status().await, false);
    // and no verification minds them
    scene.seawall(&["verify"]).run_ok().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_is_stored_if_nobody_can_read_what_is_printed() {
    let scene = Scene::new(15, &[]).await;
    let _archiver = scene.archived().await;
    scene.settle().await;
    // When a drill cannot print its report
    let script = scene.places.path().join("printing_to_a_full_disk");
    let program = support::program::path().display();
    std::fs::write(&script, format!("#!/bin/sh\nexec '{program}' \"$@\" > /dev/full\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let drill = Drill::of(&scene);
    let finished = drill.command("", &["--json"]).program(&script).run_err(Kind::Local.exit_code().into()).await;
    assert!(finished.stderr.contains("cannot write to standard output"), "{}", finished.stderr);
    // Then it is in the repository all the same, and nothing is left
    drill.assert_nothing_is_left();
    let status = scene.seawall(&["status", "--json"]).run_ok().await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["last_drill_passed"], true, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_is_a_finding_and_archiving_goes_on() {
    let scene = Scene::new(15, &[]).await;
    let _archiver = scene.archived().await;
    scene.settle().await;
    // Given a place in which no file gets longer than half a mebibyte, as where the disk is full
    let script = scene.places.path().join("on_a_full_disk");
    let program = path_for_server(scene.places.path());
    let limits = "trap '' XFSZ\nulimit -f 1024";
    std::fs::write(&script, format!("#!/bin/sh\n{limits}\nexec '{}' \"$@\"\n", program.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // When a drill needs more
    let drill = Drill::of(&scene);
    let failed = Kind::Failed.exit_code().into();
    let finished = drill.command("", &["--json"]).program(&script).run_err(failed).await;
    // Then the report says so, nothing is left, and status has it
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert!(failures(&report).contains("File too large"), "{report:#}");
    drill.assert_nothing_is_left();
    let status = scene.seawall(&["status"]).run_ok().await.stdout;
    assert!(status.contains("to be done     the last drill failed"), "{status}");
    // and what is written meanwhile is archived
    scene.server.sql("CREATE TABLE meanwhile ()").await.unwrap();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_leaves_a_server_to_look_at_and_says_how_to_be_rid_of_it() {
    let scene = Scene::with(15, ServerOptions { data_checksums: true, ..Scene::options(&[]) }).await;
    let _archiver = scene.archived().await;
    scene.server.sql("INSERT INTO told VALUES (7)").await.unwrap();
    scene.settle().await;
    let before = scene.server.value("SELECT pg_current_wal_lsn()").await;
    scene.server.sql("INSERT INTO told VALUES (8)").await.unwrap();
    scene.settle().await;
    // When a position is drilled, and what came back is to stay
    let drill = Drill::of(&scene);
    let output = drill.command("", &["--to-lsn", &before, "--keep"]).run_ok().await.stdout;
    let told = |label: &str| {
        let line = output.lines().find_map(|line| line.trim_start().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no line {label:?} in:\n{output}")).trim().to_owned()
    };
    // Then it is there, as it was at that position
    let conninfo = told("restored ").trim_start_matches("psql ").trim_matches('\'').to_owned();
    let psql = tool("psql").args(["-XAtc", "SELECT max(id) FROM told", &conninfo]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&psql.stdout).trim(), "7", "{psql:?}");
    // whatever it had in memory was written before it was given a minute to stop
    let sockets = conninfo.split_whitespace().find_map(|word| word.strip_prefix("host=")).unwrap();
    let log = std::fs::read_to_string(Path::new(sockets).join("log")).unwrap();
    let (before, _) = log.split_once("received fast shutdown request").expect(&log);
    assert!(before.contains("checkpoint starting: immediate force wait"), "{log}");
    // and goes as is said
    let run =
        |line: &str| assert!(Command::new("sh").args(["-ec", line]).status().unwrap().success(), "`{line}` failed");
    run(&told("to stop it "));
    wait_for("the server to stop", PATIENCE, async || servers_below(drill.scratch.path()).is_empty().then_some(()))
        .await;
    run(&told("to remove it all "));
    drill.assert_nothing_is_left();
}
