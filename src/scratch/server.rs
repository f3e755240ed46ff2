//! One throwaway server: its data directory, its process, its end. May use `error` and `runtime`.

use super::process::{below, is_alive, send};
use super::{Programs, Session, Unprivileged, marker};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use nix::sys::signal::Signal;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

/// Where sockets go: a Unix socket's path has at most 107 bytes (`man 7 unix`), and every user can enter this directory.
pub(super) const SOCKETS_BELOW: &str = "/tmp";
/// What such a directory is called, with a few letters behind it.
pub(super) const SOCKETS_PREFIX: &str = "seawall";
/// The port of a server that listens on its socket alone: part of the socket's name and of nothing else.
const SOCKET_PORT: u16 = 5432;
/// How often a port that somebody took between our look and the server's start is replaced.
const PORT_ATTEMPTS: usize = 8;
/// The pause between two looks at a server that starts or stops.
const POLL: Duration = Duration::from_millis(20);
/// A server that is not gone this long after it was told to stop will not go.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// So long whoever drops a server waits for its end: less than a stream may be silent.
const DROP_PATIENCE: Duration = Duration::from_secs(2);
/// Files of the server's configuration in our own directory.
const HBA_FILE: &str = "pg_hba.conf";
const IDENT_FILE: &str = "pg_ident.conf";
const CONFIGURATION_FILE: &str = "postgresql.conf";
const LOG_FILE: &str = "log";
/// The lines of the server's log that an error shows.
const LOG_LINES: usize = 20;

/// What a server is made of and started with.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Settings, name and value as in `postgresql.conf` but unquoted. A new server has them in that file (and so in its
    /// base backups), one that is opened gets them on its command line. They go before everything chosen here but
    /// the places of sockets and rules.
    pub settings: Vec<(String, String)>,
    /// The size of a WAL segment in MiB, 1 to 1024; PostgreSQL's own choice (16) without. New servers only.
    pub wal_segment_mib: Option<u32>,
    /// Pages with checksums. New servers only.
    pub data_checksums: bool,
    /// Listens on 127.0.0.1 and a free port too, and lets everybody there in unless `hba` says otherwise.
    pub listen_tcp: bool,
    /// Lines for `pg_hba.conf`, before those that let everybody in, and behind one for the superuser on the socket.
    pub hba: Vec<String>,
    /// Environment of the server and of what it runs, such as the `restore_command`, on top of ours.
    pub environment: Vec<(String, String)>,
    /// The server is to stay in recovery: it is ready as soon as it answers. Opened ones only.
    pub standby: bool,
    /// The name of the bootstrap superuser, whom we connect as; `postgres` without. Opened ones only.
    pub superuser: Option<String>,
    /// Neither the data directory's `postgresql.conf` is read, nor what that includes, nor its `pg_ident.conf`: only its
    /// `postgresql.auto.conf`, which the command line beats. Opened ones only.
    pub own_configuration: bool,
}

/// How a server is told to stop, by PostgreSQL's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends the clients, writes a checkpoint, waits for walsenders to hand over what is left.
    Fast,
    /// Leaves at once; the next start recovers.
    Immediate,
}

/// A throwaway server. Dropping it stops it at once (mode immediate), and waits for that, but not long: the rest is waited for beside
/// whoever dropped it. Its data directory stays.
pub struct Server {
    programs: Programs,
    data: PathBuf,
    user: Unprivileged,
    /// What goes on the command line on top of the places of sockets and rules.
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    standby: bool,
    superuser: String,
    own_configuration: bool,
    /// Holds the socket, the log and files of the configuration; the server's user alone can enter it, removed at the end.
    own: PathBuf,
    /// The log. Opened once, before the directory was given away: under its name may be something else by now, and we may be root.
    log: File,
    port: u16,
    listen_tcp: bool,
    child: Option<Child>,
}

impl Server {
    /// Makes a new cluster in `directory/data` and starts it. Its superuser is `postgres`, who needs no password on the
    /// socket; nothing is synced to disk unless the settings say `fsync = on`. `directory` is made if need be and given
    /// to the user that the server runs as. If dropped, the server goes; what is in `directory` stays.
    ///
    /// # Errors
    /// [`Kind::Local`] if there is a cluster already, if the server's user cannot reach the directory, or with the
    /// output of `initdb` or the server's log.
    pub async fn create(programs: &Programs, directory: &Path, options: ServerOptions) -> Result<Server> {
        let user = Unprivileged::find()?;
        user.create_directory(directory)?;
        let data = directory.join("data");
        initialise(programs, &user, &data, &options).await?;
        let mut server = Server::prepare(programs, data, user, Vec::new(), options)?;
        server.start().await?;
        Ok(server)
    }

