//! `seawall extract` as it is typed: what was dropped comes back by every way out, on every version, and nothing else is left.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

use nix::sys::signal::Signal;
use s3::Op;
use scene::{Archiver, Scene};
use seawall::scratch::{Directory, Unprivileged};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::postgres::{DEBIAN, clients, row_digests, scratch_directory};
use support::program::Seawall;
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

type Digests = BTreeMap<String, (u64, String)>;

/// Of the role that loads.
const PASSWORD: &str = "not-for-the-process-list";

/// A database whose table of orders was dropped after the base backup, and after more rows.
struct Story {
    scene: Scene,
    archiver: Archiver,
    /// What every table held before the drop.
    before: Digests,
    scratch: TempDir,
    out: TempDir,
}

impl Story {
    async fn new(version: u32) -> Story {
        let scene = Scene::new(version, &[("autovacuum", "off")]).await;
        scene.server.sql("CREATE DATABASE shop").await.unwrap();
        scene.server.sql("CREATE DATABASE blog").await.unwrap();
        let session = scene.server.connect("shop").await.unwrap();
        session
            .sql(
                "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, cents int);
                 INSERT INTO orders (customer, cents) SELECT CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN 'O''Neil, \"Pat\"'
                   WHEN 2 THEN E'two\\nlines' ELSE 'é' || n END, n FROM generate_series(1, 5000) n;
                 CREATE TABLE items (order_id bigint REFERENCES orders, n int);
                 INSERT INTO items SELECT n, n FROM generate_series(1, 300) n;
                 CREATE SCHEMA sales;
                 CREATE TABLE sales.events (id int, at date) PARTITION BY HASH (id);
                 CREATE TABLE sales.events_0 PARTITION OF sales.events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
                 CREATE TABLE sales.events_1 PARTITION OF sales.events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
                 CREATE TABLE sales.\"Odd \"\"/name\" AS SELECT 1 AS one;
                 INSERT INTO sales.events SELECT n, '2026-11-20' FROM generate_series(1, 100) n",
            )
            .await
            .unwrap();
        // The other servers of the tests come without extensions.
        if version == DEBIAN {
            session.sql("CREATE EXTENSION citext; CREATE TABLE tags AS SELECT 'Tag'::citext AS tag").await.unwrap();
        }
        let archiver = scene.archived().await;
        session
            .sql("INSERT INTO orders (customer, cents) SELECT 'late', n FROM generate_series(1, 1000) n")
            .await
            .unwrap();
        let before = row_digests(&scene.server, "shop").await;
        assert_eq!(before["public.orders"].0, 6000);
        session.sql("DROP TABLE orders CASCADE").await.unwrap();
        session.sql("INSERT INTO sales.events SELECT n, '2026-11-21' FROM generate_series(1, 50) n").await.unwrap();
        scene.server.sql("CREATE DATABASE young").await.unwrap();
        scene.settle().await;
        Story { scene, archiver, before, scratch: scratch_directory(), out: scratch_directory() }
    }

    /// The command, to be run: back to before the drop.
    fn extract(&self, arguments: &[&str]) -> Seawall {
        self.extract_from("shop", &[&["--before-drop", "public.orders"], arguments].concat())
    }

    /// The command, to be run on another database.
    fn extract_from(&self, database: &str, arguments: &[&str]) -> Seawall {
        let seawall = self.scene.seawall(&["extract", "--database", database, "--scratch"]).arg(self.scratch.path());
        let seawall = arguments.iter().fold(seawall, |seawall, argument| seawall.arg(argument));
        let bin = self.scene.server.programs().bin.clone();
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{}:{path}", clients(16).display(), clients(18).display());
        seawall.env("SEAWALL_PG_BIN", bin).env("PATH", path)
    }

    fn out(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    /// What the running source is reached by from here.
    fn live(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.scene.server.port())
    }

