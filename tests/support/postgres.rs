//! Real PostgreSQL servers of every supported major version, load for them, and what they hold.

use seawall::postgres::{Client, ConnInfo, Mode};
use seawall::scratch::{Programs, Server, ServerOptions, Unprivileged};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Every major version that Seawall supports.
pub const SERVER_VERSIONS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// The version that Debian packages, with all its tools: for tests that need one server, whichever.
pub const DEBIAN: u32 = 15;

/// The server programs of one major version.
///
/// # Panics
/// If `tests/run.sh` has not brought them.
pub fn programs(version: u32) -> Programs {
    let bin = if version == DEBIAN {
        PathBuf::from("/usr/lib/postgresql/15/bin")
    } else {
        // A checkout that the server's user cannot enter has links here (tests/run.sh).
        let directory = target_directory().join("postgres").join(version.to_string());
        directory.canonicalize().unwrap_or(directory).join("bin")
    };
    let found = Programs::at(bin).unwrap_or_else(|error| panic!("{error}; `bash tests/run.sh` brings what tests need"));
    assert_eq!(found.version, version, "{} holds another version", found.bin.display());
    Unprivileged::find().unwrap().check_way(&found.path("postgres")).unwrap();
    found
}

/// The directory of `pg_dump`, `pg_restore` and `psql` for servers of a version: the oldest that take it.
pub fn clients(version: u32) -> PathBuf {
    let below = |name: &str| target_directory().join("postgres/clients").join(name);
    match version {
        ..=DEBIAN => PathBuf::from("/usr/lib/postgresql/15/bin"),
        16 => below("16"),
        _ => below("18"),
    }
}

/// `target/`: the build puts the directory for tests' temporary files there.
fn target_directory() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// A tool of PostgreSQL 15, such as `pgbench` or `pg_waldump`, run as the user that servers run as.
pub fn tool(name: &str) -> Command {
    let mut command = Unprivileged::find().unwrap().command(&programs(DEBIAN).path(name));
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// A new directory that the servers' user owns and can reach; removed when dropped.
pub fn scratch_directory() -> TempDir {
    scratch_directory_below(Path::new("/tmp"))
}

/// The same, on the file system of `parent`.
pub fn scratch_directory_below(parent: &Path) -> TempDir {
    let directory = TempDir::new_in(parent).unwrap();
    Unprivileged::find().unwrap().create_directory(directory.path()).unwrap();
    directory
}

/// A running server with a directory of its own. Derefs to [`Server`]; dropping it stops the server and removes both.
pub struct Postgres {
    // Before the directory: fields are dropped in this order.
    server: Server,
    directory: TempDir,
}

impl Postgres {
    /// A new cluster of `version`.
    pub async fn create(version: u32, options: ServerOptions) -> Postgres {
        Postgres::create_below(Path::new("/tmp"), version, options).await
    }

    /// A new cluster of `version`, on the file system of `parent`.
    pub async fn create_below(parent: &Path, version: u32, options: ServerOptions) -> Postgres {
        let directory = scratch_directory_below(parent);
        let server = Server::create(&programs(version), directory.path(), options).await.unwrap();
        Postgres { server, directory }
    }

    /// A directory of the server's user beside the data directory, such as for a tablespace.
    pub fn side_directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        self.server.user().create_directory(&path).unwrap();
        path
    }

    /// Runs statements that give one value.
    pub async fn value(&self, statements: &str) -> String {
        let rows = self.server.sql(statements).await.unwrap();
        let value = rows.first().and_then(|row| row.first()).cloned().flatten();
        value.unwrap_or_else(|| panic!("`{statements}` gave no value: {rows:?}"))
    }
}

impl std::ops::Deref for Postgres {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl std::ops::DerefMut for Postgres {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// A replication connection.
pub async fn connect(conninfo: &str) -> Client {
    Client::connect(&ConnInfo::parse(conninfo, &|_| None).unwrap(), Mode::Physical, &[]).await.unwrap()
}

/// `pgbench` of PostgreSQL 15 against any version, on the database `postgres`.
fn pgbench(server: &Server, arguments: &[&str]) -> Command {
    let mut command = tool("pgbench");
    command.arg("-h").arg(server.socket_directory()).arg("-p").arg(server.port().to_string());
    command.args(["-U", "postgres"]).args(arguments).arg("postgres");
    command
}

/// Makes the pgbench tables: 15 MB and 100,000 accounts per unit of `scale`.
pub async fn pgbench_tables(server: &Server, scale: u32) {
    let mut command = pgbench(server, &["-i", "-q", "-s", &scale.to_string()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "pgbench -i failed: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a number of pgbench transactions to their end.
pub async fn pgbench_transactions(server: &Server, transactions: u32) {
    let mut command = pgbench(server, &["-n", "-c", "2", "-t", &transactions.div_ceil(2).to_string()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
}

/// Transactions until it is dropped or stopped.
pub struct Load(Child);

impl Load {
    /// Starts `clients` pgbench clients; the tables must be there.
    pub fn start(server: &Server, clients: u32) -> Load {
        let mut command = pgbench(server, &["-n", "-T", "3600", "-c", &clients.to_string()]);
        Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// As [`Load::start`], with so many transactions a second.
    pub fn paced(server: &Server, clients: u32, per_second: u32) -> Load {
        let (clients, rate) = (clients.to_string(), per_second.to_string());
        let mut command = pgbench(server, &["-n", "-T", "3600", "-c", &clients, "-R", &rate]);
        Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// True as long as it has not ended by itself, as it does when the server goes.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Ends the load.
    pub fn stop(self) {}
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a database holds: for each table the number of its rows and a sum over a 64-bit hash of each. Two databases are equal if these
/// are, whatever the order of rows on disk. Hashes may differ between major versions.
pub async fn row_digests(server: &Server, database: &str) -> BTreeMap<String, (u64, String)> {
    let session = server.connect(database).await.unwrap();
    let tables = session
        .sql(
            "SELECT quote_ident(nspname) || '.' || quote_ident(relname) \
             FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace \
             WHERE relkind IN ('r', 'm') AND relpersistence = 'p' \
             AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')",
        )
        .await
        .unwrap();
    let mut digests = BTreeMap::new();
    for table in tables.into_iter().map(|mut row| row.remove(0).unwrap()) {
        let digest = format!("SELECT count(*), sum(hashtextextended(t::text, 0)) FROM ONLY {table} t");
        let row = session.sql(&digest).await.unwrap().remove(0);
        let rows = row[0].as_deref().unwrap().parse().unwrap();
        digests.insert(table, (rows, row[1].clone().unwrap_or_default()));
    }
    digests
}
