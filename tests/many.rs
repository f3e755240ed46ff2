//! Many clusters in one process of `seawall run`, against servers that are walsenders and no more: memory, and that one cluster's trouble
//! is no other's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;
#[path = "support/walsender.rs"]
mod walsender;

use nix::sys::signal::Signal;
use s3::{Op, S3Server};
use seawall::wal::Lsn;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::metrics::Endpoint;
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use walsender::say;

const CLUSTERS: usize = 100;

/// Where the WAL of each begins, in segments of a mebibyte.
const START: u64 = 16 << 20;

/// Two blocks, and a part of the third; whole words, as everything that is written here.
const FIRST_BYTES: u64 = (2 << 20) + 300_000;

/// What the process may take, all pages counted.
const MEMORY_BYTES: u64 = 512 << 20;

/// A server, of which nothing is but its WAL.
struct Server {
    port: u16,
    it: Arc<It>,
}

struct It {
    system: u64,
    /// So far its WAL goes.
    end: AtomicU64,
    more: Notify,
    /// What it was told to be stored.
    flushed: AtomicU64,
    /// It lets nobody in.
    is_closed: AtomicBool,
    /// It has another history now.
    is_other: AtomicBool,
    /// The process that has its slot; 0 if nobody has.
    holder: AtomicU32,
    cut: Notify,
}

impl Server {
    async fn start(system: u64) -> Server {
        let it = Arc::new(It {
            system,
            end: AtomicU64::new(START),
            more: Notify::new(),
            flushed: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            is_other: AtomicBool::new(false),
            holder: AtomicU32::new(0),
            cut: Notify::new(),
        });
        Server::at_another_address(it).await
    }

    /// The same one.
    async fn at_another_address(it: Arc<It>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = it.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let it = served.clone();
                // Whatever a client does with its connection is its own matter.
                tokio::spawn(async move { it.converse(socket).await });
            }
        });
        Server { port, it }
    }

    fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=tester sslmode=disable passfile=/dev/null", self.port)
    }

    /// Writes so many bytes more.
    fn write(&self, bytes: u64) {
        self.it.end.fetch_add(bytes, Ordering::SeqCst);
        self.it.more.notify_waiters();
    }

    /// Its whole WAL is another one from now on.
    fn become_other(&self) {
        self.it.is_other.store(true, Ordering::SeqCst);
        self.it.cut.notify_waiters();
    }

    fn is_stored(&self) -> bool {
        self.it.flushed.load(Ordering::SeqCst) >= self.it.end.load(Ordering::SeqCst)
    }
}

