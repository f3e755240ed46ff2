//! Base backups whose connection is lost, by the built program, a real server and S3: what is stored of them a second time, and what
//! they restore to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use s3::StoredObject;
use scene::Scene;
use seawall::codec::encryption::generate_identity;
use seawall::repository::BackupDocument;
use seawall::scratch::{Server, ServerOptions};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use support::postgres::{DEBIAN, pgbench_tables, programs, row_digests};
use support::program::Running;
use support::proxy::{Proxy, Way};
use support::waiting::{PATIENCE, wait_for};

/// Files of so many bytes fill the data directory: they need no WAL.
const FILE_BYTES: usize = 20 << 20;

/// A server that is archived, and a way to it that can be cut.
struct Cut {
    scene: Scene,
    archiver: scene::Archiver,
    proxy: Proxy,
    /// About what a base backup of it sends.
    total_bytes: u64,
}

impl Cut {
    /// With `files` large files beside a pgbench database of 75 MB.
    async fn new(version: u32, settings: &[(&str, &str)], files: usize) -> Cut {
        let mut scene = Scene::new(version, settings).await;
        pgbench_tables(&scene.server, 5).await;
        scene.server.sql("CHECKPOINT").await.unwrap();
        let filled = scene.server.data_directory().join("filled");
        scene.server.user().create_directory(&filled).unwrap();
        for number in 0..files {
            let words = (0..FILE_BYTES as u64 / 8).flat_map(|at| (at * 31 + number as u64).to_le_bytes());
            std::fs::write(filled.join(format!("{number}")), words.collect::<Vec<u8>>()).unwrap();
        }
        scene.server.user().give_all(&filled).unwrap();
        let relations: u64 =
            scene.server.value("SELECT sum(pg_database_size(oid)) FROM pg_database").await.parse().unwrap();
        let archiver = scene.archiver().await;
        scene.settle().await;
        let proxy = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
        let through = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", proxy.address().port());
        scene.environment.push(("SEAWALL_PG", through));
        Cut { scene, archiver, proxy, total_bytes: relations + (files * FILE_BYTES) as u64 }
    }

    /// Waits until so much of what a backup sends has passed since `before`.
    async fn passed(&self, before: u64, share: f64) -> f64 {
        let wanted = before + (self.total_bytes as f64 * share) as u64;
        let reached = || self.proxy.bytes(Way::Down).checked_sub(wanted);
        wait_for("the backup to come so far", PATIENCE, async || reached()).await;
        (self.proxy.bytes(Way::Down) - before) as f64 / self.total_bytes as f64
    }

    /// Nobody comes through any more, and whoever is through is thrown out.
    fn cut(&self) {
        self.proxy.set(|network| network.refusing = true);
        self.proxy.reset();
    }

    /// What changes meanwhile: small tables, new rows, a new table.
    async fn write(&self) {
        for statement in [
            "UPDATE pgbench_tellers SET tbalance = tbalance + 1",
            "UPDATE pgbench_branches SET bbalance = bbalance + 1",
            "INSERT INTO pgbench_history SELECT 1, 1, n, 1, now() FROM generate_series(1, 10000) n",
            "CREATE TABLE made_meanwhile AS SELECT generate_series(1, 5000) AS number",
        ] {
            self.scene.server.sql(statement).await.unwrap();
        }
    }

    /// The parts in the bucket.
    fn parts(&self) -> BTreeMap<String, StoredObject> {
        let stored = self.scene.bucket.snapshot().into_iter();
        stored.filter(|(name, _)| name.contains("/base/") && name.contains(".tar.")).collect()
    }

    fn document(&self, id: &str) -> BackupDocument {
        serde_json::from_slice(&self.scene.bucket.get(&format!("backups/main/base/{id}/backup.json")).unwrap()).unwrap()
    }

    /// Restores the backup `id` to the end, and compares.
    async fn assert_restores(self, id: &str) {
        let expected = row_digests(&self.scene.server, "postgres").await;
        self.scene.settle().await;
        let Cut { scene, mut archiver, .. } = self;
        archiver.running.terminate().await;
        let into = scene.places.path().join("restored");
        let restored = scene.restoring(&into).arg("--backup").arg(id).run_ok().await;
        assert!(restored.stdout.contains(id) || restored.stderr.contains(id), "{}", restored.stderr);
        let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let settings = vec![("fsync".to_owned(), "off".to_owned())];
        let options = ServerOptions { environment, settings, ..ServerOptions::default() };
        let programs = programs(scene.version);
        let opened = Server::open(&programs, &into, options);
        let server = tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap();
        assert_eq!(row_digests(&server, "postgres").await, expected);
        for number in [0, 1] {
            let file = |directory: &std::path::Path| std::fs::read(directory.join(format!("filled/{number}"))).unwrap();
            assert!(file(server.data_directory()) == file(scene.server.data_directory()), "filled/{number}");
        }
    }
}

fn bytes(parts: &BTreeMap<String, StoredObject>) -> u64 {
    parts.values().map(|part| part.bytes.len() as u64).sum()
}

