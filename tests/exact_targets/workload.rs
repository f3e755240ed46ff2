//! Sessions that do what sessions do, at random: each transaction leaves its own number behind.

use super::clock::SteppedClock;
use fastrand::Rng;
use futures_util::future::{join, join_all};
use jiff::SignedDuration;
use seawall::scratch::{Server, Session};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// Sessions at once, beside the one whose transactions are long.
const SESSIONS: u64 = 5;

/// What each of them does, one thing after the other.
const STEPS: usize = 70;

/// So far a stepped clock is behind at first.
pub(crate) const BEHIND: SignedDuration = SignedDuration::from_secs(45);

/// The tables that may be dropped.
pub(crate) const DOOMED: usize = 12;

/// The rows of the doomed table `number`.
pub(crate) fn doomed_rows(number: usize) -> usize {
    100 + number
}

pub(crate) struct Workload {
    seed: u64,
    rows: AtomicI64,
    prepared: Mutex<Vec<String>>,
    standing: Mutex<Vec<usize>>,
    dropped: Mutex<BTreeMap<usize, u32>>,
}

impl Workload {
    /// Makes the tables.
    pub(crate) async fn prepare(server: &Server, seed: u64) -> Workload {
        server.sql("CREATE TABLE kept (row bigint PRIMARY KEY, xid bigint)").await.unwrap();
        for number in 0..DOOMED {
            let rows = doomed_rows(number);
            let doomed = format!("CREATE TABLE doomed_{number} AS SELECT generate_series(1, {rows}) AS id");
            server.sql(&doomed).await.unwrap();
        }
        let standing = Mutex::new((0..DOOMED).collect());
        Workload { seed, rows: AtomicI64::new(0), prepared: Mutex::default(), standing, dropped: Mutex::default() }
    }

    /// Does it all; the clock, if there is one, is stepped meanwhile.
    pub(crate) async fn run(&self, server: &Server, clock: Option<&SteppedClock>) {
        let is_over = AtomicBool::new(false);
        let work = async {
            join(self.long_transactions(server), join_all((1..=SESSIONS).map(|it| self.session(server, it)))).await;
            is_over.store(true, Ordering::SeqCst);
        };
        let steps = async {
            let mut rng = self.rng(100);
            for step in 0.. {
                let (false, Some(clock)) = (is_over.load(Ordering::SeqCst), clock) else { break };
                // Forward on the whole, or hardly any moment would lie behind the highest that was ever shown.
                let behind = SignedDuration::from_millis((BEHIND.as_millis() as i64 - 400 * step).max(5_000));
                let near = SignedDuration::from_micros(rng.i64(-3_000_000..3_000_000));
                let far = SignedDuration::from_micros(rng.i64(0..20_000_000));
                match rng.u32(0..10) {
                    0..2 => clock.stand_still(),
                    2..4 => clock.step_to(behind + far),
                    _ => clock.step_to(behind + near),
                }
                sleep(Duration::from_millis(rng.u64(10..80))).await;
            }
        };
        join(work, steps).await;
    }

    /// The doomed tables that are gone, and the transactions that dropped them.
    pub(crate) fn dropped(&self) -> BTreeMap<usize, u32> {
        self.dropped.lock().unwrap().clone()
    }