    /// Runs a client program of PostgreSQL against a new database; gives what every table in it holds then.
    async fn loaded(&self, program: &str, database: &str, from: &Path) -> Digests {
        self.scene.server.sql(&format!("CREATE DATABASE {database}")).await.unwrap();
        let mut command = Command::new(clients(self.scene.version).join(program));
        command.args(["--dbname", &self.live(database)]).stdin(Stdio::null());
        match program {
            "psql" => command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file"]).arg(from),
            _ => command.arg("--exit-on-error").arg(from),
        };
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{program} {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
        row_digests(&self.scene.server, database).await
    }

    /// What was there before the drop of these tables, under another schema.
    fn expected(&self, tables: &[&str], schema: &str) -> Digests {
        let renamed = |table: &&str| {
            let (_, name) = table.split_once('.').unwrap();
            (format!("{schema}.{name}"), self.before[*table].clone())
        };
        tables.iter().map(renamed).collect()
    }

    /// What the source holds in a schema now.
    async fn now_in(&self, schema: &str) -> Digests {
        let all = row_digests(&self.scene.server, "shop").await;
        all.into_iter().filter(|(name, _)| name.starts_with(&format!("{schema}."))).collect()
    }

    fn assert_nothing_is_left(&self, out: &[&str]) {
        let names = |directory: &TempDir| -> Vec<String> {
            let entries = std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name());
            let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&self.scratch), Vec::<String>::new(), "left in the scratch directory");
        assert_eq!(names(&self.out), out, "left where the output goes");
        let server = self.scratch.path().display().to_string();
        let left: Vec<String> = processes().into_values().filter(|line| line.contains(&server)).collect();
        assert!(left.is_empty(), "still running: {left:?}");
    }
}

/// The command line of every process, by its number.
fn processes() -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let line = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    };
    numbers.filter_map(line).collect()
}

for_every_version!(what_was_dropped_comes_back_by_every_way:
    on_13 = 13, on_14 = 14, on_15 = 15, on_16 = 16, on_17 = 17, on_18 = 18);

async fn what_was_dropped_comes_back_by_every_way(version: u32) {
    let story = Story::new(version).await;
    a_table_in_a_custom_dump(&story).await;
    a_whole_database_in_sql(&story).await;
    several_tables_in_a_zip(&story).await;
    the_rows_of_a_query(&story).await;
    a_schema_beside_the_live_one(&story).await;
    tables_beside_the_live_ones(&story).await;
    story.assert_nothing_is_left(&["orders.dump", "shop.sql", "some.zip"]);
    assert!({ story.archiver }.running.is_running(), "the archiver goes on");
}

async fn a_table_in_a_custom_dump(story: &Story) {
    let out = story.out("orders.dump");
    let said = story.extract(&["--table", "public.orders", "--out", out.to_str().unwrap()]).run_ok().await.stdout;
    assert!(said.contains("dropped public.orders") && said.contains("SHA-256"), "{said}");
    let digest = hex(&std::fs::read(&out).unwrap());
    assert!(said.contains(&digest), "{digest} is not in {said}");
    let loaded = story.loaded("pg_restore", "from_custom", &out).await;
    assert_eq!(loaded, story.expected(&["public.orders"], "public"), "PostgreSQL {}", story.scene.version);
}

async fn a_whole_database_in_sql(story: &Story) {
    let out = story.out("shop.sql");
    story.extract(&["--out", out.to_str().unwrap()]).run_ok().await;
    assert_eq!(story.loaded("psql", "from_plain", &out).await, story.before, "PostgreSQL {}", story.scene.version);
}

async fn several_tables_in_a_zip(story: &Story) {
    let out = story.out("some.zip");
    let tables = ["--table", "orders", "--table", "sales.events", "--table", "sales.Odd \"/name"];
    story.extract(&tables).arg("--out").arg(&out).run_ok().await;
    let mut zip = zip::ZipArchive::new(std::fs::File::open(&out).unwrap()).unwrap();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        zip.by_name(name).unwrap_or_else(|error| panic!("{name}: {error}")).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    assert_eq!(manifest["database"], "shop", "{manifest}");
    let files: Vec<(&str, u64)> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let name = file["name"].as_str().unwrap();
            let bytes = read(name);
            assert_eq!(file["sha256"], hex(&bytes), "{name}");
            assert_eq!(file["bytes"], bytes.len(), "{name}");
            (name, file["rows"].as_u64().unwrap())
        })
        .collect();
    // Partitions come with the whole, without the rows that came later
    assert_eq!(files, [("public.orders.csv", 6000), ("sales.events.csv", 100), ("sales.Odd___name.csv", 1)]);
    let orders = String::from_utf8(read("public.orders.csv")).unwrap();
    let first = "id,customer,cents\n1,\"O'Neil, \"\"Pat\"\"\",1\n2,\"two\nlines\",2\n3,é3,3\n4,,4\n";
    assert!(orders.starts_with(first), "{}", orders.chars().take(200).collect::<String>());
}

