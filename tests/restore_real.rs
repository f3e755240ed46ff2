//! Restores of real servers by the library, without the command line: what a server started on the directory holds.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use seawall::archive::{ArchiveOptions, ArchiveState, Archiver, PostgresSource};
use seawall::backup::{BackupOptions, BackupProgress, RepositoryWaiter, take};
use seawall::error::{Error, Kind};
use seawall::postgres::{Client, ConnInfo, Mode};
use seawall::repository::{Catalog, Repository, WalReader, Writer};
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::{
    FetchCommand, Pin, Plan, Request, RestoreOptions, RestoreProgress, Stop, Target, TargetAction, execute, plan,
};
use seawall::runtime::{Clock, Shutdown, Tasks};
use seawall::scratch::{Server, ServerOptions, Unprivileged};
use seawall::store::{FileStore, Store};
use seawall::wal::{Lsn, Segment, SegmentSize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::postgres::{DEBIAN, Postgres, programs, row_digests, scratch_directory};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;
use tokio::sync::watch;

/// A server, archived into local files.
struct Scene {
    server: Postgres,
    places: TempDir,
    store: Arc<dyn Store>,
    state: watch::Receiver<ArchiveState>,
    _archiver: Tasks<Result<(), Error>>,
}

impl Scene {
    async fn new(options: ServerOptions) -> Scene {
        let server = Postgres::create(DEBIAN, options).await;
        let places = scratch_directory();
        let root = places.path().join("repository");
        std::fs::create_dir(&root).unwrap();
        let store: Arc<dyn Store> = Arc::new(FileStore::new(root));
        let info = ConnInfo::parse(&server.conninfo(), &|_| None).unwrap();
        let source = Arc::new(PostgresSource::new(info, "seawall", Clock::system()));
        let archiver = Archiver::new(source, store.clone(), "main", ArchiveOptions::default(), Clock::system());
        let (state, mut tasks) = (archiver.state(), Tasks::default());
        tasks.start(async move { archiver.run(&Shutdown::default()).await });
        Scene { server, places, store, state, _archiver: tasks }
    }

    async fn sql(&self, statements: &str) {
        self.server.sql(statements).await.unwrap();
    }

    async fn lsn(&self) -> Lsn {
        self.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
    }

    /// Waits until everything that the server has on its disk is stored.
    async fn settle(&self) {
        let lsn = self.lsn().await;
        wait_for("the archiver", PATIENCE, async || (self.state.borrow().durable >= lsn).then_some(())).await;
    }

    async fn time(&self) -> jiff::Timestamp {
        let text = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.server.value(text).await.parse().unwrap()
    }

    async fn catalog(&self) -> (Catalog, WalReader) {
        let cluster = Repository::read_cluster(self.store.as_ref(), "main").await.unwrap().unwrap();
        let size = SegmentSize::new(cluster.segment_bytes).unwrap();
        let layout = seawall::repository::Layout::new("main", size, seawall::codec::Compression::Lz4);
        let repository = Repository { store: self.store.clone(), layout };
        let system_identifier = cluster.system_identifier;
        let catalog = Catalog::read(&repository, cluster).await.unwrap();
        (catalog, WalReader::new(repository, system_identifier))
    }

    async fn backup(&self) {
        let (catalog, reader) = self.catalog().await;
        let repository = reader.repository().clone();
        let writer = Writer::new(self.store.clone(), repository.layout.clone(), catalog.cluster.system_identifier);
        let info = ConnInfo::parse(&self.server.conninfo(), &|_| None).unwrap();
        let connect = || async { Ok(Client::connect(&info, Mode::Physical, &[]).await?) };
        let (progress, _) = watch::channel(BackupProgress::default());
        let (options, clock) = (BackupOptions::default(), Clock::system());
        let waiter = RepositoryWaiter::new(repository);
        Box::pin(take(connect, &writer, &options, &clock, &waiter, progress)).await.unwrap();
    }

    async fn plan(&self, request: &Request) -> Result<Plan, Error> {
        let (catalog, reader) = self.catalog().await;
        Box::pin(plan(&reader, &catalog, request, Clock::system().now())).await
    }

    /// Restores, with every file that recovery may ask for laid out beforehand by `wal-fetch`'s own function.
    async fn restore(&self, name: &str, plan: &Plan) -> PathBuf {
        let (_, reader) = self.catalog().await;
        let user = Unprivileged::find().unwrap();
        let place = self.places.path().join(name);
        let (into, shelf) = (place.join("data"), place.join("shelf"));
        user.create_directory(&place).unwrap();
        user.create_directory(&shelf).unwrap();
        // A program that does what PostgreSQL expects of one: 0 with the file, 1 for what is proven absent.
        let program = place.join("it's 100% seawall");
        let script = format!(
            "#!/bin/sh\nfor last; do before=$name; name=$last; done\n[ -e '{0}'/\"$before\" ] || exit 1\nexec cp '{0}'/\"$before\" \"$name\"\n",
            shelf.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = FetchCommand {
            executable: program,
            arguments: vec!["--repo".into(), "s3://it's/50%".into()],
            environment: vec![("AWS_REGION".into(), "x y".into())],
            ..FetchCommand::default()
        };
        let map = plan.tablespaces.iter().map(|it| (it.location.clone().into(), place.join(it.oid.to_string())));
        let options = RestoreOptions {
            tablespace_map: map.collect(),
            owner: nix::unistd::Uid::effective().is_root().then(|| user.name().to_owned()),
            ..RestoreOptions::new(into.clone(), command)
        };
        let (progress, _) = watch::channel(RestoreProgress::default());
        Box::pin(execute(reader.repository(), plan, &options, progress)).await.unwrap();
        lay_out(&reader, plan, &into, &shelf).await;
        user.give_all(&shelf).unwrap();
        into
    }

    async fn restored(&self, name: &str, request: &Request) -> (Plan, Server) {
        let plan = self.plan(request).await.unwrap();
        let into = self.restore(name, &plan).await;
        let programs = programs(DEBIAN);
        // Else it makes every file durable once more, one after the other.
        let settings = vec![("fsync".to_owned(), "off".to_owned())];
        let opened = Server::open(&programs, &into, ServerOptions { settings, ..ServerOptions::default() });
        (plan, tokio::time::timeout(PATIENCE, opened).await.expect("recovery ends").unwrap())
    }
}

async fn lay_out(reader: &WalReader, plan: &Plan, data: &Path, shelf: &Path) {
    let pin = Pin::read(data).unwrap().expect("a restore leaves a pin");
    let size = reader.repository().layout.segment_size();
    for need in &plan.wal {
        let mut segment = Segment::holding(need.timeline, need.start, size);
        while segment.start < need.end {
            let fetched = fetch(reader, &segment.name(), &shelf.join(segment.name()), Some(&pin), shelf).await.unwrap();
            assert_eq!(fetched, Fetched::Written, "{segment}");
            segment = segment.next();
        }
        let fetched = fetch(reader, &segment.name(), &shelf.join(segment.name()), Some(&pin), shelf).await.unwrap();
        assert_eq!(fetched, Fetched::Absent, "{segment} lies behind the end");
    }
}

fn to(target: Target) -> Request {
    Request { target, exclusive: false, backup: None, timeline: None, action: TargetAction::Promote }
}

async fn marks(server: &Server) -> Vec<String> {
    let rows = server.sql("SELECT what FROM marks ORDER BY id").await.unwrap();
    rows.into_iter().map(|row| row[0].clone().unwrap()).collect()
}

async fn answers(server: &Server, query: &str) -> String {
    server.sql(query).await.unwrap()[0][0].clone().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_comes_back_at_the_moment_asked_for_and_not_a_transaction_later() {
    // Given a server with a tablespace, archived and backed up, and then three transactions
    let settings = vec![("synchronous_standby_names".to_owned(), String::new())];
    let scene = Scene::new(ServerOptions { settings, ..ServerOptions::default() }).await;
    let space = scene.server.side_directory("space");
    scene.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await;
    scene.sql("CREATE TABLE marks (id serial, what text)").await;
    scene.sql("CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 10000) AS n").await;
    scene.settle().await;
    scene.backup().await;
    scene.sql("INSERT INTO marks (what) VALUES ('first')").await;
    let time = scene.time().await;
    scene.sql("SELECT pg_create_restore_point('before the second')").await;
    let xid = scene.server.value("INSERT INTO marks (what) VALUES ('second') RETURNING txid_current()").await;
    scene.sql("INSERT INTO marks (what) VALUES ('third')").await;
    let end = scene.lsn().await;
    let digests = row_digests(&scene.server, "postgres").await;
    scene.settle().await;

    // Then each target gives what it names
    let xid = Target::Xid(xid.parse().unwrap());
    let exclusive = |target| Request { exclusive: true, ..to(target) };
    let cases: [(&str, Request, &[&str]); 6] = [
        ("end", to(Target::End), &["first", "second", "third"]),
        ("time", to(Target::Time(time)), &["first"]),
        ("name", to(Target::Name("before the second".into())), &["first"]),
        ("xid", to(xid.clone()), &["first", "second"]),
        ("before xid", exclusive(xid), &["first"]),
        ("lsn", exclusive(Target::Lsn(end)), &["first", "second", "third"]),
    ];
    for (name, request, expected) in cases {
        let (plan, restored) = scene.restored(name, &request).await;
        assert_eq!(marks(&restored).await, expected, "restored to {name}: {plan}");
        assert_eq!(answers(&restored, "SELECT count(*) FROM far").await, "10000");
        assert_eq!(answers(&restored, "SELECT pg_is_in_recovery()").await, "f");
        assert_eq!(answers(&restored, "SHOW restore_command").await.matches('%').count(), 6, "%% twice, %f, %p");
        if name == "end" {
            assert_eq!(row_digests(&restored, "postgres").await, digests);
            restored.sql("INSERT INTO marks (what) VALUES ('life goes on')").await.unwrap();
        }
    }
    // and a pause is one, exactly there
    let pause = Request { action: TargetAction::Pause, ..to(Target::Time(time)) };
    let (_, paused) = scene.restored("pause", &pause).await;
    assert_eq!(answers(&paused, "SELECT pg_is_in_recovery()").await, "t");
    assert_eq!(marks(&paused).await, ["first"]);
    // and what is not there is refused, with what is.
    for target in [Target::Time(Clock::system().now()), Target::Xid(4_000_000_000), Target::Name("none".into())] {
        let error = scene.plan(&to(target)).await.unwrap_err();
        assert!(error.kind() == Kind::Refused && error.hint_text().is_some(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_configuration_lies_elsewhere_starts_with_what_replay_needs() {
    // Given a server as Debian lays it out, without configuration in its data directory
    let mut scene = Scene::new(ServerOptions::default()).await;
    scene.sql("CREATE TABLE marks (id serial, what text)").await;
    let data = scene.server.data_directory().to_owned();
    let text = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::remove_file(data.join(name)).unwrap();
    }
    scene.settle().await;
    scene.backup().await;
    // and raised limits since the backup
    std::fs::write(data.join("postgresql.conf"), text + "\nmax_connections = 333\nmax_locks_per_transaction = 99\n")
        .unwrap();
    std::fs::write(data.join("pg_ident.conf"), "").unwrap();
    scene.server.stop(seawall::scratch::StopMode::Fast).await.unwrap();
    scene.server.start().await.unwrap();
    scene.sql("INSERT INTO marks (what) VALUES ('after')").await;
    scene.settle().await;

    let (plan, restored) = scene.restored("debian", &to(Target::End)).await;
    assert_eq!(plan.requirements["max_connections"], 333);
    assert_eq!(answers(&restored, "SHOW max_locks_per_transaction").await, "99");
    assert_eq!(marks(&restored).await, ["after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_right_behind_a_backup_needs_no_record_of_its_own() {
    // Given a backup of a table that was written before, and a drop some seconds later
    let scene = Scene::new(ServerOptions::default()).await;
    scene.sql("CREATE TABLE marks (id serial, what text); INSERT INTO marks (what) VALUES ('old')").await;
    scene.settle().await;
    scene.backup().await;
    let later = "SELECT clock_timestamp() > checkpoint_time + interval '3 s' FROM pg_control_checkpoint()";
    let is_later = async || (scene.server.value(later).await == "t").then_some(());
    wait_for("a moment that is surely behind the backup's checkpoint", PATIENCE, is_later).await;
    let time = scene.time().await;
    scene.sql("DROP TABLE marks").await;
    scene.settle().await;

    let (plan, restored) = scene.restored("idle", &to(Target::Time(time))).await;
    assert!(matches!(plan.stop, Stop::After(span) if span.start < plan.backup.end_lsn), "{plan}");
    assert_eq!(marks(&restored).await, ["old"]);
}
