//! The archive as a synchronous standby: a commit returns when its WAL is in the store, not before and not much later.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::{Fault, Op, S3Server};
use seawall::scratch::{ServerOptions, StopMode};
use std::process::Stdio;
use std::time::Duration;
use support::metrics::Endpoint;
use support::postgres::{DEBIAN, Postgres, SERVER_VERSIONS, tool};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Commit = JoinHandle<Result<Vec<Vec<Option<String>>>, seawall::error::Error>>;

/// A server, a bucket, and the program between them.
struct Scene {
    version: u32,
    server: Postgres,
    bucket: S3Server,
}

impl Scene {
    async fn new(version: u32, synchronous_standby_names: &str) -> Scene {
        let settings = vec![("synchronous_standby_names".to_owned(), synchronous_standby_names.to_owned())];
        let options = ServerOptions { settings, ..ServerOptions::default() };
        Scene { version, server: Postgres::create(version, options).await, bucket: S3Server::start() }
    }

    fn archiver(&self, arguments: &[&str]) -> Running {
        let repository = format!("s3://{}/backups", S3Server::BUCKET);
        let seawall = Seawall::new(["run"]).env("SEAWALL_PG", self.server.conninfo()).env("SEAWALL_REPO", repository);
        let seawall = arguments.iter().fold(seawall, |seawall, argument| seawall.arg(argument));
        self.bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value)).start()
    }

    /// A commit in a session of its own, which may have to wait.
    async fn commit(&self, statements: &str) -> Commit {
        let session = self.server.connect("postgres").await.unwrap();
        let statements = statements.to_owned();
        tokio::spawn(async move { session.sql(&statements).await })
    }

    /// Waits until so many commits wait.
    async fn waiting(&self, commits: usize) {
        let query = format!("SELECT count(*) >= {commits} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        self.wait(&format!("{commits} commits to wait"), &query, "t").await;
    }

    async fn wait(&self, what: &str, query: &str, expected: &str) {
        let what = format!("{what} on PostgreSQL {}", self.version);
        wait_for(&what, PATIENCE * 2, async || (self.server.value(query).await == expected).then_some(())).await;
    }

    async fn returns(&self, what: &str, commit: Commit) {
        let returned = timeout(PATIENCE * 2, commit).await;
        returned.unwrap_or_else(|_| panic!("{what}: it hangs on PostgreSQL {}", self.version)).unwrap().unwrap();
    }

    /// Changes a setting of the running server.
    async fn set(&self, setting: &str, value: &str) {
        // Two statements in two rounds: ALTER SYSTEM is refused inside of a transaction.
        self.server.sql(&format!("ALTER SYSTEM SET {setting} = '{value}'")).await.unwrap();
        self.server.sql("SELECT pg_reload_conf()").await.unwrap();
        self.wait(setting, &format!("SELECT current_setting('{setting}') = '{value}'"), "t").await;
    }

    async fn wait_candidate(&self) {
        let query = "SELECT count(*) > 0 FROM pg_stat_replication \
                     WHERE application_name = 'seawall' AND sync_state IN ('sync', 'quorum', 'potential')";
        self.wait("the archiver to be a candidate", query, "t").await;
    }
}

