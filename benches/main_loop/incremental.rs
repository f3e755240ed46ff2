//! Incremental base backups, against full ones of the same cluster in the same minute.

use crate::Scale;
use crate::fixture::{Fixture, settle};
use crate::latency::{FLUSHED, lsn};
use crate::process::{Cost, Measured};
use crate::s3_process::{Behaviour, S3Process};
use crate::support::waiting::{PATIENCE, wait_for};
use crate::throughput::{mb, median};
use seawall::wal::Lsn;
use std::process::Stdio;
use tokio::task::block_in_place;

/// Of the rows, this part changes between two backups.
const CHANGED: f64 = 0.01;

/// What a backup cost, and its bytes in the store.
type Taken = (Cost, u64);

pub async fn incremental(scale: &Scale, fixture: &Fixture) {
    let repository = fixture.empty_directory();
    let store = S3Process::start(repository.path(), Behaviour::AtOnce);
    let mut archiver = fixture.archiver(&store, &["--slot", "seawall_incremental"]).await;
    let session = fixture.server.connect("postgres").await.unwrap();
    let rows: u64 = fixture.server.value("SELECT count(*) FROM pgbench_accounts").await.parse().unwrap();
    let changed = (rows as f64 * CHANGED) as u64;
    let mut rounds = Vec::new();
    for round in 0..(scale.discarded + scale.rounds) as u64 {
        let full = take(fixture, &store, "full");
        // Rows that lie together, other ones in each round.
        let first = round * rows / 10 + 1;
        let update = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN";
        fixture.server.sql(&format!("{update} {first} AND {}", first + changed - 1)).await.unwrap();
        fixture.server.sql("CHECKPOINT").await.unwrap();
        let end: Lsn = fixture.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        wait_for("the WAL to be archived", PATIENCE * 5, async || {
            fixture.check_runs(&mut archiver);
            lsn(&session, FLUSHED).await.filter(|flushed| *flushed >= end)
        })
        .await;
        let incremental = take(fixture, &store, "incremental");
        rounds.push([full, incremental]);
    }
    block_in_place(|| archiver.terminate(0.0));
    fixture.drop_slot("seawall_incremental").await;
    let rounds = &rounds[scale.discarded..];
    println!(
        "\n## An incremental backup of {}, {:.0} % of the rows changed\n",
        mb(fixture.database_bytes),
        CHANGED * 100.0
    );
    println!("| what | seconds | CPU s | stored | peak memory | its time by the full's | its bytes by the full's |");
    println!("|---|---|---|---|---|---|---|");
    for (index, name) in ["`seawall backup --type full`", "`seawall backup --type incremental`"].iter().enumerate() {
        let of = |figure: &dyn Fn(&Taken) -> f64| median(rounds.iter().map(|round| figure(&round[index])).collect());
        let ratio = |figure: &dyn Fn(&Taken) -> f64| {
            median(rounds.iter().map(|round| figure(&round[index]) / figure(&round[0])).collect())
        };
        let ratios = match index {
            0 => " | ".to_owned(),
            _ => format!("{:.2} | {:.3}", ratio(&|taken| taken.0.seconds), ratio(&|taken| taken.1 as f64)),
        };
        println!(
            "| {name} | {:.2} | {:.2} | {} | {} | {ratios} |",
            of(&|taken| taken.0.seconds),
            of(&|taken| taken.0.cpu_seconds),
            mb(of(&|taken| taken.1 as f64) as u64),
            mb(of(&|taken| taken.0.rss_bytes as f64) as u64),
        );
    }
}

fn take(fixture: &Fixture, store: &S3Process, kind: &str) -> Taken {
    settle();
    let backup = fixture.seawall(store, &["backup", "--fast", "--type", kind, "--slot", "seawall_incremental"]);
    let cost = block_in_place(|| Measured::start(backup).wait());
    let output = fixture.seawall(store, &["list", "--json"]).stdout(Stdio::piped()).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let backups = listed["backups"].as_array().unwrap().iter();
    let newest = backups.max_by_key(|backup| backup["backup"].as_str().unwrap().to_owned()).unwrap();
    assert_eq!(newest["type"].as_str().unwrap(), kind, "{newest}");
    (cost, newest["stored_bytes"].as_u64().unwrap())
}
