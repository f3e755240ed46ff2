//! `seawall history` over WAL of real servers: it says what was done, in order, and what it prints to restore restores.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use age::secrecy::ExposeSecret;
use futures_util::future::join_all;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use s3::Op;
use scene::Scene;
use seawall::codec::encryption::generate_identity;
use seawall::scratch::{Server, ServerOptions, StopMode};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use support::postgres::programs;
use support::program::path_for_server;
use support::waiting::{PATIENCE, wait_for};

for_every_version!(what_was_done_is_told_and_can_be_undone:
    postgres_13 = 13, postgres_14 = 14, postgres_15 = 15, postgres_16 = 16, postgres_17 = 17, postgres_18 = 18);

/// The server's clock.
const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

async fn history(scene: &Scene, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["history", "--json"], arguments].concat();
    let printed = scene.seawall(&arguments).run_ok().await.stdout;
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What an entry comes to, in a word.
fn word(entry: &Value) -> String {
    let event = entry["event"].as_str().unwrap();
    let number = |name: &str| entry[name].as_u64().unwrap_or(0);
    let is_empty = |name: &str| entry[name].as_array().is_none_or(Vec::is_empty);
    match event {
        "commit" if !is_empty("dropped_databases") => "drops a database".to_owned(),
        "commit" if !is_empty("created_databases") => "creates a database".to_owned(),
        "commit" if entry["drops"] == true => format!("drops {}", number("removed_files")),
        "commit" if number("removed_files") > 0 => format!("replaces {}", number("removed_files")),
        "commit" if number("created_files") > 0 => format!("creates {}", number("created_files")),
        "commit" => if entry["prepared"] == true { "prepared" } else { "changes" }.to_owned(),
        other => other.to_owned(),
    }
}

/// Restores with the command that an entry has, and starts what comes of it.
async fn undone(scene: &Scene, entry: &Value, name: &str) -> Server {
    let into = scene.places.path().join(name);
    let command = entry["restore"].as_str().unwrap();
    let words = command.split(' ').skip(1).map(|word| if word == "DIR" { into.to_str().unwrap() } else { word });
    let words: Vec<&str> = words.chain(["--owner", scene.server.user().name()]).collect();
    scene.seawall(&words).program(&path_for_server(scene.places.path())).run_ok().await;
    let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let programs = programs(scene.version);
    let opened = Server::open(&programs, &into, options);
    tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap()
}

