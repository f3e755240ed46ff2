//! With the archiver among the synchronous standbys, what a client was told of is in the bucket.

use crate::s3::{Fault, Op};
use crate::scene::Scene;
use crate::support::oracle::{Oracle, missing};
use crate::support::waiting::{PATIENCE, wait_for};
use crate::{Victim, archived_under_load, load, on_every_version, rounds};
use std::time::Duration;

/// So many commits are told between two kills.
const COMMITS_A_ROUND: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_a_copy_of_the_bucket_has_every_commit_that_was_told() {
    on_every_version(scenario).await;
}

async fn scenario(version: u32) {
    // Given an archiver for which commits wait, and clients who commit
    let mut scene = Scene::new(version, &[]).await;
    let (mut archiver, mut pgbench) = archived_under_load(&scene).await;
    scene.server.sql("ALTER SYSTEM SET synchronous_standby_names = 'seawall'").await.unwrap();
    scene.server.sql("SELECT pg_reload_conf()").await.unwrap();
    scene
        .wait("the archiver to be waited for", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
        .await;
    // A store at some distance: what is told too early is told long before it is stored.
    scene.bucket.always(Op::Put, Fault::Delay(Duration::from_millis(40)));
    let clients = Oracle::start(&scene.server.conninfo(), 6, Duration::from_millis(5));
    let more_are_told = async |clients: &Oracle| {
        let goal = clients.count() + COMMITS_A_ROUND;
        let what = format!("commits to be told on PostgreSQL {version}");
        wait_for(&what, PATIENCE * 2, async || (clients.count() >= goal).then_some(())).await;
    };
    // When one or the other is killed, again and again
    let mut copies = Vec::new();
    for round in 0..rounds() {
        more_are_told(&clients).await;
        // What is told counts first: the copy is of a later moment.
        let told = clients.told();
        copies.push((format!("before killing {:?}", Victim::of(version, round)), told, scene.bucket.snapshot()));
        Victim::of(version, round).kill_and_start(&mut scene, &mut archiver).await;
        pgbench = load(&scene);
    }
    more_are_told(&clients).await;
    // and at last the server is lost for good, with its clients in the middle of it
    let told = clients.told();
    copies.push(("at the end".to_owned(), told, scene.bucket.snapshot()));
    archiver.running.kill();
    scene.server.kill().await.unwrap();
    let asked = clients.asked();
    drop((clients, pgbench));
    // Then the copy has everything that was told; and so has one of those before
    let earlier = version as usize % rounds().max(1);
    for chosen in [copies.len() - 1, earlier] {
        let (when, told, copy) = &copies[chosen];
        let rows = scene.rows_of(copy, &format!("copy-{chosen}")).await;
        let missing = missing(told, &rows);
        assert!(
            missing.is_empty(),
            "PostgreSQL {version}, copied {when}: of {} commits {missing:?} are missing",
            told.len()
        );
        assert!(rows.iter().all(|id| (1..=asked).contains(id)), "rows that nobody asked for: {rows:?}");
    }
}