impl It {
    async fn converse(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let length = socket.read_u32().await? as usize;
        let mut startup = vec![0; length - 4];
        socket.read_exact(&mut startup).await?;
        let startup = String::from_utf8_lossy(&startup).into_owned();
        if !startup.contains("replication\0true\0") || self.is_closed.load(Ordering::SeqCst) {
            return socket.write_all(&say::error("FATAL", "28000", "no pg_hba.conf entry")).await;
        }
        // Each connection has a process of its own.
        let process = u32::from(socket.peer_addr()?.port());
        socket.write_all(&say::welcome_by("15.18", process)).await?;
        loop {
            let query = match message(&mut socket).await? {
                (b'Q', body) => String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body)).into_owned(),
                (b'X', _) => return Ok(()),
                _ => continue,
            };
            let end = Lsn(self.end.load(Ordering::SeqCst));
            let one = |column: &str, value: &str| [say::result(&[column], &[Some(value)]), say::ready()].concat();
            if let Some(from) = query.strip_prefix("START_REPLICATION ") {
                let from = from.split(' ').find_map(|word| word.parse::<Lsn>().ok()).expect("a position");
                if let Err(holder) = self.holder.compare_exchange(0, process, Ordering::SeqCst, Ordering::SeqCst) {
                    let busy = format!("replication slot \"seawall\" is active for PID {holder}");
                    let busy = say::error("ERROR", "55006", &busy);
                    socket.write_all(&[busy, say::ready()].concat()).await?;
                    continue;
                }
                let streamed = match socket.write_all(&say::copy_both()).await {
                    Ok(()) => self.stream(socket, from.0).await,
                    failed => failed,
                };
                self.holder.store(0, Ordering::SeqCst);
                return streamed;
            }
            let answer = match query.as_str() {
                "IDENTIFY_SYSTEM" => say::identity(self.system, 1, end),
                "SHOW \"wal_segment_size\"" => one("wal_segment_size", "1MB"),
                query if query.starts_with("READ_REPLICATION_SLOT") => {
                    let row = [Some("physical"), Some("0/1000000"), Some("1")];
                    [say::result(&["slot_type", "restart_lsn", "restart_tli"], &row), say::ready()].concat()
                }
                query if query.starts_with("SHOW") => one("setting", "on"),
                _ => [say::error("ERROR", "42501", "permission denied"), say::ready()].concat(),
            };
            socket.write_all(&answer).await?;
        }
    }

    async fn stream(&self, socket: TcpStream, mut sent: u64) -> std::io::Result<()> {
        let (mut from, mut to) = socket.into_split();
        let listening = async {
            loop {
                let (tag, body) = message(&mut from).await?;
                if tag != b'd' {
                    return std::io::Result::Ok(());
                }
                if body.first() == Some(&b'r') {
                    self.flushed.fetch_max(u64::from_be_bytes(body[9..17].try_into().unwrap()), Ordering::SeqCst);
                }
            }
        };
        let sending = async {
            loop {
                let more = self.more.notified();
                let end = self.end.load(Ordering::SeqCst);
                while sent < end {
                    let bytes = (end - sent).min(128 << 10);
                    to.write_all(&say::wal(Lsn(sent), Lsn(end), 0, &self.wal(sent, bytes))).await?;
                    sent += bytes;
                }
                to.write_all(&say::keepalive(Lsn(end), 0, false)).await?;
                let _ = tokio::time::timeout(Duration::from_millis(500), more).await;
            }
        };
        tokio::select! {
            ended = listening => ended,
            ended = sending => ended,
            () = self.cut.notified() => Ok(()),
        }
    }

    /// Bytes that say where they are, and whose; about half of them can be made smaller.
    fn wal(&self, start: u64, bytes: u64) -> Vec<u8> {
        let seed = self.system ^ (u64::from(self.is_other.load(Ordering::SeqCst)) << 60);
        let word = |number: u64| match number & 8 {
            0 => (number ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29),
            _ => seed,
        };
        (start / 8..(start + bytes) / 8).flat_map(|number| word(number).to_be_bytes()).collect()
    }
}

async fn message(socket: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let tag = socket.read_u8().await?;
    let length = socket.read_u32().await? as usize;
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).await?;
    Ok((tag, body))
}