async fn the_rows_of_a_query(story: &Story) {
    let query = "SELECT id, cents FROM orders WHERE customer = 'late' ORDER BY id LIMIT 2 -- the first";
    let said = story.extract(&["--query", query, "--out", "-", "--format", "csv"]).run_ok().await.stdout;
    assert_eq!(said, "id,cents\n5001,1\n5002,2\n", "standard output has the rows and nothing else");
}

async fn a_schema_beside_the_live_one(story: &Story) {
    let live = story.now_in("public").await;
    let into = story.live("shop");
    let said = story.extract(&["--schema", "public", "--into", &into, "--as-schema", "before"]).run_ok().await.stdout;
    assert!(said.contains("as schema before"), "{said}");
    let mut tables = vec!["public.orders", "public.items"];
    if story.scene.version == DEBIAN {
        // Its column is of a type of the other database, whose extension stays where it is.
        tables.push("public.tags");
    }
    assert_eq!(story.now_in("before").await, story.expected(&tables, "before"));
    assert_eq!(story.now_in("public").await, live, "what is live is as it was");
    // Keys within the schema are there, and what is generated goes on behind what was taken
    let session = story.scene.server.connect("shop").await.unwrap();
    let refused = session.sql("INSERT INTO before.items VALUES (99999, 1)").await.unwrap_err().to_string();
    assert!(refused.contains("foreign key"), "{refused}");
    let row = session.sql("INSERT INTO before.orders (cents) VALUES (1) RETURNING id").await.unwrap();
    // (WAL has the sequence some numbers ahead)
    let id: u64 = row[0][0].as_deref().unwrap().parse().unwrap();
    assert!(id > 6000, "{id}");
    // and what is there already is refused before anything is fetched
    let refused = story.extract(&["--schema", "public", "--into", &into, "--as-schema", "before"]).run_err(6).await;
    assert!(refused.stderr.contains("schema \"before\" is there already"), "{}", refused.stderr);
}

