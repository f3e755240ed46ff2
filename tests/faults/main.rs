//! The built program between a real server and a bucket, with a bad network on either side, or on both, and a store that
//! gives bad answers. After each of them it recovers by itself and catches up; nothing is lost, nothing diverges, memory
//! is bounded, and the server hears from it as long as it can.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;

mod answers;
mod network;

use scene::{Archiver, Scene};
use std::time::Duration;
use support::oracle::{Oracle, missing};
use support::waiting::{PATIENCE, wait_for};

/// Resident memory, whatever happens. What is in flight is bounded by 32 MiB, an open block by 16.
const MEMORY_MAX_KIB: u64 = 200 << 10;

/// Clients that commit all the time.
fn clients(scene: &Scene) -> Oracle {
    Oracle::start(&scene.server.conninfo(), 2, Duration::from_millis(2))
}

async fn more_are_told(clients: &Oracle) {
    let goal = clients.count() + 30;
    wait_for("more commits", PATIENCE * 2, async || (clients.count() >= goal).then_some(())).await;
}

/// Nothing is lost: neither on record nor in what the bucket restores to.
async fn assert_complete(mut scene: Scene, mut archiver: Archiver, clients: Oracle) {
    more_are_told(&clients).await;
    let told = clients.told();
    drop(clients);
    scene.settle().await;
    assert!(archiver.running.is_running(), "{}", archiver.running.stderr());
    let status = std::fs::read_to_string(format!("/proc/{}/status", archiver.running.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < MEMORY_MAX_KIB, "{peak_kib} KiB at its peak");
    assert!(archiver.running.terminate().await.success());
    scene.assert_without_hole().await;
    scene.server.kill().await.unwrap();
    let copy = scene.bucket.snapshot();
    let rows = scene.rows_of(&copy, "all").await;
    assert_eq!(missing(&told, &rows), [], "of {} commits", told.len());
}