/// The answer of the program to one request, with its head.
fn get(endpoint: Endpoint, path: &str) -> String {
    let mut connection = std::net::TcpStream::connect(endpoint.address()).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn is_stopped(metrics: &str, cluster: &str) -> bool {
    metrics.lines().any(|line| {
        line.starts_with("seawall_stopped{") && line.contains(&format!("cluster=\"{cluster}\"")) && line.ends_with(" 1")
    })
}

fn peak_bytes(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
    line.trim().strip_suffix("kB").expect("a size").trim().parse::<u64>().expect("a number") * 1024
}

async fn all_stored(servers: &[Server], but: &[usize], what: &str) {
    let others = || servers.iter().enumerate().filter(|(number, _)| !but.contains(number));
    wait_for(what, PATIENCE * 4, async || others().all(|(_, server)| server.is_stored()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clusters_share_a_process_and_none_of_them_is_in_anothers_way() {
    // Given a hundred servers, one more at two addresses, and two that let nobody in, in one configuration
    let mut servers = Vec::new();
    for number in 0..CLUSTERS {
        servers.push(Server::start(1000 + number as u64).await);
    }
    let one = Server::start(7).await;
    let twins = [Server::at_another_address(one.it.clone()).await, one];
    // And a clone of one of the hundred, which has its identifier and its slot
    let clone = Server::start(1042).await;
    let late = Server::start(8).await;
    late.it.is_closed.store(true, Ordering::SeqCst);
    let closed = Server::start(9).await;
    closed.it.is_closed.store(true, Ordering::SeqCst);
    let section = |name: String, server: &Server| format!("[cluster.{name}]\npg = {:?}\n", server.conninfo());
    let mut text = format!("repo = \"s3://{}/backups\"\n[run]\nlisten = \"127.0.0.1:0\"\n", S3Server::BUCKET);
    text.extend(servers.iter().enumerate().map(|(number, server)| section(format!("c{number:03}"), server)));
    text.extend(twins.iter().zip(["one", "two"]).map(|(server, name)| section(format!("twin-{name}"), server)));
    text.push_str(&section("late".to_owned(), &late));
    text.push_str(&section("clone".to_owned(), &clone));
    text.push_str(&section("closed".to_owned(), &closed));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("seawall.toml");
    let password = directory.path().join("password");
    std::fs::write(&password, "s3cret").unwrap();
    std::fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
    let text = text.replace("[cluster.c004]\n", &format!("[cluster.c004]\npassword_file = {password:?}\n"));
    std::fs::write(&file, &text).unwrap();
    let bucket = S3Server::start();
    let begun = Instant::now();
    let seawall = Seawall::new(["run", "--config"]).arg(&file);
    let mut running = bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value)).start();
    let endpoint = Endpoint::of(&mut running).await;

    // When all of them write, and the one lets us in after its cluster was refused
    running.wait_for_text("of{cluster=late}: this cluster is not archived").await;
    late.it.is_closed.store(false, Ordering::SeqCst);
    late.write(FIRST_BYTES);
    clone.write(FIRST_BYTES);
    servers.iter().for_each(|server| server.write(FIRST_BYTES));
    all_stored(&servers, &[], "a hundred clusters to be stored").await;
    all_stored(std::slice::from_ref(&clone), &[], "the clone to be stored").await;

    // Then all is stored in little memory, each in a folder of its own
    let peak = peak_bytes(&running);
    println!("{CLUSTERS} clusters stored {FIRST_BYTES} bytes each in {:?}, in {peak} bytes of memory", begun.elapsed());
    assert!(peak < MEMORY_BYTES, "{peak} bytes of memory");
    let stored = bucket.snapshot();
    for number in 0..CLUSTERS {
        let folder = format!("backups/c{number:03}/wal/");
        assert_eq!(stored.keys().filter(|key| key.starts_with(&folder)).count(), 2, "blocks in {folder}");
    }

    // One scrape shows all of them, and one page says how each is doing
    let before = Instant::now();
    let metrics = endpoint.scrape().await.expect("an answer");
    println!("a scrape of {} bytes took {:?}", metrics.body().len(), before.elapsed());
    for number in 0..CLUSTERS {
        let durable = metrics.labelled("seawall_durable_lsn", &format!("cluster=\"c{number:03}\"")).expect("it");
        assert_eq!(durable as u64, START + FIRST_BYTES);
    }
    let ready = get(endpoint, "/readyz");
    assert!(ready.contains("\nc099: streaming, durable up to"), "{ready}");
    assert!(get(endpoint, "/readyz/c042").starts_with("HTTP/1.1 200"));

    // Whoever was refused has begun again
    all_stored(std::slice::from_ref(&late), &[], "the one that was refused to be stored").await;
    let metrics = endpoint.scrape().await.expect("an answer");
    assert!(!is_stopped(metrics.body(), "late"), "it is archived now, and was never stopped for good");

    // Of the twins one was refused, once its server said who it is, and the other is archived
    wait_for("one of the twins to be refused", PATIENCE, async || {
        let is_refused = |twin: &&str| get(endpoint, &format!("/readyz/{twin}")).contains("archives already");
        let refused = ["twin-one", "twin-two"].into_iter().filter(is_refused).count();
        assert!(refused < 2, "both are refused");
        (refused == 1).then_some(())
    })
    .await;

    // Commands are about all of them, or about the one that is chosen
    let seawall = |arguments: &[&str]| {
        let seawall = Seawall::new(arguments).arg("--config").arg(&file);
        bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    };
    let checked = seawall(&["config", "check"]).run_ok().await.stdout;
    assert!(checked.contains("105 clusters can be used"), "{checked}");
    let status = seawall(&["status"]).run_err(6).await;
    let line = |name: &str| status.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("c042").contains("nothing"), "no base backup of it: {}", status.stdout);
    assert!(status.stderr.contains("1 of 105 clusters cannot be looked at"), "{}", status.stderr);
    seawall(&["status", "--cluster", "c042"]).run_ok().await;
    let refused = seawall(&["list"]).run_err(2).await.stderr;
    assert!(refused.contains("--cluster: c000, c001"), "{refused}");

    // When one's store hangs, and one's server has become another, while all others write
    let hold = bucket.hold(Op::Put.at("backups/c000/"));
    servers[1].become_other();
    servers.iter().for_each(|server| server.write(700_000));
    // Then the others are stored
    all_stored(&servers, &[0, 1], "all others to be stored").await;
    assert!(!servers[0].is_stored(), "the store of the first did not hang");
    wait_for("the divergence to be shown", PATIENCE, async || {
        is_stopped(endpoint.scrape().await?.body(), "c001").then_some(())
    })
    .await;
    assert!(get(endpoint, "/healthz/c001").starts_with("HTTP/1.1 503"));
    assert!(get(endpoint, "/healthz").starts_with("HTTP/1.1 200"));
    let log = running.stderr();
    let said = log.lines().find(|line| line.contains("not archived any more") && line.contains("c001"));
    assert!(said.is_some_and(|line| line.contains("ERROR")), "{log}");
    // And a line of the log says whose it is
    assert!(log.lines().any(|line| line.contains("of{cluster=c042}") && line.contains("streaming")), "{log}");

    // When the store answers again, then what waited is stored
    drop(hold);
    all_stored(&servers, &[1], "what waited to be stored").await;

    // When the configuration is read again, then each takes up what is its own, and what cannot be is said
    let text = text.replace("[cluster.c002]\n", "[cluster.c002]\nretention.full = \"3\"\n");
    let text = text.replace("[cluster.c003]", "[cluster.new]");
    // and one that was never let in has another server
    let open = Server::start(10).await;
    open.write(FIRST_BYTES);
    let text = text.replace(&closed.conninfo(), &open.conninfo());
    std::fs::write(&file, &text).unwrap();
    // and a secret cannot be read any more, which nobody has a need for now
    std::fs::remove_file(&password).unwrap();
    running.signal(Signal::SIGHUP);
    running.wait_for_text("new in the configuration").await;
    running.wait_for_text("no longer in the configuration").await;
    running.wait_for_text("taken up: retention.full").await;
    running.wait_for_text("what was read before is used error=password_file: there is no").await;
    assert!(!running.stderr().contains("s3cret"), "{}", running.stderr());
    all_stored(std::slice::from_ref(&open), &[], "the one that begins again to be stored").await;

    // When it is told to stop, then all of them do, and that some had ended is its exit code's to tell
    println!("{} bytes of memory at the end", peak_bytes(&running));
    running.signal(Signal::SIGTERM);
    let status = running.wait(PATIENCE * 2).await;
    assert_eq!(status.code(), Some(8), "c001 diverged, and those in their pause only stop: {}", running.stderr());
    assert!(running.stderr().contains("a second signal leaves at once"));
}
