//! `seawall demo`: a throwaway server, its archive, a disaster, and the moment before it back. Everything is in one
//! temporary directory, and goes at the end.

use super::print::{duration, size};
use super::steps::Steps;
use super::{parts, signals};
use crate::archive::{ArchiveOptions, ArchiveState, Archiver, Phase, PostgresSource};
use crate::backup::{self, BackupOptions, BackupProgress, RepositoryWaiter};
use crate::cli::DemoArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, ConnInfo, Mode};
use crate::recovery::{self, RecoveryOptions};
use crate::repository::{Catalog, WalReader, Writer};
use crate::restore::{self, FetchCommand, LocalWal, Request, RestoreProgress, Target, TargetAction};
use crate::runtime::{self, Clock, Shutdown, Tasks};
use crate::scratch::{Directory, Programs, Server, ServerOptions, Session, Unprivileged};
use crate::store::{Store, StoreOptions};
use crate::wal::Lsn;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The cluster's name in the repository: what every command takes when none is given.
const CLUSTER: &str = "main";
/// Rows before the base backup.
const ROWS: u64 = 100_000;
/// Commits after it, each of which is timed on its way into the repository.
const COMMITS: u32 = 9;
/// Rows of each of them.
const ROWS_PER_COMMIT: u64 = 1_000;
/// What lies in the one directory of the demonstration.
const REPOSITORY: &str = "repository";

/// Runs the demonstration.
///
/// # Errors
/// [`Kind::Local`] without PostgreSQL, or if it was interrupted; otherwise whatever failed. Nothing is left behind.
pub(super) async fn demo(args: &DemoArgs, settings: Settings) -> Result<()> {
    let shutdown = Shutdown::default();
    let _watch = signals::watch(shutdown.clone())?;
    let programs = Programs::find(None)?;
    let mut place = Directory::create(&std::env::temp_dir(), "seawall-demo")?;
    if args.keep {
        place.keep();
    }
    // Whatever the environment says is about real servers and buckets: not touched here.
    let (repo, store) = (Some(repository_url(&place)), StoreOptions::default());
    let settings = Settings { file: None, cluster: CLUSTER.into(), repo, store, ..settings };
    let steps = Steps::new();
    let ended = tokio::select! {
        biased;
        () = shutdown.kill.cancelled() => Err(interrupted()),
        ended = Box::pin(act(&shutdown, steps, &programs, &place, &settings)) => ended,
    };
    let (source, restored) = match ended {
        Ok(servers) => servers,
        Err(error) => {
            // The first error is the one to tell.
            if let Err(left) = place.remove().await {
                tracing::warn!("{left}");
            }
            return Err(if shutdown.stop.is_cancelled() { interrupted() } else { error });
        }
    };
    if args.keep {
        steps.line(&kept(&place, &source, &restored))?;
        source.leave();
        restored.leave();
    } else {
        drop((source, restored));
        place.remove().await?;
        steps.line("Everything is removed again; --keep leaves it for a look around.\n")?;
    }
    steps.line(&format!(
        "Now a real one:  {}",
        steps.strong("seawall run --pg 'host=db user=seawall' --repo s3://bucket/prefix")
    ))
}

fn interrupted() -> Error {
    Error::new(Kind::Local, "the demonstration was interrupted")
        .hint("Nothing is left behind: run it again at any time.")
}

/// Everything but cleaning up: the source and the restored server, both running.
async fn act(
    shutdown: &Shutdown,
    steps: Steps,
    programs: &Programs,
    place: &Directory,
    settings: &Settings,
) -> Result<(Server, Server)> {
    steps.line(&format!(
        "{}  in {}; touches nothing of yours\n",
        steps.strong("Seawall demo"),
        place.path().display()
    ))?;
    let step = steps.begin("making a cluster");
    // Not to be dropped in the middle: initdb would go on without us.
    let source = Server::create(programs, &place.path().join("source"), ServerOptions::default()).await?;
    let detail =
        format!("PostgreSQL {} from {}, as user {}", programs.version, programs.bin.display(), source.user().name());
    step.done("a throwaway server", &detail)?;
    let story = Story { steps, place, settings, clock: Clock::system() };
    tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => Err(interrupted()),
        told = Box::pin(story.tell(&source)) => told,
    }
    .map(|restored| (source, restored))
}

