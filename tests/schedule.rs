//! What `seawall run` does by itself: on a real server, with everything due at once.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use scene::Scene;
use seawall::codec::Compression;
use seawall::repository::{Action, ActionResult, Actor, AuditEntry, AuditKey, FORMAT_VERSION, Key, Layout};
use seawall::wal::SegmentSize;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::postgres::{DEBIAN, programs};
use support::waiting::{PATIENCE, wait_for};

/// `action: result`, in the order in which things began.
async fn audit(scene: &Scene) -> Vec<String> {
    let listed = scene.seawall(&["audit", "--since", "1 week ago", "--json"]).run_ok().await;
    let entries: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let said = |entry: &Value| match (&entry["action"], entry["result"].as_str().unwrap()) {
        (action, "good") => format!("{}: good", action.as_str().unwrap()),
        (action, result) => format!("{}: {result}: {}", action.as_str().unwrap(), entry["about"]),
    };
    entries.iter().map(said).collect()
}

/// Notes that something was done 40 days ago.
fn was_done(scene: &Scene, action: Action) {
    let started_at = Timestamp::now().checked_sub(SignedDuration::from_hours(40 * 24)).unwrap();
    let entry = AuditEntry {
        format: FORMAT_VERSION,
        system_identifier: 7,
        action,
        result: ActionResult::Good,
        started_at,
        ended_at: started_at,
        by: Actor { user: "postgres".to_owned(), host: "db1".to_owned(), command: "run".to_owned() },
        backup: None,
        about: "long ago".to_owned(),
    };
    let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
    let name = layout.name(&Key::Audit(AuditKey { started_at, action, result: ActionResult::Good }));
    scene.bucket.put(&format!("backups/{name}"), serde_json::to_vec(&entry).unwrap());
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_is_done_one_after_the_other_and_noted_and_not_done_again() {
    // Given a cluster that was archived before, without a base backup, and verified and drilled 40 days ago
    let scene = Scene::new(DEBIAN, &[]).await;
    let directory = scene.places.path();
    let file = directory.join("seawall.toml");
    let schedule = "[schedule]\nfull = \"0 0 1 * *\"\nincremental = \"0 0 * * *\"\nverify = \"0 0 * * *\"\ndrill = \"0 0 * * *\"\n";
    write(&file, &format!("{schedule}[drill]\nscratch = \"{}\"\n", directory.display()));
    let run = || {
        let seawall = scene.seawall(&["run", "--listen", "off", "--config", file.to_str().unwrap()]);
        seawall.env("SEAWALL_PG_BIN", programs(DEBIAN).bin).start()
    };
    let mut before = scene.seawall(&["run", "--listen", "off"]).start();
    scene.settle().await;
    assert!(before.terminate().await.success());
    was_done(&scene, Action::DeepVerify);
    was_done(&scene, Action::Drill);
    // When an archiver runs with a schedule
    let mut running = run();
    let noted = wait_for("everything that is due to be done", PATIENCE * 3, async || {
        let noted = audit(&scene).await;
        noted.iter().any(|entry| entry.starts_with("drill")).then_some(noted)
    })
    .await;
    // Then it takes a full backup, looks at it, and does what is due besides; no incremental backup beside the full one
    assert_eq!(noted, ["full: good", "verify: good", "deep_verify: good", "drill: good"]);
    assert!(running.terminate().await.success());
    // And the next one finds that all of it was done
    let mut again = run();
    again.wait_for_text("on schedule").await;
    scene.settle().await;
    scene.server.sql("CREATE TABLE later ()").await.unwrap();
    scene.settle().await;
    assert!(again.terminate().await.success());
    assert_eq!(audit(&scene).await.len(), 4);
    // And nothing of it is strange to who verifies
    scene.seawall(&["verify"]).run_ok().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_hangup_what_is_scheduled_changes_and_the_stream_goes_on() {
    // Given an archiver without a schedule
    let scene = Scene::new(DEBIAN, &[]).await;
    let file = scene.places.path().join("seawall.toml");
    write(&file, "");
    let mut running = scene.seawall(&["run", "--listen", "off", "--config", file.to_str().unwrap()]).start();
    scene.settle().await;
    let walsender = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'";
    let pid = scene.server.value(walsender).await;
    // When the file is broken, and it is told to read it again
    write(&file, "[schedule]\nfull = \"sometimes\"\n");
    running.signal(Signal::SIGHUP);
    running.wait_for_text("everything stays as it was").await;
    // And when it is right, with something that has to wait
    write(&file, "slot = \"another\"\n[schedule]\nfull = \"0 0 1 * *\"\n");
    running.signal(Signal::SIGHUP);
    running.wait_for_text("taken up: schedule.full; waits for the next start: slot").await;
    // Then what is due is done, on the same connection
    let noted = wait_for("the first backup", PATIENCE, async || {
        let noted = audit(&scene).await;
        (noted.len() == 4).then_some(noted)
    })
    .await;
    let has = |wanted: &str| noted.iter().any(|entry| entry.starts_with(wanted));
    let all = ["reload: failed", "reload: good", "full: good", "verify: good"];
    assert!(all.into_iter().all(has), "{noted:?}");
    assert_eq!(scene.server.value(walsender).await, pid);
    assert!(running.terminate().await.success());
}