async fn tables_beside_the_live_ones(story: &Story) {
    let tables = ["--table", "public.items", "--table", "sales.events"];
    let into = ["--into", &story.live("shop"), "--as-schema", "It's \"then\""];
    let finished = story.extract(&[&tables[..], &into[..]].concat()).run_ok().await;
    // A key that leads to a table which is not taken would tie the copy to the live tables
    assert!(finished.stderr.contains("items_order_id_fkey"), "{}", finished.stderr);
    let expected = story.expected(&["public.items", "sales.events_0", "sales.events_1"], "\"It's \"\"then\"\"\"");
    assert_eq!(story.now_in("\"It's \"\"then\"\"\"").await, expected);
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_and_what_is_refused() {
    let story = Story::new(DEBIAN).await;
    // An estimate fetches no part of the backup, and needs no place to write to
    story.scene.bucket.clear_log();
    let estimate = story.extract(&["--estimate", "--json"]).run_ok().await.stdout;
    let estimate: serde_json::Value = serde_json::from_str(&estimate).unwrap();
    assert_eq!(estimate["databases"][0], "shop");
    assert!(estimate["fetched_bytes"].as_u64().unwrap() <= estimate["stored_bytes"].as_u64().unwrap(), "{estimate}");
    let whole = |log: Vec<(Op, String)>| -> Vec<String> {
        let got = log.into_iter().filter(|(op, key)| *op == Op::Get && key.contains(".tar"));
        got.map(|(_, key)| key).collect()
    };
    let got = whole(story.scene.bucket.log());
    assert!(got.len() <= 2, "of the parts nothing but the catalogue of databases is read: {got:?}");
    let said = story.extract(&["--estimate"]).run_ok().await.stdout;
    assert!(said.contains("database shop alone") && said.contains("of WAL"), "{said}");
    assert!(said.contains("\nduration not known: no drill has measured it"), "{said}");
    story.assert_nothing_is_left(&[]);
    // A directory of CSV, and one of pg_dump's; what an extraction left that was killed goes with the next, and nothing else
    let mut left = Directory::create(story.scratch.path(), "seawall-extract").unwrap();
    left.keep();
    drop(left);
    let theirs = story.scratch.path().join("seawall-extract-orders");
    std::fs::create_dir(&theirs).unwrap();
    Unprivileged::find().unwrap().give(&theirs).unwrap();
    let (csv, dump) = (story.out("csv/"), story.out("dump/"));
    story.extract(&["--schema", "sales", "--format", "csv", "--out", csv.to_str().unwrap()]).run_ok().await;
    std::fs::remove_dir(theirs).unwrap();
    let manifest = std::fs::read_to_string(csv.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["files"].as_array().unwrap().len(), 2, "{manifest}");
    assert_eq!(std::fs::read_to_string(csv.join("sales.Odd___name.csv")).unwrap(), "one\n1\n");
    story.extract(&["--table", "public.orders", "--out", dump.to_str().unwrap()]).run_ok().await;
    let loaded = story.loaded("pg_restore", "from_directory", &dump).await;
    assert_eq!(loaded, story.expected(&["public.orders"], "public"));
    // What is there is not touched, and nothing is fetched for it
    let there = story.out("there.csv");
    std::fs::write(&there, "mine").unwrap();
    story.scene.bucket.clear_log();
    let refused = story.extract(&["--table", "orders", "--out", there.to_str().unwrap()]).run_err(6).await;
    assert!(refused.stderr.contains("is there already"), "{}", refused.stderr);
    assert_eq!(whole(story.scene.bucket.log()), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "mine");
    // What was not there then is named, with what was
    for (what, says, instead) in [
        (["--table", "public.order"], "no table \"public.order\" in database shop", "public.orders"),
        (["--schema", "sale"], "no schema \"sale\"", "sales"),
        (["--query", "SELECT * FROM nowhere"], "nowhere", ""),
    ] {
        let out = story.out("never.zip");
        let code = if what[0] == "--query" { 4 } else { 6 };
        let refused = story.extract(&what).arg("--out").arg(&out).run_err(code).await.stderr;
        assert!(refused.contains(says) && refused.contains(instead), "{refused}");
        assert!(!out.exists());
    }
    let refused = story.extract_from("shoe", &["--out", "never.sql"]).run_err(6).await.stderr;
    assert!(refused.contains("shoe") && refused.contains("(shop)"), "{refused}");
    // A database that is younger than the backup is not in it: recovery of the whole cluster makes it
    let query = ["--query", "SELECT current_database()", "--out", "-"];
    story.extract_from("young", &query).run_err(6).await;
    let said = story.extract_from("young", &[&query[..], &["--whole-cluster"]].concat()).run_ok().await.stdout;
    assert_eq!(said, "current_database\nyoung\n");
    let refused = story.extract_from("shoe", &[&query[..], &["--whole-cluster"]].concat()).run_err(6).await.stderr;
    assert!(refused.contains("no database \"shoe\"") && refused.contains("blog"), "{refused}");
    story.assert_nothing_is_left(&["csv", "dump", "there.csv"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_in_tablespaces_comes_out_of_an_encrypted_chain() {
    // Given a server with a tablespace, archived into an encrypted repository by somebody who cannot read it,
    let mut scene = Scene::new(18, &[("autovacuum", "off"), ("summarize_wal", "on")]).await;
    let key = scene.places.path().join("key");
    let made = Seawall::new(["keygen", "--out"]).arg(&key).run_ok().await;
    scene.server.user().give_all(&key).unwrap();
    scene.environment.push(("SEAWALL_RECIPIENTS", made.stdout.trim().to_owned()));
    let (early, late) = (scene.server.side_directory("early"), scene.server.side_directory("late"));
    scene.server.sql(&format!("CREATE TABLESPACE early LOCATION '{}'", early.display())).await.unwrap();
    scene.server.sql("CREATE DATABASE shop").await.unwrap();
    let session = scene.server.connect("shop").await.unwrap();
    let fill = |table: &str, from: u32| {
        format!("INSERT INTO {table} SELECT n, md5(n::text) FROM generate_series({from}, {from} + 2999) n")
    };
    session.sql("CREATE TABLE orders (id int PRIMARY KEY, note text) TABLESPACE early").await.unwrap();
    session.sql(&fill("orders", 1)).await.unwrap();
    let archiver = scene.archived().await;
    // with an incremental backup behind more rows, and a tablespace that was made behind that
    session.sql(&fill("orders", 3001)).await.unwrap();
    scene.settle().await;
    let taken = scene.seawall(&["backup", "--fast", "--json", "--type", "incremental"]).run_ok().await.stdout;
    let taken: serde_json::Value = serde_json::from_str(&taken).unwrap();
    assert_eq!(taken["type"], "incremental", "{taken}");
    scene.server.sql(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display())).await.unwrap();
    session.sql("CREATE TABLE notes (id int, note text) TABLESPACE late").await.unwrap();
    session.sql(&fill("notes", 1)).await.unwrap();
    session.sql("UPDATE orders SET note = 'changed' WHERE id % 7 = 0").await.unwrap();
    let before = row_digests(&scene.server, "shop").await;
    session.sql("SELECT pg_create_restore_point('then')").await.unwrap();
    session.sql("DROP TABLE orders, notes").await.unwrap();
    scene.settle().await;
    let story = Story { scene, archiver, before, scratch: scratch_directory(), out: scratch_directory() };
    let out = story.out("both.dump");
    let tables = ["--to-name", "then", "--table", "orders", "--table", "notes", "--out", out.to_str().unwrap()];
    // When it is wanted back without the private key, then nothing comes of it
    let refused = story.extract_from("shop", &tables).run_err(3).await.stderr;
    assert!(refused.contains("encrypted"), "{refused}");
    story.assert_nothing_is_left(&[]);
    // and with it, from the files of that one database,
    let key = ["--identity", key.to_str().unwrap(), "--json"];
    let alone = [&tables[..], &key, &["--estimate"]].concat();
    let estimated = story.extract_from("shop", &alone).run_ok().await.stdout;
    let estimated: serde_json::Value = serde_json::from_str(&estimated).unwrap();
    assert_eq!(estimated["databases"], serde_json::json!(["shop"]), "{estimated:#}");
    // all of both tables does, out of the chain,
    let said = story.extract_from("shop", &[&tables[..], &key].concat());
    let said: serde_json::Value = serde_json::from_str(&said.run_ok().await.stdout).unwrap();
    assert_eq!(said["backup"], taken["id"], "{said:#}");
    let loaded = story.loaded("pg_restore", "again", &out).await;
    assert_eq!(loaded, story.expected(&["public.orders", "public.notes"], "public"));
    assert_eq!(loaded["public.orders"].0, 6000);
    // while the source's tablespaces stay where they are, and nothing else.
    for place in [&early, &late] {
        assert!(std::fs::read_dir(place).unwrap().next().is_some(), "{} was emptied", place.display());
    }
    story.assert_nothing_is_left(&["both.dump"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruption_leaves_nothing_and_no_password_is_to_be_seen() {
    let story = Story::new(DEBIAN).await;
    // Given a role that needs a password, and somebody who is making a schema of the same name
    let rules = story.scene.server.socket_directory().join("pg_hba.conf");
    let open = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("host all loader 127.0.0.1/32 scram-sha-256\n{open}")).unwrap();
    let role =
        format!("SET password_encryption = 'scram-sha-256'; CREATE ROLE loader SUPERUSER LOGIN PASSWORD '{PASSWORD}'");
    story.scene.server.sql(&role).await.unwrap();
    story.scene.server.sql("SELECT pg_reload_conf()").await.unwrap();
    let other = story.scene.server.connect("shop").await.unwrap();
    let into = story.live("shop").replace("user=postgres", "user=loader");
    let extract =
        || story.extract(&["--schema", "public", "--into", &into, "--as-schema", "before"]).env("PGPASSWORD", PASSWORD);
    other.sql("BEGIN").await.unwrap();
    other.sql("CREATE SCHEMA before").await.unwrap();
    let mut running = extract().start();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'loader' AND wait_event_type = 'Lock'";
    story.scene.wait("pg_restore to wait", waits).await;
    // When everything is there to be seen, then the password is in no command line
    let lines = processes();
    assert!(lines.values().any(|line| line.contains("pg_restore")), "pg_restore runs: {lines:?}");
    assert!(lines.values().all(|line| !line.contains(PASSWORD)), "{lines:?}");
    // and when it is told to stop, it leaves nothing
    assert_eq!(running.terminate().await.code(), Some(9));
    assert!(running.stderr().contains("was interrupted"), "{}", running.stderr());
    story.assert_nothing_is_left(&[]);
    let gone = "SELECT (count(*) = 0)::int FROM pg_stat_activity WHERE usename = 'loader'";
    story.scene.wait("its transaction to be rolled back", gone).await;
    // Nor does one that fails in the end
    let running = extract().start();
    story.scene.wait("pg_restore to wait", waits).await;
    other.sql("COMMIT").await.unwrap();
    let mut running = running;
    assert_eq!(running.wait(PATIENCE).await.code(), Some(4), "{}", running.stderr());
    assert!(running.stderr().contains("rolled back"), "{}", running.stderr());
    assert!(story.now_in("before").await.is_empty());
    story.assert_nothing_is_left(&[]);
    // Nor one that is told to stop while it writes to a file
    let out = story.out("slow.csv");
    let mut running = story.extract(&["--query", "SELECT pg_sleep(600)", "--out", out.to_str().unwrap()]).start();
    wait_for("the query to run", PATIENCE * 2, async || {
        assert!(running.is_running(), "{}", running.stderr());
        let temporary = std::fs::read_dir(story.out.path()).unwrap().next()?.unwrap().path();
        temporary.join("slow.csv").exists().then_some(())
    })
    .await;
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait(PATIENCE).await.code(), Some(9));
    story.assert_nothing_is_left(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_is_not_tied_to_what_is_live() {
    // Given tables that hang together, in a database whose own settings are in the way
    let scene = Scene::new(DEBIAN, &[("autovacuum", "off")]).await;
    scene.server.sql("CREATE DATABASE shop").await.unwrap();
    let session = scene.server.connect("shop").await.unwrap();
    session
        .sql(
            "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100);
             CREATE TABLE notes (event int REFERENCES events);
             CREATE TABLE base (id int, name text);
             CREATE TABLE child (extra int) INHERITS (base);
             CREATE SCHEMA sales;
             CREATE TABLE sales.orders (id int PRIMARY KEY, note text);
             INSERT INTO events SELECT n FROM generate_series(1, 10) n;
             INSERT INTO notes SELECT n FROM generate_series(1, 10) n;
             INSERT INTO child SELECT n, 'then', n FROM generate_series(1, 20) n;
             INSERT INTO sales.orders SELECT n, 'then' FROM generate_series(1, 30) n;
             CREATE SCHEMA reports;
             CREATE TABLE reports.own AS SELECT 1 AS one;
             CREATE VIEW reports.\"Orders\" AS SELECT id, note FROM sales.orders;
             CREATE MATERIALIZED VIEW reports.notes AS SELECT note, count(*) AS orders FROM reports.\"Orders\" GROUP BY note;
             CREATE UNIQUE INDEX notes_by_note ON reports.notes (note);
             CREATE MATERIALIZED VIEW reports.sum AS SELECT sum(orders) AS orders FROM reports.notes;
             CREATE MATERIALIZED VIEW reports.ones AS SELECT one FROM reports.own;
             CREATE VIEW reports.most WITH (security_barrier=true) AS SELECT note FROM reports.notes WHERE orders > 1",
        )
        .await
        .unwrap();
    let archiver = scene.archived().await;
    for setting in ["statement_timeout = '500ms'", "default_transaction_read_only = on", "search_path = sales, public"]
    {
        scene.server.sql(&format!("ALTER DATABASE shop SET {setting}")).await.unwrap();
    }
    scene.server.sql("SELECT pg_create_restore_point('then')").await.unwrap();
    session.sql("DELETE FROM sales.orders").await.unwrap();
    scene.settle().await;
    // and the same, without rows, in another database that is live
    scene.server.sql("CREATE DATABASE live").await.unwrap();
    let live = scene.server.connect("live").await.unwrap();
    live.sql(
        "CREATE TABLE public.events (id int) PARTITION BY RANGE (id);
         CREATE TABLE public.base (id int, name text);
         CREATE SCHEMA sales; CREATE TABLE sales.orders (id int, note text)",
    )
    .await
    .unwrap();
    let before = Digests::new();
    let story = Story { scene, archiver, before, scratch: scratch_directory(), out: scratch_directory() };
    let load = async |what: &[&str], into: &str, schema: &str| -> String {
        let into = story.live(into);
        let arguments = [what, &["--to-name", "then", "--into", &into, "--as-schema", schema]].concat();
        story.extract_from("shop", &arguments).run_ok().await.stderr
    };
    let one = async |database: &str, question: &str| -> String {
        let session = story.scene.server.connect(database).await.unwrap();
        session.sql(question).await.unwrap()[0][0].clone().unwrap_or_default()
    };
    // When a lone partition is loaded beside a parent of that name, then the parent does not get it
    let said = load(&["--table", "events_1"], "live", "partition").await;
    assert!(said.contains("is no partition of public.events any more"), "{said}");
    assert_eq!(one("live", "SELECT count(*) FROM public.events").await, "0");
    assert_eq!(one("live", "SELECT count(*) FROM partition.events_1").await, "10");
    // nor does one that it inherited from
    let said = load(&["--table", "child"], "live", "inherited").await;
    assert!(said.contains("does not inherit from public.base any more"), "{said}");
    assert_eq!(one("live", "SELECT count(*) FROM public.base").await, "0");
    assert_eq!(one("live", "SELECT sum(extra) || min(name) FROM inherited.child").await, "210then");
    // When the new schema has the name of the old one, then that is no matter
    story.scene.server.sql("CREATE DATABASE empty").await.unwrap();
    load(&["--table", "sales.orders"], "empty", "sales").await;
    assert_eq!(one("empty", "SELECT count(*) FROM sales.orders").await, "30");
    // When views read what stays behind, then materialised ones have the rows of then, with all that hangs on them
    let said = load(&["--schema", "reports"], "live", "before").await;
    for warning in [
        "the materialised view before.notes is a table there",
        "the materialised view before.sum is a table there",
        "the view before.\"Orders\" reads sales.orders",
    ] {
        assert!(said.contains(warning), "{warning:?} is not in {said}");
    }
    assert!(!said.contains("before.ones") && !said.contains("before.most"), "{said}");
    assert_eq!(one("live", "SELECT note || orders FROM before.notes").await, "then30");
    assert_eq!(one("live", "SELECT orders FROM before.sum").await, "30");
    assert_eq!(one("live", "SELECT note FROM before.most").await, "then");
    assert_eq!(one("live", "SELECT count(*) FROM before.\"Orders\"").await, "0");
    assert_eq!(
        one("live", "SELECT reloptions FROM pg_class WHERE oid = 'before.most'::regclass").await,
        "{security_barrier=true}"
    );
    assert_eq!(one("live", "SELECT relkind FROM pg_class WHERE oid = 'before.ones'::regclass").await, "m");
    assert_eq!(
        one("live", "SELECT indisunique FROM pg_index WHERE indexrelid = 'before.notes_by_note'::regclass").await,
        "t"
    );
    // and a query takes the time that it needs, on the search path of its database, where there is no other database left
    let template = story.scene.server.connect("template1").await.unwrap();
    template.sql("DROP DATABASE postgres WITH (FORCE)").await.unwrap();
    template.sql("SELECT pg_create_restore_point('later')").await.unwrap();
    // (the restore point alone would not be flushed)
    template.sql("COMMENT ON DATABASE shop IS 'alone'").await.unwrap();
    story.scene.settle().await;
    let query = ["--query", "SELECT count(*), pg_sleep(1) FROM orders", "--to-name", "later", "--out", "-"];
    assert_eq!(story.extract_from("shop", &query).run_ok().await.stdout, "count,pg_sleep\n0,\"\"\n");
    story.assert_nothing_is_left(&[]);
}