/// What the story is told with.
struct Story<'a> {
    steps: Steps,
    place: &'a Directory,
    settings: &'a Settings,
    clock: Clock,
}

impl Story<'_> {
    /// From the first byte archived to the rows that are back; gives the restored server.
    async fn tell(&self, source: &Server) -> Result<Server> {
        let path = self.place.path().join(REPOSITORY);
        std::fs::create_dir(&path).map_err(|error| Error::local("create", &path, error))?;
        let store = parts::store(self.settings).await?;
        let step = self.steps.begin("connecting");
        let mut archiving = Archiving::begin(source, store, &self.clock).await?;
        step.done("WAL streams into", self.settings.repo()?)?;

        let session = source.connect("postgres").await?;
        self.first_rows(&session, &mut archiving).await?;
        self.base_backup(source).await?;
        let exposed = self.more_rows(&session, &mut archiving).await?;
        let before = Contents::of(&session).await?;
        let moment = self.clock.now();
        let step = self.steps.begin("noting the moment");
        step.done("the moment to return to", &format!("{}, with {before}", exactly(moment)))?;

        let step = self.steps.begin("dropping the table");
        session.sql("DROP TABLE orders").await?;
        archiving.store_all(&session).await?;
        step.disaster("DROP TABLE orders", "committed, and archived like everything else")?;
        archiving.stop().await?;

        let begun = Instant::now();
        let restored = self.restore(source.programs(), moment).await?;
        let took = begun.elapsed();
        let step = self.steps.begin("comparing");
        let after = Contents::of(&restored.connect("postgres").await?).await?;
        if after != before {
            return Err(Error::new(Kind::Damaged, format!("the restored table has {after}, and had {before}"))
                .hint("This is a defect: please report it with the output above."));
        }
        step.done("the rows are back", &format!("{after}, the same as before"))?;
        self.measured(&exposed, took)?;
        Ok(restored)
    }

    async fn first_rows(&self, session: &Session, archiving: &mut Archiving) -> Result<()> {
        let step = self.steps.begin("writing rows");
        session
            .sql("CREATE TABLE orders (id bigint PRIMARY KEY, customer text, cents integer, at timestamptz DEFAULT now())")
            .await?;
        insert(session, 1, ROWS).await?;
        archiving.store_all(session).await?;
        let bytes = archiving.state.borrow().counts.received_bytes;
        step.done("rows written", &format!("{}, {} of WAL so far, all of it stored", grouped(ROWS), size(bytes)))
    }

    async fn base_backup(&self, source: &Server) -> Result<()> {
        let step = self.steps.begin("taking a base backup");
        let (repository, cluster) = parts::repository(self.settings).await?;
        let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
        let info = ConnInfo::parse(&source.conninfo(), &|_| None)?;
        let connect = || async { Ok(Client::connect(&info, Mode::Physical, &[]).await?) };
        let waiter = RepositoryWaiter::new(repository);
        let options = BackupOptions { label: "seawall demo".into(), ..BackupOptions::default() };
        let (progress, _) = watch::channel(BackupProgress::default());
        let taken = Box::pin(backup::take(connect, &writer, &options, &self.clock, &waiter, progress)).await?;
        let detail = format!("{}, {} stored as {}", taken.id, size(taken.plain_bytes), size(taken.stored_bytes));
        step.done("base backup", &detail)
    }

    /// Commits, each followed into the repository: how long each of them was exposed, shortest first.
    async fn more_rows(&self, session: &Session, archiving: &mut Archiving) -> Result<Vec<Duration>> {
        let step = self.steps.begin("committing, and timing each commit's way into the repository");
        let mut exposed = Vec::new();
        for commit in 0..u64::from(COMMITS) {
            insert(session, 1 + ROWS + commit * ROWS_PER_COMMIT, ROWS_PER_COMMIT).await?;
            let committed = Instant::now();
            archiving.store_all(session).await?;
            exposed.push(committed.elapsed());
        }
        exposed.sort();
        let rows = grouped(u64::from(COMMITS) * ROWS_PER_COMMIT);
        step.done("more rows", &format!("{rows} in {COMMITS} commits, after the backup: only WAL has them"))?;
        Ok(exposed)
    }

    /// The restored server, recovered to `moment` and open for writes.
    async fn restore(&self, programs: &Programs, moment: Timestamp) -> Result<Server> {
        let step = self.steps.begin("planning the restore");
        let (repository, cluster) = parts::repository(self.settings).await?;
        let catalog = Catalog::read(&repository, cluster).await?;
        let reader = WalReader::new(repository, catalog.cluster.system_identifier);
        let request = Request {
            target: Target::Time(moment),
            exclusive: false,
            backup: None,
            timeline: None,
            action: TargetAction::Promote,
        };
        let plan = Box::pin(restore::plan(&reader, &catalog, &request, self.clock.now())).await?;
        let detail = format!("backup {}, then WAL up to {}, just before the drop", plan.backup.id, plan.end_lsn);
        step.done("restore planned", &detail)?;

        let step = self.steps.begin("restoring the backup, and recovering");
        // The archiver has written as ourselves, and the restored server reads as its user.
        let (user, path) = (Unprivileged::find()?, self.place.path().join(REPOSITORY));
        runtime::blocking(move || user.give_all(&path)).await??;
        let executable = std::env::current_exe()
            .map_err(|error| Error::new(Kind::Local, "cannot find this program's own file").because(error))?;
        let command = FetchCommand {
            executable,
            arguments: ["--repo", self.settings.repo()?, "--cluster", CLUSTER].map(str::to_owned).to_vec(),
            // It must not read what is for real servers and buckets.
            environment: vec![("SEAWALL_CONFIG".to_owned(), String::new())],
            ..FetchCommand::default()
        };
        let options = RecoveryOptions {
            programs: programs.clone(),
            command,
            databases: Vec::new(),
            wal: LocalWal::None,
            // As the source's: nothing to lose in a power cut.
            settings: vec![("fsync".to_owned(), "off".to_owned())],
        };
        let (progress, _) = watch::channel(RestoreProgress::default());
        let directory = self.place.path().join("restored");
        Unprivileged::find()?.create_directory(&directory)?;
        let recovered = recovery::recover(&directory, reader.repository(), &plan, options, progress).await?;
        let report = &recovered.report;
        step.done("backup restored", &format!("{} files, {}, each one checked", report.files, size(report.bytes)))?;
        let step = self.steps.begin("recovering");
        step.done("recovered and promoted", "PostgreSQL replayed the WAL and takes writes again")?;
        Ok(recovered.server)
    }

    fn measured(&self, exposed: &[Duration], restore: Duration) -> Result<()> {
        let (Some(worst), Some(median)) = (exposed.last(), exposed.get(exposed.len() / 2)) else { return Ok(()) };
        let flush = duration(ArchiveOptions::default().flush_interval);
        let rpo = self.steps.strong(&format!("RPO      {}", duration(*worst)));
        let rto = self.steps.strong(&format!("Restore  {}", duration(restore)));
        self.steps.line(&format!(
            "\n  {rpo}  from a commit to its copy in the repository, at worst; median {} (flush interval {flush})\n  \
             {rto}  from the decision to a server that takes writes\n",
            duration(*median)
        ))
    }
}

