//! The built program over what a real server left in a bucket.

use crate::s3::Op;
use crate::scene::Scene;
use crate::support::postgres::DEBIAN;
use serde_json::Value;

/// Which objects are damaged: below this folder, with this in their names.
fn pick(scene: &Scene, folder: &str, what: &str) -> String {
    let prefix = format!("backups/main/{folder}/");
    let found = scene.bucket.snapshot().into_keys().find(|key| key.starts_with(&prefix) && key.contains(what));
    found.unwrap_or_else(|| panic!("there is an object {prefix}…{what}…"))
}

/// The report of a verification that finds `kind`, once, and names `object`.
async fn assert_found(scene: &Scene, arguments: &[&str], kind: &str, object: &str) {
    let object = object.strip_prefix("backups/").unwrap();
    let finished = scene.seawall(&[&["verify", "--json"], arguments].concat()).run_err(7).await;
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["counts"][kind], 1, "{}", finished.stdout);
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["kind"] == kind).unwrap();
    let named = finding["object"].as_str().unwrap();
    assert!(object.starts_with(named), "{named} is named, and {object} was damaged");
    assert!(finished.stderr.contains("\"kind\":\"damaged\""), "{}", finished.stderr);
    // And in words, named and counted
    let text = scene.seawall(&[&["verify"], arguments].concat()).run_err(7).await.stdout;
    let words = kind.replace('_', " ");
    assert!(
        text.contains(&format!("{words}: 1"))
            && text.contains(&format!("{words}: {}", finding["message"].as_str().unwrap())),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_a_real_repository_is_found_named_and_counted() {
    // Given a server that is archived, with a base backup, and goes on
    let scene = Scene::new(DEBIAN, &[]).await;
    let mut archiver = scene.archived().await;
    for _ in 0..3 {
        scene
            .server
            .sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
            .await
            .unwrap();
        scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
        scene.settle().await;
    }
    // Then it is sound, with the archiver at it and without
    scene.seawall(&["verify"]).run_ok().await;
    archiver.running.terminate().await;
    let deep = scene.seawall(&["verify", "--deep"]).run_ok().await;
    assert!(deep.stdout.contains("every object holds what it must"), "{}", deep.stdout);
    let copy = scene.bucket.snapshot();
    let blocks: Vec<&String> = copy.keys().filter(|key| key.starts_with("backups/main/wal/")).collect();
    // Behind the base backup, and not the last ones: of the end of everything nothing would tell.
    let [.., second, third, _] = blocks[..] else { panic!("there are three blocks: {blocks:?}") };
    let (second, third) = (second.clone(), third.clone());
    let part = pick(&scene, "base", "/base.");
    // When something is done to it, then that is found
    for shallow in ["missing_object", "wrong_length", "hole", "unknown_object"] {
        let object = match shallow {
            "hole" => {
                // With the tails that it has replaced, which are there for five minutes more.
                let segment = second.rsplit('/').next().and_then(|file| file.split('.').next()).unwrap();
                copy.keys().filter(|key| key.contains(segment)).for_each(|key| scene.bucket.remove(key));
                &second
            }
            "wrong_length" => {
                scene.bucket.truncate(&part, scene.bucket.get(&part).unwrap().len() / 2);
                &part
            }
            "unknown_object" => {
                let strange = "backups/main/wal/notes.txt".to_owned();
                scene.bucket.put(&strange, "x");
                assert_found(&scene, &[], shallow, &strange).await;
                scene.bucket.restore_from(&copy);
                continue;
            }
            _ => {
                scene.bucket.remove(&part);
                &part
            }
        };
        assert_found(&scene, &[], shallow, object).await;
        scene.bucket.restore_from(&copy);
    }
    for object in [&second, &part, &pick(&scene, "base", "backup_manifest")] {
        let bytes = scene.bucket.get(object).unwrap().len();
        scene.bucket.put(object, flipped(&scene.bucket.get(object).unwrap(), bytes / 2));
        assert_found(&scene, &["--deep"], "wrong_contents", object).await;
        scene.bucket.restore_from(&copy);
    }
    // and a timeline whose history is not there,
    let orphan = second.replace("/00000001", "/00000002");
    scene.bucket.put(&orphan, scene.bucket.get(&second).unwrap());
    let json = scene.seawall(&["verify", "--json"]).run_err(7).await.stdout;
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["counts"]["missing_history"], 1, "{json}");
    let text = scene.seawall(&["verify"]).run_err(7).await.stdout;
    assert!(
        text.contains("missing history: 1") && text.contains("missing history: main/wal/00000002.history"),
        "{text}"
    );
    scene.bucket.restore_from(&copy);
    // and two that are swapped
    let (one, other) = (scene.bucket.get(&second).unwrap(), scene.bucket.get(&third).unwrap());
    scene.bucket.put(&second, other);
    scene.bucket.put(&third, one);
    let report = scene.seawall(&["verify", "--deep"]).run_err(7).await;
    assert!(report.stdout.contains("swapped object: 2"), "{}", report.stdout);
    let json = scene.seawall(&["verify", "--deep", "--json"]).run_err(7).await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["counts"]["swapped_object"], 2, "{json}");
    for object in [&second, &third] {
        assert!(report.stdout.contains(object.strip_prefix("backups/").unwrap()), "{}", report.stdout);
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_it_goes_on_and_asks_for_nothing_twice() {
    // Given a repository, and a verification that is held at one object and killed
    let scene = Scene::new(DEBIAN, &[]).await;
    let mut archiver = scene.archived().await;
    scene.settle().await;
    archiver.running.terminate().await;
    let file = scene.places.path().join("verify");
    let arguments = ["verify", "--deep", "--resume", file.to_str().unwrap()];
    let objects = |folder: &str| scene.bucket.count(Op::Get.at(format!("backups/main/{folder}")));
    scene.bucket.clear_log();
    let held = scene.bucket.hold(Op::Get.at("backups/main/wal/"));
    let mut first = scene.seawall(&arguments).start();
    // Several at once wait there.
    let what = "every part to be read";
    crate::support::waiting::wait_for(what, crate::support::waiting::PATIENCE, async || {
        (held.count() > 1).then_some(())
    })
    .await;
    first.kill();
    let read = std::fs::read_to_string(&file).unwrap().lines().count() - 1;
    assert!(read > 1, "{read} were read before it was killed");
    drop(held);
    let before = objects("base/");
    scene.bucket.clear_log();
    // When the same command runs again, then it reads what was left, and the documents
    let second = scene.seawall(&arguments).run_ok().await;
    assert!(second.stdout.contains("were read before the interruption"), "{}", second.stdout);
    let again = objects("base/");
    assert!(again <= 3 && again < before, "{again} requests for what lies in base/, after {before}");
    assert!(!file.exists());
}
