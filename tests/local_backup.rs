//! Base backups whose files the program reads by itself, of real servers under load: what they hold and what they restore to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use s3::S3Server;
use scene::Scene;
use seawall::scratch::{Server, ServerOptions, StopMode};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::postgres::{DEBIAN, Load, Postgres, pgbench_tables, programs, row_digests, scratch_directory, tool};
use support::program::{Finished, Seawall};
use support::waiting::{PATIENCE, wait_for};

/// A server with checksums, and a repository in a directory.
async fn scene(version: u32) -> Scene {
    scene_with(version, ServerOptions::default()).await
}

async fn scene_with(version: u32, options: ServerOptions) -> Scene {
    let options = ServerOptions { data_checksums: true, listen_tcp: true, ..options };
    let server = Postgres::create(version, options).await;
    let places = scratch_directory();
    let repository = places.path().join("repository");
    server.user().create_directory(&repository).unwrap();
    let environment = vec![("SEAWALL_REPO", format!("file://{}", repository.display()))];
    Scene { version, server, bucket: S3Server::start(), places, environment }
}

fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(directory).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "`{script}` failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Unpacks a backup as a person would: what its document names, of what several attempts may have left.
fn unpack(scene: &Scene, report: &Value) -> PathBuf {
    let folder = scene.places.path().join(format!("repository/main/base/{}", report["id"].as_str().unwrap()));
    let into = scene.places.path().join("unpacked");
    let unpack = |archive: &str, into: &Path| {
        std::fs::create_dir_all(into).unwrap();
        let names = report["parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap());
        let names = names.filter(|name| name.split('.').next() == Some(archive));
        let parts: Vec<String> = names.map(|name| format!("{name}.tar.lz4")).collect();
        shell(&folder, &format!("cat {} | lz4 -dc | tar -x -C {}", parts.join(" "), into.display()));
    };
    unpack("base", &into);
    for tablespace in report["tablespaces"].as_array().unwrap() {
        let oid = tablespace["oid"].to_string();
        unpack(&oid, &into.join(format!("pg_tblspc/{oid}")));
    }
    let digits = &report["manifest_sha256"].as_str().unwrap()[..32];
    shell(&folder, &format!("lz4 -dc backup_manifest.{digits}.lz4 > {}", into.join("backup_manifest").display()));
    shell(&into, "chown -R postgres . && chmod 700 .");
    into
}

fn verify_with_postgresql(unpacked: &Path) {
    let output = tool("pg_verifybackup").arg("--no-parse-wal").arg(unpacked).output().unwrap();
    assert!(output.status.success(), "pg_verifybackup: {}", String::from_utf8_lossy(&output.stderr));
}

/// A local backup by a role, of this directory.
fn local(scene: &Scene, role: &str, directory: &Path) -> Seawall {
    let conninfo = scene.server.conninfo().replace("user=postgres", &format!("user={role}"));
    let arguments = ["backup", "--fast", "--json", "--data-directory", directory.to_str().unwrap()];
    scene.seawall(&arguments).env("SEAWALL_PG", conninfo)
}

fn report(output: &Finished) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
}

for_every_version!(a_busy_server_is_read_restored_and_equal:
    version_13 = 13, version_14 = 14, version_15 = 15, version_16 = 16, version_17 = 17, version_18 = 18);