async fn what_was_done_is_told_and_can_be_undone(version: u32) {
    // Given a server that is archived,
    let settings = [("max_prepared_transactions", "4"), ("autovacuum", "off")];
    let scene = Scene::new(version, &settings).await;
    let _archiver = scene.archived().await;
    let from = scene.server.value("SELECT pg_current_wal_insert_lsn()").await;
    // when a bit of everything is done on it,
    let sql = |text: &'static str| {
        let done = scene.server.sql(text);
        async move { done.await.unwrap_or_else(|error| panic!("{text}: {error:?}")) }
    };
    sql("CREATE TABLE accounts (id int PRIMARY KEY, note text)").await;
    let xid = scene.server.value("INSERT INTO accounts SELECT 1, 'one' RETURNING txid_current()").await;
    sql("BEGIN; INSERT INTO accounts VALUES (2); SAVEPOINT a; INSERT INTO accounts VALUES (3); ROLLBACK TO a; \
         SAVEPOINT b; INSERT INTO accounts VALUES (4); COMMIT")
    .await;
    sql("BEGIN; INSERT INTO accounts VALUES (5); PREPARE TRANSACTION 'later'").await;
    sql("BEGIN; INSERT INTO accounts VALUES (6); ROLLBACK").await;
    sql("COMMIT PREPARED 'later'").await;
    sql("SELECT pg_create_restore_point('a good moment')").await;
    sql("VACUUM FULL accounts").await;
    sql("CREATE TABLE other AS SELECT 1 AS id").await;
    sql("TRUNCATE other").await;
    sql("DROP TABLE accounts").await;
    sql("CREATE DATABASE gone").await;
    scene.server.connect("gone").await.unwrap().sql("CREATE TABLE kept AS SELECT 7 AS id").await.unwrap();
    sql("DROP DATABASE gone").await;
    scene.settle().await;

    // then the history is that, in this order,
    let entries = history(&scene, &["--from", &from]).await;
    let words: Vec<String> = entries.iter().map(word).collect();
    let expected = [
        "creates 4",
        "changes",
        "changes",
        "prepared",
        "restore_point",
        "replaces 4",
        "creates 1",
        "replaces 1",
        "drops 4",
        "creates a database",
        "creates 1",
        "drops a database",
    ];
    assert_eq!(words, expected, "PostgreSQL {version}: {entries:#?}");
    // with numbers, sizes and databases: the savepoint that stays counts, and its row is a record of 60 bytes or more,
    let numbers = |index: usize, name: &str| entries[index][name].as_u64().unwrap();
    assert_eq!(numbers(1, "xid").to_string(), xid);
    assert_eq!(entries[4]["name"], "a good moment");
    assert!(numbers(2, "records") > numbers(1, "records"), "{entries:#?}");
    let database = scene.server.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry["event"] == "commit") {
        assert_eq!(entry["complete"], true, "{entry:#}");
        assert!(numbers(index, "bytes") >= 60 * (numbers(index, "records") - 1), "{entry:#}");
        if index < 9 {
            assert_eq!(entry["database"].to_string(), database, "{entry:#}");
        }
    }
    // and what is asked for alone can be had,
    let of = |entries: Vec<Value>| entries.iter().map(word).collect::<Vec<_>>();
    let drops = of(history(&scene, &["--from", &from, "--drops"]).await);
    assert_eq!(drops, ["replaces 4", "replaces 1", "drops 4", "drops a database"]);
    assert_eq!(of(history(&scene, &["--from", &from, "--limit", "1"]).await), ["drops a database"]);
    let point = entries[4]["lsn"].as_str().unwrap();
    assert_eq!(of(history(&scene, &["--from", &from, "--to", point]).await), expected[..5]);
    let large = history(&scene, &["--from", &from, "--database", &database, "--min-bytes", "1k"]).await;
    assert!(large.iter().all(|entry| entry["bytes"].as_u64() >= Some(1024)) && !large.is_empty(), "{large:#?}");
    // by default of the last hour, for people too.
    let text = scene.seawall(&["history"]).run_ok().await.stdout;
    assert!(text.contains("restore point \"a good moment\"") && text.contains("drops 4 relations"), "{text}");
    let way = text.lines().last().unwrap_or_default();
    assert!(way.starts_with("before any other line: seawall restore") && way.ends_with("--to-exclusive"), "{text}");
    let text = scene.seawall(&["history", "--drops"]).run_ok().await.stdout;
    assert!(text.contains("before it: seawall restore") && !text.contains("any other line"), "{text}");

    // What was dropped comes back with the commands that are printed, a whole database too.
    let restored = undone(&scene, &entries[8], "before-table").await;
    let rows = restored.sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM accounts").await.unwrap();
    assert_eq!(rows[0][0].as_deref(), Some("1 2 4 5"), "PostgreSQL {version}");
    drop(restored);
    let restored = undone(&scene, &entries[11], "before-database").await;
    let gone = restored.connect("gone").await.unwrap();
    assert_eq!(gone.sql("SELECT id FROM kept").await.unwrap()[0][0].as_deref(), Some("7"), "PostgreSQL {version}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_is_found_by_its_name() {
    join_all([13, support::postgres::DEBIAN, 18].map(before_drop)).await;
}