/// A commit that does not return within a moment, though nothing but what the test holds keeps it.
async fn assert_waits(scene: &Scene, commit: &Commit) {
    scene.waiting(1).await;
    // Several status messages come and go meanwhile.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!commit.is_finished(), "a commit returned on PostgreSQL {} that is not stored", scene.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_major_version_a_commit_returns_when_its_wal_is_in_the_store() {
    let stories = SERVER_VERSIONS.map(|version| async move {
        // Given a commit that waits before there is an archiver at all, on a server whose WAL ended with a segment
        let scene = Scene::new(version, "seawall").await;
        scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
        let first = scene.commit("CREATE TABLE t (n int)").await;
        scene.waiting(1).await;
        // When the first archiver comes, then it returns: nobody has to report anything first
        let mut archiver = scene.archiver(&["--listen", "off"]);
        scene.returns("the commit before the archiver", first).await;

        // Given a store that holds what it is given
        let hold = scene.bucket.hold(Op::Put);
        let commit = scene.commit("INSERT INTO t VALUES (1)").await;
        hold.arrived(1).await;
        assert_waits(&scene, &commit).await;
        // When the store answers, then the commit returns
        drop(hold);
        scene.returns("the commit whose WAL is stored", commit).await;

        // Given an archiver that is killed while a commit waits
        let hold = scene.bucket.hold(Op::Put);
        let commit = scene.commit("INSERT INTO t VALUES (2)").await;
        hold.arrived(1).await;
        archiver.kill();
        drop(hold);
        assert_waits(&scene, &commit).await;
        // When one comes back, then the commit returns
        let mut archiver = scene.archiver(&["--listen", "off"]);
        scene.returns("the commit of before the kill", commit).await;
        scene.returns("the next one", scene.commit("INSERT INTO t VALUES (3)").await).await;
        assert_eq!(scene.server.value("SELECT sum(n) FROM t").await, "6");
        assert!(archiver.terminate().await.success());
    });
    futures_util::future::join_all(stories).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_come_together_go_together() {
    // Given a store that takes its time, and many sessions that wait for it
    const SESSIONS: usize = 40;
    const COMMITS: usize = 10;
    let scene = Scene::new(DEBIAN, "seawall").await;
    let mut archiver = scene.archiver(&["--listen", "off"]);
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    archiver.wait_for_text("commits wait for this archiver").await;
    scene.bucket.always(Op::Put, Fault::Delay(Duration::from_millis(50)));
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(scene.server.connect("postgres").await.unwrap());
    }
    scene.bucket.clear_log();
    // When each of them commits again and again
    let commits = sessions.into_iter().map(|session| {
        tokio::spawn(async move {
            for n in 0..COMMITS {
                session.sql(&format!("INSERT INTO t VALUES ({n})")).await.unwrap();
            }
        })
    });
    timeout(PATIENCE * 2, futures_util::future::join_all(commits)).await.expect("they return");
    // Then requests are shared
    let puts = scene.bucket.count(Op::Put);
    println!("{} commits of {SESSIONS} sessions in {puts} requests", SESSIONS * COMMITS);
    assert!(puts > 0 && puts * 3 <= SESSIONS * COMMITS, "{puts} requests for {} commits", SESSIONS * COMMITS);
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_under_way_together_and_acknowledged_in_order() {
    // Given a commit whose object the store holds
    let scene = Scene::new(DEBIAN, "seawall").await;
    let mut archiver = scene.archiver(&["--listen", "off"]);
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    archiver.wait_for_text("commits wait for this archiver").await;
    let hold = scene.bucket.hold(Op::Put);
    let first = scene.commit("INSERT INTO t VALUES (1)").await;
    hold.arrived(1).await;
    // When another one comes, whose object the store takes at once
    hold.let_later_ones_pass();
    let before = scene.bucket.count(Op::Put.at("backups/main/open/"));
    let second = scene.commit("INSERT INTO t VALUES (2)").await;
    wait_for("the second upload, beside the first", PATIENCE, async || {
        (scene.bucket.count(Op::Put.at("backups/main/open/")) > before).then_some(())
    })
    .await;
    // Then it waits for the one before, and returns with it
    scene.waiting(2).await;
    assert_waits(&scene, &second).await;
    assert!(!first.is_finished(), "the first commit returned, and is not stored");
    drop(hold);
    scene.returns("the first commit", first).await;
    scene.returns("the second commit", second).await;
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_switched_on_and_off_while_everything_runs() {
    // Given a server that waits for nobody, and an archiver that is in no hurry
    let scene = Scene::new(DEBIAN, "").await;
    let mut archiver = scene.archiver(&["--listen", "127.0.0.1:0", "--flush-interval", "1h"]);
    let metrics = Endpoint::of(&mut archiver).await;
    scene.server.sql("CREATE TABLE t (n int)").await.unwrap();
    scene.wait("the stream", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "1").await;
    assert_eq!(metrics.scrape().await.unwrap().value("seawall_synchronous"), 0.0);
    // When the administrator names it
    scene.set("synchronous_standby_names", "FIRST 1 (\"Seawall\")").await;
    archiver.wait_for_text("commits wait for this archiver").await;
    // Then it stores at once, and a commit returns long before an hour has passed
    scene.returns("with the name set", scene.commit("INSERT INTO t VALUES (1)").await).await;
    let scraped = metrics.scrape().await.unwrap();
    assert_eq!(scraped.value("seawall_synchronous"), 1.0);
    assert_eq!(scraped.value("seawall_synchronous_captured"), 0.0);
    // When the name is taken out again, then commits do not wait for a store that hangs
    scene.set("synchronous_standby_names", "").await;
    archiver.wait_for_text("no longer wait").await;
    let hold = scene.bucket.hold(Op::Put);
    scene.returns("with the name taken out", scene.commit("INSERT INTO t VALUES (2)").await).await;
    // When nobody is named but everybody is meant, then that is said loudly
    scene.set("synchronous_standby_names", "*").await;
    archiver.wait_for_text("although nobody named it").await;
    drop(hold);
    scene.returns("captured", scene.commit("INSERT INTO t VALUES (3)").await).await;
    let scraped = metrics.scrape().await.unwrap();
    assert_eq!(scraped.value("seawall_synchronous"), 1.0);
    assert_eq!(scraped.value("seawall_synchronous_captured"), 1.0);
    assert_eq!(archiver.stderr().matches("although nobody named it").count(), 1, "once is enough");
    assert!(archiver.terminate().await.success());
}

/// `pg_receivewal` as a second synchronous standby; killed when dropped.
struct Receiver {
    child: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Receiver {
    fn start(scene: &Scene) -> Receiver {
        let directory = support::postgres::scratch_directory();
        let mut command = tool("pg_receivewal");
        command.arg("-d").arg(format!("{} application_name=other", scene.server.conninfo()));
        command.arg("--synchronous").arg("-D").arg(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Receiver { child: command.spawn().unwrap(), _directory: directory }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_another_standby_it_counts_as_the_administrator_says() {
    // Given an archiver and another standby, whichever comes first
    let scene = Scene::new(DEBIAN, "ANY 1 (seawall, other)").await;
    let receiver = Receiver::start(&scene);
    let mut archiver = scene.archiver(&["--listen", "off"]);
    scene.returns("any", scene.commit("CREATE TABLE t (n int)").await).await;
    scene.wait_candidate().await;
    scene.wait("both", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'", "2").await;
    // When the store hangs, then the other one is enough
    let hold = scene.bucket.hold(Op::Put);
    scene.returns("any, with a store that hangs", scene.commit("INSERT INTO t VALUES (1)").await).await;
    // When both are asked for, then it is not
    scene.set("synchronous_standby_names", "ANY 2 (seawall, other)").await;
    let both = scene.commit("INSERT INTO t VALUES (2)").await;
    assert_waits(&scene, &both).await;
    drop(hold);
    scene.returns("both", both).await;
    // When the archiver comes first, then the other one cannot stand in for it
    scene.set("synchronous_standby_names", "FIRST 1 (seawall, other)").await;
    scene
        .wait(
            "its turn",
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'seawall' AND sync_state <> 'async'",
            "sync",
        )
        .await;
    let hold = scene.bucket.hold(Op::Put);
    let first = scene.commit("INSERT INTO t VALUES (3)").await;
    assert_waits(&scene, &first).await;
    // unless the archiver is gone: then the next in the list is the first
    archiver.kill();
    scene.returns("first, with the archiver gone", first).await;
    drop(hold);
    // When it is back, and the other one goes, then it stands in
    let mut archiver = scene.archiver(&["--listen", "off"]);
    scene.wait_candidate().await;
    scene.set("synchronous_standby_names", "FIRST 1 (other, seawall)").await;
    drop(receiver);
    scene.returns("first, with the other one gone", scene.commit("INSERT INTO t VALUES (4)").await).await;
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_major_version_remote_apply_is_explained_and_can_be_had() {
    let stories = SERVER_VERSIONS.map(|version| async move {
        // Given a server on which a commit waits until a standby has applied it
        let mut scene = Scene::new(version, "seawall").await;
        let mut archiver = scene.archiver(&["--listen", "127.0.0.1:0"]);
        let metrics = Endpoint::of(&mut archiver).await;
        scene.returns("an ordinary commit", scene.commit("CREATE TABLE t (n int)").await).await;
        scene.set("synchronous_commit", "remote_apply").await;
        // Then that is explained, once and loudly, with what to do
        archiver.wait_for_text("commits will hang for ever").await;
        archiver.wait_for_text("treat_archived_as_applied").await;
        let commit = scene.commit("INSERT INTO t VALUES (1)").await;
        assert_waits(&scene, &commit).await;
        wait_for("the metric", PATIENCE, async || {
            (metrics.scrape().await.unwrap().value("seawall_remote_apply") == 1.0).then_some(())
        })
        .await;
        assert_eq!(archiver.stderr().matches("commits will hang for ever").count(), 1, "once is enough");
        // When the archiver is told that stored is as good as applied, then the commit returns
        assert!(archiver.terminate().await.success());
        let mut archiver = scene.archiver(&["--listen", "off", "--treat-archived-as-applied"]);
        scene.returns("with the option", commit).await;
        archiver.wait_for_text("commits wait for this archiver").await;
        assert!(!archiver.stderr().contains("hang for ever"), "there is nothing to explain");
        // and not before it is stored
        let hold = scene.bucket.hold(Op::Put);
        let commit = scene.commit("INSERT INTO t VALUES (2)").await;
        assert_waits(&scene, &commit).await;
        drop(hold);
        scene.returns("with the option, stored", commit).await;
        assert!(archiver.terminate().await.success());
        scene.server.stop(StopMode::Immediate).await.unwrap();
    });
    futures_util::future::join_all(stories).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_apply_of_one_role_or_session_is_found_as_well() {
    // Given a server that waits for storing, and one role that wants more
    let scene = Scene::new(DEBIAN, "seawall").await;
    let mut archiver = scene.archiver(&["--listen", "off"]);
    scene.returns("an ordinary commit", scene.commit("CREATE TABLE t (n int)").await).await;
    // When a session waits for what never comes, then that is found although no setting tells
    let commit = scene.commit("SET synchronous_commit = remote_apply; INSERT INTO t VALUES (1)").await;
    archiver.wait_for_text("commits wait although their WAL is stored").await;
    assert!(!commit.is_finished());
    scene.server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await.unwrap();
    timeout(PATIENCE, commit).await.expect("it was cancelled").unwrap().unwrap();
    // When a role has it as its default, then that is explained before anybody hangs
    scene.server.sql("CREATE ROLE careful").await.unwrap();
    scene.server.sql("ALTER ROLE careful SET synchronous_commit = remote_apply").await.unwrap();
    archiver.wait_for_text("commits will hang for ever").await;
    assert!(archiver.terminate().await.success());
}
