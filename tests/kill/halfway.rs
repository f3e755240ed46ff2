//! A backup or a restore that is killed in the middle: the one is never used, the other can be begun again.

use crate::s3::{Fault, Op};
use crate::scene::Scene;
use crate::support::oracle::{Oracle, found, missing};
use crate::support::postgres::DEBIAN;
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::scratch::{Server, ServerOptions};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

/// Where base backups are.
const BASE: &str = "backups/main/base/";

/// Requests that store something.
const STORING: [Op; 4] = [Op::Put, Op::CreateUpload, Op::UploadPart, Op::CompleteUpload];

/// Requests so far that store something of a base backup.
fn steps(scene: &Scene) -> usize {
    STORING.into_iter().map(|op| scene.bucket.count(op.at(BASE))).sum()
}

/// The ids of finished backups, oldest first, and how many are not finished.
async fn backups(scene: &Scene) -> (Vec<String>, usize) {
    let listed = scene.seawall(&["list", "--json"]).run_ok().await.stdout;
    let report: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let finished = report["backups"].as_array().unwrap().iter();
    let ids = finished.map(|backup| backup["backup"].as_str().unwrap().to_owned()).collect();
    (ids, report["unfinished_backups"].as_array().unwrap().len())
}

/// The backup that a restore would begin with.
async fn chosen(scene: &Scene) -> String {
    let into = scene.places.path().join("planned");
    scene.restoring(&into).arg("--dry-run").run_ok().await.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_was_killed_is_never_used() {
    // Given a finished backup, whose requests are known, and clients who commit
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let mut archiver = scene.archived().await;
    // The last one stores the names of relations: the backup exists then.
    let of_one_backup = steps(&scene) - 1;
    assert!(of_one_backup >= 4, "begin, a part, the manifest and the end: {:?}", scene.bucket.log());
    let (first, _) = backups(&scene).await;
    assert_eq!(first.len(), 1);
    let clients = Oracle::start(&scene.server.conninfo(), 1, Duration::from_millis(5));
    // When further backups are killed, each at a later request
    for step in 1..=of_one_backup {
        for op in STORING {
            scene.bucket.always(op.at(BASE), Fault::Delay(Duration::from_millis(300)));
        }
        let begun = steps(&scene);
        let mut backup = scene.seawall(&["backup", "--fast"]).start();
        wait_for("the backup to come to its next request", PATIENCE, async || {
            (steps(&scene) >= begun + step).then_some(())
        })
        .await;
        backup.kill();
        scene.bucket.clear();
    }
    // Then none of them counts
    let (finished, unfinished) = backups(&scene).await;
    assert_eq!(finished, first);
    assert!(unfinished > 0, "nothing was begun");
    assert!(chosen(&scene).await.contains(&first[0]));
    // and the next one is taken as ever, and is used
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    let (finished, _) = backups(&scene).await;
    assert_eq!(finished.len(), 2);
    assert!(chosen(&scene).await.contains(&finished[1]));
    let told = clients.told();
    scene.settle().await;
    let copy = scene.bucket.snapshot();
    archiver.running.kill();
    scene.server.kill().await.unwrap();
    let rows = scene.rows_of(&copy, "second").await;
    assert_eq!(missing(&told, &rows), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_killed_cannot_be_started_and_can_be_gone_on_with() {
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let mut archiver = scene.archived().await;
    let clients = Oracle::start(&scene.server.conninfo(), 1, Duration::from_millis(5));
    wait_for("commits", PATIENCE, async || (clients.count() > 20).then_some(())).await;
    let told = clients.told();
    scene.settle().await;
    archiver.running.kill();
    drop(clients);
    scene.server.kill().await.unwrap();
    // Given restores that take their time, killed at one moment or another
    let mut unfinished = 0;
    for round in 0..3 {
        scene.bucket.always(Op::Get.at(BASE), Fault::BytesPerSecond(2 << 20));
        let into = scene.places.path().join(format!("killed-{round}"));
        let mut restore = scene.restoring(&into).start();
        wait_for("the restore to begin", PATIENCE, async || into.join("base").exists().then_some(())).await;
        sleep(Duration::from_millis(round * 600)).await;
        restore.kill();
        scene.bucket.clear();
        // Then what is there is complete, or it cannot be started
        if into.join("global/pg_control").exists() {
            assert_eq!(missing(&told, &found(&open(&scene, &into).await).await), [], "round {round}");
            continue;
        }
        unfinished += 1;
        // and the same command goes on with it
        scene.restoring(&into).run_ok().await;
        assert_eq!(missing(&told, &found(&open(&scene, &into).await).await), [], "round {round}, gone on with");
    }
    assert!(unfinished > 0, "every restore was done before it was killed");
    // and a fresh directory gets everything
    let again = scene.restore("again").await;
    assert_eq!(missing(&told, &found(&open(&scene, &again).await).await), []);
}

async fn open(scene: &Scene, into: &Path) -> Server {
    let environment = scene.bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let programs = crate::support::postgres::programs(scene.version);
    tokio::time::timeout(PATIENCE * 2, Server::open(&programs, into, options)).await.expect("recovery ends").unwrap()
}