    fn rng(&self, salt: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_mul(1_000).wrapping_add(salt))
    }

    /// One more row.
    pub(crate) fn insert(&self) -> String {
        let row = self.rows.fetch_add(1, Ordering::SeqCst);
        format!("INSERT INTO kept VALUES ({row}, txid_current()) RETURNING xid")
    }

    async fn session(&self, server: &Server, number: u64) {
        let mut rng = self.rng(number);
        let session = server.connect("postgres").await.unwrap();
        for step in 0..STEPS {
            match rng.u32(0..100) {
                0..30 => do_all(&session, &[self.insert()]).await,
                30..42 => {
                    do_all(&session, &["BEGIN".into(), self.insert()]).await;
                    pause(&mut rng).await;
                    do_all(&session, &[self.insert(), end(&mut rng, 70)]).await;
                }
                42..60 => self.with_savepoints(&session, &mut rng).await,
                60..70 => {
                    let name = format!("s{number}_{step}");
                    do_all(&session, &["BEGIN".into(), self.insert(), format!("PREPARE TRANSACTION '{name}'")]).await;
                    self.prepared.lock().unwrap().push(name);
                }
                70..80 => {
                    let name = self.prepared.lock().unwrap().pop();
                    let verb = end(&mut rng, 70);
                    let finish = |name| format!("{verb} PREPARED '{name}'");
                    do_all(&session, &name.map(finish).into_iter().collect::<Vec<_>>()).await;
                }
                80..84 => do_all(&session, &[format!("SELECT pg_create_restore_point('p{number}_{step}')")]).await,
                84..90 => {
                    let table = format!("CREATE TABLE t{number}_{step} (id serial PRIMARY KEY, text text)");
                    do_all(&session, &["BEGIN".into(), self.insert(), table, end(&mut rng, 80)]).await;
                }
                90..96 => self.drop_table(&session, &mut rng).await,
                _ => do_all(&session, &["CHECKPOINT".into()]).await,
            }
            if number == 1 && step == STEPS / 3 {
                do_all(&session, &["CREATE DATABASE shop TEMPLATE template0".into()]).await;
            }
            if number == 1 && step == STEPS * 2 / 3 {
                do_all(&session, &["DROP DATABASE shop".into()]).await;
            }
            pause(&mut rng).await;
        }
    }

    /// A savepoint that is kept, one that is not, and one in the other.
    async fn with_savepoints(&self, session: &Session, rng: &mut Rng) {
        do_all(session, &["BEGIN".into(), self.insert()]).await;
        for _ in 0..rng.u32(1..4) {
            do_all(session, &["SAVEPOINT outside".into(), self.insert(), "SAVEPOINT inside".into(), self.insert()])
                .await;
            pause(rng).await;
            let inside = if rng.bool() { "RELEASE inside" } else { "ROLLBACK TO inside" };
            let outside = if rng.bool() { "RELEASE outside" } else { "ROLLBACK TO outside" };
            do_all(session, &[inside.into(), self.insert(), outside.into()]).await;
        }
        do_all(session, &[end(rng, 75)]).await;
    }

    async fn drop_table(&self, session: &Session, rng: &mut Rng) {
        let Some(number) = self.standing.lock().unwrap().pop() else { return };
        do_all(session, &["BEGIN".into()]).await;
        let rows = session.sql(&self.insert()).await.unwrap();
        let end = end(rng, 75);
        do_all(session, &[format!("DROP TABLE doomed_{number}"), end.clone()]).await;
        if end == "COMMIT" {
            let xid = rows[0][0].as_deref().unwrap().parse().unwrap();
            self.dropped.lock().unwrap().insert(number, xid);
        }
    }

    /// Transactions that dozens of others begin and end in.
    async fn long_transactions(&self, server: &Server) {
        let mut rng = self.rng(0);
        let session = server.connect("postgres").await.unwrap();
        for _ in 0..4 {
            do_all(&session, &["BEGIN".into()]).await;
            for _ in 0..rng.u32(3..6) {
                do_all(&session, &[self.insert(), "SAVEPOINT long".into(), self.insert()]).await;
                sleep(Duration::from_millis(rng.u64(20..120))).await;
                do_all(&session, &[if rng.bool() { "ROLLBACK TO long" } else { "RELEASE long" }.into()]).await;
            }
            do_all(&session, &[end(&mut rng, 60)]).await;
        }
    }
}

/// How a transaction ends, with so many in a hundred committed.
fn end(rng: &mut Rng, committed: u32) -> String {
    if rng.u32(0..100) < committed { "COMMIT" } else { "ROLLBACK" }.to_owned()
}

/// Nothing for a moment, and now and then for longer.
async fn pause(rng: &mut Rng) {
    let micros = if rng.u32(0..20) == 0 { rng.u64(20_000..60_000) } else { rng.u64(0..4_000) };
    sleep(Duration::from_micros(micros)).await;
}

/// Statement by statement, so that a transaction is what BEGIN and COMMIT say.
async fn do_all(session: &Session, statements: &[String]) {
    for statement in statements {
        session.sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}
