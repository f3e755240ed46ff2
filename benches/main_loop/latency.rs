//! Light load, commit by commit: how long until the commit is durable in S3, and how long a client waits that asks for
//! that with `synchronous_standby_names`.

use crate::Scale;
use crate::fixture::{Fixture, RECEIVER};
use crate::s3_process::{Behaviour, S3Process};
use crate::s3_store;
use seawall::scratch::Session;
use seawall::store::{Body, Metadata};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::block_in_place;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

/// Between two looks at what is acknowledged: the figures are that coarse.
const LOOK: Duration = Duration::from_millis(1);
/// What a PUT takes longer than on the loopback: a small object takes some tens of milliseconds at S3.
const PUT_DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(100)];
/// As many bytes as a commit or a few have, their object's identity included.
const PUT_BYTES: usize = 1 << 10;
/// Commits a second of those that wait for the archive.
const SYNCHRONOUS_COMMITS: u32 = 100;
/// A commit as small as they come.
const TICK: &str = "INSERT INTO tick DEFAULT VALUES";
/// How often commits that wait and PUTs take turns.
const SLICES: u32 = 10;

/// Of many waits, in seconds.
#[derive(Clone, Copy, Debug)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    count: usize,
}

impl Percentiles {
    fn of(mut seconds: Vec<f64>) -> Percentiles {
        assert!(!seconds.is_empty(), "nothing was measured");
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() as f64 * share).ceil() as usize).clamp(1, seconds.len()) - 1];
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), count: seconds.len() }
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |seconds: f64| seconds * 1e3;
        write!(f, "{:.1} | {:.1} | {:.1} | {}", ms(self.p50), ms(self.p90), ms(self.p99), self.count)
    }
}

/// From the return of a commit until the server knows that the archive has it.
pub async fn commits(scale: &Scale, fixture: &Fixture) {
    println!("\n## From a commit to its being durable\n");
    println!("| flush interval | PUT delayed by | commits a second | p50 ms | p90 ms | p99 ms | measured |");
    println!("|---|---|---|---|---|---|---|");
    for (flush, shown) in [("500ms", "500 ms (default)"), ("0", "0")] {
        for delay in PUT_DELAYS {
            let directory = fixture.empty_directory();
            let store = S3Process::start(directory.path(), Behaviour::Synced(delay));
            let slot = format!("flush_{flush}_{}", delay.as_millis());
            let archiver = fixture.archiver(&store, &["--slot", &slot, "--flush-interval", flush]).await;
            for rate in [1, 100, 1000] {
                let measured = if rate == 1 { scale.measured_rare } else { scale.measured };
                let waits = commit_to_durable(fixture, rate, scale.warm_up, measured).await;
                println!("| {shown} | {} ms | {rate} | {waits} |", delay.as_millis());
            }
            block_in_place(|| archiver.terminate(0.0));
            fixture.drop_slot(&slot).await;
        }
    }
}

/// What a client waits for a commit that waits for the archive, and what one PUT alone takes. And what PostgreSQL itself
/// takes for it: for a receiver that has nothing to do.
pub async fn synchronous(scale: &Scale, fixture: &Fixture) {
    println!("\n## Commits that wait for the archive\n");
    println!("{SYNCHRONOUS_COMMITS} a second, with `synchronous_standby_names = 'seawall'`.\n");
    println!("| PUT delayed by | what | p50 ms | p90 ms | p99 ms | measured | p99 by the PUT's |");
    println!("|---|---|---|---|---|---|---|");
    let mut slice = Slice::of(scale);
    println!("| | commit, nobody waits for the archive | {} | |", slice.undelayed_commits(fixture).await);
    let receiver = fixture.receiver_in_memory().await;
    fixture.set_synchronous(RECEIVER).await;
    let in_memory = slice.undelayed_commits(fixture).await;
    fixture.set_synchronous("").await;
    block_in_place(|| receiver.kill());
    println!("| | commit, `pg_receivewal --synchronous` into memory | {in_memory} | |");
    for delay in PUT_DELAYS {
        let directory = fixture.empty_directory();
        let store = S3Process::start(directory.path(), Behaviour::Synced(delay));
        let shown = delay.as_millis();
        let slot = format!("synchronous_{shown}");
        let archiver = fixture.archiver(&store, &["--slot", &slot]).await;
        fixture.set_synchronous("seawall").await;
        // The archiver finds that out within seconds.
        slice.commits(fixture, delay).await;
        sleep(scale.warm_up).await;
        let (mut put, mut waits) = (Vec::new(), Vec::new());
        for _ in 0..SLICES {
            put.extend(slice.puts(&store).await);
            waits.extend(slice.commits(fixture, delay).await);
        }
        fixture.set_synchronous("").await;
        block_in_place(|| archiver.terminate(0.0));
        fixture.drop_slot(&slot).await;
        let (put, waits) = (Percentiles::of(put), Percentiles::of(waits));
        println!("| {shown} ms | one PUT of {PUT_BYTES} bytes, alone | {put} | |");
        println!("| {shown} ms | commit | {waits} | {:.2} |", waits.p99 / put.p99);
    }
}

/// A short while of the one or of the other: they take turns, so that what the disk and the machine do for some seconds
/// is in both.
struct Slice {
    warm_up: Duration,
    measured: Duration,
    /// PUTs so far, which name them.
    puts: u64,
}

