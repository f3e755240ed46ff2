//! Recovery with `wal-fetch`, against recovery from WAL that lies in `pg_wal`.

use crate::Scale;
use crate::fixture::{Fixture, settle};
use crate::latency::{FLUSHED, lsn};
use crate::process::Measured;
use crate::s3::S3Server;
use crate::s3_process::{Behaviour, S3Process};
use crate::support::postgres::{DEBIAN, pgbench_transactions, programs};
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::scratch::{Server, ServerOptions};
use seawall::wal::Lsn;
use std::time::Instant;
use tokio::task::block_in_place;

pub async fn recovery(scale: &Scale, fixture: &Fixture) {
    // A backup, and behind it WAL of two kinds: rows in bulk, and small transactions.
    let repository = fixture.empty_directory();
    let store = S3Process::start(repository.path(), Behaviour::AtOnce);
    let mut archiver = fixture.archiver(&store, &["--slot", "seawall_recovery"]).await;
    block_in_place(|| Measured::start(fixture.seawall(&store, &["backup", "--fast"])).wait());
    let start: Lsn = fixture.server.value("SELECT pg_current_wal_lsn()").await.parse().unwrap();
    fixture.server.sql("CREATE TABLE bulk AS SELECT * FROM pgbench_accounts").await.unwrap();
    fixture.server.sql("INSERT INTO bulk SELECT * FROM pgbench_accounts").await.unwrap();
    pgbench_transactions(&fixture.server, scale.small_scale * 500).await;
    let end: Lsn = fixture.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    let session = fixture.server.connect("postgres").await.unwrap();
    wait_for("the archiver", PATIENCE * 5, async || {
        fixture.check_runs(&mut archiver);
        lsn(&session, FLUSHED).await.filter(|flushed| *flushed >= end)
    })
    .await;
    block_in_place(|| archiver.terminate(0.0));
    fixture.drop_slot("seawall_recovery").await;
    let mut rounds = Vec::new();
    for _ in 0..scale.discarded + scale.rounds {
        rounds.push([recover(fixture, &store, &[]).await, recover(fixture, &store, &["--wal", "now"]).await]);
    }
    let megabytes = (end - start) as f64 / 1e6;
    println!("\n## Recovery of {megabytes:.0} MB of WAL\n");
    println!("| what | seconds | MB/s | its time by the other's |\n|---|---|---|---|");
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rounds = &rounds[scale.discarded..];
    for (index, name) in ["`wal-fetch` from S3", "from `pg_wal` (`restore --wal now`)"].iter().enumerate() {
        let seconds = median(rounds.iter().map(|round| round[index]).collect());
        let ratio = median(rounds.iter().map(|round| round[index] / round[1 - index]).collect());
        println!("| {name} | {seconds:.2} | {:.0} | {ratio:.2} |", megabytes / seconds);
    }
}

/// Seconds from the start of a restored server until it takes writes.
async fn recover(fixture: &Fixture, store: &S3Process, further: &[&str]) -> f64 {
    let directory = fixture.empty_directory();
    let into = directory.path().join("data");
    let arguments = [&["restore", "--into", into.to_str().unwrap()], further].concat();
    block_in_place(|| Measured::start(fixture.seawall(store, &arguments)).wait());
    settle();
    let environment = S3Server::env_at(store.endpoint()).into_iter();
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).collect();
    let begun = Instant::now();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let server = Server::open(&programs(DEBIAN), &into, options).await.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    drop(server);
    seconds
}
