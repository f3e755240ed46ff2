//! A store that answers with errors, late, or not at all.

use crate::s3::{Fault, Op, S3Server, StoredObject};
use crate::scene::Scene;
use crate::support::postgres::DEBIAN;
use crate::support::waiting::{PATIENCE, wait_for};
use crate::{assert_complete, clients, more_are_told};
use std::time::Duration;

/// Tails, the objects that the archiver stores all the time.
const OPEN: &str = "backups/main/open/";

/// Nothing is stored as long as one of these lasts, or at least nobody can know.
const REFUSALS: [(&str, Fault); 10] = [
    ("500", Fault::INTERNAL_ERROR),
    ("503 SlowDown", Fault::SLOW_DOWN),
    ("409", Fault::CONFLICT),
    ("412 although nothing is there", Fault::PRECONDITION_FAILED),
    ("400 BadDigest", Fault::BAD_DIGEST),
    ("400 ExpiredToken", Fault::EXPIRED_TOKEN),
    ("403 RequestTimeTooSkewed", Fault::TIME_TOO_SKEWED),
    ("403 AccessDenied", Fault::ACCESS_DENIED),
    ("closed before it is carried out", Fault::RequestLost),
    ("closed instead of a reply", Fault::ReplyLost),
];

/// With these it only takes longer.
const DELAYS: [Fault; 2] = [Fault::Delay(Duration::from_millis(700)), Fault::BytesPerSecond(100_000)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_store_answers_nothing_is_acknowledged_until_it_is_stored_and_then_everything() {
    // Given an archiver under load
    let scene = Scene::new(DEBIAN, &[]).await;
    let archiver = scene.archived().await;
    let clients = clients(&scene);
    let walsender = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'";
    let before = scene.server.value(walsender).await;
    for (what, fault) in REFUSALS {
        // When the store answers so, more than once
        scene.bucket.always(Op::Put, fault);
        scene.bucket.clear_log();
        wait_for(what, PATIENCE, async || (scene.bucket.count(Op::Put) >= 2).then_some(())).await;
        // Then what is committed now is not acknowledged
        more_are_told(&clients).await;
        let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
        let acknowledged = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        more_are_told(&clients).await;
        assert_eq!(scene.server.value(&acknowledged).await, "0", "acknowledged while the store answers {what}");
        // until it answers well again
        scene.bucket.clear();
        scene.settle().await;
    }
    for fault in DELAYS {
        scene.bucket.always(Op::Put, fault);
        more_are_told(&clients).await;
        scene.settle().await;
        scene.bucket.clear();
    }
    assert_eq!(scene.server.value(walsender).await, before, "the stream broke, and only the store was bad");
    assert_complete(scene, archiver, clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_lost_reply_or_a_late_one_is_our_own_object_found_again() {
    let scene = Scene::new(DEBIAN, &[]).await;
    let archiver = scene.archived().await;
    let clients = clients(&scene);
    for fault in [Fault::ReplyLost, Fault::RequestLost, Fault::CONFLICT, Fault::PRECONDITION_FAILED] {
        scene.bucket.fault(Op::Put.at(OPEN), fault);
        more_are_told(&clients).await;
        scene.settle().await;
        wait_for("the fault to be met", PATIENCE, async || (scene.bucket.faults_left() == 0).then_some(())).await;
    }
    assert_complete(scene, archiver, clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_has_other_bytes_stops_the_archiver_and_is_not_acknowledged() {
    // Given an object whose reply is lost, and which is another one when the archiver comes again
    let scene = Scene::new(DEBIAN, &[]).await;
    let mut archiver = scene.archived().await;
    let stored = scene.bucket.snapshot();
    scene.bucket.always(Op::Put, Fault::ReplyLost);
    scene.server.sql("INSERT INTO told VALUES (1, 'mine')").await.unwrap();
    let lsn = scene.server.value("SELECT pg_current_wal_flush_lsn()").await;
    let (name, object) = wait_for("an object to be stored", PATIENCE, async || {
        let mut new = scene.bucket.snapshot().into_iter().filter(|(name, _)| !stored.contains_key(name));
        new.find(|(name, _)| name.starts_with(OPEN))
    })
    .await;
    let mut bucket = scene.bucket.snapshot();
    bucket.insert(name.clone(), other(&object));
    scene.bucket.restore_from(&bucket);
    // When it hears that the name is taken
    scene.bucket.clear();
    // Then it stops, says so, and has acknowledged nothing of it; and it overwrites nothing
    let ended = archiver.running.wait(PATIENCE).await;
    assert_eq!(ended.code(), Some(8), "{}", archiver.running.stderr());
    assert!(archiver.running.stderr().contains(name.trim_start_matches("backups/")), "{}", archiver.running.stderr());
    let acknowledged = format!("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn >= '{lsn}'");
    assert_eq!(scene.server.value(&acknowledged).await, "0");
    assert_eq!(scene.bucket.snapshot()[&name], other(&object));
}

/// The same object of a server that has gone another way: its identity says another hash.
fn other(object: &StoredObject) -> StoredObject {
    let key = "seawall-blake3";
    let blake3 = object.metadata[key].clone();
    let other: String = blake3.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect();
    let mut metadata = object.metadata.clone();
    metadata.insert(key.to_owned(), other.clone());
    let mut bytes = object.bytes.to_vec();
    let at = bytes.windows(blake3.len()).position(|window| window == blake3.as_bytes()).expect("an identity");
    bytes[at..at + blake3.len()].copy_from_slice(other.as_bytes());
    StoredObject { bytes: bytes.into(), metadata }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_expire_are_fetched_again() {
    // Given credentials that a program gives out, here from a file
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let given = scene.places.path().join("credentials.json");
    let give = |token: &str, expiration: &str| {
        let (id, secret) = (S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
        let json = format!(
            r#"{{"Version":1,"AccessKeyId":"{id}","SecretAccessKey":"{secret}","SessionToken":"{token}","Expiration":"{expiration}"}}"#
        );
        // In one step: the program may read at any time.
        let new = given.with_extension("new");
        std::fs::write(&new, json).unwrap();
        std::fs::rename(&new, &given).unwrap();
    };
    let config = scene.places.path().join("config");
    std::fs::write(&config, format!("[default]\ncredential_process = /bin/cat {}\n", given.display())).unwrap();
    scene.environment.push(("AWS_CONFIG_FILE", config.display().to_string()));
    scene.environment.push(("AWS_ACCESS_KEY_ID", String::new()));
    scene.environment.push(("AWS_SECRET_ACCESS_KEY", String::new()));
    give("first", "2999-01-01T00:00:00Z");
    scene.bucket.require_token(Some("first"));
    let archiver = scene.archived().await;
    let clients = clients(&scene);
    for token in ["second", "third"] {
        // When the store lets them in no more, earlier than they say themselves
        scene.bucket.require_token(Some(token));
        let metrics = "seawall_store_failures_total";
        wait_for("requests to be refused", PATIENCE, async || {
            archiver.metrics.scrape().await?.labelled(metrics, "kind=\"credentials\"").filter(|count| *count > 0.0)
        })
        .await;
        more_are_told(&clients).await;
        // Then new ones are asked for, and everything goes on
        give(token, "2999-01-01T00:00:00Z");
        scene.settle().await;
    }
    // The restored server has keys of its own.
    scene.bucket.require_token(None);
    assert_complete(scene, archiver, clients).await;
}