    /// Starts an existing data directory as its owner and waits until recovery has ended or has paused at its target
    /// (with `standby`: until it answers). There is no time limit, for a recovery may take hours; the end of the server's
    /// process ends the wait. The server archives nothing, and neither access rules nor places of logs and sockets come
    /// from the directory's configuration. If dropped, the server goes.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory is root's or out of its owner's reach; or, with the server's log, if the server
    /// gives up, be it because recovery fails or because its target action is `shutdown`.
    pub async fn open(programs: &Programs, data: &Path, options: ServerOptions) -> Result<Server> {
        let user = Unprivileged::owner_of(data)?;
        user.check_way(data)?;
        // A live cluster's configuration may name its archive, its certificates and places that only its host has.
        let neutral = [
            ("archive_mode", "off"),
            ("ssl", "off"),
            ("external_pid_file", ""),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
        ];
        let neutral = neutral.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = neutral.into_iter().chain(options.settings.iter().cloned()).collect();
        let mut server = Server::prepare(programs, data.to_owned(), user, settings, options)?;
        server.start().await?;
        Ok(server)
    }

    fn prepare(
        programs: &Programs,
        data: PathBuf,
        user: Unprivileged,
        settings: Vec<(String, String)>,
        options: ServerOptions,
    ) -> Result<Server> {
        let below = Path::new(SOCKETS_BELOW);
        let own = nix::unistd::mkdtemp(&below.join(format!("{SOCKETS_PREFIX}-XXXXXX")))
            .map_err(|error| Error::local("create a directory in", below, error.into()))?;
        let path = own.join(LOG_FILE);
        let log = File::options().create_new(true).read(true).append(true).open(&path);
        let log = log.map_err(|error| {
            let _ = std::fs::remove_dir(&own);
            Error::local("write", &path, error)
        })?;
        let server = Server {
            programs: programs.clone(),
            data,
            user,
            settings,
            environment: options.environment,
            standby: options.standby,
            superuser: options.superuser.unwrap_or_else(|| "postgres".to_owned()),
            own_configuration: options.own_configuration,
            own,
            log,
            port: SOCKET_PORT,
            listen_tcp: options.listen_tcp,
            child: None,
        };
        server.user.give(&path)?;
        // Whoever removes the data directory after us knows by this what else there is.
        let place = server.data.canonicalize().map_err(|error| Error::local("look at", &server.data, error))?;
        marker::put(&server.own, &place)?;
        let superuser = server.superuser.replace('"', "\"\"");
        let mut rules = format!("local all \"{superuser}\" trust\nlocal replication \"{superuser}\" trust\n");
        for line in &options.hba {
            rules += line;
            rules.push('\n');
        }
        for place in
            ["local all all", "local replication all", "host all all 127.0.0.1/32", "host replication all 127.0.0.1/32"]
        {
            rules += place;
            rules += " trust\n";
        }
        server.put(HBA_FILE, &rules)?;
        if server.own_configuration {
            server.put(CONFIGURATION_FILE, "# What counts is on the command line.\n")?;
            server.put(IDENT_FILE, "")?;
        }
        // Last: from here on its names are the user's, and nothing is opened by them any more.
        server.user.give(&server.own)?;
        Ok(server)
    }

    /// Puts a file of the server's configuration into the directory, while that is ours.
    fn put(&self, name: &str, text: &str) -> Result<()> {
        let path = self.own.join(name);
        std::fs::write(&path, text).map_err(|error| Error::local("write", &path, error))?;
        self.user.give(&path)
    }

