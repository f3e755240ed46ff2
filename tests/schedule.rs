//! What `seawall run` does by itself: on a real server, with everything due at once.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use s3::Op;
use scene::Scene;
use seawall::codec::Compression;
use seawall::repository::{Action, ActionResult, Actor, AuditEntry, AuditKey, BackupId, FORMAT_VERSION, Key, Layout};
use seawall::wal::SegmentSize;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::metrics::Endpoint;
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

/// Notes that something was done by somebody else, so many days ago.
fn was_done(scene: &Scene, action: Action, result: ActionResult, days_ago: i64) {
    let started_at = Timestamp::now().checked_sub(SignedDuration::from_hours(days_ago * 24)).unwrap();
    let entry = AuditEntry {
        format: FORMAT_VERSION,
        system_identifier: 7,
        action,
        result,
        started_at,
        ended_at: started_at,
        by: Actor { user: "postgres".to_owned(), host: "db1".to_owned(), command: "run".to_owned() },
        backup: None,
        about: "as the test wants it".to_owned(),
    };
    let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
    let name = layout.name(&Key::Audit(AuditKey { started_at, action, result }));
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
        let seawall = scene.seawall(&["run", "--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]);
        seawall.env("SEAWALL_PG_BIN", programs(DEBIAN).bin).start()
    };
    let mut before = scene.seawall(&["run", "--listen", "off"]).start();
    scene.settle().await;
    assert!(before.terminate().await.success());
    was_done(&scene, Action::DeepVerify, ActionResult::Good, 40);
    was_done(&scene, Action::Drill, ActionResult::Good, 40);
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
    // When somebody else has read everything and found something, and could not prune, and a base backup is there of the day after
    // tomorrow
    was_done(&scene, Action::DeepVerify, ActionResult::Bad, 0);
    was_done(&scene, Action::Prune, ActionResult::Failed, 0);
    let ended_at = dated_ahead(&scene);
    // Then the next archiver shows all of that, although it has done none of it, and looked at what is stored since
    let mut later = run();
    let metrics = Endpoint::of(&mut later).await;
    let shown = wait_for("what others have found to be shown", PATIENCE, async || {
        let shown = metrics.scrape().await?;
        let result = |task: &str| shown.labelled("seawall_job_last_result", &format!("task=\"{task}\""));
        let is_shown = (result("verify"), result("prune"), result("drill")) == (Some(0.0), Some(0.0), Some(1.0));
        let date = shown.labelled("seawall_newest_date_timestamp_seconds", "of=\"backup\"");
        (is_shown && date == Some(ended_at.as_millisecond() as f64 / 1e3)).then_some(shown)
    })
    .await;
    assert!(shown.value("seawall_drill_success") == 1.0);
    let ahead = wait_for("the server to have said what time it is", PATIENCE, async || {
        metrics.scrape().await?.labelled("seawall_server_clock_ahead_seconds", "")
    })
    .await;
    assert!(ahead.abs() < 10.0, "both are on this machine, and the server's clock is {ahead} s ahead");
    assert!(later.terminate().await.success());
    let status = scene.seawall(&["status", "--json"]).run_ok().await.stdout;
    assert!(status.contains("a base backup is dated ahead of this machine's clock"), "{status}");
}

/// The base backup again, as if it had been taken two days from now; says when it ended.
fn dated_ahead(scene: &Scene) -> Timestamp {
    let is_end = |key: &&String| key.starts_with("backups/main/base/") && key.ends_with("/backup.json");
    let objects = scene.bucket.snapshot();
    let end = objects.keys().find(is_end).expect("there is a base backup");
    let mut document: Value = serde_json::from_slice(&scene.bucket.get(end).unwrap()).unwrap();
    let two_days = SignedDuration::from_hours(48);
    let later = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap().checked_add(two_days).unwrap();
    let (started_at, ended_at) = (later(&document["started_at"]), later(&document["ended_at"]));
    let (old, new) = (document["id"].as_str().unwrap().to_owned(), BackupId::at(started_at, 0).to_string());
    document["started_at"] = started_at.to_string().into();
    document["ended_at"] = ended_at.to_string().into();
    document["id"] = new.clone().into();
    for (key, object) in objects.iter().filter(|(key, _)| key.contains(&format!("/base/{old}/"))) {
        scene.bucket.put(&key.replace(&old, &new), object.bytes.clone());
    }
    scene.bucket.put(&end.replace(&old, &new), serde_json::to_vec(&document).unwrap());
    ended_at
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
    // And when it is right, with something that has to wait; and what is scheduled then is held half way
    let any = scene.bucket.hold(Op::Put.at("backups/main/base/"));
    write(&file, "slot = \"another\"\n[schedule]\nfull = \"0 0 1 * *\"\n");
    running.signal(Signal::SIGHUP);
    running.wait_for_text("taken up: schedule.full; waits for the next start: slot").await;
    any.arrived(1).await;
    let held = scene.bucket.log().into_iter().rev().find_map(|(op, key)| {
        let id = key.strip_prefix("backups/main/base/")?.split('/').next()?;
        // Its parts: one that begins in the same second finds the name taken, and has another.
        (op == Op::Put).then(|| Op::Put.at(format!("backups/main/base/{id}/base.")))
    });
    let held = scene.bucket.hold(held.expect("a base backup has begun"));
    any.release();
    held.arrived(1).await;
    // Then one by hand waits for nobody, and disturbs nobody
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    assert_eq!(of(&audit(&scene).await, "full: good"), 1, "the one by hand alone");
    held.release();
    // And what is due is done, on the same connection
    let noted = wait_for("the backup on schedule, and a look at what is stored", PATIENCE, async || {
        let noted = audit(&scene).await;
        (of(&noted, "full: good") == 2 && of(&noted, "verify: good") > 0).then_some(noted)
    })
    .await;
    assert_eq!((of(&noted, "reload: failed"), of(&noted, "reload: good")), (1, 1), "{noted:?}");
    assert_eq!(scene.server.value(walsender).await, pid);
    assert!(running.terminate().await.success());
    // And both can be restored
    let verified = scene.seawall(&["verify", "--deep"]).run_ok().await.stdout;
    assert!(verified.contains("2 finished base backups"), "{verified}");
}

/// How many entries begin so.
fn of(noted: &[String], wanted: &str) -> usize {
    noted.iter().filter(|entry| entry.starts_with(wanted)).count()
}
