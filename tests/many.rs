//! Many clusters in one process of `seawall run`, against servers that are walsenders and no more: memory, and that one cluster's trouble
//! is no other's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;
#[path = "support/wal_server.rs"]
mod wal_server;
#[path = "support/walsender.rs"]
mod walsender;

use nix::sys::signal::Signal;
use s3::{Op, S3Server};
use seawall::codec::Compression;
use seawall::repository::{Layout, Repository, WalReader};
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use support::metrics::Endpoint;
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use wal_server::{START, Server, Wal};

const CLUSTERS: usize = 100;

/// Two blocks of segments of a mebibyte, and a part of the third; whole words, as everything that is written here.
const FIRST_BYTES: u64 = (2 << 20) + 300_000;

/// A block of segments as PostgreSQL makes them.
const BLOCK_BYTES: u64 = 16 << 20;

/// What the process may take, all pages counted.
const MEMORY_BYTES: u64 = 512 << 20;

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

/// What is stored of these, whose WAL is in segments of so many bytes, is what they wrote.
async fn assert_read_back(bucket: &S3Server, servers: &[Server], numbers: &[usize], wal: Wal) {
    let all = bucket.snapshot();
    for &number in numbers {
        let (name, server) = (format!("c{number:03}"), &servers[number]);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let folder = format!("backups/{name}/");
        for (key, object) in all.iter().filter(|(key, _)| key.starts_with(&folder)) {
            let key = key.trim_start_matches("backups/");
            store.create(key, object.bytes.clone().into(), object.metadata.clone()).await.unwrap();
        }
        let size = SegmentSize::new(wal.segment_mebibytes() << 20).unwrap();
        let layout = Layout::new(&name, size, Compression::Lz4);
        let reader = WalReader::new(Repository { store, layout }, 1000 + number as u64);
        let end = server.it.end.load(Ordering::SeqCst);
        let range = WalRange { timeline: TimelineId(1), start: Lsn(START), end: Lsn(end) };
        let window = reader.read_range(range).await.unwrap();
        assert_eq!(window.end, range.end, "{name} is not stored up to there");
        assert!(window.pieces.concat() == server.wal(START, end - START), "{name} is stored with other bytes");
    }
}

fn section(name: String, server: &Server) -> String {
    format!("[cluster.{name}]\npg = {:?}\n", server.conninfo())
}

/// For one process that archives all of them, `c000` and so on.
fn configuration(servers: &[Server]) -> String {
    let mut text = format!("repo = \"s3://{}/backups\"\n[run]\nlisten = \"127.0.0.1:0\"\n", S3Server::BUCKET);
    text.extend(servers.iter().enumerate().map(|(number, server)| section(format!("c{number:03}"), server)));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clusters_share_a_process_and_none_of_them_is_in_anothers_way() {
    // Given a hundred servers, one more at two addresses, and two that let nobody in, in one configuration
    let mut servers = Vec::new();
    for number in 0..CLUSTERS {
        servers.push(Server::start(1000 + number as u64, Wal::Words).await);
    }
    let one = Server::start(7, Wal::Words).await;
    let twins = [Server::at_another_address(one.it.clone()).await, one];
    // And a clone of one of the hundred, which has its identifier and its slot
    let clone = Server::start(1042, Wal::Words).await;
    let late = Server::start(8, Wal::Words).await;
    late.it.is_closed.store(true, Ordering::SeqCst);
    let closed = Server::start(9, Wal::Words).await;
    closed.it.is_closed.store(true, Ordering::SeqCst);
    let mut text = configuration(&servers);
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

    assert_read_back(&bucket, &servers, &[0, 42, 99], Wal::Words).await;

    // When the configuration is read again, then each takes up what is its own, and what cannot be is said
    let text = text.replace("[cluster.c002]\n", "[cluster.c002]\nretention.full = \"3\"\n");
    let text = text.replace("[cluster.c003]", "[cluster.new]");
    // and one that was never let in has another server
    let open = Server::start(10, Wal::Words).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clusters_in_the_middle_of_large_blocks_are_within_the_same_memory() {
    // Given a hundred servers with segments as PostgreSQL makes them, and one process that archives them
    let mut servers = Vec::new();
    for number in 0..CLUSTERS {
        servers.push(Server::start(1000 + number as u64, Wal::Usual).await);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("seawall.toml");
    // Fewer tails than usual: it is about what is in memory, and each takes an unoptimized build its time
    let text = configuration(&servers).replace("[run]\n", "[run]\nflush_interval = \"2s\"\n");
    std::fs::write(&file, text).unwrap();
    let bucket = S3Server::start();
    let seawall = Seawall::new(["run", "--config"]).arg(&file);
    let mut running = bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value)).start();
    let endpoint = Endpoint::of(&mut running).await;
    wait_for("all to stream", PATIENCE, async || get(endpoint, "/readyz").starts_with("HTTP/1.1 200").then_some(()))
        .await;
    let idle = peak_bytes(&running);

    // When all write at once, and each gets to another place in its block
    let begun = Instant::now();
    for (number, server) in servers.iter().enumerate() {
        let hundredths = (number * 37 % CLUSTERS) as u64 + 1;
        server.write((hundredths * BLOCK_BYTES / CLUSTERS as u64).next_multiple_of(8) - 8);
    }
    all_stored(&servers, &[], "a hundred clusters to be stored").await;
    let (written, took) = (peak_bytes(&running), begun.elapsed());

    // And go on by a trickle, some of them into the next block
    for _ in 0..4 {
        servers.iter().for_each(|server| server.write(64 << 10));
        all_stored(&servers, &[], "what came then to be stored").await;
    }

    // Then all that is in little memory
    let peak = peak_bytes(&running);
    println!("{idle} bytes of memory idle, {written} once all had written, after {took:?}, and {peak} at the end");
    assert!(peak < MEMORY_BYTES, "{peak} bytes of memory");
    // And stored as it was written: tails of what was packed, and blocks that were full
    let ends = |number: &usize| number * 37 % CLUSTERS;
    let (furthest, least) = ((0..CLUSTERS).max_by_key(ends).unwrap(), (0..CLUSTERS).min_by_key(ends).unwrap());
    assert_read_back(&bucket, &servers, &[least, 7, 42, furthest], Wal::Usual).await;
}
