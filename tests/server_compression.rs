//! `backup --server-compression` with real servers: those that compress, those that are too old, those built without it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use scene::Scene;
use serde_json::Value;
use support::postgres::{DEBIAN, row_digests};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_compresses_is_stored_and_restored_as_if_it_had_not() {
    // Given a cluster with a large table, and a tablespace, whose archive comes before
    let scene = Scene::new(DEBIAN, &[("autovacuum", "off")]).await;
    let statements = [
        "CREATE TABLE wide AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 60000) AS n"
            .to_owned(),
        format!("CREATE TABLESPACE apart LOCATION '{}'", scene.server.side_directory("apart").display()),
        "CREATE TABLE spaced TABLESPACE apart AS SELECT * FROM wide LIMIT 1000".to_owned(),
    ];
    for statement in &statements {
        scene.server.sql(statement).await.unwrap();
    }
    let archiver = scene.archiver().await;
    scene.settle().await;
    let digests = row_digests(&scene.server, "postgres").await;
    // When it is backed up as it is, and compressed on the way, also with a rate that the server keeps
    let mut documents = Vec::new();
    for further in
        [&[][..], &["--server-compression", "zstd"], &["--server-compression", "zstd:1", "--max-rate", "200M"]]
    {
        let said = scene.seawall(&[&["backup", "--fast", "--json"], further].concat()).run_ok().await.stdout;
        documents.push(serde_json::from_str::<Value>(&said).unwrap());
    }
    // Then the same arrives: every file was compared with the manifest
    let bytes = |document: &Value| document["plain_bytes"].as_u64().unwrap();
    for document in &documents[1..] {
        let (found, expected) = (bytes(document), bytes(&documents[0]));
        assert!(found.abs_diff(expected) < expected / 10, "{found} bytes of tar instead of {expected}");
        assert_eq!(document["tablespaces"].as_array().unwrap().len(), 1, "{document}");
    }
    // and is restored.
    scene.server.sql("DROP TABLE spaced").await.unwrap();
    scene.server.sql("DROP TABLESPACE apart").await.unwrap();
    let id = documents[2]["id"].as_str().unwrap();
    let into = scene.places.path().join("restored");
    let map = format!(
        "{}={}",
        documents[2]["tablespaces"][0]["location"].as_str().unwrap(),
        scene.places.path().join("apart").display()
    );
    let end = documents[2]["end_lsn"].as_str().unwrap();
    let owner = scene.server.user().name();
    let program = support::program::path_for_server(scene.places.path());
    let arguments = [
        &["restore", "--into", into.to_str().unwrap(), "--owner", owner, "--backup", id],
        &["--tablespace-map", map.as_str(), "--to-lsn", end, "--target-action", "promote"][..],
    ];
    scene.seawall(&arguments.concat()).program(&program).run_ok().await;
    let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = seawall::scratch::ServerOptions { environment, ..seawall::scratch::ServerOptions::default() };
    let programs = support::postgres::programs(DEBIAN);
    let restored = seawall::scratch::Server::open(&programs, &into, options).await.unwrap();
    assert_eq!(row_digests(&restored, "postgres").await, digests);
    drop(archiver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_compress_is_told_apart_and_nothing_is_stored() {
    for (version, says) in [(14, "PostgreSQL 14 compresses no base backups"), (18, "does not support compression")] {
        let scene = Scene::new(version, &[]).await;
        let refused = scene.seawall(&["backup", "--fast", "--server-compression", "zstd"]).run_err(6).await.stderr;
        assert!(refused.contains(says) && refused.contains("Without --server-compression"), "{refused}");
        let stored = scene.bucket.snapshot();
        assert!(!stored.keys().any(|name| name.contains("/base/")), "{:?}", stored.keys());
    }
    let scene = Scene::new(DEBIAN, &[]).await;
    let refused = scene.seawall(&["backup", "--server-compression", "lz4"]).run_err(2).await.stderr;
    assert!(refused.contains("give zstd or zstd:LEVEL"), "{refused}");
}