/// The id of the backup that a `seawall backup --json` took.
async fn taken(mut backup: Running) -> String {
    let status = backup.wait(PATIENCE * 4).await;
    assert!(status.success(), "{}", backup.stderr());
    let taken: serde_json::Value = serde_json::from_str(&backup.stdout()).unwrap();
    taken["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_at_sixty_per_cent_at_most_forty_five_are_stored_again() {
    // Given a base backup of more than half a gigabyte
    let cut = Cut::new(DEBIAN, &[], 26).await;
    let before = cut.proxy.bytes(Way::Down);
    let mut backup = cut.scene.seawall(&["backup", "--fast", "--json", "--compression", "none"]).start();
    // When the connection is lost at 60 %, nobody is let through for a while, and clients write
    let share = cut.passed(before, 0.6).await;
    cut.cut();
    backup.wait_for_text("beginning the base backup again").await;
    let stored = cut.parts();
    cut.write().await;
    cut.proxy.heal();
    let id = taken(backup).await;
    // Then it ends under the name that it began with, and stores no more than what was not there
    let all = cut.parts();
    let document = cut.document(&id);
    assert!(all.keys().all(|name| name.contains(&id)), "a second backup was begun: {:?}", all.keys());
    let again = bytes(&all) - bytes(&stored);
    let of_all = again as f64 / document.stored_bytes as f64;
    println!("cut at {share:.3}: {of_all:.3} of {} bytes were stored again", document.stored_bytes);
    assert!(of_all <= 0.45, "cut at {share:.3}, {of_all:.3} of the backup were stored again");
    // and it restores, though parts of both attempts are there.
    assert!(document.parts.len() < all.len(), "nothing is left of what has changed");
    cut.assert_restores(&id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_encrypted_backup_is_gone_on_with_by_another_process() {
    // Given an encrypted base backup that is killed in the middle
    let mut cut = Cut::new(DEBIAN, &[], 10).await;
    let (secret, public) = generate_identity();
    let key = cut.scene.places.path().join("key.txt");
    std::fs::write(&key, age::secrecy::ExposeSecret::expose_secret(&secret)).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    cut.scene.server.user().give_all(&key).unwrap();
    cut.scene.environment.push(("SEAWALL_RECIPIENTS", public));
    cut.scene.environment.push(("SEAWALL_IDENTITY", key.display().to_string()));
    let before = cut.proxy.bytes(Way::Down);
    let mut backup = cut.scene.seawall(&["backup", "--fast"]).start();
    cut.passed(before, 0.6).await;
    backup.kill();
    let stored = cut.parts();
    cut.write().await;
    // When `list` is asked for its name, and another process goes on with it
    let listed = cut.scene.seawall(&["list"]).run_ok().await.stdout;
    let line = listed.lines().find(|line| line.starts_with("unfinished: ")).unwrap();
    let id = line.split_whitespace().nth(1).unwrap().to_owned();
    assert!(line.contains(&format!("seawall backup --resume {id}")), "{line}");
    let resumed = cut.scene.seawall(&["backup", "--fast", "--json", "--resume", &id]).start();
    assert_eq!(taken(resumed).await, id);
    // Then it has taken what was there
    let document = cut.document(&id);
    let prefix = format!("backups/main/base/{id}/");
    let used = document.parts.iter().filter(|part| stored.contains_key(&format!("{prefix}{}.tar.lz4.age", part.name)));
    let used: u64 = used.map(|part| part.plain_bytes).sum();
    assert!(used > document.plain_bytes / 4, "only {used} of {} bytes were there and used", document.plain_bytes);
    // and is finished for good
    let again = cut.scene.seawall(&["backup", "--resume", &id]).run_err(6).await;
    assert!(again.stderr.contains("is finished"), "{}", again.stderr);
    cut.assert_restores(&id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_backup_goes_on_with_the_same_reference() {
    // Given a full backup, changes since, and an incremental one under way, most of which is files that are no relations
    let mut cut = Cut::new(17, &[("summarize_wal", "on"), ("autovacuum", "off")], 8).await;
    let full = taken(cut.scene.seawall(&["backup", "--fast", "--json"]).start()).await;
    cut.write().await;
    cut.scene.settle().await;
    cut.total_bytes = 8 * FILE_BYTES as u64;
    let before = cut.proxy.bytes(Way::Down);
    let mut backup = cut.scene.seawall(&["backup", "--fast", "--json", "--type", "incremental"]).start();
    // When the connection is lost in the middle, and relations are cut before it is there again
    cut.passed(before, 0.5).await;
    cut.cut();
    backup.wait_for_text("beginning the base backup again").await;
    let stored = cut.parts();
    cut.scene.server.sql("TRUNCATE made_meanwhile").await.unwrap();
    cut.scene.server.sql("INSERT INTO made_meanwhile VALUES (1)").await.unwrap();
    cut.proxy.heal();
    let id = taken(backup).await;
    // Then it builds on what it was begun on, uses what was stored, and restores.
    let document = cut.document(&id);
    assert_eq!(document.reference.as_ref().map(ToString::to_string), Some(full));
    let used = document.parts.iter().filter(|part| stored.keys().any(|name| name.contains(&part.name.to_string())));
    assert!(used.count() > 1, "nothing of the first attempt was used: {:?}", stored.keys());
    cut.assert_restores(&id).await;
}