async fn before_drop(version: u32) {
    // Given a base backup that has seen a table, a view, a table that refers to it and one with partitions, and another
    // database with a name that is there twice,
    let scene = Scene::new(version, &[("autovacuum", "off")]).await;
    let sql = async |text: &str| scene.server.sql(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
    sql("CREATE TABLE accounts (id int PRIMARY KEY, note text); CREATE VIEW seen AS SELECT 1 AS one; \
         CREATE TABLE entries (account int REFERENCES accounts); INSERT INTO accounts VALUES (1); \
         CREATE TABLE events (id int) PARTITION BY RANGE (id); \
         CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (1); \
         CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (1) TO (2)")
    .await;
    sql("CREATE DATABASE blog").await;
    let blog = scene.server.connect("blog").await.unwrap();
    blog.sql("CREATE TABLE entries (id int)").await.unwrap();
    let _archiver = scene.archived().await;
    let from = scene.server.value("SELECT pg_current_wal_insert_lsn()").await;
    // when it is rewritten, others are dropped, it is made bigger and dropped at last, and another after it,
    sql("VACUUM FULL accounts").await;
    sql("DROP TABLE entries").await;
    blog.sql("DROP TABLE entries").await.unwrap();
    sql("DROP TABLE events_1").await;
    sql("DROP TABLE events").await;
    let early = scene.server.value(NOW).await;
    sql("INSERT INTO accounts VALUES (2, 'kept')").await;
    sql("DROP TABLE accounts; DROP VIEW seen").await;
    let between = scene.server.value(NOW).await;
    sql("CREATE TABLE unseen (id int)").await;
    sql("DROP TABLE unseen").await;
    scene.settle().await;

    // then the history has names, for files that were there at the backup,
    let drops = history(&scene, &["--from", &from, "--drops", "--database", "postgres"]).await;
    assert_eq!(drops.len(), 6, "{drops:#?}");
    assert!(drops.iter().all(|entry| entry["database_name"] == "postgres"), "{drops:#?}");
    assert_eq!(
        drops[0]["removed"].as_array().unwrap().iter().filter(|it| it["relation"] == "public.accounts").count(),
        1
    );
    assert_eq!(drops[1]["removed"][0]["relation"], "public.entries", "{drops:#?}");
    // and for a table that was rewritten since, by its number.
    let changed = drops[4]["changed_relations"].as_array().unwrap();
    assert!(changed.iter().any(|name| name == "public.accounts"), "PostgreSQL {version}: {drops:#?}");
    assert!(drops[5].get("changed_relations").is_none(), "{drops:#?}");
    let of_blog = history(&scene, &["--from", &from, "--drops", "--database", "blog"]).await;
    assert_eq!(of_blog.len(), 1, "{of_blog:#?}");

    // A restore finds the moment, with all that came before, of a table that has only partitions too, and in the database that is
    // meant,
    let into = scene.places.path().join("before");
    let restore = |relation: &'static str, more: &[&str]| {
        let arguments = ["restore", "--into", into.to_str().unwrap(), "--before-drop", relation, "--dry-run"];
        scene.seawall(&[&arguments[..], more].concat())
    };
    for (relation, to, drop) in [
        ("public.accounts", &between, &drops[4]),
        ("public.events", &early, &drops[3]),
        ("public.events_1", &early, &drops[2]),
        ("postgres.public.entries", &early, &drops[1]),
        ("blog.public.entries", &early, &of_blog[0]),
    ] {
        let plan = restore(relation, &["--json", "--to", to]).run_ok().await.stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(plan["target"]["lsn"], drop["lsn"], "{relation} of PostgreSQL {version}: {plan:#}");
        assert_eq!(plan["exclusive"], true, "{relation}: {plan:#}");
    }
    let said = restore("blog.public.entries", &["--to", &early]).run_ok().await.stdout;
    assert!(said.contains("dropped public.entries in database blog at"), "{said}");
    // which has to be said if it was dropped in both,
    let refused = restore("public.entries", &["--to", &early]).run_err(6).await.stderr;
    for command in ["--before-drop postgres.public.entries", "--before-drop blog.public.entries"] {
        assert!(refused.contains(command), "{command}: {refused}");
    }
    // or says which drops have no name, and does not choose where one of them may be meant,
    let target = |drop: &Value| format!("--to-lsn {} --to-exclusive", drop["lsn"].as_str().unwrap());
    let refused = restore("public.unseen", &[]).run_err(6).await.stderr;
    assert!(refused.contains(&target(&drops[5])), "{refused}");
    let refused = restore("public.accounts", &[]).run_err(6).await.stderr;
    assert!(refused.contains(&target(&drops[4])) && refused.contains(&target(&drops[5])), "{refused}");
    restore("accounts", &[]).run_err(2).await;
    // and comes back with the table.
    if version == support::postgres::DEBIAN {
        let command = format!("seawall restore --into DIR --before-drop public.accounts --to {between}");
        let entry = serde_json::json!({ "restore": command });
        let restored = undone(&scene, &entry, "named").await;
        let rows = restored.sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM accounts, seen").await.unwrap();
        assert_eq!(rows[0][0].as_deref(), Some("1 2"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_is_what_was_meant_in_any_zone_or_is_refused_before_anything_is_fetched() {
    // Given two drops with a moment between them, which is said in many ways
    let mut scene = Scene::new(support::postgres::DEBIAN, &[("autovacuum", "off")]).await;
    let micros = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let early = micros(Timestamp::now());
    scene.server.sql("CREATE TABLE one (id int); CREATE TABLE two (id int)").await.unwrap();
    let _archiver = scene.archived().await;
    scene.server.sql("DROP TABLE one").await.unwrap();
    let between = scene.server.value(NOW).await;
    let between: Timestamp = between.parse().unwrap();
    scene.server.sql("DROP TABLE two").await.unwrap();
    // (and a restart, which is told as well)
    scene.server.stop(StopMode::Fast).await.unwrap();
    scene.server.start().await.unwrap();
    scene.settle().await;
    // Its record has whole seconds, and so perhaps an earlier time than the drop in front of it.
    let told = history(&scene, &["--from", "10 minutes ago"]).await;
    let last = told.iter().rev().take(2).map(word).collect::<Vec<_>>();
    assert_eq!(last, ["restart", "drops 1"], "{told:#?}");
    let said = |zone: &str, form: &str| {
        let zoned = between.to_zoned(TimeZone::get(zone).unwrap());
        zoned.strftime(form).to_string().replace("ZONE", zone)
    };
    let into = scene.places.path().join("into");
    let restore = |target: &[&str]| {
        let arguments = [&["restore", "--into", into.to_str().unwrap()], target].concat();
        scene.seawall(&arguments)
    };
    let mut plans = Vec::new();
    for moment in [
        said("UTC", "%Y-%m-%dT%H:%M:%S%.fZ"),
        said("Asia/Kathmandu", "%Y-%m-%d %H:%M:%S%.f%:z"),
        said("America/St_Johns", "%Y-%m-%d %H:%M:%S%.f ZONE"),
        said("Pacific/Kiritimati", "%Y-%m-%dT%H:%M:%S%.f%:z[ZONE]"),
        said("Europe/Berlin", "%Y-%m-%d %H:%M:%S%.f"),
    ] {
        let here = |seawall: support::program::Seawall| seawall.env("TZ", "Europe/Berlin");
        // Then the history begins with what came behind it,
        let told = here(scene.seawall(&["history", "--json", "--drops", "--from", &moment])).run_ok().await.stdout;
        assert_eq!(told.lines().count(), 1, "{moment}: {told}");
        let told = here(scene.seawall(&["history", "--json", "--drops", "--to", &moment, "--from", "2 hours ago"]));
        let told = told.run_ok().await.stdout;
        assert_eq!(told.lines().count(), 1, "{moment}: {told}");
        // and a restore ends in front of that.
        let plan = here(restore(&["--dry-run", "--json", "--to", &moment])).run_ok().await.stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(plan["target"]["time"], between.to_string(), "{moment}");
        plans.push(plan["stop"].clone());
    }
    assert!(plans.windows(2).all(|pair| pair[0] == pair[1]), "{plans:#?}");
    // A length of time counts from now.
    let length = format!("{} ms ago", Timestamp::now().duration_since(between).as_millis() + 60_000);
    let told = history(&scene, &["--drops", "--from", &length]).await;
    assert_eq!(told.len(), 2, "{length}: {told:#?}");

    // When a moment is asked for that is not archived, or before the first backup, in words or as JSON, more than the two seconds behind
    // the backup that its checkpoint does not tell,
    scene.server.sql("SELECT pg_sleep(2)").await.unwrap();
    scene.server.sql("CREATE TABLE three (id int)").await.unwrap();
    scene.settle().await;
    scene.bucket.clear_log();
    let late = micros(Timestamp::now());
    for (moment, why, nearest) in [
        (early, "lies before the first backup", "The earliest moment that can certainly be reached is "),
        (late, "is not archived", "The newest moment that can be reached is "),
    ] {
        let refused = restore(&["--to", &moment]).run_err(6).await.stderr;
        assert!(refused.contains(why) && refused.contains(nearest), "{moment}: {refused}");
        let json = restore(&["--json", "--to", &moment]).run_err(6).await.stderr;
        let document: Value = serde_json::from_str(&json).unwrap();
        let [message, hint] = ["message", "hint"].map(|field| document["error"][field].as_str().unwrap().to_owned());
        assert!(document["error"]["kind"] == "refused" && message.contains(why), "{json}");
        // then the nearest one is named, which can be had,
        let named = hint.split_once(nearest).unwrap_or_else(|| panic!("{json}")).1;
        let named = named.split([' ', ';']).next().unwrap();
        let plan = restore(&["--dry-run", "--json", "--to", named]).run_ok().await.stdout;
        assert_eq!(serde_json::from_str::<Value>(&plan).unwrap()["target"]["time"], named, "{plan}");
    }
    // and nothing of a base backup was fetched, or written.
    let parts = scene.bucket.log().into_iter().filter(|(op, name)| *op == Op::Get && name.contains("/base/"));
    let parts: Vec<String> = parts.map(|(_, name)| name).filter(|name| !name.ends_with(".json")).collect();
    assert!(parts.is_empty() && !into.exists(), "{parts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_that_waited_for_a_standby_while_names_were_read_is_found() {
    // Given a base backup that has seen a table
    let scene = Scene::new(support::postgres::DEBIAN, &[("autovacuum", "off")]).await;
    scene.server.sql("CREATE TABLE accounts (id int)").await.unwrap();
    let _archiver = scene.archived().await;
    // when the table is dropped while commits wait for a standby that is not there,
    let standby = async |name: &str| {
        scene.server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await.unwrap();
        scene.server.sql("SELECT pg_reload_conf()").await.unwrap();
    };
    standby("nobody").await;
    let session = scene.server.connect("postgres").await.unwrap();
    let drop = tokio::spawn(async move { session.sql("DROP TABLE accounts").await });
    scene.wait("the drop to wait", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
    // another base backup reads the names, which are what everybody sees, and the drop is let go,
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    assert!(!drop.is_finished(), "the names were to be read before the drop was done");
    standby("").await;
    drop.await.unwrap().unwrap();
    scene.settle().await;
    // then it is found all the same.
    let arguments =
        ["restore", "--into", "/nonexistent/place", "--before-drop", "public.accounts", "--dry-run", "--json"];
    let plan: Value = serde_json::from_str(&scene.seawall(&arguments).run_ok().await.stdout).unwrap();
    let drops = history(&scene, &["--drops"]).await;
    assert_eq!(drops[0]["removed"][0]["relation"], "public.accounts", "{drops:#?}");
    assert_eq!(plan["target"]["lsn"], drops[0]["lsn"], "{plan:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_after_the_backup_is_known_by_the_name_that_the_archiver_read() {
    // Given an encrypted repository, an archiver that cannot read it, and a base backup
    let mut scene = Scene::new(support::postgres::DEBIAN, &[("autovacuum", "off")]).await;
    let (identity, public) = generate_identity();
    let file = scene.places.path().join("identity");
    std::fs::write(&file, identity.expose_secret()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    scene.environment.push(("SEAWALL_RECIPIENTS", public));
    let sql = async |text: &str| scene.server.sql(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
    let archiver = scene.archived().await;
    // when a table is made, an archiver reads names, and the table is dropped,
    sql("CREATE TABLE latecomer AS SELECT 1 AS id").await;
    drop(archiver);
    let names = |scene: &Scene| {
        let objects = scene.bucket.snapshot().into_iter();
        objects.filter(|(name, _)| name.contains("/names/")).collect::<Vec<_>>()
    };
    assert_eq!(names(&scene).len(), 1, "those of the base backup");
    let _archiver = scene.archiver().await;
    wait_for("the archiver to read names", PATIENCE * 3, async || (names(&scene).len() > 1).then_some(())).await;
    sql("DROP TABLE latecomer").await;
    scene.settle().await;
    // then it is found by its name, which nobody can read without the key.
    for (name, object) in names(&scene) {
        assert!(name.ends_with(".json.lz4.age"), "{name}");
        assert!(!object.bytes.windows(9).any(|bytes| bytes == b"latecomer"), "{name}");
    }
    scene.environment.push(("SEAWALL_IDENTITY", file.to_str().unwrap().to_owned()));
    let drops = history(&scene, &["--drops"]).await;
    assert_eq!(drops[0]["removed"][0]["relation"], "public.latecomer", "{drops:#?}");
    let arguments = ["--into", "/nonexistent/place", "--before-drop", "public.latecomer", "--dry-run", "--json"];
    let plan = scene.seawall(&[&["restore"], &arguments[..]].concat()).run_ok().await.stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["target"]["lsn"], drops[0]["lsn"], "{plan:#}");
    // And `verify` knows what the names are.
    scene.seawall(&["verify", "--deep"]).run_ok().await;
    let (damaged, _) = names(&scene).pop().unwrap();
    scene.bucket.flip_bit(&damaged, 900);
    let found = scene.seawall(&["verify", "--deep"]).run_err(7).await.stdout;
    assert!(found.contains(&damaged), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused() {
    let scene = Scene::new(support::postgres::DEBIAN, &[]).await;
    // Nothing is there yet.
    scene.seawall(&["history"]).run_err(6).await;
    let _archiver = scene.archived().await;
    scene.seawall(&["history", "--from", "13am"]).run_err(2).await;
    scene.seawall(&["history", "--timeline", "9"]).run_err(6).await;
}