async fn a_busy_server_is_read_restored_and_equal(version: u32) {
    // Given a server with a table of 64 MB, a tablespace, an unlogged and a temporary table, and clients that write
    let scene = scene(version).await;
    let server = &scene.server;
    let space = server.side_directory("space");
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await.unwrap();
    server.sql("CREATE TABLE spaced TABLESPACE fast AS SELECT generate_series(1, 1000) AS number").await.unwrap();
    server.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS number").await.unwrap();
    pgbench_tables(server, 5).await;
    let session = server.connect("postgres").await.unwrap();
    session.sql("CREATE TEMPORARY TABLE mine AS SELECT generate_series(1, 1000) AS number").await.unwrap();
    let path = "SELECT pg_relation_filepath";
    let temporary = session.sql(&format!("{path}('mine')")).await.unwrap()[0][0].clone().unwrap();
    let unlogged = server.value(&format!("{path}('unlogged')")).await;
    let mut archiver = scene.archiver().await;
    scene.settle().await;
    let load = Load::start(server, 2);
    // When its data directory is read
    let report = report(&local(&scene, "postgres", server.data_directory()).run_ok().await);
    // Then every page is sound, the tablespace is there, and large files have parts of their own
    assert_eq!(report["verdict"], "sound", "{report}");
    assert_eq!(report["tablespaces"][0]["location"], space.display().to_string());
    let parts = report["parts"].as_array().unwrap();
    assert!(parts.iter().any(|part| part["continues"]["file_offset"] == 32 << 20), "{report}");
    // and of what a crash would empty there is the empty form alone, of what ends with its session nothing.
    let unpacked = unpack(&scene, &report);
    for (file, is_there) in [
        (unlogged.clone(), false),
        (unlogged + "_init", true),
        (temporary, false),
        ("postmaster.pid".to_owned(), false),
        ("global/pg_control".to_owned(), true),
        ("backup_label".to_owned(), true),
        ("tablespace_map".to_owned(), true),
        ("pg_wal/archive_status".to_owned(), true),
        ("pg_replslot".to_owned(), true),
        ("pg_replslot/seawall".to_owned(), false),
    ] {
        assert_eq!(unpacked.join(&file).exists(), is_there, "{file}");
    }
    // PostgreSQL's own judge, which reads manifests up to 16's.
    if version <= 16 {
        verify_with_postgresql(&unpacked);
    }

    // When more was written, and it is restored to the end
    load.stop();
    server.sql("CREATE TABLE behind AS SELECT generate_series(1, 1000) AS number").await.unwrap();
    let expected = row_digests(server, "postgres").await;
    scene.settle().await;
    archiver.running.terminate().await;
    let into = scene.places.path().join("restored");
    let map = format!("{}={}", space.display(), scene.places.path().join("space").display());
    server.user().give_all(&scene.places.path().join("repository")).unwrap();
    scene.restoring(&into).arg("--tablespace-map").arg(map).run_ok().await;
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let options = ServerOptions { settings, ..ServerOptions::default() };
    let programs = programs(version);
    let opened = Server::open(&programs, &into, options);
    let mut restored = tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap();
    // Then every row is there, and every page that any session reads has its checksum.
    assert_eq!(row_digests(&restored, "postgres").await, expected);
    let unlogged = restored.sql("SELECT count(*) FROM unlogged").await.unwrap();
    assert_eq!(unlogged[0][0].as_deref(), Some("0"));
    restored.stop(StopMode::Fast).await.unwrap();
    if version == DEBIAN {
        let output = tool("pg_checksums").arg("--check").arg("-D").arg(&into).output().unwrap();
        assert!(output.status.success(), "pg_checksums: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_this_servers_data_directory_is_refused() {
    // Given a server, another cluster's directory, a copy of this one's, and an empty one
    let scene = scene(DEBIAN).await;
    let other = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let copy = scene.places.path().join("copy");
    shell(scene.places.path(), &format!("cp -a {} {}", scene.server.data_directory().display(), copy.display()));
    let empty = scene.places.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    // Then each is refused, for its own reason, and nothing is stored under a backup's name
    for (directory, why) in [
        (other.data_directory(), "and the repository's is"),
        (&copy, "is not the data directory of the server at"),
        (&empty, "is no data directory"),
    ] {
        let refused = local(&scene, "postgres", directory).run_err(6).await;
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    assert_eq!(shell(scene.places.path(), "find repository -path '*/base/*'"), "");
    // and the right one is taken, by another way to it as well.
    let link = scene.places.path().join("link");
    std::os::unix::fs::symlink(scene.server.data_directory(), &link).unwrap();
    local(&scene, "postgres", &link).run_ok().await;
}

mod role_without_rights {
    use super::*;

    for_every_version!(is_told_what_to_grant:
        version_13 = 13, version_14 = 14, version_15 = 15, version_16 = 16, version_17 = 17, version_18 = 18);

    async fn is_told_what_to_grant(version: u32) {
        // Given a role that may replicate and nothing else
        let scene = scene(version).await;
        scene.server.sql("CREATE ROLE \"the copier\" LOGIN REPLICATION").await.unwrap();
        let take = || local(&scene, "'the copier'", scene.server.data_directory());
        let refused = take().run_err(6).await;
        let error: Value =
            serde_json::from_str(&refused.stdout).unwrap_or_else(|_| serde_json::from_str(&refused.stderr).unwrap());
        // When a superuser does what the hint says
        let hint = error["error"]["hint"].as_str().or(error["hint"].as_str()).unwrap().to_owned();
        let grant = &hint[hint.find("GRANT").unwrap_or_else(|| panic!("{hint}"))..];
        scene.server.sql(grant).await.unwrap();
        // Then that is all it takes.
        take().run_ok().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_replicate_alone_is_told_what_else_it_takes() {
    // Given a role that pg_hba.conf lets in for replication and nothing else
    let hba = vec!["local all copier reject".to_owned()];
    let scene = scene_with(DEBIAN, ServerOptions { hba, ..ServerOptions::default() }).await;
    scene.server.sql("CREATE ROLE copier LOGIN REPLICATION").await.unwrap();
    // When it reads the files, then it is told that this takes a session as well.
    let refused = local(&scene, "copier", scene.server.data_directory()).run_err(4).await;
    assert!(
        refused.stderr.contains("a session for SQL") && refused.stderr.contains("pg_hba.conf"),
        "{}",
        refused.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_is_kept_and_named() {
    // Given a table with a page that is wrong on the disk
    let scene = scene(DEBIAN).await;
    scene.server.sql("CREATE TABLE damaged AS SELECT generate_series(1, 100000) AS number").await.unwrap();
    scene.server.sql("CHECKPOINT").await.unwrap();
    let relation = scene.server.value("SELECT pg_relation_filepath('damaged')").await;
    let path = scene.server.data_directory().join(&relation);
    let mut pages = std::fs::read(&path).unwrap();
    pages[200 * 8192 + 8000] ^= 1;
    std::fs::write(&path, pages).unwrap();
    // When it is read, then the backup exists, and is as damaged as if the server had said so.
    let output = local(&scene, "postgres", scene.server.data_directory()).run_err(7).await;
    let report: Value = serde_json::Deserializer::from_str(&output.stdout).into_iter().next().unwrap().unwrap();
    assert_eq!(report["verdict"], "damaged", "{report}");
    let pages = report["findings"]["rejected_pages"].as_array().unwrap();
    assert_eq!((pages.len(), &pages[0]["path"], &pages[0]["block"]), (1, &relation.into(), &200.into()), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_before_the_backup_does_costs_a_new_beginning() {
    // Given a backup on its way
    let scene = scene(DEBIAN).await;
    pgbench_tables(&scene.server, 5).await;
    let mut running = local(&scene, "postgres", scene.server.data_directory()).start();
    // When the server ends the session in which it was begun
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE query LIKE 'SELECT lsn, %pg_backup_start(%' AND state = 'idle'";
    let ended = async || (scene.server.value(end).await != "0").then_some(());
    wait_for("the session to end", PATIENCE, ended).await;
    // Then it is begun again
    let status = running.wait(PATIENCE * 3).await;
    assert!(status.success(), "{}", running.stderr());
    assert!(running.stderr().contains("beginning the base backup again"), "{}", running.stderr());
    let report: Value = serde_json::from_str(&running.stdout()).unwrap();
    // and what is stored is a backup.
    verify_with_postgresql(&unpack(&scene, &report));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_killed_is_gone_on_with() {
    // Given a backup that was killed when some of its parts were stored
    let scene = scene(DEBIAN).await;
    pgbench_tables(&scene.server, 5).await;
    scene.server.sql("CHECKPOINT").await.unwrap();
    let mut running = local(&scene, "postgres", scene.server.data_directory()).start();
    let parts = || shell(scene.places.path(), "find repository -name '*.tar.lz4' -printf '%f %i %T@\\n' | sort");
    wait_for("two parts", PATIENCE, async || (parts().lines().count() >= 2).then_some(())).await;
    running.kill();
    let before = parts();
    let id = shell(scene.places.path(), "basename repository/main/base/*");
    // When another process goes on
    let resumed = local(&scene, "postgres", scene.server.data_directory()).arg("--resume").arg(id.trim());
    let report = report(&resumed.run_ok().await);
    // Then it has the same name, what was there was not stored again, and it is used
    assert_eq!(report["id"], id.trim());
    let after = parts();
    assert!(before.lines().all(|part| after.contains(part)), "{before}\n{after}");
    let used = |part: &Value| before.contains(part["name"].as_str().unwrap());
    assert!(report["parts"].as_array().unwrap().iter().any(used), "none of {before}");
    // and all of it is a backup.
    verify_with_postgresql(&unpack(&scene, &report));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused() {
    // Given a standby, made from a copy of its primary's files
    let mut scene = scene(DEBIAN).await;
    let copy = scene.places.path().join("standby");
    scene.server.stop(StopMode::Fast).await.unwrap();
    shell(scene.places.path(), &format!("cp -a {} {}", scene.server.data_directory().display(), copy.display()));
    scene.server.start().await.unwrap();
    std::fs::write(copy.join("standby.signal"), "").unwrap();
    let settings = vec![("primary_conninfo".to_owned(), scene.server.conninfo())];
    let options = ServerOptions { settings, standby: true, ..ServerOptions::default() };
    let standby = Server::open(&programs(DEBIAN), &copy, options).await.unwrap();
    // When it is asked for, then it is refused, with what can be done
    let refused = local(&scene, "postgres", &copy).env("SEAWALL_PG", standby.conninfo()).run_err(6).await;
    assert!(
        refused.stderr.contains("standby") && refused.stderr.contains("Without --data-directory"),
        "{}",
        refused.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_backup_builds_on_it() {
    // Given a server that summarizes its WAL, and a local backup
    let settings = vec![("summarize_wal".to_owned(), "on".to_owned())];
    let scene = scene_with(17, ServerOptions { settings, ..ServerOptions::default() }).await;
    let server = &scene.server;
    server.sql("CREATE TABLE large AS SELECT n AS id, md5(n::text) FROM generate_series(1, 300000) n").await.unwrap();
    let mut archiver = scene.archiver().await;
    let full = report(&local(&scene, "postgres", server.data_directory()).run_ok().await);
    // When something changes, then only that is sent, on top of the local one
    server.sql("UPDATE large SET md5 = 'changed' WHERE id < 1000").await.unwrap();
    let taken = report(&scene.seawall(&["backup", "--fast", "--json", "--type", "incremental"]).run_ok().await);
    assert_eq!(taken["reference"], full["id"]);
    // and both together are what the server was. None is taken by reading its files.
    let incremental =
        local(&scene, "postgres", server.data_directory()).arg("--type").arg("incremental").run_err(6).await;
    assert!(incremental.stderr.contains("no incremental backup can be taken"), "{}", incremental.stderr);
    let expected = row_digests(server, "postgres").await;
    scene.settle().await;
    archiver.running.terminate().await;
    let into = scene.places.path().join("restored");
    server.user().give_all(&scene.places.path().join("repository")).unwrap();
    scene.restoring(&into).run_ok().await;
    let programs = programs(17);
    let opened = Server::open(&programs, &into, ServerOptions::default());
    let restored = tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap();
    assert_eq!(row_digests(&restored, "postgres").await, expected);
}
