//! The wire against a real PostgreSQL 15.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use rcgen::{CertificateParams, DnType, KeyPair};
use seawall::error::{Error, Kind};
use seawall::postgres::{
    BackupEvent, BaseBackupOptions, Client, ConnInfo, Mode, PgError, SlotState, StatusUpdate, Streaming, WalMessage,
    WalStream,
};
use seawall::secret::{Secret, Source};
use seawall::wal::{Lsn, TimelineId};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// Nothing here takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A throwaway server on a Unix socket and on loopback; it ends with the test.
struct Server {
    directory: tempfile::TempDir,
    port: u16,
    postmaster: Child,
}

impl Server {
    async fn start(settings: &[&str], hba: &str) -> Server {
        let directory = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
        if let Some((uid, gid)) = unprivileged() {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
            chown(&data, Some(uid), Some(gid)).unwrap();
        }
        let made = program("initdb")
            .args(["--no-sync", "--no-locale", "-E", "UTF8", "-U", "postgres", "-k", "-A", "trust", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (key, certificate) = certificate();
        for (name, text) in [("server.key", key), ("server.crt", certificate)] {
            std::fs::write(data.join(name), text).unwrap();
            std::fs::set_permissions(data.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((uid, gid)) = unprivileged() {
                chown(data.join(name), Some(uid), Some(gid)).unwrap();
            }
        }
        let mut postgres = program("postgres");
        postgres.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "ssl=on", "fsync=off", "max_wal_senders=4"].iter().chain(settings)
        {
            postgres.args(["-c", setting]);
        }
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let postmaster = postgres.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Server { directory, port, postmaster };
        let started = tokio::time::Instant::now();
        while let Err(error) = server.connect(Mode::Sql).await {
            assert!(started.elapsed() < DEADLINE, "the server does not start: {error}\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn info(&self, more: &str) -> ConnInfo {
        let text = format!("port={} passfile=/dev/null dbname=postgres {more}", self.port);
        ConnInfo::parse(&text, &|name| (name == "HOME").then(|| "/nonexistent".to_owned())).unwrap()
    }

    fn socket(&self) -> ConnInfo {
        self.info(&format!("host={} user=postgres", self.directory.path().display()))
    }

    async fn connect(&self, mode: Mode) -> Result<Client, PgError> {
        Client::connect(&self.socket(), mode, &[]).await
    }

    async fn sql(&self, sql: &str) {
        let mut client = self.connect(Mode::Sql).await.unwrap();
        client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        client.close().await;
    }

    async fn stream(&self, slot: Option<&str>, start: Lsn) -> Result<WalStream, PgError> {
        let client = self.connect(Mode::Physical).await?;
        match client.start_replication(slot, start, TimelineId(1)).await? {
            Streaming::Wal(stream) => Ok(stream),
            other => panic!("no stream: {other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.postmaster.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.postmaster.wait();
    }
}

/// PostgreSQL does not run as root.
fn unprivileged() -> Option<(u32, u32)> {
    let root = nix::unistd::geteuid().is_root();
    root.then(|| {
        let names = ["postgres", "nobody"];
        let user = names.iter().find_map(|name| nix::unistd::User::from_name(name).ok().flatten());
        let user = user.expect("there is no unprivileged user to run PostgreSQL as");
        (user.uid.as_raw(), user.gid.as_raw())
    })
}

fn program(name: &str) -> Command {
    let mut command = Command::new(PathBuf::from(PROGRAMS).join(name));
    command.current_dir("/").env("TZ", "UTC");
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command
}

fn certificate() -> (String, String) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate().unwrap();
    (key.serialize_pem(), params.self_signed(&key).unwrap().pem())
}

const TRUST: &str = "local all all trust\nlocal replication all trust\n";

async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} takes for ever"))
}

#[tokio::test]
async fn a_physical_connection_learns_what_an_archiver_needs() {
    let server = Server::start(&["max_replication_slots=2", "wal_level=logical"], TRUST).await;
    let settings = [("wal_sender_timeout", "17s")];
    let mut client = Client::connect(&server.socket(), Mode::Physical, &settings).await.unwrap();
    assert!((150_000..160_000).contains(&client.server_version()), "{}", client.server_version());
    assert_eq!(client.parameter("in_hot_standby"), Some("off"));
    assert_eq!(client.show("wal_sender_timeout").await.unwrap(), "17s");
    assert_eq!(client.show("application_name").await.unwrap(), "seawall");
    assert_eq!(client.wal_segment_size().await.unwrap().bytes(), 16 << 20);

    let identity = client.identify_system().await.unwrap();
    assert_eq!(identity.timeline, TimelineId(1));
    assert!(identity.flush_lsn >= Lsn(0x100_0000), "{:?}", identity.flush_lsn);
    let mut sql = server.connect(Mode::Sql).await.unwrap();
    let control = sql.simple_query("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    assert_eq!(control.get(0, "system_identifier"), Some(identity.system_identifier.to_string().as_str()));

    assert_eq!(client.timeline_history(TimelineId(1)).await.unwrap_err().sqlstate(), Some("58P01"));
    assert_eq!(client.simple_query("SELECT 1").await.unwrap_err().sqlstate(), Some("0A000"));

    // Slots, from nothing to nothing.
    assert_eq!(client.read_slot("seawall").await.unwrap(), SlotState::Absent);
    client.create_slot("seawall").await.unwrap();
    let SlotState::Present { restart_lsn: Some(restart_lsn), restart_timeline: Some(TimelineId(1)) } =
        client.read_slot("seawall").await.unwrap()
    else {
        panic!("the slot keeps no WAL")
    };
    assert!(restart_lsn.is_valid() && restart_lsn <= identity.flush_lsn);
    assert_eq!(
        sql.read_slot("seawall").await.unwrap(),
        SlotState::Present { restart_lsn: Some(restart_lsn), restart_timeline: None }
    );
    assert_eq!(client.create_slot("seawall").await.unwrap_err().sqlstate(), Some("42710"));
    assert_eq!(client.create_slot("Not a name").await.unwrap_err().sqlstate(), Some("42602"));
    sql.simple_query("SELECT pg_create_logical_replication_slot('logical', 'pgoutput')").await.unwrap();
    assert_eq!(client.read_slot("logical").await.unwrap(), SlotState::NotPhysical);
    assert_eq!(sql.read_slot("logical").await.unwrap(), SlotState::NotPhysical);
    client.drop_slot("seawall").await.unwrap();
    assert_eq!(client.drop_slot("seawall").await.unwrap_err().sqlstate(), Some("42704"));
    assert_eq!(sql.read_slot("seawall").await.unwrap(), SlotState::Absent);

    // A database connection can do both.
    let mut both = server.connect(Mode::Database).await.unwrap();
    assert_eq!(both.simple_query("SELECT 'x' AS a, NULL AS b").await.unwrap().get(0, "a"), Some("x"));
    assert_eq!(both.identify_system().await.unwrap().system_identifier, identity.system_identifier);
}

#[tokio::test]
async fn wal_streams_without_a_gap_and_a_fast_shutdown_is_not_held_up() {
    let mut server = Server::start(&[], TRUST).await;
    let mut client = server.connect(Mode::Database).await.unwrap();
    client.create_slot("seawall").await.unwrap();
    let SlotState::Present { restart_lsn: Some(restart_lsn), .. } = client.read_slot("seawall").await.unwrap() else {
        panic!("no slot")
    };
    let start = client.wal_segment_size().await.unwrap().segment_start(restart_lsn);
    let mut stream = server.stream(Some("seawall"), start).await.unwrap();

    // Given the slot in use, the server names the process that holds it.
    let error = server.stream(Some("seawall"), start).await.unwrap_err();
    assert!(error.slot_holder().is_some(), "{error}");
    assert_eq!(Error::from(error).kind(), Kind::Busy);

    // 40 MB of WAL, byte for byte what is in pg_wal.
    server.sql("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 70000)").await;
    let end = client.identify_system().await.unwrap().flush_lsn;
    let mut received = Vec::new();
    within_deadline("streaming", async {
        while start + (received.len() as u64) < end {
            if let WalMessage::Data { start: position, bytes, server_end, .. } = stream.next().await.unwrap() {
                assert_eq!(position, start + received.len() as u64, "a gap");
                assert!(server_end >= position);
                received.extend_from_slice(&bytes);
            }
        }
    })
    .await;
    let mut position = 0;
    while position < received.len() {
        let segment =
            seawall::wal::Segment::holding(TimelineId(1), start + position as u64, seawall::wal::SegmentSize::DEFAULT);
        let file = std::fs::read(server.data().join("pg_wal").join(segment.name())).unwrap();
        let length = file.len().min(received.len() - position);
        assert!(file[..length] == received[position..position + length], "{segment} differs");
        position += length;
    }

    // We end the stream and the connection goes on.
    let mut status = StatusUpdate { written: end, flushed: end, ..StatusUpdate::default() };
    stream.send_status(status, 0).await.unwrap();
    let mut ended = within_deadline("the end", stream.end()).await.unwrap();
    assert!(ended.identify_system().await.unwrap().flush_lsn >= end);
    let SlotState::Present { restart_lsn, .. } = client.read_slot("seawall").await.unwrap() else { panic!("no slot") };
    assert_eq!(restart_lsn, Some(end), "the slot does not follow the flush position");

    // When the server is stopped fast, it waits for our flush position and says good-bye.
    let segment = seawall::wal::SegmentSize::DEFAULT.segment_start(end);
    let mut stream = server.stream(Some("seawall"), segment).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(server.postmaster.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    within_deadline("the shutdown", async {
        loop {
            match stream.next().await.unwrap() {
                WalMessage::Data { start, bytes, .. } => status.flushed = start + bytes.len() as u64,
                WalMessage::Keepalive { reply_requested: true, .. } => {
                    status.written = status.flushed;
                    stream.send_status(status, 0).await.unwrap();
                }
                WalMessage::Keepalive { .. } => {}
                WalMessage::ServerShutdown => break,
                WalMessage::EndOfTimeline => panic!("a timeline ended"),
            }
        }
    })
    .await;
    drop(stream);
    assert!(server.postmaster.wait().unwrap().success(), "{}", server.log());
}

#[tokio::test]
async fn wal_that_is_not_there_is_told_in_the_stream() {
    let server = Server::start(&[], TRUST).await;
    server.sql("SELECT pg_switch_wal(); CHECKPOINT").await;
    server.sql("SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT").await;
    // Segment 0 never existed.
    let mut stream = server.stream(None, Lsn(0)).await.unwrap_or_else(|error| panic!("{error}"));
    let error = within_deadline("the refusal", async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    })
    .await;
    assert!(error.is_wal_removed(), "{error}");

    // Beyond the end.
    let mut stream = server.stream(None, Lsn(0xFF_0000_0000)).await.unwrap();
    let error = within_deadline("the refusal", stream.next()).await.unwrap_err();
    assert!(error.server_message().is_some(), "{error}");
}

#[tokio::test]
async fn a_base_backup_comes_whole_with_tablespaces_and_manifest() {
    let server = Server::start(&[], TRUST).await;
    let space = server.directory.path().join("space");
    std::fs::create_dir(&space).unwrap();
    if let Some((uid, gid)) = unprivileged() {
        chown(&space, Some(uid), Some(gid)).unwrap();
    }
    server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await;
    server.sql("CREATE TABLE t TABLESPACE space AS SELECT generate_series(1, 100000) AS n").await;

    let client = server.connect(Mode::Physical).await.unwrap();
    let (start, mut stream) = client.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert_eq!(start.timeline, TimelineId(1));
    assert!(start.total_kib.is_some_and(|kib| kib > 20_000), "{start:?}");
    let [tablespace] = &start.tablespaces[..] else { panic!("{start:?}") };
    assert_eq!(tablespace.location, space.display().to_string());

    let (mut archives, mut progress) = (Vec::<(String, Vec<u8>)>::new(), 0);
    let end_lsn = within_deadline("the backup", async {
        loop {
            match stream.next().await.unwrap() {
                BackupEvent::Archive { tablespace: oid, location } => {
                    assert_eq!(location.is_some(), oid.is_some());
                    archives.push((oid.map_or("base".into(), |oid| oid.to_string()), Vec::new()));
                }
                BackupEvent::Manifest => archives.push(("manifest".into(), Vec::new())),
                BackupEvent::Data(bytes) => archives.last_mut().unwrap().1.extend_from_slice(&bytes),
                BackupEvent::Progress(bytes) => progress = bytes,
                BackupEvent::Notice(notice) => panic!("{notice}"),
                BackupEvent::End { end_lsn, timeline, damage } => {
                    assert_eq!(damage, None);
                    assert_eq!(timeline, TimelineId(1));
                    return end_lsn;
                }
            }
        }
    })
    .await;
    assert!(end_lsn > start.start_lsn);
    let names: Vec<&str> = archives.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [tablespace.oid.to_string().as_str(), "base", "manifest"]);
    let tar_bytes: usize = archives[..2].iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(progress > 0 && tar_bytes as u64 >= progress, "{progress} of {tar_bytes}");
    for (name, tar) in &archives[..2] {
        assert_eq!(&tar[257..262], b"ustar", "{name} is no tar archive");
        assert_eq!(tar.len() % 512, 0, "{name}");
    }
    let manifest: serde_json::Value = serde_json::from_slice(&archives[2].1).unwrap();
    assert_eq!(manifest["Files"][0]["Checksum-Algorithm"], "CRC32C");
    assert!(stream.next().await.is_err(), "something follows the end");
}

#[tokio::test]
async fn a_damaged_page_is_told_at_the_very_end_of_the_backup() {
    let server = Server::start(&[], TRUST).await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n").await;
    server.sql("CHECKPOINT").await;
    let mut sql = server.connect(Mode::Sql).await.unwrap();
    let path = sql.simple_query("SELECT pg_relation_filepath('t') AS path").await.unwrap();
    let path = server.data().join(path.get(0, "path").unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 5000] ^= 0xFF;
    std::fs::write(&path, bytes).unwrap();

    let client = server.connect(Mode::Physical).await.unwrap();
    let (_, mut stream) = client.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let (mut warnings, mut manifest) = (0, false);
    let damage = within_deadline("the backup", async {
        loop {
            match stream.next().await {
                Ok(BackupEvent::Notice(notice)) => warnings += u32::from(notice.severity == "WARNING"),
                Ok(BackupEvent::Manifest) => manifest = true,
                Ok(BackupEvent::End { damage, .. }) => return damage,
                Ok(_) => {}
                Err(error) => panic!("all of it has come by then: {error}"),
            }
        }
    })
    .await;
    assert!(warnings > 0 && manifest, "{warnings} warnings, manifest: {manifest}");
    let damage = damage.expect("a damaged backup was called a success");
    assert_eq!(damage.sqlstate, "XX001", "{damage}");
}

#[tokio::test]
async fn roles_and_passwords_are_told_apart() {
    let hba = format!(
        "{TRUST}hostssl replication scram,plain samehost scram-sha-256\nhostssl replication hashed samehost md5\n\
         hostnossl replication insecure samehost trust\nhostssl replication cleartext samehost password\n\
         hostssl replication nobody samehost trust\n"
    );
    let server = Server::start(&[], &hba).await;
    for statement in [
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'sésame ouvre-toi'",
        "SET password_encryption = md5; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'sesame'",
        "CREATE ROLE cleartext LOGIN REPLICATION PASSWORD 'sesame'",
        "CREATE ROLE insecure LOGIN REPLICATION; CREATE ROLE nobody LOGIN",
    ] {
        server.sql(statement).await;
    }
    let tcp = |more: &str| server.info(&format!("host=localhost hostaddr=127.0.0.1 {more}"));
    let root = server.data().join("server.crt").display().to_string();
    let welcome = [
        "user=scram password='sésame ouvre-toi'".to_owned(),
        "user=scram password='sésame ouvre-toi' sslmode=require channel_binding=require".to_owned(),
        "user=scram password='sésame ouvre-toi' sslmode=require channel_binding=disable".to_owned(),
        format!(
            "user=scram password='sésame ouvre-toi' sslmode=verify-full sslrootcert={root} channel_binding=require"
        ),
        "user=hashed password=sesame".to_owned(),
        "user=cleartext password=sesame sslmode=require".to_owned(),
        "user=insecure sslmode=prefer".to_owned(),
        "user=insecure sslmode=allow".to_owned(),
        "user=scram password='sésame ouvre-toi' sslmode=allow".to_owned(),
    ];
    for text in &welcome {
        let connected = Client::connect(&tcp(text), Mode::Physical, &[]).await;
        let mut client = connected.unwrap_or_else(|error| panic!("{text}: {error}\n{}", server.log()));
        client.identify_system().await.unwrap();
        client.close().await;
    }
    let refused = [
        ("user=scram password=sesame", Some("28P01"), "password"),
        ("user=scram", None, "PGPASSWORD"),
        ("user=scram password=x sslmode=disable", Some("28000"), "pg_hba.conf needs a line"),
        ("user=stranger", Some("28000"), "pg_hba.conf needs a line"),
        ("user=nobody", Some("42501"), "ALTER ROLE"),
        ("user=hashed password=sesame channel_binding=require", None, "scram-sha-256"),
    ];
    for (text, sqlstate, hint) in refused {
        let error = Client::connect(&tcp(text), Mode::Physical, &[]).await.unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{text}: {error}");
        assert!(!error.is_transient(), "{text}: {error}");
        let shown = Error::from(error);
        assert!(shown.hint_text().is_some_and(|text| text.contains(hint)), "{text}: {shown:?}");
    }

    // From the password file.
    let file = server.directory.path().join("pgpass");
    std::fs::write(&file, format!("localhost:{}:replication:scram:sésame ouvre-toi\n", server.port)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with_file = format!("user=scram passfile={}", file.display());
    Client::connect(&tcp(&with_file), Mode::Physical, &[]).await.unwrap().close().await;

    // From a file that a setting names: read once, and again when it is refused because both have changed.
    let file = server.directory.path().join("password");
    let hold = |password: &str| {
        std::fs::write(&file, format!("{password}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    hold("sesame");
    let password = Secret::new("password", Source::File(file.clone()));
    let info = tcp("user=hashed password=wrong").with_password(password);
    Client::connect(&info, Mode::Physical, &[]).await.unwrap().close().await;
    hold("barley");
    Client::connect(&info, Mode::Physical, &[]).await.expect("what was read is remembered").close().await;
    server.sql("SET password_encryption = md5; ALTER ROLE hashed PASSWORD 'barley'").await;
    Client::connect(&info, Mode::Physical, &[]).await.expect("what the file holds now").close().await;
    hold("rye");
    server.sql("SET password_encryption = md5; ALTER ROLE hashed PASSWORD 'wheat'").await;
    let error = Client::connect(&info, Mode::Physical, &[]).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"), "neither is right");
    assert!(!format!("{error:?} {info:?}").contains("rye"), "{error:?} {info:?}");
    std::fs::remove_file(&file).unwrap();
    let none = Secret::new("password", Source::File(file));
    let error = Client::connect(&info.with_password(none), Mode::Physical, &[]).await.unwrap_err();
    assert!(error.to_string().contains("password_file: there is no"), "{error}");

    // All walsenders taken.
    let mut taken = Vec::new();
    let error = loop {
        match Client::connect(&tcp("user=insecure sslmode=disable"), Mode::Physical, &[]).await {
            Ok(client) => taken.push(client),
            Err(error) => break error,
        }
        assert!(taken.len() <= 4, "more walsenders than max_wal_senders");
    };
    assert_eq!(error.sqlstate(), Some("53300"), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_server_with_minimal_wal_is_refused_with_the_setting_to_change() {
    let server = Server::start(&["wal_level=minimal", "max_wal_senders=0"], TRUST).await;
    let error = server.connect(Mode::Physical).await.unwrap_err();
    let shown = Error::from(error);
    assert!(shown.hint_text().is_some_and(|hint| hint.contains("wal_level = replica")), "{shown:?}");
}