impl Slice {
    fn of(scale: &Scale) -> Slice {
        Slice { warm_up: scale.warm_up / 5, measured: scale.measured / 5, puts: 0 }
    }

    /// One PUT after the other through the store that the program uses, as often as there are commits, and like them at
    /// random moments: what has just been idle is slower than what is busy, and of two that follow each other closely
    /// the second one waits until the disk is done with the first.
    async fn puts(&mut self, server: &S3Process) -> Vec<f64> {
        let store = s3_store::store(s3_store::options_at(server.endpoint().to_owned())).await;
        let mut seconds = Vec::new();
        let begun = Instant::now();
        let mut due = begun;
        while begun.elapsed() < self.warm_up + self.measured || seconds.is_empty() {
            // As `pgbench -R` does it.
            due += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / f64::from(SYNCHRONOUS_COMMITS));
            sleep_until(due.into()).await;
            let counts = begun.elapsed() >= self.warm_up;
            let started = Instant::now();
            let body = Body::from(bytes::Bytes::from(vec![self.puts as u8; PUT_BYTES]));
            store.create(&format!("put/{}", self.puts), body, Metadata::default()).await.unwrap();
            self.puts += 1;
            if counts {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        seconds
    }

    /// As many as all slices have, where nothing delays them.
    async fn undelayed_commits(&self, fixture: &Fixture) -> Percentiles {
        let mut seconds = Vec::new();
        for _ in 0..SLICES {
            seconds.extend(self.commits(fixture, Duration::ZERO).await);
        }
        Percentiles::of(seconds)
    }

    /// By so many clients as it takes with such a delay: a server's process that has slept for long is slow by itself.
    async fn commits(&self, fixture: &Fixture, delay: Duration) -> Vec<f64> {
        let clients = 1 + (2 * SYNCHRONOUS_COMMITS * delay.as_millis() as u32).div_ceil(1000);
        let seconds = (self.warm_up + self.measured).as_secs_f64();
        let commits = (seconds * f64::from(SYNCHRONOUS_COMMITS)).ceil() as u32;
        let ended = fixture.pgbench(TICK, clients, SYNCHRONOUS_COMMITS, commits).await;
        let first = ended.iter().map(|ended| ended.at).min().unwrap();
        let counting = ended.iter().filter(|ended| ended.at - first >= self.warm_up);
        counting.map(|ended| ended.took.as_secs_f64()).collect()
    }
}

/// `rate` times a second by `clients`, evenly apart as far as they keep up: calls `commit`, and says if it is measured.
async fn at_rate(
    fixture: &Fixture,
    rate: u32,
    clients: u32,
    warm_up: Duration,
    measured: Duration,
    commit: impl AsyncFn(&Session, bool),
) {
    let begun = Instant::now();
    let client = async |i: u32| {
        let session = fixture.server.connect("postgres").await.unwrap();
        sleep(Duration::from_secs(1) * i / rate).await;
        let mut tick = interval(Duration::from_secs(1) * clients / rate);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while begun.elapsed() < warm_up + measured {
            tick.tick().await;
            commit(&session, begun.elapsed() > warm_up).await;
        }
    };
    futures_util::future::join_all((0..clients).map(client)).await;
}

async fn commit_to_durable(fixture: &Fixture, rate: u32, warm_up: Duration, measured: Duration) -> Percentiles {
    let clients = rate.div_ceil(200);
    let waiting = Mutex::new(Vec::new());
    let seconds = Mutex::new(Vec::new());
    let still = AtomicU32::new(1);
    let commit = async {
        at_rate(fixture, rate, clients, warm_up, measured, async |session, counts| {
            session.sql(TICK).await.unwrap();
            let returned = Instant::now();
            // The end of the commit, or of a slightly later one.
            let lsn = lsn(session, "SELECT pg_current_wal_flush_lsn()").await.expect("a position");
            if counts {
                waiting.lock().unwrap().push((lsn, returned));
            }
        })
        .await;
        still.store(0, Ordering::Relaxed);
    };
    let look = async {
        let session = fixture.server.connect("postgres").await.unwrap();
        while still.load(Ordering::Relaxed) > 0 || !waiting.lock().unwrap().is_empty() {
            let flushed = lsn(&session, FLUSHED).await.expect("`seawall run` streams");
            let now = Instant::now();
            let durable: Vec<(_, Instant)> =
                waiting.lock().unwrap().extract_if(.., |(lsn, _)| *lsn <= flushed).collect();
            let waits = durable.iter().map(|(_, returned)| now.saturating_duration_since(*returned).as_secs_f64());
            seconds.lock().unwrap().extend(waits);
            sleep(LOOK).await;
        }
    };
    tokio::join!(commit, look);
    Percentiles::of(seconds.into_inner().unwrap())
}

/// What the archiver has acknowledged.
pub const FLUSHED: &str = "SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'seawall'";

/// A statement's one value as a position, if there is one.
pub async fn lsn(session: &Session, statement: &str) -> Option<seawall::wal::Lsn> {
    let rows = session.sql(statement).await.unwrap();
    rows.first()?.first()?.as_deref()?.parse().ok()
}
