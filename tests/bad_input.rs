//! What goes wrong before anything goes right: one clear error with a hint, a documented exit code, and nothing half-done.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::{Fault, Op, S3Server};
use seawall::scratch::ServerOptions;
use support::postgres::{DEBIAN, Postgres, scratch_directory};
use support::program::Seawall;

const CONFIG: i32 = 3;
const POSTGRES: i32 = 4;
const STORE: i32 = 5;
const REFUSED: i32 = 6;
const DIVERGED: i32 = 8;

/// Runs to the expected end; what it says holds each of `words`, and a hint.
async fn fails(seawall: Seawall, code: i32, words: &[&str]) {
    let finished = seawall.run_err(code).await;
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is not in:\n{}", finished.stderr);
    }
    assert!(finished.stderr.contains("hint:"), "no hint in:\n{}", finished.stderr);
}

fn password_server() -> ServerOptions {
    ServerOptions {
        listen_tcp: true,
        hba: vec![
            "host all all 127.0.0.1/32 scram-sha-256".to_owned(),
            "host replication all 127.0.0.1/32 scram-sha-256".to_owned(),
        ],
        ..ServerOptions::default()
    }
}

#[tokio::test]
async fn what_the_server_refuses_is_said_with_what_to_do() {
    let repository = scratch_directory();
    let url = format!("file://{}", repository.path().display());
    let server = Postgres::create(DEBIAN, password_server()).await;
    server
        .sql("CREATE ROLE archiver LOGIN REPLICATION PASSWORD 'right'; CREATE ROLE nobody LOGIN PASSWORD 'right'")
        .await
        .unwrap();
    let port = server.port();
    let run = |user: &str, password: &str| {
        Seawall::new(["run", "--listen", "off", "--repo", &url])
            .env("SEAWALL_PG", format!("host=127.0.0.1 port={port} user={user} sslmode=disable"))
            .env("PGPASSWORD", password)
    };
    fails(run("archiver", "wrong-secret"), POSTGRES, &["password"]).await;
    fails(run("nobody", "right"), POSTGRES, &["42501"]).await;
    let finished = run("archiver", "wrong-secret").run_err(POSTGRES).await;
    assert!(!finished.stderr.contains("wrong-secret"), "the password is in the error:\n{}", finished.stderr);
    // Nothing was published.
    let left: Vec<_> =
        std::fs::read_dir(repository.path()).unwrap().filter_map(Result::ok).map(|e| e.file_name()).collect();
    assert!(
        left.iter().all(|name| name != "main" || !repository.path().join("main/cluster.json").exists()),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_server_that_cannot_replicate_is_recognised() {
    let repository = scratch_directory();
    let url = format!("file://{}", repository.path().display());
    let settings = [("wal_level", "minimal"), ("max_wal_senders", "0")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let server = Postgres::create(DEBIAN, ServerOptions { settings, ..ServerOptions::default() }).await;
    let run = Seawall::new(["backup", "--repo", &url]).env("SEAWALL_PG", server.conninfo());
    fails(run, POSTGRES, &["53300"]).await;
}

#[tokio::test]
async fn another_cluster_behind_the_same_name_is_refused() {
    let repository = scratch_directory();
    let url = format!("file://{}", repository.path().display());
    let one = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let other = Postgres::create(DEBIAN, ServerOptions::default()).await;
    Seawall::new(["backup", "--fast", "--repo", &url]).env("SEAWALL_PG", one.conninfo()).run_ok().await;
    for command in [vec!["backup"], vec!["run", "--listen", "off"]] {
        let run = Seawall::new(command).arg("--repo").arg(&url).env("SEAWALL_PG", other.conninfo());
        fails(run, DIVERGED, &["belongs to the cluster", "--cluster"]).await;
    }
}

#[tokio::test]
async fn what_the_bucket_refuses_is_said_with_what_to_do() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let cases = [
        (Fault::NO_SUCH_BUCKET, "bucket"),
        (Fault::ACCESS_DENIED, "rights"),
        (Fault::WRONG_REGION, "region"),
        (Fault::EXPIRED_TOKEN, "expired"),
    ];
    for (fault, word) in cases {
        let bucket = S3Server::start();
        for operation in [Op::Put, Op::Get, Op::Head, Op::List] {
            bucket.always(operation, fault);
        }
        let mut run = Seawall::new(["run", "--listen", "off", "--repo", &format!("s3://{}/x", S3Server::BUCKET)]);
        for (name, value) in bucket.env() {
            run = run.env(name, value);
        }
        fails(run.env("SEAWALL_PG", server.conninfo()), STORE, &[word]).await;
        assert!(bucket.snapshot().is_empty(), "something was stored");
    }
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    let bucket = S3Server::start();
    bucket.always(Op::Put, Fault::IgnoreIfNoneMatch);
    let mut run = Seawall::new(["run", "--listen", "off", "--repo", &format!("s3://{}/x", S3Server::BUCKET)]);
    for (name, value) in bucket.env() {
        run = run.env(name, value);
    }
    fails(run.env("SEAWALL_PG", server.conninfo()), STORE, &["If-None-Match", "conditional_writes"]).await;
}

#[tokio::test]
async fn a_moment_that_cannot_be_is_refused_before_anything_is_written() {
    let places = scratch_directory();
    let repository = places.path().join("repository");
    std::fs::create_dir(&repository).unwrap();
    let url = format!("file://{}", repository.display());
    let server = Postgres::create(DEBIAN, ServerOptions::default()).await;
    Seawall::new(["backup", "--fast", "--repo", &url]).env("SEAWALL_PG", server.conninfo()).run_ok().await;
    let into = places.path().join("into");
    let owner = server.user().name().to_owned();
    let restore = |target: &[&str]| {
        let mut restore = Seawall::new(["restore", "--repo", &url, "--owner", &owner, "--into"]).arg(&into);
        for argument in target {
            restore = restore.arg(argument);
        }
        restore
    };
    let refusals: [(&[&str], i32); 8] = [
        (&["--to", "2999-01-01T00:00:00Z"], REFUSED),
        (&["--to", "2001-01-01T00:00:00Z"], REFUSED),
        (&["--to", "13am"], 2),
        (&["--to", "yesterdayish"], 2),
        (&["--to-lsn", "FF/0"], REFUSED),
        (&["--to-xid", "4000000"], REFUSED),
        (&["--to-name", "nobody set this"], REFUSED),
        (&["--timeline", "7"], REFUSED),
    ];
    for (target, code) in refusals {
        restore(target).run_err(code).await;
        assert!(
            !into.exists() || into.read_dir().unwrap().next().is_none(),
            "{target:?} left something in the directory"
        );
    }
    // A time without a zone is read in the local one, and said back in full.
    let said = restore(&["--to", "2001-01-01 00:00"]).env("TZ", "Europe/Berlin").run_err(REFUSED).await;
    assert!(said.stderr.contains("2001-01-01") || said.stderr.contains("2000-12-31"), "{}", said.stderr);
}

#[tokio::test]
async fn no_repository_is_a_matter_of_configuration() {
    fails(Seawall::new(["list"]), CONFIG, &["repository"]).await;
    fails(Seawall::new(["list", "--repo", "ftp://x"]), CONFIG, &["ftp"]).await;
}
