//! Incremental backups of real servers by the built program, and what their chains restore to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "incremental/scene.rs"]
mod scene;
mod support;

use scene::{Meddler, Scene, Stored, digests, keygen, seawall};
use seawall::backup::{BackupOptions, NotIncremental};
use seawall::repository::BackupDocument;
use seawall::scratch::{Server, ServerOptions, StopMode};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use support::pages::assert_sound_pages;
use support::postgres::{row_digests, scratch_directory, scratch_directory_below};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

/// How many files of a backup hold changes only, and how many of them go on in another part.
fn incremental_files(document: &BackupDocument) -> (usize, usize) {
    let is_incremental = |path: &str| path.contains("/INCREMENTAL.");
    let files = document.files.iter().filter(|file| is_incremental(&file.path.to_string()));
    let go_on = document.parts.iter().filter_map(|part| part.continues.as_ref());
    (files.count(), go_on.filter(|from| is_incremental(&from.path.to_string())).count())
}

async fn chains_of_three_restore_to_their_source(version: u32, stored: Stored) {
    // Given a server with tables of all kinds, one of them in a tablespace, one of over 100 MB, and a full backup
    let scene = Scene::summarized_and(version, stored).await;
    scene
        .sql(&[
            "CREATE TABLE large AS SELECT n AS id, repeat(md5(n::text), 12) AS filling FROM generate_series(1, 260000) n",
            "CREATE INDEX ON large (id)",
            "VACUUM large",
            "CREATE TABLE still AS SELECT n AS id, md5(n::text) FROM generate_series(1, 50000) n",
            "CREATE TABLE cut AS SELECT n AS id, repeat('old ', 30) AS filling FROM generate_series(1, 60000) n",
            "CREATE TABLE emptied AS SELECT generate_series(1, 20000) AS id",
            "CREATE TABLE dropped AS SELECT generate_series(1, 20000) AS id",
            "CREATE TABLE spaced TABLESPACE apart AS SELECT n AS id, md5(n::text) FROM generate_series(1, 30000) n",
            "CREATE TABLE long (id int PRIMARY KEY, what text)",
            "ALTER TABLE long ALTER what SET STORAGE EXTERNAL",
            "INSERT INTO long SELECT n, repeat(md5(n::text), 500) FROM generate_series(1, 300) n",
            "CREATE DATABASE other",
        ])
        .await;
    let in_database = async |database: &str, statement: &str| {
        scene.server.connect(database).await.unwrap().sql(statement).await.unwrap();
    };
    in_database("other", "CREATE TABLE rows AS SELECT n AS id, md5(n::text) AS what FROM generate_series(1, 20000) n")
        .await;
    let full = scene.backup("full").await;
    assert_eq!((full["type"].as_str(), &full["reference"]), (Some("full"), &Value::Null));

    // When half of the large table changes, and the others in their ways
    scene
        .sql(&[
            "UPDATE large SET filling = reverse(filling) WHERE id <= 130000",
            "VACUUM large",
            "DELETE FROM cut WHERE id > 20000",
            "VACUUM cut",
            "INSERT INTO cut SELECT n, repeat('new ', 30) FROM generate_series(1, 10000) n",
            "TRUNCATE emptied",
            "INSERT INTO emptied VALUES (1)",
            "DROP TABLE dropped",
            "CREATE TABLE fresh AS SELECT n AS id, md5(n::text) FROM generate_series(1, 20000) n",
            "UPDATE spaced SET id = -id WHERE id < 500",
            "CREATE TABLE spaced_too TABLESPACE apart AS SELECT generate_series(1, 5000) AS id",
            "UPDATE long SET what = repeat(md5(what), 400) WHERE id < 20",
            "CREATE DATABASE copied TEMPLATE other STRATEGY file_copy",
        ])
        .await;
    in_database("other", "UPDATE rows SET what = 'first' WHERE id < 100").await;
    let first = scene.backup("incremental").await;
    assert_eq!((first["type"].as_str(), &first["reference"]), (Some("incremental"), &full["id"]));
    let (files, go_on) = incremental_files(&scene.document(&first));
    assert!(files > 200 && go_on > 0, "{files} files hold changes, {go_on} of them beyond a part");
    let first_digests = scene.digests().await;
    // and then a little here and there,
    scene
        .sql(&[
            "UPDATE large SET filling = 'short' WHERE id < 300",
            "VACUUM fresh",
            "INSERT INTO fresh SELECT n, 'more' FROM generate_series(1, 3000) n",
            "REINDEX TABLE long",
            "INSERT INTO spaced_too VALUES (7)",
            "DELETE FROM still WHERE id > 100",
            "VACUUM still",
        ])
        .await;
    for database in ["other", "copied"] {
        in_database(database, "UPDATE rows SET what = 'second' WHERE id > 19900").await;
    }
    let second = scene.backup("auto").await;
    assert_eq!((second["type"].as_str(), &second["reference"]), (Some("incremental"), &first["id"]));
    let bytes = |backup: &Value| backup["stored_bytes"].as_u64().unwrap();
    assert!(bytes(&second) * 4 < bytes(&full), "{} of {}", bytes(&second), bytes(&full));
    // and more that is in WAL only
    scene.sql(&["INSERT INTO fresh VALUES (0, 'last')", "CREATE TABLE last AS SELECT 1 AS id"]).await;
    for database in ["other", "copied"] {
        in_database(database, "UPDATE rows SET what = 'last' WHERE id % 5000 = 0").await;
    }
    let expected = scene.digests().await;

    // Then each of the three restores to the same end, page by page,
    for (name, backup) in [("first", &first), ("full", &full)] {
        let mut restored = scene.restored(name, &["--backup", backup["id"].as_str().unwrap()]).await;
        assert_eq!(digests(&restored).await, expected, "restored from the {name}");
        assert_sound_pages(&restored).await;
        restored.stop(StopMode::Fast).await.unwrap();
    }
    // the newest over what the oldest came to,
    let newest = ["--backup", second["id"].as_str().unwrap()];
    let said = scene.restoring("full", &[&newest[..], &["--delta"]].concat()).run_ok().await.stdout;
    assert!(said.contains("that were there and equal the backup's"), "{said}");
    let restored = scene.open("full").await;
    assert_eq!(digests(&restored).await, expected, "the second over the full one");
    assert_sound_pages(&restored).await;
    // and by itself with one database and what every cluster has, while files of the other are as long as they were.
    let said = scene.restoring("one", &[&newest[..], &["--database", "other"]].concat()).run_ok().await.stdout;
    let copied = scene.server.connect("copied").await.unwrap();
    let rows = copied.sql("SELECT pg_relation_filepath('rows'), pg_relation_size('rows')").await.unwrap().remove(0);
    let found = fs::metadata(scene.places.path().join("one").join(rows[0].as_ref().unwrap())).unwrap();
    assert_eq!((Some(found.len().to_string()), found.blocks()), (rows[1].clone(), 0), "{rows:?}");
    drop(copied);
    let restored = scene.open("one").await;
    for database in ["other", "postgres"] {
        assert_eq!(row_digests(&restored, database).await, expected[database]);
    }
    assert_sound_pages(&restored).await;
    for statement in said.lines().map(str::trim).filter(|line| line.ends_with(';')) {
        restored.sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    assert_eq!(restored.sql("SELECT 1 FROM pg_database WHERE datname = 'copied'").await.unwrap().len(), 0, "{said}");
    // The middle one restores to its own moment, also where the last of what it builds on is not there at first.
    let to_middle = ["--to-lsn", first["end_lsn"].as_str().unwrap()];
    let (part, away) = (scene.part_of(&full, "large").await, scene.places.path().join("away"));
    fs::rename(&part, &away).unwrap();
    let stopped = scene.restoring("middle", &to_middle).run_err(7).await.stderr;
    assert!(stopped.contains("is missing, and the backup needs it"), "{stopped}");
    let middle = scene.places.path().join("middle");
    assert!(middle.join("base").exists() && !middle.join("global/pg_control").exists(), "half of it could be started");
    fs::rename(&away, &part).unwrap();
    let said = scene.restoring("middle", &to_middle).run_ok().await.stdout;
    assert!(said.contains("that were there and equal the backup's"), "{said}");
    let restored = scene.open("middle").await;
    assert_eq!(digests(&restored).await, first_digests);
    assert_sound_pages(&restored).await;
    // Lists and plans name the chain.
    let listed = scene.seawall(&["list"]).run_ok().await.stdout;
    let status = scene.seawall(&["status", "--json"]).run_ok().await.stdout;
    let plan = scene.seawall(&["restore", "--into", "/nowhere", "--dry-run"]).run_ok().await.stdout;
    for (text, ids) in [(&listed, vec![&full, &first, &second]), (&status, vec![&first]), (&plan, vec![&full, &first])]
    {
        assert!(ids.iter().all(|backup| text.contains(backup["id"].as_str().unwrap())), "{text}");
    }
    // Nothing is wrong with what is stored.
    scene.settle().await;
    let verified = scene.seawall(&["verify", "--deep"]).run_ok().await.stdout;
    assert!(verified.contains("\nsound"), "{verified}");
}

mod chains {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_three_restore_to_their_source_on_17() {
        chains_of_three_restore_to_their_source(17, Stored::Clear).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_three_restore_to_their_source_on_18() {
        chains_of_three_restore_to_their_source(18, Stored::Clear).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn that_were_taken_without_the_private_key_restore_to_their_source() {
        chains_of_three_restore_to_their_source(18, Stored::Sealed).await;
    }
}

/// A table is cut and grows by pages that are added and never written. How many rows are there, and how many after a
/// restore of an incremental backup.
async fn rows_of_a_cut_table(version: u32, stored: Stored, trusts: bool) -> (String, String) {
    let scene = Scene::summarized_and(version, stored).await;
    let load = scene.server.side_directory("load").join("rows");
    let rows = |from: u32, to: u32| {
        format!("SELECT n AS id, repeat('x', 100) AS filling FROM generate_series({from}, {to}) n")
    };
    scene
        .sql(&[
            &format!("CREATE TABLE cut AS {}", rows(1, 60_000)),
            // Else the next one would touch every page, and a file that has changed altogether is sent whole.
            "VACUUM cut",
            &format!("COPY ({}) TO '{}'", rows(100_001, 103_000), load.display()),
        ])
        .await;
    scene.backup("full").await;
    // COPY adds pages in ever larger groups, the last of which it leaves empty.
    let copy = format!("COPY cut FROM '{}'", load.display());
    scene.sql(&["DELETE FROM cut WHERE id > 30000", "VACUUM cut", &copy]).await;
    match trusts {
        true => {
            let options = BackupOptions { trusts_summaries: true, ..BackupOptions::default() };
            scene.take(options, None).await.unwrap();
        }
        false => {
            assert_eq!(scene.backup("incremental").await["type"], "incremental");
        }
    }
    let count = "SELECT count(*) FROM cut";
    let (there, restored) = (scene.server.value(count).await, scene.restored("restored", &[]).await);
    let found = restored.sql(count).await.unwrap()[0][0].clone().unwrap();
    (there, found)
}

mod deleted_rows {
    use super::*;

    async fn come_back_where_the_server_is_trusted_and_not_with_us(version: u32) {
        let (there, found) = rows_of_a_cut_table(version, Stored::Clear, true).await;
        assert_eq!(there, "33000");
        assert_ne!(
            found, there,
            "PostgreSQL {version} has mended its incremental backups: look at cut_relations.rs again"
        );
        for stored in [Stored::Clear, Stored::Sealed] {
            let (there, found) = rows_of_a_cut_table(version, stored, false).await;
            assert_eq!(found, there);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn come_back_on_17_where_the_server_is_trusted_and_not_with_us() {
        come_back_where_the_server_is_trusted_and_not_with_us(17).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn come_back_on_18_where_the_server_is_trusted_and_not_with_us() {
        come_back_where_the_server_is_trusted_and_not_with_us(18).await;
    }
}

/// The server's WAL summaries, in a place that lists its files in an order that a test can choose.
struct Summaries {
    directory: TempDir,
}

impl Summaries {
    /// Has a server write them to memory, where the newest file is listed first; disks have orders of their own.
    async fn of(scene: &Scene) -> Summaries {
        let directory = scratch_directory_below(Path::new("/dev/shm"));
        let usual = scene.server.data_directory().join("pg_wal/summaries");
        fs::remove_dir(&usual).unwrap();
        symlink(directory.path(), &usual).unwrap();
        scene.sql(&["ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()"]).await;
        Summaries { directory }
    }

    /// Ends the one that is being written, so that what comes is in another.
    async fn end_one(&self, scene: &Scene) {
        scene.sql(&["CHECKPOINT"]).await;
        let summarized =
            "SELECT count(*) FROM pg_available_wal_summaries(), pg_control_checkpoint() WHERE end_lsn >= redo_lsn";
        let is_summarized = async || (scene.server.value(summarized).await != "0").then_some(());
        wait_for("the summarizer", PATIENCE, is_summarized).await;
    }

    fn listed(&self) -> Vec<PathBuf> {
        fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Makes the directory list them from the oldest to the newest, as their names have it, or the other way round.
    fn arrange(&self, newest_first: bool) {
        let away = scratch_directory_below(Path::new("/dev/shm"));
        let mut wanted = self.listed();
        wanted.sort();
        if newest_first {
            wanted.reverse();
        }
        let place = |path: &PathBuf| away.path().join(path.file_name().unwrap());
        // What comes last is listed first, or last: one of the two is what is wanted.
        for backwards in [true, false] {
            wanted.iter().for_each(|path| fs::rename(path, place(path)).unwrap());
            let mut order: Vec<&PathBuf> = wanted.iter().collect();
            if backwards {
                order.reverse();
            }
            order.into_iter().for_each(|path| fs::rename(place(path), path).unwrap());
            if self.listed() == wanted {
                return;
            }
        }
        panic!("/dev/shm lists its files in an order of its own: {:?}", self.listed());
    }
}

async fn what_was_written_behind_a_cut_is_lost_by_the_order_of_a_directory_and_not_with_us(version: u32) {
    // Given a table in a full backup, then cut, in one summary of WAL, then grown again, in the next
    let scene = Scene::new(version, &[("autovacuum", "off")], Stored::Clear).await;
    let summaries = Summaries::of(&scene).await;
    let rows = |from: u32, to: u32| format!("SELECT n, repeat('x', 100) FROM generate_series({from}, {to}) n");
    scene.sql(&[&format!("CREATE TABLE cut (id, filling) AS {}", rows(1, 60_000)), "VACUUM cut"]).await;
    scene.backup("full").await;
    scene.sql(&["DELETE FROM cut WHERE id > 30000", "VACUUM cut"]).await;
    summaries.end_one(&scene).await;
    scene.sql(&[&format!("INSERT INTO cut {}", rows(100_001, 103_000))]).await;
    summaries.end_one(&scene).await;
    let count = "SELECT count(*) FILTER (WHERE id > 100000) || ' new, ' || count(*) || ' in all' FROM cut";
    let there = scene.server.value(count).await;
    assert_eq!(there, "3000 new, 33000 in all");
    let found = async |name: &str, taken: &BackupDocument| {
        let restored = scene.restored(name, &["--backup", &taken.id.to_string()]).await;
        let found = restored.sql(count).await.unwrap().remove(0).remove(0).unwrap();
        // Each builds on the full one.
        fs::remove_dir_all(scene.repository().join("main/base").join(taken.id.to_string())).unwrap();
        found
    };
    // When the server reads its summaries in their order, then it has all of it, and in the other it has not
    for newest_first in [false, true] {
        summaries.arrange(newest_first);
        let options = BackupOptions { trusts_summaries: true, ..BackupOptions::default() };
        let taken = scene.take(options, None).await.unwrap();
        let found = found(&format!("trusted-{newest_first}"), &taken).await;
        assert_eq!(
            found != there,
            newest_first,
            "PostgreSQL {version} gave {found}: if it has mended its incremental backups, look at cut_relations.rs again"
        );
    }
    // and by our own way all of it is there, whatever the order.
    summaries.arrange(true);
    let taken = scene.take(BackupOptions::default(), None).await.unwrap();
    assert!(taken.reference.is_some());
    assert_eq!(found("ours", &taken).await, there);
}

mod new_rows {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn behind_a_cut_are_lost_on_17_by_the_order_of_a_directory_and_not_with_us() {
        what_was_written_behind_a_cut_is_lost_by_the_order_of_a_directory_and_not_with_us(17).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn behind_a_cut_are_lost_on_18_by_the_order_of_a_directory_and_not_with_us() {
        what_was_written_behind_a_cut_is_lost_by_the_order_of_a_directory_and_not_with_us(18).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_private_key_a_chain_goes_on_across_cuts_and_restarts() {
    // Given an archiver and backups that have no private key, and tables in a full backup
    let mut scene = Scene::summarized_and(18, Stored::Sealed).await;
    for table in ["cut", "emptied", "still"] {
        let rows = "SELECT n AS id, repeat('old ', 30) AS filling FROM generate_series(1, 60000) n";
        scene.sql(&[&format!("CREATE TABLE {table} AS {rows}"), &format!("VACUUM {table}")]).await;
    }
    let full = scene.backup("full").await;
    // When tables are cut and grow again, in tails and in blocks, before the archiver is started again and behind
    let cut = [
        "DELETE FROM cut WHERE id > 20000 OR filling LIKE 'new%'",
        "VACUUM cut",
        "INSERT INTO cut SELECT n, repeat('new ', 30) FROM generate_series(1, 10000) n",
    ];
    scene.sql(&cut).await;
    let public = scene.keys.as_ref().map(|(_, public)| public.clone());
    scene.archive_anew(public.as_deref()).await;
    scene.sql(&["UPDATE still SET filling = 'new' WHERE id < 300"]).await;
    let first = scene.backup("incremental").await;
    scene
        .sql(&["BEGIN; TRUNCATE emptied; INSERT INTO emptied VALUES (1, 'new'); COMMIT", "SELECT pg_switch_wal()"])
        .await;
    scene.sql(&cut).await;
    let second = scene.backup("incremental").await;
    assert_eq!((&first["reference"], &second["reference"]), (&full["id"], &first["id"]));
    let expected = scene.digests().await;
    // Then what was cut is whole, what was not is in part, and all of it restores with the key.
    let (document, table) = (scene.document(&second), async |table: &str| {
        scene.server.value(&format!("SELECT pg_relation_filepath('{table}')")).await
    });
    let is_there = |path: String| document.files.iter().any(|file| file.path.to_string() == path);
    assert!(is_there(table("cut").await), "what was cut is not whole");
    assert!(is_there(table("still").await.replace("/5/", "/5/INCREMENTAL.")), "what was not cut is");
    let restored = scene.restored("restored", &[]).await;
    assert_eq!(digests(&restored).await, expected);
    assert_sound_pages(&restored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_does_not_say_what_it_cuts_is_read_with_the_private_key_or_there_is_no_incremental_backup() {
    // Given a full backup from before WAL was encrypted, and a cut in what was stored in clear
    let mut scene = Scene::summarized(18).await;
    scene.sql(&["CREATE TABLE cut AS SELECT generate_series(1, 60000) AS id", "VACUUM cut"]).await;
    let full = scene.backup("full").await;
    scene.sql(&["DELETE FROM cut WHERE id > 20000", "VACUUM cut", "SELECT pg_switch_wal()"]).await;
    scene.settle().await;
    let (private, public) = keygen(&scene.places, &scene.server).await;
    scene.archive_anew(Some(&public)).await;
    scene.sql(&["INSERT INTO cut SELECT generate_series(-10000, 0)"]).await;
    scene.keys = Some((private, public));
    // When an incremental backup is taken without the key, then there is none, and that is said
    scene.stored = Stored::Sealed;
    let refused = scene.seawall(&["backup", "--fast", "--type", "incremental"]).run_err(6).await;
    let says = "does not say in clear which relations its WAL cuts";
    assert!(refused.stderr.contains(says) && refused.stderr.contains("SEAWALL_IDENTITY"), "{}", refused.stderr);
    // When it is taken with the key, then the WAL itself is read
    scene.stored = Stored::Encrypted;
    let first = scene.backup("incremental").await;
    assert_eq!(first["reference"], full["id"]);
    // and the next ones need none.
    scene.stored = Stored::Sealed;
    scene.sql(&["INSERT INTO cut SELECT generate_series(-12000, -10001)"]).await;
    assert_eq!(scene.backup("incremental").await["reference"], first["id"]);
    let expected = scene.digests().await;
    assert_eq!(digests(&scene.restored("restored", &[]).await).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relation_that_is_cut_while_the_backup_begins_is_seen_and_it_begins_anew() {
    // Given tables that are in a full backup
    let scene = Scene::summarized(18).await;
    for table in 0..5 {
        scene.sql(&[&format!("CREATE TABLE cut_{table} AS SELECT generate_series(1, 20000) AS id")]).await;
    }
    scene.backup("full").await;
    let meddler = async |times: usize| {
        let (server, connection) =
            tokio_postgres::connect(&scene.server.conninfo(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        Some(Meddler { server, times, waits: AtomicUsize::new(0) })
    };
    // When one of them is cut each time that the WAL was looked at, then no backup begins
    let failed = scene.take(BackupOptions::default(), meddler(3).await).await;
    let Err(NotIncremental::Unavailable(why)) = failed else { panic!("{failed:?}") };
    assert!(why.to_string().contains("each of 3 attempts"), "{why}");
    let begun = fs::read_dir(scene.repository().join("main/base")).unwrap().count();
    assert_eq!(begun, 1, "nothing is stored of a backup that does not begin");
    // When that ends, then one does, with every relation whole that was cut meanwhile
    scene.sql(&["DROP TABLE cut_0", "ALTER TABLE cut_3 RENAME TO cut_0"]).await;
    let taken = scene.take(BackupOptions::default(), meddler(1).await).await.unwrap();
    for table in 0..3 {
        let path = scene.server.value(&format!("SELECT pg_relation_filepath('cut_{table}')")).await;
        let is_there = taken.files.iter().any(|file| file.path.to_string() == path);
        assert!(is_there, "cut_{table} ({path}) is not whole");
    }
    let path = scene.server.value("SELECT pg_relation_filepath('cut_4')").await.replace("/5/", "/5/INCREMENTAL.");
    assert!(taken.files.iter().any(|file| file.path.to_string() == path), "nothing was cut of {path}");
    let restored = scene.restored("restored", &[]).await;
    assert_eq!(digests(&restored).await, scene.digests().await);
}

/// A standby of the scene's server, made from a copy of its files, and the directory that it lives in.
async fn standby_of(scene: &mut Scene) -> (Server, TempDir) {
    let directory = scratch_directory();
    let (data, copy) = (scene.server.data_directory().to_owned(), directory.path().join("data"));
    scene.server.stop(StopMode::Fast).await.unwrap();
    let copied = std::process::Command::new("cp").arg("-a").args([&data, &copy]).status().unwrap();
    assert!(copied.success(), "the data directory was not copied");
    scene.server.start().await.unwrap();
    fs::write(copy.join("standby.signal"), "").unwrap();
    let settings = vec![("primary_conninfo".to_owned(), scene.server.conninfo())];
    let options = ServerOptions { settings, standby: true, ..ServerOptions::default() };
    (Server::open(scene.server.programs(), &copy, options).await.unwrap(), directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_goes_on_across_a_failover() {
    // Given a server with a standby, and a full backup of it
    let mut scene = Scene::summarized(17).await;
    // Two servers of one machine cannot have one tablespace.
    scene.sql(&["DROP TABLESPACE apart"]).await;
    scene.has_space = false;
    for table in ["before", "behind", "still"] {
        scene.sql(&[&format!("CREATE TABLE {table} AS SELECT generate_series(1, 50000) AS id"), "VACUUM"]).await;
    }
    let (standby, _directory) = standby_of(&mut scene).await;
    scene.settle().await;
    let full = scene.backup("full").await;
    let cut = |table: &str| {
        let cut =
            ["DELETE FROM cut WHERE id > 20000", "VACUUM cut", "INSERT INTO cut SELECT generate_series(-9000, 0)"];
        cut.map(|statement| statement.replace("cut", table))
    };
    for statement in cut("before") {
        scene.sql(&[&statement]).await;
    }
    scene.settle().await;
    // When the standby takes over, and is archived in its place
    let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    let answer = async |query: &str| standby.sql(query).await.unwrap()[0][0].clone().unwrap_or_default();
    wait_for("the standby", PATIENCE, async || (answer(&replayed).await == "t").then_some(())).await;
    scene.server.stop(StopMode::Fast).await.unwrap();
    scene.archiver.terminate().await;
    assert_eq!(answer("SELECT pg_promote()").await, "t", "{}", standby.log_tail());
    let _archiver = seawall(&standby, &scene.places, &["run", "--listen", "off"]).start();
    for statement in cut("behind") {
        standby.sql(&statement).await.unwrap();
    }
    // Then a backup of it builds on the one from before
    let arguments = ["backup", "--fast", "--json", "--type", "incremental"];
    let taken = seawall(&standby, &scene.places, &arguments).run_ok().await.stdout;
    let taken: Value = serde_json::from_str(&taken).unwrap();
    assert_eq!((&taken["reference"], taken["timeline"].as_u64()), (&full["id"], Some(2)), "{taken}");
    // and the two restore to what it has.
    let backup = ["--backup", taken["id"].as_str().unwrap(), "--to-lsn", taken["end_lsn"].as_str().unwrap()];
    standby.sql("SELECT pg_switch_wal()").await.unwrap();
    let restored = scene.restore("restored", &backup).await;
    assert_eq!(digests(&restored).await, digests(&standby).await);
    assert_sound_pages(&restored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_cannot_auto_says_so_and_takes_a_full_one() {
    // Given a server of an old version, and one that does not summarize
    for (version, says) in [(15, "PostgreSQL 15 makes full backups only"), (18, "summarize_wal is off")] {
        let scene = Scene::new(version, &[], Stored::Clear).await;
        let failed = scene.seawall(&["backup", "--fast", "--type", "incremental"]).run_err(6).await;
        assert!(failed.stderr.contains(says) && failed.stderr.contains("hint:"), "{}", failed.stderr);
        let taken = scene.backup("auto").await;
        assert_eq!(taken["type"], "full");
        assert!(taken["why_full"].as_str().unwrap().contains(says), "{taken}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fitting_reference_or_its_summaries_auto_takes_a_full_one() {
    // Given a server that summarizes, and no backup yet
    let scene = Scene::summarized(17).await;
    let why = async |scene: &Scene| {
        let taken = scene.backup("auto").await;
        assert_eq!(taken["type"], "full", "{taken}");
        taken["why_full"].as_str().unwrap().to_owned()
    };
    assert!(why(&scene).await.contains("no base backup yet"));
    assert_eq!(scene.backup("auto").await["type"], "incremental", "with one");
    // When summaries are gone, then the server says which
    scene.sql(&["CREATE TABLE t AS SELECT 1", "CHECKPOINT"]).await;
    let summarized =
        "SELECT count(*) FROM pg_available_wal_summaries(), pg_control_checkpoint() WHERE end_lsn >= redo_lsn";
    let is_summarized = async || (scene.server.value(summarized).await != "0").then_some(());
    wait_for("the summarizer", PATIENCE, is_summarized).await;
    let summaries = scene.server.data_directory().join("pg_wal/summaries");
    for entry in fs::read_dir(summaries).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert!(why(&scene).await.contains("WAL summaries"), "the server's words");
    // When the chain of the newest has lost a link, then nothing builds on it
    let full = scene.backup("full").await;
    let newest = scene.backup("incremental").await;
    assert_eq!(newest["reference"], full["id"]);
    fs::remove_file(scene.folder(&full).join("backup.json")).unwrap();
    let older = scene.backup("incremental").await;
    assert!(older["reference"] != newest["id"] && older["reference"] != full["id"], "{older}");
    // and a restore by its name is refused, by that of the missing one, before anything is written
    let into = scene.places.path().join("refused");
    let arguments = ["restore", "--into", into.to_str().unwrap(), "--backup", newest["id"].as_str().unwrap()];
    let refused = scene.seawall(&arguments).run_err(6).await;
    assert!(refused.stderr.contains(full["id"].as_str().unwrap()) && !into.exists(), "{}", refused.stderr);
    let listed = scene.seawall(&["list"]).run_ok().await.stdout;
    assert!(listed.contains("NOT RESTORABLE"), "{listed}");
}

/// Changes a file of the repository.
fn alter(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text, "nothing was altered");
    fs::write(path, changed).unwrap();
}

/// Changes a document of the repository.
fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    alter(path, |text| {
        let mut document = serde_json::from_str(&text).unwrap();
        change(&mut document);
        serde_json::to_string(&document).unwrap()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_does_not_belong_together_leaves_nothing_that_could_start() {
    // Given a chain, and another full backup
    let scene = Scene::summarized(18).await;
    scene.sql(&["CREATE TABLE t AS SELECT generate_series(1, 100000) AS id"]).await;
    scene.sql(&["CREATE TABLE spaced TABLESPACE apart AS SELECT generate_series(1, 10000) AS id"]).await;
    let stranger = scene.backup("full").await;
    scene.sql(&["INSERT INTO t VALUES (0)"]).await;
    let full = scene.backup("full").await;
    scene.sql(&["UPDATE t SET id = -1 WHERE id = 7"]).await;
    let newest = scene.backup("incremental").await;
    scene.settle().await;
    let [stranger_id, full_id] = [&stranger, &full].map(|backup| backup["id"].as_str().unwrap().to_owned());
    let is_found_out = async |name: &str, code: i32, says: &str| {
        let into = scene.places.path().join(name);
        let owner = scene.server.user().name();
        let space = scene.places.path().join(format!("{name}.space"));
        let map = format!("{}={}", scene.space.display(), space.display());
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", owner, "--tablespace-map", &map];
        let failed = scene.seawall(&arguments).run_err(code).await;
        assert!(failed.stderr.contains(says) && failed.stderr.contains("hint:"), "{}", failed.stderr);
        assert!(!into.join("global/pg_control").exists(), "a server could start on it");
    };
    // When the newest is made to build on the stranger, then its own label says otherwise
    let document = scene.folder(&newest).join("backup.json");
    let reference = |id: &str| format!("\"reference\": \"{id}\"");
    alter(&document, |text| text.replace(&reference(&full_id), &reference(&stranger_id)));
    is_found_out("stranger", 7, "does not say that it builds on").await;
    alter(&document, |text| text.replace(&reference(&stranger_id), &reference(&full_id)));
    // When the manifest of what it builds on is another's, then it is named
    let manifest = |backup: &Value| {
        let digest = &backup["manifest_sha256"].as_str().unwrap()[..32];
        scene.folder(backup).join(format!("backup_manifest.{digest}.lz4"))
    };
    let good = fs::read(manifest(&full)).unwrap();
    fs::copy(manifest(&stranger), manifest(&full)).unwrap();
    is_found_out("manifest", 7, "lz4 holds something else").await;
    fs::write(manifest(&full), &good).unwrap();
    // When it has more in the tablespace than any disk holds, then that is seen before anything is written,
    let spaced = scene.server.value("SELECT pg_relation_filepath('spaced')").await;
    let documents = [&full, &newest].map(|backup| scene.folder(backup).join("backup.json"));
    let good = documents.each_ref().map(|path| fs::read(path).unwrap());
    change(&documents[0], |document| {
        let file = document["files"].as_array_mut().unwrap().iter_mut().find(|file| file[0] == spaced.as_str());
        file.expect("it is in the full one")[3] = (1u64 << 50).into();
    });
    change(&documents[1], |document| document["restored_bytes"] = (1u64 << 51).into());
    is_found_out("large", 9, "MiB are free there").await;
    assert!(!scene.places.path().join("large").exists() && !scene.places.path().join("large.space").exists());
    // and where the tablespace has a disk of its own, only of that.
    let memory = scratch_directory_below(Path::new("/dev/shm"));
    let map = format!("{}={}", scene.space.display(), memory.path().display());
    let into = scene.places.path().join("large");
    let arguments = ["restore", "--into", into.to_str().unwrap(), "--owner", scene.server.user().name()];
    let refused = scene.seawall(&arguments).arg("--tablespace-map").arg(&map).run_err(9).await.stderr;
    assert!(refused.contains(&format!("MiB for {}, and", memory.path().display())), "{refused}");
    assert!(!into.exists() && fs::read_dir(memory.path()).unwrap().next().is_none(), "something was written");
    documents.iter().zip(good).for_each(|(path, good)| fs::write(path, good).unwrap());
    // When a part of it is damaged, then that is
    let names = full["parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap());
    let label = names.into_iter().find(|name| name.starts_with("base.00001")).unwrap();
    let name = format!("{label}.tar.lz4");
    let part = scene.folder(&full).join(&name);
    let good = fs::read(&part).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&part, bad).unwrap();
    is_found_out("part", 7, &name).await;
    fs::write(&part, good).unwrap();
    // And when all is as it was, then it restores.
    let restored = scene.restored("whole", &[]).await;
    assert_eq!(digests(&restored).await, scene.digests().await);
}
