//! A standby that has nothing but the archive: it follows commits, failovers, and can be promoted itself.

use crate::stage::{Node, Stage, hosts, marks};
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::wal::TimelineId;
use std::os::unix::fs::MetadataExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_standby_follows_the_archive_across_a_failover_and_can_be_promoted() {
    Box::pin(futures_util::future::join(follow(13), follow(18))).await;
}

async fn has(follower: &Node, expected: &[&str]) {
    let what = format!("the standby to have {expected:?}");
    wait_for(&what, PATIENCE * 2, async || (marks(follower).await == expected).then_some(())).await;
}

async fn follow(version: u32) {
    let stage = Stage::new(version).await;
    // Given a primary with a standby, archived and backed up
    let mut old = Node::primary(version, None).await;
    let [new] = old.standbys().await;
    let archiver = stage.archive(&hosts(&[&old, &new], "primary"));
    archiver.settled(&old).await;
    stage.backup(&old).await;
    old.mark("before").await;
    archiver.settled(&old).await;
    // When a standby is restored from the archive alone, then it comes up with what is there
    let follower = stage.follower().await;
    has(&follower, &["before"]).await;
    assert_eq!(follower.value("SELECT pg_is_in_recovery()").await, "t");
    assert_eq!(follower.value("SHOW recovery_target_timeline").await, "latest");
    // and gets a commit that is stored as a tail, without a stream and without the end of a segment
    old.mark("a tail").await;
    has(&follower, &["before", "a tail"]).await;
    // and as long as nothing comes, nothing is written again
    let lsn = follower.value("SELECT pg_last_wal_replay_lsn()").await;
    let name = old.value(&format!("SELECT pg_walfile_name('{lsn}')")).await;
    let segment = follower.data_directory().join("pg_wal").join(&name);
    let (asked, written) = (stage.bucket.log().len(), std::fs::metadata(&segment).unwrap());
    wait_for("the standby to ask again", PATIENCE, async || (stage.bucket.log().len() > asked + 30).then_some(()))
        .await;
    let now = std::fs::metadata(&segment).unwrap();
    assert_eq!((now.ino(), now.mtime_nsec()), (written.ino(), written.mtime_nsec()), "{name} was brought again");
    old.value("SELECT pg_switch_wal()").await;
    old.mark("another segment").await;
    has(&follower, &["before", "a tail", "another segment"]).await;
    // When the primary dies and its other standby is promoted, then this one goes on to the new timeline
    new.replayed(old.lsn().await).await;
    archiver.settled(&old).await;
    old.server.kill().await.unwrap();
    new.promote().await;
    new.mark("a new timeline").await;
    has(&follower, &["before", "a tail", "another segment", "a new timeline"]).await;
    // When it is promoted itself, then it takes a timeline that nobody has
    archiver.stop().await;
    follower.promote().await;
    assert_eq!(follower.timeline().await, TimelineId(3), "PostgreSQL {version}");
    follower.mark("on its own").await;
    assert_eq!(marks(&follower).await.len(), 5);
}