/// The archiver at work beside the story; dropped, it stops at once.
struct Archiving {
    shutdown: Shutdown,
    state: watch::Receiver<ArchiveState>,
    task: Tasks<Result<()>>,
}

impl Archiving {
    /// Returns once it streams.
    async fn begin(source: &Server, store: Arc<dyn Store>, clock: &Clock) -> Result<Archiving> {
        let info = ConnInfo::parse(&source.conninfo(), &|_| None)?;
        let postgres = Arc::new(PostgresSource::new(info, "seawall", clock.clone()));
        let archiver = Archiver::new(postgres, store, CLUSTER, ArchiveOptions::default(), clock.clone());
        let (shutdown, state, mut task) = (Shutdown::default(), archiver.state(), Tasks::default());
        let token = shutdown.clone();
        task.start(async move { archiver.run(&token).await });
        let mut archiving = Archiving { shutdown, state, task };
        archiving.wait(|state| state.phase == Phase::Streaming).await?;
        Ok(archiving)
    }

    /// Waits until everything that the server has on its disk now is in the repository.
    async fn store_all(&mut self, session: &Session) -> Result<()> {
        let text = one_value(session, "SELECT pg_current_wal_flush_lsn()").await?;
        let lsn: Lsn =
            text.parse().map_err(|error| Error::new(Kind::Postgres, "the server gave no LSN").because(error))?;
        self.wait(|state| state.durable >= lsn).await
    }