    /// Starts the server again after `stop` or `kill`, on the same socket and port, and waits as at first. Does nothing if
    /// it runs. If dropped, the server may or may not run; dropping it stops it either way.
    ///
    /// # Errors
    /// As [`Server::open`].
    pub async fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let unplaced = self.listen_tcp && self.port == SOCKET_PORT;
        for _ in 0..PORT_ATTEMPTS {
            if unplaced {
                self.port = free_port()?;
            }
            let log_start = self.log_length();
            self.child = Some(self.spawn()?);
            let Some(status) = self.ready_or_exit().await? else { return Ok(()) };
            self.child = None;
            let port_taken = self.log_from(log_start).contains("Address already in use");
            if !(port_taken && unplaced) {
                return Err(self.gave_up(status));
            }
        }
        Err(Error::new(Kind::Local, "every free port was taken before the server listened on it"))
    }

    fn spawn(&self) -> Result<Child> {
        let log = || self.log.try_clone().map_err(|error| Error::local("write", &self.own.join(LOG_FILE), error));
        let (file, errors) = (log()?, log()?);
        let program = self.programs.path("postgres");
        let mut command = self.user.command(&program);
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGOPTIONS", "PGDATABASE", "PGUSER"] {
            command.env_remove(name);
        }
        command.arg("-D").arg(&self.data);
        let places = [
            ("unix_socket_directories", self.own.display().to_string()),
            ("hba_file", self.own.join(HBA_FILE).display().to_string()),
            ("port", self.port.to_string()),
            ("listen_addresses", if self.listen_tcp { "127.0.0.1".to_owned() } else { String::new() }),
        ];
        // The last one counts: nobody's settings lead to other places.
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let own = [("config_file", CONFIGURATION_FILE), ("ident_file", IDENT_FILE)];
        for (name, file) in own.iter().filter(|_| self.own_configuration) {
            command.arg("-c").arg(format!("{name}={}", self.own.join(file).display()));
        }
        for (name, value) in &places {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // A group of its own: a Ctrl-C in the terminal is for us, and we end the server in our own time.
        command.current_dir(&self.data).process_group(0).stdin(Stdio::null()).stdout(file).stderr(errors);
        command.spawn().map_err(|error| Error::local("run", &program, error))
    }

    /// Waits until the server is ready (`None`) or gone (how).
    async fn ready_or_exit(&mut self) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            if self.is_ready().await? {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// True if the server answers and, unless it is a standby, recovery has ended or paused.
    async fn is_ready(&self) -> Result<bool> {
        let session = match self.maintenance().await {
            Ok(session) => session,
            Err(error) if may_pass(&error) => return Ok(false),
            Err(error) => {
                return Err(Error::new(Kind::Postgres, "the scratch server does not let us in").because(error));
            }
        };
        if self.standby {
            return Ok(true);
        }
        let state = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE true END";
        // An error is recovery that ended between the two questions, or a server that leaves: the next look tells.
        let answer = session.sql(state).await.unwrap_or_default();
        Ok(answer.first().and_then(|row| row.first()?.as_deref()) == Some("t"))
    }

    /// How the server's process ended, if it has.
    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        child
            .try_wait()
            .map_err(|error| Error::new(Kind::Local, "cannot look after the server's process").because(error))
    }

    fn gave_up(&self, status: ExitStatus) -> Error {
        let what = format!("PostgreSQL {} on {} ended ({status})", self.programs.version, self.data.display());
        Error::new(Kind::Local, what).because(format!("its log ends with:\n{}", self.log_tail()))
    }

    /// Stops the server and waits until it is gone; fine if it is already. If dropped, the server goes on stopping.
    ///
    /// # Errors
    /// [`Kind::Local`] if it is still there after a minute.
    pub async fn stop(&mut self, mode: StopMode) -> Result<()> {
        // https://www.postgresql.org/docs/current/server-shutdown.html
        self.signal(match mode {
            StopMode::Smart => Signal::SIGTERM,
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        });
        self.gone().await
    }

    /// Ends the server as a power cut would, without a word to anybody: the postmaster and every process below it get
    /// SIGKILL. `start` then recovers. If dropped, they may not be gone yet.
    ///
    /// # Errors
    /// [`Kind::Local`] if they are still there after a minute.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // Stopped, it starts no more of them while we look.
        self.signal(Signal::SIGSTOP);
        let children = below(pid);
        self.signal(Signal::SIGKILL);
        for child in &children {
            send(*child, Signal::SIGKILL);
        }
        self.gone().await?;
        // A data directory cannot be started again as long as one of them is attached to its shared memory.
        let deadline = Instant::now() + STOP_WITHIN;
        while children.iter().any(|child| is_alive(*child)) {
            if Instant::now() > deadline {
                return Err(Error::new(Kind::Local, "processes of the killed server are still there"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Leaves the server running, with its socket and log, for somebody else to end.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    async fn gone(&mut self) -> Result<()> {
        let deadline = Instant::now() + STOP_WITHIN;
        while self.child.is_some() {
            if self.exited()?.is_some() {
                self.child = None;
            } else if Instant::now() > deadline {
                let what = format!("PostgreSQL did not stop within {} seconds", STOP_WITHIN.as_secs());
                return Err(Error::new(Kind::Local, what).because(format!("its log ends with:\n{}", self.log_tail())));
            } else {
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Sends a signal to the postmaster, if it has not been waited for: its number is still its own then.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            send(pid, signal);
        }
    }

    /// Runs statements in the database `postgres`, or in `template1` where that was dropped, on a connection of their own;
    /// see [`Session::sql`].
    ///
    /// # Errors
    /// [`Kind::Postgres`] if the server cannot be reached or refuses.
    pub async fn sql(&self, statements: &str) -> Result<Vec<Vec<Option<String>>>> {
        let session = self.maintenance().await.map_err(|error| no_connection("postgres", error))?;
        session.sql(statements).await
    }

    /// Opens a connection to `database` as the superuser, through the socket.
    ///
    /// # Errors
    /// [`Kind::Postgres`] if the server cannot be reached or refuses.
    pub async fn connect(&self, database: &str) -> Result<Session> {
        self.session(database).await.map_err(|error| no_connection(database, error))
    }

    async fn maintenance(&self) -> Result<Session, tokio_postgres::Error> {
        match self.session("postgres").await {
            Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => self.session("template1").await,
            session => session,
        }
    }

    async fn session(&self, database: &str) -> Result<Session, tokio_postgres::Error> {
        Session::open(&self.own, self.port, &self.superuser, database).await
    }

    /// What a client connects with, through the socket, in libpq's words.
    pub fn conninfo(&self) -> String {
        let user = match self.superuser.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            true => self.superuser.clone(),
            false => format!("'{}'", self.superuser.replace('\\', r"\\").replace('\'', r"\'")),
        };
        format!("host={} port={} user={user} dbname=postgres", self.own.display(), self.port)
    }

    /// What a client on this machine connects with over TCP; works with `listen_tcp`.
    pub fn tcp_conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The directory of the socket.
    pub fn socket_directory(&self) -> &Path {
        &self.own
    }

    /// The port, of the socket's name and, with `listen_tcp`, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The cluster's data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Who it runs as.
    pub fn user(&self) -> &Unprivileged {
        &self.user
    }

    /// The postmaster's process number, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The whole log since the first start.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn log_from(&self, start: u64) -> String {
        let mut bytes = vec![0; usize::try_from(self.log_length().saturating_sub(start)).unwrap_or(0)];
        match self.log.read_exact_at(&mut bytes, start) {
            Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }

    fn log_length(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that a test has stopped (SIGSTOP) must wake up to leave.
        self.signal(Signal::SIGQUIT);
        self.signal(Signal::SIGCONT);
        let (child, own) = (self.child.take(), std::mem::take(&mut self.own));
        let (done, is_done) = mpsc::channel::<()>();
        // Whoever drops it may have a stream to answer. Nothing to do about an error.
        let thread = thread::Builder::new().name("seawall-scratch".to_owned());
        let _ = thread.spawn(move || {
            let _done = done;
            if let Some(mut child) = child {
                // Soon: five seconds after SIGQUIT the postmaster kills what is left below it. Never, if it waits for a disk that does
                // not answer.
                let _ = child.wait();
            }
            let _ = std::fs::remove_dir_all(&own);
        });
        let _ = is_done.recv_timeout(DROP_PATIENCE);
    }
}

/// Runs `initdb` and writes the settings.
async fn initialise(programs: &Programs, user: &Unprivileged, data: &Path, options: &ServerOptions) -> Result<()> {
    let program = programs.path("initdb");
    let mut command = user.command(&program);
    command.arg("-D").arg(data).args([
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]);
    if let Some(mib) = options.wal_segment_mib {
        command.arg(format!("--wal-segsize={mib}"));
    }
    if options.data_checksums {
        command.arg("--data-checksums");
    } else if programs.version >= 18 {
        // Checksums are the default since 18.
        command.arg("--no-data-checksums");
    }
    command.env_remove("PGDATA").current_dir(data.parent().unwrap_or(data)).stdin(Stdio::null());
    let output = runtime::blocking(move || command.output()).await?;
    let output = output.map_err(|error| Error::local("run", &program, error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(Kind::Local, format!("initdb failed on {}", data.display())).because(said));
    }
    let path = data.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&path).map_err(|error| Error::local("read", &path, error))?;
    text += "\n# A throwaway server: small, and nothing to lose in a power cut.\n";
    let small = [("fsync", "off"), ("shared_buffers", "32MB"), ("max_connections", "50"), ("jit", "off")];
    for (name, value) in small {
        text += &format!("{name} = '{value}'\n");
    }
    for (name, value) in &options.settings {
        text += &format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"));
    }
    std::fs::write(&path, text).map_err(|error| Error::local("write", &path, error))
}

/// A server that is starting, recovering or has not come to its socket yet says so by one of these.
fn may_pass(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::CANNOT_CONNECT_NOW || *code == SqlState::TOO_MANY_CONNECTIONS,
        None => true,
    }
}

fn no_connection(database: &str, error: tokio_postgres::Error) -> Error {
    Error::new(Kind::Postgres, format!("cannot connect to database {database} of the scratch server")).because(error)
}

/// A TCP port of 127.0.0.1 that nobody listened on a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let address = listener.map_err(|error| Error::new(Kind::Local, "cannot listen on 127.0.0.1").because(error))?;
    Ok(address.port())
}
