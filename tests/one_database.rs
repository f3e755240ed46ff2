//! `restore --database` on real servers: recovery passes over the files that are left out, and the rest is as it was.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use scene::Scene;
use seawall::scratch::{Server, ServerOptions, StopMode};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use support::postgres::{programs, row_digests};
use support::waiting::PATIENCE;

async fn open(scene: &Scene, into: &Path) -> Server {
    let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let programs = programs(scene.version);
    tokio::time::timeout(PATIENCE * 2, Server::open(&programs, into, options)).await.expect("recovery ends").unwrap()
}

async fn run(server: &Server, database: &str, statements: &[&str]) {
    let session = server.connect(database).await.unwrap();
    for statement in statements {
        session.sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_database_comes_back_and_the_others_can_be_dropped() {
    for version in [13, 18] {
        one_of_three(version).await;
    }
}

async fn one_of_three(version: u32) {
    let scene = Scene::new(version, &[("autovacuum", "off")]).await;
    // Given three databases with tables, in which no page is known to be visible to all
    let filled = "CREATE TABLE rows AS SELECT n, repeat('x', 100) AS text FROM generate_series(1, 20000) AS n";
    for database in ["shop", "cr\"m", "blog"] {
        scene.server.sql(&format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\""))).await.unwrap();
        run(&scene.server, database, &[filled, "CREATE INDEX ON rows (n)"]).await;
    }
    let archiver = scene.archived().await;
    // and records of every kind since the backup, among them those for which pages are not written in full
    for database in ["shop", "cr\"m", "blog"] {
        let changes = [
            "VACUUM rows",
            "DELETE FROM rows WHERE n % 3 = 0",
            "VACUUM (FREEZE) rows",
            "CHECKPOINT",
            "UPDATE rows SET text = 'y' WHERE n % 5 = 0",
            "VACUUM rows",
            "CREATE TABLE more AS SELECT * FROM rows",
            "DELETE FROM more WHERE n > 1000",
            "VACUUM more",
            "TRUNCATE more",
            "CREATE INDEX ON rows (text)",
        ];
        run(&scene.server, database, &changes).await;
    }
    run(&scene.server, "blog", &["DROP TABLE more"]).await;
    scene.server.sql("CREATE DATABASE later").await.unwrap();
    run(&scene.server, "later", &[filled]).await;
    let digests = row_digests(&scene.server, "shop").await;
    scene.settle().await;
    drop(archiver);
    // When one is restored
    let into = scene.places.path().join("shop");
    let nothing = scene.restoring(&into).arg("--database").arg("shoe").run_err(6).await;
    assert!(nothing.stderr.contains("(shop)") && !into.exists(), "{}", nothing.stderr);
    let said = scene.restoring(&into).arg("--database").arg("shop").run_ok().await.stdout;
    // Then the files of the others are there, take no room, and one of them is real
    let oid = scene.server.value("SELECT oid FROM pg_database WHERE datname = 'blog'").await;
    let path = scene.server.value("SELECT pg_relation_filepath('pg_class')").await;
    assert!(path.starts_with("base/"), "{path}");
    let left_out = into.join("base").join(&oid);
    let (mut bytes, mut on_disk) = (0, 0);
    for entry in std::fs::read_dir(&left_out).unwrap() {
        let found = entry.unwrap().metadata().unwrap();
        (bytes, on_disk) = (bytes + found.len(), on_disk + found.blocks() * 512);
    }
    assert!(bytes > 2 << 20 && on_disk < 1 << 20, "{bytes} bytes take {on_disk}");
    assert_eq!(std::fs::read_to_string(left_out.join("PG_VERSION")).unwrap().trim(), version.to_string());
    // and recovery ends, with the one as it was
    let mut restored = open(&scene, &into).await;
    assert_eq!(row_digests(&restored, "shop").await, digests, "PostgreSQL {version}");
    // and whoever looks into one of the others anyway disturbs nobody
    let session = restored.connect("shop").await.unwrap();
    let refused = restored.connect("blog").await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("pg_filenode.map"), "{refused}");
    session.sql("SELECT 1").await.unwrap_or_else(|error| panic!("a session in another database ended: {error}"));
    // and what was printed drops the others, for good
    let statements: Vec<&str> = said.lines().map(str::trim).filter(|line| line.ends_with(';')).collect();
    assert!(statements.contains(&"DROP DATABASE \"cr\"\"m\" WITH (FORCE);"), "{said}");
    for statement in &statements {
        restored.sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    restored.sql("CHECKPOINT").await.unwrap();
    restored.stop(StopMode::Fast).await.unwrap();
    restored.start().await.unwrap();
    assert_eq!(row_digests(&restored, "shop").await, digests, "PostgreSQL {version}, started again");
    let left = restored.sql("SELECT datname FROM pg_database ORDER BY 1").await.unwrap();
    let left: Vec<String> = left.into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(left, ["later", "postgres", "shop", "template0", "template1"]);
}