    async fn wait(&mut self, condition: impl FnMut(&ArchiveState) -> bool) -> Result<()> {
        if self.state.wait_for(condition).await.is_ok() {
            return Ok(());
        }
        self.end().await?;
        Err(Error::new(Kind::Internal, "the archiver ended without being told to"))
    }

    /// Stores what was received and leaves.
    async fn stop(mut self) -> Result<()> {
        self.shutdown.begin_stop();
        self.end().await
    }

    async fn end(&mut self) -> Result<()> {
        self.task.next().await.unwrap_or(Ok(Ok(())))?
    }
}

/// What the table holds: enough to see that not one row is missing or different.
#[derive(PartialEq, Eq)]
struct Contents {
    rows: u64,
    digest: String,
}

impl Contents {
    async fn of(session: &Session) -> Result<Contents> {
        let digest = "encode(sha256(convert_to(string_agg(orders::text, ' ' ORDER BY id), 'UTF8')), 'hex')";
        let text = one_value(session, &format!("SELECT count(*) || ' ' || {digest} FROM orders")).await?;
        let (rows, digest) = text.split_once(' ').unwrap_or_default();
        let rows =
            rows.parse().map_err(|error| Error::new(Kind::Postgres, "the server gave no count").because(error))?;
        Ok(Contents { rows, digest: digest.to_owned() })
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows, SHA-256 {}…", grouped(self.rows), self.digest.get(..12).unwrap_or(&self.digest))
    }
}

async fn insert(session: &Session, first: u64, count: u64) -> Result<()> {
    let last = first + count - 1;
    let values = "SELECT i, 'customer ' || md5(i::text), i * 7 % 10000";
    let insert = format!("INSERT INTO orders (id, customer, cents) {values} FROM generate_series({first}, {last}) i");
    session.sql(&insert).await.map(drop)
}

async fn one_value(session: &Session, question: &str) -> Result<String> {
    let rows = session.sql(question).await?;
    let value = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    value.ok_or_else(|| Error::new(Kind::Postgres, format!("`{question}` gave nothing")))
}

fn repository_url(place: &Directory) -> String {
    format!("file://{}", place.path().join(REPOSITORY).display().to_string().replace('%', "%25"))
}

/// What `--keep` left, and how it is got rid of.
fn kept(place: &Directory, source: &Server, restored: &Server) -> String {
    let psql = |server: &Server| format!("psql '{}'", server.conninfo());
    let pids: Vec<String> =
        [source, restored].iter().filter_map(|server| server.pid()).map(|pid| pid.to_string()).collect();
    let directories = [place.path(), source.socket_directory(), restored.socket_directory()];
    let directories = directories.map(|path| path.display().to_string());
    [
        "Kept, and running:".to_owned(),
        format!("  without the table  {}", psql(source)),
        format!("  restored           {}", psql(restored)),
        format!("  what is stored     seawall list --repo {}", repository_url(place)),
        format!("  to stop them       kill -INT {}", pids.join(" ")),
        format!("  to remove it all   rm -r {}\n", directories.join(" ")),
    ]
    .join("\n")
}

/// A moment in the zone of whoever reads it, to the microsecond.
fn exactly(moment: Timestamp) -> String {
    moment.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.6f%:z").to_string()
}

/// Digits in groups of three: `100,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (109_000, "109,000"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
