//! Servers that share the archive's system identifier and not its past: rolled back, cloned, reset. Each is a hard stop
//! before anything is stored or acknowledged.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use futures_util::future::join_all;
use seawall::error::{Error, Kind};
use seawall::scratch::{Server, ServerOptions, StopMode};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, Segment, SegmentSize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::archiver::{Archiving, catalog, contents};
use support::postgres::{DEBIAN, Postgres, SERVER_VERSIONS, programs, tool};
use support::program::Seawall;
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Segments of 1 MiB, and nothing that writes by itself.
fn options() -> ServerOptions {
    let settings = [("autovacuum", "off"), ("min_wal_size", "2MB"), ("max_wal_size", "64MB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    ServerOptions { settings, wal_segment_mib: Some(1), ..ServerOptions::default() }
}

async fn flush_lsn(server: &Server) -> Lsn {
    let rows = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// About so many bytes of WAL, full of one letter.
async fn write(server: &Server, letter: char, kib: usize) {
    for _ in 0..kib.div_ceil(8) {
        let message = format!("SELECT pg_logical_emit_message(true, 'test', repeat('{letter}', 8000))");
        server.sql(&message).await.unwrap();
    }
}

async fn restart_lsn(server: &Server) -> Option<String> {
    server.sql("SELECT restart_lsn FROM pg_replication_slots").await.unwrap()[0][0].clone()
}

fn run(program: &str, arguments: &[&Path]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// An archive of a server of which there is an older copy.
struct Scene {
    server: Postgres,
    store: Arc<dyn Store>,
    copy: PathBuf,
}

impl Scene {
    /// A server that was archived, stopped, and copied.
    async fn new(version: u32) -> Scene {
        let mut server = Postgres::create(version, options()).await;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let copy = server.side_directory("copies").join("data");
        let archiving = Archiving::start(&server.conninfo(), &store);
        write(&server, 'a', 300).await;
        archiving.wait_flushed(flush_lsn(&server).await).await;
        archiving.stop().await;
        server.stop(StopMode::Fast).await.unwrap();
        run("cp", &[Path::new("-a"), server.data_directory(), &copy]);
        server.start().await.unwrap();
        Scene { server, store, copy }
    }

    /// Archives what the server has; the end of what is stored then.
    async fn archive(&self) -> Lsn {
        let archiving = Archiving::start(&self.server.conninfo(), &self.store);
        archiving.wait_flushed(flush_lsn(&self.server).await).await;
        archiving.stop().await;
        let (_, catalog) = catalog(&self.store).await;
        catalog.coverage.values().filter_map(|coverage| coverage.end()).max().unwrap()
    }

    /// Puts the older copy in the server's place, and starts it.
    async fn roll_back(&mut self) {
        self.server.stop(StopMode::Fast).await.unwrap();
        let data = self.server.data_directory().to_owned();
        run("rm", &[Path::new("-r"), &data]);
        run("cp", &[Path::new("-a"), &self.copy, &data]);
    }

    /// The archiver gives up with an explanation, and has changed nothing: no object, and no slot.
    async fn assert_hard_stop(&self) -> Error {
        let (before, position) = (contents(&self.store).await, restart_lsn(&self.server).await);
        let archiving = Archiving::start(&self.server.conninfo(), &self.store);
        let state = archiving.state.clone();
        let error = archiving.error().await;
        assert_eq!(error.kind(), Kind::Diverged, "{error:?}");
        assert!(error.hint_text().unwrap_or_default().contains("--cluster"), "{error:?}");
        assert_eq!(state.borrow().flushed, Lsn::INVALID, "something was acknowledged: {error}");
        assert_eq!(restart_lsn(&self.server).await, position, "the slot moved: {error}");
        let after = contents(&self.store).await;
        let changed: Vec<_> = after.keys().filter(|key| before.get(*key) != after.get(*key)).collect();
        assert!(before == after, "the repository changed: {changed:?}: {error}");
        error
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_rolled_back_and_has_written_more_than_the_archive_has_is_found_out() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        // Given an archive that goes on behind the copy
        let mut scene = Scene::new(version).await;
        write(&scene.server, 'b', 100).await;
        let stored = scene.archive().await;
        // When the copy is put back and goes its own way, past what is stored, by a little or by several blocks
        scene.roll_back().await;
        scene.server.start().await.unwrap();
        write(&scene.server, 'c', 150).await;
        assert!(flush_lsn(&scene.server).await > stored);
        let error = scene.assert_hard_stop().await;
        assert!(error.to_string().contains("is stored with other bytes than the server has now"), "{error}");
        write(&scene.server, 'c', 4000).await;
        scene.assert_hard_stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_rolled_back_behind_the_archive_is_not_taken_for_one_that_will_catch_up() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        let mut scene = Scene::new(version).await;
        write(&scene.server, 'b', 3000).await;
        let stored = scene.archive().await;
        // When the copy is put back and has written less than the archive has: nothing, or a little
        scene.roll_back().await;
        scene.server.start().await.unwrap();
        for _ in 0..2 {
            let error = scene.assert_hard_stop().await;
            assert!(error.to_string().contains(&format!("already has it up to {stored}")), "{error}");
            write(&scene.server, 'c', 50).await;
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_exactly_where_the_archive_ends_goes_on() {
    let mut scene = Scene::new(DEBIAN).await;
    // Given a copy that is put back when the archive has what it has, and no more
    scene.server.stop(StopMode::Fast).await.unwrap();
    scene.roll_back().await;
    scene.server.start().await.unwrap();
    // When it goes on
    write(&scene.server, 'b', 100).await;
    let end = flush_lsn(&scene.server).await;
    // Then that is no divergence
    assert!(scene.archive().await >= end);
    let (_, catalog) = catalog(&scene.store).await;
    let runs: Vec<_> = catalog.coverage.values().flat_map(|coverage| coverage.runs()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_equal_by_chance_proves_nothing() {
    // Given an archive that ends with a few bytes of a segment, which any server in this place would write
    let mut scene = Scene::new(17).await;
    let few_bytes = async |server: &Server, letter: char| {
        let message = format!("SELECT pg_logical_emit_message(false, 'test', repeat('{letter}', 1000))");
        server.sql(&message).await.unwrap();
        server.sql("SELECT pg_switch_wal()").await.unwrap();
        server.sql("SELECT pg_log_standby_snapshot()").await.unwrap();
    };
    few_bytes(&scene.server, 'b').await;
    let stored = scene.archive().await;
    assert!(stored.0 % MIB < 1000, "{stored} is not at the beginning of a segment");
    // When the copy is put back and differs in the segment before alone
    scene.roll_back().await;
    scene.server.start().await.unwrap();
    few_bytes(&scene.server, 'c').await;
    write(&scene.server, 'c', 100).await;
    // Then that is found out
    scene.assert_hard_stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_archives_into_the_same_folder_is_found_out() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        // Given a server that is archived, and a clone of it that lives at the same time
        let scene = Scene::new(version).await;
        let clone = Server::open(&programs(version), &scene.copy, options()).await.unwrap();
        write(&scene.server, 'b', 100).await;
        scene.archive().await;
        write(&clone, 'c', 300).await;
        let (before, position) = (contents(&scene.store).await, restart_lsn(&clone).await);
        // When the clone's archiver comes to the same folder, then it gives up
        let error = Archiving::start(&clone.conninfo(), &scene.store).error().await;
        assert_eq!(error.kind(), Kind::Diverged, "{error:?}");
        assert_eq!(restart_lsn(&clone).await, position);
        assert!(contents(&scene.store).await == before, "the repository changed");
        // and the real one goes on
        write(&scene.server, 'b', 100).await;
        let end = flush_lsn(&scene.server).await;
        assert!(scene.archive().await >= end);
    }))
    .await;
}

/// `pg_resetwal`, which only the Debian packages have.
fn reset_wal(data: &Path, arguments: &[&str]) {
    let output = tool("pg_resetwal").arg("-f").args(arguments).arg("-D").arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_was_reset_ahead_of_the_archive_is_no_gap() {
    for arguments in [&[][..], &["-l", "000000010000000000000040"][..]] {
        // Given an archived server whose WAL is reset: it begins anew in the next segment, or far ahead
        let mut scene = Scene::new(DEBIAN).await;
        write(&scene.server, 'b', 1500).await;
        scene.server.stop(StopMode::Fast).await.unwrap();
        reset_wal(scene.server.data_directory(), arguments);
        scene.server.start().await.unwrap();
        write(&scene.server, 'c', 100).await;
        // Then that is said, and not recorded as a gap
        let error = scene.assert_hard_stop().await;
        assert!(error.to_string().contains("pg_resetwal"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_was_reset_where_the_archive_ends_does_not_link() {
    // Given an archive that ends with a whole segment
    let mut scene = Scene::new(DEBIAN).await;
    let archiving = Archiving::start(&scene.server.conninfo(), &scene.store);
    scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
    let stored = flush_lsn(&scene.server).await;
    archiving.wait_flushed(stored).await;
    archiving.stop().await;
    assert_eq!(stored.0 % MIB, 0, "{stored}");
    // When WAL begins anew exactly there
    scene.server.stop(StopMode::Immediate).await.unwrap();
    for entry in std::fs::read_dir(scene.server.data_directory().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let segment = Segment::parse(entry.file_name().to_str().unwrap(), SegmentSize::new(MIB).unwrap());
        if segment.is_ok_and(|segment| segment.end() > stored) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    reset_wal(scene.server.data_directory(), &[]);
    scene.server.start().await.unwrap();
    write(&scene.server, 'c', 100).await;
    // Then its first record does not follow what is stored
    let error = scene.assert_hard_stop().await;
    assert!(error.to_string().contains(&format!("from {stored} on does not follow")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_was_reset_behind_the_archive_is_found_out() {
    // Given an archive several segments ahead of a copy whose WAL is reset
    let mut scene = Scene::new(DEBIAN).await;
    write(&scene.server, 'b', 5000).await;
    scene.archive().await;
    scene.roll_back().await;
    reset_wal(scene.server.data_directory(), &[]);
    scene.server.start().await.unwrap();
    // Then it is found out while it is behind
    let error = scene.assert_hard_stop().await;
    assert!(error.to_string().contains("pg_resetwal"), "{error}");
    // and when it has passed the archive's end
    write(&scene.server, 'c', 7000).await;
    scene.assert_hard_stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergence_at_a_border_whose_segment_is_gone_is_found_by_the_link() {
    join_all(SERVER_VERSIONS.map(|version| async move {
        // Given an archive that ends with a whole segment
        let mut scene = Scene::new(version).await;
        let archiving = Archiving::start(&scene.server.conninfo(), &scene.store);
        write(&scene.server, 'b', 100).await;
        scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
        let stored = flush_lsn(&scene.server).await;
        archiving.wait_flushed(stored).await;
        archiving.stop().await;
        assert_eq!(stored.0 % MIB, 0, "{stored}");
        // When another history passes that border, and the server removes what is before it
        scene.roll_back().await;
        scene.server.start().await.unwrap();
        scene.server.sql("SELECT pg_drop_replication_slot('seawall')").await.unwrap();
        write(&scene.server, 'c', 200).await;
        scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
        assert_eq!(flush_lsn(&scene.server).await, stored, "another segment");
        let name = Segment::holding(seawall::wal::TimelineId(1), Lsn(stored.0 - 1), SegmentSize::new(MIB).unwrap());
        let last = scene.server.data_directory().join("pg_wal").join(name.name());
        wait_for("the last segment to be removed", PATIENCE, async || {
            write(&scene.server, 'c', 8).await;
            scene.server.sql("CHECKPOINT").await.unwrap();
            (!last.exists()).then_some(())
        })
        .await;
        scene.server.sql("SELECT pg_create_physical_replication_slot('seawall', true)").await.unwrap();
        // Then there is nothing to compare, and the first record shows it
        let error = scene.assert_hard_stop().await;
        assert!(error.to_string().contains(&format!("from {stored} on does not follow")), "{error}");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_ends_with_the_code_of_a_divergence_and_says_what_to_do() {
    // Given a repository in files, and a copy of the server that was put back
    let mut server = Postgres::create(DEBIAN, options()).await;
    let directory = TempDir::new().unwrap();
    let repository = directory.path().join("repository");
    std::fs::create_dir(&repository).unwrap();
    let seawall = |server: &Postgres| {
        Seawall::new(["run", "--listen", "off", "--flush-interval", "100ms"])
            .env("SEAWALL_PG", server.conninfo())
            .env("SEAWALL_REPO", format!("file://{}", repository.display()))
    };
    server.stop(StopMode::Fast).await.unwrap();
    let copy = server.side_directory("copies").join("data");
    run("cp", &[Path::new("-a"), server.data_directory(), &copy]);
    server.start().await.unwrap();
    let mut running = seawall(&server).start();
    write(&server, 'b', 100).await;
    let lsn = flush_lsn(&server).await;
    let acknowledged = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
    wait_for("the WAL to be acknowledged", PATIENCE, async || (server.value(&acknowledged).await != "0").then_some(()))
        .await;
    assert!(running.terminate().await.success());
    server.stop(StopMode::Fast).await.unwrap();
    let data = server.data_directory().to_owned();
    run("rm", &[Path::new("-r"), &data]);
    run("cp", &[Path::new("-a"), &copy, &data]);
    server.start().await.unwrap();
    write(&server, 'c', 200).await;
    // When the archiver is started on it, then it ends with the code for that, and says what to do
    let ended = seawall(&server).run_err(8).await.stderr;
    assert!(ended.contains("hint:") && ended.contains("--cluster") && ended.contains("new base backup"), "{ended}");
    // and no base backup is taken of it
    let arguments = ["backup", "--fast"];
    let backup = Seawall::new(arguments)
        .env("SEAWALL_PG", server.conninfo())
        .env("SEAWALL_REPO", format!("file://{}", repository.display()));
    backup.run_err(8).await;
    assert!(!repository.join("main/base").exists(), "a base backup was begun");
}
