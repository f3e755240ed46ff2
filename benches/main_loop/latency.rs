//! Light load, commit by commit: how long until the commit is durable in S3, and how long a client waits that asks for
//! that with `synchronous_standby_names`.

use crate::s3::{Fault, Op, S3Server};
use crate::{Fixture, s3_store};
use seawall::scratch::Session;
use seawall::store::{Body, Metadata};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Commits a second, together.
const COMMITS: u32 = 100;
/// Left out at the start of each measurement.
const WARM_UP: Duration = Duration::from_secs(5);
/// Measured for so long.
const MEASURED: Duration = Duration::from_secs(20);
/// Between two looks at what is acknowledged: the figures are that coarse.
const LOOK: Duration = Duration::from_millis(1);
/// What a PUT takes longer than on the loopback: a small object at S3 takes some tens of milliseconds.
pub const PUT_DELAY: Duration = Duration::from_millis(20);
/// So many single PUTs of so many bytes are timed.
const PUTS: usize = 100;
const PUT_BYTES: usize = 8 << 10;

/// Of many waits.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
    pub count: usize,
}

impl Percentiles {
    fn of(mut seconds: Vec<f64>) -> Percentiles {
        assert!(seconds.len() >= 100, "only {} waits were measured", seconds.len());
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() as f64 * share).ceil() as usize).clamp(1, seconds.len()) - 1];
        Percentiles { p50: at(0.5), p99: at(0.99), count: seconds.len() }
    }
}

/// A server whose PUTs take [`PUT_DELAY`] longer.
pub fn slow_server(directory: &std::path::Path) -> S3Server {
    let server = S3Server::on_disk(directory);
    server.always(Op::Put, Fault::Delay(PUT_DELAY));
    server
}

/// One PUT after the other, through the store that the program uses.
pub async fn puts(server: &S3Server) -> Percentiles {
    let store = s3_store::store(s3_store::options(server)).await;
    let mut seconds = Vec::new();
    for i in 0..PUTS + 10 {
        let started = Instant::now();
        let body = Body::from(bytes::Bytes::from(vec![i as u8; PUT_BYTES]));
        store.create(&format!("put/{i}"), body, Metadata::default()).await.unwrap();
        if i >= 10 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Percentiles::of(seconds)
}

/// From the return of the commit until the server knows that the archive has it.
pub async fn commit_to_durable(fixture: &Fixture) -> Percentiles {
    let waiting = Mutex::new(VecDeque::new());
    let seconds = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let commit = async {
        let session = fixture.server.connect("postgres").await.unwrap();
        let mut tick = interval(Duration::from_secs(1) / COMMITS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while begun.elapsed() < WARM_UP + MEASURED {
            tick.tick().await;
            session.sql("INSERT INTO tick DEFAULT VALUES").await.unwrap();
            let returned = Instant::now();
            // Nobody else writes: this is the end of the commit.
            let lsn = lsn(&session, "SELECT pg_current_wal_flush_lsn()").await.expect("a position");
            if begun.elapsed() > WARM_UP {
                waiting.lock().unwrap().push_back((lsn, returned));
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let look = async {
        let session = fixture.server.connect("postgres").await.unwrap();
        while !(stop.load(Ordering::Relaxed) && waiting.lock().unwrap().is_empty()) {
            let flushed = lsn(&session, FLUSHED).await.expect("`seawall run` streams");
            let now = Instant::now();
            // A lock for each step: none is held while this sleeps.
            let next = || waiting.lock().unwrap().pop_front_if(|(lsn, _)| *lsn <= flushed);
            while let Some((_, returned)) = next() {
                seconds.lock().unwrap().push(now.saturating_duration_since(returned).as_secs_f64());
            }
            sleep(LOOK).await;
        }
    };
    tokio::join!(commit, look);
    Percentiles::of(seconds.into_inner().unwrap())
}

/// How long a commit takes, by several clients whose commits add up to [`COMMITS`] a second.
pub async fn commits(fixture: &Fixture) -> Percentiles {
    const CLIENTS: u32 = 5;
    let begun = Instant::now();
    let client = async || {
        let session = fixture.server.connect("postgres").await.unwrap();
        let mut tick = interval(Duration::from_secs(1) * CLIENTS / COMMITS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut seconds = Vec::new();
        while begun.elapsed() < WARM_UP + MEASURED {
            tick.tick().await;
            let asked = Instant::now();
            session.sql("INSERT INTO tick DEFAULT VALUES").await.unwrap();
            if begun.elapsed() > WARM_UP {
                seconds.push(asked.elapsed().as_secs_f64());
            }
        }
        seconds
    };
    let clients = (0..CLIENTS).map(|i| {
        let client = &client;
        async move {
            // Evenly apart, as far as they keep it.
            sleep(Duration::from_secs(1) * i / COMMITS).await;
            client().await
        }
    });
    Percentiles::of(futures_util::future::join_all(clients).await.concat())
}

/// What the archiver has acknowledged.
pub const FLUSHED: &str = "SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'seawall'";

/// A statement's one value as a position, if there is one.
pub async fn lsn(session: &Session, statement: &str) -> Option<seawall::wal::Lsn> {
    let rows = session.sql(statement).await.unwrap();
    rows.first()?.first()?.as_deref()?.parse().ok()
}
