//! Failovers with real servers: promotions, dead branches, old primaries that come back, splits. Whatever happened, a
//! restore gives exactly the rows that the surviving history had.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod follower;
#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/s3_store.rs"]
mod s3_store;
mod scripted;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use s3::Op;
use seawall::error::Kind;
use seawall::scratch::StopMode;
use seawall::wal::{Lsn, TimelineId};
use stage::{Node, Stage, hosts, marks};
use support::postgres::{SERVER_VERSIONS, pgbench_tables, pgbench_transactions};
use support::waiting::{PATIENCE, wait_for};

const ONE: TimelineId = TimelineId(1);
const TWO: TimelineId = TimelineId(2);

/// Every major version, two at a time.
async fn each_version(story: impl AsyncFn(u32)) {
    for pair in SERVER_VERSIONS.chunks(2) {
        futures_util::future::join_all(pair.iter().map(|version| story(*version))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archiver_finds_the_promoted_server_and_every_moment_on_both_sides_can_be_restored() {
    each_version(failover).await;
}

async fn failover(version: u32) {
    let stage = Stage::new(version).await;
    let mut old = Node::primary(version, None).await;
    pgbench_tables(&old, 1).await;
    let [new] = old.standbys().await;
    // Given an archiver that is given both, and follows the primary
    let archiver = stage.archive(&hosts(&[&old, &new], "primary"));
    archiver.settled(&old).await;
    stage.backup(&old).await;
    old.mark("first").await;
    let before = old.time().await;
    old.mark("second").await;
    pgbench_transactions(&old, 200).await;
    new.replayed(old.lsn().await).await;
    // When the store hangs, the primary dies, and the standby is promoted
    let stuck = [Op::Put.at("repo/main/open/"), Op::Put.at("repo/main/wal/00000001/")];
    let stuck = stuck.map(|target| stage.bucket.hold(target));
    old.mark("third").await;
    new.replayed(old.lsn().await).await;
    old.server.kill().await.unwrap();
    let switch = new.promote().await;
    // Then the new primary has the slot at once, long before the old timeline is finished
    wait_for("the slot on the new primary", PATIENCE, async || new.has_slot().await.then_some(())).await;
    let catalog = stage.catalog().await;
    assert!(!catalog.coverage.contains_key(&TWO), "the new timeline waits for the old one");
    drop(stuck);
    // and both timelines are archived
    new.mark("fourth").await;
    let after = new.time().await;
    new.mark("fifth").await;
    pgbench_transactions(&new, 200).await;
    archiver.settled(&new).await;
    stage.assert_followed(1, switch, 2).await;
    assert_eq!(stage.catalog().await.dead_branches, []);
    archiver.stop().await;
    stage.assert_sound().await;
    // and the history tells of the promotion, and the list of one window of moments across it
    let told = stage.seawall(&["history", "--json", "--from", "0/0"]).run_ok().await.stdout;
    let entries: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let promotions: Vec<_> = entries.iter().filter(|entry| entry["event"] == "promotion").collect();
    assert_eq!(promotions.len(), 1, "PostgreSQL {version}: {told}");
    assert_eq!((&promotions[0]["timeline"], &promotions[0]["previous_timeline"]), (&2.into(), &1.into()), "{told}");
    let listed = stage.seawall(&["list", "--json"]).run_ok().await.stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let windows = listed["recovery_windows"].as_array().unwrap();
    assert_eq!((windows.len(), &windows[0]["timeline"]), (1, &2.into()), "{listed:#}");
    // and every moment comes back as it was
    let restored = stage.restored("end", &["--to-end"]).await;
    assert_eq!(restored.digests().await, new.digests().await, "PostgreSQL {version}");
    for (time, expected) in [(before, 1), (after, 4)] {
        let restored = stage.restored("time", &["--to", &time]).await;
        let expected = &["first", "second", "third", "fourth"][..expected];
        assert_eq!(marks(&restored).await, expected, "PostgreSQL {version}, restored to {time}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_primary_wrote_behind_the_fork_is_kept_apart() {
    each_version(old_primary).await;
}

async fn old_primary(version: u32) {
    let stage = Stage::new(version).await;
    // Given segments of every kind: of one block, of a small one, and of four, of which the second holds the fork
    let wal_segment_mib = [(14, 1), (16, 64)].into_iter().find(|(of, _)| *of == version).map(|(_, mib)| mib);
    let mut old = Node::primary(version, wal_segment_mib).await;
    if wal_segment_mib == Some(64) {
        old.value("SELECT pg_logical_emit_message(false, 'seawall', repeat('x', 20000000))").await;
    }
    let [new] = old.standbys().await;
    let archiver = stage.archive(&hosts(&[&old, &new], "primary"));
    archiver.settled(&old).await;
    stage.backup(&old).await;
    old.mark("shared").await;
    new.replayed(old.lsn().await).await;
    // and a standby that was promoted behind the back of its primary, which goes on, archived
    let switch = new.promote().await;
    old.mark("lost").await;
    let lost = old.time().await;
    old.mark("lost as well").await;
    new.mark("kept").await;
    let kept = new.time().await;
    archiver.settled(&old).await;
    let left = old.digests().await;
    assert!(archiver.state.borrow().flushed > switch, "the old primary has written past {switch}");
    // When the old primary dies, and the archiver finds the new one
    old.server.kill().await.unwrap();
    new.mark("kept as well").await;
    archiver.settled(&new).await;
    archiver.stop().await;
    // Then what it had stored is sealed and flagged
    stage.assert_followed(1, switch, 2).await;
    let branches = stage.catalog().await.dead_branches;
    assert_eq!((branches.len(), branches[0].timeline, branches[0].start), (1, ONE, switch), "{branches:?}");
    let is_sealed = |it: &&seawall::repository::Stored| it.is_block && it.range.end == branches[0].end;
    assert!(
        stage.catalog().await.coverage[&ONE].objects().iter().any(|it| is_sealed(&it)),
        "the dead branch is permanent"
    );
    let note = format!("timeline 1 was left at {switch}");
    assert!(stage.list().await.contains(&note), "{}", stage.list().await);
    assert!(stage.check(&new).await.stdout.contains(&note));
    stage.assert_sound().await;
    // and never read on the surviving path, but there for who asks
    let restored = stage.restored("end", &["--to-end"]).await;
    assert_eq!(marks(&restored).await, ["shared", "kept", "kept as well"], "PostgreSQL {version}");
    assert_eq!(restored.digests().await, new.digests().await);
    let restored = stage.restored("kept", &["--to", &kept]).await;
    assert_eq!(marks(&restored).await, ["shared", "kept"]);
    let restored = stage.restored("dead", &["--timeline", "1", "--to-end"]).await;
    assert_eq!(restored.digests().await, left, "PostgreSQL {version}: the dead branch to its end");
    let restored = stage.restored("lost", &["--timeline", "1", "--to", &lost]).await;
    assert_eq!(marks(&restored).await, ["shared", "lost"]);
    // When the old primary comes back, and an archiver that knows it alone is started
    old.server.start().await.unwrap();
    old.mark("still here").await;
    let before = stage.bucket.snapshot();
    let error = stage.archive(&hosts(&[&old], "primary")).gives_up().await;
    // Then it is refused with an explanation, and nothing was stored
    assert_eq!(error.kind(), Kind::Diverged);
    assert!(error.to_string().contains("follows timeline 2"), "{error}");
    assert!(error.hint_text().unwrap_or_default().contains("old primary"), "{error:?}");
    assert_eq!(stage.bucket.snapshot().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    // and one that knows both goes to the right one
    let archiver = stage.archive(&hosts(&[&old, &new], "primary"));
    new.mark("life goes on").await;
    archiver.settled(&new).await;
    archiver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_a_promoted_standby_had_in_part_is_a_dead_branch() {
    for version in [13, 15, 18] {
        half_a_record(version).await;
    }
}

/// The archiver follows a standby, which is promoted while it has the first half of a record: the server then says a switch
/// point that lies before what it has sent.
async fn half_a_record(version: u32) {
    let stage = Stage::new(version).await;
    let mut old = Node::primary(version, Some(1)).await;
    let [new] = old.standbys().await;
    let mut archiver = stage.archive(&hosts(&[&new], "any"));
    old.mark("first").await;
    archiver.acknowledged(ONE, old.lsn().await).await;
    stage.backup(&old).await;
    old.mark("through the standby").await;
    let time = old.time().await;
    // Given a message of many segments, of which the archiver has some when its writer stops in the middle
    let mut whole = 0;
    loop {
        let session = old.connect("postgres").await.unwrap();
        let pid = session.sql("SELECT pg_backend_pid()").await.unwrap()[0][0].clone().unwrap();
        let begun = old.lsn().await;
        let writing = tokio::spawn(async move {
            session.sql("SELECT pg_logical_emit_message(false, 'seawall', repeat('x', 400000000))").await
        });
        let state = archiver.state.clone();
        archiver.received(Lsn(begun.0 + (2 << 20))).await;
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        // One that has written everything may have ended already.
        if nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).is_ok() {
            // The last segment that was finished has come.
            let mut last = Lsn::INVALID;
            wait_for("the standby to have nothing more", PATIENCE, async || {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                let now = state.borrow().received;
                (std::mem::replace(&mut last, now) == now).then_some(())
            })
            .await;
            if last.0 < begun.0 + 400_000_000 {
                writing.abort();
                break;
            }
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
        }
        // It was faster than we: once more.
        writing.await.unwrap().unwrap();
        whole += 1;
        assert!(whole < 10, "every message was written before its writer could be stopped");
    }
    // When the primary dies and the standby is promoted
    old.server.kill().await.unwrap();
    let received = archiver.state.borrow().received;
    let switch = new.promote().await;
    assert!(switch < received, "{switch} should lie before {received}");
    new.mark("second").await;
    archiver.settled(&new).await;
    // Then the timelines are whole, and the half record is kept apart
    stage.assert_followed(1, switch, 2).await;
    let branches = stage.catalog().await.dead_branches;
    assert_eq!(branches.len(), 1, "{branches:?}");
    assert_eq!((branches[0].start, branches[0].end), (switch, received), "PostgreSQL {version}");
    archiver.stop().await;
    let restored = stage.restored("end", &["--to-end"]).await;
    assert_eq!(marks(&restored).await, ["first", "through the standby", "second"], "PostgreSQL {version}");
    assert_eq!(restored.digests().await, new.digests().await);
    let restored = stage.restored("before", &["--to", &time]).await;
    assert_eq!(marks(&restored).await, ["first", "through the standby"], "PostgreSQL {version}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_of_promotions_while_the_archiver_is_away_is_archived_in_order() {
    for version in [13, 16, 18] {
        cascade(version, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_of_promotions_is_followed_from_server_to_server() {
    for version in [14, 15, 17] {
        cascade(version, true).await;
    }
}

async fn cascade(version: u32, is_attached: bool) {
    let stage = Stage::new(version).await;
    let mut one = Node::primary(version, Some(1)).await;
    let [two, three] = one.standbys().await;
    let all = hosts(&[&one, &two, &three], "primary");
    let mut archiver = Some(stage.archive(&all));
    archiver.as_ref().unwrap().settled(&one).await;
    stage.backup(&one).await;
    one.mark("on one").await;
    archiver.as_ref().unwrap().settled(&one).await;
    if !is_attached {
        archiver.take().unwrap().stop().await;
    }
    // Given a first promotion, exactly at a segment's first byte
    one.value("SELECT pg_switch_wal()").await;
    let border = one.lsn().await;
    two.replayed(border).await;
    three.replayed(border).await;
    one.server.kill().await.unwrap();
    let first = two.promote().await;
    assert_eq!(first.0 % (1 << 20), 0, "{first} is no segment's first byte");
    // and a second one of a server that has nothing of the timeline between but its first records
    let three = three.repoint(&two).await;
    let all = hosts(&[&one, &two, &three], "primary");
    if let Some(attached) = archiver.take() {
        attached.settled(&two).await;
        attached.stop().await;
        archiver = Some(stage.archive(&all));
    }
    two.mark("on two").await;
    let time = two.time().await;
    three.replayed(two.lsn().await).await;
    let mut two = two;
    two.server.kill().await.unwrap();
    let second = three.promote().await;
    assert!(second.0 - first.0 < 1 << 20, "timeline 2 has a few bytes, {first} to {second}");
    three.mark("on three").await;
    // When the archiver is there
    let archiver = archiver.unwrap_or_else(|| stage.archive(&all));
    archiver.settled(&three).await;
    archiver.stop().await;
    // Then each timeline is whole, the histories have no gap in their numbers, and every moment comes back
    stage.assert_followed(1, first, 2).await;
    stage.assert_followed(2, second, 3).await;
    let catalog = stage.catalog().await;
    assert_eq!(catalog.histories.keys().map(|timeline| timeline.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((catalog.dead_branches, catalog.gaps), (vec![], vec![]));
    stage.assert_sound().await;
    let restored = stage.restored("end", &["--to-end"]).await;
    assert_eq!(restored.digests().await, three.digests().await, "PostgreSQL {version}");
    for (target, expected) in [(["--to", &time], &["on one", "on two"][..]), (["--timeline", "1"], &["on one"])] {
        let restored = stage.restored("before", &target).await;
        assert_eq!(marks(&restored).await, expected, "PostgreSQL {version}, {target:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_promoted_apart_are_never_merged() {
    each_version(promoted_apart).await;
}

async fn promoted_apart(version: u32) {
    let stage = Stage::new(version).await;
    let mut old = Node::primary(version, None).await;
    let [ours, theirs, twin] = old.standbys().await;
    let archiver = stage.archive(&hosts(&[&old, &ours], "primary"));
    archiver.settled(&old).await;
    stage.backup(&old).await;
    old.mark("shared").await;
    archiver.settled(&old).await;
    let fork = old.lsn().await;
    for standby in [&ours, &theirs, &twin] {
        standby.replayed(fork).await;
    }
    // Given two standbys that were promoted at one point, and a third at another
    theirs.value("SELECT pg_wal_replay_pause()").await;
    let (first, same) = (ours.promote().await, twin.promote().await);
    assert_eq!(first, same);
    theirs.value("SELECT pg_wal_replay_resume()").await;
    old.mark("one more").await;
    theirs.replayed(old.lsn().await).await;
    assert_ne!(theirs.promote().await, first);
    old.server.kill().await.unwrap();
    ours.mark("ours").await;
    let time = ours.time().await;
    theirs.mark("theirs").await;
    for n in 0..20 {
        twin.mark(&format!("of the twin, {n}")).await;
    }
    archiver.settled(&ours).await;
    archiver.stop().await;
    let before = stage.bucket.snapshot();
    // When the archiver is pointed to another one
    let error = stage.archive(&hosts(&[&theirs], "primary")).gives_up().await;
    // Then its history tells, nothing was stored, and no slot is left behind that would fill its disk
    assert_eq!(error.kind(), Kind::Diverged);
    assert!(error.to_string().contains("timeline 2 of this server is not the one"), "{error}");
    assert!(error.hint_text().unwrap_or_default().contains("promoted to the same timeline"), "{error:?}");
    assert!(!theirs.has_slot().await, "a slot was left on a server that is none of ours");
    // and where the history is the same, the bytes tell
    let archiver = stage.archive(&hosts(&[&twin], "primary"));
    let state = archiver.state.clone();
    let error = archiver.gives_up().await;
    assert_eq!(error.kind(), Kind::Diverged, "{error:?}");
    assert_eq!(state.borrow().flushed, Lsn::INVALID, "nothing was acknowledged");
    assert_eq!(stage.bucket.snapshot().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    // and among several hosts the right one is found.
    let archiver = stage.archive(&hosts(&[&theirs, &ours], "primary"));
    ours.mark("ours still").await;
    archiver.settled(&ours).await;
    archiver.stop().await;
    // and what comes back is what the one that was followed had, and nothing of the others
    let restored = stage.restored("end", &["--to-end"]).await;
    assert_eq!(restored.digests().await, ours.digests().await, "PostgreSQL {version}");
    let restored = stage.restored("between", &["--to", &time]).await;
    assert_eq!(marks(&restored).await, ["shared", "ours"], "PostgreSQL {version}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_had_nothing_more_is_not_followed_past_the_fork() {
    // Given a failover that lost nothing: the old primary ends where the new timeline begins
    let stage = Stage::new(15).await;
    let mut old = Node::primary(15, None).await;
    let [new] = old.standbys().await;
    let archiver = stage.archive(&hosts(&[&old, &new], "primary"));
    old.mark("shared").await;
    archiver.settled(&old).await;
    new.replayed(old.lsn().await).await;
    old.server.stop(StopMode::Fast).await.unwrap();
    let switch = new.promote().await;
    new.mark("kept").await;
    archiver.settled(&new).await;
    archiver.stop().await;
    stage.assert_followed(1, switch, 2).await;
    let before = stage.bucket.snapshot();
    // When it comes back and writes, and the archiver is given nothing else
    old.server.start().await.unwrap();
    old.mark("dead").await;
    let error = stage.archive(&hosts(&[&old], "primary")).gives_up().await;
    // Then nothing of that is stored
    assert_eq!(error.kind(), Kind::Diverged, "{error:?}");
    assert_eq!(stage.bucket.snapshot().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}
