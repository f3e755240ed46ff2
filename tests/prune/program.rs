//! `seawall prune` and `seawall keep` as they are typed, over what a real server left in a bucket.

use crate::s3::{Fault, Op};
use crate::scene::Scene;
use crate::support::postgres::programs;
use crate::support::program::{Seawall, path_for_server};
use crate::support::waiting::PATIENCE;
use jiff::SignedDuration;
use seawall::repository::{BackupBegin, BackupDocument};
use seawall::scratch::{Server, ServerOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const CLUSTER: &str = "backups/main/";
const TEN_DAYS: Duration = Duration::from_secs(10 * 86_400);

/// Ten days pass: everything that is stored is so much older, in the store's eyes and its own.
fn age(scene: &Scene) {
    let earlier = |at: jiff::Timestamp| at.checked_sub(SignedDuration::try_from(TEN_DAYS).unwrap()).unwrap();
    scene.bucket.age(TEN_DAYS, &|name, bytes| {
        if name.ends_with("/begin.json") {
            let mut begin: BackupBegin = serde_json::from_slice(&bytes).unwrap();
            begin.started_at = earlier(begin.started_at);
            return Some(serde_json::to_vec(&begin).unwrap().into());
        }
        if name.ends_with("/backup.json") {
            let mut backup: BackupDocument = serde_json::from_slice(&bytes).unwrap();
            (backup.started_at, backup.ended_at) = (earlier(backup.started_at), earlier(backup.ended_at));
            return Some(serde_json::to_vec(&backup).unwrap().into());
        }
        None
    });
}

async fn backups(scene: &Scene) -> Vec<Value> {
    let listed = scene.seawall(&["list", "--json"]).run_ok().await.stdout;
    let report: Value = serde_json::from_str(&listed).unwrap();
    report["backups"].as_array().unwrap().clone()
}

/// The rows of what this restores.
async fn rows(scene: &Scene, name: &str, arguments: &[&str]) -> String {
    let into = scene.places.path().join(name);
    let program = path_for_server(scene.places.path());
    let start = ["restore", "--into", into.to_str().unwrap(), "--owner", scene.server.user().name()];
    scene.seawall(&[&start, arguments].concat()).program(&program).run_ok().await;
    let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let programs = programs(scene.version);
    let opened = Server::open(&programs, &into, options);
    let server = tokio::time::timeout(PATIENCE * 3, opened).await.expect("recovery ends").unwrap();
    let found = server.sql("SELECT string_agg(round::text, ' ' ORDER BY round) FROM rounds").await.unwrap();
    found[0][0].clone().unwrap()
}

#[tokio::test]
async fn what_stays_of_a_real_cluster_restores_at_both_ends_of_its_window() {
    // Given five base backups of a server, ten days between them, with WAL behind each
    let scene = Scene::new(15, &[]).await;
    scene.server.sql("CREATE TABLE rounds (round int)").await.unwrap();
    let archiver = scene.archiver().await;
    let mut behind = Vec::new();
    for round in 1..=5 {
        if round > 1 {
            age(&scene);
        }
        scene.server.sql(&format!("INSERT INTO rounds VALUES ({})", 10 * round)).await.unwrap();
        scene.seawall(&["backup", "--fast"]).run_ok().await;
        scene.server.sql(&format!("INSERT INTO rounds VALUES ({})", 10 * round + 1)).await.unwrap();
        behind.push(scene.server.value("SELECT pg_current_wal_lsn()").await);
        scene.server.sql("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
        scene.settle().await;
    }
    let ids: Vec<String> = backups(&scene).await.iter().map(|it| it["backup"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 5);
    let file = scene.places.path().join("seawall.toml");
    std::fs::write(&file, "[retention]\nfull = \"1\"\nminimum_window = \"1d\"\n").unwrap();
    let prune = |arguments: &[&str]| -> Seawall {
        scene.seawall(&[&["prune", "--config", file.to_str().unwrap()], arguments].concat())
    };
    // And a mark on the first
    scene.seawall(&["keep", &ids[0], "--reason", "before the upgrade"]).run_ok().await;
    assert_eq!(backups(&scene).await[0]["kept"]["reason"], "before the upgrade");
    // When it is said what would go, nothing does; and a role that may not delete is told
    let before: Vec<String> = scene.bucket.snapshot().into_keys().collect();
    let said: Value = serde_json::from_str(&prune(&["--dry-run", "--json"]).run_ok().await.stdout).unwrap();
    assert!(said["frees_objects"].as_u64().unwrap() > 3, "{said:#}");
    assert_eq!(before, scene.bucket.snapshot().into_keys().collect::<Vec<_>>());
    scene.bucket.always(Op::Delete.at(CLUSTER), Fault::Answer(403, "AccessDenied"));
    let refused = prune(&[]).run_err(5).await;
    assert!(refused.stderr.contains("right to delete"), "{}", refused.stderr);
    scene.bucket.clear();
    // When it is pruned, then the second backup goes; the third is there for the day before the fourth
    let done = prune(&[]).run_ok().await.stdout;
    assert!(done.contains("freed"), "{done}");
    let left = backups(&scene).await;
    let left: Vec<&str> = left.iter().map(|it| it["backup"].as_str().unwrap()).collect();
    assert_eq!(left, [&ids[0], &ids[2], &ids[3], &ids[4]]);
    let folder = format!("{CLUSTER}base/{}/", ids[1]);
    assert!(scene.bucket.snapshot().keys().all(|name| !name.starts_with(&folder)));
    // And nothing is wrong with the rest, of which the archiver has seen nothing
    scene.seawall(&["verify", "--deep"]).run_ok().await;
    let status = scene.seawall(&["status"]).run_ok().await.stdout;
    assert!(status.contains("last prune") && status.contains("freed"), "{status}");
    scene.server.sql("INSERT INTO rounds VALUES (99)").await.unwrap();
    scene.settle().await;
    drop(archiver);
    // And both ends of the window restore, and the marked one to its own
    let all = "10 11 20 21 30 31 40 41 50 51 99";
    assert_eq!(rows(&scene, "end", &["--to-end"]).await, all);
    assert_eq!(rows(&scene, "beginning", &["--to-lsn", &behind[2], "--to-exclusive"]).await, "10 11 20 21 30 31");
    assert!(rows(&scene, "marked", &["--backup", &ids[0], "--to-end"]).await.starts_with("10"));
    // That is not the end of the archive, and is not passed off as it
    let into = scene.places.path().join("planned");
    let plan = ["restore", "--into", into.to_str().unwrap(), "--backup", &ids[0], "--to-end", "--dry-run"];
    let said = scene.seawall(&plan).run_ok().await;
    let said = said.stdout + &said.stderr;
    assert!(said.contains("deleted by retention") && !said.contains("never acknowledged"), "{said}");
    // And who did what is in the audit trail: what was only planned is not
    let noted = scene.seawall(&["audit", "--since", "1 week ago", "--json"]).run_ok().await.stdout;
    let noted: Vec<Value> = serde_json::from_str(&noted).unwrap();
    let mut counts = BTreeMap::new();
    for entry in &noted {
        let word = |name: &str| entry[name].as_str().unwrap();
        *counts.entry((word("action"), word("result"), entry["by"]["command"].as_str().unwrap())).or_insert(0) += 1;
    }
    for (what, count) in [
        (("full", "good", "backup"), 5),
        (("keep", "good", "keep"), 1),
        (("prune", "failed", "prune"), 1),
        (("prune", "good", "prune"), 1),
        (("deep_verify", "good", "verify"), 1),
        (("restore", "good", "restore"), 3),
    ] {
        assert_eq!(counts.remove(&what), Some(count), "{what:?} of {noted:#?}");
    }
    // `run` verifies whenever it finds a new base backup.
    counts.retain(|what, _| *what != ("verify", "good", "run"));
    assert!(counts.is_empty(), "{counts:?}");
    let about = |action: &str| {
        let found = noted.iter().find(|entry| entry["action"] == action && entry["result"] == "good").unwrap();
        (found["backup"].as_str().unwrap_or_default(), found["about"].as_str().unwrap())
    };
    assert!(about("keep").0 == ids[0] && about("keep").1.contains("before the upgrade"), "{noted:#?}");
    assert!(about("prune").1.contains("freed") || about("prune").1.contains("deleted"), "{noted:#?}");
}
